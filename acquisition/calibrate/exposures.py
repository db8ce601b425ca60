"""What every step asks of the instrument: the beam, the detector's state, frames, and lost ones again."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from acquisition.plan import Plan
from calibration.conditions import Conditions, differences
from calibration.correction import bins
from calibration.count_rate import CountRate
from calibration.progress import Progress
from calibration.store import Calibration
from firmware_iface.chip import COLS, FINE_THRESHOLDS, N_THRESHOLDS, ROWS, SUBPIXELS, Gain
from firmware_iface.device import Configuration, Detector, PixelConfiguration
from firmware_iface.errors import CalibrationMissing, DataLost, DetectorError, WrongUsage
from firmware_iface.frame import Frame

if TYPE_CHECKING:
    from acquisition.gantry import Gantry

TUBE = "TUBE"
HIGHEST_CODE = 511
PARKED_CODE = HIGHEST_CODE
RETRIES = 3
FULL_SHARE = 0.95
"""Counters nearer to their end than this are taken for full."""
FULL_PIXELS_SHARE = 0.02
"""This share of the pixels may be full: noisy ones are."""

Work = Generator[Progress, None, Calibration]


class Instrument(Protocol):
    """A detector and the gantry around it."""

    @property
    def detector(self) -> Detector:
        """What counts."""
        ...

    @property
    def gantry(self) -> Gantry:
        """What moves and shines."""
        ...


def pixel_configuration(calibration: Calibration) -> PixelConfiguration:
    """Return trims and masks as the chip's own matrix holds them."""
    return matrix(calibration.trim, calibration.is_masked)


def operating_dacs(
    calibration: Calibration, plan: Plan, thresholds_kev: Sequence[float] | None = None
) -> dict[str, int]:
    """Return every DAC code of the scan that a plan describes, thresholds included: the detector's, or those given.

    In charge summing Threshold0 arbitrates; thresholds that are not read are parked out of the way.
    """
    codes = parked_dacs(calibration, plan)
    energies_kev = plan.detector.thresholds_kev if thresholds_kev is None else thresholds_kev
    for number, energy_kev in zip(plan.detector.thresholds, energies_kev, strict=True):
        codes[f"Threshold{number}"] = calibration.threshold_dac(number, energy_kev)
    return codes


def parked_dacs(calibration: Calibration, plan: Plan) -> dict[str, int]:
    """Return every DAC code with the thresholds out of the way, but for the one that arbitrates."""
    codes = {**calibration.dacs, **{f"Threshold{number}": PARKED_CODE for number in range(N_THRESHOLDS)}}
    if plan.detector.is_csm:
        codes["Threshold0"] = calibration.threshold_dac(0, plan.detector.arbitration_kev)
    return codes


def wanted_conditions(detector: Detector, plan: Plan) -> Conditions:
    """Return how the detector stands, or will stand, when it does what the plan says."""
    return Conditions(
        chip_id=str(detector.chip_id()),
        gain=plan.detector.gain,
        is_csm=plan.detector.is_csm,
        is_colour=plan.detector.is_colour,
        bias_v=plan.detector.bias_v,
        temperature_k=temperature_k(detector),
    )


def temperature_k(detector: Detector) -> float | None:
    """Return how warm the sensor is; None where the detector cannot tell."""
    try:
        measured_k = detector.health().sensor_k
    except DetectorError:
        return None
    return measured_k if measured_k > 0 else None


def refuse_foreign(calibration: Calibration, wanted: Conditions) -> None:
    """Refuse a calibration that was made under other conditions than those wanted now.

    Raises
    ------
    CalibrationMissing
        The message names every difference.
    """
    told = differences(calibration.conditions, wanted)
    if told:
        raise CalibrationMissing(
            f"the calibration {calibration.identity} does not hold here: {'; '.join(told)}",
            hint="calibrate again (mpxct calibrate all --plan PLAN.toml), or use it all the same: --force, or “even "
            "under other conditions” on the page Calibrate",
        )


def set_up_detector(detector: Detector, plan: Plan, calibration: Calibration, dacs: dict[str, int]) -> None:
    """Bring the detector into the state of the scan, with these DAC codes."""
    configure(detector, plan)
    set_dacs(detector, calibration, dacs)
    detector.load_pixels(pixel_configuration(calibration))


def configure(detector: Detector, plan: Plan) -> None:
    """Let the bias and the chip's mode be those of the scan."""
    detector.set_bias(plan.detector.bias_v)
    detector.configure(
        Configuration(
            is_colour=plan.detector.is_colour,
            is_csm=plan.detector.is_csm,
            gain=Gain[plan.detector.gain],
            depth_bits=plan.detector.depth_bits,
            counters=plan.detector.counters,
        )
    )


def set_dacs(detector: Detector, calibration: Calibration, dacs: Mapping[str, int]) -> None:
    """Set DACs of all chips alike, but for those that were tuned: these are each chip's own."""
    detector.set_dacs(dacs)
    tuned = calibration.bias_currents
    if tuned is not None and len(tuned.codes) > 1:
        for number in range(len(tuned.codes)):
            detector.set_dacs(tuned.dacs(number), number)


