"""Three tiers of material decomposition on the problem of Mory 2018, at a stated prior and at matched sharpness.

Counts of five bins behind squares of water, iodine and gadolinium (`mory_problem`). Errors are those of the means in
the squares less two pixels at their edges; spreads are quoted as they come, and of maps blurred to one sharpness. The
one step is counted from filtered back-projections of paths (iteration 0 is the start), and from nothing. Beside it, in
the same run, itk-rtk's simplex on some of the rays, and its one-step filter on the same object with fewer pixels.

`s_per_iteration` and `us_per_ray` are of processor time, all threads together, so that other work on the machine does
not count; `wall_s_per_iteration` is what the clock says.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from numpy.typing import NDArray

from reconstruction.decomposition import bin_covariance, decompose
from reconstruction.fdk import parallel_backprojection
from reconstruction.onestep import one_step
from reconstruction.projector import Projector
from reconstruction.spectral.compression import compress
from reconstruction.spectral.model import SpectralModel
from reconstruction.spectral.ray_fit import fit_rays
from tests.benchmarks.comparison import ask, peers_python, result_of
from tests.benchmarks.mory_problem import (
    BIN_EDGES_KEV,
    DENSITIES_G_CM3,
    EDGE_MM,
    MATERIALS,
    MG_PER_G,
    SQUARES,
    MoryProblem,
    blurred,
    by_material,
    mtf50_per_mm,
)

ROOT = Path(__file__).resolve().parents[2]
TIERS = ("image", "projection", "onestep")
WATER_MM = 130.0
"""Behind so much water the image tier takes the attenuation of its materials."""
PRIOR_SD = np.array([0.3, 0.3, np.inf]) * DENSITIES_G_CM3
"""mm g/cm3: 0.3 mm of the pure contrast agents."""
HIGHEST_PATHS = (1.0, 1.0, 300.0)
"""mm g/cm3, for which the spectrum is compressed."""
PRIOR, STRENGTH = "huber", 1.0
"""Of the one step, in units of the noise."""
N_ITERATIONS = 20
SHARPNESS_PIXELS = 1.5
"""Gaussian blur that all maps are brought to at least, where they are compared at one sharpness."""
ENDURED = (1, 2, 4, 8, 16)
RTK_ONE_STEPS = ("one_step_default", "one_step", "one_step_reset", "one_step_whole")
"""RTK's with its default of iterations and four subsets, with more of them, its momentum reset, without subsets."""
RTK_DEFAULT_ITERATIONS = 5
RTK_UNITS_G_CM3 = np.array([0.01, 0.01, 1.0])
"""Of RTK's unknowns: its curvatures are of single precision, and volume fractions of metals part them by 1e8."""

Volume = NDArray[np.floating[Any]]


def main() -> None:
    options = read_options()
    scanner = options.response or Path(os.environ.get("MPXCT_TEST_DATA", ROOT.parent / "shared" / "data")) / (
        "mory2018_scanner_model"
    )
    if not scanner.exists():
        sys.exit(f"no scanner model at {scanner}; set MPXCT_TEST_DATA, or name one by --response")
    problem = MoryProblem.simulate(scanner, n=128 if options.quick else 256, seed=options.seed)
    tiers = [options.tier] if options.tier else list(TIERS)
    found: dict[str, dict[str, Any]] = {}
    maps: dict[str, Volume] = {}
    model = compress(problem.model, HIGHEST_PATHS).model
    for tier in tiers:
        maps[tier], found[tier] = RUN[tier](problem, model)
        found[tier] |= figures(problem, maps[tier])
        found[tier]["edge_sd_mm"] = edges(problem, tier, maps[tier])
    add_matched(problem, maps, found)
    if options.endurance:
        found["endurance"] = endurance(problem, model)
    if options.peers == "all":
        found |= peers(scanner, options, model)
    if options.json:
        print(json.dumps(found))
    else:
        print_table(found, problem)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="half of every dimension")
    parser.add_argument("--peers", choices=("all", "none"), default="all", help="none: ours alone")
    parser.add_argument("--tier", choices=TIERS, help="this one alone")
    parser.add_argument("--response", type=Path, help="another scanner: a folder of .mat files, or one .npz")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--endurance", action="store_true", help="200 iterations of the one step at any subsets")
    options = parser.parse_args()
    if options.peers == "all":
        peers_python()
    return options


def image_tier(problem: MoryProblem, model: SpectralModel) -> tuple[Volume, dict[str, Any]]:
    """Back-project the bins' logarithms; take each voxel apart by the attenuation behind some water."""
    began = time.process_time()
    opened = problem.open_counts[:, None, None, None]
    behind = np.array([0.0, 0.0, WATER_MM])
    matrix = -model.slopes(behind) / model.transmission(behind)[:, None]
    bins = back_projected(problem, np.log(opened / np.maximum(problem.counts, 0.5)))
    volume = decompose(bins, matrix, covariance=bin_covariance(bins))
    return volume, {"seconds": time.process_time() - began}


