"""Ours beside the peers': the same work in the same run, on the same processors, as a table or one JSON object.

Peers live in an environment of their own, which `make peers` makes; MPXCT_RECON_PEERS_PYTHON names another. Each does
its work in a process of its own. What is timed begins with arrays in memory and ends with the result: no import, no
compilation, no file. `rss_mb` is the peak of our process, `ratio` how many times faster ours is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tests.benchmarks.peers_work import Timing, timed
from tests.benchmarks.problems import Problem, line_integrals

HERE = Path(__file__).resolve().parent
SKIMAGE_ASIDE_MM = (-0.5, 0.5)
"""Where scikit-image has what we have on the axis, where the number of pixels is even."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a peer took and made; `result` is None where it made nothing that compares."""

    peer: str
    seconds: float
    rss_mb: float
    result: np.ndarray | None


def peers_python() -> Path:
    """Return the Python of the peers' environment, or stop, saying how to make it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    python = Path(os.environ.get("MPXCT_RECON_PEERS_PYTHON", cache / "mpxct" / "reconstruction" / "bin" / "python"))
    if not python.exists():
        sys.exit(f"the peers are not at {python}; make them by `make peers`, or say --peers none")
    return python


def ask(
    peer: str,
    operations: Sequence[str],
    *,
    arrays: Mapping[str, np.ndarray],
    numbers: Mapping[str, Any],
    repeats: int = 1,
    python: Path | None = None,
) -> dict[str, Answer]:
    """Let a peer do some operations (see `peers_PEER.py`) on arrays and numbers; return its answer to each."""
    n_threads = str(n_processors())
    threads = {"ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": n_threads, "OMP_NUM_THREADS": n_threads}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for key, array in arrays.items():
            np.save(folder / f"{key}.npy", array)
        work = {"operations": list(operations), "numbers": dict(numbers), "repeats": repeats}
        (folder / "work.json").write_text(json.dumps(work))
        command = [python or peers_python(), HERE / f"peers_{peer}.py", folder]
        done = subprocess.run(command, env=os.environ | threads, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"peers_{peer}.py failed:\n{done.stderr}")
        answer = json.loads((folder / "answer.json").read_text())
        results = {path.stem.removeprefix("result_"): np.load(path) for path in folder.glob("result_*.npy")}
    return {
        name: Answer(peer=answer["version"], result=results.get(name), **timing)
        for name, timing in answer["answers"].items()
    }


def ask_about(
    problem: Problem, peer: str, operations: Sequence[str], *, repeats: int = 1, **numbers: Any
) -> dict[str, Answer]:
    """Let a peer do some operations on a problem: its data, its truth, its rays."""
    scan = problem.scan
    arrays = {
        "projections": problem.projections()[0],
        "volume": problem.truth()[0],
        "angles_rad": problem.angles_rad,
        "vectors": np.stack([scan.source_mm, scan.detector_mm, scan.u_mm, scan.v_mm], axis=1),
    }
    if peer == "skimage":
        solids = problem.solids.copy()
        solids[:, 4:6] += SKIMAGE_ASIDE_MM
        arrays["shifted_projections"] = line_integrals(scan, solids)
    numbers |= {"rows": scan.rows, "cols": scan.cols, "shape": problem.grid.shape, "voxel_mm": problem.grid.voxel_mm}
    numbers["n_views"] = scan.n_views
    return ask(peer, operations, arrays=arrays, numbers=numbers, repeats=repeats)


def n_processors() -> int:
    """Return how many processors this process, and the peers after it, may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def result_of(work: Generator[Any, None, _T]) -> _T:
    """Run a generator to its end and return its result."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def first_call_s(module: str, function: str) -> tuple[float, float]:
    """Return the seconds that a function takes at first, with an empty cache of compiled code and with a filled one.

    It runs in a new process each time; the imports are part of it.
    """
    code = f"import time; began = time.perf_counter()\nfrom {module} import {function}; {function}()\n"
    code += "print(time.perf_counter() - began)"
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"NUMBA_CACHE_DIR": cache}
        command, root = [sys.executable, "-c", code], HERE.parents[1]
        runs = [subprocess.check_output(command, env=environment, cwd=root, text=True) for _ in range(2)]
    return float(runs[0].splitlines()[-1]), float(runs[1].splitlines()[-1])


@dataclass(slots=True)
class Table:
    """The rows of a benchmark, as they are measured."""

    options: argparse.Namespace
    rows: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    @property
    def with_peers(self) -> bool:
        """Whether the peers are asked."""
        return self.options.peers == "all"

    def ours(self, function: Callable[[], _T]) -> tuple[_T, Timing]:
        """Run something of ours once, so that it is compiled, and then some times."""
        function()
        return timed(function, self.options.repeats)

    def add(
        self,
        problem: str,
        operation: str,
        timing: Timing,
        *,
        rmse: float | None = None,
        n_updates: int | None = None,
        answer: Answer | None = None,
        rmse_peer: float | None = None,
    ) -> None:
        """Add a row: what ours took, beside what the peer took, if there is one."""
        figures = {
            "ours_s": timing.seconds,
            "peer_s": answer.seconds if answer else None,
            "peer": answer.peer if answer else None,
            "ratio": answer.seconds / timing.seconds if answer else None,
            "rmse_ours": rmse,
            "rmse_peer": rmse_peer,
            "gups": n_updates / timing.seconds / 1e9 if n_updates else None,
            "rss_mb": timing.rss_mb,
        }
        rounded = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in figures.items()}
        self.rows.setdefault(problem, {})[operation] = rounded
        if not self.options.json:
            if len(self.rows) == len(self.rows[problem]) == 1:
                print(_line("", "", dict.fromkeys(figures, None), is_head=True))
            print(_line(problem, operation, rounded), flush=True)

    def add_first_calls(self, problem: str, what: str, seconds: tuple[float, float]) -> None:
        """Add how long a function takes at first, with and without compiling."""
        for name, took in zip(("compiled", "cached"), seconds, strict=True):
            self.add(problem, f"first call of {what}, {name}", Timing(took, None))

    def close(self) -> None:
        """Print the JSON object, if that is what was wanted."""
        if self.options.json:
            print(json.dumps(self.rows))


def _line(problem: str, operation: str, figures: Mapping[str, Any], *, is_head: bool = False) -> str:
    names = ("ours_s", "peer_s", "ratio", "rmse_ours", "rmse_peer", "gups", "rss_mb")
    cells = names if is_head else ["" if figures[name] is None else f"{figures[name]:.4g}" for name in names]
    peer = "peer" if is_head else figures["peer"] or ""
    return f"{problem:<3} {operation:<48}" + "".join(f"{cell:>10}" for cell in cells) + f"  {peer}"


def begin(description: str, *, names_rows: bool = False) -> Table:
    """Read the options that all benchmarks of the reconstruction have, and `--only` where rows have names."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="half of every dimension, once")
    parser.add_argument("--peers", choices=("all", "none"), default="all", help="none: ours alone")
    parser.add_argument("--repeats", type=int, help="take the median of so many runs (3, or 1 with --quick)")
    if names_rows:
        parser.add_argument("--only", default="", metavar="ROW", help='rows that begin so, as "P3 OS-SART"')
    options = parser.parse_args()
    options.repeats = options.repeats or (1 if options.quick else 3)
    if options.peers == "all":
        peers_python()
    if not options.json:
        stamp = time.strftime("%Y-%m-%d %H:%M")
        print(f"{stamp}, {n_processors()} processors, median of {options.repeats} runs; aims are in BENCHMARKS.md")
    return Table(options)
