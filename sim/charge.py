"""From one photon to charge in pixels, by Monte Carlo: fluorescence, scatter, charge clouds, charge sharing.

# Ref: K fluorescence, second generation (Te K excites Cd K), free paths: Elam, Ravel and Sieber 2002, Radiat. Phys.
#      Chem. 63, 121, through `calibration.attenuation`.
# Ref: Klein-Nishina by Kahn's rejection: H. Kahn 1954, RAND AECU-3259.
# Ref: coherent scatter: Thomson's law with the form factor of an exponentially screened nucleus, 1 / (1 + (q a)^2),
#      a = 0.885 a0 Z^(-1/3): G. Wentzel 1926, Z. Phys. 40, 590; the cross section itself is the table's.
# Ref: initial cloud: Kanaya and Okayama 1972, J. Phys. D 5, 43: R = 0.0276 A E^1.67 / (Z^0.889 rho) um, which is
#      0.0175 E^1.67 um in CdTe; 0.3 R as its sigma is a working value, not a measurement.
# Ref: diffusion and repulsion: d sigma^2/dt = 2 D + mu N q / (12 pi^1.5 eps sigma): Benoit and Hamel 2009, Nucl.
#      Instrum. Methods A 606, 508, quoted from memory. With Einstein's D/mu = kT/q the mobility drops out.

Stated simplifications: photons come at right angles; Klein-Nishina without the electron's binding; L lines stay where
they are; the cloud is a Gaussian around where the photon was absorbed; how charge that is trapped acts on neighbours is
left out; the law of sigma is solved in one step, half the diffusion before and half after the repulsion, within 2.5 %.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from calibration.attenuation import HIGHEST_KEV, LOWEST_KEV, Material, k_shell, mass_attenuation_cm2_g
from sim import chance
from sim.semiconductor import N_DEPTHS, SensorLayer, collected, drift_lengths_mm

THERMAL_V = 0.02585
"""kT/q at 300 K."""
MAX_CLOUDS = 32
"""What more interactions of one photon would leave is left out."""
MAX_PIXELS = 64
STEP_KEV = 0.05
"""Cross sections are taken at the nearest of these steps."""

_ELECTRON_REST_KEV = 511.0
_ELECTRON_CHARGE_C = 1.602e-19
_VACUUM_F_MM = 8.854e-15
_HC_KEV_ANGSTROM = 12.398
_SCREENING_ANGSTROM = 0.885 * 0.5292
_DRIFT_MM, _SEEN = range(2)
_ATTENUATION, _PHOTO, _COMPTON, _CLOUD, _FIRST_OUTCOME = range(5)
_kernel = njit(cache=True, nogil=True, error_model="numpy", _nrt=False)  # pyright: ignore[reportCallIssue]
"""Compiles what is called per photon: counting references to its arrays would take a third of the time."""
_inlined = njit(inline="always", error_model="numpy")
"""Compiles what is called per photon with so many arrays that passing them would take as long as the work."""
_N_STEPS = round(HIGHEST_KEV / STEP_KEV) + 1
_SIGMA_PER_RANGE = 0.3
_LEAST_KEV = 0.1
"""Smaller parts of a cloud, a quarter of the noise, stay with the pixel it fell on."""
_FAR_SIGMA = 3.5
"""Beyond so many sigma a cloud leaves nothing: 0.02 %."""
_PER_SIGMA = 256
_LEAST_MM2 = 1e-12
"""No cloud is narrower than 1 nm."""
_N_BEYOND = int(_FAR_SIGMA * _PER_SIGMA) + 2


class Physics(NamedTuple):
    """The layer as `deposit` reads it, for incident photons of one energy."""

    photon_kev: np.ndarray
    """The incident photon's energy."""
    interacting: float
    """Share of the incident photons that interact."""
    matter: np.ndarray
    """(steps, _FIRST_OUTCOME + outcomes) float32, a row per STEP_KEV from 0: attenuation per mm; share of photoelectric
    interactions; the same and Compton's, the rest being coherent; variance of the cloud that an electron of this energy
    makes at once, in mm2; of photo-absorptions the share with each outcome and those before it."""
    outcomes: np.ndarray
    """(outcomes, 2): what the photoelectron lacks, and the photon that is emitted, 0 for none; in keV."""
    depths: np.ndarray
    """(N_DEPTHS, 2): how far carriers drift, in the mean field; share of the charge that is seen, of the
    mean share: energies are calibrated with photons, and so the mean loss is part of the calibration."""
    beyond: np.ndarray
    """Share of a normal distribution beyond so many steps of 1 / _PER_SIGMA."""
    screening_per_kev2: float
    generations: int
    thickness_mm: float
    pitch_mm: float
    diffusion_mm: float
    """Variance of the cloud per drift length."""
    repulsion_mm2_per_kev: float
    """Growth of the cube of sigma by repulsion, per drift length and energy."""


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


