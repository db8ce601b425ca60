"""Stripes of a sinogram, by the published methods: each is a function of `(n_views, cols)` line integrals.

A pixel that reads wrong draws a stripe along the views, and a ring around the axis. All methods look for what is the
same in neighbouring views and differs between neighbouring columns; they differ in how they tell it from the object.
Gains of pixels are factors of counts, hence summands of line integrals: where a paper divides, these subtract.

# Ref: mean profile: Raven 1998, Rev. Sci. Instrum. 69, 2978; Boin and Haibel 2006, Opt. Express 14, 12071.
# Ref: regularised profile: Titarenko, Withers and Yagola 2010, Appl. Math. Lett. 23, 1489; blocks of views and higher
#      orders: Miqueles, Rinkel, O'Dowd and Bermudez 2014, J. Synchrotron Rad. 21, 1333.
# Ref: wavelets and Fourier: Münch, Trtik, Marone and Stampanoni 2009, Opt. Express 17, 8567.
# Ref: sorting, filtering, large and dead stripes: Vo, Atwood and Drakopoulos 2018, Opt. Express 26, 28396.
# Ref: wavelets with compact support: Daubechies 1988, Commun. Pure Appl. Math. 41, 909.
"""

from __future__ import annotations

from functools import cache
from math import comb
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy import ndimage

from reconstruction.kernels import stripes_cpu

Sinogram = NDArray[np.float32]
"""(n_views, cols)"""

_fft: Any = scipy.fft

NOISE_SHARE = 0.25
"""Of the sorted profile, the share at either end that may be stripes and does not tell the noise."""
LEAST_COLUMNS = 8
"""Of fewer columns none can be told to stand out."""
ENDS_SHARE = 0.1
"""Of a column's sorted values, the share at either end that does not tell how bright the column is."""
FLUCTUATION_VIEWS = 11
"""Views over which a good column is smooth but for its noise."""


def running_median(rows: Sinogram, width: int) -> Sinogram:
    """Return the median over `width` neighbouring columns; the ends are mirrored.

    Parameters
    ----------
    rows : (n, cols) float32
    width : int
        Made odd, and no wider than the row.
    """
    values = np.ascontiguousarray(rows, dtype=np.float32)
    medians = np.empty_like(values)
    width = min(width, values.shape[1])
    stripes_cpu.running_median(values, width - 1 + width % 2, medians)
    return medians


def mean_profile(sinogram: Sinogram, *, width_px: int = 9) -> Sinogram:
    """Take off what the mean over all views has beyond its own running median.

    The papers smooth the mean by a low-pass or a moving average; the median smears no edge of the object.
    """
    profile = sinogram.mean(axis=0, dtype=np.float64).astype(np.float32)[None]
    return sinogram - (profile - running_median(profile, width_px))


def regularised(sinogram: Sinogram, *, strength: float = 1.0, order: int = 1, n_blocks: int = 1) -> Sinogram:
    """Take off the profile q that makes the mean over the views smoothest: least |D^m (mean - q)|^2 + strength |q|^2.

    Parameters
    ----------
    strength : float
        What a stripe costs; small ones take off more. The profile's waves longer than about
        2 pi / strength^(1 / 2m) columns are left to the object.
    order : int
        m, the order of the differences.
    n_blocks : int
        Stretches of views with profiles of their own, between whose middles they are interpolated.
    """
    n_views, cols = sinogram.shape
    n_blocks = max(1, min(n_blocks, n_views))
    edges = np.linspace(0, n_views, n_blocks + 1).round().astype(int)
    means = np.add.reduceat(sinogram, edges[:-1], axis=0, dtype=np.float64) / np.diff(edges)[:, None]
    # D^T D of differences between neighbours is diagonal in cosines.
    stiffness = (2 - 2 * np.cos(np.pi * np.arange(cols) / cols)) ** order
    profiles = _fft.idct(_fft.dct(means, axis=1) * (stiffness / (strength + stiffness)), axis=1).astype(np.float32)
    if n_blocks == 1:
        return sinogram - profiles
    place = np.interp(np.arange(n_views), (edges[:-1] + edges[1:] - 1) / 2, np.arange(n_blocks))
    below = np.minimum(place.astype(int), n_blocks - 2)
    share = (place - below).astype(np.float32)[:, None]
    return sinogram - ((1 - share) * profiles[below] + share * profiles[below + 1])


