"""The page Instrument and the strip: what is there is offered, what cannot be done says why, beam off is at hand."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import msgspec
import pytest
from pyqtgraph.Qt import QtCore, QtWidgets
from pytestqt.qtbot import QtBot

from acquisition.doctor import Finding, Level
from acquisition.instrument import Instrument
from acquisition.live import look
from acquisition.scan_plan import LivePlan
from calibration.progress import Progress
from firmware_iface.merlin_device import MerlinInfo
from gui import rig as rig_module
from gui import status_strip
from gui.connect import discovery
from gui.connect.discovery import Address, Kind
from gui.connect.page import ConnectPage
from gui.connect.panels import as_html
from gui.rig import Rig, RigSnapshot
from gui.session import Session
from gui.state import Action, Link, State, why_not
from gui.status_strip import StatusStrip
from gui.vitals import Mood
from tests.gui.simulated_cable import Cable
from tests.rough_calibration import rough_calibration
from tests.scan_bench import PLAN, Bench

LISTED = {"merlin://HOST": "a Merlin", "sim:demo": "simulated", "sim:fine": "simulated"}
BOARD = {"usb:A1": "bus 1, address 2, 5000 Mbit/s"}
FINDINGS = (
    Finding(level=Level.FAIL, topic="board A1", text="you may not <open> it", remedy="write a rule"),
    Finding(level=Level.OK, topic="Python", text="3.11"),
)
LEFT = QtCore.Qt.MouseButton.LeftButton
LIVE = msgspec.structs.replace(PLAN, scan=LivePlan())


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What is found here, in place of this machine's bus; a test may change it."""
    found = dict(LISTED)
    monkeypatch.setattr(discovery, "look", lambda: discovery.sort_out(found))
    monkeypatch.setattr(discovery, "findings", lambda folder: FINDINGS)
    monkeypatch.setattr("gui.connect.page.LOOK_EVERY_S", 0.02)
    for name in ("LOOK_EVERY_S", "REOPEN_EVERY_S", "WATCH_EVERY_S"):
        monkeypatch.setattr(rig_module, name, 0.02)
    monkeypatch.setattr(status_strip, "REFRESH_EVERY_S", 0.0)
    return found


@pytest.fixture
def cable() -> Cable:
    return Cable(drop=frozenset({1}))


@pytest.fixture
def wired(tmp_path: Path, cable: Cable) -> Iterator[Session]:
    session = Session(tmp_path, Rig(cable.opener))
    yield session
    session.close()


def page_of(qtbot: QtBot, session: Session) -> ConnectPage:
    page = ConnectPage(session)
    qtbot.addWidget(page)
    page.resize(1280, 740)
    page.show()
    return page


def until(qtbot: QtBot, session: Session, shown, is_so) -> None:
    """Let a page or a strip refresh, as the window does, until something is so."""

    def look_again() -> bool:
        session.beat()
        shown.refresh()
        return bool(is_so())

    qtbot.waitUntil(look_again, timeout=40_000)


def connect(qtbot: QtBot, session: Session) -> ConnectPage:
    page = page_of(qtbot, session)
    qtbot.mouseClick(page.start, LEFT)
    until(qtbot, session, page, lambda: session.rig.snapshot().link is Link.READY)
    return page


# What may be done when


@pytest.mark.parametrize(("link", "action"), list(product(Link, Action)))
@pytest.mark.parametrize("job", ["", "Live view"])
@pytest.mark.parametrize("is_calibrated", [False, True])
def test_every_refusal_names_a_next_step_and_nothing_else_is_refused(
    link: Link, action: Action, job: str, is_calibrated: bool
) -> None:
    state = State(folder=Path(), calibration=rough_calibration(PLAN) if is_calibrated else None)
    why = why_not(action, state, link, instrument_job=job)
    is_there, is_free = link in (Link.READY, Link.BUSY), not job and link is not Link.BUSY
    allowed = {
        Action.CONNECT: link in (Link.NONE, Link.LOST),
        Action.DISCONNECT: link is not Link.NONE and is_free,
        Action.MAKE_SAFE: is_there,
        Action.MOVE: is_there and is_free,
        Action.LIVE: is_there and is_free,
        Action.CALIBRATE: is_there and is_free,
        Action.SCAN: is_there and is_free and is_calibrated,
    }
    assert (why == "") is allowed.get(action, False), why
    if why:
        assert why[0].isupper()
        assert why.endswith((".", "!"))
        steps = ("choose", "disconnect", "wait", "stop", "make", "open", "check", "reconstruct", "none to let go")
        assert any(word in why.lower() for word in steps), why


