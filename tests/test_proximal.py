"""Regularised reconstruction: laws of the minimisers, and what priors gain on a small spectral object."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from numpy.typing import NDArray

from reconstruction.operators import Operator
from reconstruction.priors import TotalVariation
from reconstruction.proximal import fista, pdhg

SHAPE = (1, 4, 6, 5)


class Matrix(Operator):
    """A dense matrix that sees a volume in 40 views of 4 rays."""

    def __init__(self, matrix: NDArray[np.float64], domain_shape=SHAPE) -> None:
        self.matrix, self.domain_shape = matrix, domain_shape
        self.range_shape = (1, len(matrix) // 4, 2, 2)

    def forward(self, x, out=None):
        return (self.matrix @ x.ravel()).reshape(self.range_shape)

    def adjoint(self, y, out=None):
        return (self.matrix.T @ y.ravel()).reshape(self.domain_shape)

    def subset(self, views):
        chosen = np.arange(len(self.matrix)).reshape(-1, 4)[views].ravel()
        return Matrix(self.matrix[chosen], self.domain_shape)


@pytest.fixture(scope="module")
def problem():
    chance = np.random.default_rng(1)
    A = Matrix(chance.uniform(0, 1, (160, 120)) ** 3)
    block = np.zeros(SHAPE)
    block[0, 1:3, 2:5, 1:4] = 1
    b = A.forward(block) + 0.1 * chance.normal(size=A.range_shape)
    return A, b, chance.uniform(0.5, 2, b.shape)


def last(iterates):
    return deque(iterates, maxlen=1).pop()


def test_two_methods_find_the_same_minimum(problem) -> None:
    A, b, weights = problem
    prior = TotalVariation(strength_per_mm=0.02)
    first = last(fista(A, b, prior, weights=weights, n_iterations=300, n_prox_iterations=10))
    second = last(pdhg(A, b, prior, weights=weights, n_iterations=400))
    assert second.objective == pytest.approx(first.objective, rel=1e-5)
    assert second.residual == pytest.approx(first.residual, rel=1e-5)
    assert np.abs(second.volume - first.volume).max() < 1e-4


def test_ordered_subsets_of_pdhg_end_at_the_same_minimum(problem) -> None:
    A, b, weights = problem
    prior = TotalVariation(strength_per_mm=0.02)
    whole = last(fista(A, b, prior, weights=weights, n_iterations=300, n_prox_iterations=10))
    parts = last(pdhg(A, b, prior, weights=weights, n_iterations=400, n_subsets=4))
    assert parts.objective == pytest.approx(whole.objective, rel=1e-6)
