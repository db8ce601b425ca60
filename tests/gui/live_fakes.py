"""Frames and calibrations of a few pixels, for tests of the live view."""

from __future__ import annotations

import math

import numpy as np

from calibration.store import Calibration
from firmware_iface.chip import N_THRESHOLDS
from firmware_iface.frame import Frame


def a_frame(sequence: int, shape: tuple[int, int, int] = (4, 8, 6), run_id: int = 1) -> Frame:
    """Return a frame of Poisson counts that fall with the threshold."""
    means = 400.0 / np.arange(1, shape[0] + 1)[:, None, None]
    counts = np.random.default_rng(sequence).poisson(means, shape).astype(np.uint16)
    return Frame(
        counts=counts, thresholds=tuple(range(shape[0])), sequence=sequence, timestamp_ns=0, exposure_ns=1_000_000,
        run_id=run_id,
    )  # fmt: skip


def a_calibration(shape: tuple[int, int]) -> Calibration:
    """Return a colour calibration of some pixels, all of them good, each with a trim of its own."""
    planes = (N_THRESHOLDS, *shape)
    return Calibration(
        created="2026-01-01T00:00:00+00:00", software="test", device="test", chip_id="W1_A1", gain="HGM", is_csm=True,
        is_colour=True, bias_v=500.0, dacs={"Ikrum": 10},
        trim=np.arange(math.prod(planes), dtype=np.uint8).reshape(planes) % 32,
        is_masked=np.zeros(planes, dtype=bool), pixel_class=np.zeros(shape, dtype=np.uint16), target_dac=10.0,
        edges_before_dac=np.zeros(planes, dtype=np.float32), edges_after_dac=np.zeros(planes, dtype=np.float32),
        offset_dac=np.zeros(N_THRESHOLDS), gain_dac_per_kev=np.full(N_THRESHOLDS, 4.0), lines=(),
        thresholds_kev=(18.0, 33.0, 50.0, 75.0),
    )  # fmt: skip
