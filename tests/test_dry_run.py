"""What the dry run tells: the sums of the steps, what is seen, what is wrong, and what nobody checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from hypothesis import given, settings
from typer.testing import CliRunner, Result

from acquisition import cli
from acquisition.dry_run import describe, figures
from acquisition.limits import ENDLESS, Limits
from acquisition.plan import DetectorPlan, Plan, plan_to_toml
from acquisition.scan import ImageKey, Readout, readout_of
from acquisition.scan_file import read_scan
from acquisition.scan_plan import (
    BurstPlan,
    ContinuousPlan,
    FlatsPlan,
    HelicalPlan,
    LivePlan,
    ScanPlan,
    SnapPlan,
    ThresholdScanPlan,
)
from acquisition.scan_writer import ScanWriter
from acquisition.steps import expand
from firmware_iface.errors import WrongUsage
from firmware_iface.frame import Frame
from tests.scan_kinds import PASSES_KEV, all_scans, plan_of


@given(all_scans)
@settings(max_examples=60, deadline=None)
def test_figures_are_json_and_add_up(scan: Any) -> None:
    found = json.loads(json.dumps(figures(plan_of(scan))))
    steps = expand(plan_of(scan))
    assert found["n_steps"] == len(steps)
    assert found["n_frames"] == sum(step.n_frames for step in steps)
    assert found["size_bytes"] == found["n_frames"] * 4 * 128 * 128 * 2
    assert found["charge_mas"] == pytest.approx(found["n_frames"] * 1.0 * 0.006)
    assert found["n_passes"] == len({step.pass_index for step in steps})
    assert found["is_endless"] == isinstance(scan, LivePlan)


@given(all_scans)
@settings(max_examples=60, deadline=None)
def test_each_line_has_a_name_and_says_something(scan: Any) -> None:
    for line in describe(plan_of(scan)).splitlines():
        assert line[:11].strip()
        assert line[12:].strip()


@pytest.mark.parametrize(
    ("scan", "told"),
    [
        (ScanPlan(), ("360 views over 360 degrees, 3 frames a view, 728 flats", "a whole circle", "11.3 mm across")),
        (ScanPlan(arc_deg=200), ("a short scan (183.2 are needed)",)),
        (ScanPlan(arc_deg=180), ("TOO SHORT", "183.2 are needed")),
        (ScanPlan(shifts_mm=(5.0,)), ("at 5 mm", "half-scan", "inner 3.26 mm", "19.2 mm across")),
        (ScanPlan(shifts_mm=(-12.0, 0.0, 12.0)), ("at -12, 0, 12 mm", "overlap by 2.08 mm", "30.4 mm across")),
        (ScanPlan(passes_kev=PASSES_KEV), ("18, 33, 50, 75 | 20, 40, 60, 80 |", "3, one whole scan after the other")),
        (ScanPlan(passes_kev=PASSES_KEV, pass_order="view"), ("3, each view in all of them",)),
        (ContinuousPlan(period_s=2.0), ("turning 0.5 degrees/s",)),
        (HelicalPlan(), ("1710 views in 4.75 turns of 8 mm for 30 mm", "30 mm high")),
        (SnapPlan(), ("the open beam", "1 frame")),
        (SnapPlan(sample="vials"), ("sample      vials",)),
        (LivePlan(), ("until it is stopped, nothing written",)),
        (BurstPlan(), ("10 bursts of 10 frames", "rising-ttl", "without waiting for triggers")),
        (FlatsPlan(), ("56 frames",)),
        (ThresholdScanPlan(threshold=1), ("threshold 1 from 10 to 60 keV in 51 positions", "(51 passes)")),
    ],
)
def test_each_kind_is_told_in_its_own_words(scan: Any, told: tuple[str, ...]) -> None:
    text = describe(plan_of(scan))
    for part in told:
        assert part in text


def test_what_the_instrument_cannot_do_is_told_and_what_is_not_known() -> None:
    text = describe(Plan())
    assert "WRONG" not in text
    assert "not checked the range of the turn, the tube's voltage" in text
    assert "without the turn, settling, changing the sample" in text
    text = describe(Plan(), Limits(angle_rad=(0.0, 3.0), kvp=(20.0, 120.0), current_ma=(0.0, 1.0), power_w=50.0))
    assert "WRONG       the turn goes from 0 to 359 degrees; allowed by the stage: 0 to 171.887" in text
    assert "not checked" not in text


def test_known_speeds_make_moves_part_of_the_time() -> None:
    limits = Limits(angle_rad=ENDLESS, speed_rad_s=0.1, settle_s=0.2, sample_change_s=1.0)
    found = figures(Plan(), limits)
    assert found["not_timed"] == []
    assert found["moves_s"] == pytest.approx(np.radians(359) / 0.1 + 359 * 0.2 + 24 * 1.0)
    assert found["duration_s"] == pytest.approx(1808 * (1 + 820e-6) + found["moves_s"])  # type: ignore[operator]


@pytest.mark.parametrize(
    ("depth_bits", "accumulate", "dtype", "saturation"),
    [
        (1, 1, "u1", 1),
        (6, 1, "u1", 63),
        (6, 4, "u1", 252),
        (6, 5, "u2", 315),
        (12, 1, "u2", 4095),
        (12, 17, "u4", 69615),
    ],
)
def test_sums_of_exposures_have_room(depth_bits: int, accumulate: int, dtype: str, saturation: int) -> None:
    plan = Plan(detector=DetectorPlan(depth_bits=depth_bits, accumulate=accumulate))
    readout = readout_of(plan)
    assert (readout.dtype, readout.saturation) == (np.dtype(dtype), saturation)
    assert readout.fill > readout.saturation
    assert figures(plan)["size_bytes"] == 1808 * 4 * 128 * 128 * np.dtype(dtype).itemsize
    assert (figures(plan)["compressed_bytes"] is None) == ((depth_bits, accumulate) != (12, 1))


@pytest.mark.parametrize("n_accumulated", [0, 1_048_833])
def test_sums_that_cannot_be_are_refused(n_accumulated: int) -> None:
    with pytest.raises(ValueError, match="exposures of 12 bits"):
        Readout(shape=(1, 2, 2), depth_bits=12, thresholds=(1,), pitch_mm=0.055, n_accumulated=n_accumulated)


def test_sums_of_exposures_come_back_from_the_file(tmp_path: Any) -> None:
    readout = Readout(shape=(1, 2, 3), depth_bits=12, thresholds=(1,), pitch_mm=0.055, n_accumulated=20)
    counts = np.array([[[0, 1, 4095], [4096, 65535, 81900]]], np.uint32)
    frame = Frame(counts=counts, thresholds=(1,), sequence=0, timestamp_ns=0, exposure_ns=1, run_id=1)
    with ScanWriter(tmp_path / "scan.h5", readout, n_frames=1) as writer:
        writer.write(frame, ImageKey.PROJECTION)
        writer.finish()
    scan = read_scan(tmp_path / "scan.h5")
    assert scan.readout == readout
    np.testing.assert_array_equal(scan.counts(np.array([0]))[0], counts)


class Paper:
    """A console that prints as the front door does."""

    def emit(self, found: Mapping[str, object], text: str, *, as_json: bool) -> None:
        typer.echo(json.dumps(found) if as_json else text)


def dry_run(path: Path, *options: str) -> Result:
    app = typer.Typer()
    cli.register(app)
    return CliRunner().invoke(app, ["acquire", str(path), "--dry-run", *options], obj=Paper())


def test_the_command_prints_lines_or_figures(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(plan_to_toml(plan_of(HelicalPlan())))
    assert dry_run(tmp_path / "plan.toml").output.strip() == describe(plan_of(HelicalPlan()))
    assert json.loads(dry_run(tmp_path / "plan.toml", "--json").output) == figures(plan_of(HelicalPlan()))


def test_the_command_fails_where_the_plan_cannot_be_done(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text("[scan]\nkind = 'continuous'\nperiod_s = 0.5")
    result = dry_run(tmp_path / "plan.toml")
    assert "WRONG       scan.period_s is 0.5" in result.output
    assert isinstance(result.exception, WrongUsage)
