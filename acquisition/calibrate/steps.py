"""The steps of a calibration in their order, what each needs, and how they are run: all, or one upon a file.

Each step takes the calibration so far and returns a better one; what it did is added to the calibration's history.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np

from acquisition.calibrate.bias import bias
from acquisition.calibrate.count_rate import count_rate
from acquisition.calibrate.energy import energy
from acquisition.calibrate.equalise import equalise
from acquisition.calibrate.exposures import (
    Instrument,
    Work,
    refuse_foreign,
    wanted_conditions,
)
from acquisition.calibrate.geometry import geometry
from acquisition.calibrate.materials import materials
from acquisition.calibrate.pixels import pixels
from acquisition.calibrate.response import response
from acquisition.calibrate.watch import Watched
from acquisition.calibrate.wedge import wedge
from acquisition.gantry import Gantry
from acquisition.plan import Plan
from calibration.attenuation import material
from calibration.conditions import StepRecord, differences
from calibration.spectrum import emission
from calibration.store import Calibration, software_version
from firmware_iface.chip import COLS, FINE_THRESHOLDS, N_THRESHOLDS, ROWS, TRIM_CODES
from firmware_iface.errors import CalibrationMissing, OurMistake, WrongUsage


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step.

    Attributes
    ----------
    does : str
        What it does, in a few words.
    needs : tuple of str
        Steps that must have been done.
    is_skippable : bool
        `all` goes on without it where the device cannot do it.
    run : callable
        (instrument, plan, calibration so far) to a generator of progress that returns the better calibration.
    """

    name: str
    does: str
    needs: tuple[str, ...] = ()
    is_skippable: bool = False
    run: Callable[[Instrument, Plan, Calibration], Work]


STEPS: Mapping[str, Step] = {
    step.name: step
    for step in (
        Step(name="bias", does="bring GND, FBK and Cas to their voltages", is_skippable=True, run=bias),
        Step(name="equalise", does="bring all pixels' thresholds together", run=equalise),
        Step(name="energy", does="put thresholds to keV by sources with lines", needs=("equalise",), run=energy),
        Step(name="pixels", does="judge every pixel, and switch off those that fire", needs=("equalise",), run=pixels),
        Step(
            name="count-rate",
            does="measure lost counts over the tube's current",
            needs=("energy", "pixels"),
            run=count_rate,
        ),
        Step(name="materials", does="measure materials behind cells", needs=("energy", "pixels"), run=materials),
        Step(
            name="geometry",
            does="find distances, offsets and tilts by beads",
            needs=("energy", "pixels"),
            run=geometry,
        ),
        Step(
            name="wedge",
            does="teach each pixel thickness behind plates",
            needs=("energy", "pixels"),
            run=wedge,
        ),
        Step(
            name="response",
            does="fit what each bin counts of each energy",
            needs=("wedge",),
            run=response,
        ),
    )
}


def calibrate_all(instrument: Instrument, plan: Plan) -> Work:
    """Run the steps that the plan names, in their order, and return the whole calibration."""
    unknown = [name for name in plan.calibration.steps if name not in STEPS]
    if unknown:
        raise WrongUsage(f"calibration.steps names {', '.join(unknown)}; allowed: {', '.join(STEPS)}")
    _refuse_unknown(instrument.gantry, plan)
    return (yield from run_steps(plan.calibration.steps, instrument, plan, begin(instrument, plan)))


def run_steps(
    names: Collection[str],
    instrument: Instrument,
    plan: Plan,
    calibration: Calibration,
    *,
    is_forced: bool = False,
    is_over: Callable[[], bool] = lambda: False,
) -> Work:
    """Run some steps in their order upon what is known so far; those that the device cannot do may be left out.

    Parameters
    ----------
    is_over : callable
        Asked before each step: whether to go on no further, and return what is known by then.
    """
    watch = instrument.watch if isinstance(instrument, Watched) else None
    for step in STEPS.values():
        if step.name not in names or is_over():
            continue
        if watch is not None:
            watch.begins(step.name, calibration)
        try:
            calibration = yield from run_step(step, instrument, plan, calibration, is_forced=is_forced)
        except OurMistake:
            if not step.is_skippable or len(names) == 1:
                raise
            continue
        if watch is not None:
            watch.ends(step.name, calibration)
    return calibration


def run_step(
    step: Step, instrument: Instrument, plan: Plan, calibration: Calibration, *, is_forced: bool = False
) -> Work:
    """Run one step upon what is known so far, and note it in the history.

    Parameters
    ----------
    is_forced : bool
        Go on even if the calibration was begun under other conditions.

    Raises
    ------
    CalibrationMissing
        A step that it needs has not been done, or the calibration is of another chip, mode, gain, bias or temperature.
    """
    done = {record.step for record in calibration.history}
    missing = [name for name in step.needs if name not in done]
    if missing:
        raise CalibrationMissing(
            f"the step {step.name} needs {' and '.join(missing)} first",
            hint=f"mpxct calibrate {missing[0]}, or all steps at once: mpxct calibrate all",
        )
    now = wanted_conditions(instrument.detector, plan)
    is_foreign = bool(differences(calibration.conditions, now))
    if is_foreign and not is_forced:
        refuse_foreign(calibration, now)
    better = yield from step.run(instrument, plan, calibration)
    record = StepRecord(
        step=step.name,
        created=_now(),
        software=software_version(),
        mode=now.mode,
        gain=now.gain,
        bias_v=now.bias_v,
        temperature_k=math.nan if now.temperature_k is None else now.temperature_k,
        is_forced=is_foreign,
    )
    return replace(better, history=(*calibration.history, record))


def begin(instrument: Instrument, plan: Plan) -> Calibration:
    """Return what is known of a detector before any step: its identity and conditions, and nothing measured."""
    detector = instrument.detector
    now = wanted_conditions(detector, plan)
    n_thresholds, rows, cols = (N_THRESHOLDS, ROWS // 2, COLS // 2) if now.is_colour else (FINE_THRESHOLDS, ROWS, COLS)
    planes = (n_thresholds, rows, cols)
    return Calibration(
        created=_now(),
        software=software_version(),
        device=detector.info.serial,
        chip_id=now.chip_id,
        gain=now.gain,
        is_csm=now.is_csm,
        is_colour=now.is_colour,
        bias_v=now.bias_v,
        temperature_k=now.temperature_k,
        dacs=dict(detector.dacs),
        trim=np.full(planes, TRIM_CODES // 2, dtype=np.uint8),
        is_masked=np.zeros(planes, dtype=bool),
        pixel_class=np.zeros((rows, cols), dtype=np.uint16),
        target_dac=math.nan,
        edges_before_dac=np.full(planes, np.nan, dtype=np.float32),
        edges_after_dac=np.full(planes, np.nan, dtype=np.float32),
        offset_dac=np.zeros(n_thresholds),
        gain_dac_per_kev=np.ones(n_thresholds),
        lines=(),
        thresholds_kev=plan.detector.thresholds_kev,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _refuse_unknown(gantry: Gantry, plan: Plan) -> None:
    """Refuse sources and cells that are not there, or of which nothing is known, before time is spent on the others."""
    for source in plan.calibration.sources:
        emission(source)
        if source not in gantry.sources():
            raise WrongUsage(f"there is no source {source!r}; there are {', '.join(gantry.sources())}")
    samples = gantry.samples()
    for cell in plan.calibration.cells:
        material(cell.material)
        if samples is not None and cell.name not in samples:
            raise WrongUsage(f"the sample changer has no {cell.name!r}; it has {', '.join(samples)}")
