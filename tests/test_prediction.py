"""What a forecast says of noise, against closed forms, rays that are fitted, and volumes that are reconstructed."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.attenuation import linear_attenuation_per_mm, mass_attenuation_cm2_g
from calibration.geometry import Geometry
from calibration.response import SensorModel
from firmware_iface.errors import WrongUsage
from reconstruction.fdk import fdk
from reconstruction.ramp import WINDOWS
from reconstruction.spectral.prediction import (
    ENERGIES_KEV,
    THRESHOLDS_KEV,
    Beam,
    Forecaster,
    forecast,
    ideal_counter,
    lines_through,
    places_of,
    stated_counter,
    voxel_gain_per_mm2,
)
from reconstruction.spectral.ray_fit import fit_rays
from reconstruction.spectral.sample import Rod, Sample, ring_of
from reconstruction.volume import Grid
from tests.design_bench import model_of, reconstructed_noise, run, true_paths

GEOMETRY = Geometry(source_to_detector_mm=250.0, source_to_object_mm=200.0, pitch_mm=0.11, rows=128, cols=128)
ONE_ROD = Sample(diameter_mm=10.0, rods=(Rod(contents_mg_ml={"iodine": 5.0}, x_mm=0.0, y_mm=0.0, radius_mm=1.0),))
BEAM = Beam(kvp=100.0, filters_mm={"aluminium": 3.0})


class OneEnergy(Beam):
    """A beam of some lines, each of so many photons per mm2 and mAs."""

    def photons(self, distance_mm: float):
        lines = np.zeros_like(ENERGIES_KEV)
        for energy_kev in self.filters_mm:
            lines[np.argmin(np.abs(ENERGIES_KEV - float(energy_kev)))] = 1e6
        return lines


def test_two_lines_in_two_bins_are_two_equations() -> None:
    """Ideal bins at two energies: paths are a linear map of the logarithms, whose variances are 1 / counts."""
    beam = OneEnergy(kvp=100.0, filters_mm={"30.25": 0.0, "40.25": 0.0})
    table = Forecaster(ONE_ROD, GEOMETRY, ideal_counter()).table(beam)
    found = table.covariance(places_of(np.array([20.0, 35.0])))[0]
    energies = np.array([30.25, 40.25])
    depth = sum(linear_attenuation_per_mm(m, energies) * mm for m, mm in zip(ONE_ROD.matter, (8.0, 2.0), strict=True))
    counts = 1e6 * GEOMETRY.pitch_mm**2 * np.exp(-depth)
    matrix = np.stack([mass_attenuation_cm2_g(m, energies) / 10 for m in ("water", "iodine")], axis=1)
    inverse = np.linalg.inv(matrix)
    np.testing.assert_allclose(found, inverse @ np.diag(1 / counts) @ inverse.T, rtol=1e-9)


def test_more_bins_never_tell_less() -> None:
    table = Forecaster(ONE_ROD, GEOMETRY, stated_counter(SensorModel())).table(BEAM)
    few = table.variances(places_of(np.array([20.0, 50.0])))
    more = table.variances(places_of(np.array([20.0, 34.0, 50.0])))
    most = table.variances(places_of(np.array([20.0, 34.0, 50.0, 70.0])))
    assert few > more > most


def test_noise_falls_with_the_root_of_the_charge() -> None:
    table = Forecaster(ONE_ROD, GEOMETRY, stated_counter(SensorModel())).table(BEAM)
    places = places_of(np.array([18.0, 33.0, 50.0, 75.0]))
    one, four = (forecast(table, ONE_ROD, places, mas, 1.0) for mas in (0.01, 0.04))
    np.testing.assert_allclose(one.voxel_sd_mg_ml, 2 * four.voxel_sd_mg_ml, rtol=1e-12)
    np.testing.assert_allclose(2 * one.cnr, four.cnr, rtol=1e-12)
    np.testing.assert_allclose(4 * one.bin_counts, four.bin_counts, rtol=1e-12)


def test_bins_that_tell_nothing_apart_say_so() -> None:
    table = Forecaster(ONE_ROD, GEOMETRY, ideal_counter()).table(OneEnergy(kvp=100.0, filters_mm={"60.25": 0.0}))
    places = places_of(np.array([20.0, 30.0]))
    assert not np.isfinite(table.variances(places)).any()
    with pytest.raises(WrongUsage, match="cannot be told apart"):
        forecast(table, ONE_ROD, places, 1.0, 1.0)


def test_a_sample_without_agents_has_nothing_to_foretell() -> None:
    with pytest.raises(WrongUsage, match="no agent"):
        Forecaster(Sample(diameter_mm=10.0), GEOMETRY, ideal_counter())


def test_counts_of_bins_add_up_to_the_lowest_counter() -> None:
    table = Forecaster(ONE_ROD, GEOMETRY, stated_counter(SensorModel())).table(BEAM)
    places = places_of(np.array([18.0, 33.0, 50.0, 75.0]))
    found = forecast(table, ONE_ROD, places, 0.02, 1.0)
    assert found.open_bin_counts.sum() == pytest.approx(0.02 * table.open_counts[places[0]], rel=1e-12)
    assert found.bin_counts.sum() < found.open_bin_counts.sum()
    assert found.thresholds_kev.tolist() == [[18.0, 33.0, 50.0, 75.0]]


def test_fitted_rays_scatter_as_foretold() -> None:
    sample = ring_of([("iodine", 10.0), ("gadolinium", 10.0)], 20.0, "water")
    thresholds_kev, mas = np.array([18.0, 33.0, 50.0, 75.0]), 3.0
    table = Forecaster(sample, GEOMETRY, stated_counter(SensorModel()), n_lines=1).table(BEAM)
    expected = np.sqrt(np.einsum("lkk->lk", table.covariance(places_of(thresholds_kev)) / mas))[0]
    model, opened = model_of(sample, GEOMETRY, stated_counter(SensorModel()), BEAM, thresholds_kev, mas)
    true = true_paths(sample, lines_through(sample, 1))[:, :1]
    mean = opened[:, None] * model.transmission(true)
    counts = np.random.default_rng(2).poisson(mean, (4, 4000)).astype(float)
    fit = fit_rays(counts, opened, model)
    assert fit.is_converged.all()
    # The standard error of a standard deviation of 4000 is 1.1 %.
    np.testing.assert_allclose(fit.paths.std(axis=1, ddof=1), expected, rtol=0.045)
    np.testing.assert_allclose(fit.sigma.mean(axis=1), expected, rtol=0.02)
    assert (np.abs(fit.paths.mean(axis=1) - true[:, 0]) < 4 * expected / np.sqrt(4000) + 0.02 * expected).all()


def test_materials_of_a_reconstruction_scatter_as_foretold() -> None:
    """Poisson counts of all rays, each fitted by itself, the paths back-projected; rods' noise from slice to slice."""
    sample = ring_of([("iodine", 5.0), ("gadolinium", 5.0)], 9.0, "water")
    thresholds_kev = np.array([18.0, 33.0, 50.0, 75.0])
    foretold, observed, means = reconstructed_noise(
        sample, stated_counter(SensorModel()), BEAM, thresholds_kev, mas=0.6, n_views=90, n_rows=24
    )
    np.testing.assert_allclose(observed, foretold, rtol=0.06)
    for i, target in enumerate(sample.targets):
        own = sample.basis.index(target.agent)
        assert means[i, own] == pytest.approx(5.0, abs=0.25 + 0.02 * foretold[i, own])


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("n_views", [60, 90])
def test_noise_of_reconstructions_is_as_foretold(window: str, n_views: int) -> None:
    geometry = Geometry(source_to_detector_mm=250.0, source_to_object_mm=200.0, pitch_mm=0.5, rows=8, cols=96)
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 0.01, (1, n_views, 8, 96)).astype(np.float32)
    pitch_mm = 0.4
    grid = Grid(shape=(8, 40, 40), voxel_mm=pitch_mm)
    values = run(
        fdk(noise, np.arange(n_views) * 2 * np.pi / n_views, geometry, grid, window=window, is_continued=False)
    )
    _, y, x = grid.axes_mm()
    middle = values[0, 3:5][:, np.hypot(y[:, None], x) < 6.0]
    expected = 0.01 * np.sqrt(voxel_gain_per_mm2(geometry, n_views, window=window))
    assert middle.std() == pytest.approx(expected, rel=0.06)


def test_averages_over_cubes_are_as_foretold() -> None:
    geometry = Geometry(source_to_detector_mm=2500.0, source_to_object_mm=2000.0, pitch_mm=0.5, rows=16, cols=128)
    rng = np.random.default_rng(4)
    n_views = 240
    noise = rng.normal(0, 0.01, (1, n_views, 16, 128)).astype(np.float32)
    grid = Grid(shape=(16, 128, 128), voxel_mm=0.4)
    angles = np.arange(n_views) * 2 * np.pi / n_views
    values = run(fdk(noise, angles, geometry, grid, window="hann", is_continued=False))[0]
    cubes = values[:, 16:112, 16:112].reshape(4, 4, 24, 4, 24, 4).mean(axis=(1, 3, 5))
    expected = 0.01 * np.sqrt(voxel_gain_per_mm2(geometry, n_views, window="hann", voxel_mm=1.6))
    assert cubes.std() == pytest.approx(expected, rel=0.08)


def test_thresholds_are_found_where_they_stand() -> None:
    assert THRESHOLDS_KEV[places_of(np.array([18.0, 33.4]))].tolist() == [18.0, 33.5]
