"""What can be asked of counts at several thresholds: bins, colours, flat field, regions, spectra, profiles, odd pixels.

counts are (n_counters, rows, cols), events above each threshold, lowest first; a plane is (rows, cols), a pixel
(row, col). Nothing here changes what it is given.

# Ref: a bin is the difference of two counters: `calibration.correction.bins`. The two colours of two bins: orange and
#      blue, which every kind of colour blindness tells apart; their sum, and that of all palettes here, is white.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gui.levels import percentile_levels

if TYPE_CHECKING:
    from calibration.store import Calibration

NOISY_RATIO = 2.0
NOISY_SIGMAS = 5.0
"""A pixel so many times, and so many standard deviations, above the median of those around it looks noisy."""


class Kind(Enum):
    """What of the counters is looked at; the value says it in words."""

    THRESHOLD = "threshold"
    BIN = "bin"
    DIFFERENCE = "difference"
    COMPOSITE = "colour"


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What is looked at: counter `first`, the bin that begins there, or counter `first` minus counter `second`."""

    kind: Kind = Kind.THRESHOLD
    first: int = 0
    second: int = 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Flat:
    """A picture of the open beam.

    Attributes
    ----------
    rates_per_s : (n_counters, rows, cols) floating
        Counts per second of exposure.
    tube_kvp, current_ma : float, optional
        As the tube stood; None: not known.
    calibration : Calibration, optional
        With which it was taken.
    origin : str
        Where it is from, in words.
    """

    rates_per_s: NDArray[np.floating]
    thresholds: tuple[int, ...]
    thresholds_kev: tuple[float, ...]
    n_frames: int
    tube_kvp: float | None = None
    current_ma: float | None = None
    calibration: Calibration | None = None
    origin: str = ""


class Shape(Enum):
    """What a region is."""

    RECTANGLE = "rectangle"
    ELLIPSE = "ellipse"


class Region(NamedTuple):
    """A region of an image, in pixels: its lower left corner and size; a pixel belongs to it if its centre does."""

    shape: Shape
    x: float
    y: float
    width: float
    height: float


class Statistics(NamedTuple):
    """Of the pixels of a region that count: how many, and their values; nan where there are none."""

    n: int
    n_left_out: int
    n_saturated: int
    mean: float
    sd: float
    total: float
    low: float
    high: float


class Spectrum(NamedTuple):
    """Mean counts per pixel of a region above each threshold and in each bin, with standard errors of the means."""

    above: NDArray[np.float64]
    above_sigma: NDArray[np.float64]
    within: NDArray[np.float64]
    within_sigma: NDArray[np.float64]


def select(counts: NDArray[np.number], selection: Selection) -> NDArray[np.number]:
    """Return the plane that is looked at: unsigned counts, or signed differences of them.

    Raises
    ------
    ValueError
        It is a composite, which is no plane, or a counter that is not there.
    """
    n = len(counts)
    if selection.kind is Kind.COMPOSITE:
        raise ValueError("a colour composite is no plane; ask `composite` for it")
    first, second = selection.first, selection.second
    if selection.kind is Kind.BIN:
        second = first + 1
    if not 0 <= first < n or (selection.kind is Kind.DIFFERENCE and not 0 <= second < n):
        raise ValueError(f"counters {first} and {second} are not both there; allowed: 0 to {n - 1}")
    if selection.kind is Kind.THRESHOLD or (selection.kind is Kind.BIN and second == n):
        return counts[first]
    kind = np.float64 if np.issubdtype(counts.dtype, np.floating) else np.int64
    return counts[first].astype(kind) - counts[second].astype(kind)


def bins(counts: NDArray[np.number]) -> NDArray[np.number]:
    """Return all bins, the last one open: (n_counters, rows, cols)."""
    return np.stack([select(counts, Selection(kind=Kind.BIN, first=n)) for n in range(len(counts))])


