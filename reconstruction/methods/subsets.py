"""Ordered subsets: which views an iteration looks at, and in which order.

A subset is every n-th view, so that each sees the whole orbit, and it is a slice, so that nothing is copied.

# Ref: ordered subsets: Hudson and Larkin 1994, IEEE Trans. Med. Imaging 13, 601. Bit reversal, which puts each
#      subset far from those before it: Herman and Meyer 1993, IEEE Trans. Med. Imaging 12, 600 (for any prime factor).
#      Golden section: Köhler 2004, IEEE Nucl. Sci. Symp. 6, 3961.
"""

from __future__ import annotations

import math
from typing import Literal

from firmware_iface.errors import WrongUsage

Order = Literal["bit-reversal", "golden", "sequential"]
ORDERS: tuple[Order, ...] = ("bit-reversal", "golden", "sequential")
GOLDEN = (math.sqrt(5) - 1) / 2


def ordered_subsets(n_views: int, n_subsets: int, order: Order = "bit-reversal") -> list[slice]:
    """Return the subsets in the order of their visits: every view is in one, and sizes differ by at most 1.

    Parameters
    ----------
    n_views, n_subsets : int
        As many subsets as views makes each view a step of its own.
    order : str
        Of `ORDERS`.
    """
    if not 1 <= n_subsets <= n_views:
        raise WrongUsage(f"n_subsets is {n_subsets}; allowed: 1 to the number of views, {n_views}")
    if order == "bit-reversal":
        firsts = _reversed_digits(n_subsets)
    elif order == "golden":
        firsts = _by_rank([(i * GOLDEN) % 1 for i in range(n_subsets)])
    elif order == "sequential":
        firsts = list(range(n_subsets))
    else:
        raise WrongUsage(f"the order of subsets is {order!r}; allowed: {', '.join(ORDERS)}")
    return [slice(first, None, n_subsets) for first in firsts]


def _reversed_digits(n: int) -> list[int]:
    """Return 0 to n - 1, each number's digits reversed in the mixed base of n's prime factors."""
    places = [0]
    weight = n
    for factor in _prime_factors(n):
        weight //= factor
        places = [place + digit * weight for digit in range(factor) for place in places]
    return places


def _prime_factors(n: int) -> list[int]:
    factors, candidate = [], 2
    while n > 1:
        while n % candidate == 0:
            factors.append(candidate)
            n //= candidate
        candidate += 1
    return factors


def _by_rank(values: list[float]) -> list[int]:
    rank = {value: place for place, value in enumerate(sorted(values))}
    return [rank[value] for value in values]


def size_of(views: slice, n_views: int) -> int:
    """Return how many of the views a subset has."""
    return len(range(*views.indices(n_views)))