class Workspace(NamedTuple):
    """Memory of `deposit`, one per thread.

    Attributes
    ----------
    pixels : (MAX_PIXELS, 2) int64
        Column and row of each pixel that got charge, as far as `deposit` says.
    charges_kev : (MAX_PIXELS,) float64
    clouds : Clouds
    """

    pixels: np.ndarray
    charges_kev: np.ndarray
    clouds: Clouds


def workspace(n_photons: int = 1) -> Workspace:
    """Return memory for one thread, for so many photons at a time."""
    n = n_photons * MAX_CLOUDS
    followed, places, shares = (
        np.zeros((rows, n), dtype=kind) for rows, kind in ((6, np.float64), (2, np.int32), (4, np.float32))
    )
    return Workspace(
        pixels=np.zeros((MAX_PIXELS, 2), dtype=np.int64),
        charges_kev=np.zeros(MAX_PIXELS),
        clouds=Clouds(*followed, *places, *shares),
    )


def physics_of(layer: SensorLayer, energy_kev: float) -> Physics:
    """Return what `deposit` reads of a layer, for photons of one energy."""
    steps_kev = np.maximum(LOWEST_KEV, STEP_KEV * np.arange(_N_STEPS))
    photo, incoherent, coherent = (
        mass_attenuation_cm2_g(layer.material, steps_kev, process=process)
        for process in ("photo", "incoherent", "coherent")
    )
    total = photo + incoherent + coherent
    p_outcome, outcomes = _outcomes(layer.material, steps_kev)
    z_mean = sum(z * fraction for z, fraction in layer.material.mass_fractions)
    range_mm = 1e-3 * 0.0276 * 2.3 * z_mean / (z_mean**0.889 * layer.material.density_g_cm3)  # with A = 2.3 Z
    permittivity_f_mm = layer.constants.permittivity_relative * _VACUUM_F_MM
    per_pair_mm2 = _ELECTRON_CHARGE_C / (12 * math.pi**1.5 * permittivity_f_mm * layer.mean_field_v_mm)
    repulsion_mm2_per_kev = 1.5 * per_pair_mm2 * 1e3 / layer.constants.pair_ev
    matter = np.empty((_N_STEPS, _FIRST_OUTCOME + len(outcomes)), dtype=np.float32)
    matter[:, _ATTENUATION] = 0.1 * layer.material.density_g_cm3 * total
    matter[:, _PHOTO] = photo / total
    matter[:, _COMPTON] = (photo + incoherent) / total
    matter[:, _CLOUD] = (_SIGMA_PER_RANGE * range_mm * np.maximum(0.1, STEP_KEV * np.arange(_N_STEPS)) ** 1.67) ** 2
    matter[:, _FIRST_OUTCOME:] = p_outcome
    seen = collected(layer)
    return Physics(
        photon_kev=np.array([energy_kev]),
        interacting=-math.expm1(-float(matter[round(energy_kev / STEP_KEV), _ATTENUATION]) * layer.thickness_mm),
        matter=matter,
        outcomes=outcomes,
        depths=np.stack([drift_lengths_mm(layer), seen / seen[seen > 0].mean()], axis=1),
        beyond=_beyond(),
        screening_per_kev2=(_SCREENING_ANGSTROM * 2 * math.pi / (z_mean ** (1 / 3) * _HC_KEV_ANGSTROM)) ** 2,
        generations=layer.generations,
        thickness_mm=layer.thickness_mm,
        pitch_mm=layer.pitch_mm,
        diffusion_mm=2 * THERMAL_V / layer.mean_field_v_mm,
        repulsion_mm2_per_kev=float(repulsion_mm2_per_kev) * layer.has_repulsion,
    )


