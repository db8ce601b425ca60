"""Steps become frames: each move, the thresholds of each pass, sweeps with their pulses, sums of exposures.

All of it runs in the reader's thread. The last frame of a step comes only when the beam is known to have held until
then, so that a step is whole, or broken, and never a guess.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import numpy as np

from acquisition.calibrate.exposures import Instrument, operating_dacs, set_dacs, temperature_k
from acquisition.pause import Pause
from acquisition.plan import Plan, passes_kev
from acquisition.scan_plan import TRIGGERS
from acquisition.steps import Pose, Step
from acquisition.stream import LOOK_UP_S, Expectation
from calibration.store import Calibration
from firmware_iface.device import Trigger
from firmware_iface.errors import DetectorError, MpxctError, TransportError
from firmware_iface.frame import Frame, Lost

NO_DATA_S = 120.0
"""How much longer than an exposure nothing may come; the detector itself gives up sooner, where it can.

A simulated one on a busy machine takes a minute to its first frame.
"""
MOVE_S = 150.0
"""How long a move, or a change of the sample, may take; the gantry itself gives up sooner, where it can."""
ARM_S = 10.0
"""How long the board may take until it waits for triggers."""
TEMPERATURE_EVERY_S = 10.0
AFTER_SWEEP_S = 1.0
"""How long after a sweep its last frame may come."""

Placed = tuple[tuple[Step, int], Frame | Lost]
"""A step, the place in it of a frame, and the frame."""


class Stepper:
    """Takes the frames of steps, one step after the other.

    Parameters
    ----------
    check_beam : callable
        Raises where the beam is not as it should be.
    expectation : Expectation
        Is told what is waited for.
    no_data_s : float
        How much longer than an exposure nothing may come.
    pause : Pause, optional
        Is asked before each step.
    broken_off : threading.Event, optional
        As of `acquisition.instrument.Instrument`.
    """

    def __init__(
        self,
        instrument: Instrument,
        plan: Plan,
        calibration: Calibration,
        *,
        check_beam: Callable[[], None] = lambda: None,
        expectation: Expectation | None = None,
        no_data_s: float = NO_DATA_S,
        pause: Pause | None = None,
        broken_off: threading.Event | None = None,
    ) -> None:
        self._pause = pause
        self._broken_off = broken_off or threading.Event()
        self._instrument, self._plan, self._calibration = instrument, plan, calibration
        self._check_beam = check_beam
        self._expectation, self._no_data_s = expectation or Expectation(), no_data_s
        self._passes_kev = passes_kev(plan)
        self._pass_index = 0 if len(self._passes_kev) == 1 else None
        self._sample: str | None = ""
        self._pose: Pose | None = None
        self._is_stopping = threading.Event()
        self._looked_s = -TEMPERATURE_EVERY_S
        self.temperature_k = math.nan
        """Of the sensor when it was last looked at, between two steps."""

    def stop(self) -> None:
        """End after the present frame; also from another thread."""
        self._is_stopping.set()
        with suppress(DetectorError):  # the run may end by itself at this moment
            self._instrument.detector.stop()

    def abort(self) -> None:
        """End now; also from another thread. The frame under way is thrown away."""
        self._is_stopping.set()
        self._instrument.detector.abort()

    def frames(self, steps: Iterable[Step]) -> Iterator[Placed]:
        """Move to each step and take its frames; every frame of a step is accounted for, as itself or as lost."""
        for step in steps:
            if self._pause is not None:
                self._expectation.none()
                self._pause.hold(self._instrument.gantry, self._is_stopping)
            if self._is_ending:
                return
            self._look_at_temperature()
            self._go_to(step)
            held: Placed | None = None
            try:
                for placed in self._step(step):
                    if held is not None:
                        yield held
                    held = placed
                    self._expect_frame(step)
            except TransportError:
                if held is not None and held[0][1] + 1 < step.n_frames:
                    yield held  # measured is measured, though the step is broken
                raise
            if self._broken_off.is_set():
                return  # whoever did so may have switched the beam off in this frame
            if held is not None:
                self._expectation.of("the state of the beam", MOVE_S)
                self._check_beam()
                yield held

    @property
    def _is_ending(self) -> bool:
        return self._is_stopping.is_set() or self._broken_off.is_set()

    def _look_at_temperature(self) -> None:
        now_s = time.monotonic()
        if now_s - self._looked_s >= TEMPERATURE_EVERY_S:
            self._looked_s = now_s
            measured_k = temperature_k(self._instrument.detector)
            self.temperature_k = math.nan if measured_k is None else measured_k

    def _go_to(self, step: Step) -> None:
        """Bring thresholds, sample and gantry to where a step begins; what is there already is left alone."""
        self._expectation.of(f"the gantry at {step.pose} with {step.sample or 'nothing'} in the beam", MOVE_S)
        gantry = self._instrument.gantry
        if step.pass_index != self._pass_index:
            codes = operating_dacs(self._calibration, self._plan, self._passes_kev[step.pass_index])
            set_dacs(self._instrument.detector, self._calibration, codes)
            self._pass_index = step.pass_index
        if step.sample != self._sample:
            gantry.select_sample(step.sample)
            self._sample = step.sample
        if step.pose != self._pose:
            gantry.move_to(step.pose)
            self._pose = step.pose

    def _step(self, step: Step) -> Iterator[Placed]:
        """Yield the frames of one step, and what is missing of them as lost."""
        n_seen = run_id = 0
        with self._triggered(step) as period_ns:
            taken = self._instrument.detector.frames(step.n_frames * step.n_accumulated, step.exposure_s)
            self._expect_frame(step)
            for item in _summed(_with_gaps(taken, period_ns), step.n_accumulated):
                run_id = item.run_id
                n_left = step.n_frames - n_seen if step.n_frames else item_frames(item)
                if n_left <= 0:
                    continue
                if isinstance(item, Lost) and item.n_frames > n_left:
                    item = replace(item, n_frames=n_left)
                yield (step, n_seen), item
                n_seen += item_frames(item)
        if n_seen < step.n_frames and not self._is_ending:
            rest = step.n_frames - n_seen
            reason = "the run ended before they came"
            yield (step, n_seen), Lost(run_id=run_id, first_sequence=n_seen, n_frames=rest, reason=reason)

    def _expect_frame(self, step: Step) -> None:
        if step.exposures_per_trigger and step.end is None:  # an edge from outside may be long in coming
            self._expectation.none()
            return
        self._expectation.of(f"a frame of {step.exposure_s:g} s", step.exposure_s + self._no_data_s)

    @contextmanager
    def _triggered(self, step: Step) -> Generator[int | None, None, None]:
        """Let edges start the exposures of a step that wants it, and the gantry give them while it sweeps.

        Gives the time between the pulses of a sweep, in ns. The sweep begins in a thread of its own once the detector
        waits for triggers, which it does only when the body asks for the first frame.
        """
        if not step.exposures_per_trigger:
            yield None
            return
        detector, failures = self._instrument.detector, list[MpxctError]()
        start = TRIGGERS[getattr(self._plan.scan, "trigger", "rising-ttl")]
        detector.set_trigger(Trigger(start=start, frames_per_trigger=step.exposures_per_trigger))
        is_over = threading.Event()
        sweep = threading.Thread(target=self._sweep, args=(step, is_over, failures), name="sweep", daemon=True)
        try:
            if step.end is None:
                yield None
            else:
                sweep.start()
                yield round(step.sweep_s / (step.n_frames * step.n_accumulated) * 1e9)
        finally:
            is_over.set()
            if step.end is not None:
                sweep.join(MOVE_S)
                self._pose = None  # where the sweep left it, whatever was planned
            with suppress(DetectorError):  # a device that is gone is being reported
                detector.set_trigger(Trigger())
        if failures:
            raise failures[0]

    def _sweep(self, step: Step, is_over: threading.Event, failures: list[MpxctError]) -> None:
        """Wait for the detector, sweep, and end the run where pulses or frames did not come."""
        detector, gantry = self._instrument.detector, self._instrument.gantry
        assert step.end is not None
        try:
            deadline_s = time.monotonic() + ARM_S
            while not is_over.is_set() and detector.status().state.name != "ARMED":
                if time.monotonic() > deadline_s:
                    raise DetectorError(f"the detector did not wait for triggers within {ARM_S:g} s")
                is_over.wait(LOOK_UP_S / 10)
            if not is_over.is_set():
                gantry.sweep(step.pose, step.end, step.n_frames * step.n_accumulated, step.sweep_s)
                gantry.wait()
        except MpxctError as error:
            failures.append(error)
        if not is_over.wait(0 if failures else step.exposure_s + AFTER_SWEEP_S):
            with suppress(DetectorError):
                detector.stop()


def item_frames(item: Frame | Lost) -> int:
    """Return for how many frames an item stands."""
    return 1 if isinstance(item, Frame) else item.n_frames


def _with_gaps(items: Iterator[Frame | Lost], period_ns: int | None) -> Iterator[Frame | Lost]:
    """Put frames whose pulse came while the board could not take it into their places, as lost."""
    before_ns = None
    for item in items:
        if period_ns and isinstance(item, Frame):
            if item.missed_trigger and before_ns is not None:
                n_missed = max(round((item.timestamp_ns - before_ns) / period_ns) - 1, 1)
                reason = "the pulse came while the board could not take it"
                yield Lost(run_id=item.run_id, first_sequence=item.sequence, n_frames=n_missed, reason=reason)
            before_ns = item.timestamp_ns
        elif isinstance(item, Lost) and period_ns and before_ns is not None:
            before_ns += item.n_frames * period_ns
        yield item


def _summed(items: Iterator[Frame | Lost], n_accumulated: int) -> Iterator[Frame | Lost]:
    """Sum exposures into frames; one that lacks an exposure is lost, for a sum of fewer would look like absorption."""
    if n_accumulated == 1:
        yield from items
        return
    group: list[Frame] = []
    lost: list[Lost] = []
    n_seen = sequence = 0
    for item in items:
        n_left = item_frames(item)
        while n_left:
            n_now = min(n_left, n_accumulated - n_seen)
            if isinstance(item, Frame):
                group.append(item)
            else:
                lost.append(item)
            n_seen, n_left = n_seen + n_now, n_left - n_now
            if n_seen == n_accumulated:
                yield _lost_sum(lost[0], sequence, n_accumulated) if lost else _sum(group, sequence)
                group, lost, n_seen, sequence = [], [], 0, sequence + 1


def _sum(group: list[Frame], sequence: int) -> Frame:
    return replace(
        group[0],
        counts=np.sum([frame.counts for frame in group], axis=0, dtype=np.uint32),
        sequence=sequence,
        exposure_ns=sum(frame.exposure_ns for frame in group),
        was_paused=any(frame.was_paused for frame in group),
        follows_overflow=any(frame.follows_overflow for frame in group),
    )


def _lost_sum(lost: Lost, sequence: int, n_accumulated: int) -> Lost:
    reason = f"of its {n_accumulated} exposures one was lost: {lost.reason}"
    return Lost(run_id=lost.run_id, first_sequence=sequence, n_frames=1, reason=reason)
