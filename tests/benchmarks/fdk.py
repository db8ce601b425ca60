"""How fast and how right filtered back-projection is, beside ASTRA, scikit-image and RTK (`comparison.py` says how).

The error is judged inside 0.95 of the radius and 0.9 of the height. Back-projection alone takes line integrals as they
are for filtered ones: the same work. The peer of eight channels is one channel eight times.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from reconstruction.fdk import fdk, parallel_backprojection
from reconstruction.kernels import backproject_cpu
from tests.benchmarks.comparison import Answer, Table, ask_about, begin, first_call_s, result_of
from tests.benchmarks.problems import Problem, cone_beam, p1, p2

N_CHANNELS = 8


def reconstruct(problem: Problem, projections: np.ndarray) -> np.ndarray:
    """Return our volume: (n_channels, z, y, x)."""
    if problem.geometry is None:
        return result_of(parallel_backprojection(projections, problem.angles_rad, problem.grid, pitch_mm=1.0))
    return result_of(fdk(projections, problem.angles_rad, problem.geometry, problem.grid))


def back_project(problem: Problem, filtered: np.ndarray) -> np.ndarray:
    """Return what the kernel makes of (n_views, n_channels, rows, cols)."""
    to_mm = np.diag([problem.grid.voxel_mm] * 3 + [1.0])
    to_mm[:3, 3] = [axis[0] for axis in problem.grid.axes_mm()[::-1]]
    matrices = problem.scan.matrices() @ to_mm
    matrices[:, [0, 2], 2] = 0.0  # but for rounding, they are: the detector stands upright
    volume = np.zeros((filtered.shape[1], *problem.grid.shape), np.float32)
    backproject_cpu.backproject(volume, filtered, matrices, np.ones(problem.scan.n_views))
    return volume


def first_reconstruction() -> None:
    """Reconstruct something small: what a new process has to compile."""
    problem = cone_beam(16, 24)
    reconstruct(problem, problem.projections())


def compare_slice(table: Table, problem: Problem) -> None:
    """Add filtered back-projection of parallel rays beside ASTRA's and scikit-image's."""
    truth, projections = problem.truth(), problem.projections()
    volume, timing = table.ours(lambda: reconstruct(problem, projections))
    found: list[Answer] = []
    if table.with_peers:
        asked = (ask_about(problem, peer, ("fbp",), repeats=table.options.repeats) for peer in ("astra", "skimage"))
        found = sorted((answers["fbp"] for answers in asked), key=lambda answer: answer.seconds)
    for n, answer in enumerate(found or [None]):
        table.add(
            problem.name,
            "FBP" if n == 0 else "FBP, next peer",
            timing,
            rmse=problem.rmse(volume, truth),
            n_updates=problem.n_updates,
            answer=answer,
            rmse_peer=answer and problem.rmse(np.asarray(answer.result)[None], truth),
        )


def compare_volume(table: Table, problem: Problem) -> None:
    """Add FDK and its back-projection beside RTK's, and of eight channels."""
    truth, projections = problem.truth(), problem.projections()
    volume, whole = table.ours(lambda: reconstruct(problem, projections))
    rmse = problem.rmse(volume, truth)
    filtered = np.ascontiguousarray(projections.swapaxes(0, 1))
    _, back = table.ours(lambda: back_project(problem, filtered))
    answers = ask_about(problem, "rtk", ("fdk", "back"), repeats=table.options.repeats) if table.with_peers else {}
    answer = answers.get("fdk")
    table.add(
        problem.name,
        "FDK",
        whole,
        rmse=rmse,
        n_updates=problem.n_updates,
        answer=answer,
        rmse_peer=answer and problem.rmse(np.asarray(answer.result)[None], truth),
    )
    table.add(problem.name, "back-projection", back, n_updates=problem.n_updates, answer=answers.get("back"))
    channels = np.repeat(projections, N_CHANNELS, axis=0)
    _, timing = table.ours(lambda: reconstruct(problem, channels))
    table.add(
        problem.name,
        f"FDK, {N_CHANNELS} channels",
        timing,
        n_updates=N_CHANNELS * problem.n_updates,
        answer=Answer(peer="ours, one by one", seconds=N_CHANNELS * whole.seconds, rss_mb=0.0, result=None),
    )


def main() -> None:
    table = begin(__doc__ or "")
    compare_slice(table, p1(is_half=table.options.quick))
    compare_volume(table, p2(is_half=table.options.quick))
    if not table.options.quick:
        table.add_first_calls("P2", "FDK", first_call_s("tests.benchmarks.fdk", "first_reconstruction"))
    table.close()


if __name__ == "__main__":
    main()
