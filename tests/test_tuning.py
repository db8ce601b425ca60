"""A model tuned to cells: it lets through what they do, stays where nothing is wrong, and unlearns an error."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.material_basis import MaterialBasis
from calibration.spectrum import tube_spectrum
from firmware_iface.errors import WrongUsage
from reconstruction.spectral.model import SpectralModel
from reconstruction.spectral.tuning import cells_of_basis, tuned

MATERIALS = ("water", "iodine", "gold")
EDGES_KEV = (19.0, 33.0, 50.0, 80.0)
CELLS = np.array([[30.0, 30.0, 30.0, 15.0], [0.0, 0.06, 0.0, 0.0], [0.0, 0.0, 0.06, 0.0]])
ELSEWHERE = np.array([[22.0, 34.0, 30.0], [0.03, 0.0, 0.1], [0.0, 0.05, 0.02]])


def model_of(filter_mm: float, shift_kev: float = 0.0) -> SpectralModel:
    """Blurred bins of a tube: another filter and shifted thresholds are what a fit may get wrong."""
    energies_kev = np.arange(10.0, 118.0, 0.5)
    spectrum = tube_spectrum(118.0, energies_kev, {"aluminium": filter_mm})
    above = [1 / (1 + np.exp((edge + shift_kev - energies_kev) / 1.2)) for edge in EDGES_KEV]
    seen = np.array([low - high for low, high in zip(above, [*above[1:], 0 * above[0]], strict=True)])
    return SpectralModel.of_spectrum(seen * spectrum, energies_kev, MATERIALS)


def test_a_wrong_spectrum_is_unlearned_where_cells_stood_and_near_it() -> None:
    truth, wrong = model_of(4.2, 0.2), model_of(3.6)
    better = tuned(wrong, CELLS, truth.transmission(CELLS))
    np.testing.assert_allclose(better.transmission(CELLS), truth.transmission(CELLS), rtol=3e-4)
    before = np.abs(np.log(wrong.transmission(ELSEWHERE) / truth.transmission(ELSEWHERE))).max()
    after = np.abs(np.log(better.transmission(ELSEWHERE) / truth.transmission(ELSEWHERE))).max()
    assert before > 5e-3
    assert after < before / 5


def test_what_is_right_stays_as_it_is() -> None:
    model = model_of(3.8)
    same = tuned(model, CELLS, model.transmission(CELLS))
    np.testing.assert_allclose(same.weights, model.weights, atol=1e-9)


def test_a_bin_that_no_cell_tells_of_keeps_its_weights() -> None:
    truth, wrong = model_of(4.2), model_of(3.6)
    through = truth.transmission(CELLS)
    through[1] = np.nan
    better = tuned(wrong, CELLS, through)
    np.testing.assert_array_equal(better.weights[1], wrong.weights[1])
    assert np.abs(better.weights[0] - wrong.weights[0]).max() > 0


def test_a_basis_gives_back_its_cells() -> None:
    model = model_of(3.8)
    densities = {"water": 1.0, "iodine": 4.93, "gold": 19.32}
    mg_ml = {"iodine": 2.0, "gold": 2.0}
    thickness_mm = dict.fromkeys(MATERIALS, 30.0)
    share = [1.0, *(1 - 0.002 / densities[name] for name in mg_ml)]
    paths = np.diag([30.0, 0.06, 0.06])
    paths[0] = 30.0 * np.array(share)
    depth = -np.log(model.transmission(paths))
    columns = [depth[:, 0] / 30]
    columns += [(depth[:, k] - share[k] * depth[:, 0]) / 0.06 for k in (1, 2)]
    basis = MaterialBasis(
        materials=MATERIALS, attenuation_per_mm_per_g_cm3=np.stack(columns, axis=1), thresholds_kev=EDGES_KEV
    )
    found, through = cells_of_basis(
        basis, MATERIALS, thickness_mm=thickness_mm, concentrations_mg_ml=mg_ml, densities_g_cm3=densities
    )
    np.testing.assert_allclose(found, paths, rtol=1e-12)
    np.testing.assert_allclose(through, model.transmission(paths), rtol=1e-12)


def test_what_does_not_belong_together_is_refused() -> None:
    model = model_of(3.8)
    with pytest.raises(WrongUsage, match="allowed"):
        tuned(model, CELLS[:2], model.transmission(CELLS))
    with pytest.raises(WrongUsage, match="allowed"):
        tuned(model, CELLS, model.transmission(CELLS)[:2])
