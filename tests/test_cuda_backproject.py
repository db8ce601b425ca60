"""The GPU's voxel-driven back-projection computes its formula, and FDK on the GPU computes what it does on the CPU."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.geometry import Geometry
from reconstruction import backend
from reconstruction.fdk import fdk
from reconstruction.kernels import backproject_gpu
from reconstruction.scan_geometry import ScanGeometry
from reconstruction.volume import Grid

HALF = 2.0**-11
"""Relative error of a number rounded to half precision."""


def by_formula(shape, projections, matrices, weights):
    """Sum of weight / c^2 times what lies between four pixels around (a / c, b / c), zeros around; float64."""
    n_bins, (rows, cols) = projections.shape[1], projections.shape[2:]
    z, y, x = np.indices(shape)
    volume = np.zeros((n_bins, *shape))
    for image, matrix, weight in zip(projections.astype(np.float64), matrices, weights, strict=True):
        a, b, c = np.tensordot(matrix, np.stack([x, y, z, np.ones(shape)]), 1)
        padded = np.pad(image, ((0, 0), (1, 2), (1, 2)))
        col, row = np.clip(a / c, -1, cols) + 1, np.clip(b / c, -1, rows) + 1
        left, low = np.floor(col).astype(int), np.floor(row).astype(int)
        for up, right in np.ndindex(2, 2):
            share = np.abs(1 - up - (row - low)) * np.abs(1 - right - (col - left))
            volume += weight / c**2 * share * padded[:, low + up, left + right]
    return volume


def random_work(rng, *, n_views, n_bins, is_upright):
    """A grid that no block of threads divides, larger than what the detector sees of it; any matrices."""
    shape, (rows, cols) = tuple(int(n) for n in rng.integers(1, 40, 3)), (int(n) for n in rng.integers(1, 24, 2))
    matrices = rng.normal(size=(n_views, 3, 4)) * 0.7
    matrices[:, 2, :3] *= 0.6 / max(shape)
    matrices[:, 2, 3] = rng.uniform(2.5, 4, n_views)
    matrices[:, :2, 3] = rng.uniform(-1, 4, (n_views, 2)) * (cols, rows)
    if is_upright:
        matrices[:, (0, 2), 2] = 0
    projections = rng.normal(size=(n_views, n_bins, rows, cols)).astype(np.float32)
    return shape, projections, matrices, rng.uniform(0.5, 1, n_views)


@pytest.mark.parametrize("is_half", [False, True], ids=["single", "half"])
@pytest.mark.parametrize("is_upright", [False, True], ids=["general", "upright"])
@pytest.mark.parametrize("n_bins", [1, 2, 3, 4, 5])
def test_it_computes_its_formula(device, n_bins, is_upright, is_half):
    rng = np.random.default_rng(n_bins)
    for n_views in (1, 3, backproject_gpu.VIEWS_PER_LAUNCH + 2):
        shape, projections, matrices, weights = random_work(rng, n_views=n_views, n_bins=n_bins, is_upright=is_upright)
        volume = backend.to_device(np.ones((n_bins, *shape), np.float32))
        backproject_gpu.backproject(volume, backend.to_device(projections), matrices, weights, is_half=is_half)
        expected = by_formula(shape, projections, matrices, weights)
        scale = np.abs(projections).max() * sum(weights / 2.0**2)
        error = np.abs(backend.to_host(volume) - 1 - expected).max()
        assert error <= scale * (HALF if is_half else 1e-5)
        if not is_half and np.abs(expected).max() > 0.1:
            assert error < 1e-4 * np.abs(expected).max()


def test_a_pixel_of_one_lands_where_its_geometry_says(device):
    """One voxel per pixel, no magnification: the matrix says which pixel belongs to which voxel."""
    matrices = np.array([[[1.0, 0, 0, 2], [0, 0, 1, -1], [0, 0, 0, 1]]])  # col = x + 2, row = z - 1
    projections = np.zeros((1, 1, 4, 9), np.float32)
    projections[0, 0, 3, 5] = 1
    volume = backend.to_device(np.zeros((1, 6, 2, 7), np.float32))
    backproject_gpu.backproject(volume, backend.to_device(projections), matrices, np.array([3.0]))
    expected = np.zeros((1, 6, 2, 7))
    expected[0, 4, :, 3] = 3
    np.testing.assert_array_equal(backend.to_host(volume), expected)


def test_values_beyond_half_precision_are_scaled_into_it(device):
    rng = np.random.default_rng(7)
    shape, projections, matrices, weights = random_work(rng, n_views=3, n_bins=2, is_upright=True)
    for factor in (1e-9, 1e9):
        volume = backend.to_device(np.zeros((2, *shape), np.float32))
        scaled = backend.to_device((factor * projections).astype(np.float32))
        backproject_gpu.backproject(volume, scaled, matrices, weights, is_half=True)
        expected = by_formula(shape, projections, matrices, weights)
        np.testing.assert_allclose(backend.to_host(volume) / factor, expected, atol=4 * HALF)
    volume = backend.to_device(np.zeros((2, *shape), np.float32))
    backproject_gpu.backproject(volume, backend.to_device(0 * projections), matrices, weights, is_half=True)
    assert not backend.to_host(volume).any()


def test_the_matrices_are_those_of_the_scan_geometry(device):
    """A point's shadow, back-projected from all sides, is largest at the point."""
    geometry = Geometry(
        source_to_detector_mm=150, source_to_object_mm=100, pitch_mm=0.3, rows=40, cols=44, roll_rad=0.05
    )
    scan = ScanGeometry.circular(geometry, np.arange(12) * np.pi / 6 + 0.1)
    grid = Grid(shape=(17, 19, 21), voxel_mm=0.2, centre_mm=(0.3, -0.2, 0.1))
    first = np.array([axis[0] for axis in grid.axes_mm()][::-1])
    to_mm = np.vstack([np.column_stack([np.eye(3) * grid.voxel_mm, first]), [0, 0, 0, 1]])
    matrices = scan.matrices() @ to_mm
    point = np.array([13, 6, 9, 1])  # x, y, z
    shadows = matrices @ point
    cols, rows = (np.rint(shadows[:, k] / shadows[:, 2]).astype(int) for k in (0, 1))
    projections = np.zeros((12, 1, 40, 44), np.float32)
    projections[np.arange(12), 0, rows, cols] = 1
    volume = backend.to_device(np.zeros((1, *grid.shape), np.float32))
    backproject_gpu.backproject(volume, backend.to_device(projections), matrices, np.ones(12))
    values = backend.to_host(volume)[0]
    assert np.unravel_index(values.argmax(), values.shape) == (9, 6, 13)


@pytest.mark.parametrize("askew", [{}, {"roll_rad": 0.03, "tilt_v_rad": 0.02}], ids=["upright", "tilted"])
def test_fdk_computes_the_same_on_both(device, askew):
    geometry = Geometry(source_to_detector_mm=150, source_to_object_mm=100, pitch_mm=0.3, rows=16, cols=20, **askew)
    projections = np.random.default_rng(0).normal(size=(3, 40, 16, 20)).astype(np.float32)
    grid = Grid(shape=(11, 12, 13), voxel_mm=0.2, centre_mm=(0.2, -0.1, 0.3))
    values = []
    for use_gpu in (False, True):
        stages = fdk(projections, np.arange(40) * 2 * np.pi / 40, geometry, grid, window="hann", use_gpu=use_gpu)
        while True:
            try:
                next(stages)
            except StopIteration as end:
                values.append(end.value)
                break
    assert isinstance(values[1], np.ndarray)
    np.testing.assert_allclose(values[1], values[0], atol=2e-5 * np.abs(values[0]).max())
