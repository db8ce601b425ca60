"""What a run does about a device that leaves, a stage that refuses, a full disk, a viewer that sleeps, a Ctrl-C."""

from __future__ import annotations

import dataclasses
import resource
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import mpxct
from acquisition import disk_watch, runner
from acquisition.disk_watch import FEWEST_FRAMES, RESERVE_BYTES, DiskWatch
from acquisition.plan import Plan, ScanPlan
from acquisition.runner import Endurance, RunHealth, run_scan
from acquisition.scan import ScanStatus
from acquisition.scan_file import read_scan
from acquisition.scan_layout import partial_path
from calibration.store import Calibration
from firmware_iface.errors import CalibrationMissing, DataLost, Disconnected, MpxctError, Stopped
from firmware_iface.frame import Frame
from firmware_iface.states import Action, State, step
from tests.rough_calibration import rough_calibration
from tests.scan_bench import N_FRAMES, PLAN, Bench, run

QUICK = Endurance(reconnect_s=5.0, retry_wait_s=0.01)


@pytest.fixture
def calibration() -> Calibration:
    return rough_calibration(PLAN, chip_id="W1")


@pytest.fixture
def undisturbed(tmp_path: Path, calibration: Calibration) -> np.ndarray:
    run(Bench(by_pose=True), calibration, tmp_path / "whole.h5")
    return read_scan(tmp_path / "whole.h5").counts()


def events(path: Path, kind: str) -> list[str]:
    return [event.text for event in read_scan(path, allow_partial=True).events if event.kind == kind]


def take(work: Iterator[Any], n_frames: int) -> None:
    """Go on until so many frames are there, or the work ends."""
    for progress in work:
        if progress.stage == "scan" and progress.done == n_frames:
            return


# The device leaves


def test_a_device_that_comes_back_goes_on_where_it_broke(
    tmp_path: Path, calibration: Calibration, undisturbed: np.ndarray
) -> None:
    bench, path = Bench(unplug_at=frozenset({1, 4, 8}), absent=2, by_pose=True), tmp_path / "scan.h5"
    summary = run(bench, calibration, path, instrument=bench.replugged, endurance=QUICK)
    assert summary.status is ScanStatus.COMPLETE
    assert 1 <= summary.n_repeated <= 3, "of each step in which it left, what was there"
    assert bench.n_opens == 2 + 3
    np.testing.assert_array_equal(read_scan(path).counts(), undisturbed)
    assert len(events(path, "reconnected")) == 3
    assert len(events(path, "broken")) == 3
    assert bench.lines[-1] == "BEAM OFF"


def test_a_device_that_stays_away_is_given_up(tmp_path: Path, calibration: Calibration) -> None:
    bench, path = Bench(unplug_at=frozenset({4}), absent=1000), tmp_path / "scan.h5"
    began_s = time.monotonic()
    with pytest.raises(DataLost, match="3 of 12 frames") as caught:
        run(bench, calibration, path, instrument=bench.replugged, endurance=Endurance(reconnect_s=0.6))
    assert caught.value.exit_code == 3
    assert "--resume" in caught.value.hint
    assert time.monotonic() - began_s > 0.6
    n_there = read_scan(partial_path(path), allow_partial=True).shape[0]
    assert n_there == 3, "of the fourth, the only one of its step, nobody can tell any more whether the beam held"


def test_a_device_that_leaves_in_the_same_step_again_and_again_is_given_up(
    tmp_path: Path, calibration: Calibration
) -> None:
    bench = Bench(unplug_at=frozenset({4}), is_loose=True)
    with pytest.raises(DataLost):
        run(bench, calibration, tmp_path / "scan.h5", instrument=bench.replugged, endurance=QUICK)
    assert bench.n_opens == runner.MAX_BREAKS


def test_data_that_do_not_come_are_missed(tmp_path: Path, calibration: Calibration) -> None:
    bench, path = Bench(), tmp_path / "scan.h5"
    bench.hangs_at = 5
    began_s = time.monotonic()
    plan_s = PLAN.detector.exposure_s
    with pytest.raises(DataLost, match=r"no data: a frame of 1 s was to come within 1\.2 s"):
        run(bench, calibration, path, endurance=Endurance(no_data_s=0.2))
    assert plan_s < time.monotonic() - began_s < plan_s + 30
    assert read_scan(partial_path(path), allow_partial=True).status is ScanStatus.INTERRUPTED


class Overheard(Bench):
    """A board whose leaving another thread has seen first: whoever takes frames hears a refusal only."""

    state = State.IDLE

    def _be_there(self) -> None:
        try:
            super()._be_there()
        except Disconnected:
            self.state = State.DISCONNECTED
            step(self.state, Action.ASK)

    def open_again(self) -> tuple[Any, Any]:
        self.state = State.IDLE
        return super().open_again()


