"""The panel that tells what stands under the mouse: position, materials, bins, and the spectrum with its fit."""

from __future__ import annotations

import numpy as np
import pyqtgraph as pg
from pyqtgraph.Qt import QtCore, QtWidgets

from gui import theme
from gui.controls import hint
from gui.volume.cursor import Reading, Spectrum


class SpectrumPlot(pg.PlotWidget):
    """Attenuation over the energy bins, as measured and as the materials would show it."""

    def __init__(self, tip: str) -> None:
        super().__init__()
        self.setToolTip(tip)
        self.setMinimumHeight(120)
        self.setLabel("bottom", "energy, keV")
        self.setLabel("left", "attenuation, 1/mm")
        for side in ("bottom", "left"):
            self.getAxis(side).enableAutoSIPrefix(False)
        self._show_key()
        self._measured = self.plot(pen=pg.mkPen(theme.SERIES[0], width=2), stepMode="center")
        pen = pg.mkPen(theme.SERIES[1], width=2, style=QtCore.Qt.PenStyle.DashLine)
        self._fitted = self.plot(pen=pen, stepMode="center")

    def show_spectrum(self, spectrum: Spectrum) -> None:
        """Show this one."""
        self._measured.setData(spectrum.edges_kev, spectrum.measured_per_mm)
        fitted = spectrum.fitted_per_mm
        self._fitted.setData(*((spectrum.edges_kev, fitted) if fitted is not None else (np.zeros(1), np.zeros(0))))

    def restyle(self) -> None:
        """Take the colours of another theme."""
        theme.restyle_plot(self)
        self._show_key()

    def _show_key(self) -> None:
        """Say above the plot what its lines are: within it they would lie over each other."""
        key = (
            f'<span style="color:{colour}">{sign}</span> {name}'
            for colour, sign, name in zip(theme.SERIES, ("—", "- -"), ("measured", "of the materials"), strict=False)
        )
        self.setTitle(" &nbsp; ".join(key), size="9pt", color=pg.getConfigOption("foreground"))


class CursorPanel(QtWidgets.QWidget):
    """Shows a reading."""

    def __init__(self) -> None:
        super().__init__()
        self.where = QtWidgets.QLabel()
        self.where.setTextInteractionFlags(QtCore.Qt.TextInteractionFlag.TextSelectableByMouse)
        self.where.setToolTip("Where the mouse is, or else the crosshair: x, y, z in mm, and the voxel.")
        self.table = QtWidgets.QTableWidget(0, 3)
        self.table.setHorizontalHeaderLabels(["What", "Value", "Unit"])
        self.table.setToolTip("Every material, with its standard error where it is known, and every energy bin.")
        self.table.verticalHeader().hide()
        self.table.verticalHeader().setDefaultSectionSize(22)
        self.table.setEditTriggers(QtWidgets.QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.setSelectionMode(QtWidgets.QAbstractItemView.SelectionMode.NoSelection)
        self.table.setFocusPolicy(QtCore.Qt.FocusPolicy.NoFocus)
        header = self.table.horizontalHeader()
        header.setSectionResizeMode(0, QtWidgets.QHeaderView.ResizeMode.Stretch)
        for column in (1, 2):
            header.setSectionResizeMode(column, QtWidgets.QHeaderView.ResizeMode.ResizeToContents)
        self.plot = SpectrumPlot("Attenuation over the energy bins here, and what the materials found here would show.")
        self._no_plot = hint("The spectrum is shown where a volume of energy bins with known edges is open.")
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(6, 6, 6, 6)
        layout.addWidget(self.where)
        layout.addWidget(self.table, 3)
        layout.addWidget(self._no_plot)
        layout.addWidget(self.plot, 2)
        self.show_spectrum(None)

    def show_reading(self, reading: Reading, *, is_scale_known: bool = True) -> None:
        """Show what stands at a point."""
        x, y, z = reading.point_mm
        unit = "mm" if is_scale_known else "voxels"
        voxel = "outside" if reading.voxel is None else "voxel z {}, y {}, x {}".format(*reading.voxel)
        self.where.setText(f"x {x:.3f}   y {y:.3f}   z {z:.3f} {unit}\n{voxel}")
        if self.table.rowCount() != len(reading.rows):
            self.table.setRowCount(len(reading.rows))
        for row, texts in enumerate(reading.rows):
            for column, text in enumerate(texts):
                self._set(row, column, text)
        self.show_spectrum(reading.spectrum)

    def show_spectrum(self, spectrum: Spectrum | None) -> None:
        """Show the attenuation over the bins; None: there is none."""
        self.plot.setVisible(spectrum is not None)
        self._no_plot.setVisible(spectrum is None)
        if spectrum is None:
            return
        self.plot.show_spectrum(spectrum)

    def restyle(self) -> None:
        """Take the colours of another theme."""
        self.plot.restyle()

    def _set(self, row: int, column: int, text: str) -> None:
        item = self.table.item(row, column)
        if item is None:
            item = QtWidgets.QTableWidgetItem()
            if column == 1:
                item.setTextAlignment(QtCore.Qt.AlignmentFlag.AlignRight | QtCore.Qt.AlignmentFlag.AlignVCenter)
            self.table.setItem(row, column, item)
        if item.text() != text:
            item.setText(text)
