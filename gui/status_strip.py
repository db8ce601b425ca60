"""The strip under all pages: how the instrument is, what runs and how far, and the way to end it; always in view."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable

from pyqtgraph.Qt import QtCore, QtGui, QtWidgets

from gui import theme
from gui.controls import ActionButton, JobBar
from gui.questions import Lookout
from gui.session import Session
from gui.state import Action
from gui.vitals import Losses, Mood, Pace, Reading, readings

DISK_EVERY_S = 5.0
REFRESH_EVERY_S = 0.1
MOST_CELL_PX = 130
LANES_BESIDE = ("compute", "files")
"""What is computed beside the instrument; the first that runs is shown."""
MOODS = {
    Mood.CALM: "",
    Mood.WARN: f"color: #000000; background: {theme.WARN}; border-radius: 3px;",
    Mood.BAD: f"color: #ffffff; background: {theme.ALARM}; border-radius: 3px;",
    Mood.BEAM: "color: #000000; background: #f7e017; border: 2px solid #000000; border-radius: 3px;",
}


class Cell(QtWidgets.QFrame):
    """One reading: its name, small, over its value.

    Parameters
    ----------
    acknowledge : callable, optional
        Called when it is clicked.
    """

    def __init__(self, acknowledge: Callable[[], object] | None = None) -> None:
        super().__init__()
        self._acknowledge = acknowledge
        self._shown: Reading | None = None
        self._name, self._text = QtWidgets.QLabel(), QtWidgets.QLabel()
        small, bold = QtGui.QFont(self.font()), QtGui.QFont(self.font())
        small.setPointSizeF(max(0.8 * small.pointSizeF(), 6.5))
        bold.setBold(True)
        self._name.setFont(small)
        theme.make_faint(self._name)
        self._text.setFont(bold)
        box = QtWidgets.QVBoxLayout(self)
        box.setContentsMargins(8, 1, 8, 1)
        box.setSpacing(0)
        box.addWidget(self._name)
        box.addWidget(self._text)
        self._text.setContentsMargins(2, 0, 2, 0)

    @property
    def reading(self) -> Reading | None:
        """What it shows."""
        return self._shown

    def show_reading(self, reading: Reading) -> None:
        """Show a reading, if it is another one."""
        before, self._shown = self._shown, reading
        if reading == before:
            return
        self._name.setText(reading.name)
        self._text.setText(f"\N{RADIOACTIVE SIGN} {reading.text}" if reading.mood is Mood.BEAM else reading.text)
        self.setToolTip(reading.tip)
        self.setAccessibleName(f"{reading.name}: {reading.text}")
        if before is None or before.mood is not reading.mood:
            if reading.mood is Mood.GOOD:
                theme.judge(self._text, is_good=True)
            else:
                theme.say(self._text, MOODS[reading.mood])
        can_be_clicked = self._acknowledge is not None and reading.mood is Mood.BAD
        self.setFocusPolicy(QtCore.Qt.FocusPolicy.StrongFocus if can_be_clicked else QtCore.Qt.FocusPolicy.NoFocus)
        shape = QtCore.Qt.CursorShape
        self.setCursor(shape.PointingHandCursor if can_be_clicked else shape.ArrowCursor)
        # A cell that shrinks with every digit would let its neighbours dance.
        self.setMinimumWidth(max(self.minimumWidth(), min(self.sizeHint().width(), MOST_CELL_PX)))

    def keyPressEvent(self, event: QtGui.QKeyEvent) -> None:
        """Acknowledge what it shows, as a click does."""
        if self._acknowledge is not None and event.key() in (QtCore.Qt.Key.Key_Space, QtCore.Qt.Key.Key_Return):
            self._acknowledge()
            return
        super().keyPressEvent(event)

    def mousePressEvent(self, event: QtGui.QMouseEvent) -> None:
        """Acknowledge what it shows."""
        if self._acknowledge is not None:
            self._acknowledge()
        super().mousePressEvent(event)


class StatusStrip(QtWidgets.QFrame):
    """Shows how the instrument is; `refresh` may be called as often as one likes, whatever page is seen."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.setFrameShape(QtWidgets.QFrame.Shape.StyledPanel)
        self._session = session
        self._losses, self._pace = Losses(), Pace()
        self._disk = Lookout("look at the disk", lambda: shutil.disk_usage(session.state.folder).free, DISK_EVERY_S)
        self._refreshed_s = 0.0
        self.cells: dict[str, Cell] = {}
        self._row = QtWidgets.QHBoxLayout(self)
        self._row.setContentsMargins(4, 2, 4, 2)
        self._row.setSpacing(0)
        self._on_instrument = JobBar("Stop", "End it well, after the present frame or step.", has_title=True)
        self._beside = JobBar("Cancel", "End what is being computed.", has_title=True)
        lanes = QtWidgets.QVBoxLayout()
        lanes.setSpacing(1)
        for lane in (self._on_instrument, self._beside):
            lane.setStyleSheet("QPushButton { padding: 1px 8px; }")
            lanes.addWidget(lane)
        self.safe = ActionButton(
            "Beam off",
            "Switch the X-rays off and stop the stage at once, and break off what runs on the instrument.",
            lambda: session.why_not(Action.MAKE_SAFE),
            session.rig.make_safe,
        )
        self.safe.setStyleSheet(f"QPushButton:enabled {{ font-weight: 600; border: 2px solid {theme.BAD}; }}")
        for place, reading in enumerate(self._readings()):
            cell = Cell(self.acknowledge if reading.name == "Lost" else None)
            self.cells[_KEYS[place]] = cell
            self._row.addWidget(cell)
        self._row.addStretch(1)
        self._row.addLayout(lanes, 4)
        self._row.addSpacing(8)
        self._row.addWidget(self.safe)
        self.setMinimumHeight(round(3.6 * self.fontMetrics().lineSpacing()))  # of two lanes: pages must not jump
        self.setSizePolicy(QtWidgets.QSizePolicy.Policy.Expanding, QtWidgets.QSizePolicy.Policy.Fixed)
        self.refresh()

    def refresh(self) -> None:
        """Show what is new."""
        now_s = time.monotonic()
        if now_s - self._refreshed_s < REFRESH_EVERY_S:
            return
        self._refreshed_s = now_s
        for cell, reading in zip(self.cells.values(), self._readings(), strict=True):
            cell.show_reading(reading)
        self._on_instrument.watch(self._session.job("instrument"))
        self._beside.watch(next(filter(None, map(self._session.job, LANES_BESIDE)), None))
        self.safe.refresh()

    def acknowledge(self) -> None:
        """Take the alarm of lost frames back: somebody knows of them."""
        self._losses.acknowledge()
        self._refreshed_s = 0.0
        self.refresh()

    def _readings(self) -> tuple[Reading, ...]:
        now, now_s = self._session.rig.snapshot(), time.monotonic()
        job = self._session.job("instrument")
        status = None if job is None else job.snapshot()
        self._losses.see(now.run)
        return readings(
            now,
            job=status,
            pace_per_s=self._pace.see(status, now_s),
            losses=self._losses,
            free_bytes=self._disk.newest(),
            now_s=now_s,
        )


_KEYS = ("link", "temperature", "bias", "beam", "rate", "frames", "lost", "waiting", "disk")
