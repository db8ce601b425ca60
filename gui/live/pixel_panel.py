"""The pixel under the mouse, odd pixels marked on the image, and the mask, edited with the mouse."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pyqtgraph.Qt import QtCore, QtGui, QtWidgets

from calibration.progress import Progress
from gui import theme
from gui.controls import ActionButton, allow, hint
from gui.image_panel import ImagePanel
from gui.live import measures
from gui.live.frames import Picture
from gui.live.pixel import inspect, masked, painted, with_mask
from gui.live.shown import count_alike
from gui.session import Session
from gui.undo import History

if TYPE_CHECKING:
    from calibration.store import Calibration

MARKS = (
    ("masked", theme.SERIES[3], "Pixels that are switched off, those of your edits included"),
    ("bad", theme.SERIES[6], "Pixels that the calibration says are not to be used: dead, unsteady, off, and others"),
    ("full", theme.BAD, "Pixels in which a counter is full: in the frame that is shown, of sums in the newest"),
    ("noisy", theme.SERIES[4], "A guess: pixels far above those around them"),
)
"""Name, colour and meaning of each overlay."""


class PixelPanel(QtWidgets.QWidget):
    """Tells of one pixel, marks odd ones, and edits the mask."""

    def __init__(self, session: Session, panel: ImagePanel) -> None:
        super().__init__()
        self._session, self._panel = session, panel
        self._calibration: Calibration | None = None
        self._frames_calibration: Calibration | None = None
        self._is_theirs = False
        self._history: History[NDArray[np.bool_]] | None = None
        self._is_bad: NDArray[np.bool_] | None = None
        self._corner: tuple[int, int] | None = None
        self._is_ours = False
        self._where = ""
        self._questions = session.questions("mask")
        self.table = QtWidgets.QTableWidget(0, 2)
        self.table.horizontalHeader().setVisible(False)
        self.table.verticalHeader().setVisible(False)
        self.table.setShowGrid(False)
        self.table.setWordWrap(True)
        self.table.setEditTriggers(QtWidgets.QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.setSelectionMode(QtWidgets.QAbstractItemView.SelectionMode.NoSelection)
        self.table.horizontalHeader().setSectionResizeMode(0, QtWidgets.QHeaderView.ResizeMode.ResizeToContents)
        self.table.horizontalHeader().setSectionResizeMode(1, QtWidgets.QHeaderView.ResizeMode.Stretch)
        self.table.verticalHeader().setDefaultSectionSize(22)
        self.table.setToolTip("The pixel under the mouse.")
        self.where = hint("Point at a pixel of the image.")
        self.marks = {name: _mark(name, colour, tip) for name, colour, tip in MARKS}
        self.editing = QtWidgets.QComboBox()
        self.editing.addItems(["off", "click: switch one pixel", "two clicks: mask a rectangle", "two clicks: unmask"])
        self.editing.setToolTip("What a click on the image does to the mask.")
        self.undo = ActionButton(
            "Undo", "Take the last edit of the mask back (Ctrl+Z).", self._why_no_undo, self.take_back
        )
        self.redo = ActionButton(
            "Redo", "Make the edit again that was taken back (Ctrl+Shift+Z).", self._why_no_redo, self.make_again
        )
        self.keep = ActionButton(
            "Use this mask", "Put the mask into the calibration, as a new version of it; the chip gets it at once.",
            self._why_no_keep, self.keep_mask,
        )  # fmt: skip
        self.told = hint()
        self._lay_out()
        panel.clicked.append(self._click)
        self.editing.currentIndexChanged.connect(lambda _: self._forget_corner())

    # What is known of pixels

    def show_pixel(self, picture: Picture, thresholds_kev: tuple[float, ...]) -> None:
        """Tell what is known of the pixel under the mouse; the last one stays where it points at none."""
        at = self._panel.pixel_under_mouse()
        if at is None or at[0] >= picture.counts.shape[1] or at[1] >= picture.counts.shape[2]:
            return
        self.tell(picture, *at, thresholds_kev)

    def tell(self, picture: Picture, row: int, col: int, thresholds_kev: tuple[float, ...]) -> None:
        """Tell what is known of a pixel."""
        self.where.setVisible(False)
        self.table.setVisible(True)
        lines = inspect(picture, row, col, self._frames_calibration).lines(thresholds_kev)
        if self.table.rowCount() != len(lines):
            self.table.setRowCount(len(lines))
        for place, line in enumerate(lines):
            for column, text in enumerate(line):
                item = self.table.item(place, column)
                if item is None:
                    item = QtWidgets.QTableWidgetItem()
                    self.table.setItem(place, column, item)
                if item.text() != text:
                    item.setText(text)
                    item.setToolTip(text)

    def show_marks(self, picture: Picture, frame: Picture, plane: NDArray[np.number], full: int) -> None:
        """Mark odd pixels, of each kind that is asked for."""
        mask = self.current_mask(picture.counts.shape[1:])
        found = {
            "masked": lambda: mask,
            "bad": lambda: self.bad(picture.counts.shape[1:]),
            "full": lambda: measures.is_saturated(frame.counts, full),
            "noisy": lambda: measures.looks_noisy(plane) & (~mask if mask is not None else True),
        }
        for name, colour, _ in MARKS:
            is_on = self.marks[name].isChecked()
            pixels = found[name]() if is_on else None
            self._panel.set_overlay(name, pixels, colour)
            count = "" if pixels is None else f" ({int(np.count_nonzero(pixels))})"
            self.marks[name].setText(f"{name}{count}")

    # The mask

    def current_mask(self, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
        """Return the mask with the edits so far; None where no calibration of such pixels is there."""
        if not self._is_theirs or self._history is None or self._history.now.shape != tuple(shape):
            return None
        return self._history.now

    def bad(self, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
        """Return the pixels that the calibration says are not to be used; None where it is of other pixels."""
        if not self._is_theirs:
            return None
        return self._is_bad if self._is_bad is not None and self._is_bad.shape == tuple(shape) else None

    def left_out(self, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
        """Return the pixels that are masked or bad; None where nothing is known of them."""
        mask, is_bad = self.current_mask(shape), self.bad(shape)
        return mask if is_bad is None or mask is None else mask | is_bad

    def follow(self, calibration: Calibration | None) -> None:
        """Take another calibration; edits of a mask that are not used yet are dropped with the old one."""
        if calibration is self._calibration:
            return
        self._calibration = calibration
        self._is_bad = None if calibration is None else calibration.is_bad
        if self._is_ours:  # our own mask came back: what was edited can still be taken back
            self._is_ours = False
        else:
            self._history = None if calibration is None else History(masked(calibration))
            self._where = ""
        self._judge()
        self.refresh()

    def set_frames(self, calibration: Calibration | None) -> None:
        """Take what the frames that are shown were taken with: of other frames the calibration in use tells nothing."""
        self._frames_calibration = calibration
        self._judge()
        self.refresh()

    def _judge(self) -> None:
        self._is_theirs = self._calibration is not None and count_alike(self._frames_calibration, self._calibration)

    def keep_mask(self) -> None:
        """Put the mask into the calibration, as a new version."""
        assert self._calibration is not None
        assert self._history is not None
        better = with_mask(self._calibration, self._history.now)
        self._is_ours = True
        self._session.change(calibration=better, calibration_path=None)
        self.follow(better)
        folder = self._session.state.folder
        self._questions.ask("Save the mask", lambda: _keep(better, folder), self._saved, is_kept=True)

    def _saved(self, path: Path) -> None:
        if self._session.state.calibration is self._calibration and self._session.state.calibration_path is None:
            self._session.change(calibration_path=path)
        self._where = f"Saved as {path.name}. "
        self.refresh()

    def refresh(self) -> None:
        """Look again what can be done."""
        for button in (self.undo, self.redo, self.keep):
            button.refresh()
        why = self._why_no_mask()
        allow(self.editing, "What a click on the image does to the mask.", why)
        self.told.setText(self._status())

    def _status(self) -> str:
        why = self._why_no_mask()
        if why:
            return why
        if self._corner is not None:
            return "Click the opposite corner."
        assert self._history is not None
        assert self._calibration is not None
        n_changed = int(np.count_nonzero(self._history.now != masked(self._calibration)))
        told = f"{self._where}{int(np.count_nonzero(self._history.now))} pixels masked"
        return f"{told}, {n_changed} not as in the calibration." if n_changed else f"{told}."

    def _click(self, row: int, col: int) -> None:
        way, history = self.editing.currentIndex(), self._history
        image = self._panel.image
        if not way or history is None or not self._is_theirs or image is None or history.now.shape != image.shape[:2]:
            return
        if way == 1:
            now = history.now
            history.edit(painted(now, (row, row), (col, col), is_masked=not now[row, col]))
        elif self._corner is None:
            self._corner = row, col
        else:
            rows, cols = (self._corner[0], row), (self._corner[1], col)
            self._corner = None
            history.edit(painted(history.now, rows, cols, is_masked=way == 2))
        self.marks["masked"].setChecked(True)
        self.refresh()

    def _forget_corner(self) -> None:
        self._corner = None
        self.refresh()

    @property
    def can_undo(self) -> bool:
        """Whether there is an edit of the mask to take back."""
        return self._history is not None and self._history.can_undo

    @property
    def can_redo(self) -> bool:
        """Whether there is an edit of the mask to make again."""
        return self._history is not None and self._history.can_redo

    def take_back(self) -> None:
        """Take the last edit of the mask back, where there is one."""
        if self._history is not None:
            self._history.undo()
            self.refresh()

    def make_again(self) -> None:
        """Make the edit again that was taken back, where there is one."""
        if self._history is not None:
            self._history.redo()
            self.refresh()

    def _why_no_mask(self) -> str:
        if self._history is None:
            return "A mask belongs to a calibration; make or open one first."
        return "" if self._is_theirs else "These frames were taken without the calibration in use."

    def _why_no_undo(self) -> str:
        return "" if self.can_undo else "Nothing was edited."

    def _why_no_redo(self) -> str:
        return "" if self.can_redo else "Nothing was taken back."

    def _why_no_keep(self) -> str:
        if self._history is None or self._calibration is None or not self._is_theirs:
            return self._why_no_mask()
        is_same = np.array_equal(self._history.now, masked(self._calibration))
        return "The mask is that of the calibration." if is_same else ""

    def _lay_out(self) -> None:
        layout = QtWidgets.QVBoxLayout(self)
        layout.addWidget(self.where)
        layout.addWidget(self.table, 100)
        layout.addStretch(1)
        self.table.setVisible(False)
        box = QtWidgets.QGroupBox("Mark on the image")
        row = QtWidgets.QHBoxLayout(box)
        for check in self.marks.values():
            row.addWidget(check)
        row.addStretch(1)
        layout.addWidget(box)
        box = QtWidgets.QGroupBox("Mask")
        column = QtWidgets.QVBoxLayout(box)
        column.addWidget(self.editing)
        row = QtWidgets.QHBoxLayout()
        for button in (self.undo, self.redo, self.keep):
            row.addWidget(button)
        column.addLayout(row)
        column.addWidget(self.told)
        layout.addWidget(box)


def _keep(calibration: Calibration, folder: Path) -> Generator[Progress, None, Path]:
    from gui.calibrate.archive import keep, new_path  # heavy, and the window is to be there first

    return (yield from keep(calibration, new_path(folder)))


def _mark(name: str, colour: str, tip: str) -> QtWidgets.QCheckBox:
    check = QtWidgets.QCheckBox(name)
    pixmap = QtGui.QPixmap(12, 12)
    pixmap.fill(QtGui.QColor(colour))
    check.setIcon(QtGui.QIcon(pixmap))
    check.setIconSize(QtCore.QSize(12, 12))
    check.setToolTip(tip)
    check.setChecked(name in ("masked", "full"))
    return check
