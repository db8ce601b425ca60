"""What is known of a volume's noise, from hidden truth; windows that begin above it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from gui.colour import Look
from gui.volume.noise import FLOOR_SDS, SMOOTHINGS, above_noise, noise_of, smoothed, smoothing_for
from tests.gui.volume_phantom import ready

IODINE = Look(material="iodine", colour=(0.7, 0.3, 0.0), low_g_cm3=0.001, high_g_cm3=0.01)


def noisy(sd: float, n: int = 40, seed: int = 0) -> NDArray[np.float32]:
    """Return a ball of 1 in nothing, with steep edges, and noise of this spread over all of it."""
    z, y, x = np.meshgrid(*[np.arange(n) - (n - 1) / 2] * 3, indexing="ij")
    body = (z**2 + y**2 + x**2 < (0.35 * n) ** 2).astype(np.float32)
    return body + np.random.default_rng(seed).normal(0, sd, body.shape).astype(np.float32)


@pytest.mark.parametrize("sd", [0.01, 0.1, 1.0])
def test_hidden_noise_is_found_whatever_stands_in_it(sd: float) -> None:
    assert 0.97 * sd < noise_of(noisy(sd)) < 1.1 * sd, "edges may add a little, nothing takes away"


def test_edges_of_small_bodies_are_not_noise() -> None:
    values = np.zeros((12, 40, 40), np.float32)
    values[:, 18:23, 18:23] = 1.0
    values[:, 5:9, 30:33] = 0.5
    assert noise_of(values) == 0
    values = np.maximum(np.random.default_rng(2).normal(0, 0.1, values.shape), 0)
    assert noise_of(values) == pytest.approx(0.08, abs=0.03), "cut off at 0, it is still there"


def test_noise_scales_with_its_unit_and_knows_no_zero() -> None:
    values = noisy(0.1)
    assert noise_of(50 * values) == pytest.approx(50 * noise_of(values), rel=1e-5)
    assert noise_of(values + 7) == pytest.approx(noise_of(values), rel=1e-3)


@pytest.mark.parametrize("sigma", [0.7, 1.0])
def test_noise_that_neighbours_share_is_not_taken_for_less(sigma: float) -> None:
    values = gaussian_filter(noisy(0.3), sigma)
    outside = values[:8, :8].ravel()
    assert noise_of(values) == pytest.approx(float(outside.std()), rel=0.15)


def test_no_noise_is_none() -> None:
    assert noise_of(noisy(0.0)) == 0
    assert noise_of(np.full((3, 9, 9), 2.0)) == 0
    assert noise_of(np.full((3, 9, 9), np.nan)) == 0
    assert noise_of(np.ones((1, 1, 1))) == 0


def test_voxels_that_were_never_measured_do_not_hide_the_noise() -> None:
    values = noisy(0.1)
    whole = noise_of(values)
    y, x = np.meshgrid(*[np.arange(40) - 19.5] * 2, indexing="ij")
    values[:, y**2 + x**2 > 15**2] = 0.0
    assert noise_of(values) == pytest.approx(whole, rel=0.08)
    values[:, y**2 + x**2 > 15**2] = np.nan
    assert noise_of(values) == pytest.approx(whole, rel=0.08)


def test_windows_begin_above_the_noise_and_never_close() -> None:
    assert above_noise(IODINE, 0.0) == IODINE
    assert above_noise(IODINE, 0.002) == replace(IODINE, low_g_cm3=FLOOR_SDS * 0.002)
    for noise in np.geomspace(1e-6, 1, 13):
        look = above_noise(IODINE, float(noise))
        assert look.low_g_cm3 >= FLOOR_SDS * noise
        assert look.high_g_cm3 - look.low_g_cm3 >= 0.49 * look.low_g_cm3
        assert look.high_g_cm3 >= IODINE.high_g_cm3


def test_as_little_is_smoothed_as_needed() -> None:
    clear, faint = smoothing_for(noisy(0.02), 1.0), smoothing_for(noisy(0.3), 1.0)
    assert clear == 0
    assert 0 < faint < SMOOTHINGS[-1]
    before, after = (smoothed(noisy(0.3), sigma) for sigma in (SMOOTHINGS[SMOOTHINGS.index(faint) - 1], faint))
    assert noise_of(after) < noise_of(before)
    assert smoothing_for(noisy(3.0), 1.0) == 0, "nothing stands above such noise, and nothing would come out"


def test_noise_alone_is_not_seen_in_three_dimensions() -> None:
    """One voxel in a thousand or so lies above a window of a material that is not there."""
    values = np.random.default_rng(1).normal(0, 0.01, (1, 40, 40, 40)).astype(np.float32)
    grains = ready(values, 1.0)
    look = above_noise(IODINE, grains.noise_g_cm3[0])
    assert (values > IODINE.low_g_cm3).mean() > 0.4
    assert (values > look.low_g_cm3).mean() < 0.002


def test_grains_are_smoothed_each_by_its_own_noise() -> None:
    values = np.stack([noisy(0.02), noisy(0.3)])
    grains = ready(values, 1.0, smoothings=None, highs_g_cm3=(1.0, 1.0))
    assert grains.smoothing_voxels[0] == 0
    assert grains.smoothing_voxels[1] > 0
    np.testing.assert_array_equal(grains.values[0], values[0])
    assert grains.noise_g_cm3[1] < 0.5 * noise_of(values[1])
    assert ready(values, 1.0).smoothing_voxels == (0, 0)
