"""Short work beside the window's thread: questions under names, of each name the newest, and what is asked ever again.

No Qt here. A thread begins with the first question and ends by itself after the last. It is no daemon: a file that is
being written, and a bus that is being looked at, are not let go half-way where the program ends.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from calibration.progress import Progress

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Question:
    name: str
    work: Callable[[], Any]
    then: Callable[[Any], object]
    otherwise: Callable[[BaseException], object] | None
    is_kept: bool


class Questions:
    """Answers questions one after the other in a thread; `beat` hands the answers over, in the thread that calls it.

    Nothing piles up. Of what waits under a name only the newest is begun. What was begun ends at its next step of
    progress when something newer is asked under its name; work without progress is finished and handed over, so that
    somebody who asks faster than can be answered sees something nevertheless.

    Parameters
    ----------
    fail : callable
        Takes the name and the error of a question that failed, unless it has a way of its own.
    name : str
        Of the thread.
    """

    def __init__(self, fail: Callable[[str, BaseException], object], name: str = "questions") -> None:
        self._fail, self._name = fail, name
        self._lock = threading.Lock()
        self._waiting: dict[str, _Question] = {}
        self._running: _Question | None = None
        self._answers: dict[str, Callable[[], object]] = {}
        self._is_served = self._is_closed = False

    def ask(
        self,
        name: str,
        work: Callable[[], T | Generator[Progress, None, T]],
        then: Callable[[T], object] = lambda _: None,
        *,
        otherwise: Callable[[BaseException], object] | None = None,
        is_kept: bool = False,
    ) -> None:
        """Have something answered; what waits under this name is forgotten, and the new one takes its place.

        Parameters
        ----------
        work : callable
            Returns the answer, or a generator of progress that does.
        then, otherwise : callable
            Take the answer, or the error.
        is_kept : bool
            It writes what a person would miss: once begun it is ended, and what waits is done after `close` too.
        """
        with self._lock:
            if self._is_closed:
                return
            self._waiting[name] = _Question(name=name, work=work, then=then, otherwise=otherwise, is_kept=is_kept)
            if not self._is_served:
                self._is_served = True
                threading.Thread(target=self._serve, name=self._name).start()

    def is_asked(self, name: str) -> bool:
        """Whether there is a question of this name that is not answered, or whose answer is not handed over."""
        with self._lock:
            is_running = self._running is not None and self._running.name == name
            return is_running or name in self._waiting or name in self._answers

    @property
    def is_idle(self) -> bool:
        """Whether everything is answered and handed over."""
        with self._lock:
            return self._running is None and not self._waiting and not self._answers

    def beat(self) -> None:
        """Hand over what has been answered since the last time, the newest of each name."""
        for _ in range(len(self._answers)):
            with self._lock:
                if not self._answers:
                    return
                hand_over = self._answers.pop(next(iter(self._answers)))
            hand_over()

    def close(self) -> None:
        """Hand nothing over any more, and forget what waits, but for what is kept."""
        with self._lock:
            self._is_closed = True
            self._answers.clear()
            self._waiting = {name: question for name, question in self._waiting.items() if question.is_kept}

    # In the thread.

    def _serve(self) -> None:
        while (question := self._next()) is not None:
            answer = self._answer(question)
            with self._lock:
                self._running = None
                if answer is not None and not self._is_closed:
                    self._answers.pop(question.name, None)  # the newest comes last
                    self._answers[question.name] = answer

    def _next(self) -> _Question | None:
        with self._lock:
            if not self._waiting:
                self._is_served = False
                return None
            self._running = self._waiting.pop(next(iter(self._waiting)))
            return self._running

    def _answer(self, question: _Question) -> Callable[[], object] | None:
        """Work a question out, and return what hands its answer over; None where it was given up."""
        try:
            found = question.work()
            if isinstance(found, Generator):
                found = self._walk(found, question)
        except _GivenUp:
            return None
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to the one who asked
            return self._failed(question, error)
        return lambda: question.then(found)

    def _walk(self, steps: Generator[Progress, None, Any], question: _Question) -> Any:
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value
            if not question.is_kept and (self._is_closed or question.name in self._waiting):
                steps.close()
                raise _GivenUp

    def _failed(self, question: _Question, error: BaseException) -> Callable[[], object]:
        if self._is_closed:  # nobody is left to be told
            _log.error("%s: %s", question.name, error, exc_info=error)
        tell = question.otherwise or (lambda error: self._fail(question.name, error))
        return lambda: tell(error)


class _GivenUp(Exception):
    """Something newer was asked, or nobody is left who asks."""


class Lookout(Generic[T]):
    """Looks every few seconds as long as somebody asks for what was seen: at the USB bus, or the disk.

    Parameters
    ----------
    look : callable
        May take its time; what it raises is in `error` until it succeeds again.
    every_s : float
        From the end of one look to the next.

    Attributes
    ----------
    error : str
        Why the last look failed; empty: it did not.
    n_looks : int
        How often it has looked.
    """

    def __init__(self, name: str, look: Callable[[], T], every_s: float) -> None:
        self.name, self.error, self.n_looks = name, "", 0
        self._look, self._every_s = look, every_s
        self._newest: T | None = None
        self._ended_s = -math.inf
        self._questions = Questions(self._fail, name)

    def newest(self) -> T | None:
        """Return what was seen last, None before the first time; asking keeps the looking going."""
        self._questions.beat()
        if self._questions.is_idle and time.monotonic() - self._ended_s >= self._every_s:
            self._questions.ask(self.name, self._look, self._take)
        return self._newest

    def _take(self, seen: T) -> None:
        self._newest = seen
        self._end("")

    def _fail(self, _name: str, error: BaseException) -> None:
        """Keep what failed: a look that fails now may do later."""
        told = str(error) or type(error).__name__
        if told != self.error:
            _log.warning("%s: %s", self.name, told)
        self._end(told)

    def _end(self, error: str) -> None:
        self.error = error
        self.n_looks += 1
        self._ended_s = time.monotonic()
