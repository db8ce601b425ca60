"""From one photon to charge in pixels, by Monte Carlo: fluorescence, Compton electrons, diffusion, charge sharing.

The tables made here are the sensor's truth. No estimator may see them: what the decomposition uses is measured.

# Ref: K fluorescence, second generation (Te K excites Cd K), free paths: Elam, Ravel and Sieber 2002, Radiat. Phys.
#      Chem. 63, 121, through `calibration.attenuation`.
# Ref: diffusion sigma = sqrt(2 (kT/q) z d / V): drift-diffusion in a uniform field, independent of mobility.
# Ref: initial cloud: Kanaya and Okayama 1972, J. Phys. D 5, 43: R = 0.0276 A E^1.67 / (Z^0.889 rho) um, which is
#      0.0175 E^1.67 um in CdTe; 0.3 R as its sigma is a working value, not a measurement.
# Ref: charge summing: Pennicard et al. 2011 (abstract) and ADVACAM forum, Medipix3 operation modes: the pixel with the
#      largest deposit of its neighbourhood wins and counts the largest of its four 2x2 sums.
# Ref: Klein-Nishina by Kahn's rejection: H. Kahn 1954, RAND AECU-3259.

Stated simplifications: coherent scatter does nothing; the Compton-scattered photon leaves the sensor (6.6 % of the
interactions at 100 keV in CdTe, 1.7 % at 60 keV); L lines stay where they are; every charge arrives.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from calibration.attenuation import LOWEST_KEV, Material, k_shell, mass_attenuation_cm2_g

THERMAL_V = 0.02585
"""kT/q at 300 K."""
CHARGE_STEP_KEV = 0.25
CHARGE_BINS = 640
"""Histograms of charge reach 160 keV."""
WINNER_STEP_KEV = 2.0
WINNER_BINS = 80
N_PHOTONS = 20_000
"""Simulated interactions per energy: the counts per photon are good to about 0.3 %."""

_MAX_ALIVE = 8
_MAX_PIXELS = 64
_ELECTRON_REST_KEV = 511.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorLayer:
    """The semiconductor: what it is made of, how thick, how pixelated, how biased.

    ``generations`` says how often a fluorescence photon may come from another one's absorption; 1 leaves out, as
    simpler models do, that tellurium's lines excite cadmium.
    """

    material: Material
    thickness_mm: float
    pitch_mm: float
    bias_v: float
    generations: int = 3

    def __post_init__(self) -> None:
        for name in ("thickness_mm", "pitch_mm", "bias_v"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: above 0")


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


class _Physics(NamedTuple):
    """The layer as the kernel reads it; photon 0 is the incident one, the others are the fluorescence lines."""

    photon_kev: np.ndarray
    attenuation_per_mm: np.ndarray
    p_photo: np.ndarray
    p_element: np.ndarray
    """(photons, elements): share of photo-absorption of each element and those before it."""
    edge_kev: np.ndarray
    p_k: np.ndarray
    p_emission: np.ndarray
    line_element: np.ndarray
    line_fraction: np.ndarray
    generations: int
    thickness_mm: float
    pitch_mm: float
    diffusion_mm: float
    """Variance of the cloud per drift length."""
    range_mm: float
    """Range of a 1 keV electron."""


@lru_cache(maxsize=8)
def deposits(layer: SensorLayer, energies_kev: tuple[float, ...]) -> Deposits:
    """Follow N_PHOTONS interactions per energy through the layer and histogram their charges per incident photon.

    The result is the same in every process: each energy has its own random stream.
    """
    physics = [_physics(layer, energy_kev) for energy_kev in energies_kev]

    def follow(one: _Physics) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return _follow(one, N_PHOTONS, np.random.default_rng(int(1000 * one.photon_kev[0])))

    # Threads of our own, not Numba's: the chip is exposed from whatever thread reads the bus, and Numba's portable
    # threading layer does not bear two callers at once.
    with ThreadPoolExecutor() as pool:
        parts = list(pool.map(follow, physics))
    absorbed = [-math.expm1(-one.attenuation_per_mm[0] * layer.thickness_mm) for one in physics]
    single, winner, summed = (
        np.stack([share / N_PHOTONS * part[i] for share, part in zip(absorbed, parts, strict=True)]).astype(np.float32)
        for i in range(3)
    )
    return Deposits(single=single, winner=winner, summed=summed)


def _physics(layer: SensorLayer, energy_kev: float) -> _Physics:
    shells = [k_shell(z) for z, _ in layer.material.mass_fractions]
    lines = [(i, line) for i, shell in enumerate(shells) for line in shell.lines if line.energy_kev >= LOWEST_KEV]
    photon_kev = np.array([energy_kev, *(line.energy_kev for _, line in lines)])
    photo = mass_attenuation_cm2_g(layer.material, photon_kev, process="photo")
    scattered = mass_attenuation_cm2_g(layer.material, photon_kev, process="incoherent")
    z_mean = sum(z * fraction for z, fraction in layer.material.mass_fractions)
    range_um = 0.0276 * 2.3 * z_mean / (z_mean**0.889 * layer.material.density_g_cm3)  # with A = 2.3 Z
    return _Physics(
        photon_kev=photon_kev,
        attenuation_per_mm=0.1 * layer.material.density_g_cm3 * (photo + scattered),
        p_photo=photo / (photo + scattered),
        p_element=_element_shares(layer.material, photon_kev),
        edge_kev=np.array([shell.edge_kev for shell in shells]),
        p_k=np.array([shell.fraction for shell in shells]),
        p_emission=np.array([shell.fluorescence_yield * bool(shell.lines) for shell in shells]),
        line_element=np.array([i for i, _ in lines], dtype=np.int64),
        line_fraction=np.array([line.fraction for _, line in lines]),
        generations=layer.generations,
        thickness_mm=layer.thickness_mm,
        pitch_mm=layer.pitch_mm,
        diffusion_mm=2 * THERMAL_V * layer.thickness_mm / layer.bias_v,
        range_mm=range_um * 1e-3,
    )


def _element_shares(material: Material, photon_kev: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of photo-absorption of each element and those before it: (n_photons, n_elements)."""
    parts = [
        fraction
        * mass_attenuation_cm2_g(
            Material(name=f"Z={z}", density_g_cm3=1.0, mass_fractions=((z, 1.0),)), photon_kev, process="photo"
        )
        for z, fraction in material.mass_fractions
    ]
    return np.cumsum(parts, axis=0).T / np.sum(parts, axis=0)[:, None]


