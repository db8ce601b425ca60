"""Fits of rays: hidden paths come back, as precisely as the counts allow and no better, whatever is missing."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

from firmware_iface.errors import WrongUsage
from reconstruction.kernels import ray_fit_cpu
from reconstruction.spectral.model import SpectralModel
from reconstruction.spectral.ray_fit import fit_rays, steady_information, weak_prior_sd
from reconstruction.symmetric import unpacked
from tests.spectral_models import made_up_model, mory_model

OPEN = np.array([4e4, 5e4, 3e4, 2e4])
TRUTH = np.array([30.0, 0.1])
"""3 cm of water with 10 mg/mL of iodine over 1 cm."""


def expected(model: SpectralModel, paths: np.ndarray, open_counts: np.ndarray) -> np.ndarray:
    return open_counts.reshape(-1, *[1] * (paths.ndim - 1)) * model.transmission(paths)


def truth_for(n: int) -> np.ndarray:
    return np.broadcast_to(TRUTH[:, None], (2, n)).copy()


def negative_log_likelihood(x, counts, model, open_counts, background=0.0, prior_sd=np.inf):
    rate = open_counts * model.transmission(x[:, None])[:, 0] + background
    return float((rate - counts * np.log(rate)).sum() + 0.5 * ((x / prior_sd) ** 2).sum())


def test_counts_without_noise_give_the_paths_back() -> None:
    model = made_up_model()
    rng = np.random.default_rng(1)
    paths = rng.uniform(0, 1, (2, 7, 11)) * np.array([60, 0.4])[:, None, None]
    fit = fit_rays(expected(model, paths, OPEN), OPEN, model)
    assert fit.is_converged.all()
    sigma = fit.sigma
    assert np.abs((fit.paths - paths) / sigma).max() < 0.03  # it stops within 0.014 sigma; float32 counts
    assert fit.chi_square.max() < 1e-3
    assert fit.paths.shape == (2, 7, 11)
    assert fit.n_degrees.tolist() == np.full((7, 11), 2).tolist()


@pytest.mark.parametrize("n_materials", [1, 2, 3, 4])
def test_information_is_the_models(n_materials: int) -> None:
    model = made_up_model(("water", "iodine", "gadolinium", "aluminum")[:n_materials])
    paths = np.array([20, 0.05, 0.02, 1.0])[:n_materials, None]
    fit = fit_rays(expected(model, paths, OPEN), OPEN, model, start=paths)
    assert unpacked(fit.information)[..., 0] == pytest.approx(model.fisher(paths, OPEN)[..., 0], rel=1e-5)


def test_paths_minimise_the_negative_log_likelihood() -> None:
    model = made_up_model()
    rng = np.random.default_rng(2)
    sd, background = np.array([50.0, 0.05]), np.array([30.0, 20.0, 10.0, 5.0])
    counts = rng.poisson(expected(model, truth_for(12), OPEN / 100) + background[:, None])
    fit = fit_rays(counts, OPEN / 100, model, background=background, prior_sd=sd)
    for ray in range(12):
        args = (counts[:, ray], model, OPEN / 100, background, sd)
        options = {"xatol": 1e-7, "fatol": 1e-9}
        best = minimize(negative_log_likelihood, TRUTH, args, method="Nelder-Mead", options=options)
        mine = negative_log_likelihood(fit.paths[:, ray].astype(float), *args)
        assert mine == pytest.approx(best.fun, abs=2e-4)


def test_spread_is_the_cramer_rao_bound_and_chi_square_its_law() -> None:
    model = made_up_model()
    counts = np.random.default_rng(3).poisson(expected(model, truth_for(20_000), OPEN))
    fit = fit_rays(counts, OPEN, model)
    assert fit.is_converged.all()
    bound = np.sqrt(np.diag(np.linalg.inv(model.fisher(TRUTH, OPEN))))
    assert fit.paths.std(axis=1) / bound == pytest.approx(1, abs=0.02)  # 4 standard errors of a standard deviation
    assert np.abs(fit.paths.mean(axis=1) - TRUTH) / bound == pytest.approx(0, abs=0.03)
    assert fit.sigma.mean(axis=1) / bound == pytest.approx(1, abs=0.01)
    assert fit.chi_square.mean() == pytest.approx(2, abs=4 * 2 / np.sqrt(20_000))
    deciles = np.histogram(fit.chance, bins=10, range=(0, 1))[0] / 20_000
    assert deciles == pytest.approx(0.1, abs=0.01)


def test_five_materials_in_eight_bins() -> None:
    model = made_up_model(
        ("water", "iodine", "gadolinium", "gold", "calcium"), (18.0, 28.0, 33.2, 42.0, 50.2, 60.0, 70.0, 81.0)
    )
    truth, opened = np.array([30, 0.1, 0.1, 0.1, 0.5]), np.full(8, 2e5)
    rate = opened * model.transmission(truth)
    fit = fit_rays(np.random.default_rng(10).poisson(np.full((8, 10_000), rate[:, None])), opened, model)
    bound = np.sqrt(np.diag(np.linalg.inv(model.fisher(truth, opened))))
    assert fit.paths.std(axis=1) / bound == pytest.approx(1, abs=0.03)
    assert np.abs(fit.paths.mean(axis=1) - truth) / bound == pytest.approx(0, abs=0.04)
    assert fit.chi_square.mean() == pytest.approx(3, abs=4 * np.sqrt(6 / 10_000))


def test_a_weak_prior_is_some_times_the_bound_and_none_of_the_bulk() -> None:
    model = made_up_model()
    bound = np.sqrt(np.diag(np.linalg.inv(model.fisher(TRUTH, OPEN))))
    assert weak_prior_sd(model, OPEN, TRUTH, times=4) == pytest.approx([np.inf, 4 * bound[1]], rel=1e-4)
    with pytest.raises(WrongUsage, match="apart"):
        weak_prior_sd(made_up_model(("water", "water")), OPEN, TRUTH)


def test_a_wrong_model_shows_in_chi_square() -> None:
    model = made_up_model()
    counts = np.random.default_rng(4).poisson(expected(model, truth_for(500), OPEN) * np.array([[1.05], [1], [1], [1]]))
    assert np.median(fit_rays(counts, OPEN, model).chance) < 0.01


def test_missing_bins_are_left_out_and_empty_rays_told() -> None:
    model = made_up_model()
    counts = expected(model, truth_for(4), OPEN)
    counts[1, 1] = np.nan  # masked
    counts[:3, 2] = np.nan  # one bin for two materials
    counts[:, 3] = np.nan
    fit = fit_rays(counts, OPEN, model)
    assert fit.paths[:, 1] == pytest.approx(TRUTH, rel=1e-3)
    assert fit.n_degrees.tolist() == [2, 1, -1, -2]
    without = SpectralModel(
        materials=model.materials, bins=tuple(np.delete(model.bins, 1)), weights=np.delete(model.weights, 1, 0),
        attenuation_per_mm_per_g_cm3=model.attenuation_per_mm_per_g_cm3, energies_kev=model.energies_kev,
    )  # fmt: skip
    assert unpacked(fit.information)[..., 1] == pytest.approx(without.fisher(TRUTH, np.delete(OPEN, 1)), rel=1e-2)
    assert np.isinf(fit.sigma[:, 2]).all()
    assert np.isfinite(fit.paths[:, 2]).all()
    assert np.isnan(fit.paths[:, 3]).all()
    assert fit.is_converged.tolist()[3] is False


def test_a_dead_pixels_open_beam_masks_its_bin() -> None:
    model = made_up_model()
    opened = np.broadcast_to(OPEN[:, None], (4, 3)).copy()
    opened[2, 0] = 0
    opened[3, 1] = np.nan
    opened[:, 2] *= [0.8, 1.1, 0.9, 1.2]
    fit = fit_rays(opened * model.transmission(truth_for(3)), opened, model)
    assert fit.n_degrees.tolist() == [1, 1, 2]
    assert fit.paths == pytest.approx(truth_for(3), rel=2e-3)


@pytest.mark.parametrize("scale", [1e-3, 1e-2])
def test_few_or_no_counts_are_rays_like_others(scale: float) -> None:
    model = made_up_model()
    counts = np.random.default_rng(5).poisson(expected(model, truth_for(2000), OPEN * scale))
    counts[:, 0] = 0
    sd = weak_prior_sd(model, OPEN * scale, TRUTH)
    fit = fit_rays(counts, OPEN * scale, model, prior_sd=np.where(np.isinf(sd), 1000.0, sd))
    assert np.isfinite(fit.paths).all()
    assert fit.is_converged.mean() > 0.999
    assert fit.paths[0, 0] > 30  # nothing came through


def test_starts_do_not_matter_much() -> None:
    model = made_up_model()
    counts = np.random.default_rng(6).poisson(expected(model, truth_for(3000), OPEN))
    fits = [fit_rays(counts, OPEN, model, start=s) for s in (None, np.zeros((2, 3000)), truth_for(3000))]
    for other in fits[1:]:
        assert np.abs((fits[0].paths - other.paths) / fits[0].sigma).max() < 0.06


def test_weights_that_do_not_go_with_the_noise_pull_a_mean_of_rays_aside_less() -> None:
    model, truth, opened = made_up_model(), np.array([30.0, 0.3]), np.full(4, 200.0)
    seen = (opened * model.transmission(truth))[:, None, None, None] * np.ones((4, 30, 30, 40))
    counts = np.random.default_rng(0).poisson(seen)
    fit = fit_rays(counts, opened, model)

    def bias(information: np.ndarray) -> np.ndarray:
        """Of the mean of all rays, weighted, in its standard errors."""
        whole, paths = unpacked(information).reshape(2, 2, -1), fit.paths.reshape(2, -1)
        mean = np.linalg.solve(whole.sum(axis=-1), np.einsum("kln,ln->k", whole, paths))
        bound = np.linalg.inv(fit.chi_square.size * model.fisher(truth, opened))
        return (mean - truth) / np.sqrt(np.diag(bound))

    own, steady = bias(fit.information), bias(steady_information(fit, counts, opened, model))
    assert (np.abs(own) > 7).all()
    assert (np.abs(steady) < 0.35 * np.abs(own)).all()
    at_truth = fit_rays(counts, opened, model, start=np.broadcast_to(truth[:, None, None, None], fit.paths.shape),
                        n_iterations=1)  # fmt: skip
    assert np.median(steady_information(fit, counts, opened, model) / at_truth.information) == pytest.approx(
        1, rel=0.05
    )


def test_a_strong_prior_holds_its_material() -> None:
    model = made_up_model()
    fit = fit_rays(expected(model, truth_for(1), OPEN), OPEN, model, prior_sd=[np.inf, 1e-6], prior_mean=[0.0, 0.2])
    assert fit.paths[1, 0] == pytest.approx(0.2, rel=1e-3)


def test_what_does_not_fit_is_refused() -> None:
    model = made_up_model()
    with pytest.raises(WrongUsage, match="the bins of the model"):
        fit_rays(np.ones((3, 5)), OPEN, model)
    with pytest.raises(WrongUsage, match="open_counts"):
        fit_rays(np.ones((4, 5)), np.ones((4, 6)), model)
    with pytest.raises(WrongUsage, match="above 0"):
        fit_rays(np.ones((4, 5)), OPEN, model, prior_sd=[1.0, 0.0])
    many = made_up_model(("water", "iodine", "gadolinium", "aluminum", "calcium"))
    with pytest.raises(WrongUsage, match="no more materials than bins"):
        fit_rays(np.ones((4, 5)), OPEN, many)


def test_a_background_is_no_object() -> None:
    model, background = made_up_model(), np.array([400.0, 300.0, 200.0, 100.0])
    counts = expected(model, truth_for(5), OPEN) + background[:, None]
    fit = fit_rays(counts, OPEN, model, background=background)
    assert fit.paths == pytest.approx(truth_for(5), rel=1e-3)
    assert (fit_rays(counts, OPEN, model).paths[0] < 29.5).all()
    with_more = model.fisher(TRUTH, OPEN)
    assert (np.diag(unpacked(fit.information)[..., 0]) < np.diag(with_more)).all()  # it only adds noise


def test_no_rays_and_dead_rays_are_no_error() -> None:
    assert fit_rays(np.empty((4, 0)), OPEN, made_up_model()).paths.shape == (2, 0)
    dead = fit_rays(np.full((4, 3, 2), np.nan), OPEN, made_up_model())
    assert np.isnan(dead.paths).all()
    assert not dead.is_converged.any()
    assert (dead.information == 0).all()


def test_the_kernels_exponential_is_exact() -> None:
    exponents = np.array([[-1.0], [-0.37], [2.0], [0.0]])
    paths = np.linspace(-3, 400, 1001)[None]
    kept, power = np.empty((4, 1001)), np.empty(1001)
    ray_fit_cpu.keep(exponents, paths, kept, power)
    assert kept == pytest.approx(2.0 ** (exponents @ paths), rel=1e-11)


def test_the_kernels_logarithm_is_exact() -> None:
    values = np.concatenate([np.geomspace(1e-30, 1e12, 2001), 2.0 ** np.arange(-20, 20), [math.sqrt(0.5), 0.99999999]])
    logs, power = np.empty_like(values), np.empty_like(values)
    ray_fit_cpu.logarithms(values, logs, power)
    assert logs == pytest.approx(np.log(values), rel=1e-10, abs=1e-10)


@pytest.fixture(scope="module")
def published(test_data: Path) -> tuple[SpectralModel, np.ndarray, np.ndarray, np.ndarray]:
    """The scanner of Mory 2018, its open beam, and rays: to 270 mm of water, some with iodine or gadolinium."""
    model, opened = mory_model(test_data)
    rng, n = np.random.default_rng(8), 20_000
    contrast = rng.uniform(0, 0.065, (2, n)) * (rng.random((2, n)) < 0.3)
    truth = np.concatenate([contrast, rng.uniform(0, 270, (1, n))])
    return model, opened, truth, rng.poisson(expected(model, truth, opened)).astype(np.float32)


def test_the_published_scanner_reaches_its_bound(published) -> None:
    model, opened, truth, counts = published
    fit = fit_rays(counts, opened, model, prior_sd=[0.3, 0.3, np.inf])
    bound = np.sqrt(np.einsum("...kk->...k", np.linalg.inv(np.moveaxis(model.fisher(truth, opened), -1, 0)))).T
    off = (fit.paths - truth) / bound
    spread = off.std(axis=1)
    assert ((spread > 0.97) & (spread < 1.05)).all()
    assert (np.abs(off) > 6).any(axis=0).sum() <= 2  # of 20,000
    assert fit.is_converged.mean() > 0.9999
    assert fit.chi_square.mean() == pytest.approx(2, abs=0.06)


def test_no_start_ends_in_a_worse_minimum(published) -> None:
    model, opened, truth, counts = published
    sd = np.array([0.3, 0.3, np.inf])
    bound = np.sqrt(np.einsum("...kk->...k", np.linalg.inv(np.moveaxis(model.fisher(truth, opened), -1, 0)))).T
    away = truth + 3 * bound * np.random.default_rng(9).normal(size=truth.shape)
    fits = [fit_rays(counts, opened, model, prior_sd=sd, start=start) for start in (None, 0 * truth, truth, away)]
    rates = [expected(model, fit.paths.astype(float), opened) for fit in fits]
    objectives = np.stack(
        [
            (rate - counts * np.log(rate)).sum(axis=0) + 0.5 * ((fit.paths / sd[:, None]) ** 2).sum(axis=0)
            for fit, rate in zip(fits, rates, strict=True)
        ]
    )
    assert (objectives - objectives.min(axis=0)).max() < 1e-3
