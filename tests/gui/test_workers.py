"""Jobs in the background: they let the window's thread go first."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Generator

import pytest

from calibration.progress import Progress
from gui.workers import STEPS_BACK, Job
from reconstruction.kernels.threads import in_threads


def priorities() -> Generator[Progress, None, list[int]]:
    """Return how nice the worker's thread is, and one that it begins."""
    found: list[int] = []

    def look() -> None:
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    look()
    beside = threading.Thread(target=look)
    beside.start()
    beside.join()
    yield Progress("looking", 1, 1)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a priority for each thread")
def test_threads_of_a_job_step_back_and_the_windows_does_not() -> None:
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    job = Job("a reconstruction", priorities()).start()
    assert job.wait(10)
    assert job.result == [min(before + STEPS_BACK, 19)] * 2
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a priority for each thread")
def test_kernels_of_a_job_step_back_also_where_the_window_used_them_before() -> None:
    found: list[int] = []

    def compute(n_tasks: int) -> Generator[Progress, None, None]:
        in_threads(lambda _: found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id())), [(0,)] * n_tasks)
        yield Progress("computing", 1, 1)

    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    Job("a quick slice", compute(4)).run()
    assert Job("a reconstruction", compute(5)).start().wait(10)
    assert found == [before] * 4 + [min(before + STEPS_BACK, 19)] * 5


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a priority for each thread")
def test_work_on_the_instrument_keeps_its_priority() -> None:
    """The rig's thread runs a job itself: what reads the instrument must not wait for what computes."""
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    job = Job("a scan", priorities())
    job.run()
    assert job.result == [before] * 2
