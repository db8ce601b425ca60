"""A calibration that a scan of the simulated demo accepts, made up in no time: its counts are repeatable, not true."""

from __future__ import annotations

import numpy as np

from acquisition.plan import Plan
from calibration.store import Calibration

CHIP_ID = "W529_F5"
"""Of the simulated instrument with seed 1."""
PLANES = (8, 128, 128)


def rough_calibration(plan: Plan, *, chip_id: str = CHIP_ID, software: str = "1") -> Calibration:
    """Return a calibration of a chip in colour with charge summing, all thresholds on one made-up line."""
    return Calibration(
        created="2026-01-01T00:00:00Z",
        software=software,
        device="sim:demo",
        chip_id=chip_id,
        gain=plan.detector.gain,
        is_csm=plan.detector.is_csm,
        is_colour=plan.detector.is_colour,
        bias_v=plan.detector.bias_v,
        dacs={"DAC_DiscL": 90},
        trim=np.full(PLANES, 16, np.uint8),
        is_masked=np.zeros(PLANES, bool),
        pixel_class=np.zeros(PLANES[1:], np.uint8),
        target_dac=15.0,
        edges_before_dac=np.ones(PLANES, np.float32),
        edges_after_dac=np.ones(PLANES, np.float32),
        offset_dac=np.full(8, 10.0),
        gain_dac_per_kev=np.full(8, 4.0),
        lines=(),
        thresholds_kev=plan.detector.thresholds_kev,
    )
