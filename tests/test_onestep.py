"""One step from counts to materials: the laws of its descent, what it recovers, and that nothing makes it run away."""

from __future__ import annotations

import sys
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from calibration.geometry import Geometry
from firmware_iface.errors import WrongUsage
from reconstruction.kernels import onestep_cpu, onestep_plain
from reconstruction.kernels.onestep_plain import Nodes, Rays
from reconstruction.onestep import one_step
from reconstruction.priors import Huber
from reconstruction.projector import Projector
from reconstruction.scan_geometry import ScanGeometry
from reconstruction.spectral.model import SpectralModel
from reconstruction.symmetric import packed_size, place
from reconstruction.volume import Grid
from tests import stand_in_cupy
from tests.matrix_operator import MatrixOperator, random_operator

MATERIALS = ("iodine", "gadolinium", "water")
PHOTONS = 1e5
ALL = slice(None)


def spectral_model() -> SpectralModel:
    """Five bins of a 100 kVp tube, each of which also sees some of what belongs to the bins above it."""
    energies = np.arange(25.0, 100.0, 2.5)
    spectrum = (energies - 20) * (102 - energies)
    edges = [25.0, 34.0, 51.0, 62.0, 73.0, 101.0]
    hit = np.stack([(energies >= low) & (energies < high) for low, high in pairwise(edges)]).astype(float)
    shared = np.stack([0.2 * hit[k + 1 :].sum(axis=0) for k in range(len(hit))])
    return SpectralModel.of_spectrum((hit + shared) * spectrum, energies, MATERIALS)


MODEL = spectral_model()


class Scan:
    """A water square with two inserts, by parallel rays or a cone, small enough that everything is quick."""

    def __init__(self, *, n=32, n_views=48, photons=PHOTONS, seed=0, is_cone=False, dtype=np.float32, mg_ml=20.0):
        angles = np.arange(n_views) * (2 * np.pi if is_cone else np.pi) / n_views
        n_z = 6 if is_cone else 1
        if is_cone:
            geometry = Geometry(
                source_to_detector_mm=300.0, source_to_object_mm=200.0, pitch_mm=3.0, rows=n_z + 4, cols=int(1.5 * n)
            )
            scan = ScanGeometry.circular(geometry, angles)
        else:
            scan = ScanGeometry.parallel(angles, rows=1, cols=int(1.5 * n), pitch_mm=2.0)
        self.projector = Projector(scan, Grid(shape=(n_z, n, n), voxel_mm=2.0), n_channels=3, dtype=dtype)
        unit = n // 8
        truth = np.zeros((3, n_z, n, n))
        truth[2, :, unit : 7 * unit, unit : 7 * unit] = 1
        self.rois = (
            (0, ALL, slice(2 * unit, 3 * unit), slice(2 * unit, 3 * unit)),
            (
                1,
                ALL,
                slice(4 * unit, 5 * unit),
                slice(5 * unit, 6 * unit),
            ),
        )
        for roi in self.rois:
            truth[roi] = mg_ml / 1000
        self.truth = truth.astype(dtype)
        self.open_counts = photons * np.array([0.15, 0.35, 0.2, 0.15, 0.15])
        self.expected = self.open_counts[:, None, None, None] * MODEL.transmission(self.projector.forward(self.truth))
        self.counts = np.random.default_rng(seed).poisson(self.expected).astype(dtype)

    def run(self, counts=None, **options):
        return one_step(
            self.projector,
            self.counts if counts is None else counts,
            MODEL,
            **{"open_counts": self.open_counts, "start": self.blurred(), **options},
        )

    def blurred(self):
        """A start that is none too good: water alone."""
        start = np.zeros_like(self.truth)
        start[2] = 0.9 * (self.truth[2] > 0)
        return start


@pytest.fixture(scope="module")
def small():
    return Scan()


def end_of(iterates):
    *_, last = iterates
    return last


def half_deviance(counts, expected):
    """By SciPy's Poisson distribution."""
    return float((stats.poisson.logpmf(counts, counts) - stats.poisson.logpmf(counts, expected)).sum())


