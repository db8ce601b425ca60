"""The step `energy`: put thresholds to keV by the S-curves of sources with known lines."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from acquisition.calibrate.exposures import (
    HIGHEST_CODE,
    Instrument,
    Work,
    beam,
    frame,
    parked_dacs,
    refuse_full,
    set_up_detector,
)
from acquisition.plan import Plan
from calibration import thresholds
from calibration.attenuation import Line
from calibration.progress import Progress
from calibration.spectrum import emission
from calibration.store import Calibration, MeasuredLine
from firmware_iface.chip import N_THRESHOLDS
from firmware_iface.device import Detector
from firmware_iface.errors import WrongUsage

GROUP = 0.2
"""Lines within this share of a source's strongest line are looked at together."""


def energy(instrument: Instrument, plan: Plan, calibration: Calibration) -> Work:
    """Put the thresholds that are read on an energy scale, in the scan's own mode.

    The first source is looked for over a wide range, which mends the nominal gain; then each is scanned finely. The
    thresholds that are not read (Threshold0 arbitrates) keep the offset of their noise peaks and take the mean gain of
    those that are read.
    """
    set_up_detector(instrument.detector, plan, calibration, parked_dacs(calibration, plan))
    instrument.gantry.select_sample(None)
    with beam(instrument.gantry):
        offset_dac, gain = yield from _find_gain(instrument, plan, calibration)
        calibration = replace(calibration, gain_dac_per_kev=np.full(N_THRESHOLDS, gain))
        instrument.detector.set_dacs(parked_dacs(calibration, plan))
        curves = yield from _scan_sources(instrument, plan, calibration, (offset_dac, gain))
    scales = {
        number: thresholds.fit_energy_scale(of_one, guess=(offset_dac, gain)) for number, of_one in curves.items()
    }
    return _with_scales(calibration, scales)


def _scan_s_curve(
    detector: Detector, plan: Plan, stage: str, codes: range, is_good: NDArray[np.bool_]
) -> Generator[Progress, None, NDArray[np.float64]]:
    """Scan the thresholds that are read together: sums over the quiet pixels, (n_steps, n_read) float64."""
    taken = []
    for done, code in enumerate(codes):
        yield Progress(stage, done, len(codes))
        detector.set_dacs({f"Threshold{number}": code for number in plan.detector.thresholds})
        counts = frame(detector, plan.calibration.energy_exposure_s).counts
        refuse_full(counts, plan, stage)
        taken.append(counts[:, is_good])
    curves = np.stack(taken).astype(np.float64)
    # Above all lines a good pixel counts next to nothing; one that does is noisy, and would bend the curve.
    tail = curves[-3:].sum(axis=0)
    limit = np.median(tail, axis=1, keepdims=True)
    is_quiet = tail <= limit + 5 * np.sqrt(limit + 1) + 5
    return np.sum(curves, axis=2, where=is_quiet)


def _find_gain(
    instrument: Instrument, plan: Plan, calibration: Calibration
) -> Generator[Progress, None, tuple[float, float]]:
    """Look for the source of lowest energy over a wide range: offset in DAC, and gain in DAC per keV."""
    read = list(plan.detector.thresholds)
    offset_dac = float(calibration.offset_dac[read].mean())
    name = min(plan.calibration.sources, key=lambda source: _mean_kev(_line_group(source)))
    energy_kev = _mean_kev(_line_group(name))
    expected = float(calibration.gain_dac_per_kev[read].mean()) * energy_kev
    codes = range(round(offset_dac + 0.5 * expected), min(round(offset_dac + 1.7 * expected), HIGHEST_CODE), 5)
    instrument.gantry.select_source(name)
    counts = yield from _scan_s_curve(instrument.detector, plan, f"find {name}", codes, ~calibration.is_bad)
    return offset_dac, (thresholds.steepest_dac(codes, counts.sum(axis=1)) - offset_dac) / energy_kev


def _scan_sources(
    instrument: Instrument, plan: Plan, calibration: Calibration, scale: tuple[float, float]
) -> Generator[Progress, None, dict[int, list[thresholds.SCurve]]]:
    """Scan each source finely around its lines: the S-curves of each threshold that is read."""
    offset_dac, gain = scale
    curves: dict[int, list[thresholds.SCurve]] = {number: [] for number in plan.detector.thresholds}
    scanned = []
    for name in plan.calibration.sources:
        lines = _line_group(name)
        energies_kev = tuple(line.energy_kev for line in lines)
        # Below the window escape peaks of the sensor may stand, which the model of the curve does not know. Above it no
        # good pixel may still count, or those with a high gain would be taken for noisy ones and left out.
        first, last = offset_dac + gain * 0.86 * min(energies_kev), offset_dac + gain * (1.10 * max(energies_kev) + 2)
        if last > HIGHEST_CODE:
            continue  # beyond the range of the DAC in this gain
        codes = range(round(first), round(last) + 1, max(1, round(gain * max(energies_kev) / 130)))
        instrument.gantry.select_source(name)
        counts = yield from _scan_s_curve(instrument.detector, plan, f"scan {name}", codes, ~calibration.is_bad)
        scanned.append(name)
        for of_one, column in zip(curves.values(), counts.T, strict=True):
            of_one.append(
                thresholds.SCurve(
                    source=name,
                    lines=lines,
                    dacs=np.asarray(codes, dtype=np.float64),
                    counts=column,
                )
            )
    if len(scanned) < 2:
        raise WrongUsage(
            f"of the sources {', '.join(plan.calibration.sources)} only {len(scanned)} lie on the DAC in gain "
            f"{plan.detector.gain}; allowed: 2 or more",
            hint="choose sources of lower energy, or a lower gain",
        )
    return curves


def _with_scales(calibration: Calibration, scales: dict[int, thresholds.EnergyScale]) -> Calibration:
    gains = np.full(N_THRESHOLDS, np.mean([scale.gain_dac_per_kev for scale in scales.values()]))
    offsets = np.asarray([thresholds.mean_and_sigma(plane)[0] for plane in calibration.edges_after_dac])
    for number, scale in scales.items():
        gains[number], offsets[number] = scale.gain_dac_per_kev, scale.offset_dac
    lines = tuple(
        MeasuredLine(
            threshold=number,
            source=source,
            energy_kev=float(scale.energies_kev[row]),
            position_dac=float(scale.positions_dac[row]),
            residual_kev=float(scale.residuals_kev[row]),
        )
        for number, scale in scales.items()
        for row, source in enumerate(scale.sources)
    )
    return replace(calibration, offset_dac=offsets, gain_dac_per_kev=gains, lines=lines)


def _line_group(source: str) -> tuple[Line, ...]:
    """Return the strongest line of a source and those near it."""
    lines = emission(source)
    strongest = max(lines, key=lambda line: line.fraction)
    return tuple(line for line in lines if abs(line.energy_kev / strongest.energy_kev - 1) <= GROUP)


def _mean_kev(lines: Iterable[Line]) -> float:
    lines = tuple(lines)
    return sum(line.energy_kev * line.fraction for line in lines) / sum(line.fraction for line in lines)
