"""What differs along the lines of a volume: seen, taken, and rid of what is no noise."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

ROOT_6 = math.sqrt(6.0)
"""The variance of a - 2 b + c is six times that of one voxel."""


@njit(cache=True, nogil=True)
def survey(lines: np.ndarray, apart: int, mean: np.ndarray, is_measured: np.ndarray) -> int:
    """Fill in the mean of the bins and where they differ along a line; return how many places do not, and are not 0.

    Parameters
    ----------
    lines : (n_bins, n_lines, length) float
    apart : int
        How far the voxels of a difference stand from each other.
    mean : (n_lines, length) float64
        0 where a bin is no number.
    is_measured : (n_lines, length - 2 * apart) bool
        Of the voxel in the middle: a bin differs, and all are numbers.
    """
    n_bins, n_lines, length = lines.shape
    n_silent = 0
    differs, is_there = np.empty(length, np.bool_), np.empty(length, np.bool_)
    for k in range(n_lines):
        total = mean[k]
        total[:] = 0.0
        differs[:], is_there[:] = False, False
        for b in range(n_bins):
            line = lines[b, k]
            for i in range(length):
                total[i] += line[i]
            for i in range(length - 2 * apart):
                middle = line[i + apart]
                differs[i] |= line[i] - (middle + middle) + line[i + 2 * apart] != 0
                is_there[i] |= middle != 0
        for i in range(length - 2 * apart):
            is_number = np.isfinite(total[i] + total[i + apart] + total[i + 2 * apart])
            is_measured[k, i] = is_number and differs[i]
            n_silent += is_number and is_there[i] and not differs[i]
        for i in range(length):
            total[i] = total[i] / n_bins if np.isfinite(total[i]) else 0.0
    return n_silent


@njit(cache=True, nogil=True)
def differences(lines: np.ndarray, apart: int, line: np.ndarray, first: np.ndarray, found: np.ndarray) -> None:
    """Fill in what voxels differ from the mean of those at both sides, scaled to the noise of one voxel.

    Parameters
    ----------
    lines : (n_bins, n_lines, length) float
    line, first : (n,) int
        Where each difference lies, and where it begins.
    found : (n_bins, n) float64
    """
    for b in range(len(lines)):
        for i in range(len(line)):
            values, start = lines[b, line[i]], first[i]
            middle = values[start + apart]
            found[b, i] = (values[start] - (middle + middle) + values[start + 2 * apart]) / ROOT_6


@njit(cache=True, nogil=True)
def clip(values: np.ndarray, furthest: np.ndarray, is_kept: np.ndarray, squares: np.ndarray) -> None:
    """Tell which columns of (n_bins, n) values lie within bounds in all rows, and sum the squares of these.

    Parameters
    ----------
    furthest : (n_bins,) float64
    is_kept : (n,) bool
    squares : (n_bins,) float64
    """
    is_kept[:] = True
    for b in range(len(values)):
        for i in range(len(is_kept)):
            is_kept[i] &= abs(values[b, i]) <= furthest[b]
    for b in range(len(values)):
        total = 0.0
        for i in range(len(is_kept)):
            total += values[b, i] * values[b, i] * is_kept[i]
        squares[b] = total
