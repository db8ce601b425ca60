"""The projector pair: exact adjoints, fast kernels equal to the formula, exact chords, symmetries."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.geometry import Geometry
from reconstruction.kernels import joseph_columns, joseph_plain, joseph_rays, joseph_slices, threads
from reconstruction.projector import Projector
from reconstruction.scan_geometry import ScanGeometry
from reconstruction.volume import Grid
from tests.adjoints import assert_adjoint

SHAPE = (21, 18, 23)
VECTORS = ("source_mm", "detector_mm", "u_mm", "v_mm")


def cone(pitch_mm: float = 1.5, *, n_views: int = 7, rows: int = 20, cols: int = 27, **askew: float) -> ScanGeometry:
    """A cone beam round a volume of 1 mm voxels; a pitch of 1.5 mm is one voxel on the axis."""
    geometry = Geometry(
        source_to_detector_mm=150, source_to_object_mm=100, pitch_mm=pitch_mm, rows=rows, cols=cols, **askew
    )
    return ScanGeometry.circular(geometry, np.arange(n_views) * 2 * np.pi / n_views + 0.1)


def parallel(pitch_mm: float = 1.0, *, n_views: int = 7, rows: int = 20) -> ScanGeometry:
    return ScanGeometry.parallel(np.arange(n_views) * np.pi / n_views + 0.1, rows=rows, cols=27, pitch_mm=pitch_mm)


def lifted_parallel() -> ScanGeometry:
    """Parallel beams whose detector rises from view to view."""
    scan = parallel()
    return replace(scan, detector_mm=scan.detector_mm + np.linspace(-3, 3, 7)[:, None] * [0, 0, 1])


def turned_back(vectors: np.ndarray) -> np.ndarray:
    """Turn vectors a quarter from y to x."""
    return np.stack([vectors[:, 1], -vectors[:, 0], vectors[:, 2]], axis=1)


def by_formula(projector: Projector, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both halves as `joseph_plain` has them."""
    ax, aty = np.zeros(projector.range_shape, projector.dtype), np.zeros(projector.domain_shape, projector.dtype)
    scan, voxel_mm = projector.scan, projector.grid.voxel_mm
    joseph_plain.forward(x, ax, projector._rays, scan.is_parallel, voxel_mm, 0, scan.n_views)
    joseph_plain.adjoint(aty, y, projector._rays, scan.is_parallel, voxel_mm)
    return ax, aty


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("scan", "kernels"),
    [
        (cone(), joseph_columns),
        (cone(0.4), joseph_columns),
        (cone(2.6), joseph_columns),
        (cone(5.0), joseph_columns),
        (cone(offset_u_mm=7.0, offset_v_mm=-4.0), joseph_columns),
        (cone(roll_rad=0.1, tilt_u_rad=0.05, tilt_v_rad=-0.07), joseph_rays),
        (parallel(), joseph_slices),
        (parallel(0.3), joseph_slices),
        (parallel(2.2, rows=1), joseph_slices),
        (lifted_parallel(), joseph_columns),
    ],
)
def test_fast_kernels_compute_the_formula(scan, kernels, dtype):
    projector = Projector(scan, Grid(shape=SHAPE, voxel_mm=1.0, centre_mm=(1.0, -2.0, 0.5)), n_channels=2, dtype=dtype)
    assert projector._kernels is kernels
    rng = np.random.default_rng(1)
    x, y = (rng.random(shape).astype(dtype) for shape in (projector.domain_shape, projector.range_shape))
    ax, aty = by_formula(projector, x, y)
    rounding = 2e-6 if dtype == np.float32 else 1e-13
    np.testing.assert_allclose(projector.forward(x), ax, atol=rounding * ax.max(), rtol=0)
    np.testing.assert_allclose(projector.adjoint(y), aty, atol=rounding * aty.max(), rtol=0)
    assert_adjoint(projector, dtype=dtype)


turns = st.floats(-0.15, 0.15)


