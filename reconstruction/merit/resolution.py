"""How sharp a map is, by its modulation transfer function at a rim, an edge or a wire; and how maps are made alike.

The values around an edge, each at its own distance from it, sample the edge's profile far more finely than voxels do.
Its slope is the line spread function, and the Fourier transform of that is the MTF. The finite width of the bins and
of the difference are divided out. Maps are only compared at the same sharpness: `matched` blurs each by the Gaussian
that brings its MTF down to 1/2 at the frequency asked for.

# Ref: oversampled edge: Judy 1976, Med. Phys. 3, 233; slanted edge: Fujita et al. 1992, IEEE Trans. Med. Imaging 11,
#      34; rim of a rod: Richard et al. 2012, Med. Phys. 39, 4115.
# Ref: a wire's image is the point spread function; the mean of its transform over all directions is the Hankel
#      transform: Bracewell 2000, The Fourier Transform and Its Applications, 3rd ed., chapter 13.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft, special
from scipy.optimize import least_squares
from scipy.signal.windows import tukey

from firmware_iface.errors import WrongUsage

BINS_PER_VOXEL = 8
N_FREQUENCIES = 101
FLAT_SHARE = 0.5
"""Of the line spread function, the middle share that the window leaves alone."""
WINDOW_BLURS, WINDOW_VOXELS = 6.0, 4.0
"""How far the window reaches from the edge: so many standard deviations of the fitted blur, and at least so many
voxels. What lies further out is noise, unless the spread has long wings, which are cut off."""
MOST_FITTED = 5000
"""Of a rod with more voxels, about so many say where its rim is."""
HALF = 0.5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mtf:
    """Modulation transfer function in the plane of the slices, and the edge that it was measured at.

    Attributes
    ----------
    frequency_per_mm, modulation : (n,) float64
        From 0, where it is 1, to the highest frequency that the voxels hold.
    distance_mm, response : (m,) float64
        The oversampled profile, outwards, in the map's unit; of a wire: distance from it.
    """

    frequency_per_mm: NDArray[np.float64]
    modulation: NDArray[np.float64]
    distance_mm: NDArray[np.float64]
    response: NDArray[np.float64]

    def at(self, frequency_per_mm: ArrayLike) -> NDArray[np.float64]:
        """Return the modulation at some frequencies, linearly between those that it was computed at."""
        return np.interp(np.asarray(frequency_per_mm, dtype=np.float64), self.frequency_per_mm, self.modulation)

    def frequency_of(self, modulation: float) -> float:
        """Return the first frequency at which the modulation falls to this; NaN where it stays above."""
        below = np.nonzero(self.modulation < modulation)[0]
        if not below.size:
            return float("nan")
        end = int(below[0])
        high, low = self.modulation[end - 1], self.modulation[end]
        step = self.frequency_per_mm[end] - self.frequency_per_mm[end - 1]
        return float(self.frequency_per_mm[end - 1] + step * (high - modulation) / (high - low))

    @property
    def mtf50_per_mm(self) -> float:
        """Where the modulation is 1/2."""
        return self.frequency_of(HALF)

    @property
    def mtf10_per_mm(self) -> float:
        """Where the modulation is 1/10."""
        return self.frequency_of(0.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rim:
    """A disc blurred by a Gaussian, as fitted to a map."""

    x_mm: float
    y_mm: float
    radius_mm: float
    blur_mm: float


def edge_of_disc(
    map_: NDArray[np.floating],
    y_mm: NDArray[np.floating],
    x_mm: NDArray[np.floating],
    *,
    centre_mm: tuple[float, float],
    radius_mm: float,
    reach_mm: float,
    is_used: NDArray[np.bool_] | None = None,
) -> Mtf:
    """Measure the MTF at the rim of an upright rod.

    The rim's curvature is neglected: of a Gaussian blur of a fifth of the radius, MTF50 is found 0.8 % too low. A reach
    of less than four times the blur cuts its wings off: MTF50 is then found too high, by 3 % where it is three times.

    Parameters
    ----------
    map_ : (..., y, x) float
        Slices that the rod passes upright.
    y_mm, x_mm : (y,), (x,) float
        Where the voxels are.
    centre_mm : (x, y) float
        About where the rod stands: it is looked for within `reach_mm`.
    reach_mm : float
        How far from the rim, on either side, voxels count; the wings of the blur must fit in.
    is_used : (y, x) bool, optional
        Which voxels may count, where something else is near.
    """
    slices = map_.reshape(-1, *map_.shape[-2:])
    within = np.hypot(y_mm[:, None] - centre_mm[1], x_mm - centre_mm[0]) <= radius_mm + 1.5 * reach_mm
    counted = within if is_used is None else within & is_used
    ys, xs = np.nonzero(counted)
    mean = slices[:, ys, xs].mean(axis=0, dtype=np.float64)
    some = slice(None, None, max(len(mean) // MOST_FITTED, 1))
    rim = _fitted_rim(mean[some], x_mm[xs][some], y_mm[ys][some], centre_mm, radius_mm, reach_mm)
    distance = np.hypot(x_mm[xs] - rim.x_mm, y_mm[ys] - rim.y_mm) - rim.radius_mm
    voxel_mm = float(abs(x_mm[1] - x_mm[0]))
    return edge_mtf(distance, mean, voxel_mm=voxel_mm, reach_mm=_window_mm(reach_mm, rim.blur_mm, voxel_mm))


def _window_mm(reach_mm: float, blur_mm: float, voxel_mm: float) -> float:
    return min(reach_mm, max(WINDOW_BLURS * blur_mm, WINDOW_VOXELS * voxel_mm))


def _fitted_rim(
    values: NDArray[np.float64],
    x_mm: NDArray[np.floating],
    y_mm: NDArray[np.floating],
    centre_mm: tuple[float, float],
    radius_mm: float,
    reach_mm: float,
) -> Rim:
    """Fit a blurred disc to the values; inside and outside follow from the shape by linear least squares."""

    def shape_of(p: NDArray[np.float64]) -> NDArray[np.float64]:
        distance = np.hypot(x_mm - p[0], y_mm - p[1]) - p[2]
        return 0.5 * special.erfc(distance / (np.sqrt(2) * p[3]))

    def residual(p: NDArray[np.float64]) -> NDArray[np.float64]:
        design = np.column_stack([shape_of(p), np.ones(len(values))])
        return design @ np.linalg.lstsq(design, values, rcond=None)[0] - values

    start = np.array([*centre_mm, radius_mm, reach_mm / 4])
    room = np.array([reach_mm, reach_mm, reach_mm / 2])
    low, high = np.append(start[:3] - room, reach_mm / 50), np.append(start[:3] + room, reach_mm)
    fit = least_squares(residual, start, bounds=(low, high), x_scale=reach_mm / 10)
    x, y, radius, blur = (float(v) for v in fit.x)
    return Rim(x_mm=x, y_mm=y, radius_mm=radius, blur_mm=blur)


def edge_of_line(
    map_: NDArray[np.floating],
    y_mm: NDArray[np.floating],
    x_mm: NDArray[np.floating],
    *,
    point_mm: tuple[float, float],
    angle_rad: float,
    reach_mm: float,
) -> Mtf:
    """Measure the MTF at a straight edge that is a little askew to the rows or columns.

    Parameters
    ----------
    map_ : (..., y, x) float
    point_mm : (x, y) float
        About where the edge passes.
    angle_rad : float
        About how it runs, from x towards y; both are fitted.
    reach_mm : float
        How far from the edge, and along it from the point, voxels count.
    """
    slices = map_.reshape(-1, *map_.shape[-2:])
    dx, dy = x_mm - point_mm[0], (y_mm - point_mm[1])[:, None]
    across = -np.sin(angle_rad) * dx + np.cos(angle_rad) * dy
    along = np.cos(angle_rad) * dx + np.sin(angle_rad) * dy
    ys, xs = np.nonzero((abs(across) <= 1.25 * reach_mm) & (abs(along) <= reach_mm))
    if len(ys) < 8:
        raise WrongUsage(f"{len(ys)} voxels lie around the edge; allowed: at least 8", hint="raise its reach_mm")
    mean = slices[:, ys, xs].mean(axis=0, dtype=np.float64)
    across, along = across[ys, xs], along[ys, xs]

    def residual(p: NDArray[np.float64]) -> NDArray[np.float64]:
        distance = (across - p[0]) * np.cos(p[1]) - along * np.sin(p[1])
        design = np.column_stack([special.erfc(distance / (np.sqrt(2) * p[2])), np.ones(len(mean))])
        return design @ np.linalg.lstsq(design, mean, rcond=None)[0] - mean

    low, high = [-reach_mm / 2, -0.2, reach_mm / 50], [reach_mm / 2, 0.2, reach_mm]
    shift, turn, blur = least_squares(residual, [0.0, 0.0, reach_mm / 4], bounds=(low, high), x_scale=reach_mm / 10).x
    distance = (across - shift) * np.cos(turn) - along * np.sin(turn)
    voxel_mm = float(abs(x_mm[1] - x_mm[0]))
    return edge_mtf(distance, mean, voxel_mm=voxel_mm, reach_mm=_window_mm(reach_mm, float(blur), voxel_mm))


def edge_mtf(distance_mm: ArrayLike, values: ArrayLike, *, voxel_mm: float, reach_mm: float) -> Mtf:
    """Measure the MTF from values at known distances from an edge.

    Parameters
    ----------
    distance_mm, values : (n,) float
        In any order; the values step at distance 0, up or down.
    reach_mm : float
        Voxels up to this far from the edge count.
    """
    distance, values = (np.asarray(v, dtype=np.float64).ravel() for v in (distance_mm, values))
    step = voxel_mm / BINS_PER_VOXEL
    n = int(np.floor(reach_mm / step))
    if n < 2 * BINS_PER_VOXEL:
        raise WrongUsage(
            f"voxels count up to {reach_mm:.3g} mm from an edge; allowed: at least {2 * voxel_mm:.3g} mm, two voxels",
            hint="a larger rod, or smaller voxels, give room for the MTF",
        )
    places = step * np.arange(-n, n + 1, dtype=np.float64)
    profile = _profile(distance, values, places, step)
    spread = np.diff(profile) * tukey(2 * n, 1 - FLAT_SHARE)
    middle = places[:-1] + step / 2
    frequency = np.linspace(0, 0.5 / voxel_mm, N_FREQUENCIES)
    waves = np.exp(-2j * np.pi * frequency[:, None] * middle)
    # A bin's mean and a difference of neighbours each blur by a box of one step.
    modulation = np.abs(waves @ spread) / abs(spread.sum()) / np.sinc(frequency * step) ** 2
    return Mtf(frequency_per_mm=frequency, modulation=modulation, distance_mm=places, response=profile)


def _profile(
    distance: NDArray[np.float64], values: NDArray[np.float64], places: NDArray[np.float64], step: float
) -> NDArray[np.float64]:
    """Return the mean value around each place; places that no voxel is near take what lies between their neighbours."""
    index = np.rint((distance - places[0]) / step).astype(int)
    inside = (index >= 0) & (index < len(places))
    n = np.bincount(index[inside], minlength=len(places))
    if np.count_nonzero(n) < len(places) / 2:
        raise WrongUsage(
            f"voxels lie at {np.count_nonzero(n)} of {len(places)} distances from an edge; allowed: half of them",
            hint="a longer edge, one more askew to the rows, or a larger rod",
        )
    sums = np.bincount(index[inside], weights=values[inside], minlength=len(places))
    # The mean of a bin stands where its voxels do, not in its middle.
    stands = np.bincount(index[inside], weights=distance[inside], minlength=len(places))
    hit = n > 0
    return np.interp(places, stands[hit] / n[hit], sums[hit] / n[hit])


def wire_mtf(
    map_: NDArray[np.floating],
    y_mm: NDArray[np.floating],
    x_mm: NDArray[np.floating],
    *,
    centre_mm: tuple[float, float],
    reach_mm: float,
) -> Mtf:
    """Measure the MTF at a wire, thin against a voxel, that stands upright on an even ground: mean of all directions.

    Parameters
    ----------
    map_ : (..., y, x) float
    reach_mm : float
        How far from the wire the point spread function reaches; the outer fifth of it is taken for the ground.
    """
    mean = map_.reshape(-1, *map_.shape[-2:]).mean(axis=0, dtype=np.float64)

    def around(x: float, y: float) -> tuple[NDArray[np.float64], NDArray[np.float64], float, float]:
        """Return distances and values above the ground, and where their centre of mass is."""
        away = np.hypot(y_mm[:, None] - y, x_mm - x).astype(np.float64)
        ys, xs = np.nonzero(away <= reach_mm)
        distance, values = away[ys, xs], mean[ys, xs]
        ground = values[distance > 0.8 * reach_mm]
        values = values - (ground.mean() if ground.size else 0.0)
        mass = float(values.sum())
        if not mass != 0:
            raise WrongUsage("nothing stands out where the wire is stated to be", hint="check its x_mm and y_mm")
        return distance, values, float((values * x_mm[xs]).sum()) / mass, float((values * y_mm[ys]).sum()) / mass

    _, _, x, y = around(*centre_mm)
    _, _, x, y = around(x, y)  # the centre of mass moves the circle, which moves the centre of mass
    distance, values, _, _ = around(x, y)
    frequency = np.linspace(0, 0.5 / float(abs(x_mm[1] - x_mm[0])), N_FREQUENCIES)
    transform = special.j0(2 * np.pi * frequency[:, None] * distance) @ values
    order = np.argsort(distance)
    return Mtf(
        frequency_per_mm=frequency,
        modulation=np.abs(transform) / abs(transform[0]),
        distance_mm=distance[order],
        response=values[order],
    )


def gaussian_blur_mm(mtf: Mtf, mtf50_per_mm: float) -> float:
    """Return the standard deviation of the Gaussian that brings an MTF down to 1/2 at a frequency.

    Raises
    ------
    WrongUsage
        The MTF is below 1/2 there already.
    """
    modulation = float(mtf.at(mtf50_per_mm))
    if modulation < HALF * (1 - 1e-6):
        raise WrongUsage(
            f"a map whose MTF50 is {mtf.mtf50_per_mm:.3g} /mm cannot be blurred to {mtf50_per_mm:.3g} /mm; "
            f"allowed: up to {mtf.mtf50_per_mm:.3g} /mm"
        )
    return float(np.sqrt(np.log(max(modulation / HALF, 1.0)) / 2) / (np.pi * mtf50_per_mm))


def blurred(map_: NDArray[np.floating], blur_mm: float, voxel_mm: float) -> NDArray[np.float32]:
    """Blur slices by a Gaussian in their plane: (..., y, x); beyond its edges a map is continued by its mirror image.

    The transfer function is exactly the Gaussian, however narrow it is against a voxel.
    """
    if blur_mm == 0:
        return map_.astype(np.float32)
    pad = int(np.ceil(4 * blur_mm / voxel_mm)) + 8
    ny, nx = map_.shape[-2:]
    shape = tuple(fft.next_fast_len(n + 2 * pad, real=True) for n in (ny, nx))
    rows, cols = fft.fftfreq(shape[0], voxel_mm), fft.rfftfreq(shape[1], voxel_mm)
    gain = np.exp(-2 * (np.pi * blur_mm) ** 2 * (rows[:, None] ** 2 + cols**2)).astype(np.float32)
    out = np.empty(map_.shape, dtype=np.float32)
    for place in np.ndindex(map_.shape[:-2]):
        wide = np.pad(
            np.asarray(map_[place], dtype=np.float32),
            ((pad, shape[0] - ny - pad), (pad, shape[1] - nx - pad)),
            mode="symmetric",
        )
        spectrum = np.asarray(fft.rfft2(wide)) * gain
        out[place] = np.asarray(fft.irfft2(spectrum, shape))[pad : pad + ny, pad : pad + nx]
    return out


def matched(
    maps: Sequence[NDArray[np.floating]], mtfs: Sequence[Mtf], *, voxel_mm: float, mtf50_per_mm: float | None = None
) -> tuple[list[NDArray[np.float32]], float]:
    """Blur maps until all have the same MTF50 in the plane of their slices.

    Parameters
    ----------
    maps : sequence of (..., y, x) float
    mtfs : sequence of Mtf
        Of each map.
    mtf50_per_mm : float, optional
        None: the lowest of theirs.

    Returns
    -------
    maps : list of (..., y, x) float32
    mtf50_per_mm : float
        Which one all have now.
    """
    if mtf50_per_mm is None:
        mtf50_per_mm = min(mtf.mtf50_per_mm for mtf in mtfs)
    return [
        blurred(map_, gaussian_blur_mm(mtf, mtf50_per_mm), voxel_mm) for map_, mtf in zip(maps, mtfs, strict=True)
    ], mtf50_per_mm
