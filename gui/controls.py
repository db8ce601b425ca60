"""Small widgets that all pages use: a button that says why it is grey, a hint, and the bar of a job."""

from __future__ import annotations

from collections.abc import Callable

from pyqtgraph.Qt import QtCore, QtGui, QtWidgets

from gui import theme
from gui.workers import Job, JobSnapshot, JobStatus


class ActionButton(QtWidgets.QPushButton):
    """A button that is grey while something keeps it from working, and then says what.

    Parameters
    ----------
    tip : str
        What it does, in plain words.
    why_not : callable
        Returns why it cannot be pressed now; empty where it can.
    does : callable
        Called when it is pressed.
    """

    def __init__(self, text: str, tip: str, why_not: Callable[[], str], does: Callable[[], object]) -> None:
        super().__init__(text)
        self._tip, self._why_not = tip, why_not
        self.clicked.connect(lambda: does())
        self.refresh()

    def refresh(self) -> None:
        """Look again whether it can be pressed."""
        allow(self, self._tip, self._why_not())


def allow(control: QtWidgets.QWidget | QtGui.QAction, tip: str, why_not: str = "") -> None:
    """Let a control be used, or grey it and say why; nothing in the window is grey otherwise.

    Parameters
    ----------
    tip : str
        What it does, in plain words.
    why_not : str
        Why it cannot be used now; empty where it can.
    """
    if control.isEnabled() != (not why_not):
        control.setEnabled(not why_not)
    told = f"{tip}\n\nNot now: {why_not}" if why_not else tip
    if control.toolTip() != told:
        control.setToolTip(told)


def allow_inside(place: QtWidgets.QScrollArea, why_not: str) -> None:
    """Let all be used that a place holds, or grey it; the mouse then meets the place itself, which says why."""
    body = place.widget()
    assert body is not None
    body.setEnabled(not why_not)
    body.setAttribute(QtCore.Qt.WidgetAttribute.WA_TransparentForMouseEvents, bool(why_not))
    place.setToolTip(f"Not now: {why_not}" if why_not else "")


def hint(text: str = "") -> QtWidgets.QLabel:
    """Return a line of explanation that wraps."""
    label = QtWidgets.QLabel(text)
    label.setWordWrap(True)
    theme.make_faint(label)
    return label


def title(text: str) -> QtWidgets.QLabel:
    """Return a heading."""
    label = QtWidgets.QLabel(text)
    theme.make_title(label)
    return label


class JobBar(QtWidgets.QWidget):
    """How far a job is, how long it will take, and the ways to end it; afterwards what came of it, if that is told.

    Parameters
    ----------
    stop_text, stop_tip : str
        Of the button that lets it end well. A job that has no such way is broken off by it, and has no other button.
    has_title : bool
        Whether the job's title stands before the bar; it is in the tooltip in any case.
    """

    def __init__(
        self,
        stop_text: str = "Stop",
        stop_tip: str = "End it well, as soon as the present step is over.",
        *,
        has_title: bool = False,
    ) -> None:
        super().__init__()
        self._job: Job | None = None
        self._stop_tip = stop_tip
        self._title = QtWidgets.QLabel()
        self._title.setStyleSheet("font-weight: 600;")
        self._title.setVisible(has_title)
        self._bar = QtWidgets.QProgressBar()
        self._bar.setMinimumWidth(150)
        self._bar.setAlignment(QtCore.Qt.AlignmentFlag.AlignCenter)
        self.stop = QtWidgets.QPushButton(stop_text)
        self.stop.setToolTip(stop_tip)
        self.stop.clicked.connect(lambda: self._job and self._job.stop())
        self.abort = QtWidgets.QPushButton("Abort")
        self.abort.setToolTip("End it now; what was measured so far is kept where it can be.")
        self.abort.clicked.connect(lambda: self._job and self._job.abort())
        self.end = QtWidgets.QLabel()
        self._running = QtWidgets.QWidget()
        row = QtWidgets.QHBoxLayout(self._running)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(4)
        for widget, stretch in ((self._title, 0), (self._bar, 1), (self.stop, 0), (self.abort, 0)):
            row.addWidget(widget, stretch)
        column = QtWidgets.QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self._running)
        column.addWidget(self.end)
        self.refresh()

    def watch(self, job: Job | None) -> None:
        """Show this job from now on; what was told of an earlier one is taken away when another runs."""
        if job is not self._job and job is not None:
            self.show_end("")
        self._job = job
        self.refresh()

    def show_end(self, text: str, tip: str = "") -> None:
        """Tell what came of the last job."""
        self.end.setText(text)
        self.end.setToolTip(tip)
        self.refresh()

    def refresh(self) -> None:
        """Show how far it is."""
        job = self._job if self._job is not None and not self._job.is_over else None
        self._running.setVisible(job is not None)
        self.end.setVisible(job is None and bool(self.end.text()))
        self.setVisible(job is not None or bool(self.end.text()))
        if job is None:
            return
        now = job.snapshot()
        self._title.setText(self.fontMetrics().elidedText(now.title, QtCore.Qt.TextElideMode.ElideRight, MOST_TITLE_PX))
        for widget in (self._title, self._bar):
            widget.setToolTip(f"{now.title}: {far(now)}, {clock(now.elapsed_s)} so far")
        self._show_far(min(now.done, now.total), max(now.total, 1), far(now))
        allow(self.stop, self._stop_tip, STOPPING if now.is_stopping else "")
        self.abort.setVisible(job.has_stop)

    def _show_far(self, done: int, total: int, text: str) -> None:
        """Let the bar be painted when the window is next: by itself it would be at once, with all that waits for it."""
        if (done, total, text) == (self._bar.value(), self._bar.maximum(), self._bar.format()):
            return
        self._bar.setUpdatesEnabled(False)
        self._bar.setRange(0, total)  # a bar without a range would not write its text
        self._bar.setValue(done)
        self._bar.setFormat(text)
        self._bar.setUpdatesEnabled(True)


