"""A response that plates and cells correct: what they let through comes back, and what lies between and beyond."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from acquisition.plan import Cell
from calibration.attenuation import MG_ML_PER_G_CM3, linear_attenuation_per_mm, material
from calibration.material_basis import MaterialBasis
from calibration.spectrum import tube_spectrum
from calibration.thickness import StepWedge
from firmware_iface.errors import WrongUsage
from reconstruction.spectral.adjustment import KnownLayers, adjusted, known_layers
from reconstruction.spectral.model import SpectralModel
from reconstruction.spectral.ray_fit import fit_rays

MATERIALS: tuple[str, ...] = ("water", "iodine", "gold", "hydroxyapatite")
EDGES_KEV = (19.0, 33.0, 41.0, 50.0, 80.0)
ENERGIES_KEV = np.arange(10.25, 118.0, 0.5)
OPEN = np.array([6e7, 5e7, 4e7, 5e7, 2e7])
PLATES_MM: tuple[Mapping[str, float], ...] = (
    *({"pmma": thickness_mm} for thickness_mm in (5.0, 10.0, 20.0, 30.0, 40.0)),
    {"aluminium": 1.0},
    {"aluminium": 4.0},
)
CELL_MM = 30.0
CELLS_MG_ML = {"iodine": 2.0, "gold": 2.0, "hydroxyapatite": 40.0}
THICK_BONE = np.array([[28.0], [0.0], [0.0], [5.0]])
"""Further than any plate or cell goes."""


def seen(fluorescence: float) -> np.ndarray:
    """What bins count of each energy: a line, and K photons of cadmium telluride beside it, between 23 and 31 keV."""
    above = []
    for edge_kev in EDGES_KEV:
        whole = 1 / (1 + np.exp((edge_kev - ENERGIES_KEV) / 1.2))
        escaped = 1 / (1 + np.exp((edge_kev - (ENERGIES_KEV - 27)) / 1.2))
        flown = 1 / (1 + np.exp((edge_kev - 27) / 1.2))
        away = fluorescence * (ENERGIES_KEV > 31.8)
        above.append((1 - away) * whole + away * (escaped + flown))
    bins = np.array([low - high for low, high in zip(above, [*above[1:], 0 * above[0]], strict=True)])
    return bins * tube_spectrum(118.0, ENERGIES_KEV, {"aluminium": 3.8})


def model_of(fluorescence: float, materials: tuple[str, ...] = MATERIALS) -> SpectralModel:
    return SpectralModel.of_spectrum(seen(fluorescence), ENERGIES_KEV, materials)


def behind(fluorescence: float, layers_mm: Mapping[str, float]) -> np.ndarray:
    """Counts behind layers, summed over energies here and not by the model."""
    depth = sum(linear_attenuation_per_mm(name, ENERGIES_KEV) * mm for name, mm in layers_mm.items())
    return seen(fluorescence) @ np.exp(-np.asarray(depth))


def wedge_of(fluorescence: float) -> StepWedge:
    return StepWedge(
        plates=tuple(map(str, PLATES_MM)),
        materials=("pmma", "aluminium"),
        layers_mm=np.array([[plate.get(name, 0.0) for name in ("pmma", "aluminium")] for plate in PLATES_MM]),
        thresholds_kev=np.array(EDGES_KEV) + 0.1,
        open_beam=behind(fluorescence, {"pmma": 0.0}),
        counts=np.stack([behind(fluorescence, plate) for plate in PLATES_MM]),
        open_beam_sigma_relative=np.full(len(EDGES_KEV), 1e-4),
        sigma_relative=np.full((len(PLATES_MM), len(EDGES_KEV)), 1e-4),
    )


def basis_of(fluorescence: float) -> MaterialBasis:
    """What a calibration keeps of its cells."""
    flat, water = behind(fluorescence, {"water": 0.0}), behind(fluorescence, {"water": CELL_MM})
    columns = [-np.log(water / flat) / CELL_MM / material("water").density_g_cm3]
    for name, mg_ml in CELLS_MG_ML.items():
        solute_mm = CELL_MM * mg_ml / MG_ML_PER_G_CM3 / material(name).density_g_cm3
        counts = behind(fluorescence, {"water": CELL_MM - solute_mm, name: solute_mm})
        of_water = columns[0] * material("water").density_g_cm3 * (CELL_MM - solute_mm)
        columns.append((-np.log(counts / flat) - of_water) / (CELL_MM * mg_ml / MG_ML_PER_G_CM3))
    return MaterialBasis(
        materials=("water", *CELLS_MG_ML),
        attenuation_per_mm_per_g_cm3=np.stack(columns, axis=1),
        thresholds_kev=EDGES_KEV,
    )


def cells_of(fluorescence: float) -> KnownLayers:
    basis = basis_of(fluorescence)
    return KnownLayers.of_cells(basis, dict.fromkeys(basis.materials, CELL_MM), CELLS_MG_ML)


def known_of(fluorescence: float) -> list[KnownLayers]:
    return [KnownLayers.of_plates(wedge_of(fluorescence)), cells_of(fluorescence)]


def test_plates_and_cells_are_told_as_they_were_measured() -> None:
    truth = model_of(0.5, ("pmma", "aluminium", *MATERIALS))
    for known in known_of(0.5):
        paths = np.array([[layers.get(name, 0.0) for layers in known.paths] for name in truth.materials])
        np.testing.assert_allclose(known.transmissions, truth.transmission(paths), rtol=1e-9)


def test_a_right_response_is_left_as_it_is() -> None:
    model = model_of(0.5)
    np.testing.assert_allclose(adjusted(model, known_of(0.5)).weights, model.weights, rtol=1e-9)
    assert adjusted(model, []) is model


def test_what_was_measured_comes_back_to_some_hundredths_of_a_per_cent() -> None:
    names = ("pmma", "aluminium", *MATERIALS)
    wrong = model_of(0.35, names)
    mended = adjusted(wrong, known_of(0.5))
    for known in known_of(0.5):
        paths = np.array([[layers.get(name, 0.0) for layers in known.paths] for name in names])
        before = np.abs(wrong.transmission(paths) / known.transmissions - 1).max()
        after = np.abs(mended.transmission(paths) / known.transmissions - 1).max()
        assert before > 5e-3
        assert after < 1e-3, (before, after)


def test_bone_beyond_all_plates_reads_no_agents() -> None:
    counts = OPEN * model_of(0.5).transmission(THICK_BONE[:, 0])
    wrong = model_of(0.35)
    before, after = (
        np.abs(fit_rays(counts[:, None], OPEN, model).paths - THICK_BONE)[:, 0]
        for model in (wrong, adjusted(wrong, known_of(0.5)))
    )
    assert before[1] > 5e-3
    assert (after[1:3] < np.maximum(before[1:3] / 5, 2e-4)).all(), (before, after)
    assert after[3] < before[3] / 5


def test_what_does_not_belong_together_is_refused() -> None:
    known = KnownLayers.of_plates(wedge_of(0.5))
    with pytest.raises(WrongUsage, match="5 bins, the model has 4"):
        adjusted(model_of(0.5).of_bins(range(4)), [known])
    reversed_ = KnownLayers(
        paths=known.paths, transmissions=known.transmissions[::-1], sigma_relative=known.sigma_relative
    )
    with pytest.raises(WrongUsage, match="foretells counts wrong by"):
        adjusted(model_of(0.5), [reversed_])


def test_only_what_was_measured_at_the_thresholds_of_the_pass_counts() -> None:
    wedge, basis = wedge_of(0.5), basis_of(0.5)
    cells = [
        Cell(name=name, material=name, concentration_mg_ml=CELLS_MG_ML.get(name, 0.0), thickness_mm=CELL_MM)
        for name in basis.materials
    ]
    plates, filled = known_layers(EDGES_KEV, wedge, basis, cells)
    assert (len(plates.paths), len(filled.paths)) == (len(PLATES_MM), len(cells))
    assert known_layers((19.0, 33.0, 41.0, 50.0, 82.0), wedge, basis, cells) == []
    assert known_layers(EDGES_KEV[:4], wedge, basis, cells) == []
    assert len(known_layers(EDGES_KEV, None, basis, cells)) == 1
    assert len(known_layers(EDGES_KEV, wedge, basis, cells[1:])) == 1, "cells without water tell nothing"
