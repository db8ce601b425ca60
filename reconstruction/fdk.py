"""bin volumes: `(n_bins, z, y, x) float32`, 1/mm, by filtered back-projection of a circular cone-beam scan.

Every view is weighted by the cosine of its rays, filtered along the detector's rows with a band-limited ramp, and
smeared back over the volume, by a weight that falls with the square of the distance from the source. What a tilted
detector saw is first resampled to what an upright one would have seen from the same source: then the filter runs square
to the axis, and the kernels need no tilts.

# Ref: Feldkamp, Davis and Kress 1984, J. Opt. Soc. Am. A 1, 612.
# Ref: the ramp sampled in space (sampling it in frequency instead lowers every value): Kak and Slaney 1988, Principles
#      of Computerized Tomographic Imaging, chapter 3, equation 61, as scikit-image's `iradon` has it.
# Ref: windows: Shepp and Logan 1974, IEEE Trans. Nucl. Sci. 21 (3), 21 (sinc); Harris 1978, Proc. IEEE 66, 51 (Hann,
#      Hamming); cosine as in scikit-image's `iradon`. A test compares all with it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import ArrayLike, NDArray

from calibration.geometry import Geometry
from calibration.levelling import level, upright
from calibration.progress import Progress
from firmware_iface.errors import WrongUsage
from reconstruction import backend
from reconstruction.volume import Grid

_Axis = NDArray[np.float64]

_fft: Any = scipy.fft  # its declared types are those of SciPy's dispatcher, not of its results

WINDOWS: Mapping[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = MappingProxyType(
    {
        "ram-lak": np.ones_like,
        "shepp-logan": lambda f: np.sinc(f / 2),
        "cosine": lambda f: np.cos(np.pi / 2 * f),
        "hamming": lambda f: 0.54 + 0.46 * np.cos(np.pi * f),
        "hann": lambda f: 0.5 + 0.5 * np.cos(np.pi * f),
    }
)
"""Gain at each frequency, in units of the highest that the detector can hold."""

VIEWS_PER_BLOCK = 24
WIDEST_GAP_RAD = np.deg2rad(20.0)
"""Widest hole in the circle that neighbouring views may fill; a scan that stopped half-way is refused."""
SAME_ANGLE_DECIMALS = 7
"""Views whose angles agree to these decimals, in rad, stand at one place of the circle."""


def ramp_filter(n_cols: int, pitch_mm: float, window: str = "ram-lak") -> NDArray[np.float32]:
    """Return the filter's gain at each frequency of a zero-padded row.

    Parameters
    ----------
    n_cols : int
        Length of a row before padding.
    pitch_mm : float
        Sampling distance, on the axis of rotation.

    Returns
    -------
    gain : (n_padded // 2 + 1,) float32
        In 1/mm; n_padded is the next length that is fast to transform and at least 2 n_cols.
    """
    if window not in WINDOWS:
        raise WrongUsage(f"the window is {window!r}; allowed: {', '.join(WINDOWS)}")
    n_padded = _fft.next_fast_len(2 * n_cols, real=True)
    n_padded += n_padded % 2
    distance = np.minimum(np.arange(n_padded), n_padded - np.arange(n_padded))
    kernel = np.zeros(n_padded)
    is_odd = distance % 2 == 1
    kernel[is_odd] = -1 / (np.pi * distance[is_odd] * pitch_mm) ** 2
    kernel[0] = 1 / (2 * pitch_mm) ** 2
    gain = _fft.rfft(kernel).real * pitch_mm
    return (gain * WINDOWS[window](np.linspace(0, 1, len(gain)))).astype(np.float32)


def angular_weights_rad(angles_rad: ArrayLike) -> NDArray[np.float64]:
    """Return how much of the circle each view stands for: half the way to its neighbours on both sides.

    The sum is a full circle whatever the spacing: a lost view is made up for by its neighbours, and where a scan
    overlaps itself the views share their stretch.
    """
    angles = np.mod(np.asarray(angles_rad, dtype=np.float64).ravel(), 2 * np.pi)
    places, place, n_sharing = np.unique(angles.round(SAME_ANGLE_DECIMALS), return_inverse=True, return_counts=True)
    if len(places) < 2:
        raise WrongUsage(
            f"there are {len(angles)} views at {len(places)} angles; allowed: a full circle of them",
            hint="scan a full circle",
        )
    gaps = np.diff(places, append=places[0] + 2 * np.pi)
    if gaps.max() > WIDEST_GAP_RAD:
        raise WrongUsage(
            f"the views leave {np.rad2deg(gaps.max()):.1f} degrees of the circle empty; "
            f"allowed: at most {np.rad2deg(WIDEST_GAP_RAD):.0f}",
            hint="scan a full circle",
        )
    return ((gaps + np.roll(gaps, 1)) / 2 / n_sharing)[place]


def fdk(
    line_integrals: NDArray[np.float32],
    angles_rad: ArrayLike,
    geometry: Geometry,
    grid: Grid,
    *,
    window: str = "ram-lak",
    use_gpu: bool = False,
) -> Generator[Progress, None, NDArray[np.float32]]:
    """Reconstruct every bin in one pass over the geometry.

    Parameters
    ----------
    line_integrals : (n_bins, n_views, rows, cols) float32, dimensionless
    angles_rad : (n_views,) float
        Anywhere on the circle, in any order, spaced as they like.
    grid : Grid
        Where the volume is wanted.
    window : str
        One of `WINDOWS`: how much of the highest frequencies, and of their noise, is kept.

    Returns
    -------
    values : (n_bins, z, y, x) float32, 1/mm
    """
    angles = np.asarray(angles_rad, dtype=np.float64).ravel()
    _check(line_integrals, angles, geometry, grid)
    weights = angular_weights_rad(angles)
    gain = ramp_filter(geometry.cols, geometry.pitch_mm / geometry.magnification, window)
    poses = np.stack([np.cos(angles), np.sin(angles), weights / 2], axis=1)
    filter_rows = _RowFilter(upright(geometry), gain, use_gpu=use_gpu)
    volume = (_GpuVolume if use_gpu else _CpuVolume)(upright(geometry), grid, len(line_integrals))
    yield Progress("back-projection", 0, len(angles))
    for first in range(0, len(angles), VIEWS_PER_BLOCK):
        block = slice(first, min(first + VIEWS_PER_BLOCK, len(angles)))
        volume.add(filter_rows(level(line_integrals[:, block], geometry), first), poses[block])
        yield Progress("back-projection", block.stop, len(angles))
    return volume.result()


def _check(line_integrals: NDArray[np.float32], angles: NDArray[np.float64], geometry: Geometry, grid: Grid) -> None:
    expected = (len(angles), geometry.rows, geometry.cols)
    if line_integrals.ndim != 4 or line_integrals.shape[1:] != expected or len(line_integrals) == 0:
        raise WrongUsage(
            f"the line integrals have shape {line_integrals.shape}; allowed: (n_bins, {', '.join(map(str, expected))}) "
            "for these angles and this detector"
        )
    _, y, x = grid.axes_mm()
    reach_mm = float(np.hypot(np.abs(x).max(), np.abs(y).max()))
    if reach_mm >= geometry.source_to_object_mm:
        raise WrongUsage(
            f"the grid reaches {reach_mm:.3g} mm from the axis, and the source stands at "
            f"{geometry.source_to_object_mm:.3g} mm; allowed: less",
            hint="ask for fewer or smaller voxels",
        )


class _RowFilter:
    """Cosine weights and the ramp, block by block, on the host or on the device."""

    def __init__(self, geometry: Geometry, gain: NDArray[np.float32], *, use_gpu: bool) -> None:
        u_mm = (np.arange(geometry.cols) - (geometry.cols - 1) / 2) * geometry.pitch_mm + geometry.offset_u_mm
        v_mm = (np.arange(geometry.rows) - (geometry.rows - 1) / 2) * geometry.pitch_mm + geometry.offset_v_mm
        distance_mm = geometry.source_to_detector_mm
        cosines = (distance_mm / np.sqrt(distance_mm**2 + u_mm**2 + v_mm[:, None] ** 2)).astype(np.float32)
        self._send = backend.to_device if use_gpu else np.asarray
        self._cosines, self._gain = self._send(cosines), self._send(gain)
        self._n_padded = 2 * (len(gain) - 1)

    def __call__(self, block: NDArray[np.float32], first: int) -> backend.Array:
        """(n_bins, n_views, rows, cols) to (n_views, n_bins, rows, cols); `first` is to name views in errors."""
        if not np.isfinite(block).all():
            bad = int(np.flatnonzero(~np.isfinite(block).all(axis=(0, 2, 3)))[0]) + first
            raise WrongUsage(
                f"the line integrals of view {bad} hold values that are no numbers; allowed: finite ones",
                hint="fill bad pixels before the reconstruction (calibration.pixels.fill)",
            )
        weighted = self._send(np.asarray(block, np.float32)).swapaxes(0, 1) * self._cosines
        filtered = backend.irfft(backend.rfft(weighted, self._n_padded) * self._gain, self._n_padded)
        return filtered[..., : block.shape[-1]]


def _axes_in_pitches(geometry: Geometry, grid: Grid) -> tuple[_Axis, _Axis, _Axis, _Axis]:
    """Return x, y, z and the detector's numbers, as the kernels take them."""
    z, y, x = (axis / geometry.pitch_mm for axis in grid.axes_mm())
    detector = np.array(
        [
            geometry.source_to_object_mm / geometry.pitch_mm,
            geometry.source_to_detector_mm / geometry.pitch_mm,
            (geometry.cols - 1) / 2 - geometry.offset_u_mm / geometry.pitch_mm,
            (geometry.rows - 1) / 2 - geometry.offset_v_mm / geometry.pitch_mm,
            geometry.rows,
        ]
    )
    return x, y, z, detector


class _CpuVolume:
    """The volume while it is being summed, z innermost."""

    def __init__(self, geometry: Geometry, grid: Grid, n_bins: int) -> None:
        from reconstruction.kernels import backproject_cpu  # numba is slow to load: not before it is needed

        self._kernel = backproject_cpu
        self._axes = _axes_in_pitches(geometry, grid)
        x, y, z, detector = self._axes
        nearest = detector[0] - np.hypot(np.abs(x).max(), np.abs(y).max())
        steepest = grid.voxel_mm / geometry.pitch_mm * detector[1] / nearest
        self._is_permuting = backproject_cpu.can_permute(float(steepest))
        self._n_z = len(z)
        n_z_padded = -(-len(z) // backproject_cpu.LANES) * backproject_cpu.LANES
        self._values = np.zeros((len(y), len(x), n_bins, n_z_padded), np.float32)

    def add(self, filtered: NDArray[np.float32], poses: NDArray[np.float64]) -> None:
        columns = self._kernel.with_margins(filtered)
        self._kernel.backproject_columns(self._values, columns, poses, *self._axes, self._is_permuting)

    def result(self) -> NDArray[np.float32]:
        return np.ascontiguousarray(np.moveaxis(self._values[..., : self._n_z], (2, 3), (0, 1)))


class _GpuVolume:
    """The volume on the device, x innermost."""

    def __init__(self, geometry: Geometry, grid: Grid, n_bins: int) -> None:
        from reconstruction.kernels import backproject_gpu

        self._kernel = backproject_gpu
        self._axes = _axes_in_pitches(geometry, grid)
        self._values = backend.require_gpu().zeros((n_bins, *grid.shape), np.float32)

    def add(self, filtered: backend.Array, poses: NDArray[np.float64]) -> None:
        x, y, z, (to_object, to_detector, centre_col, centre_row, _) = self._axes
        cos, sin = poses[:, 0], poses[:, 1]
        matrices = np.zeros((len(poses), 3, 4))  # of x, y, z and 1, in pitches; the last row is 1 on the axis
        matrices[:, 2] = np.stack([-sin, cos, 0 * cos, to_object + 0 * cos], axis=1) / to_object
        matrices[:, 0, :2] = np.stack([cos, sin], axis=1) * to_detector / to_object
        matrices[:, 1, 2] = to_detector / to_object
        matrices[:, :2] += np.array([[centre_col], [centre_row]]) * matrices[:, 2:]
        matrices[:, :, 3] += matrices[:, :, :3] @ np.array([x[0], y[0], z[0]])
        matrices[:, :, :3] *= next((axis[1] - axis[0] for axis in (x, y, z) if len(axis) > 1), 1.0)
        self._kernel.backproject(self._values, filtered, matrices, poses[:, 2])

    def result(self) -> NDArray[np.float32]:
        return backend.to_host(self._values)
