"""The GPU's steps of total variation are those of the plain formulas."""

from __future__ import annotations

import re

import numpy as np
import pytest

from reconstruction import backend
from reconstruction.kernels import tv_gpu, tv_plain
from reconstruction.priors import TotalVariation, VectorialTotalVariation

SHAPES = [(1, 7, 6, 70), (3, 5, 1, 9), (2, 1, 4, 5), (1, 1, 1, 1)]


def numbers(shape, has_tangent):
    """p, q, u, base, weights and tangent."""
    rng = np.random.default_rng(sum(shape))
    n_channels, *grid = shape
    p, q = rng.normal(size=(2, n_channels, 3, *grid)).astype(np.float32)
    u, base = rng.normal(size=(2, *shape)).astype(np.float32)
    tangent = rng.uniform(-0.5, 0.5, (3, *grid)).astype(np.float32) if has_tangent else None
    return p, q, u, base, rng.uniform(0.5, 2, n_channels).astype(np.float32), tangent


def sent(*arrays):
    return [None if array is None else backend.to_device(array) for array in arrays]


@pytest.mark.parametrize("has_tangent", [False, True], ids=["free", "directed"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("is_non_negative", [False, True])
def test_the_primal_step(device, shape, has_tangent, is_non_negative):
    p, _, _, base, weights, tangent = numbers(shape, has_tangent)
    expected = np.empty_like(base)
    tv_plain.primal(expected, base, p, 0.7, is_non_negative, weights, tangent)
    there = sent(base, p, weights, tangent)
    tv_gpu.primal(there[0], there[0], there[1], 0.7, is_non_negative, *there[2:])  # in place, as a gradient wants it
    np.testing.assert_allclose(backend.to_host(there[0]), expected, atol=5e-6)


@pytest.mark.parametrize("has_tangent", [False, True], ids=["free", "directed"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ball", range(6))
def test_the_dual_step(device, shape, has_tangent, ball):
    p, q, u, _, weights, tangent = numbers(shape, has_tangent)
    steps = 0.8, 0.9, 0.6, ball, 0.4
    expected_p, expected_q = p.copy(), q.copy()
    tv_plain.dual(expected_p, expected_q, u, *steps, weights, tangent)
    p_there, q_there, u_there, weights_there, tangent_there = sent(p, q, u, weights, tangent)
    tv_gpu.dual(p_there, q_there, u_there, *steps, weights_there, tangent_there)
    np.testing.assert_allclose(backend.to_host(p_there), expected_p, atol=5e-6)
    np.testing.assert_allclose(backend.to_host(q_there), expected_q, atol=1e-5)
    assert np.abs(expected_p - p).max() > 0.01


def test_p_and_q_may_be_one_array(device):
    p, _, u, _, weights, _ = numbers(SHAPES[0], False)
    expected = p.copy()
    tv_plain.dual(expected, expected, u, 0.8, 1.0, 0.0, tv_plain.PER_CHANNEL, 1.0, weights, None)
    p_there, u_there, weights_there = sent(p, u, weights)
    tv_gpu.dual(p_there, p_there, u_there, 0.8, 1.0, 0.0, tv_plain.PER_CHANNEL, 1.0, weights_there, None)
    np.testing.assert_allclose(backend.to_host(p_there), expected, atol=5e-6)


def test_the_steps_are_each_others_adjoint(device):
    """<K u, p> = <u, K^T p>, from the steps with nothing around: one adds K u, the other takes K^T p off."""
    p, q, u, _, weights, tangent = sent(*numbers((2, 5, 6, 7), True))
    zero, moved = 0 * q, 0 * u
    tv_gpu.dual(zero, zero, u, 1.0, 1.0, 0.0, tv_plain.ANYWHERE, 1.0, weights, tangent)
    tv_gpu.primal(moved, moved, p, -1.0, False, weights, tangent)
    one, other = (backend.to_host(zero) * backend.to_host(p)).sum(), (backend.to_host(moved) * backend.to_host(u)).sum()
    assert one == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize("n_channels", [1, 3])
def test_a_prior_denoises_the_same_on_both(device, n_channels):
    y = np.random.default_rng(1).normal(size=(n_channels, 6, 7, 8)).astype(np.float32)
    for prior in (TotalVariation(strength_per_mm=0.3), VectorialTotalVariation(strength_per_mm=0.3)):
        here, there = np.empty_like(y), backend.to_device(np.empty_like(y))
        y_there = backend.to_device(y)
        prior.prepare(y).prox(here, y, 0.8, n_iterations=20, is_non_negative=True)
        prior.prepare(y_there).prox(there, y_there, 0.8, n_iterations=20, is_non_negative=True)
        np.testing.assert_allclose(backend.to_host(there), here, atol=1e-4)
        assert np.abs(np.diff(here)).sum() < 0.5 * np.abs(np.diff(np.maximum(y, 0))).sum()


def test_the_balls_have_the_numbers_of_the_source():
    source = tv_gpu.SOURCE.read_text()
    named = {name: getattr(tv_plain, name) for name in ("ANYWHERE", "PER_COMPONENT", "PER_CHANNEL", "FROBENIUS")}
    assert {name: int(n) for name, n in re.findall(r"#define (\w+) (\d)", source)} == named
    assert set(tv_gpu.BALLS) == set(named.values())
