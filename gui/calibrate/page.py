"""The page Calibrate: steps on the left, what they show on the right, and whether to keep it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from html import escape

from pyqtgraph.Qt import QtCore, QtWidgets

from acquisition.plan import Plan, passes_kev
from firmware_iface.errors import MpxctError
from gui.calibrate.archive import keep_waiting
from gui.calibrate.dates import age_words
from gui.calibrate.desk import Desk
from gui.calibrate.history_panel import HistoryPanel
from gui.calibrate.live import live_panels
from gui.calibrate.panel_view import PanelView
from gui.calibrate.result_panel import ResultPanel, conditions_words
from gui.calibrate.sequence import TITLES, estimate
from gui.calibrate.step_panel import StepDetails, StepList
from gui.controls import ActionButton, JobBar, restore_sizes
from gui.page import Page

STEPS_EVERY_S = 0.5
NOW, RESULT, HISTORY = range(3)
LIVE = "Live plots"
NOTHING_LIVE = "What a step measures is drawn here while it runs: choose a step on the left, and run it."
_log = logging.getLogger("mpxct.window")


class CalibratePage(Page):
    """Calibrate the detector step by step."""

    title = "Calibrate"

    @staticmethod
    def prepare() -> None:
        """Make ready what the first look needs: tables of lines and attenuation."""
        for name in TITLES:
            estimate(name, Plan())

    def build(self) -> Iterator[None]:
        """Make the widgets in pieces."""
        self.desk = Desk(self.session)
        self._questions = self.session.questions("live plots")
        self._seen: object = None
        self._was_running = False
        self._clock = QtCore.QElapsedTimer()
        self.in_use = QtWidgets.QLabel()
        self.in_use.setWordWrap(True)
        self.in_use.setTextFormat(QtCore.Qt.TextFormat.RichText)
        self.steps = StepList(self.desk)
        yield
        self.details = StepDetails(self.desk)
        self.run_one = ActionButton(
            "Run this step", "Run the chosen step on the instrument.", self._why_not_one, self._run_one
        )
        self.run_all = ActionButton(
            "Run all",
            "Begin a new calibration and run the plan's steps (bold in the list) one after the other.",
            self._why_not_all, self._run_all,
        )  # fmt: skip
        self.forced = QtWidgets.QCheckBox("even under other conditions")
        self.forced.setToolTip(
            "Let a step build on a calibration of another chip, mode, gain, bias or temperature; its record says so."
        )
        self.forced.toggled.connect(self._force)
        self.bar = JobBar(
            "Stop after this step",
            "End when the present step is over; what was done by then waits to be accepted.",
        )
        self.live = PanelView(NOTHING_LIVE)
        yield
        self.result = ResultPanel(self.desk)
        yield
        self.history = HistoryPanel(self.desk)
        yield
        self.tabs = QtWidgets.QTabWidget()
        for widget, name, tip in (
            (self.live, "Measuring", "What the running step shows, as it is measured."),
            (self.result, "Result", "What the chosen step found, beside the calibration in use; accept or discard."),
            (self.history, "History", "The calibrations in the folder, to compare and to go back to."),
        ):
            self.tabs.setTabToolTip(self.tabs.addTab(widget, name), tip)
        self._lay_out()
        yield
        self.steps.chosen.connect(self._choose)
        self.steps.choose("equalise")
        yield

    def refresh(self) -> None:
        """Show what is new; cheap where nothing is."""
        is_running = self.desk.job is not None
        if is_running != self._was_running:
            self._change(is_running)
        self.bar.refresh()
        for button in (self.run_one, self.run_all):
            button.refresh()
        if not self._clock.isValid() or self._clock.elapsed() > 1000 * STEPS_EVERY_S:
            self._clock.start()
            self.steps.refresh()
            self.details.refresh()
            self._tell_in_use()
        self._refresh_live()
        shown = self.tabs.currentWidget()
        if isinstance(shown, ResultPanel | HistoryPanel):
            shown.refresh()

    def restyle(self) -> None:
        """Take the colours of another theme."""
        for panels in (self.live, self.result.panels, self.history.panels):
            panels.restyle()

    def save(self) -> dict[str, object]:
        """Return what shall be there again at the next start."""
        return {
            "step": self.steps.name,
            "sizes": self._split.sizes(),
            "tab": self.tabs.currentIndex(),
            "took_s": dict(self.desk.took_s),
        }

    def restore(self, saved: dict[str, object]) -> None:
        """Take settings of an earlier start; what is odd in them is left alone."""
        took_s, tab = saved.get("took_s"), saved.get("tab")
        self.steps.choose(str(saved.get("step")))
        restore_sizes(self._split, saved.get("sizes"))
        if isinstance(tab, int) and 0 <= tab < self.tabs.count():
            self.tabs.setCurrentIndex(tab)
        if isinstance(took_s, dict):
            self.desk.took_s |= {
                name: float(seconds) for name, seconds in took_s.items()
                if name in TITLES and isinstance(seconds, int | float)
            }  # fmt: skip

    @property
    def can_undo(self) -> bool:
        """Whether there is a change of the plan to take back."""
        return self.desk.can_undo

    @property
    def can_redo(self) -> bool:
        """Whether there is a change of the plan to make again."""
        return self.desk.can_redo

    def undo(self) -> None:
        """Take the last change of the plan back."""
        self.details.take_back()

    def redo(self) -> None:
        """Make the change of the plan again that was taken back."""
        self.details.make_again()

    def end(self) -> None:
        """Keep what waits to be accepted: it may have taken hours."""
        waiting = self.desk.candidate
        if waiting is None:
            return
        try:
            _log.info("not accepted, and kept as %s", keep_waiting(waiting, self.session.state.folder))
        except MpxctError as error:
            _log.error("what was not accepted could not be kept: %s", error)

    def _lay_out(self) -> None:
        scroll = QtWidgets.QScrollArea()
        scroll.setWidgetResizable(True)
        scroll.setFrameShape(QtWidgets.QFrame.Shape.NoFrame)
        scroll.setHorizontalScrollBarPolicy(QtCore.Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        scroll.setWidget(self.details)
        buttons = QtWidgets.QHBoxLayout()
        buttons.addWidget(self.run_one)
        buttons.addWidget(self.run_all)
        buttons.addWidget(self.forced)
        buttons.addStretch(1)
        left = QtWidgets.QWidget()
        column = QtWidgets.QVBoxLayout(left)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.in_use)
        column.addWidget(self.steps)
        column.addLayout(buttons)
        column.addWidget(scroll, 1)
        left.setMinimumWidth(360)
        self._split = QtWidgets.QSplitter(QtCore.Qt.Orientation.Horizontal)
        self._split.addWidget(left)
        self._split.addWidget(self.tabs)
        self._split.setStretchFactor(1, 1)
        self._split.setCollapsible(0, False)
        self._split.setSizes([420, 860])
        layout = QtWidgets.QVBoxLayout(self)
        layout.addWidget(self._split, 1)
        layout.addWidget(self.bar)

    def _tell_in_use(self) -> None:
        state = self.session.state
        found = state.calibration
        if found is None:
            text = "<b>No calibration in use.</b> Run all steps, or open one under History."
        else:
            name = state.calibration_path.name if state.calibration_path else "not saved yet"
            made_at = found.history[-1].created if found.history else found.created
            text = f"<b>In use:</b> {escape(name)}<br>{escape(conditions_words(found))}, {age_words(made_at)}"
        if text != self.in_use.text():
            self.in_use.setText(text)

    def _refresh_live(self) -> None:
        watch = self.desk.watch
        if watch is None or watch.newest is self._seen or not self.live.is_drawn or not self.live.isVisible():
            return
        if self._questions.is_asked(LIVE):
            return
        seen, plan = watch.newest, self.desk.run_plan
        passes = passes_kev(plan) if plan is not None and seen.step == "materials" else ()
        energies = plan.detector.thresholds_kev if plan is not None and len(passes) < 2 else ()
        self._seen = seen
        self._questions.ask(LIVE, lambda: live_panels(seen, energies), self.live.show_panels)

    def _change(self, is_running: bool) -> None:
        """Show the plots of a run that begins, and what came of it when it ends."""
        self._was_running = is_running
        self._clock.invalidate()
        self.bar.watch(self.desk.job)
        if not is_running and self.desk.candidate is not None:
            self.tabs.setCurrentIndex(RESULT)
            done = self.desk.watch.newest.done if self.desk.watch is not None else ()
            if done:
                self.steps.choose(done[-1])

    def _choose(self, name: str) -> None:
        self.details.show_step(name)
        self.result.show_step(name)
        self._clock.invalidate()

    def _why_not_one(self) -> str:
        return self.desk.why_not_run(self.steps.name) or self._why_wrong()

    def _why_not_all(self) -> str:
        return self.desk.why_not_run_all() or self._why_wrong()

    def _why_wrong(self) -> str:
        return f"an option is not right: {self.details.wrong}" if self.details.wrong else ""

    def _run_one(self) -> None:
        self._begin([self.steps.name], is_new=False)

    def _run_all(self) -> None:
        self._begin(list(self.session.state.plan.calibration.steps), is_new=True)

    def _begin(self, names: list[str], *, is_new: bool) -> None:
        self.live.show_panels([], "It begins; a moment.")
        self.tabs.setCurrentIndex(NOW)
        self.desk.run(names, is_new=is_new)

    def _force(self, is_forced: bool) -> None:
        self.desk.is_forced = is_forced
