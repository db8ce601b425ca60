"""Charges in pixels as histograms, made photon by photon with `sim.charge`.

The tables made here are the sensor's truth. No estimator may see them: what the decomposition uses is measured.

# Ref: charge summing: Pennicard et al. 2011 (abstract) and ADVACAM forum, Medipix3 operation modes: the pixel with the
#      largest deposit of its neighbourhood wins and counts the largest of its four 2x2 sums.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sim import charge
from sim.semiconductor import SensorLayer

CHARGE_STEP_KEV = 0.25
CHARGE_BINS = 640
"""Histograms of charge reach 160 keV."""
WINNER_STEP_KEV = 2.0
WINNER_BINS = 80
N_PHOTONS = 20_000
"""Simulated interactions per energy: the counts per photon are good to about 0.3 %."""


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
    """

    single: NDArray[np.float32]
    winner: NDArray[np.float32]
    summed: NDArray[np.float32]


@lru_cache(maxsize=8)
def deposits(layer: SensorLayer, energies_kev: tuple[float, ...]) -> Deposits:
    """Follow N_PHOTONS interactions per energy through the layer and histogram their charges per incident photon.

    The result is the same in every process: each energy has its own random stream.
    """
    physics = [charge.physics_of(layer, energy_kev) for energy_kev in energies_kev]

    def follow(one: charge.Physics) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return _follow(one, N_PHOTONS, np.random.default_rng(int(1000 * one.photon_kev[0])), charge.workspace())

    # Threads of our own, not Numba's: the chip is exposed from whatever thread reads the bus, and Numba's portable
    # threading layer does not bear two callers at once.
    with ThreadPoolExecutor() as pool:
        parts = list(pool.map(follow, physics))
    single, winner, summed = (
        np.stack([one.interacting / N_PHOTONS * part[i] for one, part in zip(physics, parts, strict=True)]).astype(
            np.float32
        )
        for i in range(3)
    )
    return Deposits(single=single, winner=winner, summed=summed)


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
def _follow(
    physics: charge.Physics, n_photons: int, rng: np.random.Generator, workspace: charge.Workspace
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Follow photons of one energy to their charges in pixels; lengths in mm, z from the entrance to the pixels."""
    pixels, charges_kev = workspace.pixels, workspace.charges_kev
    single = np.zeros(CHARGE_BINS, dtype=np.float32)
    winner = np.zeros(CHARGE_BINS, dtype=np.float32)
    summed = np.zeros((WINNER_BINS, CHARGE_BINS), dtype=np.float32)
    for event in range(n_photons):
        # An additive recurrence fills position and depth evenly: less Monte Carlo noise for the same work.
        x_mm = physics.pitch_mm * ((0.8191725133961645 * event) % 1.0)
        y_mm = physics.pitch_mm * ((0.6710436067037893 * event) % 1.0)
        depth_mm = charge.first_depth_mm(physics, (0.5497004779019703 * event) % 1.0)
        n_pixels = charge.deposit(physics, x_mm, y_mm, depth_mm, rng, workspace)
        for i in range(n_pixels):
            charge_bin = min(int(charges_kev[i] / CHARGE_STEP_KEV), CHARGE_BINS - 1)
            single[charge_bin] += 1
            total = _largest_sum(pixels, charges_kev, n_pixels, i)
            if total > 0:
                winner[charge_bin] += 1
                winner_bin = min(int(charges_kev[i] / WINNER_STEP_KEV), WINNER_BINS - 1)
                summed[winner_bin, min(int(total / CHARGE_STEP_KEV), CHARGE_BINS - 1)] += 1
    return single, winner, summed
