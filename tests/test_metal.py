"""Metal: found, its shadow in-painted, and what starves of photons weighs little."""

from __future__ import annotations

from collections.abc import Generator
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from calibration.progress import Progress, finished
from firmware_iface.errors import WrongUsage
from reconstruction.artefacts import metal
from reconstruction.fdk import fdk
from reconstruction.projector import Projector
from reconstruction.scan_geometry import ScanGeometry
from reconstruction.volume import Grid
from tests import striped_scans as scans
from tests.striped_scans import Round

SCAN = scans.geometry(rows=1, cols=160)
ANGLES = scans.angles_rad(120)
GRID = Grid(shape=(1, 130, 130), voxel_mm=0.14)
BODY = (Round(0.0, 0.0, 8.0, 0.02), Round(3.0, 2.0, 1.5, 0.03), Round(-3.0, 2.0, 1.2, 0.03), Round(-4, -4, 1.0, -0.01))
PINS = (Round(-5.0, -1.0, 0.6, 0.6), Round(5.0, -1.2, 0.6, 0.6))
OPEN_BEAM = 1e5


@cache
def body() -> NDArray[np.float32]:
    return scans.views_of(BODY, SCAN, ANGLES)


@cache
def through_metal() -> NDArray[np.float32]:
    return scans.views_of(PINS, SCAN, ANGLES)


def measured(seed: int = 1) -> NDArray[np.float32]:
    """Behind metal the beam is hard, and the line integral saturates; few photons come through."""
    hardened = body() + through_metal() / (1 + 0.4 * through_metal())
    counts = np.random.default_rng(seed).poisson(OPEN_BEAM * np.exp(-hardened))
    return -np.log(np.maximum(counts, 0.5) / OPEN_BEAM).astype(np.float32)


def by_fdk(values: NDArray[np.float32]) -> Generator[Progress, None, NDArray[np.float32]]:
    return fdk(values, ANGLES, SCAN, GRID, window="hann")


def reconstruct(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return finished(by_fdk(values))


@cache
def projector() -> Projector:
    return Projector(ScanGeometry.circular(SCAN, ANGLES), GRID)


def true_metal() -> NDArray[np.bool_]:
    _, y, x = GRID.axes_mm()
    return np.any([np.hypot(y[:, None] - pin.y_mm, x - pin.x_mm) < pin.radius_mm for pin in PINS], axis=0)[None]


def rmse_outside(values: NDArray[np.float32]) -> float:
    """Of the voxels inside the body and away from the pins, against views without metal or noise."""
    _, y, x = GRID.axes_mm()
    is_judged = (np.hypot(y[:, None], x) < 7.5) & ~ndimage.binary_dilation(true_metal()[0], iterations=3)
    error = (reconstruct(values) - reconstruct(body()))[0, 0][is_judged]
    return float(np.sqrt(np.mean(error**2)))


def test_metal_is_found_and_bone_is_not() -> None:
    found = metal.segment(reconstruct(measured())[0])
    both, either = (found & true_metal()).sum(), (found | true_metal()).sum()
    assert both > 0.75 * either
    assert not metal.segment(reconstruct(body())[0]).any()
    assert not metal.segment(np.zeros((1, 9, 9))).any()
    assert metal.segment(reconstruct(body())[0], threshold_per_mm=0.04).any()


def test_the_shadow_is_where_rays_go_through_metal() -> None:
    found = metal.shadow(true_metal(), projector(), GRID.voxel_mm)
    way_mm = through_metal()[0] / PINS[0].per_mm
    assert found[way_mm > 2 * GRID.voxel_mm].all()
    assert found[way_mm == 0].mean() < 0.02


def test_interpolation_is_linear_between_the_shadows_edges() -> None:
    ramp = np.broadcast_to(np.arange(12.0), (1, 2, 1, 12)).astype(np.float32)
    is_in_shadow = np.zeros((2, 1, 12), dtype=bool)
    is_in_shadow[0, 0, [3, 4, 5, 8]] = is_in_shadow[1] = True
    broken = np.where(is_in_shadow, 99, ramp)[0]
    result = metal.interpolate(broken, is_in_shadow)
    np.testing.assert_allclose(result[0], ramp[0, 0])
    np.testing.assert_array_equal(result[1], broken[1])  # all shadow: nothing to go by
    is_in_shadow[0, 0] = np.arange(12) >= 9  # no right edge: the left one goes on
    np.testing.assert_allclose(metal.interpolate(ramp[0], is_in_shadow)[0, 0, 9:], 8)


@pytest.mark.parametrize(("method", "factor"), [("linear", 1.8), ("normalised", 3.0)])
def test_streaks_shrink_by_a_factor(method: str, factor: float) -> None:
    before = rmse_outside(measured())
    values = measured()
    result = finished(metal.reduce(values, projector(), by_fdk, voxel_mm=GRID.voxel_mm, method=method))
    assert result.values is values
    assert method in result.words
    np.testing.assert_array_equal(values[:, ~result.is_in_shadow], measured()[:, ~result.is_in_shadow])
    assert before > factor * rmse_outside(values)


def test_views_without_metal_are_left_alone() -> None:
    values = body().copy()
    result = finished(metal.reduce(values, projector(), by_fdk, voxel_mm=GRID.voxel_mm))
    assert result.words == "no metal found"
    assert not result.is_in_shadow.any()
    np.testing.assert_array_equal(values, body())
    with pytest.raises(WrongUsage, match="allowed: linear, normalised"):
        finished(metal.reduce(values, projector(), by_fdk, voxel_mm=1.0, method="magic"))


def test_metal_is_put_back() -> None:
    first = reconstruct(measured())
    back = metal.reinstate(np.zeros_like(first), first, true_metal())
    np.testing.assert_array_equal(back != 0, np.broadcast_to(true_metal(), back.shape) & (first != 0))


def test_a_weight_is_the_inverse_variance_of_a_logarithm_of_counts() -> None:
    values = np.array([0.0, 1.0, 2.0, 3.0], np.float32).reshape(1, 1, 1, 4)
    counts = np.random.default_rng(2).poisson(1e4 * np.exp(-values), size=(20000, 1, 1, 4))
    expected = 1 / np.log(counts).var(axis=0)
    found = metal.weights(values, 1e4, floor_counts=0.0)
    np.testing.assert_allclose(found[0], expected, rtol=0.05)


def test_starved_and_estimated_rays_weigh_nothing() -> None:
    values = np.array([1.0, 1.0, 12.0], np.float32).reshape(1, 1, 1, 3)
    is_estimated = np.array([True, False, False]).reshape(1, 1, 1, 3)
    first, second, starved = metal.weights(values, 1000.0, is_estimated=is_estimated).ravel()
    assert first == 0
    assert second > 100
    assert starved < 1e-4  # less than the 0.006 photons that the beam would leave