MOST_TITLE_PX = 120
STOPPING = "it has been told to end, and ends as soon as it can."


def far(now: JobSnapshot) -> str:
    """Return how far a job is, in few words."""
    if now.status is JobStatus.WAITING:
        return "waiting"
    stage = now.stage or "beginning"
    if now.is_stopping:
        return f"{stage}, stopping"
    count = f" {now.done}/{now.total}" if now.total else f" {now.done}" if now.done else ""
    left = f", about {clock(now.left_s)} left" if now.left_s is not None else ""
    return f"{stage}{count}{left}"


def clock(seconds: float) -> str:
    """Return a time for people: "8 s", "2 min 5 s", "1 h 12 min"."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def restore_sizes(splitter: QtWidgets.QSplitter, saved: object) -> None:
    """Divide as it was; what an earlier start cannot have saved is left alone."""
    if not isinstance(saved, list) or len(saved) != splitter.count():
        return
    if all(isinstance(size, int) and 0 <= size < MOST_PX for size in saved):
        splitter.setSizes(saved)


MOST_PX = 100_000
"""No screen is wider."""


def put_in_turn(late: QtWidgets.QWidget, place: QtWidgets.QWidget) -> None:
    """Let Tab reach what was made later than all else after its place, or what stands before that."""
    if (at := _stop_before(place)) is None:
        return
    for each in _tab_stops(late):
        QtWidgets.QWidget.setTabOrder(at, each)
        at = each


def _stop_before(place: QtWidgets.QWidget) -> QtWidgets.QWidget | None:
    """Return where Tab stops last before it comes into a place; parts of a panel are reached as they were put in."""
    if _stops_tab(place):
        return place
    parent = place.parentWidget()
    if parent is None or place.isWindow():
        return None
    before = parent.children()[: parent.children().index(place)]
    for sibling in (each for each in reversed(before) if isinstance(each, QtWidgets.QWidget)):
        if stops := _tab_stops(sibling):
            return stops[-1]
    return _stop_before(parent)


def _tab_stops(widget: QtWidgets.QWidget) -> list[QtWidgets.QWidget]:
    inside = (each for each in widget.findChildren(QtWidgets.QWidget) if each.window() is widget.window())
    return [each for each in (widget, *inside) if _stops_tab(each)]


def _stops_tab(widget: QtWidgets.QWidget) -> bool:
    return bool(widget.focusPolicy() & QtCore.Qt.FocusPolicy.TabFocus) and widget.focusProxy() is None


def labelled(rows: list[tuple[str, QtWidgets.QWidget]]) -> QtWidgets.QFormLayout:
    """Return widgets under each other, each with its name before it."""
    form = QtWidgets.QFormLayout()
    form.setLabelAlignment(QtCore.Qt.AlignmentFlag.AlignRight)
    for name, widget in rows:
        form.addRow(name, widget)
    return form
