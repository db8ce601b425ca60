"""How soon the iterative methods are as near to the truth as the peers' are at their end (`comparison.py` says how).

A peer makes 20 iterations (10 with `--quick`), and so do we by the same method. Then our own choice of method runs
until its error is no larger than the peer's at its end, and `ours_s` is when that was. Normalisations are part of the
time, judging is not. RTK's OS-SART is asked twice: with Joseph's adjoint, and with the voxel-driven back-projection
that it takes by default. ODL is left out of P3: in three dimensions it needs CUDA.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from reconstruction.iterative import METHODS
from reconstruction.projector import Projector
from tests.benchmarks.comparison import Answer, Table, ask_about, begin, first_call_s
from tests.benchmarks.peers_work import Timing, timed
from tests.benchmarks.problems import Problem, cone_beam, p1, p3

SUBSETS, RELAXATION = 18, 0.3
"""Of RTK's OS-SART (0.3 is its default), and of ours beside it."""
SLOW_SUBSETS = {"n_subsets": SUBSETS, "has_momentum": False, "relaxation": RELAXATION}


class Row(NamedTuple):
    """One of our methods beside a peer's operation."""

    label: str
    method: str
    options: Mapping[str, Any]
    peer: str
    operation: str


ROWS = {
    "P1": (
        Row("SIRT", "sirt", {}, "astra", "sirt"),
        Row("CGLS", "cgls", {}, "astra", "cgls"),
        Row("CGLS, ODL", "cgls", {}, "odl", "cgls"),
    ),
    "P3": (
        Row("CGLS", "cgls", {}, "rtk", "cg"),
        Row(f"OS-SART {SUBSETS}", "os-sart", SLOW_SUBSETS, "rtk", "os_sart"),
        Row(f"OS-SART {SUBSETS} unmatched", "os-sart", SLOW_SUBSETS, "rtk", "os_sart_voxel_driven"),
        Row("SIRT", "sirt", {"relaxation": RELAXATION}, "rtk", "sirt"),
    ),
}
OURS = ("os-sart", {"is_non_negative": True})
"""What we would take where the peer's end is to be reached."""
AT_MOST = 100
"""Iterations in which it has to be reached."""


def iterates(problem: Problem, method: str, options: Mapping[str, Any], n_iterations: int) -> Any:
    """Return the method's generator, from the data in memory on; building the projector is part of it."""
    projections = problem.projections()

    def generator() -> Any:
        projector = Projector(problem.scan, problem.grid)
        yield from METHODS[method].run(projector, projections, n_iterations=n_iterations, **options)

    return generator()


def run(problem: Problem, method: str, options: Mapping[str, Any], n_iterations: int) -> tuple[np.ndarray, Timing]:
    """Make all iterations once; return the volume and what it took."""
    made = iterates(problem, method, options, n_iterations)
    return timed(lambda: [iterate.volume for iterate in made][-1], 1)


def time_to(problem: Problem, rmse: float, method: str, options: Mapping[str, Any]) -> tuple[int, Timing, float] | None:
    """Return after how many iterations the error is at most `rmse`, when that was, and the error; None if never."""
    truth, seconds, began = problem.truth(), 0.0, time.perf_counter()
    made = iterates(problem, method, options, AT_MOST)
    began = time.perf_counter()
    for iterate in made:
        seconds += time.perf_counter() - began
        reached = problem.rmse(iterate.volume, truth)
        if reached <= rmse:
            return iterate.number, Timing(seconds, None), reached
        began = time.perf_counter()
    return None


def first_run() -> None:
    """Do two iterations of each method on something small: what a new process has to compile."""
    problem = cone_beam(16, 8, "P3")
    for row in ROWS["P3"]:
        for _ in iterates(problem, row.method, row.options, 2):
            pass
    for _ in iterates(problem, *OURS, 2):
        pass


def compare(table: Table, problem: Problem) -> None:
    """Add each method beside its peer, and our choice at the peer's error."""
    answers: dict[str, dict[str, Answer]] = {}
    rows = [row for row in ROWS[problem.name] if f"{problem.name} {row.label}".startswith(table.options.only)]
    if not rows:
        return
    truth, n_iterations = problem.truth(), 10 if table.options.quick else 20
    if table.with_peers:
        for peer in dict.fromkeys(row.peer for row in rows):
            operations = [row.operation for row in rows if row.peer == peer]
            numbers = {"n_iterations": n_iterations, "subset_views": problem.scan.n_views // SUBSETS}
            answers[peer] = ask_about(problem, peer, operations, **numbers)
    own: dict[str, tuple[float, Timing]] = {}
    for row in rows:
        key = f"{row.method} {row.options}"
        if key not in own:
            volume, timing = run(problem, row.method, row.options, n_iterations)
            own[key] = problem.rmse(volume, truth), timing
        rmse, timing = own[key]
        answer = answers[row.peer][row.operation] if answers else None
        rmse_peer = problem.rmse(np.asarray(answer.result)[None], truth) if answer else None
        sweeps = 2 * n_iterations * problem.n_updates
        table.add(
            problem.name, f"{row.label}, {n_iterations} iterations", timing, rmse=rmse, n_updates=sweeps,
            answer=answer, rmse_peer=rmse_peer,
        )  # fmt: skip
        if answer is None or rmse_peer is None:
            continue
        reached = time_to(problem, rmse_peer, *OURS)
        if reached is None:
            print(f"{OURS[0]} does not reach {rmse_peer:.4g} in {AT_MOST} iterations", file=sys.stderr)
            continue
        n, timing, rmse = reached
        label = f"{OURS[0]} x {n} to the end of {row.label}"
        table.add(problem.name, label, timing, rmse=rmse, answer=answer, rmse_peer=rmse_peer)


def main() -> None:
    table = begin(__doc__ or "", names_rows=True)
    first_run()
    for problem in (p1(is_half=table.options.quick), p3(is_half=table.options.quick)):
        compare(table, problem)
    if not (table.options.quick or table.options.only):
        table.add_first_calls("P3", "the methods", first_call_s("tests.benchmarks.iterative", "first_run"))
    table.close()


if __name__ == "__main__":
    main()
