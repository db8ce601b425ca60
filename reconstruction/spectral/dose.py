"""What the beam leaves in a sample: mean absorbed dose by exact chords, and by photons thrown one by one.

Chords follow the primary photons: what each segment of a ray takes out of them, times the share of it that stays on the
spot. Scattered photons deposit more; the Monte Carlo follows them too, and agrees with the chords where scattering is
rare or the sample thin. Both leave coherent scattering out, and take all of a photo-absorption as left on the spot,
fluorescence of agents with it. The beam is collimated to the camera; the dose is that of the slices in the beam.

# Ref: energy transfer of scattering: Klein and Nishina (`calibration.spectrum`); cross sections: `calibration.
#      attenuation`. That free electrons take their share from bound ones leaves out up to 2 % of the dose in water at
#      60 keV (Elam's cross section of scattering is 3 % below that of free electrons there).
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibration.attenuation import HIGHEST_KEV, Process, mass_attenuation_cm2_g
from calibration.geometry import Geometry
from calibration.progress import Progress
from calibration.spectrum import MGY_PER_KEV_PER_G, klein_nishina_cm2
from firmware_iface.errors import WrongUsage
from reconstruction.kernels.threads import in_threads
from reconstruction.spectral.sample import Sample, Segments, segments

N_ANGLES, N_FANS = 12, 64
"""Directions, and rays in each, that chords are averaged over."""
NODE_KEV = 0.25
RATIO_KEV = np.array([8.0, 15.0, 20.0, 27.0, 35.0, 45.0, 60.0, 80.0, 105.0, 155.0])
"""Where the Monte Carlo is run once for all spectra."""
N_BATCHES = 20
"""Of the Monte Carlo: their scatter is its error."""


def half_fan_rad(sample: Sample, geometry: Geometry) -> float:
    """Return how far from the axis rays go: up to the sample's edge, or the camera's where that is narrower."""
    edge = sample.diameter_mm / 2 / geometry.source_to_object_mm
    if edge >= 1:
        raise WrongUsage(
            f"a sample of {sample.diameter_mm:g} mm reaches the source, {geometry.source_to_object_mm:g} mm from the "
            "axis; allowed: smaller ones"
        )
    camera = geometry.cols * geometry.pitch_mm / 2 / geometry.source_to_detector_mm
    return float(min(np.arcsin(edge), np.arctan(camera)))


def beam_height_mm(sample: Sample, geometry: Geometry) -> float:
    """Return the height of the beam on the axis, or the sample's where that is less."""
    return min(geometry.rows * geometry.pitch_mm / geometry.magnification, sample.height_mm)


