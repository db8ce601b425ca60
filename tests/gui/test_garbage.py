"""Cycles are freed in the thread that asks for it, and nowhere else."""

from __future__ import annotations

import gc
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from types import ModuleType

import pytest

from gui.garbage import MOST, OLDEST, Collector
from gui.window import TURN_S


class Cycle:
    def __init__(self, freed_in: list[int]) -> None:
        self.me = self
        weakref.finalize(self, lambda: freed_in.append(threading.get_ident()))


def test_no_other_thread_frees_a_cycle() -> None:
    freed_in: list[int] = []
    collector = Collector()
    gc.enable()  # the fixture of this folder has it off
    collector.begin()
    try:
        Cycle(freed_in)
        other = threading.Thread(target=lambda: [[n] for n in range(100_000)])
        other.start()
        other.join()
        assert not freed_in
        while not freed_in:
            kept = [[n] for n in range(1000)]
            assert collector.collect() is not None
            assert kept
        assert freed_in == [threading.get_ident()]
    finally:
        collector.end()
        gc.disable()


def test_the_work_is_given_back() -> None:
    collector = Collector()
    gc.enable()  # the fixture of this folder has it off
    collector.begin()
    assert not gc.isenabled()
    collector.end()
    assert gc.isenabled()
    gc.disable()  # as the fixture of this folder left it


def test_nothing_is_collected_before_its_time() -> None:
    gc.collect()
    assert Collector().collect() is None


def test_many_new_objects_are_looked_through_before_they_are_too_many_and_what_is_kept_is_lasting() -> None:
    collector = Collector()
    gc.enable()  # the fixture of this folder has it off
    collector.begin()
    try:
        few = [[n] for n in range(MOST // 2)]
        assert collector.collect() == 0
        n_before = gc.get_freeze_count()
        many = [[n] for n in range(MOST)]
        assert collector.collect() == OLDEST
        assert gc.get_freeze_count() >= n_before + len(few) + len(many)
        assert collector.collect() is None
    finally:
        collector.end()
        gc.disable()


def test_what_was_loaded_is_not_looked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    collector = Collector()
    gc.enable()  # the fixture of this folder has it off
    collector.begin()
    try:
        lasting = [[n] for n in range(100_000)]
        monkeypatch.setitem(sys.modules, "a_module_of_this_test", ModuleType("a_module_of_this_test"))
        n_before = gc.get_freeze_count()
        assert collector.collect() is None
        assert gc.get_freeze_count() >= n_before + len(lasting)
    finally:
        collector.end()
        gc.disable()


def test_tuples_that_other_threads_are_making_are_left_alone() -> None:
    """To list all objects gives each another owner, and a tuple with two cannot grow to its size: a SystemError."""

    def slow() -> Iterator[int]:
        for n in range(40):
            [None for _ in range(200)]
            yield n

    def make() -> None:
        while not is_over.is_set():
            try:
                tuple(slow())
            except SystemError as error:
                broken.append(error)

    broken: list[SystemError] = []
    generations: set[int | None] = set()
    is_over = threading.Event()
    turn_s = sys.getswitchinterval()
    sys.setswitchinterval(TURN_S)
    collector = Collector()
    collector.begin()
    lasting = [[n] for n in range(MOST // 2)]
    threads = [threading.Thread(target=make) for _ in range(2)]
    try:
        for thread in threads:
            thread.start()
        end_s = time.monotonic() + 3.0
        while time.monotonic() < end_s:
            for _ in range(MOST):
                cycle: list[object] = []
                cycle.append(cycle)
            generations.add(collector.collect())
        assert lasting
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
        collector.end()
        gc.disable()
        sys.setswitchinterval(turn_s)
    assert OLDEST in generations
    assert not broken
