"""The projector slab by slab: the same line integrals as of the whole volume, and their exact adjoint."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from calibration.geometry import Geometry
from reconstruction.projector import Projector
from reconstruction.scan_geometry import ScanGeometry
from reconstruction.size.slab_projector import SlabProjector
from reconstruction.volume import Grid

GEOMETRY = Geometry(source_to_detector_mm=60.0, source_to_object_mm=40.0, pitch_mm=0.5, rows=22, cols=18)
GRID = Grid(shape=(13, 9, 10), voxel_mm=0.6, centre_mm=(0.3, -0.2, 0.5))
ANGLES = np.linspace(0, 2 * np.pi, 11, endpoint=False)
SCANS = {
    "circle": ScanGeometry.circular(GEOMETRY, ANGLES),
    "helix": ScanGeometry.circular(GEOMETRY, 2 * ANGLES, lifts_mm=np.linspace(-4, 4, 11)),
    "tilted": ScanGeometry.circular(replace(GEOMETRY, roll_rad=0.2, tilt_u_rad=0.3), ANGLES),
    "parallel": ScanGeometry.parallel(ANGLES, rows=22, cols=18, pitch_mm=0.5),
    "near": ScanGeometry.circular(replace(GEOMETRY, source_to_object_mm=2.0), ANGLES),  # sources inside the grid
}


@pytest.mark.parametrize("kind", SCANS)
@pytest.mark.parametrize(("slices", "views"), [(1, 3), (4, 11), (13, 1)])
def test_slabs_add_up_to_the_whole(kind, slices, views):
    rng = np.random.default_rng(0)
    mask = rng.random(GRID.shape) < 0.8
    options = {"n_channels": 2, "mask": mask, "dtype": np.float64}
    whole = Projector(SCANS[kind], GRID, **options)
    parts = SlabProjector(SCANS[kind], GRID, slices_per_slab=slices, views_per_block=views, **options)
    assert (parts.domain_shape, parts.range_shape) == (whole.domain_shape, whole.range_shape)
    x, y = rng.normal(size=whole.domain_shape), rng.normal(size=whole.range_shape)
    np.testing.assert_allclose(parts.forward(x), whole.forward(x), rtol=0, atol=1e-11)
    np.testing.assert_allclose(parts.adjoint(y), whole.adjoint(y), rtol=0, atol=1e-11)
    assert np.vdot(parts @ x, y) == pytest.approx(np.vdot(x, parts.T @ y), rel=1e-12)


def test_volume_and_line_integrals_may_be_files(tmp_path):
    parts = SlabProjector(SCANS["circle"], GRID, slices_per_slab=5, views_per_block=4)
    x = np.memmap(tmp_path / "x", np.float32, "w+", shape=parts.domain_shape)
    y = np.memmap(tmp_path / "y", np.float32, "w+", shape=parts.range_shape)
    x[:] = np.random.default_rng(1).random(x.shape)
    assert parts.forward(x, out=y) is y
    np.testing.assert_allclose(y, Projector(SCANS["circle"], GRID).forward(np.array(x)), rtol=0, atol=1e-5)
    assert parts.adjoint(y, out=x) is x
    np.testing.assert_allclose(x, Projector(SCANS["circle"], GRID).adjoint(np.array(y)), rtol=1e-4, atol=1e-3)
