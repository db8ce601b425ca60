"""Images made row by row: shared out among processors, by kernels that make no arrays.

A row's working memory fits in the cache; whatever needs several stages goes through all of them row by row.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import numpy as np
from numba import njit

BLOCK = 8
"""Shares begin at multiples of so many rows; what is summed block by block does not depend on their number."""
TILE = 4
"""Matrices that multiply rows have multiples of so many rows and columns."""


@cache
def _pool() -> ThreadPoolExecutor:
    # Threads of our own, not Numba's: the chip is exposed from whatever thread reads the bus, and Numba's portable
    # threading layer does not bear two callers at once.
    return ThreadPoolExecutor(_n_processors(), thread_name_prefix="sensor")


def _n_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shares(rows: int) -> list[tuple[int, int]]:
    """Return which rows each processor makes: from and up to, about the same number of whole blocks for each."""
    blocks = -(-rows // BLOCK)
    n = max(min(_n_processors(), blocks), 1)
    edges = [min(blocks * i // n * BLOCK, rows) for i in range(n + 1)]
    return list(pairwise(edges))


def in_parallel(work: Callable[[int, int], object], rows: int) -> None:
    """Call for the rows from and up to, on all processors; the first share is done in this thread."""
    (start, stop), *others = shares(rows)
    begun = [_pool().submit(work, *other) for other in others]
    work(start, stop)
    for other in begun:
        other.result()


quick = njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz", "arcp", "reassoc"}, _nrt=False)  # pyright: ignore[reportCallIssue]
"""For what makes and keeps no arrays: slices are then not counted, which costs more than the work on a row."""


@quick
def multiply(weights: np.ndarray, sources: np.ndarray, sums: np.ndarray) -> None:
    """Multiply matrices, (n, m) and (m, cols) to (n, cols), in tiles of 4 x 4 weights; tiles of zeros cost nothing."""
    sums[:] = 0
    for i in range(0, len(sums), TILE):
        for j in range(0, len(sources), TILE):
            if not weights[i : i + TILE, j : j + TILE].any():
                continue
            a, b, c, d = sources[j], sources[j + 1], sources[j + 2], sources[j + 3]
            first, second, third, fourth = weights[i], weights[i + 1], weights[i + 2], weights[i + 3]
            first_a, first_b, first_c, first_d = first[j], first[j + 1], first[j + 2], first[j + 3]
            second_a, second_b, second_c, second_d = second[j], second[j + 1], second[j + 2], second[j + 3]
            third_a, third_b, third_c, third_d = third[j], third[j + 1], third[j + 2], third[j + 3]
            fourth_a, fourth_b, fourth_c, fourth_d = fourth[j], fourth[j + 1], fourth[j + 2], fourth[j + 3]
            to_first, to_second, to_third, to_fourth = sums[i], sums[i + 1], sums[i + 2], sums[i + 3]
            for col in range(sums.shape[1]):
                of_a, of_b, of_c, of_d = a[col], b[col], c[col], d[col]
                to_first[col] += first_a * of_a + first_b * of_b + first_c * of_c + first_d * of_d
                to_second[col] += second_a * of_a + second_b * of_b + second_c * of_c + second_d * of_d
                to_third[col] += third_a * of_a + third_b * of_b + third_c * of_c + third_d * of_d
                to_fourth[col] += fourth_a * of_a + fourth_b * of_b + fourth_c * of_c + fourth_d * of_d
