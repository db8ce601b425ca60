"""Each pixel's own energy scale from few counts: where its edges stand against the chip's, and the line through them.

A pixel's S-curve has the shape of the chip's, shifted, and an intensity of its own. Given how many it counted in the
whole scan, how these spread over the steps depends on the shift alone; so the likelihood of the shift needs no
intensity, and its maximum over a grid is the global one, however few the counts.

Offset and gain then follow by least squares with the shifts' own errors, drawn towards what pixels of this chip are
like as far as the pixel's own counts leave open (empirical Bayes): with many counts nothing is drawn, with none the
pixel is taken for a mean one, and the stated errors say so.

# Ref: a Poisson sample given its sum is multinomial; Fisher information of a shift: textbook (Cowan 1998, Statistical
#      Data Analysis, sections 2.3 and 6). Empirical Bayes by EM: Dempster, Laird, Rubin 1977, J. R. Stat. Soc. B 39, 1.
# Ref: goal of 0.5 keV per pixel: reference on spectral CT, section 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.stats import chi2 as chi2_law

MINIMUM_COUNTS = 30
"""Fewer counts of a pixel in a whole scan tell nothing."""
GRID_STEP_DAC = 0.5
COARSE = 4
"""The grid is searched at every so many steps first; S-curves are wider."""
CHUNK = 4096
EM_ROUNDS = 300
EM_TOLERANCE = 1e-5
"""The rounds end when nothing changes by a larger share."""
EM_PIXELS = 3000
"""As many pixels are enough to tell what pixels are like."""
OUTLIER_SIGMA = 6.0
"""Pixels further than this from the others in robust sigma do not shape what pixels are taken to be like."""
MISFIT_QUANTILE = 1e-4
"""A pixel whose edges scatter more about its line than chance allows one in so many knows less than it counted."""
FEWEST = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PixelScale:
    """Code = offset + gain * energy, for each pixel and threshold; NaN where a pixel or threshold was not measured.

    Attributes
    ----------
    offset_dac, gain_dac_per_kev : (n_thresholds, rows, cols) float32
    offset_variance, gain_variance, covariance : (n_thresholds, rows, cols) float32
        Their errors: DAC^2, (DAC/keV)^2, DAC^2/keV.
    chi2_ratio : (n_thresholds,) float64
        Mean squared deviation of the edges from the lines over what counting explains; the errors hold it.
    """

    offset_dac: NDArray[np.float32]
    gain_dac_per_kev: NDArray[np.float32]
    offset_variance: NDArray[np.float32] = field(metadata={"units": "DAC code^2"})
    gain_variance: NDArray[np.float32] = field(metadata={"units": "(DAC code/keV)^2"})
    covariance: NDArray[np.float32] = field(metadata={"units": "DAC code^2/keV"})
    chi2_ratio: NDArray[np.float64]

    def threshold_kev(self, number: int, code: float) -> NDArray[np.float32]:
        """Return the energy at which a threshold stands in each pixel: (rows, cols) float32."""
        return (np.float32(code) - self.offset_dac[number]) / self.gain_dac_per_kev[number]

    def sigma_kev(self, number: int, energy_kev: float) -> NDArray[np.float32]:
        """Return the standard error of each pixel's scale at an energy: (rows, cols) float32."""
        variance = self.offset_variance[number] + energy_kev * (
            2 * self.covariance[number] + energy_kev * self.gain_variance[number]
        )
        return np.sqrt(np.maximum(variance, 0)) / self.gain_dac_per_kev[number]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lines:
    """Straight lines through the edges of many pixels.

    Attributes
    ----------
    parameters : (n_pixels, 2) float64
        Offset and gain; NaN where no edge of the pixel is known.
    covariance : (n_pixels, 2, 2) float64
    chi2_ratio : float
    """

    parameters: NDArray[np.float64]
    covariance: NDArray[np.float64]
    chi2_ratio: float


def shift_grid(reach_dac: float) -> NDArray[np.float64]:
    """Return the shifts that `edge_shifts` tries, up to a reach on either side."""
    n = int(np.ceil(reach_dac / GRID_STEP_DAC))
    return GRID_STEP_DAC * np.arange(-n, n + 1, dtype=np.float64)


