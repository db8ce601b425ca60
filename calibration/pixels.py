"""Which pixels are not to be trusted, why, and the one policy that fills them.

Pixels are judged by what the detector shows and by nothing else: frames without beam, repeated flats, and the range of
the trim DACs.

The policy has two classes of consequence. *Unusable* pixels measure nothing that can be corrected; their values are the
mean of their good neighbours (`fill`), marked as estimated. *Suspect* pixels stand at the edge of the sensor, or beside
a pixel that takes part in their charge sums without counting; their counts are incomplete, but the same in flats and
views, so they are used as they are as long as they pass every other test, and listed.

# Ref: classes and limits: reference on spectral CT, section 5 (dead, under half the median, counts in dark frames, Fano
#      factor of repeated flats above 3, out of trim range, edge, the 8 neighbours of a masked pixel in charge summing).
# Ref: slow telegraph pixels: chi squared of the means of series of flats, apart in time.
"""

from __future__ import annotations

from enum import IntFlag

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import chdtri, ndtr, pdtrc

UNDER_RATIO = 0.5
OVER_RATIO = 2.0
TELEGRAPH_FANO = 3.0
SIGNIFICANCE = 5.0
"""A single pixel must stand this many sigma out: of 16,384 good ones, none does by chance."""
CHANCE = float(ndtr(-SIGNIFICANCE))
NEIGHBOURHOOD = 9
"""Side of the window of the local median, in pixels: wide against clusters of bad pixels, narrow against the field."""
HOT_PER_FRAME = 1.0
"""A pixel that counts so much in the dark on average is hot, one that counts less is noisy."""
UNSTEADY_RELATIVE = 0.02
"""A pixel whose level strays by less than this from its neighbours' over the series of flats is steady enough."""


class PixelClass(IntFlag):
    """Why a pixel is not good; 0 is a good one."""

    DEAD = 1
    NOISY = 2
    UNDER = 4
    OVER = 8
    TELEGRAPH = 16
    OUT_OF_TRIM = 32
    NO_EDGE = 64
    MASKED = 128
    HOT = 256
    EDGE = 512
    MASKED_NEIGHBOUR = 1024


SUSPECT = PixelClass.EDGE | PixelClass.MASKED_NEIGHBOUR
"""These alone leave a pixel usable."""


