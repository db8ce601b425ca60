"""Random numbers of the compiled kernels: several of one draw are as good as one of each."""

import numpy as np
import pytest
from numba import njit

from sim import chance

N = 200_000


@njit
def draw(dice, n):
    numbers = np.empty((n, 8))
    for i in range(n):
        numbers[i, :2] = chance.two(dice)
        numbers[i, 2:5] = chance.three(dice)
        numbers[i, 5:] = chance.direction(dice)
    return numbers


@pytest.fixture(scope="module")
def numbers():
    return draw(chance.dice(np.random.default_rng(3)), N)


def test_numbers_are_uniform(numbers):
    ours = numbers[:, :5]
    assert ours.min() >= 0
    assert ours.max() < 1
    for k in range(5):
        filled = np.histogram(ours[:, k], 100, (0, 1))[0]
        assert ((filled - N / 100) ** 2 / (N / 100)).sum() == pytest.approx(99, abs=5 * (2 * 99) ** 0.5)


def test_numbers_of_one_draw_know_nothing_of_each_other(numbers):
    correlation = np.corrcoef(numbers, rowvar=False) - np.eye(8)
    assert np.abs(correlation).max() < 5 / N**0.5
    for first, second in ((0, 1), (2, 3), (3, 4), (2, 4)):
        filled = np.histogram2d(numbers[:, first], numbers[:, second], 10, [[0, 1], [0, 1]])[0]
        assert ((filled - N / 100) ** 2 / (N / 100)).sum() == pytest.approx(99, abs=5 * (2 * 99) ** 0.5)


def test_directions_are_unit_vectors_and_prefer_none(numbers):
    ours = numbers[:, 5:]
    np.testing.assert_allclose((ours**2).sum(axis=1), 1, rtol=1e-9)
    for k in range(3):  # Archimedes: each coordinate of a point on the sphere is uniform
        filled = np.histogram(ours[:, k], 100, (-1, 1))[0]
        assert ((filled - N / 100) ** 2 / (N / 100)).sum() == pytest.approx(99, abs=5 * (2 * 99) ** 0.5)
