"""Filtered back-projection against solids whose projections are known exactly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.transform import iradon

from calibration.geometry import Geometry
from calibration.levelling import level, upright
from calibration.progress import Progress
from firmware_iface.errors import WrongUsage
from reconstruction.fdk import fdk
from reconstruction.orbits import angular_weights_rad
from reconstruction.ramp import WINDOWS, ramp_filter
from reconstruction.volume import Grid

GEOMETRY = Geometry(source_to_detector_mm=150.0, source_to_object_mm=100.0, pitch_mm=0.3, rows=64, cols=72)
GRID = Grid(shape=(40, 48, 48), voxel_mm=0.2)
ANGLES = np.arange(120) * 2 * np.pi / 120


def run(work):
    """Run a generator to its end and return its result."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def rays(geometry: Geometry, angles_rad) -> tuple[NDArray, NDArray]:
    """Sources (n_views, 1, 1, 3), and unit vectors from them to every pixel (n_views, rows, cols, 3)."""
    views = geometry.views(angles_rad)
    col = np.arange(geometry.cols) - (geometry.cols - 1) / 2
    row = np.arange(geometry.rows) - (geometry.rows - 1) / 2
    pixels = (
        views.detector_mm[:, None, None]
        + row[:, None, None] * views.v_mm[:, None, None]
        + col[:, None] * views.u_mm[:, None, None]
    )
    source = views.source_mm[:, None, None]
    along = pixels - source
    return source, along / np.linalg.norm(along, axis=-1, keepdims=True)


def sphere(geometry: Geometry, angles_rad, centre_mm, radius_mm: float) -> NDArray[np.float32]:
    """Exact chords through a sphere: (n_views, rows, cols), mm."""
    source, along = rays(geometry, angles_rad)
    away = source - np.asarray(centre_mm)
    b = (away * along).sum(-1)
    return (2 * np.sqrt(np.maximum(b**2 - (away**2).sum(-1) + radius_mm**2, 0))).astype(np.float32)


def cylinder(geometry: Geometry, angles_rad, centre_mm, radius_mm: float, height_mm: float) -> NDArray[np.float32]:
    """Exact chords through an upright cylinder: (n_views, rows, cols), mm."""
    source, along = rays(geometry, angles_rad)
    away = source - np.asarray(centre_mm)
    across = (along[..., :2] ** 2).sum(-1)
    b = (away[..., :2] * along[..., :2]).sum(-1) / across
    root = np.sqrt(np.maximum(b**2 - ((away[..., :2] ** 2).sum(-1) - radius_mm**2) / across, 0))
    with np.errstate(divide="ignore"):
        lids = np.stack([(side * height_mm / 2 - away[..., 2]) / along[..., 2] for side in (-1, 1)])
    near, far = np.maximum(lids.min(0), -b - root), np.minimum(lids.max(0), -b + root)
    return np.where(root > 0, np.maximum(far - near, 0), 0).astype(np.float32)


def positions_mm(grid: Grid) -> tuple[NDArray, NDArray, NDArray]:
    z, y, x = grid.axes_mm()
    return z[:, None, None], y[:, None], x


def test_a_cylinder_reads_its_attenuation_inside_and_nothing_outside():
    projections = 0.02 * cylinder(GEOMETRY, ANGLES, (0, 0, 0), 3.0, 40.0)
    values = run(fdk(projections[None], ANGLES, GEOMETRY, GRID))[0]
    z, y, x = positions_mm(GRID)
    radius = np.hypot(x, y) + 0 * z
    middle = np.abs(z) < 2.0
    inside = values[(radius < 2.5) & middle]
    assert inside.mean() == pytest.approx(0.02, rel=0.01)
    assert np.abs(inside - 0.02).max() < 0.01 * 0.02 * 3
    assert abs(values[(radius > 3.5) & (radius < 4.5) & middle].mean()) < 0.01 * 0.02


