"""Methods on arrays of a device: the same figures, and nothing large comes back; with CuPy where there is a GPU."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from reconstruction import backend
from reconstruction.iterative import COUNTS, METHODS
from reconstruction.iterative import reconstruct as reconstruct_
from tests import stand_in_cupy
from tests.matrix_operator import MatrixOperator, random_operator
from tests.test_iterative import run

HERE = [name for name, method in METHODS.items() if not method.has_prior]


@pytest.fixture
def stand_in(monkeypatch):
    """Arrays that are as strict as CuPy's, without a GPU."""
    monkeypatch.setitem(sys.modules, "cupy", stand_in_cupy.cupy)
    stand_in_cupy.brought.clear()
    return stand_in_cupy.cupy


def problem(name: str, damping: float):
    rng = np.random.default_rng(2)
    A = random_operator(rng, n_channels=3)
    data = A.forward(rng.uniform(0, 0.5, A.domain_shape))
    arrays = {}
    if METHODS[name].takes == COUNTS:
        data, arrays["flat"] = 1e4 * np.exp(-data), np.full((3, 1, 1), 1e4)
    if "weights" in METHODS[name].arrays:
        arrays["weights"] = rng.uniform(0.5, 2, A.range_shape)
    options = METHODS[name].options()
    chosen = {"damping": damping} if "damping" in options else {}
    if "is_non_negative" in options:
        chosen["is_non_negative"] = True
    if "start" in METHODS[name].arrays:
        arrays["start"] = rng.uniform(0.1, 0.2, A.domain_shape)
    return A, data, arrays, chosen


def check(name: str, damping: float, cupy) -> None:
    A, data, arrays, options = problem(name, damping)
    _, host = run(reconstruct_(A, data, method=name, iterations=5, options=options, **arrays))
    there = MatrixOperator(cupy.asarray(A.matrices))
    arrays = {key: cupy.asarray(array) for key, array in arrays.items()}
    _, device = run(reconstruct_(there, cupy.asarray(data), method=name, iterations=5, options=options, **arrays))
    assert backend.namespace(device.values) is cupy
    np.testing.assert_allclose(cupy.asnumpy(device.values), host.values, rtol=1e-9)
    for here, same in zip(host.log.steps, device.log.steps, strict=True):
        assert (same.residual, same.objective) == pytest.approx((here.residual, here.objective), nan_ok=True)
        assert same.channel_residuals == pytest.approx(here.channel_residuals)


@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize("name", HERE)
def test_device_arrays_give_the_same_and_stay_there(stand_in, name, damping):
    check(name, damping, stand_in)
    *within, _ = stand_in_cupy.brought  # the last is the volume, which the check itself brings
    assert max(within) <= 3  # a figure per channel


@pytest.mark.gpu
@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize("name", HERE)
def test_the_gpu_gives_the_same(name, damping):
    check(name, damping, backend.require_gpu())


def test_the_stand_in_refuses_what_cupy_refuses(stand_in):
    x = stand_in.ones(3)
    with pytest.raises(TypeError, match="Implicit"):
        np.asarray(x)
    with pytest.raises(TypeError, match="Unsupported"):
        x + np.ones(3)
