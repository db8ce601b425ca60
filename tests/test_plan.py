"""Plans: what a file says is what is done, and what cannot be done is refused by name."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acquisition import plan as plans
from acquisition.dry_run import describe, figures
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
    refuse_foreign_pixels,
)
from acquisition.scan_plan import AnyScan, Kind, ThresholdScanPlan, Turning
from acquisition.steps import Pose, Step, StepKind, check, cost, expand
from firmware_iface.errors import WrongUsage
from tests.scan_kinds import all_scans, plan_of

ROOT = Path(__file__).resolve().parents[1]

DEMO = Path(plans.__file__).parent / "plans" / "demo.toml"
EXAMPLES = sorted(DEMO.parent.glob("*.toml"))

valid_plans = st.builds(
    Plan,
    detector=st.builds(
        DetectorPlan,
        thresholds_kev=st.lists(st.floats(8, 99), min_size=4, max_size=4, unique=True).map(lambda e: tuple(sorted(e))),
        arbitration_kev=st.floats(1, 8),
        exposure_s=st.floats(1e-6, 3600),
    ),
    source=st.builds(SourcePlan, kvp=st.floats(100, 160), current_ma=st.floats(0, 1000)),
    scan=all_scans.filter(lambda scan: not isinstance(scan, ThresholdScanPlan) and not getattr(scan, "passes_kev", ())),
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


@given(all_scans)
@settings(max_examples=100, deadline=None)
def test_every_kind_of_scan_comes_back_from_toml_and_json(scan: Kind) -> None:
    plan = plan_of(scan)
    assert plan_from_toml(plan_to_toml(plan)) == plan
    assert msgspec.json.decode(plan_to_json(plan), type=Plan) == plan
    assert f'kind = "{scan.kind}"' in plan_to_toml(plan)


def test_a_scan_without_a_kind_is_circular() -> None:
    assert plan_from_toml("[scan]\nn_views = 10").scan == ScanPlan(n_views=10)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_loads_expands_and_is_told(path: Path) -> None:
    plan = load_plan(path)
    refuse_foreign_pixels(plan)
    assert plan_from_toml(plan_to_toml(plan)) == plan
    assert sum(step.n_frames for step in expand(plan)) == figures(plan)["n_frames"]
    assert plan.scan.kind in describe(plan)
    assert check(plan) == []


def test_documentation_names_the_keys_of_every_kind() -> None:
    text = (DEMO.parent.parent / "PLANS.md").read_text()
    of_all = set(msgspec.structs.asdict(Turning()))
    for kind in get_args(AnyScan):
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{kind().kind}` |")]
        keys = {field.name for field in msgspec.structs.fields(kind)}
        wanted = keys - of_all if issubclass(kind, Turning) else keys
        assert set(re.findall(r"`(\w+)`", row.split("|")[3])) == wanted
    (row,) = [line for line in text.splitlines() if line.startswith("All that turn have")]
    assert set(re.findall(r"`(\w+)`", row)) == of_all


def test_the_documented_python_works(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (DEMO.parent.parent / "PLANS.md").read_text(), flags=re.DOTALL)
    found: dict[str, Any] = {}
    exec(code, found)
    assert plan_from_toml(found["text"]) == found["plan"]
    assert "30.4 mm across" in capsys.readouterr().out
    assert len(found["steps"]) == 3 * (720 + 720 // 30 + 1)


def test_there_is_an_example_of_each_kind_that_needs_one() -> None:
    kinds = {load_plan(path).scan.kind for path in EXAMPLES}
    assert kinds == {"circular", "continuous", "helical", "threshold-scan"}


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
        ("scan = 3", "scan", "3", "a section of keys"),
        ("[detector]\naccumulate = 0", "accumulate", "0", "1 to 10000"),
        ("[scan]\nkind = 'spiral'", "scan.kind", "'spiral'", "circular, continuous, helical, snap"),
        ("[scan]\nkind = 3", "scan.kind", "3", "circular, continuous, helical, snap"),
        ("[scan]\npitch_mm = 3", "scan.pitch_mm", "3", "n_views, arc_deg"),
        ("[scan]\nkind = 'snap'\nn_frames = 3", "scan.n_frames", "kind 'snap'", "allowed: kind, sample"),
        ("[scan]\nkind = 'live'\nn_flats = 3", "scan.n_flats", "kind 'live'", "allowed: kind, sample"),
        ("[scan]\nkind = 'continuous'\nframes_per_view = 2", "scan.frames_per_view", "2", "period_s, trigger"),
        ("[scan]\nkind = 'continuous'\ntile_order = 'view'", "scan.tile_order", "'view'", "shifts_mm"),
        ("[scan]\nkind = 'helical'\narc_deg = 180", "scan.arc_deg", "180", "length_mm, pitch_mm"),
        ("[scan]\nkind = 'helical'\nperiod_s = 2", "period_s", "2", 'motion = "continuous" only'),
        ("[scan]\nkind = 'helical'\ntrigger = 'falling-ttl'", "trigger", "falling", 'motion = "continuous" only'),
        (
            "[scan]\nkind = 'helical'\nmotion = 'continuous'\nframes_per_view = 2",
            "frames_per_view",
            "2",
            'with motion = "continuous": 1',
        ),
        ("[scan]\nkind = 'helical'\nlength_mm = 9999\npitch_mm = 1", "number of views", "3600000", "1 to 1e+06"),
        ("[scan]\nkind = 'threshold-scan'\nstop_kev = 150", "highest threshold", "207", "1 to 200 keV"),
        ("[scan]\nkind = 'helical'\nmotion = 'jump'", "motion", "'jump'", "step, continuous"),
        ("[scan]\nkind = 'helical'\npitch_mm = 30", "scan.pitch_mm", "30", "mm a turn, by the camera's height"),
        ("[scan]\nkind = 'helical'\nshifts_mm = [4.0]", "scan.shifts_mm", "[4.0]", "as far to one side as the other"),
        ("[scan]\nkind = 'burst'\ntrigger = 'ttl'", "trigger", "'ttl'", "rising-ttl, falling-ttl, rising-lvds"),
        ("[scan]\nkind = 'flats'\nsample = 'vials'", "scan.sample", "'vials'", "allowed: kind, n_flats"),
        ("[scan]\nkind = 'threshold-scan'\nstop_kev = 5", "stop_kev", "5", "from start_kev on"),
        ("[scan]\nkind = 'threshold-scan'\nstep_kev = 0.01", "step_kev", "0.01", "up to 1000"),
        ("[scan]\nkind = 'threshold-scan'\nthreshold = 2", "scan.threshold", "2", "all, 1, 3, 5, 7"),
        ("[scan]\nkind = 'threshold-scan'\nthreshold = 'low'", "scan.threshold", "'low'", "all, 1, 3, 5, 7"),
        ("[scan]\nkind = 'threshold-scan'\nstart_kev = 5", "detector.arbitration_kev", "7", "1 to 5 keV"),
        ("[scan]\nshifts_mm = []", "shifts_mm", "[]", "one position or more"),
        ("[scan]\nshifts_mm = [0, -10]", "shifts_mm", "[0.0, -10.0]", "ascending"),
        ("[scan]\nshifts_mm = [0, 20]", "shifts_mm", "0 and 20", "less than 14.08 mm apart"),
        ("[scan]\nshifts_mm = [9]", "shifts_mm", "[9.0]", "see the axis of rotation"),
        ("[scan]\nshifts_mm = [6]\narc_deg = 200", "scan.arc_deg", "200", "360 or more"),
        ("[scan]\npasses_kev = [[10, 20]]", "scan.passes_kev", "2 values", "colour-csm takes 4"),
        ("[scan]\npasses_kev = [[10, 20, 15, 30]]", "scan.passes_kev", "15", "ascending"),
        ("[scan]\npasses_kev = [[20, 30, 40, 130]]", "scan.passes_kev", "130", "below source.kvp"),
        ("[scan]\npasses_kev = [[5, 30, 40, 50]]", "arbitration_kev", "7", "lowest of scan.passes_kev"),
        ("[scan]\npasses_kev = [20, 30, 40, 50]", "passes_kev", "20", "a list"),
        ("[scan]\npass_order = 'tile'", "pass_order", "'tile'", "scan, view"),
        ("[scan]\ntile_order = 'scan'", "tile_order", "'scan'", "tile, view"),
        ("[scan]\ndirection = 'back'", "direction", "'back'", "both, forward"),
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


def test_threads_may_read_their_first_plans_at_once() -> None:
    """It crashed half of all processes in which two threads did: a window reads one while a file is opened."""
    code = (
        "import sys, threading; sys.setswitchinterval(1e-6); from acquisition.plan import plan_from_toml;"
        "go = threading.Barrier(4); n = [];"
        "read = lambda: (go.wait(), n.append(plan_from_toml('[scan]\\nn_views = 12').scan.views));"
        "threads = [threading.Thread(target=read) for _ in range(4)];"
        "[one.start() for one in threads]; [one.join() for one in threads]; print(n)"
    )
    for _ in range(4):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
        assert done.stdout.strip() == "[12, 12, 12, 12]"
