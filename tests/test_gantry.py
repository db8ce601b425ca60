"""The gantry's line: what is asked is what is sent, and what comes back is believed only when it makes sense."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acquisition.beam import SourceState, WarmUp, expect_shining
from acquisition.gantry import list_gantries, open_gantry
from acquisition.limits import Limits
from acquisition.line_gantry import LineGantry
from acquisition.motion import move_time_s
from acquisition.steps import Pose
from firmware_iface.errors import (
    BeamRefused,
    Disconnected,
    OurMistake,
    StageStuck,
    TheirMistake,
    TubeTripped,
    WrongUsage,
)


class Controller:
    """A controller that answers from a table and remembers what it was told."""

    def __init__(self, **answers: str) -> None:
        self.lines: list[str] = []
        self.answers = {
            "SAMP:LIST?": "vials,cell-water", "SOUR:LIST?": "TUBE,Am-241", "ROT?": "0", "LIFT?": "0",
            "SHIFT?": "ERR no axis",
            "BUSY?": "0", "LIMITS?": "ERR no command", "TUBE:STATE?": "ERR no command", **answers,
        }  # fmt: skip

    def __call__(self, line: str) -> str:
        if not line.endswith("?"):
            self.lines.append(line)
        return self.answers.get(line, "OK")


@pytest.fixture
def controller() -> Controller:
    return Controller()


def test_commands_are_the_lines_of_the_protocol(controller: Controller) -> None:
    gantry = LineGantry(controller)
    controller.answers |= {"ROT?": "90", "LIFT?": "2.5"}
    gantry.move_to(Pose(angle_rad=math.pi / 2, lift_mm=2.5))
    gantry.move_to(Pose(angle_rad=math.pi / 2, lift_mm=2.5))
    gantry.sweep(Pose(angle_rad=math.pi / 2, lift_mm=2.5), Pose(angle_rad=math.pi, lift_mm=3.5), 10, 2.0)
    gantry.halt()
    gantry.clear_fault()
    gantry.select_sample("vials")
    gantry.select_sample(None)
    gantry.select_source("Am-241")
    gantry.set_tube(118.0, 0.01)
    gantry.beam(True)
    gantry.beam(False)
    assert controller.lines == [
        "ROT 90", "ROT 90", "ROT 90", "ROT:SWEEP 180 3.5 0 10 2", "STOP", "TUBE:CLEAR",
        "SAMP vials", "SAMP OUT", "SOUR Am-241", "TUBE 118 0.01", "BEAM ON", "BEAM OFF",
    ]  # fmt: skip


def test_questions_are_answered_in_our_units() -> None:
    gantry = LineGantry(Controller(**{"*IDN?": "turntable 2", "ROT?": "180.0", "SAMP?": "OUT", "SOUR?": "TUBE"}))
    assert gantry.identity == "turntable 2"
    assert gantry.pose == Pose(angle_rad=pytest.approx(math.pi))
    assert gantry.sample is None
    assert gantry.source == "TUBE"
    assert gantry.samples() == ("vials", "cell-water")
    assert gantry.sources() == ("TUBE", "Am-241")


@given(st.floats(-1e3, 1e3))
def test_angles_go_over_the_line_without_loss(angle_rad: float) -> None:
    controller = Controller(**{"ROT?": repr(math.degrees(angle_rad))})
    LineGantry(controller).move_to(Pose(angle_rad=angle_rad))
    assert math.radians(float(controller.lines[0].removeprefix("ROT "))) == pytest.approx(angle_rad, abs=1e-6)


def test_refusal_carries_the_controllers_words_and_the_alternatives() -> None:
    gantry = LineGantry(Controller(**{"SAMP bone": "ERR no such sample"}))
    with pytest.raises(OurMistake, match="no such sample") as caught:
        gantry.select_sample("bone")
    assert "vials, cell-water" in caught.value.hint


@pytest.mark.parametrize("answer", ["", "yes", "OK?", "okay"])
def test_senseless_answer_is_their_mistake(answer: str) -> None:
    with pytest.raises(TheirMistake):
        LineGantry(Controller(**{"BEAM ON": answer})).beam(True)


@pytest.mark.parametrize("answer", ["", "north", "nan", "OK"])
def test_angle_that_is_no_number_is_their_mistake(answer: str) -> None:
    with pytest.raises(TheirMistake):
        _ = LineGantry(Controller(**{"ROT?": answer})).pose


@pytest.mark.parametrize("name", ["", "two words", "a,b", "a\nBEAM ON", "a?"])
def test_names_cannot_smuggle_commands(controller: Controller, name: str) -> None:
    with pytest.raises(WrongUsage, match="one word"):
        LineGantry(controller).select_sample(name)
    assert not controller.lines


def test_infinite_angle_is_refused(controller: Controller) -> None:
    with pytest.raises(WrongUsage):
        LineGantry(controller).move_to(Pose(angle_rad=math.inf))
    assert not controller.lines


def test_an_axis_that_is_not_there_is_not_moved(controller: Controller) -> None:
    with pytest.raises(WrongUsage, match="no SHIFT"):
        LineGantry(controller).move_to(Pose(shift_mm=3.0))
    assert "SHIFT 3" not in controller.lines


def test_a_pose_beyond_the_limits_is_refused_before_anything_moves() -> None:
    controller = Controller(**{"LIMITS?": "ROT -180 180 30,LIFT 0 20 5,SETTLE 0.1,KVP 20 120,MA 0 1,POWER 60"})
    gantry = LineGantry(controller)
    assert gantry.limits() == Limits(
        angle_rad=(-math.pi, math.pi), speed_rad_s=pytest.approx(math.pi / 6), lift_mm=(0, 20), lift_speed_mm_s=5,
        settle_s=0.1, kvp=(20, 120), current_ma=(0, 1), power_w=60,
    )  # fmt: skip
    for pose in (Pose(angle_rad=4.0), Pose(lift_mm=-0.1)):
        with pytest.raises(WrongUsage, match="the stage allows"):
            gantry.move_to(pose)
    assert not controller.lines


@pytest.mark.parametrize("answer", ["ROT 1", "KVP a b", "SETTLE", "LIFT 5 1 1"])
def test_senseless_limits_are_their_mistake(answer: str) -> None:
    with pytest.raises(TheirMistake):
        LineGantry(Controller(**{"LIMITS?": answer})).limits()


def test_a_stage_that_stands_elsewhere_is_stuck_and_halted() -> None:
    controller = Controller(**{"ROT?": "29.9"})
    with pytest.raises(StageStuck, match=r"stands at 0\.52"):
        LineGantry(controller).move_to(Pose(angle_rad=math.radians(30)))
    assert controller.lines == ["ROT 30", "STOP"]


def test_a_stage_that_never_arrives_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acquisition.motion.MARGIN_S", 0.05)
    controller = Controller(**{"BUSY?": "1", "LIMITS?": "ROT -inf inf 1e6"})
    with pytest.raises(StageStuck, match="still moves"):
        LineGantry(controller).move_to(Pose(angle_rad=1.0))
    assert controller.lines[-1] == "STOP"


def test_an_alarm_while_it_moves_is_told_in_its_own_words() -> None:
    with pytest.raises(StageStuck, match="limit switch"):
        LineGantry(Controller(**{"BUSY?": "ERR limit switch"})).move_to(Pose(angle_rad=1.0))


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("LAMP OFF,INTERLOCK OPEN,WARM READY,FAULT NONE", "interlock is open"),
        ("LAMP OFF,INTERLOCK CLOSED,WARM NEEDED,FAULT NONE", "warmed up"),
        ("LAMP OFF,INTERLOCK CLOSED,WARM 0.25,FAULT NONE", "25% done"),
        ("LAMP OFF,INTERLOCK CLOSED,WARM READY,FAULT arc at 118 kV", "arc at 118 kV"),
    ],
)
def test_a_source_that_may_not_shine_is_not_told_to(state: str, words: str) -> None:
    controller = Controller(**{"TUBE:STATE?": state})
    with pytest.raises(BeamRefused, match=words) as refused:
        LineGantry(controller).beam(True)
    assert refused.value.hint
    assert not controller.lines


def test_a_lamp_that_does_not_follow_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acquisition.beam.LAMP_S", 0.05)
    for is_on, lamp, words in ((True, "OFF", "stays dark"), (False, "ON", "still lit")):
        gantry = LineGantry(Controller(**{"TUBE:STATE?": f"LAMP {lamp},INTERLOCK CLOSED,WARM READY,FAULT NONE"}))
        with pytest.raises(BeamRefused, match=words):
            gantry.beam(is_on)


@pytest.mark.parametrize("state", ["LAMP MAYBE", "WARM tepid", "INTERLOCK"])
def test_a_senseless_state_is_their_mistake(state: str) -> None:
    with pytest.raises(TheirMistake):
        LineGantry(Controller(**{"TUBE:STATE?": state})).source_state()


def test_what_shone_and_does_not_has_tripped() -> None:
    expect_shining(SourceState())  # it says nothing, and nothing is known
    expect_shining(SourceState(is_beam_on=True, is_interlock_closed=True, warm_up=WarmUp.READY))
    for state in (SourceState(is_beam_on=False), SourceState(is_beam_on=True, fault="arc"),
                  SourceState(is_interlock_closed=False)):  # fmt: skip
        with pytest.raises(TubeTripped):
            expect_shining(state)


def test_shut_down_switches_the_beam_off_and_never_raises(controller: Controller) -> None:
    assert LineGantry(controller).shut_down() == ""
    assert controller.lines == ["BEAM OFF"]

    def broken(line: str) -> str:
        raise Disconnected(f"gone before {line}")

    assert "gone before BEAM OFF" in LineGantry(broken).shut_down()


def test_shut_down_asks_the_board_first(controller: Controller) -> None:
    asked: list[bool] = []

    def knows() -> bool:
        asked.append(True)
        return True

    assert LineGantry(controller, make_safe=knows).shut_down() == ""
    assert (asked, controller.lines) == ([True], [])
    assert LineGantry(controller, make_safe=lambda: False).shut_down() == ""
    assert controller.lines == ["BEAM OFF"]


def test_moves_are_timed_by_the_slowest_axis() -> None:
    limits = Limits(speed_rad_s=0.5, lift_speed_mm_s=2.0, settle_s=0.25)
    assert move_time_s(limits, Pose(), Pose(angle_rad=1.0, lift_mm=1.0)) == 2.25
    assert move_time_s(limits, Pose(), Pose()) == 0.0
    assert move_time_s(limits, Pose(), Pose(shift_mm=1.0)) is None
    assert limits.or_else(Limits(settle_s=9.0, power_w=10.0)) == replace(limits, power_w=10.0)


def test_gantries_are_found_by_their_scheme() -> None:
    detector = SimpleNamespace(auxiliary=Controller())
    whole = open_gantry(detector)
    assert isinstance(whole, LineGantry)
    with pytest.raises(WrongUsage, match="known schemes: gcode, line, scpi"):
        open_gantry(detector, "teapot:")
    with pytest.raises(WrongUsage, match="no detector"):
        open_gantry(None)
    assert {"line:", "gcode:PORT", "scpi:PORT"} <= set(list_gantries())
