"""Cuts through volumes, against SciPy's interpolation and against plain indexing."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from gui.volume.slicing import (
    BLOCK,
    Cut,
    Orientation,
    Slab,
    Slicer,
    along,
    angles_rad,
    crossing_mm,
    held,
    index_of,
    point_of,
    sampled,
    stepped,
    tilted,
    trilinear,
    turned,
    voxel_of,
)
from reconstruction.volume import Grid

GRID = Grid(shape=(5, 6, 7), voxel_mm=0.25, centre_mm=(1.0, -2.0, 0.5))


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).random((2, *GRID.shape), dtype=np.float32)


@pytest.mark.parametrize(("orientation", "axis"), [(o, o.axis) for o in Orientation])
def test_a_straight_cut_is_an_index(values: np.ndarray, orientation: Orientation, axis: int) -> None:
    voxel = (3, 4, 2)
    picture = Slicer(values, GRID).picture(along(orientation, point_of(GRID, voxel)))
    assert np.array_equal(picture.values, values.take(voxel[axis], axis=1 + axis))
    assert picture.step_mm == GRID.voxel_mm


@pytest.mark.parametrize("orientation", Orientation)
def test_the_pictures_positions_are_those_of_the_geometry(values: np.ndarray, orientation: Orientation) -> None:
    """A voxel's value stands in the picture where the cut says that its middle stands."""
    voxel = (1, 5, 6)
    cut = along(orientation, point_of(GRID, voxel))
    picture = Slicer(values, GRID).picture(cut)
    right_mm, up_mm = cut.plane_mm(point_of(GRID, voxel))
    column = int((right_mm - picture.left_mm) / picture.step_mm)
    row = int((up_mm - picture.bottom_mm) / picture.step_mm)
    assert np.array_equal(picture.values[:, row, column], values[(slice(None), *voxel)])


def test_a_slanted_cut_is_scipys(values: np.ndarray) -> None:
    cut = tilted((1.05, -1.9, 0.4), 0.4, 0.7)
    picture = Slicer(values, GRID).picture(cut)
    h, w = picture.values.shape[1:]
    expected = np.full((2, h, w), np.nan)
    for row in range(h):
        for column in range(w):
            point = cut.point_mm(
                picture.left_mm + (column + 0.5) * picture.step_mm, picture.bottom_mm + (row + 0.5) * picture.step_mm
            )
            at = index_of(GRID, point)
            if ((at >= -0.5) & (at <= np.array(GRID.shape) - 0.5)).all():
                for channel in range(2):
                    expected[channel, row, column] = map_coordinates(
                        values[channel], at[:, None], order=1, mode="nearest"
                    )[0]
    assert np.isfinite(expected).sum() > 20
    assert np.allclose(picture.values, expected, atol=1e-6, equal_nan=True)


def test_interpolation_at_the_middles_is_the_voxel(values: np.ndarray) -> None:
    z, y, x = GRID.axes_mm()
    points = np.stack(np.meshgrid(x, y, z, indexing="ij"), axis=-1).transpose(2, 1, 0, 3)
    assert np.allclose(trilinear(values, GRID, points), values, atol=1e-6)


def test_a_volume_one_slice_thin_can_be_cut_aslant() -> None:
    grid = Grid(shape=(1, 8, 8), voxel_mm=1.0)
    picture = Slicer(np.ones((1, 1, 8, 8), np.float32), grid).picture(tilted((0, 0, 0), 0.0, np.pi / 4))
    assert np.nanmax(picture.values) == pytest.approx(1.0)


@pytest.mark.parametrize("orientation", Orientation)
def test_slabs_are_mean_and_maximum_of_their_slices(values: np.ndarray, orientation: Orientation) -> None:
    axis, centre = 1 + orientation.axis, point_of(GRID, (2, 2, 2))
    thick = 3.2 * GRID.voxel_mm  # reaches one voxel to either side
    own = values.take(range(1, 4), axis=axis)
    mean = Slicer(values, GRID).picture(along(orientation, centre, thick))
    most = Slicer(values, GRID).picture(along(orientation, centre, thick, Slab.MAXIMUM))
    assert np.allclose(mean.values, own.mean(axis=axis), atol=1e-6)
    assert np.array_equal(most.values, own.max(axis=axis))


def test_a_slab_at_the_edge_is_of_what_is_there(values: np.ndarray) -> None:
    picture = Slicer(values, GRID).picture(along(Orientation.AXIAL, point_of(GRID, (0, 0, 0)), 1.0))
    assert np.allclose(picture.values, values[:, :3].mean(axis=1), atol=1e-6)


def test_a_cut_beside_the_volume_shows_nothing(values: np.ndarray) -> None:
    assert np.isnan(Slicer(values, GRID).picture(along(Orientation.AXIAL, (0, 0, 99.0))).values).all()


