"""Rows of white noise: normal to their tails, independent, and the same whoever asks."""

import numpy as np
import pytest
from scipy import stats

from sim import white

N = 16 * white.BLOCK


def rows(key, numbers):
    state, bits = np.empty((4, white.LANES), np.uint32), np.empty(N, np.uint32)
    found = np.empty((len(numbers), N), np.float32)
    for one, number in zip(found, numbers, strict=True):
        white.fill_row(np.uint64(key), number, state, bits, one)
    return found


@pytest.fixture(scope="module")
def field():
    return rows(7, range(3000))


def test_numbers_are_normal_to_their_tails(field):
    edges = np.array([-np.inf, *np.arange(-4.5, 4.6, 0.25), np.inf])
    wanted = np.diff(stats.norm.cdf(edges)) * field.size
    seen, _ = np.histogram(field, edges)
    assert stats.chi2.sf(((seen - wanted) ** 2 / wanted).sum(), len(wanted) - 1) > 1e-3
    assert np.isfinite(field).all()


@pytest.mark.parametrize("power", [1, 2])
def test_nothing_depends_on_anything_else(field, power):
    """Neither numbers nor squares: along a row, between streams, between the halves of a row, from row to row."""
    off = (field**power - (power == 2)).astype(float)
    off /= off.std()
    for shift in (1, 2, white.LANES - 1, white.LANES, 4 * white.LANES, N // 2):
        assert abs((off[:, shift:] * off[:, :-shift]).mean()) < 4 / np.sqrt(off[:, shift:].size)
    for shift in (1, 2, 3):
        assert abs((off[shift:] * off[:-shift]).mean()) < 4 / np.sqrt(off.size)


def test_a_row_is_the_same_whoever_asks_and_another_key_is_another_field(field):
    np.testing.assert_array_equal(rows(7, [5, 4, 5]), field[[5, 4, 5]])
    other = rows(8, range(3000))
    assert abs((field * other).mean()) < 4 / np.sqrt(field.size)
    assert len(np.unique(field[:, :8].ravel())) > 0.99 * 8 * len(field)
