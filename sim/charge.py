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
from sim.landing import MAX_PIXELS_PER_CLOUD, Clouds, Landing, landing, share
from sim.semiconductor import N_DEPTHS, SensorLayer, collected, drift_lengths_mm

THERMAL_V = 0.02585
"""kT/q at 300 K."""
MAX_CLOUDS = 32
"""What more interactions of one photon would leave is left out."""
MAX_PIXELS = MAX_PIXELS_PER_CLOUD * MAX_CLOUDS
_FARTHEST = 256
"""`deposit` leaves out what goes further, in pixels."""
STEP_KEV = 0.05
"""Cross sections are taken at the nearest of these steps."""

_ELECTRON_REST_KEV = 511.0
_ELECTRON_CHARGE_C = 1.602e-19
_VACUUM_F_MM = 8.854e-15
_HC_KEV_ANGSTROM = 12.398
_SCREENING_ANGSTROM = 0.885 * 0.5292
_DRIFT_MM, _SEEN = range(2)
_ATTENUATION, _PHOTO, _COMPTON, _FIRST_OUTCOME = range(4)
_MAX_OUTCOMES = 32
"""Room for the outcomes of three elements: rows of tables have one length, which compilers then know."""
_kernel = njit(cache=True, nogil=True, error_model="numpy", _nrt=False)  # pyright: ignore[reportCallIssue]
"""Compiles what is called per photon: counting references to its arrays would take a third of the time."""
_inlined = njit(inline="always", error_model="numpy")
"""Compiles what is called per photon with so many arrays that passing them would take as long as the work."""
_N_STEPS = round(HIGHEST_KEV / STEP_KEV) + 1
_SIGMA_PER_RANGE = 0.3
_FAR_SIGMA = 3.5
"""Beyond so many sigma a cloud leaves nothing: 0.02 %."""
_PER_SIGMA = 256
_ANYWHERE = 2.0
"""Stands for uz of a photon whose direction is still to be drawn."""
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
    """(steps, _FIRST_OUTCOME + _MAX_OUTCOMES) float32, a row per STEP_KEV from 0: attenuation per mm; share of
    photoelectric interactions; the same and Compton's, the rest being coherent; of photo-absorptions the share with
    each outcome and those before it."""
    cloud_mm2: np.ndarray
    """(steps,) float32: variance of the cloud that an electron of this energy makes at once."""
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


class Photons(NamedTuple):
    """Photons about to interact; (n,) each.

    Attributes
    ----------
    number : int64
        Which photon from outside each is, or comes of.
    energy_kev : float64
    x, y : float64
        From the lower left corner of pixel (0, 0), in pixels.
    depth_mm : float64
    ux, uy, uz : float64
        Their direction.
    generation : int64
        Of fluorescence, from 1.
    """

    number: np.ndarray
    energy_kev: np.ndarray
    x: np.ndarray
    y: np.ndarray
    depth_mm: np.ndarray
    ux: np.ndarray
    uy: np.ndarray
    uz: np.ndarray
    generation: np.ndarray


def _around() -> Landing:
    """Return the pixels around pixel (_FARTHEST, _FARTHEST)."""
    n = 2 * _FARTHEST
    return landing(n * np.arange(n), 1 + np.arange(n), n * n + 1, MAX_CLOUDS)


class Workspace(NamedTuple):
    """Memory of `deposit`, one per thread.

    Attributes
    ----------
    photons : Photons
    n_clouds : (n_photons,) int64
        How many clouds each photon from outside left.
    clouds_of : (n_photons, MAX_CLOUDS) uint64
        Which.
    pixels : (MAX_PIXELS, 2) int64
        Column and row of each pixel that got charge, as far as `deposit` says.
    charges_kev : (MAX_PIXELS,) float64
    clouds : Clouds
    landing : Landing
    """

    photons: Photons
    n_clouds: np.ndarray
    clouds_of: np.ndarray
    pixels: np.ndarray
    charges_kev: np.ndarray
    clouds: Clouds
    landing: Landing


