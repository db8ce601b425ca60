"""Paths of materials, weighted by what each ray tells of them all: exact solutions, scale laws, and what it gains."""

from __future__ import annotations

import itertools
import sys
from collections import deque
from typing import Any

import numpy as np
import pytest

from firmware_iface.errors import WrongUsage
from reconstruction.methods.proximal import data_curvature
from reconstruction.priors import Huber, VectorialTotalVariation
from reconstruction.projector import Projector
from reconstruction.scan_geometry import ScanGeometry
from reconstruction.spectral.mixed_prior import MixedPrior, channels_mixed
from reconstruction.spectral.weighted import (
    RayMixing,
    mix,
    noise_basis,
    ray_roots,
    weighted,
)
from reconstruction.symmetric import packed, pairs, unpacked
from reconstruction.volume import Grid
from tests import stand_in_cupy
from tests.adjoints import assert_adjoint
from tests.matrix_operator import MatrixOperator

N_MATERIALS = 3


def last(iterates):
    return deque(iterates, maxlen=1).pop()


def spread_information(rng, shape, n=N_MATERIALS):
    """Anti-correlated information of every ray: (n_pairs, *shape)."""
    factors = rng.normal(size=(n, n, *shape)) + 3 * np.ones((n, n, *shape))
    return packed(np.einsum("ak...,al...->kl...", factors, factors))


@pytest.fixture(scope="module")
def problem():
    """All materials see the same rays: dense, 12 views of 5 rays over 20 voxels."""
    rng = np.random.default_rng(1)
    one = rng.uniform(0.2, 1.0, (1, 12, 5, 20)) * (rng.random((1, 12, 5, 20)) < 0.4)
    A = MatrixOperator(np.repeat(one, N_MATERIALS, 0))
    truth = rng.uniform(0.1, 1.0, A.domain_shape)
    information = spread_information(rng, A.range_shape[1:])
    return A, A.forward(truth) + 0.1 * rng.normal(size=A.range_shape), information, truth


def exact(A, paths, information):
    """The minimum by the normal equations, written out."""
    n, dense = len(paths), A.dense()
    F = unpacked(information).reshape(n, n, -1)
    system = np.einsum("ri,klr,rj->kilj", dense, F, dense)
    right = np.einsum("ri,klr,lr->ki", dense, F, paths.reshape(n, -1))
    size = right.size
    return np.linalg.solve(system.reshape(size, size), right.ravel()).reshape(right.shape)


def test_roots_are_roots_and_bad_rays_have_none() -> None:
    rng = np.random.default_rng(2)
    F = spread_information(rng, (70, 5)).astype(np.float64)
    T = rng.normal(size=(3, 3))
    F[:, 3, 2] = np.nan
    F[0, 4, 1] = -1
    F[:, 5, 0] = 0
    F[:, 6, 0] = packed(np.outer([1, 2, 3], [1, 2, 3])[..., None])[:, 0]  # tells one combination only
    roots = unpacked(ray_roots(F, T, np.float64))
    G = np.triu(np.moveaxis(roots, (0, 1), (-2, -1)))
    expected = np.einsum("ak,abvr,bl->vrkl", T, unpacked(F), T)
    for bad in ((3, 2), (4, 1)):
        expected[bad] = 0
    np.testing.assert_allclose(np.swapaxes(G, -1, -2) @ G, expected, atol=1e-4 * np.abs(expected).max())
    for bad in ((3, 2), (4, 1), (5, 0)):
        assert not G[bad].any()


def test_mixing_is_the_triangle_and_adjoint(problem) -> None:
    A, paths, information, _ = problem
    roots = ray_roots(information, np.eye(3), np.float64)
    mixed = paths.copy()
    mix(mixed, roots)
    F = unpacked(information)
    np.testing.assert_allclose((mixed**2).sum(0), np.einsum("kvr,klvr,lvr->vr", paths, F, paths), rtol=1e-9)
    assert_adjoint(RayMixing(A, roots))
    assert_adjoint(RayMixing(A, roots).subset(slice(1, 12, 3)))


