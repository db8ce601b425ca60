"""Scans: every planned frame at its pose, and whatever goes wrong, a valid file and the beam off."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import typer

from acquisition.cli import CalibrationStep, acquire, calibrate, convert
from acquisition.convert import convert_merlin
from acquisition.instrument import prepare
from acquisition.plan import ScanPlan, plan_to_toml
from acquisition.runner import run_scan
from acquisition.scan import ImageKey, ScanStatus
from acquisition.scan_file import read_scan
from acquisition.scan_layout import partial_path
from acquisition.steps import StepKind, expand
from calibration.store import Calibration
from firmware_iface.errors import (
    BadFile,
    CalibrationMissing,
    DataLost,
    Disconnected,
    Stopped,
    TheirMistake,
    WrongUsage,
)
from firmware_iface.frame import Frame
from tests.scan_bench import N_FRAMES, PLAN, Bench, run

PLANES = (8, 128, 128)


@pytest.fixture
def calibration() -> Calibration:
    trim = (np.arange(8)[:, None, None] + np.zeros(PLANES)).astype(np.uint8)
    return Calibration(
        created="2026-01-01T00:00:00Z",
        software="1",
        device="bench",
        chip_id="W1",
        gain="HGM",
        is_csm=True,
        is_colour=True,
        bias_v=PLAN.detector.bias_v,
        dacs={"DAC_DiscL": 77, "Threshold0": 500},
        trim=trim,
        is_masked=np.zeros(PLANES, bool),
        pixel_class=np.zeros(PLANES[1:], np.uint8),
        target_dac=15.0,
        edges_before_dac=np.ones(PLANES, np.float32),
        edges_after_dac=np.ones(PLANES, np.float32),
        offset_dac=np.full(8, 10.0),
        gain_dac_per_kev=np.full(8, 4.0),
        lines=(),
        thresholds_kev=PLAN.detector.thresholds_kev,
    )


def test_every_planned_frame_is_in_the_file_at_its_pose(tmp_path: Path, calibration: Calibration) -> None:
    bench, path = Bench(), tmp_path / "scan.h5"
    summary = run(bench, calibration, path)
    assert (summary.n_frames, summary.n_lost, summary.status) == (N_FRAMES, 0, ScanStatus.COMPLETE)
    scan = read_scan(path)
    assert scan.counts()[:, 0, 0, 0].tolist() == list(range(N_FRAMES))
    planned = [(step, n) for step in expand(PLAN) for n in range(step.n_frames)]
    assert scan.angles_rad.tolist() == [step.pose.angle_rad for step, _ in planned]
    assert scan.sequence.tolist() == [n for _, n in planned]
    is_flat = [step.kind is StepKind.FLAT for step, _ in planned]
    assert [key == ImageKey.FLAT for key in scan.image_key] == is_flat
    assert [sample == "OUT" for _, sample in bench.poses] == is_flat
    assert [float(angle) for angle, _ in bench.poses] == pytest.approx(np.degrees(scan.angles_rad), abs=1e-6)
    assert scan.plan == PLAN
    assert scan.calibration_identity == calibration.identity


def test_chip_is_prepared_from_the_calibration(calibration: Calibration) -> None:
    bench = Bench()
    prepare(bench.instrument, PLAN, calibration)
    assert bench.dacs["DAC_DiscL"] == 77
    wanted = dict(zip((1, 3, 5, 7), PLAN.detector.thresholds_kev, strict=True)) | {0: PLAN.detector.arbitration_kev}
    for number, energy_kev in wanted.items():
        assert bench.dacs[f"Threshold{number}"] == calibration.threshold_dac(number, energy_kev)
    assert bench.configuration.is_csm
    assert bench.configuration.counters == (1,)
    assert bench.pixels.trim_h[1, 1] == 1  # P1, the upper right of a cluster, holds thresholds 0 and 1
    assert bench.calls == [f"bias {PLAN.detector.bias_v}"]
    assert bench.lines[-2:] == ["SOUR TUBE", "TUBE 118 0.006"]
    assert "BEAM ON" not in bench.lines


def test_beam_is_on_during_the_scan_only(tmp_path: Path, calibration: Calibration) -> None:
    bench = Bench()
    run(bench, calibration, tmp_path / "scan.h5")
    assert bench.lines.index("BEAM ON") < bench.lines.index("ROT 0")
    assert bench.lines[-1] == "BEAM OFF"


def test_lost_frames_degrade_the_scan_and_do_not_stop_it(tmp_path: Path, calibration: Calibration) -> None:
    summary = run(Bench(lose=frozenset({3, 4, 9})), calibration, tmp_path / "scan.h5")
    assert (summary.n_frames, summary.n_lost, summary.status) == (N_FRAMES, 3, ScanStatus.DEGRADED)
    scan = read_scan(tmp_path / "scan.h5")
    assert np.flatnonzero(scan.image_key == ImageKey.INVALID).tolist() == [3, 4, 9]
    assert all("CRC" in event.text for event in scan.events if event.kind == "lost")


def test_frames_that_a_run_never_gave_count_as_lost(tmp_path: Path, calibration: Calibration) -> None:
    summary = run(Bench(short=True), calibration, tmp_path / "scan.h5")
    assert (summary.n_frames, summary.n_lost) == (N_FRAMES, len(expand(PLAN)))


@pytest.mark.parametrize(("unplug_after", "n_there"), [(1, 1), (5, 4), (N_FRAMES - 1, N_FRAMES - 1)])
def test_unplugged_device_leaves_a_valid_part(
    tmp_path: Path, calibration: Calibration, unplug_after: int, n_there: int
) -> None:
    """Frame 4 is the only one of its step: nobody can tell any more whether the beam held, so it is taken again."""
    path = tmp_path / "scan.h5"
    with pytest.raises(DataLost) as caught:
        run(Bench(unplug_at=frozenset({unplug_after})), calibration, path)
    assert caught.value.exit_code == 3
    assert f"{n_there} of {N_FRAMES} frames are in {partial_path(path)}" in str(caught.value)
    assert not path.exists()
    scan = read_scan(partial_path(path), allow_partial=True)
    assert scan.status is ScanStatus.INTERRUPTED
    assert scan.counts()[:, 0, 0, 0].tolist() == list(range(n_there))
    assert "gone from the bus" in scan.events[-1].text


def test_device_that_is_gone_at_once_leaves_no_file(tmp_path: Path, calibration: Calibration) -> None:
    with pytest.raises(Disconnected):
        run(Bench(unplug_at=frozenset({0})), calibration, tmp_path / "scan.h5")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["close", "interrupt"])
def test_stopped_scan_is_valid_and_interrupted(tmp_path: Path, calibration: Calibration, how: str) -> None:
    bench, path = Bench(), tmp_path / "scan.h5"
    work = run_scan(bench.instrument, PLAN, calibration, path)
    while next(work) != ("scan", 4, N_FRAMES):
        pass
    if how == "close":
        work.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            work.throw(KeyboardInterrupt())
    scan = read_scan(partial_path(path), allow_partial=True)
    assert (scan.status, scan.shape[0]) == (ScanStatus.INTERRUPTED, 4)
    assert bench.lines[-1] == "BEAM OFF"
    assert not path.exists()


@pytest.mark.parametrize(
    "tells", [[], ["LAMP OFF,INTERLOCK CLOSED,FAULT NONE"]], ids=["silent tube", "tube that tells"]
)
def test_what_is_broken_off_from_beside_is_no_loss_and_no_trip(
    tmp_path: Path, calibration: Calibration, tells: list[str]
) -> None:
    """Before the second flat of two; whoever breaks off stops the detector and switches the beam off."""
    bench, path = Bench(), tmp_path / "scan.h5"
    instrument = bench.instrument
    bench.hangs_at = 6

    def walk() -> None:
        for _ in run_scan(instrument, PLAN, calibration, path):
            if bench.n_done == bench.hangs_at and not instrument.broken_off.is_set():
                instrument.broken_off.set()
                bench.source_states = tells
                bench.abort()

    with pytest.raises(Stopped, match="ended at once, by hand; 5 of 12 frames are in"):
        walk()
    scan = read_scan(partial_path(path), allow_partial=True)
    assert (scan.shape[0], scan.n_lost) == (5, 0)
    assert scan.events[-1].text == "Stopped: ended at once, by hand"


def test_gantry_that_refuses_stops_the_scan_safely(tmp_path: Path, calibration: Calibration) -> None:
    bench, path = Bench(), tmp_path / "scan.h5"
    bench.refuse = {"ROT 120": "ERR limit switch"}
    with pytest.raises(DataLost, match="limit switch") as caught:
        run(bench, calibration, path)
    assert "--resume" in caught.value.hint
    assert bench.lines[-1] == "BEAM OFF"
    assert read_scan(partial_path(path), allow_partial=True).status is ScanStatus.INTERRUPTED


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"gain": "SHGM"}, CalibrationMissing, "SHGM"),
        ({"bias_v": 100.0}, CalibrationMissing, "100 V"),
        ({"is_csm": False}, CalibrationMissing, "mode colour-spm, now colour-csm"),
        ({"chip_id": "W2"}, CalibrationMissing, "W2"),
    ],
)
def test_calibration_of_something_else_is_refused(
    tmp_path: Path, calibration: Calibration, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    bench = Bench()
    with pytest.raises(error, match=words):
        run(bench, dataclasses.replace(calibration, **changes), tmp_path / "scan.h5")
    assert "BEAM ON" not in bench.lines
    assert list(tmp_path.iterdir()) == []


def test_a_forced_scan_says_what_does_not_hold(tmp_path: Path, calibration: Calibration) -> None:
    bench = Bench()
    cold = dataclasses.replace(calibration, temperature_k=299.0)
    with pytest.raises(CalibrationMissing, match=r"sensor at 25.9 C, now \+6.0 K"):
        run(bench, cold, tmp_path / "scan.h5")
    run(bench, cold, tmp_path / "scan.h5", is_forced=True)
    forced = [event.text for event in read_scan(tmp_path / "scan.h5").events if event.kind == "forced"]
    assert len(forced) == 1
    assert "now +6.0 K" in forced[0]


def test_an_exposure_that_fills_the_counters_is_refused_at_once(tmp_path: Path, calibration: Calibration) -> None:
    bench = Bench()
    bench.n_done = 4000  # which is what every pixel of the first frame counts, of 4095
    with pytest.raises(WrongUsage, match="100 % of the pixels count 3890 and more in 'the first frame'"):
        run(bench, calibration, tmp_path / "scan.h5")
    assert list(tmp_path.iterdir()) == []
    assert bench.lines[-1] == "BEAM OFF"


def test_unknown_sample_is_refused_before_anything_moves(tmp_path: Path, calibration: Calibration) -> None:
    bench = Bench()
    plan = msgspec.structs.replace(PLAN, scan=ScanPlan(sample="bone"))
    with pytest.raises(WrongUsage, match="it has vials, cell-water"):
        run(bench, calibration, tmp_path / "scan.h5", plan)
    assert not any(line.startswith("ROT") for line in bench.lines)


def test_plan_that_is_not_the_chips_is_refused(tmp_path: Path, calibration: Calibration) -> None:
    plan = msgspec.structs.replace(PLAN, geometry=dataclasses.replace(PLAN.geometry, rows=64))
    with pytest.raises(WrongUsage, match="64 x 128"):
        run(Bench(), calibration, tmp_path / "scan.h5", plan)


def test_newest_frames_are_shown(tmp_path: Path, calibration: Calibration) -> None:
    seen: list[Frame] = []
    run(Bench(), calibration, tmp_path / "scan.h5", on_newest=seen.append)
    times = [frame.timestamp_ns for frame in seen]
    assert times == sorted(set(times))
    assert times[-1] == N_FRAMES - 1


def test_a_senseless_answer_closes_the_instrument_safely(calibration: Calibration) -> None:
    bench = Bench()
    bench.refuse = {"SOUR TUBE": "what?"}
    with pytest.raises(TheirMistake):
        prepare(bench.instrument, PLAN, calibration)
    bench.instrument.close()
    assert bench.lines[-1] == "BEAM OFF"
    assert not bench.is_open


class Listener:
    """A console that keeps what it is told."""

    figures: Mapping[str, object]

    def track(self, work: Any, stop: Any = None) -> Any:
        while True:
            try:
                next(work)
            except StopIteration as end:
                return end.value

    def say(self, text: str) -> None:
        pass

    def emit(self, figures: Mapping[str, object], text: str, *, as_json: bool) -> None:
        self.figures = figures


@pytest.fixture
def ctx() -> typer.Context:
    return typer.Context(typer.main.get_command(typer.Typer(callback=lambda: None)), obj=Listener())


def test_dry_run_touches_nothing(tmp_path: Path, ctx: typer.Context) -> None:
    (tmp_path / "plan.toml").write_text(plan_to_toml(PLAN))
    acquire(ctx, tmp_path / "plan.toml", device="none:", output=tmp_path / "scan.h5", dry_run=True)
    assert ctx.obj.figures["n_frames"] == N_FRAMES
    assert not (tmp_path / "scan.h5").exists()


@pytest.mark.parametrize("name", [None, "missing.h5"])
def test_scan_without_a_calibration_tells_how_to_make_one(tmp_path: Path, ctx: typer.Context, name: str | None) -> None:
    (tmp_path / "plan.toml").write_text(plan_to_toml(PLAN))
    with pytest.raises(CalibrationMissing) as caught:
        acquire(ctx, tmp_path / "plan.toml", calibration=tmp_path / name if name else None)
    assert "mpxct calibrate all" in caught.value.hint


def test_calibrate_looks_for_its_folder_before_it_measures(tmp_path: Path, ctx: typer.Context) -> None:
    with pytest.raises(WrongUsage, match=r"no folder .* may be written to"):
        calibrate(ctx, CalibrationStep.ALL, device="none:", output=tmp_path / "none" / "c.h5")


@pytest.mark.parametrize(
    "geometry", ["rows = 64\ncols = 128\npitch_mm = 0.11", "rows = 128\ncols = 128\npitch_mm = 0.055"]
)
def test_a_dry_run_refuses_pixels_that_the_chip_has_not(tmp_path: Path, ctx: typer.Context, geometry: str) -> None:
    text = f"[geometry]\nsource_to_detector_mm = 250.0\nsource_to_object_mm = 200.0\n{geometry}\n"
    (tmp_path / "plan.toml").write_text(text)
    with pytest.raises(WrongUsage, match=r"allowed in mode colour-csm: 128 x 128 of 0\.11 mm"):
        acquire(ctx, tmp_path / "plan.toml", dry_run=True)


def mib_bytes(n_frames: int, layers: tuple[int, ...]) -> bytes:
    """Hand-written Merlin frames of 256 x 256 pixels of 16 bits, big-endian."""
    parts = []
    for number in range(n_frames):
        for layer in layers:
            header = (
                f"MQ1,{number + 1:06d},00384,01,0256,0256,U16,   1x1,01,2020-01-02 03:04:05.678901,0.250000,"
                f"{layer},0,2,"
                "1.0E1,2.0E1,3.0E1,4.0E1,5.0E1,6.0E1,7.0E1,8.0E1,"
                "MQ1A,2020-01-02T03:04:05.678901234Z,250000000ns,12"
            )
            pixels = np.full((256, 256), 100 * number + layer, ">u2")
            pixels[0, 1] = 4095
            parts.append(header.encode().ljust(384, b"\0") + pixels.tobytes())
    return b"".join(parts)


def test_merlin_file_becomes_a_scan(tmp_path: Path, ctx: typer.Context) -> None:
    (tmp_path / "run.mib").write_bytes(mib_bytes(3, (0, 1)))
    convert(ctx, tmp_path / "run.mib", tmp_path / "run.h5")
    scan = read_scan(tmp_path / "run.h5")
    assert scan.shape == (3, 2, 256, 256)
    assert scan.counts().dtype == np.uint16
    assert scan.counts()[:, :, 5, 5].tolist() == [[0, 1], [100, 101], [200, 201]]
    assert (scan.counts()[:, :, 0, 1] == 4095).all()
    assert scan.readout.thresholds_kev == (10.0, 20.0)
    assert scan.exposures_s.tolist() == [0.25] * 3
    assert scan.sequence.tolist() == [1, 2, 3]
    assert scan.timestamps_ns[0] == 1577934245678901000
    assert (scan.plan, scan.calibration, scan.header["gain"]) == (None, None, "HGM")
    assert "no angles" in str(scan.header["note"])
    assert ctx.obj.figures["shape"] == [3, 2, 256, 256]


def test_damaged_merlin_file_leaves_no_scan(tmp_path: Path) -> None:
    (tmp_path / "run.mib").write_bytes(mib_bytes(2, (0,))[:-100])
    with pytest.raises(BadFile, match=r"run\.mib"):
        list(convert_merlin(tmp_path / "run.mib", tmp_path / "run.h5"))
    assert not (tmp_path / "run.h5").exists()


def test_counts_that_no_scan_can_hold_leave_no_part_of_one(tmp_path: Path) -> None:
    full = mib_bytes(2, (0,))
    (tmp_path / "run.mib").write_bytes(full[:-2] + b"\xff\xff")  # 65535 is what a scan file writes for a lost pixel
    with pytest.raises(BadFile, match="a count of 65535 does not fit 12 bits"):
        list(convert_merlin(tmp_path / "run.mib", tmp_path / "run.h5"))
    (tmp_path / "run.mib").write_bytes(full)
    list(convert_merlin(tmp_path / "run.mib", tmp_path / "run.h5"))
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["run.h5", "run.mib"]
