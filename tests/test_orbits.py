"""Scans that are no plain circle: short, one-sided, helical, parallel and fan beams, and rows that the camera cuts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.transform import iradon

from calibration.geometry import Geometry
from firmware_iface.errors import WrongUsage
from reconstruction.fdk import FdkStream, fdk, parallel_backprojection
from reconstruction.orbits import arc_weights_rad, one_sided_shares, plan_orbit, short_scan_shares
from reconstruction.scan_geometry import ScanGeometry
from reconstruction.volume import Grid

GEOMETRY = Geometry(source_to_detector_mm=150.0, source_to_object_mm=100.0, pitch_mm=0.4, rows=48, cols=54)
GRID = Grid(shape=(30, 36, 36), voxel_mm=0.26)
FAN_RAD = 2 * np.arctan(27 * 0.4 / 150)
CIRCLE = np.arange(90) * 2 * np.pi / 90
CENTRE_MM = (1.5, -1.0, 0.8)


def run(work):
    """Run a generator to its end and return its result."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def rays(scan: ScanGeometry) -> tuple[NDArray, NDArray]:
    """A point on each ray, and its unit vector: (n_views, rows, cols, 3)."""
    col = np.arange(scan.cols) - (scan.cols - 1) / 2
    row = np.arange(scan.rows) - (scan.rows - 1) / 2
    pixels = scan.detector_mm[:, None, None] + row[:, None, None] * scan.v_mm[:, None, None]
    pixels = pixels + col[:, None] * scan.u_mm[:, None, None]
    source = scan.source_mm[:, None, None]
    along = np.broadcast_to(-source, pixels.shape) if scan.is_parallel else pixels - source
    return pixels, along / np.linalg.norm(along, axis=-1, keepdims=True)


def sphere(scan: ScanGeometry, centre_mm=CENTRE_MM, radius_mm: float = 1.5) -> NDArray[np.float32]:
    """Exact chords through a sphere: (n_views, rows, cols), mm."""
    point, along = rays(scan)
    away = point - np.asarray(centre_mm)
    b = (away * along).sum(-1)
    return (2 * np.sqrt(np.maximum(b**2 - (away**2).sum(-1) + radius_mm**2, 0))).astype(np.float32)


def pillar(scan: ScanGeometry, x_mm: float, radius_mm: float) -> NDArray[np.float32]:
    """Exact chords through an endless upright cylinder: (n_views, rows, cols), mm."""
    point, along = rays(scan)
    across = (along[..., :2] ** 2).sum(-1)
    away = point[..., :2] - (x_mm, 0.0)
    b = (away * along[..., :2]).sum(-1) / across
    return (2 * np.sqrt(np.maximum(b**2 - ((away**2).sum(-1) - radius_mm**2) / across, 0) / across)).astype(np.float32)


def assert_sphere(values: NDArray, grid: Grid = GRID, *, inside: float = 0.005, outside: float = 0.025) -> None:
    """It stands where it should, is one inside and nothing outside, and keeps its mass."""
    z, y, x = grid.axes_mm()
    distance = np.sqrt(
        (x - CENTRE_MM[0]) ** 2 + (y[:, None] - CENTRE_MM[1]) ** 2 + (z[:, None, None] - CENTRE_MM[2]) ** 2
    )
    near = np.where(distance < 2.0, values, 0).astype(float)
    assert values[distance < 1.0].mean() == pytest.approx(1, abs=inside)
    assert np.sqrt((values[(distance > 2.2) & (distance < 3)] ** 2).mean()) < outside
    assert near.sum() * grid.voxel_mm**3 == pytest.approx(4 / 3 * np.pi * 1.5**3, rel=0.01)
    found = [(near * axis).sum() / near.sum() for axis in (x, y[:, None], z[:, None, None])]
    assert found == pytest.approx(CENTRE_MM, abs=0.02)


def reconstruct(angles, geometry=GEOMETRY, grid=GRID, **options):
    scan_options = {name: options[name] for name in ("lifts_mm", "shifts_mm") if name in options}
    line_integrals = sphere(ScanGeometry.circular(geometry, angles, **scan_options))[None]
    return run(fdk(line_integrals, angles, geometry, grid, **options))[0]