def projection_tier(problem: MoryProblem, model: SpectralModel) -> tuple[Volume, dict[str, Any]]:
    """Take each ray apart; back-project its paths."""
    fit_rays(problem.counts[:, :1], problem.open_counts, model, prior_sd=PRIOR_SD)
    times = []
    paths = problem.paths
    for _ in range(3):
        began = time.process_time()
        paths = fit_rays(problem.counts, problem.open_counts, model, prior_sd=PRIOR_SD).paths
        times.append(time.process_time() - began)
    volume = back_projected(problem, paths)
    return volume, {"us_per_ray": 1e6 * min(times) / paths[0].size, **problem.ray_figures(paths)}


def one_step_tier(problem: MoryProblem, model: SpectralModel) -> tuple[Volume, dict[str, Any]]:
    """From filtered back-projections of paths, and from nothing."""
    start = back_projected(problem, fit_rays(problem.counts, problem.open_counts, model, prior_sd=PRIOR_SD).paths)
    found: dict[str, Any] = {"prior": PRIOR, "strength": STRENGTH, "iterations": N_ITERATIONS}
    volume = start
    for name, first in (("", start), ("_from_nothing", None)):
        shares = [problem.worst_share(start if first is not None else np.zeros_like(start))]
        cpu, wall = [time.process_time()], [time.perf_counter()]
        for iterate in iterates(problem, model, start=first):
            cpu.append(time.process_time())
            wall.append(time.perf_counter())
            shares.append(problem.worst_share(iterate.volume))
            if first is not None:
                volume = iterate.volume
            cpu[-1], wall[-1] = cpu[-1], wall[-1]
        found |= {f"iterations_to_{limit}{name}": first_within(shares, limit / 100) for limit in (20, 10)}
        found |= {
            f"s_per_iteration{name}": float(np.median(np.diff(cpu)[1:])),
            f"wall_s_per_iteration{name}": float(np.median(np.diff(wall)[1:])),
            f"s_before_the_second{name}": cpu[1] - cpu[0],
        }
    return volume, found


def iterates(problem: MoryProblem, model: SpectralModel, **options: Any) -> Any:
    projector = Projector(problem.scan, problem.grid, n_channels=len(MATERIALS))
    chosen = {"prior": PRIOR, "strength": STRENGTH, "n_iterations": N_ITERATIONS} | options
    return one_step(projector, problem.counts, model, open_counts=problem.open_counts, **chosen)


RUN: dict[str, Callable[[MoryProblem, SpectralModel], tuple[Volume, dict[str, Any]]]] = {
    "image": image_tier,
    "projection": projection_tier,
    "onestep": one_step_tier,
}


def back_projected(problem: MoryProblem, paths: Volume) -> NDArray[np.float32]:
    return result_of(
        parallel_backprojection(
            np.ascontiguousarray(paths, np.float32), problem.angles_rad, problem.grid, pitch_mm=problem.voxel_mm
        )
    )


def first_within(shares: list[float], limit: float) -> int | None:
    """Return the first iteration from which on all are within a tolerance; None if the last is not."""
    outside = [number for number, share in enumerate(shares) if not share <= limit]
    first = outside[-1] + 1 if outside else 0
    return first if first < len(shares) else None


def figures(problem: MoryProblem, volume: Volume) -> dict[str, Any]:
    """Return bias and spread of each material in its square, mg/mL."""
    means, spreads = problem.statistics(volume)
    truth = np.array([value for value, _ in SQUARES])
    return {
        "bias_mg_ml": by_material(means - truth, MG_PER_G),
        "sd_mg_ml": by_material(spreads, MG_PER_G),
        "relative_mse": by_material(((volume - problem.truth) ** 2).sum((1, 2, 3)) / (problem.truth**2).sum((1, 2, 3))),
    }


def edges(problem: MoryProblem, tier: str, volume: Volume) -> dict[str, float]:
    """Return how blurred each material's square is; of tiers that back-project, by their filter and without noise."""
    volume = volume if tier == "onestep" else back_projected(problem, problem.paths)
    return by_material([problem.edge_sd_mm(volume, k) for k in range(3)])


def add_matched(problem: MoryProblem, maps: dict[str, Volume], found: dict[str, dict[str, Any]]) -> None:
    """Blur the maps of each material to the least sharp of all tiers, and quote the figures again."""
    of_all = np.array([[found[tier]["edge_sd_mm"][name] for name in MATERIALS] for tier in maps])
    wanted = np.maximum(of_all.max(axis=0), SHARPNESS_PIXELS * problem.voxel_mm)
    for tier, own in zip(maps, of_all, strict=True):
        blurs = np.sqrt(wanted**2 - own**2) / problem.voxel_mm
        means, spreads = problem.statistics(blurred(maps[tier], blurs))
        truth = np.array([value for value, _ in SQUARES])
        found[tier]["matched"] = {
            "mtf50_per_mm": by_material([mtf50_per_mm(sd) for sd in wanted]),
            "bias_mg_ml": by_material(means - truth, MG_PER_G),
            "sd_mg_ml": by_material(spreads, MG_PER_G),
        }