def test_the_minimum_is_that_of_the_normal_equations(problem) -> None:
    A, paths, information, _ = problem
    found = last(weighted(A, paths, information, prior=None, n_iterations=120))
    np.testing.assert_allclose(found.volume, exact(A, paths, information), rtol=1e-5, atol=1e-6)
    difference = A.forward(found.volume) - paths
    F = unpacked(information)
    squares = np.einsum("kvr,klvr,lvr->", difference, F, difference)
    assert found.residual == pytest.approx(np.sqrt(squares), rel=1e-6)


def test_equal_information_is_channel_by_channel(problem) -> None:
    A, paths, _, _ = problem
    information = np.zeros((6, *paths.shape[1:]))
    information[[0, 3, 5]] = 4.0
    found = last(weighted(A, paths, information, prior=None, n_iterations=60)).volume
    for channel in range(3):
        alone = np.linalg.lstsq(A.dense(), paths[channel].ravel(), rcond=None)[0]
        np.testing.assert_allclose(found[channel], alone, rtol=1e-5, atol=1e-6)


def test_rays_that_do_not_count_are_not_looked_at(problem) -> None:
    A, paths, information, _ = problem
    information = information.copy()
    information[:, 3] = 0
    spoilt = paths.copy()
    spoilt[:, 3] = np.nan
    for options in ({"prior": None}, {"prior": "huber", "n_subsets": 3}):
        one, other = (last(weighted_flat(A, p, information, **options)).volume for p in (paths, spoilt))
        np.testing.assert_allclose(other, one, rtol=1e-7)


def weighted_flat(A, paths, information, **options):
    """Priors need volumes of three axes."""
    yield from weighted(Boxed(A), paths[..., None], information[..., None], **options)


class Boxed:
    """The dense operator over a volume of 1 x 4 x 5 voxels, its rays in one column."""

    def __new__(cls, A):
        matrices = A.matrices

        class Box(MatrixOperator):
            def __init__(self, m):
                super().__init__(m)
                self.domain_shape = (len(m), 1, 4, 5)
                self.range_shape = (*m.shape[:-1], 1)

            def forward(self, x, out=None):
                y = super().forward(x.reshape(len(x), 20))[..., None]
                return y if out is None else np.copyto(out, y) or out

            def adjoint(self, y, out=None):
                x = super().adjoint(y[..., 0]).reshape(self.domain_shape)
                return x if out is None else np.copyto(out, x) or out

            def subset(self, views):
                return Box(self.matrices[:, views])

        return Box(matrices)


