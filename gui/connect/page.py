"""The page Instrument: detectors that are there, one of them opened, how it is, and what is missing on this machine."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pyqtgraph.Qt import QtCore, QtWidgets

from calibration.progress import Progress
from gui.connect import discovery
from gui.connect.discovery import SIMULATED, Address, Found
from gui.connect.facts import board_facts, source_facts, where
from gui.connect.panels import Facts, FindingsPanel, MovePanel
from gui.controls import ActionButton, hint, title
from gui.page import Page
from gui.questions import Lookout
from gui.rig import LINE, RigSnapshot
from gui.state import Action, Link
from gui.vitals import Mood, device, link_words
from gui.workers import Job

if TYPE_CHECKING:
    from acquisition.doctor import Finding
    from acquisition.instrument import Instrument

LOOK_EVERY_S = 3.0
DOCTOR_AFTER_S = 3.0
"""The machine is looked at when the page was seen for so long: not while the window opens, and not in passing."""
_MARKS = {Mood.CALM: "\N{WHITE CIRCLE}", Mood.GOOD: "\N{BLACK CIRCLE}"}


class ConnectPage(Page):
    """Choose an instrument, and see how it is."""

    title = "Instrument"

    def build(self) -> Iterator[None]:
        """Make the widgets."""
        self._lookout = Lookout("look for instruments", discovery.look, LOOK_EVERY_S)
        self._found: tuple[Found, ...] | None = None
        self._recent: tuple[Address, ...] = ()
        self._shown: RigSnapshot | None = None
        self._doctor: Job[tuple[Finding, ...]] | None = None
        self._seen_s: float | None = None
        self._build()
        self.refresh()
        yield

    @property
    def address(self) -> Address:
        """What is chosen now."""
        return Address(
            url=self.url.currentText().strip(),
            stage_url=self.stage_url.currentText().strip(),
            tube_url=self.tube_url.currentText().strip(),
        )

    def refresh(self) -> None:
        """Show what is new of the bus, the instrument and the machine."""
        now = self.session.rig.snapshot()
        if now.link is not Link.BUSY:  # the bus is the detector's while it counts
            self._show_found(self._lookout.newest())
        if now is not self._shown:
            self._show(now)
        for button in (self.start, self.connect_, self.disconnect_, self.safe, self.clear):
            button.refresh()
        self.move_.refresh(now, self.session.why_not(Action.MOVE))
        self._look_at_machine()

    def restyle(self) -> None:
        """Write what was found in the colours of another theme."""
        self.machine.restyle()

    def save(self) -> dict[str, object]:
        """Return what was used before, and whether the addresses of stage and tube are shown."""
        return {"recent": discovery.as_saved(self._recent), "advanced": self.advanced.isChecked()}

    def restore(self, saved: dict[str, object]) -> None:
        """Take what was used before; nothing is opened by itself."""
        self._recent = discovery.from_saved(saved.get("recent"))
        self.advanced.setChecked(saved.get("advanced") is True)
        self._list_recent()
        if self._recent:
            self._choose(self._recent[0])

    # What it does

    def connect_to(self, address: Address) -> None:
        """Open an instrument."""
        self._choose(address)
        self.session.rig.connect(address.url, address.stage_url, address.tube_url)

    def look_at_machine(self) -> None:
        """Do what `mpxct doctor` does, in the background."""
        if self._doctor is None or self._doctor.is_over:
            self._doctor = Job("look at this machine", _examined(self.session.state.folder)).start()
            self.machine.wait_for_it()

    def _start(self) -> None:
        url = discovery.first_choice(self._found or (), self._recent)
        known = next((each for each in self._recent if each.url == url), Address(url=url))
        self.connect_to(known)

    def _clear_fault(self) -> None:
        def work(instrument: Instrument) -> Generator[Progress, None, None]:
            yield Progress("clear the fault", 0, 1)
            instrument.gantry.clear_fault()

        self.session.measure("Clearing the source's fault", work)

    def _why_not_clear(self) -> str:
        source = self.session.rig.snapshot().source
        return self.session.why_not(Action.MOVE) or (
            "" if source is not None and source.fault else "The source tells of no fault."
        )

    # How it looks

    def _build(self) -> None:
        self._build_choice()
        self._build_state()
        left = QtWidgets.QVBoxLayout()
        for widget in (self.name, self.state, self.why, self.start, self._found_box, self._address_box):
            left.addWidget(widget)
        left.setStretchFactor(self._found_box, 1)
        side = QtWidgets.QWidget()
        side.setLayout(left)
        side.setFixedWidth(400)
        left.setContentsMargins(0, 0, 0, 0)
        right = QtWidgets.QGridLayout()
        policy = QtWidgets.QSizePolicy.Policy
        for box in (self._detector_box, self._source_box, self._stage_box):  # equally wide, whatever stands in them
            box.setSizePolicy(policy.Ignored, policy.Preferred)
        right.addWidget(self._detector_box, 0, 0, 2, 1)
        right.addWidget(self._source_box, 0, 1)
        right.addWidget(self._stage_box, 1, 1)
        right.addWidget(self.machine, 2, 0, 1, 2)
        right.setColumnStretch(0, 1)
        right.setColumnStretch(1, 1)
        right.setRowStretch(1, 1)
        right.setRowStretch(2, 100)
        row = QtWidgets.QHBoxLayout(self)
        row.addWidget(side)
        row.addSpacing(8)
        row.addLayout(right, 1)

    def _build_choice(self) -> None:
        self.name, self.state, self.why = title(""), QtWidgets.QLabel(), hint()
        self.why.setTextInteractionFlags(QtCore.Qt.TextInteractionFlag.TextSelectableByMouse)
        self.state.setWordWrap(True)
        rig, why_not = self.session.rig, self.session.why_not
        self.start = ActionButton(
            discovery.offer(SIMULATED), "Open the instrument that is most likely meant, with one click.",
            lambda: why_not(Action.CONNECT), self._start,
        )  # fmt: skip
        self.start.setMinimumHeight(64)
        self.start.setStyleSheet("font-size: 13pt; font-weight: 600;")
        self.found = QtWidgets.QListWidget()
        self.found.setToolTip("Instruments that can be opened here; looked for every few seconds. Double click: open.")
        self.found.setWordWrap(True)
        self.found.setSpacing(3)
        looking = QtWidgets.QListWidgetItem("Looking for instruments \N{HORIZONTAL ELLIPSIS}", self.found)
        looking.setFlags(QtCore.Qt.ItemFlag.NoItemFlags)
        self.found.setHorizontalScrollBarPolicy(QtCore.Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.found.itemClicked.connect(self._choose_item)
        self.found.itemDoubleClicked.connect(self._open_item)
        self.url = _combo("Kind and place of the detector, such as usb:SERIAL, merlin://192.168.0.5 or sim:demo.")
        self.stage_url = _combo(
            "Where the stage is: line: means behind the detector; gcode:/dev/ttyUSB0 is a port of its own."
        )
        self.tube_url = _combo("Where the tube is: line: means behind the detector; scpi:/dev/ttyUSB1 is its own port.")
        self.advanced = QtWidgets.QCheckBox("Stage and tube have addresses of their own")
        self.advanced.setToolTip("Only where stage or tube hang on ports of their own and not on the detector.")
        self.connect_ = ActionButton(
            "Connect", "Open the instrument at this address, and again whenever it was lost.",
            lambda: why_not(Action.CONNECT) or discovery.why_not_address(self.address),
            lambda: self.connect_to(self.address),
        )  # fmt: skip
        self.disconnect_ = ActionButton(
            "Disconnect", "Leave source and stage safe, and let the instrument go for other programs.",
            lambda: why_not(Action.DISCONNECT), rig.disconnect,
        )  # fmt: skip
        self._found_box = _box("Found here", self.found)
        form = QtWidgets.QFormLayout()
        form.addRow("Detector", self.url)
        form.addRow(self.advanced)
        form.addRow("Stage", self.stage_url)
        form.addRow("Tube", self.tube_url)
        self.advanced.toggled.connect(lambda is_on: self._show_advanced(form, is_on=is_on))
        self._choose(Address(url=SIMULATED))
        self._show_advanced(form, is_on=False)
        buttons = QtWidgets.QHBoxLayout()
        buttons.addWidget(self.connect_)
        buttons.addWidget(self.disconnect_)
        form.addRow(buttons)
        self._address_box = QtWidgets.QGroupBox("Address")
        self._address_box.setLayout(form)

    def _build_state(self) -> None:
        self.board, self.source = Facts(), Facts()
        self._detector_box = _box("Detector", self.board)
        self.safe = ActionButton(
            "Beam off", "Switch the X-rays off and stop the stage at once, and break off what runs on the instrument.",
            lambda: self.session.why_not(Action.MAKE_SAFE), self.session.rig.make_safe,
        )  # fmt: skip
        self.clear = ActionButton(
            "Clear fault", "Acknowledge the source's fault, so that it may shine again; find out first why it tripped.",
            self._why_not_clear, self._clear_fault,
        )  # fmt: skip
        buttons = QtWidgets.QHBoxLayout()
        buttons.addWidget(self.safe)
        buttons.addWidget(self.clear)
        buttons.addStretch(1)
        self._source_box = _box("X-ray source", self.source)
        layout = self._source_box.layout()
        assert isinstance(layout, QtWidgets.QVBoxLayout)
        layout.addLayout(buttons)
        self.move_ = MovePanel(self.session)
        self._stage_box = _box("Stage", self.move_)
        self.machine = FindingsPanel(self.look_at_machine)

    @staticmethod
    def _show_advanced(form: QtWidgets.QFormLayout, *, is_on: bool) -> None:
        for row in (2, 3):
            form.setRowVisible(row, is_on)

    def _show(self, now: RigSnapshot) -> None:
        is_new = self._shown is None or now.link is not self._shown.link
        self._shown = now
        words, mood = link_words(now)
        self.name.setText(device(now) if now.url else "No instrument yet")
        mark = _MARKS.get(mood, "\N{WARNING SIGN}")
        self.state.setText(f"{mark}  {words}")
        told = [f"{now.error[:1].upper()}{now.error[1:]}." if now.error else "", _sentence(now.hint)]
        if now.unsafe:
            told.insert(0, f"BEWARE: {now.unsafe}.")
        self.why.setText("\n".join(filter(None, told)) or _next(now))
        is_there = now.link in (Link.READY, Link.BUSY)
        self.board.show_facts(board_facts(now) or [("Detector", "none is connected")])
        self.source.show_facts(source_facts(now.source, now.gantry_error or ("" if is_there else "none is connected")))
        self.move_.show_place(where(now.pose))
        self.start.setVisible(now.link is Link.NONE)
        if is_new and now.link is Link.READY and now.was_open:
            used = Address(url=now.url, stage_url=now.stage_url, tube_url=now.tube_url)
            self._recent = discovery.remembered(self._recent, used)
            self._list_recent()

    def _show_found(self, found: tuple[Found, ...] | None) -> None:
        if found is None or found == self._found:
            return
        self._found = found
        choice = discovery.first_choice(found, self._recent)
        self.start.setText(discovery.offer(choice))
        chosen = self.found.currentItem()
        before = chosen.data(_URL) if chosen is not None else choice
        self.found.clear()
        for each in found:
            item = QtWidgets.QListWidgetItem(f"{each.url}\n{each.kind.value}: {each.text}")
            item.setData(_URL, each.url)
            item.setToolTip(each.problem or "A click takes it, a double click opens it.")
            self.found.addItem(item)
            if each.url == before:
                self.found.setCurrentItem(item)

    def _list_recent(self) -> None:
        for box, urls in (
            (self.url, [each.url for each in self._recent]),
            (self.stage_url, [each.stage_url for each in self._recent] + [LINE]),
            (self.tube_url, [each.tube_url for each in self._recent] + [LINE]),
        ):
            text = box.currentText()
            box.clear()
            box.addItems(list(dict.fromkeys(urls)))
            box.setEditText(text)

    def _choose(self, address: Address) -> None:
        self.url.setEditText(address.url)
        self.stage_url.setEditText(address.stage_url)
        self.tube_url.setEditText(address.tube_url)
        if (address.stage_url, address.tube_url) != (LINE, LINE):
            self.advanced.setChecked(True)

    def _choose_item(self, item: QtWidgets.QListWidgetItem) -> None:
        self.url.setEditText(item.data(_URL).replace("HOST", ""))

    def _open_item(self, item: QtWidgets.QListWidgetItem) -> None:
        self._choose_item(item)
        if self.connect_.isEnabled():
            self.connect_to(self.address)
        else:
            self.url.setFocus()

    def _look_at_machine(self) -> None:
        now_s = time.monotonic()
        if self.isVisible() and self._seen_s is None:
            self._seen_s = now_s
        if self._doctor is None and self._seen_s is not None and now_s - self._seen_s > DOCTOR_AFTER_S:
            self.look_at_machine()
        if self._doctor is not None and self._doctor.is_over:
            self.machine.show_end_of(self._doctor)


def _examined(folder: Path) -> Generator[Progress, None, tuple[Finding, ...]]:
    yield Progress("look at this machine", 0, 1)
    return discovery.findings(folder)


def _sentence(text: str) -> str:
    return f"What to do: {text}." if text else ""


def _combo(tip: str) -> QtWidgets.QComboBox:
    box = QtWidgets.QComboBox()
    box.setEditable(True)
    box.setInsertPolicy(QtWidgets.QComboBox.InsertPolicy.NoInsert)
    box.setToolTip(tip)
    return box


def _box(name: str, widget: QtWidgets.QWidget) -> QtWidgets.QGroupBox:
    box = QtWidgets.QGroupBox(name)
    layout = QtWidgets.QVBoxLayout(box)
    layout.addWidget(widget)
    return box


def _next(now: RigSnapshot) -> str:
    return _NEXT_OF_MERLIN if now.link is Link.READY and not now.is_board else _NEXT.get(now.link, "")


_URL = QtCore.Qt.ItemDataRole.UserRole
_NEXT_OF_MERLIN = (
    "Ready for the page Live. Calibrations and scans are made by its own program. "
    "Should the link break, it is opened again by itself."
)
_NEXT = {
    Link.NONE: "Choose one below. Without a detector, the simulated instrument does all that a real one does.",
    Link.CONNECTING: "It is being opened; the simulated one takes a few seconds.",
    Link.READY: "Ready for all pages. Should the cable be pulled, it is opened again by itself.",
    Link.BUSY: "Something runs on it; the strip below tells how far it is.",
}
