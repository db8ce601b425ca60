"""Regularised reconstruction: laws of the minimisers, and what priors gain on a small spectral object."""

from __future__ import annotations

import itertools
from collections import deque

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize

from firmware_iface.errors import WrongUsage
from reconstruction.iterative import METHODS, PRIORS, reconstruct
from reconstruction.methods.denoisers import ByPrior
from reconstruction.methods.proximal import data_curvature, fista, largest_curvature, pdhg, plug_and_play
from reconstruction.operators import Operator
from reconstruction.priors import Huber, Quadratic, TotalVariation, VectorialTotalVariation

SHAPE = (2, 3, 5, 4)
N_VIEWS = 20
TV = TotalVariation(strength_per_mm=0.02)


class Matrix(Operator):
    """A dense matrix for each of the two channels, which are seen in views of 2 x 2 rays."""

    n_channels = 2

    def __init__(self, matrices: NDArray[np.float64]) -> None:
        self.matrices, self.domain_shape = matrices, SHAPE
        self.range_shape = (2, matrices.shape[1] // 4, 2, 2)

    def forward(self, x, out=None):
        return np.einsum("crj,cj->cr", self.matrices, x.reshape(2, -1)).reshape(self.range_shape)

    def adjoint(self, y, out=None):
        return np.einsum("crj,cr->cj", self.matrices, y.reshape(2, -1)).reshape(self.domain_shape)

    def subset(self, views):
        rows = np.arange(self.matrices.shape[1]).reshape(-1, 4)[views].ravel()
        return Matrix(self.matrices[:, rows])


@pytest.fixture(scope="module")
def problem():
    chance = np.random.default_rng(1)
    A = Matrix(chance.uniform(0, 1, (2, 4 * N_VIEWS, 60)) ** 3)
    block = np.zeros(SHAPE)
    block[:, 1:, 1:4, 1:3] = 1
    b = A.forward(block) + 0.1 * chance.normal(size=A.range_shape)
    return A, b, chance.uniform(0.5, 2, b.shape)


def last(iterates):
    return deque(iterates, maxlen=1).pop()


def whole(A, b, prior, **options):
    return last(fista(A, b, prior, n_subsets=1, **{"n_iterations": 300, "n_prox_iterations": 10, **options}))


def test_curvatures_are_those_of_the_matrix(problem) -> None:
    A, b, weights = problem
    hessians = [m.T @ (w[:, None] * m) for m, w in zip(A.matrices, weights.reshape(2, -1), strict=True)]
    largest = max(np.linalg.eigvalsh(hessian)[-1] for hessian in hessians)
    assert largest * (1 - 1e-3) < largest_curvature(A, weights, b, 200) <= largest
    assert largest * 0.95 < largest_curvature(A, weights, b) <= largest
    mean = np.mean([np.diag(hessian) for hessian in hessians])
    assert data_curvature(A, weights, b) == pytest.approx(mean, rel=0.2)  # of 120 random signs


@pytest.mark.parametrize("prior", [TV, VectorialTotalVariation(strength_per_mm=0.02)], ids=["tv", "tnv"])
@pytest.mark.parametrize("n_subsets", [1, 4])
def test_two_methods_find_the_same_minimum(problem, prior, n_subsets: int) -> None:
    A, b, weights = problem
    first = whole(A, b, prior, weights=weights)
    second = last(pdhg(A, b, prior, weights=weights, n_iterations=1000, n_subsets=n_subsets))
    assert second.objective == pytest.approx(first.objective, rel=1e-6)
    assert second.residual == pytest.approx(first.residual, rel=1e-5)
    assert np.abs(second.volume - first.volume).max() < 1e-4


def test_smooth_priors_reach_the_minimum_of_a_general_minimiser(problem) -> None:
    A, b, weights = problem
    scale = data_curvature(A, weights, b)
    for prior in (Huber(strength_per_mm=0.05, corner_per_mm=0.1), Quadratic(stiffness_relative=0.05)):

        def objective(flat, prior=prior):
            x = flat.reshape(SHAPE)
            difference = A.forward(x) - b
            value = (weights * difference**2).sum() / 2 + scale * prior.value(x)
            return value, (A.adjoint(weights * difference) + scale * prior.gradient(x)).ravel()

        bounds = [(0, None)] * int(np.prod(SHAPE))
        theirs = minimize(objective, np.zeros(len(bounds)), jac=True, bounds=bounds, options={"maxiter": 2000})
        ours = whole(A, b, prior, weights=weights)
        assert ours.objective == pytest.approx(theirs.fun, rel=1e-6)
        np.testing.assert_allclose(ours.volume.ravel(), theirs.x, atol=2e-3)


def test_proximal_gradient_descent_never_rises(problem) -> None:
    A, b, weights = problem
    descent = fista(A, b, TV, weights=weights, n_subsets=1, has_momentum=False, n_prox_iterations=50, n_iterations=40)
    objectives = [iterate.objective for iterate in descent]
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in itertools.pairwise(objectives))
    with_momentum = whole(A, b, TV, weights=weights, n_iterations=40)
    assert with_momentum.objective <= objectives[-1]


def test_too_few_inner_steps_become_more_until_the_minimum_is_met(problem) -> None:
    A, b, _ = problem
    strong = TotalVariation(strength_per_mm=0.1)
    least = whole(A, b, strong, n_iterations=1000, n_prox_iterations=100).objective
    found = last(fista(A, b, strong, n_subsets=1, n_iterations=200, n_prox_iterations=1))
    assert found.objective == pytest.approx(least, rel=1e-7)


