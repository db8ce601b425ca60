"""How fast and how right the filtered back-projection is: giga voxel updates per second, and error of the phantom.

The work is one cone-beam scan: 256^3 voxels, 360 views, 256 x 256 pixels of pitch 1.55, source to axis 1000, source to
detector 1500 (in voxels); `--quick` has half of each. Projections are exact chords through ellipsoids; the
error is the root mean square over all voxels against the phantom's mean in each.

# Ref: the ellipsoids are those of the modified Shepp-Logan phantom in M. Schabel's `phantom3d`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from numba import njit, prange

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from calibration.geometry import Geometry
from reconstruction.fdk import fdk
from reconstruction.kernels import backproject_cpu
from reconstruction.kernels.threads import in_threads
from reconstruction.scan_geometry import ScanGeometry
from reconstruction.volume import Grid

# value, half axes x y z, centre x y z, turn about z in degrees; in halves of the volume's edge
ELLIPSOIDS = np.array(
    [
        [1.0, 0.69, 0.92, 0.81, 0, 0, 0, 0],
        [-0.8, 0.6624, 0.874, 0.78, 0, -0.0184, 0, 0],
        [-0.2, 0.11, 0.31, 0.22, 0.22, 0, 0, -18],
        [-0.2, 0.16, 0.41, 0.28, -0.22, 0, 0, 18],
        [0.1, 0.21, 0.25, 0.41, 0, 0.35, -0.15, 0],
        [0.1, 0.046, 0.046, 0.05, 0, 0.1, 0.25, 0],
        [0.1, 0.046, 0.046, 0.05, 0, -0.1, 0.25, 0],
        [0.1, 0.046, 0.023, 0.05, -0.08, -0.605, 0, 0],
        [0.1, 0.023, 0.023, 0.02, 0, -0.606, 0, 0],
        [0.1, 0.023, 0.046, 0.02, 0.06, -0.605, 0, 0],
    ]
)
PEER_VIEWS = 12


def problem(n: int, n_views: int) -> tuple[Geometry, Grid, np.ndarray]:
    """The scan at n^3 voxels of size 1 mm."""
    scale = n / 256
    geometry = Geometry(
        source_to_detector_mm=1500 * scale, source_to_object_mm=1000 * scale, pitch_mm=1.55, rows=n, cols=n
    )
    return geometry, Grid(shape=(n, n, n), voxel_mm=1.0), np.arange(n_views) * 2 * np.pi / n_views


@njit(parallel=True, cache=True)
def chord_sums(source, detector, u, v, rows, cols, solids):
    """Integral of the ellipsoids along every ray: (n_views, rows, cols) float32."""
    sums = np.zeros((len(source), rows, cols), np.float32)
    for view in prange(len(source)):
        for row in range(rows):
            for col in range(cols):
                along = (
                    detector[view] - source[view] + (row - (rows - 1) / 2) * v[view] + (col - (cols - 1) / 2) * u[view]
                )
                length = np.sqrt((along * along).sum())
                for solid in solids:
                    cos, sin = np.cos(np.deg2rad(solid[7])), np.sin(np.deg2rad(solid[7]))
                    x, y = source[view, 0] - solid[4], source[view, 1] - solid[5]
                    px, py, pz = (x * cos + y * sin) / solid[1], (y * cos - x * sin) / solid[2], 0.0
                    pz = (source[view, 2] - solid[6]) / solid[3]
                    dx = (along[0] * cos + along[1] * sin) / solid[1]
                    dy = (along[1] * cos - along[0] * sin) / solid[2]
                    dz = along[2] / solid[3]
                    a, b = dx * dx + dy * dy + dz * dz, px * dx + py * dy + pz * dz
                    root = b * b - a * (px * px + py * py + pz * pz - 1)
                    if root > 0:
                        sums[view, row, col] += solid[0] * 2 * np.sqrt(root) / a * length
    return sums


@njit(parallel=True, cache=True)
def voxel_means(z, y, x, voxel, solids):
    """Mean of the phantom over each voxel, from 2 x 2 x 2 points: (z, y, x) float32."""
    values = np.zeros((len(z), len(y), len(x)), np.float32)
    for iz in prange(len(z)):
        for part in range(8):
            shifts = (np.array([part & 1, part >> 1 & 1, part >> 2]) - 0.5) * voxel / 2
            for solid in solids:
                cos, sin = np.cos(np.deg2rad(solid[7])), np.sin(np.deg2rad(solid[7]))
                dz = (z[iz] + shifts[2] - solid[6]) / solid[3]
                for iy in range(len(y)):
                    dy = y[iy] + shifts[1] - solid[5]
                    for ix in range(len(x)):
                        dx = x[ix] + shifts[0] - solid[4]
                        a, b = (dx * cos + dy * sin) / solid[1], (dy * cos - dx * sin) / solid[2]
                        if a * a + b * b + dz * dz <= 1:
                            values[iz, iy, ix] += solid[0] / 8
    return values


def run(work):
    """Run a generator to its end and return its result."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def peer_gups(geometry: Geometry, grid: Grid, angles: np.ndarray) -> float:
    """Speed of the plain loop over a few views: the same arithmetic, one voxel at a time."""
    scan = ScanGeometry.circular(geometry, angles[:PEER_VIEWS])
    to_mm = np.diag([grid.voxel_mm] * 3 + [1.0])
    to_mm[:3, 3] = [axis[0] for axis in grid.axes_mm()[::-1]]
    filtered = np.ones((PEER_VIEWS, 1, geometry.rows, geometry.cols), np.float32)
    volume = np.zeros((1, *grid.shape), np.float32)
    work = filtered, scan.matrices() @ to_mm, np.ones(PEER_VIEWS)
    backproject_cpu.backproject_plain(volume, *work, 0, 1)
    began = time.perf_counter()
    in_threads(backproject_cpu.backproject_plain, [(volume, *work, z, z + 1) for z in range(grid.shape[0])])
    return np.prod(grid.shape) * PEER_VIEWS / (time.perf_counter() - began) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="half of every dimension")
    options = parser.parse_args()
    n, n_views, repeats = (128, 180, 3) if options.quick else (256, 360, 3)
    geometry, grid, angles = problem(n, n_views)
    solids = ELLIPSOIDS.copy()
    solids[:, 1:7] *= n / 2
    views = geometry.views(angles)
    projections = chord_sums(
        views.source_mm, views.detector_mm, views.u_mm, views.v_mm, geometry.rows, geometry.cols, solids
    )[None]
    run(fdk(projections, angles, geometry, Grid(shape=(16, 8, 8), voxel_mm=1.0)))  # compiles
    times, cpu_times = [], []
    for _ in range(repeats):
        began, cpu_began = time.perf_counter(), time.process_time()
        values = run(fdk(projections, angles, geometry, grid))
        times.append(time.perf_counter() - began)
        cpu_times.append(time.process_time() - cpu_began)
    seconds, cpu_seconds = float(np.median(times)), min(cpu_times)
    figures = {
        "gups": n**3 * n_views / seconds / 1e9,
        "seconds": seconds,
        "rmse": float(np.sqrt(np.mean((values[0] - voxel_means(*grid.axes_mm(), grid.voxel_mm, solids)) ** 2))),
        "voxels": n**3,
        "views": n_views,
        "cpu_seconds": cpu_seconds,
        "peer": {
            "name": "plain Numba loop, back-projection only; itk-rtk is not measured here",
            "gups": float(peer_gups(geometry, grid, angles)),
        },
    }
    if options.json:
        print(json.dumps(figures))
        return
    print(f"{n}^3 voxels, {n_views} views, median of {repeats} runs, filtering included")
    print(f"{'FDK':<20} {figures['gups']:8.2f} GUPS {seconds:8.2f} s   RMSE {figures['rmse']:.4f}")
    print(f"{'':<20} {cpu_seconds:8.2f} s of the processors, least of {repeats} runs")
    print(f"{'plain loop':<20} {figures['peer']['gups']:8.2f} GUPS   ({figures['peer']['name']})")


if __name__ == "__main__":
    main()
