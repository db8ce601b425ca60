"""Likelihoods of counts: the laws of their maxima, and what chance leaves."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy import optimize, stats

from calibration.geometry import Geometry
from firmware_iface.errors import WrongUsage
from reconstruction.methods.least_squares import cgls, os_sart
from reconstruction.methods.poisson import line_integral_weights, osem, pwls, transmission
from reconstruction.methods.stopping import Discrepancy
from reconstruction.methods.surrogates import RUNAWAY
from reconstruction.projector import Projector
from reconstruction.scan_geometry import ScanGeometry
from reconstruction.volume import Grid
from tests.matrix_operator import random_operator
from tests.test_least_squares import last, volumes

FLAT = 3000.0
SCATTER = 40.0


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def transmission_counts(rng, A, truth, flat=FLAT):
    return rng.poisson(flat * np.exp(-A.forward(truth)) + SCATTER).astype(np.float64)


def deviance(y, expected):
    """Half the deviance, by SciPy's Poisson distribution."""
    return (stats.poisson.logpmf(y, y) - stats.poisson.logpmf(y, expected)).sum()


def emission(rng, scale=30.0, **shape):
    A = random_operator(rng, **shape)
    truth = scale * rng.uniform(0, 1, A.domain_shape) * (rng.random(A.domain_shape) < 0.7)
    return A, truth, rng.poisson(A.forward(truth) + 2.0).astype(np.float64)


def test_mlem_raises_the_likelihood_at_every_step_and_tells_it(rng):
    A, _, y = emission(rng, n_channels=2)
    told = []
    for iterate in osem(A, y, background=2.0, n_subsets=1, n_iterations=40):
        expected = A.forward(iterate.volume) + 2.0
        assert iterate.objective == pytest.approx(deviance(y, expected))
        np.testing.assert_allclose(
            np.square(iterate.channel_residuals), ((y - expected) ** 2 / expected).sum((1, 2)), rtol=1e-9
        )
        told.append(iterate.objective)
    assert all(later <= earlier for earlier, later in pairwise(told))


def test_mlem_is_its_formula_and_keeps_the_total(rng):
    A, _, y = emission(rng)
    matrix, x = A.dense(), np.full(A.domain_shape[1], 3.0)
    for iterate in osem(A, y, start=x[None], n_subsets=1, n_iterations=5):
        x = x * (matrix.T @ (y.ravel() / (matrix @ x))) / matrix.sum(0)
        np.testing.assert_allclose(iterate.volume[0], x, rtol=1e-10)
        assert A.forward(iterate.volume).sum() == pytest.approx(y.sum())


def test_mlem_ends_where_a_general_minimiser_does(rng):
    A, _, y = emission(rng, n_voxels=6)
    matrix = A.dense()

    def loss(x):
        expected = matrix @ x + 2.0
        return expected.sum() - y.ravel() @ np.log(expected), matrix.sum(0) - matrix.T @ (y.ravel() / expected)

    best = optimize.minimize(loss, np.ones(6), jac=True, bounds=[(0, None)] * 6, options={"ftol": 1e-15})
    found = last(osem(A, y, background=2.0, n_subsets=1, n_iterations=3000)).volume
    np.testing.assert_allclose(found[0], best.x, atol=1e-2)


def test_one_subset_is_the_whole_and_subsets_get_there_sooner(rng):
    A, truth, _ = emission(rng)
    y = A.forward(truth)
    whole = volumes(osem(A, y, n_subsets=1, n_iterations=30))
    parts = volumes(osem(A, y, n_subsets=4, n_iterations=30))
    errors = [np.abs(v - truth).max() for v in (whole[7], whole[29], parts[7])]
    assert errors[2] < 1.5 * errors[1] < errors[0]


@pytest.mark.parametrize("n_subsets", [1, 4])
def test_consistent_counts_hold_still_at_the_truth(rng, n_subsets):
    A, truth, _ = emission(rng)
    y = A.forward(truth) + 2.0
    for iterate in osem(A, y, background=2.0, start=truth, n_subsets=n_subsets, n_iterations=3):
        np.testing.assert_allclose(iterate.volume, truth, atol=1e-9)


