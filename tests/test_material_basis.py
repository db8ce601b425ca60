"""Laws of the measured material basis."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.attenuation import linear_attenuation_per_mm, material, solution
from calibration.geometry import Geometry
from calibration.material_basis import CellMeasurement, MaterialBasis, measure_basis, path_factors, robust_mean
from firmware_iface.errors import CalibrationMissing

GEOMETRY = Geometry(source_to_detector_mm=250.0, source_to_object_mm=200.0, pitch_mm=0.9, rows=16, cols=16)
ENERGIES_KEV = np.array([28.0, 42.0, 60.0, 90.0])
CELLS = {"water": 0.0, "iodine": 10.0, "gadolinium": 12.0, "hydroxyapatite": 150.0}
DENSITIES = {name: material(name).density_g_cm3 for name in CELLS}


def _counts(open_beam: np.ndarray, name: str, thickness_mm: float = 10.0) -> np.ndarray:
    """Monochromatic bins behind a cell: exact, so that the basis must be the tables' own."""
    liquid = material("water") if name == "water" else solution(material("water"), material(name), CELLS[name])
    per_mm = linear_attenuation_per_mm(liquid, ENERGIES_KEV)
    return open_beam * np.exp(-per_mm[:, None, None] * thickness_mm * path_factors(GEOMETRY))


def _cells(open_beam: np.ndarray) -> list[CellMeasurement]:
    return [
        CellMeasurement(material=name, concentration_mg_ml=c, thickness_mm=10.0, counts=_counts(open_beam, name))
        for name, c in CELLS.items()
    ]


def _measure(open_beam: np.ndarray, cells: list[CellMeasurement], **options: object) -> MaterialBasis:
    return measure_basis(
        open_beam,
        cells,
        geometry=GEOMETRY,
        thresholds_kev=(18.0, 33.0, 50.0, 75.0),
        densities_g_cm3=DENSITIES,
        **options,  # type: ignore[arg-type]
    )


def _truth() -> np.ndarray:
    return np.stack([linear_attenuation_per_mm(material(m), ENERGIES_KEV) / DENSITIES[m] for m in CELLS], axis=1)


def test_monochromatic_bins_give_the_tables_own_attenuation() -> None:
    open_beam = np.random.default_rng(1).uniform(500, 1500, (4, 16, 16))
    basis = _measure(open_beam, _cells(open_beam))
    assert basis.materials == tuple(CELLS)
    np.testing.assert_allclose(basis.attenuation_per_mm_per_g_cm3, _truth(), rtol=1e-9)


def test_poisson_counts_converge_to_it_and_bad_pixels_do_not_count() -> None:
    rng = np.random.default_rng(2)
    open_beam, n_frames = np.full((4, 16, 16), 800.0), 400
    is_bad = np.zeros((16, 16), dtype=bool)
    is_bad[3:5, 3:9] = True

    def seen(expected: np.ndarray) -> np.ndarray:
        return np.where(is_bad, 5.0, rng.poisson(expected * n_frames) / n_frames)

    cells = [
        CellMeasurement(
            material=c.material, concentration_mg_ml=c.concentration_mg_ml, thickness_mm=10.0, counts=seen(c.counts)
        )
        for c in _cells(open_beam)
    ]
    basis = _measure(seen(open_beam), cells, is_bad=is_bad)
    error = basis.attenuation_per_mm_per_g_cm3 - _truth()
    n_photons = 800 * n_frames * (~is_bad).sum()
    for column, concentration in enumerate(CELLS.values()):
        per_g_cm3 = max(concentration, 1000.0 if concentration == 0 else 0) / 1000
        assert np.abs(error[:, column]).max() < 5 * np.sqrt(3 * 10 / n_photons) / 10 / per_g_cm3


def test_path_factors_are_one_in_the_centre_and_those_of_the_corner_ray() -> None:
    geometry = Geometry(source_to_detector_mm=10.0, source_to_object_mm=5.0, pitch_mm=2.0, rows=3, cols=5)
    factors = path_factors(geometry)
    assert factors.shape == (3, 5)
    assert factors[1, 2] == pytest.approx(1.0)
    assert factors[0, 4] == pytest.approx(np.sqrt(10**2 + 2**2 + 4**2) / 10)


def test_robust_mean_ignores_outliers_and_keeps_the_mean_of_a_normal_law() -> None:
    values = np.random.default_rng(3).normal(5, 1, (2, 10_000))
    values[:, :50], values[:, 50:600] = 1e6, 12
    values[0, 600] = np.nan
    assert robust_mean(values) == pytest.approx([5, 5], abs=0.05)


def test_robust_mean_is_as_sharp_as_the_plain_one_where_there_are_no_outliers() -> None:
    values = np.random.default_rng(4).normal(5, 1, (40, 900))
    difference = robust_mean(values) - values.mean(axis=1)
    assert np.sqrt(np.mean(difference**2)) < 0.5 / np.sqrt(900)  # sigma of the mean itself: 1 / sqrt(900)


def test_solutes_need_a_cell_of_water() -> None:
    open_beam = np.full((4, 16, 16), 100.0)
    with pytest.raises(CalibrationMissing, match="none is of water") as caught:
        _measure(open_beam, _cells(open_beam)[1:])
    assert "water cell" in caught.value.hint


def test_a_gram_counts_as_a_gram_whatever_the_density_of_the_solvent() -> None:
    open_beam = np.full((4, 16, 16), 1e5)
    water = CellMeasurement(
        material="water", concentration_mg_ml=0, thickness_mm=10.0, counts=_counts(open_beam, "water")
    )
    basis = measure_basis(
        open_beam, [water], geometry=GEOMETRY, thresholds_kev=(18.0, 33.0, 50.0, 75.0), densities_g_cm3={"water": 0.8}
    )
    np.testing.assert_allclose(basis.attenuation_per_mm_per_g_cm3[:, 0], _truth()[:, 0] / 0.8, rtol=1e-9)


def test_a_pixel_that_is_dark_in_one_bin_counts_in_none() -> None:
    open_beam = np.random.default_rng(1).uniform(500, 1500, (4, 16, 16))
    cells = _cells(open_beam)
    cells[1].counts[3, 5, 5] = 0
    cells[1].counts[0, 5, 5] *= 0.9
    np.testing.assert_allclose(_measure(open_beam, cells).attenuation_per_mm_per_g_cm3, _truth(), rtol=1e-9)


def test_a_cell_that_lets_nothing_through_is_refused() -> None:
    open_beam = np.full((4, 16, 16), 100.0)
    cells = _cells(open_beam)
    cells[1].counts[2] = 0
    with pytest.raises(CalibrationMissing, match="no photon came through the iodine cell in bin 2"):
        _measure(open_beam, cells)


@pytest.mark.parametrize(
    ("materials", "thresholds_kev", "message"),
    [
        (("a", "b"), (1.0, 2.0, 3.0), "does not match"),
        (("a", "a"), (1.0, 2.0), "twice"),
        (("a", "b"), (2.0, 1.0), "rising"),
    ],
)
def test_a_basis_that_cannot_be_is_refused(
    materials: tuple[str, ...], thresholds_kev: tuple[float, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        MaterialBasis(materials=materials, attenuation_per_mm_per_g_cm3=np.ones((2, 2)), thresholds_kev=thresholds_kev)
