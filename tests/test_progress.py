"""What cannot yield by itself is run step by step all the same, and ends where nobody goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from calibration.progress import Progress, beside, finished, retold, telling

TOTAL = 5


def counted(made: list[int], fails_at: int = 0) -> Callable[[Callable[[Progress], None]], str]:
    """Return what tells of some steps and notes those that it has made."""

    def work(tell: Callable[[Progress], None]) -> str:
        for n in range(1, TOTAL + 1):
            if n == fails_at:
                raise ZeroDivisionError(n)
            tell(Progress("count", n, TOTAL))
            made.append(n)
        return "all"

    return work


def test_its_steps_are_told_in_their_order_and_its_result_is_returned() -> None:
    made: list[int] = []
    told: list[int] = []

    def note(progress: Progress) -> Progress:
        told.append(progress.done)
        return progress

    assert finished(retold(telling(counted(made)), note)) == "all"
    assert told == made == [1, 2, 3, 4, 5]


def test_nothing_is_run_before_somebody_asks_for_the_first_step() -> None:
    made: list[int] = []
    telling(counted(made)).close()
    assert made == []


def test_its_error_is_raised_after_the_steps_before_it() -> None:
    work = telling(counted([], fails_at=3))
    assert [next(work).done, next(work).done] == [1, 2]
    with pytest.raises(ZeroDivisionError):
        finished(work)


def test_it_ends_at_its_next_step_where_nobody_goes_on() -> None:
    def endless(tell: Callable[[Progress], None]) -> None:
        while True:
            tell(Progress("for ever", 0, 0))

    work = telling(endless)
    next(work)
    work.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("telling")]


def test_what_has_no_steps_is_waited_for_and_its_result_or_error_handed_on() -> None:
    def broken() -> None:
        raise ZeroDivisionError

    assert finished(beside("sum", lambda: 1 + 2)) == 3
    with pytest.raises(ZeroDivisionError):
        finished(beside("sum", broken))


def test_what_has_no_steps_is_left_to_itself_where_nobody_goes_on() -> None:
    may_end, has_ended = threading.Event(), threading.Event()

    def work() -> None:
        may_end.wait(60)
        has_ended.set()

    steps = beside("wait", work)
    assert next(steps).stage == "wait"
    steps.close()
    assert not has_ended.is_set()
    may_end.set()
    assert has_ended.wait(60)
