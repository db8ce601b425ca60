"""Parallel rays into a few slices, against the plain loop."""

from __future__ import annotations

import numpy as np
import pytest

from reconstruction.kernels.backproject_cpu import backproject, backproject_plain
from reconstruction.kernels.backproject_slices import is_parallel
from reconstruction.scan_geometry import ScanGeometry
from reconstruction.volume import Grid


def in_voxels(scan: ScanGeometry, grid: Grid) -> np.ndarray:
    to_mm = np.diag([grid.voxel_mm] * 3 + [1.0])
    to_mm[:3, 3] = [axis[0] for axis in grid.axes_mm()[::-1]]
    return scan.matrices() @ to_mm


@pytest.mark.parametrize(("voxel_mm", "cols"), [(1.0, 61), (0.37, 21), (2.3, 61)])
def test_slices_take_what_the_plain_loop_takes(voxel_mm, cols):
    rng = np.random.default_rng(5)
    scan = ScanGeometry.parallel(rng.uniform(0, 7, 11), rows=5, cols=cols, pitch_mm=0.9, offset_u_mm=1.3)
    grid = Grid(shape=(4, 27, 35), voxel_mm=voxel_mm, centre_mm=(1.0, -2.0, 0.4))
    projections = rng.normal(size=(11, 3, 5, cols)).astype(np.float32)
    matrices, weights = in_voxels(scan, grid), rng.uniform(0.5, 1, 11)
    assert is_parallel(matrices)
    fast, plain = np.ones((2, 3, *grid.shape), np.float32)
    backproject(fast, projections, matrices, weights)
    backproject_plain(plain, projections, matrices, weights, 0, 4)
    assert np.abs(plain - 1).max() > 1
    np.testing.assert_allclose(fast, plain, atol=5e-5)


def test_other_rays_are_told_apart():
    grid = Grid(shape=(4, 8, 8), voxel_mm=1.0)
    scan = ScanGeometry.parallel([0.3, 1.0], rows=5, cols=9, pitch_mm=1.0)
    cone = ScanGeometry(
        source_mm=scan.source_mm * 100, detector_mm=-50 * scan.source_mm, u_mm=scan.u_mm, v_mm=scan.v_mm, rows=5, cols=9
    )
    assert not is_parallel(in_voxels(cone, grid))
    tilted = ScanGeometry.parallel([0.3, 1.0], rows=5, cols=9, pitch_mm=1.0)
    tilted.source_mm[:] = [0.0, -0.8, 0.6]
    assert not is_parallel(in_voxels(tilted, grid))
