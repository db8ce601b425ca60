"""Regions on the image: statistics in a table, spectra over the thresholds, and the profile along a line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyqtgraph as pg
from numpy.typing import NDArray
from pyqtgraph.Qt import QtCore, QtGui, QtWidgets

from gui import theme
from gui.controls import allow, hint
from gui.image_panel import ImagePanel
from gui.live import measures
from gui.live.measures import Region, Shape
from gui.live.shown import Shown

COLUMNS = ("no.", "pixels", "mean", "sd", "sum", "min", "max", "full", "out")
_WIDTHS_PX = (36, 42, 44, 44, 54, 42, 42, 30, 28)
_COLOURS = tuple(theme.SERIES[n] for n in (1, 4, 5, 3, 2, 7))
"""Of regions on the image: those that stand out from every colour map."""
_TIPS = (
    "Its number and colour on the image", "Pixels that count", "Mean of their values",
    "Standard deviation of their values", "Sum of their values", "Lowest value", "Highest value",
    "Pixels in which a counter is full", "Pixels that are left out, for they are masked or bad",
)  # fmt: skip


@dataclass(slots=True, eq=False)
class _Drawn:
    shape: Shape
    roi: pg.ROI
    colour: str


class RegionPanel(QtWidgets.QWidget):
    """Regions of an image panel, with a table and a plot."""

    def __init__(self, panel: ImagePanel) -> None:
        super().__init__()
        self._panel = panel
        self._drawn: list[_Drawn] = []
        self._pixel_mm = 1.0
        self.add_rectangle = _button("Add rectangle", "Put a rectangle on the image; drag it, and its corner.")
        self.add_ellipse = _button("Add ellipse", "Put an ellipse on the image; drag it, and its corner.")
        self.remove = _button("Remove", "Take the region of the chosen row away, or the last one.")
        self.in_bins = QtWidgets.QCheckBox("bins")
        self.in_bins.setToolTip("Plot what lies between two thresholds, instead of all above each.")
        self.table = QtWidgets.QTableWidget(0, len(COLUMNS))
        self.table.setToolTip(
            "What the pixels of each region count; masked and bad ones are left out, full ones are told."
        )
        self.table.setHorizontalHeaderLabels(list(COLUMNS))
        for place, tip in enumerate(_TIPS):
            item = self.table.horizontalHeaderItem(place)
            assert item is not None
            item.setToolTip(tip)
        self.table.setEditTriggers(QtWidgets.QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.setSelectionBehavior(QtWidgets.QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.verticalHeader().setVisible(False)
        self.table.horizontalHeader().setMinimumSectionSize(20)
        self.table.horizontalHeader().setSectionResizeMode(QtWidgets.QHeaderView.ResizeMode.ResizeToContents)
        self.table.verticalHeader().setDefaultSectionSize(24)
        self.plot = pg.PlotWidget()
        self.plot.setLabel("bottom", "threshold, keV")
        self.plot.setLabel("left", "mean counts per pixel")
        self.plot.getAxis("left").enableAutoSIPrefix(False)
        self.plot.setToolTip("Mean counts of each region over the thresholds; bars are standard errors of the mean.")
        self._curves: list[tuple[pg.PlotDataItem, pg.ErrorBarItem]] = []
        row = QtWidgets.QHBoxLayout()
        for button in (self.add_rectangle, self.add_ellipse, self.remove):
            row.addWidget(button)
        row.addStretch(1)
        row.addWidget(self.in_bins)
        layout = QtWidgets.QVBoxLayout(self)
        self._nothing = hint("Put a rectangle or an ellipse on the image: its figures and spectrum will stand here.")
        layout.addLayout(row)
        layout.addWidget(self._nothing)
        layout.addWidget(self.table, 2)
        layout.addWidget(self.plot, 3)
        layout.addStretch()
        self._lay_out_rows()
        self.add_rectangle.clicked.connect(lambda: self.add(Shape.RECTANGLE))
        self.add_ellipse.clicked.connect(lambda: self.add(Shape.ELLIPSE))
        self.remove.clicked.connect(lambda: self.take_away())

    def add(self, shape: Shape, region: Region | None = None) -> None:
        """Put a region on the image, by default a fifth of what is seen, in its middle."""
        if region is None:
            seen = self._panel.view.viewRect()
            width, height = 0.2 * seen.width() / self._pixel_mm, 0.2 * seen.height() / self._pixel_mm
            size = max(round(min(width, height)), 1)
            centre = seen.center() / self._pixel_mm
            region = Region(shape, round(centre.x() - size / 2), round(centre.y() - size / 2), size, size)
        colour = _COLOURS[len(self._drawn) % len(_COLOURS)]
        kind = pg.RectROI if shape is Shape.RECTANGLE else pg.EllipseROI
        place, size = (region.x, region.y), (region.width, region.height)
        roi = kind(
            [self._pixel_mm * value for value in place], [self._pixel_mm * value for value in size],
            pen=pg.mkPen(colour, width=2), hoverPen=pg.mkPen("#ffffff", width=2),
        )  # fmt: skip
        if shape is Shape.ELLIPSE:
            while roi.getHandles():
                roi.removeHandle(0)
            roi.addScaleHandle([0.5 + 0.5 / math.sqrt(2)] * 2, [0.5 - 0.5 / math.sqrt(2)] * 2)
        roi.setZValue(20)
        self._panel.view.addItem(roi, ignoreBounds=True)
        self._drawn.append(_Drawn(shape, roi, colour))
        self._lay_out_rows()

    def take_away(self) -> None:
        """Remove the region of the chosen row, or the last one."""
        if not self._drawn:
            return
        row = self.table.currentRow()
        gone = self._drawn.pop(row if 0 <= row < len(self._drawn) else -1)
        self._panel.view.removeItem(gone.roi)
        self._lay_out_rows()

    def regions(self) -> list[Region]:
        """Return the regions, in pixels."""
        found = []
        for drawn in self._drawn:
            at, size = drawn.roi.pos() / self._pixel_mm, drawn.roi.size() / self._pixel_mm
            found.append(Region(drawn.shape, at.x(), at.y(), size.x(), size.y()))
        return found

    def set_pixel(self, pixel_mm: float) -> None:
        """Keep the regions on their pixels when these are of another size."""
        if pixel_mm == self._pixel_mm:
            return
        ratio, self._pixel_mm = pixel_mm / self._pixel_mm, pixel_mm
        for drawn in self._drawn:
            at, size = drawn.roi.pos() * ratio, drawn.roi.size() * ratio
            drawn.roi.setSize(size, update=False)
            drawn.roi.setPos(at)

    def restyle(self) -> None:
        """Take the colours of another theme."""
        theme.restyle_plot(self.plot)

    def show_values(
        self,
        shown: Shown,
        thresholds_kev: Sequence[float],
        is_left_out: NDArray[np.bool_] | None,
        is_full: NDArray[np.bool_] | None,
    ) -> None:
        """Measure what is shown in every region."""
        why = "" if self._drawn else "there is no region yet."
        allow(self.remove, "Take the region of the chosen row away, or the last one.", why)
        counts = shown.picture.counts
        plane = counts[0] if shown.is_colour else shown.image
        for row, region in enumerate(self.regions()):
            where = measures.inside(region, (plane.shape[0], plane.shape[1]))
            told = measures.statistics(plane, where, is_left_out, is_full)
            texts = (
                f"{row + 1}", f"{told.n}", short(told.mean), short(told.sd), short(told.total), short(told.low),
                short(told.high), f"{told.n_saturated}", f"{told.n_left_out}",
            )  # fmt: skip
            for column, text in enumerate(texts):
                item = self.table.item(row, column)
                if item is not None and item.text() != text:
                    item.setText(text)
            if not where.any():
                continue
            spectrum = measures.spectrum(counts, where, is_left_out)
            means, sigmas = (
                (spectrum.within, spectrum.within_sigma)
                if self.in_bins.isChecked()
                else (spectrum.above, spectrum.above_sigma)
            )
            x = np.asarray(thresholds_kev, dtype=float)
            if np.isnan(x).any():
                x = np.arange(1.0, len(x) + 1)
            if len(x) == len(means) and np.isfinite(means).all():
                curve, bars = self._curves[row]
                curve.setData(x, means)
                bars.setData(x=x, y=means, height=2 * np.nan_to_num(sigmas))

    def _lay_out_rows(self) -> None:
        self.plot.clear()
        self._curves = []
        self._nothing.setVisible(not self._drawn)
        for widget in (self.table, self.plot):
            widget.setVisible(bool(self._drawn))
        self.table.setRowCount(len(self._drawn))
        for row, drawn in enumerate(self._drawn):
            for column in range(len(COLUMNS)):
                item = QtWidgets.QTableWidgetItem("")
                item.setTextAlignment(QtCore.Qt.AlignmentFlag.AlignRight | QtCore.Qt.AlignmentFlag.AlignVCenter)
                if column == 0:
                    pixmap = QtGui.QPixmap(12, 12)
                    pixmap.fill(QtGui.QColor(drawn.colour))
                    item.setIcon(QtGui.QIcon(pixmap))
                self.table.setItem(row, column, item)
            pen, brush = pg.mkPen(drawn.colour, width=2), pg.mkBrush(drawn.colour)
            curve = self.plot.plot([], [], pen=pen, symbol="o", symbolSize=6, symbolBrush=brush, symbolPen=None)
            bars = pg.ErrorBarItem(pen=pen)
            self.plot.addItem(bars)
            self._curves.append((curve, bars))


class ProfilePanel(QtWidgets.QWidget):
    """The profile of the image along a line that can be dragged."""

    def __init__(self, panel: ImagePanel) -> None:
        super().__init__()
        self._panel = panel
        self._pixel_mm = 1.0
        self._line: pg.LineSegmentROI | None = None
        self.show_line = QtWidgets.QCheckBox("line on the image")
        self.show_line.setToolTip("Put a line on the image; drag its ends. The plot shows the values along it.")
        self.n_lines = QtWidgets.QSpinBox()
        self.n_lines.setRange(1, 50)
        self.n_lines.setPrefix("width ")
        self.n_lines.setSuffix(" px")
        self.n_lines.setToolTip("So many lines side by side are averaged.")
        self.plot = pg.PlotWidget()
        self.plot.setLabel("bottom", "along the line, mm")
        self.plot.getAxis("left").enableAutoSIPrefix(False)
        self._curve = self.plot.plot([], [], pen=pg.mkPen(theme.SERIES[0], width=1.5))
        row = QtWidgets.QHBoxLayout()
        row.addWidget(self.show_line)
        row.addWidget(self.n_lines)
        row.addStretch(1)
        layout = QtWidgets.QVBoxLayout(self)
        self._nothing = hint("Put the line on the image: the values along it will be plotted here.")
        layout.addLayout(row)
        layout.addWidget(self._nothing)
        layout.addWidget(self.plot, 1)
        layout.addStretch()
        self.show_line.toggled.connect(self._toggle)
        self._toggle(is_on=False)

    def ends(self) -> tuple[tuple[float, float], tuple[float, float]] | None:
        """Return where the line begins and ends, in pixels; None where there is none."""
        if self._line is None or not self._line.isVisible():
            return None
        first, last = (
            self._line.mapToParent(handle.pos()) / self._pixel_mm for handle in self._line.getHandles()
        )  # fmt: skip
        return (first.x(), first.y()), (last.x(), last.y())

    def set_pixel(self, pixel_mm: float) -> None:
        """Forget the line when pixels are of another size."""
        if pixel_mm != self._pixel_mm and self._line is not None:
            self._panel.view.removeItem(self._line)
            self._line = None
            self.show_line.setChecked(False)
        self._pixel_mm = pixel_mm

    def restyle(self) -> None:
        """Take the colours of another theme."""
        theme.restyle_plot(self.plot)

    def show_values(self, shown: Shown) -> None:
        """Plot what is shown along the line."""
        ends = self.ends()
        if ends is None:
            return
        plane = shown.picture.counts[0] if shown.is_colour else shown.image
        distance_px, values = measures.profile(plane, *ends, width=self.n_lines.value())
        if self.plot.getAxis("left").labelText != shown.unit:
            self.plot.setLabel("left", shown.unit)
        is_known = np.isfinite(values)
        if is_known.any():
            self._curve.setData(distance_px[is_known] * self._pixel_mm, values[is_known])

    def _toggle(self, is_on: bool) -> None:
        self._nothing.setVisible(not is_on)
        self.plot.setVisible(is_on)
        if is_on and self._line is None:
            seen = self._panel.view.viewRect()
            y = seen.center().y()
            ends = [(seen.left() + share * seen.width(), y) for share in (0.2, 0.8)]
            self._line = pg.LineSegmentROI(ends, pen=pg.mkPen(theme.SERIES[3], width=2))
            self._line.setZValue(20)
            self._panel.view.addItem(self._line, ignoreBounds=True)
        if self._line is not None:
            self._line.setVisible(is_on)


def short(value: float) -> str:
    """Return a number for a narrow column."""
    if not math.isfinite(value):
        return "-"
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value)}"
    return f"{value / 1e6:.4g}M" if abs(value) >= 1e6 else f"{value:.4g}"


def _button(text: str, tip: str) -> QtWidgets.QPushButton:
    button = QtWidgets.QPushButton(text)
    button.setToolTip(tip)
    return button