@pytest.mark.parametrize("start_rad", [0.0, 1.0, 2.9, 5.5])
@pytest.mark.parametrize("arc_rad", [np.pi + FAN_RAD, np.pi + FAN_RAD + 0.5, np.deg2rad(320)])
def test_a_short_scan_reads_as_a_circle_does_wherever_it_begins(start_rad, arc_rad):
    n = int(np.ceil(90 * arc_rad / (2 * np.pi)))
    angles = start_rad + (np.arange(n) + 0.5) * arc_rad / n
    np.random.default_rng(0).shuffle(angles)
    assert_sphere(reconstruct(angles))


def test_half_a_circle_without_the_fan_is_refused_unless_little_is_asked_for():
    angles = np.arange(91) * np.deg2rad(2)
    with pytest.raises(WrongUsage, match=r"182\.0 degrees of the circle empty.*at least 185\.2 degrees"):
        reconstruct(angles[:-1])
    assert reconstruct(angles, grid=Grid(shape=(4, 8, 8), voxel_mm=0.2, centre_mm=(0, 0, 1.0))).shape == (4, 8, 8)


@given(
    arc_rad=st.floats(np.pi + 0.05, 2 * np.pi - 0.01),
    along=st.floats(0, 1),
    fan=st.floats(-1, 1),
)
@settings(max_examples=300, deadline=None)
def test_the_two_ends_of_a_line_count_one_together(arc_rad, along, fan):
    angle, fan_rad = along * arc_rad, fan * (arc_rad - np.pi) / 2 * 0.999

    def share(angle_rad, fan_rad):
        if not 0 <= angle_rad <= arc_rad:
            return 0.0
        return float(short_scan_shares(np.array([angle_rad]), np.array([[fan_rad]]), arc_rad)[0, 0])

    ends = (
        share(angle, fan_rad),
        share(angle + np.pi - 2 * fan_rad, -fan_rad),
        share(angle - np.pi - 2 * fan_rad, -fan_rad),
    )
    assert sum(ends) == pytest.approx(1, abs=1e-6)
    assert min(ends) >= 0


def test_conjugate_rays_are_what_the_geometry_says_they_are():
    # The line of the ray at a fan angle from one end is that of the negative angle from the other.
    angle, column = 0.7, 40
    fan = np.arctan((column - 26.5) * 0.4 / 150)
    ends = ScanGeometry.circular(GEOMETRY, [angle, angle + np.pi - 2 * fan])
    point, along = rays(replace(ends, rows=1))
    np.testing.assert_allclose(along[1, 0, 53 - column], -along[0, 0, column], atol=1e-12)
    between = point[1, 0, 53 - column] - point[0, 0, column]
    np.testing.assert_allclose(np.cross(between, along[0, 0, column]), 0, atol=1e-9)


def test_shares_of_an_arc_change_smoothly():
    angles = np.linspace(0, np.pi + 0.4, 3001)
    shares = short_scan_shares(angles, np.tile(np.linspace(-0.19, 0.19, 7), (3001, 1)), np.pi + 0.4)
    assert shares[0].max() == 0
    assert shares[-1].max() < 1e-9
    slopes = np.abs(np.diff(shares[:, 1:-1], n=2, axis=0)) / (angles[1] - angles[0])
    assert slopes.max() < 0.8  # a kink of the slope would be about the slope itself, above 3


@given(st.floats(-0.3, 0.3), st.floats(0.01, 0.2))
@settings(max_examples=100, deadline=None)
def test_the_two_sides_of_a_one_sided_camera_count_one_together(fan_rad, overlap_rad):
    shares = one_sided_shares(np.array([fan_rad, -fan_rad]), overlap_rad)
    assert shares.sum() == pytest.approx(1)
    assert one_sided_shares(np.array([-overlap_rad]), overlap_rad)[0] == pytest.approx(0, abs=1e-12)


@given(st.lists(st.floats(0.001, 0.1), min_size=3, max_size=40))
@settings(max_examples=50, deadline=None)
def test_the_views_of_an_arc_stand_for_all_of_it(steps):
    angles = np.cumsum(steps)
    assert arc_weights_rad(angles).sum() == pytest.approx(angles[-1] - angles[0] + (steps[1] + steps[-1]) / 2, abs=1e-6)