def test_a_device_whose_leaving_another_thread_saw_first_is_waited_for_too(
    tmp_path: Path, calibration: Calibration, undisturbed: np.ndarray
) -> None:
    bench, path = Overheard(by_pose=True, unplug_at=frozenset({5})), tmp_path / "scan.h5"
    run(bench, calibration, path, instrument=bench.replugged, endurance=QUICK)
    np.testing.assert_array_equal(read_scan(path).counts(), undisturbed)
    assert bench.n_opens == 1


def test_a_run_that_waits_for_its_device_can_be_closed_at_once(tmp_path: Path, calibration: Calibration) -> None:
    bench = Bench(unplug_at=frozenset({5}), absent=1_000_000)
    work = run_scan(
        bench.replugged, PLAN, calibration, tmp_path / "scan.h5", endurance=dataclasses.replace(QUICK, reconnect_s=600)
    )
    for progress in work:
        if progress.stage == "waiting for the device":
            break
    began_s = time.monotonic()
    work.close()
    assert time.monotonic() - began_s < 5.0
    assert read_scan(partial_path(tmp_path / "scan.h5"), allow_partial=True).status is ScanStatus.INTERRUPTED


# Stage and tube


def test_what_a_stage_spoilt_is_repeated_as_often_as_was_asked(
    tmp_path: Path, calibration: Calibration, undisturbed: np.ndarray
) -> None:
    bench, path = Bench(by_pose=True), tmp_path / "scan.h5"
    bench.refuse, bench.refuse_once = {"ROT 120": "ERR limit switch"}, True
    run(bench, calibration, path, endurance=dataclasses.replace(QUICK, retries=1))
    np.testing.assert_array_equal(read_scan(path).counts(), undisturbed)
    (told,) = events(path, "retry")
    assert "limit switch" in told
    assert bench.lines.count("BEAM ON") == 2, "off while it waits"


def test_a_stage_that_goes_on_refusing_ends_the_run(tmp_path: Path, calibration: Calibration) -> None:
    bench, path = Bench(), tmp_path / "scan.h5"
    bench.refuse = {"ROT 120": "ERR limit switch"}
    with pytest.raises(DataLost, match="limit switch"):
        run(bench, calibration, path, endurance=dataclasses.replace(QUICK, retries=2))
    assert len(events(partial_path(path), "retry")) == 2
    assert bench.lines[-1] == "BEAM OFF"


# Stopping


def test_a_stop_comes_after_the_present_frame(tmp_path: Path, calibration: Calibration) -> None:
    bench, path, stop = Bench(), tmp_path / "scan.h5", threading.Event()
    bench.waits_at = 6
    work = run_scan(bench.instrument, PLAN, calibration, path, stop=stop)
    take(work, 5)
    stop.set()
    with pytest.raises(Stopped, match=r"6 of 12 frames are in .*partial") as caught:
        take(work, N_FRAMES)
    assert caught.value.exit_code == 130
    assert "--resume" in caught.value.hint
    assert bench.lines[-1] == "BEAM OFF"
    assert read_scan(partial_path(path), allow_partial=True).shape[0] == 6
    summary = run(Bench(), calibration, path, resume=True)
    assert (summary.n_resumed, summary.n_repeated) == (5, 1), "of two flats the first was there"


def test_a_stop_before_anything_is_measured_leaves_nothing(tmp_path: Path, calibration: Calibration) -> None:
    stop = threading.Event()
    stop.set()
    bench = Bench()
    with pytest.raises(Stopped):
        run(bench, calibration, tmp_path / "scan.h5", stop=stop)
    assert list(tmp_path.iterdir()) == []
    assert "BEAM ON" not in bench.lines


def interrupt_after(*delays_s: float) -> None:
    """Send this process a Ctrl-C after some times."""
    for delay_s in delays_s:
        timer = threading.Timer(delay_s, signal.raise_signal, (signal.SIGINT,))
        timer.daemon = True
        timer.start()


def test_ctrl_c_twice_ends_an_exposure_of_an_hour_at_once(tmp_path: Path, calibration: Calibration) -> None:
    bench, path, stop = Bench(), tmp_path / "scan.h5", threading.Event()
    bench.hangs_at = 3
    work = run_scan(bench.instrument, PLAN, calibration, path, stop=stop)
    take(work, 2)  # the third is held until its step is done, which it never is
    interrupt_after(0.2, 0.5)
    began_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        mpxct.Terminal().track(work, stop.set)
    assert stop.is_set()
    assert 0.5 <= time.monotonic() - began_s < 0.5 + 5, "of which the limits of a busy machine take most"
    assert bench.lines[-1] == "BEAM OFF"
    scan = read_scan(partial_path(path), allow_partial=True)
    assert scan.status is ScanStatus.INTERRUPTED
    assert scan.shape[0] >= 2