def is_unusable(pixel_class: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Return which pixels are to be filled from their neighbours, by their PixelClass bits."""
    return (pixel_class & ~np.array(int(SUSPECT), dtype=pixel_class.dtype)) != 0


def classify(
    dark: NDArray[np.number],
    flats: NDArray[np.number],
    *,
    is_out_of_range: NDArray[np.bool_] | None = None,
    has_no_edge: NDArray[np.bool_] | None = None,
    is_masked: NDArray[np.bool_] | None = None,
    dark_rate: float = 0.0,
    flat_series: NDArray[np.integer] | None = None,
    is_csm: bool = False,
    chip_shape: tuple[int, int] | None = None,
) -> NDArray[np.uint16]:
    """Judge each pixel; one bad counter makes the pixel bad, since every bin needs all its counters.

    Parameters
    ----------
    dark : (n_frames, n_counters, rows, cols) number
        Frames without beam, at the thresholds of the scan.
    flats : (n_frames, n_counters, rows, cols) number
        Repeated frames of the open beam.
    is_out_of_range, has_no_edge, is_masked : (rows, cols) bool, optional
        What the equalisation found: no trim code reaches the target; no noise peak was seen; switched off.
    dark_rate : float
        Counts per frame that a good pixel may show without beam (cosmic rays, activity of the surroundings).
    flat_series : (n_frames,) int, optional
        Number of the series of each flat; series are apart in time, so that slow telegraph pixels show.
    is_csm : bool
        Charges of neighbours are summed.
    chip_shape : (int, int), optional
        Rows and columns of a chip; pixels on its borders are edge pixels. By default the image is one chip.

    Returns
    -------
    pixel_class : (rows, cols) uint16
        Bits of PixelClass.
    """
    mean = np.asarray(np.mean(flats, axis=0, dtype=np.float64))
    is_dead = (mean == 0).any(axis=0)
    if is_masked is not None:
        is_dead &= ~is_masked
    is_under, is_over = _against_neighbours(mean, len(flats))
    is_noisy = _is_noisy(dark, dark_rate)
    is_hot = is_noisy & np.asarray((np.mean(dark, axis=0, dtype=np.float64) >= HOT_PER_FRAME + dark_rate).any(axis=0))
    is_telegraph = _is_telegraph(flats, mean)
    if flat_series is not None:
        members = [flats[flat_series == number] for number in np.unique(flat_series)]
        is_telegraph |= is_unsteady(np.stack([np.sum(each, axis=0, dtype=np.float64) for each in members]))
    reasons = {
        PixelClass.DEAD: is_dead,
        PixelClass.NOISY: is_noisy & ~is_hot,
        PixelClass.HOT: is_hot,
        PixelClass.UNDER: is_under & (mean > 0).all(axis=0),
        PixelClass.OVER: is_over,
        PixelClass.TELEGRAPH: is_telegraph,
        PixelClass.OUT_OF_TRIM: is_out_of_range,
        PixelClass.NO_EDGE: has_no_edge,
        PixelClass.MASKED: is_masked,
    }
    result = np.zeros(flats.shape[-2:], dtype=np.uint16)
    for reason, found in reasons.items():
        if found is not None:
            result[found] |= np.uint16(reason)
    result[at_edge((flats.shape[-2], flats.shape[-1]), chip_shape)] |= np.uint16(PixelClass.EDGE)
    if is_csm:
        # A dead or a masked amplifier takes its share of a charge and counts nothing of it; a hot one wins from others.
        takes = is_dead | is_hot if is_masked is None else is_dead | is_hot | is_masked
        around = ndimage.binary_dilation(takes, structure=np.ones((3, 3), dtype=bool)) & ~takes
        result[around] |= np.uint16(PixelClass.MASKED_NEIGHBOUR)
    return result


def at_edge(shape: tuple[int, int], chip_shape: tuple[int, int] | None = None) -> NDArray[np.bool_]:
    """Return the outermost pixels of the sensor, and the wide ones on both sides of a seam between chips.

    Parameters
    ----------
    shape : (int, int)
        Rows and columns of the image.
    chip_shape : (int, int), optional
        Rows and columns of one chip, the image by default.
    """
    rows, cols = chip_shape or shape
    if shape[0] % rows or shape[1] % cols:
        raise ValueError(f"chips of {rows} x {cols} pixels do not fill {shape[0]} x {shape[1]}; allowed: whole chips")
    row, col = np.arange(shape[0]) % rows, np.arange(shape[1]) % cols
    return np.asarray(
        ((row == 0) | (row == rows - 1))[:, None] | ((col == 0) | (col == cols - 1))[None, :], dtype=np.bool_
    )


def is_unsteady(series: NDArray[np.number]) -> NDArray[np.bool_]:
    """Return pixels whose level changes from one series of flats to another, against that of the pixels around.

    Parameters
    ----------
    series : (n_series, n_counters, rows, cols) float
        Counts of each series added up; how many frames each has does not matter.

    Returns
    -------
    is_unsteady : (rows, cols) bool
    """
    counts = np.asarray(series, dtype=np.float64)
    if len(counts) < 2:
        return np.zeros(counts.shape[-2:], dtype=bool)
    size = (1, 1, NEIGHBOURHOOD, NEIGHBOURHOOD)
    local = np.maximum(ndimage.median_filter(counts, size=size, mode="nearest"), 1e-9)
    ratio = counts / local  # drift of tube and sensor is common to a pixel and those around it
    level = np.maximum(counts.sum(axis=0) / local.sum(axis=0), 1e-9)
    expected = np.maximum(level * local, 1e-9)
    n = len(counts) - 1
    chi_square = ((counts - expected) ** 2 / expected).sum(axis=0)
    # Shared charge scatters more than Poisson's law, in all pixels alike: the median pixel tells how much.
    fano = np.maximum(np.median(chi_square, axis=(1, 2), keepdims=True) / chdtri(n, 0.5), 1.0)
    by_chance = fano * chdtri(n, CHANCE)
    # What chance alone adds to the scatter is taken off before the scatter is held against the limit.
    scatter = np.maximum((ratio / level - 1).var(axis=0, ddof=1) - fano * (1 / expected).mean(axis=0), 0)
    return np.asarray(((chi_square > by_chance) & (scatter > UNSTEADY_RELATIVE**2)).any(axis=0))


def fill(images: NDArray[np.floating], is_bad: NDArray[np.bool_]) -> NDArray[np.floating]:
    """Give each bad pixel the mean of its good neighbours among the eight, in the plane of the image.

    A pixel inside a cluster is filled from those filled before it, ring by ring. The mean is exact on a plane slope
    for a pixel that stands alone.

    Parameters
    ----------
    images : (..., rows, cols) float
    is_bad : (rows, cols) bool

    Returns
    -------
    filled : (..., rows, cols), dtype of `images`

    Raises
    ------
    ValueError
        No pixel is good.
    """
    if is_bad.all():
        raise ValueError(f"all {is_bad.size} pixels are bad; allowed: at least one good pixel to fill from")
    filled = images.copy()
    flat = filled.reshape(-1, is_bad.size)
    is_known = np.pad(~is_bad, 1)
    cols = is_bad.shape[1]
    steps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
    while not is_known[1:-1, 1:-1].all():
        y, x = np.nonzero(~is_known[1:-1, 1:-1])
        around_known = np.stack([is_known[y + dy + 1, x + dx + 1] for dy, dx in steps], axis=1)
        is_next = around_known.any(axis=1)
        y, x, around_known = y[is_next], x[is_next], around_known[is_next]
        total = np.zeros((len(flat), len(y)), flat.dtype)
        for (dy, dx), is_good in zip(steps, around_known.T, strict=True):  # one by one: the same sum in any cut-out
            # `where` and not a product with 0: what stands in a bad pixel may be NaN.
            total += np.where(is_good, flat[:, np.where(is_good, (y + dy) * cols + x + dx, 0)], 0)
        flat[:, y * cols + x] = total / around_known.sum(axis=1, dtype=flat.dtype)
        is_known[y + 1, x + 1] = True
    return filled


def fill_reach(is_bad: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Return how many rows away `fill` looks for each row: (rows,) int.

    A bad pixel that is n pixels from the nearest good one is filled from pixels up to n rows away. Given so many rows
    more on either side, `fill` makes of some rows what it makes of the whole image.

    Parameters
    ----------
    is_bad : (..., rows, cols) bool
    """
    planes = is_bad.reshape(-1, *is_bad.shape[-2:])
    reach = np.zeros(planes.shape[1], np.intp)
    for plane in planes:
        if plane.any() and not plane.all():
            distance: NDArray[np.int32] = ndimage.distance_transform_cdt(plane, metric="chessboard")  # pyright: ignore
            reach = np.maximum(reach, distance.max(axis=1))
    return reach


def _is_noisy(dark: NDArray[np.number], dark_rate: float) -> NDArray[np.bool_]:
    """Return pixels with more dark counts than chance allows at `dark_rate`: (rows, cols) bool."""
    total = np.asarray(np.sum(dark, axis=0, dtype=np.float64))
    return np.asarray(_is_too_many(total, dark_rate * len(dark)).any(axis=0))


def _against_neighbours(mean: NDArray[np.float64], n_frames: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return pixels far below and far above the median around them: two (rows, cols) bool."""
    local = np.stack([ndimage.median_filter(plane, size=NEIGHBOURHOOD, mode="nearest") for plane in mean])
    # Where the flat is weak, a Poisson pixel strays by itself: the limits give way to its own spread.
    is_under = (mean < UNDER_RATIO * local) & (mean < local - SIGNIFICANCE * np.sqrt(local / n_frames))
    # The tail above is the long one, and a median of counts stands up to one below their mean.
    is_over = (mean > OVER_RATIO * local) & _is_too_many(mean * n_frames, local * n_frames + 1)
    return np.asarray(is_under.any(axis=0)), np.asarray(is_over.any(axis=0))


def _is_too_many(total: NDArray[np.float64], expected: NDArray[np.float64] | float) -> NDArray[np.bool_]:
    """Return whether Poisson's law makes so many counts or more out of those expected less often than `CHANCE`."""
    return np.asarray((total > 0) & (pdtrc(np.maximum(np.rint(total) - 1, 0), expected) <= CHANCE))


def _is_telegraph(flats: NDArray[np.number], mean: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return pixels whose repeated flats scatter far more than their counts allow: (rows, cols) bool."""
    n_frames = len(flats)
    if n_frames < 2:
        return np.zeros(flats.shape[-2:], dtype=bool)
    values = np.asarray(flats, dtype=np.float64)
    # Drift of tube and sensor is common to all pixels; only what is a pixel's own may call it telegraph.
    level = np.minimum(values, 3 * np.median(mean, axis=(1, 2))[:, None, None] + 3).mean(axis=(2, 3), keepdims=True)
    values *= np.divide(level.mean(axis=0), level, out=np.ones_like(level), where=level > 0)
    fano = np.divide(values.var(axis=0, ddof=1), mean, out=np.zeros_like(mean), where=mean > 0)
    # The variance of n Poisson frames follows chi squared with n - 1 degrees of freedom.
    by_chance = chdtri(n_frames - 1, CHANCE) / (n_frames - 1)
    return np.asarray((fano > max(TELEGRAPH_FANO, by_chance)).any(axis=0))