@pytest.mark.parametrize("action", [Action.CALIBRATE, Action.SCAN, Action.LIVE])
def test_a_merlin_is_looked_at_and_neither_calibrated_nor_scanned_with(action: Action) -> None:
    state = State(folder=Path(), calibration=rough_calibration(PLAN))
    info = MerlinInfo(serial="M7", software_version="1")
    assert not RigSnapshot(info=info).is_board
    why = why_not(action, state, Link.READY, is_board=False)
    assert ("page Live" in why) is (action is not Action.LIVE)
    assert "choose one" in why_not(action, state, Link.NONE, is_board=False)
    assert RigSnapshot().is_board


# What is found


def test_boards_come_first_and_what_cannot_be_opened_as_it_stands_says_why() -> None:
    found = discovery.sort_out({**LISTED, "usb:": "libusb cannot be loaded", **BOARD})
    assert [each.url for each in found] == ["usb:A1", "usb:", "merlin://HOST", "sim:demo", "sim:fine"]
    assert [each.kind for each in found[:3]] == [Kind.USB, Kind.USB, Kind.MERLIN]
    assert [bool(each.problem) for each in found] == [False, True, True, False, False]


def test_what_is_offered_is_a_board_if_there_is_one_and_else_the_simulated_instrument() -> None:
    without, with_board = discovery.sort_out(LISTED), discovery.sort_out({**LISTED, **BOARD})
    assert not discovery.has_real(without)
    assert discovery.has_real(with_board)
    assert discovery.first_choice(without, ()) == "sim:demo"
    assert discovery.first_choice(with_board, ()) == "usb:A1"
    assert discovery.first_choice(without, (Address(url="usb:A1"),)) == "sim:demo", "it is not there now"
    assert discovery.first_choice(with_board, (Address(url="merlin://m"),)) == "merlin://m", "used last"


def test_recent_addresses_are_kept_once_each_the_newest_first_and_survive_the_settings() -> None:
    recent: tuple[Address, ...] = ()
    for number in [*range(9), 3]:
        recent = discovery.remembered(recent, Address(url=f"usb:{number}", tube_url="scpi:/dev/ttyUSB1"))
    assert [each.url for each in recent] == ["usb:3", "usb:8", "usb:7", "usb:6", "usb:5", "usb:4"]
    assert discovery.from_saved(discovery.as_saved(recent)) == recent
    for odd in (None, 3, [["usb:"]], [["usb", "line:", "line:"]], [[1, 2, 3]], ["usb:"]):
        assert discovery.from_saved(odd) == ()


@pytest.mark.parametrize(
    ("address", "word"),
    [
        (Address(url=""), "No instrument is named"),
        (Address(url="demo"), "'demo' is no address"),
        (Address(url="merlin://"), "Merlin's computer"),
        (Address(url="merlin://HOST"), "Merlin's computer"),
        (Address(url="usb:", stage_url=""), "No stage is named"),
        (Address(url="usb:", tube_url="ttyUSB1"), "no address of a tube"),
    ],
)
def test_an_address_that_cannot_be_one_is_refused_before_it_is_tried(address: Address, word: str) -> None:
    assert word in discovery.why_not_address(address)
    assert discovery.why_not_address(Address(url="usb:A1")) == ""


# The page