@pytest.mark.parametrize("prior", ["tv", "huber", "vtv", "tnv"])
def test_units_and_dose_do_not_change_the_picture(problem, prior) -> None:
    """Materials in other units, and an object and noise both larger: the same picture, but for its scale."""
    A, paths, information, _ = problem
    options = {"prior": prior, "n_subsets": 1, "n_iterations": 150}
    plain = last(weighted_flat(A, paths, information, **options)).volume
    units = np.array([1.0, 30.0, 0.2])
    other_paths = paths * units[:, None, None]
    scale = np.array([1 / (units[k] * units[other]) for k, other in pairs(3)])[:, None, None]
    other = last(weighted_flat(A, other_paths, information * scale, **options)).volume
    np.testing.assert_allclose(other / units[:, None, None, None], plain, rtol=2e-3, atol=2e-3)
    louder = last(weighted_flat(A, 7 * paths, information / 49, **options)).volume
    np.testing.assert_allclose(louder / 7, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prior", ["vtv", "tnv"])
def test_coupled_priors_do_not_care_for_the_basis_of_materials(problem, prior) -> None:
    A, paths, information, _ = problem
    options = {"prior": prior, "n_subsets": 1, "n_iterations": 150}
    plain = last(weighted_flat(A, paths, information, **options)).volume
    change = np.array([[1.0, 0.4, 0.0], [-0.3, 1.0, 0.2], [0.1, 0.0, 2.0]])  # other basis materials of the same matter
    back = np.linalg.inv(change)
    F = packed(np.einsum("ak,abvr,bl->klvr", back, unpacked(information), back))
    other = last(weighted_flat(A, channels_mixed(paths, change), F, **options)).volume
    np.testing.assert_allclose(channels_mixed(other, back), plain, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("prior", ["huber", "vtv", "tnv"])
def test_the_objective_does_not_rise(problem, prior) -> None:
    A, paths, information, _ = problem
    work = weighted_flat(A, paths, information, prior=prior, n_subsets=1, n_iterations=60, n_prox_iterations=200)
    objectives = [iterate.objective for iterate in work]
    assert objectives[-1] < 0.5 * objectives[0]
    # momentum may swing by a little before it is begun anew
    assert all(after <= before * (1 + 1e-3) for before, after in itertools.pairwise(objectives[3:]))


@pytest.mark.parametrize("method", ["fista", "pdhg"])
def test_both_methods_and_any_subsets_end_alike(problem, method) -> None:
    A, paths, information, _ = problem
    goal = last(weighted_flat(A, paths, information, prior="tnv", n_subsets=1, n_iterations=400)).volume
    found = last(
        weighted_flat(
            A, paths, information, prior="tnv", n_subsets=4, n_iterations=600, method=method, n_prox_iterations=20
        )
    )
    np.testing.assert_allclose(found.volume, goal, atol=3e-3)


@pytest.mark.parametrize("basis", ["whitened", "materials"])
def test_materials_may_not_be_negative_one_by_one(problem, basis) -> None:
    A, paths, information, _ = problem
    options = {"prior": "vtv", "n_subsets": 1, "n_iterations": 400, "strength": 0.01, "n_prox_iterations": 20}
    shifted = paths - 3
    free = last(weighted_flat(A, shifted, information, basis=basis, **options))
    assert (free.volume < -0.01).any((1, 2, 3)).all()
    bound = last(weighted_flat(A, shifted, information, basis=basis, is_non_negative=[True, False, True], **options))
    assert bound.volume[[0, 2]].min() >= 0
    assert bound.volume[1].min() < 0
    assert bound.objective > free.objective


def test_bounds_lead_to_the_same_minimum_in_both_bases(problem) -> None:
    """A quadratic data term alone: the constraint is of the concentrations, whatever channels the method works in."""
    A, paths, information, _ = problem
    options = {"prior": "tv", "strength": 1e-6, "n_subsets": 1, "n_iterations": 600, "n_prox_iterations": 10}
    one, other = (
        last(weighted_flat(A, paths - 1, information, basis=basis, is_non_negative=True, **options)).volume
        for basis in ("whitened", "materials")
    )
    np.testing.assert_allclose(one, other, atol=5e-3)


def test_the_noise_basis_is_the_inverse_of_what_rays_tell_of_a_voxel(problem) -> None:
    """Where that is the same in all rays: their lengths in a voxel, squared and summed, times the information."""
    A, paths, _, _ = problem
    F = spread_information(np.random.default_rng(3), (1, 1))
    information = np.broadcast_to(F, (6, *paths.shape[1:]))
    T = noise_basis(A, paths, information)
    one = unpacked(F)[..., 0, 0]
    np.testing.assert_allclose(T @ T.T, np.linalg.inv(one) / data_curvature(A, None, paths), rtol=1e-6)
    each = noise_basis(A, paths, information, "materials")
    np.testing.assert_allclose(each, np.diag(np.sqrt(np.diag(T @ T.T))))
    tenth = noise_basis(A, paths, information / 100)
    np.testing.assert_allclose(tenth @ tenth.T, 100 * (T @ T.T), rtol=1e-9)


def test_mixed_priors_are_the_prior_of_the_mixture() -> None:
    rng = np.random.default_rng(0)
    M, rows = rng.normal(size=(3, 3)), rng.normal(size=(2, 3))
    y = rng.normal(size=(3, 1, 6, 7))
    prior = VectorialTotalVariation(strength_per_mm=0.4)
    for bounds in (None, rows):
        mixed = MixedPrior(prior=prior, mixing=M, rows=bounds)
        u = mixed.prox(y, 1.5, n_iterations=4000)
        assert mixed.value(u) == pytest.approx(prior.value(channels_mixed(u, M)))
        if bounds is not None:
            assert channels_mixed(u, bounds).min() > -1e-4

        def objective(v, mixed=mixed):
            return ((v - y) ** 2).sum() / 2 + 1.5 * mixed.value(v)

        for _ in range(20):  # no feasible point nearby is better
            v = u + 0.02 * rng.normal(size=u.shape)
            if bounds is None or channels_mixed(v, bounds).min() >= 0:
                assert objective(v) > objective(u)
        for share in (0.1, 0.5):  # nor one on the way to others that are feasible: flat images
            flat = 0 * u + np.linalg.lstsq(rows, np.ones(2), rcond=None)[0][:, None, None, None]
            assert objective(u + share * (flat - u)) > objective(u)
    smooth = MixedPrior(prior=Huber(strength_per_mm=0.4, corner_per_mm=0.3), mixing=M)
    step = 1e-6 * rng.normal(size=y.shape)
    slope = (smooth.value(y + step) - smooth.value(y - step)) / 2
    assert slope == pytest.approx(float(np.vdot(smooth.gradient(y), step)), rel=1e-5)
    with pytest.raises(WrongUsage, match="no gradient"):
        MixedPrior(prior=prior, mixing=M, rows=rows).gradient(y)


def test_what_cannot_be_is_refused(problem) -> None:
    A, paths, information, _ = problem
    with pytest.raises(WrongUsage, match="information has shape"):
        last(weighted(A, paths, information[:3]))
    with pytest.raises(WrongUsage, match="passes any matter"):
        last(weighted(A, paths, 0 * information))
    with pytest.raises(WrongUsage, match="is_non_negative"):
        last(weighted(A, paths, information, prior=None, is_non_negative=True))
    with pytest.raises(WrongUsage, match="no prior is called"):
        last(weighted(A, paths, information, prior="magic"))
    blind = np.zeros_like(information)
    blind[0] = 1
    with pytest.raises(WrongUsage, match="cannot tell the materials apart"):
        last(weighted(A, paths, blind))


def test_arrays_of_a_device_give_the_same(problem, monkeypatch) -> None:
    A, paths, information, _ = problem
    here = last(weighted(A, paths, information, prior=None, n_iterations=5)).volume
    monkeypatch.setitem(sys.modules, "cupy", stand_in_cupy.cupy)
    xp: Any = stand_in_cupy.cupy
    there = MatrixOperator(xp.asarray(A.matrices))
    found = last(weighted(there, xp.asarray(paths), xp.asarray(information), prior=None, n_iterations=5)).volume
    np.testing.assert_allclose(xp.asnumpy(found), here, rtol=1e-9)


@pytest.fixture(scope="module")
def discs():
    """Two agents in a cylinder of water, whose paths have strongly anti-correlated noise."""
    n, n_views = 48, 90
    grid = Grid(shape=(1, n, n), voxel_mm=0.5)
    scan = ScanGeometry.parallel(np.arange(n_views) * np.pi / n_views, rows=1, cols=56, pitch_mm=0.5)
    _, y, x = grid.axes_mm()
    radius = np.hypot(y[:, None], x)
    truth = np.zeros((2, 1, n, n), np.float32)
    truth[1, 0] = radius < 10
    for k, (x0, y0) in enumerate(((-4, 0), (4, 0), (0, 5))):
        truth[0, 0][np.hypot(y[:, None] - y0, x - x0) < 2.5] = 0.01 * (k + 1)
    A = Projector(scan, grid, n_channels=2)
    exact_paths = A.forward(truth)
    covariance = np.array([[0.02**2, -0.95 * 0.02 * 0.5], [-0.95 * 0.02 * 0.5, 0.5**2]])
    root = np.linalg.cholesky(covariance)
    noise = np.random.default_rng(4).normal(size=A.range_shape)
    paths = (exact_paths + channels_mixed(noise, root)).astype(np.float32)
    inverse = packed(np.linalg.inv(covariance)[..., None, None, None])
    return A, paths, np.broadcast_to(inverse, (3, *paths.shape[1:])).astype(np.float32), truth


def test_whole_weights_and_a_joint_prior_beat_channels_by_themselves(discs) -> None:
    """At equal bias of the vials: strengths of both are chosen to leave the same contrast."""
    A, paths, information, truth = discs
    alone = information.copy()
    whole = unpacked(information)
    variance = np.linalg.inv(whole[..., 0, 0, 0])
    alone[1] = 0
    alone[0], alone[2] = 1 / variance[0, 0], 1 / variance[1, 1]
    vials = truth[0] > 0
    flat = (truth[1] > 0) & ~vials

    def judged(volume):
        slope = np.vdot(volume[0][vials], truth[0][vials]) / np.vdot(truth[0][vials], truth[0][vials])
        return slope, volume[0][flat].std(), np.sqrt(np.mean((volume[0] - truth[0]) ** 2))

    def at_slope(information, prior, wanted=0.965):
        low, high, found = -2.0, 2.0, (0.0, 0.0, 0.0)
        for _ in range(6):
            middle = (low + high) / 2
            work = weighted(A, paths, information, prior=prior, strength=float(np.exp(middle)), n_iterations=25)
            found = judged(last(work).volume)
            low, high = (middle, high) if found[0] > wanted else (low, middle)
        return found

    joint, single = at_slope(information, "tnv"), at_slope(alone, "tv")
    assert joint[0] == pytest.approx(single[0], abs=0.02)
    assert joint[1] < 0.6 * single[1]
    assert joint[2] < 0.6 * single[2]


def test_noise_of_materials_is_less_correlated_with_the_whole_weights(discs) -> None:
    A, paths, information, truth = discs
    flat = (truth[1] > 0) & (truth[0] == 0)
    plain = last(weighted(A, paths, information, prior=None, n_iterations=15)).volume
    joint = last(weighted(A, paths, information, prior="tnv", n_iterations=25)).volume

    def in_noise(volume):
        return np.linalg.inv(noise_basis(A, paths, information)) @ (volume - truth)[:, flat]

    before, after = (np.cov(in_noise(volume)) for volume in (plain, joint))
    assert np.trace(after) < 0.2 * np.trace(before)


def test_cone_beams_are_taken_as_they_come() -> None:
    from calibration.geometry import Geometry

    geometry = Geometry(source_to_detector_mm=120, source_to_object_mm=80, pitch_mm=0.6, rows=16, cols=24)
    scan = ScanGeometry.circular(geometry, np.arange(30) * 2 * np.pi / 30)
    grid = Grid(shape=(8, 16, 16), voxel_mm=0.5)
    A = Projector(scan, grid, n_channels=2)
    truth = np.zeros(A.domain_shape, np.float32)
    truth[1, 2:6, 4:12, 4:12], truth[0, 3:5, 6:9, 6:9] = 1.0, 0.02
    information = (
        np.ones((3, *A.range_shape[1:]), np.float32) * np.array([1e4, 200, 10], np.float32)[:, None, None, None]
    )
    found = last(weighted(A, A.forward(truth), information, strength=1e-3, n_iterations=60, n_subsets=5))
    assert np.abs(found.volume - truth)[1].max() < 0.05
    assert np.abs(found.volume - truth)[0].max() < 0.002
