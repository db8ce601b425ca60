"""Work for all processors: kernels that release the interpreter, shared out among threads."""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def n_threads() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_threads(function: Callable[..., Any], tasks: Iterable[tuple[Any, ...]]) -> None:
    """Call a function with each task's arguments, as many at a time as there are processors."""
    tasks = list(tasks)
    if len(tasks) < 2 or n_threads() < 2:
        for task in tasks:
            function(*task)
        return
    list(_pool(n_threads(), os.getpid(), _niceness()).map(lambda task: function(*task), tasks))


def _niceness() -> int:
    """Return how far this thread stands back from others, which those that it begins do for as long as they live."""
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) if sys.platform == "linux" else 0


@functools.cache
def _pool(n: int, process: int, niceness: int) -> ThreadPoolExecutor:  # noqa: ARG001
    """Make threads for this process, since a forked one has none of its parent's, and for who stands as far back."""
    return ThreadPoolExecutor(n, thread_name_prefix="projector")
