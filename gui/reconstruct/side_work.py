"""Short works beside the window's thread that nobody waits for: facts of a file, tables, predictions."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from calibration.progress import Progress
from gui.workers import Job, JobStatus

Work = Callable[[], Generator[Progress, None, Any]]


class SideWorks:
    """Runs works one after the other; of those with the same name that still wait, only the newest.

    Parameters
    ----------
    fail : callable
        Takes the title and the error of a work that failed.
    """

    def __init__(self, fail: Callable[[str, BaseException], object]) -> None:
        self._fail = fail
        self._waiting: dict[str, tuple[Work, Callable[[Any], object]]] = {}
        self._running: tuple[Job[Any], str, Callable[[Any], object]] | None = None

    def ask(self, name: str, work: Work, then: Callable[[Any], object]) -> None:
        """Have a work done; `then` gets its result, in the thread that calls `beat`."""
        self._waiting.pop(name, None)
        self._waiting[name] = (work, then)
        self.beat()

    def beat(self) -> None:
        """Hand over what has ended, and begin what waits."""
        if self._running is not None:
            job, name, then = self._running
            if not job.is_over:
                return
            self._running = None
            snapshot = job.snapshot()
            if snapshot.status is JobStatus.DONE and name not in self._waiting:
                then(job.result)
            elif snapshot.error is not None:
                self._fail(job.title, snapshot.error)
        if self._running is None and self._waiting:
            name = next(iter(self._waiting))
            work, then = self._waiting.pop(name)
            self._running = Job(name, work()).start(), name, then

    def end(self) -> None:
        """Forget what waits, and end what runs at its next step."""
        self._waiting.clear()
        if self._running is not None:
            self._running[0].abort()

    @property
    def is_busy(self) -> bool:
        """Whether anything runs or waits."""
        return self._running is not None or bool(self._waiting)