@pytest.mark.parametrize("share", [0.3, -0.4, 0.45])
def test_a_camera_to_one_side_sees_the_whole_in_a_circle(share):
    to_side = replace(GEOMETRY, offset_u_mm=share * 54 * 0.4)
    assert_sphere(reconstruct(CIRCLE, to_side), inside=0.01)
    with pytest.raises(WrongUsage, match="a full circle"):
        reconstruct(np.arange(70) * np.deg2rad(3), to_side)


def test_a_camera_to_one_side_sees_what_does_not_fit_on_half_of_it():
    # A pillar of 7 mm radius, of which the short side sees 2 mm.
    to_side = replace(GEOMETRY, offset_u_mm=-8.0, cols=60)
    scan = ScanGeometry.circular(to_side, CIRCLE)
    grid = Grid(shape=(2, 60, 60), voxel_mm=0.25)
    values = run(fdk(0.02 * pillar(scan, 0.5, 7.0)[None], CIRCLE, to_side, grid))[0]
    _, y, x = grid.axes_mm()
    inside = np.hypot(x - 0.5, y[:, None]) < 6.3
    assert np.abs(values[:, inside] / 0.02 - 1).max() < 0.04
    assert values[:, inside].mean() == pytest.approx(0.02, rel=0.005)


def test_a_shift_of_the_camera_is_an_offset_of_the_detector():
    shifted = reconstruct(CIRCLE, shifts_mm=np.full(90, 1.2))
    offset = reconstruct(CIRCLE, replace(GEOMETRY, offset_u_mm=1.2))
    np.testing.assert_allclose(shifted, offset, atol=1e-5)
    assert_sphere(reconstruct(CIRCLE, shifts_mm=np.random.default_rng(0).uniform(-1, 1, 90)))


def test_a_camera_that_does_not_see_the_axis_is_refused():
    with pytest.raises(WrongUsage, match="see the axis"):
        reconstruct(CIRCLE, replace(GEOMETRY, offset_u_mm=11.0))


def test_lifts_on_a_circle_are_followed():
    lifts_mm = 0.6 * np.sin(3 * CIRCLE)
    assert_sphere(reconstruct(CIRCLE, lifts_mm=lifts_mm))
    lifted = reconstruct(CIRCLE, lifts_mm=2.0)
    assert_sphere(lifted)


@pytest.mark.parametrize("climb_mm", [4.0, -8.0, 16.0])
def test_a_helix_reads_as_a_circle_does(climb_mm):
    angles = (np.arange(360) - 180) * 2 * np.pi / 90
    lifts_mm = climb_mm * angles / (2 * np.pi)
    assert_sphere(reconstruct(angles, lifts_mm=lifts_mm))
    if climb_mm == 4.0:  # the turns are told by the lifts, not by the angles
        order = np.random.default_rng(2).permutation(360)
        mixed = reconstruct(np.mod(angles, 2 * np.pi)[order], lifts_mm=lifts_mm[order])
        np.testing.assert_allclose(mixed, reconstruct(angles, lifts_mm=lifts_mm), atol=1e-4)


def test_a_long_helix_sees_a_pillar_evenly():
    angles = (np.arange(400) - 200) * 2 * np.pi / 80
    lifts_mm = 9.0 * angles / (2 * np.pi)
    scan = ScanGeometry.circular(GEOMETRY, angles, lifts_mm=lifts_mm)
    grid = Grid(shape=(60, 30, 30), voxel_mm=0.3)  # 18 mm high, before a camera that sees 12.8
    values = run(fdk(0.02 * pillar(scan, 0.4, 3.5)[None], angles, GEOMETRY, grid, lifts_mm=lifts_mm))[0]
    _, y, x = grid.axes_mm()
    inside = values[:, np.hypot(x - 0.4, y[:, None]) < 3.0]
    assert inside.mean() == pytest.approx(0.02, rel=0.003)
    assert np.abs(inside.mean(1) / 0.02 - 1).max() < 0.01  # no slice stands out