@pytest.mark.parametrize("offset_u_mm", [0.0, 2.5])
def test_wide_rays_are_weighted_by_their_own_cosine(offset_u_mm):
    # Filtered back-projection is exact for what does not change along z, however steep the rays: only the cosines
    # of fan and cone together make it so. Here they go down to 0.92 across and 0.94 along the axis.
    wide = Geometry(
        source_to_detector_mm=30.0,
        source_to_object_mm=20.0,
        pitch_mm=0.3,
        rows=72,
        cols=84,
        offset_u_mm=offset_u_mm,
    )
    grid = Grid(shape=(3, 40, 40), voxel_mm=0.2, centre_mm=(0.0, 0.0, 3.5))
    projections = 0.02 * cylinder(wide, ANGLES, (0.6, 0.0, 0.0), 4.5, 200.0)
    values = run(fdk(projections[None], ANGLES, wide, grid))[0]
    _, y, x = positions_mm(grid)
    assert values[:, np.hypot(x, y) < 3.5].mean() == pytest.approx(0.02, rel=0.004)


@pytest.mark.parametrize("centre_mm", [(2.0, -1.0, 1.2), (-1.5, 2.2, -2.0), (0.4, 2.5, 0.0)])
def test_an_off_centre_sphere_stands_where_it_is_and_keeps_its_mass(centre_mm):
    projections = 0.05 * sphere(GEOMETRY, ANGLES, centre_mm, 1.5)
    values = run(fdk(projections[None], ANGLES, GEOMETRY, GRID))[0]
    z, y, x = positions_mm(GRID)
    distance = np.sqrt((x - centre_mm[0]) ** 2 + (y - centre_mm[1]) ** 2 + (z - centre_mm[2]) ** 2)
    weights = np.where(distance < 2.0, values, 0).astype(float)
    found = [float((weights * axis).sum() / weights.sum()) for axis in (x, y, z)]
    assert found == pytest.approx(centre_mm, abs=0.02)
    assert weights.sum() * GRID.voxel_mm**3 == pytest.approx(0.05 * 4 / 3 * np.pi * 1.5**3, rel=0.02)
    assert values[distance < 1.0].mean() == pytest.approx(0.05, rel=0.01)


@pytest.mark.parametrize(("offset_u_mm", "offset_v_mm"), [(0.85, 0.0), (0.0, -1.4), (-1.3, 0.7)])
def test_a_shifted_detector_changes_nothing(offset_u_mm, offset_v_mm):
    shifted = Geometry(
        source_to_detector_mm=150.0,
        source_to_object_mm=100.0,
        pitch_mm=0.3,
        rows=64,
        cols=72,
        offset_u_mm=offset_u_mm,
        offset_v_mm=offset_v_mm,
    )
    centre_mm = (1.5, -1.0, 1.0)
    values = run(fdk(sphere(shifted, ANGLES, centre_mm, 1.5)[None], ANGLES, shifted, GRID))[0]
    z, y, x = positions_mm(GRID)
    distance = np.sqrt((x - centre_mm[0]) ** 2 + (y - centre_mm[1]) ** 2 + (z - centre_mm[2]) ** 2)
    assert values[distance < 1.0].mean() == pytest.approx(1.0, rel=0.01)
    assert np.abs(values[(distance > 2.0) & (distance < 2.6)]).mean() < 0.03


@pytest.mark.parametrize(
    "tilts",
    [{"roll_rad": 0.05}, {"tilt_u_rad": 0.1}, {"tilt_v_rad": -0.1}, {"roll_rad": -0.03, "tilt_v_rad": 0.08}],
    ids=str,
)
def test_a_tilted_detector_changes_nothing(tilts):
    tilted = replace(GEOMETRY, **tilts, offset_u_mm=0.6, offset_v_mm=-0.4)
    centre_mm = (2.5, -2.0, 2.0)
    projections = sphere(tilted, ANGLES, centre_mm, 1.5)[None]
    z, y, x = positions_mm(GRID)
    distance = np.sqrt((x - centre_mm[0]) ** 2 + (y - centre_mm[1]) ** 2 + (z - centre_mm[2]) ** 2)

    def error(geometry):
        values = run(fdk(projections, ANGLES, geometry, GRID))[0]
        weights = np.where(distance < 2.0, values, 0).astype(float)
        found = [float((weights * axis).sum() / weights.sum()) for axis in (x, y, z)]
        return np.linalg.norm(np.subtract(found, centre_mm)), abs(values[distance < 1.0].mean() - 1)

    shift_mm, loss = error(tilted)
    assert shift_mm < 0.02
    assert loss < 0.01
    if "roll_rad" in tilts:  # the others hardly show in a fan this narrow
        shift_ignored_mm, _ = error(replace(tilted, **dict.fromkeys(tilts, 0.0)))
        assert shift_ignored_mm > 2 * shift_mm