def test_slanted_slabs_agree_with_straight_ones_where_they_must(values: np.ndarray) -> None:
    """Turned by a right angle a slanted slab is a straight one, sample by sample."""
    centre = point_of(GRID, (2, 3, 3))
    upright = Cut(centre_mm=centre, right=(0.0, 1.0, 0.0), up=(0.0, 0.0, -1.0), thickness_mm=0.75)
    straight = Slicer(values, GRID).picture(along(Orientation.SAGITTAL, centre, 0.75))
    slanted = Slicer(values, GRID).picture(upright)
    assert np.allclose(slanted.values[:, ::-1], straight.values, atol=1e-5)


def test_planes_read_in_blocks_are_the_planes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gui.volume.slicing.SMALL_BYTES", 0)
    grid = Grid(shape=(3, 4, 2 * BLOCK + 5), voxel_mm=1.0)
    values = np.random.default_rng(1).random((2, *grid.shape), dtype=np.float32)
    slicer = Slicer(values, grid)
    for x in (0, 5, BLOCK - 1, BLOCK, 2 * BLOCK + 4, 3):
        cut = along(Orientation.SAGITTAL, point_of(grid, (0, 0, x)), 2.0)
        expected = values[..., max(x - 1, 0) : x + 2].mean(axis=-1)
        assert np.allclose(slicer.picture(cut).values, expected, atol=1e-6)


def test_points_and_voxels_go_to_and_fro() -> None:
    for voxel in np.ndindex(*GRID.shape):
        assert voxel_of(GRID, point_of(GRID, voxel)) == voxel  # pyright: ignore[reportArgumentType]
    z, y, x = GRID.axes_mm()
    assert point_of(GRID, (1, 2, 3)) == pytest.approx((x[3], y[2], z[1]))
    assert voxel_of(GRID, (99.0, 0.0, 0.0)) is None
    assert point_of(GRID, (4, 5, 6)) == pytest.approx(held(GRID, (99.0, 99.0, 99.0)))


def test_points_and_pictures_go_to_and_fro() -> None:
    cut = tilted((0.3, -0.2, 0.9), 1.1, 0.4)
    assert cut.point_mm(*cut.plane_mm(cut.centre_mm)) == pytest.approx(cut.centre_mm)
    assert cut.plane_mm(cut.point_mm(0.7, -0.3)) == pytest.approx((0.7, -0.3))


def test_steps_stop_at_the_last_slice() -> None:
    start = point_of(GRID, (2, 2, 2))
    assert voxel_of(GRID, stepped(GRID, start, Orientation.CORONAL, 2)) == (2, 4, 2)
    assert voxel_of(GRID, stepped(GRID, start, Orientation.CORONAL, 99)) == (2, 5, 2)
    assert voxel_of(GRID, stepped(GRID, start, Orientation.SAGITTAL, -99)) == (2, 2, 0)


@pytest.mark.parametrize(("azimuth", "tilt"), [(0.0, 0.3), (0.7, 1.2), (-2.5, 0.4), (3.0, 2.9)])
def test_angles_of_a_cut_are_those_it_was_made_with(azimuth: float, tilt: float) -> None:
    assert angles_rad(tilted((0, 0, 0), azimuth, tilt)) == pytest.approx((azimuth, tilt))


def test_a_turn_and_back_is_nothing() -> None:
    cut = tilted((1, 2, 3), 0.4, 0.9)
    axis = (0.6, 0.0, 0.8)
    back = turned(turned(cut, axis, 0.8), axis, -0.8)
    assert back.right == pytest.approx(cut.right)
    assert back.up == pytest.approx(cut.up)
    assert np.dot(turned(cut, axis, 0.8).right, turned(cut, axis, 0.8).up) == pytest.approx(0, abs=1e-12)


def test_two_cuts_cross_where_both_are() -> None:
    axial, slanted = along(Orientation.AXIAL, (0.2, 0.1, 0.4)), tilted((1.0, 2.0, 3.0), 0.5, 0.8)
    found = crossing_mm(axial, slanted)
    assert found is not None
    (right_mm, up_mm), (across, upwards) = found
    for step_mm in (-2.0, 0.0, 5.0):
        point = axial.point_mm(right_mm + step_mm * across, up_mm + step_mm * upwards)
        assert np.dot(np.array(point) - slanted.centre_mm, slanted.normal) == pytest.approx(0, abs=1e-9)
    assert crossing_mm(axial, along(Orientation.AXIAL, (0, 0, 9.0))) is None


def test_a_sample_is_of_voxels_and_small() -> None:
    values = np.arange(2 * 40 * 3 * 5, dtype=np.float32).reshape(2, 40, 3, 5)
    few = sampled(values, most_slices=4)
    assert few.shape == (2, 4, 3, 5)
    assert np.isin(few, values).all()
