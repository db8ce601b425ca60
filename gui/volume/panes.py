"""The panes side by side: three linked cuts along the axes, and a slanted one.

Zoom and place are one for all: the same mm on a pixel, and the same point in the middle.
"""

from __future__ import annotations

import numpy as np
from pyqtgraph.Qt import QtCore, QtGui, QtWidgets

from gui.volume.annotations import Tool
from gui.volume.desk import PANES, SLANTED, Desk
from gui.volume.marks import Overlay
from gui.volume.slice_pane import SlicePane, pixmap_of
from gui.volume.slicing import Point

FIT_SHARE = 0.92
"""How much of a pane the volume fills when all of it is shown."""
TIP = (
    "Click or drag: crosshair.  Wheel, arrows, page keys: slices.  Ctrl + wheel or right drag: zoom.  "
    "Middle drag: move.  Double click: large, and back.  Drag a drawing's line to move it, its squares to resize it."
)


class Panes(QtWidgets.QWidget):
    """Shows the cuts of a desk.

    Attributes
    ----------
    panes : dict of str to SlicePane
    drawn : Signal(object, object, object)
        Tool, points in the picture, and the cut they were drawn on.
    """

    drawn = QtCore.Signal(object, object, object)

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        self._desk = desk
        self.panes = {name: SlicePane(name, TIP) for name in PANES}
        self._shown: dict[str, object] = {}
        self._overlays: dict[str, tuple[object, ...]] = {}
        self._is_following = False
        self._is_fit = False
        self._large: str | None = None
        self._middle: Point = (0.0, 0.0, 0.0)
        self._grid = QtWidgets.QGridLayout(self)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setSpacing(3)
        self._places: dict[str, QtWidgets.QWidget] = {name: self.panes[name] for name in PANES[:3]}
        self._places[SLANTED] = self._slanted()
        for n, widget in enumerate(self._places.values()):
            self._grid.addWidget(widget, n // 2, n % 2)
        for line in range(2):
            self._grid.setRowStretch(line, 1)
            self._grid.setColumnStretch(line, 1)
        for name, pane in self.panes.items():
            self._connect(name, pane)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the panes a picture can be taken of."""
        return PANES

    def refresh(self) -> None:
        """Show new pictures and what stands over them."""
        self._see()
        if not self._is_fit and self._desk.grid is not None and self.panes["axial"].width() > 50 and self.isVisible():
            self.fit()
        for name in self._desk.seen:
            painted = self._desk.pictures.get(name)
            if painted is not None and painted is not self._shown.get(name):
                self._shown[name] = painted
                self.panes[name].show_picture(painted)
            state = (self._desk.version, self._desk.point_mm, self._desk.slant, self._desk.look, self._has_slant)
            if painted is not None and state != self._overlays.get(name):
                self._overlays[name] = state
                overlay = self._desk.overlay_of(name, has_legend=name == self._with_legend, has_slant=self._has_slant)
                self.panes[name].show_overlay(overlay)
        self._show_angles()

    def show_all(self, empty_text: str) -> None:
        """Show that there is another volume, or none."""
        if self._desk.grid is not None:
            return
        self._is_fit = False
        self._shown.clear()
        self._overlays.clear()
        for name, pane in self.panes.items():
            pane.clear_picture()
            pane.show_overlay(Overlay(note=empty_text if name == "axial" else ""))

    def fit(self) -> None:
        """Show the whole volume in all panes."""
        grid = self._desk.grid
        if grid is None:
            return
        self._is_fit = True
        z, y, x = (n * grid.voxel_mm for n in grid.shape)
        spans = {"axial": (x, y), "coronal": (x, z), "sagittal": (y, z)}
        if self._large == SLANTED:  # which may lie as it likes
            spans = {SLANTED: (max(x, y), max(y, z))}
        mm_per_px = max(
            max(width / max(self.panes[name].width(), 1), height / max(self.panes[name].height(), 1)) / FIT_SHARE
            for name, (width, height) in spans.items()
            if self._places[name].isVisible() or self._large is None
        )
        self._middle = grid.centre_mm
        self._look_at(mm_per_px)

    def choose_tool(self, tool: Tool | None) -> None:
        """Draw with this in all panes; None: with nothing."""
        for pane in self.panes.values():
            pane.choose_tool(tool)

    def image(self, name: str | None, factor: float) -> QtGui.QImage:
        """Return a picture of a pane, with the legend, or of all that are seen, side by side."""
        return self._image_of(name, factor, has_legend=True) if name is not None else self._image_of_all(factor)

    def _image_of(self, name: str, factor: float, *, has_legend: bool) -> QtGui.QImage:
        pane = self.panes[name]
        before = pane.overlay
        pane.show_overlay(self._desk.overlay_of(name, has_legend=has_legend, has_slant=False))
        image = pixmap_of(pane, factor)
        pane.show_overlay(before)
        return image

    def _image_of_all(self, factor: float) -> QtGui.QImage:
        whole = QtGui.QImage(self.size() * factor, QtGui.QImage.Format.Format_RGB32)
        whole.fill(QtGui.QColor("#000000"))
        painter = QtGui.QPainter(whole)
        for name, pane in self.panes.items():
            if pane.isVisible():
                at = pane.mapTo(self, QtCore.QPoint(0, 0)) * factor
                painter.drawImage(at, self._image_of(name, factor, has_legend=name == self._with_legend))
        painter.end()
        return whole

    def enlarge(self, name: str) -> None:
        """Show one pane alone, or all again."""
        self._large = None if self._large is not None else name
        for other, widget in self._places.items():
            widget.setVisible(self._large is None or other == self._large)
        for line in range(2):
            rows = [n // 2 for n, other in enumerate(self._places) if self._large in (None, other)]
            columns = [n % 2 for n, other in enumerate(self._places) if self._large in (None, other)]
            self._grid.setRowStretch(line, int(line in rows))
            self._grid.setColumnStretch(line, int(line in columns))
        self._overlays.clear()
        QtCore.QTimer.singleShot(0, self.fit)

    @property
    def _with_legend(self) -> str:
        return self._large or "axial"

    @property
    def _has_slant(self) -> bool:
        return self.lines.isChecked()

    def _see(self) -> None:
        self._desk.seen = {name for name in PANES if self.panes[name].isVisible()}

    def _connect(self, name: str, pane: SlicePane) -> None:
        desk = self._desk
        pane.pointed.connect(lambda u, v: desk.go_to(desk.point_at(name, u, v)))
        pane.hovered.connect(lambda u, v: desk.ask_reading(desk.point_at(name, u, v)))
        pane.left.connect(lambda: desk.ask_reading(desk.point_mm))
        pane.stepped.connect(lambda n: desk.step(name, n))
        pane.turned.connect(lambda angle: desk.turn(name, angle))
        pane.moved.connect(lambda: self._follow(name))
        pane.drawn.connect(lambda points: self.drawn.emit(pane.tool, points, desk.cut_of(name)))
        pane.reshaped.connect(lambda *how: desk.reshape(name, *how))
        pane.chosen.connect(desk.choose_drawing)
        pane.enlarged.connect(lambda: self.enlarge(name))

    def _follow(self, name: str) -> None:
        """Show in all panes what somebody looks at in one."""
        if self._is_following or self._desk.grid is None:
            return
        pane, cut = self.panes[name], self._desk.cut_of(name)
        right_mm, up_mm = pane.centre_mm()
        normal = cut.normal
        depth = float(np.dot(self._middle, normal))
        point = right_mm * np.array(cut.right) + up_mm * np.array(cut.up) + depth * normal
        self._middle = (float(point[0]), float(point[1]), float(point[2]))
        self._look_at(pane.mm_per_px(), but=name)

    def _look_at(self, mm_per_px: float, but: str = "") -> None:
        self._is_following = True
        for name, pane in self.panes.items():
            if name != but:
                pane.look_at(self._desk.cut_of(name).plane_mm(self._middle), mm_per_px)
        self._is_following = False

    def _slanted(self) -> QtWidgets.QWidget:
        widget = QtWidgets.QWidget()
        layout = QtWidgets.QVBoxLayout(widget)
        layout.setContentsMargins(0, 2, 0, 0)
        layout.setSpacing(2)
        row = QtWidgets.QHBoxLayout()
        self.azimuth, self.tilt = QtWidgets.QDoubleSpinBox(), QtWidgets.QDoubleSpinBox()
        for spin, text, tip, low, high in (
            (self.azimuth, "Azimuth", "Which way the slanted cut tilts, about z.", -180, 180),
            (self.tilt, "Tilt", "How far it tilts away from the axial cut.", 0, 180),
        ):
            spin.setRange(low, high)
            spin.setDecimals(1)
            spin.setSuffix("°")
            spin.setWrapping(low < 0)
            spin.setToolTip(tip)
            spin.setKeyboardTracking(False)
            spin.valueChanged.connect(lambda _: self._tilt())
            row.addWidget(QtWidgets.QLabel(text))
            row.addWidget(spin)
        self.lines = QtWidgets.QCheckBox("Lines")
        self.lines.setChecked(True)
        self.lines.setToolTip("Show where the slanted cut crosses the other panes, with handles to turn it by.")
        row.addStretch(1)
        row.addWidget(self.lines)
        layout.addLayout(row)
        layout.addWidget(self.panes[SLANTED], 1)
        return widget

    def _tilt(self) -> None:
        self._desk.tilt(float(np.radians(self.azimuth.value())), float(np.radians(self.tilt.value())))

    def _show_angles(self) -> None:
        for spin, angle_rad in zip((self.azimuth, self.tilt), self._desk.slant_rad, strict=True):
            shown = float(np.degrees(angle_rad))
            if abs(spin.value() - shown) > 0.06 and not spin.hasFocus():
                spin.blockSignals(True)
                spin.setValue(shown)
                spin.blockSignals(False)