def test_a_helix_with_a_camera_to_one_side():
    to_side = replace(GEOMETRY, offset_u_mm=0.3 * 54 * 0.4)
    angles = (np.arange(360) - 180) * 2 * np.pi / 90
    assert_sphere(reconstruct(angles, to_side, lifts_mm=7 * angles / (2 * np.pi)))


def test_lifts_that_are_neither_circle_nor_helix_are_refused():
    with pytest.raises(WrongUsage, match="not evenly"):
        reconstruct(np.tile(CIRCLE, 2), lifts_mm=np.repeat([-4.0, 4.0], 90) + np.tile(CIRCLE, 2) * 0.01)


@pytest.mark.parametrize(("n", "arc_rad", "offset_mm"), [(90, np.pi, 0.0), (90, np.pi, 0.5), (180, 2 * np.pi, 4.0)])
def test_parallel_rays(n, arc_rad, offset_mm):
    angles = np.arange(n) * arc_rad / n
    scan = ScanGeometry.parallel(angles, rows=40, cols=54, pitch_mm=0.26, offset_u_mm=offset_mm)
    values = run(parallel_backprojection(sphere(scan)[None], angles, GRID, pitch_mm=0.26, offset_u_mm=offset_mm))
    assert_sphere(values[0])


def test_parallel_rays_agree_with_scikit_image():
    n = 96
    angles = np.arange(150) * np.pi / 150
    scan = ScanGeometry.parallel(angles, rows=1, cols=n + 1, pitch_mm=1.0)
    sinogram = sum(pillar(scan, x_mm, radius_mm) for x_mm, radius_mm in ((0.0, 35.0), (10.0, 6.0), (-18.0, 9.0)))
    grid = Grid(shape=(1, n + 1, n + 1), voxel_mm=1.0)
    values = run(parallel_backprojection(np.asarray(sinogram)[None], angles, grid, pitch_mm=1.0))[0, 0]
    expected = iradon(np.asarray(sinogram)[:, 0].T, theta=np.rad2deg(angles), circle=True)[::-1]
    _, y, x = grid.axes_mm()
    inside = np.hypot(x, y[:, None]) < 46
    np.testing.assert_allclose(values[inside], expected[inside], atol=2e-3)


def test_a_single_row_of_a_fan():
    fan = Geometry(source_to_detector_mm=40.0, source_to_object_mm=25.0, pitch_mm=0.4, rows=1, cols=80)
    angles = np.arange(180) * 2 * np.pi / 180
    scan = ScanGeometry.circular(fan, angles)
    grid = Grid(shape=(1, 60, 60), voxel_mm=0.25)
    values = run(fdk(pillar(scan, 1.0, 5.0)[None], angles, fan, grid))[0, 0]
    _, y, x = grid.axes_mm()
    away = np.hypot(x - 1.0, y[:, None])
    assert values[away < 4.5].mean() == pytest.approx(1, abs=0.002)
    assert abs(values[(away > 5.5) & (np.hypot(x, y[:, None]) < 7)].mean()) < 0.005


@pytest.mark.parametrize("radius_mm", [10.0, 12.0, 14.0])
def test_rows_that_the_camera_cuts_are_continued(radius_mm):
    # The camera sees 7.2 mm around the axis.
    scan = ScanGeometry.circular(GEOMETRY, CIRCLE)
    grid = Grid(shape=(1, 36, 36), voxel_mm=0.3)
    line_integrals = pillar(scan, 0.0, radius_mm)[None]
    _, y, x = grid.axes_mm()
    inside = np.hypot(x, y[:, None]) < 5
    cut, continued = (
        float(np.abs(values[0, 0, inside] - 1).max())
        for values in (
            run(fdk(line_integrals, CIRCLE, GEOMETRY, grid, is_continued=is_continued))
            for is_continued in (False, True)
        )
    )
    assert cut > 0.2  # a bowl
    assert continued < cut / 4


def test_little_that_is_cut_is_told_as_wrongly_as_without():
    # What is beyond is unknown: continued rows go further out than the pillar, which is cut by a tenth.
    scan = ScanGeometry.circular(GEOMETRY, CIRCLE)
    grid = Grid(shape=(1, 36, 36), voxel_mm=0.3)
    values = run(fdk(pillar(scan, 0.0, 8.0)[None], CIRCLE, GEOMETRY, grid))[0, 0]
    _, y, x = grid.axes_mm()
    assert np.abs(values[np.hypot(x, y[:, None]) < 5] - 1).max() < 0.08


