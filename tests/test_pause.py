"""A scan that is held: nothing moves, the beam goes off and on again, and no frame is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from acquisition.pause import Pause
from acquisition.runner import ScanSummary, run_scan
from acquisition.scan_file import read_scan
from firmware_iface.errors import Stopped
from firmware_iface.frame import Frame
from tests.rough_calibration import rough_calibration
from tests.scan_bench import N_FRAMES, PLAN, Bench

CALIBRATION = rough_calibration(PLAN, chip_id="W1")


class Held(Bench):
    """A board with somebody beside it who pauses the scan while its fifth frame is taken."""

    def __init__(self, pause: Pause) -> None:
        super().__init__()
        self.scan_pause = pause

    def frame(self, sequence: int, exposure_s: float) -> Frame:
        if self.n_done == 4:
            self.scan_pause.close()
        return super().frame(sequence, exposure_s)


def walk(bench: Bench, path: Path, pause: Pause, paused: Callable[[], object], stop: threading.Event) -> ScanSummary:
    """Run a scan that is held after its fifth frame; `paused` is called once while it is."""
    work = run_scan(bench.instrument, PLAN, CALIBRATION, path, pause=pause, stop=stop, notes={"operator": "Ada"})
    has_paused = False
    while True:
        try:
            progress = next(work)
        except StopIteration as end:
            return end.value
        if progress.stage == "paused" and pause.is_holding and not has_paused:
            has_paused = True
            paused()


def beams(bench: Bench) -> list[str]:
    return [line for line in bench.lines if line.startswith("BEAM ")]


def test_a_short_pause_leaves_the_beam_on_and_loses_nothing(tmp_path: Path) -> None:
    pause = Pause(60)
    bench = Held(pause)
    seen = []

    def paused() -> None:
        seen.append((pause.is_closed, pause.is_beam_off, list(bench.lines)))
        pause.open()

    summary = walk(bench, tmp_path / "scan.h5", pause, paused, threading.Event())
    (is_closed, is_beam_off, lines) = seen[0]
    assert (is_closed, is_beam_off) == (True, False)
    assert beams(bench).count("BEAM ON") == 1
    assert lines == bench.lines[: len(lines)]
    assert (summary.n_frames, summary.n_lost) == (N_FRAMES, 0)
    assert pause.held_s > 0
    assert not pause.is_holding
    assert read_scan(tmp_path / "scan.h5").header["operator"] == "Ada"


def test_after_a_while_the_beam_is_off_and_comes_back_before_the_next_frame(tmp_path: Path) -> None:
    pause = Pause(0)
    bench = Held(pause)

    def paused() -> None:
        while not pause.is_beam_off:
            threading.Event().wait(0.01)
        assert beams(bench)[-1] == "BEAM OFF"
        assert bench.n_done == 5
        pause.open()

    summary = walk(bench, tmp_path / "scan.h5", pause, paused, threading.Event())
    assert summary.n_frames == N_FRAMES
    assert beams(bench)[-4:] == ["BEAM ON", "BEAM OFF", "BEAM ON", "BEAM OFF"]


def test_a_paused_scan_can_be_stopped_and_gone_on_with(tmp_path: Path) -> None:
    pause, stop = Pause(), threading.Event()
    bench = Held(pause)
    with pytest.raises(Stopped):
        walk(bench, tmp_path / "scan.h5", pause, stop.set, stop)
    assert beams(bench)[-1] == "BEAM OFF"
    work = run_scan(bench.instrument, PLAN, CALIBRATION, tmp_path / "scan.h5", resume=True)
    while True:
        try:
            next(work)
        except StopIteration as end:
            summary = end.value
            break
    assert summary.n_frames == N_FRAMES
    assert summary.n_resumed == 5


def test_one_that_is_open_holds_nothing() -> None:
    pause = Pause()
    pause.hold(None, threading.Event())  # type: ignore[arg-type] - the gantry is not asked for anything
    assert pause.held_s == 0
