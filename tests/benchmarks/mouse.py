"""What each rule of the image domain reads in the contrast-agent cuvettes of a real measured slice, and how fast.

The data are those of the tests: eight bins of a plastinated mouse beside cuvettes of iodine, barium and gadolinium,
and the decomposition matrix its authors published. Beside ours, in the same run, the plain form of the published
algorithm (minimum residual: five bounded least squares by SciPy in each voxel, then non-negative ones) and SciPy's
non-negative least squares, voxel by voxel, both on a part of the voxels, spread evenly. Times are CPU seconds of the
whole slice, least of several for ours and carried over from the part for the peers; wall times stand beside them.
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

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import lsq_linear, nnls

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from reconstruction.decompose_cli import vial_figures, vial_table
from reconstruction.decomposition import Matrix, read_matrix_csv
from reconstruction.materials import decompose_volume, read_image_folder, separate_volume
from reconstruction.quality import find_vials, k_edge_materials, vial_statistics
from reconstruction.spectral.exclusive import PUBLISHED_BOUNDS, exclusive_rule, min_residual_rule
from reconstruction.volume import Volume

ROOT = Path(__file__).resolve().parents[2]
SCALE, VOXEL_MM = 0.0453, 0.045
FIELD = 0.5


def rules(bins: Volume, matrix: Matrix, agents: tuple[str, ...]) -> dict[str, Callable[[], Volume]]:
    """Return every rule as a call that decomposes the slice."""
    exclusive = exclusive_rule(matrix.materials, dissolved=agents)
    residual = min_residual_rule(matrix.materials, dissolved=agents)
    settled = replace(exclusive, field_weight=FIELD)
    return {
        "least squares": lambda: decompose_volume(bins, matrix),
        "weighted": lambda: decompose_volume(bins, matrix, is_weighted=True),
        "non-negative": lambda: decompose_volume(bins, matrix, is_non_negative=True),
        "fractions": lambda: decompose_volume(bins, matrix, densities_g_cm3={}),
        "fractions, full": lambda: decompose_volume(bins, matrix, densities_g_cm3={}, is_full=True),
        "exclusive": lambda: separate_volume(bins, exclusive, matrix)[0],
        f"exclusive, field {FIELD:g}": lambda: separate_volume(bins, settled, matrix)[0],
        "minimum residual": lambda: separate_volume(bins, residual, matrix)[0],
    }


def timed(work: Callable[[], Volume], repeats: int) -> tuple[Volume, float, float]:
    """Return the result, the least CPU time and the least wall time, once compiled."""
    work()
    cpu_s, wall_s = [], []
    for _ in range(repeats):
        began_cpu_s, began_s = time.process_time(), time.perf_counter()
        result = work()
        cpu_s.append(time.process_time() - began_cpu_s)
        wall_s.append(time.perf_counter() - began_s)
    return result, min(cpu_s), min(wall_s)


def published(matrix: Matrix, agents: tuple[str, ...]) -> Callable[[NDArray[np.floating]], NDArray[np.float64]]:
    """Return the published minimum residual of one voxel, as its authors' program goes about it."""
    columns, names = matrix.attenuation_per_mm_per_g_cm3, matrix.materials
    bounds = [PUBLISHED_BOUNDS.get(name, (0.0, np.inf)) for name in names]
    water = names.index("water")

    def solve(u: NDArray[np.floating]) -> NDArray[np.float64]:
        alone = [lsq_linear(columns[:, [k]], u, bounds[k]) for k in range(len(names))]
        best = int(np.argmin([np.linalg.norm(fit.fun) for fit in alone]))
        found = np.zeros(len(names))
        if names[best] in agents:
            found[[water, best]] = nnls(columns[:, [water, best]], u)[0]
        else:
            found[best] = alone[best].x[0]
        return found

    return solve


def peer(
    solve: Callable[[NDArray[np.floating]], NDArray[np.float64]], bins: Volume, ours: Volume, n_voxels: int
) -> dict[str, float]:
    """Run a loop over a part of the voxels beside our result of the same rule."""
    flat = bins.values.reshape(len(bins.values), -1)
    places = np.linspace(0, flat.shape[1] - 1, n_voxels).astype(int)
    columns = np.ascontiguousarray(flat[:, places].T.astype(np.float64))
    began_s = time.process_time()
    found = np.stack([solve(u) for u in columns], axis=1)
    seconds = time.process_time() - began_s
    same = np.isclose(ours.values.reshape(len(found), -1)[:, places], found, rtol=1e-3, atol=1e-5).all(axis=0)
    return {
        "n_voxels": n_voxels,
        "us_per_voxel": 1e6 * seconds / n_voxels,
        "cpu_s_whole_slice": seconds * flat.shape[1] / n_voxels,
        "same_share": float(same.mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="fewer voxels for the peers, fewer repeats")
    options = parser.parse_args()
    folder = Path(os.environ.get("MPXCT_TEST_DATA", ROOT.parent / "shared" / "data")) / "mr-bmd"
    if not folder.is_dir():
        sys.exit(f"real data not found at {folder}; set MPXCT_TEST_DATA")
    matrix = read_matrix_csv(folder / "decomposition_matrix.csv")
    bins = read_image_folder(folder, scale=SCALE, voxel_mm=VOXEL_MM)
    agents = k_edge_materials(matrix)
    repeats, part = (2, 1) if options.quick else (7, 5)
    vials, methods, tables, results = (), {}, [], {}
    for name, work in rules(bins, matrix, agents).items():
        results[name], cpu_s, wall_s = timed(work, repeats)
        vials = vials or find_vials(results[name], agents)  # where plain least squares sees them, for all rules
        statistics = vial_statistics(results[name], vials)
        found = vial_figures(statistics)
        of = {s.vial.material: s for s in statistics}
        methods[name] = {
            "cpu_s": cpu_s,
            "wall_s": wall_s,
            "mean_g_cm3": {n: dict(zip(s.materials, s.mean_g_cm3.tolist(), strict=True)) for n, s in of.items()},
            "sd_g_cm3": {n: dict(zip(s.materials, s.sd_g_cm3.tolist(), strict=True)) for n, s in of.items()},
            "cross_talk_g_cm3": found["cross_talk_g_cm3"],
            "cross_talk_rmse_g_cm3": found["cross_talk_rmse_g_cm3"],
        }
        tables.append(f"{name}: {cpu_s:.3f} s of CPU, {wall_s:.3f} s\n{vial_table(statistics, agents)}")
    columns = matrix.attenuation_per_mm_per_g_cm3
    peers = {
        "minimum residual, SciPy": peer(published(matrix, agents), bins, results["minimum residual"], 1000 * part),
        "non-negative, SciPy": peer(lambda u: nnls(columns, u)[0], bins, results["non-negative"], 20_000 * part),
    }
    if options.json:
        print(json.dumps({"voxels": int(bins.values[0].size), "methods": methods, "peers": peers}))
        return
    print("\n\n".join(tables), end="\n\n")
    for name, figures in peers.items():
        print(
            f"{name}: {figures['us_per_voxel']:.1f} us a voxel, so {figures['cpu_s_whole_slice']:.1f} s of CPU for the "
            f"slice ({figures['n_voxels']} voxels); the same as ours in {100 * figures['same_share']:.2f} % of them"
        )


if __name__ == "__main__":
    main()
