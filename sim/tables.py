"""Charges in pixels as histograms, made photon by photon with `sim.charge`.

The tables made here are the sensor's truth. No estimator may see them: what the decomposition uses is measured.

What counts has three kinds: a *single* pixel's charge, the charge of a *winner*, and the *summed* charge that the
winner counts. Places of one pixel seen from another are sorted into classes that the square lattice makes equal.

# Ref: charge summing: Pennicard et al. 2011 (abstract) and ADVACAM forum, Medipix3 operation modes: the pixel with the
#      largest deposit of its neighbourhood wins and counts the largest of its four 2x2 sums.
# Ref: counts of a compound Poisson process: covariance = photons times the mean product of what one photon counts.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.special import erfc

from sim import chance, charge
from sim.semiconductor import SensorLayer

CHARGE_STEP_KEV = 0.25
CHARGE_BINS = 640
"""Histograms of charge reach 160 keV."""
WINNER_STEP_KEV = 2.0
WINNER_BINS = 80
PAIR_EDGES_KEV = np.concatenate([np.arange(1.0, 16.0), np.arange(16.0, 40.0, 2.0), np.arange(40.0, 161.0, 10.0)])
"""Steps of charge where two count together: fine where charge is shared. Less than 1 keV counts nowhere."""
PAIR_BINS = len(PAIR_EDGES_KEV) - 1
PAIR_OF_CHARGE = np.searchsorted(PAIR_EDGES_KEV, (np.arange(CHARGE_BINS) + 0.5) * CHARGE_STEP_KEV) - 1
"""(CHARGE_BINS,) int: the step of each charge, -1 for less than the least."""
N_PHOTONS = 20_000
"""Simulated interactions per energy: the counts per photon are good to about 0.3 %."""
PAIRS_EVERY = 4
"""One of so many also says what counts together; covariances are summed over many energies."""

SINGLE, WINNER, SUMMED = range(3)
N_KINDS = 3
PLACES = ((0, 0), (0, 1), (1, 1), (0, 2), (1, 2), (2, 2))
"""Classes of pixels around a pixel, as the smaller and the larger of their distances along rows and columns."""
MEMBERS = np.array([1, 4, 4, 4, 8, 4])
"""How many pixels are in each class."""
REACH = 2
CLASS_OF_PLACE = np.array(
    [
        [PLACES.index((min(abs(row), abs(col)), max(abs(row), abs(col)))) for col in range(-REACH, REACH + 1)]
        for row in range(-REACH, REACH + 1)
    ]
)
"""(5, 5) int: the class of each pixel around the middle one."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Deposits:
    """What one incident photon leaves behind on average, before any noise, on a grid of CHARGE_STEP_KEV.

    Attributes
    ----------
    single : (n_energies, CHARGE_BINS) float32
        Pixels hit, by the charge in each.
    winner : (n_energies, CHARGE_BINS) float32
        Pixels that hold the largest charge of their 3x3 neighbourhood, by that charge.
    summed : (n_energies, WINNER_BINS, CHARGE_BINS) float32
        The same pixels, by that charge in steps of WINNER_STEP_KEV, and by the largest of the four 2x2 sums.
    node : (n_energies, CHARGE_BINS) float32
        Squares of 2x2 pixels that got charge, by that charge: the traffic of the summing nodes.
    spread : (n_energies, N_KINDS, n_places, PAIR_BINS) float32
        What counts, by its kind, by the class of its pixel seen from the photon's, and by charge in PAIR_EDGES_KEV.
    pairs : (n_energies, N_KINDS, N_KINDS, n_places, PAIR_BINS, PAIR_BINS) float32
        What counts together with what counts in another pixel, for one pixel of each class around the first; in
        the same pixel, class 0, only the winner's own charge with its sum, for the rest follows from one charge.
    """

    single: NDArray[np.float32]
    winner: NDArray[np.float32]
    summed: NDArray[np.float32]
    node: NDArray[np.float32]
    spread: NDArray[np.float32]
    pairs: NDArray[np.float32]


