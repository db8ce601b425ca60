"""Work for a page that only cares for the newest answer: a thread does what was asked for last under each name.

Nothing piles up: a slice that was scrolled past before it was read is never read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """What came of a question: a result, or an error."""

    result: Any = None
    error: BaseException | None = None


class Latest:
    """Answers questions one after the other; its thread ends when there are none."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: dict[str, Callable[[], Any]] = {}
        self._answers: dict[str, Answer] = {}
        self._is_running = False
        self._is_closed = False

    def ask(self, name: str, work: Callable[[], Any]) -> None:
        """Ask for something; what was asked under this name before, and not begun, is forgotten."""
        with self._lock:
            if self._is_closed:
                return
            self._asked[name] = work  # an older question keeps its place in the row
            if not self._is_running:
                self._is_running = True
                threading.Thread(target=self._run, name="volume page", daemon=True).start()

    def take(self) -> dict[str, Answer]:
        """Return the answers since the last time, the newest under each name."""
        with self._lock:
            answers, self._answers = self._answers, {}
            return answers

    @property
    def is_idle(self) -> bool:
        """Whether all is answered and taken."""
        with self._lock:
            return not (self._asked or self._answers or self._is_running)

    def close(self) -> None:
        """Answer nothing any more."""
        with self._lock:
            self._is_closed = True
            self._asked.clear()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._asked:
                    self._is_running = False
                    return
                name = next(iter(self._asked))
                work = self._asked.pop(name)
            try:
                answer = Answer(result=work())
            except Exception as error:  # noqa: BLE001 - it belongs to the one who asked
                answer = Answer(error=error)
            with self._lock:
                self._answers[name] = answer
