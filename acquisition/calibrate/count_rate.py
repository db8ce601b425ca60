"""The step `count-rate`: how many events the counters miss or gain, over the tube's current."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

import numpy as np

from acquisition.calibrate.exposures import (
    Instrument,
    Work,
    beam,
    operating_dacs,
    refuse_full,
    select_open_beam,
    set_up_detector,
    take,
)
from acquisition.calibrate.watch import RatesFound, show
from acquisition.plan import Plan, at_thresholds, calibrated_kev
from calibration.count_rate import FEWEST_CURRENTS, CountRate, fit_count_rate, joined
from calibration.progress import Progress
from calibration.store import Calibration
from firmware_iface.errors import WrongUsage


def count_rate(instrument: Instrument, plan: Plan, calibration: Calibration) -> Work:
    """Sweep the tube's current at the thresholds of each pass that the plan's scan makes."""
    found: list[CountRate] = []
    for energies_kev in dict.fromkeys(calibrated_kev(plan)):
        found += [(yield from _sweep(instrument, at_thresholds(plan, energies_kev), calibration))]
    return replace(calibration, count_rate=joined(found))


def _sweep(instrument: Instrument, plan: Plan, calibration: Calibration) -> Generator[Progress, None, CountRate]:
    """Raise the current step by step, at the plan's thresholds, until the first counter loses what the plan says.

    The tube's output is taken to be in proportion to its current, and its spectrum to be the same at every current.
    """
    detector, gantry, wanted = instrument.detector, instrument.gantry, plan.calibration.count_rate
    set_up_detector(detector, plan, calibration, operating_dacs(calibration, plan))
    select_open_beam(gantry, plan)
    is_good = ~calibration.is_bad
    currents_ma, exposures_s, means = [], [], []
    current_ma = wanted.lowest_ratio * plan.source.current_ma
    lowest_share = 1 - wanted.highest_loss_share
    with beam(gantry):
        while current_ma <= wanted.highest_ma:
            # Not longer than the scan's: the tube is no less steady then than in a scan.
            exposure_s = plan.detector.exposure_s * min(1.0, plan.source.current_ma / current_ma)
            gantry.set_tube(plan.source.kvp, current_ma)
            stage = f"{current_ma:.4g} mA"
            counts = yield from take(detector, stage, wanted.n_frames, exposure_s)
            refuse_full(counts, plan, stage)
            currents_ma.append(current_ma)
            exposures_s.append(exposure_s)
            means.append(counts.mean(axis=0, dtype=np.float64))
            per_ma = [m[0][is_good].mean() / (t * i) for m, t, i in zip(means, exposures_s, currents_ma, strict=True)]
            rates = [m[:, is_good].mean(axis=1) / t for m, t in zip(means, exposures_s, strict=True)]
            show(
                instrument,
                RatesFound(
                    currents_ma=np.asarray(currents_ma),
                    rates_per_s=np.stack(rates),
                    thresholds_kev=plan.detector.thresholds_kev,
                ),
            )
            if per_ma[-1] < lowest_share * max(per_ma):
                break
            current_ma *= wanted.growth_ratio
    gantry.set_tube(plan.source.kvp, plan.source.current_ma)
    if len(currents_ma) < FEWEST_CURRENTS:
        raise WrongUsage(
            f"the sweep has {len(currents_ma)} currents up to {wanted.highest_ma:g} mA; "
            f"allowed: {FEWEST_CURRENTS} or more",
            hint="in [calibration.count_rate] lower growth_ratio or lowest_ratio, or raise highest_ma",
        )
    return fit_count_rate(
        currents_ma,
        np.stack(means),
        exposures_s=exposures_s,
        n_frames=wanted.n_frames,
        thresholds_kev=plan.detector.thresholds_kev,
        is_bad=calibration.is_bad,
    )
