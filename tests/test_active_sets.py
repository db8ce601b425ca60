"""Least squares with signs: SciPy's solvers, one problem after the other, are the oracle."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, nnls

from firmware_iface.errors import WrongUsage
from reconstruction import active_sets
from reconstruction.active_sets import Supports
from reconstruction.decomposition import decompose
from reconstruction.kernels import active_sets_cpu
from tests import stand_in_cupy


def problem(seed: int, n: int, spare: int = 2, count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    matrix = rng.uniform(0.1, 1, (n + spare, n)) + 0.3 * np.eye(n + spare, n)
    return matrix / np.linalg.norm(matrix, axis=0), rng.normal(0.3, 1, (n + spare, count))


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_no_unknown_is_below_0_as_scipy_has_it(seed, n):
    matrix, data = problem(seed, n)
    found = active_sets.solve(matrix.T @ data, Supports.non_negative(matrix))
    expected = np.stack([nnls(matrix, column)[0] for column in data.T], axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-7 * (1 + np.abs(expected).max()))


def whole(matrix: np.ndarray, column: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Non-negative least squares with a sum that outweighs everything: SciPy's, with one more row."""
    heavy = 1e5
    return nnls(np.vstack([matrix, heavy * shares]), np.append(column, heavy))[0]


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_shares_sum_to_1_at_most_or_exactly_as_scipy_has_it(seed, n):
    matrix, data = problem(seed, n)
    shares = np.random.default_rng(seed).uniform(0.3, 2, n)
    exact = Supports.full(matrix, shares)
    full = active_sets.solve(matrix.T @ data, exact)
    np.testing.assert_allclose(shares @ full, 1, atol=1e-9)
    filled = np.stack([whole(matrix, column, shares) for column in data.T], axis=1)
    np.testing.assert_allclose(full, filled, atol=1e-5 * (1 + np.abs(filled).max()))
    most = active_sets.solve(matrix.T @ data, Supports.non_negative(matrix), shares=shares, full=exact)
    free = np.stack([nnls(matrix, column)[0] for column in data.T], axis=1)
    expected = np.where(shares @ free > 1, filled, free)
    np.testing.assert_allclose(most, expected, atol=1e-5 * (1 + np.abs(expected).max()))
    assert (shares @ most <= 1 + 1e-9).all()


def test_fractions_are_what_a_general_optimiser_finds():
    matrix, data = problem(3, 4, count=8)
    shares = np.array([0.5, 1.0, 1.5, 0.8])
    found = active_sets.solve(
        matrix.T @ data, Supports.non_negative(matrix), shares=shares, full=Supports.full(matrix, shares)
    )
    for column, solution in zip(data.T, found.T, strict=True):
        general = minimize(
            lambda c, u=column: np.sum((matrix @ c - u) ** 2),
            np.full(4, 0.1),
            jac=lambda c, u=column: 2 * matrix.T @ (matrix @ c - u),
            bounds=[(0, None)] * 4,
            constraints={"type": "ineq", "fun": lambda c: 1 - shares @ c},
            method="SLSQP",
            options={"ftol": 1e-13},
        )
        np.testing.assert_allclose(solution, general.x, atol=1e-5)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_all_supports_are_tried_where_turning_signs_does_not_end(seed):
    """Without any round of turning the search alone must find the same."""
    matrix, data = problem(seed, 4)
    projected = matrix.T @ data
    supports = Supports.non_negative(matrix)
    values = np.einsum("skm,mi->ski", supports.slopes, projected)
    best = values.min(axis=1).argmax(axis=0)
    found = active_sets.solve(projected, supports)
    for i, support in enumerate(best):
        inside = (support >> np.arange(4)) & 1
        np.testing.assert_allclose(found[:, i], np.where(inside, np.maximum(values[support, :, i], 0), 0), atol=1e-9)


def test_a_tie_between_supports_is_no_trap():
    matrix, _ = problem(5, 3)
    on_a_face = matrix[:, :2] @ np.array([[1.0, 0.5, 0.0], [2.0, 0.0, 0.0]])  # the third has exactly nothing
    found = active_sets.solve(matrix.T @ on_a_face, Supports.non_negative(matrix))
    np.testing.assert_allclose(found, [[1, 0.5, 0], [2, 0, 0], [0, 0, 0]], atol=1e-12)


def test_too_many_unknowns_are_refused():
    with pytest.raises(WrongUsage, match="11 materials with none below 0; allowed: up to 10"):
        Supports.non_negative(np.eye(11))


def test_the_small_product_is_that_of_numpy():
    rng = np.random.default_rng(0)
    matrix, rows = rng.normal(size=(5, 8)), rng.normal(size=(8, 3 * active_sets_cpu.BLOCK + 17))
    np.testing.assert_allclose(active_sets.multiplied(matrix, rows), matrix @ rows, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_non_negative": True},
        {"densities_g_cm3": np.array([1.0, 4.9, 3.2])},
        {"densities_g_cm3": np.array([1.0, 4.9, 3.2]), "is_full": True},
    ],
)
def test_a_device_finds_the_same(monkeypatch, options):
    monkeypatch.setitem(sys.modules, "cupy", stand_in_cupy.cupy)
    matrix = np.array([[0.035, 3.2, 1.5], [0.026, 2.6, 1.0], [0.022, 1.4, 1.9], [0.019, 0.7, 1.1]])
    bins = np.random.default_rng(5).normal(0.03, 0.02, size=(4, 50)).astype(np.float32)
    stand_in_cupy.brought.clear()
    there = decompose(stand_in_cupy.cupy.asarray(bins), matrix, **options)
    assert isinstance(there, stand_in_cupy.DeviceArray)
    assert not stand_in_cupy.brought
    np.testing.assert_allclose(there.values, decompose(bins, matrix, **options), atol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_sub_problem_is_judged_as_scipy_solves_it(n):
    matrix, data = problem(11, n, count=60)
    chi_square, n_free = np.empty((1, 60)), np.empty((1, 60), np.int8)
    active_sets_cpu.judge(
        matrix.T @ data,
        (data**2).sum(axis=0),
        np.array([n]),
        np.arange(n)[None],
        Supports.non_negative(matrix).slopes[None],
        np.array([[0.0, np.inf]]),
        chi_square,
        n_free,
    )
    solved = [nnls(matrix, column) for column in data.T]
    np.testing.assert_allclose(chi_square[0], [residual**2 for _, residual in solved], rtol=1e-9)
    np.testing.assert_array_equal(n_free[0], [np.count_nonzero(solution) for solution, _ in solved])
    assert len(set(n_free[0])) == n + 1