def test_ctrl_c_breaks_other_work_off_at_once() -> None:
    closed = []

    def work() -> Iterator[Any]:
        try:
            while True:
                time.sleep(0.01)
                yield mpxct.Progress("work", 1, 2)
        finally:
            closed.append(True)

    interrupt_after(0.1)
    with pytest.raises(KeyboardInterrupt):
        mpxct.Terminal().track(work())  # type: ignore[arg-type]
    assert closed == [True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# Disk and viewer


class Awaited(Bench):
    """A board whose last frame comes when somebody has begun to look."""

    def __init__(self) -> None:
        super().__init__()
        self.is_looked_at = threading.Event()

    def frame(self, sequence: int, exposure_s: float) -> Frame:
        assert self.n_done < N_FRAMES - 1 or self.is_looked_at.wait(20)
        return super().frame(sequence, exposure_s)


def test_a_viewer_that_sleeps_holds_nothing_up(
    tmp_path: Path, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "HEALTH_EVERY_S", 0.0)
    bench, wakes, seen, told = Awaited(), threading.Event(), list[Frame](), list[RunHealth]()

    def look(frame: Frame) -> None:
        seen.append(frame)
        bench.is_looked_at.set()
        wakes.wait(20)

    summary = run(bench, calibration, tmp_path / "scan.h5", on_newest=look, on_health=told.append)
    assert (summary.n_frames, summary.n_lost) == (N_FRAMES, 0)
    assert len(seen) == 1, "it still looks at the first"
    to_disk, to_viewer = told[-1].queues
    assert (to_disk.n_dropped, to_disk.n_in) == (0, N_FRAMES)
    assert (to_viewer.n_in, to_viewer.n_dropped + to_viewer.depth) == (N_FRAMES, N_FRAMES - 1)
    wakes.set()


def test_a_slow_disk_is_told_of_and_loses_nothing(
    tmp_path: Path, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = runner.ScanWriter.write
    delays_s = {4: 0.06, 7: 0.12}

    def slow(writer: Any, *arguments: Any, **options: Any) -> None:
        time.sleep(delays_s.get(writer.n_frames, 0))
        write(writer, *arguments, **options)

    monkeypatch.setattr(runner.ScanWriter, "write", slow)
    monkeypatch.setattr(disk_watch, "SLOW_WRITE_S", 0.05)
    summary = run(Bench(), calibration, tmp_path / "scan.h5")
    assert (summary.n_frames, summary.n_lost) == (N_FRAMES, 0)
    assert any("slow-disk" in note for note in summary.notes)
    assert events(tmp_path / "scan.h5", "slow-disk")


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_a_disk_that_fills_up_ends_the_run_while_the_file_can_be_closed(
    tmp_path: Path, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    free_bytes = [10 * RESERVE_BYTES]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, free_bytes[0]))
    monkeypatch.setattr(disk_watch, "LOOK_EVERY_S", 0.0)
    bench, path = Bench(), tmp_path / "scan.h5"
    work = run_scan(bench.instrument, PLAN, calibration, path)
    take(work, 5)
    free_bytes[0] = RESERVE_BYTES - 1
    with pytest.raises(DataLost, match="the disk is full but for") as caught:
        take(work, N_FRAMES)
    assert "--resume" in caught.value.hint
    scan = read_scan(partial_path(path), allow_partial=True)
    assert (scan.shape[0], scan.status) == (5, ScanStatus.INTERRUPTED)
    assert bench.lines[-1] == "BEAM OFF"
    free_bytes[0] = 10 * RESERVE_BYTES
    assert run(Bench(), calibration, path, resume=True).n_resumed == 5


def test_too_little_room_for_the_rest_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_watch, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, RESERVE_BYTES + 999))
    path, n = tmp_path / "scan.h5", 1 + FEWEST_FRAMES
    path.write_bytes(bytes(1_000_000))
    watch = DiskWatch(path)
    assert watch.look(1, 100) is None, "what stands before the frames is not theirs"
    path.write_bytes(bytes(1_000_000 + 100 * FEWEST_FRAMES))
    assert watch.look(n, 9) is None, "9 frames take 900 bytes more"
    low = watch.look(n, 10)
    assert low is not None
    assert not low.is_stop
    assert watch.look(n, 10) is None


