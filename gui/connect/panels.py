"""Parts of the page Instrument: lines of facts, the stage's controls, and what was found on this machine."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from html import escape
from typing import TYPE_CHECKING

from pyqtgraph.Qt import QtCore, QtWidgets

from calibration.progress import Progress
from gui import theme
from gui.connect.facts import axes, pose_of
from gui.controls import ActionButton, allow, hint
from gui.rig import RigSnapshot
from gui.session import Session
from gui.state import Action
from gui.workers import Job, JobStatus

if TYPE_CHECKING:
    from acquisition.doctor import Finding
    from acquisition.instrument import Instrument

_WORDS = {"fail": "FAULT", "warn": "note", "ok": "good"}
CHECK = "Check packages, USB, its permissions, graphics and disk; takes some seconds."


class Facts(QtWidgets.QWidget):
    """Names and values under each other; values can be marked and copied."""

    def __init__(self) -> None:
        super().__init__()
        self._form = QtWidgets.QFormLayout(self)
        self._form.setContentsMargins(0, 0, 0, 0)
        self._form.setFieldGrowthPolicy(QtWidgets.QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        self._values: dict[str, QtWidgets.QLabel] = {}

    def show_facts(self, facts: Sequence[tuple[str, str]]) -> None:
        """Show these facts; only what has changed is drawn anew."""
        if [name for name, _ in facts] != list(self._values):
            self._lay_out([name for name, _ in facts])
        for name, text in facts:
            if self._values[name].text() != text:
                self._values[name].setText(text)

    def text_of(self, name: str) -> str:
        """Return what stands behind a name; empty where there is no such line."""
        return self._values[name].text() if name in self._values else ""

    def _lay_out(self, names: Sequence[str]) -> None:
        while self._form.rowCount():
            self._form.removeRow(0)
        self._values = {}
        for name in names:
            value = QtWidgets.QLabel()
            value.setWordWrap(True)
            value.setTextInteractionFlags(QtCore.Qt.TextInteractionFlag.TextSelectableByMouse)
            label = QtWidgets.QLabel(name)
            theme.make_faint(label)
            self._form.addRow(label, value)
            self._values[name] = value


class MovePanel(QtWidgets.QWidget):
    """Where the stage stands, and one move within its limits."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
        self._why_not = ""
        self._limits_shown: object = None
        self._is_filled = False
        self.place = QtWidgets.QLabel()
        self.place.setToolTip("Where the stage stands now, as its own encoders say.")
        self.fields: dict[str, QtWidgets.QDoubleSpinBox] = {}
        grid = QtWidgets.QGridLayout(self)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.addWidget(self.place, 0, 0, 1, 4)
        for column, axis in enumerate(axes(None)):
            box = QtWidgets.QDoubleSpinBox()
            box.setDecimals(2)
            box.setSuffix(f" {axis.unit}" if axis.unit != "°" else axis.unit)
            box.setKeyboardTracking(False)
            box.setToolTip(f"{axis.name}: where the stage is to go when you press Move; only what it reaches is taken.")
            box.setMinimumHeight(26)
            self.fields[axis.field] = box
            label = QtWidgets.QLabel(axis.name)
            theme.make_faint(label)
            grid.addWidget(label, 1, column)
            grid.addWidget(box, 2, column)
            grid.setColumnStretch(column, 1)
        self.go = ActionButton(
            "Move", "Move the stage to this pose. Beam off stops it at once.", lambda: self._why_not, self._move
        )
        grid.addWidget(self.go, 2, 3)
        grid.setRowStretch(3, 1)

    def refresh(self, now: RigSnapshot, why_not: str) -> None:
        """Take over limits, and, once, where it stands; say why it cannot move now."""
        self._why_not = why_not or (now.gantry_error and f"There is no stage to move: {now.gantry_error}.")
        self.go.refresh()
        if now.pose is None:
            self._is_filled = self._is_filled and bool(now.url)
            return
        if (now.limits, self._is_filled) == (self._limits_shown, True):
            return
        for axis in axes(now.limits):
            box = self.fields[axis.field]
            lowest, highest = axis.allowed
            box.setRange(lowest, highest)
            if not self._is_filled:
                box.setValue(axis.of(now.pose))
            told = f"{lowest:g} to {highest:g} {axis.unit}"
            known = told if axis.is_known else f"{told}; the stage does not tell its own limits"
            box.setToolTip(f"{axis.name} to move to: {known}.")
        self._limits_shown, self._is_filled = now.limits, True

    def show_place(self, text: str) -> None:
        """Show where it stands."""
        self.place.setText(f"Stands at {text}")

    def _move(self) -> None:
        for box in self.fields.values():
            box.interpretText()
        angle, lift, shift = (self.fields[axis.field].value() for axis in axes(None))
        pose = pose_of(angle, lift, shift)

        def work(instrument: Instrument) -> Generator[Progress, None, None]:
            yield Progress("move", 0, 0)
            instrument.gantry.move_to(pose)

        if not self._session.why_not(Action.MOVE):
            self._session.measure("Move of the stage", work)


