"""What pixels see of photons with one energy, near that energy: the form of the edge in an S-curve.

Charge is shared over the borders of pixels, lost between the squares that charge summing adds up, lost on its way to
the pixels, and carried off by K photons of the sensor. All that bends an S-curve just below the edge, and what moves
all edges alike no residual shows. So the form is made of published physics, by following photons at evenly spread
places (quasi-Monte Carlo); what is uncertain of it, the width of the charge cloud, is left to the fit.

Charges are in keV of the mean charge over all depths of the sensor.

Left out: scatter, the L shell, the electron's track, what trapped charge induces in neighbours.

# Ref: clouds: diffusion sqrt(2 (kT/q) z d / V); first width 0.3 R, R = 0.0276 A E^1.67 / (Z^0.889 rho) um (Kanaya and
#      Okayama 1972, J. Phys. D 5, 43); repulsion d(sigma^2)/dt = 2 D + mu q N / (12 pi^1.5 eps sigma): reference on
#      spectral CT, section 4.3.
# Ref: collection that depends on depth: Hecht 1932, Z. Phys. 77, 235, with the small pixel's weighting potential:
#      Barrett, Eskin, Barber 1995, Phys. Rev. Lett. 75, 156; on a square's axis it is its solid angle over 2 pi, with
#      image charges for the other electrode.
# Ref: pair energies, mobility times lifetime of electrons (the middles of the stated ranges): section 4.1 there.
#      That of holes, and permittivities: common values, from memory (CdTe 10.4 as in geant4medipix
#      `DetectorConfig.ini`); `COLLECTION_SIGMA` is how far to trust them.
# Ref: charge summing: the pixel with the largest charge of its neighbours counts the largest of its four sums of 2x2:
#      section 4.4 there. Edges, yields, K lines, attenuation: `calibration.attenuation`.
# Ref: evenly spread places: I. M. Sobol 1967, USSR Comput. Math. Math. Phys. 7, 86.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.stats import qmc

from calibration.attenuation import LOWEST_KEV, Line, Material, k_shell, mass_attenuation_cm2_g, material
from firmware_iface.errors import WrongUsage

CLOUD_RATIOS = (0.9, 1.0, 1.1)
"""Widths of the charge cloud over the published one, at which a form is made; others lie between."""
CHARGE_STEP_KEV = 0.1
LOWEST_SHARE = 0.25
"""Charges below this share of the lowest line are left out."""
COLLECTION_SIGMA = 0.3
"""How well the published lifetimes of carriers are known, as a share of what they do to an edge."""
N_PHOTONS, N_FEW = 2**15, 2**13
"""Photons followed, and how many of them tell what another width of the cloud changes."""
FEWEST_SHARE = 0.01
"""Lines of a smaller share of the source are left out."""

_THERMAL_V = 0.02585
_ELECTRON_CHARGE_C = 1.602e-19
_VACUUM_F_MM = 8.854e-15
_FIRST_WIDTH_PER_RANGE = 0.3
_A_PER_Z = 2.3
_N_SIDE = 8
"""Pixels of the torus on which charge falls."""
_N_CLOUDS = 3
_N_DIMENSIONS = 3 + 4 * (_N_CLOUDS - 1)
_N_DRIFT_STEPS = 6
_N_DEPTHS = 257
_N_IMAGES = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class _Constants:
    pair_ev: float
    to_pixels_cm2_v: float
    to_entrance_cm2_v: float
    permittivity_relative: float


_CONSTANTS: Mapping[str, _Constants] = {
    "silicon": _Constants(pair_ev=3.62, to_pixels_cm2_v=1.0, to_entrance_cm2_v=1.0, permittivity_relative=11.7),
    "gaas": _Constants(pair_ev=4.25, to_pixels_cm2_v=1e-4, to_entrance_cm2_v=5e-7, permittivity_relative=12.9),
    "cdte": _Constants(pair_ev=4.43, to_pixels_cm2_v=2.5e-3, to_entrance_cm2_v=1e-4, permittivity_relative=10.4),
    "czt": _Constants(pair_ev=4.62, to_pixels_cm2_v=6.5e-3, to_entrance_cm2_v=5e-5, permittivity_relative=10.9),
}
"""With mobility times lifetime of the carriers that the pixels collect, and of the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """The sensor as it counts: what of, how thick, how pixelated, how biased, and whether it sums charge."""

    material: str
    thickness_mm: float
    pitch_mm: float
    bias_v: float
    is_csm: bool

    def __post_init__(self) -> None:
        if self.material not in _CONSTANTS:
            raise WrongUsage(f"no sensor of {self.material!r}; allowed: {', '.join(_CONSTANTS)}")
        if not (self.thickness_mm > 0 and self.pitch_mm > 0 and self.bias_v != 0):
            raise WrongUsage(
                f"a sensor of {self.thickness_mm} mm, pitch {self.pitch_mm} mm, bias {self.bias_v} V; "
                "allowed: above 0, and a bias other than 0"
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EdgeForm:
    """Charges that pixels see of a source.

    Attributes
    ----------
    charges_kev : (n_charges,) float64
        Upwards; below the first nothing is told.
    counts : (len(CLOUD_RATIOS), n_charges) float64
        Counts of each charge per photon, for each width of the cloud.
    collected_kev : float
        How far the collection at the depth where these photons are absorbed moves the edge, on average.
    """

    charges_kev: NDArray[np.float64]
    counts: NDArray[np.float64]
    collected_kev: float

    def at(self, cloud_ratio: float) -> NDArray[np.float64]:
        """Return the counts for a width of the cloud over the published one: (n_charges,) float64."""
        return cloud_parts(cloud_ratio)[0] @ self.counts


def cloud_parts(ratio: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the share of each of CLOUD_RATIOS in a cloud of a width, and the derivatives: the parabola through all."""
    _, middle, high = CLOUD_RATIOS
    step = high - middle
    by = (ratio - middle) / step
    return (
        np.array([0.5 * by * (by - 1), 1 - by * by, 0.5 * by * (by + 1)]),
        np.array([by - 0.5, -2 * by, by + 0.5]) / step,
    )


@lru_cache(maxsize=64)
def edge_form(lines: tuple[Line, ...], layer: Layer) -> EdgeForm:
    """Return what pixels of a layer see of lines, whose fractions count relative to each other."""
    total = sum(line.fraction for line in lines)
    strong = [line for line in lines if line.fraction >= FEWEST_SHARE * total]
    lowest = LOWEST_SHARE * min(line.energy_kev for line in strong)
    highest = max(line.energy_kev for line in strong)
    n = int(np.ceil((1.05 * highest - lowest) / CHARGE_STEP_KEV)) + 2
    places = _places()
    physics = [_physics(layer, line.energy_kev) for line in strong]
    weights = np.array([line.fraction * one.absorbed for line, one in zip(strong, physics, strict=True)]) / total

    def seen(of_line: _Physics) -> NDArray[np.float64]:
        """Follow all photons with the published cloud, and some of them for what other clouds change."""
        few = np.stack([_follow(places[:N_FEW], of_line, ratio, layer.is_csm, lowest, n) for ratio in CLOUD_RATIOS])
        whole = _follow(places, of_line, 1.0, layer.is_csm, lowest, n) / len(places)
        return whole + (few - few[CLOUD_RATIOS.index(1.0)]) / N_FEW

    with ThreadPoolExecutor() as pool:
        counts = np.tensordot(weights, np.stack(list(pool.map(seen, physics))), axes=1)
    return EdgeForm(
        charges_kev=lowest + CHARGE_STEP_KEV * np.arange(n, dtype=np.float64),
        counts=counts,
        collected_kev=float(weights @ [_collection_kev(one) for one in physics] / weights.sum()),
    )


class _Physics(NamedTuple):
    """A layer as `_follow` reads it, for photons of one energy."""

    photon_kev: float
    per_mm: float
    absorbed: float
    chances: NDArray[np.float64]
    """(1 + n_outcomes, n_outcomes): chance of each way a K shell fills or one before it, when the photon or a K photon
    is absorbed; what is left are outer shells."""
    lines_kev: NDArray[np.float64]
    """(n_outcomes,): of the K photon sent out, 0 for an Auger electron."""
    edges_kev: NDArray[np.float64]
    lines_per_mm: NDArray[np.float64]
    thickness_mm: float
    pitch_mm: float
    diffusion_mm: float
    """Variance of the cloud per drift length."""
    repulsion_mm2_per_kev: float
    """Growth of the cube of the cloud's width per drift length and charge."""
    range_mm: float
    """Of an electron of 1 keV."""
    collected: NDArray[np.float64]
    """(_N_DEPTHS,): what is seen of a charge from each depth, over the mean of all."""


@lru_cache(maxsize=1)
def _places() -> NDArray[np.float64]:
    """Return evenly spread places in the unit cube, the same in every process: (N_PHOTONS, n_dimensions)."""
    sobol = qmc.Sobol(_N_DIMENSIONS, rng=np.random.default_rng(1))
    return sobol.random(N_PHOTONS)


def _physics(layer: Layer, photon_kev: float) -> _Physics:
    matter, constants = material(layer.material), _CONSTANTS[layer.material]
    field_v_mm = abs(layer.bias_v) / layer.thickness_mm
    outcomes = _k_outcomes(matter)
    lines_kev = np.array([line_kev for line_kev, *_ in outcomes])
    z_mean = sum(z * fraction for z, fraction in matter.mass_fractions)
    per_mm = _photo_per_mm(matter, photon_kev)
    permittivity_f_mm = constants.permittivity_relative * _VACUUM_F_MM
    per_pair_mm2 = _ELECTRON_CHARGE_C / (12 * math.pi**1.5 * permittivity_f_mm * field_v_mm)
    return _Physics(
        photon_kev=photon_kev,
        per_mm=per_mm,
        absorbed=-math.expm1(-per_mm * layer.thickness_mm),
        chances=np.stack([_chances(matter, energy_kev) for energy_kev in (photon_kev, *lines_kev)]),
        lines_kev=lines_kev,
        edges_kev=np.array([edge_kev for _, edge_kev, *_ in outcomes]),
        lines_per_mm=np.array([_photo_per_mm(matter, line_kev) for line_kev in lines_kev]),
        thickness_mm=layer.thickness_mm,
        pitch_mm=layer.pitch_mm,
        diffusion_mm=2 * _THERMAL_V / field_v_mm,
        repulsion_mm2_per_kev=1.5 * per_pair_mm2 * 1e3 / constants.pair_ev,
        range_mm=1e-3 * 0.0276 * _A_PER_Z * z_mean ** (1 - 0.889) / matter.density_g_cm3,
        collected=_collected(layer),
    )


@lru_cache(maxsize=8)
def _collected(layer: Layer) -> NDArray[np.float64]:
    """Return what a pixel sees of a charge from each depth, entrance first, over the mean of all: (_N_DEPTHS,)."""
    constants = _CONSTANTS[layer.material]
    per_v_mm = 100 * abs(layer.bias_v) / layer.thickness_mm
    step_mm = layer.thickness_mm / (_N_DEPTHS - 1)
    rise = np.diff(_weighting_potential(layer))
    seen = np.zeros(_N_DEPTHS)
    for cm2_v, rises, goes_to in ((constants.to_pixels_cm2_v, rise, 1), (constants.to_entrance_cm2_v, rise[::-1], -1)):
        kept = math.exp(-step_mm / (cm2_v * per_v_mm))
        induced = np.zeros(_N_DEPTHS)
        for node in range(_N_DEPTHS - 2, -1, -1):  # what crosses a step induces its rise; the rest goes on
            induced[node] = 0.5 * (1 + kept) * rises[node] + kept * induced[node + 1]
        seen += induced[::goes_to]
    return seen / seen.mean()


def _collection_kev(physics: _Physics) -> float:
    """Return how much more charge than the mean of all depths is seen where photons are absorbed, on average."""
    absorbed = np.exp(-physics.per_mm * np.linspace(0, physics.thickness_mm, _N_DEPTHS))
    return physics.photon_kev * float(absorbed @ physics.collected / absorbed.sum() - 1)


def _weighting_potential(layer: Layer) -> NDArray[np.float64]:
    """Return the weighting potential on the axis of a square pixel, from the entrance to the pixel: (_N_DEPTHS,)."""
    half_mm, thickness_mm = layer.pitch_mm / 2, layer.thickness_mm

    def of_a_square(height_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        return 2 / math.pi * np.arctan2(half_mm**2, height_mm * np.sqrt(height_mm**2 + 2 * half_mm**2))

    height_mm = np.linspace(thickness_mm, 0, _N_DEPTHS)
    potential = np.zeros(_N_DEPTHS)
    for image in range(_N_IMAGES):
        away_mm = 2 * image * thickness_mm
        potential += of_a_square(away_mm + height_mm) - of_a_square(away_mm + 2 * thickness_mm - height_mm)
    return potential


def _k_outcomes(matter: Material) -> list[tuple[float, float, int, float]]:
    """Return how K shells fill: the photon's energy (0 for an Auger electron), edge, element and share of vacancies.

    The lines of each element are two, alpha and beta.
    """
    found = []
    for z, _ in matter.mass_fractions:
        shell = k_shell(z)
        lines = [line for line in shell.lines if line.energy_kev >= LOWEST_KEV]
        middle = 0.94 * shell.edge_kev  # between alpha and beta of every element of a sensor
        seen = 0.0
        for group in ([x for x in lines if x.energy_kev < middle], [x for x in lines if x.energy_kev >= middle]):
            fraction = sum(line.fraction for line in group)
            if fraction > 0:
                mean_kev = sum(line.energy_kev * line.fraction for line in group) / fraction
                found.append((mean_kev, shell.edge_kev, z, shell.fluorescence_yield * fraction))
                seen += shell.fluorescence_yield * fraction
        found.append((0.0, shell.edge_kev, z, 1 - seen))
    return found


def _chances(matter: Material, energy_kev: float) -> NDArray[np.float64]:
    """Return how often the absorption of a photon ends in each of `_k_outcomes` or one before it: (n_outcomes,)."""
    energy_kev = max(energy_kev, LOWEST_KEV)
    parts = {z: fraction * _photo_cm2_g(z, energy_kev) for z, fraction in matter.mass_fractions}
    total = sum(parts.values())
    each = [
        parts[z] / total * k_shell(z).fraction * share if energy_kev >= edge_kev else 0.0
        for _, edge_kev, z, share in _k_outcomes(matter)
    ]
    return np.cumsum(each)


def _photo_cm2_g(z: int, energy_kev: float) -> float:
    element = Material(name=f"Z={z}", density_g_cm3=1.0, mass_fractions=((z, 1.0),))
    return float(mass_attenuation_cm2_g(element, [energy_kev], process="photo")[0])


def _photo_per_mm(matter: Material, energy_kev: float) -> float:
    energy_kev = max(energy_kev, LOWEST_KEV)
    return float(mass_attenuation_cm2_g(matter, [energy_kev], process="photo")[0]) * matter.density_g_cm3 / 10


@njit(cache=True, nogil=True)
def _follow(
    places: np.ndarray, physics: _Physics, cloud_ratio: float, is_csm: bool, lowest_kev: float, n_charges: int
) -> np.ndarray:
    """Follow one photon from each place and count what pixels see: (n_charges,) float64, from the lowest charge on."""
    counts = np.zeros(n_charges)
    pixels, shares = np.empty((_N_SIDE, _N_SIDE)), np.empty((2, 4))
    for place in places:
        pixels[:] = 0.0
        x, y = 0.5 * place[0], 0.5 * place[1]  # in pixels; the other quarters are its mirror images
        depth_mm = -math.log(1 - place[2] * physics.absorbed) / physics.per_mm
        energy_kev, state = physics.photon_kev, 0
        for cloud in range(_N_CLOUDS):
            dice = place[3 + 4 * cloud : 7 + 4 * cloud]
            line_kev, edge_kev, outcome = 0.0, 0.0, -1
            if cloud < _N_CLOUDS - 1:
                outcome = np.searchsorted(physics.chances[state], dice[0], side="right")
                if outcome < len(physics.lines_kev):
                    line_kev, edge_kev = float(physics.lines_kev[outcome]), float(physics.edges_kev[outcome])
            drift_mm, charge_kev = physics.thickness_mm - depth_mm, energy_kev - line_kev
            first_mm2 = _first_mm2(physics, energy_kev - edge_kev)
            if edge_kev > 0 and line_kev == 0:  # the Auger electron has its share of the charge
                auger = edge_kev / energy_kev
                first_mm2 = (1 - auger) * first_mm2 + auger * _first_mm2(physics, edge_kev)
            sigma = cloud_ratio * _width_mm(physics, first_mm2, charge_kev, drift_mm) / physics.pitch_mm
            _share(pixels, shares, x, y, charge_kev * _at_depth(physics, depth_mm), sigma)
            if line_kev == 0:
                break
            cosine, phi = 2 * dice[1] - 1, 2 * math.pi * dice[2]
            path_mm = -math.log(1 - dice[3]) / physics.lines_per_mm[outcome]
            across = path_mm * math.sqrt(1 - cosine * cosine) / physics.pitch_mm
            x, y, depth_mm = x + across * math.cos(phi), y + across * math.sin(phi), depth_mm + path_mm * cosine
            if not 0 < depth_mm < physics.thickness_mm:
                break
            energy_kev, state = line_kev, 1 + outcome
        _count(pixels, is_csm, lowest_kev, counts)
    return counts


@njit(cache=True, nogil=True)
def _at_depth(physics: _Physics, depth_mm: float) -> float:
    place = depth_mm / physics.thickness_mm * (_N_DEPTHS - 1)
    node = min(int(place), _N_DEPTHS - 2)
    return physics.collected[node] + (place - node) * (physics.collected[node + 1] - physics.collected[node])


@njit(cache=True, nogil=True)
def _first_mm2(physics: _Physics, electron_kev: float) -> float:
    """Return the variance of the cloud that an electron makes at once."""
    return (_FIRST_WIDTH_PER_RANGE * physics.range_mm * max(electron_kev, 0.1) ** 1.67) ** 2


@njit(cache=True, nogil=True)
def _width_mm(physics: _Physics, variance_mm2: float, charge_kev: float, drift_mm: float) -> float:
    """Return how wide a cloud arrives, by short steps of diffusion and then repulsion."""
    step_mm = drift_mm / _N_DRIFT_STEPS
    for _ in range(_N_DRIFT_STEPS):
        variance_mm2 += physics.diffusion_mm * step_mm
        cube_mm3 = variance_mm2**1.5 + physics.repulsion_mm2_per_kev * charge_kev * step_mm
        variance_mm2 = cube_mm3 ** (2 / 3)
    return math.sqrt(variance_mm2)


@njit(cache=True, nogil=True)
def _share(pixels: np.ndarray, shares: np.ndarray, x: float, y: float, charge_kev: float, sigma: float) -> None:
    """Give a cloud to the pixel it falls on and its eight neighbours."""
    col, row = math.floor(x), math.floor(y)
    per = 1 / (math.sqrt(2) * sigma)
    for border in range(4):
        shares[0, border] = math.erf((border - 1 + col - x) * per)
        shares[1, border] = math.erf((border - 1 + row - y) * per)
    for dc in range(3):
        in_col = 0.25 * charge_kev * (shares[0, dc + 1] - shares[0, dc])
        for dr in range(3):
            in_row = shares[1, dr + 1] - shares[1, dr]
            pixels[(row + dr - 1) % _N_SIDE, (col + dc - 1) % _N_SIDE] += in_col * in_row


@njit(cache=True, nogil=True)
def _count(pixels: np.ndarray, is_csm: bool, lowest_kev: float, counts: np.ndarray) -> None:
    """Count what pixels see, each charge divided between the two nearest steps."""
    for row in range(_N_SIDE):
        for col in range(_N_SIDE):
            seen_kev = pixels[row, col]
            if is_csm:
                if 4 * seen_kev < lowest_kev:
                    continue
                seen_kev = _largest_sum(pixels, row, col)
            place = (seen_kev - lowest_kev) / CHARGE_STEP_KEV
            if place >= 0:
                step = int(place)
                counts[step] += 1 - (place - step)
                counts[step + 1] += place - step


@njit(cache=True, nogil=True)
def _largest_sum(pixels: np.ndarray, row: int, col: int) -> float:
    """Return the largest of the four sums of a pixel, or nothing where a neighbour holds more charge."""
    for dr in range(-1, 2):
        for dc in range(-1, 2):
            if pixels[(row + dr) % _N_SIDE, (col + dc) % _N_SIDE] > pixels[row, col]:
                return -1.0
    largest = 0.0
    for dr in (-1, 1):
        for dc in (-1, 1):
            beside, above = (col + dc) % _N_SIDE, (row + dr) % _N_SIDE
            total = pixels[row, col] + pixels[row, beside] + pixels[above, col] + pixels[above, beside]
            largest = max(largest, total)
    return largest