def test_levelling_keeps_what_is_straight_and_upright():
    tilted = replace(GEOMETRY, roll_rad=0.05, tilt_u_rad=0.1, tilt_v_rad=-0.1)
    np.testing.assert_allclose(level(np.ones((2, 64, 72)), tilted), 1, atol=1e-6)
    assert upright(tilted) == GEOMETRY
    assert level(slopes_of(GEOMETRY), GEOMETRY).shape == (64, 72)
    # A picture that is painted on the rays' directions looks the same to both detectors.
    found, expected = level(slopes_of(tilted), tilted), slopes_of(GEOMETRY)
    inner = np.s_[8:-8, 8:-8]
    np.testing.assert_allclose(found[inner], expected[inner], atol=1e-5)
    assert np.abs(slopes_of(tilted) - expected)[inner].max() > 2e-3


def slopes_of(geometry):
    """How much each ray goes along x for each step along y."""
    _, along = rays(geometry, [0.0])
    return along[0, ..., 0] / along[0, ..., 1]


def test_a_detector_shifted_by_whole_pixels_sees_the_same_shadows_elsewhere():
    centred = replace(GEOMETRY, source_to_object_mm=30.0, source_to_detector_mm=45.0, rows=72, cols=84)
    shifted = replace(centred, offset_u_mm=10 * 0.3, offset_v_mm=-7 * 0.3)
    seen = [sphere(g, ANGLES, (1.5, -1.0, 1.0), 1.5) for g in (centred, shifted)]
    np.testing.assert_allclose(seen[1][:, 7:, :-10], seen[0][:, :-7, 10:], atol=1e-5)
    grid = Grid(shape=(30, 30, 30), voxel_mm=0.2)  # both detectors see all of it, in every view
    values = [run(fdk(p[None], ANGLES, g, grid)) for p, g in zip(seen, (centred, shifted), strict=True)]
    np.testing.assert_allclose(values[1], values[0], atol=1e-4)


def test_a_grid_away_from_the_axis_is_a_window_into_the_same_volume():
    projections = sphere(GEOMETRY, ANGLES, (1.0, 1.0, 0.5), 1.5)[None]
    whole = run(fdk(projections, ANGLES, GEOMETRY, GRID))
    cut = (slice(20, 25), slice(25, 33), slice(24, 33))
    centre_mm = [float(axis[part].mean()) for axis, part in zip(GRID.axes_mm(), cut, strict=True)]
    part = Grid(shape=(5, 8, 9), voxel_mm=0.2, centre_mm=(centre_mm[2], centre_mm[1], centre_mm[0]))
    np.testing.assert_allclose(run(fdk(projections, ANGLES, GEOMETRY, part)), whole[:, *cut], atol=1e-4)


