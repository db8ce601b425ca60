"""Laws of the scan geometry: poses worked out by hand, rotations, and rays that meet what they should."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from calibration.geometry import Geometry

GEOMETRY = Geometry(
    source_to_detector_mm=400, source_to_object_mm=250, pitch_mm=0.11, rows=5, cols=7, offset_u_mm=0.3, offset_v_mm=-0.2
)
ANGLE = st.floats(-10, 10)


def about_z(angle_rad: float) -> NDArray[np.float64]:
    cos, sin = np.cos(angle_rad), np.sin(angle_rad)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


def shadow_mm(geometry: Geometry, angle_rad: float, point_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where the ray through a point meets the detector, as (u, v) in mm from the detector's centre."""
    views = geometry.views(angle_rad)
    source, u, v = views.source_mm[0], views.u_mm[0], views.v_mm[0]
    ray, columns, rows = np.linalg.solve(np.stack([point_mm - source, -u, -v], axis=1), views.detector_mm[0] - source)
    assert ray > 0
    return geometry.pitch_mm * np.array([columns, rows])


@pytest.mark.parametrize(
    ("angle_rad", "source_mm", "detector_mm", "u_mm"),
    [
        (0.0, (0, -250, 0), (0.3, 150, -0.2), (0.11, 0, 0)),
        (np.pi / 2, (250, 0, 0), (-150, 0.3, -0.2), (0, 0.11, 0)),
        (np.pi, (0, 250, 0), (-0.3, -150, -0.2), (-0.11, 0, 0)),
        (-np.pi / 2, (-250, 0, 0), (150, -0.3, -0.2), (0, -0.11, 0)),
    ],
)
def test_poses_at_the_quarters_are_those_worked_out_by_hand(
    angle_rad: float, source_mm: tuple, detector_mm: tuple, u_mm: tuple
) -> None:
    views = GEOMETRY.views([angle_rad])
    np.testing.assert_allclose(views.source_mm, [source_mm], atol=1e-12)
    np.testing.assert_allclose(views.detector_mm, [detector_mm], atol=1e-12)
    np.testing.assert_allclose(views.u_mm, [u_mm], atol=1e-12)
    np.testing.assert_allclose(views.v_mm, [(0, 0, 0.11)], atol=1e-12)


@given(first=ANGLE, step=ANGLE)
def test_a_further_angle_turns_the_whole_pose_counter_clockwise(first: float, step: float) -> None:
    views = GEOMETRY.views([first, first + step])
    for vectors in (views.source_mm, views.detector_mm, views.u_mm, views.v_mm):
        np.testing.assert_allclose(vectors[1], about_z(step) @ vectors[0], atol=1e-9)


@given(angle=ANGLE)
def test_the_detector_is_right_handed_and_square_to_the_central_ray(angle: float) -> None:
    views = replace(GEOMETRY, offset_u_mm=0.0, offset_v_mm=0.0).views(angle)
    u, v = views.u_mm[0] / 0.11, views.v_mm[0] / 0.11
    central = views.detector_mm[0] - views.source_mm[0]
    assert np.linalg.norm(central) == pytest.approx(400)
    assert np.linalg.norm(views.source_mm[0]) == pytest.approx(250)
    np.testing.assert_allclose(np.cross(v, u), central / 400, atol=1e-12)  # u right, v up, looking to the detector


@given(angle=ANGLE, u=st.floats(-5, 5), v=st.floats(-5, 5))
def test_a_shadow_in_the_axis_plane_is_magnified(angle: float, u: float, v: float) -> None:
    centred = replace(GEOMETRY, offset_u_mm=0.0, offset_v_mm=0.0)
    point = about_z(angle) @ np.array([u, 0, v])
    np.testing.assert_allclose(shadow_mm(centred, angle, point), 400 / 250 * np.array([u, v]), atol=1e-9)
    assert centred.magnification == pytest.approx(1.6)


@given(angle=ANGLE)
def test_the_axis_stays_at_the_offset_whatever_the_angle(angle: float) -> None:
    np.testing.assert_allclose(shadow_mm(GEOMETRY, angle, np.zeros(3)), [-0.3, 0.2], atol=1e-9)


