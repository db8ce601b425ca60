"""Work that a peer does in a Python of its own, and how it is timed there and here: nothing but NumPy is needed.

A folder holds `work.json` (what to do), the arrays of it (`NAME.npy`), and afterwards `answer.json` and the results.
"""

from __future__ import annotations

import contextlib
import json
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

AT_MOST_S = 20.0
"""What was repeated for so long is not repeated again."""


class Timing(NamedTuple):
    """The median of some runs, and the peak of the process's memory while they went on; None where nobody looked."""

    seconds: float
    rss_mb: float | None


Operation = Callable[[dict[str, Any], int], tuple[Any, Timing]]
"""What a peer can do with the arrays and numbers of the work, so many times."""


def timed(function: Callable[[], Any], repeats: int) -> tuple[Any, Timing]:
    """Run a function some times; return what it returned last, and how long it took and how much memory it held."""
    _forget_peak()
    times, result = [], None
    while len(times) < repeats and sum(times) < AT_MOST_S:
        result = None  # else the former result is part of the peak
        began = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - began)
    return result, Timing(statistics.median(times), peak_mb())


def peak_mb() -> float:
    """Return the most memory that this process held, in 1e6 bytes, since the peak was forgotten (on Linux), or ever."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) * 1024 / 1e6
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def _forget_peak() -> None:
    with contextlib.suppress(OSError):  # where it cannot be, the peak is that of the whole process
        Path("/proc/self/clear_refs").write_text("5")  # see proc(5): resets the peak resident set size


def serve(folder: Path, version: str, operations: Mapping[str, Operation]) -> None:
    """Do the operations that the folder asks for.

    Parameters
    ----------
    version : str
        Name and version of the peer.
    operations : mapping of name to function
        Each returns an array, or None, and its timing.
    """
    work = json.loads((folder / "work.json").read_text())
    data = {path.stem: np.load(path) for path in folder.glob("*.npy")} | work["numbers"]
    answers = {}
    for name in work["operations"]:
        result, timing = operations[name](data, work["repeats"])
        if result is not None:
            np.save(folder / f"result_{name}.npy", result)
        answers[name] = timing._asdict()
    (folder / "answer.json").write_text(json.dumps({"version": version, "answers": answers}))