@njit(cache=True, nogil=True)
def _compton_electron_kev(energy_kev: float, rng: np.random.Generator) -> float:
    """Draw the energy of a Compton electron."""
    alpha = energy_kev / _ELECTRON_REST_KEV
    while True:
        if rng.random() <= (1 + 2 * alpha) / (9 + 2 * alpha):
            ratio = 1 + 2 * alpha * rng.random()
            p_accept = 4 * (1 / ratio - 1 / ratio**2)
        else:
            ratio = (1 + 2 * alpha) / (1 + 2 * alpha * rng.random())
            p_accept = 0.5 * ((1 - (ratio - 1) / alpha) ** 2 + 1 / ratio)
        if rng.random() <= p_accept:
            return energy_kev * (1 - 1 / ratio)


@njit(cache=True, nogil=True)
def _choose_line(physics: _Physics, element: int, rng: np.random.Generator) -> int:
    """Draw which of the element's lines is emitted; return its number among all photons."""
    u, chosen = rng.random(), 0
    for line in range(len(physics.line_element)):
        if physics.line_element[line] == element and u >= 0:
            u -= physics.line_fraction[line]
            chosen = 1 + line
    return chosen


@njit(cache=True, nogil=True)
def _add_charge(pixels: np.ndarray, charges: np.ndarray, n: int, col: int, row: int, charge: float) -> int:
    """Add charge to the entry of a pixel, or open one; return how many entries there are."""
    for i in range(n):
        if pixels[i, 0] == col and pixels[i, 1] == row:
            charges[i] += charge
            return n
    if n < len(charges):
        pixels[n, 0], pixels[n, 1], charges[n] = col, row, charge
        return n + 1
    return n


