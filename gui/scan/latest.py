"""Questions that take longer than a window may wait: the newest is answered in a thread, those before it forgotten."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Latest(Generic[T]):
    """Answers the newest of the questions it was asked; the thread ends when there is no other.

    Attributes
    ----------
    answer : T or None
        To the last question that was answered; may come in parts, each better than the one before.
    error : Exception or None
        Why there is none to the last one.
    n_answers : int
        Grows with each, so that who looks knows whether anything is new.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._question: Callable[[], Iterator[T]] | None = None
        self._is_running = False
        self.answer: T | None = None
        self.error: Exception | None = None
        self.n_answers = 0

    def ask(self, question: Callable[[], Iterator[T]]) -> None:
        """Have this answered next; it yields the answer, or several."""
        with self._lock:
            self._question = question
            if self._is_running:
                return
            self._is_running = True
        threading.Thread(target=self._serve, name="question", daemon=True).start()

    @property
    def is_busy(self) -> bool:
        """Whether an answer is still to come."""
        return self._is_running

    def _serve(self) -> None:
        while True:
            with self._lock:
                question, self._question = self._question, None
                if question is None:
                    self._is_running = False
                    return
            try:
                for answer in question():
                    if self._question is not None:
                        break
                    self.answer, self.error = answer, None
                    self.n_answers += 1
            except Exception as error:  # noqa: BLE001 - it is told where the answer would stand
                _log.exception("a question could not be answered")
                self.answer, self.error = None, error
                self.n_answers += 1