@given(
    angle_rad=st.floats(0, 6.3),
    lift_mm=st.floats(-9, 9),
    shift_mm=st.floats(-9, 9),
    pitch_mm=st.floats(0.5, 6),
    askew=st.one_of(st.just((0.0, 0.0, 0.0)), st.tuples(turns, turns, turns)),
    source_mm=st.sampled_from([30.0, 100.0, 1000.0]),
    channels=st.integers(1, 2),
)
@settings(max_examples=60, deadline=None)
def test_any_geometry_has_its_exact_adjoint(angle_rad, lift_mm, shift_mm, pitch_mm, askew, source_mm, channels):
    geometry = Geometry(
        source_to_detector_mm=1.5 * source_mm,
        source_to_object_mm=source_mm,
        pitch_mm=pitch_mm,
        rows=9,
        cols=11,
        roll_rad=askew[0],
        tilt_u_rad=askew[1],
        tilt_v_rad=askew[2],
    )
    scan = ScanGeometry.circular(geometry, angle_rad + np.arange(2), lifts_mm=lift_mm, shifts_mm=shift_mm)
    assert_adjoint(Projector(scan, Grid(shape=(10, 12, 11), voxel_mm=1.0), n_channels=channels, dtype=np.float64))


@pytest.mark.parametrize("scan", [cone(), cone(roll_rad=0.1), parallel()])
def test_what_a_mask_leaves_out_counts_as_nothing(scan):
    rng = np.random.default_rng(2)
    mask = rng.random(SHAPE) < 0.5
    grid = Grid(shape=SHAPE, voxel_mm=1.0)
    masked = Projector(scan, grid, mask=mask, dtype=np.float64)
    x, y = rng.random(masked.domain_shape), rng.random(masked.range_shape)
    free = Projector(scan, grid, dtype=np.float64)
    np.testing.assert_array_equal(masked.forward(x), free.forward(x * mask))
    np.testing.assert_array_equal(masked.adjoint(y), free.adjoint(y) * mask)
    assert_adjoint(masked)


@pytest.mark.parametrize("scan", [cone(), cone(roll_rad=0.1), parallel()])
def test_a_subset_has_some_of_the_views(scan):
    projector = Projector(scan, Grid(shape=SHAPE, voxel_mm=1.0), dtype=np.float64)
    x = np.random.default_rng(3).random(projector.domain_shape)
    views = [5, 0, 2]
    np.testing.assert_allclose(projector.subset(views).forward(x), projector.forward(x)[:, views], rtol=1e-13)
    y = np.random.default_rng(4).random(projector.range_shape)
    parts = [projector.subset(slice(k, None, 2)).adjoint(y[:, k::2]) for k in range(2)]
    np.testing.assert_allclose(parts[0] + parts[1], projector.adjoint(y), rtol=1e-12)


@pytest.mark.parametrize("scan", [cone(n_views=40), cone(n_views=40, roll_rad=0.1), parallel(n_views=70)])
def test_the_number_of_threads_changes_no_bit(scan, monkeypatch):
    projector = Projector(scan, Grid(shape=(12, 70, 75), voxel_mm=0.4))
    rng = np.random.default_rng(5)
    x, y = (rng.random(shape, np.float32) for shape in (projector.domain_shape, projector.range_shape))
    results = []
    for n in (1, 3):
        monkeypatch.setattr(threads, "n_threads", lambda n=n: n)
        results.append((projector.forward(x), projector.adjoint(y)))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])


def test_results_go_where_they_are_asked_to():
    projector = Projector(cone(), Grid(shape=SHAPE, voxel_mm=1.0))
    rng = np.random.default_rng(6)
    x, y = (rng.random(shape, np.float32) for shape in (projector.domain_shape, projector.range_shape))
    for room in (np.full(projector.domain_shape, 7, np.float32), np.full(projector.domain_shape[::-1], 7.0).T):
        assert projector.adjoint(y, out=room) is room
        np.testing.assert_array_equal(room, projector.adjoint(y))
    room = np.full(projector.range_shape, 7, np.float32)
    assert projector.forward(x, out=room) is room
    np.testing.assert_array_equal(room, projector.forward(x))
    with pytest.raises(ValueError, match="shape"):
        projector.forward(x[:, 1:])
    with pytest.raises(ValueError, match="out has shape"):
        projector.forward(x, out=room[:, 1:])