def test_an_object_seen_a_quarter_later_has_turned_a_quarter():
    projections = sphere(GEOMETRY, ANGLES, (2.0, 0.5, 0.3), 1.2)[None]
    values = run(fdk(projections, ANGLES, GEOMETRY, GRID))
    turned = run(fdk(np.roll(projections, len(ANGLES) // 4, axis=1), ANGLES, GEOMETRY, GRID))
    # Counter-clockwise: (x, y) goes to (-y, x), so the new value at (x, y) is the old one at (y, -x).
    np.testing.assert_allclose(turned, values.swapaxes(2, 3)[..., ::-1], atol=1e-4)


def test_it_is_linear_and_bins_are_independent():
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(2, 120, 64, 72)).astype(np.float32)
    # Rows that are cut are continued by what is above zero: that is not linear.
    alone = [run(fdk(bins[None], ANGLES, GEOMETRY, GRID, is_continued=False))[0] for bins in (a, b, 2 * a - 3 * b)]
    together = run(fdk(np.stack([a, b]), ANGLES, GEOMETRY, GRID, is_continued=False))
    scale = np.abs(alone[2]).max()
    np.testing.assert_allclose(together[0], alone[0], atol=1e-6 * scale)
    np.testing.assert_allclose(together[1], alone[1], atol=1e-6 * scale)
    np.testing.assert_allclose(alone[2], 2 * alone[0] - 3 * alone[1], atol=1e-5 * scale)


def test_the_order_of_the_views_and_an_over_scan_change_nothing():
    projections = sphere(GEOMETRY, ANGLES, (2.0, 0.5, 0.3), 1.2)[None]
    values = run(fdk(projections, ANGLES, GEOMETRY, GRID))
    order = np.random.default_rng(1).permutation(len(ANGLES))
    shuffled = run(fdk(projections[:, order], ANGLES[order], GEOMETRY, GRID))
    np.testing.assert_allclose(shuffled, values, atol=1e-4)
    twice = np.concatenate([ANGLES, ANGLES[:30] + 2 * np.pi])
    over = run(fdk(np.concatenate([projections, projections[:, :30]], axis=1), twice, GEOMETRY, GRID))
    np.testing.assert_allclose(over, values, atol=2e-2)
    assert over.mean() == pytest.approx(values.mean(), rel=1e-3)


@given(st.lists(st.floats(0, 0.2), min_size=1, max_size=30), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_the_angular_weights_are_a_full_circle_for_any_spacing(shifts, seed):
    angles = np.concatenate([np.arange(40) * 2 * np.pi / 40 + 4 * np.pi, shifts])
    np.random.default_rng(seed).shuffle(angles)
    weights = angular_weights_rad(angles)
    assert weights.sum() == pytest.approx(2 * np.pi)
    assert (weights >= 0).all()


def test_even_views_weigh_the_same():
    np.testing.assert_allclose(angular_weights_rad(ANGLES[::-1]), 2 * np.pi / 120, rtol=1e-5)


def test_uneven_views_reach_half_way_to_both_neighbours():
    angles = np.deg2rad([0.0, 10.0, 22.0, 30.0, *np.arange(40.0, 360.0, 10.0)])
    weights = np.rad2deg(angular_weights_rad(angles))
    assert weights[:5].tolist() == pytest.approx([10.0, 11.0, 10.0, 9.0, 10.0], abs=1e-4)


def test_views_at_one_angle_share_its_weight():
    weights = angular_weights_rad(np.repeat(ANGLES, 3))
    np.testing.assert_allclose(weights, 2 * np.pi / 360, rtol=1e-5)


def test_a_lost_view_is_made_up_for_and_half_a_circle_is_refused():
    projections = cylinder(GEOMETRY, ANGLES, (0, 0, 0), 3.0, 40.0)[None]
    kept = np.delete(np.arange(120), [17, 60, 61])
    values = run(fdk(projections[:, kept], ANGLES[kept], GEOMETRY, GRID))[0]
    assert values[20, 20:28, 20:28].mean() == pytest.approx(1.0, rel=0.01)
    with pytest.raises(WrongUsage, match=r"183\.0 degrees of the circle empty"):
        run(fdk(projections[:, :60], ANGLES[:60], GEOMETRY, GRID))


def test_the_ramp_has_the_values_of_the_band_limited_kernel():
    gain = ramp_filter(8, 0.5)
    kernel = np.fft.irfft(gain / 0.5)
    assert kernel[0] == pytest.approx(1 / (4 * 0.5**2), rel=1e-6)
    assert kernel[1] == pytest.approx(-1 / (np.pi * 0.5) ** 2, rel=1e-6)
    assert kernel[2:8:2] == pytest.approx([0, 0, 0], abs=1e-6)
    assert kernel[3:8:2] == pytest.approx([-1 / (n * np.pi * 0.5) ** 2 for n in (3, 5, 7)], rel=1e-6)


@pytest.mark.parametrize(
    ("window", "half_way", "at_the_end"),
    [
        ("ram-lak", 1, 1),
        ("shepp-logan", np.sin(np.pi / 4) / (np.pi / 4), 2 / np.pi),
        ("cosine", np.sqrt(0.5), 0),
        ("hamming", 0.54, 0.08),
        ("hann", 0.5, 0),
    ],
)
def test_the_windows_are_those_of_their_names(window, half_way, at_the_end):
    share = ramp_filter(8, 0.5, window) / ramp_filter(8, 0.5)
    assert share[[0, len(share) // 2, -1]] == pytest.approx([1, half_way, at_the_end], abs=1e-6)


@pytest.mark.parametrize(
    ("window", "name"),
    [("ram-lak", "ramp"), *((name, name) for name in ("shepp-logan", "cosine", "hamming", "hann"))],
)
def test_from_far_away_the_middle_slice_is_that_of_parallel_rays(window, name):
    far = Geometry(source_to_detector_mm=1e6, source_to_object_mm=1e6 - 10, pitch_mm=0.2, rows=3, cols=65)
    angles = np.arange(180) * 2 * np.pi / 180
    u_mm = (np.arange(65) - 32) * 0.2
    sinogram = np.zeros((180, 65), np.float32)
    for x_mm, y_mm, radius_mm, per_mm in ((0.0, 0.0, 4.5, 0.03), (1.5, 0.7, 1.2, 0.1), (-2.0, 1.0, 0.8, 0.2)):
        away_mm = u_mm - (x_mm * np.cos(angles) + y_mm * np.sin(angles))[:, None]
        sinogram += per_mm * 2 * np.sqrt(np.maximum(radius_mm**2 - away_mm**2, 0))
    grid = Grid(shape=(1, 65, 65), voxel_mm=0.2)
    values = run(fdk(np.repeat(sinogram[None, :, None], 3, axis=2), angles, far, grid, window=window))[0, 0]
    expected = iradon(sinogram.T, theta=np.rad2deg(angles), filter_name=name, circle=True)[::-1] / 0.2
    _, y, x = positions_mm(grid)
    inside = np.hypot(x, y) < 5.6
    # Its Hann and Hamming windows are one sample of the frequency away from their symmetric ones.
    np.testing.assert_allclose(values[inside], expected[inside], atol=5e-4)


def test_softer_windows_keep_the_mean_and_less_noise():
    rng = np.random.default_rng(2)
    clean = 0.02 * cylinder(GEOMETRY, ANGLES, (0, 0, 0), 3.0, 40.0)
    projections = np.stack([clean, clean + rng.normal(0, 0.01, clean.shape).astype(np.float32)])
    spreads = []
    for window in ("ram-lak", "shepp-logan", "cosine", "hamming", "hann"):
        values = run(fdk(projections, ANGLES, GEOMETRY, GRID, window=window))[:, 12:28, 16:32, 16:32]
        assert values[0].mean() == pytest.approx(0.02, rel=0.01), window
        spreads.append(float((values[1] - values[0]).std()))
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[-1] < 0.7 * spreads[0]
    assert set(WINDOWS) == {"ram-lak", "shepp-logan", "cosine", "hamming", "hann"}


def test_it_reports_every_view_once():
    steps = list(fdk(np.zeros((1, 120, 64, 72), np.float32), ANGLES, GEOMETRY, Grid(shape=(4, 4, 4), voxel_mm=0.2)))
    assert all(isinstance(step, Progress) and step.total == 120 for step in steps)
    assert [step.done for step in steps] == sorted({step.done for step in steps})
    assert steps[-1].done == 120


@pytest.mark.parametrize(
    ("shape", "match"), [((1, 119, 64, 72), "shape"), ((120, 64, 72), "shape"), ((1, 120, 72, 64), "shape")]
)
def test_wrong_shapes_are_refused(shape, match):
    with pytest.raises(WrongUsage, match=match):
        run(fdk(np.zeros(shape, np.float32), ANGLES, GEOMETRY, GRID))


def test_values_that_are_no_numbers_name_their_view_and_a_grid_round_the_source_is_refused():
    projections = np.zeros((1, 120, 64, 72), np.float32)
    projections[0, 33, 2, 5] = np.nan
    with pytest.raises(WrongUsage, match="view 33"):
        run(fdk(projections, ANGLES, GEOMETRY, GRID))
    with pytest.raises(WrongUsage, match="the source stands at 100 mm"):
        run(fdk(projections, ANGLES, GEOMETRY, Grid(shape=(2, 800, 800), voxel_mm=0.2)))
    with pytest.raises(WrongUsage, match="ram-lak, shepp-logan"):
        run(fdk(projections, ANGLES, GEOMETRY, GRID, window="boxcar"))


def test_coarse_voxels_read_the_same():
    coarse = Grid(shape=(6, 8, 8), voxel_mm=1.0)  # five rows per voxel
    projections = cylinder(GEOMETRY, ANGLES, (0, 0, 0), 3.0, 40.0)[None]
    values = run(fdk(projections, ANGLES, GEOMETRY, coarse))[0]
    assert values[2:4, 3:5, 3:5].mean() == pytest.approx(1.0, rel=0.01)
