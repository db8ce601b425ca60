"""Test pulses: a known charge into the amplifiers of chosen pixels, and how often their discriminators see it.

# Ref: charge summing: Pennicard et al. 2011 (abstract) and ADVACAM forum, Medipix3 operation modes: the pixel with
#      the largest charge of its neighbourhood wins and counts the largest of its four 2x2 sums. Between equal charges,
#      where in silicon noise decides, the first pixel of the matrix wins here.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfc


def chance(
    charge_kev: NDArray[np.floating],
    thresholds_kev: NDArray[np.floating],
    sigma_kev: NDArray[np.floating],
    *,
    is_csm: bool,
    has_arbiter: bool,
) -> NDArray[np.float64]:
    """Return the chance that a pulse is counted.

    Parameters
    ----------
    charge_kev : (rows, cols) float
        What each pixel gets, as the energy of a photon that leaves as much; 0 or less counts nothing.
    thresholds_kev, sigma_kev : (n_thresholds, rows, cols) float
        Where the thresholds stand, and the noise that each sees.
    is_csm : bool
        Odd thresholds see the largest of the pixel's four 2x2 sums.
    has_arbiter : bool
        Only the pixel with the largest charge of its 3x3 counts sums, and threshold 0, which has to see it.

    Returns
    -------
    (n_thresholds, rows, cols) float64
    """
    n_thresholds = len(thresholds_kev)
    is_summed = is_csm & (np.arange(n_thresholds) % 2 == 1)
    seen_kev = np.repeat(charge_kev[None].clip(0), n_thresholds, axis=0)
    seen_kev[is_summed] = _largest_sum(seen_kev[0])
    if has_arbiter:
        seen_kev[is_summed | (np.arange(n_thresholds) == 0)] *= _is_winner(charge_kev)
    above = _exceeds(seen_kev - thresholds_kev, sigma_kev)
    above *= _exceeds(thresholds_kev, sigma_kev)  # a pulse crosses from below
    if has_arbiter:
        above[is_summed] *= above[0]
    return np.where(seen_kev > 0, above, 0.0)


def draw(n: int, chances: NDArray[np.float64], is_csm: bool, rng: np.random.Generator) -> NDArray[np.uint32]:
    """Draw the counts of `n` pulses: what is above a threshold is above every lower one of its family.

    In charge summing the single-pixel thresholds and the summed ones are two families; else all are one.
    """
    counts = np.zeros(chances.shape, dtype=np.uint32)
    n_families = 2 if is_csm else 1
    for start in range(n_families):
        family, drawn_of = chances[start::n_families], counts[start::n_families]
        drawn, reached = np.full(family.shape[1:], n), np.ones(family.shape[1:])
        for plane in np.argsort(-family, axis=0, kind="stable"):
            this = np.take_along_axis(family, plane[None], axis=0)[0]
            share = np.divide(this, reached, out=np.zeros_like(this), where=reached > 0)
            drawn = rng.binomial(drawn, share.clip(0, 1))
            np.put_along_axis(drawn_of, plane[None], drawn[None].astype(np.uint32), axis=0)
            reached = this
    return counts


def _exceeds(by_kev: NDArray[np.floating], sigma_kev: NDArray[np.floating]) -> NDArray[np.float64]:
    return 0.5 * erfc(-by_kev / (math.sqrt(2) * sigma_kev))


def _largest_sum(charge_kev: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the largest of the four 2x2 sums that each pixel is part of: (rows, cols)."""
    rows, cols = charge_kev.shape
    padded = np.pad(charge_kev, 1)
    sums = padded[:-1, :-1] + padded[1:, :-1] + padded[:-1, 1:] + padded[1:, 1:]  # (rows + 1, cols + 1) corners
    return np.maximum.reduce([sums[row : row + rows, col : col + cols] for row in (0, 1) for col in (0, 1)])


def _is_winner(charge_kev: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Return where a pixel has the largest charge of its 3x3, the first of equal ones: (rows, cols) bool."""
    rows, cols = charge_kev.shape
    padded = np.pad(charge_kev, 1, constant_values=-np.inf)
    is_winner = np.ones(charge_kev.shape, dtype=bool)
    for row in range(3):
        for col in range(3):
            neighbour = padded[row : row + rows, col : col + cols]
            if (row, col) < (1, 1):
                is_winner &= charge_kev > neighbour
            elif (row, col) > (1, 1):
                is_winner &= charge_kev >= neighbour
    return is_winner
