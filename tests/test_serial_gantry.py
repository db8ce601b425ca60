"""Stages and tubes on serial ports, against simulated peers on pseudo-terminals that are slow, garbled, cut, silent."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from acquisition.beam import WarmUp
from acquisition.gantry import PartsGantry, open_gantry
from acquisition.gcode_stage import GcodeStage, open_gcode
from acquisition.scpi_tube import ScpiTube, load_dialect, open_scpi
from acquisition.steps import Pose
from firmware_iface.errors import (
    BeamRefused,
    Disconnected,
    MpxctError,
    OurMistake,
    StageStuck,
    TheirMistake,
    TransportTimeout,
    WrongUsage,
)
from tests.serial_peers import GrblPeer, MarlinPeer, Mover, Peer, TubePeer

AXES = "rot=X&lift=Z"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acquisition.gcode.GREETING_S", 0.3)
    monkeypatch.setattr("acquisition.beam.LAMP_S", 0.2)


@pytest.fixture
def grbl() -> Iterator[GrblPeer]:
    yield from served(GrblPeer())


@pytest.fixture
def tube_peer() -> Iterator[TubePeer]:
    yield from served(TubePeer())


def served(peer: Peer) -> Iterator[Peer]:
    yield peer
    peer.close()


def stage_on(peer: Mover, options: str = AXES) -> GcodeStage:
    dialect = "marlin" if isinstance(peer, MarlinPeer) else "grbl"
    stage = open_gcode(f"{peer.path}?dialect={dialect}&{options}")
    stage._line.timeout_s = 0.5
    return stage


@pytest.mark.parametrize("kind", [GrblPeer, MarlinPeer])
def test_a_stage_goes_where_it_is_sent(kind: type[Mover]) -> None:
    for peer in served(kind()):
        stage = stage_on(peer)
        stage.move_to(Pose(angle_rad=math.pi / 2, lift_mm=3.0))
        assert stage.pose == Pose(angle_rad=pytest.approx(math.pi / 2), lift_mm=pytest.approx(3.0))
        assert (peer.place["X"], peer.place["Z"]) == (90.0, 3.0)
        assert stage.limits().speed_rad_s == pytest.approx(math.radians(2000))
        assert stage.limits().lift_speed_mm_s == pytest.approx(1000)
        stage.close()


@pytest.mark.parametrize("kind", [GrblPeer, MarlinPeer])
def test_a_stage_halts_on_its_way(kind: type[Mover]) -> None:
    for peer in served(kind()):
        peer.units_per_s = 100.0
        stage = stage_on(peer, f"{AXES}&pulses=encoder")
        stage.sweep(Pose(), Pose(angle_rad=math.pi), 90, 2.0)
        assert any(line.startswith("G1 X180.00000 Z0.00000 F5400") for line in peer.heard)
        time.sleep(0.1)
        stage.halt()
        stands_rad = stage.pose.angle_rad
        assert 0 < stands_rad < 0.9 * math.pi
        time.sleep(0.1)
        assert stage.pose.angle_rad == stands_rad
        stage.move_to(Pose())
        stage.close()


def test_without_pulses_there_is_no_sweep(grbl: GrblPeer) -> None:
    stage = stage_on(grbl)
    with pytest.raises(WrongUsage, match="no pulses"):
        stage.sweep(Pose(), Pose(angle_rad=1.0), 10, 1.0)
    stage.close()


def test_limits_of_the_address_hold_and_missing_axes_are_told(grbl: GrblPeer) -> None:
    stage = stage_on(grbl, "range_deg=-90:90")
    n_heard = len(grbl.heard)
    for pose, words in ((Pose(angle_rad=2.0), "allows"), (Pose(lift_mm=1.0), "no such axis")):
        with pytest.raises(WrongUsage, match=words):
            stage.move_to(pose)
    assert len(grbl.heard) == n_heard
    stage.close()


def test_an_alarm_is_told_and_homing_ends_it(grbl: GrblPeer) -> None:
    grbl.units_per_s = 50.0
    stage = stage_on(grbl)
    threading.Timer(0.2, grbl.trip, ("1",)).start()
    with pytest.raises(StageStuck, match="limit switch was hit") as told:
        stage.move_to(Pose(angle_rad=math.pi))
    assert "home" in told.value.hint
    with pytest.raises(StageStuck):
        stage.move_to(Pose())
    stage.close()
    with pytest.raises(StageStuck, match="in alarm"):
        stage_on(grbl)
    stage = stage_on(grbl, f"{AXES}&home=1")
    stage.move_to(Pose(angle_rad=0.1))
    stage.close()


def test_a_reset_in_the_middle_is_not_taken_for_an_arrival(grbl: GrblPeer) -> None:
    grbl.units_per_s = 50.0
    stage = stage_on(grbl)
    threading.Timer(0.2, grbl.reset).start()
    with pytest.raises(StageStuck, match="started again"):
        stage.move_to(Pose(angle_rad=math.pi))
    stage.close()


def test_a_stage_that_sticks_is_seen(grbl: GrblPeer) -> None:
    stage = stage_on(grbl)
    grbl.sticks_at = 30.0
    with pytest.raises(StageStuck, match=r"stands at 0\.52"):
        stage.move_to(Pose(angle_rad=math.pi / 2))
    stage.close()


def cut(number: int, line: str) -> str:
    return line[: len(line) // 2] if number % 2 else line


def garbled(number: int, line: str) -> str:
    return line if line == "ok" or number % 3 == 2 else line.replace("|", "\xff", 1)


def test_garbled_reports_are_asked_for_again(grbl: GrblPeer) -> None:
    stage = stage_on(grbl)
    grbl.mangle = garbled
    for angle_rad in (0.5, 1.0, 0.2):
        stage.move_to(Pose(angle_rad=angle_rad))
    assert grbl.place["X"] == pytest.approx(math.degrees(0.2), abs=1e-4)
    stage.close()


@pytest.mark.parametrize(
    "mangle", [cut, lambda number, line: None, lambda number, line: "\xfe\xff"], ids=("cut", "silent", "noise")
)
def test_a_line_that_carries_no_sense_ends_in_an_error(
    grbl: GrblPeer, mangle: Callable[[int, str], str | None]
) -> None:
    stage = stage_on(grbl)
    grbl.mangle = mangle  # type: ignore[assignment]
    began_s = time.monotonic()

    def move_on() -> None:
        for n in range(20):
            stage.move_to(Pose(angle_rad=n / 10))

    with pytest.raises((TheirMistake, TransportTimeout, StageStuck)):
        move_on()
    assert time.monotonic() - began_s < 10
    stage.close()


def test_slow_answers_are_waited_for(grbl: GrblPeer) -> None:
    stage = stage_on(grbl)
    grbl.delay_s = 0.1
    stage.move_to(Pose(angle_rad=0.3))
    stage.close()


def test_a_port_that_goes_away_is_told() -> None:
    peer = GrblPeer()
    stage = stage_on(peer)
    peer.close()
    with pytest.raises((Disconnected, TransportTimeout)):
        stage.move_to(Pose(angle_rad=0.3))
    stage.close()


def test_a_silent_port_is_no_stage() -> None:
    for peer in served(GrblPeer()):
        peer.mangle = lambda number, line: None  # type: ignore[assignment]
        with pytest.raises(TransportTimeout, match="did not answer"):
            open_gcode(peer.path)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("", "no serial port"), ("PORT?speed=1", "unknown option"), ("PORT?baud=fast", "whole number"),
        ("PORT?dialect=brl", "grbl, marlin"), ("PORT?rot=Q", "XYZABC"), ("PORT?rot=X&lift=X", "of its own"),
        ("PORT?range_deg=9", "LOW:HIGH"), ("PORT?home=maybe", "0, 1"), ("PORT?settle_s=-1", "0 or more"),
    ],
)  # fmt: skip
def test_addresses_are_checked_before_the_port_is_opened(address: str, words: str) -> None:
    with pytest.raises(WrongUsage, match=words):
        open_gcode(address)


def test_a_port_that_is_not_there_says_what_to_do() -> None:
    with pytest.raises(Disconnected, match="does not open") as told:
        open_gcode("/dev/no-such-port")
    assert "dialout" in told.value.hint


# The tube


def tube_on(peer: TubePeer, options: str = "") -> ScpiTube:
    tube = open_scpi(f"{peer.path}{options}")
    tube._line.timeout_s, tube._poll_s = 0.3, 0.01
    return tube


def test_a_tube_is_set_switched_and_read_back(tube_peer: TubePeer) -> None:
    tube = tube_on(tube_peer)
    assert tube.identity == "tubes,t1,0,1"
    tube.set_tube(118.0, 0.25)
    tube.beam(True)
    state = tube.source_state()
    assert (state.kvp, state.current_ma) == (pytest.approx(118), pytest.approx(0.25))
    assert (state.is_beam_on, state.is_interlock_closed, state.warm_up, state.fault) == (True, True, WarmUp.READY, "")
    tube.beam(False)
    assert tube_peer.is_on is False
    tube.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"interlock": "OPEN"}, "interlock is open"), ({"warm": "NEEDED"}, "warmed up"),
        ({"fault": "ARC"}, "ARC"), ({"lamp": "OFF"}, "stays dark"),
    ],
)  # fmt: skip
def test_a_tube_that_may_not_shine_says_why(tube_peer: TubePeer, change: dict[str, str], words: str) -> None:
    tube = tube_on(tube_peer)
    vars(tube_peer).update(change)
    with pytest.raises(BeamRefused, match=words):
        tube.beam(True)
    tube.close()


def test_a_cold_tube_warms_up_and_a_fault_is_cleared(tube_peer: TubePeer) -> None:
    tube = tube_on(tube_peer)
    tube_peer.warm, tube_peer.fault = "NEEDED", "ARC"
    tube.clear_fault()
    assert [progress.done for progress in tube.warm_up()] == [50, 100]
    tube.beam(True)
    tube.close()


def test_a_refused_value_is_told_in_the_tubes_words(tube_peer: TubePeer) -> None:
    tube = tube_on(tube_peer)
    with pytest.raises(OurMistake, match="Data out of range"):
        tube.set_tube(150.0, 0.1)
    with pytest.raises(WrongUsage, match="there is TUBE"):
        tube.select_source("Am-241")
    tube.close()


@pytest.mark.parametrize(
    "mangle",
    [lambda n, line: None, lambda n, line: "\xfe" + line, lambda n, line: "perhaps"],
    ids=("silent", "noise", "words"),
)
def test_a_tube_that_makes_no_sense_is_an_error_and_goes_dark(
    tube_peer: TubePeer, mangle: Callable[[int, str], str | None]
) -> None:
    tube = tube_on(tube_peer)
    tube.beam(True)
    tube_peer.mangle = mangle  # type: ignore[assignment]
    with pytest.raises((TheirMistake, TransportTimeout)):
        tube.source_state()
    began_s = time.monotonic()
    with pytest.raises(MpxctError):
        tube.beam(False)
    deadline_s = began_s + 1
    while tube_peer.is_on and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert tube_peer.is_on is False
    tube.close()


def test_beam_off_does_not_wait_for_another_answer(tube_peer: TubePeer) -> None:
    tube = tube_on(tube_peer)
    tube.beam(True)
    tube._line.timeout_s = 3.0
    with tube._line.lock:  # as who waits for an answer
        going_dark = threading.Thread(target=tube.beam, args=(False,))
        going_dark.start()
        deadline_s = time.monotonic() + 1
        while tube_peer.is_on and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert tube_peer.is_on is False
    going_dark.join()
    tube.close()


def test_another_tube_is_another_file(tube_peer: TubePeer, tmp_path: Path) -> None:
    generic = Path(__file__).parent.parent / "acquisition" / "tubes" / "generic.toml"
    other = tmp_path / "other.toml"
    text = (
        generic.read_text()
        .replace('interlock = "OUTP:INT?"', 'interlock = ""')
        .replace("highest_kvp = 0.0", "highest_kvp = 90.0")
    )
    other.write_text(text)
    tube = tube_on(tube_peer, f"?dialect={other}")
    assert tube.source_state().is_interlock_closed is None
    assert tube.limits().kvp == (0.0, 90.0)
    with pytest.raises(WrongUsage, match="allows 0 to 90"):
        tube.set_tube(100.0, 0.1)
    tube.close()
    for wrong, words in (
        (text + "colour = 1\n", "unknown field"),
        (text.replace('"VOLT {:.6g}"', '"VOLT {x}"'), "cannot be"),
    ):
        other.write_text(wrong)
        with pytest.raises(WrongUsage, match=words):
            load_dialect(str(other))
    with pytest.raises(WrongUsage, match="no dialect"):
        load_dialect("nothing")


# The gantry of both


def test_parts_make_a_gantry_that_shuts_down_dark_and_standing(grbl: GrblPeer, tube_peer: TubePeer) -> None:
    gantry = open_gantry(SimpleNamespace(), f"gcode:{grbl.path}?{AXES}&pulses=encoder", f"scpi:{tube_peer.path}")
    assert isinstance(gantry, PartsGantry)
    assert gantry.samples() is None
    gantry.select_sample("whatever is in there")
    assert gantry.limits().speed_rad_s == pytest.approx(math.radians(2000))
    grbl.units_per_s = 20.0
    gantry.set_tube(60.0, 0.1)
    gantry.beam(True)
    gantry.sweep(Pose(), Pose(angle_rad=math.pi), 10, 9.0)
    began_s = time.monotonic()
    assert gantry.shut_down() == ""
    assert time.monotonic() - began_s < 1.0
    assert not tube_peer.is_on
    assert not grbl.is_moving
    assert gantry.pose.angle_rad < 1.0
    tube_peer.mangle = lambda number, line: None  # type: ignore[assignment]
    assert "the beam may still be on" in gantry.shut_down()
    gantry.close()


def test_a_tube_behind_the_board_is_switched_off_beside_its_line(grbl: GrblPeer) -> None:
    told: list[str] = []

    def make_safe() -> bool:
        told.append("safe")
        return True

    def line(text: str) -> str:
        if text.endswith("?"):
            return "0" if text == "BUSY?" else "ERR no command"
        told.append(text)
        return "OK"

    detector = SimpleNamespace(auxiliary=line, make_safe=make_safe)
    gantry = open_gantry(detector, f"gcode:{grbl.path}")
    assert gantry.shut_down() == ""
    assert told == ["safe"]
    gantry.select_sample("vials")
    assert told == ["safe", "SAMP vials"], "the changer is the line's, where there is one"
    gantry.close()


def test_a_wrong_part_is_refused(grbl: GrblPeer) -> None:
    with pytest.raises(WrongUsage, match="is not a tube"):
        open_gantry(SimpleNamespace(auxiliary=str), "line:", f"gcode:{grbl.path}")
