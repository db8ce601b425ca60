"""Tiles of a camera that was shifted: one wide view, its geometry, and what nobody saw."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acquisition.plan import DetectorPlan, Plan, ScanPlan
from acquisition.scan import ImageKey, readout_of
from acquisition.scan_writer import ScanWriter
from acquisition.steps import Pose
from calibration.geometry import Geometry
from firmware_iface.errors import BadFile, WrongUsage
from firmware_iface.frame import Frame, Lost
from reconstruction.pipeline import align_scan_file, reconstruct_scan
from reconstruction.recipe import Recipe
from reconstruction.stitch import WHOLE_PX, stitch, wide_geometry

GEOMETRY = Geometry(source_to_detector_mm=250.0, source_to_object_mm=200.0, pitch_mm=0.2, rows=3, cols=20)


def columns_mm(geometry: Geometry) -> np.ndarray:
    """Where the middles of a camera's columns stand along u."""
    return geometry.offset_u_mm + geometry.pitch_mm * (np.arange(geometry.cols) - (geometry.cols - 1) / 2)


def seen(shift_mm: float, law) -> np.ndarray:
    """What a tile sees of a picture that depends on the place along u only: (2, 4, rows, cols)."""
    values = law(columns_mm(GEOMETRY) + shift_mm)
    return (np.array([1.0, 0.5])[:, None, None, None] * np.ones((2, 4, 3, 1)) * values).astype(np.float32)


def nothing(tile: np.ndarray) -> np.ndarray:
    return np.zeros(tile.shape, bool)