def select_open_beam(gantry: Gantry, plan: Plan) -> None:
    """Let the plan's tube shine on the detector, with nothing in between; the beam stays as it is."""
    gantry.select_sample(None)
    gantry.select_source(TUBE)
    gantry.set_tube(plan.source.kvp, plan.source.current_ma)


@contextmanager
def beam(gantry: Gantry) -> Iterator[None]:
    """Switch the beam on, and off again however the work inside ends."""
    gantry.beam(True)
    try:
        yield
    finally:
        gantry.beam(False)


def matrix(
    trim: NDArray[np.uint8], is_masked: NDArray[np.bool_], is_test: NDArray[np.bool_] | None = None
) -> PixelConfiguration:
    """Spread planes (n_thresholds, rows, cols) over the chip's own pixels, two thresholds to each.

    A pixel has one mask for both: it is switched off if either threshold is to be. The pixels that take test pulses are
    ``is_test``, (256, 256) bool.
    """
    is_test = np.zeros((ROWS, COLS), dtype=bool) if is_test is None else is_test
    if len(trim) == FINE_THRESHOLDS:
        return PixelConfiguration(
            is_masked=is_masked[0] | is_masked[1], trim_l=trim[0], trim_h=trim[1], is_test=is_test
        )
    trim_l, trim_h = np.zeros((ROWS, COLS), dtype=np.uint8), np.zeros((ROWS, COLS), dtype=np.uint8)
    masks = np.zeros((ROWS, COLS), dtype=bool)
    for pair, (row, col) in enumerate(SUBPIXELS):
        trim_l[row::2, col::2], trim_h[row::2, col::2] = trim[2 * pair], trim[2 * pair + 1]
        masks[row::2, col::2] = is_masked[2 * pair] | is_masked[2 * pair + 1]
    return PixelConfiguration(is_masked=masks, trim_l=trim_l, trim_h=trim_h, is_test=is_test)


def frame(detector: Detector, exposure_s: float) -> Frame:
    """Take one frame; one that is lost is taken again."""
    for _ in range(RETRIES):
        # To the end of the run: one that is left early is aborted and drained where nobody hears a Ctrl-C.
        taken = [item for item in detector.frames(1, exposure_s) if isinstance(item, Frame)]
        if taken:
            return taken[0]
    raise DataLost(
        f"one frame of the calibration was lost {RETRIES} times in a row", hint="check the cable and `mpxct doctor`"
    )


def take(
    detector: Detector, stage: str, n_frames: int, exposure_s: float
) -> Generator[Progress, None, NDArray[np.unsignedinteger]]:
    """Take frames, lost ones again: (n_frames, n_counters, rows, cols)."""
    taken: list[NDArray[np.unsignedinteger]] = []
    for _ in range(RETRIES):
        yield Progress(stage, len(taken), n_frames)
        for item in detector.frames(n_frames - len(taken), exposure_s):
            if isinstance(item, Frame):
                yield Progress(stage, len(taken), n_frames)
                taken.append(item.counts)
        if len(taken) == n_frames:
            return np.stack(taken)
    raise DataLost(
        f"{n_frames - len(taken)} of {n_frames} frames of '{stage}' stayed lost after {RETRIES} attempts",
        hint="check the cable and `mpxct doctor`",
    )


def mean_bins(
    detector: Detector, plan: Plan, stage: str, n_frames: int, count_rate: CountRate | None = None
) -> Generator[Progress, None, NDArray[np.float64]]:
    """Take frames with the plan's exposure and return their mean in each bin: (n_bins, rows, cols) float64.

    What overlapping pulses lost and added is put right where it is known.
    """
    counts = yield from take(detector, stage, n_frames, plan.detector.exposure_s)
    refuse_full(counts, plan, stage)
    mean = counts.mean(axis=0, dtype=np.float64)
    if count_rate is not None:
        mean, _ = at_its_thresholds(count_rate, plan).correct(mean, plan.detector.exposure_s)
    return bins(mean).astype(np.float64)


def at_its_thresholds(count_rate: CountRate, plan: Plan) -> CountRate:
    """Return the count-rate calibration at the plan's thresholds, or refuse where it is of others."""
    found = count_rate.of_pass(plan.detector.thresholds_kev)
    if found is None:
        raise CalibrationMissing(
            f"the count rate was measured with thresholds at {count_rate.thresholds_told} keV; "
            f"the plan wants {list(plan.detector.thresholds_kev)}",
            hint="measure it again with this plan: mpxct calibrate count-rate",
        )
    return found


def refuse_full(counts: NDArray[np.unsignedinteger], plan: Plan, stage: str) -> None:
    """Refuse counts (..., n_counters, rows, cols) of which more than a few pixels are near the end of the counter."""
    full = FULL_SHARE * ((1 << plan.detector.depth_bits) - 1)
    share = float((counts >= full).mean(axis=(-2, -1)).max())
    if share > FULL_PIXELS_SHARE:
        raise WrongUsage(
            f"{100 * share:.0f} % of the pixels count {full:.0f} and more in '{stage}', where the counters end; "
            f"allowed: up to {100 * FULL_PIXELS_SHARE:.0f} %",
            hint="take a shorter exposure or less current",
        )
