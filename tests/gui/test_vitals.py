"""What the strip says, without a window: words beside moods, units on numbers, ages on what is old, no loss unseen."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acquisition import doctor
from acquisition.beam import SourceState, WarmUp
from acquisition.limits import ENDLESS, UNKNOWN, Limits
from acquisition.runner import RunHealth
from acquisition.steps import Pose
from acquisition.stream import QueueHealth
from firmware_iface.device import DeviceHealth, DeviceInfo, DeviceStatus
from firmware_iface.merlin_device import MerlinInfo, MerlinState, MerlinStatus
from firmware_iface.wire import BoardState, Capability, FaultCode
from gui import vitals
from gui.connect.facts import CAPABILITIES, FARTHEST_MM, axes, board_facts, pose_of, source_facts, where
from gui.rig import RigSnapshot
from gui.state import Link
from gui.vitals import Losses, Mood, Pace, Reading, celsius, device, gigabytes, link_words, readings
from gui.workers import JobSnapshot, JobStatus

HEALTH = DeviceHealth(board_k=308.15, fpga_k=math.nan, sensor_k=303.15, bias_v=-120.4, bias_current_na=55)
STATUS = DeviceStatus(
    state=BoardState.IDLE,
    fault=FaultCode.NONE,
    n_power_ups=1,
    run_id=3,
    n_frames_done=0,
    temperature_k=308.15,
    bias_v=-120.0,
)
INFO = DeviceInfo(
    serial="A1",
    firmware_version=2,
    protocol_version=2,
    n_chips=4,
    layout=(2, 2),
    n_lines=8,
    capabilities=Capability.BIAS | Capability.AUXILIARY_LINE,
)
COUNTS = st.integers(0, 9)
QUEUE = QueueHealth(name="disk", capacity=64, depth=3, high_water=9, oldest_s=0.01, rate_per_s=120.4, n_in=300)


def a_snapshot(**parts: Any) -> RigSnapshot:
    known: dict[str, Any] = {
        "link": Link.READY, "url": "usb:A1", "was_open": True, "info": INFO, "status": STATUS, "health": HEALTH,
        "source": SourceState(is_beam_on=False, is_interlock_closed=True), "pose": Pose(), "asked_s": 100.0,
    }  # fmt: skip
    return RigSnapshot(**(known | parts))


def a_job(done: int = 10, total: int = 100, **parts: Any) -> JobSnapshot:
    known = {"title": "Scan", "status": JobStatus.RUNNING, "stage": "scan", "elapsed_s": 20.0}
    return JobSnapshot(done=done, total=total, **(known | parts))


def a_run(**parts: Any) -> RunHealth:
    return RunHealth(**({"n_frames": 300, "n_lost": 0, "queues": (QUEUE,)} | parts))


def named(now: RigSnapshot, **known: Any) -> dict[str, Reading]:
    keys = ("link", "temperature", "bias", "beam", "rate", "frames", "lost", "waiting", "disk")
    return dict(zip(keys, readings(now, **({"now_s": 100.5} | known)), strict=True))


@given(
    link=st.sampled_from(Link),
    was_open=st.booleans(),
    error=st.sampled_from(["", "the cable is out"]),
    source=st.none() | st.builds(SourceState, is_beam_on=st.none() | st.booleans(), fault=st.sampled_from(["", "arc"])),
    has_status=st.booleans(),
    run=st.none() | st.builds(a_run, n_frames=COUNTS, n_lost=COUNTS, queues=st.sampled_from([(), (QUEUE,)])),
    job=st.none() | st.builds(a_job, done=COUNTS, total=COUNTS),
    free_bytes=st.none() | st.integers(0, 10**14),
)  # fmt: skip
def test_there_is_a_word_and_an_explanation_for_everything_in_every_state(
    link: Link, was_open: bool, error: str, source: Any, has_status: bool, run: Any, job: Any, free_bytes: Any
) -> None:
    now = a_snapshot(
        link=link, was_open=was_open, error=error, source=source, run=run, run_s=None if run is None else 100.0,
        status=STATUS if has_status else None, health=HEALTH if has_status else None,
    )  # fmt: skip
    for reading in readings(now, job=job, free_bytes=free_bytes, now_s=100.0):
        assert reading.name
        assert reading.text
        assert len(reading.text) < 40
        assert reading.tip[0].isupper()


@pytest.mark.parametrize(
    ("parts", "words", "mood"),
    [
        ({"link": Link.NONE}, "not connected", Mood.CALM),
        ({"link": Link.NONE, "error": "no such kind"}, "could not be opened", Mood.BAD),
        ({"link": Link.CONNECTING}, "connecting", Mood.WARN),
        ({"link": Link.READY}, "ready", Mood.GOOD),
        ({"link": Link.BUSY}, "busy", Mood.GOOD),
        ({"link": Link.LOST}, "lost, trying again", Mood.BAD),
        ({"link": Link.LOST, "was_open": False}, "not there yet, trying again", Mood.WARN),
    ],
)
def test_the_link_is_told_in_words(parts: dict[str, Any], words: str, mood: Mood) -> None:
    assert link_words(a_snapshot(**parts)) == (words, mood)


@pytest.mark.parametrize(
    ("url", "info", "name"),
    [
        ("usb:A1", INFO, "USB board A1"),
        ("usb:", None, "USB board"),
        ("sim:demo?seed=2", None, "Simulated demo"),
        ("merlin://lab", MerlinInfo(serial="M7", software_version="1"), "Merlin M7"),
        ("pixet:3", None, "pixet:3 3"),
    ],
)
def test_an_instrument_has_a_name(url: str, info: Any, name: str) -> None:
    assert device(a_snapshot(url=url, info=info)) == name


def test_temperatures_are_in_celsius_and_the_sensor_s_goes_before_the_board_s() -> None:
    assert celsius(273.15) == "0.0 °C"
    assert celsius(None) == celsius(math.nan) == "–"
    assert named(a_snapshot())["temperature"].text == "30.0 °C"
    assert "FPGA" not in named(a_snapshot())["temperature"].tip, "it has no sensor"
    merlin = MerlinStatus(state=MerlinState.IDLE, temperature_k=300.15)
    assert named(a_snapshot(status=merlin, health=None))["temperature"].text == "27.0 °C"
    nothing = MerlinStatus(state=MerlinState.BUSY, temperature_k=None)
    assert named(a_snapshot(status=nothing, health=None))["temperature"].text == "–"


def test_what_is_old_tells_its_age() -> None:
    fresh, old = named(a_snapshot()), named(a_snapshot(), now_s=112.0)
    for key in ("temperature", "bias"):
        assert "ago" not in fresh[key].name
        assert old[key].name.endswith(", 12 s ago")
        assert "12 s ago" in old[key].tip
        assert old[key].mood is Mood.WARN


def test_the_bias_has_its_unit_its_sign_and_its_current() -> None:
    reading = named(a_snapshot())["bias"]
    assert reading.text == "−120 V"
    assert "55 nA" in reading.tip


@pytest.mark.parametrize(
    ("source", "unsafe", "text", "mood"),
    [
        (SourceState(is_beam_on=True), "", "ON", Mood.BEAM),
        (SourceState(is_beam_on=False, is_interlock_closed=True), "", "off", Mood.CALM),
        (SourceState(is_beam_on=False, is_interlock_closed=False), "", "off, open", Mood.WARN),
        (SourceState(is_beam_on=False, fault="arc"), "", "off, fault", Mood.BAD),
        (SourceState(), "", "–", Mood.CALM),
        (None, "", "–", Mood.CALM),
        (None, "the beam may still be on: no answer", "may be ON", Mood.BAD),
        (SourceState(is_beam_on=False), "the stage may still move", "may be ON", Mood.BAD),
    ],
)
def test_the_beam_is_told_by_a_word_and_a_mood(source: Any, unsafe: str, text: str, mood: Mood) -> None:
    reading = named(a_snapshot(source=source, unsafe=unsafe))["beam"]
    assert (reading.text, reading.mood) == (text, mood)
    if unsafe:
        assert unsafe in reading.tip


def test_a_source_that_nobody_can_ask_is_not_called_off() -> None:
    lost = a_snapshot(link=Link.LOST, source=SourceState(is_beam_on=False))
    assert named(lost)["beam"].text == "–"


@given(st.lists(st.lists(st.integers(0, 5), max_size=6).map(sorted), max_size=5), st.integers(0, 20))
def test_no_loss_is_forgotten_and_none_is_counted_twice(runs: list[list[int]], acknowledged_after: int) -> None:
    losses, n_told, n_seen = Losses(), 0, 0
    for told in runs:
        losses.see(a_run(n_lost=0))
        before = 0
        for n_lost in told:
            losses.see(a_run(n_lost=n_lost))
            losses.see(a_run(n_lost=n_lost))
            n_told, before, n_seen = n_told + n_lost - before, n_lost, n_seen + 1
            if n_seen == acknowledged_after:
                losses.acknowledge()
                n_told = 0
            assert losses.n_new == n_told


def test_a_loss_is_an_alarm_until_it_is_acknowledged() -> None:
    losses, now = Losses(), a_snapshot(run=a_run(n_lost=4), run_s=99.0)
    losses.see(now.run)
    assert named(now, losses=losses)["lost"].mood is Mood.BAD
    assert "acknowledge" in named(now, losses=losses)["lost"].tip
    losses.acknowledge()
    reading = named(now, losses=losses)["lost"]
    assert (reading.text, reading.mood) == ("4 (known)", Mood.CALM)


def test_a_run_s_figures_are_shown_while_it_runs_and_an_earlier_run_s_are_not() -> None:
    now = a_snapshot(link=Link.BUSY, run=a_run(), run_s=99.0)
    shown = named(now, job=a_job())
    assert (shown["rate"].text, shown["frames"].text, shown["waiting"].text) == ("120 /s", "300 / 100", "3 / 64")
    assert "at most 9" in shown["waiting"].tip
    for other in (named(now, job=a_job(elapsed_s=1.0)), named(now)):
        assert other["waiting"].text == "–"
        assert other["rate"].text == "–"
    assert named(now, job=a_job(elapsed_s=1.0), pace_per_s=2.5)["rate"].text == "2.5 /s"


def test_a_queue_that_fills_up_is_told() -> None:
    full = QueueHealth(name="disk", capacity=64, depth=60, high_water=60, oldest_s=2, rate_per_s=1, n_in=300)
    now = a_snapshot(run=a_run(queues=(full,)), run_s=100.0)
    assert named(now, job=a_job())["waiting"].mood is Mood.WARN


@pytest.mark.parametrize(
    ("free_bytes", "text", "mood"),
    [
        (None, "–", Mood.CALM),
        (500_000_000, "0.5 GB", Mood.BAD),
        (5_000_000_000, "5.0 GB", Mood.WARN),
        (250_000_000_000, "250 GB", Mood.CALM),
        (3_200_000_000_000, "3.20 TB", Mood.CALM),
    ],
)
def test_the_disk_is_told_with_what_is_too_little(free_bytes: int | None, text: str, mood: Mood) -> None:
    reading = named(a_snapshot(), free_bytes=free_bytes)["disk"]
    assert (reading.text, reading.mood) == (text, mood)


def test_a_slow_disk_is_an_alarm_while_it_matters() -> None:
    now = a_snapshot(run=a_run(alarms=("slow-disk: the disk took 3 s", "lost: frame 3")), run_s=100.0)
    reading = named(now, job=a_job(), free_bytes=10**12)["disk"]
    assert reading.mood is Mood.BAD
    assert "took 3 s" in reading.tip
    assert "frame 3" not in reading.tip


def test_the_limits_of_a_disk_are_the_doctor_s() -> None:
    assert (vitals.LEAST_BYTES, vitals.SCAN_BYTES) == (doctor.LEAST_BYTES, doctor.SCAN_BYTES)
    assert gigabytes(doctor.SCAN_BYTES) == "20.0 GB"


@given(st.floats(0.5, 500), st.floats(0.05, 0.3))
def test_the_pace_of_steady_work_is_its_own(rate_per_s: float, every_s: float) -> None:
    pace, told = Pace(), None
    n_looks = int(6 / every_s)
    for n in range(n_looks):
        told = pace.see(a_job(done=round(rate_per_s * n * every_s), total=0), n * every_s)
    assert told == pytest.approx(rate_per_s, abs=1.01 / 1.5 + 0.02 * rate_per_s)


def test_a_pace_begins_anew_with_every_stage_and_ends_with_the_job() -> None:
    pace = Pace()
    for n in range(40):
        pace.see(a_job(done=n), n / 10)
    assert pace.see(a_job(done=40), 4.0) == pytest.approx(10)
    assert pace.see(a_job(done=0, stage="flats"), 4.1) is None
    assert pace.see(None, 4.2) is None


# The facts


def test_a_board_s_facts_are_told_and_every_capability_has_a_word() -> None:
    facts = dict(board_facts(a_snapshot(chip_ids=("W1_A1", "W1_A2"))))
    assert facts["Serial number"] == "A1"
    assert facts["Chips"] == "4 chips, 2 x 2; 8 data lines each"
    assert facts["Chip ID"] == "W1_A1, W1_A2"
    assert facts["It has"] == "line to stage and tube, bias supply"
    assert facts["Temperatures"] == "sensor 30.0 °C, board 35.0 °C"
    assert facts["Bias"] == "−120.4 V, 55 nA"
    assert {each.name for each in Capability} == set(CAPABILITIES)
    assert board_facts(RigSnapshot()) == []
    faulty = SimpleNamespace(state=BoardState.FAULT, fault=FaultCode.NONE)
    assert dict(board_facts(a_snapshot(status=faulty)))["State"] == "fault"


def test_a_merlin_s_facts_are_told_as_far_as_it_has_them() -> None:
    merlin = a_snapshot(
        info=MerlinInfo(serial="M7", software_version="0.69"),
        status=MerlinStatus(state=MerlinState.IDLE, temperature_k=300.15), health=None,
    )  # fmt: skip
    facts = dict(board_facts(merlin))
    assert (facts["Serial number"], facts["Software"], facts["Temperatures"]) == ("M7", "0.69", "27.0 °C")
    assert "Firmware" not in facts


@pytest.mark.parametrize("lamp", [True, False, None])
@pytest.mark.parametrize("door", [True, False, None])
@pytest.mark.parametrize("warm", [*WarmUp, None])
def test_a_source_is_told_in_words(lamp: bool | None, door: bool | None, warm: WarmUp | None) -> None:
    facts = dict(source_facts(SourceState(is_beam_on=lamp, is_interlock_closed=door, warm_up=warm, kvp=80.0), ""))
    assert facts["Beam"] == {True: "ON", False: "off", None: "it does not tell: rely on the lamp"}[lamp]
    assert facts["Voltage, current"] == "80 kVp, –"
    assert all(facts.values())
    assert dict(source_facts(None, "no line to a gantry")) == {"Source": "no line to a gantry"}


@given(st.floats(-300, 300), st.floats(-40, 40), st.floats(-40, 40))
def test_poses_go_to_people_s_units_and_back(angle_deg: float, lift_mm: float, shift_mm: float) -> None:
    stands, pose = axes(UNKNOWN), pose_of(angle_deg, lift_mm, shift_mm)
    assert [axis.of(pose) for axis in stands] == pytest.approx([angle_deg, lift_mm, shift_mm])
    assert [axis.unit for axis in stands] == ["°", "mm", "mm"]


def test_an_axis_goes_no_farther_than_the_stage_allows_and_never_on_for_ever() -> None:
    limits = Limits(angle_rad=ENDLESS, lift_mm=(-5.0, 60.0))
    angle, lift, shift = axes(limits)
    assert (lift.allowed, lift.is_known) == ((-5, 60), True)
    assert all(map(math.isfinite, angle.allowed))
    assert angle.is_known
    assert (shift.allowed, shift.is_known) == ((-FARTHEST_MM, FARTHEST_MM), False)
    assert not any(axis.is_known for axis in axes(None))


def test_a_place_is_told_with_its_units() -> None:
    assert where(pose_of(-90.0, 1.5, 0.0)) == "−90.00°, lift 1.50 mm, shift 0.00 mm"
    assert where(None) == "–"
