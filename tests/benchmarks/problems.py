"""The problems that the reconstruction is measured on, ours and the peers' alike: exact data, and the truth.

P1 is a parallel beam over 512 x 512 pixels, P2 a cone beam over 256^3 voxels, P3 another over 128^3 for iterative
methods. All see the modified Shepp-Logan phantom by exact chords through its ellipses or ellipsoids. Voxels are 1 mm,
values 1/mm.

# Ref: the ellipsoids are those of the modified Shepp-Logan phantom in M. Schabel's `phantom3d`; without the heights
#      they are the ellipses of the phantom in two dimensions.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from calibration.geometry import Geometry
from reconstruction.scan_geometry import ScanGeometry
from reconstruction.volume import Grid

# value, half axes x y z, centre x y z, turn about z in degrees; in halves of the volume's edge
SHEPP_LOGAN = np.array(
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
JUDGED_RADIUS, JUDGED_HEIGHT = 0.95, 0.9
"""Share of the inscribed cylinder that errors are taken over: at its rim no method has all rays."""
LINES_PER_VOXEL = 4
"""Lines along x, in y and in z, over which a voxel's mean is taken; along x it is exact."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """A scan of ellipsoids, and the volume that is wanted of it.

    Attributes
    ----------
    solids : (n_solids, 8) float64
        Value in 1/mm, half axes and centre along x, y, z in mm, turn about z in degrees. An infinite half axis makes a
        cylinder.
    geometry : Geometry or None
        Of the circular cone beam; None for parallel rays.
    """

    name: str
    scan: ScanGeometry
    grid: Grid
    solids: NDArray[np.float64]
    angles_rad: NDArray[np.float64]
    geometry: Geometry | None = None

    def projections(self) -> NDArray[np.float32]:
        """Return the exact line integrals at the pixels' centres: (1, n_views, rows, cols)."""
        return line_integrals(self.scan, self.solids)[None]

    def truth(self) -> NDArray[np.float32]:
        """Return the phantom's mean over each voxel: (1, z, y, x), 1/mm."""
        return voxel_means(self.grid, self.solids)[None]

    def judged(self) -> NDArray[np.bool_]:
        """Return where errors count: inside 0.95 of the radius and 0.9 of the height, (z, y, x)."""
        z, y, x = self.grid.axes_mm()
        half_z, _, half_x = (n * self.grid.voxel_mm / 2 for n in self.grid.shape)
        disc = np.hypot(y[:, None], x) <= JUDGED_RADIUS * half_x
        return (np.abs(z) <= JUDGED_HEIGHT * half_z)[:, None, None] & disc

    def rmse(self, volume: NDArray[np.floating], truth: NDArray[np.float32] | None = None) -> float:
        """Return the root mean square error of the first channel where it is judged."""
        difference = (volume[0] - (self.truth() if truth is None else truth)[0])[self.judged()]
        return float(np.sqrt(np.mean(difference.astype(np.float64) ** 2)))

    @property
    def n_updates(self) -> int:
        """How many voxel updates one sweep over all views is."""
        return int(np.prod(self.grid.shape)) * self.scan.n_views


def parallel_beam(n: int, n_views: int, n_bins: int, name: str = "P1") -> Problem:
    """Return n x n pixels seen by bins as wide as a pixel, over half a turn."""
    angles = np.arange(n_views) * np.pi / n_views
    solids = shepp_logan(n / 2)
    solids[:, 3], solids[:, 6] = np.inf, 0
    scan = ScanGeometry.parallel(angles, rows=1, cols=n_bins, pitch_mm=1.0)
    return Problem(name=name, scan=scan, grid=Grid(shape=(1, n, n), voxel_mm=1.0), solids=solids, angles_rad=angles)


def cone_beam(n: int, n_views: int, name: str = "P2") -> Problem:
    """Return n^3 voxels seen by n x n pixels over a full turn; distances and phantom grow with n."""
    angles = np.arange(n_views) * 2 * np.pi / n_views
    scale = n / 256
    geometry = Geometry(
        source_to_detector_mm=1500 * scale, source_to_object_mm=1000 * scale, pitch_mm=1.55, rows=n, cols=n
    )
    return Problem(
        name=name,
        scan=ScanGeometry.circular(geometry, angles),
        grid=Grid(shape=(n, n, n), voxel_mm=1.0),
        solids=shepp_logan(n / 2),
        angles_rad=angles,
        geometry=geometry,
    )


def p1(*, is_half: bool = False) -> Problem:
    """512 x 512, 720 views over half a turn, 729 bins of pitch 1."""
    return parallel_beam(256, 360, 365) if is_half else parallel_beam(512, 720, 729)


def p2(*, is_half: bool = False) -> Problem:
    """256^3, 360 views of 256 x 256 of pitch 1.55; source to axis 1000, to detector 1500."""
    return cone_beam(128, 180, "P2") if is_half else cone_beam(256, 360, "P2")


def p3(*, is_half: bool = False) -> Problem:
    """128^3, 180 views of 128 x 128: P2 at half scale, for 20 iterations."""
    return cone_beam(64, 90, "P3") if is_half else cone_beam(128, 180, "P3")


def shepp_logan(half_edge_mm: float) -> NDArray[np.float64]:
    """Return the modified Shepp-Logan phantom that fills a cube, as rows of solids."""
    solids = SHEPP_LOGAN.copy()
    solids[:, 1:7] *= half_edge_mm
    return solids


