"""The projector pair: exact adjoints, fast kernels equal to the formula, exact chords, symmetries."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.geometry import Geometry
from reconstruction.kernels import joseph_columns, joseph_plain, joseph_rays
from reconstruction.projector import Projector
from reconstruction.scan_geometry import ScanGeometry
from reconstruction.volume import Grid
from tests.adjoints import assert_adjoint

SHAPE = (21, 18, 23)


def cone(pitch_mm: float = 1.5, *, n_views: int = 7, rows: int = 20, cols: int = 27, **askew: float) -> ScanGeometry:
    """A cone beam round a volume of 1 mm voxels; a pitch of 1.5 mm is one voxel on the axis."""
    geometry = Geometry(
        source_to_detector_mm=150, source_to_object_mm=100, pitch_mm=pitch_mm, rows=rows, cols=cols, **askew
    )
    return ScanGeometry.circular(geometry, np.arange(n_views) * 2 * np.pi / n_views + 0.1)


def parallel(pitch_mm: float = 1.0, rows: int = 20) -> ScanGeometry:
    return ScanGeometry.parallel(np.arange(7) * np.pi / 7 + 0.1, rows=rows, cols=27, pitch_mm=pitch_mm)


def by_formula(projector: Projector, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both halves as `joseph_plain` has them."""
    ax, aty = np.zeros(projector.range_shape, projector.dtype), np.zeros(projector.domain_shape, projector.dtype)
    scan, voxel_mm = projector.scan, projector.grid.voxel_mm
    joseph_plain.forward(x, ax, projector._rays, scan.is_parallel, voxel_mm, 0, scan.n_views)
    joseph_plain.adjoint(aty, y, projector._rays, scan.is_parallel, voxel_mm)
    return ax, aty


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("scan", "kernels"),
    [
        (cone(), joseph_columns),
        (cone(0.4), joseph_columns),
        (cone(2.6), joseph_columns),
        (cone(5.0), joseph_columns),
        (cone(offset_u_mm=7.0, offset_v_mm=-4.0), joseph_columns),
        (cone(roll_rad=0.1, tilt_u_rad=0.05, tilt_v_rad=-0.07), joseph_rays),
        (parallel(), joseph_columns),
        (parallel(0.3), joseph_columns),
    ],
)
def test_fast_kernels_compute_the_formula(scan, kernels, dtype):
    projector = Projector(scan, Grid(shape=SHAPE, voxel_mm=1.0, centre_mm=(1.0, -2.0, 0.5)), n_channels=2, dtype=dtype)
    assert projector._kernels is kernels
    rng = np.random.default_rng(1)
    x, y = (rng.random(shape).astype(dtype) for shape in (projector.domain_shape, projector.range_shape))
    ax, aty = by_formula(projector, x, y)
    rounding = 2e-6 if dtype == np.float32 else 1e-13
    np.testing.assert_allclose(projector.forward(x), ax, atol=rounding * ax.max(), rtol=0)
    np.testing.assert_allclose(projector.adjoint(y), aty, atol=rounding * aty.max(), rtol=0)
    assert_adjoint(projector, dtype=dtype)