def test_with_nothing_attached_one_click_gives_the_simulated_instrument(
    qtbot: QtBot, listed: dict[str, str], wired: Session, cable: Cable
) -> None:
    page = page_of(qtbot, wired)
    until(qtbot, wired, page, lambda: page.found.count() == len(LISTED))
    assert page.start.isVisible()
    assert page.start.text() == "Use the simulated instrument"
    assert page.board.text_of("Detector") == "none is connected"
    for button, word in ((page.disconnect_, "No instrument"), (page.move_.go, "choose one"), (page.safe, "choose one")):
        assert not button.isEnabled()
        assert word in button.toolTip()
    qtbot.mouseClick(page.start, LEFT)
    until(qtbot, wired, page, lambda: page.board.text_of("Serial number") == "CABLE-1")
    assert cable.urls == [("sim:demo", "line:", "line:")]
    assert not page.start.isVisible()
    assert page.board.text_of("Chip ID") == "W529_F5"
    assert "bias supply" in page.board.text_of("It has")
    assert "31.0 °C" in page.board.text_of("Temperatures")
    assert page.source.text_of("Beam") == "off"
    assert page.source.text_of("Interlock") == "closed"
    assert not page.connect_.isEnabled()
    assert "disconnect it first" in page.connect_.toolTip()
    qtbot.mouseClick(page.disconnect_, LEFT)
    until(qtbot, wired, page, lambda: page.start.isVisible())
    assert page.save()["recent"] == [["sim:demo", "line:", "line:"]]


def test_a_board_that_is_plugged_in_is_listed_by_itself_and_offered(
    qtbot: QtBot, listed: dict[str, str], session: Session
) -> None:
    page = page_of(qtbot, session)
    until(qtbot, session, page, lambda: page.found.count() == len(LISTED))
    listed.update(BOARD)
    until(qtbot, session, page, lambda: page.found.count() == len(LISTED) + 1)
    assert page.start.text() == "Connect to usb:A1"
    page.found.setCurrentRow(0)
    page.found.itemClicked.emit(page.found.item(0))
    assert page.address.url == "usb:A1"
    assert page.connect_.isEnabled()


def test_addresses_of_stage_and_tube_are_remembered(
    qtbot: QtBot, listed: dict[str, str], wired: Session, cable: Cable
) -> None:
    page = page_of(qtbot, wired)
    page.restore({"recent": [["sim:demo", "gcode:/dev/ttyUSB0", "line:"]], "advanced": True, "odd": 1})
    assert page.stage_url.isVisible()
    qtbot.mouseClick(page.start, LEFT)
    until(qtbot, wired, page, lambda: wired.rig.snapshot().link is Link.READY)
    assert cable.urls == [("sim:demo", "gcode:/dev/ttyUSB0", "line:")]
    page.restore({"recent": "nonsense", "advanced": "yes"})
    assert page.save() == {"recent": [], "advanced": False}


def test_the_stage_moves_within_its_limits_and_tells_where_it_stands(
    qtbot: QtBot, listed: dict[str, str], wired: Session
) -> None:
    page = connect(qtbot, wired)
    page.refresh()
    lift = page.move_.fields["lift_mm"]
    assert (lift.minimum(), lift.maximum()) == (-50, 50)
    assert "-50 to 50 mm" in lift.toolTip()
    lift.setValue(1.5)
    page.move_.fields["angle_rad"].setValue(2.0)
    qtbot.mouseClick(page.move_.go, LEFT)
    until(qtbot, wired, page, lambda: "2.00°, lift 1.50 mm" in page.move_.place.text())
    assert not wired.failures
    assert lift.value() == 1.5, "what a person wrote stays"


def test_a_fault_of_the_source_is_told_and_can_be_cleared(qtbot: QtBot, listed: dict[str, str], tmp_path: Path) -> None:
    bench = Bench()
    bench.source_states = ["LAMP OFF,INTERLOCK CLOSED,WARM READY,FAULT arc"]

    @contextmanager
    def opener(url: str, stage_url: str, tube_url: str) -> Iterator[Instrument]:
        yield bench.instrument

    session = Session(tmp_path, Rig(opener))
    try:
        page = connect(qtbot, session)
        until(qtbot, session, page, lambda: page.source.text_of("Fault") == "arc")
        assert page.clear.isEnabled()
        qtbot.mouseClick(page.clear, LEFT)
        until(qtbot, session, page, lambda: "TUBE:CLEAR" in bench.lines)
        bench.source_states = ["LAMP OFF,INTERLOCK OPEN,WARM READY,FAULT NONE"]
        until(qtbot, session, page, lambda: page.source.text_of("Fault") == "none")
        assert "OPEN" in page.source.text_of("Interlock")
        assert not page.clear.isEnabled()
        assert "no fault" in page.clear.toolTip()
        assert not session.failures
    finally:
        session.close()