def workspace(n_photons: int = 1, onto: Landing | None = None) -> Workspace:
    """Return memory for one thread, for so many photons at a time; for `deposit` without a landing of one's own."""
    n = n_photons * MAX_CLOUDS
    followed, places, shares = (
        np.zeros((rows, n), dtype=kind) for rows, kind in ((6, np.float64), (2, np.int32), (4, np.float32))
    )
    energy, x, y, depth, ux, uy, uz = np.zeros((7, n_photons))
    number, generation = np.zeros((2, n_photons), dtype=np.int64)
    return Workspace(
        photons=Photons(number, energy, x, y, depth, ux, uy, uz, generation),
        n_clouds=np.zeros(n_photons, dtype=np.int64),
        clouds_of=np.zeros((n_photons, MAX_CLOUDS), dtype=np.uint64),
        pixels=np.zeros((MAX_PIXELS, 2), dtype=np.int64),
        charges_kev=np.zeros(MAX_PIXELS),
        clouds=Clouds(*followed, *places, *shares),
        landing=onto or _around(),
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
    matter = np.ones((_N_STEPS, _FIRST_OUTCOME + _MAX_OUTCOMES), dtype=np.float32)
    matter[:, _ATTENUATION] = 0.1 * layer.material.density_g_cm3 * total
    matter[:, _PHOTO] = photo / total
    matter[:, _COMPTON] = (photo + incoherent) / total
    matter[:, _FIRST_OUTCOME : _FIRST_OUTCOME + len(outcomes)] = p_outcome
    sigma_mm = _SIGMA_PER_RANGE * range_mm * np.maximum(0.1, STEP_KEV * np.arange(_N_STEPS)) ** 1.67
    seen = collected(layer)
    return Physics(
        photon_kev=np.array([energy_kev]),
        interacting=-math.expm1(-float(matter[round(energy_kev / STEP_KEV), _ATTENUATION]) * layer.thickness_mm),
        matter=matter,
        cloud_mm2=(sigma_mm**2).astype(np.float32),
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
        for emitted_share, line_kev in zip(
            [*emitted, 1 - sum(emitted)], [*(line.energy_kev for line in lines), 0.0], strict=True
        ):
            shares.append(k_share * emitted_share)
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
    x, y = x_mm / physics.pitch_mm + _FARTHEST, y_mm / physics.pitch_mm + _FARTHEST
    incident(workspace, 0, energy_kev, x, y, depth_mm)
    drift(physics, workspace.clouds, follow(physics, workspace, 1, dice))
    places, landed_kev, pixels = workspace.landing.places, workspace.landing.charges_kev, workspace.pixels
    n = land(workspace, 0)
    for i in range(n):
        place = np.int64(places[i])
        pixels[i, 0] = (place - 1) % (2 * _FARTHEST) - _FARTHEST
        pixels[i, 1] = (place - 1) // (2 * _FARTHEST) - _FARTHEST
        workspace.charges_kev[i], landed_kev[place] = landed_kev[place], 0.0
    return n


@_inlined
def incident(workspace: Workspace, i: int, energy_kev: float, x: float, y: float, depth_mm: float) -> None:
    """Place a photon from outside where it interacts first: x and y in pixels."""
    photons = workspace.photons
    photons.number[i], photons.generation[i], photons.energy_kev[i] = i, 1, energy_kev
    photons.x[i], photons.y[i], photons.depth_mm[i] = x, y, depth_mm
    photons.ux[i], photons.uy[i], photons.uz[i] = 0.0, 0.0, 1.0
    workspace.n_clouds[i] = 0


@_kernel
def follow(physics: Physics, workspace: Workspace, n_photons: int, dice: chance.Dice) -> int:
    """Follow photons from interaction to interaction to clouds in the workspace; return how many there are."""
    n_clouds = 0
    for _ in range(MAX_CLOUDS):
        n_photons, n_clouds = _interact(physics, workspace, n_photons, n_clouds, dice)
        if n_photons == 0:
            break
        n_photons = _travel(physics, workspace.photons, n_photons, dice)
    return n_clouds


@_inlined
def _interact(
    physics: Physics, workspace: Workspace, n_photons: int, n: int, dice: chance.Dice
) -> tuple[int, int]:  # fmt: skip
    """Let photons interact; each leaves a charge, and a cloud's first variance, at its place, and at most one photon.

    Return how many photons go on, which are the first then, and how many clouds there are.
    """
    photons, clouds, depths, n_on = workspace.photons, workspace.clouds, physics.depths, 0
    nodes_per_mm = (N_DEPTHS - 1) / physics.thickness_mm
    for i in range(n_photons):
        energy_kev, number, depth_mm = photons.energy_kev[i], photons.number[i], photons.depth_mm[i]
        generation = photons.generation[i]
        matter = physics.matter[_step(energy_kev)]
        u, chosen = chance.two(dice)
        if u < matter[_PHOTO]:
            outcome = 0
            for k in range(_MAX_OUTCOMES):  # all at a time, for nobody could foretell where to stop
                outcome += np.int64(chosen >= matter[_FIRST_OUTCOME + k])
            edge_kev, line_kev = physics.outcomes[outcome, 0], physics.outcomes[outcome, 1]
            is_emitted = (line_kev > 0) & (generation <= physics.generations)
            auger = 0.0 if is_emitted else edge_kev / energy_kev  # that electron's share of the charge
            cloud_mm2 = (1 - auger) * physics.cloud_mm2[_step(energy_kev - edge_kev)]
            cloud_mm2 += auger * physics.cloud_mm2[_step(edge_kev)]
            next_kev = line_kev if is_emitted else 0.0
            photons.uz[n_on], photons.generation[n_on] = _ANYWHERE, generation + 1
        else:
            ux, uy, uz = photons.ux[i], photons.uy[i], photons.uz[i]
            next_kev, cloud_mm2, cosine = _scatter(physics, energy_kev, u < matter[_COMPTON], dice)
            ux, uy, uz = _turned(ux, uy, uz, cosine, 2 * math.pi * chance.uniform(dice))
            photons.ux[n_on], photons.uy[n_on], photons.uz[n_on] = ux, uy, uz
            photons.generation[n_on] = generation
        x, y, place = photons.x[i], photons.y[i], depth_mm * nodes_per_mm
        node = min(int(place), N_DEPTHS - 2)
        charge_kev = (energy_kev - next_kev) * _between(depths, node, place - node, _SEEN)
        clouds.x[n], clouds.y[n], clouds.charge_kev[n], clouds.variance_mm2[n] = x, y, charge_kev, cloud_mm2
        clouds.drift_mm[n] = _between(depths, node, place - node, _DRIFT_MM)
        workspace.clouds_of[number, workspace.n_clouds[number]] = n
        workspace.n_clouds[number] += charge_kev > 0
        n += charge_kev > 0
        photons.number[n_on], photons.energy_kev[n_on] = number, next_kev
        photons.x[n_on], photons.y[n_on], photons.depth_mm[n_on] = x, y, depth_mm
        n_on += next_kev > 0
    return n_on, n


@_kernel
def _scatter(physics: Physics, energy_kev: float, is_compton: bool, dice: chance.Dice) -> tuple[float, float, float]:
    """Draw a scattered photon's energy, 0 for none, its electron's cloud, and the cosine of its angle."""
    if not is_compton:
        return energy_kev, 0.0, _coherent_cosine(physics.screening_per_kev2, energy_kev, dice)
    electron_kev = _compton_electron_kev(energy_kev, dice)
    next_kev, cloud_mm2 = energy_kev - electron_kev, float(physics.cloud_mm2[_step(electron_kev)])
    if next_kev < LOWEST_KEV:
        return 0.0, cloud_mm2, 1.0
    return next_kev, cloud_mm2, max(-1.0, 1 - _ELECTRON_REST_KEV * (1 / next_kev - 1 / energy_kev))


@_inlined
def _travel(physics: Physics, photons: Photons, n_photons: int, dice: chance.Dice) -> int:
    """Let photons go on to their next interactions; return how many there are inside, which are the first then."""
    per_pitch, n = 1 / physics.pitch_mm, 0
    for i in range(n_photons):
        energy_kev, ux, uy, uz = photons.energy_kev[i], photons.ux[i], photons.uy[i], photons.uz[i]
        if uz == _ANYWHERE:
            ux, uy, uz = chance.direction(dice)
        path_mm = chance.exponential(dice) / physics.matter[_step(energy_kev), _ATTENUATION]
        depth_mm = photons.depth_mm[i] + path_mm * uz
        photons.number[n], photons.energy_kev[n], photons.generation[n] = (
            photons.number[i], energy_kev, photons.generation[i],
        )  # fmt: skip
        photons.x[n], photons.y[n] = photons.x[i] + path_mm * per_pitch * ux, photons.y[i] + path_mm * per_pitch * uy
        photons.depth_mm[n], photons.ux[n], photons.uy[n], photons.uz[n] = depth_mm, ux, uy, uz
        n += (depth_mm > 0) & (depth_mm < physics.thickness_mm)
    return n


@_inlined
def land(workspace: Workspace, number: int) -> int:
    """Share the clouds of one photon from outside among places; return how many got something.

    They are the first of ``landing.places``; who asks takes the charges, and leaves 0.
    """
    n = 0
    for k in range(workspace.n_clouds[number]):
        n = share(workspace.clouds, workspace.clouds_of[number, k], workspace.landing, n)
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
