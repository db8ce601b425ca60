"""A live view of a detector that takes thresholds in keV and knows its own calibration: a Merlin."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from acquisition.plan import Plan
from acquisition.scan_plan import FlatsPlan, FramesPlan
from calibration.progress import Progress
from firmware_iface.errors import WrongUsage

if TYPE_CHECKING:
    from acquisition.runner import RunHealth
    from firmware_iface.frame import Frame, Lost

NOTE = (
    "This detector sets its thresholds by its own calibration, with its own trims and mask. Beam, stage and bias are "
    "left as they are: switch the beam on by its own program."
)


def takes_energies(detector: Any) -> bool:
    """Whether a detector sets its thresholds by energies, with no need of a calibration of ours."""
    return hasattr(detector, "set_thresholds_kev")


def look_by_energy(
    detector: Any,
    plan: Plan,
    on_item: Callable[[Frame | Lost], object],
    on_health: Callable[[RunHealth], object] = lambda _: None,
    on_set: Callable[[tuple[float, ...]], object] = lambda _: None,
) -> Generator[Progress, None, None]:
    """Set the detector up as the plan says, and hand over frames until there are no more or it is closed.

    `on_health` gets how the run stands, at every loss and now and then; `on_set` gets the thresholds in keV as the
    detector has them, which may be others than were asked for.

    Raises
    ------
    WrongUsage
        The plan wants frames that are sums of exposures, which nobody adds up here.
    """
    from acquisition.runner import TELL_EVERY_S, RunHealth
    from firmware_iface.chip import Gain
    from firmware_iface.device import Configuration
    from firmware_iface.frame import Lost

    wanted, scan = plan.detector, plan.scan
    if wanted.accumulate != 1:
        raise WrongUsage(
            f"each frame is to be the sum of {wanted.accumulate} exposures; allowed with this detector: 1",
            hint="set “sum of” to 1; the view itself can show the sum of the last frames",
        )
    detector.configure(
        Configuration(
            is_colour=wanted.is_colour, is_csm=wanted.is_csm, gain=Gain[wanted.gain], depth_bits=wanted.depth_bits,
            counters=wanted.counters,
        )
    )  # fmt: skip
    thresholds = dict(zip(wanted.thresholds, wanted.thresholds_kev, strict=True))
    got = detector.set_thresholds_kev({**({0: wanted.arbitration_kev} if wanted.is_csm else {}), **thresholds})
    on_set(tuple(got[number] for number in wanted.thresholds))
    n_frames = scan.n_flats if isinstance(scan, FlatsPlan) else scan.n_frames if isinstance(scan, FramesPlan) else 0
    n_seen, n_lost, told_s = 0, 0, -math.inf
    yield Progress(scan.kind, n_seen, n_frames)
    frames = detector.frames(n_frames, wanted.exposure_s)
    try:
        for item in frames:
            on_item(item)
            n_missing = item.n_frames if isinstance(item, Lost) else 0
            n_seen, n_lost = n_seen + max(n_missing, 1), n_lost + n_missing
            if n_missing or time.monotonic() - told_s >= TELL_EVERY_S:
                told_s = time.monotonic()
                on_health(RunHealth(n_frames=n_seen, n_lost=n_lost, queues=()))
            yield Progress(scan.kind, n_seen, n_frames)
    finally:
        frames.close()
