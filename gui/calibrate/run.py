"""The work of the page Calibrate on the instrument: some steps upon what is known, watched."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from acquisition.calibrate.exposures import Instrument, Work
from acquisition.calibrate.steps import begin, run_steps
from acquisition.calibrate.watch import Watch, watched
from acquisition.plan import Plan, refuse_foreign_pixels
from calibration.conditions import Conditions
from calibration.progress import retold
from calibration.store import Calibration
from gui.rig import RigSnapshot

CHIP = re.compile(r"W\d+_[A-Z]+\d+")
"""What the name of a chip looks like; where none can be read, the snapshot has words instead."""


def calibrate(
    names: Sequence[str],
    plan: Plan,
    base: Calibration | None,
    watch: Watch,
    *,
    is_forced: bool = False,
    is_over: Callable[[], bool] = lambda: False,
) -> Callable[[Instrument], Work]:
    """Return the work that runs some steps on an instrument.

    Parameters
    ----------
    base : Calibration, optional
        What the steps build on; it is never changed. None: a new calibration is begun.
    is_over : callable
        Whether to go on with no further step.
    """

    def work(instrument: Instrument) -> Work:
        refuse_foreign_pixels(plan)
        return (
            yield from retold(
                watched(steps, instrument, watch),
                lambda progress: progress._replace(stage=f"{watch.newest.step}: {progress.stage}"),
            )
        )

    def steps(instrument: Instrument) -> Work:
        known = base if base is not None else begin(instrument, plan)
        return (yield from run_steps(names, instrument, plan, known, is_forced=is_forced, is_over=is_over))

    return work


def conditions_now(plan: Plan, snapshot: RigSnapshot, known: Calibration | None) -> Conditions | None:
    """Return how the detector stands by what is known without asking it; None while no instrument is there.

    What is not known, the chip or how warm it is, is taken to be as in the calibration that it is compared with.
    """
    if snapshot.info is None or known is None:
        return None
    sensor_k = snapshot.health.sensor_k if snapshot.health is not None and snapshot.health.sensor_k > 0 else None
    chip_id = snapshot.chip_ids[0] if snapshot.chip_ids and CHIP.fullmatch(snapshot.chip_ids[0]) else known.chip_id
    return Conditions(
        chip_id=chip_id,
        gain=plan.detector.gain,
        is_csm=plan.detector.is_csm,
        is_colour=plan.detector.is_colour,
        bias_v=plan.detector.bias_v,
        temperature_k=sensor_k,
    )
