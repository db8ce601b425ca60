"""Where the noise of material maps lies in frequency, and how it goes together from map to map.

Maps that come from one decomposition share their noise: what one has too much of, another has too little. So the noise
power is a matrix for every frequency: spectra on its diagonal, cross-spectra beside it.

# Ref: noise power spectrum from squares whose trend is taken off: ICRU 54 (1996); Siewerdsen et al. 2002, Med. Phys.
#      29, 2655; in CT: Kijewski and Judy 1987, Phys. Med. Biol. 32, 565. Cross-spectrum and coherence: Bendat and
#      Piersol 2010, Random Data, 4th ed., chapter 5.
# Ref: noise-equivalent quanta as squared signal times MTF squared over noise power: ICRU 54 (1996), section 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from firmware_iface.errors import WrongUsage
from reconstruction.merit.resolution import Mtf

LEAST_SIDE_VOXELS = 8
MAD_TO_SIGMA = 1.4826
"""A normal law's standard deviation over its median absolute deviation: Rousseeuw and Croux 1993, J. Am. Stat. Assoc.
88, 1273."""
FALSE_SIGMAS = 6.0
"""An estimate further off than this many of its standard deviations sits in another minimum."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NoisePower:
    """Noise power of maps and between them, in the plane of the slices.

    Attributes
    ----------
    frequency_per_mm : (n,) float64
        Along both axes, as `numpy.fft.fftfreq` orders them.
    power : (n_maps, n_maps, n, n) complex128
        In the maps' unit squared, mm2; `power[a, b]` is the conjugate of `power[b, a]`. Its sum over all frequencies,
        times the area of one, is the covariance of the voxels.
    n_squares : int
    """

    frequency_per_mm: NDArray[np.float64]
    power: NDArray[np.complex128]
    n_squares: int

    @property
    def covariance(self) -> NDArray[np.float64]:
        """Covariance of the maps' voxels: (n_maps, n_maps) float64, the integral of the power."""
        per_mm = self.frequency_per_mm[1] - self.frequency_per_mm[0]
        return self.power.sum(axis=(-2, -1)).real * per_mm**2

    def radial(self) -> RadialPower:
        """Return means over all directions, in rings one frequency step wide; the mean and the corners are left out."""
        step = self.frequency_per_mm[1]
        away = np.hypot(self.frequency_per_mm[:, None], self.frequency_per_mm)
        n_rings = len(self.frequency_per_mm) // 2
        ring = np.rint(away / step).astype(int).ravel()
        counts = np.bincount(ring)[1 : n_rings + 1]
        frequency = np.bincount(ring, weights=away.ravel())[1 : n_rings + 1] / counts
        n_maps = len(self.power)
        power = np.empty((n_maps, n_maps, n_rings))
        for a, b in np.ndindex(n_maps, n_maps):
            power[a, b] = np.bincount(ring, weights=self.power[a, b].real.ravel())[1 : n_rings + 1] / counts
        return RadialPower(frequency_per_mm=frequency, power=power)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RadialPower:
    """Noise power by the distance from frequency 0.

    Attributes
    ----------
    frequency_per_mm : (n_rings,) float64
    power : (n_maps, n_maps, n_rings) float64
        Beside the diagonal the part in phase: its sign tells whether two maps err together or against each other.
    """

    frequency_per_mm: NDArray[np.float64]
    power: NDArray[np.float64]

    @property
    def coherence(self) -> NDArray[np.float64]:
        """Cross-power over the root of both maps' own: from -1 to 1, (n_maps, n_maps, n_rings) float64."""
        own = np.sqrt(np.einsum("aaf->af", self.power))
        return self.power / (own[:, None] * own[None])

    def mean_frequency_per_mm(self) -> NDArray[np.float64]:
        """Return where each map's noise has its centre of gravity, over the plane: (n_maps,) float64."""
        own = np.einsum("aaf->af", self.power) * self.frequency_per_mm
        return own @ self.frequency_per_mm / own.sum(axis=1)