def test_a_cable_that_is_pulled_is_told_with_what_to_do(
    qtbot: QtBot, listed: dict[str, str], wired: Session, cable: Cable
) -> None:
    page = connect(qtbot, wired)
    cable.device.unplug()
    until(qtbot, wired, page, lambda: "lost" in page.state.text())
    assert "What to do: check" in page.why.text()
    assert not page.move_.go.isEnabled()
    assert "Check cable and power" in page.move_.go.toolTip()
    cable.device.plug()
    until(qtbot, wired, page, lambda: "ready" in page.state.text())
    assert page.move_.go.isEnabled()


def test_the_machine_is_looked_at_on_request_and_faults_come_with_their_remedy(
    qtbot: QtBot, listed: dict[str, str], session: Session
) -> None:
    page = page_of(qtbot, session)
    qtbot.mouseClick(page.machine.again, LEFT)
    until(qtbot, session, page, lambda: "write a rule" in page.machine.text.toPlainText())
    assert "FAULT" in page.machine.text.toPlainText(), "a word beside the colour"
    assert "you may not <open> it" in page.machine.text.toPlainText()
    assert page.machine.again.isEnabled()


def test_what_the_doctor_says_cannot_break_the_page() -> None:
    assert "<open>" not in as_html(FINDINGS)


# The strip


def a_strip(qtbot: QtBot, session: Session) -> StatusStrip:
    strip = StatusStrip(session)
    qtbot.addWidget(strip)
    strip.resize(1280, 48)
    strip.show()
    return strip


def text_of(strip: StatusStrip, key: str) -> str:
    reading = strip.cells[key].reading
    assert reading is not None
    return reading.text


def test_the_strip_tells_what_runs_and_takes_losses_for_alarms_until_they_are_acknowledged(
    qtbot: QtBot, listed: dict[str, str], wired: Session
) -> None:
    strip = a_strip(qtbot, wired)
    assert text_of(strip, "link") == "not connected"
    wired.rig.connect("sim:demo")
    until(qtbot, wired, strip, lambda: text_of(strip, "link") == "ready")
    until(qtbot, wired, strip, lambda: text_of(strip, "disk").endswith("B"))
    stop = threading.Event()

    def view(instrument: Instrument) -> Generator[Progress, None, object]:
        return look(instrument, LIVE, rough_calibration(PLAN), stop=stop, on_health=wired.rig.note_run)

    wired.measure("Live view", view, stop=stop.set)
    until(qtbot, wired, strip, lambda: text_of(strip, "beam") == "ON")
    until(qtbot, wired, strip, lambda: text_of(strip, "lost") == "1 new")
    assert strip.cells["lost"].reading.mood is Mood.BAD
    assert text_of(strip, "link") == "busy"
    assert text_of(strip, "waiting").endswith("/ 64")
    assert text_of(strip, "rate").endswith("/s")
    stop_button = next(button for button in strip.findChildren(QtWidgets.QPushButton) if button.text() == "Stop")
    assert stop_button.isVisible()
    qtbot.mouseClick(strip.cells["lost"], LEFT)
    assert text_of(strip, "lost") == "1 (known)"
    qtbot.mouseClick(stop_button, LEFT)
    until(qtbot, wired, strip, lambda: text_of(strip, "link") == "ready")
    assert not stop_button.isVisible()
    until(qtbot, wired, strip, lambda: text_of(strip, "beam") == "off")


def test_beam_off_in_the_strip_ends_what_runs(qtbot: QtBot, listed: dict[str, str], wired: Session) -> None:
    strip = a_strip(qtbot, wired)
    assert not strip.safe.isEnabled()
    assert "page Instrument" in strip.safe.toolTip()
    wired.rig.connect("sim:demo")
    until(qtbot, wired, strip, lambda: strip.safe.isEnabled())
    wired.measure("Live view", lambda instrument: look(instrument, LIVE, rough_calibration(PLAN)))
    until(qtbot, wired, strip, lambda: text_of(strip, "beam") == "ON")
    qtbot.mouseClick(strip.safe, LEFT)
    until(qtbot, wired, strip, lambda: text_of(strip, "beam") == "off" and wired.job("instrument") is None)
    assert not wired.failures
