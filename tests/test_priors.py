"""Priors: what their values, gradients and proxes must obey, against exact solutions and other programs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import lsq_linear
from skimage.restoration import denoise_tv_chambolle

from firmware_iface.errors import WrongUsage
from reconstruction.kernels import tv_cpu, tv_plain
from reconstruction.priors import (
    DirectionalTotalVariation,
    Gibbs,
    Huber,
    Quadratic,
    TotalVariation,
    VectorialTotalVariation,
)

CHANCE = np.random.default_rng(5)
SHAPE = (3, 4, 6, 5)
REFERENCE = CHANCE.normal(size=SHAPE[1:])
NORMS = ("frobenius", "nuclear", "spectral")
BALLS = range(6)
SHARP = {
    "tv": TotalVariation(strength_per_mm=0.3),
    "anisotropic": TotalVariation(strength_per_mm=0.3, is_isotropic=False),
    "directional": DirectionalTotalVariation(strength_per_mm=0.3, reference=REFERENCE, edge_share=0.5),
    "weighted": TotalVariation(strength_per_mm=0.3, noise_per_mm=(1.0, 2.0, 0.5)),
    **{norm: VectorialTotalVariation(strength_per_mm=0.3, norm=norm) for norm in NORMS},
}
SMOOTH = {
    "huber": Huber(strength_per_mm=0.3, corner_per_mm=0.7),
    "gibbs": Gibbs(strength_per_mm=0.3, corner_per_mm=0.5, noise_per_mm=(1.0, 2.0, 3.0)),
    "quadratic": Quadratic(stiffness_relative=0.4, noise_per_mm=(1.0, 2.0, 3.0)),
}


def differences(n: int) -> sparse.csr_matrix:
    return sparse.diags([-np.ones(n - 1), np.ones(n - 1)], [0, 1], shape=(n - 1, n)).tocsr()


def tangent(dtype=np.float64):
    vectors = CHANCE.normal(size=(3, *SHAPE[1:]))
    return (vectors / np.sqrt((vectors**2).sum(0) + 0.3)).astype(dtype)


# the kernels against the formulas


@pytest.mark.parametrize("is_directional", [False, True])
def test_differences_and_their_transpose_are_adjoint(is_directional: bool) -> None:
    weights, along = CHANCE.uniform(0.5, 2, 3), tangent() if is_directional else None
    u, p = CHANCE.normal(size=SHAPE), CHANCE.normal(size=(3, 3, *SHAPE[1:]))
    forward = np.vdot(tv_plain.gradient(u, weights, along), p)
    assert forward == pytest.approx(np.vdot(u, tv_plain.gradient_transposed(p, weights, along)), abs=1e-12)


@pytest.mark.parametrize("shape", [SHAPE, (1, 1, 30, 20), (2, 5, 1, 1), (1, 70, 8, 3)])
@pytest.mark.parametrize(("dtype", "is_directional"), [(np.float32, False), (np.float64, False), (np.float64, True)])
def test_fast_steps_equal_the_plain_ones(shape, is_directional: bool, dtype) -> None:
    chance = np.random.default_rng(1)
    along = chance.normal(size=(3, *shape[1:]))
    along = (along / np.sqrt((along**2).sum(0) + 0.3)).astype(dtype) if is_directional else None
    weights = chance.uniform(0.5, 2, shape[0]).astype(dtype)
    u, p, q = (
        chance.normal(size=s).astype(dtype) for s in (shape, (shape[0], 3, *shape[1:]), (shape[0], 3, *shape[1:]))
    )
    tolerance = 40 * np.finfo(dtype).eps
    fast, plain = np.empty_like(u), np.empty_like(u)
    for is_non_negative in (False, True):
        tv_cpu.primal(fast, u, p, 0.3, is_non_negative, weights, along)
        tv_plain.primal(plain, u, p, 0.3, is_non_negative, weights, along)
        np.testing.assert_allclose(fast, plain, atol=tolerance)
    for ball in BALLS:
        fast_p, fast_q, plain_p, plain_q = p.copy(), q.copy(), p.copy(), q.copy()
        tv_cpu.dual(fast_p, fast_q, u, 0.7, 0.9, 0.4, ball, 1.3, weights, along)
        tv_plain.dual(plain_p, plain_q, u, 0.7, 0.9, 0.4, ball, 1.3, weights, along)
        np.testing.assert_allclose(fast_p, plain_p, atol=tolerance)
        np.testing.assert_allclose(fast_q, plain_q, atol=tolerance)
        for corner in (0.5, 0.0)[: 1 if ball == tv_plain.ANYWHERE else 2]:
            expected = tv_plain.value(u, ball, corner, weights, along)
            assert tv_cpu.value(u, ball, corner, weights, along) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("ball", [tv_plain.SPECTRAL, tv_plain.NUCLEAR])
@pytest.mark.parametrize(
    "singular",
    [
        (3, 2, 1),
        (3, 3, 3),
        (2, 2, 0),
        (3, 0, 0),
        (0, 0, 0),
        (1.3, 1.3, 1.3),
        (1.3 + 1e-9, 1.3, 1.3 - 1e-9),
        (5, 1e-9, 0),
        (5, 0.004, 0.003),
    ],
)
def test_projections_of_singular_values_are_exact_where_they_coincide(ball: int, singular) -> None:
    left, right = (np.linalg.qr(CHANCE.normal(size=(n, n)))[0] for n in (4, 3))
    matrix = left[:, :3] @ np.diag(singular) @ right
    p = matrix.reshape(4, 3, 1, 1, 1).copy()
    tv_cpu.dual(p, p, np.zeros((4, 1, 1, 1)), 0.0, 1.0, 0.0, ball, 1.3, np.ones(4), None)
    found = np.linalg.svd(p[..., 0, 0, 0], compute_uv=False)
    if ball == tv_plain.SPECTRAL:
        expected = np.minimum(singular, 1.3)
    else:  # the shift that makes the sum the radius, by bisection
        low, high = 0.0, 10.0
        for _ in range(100):
            shift = (low + high) / 2
            low, high = (shift, high) if np.maximum(np.array(singular) - shift, 0).sum() > 1.3 else (low, shift)
        expected = np.maximum(np.array(singular) - high, 0)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    nearest = left[:, :3] @ np.diag(expected) @ right
    np.testing.assert_allclose(p[..., 0, 0, 0], nearest, atol=1e-12)


# proxes against exact solutions


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_prox_of_total_variation_along_a_line_is_exact(axis: int) -> None:
    line = np.cumsum(CHANCE.normal(size=30)) + CHANCE.normal(size=30)
    shape = [1, 1, 1, 1]
    shape[axis] = 30
    found = TotalVariation(strength_per_mm=0.8).prox(line.reshape(shape), n_iterations=4000).ravel()
    D = differences(30).toarray()
    dual = lsq_linear(D.T, line, bounds=(-0.8, 0.8), method="bvls", tol=1e-14).x
    np.testing.assert_allclose(found, line - D.T @ dual, atol=1e-6)


def test_prox_moves_the_two_levels_of_a_step_together() -> None:
    step = np.zeros((1, 1, 1, 30))
    step[..., 10:] = 5.0
    found = TotalVariation(strength_per_mm=2.0).prox(step, n_iterations=2000).ravel()
    np.testing.assert_allclose(found[:10], 2.0 / 10, atol=1e-6)
    np.testing.assert_allclose(found[10:], 5.0 - 2.0 / 20, atol=1e-6)


@pytest.mark.parametrize("shape", [(24, 31), (9, 10, 12)])
def test_prox_of_total_variation_is_that_of_scikit_image(shape) -> None:
    image = np.zeros(shape)
    image[tuple(slice(n // 4, 3 * n // 4) for n in shape)] = 1
    image += 0.2 * CHANCE.normal(size=shape)
    theirs = denoise_tv_chambolle(image, weight=0.15, eps=1e-14, max_num_iter=4000)
    volume = image.reshape((1,) * (4 - len(shape)) + shape)
    ours = TotalVariation(strength_per_mm=0.15).prox(volume, n_iterations=2000)
    assert np.abs(ours.reshape(shape) - theirs).max() < 2e-3


def test_prox_of_a_quadratic_solves_its_linear_system() -> None:
    y = CHANCE.normal(size=(2, 4, 5, 3))
    found = Quadratic(stiffness_relative=0.7).prox(y, 0.6, n_iterations=400)
    lengths = y.shape[1:]
    eyes = [sparse.identity(n) for n in lengths]
    laplacian = 0
    for axis, n in enumerate(lengths):
        factors = [*eyes[:axis], differences(n).T @ differences(n), *eyes[axis + 1 :]]
        laplacian = laplacian + sparse.kron(sparse.kron(factors[0], factors[1]), factors[2])
    system = (sparse.identity(laplacian.shape[0]) + 0.42 * laplacian).toarray()
    expected = np.linalg.solve(system, y.reshape(2, -1).T).T.reshape(y.shape)
    np.testing.assert_allclose(found, expected, atol=1e-8)


@pytest.mark.parametrize("name", SHARP)
def test_what_a_prox_takes_away_is_a_subgradient(name: str) -> None:
    # Moreau: y = prox(y) + step * g, with R(u) = <g, u>, and R(v) >= <g, v> for every other v
    prior, y = SHARP[name], CHANCE.normal(size=SHAPE)
    u = prior.prox(y, 1.5, n_iterations=3000)
    g = (y - u) / 1.5
    assert np.vdot(g, u) == pytest.approx(prior.value(u), rel=1e-3)
    for v in (y, CHANCE.normal(size=SHAPE), np.cumsum(CHANCE.normal(size=SHAPE), axis=3), g):
        assert np.vdot(g, v) <= prior.value(v) * (1 + 1e-6)


@pytest.mark.parametrize("name", SHARP)
def test_sharp_priors_scale_with_the_image_and_ignore_its_level(name: str) -> None:
    prior, u = SHARP[name], CHANCE.normal(size=SHAPE)
    assert prior.value(-3.5 * u) == pytest.approx(3.5 * prior.value(u), rel=1e-6)
    assert prior.value(u + np.arange(3).reshape(3, 1, 1, 1)) == pytest.approx(prior.value(u), rel=1e-6)
    assert math.isinf(prior.curvature(u))
    with pytest.raises(WrongUsage, match="has no gradient"):
        prior.gradient(u)


@pytest.mark.parametrize("name", [*SHARP, *SMOOTH])
def test_prox_makes_its_objective_least(name: str) -> None:
    prior, y = (SHARP | SMOOTH)[name], CHANCE.normal(size=SHAPE) + 0.2
    for is_non_negative in (False, True):
        u = prior.prox(y, 0.5, is_non_negative=is_non_negative, n_iterations=2000)
        assert not is_non_negative or u.min() >= 0

        def objective(v):
            return ((v - y) ** 2).sum() / 2 + 0.5 * prior.value(v)

        for size in (1e-1, 1e-2, 1e-3):
            other = u + size * CHANCE.normal(size=SHAPE)
            other = np.maximum(other, 0) if is_non_negative else other
            assert objective(other) > objective(u)


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_are_the_slopes_of_the_value(name: str) -> None:
    prior, u, v = SMOOTH[name], CHANCE.normal(size=SHAPE), CHANCE.normal(size=SHAPE)
    slope = (prior.value(u + 1e-5 * v) - prior.value(u - 1e-5 * v)) / 2e-5
    assert np.vdot(prior.gradient(u), v) == pytest.approx(slope, rel=1e-6)
    steepest = np.linalg.norm(prior.gradient(u + v) - prior.gradient(u)) / np.linalg.norm(v)
    assert steepest <= prior.curvature(u)


def test_gibbs_counts_every_pair_of_neighbours_once() -> None:
    u = CHANCE.normal(size=(1, 3, 4, 3))
    offsets = [o for o in itertools.product((-1, 0, 1), repeat=3) if any(o)]
    distances = {o: math.hypot(*o) for o in offsets}
    share = 6 / sum(1 / d for d in distances.values())
    total = 0.0
    for here in np.ndindex(u.shape[1:]):
        for offset in offsets:
            there = tuple(np.add(here, offset))
            if all(0 <= t < n for t, n in zip(there, u.shape[1:], strict=True)):
                step = u[0][there] - u[0][here]
                total += share / distances[offset] * (math.hypot(step, 0.5) - 0.5) / 2
    assert Gibbs(strength_per_mm=0.3, corner_per_mm=0.5).value(u) == pytest.approx(0.3 * total)


# known limits


def test_huber_is_total_variation_at_a_tiny_corner_and_quadratic_below_a_large_one() -> None:
    y = CHANCE.normal(size=SHAPE)
    sharp, tiny = TotalVariation(strength_per_mm=0.3), Huber(strength_per_mm=0.3, corner_per_mm=1e-7)
    assert tiny.value(y) == pytest.approx(sharp.value(y), rel=1e-6)
    np.testing.assert_allclose(tiny.prox(y, n_iterations=1000), sharp.prox(y, n_iterations=1000), atol=1e-3)
    round_, square = Huber(strength_per_mm=0.3, corner_per_mm=50.0), Quadratic(stiffness_relative=0.3 / 50)
    assert round_.value(y) == pytest.approx(square.value(y), rel=1e-9)
    np.testing.assert_allclose(round_.prox(y), square.prox(y), atol=1e-8)


@pytest.mark.parametrize("norm", NORMS)
def test_one_channel_needs_no_coupling(norm: str) -> None:
    y = CHANCE.normal(size=(1, *SHAPE[1:]))
    alone, coupled = TotalVariation(strength_per_mm=0.3), VectorialTotalVariation(strength_per_mm=0.3, norm=norm)
    assert coupled.value(y) == pytest.approx(alone.value(y), rel=1e-6)
    np.testing.assert_allclose(coupled.prox(y), alone.prox(y), atol=1e-6)


def test_norms_agree_on_aligned_edges_and_keep_their_order_elsewhere() -> None:
    image = CHANCE.normal(size=SHAPE[1:])
    aligned = image * np.array([1.0, -2.0, 0.5]).reshape(3, 1, 1, 1)
    values = [VectorialTotalVariation(strength_per_mm=1.0, norm=norm).value(aligned) for norm in NORMS]
    assert values == pytest.approx([values[0]] * 3, rel=1e-6)
    crossed = np.zeros((2, 1, 8, 8))
    crossed[0, 0, :4], crossed[1, 0, :, :4] = 1, 1
    values = {norm: VectorialTotalVariation(strength_per_mm=1.0, norm=norm).value(crossed) for norm in NORMS}
    # seven voxels on each edge alone, and one where they cross at right angles: sqrt(2), 2 and 1
    assert values == pytest.approx({"frobenius": 14 + math.sqrt(2), "nuclear": 16, "spectral": 15})


def test_noise_of_a_channel_is_the_unit_of_its_strength() -> None:
    y = CHANCE.normal(size=(2, *SHAPE[1:]))
    found = TotalVariation(strength_per_mm=0.3, noise_per_mm=(1.0, 3.0)).prox(y, n_iterations=3000)
    for channel, weight in enumerate((2.0, 2.0 / 3.0)):
        alone = TotalVariation(strength_per_mm=0.3 * weight).prox(y[channel : channel + 1], n_iterations=3000)
        np.testing.assert_allclose(found[channel], alone[0], atol=1e-4)
    with pytest.raises(WrongUsage, match="3 channels"):
        TotalVariation(strength_per_mm=0.3, noise_per_mm=(1.0, 3.0)).value(np.zeros(SHAPE))


def test_a_reference_without_edges_says_nothing_and_the_image_itself_makes_it_free() -> None:
    y = CHANCE.normal(size=(1, *SHAPE[1:]))
    flat = DirectionalTotalVariation(strength_per_mm=0.3, reference=np.ones(SHAPE[1:]))
    np.testing.assert_allclose(flat.prox(y), TotalVariation(strength_per_mm=0.3).prox(y), atol=1e-9)
    itself = DirectionalTotalVariation(strength_per_mm=0.3, reference=2 * y[0], edge_share=1e-3)
    assert itself.value(y) < 1e-3 * TotalVariation(strength_per_mm=0.3).value(y)


def test_turning_an_image_turns_its_prox() -> None:
    y = CHANCE.normal(size=SHAPE)
    for prior in (TotalVariation(strength_per_mm=0.3), VectorialTotalVariation(strength_per_mm=0.3)):
        turned = prior.prox(np.ascontiguousarray(y.transpose(0, 3, 1, 2)))
        np.testing.assert_allclose(turned.transpose(0, 2, 3, 1), prior.prox(y), atol=1e-9)


def test_impossible_priors_are_refused() -> None:
    with pytest.raises(ValueError, match="strength_per_mm"):
        TotalVariation(strength_per_mm=0.0)
    with pytest.raises(ValueError, match="noise_per_mm"):
        TotalVariation(strength_per_mm=1.0, noise_per_mm=(1.0, 0.0))
    with pytest.raises(WrongUsage, match="allowed: frobenius, nuclear, spectral"):
        VectorialTotalVariation(strength_per_mm=1.0, norm="l2")
    with pytest.raises(WrongUsage, match="make them equal"):
        DirectionalTotalVariation(strength_per_mm=1.0, reference=np.ones((2, 2, 2))).value(np.zeros(SHAPE))