@pytest.mark.parametrize("n_subsets", [1, 12])
def test_em_stays_non_negative_and_out_of_what_no_ray_sees(rng, n_subsets):
    A, _, y = emission(rng, scale=1.0)
    A.matrices[..., 3] = 0
    end = last(osem(A, y, n_subsets=n_subsets, n_iterations=30))
    assert end.volume.min() >= 0
    assert end.volume[0, 3] == 0
    assert np.isfinite(end.objective)


def test_the_monotone_curvature_never_makes_the_likelihood_worse(rng):
    A = random_operator(rng)
    truth = rng.uniform(0, 2.5, A.domain_shape)  # up to hundreds of photons stopped in thousands, down to scatter alone
    y = transmission_counts(rng, A, truth)
    told = []
    for iterate in transmission(A, y, flat=FLAT, background=SCATTER, is_monotone=True, n_iterations=60):
        expected = FLAT * np.exp(-A.forward(iterate.volume)) + SCATTER
        assert iterate.objective == pytest.approx(deviance(y, expected))
        assert iterate.residual**2 == pytest.approx(((y - expected) ** 2 / expected).sum())
        assert iterate.volume.min() >= 0
        told.append(iterate.objective)
    assert all(later <= earlier + 1e-9 for earlier, later in pairwise(told))


@pytest.mark.parametrize("options", [{"is_monotone": True}, {"n_subsets": 1}, {"n_subsets": 4}], ids=str)
def test_transmission_ends_where_a_general_minimiser_does(rng, options):
    A = random_operator(rng, n_voxels=6)
    y = transmission_counts(rng, A, rng.uniform(0, 0.7, A.domain_shape))
    matrix = A.dense()

    def loss(x):
        through = FLAT * np.exp(-matrix @ x)
        expected = through + SCATTER
        return expected.sum() - y.ravel() @ np.log(expected), matrix.T @ (through * (y.ravel() / expected - 1))

    best = optimize.minimize(loss, np.full(6, 0.1), jac=True, bounds=[(0, None)] * 6, options={"ftol": 1e-15})
    found = last(transmission(A, y, flat=FLAT, background=SCATTER, n_iterations=400, **options)).volume
    np.testing.assert_allclose(found[0], best.x, atol=2e-4)


def test_the_likelihood_is_right_where_logarithms_are_biased(rng):
    """Few photons: the mean of -log is too high, and counts of 0 have none; the likelihood has no such error."""
    A = random_operator(rng, n_views=400, n_voxels=6)
    truth = np.full(A.domain_shape, 0.6)
    y = rng.poisson(6.0 * np.exp(-A.forward(truth))).astype(np.float64)
    likely = last(transmission(A, y, flat=6.0, n_iterations=100)).volume
    integrals = -np.log(np.maximum(y, 0.5) / 6.0)
    by_log = last(cgls(A, integrals, weights=line_integral_weights(y), n_iterations=10)).volume
    assert np.abs(likely - truth).mean() < 0.05
    assert np.abs(by_log - truth).mean() > 0.1


def behind_metal(rng):
    """A scan of two metal pins in plastic, some of whose rays no photon came along: operator, truth, counts."""
    geometry = Geometry(source_to_detector_mm=150, source_to_object_mm=100, pitch_mm=1.0, rows=4, cols=64)
    scan = ScanGeometry.circular(geometry, np.arange(60) * 2 * np.pi / 60)
    A = Projector(scan, Grid(shape=(3, 40, 40), voxel_mm=1.0), dtype=np.float64)
    _, y, x = A.grid.axes_mm()
    truth = np.where(np.hypot(y[:, None], x) < 15, 0.02, 0.0) + np.where(np.hypot(y[:, None] - 5, x - 4) < 4, 1.0, 0)
    truth = truth + np.where(np.hypot(y[:, None] + 6, x + 4) < 3, 0.8, 0) + np.zeros(A.domain_shape)
    counts = rng.poisson(500 * np.exp(-A.forward(truth)) + 1.0).astype(np.float64)
    assert 0.01 < (counts == 0).mean() < 0.1
    return A, truth, counts, np.log(500 / np.maximum(counts - 1.0, 0.5)), line_integral_weights(counts, 1.0)


