"""Runs a plan on an instrument: looks first, prepares, takes and writes every step, and leaves all safe and valid.

While frames come, one thread only talks to the device: the stream's reader. The scan file is written by the caller's.
What breaks is a step, and a step is repeated: after the device came back, when the tube or the stage is tried again, or
by the next run with `resume`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from acquisition import preflight
from acquisition.beam import expect_shining
from acquisition.calibrate.exposures import TUBE, refuse_full
from acquisition.disk_watch import DiskWatch
from acquisition.doctor import Level
from acquisition.instrument import Instrument, begin, is_checked, settings
from acquisition.pause import Pause
from acquisition.plan import Plan, plan_to_toml, refuse_foreign_pixels
from acquisition.resume import RESUME_HINT, Rest, find_rest, first_frames, refuse_other, step_of
from acquisition.run_log import RunLog
from acquisition.scan import ImageKey, ScanStatus, readout_of
from acquisition.scan_file import read_scan
from acquisition.scan_layout import partial_path
from acquisition.scan_writer import ScanWriter
from acquisition.stepping import NO_DATA_S, Stepper
from acquisition.steps import Step, StepKind, expand
from acquisition.stream import LOOK_UP_S, Expectation, FrameStream, QueueHealth
from calibration.progress import Progress
from calibration.store import Calibration
from firmware_iface.errors import (
    DataLost,
    DetectorError,
    GantryError,
    MpxctError,
    OurMistake,
    Stopped,
    TransportError,
    WrongUsage,
)
from firmware_iface.frame import Frame, Lost
from firmware_iface.states import State

IMAGE_KEYS: Mapping[StepKind, ImageKey] = {StepKind.FLAT: ImageKey.FLAT, StepKind.PROJECTION: ImageKey.PROJECTION}
HEALTH_EVERY_S = 10.0
"""How often the log hears how the run stands."""
TELL_EVERY_S = 1.0
"""How often `on_health` does."""
REOPEN_EVERY_S = 0.5
MAX_BREAKS = 3
"""How often the device may leave in one and the same step before the run gives up."""
BROKEN_OFF = "ended at once, by hand"
_BY_HAND = (GeneratorExit, KeyboardInterrupt)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endurance:
    """What a run tries by itself before it gives up.

    Attributes
    ----------
    reconnect_s : float
        How long it waits for a device that has left; 0: not at all.
    retries : int
        How often it repeats a step that the tube or the stage broke. None by default: whether a tube that has tripped
        is switched on again, with nobody there, is for the laboratory to say.
    retry_wait_s : float
        How long it waits before it does.
    no_data_s : float
        How much longer than an exposure nothing may come before the device counts as lost.
    """

    reconnect_s: float = 30.0
    retries: int = 0
    retry_wait_s: float = 10.0
    no_data_s: float = NO_DATA_S


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHealth:
    """How a run stands.

    Attributes
    ----------
    write_s, free_bytes : float, int
        The slowest write, and the room that is left; 0 where nothing is written.
    alarms : tuple of str
        What went wrong so far, each once.
    """

    n_frames: int
    n_lost: int
    queues: tuple[QueueHealth, ...]
    write_s: float = 0.0
    free_bytes: int = 0
    alarms: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanSummary:
    """How a scan ended; `n_frames` counts the lost ones too.

    Attributes
    ----------
    n_resumed, n_repeated : int
        Frames that earlier runs took, and those that were taken again.
    notes : tuple of str
        What a person should hear.
    """

    path: Path
    n_frames: int
    n_lost: int
    status: ScanStatus
    duration_s: float
    n_resumed: int = 0
    n_repeated: int = 0
    notes: tuple[str, ...] = ()


def run_scan(
    instrument: Instrument,
    plan: Plan,
    calibration: Calibration,
    path: str | Path,
    *,
    overwrite: bool = False,
    is_forced: bool = False,
    resume: bool = False,
    endurance: Endurance | None = None,
    stop: threading.Event | None = None,
    is_verbose: bool = False,
    on_newest: Callable[[Frame], None] | None = None,
    on_health: Callable[[RunHealth], None] | None = None,
    on_item: Callable[[Step, int, Frame | Lost], None] | None = None,
    pause: Pause | None = None,
    notes: Mapping[str, str] | None = None,
) -> Generator[Progress, None, ScanSummary]:
    """Run a whole scan into a file, or what is missing of it; a step of progress for each frame.

    While nothing comes the same step comes again, some times a second, so that who walks it can leave it at any time.
    Closed early (or by Ctrl-C) it aborts the exposure, switches the beam off, and leaves what it has as a valid file
    under the partial name, with the status "interrupted".

    Parameters
    ----------
    is_forced : bool
        Scan even with a calibration made under other conditions; the file's events say in what they differ.
    resume : bool
        Go on with what an earlier run left under the partial name, at the first step that is missing.
    endurance : Endurance, optional
        What to try again by itself.
    stop : threading.Event, optional
        Once set, the run stops after the present frame.
    on_newest : callable, optional
        Gets the newest frame in a thread of its own; frames are skipped while it looks at one.
    on_health : callable, optional
        Hears every second how the run stands.
    on_item : callable, optional
        Hears of every frame that is written, or lost, with its step and its place in it; must be quick.
    pause : Pause, optional
        Holds the run between two steps.
    notes : mapping of str to str, optional
        What a person wants to be told of the scan; kept in the file's header.

    Raises
    ------
    WrongUsage, CalibrationMissing, MpxctError
        What `preflight` found, before anything moved; the exposure fills the counters.
    Stopped
        It was told to stop.
    DataLost
        It broke off in the middle; the message tells how many frames are in which file.
    """
    path = Path(path)
    refuse_foreign_pixels(plan)
    steps = tuple(expand(plan))
    first = first_frames(steps)
    _refuse_taken(path, overwrite=overwrite, resume=resume)
    if resume and path.exists() and not partial_path(path).exists():
        return _summary_of_whole(path, plan, calibration)
    log = RunLog(path, is_continued=resume, is_verbose=is_verbose)
    try:
        rest = find_rest(path, plan, calibration, first) if resume else Rest()
        checks = preflight.examine(instrument, plan, calibration, path)
        preflight.refuse(checks, is_forced=is_forced)
        run = _Run(
            instrument, plan, calibration, steps, first, log, endurance or Endurance(), stop or threading.Event(),
            on_newest, on_health, is_forced, on_item, pause, notes,
        )  # fmt: skip
        summary = yield from run.write(path, rest, checks, overwrite=overwrite or resume)
    except BaseException as error:
        log.write("end", _reason(error))
        log.close()
        if not partial_path(path).exists() and not path.exists():
            log.discard()
        raise
    log.close()
    return summary


def _refuse_taken(path: Path, *, overwrite: bool, resume: bool) -> None:
    """Refuse a name that is taken, and say how to go on with what is there."""
    partial = partial_path(path)
    if overwrite or resume:
        return
    if path.exists():
        raise WrongUsage(f"{path} exists already", hint="choose another name, or allow overwriting (--overwrite)")
    if partial.exists():
        raise WrongUsage(
            f"{partial} exists already, from a scan that was broken off",
            hint=f"{RESUME_HINT}; or choose another name, or allow overwriting (--overwrite)",
        )


def _reason(error: BaseException) -> str:
    """Return why a run ended early; one that is closed, or interrupted by a key, hears that from Python's own words."""
    return f"Stopped: {BROKEN_OFF}" if isinstance(error, _BY_HAND) else f"{type(error).__name__}: {error}"


