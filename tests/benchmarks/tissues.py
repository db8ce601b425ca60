"""Electron density, effective Z and stopping power of tissues in a simulated scan, against the truth.

Rods of body tissues in water are scanned by a photon-counting detector with charge summing (its whole response, five
bins at 120 kVp), ray by ray decomposed into two materials, reconstructed and calibrated, as a user would; the truth is
what follows from each tissue's own composition. The scan is simulated over exact chords and the full spectrum, with
tissues that are no mixtures of the two materials. Calibrations are compared: over tissues as a basis attenuates like
them ("tissues"), as this detector's bins see them ("detector"), the first without the tissues that are judged ("held
out"), and with the materials' own coefficients ("mixtures").
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from calibration.attenuation import Material, linear_attenuation_per_mm, material
from calibration.electrons import effective_z, relative_electrons, stopping_power_ratio
from calibration.geometry import Geometry
from calibration.response import PARAMETERS, SensorModel, counts_above
from calibration.shelf import tissues
from calibration.spectrum import tube_spectrum
from reconstruction import quantities
from reconstruction.fdk import fdk
from reconstruction.labels import probabilities, tissue_classes
from reconstruction.spectral.model import SpectralModel
from reconstruction.spectral.ray_fit import fit_rays
from reconstruction.spectral.stoichiometry import as_decomposed, calibrate, reference_tissues
from reconstruction.volume import Grid
from sim.phantom import Cylinder, Phantom, path_lengths_mm

KVP, FILTERS_MM = 120.0, {"aluminium": 6.0, "copper": 0.2}
THRESHOLDS_KEV = (25.0, 38.0, 51.0, 65.0, 80.0)
ENERGIES_KEV = np.arange(12.5, 121.0, 1.0)
BODY_MM, RING_MM, ROD_MM = 25.0, (18.0, 10.0), 3.2
"""Radius of the body of water, of the two rings on which rods stand, and of a rod."""
RODS = (12, 6)
GEOMETRY = Geometry(source_to_object_mm=400.0, source_to_detector_mm=600.0, pitch_mm=0.45, rows=1, cols=192)
GRID = Grid(shape=(1, 200, 200), voxel_mm=0.27)
ION_MEV = 150.0
MONO_KEV = 70.0
CLASSES = ("adipose", "muscle", "vertebra D6 L3", "cranium", "bone")
"""Tissues that two materials tell apart."""
AIMS_PERCENT = {"electron_density": 0.5, "effective_z": 1.0, "stopping_power_ratio": 1.0, "mono_70_kev": 0.5}
"""The last one is a choice: 5 HU in water."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rod:
    """Where a tissue stands."""

    matter: Material
    x_mm: float
    y_mm: float


def finish(work):
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def seen_by_bins(off_kev: float = 0.0) -> NDArray[np.float64]:
    """Return counts of the open beam per mAs and mm2 in each bin, by energy of the photon: (n_bins, n_energies).

    Thresholds stand `off_kev` too high and too low by turns.
    """
    thresholds_kev = np.array(THRESHOLDS_KEV) + off_kev * (-1.0) ** np.arange(len(THRESHOLDS_KEV))
    values = {name: start for name, (start, *_) in PARAMETERS.items()}
    above = counts_above(thresholds_kev, ENERGIES_KEV, SensorModel(material="cdte", thickness_mm=2.0), values)
    matrix = above - np.vstack([above[1:], np.zeros_like(above[:1])])
    return matrix * tube_spectrum(KVP, ENERGIES_KEV, FILTERS_MM)