def dose_by_chords_mgy(sample: Sample, geometry: Geometry, energies_kev: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean dose that primary photons leave in the slices in the beam, all around.

    Returns
    -------
    (n_energies,) float64
        mGy of one photon per mm2 on the axis, in air, of each energy.
    """
    fan, weights = np.polynomial.legendre.leggauss(N_FANS)
    half_rad = half_fan_rad(sample, geometry)
    angle = (np.arange(N_ANGLES) + 0.5) * 2 * np.pi / N_ANGLES
    from_axis = np.stack([np.cos(angle), np.sin(angle)], axis=1) * geometry.source_to_object_mm
    heading = angle[:, None] + np.pi + half_rad * fan
    directions = np.stack([np.cos(heading), np.sin(heading)], axis=-1).reshape(-1, 2)
    rays = segments(sample, np.repeat(from_axis, N_FANS, axis=0), directions)
    photo, scatter = _per_mm(sample, "photo", energies_kev), _per_mm(sample, "incoherent", energies_kev)
    total, transferred = klein_nishina_cm2(energies_kev)
    left = _left_in_segments(rays, photo + scatter, (photo + scatter * transferred / total) / (photo + scatter))
    share = (left.reshape(N_ANGLES, N_FANS, -1) * weights[:, None]).sum(axis=1).mean(axis=0) * half_rad
    return energies_kev * share * geometry.source_to_object_mm / sample.mass_g_per_mm * MGY_PER_KEV_PER_G


def _left_in_segments(rays: Segments, per_mm: NDArray[np.float64], kept: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of a ray's energy that stays: (n_rays, n_energies)."""
    passed = np.ones((len(rays.lengths_mm), per_mm.shape[1]))
    left = np.zeros_like(passed)
    for length_mm, matter in zip(rays.lengths_mm.T, rays.filled_by.T, strict=True):
        is_matter = (matter >= 0)[:, None]
        through = np.where(is_matter, np.exp(-per_mm[matter] * length_mm[:, None]), 1.0)
        left += np.where(is_matter, passed * (1 - through) * kept[matter], 0.0)
        passed *= through
    return left


def _per_mm(sample: Sample, process: Process, energies_kev: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([mass_attenuation_cm2_g(m, energies_kev, process) * m.density_g_cm3 / 10 for m in sample.matter])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MonteCarloDose:
    """What photons left that were thrown at a sample.

    Attributes
    ----------
    dose_mgy, error_mgy : float
        Mean over the slices in the beam, and its standard error; of one photon per mm2 on the axis in air.
    everywhere_mgy : float
        As if what photons leave beyond the beam's height were left within: a long scan adds up to that.
    primary_mgy : float
        What first collisions left of that: `dose_by_chords_mgy` without chance.
    matter_mgy : (1 + n_rods,) float64
        Mean dose of the body, and of each rod.
    thrown_kev, left_kev, escaped_kev, missed_kev : float
        Energy of all photons, and where it went.
    """

    dose_mgy: float
    error_mgy: float
    everywhere_mgy: float
    primary_mgy: float
    matter_mgy: NDArray[np.float64]
    thrown_kev: float
    left_kev: float
    escaped_kev: float
    missed_kev: float


def dose_by_photons(
    sample: Sample,
    geometry: Geometry,
    spectrum: NDArray[np.float64],
    energies_kev: NDArray[np.float64],
    *,
    n_photons: int = 400_000,
    seed: int = 1,
) -> MonteCarloDose:
    """Throw photons at a sample from all around, and say what they leave.

    Parameters
    ----------
    spectrum : (n_energies,) float64
        Photons of each energy, in any unit.
    n_photons : int
    """
    from reconstruction.kernels.dose_cpu import fly  # numba is slow: not before it is needed

    if not spectrum.sum() > 0:
        raise WrongUsage("a spectrum without photons leaves no dose")
    half_rad, height_mm = half_fan_rad(sample, geometry), beam_height_mm(sample, geometry)
    half_slope = height_mm / 2 / geometry.source_to_object_mm
    nodes_kev = np.clip(np.arange(0, HIGHEST_KEV + NODE_KEV, NODE_KEV), 1.0, HIGHEST_KEV)
    photo, scatter = _per_mm(sample, "photo", nodes_kev), _per_mm(sample, "incoherent", nodes_kev)
    is_there = spectrum > 0
    chances = np.cumsum(spectrum[is_there]) / spectrum.sum()
    per_batch = -(-n_photons // N_BATCHES)
    left, primary = np.zeros((N_BATCHES, len(sample.matter), 2)), np.zeros((N_BATCHES, len(sample.matter)))
    sums = np.zeros((N_BATCHES, 3))

    def throw(batch: int) -> None:
        fly(
            *(seed * N_BATCHES + batch, per_batch, sample.circles_mm, sample.height_mm / 2),
            *(geometry.source_to_object_mm, half_rad, half_slope, energies_kev[is_there], chances),
            *(NODE_KEV, photo, scatter, left[batch], primary[batch], sums[batch]),
        )

    in_threads(throw, [(batch,) for batch in range(N_BATCHES)])
    solid_angle = 2 * half_rad * 2 * half_slope / np.sqrt(1 + half_slope**2)
    per_photon = geometry.source_to_object_mm**2 * solid_angle / per_batch
    in_beam_g = sample.mass_g_per_mm * height_mm
    by_batch = left[..., 0].sum(axis=1) * per_photon / in_beam_g * MGY_PER_KEV_PER_G
    area_mm2 = np.pi * sample.circles_mm[:, 2] ** 2
    area_mm2[0] -= area_mm2[1:].sum()
    mass_g = area_mm2 * height_mm * np.array([m.density_g_cm3 for m in sample.matter]) / 1000
    thrown, escaped, missed = sums.sum(axis=0)
    return MonteCarloDose(
        dose_mgy=float(by_batch.mean()),
        error_mgy=float(by_batch.std(ddof=1) / np.sqrt(N_BATCHES)),
        everywhere_mgy=float(left.sum() / N_BATCHES * per_photon / in_beam_g * MGY_PER_KEV_PER_G),
        primary_mgy=float(primary.sum() / N_BATCHES * per_photon / in_beam_g * MGY_PER_KEV_PER_G),
        matter_mgy=left[..., 0].mean(axis=0) * per_photon / mass_g * MGY_PER_KEV_PER_G,
        thrown_kev=float(thrown),
        left_kev=float(left.sum()),
        escaped_kev=float(escaped),
        missed_kev=float(missed),
    )


def dose_mgy_per_fluence(
    sample: Sample, geometry: Geometry, energies_kev: NDArray[np.float64], *, n_photons: int = 40_000
) -> Generator[Progress, None, NDArray[np.float64]]:
    """Return the mean dose, scattered photons included, of one photon per mm2 on the axis: (n_energies,) float64, mGy.

    The Monte Carlo runs at a few energies; between them its ratio to the chords is smooth.

    Parameters
    ----------
    n_photons : int
        At each of these energies.
    """
    ratios = []
    for done, energy_kev in enumerate(RATIO_KEV):
        yield Progress("dose", done, len(RATIO_KEV))
        at = np.array([energy_kev])
        thrown = dose_by_photons(sample, geometry, np.ones(1), at, n_photons=n_photons, seed=done + 1)
        ratios.append(thrown.dose_mgy / thrown.primary_mgy)  # of the same photons, so that chance cancels in part
    yield Progress("dose", len(RATIO_KEV), len(RATIO_KEV))
    return dose_by_chords_mgy(sample, geometry, energies_kev) * np.interp(energies_kev, RATIO_KEV, ratios)
