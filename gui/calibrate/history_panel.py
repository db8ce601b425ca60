"""The tab History: the calibrations of the folder, any two of them beside each other, and how they drift."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pyqtgraph.Qt import QtCore, QtGui, QtWidgets

from calibration.store import Calibration
from firmware_iface.errors import MpxctError
from gui import theme
from gui.calibrate.archive import Entry, opened, reported, scan_folder, write_note
from gui.calibrate.comparison import Row, comparison_panels, drift_panels, sentences, table
from gui.calibrate.dates import when
from gui.calibrate.desk import Desk
from gui.calibrate.panel_view import PanelView
from gui.calibrate.panels import Panel
from gui.calibrate.result_panel import Rows, conditions_words
from gui.calibrate.run import conditions_now
from gui.controls import ActionButton, allow

HEAD = ("When", "File", "Of", "sigma, keV", "gain, DAC/keV", "not used, pixels", "Steps", "Note")
LOOK_EVERY_MS = 3000
LOOKING = "Looking for calibrations"
WIDEST_PX = 250
NOTE = "Kept in a text file beside the calibration, which itself stays as it was measured. Enter saves."


class HistoryPanel(QtWidgets.QWidget):
    """Lists calibrations; what is chosen is compared with another chosen one, or with the one in use."""

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        self._desk, self._questions = desk, desk.session.questions("history")
        self._entries: tuple[Entry, ...] = ()
        self._listed: object = None
        self._timer = QtCore.QTimer(self)
        self._timer.setInterval(LOOK_EVERY_MS)
        self._timer.timeout.connect(self.look)
        self.list = QtWidgets.QTreeWidget()
        self.list.setHeaderLabels(HEAD)
        self.list.setRootIsDecorated(False)
        self.list.setAlternatingRowColors(True)
        self.list.setSelectionMode(QtWidgets.QAbstractItemView.SelectionMode.ExtendedSelection)
        self.list.setToolTip(
            "Choose one to compare it with the calibration in use, or two (Ctrl and click) with each other."
        )
        self.list.itemSelectionChanged.connect(self._choose)
        self.use = ActionButton(
            "Use this one", "Make the chosen calibration the one in use.", self._why_not_use, self._use
        )
        self.open = ActionButton(
            "Open file...", "Use a calibration file from anywhere.", self._why_not_open, self._open
        )
        self.report = ActionButton(
            "Report...", "Write what the chosen calibration measured as one HTML page, and show it in the browser.",
            self._why_not_one, self._report,
        )  # fmt: skip
        self.note = QtWidgets.QLineEdit()
        self.note.setPlaceholderText("A note about the chosen calibration")
        self.note.setToolTip(NOTE)
        self.note.returnPressed.connect(self._note)
        self.over_time = QtWidgets.QCheckBox("Over time")
        self.over_time.setToolTip("Instead of a comparison: how all calibrations of the same chip and mode changed.")
        self.over_time.toggled.connect(lambda: self._compare())
        self.buttons = (self.use, self.open, self.report)
        row = QtWidgets.QHBoxLayout()
        for button in self.buttons:
            row.addWidget(button)
        row.addWidget(self.note, 1)
        row.addWidget(self.over_time)
        self._words = QtWidgets.QLabel()
        self._words.setWordWrap(True)
        self.panels = PanelView("Choose a calibration above.")
        self.rows = Rows()
        below = QtWidgets.QTabWidget()
        below.setDocumentMode(True)
        below.setTabToolTip(below.addTab(self.panels, "Plots"), "What is other in one than in the other.")
        below.setTabToolTip(below.addTab(self.rows, "Table"), "The figures of both.")
        parts = QtWidgets.QSplitter(QtCore.Qt.Orientation.Vertical)
        upper = QtWidgets.QWidget()
        inside = QtWidgets.QVBoxLayout(upper)
        inside.setContentsMargins(0, 0, 0, 0)
        inside.addWidget(self.list, 1)
        inside.addLayout(row)
        inside.addWidget(self._words)
        parts.addWidget(upper)
        parts.addWidget(below)
        parts.setSizes([260, 420])
        QtWidgets.QVBoxLayout(self).addWidget(parts)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """What was found in the folder, the newest first."""
        return self._entries

    @property
    def chosen(self) -> list[Entry]:
        """What is chosen in the list, from top to bottom."""
        return [entry for n, entry in enumerate(self._entries) if self._item(n).isSelected()]

    def showEvent(self, event: QtGui.QShowEvent) -> None:
        """Look into the folder while somebody sees it."""
        super().showEvent(event)
        self.look()
        self._timer.start()

    def hideEvent(self, event: QtGui.QHideEvent) -> None:
        """Leave the folder alone."""
        super().hideEvent(event)
        self._timer.stop()

    def look(self) -> None:
        """Look what calibrations there are, in the background."""
        if self._questions.is_asked(LOOKING):  # what it has read by then is known, and not read again
            return
        folder, known = self._desk.session.state.folder, {entry.path: entry for entry in self._entries}
        self._questions.ask(LOOKING, lambda: scan_folder(folder, known), self._list)

    def refresh(self) -> None:
        """Show what is new."""
        for button in self.buttons:
            button.refresh()
        allow(self.note, NOTE, self._why_not_one())
        if self._listed != self._wanted_list():
            self._fill()

    def _wanted_list(self) -> object:
        return (self._entries, self._desk.session.state.calibration_path, theme.now())

    def _list(self, entries: tuple[Entry, ...]) -> None:
        was = [(entry.path, entry.stamp, entry.note) for entry in self._entries]
        if was != [(entry.path, entry.stamp, entry.note) for entry in entries]:
            self._entries = entries
            self._fill()

    def _fill(self) -> None:
        chosen = {self.list.topLevelItem(n).toolTip(1) for n in self._selected_numbers()}  # pyright: ignore[reportOptionalMemberAccess]
        self._listed = self._wanted_list()
        state = self._desk.session.state
        self.list.blockSignals(True)
        self.list.clear()
        for entry in self._entries:
            item = QtWidgets.QTreeWidgetItem(self._texts(entry, state.calibration_path))
            item.setToolTip(1, str(entry.path))
            now = conditions_now(state.plan, self._desk.session.rig.snapshot(), entry.calibration)
            foreign = entry.foreign(now)
            if entry.fault:
                item.setText(2, f"damaged: {entry.fault}")
                item.setForeground(2, QtGui.QBrush(QtGui.QColor(theme.now().bad)))
                item.setToolTip(2, entry.fault)
            elif foreign:
                item.setText(2, f"! {item.text(2)} (other conditions)")
                item.setForeground(2, QtGui.QBrush(QtGui.QColor(theme.now().warn)))
                item.setToolTip(2, "It does not hold for the instrument and the plan of now: " + "; ".join(foreign))
            if entry.path == state.calibration_path:
                bold = self.list.font()
                bold.setBold(True)
                for column in range(len(HEAD)):
                    item.setFont(column, bold)
            self.list.addTopLevelItem(item)
            item.setSelected(str(entry.path) in chosen)
        for column in range(6):
            self.list.resizeColumnToContents(column)
            self.list.setColumnWidth(column, min(self.list.columnWidth(column), WIDEST_PX))
        if self._entries and not self._selected_numbers():
            self._item(0).setSelected(True)
        self.list.blockSignals(False)
        if not self._entries:
            self._words.setText(f"There is no calibration in {state.folder} yet.")
        self._choose()

    def _texts(self, entry: Entry, in_use: Path | None) -> list[str]:
        c = entry.calibration
        name = entry.path.name + (" (in use)" if entry.path == in_use else "")
        name += " (copy of an overwritten file)" if entry.is_backup else ""
        return [when(entry.made), name, conditions_words(c) if c is not None else "", *entry.cells, entry.note]

    def _item(self, number: int) -> QtWidgets.QTreeWidgetItem:
        item = self.list.topLevelItem(number)
        assert item is not None
        return item

    def _selected_numbers(self) -> list[int]:
        return [n for n in range(self.list.topLevelItemCount()) if self._item(n).isSelected()]

    def _choose(self) -> None:
        chosen = self.chosen
        self.note.setText(chosen[0].note if len(chosen) == 1 else "")
        self._compare()

    def _pair(self) -> tuple[Calibration | None, Calibration | None, str, str]:
        """Return the older and the newer of what is compared, and what they are called."""
        whole = [entry for entry in self.chosen if entry.calibration is not None]
        state = self._desk.session.state
        if len(whole) >= 2:
            newer, older = whole[0], whole[-1]
            return older.calibration, newer.calibration, older.path.name, newer.path.name
        if len(whole) == 1 and whole[0].path != state.calibration_path:
            return whole[0].calibration, state.calibration, whole[0].path.name, "the one in use"
        if len(whole) == 1:
            return None, whole[0].calibration, "", whole[0].path.name
        return None, None, "", ""

    def _compare(self) -> None:
        before, after, before_name, after_name = self._pair()
        if before is not None and after is None:
            before, after, before_name, after_name = None, before, "", before_name
        is_over_time = self.over_time.isChecked()
        same = [e.calibration for e in self._entries if e.calibration is not None]
        like = after or self._desk.session.state.calibration
        if like is not None:
            key = (like.chip_id, like.conditions.mode, like.gain)
            same = [c for c in same if (c.chip_id, c.conditions.mode, c.gain) == key]
        if after is None and not is_over_time:
            self.panels.show_panels([], "Choose a calibration above.")
            self.rows.setRowCount(0)
            if self._entries:
                self._words.setText("")
            return

        def make() -> tuple[list[str], list[Row], list[Panel]]:
            rows = table(before, after) if after is not None else []
            told = sentences(before, after) if before is not None and after is not None else []
            if is_over_time:
                return told, rows, drift_panels(same)
            return told, rows, comparison_panels(before, after) if before is not None and after is not None else []

        def show(found: tuple[list[str], list[Row], list[Panel]]) -> None:
            told, rows, panels = found
            self._words.setText(f"From {before_name} to {after_name}: {' '.join(told)}" if told else "")
            self.rows.show_rows(rows, before_name, after_name)
            self.rows.setColumnHidden(1, before is None)
            self.rows.setColumnHidden(3, before is None)
            self.panels.show_panels(panels, self._nothing(is_over_time))

        self._questions.ask("Comparing calibrations", make, show)

    def _nothing(self, is_over_time: bool) -> str:
        if is_over_time:
            return "A drift needs two calibrations of the same chip, mode and gain."
        return "Choose another one as well (Ctrl and click) to compare them." if self.chosen else "Choose one above."

    def _why_not_one(self) -> str:
        if len(self.chosen) != 1:
            return "choose one calibration in the list."
        return "its file is damaged." if self.chosen[0].calibration is None else ""

    def _why_not_use(self) -> str:
        if why := self._why_not_open() or self._why_not_one():
            return why
        return "it is in use already." if self.chosen[0].path == self._desk.session.state.calibration_path else ""

    def _why_not_open(self) -> str:
        if self._desk.job is not None:
            return f"{self._desk.job.title} is running; wait until it ends."
        return "a new calibration waits: accept or discard it first." if self._desk.candidate is not None else ""

    def _use(self) -> None:
        entry = self.chosen[0]
        self._desk.session.change(calibration=entry.calibration, calibration_path=entry.path)

    def _open(self) -> None:
        folder = str(self._desk.session.state.folder)
        name, _ = QtWidgets.QFileDialog.getOpenFileName(
            self, "Open a calibration", folder, "Calibrations (*.h5 *.bak-*);;All files (*)"
        )
        if name:
            self.open_file(Path(name))

    def open_file(self, path: Path) -> None:
        """Use a calibration file, once it is read."""
        session = self._desk.session
        self._questions.ask(
            "Opening a calibration", lambda: opened(path),
            lambda found: session.change(calibration=found, calibration_path=path),
        )  # fmt: skip

    def _report(self) -> None:
        entry = self.chosen[0]
        start = entry.path.with_name(entry.path.name.removesuffix(".h5") + ".html")
        name, _ = QtWidgets.QFileDialog.getSaveFileName(self, "Write the report", str(start), "HTML (*.html)")
        if name:
            self.write_report(entry, Path(name))

    def write_report(self, entry: Entry, path: Path) -> None:
        """Write the report of a calibration, and show it."""
        calibration = entry.calibration
        assert calibration is not None

        def show(where: Path) -> None:
            self._words.setText(f"The report is {where}")
            QtGui.QDesktopServices.openUrl(QtCore.QUrl.fromLocalFile(str(where)))

        self._questions.ask(f"Report {path.name}", lambda: reported(calibration, path), show, is_kept=True)

    def _note(self) -> None:
        if self._why_not_one():
            return
        try:
            write_note(self.chosen[0].path, self.note.text())
        except (MpxctError, OSError) as error:
            self._desk.session.fail("The note was not saved", error)
        self.look()

    def names(self) -> Sequence[str]:
        """Return what the list shows, by file."""
        return [entry.path.name for entry in self._entries]
