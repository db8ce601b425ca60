"""What stands in for a calibration to look with: thresholds above a noise whose place is known here."""

from __future__ import annotations

import numpy as np
import pytest

from acquisition.calibrate.exposures import matrix, operating_dacs
from acquisition.calibrate.nominal import Nominal, find_nominal
from acquisition.plan import DetectorPlan, Plan
from calibration.equalisation import mean_and_sigma
from firmware_iface.errors import CalibrationMissing
from tests.test_equalise import BASELINE_DAC, GAIN_DAC_PER_KEV, NOISE_DAC, SIGMA_DAC, Pixels


def _found(pixels: Pixels, plan: Plan) -> Nominal:
    finding = find_nominal(pixels, plan)
    while True:
        try:
            next(finding)
        except StopIteration as end:
            return end.value


def _dark_share(pixels: Pixels, found: Nominal, plan: Plan) -> float:
    """Return which share of the pixels counts in the dark with the plan's lowest threshold."""
    pixels.load_pixels(matrix(found.calibration.trim, found.calibration.is_masked))
    pixels.set_dacs(operating_dacs(found.calibration, plan))
    (frame,) = pixels.frames(1, 0.001)
    return float((frame.counts[plan.detector.thresholds[0]] > 0).mean())


def test_thresholds_stand_above_the_noise_by_the_nominal_gain() -> None:
    plan = Plan(detector=DetectorPlan(mode="fine-spm", thresholds_kev=(20.0, 40.0)))
    pixels = Pixels(is_fine=True)
    pixels.is_lit = True
    found = _found(pixels, plan)
    assert not pixels.is_lit
    calibration = found.calibration
    assert calibration.offset_dac == pytest.approx([mean_and_sigma(plane)[0] for plane in pixels.offset_dac], abs=0.1)
    assert calibration.gain_dac_per_kev == pytest.approx([GAIN_DAC_PER_KEV] * 2, rel=0.01)
    assert found.noise_kev == pytest.approx(3 * SIGMA_DAC / GAIN_DAC_PER_KEV, rel=0.05)
    assert calibration.history == ()
    assert calibration.lines == ()
    assert _dark_share(pixels, found, plan) < 0.001


def test_noise_is_told_to_reach_where_it_does() -> None:
    pixels = Pixels(is_fine=True)
    plan = Plan(detector=DetectorPlan(mode="fine-spm", thresholds_kev=(20.0, 40.0)))
    found = _found(pixels, plan)
    margin_kev = 4 * NOISE_DAC / GAIN_DAC_PER_KEV
    beyond, within = (
        Plan(detector=DetectorPlan(mode="fine-spm", thresholds_kev=(energy_kev, 40.0), arbitration_kev=1.0))
        for energy_kev in (found.noise_kev + margin_kev, found.noise_kev / 3)
    )
    assert _dark_share(pixels, found, beyond) < 0.005
    assert _dark_share(pixels, found, within) > 0.1


def test_a_chip_without_noise_is_told_in_words() -> None:
    pixels = Pixels(is_fine=True)
    pixels.offset_dac = np.full(pixels.planes, BASELINE_DAC + 5000, np.float32)
    plan = Plan(detector=DetectorPlan(mode="fine-spm", thresholds_kev=(20.0, 40.0)))
    with pytest.raises(CalibrationMissing, match="no pixel showed its noise peak"):
        _found(pixels, plan)