def edge_shifts(
    counts: NDArray[np.number],
    dacs: NDArray[np.float64],
    expected: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    shifts_dac: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how far each pixel's S-curve stands above the common one, and the standard error.

    Parameters
    ----------
    counts : (n_steps, n_pixels) number
    dacs : (n_steps,) float64
    expected : callable
        Codes (n,) to the common curve there (n,), in any units.
    shifts_dac : (n_shifts,) float64
        Even grid of the shifts that are tried.

    Returns
    -------
    shift, sigma : (n_pixels,) float64
        NaN where fewer than `MINIMUM_COUNTS` were counted, or where the best shift lies at an end of the grid.
    """
    codes, at = np.unique(dacs - shifts_dac[:, None], return_inverse=True)
    curve = np.maximum(expected(codes), FEWEST)[at.reshape(len(shifts_dac), len(dacs))]
    share = curve / curve.sum(axis=1, keepdims=True)
    log_share = np.log(share)
    step = float(shifts_dac[1] - shifts_dac[0])
    information = np.sum(share * np.gradient(log_share, step, axis=0) ** 2, axis=1)

    def chunk(start: int) -> NDArray[np.float64]:
        here = np.ascontiguousarray(counts[:, start : start + CHUNK].T, dtype=np.float64)
        return _likeliest(here, log_share, information)

    with ThreadPoolExecutor() as pool:
        place, sigma = np.concatenate([np.empty((2, 0)), *pool.map(chunk, range(0, counts.shape[1], CHUNK))], axis=1)
    return shifts_dac[0] + step * place, sigma


@njit(cache=True, nogil=True)
def _likeliest(counts: np.ndarray, log_share: np.ndarray, information: np.ndarray) -> np.ndarray:
    """Find each pixel's likeliest place on the grid, first at every `COARSE`, then nearby: place and error (2, n).

    ``counts`` is (n_pixels, n_steps); places are in steps of the grid; NaN where there is none.
    """
    n_shifts = len(log_share)
    found = np.full((2, len(counts)), np.nan)
    for pixel in range(len(counts)):
        total = counts[pixel].sum()
        if total < MINIMUM_COUNTS:
            continue
        best, highest = 0, -np.inf
        for shift in range(0, n_shifts, COARSE):
            likelihood = _dot(log_share[shift], counts[pixel])
            if likelihood > highest:
                best, highest = shift, likelihood
        for shift in range(max(best - COARSE, 0), min(best + COARSE + 1, n_shifts)):
            likelihood = _dot(log_share[shift], counts[pixel])
            if likelihood > highest:
                best, highest = shift, likelihood
        if not 0 < best < n_shifts - 1:
            continue
        before, after = _dot(log_share[best - 1], counts[pixel]), _dot(log_share[best + 1], counts[pixel])
        bend = before - 2 * highest + after
        by = 0.5 * (before - after) / bend if bend < 0 else 0.0
        beside = best + 1 if by > 0 else best - 1
        told = total * (information[best] + abs(by) * (information[beside] - information[best]))
        if bend < 0 and told > 0:
            found[0, pixel], found[1, pixel] = best + by, 1 / math.sqrt(told)
    return found


@njit(cache=True, nogil=True, fastmath={"reassoc"})
def _dot(a: np.ndarray, b: np.ndarray) -> float:
    total = 0.0
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


def fit_lines(
    energies_kev: NDArray[np.float64], positions_dac: NDArray[np.float64], sigmas_dac: NDArray[np.float64]
) -> Lines:
    """Fit each pixel's line through its edges, and draw it towards the others' as far as its errors leave open.

    Parameters
    ----------
    energies_kev : (n_sources,) float64
    positions_dac, sigmas_dac : (n_sources, n_pixels) float64
        Edges and their errors; NaN where there is none.

    Raises
    ------
    ValueError
        No two sources have an edge in any pixel.
    """
    is_known = np.isfinite(positions_dac) & np.isfinite(sigmas_dac)
    weight = np.where(is_known, 1 / np.square(np.where(is_known, sigmas_dac, 1)), 0)
    position = np.where(is_known, positions_dac, 0)
    design = np.stack([np.ones_like(energies_kev), energies_kev], axis=1)
    information = np.einsum("sp,si,sj->pij", weight, design, design)
    told = np.einsum("sp,si,sp->pi", weight, design, position)
    is_line = is_known.sum(axis=0) >= 2
    if not is_line.any():
        raise ValueError("no pixel has edges of two sources; allowed: at least one pixel that has")
    alone = np.full((positions_dac.shape[1], 2), np.nan)
    alone[is_line] = np.einsum("pij,pj->pi", _inverse(information[is_line]), told[is_line])
    freedom = np.maximum(is_known.sum(axis=0) - 2, 0)
    chi2 = np.sum(weight * (position - design @ np.where(is_line[:, None], alone, 0).T) ** 2, axis=0) * is_line
    chi2_ratio = _chi2_ratio(chi2, freedom)
    widening = max(chi2_ratio, 1.0) * _misfit(chi2 / max(chi2_ratio, 1.0), freedom)
    information, told = information / widening[:, None, None], told / widening[:, None]
    mean, spread = _population(alone[is_line], information[is_line], told[is_line])
    precision = _inverse(spread)
    covariance = _inverse(information + precision)
    parameters = np.einsum("pij,pj->pi", covariance, told + precision @ mean)
    parameters[~is_known.any(axis=0)] = np.nan
    return Lines(parameters=parameters, covariance=covariance, chi2_ratio=chi2_ratio)


def _inverse(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    """Invert symmetric matrices (..., 2, 2) that are not negative; one that is singular is taken for nearly so."""
    a, b, c = matrices[..., 0, 0], matrices[..., 0, 1], matrices[..., 1, 1]
    determinant = np.maximum(a * c - b * b, 1e-9 * a * c + 1e-300)
    return np.stack([np.stack([c, -b], axis=-1), np.stack([-b, a], axis=-1)], axis=-2) / determinant[..., None, None]


def _population(
    alone: NDArray[np.float64], information: NDArray[np.float64], told: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean (2,) and covariance (2, 2) of the pixels' true lines, by expectation and maximisation."""
    centre = np.median(alone, axis=0)
    width = 1.4826 * np.median(np.abs(alone - centre), axis=0) + FEWEST
    is_usual = (np.abs(alone - centre) < OUTLIER_SIGMA * width).all(axis=1)
    every = slice(None, None, max(1, np.count_nonzero(is_usual) // EM_PIXELS))
    information, told = information[is_usual][every], told[is_usual][every]
    mean, spread = centre, np.diag(width**2)
    for _ in range(EM_ROUNDS):
        before, precision = spread, _inverse(spread)
        left = _inverse(information + precision)
        guess = np.einsum("pij,pj->pi", left, told + precision @ mean)
        mean = guess.mean(axis=0)
        from_mean = guess - mean
        spread = left.mean(axis=0) + from_mean.T @ from_mean / len(guess)
        if np.all(np.abs(np.diag(spread - before)) < EM_TOLERANCE * np.diag(spread)):
            break
    return mean, spread


def _misfit(chi2: NDArray[np.float64], freedom: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return by how much the variances of each pixel grow: 1 but where its edges do not lie on a line."""
    growth = np.ones(len(chi2))
    for n in np.unique(freedom[freedom > 0]):
        is_off = (freedom == n) & (chi2 > chi2_law.isf(MISFIT_QUANTILE, n))
        growth[is_off] = chi2[is_off] / n
    return growth


def _chi2_ratio(chi2: NDArray[np.float64], freedom: NDArray[np.intp]) -> float:
    """Return the typical squared deviation per degree of freedom, by the median over pixels of three edges or more."""
    k = freedom[freedom > 0]
    if not k.size:
        return 1.0
    # the median of a chi-square of k degrees is about k (1 - 2 / 9k)^3
    return float(np.median(chi2[freedom > 0] / (k * (1 - 2 / (9 * k)) ** 3)))
