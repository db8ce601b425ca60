"""Only the newest question is answered, and errors come back to the one who asked."""

from __future__ import annotations

import threading
import time

from gui.volume.latest import Latest


def until_idle(latest: Latest) -> dict:
    answers = {}
    end_s = time.monotonic() + 20
    while not latest.is_idle and time.monotonic() < end_s:
        answers |= latest.take()
        time.sleep(0.002)
    return answers


def test_what_was_not_begun_is_forgotten_for_what_is_newer() -> None:
    latest, gate, begun, done = Latest(), threading.Event(), threading.Event(), []

    def first() -> int:
        begun.set()
        gate.wait(10)
        return 1

    latest.ask("slice", first)
    assert begun.wait(10)
    for n in range(2, 50):
        latest.ask("slice", lambda n=n: done.append(n) or n)
    latest.ask("other", lambda: "kept")
    gate.set()
    answers = until_idle(latest)
    assert done == [49]
    assert answers["slice"].result == 49
    assert answers["other"].result == "kept"


def test_an_error_is_an_answer_and_the_thread_goes_on() -> None:
    latest = Latest()
    latest.ask("bad", lambda: 1 / 0)
    latest.ask("good", lambda: 2)
    answers = until_idle(latest)
    assert isinstance(answers["bad"].error, ZeroDivisionError)
    assert answers["good"].result == 2


def test_what_is_closed_answers_nothing_and_leaves_no_thread() -> None:
    latest = Latest()
    latest.close()
    latest.ask("late", lambda: 1)
    assert latest.is_idle
    assert latest.take() == {}