def line_integrals(scan: ScanGeometry, solids: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the integrals of ellipsoids along the rays to all pixel centres: (n_views, rows, cols) float32."""
    sums = np.zeros((scan.n_views, scan.rows, scan.cols), np.float32)
    vectors = np.stack([scan.source_mm, scan.detector_mm, scan.u_mm, scan.v_mm], axis=1)
    _in_parts(
        lambda first, end: _chords(sums, vectors, scan.is_parallel, _to_unit_spheres(solids), first, end), len(sums)
    )
    return sums


def voxel_means(grid: Grid, solids: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the mean of ellipsoids over each voxel: (z, y, x) float32, 1/mm."""
    means = np.zeros(grid.shape, np.float32)
    z, y, x = grid.axes_mm()
    spheres = _to_unit_spheres(solids)
    _in_parts(lambda first, end: _means(means, z, y, x[0], grid.voxel_mm, spheres, first, end), len(z))
    return means


def _to_unit_spheres(solids: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return per solid its value, its centre, and the matrix that makes a unit sphere of it: (n_solids, 13)."""
    rows = []
    for value, *half_axes, x, y, z, turn_deg in solids:
        cos, sin = np.cos(np.deg2rad(turn_deg)), np.sin(np.deg2rad(turn_deg))
        turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
        rows.append([value, x, y, z, *(turn / np.array(half_axes)[:, None]).ravel()])
    return np.array(rows)


def _in_parts(work: Callable[[int, int], Any], n: int) -> None:
    n_parts = min(n, 4 * (os.cpu_count() or 1))
    edges = np.linspace(0, n, n_parts + 1).astype(int)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(work, edges[:-1], edges[1:]))


@njit(cache=True, nogil=True)
def _chords(sums, vectors, is_parallel, spheres, first, end):
    _, rows, cols = sums.shape
    for view in range(first, end):
        source, detector, u, v = vectors[view, 0], vectors[view, 1], vectors[view, 2], vectors[view, 3]
        for row in range(rows):
            for col in range(cols):
                a, b = col - (cols - 1) / 2, row - (rows - 1) / 2
                px = detector[0] + a * u[0] + b * v[0]
                py = detector[1] + a * u[1] + b * v[1]
                pz = detector[2] + a * u[2] + b * v[2]
                if is_parallel:
                    dx, dy, dz = source[0], source[1], source[2]
                else:
                    dx, dy, dz = px - source[0], py - source[1], pz - source[2]
                length, total = np.sqrt(dx * dx + dy * dy + dz * dz), 0.0
                for n in range(len(spheres)):
                    s = spheres[n]
                    qx, qy, qz = px - s[1], py - s[2], pz - s[3]
                    ex, ey, ez = s[4] * qx + s[5] * qy + s[6] * qz, s[7] * qx + s[8] * qy + s[9] * qz, 0.0
                    ez = s[10] * qx + s[11] * qy + s[12] * qz
                    fx, fy = s[4] * dx + s[5] * dy + s[6] * dz, s[7] * dx + s[8] * dy + s[9] * dz
                    fz = s[10] * dx + s[11] * dy + s[12] * dz
                    ff, ef = fx * fx + fy * fy + fz * fz, ex * fx + ey * fy + ez * fz
                    root = ef * ef - ff * (ex * ex + ey * ey + ez * ez - 1)
                    if root > 0:
                        total += s[0] * 2 * np.sqrt(root) / ff
                sums[view, row, col] = total * length


@njit(cache=True, nogil=True)
def _means(means, z, y, x_first, voxel, spheres, first, end):
    n_x = means.shape[2]
    starts = np.empty(n_x + 2)  # what rises by a whole voxel's share from here on
    for iz in range(first, end):
        for iy in range(means.shape[1]):
            starts[:] = 0
            for part in range(LINES_PER_VOXEL * LINES_PER_VOXEL):
                qz = z[iz] + ((part // LINES_PER_VOXEL + 0.5) / LINES_PER_VOXEL - 0.5) * voxel
                qy = y[iy] + ((part % LINES_PER_VOXEL + 0.5) / LINES_PER_VOXEL - 0.5) * voxel
                for n in range(len(spheres)):
                    s = spheres[n]
                    ex = s[5] * (qy - s[2]) + s[6] * (qz - s[3])
                    ey = s[8] * (qy - s[2]) + s[9] * (qz - s[3])
                    ez = s[11] * (qy - s[2]) + s[12] * (qz - s[3])
                    ff, ef = s[4] * s[4] + s[7] * s[7] + s[10] * s[10], ex * s[4] + ey * s[7] + ez * s[10]
                    root = ef * ef - ff * (ex * ex + ey * ey + ez * ez - 1)
                    if root <= 0:
                        continue
                    for side in range(2):  # in voxels from the lower face of the first one
                        met = (-ef + (2 * side - 1) * np.sqrt(root)) / ff + s[1]
                        place = min(max((met - x_first) / voxel + 0.5, 0.0), float(n_x))
                        index = int(place)
                        share = s[0] * (1 - 2 * side) / LINES_PER_VOXEL**2
                        starts[index] += share * (1 - (place - index))
                        starts[index + 1] += share * (place - index)
            total = 0.0
            for ix in range(n_x):
                total += starts[ix]
                means[iz, iy, ix] = total
