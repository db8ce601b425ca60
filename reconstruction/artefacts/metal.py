"""Metal and rays that starve of photons: weights by what was counted, and views in-painted through the metal.

A ray that few photons came through says little, and a method that knows it needs no other correction: `weights` gives
each line integral the inverse of its variance. For filtered back-projection, which weighs all alike, `reduce` finds the
metal in a first volume, marks the rays through it, and interpolates across: on the views as they are, or on views
divided by those of a prior without metal, in which tissue and bone are already there.

# Ref: linear interpolation: Kalender, Hebel and Ebersberger 1987, Radiology 164, 576.
# Ref: normalised: Meyer, Raupach, Lell, Schmidt and Kachelriess 2010, Med. Phys. 37, 5482.
# Ref: variance of a logarithm of counts: Sauer and Bouman 1993, IEEE Trans. Signal Process. 41, 534.
# Ref: threshold between classes of grey values: Otsu 1979, IEEE Trans. Syst. Man Cybern. 9, 62.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_multiotsu

from calibration.progress import Progress
from firmware_iface.errors import WrongUsage
from reconstruction.operators import Operator

METHODS = ("linear", "normalised")
METAL_CONTRAST = 2.5
"""Metal is at least so many times as dense as the densest of the rest, or there is none (a choice)."""
DENSE_QUANTILE = 0.995
"""Of the voxels without metal: what is dense among them."""
RIM_VOXELS = 3
"""Around the metal, where its blur is neither."""
SHADOW_SHARE = 0.5
"""Of a voxel's edge: a ray with a longer way through metal is in its shadow."""
PRIOR_BLUR_VOXELS = 1.5
"""Smoothing of the volume before its classes are told apart, against noise and streaks (a choice)."""
LEAST_PRIOR = 0.05
"""Of the prior's highest line integral: where it is less, the views are not divided by less than this."""
FLOOR_COUNTS = 1.0
"""Variance, in counts squared, that is there besides the photons'; it keeps starved rays at a small weight."""


def weights(
    values: NDArray[np.float32],
    open_beam: NDArray[np.floating] | float,
    *,
    is_estimated: NDArray[np.bool_] | None = None,
    floor_counts: float = FLOOR_COUNTS,
) -> NDArray[np.float32]:
    """Return the inverse variance of each line integral, 0 for those that were not measured.

    Of n counts with a variance of n + floor, the logarithm has a variance of (n + floor) / n^2.

    Parameters
    ----------
    values : (n_bins, n_views, rows, cols) float32
    open_beam : float, or an array that fits `values`
        Counts with nothing in the beam.
    is_estimated : the shape of `values`, bool, optional
    floor_counts : float

    Returns
    -------
    weights : the shape of `values`, float32
    """
    counts = np.exp(-np.maximum(values, -2.0)) * np.asarray(open_beam, dtype=np.float32)
    result = counts * (counts / (counts + np.float32(floor_counts)))
    if is_estimated is not None:
        result[is_estimated] = 0
    return np.asarray(result, dtype=np.float32)


class Reduced(NamedTuple):
    """Line integrals without the metal's shadow.

    Attributes
    ----------
    values : (n_bins, n_views, rows, cols) float32
    words : str
        What was done, for the provenance.
    is_in_shadow : (n_views, rows, cols) bool
        Values that were interpolated.
    is_metal : (z, y, x) bool
    """

    values: NDArray[np.float32]
    words: str
    is_in_shadow: NDArray[np.bool_]
    is_metal: NDArray[np.bool_]


def segment(volume: NDArray[np.floating], *, threshold_per_mm: float | None = None) -> NDArray[np.bool_]:
    """Return which voxels are metal: (z, y, x) bool.

    Parameters
    ----------
    volume : (z, y, x) float, 1/mm
    threshold_per_mm : float, optional
        Without it half the highest value, once smoothed; and nothing is metal where that is less than METAL_CONTRAST
        times what is dense of the rest.
    """
    if threshold_per_mm is not None:
        return np.asarray(volume > threshold_per_mm)
    smooth = np.asarray(ndimage.gaussian_filter(np.asarray(volume, dtype=np.float32), 1.0))
    threshold = float(smooth.max()) / 2
    found = smooth > threshold
    rest = smooth[~np.asarray(ndimage.binary_dilation(found, iterations=RIM_VOXELS), dtype=np.bool_)]
    if threshold <= 0 or not rest.size or threshold < METAL_CONTRAST * float(np.quantile(rest, DENSE_QUANTILE)):
        return np.zeros(volume.shape, dtype=np.bool_)
    return np.asarray(volume > threshold)


def shadow(is_metal: NDArray[np.bool_], projector: Operator, voxel_mm: float) -> NDArray[np.bool_]:
    """Return which rays go through metal: (n_views, rows, cols) bool.

    Parameters
    ----------
    is_metal : (z, y, x) bool
    projector : Operator
        Of one channel, from volumes in 1/mm.
    """
    way_mm = projector.forward(is_metal[None].astype(np.float32))[0]
    return np.asarray(way_mm > SHADOW_SHARE * voxel_mm)


