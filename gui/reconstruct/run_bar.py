"""Above the pictures: how far the work in the background is, a button that cancels it, and what it has written."""

from __future__ import annotations

from pyqtgraph.Qt import QtWidgets

from gui.controls import clock
from gui.workers import Job


class RunBar(QtWidgets.QWidget):
    """Shows a job while it runs; nothing is changed by one that is cancelled."""

    def __init__(self) -> None:
        super().__init__()
        self._job: Job | None = None
        self._label = QtWidgets.QLabel()
        self._bar = QtWidgets.QProgressBar()
        self._bar.setTextVisible(False)
        self.cancel = QtWidgets.QPushButton("Cancel")
        self.cancel.setToolTip("Break it off at its next step. Nothing is written, and settings and volumes stay.")
        self.cancel.clicked.connect(lambda: self._job and self._job.abort())
        self._end = QtWidgets.QLabel()
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        for widget, stretch in ((self._label, 2), (self._bar, 3), (self.cancel, 0), (self._end, 5)):
            row.addWidget(widget, stretch)
        self._show(is_running=False)

    def watch(self, job: Job | None) -> None:
        """Show this job, where there is one."""
        is_running = job is not None and not job.is_over
        if job is not self._job:
            self._job = job
            if is_running:
                self._end.setText("")
            self._show(is_running=is_running)
        if job is None:
            return
        now = job.snapshot()
        self._bar.setMaximum(max(now.total, 0))
        self._bar.setValue(min(now.done, max(now.total, 0)))
        left = f", about {clock(now.left_s)} left" if now.left_s is not None else ""
        count = f" {now.done}/{now.total}" if now.total else ""
        ending = " (ending)" if now.is_stopping else ""
        self._label.setText(f"{now.stage or 'beginning'}{count}, {clock(now.elapsed_s)} so far{left}{ending}")
        self._label.setToolTip(job.title)
        self.cancel.setEnabled(not now.is_stopping)

    def show_end(self, text: str, tip: str) -> None:
        """Say what was made."""
        self._end.setText(text)
        self._end.setToolTip(tip)
        self._show(is_running=False)

    def _show(self, *, is_running: bool) -> None:
        for widget in (self._label, self._bar, self.cancel):
            widget.setVisible(is_running)
        self._end.setVisible(not is_running)
        self.setVisible(is_running or bool(self._end.text()))
