"""bin volumes: `(n_bins, z, y, x) float32`, 1/mm, by filtered back-projection.

Every view is weighted by the cosine of its rays and by what each ray counts on its orbit (`orbits`), filtered along the
detector's rows with a band-limited ramp (`ramp`), and smeared back over the volume, by a weight that falls with the
square of the distance from the source. Views may come as they are measured: the volume is there when the last one is.
What a tilted detector saw is first resampled to what an upright one would have seen from the same source: then the
filter runs square to the axis, and the kernels need no tilts.

Along a helix the rays of one point are shared out among all views that see it, less towards the detector's lower and
upper edge, after they were filtered: good for small cone angles and any pitch at which every point is seen over half
a turn.

# Ref: Feldkamp, Davis and Kress 1984, J. Opt. Soc. Am. A 1, 612.
# Ref: helices by the same filter: Wang, Lin, Cheng and Shinozaki 1993, IEEE Trans. Med. Imaging 12, 486; shares that
#      fall off towards the detector's edges, normalised for each point: Stierstorfer et al. 2004, Phys. Med. Biol. 49,
#      2209.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibration.geometry import Geometry
from calibration.levelling import level, upright
from calibration.progress import Progress
from firmware_iface.errors import WrongUsage
from reconstruction import backend
from reconstruction.kernels.threads import in_threads
from reconstruction.orbits import Helix, Orbit, plan_orbit, plan_parallel
from reconstruction.ramp import RowFilter, ray_cosines
from reconstruction.scan_geometry import ScanGeometry
from reconstruction.volume import Grid

VIEWS_PER_BLOCK = (4, 48)
"""Fewest and most views that are filtered, and then back-projected together."""
UPDATES_PER_BLOCK = 1_000_000_000
"""Of voxels by views and bins, on the CPU: within a second of two cores, after which a stop is answered."""
BYTES_TOGETHER = 1_000_000
"""Of rows that are filtered together: few enough to stay in the cache, and so many that threads do not wait for the
interpreter."""


def fdk(
    line_integrals: NDArray[np.float32],
    angles_rad: ArrayLike,
    geometry: Geometry,
    grid: Grid,
    *,
    window: str = "ram-lak",
    use_gpu: bool = False,
    lifts_mm: ArrayLike = 0.0,
    shifts_mm: ArrayLike = 0.0,
    is_continued: bool = True,
    is_one_sided: bool | None = None,
) -> Generator[Progress, None, NDArray[np.float32]]:
    """Reconstruct every bin in one pass over the geometry.

    Parameters
    ----------
    line_integrals : (n_bins, n_views, rows, cols) float32, dimensionless
    angles_rad : (n_views,) float
        In any order, spaced as they like: around the circle, in an arc of at least half a circle and the fan, which may
        begin anywhere, or along a helix.
    geometry : Geometry
        Of the camera where its shift is 0. It may stand to one side of the axis if the views go all around.
    grid : Grid
        Where the volume is wanted.
    window : str
        One of `ramp.WINDOWS`: how much of the highest frequencies, and of their noise, is kept.
    use_gpu : bool
        Except for a helix, which the processor makes.
    lifts_mm : float or (n_views,) float
        How high the stage lifts the object at each view.
    shifts_mm : float or (n_views,) float
        How far the camera stands along its rows at each view.
    is_continued : bool
        Continue rows smoothly beyond the detector. It changes nothing where the object ends inside.
    is_one_sided : bool, optional
        Whether rays are shared out for a camera that stands to one side; None: as `orbits.plan_orbit` tells.

    Returns
    -------
    values : (n_bins, z, y, x) float32, 1/mm
    """
    angles = np.asarray(angles_rad, dtype=np.float64).ravel()
    stream = FdkStream(
        angles,
        geometry,
        grid,
        len(line_integrals),
        window=window,
        use_gpu=use_gpu,
        lifts_mm=lifts_mm,
        shifts_mm=shifts_mm,
        is_continued=is_continued,
        is_one_sided=is_one_sided,
    )
    return (yield from _in_blocks(stream, line_integrals))


def parallel_backprojection(
    line_integrals: NDArray[np.float32],
    angles_rad: ArrayLike,
    grid: Grid,
    *,
    pitch_mm: float,
    offset_u_mm: float = 0.0,
    window: str = "ram-lak",
    use_gpu: bool = False,
    is_continued: bool = True,
) -> Generator[Progress, None, NDArray[np.float32]]:
    """Reconstruct every bin from parallel rays square to the axis, as `fdk` does from cones.

    Parameters
    ----------
    line_integrals : (n_bins, n_views, rows, cols) float32, dimensionless
        Rows stand around z = 0.
    angles_rad : (n_views,) float
        Around half a circle or a whole one.
    offset_u_mm : float
        Of the detector's centre from the axis.
    """
    rows, cols = line_integrals.shape[-2:]
    scan = ScanGeometry.parallel(angles_rad, rows=rows, cols=cols, pitch_mm=pitch_mm, offset_u_mm=offset_u_mm)
    orbit = plan_parallel(angles_rad, scan, grid)
    stream = _Stream(orbit, grid, len(line_integrals), window=window, use_gpu=use_gpu, is_continued=is_continued)
    return (yield from _in_blocks(stream, line_integrals))


def _in_blocks(stream: _Stream, line_integrals: NDArray[np.float32]) -> Generator[Progress, None, NDArray[np.float32]]:
    stream.check(line_integrals, stream.n_views)
    yield Progress("back-projection", 0, stream.n_views)
    for first in range(0, stream.n_views, stream.views_per_block):
        views = slice(first, min(first + stream.views_per_block, stream.n_views))
        stream.add(line_integrals[:, views], views)
        yield Progress("back-projection", views.stop, stream.n_views)
    return stream.result()


class _Stream:
    """A volume that is summed as its views arrive."""

    def __init__(
        self, orbit: Orbit, grid: Grid, n_bins: int, *, window: str, use_gpu: bool, is_continued: bool
    ) -> None:
        use_gpu = use_gpu and orbit.helix is None  # its kernel is the processor's only
        self._orbit = orbit
        self._filter = RowFilter(
            orbit.scan.cols,
            orbit.sampling_mm,
            window,
            beyond=orbit.beyond,
            is_continued=is_continued,
            use_gpu=use_gpu,
        )
        self._use_gpu = use_gpu
        cosines = ray_cosines(orbit.scan)
        self._cosines = backend.to_device(cosines) if use_gpu else cosines
        self._upload: Any = backend.Upload() if use_gpu else None
        self._matrices = _in_voxels(orbit.scan, grid)
        self._matrices[:, 0] += orbit.beyond[0] * self._matrices[:, 2]
        self._is_added = np.zeros(self.n_views, np.bool_)
        xp = backend.require_gpu() if use_gpu else np
        self._values: backend.Array = xp.zeros((n_bins, *grid.shape), np.float32)
        self._grid = grid

    @property
    def n_views(self) -> int:
        """Number of planned views."""
        return self._orbit.scan.n_views

    @property
    def views_per_block(self) -> int:
        """So many views at a time that what is begun is soon done; fours, as the kernel takes them."""
        fewest, most = VIEWS_PER_BLOCK
        if self._use_gpu:
            return most
        return min(max(UPDATES_PER_BLOCK // self._values.size // fewest * fewest, fewest), most)

    def check(self, line_integrals: NDArray[np.float32], n_views: int) -> None:
        """Refuse line integrals that are not those of so many views."""
        scan = self._orbit.scan
        expected = (len(self._values), n_views, scan.rows, scan.cols)
        if line_integrals.shape != expected or len(line_integrals) == 0:
            raise WrongUsage(
                f"the line integrals have shape {line_integrals.shape}; allowed: {expected}, "
                "(n_bins, n_views, rows, cols) for these angles and this detector"
            )

    def add(self, line_integrals: NDArray[np.float32], views: slice | ArrayLike) -> None:
        """Add some views, each once, in any order.

        Parameters
        ----------
        line_integrals : (n_bins, n, rows, cols) float32
        views : slice or (n,) int
            Which of the planned views they are.

        Raises
        ------
        WrongUsage
            They hold values that are no numbers, or came before.
        """
        index = np.arange(self.n_views)[views if isinstance(views, slice) else np.asarray(views)]
        self.check(line_integrals, len(index))
        if self._is_added[index].any() or len(np.unique(index)) < len(index):
            raise WrongUsage("a view came twice; allowed: each planned view once")
        for first in range(0, len(index), self.views_per_block):
            block = slice(first, first + self.views_per_block)
            self._backproject(self._filtered(line_integrals[:, block], index[block]), index[block])
        self._is_added[index] = True

    def result(self) -> NDArray[np.float32]:
        """Return the volume so far: (n_bins, z, y, x) float32, 1/mm.

        Views that never came are made up for by all others alike, except on a helix, where points that they alone saw
        stay empty; who knows of them beforehand leaves them out of the plan, and has their neighbours stand for them.
        """
        values = backend.to_host(self._values)
        weights = self._orbit.view_weights
        if self._orbit.helix is not None or self._is_added.all() or not self._is_added.any():
            return values if values is not self._values else values.copy()
        return values * np.float32(weights.sum() / weights[self._is_added].sum())

    def _filtered(self, images: NDArray[np.float32], views: NDArray[np.intp]) -> backend.Array:
        """(n_bins, n, rows, cols) to (n, n_bins, rows, cols), weighted and filtered."""
        is_finite = np.isfinite(images.sum(axis=(0, 2, 3), dtype=np.float64))
        if not is_finite.all():
            raise WrongUsage(
                f"the line integrals of view {views[~is_finite][0]} hold values that are no numbers; "
                "allowed: finite ones",
                hint="fill bad pixels before the reconstruction (calibration.pixels.fill)",
            )
        shares = self._orbit.ray_shares[views][:, None, None]
        cosines = self._cosines if len(self._cosines) == 1 else self._cosines[views]
        if self._use_gpu:
            sent = self._upload(np.asarray(images, np.float32)).swapaxes(0, 1) * cosines[:, None]
            return backend.namespace(sent).ascontiguousarray(self._filter(sent, backend.to_device(shares)))
        n_rows, n_cols = images.shape[-2], sum(self._orbit.beyond) + images.shape[-1]
        filtered = np.empty((len(views), len(images), n_rows, n_cols), np.float32)
        together = max(BYTES_TOGETHER // (4 * len(images) * self._filter.n_padded), 1)

        def of_views(start: int, stop: int) -> None:
            some = slice(start, stop)
            for first in range(0, n_rows, together):
                rows = slice(first, first + together)
                weighted = images[:, some, rows] * (cosines if len(cosines) == 1 else cosines[some])[:, rows]
                filtered[some, :, rows] = self._filter(weighted, shares[some, 0]).swapaxes(0, 1)

        n_views = max(together // n_rows, 1)
        in_threads(of_views, [(start, min(start + n_views, len(views))) for start in range(0, len(views), n_views)])
        return filtered

    def _backproject(self, filtered: backend.Array, views: NDArray[np.intp]) -> None:
        matrices, weights = self._matrices[views], self._orbit.view_weights[views]
        if self._use_gpu:
            from reconstruction.kernels import backproject_gpu

            backproject_gpu.backproject(self._values, filtered, matrices, weights)
            return
        from reconstruction.kernels import backproject_cpu, backproject_helix  # numba is slow: not before it is needed

        if self._orbit.helix is None:
            backproject_cpu.backproject(self._values, filtered, matrices, weights)
            return
        turns = backproject_helix.Turns(**_turns(self._orbit.helix, self._orbit.scan, self._grid))
        angles = self._orbit.helix.angles_rad[views]
        backproject_helix.backproject_helix(self._values, filtered, matrices, weights, angles, turns)


class FdkStream(_Stream):
    """The volume of a cone-beam scan, summed as its views arrive; any chunking makes the same volume.

    Parameters
    ----------
    angles_rad, geometry, grid, window, use_gpu, lifts_mm, shifts_mm, is_continued, is_one_sided
        As of `fdk`: of all planned views.
    n_bins : int
    """

    def __init__(
        self,
        angles_rad: ArrayLike,
        geometry: Geometry,
        grid: Grid,
        n_bins: int,
        *,
        window: str = "ram-lak",
        use_gpu: bool = False,
        lifts_mm: ArrayLike = 0.0,
        shifts_mm: ArrayLike = 0.0,
        is_continued: bool = True,
        is_one_sided: bool | None = None,
    ) -> None:
        _, y, x = grid.axes_mm()
        reach_mm = float(np.hypot(np.abs(x).max(), np.abs(y).max()))
        if reach_mm >= geometry.source_to_object_mm:
            raise WrongUsage(
                f"the grid reaches {reach_mm:.3g} mm from the axis, and the source stands at "
                f"{geometry.source_to_object_mm:.3g} mm; allowed: less",
                hint="ask for fewer or smaller voxels",
            )
        orbit = plan_orbit(
            angles_rad, upright(geometry), grid, lifts_mm=lifts_mm, shifts_mm=shifts_mm, is_one_sided=is_one_sided
        )
        super().__init__(orbit, grid, n_bins, window=window, use_gpu=use_gpu, is_continued=is_continued)
        self._geometry = geometry

    def _filtered(self, images: NDArray[np.float32], views: NDArray[np.intp]) -> backend.Array:
        return super()._filtered(level(images, self._geometry), views)


def _in_voxels(scan: ScanGeometry, grid: Grid) -> NDArray[np.float64]:
    """Return projection matrices of the numbers of voxels, (x, y, z, 1)."""
    first_mm = [axis[0] for axis in grid.axes_mm()[::-1]]
    to_mm = np.diag([grid.voxel_mm] * 3 + [1.0])
    to_mm[:3, 3] = first_mm
    matrices = scan.matrices() @ to_mm
    if scan.is_upright:
        matrices[:, [0, 2], 2] = 0.0  # but for rounding, they are
    return matrices


def _turns(helix: Helix, scan: ScanGeometry, grid: Grid) -> dict[str, Any]:
    """Return what the kernel wants to know of a helix."""
    _, y, x = grid.axes_mm()
    pitch_u, pitch_v = np.linalg.norm(scan.u_mm, axis=1), np.linalg.norm(scan.v_mm, axis=1)
    from_source = scan.detector_mm - scan.source_mm
    col = (from_source * scan.u_mm).sum(-1) / pitch_u**2
    row = (from_source * scan.v_mm).sum(-1) / pitch_v**2
    to_source_mm = float(np.hypot(scan.source_mm[:, 0], scan.source_mm[:, 1]).mean())
    to_detector_mm = float(
        np.linalg.norm(from_source - col[:, None] * scan.u_mm - row[:, None] * scan.v_mm, axis=1).mean()
    )
    per_turn_mm = helix.lift_mm_per_rad * 2 * np.pi
    return {
        "lowest_rad": float(helix.angles_rad.min()),
        "highest_rad": float(helix.angles_rad.max()),
        "rows_per_turn": per_turn_mm * to_detector_mm / to_source_mm / float(pitch_v.mean()),
        "to_source": to_source_mm / grid.voxel_mm,
        "x_first": float(x[0]) / grid.voxel_mm,
        "y_first": float(y[0]) / grid.voxel_mm,
        "centre_col": (scan.cols - 1) / 2 - float(col.mean()),
        "centre_row": (scan.rows - 1) / 2 - float(row.mean()),
        "is_one_sided": helix.is_one_sided,
    }