def phantoms(names: list[str]) -> list[list[Rod]]:
    """Place tissues on the rings of as many bodies as it takes, dense ones in different bodies."""
    places = [
        (radius * np.cos(angle), radius * np.sin(angle))
        for radius, n in zip(RING_MM, RODS, strict=True)
        for angle in 2 * np.pi * (np.arange(n) + 0.25) / n
    ]
    n_bodies = -(-len(names) // len(places))
    return [
        [Rod(matter=material(name), x_mm=x, y_mm=y) for name, (x, y) in zip(names[k::n_bodies], places, strict=False)]
        for k in range(n_bodies)
    ]


def scan(rods: list[Rod], angles_rad: NDArray, seen: NDArray, mas_mm2: float | None, seed: int) -> NDArray[np.float64]:
    """Return counts over the open beam's: (n_bins, n_views, 1, cols); with Poisson noise where an exposure is given."""
    inserts = tuple(
        Cylinder(centre_mm=(r.x_mm, r.y_mm, 0.0), material=r.matter, radius_mm=ROD_MM, height_mm=40.0) for r in rods
    )
    body = Cylinder(material=material("water"), radius_mm=BODY_MM, height_mm=40.0, inserts=inserts)
    phantom = Phantom(solids=(body,))
    per_mm = np.array([linear_attenuation_per_mm(m, ENERGIES_KEV) for m in phantom.materials])
    rng, views = np.random.default_rng(seed), GEOMETRY.views(angles_rad)
    columns = np.arange(GEOMETRY.cols) - (GEOMETRY.cols - 1) / 2
    counts = np.empty((len(seen), len(angles_rad), 1, GEOMETRY.cols))
    for k in range(len(angles_rad)):
        pixels = views.detector_mm[k] + columns[None, :, None] * views.u_mm[k]
        lengths = path_lengths_mm(phantom, views.source_mm[k], pixels).astype(np.float64)
        counts[:, k] = np.tensordot(seen, np.exp(-np.tensordot(per_mm, lengths, (0, 0))), 1)
    if mas_mm2 is not None:
        counts = rng.poisson(counts * mas_mm2) / mas_mm2
    return counts / seen.sum(axis=1)[:, None, None, None]


def within(volume: NDArray, x_mm: float, y_mm: float, radius_mm: float) -> NDArray[np.float64]:
    """Return the voxels of a disc: (n_materials, n_voxels) float64."""
    _, y, x = GRID.axes_mm()
    return volume[:, 0, np.hypot(y[:, None] - y_mm, x - x_mm) < radius_mm].astype(np.float64)


def measure(
    basis: list[str], names: list[str], n_views: int, mas_mm2: float | None, off_kev: float
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.float64]]:
    """Scan, decompose and reconstruct; return the voxels of each tissue and the noise's covariance, as water has it."""
    seen = seen_by_bins(off_kev)
    model = SpectralModel.of_spectrum(seen_by_bins(), ENERGIES_KEV, basis)
    angles = 2 * np.pi * np.arange(n_views) / n_views
    found, covariances = {}, []
    for seed, rods in enumerate(phantoms(names)):
        share = scan(rods, angles, seen, mas_mm2, seed)
        open_counts = seen.sum(axis=1) * (mas_mm2 or 1e6)
        fit = fit_rays(share * open_counts[:, None, None, None], open_counts, model)
        volume = finish(fdk(fit.paths, angles, GEOMETRY, GRID, window="hann"))
        found |= {rod.matter.name: within(volume, rod.x_mm, rod.y_mm, 0.7 * ROD_MM) for rod in rods}
        covariances.append(np.cov(within(volume, 0.0, 0.0, 0.2 * BODY_MM)))
    return found, np.mean(covariances, axis=0)


def labelled_right(voxels: dict[str, NDArray[np.float64]], covariance: NDArray, basis: list[str]) -> dict[str, float]:
    """Return which share of the voxels of each class gets its label, each voxel by itself."""
    classes = tissue_classes(("air", "water", *CLASSES), [material(name) for name in basis])
    right = {}
    for k, name in enumerate(CLASSES, 2):
        if name in voxels:
            likely, is_none = probabilities(voxels[name], classes, covariance)
            right[name] = float(((likely.argmax(axis=0) == k) & ~is_none).mean())
    return right


