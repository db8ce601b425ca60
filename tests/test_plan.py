"""Plans: what a file says is what is done, and what cannot be done is refused by name."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acquisition import plan as plans
from acquisition.dry_run import describe
from acquisition.plan import (
    CalibrationPlan,
    Cell,
    DetectorPlan,
    Plan,
    ScanPlan,
    SourcePlan,
    load_plan,
    plan_from_toml,
    plan_to_json,
    plan_to_toml,
)
from acquisition.steps import Pose, Step, StepKind, cost, expand
from firmware_iface.errors import WrongUsage

DEMO = Path(plans.__file__).parent / "plans" / "demo.toml"

scans = st.builds(
    ScanPlan,
    sample=st.from_regex(r"[\w.+-]{1,64}", fullmatch=True),
    n_views=st.integers(1, 200),
    arc_deg=st.floats(1, 3600),
    frames_per_view=st.integers(1, 5),
    flats_every_n_views=st.integers(1, 300),
    n_flats=st.integers(0, 5),
)
valid_plans = st.builds(
    Plan,
    detector=st.builds(
        DetectorPlan,
        thresholds_kev=st.lists(st.floats(8, 99), min_size=4, max_size=4, unique=True).map(lambda e: tuple(sorted(e))),
        arbitration_kev=st.floats(1, 8),
        exposure_s=st.floats(1e-6, 3600),
    ),
    source=st.builds(SourcePlan, kvp=st.floats(100, 160), current_ma=st.floats(0, 1000)),
    scan=scans,
)


def test_demo_file_is_the_default_plan() -> None:
    assert load_plan(DEMO) == Plan()


def test_demo_file_names_every_key() -> None:
    text = DEMO.read_text()
    for line in plan_to_toml(Plan()).splitlines():
        assert line.split(" = ")[0] in text


def test_demo_has_two_flats_for_three_projections() -> None:
    n_frames = Counter({kind: sum(s.n_frames for s in expand(Plan()) if s.kind is kind) for kind in StepKind})
    assert n_frames[StepKind.PROJECTION] == 3 * 360
    assert n_frames[StepKind.FLAT] == pytest.approx(2 * 360, rel=0.02)


@given(valid_plans)
@settings(max_examples=60, deadline=None)
def test_toml_gives_the_same_plan_back(plan: Plan) -> None:
    assert plan_from_toml(plan_to_toml(plan)) == plan
    assert plan_to_json(plan).startswith('{"detector"')


def test_empty_file_is_the_default_plan() -> None:
    assert plan_from_toml("") == Plan()


@given(scans)
@settings(max_examples=60, deadline=None)
def test_steps_are_the_planned_views_with_flats_around_them(scan: ScanPlan) -> None:
    steps = expand(Plan(scan=scan))
    views = [step for step in steps if step.kind is StepKind.PROJECTION]
    assert [step.pose.angle_rad for step in views] == pytest.approx(
        [math.radians(scan.arc_deg) * view / scan.n_views for view in range(scan.n_views)]
    )
    assert all(step.sample == scan.sample and step.n_frames == scan.frames_per_view for step in views)
    flats = [step for step in steps if step.kind is StepKind.FLAT]
    assert all(step.sample is None and step.n_frames == scan.n_flats for step in flats)
    if scan.n_flats:
        assert steps[0].kind is steps[-1].kind is StepKind.FLAT
        assert len(flats) == math.ceil(scan.n_views / scan.flats_every_n_views) + 1
    else:
        assert not flats


def test_flats_do_not_turn_the_gantry_backwards() -> None:
    angles = [step.pose.angle_rad for step in expand(Plan())]
    assert angles == sorted(angles)


def test_size_and_duration_of_the_demo() -> None:
    plan = Plan()
    assert cost(plan).n_frames == 3 * 360 + 13 * 56
    assert cost(plan).size_bytes == cost(plan).n_frames * 4 * 128 * 128 * 2
    assert cost(plan).duration_s == pytest.approx(cost(plan).n_frames * (1.0 + 820e-6))
    assert "1808 frames" in describe(plan)
    assert "30 min 09 s" in describe(plan)


def test_step_is_a_frozen_record() -> None:
    step = Step(kind=StepKind.FLAT, pose=Pose(), n_frames=1, exposure_s=1.0, sample=None)
    with pytest.raises(AttributeError):
        step.n_frames = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "key", "value", "allowed"),
    [
        ("[detector]\nexposure = 1", "detector.exposure", "1", "exposure_s"),
        ("[detektor]\n", "detektor", "{}", "detector, source, geometry"),
        ("[geometry]\npitch = 3", "geometry.pitch", "3", "pitch_mm"),
        ("[[calibration.cells]]\nnam = 'x'", "calibration.cells.nam", "'x'", "name, material"),
        ("[detector]\nbias_v = 'high'", "detector.bias_v", "'high'", "a number"),
        ("[scan]\nn_views = 1.5", "scan.n_views", "1.5", "a whole number"),
        ("[detector]\nmode = 3", "detector.mode", "3", "a text in quotes"),
        ("[geometry]\npitch_mm = 0.11", "geometry", "source_to_detector_mm", "a whole section, or none"),
        ("[scan]\nn_views = 0", "n_views", "0", "1 to 100000"),
        ("[scan]\nsample = 'my sample'", "sample", "'my sample'", "no spaces"),
        ("[detector]\nmode = 'color'", "mode", "'color'", "colour-csm, colour-spm, fine-csm, fine-spm"),
        ("[detector]\ngain = 'HIGH'", "gain", "'HIGH'", "SHGM, HGM, LGM, SLGM"),
        ("[detector]\ndepth_bits = 24", "depth_bits", "24", "1, 6, 12"),
        ("[detector]\nexposure_s = -1", "exposure_s", "-1", "1e-06 to 3600 s"),
        ("[detector]\nexposure_s = nan", "exposure_s", "nan", "1e-06 to 3600 s"),
        ("[detector]\nthresholds_kev = [20, 30]", "thresholds_kev", "2", "4"),
        ("[detector]\nthresholds_kev = [20, 30, 25, 40]", "thresholds_kev", "25", "ascending"),
        ("[detector]\narbitration_kev = 40", "arbitration_kev", "40", "18"),
        ("[source]\nkvp = 60", "thresholds_kev", "75", "below source.kvp, 60"),
        ("[source]\nkvp = 1000", "kvp", "1000", "10 to 160 kVp"),
        ("[calibration]\nsources = ['In']", "sources", "'In'", "at least 2"),
        ("[calibration]\ncells = []", "cells", "nothing", "water once"),
        ("detector = 3", "detector", "3", "a section of keys"),
    ],
)
def test_wrong_key_or_value_is_named_with_what_is_allowed(
    tmp_path: Path, text: str, key: str, value: str, allowed: str
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(WrongUsage) as caught:
        load_plan(file)
    message = str(caught.value)
    assert "mine.toml" in message
    for part in (key, value, allowed):
        assert part in message


def test_a_mark_of_the_encoding_is_no_part_of_the_plan(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes(b"\xef\xbb\xbf[scan]\r\nn_views = 10\r\n")
    assert load_plan(file) == Plan(scan=ScanPlan(n_views=10))


@pytest.mark.parametrize("content", [b"[detector\n", b"a = ", b"\xff\xfe"])
def test_what_is_not_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes(content)
    with pytest.raises(WrongUsage, match=r"mine\.toml"):
        load_plan(file)


def test_missing_file_is_refused_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(WrongUsage, match="No such file") as caught:
        load_plan(tmp_path / "none.toml")
    assert "demo.toml" in caught.value.hint


def test_a_solute_needs_a_concentration() -> None:
    with pytest.raises(ValueError, match="concentration_mg_ml"):
        Cell(name="cell", material="iodine")
    with pytest.raises(ValueError, match="each solute once"):
        CalibrationPlan(cells=(Cell(name="a", material="water"), Cell(name="b", material="water")))
