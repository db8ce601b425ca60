"""A slider with two handles, over the colours of what it windows."""

from __future__ import annotations

from collections.abc import Sequence

from pyqtgraph.Qt import QtCore, QtGui, QtWidgets

HANDLE_PX = 10
BAR_PX = 8


class RangeSlider(QtWidgets.QWidget):
    """From where to where, within a span; between the handles the whole range is dragged.

    Attributes
    ----------
    changed : Signal(float, float)
        Somebody has moved it.
    """

    changed = QtCore.Signal(float, float)

    def __init__(self, tip: str) -> None:
        super().__init__()
        self.setToolTip(tip)
        self.setMinimumWidth(80)
        self.setFixedHeight(22)
        self._span = (0.0, 1.0)
        self._range = (0.0, 1.0)
        self._colours: Sequence[tuple[int, int, int]] = ((0, 0, 0), (255, 255, 255))
        self._held: str | None = None
        self._held_at = 0.0

    @property
    def range(self) -> tuple[float, float]:
        """From where to where."""
        return self._range

    def show_range(self, low: float, high: float, span: tuple[float, float]) -> None:
        """Stand there, without telling; the span is widened to hold it."""
        self._range = low, high
        self._span = min(span[0], low), max(span[1], high)
        self.update()

    def show_colours(self, colours: Sequence[tuple[int, int, int]]) -> None:
        """Take the colours from one end to the other."""
        self._colours = colours
        self.update()

    def mousePressEvent(self, event: QtGui.QMouseEvent) -> None:
        """Take the nearer handle, or the range between them."""
        x = event.position().x()
        low, high = map(self._x_of, self._range)
        if low + HANDLE_PX < x < high - HANDLE_PX:
            self._held = "both"
        else:
            self._held = "low" if abs(x - low) < abs(x - high) or x < low else "high"
        self._held_at = self._value_of(x)

    def mouseMoveEvent(self, event: QtGui.QMouseEvent) -> None:
        """Drag what is held."""
        value = self._value_of(event.position().x())
        (low, high), (first, last) = self._range, self._span
        least = (last - first) / 1000
        if self._held == "low":
            low = min(max(value, first), high - least)
        elif self._held == "high":
            high = max(min(value, last), low + least)
        elif self._held == "both":
            step = min(max(value - self._held_at, first - low), last - high)
            low, high, self._held_at = low + step, high + step, self._held_at + step
        if (low, high) != self._range:
            self._range = low, high
            self.update()
            self.changed.emit(low, high)

    def mouseReleaseEvent(self, event: QtGui.QMouseEvent) -> None:  # noqa: ARG002 - Qt's name and form
        """Let go."""
        self._held = None

    def paintEvent(self, event: QtGui.QPaintEvent) -> None:  # noqa: ARG002 - Qt's name and form
        """Draw the bar, the colours of the range, and the handles."""
        painter = QtGui.QPainter(self)
        painter.setRenderHint(QtGui.QPainter.RenderHint.Antialiasing)
        middle = self.height() / 2
        bar = QtCore.QRectF(HANDLE_PX / 2, middle - BAR_PX / 2, self.width() - HANDLE_PX, BAR_PX)
        gradient = QtGui.QLinearGradient(self._x_of(self._range[0]), 0, self._x_of(self._range[1]), 0)
        for n, colour in enumerate(self._colours):
            gradient.setColorAt(n / max(len(self._colours) - 1, 1), QtGui.QColor(*colour))
        role = QtGui.QPalette.ColorRole
        painter.setPen(QtGui.QPen(self.palette().color(role.Mid), 1))
        painter.setBrush(gradient)
        painter.drawRoundedRect(bar, 2, 2)
        painter.setPen(QtGui.QPen(self.palette().color(role.WindowText), 1))
        painter.setBrush(self.palette().color(role.Base))
        for value in self._range:
            left = self._x_of(value) - HANDLE_PX / 2
            painter.drawRoundedRect(QtCore.QRectF(left, middle - 8, HANDLE_PX, 16), 3, 3)
        painter.end()

    def _x_of(self, value: float) -> float:
        first, last = self._span
        share = (value - first) / (last - first) if last > first else 0.0
        return HANDLE_PX / 2 + share * (self.width() - HANDLE_PX)

    def _value_of(self, x: float) -> float:
        first, last = self._span
        return first + (x - HANDLE_PX / 2) / max(self.width() - HANDLE_PX, 1) * (last - first)