def noise_power(squares: ArrayLike, voxel_mm: float, *, is_flattened: bool = True) -> NoisePower:
    """Measure the noise power in squares of a region that is uniform in truth.

    Parameters
    ----------
    squares : (n_maps, n_squares, n, n) float
        The same squares of each map.
    is_flattened : bool
        Take the plane that fits best off each square, or else its mean only. The three frequencies that it takes are
        lacking in the covariance: 3 of n * n.
    """
    values = np.asarray(squares, dtype=np.float64)
    if values.ndim != 4 or values.shape[2] != values.shape[3] or values.shape[2] < LEAST_SIDE_VOXELS:
        raise WrongUsage(
            f"noise squares of shape {values.shape}; allowed: (maps, squares, n, n) with n at least "
            f"{LEAST_SIDE_VOXELS} voxels",
            hint="state a larger uniform square in the phantom's description",
        )
    n_squares, n = values.shape[1:3]
    spectra = np.fft.fft2(_without_trend(values) if is_flattened else values - values.mean((-2, -1), keepdims=True))
    power = np.einsum("asij,bsij->abij", spectra, spectra.conj(), optimize=True) * voxel_mm**2 / (n_squares * n**2)
    return NoisePower(frequency_per_mm=np.fft.fftfreq(n, voxel_mm).astype(np.float64), power=power, n_squares=n_squares)


def _without_trend(squares: NDArray[np.float64]) -> NDArray[np.float64]:
    n = squares.shape[-1]
    along = np.arange(n) - (n - 1) / 2
    weight = (along**2).sum() * n
    slope_y = (squares * along[:, None]).sum((-2, -1), keepdims=True) / weight
    slope_x = (squares * along).sum((-2, -1), keepdims=True) / weight
    return squares - squares.mean((-2, -1), keepdims=True) - slope_y * along[:, None] - slope_x * along


def squares_of(region: NDArray[np.floating], side_voxels: int) -> NDArray[np.floating]:
    """Cut a region into squares side by side: (n_maps, z, y, x) to (n_maps, n_squares, side, side)."""
    n_maps, n_z, n_y, n_x = region.shape
    rows, cols = n_y // side_voxels, n_x // side_voxels
    cut = region[:, :, : rows * side_voxels, : cols * side_voxels]
    tiles = cut.reshape(n_maps, n_z, rows, side_voxels, cols, side_voxels).transpose(0, 1, 2, 4, 3, 5)
    return tiles.reshape(n_maps, -1, side_voxels, side_voxels)


def noise_equivalent_quanta(
    mtf: Mtf, frequency_per_mm: ArrayLike, power: ArrayLike, signal: float
) -> NDArray[np.float64]:
    """Return how many quanta an ideal counter of the same signal to noise would need: per mm2 of a slice.

    Parameters
    ----------
    frequency_per_mm, power : (n,) float
        Radial noise power of the map, in its unit squared, mm2.
    signal : float
        The concentration that the noise is held against, in the map's unit.
    """
    modulation = signal * mtf.at(frequency_per_mm)
    return modulation**2 / np.asarray(power, dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """Spread of estimates over the least that is possible (Cramer-Rao).

    Attributes
    ----------
    sd_ratio : float
        Standard deviation of the errors, each over its bound: 1 at the limit.
    robust_ratio : float
        The same from the median absolute error, which strays do not move.
    bias_ratio : float
        Mean error in standard deviations of the bound.
    false_share : float
        Share of estimates further off than six standard deviations.
    """

    sd_ratio: float
    robust_ratio: float
    bias_ratio: float
    false_share: float


def efficiency(errors: ArrayLike, bound_sd: ArrayLike) -> Efficiency:
    """Compare errors, estimated - true, with the Cramer-Rao bound of each: arrays of one shape, or that broadcast."""
    pulls = (np.asarray(errors, dtype=np.float64) / np.asarray(bound_sd, dtype=np.float64)).ravel()
    pulls = pulls[np.isfinite(pulls)]
    if not pulls.size:
        raise ValueError("there is no finite error to compare with its bound; allowed: at least 1")
    return Efficiency(
        sd_ratio=float(pulls.std()),
        robust_ratio=MAD_TO_SIGMA * float(np.median(np.abs(pulls - np.median(pulls)))),
        bias_ratio=float(pulls.mean()),
        false_share=float((np.abs(pulls) > FALSE_SIGMAS).mean()),
    )
