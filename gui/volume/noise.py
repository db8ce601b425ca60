"""How noisy a volume is, told by the volume alone, and windows that begin above it.

Two voxels a few apart mostly hold the same matter; what they differ by is noise. Its spread is told by the lower
quartile of the differences, which edges hardly move. Neighbours share noise where a volume was interpolated or
smoothed, so that the largest spread over a few distances counts.

# Ref: spread by a quantile of absolute deviations: Hampel 1974, J. Am. Stat. Assoc. 69, 383 (there the median). Noise
#      by differences of neighbours: Immerkaer 1996, Comput. Vis. Image Underst. 64, 300.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from gui.colour import Look

L = TypeVar("L", bound=Look)

QUARTILE_SDS = 0.31864
"""A quarter of the values of a normal distribution lie within so many standard deviations of its middle."""
LAGS = (1, 2, 3)
"""Distances of the voxels that are compared, along x and y."""
MOST_EMPTY = 0.6
"""A field of view leaves a fifth of its square empty, and noise about 0 that is cut off there not half of the pairs."""
MOST_SLICES = 16
"""So many slices, evenly spread, tell the noise of a volume."""
FLOOR_SDS = 3.0
"""A window begins this many standard deviations above 0: one voxel in 740 of noise alone lies beyond."""
LEAST_SPAN = 0.5
"""A window that begins above the noise is at least so wide, in shares of where it begins."""
SMOOTHINGS = (0.0, 0.7, 1.0, 1.5, 2.0)
"""Standard deviations of the Gaussians that calm a volume, in voxels."""
TOP_QUANTILE = 0.998
"""Where nothing lies above the noise up to here, there is nothing but noise."""
CALM_SHARE = 0.35
"""A volume is calm enough when noise ends below this share of its window's top."""


def noise_of(values: NDArray[np.floating]) -> float:
    """Return the standard deviation of the noise in (z, y, x) values, in their unit; 0 where there is none to see.

    Pairs of voxels that are both exactly 0 tell nothing, outside the field of view or where values are cut off at 0;
    where there is little else, somebody took the noise away.
    """
    step = max(-(-len(values) // MOST_SLICES), 1)
    part = np.asarray(values[step // 2 :: step], dtype=np.float32)
    spreads = [_spread(part, axis, lag) for axis in (1, 2) for lag in LAGS if part.shape[axis] > lag]
    return max(spreads, default=0.0)


def _spread(values: NDArray[np.float32], axis: int, lag: int) -> float:
    ahead, behind = (np.moveaxis(values, axis, 0)[part] for part in (slice(lag, None), slice(None, -lag)))
    is_told = np.isfinite(ahead) & np.isfinite(behind) & ((ahead != 0) | (behind != 0))
    if is_told.sum() < (1 - MOST_EMPTY) * is_told.size:
        return 0.0
    apart = np.abs(ahead[is_told] - behind[is_told])
    return float(np.quantile(apart, 0.25)) / QUARTILE_SDS / math.sqrt(2) if apart.size else 0.0


def above_noise(look: L, noise_g_cm3: float) -> L:
    """Return a look whose window begins above the noise, and stays open."""
    low = max(look.low_g_cm3, FLOOR_SDS * noise_g_cm3)
    return replace(look, low_g_cm3=low, high_g_cm3=max(look.high_g_cm3, (1 + LEAST_SPAN) * low))


def smoothing_for(values: NDArray[np.floating], high_g_cm3: float) -> float:
    """Return the least of `SMOOTHINGS` that brings the noise of a material well below the top of its window.

    A material that nowhere passes its noise is left as it is: there is nothing to bring out.

    Parameters
    ----------
    values : (z, y, x) float
        In g/cm3; a few slices about the middle are smoothed to see what comes of it.
    """
    part = values[:: max(-(-len(values) // MOST_SLICES), 1)]
    if float(np.quantile(part[np.isfinite(part)], TOP_QUANTILE, method="nearest")) <= FLOOR_SDS * noise_of(values):
        return 0.0
    middle = len(values) // 2
    part = np.nan_to_num(np.asarray(values[max(middle - MOST_SLICES, 0) : middle + MOST_SLICES], dtype=np.float32))
    for sigma in SMOOTHINGS:
        if FLOOR_SDS * noise_of(smoothed(part, sigma)) <= CALM_SHARE * high_g_cm3:
            return sigma
    return SMOOTHINGS[-1]


def smoothed(values: NDArray[np.float32], sigma_voxels: float) -> NDArray[np.float32]:
    """Return (z, y, x) values averaged with a Gaussian; 0 leaves them as they are."""
    if sigma_voxels <= 0:
        return values
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(values, sigma_voxels, mode="nearest", truncate=3.0), dtype=np.float32)
