"""The step `equalise`: bring the noise peaks of all thresholds to one code.

# Ref: order and codes: EXCALIBUR calibration, dexter and Merlin manual v0.7 p43-45 (reference on the Medipix3RX,
#      section 8; its addendum, section 5): noise peaks at 1 ms, target 15, DAC_Disc from two settings, trims spread
#      over the matrix so that not all pixels are noisy at once, then one step up or down where it helps.
# Ref: nominal gain 8.81 DAC/keV in SHGM (EXCALIBUR) times 7 fF over the feedback capacitance of the mode.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from acquisition.calibrate.exposures import HIGHEST_CODE, Instrument, Work, frame, matrix
from acquisition.plan import Plan
from calibration import thresholds
from calibration.pixels import PixelClass
from calibration.progress import Progress
from calibration.store import Calibration
from firmware_iface.chip import COLS, FEEDBACK_FF, N_THRESHOLDS, ROWS, TRIM_CODES, Gain
from firmware_iface.device import Configuration, Detector
from firmware_iface.errors import WrongUsage

LOWEST_TARGET_DAC = 15.0
TRIAL_DISCS = (60, 120)
MIDDLE_TRIM = TRIM_CODES // 2
MEASURED_TRIMS = (0, 8, 16, 24, 31)
SHGM_DAC_PER_KEV = 8.81
QUIET_SHARE = 3e-3
"""A noise scan is over when fewer pixels than this share count anything."""

NoiseScan = Callable[[str, NDArray[np.uint8], range], Generator[Progress, None, NDArray[np.float32]]]
"""Stage name, trims and codes to noise peaks."""


def equalise(instrument: Instrument, plan: Plan, calibration: Calibration, *, target_dac: float | None = None) -> Work:
    """Bring the noise peaks of all eight thresholds to one code; the energy scale is then still nominal.

    Noise peaks are measured at the middle trim (the figure before), DAC_DiscL and DAC_DiscH are chosen, five trim
    codes spread over the matrix are measured, the best is chosen by interpolation, tried one step further, and
    measured again.

    Parameters
    ----------
    target_dac : float, optional
        Where to bring them. By default where they stand at the middle trim, which asks the least of the trims and so
        allows the finest steps; but not so low that a peak is cut by the end of the DAC.
    """
    detector, exposure_s = instrument.detector, plan.calibration.equalisation_exposure_s
    _refuse_fine_pitch(plan)
    instrument.gantry.beam(False)
    detector.set_bias(plan.detector.bias_v)
    detector.configure(
        Configuration(
            is_colour=True,
            is_csm=plan.detector.is_csm,
            gain=Gain[plan.detector.gain],
            depth_bits=12,
            counters=(0, 1),
            is_equalization=True,
        )
    )
    planes = (N_THRESHOLDS, ROWS // 2, COLS // 2)

    def scan(stage: str, trim: NDArray[np.uint8], codes: range) -> Generator[Progress, None, NDArray[np.float32]]:
        return (yield from _noise_scan(detector, stage, trim, codes, exposure_s))

    before = yield from scan(
        "noise before", np.full(planes, MIDDLE_TRIM, dtype=np.uint8), range(0, HIGHEST_CODE + 1, 2)
    )
    if target_dac is None:
        target_dac = max(LOWEST_TARGET_DAC, round(thresholds.mean_and_sigma(before)[0]))
    discs = yield from _choose_discs(detector, scan, target_dac, planes)
    detector.set_dacs(discs)
    edges = yield from _measure_trims(scan, planes, range(0, HIGHEST_CODE + 1, 3))
    choice = thresholds.choose_trims(edges, MEASURED_TRIMS, target_dac)

    near = range(max(round(target_dac) - 15, 0), round(target_dac) + 16)
    trim = choice.trims
    measured = yield from scan("check", trim, near)
    trial = thresholds.refine_trims(trim, measured, target_dac)
    is_better = thresholds.is_closer((yield from scan("refine", trial, near)), measured, target_dac)
    trim = np.where(is_better, trial, trim)
    after = yield from scan("noise after", trim, near)

    used = _used_thresholds(plan)
    pixel_class = np.zeros(planes[1:], dtype=np.uint8)
    pixel_class[choice.is_out_of_range[used].any(axis=0)] |= np.uint8(PixelClass.OUT_OF_TRIM)
    pixel_class[np.isnan(after[used]).any(axis=0)] |= np.uint8(PixelClass.NO_EDGE)
    nominal = SHGM_DAC_PER_KEV * FEEDBACK_FF[Gain.SHGM] / FEEDBACK_FF[Gain[plan.detector.gain]]
    return replace(
        calibration,
        dacs=dict(detector.dacs),
        trim=trim,
        is_masked=np.zeros(planes, dtype=bool),
        pixel_class=pixel_class,
        target_dac=float(target_dac),
        edges_before_dac=before,
        edges_after_dac=after,
        offset_dac=np.asarray([thresholds.mean_and_sigma(plane)[0] for plane in after]),
        gain_dac_per_kev=np.full(N_THRESHOLDS, nominal),
        lines=(),
    )


def _choose_discs(
    detector: Detector, scan: NoiseScan, target_dac: float, planes: tuple[int, ...]
) -> Generator[Progress, None, dict[str, int]]:
    """Measure mean edges with two strengths of the trim DACs, and return the strengths to use.

    Half of the pixels stand at trim 0 and half at the middle, like a chessboard; the highest trim, whose peaks may lie
    below the DAC's range, follows by a straight line.
    """
    is_middle = np.indices(planes).sum(axis=0) % 2 == 1
    lowest: dict[int, list[float]] = {0: [], 1: []}
    highest: dict[int, list[float]] = {0: [], 1: []}
    sigma_dac = 0.0
    for disc in TRIAL_DISCS:
        detector.set_dacs({"DAC_DiscL": disc, "DAC_DiscH": disc})
        trim = np.where(is_middle, MIDDLE_TRIM, 0).astype(np.uint8)
        edges = yield from scan(f"DAC_Disc {disc}", trim, range(0, HIGHEST_CODE + 1, 4))
        for side in (0, 1):
            here, middle = edges[side::2], is_middle[side::2]
            at_0, sigma = thresholds.mean_and_sigma(here[~middle])
            at_middle, _ = thresholds.mean_and_sigma(here[middle])
            lowest[side].append(at_0)
            highest[side].append(at_0 + (at_middle - at_0) * (TRIM_CODES - 1) / MIDDLE_TRIM)
            sigma_dac = max(sigma_dac, sigma)
    return {
        name: thresholds.choose_disc(
            TRIAL_DISCS, lowest[side], highest[side], sigma_dac=sigma_dac, target_dac=target_dac
        )
        for side, name in enumerate(("DAC_DiscL", "DAC_DiscH"))
    }


def _measure_trims(
    scan: NoiseScan, planes: tuple[int, ...], codes: range
) -> Generator[Progress, None, NDArray[np.float32]]:
    """Measure the noise peak of every pixel at each of MEASURED_TRIMS: (n_trims, 8, rows, cols) float32."""
    n_trims = len(MEASURED_TRIMS)
    edges = np.full((n_trims, *planes), np.nan, dtype=np.float32)
    _, row, col = np.indices(planes)
    for shift in range(n_trims):
        which = (row + col + shift) % n_trims
        found = yield from scan(f"trims {shift + 1}/{n_trims}", np.asarray(MEASURED_TRIMS, np.uint8)[which], codes)
        np.put_along_axis(edges, which[None], found[None], axis=0)
    return edges


def _noise_scan(
    detector: Detector, stage: str, trim: NDArray[np.uint8], codes: range, exposure_s: float
) -> Generator[Progress, None, NDArray[np.float32]]:
    """Scan all eight thresholds together over the noise, until no more is seen: edges (8, rows, cols) float32."""
    detector.load_pixels(matrix(trim, np.zeros(trim.shape, dtype=bool)))
    taken: list[NDArray[np.unsignedinteger]] = []
    has_counted = np.zeros(trim.shape, dtype=bool)
    n_quiet = 0
    for done, code in enumerate(codes):
        yield Progress(stage, done, len(codes))
        detector.set_dacs({f"Threshold{number}": code for number in range(N_THRESHOLDS)})
        counts = frame(detector, exposure_s).counts
        taken.append(counts)
        has_counted |= counts > 0
        n_quiet = n_quiet + 1 if np.count_nonzero(counts) < QUIET_SHARE * counts.size else 0
        if n_quiet == 4 and has_counted.mean() > 0.5:
            break
    return thresholds.noise_edges_dac(np.stack(taken), codes[: len(taken)])


def _used_thresholds(plan: Plan) -> list[int]:
    return sorted({*plan.detector.thresholds, *((0,) if plan.detector.is_csm else ())})


def _refuse_fine_pitch(plan: Plan) -> None:
    if not plan.detector.is_colour:
        raise WrongUsage(
            f"mode {plan.detector.mode} cannot be calibrated here; allowed: colour-csm, colour-spm",
            hint="choose a colour mode in the plan",
        )
