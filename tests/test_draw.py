"""Counts drawn by quantiles: exact margins, whole, nested, and as correlated as asked for."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from sim import chance, draw, strips
from sim.tables import CLASS_OF_PLACE, PLACES, REACH

ORDER, ENDS = np.arange(3), np.array([3])
SHAPE = (64, 64)
NO_LOAD = np.zeros(SHAPE, dtype=np.float32)


def planes(steps):
    """Nested means, from the means between thresholds."""
    return np.cumsum(np.broadcast_to(np.asarray(steps, dtype=np.float32)[:, None, None], (len(steps), *SHAPE)), axis=0)


def drawn(steps, mixing, n, load=NO_LOAD, seed=1):
    """Counts between thresholds: (n, n_thresholds, rows, cols)."""
    rng = np.random.default_rng(seed)
    counts = np.stack([draw.draw_counts(planes(steps), load, mixing, rng) for _ in range(n)]).astype(int)
    return np.diff(counts, axis=1, prepend=0)


@pytest.mark.parametrize("mean", [1e-3, 0.2, 3.0, 15.5, 16.5, 40.0, 900.0])
def test_each_margin_is_poissons(mean):
    found = drawn([mean, 1.0, 1.0], draw.independent(ORDER, ENDS), 12)[:, 0].ravel()
    low, high = (int(stats.poisson.ppf(q, mean)) for q in (1e-4, 1 - 1e-4))
    counts = np.arange(low, high + 1)
    share = stats.poisson.pmf(counts, mean)
    share[0], share[-1] = stats.poisson.cdf(low, mean), stats.poisson.sf(high - 1, mean)
    seen = np.bincount(found.clip(low, high) - low, minlength=len(counts))
    is_likely = share * len(found) > 5
    chi2 = ((seen - share * len(found)) ** 2 / (share * len(found)))[is_likely].sum()
    assert stats.chi2.sf(chi2, max(is_likely.sum() - 1, 1)) > 1e-3


@pytest.mark.parametrize(("steps", "error"), [((100, 60, 30), 0.01), ((2.0, 0.7, 0.3), 0.02)])
def test_neighbours_and_thresholds_are_as_correlated_as_asked(steps, error):
    """At small means only the first order is asked for: a correlation of 0.3 comes out as 0.316."""
    between = np.array([[0.10, 0.06, 0.02], [0.06, 0.08, 0.03], [0.02, 0.03, 0.05]])
    wanted = np.stack([np.eye(3), between, 0.2 * between, *np.zeros((3, 3, 3))])
    wanted[0, 0, 2] = wanted[0, 2, 0] = 0.3
    shrunk = draw.shrinkage(np.array(steps, dtype=float))
    asked = wanted / (shrunk[:, None] * shrunk[None, :])
    asked[0][np.diag_indices(3)] = 1
    mixing = draw.Mixing(ORDER, ENDS, draw.mixing_kernel(asked), np.zeros((3, 3), dtype=np.float32))
    found = drawn(steps, mixing, 80) - np.array(steps)[:, None, None]
    scale = np.sqrt(np.outer(steps, steps)) * 80 * SHAPE[0] * SHAPE[1]
    for place, (down, right) in enumerate(((0, 0), (0, 1), (1, 1))):
        there = np.roll(found, (-down, -right), axis=(2, 3))
        correlation = np.einsum("fihw,fjhw->ij", found, there) / scale
        np.testing.assert_allclose(correlation, wanted[place], atol=error)  # sigma is 0.002


def test_counts_are_nested_whatever_the_order_of_the_means():
    rng = np.random.default_rng(2)
    mean = (rng.random((3, *SHAPE)) * 30).astype(np.float32)
    counts = draw.draw_counts(mean, NO_LOAD, draw.independent(ORDER, ENDS), rng)
    order = np.argsort(mean, axis=0)
    assert np.all(np.diff(np.take_along_axis(counts.astype(int), order, axis=0), axis=0) >= 0)
    assert counts.dtype == np.uint32
    assert counts.mean() == pytest.approx(mean.mean(), rel=0.01)


def test_families_are_independent_and_nested_each_by_itself():
    mixing = draw.independent(np.array([0, 2, 1]), np.array([1, 3]))
    rng = np.random.default_rng(3)
    mean = np.broadcast_to(np.array([20, 40, 10], dtype=np.float32)[:, None, None], (3, *SHAPE)).copy()
    counts = np.stack([draw.draw_counts(mean, NO_LOAD, mixing, rng) for _ in range(20)]).astype(int)
    assert np.all(counts[:, 2] <= counts[:, 1])
    first, second = counts[:, 0].ravel() - 20, counts[:, 1].ravel() - 40
    assert abs((first * second).mean()) < 0.02 * np.sqrt(20 * 40)


def test_dead_time_takes_variance_by_each_pixels_load():
    bond = np.diag([0.2, 0.1, 0.0]).astype(np.float32)
    mixing = draw.Mixing(ORDER, ENDS, np.eye(3, dtype=np.float32)[None], bond)
    load = NO_LOAD.copy()
    load[:, 32:] = 2
    found = drawn((400, 400, 400), mixing, 60, load)
    fano = found.var(axis=0, ddof=1).mean(axis=1) / 400
    np.testing.assert_allclose(fano[:, :32].mean(axis=1), 1, atol=0.02)
    np.testing.assert_allclose(fano[:, 32:].mean(axis=1), [0.6, 0.8, 1], atol=0.02)


def test_normal_numbers_are_normal_to_their_tails():
    white = np.empty((200, 128, 128), dtype=np.float32)
    chance.fill_normal(white.reshape(-1), chance.dice(np.random.default_rng(6)))
    edges = np.array([-np.inf, -4.5, -4, -3.5, -3, -2, -1, 0, 1, 2, 3, 3.5, 4, 4.5, np.inf])
    wanted = np.diff(stats.norm.cdf(edges)) * white.size
    seen, _ = np.histogram(white, edges)
    assert stats.chi2.sf(((seen - wanted) ** 2 / wanted).sum(), len(wanted) - 1) > 1e-3
    off = white.ravel().astype(float)
    for lag in (1, 2, 3, 4, 128):
        assert abs((off[lag:] * off[:-lag]).mean()) < 4 / np.sqrt(white.size)


def test_no_mean_counts_nothing_and_a_seed_is_a_draw():
    mixing = draw.independent(ORDER, ENDS)
    assert not draw.draw_counts(np.zeros((3, *SHAPE), np.float32), NO_LOAD, mixing, np.random.default_rng(1)).any()
    first, same, other = (drawn((5, 5, 5), mixing, 1, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_counts_do_not_depend_on_how_the_rows_are_shared_out(parts, monkeypatch):
    correlation = np.stack([np.eye(3), 0.1 * np.eye(3), 0.05 * np.eye(3), *np.zeros((3, 3, 3))])
    bond = np.diag([0.2, 0.1, 0.0]).astype(np.float32)
    mixing = draw.Mixing(ORDER, ENDS, draw.mixing_kernel(correlation), bond)
    whole = draw.draw_counts(planes((40, 5, 3)), NO_LOAD + 1, mixing, np.random.default_rng(4))
    edges = np.linspace(0, SHAPE[0], parts + 1).round().astype(int)
    monkeypatch.setattr(strips, "shares", lambda _: list(pairwise(edges)))
    np.testing.assert_array_equal(
        draw.draw_counts(planes((40, 5, 3)), NO_LOAD + 1, mixing, np.random.default_rng(4)), whole
    )


def test_sums_around_are_those_over_each_class():
    rng, n, cols, row = np.random.default_rng(5), 3, 21, 8
    width = cols + 2 * REACH
    around = np.empty((len(PLACES), n, cols), dtype=np.float32)
    field = rng.normal(size=(2 * REACH + 1, n * width)).astype(np.float32)
    draw._sum_around(field, row, around, np.empty(width, np.float32), np.empty(width, np.float32))
    rows = field.reshape(-1, n, width)[(row + np.arange(2 * REACH + 1)) % (2 * REACH + 1)]
    for col in range(cols):
        window = rows[:, :, col : col + 2 * REACH + 1]
        wanted = [window.transpose(1, 0, 2)[:, which == CLASS_OF_PLACE].sum(axis=1) for which in range(len(PLACES))]
        np.testing.assert_allclose(around[:, :, col], wanted, rtol=1e-4, atol=1e-5)


def test_matrices_multiply_in_tiles():
    rng = np.random.default_rng(6)
    weights, sources = rng.normal(size=(8, 12)).astype(np.float32), rng.normal(size=(12, 37)).astype(np.float32)
    weights[4:, 4:8] = 0
    sums = np.empty((8, 37), dtype=np.float32)
    strips.multiply(weights, sources, sums)
    np.testing.assert_allclose(sums, weights @ sources, rtol=1e-4, atol=1e-5)
