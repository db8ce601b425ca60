"""What is asked of a reconstruction: read from words, refused where it cannot be, and laid out as voxels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.geometry import Geometry
from firmware_iface.errors import WrongUsage
from reconstruction.field_of_view import coarser, cut_out, field_of_view, region
from reconstruction.recipe import Recipe, bins_of, region_of
from reconstruction.volume import Grid

GEOMETRY = Geometry(source_to_detector_mm=150.0, source_to_object_mm=120.0, pitch_mm=0.3, rows=16, cols=48)


@pytest.mark.parametrize(
    ("text", "bins"), [("", ()), ("1", (1,)), ("3,1", (1, 3)), (" 1 , 3-5", (1, 3, 4, 5)), ("2-3,3", (2, 3))]
)
def test_bins_are_read_in_order_and_once(text, bins):
    assert bins_of(text) == bins


@pytest.mark.parametrize("text", ["0", "a", "3-1", "1-", "-2", "1;2"])
def test_other_bins_are_refused_with_an_example(text):
    with pytest.raises(WrongUsage, match="like 1,3-4"):
        bins_of(text)


def test_a_region_names_the_axes_that_it_cuts():
    x, y, z = region_of("z=0:1.5, x=-2:2") or ((), (), ())
    assert (x, z) == ((-2.0, 2.0), (0.0, 1.5))
    assert y == (-np.inf, np.inf)
    assert region_of(" ") is None
    assert (region_of("y=:1") or [()] * 3)[1] == (-np.inf, 1.0)


@pytest.mark.parametrize("text", ["w=0:1", "x=1", "x", "x=a:b", "0:1"])
def test_another_region_is_refused_with_an_example(text):
    with pytest.raises(WrongUsage, match="allowed: mm like"):
        region_of(text)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"voxel_mm": 0.0}, "the voxel is 0.0 mm"),
        ({"voxel_mm": float("nan")}, "the voxel is nan mm"),
        ({"shape": (0, 3, 3)}, "the shape is 0 3 3"),
        ({"n_iterations": 0, "method": "sirt"}, "0 iterations"),
        ({"region_mm": ((1.0, 1.0), (0.0, 1.0), (0.0, 1.0))}, "from 1 to 1 mm"),
        ({"weights": "much"}, "the weights are 'much'"),
        ({"n_iterations": 3}, "fdk has no iterations"),
        ({"options": {"strength": 1.0}}, "fdk has no iterations"),
        ({"start": Path("x.h5")}, "fdk has no iterations"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(changes, told):
    with pytest.raises(WrongUsage, match=told):
        Recipe(**changes)


@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    st.lists(st.tuples(st.floats(-3, 3), st.floats(0.6, 4)), min_size=3, max_size=3),
)
def test_a_region_is_the_voxels_of_the_grid_that_lie_in_it(shape, spans):
    grid = Grid(shape=shape, voxel_mm=0.5, centre_mm=(0.2, -0.4, 1.0))
    spans = [(low, low + width) for low, width in spans]
    z, y, x = grid.axes_mm()
    inside = [(axis >= low) & (axis <= high) for axis, (low, high) in zip((x, y, z), spans, strict=True)]
    if not all(part.any() for part in inside):
        with pytest.raises(WrongUsage, match="the region's"):
            region(grid, spans)
        return
    part = region(grid, spans)
    for axis, kept, found in zip((x, y, z), inside, part.axes_mm()[::-1], strict=True):
        np.testing.assert_allclose(found, axis[kept], atol=1e-9)
    numbers = np.arange(np.prod(shape)).reshape(shape)
    expected = numbers[np.ix_(*(np.flatnonzero(kept) for kept in inside[::-1]))]
    np.testing.assert_array_equal(numbers[cut_out(grid, part)], expected)


@pytest.mark.parametrize(("factor", "rows", "cols"), [(4, 4, 12), (5, 3, 9), (16, 1, 3)])
def test_a_coarser_camera_has_its_pixels_in_the_middle_of_those_that_it_joins(factor, rows, cols):
    joined = coarser(GEOMETRY, factor)
    assert (joined.rows, joined.cols) == (rows, cols)
    fine, coarse = GEOMETRY.views([0.7]), joined.views([0.7])

    def pixels(views, geometry, row, col):
        return (
            views.detector_mm[0]
            + (row - (geometry.rows - 1) / 2) * views.v_mm[0]
            + (col - (geometry.cols - 1) / 2) * views.u_mm[0]
        )

    middle = (factor - 1) / 2
    np.testing.assert_allclose(pixels(coarse, joined, 0, 0), pixels(fine, GEOMETRY, middle, middle), atol=1e-12)
    at = pixels(coarse, joined, rows - 1, cols - 1)
    np.testing.assert_allclose(
        at, pixels(fine, GEOMETRY, middle + factor * (rows - 1), middle + factor * (cols - 1)), atol=1e-12
    )


def test_a_camera_coarser_than_itself_is_refused():
    with pytest.raises(WrongUsage, match="17 by 17"):
        coarser(GEOMETRY, 17)


def test_a_helix_shows_what_all_its_turns_see_from_every_side():
    # 3 turns that climb by 4 mm each: 12 mm, of which half a turn at either end is left out.
    lifts_mm = 5.0 + np.linspace(-6, 6, 301)
    grid = field_of_view(GEOMETRY, 0.1, lifts_mm=lifts_mm, climb_mm=4.0)
    z, _, _ = grid.axes_mm()
    assert (z[0], z[-1]) == pytest.approx((-9.0, -1.0), abs=0.11)
    with pytest.raises(WrongUsage, match="more than 1"):
        field_of_view(GEOMETRY, lifts_mm=lifts_mm[:100], climb_mm=4.0)


def test_a_camera_on_one_side_sees_twice_as_far_when_it_goes_all_the_way_round():
    shifted = Geometry(
        source_to_detector_mm=150.0, source_to_object_mm=120.0, pitch_mm=0.3, rows=16, cols=48, offset_u_mm=6.0
    )
    narrow, wide = field_of_view(shifted, 0.05), field_of_view(shifted, 0.05, is_wide=True)
    assert narrow.shape[1] * 0.05 == pytest.approx(2 * 1.2 * 120 / 150, rel=0.03)
    assert wide.shape[1] * 0.05 == pytest.approx(2 * 120 * 13.2 / np.hypot(150, 13.2), rel=0.01)
    beyond = Geometry(
        source_to_detector_mm=150.0, source_to_object_mm=120.0, pitch_mm=0.3, rows=16, cols=48, offset_u_mm=9.0
    )
    with pytest.raises(WrongUsage, match="leaves the axis out"):
        field_of_view(beyond)
