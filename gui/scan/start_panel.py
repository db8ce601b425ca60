"""What a scan will cost, what it is called, how stubborn it is, what was looked at, and its start."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pyqtgraph.Qt import QtCore, QtWidgets

from acquisition.limits import UNKNOWN
from acquisition.pause import BEAM_OFF_AFTER_S
from gui import theme
from gui.controls import ActionButton, allow, hint
from gui.scan.document import Document
from gui.scan.estimate import DOSE_TOLD, SAMPLE_MM, Estimate, estimate, rows
from gui.scan.interrupted import PARTIAL, free_name
from gui.scan.run import Order, Preflight
from gui.session import Session
from gui.state import Action

LOOK_EVERY_S = 0.5
WORDS = {"ok": "good", "warn": "warning", "fail": "NO"}


class StartPanel(QtWidgets.QWidget):
    """Tells what a plan costs, and starts it.

    Parameters
    ----------
    start, look : callable
        Get the order: to start it, after a look at everything; or only to look.
    """

    def __init__(
        self, session: Session, document: Document, start: Callable[[Order], None], look: Callable[[Order], None]
    ) -> None:
        super().__init__()
        self.session, self._document = session, document
        self._questions = session.questions("estimate of a scan")
        self._asked: tuple[object, ...] = ()
        self._is_own_name = False
        self._looked_s = -LOOK_EVERY_S
        self._is_taken = ""
        self.preflight: Preflight | None = None
        body = QtWidgets.QWidget()
        column = QtWidgets.QVBoxLayout(body)
        column.setContentsMargins(0, 0, 8, 0)
        for title, part in (
            ("Estimate", self._estimate()),
            ("File", self._file()),
            ("Checks before the start", self._checks()),
            ("If something goes wrong", self._endurance()),
        ):
            box = QtWidgets.QGroupBox(title)
            box.setLayout(part)
            column.addWidget(box)
        column.addStretch(1)
        scroll = QtWidgets.QScrollArea()
        scroll.setWidgetResizable(True)
        scroll.setFrameShape(QtWidgets.QFrame.Shape.NoFrame)
        scroll.setHorizontalScrollBarPolicy(QtCore.Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        scroll.setWidget(body)
        self.look = ActionButton(
            "Check only",
            "Ask the instrument whether this scan can be done: sample, calibration, source, limits, USB, disk.",
            self._why_no_check,
            lambda: look(self.order()),
        )
        self.start = ActionButton(
            "Start scan",
            "Look at everything first, then scan; what a check refuses is told here.",
            self.why_not,
            lambda: start(self.order()),
        )
        self.start.setStyleSheet("font-weight: 600;")
        self.force = QtWidgets.QCheckBox("Scan all the same")
        allow(self.force, _FORCE, NONE_FAILED)
        buttons = QtWidgets.QHBoxLayout()
        buttons.addWidget(self.look)
        buttons.addWidget(self.force)
        buttons.addWidget(self.start, 1)
        self.told = hint()
        whole = QtWidgets.QVBoxLayout(self)
        whole.setContentsMargins(0, 0, 0, 0)
        whole.addWidget(scroll, 1)
        whole.addWidget(self.told)
        whole.addLayout(buttons)
        self.setMinimumWidth(360)
        self._propose()

    def refresh(self) -> None:
        """Ask for the estimate where the plan is new, and name the file."""
        self._ask()
        now_s = time.monotonic()
        if now_s - self._looked_s >= LOOK_EVERY_S:
            self._looked_s = now_s
            self._propose()
            self._is_taken = self._why_taken()
        self.start.refresh()
        self.look.refresh()
        why = self.why_not()
        self.told.setText(f"Not now: {why}" if why else "Ready.")

    def order(self) -> Order:
        """Return the scan as it is asked for here."""
        state = self.session.state
        assert state.calibration is not None, "why_not was asked"
        notes = {"operator": self.operator.text().strip(), "notes": self.notes.toPlainText().strip()}
        return Order(
            path=self.path,
            plan=self._document.plan or state.plan,
            calibration=state.calibration,
            is_forced=self.force.isChecked(),
            is_overwriting=self.replace.isChecked(),
            reconnect_s=self.reconnect.value(),
            retries=self.retries.value(),
            beam_off_after_s=self.beam_off.value(),
            notes={name: text for name, text in notes.items() if text},
        )

    @property
    def path(self) -> Path:
        """The file that is written."""
        name = self.name.text().strip() or "scan"
        return self.session.state.folder / (name if name.endswith(".h5") else f"{name}.h5")

    def why_not(self) -> str:
        """Return why the scan cannot start now; empty where it can."""
        return self._why_no_check() or self._is_taken

    def show_checks(self, preflight: Preflight) -> None:
        """Show what the instrument said."""
        self.preflight = preflight
        self._tell_checks(preflight)
        firm = [check.topic for check in preflight.failed if not check.is_forcible]
        why_not = f"{' and '.join(firm)} cannot be overruled." if firm else "" if preflight.failed else NONE_FAILED
        allow(self.force, _FORCE, why_not)
        if why_not:
            self.force.setChecked(False)

    def restyle(self) -> None:
        """Write the checks in the colours of another theme."""
        if self.preflight is not None:
            self._tell_checks(self.preflight)

    def _tell_checks(self, preflight: Preflight) -> None:
        look = theme.now()
        colours = {"ok": look.good, "warn": look.warn, "fail": look.bad}
        while self._found.count():
            item = self._found.takeAt(0)
            if item is not None and (widget := item.widget()) is not None:
                widget.hide()
                widget.deleteLater()
        worst_first = sorted(preflight.checks, key=lambda check: list(WORDS).index(check.level.value), reverse=True)
        for check in worst_first:
            level = check.level.value
            remedy = f"<br><i>{_plain(check.remedy)}</i>" if check.remedy else ""
            word = f'<b style="color:{colours[level]}">{WORDS[level]}</b>'
            label = QtWidgets.QLabel(f"{word} &nbsp;{_plain(check.topic)}: {_plain(check.text)}{remedy}")
            label.setWordWrap(True)
            label.setToolTip(check.remedy or "Nothing to do.")
            self._found.addWidget(label)

    def _why_no_check(self) -> str:
        if self._document.fault is not None:
            return f"The plan has a fault: {self._document.fault.sentence}"
        if self._document.plan is not None and self._document.plan.scan.is_endless:
            return "A live picture is never written: it is on the page Live."
        return self.session.why_not(Action.SCAN)

    def _ask(self) -> None:
        plan = self._document.plan
        limits = self.session.rig.snapshot().limits or UNKNOWN  # what the instrument can do makes the estimate better
        asked = (plan, limits, self.session.state.folder, self.sample.value())
        if plan is None or asked == self._asked:
            return
        self._asked = asked
        for name, has_dose in (("estimate", False), ("estimate with dose", True)):  # the dose takes a moment
            work = partial(estimate, plan, limits, self.session.state.folder, self.sample.value(), has_dose=has_dose)
            self._questions.ask(name, work, self._show_estimate, otherwise=self._show_no_estimate)

    def _show_no_estimate(self, error: BaseException) -> None:
        self.rows.setText(f"No estimate: {error}")

    def _show_estimate(self, found: Estimate) -> None:
        cells = "".join(
            f"<tr><td style='padding-right:10px'>{name}</td><td>{_plain(text)}</td></tr>" for name, text in rows(found)
        )
        self.rows.setText(f"<table>{cells}</table>")
        self.rows.setToolTip(f"<pre>{_plain(found.described)}</pre>")
        self.wrong.setText("\n".join(f"The instrument cannot do this: {text}" for text in found.wrong))
        self.wrong.setVisible(bool(found.wrong))

    def _estimate(self) -> QtWidgets.QVBoxLayout:
        column = QtWidgets.QVBoxLayout()
        self.rows = QtWidgets.QLabel("…")
        self.rows.setWordWrap(True)
        self.rows.setTextInteractionFlags(QtCore.Qt.TextInteractionFlag.TextSelectableByMouse)
        self.wrong = QtWidgets.QLabel()
        self.wrong.setWordWrap(True)
        theme.judge(self.wrong, is_good=False)
        self.wrong.hide()
        self.warmth = hint()
        self.sample = _number(SAMPLE_MM, 1, 500, " mm", f"Diameter that the dose is told of.\n\n{_folded(DOSE_TOLD)}")
        self.sample.setDecimals(1)
        row = QtWidgets.QHBoxLayout()
        row.addWidget(QtWidgets.QLabel("Dose told for water of"))
        row.addWidget(self.sample)
        row.addStretch(1)
        for part in (self.rows, self.wrong, self.warmth):
            column.addWidget(part)
        column.addLayout(row)
        return column

    def _file(self) -> QtWidgets.QFormLayout:
        form = QtWidgets.QFormLayout()
        self.name = QtWidgets.QLineEdit()
        self.name.setToolTip("Name of the scan file. Written as NAME.partial.h5 until it is whole.")
        self.name.textEdited.connect(lambda _: self._named())
        self.name.editingFinished.connect(self._name_left)
        self.replace = QtWidgets.QCheckBox("Replace a scan of this name")
        self.replace.setToolTip("What has this name, whole or broken off, is thrown away when the scan begins.")
        self.replace.toggled.connect(self._look_again)
        self.operator = QtWidgets.QLineEdit()
        self.operator.setToolTip("Kept in the file with the notes.")
        self.notes = QtWidgets.QPlainTextEdit()
        self.notes.setMaximumHeight(52)
        self.notes.setToolTip("Whatever should be known of sample and scan; kept in the file.")
        self.notes.setTabChangesFocus(True)
        for label, widget in (
            ("Name", self.name),
            ("", self.replace),
            ("Operator", self.operator),
            ("Notes", self.notes),
        ):
            form.addRow(label, widget)
        return form

    def _endurance(self) -> QtWidgets.QFormLayout:
        form = QtWidgets.QFormLayout()
        self.reconnect = _number(30, 0, 3600, " s", "How long to wait for a device that has left; 0: not at all.")
        self.retries = QtWidgets.QSpinBox()
        self.retries.setRange(0, 100)
        self.retries.setToolTip(
            "How often a step that tube or stage broke is tried again. None by default: whether a tube that has "
            "tripped is switched on again with nobody there is for the laboratory to say."
        )
        self.beam_off = _number(
            BEAM_OFF_AFTER_S, 0, 3600, " s", "How long the beam stays on while the scan is paused; then it is off."
        )
        for label, widget in (
            ("Wait for a lost device", self.reconnect),
            ("Tries after tube or stage", self.retries),
            ("Beam off in a pause after", self.beam_off),
        ):
            form.addRow(label, widget)
        return form

    def _checks(self) -> QtWidgets.QVBoxLayout:
        column = QtWidgets.QVBoxLayout()
        self._found = QtWidgets.QVBoxLayout()
        self._found.addWidget(hint("Not looked yet. They are made when the scan starts, or by Check only."))
        column.addLayout(self._found)
        return column

    def _named(self) -> None:
        self._is_own_name = True
        self._look_again()

    def _name_left(self) -> None:
        self._is_own_name = bool(self.name.text().strip())

    def _look_again(self) -> None:
        self._looked_s = -LOOK_EVERY_S

    def _propose(self) -> None:
        """Name the file after the sample, unless a person has named it."""
        if self._is_own_name:
            return
        scan = (self._document.plan or self.session.state.plan).scan
        name = free_name(self.session.state.folder, scan.held or scan.kind).stem
        if self.name.text() != name:
            self.name.setText(name)

    def _why_taken(self) -> str:
        """Return why the name cannot be used; asked now and then, for it asks the disk."""
        path, state = self.path, self.session.state
        source = self.session.rig.snapshot().source
        warmth = f"The tube is {source.warm_up.value}." if source is not None and source.warm_up is not None else ""
        self.warmth.setText(warmth)
        self.warmth.setVisible(bool(warmth))
        if any(letter in self.name.text() for letter in '/\\:*?"<>|'):
            return 'A name may have none of / \\ : * ? " < > |. Another folder is chosen by File, Data folder.'
        if self.replace.isChecked():
            return ""
        if path.exists():
            return f"{path.name} exists already in {state.folder}: choose another name, or tick Replace."
        if path.with_name(path.stem + PARTIAL).exists():
            return f"A scan {path.name} was broken off: go on with it (above), choose another name, or tick Replace."
        return ""


NONE_FAILED = "no such check has failed."
_FORCE = "Scan although a check failed that may be overruled; the file's events say which."


def _number(value: float, low: float, high: float, suffix: str, tip: str) -> QtWidgets.QDoubleSpinBox:
    box = QtWidgets.QDoubleSpinBox()
    box.setRange(low, high)
    box.setDecimals(0)
    box.setSuffix(suffix)
    box.setValue(value)
    box.setToolTip(tip)
    return box


def _folded(text: str) -> str:
    import textwrap

    return textwrap.fill(text, 80)


def _plain(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
