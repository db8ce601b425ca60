"""Where rays run: poses by hand, matrices, ASTRA's vectors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.geometry import Geometry
from reconstruction.projector import Projector
from reconstruction.scan_geometry import ScanGeometry
from reconstruction.volume import Grid

QUARTERS = np.pi / 2 * np.arange(4)
VECTORS = ("source_mm", "detector_mm", "u_mm", "v_mm")


def geometry(**changes: float) -> Geometry:
    plain = {"source_to_detector_mm": 150, "source_to_object_mm": 100, "pitch_mm": 0.5, "rows": 5, "cols": 8}
    return Geometry(**(plain | changes))


def test_poses_by_hand():
    scan = ScanGeometry.circular(geometry(), QUARTERS)
    # counter-clockwise from above: the source goes from -y to +x, to +y, to -x; columns go from +x to +y ...
    np.testing.assert_allclose(scan.source_mm, [[0, -100, 0], [100, 0, 0], [0, 100, 0], [-100, 0, 0]], atol=1e-12)
    np.testing.assert_allclose(scan.detector_mm, [[0, 50, 0], [-50, 0, 0], [0, -50, 0], [50, 0, 0]], atol=1e-12)
    np.testing.assert_allclose(scan.u_mm, [[0.5, 0, 0], [0, 0.5, 0], [-0.5, 0, 0], [0, -0.5, 0]], atol=1e-12)
    np.testing.assert_allclose(scan.v_mm, [[0, 0, 0.5]] * 4, atol=1e-12)
    assert scan.n_views == 4
    assert not scan.is_parallel


def test_offsets_lifts_and_shifts_by_hand():
    scan = ScanGeometry.circular(
        geometry(offset_u_mm=3, offset_v_mm=2), QUARTERS[:2], lifts_mm=[0, 7], shifts_mm=[10, -4]
    )
    # the object goes up by 7: source and detector see it from 7 lower
    np.testing.assert_allclose(scan.source_mm, [[0, -100, 0], [100, 0, -7]], atol=1e-12)
    np.testing.assert_allclose(scan.detector_mm, [[3 + 10, 50, 2], [-50, 3 - 4, 2 - 7]], atol=1e-12)


def test_a_helix_is_a_circle_that_climbs():
    angles = np.linspace(0, 4 * np.pi, 9)
    scan = ScanGeometry.circular(geometry(), angles, lifts_mm=-3.0 * angles / (2 * np.pi))
    np.testing.assert_allclose(scan.source_mm[:, 2], 3.0 * angles / (2 * np.pi), atol=1e-12)
    np.testing.assert_allclose(np.hypot(*scan.source_mm[:, :2].T), 100)


def test_parallel_beams_run_as_those_of_a_circle():
    scan = ScanGeometry.parallel(QUARTERS, rows=5, cols=8, pitch_mm=0.5, offset_u_mm=3)
    circle = ScanGeometry.circular(geometry(), QUARTERS)
    np.testing.assert_allclose(scan.source_mm, circle.source_mm / 100, atol=1e-12)
    np.testing.assert_allclose(scan.detector_mm, 3 * circle.u_mm / 0.5, atol=1e-12)
    np.testing.assert_allclose(scan.u_mm, circle.u_mm, atol=1e-12)
    np.testing.assert_allclose(scan.v_mm, circle.v_mm, atol=1e-12)
    assert scan.is_parallel


def test_matrices_by_hand():
    matrix = ScanGeometry.circular(geometry(), [0.0]).matrices()[0]
    # 10 mm to the right and 4 mm up on the axis: 1.5 times that on the detector, 30 and 12 pixels from its centre
    a, b, c = matrix @ [10, 0, 4, 1]
    np.testing.assert_allclose([a / c, b / c, 1 / c], [3.5 + 30, 2 + 12, 1.5])
    # 20 mm towards the detector: magnified by 150 / 120
    a, b, c = matrix @ [10, 20, 4, 1]
    np.testing.assert_allclose([a / c, b / c, 1 / c], [3.5 + 25, 2 + 10, 1.25])


def test_matrices_of_parallel_beams_by_hand():
    matrix = ScanGeometry.parallel([np.pi / 2], rows=5, cols=8, pitch_mm=0.5, offset_u_mm=1).matrices()[0]
    a, b, c = matrix @ [77, 10, 4, 1]  # columns run along +y; the detector's centre stands at y = 1
    np.testing.assert_allclose([a, b, c], [3.5 + 18, 2 + 8, 1], atol=1e-12)


small = st.floats(-0.5, 0.5)


@given(
    tilts=st.tuples(small, small, small),
    offsets=st.tuples(st.floats(-9, 9), st.floats(-9, 9)),
    point=st.tuples(*[st.floats(-30, 30)] * 3),
)
@settings(max_examples=50, deadline=None)
def test_matrices_say_what_the_poses_say(tilts, offsets, point):
    names = ("roll_rad", "tilt_u_rad", "tilt_v_rad", "offset_u_mm", "offset_v_mm")
    askew = geometry(**dict(zip(names, (*tilts, *offsets), strict=True)))
    angles = np.array([0.3, 2.0, 4.4])
    a, b, c = np.moveaxis(ScanGeometry.circular(askew, angles).matrices() @ [*point, 1], -1, 0)
    seen = askew.views(angles).shadows_px([point])[:, 0]
    np.testing.assert_allclose(np.stack([a / c, b / c], -1) - [3.5, 2.0], seen, atol=1e-7)


def test_a_pixel_and_the_source_span_a_ray():
    """All points of a ray, tilted or parallel, fall on its pixel."""
    tilted = ScanGeometry.circular(geometry(roll_rad=0.2, tilt_u_rad=0.1, tilt_v_rad=-0.1), [0.5, 3.0])
    oblique = ScanGeometry.parallel([0.5, 3.0], rows=5, cols=8, pitch_mm=0.5)
    oblique = replace(oblique, source_mm=oblique.source_mm + np.array([0.05, 0.02, 0.3]))
    row, col = 4, 1
    for scan in (tilted, oblique):
        pixel = scan.detector_mm + (col - 3.5) * scan.u_mm + (row - 2) * scan.v_mm
        for t in (0.2, 0.7, 1.0):
            towards = scan.source_mm * 30 if scan.is_parallel else scan.source_mm - pixel
            point = np.concatenate([pixel + (1 - t) * towards, np.ones((2, 1))], axis=1)
            a, b, c = np.moveaxis((scan.matrices() @ point[..., None])[..., 0], -1, 0)
            np.testing.assert_allclose([a / c, b / c], [[col] * 2, [row] * 2], atol=1e-9)


def test_cone_vectors_are_those_that_astra_documents():
    """The ASTRA toolbox's documentation turns its circular `cone` into `cone_vec` by these lines."""
    angles, to_source, to_detector, spacing_u, spacing_v = np.array([0.0, 0.4, 3.5]), 100.0, 50.0, 0.5, 0.5
    vectors = np.zeros((3, 12))
    vectors[:, 0] = np.sin(angles) * to_source
    vectors[:, 1] = -np.cos(angles) * to_source
    vectors[:, 3] = -np.sin(angles) * to_detector
    vectors[:, 4] = np.cos(angles) * to_detector
    vectors[:, 6] = np.cos(angles) * spacing_u
    vectors[:, 7] = np.sin(angles) * spacing_u
    vectors[:, 11] = spacing_v
    scan = ScanGeometry.circular(geometry(), angles)
    np.testing.assert_allclose(scan.to_astra(), vectors, atol=1e-12)
    np.testing.assert_allclose(scan.to_astra(0.25), 4 * vectors, atol=1e-12)
    read = ScanGeometry.from_astra(4 * vectors, rows=5, cols=8, voxel_mm=0.25)
    for name in VECTORS:
        np.testing.assert_allclose(getattr(read, name), getattr(scan, name), atol=1e-12)


