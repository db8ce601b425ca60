"""Hold what is shown, and back through the last frames: the row of controls under the image."""

from __future__ import annotations

from collections.abc import Callable

from pyqtgraph.Qt import QtCore, QtWidgets

from firmware_iface.frame import Frame, Lost
from gui.controls import allow
from gui.live.frames import Memory, StoreStatus

HOLD = (
    "Hold this picture, and the last frames before it for the slider; frames go on coming meanwhile.\n"
    "Press again to go on. (F6)"
)
BACK = "Back through the last frames; gaps where frames were lost are shown."
IS_NEWEST = "the newest is shown already."


class PlaybackBar(QtWidgets.QWidget):
    """Chooses between what comes and what came; what was in memory when it was held stays to be looked at.

    Parameters
    ----------
    changed : callable
        Called when something else is to be shown.
    memory : callable
        Returns what is in memory now.

    Attributes
    ----------
    again : Frame, Lost or None
        What of the memory is looked at again.
    """

    def __init__(self, changed: Callable[[], object], memory: Callable[[], Memory]) -> None:
        super().__init__()
        self._changed, self._memory = changed, memory
        self._kept: Memory | None = None
        self.again: Frame | Lost | None = None
        self.hold = QtWidgets.QPushButton("Hold")
        self.hold.setCheckable(True)
        self.slider = QtWidgets.QSlider(QtCore.Qt.Orientation.Horizontal)
        self.place = QtWidgets.QLabel()
        self.place.setMinimumWidth(110)
        self.newest = QtWidgets.QPushButton("Newest")
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        for widget, stretch in ((self.hold, 0), (self.slider, 1), (self.place, 0), (self.newest, 0)):
            row.addWidget(widget, stretch)
        self.hold.toggled.connect(lambda is_on: self._hold() if is_on else self.let_go())
        self.slider.valueChanged.connect(self.look_at)
        self.newest.clicked.connect(self.let_go)
        self._allow(is_some=False)

    @property
    def is_held(self) -> bool:
        """Whether what is shown stays."""
        return self.hold.isChecked()

    def look_at(self, number: int) -> None:
        """Show an item of the memory again."""
        if self._kept is None:
            self._kept = self._memory()
        self.again = self._kept.item(number)
        self._check(is_on=True)

    def let_go(self) -> None:
        """Show what comes."""
        self.again = self._kept = None
        self._check(is_on=False)

    def follow(self, status: StoreStatus) -> None:
        """Let the slider reach over what is in memory."""
        first, last = status.first, max(status.end - 1, status.first)
        if self._kept is not None:
            first, last = self._kept.first, self._kept.last
        with QtCore.QSignalBlocker(self.slider):
            self.slider.setRange(first, last)
            if self.again is None:
                self.slider.setValue(last)
        self._allow(is_some=status.end > 0)
        back = last - self.slider.value()
        text = f"{back} frames back" if back else "held" if self.is_held else "newest"
        if self.place.text() != text:
            self.place.setText(text)

    def _allow(self, *, is_some: bool) -> None:
        why = "" if is_some else "no frame has come yet; Start (F5) asks for some."
        allow(self.hold, HOLD, why)
        allow(self.slider, BACK, why)
        allow(self.newest, "Show what comes again.", "" if is_some and self.is_held else IS_NEWEST)

    def _hold(self) -> None:
        self.again, self._kept = None, self._memory()
        self._changed()

    def _check(self, *, is_on: bool) -> None:
        with QtCore.QSignalBlocker(self.hold):
            self.hold.setChecked(is_on)
        self._changed()