def random_rays(rng, *, n_views=3, n_rays=150):
    """Rays with all that can be: dark ones, background, pixels of their own, some left out."""
    paths = np.stack([rng.uniform(-0.05, 0.4, (n_views, n_rays)), rng.uniform(0, 0.4, (n_views, n_rays)),
                      rng.uniform(0, 120, (n_views, n_rays))])  # fmt: skip
    opened = rng.uniform(50, 5000, (5, 1, n_rays))
    dark = rng.uniform(0, 5, (5, n_views, n_rays))
    counts = rng.poisson(opened * MODEL.transmission(paths) + dark).astype(float)
    weights = (rng.random((1, n_views, n_rays)) < 0.9).astype(float)
    return paths, Rays(counts, opened, dark, weights)


def single(named):
    return type(named)(*(np.ascontiguousarray(array, np.float32) for array in named))


NODES = Nodes(MODEL.weights, MODEL.attenuation_per_mm_per_g_cm3)


def test_slopes_are_those_of_the_likelihood():
    rng = np.random.default_rng(3)
    paths, rays = random_rays(rng, n_rays=4)
    y, opened, dark, weights = rays

    def objective(values):
        expected = opened * MODEL.transmission(values.reshape(paths.shape)) + dark + onestep_plain.DARK_COUNTS
        return (weights * (stats.poisson.logpmf(y, y) - stats.poisson.logpmf(y, expected))).sum()

    values, slopes = paths.ravel(), paths.copy()
    told, _ = onestep_plain.slopes(slopes, rays, NODES, ALL)
    assert told == pytest.approx(objective(values), rel=1e-9)
    numeric = np.array([(objective(values + e) - objective(values - e)) / 2e-6 for e in 1e-6 * np.eye(values.size)])
    np.testing.assert_allclose(slopes.ravel(), numeric, rtol=1e-4, atol=1e-5 * np.abs(numeric).max())


def test_curvature_where_counts_are_as_expected_is_fishers_information():
    rng = np.random.default_rng(4)
    paths, rays = random_rays(rng)
    dark = np.zeros_like(rays.background)
    counts = rays.open_counts * MODEL.transmission(paths)
    out = np.empty((packed_size(3), *paths.shape[1:]))
    onestep_plain.curvature(out, paths, Rays(counts, rays.open_counts, dark, np.ones((1, 1, 1))), NODES)
    fisher = MODEL.fisher(paths, np.broadcast_to(rays.open_counts, counts.shape))
    for i in range(3):
        for j in range(3):
            np.testing.assert_allclose(out[place(i, j, 3)], fisher[i, j], rtol=1e-3)


def test_rays_come_out_the_same_in_parts(monkeypatch):
    paths, rays = random_rays(np.random.default_rng(6), n_views=5)
    results = []
    for most in (onestep_plain.MOST_AT_ONCE, 2 * 150 * len(MODEL.energies_kev)):
        monkeypatch.setattr(onestep_plain, "MOST_AT_ONCE", most)
        slopes, curvature = paths.copy(), np.empty((6, 5, 150))
        told = onestep_plain.slopes(slopes, rays, NODES, ALL)
        onestep_plain.curvature(curvature, paths, rays, NODES)
        results.append((told, slopes, curvature))
    (told, *whole), (told_of_parts, *in_parts) = results
    assert told_of_parts == pytest.approx(told)
    np.testing.assert_allclose(in_parts[0], whole[0])
    np.testing.assert_allclose(in_parts[1], whole[1])


@pytest.mark.parametrize("views", [ALL, slice(1, None, 2)])
def test_fast_kernels_give_what_the_plain_ones_give(views):
    rng = np.random.default_rng(5)
    paths, rays = random_rays(rng, n_views=5)
    some = np.ascontiguousarray(paths[:, views])
    fast, plain = some.astype(np.float32), some.copy()
    told, expected = (
        onestep_cpu.slopes(fast, single(rays), single(NODES), views),
        onestep_plain.slopes(plain, rays, NODES, views),
    )
    np.testing.assert_allclose(told, expected, rtol=1e-4)
    np.testing.assert_allclose(fast, plain, rtol=1e-4, atol=3e-5 * np.abs(plain).max())
    fast, plain = np.empty((6, 5, 150), np.float32), np.empty((6, 5, 150))
    onestep_cpu.curvature(fast, paths.astype(np.float32), single(rays), single(NODES))
    onestep_plain.curvature(plain, paths, rays, NODES)
    np.testing.assert_allclose(fast, plain, rtol=1e-4)


