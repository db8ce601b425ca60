"""The voxel-driven back-projection: fast and plain loops against interpolation by SciPy, for any pose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from calibration.geometry import Geometry
from reconstruction.kernels import backproject_cpu
from reconstruction.kernels.backproject_cpu import backproject, backproject_plain
from reconstruction.scan_geometry import ScanGeometry


def oracle(shape, projections, matrices, weights):
    """Add up by SciPy, in float64."""
    n_bins, *grid = shape
    volume = np.zeros(shape)
    z, y, x = np.indices(grid).astype(float)
    padded = np.pad(projections.astype(float), ((0, 0), (0, 0), (2, 2), (2, 2)))
    for view, (matrix, weight) in enumerate(zip(matrices, weights, strict=True)):
        a, b, c = np.tensordot(matrix, np.stack([x, y, z, np.ones_like(x)]), 1)
        for bin_ in range(n_bins):
            value = map_coordinates(padded[view, bin_], [b / c + 2, a / c + 2], order=1, cval=0.0)
            volume[bin_] += np.where(c > 0, weight / c**2 * value, 0)
    return volume


def work(*, voxel_px: float, shape, n_bins: int = 1, **pose) -> tuple[Any, ...]:
    """Five views on a detector whose edges the volume overlaps on all sides, with a voxel of so many pixels."""
    rng = np.random.default_rng(3)
    geometry = Geometry(source_to_detector_mm=150.0, source_to_object_mm=100.0, pitch_mm=0.3, rows=21, cols=19, **pose)
    scan = ScanGeometry.circular(geometry, rng.uniform(0, 2 * np.pi, 5), lifts_mm=rng.uniform(-1, 1, 5))
    to_mm = np.diag([voxel_px * 0.2] * 3 + [1.0])
    to_mm[:3, 3] = -(np.array(shape[::-1]) - 1) / 2 * voxel_px * 0.2 + (0.5, -0.3, 0.4)
    matrices = scan.matrices() @ to_mm
    if scan.is_upright:
        matrices[:, [0, 2], 2] = 0
    projections = rng.normal(size=(5, n_bins, 21, 19)).astype(np.float32)
    return (n_bins, *shape), projections, matrices, rng.uniform(0.5, 1, 5)


@pytest.mark.parametrize("n_bins", [1, 3])
@pytest.mark.parametrize(
    ("voxel_px", "shape"),
    [
        (1.0, (40, 13, 37)),  # a row for each voxel
        (0.88, (33, 5, 70)),
        (1.13, (30, 17, 15)),
        (0.55, (61, 16, 16)),  # slower, with many rows in between
        (1.45, (25, 9, 33)),
        (0.12, (300, 12, 11)),  # several voxels to a row
        (3.7, (8, 6, 7)),  # several rows to a voxel
        (1.0, (1, 8, 8)),
        (0.3, (1030, 2, 2)),  # several parts along z
    ],
    ids=str,
)
def test_columns_of_upright_detectors_agree_with_interpolation(voxel_px, shape, n_bins):
    shape, *arguments = work(voxel_px=voxel_px, shape=shape, n_bins=n_bins)
    assert backproject_cpu.is_upright(arguments[1])
    volume = np.ones(shape, np.float32)  # it is added to
    backproject(volume, *arguments)
    expected = 1 + oracle(shape, *arguments)
    assert np.abs(expected - 1).max() > 0.5
    np.testing.assert_allclose(volume, expected, atol=2e-4)


def test_steps_around_every_change_of_the_walk_agree():
    # The rows of one scan stand 0.47 to 1.58 apart: all ways of walking meet in one volume.
    rng = np.random.default_rng(1)
    geometry = Geometry(source_to_detector_mm=40.0, source_to_object_mm=20.0, pitch_mm=1.1, rows=31, cols=40)
    scan = ScanGeometry.circular(geometry, np.linspace(0, 6, 7))
    to_mm = np.diag([0.4, 0.4, 0.4, 1.0])
    to_mm[:3, 3] = -39 / 2 * 0.4, -39 / 2 * 0.4, -79 / 2 * 0.4
    matrices = scan.matrices() @ to_mm
    matrices[:, [0, 2], 2] = 0
    corners = np.array([[0, 0, 0, 1], [0, 39, 0, 1], [39, 0, 0, 1], [39, 39, 0, 1]]).T
    steps = matrices[:, 1, 2][:, None] / (matrices[:, 2] @ corners)
    assert steps.min() < 0.5
    assert steps.max() > 1.5
    projections = rng.normal(size=(7, 1, 31, 40)).astype(np.float32)
    volume = np.zeros((1, 80, 40, 40), np.float32)
    backproject(volume, projections, matrices, np.ones(7))
    expected = oracle(volume.shape, projections, matrices, np.ones(7))
    np.testing.assert_allclose(volume, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("pose", [{"roll_rad": 0.2}, {"tilt_u_rad": -0.3, "tilt_v_rad": 0.1}, {}], ids=str)
def test_any_pose_agrees_with_interpolation(pose):
    shape, projections, matrices, weights = work(voxel_px=1.0, shape=(12, 13, 14), n_bins=2, **pose)
    if not pose:
        matrices[:, 1] = 20 * matrices[:, 2] - matrices[:, 1]  # upside down
    assert not backproject_cpu.is_upright(matrices)
    volume = np.zeros(shape, np.float32)
    backproject(volume, projections, matrices, weights)
    np.testing.assert_allclose(volume, oracle(shape, projections, matrices, weights), atol=2e-4)


def test_the_plain_loop_is_exact_in_float64():
    shape, projections, matrices, weights = work(voxel_px=0.7, shape=(9, 8, 7), n_bins=2, tilt_v_rad=0.2)
    volume = np.zeros(shape)
    backproject_plain(volume, projections.astype(float), matrices, weights, 0, 9)
    np.testing.assert_allclose(volume, oracle(shape, projections, matrices, weights), atol=1e-12)


def test_parallel_rays_weigh_the_same_everywhere():
    scan = ScanGeometry.parallel([0.3, 1.1], rows=30, cols=32, pitch_mm=0.5)
    to_mm = np.diag([0.5, 0.5, 0.5, 1.0])
    to_mm[:3, 3] = -9 / 2 * 0.5
    matrices = scan.matrices() @ to_mm
    matrices[:, [0, 2], 2] = 0
    projections = np.ones((2, 1, 30, 32), np.float32)
    volume = np.zeros((1, 10, 10, 10), np.float32)
    backproject(volume, projections, matrices, np.array([2.0, 0.5]))
    np.testing.assert_allclose(volume, 2.5, rtol=1e-6)


def test_voxels_behind_the_source_get_nothing():
    shape, projections, matrices, weights = work(voxel_px=1.0, shape=(6, 6, 6))
    volume = np.zeros(shape, np.float32)
    backproject(volume, projections, -matrices, weights)  # the same shadows, behind
    assert not volume.any()
    with_source_inside = matrices.copy()
    with_source_inside[:, 2, 3] -= matrices[:, 2] @ [2.5, 2.5, 2.5, 1]
    backproject(volume, projections, with_source_inside, weights)
    assert np.isfinite(volume).all()


def test_it_is_linear():
    shape, projections, matrices, weights = work(voxel_px=0.9, shape=(24, 12, 20))
    volumes = []
    for factor in (1.0, -2.5):
        volumes.append(np.zeros(shape, np.float32))
        backproject(volumes[-1], np.float32(factor) * projections, matrices, weights)
    np.testing.assert_allclose(volumes[1], -2.5 * volumes[0], atol=1e-5)
