"""What a scan shows while it runs: rows, a slice, the axis; found again from frames of discs whose places are known."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from acquisition.plan import Plan
from acquisition.scan_plan import ContinuousPlan, FramesPlan, HelicalPlan, ScanPlan
from acquisition.steps import Step, StepKind, expand
from calibration.flat_field import FlatField
from firmware_iface.frame import Frame, Lost
from gui.scan.axis import rough_axis
from gui.scan.preview import Previewer, preview
from gui.scan.watch import MOST_VIEWS, Watch
from tests.gui.disc_bench import DISCS, DiscBench, chords
from tests.rough_calibration import rough_calibration
from tests.scan_bench import run

PLAN = Plan(scan=ScanPlan(n_views=90, frames_per_view=1, flats_every_n_views=90, n_flats=4))
GEOMETRY = PLAN.geometry
OPEN_COUNTS = 3000.0


def frames(plan: Plan, off_mm: float = 0.0) -> Iterator[tuple[Step, int, Frame]]:
    """Yield what a detector that is off by so much would count, step by step."""
    random, truth = np.random.default_rng(3), replace(GEOMETRY, offset_u_mm=off_mm)
    sequence = 0
    for step in expand(plan):
        for place in range(step.n_frames):
            seen = np.zeros(128)
            if step.kind is StepKind.PROJECTION:
                seen = chords(truth, step.pose_of(place).angle_rad)
            counts = random.poisson(OPEN_COUNTS * np.exp(-seen), (4, 128, 128)).astype(np.uint16)
            yield step, place, frame_of(counts, sequence)
            sequence += 1


def frame_of(counts: NDArray[np.uint16], sequence: int = 0) -> Frame:
    return Frame(
        counts=counts, thresholds=(1, 3, 5, 7), sequence=sequence, timestamp_ns=sequence, exposure_ns=10**9, run_id=1
    )


def watched(plan: Plan = PLAN, n_frames: int | None = None, off_mm: float = 0.0) -> Watch:
    watch = Watch(plan)
    for number, (step, place, frame) in enumerate(frames(plan, off_mm)):
        if number == n_frames:
            break
        watch.put(step, place, frame)
    return watch


def test_rows_are_the_chords_through_the_sample() -> None:
    rows = watched().rows()
    assert rows is not None
    assert rows.n_flats == 8
    truth = np.array([chords(GEOMETRY, angle_rad) for angle_rad in rows.angles_rad])
    # Five rows of 3000 counts or less, and flats: noise of about a percent.
    assert np.abs(rows.line_integrals - truth).mean() < 0.015
    assert not rows.is_lost.any()


def test_a_scan_without_flats_is_divided_by_the_calibration_s_or_says_why_not() -> None:
    scan = msgspec.structs.replace(PLAN.scan, n_flats=0)
    plan = msgspec.structs.replace(PLAN, scan=scan)
    flat = FlatField(
        rates_per_s=np.full((4, 128, 128), OPEN_COUNTS / plan.detector.exposure_s, np.float32),
        thresholds=plan.detector.thresholds, thresholds_kev=plan.detector.thresholds_kev, n_frames=50, exposure_s=10.0,
        tube_kvp=plan.source.kvp, current_ma=plan.source.current_ma,
    )  # fmt: skip
    bare = rough_calibration(plan)
    seen = {}
    for name, calibration in (("bare", bare), ("kept", replace(bare, flat_field=flat))):
        watch = Watch(plan, calibration=calibration)
        for step, place, frame in frames(plan):
            watch.put(step, place, frame)
        seen[name] = preview(watch)
    assert seen["bare"].slice_per_mm is None
    assert "the calibration's flat field does not fit" in seen["bare"].told
    rows = seen["kept"].rows
    assert rows is not None
    truth = np.array([chords(GEOMETRY, angle_rad) for angle_rad in rows.angles_rad])
    assert np.abs(rows.line_integrals - truth).mean() < 0.015
    assert seen["kept"].slice_per_mm is not None


def test_frames_of_one_view_are_averaged() -> None:
    plan = msgspec.structs.replace(PLAN, scan=ScanPlan(n_views=6, frames_per_view=3, flats_every_n_views=6, n_flats=1))
    watch = Watch(plan)
    values = iter((100, 10, 20, 30))
    for step in expand(plan)[:2]:
        for place in range(step.n_frames):
            watch.put(step, place, frame_of(np.full((4, 128, 128), next(values), np.uint16)))
    rows = watch.rows()
    assert rows is not None
    assert rows.line_integrals.shape == (1, 128)
    np.testing.assert_allclose(rows.line_integrals, -np.log(20 / 100), rtol=1e-5)


def test_lost_views_are_marked_and_counted() -> None:
    watch = Watch(PLAN)
    for step, place, frame in frames(PLAN):
        is_gone = step.kind is StepKind.PROJECTION and 10 <= watch.pace().n_frames < 13
        watch.put(step, place, Lost(run_id=1, first_sequence=0, n_frames=1, reason="CRC") if is_gone else frame)
    rows = watch.rows()
    assert rows is not None
    assert np.flatnonzero(rows.is_lost).tolist() == [6, 7, 8]
    assert np.isnan(rows.line_integrals[6]).all()
    assert watch.pace().n_lost == 3
    assert len(watch.lost()) == 3
    assert preview(watch).slice_per_mm is not None


def test_a_fine_scan_keeps_no_more_views_than_can_be_seen() -> None:
    plan = msgspec.structs.replace(PLAN, scan=ContinuousPlan(n_views=5 * MOST_VIEWS, flats_every_n_views=10**5))
    watch, (flat, sweep) = Watch(plan), expand(plan)[:2]
    counts = np.full((4, 128, 128), 100, np.uint16)
    watch.put(flat, 0, frame_of(counts))
    for place in range(0, 200):
        watch.put(sweep, place, frame_of(counts))
    rows = watch.rows()
    assert rows is not None
    assert len(rows.angles_rad) in (40, 41)


def test_too_few_views_are_told_and_a_slice_comes_early_but_says_what_it_lacks() -> None:
    assert preview(watched(n_frames=4)).told == "No view yet: flats come first."
    few = preview(watched(n_frames=4 + 4))
    assert few.slice_per_mm is None
    assert "Not enough views yet: 16° of the 183°" in few.told
    half = preview(watched(n_frames=4 + 20))
    assert half.slice_per_mm is not None
    assert not half.is_whole
    assert "NOT ENOUGH VIEWS" in half.told


def truth_picture(n: int, voxel_mm: float) -> NDArray[np.float64]:
    along_mm = (np.arange(n) - (n - 1) / 2) * voxel_mm
    x, y = np.meshgrid(along_mm, along_mm)
    return sum(per_mm * (np.hypot(x - x_mm, y - y_mm) < radius) for x_mm, y_mm, radius, per_mm in DISCS)  # type: ignore[return-value]


@pytest.mark.parametrize("n_views", [48, 90], ids=["short scan", "circle"])
def test_the_slice_is_the_sample(n_views: int) -> None:
    found = preview(watched(n_frames=4 + n_views))
    assert found.is_whole
    assert found.slice_per_mm is not None
    truth = truth_picture(128, found.voxel_mm)
    assert np.corrcoef(found.slice_per_mm.ravel(), truth.ravel())[0, 1] > 0.95
    middle = found.slice_per_mm[58:70, 58:70]
    assert middle.mean() == pytest.approx(0.03, rel=0.1)


@pytest.mark.parametrize("off_mm", [0.0, 0.3, -0.2])
def test_the_axis_is_found_as_soon_as_half_a_circle_is_there_in_pixels_and_mm(off_mm: float) -> None:
    early = preview(watched(n_frames=4 + 20, off_mm=off_mm))
    assert early.axis is None
    assert "as soon as half a circle" in early.axis_told
    found = preview(watched(n_frames=4 + 48, off_mm=off_mm))
    assert found.axis is not None
    assert found.axis.off_mm == pytest.approx(off_mm, abs=0.1 * 0.11)
    assert found.axis.off_px == pytest.approx(off_mm / 0.11, abs=0.1)
    assert found.axis.is_good == (off_mm == 0.0)
    assert ("good" in found.axis_told) == (off_mm == 0.0)
    if off_mm:
        assert f"geometry.offset_u_mm = {found.axis.offset_u_mm:.3f}" in found.axis_told
        assert found.slice_per_mm is not None
        truth = truth_picture(128, found.voxel_mm)
        assert np.corrcoef(found.slice_per_mm.ravel(), truth.ravel())[0, 1] > 0.95, "it uses the axis as found"


def test_what_has_no_slice_says_so() -> None:
    watch = Watch(msgspec.structs.replace(PLAN, scan=FramesPlan()))
    assert watch.why_no_slice()
    assert preview(watch).told == watch.why_no_slice()


HELIX = msgspec.structs.replace(
    PLAN, scan=HelicalPlan(length_mm=12.0, pitch_mm=8.0, centre_mm=3.0, views_per_turn=90, n_flats=2)
)


def test_a_slice_of_a_helix_is_of_its_height_and_is_followed_as_the_sample_climbs() -> None:
    watch, followed = Watch(HELIX), []
    row_mm = (np.arange(128) - 63.5) * GEOMETRY.pitch_mm / GEOMETRY.magnification
    for step in expand(HELIX):
        for place in range(step.n_frames):
            seen = np.zeros(128)
            if step.kind is StepKind.PROJECTION:
                seen = 0.8 + 0.05 * (row_mm - step.pose_of(place).lift_mm + 3.0)  # by the height in the sample
            counts = np.repeat(np.round(30_000 * np.exp(-seen))[:, None], 128, axis=1)
            watch.put(step, place, frame_of(np.stack(4 * [counts]).astype(np.uint16)))
            now = watch.followed()
            followed += [now.height_mm] if now is not None and now.height_mm not in followed else []
    heights_mm = [place.height_mm for place in watch.places]
    assert len(followed) >= 4
    assert followed == sorted(heights_mm, reverse=True)[: len(followed)]  # pyright: ignore[reportArgumentType]
    for place in watch.places:
        rows = watch.rows(place=place)
        assert rows is not None
        assert place.height_mm is not None
        np.testing.assert_allclose(rows.line_integrals, 0.8 + 0.05 * place.height_mm, atol=0.005)
        assert np.ptp(rows.angles_rad) > np.pi, "half a circle and the fan see it"


def test_a_helix_shows_the_sample_before_it_is_over() -> None:
    steps = list(frames(HELIX))
    found = preview(watched(HELIX, n_frames=2 * len(steps) // 3))
    assert found.is_whole
    assert found.slice_per_mm is not None
    assert found.told.startswith(("Middle", "+", "-"))
    truth = truth_picture(128, found.voxel_mm)
    assert np.corrcoef(found.slice_per_mm.ravel(), truth.ravel())[0, 1] > 0.95


def test_places_of_the_camera_are_joined_once_they_have_seen_the_same_views() -> None:
    scan = ScanPlan(n_views=90, frames_per_view=1, flats_every_n_views=90, n_flats=4, shifts_mm=(-3.3, 3.3))
    plan, watch = msgspec.structs.replace(PLAN, scan=scan), Watch(msgspec.structs.replace(PLAN, scan=scan))
    random, seen_first = np.random.default_rng(4), None
    for step in expand(plan):
        for place in range(step.n_frames):
            pose, at = step.pose_of(place), np.zeros(128)
            if step.kind is StepKind.PROJECTION:
                at = chords(replace(GEOMETRY, offset_u_mm=pose.shift_mm), pose.angle_rad)
            counts = random.poisson(OPEN_COUNTS * np.exp(-at), (4, 128, 128)).astype(np.uint16)
            watch.put(step, place, frame_of(counts))
        seen_first = seen_first or watch.followed()
    assert seen_first is not None
    assert seen_first.shifts_mm == (-3.3,)
    joined = watch.followed()
    assert joined is not None
    assert joined.shifts_mm == (-3.3, 3.3)
    assert [watch.told_of(each) for each in watch.places] == [
        "all camera places joined", "camera at -3.3 mm", "camera at +3.3 mm",
    ]  # fmt: skip
    found = preview(watch)
    assert found.rows is not None
    assert found.rows.line_integrals.shape == (90, 128 + 60)
    assert found.slice_per_mm is not None
    truth = truth_picture(len(found.slice_per_mm), found.voxel_mm)
    assert np.corrcoef(found.slice_per_mm.ravel(), truth.ravel())[0, 1] > 0.95
    assert found.axis is not None
    assert found.axis.is_good


def test_each_pass_is_divided_by_its_own_flats_and_can_be_looked_at() -> None:
    passes_kev = ((18.0, 33.0, 50.0, 75.0), (25.0, 40.0, 60.0, 90.0))
    scan = ScanPlan(n_views=6, frames_per_view=1, flats_every_n_views=6, n_flats=1, passes_kev=passes_kev)
    plan = msgspec.structs.replace(PLAN, scan=scan)
    watch = Watch(plan)
    for step in expand(plan):
        open_counts = (1000, 200)[step.pass_index]
        counts = open_counts if step.kind is StepKind.FLAT else open_counts / (2, 5)[step.pass_index]
        for place in range(step.n_frames):
            watch.put(step, place, frame_of(np.full((4, 128, 128), counts, np.uint16)))
    assert [watch.told_of(place) for place in watch.places] == ["pass 1 of 2", "pass 2 of 2"]
    for place, ratio in zip(watch.places, (2, 5), strict=True):
        rows = watch.rows(place=place)
        assert rows is not None
        np.testing.assert_allclose(rows.line_integrals, np.log(ratio), rtol=1e-5)
    assert watch.followed() == watch.places[1]


@pytest.mark.parametrize("n_views", [20, 30, 40], ids=["80 degrees", "120 degrees", "160 degrees"])
@pytest.mark.parametrize("off_mm", [0.0, 0.7, -0.7])
def test_the_axis_is_told_roughly_long_before_half_a_circle(n_views: int, off_mm: float) -> None:
    rows = watched(n_frames=4 + n_views, off_mm=off_mm).rows()
    assert rows is not None
    found = rough_axis(rows, GEOMETRY)
    assert found is not None
    assert abs(found.off_px - off_mm / 0.11) < max(3 * found.error_px, 0.5)
    assert found.error_px < 2.5
    assert not found.is_suspect or off_mm
    if n_views > 20 and off_mm:
        assert found.is_suspect
        assert "OFF" in found.told


def test_a_sample_that_reaches_beyond_the_rows_tells_no_rough_axis() -> None:
    watch = Watch(PLAN)
    for step, place, _ in list(frames(PLAN))[: 4 + 30]:
        counts = OPEN_COUNTS if step.kind is StepKind.FLAT else OPEN_COUNTS / 3
        watch.put(step, place, frame_of(np.full((4, 128, 128), counts, np.uint16)))
    rows = watch.rows()
    assert rows is not None
    assert rough_axis(rows, GEOMETRY) is None


def test_putting_a_frame_takes_no_time_that_a_scan_would_feel() -> None:
    watch = Watch(PLAN)
    items = list(frames(PLAN))
    began_s = time.thread_time()
    for step, place, frame in items:
        watch.put(step, place, frame)
    assert (time.thread_time() - began_s) / len(items) < 0.8e-3, "a chip gives up to 1200 frames a second"


def test_the_preview_of_a_run_agrees_with_its_reconstruction(tmp_path: Path) -> None:
    from reconstruction.pipeline import reconstruct_scan

    watch = Watch(PLAN)
    previewer = Previewer(watch, every_s=0.05, threshold=3)
    bench = DiscBench(GEOMETRY, open_counts=OPEN_COUNTS)
    calibration = rough_calibration(PLAN, chip_id="W1")
    run(bench, calibration, tmp_path / "scan.h5", PLAN, on_item=watch.put)
    end_s = time.monotonic() + 60
    while previewer.newest.version != watch.version:
        assert time.monotonic() < end_s
        time.sleep(0.01)
    quick, quick_mm = previewer.newest.slice_per_mm, previewer.newest.voxel_mm
    assert quick is not None
    work = reconstruct_scan(tmp_path / "scan.h5")
    while True:
        try:
            next(work)
        except StopIteration as end:
            volume = end.value
            break
    final = volume.values[-1, volume.values.shape[1] // 2]
    _, y_mm, x_mm = volume.grid.axes_mm()
    places = [(along_mm / quick_mm + (128 - 1) / 2) for along_mm in np.meshgrid(y_mm, x_mm, indexing="ij")]
    there = ndimage.map_coordinates(quick, places, order=1)
    assert np.corrcoef(there.ravel(), final.ravel())[0, 1] > 0.95