def test_rays_through_voxel_centres_sum_the_voxels():
    scan = ScanGeometry.parallel([0, np.pi / 2, np.pi, 1.5 * np.pi], rows=21, cols=19, pitch_mm=0.5)
    volume = np.random.default_rng(7).random((1, 21, 19, 19))
    seen = Projector(scan, Grid(shape=(21, 19, 19), voxel_mm=0.5), dtype=np.float64).forward(volume)[0]
    along_y, along_x = volume[0].sum(1) * 0.5, volume[0].sum(2) * 0.5
    for view, expected in zip(seen, (along_y, along_x, along_y[:, ::-1], along_x[:, ::-1]), strict=True):
        np.testing.assert_allclose(view, expected, rtol=1e-12)


@pytest.mark.parametrize("scan", [cone(n_views=4), cone(n_views=4, roll_rad=0.1), parallel()])
def test_a_quarter_turn_of_the_object_is_a_quarter_turn_of_the_scan(scan):
    turned = replace(scan, **{name: turned_back(getattr(scan, name)) for name in VECTORS})
    grid = Grid(shape=(9, 20, 20), voxel_mm=1.0)
    volume = np.random.default_rng(8).random((1, 9, 20, 20))
    of_object = np.rot90(volume, k=-1, axes=(2, 3))  # (x, y) of what was at (-y, x): a turn from x to y
    first = Projector(scan, grid, dtype=np.float64).forward(of_object)
    second = Projector(turned, grid, dtype=np.float64).forward(volume)
    np.testing.assert_allclose(first, second, atol=1e-11)


@pytest.mark.parametrize("scan", [cone(), cone(roll_rad=0.1), parallel()])
def test_a_volume_that_stands_elsewhere_is_seen_elsewhere(scan):
    content = np.random.default_rng(9).random((1, 8, 9, 10))
    inside = np.zeros((1, *SHAPE))
    inside[:, 4:12, 6:15, 8:18] = content
    shift = [(8 + 4.5 - 11), (6 + 4 - 8.5), (4 + 3.5 - 10)]  # x, y, z of the content's middle, in voxels
    small = Projector(
        scan, Grid(shape=(8, 9, 10), voxel_mm=0.8, centre_mm=tuple(0.8 * np.array(shift))), dtype=np.float64
    )
    large = Projector(scan, Grid(shape=SHAPE, voxel_mm=0.8), dtype=np.float64)
    np.testing.assert_allclose(small.forward(content), large.forward(inside), atol=1e-11)


def test_lifting_the_object_is_lifting_the_volume():
    geometry = Geometry(source_to_detector_mm=150, source_to_object_mm=100, pitch_mm=1.5, rows=20, cols=27)
    lifted = ScanGeometry.circular(geometry, [0.3, 2.0], lifts_mm=2.5)
    still = ScanGeometry.circular(geometry, [0.3, 2.0])
    x = np.random.default_rng(10).random((1, *SHAPE))
    one = Projector(lifted, Grid(shape=SHAPE, voxel_mm=1.0), dtype=np.float64).forward(x)
    other = Projector(still, Grid(shape=SHAPE, voxel_mm=1.0, centre_mm=(0, 0, 2.5)), dtype=np.float64).forward(x)
    np.testing.assert_allclose(one, other, atol=1e-11)


def test_a_voxel_is_seen_where_the_matrix_says():
    scan = cone(0.5, rows=130, cols=140, offset_u_mm=3.0, roll_rad=0.05)
    grid = Grid(shape=SHAPE, voxel_mm=1.0)
    place = 15, 4, 17
    x = np.zeros((1, *SHAPE))
    x[(0, *place)] = 1
    seen = Projector(scan, grid, dtype=np.float64).forward(x)[0]
    z, y, x_mm = (axis[i] for axis, i in zip(grid.axes_mm(), place, strict=True))
    a, b, c = np.moveaxis(scan.matrices() @ [x_mm, y, z, 1], -1, 0)
    rows, cols = np.arange(130), np.arange(140)
    np.testing.assert_allclose((seen.sum(1) @ cols) / seen.sum((1, 2)), a / c, atol=0.1)
    np.testing.assert_allclose((seen.sum(2) @ rows) / seen.sum((1, 2)), b / c, atol=0.1)


