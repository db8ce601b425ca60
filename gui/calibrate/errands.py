"""Small work beside everything else: reading and writing calibration files, making plots ready; many at once."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, TypeVar

from pyqtgraph.Qt import QtCore

from calibration.progress import Progress
from gui.session import Session
from gui.workers import Job, JobStatus

T = TypeVar("T")
LOOK_EVERY_MS = 30


class Errands(QtCore.QObject):
    """Runs work in threads and hands over what it returns, whether the page is seen or not."""

    def __init__(self, session: Session, parent: QtCore.QObject) -> None:
        super().__init__(parent)
        self._session = session
        self._running: dict[str, tuple[Job[Any], Callable[[Any], object]]] = {}
        self._timer = QtCore.QTimer(self)
        self._timer.setInterval(LOOK_EVERY_MS)
        self._timer.timeout.connect(self.look)

    def is_running(self, title: str) -> bool:
        """Whether something of this name is under way."""
        return title in self._running

    def run(self, title: str, work: Generator[Progress, None, T], then: Callable[[T], object]) -> bool:
        """Begin work, and say whether it was: of one name there is only one at a time."""
        if title in self._running:
            return False
        self._running[title] = (Job(title, work).start(), then)
        self._timer.start()
        return True

    def end(self) -> None:
        """Hand nothing over any more: the window closes."""
        self._timer.stop()
        self._running.clear()

    def look(self) -> None:
        """Hand over what has ended."""
        for title, (job, then) in list(self._running.items()):
            if not job.is_over:
                continue
            del self._running[title]
            now = job.snapshot()
            if now.status is JobStatus.DONE:
                then(job.result)
            elif now.error is not None:
                self._session.fail(title, now.error)
        if not self._running:
            self._timer.stop()
