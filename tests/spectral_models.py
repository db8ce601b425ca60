"""Scanners for tests of rays: the published one where its data is there, and one that is made up."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from reconstruction.spectral.model import SpectralModel

MORY_EDGES_KEV = (30, 51, 62, 72, 83)
"""Lower edges of the five bins, by recorded energy (Mory 2018, script SimulatePreps.m)."""


def mory_model(test_data: Path) -> tuple[SpectralModel, np.ndarray]:
    """Return the model, its paths in mm of iodine, gadolinium and water as elements, and the open beam's counts."""
    folder = test_data / "mory2018_scanner_model"
    incident = np.ravel(only(loadmat(folder / "incidentSpectrum.mat")))
    response = only(loadmat(folder / "detectorResponse.mat"))
    attenuation = only(loadmat(folder / "materialAttenuations.mat"))
    recorded = np.arange(1, len(response) + 1)
    edges = [*MORY_EDGES_KEV, 999]
    bins = [(recorded >= low) & (recorded < high) for low, high in itertools.pairwise(edges)]
    seen = np.stack([response[rows].sum(axis=0) for rows in bins]) * incident
    open_counts = seen.sum(axis=1)
    is_seen = seen.any(axis=0)
    model = SpectralModel(
        materials=("iodine", "gadolinium", "water"),
        bins=tuple(f"{low} keV" for low in MORY_EDGES_KEV),
        weights=(seen / open_counts[:, None])[:, is_seen],
        attenuation_per_mm_per_g_cm3=attenuation[is_seen],
        energies_kev=np.arange(1.0, len(incident) + 1)[is_seen],
    )
    return model, open_counts


def only(content: dict) -> np.ndarray:
    """Return the one array of a MATLAB file."""
    (name,) = [key for key in content if not key.startswith("__")]
    return np.asarray(content[name], dtype=np.float64)


def made_up_model(
    materials: tuple[str, ...] = ("water", "iodine"), edges_kev: tuple[float, ...] = (20, 33, 45, 60)
) -> SpectralModel:
    """Return a model of a filtered tube at 100 kV and a detector that puts a third of its counts too low."""
    energies = np.arange(15.0, 101.0)
    photons = (100.5 - energies) / energies * np.exp(-((28 / energies) ** 3))
    edges = np.array([*edges_kev, 300.0])
    spread = 2.5 * np.sqrt(2)
    above = np.array([[0.5 * math.erfc((edge - e) / spread) for e in energies] for edge in edges])
    tail = np.clip((energies - edges[:, None]) / energies, 0, 1)
    counted = 0.67 * above + 0.33 * tail
    return SpectralModel.of_spectrum((counted[:-1] - counted[1:]) * photons, energies, materials)
