"""Photons that count twice: bins vary together, and a fit that knows it tells its errors and misfits as they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from reconstruction.spectral.compression import compress
from reconstruction.spectral.model import SpectralModel
from reconstruction.spectral.ray_fit import fit_rays
from reconstruction.symmetric import unpacked
from tests.spectral_models import made_up_model

PHOTONS = 2e5
TRUTH = np.array([20.0, 0.08])
SHARED = 0.6
"""Share of the photons whose charge two pixels of a group divide, each part counting in the bin that it falls into."""


class Group:
    """Four pixels summed: what their bins count of each photon, drawn event by event."""

    def __init__(self) -> None:
        edges = np.array([8.0, 20, 33, 45, 60, 1e3])
        single = made_up_model(("water", "iodine"), tuple(edges[:-1]))
        energies = single.energies_kev
        photons = (100.5 - energies) / energies * np.exp(-((28 / energies) ** 3))
        self.photons = PHOTONS * photons / photons.sum()
        n_bins, n_nodes = 5, len(energies)
        # chance that a photon counts in bins a and b, a above b, and that it counts once, in bin a
        self.twice, self.once = np.zeros((n_bins, n_bins, n_nodes)), np.zeros((n_bins, n_nodes))
        parts = (np.arange(50) + 0.5) / 100
        for node, energy in enumerate(energies):
            self.once[np.digitize(energy, edges) - 1, node] += 1 - SHARED
            for part in parts:
                low, high = np.digitize([part * energy, (1 - part) * energy], edges) - 1
                if low < 0:
                    self.once[high, node] += SHARED / len(parts)
                else:
                    self.twice[high, low, node] += SHARED / len(parts)
        counted = self.once + self.twice.sum(axis=0) + self.twice.sum(axis=1)
        both = self.twice + np.swapaxes(self.twice, 0, 1)
        squared = both + np.eye(n_bins)[..., None] * counted  # n_a^2 is 4 where both parts fall into a: 2 of each
        seen = counted * self.photons
        self.open = seen.sum(axis=1)
        root = np.sqrt(self.open[:, None] * self.open)
        self.model = SpectralModel(
            materials=single.materials,
            bins=tuple(f"{low:g} keV" for low in edges[:-1]),
            weights=seen / self.open[:, None],
            attenuation_per_mm_per_g_cm3=single.attenuation_per_mm_per_g_cm3,
            energies_kev=energies,
            co_weights=squared * self.photons / root[..., None],
        )

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        left = self.photons * np.exp(-self.model.attenuation_per_mm_per_g_cm3 @ TRUTH)
        counts = rng.poisson((self.once @ left)[:, None], (5, n))
        for high in range(5):
            for low in range(5):
                events = rng.poisson(self.twice[high, low] @ left, n)
                counts[high] += events
                counts[low] += events
        return counts


@pytest.fixture(scope="module")
def group() -> Group:
    return Group()


def test_covariance_is_that_of_drawn_counts(group: Group) -> None:
    counts = group.draw(40_000, np.random.default_rng(1))
    expected = group.model.covariance(TRUTH, group.open)
    sigma = np.sqrt(np.outer(np.diag(expected), np.diag(expected)) / 40_000)
    assert (np.cov(counts) - expected) / sigma == pytest.approx(0, abs=6)
    assert counts.mean(axis=1) == pytest.approx(group.open * group.model.transmission(TRUTH), rel=1e-3)
    assert expected[0, 2] > 0.1 * np.sqrt(expected[0, 0] * expected[2, 2])  # they do vary together


def test_knowing_the_covariance_tells_errors_and_misfits_right(group: Group) -> None:
    counts = group.draw(20_000, np.random.default_rng(2))
    knowing, plain = fit_rays(counts, group.open, group.model), fit_rays(counts, group.open, independent(group.model))
    assert knowing.is_converged.all()
    bound = np.sqrt(np.diag(np.linalg.inv(group.model.fisher(TRUTH, group.open))))
    assert knowing.paths.std(axis=1) / bound == pytest.approx(1, abs=0.02)
    assert (plain.paths.std(axis=1) / bound > 0.99).all()
    assert knowing.sigma.mean(axis=1) / bound == pytest.approx(1, abs=0.01)
    assert np.abs(knowing.paths.mean(axis=1) - TRUTH) / bound == pytest.approx(0, abs=0.05)
    assert knowing.chi_square.mean() == pytest.approx(3, abs=0.07)
    assert plain.chi_square.mean() < 2.9  # measured: 2.876, for bins that rise and fall together fit too well
    assert np.histogram(knowing.chance, bins=10, range=(0, 1))[0] / 20_000 == pytest.approx(0.1, abs=0.01)
    assert np.linalg.inv(unpacked(knowing.information[:, 0])) == pytest.approx(
        np.linalg.inv(group.model.fisher(knowing.paths[:, 0], group.open)), rel=1e-3
    )


def test_independent_bins_are_a_special_case(group: Group) -> None:
    plain = independent(group.model)
    diagonal = np.eye(5)[..., None] * plain.weights
    same = replace(plain, co_weights=diagonal)
    assert same.covariance(TRUTH, group.open) == pytest.approx(plain.covariance(TRUTH, group.open))
    assert same.fisher(TRUTH, group.open) == pytest.approx(plain.fisher(TRUTH, group.open))
    counts = np.random.default_rng(3).poisson(np.full((5, 200), (group.open * plain.transmission(TRUTH))[:, None]))
    counts = counts.astype(float)
    counts[2, 0] = np.nan
    options = {"background": np.full(5, 3.0), "prior_sd": [np.inf, 1.0]}
    fits = [fit_rays(counts, group.open, model, **options) for model in (plain, same)]
    assert np.abs((fits[0].paths - fits[1].paths) / fits[0].sigma).max() < 0.03
    assert fits[1].chi_square == pytest.approx(fits[0].chi_square, abs=0.01)
    assert fits[1].information == pytest.approx(fits[0].information, rel=1e-3)


def test_counters_that_count_all_above_a_threshold_tell_as_much_as_their_differences() -> None:
    bins, opened = made_up_model(), np.array([4e4, 5e4, 3e4, 2e4])
    at_least = np.triu(np.ones((4, 4)))
    opened_above = at_least @ opened
    seen = at_least @ (bins.weights * opened[:, None])
    root = np.sqrt(opened_above[:, None] * opened_above)
    both = seen[np.maximum.outer(np.arange(4), np.arange(4))]  # what is above the higher threshold is above both
    above = replace(bins, weights=seen / opened_above[:, None], co_weights=both / root[..., None])
    assert above.fisher(TRUTH, opened_above) == pytest.approx(bins.fisher(TRUTH, opened))
    counts = np.random.default_rng(5).poisson(np.full((4, 5000), (opened * bins.transmission(TRUTH))[:, None]))
    best = fit_rays(counts, opened, bins)
    knowing, plain = (fit_rays(at_least @ counts, opened_above, model) for model in (above, independent(above)))
    assert np.abs((knowing.paths - best.paths) / best.sigma).max() < 0.15
    assert np.abs((knowing.paths - best.paths) / best.sigma).mean() < 0.02
    assert knowing.chi_square.mean() == pytest.approx(best.chi_square.mean(), rel=0.01)
    assert (plain.paths.std(axis=1) > 1.1 * knowing.paths.std(axis=1)).all()
    assert knowing.paths.std(axis=1) / knowing.sigma.mean(axis=1) == pytest.approx(1, abs=0.04)


def test_a_compressed_model_keeps_the_covariance(group: Group) -> None:
    small = compress(group.model, [40.0, 0.3]).model
    assert len(small.energies_kev) < 0.6 * len(group.model.energies_kev)
    paths = np.random.default_rng(4).uniform(0, 1, (2, 50)) * [[40.0], [0.3]]
    expected = group.model.covariance(paths, group.open)
    root = np.sqrt(np.einsum("aan->an", expected))
    error = (small.covariance(paths, group.open) - expected) / (root[:, None] * root)
    assert np.abs(error).max() < 1e-3


def independent(model: SpectralModel) -> SpectralModel:
    return replace(model, co_weights=None)
