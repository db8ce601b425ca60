"""All thresholds, or all bins, side by side; a zoom in one is a zoom in all."""

from __future__ import annotations

import numpy as np
import pyqtgraph as pg
from numpy.typing import NDArray
from pyqtgraph.Qt import QtCore, QtWidgets

from gui import levels as scales
from gui.scale_bar import ScaleBar


class GridView(QtWidgets.QWidget):
    """Shows planes in a grid, each with a heading and levels of its own.

    Attributes
    ----------
    views : list of pg.ViewBox
    """

    def __init__(self) -> None:
        super().__init__()
        self.graphics = pg.GraphicsLayoutWidget()
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.graphics)
        self.views: list[pg.ViewBox] = []
        self._items: list[pg.ImageItem] = []
        self._labels: list[pg.LabelItem] = []
        self._bars: list[ScaleBar] = []
        self._whole = QtCore.QRectF()
        self._levels: dict[int, tuple[float, float]] = {}
        self._shape: tuple[int, ...] = ()
        self._unit = ""

    def show_planes(
        self,
        planes: NDArray[np.number],
        names: list[str],
        pixel_mm: float,
        colour_map: str,
        *,
        unit: str,
        n_frames: int,
        is_following: bool,
        is_log: bool = False,
        is_left_out: NDArray[np.bool_] | None = None,
    ) -> None:
        """Show sums of frames (n, rows, cols); the first set the levels of a frame, or each where levels follow."""
        if planes.shape != self._shape:
            self._lay_out(len(planes))
            self._shape = planes.shape
            self._whole = QtCore.QRectF(0, 0, planes.shape[2] * pixel_mm, planes.shape[1] * pixel_mm)
            self.fit()
            self._levels = {}
        if unit != self._unit:
            self._unit, self._levels = unit, {}
        table = _table(colour_map)
        for place, plane in enumerate(planes):
            if is_following or place not in self._levels:
                levels = scales.percentile_levels(plane if is_left_out is None else plane[~is_left_out])
                self._levels[place] = levels[0] / n_frames, levels[1] / n_frames
            low, high = (level * n_frames for level in self._levels[place])
            drawn = scales.log_levels(low, high) if is_log else (low, high)
            shown = scales.logarithm(plane) if is_log else plane
            self._items[place].setImage(shown, autoLevels=False, levels=drawn, lut=table)
            self._items[place].setScale(pixel_mm)
            text = f"{names[place]}: {low:.4g} to {high:.4g} {unit}"
            if self._labels[place].text != text:
                self._labels[place].setText(text, color=pg.getConfigOption("foreground"))

    def restyle(self) -> None:
        """Take the colours of another theme."""
        self.graphics.setBackground("default")
        for label in self._labels:
            label.setText(label.text, color=pg.getConfigOption("foreground"))

    def fit(self) -> None:
        """Show the whole planes."""
        if self.views and not self._whole.isEmpty():
            self.views[0].setRange(self._whole, padding=0.02)

    def set_levels(self) -> None:
        """Let the next planes set the levels."""
        self._levels = {}

    def _lay_out(self, n: int) -> None:
        if n == len(self.views):
            return
        self.graphics.ci.clear()
        self.views, self._items, self._labels, self._bars = [], [], [], []
        n_cols = 1 if n == 1 else 2 if n <= 4 else 4
        for place in range(n):
            row, col = divmod(place, n_cols)
            self._labels.append(self.graphics.ci.addLabel("", row=2 * row, col=col))
            view = self.graphics.ci.addViewBox(row=2 * row + 1, col=col, lockAspect=True)
            view.setBackgroundColor("k")
            item = pg.ImageItem(axisOrder="row-major")
            view.addItem(item)
            view.disableAutoRange()
            view.sigRangeChanged.connect(lambda moved, *_: self._follow(moved))
            self.views.append(view)
            self._bars.append(ScaleBar(view))
            self._items.append(item)

    def _follow(self, moved: pg.ViewBox) -> None:
        """Show everywhere what one was moved to; links of pyqtgraph would shrink it when the window grows."""
        (left, right), (low, high) = wanted = moved.targetRange()
        for view, bar in zip(self.views, self._bars, strict=True):
            if view.targetRange() != wanted:
                view.setRange(xRange=(left, right), yRange=(low, high), padding=0)
            bar.show_within(view.viewRect().intersected(self._whole).width())


def _table(name: str) -> NDArray[np.uint8]:
    if name == "grey":
        return np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    colours = pg.colormap.get(name)
    assert colours is not None
    return np.asarray(colours.getLookupTable(nPts=256), dtype=np.uint8)
