"""From one photon to charge in pixels, by Monte Carlo: fluorescence, Compton electrons, diffusion, charge sharing.

# Ref: K fluorescence, second generation (Te K excites Cd K), free paths: Elam, Ravel and Sieber 2002, Radiat. Phys.
#      Chem. 63, 121, through `calibration.attenuation`.
# Ref: diffusion sigma = sqrt(2 (kT/q) z d / V): drift-diffusion in a uniform field, independent of mobility.
# Ref: initial cloud: Kanaya and Okayama 1972, J. Phys. D 5, 43: R = 0.0276 A E^1.67 / (Z^0.889 rho) um, which is
#      0.0175 E^1.67 um in CdTe; 0.3 R as its sigma is a working value, not a measurement.
# Ref: Klein-Nishina by Kahn's rejection: H. Kahn 1954, RAND AECU-3259.

Stated simplifications: coherent scatter does nothing; the Compton-scattered photon leaves the sensor (6.6 % of the
interactions at 100 keV in CdTe, 1.7 % at 60 keV); L lines stay where they are; every charge arrives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from calibration.attenuation import LOWEST_KEV, Material, k_shell, mass_attenuation_cm2_g

THERMAL_V = 0.02585
"""kT/q at 300 K."""

_MAX_ALIVE = 8
MAX_PIXELS = 64
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


class Physics(NamedTuple):
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
    interacting: float
    """Share of the incident photons that interact."""
    thickness_mm: float
    pitch_mm: float
    diffusion_mm: float
    """Variance of the cloud per drift length."""
    range_mm: float
    """Range of a 1 keV electron."""


class Workspace(NamedTuple):
    """Memory of `deposit`, one per thread.

    Attributes
    ----------
    pixels : (MAX_PIXELS, 2) int64
        Column and row of each pixel that got charge, as far as `deposit` says.
    charges_kev : (MAX_PIXELS,) float64
    """

    pixels: np.ndarray
    charges_kev: np.ndarray
    photons: np.ndarray
    """(photons alive, 2): number and generation."""
    points_mm: np.ndarray
    """(photons alive, 3): x, y and depth."""


def workspace() -> Workspace:
    """Return memory for one thread."""
    return Workspace(
        pixels=np.zeros((MAX_PIXELS, 2), dtype=np.int64),
        charges_kev=np.zeros(MAX_PIXELS),
        photons=np.zeros((_MAX_ALIVE, 2), dtype=np.int64),
        points_mm=np.zeros((_MAX_ALIVE, 3)),
    )


def physics_of(layer: SensorLayer, energy_kev: float) -> Physics:
    """Return what `deposit` reads of a layer, for photons of one energy."""
    shells = [k_shell(z) for z, _ in layer.material.mass_fractions]
    lines = [(i, line) for i, shell in enumerate(shells) for line in shell.lines if line.energy_kev >= LOWEST_KEV]
    photon_kev = np.array([energy_kev, *(line.energy_kev for _, line in lines)])
    photo = mass_attenuation_cm2_g(layer.material, photon_kev, process="photo")
    scattered = mass_attenuation_cm2_g(layer.material, photon_kev, process="incoherent")
    z_mean = sum(z * fraction for z, fraction in layer.material.mass_fractions)
    range_um = 0.0276 * 2.3 * z_mean / (z_mean**0.889 * layer.material.density_g_cm3)  # with A = 2.3 Z
    attenuation_per_mm = 0.1 * layer.material.density_g_cm3 * (photo + scattered)
    return Physics(
        photon_kev=photon_kev,
        attenuation_per_mm=attenuation_per_mm,
        p_photo=photo / (photo + scattered),
        p_element=_element_shares(layer.material, photon_kev),
        edge_kev=np.array([shell.edge_kev for shell in shells]),
        p_k=np.array([shell.fraction for shell in shells]),
        p_emission=np.array([shell.fluorescence_yield * bool(shell.lines) for shell in shells]),
        line_element=np.array([i for i, _ in lines], dtype=np.int64),
        line_fraction=np.array([line.fraction for _, line in lines]),
        generations=layer.generations,
        interacting=-math.expm1(-attenuation_per_mm[0] * layer.thickness_mm),
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
def _choose_line(physics: Physics, element: int, rng: np.random.Generator) -> int:
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
def _absorb(
    physics: Physics, photons: np.ndarray, points: np.ndarray, n_alive: int, rng: np.random.Generator
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
def first_depth_mm(physics: Physics, u: float) -> float:
    """Return how deep a photon interacts first, if it does: the quantile ``u`` from 0 to 1 of its depths."""
    return -math.log1p(-physics.interacting * u) / physics.attenuation_per_mm[0]


@njit(cache=True, nogil=True)
def deposit(
    physics: Physics, x_mm: float, y_mm: float, depth_mm: float, rng: np.random.Generator, workspace: Workspace
) -> int:
    """Follow one photon that interacts at a place to its charges in pixels, which the workspace holds afterwards.

    Parameters
    ----------
    physics : Physics
    x_mm, y_mm : float
        From the lower left corner of pixel (0, 0).
    depth_mm : float
        From the entrance; the pixels are at the thickness.
    rng : Generator
    workspace : Workspace

    Returns
    -------
    int
        How many pixels got charge: the first entries of ``workspace.pixels`` and ``workspace.charges_kev``.
    """
    photons, points = workspace.photons, workspace.points_mm
    photons[0, 0], photons[0, 1] = 0, 0
    points[0, 0], points[0, 1], points[0, 2] = x_mm, y_mm, depth_mm
    n_alive, n_pixels = 1, 0
    while n_alive > 0:
        x, y, z = points[n_alive - 1, 0], points[n_alive - 1, 1], points[n_alive - 1, 2]
        n_alive, left_kev, electron_kev = _absorb(physics, photons, points, n_alive, rng)
        cloud = 0.3 * physics.range_mm * max(electron_kev, 0.1) ** 1.67
        sigma = math.sqrt(cloud * cloud + physics.diffusion_mm * (physics.thickness_mm - z)) + 1e-6
        n_pixels = _share(workspace.pixels, workspace.charges_kev, n_pixels, x, y, sigma, physics.pitch_mm, left_kev)
    return n_pixels
