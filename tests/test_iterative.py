"""The table of methods, the one way to run them, and when they end."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from calibration.geometry import Geometry
from calibration.progress import Progress
from firmware_iface.errors import WrongUsage
from reconstruction.iterative import COUNTS, METHODS, PRIORS, method_named, prior_options, reconstruct
from reconstruction.methods.convergence import Step
from reconstruction.methods.least_squares import cgls, os_sart
from reconstruction.methods.stopping import Discrepancy, Iterations, RelativeChange
from reconstruction.projector import Projector
from reconstruction.scan_geometry import ScanGeometry
from reconstruction.volume import Grid
from tests.matrix_operator import random_operator

HERE = [name for name, method in METHODS.items() if not method.has_prior]


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def run(work):
    """Run a generator to its end; return what it told and its result."""
    told = []
    while True:
        try:
            told.append(next(work))
        except StopIteration as end:
            return told, end.value


def scanner(n_channels: int = 1, mask=None, dtype=np.float64) -> Projector:
    geometry = Geometry(source_to_detector_mm=60, source_to_object_mm=40, pitch_mm=1.5, rows=6, cols=14)
    scan = ScanGeometry.circular(geometry, np.arange(16) * 2 * np.pi / 16)
    return Projector(scan, Grid(shape=(4, 10, 10), voxel_mm=1.0), n_channels=n_channels, mask=mask, dtype=dtype)


@pytest.mark.parametrize("name", HERE)
def test_every_method_reconstructs_a_scan(rng, name):
    A = scanner(n_channels=2)
    truth = rng.uniform(0.02, 0.06, A.domain_shape)
    integrals = A.forward(truth)
    is_counts = METHODS[name].takes == COUNTS
    data = 1e5 * np.exp(-integrals) if is_counts else integrals
    extra = {"flat": np.full(1, 1e5)} if is_counts else {}
    told, result = run(reconstruct(A, data, method=name, iterations=12, **extra))
    assert told[0] == Progress(name, 0, 12)
    assert told[-1] == Progress(name, 12, 12)
    assert result.log.ended_by == "12 iterations"
    assert [step.number for step in result.log.steps] == list(range(1, 13))
    error = np.linalg.norm(A.forward(result.values) - integrals) / np.linalg.norm(integrals)
    assert error < 0.08
    assert np.linalg.norm(result.values - truth) < 0.7 * np.linalg.norm(truth)


@pytest.mark.parametrize("name", HERE)
def test_the_support_is_kept(rng, name):
    mask = rng.random((4, 10, 10)) < 0.6
    A = scanner(mask=mask)
    integrals = A.forward(rng.uniform(0.02, 0.06, A.domain_shape))
    is_counts = METHODS[name].takes == COUNTS
    data = 1e5 * np.exp(-integrals) if is_counts else integrals
    extra = {"flat": np.full(1, 1e5)} if is_counts else {}
    _, result = run(reconstruct(A, data, method=name, iterations=3, **extra))
    assert (result.values[0, ~mask] == 0).all()
    assert (result.values[0, mask] != 0).mean() > 0.9


def test_rows_are_told_apart_and_their_options_are_those_of_the_functions():
    assert "n_subsets" not in method_named("sart").options()
    assert method_named("os-sart").options()["n_subsets"].default == 10
    assert "n_iterations" not in method_named("cgls").options()
    assert method_named("cgls").iterations == inspect.signature(cgls).parameters["n_iterations"].default
    assert set(method_named("transmission").options()) & {"flat", "weights", "start", "background"} == set()


def test_options_are_understood_as_texts(rng):
    A = random_operator(rng)
    b = A.forward(rng.uniform(0, 1, A.domain_shape))
    texts = {"n_subsets": "4", "has_momentum": "false", "relaxation": "0.5", "order": "golden"}
    _, found = run(reconstruct(A, b, method="os-sart", iterations=3, options=texts))
    *_, meant = os_sart(A, b, n_iterations=3, n_subsets=4, has_momentum=False, relaxation=0.5, order="golden")
    np.testing.assert_array_equal(found.values, meant.volume)


@pytest.mark.parametrize(
    ("kwargs", "told"),
    [
        ({"method": "magic"}, "no method is called 'magic'"),
        ({"options": {"subsets": 3}}, "no option 'subsets'"),
        ({"options": {"n_subsets": "many"}}, "n_subsets of os_sart is 'many'"),
        ({"options": {"order": "alphabet"}}, "order"),
        ({"method": "sart", "options": {"n_subsets": 3}}, "n_subsets"),
        ({"method": "cgls", "flat": np.ones(1)}, "no use for flat"),
        ({"method": "transmission"}, "needs flat"),
        ({"iterations": 0}, "0 iterations"),
        ({"prior": object()}, "takes no prior"),
    ],
)
def test_what_cannot_be_is_refused_in_words(rng, kwargs, told):
    A = random_operator(rng)
    with pytest.raises(WrongUsage, match=told):
        next(reconstruct(A, np.zeros(A.range_shape), **kwargs))


def test_each_channel_ends_when_its_own_noise_is_reached(rng):
    """Channels of different noise: each is what it would be if it were alone."""
    A = random_operator(rng, n_channels=3, n_views=40, n_voxels=100)
    A.matrices[:] = A.matrices[:1]
    sigma = np.array([0.5, 0.1, 0.02])
    b = A.forward(rng.uniform(0, 1, A.domain_shape)) + sigma[:, None, None] * rng.standard_normal(A.range_shape)
    n_data = b[0].size
    _, together = run(reconstruct(A, b, method="cgls", iterations=60, stop=Discrepancy(n_data=n_data, sigma=sigma)))
    assert together.log.ended_by == "the residual being down to the noise"
    counts = []
    for c in range(3):
        alone = type(A)(A.matrices[c : c + 1])
        rule = Discrepancy(n_data=n_data, sigma=sigma[c : c + 1])
        _, one = run(reconstruct(alone, b[c : c + 1], method="cgls", iterations=60, stop=rule))
        np.testing.assert_allclose(together.values[c], one.values[0], rtol=1e-9)
        counts.append(len(one.log.steps))
    assert counts == sorted(counts)
    assert counts[0] < counts[2] == len(together.log.steps)


def test_a_warm_start_and_a_stop_go_through(rng):
    A = random_operator(rng)
    truth = rng.uniform(0, 1, A.domain_shape)
    _, result = run(reconstruct(A, A.forward(truth), start=truth, stop=Iterations(count=2), iterations=50))
    assert len(result.log.steps) == 2
    assert result.log.ended_by == "2 iterations"
    np.testing.assert_allclose(result.values, truth, atol=1e-9)


def test_the_run_can_be_left(rng):
    A = random_operator(rng)
    work = reconstruct(A, np.ones(A.range_shape), method="sirt", iterations=10**6)
    for _ in range(4):
        next(work)
    work.close()


def step(number: int, *residuals: float) -> Step:
    total = float(np.sqrt(np.square(residuals).sum()))
    return Step(number, total, total**2, residuals if len(residuals) > 1 else (), 0.0)


def test_what_diverges_is_told(rng):
    A = random_operator(rng)
    work = reconstruct(A, np.ones(A.range_shape), method="sirt", iterations=100)
    next(work)
    next(work)
    A.matrices *= 1e200  # the operator of before is no more: steps are far too long
    with np.errstate(all="ignore"), pytest.raises(WrongUsage, match="diverged in iteration"):
        run(work)


def test_a_prior_that_lacks_what_must_be_set_is_refused(rng):
    A = random_operator(rng)
    with pytest.raises(WrongUsage, match="needs strength_per_mm"):
        next(reconstruct(A, np.zeros(A.range_shape), method="fista", prior="tv"))
    options = {"strength_per_mm": "-1"}
    with pytest.raises(WrongUsage, match="cannot be"):
        next(reconstruct(A, np.zeros(A.range_shape), method="fista", prior="tv", options=options))


def test_rules_combine():
    few, calm = Iterations(count=3), RelativeChange(fraction=0.1)
    moving = [step(1, 10.0), step(2, 5.0), step(3, 2.0)]
    resting = [step(1, 10.0), step(2, 9.95)]
    assert (few | calm).met(moving).tolist() == [True]
    assert (few & calm).met(moving).tolist() == [False]
    assert (few | calm).met(resting).tolist() == [True]
    assert (few & calm).met(resting).tolist() == [False]
    assert str(few | calm) == "3 iterations or the residual changing by less than 0.1"


def test_rules_look_at_each_channel():
    steps = [step(1, 10.0, 10.0), step(2, 9.99, 4.0)]
    assert RelativeChange(fraction=0.01).met(steps).tolist() == [True, False]
    assert Discrepancy(n_data=25).met(steps).tolist() == [False, True]
    assert Discrepancy(n_data=25, slack_ratio=2.0).met(steps).tolist() == [True, True]
    with pytest.raises(ValueError, match="slack"):
        Discrepancy(n_data=25, slack_ratio=0.0)


def test_the_log_is_timed_drawn_and_told(rng, tmp_path):
    A = random_operator(rng, n_channels=2)
    ticks = iter(range(100))
    work = reconstruct(A, np.ones(A.range_shape), method="sirt", iterations=4, clock_s=lambda: float(next(ticks)))
    _, result = run(work)
    table = result.log.table()
    assert table["seconds"] == [1.0, 2.0, 3.0, 4.0]
    assert table["number"] == [1, 2, 3, 4]
    assert table["residual"] == [s.residual for s in result.log.steps]
    picture = result.log.plot(tmp_path / "log.png")
    assert picture.stat().st_size > 5000


def test_what_a_method_does_not_know_is_none_in_the_table(rng):
    A = random_operator(rng)
    _, result = run(reconstruct(A, np.ones(A.range_shape), method="lsqr", iterations=2, options={"damping": 0.1}))
    assert result.log.table()["residual"] == [None, None]


@pytest.mark.parametrize("name", PRIORS)
def test_priors_tell_their_options(name):
    pytest.importorskip("reconstruction.priors")
    assert prior_options(name)