@pytest.mark.parametrize("is_non_negative", [False, True])
@pytest.mark.parametrize("has_momentum", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_a_step_goes_to_the_least_of_each_voxels_paraboloid(n, has_momentum, is_non_negative):
    rng = np.random.default_rng(n)
    shape = (2, 3, 50)
    roots = rng.normal(size=(*shape, n, n + 1))
    matrices = roots @ roots.swapaxes(-1, -2)
    hessian = np.stack([matrices[..., i, j] for i in range(n) for j in range(i, n)]).astype(np.float32)
    gradient = rng.normal(size=(n, *shape)).astype(np.float32)
    place = rng.uniform(0, 1, (n, *shape)).astype(np.float32)
    old = rng.uniform(0, 1, (n, *shape)).astype(np.float32)
    floor = rng.uniform(0.5, 1, n)
    results = []
    for kernels in (onestep_cpu, onestep_plain):
        ahead = place.copy()
        x = old.copy() if has_momentum else ahead
        momentum = 0.7 if has_momentum else 0.0
        kernels.step(x, ahead, gradient.copy(), hessian, floor, 1.5, momentum, is_non_negative)
        results.append((x, ahead))
    (x, ahead), plain = results
    np.testing.assert_allclose((x, ahead), plain, rtol=1e-4, atol=1e-4)
    full = 1.5 * matrices + np.diag(floor)
    for at in [(0, 0, 0), (1, 2, 49), (1, 0, 7)]:
        g, c = gradient[:, *at].astype(float), place[:, *at].astype(float)
        if is_non_negative:
            root = np.linalg.cholesky(full[at]).T
            best, _ = optimize.nnls(root, root @ c - np.linalg.solve(root.T, g))
        else:
            best = c - np.linalg.solve(full[at], g)
        # in so few sweeps coordinate descent comes near the bound solution, not to it
        np.testing.assert_allclose(x[:, *at], best, atol=0.05 if is_non_negative else 1e-4)
        if has_momentum:
            further = x[:, *at] + 0.7 * (x[:, *at] - old[:, *at])
            np.testing.assert_allclose(ahead[:, *at], np.maximum(further, 0) if is_non_negative else further, atol=1e-5)


def test_one_subset_never_gets_worse_and_tells_its_objective(small):
    told = []
    for iterate in small.run(n_subsets=1, has_momentum=False, n_iterations=15):
        expected = small.open_counts[:, None, None, None] * MODEL.transmission(small.projector.forward(iterate.volume))
        assert iterate.objective == pytest.approx(half_deviance(small.counts, expected), rel=1e-4)
        told.append(iterate.objective)
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in pairwise(told))
    assert told[-1] < 0.3 * told[0]


@pytest.mark.parametrize("start", ["nothing", "too much"])
def test_one_subset_never_gets_worse_from_far_away(small, start):
    far = np.zeros_like(small.truth) if start == "nothing" else 3 * small.blurred()
    told = [i.objective for i in small.run(n_subsets=1, start=far, n_iterations=25)]
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in pairwise(told))
    assert told[-1] < 0.5 * told[0]


def test_the_prior_is_part_of_the_objective_that_falls(small):
    prior = Huber(strength_per_mm=1.0, corner_per_mm=1.0)
    told = [i.objective for i in small.run(n_subsets=1, prior=prior, n_iterations=20)]
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in pairwise(told))
    without = end_of(small.run(n_subsets=1, n_iterations=20)).volume.copy()
    smooth = end_of(small.run(n_subsets=1, prior=prior, n_iterations=20)).volume
    inside = np.s_[:, :, 9:13, 18:22]  # water alone
    assert (smooth[inside].std(axis=(1, 2, 3)) < 0.7 * without[inside].std(axis=(1, 2, 3))).all()


