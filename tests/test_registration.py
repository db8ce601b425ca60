"""Where a phantom lies: a hidden shift and turn are found from the maps."""

from __future__ import annotations

import numpy as np
import pytest

from firmware_iface.errors import WrongUsage
from reconstruction.merit.registration import Pose, find_pose
from reconstruction.volume import Volume
from tests.material_phantom import maps_of, ring


@pytest.mark.parametrize(
    ("x_mm", "y_mm", "turn_deg"), [(0.337, -0.512, 17.3), (-0.61, 0.08, -131.0), (0.0, 0.0, 179.0)]
)
def test_a_hidden_pose_is_found(x_mm, y_mm, turn_deg):
    phantom = ring()
    volume = maps_of(phantom.moved(x_mm, y_mm, np.radians(turn_deg)), noise_mg_ml=3.0, n=130)
    pose = find_pose(volume, phantom)
    assert (pose.x_mm, pose.y_mm) == pytest.approx((x_mm, y_mm), abs=0.02)
    assert np.degrees(pose.rotation_rad) == pytest.approx(turn_deg, abs=0.3)
    found, true = pose.of(phantom), phantom.moved(x_mm, y_mm, np.radians(turn_deg))
    for vial, other in zip(found.vials, true.vials, strict=True):
        assert np.hypot(vial.x_mm - other.x_mm, vial.y_mm - other.y_mm) < 0.03


def test_shifts_alone_leave_the_turn():
    phantom = ring()
    volume = maps_of(phantom.moved(0.25, 0.4), noise_mg_ml=3.0)
    pose = find_pose(volume, phantom, most_shift_mm=1.0, most_turn_rad=0.0)
    assert pose.rotation_rad == 0
    assert (pose.x_mm, pose.y_mm) == pytest.approx((0.25, 0.4), abs=0.02)


def test_cross_talk_and_other_slopes_do_not_lead_it_astray():
    phantom = ring()
    volume = maps_of(phantom.moved(0.2, 0.1, 0.5), noise_mg_ml=3.0, slope=0.7, offset_mg_ml=1.0, shown_of_iodine=0.2)
    pose = find_pose(volume, phantom)
    assert (pose.x_mm, pose.y_mm, pose.rotation_rad) == pytest.approx((0.2, 0.1, 0.5), abs=0.03)


def test_noise_alone_is_no_phantom():
    phantom = ring()
    volume = maps_of(phantom.moved(100.0, 0.0), noise_mg_ml=5.0)
    with pytest.raises(WrongUsage, match="no place of the phantom looks like the maps"):
        find_pose(volume, phantom)


def test_a_volume_without_the_agents_is_refused():
    volume = maps_of(ring())
    with pytest.raises(WrongUsage, match="no map of"):
        find_pose(Volume(values=volume.values[:1], channels=("water",), unit="g/cm3", grid=volume.grid), ring())


def test_a_pose_moves_the_description():
    phantom = ring()
    pose = Pose(x_mm=1.0, y_mm=2.0, rotation_rad=np.pi / 2, correlation_ratio=1.0)
    first = pose.of(phantom).vials[0]
    assert (first.x_mm, first.y_mm) == pytest.approx((1.0, 2.0 + phantom.vials[0].x_mm))
