"""Scans that are broken off: what of them is taken over, what is taken again, and that the end is the same."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from acquisition.plan import ScanPlan
from acquisition.resume import first_frames, step_of
from acquisition.run_log import RunLog
from acquisition.runner import run_scan
from acquisition.scan import ScanStatus
from acquisition.scan_file import Scan, read_scan
from acquisition.scan_layout import partial_path
from acquisition.steps import expand
from calibration.store import Calibration
from firmware_iface.errors import DataLost, WrongUsage
from tests.rough_calibration import rough_calibration
from tests.scan_bench import N_FRAMES, PLAN, Bench, run


@pytest.fixture
def calibration() -> Calibration:
    return rough_calibration(PLAN, chip_id="W1")


@pytest.fixture
def undisturbed(tmp_path: Path, calibration: Calibration) -> Scan:
    run(Bench(by_pose=True), calibration, tmp_path / "whole.h5")
    return read_scan(tmp_path / "whole.h5")


def break_off(path: Path, calibration: Calibration, frame: int) -> None:
    with pytest.raises(DataLost, match="the device was lost") as caught:
        run(Bench(unplug_at=frozenset({frame}), by_pose=True), calibration, path)
    assert "--resume" in caught.value.hint


def assert_same(scan: Scan, undisturbed: Scan) -> None:
    assert scan.status is ScanStatus.COMPLETE
    np.testing.assert_array_equal(scan.counts(), undisturbed.counts())
    np.testing.assert_array_equal(scan.image_key, undisturbed.image_key)
    np.testing.assert_array_equal(scan.angles_rad, undisturbed.angles_rad)
    np.testing.assert_array_equal(scan.sequence, undisturbed.sequence)


@pytest.mark.parametrize("broken_at", [2, 4, 6, 11])
def test_a_resumed_scan_is_the_undisturbed_one(
    tmp_path: Path, calibration: Calibration, undisturbed: Scan, broken_at: int
) -> None:
    path, bench = tmp_path / "scan.h5", Bench(by_pose=True)
    break_off(path, calibration, broken_at)
    n_there = read_scan(partial_path(path), allow_partial=True).shape[0]
    assert broken_at - 1 <= n_there <= broken_at
    first = first_frames(expand(PLAN))
    n_kept = first[step_of(first, n_there)]
    summary = run(bench, calibration, path, resume=True)
    assert (summary.n_resumed, summary.n_repeated) == (n_kept, n_there - n_kept)
    assert bench.n_done == N_FRAMES - n_kept, "frames of whole steps are not taken again"
    scan = read_scan(path)
    assert_same(scan, undisturbed)
    assert not partial_path(path).exists()
    told = [event.text for event in scan.events if event.kind == "repeated"]
    again = f"frames {n_kept} to {n_there - 1} are taken again: their step was broken off"
    assert told == ([again] if n_kept != n_there else [])


def test_a_resumed_scan_is_broken_and_resumed_again(
    tmp_path: Path, calibration: Calibration, undisturbed: Scan
) -> None:
    path = tmp_path / "scan.h5"
    break_off(path, calibration, 3)
    with pytest.raises(DataLost):
        run(Bench(unplug_at=frozenset({4}), by_pose=True), calibration, path, resume=True)
    run(Bench(by_pose=True), calibration, path, resume=True)
    scan = read_scan(path)
    assert_same(scan, undisturbed)
    assert [event.kind for event in scan.events].count("resumed") == 2


def test_a_scan_that_lacks_nothing_but_its_name_needs_no_exposure(
    tmp_path: Path, calibration: Calibration, undisturbed: Scan
) -> None:
    path, bench = tmp_path / "scan.h5", Bench(by_pose=True)
    run(Bench(by_pose=True), calibration, path)
    path.rename(partial_path(path))  # killed between closing and renaming
    run(bench, calibration, path, resume=True)
    assert bench.n_done == 0
    assert "BEAM ON" not in bench.lines
    assert_same(read_scan(path), undisturbed)


def test_lost_frames_of_whole_steps_stay_lost(tmp_path: Path, calibration: Calibration) -> None:
    path = tmp_path / "scan.h5"
    with pytest.raises(DataLost):
        run(Bench(unplug_at=frozenset({6}), lose=frozenset({2})), calibration, path)
    summary = run(Bench(), calibration, path, resume=True)
    assert (summary.n_lost, summary.status) == (1, ScanStatus.DEGRADED)


def test_nothing_to_resume_begins_at_the_beginning(tmp_path: Path, calibration: Calibration) -> None:
    summary = run(Bench(), calibration, tmp_path / "scan.h5", resume=True)
    assert (summary.n_frames, summary.n_resumed) == (N_FRAMES, 0)


def test_a_whole_scan_has_nothing_to_resume(tmp_path: Path, calibration: Calibration) -> None:
    path, bench = tmp_path / "scan.h5", Bench()
    run(Bench(), calibration, path)
    before = path.read_bytes()
    work = run_scan(bench.instrument, PLAN, calibration, path, resume=True)
    with pytest.raises(StopIteration) as end:
        next(work)
    assert (end.value.value.n_resumed, end.value.value.status) == (N_FRAMES, ScanStatus.COMPLETE)
    assert path.read_bytes() == before
    assert bench.lines == []


def test_the_rest_of_a_scan_is_in_the_way_unless_it_is_resumed(tmp_path: Path, calibration: Calibration) -> None:
    path = tmp_path / "scan.h5"
    break_off(path, calibration, 4)
    before = partial_path(path).read_bytes()
    with pytest.raises(WrongUsage, match="broken off") as caught:
        run(Bench(), calibration, path)
    assert "--resume" in caught.value.hint
    assert partial_path(path).read_bytes() == before


@pytest.mark.parametrize("other", ["plan", "calibration"])
def test_another_plan_or_calibration_is_refused_with_the_difference(
    tmp_path: Path, calibration: Calibration, other: str
) -> None:
    path, bench = tmp_path / "scan.h5", Bench()
    break_off(path, calibration, 4)
    before = partial_path(path).read_bytes()
    plan, now = PLAN, calibration
    if other == "plan":
        plan = msgspec.structs.replace(
            PLAN, scan=ScanPlan(n_views=7, frames_per_view=1, flats_every_n_views=3, n_flats=2)
        )
        words = r"scan\.n_views 6, now 7"
    else:
        now = dataclasses.replace(calibration, bias_v=499.8)
        words = f"calibration {calibration.identity}, now {now.identity}"
    with pytest.raises(WrongUsage, match=words):
        run(bench, now, path, plan, resume=True)
    assert partial_path(path).read_bytes() == before
    assert not any(line.startswith(("ROT", "BEAM ON")) for line in bench.lines)


def test_what_cannot_be_read_is_kept_and_the_scan_begins_anew(tmp_path: Path, calibration: Calibration) -> None:
    path = tmp_path / "scan.h5"
    for n in range(2):
        partial_path(path).write_bytes(b"not HDF5 at all" * (n + 1))
        summary = run(Bench(), calibration, path, resume=True)
        assert summary.n_resumed == 0
        assert any("kept as" in note for note in summary.notes)
        path.unlink()
    kept = sorted(file.name for file in tmp_path.glob("scan.unreadable*"))
    assert kept == ["scan.unreadable-1.h5", "scan.unreadable.h5"]


def test_the_log_tells_all_of_it(tmp_path: Path, calibration: Calibration) -> None:
    path = tmp_path / "scan.h5"
    break_off(path, calibration, 5)
    run(Bench(lose=frozenset({1})), calibration, path, resume=True, is_verbose=True)
    records = [json.loads(line) for line in (tmp_path / "scan.jsonl").read_text().splitlines()]
    starts = [record for record in records if record["kind"] == "start"]
    assert len(starts) == 2
    assert starts[0]["calibration"] == calibration.identity
    assert "n_views = 6" in starts[0]["plan"]
    assert {"software", "host", "python", "system"} <= set(starts[0])
    kinds = [record["kind"] for record in records]
    assert {"interrupted", "resumed", "lost", "flushed", "closed", "end"} <= set(kinds)
    assert records[-1]["n_frames"] == N_FRAMES
    assert records[-1]["n_lost"] == 1
    text = (tmp_path / "scan.log").read_text()
    assert "the device is gone from the bus" in text
    assert "WARNING  lost" in text


def test_a_new_scan_of_the_same_name_has_a_log_of_its_own(tmp_path: Path, calibration: Calibration) -> None:
    path = tmp_path / "scan.h5"
    run(Bench(lose=frozenset({1})), calibration, path)
    with pytest.raises(WrongUsage, match="exists already"):
        run(Bench(), calibration, path)
    assert "lost" in (tmp_path / "scan.log").read_text(), "a run that was refused changes nothing"
    run(Bench(), calibration, path, overwrite=True)
    assert "WARNING" not in (tmp_path / "scan.log").read_text()


def test_two_runs_do_not_write_the_same_scan(tmp_path: Path, calibration: Calibration) -> None:
    log = RunLog(tmp_path / "scan.h5")
    with pytest.raises(WrongUsage, match="another run writes this scan now"):
        run(Bench(), calibration, tmp_path / "scan.h5", overwrite=True)
    log.close()
    run(Bench(), calibration, tmp_path / "scan.h5")


def test_a_log_that_cannot_be_written_is_not_in_the_way(tmp_path: Path, calibration: Calibration) -> None:
    (tmp_path / "scan.log").mkdir()
    (tmp_path / "scan.jsonl").mkdir()
    assert run(Bench(), calibration, tmp_path / "scan.h5").status is ScanStatus.COMPLETE
