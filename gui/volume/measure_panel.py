"""The panel of what is drawn into a volume: tools, table, figures of the chosen region, histograms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyqtgraph as pg
from pyqtgraph.Qt import QtCore, QtWidgets

from gui import theme
from gui.controls import allow, hint
from gui.volume.annotations import Annotation, Tool
from gui.volume.cursor import Spectrum
from gui.volume.cursor_panel import SpectrumPlot
from gui.volume.looks import map_table, rounded
from gui.volume.regions import Histogram, Joint, RegionFigures

WHOLE = "Whole volume (every few voxels)"
ALONE = "alone"
ROW_PX = 22
TOOL_TIPS = {
    Tool.SPHERE: "A sphere: mean, spread and volume of what lies inside.",
    Tool.CYLINDER: "A cylinder upright on the plane, as high as the thickness.",
    Tool.BOX: "A box upright on the plane, as high as the thickness.",
    Tool.FREEHAND: "A region drawn by hand, as high as the thickness.",
    Tool.RULER: "A length in mm.",
    Tool.ANGLE: "An angle in degrees.",
    Tool.AREA: "An area in mm² drawn by hand.",
}


class MeasurePanel(QtWidgets.QWidget):
    """Shows drawings and their figures.

    Attributes
    ----------
    tool_chosen : Signal(object)
        A `Tool`, or None.
    edited : Signal(object)
        The drawings, changed: a tuple of `Annotation`.
    chosen : Signal(str)
        Name of the drawing that was chosen.
    histogram_asked : Signal()
    copy_asked : Signal()
        The table as CSV to the clipboard.
    pieces : iterator
        Of its making, which takes long: it is to be used when somebody has walked through them.
    """

    tool_chosen = QtCore.Signal(object)
    edited = QtCore.Signal(object)
    chosen = QtCore.Signal(str)
    histogram_asked = QtCore.Signal()
    copy_asked = QtCore.Signal()

    def __init__(self) -> None:
        super().__init__()
        self.pieces = self._build()

    def _build(self) -> Iterator[None]:
        self.drawings: tuple[Annotation, ...] = ()
        self._figures: Mapping[str, RegionFigures] = {}
        self._is_silent = False
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(6, 6, 6, 6)
        layout.addLayout(self._tools())
        layout.addLayout(self._thickness())
        self.how = hint("Choose a tool, then draw on a slice. Esc puts it away.")
        layout.addWidget(self.how)
        layout.addWidget(self._table(), 2)
        layout.addLayout(self._buttons())
        self.below = QtWidgets.QTabWidget()
        self.below.addTab(self._detail(), "Figures")
        yield
        self.below.addTab(self._histogram(), "Histogram")
        yield
        self.below.addTab(self._spectrum(), "Spectrum")
        self.below.setTabToolTip(2, "Mean attenuation of the chosen region over the energy bins.")
        self.below.setTabToolTip(0, "Mean, spread and extremes of the chosen region.")
        self.below.setTabToolTip(1, "How often which value stands in a region or the volume.")
        layout.addWidget(self.below, 3)
        policy = QtWidgets.QSizePolicy.Policy
        for widget in (self.table, self.detail, self.plot, self.spectrum):
            widget.setSizePolicy(policy.Expanding, policy.Ignored)  # what they would like is more than a low window has
        yield

    @property
    def chosen_name(self) -> str:
        """Of the drawing that is chosen; empty where none is."""
        row = self.table.currentRow()
        return self.drawings[row].name if 0 <= row < len(self.drawings) else ""

    def allow(self, why_not: str) -> None:
        """Grey the tools where they cannot be used, and say why."""
        for tool, button in self.tools.items():
            allow(button, f"{TOOL_TIPS[tool]}\n{tool.how}", why_not)

    def put_tool_away(self) -> None:
        """Draw nothing any more."""
        for button in self.tools.values():
            button.setChecked(False)
        self.how.setText("Choose a tool, then draw on a slice. Esc puts it away.")

    def offer_channels(self, names: Sequence[str]) -> None:
        """Offer these channels to histograms."""
        self._is_silent = True
        for combo, extra in ((self.across, []), (self.upwards, [ALONE])):
            before = combo.currentText()
            combo.clear()
            combo.addItems([*extra, *names])
            combo.setCurrentIndex(max(combo.findText(before), 0))
        self._is_silent = False

    def show_drawings(
        self, drawings: tuple[Annotation, ...], figures: Mapping[str, RegionFigures], chosen: str = ""
    ) -> None:
        """Show drawings and what is known of them."""
        self._is_silent = True
        chosen = chosen or self.chosen_name
        self.drawings, self._figures = drawings, figures
        self.table.setRowCount(len(drawings))
        editable = QtCore.Qt.ItemFlag.ItemIsEditable
        for row, drawing in enumerate(drawings):
            known = figures.get(drawing.name)
            for column, text in enumerate((drawing.name, drawing.tool.label, known.size if known else "…")):
                item = QtWidgets.QTableWidgetItem(text)
                if column:
                    item.setFlags(item.flags() & ~editable)
                self.table.setItem(row, column, item)
        names = [drawing.name for drawing in drawings]
        self.table.setCurrentCell(names.index(chosen) if chosen in names else len(names) - 1, 0)
        self._is_silent = False
        self._refresh_buttons()
        self._show_detail()

    def show_histogram(self, found: Histogram | Joint | None, where: str = "") -> None:
        """Show how values are spread."""
        self._curve.setVisible(isinstance(found, Histogram))
        self._map.setVisible(isinstance(found, Joint))
        if isinstance(found, Histogram):
            self._curve.setData(found.edges, found.counts)
            self.plot.setLabel("bottom", f"{found.channel} ({found.unit})")
            self.plot.setLabel("left", "voxels")
            self.plot.setTitle(where)
            self.plot.autoRange()
        elif isinstance(found, Joint):
            left, right = found.edges_across[[0, -1]]
            low, high = found.edges_upwards[[0, -1]]
            self._map.setImage(np.log1p(found.counts), autoLevels=True)
            self._map.setRect(QtCore.QRectF(left, low, right - left, high - low))
            self.plot.setLabel("bottom", "{} ({})".format(*found.across))
            self.plot.setLabel("left", "{} ({})".format(*found.upwards))
            self.plot.setTitle(f"{where}, voxels (log)")
            self.plot.autoRange()

    def show_spectrum(self, spectrum: Spectrum | None) -> None:
        """Show the mean of the chosen region over the bins; None: there is none."""
        self.spectrum.setVisible(spectrum is not None)
        self._no_spectrum.setVisible(spectrum is None)
        if spectrum is not None:
            self.spectrum.show_spectrum(spectrum)

    def restyle(self) -> None:
        """Take the colours of another theme."""
        self.spectrum.restyle()
        self.plot.setBackground(pg.getConfigOption("background"))
        for side in ("bottom", "left"):
            axis = self.plot.getAxis(side)
            axis.setPen(pg.getConfigOption("foreground"))
            axis.setTextPen(pg.getConfigOption("foreground"))

    def _tools(self) -> QtWidgets.QLayout:
        grid = QtWidgets.QGridLayout()
        grid.setSpacing(4)
        self.tools: dict[Tool, QtWidgets.QPushButton] = {}
        for n, tool in enumerate(Tool):
            button = QtWidgets.QPushButton(tool.label.capitalize())
            button.setCheckable(True)
            button.setMinimumWidth(10)
            button.clicked.connect(lambda on, tool=tool: self._choose(tool if on else None))
            self.tools[tool] = button
            grid.addWidget(button, n // 4, n % 4)
        return grid

    def _thickness(self) -> QtWidgets.QLayout:
        self.thickness = QtWidgets.QDoubleSpinBox()
        self.thickness.setRange(0, 1000)
        self.thickness.setDecimals(2)
        self.thickness.setSuffix(" mm")
        self.thickness.setSpecialValueText("one slice")
        self.thickness.setToolTip("How high new cylinders, boxes and freehand regions are, half to either side.")
        row = QtWidgets.QHBoxLayout()
        row.addWidget(QtWidgets.QLabel("Thickness of regions"))
        row.addWidget(self.thickness)
        row.addStretch(1)
        return row

    def _table(self) -> QtWidgets.QWidget:
        self.table = QtWidgets.QTableWidget(0, 3)
        self.table.setHorizontalHeaderLabels(["Name", "Kind", "Size"])
        self.table.setToolTip("What was drawn; double-click a name to change it. Kept beside the volume's file.")
        self.table.verticalHeader().hide()
        self.table.verticalHeader().setDefaultSectionSize(ROW_PX)
        self.table.setSelectionBehavior(QtWidgets.QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.setSelectionMode(QtWidgets.QAbstractItemView.SelectionMode.SingleSelection)
        header = self.table.horizontalHeader()
        header.setSectionResizeMode(QtWidgets.QHeaderView.ResizeMode.Stretch)
        self.table.currentCellChanged.connect(lambda *_: self._pick())
        self.table.itemChanged.connect(self._rename)
        self.table.setMinimumHeight(80)
        return self.table

    def _buttons(self) -> QtWidgets.QLayout:
        row = QtWidgets.QHBoxLayout()
        self.delete = QtWidgets.QPushButton("Delete")
        self.delete.clicked.connect(self._remove)
        self.copy = QtWidgets.QPushButton("Copy as CSV")
        self.copy.clicked.connect(lambda: self.copy_asked.emit())
        row.addWidget(self.delete)
        row.addWidget(self.copy)
        row.addStretch(1)
        self._refresh_buttons()
        return row

    def _refresh_buttons(self) -> None:
        why = "" if self.drawings else "nothing is drawn yet."
        allow(self.delete, "Delete the chosen drawing; undo brings it back.", why)
        allow(self.copy, "Copy all figures for a spreadsheet.", why)

    def _detail(self) -> QtWidgets.QWidget:
        self.detail = QtWidgets.QTableWidget(0, 6)
        self.detail.setHorizontalHeaderLabels(["Channel", "Mean", "SD", "Min", "Max", "Unit"])
        self.detail.setWordWrap(False)
        self.detail.setToolTip("Figures of the chosen region: mean, standard deviation of the voxels, least and most.")
        self.detail.verticalHeader().hide()
        self.detail.verticalHeader().setDefaultSectionSize(ROW_PX)
        self.detail.setEditTriggers(QtWidgets.QAbstractItemView.EditTrigger.NoEditTriggers)
        header = self.detail.horizontalHeader()
        header.setSectionResizeMode(QtWidgets.QHeaderView.ResizeMode.ResizeToContents)
        header.setSectionResizeMode(0, QtWidgets.QHeaderView.ResizeMode.Stretch)
        self.detail.setMinimumHeight(80)
        return self.detail

    def _histogram(self) -> QtWidgets.QWidget:
        box = QtWidgets.QWidget()
        layout = QtWidgets.QVBoxLayout(box)
        row = QtWidgets.QHBoxLayout()
        self.across, self.upwards, self.where = (QtWidgets.QComboBox() for _ in range(3))
        for combo, tip in (
            (self.across, "Of which channel."),
            (self.upwards, "Alone, or how it stands together with another channel."),
            (self.where, "Over the chosen region, or over the whole volume."),
        ):
            combo.setToolTip(tip)
            combo.setMinimumWidth(40)
            combo.setSizeAdjustPolicy(QtWidgets.QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
            combo.currentIndexChanged.connect(lambda _: self._is_silent or self.histogram_asked.emit())
        self.where.addItems([WHOLE, "Chosen region"])
        row.addWidget(self.across, 1)
        row.addWidget(QtWidgets.QLabel("with"))
        row.addWidget(self.upwards, 1)
        layout.addLayout(row)
        layout.addWidget(self.where)
        self.plot = pg.PlotWidget()
        self.plot.setMinimumHeight(120)
        self.plot.setToolTip("How often which value stands in it.")
        for side in ("bottom", "left"):
            self.plot.getAxis(side).enableAutoSIPrefix(False)
        self._curve = self.plot.plot(
            stepMode="center", fillLevel=0, brush=(*_rgb(theme.SERIES[0]), 90), pen=theme.SERIES[0]
        )
        self._map = pg.ImageItem(axisOrder="row-major")
        self._map.setLookupTable(map_table("fire"))
        self.plot.addItem(self._map)
        layout.addWidget(self.plot, 1)
        return box

    def _spectrum(self) -> QtWidgets.QWidget:
        box = QtWidgets.QWidget()
        self.spectrum = SpectrumPlot("Mean of the chosen region, and what its mean concentrations would show.")
        self._no_spectrum = hint("Choose a region; a volume of energy bins with known edges must be open.")
        layout = QtWidgets.QVBoxLayout(box)
        layout.addWidget(self._no_spectrum)
        layout.addWidget(self.spectrum, 1)
        self.show_spectrum(None)
        return box

    def _choose(self, tool: Tool | None) -> None:
        for other, button in self.tools.items():
            button.setChecked(other is tool)
        self.how.setText(tool.how if tool is not None else "Choose a tool, then draw on a slice. Esc puts it away.")
        self.tool_chosen.emit(tool)

    def _pick(self) -> None:
        if not self._is_silent:
            self._show_detail()
            self.chosen.emit(self.chosen_name)

    def _rename(self, item: QtWidgets.QTableWidgetItem) -> None:
        if self._is_silent or item.column() != 0:
            return
        row, name = item.row(), item.text().strip()
        taken = {drawing.name for n, drawing in enumerate(self.drawings) if n != row}
        if not name or name in taken:
            self.show_drawings(self.drawings, self._figures)
            return
        renamed = list(self.drawings)
        renamed[row] = replace(renamed[row], name=name)
        self.edited.emit(tuple(renamed))

    def _remove(self) -> None:
        name = self.chosen_name
        self.edited.emit(tuple(drawing for drawing in self.drawings if drawing.name != name))

    def _show_detail(self) -> None:
        known = self._figures.get(self.chosen_name)
        channels = known.channels if known is not None else ()
        self.detail.setRowCount(len(channels))
        for row, one in enumerate(channels):
            texts = (one.channel, *map(rounded, (one.mean, one.sd, one.least, one.most)), one.unit)
            for column, text in enumerate(texts):
                item = QtWidgets.QTableWidgetItem(text)
                item.setToolTip(text)
                if 0 < column < 5:
                    item.setTextAlignment(QtCore.Qt.AlignmentFlag.AlignRight | QtCore.Qt.AlignmentFlag.AlignVCenter)
                self.detail.setItem(row, column, item)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
