"""Small widgets that all pages use: a button that says why it is grey, a hint, and the bar of a job."""

from __future__ import annotations

from collections.abc import Callable

from pyqtgraph.Qt import QtCore, QtWidgets

from gui import theme
from gui.workers import Job, JobStatus


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
        why = self._why_not()
        if self.isEnabled() != (not why):
            self.setEnabled(not why)
        tip = f"{self._tip}\n\nNot now: {why}" if why else self._tip
        if self.toolTip() != tip:
            self.setToolTip(tip)
            self.setStatusTip(why or self._tip)


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
    """How far a job is, how long it will take, and the two ways to end it."""

    def __init__(
        self, stop_text: str = "Stop", stop_tip: str = "End it well, as soon as the present step is over."
    ) -> None:
        super().__init__()
        self._job: Job | None = None
        self._label = QtWidgets.QLabel()
        self._bar = QtWidgets.QProgressBar()
        self._bar.setTextVisible(False)
        self._stop = QtWidgets.QPushButton(stop_text)
        self._stop.setToolTip(stop_tip)
        self._stop.clicked.connect(lambda: self._job and self._job.stop())
        self._abort = QtWidgets.QPushButton("Abort")
        self._abort.setToolTip("End it now; what was measured so far is kept where it can be.")
        self._abort.clicked.connect(lambda: self._job and self._job.abort())
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        for widget, stretch in ((self._label, 2), (self._bar, 3), (self._stop, 0), (self._abort, 0)):
            row.addWidget(widget, stretch)
        self.setVisible(False)

    def watch(self, job: Job | None) -> None:
        """Show this job from now on."""
        self._job = job
        self.refresh()

    def refresh(self) -> None:
        """Show how far it is; a job that is over leaves the bar hidden."""
        job = self._job
        self.setVisible(job is not None and not job.is_over)
        if job is None:
            return
        now = job.snapshot()
        self._bar.setMaximum(max(now.total, 0))
        self._bar.setValue(min(now.done, max(now.total, 0)))
        left = f", about {clock(now.left_s)} left" if now.left_s is not None else ""
        count = f" {now.done}/{now.total}" if now.total else ""
        ending = " (stopping)" if now.is_stopping else ""
        waiting = "waiting" if now.status is JobStatus.WAITING else now.stage
        self._label.setText(f"{waiting}{count}{left}{ending}")
        self._stop.setEnabled(not now.is_stopping)


def clock(seconds: float) -> str:
    """Return a time for people: "8 s", "2 min 5 s", "1 h 12 min"."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def labelled(rows: list[tuple[str, QtWidgets.QWidget]]) -> QtWidgets.QFormLayout:
    """Return widgets under each other, each with its name before it."""
    form = QtWidgets.QFormLayout()
    form.setLabelAlignment(QtCore.Qt.AlignmentFlag.AlignRight)
    for name, widget in rows:
        form.addRow(name, widget)
    return form