def test_parallel_vectors_go_to_astra_and_back():
    scan = ScanGeometry.parallel([0.0, 0.4, 3.5], rows=5, cols=8, pitch_mm=0.5, offset_u_mm=1.0)
    vectors = scan.to_astra(0.25)
    np.testing.assert_allclose(vectors[0, :3], [0, 1, 0], atol=1e-12)  # the way the rays run
    read = ScanGeometry.from_astra(vectors, rows=5, cols=8, voxel_mm=0.25, is_parallel=True)
    for name in VECTORS:
        np.testing.assert_allclose(getattr(read, name), getattr(scan, name), atol=1e-12)


def test_it_does_not_matter_which_way_a_parallel_ray_runs():
    scan = ScanGeometry.parallel([0.3, 2.0], rows=5, cols=8, pitch_mm=1.0)
    x = np.random.default_rng(0).random((1, 6, 7, 8))
    grid = Grid(shape=(6, 7, 8), voxel_mm=1.0)
    one, other = (
        Projector(s, grid, dtype=np.float64).forward(x) for s in (scan, replace(scan, source_mm=-scan.source_mm))
    )
    np.testing.assert_allclose(one, other, rtol=1e-12)


def test_some_views_in_their_order():
    scan = ScanGeometry.circular(geometry(), QUARTERS)
    np.testing.assert_array_equal(scan.take([3, 1]).source_mm, scan.source_mm[[3, 1]])
    np.testing.assert_array_equal(scan.take(slice(1, None, 2)).u_mm, scan.u_mm[1::2])
    assert scan.take(2).n_views == 1


def test_what_stands_upright():
    assert ScanGeometry.circular(geometry(offset_u_mm=2, offset_v_mm=1), QUARTERS, lifts_mm=3).is_upright
    assert ScanGeometry.circular(geometry(tilt_v_rad=0.1), QUARTERS).is_upright  # turned about v, columns still stand
    assert not ScanGeometry.circular(geometry(roll_rad=1e-4), QUARTERS).is_upright
    assert not ScanGeometry.circular(geometry(tilt_u_rad=1e-4), QUARTERS).is_upright
    level = ScanGeometry.parallel(QUARTERS, rows=5, cols=8, pitch_mm=0.5)
    assert level.is_upright
    assert not replace(level, source_mm=level.source_mm + np.array([0, 0, 0.1])).is_upright


def test_what_cannot_be_is_refused():
    scan = ScanGeometry.circular(geometry(), QUARTERS)
    with pytest.raises(ValueError, match="u_mm has shape"):
        replace(scan, u_mm=scan.u_mm[:2])
    with pytest.raises(ValueError, match="finite"):
        replace(scan, v_mm=scan.v_mm * np.nan)
    with pytest.raises(ValueError, match="0 x 8"):
        replace(scan, rows=0)