@given(
    steps=st.lists(st.floats(0.05, 3.7), min_size=1, max_size=3),
    first_mm=st.floats(-5, 5),
    slope=st.floats(-1, 1),
    is_reversed=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_tiles_at_any_shift_give_back_a_straight_picture(steps, first_mm, slope, is_reversed) -> None:
    # A straight line is what linear interpolation keeps exactly, wherever the tiles lie.
    shifts_mm = np.cumsum([first_mm, *steps]).tolist()[:: -1 if is_reversed else 1]
    tiles = [seen(shift, lambda u: 2 + slope * u) for shift in shifts_mm]
    wide, is_estimated = stitch(tiles, [nothing(t) for t in tiles], shifts_mm, GEOMETRY)
    geometry = wide_geometry(GEOMETRY, shifts_mm)
    assert wide.shape == (2, 4, 3, geometry.cols)
    np.testing.assert_allclose(wide[1, 2, 0], 0.5 * (2 + slope * columns_mm(geometry)), atol=2e-4)
    assert not is_estimated.any()
    width_mm = (geometry.cols - 1) * geometry.pitch_mm
    spare_mm = np.ptp(shifts_mm) + 19 * 0.2 - width_mm
    assert -WHOLE_PX * 0.2 - 1e-9 <= spare_mm < 0.2 + 1e-9, "whole columns, and not one fewer than there are"


def test_whole_columns_are_taken_as_they_are() -> None:
    rng = np.random.default_rng(1)
    wide = rng.normal(size=(2, 4, 3, 50)).astype(np.float32)
    tiles = [wide[..., first : first + 20] for first in (0, 15, 30)]
    shifts_mm = [0.0, 3.0, 6.0]
    joined, _ = stitch(tiles, [nothing(t) for t in tiles], shifts_mm, GEOMETRY)
    np.testing.assert_allclose(joined, wide, rtol=0, atol=1e-6)


def test_overlap_lowers_the_noise_and_leaves_no_step() -> None:
    rng = np.random.default_rng(2)
    left, right = (rng.normal(size=(1, 4000, 3, 20)).astype(np.float32) for _ in range(2))
    joined, _ = stitch([left, right], [nothing(left), nothing(right)], [0.0, 2.0], GEOMETRY)
    spread = joined.std(axis=(0, 1, 2))
    assert spread[:10] == pytest.approx(1, abs=0.05)
    assert spread[14:16] == pytest.approx(2**-0.5, abs=0.03)
    # A tile that reads high by a little must not end in a step of all of it.
    stepped, _ = stitch([left * 0, right * 0 + 1], [nothing(left), nothing(right)], [0.0, 2.0], GEOMETRY)
    assert np.diff(stepped[0, 0, 0]).max() < 0.15


def test_what_one_tile_measured_goes_before_what_another_estimated() -> None:
    left, right = np.zeros((1, 1, 3, 20), np.float32), np.ones((1, 1, 3, 20), np.float32)
    guessed = nothing(right)
    guessed[..., 2] = guessed[..., 15] = True
    joined, is_estimated = stitch([left, right], [nothing(left), guessed], [0.0, 2.0], GEOMETRY)
    assert np.abs(joined[..., 12]).max() < 1e-4
    assert not is_estimated[..., 12].any()
    assert (joined[..., 25] == 1).all()
    assert is_estimated[..., 25].all(), "nobody else saw this one"


def test_a_gap_between_tiles_is_refused() -> None:
    tile = np.zeros((1, 1, 3, 20), np.float32)
    with pytest.raises(BadFile, match="1 columns between them that none has seen"):
        stitch([tile, tile], [nothing(tile)] * 2, [0.0, 4.2], GEOMETRY)


# A scan of tiles, as a whole

CAMERA = Geometry(source_to_detector_mm=250.0, source_to_object_mm=200.0, pitch_mm=0.22, rows=6, cols=32)
RADIUS_MM, ATTENUATION_PER_MM, N_VIEWS = 5.0, 0.05, 90
SHIFTS_MM = (-4.4, 0.0, 4.4)
PLAN = Plan(
    geometry=CAMERA,
    detector=DetectorPlan(thresholds_kev=(18.0, 33.0, 50.0, 75.0)),
    scan=ScanPlan(n_views=N_VIEWS, frames_per_view=1),
)


def counts_at(shift_mm: float, has_sample: bool) -> np.ndarray:
    """Counts behind an upright cylinder on the axis that is wider than the camera, by exact chords in mid-plane."""
    u_mm = columns_mm(CAMERA) + shift_mm
    miss_mm = 200 * np.abs(u_mm) / np.hypot(250, u_mm)
    chord_mm = 2 * np.sqrt(np.maximum(RADIUS_MM**2 - miss_mm**2, 0))
    bins = 800 * np.exp(-ATTENUATION_PER_MM * chord_mm * has_sample) * (1 + 0.02 * shift_mm)  # each tile its own light
    bins = np.broadcast_to(bins, (4, CAMERA.rows, CAMERA.cols))
    return np.cumsum(np.round(bins)[::-1], axis=0)[::-1].astype(np.uint16)


def write_tiles(path: Path, lost_view: int | None = None, shifts_mm: tuple[float, ...] = SHIFTS_MM) -> Path:
    """Each tile with flats of its own, all views of it in turn."""
    sequence = 0
    with ScanWriter(path, readout_of(PLAN), plan=PLAN) as writer:
        for shift_mm in shifts_mm:
            views = [(ImageKey.PROJECTION, 2 * np.pi * view / N_VIEWS) for view in range(N_VIEWS)]
            for key, angle_rad in [(ImageKey.FLAT, 0.0)] * 2 + views:
                pose = Pose(angle_rad=angle_rad, shift_mm=shift_mm)
                if lost_view is not None and shift_mm == 0 and angle_rad == 2 * np.pi * lost_view / N_VIEWS:
                    writer.lost(Lost(run_id=1, first_sequence=sequence, n_frames=1, reason="dropped"), [pose])
                else:
                    values = counts_at(shift_mm, key is ImageKey.PROJECTION)
                    writer.write(
                        Frame(
                            counts=values, thresholds=PLAN.detector.thresholds, sequence=sequence,
                            timestamp_ns=sequence, exposure_ns=1_000_000_000, run_id=1,
                        ),
                        key,
                        pose,
                    )  # fmt: skip
                sequence += 1
        writer.finish()
    return path


def run(work):
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


@pytest.mark.parametrize("lost_view", [None, 7])
def test_an_object_wider_than_the_camera_is_reconstructed_whole(tmp_path: Path, lost_view: int | None) -> None:
    volume = run(reconstruct_scan(write_tiles(tmp_path / "wide.h5", lost_view)))
    z, y, x = volume.grid.axes_mm()
    radius_mm = np.hypot(y[:, None], x)
    assert radius_mm[0].max() > RADIUS_MM, "the field is wider than the object"
    assert x.max() > 1.2 * CAMERA.cols * CAMERA.pitch_mm / 2 * 200 / 250, "and than the camera's own"
    middle = volume.values[0, len(z) // 2]
    assert middle[radius_mm < 4.5].mean() == pytest.approx(ATTENUATION_PER_MM, rel=0.01)
    assert np.abs(middle[(radius_mm < 4.5) & (radius_mm > 0.5)] - ATTENUATION_PER_MM).max() < 0.1 * ATTENUATION_PER_MM
    outside = middle[(radius_mm > 5.5) & (radius_mm < x.max())]
    assert outside.mean() == pytest.approx(0, abs=0.02 * ATTENUATION_PER_MM)
    assert "3 tiles joined" in volume.provenance.steps
    n_views = N_VIEWS - (lost_view is not None)
    assert volume.provenance.steps[0].startswith(f"{n_views} views")


def test_alignment_asks_for_one_tile(tmp_path: Path) -> None:
    with pytest.raises(WrongUsage, match="3 tiles; allowed: a scan of one tile"):
        run(align_scan_file(write_tiles(tmp_path / "wide.h5")))


def test_one_pass_of_several_is_reconstructed_with_its_own_thresholds(tmp_path: Path) -> None:
    passes_kev = ((18.0, 33.0, 50.0, 75.0), (20.0, 40.0, 60.0, 80.0))
    plan = msgspec.structs.replace(PLAN, scan=ScanPlan(n_views=N_VIEWS, frames_per_view=1, passes_kev=passes_kev))
    path = tmp_path / "passes.h5"
    with ScanWriter(path, readout_of(plan), plan=plan) as writer:
        for number, exponent in enumerate((1, 2)):  # the second pass sees twice the attenuation
            for view in range(-2, N_VIEWS):
                open_beam = counts_at(0.0, False)
                counts = (open_beam * (counts_at(0.0, view >= 0) / open_beam) ** exponent).astype(np.uint16)
                frame = Frame(
                    counts=counts, thresholds=(1, 3, 5, 7), sequence=view + 2, timestamp_ns=0,
                    exposure_ns=1_000_000_000, run_id=1 + number,
                )  # fmt: skip
                pose = Pose(angle_rad=2 * np.pi * max(view, 0) / N_VIEWS)
                writer.write(frame, ImageKey.FLAT if view < 0 else ImageKey.PROJECTION, pose, number)
        writer.finish()
    with pytest.raises(WrongUsage, match=r"allowed for .* 1 to 2"):
        run(reconstruct_scan(path, Recipe(pass_number=3)))
    first, second = (run(reconstruct_scan(path, Recipe(pass_number=n))) for n in (1, 2))
    assert (first.thresholds_kev, second.thresholds_kev) == passes_kev
    assert second.channels[0] == "20-40 keV"
    both = run(reconstruct_scan(path))
    assert both.channels == first.channels + second.channels
    np.testing.assert_array_equal(both.values, np.concatenate([first.values, second.values]))
    z, y, x = first.grid.axes_mm()
    inside = (slice(None), len(z) // 2, np.hypot(y[:, None], x) < 0.6 * x.max())
    np.testing.assert_allclose(second.values[inside].mean(1), 2 * first.values[inside].mean(1), rtol=0.03)
