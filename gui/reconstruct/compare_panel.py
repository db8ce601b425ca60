"""Two tries side by side: the one before and this one, with one zoom, one window of levels, and two regions to read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyqtgraph as pg
from numpy.typing import NDArray
from pyqtgraph.Qt import QtCore, QtWidgets

from gui import theme
from gui.controls import allow, hint
from gui.image_panel import percentile_levels
from gui.reconstruct.form import Choice
from gui.reconstruct.tries import Picture, Reading, Try, box_of, difference, reading
from gui.scale_bar import ScaleBar

BEFORE, THIS, LESS = 0, 1, 2
WIDTH_PX, HISTOGRAM_PX = 180, 130
LEAST_PX, ROW_PX = 44, 26
HEADINGS = ("before", "this", "this less before")
COLUMNS = ("mean", "noise (sd)", "background", "background noise", "contrast", "contrast / noise")
EXPLAINED = (
    "Mean of the region (solid box).",
    "Standard deviation in the region.",
    "Mean of the background (dashed box).",
    "Standard deviation in the background.",
    "Mean of the region less that of the background.",
    "Contrast over the background's noise: how well it stands out.",
)


class ComparePanel(QtWidgets.QWidget):
    """Shows up to two tries, and their difference.

    Parameters
    ----------
    is_whole : bool
        Without, it is to be used when somebody has walked through `pieces`.

    Attributes
    ----------
    pieces : iterator
        Of its making.

    Signals
    -------
    region_wanted
        Only the solid box is to be reconstructed.
    """

    region_wanted = QtCore.Signal()

    def __init__(self, *, is_whole: bool = True) -> None:
        super().__init__()
        self.pieces = self._build()
        if is_whole:
            for _ in self.pieces:
                pass

    def _build(self) -> Iterator[None]:
        self._tries: list[Try | None] = [None, None]
        self.channel = Choice("Which bin, material or quantity to show.")
        self.channel.chosen.connect(self._show_channel)
        self.beside = Choice("Which other try to show on the left; the one before, unless you choose.")
        self.beside.setPlaceholderText("no other try")
        self.take_region = QtWidgets.QPushButton("Region from box")
        self.take_region.setToolTip("Reconstruct only what the solid box holds, in x and y; it can be undone.")
        self.take_region.clicked.connect(lambda: self.region_wanted.emit())
        self.is_less = QtWidgets.QCheckBox("difference")
        self.is_less.toggled.connect(lambda _: self._show())
        self.level = QtWidgets.QPushButton("Fit levels")
        self.level.setToolTip("Set black and white anew by what this picture holds; they stay until you do.")
        self.level.clicked.connect(self._fit_levels)
        self.fit = QtWidgets.QPushButton("Fit view")
        self.fit.setToolTip("Show the whole slice again.")
        self.fit.clicked.connect(self._fit_view)
        self.graphics = pg.GraphicsLayoutWidget()
        self.graphics.setToolTip(
            "Wheel: zoom, drag: move, in all pictures at once. The solid box is the region that is read, "
            "the dashed one its background; drag them, or their corners."
        )
        self._labels: list[pg.LabelItem] = []
        self.views: list[pg.ViewBox] = []
        self.items: list[pg.ImageItem] = []
        self._bars: list[ScaleBar] = []
        self.boxes: list[tuple[pg.RectROI, pg.RectROI]] = []
        for number, heading in enumerate(HEADINGS):
            self._labels.append(self.graphics.ci.addLabel(heading, row=0, col=number))
            view = self.graphics.ci.addViewBox(row=1, col=number, lockAspect=True, invertY=True)
            view.setBackgroundColor("k")  # slices are dark at their corners in either look
            item = pg.ImageItem(axisOrder="row-major")
            view.addItem(item)
            self._bars.append(ScaleBar(view))
            view.sigRangeChanged.connect(lambda *_, number=number: self._set_bar(number))
            view.sigRangeChangedManually.connect(lambda *_, number=number: self._share_range(number))
            self.views.append(view)
            self.items.append(item)
            self.boxes.append(self._make_boxes(view))
            yield
        self.histogram = pg.HistogramLUTItem(self.items[THIS])
        self.histogram.sigLevelsChanged.connect(self._share_levels)
        self.histogram.axis.enableAutoSIPrefix(False)
        self.histogram.gradient.showTicks(False)
        self.graphics.ci.addItem(self.histogram, row=1, col=3)
        grid: Any = self.graphics.ci.layout  # pyqtgraph puts a layout where Qt has a method
        grid.setColumnStretchFactor(3, 0)
        grid.setColumnFixedWidth(3, HISTOGRAM_PX)
        yield
        self._legend = hint()
        self._legend.setToolTip("What each colour of this picture means, and from which concentration it is full.")
        self._legend.setVisible(False)
        self.table = QtWidgets.QTableWidget(2, len(COLUMNS))
        self.table.setToolTip("Of both tries: mean and noise in the solid box, and how it stands off the dashed one.")
        self.table.setHorizontalHeaderLabels(list(COLUMNS))
        self.table.setVerticalHeaderLabels(list(HEADINGS[:2]))
        for number, text in enumerate(EXPLAINED):
            header = self.table.horizontalHeaderItem(number)
            if header is not None:
                header.setToolTip(text)
        self.table.setEditTriggers(QtWidgets.QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.setSelectionMode(QtWidgets.QAbstractItemView.SelectionMode.NoSelection)
        self.table.setFocusPolicy(QtCore.Qt.FocusPolicy.NoFocus)
        self.table.horizontalHeader().setSectionResizeMode(QtWidgets.QHeaderView.ResizeMode.Stretch)
        self.table.verticalHeader().setDefaultSectionSize(ROW_PX)
        top = QtWidgets.QHBoxLayout()
        for widget in (QtWidgets.QLabel("show"), self.channel, QtWidgets.QLabel("beside"), self.beside, self.is_less):
            top.addWidget(widget)
        top.addStretch(1)
        for button in (self.take_region, self.level, self.fit):
            top.addWidget(button)
        for widget in (self.channel, self.beside, self.take_region, self.level, self.fit):
            widget.setMinimumWidth(LEAST_PX)  # in a small window, rather cut than wider than the screen
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(top)
        layout.addWidget(self.graphics, 1)
        layout.addWidget(self._legend)
        layout.addWidget(self.table)
        self._show()
        yield

    def show_tries(self, before: Try | None, this: Try | None) -> None:
        """Show two tries; zoom and levels stay where both pictures are of one kind."""
        old = self._tries[THIS]
        self._tries = [before, this]
        if this is not None:
            names = [picture.name for picture in this.pictures]
            kept = str(self.channel.value())
            self.channel.offer([(name, name, "") for name in names])
            is_other = old is None or old.kind != this.kind or kept not in names
            has_moved = old is None or _extent(old) != _extent(this)
            self._show()
            if is_other:
                self._fit_levels()
            if has_moved:
                self._place_boxes(this)
                self._fit_view()
        else:
            self._show()
        self._read()

    def restyle(self) -> None:
        """Take the colours of another theme."""
        self.graphics.setBackground("default")
        colour = pg.getConfigOption("foreground")
        for number, label in enumerate(self._labels):
            self._write_heading(number, label.text)
        self.histogram.axis.setPen(colour)
        self.histogram.axis.setTextPen(colour)

    def readings(self) -> tuple[Reading | None, Reading | None]:
        """Return what the boxes read, before and in this try."""
        return self._reading(self._tries[BEFORE]), self._reading(self._tries[THIS])

    def region_mm(self) -> tuple[float, float, float, float]:
        """Return the solid box: x, y, width and height in mm from the picture's upper left corner."""
        region = self.boxes[THIS][0]
        at, size = region.pos(), region.size()
        return at.x(), at.y(), size.x(), size.y()

    def _make_boxes(self, view: pg.ViewBox) -> tuple[pg.RectROI, pg.RectROI]:
        region = pg.RectROI([0, 0], [1, 1], pen=pg.mkPen(theme.SERIES[4], width=2))
        background = pg.RectROI(
            [0, 0], [1, 1], pen=pg.mkPen(theme.SERIES[5], width=2, style=QtCore.Qt.PenStyle.DashLine)
        )
        for number, box in enumerate((region, background)):
            view.addItem(box)
            box.sigRegionChanged.connect(lambda moved, number=number: self._follow(moved, number))
        return region, background

    def _follow(self, moved: pg.RectROI, number: int) -> None:
        """Move the other pictures' boxes along, and read again."""
        for pair in self.boxes:
            box = pair[number]
            if box is not moved:
                box.blockSignals(True)
                box.setPos(moved.pos(), update=False)
                box.setSize(moved.size())
                box.blockSignals(False)
        self._read()

    def _place_boxes(self, this: Try) -> None:
        width_mm, height_mm = _extent(this)
        side_mm = 0.12 * min(width_mm, height_mm)
        for number, (across, down) in enumerate(((0.44, 0.44), (0.44, 0.7))):
            box = self.boxes[THIS][number]
            box.blockSignals(True)
            box.setPos([across * width_mm, down * height_mm], update=False)
            box.setSize([side_mm, side_mm])
            box.blockSignals(False)
            self._follow(box, number)

    def _show_channel(self) -> None:
        self._show()
        self._fit_levels()

    def _pictures(self) -> list[Picture | None]:
        name = str(self.channel.value())
        before, this = (one.picture(name) if one is not None else None for one in self._tries)
        less = (
            difference(before, this) if before is not None and this is not None and self.is_less.isChecked() else None
        )
        return [before, this, less]

    def _show(self) -> None:
        pictures = self._pictures()
        grid: Any = self.graphics.ci.layout
        for number, picture in enumerate(pictures):
            is_seen = picture is not None or number == THIS
            for item in (self._labels[number], self.views[number]):
                item.setVisible(is_seen)
            grid.setColumnStretchFactor(number, 1 if is_seen else 0)
            grid.setColumnMaximumWidth(number, 100_000 if is_seen else 0)
            grid.setColumnPreferredWidth(number, WIDTH_PX if is_seen else 0)
            if picture is not None:
                self._show_picture(number, picture)
            else:
                self.items[number].clear()
                self._write_heading(number, "" if number != THIS else HEADINGS[THIS])
        before, this = pictures[:2]
        can_subtract = before is not None and this is not None and difference(before, this) is not None
        why = "" if can_subtract else "a difference needs two tries of the same kind and size, and no colours."
        allow(self.is_less, "Show what this try has more than the one before, with grey for no difference.", why)
        for pair in self.boxes:
            for box in pair:
                box.setVisible(self._tries[THIS] is not None)
        self._read()

    def _show_picture(self, number: int, picture: Picture) -> None:
        one = self._tries[min(number, THIS)]
        assert one is not None
        item = self.items[number]
        levels = (0, 255)
        if picture.values.ndim == 2:
            levels = self.histogram.getLevels() if number != LESS else _balanced(picture.values)
        item.setImage(picture.values, autoLevels=False, levels=levels)
        item.setScale(one.pixel_mm)
        unit = f", {picture.unit}" if picture.unit else ""
        name = f"{HEADINGS[number]} ({one.number})" if number != LESS else HEADINGS[number]
        told = f"{picture.name}{unit}" if number != LESS else f"{levels[0]:.2g} to {levels[1]:.2g} {picture.unit}"
        self._write_heading(number, f"{name}: {told}")
        if number == THIS:
            said = (f"<span style='color:{colour}'>■</span> {text}" for text, colour in picture.legend)
            self._legend.setText(" &nbsp; ".join(said))
            self._legend.setVisible(bool(picture.legend))
            self.histogram.axis.setLabel(picture.unit or "colour")
            self.histogram.setVisible(picture.values.ndim == 2)

    def _write_heading(self, number: int, text: str) -> None:
        label = self._labels[number]
        label.setText(text, color=pg.getConfigOption("foreground"))
        label.setMinimumWidth(0)  # else the longest heading would take room from the other pictures
        label.setPreferredWidth(0)

    def _share_levels(self) -> None:
        image = self.items[BEFORE].image
        if image is not None and image.ndim == 2:
            self.items[BEFORE].setLevels(self.histogram.getLevels())

    def _fit_levels(self) -> None:
        picture = self._pictures()[THIS]
        if picture is not None and picture.values.ndim == 2:
            low, high = percentile_levels(picture.values)
            self.histogram.setLevels(low, high)
            self.histogram.setHistogramRange(low, high)
            self._share_levels()

    def _fit_view(self) -> None:
        this = self._tries[THIS]
        if this is not None:
            width_mm, height_mm = _extent(this)
            for view in self.views:
                view.setRange(QtCore.QRectF(0, 0, width_mm, height_mm), padding=0.02)
            for number in range(len(self.views)):
                self._set_bar(number)

    def _share_range(self, number: int) -> None:
        """Show in all pictures the part that one was moved to; links of pyqtgraph drift where one is hidden."""
        for other, view in enumerate(self.views):
            if other != number:
                view.setRange(self.views[number].viewRect(), padding=0)

    def _set_bar(self, number: int) -> None:
        one = self._tries[min(number, THIS)]
        if one is not None:
            whole = QtCore.QRectF(0, 0, *_extent(one))
            self._bars[number].show_within(self.views[number].viewRect().intersected(whole).width())

    def _reading(self, one: Try | None) -> Reading | None:
        picture = one.picture(str(self.channel.value())) if one is not None else None
        if one is None or picture is None or picture.values.ndim != 2:
            return None
        region, background = (
            box_of(box.pos().x(), box.pos().y(), box.size().x(), box.size().y(), one.pixel_mm)
            for box in self.boxes[THIS]
        )
        return reading(picture.values.astype(np.float32, copy=False), region, background)

    def _read(self) -> None:
        if not hasattr(self, "table"):
            return
        this = self._tries[THIS]
        picture = this.picture(str(self.channel.value())) if this is not None else None
        unit = f" {picture.unit}" if picture is not None else ""
        found_now = self.readings()
        self.table.setVisible(this is None or found_now[THIS] is not None)  # of colours there are none
        has_before = self._tries[BEFORE] is not None
        self.table.setRowHidden(BEFORE, not has_before)
        heading_px = self.table.horizontalHeader().sizeHint().height()
        self.table.setFixedHeight(heading_px + (1 + has_before) * ROW_PX + 4)
        for row, found in enumerate(found_now):
            cells: Sequence[str] = [""] * len(COLUMNS)
            if found is not None:
                figures = (found.mean, found.sd, found.background, found.background_sd, found.contrast)
                cells = [*(f"{figure:.4g}{unit}" for figure in figures), f"{found.contrast_to_noise:.3g}"]
            for column, text in enumerate(cells):
                self.table.setItem(row, column, QtWidgets.QTableWidgetItem(text))


def _extent(one: Try) -> tuple[float, float]:
    """Return width and height in mm."""
    height, width = one.pictures[0].values.shape[:2] if one.pictures else (1, 1)
    return width * one.pixel_mm, height * one.pixel_mm


def _balanced(values: NDArray[np.generic]) -> tuple[float, float]:
    """Return levels with 0 in the middle."""
    most = float(np.quantile(np.abs(values), 0.998)) or 1.0
    return -most, most