def test_four_subsets_end_where_one_does(small):
    prior = Huber(strength_per_mm=2.0, corner_per_mm=4.0)
    one = end_of(small.run(n_subsets=1, prior=prior, n_iterations=400)).volume.copy()
    four = end_of(small.run(n_subsets=4, prior=prior, n_iterations=200)).volume
    scale = np.abs(one).max(axis=(1, 2, 3), keepdims=True)
    assert np.abs((four - one) / scale).max() < 0.05


def test_without_noise_the_truth_comes_back(small):
    end = end_of(small.run(small.expected.astype(np.float32), n_iterations=200))
    for roi, other in zip(small.rois, reversed(small.rois), strict=True):
        assert end.volume[roi].mean() == pytest.approx(0.02, rel=0.02)
        assert abs(end.volume[roi[0], *other[1:]].mean()) < 0.0006
    assert end.volume[2, :, 6:26, 6:26].mean() == pytest.approx(1, abs=0.003)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    n_subsets=st.integers(1, 16),
    photons=st.sampled_from([30.0, 1e3, 1e5]),
    strength=st.sampled_from([0.0, 1.0, 30.0]),
    is_far=st.booleans(),
    is_non_negative=st.booleans(),
)
def test_it_never_runs_away(n_subsets, photons, strength, is_far, is_non_negative):
    scan = Scan(photons=photons)
    start = np.zeros_like(scan.truth) if is_far else scan.blurred()
    prior = Huber(strength_per_mm=strength, corner_per_mm=1.0) if strength else None
    iterates = scan.run(n_subsets=n_subsets, start=start, prior=prior, n_iterations=60, is_non_negative=is_non_negative)
    told = []
    for iterate in iterates:
        assert np.isfinite(iterate.volume).all()
        told.append(iterate.objective)
        assert not is_non_negative or iterate.volume.min() >= 0
    assert told[-1] <= told[0] * (1 + 1e-6)
    assert told[-1] <= 1.02 * min(told)


@pytest.mark.parametrize("prior", ["gibbs", "tv", "vtv", "tnv", "dtv"])
def test_every_prior_takes_noise_away_and_lowers_what_it_should(small, prior):
    told, volume = [], small.truth
    reference = small.truth.sum(axis=0) if prior == "dtv" else None
    for iterate in small.run(n_subsets=1, prior=prior, reference=reference, n_iterations=20):
        told.append(iterate.objective)
        volume = iterate.volume
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in pairwise(told))
    without = end_of(small.run(n_subsets=1, n_iterations=20)).volume.copy()
    inside = np.s_[:, :, 9:13, 18:22]
    assert (volume[inside].std(axis=(1, 2, 3)) < without[inside].std(axis=(1, 2, 3))).all()


def test_a_joint_prior_does_not_depend_on_the_dose(small):
    """The strength that is told in noise takes the same share of the noise away at any number of photons."""

    def spread(photons, has_prior):
        scan = Scan(photons=photons)
        return (
            end_of(scan.run(prior="huber" if has_prior else None, n_iterations=40))
            .volume[:, :, 9:13, 18:22]
            .std(axis=(1, 2, 3))
        )

    shares = [spread(photons, True) / spread(photons, False) for photons in (1e5, 4e6)]
    np.testing.assert_allclose(shares[0], shares[1], rtol=0.5)


def test_it_makes_its_own_start_and_a_better_one_saves_iterations(small):
    def first_near(start):
        for iterate in small.run(start=start, n_subsets=4, prior="tnv", n_iterations=40):
            if all(abs(iterate.volume[roi].mean() / 0.02 - 1) < 0.1 for roi in small.rois):
                return iterate.number
        return 99

    own, water, near = first_near(None), first_near(small.blurred()), first_near(0.9 * small.truth)
    assert own < 20
    assert near < water


def test_a_ray_left_out_or_unknown_does_not_matter(small):
    spoilt = small.counts.copy()
    spoilt[:, :, :, 20] = 1e6
    weights = np.ones(small.counts.shape[1:])
    weights[:, :, 20] = 0
    left_out = end_of(small.run(spoilt, weights=weights, n_iterations=5)).volume.copy()
    spoilt[:, :, :, 20] = np.nan
    unknown = end_of(small.run(spoilt, n_iterations=5)).volume
    np.testing.assert_array_equal(left_out, unknown)