def _summary_of_whole(path: Path, plan: Plan, calibration: Calibration) -> ScanSummary:
    """Return how a scan ended that is whole already."""
    scan = read_scan(path)
    refuse_other(path, scan, plan, calibration)
    return ScanSummary(
        path=path,
        n_frames=scan.shape[0],
        n_lost=scan.n_lost,
        status=scan.status,
        duration_s=0.0,
        n_resumed=scan.shape[0],
        notes=(f"{path} is whole already; nothing was left to do",),
    )


@dataclass(slots=True, eq=False)
class _Run:
    """One run of a scan, from the first look to the closed file."""

    instrument: Instrument
    plan: Plan
    calibration: Calibration
    steps: Sequence[Step]
    first: Sequence[int]
    log: RunLog
    endurance: Endurance
    stop: threading.Event
    on_newest: Callable[[Frame], None] | None
    on_health: Callable[[RunHealth], None] | None
    is_forced: bool
    on_item: Callable[[Step, int, Frame | Lost], None] | None
    pause: Pause | None
    notes: Mapping[str, str] | None
    writer: ScanWriter = field(init=False)
    disk: DiskWatch = field(init=False)
    stepper: Stepper = field(init=False)
    alarms: dict[str, str] = field(default_factory=dict)
    n_repeated: int = 0
    n_flushed: int = 0
    began_s: float = field(default_factory=time.monotonic)
    looked_s: float = field(default_factory=time.monotonic)
    told_s: float = field(default_factory=time.monotonic)

    def write(
        self, path: Path, rest: Rest, checks: Sequence[preflight.Check], *, overwrite: bool
    ) -> Generator[Progress, None, ScanSummary]:
        """Make the file, or take over what there is, and take the steps that are missing."""
        with ScanWriter(
            path,
            readout_of(self.plan),
            n_frames=self.first[-1],
            plan=self.plan,
            calibration=self.calibration,
            sample=self.plan.scan.held or "",
            source=TUBE,
            attributes=self.notes,
            settings=settings(self.instrument.detector, self.plan, self.calibration),
            is_checked=is_checked(self.instrument.detector),
            adopt=None if rest.source is None else (rest.source, rest.n_frames),
            overwrite=overwrite,
        ) as self.writer:
            self.disk = DiskWatch(self.writer.partial)
            self.log.start(
                f"scan of {self.first[-1]} frames into {path}",
                calibration=self.calibration.identity,
                plan=plan_to_toml(self.plan),
                n_frames=self.first[-1],
            )
            try:
                self._tell(checks)
                self._resume(rest)
                yield from self._endure(rest.first_step)
                status = self._finish()
            except BaseException as error:
                told = self._broken(error)
                if told is error:
                    raise
                raise told from error
            finally:
                self._shut_down()
        figures = {
            "n_frames": self.writer.n_frames,
            "n_lost": self.writer.n_lost,
            "n_resumed": rest.n_frames,
            "n_repeated": self.n_repeated + rest.n_repeated,
            "duration_s": time.monotonic() - self.began_s,
        }
        self.log.write("end", f"{status.value}: {self.writer.path}", status=status.value, **figures)
        return ScanSummary(path=self.writer.path, status=status, notes=(*rest.told, *self._told()), **figures)

    def _tell(self, checks: Sequence[preflight.Check]) -> None:
        for check in checks:
            if check.level is Level.FAIL:
                self._event("forced", f"went on all the same: {check.text}")
            else:
                self.log.write("warning" if check.level is Level.WARN else "check", f"{check.topic}: {check.text}")

    def _resume(self, rest: Rest) -> None:
        """Tell what of an earlier run is in the file already, and what is taken again."""
        for text in rest.told:
            self.log.write("resumed", text)
        if rest.n_repeated:
            first, last = rest.n_frames, rest.n_frames + rest.n_repeated - 1
            self._event("repeated", f"frames {first} to {last} are taken again: their step was broken off")
        self._flushed()

    def _finish(self) -> ScanStatus:
        status = self.writer.finish()
        self.log.write("closed", f"{self.writer.path}")
        return status

    def _endure(self, step: int) -> Generator[Progress, None, None]:
        """Take all steps from one on; again from the step that broke, as far as that is wanted."""
        n_tries = n_breaks = 0
        while True:
            try:
                yield from self._attempt(step)
                return
            except (DetectorError, GantryError) as error:
                if self.instrument.broken_off.is_set():
                    raise Stopped(BROKEN_OFF) from error
                broken = step_of(self.first, self.writer.n_frames)
                is_gone = self._is_gone(error)
                if broken > step:
                    n_breaks = 0
                n_tries, n_breaks, step = n_tries + (not is_gone), n_breaks + is_gone, broken
                if not is_gone:
                    self._rewind(step, str(error))  # what the tube or the stage spoilt is not to be taken for data
                may_go_on = (
                    self.instrument.opener is not None and self.endurance.reconnect_s > 0 and n_breaks <= MAX_BREAKS
                    if is_gone
                    else n_tries <= self.endurance.retries
                )  # fmt: skip
                if not may_go_on or self.stop.is_set():
                    raise
                self._event("broken", f"step {step}: {error}")
                self._rewind(step, str(error))
                if is_gone:
                    yield from self._reconnect(error)
                else:
                    self._shut_down()
                    self._event("retry", f"try {n_tries} of {self.endurance.retries}, after {error}")
                    yield from self._wait("waiting before another try", self.endurance.retry_wait_s)
                    if self.instrument.gantry.source_state().fault:
                        self.instrument.gantry.clear_fault()

    def _rewind(self, step: int, reason: str) -> None:
        """Forget the frames of a step that is going to be repeated."""
        n_frames = self.writer.n_frames - self.first[step]
        if n_frames:
            self.writer.rewind(self.first[step], reason)
            self.n_repeated += n_frames
            self.log.write("repeated", f"{n_frames} frames of step {step} are taken again")

    def _is_gone(self, error: MpxctError) -> bool:
        """Return whether the device has left; where another thread saw that first, this one hears a refusal."""
        if isinstance(error, OurMistake):
            return getattr(self.instrument.detector, "state", None) is State.DISCONNECTED
        return isinstance(error, TransportError)

    def _reconnect(self, error: MpxctError) -> Generator[Progress, None, None]:
        """Wait for the device to come back, and open it."""
        deadline_s = time.monotonic() + self.endurance.reconnect_s
        while True:
            try:
                self.instrument.reopen()
                checks = preflight.examine(self.instrument, self.plan, self.calibration, None)
                break
            except MpxctError:
                if time.monotonic() >= deadline_s:
                    raise error from None
                yield from self._wait("waiting for the device", REOPEN_EVERY_S)
        preflight.refuse(checks, is_forced=self.is_forced)  # it may be another one, or have got cold
        self._event("reconnected", f"the device came back after: {error}")

    def _wait(self, stage: str, duration_s: float) -> Generator[Progress, None, None]:
        deadline_s = time.monotonic() + duration_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            yield Progress(stage, 0, 0)
            if self.stop.wait(min(left_s, LOOK_UP_S)):
                raise Stopped("stopped while waiting")

    def _attempt(self, first_step: int) -> Generator[Progress, None, None]:
        """Prepare, switch the beam on, and take every step from one on."""
        if self.stop.is_set():
            raise Stopped("stopped before the first exposure")
        if first_step == len(self.steps):
            return
        for progress in begin(self.instrument, self.plan, self.calibration):
            yield progress
            if self.stop.is_set():
                raise Stopped("stopped before the first exposure")
        expectation = Expectation()
        self.stepper = stepper = Stepper(
            self.instrument,
            self.plan,
            self.calibration,
            check_beam=lambda: expect_shining(self.instrument.gantry.source_state()),
            expectation=expectation,
            no_data_s=self.endurance.no_data_s,
            pause=self.pause,
            broken_off=self.instrument.broken_off,
        )
        is_told = False
        with FrameStream(
            stepper.frames(self.steps[first_step:]),
            on_newest=self.on_newest,
            let_go=stepper.abort,
            expectation=expectation,
        ) as stream:
            while not stream.is_over:
                placed = stream.poll()
                if self.stop.is_set() and not is_told:
                    is_told = True
                    stepper.stop()
                if placed is not None:
                    self._keep(*placed)
                is_holding = placed is None and self.pause is not None and self.pause.is_holding
                yield Progress("paused" if is_holding else "scan", self.writer.n_frames, self.first[-1])
                self._look(stream, is_idle=placed is None)
        if self.writer.n_frames < self.first[-1] and self.instrument.broken_off.is_set():
            raise Stopped(BROKEN_OFF)
        if self.writer.n_frames < self.first[-1] and self.stop.is_set():
            raise Stopped("stopped after the present frame")

    def _keep(self, placed: tuple[Step, int], item: Frame | Lost) -> None:
        """Write one frame, or that it was lost."""
        step, place = placed
        began_s = time.monotonic()
        if isinstance(item, Frame):
            if not self.writer.n_frames:
                refuse_full(item.counts // step.n_accumulated, self.plan, "the first frame")
            key, pose, temperature_k = IMAGE_KEYS[step.kind], step.pose_of(place), self.stepper.temperature_k
            self.writer.write(item, key, pose, step.pass_index, temperature_k=temperature_k)
        else:
            last = item.first_sequence + item.n_frames - 1
            text = f"frames {item.first_sequence} to {last} of run {item.run_id}: {item.reason}"
            self._alarm("lost", text, is_event=False)
            self.writer.lost(item, [step.pose_of(place + n) for n in range(item.n_frames)], step.pass_index)
        if self.on_item is not None:
            self.on_item(step, place, item)
        self._flushed()
        if (slow := self.disk.wrote(time.monotonic() - began_s)) is not None:
            self._alarm("slow-disk", slow)

    def _look(self, stream: FrameStream[tuple[Step, int]], *, is_idle: bool) -> None:
        """Do what is due between frames: bring the last ones to the disk, watch it, tell how the run stands."""
        now_s = time.monotonic()
        if is_idle:
            self.writer.flush_when_due()
            self._flushed()
        n_left = self.first[-1] - self.writer.n_frames
        if (low := self.disk.look(self.writer.n_frames, n_left)) is not None:
            self._alarm("low-disk", low.text)
            if low.is_stop:
                raise DataLost(low.text, hint=f"make room on the disk; then {RESUME_HINT}")
        is_for_log, is_for_caller = now_s - self.looked_s >= HEALTH_EVERY_S, now_s - self.told_s >= TELL_EVERY_S
        if is_for_log or (is_for_caller and self.on_health is not None):
            health = self._health(stream)
            if is_for_log:
                self.looked_s = now_s
                self._log_health(health)
            if self.on_health is not None:
                self.told_s = now_s
                self.on_health(health)

    def _health(self, stream: FrameStream[tuple[Step, int]]) -> RunHealth:
        return RunHealth(
            n_frames=self.writer.n_frames,
            n_lost=self.writer.n_lost,
            queues=stream.health(),
            write_s=self.disk.worst_s,
            free_bytes=self.disk.free_bytes,
            alarms=self._told(),
        )

    def _log_health(self, health: RunHealth) -> None:
        disk = health.queues[0]
        text = (
            f"{health.n_frames} frames, {disk.rate_per_s:.1f} /s, {disk.depth} wait (most {disk.high_water} of "
            f"{disk.capacity}), the oldest for {disk.oldest_s:.2f} s; slowest write {health.write_s:.2f} s"
        )
        self.log.write("health", text, **{name: getattr(health, name) for name in RunHealth.__slots__})

    def _flushed(self) -> None:
        """Note what the writer has brought to the disk."""
        n_flushed = self.writer.n_frames - self.writer.n_waiting
        if n_flushed != self.n_flushed:
            self.n_flushed = n_flushed
            self.log.write("flushed", f"{self.n_flushed} frames are on the disk", n_frames=self.n_flushed)

    def _shut_down(self) -> None:
        """Leave the gantry safe; what may not be is told wherever somebody may hear it."""
        if unsafe := self.instrument.gantry.shut_down():
            self.log.write("unsafe", unsafe)

    def _event(self, kind: str, text: str) -> None:
        self.writer.event(kind, text)
        self.log.write(kind, text)

    def _alarm(self, kind: str, text: str, *, is_event: bool = True) -> None:
        """Tell of something that should not be, once more in the summary; the first of its kind, that is."""
        self.alarms.setdefault(kind, text)
        self.log.write(kind, text)
        if is_event:
            self.writer.event(kind, text)

    def _told(self) -> tuple[str, ...]:
        return tuple(f"{kind}: {text}" for kind, text in self.alarms.items())

    def _broken(self, error: BaseException) -> BaseException:
        """Close the file as far as it got, and return what the caller is to hear."""
        n_whole = self.writer.n_frames - self.writer.n_lost
        if not n_whole:
            self.writer.discard()  # nothing in it is worth a name that would be in the next scan's way
            return error
        reason = _reason(error)
        with suppress(MpxctError):  # a disk that takes nothing more has said so already
            self.writer.interrupt(reason)
        self.log.write("interrupted", reason, n_frames=self.writer.n_frames)
        there = f"{n_whole} of {self.first[-1]} frames are in {self.writer.partial}"
        if isinstance(error, Stopped):
            return Stopped(f"{error}; {there}", hint=RESUME_HINT)
        if isinstance(error, TransportError):
            return DataLost(f"the device was lost ({error}); {there}", hint=f"reconnect it; then {RESUME_HINT}")
        if isinstance(error, (DetectorError, GantryError)):
            hint = f"{error.hint}; then {RESUME_HINT}" if error.hint else RESUME_HINT
            return DataLost(f"the scan broke off ({error}); {there}", hint=hint)
        return error
