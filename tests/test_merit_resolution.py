"""Sharpness, against blurs whose transfer function is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from firmware_iface.errors import WrongUsage
from reconstruction.merit.resolution import (
    blurred,
    edge_mtf,
    edge_of_disc,
    edge_of_line,
    gaussian_blur_mm,
    matched,
    wire_mtf,
)
from tests.material_phantom import blurred_disc

VOXEL_MM = 0.1
AXIS_MM = (np.arange(81) - 40) * VOXEL_MM


def gaussian_mtf(frequency_per_mm, blur_mm):
    return np.exp(-2 * (np.pi * blur_mm * frequency_per_mm) ** 2)


def mtf50_of(blur_mm: float) -> float:
    return np.sqrt(np.log(2) / 2) / (np.pi * blur_mm)


def disc(blur_mm: float, centre=(0.023, -0.041), radius_mm=1.5, n_slices=1) -> np.ndarray:
    away = np.hypot(AXIS_MM[:, None] - centre[1], AXIS_MM - centre[0])
    return np.repeat(5 + 3 * blurred_disc(away, radius_mm, blur_mm)[None], n_slices, axis=0)


@pytest.mark.parametrize("blur_mm", [0.1, 0.15, 0.25])
def test_the_rim_of_a_blurred_disc_gives_the_blurs_mtf(blur_mm):
    mtf = edge_of_disc(disc(blur_mm), AXIS_MM, AXIS_MM, centre_mm=(0.1, 0.05), radius_mm=1.4, reach_mm=1.1)
    assert mtf.mtf50_per_mm == pytest.approx(mtf50_of(blur_mm), rel=0.02)
    frequency = np.linspace(0, mtf.frequency_of(0.1), 20)
    np.testing.assert_allclose(mtf.at(frequency), gaussian_mtf(frequency, blur_mm), atol=0.02)


def test_noise_moves_the_mtf_little():
    noisy = disc(0.15, n_slices=10) + np.random.default_rng(0).normal(0, 0.5, (10, 81, 81))
    mtf = edge_of_disc(noisy, AXIS_MM, AXIS_MM, centre_mm=(0, 0), radius_mm=1.5, reach_mm=1.1)
    assert mtf.mtf50_per_mm == pytest.approx(mtf50_of(0.15), rel=0.06)


def test_voxels_that_may_not_count_do_not():
    map_ = disc(0.15)
    is_used = np.ones(map_.shape[1:], dtype=bool)
    is_used[:, 52:] = False
    map_[:, :, 52:] = 100
    mtf = edge_of_disc(map_, AXIS_MM, AXIS_MM, centre_mm=(0, 0), radius_mm=1.5, reach_mm=1.1, is_used=is_used)
    assert mtf.mtf50_per_mm == pytest.approx(mtf50_of(0.15), rel=0.02)


@pytest.mark.parametrize("angle_deg", [3.0, 87.0, -20.0])
def test_a_slanted_edge_gives_the_blurs_mtf(angle_deg):
    angle, blur_mm = np.radians(angle_deg), 0.13
    across = -np.sin(angle) * (AXIS_MM - 0.3) + np.cos(angle) * (AXIS_MM[:, None] - 0.2)
    map_ = 2 + special.erf(across / (np.sqrt(2) * blur_mm))
    mtf = edge_of_line(map_, AXIS_MM, AXIS_MM, point_mm=(0.25, 0.25), angle_rad=angle + np.radians(2), reach_mm=1.5)
    assert mtf.mtf50_per_mm == pytest.approx(mtf50_of(blur_mm), rel=0.02)
    frequency = np.linspace(0, 2.5, 20)
    np.testing.assert_allclose(mtf.at(frequency), gaussian_mtf(frequency, blur_mm), atol=0.02)


def test_a_wire_gives_the_blurs_mtf():
    away = np.hypot(AXIS_MM[:, None] - 0.037, AXIS_MM + 0.061)
    map_ = 7 + np.exp(-(away**2) / (2 * 0.14**2))
    mtf = wire_mtf(map_, AXIS_MM, AXIS_MM, centre_mm=(0.1, 0.0), reach_mm=1.2)
    assert mtf.mtf50_per_mm == pytest.approx(mtf50_of(0.14), rel=0.01)
    frequency = np.linspace(0, 3, 20)
    np.testing.assert_allclose(mtf.at(frequency), gaussian_mtf(frequency, 0.14), atol=0.01)


def test_the_three_ways_agree_on_another_shape_of_blur():
    """A mean over a square of 0.3 mm: its MTF along the axes is a sinc, which an edge along them shows."""
    angle = np.radians(2.0)
    fine = np.linspace(-0.15, 0.15, 31)
    across = -np.sin(angle) * AXIS_MM + np.cos(angle) * AXIS_MM[:, None]
    steps = [(across + np.cos(angle) * dy - np.sin(angle) * dx > 0).astype(float) for dy in fine for dx in fine]
    mtf = edge_of_line(np.mean(steps, axis=0), AXIS_MM, AXIS_MM, point_mm=(0, 0), angle_rad=angle, reach_mm=1.5)
    frequency = np.linspace(0, 3, 16)
    np.testing.assert_allclose(mtf.at(frequency), np.abs(np.sinc(0.31 * frequency)), atol=0.03)


def test_too_little_room_is_refused():
    with pytest.raises(WrongUsage, match="two voxels"):
        edge_mtf(np.linspace(-1, 1, 100), np.ones(100), voxel_mm=0.1, reach_mm=0.15)
    with pytest.raises(WrongUsage, match="half of them"):
        edge_mtf(np.array([-0.5, 0.0, 0.5]), np.ones(3), voxel_mm=0.1, reach_mm=0.5)


@pytest.mark.parametrize("blur_mm", [0.02, 0.05, 0.3])
def test_the_blur_multiplies_the_spectrum_by_a_gaussian(blur_mm):
    """However narrow the Gaussian: a wave far from the edges keeps its form and loses what the Gaussian says."""
    n, frequency = 400, 2.5
    wave = np.cos(2 * np.pi * frequency * np.arange(n) * VOXEL_MM)
    found = blurred(np.tile(wave, (n, 1))[None], blur_mm, VOXEL_MM)[0]
    expected = gaussian_mtf(frequency, blur_mm) * wave
    np.testing.assert_allclose(found[200, 100:300], expected[100:300], atol=2e-4)


def test_the_blur_keeps_the_mean_and_what_is_uniform():
    map_ = np.full((2, 30, 41), 3.0)
    np.testing.assert_allclose(blurred(map_, 0.4, VOXEL_MM), 3.0, rtol=1e-5)


def test_matched_maps_have_one_mtf50():
    blurs_mm = (0.12, 0.15, 0.22)
    maps = [disc(blur_mm) for blur_mm in blurs_mm]

    def measured(map_):
        return edge_of_disc(map_, AXIS_MM, AXIS_MM, centre_mm=(0, 0), radius_mm=1.5, reach_mm=1.2)

    mtfs = [measured(map_) for map_ in maps]
    alike, mtf50 = matched(maps, mtfs, voxel_mm=VOXEL_MM)
    assert mtf50 == pytest.approx(mtf50_of(0.22), rel=0.02)
    for map_ in alike:
        assert measured(map_).mtf50_per_mm == pytest.approx(mtf50, rel=0.02)
    lower, asked = matched(maps, mtfs, voxel_mm=VOXEL_MM, mtf50_per_mm=0.6)
    for map_ in lower:
        assert measured(map_).mtf50_per_mm == pytest.approx(asked, rel=0.02)


def test_a_map_cannot_be_blurred_sharper():
    mtf = edge_of_disc(disc(0.2), AXIS_MM, AXIS_MM, centre_mm=(0, 0), radius_mm=1.5, reach_mm=1.2)
    with pytest.raises(WrongUsage, match="cannot be blurred to 2"):
        gaussian_blur_mm(mtf, 2.0)
    assert gaussian_blur_mm(mtf, mtf.mtf50_per_mm) == pytest.approx(0, abs=2e-3)