def bin_colours(n_bins: int) -> NDArray[np.float64]:
    """Return the colour of each bin, (n_bins, 3): from red (low energies) to blue; where all are equal it is white."""
    if n_bins == 1:
        return np.ones((1, 3))
    if n_bins == 2:
        return np.array([[0.9, 0.6, 0.0], [0.1, 0.4, 1.0]])
    at = np.linspace(0.0, 2.0, n_bins)
    weights = np.maximum(1 - np.abs(at[:, None] - np.arange(3)), 0)
    return weights / weights.sum(axis=0)


def composite(
    values: NDArray[np.number], levels: Sequence[tuple[float, float]] | None = None
) -> tuple[NDArray[np.uint8], list[tuple[float, float]]]:
    """Show all bins at once, each as a light of its own colour.

    Parameters
    ----------
    values : (n_bins, rows, cols) number
    levels : (n_bins,) of (dark, full), optional
        By default 0 to the high percentile of each bin, so that what all bins see alike is grey.

    Returns
    -------
    picture : (rows, cols, 3) uint8
    levels : list
        Those that were used.
    """
    used = [(0.0, max(percentile_levels(plane)[1], 1e-9)) for plane in values] if levels is None else list(levels)
    picture = np.zeros((*values.shape[1:], 3), dtype=np.float32)
    for plane, (low, high), colour in zip(values, used, bin_colours(len(values)), strict=True):
        share = np.clip((np.asarray(plane, dtype=np.float32) - low) / max(high - low, 1e-9), 0, 1)
        picture += np.nan_to_num(share, nan=0.0)[..., None] * colour.astype(np.float32)
    return np.rint(255 * np.minimum(picture, 1)).astype(np.uint8), used


def transmission(counts: NDArray[np.number], exposure_s: float, flat: Flat) -> NDArray[np.float64]:
    """Return each counter's share of the open beam; NaN where the open beam shows nothing.

    Raises
    ------
    ValueError
        The flat is of other counters or pixels.
    """
    if counts.shape != flat.rates_per_s.shape:
        raise ValueError(f"the flat has shape {flat.rates_per_s.shape}, the picture {counts.shape}; take a flat anew")
    expected = flat.rates_per_s * exposure_s
    return np.divide(counts, expected, out=np.full(counts.shape, np.nan), where=expected > 0)


def flattened(counts: NDArray[np.number], exposure_s: float, flat: Flat, selection: Selection) -> NDArray[np.number]:
    """Return the selected plane as a share of the open beam's; NaN where the open beam shows nothing."""
    if selection.kind is Kind.THRESHOLD:
        return transmission(counts, exposure_s, flat)[selection.first]
    if counts.shape != flat.rates_per_s.shape:
        raise ValueError(f"the flat has shape {flat.rates_per_s.shape}, the picture {counts.shape}; take a flat anew")
    seen, expected = select(counts, selection), select(flat.rates_per_s, selection) * exposure_s
    return np.divide(seen, expected, out=np.full(seen.shape, np.nan), where=expected > 0)


def is_saturated(counts: NDArray[np.unsignedinteger], full: int) -> NDArray[np.bool_]:
    """Return pixels of one frame in which any counter is full: (rows, cols) bool."""
    return np.asarray((counts >= full).any(axis=0))


def looks_noisy(plane: NDArray[np.number]) -> NDArray[np.bool_]:
    """Guess which pixels fire by themselves: far above the median of their eight neighbours: (rows, cols) bool."""
    values = np.nan_to_num(np.asarray(plane, dtype=np.float32), nan=0.0)
    wide = np.pad(values, 1, mode="reflect" if min(values.shape) > 1 else "edge")
    rows, cols = values.shape
    around = np.stack([wide[y : y + rows, x : x + cols] for y in range(3) for x in range(3) if (y, x) != (1, 1)])
    local = np.partition(around, 4, axis=0)[4]
    above = values - local
    return np.asarray((values > NOISY_RATIO * local) & (above > NOISY_SIGMAS * np.sqrt(np.maximum(local, 0) + 1)))