def _beyond() -> NDArray[np.float32]:
    beyond = [0.5 * math.erfc(i / _PER_SIGMA / math.sqrt(2)) for i in range(_N_BEYOND - 2)]
    return np.array([*beyond, 0, 0], dtype=np.float32)


def interaction(physics: Physics, energies_kev: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the attenuation in 1/mm and the share that interacts, of photons of other energies."""
    steps = np.rint(np.asarray(energies_kev) / STEP_KEV).astype(int)
    attenuation_per_mm = physics.matter[steps, _ATTENUATION].astype(np.float64)
    return attenuation_per_mm, -np.expm1(-attenuation_per_mm * physics.thickness_mm)


def _outcomes(material: Material, steps_kev: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what photo-absorption may end in: shares up to each outcome (steps, outcomes); edge, line (outcomes, 2).

    An outer shell's electron without more; and for each element, a K electron with an Auger electron or with a line.
    """
    by_element = [
        fraction
        * mass_attenuation_cm2_g(
            Material(name=f"Z={z}", density_g_cm3=1.0, mass_fractions=((z, 1.0),)), steps_kev, process="photo"
        )
        for z, fraction in material.mass_fractions
    ]
    all_elements = np.sum(by_element, axis=0)
    shares, edges_kev, lines_kev = [], [], []
    for (z, _), photo in zip(material.mass_fractions, by_element, strict=True):
        shell = k_shell(z)
        k_share = np.where(steps_kev >= shell.edge_kev, shell.fraction, 0.0) * photo / all_elements
        lines = [line for line in shell.lines if line.energy_kev >= LOWEST_KEV]
        emitted = [shell.fluorescence_yield * line.fraction for line in lines]
        for share, line_kev in zip(
            [*emitted, 1 - sum(emitted)], [*(line.energy_kev for line in lines), 0.0], strict=True
        ):
            shares.append(k_share * share)
            edges_kev.append(shell.edge_kev)
            lines_kev.append(line_kev)
    shares.append(1 - np.sum(shares, axis=0))
    edges_kev.append(0.0)
    lines_kev.append(0.0)
    order = np.argsort([-share[-1] for share in shares], kind="stable")  # the likeliest first: it is found fastest
    upto = np.cumsum([shares[i] for i in order], axis=0).T
    upto[:, -1] = 1.0
    return upto, np.stack([edges_kev, lines_kev], axis=1)[order]


@njit(inline="always")
def _step(energy_kev: float) -> int:
    return int(energy_kev * (1 / STEP_KEV) + 0.5)


@_kernel
def _compton_electron_kev(energy_kev: float, dice: chance.Dice) -> float:
    """Draw the energy of a Compton electron."""
    alpha = energy_kev / _ELECTRON_REST_KEV
    while True:
        if chance.uniform(dice) <= (1 + 2 * alpha) / (9 + 2 * alpha):
            ratio = 1 + 2 * alpha * chance.uniform(dice)
            p_accept = 4 * (1 / ratio - 1 / ratio**2)
        else:
            ratio = (1 + 2 * alpha) / (1 + 2 * alpha * chance.uniform(dice))
            p_accept = 0.5 * ((1 - (ratio - 1) / alpha) ** 2 + 1 / ratio)
        if chance.uniform(dice) <= p_accept:
            return energy_kev * (1 - 1 / ratio)


@_kernel
def _coherent_cosine(screening_per_kev2: float, energy_kev: float, dice: chance.Dice) -> float:
    """Draw the cosine of the angle of coherent scatter."""
    screening = 2 * screening_per_kev2 * energy_kev * energy_kev  # (q a)^2 per 1 - cosine
    while True:
        u = chance.uniform(dice)
        cosine = 1 - 2 * u / (1 + 2 * screening * (1 - u))  # of 1 / (1 + screening (1 - cosine))^2
        if 2 * chance.uniform(dice) <= 1 + cosine * cosine:
            return cosine


@_kernel
def _turned(ux: float, uy: float, uz: float, cosine: float, phi: float) -> tuple[float, float, float]:
    """Turn a direction by an angle, to the side phi."""
    sine, cos_phi, sin_phi = math.sqrt(max(0.0, 1 - cosine * cosine)), math.cos(phi), math.sin(phi)
    across = math.sqrt(max(0.0, 1 - uz * uz))
    if across < 1e-6:
        return sine * cos_phi, sine * sin_phi, cosine * uz
    return (
        ux * cosine + sine * (ux * uz * cos_phi - uy * sin_phi) / across,
        uy * cosine + sine * (uy * uz * cos_phi + ux * sin_phi) / across,
        uz * cosine - across * sine * cos_phi,
    )


@njit(inline="always", error_model="numpy")
def _sigma_mm(cloud_mm2: float, diffused_mm2: float, repelled_mm3: float) -> float:
    """Return how wide a cloud arrives, from its first variance and what diffusion and repulsion alone would add."""
    variance_mm2 = cloud_mm2 + 0.5 * diffused_mm2 + _LEAST_MM2
    root_mm = math.sqrt(variance_mm2)
    cube_mm3 = variance_mm2 * root_mm + repelled_mm3
    root_mm += 0.3 * min(repelled_mm3 / variance_mm2, root_mm)  # then Halley's steps to the cube root
    for _ in range(2):
        third_mm3 = root_mm * root_mm * root_mm
        root_mm *= (third_mm3 + 2 * cube_mm3) / (2 * third_mm3 + cube_mm3)
    return math.sqrt(root_mm * root_mm + 0.5 * diffused_mm2)


@njit(inline="always")
def _tail(beyond: np.ndarray, sigmas: float) -> float:
    """Return the share of a normal distribution beyond so many sigma, of at least 0."""
    steps = min(sigmas, _FAR_SIGMA) * _PER_SIGMA
    node = np.int32(steps)
    return beyond[node] + np.float32(steps - node) * (beyond[node + 1] - beyond[node])


@njit(inline="always")
def _add_charge(
    pixels: np.ndarray, charges_kev: np.ndarray, n_before: int, n: int, col: int, row: int, charge_kev: float
) -> int:
    """Add charge to the entry of a pixel, if it is among the first, or open one; return how many entries there are."""
    i = 0
    while i < n_before and (pixels[i, 0] != col or pixels[i, 1] != row):
        i += 1
    if i < n_before:
        charges_kev[i] += charge_kev
    elif n < MAX_PIXELS:
        pixels[n, 0], pixels[n, 1], charges_kev[n] = col, row, charge_kev
        n += 1
    return n


@_inlined
def _spill(
    pixels: np.ndarray, charges_kev: np.ndarray, n: int, col: int, row: int, charge_kev: float,
    left: float, right: float, below: float, above: float,
) -> tuple[int, float]:  # fmt: skip
    """Give the neighbours of a pixel their shares of a cloud; return how many entries there are, and what stays."""
    rest_kev, n_before = charge_kev, n
    for dc in range(-1, 2):
        in_col = left if dc < 0 else right if dc > 0 else 1 - left - right
        if in_col * charge_kev <= _LEAST_KEV:
            continue
        for dr in range(-1, 2):
            part_kev = charge_kev * in_col * (below if dr < 0 else above if dr > 0 else 1 - below - above)
            if part_kev > _LEAST_KEV and (dc != 0 or dr != 0):
                n = _add_charge(pixels, charges_kev, n_before, n, col + dc, row + dr, part_kev)
                rest_kev -= part_kev
    return n, rest_kev


@njit(inline="always")
def _between(table: np.ndarray, node: int, part: float, which: int) -> float:
    """Return a table's value between a node and the next."""
    return table[node, which] + part * (table[node + 1, which] - table[node, which])


@_kernel
def first_depth_mm(physics: Physics, u: float) -> float:
    """Return how deep a photon interacts first, if it does: the quantile ``u`` from 0 to 1 of its depths."""
    return -math.log1p(-physics.interacting * u) / physics.matter[_step(physics.photon_kev[0]), _ATTENUATION]


@_kernel
def deposit(
    physics: Physics, x_mm: float, y_mm: float, depth_mm: float, dice: chance.Dice, workspace: Workspace
) -> int:
    """Follow one photon that interacts at a place to its charges in pixels, which the workspace holds afterwards.

    Parameters
    ----------
    physics : Physics
    x_mm, y_mm : float
        From the lower left corner of pixel (0, 0).
    depth_mm : float
        From the entrance; the pixels are at the thickness.
    dice : Dice
    workspace : Workspace

    Returns
    -------
    int
        How many pixels got charge: the first entries of ``workspace.pixels`` and ``workspace.charges_kev``.
    """
    return deposit_of(physics, physics.photon_kev[0], x_mm, y_mm, depth_mm, dice, workspace)


@_kernel
def deposit_of(
    physics: Physics, energy_kev: float, x_mm: float, y_mm: float, depth_mm: float, dice: chance.Dice,
    workspace: Workspace,
) -> int:  # fmt: skip
    """Do what `deposit` does for a photon of any energy."""
    n_clouds = follow(physics, energy_kev, x_mm, y_mm, depth_mm, dice, workspace.clouds, 0)
    drift(physics, workspace.clouds, n_clouds)
    return collect(workspace, 0, n_clouds)


@_inlined
def follow(
    physics: Physics, energy_kev: float, x_mm: float, y_mm: float, depth_mm: float, dice: chance.Dice, clouds: Clouds,
    n: int,
) -> int:  # fmt: skip
    """Follow one photon from interaction to interaction; add its clouds to the first n, and return how many there are.

    Each interaction leaves a charge, and a cloud's first variance, at its place, and at most one photon that goes on.
    """
    matter, outcomes, depths = physics.matter, physics.outcomes, physics.depths
    ux, uy, uz = 0.0, 0.0, 1.0
    per_pitch, nodes_per_mm = 1 / physics.pitch_mm, (N_DEPTHS - 1) / physics.thickness_mm
    most, generation = n + MAX_CLOUDS, 1
    while True:
        step = _step(energy_kev)
        u, next_kev = chance.uniform(dice), 0.0
        if u < matter[step, _PHOTO]:
            outcome, u = 0, chance.uniform(dice)
            while u >= matter[step, _FIRST_OUTCOME + outcome]:
                outcome += 1
            edge_kev, line_kev = outcomes[outcome, 0], outcomes[outcome, 1]
            cloud_mm2 = matter[_step(energy_kev - edge_kev), _CLOUD]
            if line_kev > 0 and generation <= physics.generations:
                next_kev = line_kev
                generation += 1
                ux, uy, uz = chance.direction(dice)
            elif edge_kev > 0:  # the Auger electron carries its share of the charge
                auger = edge_kev / energy_kev
                cloud_mm2 = (1 - auger) * cloud_mm2 + auger * matter[_step(edge_kev), _CLOUD]
        elif u < matter[step, _COMPTON]:
            electron_kev = _compton_electron_kev(energy_kev, dice)
            cloud_mm2 = matter[_step(electron_kev), _CLOUD]
            next_kev = energy_kev - electron_kev
            if next_kev < LOWEST_KEV:
                next_kev = 0.0
            else:
                cosine = max(-1.0, 1 - _ELECTRON_REST_KEV * (1 / next_kev - 1 / energy_kev))
                ux, uy, uz = _turned(ux, uy, uz, cosine, 2 * math.pi * chance.uniform(dice))
        else:
            next_kev, cloud_mm2 = energy_kev, 0.0
            cosine = _coherent_cosine(physics.screening_per_kev2, energy_kev, dice)
            ux, uy, uz = _turned(ux, uy, uz, cosine, 2 * math.pi * chance.uniform(dice))

        place = depth_mm * nodes_per_mm
        node = min(int(place), N_DEPTHS - 2)
        charge_kev = (energy_kev - next_kev) * _between(depths, node, place - node, _SEEN)
        if charge_kev > 0:
            clouds.x[n], clouds.y[n], clouds.charge_kev[n] = x_mm * per_pitch, y_mm * per_pitch, charge_kev
            clouds.variance_mm2[n], clouds.drift_mm[n] = cloud_mm2, _between(depths, node, place - node, _DRIFT_MM)
            n += 1
        if next_kev == 0 or n == most:
            return n
        energy_kev = next_kev
        path_mm = chance.exponential(dice) / matter[_step(energy_kev), _ATTENUATION]
        x_mm, y_mm, depth_mm = x_mm + path_mm * ux, y_mm + path_mm * uy, depth_mm + path_mm * uz
        if not 0 < depth_mm < physics.thickness_mm:
            return n


@_kernel
def drift(physics: Physics, clouds: Clouds, n: int) -> None:
    """Bring the first n clouds to the pixels."""
    x, y, charge_kev, variance_mm2, drift_mm, sigmas, to_col, to_row, left, right, below, above = clouds
    beyond, pitch_mm = physics.beyond, physics.pitch_mm
    for i in range(n):  # in a loop of its own, which compilers make one of vectors
        diffused_mm2 = physics.diffusion_mm * drift_mm[i]
        repelled_mm3 = physics.repulsion_mm2_per_kev * charge_kev[i] * drift_mm[i]
        sigmas[i] = pitch_mm / _sigma_mm(variance_mm2[i], diffused_mm2, repelled_mm3)
    for i in range(n):
        col, row = math.floor(x[i]), math.floor(y[i])
        x[i], y[i], to_col[i], to_row[i] = x[i] - col, y[i] - row, np.int32(col), np.int32(row)
        left[i], right[i] = _tail(beyond, x[i] * sigmas[i]), _tail(beyond, (1 - x[i]) * sigmas[i])
        below[i], above[i] = _tail(beyond, y[i] * sigmas[i]), _tail(beyond, (1 - y[i]) * sigmas[i])


@_inlined
def collect(workspace: Workspace, first: int, last: int) -> int:
    """Give the pixels what clouds of one photon bring; return how many got something."""
    pixels, charges_kev, clouds = workspace.pixels, workspace.charges_kev, workspace.clouds
    n = 0
    for i in range(first, last):
        col, row, charge_kev = clouds.col[i], clouds.row[i], clouds.charge_kev[i]
        left, right, below, above = clouds.left[i], clouds.right[i], clouds.below[i], clouds.above[i]
        n_before = n
        if (left + right + below + above) * charge_kev > _LEAST_KEV:
            n, charge_kev = _spill(pixels, charges_kev, n, col, row, charge_kev, left, right, below, above)
        n = _add_charge(pixels, charges_kev, n_before, n, col, row, charge_kev)
    return n