@njit(cache=True, nogil=True)
def _share(
    pixels: np.ndarray, charges: np.ndarray, n: int, x: float, y: float, sigma: float, pitch: float, charge: float
) -> int:
    """Split a Gaussian cloud over 3x3 pixels; what would reach further goes to the outer ones."""
    col, row = math.floor(x / pitch), math.floor(y / pitch)
    scale = 1 / (math.sqrt(2.0) * sigma)
    left, right = 0.5 * math.erfc((x - col * pitch) * scale), 0.5 * math.erfc(((col + 1) * pitch - x) * scale)
    below, above = 0.5 * math.erfc((y - row * pitch) * scale), 0.5 * math.erfc(((row + 1) * pitch - y) * scale)
    for dc in range(-1, 2):
        in_col = left if dc < 0 else right if dc > 0 else 1 - left - right
        if in_col < 1e-4:
            continue
        for dr in range(-1, 2):
            in_row = below if dr < 0 else above if dr > 0 else 1 - below - above
            if in_row >= 1e-4:
                n = _add_charge(pixels, charges, n, col + dc, row + dr, charge * in_col * in_row)
    return n


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
def _absorb(
    physics: _Physics, photons: np.ndarray, points: np.ndarray, n_alive: int, rng: np.random.Generator
) -> tuple[int, float, float]:
    """Let the last photon alive interact; its fluorescence photon, if any, takes its place.

    ``photons`` holds number and generation, ``points`` x, y, z. Returns how many photons are alive, the energy left
    at the spot, and the kinetic energy of the electron that spreads it.
    """
    n_alive -= 1
    photon, age = int(photons[n_alive, 0]), int(photons[n_alive, 1])
    energy_kev = physics.photon_kev[photon]
    if rng.random() >= physics.p_photo[photon]:
        electron_kev = _compton_electron_kev(energy_kev, rng)
        return n_alive, electron_kev, electron_kev
    element, u = 0, rng.random()
    while element < len(physics.edge_kev) - 1 and u > physics.p_element[photon, element]:
        element += 1
    if energy_kev < physics.edge_kev[element] or rng.random() >= physics.p_k[element]:
        return n_alive, energy_kev, energy_kev
    electron_kev = energy_kev - physics.edge_kev[element]
    if age == physics.generations or rng.random() >= physics.p_emission[element]:
        return n_alive, energy_kev, electron_kev
    child = _choose_line(physics, element, rng)
    path = -math.log1p(-rng.random()) / physics.attenuation_per_mm[child]
    cosine, phi = 2 * rng.random() - 1, 2 * math.pi * rng.random()
    across = path * math.sqrt(1 - cosine * cosine)
    points[n_alive, 0] += across * math.cos(phi)
    points[n_alive, 1] += across * math.sin(phi)
    points[n_alive, 2] += path * cosine
    photons[n_alive, 0], photons[n_alive, 1] = child, age + 1
    is_inside = 0 < points[n_alive, 2] < physics.thickness_mm
    return n_alive + is_inside, energy_kev - physics.photon_kev[child], electron_kev


@njit(cache=True, nogil=True)
def _follow(physics: _Physics, n_photons: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Follow photons of one energy to their charges in pixels; lengths in mm, z from the entrance to the pixels."""
    single = np.zeros(CHARGE_BINS, dtype=np.float32)
    winner = np.zeros(CHARGE_BINS, dtype=np.float32)
    summed = np.zeros((WINNER_BINS, CHARGE_BINS), dtype=np.float32)
    photons, points = np.empty((_MAX_ALIVE, 2), dtype=np.int64), np.empty((_MAX_ALIVE, 3))
    pixels, charges = np.empty((_MAX_PIXELS, 2), dtype=np.int64), np.empty(_MAX_PIXELS)
    absorbed = -math.expm1(-physics.attenuation_per_mm[0] * physics.thickness_mm)
    for event in range(n_photons):
        # An additive recurrence fills position and depth evenly: less Monte Carlo noise for the same work.
        photons[0, 0], photons[0, 1] = 0, 0
        points[0, 0] = physics.pitch_mm * ((0.8191725133961645 * event) % 1.0)
        points[0, 1] = physics.pitch_mm * ((0.6710436067037893 * event) % 1.0)
        depth = (0.5497004779019703 * event) % 1.0
        points[0, 2] = -math.log1p(-absorbed * depth) / physics.attenuation_per_mm[0]
        n_alive, n_pixels = 1, 0
        while n_alive > 0:
            x, y, z = points[n_alive - 1, 0], points[n_alive - 1, 1], points[n_alive - 1, 2]
            n_alive, left_kev, electron_kev = _absorb(physics, photons, points, n_alive, rng)
            cloud = 0.3 * physics.range_mm * max(electron_kev, 0.1) ** 1.67
            sigma = math.sqrt(cloud * cloud + physics.diffusion_mm * (physics.thickness_mm - z)) + 1e-6
            n_pixels = _share(pixels, charges, n_pixels, x, y, sigma, physics.pitch_mm, left_kev)
        for i in range(n_pixels):
            charge_bin = min(int(charges[i] / CHARGE_STEP_KEV), CHARGE_BINS - 1)
            single[charge_bin] += 1
            total = _largest_sum(pixels, charges, n_pixels, i)
            if total > 0:
                winner[charge_bin] += 1
                winner_bin = min(int(charges[i] / WINNER_STEP_KEV), WINNER_BINS - 1)
                summed[winner_bin, min(int(total / CHARGE_STEP_KEV), CHARGE_BINS - 1)] += 1
    return single, winner, summed