@cache
def daubechies(n_moments: int) -> NDArray[np.float64]:
    """Return the low-pass filter with `n_moments` vanishing moments: (2 n_moments,) float64, of unit norm."""
    if not 1 <= n_moments <= 10:
        raise ValueError(f"a wavelet of {n_moments} vanishing moments was asked for; allowed: 1 to 10")
    # |H|^2 = 2 cos^2n(w/2) P(sin^2(w/2)); of each pair of roots of P the one inside the unit circle.
    roots = []
    for y in np.roots([comb(n_moments - 1 + k, k) for k in range(n_moments)][::-1]):
        pair = np.roots([1, 4 * y - 2, 1])
        roots.append(pair[np.argmin(np.abs(pair))])
    taps = np.real(np.poly([-1.0] * n_moments + roots))
    return np.asarray(taps * np.sqrt(2) / taps.sum(), dtype=np.float64)


def wavelet_fourier(
    sinogram: Sinogram, *, n_levels: int = 3, n_moments: int = 5, damping_orders: float = 1.0
) -> Sinogram:
    """Damp what hardly changes along the views in the bands of a wavelet transform that hold upright edges.

    Only those bands are transformed, damped and brought back: what they lose is taken off the sinogram.

    Parameters
    ----------
    n_levels : int
        Stripes of up to about 2^n_levels columns.
    n_moments : int
        Of Daubechies' wavelet.
    damping_orders : float
        Standard deviation of the Gaussian notch around frequency 0, in waves over the views.
    """
    n_views, cols = sinogram.shape
    low = daubechies(n_moments)
    high = low[::-1] * (-1.0) ** np.arange(len(low))
    low, high = low.astype(np.float32), high.astype(np.float32)
    n_levels = max(1, min(n_levels, int(np.log2(max(min(n_views, cols) / len(low), 2)))))
    unit = 2**n_levels
    # Room for the filters at the sides, so that the two ends of a row do not meet.
    before = [0, min(cols, unit * 2)]
    after = [-n_views % unit, before[1] + -(cols + 2 * before[1]) % unit]
    approximation = np.pad(sinogram, list(zip(before, after, strict=True)), mode="symmetric")
    scale = (n_views + after[0]) / n_views
    lost_bands, shapes = [], []
    for _ in range(n_levels):
        shapes.append(approximation.shape)
        smooth = _analyse(approximation, low)  # along the views
        across = np.ascontiguousarray(smooth.T)
        band, approximation = _analyse(across, high), np.ascontiguousarray(_analyse(across, low).T)
        spectrum = _fft.rfft(band, axis=1)
        wave = np.arange(spectrum.shape[1], dtype=np.float32) / np.float32(scale * damping_orders)
        lost_bands.append(_fft.irfft(spectrum * np.exp(-(wave**2) / 2), n=band.shape[1], axis=1))
    stripes = np.zeros_like(approximation)
    for (n, m), band in zip(shapes[::-1], lost_bands[::-1], strict=True):
        across = np.zeros((m, n // 2), np.float32)
        stripes_cpu.synthesise(np.ascontiguousarray(stripes.T), low, across)
        stripes_cpu.synthesise(np.ascontiguousarray(band, dtype=np.float32), high, across)
        stripes = np.zeros((n, m), np.float32)
        stripes_cpu.synthesise(np.ascontiguousarray(across.T), low, stripes)
    return sinogram - stripes[:n_views, before[1] : before[1] + cols]


def _analyse(signal: Sinogram, taps: NDArray[np.float32]) -> Sinogram:
    half = np.empty((signal.shape[0] // 2, signal.shape[1]), np.float32)
    stripes_cpu.analyse(signal, taps, half)
    return half


def sorting(sinogram: Sinogram, *, width_px: int = 9) -> Sinogram:
    """Sort each column, take the running median over the columns at each rank, and put the values back in order.

    Neighbouring columns see nearly the same values, if not in the same views. For stripes along all views, narrower
    than half the width.
    """
    columns = np.ascontiguousarray(sinogram.T)
    order = np.argsort(columns, axis=1)
    ranked = np.ascontiguousarray(np.take_along_axis(columns, order, axis=1).T)
    np.put_along_axis(columns, order, running_median(ranked, width_px).T, axis=1)
    return np.ascontiguousarray(columns.T)


def filtering(sinogram: Sinogram, *, width_px: int = 9, cutoff_orders: float = 24.0) -> Sinogram:
    """Sort only the part that is smooth along the views, and leave the rest as it is.

    Parameters
    ----------
    cutoff_orders : float
        Standard deviation of the Gaussian that cuts the parts, in waves over the views. Stripes along part of the
        views need a high one.
    """
    n_views = len(sinogram)
    around = n_views // 2
    padded = np.pad(sinogram, ((around, around), (0, 0)), mode="reflect")
    spectrum = _fft.rfft(padded, axis=0)
    wave = np.arange(len(spectrum)) * (n_views / len(padded) / cutoff_orders)
    spectrum *= np.exp(-(wave**2) / 2).astype(np.float32)[:, None]
    smooth = _fft.irfft(spectrum, n=len(padded), axis=0)[around : around + n_views].astype(np.float32)
    return sinogram + (sorting(smooth, width_px=width_px) - smooth)


def find_stripes(profile: NDArray[np.floating], *, ratio: float) -> NDArray[np.bool_]:
    """Return the columns that stand out of a profile: (cols,) bool.

    The sorted profile of good columns is nearly a straight line from end to end, and its rise is the noise: a column
    stands out where it is beyond that line's end by half of `ratio` times the rise; nothing stands out where the
    farthest column does not reach `ratio` times the rise.
    """
    n = len(profile)
    if n < LEAST_COLUMNS:
        return np.zeros(n, dtype=np.bool_)
    ranked = np.sort(profile)
    n_left_out = int(NOISE_SHARE * n)
    place = np.arange(n)
    middle = slice(n_left_out, n - n_left_out)
    slope, lowest = np.polyfit(place[middle], ranked[middle], 1)
    highest = lowest + slope * (n - 1)
    noise = max(highest - lowest, 1e-6)
    found = np.zeros(n, dtype=np.bool_)
    if ranked[-1] - highest > ratio * noise:
        found |= profile > highest + ratio / 2 * noise
    if lowest - ranked[0] > ratio * noise:
        found |= profile < lowest - ratio / 2 * noise
    return found


def large(sinogram: Sinogram, *, width_px: int = 31, ratio: float = 4.0) -> Sinogram:
    """Find wide stripes in the sorted sinogram, level them, and give their columns the ranks of their neighbourhood."""
    columns = np.ascontiguousarray(sinogram.T)
    order = np.argsort(columns, axis=1)
    ranked = np.take_along_axis(columns, order, axis=1)
    smooth = running_median(np.ascontiguousarray(ranked.T), width_px).T
    n_ends = int(ENDS_SHARE * len(sinogram))
    steady = slice(n_ends, len(sinogram) - n_ends)
    excess = (ranked[:, steady] - smooth[:, steady]).mean(axis=1)
    found = ndimage.binary_dilation(find_stripes(excess, ratio=ratio))
    np.put_along_axis(columns, order, np.where(found[:, None], smooth, ranked), axis=1)
    return np.ascontiguousarray(columns.T)


def dead(sinogram: Sinogram, *, width_px: int = 51, ratio: float = 3.0) -> Sinogram:
    """Find columns that fluctuate from view to view, or never change, and fill them from the columns beside them."""
    smooth = ndimage.uniform_filter1d(sinogram, FLUCTUATION_VIEWS, axis=0, mode="nearest")
    restless = np.abs(sinogram - smooth).sum(axis=0, dtype=np.float64).astype(np.float32)
    around = running_median(restless[None], width_px)[0]
    found = find_stripes(restless / np.maximum(around, 1e-9 + 1e-3 * around.max(initial=0.0)), ratio=ratio)
    found = np.asarray(ndimage.binary_dilation(found), dtype=np.bool_)
    found[:2] = found[-2:] = False  # nothing to fill them from
    if not found.any():
        return sinogram.copy()
    return fill_columns(sinogram, found)


def fill_columns(sinogram: Sinogram, is_bad: NDArray[np.bool_]) -> Sinogram:
    """Interpolate columns linearly between the nearest good ones: (n_views, cols) float32."""
    good = np.flatnonzero(~is_bad)
    bad = np.flatnonzero(is_bad)
    if not len(good):
        raise ValueError(f"all {len(bad)} columns are bad; allowed: at least one good column to fill from")
    right = np.clip(np.searchsorted(good, bad), 0, len(good) - 1)
    left = np.maximum(right - (good[right] > bad), 0)
    distance = np.maximum(good[right] - good[left], 1)
    share = (np.clip(bad - good[left], 0, distance) / distance).astype(np.float32)
    filled = sinogram.copy()
    filled[:, bad] = (1 - share) * sinogram[:, good[left]] + share * sinogram[:, good[right]]
    return filled


def combined(sinogram: Sinogram, *, width_px: int = 9, wide_px: int = 31, ratio: float = 4.0) -> Sinogram:
    """Fill dead and restless columns, level wide stripes, then sort: one after the other."""
    filled = dead(sinogram, ratio=ratio)
    return sorting(large(filled, width_px=wide_px, ratio=ratio), width_px=width_px)
