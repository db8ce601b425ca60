"""Long work in the background: a generator of progress runs in a thread, and anybody may look how far it is.

No signal crosses threads: the worker writes one small record, and who wants to know reads it, as often as he likes.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from enum import Enum
from typing import Generic, Self, TypeVar

from calibration.progress import Progress

T = TypeVar("T")
_log = logging.getLogger(__name__)
STEPS_BACK = 10
"""Of priority: while all processors are taken the window's thread gets about ten times as much of one as a job."""


class JobStatus(Enum):
    """How a job stands; the last three are its ends."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSnapshot:
    """How far a job is.

    Attributes
    ----------
    stage, done, total : str, int, int
        Of the newest `Progress`; a total of 0 is not known.
    left_s : float or None
        Guessed from this stage's pace; None where nothing can be told yet.
    is_stopping : bool
        Whether it was told to end and has not ended yet.
    """

    title: str
    status: JobStatus
    stage: str = ""
    done: int = 0
    total: int = 0
    elapsed_s: float = 0.0
    left_s: float | None = None
    is_stopping: bool = False
    error: BaseException | None = None

    @property
    def is_over(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self.status in (JobStatus.DONE, JobStatus.STOPPED, JobStatus.FAILED)

    @property
    def share(self) -> float | None:
        """How much of the present stage is done, 0 to 1; None where that is not known."""
        return min(self.done / self.total, 1.0) if self.total else None


class Job(Generic[T]):
    """Runs a generator of progress to its end in a thread, and keeps what it returns.

    Parameters
    ----------
    title : str
        What is being done, for people: "Scan of mouse-3".
    work : generator of Progress
        Is made by whoever starts the job and touched by the worker's thread only.
    stop : callable, optional
        Asks the work to end well by itself, at the next frame say; without it `stop` is `abort`.
    abort : callable, optional
        Makes what the work waits for end, so that `abort` need not wait for it.
    """

    def __init__(
        self,
        title: str,
        work: Generator[Progress, None, T],
        *,
        stop: Callable[[], object] | None = None,
        abort: Callable[[], object] | None = None,
    ) -> None:
        self.title = title
        self._work = work
        self._stop, self._abort = stop, abort
        self._is_stopping = threading.Event()
        self._is_aborting = threading.Event()
        self._is_over = threading.Event()
        self._status = JobStatus.WAITING
        self._progress = Progress("", 0, 0)
        self._began_s = self._stage_began_s = time.monotonic()
        self._n_before = 0
        self._ended_s: float | None = None
        self._error: BaseException | None = None
        self._result: T | None = None

    def start(self) -> Self:
        """Run it in a thread of its own, which lets the window go first."""
        threading.Thread(target=self._run_behind, name=self.title, daemon=True).start()
        return self

    def run(self) -> None:
        """Run it in the calling thread; whatever goes wrong is kept, not raised."""
        self._began_s = self._stage_began_s = time.monotonic()
        self._status = JobStatus.RUNNING
        try:
            self._walk()
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to the one who asked for the work
            self._fail(error)

    def snapshot(self) -> JobSnapshot:
        """Return how far it is; any thread may ask."""
        now_s = self._ended_s or time.monotonic()
        progress = self._progress
        pace_s = now_s - self._stage_began_s
        n_done = progress.done - self._n_before  # what an earlier run did says nothing of this one's pace
        is_told = progress.total > 0 and n_done > 0 and self._status is JobStatus.RUNNING
        return JobSnapshot(
            title=self.title,
            status=self._status,
            stage=progress.stage,
            done=progress.done,
            total=progress.total,
            elapsed_s=now_s - self._began_s,
            left_s=pace_s * max(progress.total - progress.done, 0) / n_done if is_told else None,
            is_stopping=self._is_stopping.is_set() and not self._is_over.is_set(),
            error=self._error,
        )

    @property
    def is_over(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self._is_over.is_set()

    @property
    def has_stop(self) -> bool:
        """Whether it can end well, so that `stop` is another thing than `abort`."""
        return self._stop is not None

    @property
    def result(self) -> T:
        """What the work returned.

        Raises
        ------
        RuntimeError
            It has not ended well, or not yet.
        """
        if self._status is not JobStatus.DONE:
            raise RuntimeError(f"{self.title} has no result; it is {self._status.value}")
        return self._result  # pyright: ignore[reportReturnType]

    def stop(self) -> None:
        """Ask it to end well; at once where it has no way of its own."""
        self._is_stopping.set()
        if self._stop is None:
            self.abort()
        else:
            self._stop()

    def abort(self) -> None:
        """End it at its next step of progress, and what it waits for at once."""
        self._is_stopping.set()
        self._is_aborting.set()
        if self._abort is not None and not self.is_over:
            try:
                self._abort()
            except Exception:  # noqa: BLE001 - the work itself tells what is wrong; it must end in any case
                _log.exception("what %s waits for could not be broken off", self.title)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until it has ended, and say whether it has."""
        return self._is_over.wait(timeout_s)

    def _run_behind(self) -> None:
        _step_back()
        self.run()

    def _walk(self) -> None:
        """Take the work step by step; what came to its end by itself is done, though it was told to end meanwhile."""
        while not self._is_aborting.is_set():
            try:
                progress = next(self._work)
            except StopIteration as end:
                self._result = end.value
                is_cut_short = self._abort is not None and self._is_aborting.is_set()
                self._end(JobStatus.STOPPED if is_cut_short else JobStatus.DONE)
                return
            if progress.stage != self._progress.stage:
                self._stage_began_s, self._n_before = time.monotonic(), progress.done
            self._progress = progress
        self._work.close()
        self._end(JobStatus.STOPPED)

    def _fail(self, error: BaseException) -> None:
        self._error = error
        self._end(JobStatus.STOPPED if self._is_stopping.is_set() else JobStatus.FAILED)

    def _end(self, status: JobStatus) -> None:
        self._ended_s = time.monotonic()
        self._status = status
        self._is_over.set()


def _step_back() -> None:
    """Lower the priority of this thread and of those that it begins; only Linux has one for each thread."""
    if sys.platform == "linux":
        of_window = os.getpriority(os.PRIO_PROCESS, os.getpid())
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(of_window + STEPS_BACK, 19))
