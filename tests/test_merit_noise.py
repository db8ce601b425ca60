"""Noise power, against noise whose power is known."""

from __future__ import annotations

import numpy as np
import pytest

from firmware_iface.errors import WrongUsage
from reconstruction.merit.noise import efficiency, noise_equivalent_quanta, noise_power, squares_of
from reconstruction.merit.resolution import Mtf

VOXEL_MM = 0.2


def white(n_maps: int = 1, n_squares: int = 300, n: int = 32, seed: int = 0):
    return np.random.default_rng(seed).normal(0, 3.0, (n_maps, n_squares, n, n))


def test_white_noise_has_flat_power_whose_integral_is_the_variance():
    values = white()
    found = noise_power(values, VOXEL_MM, is_flattened=False)
    variance = (values - values.mean((-2, -1), keepdims=True)).var()
    assert found.covariance[0, 0] == pytest.approx(variance, rel=1e-9)
    radial = found.radial()
    np.testing.assert_allclose(radial.power[0, 0], 9 * VOXEL_MM**2, rtol=0.04)
    assert radial.frequency_per_mm[-1] == pytest.approx(0.5 / VOXEL_MM, rel=0.02)


def test_a_trend_is_no_noise():
    tilted = white() + 20 * np.linspace(-1, 1, 32)[:, None] + 7 * np.linspace(-1, 1, 32) + 100
    plain, found = noise_power(white(), VOXEL_MM), noise_power(tilted, VOXEL_MM)
    np.testing.assert_allclose(found.power, plain.power, atol=1e-6)
    # A plane takes 3 of the 32 * 32 degrees of freedom.
    assert plain.covariance[0, 0] == pytest.approx(9 * (1 - 3 / 32**2), rel=0.01)


def test_filtered_noise_has_the_filters_power():
    """A ramp, as filtered back-projection leaves it, and a Gaussian, as smoothing does."""
    n, frequency = 64, np.fft.fftfreq(64, VOXEL_MM)
    away = np.hypot(frequency[:, None], frequency)
    for gain in (np.sqrt(away), np.exp(-2 * (np.pi * 0.3 * away) ** 2)):
        values = np.fft.ifft2(np.fft.fft2(white(n=n)) * gain).real
        radial = noise_power(values, VOXEL_MM, is_flattened=False).radial()
        rings = np.rint(away * n * VOXEL_MM).astype(int)
        expected = np.array([9 * VOXEL_MM**2 * (gain**2)[rings == r].mean() for r in range(1, n // 2 + 1)])
        np.testing.assert_allclose(radial.power[0, 0], expected, rtol=0.05, atol=1e-6)


@pytest.mark.parametrize("correlation", [-0.8, 0.0, 0.5])
def test_cross_power_has_the_sign_and_size_of_the_correlation(correlation):
    one, other = white(2)
    maps = np.stack([one, correlation * one + np.sqrt(1 - correlation**2) * other])
    found = noise_power(maps, VOXEL_MM)
    assert found.covariance[0, 1] / 9 == pytest.approx(correlation, abs=0.01)
    np.testing.assert_allclose(found.radial().coherence[0, 1], correlation, atol=0.06)
    np.testing.assert_allclose(found.power, found.power.conj().transpose(1, 0, 2, 3))
    assert np.abs(np.imag(np.diagonal(found.power))).max() < 1e-12


def test_maps_that_err_against_each_other_at_high_frequencies_only_show_it_there():
    one, other = white(2, n=64)
    frequency = np.fft.fftfreq(64, VOXEL_MM)
    is_high = np.hypot(frequency[:, None], frequency) > 1.2
    mixed = np.fft.ifft2(np.where(is_high, -np.fft.fft2(one), np.fft.fft2(other))).real
    radial = noise_power(np.stack([one, mixed]), VOXEL_MM, is_flattened=False).radial()
    low, high = radial.frequency_per_mm < 1.1, radial.frequency_per_mm > 1.3
    assert np.abs(radial.coherence[0, 1][low]).max() < 0.15
    np.testing.assert_allclose(radial.coherence[0, 1][high], -1, atol=1e-6)


def test_squares_tile_a_region():
    region = np.arange(2 * 3 * 17 * 26).reshape(2, 3, 17, 26)
    squares = squares_of(region, 8)
    assert squares.shape == (2, 3 * 2 * 3, 8, 8)
    np.testing.assert_array_equal(squares[1, 6 + 4], region[1, 1, 8:16, 8:16])


def test_small_squares_are_refused():
    with pytest.raises(WrongUsage, match="at least 8 voxels"):
        noise_power(np.zeros((1, 5, 6, 6)), VOXEL_MM)


def test_quanta_go_with_signal_squared_over_noise():
    frequency = np.linspace(0, 2, 5)
    mtf = Mtf(
        frequency_per_mm=frequency,
        modulation=np.array([1, 0.8, 0.5, 0.2, 0.1]),
        distance_mm=frequency,
        response=frequency,
    )
    once = noise_equivalent_quanta(mtf, frequency, np.full(5, 0.1), signal=1.0)
    np.testing.assert_allclose(once, mtf.modulation**2 / 0.1)
    np.testing.assert_allclose(noise_equivalent_quanta(mtf, frequency, np.full(5, 0.1), signal=3.0), 9 * once)


def test_counted_photons_are_their_own_noise_equivalent_quanta():
    """Poisson counts of 50 per voxel, seen perfectly: 50 quanta per voxel's area, at every frequency."""
    counts = np.random.default_rng(0).poisson(50.0, (1, 400, 32, 32)).astype(float)
    radial = noise_power(counts, VOXEL_MM).radial()
    perfect = Mtf(
        frequency_per_mm=np.array([0, 2.5]), modulation=np.ones(2), distance_mm=np.zeros(2), response=np.zeros(2)
    )
    found = noise_equivalent_quanta(perfect, radial.frequency_per_mm, radial.power[0, 0], signal=50.0)
    np.testing.assert_allclose(found[2:], 50 / VOXEL_MM**2, rtol=0.05)


def test_the_efficiency_of_estimates_at_their_bound_is_one():
    rng = np.random.default_rng(0)
    bound = rng.uniform(0.5, 2, 50000)
    found = efficiency(rng.normal(0, 1, 50000) * bound, bound)
    assert found.sd_ratio == pytest.approx(1, abs=0.015)
    assert found.robust_ratio == pytest.approx(1, abs=0.02)
    assert found.false_share == 0
    strays = rng.normal(0, 1, 50000)
    strays[:50] = 40
    stray = efficiency(strays, 1.0)
    assert stray.false_share == pytest.approx(0.001)
    assert stray.sd_ratio > 1.5
    assert stray.robust_ratio == pytest.approx(1, abs=0.02)
