"""A surface of known shape has its area, its volume, its place and its outside; so has one cut off by the volume."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from firmware_iface.errors import WrongUsage
from gui.volume.surfaces import Mesh, isosurface
from gui.workers import Job

VOXEL_MM = 0.1


def run_to_end(work) -> Mesh:
    """Return what a generator of progress returns, or raise what it raised."""
    job = Job("surface", work)
    job.run()
    if (error := job.snapshot().error) is not None:
        raise error
    return job.result


def ball(radius_mm: float, centre_mm: tuple[float, float, float], shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Return 0.01 g/cm3 inside and 0 outside with an edge two voxels wide, 5 mg/mL at the radius."""
    z, y, x = ((np.arange(n) - (n - 1) / 2) * VOXEL_MM for n in shape)
    away_mm = np.sqrt(
        (z[:, None, None] - centre_mm[2]) ** 2 + (y[:, None] - centre_mm[1]) ** 2 + (x - centre_mm[0]) ** 2
    )
    return (0.01 * np.clip(0.5 - (away_mm - radius_mm) / (2 * VOXEL_MM), 0, 1)).astype(np.float32)


def test_ball_has_its_area_its_volume_and_its_place() -> None:
    radius_mm, centre_mm = 1.5, (0.4, -0.3, 0.2)
    mesh = run_to_end(
        isosurface(ball(radius_mm, centre_mm, (44, 46, 48)), 0.005, voxel_mm=VOXEL_MM, centre_mm=(10, 20, 30))
    )
    assert mesh.volume_mm3 == pytest.approx(4 / 3 * np.pi * radius_mm**3, rel=0.01)
    assert mesh.area_mm2 == pytest.approx(4 * np.pi * radius_mm**2, rel=0.01)
    middle_mm = (mesh.vertices_mm.max(axis=0) + mesh.vertices_mm.min(axis=0)) / 2
    np.testing.assert_allclose(middle_mm, np.array([10, 20, 30]) + centre_mm, atol=0.01)


def test_surface_is_closed_and_consistently_turned() -> None:
    mesh = run_to_end(isosurface(ball(1.0, (0, 0, 0), (28, 28, 28)), 0.005, voxel_mm=VOXEL_MM))
    edges = np.concatenate([mesh.faces[:, pair] for pair in ([0, 1], [1, 2], [2, 0])])
    there = {tuple(edge) for edge in edges.tolist()}
    assert len(there) == len(edges), "no edge is walked twice the same way"
    assert all((second, first) in there for first, second in there), "every edge has a face on its other side"


def test_what_fills_the_volume_is_closed_at_its_walls() -> None:
    values = np.full((10, 12, 14), 0.02, dtype=np.float32)
    mesh = run_to_end(isosurface(values, 0.005, voxel_mm=VOXEL_MM))
    assert mesh.volume_mm3 == pytest.approx(10 * 12 * 14 * VOXEL_MM**3, rel=0.02)
    np.testing.assert_allclose(np.ptp(mesh.vertices_mm, axis=0), [1.4, 1.2, 1.0], rtol=1e-5)


def test_smoothing_takes_noise_and_leaves_the_volume() -> None:
    values = ball(1.2, (0, 0, 0), (34, 34, 34))
    values += np.random.default_rng(8).normal(0, 0.001, values.shape).astype(np.float32)
    rough = run_to_end(isosurface(values, 0.005, voxel_mm=VOXEL_MM))
    smooth = run_to_end(isosurface(values, 0.005, voxel_mm=VOXEL_MM, smoothing_steps=10))
    exact_mm2 = 4 * np.pi * 1.2**2
    assert abs(smooth.area_mm2 - exact_mm2) < 0.5 * abs(rough.area_mm2 - exact_mm2)
    assert smooth.volume_mm3 == pytest.approx(rough.volume_mm3, rel=0.01)


def test_not_a_number_is_outside() -> None:
    values = ball(1.0, (0, 0, 0), (28, 28, 28))
    values[:14] = np.nan
    mesh = run_to_end(isosurface(values, 0.005, voxel_mm=VOXEL_MM))
    assert mesh.volume_mm3 == pytest.approx(2 / 3 * np.pi, rel=0.08)
    assert mesh.vertices_mm[:, 2].min() > -VOXEL_MM


def test_threshold_above_all_says_how_high_it_may_be() -> None:
    with pytest.raises(WrongUsage, match="20 mg/mL") as refused:
        run_to_end(isosurface(ball(1.0, (0, 0, 0), (28, 28, 28)), 0.02, voxel_mm=VOXEL_MM, name="iodine"))
    assert "10 mg/mL" in refused.value.hint


def test_mesh_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match="vertices"):
        Mesh(vertices_mm=np.zeros((3, 2), np.float32), faces=np.zeros((1, 3), np.int32))
