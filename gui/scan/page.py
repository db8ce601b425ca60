"""The page Scan: the plan and its cost, the run and what it has seen so far, and scans that were broken off."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from pyqtgraph.Qt import QtCore, QtWidgets

from acquisition.plan import Plan
from gui import theme
from gui.controls import ActionButton
from gui.page import Page
from gui.scan.document import text_of
from gui.scan.interrupted import Interrupted, find_interrupted
from gui.scan.plan_panel import PlanPanel
from gui.scan.plan_text import judge
from gui.scan.run import Order, Preflight, ScanRun, look_first
from gui.scan.run_panel import RunPanel
from gui.scan.start_panel import StartPanel
from gui.state import Action
from gui.workers import JobStatus

if TYPE_CHECKING:
    from acquisition.runner import ScanSummary

RECONSTRUCT = "Reconstruct"
PLAN, RUN = 0, 1


class ScanPage(Page):
    """Plan a scan, and run it."""

    title = "Scan"

    @staticmethod
    def prepare() -> None:
        """Read a plan: the first takes long."""
        judge(text_of(Plan()))

    def build(self) -> Iterator[None]:
        """Make the widgets in pieces."""
        session = self.session
        self.plan = PlanPanel(session)
        yield
        yield from self.plan.form.pieces()
        self.plan.show_document()
        yield
        self.start = StartPanel(session, self.plan.document, self.begin, self.look)
        yield
        self.run = RunPanel(session, self._reconstruct)
        yield
        self.scan_run: ScanRun | None = None
        self._questions = session.questions("scans that were broken off")
        self._offered: tuple[Interrupted, ...] = ()
        self._folder = session.state.folder
        split = QtWidgets.QSplitter(QtCore.Qt.Orientation.Horizontal)
        split.addWidget(self.plan)
        split.addWidget(self.start)
        split.setStretchFactor(0, 3)
        split.setStretchFactor(1, 2)
        split.setChildrenCollapsible(False)
        self.tabs = QtWidgets.QTabWidget()
        self.tabs.setDocumentMode(True)
        self.tabs.addTab(split, "Plan")
        self.tabs.addTab(self.run, "Run")
        self.tabs.setTabToolTip(PLAN, "What the scan will do, and what it costs.")
        self.tabs.setTabToolTip(RUN, "How far it is, and what it has seen so far.")
        self.again = ActionButton(
            "Interrupted scans",
            "Show the scans in this folder that were broken off, to go on with one of them.",
            lambda: "" if self._offered else "no scan in this folder was broken off.",
            self._offer_again,
        )
        self.tabs.setCornerWidget(self.again)
        column = QtWidgets.QVBoxLayout(self)
        column.addWidget(self._offer())
        column.addWidget(self.tabs, 1)
        self.look_for_interrupted()
        yield

    def refresh(self) -> None:
        """Show what is new."""
        if self.session.state.folder != self._folder:
            self._folder = self.session.state.folder
            self.look_for_interrupted()
        if self.offer.isVisible():
            self.resume.refresh()
        self.again.refresh()
        if self.plan.refresh():
            self.tabs.setCurrentIndex(PLAN)
        if self.tabs.currentIndex() == PLAN:
            self.start.refresh()
        else:
            self.run.refresh()

    def restyle(self) -> None:
        """Take the colours of another theme."""
        self.plan.text.restyle()
        self.start.restyle()
        self.run.restyle()

    def save(self) -> dict[str, object]:
        """Return what is asked for again at the next start."""
        return {
            "operator": self.start.operator.text(),
            "reconnect_s": self.start.reconnect.value(),
            "beam_off_after_s": self.start.beam_off.value(),
            "text": self.plan.document.text,
        }

    def restore(self, saved: dict[str, object]) -> None:
        """Take what an earlier start saved; a plan only where none was brought in meanwhile."""
        operator, text = saved.get("operator"), saved.get("text")
        if isinstance(operator, str):
            self.start.operator.setText(operator)
        for name, box in (("reconnect_s", self.start.reconnect), ("beam_off_after_s", self.start.beam_off)):
            value = saved.get(name)
            if isinstance(value, int | float):
                box.setValue(value)
        if isinstance(text, str) and self.session.state.plan == Plan() and not self.plan.document.can_undo:
            self.plan.begin_with(text)

    @property
    def can_undo(self) -> bool:
        """Whether there is an edit of the plan to take back, and the plan is seen."""
        return self.tabs.currentIndex() == PLAN and self.plan.document.can_undo

    @property
    def can_redo(self) -> bool:
        """Whether there is an edit of the plan to make again, and the plan is seen."""
        return self.tabs.currentIndex() == PLAN and self.plan.document.can_redo

    def undo(self) -> None:
        """Take the last edit of the plan back."""
        if self.can_undo:
            self.plan.undo()

    def redo(self) -> None:
        """Make the edit of the plan again that was taken back."""
        if self.can_redo:
            self.plan.redo()

    def look_for_interrupted(self) -> None:
        """Look in the session's folder for scans that were broken off."""
        folder = self.session.state.folder
        self._questions.ask("Interrupted scans", lambda: find_interrupted(folder), self._show_interrupted)

    def look(self, order: Order) -> None:
        """Make the checks only."""
        self.session.measure("Checks before the scan", look_first(order), self.start.show_checks)

    def begin(self, order: Order) -> None:
        """Make the checks, and run where they allow it."""

        def then(preflight: Preflight) -> None:
            self.start.show_checks(preflight)
            if preflight.failed and not (order.is_forced and preflight.is_forcible):
                self.tabs.setCurrentIndex(PLAN)
                return
            self.launch(order)

        self.session.measure("Checks before the scan", look_first(order), then)

    def launch(self, order: Order) -> None:
        """Run it."""
        run = self.scan_run = ScanRun(order, on_health=self.session.rig.note_run)
        job = self.session.measure(
            f"Scan of {order.plan.scan.held or 'the open beam'}",
            run.work,
            then=self._ended,
            stop=run.stop,
            otherwise=self._broken,
        )
        self.run.watch(run, job)
        self.tabs.setCurrentIndex(RUN)
        self.offer.hide()

    def _ended(self, summary: ScanSummary) -> None:
        self.session.change(scan_path=summary.path)
        self.run.ended(summary)
        self.look_for_interrupted()

    def _broken(self, status: JobStatus) -> None:
        self.run.broken(status)
        self.look_for_interrupted()

    def _offer(self) -> QtWidgets.QFrame:
        """Make the line that offers to go on with a scan."""
        self.offer = QtWidgets.QFrame()
        self.offer.setStyleSheet(f"QFrame#offer {{ border: 1px solid {theme.WARN}; border-radius: 4px; }}")
        self.offer.setObjectName("offer")
        row = QtWidgets.QHBoxLayout(self.offer)
        row.setContentsMargins(8, 4, 8, 4)
        row.addWidget(QtWidgets.QLabel("Interrupted scan:"))
        self.which = QtWidgets.QComboBox()
        self.which.setToolTip("Scans in this folder that were broken off; each keeps its own plan and calibration.")
        row.addWidget(self.which, 1)
        self.resume = ActionButton(
            "Go on with it",
            "Take the views that are missing, with the plan and the calibration that it was begun with.",
            self._why_no_resume,
            self._resume,
        )
        row.addWidget(self.resume)
        later = QtWidgets.QPushButton("Not now")
        later.setToolTip("Hide this line; the file stays, and is offered again at the next start.")
        later.clicked.connect(self.offer.hide)
        row.addWidget(later)
        self.offer.hide()
        return self.offer

    def _show_interrupted(self, found: tuple[Interrupted, ...]) -> None:
        job = self.session.job("instrument")
        running = self.scan_run.order.path if self.scan_run is not None and job is not None else None
        self._offered = tuple(each for each in found if each.path != running)
        self.which.clear()
        for each in self._offered:
            self.which.addItem(each.told)
        self.offer.setVisible(bool(self._offered) and running is None)

    def _offer_again(self) -> None:
        self.offer.show()
        self.look_for_interrupted()

    def _chosen(self) -> Interrupted | None:
        place = self.which.currentIndex()
        return self._offered[place] if 0 <= place < len(self._offered) else None

    def _why_no_resume(self) -> str:
        chosen = self._chosen()
        if chosen is None:
            return "There is none."
        if chosen.why_not:
            return chosen.why_not
        if self.session.state.calibration is not None or self.session.job("instrument") is not None:
            return self.session.why_not(Action.SCAN)
        return self.session.why_not(Action.LIVE)  # its own calibration comes with it

    def _resume(self) -> None:
        chosen = self._chosen()
        if chosen is None or chosen.plan is None or chosen.calibration is None:
            return
        if self.session.state.calibration is None:
            self.session.change(calibration=chosen.calibration)
        base = self.start.order()
        order = replace(
            base, path=chosen.path, plan=chosen.plan, calibration=chosen.calibration, is_resumed=True,
            is_overwriting=False, notes=chosen.notes,
        )  # fmt: skip
        self.begin(order)

    def _reconstruct(self) -> None:
        """Go to the page that reconstructs, in whatever tabs this page stands."""
        widget = self.parentWidget()
        while widget is not None:
            if isinstance(widget, QtWidgets.QTabWidget):
                for place in range(widget.count()):
                    if widget.tabText(place) == RECONSTRUCT:
                        widget.setCurrentIndex(place)
                return
            widget = widget.parentWidget()
