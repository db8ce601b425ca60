"""Several passes as one scan: bins stand where they belong, and tell what no pass tells alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from calibration.attenuation import mass_attenuation_cm2_g
from calibration.geometry import Geometry
from calibration.material_basis import MaterialBasis
from calibration.material_basis import joined as joined_bases
from firmware_iface.errors import WrongUsage
from reconstruction.decomposition import decompose
from reconstruction.projections import LineIntegrals, join_pixels
from reconstruction.spectral.passes import joined
from reconstruction.volume import LINEAR_ATTENUATION, MASS_CONCENTRATION, Grid, Volume

MATERIALS = ("water", "iodine", "gadolinium", "gold", "hydroxyapatite")
PASSES_KEV = ((19.0, 33.0, 50.0, 80.0), (26.0, 41.0, 60.0, 95.0))
GRID = Grid(shape=(1, 3, 4), voxel_mm=0.5)


def basis_of(thresholds_kev: tuple[float, ...]) -> MaterialBasis:
    """Sharp bins of single energies, just above their thresholds."""
    energies_kev = np.asarray(thresholds_kev) + 1.5
    columns = [0.1 * mass_attenuation_cm2_g(name, energies_kev) for name in MATERIALS]
    return MaterialBasis(
        materials=MATERIALS,
        attenuation_per_mm_per_g_cm3=np.stack(columns, axis=1),
        thresholds_kev=thresholds_kev,
        tube_kvp=118.0,
    )


def volume_of(thresholds_kev: tuple[float, ...], concentrations: np.ndarray) -> Volume:
    basis = basis_of(thresholds_kev)
    values = np.tensordot(basis.attenuation_per_mm_per_g_cm3, concentrations, axes=1).astype(np.float32)
    return Volume(
        values=values,
        channels=tuple(f"{kev:g}" for kev in thresholds_kev),
        unit=LINEAR_ATTENUATION,
        grid=GRID,
        thresholds_kev=thresholds_kev,
        basis=basis,
    )


def test_five_materials_need_both_passes() -> None:
    rng = np.random.default_rng(1)
    truth = rng.uniform(0, 0.02, (len(MATERIALS), *GRID.shape))
    truth[0] = 1.0
    volumes = [volume_of(thresholds_kev, truth) for thresholds_kev in PASSES_KEV]
    with pytest.raises(WrongUsage, match="4 bins"):
        decompose(volumes[0].values, basis_of(PASSES_KEV[0]).attenuation_per_mm_per_g_cm3)
    both = joined(volumes)
    assert both.values.shape == (8, *GRID.shape)
    assert both.basis is not None
    np.testing.assert_allclose(
        decompose(both.values, both.basis.attenuation_per_mm_per_g_cm3), truth, rtol=1e-3, atol=2e-5
    )


def test_a_basis_of_passes_gives_each_pass_its_own() -> None:
    bases = [basis_of(thresholds_kev) for thresholds_kev in PASSES_KEV]
    both = joined_bases(bases)
    assert both.thresholds_kev == PASSES_KEV[0] + PASSES_KEV[1]
    for own, thresholds_kev in zip(bases, PASSES_KEV, strict=True):
        found = both.of_pass(thresholds_kev)
        assert found.thresholds_kev == thresholds_kev
        np.testing.assert_array_equal(found.attenuation_per_mm_per_g_cm3, own.attenuation_per_mm_per_g_cm3)
    foreign = (20.0, 30.0, 40.0, 90.0)
    assert both.of_pass(foreign) is both
    with pytest.raises(ValueError, match="other materials or voltages"):
        joined_bases([bases[0], replace(bases[1], tube_kvp=80.0)])
    with pytest.raises(ValueError, match="rise in every pass"):
        replace(both, thresholds_kev=(19.0, 33.0, 50.0, 26.0, 41.0, 60.0, 95.0, 98.0))


def test_only_bins_on_one_grid_are_joined() -> None:
    truth = np.ones((len(MATERIALS), *GRID.shape))
    first, second = (volume_of(thresholds_kev, truth) for thresholds_kev in PASSES_KEV)
    with pytest.raises(WrongUsage, match="one grid"):
        joined([first, replace(second, grid=replace(GRID, voxel_mm=0.4))])
    with pytest.raises(WrongUsage, match="bins in 1/mm"):
        joined([first, replace(second, unit=MASS_CONCENTRATION)])
    assert joined([first, replace(second, basis=None)]).basis is None


def test_joined_pixels_keep_the_mean_transmission_of_those_that_measured() -> None:
    rng = np.random.default_rng(3)
    geometry = Geometry(source_to_detector_mm=250.0, source_to_object_mm=200.0, pitch_mm=0.11, rows=8, cols=9)
    values = rng.uniform(0, 2, (2, 3, 8, 9)).astype(np.float32)
    is_estimated = rng.random(values.shape) < 0.2
    is_estimated[0, 0, :4, :4] = True
    measured = LineIntegrals(
        values=values,
        is_estimated=is_estimated,
        angles_rad=np.arange(3.0),
        lifts_mm=np.zeros(3),
        geometry=geometry,
        open_counts=np.array([100.0, 50.0]),
        n_tiles=1,
    )
    coarse = join_pixels(measured, 4)
    assert coarse.values.shape == (2, 3, 2, 2)
    np.testing.assert_allclose(coarse.open_counts, [1600, 800])
    assert coarse.geometry.pitch_mm == pytest.approx(0.44)
    block, is_block = values[1, 2, 4:, :4], ~is_estimated[1, 2, 4:, :4]
    assert coarse.values[1, 2, 1, 0] == pytest.approx(-np.log(np.exp(-block[is_block].astype(float)).mean()), rel=1e-5)
    assert coarse.is_estimated[0, 0, 0, 0]
    assert coarse.values[0, 0, 0, 0] == pytest.approx(-np.log(np.exp(-values[0, 0, :4, :4]).mean()), rel=1e-5)
    assert coarse.is_estimated.sum() == 1
