"""What the camera sees: points within the field of view throw their shadow on it, points outside do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acquisition.coverage import coverage
from calibration.geometry import Geometry
from reconstruction.field_of_view import field_of_view

GEOMETRY = Geometry(source_to_detector_mm=250, source_to_object_mm=200, pitch_mm=0.11, rows=128, cols=128)
WIDTH_MM = 128 * 0.11
ANGLES_RAD = np.linspace(0, 2 * np.pi, 3601)[:-1]


def share_seen(geometry: Geometry, shifts_mm: tuple[float, ...], radius_mm: float) -> float:
    """In how many views of a circle a point beside the axis is on the camera, wherever that stands."""
    seen = np.zeros(len(ANGLES_RAD), bool)
    for shift_mm in shifts_mm:
        views = replace(geometry, offset_u_mm=geometry.offset_u_mm + shift_mm).views(ANGLES_RAD)
        column = views.shadows_px([(radius_mm, 0.0, 0.0)])[:, 0, 0]
        seen |= np.abs(column) <= geometry.cols / 2
    return float(seen.mean())


@given(st.sampled_from([(0.0,), (-6.0, 6.0), (-13.0, 0.0, 13.0), (-12.0, -4.0, 4.0, 12.0)]), st.floats(-0.3, 0.3))
@settings(max_examples=20, deadline=None)
def test_tiles_see_all_within_their_field_of_view_and_no_more(shifts_mm: tuple[float, ...], offset_mm: float) -> None:
    geometry = replace(GEOMETRY, offset_u_mm=offset_mm)
    seen = coverage(geometry, shifts_mm)
    assert not seen.is_wide
    assert share_seen(geometry, shifts_mm, seen.radius_mm * 0.999) == 1.0
    assert share_seen(geometry, shifts_mm, seen.radius_mm * 1.001) < 1.0


@given(st.floats(0.5, 6.5), st.sampled_from([-1, 1]))
@settings(max_examples=20, deadline=None)
def test_a_half_scan_sees_the_middle_always_and_the_rest_half_the_time(shift_mm: float, side: int) -> None:
    seen = coverage(GEOMETRY, (side * shift_mm,))
    assert seen.is_wide
    assert share_seen(GEOMETRY, (side * shift_mm,), seen.twice_seen_mm * 0.999) == 1.0
    assert 0.5 <= share_seen(GEOMETRY, (side * shift_mm,), seen.twice_seen_mm * 1.01) < 1.0
    # Further out a point leaves the camera on the far side too, for the rays fan out: less than half, and never none.
    assert share_seen(GEOMETRY, (side * shift_mm,), seen.radius_mm * 0.999) > 0.45
    assert seen.twice_seen_mm < coverage(GEOMETRY, (0.0,)).radius_mm < seen.radius_mm


def test_one_place_sees_what_the_reconstruction_takes_for_its_field_of_view() -> None:
    for offset_mm in (0.0, 0.4):
        geometry = replace(GEOMETRY, offset_u_mm=offset_mm)
        grid = field_of_view(geometry, 0.001)
        assert grid.shape[1] == pytest.approx(2 * coverage(geometry, (0.0,)).radius_mm / 0.001, abs=1.5)


def test_the_highest_pitch_lets_the_turns_of_the_source_meet_on_the_camera() -> None:
    seen = coverage(GEOMETRY, (0.0,))
    # From the source at angle 0 the turns above and below it throw their shadows on the camera: the window's edges.
    turn_rad = np.linspace(0.01, 2 * np.pi - 0.01, 200_001)
    source = GEOMETRY.views(turn_rad).source_mm + np.outer(turn_rad / (2 * np.pi) * seen.highest_pitch_mm, [0, 0, 1])
    column, row = GEOMETRY.views(0.0).shadows_px(source)[0].T
    on_camera = np.abs(column) <= GEOMETRY.cols / 2
    assert row[on_camera].max() == pytest.approx((GEOMETRY.rows - 1) / 2, rel=1e-4)


def test_at_the_end_of_a_short_scan_the_first_outermost_ray_comes_back() -> None:
    views = GEOMETRY.views([0.0, coverage(GEOMETRY, (0.0,)).short_scan_rad])
    edges = np.array([-1, 1])[:, None, None] * GEOMETRY.cols / 2 * views.u_mm
    rays = views.detector_mm + edges - views.source_mm  # (edge, view, 3)
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    assert np.abs(rays[:, 0] @ rays[:, 1].T).max() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(
    ("shifts_mm", "told"),
    [((0.0, 14.08), "0 and 14.08 next to each other"), ((8.0,), "axis"), ((-30.0, -20.0, -10.0), "axis")],
)
def test_gaps_and_a_lost_axis_are_refused(shifts_mm: tuple[float, ...], told: str) -> None:
    with pytest.raises(ValueError, match="allowed") as caught:
        coverage(GEOMETRY, shifts_mm)
    assert told in str(caught.value)


def test_neighbours_overlap_by_what_both_see() -> None:
    assert coverage(GEOMETRY, (-12.0, 0.0, 10.0)).overlap_mm == pytest.approx(WIDTH_MM - 12)
    assert coverage(GEOMETRY, (0.0,)).overlap_mm == WIDTH_MM
    assert coverage(GEOMETRY, (0.0,)).height_mm == pytest.approx(128 * 0.088)
    assert coverage(GEOMETRY, (0.0,)).voxel_mm == pytest.approx(0.088)
