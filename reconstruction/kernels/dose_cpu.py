"""Photons one by one through an upright cylinder with rods: where they leave their energy.

A photon flies to where it would next collide in the densest of the materials, and there does so by the chance of the
material that is there (Woodcock). The photo-effect leaves all energy on the spot; a scattering leaves the electron's,
and the photon goes on. Coherent scattering is left out: it leaves nothing and hardly turns. So is fluorescence of
agents.

# Ref: free flights in the densest material: E. R. Woodcock et al. 1965, ANL-7050, 557.
# Ref: angles of scattering: O. Klein, Y. Nishina 1929, Z. Phys. 52, 853, by rejection; electrons are free.
# Ref: random numbers: SplitMix64, G. L. Steele, D. Lea, C. H. Flood 2014, OOPSLA, 453.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

ELECTRON_REST_KEV = 510.99895
LEAST_KEV = 1.0
"""A photon below leaves its energy where it is."""
_GOLDEN, _FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_TO_UNIT = 2.0**-53


@njit(inline="always")
def _uniform(state: np.ndarray) -> float:
    """Return a number in (0, 1)."""
    state[0] += _GOLDEN
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    z ^= z >> np.uint64(31)
    return (float(z >> np.uint64(11)) + 0.5) * _TO_UNIT


@njit(inline="always")
def _filled_by(circles: np.ndarray, x: float, y: float) -> int:
    for i in range(len(circles) - 1, 0, -1):
        if (x - circles[i, 0]) ** 2 + (y - circles[i, 1]) ** 2 < circles[i, 2] ** 2:
            return i
    return 0


@njit(inline="always")
def _scatter(energy: float, way: np.ndarray, state: np.ndarray) -> float:
    """Turn the way of a photon; return its energy afterwards."""
    ratio = energy / ELECTRON_REST_KEV
    while True:
        cosine = 2 * _uniform(state) - 1
        left = 1 / (1 + ratio * (1 - cosine))
        if 2 * _uniform(state) < left * left * (left + 1 / left - 1 + cosine * cosine):
            break
    sine, turn = math.sqrt(max(1 - cosine * cosine, 0.0)), 2 * math.pi * _uniform(state)
    along, across = sine * math.cos(turn), sine * math.sin(turn)
    x, y, z = way[0], way[1], way[2]
    level = math.sqrt(x * x + y * y)
    if level > 1e-6:
        way[0] = cosine * x + (along * x * z - across * y) / level
        way[1] = cosine * y + (along * y * z + across * x) / level
        way[2] = cosine * z - along * level
    else:
        way[0], way[1], way[2] = along, across, cosine * math.copysign(1.0, z)
    return energy * left


@njit(cache=True, nogil=True)
def fly(
    seed: int, n_photons: int, circles: np.ndarray, half_height: float, to_source: float, half_fan: float,
    half_slope: float, energies: np.ndarray, chances: np.ndarray, step_kev: float, photo: np.ndarray,
    scatter: np.ndarray, left: np.ndarray, primary: np.ndarray, sums: np.ndarray,
) -> None:  # fmt: skip
    """Send photons from all around.

    Parameters
    ----------
    seed, n_photons : int
    circles : (n_matter, 3) float64
        Centre and radius of the body, and of the rods in it, mm.
    half_height, to_source : float
        Of the body, and from source to axis, mm.
    half_fan : float
        Photons start within so much of the ray through the axis, rad.
    half_slope : float
        And climb by no more than this tangent.
    energies, chances : (n_energies,) float64
        What photons start with, keV; the share of photons that has at most so much.
    step_kev : float
        Of the tables below, from 0 keV on.
    photo, scatter : (n_matter, n_nodes) float64
        Attenuation by the photo-effect and by scattering, 1/mm.
    left : (n_matter, 2) float64
        Becomes the energy left in each matter, keV: within the beam's height on the axis, and beyond it.
    primary : (n_matter,) float64
        Becomes what first collisions left of both.
    sums : (3,) float64
        Becomes the energy of all photons, of those that left the body, and of those that missed it.
    """
    state = np.empty(1, np.uint64)
    state[0] = np.uint64(seed) * _SECOND + _GOLDEN
    way = np.empty(3)
    n_nodes = photo.shape[1]
    densest = np.empty(n_nodes)
    for node in range(n_nodes):
        densest[node] = 0.0
        for i in range(len(circles)):
            densest[node] = max(densest[node], photo[i, node] + scatter[i, node])
    radius2, seen_height = circles[0, 2] ** 2, half_slope * to_source
    for _ in range(n_photons):
        energy = energies[min(np.searchsorted(chances, _uniform(state)), len(energies) - 1)]
        while True:  # evenly over the solid angle
            slope = (2 * _uniform(state) - 1) * half_slope
            if _uniform(state) < (1 + slope * slope) ** -1.5:
                break
        turn, fan = 2 * math.pi * _uniform(state), (2 * _uniform(state) - 1) * half_fan
        x, y, z = to_source * math.cos(turn), to_source * math.sin(turn), 0.0
        length = math.sqrt(1 + slope * slope)
        way[0], way[1], way[2] = -math.cos(turn + fan) / length, -math.sin(turn + fan) / length, slope / length
        sums[0] += energy
        level2 = way[0] ** 2 + way[1] ** 2
        middle = -(x * way[0] + y * way[1]) / level2
        square = middle * middle - (x * x + y * y - radius2) / level2
        if square <= 0:
            sums[2] += energy
            continue
        enter = middle - math.sqrt(square)
        x, y, z = x + enter * way[0], y + enter * way[1], z + enter * way[2]
        if abs(z) > half_height:
            sums[2] += energy
            continue
        is_first = True
        while True:
            node = int(energy / step_kev + 0.5)
            flight = -math.log(_uniform(state)) / densest[node]
            x, y, z = x + flight * way[0], y + flight * way[1], z + flight * way[2]
            if x * x + y * y >= radius2 or abs(z) >= half_height:
                sums[1] += energy
                break
            matter = _filled_by(circles, x, y)
            chance = _uniform(state) * densest[node]
            if chance >= photo[matter, node] + scatter[matter, node]:
                continue
            after = 0.0 if chance < photo[matter, node] else _scatter(energy, way, state)
            if after < LEAST_KEV:
                after = 0.0
            side = 0 if abs(z) <= seen_height else 1
            left[matter, side] += energy - after
            if is_first:
                primary[matter] += energy - after
            is_first = False
            energy = after
            if energy == 0.0:
                break
