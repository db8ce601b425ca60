"""A median that slides along rows, and the transforms along views that stripes are found with: CPU kernels."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def running_median(rows: np.ndarray, width: int, medians: np.ndarray) -> None:
    """Fill `medians` with the median over `width` neighbours along the last axis; the ends are mirrored.

    Parameters
    ----------
    rows : (n, m) float
        Finite.
    width : int
        Odd, at most m.
    """
    n, m = rows.shape
    half = width // 2
    window = np.empty(width, rows.dtype)
    for i in range(n):
        row = rows[i]
        for k in range(width):  # insertion sort of the first window
            j = k - half
            value = row[-1 - j if j < 0 else j]
            place = k
            while place > 0 and window[place - 1] > value:
                window[place] = window[place - 1]
                place -= 1
            window[place] = value
        medians[i, 0] = window[half]
        for j in range(1, m):
            leaving, entering = j - 1 - half, j + half
            old = row[-1 - leaving if leaving < 0 else leaving]
            new = row[2 * m - 1 - entering if entering >= m else entering]
            low, high = 0, width - 1
            while low < high:
                middle = (low + high) // 2
                if window[middle] < old:
                    low = middle + 1
                else:
                    high = middle
            place = low
            while place < width - 1 and window[place + 1] < new:
                window[place] = window[place + 1]
                place += 1
            while place > 0 and window[place - 1] > new:
                window[place] = window[place - 1]
                place -= 1
            window[place] = new
            medians[i, j] = window[half]


@njit(cache=True, nogil=True)
def analyse(signal: np.ndarray, taps: np.ndarray, half: np.ndarray) -> None:
    """Filter along the first axis, which closes on itself, and keep every second value: one band of a wavelet step.

    Parameters
    ----------
    signal : (n, m) float, n even
    taps : (k,) float
    half : (n // 2, m) float
        Filled.
    """
    n = signal.shape[0]
    half[:] = 0
    for place in range(n // 2):
        for k in range(len(taps)):
            source = (2 * place + k) % n
            tap = taps[k]
            for j in range(signal.shape[1]):
                half[place, j] += tap * signal[source, j]


@njit(cache=True, nogil=True)
def synthesise(half: np.ndarray, taps: np.ndarray, signal: np.ndarray) -> None:
    """Add what `analyse` transposed makes of one band to `signal`."""
    n = signal.shape[0]
    for place in range(n // 2):
        for k in range(len(taps)):
            target = (2 * place + k) % n
            tap = taps[k]
            for j in range(signal.shape[1]):
                signal[target, j] += tap * half[place, j]
