"""What is looked at, not written: a snapshot ends by itself, a live picture when stopped; then the beam is off."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import msgspec
import pytest

from acquisition.live import Look, look
from acquisition.runner import RunHealth
from acquisition.scan_plan import FramesPlan, LivePlan, SnapPlan
from calibration.progress import Progress
from firmware_iface.errors import CalibrationMissing
from firmware_iface.frame import Frame, Lost
from mpxct import Terminal
from tests.rough_calibration import rough_calibration
from tests.scan_bench import PLAN, Bench

SNAP = msgspec.structs.replace(PLAN, scan=SnapPlan())
LIVE = msgspec.structs.replace(PLAN, scan=LivePlan())
FRAMES = msgspec.structs.replace(PLAN, scan=FramesPlan(n_frames=3))
CALIBRATION = rough_calibration(PLAN, chip_id="W1")


class Endless(Bench):
    """A board that gives frames until it is told to stop."""

    def frames(self, n_frames: int, exposure_s: float) -> Iterator[Frame | Lost]:
        yield from super().frames(n_frames or 1_000_000, exposure_s)


def see(bench: Bench, plan, stop_after: int = 0) -> Look:
    stop, seen = threading.Event(), []
    work = look(bench.instrument, plan, CALIBRATION, stop=stop, on_newest=seen.append)
    while True:
        try:
            progress = next(work)
        except StopIteration as end:
            return end.value
        if stop_after and progress.stage == "live" and progress.done >= stop_after:
            stop.set()


def test_a_snapshot_is_one_frame_and_the_beam_is_off_after_it() -> None:
    bench = Bench()
    seen = see(bench, SNAP)
    assert (seen.n_frames, seen.n_lost) == (1, 0)
    assert seen.newest is not None
    assert seen.newest.sequence == 0
    assert bench.lines.index("BEAM ON") < len(bench.lines) - 1
    assert [line for line in bench.lines if line.startswith("BEAM ")][-1] == "BEAM OFF"


def test_a_lost_snapshot_is_told_as_lost() -> None:
    seen = see(Bench(lose=frozenset({0})), SNAP)
    assert (seen.n_frames, seen.n_lost, seen.newest) == (1, 1, None)


def test_a_live_picture_goes_on_until_it_is_stopped() -> None:
    bench = Endless()
    seen = see(bench, LIVE, stop_after=20)
    assert seen.n_frames >= 20
    assert seen.n_frames < 10_000, "it stopped"
    assert seen.newest is not None
    assert [line for line in bench.lines if line.startswith("BEAM ")][-1] == "BEAM OFF"


def test_who_closes_the_picture_leaves_all_safe() -> None:
    bench = Endless()
    work = look(bench.instrument, LIVE, CALIBRATION)
    for progress in work:
        if progress.stage == "live" and progress.done > 3:
            break
    work.close()
    assert [line for line in bench.lines if line.startswith("BEAM ")][-1] == "BEAM OFF"


def test_while_nothing_comes_the_same_progress_comes_again_so_that_it_can_be_closed() -> None:
    bench = Bench()
    bench.hangs_at = 2
    work = look(bench.instrument, FRAMES, CALIBRATION)
    seen = [next(work)]
    while len(seen) < 5 or seen[-5:] != [Progress("frames", 1, 3)] * 5:
        seen.append(next(work))
    began_s = time.monotonic()
    work.close()
    assert time.monotonic() - began_s < 1.0
    assert bench.aborting.is_set()
    assert [line for line in bench.lines if line.startswith("BEAM ")][-1] == "BEAM OFF"


def test_a_terminal_does_not_say_the_same_twice(capsys: pytest.CaptureFixture[str]) -> None:
    def waiting() -> Iterator[Progress]:
        yield from [Progress("live", 0, 0)] * 50
        yield from [Progress("scan", 7, 7)] * 50

    Terminal().track(waiting())  # type: ignore[arg-type]
    assert capsys.readouterr().err.splitlines() == ["live ...", "scan ..."]


def test_a_view_tells_how_it_stands() -> None:
    told = list[RunHealth]()
    stop, bench = threading.Event(), Endless(lose=frozenset({1}))
    for progress in look(bench.instrument, LIVE, CALIBRATION, stop=stop, on_health=told.append):
        if progress.done > 20:
            stop.set()
    assert told
    assert told[0].queues[0].name == "disk"
    assert told[-1].n_frames >= 1


def test_another_chip_s_calibration_is_refused_for_the_eye_too() -> None:
    bench = Bench()
    with pytest.raises(CalibrationMissing):
        next(look(bench.instrument, SNAP, rough_calibration(PLAN, chip_id="W2")))
    assert "BEAM ON" not in bench.lines