def endurance(problem: MoryProblem, model: SpectralModel) -> dict[str, Any]:
    """Return, for some numbers of subsets, the least and the last objective of 200 iterations without a prior."""
    found = {}
    start = back_projected(problem, fit_rays(problem.counts, problem.open_counts, model, prior_sd=PRIOR_SD).paths)
    for n in ENDURED:
        told, last = [], start
        for iterate in iterates(problem, model, start=start, prior=None, n_subsets=n, n_iterations=200):
            told.append(iterate.objective)
            last = iterate.volume
        means, _ = problem.statistics(last)
        found[str(n)] = {"first": told[0], "least": min(told), "last": told[-1], "means": by_material(means, MG_PER_G)}
    return found


def peers(scanner: Path, options: argparse.Namespace, model: SpectralModel) -> dict[str, dict[str, Any]]:
    """Let RTK do the same: the simplex on some views, the one step with half of our pixels, and ours beside it."""
    n = 64 if options.quick else 128
    problem = MoryProblem.simulate(scanner, n=n, seed=options.seed)
    few = slice(None, None, 24)
    seen = problem.arrays["detectorResponse"]
    arrays = {
        "counts": problem.counts[:, :, 0],
        "few_counts": problem.counts[:, few, 0],
        "angles_rad": problem.angles_rad,
        "spectrum": problem.arrays["incidentSpectrum"].ravel(),
        "response": seen,
        "binned_response": np.stack([seen[first - 1 : last].sum(axis=0) for first, last in BIN_EDGES_KEV]),
        "attenuation_per_mm": problem.arrays["materialAttenuations"],
        "unit_attenuation_per_mm": problem.arrays["materialAttenuations"] * RTK_UNITS_G_CM3 / DENSITIES_G_CM3,
        "thresholds_kev": np.array([first for first, _ in BIN_EDGES_KEV], float),
    }
    numbers = {"n": n, "voxel_mm": EDGE_MM / n, "n_iterations": 10 if options.quick else 20}
    answers = ask("rtk_spectral", ["simplex", *RTK_ONE_STEPS], arrays=arrays, numbers=numbers)
    found: dict[str, dict[str, Any]] = {}
    simplex = answers["simplex"]
    paths = np.asarray(simplex.result)[:, :, None] * DENSITIES_G_CM3[:, None, None, None]
    part = replace(problem, counts=problem.counts[:, few], paths=problem.paths[:, few])
    found["rtk_simplex"] = {"us_per_ray": 1e6 * simplex.seconds / paths[0].size, **part.ray_figures(paths)}
    for name in RTK_ONE_STEPS:
        answer = answers[name]
        volume = np.asarray(answer.result) * RTK_UNITS_G_CM3[:, None, None, None]
        n_iterations = RTK_DEFAULT_ITERATIONS if name == "one_step_default" else numbers["n_iterations"]
        found[f"rtk_{name}"] = {
            "n": n,
            "peer": answer.peer,
            "iterations": n_iterations,
            "wall_s_per_iteration": answer.seconds / n_iterations,
            "is_finite": bool(np.isfinite(volume).all()),
        }
        if found[f"rtk_{name}"]["is_finite"]:
            found[f"rtk_{name}"] |= figures(problem, volume)
    volume, ours = one_step_tier(problem, model)
    found["onestep_beside_rtk"] = ours | {"n": n} | figures(problem, volume)
    return found


def print_table(found: dict[str, dict[str, Any]], problem: MoryProblem) -> None:
    """Print what was found, a line for each tier."""
    print(f"{time.strftime('%Y-%m-%d %H:%M')}, {problem.n} x {problem.n}, {len(problem.angles_rad)} views; mg/mL")
    print(f"{'tier':<20}{'':>9}" + "".join(f"{name:>22}" for name in MATERIALS))
    for tier, values in found.items():
        for kind, of in (("", values), ("matched", values.get("matched", {}))):
            if "bias_mg_ml" in of:
                cells = [f"{of['bias_mg_ml'][name]:+.3g} +- {of['sd_mg_ml'][name]:.3g}" for name in MATERIALS]
                print(f"{tier:<20}{kind:>9}" + "".join(f"{cell:>22}" for cell in cells))
        own = {key: value for key, value in values.items() if not isinstance(value, dict) or "over" in key}
        print("    " + ", ".join(f"{key} {round_off(value)}" for key, value in own.items()))


def round_off(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{part:.3g}" for part in value.values())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