@lru_cache(maxsize=4)
def deposits(layer: SensorLayer, energies_kev: tuple[float, ...]) -> Deposits:
    """Follow N_PHOTONS interactions per energy through the layer and histogram their charges per incident photon.

    The result is the same in every process: each energy has its own random stream.
    """
    physics = [charge.physics_of(layer, energy_kev) for energy_kev in energies_kev]

    def follow(one: charge.Physics) -> tuple[np.ndarray, ...]:
        dice = chance.dice(np.random.default_rng(int(1000 * one.photon_kev[0])))
        return _follow(one, N_PHOTONS, dice, charge.workspace())

    # Threads of our own, not Numba's: the chip is exposed from whatever thread reads the bus, and Numba's portable
    # threading layer does not bear two callers at once.
    with ThreadPoolExecutor() as pool:
        parts = list(pool.map(follow, physics))
    single, winner, summed, node, spread, pairs = (
        np.stack([np.float32(one.interacting / N_PHOTONS) * part[i] for one, part in zip(physics, parts, strict=True)])
        for i in range(6)
    )
    pairs *= (PAIRS_EVERY / MEMBERS)[:, None, None]
    return Deposits(single=single, winner=winner, summed=summed, node=node, spread=spread, pairs=pairs)


@lru_cache(maxsize=8)
def seen_above(noise_kev: float, fano_kev: float) -> NDArray[np.float32]:
    """Return the chance that a charge is seen above a threshold: (CHARGE_BINS, CHARGE_BINS + 1) float32."""
    charge_kev = (np.arange(CHARGE_BINS) + 0.5)[:, None] * CHARGE_STEP_KEV
    threshold_kev = np.arange(CHARGE_BINS + 1)[None, :] * CHARGE_STEP_KEV
    sigma_kev = np.sqrt(noise_kev**2 + fano_kev * charge_kev)
    return (0.5 * erfc((threshold_kev - charge_kev) / (math.sqrt(2) * sigma_kev))).astype(np.float32)