def inside(region: Region, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which pixels of an image belong to a region: (rows, cols) bool."""
    y, x = np.ogrid[0.5 : shape[0] : 1, 0.5 : shape[1] : 1]
    if region.shape is Shape.RECTANGLE:
        is_x = (x >= region.x) & (x < region.x + region.width)
        return np.asarray(is_x & (y >= region.y) & (y < region.y + region.height))
    if region.width <= 0 or region.height <= 0:
        return np.zeros(shape, dtype=bool)
    u = (x - region.x - region.width / 2) / (region.width / 2)
    v = (y - region.y - region.height / 2) / (region.height / 2)
    return np.asarray(u * u + v * v <= 1)


def statistics(
    plane: NDArray[np.number],
    where: NDArray[np.bool_],
    is_left_out: NDArray[np.bool_] | None = None,
    is_full: NDArray[np.bool_] | None = None,
) -> Statistics:
    """Return the statistics of a region, without pixels that are left out and those that are not a number."""
    used = where & np.isfinite(plane) if is_left_out is None else where & ~is_left_out & np.isfinite(plane)
    values = np.asarray(plane[used], dtype=np.float64)
    n_left_out = 0 if is_left_out is None else int(np.count_nonzero(where & is_left_out))
    n_full = 0 if is_full is None else int(np.count_nonzero(where & is_full))
    nan = float("nan")
    if not values.size:
        return Statistics(0, n_left_out, n_full, nan, nan, nan, nan, nan)
    sd = float(values.std(ddof=1)) if values.size > 1 else nan
    total = float(values.sum())
    return Statistics(
        values.size, n_left_out, n_full, total / values.size, sd, total, float(values.min()), float(values.max())
    )


def spectrum(
    counts: NDArray[np.number], where: NDArray[np.bool_], is_left_out: NDArray[np.bool_] | None = None
) -> Spectrum:
    """Return mean counts of a region over the thresholds; nan where it has no pixel that counts."""
    used = where if is_left_out is None else where & ~is_left_out
    pixels = np.asarray(counts[:, used], dtype=np.float64)
    within = pixels.copy()
    within[:-1] -= pixels[1:]
    return Spectrum(*_mean_and_sigma(pixels), *_mean_and_sigma(within))


def profile(
    plane: NDArray[np.number], start: tuple[float, float], end: tuple[float, float], width: int = 1
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return values along a line, one for each pixel's length, each from the pixels that the line's points lie in.

    Parameters
    ----------
    start, end : (x, y) in pixels
    width : int
        Lines side by side, one pixel apart, that are averaged.

    Returns
    -------
    distance_px, values : (n,) float64
        NaN where the line is outside the image.
    """
    (x0, y0), (x1, y1) = start, end
    length = float(np.hypot(x1 - x0, y1 - y0))
    distance = np.arange(max(int(np.floor(length)) + 1, 1), dtype=np.float64)
    along = np.array((x1 - x0, y1 - y0)) / length if length > 0 else np.array((1.0, 0.0))
    aside = (np.arange(max(width, 1)) - (max(width, 1) - 1) / 2)[:, None]
    x = np.floor(x0 + along[0] * distance - along[1] * aside).astype(int)
    y = np.floor(y0 + along[1] * distance + along[0] * aside).astype(int)
    is_in = (x >= 0) & (x < plane.shape[1]) & (y >= 0) & (y < plane.shape[0])
    values = np.where(is_in, np.asarray(plane, dtype=np.float64)[np.where(is_in, y, 0), np.where(is_in, x, 0)], np.nan)
    is_known = np.isfinite(values)
    n = is_known.sum(axis=0)
    total = np.where(is_known, values, 0.0).sum(axis=0)
    return distance, np.divide(total, n, out=np.full(len(distance), np.nan), where=n > 0)


def _mean_and_sigma(pixels: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    n = pixels.shape[1]
    if not n:
        nothing = np.full(len(pixels), np.nan)
        return nothing, nothing.copy()
    sigma = pixels.std(axis=1, ddof=1) / np.sqrt(n) if n > 1 else np.full(len(pixels), np.nan)
    return pixels.mean(axis=1), sigma