def interpolate(values: NDArray[np.float32], is_in_shadow: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return line integrals interpolated linearly along the rows across the shadow: shape of `values`.

    A row that is all shadow stays as it is.
    """
    cols = values.shape[-1]
    column = np.broadcast_to(np.arange(cols), is_in_shadow.shape)
    left = np.maximum.accumulate(np.where(is_in_shadow, -1, column), axis=-1)
    right = np.minimum.accumulate(np.where(is_in_shadow, cols, column)[..., ::-1], axis=-1)[..., ::-1]
    has_left, has_right = left >= 0, right < cols
    left, right = np.where(has_left, left, right % cols), np.where(has_right, right, np.maximum(left, 0))
    share = ((column - left) / np.maximum(right - left, 1)).clip(0, 1).astype(np.float32)
    low, high = (np.take_along_axis(values, place, axis=-1) for place in (left, right))
    is_lost = is_in_shadow & (has_left | has_right)
    return np.where(is_lost, low + share * (high - low), values)


def prior(volume: NDArray[np.floating], is_metal: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return a volume that holds what the views must look like without metal: (z, y, x) float32, 1/mm.

    Air is 0, soft matter its mean, what is denser as it is; metal is soft matter.

    Parameters
    ----------
    volume : (z, y, x) float
        From views that were interpolated linearly.
    """
    smooth = np.where(is_metal, 0, volume)
    smooth = ndimage.gaussian_filter(np.asarray(smooth, dtype=np.float32), PRIOR_BLUR_VOXELS)
    air, soft = threshold_multiotsu(smooth[~is_metal], classes=3)
    is_soft = (smooth > air) & (smooth <= soft)
    mean = float(volume[is_soft & ~is_metal].mean())
    result = np.where(is_soft, mean, np.where(smooth > soft, smooth, 0))
    result[is_metal] = mean
    return np.asarray(result, dtype=np.float32)


def reduce(
    values: NDArray[np.float32],
    projector: Operator,
    reconstruct: Callable[[NDArray[np.float32]], Generator[Progress, None, NDArray[np.float32]]],
    *,
    voxel_mm: float,
    method: str = "normalised",
    is_metal: NDArray[np.bool_] | None = None,
    threshold_per_mm: float | None = None,
) -> Generator[Progress, None, Reduced]:
    """Take the metal's shadow out of the views, in place.

    Parameters
    ----------
    values : (n_bins, n_views, rows, cols) float32
        Overwritten in the shadow.
    projector : Operator
        From the volumes of `reconstruct`, one channel, to the views.
    reconstruct : function
        From line integrals of any number of bins, (n_bins, n_views, rows, cols), to the work that returns volumes:
        (n_bins, z, y, x), 1/mm.
    voxel_mm : float
    method : str
        "linear" or "normalised".
    is_metal : (z, y, x) bool, optional
        Without it, what `segment` finds in the mean of all bins.
    threshold_per_mm : float, optional
        For `segment`.
    """
    if method not in METHODS:
        raise WrongUsage(f"the metal method is {method!r}; allowed: {', '.join(METHODS)}")
    if is_metal is None:
        mean = values.mean(axis=0, keepdims=True, dtype=np.float32)
        is_metal = segment((yield from reconstruct(mean))[0], threshold_per_mm=threshold_per_mm)
    n_voxels = np.count_nonzero(is_metal)
    if not n_voxels:
        return Reduced(values, "no metal found", np.zeros(values.shape[1:], dtype=np.bool_), is_metal)
    is_in_shadow = shadow(is_metal, projector, voxel_mm)
    linear = np.stack([interpolate(of_bin, is_in_shadow) for of_bin in values])
    if method == "linear":
        values[...] = linear
    else:
        volumes = yield from reconstruct(linear)
        for done, (of_bin, volume) in enumerate(zip(values, volumes, strict=True)):
            yield Progress("metal", done, len(values))
            expected = projector.forward(prior(np.asarray(volume), is_metal)[None])[0]
            scale = np.maximum(expected, LEAST_PRIOR * expected.max())
            of_bin[...] = np.where(is_in_shadow, interpolate(of_bin / scale, is_in_shadow) * scale, of_bin)
    words = f"{n_voxels} voxels of metal, {is_in_shadow.mean():.1%} of the rays interpolated across it ({method})"
    return Reduced(values, words, is_in_shadow, is_metal)


def reinstate(
    volume: NDArray[np.floating], first: NDArray[np.floating], is_metal: NDArray[np.bool_]
) -> NDArray[np.floating]:
    """Return a volume of reduced views with the metal of the first volume put back: (..., z, y, x)."""
    return np.where(is_metal, first, volume)