def of_sphere(n: int, radius_mm: float, centre_mm: np.ndarray) -> np.ndarray:
    """A sphere in a cube of 20 mm with n^3 voxels, each with the share of it that the sphere fills."""
    fine = (np.arange(4 * n) + 0.5) * 20 / (4 * n) - 10
    z, y, x = np.meshgrid(fine, fine, fine, indexing="ij", sparse=True)
    inside = (x - centre_mm[0]) ** 2 + (y - centre_mm[1]) ** 2 + (z - centre_mm[2]) ** 2 < radius_mm**2
    return inside.reshape(n, 4, n, 4, n, 4).mean((1, 3, 5))[None]


@pytest.mark.parametrize("askew", [{}, {"roll_rad": 0.2, "tilt_u_rad": 0.1}])
def test_chords_of_a_sphere_become_exact_with_finer_voxels(askew):
    geometry = Geometry(
        source_to_detector_mm=90, source_to_object_mm=60, pitch_mm=0.75, rows=40, cols=44, offset_u_mm=2, **askew
    )
    scan = ScanGeometry.circular(geometry, [0.2, 1.0, 2.5, 4.0])
    centre, radius = np.array([2.0, -1.0, 0.5]), 6.0
    row, col = np.meshgrid(np.arange(40) - 19.5, np.arange(44) - 21.5, indexing="ij")
    pixels = (
        scan.detector_mm[:, None, None]
        + row[..., None] * scan.v_mm[:, None, None]
        + col[..., None] * scan.u_mm[:, None, None]
    )
    along = pixels - scan.source_mm[:, None, None]
    along /= np.linalg.norm(along, axis=-1, keepdims=True)
    to_centre = (centre - scan.source_mm)[:, None, None]
    from_ray = (to_centre**2).sum(-1) - (to_centre * along).sum(-1) ** 2
    chords = 2 * np.sqrt(np.maximum(radius**2 - from_ray, 0))
    everywhere, inside = [], []
    for n in (16, 32):
        seen = Projector(scan, Grid(shape=(n, n, n), voxel_mm=20 / n)).forward(of_sphere(n, radius, centre))[0]
        squares = (seen - chords) ** 2
        everywhere.append(np.sqrt(squares.mean()))
        inside.append(np.sqrt(squares[chords > radius].mean()))
    assert everywhere[1] < 0.57 * everywhere[0]  # first order, because chords end steeply at the edge
    assert inside[1] < 0.35 * inside[0]
    assert inside[1] < 0.01 * 2 * radius


def test_a_box_has_the_chords_of_a_box_at_oblique_angles():
    n, half = 80, 5.0
    angles = np.deg2rad([10.0, 30.0, 44.0, 63.0])
    scan = ScanGeometry.parallel(angles, rows=1, cols=61, pitch_mm=0.25)
    volume = np.zeros((1, 1, n, n), np.float32)
    volume[:, :, 20:60, 20:60] = 1  # 10 mm of 20 mm
    seen = Projector(scan, Grid(shape=(1, n, n), voxel_mm=20 / n)).forward(volume)[0, :, 0]
    s = (np.arange(61) - 30) * 0.25
    for view, angle in zip(seen, angles, strict=True):
        across = [(half - s * np.cos(angle)) / np.sin(angle), (half + s * np.cos(angle)) / np.sin(angle)]
        up = [(half - s * np.sin(angle)) / np.cos(angle), (half + s * np.sin(angle)) / np.cos(angle)]
        chord = np.maximum(np.minimum(across[0], up[1]) + np.minimum(across[1], up[0]), 0)
        assert np.abs(view - chord).max() < 0.3  # a voxel's diagonal is 0.35
        assert np.sqrt(((view - chord) ** 2).mean()) < 0.1


def test_a_far_source_makes_parallel_beams():
    geometry = Geometry(source_to_detector_mm=2e6, source_to_object_mm=1e6, pitch_mm=2.0, rows=20, cols=27)
    angles = np.arange(7) * np.pi / 7 + 0.1
    grid = Grid(shape=SHAPE, voxel_mm=1.0)
    x = np.random.default_rng(11).random((1, *SHAPE))
    far = Projector(ScanGeometry.circular(geometry, angles), grid, dtype=np.float64).forward(x)
    np.testing.assert_allclose(far, Projector(parallel(), grid, dtype=np.float64).forward(x), atol=1e-3)
