"""Filtered back-projection of a volume larger than memory, into a file, against the predicted time and memory.

    python tests/benchmarks/large.py --size 2048 --memory 12GiB

A cone scan of N views of N x N pixels into N^3 voxels. The line integrals are exact chords through ellipsoids, made
block by block when they are read, so that nothing of the scan is held; their making counts as reading. The file is
checked against the ellipsoids in slices near the bottom, in the middle and near the top, and deleted.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from numba import njit
from numpy.typing import NDArray

from calibration.geometry import Geometry
from reconstruction.kernels.threads import in_threads
from reconstruction.size import budget, slabs
from reconstruction.size.volume_writer import partial_volume_path
from reconstruction.volume import Grid, Volume, load_volume
from tests.benchmarks.peers_work import peak_mb

SOURCE_TO_OBJECT, SOURCE_TO_DETECTOR = 1000.0, 1500.0
WIDTH_MM = 100.0
"""Edge of the volume."""
SOLIDS = np.array(
    [
        # centre, half axes (shares of the volume's edge), attenuation in 1/mm
        [0.00, 0.00, 0.00, 0.44, 0.44, 0.40, 0.02],
        [0.18, 0.05, 0.05, 0.10, 0.14, 0.20, -0.01],
        [-0.2, 0.10, -0.15, 0.12, 0.06, 0.10, 0.02],
        [0.05, -0.22, 0.25, 0.05, 0.05, 0.05, 0.03],
    ]
)


@njit(cache=True, nogil=True, fastmath=True)
def _chords(
    source: NDArray[np.float64],
    first: NDArray[np.float64],
    u: NDArray[np.float64],
    v: NDArray[np.float64],
    solids: NDArray[np.float64],
    image: NDArray[np.float32],
) -> None:
    """Fill an image with line integrals; `first` is the centre of its first pixel, as seen from the source."""
    rows, cols = image.shape
    for row in range(rows):
        for col in range(cols):
            image[row, col] = 0
        for k in range(len(solids)):
            half = solids[k, 3:6]
            away = (source - solids[k, :3]) / half
            begin, step = (first + row * v) / half, u / half
            plain_begin = first + row * v
            c = (away * away).sum() - 1
            for col in range(cols):
                x, y, z = begin[0] + col * step[0], begin[1] + col * step[1], begin[2] + col * step[2]
                a, b = x * x + y * y + z * z, x * away[0] + y * away[1] + z * away[2]
                square = b * b - a * c
                if square > 0:
                    px, py, pz = (
                        plain_begin[0] + col * u[0],
                        plain_begin[1] + col * u[1],
                        plain_begin[2] + col * u[2],
                    )
                    length = np.sqrt(px * px + py * py + pz * pz)
                    image[row, col] += solids[k, 6] * 2 * np.sqrt(square) / a * length


@dataclass(frozen=True)
class Phantom:
    """The scan; a `slabs.Source` that opens itself."""

    size: int
    n_views: int

    def __call__(self) -> Phantom:
        return self

    @property
    def geometry(self) -> Geometry:
        pitch_mm = WIDTH_MM / self.size * SOURCE_TO_DETECTOR / SOURCE_TO_OBJECT * 1.05
        return Geometry(
            source_to_detector_mm=SOURCE_TO_DETECTOR,
            source_to_object_mm=SOURCE_TO_OBJECT,
            pitch_mm=pitch_mm,
            rows=self.size,
            cols=self.size,
        )

    @property
    def grid(self) -> Grid:
        return Grid(shape=(self.size,) * 3, voxel_mm=WIDTH_MM / self.size)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return 1, self.n_views, self.size, self.size

    @property
    def angles_rad(self) -> NDArray[np.float64]:
        return np.arange(self.n_views) * 2 * np.pi / self.n_views

    @property
    def lifts_mm(self) -> NDArray[np.float64]:
        return np.zeros(self.n_views)

    def read(self, views: slice, rows: slice) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        geometry = self.geometry
        first_row, stop_row, _ = rows.indices(self.size)
        poses = geometry.views(self.angles_rad[views])
        values = np.empty((1, len(poses.source_mm), stop_row - first_row, self.size), np.float32)
        solids = SOLIDS * ([WIDTH_MM] * 6 + [1.0])

        def of_view(i: int) -> None:
            u, v = poses.u_mm[i], poses.v_mm[i]
            middle = (self.size - 1) / 2
            first = poses.detector_mm[i] - poses.source_mm[i] - middle * u + (first_row - middle) * v
            _chords(poses.source_mm[i], first, u, v, solids, values[0, i])

        in_threads(of_view, [(i,) for i in range(values.shape[1])])
        return values, np.zeros(values.shape, bool)

    def truth(self, number: int) -> NDArray[np.float64]:
        """Return one slice of what was scanned."""
        z, y, x = self.grid.axes_mm()
        total = np.zeros((self.size, self.size))
        for cx, cy, cz, a, b, c, per_mm in SOLIDS * ([WIDTH_MM] * 6 + [1.0]):
            inside = ((x - cx) / a) ** 2 + ((y[:, None] - cy) / b) ** 2 + ((z[number] - cz) / c) ** 2 < 1
            total += per_mm * inside
        return total


def measure(size: int, n_views: int, memory_bytes: int, folder: Path) -> dict[str, object]:
    """Reconstruct, and say how it went."""
    source = Phantom(size, n_views)
    job = slabs.Job(open_source=source, grid=source.grid)
    problem = slabs.problem_of(source, source.grid)
    path = folder / f"large_{size}.h5"
    _warm_up(folder)
    layout = budget.plan_fdk(problem, memory_bytes)
    costs = slabs.measure_costs(job, source, path, layout.slabs[0])
    seconds = budget.predict_s(problem, layout.slabs, layout.views_per_block, costs)
    layout = replace(layout, predicted_s=seconds)
    print(layout.words(), file=sys.stderr)
    planned = Volume.planned(1, source.grid, channels=("phantom",), unit="1/mm")
    began_s, at_s = time.perf_counter(), 0.0
    try:
        for step in slabs.reconstruct(job, planned, path, memory_bytes=memory_bytes, recipe=f"large {size}"):
            if time.perf_counter() - at_s > 30:
                at_s = time.perf_counter()
                print(f"{step.stage}: {step.done} of {step.total}, {at_s - began_s:.0f} s", file=sys.stderr)
        seconds = time.perf_counter() - began_s
        peak_bytes = 1e6 * peak_mb()
        loaded = load_volume(path)
        errors = {}
        for share in (0.25, 0.5, 0.75):
            number = int(share * size)
            truth = source.truth(number)
            errors[f"{share:g}"] = float(np.sqrt(np.mean((loaded.values[0, number] - truth) ** 2)))
        n_bytes = path.stat().st_size
    finally:
        path.unlink(missing_ok=True)
        partial_volume_path(path).unlink(missing_ok=True)
    return {
        "predicted_s": layout.predicted_s,
        "measured_s": seconds,
        "measured_over_predicted": seconds / (layout.predicted_s or float("nan")),
        "predicted_peak_gb": layout.peak_bytes / 1e9,
        "peak_rss_gb": peak_bytes / 1e9,
        "memory_gb": memory_bytes / 1e9,
        "slabs": len(layout.slabs),
        "views_per_block": layout.views_per_block,
        "written_gb": n_bytes / 1e9,
        "giga_updates_per_s": problem.n_updates / seconds / 1e9,
        "rmse_per_mm": errors,
        "costs": {name: getattr(costs, name) for name in costs.__slots__},
    }


def _warm_up(folder: Path) -> None:
    """Compile."""
    small = Phantom(32, 32)
    job = slabs.Job(open_source=small, grid=small.grid)
    planned = Volume.planned(1, small.grid, channels=("phantom",), unit="1/mm")
    path = folder / "warm.h5"
    for _ in slabs.reconstruct(job, planned, path, memory_bytes=10**9, recipe="warm"):
        pass
    path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, action="append", help="voxels along an edge; may be given several times")
    parser.add_argument("--views", type=int, help="as many as voxels along an edge, unless told")
    parser.add_argument("--memory", help="for the process; default: a share of what is free")
    parser.add_argument("--folder", type=Path, help="where the volume is written; default: the temporary folder")
    parser.add_argument("--quick", action="store_true", help="128^3 only")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    memory_bytes = (
        budget.parse_bytes(options.memory) if options.memory else int(budget.DEFAULT_SHARE * budget.available_bytes())
    )
    sizes = [128] if options.quick else options.size or [512]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        results = {str(size): measure(size, options.views or size, memory_bytes, Path(folder)) for size in sizes}
    if options.json:
        print(json.dumps(results))
        return
    for size, told in results.items():
        print(f"{size}^3 from {options.views or size} views")
        for name, value in told.items():
            print(f"  {name:<24} {value:.4g}" if isinstance(value, float) else f"  {name:<24} {value}")


if __name__ == "__main__":
    main()