def test_scatter_that_is_told_does_no_harm(small):
    scatter = 0.2 * small.expected.mean(axis=(1, 2, 3))
    counts = (small.expected + scatter[:, None, None, None]).astype(np.float32)
    told = end_of(small.run(counts, background=scatter, n_iterations=60)).volume.copy()
    untold = end_of(small.run(counts, n_iterations=60)).volume
    inside = np.s_[2, :, 6:26, 6:26]
    assert told[inside].mean() == pytest.approx(1, abs=0.01)
    assert untold[inside].mean() < 0.95


def test_two_materials_that_cannot_be_told_apart_do_no_harm(small):
    twice = SpectralModel(
        materials=("iodine", "iodine again", "water"),
        bins=MODEL.bins,
        weights=MODEL.weights,
        attenuation_per_mm_per_g_cm3=MODEL.attenuation_per_mm_per_g_cm3[:, [0, 0, 2]],
        energies_kev=MODEL.energies_kev,
    )
    iterates = one_step(
        small.projector, small.counts, twice, open_counts=small.open_counts, start=small.blurred(), n_iterations=20
    )
    told = []
    for iterate in iterates:
        assert np.abs(iterate.volume).max() < 10
        told.append(iterate.objective)
    assert told[-1] < told[0]


def test_a_cone_beam_too():
    scan = Scan(is_cone=True)
    end = end_of(scan.run(scan.expected.astype(np.float32), n_iterations=60)).volume
    for roi in scan.rois:
        assert end[roi][1:-1].mean() == pytest.approx(0.02, rel=0.1)


def test_arrays_of_the_device_give_the_same_and_stay_there(monkeypatch):
    rng = np.random.default_rng(8)
    A = MatrixOperator(np.repeat(random_operator(rng, n_views=12, n_rays=6).matrices, 3, axis=0))
    truth = rng.uniform(0, 1, A.domain_shape) * np.array([0.02, 0.02, 3])[:, None]
    opened = PHOTONS * np.full(5, 0.2)
    counts = rng.poisson(opened[:, None, None] * MODEL.transmission(A.forward(truth))).astype(float)
    counts[2, 3, 4] = np.nan
    start = truth * rng.uniform(0.5, 1.5, truth.shape)
    options = {"n_subsets": 3, "n_iterations": 6, "is_non_negative": True}
    here = [
        (i.volume.copy(), i.objective, i.residual)
        for i in one_step(A, counts, MODEL, open_counts=opened, start=start, **options)
    ]
    cupy: Any = stand_in_cupy.cupy
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    stand_in_cupy.brought.clear()
    there = MatrixOperator(cupy.asarray(A.matrices))
    iterates = one_step(
        there, cupy.asarray(counts), MODEL, open_counts=cupy.asarray(opened), start=cupy.asarray(start), **options
    )
    for iterate, (volume, objective, residual) in zip(iterates, here, strict=True):
        assert (iterate.objective, iterate.residual) == pytest.approx((objective, residual))
        assert max(stand_in_cupy.brought) <= 6  # a figure for each pair of materials
        np.testing.assert_allclose(iterate.volume.values, volume, rtol=1e-8, atol=1e-12)


def test_what_does_not_fit_is_refused(small):
    with pytest.raises(WrongUsage, match="5 bins"):
        next(small.run(small.counts[:3]))
    with pytest.raises(WrongUsage, match="start"):
        next(small.run(start=small.truth[:2]))
    with pytest.raises(WrongUsage, match="lowest of the counts"):
        next(small.run(-small.counts - 1))
    with pytest.raises(WrongUsage, match="nothing to reconstruct"):
        next(small.run(weights=np.zeros(small.counts.shape[1:])))
    two = Projector(small.projector.scan, small.projector.grid, n_channels=2)
    with pytest.raises(WrongUsage, match="one for each of"):
        next(one_step(two, small.counts, MODEL, open_counts=small.open_counts))