def test_continuing_changes_nothing_where_the_object_ends_inside():
    both = [reconstruct(CIRCLE, is_continued=is_continued) for is_continued in (False, True)]
    np.testing.assert_allclose(both[1], both[0], atol=1e-5)


def test_noise_beside_the_object_is_not_continued():
    scan = ScanGeometry.circular(GEOMETRY, CIRCLE)
    grid = Grid(shape=(20, 36, 36), voxel_mm=0.3)
    noise = np.random.default_rng(4).normal(0, 0.03, (1, 90, 48, 54)).astype(np.float32)
    line_integrals = 0.2 * pillar(scan, 0.0, 4.0)[None] + noise
    both = [run(fdk(line_integrals, CIRCLE, GEOMETRY, grid, is_continued=wanted)) for wanted in (False, True)]
    assert (both[1] - both[0]).mean() == pytest.approx(0, abs=2e-3 * 0.2)


@pytest.mark.parametrize("kind", ["circle", "short", "helix"])
def test_any_chunking_of_the_stream_makes_the_same_volume(kind):
    angles = {"circle": CIRCLE, "short": CIRCLE[:55], "helix": np.arange(180) * 2 * np.pi / 60}[kind]
    lifts_mm = 5 * (angles - angles.mean()) / (2 * np.pi) if kind == "helix" else 0.0
    grid = Grid(shape=(12, 14, 15), voxel_mm=0.5)
    line_integrals = sphere(ScanGeometry.circular(GEOMETRY, angles, lifts_mm=lifts_mm))[None]
    is_helix = kind == "helix"  # which is the processor's, whatever is asked for
    whole = run(fdk(line_integrals, angles, GEOMETRY, grid, lifts_mm=lifts_mm, use_gpu=is_helix))
    order = np.random.default_rng(1).permutation(len(angles))
    stream = FdkStream(angles, GEOMETRY, grid, 1, lifts_mm=lifts_mm)
    for part in np.split(order, [1, 4, 20, 21]):
        stream.add(line_integrals[:, part], part)
    np.testing.assert_allclose(stream.result(), whole, atol=2e-5)


def test_a_stream_tells_what_it_has_so_far():
    grid = Grid(shape=(8, 12, 12), voxel_mm=0.4, centre_mm=(1.5, -1.0, 0.8))
    line_integrals = sphere(ScanGeometry.circular(GEOMETRY, CIRCLE))[None]
    stream = FdkStream(CIRCLE, GEOMETRY, grid, 1)
    assert not stream.result().any()
    stream.add(line_integrals[:, ::2], slice(None, None, 2))
    half = stream.result()
    assert half[0, 3:5, 5:7, 5:7].mean() == pytest.approx(1, abs=0.01)  # the others are made up for
    stream.add(line_integrals[:, 1::2], slice(1, None, 2))
    np.testing.assert_allclose(stream.result(), run(fdk(line_integrals, CIRCLE, GEOMETRY, grid)), atol=2e-5)
    assert half[0, 3:5, 5:7, 5:7].mean() == pytest.approx(1, abs=0.01)  # what was given out stays
    with pytest.raises(WrongUsage, match="twice"):
        stream.add(line_integrals[:, :1], [0])
    with pytest.raises(WrongUsage, match="shape"):
        FdkStream(CIRCLE, GEOMETRY, grid, 1).add(line_integrals[:, :3], [0, 1])


def test_an_orbit_says_how_much_of_a_turn_it_stands_for():
    full = plan_orbit(CIRCLE, GEOMETRY, GRID)
    short = plan_orbit(CIRCLE[:60], GEOMETRY, GRID)
    # Of the central ray, each line is measured once, or twice by halves.
    for orbit in (full, short):
        middle = orbit.ray_shares[:, 26:28].mean(1)
        assert (orbit.view_weights * middle).sum() * GEOMETRY.magnification**2 == pytest.approx(np.pi, rel=2e-3)
