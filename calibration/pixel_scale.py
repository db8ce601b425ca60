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

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

MINIMUM_COUNTS = 30
"""Fewer counts of a pixel in a whole scan tell nothing."""
GRID_STEP_DAC = 0.5
CHUNK = 8192
EM_ROUNDS = 300
EM_PIXELS = 3000
"""As many pixels are enough to tell what pixels are like."""
OUTLIER_SIGMA = 6.0
"""Pixels further than this from the others in robust sigma do not shape what pixels are taken to be like."""
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
    curve = np.stack([np.maximum(expected(dacs - shift), FEWEST) for shift in shifts_dac])
    share = curve / curve.sum(axis=1, keepdims=True)
    log_share = np.log(share)
    step = float(shifts_dac[1] - shifts_dac[0])
    information = np.sum(share * np.gradient(log_share, step, axis=0) ** 2, axis=1)
    n_pixels = counts.shape[1]
    found, sigma = np.full(n_pixels, np.nan), np.full(n_pixels, np.nan)
    for start in range(0, n_pixels, CHUNK):
        here = np.asarray(counts[:, start : start + CHUNK], dtype=np.float64)
        likelihood = here.T @ log_share.T  # the shifts of a pixel side by side in memory
        best = np.clip(likelihood.argmax(axis=1), 1, len(shifts_dac) - 2)
        pixel = np.arange(here.shape[1])
        before, at, after = (likelihood[pixel, best + by] for by in (-1, 0, 1))
        bend = before - 2 * at + after
        total = here.sum(axis=0)
        is_inside = (at >= before) & (at >= after) & (bend < 0) & (total >= MINIMUM_COUNTS)
        by = np.divide(0.5 * (before - after), bend, out=np.zeros_like(at), where=is_inside)
        told = total * np.interp(shifts_dac[best] + step * by, shifts_dac, information)
        is_inside &= told > 0
        found[start : start + CHUNK] = np.where(is_inside, shifts_dac[best] + step * by, np.nan)
        sigma[start : start + CHUNK] = np.where(is_inside, 1 / np.sqrt(np.maximum(told, FEWEST)), np.nan)
    return found, sigma


def registered(
    counts: NDArray[np.number], dacs: NDArray[np.float64], shift_dac: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lay the S-curves of all pixels over one another and add them up: codes and counts, (n,) float64 both.

    Each pixel's counts move by its shift into steps as wide as those of the scan; each step is scaled to the number of
    pixels. Pixels whose shift is NaN are left out, and so are steps that few pixels reach.
    """
    is_known = np.isfinite(shift_dac)
    moved = dacs[:, None] - shift_dac[None, is_known]
    step = float(np.median(np.diff(dacs)))
    place = np.rint((moved - dacs[0]) / step).astype(np.int64)
    inside = (place >= 0) & (place < len(dacs))
    at = place[inside]
    n = np.bincount(at, minlength=len(dacs))
    total = np.bincount(at, weights=counts[:, is_known][inside], minlength=len(dacs))
    centre = np.bincount(at, weights=moved[inside], minlength=len(dacs))
    n_pixels = np.count_nonzero(is_known)
    enough = n > 0.5 * n_pixels
    return centre[enough] / n[enough], total[enough] * (n_pixels / n[enough])


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
    alone[is_line] = np.linalg.solve(information[is_line], told[is_line][..., None])[..., 0]
    chi2_ratio = _chi2_ratio(design, alone, position, weight, is_known)
    widening = max(chi2_ratio, 1.0)
    information, told = information / widening, told / widening
    mean, spread = _population(alone[is_line], information[is_line], told[is_line])
    precision = np.linalg.pinv(spread)
    covariance = np.linalg.inv(information + precision)
    parameters = np.einsum("pij,pj->pi", covariance, told + precision @ mean)
    parameters[~is_known.any(axis=0)] = np.nan
    return Lines(parameters=parameters, covariance=covariance, chi2_ratio=chi2_ratio)


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
        precision = np.linalg.pinv(spread)
        left = np.linalg.inv(information + precision)
        guess = np.einsum("pij,pj->pi", left, told + precision @ mean)
        mean = guess.mean(axis=0)
        from_mean = guess - mean
        spread = left.mean(axis=0) + from_mean.T @ from_mean / len(guess)
    return mean, spread


def _chi2_ratio(
    design: NDArray[np.float64],
    lines: NDArray[np.float64],
    position: NDArray[np.float64],
    weight: NDArray[np.float64],
    is_known: NDArray[np.bool_],
) -> float:
    """Return the typical squared deviation per degree of freedom, by the median over pixels of three edges or more."""
    freedom = is_known.sum(axis=0) - 2
    is_told = (freedom > 0) & np.isfinite(lines).all(axis=1)
    if not is_told.any():
        return 1.0
    off = position[:, is_told] - design @ lines[is_told].T
    chi2 = np.sum(weight[:, is_told] * off**2, axis=0)
    # the median of a chi-square of k degrees is about k (1 - 2 / 9k)^3
    k = freedom[is_told]
    return float(np.median(chi2 / (k * (1 - 2 / (9 * k)) ** 3)))
