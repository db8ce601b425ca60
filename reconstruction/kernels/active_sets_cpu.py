"""Small least-squares problems with signs, one a voxel: from support to support until no sign is wrong."""

from __future__ import annotations

import numpy as np
from numba import njit

PATIENCE = 5
"""Rounds beyond the number of unknowns in which all wrong signs are turned at once, before every support is tried."""


BLOCK = 1024
"""Columns that stay in the first cache while they are multiplied."""


@njit(cache=True, nogil=True)
def multiply(matrix: np.ndarray, rows: np.ndarray, product: np.ndarray) -> None:
    """Set the product of a small matrix and long rows, without the threads that BLAS would start for it.

    Parameters
    ----------
    matrix : (n, m) float64
    rows : (m, length) float64
    product : (n, length) float64
    """
    for first in range(0, rows.shape[1], BLOCK):
        last = min(first + BLOCK, rows.shape[1])
        for k in range(len(matrix)):
            target = product[k, first:last]
            target[:] = 0.0
            for m in range(len(rows)):
                factor, source = matrix[k, m], rows[m, first:last]
                for i in range(last - first):
                    target[i] += factor * source[i]


@njit(cache=True, nogil=True)
def _values(h, n, slopes, offsets, support, values):  # noqa: ANN001, ANN202
    """Write what each unknown is on this support; return which are wrong, and the lowest of all."""
    wrong, lowest = 0, np.inf
    for k in range(n):
        value = offsets[support, k]
        for m in range(n):
            value += slopes[support, k, m] * h[m]
        values[k] = value
        lowest = min(lowest, value)
        if value < 0:
            wrong |= 1 << k
    return wrong, lowest


@njit(cache=True, nogil=True)
def _support(h, n, slopes, offsets, values):  # noqa: ANN001, ANN202
    """Find the support on which no value is below 0, and write the values."""
    support = (1 << n) - 1
    for _ in range(n + PATIENCE):
        wrong, _lowest = _values(h, n, slopes, offsets, support, values)
        if wrong == 0:
            return support
        support ^= wrong
    best, highest = 0, -np.inf
    for tried in range(1 << n):
        _wrong, lowest = _values(h, n, slopes, offsets, tried, values)
        if lowest > highest:
            best, highest = tried, lowest
    _values(h, n, slopes, offsets, best, values)
    return best


@njit(cache=True, nogil=True)
def solve(
    h: np.ndarray,
    slopes: np.ndarray,
    offsets: np.ndarray,
    shares: np.ndarray,
    full_slopes: np.ndarray,
    full_offsets: np.ndarray,
    solution: np.ndarray,
) -> None:
    """Fill in the solution of each problem: by the first table, or by the second where the shares then sum above 1.

    Parameters
    ----------
    h : (n_unknowns, n_problems) float64
        Data projected on the columns.
    slopes : (2 ** n_unknowns, n_unknowns, n_unknowns) float64
        Values on each support by the projected data, as `reconstruction.active_sets` has them.
    offsets : (2 ** n_unknowns, n_unknowns) float64
    shares : (n_unknowns,) float64
    solution : (n_unknowns, n_problems) float64
    """
    n = len(h)
    data, values = np.empty(n), np.empty(n)
    for i in range(h.shape[1]):
        for k in range(n):
            data[k] = h[k, i]
        support = _support(data, n, slopes, offsets, values)
        total = 0.0
        for k in range(n):
            if (support >> k) & 1:
                total += shares[k] * max(values[k], 0.0)
        if total > 1:
            support = _support(data, n, full_slopes, full_offsets, values)
        for k in range(n):
            solution[k, i] = max(values[k], 0.0) if (support >> k) & 1 else 0.0


@njit(cache=True, nogil=True)
def _sub_problem(h, square, n, slopes, offsets, lowest, highest, values):  # noqa: ANN001, ANN202
    """Solve one sub-problem: write its unknowns, return chi square and how many lie on no bound."""
    if n == 1:
        values[0] = min(max(h[0], lowest), highest)
        free = 1 if lowest < h[0] < highest else 0
        return max(square - (2 * h[0] - values[0]) * values[0], 0.0), free
    explained, n_free = 0.0, 0
    if n > 0:
        support = _support(h, n, slopes, offsets, values)
        for k in range(n):
            if (support >> k) & 1 and values[k] > 0:
                explained += values[k] * h[k]
                n_free += 1
            else:
                values[k] = 0.0
    return max(square - explained, 0.0), n_free


@njit(cache=True, nogil=True)
def _judge_one(h, squares, lowest, highest, chi_square, n_free):  # noqa: ANN001, ANN202
    """Judge a sub-problem of one unknown, whose column has norm 1, for all data."""
    for i in range(len(squares)):
        value = min(max(h[i], lowest), highest)
        chi_square[i] = max(squares[i] - (2 * h[i] - value) * value, 0.0)
        n_free[i] = 1 if lowest < h[i] < highest else 0