def pair_above(threshold_kev: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return the share of each step of pairs that is above thresholds: (n_thresholds, PAIR_BINS) float32."""
    above_kev = PAIR_EDGES_KEV[1:] - np.asarray(threshold_kev)[:, None]
    return np.clip(above_kev / np.diff(PAIR_EDGES_KEV), 0, 1).astype(np.float32)


@njit(cache=True, nogil=True)
def _largest_sum(pixels: np.ndarray, charges: np.ndarray, n: int, winner: int) -> float:
    """Return the largest of the four 2x2 sums of a pixel, or -1 where a neighbour holds more charge."""
    sums = np.zeros(4)
    for i in range(n):
        dc, dr = pixels[i, 0] - pixels[winner, 0], pixels[i, 1] - pixels[winner, 1]
        if abs(dc) > 1 or abs(dr) > 1:
            continue
        if charges[i] > charges[winner] or (charges[i] == charges[winner] and i < winner):
            return -1.0
        for corner in range(4):
            to_col, to_row = 2 * (corner & 1) - 1, (corner & 2) - 1
            if (dc == 0 or dc == to_col) and (dr == 0 or dr == to_row):
                sums[corner] += charges[i]
    return sums.max()


@njit(cache=True, nogil=True)
def _add_nodes(pixels: np.ndarray, charges: np.ndarray, n: int, node: np.ndarray) -> None:
    """Histogram the charges of all squares of 2x2 pixels that got any."""
    for i in range(n):
        for corner in range(4):
            col, row = pixels[i, 0] + (corner & 1), pixels[i, 1] + (corner >> 1)  # the upper right pixel of the square
            total, is_first = 0.0, True
            for j in range(n):
                if 0 <= col - pixels[j, 0] <= 1 and 0 <= row - pixels[j, 1] <= 1:
                    total += charges[j]
                    is_first &= j >= i
            if is_first:
                node[min(int(total / CHARGE_STEP_KEV), CHARGE_BINS - 1)] += 1


@njit(cache=True, nogil=True)
def _add_spread(pixels: np.ndarray, steps: np.ndarray, n: int, spread: np.ndarray) -> None:
    """Histogram what counts by its place; ``steps`` (n, N_KINDS) is -1 where nothing does."""
    for i in range(n):
        col, row = min(abs(pixels[i, 0]), REACH) + REACH, min(abs(pixels[i, 1]), REACH) + REACH
        for kind in range(N_KINDS):
            if steps[i, kind] >= 0:
                spread[kind, CLASS_OF_PLACE[row, col], steps[i, kind]] += 1


@njit(cache=True, nogil=True)
def _add_pairs(pixels: np.ndarray, steps: np.ndarray, n: int, pairs: np.ndarray) -> None:
    """Histogram what counts together; ``steps`` (n, N_KINDS) is -1 where nothing does."""
    for i in range(n):
        if steps[i, SUMMED] >= 0 and steps[i, SINGLE] >= 0:
            for kind in (SINGLE, WINNER):
                pairs[kind, SUMMED, 0, steps[i, SINGLE], steps[i, SUMMED]] += 1
                pairs[SUMMED, kind, 0, steps[i, SUMMED], steps[i, SINGLE]] += 1
        for j in range(n):
            dc, dr = abs(pixels[j, 0] - pixels[i, 0]), abs(pixels[j, 1] - pixels[i, 1])
            if i == j or dc > REACH or dr > REACH:
                continue
            place = CLASS_OF_PLACE[dr + REACH, dc + REACH]
            for kind in range(N_KINDS):
                if steps[i, kind] >= 0:
                    for other in range(N_KINDS):
                        if steps[j, other] >= 0:
                            pairs[kind, other, place, steps[i, kind], steps[j, other]] += 1


@njit(cache=True, nogil=True)
def _follow(
    physics: charge.Physics, n_photons: int, dice: chance.Dice, workspace: charge.Workspace
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Follow photons of one energy to their charges in pixels; lengths in mm, z from the entrance to the pixels."""
    pixels, charges_kev = workspace.pixels, workspace.charges_kev
    single = np.zeros(CHARGE_BINS, dtype=np.float32)
    winner = np.zeros(CHARGE_BINS, dtype=np.float32)
    summed = np.zeros((WINNER_BINS, CHARGE_BINS), dtype=np.float32)
    node = np.zeros(CHARGE_BINS, dtype=np.float32)
    spread = np.zeros((N_KINDS, len(PLACES), PAIR_BINS), dtype=np.float32)
    pairs = np.zeros((N_KINDS, N_KINDS, len(PLACES), PAIR_BINS, PAIR_BINS), dtype=np.float32)
    steps = np.empty((len(charges_kev), N_KINDS), dtype=np.int64)
    for event in range(n_photons):
        # An additive recurrence fills position and depth evenly: less Monte Carlo noise for the same work.
        x_mm = physics.pitch_mm * ((0.8191725133961645 * event) % 1.0)
        y_mm = physics.pitch_mm * ((0.6710436067037893 * event) % 1.0)
        depth_mm = charge.first_depth_mm(physics, (0.5497004779019703 * event) % 1.0)
        n_pixels = charge.deposit(physics, x_mm, y_mm, depth_mm, dice, workspace)
        for i in range(n_pixels):
            charge_bin = min(int(charges_kev[i] / CHARGE_STEP_KEV), CHARGE_BINS - 1)
            single[charge_bin] += 1
            steps[i, SINGLE], steps[i, WINNER], steps[i, SUMMED] = PAIR_OF_CHARGE[charge_bin], -1, -1
            total = _largest_sum(pixels, charges_kev, n_pixels, i)
            if total > 0:
                winner[charge_bin] += 1
                winner_bin = min(int(charges_kev[i] / WINNER_STEP_KEV), WINNER_BINS - 1)
                sum_bin = min(int(total / CHARGE_STEP_KEV), CHARGE_BINS - 1)
                summed[winner_bin, sum_bin] += 1
                steps[i, WINNER], steps[i, SUMMED] = steps[i, SINGLE], PAIR_OF_CHARGE[sum_bin]
        _add_nodes(pixels, charges_kev, n_pixels, node)
        _add_spread(pixels, steps, n_pixels, spread)
        if event % PAIRS_EVERY == 0:
            _add_pairs(pixels, steps, n_pixels, pairs)
    return single, winner, summed, node, spread, pairs
