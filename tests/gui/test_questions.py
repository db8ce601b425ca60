"""Of each name only the newest counts, nothing piles up, errors reach the one who asked, and no thread is left."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Generator
from dataclasses import dataclass, field
from functools import partial

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from calibration.progress import Progress
from firmware_iface.errors import TransportError
from gui.questions import Lookout, Questions
from tests.gui.simulated_cable import wait_for

WAIT_S = 20.0
NAMES = st.sampled_from(("slice", "plan", "folder"))
_numbers = itertools.count()


def is_alive(name: str) -> bool:
    return name in {thread.name for thread in threading.enumerate()}


@dataclass(eq=False)
class Work:
    """Work that does what it is told, when it is told, and tells of it."""

    name: str
    has_progress: bool
    is_kept: bool
    events: queue.Queue
    orders: queue.Queue = field(default_factory=queue.Queue)

    def __call__(self) -> Work | Generator[Progress, None, Work]:
        self.events.put(("begun", self))
        return self.walk() if self.has_progress else self.do()

    def do(self) -> Work:
        if self.orders.get(timeout=WAIT_S) == "fail":
            raise Failed(self)
        return self

    def walk(self) -> Generator[Progress, None, Work]:
        try:
            while (order := self.orders.get(timeout=WAIT_S)) == "step":
                yield Progress("", 0, 0)
                self.events.put(("stepped", self))
        except GeneratorExit:
            self.events.put(("given up", self))
            raise
        if order == "fail":
            raise Failed(self)
        return self


class Failed(Exception):
    """What a work fails with."""

    def __init__(self, work: Work) -> None:
        super().__init__("failed as it was told to")
        self.work = work


class QuestionsMachine(RuleBasedStateMachine):
    """Questions against a model that has no thread; after each rule the thread has nothing to do but to wait."""

    @initialize()
    def begin(self) -> None:
        self.thread = f"questions {next(_numbers)}"
        self.events: queue.Queue = queue.Queue()
        self.told: list[tuple[str, Work]] = []
        self.questions = Questions(lambda name, error: self.tell("failed", name, error), self.thread)
        self.waiting: dict[str, Work] = {}
        self.running: Work | None = None
        self.answers: dict[str, tuple[str, Work]] = {}
        self.is_closed = False

    def tell(self, how: str, name: str, error: BaseException) -> None:
        assert isinstance(error, Failed)
        assert error.work.name == name
        self.told.append((how, error.work))

    @rule(name=NAMES, has_progress=st.booleans(), is_kept=st.booleans())
    def ask(self, name: str, has_progress: bool, is_kept: bool) -> None:
        work = Work(name, has_progress, is_kept, self.events)
        self.questions.ask(name, work, lambda found: self.told.append(("answered", found)), is_kept=is_kept)
        if not self.is_closed:
            self.waiting[name] = work
            self.go_on()

    @precondition(lambda self: self.running is not None and self.running.has_progress)
    @rule()
    def step(self) -> None:
        work = self.running
        assert work is not None
        work.orders.put("step")
        is_given_up = not work.is_kept and (self.is_closed or work.name in self.waiting)
        assert self.event() == ("given up" if is_given_up else "stepped", work)
        if is_given_up:
            self.running = None
            self.go_on()

    @precondition(lambda self: self.running is not None)
    @rule(order=st.sampled_from(("end", "fail")))
    def end(self, order: str) -> None:
        work, self.running = self.running, None
        assert work is not None
        work.orders.put(order)
        if not self.is_closed:
            self.answers.pop(work.name, None)
            self.answers[work.name] = ("answered" if order == "end" else "failed", work)
        self.go_on()

    @rule()
    def beat(self) -> None:
        self.questions.beat()
        assert self.told == list(self.answers.values())
        self.told.clear()
        self.answers.clear()

    @precondition(lambda self: not self.is_closed)
    @rule()
    def close(self) -> None:
        self.questions.close()
        self.is_closed = True
        self.answers.clear()
        self.waiting = {name: work for name, work in self.waiting.items() if work.is_kept}

    def go_on(self) -> None:
        """Wait until the thread has begun what is next, or has ended."""
        if self.running is None and self.waiting:
            self.running = self.waiting.pop(next(iter(self.waiting)))
            assert self.event() == ("begun", self.running)
        if self.running is None:
            wait_for(lambda: not is_alive(self.thread))
        assert self.questions.is_idle == (self.running is None and not self.answers)
        for name in ("slice", "plan", "folder"):
            is_running = self.running is not None and self.running.name == name
            assert self.questions.is_asked(name) == (is_running or name in self.waiting or name in self.answers)

    def event(self) -> tuple[str, Work]:
        return self.events.get(timeout=WAIT_S)

    def teardown(self) -> None:
        if not self.is_closed:
            self.close()
        while self.running is not None:
            self.end("end")
        self.beat()


QuestionsMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestQuestions = QuestionsMachine.TestCase


def test_an_answer_that_cannot_be_taken_keeps_no_other_from_being_handed_over() -> None:
    questions, taken = Questions(pytest.fail), []
    questions.ask("bad", lambda: 1, lambda _: 1 / 0)
    questions.ask("good", lambda: 2, taken.append)
    wait_for(lambda: not is_alive("questions"))
    with pytest.raises(ZeroDivisionError):
        questions.beat()
    questions.beat()
    assert taken == [2]


def test_an_error_goes_to_the_one_who_asked_before_the_one_who_is_told_otherwise() -> None:
    told: list[object] = []
    questions = Questions(lambda name, error: told.append((name, type(error))))
    questions.ask("mine", lambda: 1 / 0, otherwise=lambda error: told.append(type(error)))
    questions.ask("yours", lambda: 1 / 0)
    wait_for(lambda: not is_alive("questions"))
    questions.beat()
    assert told == [ZeroDivisionError, ("yours", ZeroDivisionError)]


def test_what_fails_after_the_end_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    questions, gate = Questions(pytest.fail), threading.Event()
    questions.ask("before", partial(gate.wait, WAIT_S))
    questions.ask("keep", lambda: 1 / 0, is_kept=True)
    questions.close()
    gate.set()
    wait_for(lambda: not is_alive("questions"))
    questions.beat()
    assert "keep: division by zero" in caplog.text


def test_a_lookout_looks_while_somebody_asks_and_not_when_nobody_does() -> None:
    lookout = Lookout("count", iter(range(1000)).__next__, 0.01)
    assert lookout.newest() is None
    wait_for(lambda: (lookout.newest() or 0) > 3)
    wait_for(lambda: not is_alive("count"))
    before = lookout.n_looks
    wait_for(lambda: lookout.newest() is not None and lookout.n_looks > before)


def test_a_look_that_fails_is_told_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    answers = iter([TransportError("no bus"), TransportError("no bus"), 7])

    def look_once() -> int:
        answer = next(answers, 7)
        if isinstance(answer, Exception):
            raise answer
        return answer

    lookout = Lookout("bus", look_once, 0.01)
    wait_for(lambda: lookout.newest() == 7)
    assert lookout.error == ""
    assert caplog.text.count("no bus") == 1
