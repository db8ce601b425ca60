"""How fast the projector and its adjoint are, beside ASTRA, scikit-image and RTK (`comparison.py` says how).

RMSE is that of the projections of the phantom's voxel means, against the exact chords. The peer of eight channels is
one channel eight times.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from reconstruction.projector import Projector
from tests.benchmarks.comparison import Answer, Table, ask_about, begin, first_call_s
from tests.benchmarks.problems import Problem, cone_beam, p1, p2

N_CHANNELS = 8
PEERS = {"P1": ("astra", "skimage"), "P2": ("rtk",)}


def first_pair() -> None:
    """Project something small there and back: what a new process has to compile."""
    problem = cone_beam(16, 8)
    projector = Projector(problem.scan, problem.grid)
    projector.adjoint(projector.forward(problem.truth()))


def compare(table: Table, problem: Problem) -> None:
    """Add a pair of rows for one channel and each peer, and one for eight channels."""
    truth, exact = problem.truth(), problem.projections()
    projector = Projector(problem.scan, problem.grid)
    projections, forward = table.ours(lambda: projector.forward(truth))
    _, adjoint = table.ours(lambda: projector.adjoint(exact))
    answers = {}
    if table.with_peers:
        repeats = table.options.repeats
        answers = {
            peer: ask_about(problem, peer, ("forward", "adjoint"), repeats=repeats) for peer in PEERS[problem.name]
        }
    for operation, timing in (("forward", forward), ("adjoint", adjoint)):
        found = sorted((answer[operation] for answer in answers.values()), key=lambda answer: answer.seconds)
        for n, answer in enumerate(found or [None]):
            is_projected = answer is not None and operation == "forward" and answer.result is not None
            table.add(
                problem.name,
                operation if n == 0 else f"{operation}, next peer",
                timing,
                rmse=rms(projections - exact) if operation == "forward" else None,
                rmse_peer=rms(answer.result - exact[0]) if is_projected else None,
                n_updates=problem.n_updates,
                answer=answer,
            )
    compare_channels(table, problem, {"forward": forward.seconds, "adjoint": adjoint.seconds})


def compare_channels(table: Table, problem: Problem, one_s: dict[str, float]) -> None:
    """Add the rows of eight channels in one pass."""
    projector = Projector(problem.scan, problem.grid, n_channels=N_CHANNELS)
    volume = np.repeat(problem.truth(), N_CHANNELS, axis=0)
    projections = np.repeat(problem.projections(), N_CHANNELS, axis=0)
    for operation, work in (
        ("forward", lambda: projector.forward(volume)),
        ("adjoint", lambda: projector.adjoint(projections)),
    ):
        _, timing = table.ours(work)
        peer = Answer(peer="ours, one by one", seconds=N_CHANNELS * one_s[operation], rss_mb=0.0, result=None)
        n_updates = N_CHANNELS * problem.n_updates
        table.add(problem.name, f"{operation}, {N_CHANNELS} channels", timing, n_updates=n_updates, answer=peer)


def rms(difference: np.ndarray) -> float:
    return float(np.sqrt(np.mean(difference.astype(np.float64) ** 2)))


def main() -> None:
    table = begin(__doc__ or "")
    for problem in (p1(is_half=table.options.quick), p2(is_half=table.options.quick)):
        compare(table, problem)
    if not table.options.quick:
        table.add_first_calls("P2", "the pair", first_call_s("tests.benchmarks.projectors", "first_pair"))
    table.close()


if __name__ == "__main__":
    main()
