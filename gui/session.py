"""What all pages of the window share: the state, the instrument, the work in the background, and what went wrong.

Only the thread of the window changes it. `beat`, called many times a second, hands over what ended meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from calibration.progress import Progress
from firmware_iface.errors import MpxctError
from gui.questions import Questions
from gui.rig import Rig
from gui.state import Action, State, why_not
from gui.workers import Job, JobStatus

if TYPE_CHECKING:
    from acquisition.instrument import Instrument

T = TypeVar("T")
_log = logging.getLogger("mpxct.window")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What went wrong, for a person: the sentence, what to do, and what was being done."""

    title: str
    sentence: str
    hint: str = ""
    error: BaseException | None = None

    @property
    def is_expected(self) -> bool:
        """Whether it is one of those that tell a person what to do, and no fault of the program."""
        return isinstance(self.error, MpxctError | OSError)


@dataclass(frozen=True, slots=True, eq=False)
class _Running:
    job: Job[Any]
    then: Callable[[Any], object]
    otherwise: Callable[[JobStatus], object] | None


class Session:
    """What a window works on.

    Attributes
    ----------
    state : State
        Replaced as a whole by `change`; a page that keeps the last one it saw knows whether anything is new.
    failures : list of Failure
        Not shown yet; the window takes them.
    page_wanted : str
        Title of a page that another one asks the window to show; empty: none.
    """

    def __init__(self, folder: Path, rig: Rig | None = None) -> None:
        self.rig = rig or Rig()
        self.state = State(folder=folder)
        self.failures: list[Failure] = []
        self.page_wanted = ""
        self._running: dict[str, _Running] = {}
        self._questions: list[Questions] = []

    def change(self, **parts: Any) -> None:
        """Replace parts of the state."""
        self.state = replace(self.state, **parts)

    def measure(
        self,
        title: str,
        work: Callable[[Instrument], Generator[Progress, None, T]],
        then: Callable[[T], object] = lambda _: None,
        *,
        stop: Callable[[], object] | None = None,
        otherwise: Callable[[JobStatus], object] | None = None,
    ) -> Job[T]:
        """Run work on the instrument; `then` gets its result and `otherwise` any other end, in the window's thread."""
        return self._keep("instrument", self.rig.run(title, work, stop=stop), then, otherwise)

    def compute(
        self,
        title: str,
        work: Generator[Progress, None, T],
        then: Callable[[T], object] = lambda _: None,
        *,
        stop: Callable[[], object] | None = None,
        otherwise: Callable[[JobStatus], object] | None = None,
        lane: str = "compute",
    ) -> Job[T]:
        """Run work beside the instrument; `then` gets its result and `otherwise` any other end.

        Parameters
        ----------
        lane : str
            Each does one thing at a time: "compute", "files", or a page's own.
        """
        return self._keep(lane, Job(title, work, stop=stop).start(), then, otherwise)

    def questions(self, name: str) -> Questions:
        """Return what answers short questions in a thread of their own; `beat` hands over, and `close` closes it."""
        questions = Questions(self.fail, name)
        self._questions.append(questions)
        return questions

    def job(self, lane: str) -> Job[Any] | None:
        """Return what runs in a lane, "instrument", "compute" or another; None where nothing does."""
        running = self._running.get(lane)
        return running.job if running is not None else None

    def why_not(self, action: Action) -> str:
        """Return why something cannot be done now; empty where it can."""
        now = self.rig.snapshot()
        return why_not(
            action,
            self.state,
            now.link,
            is_board=now.is_board,
            instrument_job=self._title("instrument"),
            compute_job=self._title("compute"),
        )

    def why_busy(self, lane: str) -> str:
        """Return why a lane cannot take more work now; empty where it can."""
        title = self._title(lane)
        return f"{title} is running; wait until it ends, or cancel it." if title else ""

    def beat(self) -> None:
        """Hand over what has ended since the last time."""
        for lane, running in list(self._running.items()):
            if not running.job.is_over:
                continue
            del self._running[lane]
            self._hand_over(running)
        for questions in self._questions:
            questions.beat()

    def fail(self, title: str, error: BaseException) -> None:
        """Keep an error for the window to show."""
        _log.error("%s: %s", title, error, exc_info=error)
        self.failures.append(Failure(title=title, sentence=str(error), hint=getattr(error, "hint", ""), error=error))

    def close(self) -> None:
        """Break off what runs and let the instrument go."""
        for running in self._running.values():
            running.job.abort()
        for questions in self._questions:
            questions.close()
        self.rig.close()

    def _title(self, lane: str) -> str:
        running = self._running.get(lane)
        return running.job.title if running is not None else ""

    def _keep(
        self,
        lane: str,
        job: Job[T],
        then: Callable[[T], object],
        otherwise: Callable[[JobStatus], object] | None,
    ) -> Job[T]:
        assert lane not in self._running, "pages ask why_not first"
        self._running[lane] = _Running(job, then, otherwise)
        _log.info("%s: begins", job.title)
        return job

    def _hand_over(self, running: _Running) -> None:
        job, snapshot = running.job, running.job.snapshot()
        _log.info("%s: %s after %.1f s", job.title, snapshot.status.value, snapshot.elapsed_s)
        if snapshot.status is JobStatus.DONE:
            running.then(job.result)
            return
        if snapshot.status is JobStatus.FAILED and snapshot.error is not None:
            self.fail(job.title, snapshot.error)
        if running.otherwise is not None:
            running.otherwise(snapshot.status)
