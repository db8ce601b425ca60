"""Frames that are looked at and not written: a snapshot, or the live picture until somebody stops it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass

from acquisition import preflight
from acquisition.beam import expect_shining
from acquisition.instrument import Instrument, begin
from acquisition.plan import Plan, refuse_foreign_pixels
from acquisition.runner import TELL_EVERY_S, RunHealth
from acquisition.stepping import Stepper, item_frames
from acquisition.steps import expand
from acquisition.stream import Expectation, FrameStream, QueueHealth
from calibration.progress import Progress
from calibration.store import Calibration
from firmware_iface.frame import Frame, Lost


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What was seen: how many frames, how many of them were lost, the newest, and how the queues stood at the end."""

    n_frames: int
    n_lost: int
    newest: Frame | None
    queues: tuple[QueueHealth, ...]


def look(
    instrument: Instrument,
    plan: Plan,
    calibration: Calibration,
    *,
    is_forced: bool = False,
    stop: threading.Event | None = None,
    on_newest: Callable[[Frame], None] | None = None,
    on_health: Callable[[RunHealth], None] | None = None,
    on_item: Callable[[Frame | Lost], object] = lambda _: None,
) -> Generator[Progress, None, Look]:
    """Take the frames of a plan for the eye only; a live one goes on until `stop` is set or it is closed.

    Parameters and errors are those of `acquisition.runner.run_scan`; `on_item` gets every frame and every loss, in
    order and in the thread that runs this. While nothing comes the same progress comes again.
    """
    refuse_foreign_pixels(plan)
    preflight.refuse(preflight.examine(instrument, plan, calibration, None), is_forced=is_forced)
    stop, is_told, n_frames, n_lost, told_s = stop or threading.Event(), False, 0, 0, 0.0
    steps, expectation = expand(plan), Expectation()
    n_planned = sum(step.n_frames for step in steps)
    try:
        yield from begin(instrument, plan, calibration)
        stepper = Stepper(
            instrument,
            plan,
            calibration,
            check_beam=lambda: expect_shining(instrument.gantry.source_state()),
            expectation=expectation,
            broken_off=instrument.broken_off,
        )
        with FrameStream(
            stepper.frames(steps), on_newest=on_newest, let_go=stepper.abort, expectation=expectation
        ) as stream:
            while not stream.is_over:
                placed = stream.poll()
                if stop.is_set() and not is_told:
                    is_told = True
                    stepper.stop()
                if placed is not None:
                    on_item(placed[1])
                    n_frames += item_frames(placed[1])
                    n_lost += 0 if isinstance(placed[1], Frame) else placed[1].n_frames
                if on_health is not None and time.monotonic() - told_s >= TELL_EVERY_S:
                    told_s = time.monotonic()
                    on_health(RunHealth(n_frames=n_frames, n_lost=n_lost, queues=stream.health()))
                yield Progress(plan.scan.kind, n_frames, n_planned)
            return Look(n_frames=n_frames, n_lost=n_lost, newest=stream.newest(), queues=stream.health())
    finally:
        instrument.gantry.shut_down()
