"""What the colours of a picture mean: a strip from the lowest value that is told apart to the highest."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pyqtgraph.Qt import QtGui, QtWidgets

HEIGHT_PX = 8


class ColourStrip(QtWidgets.QWidget):
    """Shows a strip of colours between two values; empty before it is told of any."""

    def __init__(self) -> None:
        super().__init__()
        self._unit = ""
        self._levels: tuple[float, float] | None = None
        self.low, self.high = QtWidgets.QLabel(), QtWidgets.QLabel()
        self._colours = QtWidgets.QLabel()
        self._colours.setFixedHeight(HEIGHT_PX)
        self._colours.setScaledContents(True)
        self._colours.setSizePolicy(QtWidgets.QSizePolicy.Policy.Ignored, QtWidgets.QSizePolicy.Policy.Fixed)
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 3, 0, 0)
        row.addWidget(self.low)
        row.addWidget(self._colours, 1)
        row.addWidget(self.high)

    def show_colours(self, table: NDArray[np.uint8]) -> None:
        """Show these from now on, from low to high: (n, 3)."""
        rows = np.repeat(table[None, :, :3], HEIGHT_PX, axis=0)
        size = rows.shape[1], rows.shape[0]
        image = QtGui.QImage(rows.tobytes(), *size, 3 * size[0], QtGui.QImage.Format.Format_RGB888)
        self._colours.setPixmap(QtGui.QPixmap.fromImage(image))

    def show_unit(self, unit: str) -> None:
        """Name what the values are in."""
        self._unit = unit
        self._write()

    def show_levels(self, levels: tuple[float, float] | None) -> None:
        """Tell what the first colour means and what the last; None: nothing is shown."""
        self._levels = levels
        self._write()

    def _write(self) -> None:
        self._colours.setVisible(self._levels is not None)
        low, high = ("", "") if self._levels is None else (short(self._levels[0]), short(self._levels[1]))
        for label, text in ((self.low, low), (self.high, high and f"{high} {self._unit}")):
            if label.text() != text:
                label.setText(text)


def short(value: float) -> str:
    """Return a number as exactly as anybody reads it from a colour."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