def test_a_point_nearer_the_source_throws_a_larger_shadow() -> None:
    centred = replace(GEOMETRY, offset_u_mm=0.0, offset_v_mm=0.0)
    near, far = (shadow_mm(centred, 0.0, np.array([1.0, y, 0.0]))[0] for y in (-10.0, 10.0))
    assert near == pytest.approx(400 / 240)
    assert far == pytest.approx(400 / 260)


@pytest.mark.parametrize(
    ("tilt", "u_mm", "v_mm"),
    [
        ("roll_rad", (0.0, 0.0, 0.11), (-0.11, 0.0, 0.0)),  # a quarter counter-clockwise: columns point up
        ("tilt_u_rad", (0.11, 0.0, 0.0), (0.0, -0.11, 0.0)),  # the highest row lies towards the source, which is at -y
        ("tilt_v_rad", (0.0, 0.11, 0.0), (0.0, 0.0, 0.11)),  # the last column lies away from it
    ],
)
@pytest.mark.parametrize("angle_rad", [0.0, 0.7])
def test_tilts_turn_as_worked_out_by_hand(
    tilt: str, u_mm: tuple, v_mm: tuple, angle_rad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calibration.geometry.STEEPEST_RAD", 2.0)  # quarters are for the hand only
    straight, tilted = GEOMETRY.views([angle_rad]), replace(GEOMETRY, **{tilt: np.pi / 2}).views([angle_rad])
    np.testing.assert_allclose(tilted.u_mm[0], about_z(angle_rad) @ u_mm, atol=1e-12)
    np.testing.assert_allclose(tilted.v_mm[0], about_z(angle_rad) @ v_mm, atol=1e-12)
    np.testing.assert_array_equal(tilted.detector_mm, straight.detector_mm)
    np.testing.assert_array_equal(tilted.source_mm, straight.source_mm)


def test_the_roll_comes_first_then_the_tilt_about_u_then_about_v(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calibration.geometry.STEEPEST_RAD", 2.0)
    quarter = np.pi / 2
    # Rolled, the columns point up; tilted about u they point to the source; turned about v they point along +u.
    both = replace(GEOMETRY, roll_rad=quarter, tilt_u_rad=quarter, tilt_v_rad=quarter).views(0.0)
    np.testing.assert_allclose(both.u_mm, [(0.11, 0, 0)], atol=1e-12)
    np.testing.assert_allclose(both.v_mm, [(0, -0.11, 0)], atol=1e-12)  # along -u, then brought to the source


@given(tilts=st.tuples(*[st.floats(-0.3, 0.3)] * 3), angle=ANGLE, point=st.tuples(*[st.floats(-20, 20)] * 3))
def test_shadows_lie_on_the_ray_through_their_point(tilts: tuple, angle: float, point: tuple) -> None:
    geometry = replace(GEOMETRY, roll_rad=tilts[0], tilt_u_rad=tilts[1], tilt_v_rad=tilts[2])
    shadows = geometry.views([angle, 0.5]).shadows_px([point, (0, 0, 0)])
    assert shadows.shape == (2, 2, 2)
    np.testing.assert_allclose(shadows[0, 0], shadow_mm(geometry, angle, np.array(point)) / 0.11, atol=1e-6)


def test_a_rolled_detector_sees_the_axis_lean_the_other_way() -> None:
    rolled = replace(GEOMETRY, offset_u_mm=0.0, offset_v_mm=0.0, roll_rad=0.01)
    low, high = rolled.views(1.0).shadows_px([(0, 0, -3), (0, 0, 3)])[0]
    assert (high - low)[0] / (high - low)[1] == pytest.approx(np.tan(0.01))


@pytest.mark.parametrize(
    "change",
    [
        {"source_to_object_mm": 0.0},
        {"source_to_object_mm": 401.0},
        {"source_to_object_mm": float("nan")},
        {"pitch_mm": 0.0},
        {"rows": 0},
        {"cols": -1},
        {"roll_rad": 1.0},
        {"tilt_v_rad": float("nan")},
    ],
)
def test_a_scanner_that_cannot_be_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"allowed|cannot be"):
        replace(GEOMETRY, **change)
