"""The instrument behind the window: whatever the cable, the driver or a person does, it is there again afterwards."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import msgspec
import pytest

from acquisition.instrument import Instrument
from acquisition.live import Look, look
from acquisition.runner import Endurance, ScanSummary, run_scan
from acquisition.scan import ScanStatus
from acquisition.scan_file import read_scan
from acquisition.scan_plan import LivePlan, SnapPlan
from acquisition.steps import Pose
from calibration.progress import Progress
from firmware_iface.device import Trigger
from firmware_iface.errors import MpxctError, WrongUsage
from firmware_iface.frame import Frame
from firmware_iface.trigger import TriggerStart
from gui import rig as rig_module
from gui.rig import UNSAFE, Rig
from gui.state import Link
from gui.workers import Job, JobStatus
from tests.gui.simulated_cable import Cable, wait_for
from tests.rough_calibration import rough_calibration
from tests.scan_bench import N_FRAMES, PLAN, Bench

LIVE = msgspec.structs.replace(PLAN, scan=LivePlan())
SNAP = msgspec.structs.replace(PLAN, scan=SnapPlan())
CALIBRATION = rough_calibration(PLAN)
ABORT_WITHIN_S = 1.0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rig_module, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(rig_module, "REOPEN_EVERY_S", 0.02)
    monkeypatch.setattr(rig_module, "WATCH_EVERY_S", 0.02)


@contextmanager
def a_rig(opener: Callable[[str, str, str], AbstractContextManager[Instrument]], *, connected: bool = True):
    rig = Rig(opener)
    try:
        if connected:
            rig.connect("sim:demo")
            wait_for(lambda: rig.snapshot().link is Link.READY, "a connection")
        yield rig
    finally:
        rig.close()


def see(instrument: Instrument, plan=LIVE, frames: list[Frame] | None = None) -> Generator[Progress, None, Look]:
    seen = [] if frames is None else frames
    return look(instrument, plan, CALIBRATION, on_newest=seen.append)


def ended(job: Job) -> JobStatus:
    assert job.wait(60.0)
    return job.snapshot().status


def blocked(instrument: Instrument) -> Generator[Progress, None, None]:
    """Wait for frames that no trigger will start, three times over, as calibrations take lost frames again."""
    instrument.detector.set_trigger(Trigger(start=TriggerStart.SOFTWARE))
    yield Progress("blocked", 0, 3)
    for _ in range(3):
        list(instrument.detector.frames(1, 60.0))
    raise MpxctError("nothing came")


# Opened and let go


def test_an_instrument_tells_what_it_is_and_how_it_is_and_is_let_go() -> None:
    cable = Cable()
    with a_rig(cable.opener) as rig:
        now = rig.snapshot()
        assert (now.url, now.chip_ids, now.error, now.gantry_error) == ("sim:demo", ("W529_F5",), "", "")
        assert now.info is not None
        assert now.info.serial == "CABLE-1"
        assert now.health is not None
        assert now.health.board_k == pytest.approx(304.15)
        assert now.source is not None
        assert now.source.is_beam_on is False
        assert now.pose == Pose()
        assert now.limits is not None
        assert now.limits.lift_mm == (-50, 50)
        rig.disconnect()
        wait_for(lambda: rig.snapshot().link is Link.NONE)
        assert rig.snapshot().info is None
    assert cable.urls == [("sim:demo", "line:", "line:")]


def test_work_without_an_instrument_fails_with_the_next_step() -> None:
    with a_rig(Cable().opener, connected=False) as rig:
        job = rig.run("Live view", see)
        assert ended(job) is JobStatus.FAILED
        error = job.snapshot().error
        assert isinstance(error, WrongUsage)
        assert "page Instrument" in error.hint
        assert rig.snapshot().link is Link.NONE


def test_a_wrong_address_is_told_and_not_tried_again() -> None:
    n_tries = 0

    def opener(url: str, stage_url: str, tube_url: str) -> AbstractContextManager[Instrument]:
        nonlocal n_tries
        n_tries += 1
        raise WrongUsage("no detector can be reached by 'simm:demo'", hint="write sim:demo")

    with a_rig(opener, connected=False) as rig:
        rig.connect("simm:demo")
        wait_for(lambda: rig.snapshot().link is Link.NONE)
        time.sleep(0.1)
        assert (rig.snapshot().error, rig.snapshot().hint) == (
            "no detector can be reached by 'simm:demo'",
            "write sim:demo",
        )
        assert n_tries == 1


def test_a_driver_s_mistake_is_told_and_the_thread_outlives_it(caplog: pytest.LogCaptureFixture) -> None:
    cable, is_broken = Cable(), True

    def opener(url: str, stage_url: str, tube_url: str) -> AbstractContextManager[Instrument]:
        if is_broken:
            raise ZeroDivisionError("a driver's mistake")
        return cable.opener(url, stage_url, tube_url)

    with a_rig(opener, connected=False) as rig:
        rig.connect("sim:demo")
        wait_for(lambda: rig.snapshot().link is Link.NONE)
        assert rig.snapshot().error == "a driver's mistake"
        assert "the instrument's driver failed" in caplog.text
        is_broken = False
        rig.connect("sim:demo")
        wait_for(lambda: rig.snapshot().link is Link.READY)
        assert rig.snapshot().error == ""


def test_an_instrument_that_is_not_there_yet_is_opened_when_it_comes() -> None:
    cable = Cable()
    cable.device.unplug()
    with a_rig(cable.opener, connected=False) as rig:
        rig.connect("usb:")
        wait_for(lambda: rig.snapshot().link is Link.LOST)
        assert not rig.snapshot().was_open
        assert rig.snapshot().error
        cable.device.plug()
        wait_for(lambda: rig.snapshot().link is Link.READY)
        assert rig.snapshot().was_open


# Pulled and plugged


def test_a_cable_pulled_at_rest_is_told_and_mends_itself() -> None:
    cable = Cable()
    with a_rig(cable.opener) as rig:
        for _ in range(2):
            cable.device.unplug()
            wait_for(lambda: rig.snapshot().link is Link.LOST)
            assert rig.snapshot().error
            assert rig.snapshot().status is None, "what is not known any more is not shown as if it were"
            assert rig.snapshot().info is not None, "what it was is"
            cable.device.plug()
            wait_for(lambda: rig.snapshot().link is Link.READY)
            assert rig.snapshot().error == ""


def test_a_cable_pulled_in_mid_live_mends_itself_and_the_next_run_is_fine() -> None:
    cable, frames = Cable(), list[Frame]()
    with a_rig(cable.opener) as rig:
        job = rig.run("Live view", lambda instrument: see(instrument, frames=frames))
        wait_for(lambda: len(frames) >= 2)
        assert rig.snapshot().link is Link.BUSY
        cable.device.unplug()
        assert ended(job) is JobStatus.FAILED
        wait_for(lambda: rig.snapshot().link is Link.LOST)
        assert rig.snapshot().job == ""
        assert rig.snapshot().unsafe == UNSAFE, "the beam may be on, and nobody could switch it off"
        assert "left the bus" in rig.snapshot().error or "on the bus" in rig.snapshot().error
        cable.device.plug()
        wait_for(lambda: rig.snapshot().link is Link.READY)
        wait_for(lambda: rig.snapshot().source is not None and not rig.snapshot().unsafe)
        assert rig.snapshot().source.is_beam_on is False, "it is switched off as soon as it is there again"
        job = rig.run("Snapshot", lambda instrument: see(instrument, SNAP))
        assert ended(job) is JobStatus.DONE
        assert (job.result.n_frames, job.result.n_lost) == (1, 0)


def test_what_is_lost_before_anybody_looked_at_the_beam_may_be_lit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rig_module, "WATCH_EVERY_S", 60.0)
    cable, frames = Cable(), list[Frame]()
    with a_rig(cable.opener) as rig:
        job = rig.run("Live view", lambda instrument: see(instrument, frames=frames))
        wait_for(lambda: len(frames) >= 1)
        cable.device.unplug()
        assert ended(job) is JobStatus.FAILED
        wait_for(lambda: rig.snapshot().link is Link.LOST)
        assert rig.snapshot().unsafe == UNSAFE


def test_a_cable_pulled_in_mid_scan_and_plugged_in_again_costs_nothing_but_time(tmp_path: Path) -> None:
    cable = Cable()

    def scan(instrument: Instrument) -> Generator[Progress, None, ScanSummary]:
        for progress in run_scan(
            instrument,
            PLAN,
            CALIBRATION,
            tmp_path / "scan.h5",
            endurance=Endurance(reconnect_s=60),
        ):
            if progress.stage == "scan" and progress.done == 4 and not cable.device.is_gone and cable.n_openings == 1:
                cable.device.unplug()
                threading.Timer(0.3, cable.device.plug).start()
            yield progress
        return read_scan(tmp_path / "scan.h5")

    with a_rig(cable.opener) as rig:
        job = rig.run("Scan", scan)
        assert ended(job) is JobStatus.DONE
        assert job.result.status is ScanStatus.COMPLETE
        assert job.result.shape[0] == N_FRAMES
        assert cable.n_openings >= 2
        wait_for(lambda: rig.snapshot().link is Link.READY)
        assert ended(rig.run("Snapshot", lambda instrument: see(instrument, SNAP))) is JobStatus.DONE


def test_a_scan_that_waits_for_its_device_is_aborted_at_once(tmp_path: Path) -> None:
    cable = Cable()

    def scan(instrument: Instrument) -> Generator[Progress, None, ScanSummary]:
        return run_scan(instrument, PLAN, CALIBRATION, tmp_path / "scan.h5", endurance=Endurance(reconnect_s=600))

    with a_rig(cable.opener) as rig:
        job = rig.run("Scan", scan)
        wait_for(lambda: job.snapshot().stage == "scan" and job.snapshot().done >= 2)
        cable.device.unplug()
        wait_for(lambda: job.snapshot().stage == "waiting for the device")
        began_s = time.monotonic()
        job.abort()
        assert ended(job) is JobStatus.STOPPED
        assert time.monotonic() - began_s < 5 * ABORT_WITHIN_S
        cable.device.plug()
        wait_for(lambda: rig.snapshot().link is Link.READY)


# Stopped and aborted


def test_leftovers_of_a_run_that_was_broken_off_do_not_poison_the_next() -> None:
    with a_rig(Cable().opener) as rig:
        run_ids = set[int]()
        for _ in range(2):
            frames = list[Frame]()
            job = rig.run("Live view", lambda instrument, seen=frames: see(instrument, frames=seen))
            wait_for(lambda seen=frames: seen)
            job.abort()
            assert ended(job) is JobStatus.STOPPED
            assert len({frame.run_id for frame in frames}) == 1
            assert not run_ids & {frame.run_id for frame in frames}
            run_ids |= {frame.run_id for frame in frames}
        snap = rig.run("Snapshot", lambda instrument: see(instrument, SNAP))
        assert ended(snap) is JobStatus.DONE
        assert snap.result.newest is not None
        assert snap.result.newest.run_id not in run_ids
        assert snap.result.newest.sequence == 0


def test_an_abort_ends_a_long_exposure_at_once_whoever_waits_for_it() -> None:
    with a_rig(Cable().opener) as rig:
        job = rig.run("Calibration", blocked)
        wait_for(lambda: rig.snapshot().status.state.name == "ARMED")
        began_s = time.monotonic()
        job.abort()
        assert time.monotonic() - began_s < 0.05, "the window's thread does not wait for the board"
        assert ended(job) is JobStatus.STOPPED
        assert time.monotonic() - began_s < 3 * ABORT_WITHIN_S, "three exposures in a row"
        wait_for(lambda: rig.snapshot().link is Link.READY)
        assert rig.snapshot().status.state.name == "IDLE"


def test_an_abort_of_a_view_ends_its_long_exposure_within_a_second() -> None:
    bench = Bench()
    bench.hangs_at = 0

    @contextmanager
    def opener(url: str, stage_url: str, tube_url: str) -> Iterator[Instrument]:
        yield bench.instrument

    long = msgspec.structs.replace(SNAP, detector=msgspec.structs.replace(PLAN.detector, exposure_s=60.0))
    calibration = rough_calibration(PLAN, chip_id="W1")
    with a_rig(opener) as rig:
        job = rig.run("Live view", lambda instrument: look(instrument, long, calibration))
        wait_for(lambda: job.snapshot().stage == "snap" and bench.n_runs)
        began_s = time.monotonic()
        job.abort()
        assert ended(job) is JobStatus.STOPPED
        assert time.monotonic() - began_s < ABORT_WITHIN_S
        assert [line for line in bench.lines if line.startswith("BEAM ")][-1] == "BEAM OFF"


class Turning(Bench):
    """A stage that goes on and on until it is told to stop."""

    def auxiliary(self, line: str) -> str:
        return ("1", "0")["STOP" in self.lines] if line == "BUSY?" else super().auxiliary(line)


def test_an_abort_stops_a_stage_that_moves() -> None:
    bench = Turning()

    @contextmanager
    def opener(url: str, stage_url: str, tube_url: str) -> Iterator[Instrument]:
        yield bench.instrument

    def move(instrument: Instrument) -> Generator[Progress, None, None]:
        yield Progress("move", 0, 0)
        instrument.gantry.move_to(Pose(angle_rad=1.0))

    with a_rig(opener) as rig:
        job = rig.run("Move of the stage", move)
        wait_for(lambda: any(line.startswith("ROT ") for line in bench.lines))
        began_s = time.monotonic()
        job.abort()
        assert ended(job) is JobStatus.STOPPED
        assert time.monotonic() - began_s < 3 * ABORT_WITHIN_S
        assert bench.lines.index("BEAM OFF") < bench.lines.index("STOP"), "the beam first"
        wait_for(lambda: rig.snapshot().link is Link.READY)


def test_closing_the_window_ends_what_runs() -> None:
    rig = Rig(Cable().opener)
    rig.connect("sim:demo")
    wait_for(lambda: rig.snapshot().link is Link.READY)
    job = rig.run("Calibration", blocked)
    wait_for(lambda: rig.snapshot().status.state.name == "ARMED")
    rig.close()
    assert job.is_over


def test_beam_off_ends_what_runs_beside_all_else() -> None:
    def lit(instrument: Instrument) -> Generator[Progress, None, None]:
        instrument.gantry.beam(True)
        yield from blocked(instrument)

    cable = Cable()
    with a_rig(cable.opener) as rig:
        job = rig.run("Calibration", lit)
        wait_for(lambda: rig.snapshot().source.is_beam_on)
        rig.make_safe()
        assert ended(job) is JobStatus.STOPPED
        wait_for(lambda: rig.snapshot().source.is_beam_on is False)
        assert rig.snapshot().unsafe == ""
        cable.device.unplug()
        wait_for(lambda: rig.snapshot().link is Link.LOST)
        rig.make_safe()
        wait_for(lambda: rig.snapshot().unsafe)
        assert "key" in rig.snapshot().unsafe, "and who cannot be helped by us is told what to do"


# Watched


def test_how_it_is_stays_fresh_while_work_runs() -> None:
    with a_rig(Cable().opener) as rig:
        frames = list[Frame]()
        job = rig.run("Live view", lambda instrument: see(instrument, frames=frames))
        wait_for(lambda: frames)
        first_s = rig.snapshot().asked_s
        assert first_s is not None
        wait_for(lambda: (rig.snapshot().asked_s or 0) > first_s)
        assert rig.snapshot().source.is_beam_on
        assert (rig.snapshot().source.kvp, rig.snapshot().source.current_ma) == (
            PLAN.source.kvp,
            PLAN.source.current_ma,
        )
        assert rig.snapshot().link is Link.BUSY
        job.abort()
        assert ended(job) is JobStatus.STOPPED
        wait_for(lambda: rig.snapshot().source.is_beam_on is False)


def test_a_live_view_tells_how_it_stands() -> None:
    with a_rig(Cable(drop=frozenset({2})).opener) as rig:
        stop = threading.Event()
        job = rig.run(
            "Live view",
            lambda instrument: look(instrument, LIVE, CALIBRATION, stop=stop, on_health=rig.note_run),
            stop=stop.set,
        )
        wait_for(lambda: rig.snapshot().run is not None and rig.snapshot().run.n_frames > 3)
        job.stop()
        assert ended(job) is JobStatus.DONE
        assert rig.snapshot().run.queues[0].name == "disk"
        assert job.result.n_lost >= 1


def test_a_detector_without_a_gantry_is_ready_all_the_same() -> None:
    bench = Bench()
    bench.refuse = {"ROT?": "ERR no stage"}

    @contextmanager
    def opener(url: str, stage_url: str, tube_url: str) -> Iterator[Instrument]:
        yield bench.instrument

    with a_rig(opener) as rig:
        assert rig.snapshot().pose is None
        assert "no stage" in rig.snapshot().gantry_error
