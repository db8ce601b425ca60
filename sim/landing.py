"""Where charge lands: clouds that fell on the pixels, shared among them.

How much of a cloud crosses the borders of its pixel is known (`sim.charge.drift`); shares along rows and columns
multiply. What one photon leaves is added up by place, in memory that is 0 between photons: no search, and hardly a
branch, for nobody could foretell how large a part is.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

NO_PLACE = -(1 << 40)
MAX_PIXELS_PER_CLOUD = 9
"""A cloud gives to the pixel that it falls on and to those around it."""
_LEAST_KEV = 0.1
"""Smaller parts of a cloud, a quarter of the noise, stay with the pixel it fell on."""
_inlined = njit(inline="always", error_model="numpy")


class Clouds(NamedTuple):
    """What photons leave in the sensor, cloud by cloud, and how it comes to the pixels; (n,) each.

    Attributes
    ----------
    x, y : float64
        From the lower left corner of pixel (0, 0), in pixels; within pixel (row, col) once drifted.
    charge_kev : float64
        What will be seen of it.
    variance_mm2 : float64
        At the beginning.
    drift_mm : float64
    sigmas : float64
        How many of its sigma a pixel is wide.
    col, row : int32
        Of the pixel that it falls on.
    left, right, below, above : float32
        Shares that cross the borders of this pixel.
    """

    x: np.ndarray
    y: np.ndarray
    charge_kev: np.ndarray
    variance_mm2: np.ndarray
    drift_mm: np.ndarray
    sigmas: np.ndarray
    col: np.ndarray
    row: np.ndarray
    left: np.ndarray
    right: np.ndarray
    below: np.ndarray
    above: np.ndarray


class Landing(NamedTuple):
    """Where charge lands: a place for each pixel of interest, from 1 on.

    Attributes
    ----------
    of_row, of_col : int64
        What each row and column of the sensor contributes to the place; NO_PLACE where there is none, as in the first
        and the last, which are for all beyond.
    charges_kev : (places,) float64
        What one photon brings; 0 between photons, and of no meaning at the first place.
    places : uint64
        Those that got something.
    """

    of_row: np.ndarray
    of_col: np.ndarray
    charges_kev: np.ndarray
    places: np.ndarray


def landing(of_row: NDArray[np.int64], of_col: NDArray[np.int64], n_places: int, n_clouds: int) -> Landing:
    """Return empty places, for photons of so many clouds at most."""
    return Landing(
        np.pad(of_row, 1, constant_values=NO_PLACE), np.pad(of_col, 1, constant_values=NO_PLACE),
        np.zeros(n_places), np.zeros(n_clouds * MAX_PIXELS_PER_CLOUD + 1, dtype=np.uint64),
    )  # fmt: skip


@_inlined
def _land(landing: Landing, n: int, place: int, charge_kev: float) -> int:
    """Add charge to a place; return how many got something, if n had before."""
    at = np.uint64(max(place, 0))
    had_kev = landing.charges_kev[at]
    landing.charges_kev[at] = had_kev + charge_kev
    landing.places[n] = at
    return n + ((had_kev == 0) & (charge_kev > 0) & (place > 0))


@_inlined
def _give(landing: Landing, n: int, place: int, part_kev: float, rest_kev: float) -> tuple[int, float]:
    """Give a place a part of a cloud, if that is large enough; return also what is left of the cloud."""
    given_kev = part_kev if part_kev > _LEAST_KEV else 0.0
    return _land(landing, n, place, given_kev), rest_kev - given_kev


@_inlined
def _place(place_of: np.ndarray, line: int) -> int:
    """Return what a row or column of the sensor contributes to a place."""
    return place_of[np.uint64(min(max(line + 1, 0), len(place_of) - 1))]


@_inlined
def share(clouds: Clouds, i: np.uint64, landing: Landing, n: int) -> int:
    """Share a cloud among places; return how many got something, if n had before.

    They are the first of ``landing.places``; who asks takes the charges, and leaves 0.
    """
    col, row, charge_kev = clouds.col[i], clouds.row[i], clouds.charge_kev[i]
    left, right, below, above = clouds.left[i], clouds.right[i], clouds.below[i], clouds.above[i]
    beside, aside = max(left, right), max(below, above)
    if min(left, right) > 0 or min(below, above) > 0:
        return _share_around(clouds, i, landing, n)
    here, there = _place(landing.of_col, col), _place(landing.of_col, col + (1 if right > left else -1))
    own_row, next_row = _place(landing.of_row, row), _place(landing.of_row, row + (1 if above > below else -1))
    beside_kev, rest_kev = charge_kev * beside, charge_kev
    n, rest_kev = _give(landing, n, next_row + here, (charge_kev - beside_kev) * aside, rest_kev)
    n, rest_kev = _give(landing, n, own_row + there, beside_kev * (1 - aside), rest_kev)
    n, rest_kev = _give(landing, n, next_row + there, beside_kev * aside, rest_kev)
    return _land(landing, n, own_row + here, rest_kev)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)  # pyright: ignore[reportCallIssue]
def _share_around(clouds: Clouds, i: np.uint64, landing: Landing, n: int) -> int:
    """Share a cloud that reaches over opposite borders of its pixel."""
    col, row, charge_kev = clouds.col[i], clouds.row[i], clouds.charge_kev[i]
    rest_kev = charge_kev
    for dc in range(-1, 2):
        in_col = clouds.left[i] if dc < 0 else clouds.right[i] if dc > 0 else 1 - clouds.left[i] - clouds.right[i]
        for dr in range(-1, 2):
            in_row = clouds.below[i] if dr < 0 else clouds.above[i] if dr > 0 else 1 - clouds.below[i] - clouds.above[i]
            place = _place(landing.of_row, row + dr) + _place(landing.of_col, col + dc)
            if dc != 0 or dr != 0:
                n, rest_kev = _give(landing, n, place, charge_kev * in_col * in_row, rest_kev)
    return _land(landing, n, _place(landing.of_row, row) + _place(landing.of_col, col), rest_kev)