class FindingsPanel(QtWidgets.QGroupBox):
    """What `mpxct doctor` finds: what is wrong first, each with its remedy.

    Parameters
    ----------
    look_again : callable
    """

    def __init__(self, look_again: Callable[[], object]) -> None:
        super().__init__("This machine")
        self.text = QtWidgets.QTextBrowser()
        self.text.setToolTip("What is missing or slow on this machine, and how to mend it; as mpxct doctor tells.")
        self.text.setFrameShape(QtWidgets.QFrame.Shape.NoFrame)
        self.text.viewport().setAutoFillBackground(False)  # a page of words, and nothing to write in
        self.text.setOpenExternalLinks(False)
        self.again = QtWidgets.QPushButton("Look again")
        allow(self.again, CHECK)
        self.again.clicked.connect(lambda: look_again())
        self._note = hint("Packages, USB, graphics and disk are looked at in a moment.")
        self._told: Job | None = None
        self._findings: Sequence[Finding] = ()
        row = QtWidgets.QHBoxLayout()
        row.addWidget(self._note, 1)
        row.addWidget(self.again)
        box = QtWidgets.QVBoxLayout(self)
        box.addLayout(row)
        box.addWidget(self.text, 1)

    def wait_for_it(self) -> None:
        """Show that it is being looked at."""
        allow(self.again, CHECK, "it is being looked at already.")
        self._note.setText("Looking at packages, USB, graphics and disk \N{HORIZONTAL ELLIPSIS}")

    def show_end_of(self, job: Job[tuple[Finding, ...]]) -> None:
        """Show what was found; the same twice does nothing."""
        if job is self._told:
            return
        self._told = job
        allow(self.again, CHECK)
        now = job.snapshot()
        if now.status is not JobStatus.DONE:
            self._note.setText(f"It could not be looked at: {now.error}")
            return
        n_faults = sum(finding.level.value == "fail" for finding in job.result)
        n_notes = sum(finding.level.value == "warn" for finding in job.result)
        if n_faults or n_notes:
            self._note.setText(f"{_count(n_faults, 'fault')}, {_count(n_notes, 'note')}; each with what to do.")
        else:
            self._note.setText("All is well.")
        self._findings = job.result
        self.restyle()

    def restyle(self) -> None:
        """Write it in the colours of the theme."""
        self.text.setHtml(as_html(self._findings))


def _count(n: int, what: str) -> str:
    return f"{n} {what}" + ("" if n == 1 else "s")


def as_html(findings: Sequence[Finding]) -> str:
    """Return findings as a table: how bad in a word, about what, how it is, and what to do."""
    look, rows = theme.now(), []
    colours = {"fail": look.bad, "warn": look.warn, "ok": look.good}
    for finding in findings:
        level = finding.level.value
        remedy = f"<br><i>{escape(finding.remedy)}</i>" if finding.remedy else ""
        rows.append(
            f'<tr><td style="color:{colours[level]}"><b>{_WORDS[level]}</b></td><td>{escape(finding.topic)}</td>'
            f"<td>{escape(finding.text)}{remedy}</td></tr>"
        )
    return f'<table cellpadding="3">{"".join(rows)}</table>'
