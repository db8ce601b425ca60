"""Cycles are freed in the thread that asks for it, and nowhere else."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from types import ModuleType

import pytest

from gui.garbage import MOST, OLDEST, Collector


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