def test_a_disk_that_is_full_leaves_a_valid_part(tmp_path: Path, calibration: Calibration) -> None:
    bench, path = Bench(), tmp_path / "scan.h5"
    noise = np.random.default_rng(1)
    frame = bench.frame
    bench.frame = lambda sequence, exposure_s: dataclasses.replace(  # type: ignore[method-assign]
        frame(sequence, exposure_s), counts=noise.integers(0, 3000, (4, 128, 128), np.uint16)
    )
    plan = Plan(scan=ScanPlan(n_views=400, frames_per_view=1, flats_every_n_views=400, n_flats=2))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (45_000_000, limits[1]))
    try:
        with pytest.raises(DataLost, match="cannot write on"):
            run(bench, calibration, path, plan)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    scan = read_scan(partial_path(path), allow_partial=True)
    assert scan.shape[0] > 50
    assert bench.lines[-1] == "BEAM OFF"
    summary = run(Bench(), calibration, path, plan, resume=True)
    assert summary.n_resumed + summary.n_repeated == scan.shape[0]


# Before anything moves


def test_a_disk_that_is_too_small_is_refused_before_anything_moves(
    tmp_path: Path, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 1000))
    bench = Bench()
    with pytest.raises(MpxctError, match="0 MB free") as caught:
        run(bench, calibration, tmp_path / "scan.h5")
    assert "--force" in caught.value.hint
    assert list(tmp_path.iterdir()) == []
    assert not any(line.startswith(("ROT", "BEAM ON", "SAMP ")) for line in bench.lines)


def test_a_calibration_that_is_missing_is_not_hidden_by_a_small_disk(
    tmp_path: Path, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 1000))
    with pytest.raises(CalibrationMissing, match="W2"):
        run(Bench(), dataclasses.replace(calibration, chip_id="W2"), tmp_path / "scan.h5")


# The tube

SHINES, DARK = "LAMP ON,INTERLOCK CLOSED,FAULT NONE", "LAMP OFF,INTERLOCK CLOSED,FAULT NONE"
TRIPPED = "LAMP OFF,INTERLOCK CLOSED,FAULT arc in the tube"


class Tube(Bench):
    """A bench whose tube trips after some frames, once or every time, and tells so."""

    def __init__(self, *, trips_at: int, is_once: bool, **options: Any) -> None:
        super().__init__(**options)
        self.trips_at, self.is_once, self.is_lit, self.is_tripped = trips_at, is_once, False, False

    def auxiliary(self, line: str) -> str:
        if self.is_lit and self.n_done == self.trips_at:
            self.is_lit, self.is_tripped = False, True
            self.trips_at = -1 if self.is_once else self.trips_at
        if line in ("BEAM ON", "BEAM OFF"):
            self.is_lit = line == "BEAM ON" and not self.is_tripped
        if line == "TUBE:CLEAR":
            self.is_tripped = False
        self.source_states = [TRIPPED if self.is_tripped else SHINES if self.is_lit else DARK]
        return super().auxiliary(line)


def test_frames_of_a_step_in_which_the_tube_tripped_are_no_data(tmp_path: Path, calibration: Calibration) -> None:
    bench, path = Tube(trips_at=7, is_once=False), tmp_path / "scan.h5"
    with pytest.raises(DataLost, match="arc in the tube") as caught:
        run(bench, calibration, path)
    assert "--resume" in caught.value.hint
    assert caught.value.exit_code == 3
    assert read_scan(partial_path(path), allow_partial=True).shape[0] == 5, "the flats 5 and 6 are not believed"
    with pytest.raises(MpxctError, match="will not shine: its fault is not cleared: arc in the tube"):
        run(bench, calibration, path, resume=True)
    bench.auxiliary("TUBE:CLEAR")
    bench.trips_at = -1
    assert run(bench, calibration, path, resume=True).n_resumed == 5


def test_a_tube_that_tripped_is_tried_again_if_that_is_wanted(
    tmp_path: Path, calibration: Calibration, undisturbed: np.ndarray
) -> None:
    bench, path = Tube(trips_at=7, is_once=True, by_pose=True), tmp_path / "scan.h5"
    run(bench, calibration, path, endurance=dataclasses.replace(QUICK, retries=1))
    np.testing.assert_array_equal(read_scan(path).counts(), undisturbed)
    assert bench.lines.count("TUBE:CLEAR") == 1
    assert events(path, "repeated")


def test_an_open_interlock_is_refused_before_anything_moves(tmp_path: Path, calibration: Calibration) -> None:
    bench = Bench()
    bench.source_states = ["LAMP OFF,INTERLOCK OPEN,FAULT NONE"]
    with pytest.raises(MpxctError, match="its interlock is open"):
        run(bench, calibration, tmp_path / "scan.h5")
    assert bench.lines == ["BEAM OFF"] or bench.lines == []
    assert list(tmp_path.iterdir()) == []
