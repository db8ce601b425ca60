"""The gantry's line: what is asked is what is sent, and what comes back is believed only when it makes sense."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acquisition.gantry import LineGantry
from acquisition.steps import Pose
from firmware_iface.errors import Disconnected, OurMistake, TheirMistake, WrongUsage


class Controller:
    """A controller that answers from a table and remembers what it was told."""

    def __init__(self, **answers: str) -> None:
        self.lines: list[str] = []
        self.answers = {"SAMP:LIST?": "vials,cell-water", "SOUR:LIST?": "TUBE,Am-241", **answers}

    def __call__(self, line: str) -> str:
        self.lines.append(line)
        return self.answers.get(line, "OK")


@pytest.fixture
def controller() -> Controller:
    return Controller()


def test_commands_are_the_lines_of_the_protocol(controller: Controller) -> None:
    gantry = LineGantry(controller)
    gantry.move_to(Pose(angle_rad=math.pi / 2))
    gantry.select_sample("vials")
    gantry.select_sample(None)
    gantry.select_source("Am-241")
    gantry.set_tube(118.0, 0.01)
    gantry.beam(True)
    gantry.beam(False)
    assert controller.lines == [
        "ROT 90", "SAMP vials", "SAMP OUT", "SOUR Am-241", "TUBE 118 0.01", "BEAM ON", "BEAM OFF",
    ]  # fmt: skip


def test_questions_are_answered_in_our_units() -> None:
    gantry = LineGantry(Controller(**{"*IDN?": "turntable 2", "ROT?": "180.0", "SAMP?": "OUT", "SOUR?": "TUBE"}))
    assert gantry.identity == "turntable 2"
    assert gantry.angle_rad == pytest.approx(math.pi)
    assert gantry.sample is None
    assert gantry.source == "TUBE"
    assert gantry.samples() == ("vials", "cell-water")
    assert gantry.sources() == ("TUBE", "Am-241")


@given(st.floats(-1e3, 1e3))
def test_angles_go_over_the_line_without_loss(angle_rad: float) -> None:
    controller = Controller()
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
        _ = LineGantry(Controller(**{"ROT?": answer})).angle_rad


@pytest.mark.parametrize("name", ["", "two words", "a,b", "a\nBEAM ON", "a?"])
def test_names_cannot_smuggle_commands(controller: Controller, name: str) -> None:
    with pytest.raises(WrongUsage, match="one word"):
        LineGantry(controller).select_sample(name)
    assert not controller.lines


def test_infinite_angle_is_refused(controller: Controller) -> None:
    with pytest.raises(WrongUsage):
        LineGantry(controller).move_to(Pose(angle_rad=math.inf))
    assert not controller.lines


def test_shut_down_switches_the_beam_off_and_never_raises(controller: Controller) -> None:
    LineGantry(controller).shut_down()
    assert controller.lines == ["BEAM OFF"]

    def broken(line: str) -> str:
        raise Disconnected(f"gone before {line}")

    LineGantry(broken).shut_down()