def test_behind_metal_the_likelihood_is_nearer_than_weighted_squares(rng):
    """Where no photon comes through, a logarithm says nothing and its weight is 0; a count of 0 says: much."""
    A, truth, counts, integrals, weights = behind_metal(rng)

    def errors(iterates):
        return [np.linalg.norm(i.volume - truth) / np.linalg.norm(truth) for i in iterates]

    squares = errors(pwls(A, integrals, weights=weights, is_non_negative=True, n_iterations=15))
    likely = errors(transmission(A, counts, flat=500.0, background=1.0, n_iterations=3))
    assert likely[-1] < 0.75 * min(squares)


def test_steps_that_run_away_are_caught(rng):
    """One view at a time, with momentum and weights from 0 to hundreds: nothing holds such a descent but its brakes."""
    A, _, _, integrals, weights = behind_metal(rng)
    nothing = os_sart(A, integrals, weights=weights, start=np.zeros(A.domain_shape), n_subsets=1)
    at_first = next(nothing).objective
    told = [i.objective for i in os_sart(A, integrals, weights=weights, n_subsets=60, n_iterations=6)]
    assert max(told) < RUNAWAY * at_first
    assert all(later < earlier for earlier, later in pairwise(told))


def test_weights_are_one_over_the_variance_of_a_line_integral(rng):
    for mean in (200.0, 2000.0):
        y = rng.poisson(mean + SCATTER, 200_000).astype(np.float64)
        integrals = -np.log((y - SCATTER) / FLAT)
        assert line_integral_weights(y, SCATTER).mean() * integrals.var() == pytest.approx(1, abs=0.04)
    assert line_integral_weights(np.array([0.0, 30.0]), SCATTER).tolist() == [0.0, 0.0]


def test_where_photons_are_many_weighted_least_squares_are_the_likelihood(rng):
    A = random_operator(rng)
    flat = 1e7
    y = rng.poisson(flat * np.exp(-A.forward(rng.uniform(0, 0.5, A.domain_shape)))).astype(np.float64)
    options = {"n_subsets": 1, "is_non_negative": True, "n_iterations": 1500}
    likely = last(transmission(A, y, flat=flat, **options)).volume
    squares = last(pwls(A, -np.log(y / flat), weights=line_integral_weights(y), **options)).volume
    np.testing.assert_allclose(likely, squares, atol=2e-5)


@pytest.mark.parametrize("method", [transmission, pwls])
def test_chi_square_is_one_where_the_discrepancy_principle_stops(rng, method):
    A = random_operator(rng, n_views=100, n_rays=20, n_voxels=300)
    y = transmission_counts(rng, A, rng.uniform(0, 0.04, A.domain_shape))
    rule = Discrepancy(n_data=y.size)
    if method is transmission:
        iterates = transmission(A, y, flat=FLAT, background=SCATTER, n_iterations=200)
    else:
        integrals = -np.log(np.maximum(y - SCATTER, 1) / FLAT)
        iterates = pwls(A, integrals, weights=line_integral_weights(y, SCATTER), n_iterations=200)
    steps = []
    for iterate in iterates:
        steps.append(iterate)
        if rule.met(steps).all():
            break
    assert 1 < steps[-1].number < 200
    assert steps[-2].residual ** 2 / y.size > 1
    assert steps[-1].residual ** 2 / y.size == pytest.approx(1, abs=0.05)


def test_rays_of_weight_zero_count_for_nothing(rng):
    A = random_operator(rng)
    y = transmission_counts(rng, A, rng.uniform(0, 0.5, A.domain_shape))
    weights = np.ones_like(y)
    weights[0, 2] = 0
    spoilt = y.copy()
    spoilt[0, 2] = 1e6
    for method, options in ((transmission, {"flat": FLAT, "background": SCATTER}), (osem, {"start": np.ones((1, 20))})):
        one, other = (last(method(A, d, weights=weights, n_iterations=6, **options)).volume for d in (y, spoilt))
        np.testing.assert_allclose(one, other, rtol=1e-9)


def test_negative_counts_are_refused(rng):
    A = random_operator(rng)
    y = np.ones(A.range_shape)
    with pytest.raises(WrongUsage, match="counts is -1"):
        next(osem(A, y - 2))
    with pytest.raises(WrongUsage, match="background is -3"):
        next(transmission(A, y, flat=1.0, background=-3.0))