def test_subsets_are_faster_at_first_and_end_where_one_ends(problem) -> None:
    A, b, weights = problem
    minimum = whole(A, b, TV, weights=weights)
    early = [last(fista(A, b, TV, weights=weights, n_subsets=n, n_iterations=3)).volume.copy() for n in (1, 5)]
    one, five = (np.linalg.norm(volume - minimum.volume) for volume in early)
    assert five < 0.6 * one
    end = last(fista(A, b, TV, weights=weights, n_subsets=5, n_iterations=300, n_prox_iterations=10))
    assert end.objective == pytest.approx(minimum.objective, rel=1e-6)


@pytest.mark.parametrize("method", [fista, pdhg])
def test_residual_and_objective_are_those_of_the_volume(problem, method) -> None:
    A, b, weights = problem
    scale = data_curvature(A, weights, b)
    for iterate in method(A, b, TV, weights=weights, n_subsets=1, n_iterations=3):
        squares = (weights * (A.forward(iterate.volume) - b) ** 2).sum((1, 2, 3))
        assert iterate.residual == pytest.approx(np.sqrt(squares.sum()))
        assert iterate.channel_residuals == pytest.approx(tuple(np.sqrt(squares)))
        assert iterate.objective == pytest.approx(squares.sum() / 2 + scale * TV.value(iterate.volume))


@pytest.mark.parametrize("method", [fista, pdhg])
@pytest.mark.parametrize("n_subsets", [1, 4])
def test_a_start_at_the_minimum_stays_there(problem, method, n_subsets: int) -> None:
    A, b, weights = problem
    minimum = whole(A, b, TV, weights=weights).volume
    options = {"n_prox_iterations": 100} if n_subsets == 1 else {"n_prox_iterations": 100, "n_iterations": 60}
    end = last(method(A, b, TV, weights=weights, start=minimum, n_subsets=n_subsets, **options))
    assert np.abs(end.volume - minimum).max() < 2e-3
    assert minimum is not end.volume


def test_values_below_zero_are_allowed_only_where_they_are_asked_for(problem) -> None:
    A, b, _ = problem
    for method in (fista, pdhg):
        assert last(method(A, -b, TV)).volume.min() >= 0
        assert last(method(A, -b, TV, is_non_negative=False)).volume.min() < -0.5


def test_strength_keeps_its_meaning_whatever_weights_and_views(problem) -> None:
    A, b, weights = problem
    once = whole(A, b, TV, weights=weights)
    twice = Matrix(np.concatenate([A.matrices, A.matrices], axis=1))
    seen_twice = np.concatenate([b, b], axis=1)
    again = whole(twice, seen_twice, TV, weights=5 * np.concatenate([weights, weights], axis=1))
    np.testing.assert_allclose(again.volume, once.volume, atol=1e-6)


def test_a_strong_prior_leaves_a_flat_image(problem) -> None:
    A, b, _ = problem
    end = whole(A, b, TotalVariation(strength_per_mm=50.0), n_prox_iterations=200)
    flat = [
        np.vdot(m.sum(1), data) / (m.sum(1) ** 2).sum() for m, data in zip(A.matrices, b.reshape(2, -1), strict=True)
    ]
    np.testing.assert_allclose(end.volume, np.broadcast_to(np.reshape(flat, (2, 1, 1, 1)), SHAPE), atol=1e-3)


def test_rays_of_no_weight_are_not_looked_at(problem) -> None:
    A, b, weights = problem
    weights = weights.copy()
    weights[:, 3] = 0
    spoilt = b.copy()
    spoilt[:, 3] = 1e3
    for method in (fista, pdhg):
        first, second = (last(method(A, data, TV, weights=weights)).volume for data in (b, spoilt))
        np.testing.assert_allclose(second, first, atol=1e-9)
    with pytest.raises(WrongUsage, match="nothing to reconstruct from"):
        last(fista(A, b, TV, weights=np.zeros(b.shape)))


def test_plug_and_play_with_a_prox_is_fista(problem) -> None:
    A, b, weights = problem
    plugged = last(plug_and_play(A, b, ByPrior(prior=TV, n_iterations=400), weights=weights, n_iterations=60))
    ours = whole(A, b, TV, weights=weights, n_iterations=60, n_prox_iterations=400)
    np.testing.assert_allclose(plugged.volume, ours.volume, atol=2e-3)
    with pytest.raises(WrongUsage, match="takes a denoiser"):
        last(plug_and_play(A, b, TV))


@pytest.mark.parametrize("name", PRIORS)
def test_priors_and_denoisers_run_by_name(problem, name: str) -> None:
    if name == "wavelet":
        pytest.importorskip("pywt")
    A, b, _ = problem
    options = {"strength_per_mm": "0.02"} if "tv" in name or name in ("huber", "gibbs") else {}
    options |= {
        "huber": {"corner_per_mm": "0.1"},
        "gibbs": {"corner_per_mm": "0.1"},
        "quadratic": {"stiffness_relative": "0.1"},
    }.get(name, {})
    is_denoiser = not PRIORS[name].startswith("priors:")
    options = {} if is_denoiser else options
    reference = np.ones(SHAPE) if name == "directional-tv" else None
    method = "plug-and-play" if is_denoiser else "fista"
    work = reconstruct(A, b, method=method, prior=name, options=options, reference=reference, iterations=4)
    while True:
        try:
            next(work)
        except StopIteration as end:
            result = end.value
            break
    assert np.isfinite(result.values).all()
    assert len(result.log.steps) == 4
    assert METHODS[method].has_prior
