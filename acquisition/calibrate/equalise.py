"""The step `equalise`: bring every pixel's thresholds to one code, in the scan's own mode.

# Ref: order and codes: EXCALIBUR calibration, dexter and Merlin manual v0.7 p43-45 (reference on the Medipix3RX,
#      section 8; its addendum, section 5): target 15, DAC_Disc from two settings, trims spread over the matrix so that
#      not all pixels are noisy at once, then one step up or down where it helps.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from acquisition.calibrate.edges import Edges, NoiseEdges, Planes, edges_of, nominal_gain
from acquisition.calibrate.exposures import HIGHEST_CODE, Instrument, Work, set_dacs
from acquisition.plan import Plan
from calibration import equalisation
from calibration.equalisation import Equalisation, TrimFault
from calibration.pixels import PixelClass
from calibration.progress import Progress
from calibration.store import Calibration
from firmware_iface.chip import TRIM_CODES
from firmware_iface.device import Detector

TRIAL_DISCS = (60, 120)
MIDDLE_TRIM = TRIM_CODES // 2
MEASURED_TRIMS = (0, MIDDLE_TRIM, TRIM_CODES - 1)
"""Both ends and the middle, for trims are nearly linear; what they are not, steps find that are measured."""
NEAR_DAC = 15
"""How far from the target pixels are looked for once they have their trims."""
NEAR_STEP_DAC = 2


def equalise(instrument: Instrument, plan: Plan, calibration: Calibration, *, target_dac: float | None = None) -> Work:
    """Bring the edges of all thresholds to one code; the energy scale is then still nominal.

    Edges are measured at the middle trim (the figure before), DAC_DiscL and DAC_DiscH are chosen, three trim codes
    spread over the matrix are measured and the best is chosen by interpolation. Then pixels that stand further off than
    half a step are moved until none comes closer, and all is measured once more, independently of what was chosen by.

    Parameters
    ----------
    target_dac : float, optional
        Where to bring them. By default where they stand at the middle trim, which asks the least of the trims and so
        allows the finest steps; but not so low that an edge is cut by the end of the DAC.
    """
    detector, wanted = instrument.detector, plan.calibration.equalisation
    planes = calibration.trim.shape
    detector.set_bias(plan.detector.bias_v)
    set_dacs(detector, calibration, calibration.dacs)
    middle = np.full(planes, MIDDLE_TRIM, dtype=np.uint8)
    edges: Edges = NoiseEdges(instrument, plan)
    yield from edges.prepare()
    before = yield from edges.scan("noise", middle, None)
    by_noise = max(edges.lowest_dac, round(equalisation.mean_and_sigma(before)[0]))
    # How far trims reach is the same at every charge, and noise is quickest to find when it is far away.
    detector.set_dacs((yield from _choose_discs(detector, edges, by_noise, planes)))
    if wanted.method != "noise":
        edges = edges_of(instrument, plan)
        yield from edges.prepare()
        before = yield from edges.scan("before", middle, None)
    if target_dac is None:
        target_dac = float(max(edges.lowest_dac, round(equalisation.mean_and_sigma(before)[0])))
    measured = yield from _measure_trims(edges, planes)
    step_dac = equalisation.trim_steps_dac(measured, MEASURED_TRIMS)
    choice = equalisation.choose_trims(measured, MEASURED_TRIMS, target_dac)
    lowest, highest = max(round(target_dac) - NEAR_DAC, 0), min(round(target_dac) + NEAR_DAC, HIGHEST_CODE)
    near = range(lowest, highest + 1, NEAR_STEP_DAC)
    trim, n_rounds = yield from _refine(edges, choice.trims, near, target_dac, step_dac, wanted.max_rounds)
    after = yield from edges.scan("after", trim, near)
    if wanted.method == "pulses":
        detector.set_test_pulses(0)

    fault = equalisation.trim_faults(choice, after, target_dac, step_dac)
    used = fault[_used_thresholds(plan)]
    pixel_class = np.zeros(planes[1:], dtype=calibration.pixel_class.dtype)
    pixel_class[np.isin(used, (TrimFault.TOO_HIGH, TrimFault.TOO_LOW)).any(axis=0)] |= PixelClass.OUT_OF_TRIM.value
    pixel_class[(used == TrimFault.NO_EDGE).any(axis=0)] |= PixelClass.NO_EDGE.value
    mean_before, sigma_before = _spreads(before)
    mean_after, sigma_after = _spreads(after)
    gain = nominal_gain(plan)
    return replace(
        calibration,
        dacs=dict(detector.dacs),
        trim=trim,
        is_masked=np.zeros(planes, dtype=bool),
        pixel_class=pixel_class,
        target_dac=float(target_dac),
        edges_before_dac=before,
        edges_after_dac=after,
        offset_dac=mean_after - gain * edges.energy_kev,
        gain_dac_per_kev=np.full(planes[0], gain),
        lines=(),
        scale_covariance=None,
        pixel_scale=None,
        end_point=None,
        flat_field=None,
        equalisation=Equalisation(
            method=wanted.method,
            energy_kev=edges.energy_kev,
            pair_kev=wanted.pair_ev * 1e-3,
            mean_before_dac=mean_before,
            mean_after_dac=mean_after,
            sigma_before_dac=sigma_before,
            sigma_after_dac=sigma_after,
            step_dac=step_dac,
            n_rounds=n_rounds,
            trim_histogram=np.stack([np.bincount(plane.ravel(), minlength=TRIM_CODES) for plane in trim]),
            fault=fault,
        ),
    )


def _choose_discs(
    detector: Detector, edges: Edges, target_dac: float, planes: tuple[int, ...]
) -> Generator[Progress, None, dict[str, int]]:
    """Measure mean edges with two strengths of the trim DACs, and return the strengths to use.

    Half of the pixels stand at trim 0 and half at the middle, like a chessboard; the highest trim, whose edges may lie
    below the DAC's range, follows by a straight line.
    """
    is_middle = np.indices(planes).sum(axis=0) % 2 == 1
    lowest: dict[int, list[float]] = {0: [], 1: []}
    highest: dict[int, list[float]] = {0: [], 1: []}
    sigma_dac = 0.0
    for disc in TRIAL_DISCS:
        detector.set_dacs({"DAC_DiscL": disc, "DAC_DiscH": disc})
        found = yield from edges.scan(f"DAC_Disc {disc}", np.where(is_middle, MIDDLE_TRIM, 0).astype(np.uint8), None)
        for side in (0, 1):
            here, middle = found[side::2], is_middle[side::2]
            at_0, sigma = equalisation.mean_and_sigma(here[~middle])
            at_middle, _ = equalisation.mean_and_sigma(here[middle])
            lowest[side].append(at_0)
            highest[side].append(at_0 + (at_middle - at_0) * (TRIM_CODES - 1) / MIDDLE_TRIM)
            sigma_dac = max(sigma_dac, sigma)
    return {
        name: equalisation.choose_disc(
            TRIAL_DISCS, lowest[side], highest[side], sigma_dac=sigma_dac, target_dac=target_dac
        )
        for side, name in enumerate(("DAC_DiscL", "DAC_DiscH"))
    }


def _measure_trims(edges: Edges, planes: tuple[int, ...]) -> Planes:
    """Measure the edge of every pixel at each of MEASURED_TRIMS: (n_trims, n_thresholds, rows, cols) float32."""
    n_trims = len(MEASURED_TRIMS)
    found = np.full((n_trims, *planes), np.nan, dtype=np.float32)
    _, row, col = np.indices(planes)
    for shift in range(n_trims):
        which = (row + col + shift) % n_trims
        here = yield from edges.scan(f"trims {shift + 1}/{n_trims}", np.asarray(MEASURED_TRIMS, np.uint8)[which], None)
        np.put_along_axis(found, which[None], here[None], axis=0)
    return found


def _refine(
    edges: Edges,
    trim: NDArray[np.uint8],
    near: range,
    target_dac: float,
    step_dac: NDArray[np.float64],
    max_rounds: int,
) -> Generator[Progress, None, tuple[NDArray[np.uint8], int]]:
    """Move what is further off than half a step until no pixel comes closer: the trims, and how many rounds it took.

    A pixel that its move did not help is at its best and rests.
    """
    closest = yield from edges.scan("check", trim, near)
    is_resting = np.zeros(trim.shape, dtype=bool)
    for done in range(max_rounds):
        trial = np.where(is_resting, trim, equalisation.refine_trims(trim, closest, target_dac, step_dac))
        if np.array_equal(trial, trim):
            return trim, done
        found = yield from edges.scan(f"refine, round {done + 1}", trial, near)
        is_better = (trial != trim) & equalisation.is_closer(found, closest, target_dac)
        closest, trim = np.where(is_better, found, closest), np.where(is_better, trial, trim)
        is_resting |= ~is_better
    return trim, max_rounds


def _spreads(edges_dac: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and spread of the edges of each threshold, without outliers."""
    found = np.asarray([equalisation.mean_and_sigma(plane) for plane in edges_dac])
    return found[:, 0], found[:, 1]


def _used_thresholds(plan: Plan) -> list[int]:
    return sorted({*plan.detector.thresholds, *((0,) if plan.detector.is_csm else ())})
