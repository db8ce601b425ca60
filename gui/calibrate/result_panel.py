"""The tab Result: what a step found beside the calibration in use, in words, plots and a table; accept or discard."""

from __future__ import annotations

import time
from collections.abc import Sequence
from html import escape
from pathlib import Path

from pyqtgraph.Qt import QtCore, QtWidgets

from calibration.store import Calibration
from gui.calibrate.archive import keep, new_path
from gui.calibrate.comparison import Row, sentences, table
from gui.calibrate.desk import Desk
from gui.calibrate.panel_view import PanelView
from gui.calibrate.panels import Panel
from gui.calibrate.results import result_panels
from gui.calibrate.sequence import TITLES
from gui.controls import ActionButton, hint

PATIENCE_S = 0.3
"""So long what was shown before may stay, while what is to be shown is made."""


class Rows(QtWidgets.QTableWidget):
    """A table of two calibrations."""

    def __init__(self) -> None:
        super().__init__(0, 4)
        self.setHorizontalHeaderLabels(["", "before", "after", "change"])
        self.verticalHeader().setVisible(False)
        self.setEditTriggers(QtWidgets.QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setSelectionMode(QtWidgets.QAbstractItemView.SelectionMode.NoSelection)
        self.setShowGrid(False)
        self.setAlternatingRowColors(True)
        self.setWordWrap(True)
        self.setToolTip("The figures of both calibrations, with their units in the first column.")
        header = self.horizontalHeader()
        header.setDefaultAlignment(QtCore.Qt.AlignmentFlag.AlignLeft | QtCore.Qt.AlignmentFlag.AlignVCenter)
        header.setSectionResizeMode(QtWidgets.QHeaderView.ResizeMode.Stretch)
        header.setSectionResizeMode(0, QtWidgets.QHeaderView.ResizeMode.ResizeToContents)
        self._fit = QtCore.QTimer(self)
        self._fit.setSingleShot(True)
        self._fit.timeout.connect(self.resizeRowsToContents)
        header.sectionResized.connect(lambda *_: self._fit.start())  # how many lines a text takes is another then

    def show_rows(self, rows: Sequence[Row], before: str = "before", after: str = "after") -> None:
        """Show these; `before` and `after` name the two."""
        self.setHorizontalHeaderLabels(["", before, after, "change"])
        self.setRowCount(len(rows))
        for number, row in enumerate(rows):
            for column, text in enumerate((row.quantity, row.before, row.after, row.change)):
                item = QtWidgets.QTableWidgetItem(text)
                item.setToolTip(text)
                if row.change and row.change != "the same" and column == 3:
                    font = item.font()
                    font.setBold(True)
                    item.setFont(font)
                self.setItem(number, column, item)
        self._fit.start()


class ResultPanel(QtWidgets.QWidget):
    """Shows the candidate against the calibration in use, or the latter alone."""

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        self._desk, self._questions = desk, desk.session.questions("results")
        self._shown: tuple[object, ...] = ()
        self._begun: tuple[object, ...] = ()
        """What is shown or being made ready, since `_begun_s`; `_is_old` until it is there."""
        self._begun_s = 0.0
        self._is_old = False
        self._saving = ""
        self._told_of: object = None
        """The candidate of which something may have been said."""
        self._step = ""
        self._words = QtWidgets.QLabel()
        self._words.setWordWrap(True)
        self._words.setTextFormat(QtCore.Qt.TextFormat.RichText)
        self.accept = ActionButton(
            "Accept", "Use it from now on, and save it in the session's folder under a name of its own.",
            self._why_no_candidate, self._accept,
        )  # fmt: skip
        self.accept_as = ActionButton(
            "Accept as...",
            "Use it from now on, and save it under a name that you choose; a file that has it is copied first "
            "(NAME.bak-DATE) and stays in the history.",
            self._why_no_candidate, self._accept_as,
        )  # fmt: skip
        self.discard = ActionButton(
            "Discard", "Put it away; the calibration in use stays as it is.", self._why_no_candidate, self._discard
        )
        self.bring_back = ActionButton(
            "Bring back", "Take the calibration that was discarded last.", self._why_not_bring_back, self._bring_back
        )
        self.buttons = (self.accept, self.accept_as, self.discard, self.bring_back)
        row = QtWidgets.QHBoxLayout()
        for button in self.buttons:
            row.addWidget(button)
        row.addStretch(1)
        self.panels = PanelView("")
        self.rows = Rows()
        parts = QtWidgets.QTabWidget()
        parts.setDocumentMode(True)
        parts.setTabToolTip(parts.addTab(self.panels, "Plots"), "What the chosen step found.")
        parts.setTabToolTip(parts.addTab(self.rows, "Table"), "The figures of all steps.")
        self._said = hint()
        layout = QtWidgets.QVBoxLayout(self)
        layout.addWidget(self._words)
        layout.addLayout(row)
        layout.addWidget(self._said)
        layout.addWidget(parts, 1)
        self._said.hide()

    def show_step(self, step: str) -> None:
        """Show the plots of this step from now on."""
        self._step = step

    def refresh(self) -> None:
        """Show what is new."""
        for button in self.buttons:
            button.refresh()
        before, found = self._desk.session.state.calibration, self._desk.candidate
        after = found or before
        wanted = (before, found, self._step)
        self._drop_what_is_old(wanted)
        if wanted == self._shown:
            return
        step, has_candidate = self._step, found is not None
        if after is None:
            self._shown, self._is_old = wanted, False
            self._words.setText("There is no calibration yet: run the steps on the left, or open one under History.")
            self.panels.show_panels([], "Nothing to show yet.")
            self.rows.setRowCount(0)
            return

        def make() -> tuple[list[str], list[Row], list[Panel]]:
            old = before if has_candidate else None
            told = sentences(old, after) if has_candidate else []
            return told, table(old, after), result_panels(step, after, old)

        self._shown = wanted
        self._questions.ask("Plots of the result", make, lambda found: self._show(*found, step))

    def _drop_what_is_old(self, wanted: tuple[object, ...]) -> None:
        """Show nothing rather than plots of something else, where new ones take long to be made."""
        now_s = time.monotonic()
        if wanted != self._begun:
            self._begun, self._begun_s, self._is_old = wanted, now_s, True
            if wanted[1] is not None and wanted[1] is not self._told_of:
                self._tell("")
            self._told_of = wanted[1]
        if self._is_old and now_s - self._begun_s > PATIENCE_S:
            self._is_old = False
            self._words.setText("A moment: the plots are being made.")
            self.panels.show_panels([], "A moment.")
            self.rows.setRowCount(0)

    def _show(self, told: Sequence[str], rows: Sequence[Row], panels: Sequence[Panel], step: str) -> None:
        session = self._desk.session
        self._is_old = False
        if self._desk.candidate is not None:
            steps = ", ".join(TITLES[each] for each in self._new_steps())
            words = f"<b>A new calibration waits to be accepted</b> ({escape(steps)}).<br>"
            words += "<br>".join(escape(each) for each in told)
        else:
            path = session.state.calibration_path
            words = f"<b>The calibration in use</b>: {escape(path.name if path else 'not saved yet')}"
        self._words.setText(words)
        has_two = self._desk.candidate is not None and session.state.calibration is not None
        self.rows.show_rows(rows, "in use", "in use" if self._desk.candidate is None else "new")
        self.rows.setColumnHidden(1, not has_two)
        self.rows.setColumnHidden(3, not has_two)
        self.panels.show_panels(panels, f"{TITLES[step]} has not been done in this calibration.")

    def _new_steps(self) -> list[str]:
        accepted = self._desk.session.state.calibration
        old = set() if accepted is None else set(accepted.history)
        history = () if self._desk.candidate is None else self._desk.candidate.history
        return list(dict.fromkeys(record.step for record in history if record not in old))

    def _why_no_candidate(self) -> str:
        if self._desk.job is not None:
            return f"{self._desk.job.title} is running; wait until it ends."
        if self._questions.is_asked(self._saving):
            return "it is being saved."
        return "" if self._desk.candidate is not None else "nothing new was measured since the last was accepted."

    def _why_not_bring_back(self) -> str:
        if self._desk.candidate is not None:
            return "another one waits to be accepted."
        return "" if self._desk.discarded is not None else "none was discarded."

    def _accept(self) -> None:
        self.save(new_path(self._desk.session.state.folder))

    def _accept_as(self) -> None:
        start = self._desk.session.state.calibration_path or new_path(self._desk.session.state.folder)
        name, _ = QtWidgets.QFileDialog.getSaveFileName(
            self, "Accept and save as", str(start), "Calibrations (*.h5)",
            options=QtWidgets.QFileDialog.Option.DontConfirmOverwrite,
        )  # fmt: skip
        if name:
            path = Path(name)
            self.save(path if path.suffix == ".h5" else path.with_name(path.name + ".h5"))

    def save(self, path: Path) -> None:
        """Save the candidate under a name, and then use it; what cannot be saved goes on waiting."""
        found = self._desk.candidate
        assert found is not None, "nobody accepts what is not there"
        is_backed_up = path.exists()

        def saved(where: Path) -> None:
            self._desk.accept(found, where)
            copied = " The file of that name was copied first, and is in the history." if is_backed_up else ""
            self._tell(f"Accepted, and saved as {where.name}.{copied}")

        self._saving = f"Saving {path.name}"
        self._questions.ask(self._saving, lambda: keep(found, path), saved, is_kept=True)

    def _discard(self) -> None:
        self._desk.discard()
        self._tell("Discarded; the calibration in use is as it was.")

    def _bring_back(self) -> None:
        self._desk.bring_back()
        self._tell("")

    def _tell(self, text: str) -> None:
        self._said.setText(text)
        self._said.setVisible(bool(text))


def conditions_words(calibration: Calibration) -> str:
    """Return of which detector and mode a calibration is, in a line."""
    c = calibration
    return f"{c.chip_id}, {c.conditions.mode}, {c.gain}, {c.bias_v:g} V"
