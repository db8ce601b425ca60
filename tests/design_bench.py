"""A scan in simulation, from Poisson counts to material volumes, to see whether a forecast of its noise holds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from calibration.attenuation import material
from calibration.geometry import Geometry
from reconstruction.fdk import fdk
from reconstruction.spectral.model import SpectralModel
from reconstruction.spectral.prediction import (
    ENERGIES_KEV,
    Beam,
    Counter,
    Forecaster,
    forecast,
    places_of,
    voxel_gain_per_mm2,
)
from reconstruction.spectral.ray_fit import fit_rays
from reconstruction.spectral.sample import Sample, Segments, segments
from reconstruction.volume import Grid

PITCH_MM, COLS, END_ROWS = 0.11, 128, 4
"""Pixels; and rows at either end that are left out, where cones run out of the camera."""


def run(work):
    """Run a generator to its end and return its result."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def model_of(
    sample: Sample, geometry: Geometry, counter: Counter, beam: Beam, thresholds_kev: NDArray, mas: float
) -> tuple[SpectralModel, NDArray]:
    """Return the forward model of the rays' fit, and the open beam's counts in each bin."""
    above = counter(thresholds_kev, ENERGIES_KEV)
    photons = beam.photons(geometry.source_to_detector_mm) * geometry.pitch_mm**2 * mas
    seen = np.maximum(above - np.vstack([above[1:], 0 * above[:1]]), 0) * photons
    return SpectralModel.of_spectrum(seen, ENERGIES_KEV, sample.basis), seen.sum(axis=1)


def true_paths(sample: Sample, rays: Segments) -> NDArray:
    """Return paths of solvent and agents, of which all matter is a mixture here: (n_materials, n_rays)."""
    density = {name: material(name).density_g_cm3 for name in sample.basis}
    contents = [{sample.solvent: 1.0}]
    for rod in sample.rods:
        agents = {name: mg_ml / 1000 for name, mg_ml in rod.contents_mg_ml.items()}
        contents.append(agents | {sample.solvent: 1 - sum(c / density[name] for name, c in agents.items())})
    return np.array(
        [
            sum(
                np.where(rays.filled_by == i, rays.lengths_mm, 0).sum(axis=1) * held.get(name, 0.0)
                for i, held in enumerate(contents)
            )
            for name in sample.basis
        ]
    )


def reconstructed_noise(
    sample: Sample,
    counter: Counter,
    beam: Beam,
    thresholds_kev: NDArray,
    *,
    mas: float,
    n_views: int,
    n_rows: int,
) -> tuple[NDArray, NDArray, NDArray]:
    """Return foretold and observed standard deviation in each rod, and the means, in mg/mL: (n_rods, n_materials).

    Rays are nearly parallel, each is fitted by itself, and rods hold one agent each.
    """
    geometry = Geometry(
        source_to_detector_mm=2500.0, source_to_object_mm=2000.0, pitch_mm=PITCH_MM, rows=n_rows, cols=COLS
    )
    angles = (np.arange(n_views) + 0.5) * 2 * np.pi / n_views
    views = geometry.views(angles)
    cols = np.arange(COLS) - (COLS - 1) / 2
    pixels = views.detector_mm[:, None] + cols[:, None] * views.u_mm[:, None]
    along = (pixels - views.source_mm[:, None])[..., :2]
    along /= np.linalg.norm(along, axis=-1, keepdims=True)
    rays = segments(sample, pixels[..., :2].reshape(-1, 2), along.reshape(-1, 2))
    near = Geometry(source_to_detector_mm=250.0, source_to_object_mm=200.0, pitch_mm=PITCH_MM, rows=n_rows, cols=COLS)
    model, opened = model_of(sample, near, counter, beam, thresholds_kev, mas)
    mean = opened[:, None] * model.transmission(true_paths(sample, rays))
    shape = (len(opened), n_views, n_rows, COLS)
    counts = np.random.default_rng(5).poisson(np.broadcast_to(mean.reshape(len(opened), n_views, 1, COLS), shape))
    paths = fit_rays(counts.astype(np.float32), opened, model).paths
    grid = Grid(shape=(n_rows, COLS, COLS), voxel_mm=PITCH_MM / geometry.magnification)
    volume = 1000 * run(fdk(paths, angles, geometry, grid, window="hann", is_continued=False))
    table = Forecaster(sample, near, counter).table(beam)
    gain_per_mm2 = voxel_gain_per_mm2(geometry, n_views, window="hann")
    foretold = forecast(table, sample, places_of(thresholds_kev), mas, gain_per_mm2).voxel_sd_mg_ml
    _, y, x = grid.axes_mm()
    inside = [np.hypot(y[:, None] - rod.y_mm, x - rod.x_mm) < 0.8 * rod.radius_mm for rod in sample.rods]
    values = [volume[:, END_ROWS:-END_ROWS][:, :, mask] for mask in inside]
    observed = np.array([value.std(axis=1, ddof=1).mean(axis=1) for value in values])
    return foretold, observed, np.array([value.mean(axis=(1, 2)) for value in values])