def errors_percent(read: NDArray, names: list[str], basis: list[str], kind: str) -> dict[str, NDArray[np.float64]]:
    """Return by how much each quantity of each tissue is wrong, in per cent."""
    judged = [material(name) for name in names]
    reference = [m for m in reference_tissues() if m not in judged] if kind == "held out" else None
    seen = None
    if kind == "detector":
        matter = [material(name) for name in basis]
        model = SpectralModel.of_spectrum(seen_by_bins(), ENERGIES_KEV, basis)
        seen = as_decomposed(reference_tissues(), matter, model, BODY_MM)
    known = calibrate(basis, reference, seen, is_fitted=kind != "mixtures")
    spr = quantities.stopping_power_ratio(known, ION_MEV)
    told = {
        "electron_density": (quantities.electron_density(known), lambda m: m.density_g_cm3 * relative_electrons(m)),
        "effective_z": (quantities.effective_z(known), effective_z),
        "stopping_power_ratio": (spr, lambda m: stopping_power_ratio(m, ION_MEV)),
        "mono_70_kev": (
            quantities.monoenergetic([material(m) for m in basis], MONO_KEV, is_hu=False),
            lambda m: linear_attenuation_per_mm(m, MONO_KEV)[0],
        ),
    }
    return {
        name: 100 * (quantity.value(read.T) / np.array([truth(m) for m in judged]) - 1)
        for name, (quantity, truth) in told.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="every third tissue, half the views")
    parser.add_argument("--basis", default="water,hydroxyapatite", help="the materials, a,b")
    parser.add_argument("--counts", type=float, help="photons per pixel of the open beam; default: no noise")
    parser.add_argument("--off-kev", type=float, default=0.0, help="how wrong the model's thresholds are, by turns")
    options = parser.parse_args()
    basis = options.basis.split(",")
    names = [name for name, tissue in tissues().items() if tissue.density_g_cm3 > 0.5][:: 3 if options.quick else 1]
    per_mas = float(tube_spectrum(KVP, ENERGIES_KEV, FILTERS_MM).sum())
    began = time.process_time()
    exposure = options.counts and options.counts / per_mas
    voxels, covariance = measure(basis, names, 180 if options.quick else 360, exposure, options.off_kev)
    read = np.array([voxels[name].mean(axis=1) for name in names])
    right = labelled_right(voxels, covariance, basis)
    seconds = time.process_time() - began
    kinds = ("tissues", "detector", *(["held out"] if options.quick else []), "mixtures")
    results = {kind: errors_percent(read, names, basis, kind) for kind in kinds}
    if options.json:
        figures = {
            kind: {q: {"rms_percent": float(np.sqrt(np.mean(e**2))), "worst_percent": float(np.abs(e).max()),
                       "worst": names[int(np.abs(e).argmax())], "aim_percent": AIMS_PERCENT[q]}
                   for q, e in of_kind.items()}
            for kind, of_kind in results.items()
        }  # fmt: skip
        facts = {
            "basis": basis,
            "n_tissues": len(names),
            "counts": options.counts,
            "off_kev": options.off_kev,
            "labelled_right": right,
            "noise_mg_ml": (1e3 * np.sqrt(np.diag(covariance))).tolist(),
            "cpu_seconds": seconds,
        }
        print(json.dumps({**facts, **figures}))
        return
    print(f"{'tissue':<24}" + "".join(f"{name:>22}" for name in AIMS_PERCENT))
    for k, name in enumerate(names):
        print(f"{name:<24}" + "".join(f"{results['tissues'][q][k]:>20.2f} %" for q in AIMS_PERCENT))
    for kind, of_kind in results.items():
        told = [f"{np.sqrt(np.mean(e**2)):>8.2f} rms, {np.abs(e).max():.2f} %" for e in of_kind.values()]
        print(f"{kind + ', worst':<24}" + "".join(f"{text:>22}" for text in told))
    print(f"{'aim':<24}" + "".join(f"{aim:>20.2f} %" for aim in AIMS_PERCENT.values()))
    noise = ", ".join(f"{name} {1e3 * sd:.1f}" for name, sd in zip(basis, np.sqrt(np.diag(covariance)), strict=True))
    print(f"noise of a voxel, mg/mL: {noise}")
    print("voxels labelled right: " + ", ".join(f"{name} {share:.3f}" for name, share in right.items()))
    print(f"{seconds:.1f} s of one processor")


if __name__ == "__main__":
    main()
