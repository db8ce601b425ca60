"""How numbers become brightness: levels that no outlier spoils, the logarithm of counts, histograms.

Every function takes any image: constant, empty, or with no number in it at all.

# Ref: the colour maps: matplotlib's perceptually uniform ones; cividis, Nunez et al. 2018, PLoS ONE 13 e0199239, is
#      made to look the same to people who see colours differently.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

COLOUR_MAPS = ("viridis", "cividis", "grey", "inferno", "magma", "plasma", "turbo")
"""By name; all but the last grow evenly in brightness, and the first two are safe for all kinds of colour blindness."""
SHARE = 0.002
LOWEST_COUNT = 0.5
"""Where the logarithm begins: between no count and one."""


def percentile_levels(image: NDArray[np.number], share: float = SHARE) -> tuple[float, float]:
    """Return levels that leave this share of the pixels beyond either end; never the same number twice."""
    finite = image[np.isfinite(image)]
    if not finite.size:
        return 0.0, 1.0
    places = np.clip(np.rint(np.array((share, 1 - share)) * (finite.size - 1)).astype(int), 0, finite.size - 1)
    parted = np.partition(finite, np.unique(places))
    return apart(float(parted[places[0]]), float(parted[places[1]]))


def apart(low: float, high: float) -> tuple[float, float]:
    """Return two levels that differ, ascending and finite, whatever was asked for."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return 0.0, 1.0
    low, high = min(low, high), max(low, high)
    size = max(abs(low), abs(high))
    if high - low > max(1e-9 * size, 1e-12):
        return low, high
    half = max(0.5, 1e-6 * size)
    return low - half, high + half


def logarithm(image: NDArray[np.number], lowest: float = LOWEST_COUNT) -> NDArray[np.float32]:
    """Return log10 of an image; what is below the lowest shows as the lowest, and what is not a number stays so."""
    values = np.asarray(image, dtype=np.float32)
    return np.log10(np.maximum(values, np.float32(lowest)))


def log_levels(low: float, high: float) -> tuple[float, float]:
    """Return levels for the logarithm of an image, ascending and apart."""
    return apart(*(math.log10(max(level, LOWEST_COUNT)) for level in (low, high)))


def histogram(image: NDArray[np.number], n_bins: int = 256) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return how often which value is there.

    Whole numbers get bins of whole width, so that no bin stands empty between two counts.

    Returns
    -------
    centres : (n,) float64
    counts : (n,) int64
        Of all finite pixels; n is `n_bins` or fewer.
    """
    finite = image[np.isfinite(image)]
    if not finite.size:
        return np.array([0.0, 1.0]), np.zeros(2, dtype=np.int64)
    low, high = float(finite.min()), float(finite.max())
    is_whole = np.issubdtype(image.dtype, np.integer)
    if is_whole:
        width = max(math.ceil((high - low + 1) / n_bins), 1)
        n = max(math.ceil((high - low + 1) / width), 2)
        first = low - 0.5
    else:
        low, high = apart(low, high)
        n, first, width = n_bins, low, (high - low) / n_bins
    place = np.clip(((finite - first) / width).astype(np.int64), 0, n - 1)
    centres = np.asarray(first + width * (np.arange(n) + 0.5), dtype=np.float64)
    return centres, np.bincount(place, minlength=n).astype(np.int64)