@njit(cache=True, nogil=True)
def _judge_two(h, other_h, squares, slopes, chi_square, n_free):  # noqa: ANN001, ANN202
    """Judge a sub-problem of two unknowns for all data: both are free, or the one alone that explains more.

    All data go the same way, without branches, so that the compiler takes several at a time.
    """
    one, other = slopes[1, 0, 0], slopes[2, 1, 1]
    (first, across), (back, second) = (slopes[3, 0, 0], slopes[3, 0, 1]), (slopes[3, 1, 0], slopes[3, 1, 1])
    for i in range(len(squares)):
        value = first * h[i] + across * other_h[i]
        other_value = back * h[i] + second * other_h[i]
        is_inside = (value >= 0) & (other_value >= 0)
        alone = max(max(one * h[i], 0.0) * h[i], max(other * other_h[i], 0.0) * other_h[i])
        explained = value * h[i] + other_value * other_h[i] if is_inside else alone
        chi_square[i] = max(squares[i] - explained, 0.0)
        n_free[i] = (value > 0) + (other_value > 0) if is_inside else (1 if alone > 0 else 0)


@njit(cache=True, nogil=True)
def judge(
    h: np.ndarray,
    squares: np.ndarray,
    sizes: np.ndarray,
    members: np.ndarray,
    slopes: np.ndarray,
    bounds: np.ndarray,
    chi_square: np.ndarray,
    n_free: np.ndarray,
) -> None:
    """Fill in how far each sub-problem stays from the data, and how many of its unknowns are free.

    Parameters
    ----------
    h : (n_unknowns, n_problems) float64
    squares : (n_problems,) float64
        Of the data.
    sizes : (n_sub_problems,) int64
        Number of unknowns of each; 0 is the sub-problem of nothing.
    members : (n_sub_problems, largest) int64
        Which unknowns they are.
    slopes : (n_sub_problems, 2 ** largest, largest, largest) float64
        The table of each.
    bounds : (n_sub_problems, 2) float64
        Lowest and highest value of one unknown alone, whose column has norm 1; 0 and infinity where there are more.
    chi_square, n_free : (n_sub_problems, n_problems)
    """
    largest = members.shape[1]
    offsets = np.zeros((1 << largest, largest))
    data, values = np.empty(largest), np.empty(largest)
    for s in range(len(sizes)):
        n = sizes[s]
        if n == 1:
            _judge_one(h[members[s, 0]], squares, bounds[s, 0], bounds[s, 1], chi_square[s], n_free[s])
            continue
        if n == 2:
            one, other = h[members[s, 0]], h[members[s, 1]]
            _judge_two(one, other, squares, slopes[s], chi_square[s], n_free[s])
            continue
        for i in range(len(squares)):
            for k in range(n):
                data[k] = h[members[s, k], i]
            chi_square[s, i], n_free[s, i] = _sub_problem(
                data, squares[i], n, slopes[s], offsets, bounds[s, 0], bounds[s, 1], values
            )


@njit(cache=True, nogil=True)
def solve_chosen(
    h: np.ndarray,
    squares: np.ndarray,
    chosen: np.ndarray,
    sizes: np.ndarray,
    members: np.ndarray,
    slopes: np.ndarray,
    bounds: np.ndarray,
    solution: np.ndarray,
    chi_square: np.ndarray,
) -> None:
    """Fill in solution and chi square of the sub-problem that was chosen; 0 for unknowns that it has not."""
    largest = members.shape[1]
    offsets = np.zeros((1 << largest, largest))
    data, values = np.empty(largest), np.empty(largest)
    for i in range(len(squares)):
        s = chosen[i]
        for k in range(sizes[s]):
            data[k] = h[members[s, k], i]
        chi_square[i], _free = _sub_problem(
            data, squares[i], sizes[s], slopes[s], offsets, bounds[s, 0], bounds[s, 1], values
        )
        solution[:, i] = 0.0
        for k in range(sizes[s]):
            solution[members[s, k], i] = values[k]


@njit(cache=True, nogil=True)
def find_contested(labels: np.ndarray, places: np.ndarray, around: np.ndarray, is_contested: np.ndarray) -> None:
    """Tell which places have a neighbour of another label; the arguments are those of `settle`."""
    for i in range(len(places)):
        own = labels[places[i]]
        is_contested[i] = False
        for j in range(len(around)):
            neighbour = labels[places[i] + around[j]]
            if neighbour >= 0 and neighbour != own:
                is_contested[i] = True
                break


@njit(cache=True, nogil=True)
def settle(
    labels: np.ndarray,
    places: np.ndarray,
    around: np.ndarray,
    costs: np.ndarray,
    strength: float,
    is_changed: np.ndarray,
) -> None:
    """Give each place the label of least cost beside its neighbours' ones, one after the other.

    Parameters
    ----------
    labels : (n,) int16
        Of a padded volume; what is below 0 is no neighbour.
    places : (n_places,) int64
    around : (n_neighbours,) int64
        Distances to the neighbours of a place.
    costs : (n_labels, n_places) float32
    strength : float
        What each neighbour of another label costs.
    is_changed : (n_places,) bool
        Filled in.
    """
    n_labels = len(costs)
    alike = np.zeros(n_labels)
    for i in range(len(places)):
        place = places[i]
        alike[:] = 0
        for j in range(len(around)):
            label = labels[place + around[j]]
            if label >= 0:
                alike[label] += 1
        best = labels[place]
        least = costs[best, i] - strength * alike[best]
        for label in range(n_labels):
            cost = costs[label, i] - strength * alike[label]
            if cost < least:
                best, least = label, cost
        is_changed[i] = best != labels[place]
        labels[place] = best
