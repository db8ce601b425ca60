"""Cells that teach a model: what they let through comes back, a wrong response is made good, a foreign one refused."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.material_basis import MaterialBasis
from calibration.spectrum import tube_spectrum
from firmware_iface.errors import WrongUsage
from reconstruction.spectral.cells import cells_of_basis, path_map
from reconstruction.spectral.model import SpectralModel
from reconstruction.spectral.ray_fit import fit_rays

MATERIALS: tuple[str, ...] = ("water", "iodine", "gold")
EDGES_KEV = (19.0, 33.0, 50.0, 80.0)
DENSITIES = {"water": 1.0, "iodine": 4.93, "gold": 19.32}
MG_ML = {"iodine": 2.0, "gold": 2.0}
THICKNESS_MM = {"water": 30.0, "iodine": 30.0, "gold": 30.0}
OPEN = np.array([4e4, 5e4, 6e4, 2e4])
ELSEWHERE = np.array([[24.0, 34.0, 30.0], [0.03, 0.0, 0.05], [0.0, 0.05, 0.02]])


def model_of(filter_mm: float, shift_kev: float = 0.0) -> SpectralModel:
    """Blurred bins of a tube: another filter and shifted thresholds are what a fit may get wrong."""
    energies_kev = np.arange(10.0, 118.0, 0.5)
    spectrum = tube_spectrum(118.0, energies_kev, {"aluminium": filter_mm})
    above = [1 / (1 + np.exp((edge + shift_kev - energies_kev) / 1.2)) for edge in EDGES_KEV]
    seen = np.array([low - high for low, high in zip(above, [*above[1:], 0 * above[0]], strict=True)])
    return SpectralModel.of_spectrum(seen * spectrum, energies_kev, MATERIALS)


def basis_behind_cells(model: SpectralModel) -> tuple[MaterialBasis, np.ndarray]:
    """The basis as the calibration measures it, and the paths of its cells."""
    share = [1.0, *(1 - 0.002 / DENSITIES[name] for name in MG_ML)]
    paths = np.diag([30.0, 0.06, 0.06])
    paths[0] = 30.0 * np.array(share)
    depth = -np.log(model.transmission(paths))
    columns = [depth[:, 0] / 30, *((depth[:, k] - share[k] * depth[:, 0]) / 0.06 for k in (1, 2))]
    basis = MaterialBasis(
        materials=MATERIALS, attenuation_per_mm_per_g_cm3=np.stack(columns, axis=1), thresholds_kev=EDGES_KEV
    )
    return basis, paths


def cells_behind(model: SpectralModel) -> tuple[np.ndarray, np.ndarray]:
    return cells_of_basis(
        basis_behind_cells(model)[0],
        MATERIALS,
        thickness_mm=THICKNESS_MM,
        concentrations_mg_ml=MG_ML,
        densities_g_cm3=DENSITIES,
    )


def test_a_basis_gives_back_its_cells() -> None:
    model = model_of(3.8)
    _, truth = basis_behind_cells(model)
    paths, through = cells_behind(model)
    np.testing.assert_allclose(paths, truth, rtol=1e-12)
    np.testing.assert_allclose(through, model.transmission(truth), rtol=1e-12)


def test_a_right_model_is_left_as_it_is() -> None:
    model = model_of(3.8)
    np.testing.assert_allclose(path_map(model, *cells_behind(model), OPEN), np.eye(3), atol=2e-3)


def test_a_wrong_response_is_made_good_behind_other_matter_than_the_cells() -> None:
    truth, wrong = model_of(4.0, 0.15), model_of(3.7)
    matrix = path_map(wrong, *cells_behind(truth), OPEN)
    read = fit_rays(1e4 * OPEN[:, None] * truth.transmission(ELSEWHERE), 1e4 * OPEN, wrong).paths
    before = np.abs(read - ELSEWHERE).max(axis=1)
    after = np.abs(matrix @ read - ELSEWHERE).max(axis=1)
    assert (before[1:] > 2e-3).any()
    assert (after < np.maximum(before / 4, 2e-4)).all(), (before, after)


def test_a_foreign_model_and_materials_without_cells_are_refused() -> None:
    truth = model_of(3.8)
    with pytest.raises(WrongUsage, match="behind the cells the model reads"):
        path_map(model_of(3.8, 9.0), *cells_behind(truth), OPEN)
    with pytest.raises(WrongUsage, match="tell nothing of gadolinium"):
        cells_of_basis(
            basis_behind_cells(truth)[0],
            ("water", "gadolinium"),
            thickness_mm=THICKNESS_MM,
            concentrations_mg_ml=MG_ML,
            densities_g_cm3=DENSITIES,
        )
