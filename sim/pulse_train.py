"""What a pixel's amplifier makes of pulses that come close together: how long its output stands where, and what counts.

Each arrival raises the output at once by its charge; the output holds for the peaking time, which a new arrival starts
again, and then falls at a constant rate, never below 0. A discriminator counts each upward crossing of its threshold.

Levels of the output have two forms on one grid: atoms on the points 0, 1, 2 ... steps, which sums of charges leave,
and cells between them, which the steady fall leaves.

# Ref: constant-current discharge: F. Krummenacher 1991, Nucl. Instrum. Methods A 305, 527.
# Ref: level crossings of a queue's workload: P. H. Brill and M. J. M. Posner 1977, Oper. Res. 25, 662. With arrivals
#      closer than the peaking time taken as one (a geometric compound), the falling output is the workload of a queue
#      with Poisson arrivals, whose density solves a Volterra equation of the second kind.
# Ref: arrivals see time averages: R. W. Wolff 1982, Oper. Res. 30, 223. Within a hold, what an arrival finds is the
#      falling output plus the batch so far, whose law is that of whole batches.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray


class Levels(NamedTuple):
    """Where the output stands, as shares of time; both empty of weight when the pixel is paralysed.

    Attributes
    ----------
    atoms : (n,) float64
        At 0, 1, 2 ... steps; the first is the share of time at the baseline.
    cells : (n,) float64
        Between these points.
    """

    atoms: NDArray[np.float64]
    cells: NDArray[np.float64]


@njit(cache=True, nogil=True, fastmath=True)
def levels(rate_per_s: np.ndarray, step_kev: float, fall_kev_per_s: float, peaking_time_s: float) -> Levels:
    """Return where the output stands when arrivals of these charges come at random.

    Parameters
    ----------
    rate_per_s : (n,) float64
        Arrivals by charge, which is 0, 1, 2 ... steps; what lies beyond the grid must be in its last entry.
    step_kev : float
    fall_kev_per_s : float
    peaking_time_s : float
    """
    n = len(rate_per_s)
    atoms, cells = np.zeros(n), np.zeros(n)
    total_per_s, mean_kev = rate_per_s.sum(), 0.0
    if total_per_s <= 0:
        atoms[0] = 1.0
        return Levels(atoms, cells)
    for j in range(n):
        mean_kev += rate_per_s[j] / total_per_s * j * step_kev
    joins = -math.expm1(-total_per_s * peaking_time_s)
    idle = 1 - total_per_s * mean_kev * math.exp(total_per_s * peaking_time_s) / fall_kev_per_s
    if idle <= 0:
        return Levels(atoms, cells)

    # Law of a batch: one arrival, and with the chance `joins` another batch on top.
    charge = rate_per_s / total_per_s
    batch = np.empty(n)
    for j in range(n):
        together = 0.0
        for i in range(1, j + 1):
            together += charge[i] * batch[j - i]
        batch[j] = ((1 - joins) * charge[j] + joins * together) / (1 - joins * charge[0])

    # Density of the falling output, cell by cell: (n / r) [idle Bbar(v) + int_0^v f(u) Bbar(v - u) du].
    above, mid = np.empty(n), np.empty(n)
    beyond = 1.0
    for j in range(n):
        before = beyond
        beyond = max(beyond - batch[j], 0.0)
        above[j], mid[j] = beyond, 0.5 * (before + beyond) if j else 0.5 * beyond
    per_kev = total_per_s / fall_kev_per_s
    falling = np.empty(n)
    for j in range(n):
        lifted = 0.0
        for i in range(j):
            lifted += falling[i] * mid[j - i]
        falling[j] = per_kev * step_kev * (idle * above[j] + lifted) / (1 - per_kev * step_kev * mid[0])

    for j in range(n):
        lifted = 0.0
        for i in range(j + 1):
            lifted += falling[i] * batch[j - i]
        cells[j] = (1 - joins) * falling[j] + joins * lifted
        atoms[j] = joins * idle * batch[j]
    atoms[0] += (1 - joins) * idle
    return Levels(atoms, cells)


@njit(cache=True, nogil=True, fastmath=True)
def lifted_counts(above: np.ndarray, output: Levels) -> np.ndarray:
    """Return what counts because the output was not at its baseline.

    Parameters
    ----------
    above : (n,) float64
        Arrivals of which a charge is more than 0, 1, 2 ... steps.
    output : Levels

    Returns
    -------
    (n,) float64
        Crossings of each threshold by arrivals on top of earlier ones; those from the baseline are
        ``output.atoms[0] * above``.
    """
    n = len(above)
    lifted = np.zeros(n)
    for j in range(n):
        found = 0.0
        for i in range(1, j + 1):
            found += output.atoms[i] * above[j - i]
        for i in range(j):
            found += output.cells[i] * 0.5 * (above[j - i] + above[j - i - 1])
        lifted[j] = found
    return lifted


@njit(cache=True, nogil=True, fastmath=True)
def covariance_per_s(
    rate_per_s: float, above: np.ndarray, output: Levels, thresholds: np.ndarray, step_kev: float,
    fall_kev_per_s: float, peaking_time_s: float,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Return what makes the covariance of the counts above several thresholds, per second of a long exposure.

    The covariance is ``both - hidden``: counts are less scattered than Poisson's, and a high threshold may count where
    a low one does not.

    Parameters
    ----------
    rate_per_s : float
        Arrivals.
    above : (n,) float64
        Chance that an arrival's charge is more than 0, 1, 2 ... steps.
    output : Levels
    thresholds : (n_thresholds,) int64
        In steps.

    Returns
    -------
    both : (n_thresholds, n_thresholds) float64
        Arrivals that count at both thresholds, exactly; the mean counts stand in the diagonal.
    hidden : (n_thresholds, n_thresholds) float64
        What one count hides of another, to first order in the rate.
    """
    n, n_thresholds = len(above), len(thresholds)
    both, hidden = np.zeros((n_thresholds, n_thresholds)), np.zeros((n_thresholds, n_thresholds))
    alive_per_s = rate_per_s * output.atoms[0]
    for a in range(n_thresholds):
        for b in range(n_thresholds):
            first, second = thresholds[a], thresholds[b]
            low, high = min(first, second), max(first, second)
            if first <= second:  # what counts at both finds the output below the lower one
                found = 0.0
                for v in range(low + 1):
                    found += output.atoms[v] * above[high - v]
                    if v < low:
                        found += output.cells[v] * 0.5 * (above[high - v] + above[high - v - 1])
                both[a, b] = both[b, a] = rate_per_s * found
            hidden_s = 0.0
            for v in range(n):
                exactly = above[v - 1] - above[v] if v else 1 - above[0]
                hold_s = peaking_time_s * exactly if v > first else 0.0
                passing_s = above[max(v, first)] * step_kev / fall_kev_per_s
                at_v = above[second - v] if v <= second else 0.0
                in_cell = 0.5 * (above[second - v] + above[second - v - 1]) if v < second else 0.0
                hidden_s += hold_s * (above[second] - at_v) + passing_s * (above[second] - in_cell)
            hidden[a, b] += alive_per_s**2 * hidden_s
            hidden[b, a] += alive_per_s**2 * hidden_s
    return both, hidden
