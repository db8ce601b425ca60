"""Draws charts and pictures of a calibration, as many side by side as there is room for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyqtgraph as pg
from pyqtgraph.Qt import QtCore, QtGui, QtWidgets

from gui.calibrate.panels import GREY, Chart, Line, Panel, Picture, Style
from gui.controls import hint
from gui.theme import SERIES

TURN_MS = 10
"""From one plot to the next: the window paints each before the other is there."""
MOST_LETTERS = 48
"""Names that have more in all do not fit under a plot, and stand beside it."""
LEAST_WIDTH_PX, PANEL_HEIGHT_PX, MOST_HEIGHT_PX = 330, 270, 640
"""Of a panel; on a large screen it would grow much taller than wide."""
SCALE_WIDTH_PX = 64
"""Of numbers and unit beside a picture's scale."""
LEVEL_SHARE, LEVEL_ROOM = 1e-9, 0.1
"""Values that differ by less of themselves are the same, and are shown with so much room above and below."""
KEY_WIDTH_PX = 150
"""Of what a picture's colours mean, beside it."""
MARGIN_PX = 9
GREY_COLOUR = "#8a8f98"
SIGNS = {
    Style.LINE: "\N{HORIZONTAL BAR}",
    Style.DOTS: "\N{BLACK CIRCLE}",
    Style.DASHED: "- -",
    Style.STEPS: "\N{BLACK SQUARE}",
}
KIND_COLOURS = (
    "#e4e6ea", "#d55e00", "#e69f00", "#56b4e9", "#f0e442", "#cc79a7", "#009e73", "#0072b2", "#7f7f7f", "#ff0000",
    "#5b6b9c", "#7d5a3c",
)  # fmt: skip
"""Of kinds of pixels, the good ones first; as in printed reports."""


class PanelView(QtWidgets.QScrollArea):
    """Shows any number of panels; where only their values change, the plots stay and so does how one looked at them.

    Plots are costly to make, to fill and to paint: each has its own turn, and those not needed are kept.
    """

    def __init__(self, nothing: str) -> None:
        super().__init__()
        self.setWidgetResizable(True)
        self.setFrameShape(QtWidgets.QFrame.Shape.NoFrame)
        self._inside = QtWidgets.QWidget()
        self._grid = QtWidgets.QGridLayout(self._inside)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setSpacing(0)  # beside rooms that are empty yet Qt leaves none, and plots would move
        self._nothing = hint(nothing)
        self._nothing.setAlignment(QtCore.Qt.AlignmentFlag.AlignCenter)
        self._grid.addWidget(self._nothing, 0, 0)
        self.setWidget(self._inside)
        for part in (self.viewport(), self._inside):
            part.setAutoFillBackground(False)  # it lies on a tab, whose colour is another than the window's
        self._shown: list[_Panel] = []
        self._spare: list[_Panel] = []
        self._panels: tuple[Panel, ...] = ()
        self._n_drawn = self._n_cols = 0
        self._next_turn = QtCore.QTimer(self)
        self._next_turn.setSingleShot(True)
        self._next_turn.timeout.connect(self._take_turn)

    def show_panels(self, panels: Sequence[Panel], nothing: str = "") -> None:
        """Show these from now on, or a line that says why there are none."""
        if nothing:
            self._nothing.setText(nothing)
        self._panels, self._n_drawn = tuple(panels), 0
        self._nothing.setVisible(not panels)
        while len(self._shown) > len(self._panels):
            self._put_by(self._shown.pop())
        self._lay_out()
        self._take_turn()

    @property
    def titles(self) -> list[str]:
        """Of what is shown."""
        return [view.shown_title for view in self._shown]

    @property
    def is_drawn(self) -> bool:
        """Whether all is shown that was asked for."""
        return self._n_drawn == len(self._panels)

    def restyle(self) -> None:
        """Take the colours of another theme: plots are made again."""
        for view in (*self._shown, *self._spare):
            self._grid.removeWidget(view)
            view.hide()  # what is deleted later would be seen until then
            view.deleteLater()
        self._shown, self._spare = [], []
        self.show_panels(self._panels)

    def resizeEvent(self, event: QtGui.QResizeEvent) -> None:
        """Put as many panels side by side as there is room for."""
        super().resizeEvent(event)
        if self._columns() != self._n_cols:
            self._lay_out()

    def _take_turn(self) -> None:
        """Make the next plot, or draw the next panel where there is a plot for it."""
        if self.is_drawn:
            return
        panel = self._panels[self._n_drawn]
        kind = _PictureView if isinstance(panel, Picture) else _ChartView
        view = self._view_for(self._n_drawn, kind)
        if view is None:
            self._spare.append(kind())
        else:
            view.draw(panel)
            view.show()
            self._n_drawn += 1
        if not self.is_drawn:
            self._next_turn.start(TURN_MS)

    def _view_for(self, place: int, kind: type[_Panel]) -> _Panel | None:
        """Return the plot of this kind that is in a place, or else put one there; None where there is none."""
        if place < len(self._shown) and type(self._shown[place]) is kind:
            return self._shown[place]
        view = next((view for view in self._spare if type(view) is kind), None)
        if view is None:
            return None
        self._spare.remove(view)
        if place < len(self._shown):
            self._put_by(self._shown[place])
        self._shown[place : place + 1] = [view]
        self._place(place)
        return view

    def _put_by(self, view: _Panel) -> None:
        self._grid.removeWidget(view)
        view.hide()
        self._spare.append(view)

    def _columns(self) -> int:
        most = max(self.viewport().width() // LEAST_WIDTH_PX, 1)
        n = len(self._panels)
        return min(2, most) if n == 4 else max(min(most, n, 3), 1)

    def _lay_out(self) -> None:
        """Give every panel its room, those too that are not drawn yet: the others keep their size when they come."""
        self._n_cols = self._columns()
        n_rows = -(-len(self._panels) // self._n_cols)
        for number in range(max(self._grid.columnCount(), self._n_cols)):
            self._grid.setColumnStretch(number, int(number < self._n_cols))
        for number in range(max(self._grid.rowCount(), n_rows + 1)):
            # What the panels do not take is left below them.
            self._grid.setRowStretch(number, 100 if number < n_rows else int(number == n_rows))
            self._grid.setRowMinimumHeight(number, PANEL_HEIGHT_PX if number < n_rows else 0)
        for place in range(len(self._shown)):
            self._place(place)

    def _place(self, place: int) -> None:
        self._grid.addWidget(self._shown[place], place // self._n_cols, place % self._n_cols)


class _Panel(QtWidgets.QWidget):
    """One panel: a title, the plot, and a line of figures under it.

    Parameters
    ----------
    is_key_beside : bool
        What the colours mean stands on the right of the plot, one under the other, and not under it.
    """

    def __init__(self, plot: QtWidgets.QWidget, *, is_key_beside: bool = False) -> None:
        super().__init__()
        self._title = QtWidgets.QLabel()
        self._title.setStyleSheet("font-weight: 600;")
        self._title.setWordWrap(True)
        self._note = hint()
        self._note.setTextInteractionFlags(QtCore.Qt.TextInteractionFlag.TextSelectableByMouse)
        self.setMinimumHeight(PANEL_HEIGHT_PX)
        self.setMaximumHeight(MOST_HEIGHT_PX)
        self._rows = QtWidgets.QVBoxLayout(self)
        self._rows.setContentsMargins(MARGIN_PX, MARGIN_PX, MARGIN_PX, MARGIN_PX)
        self._rows.setSpacing(4)
        self._key = QtWidgets.QLabel()
        self._key.setWordWrap(True)
        self._is_key_beside = is_key_beside
        # Plots ask for more room than a page of them has.
        plot.setSizePolicy(QtWidgets.QSizePolicy.Policy.Ignored, QtWidgets.QSizePolicy.Policy.Ignored)
        self._rows.addWidget(self._title)
        if is_key_beside:
            self._key.setFixedWidth(KEY_WIDTH_PX)
            seen = QtWidgets.QHBoxLayout()
            seen.addWidget(plot, 1)
            seen.addWidget(self._key)
            self._rows.addLayout(seen, 1)
        else:
            self._rows.addWidget(plot, 1)
            self._rows.addWidget(self._key)
        self._rows.addWidget(self._note)

    @property
    def shown_title(self) -> str:
        return self._title.text()

    def _tell_key(self, key: Sequence[tuple[str, str, str]]) -> None:
        """Say what the plot's colours mean: colour, sign and words of each."""
        gap, space = ("<br>", " ") if self._is_key_beside else (" &nbsp; ", "&nbsp;")
        text = gap.join(
            f'<span style="color:{colour}">{sign}</span>&nbsp;' + words.replace(" ", space)
            for colour, sign, words in key
        )
        if text != self._key.text():
            self._key.setText(text)
        self._key.setVisible(bool(key))
        self._give_room()

    def draw(self, panel: Panel) -> None:
        """Show what a panel says."""
        self._title.setText(panel.title)
        self._note.setText(panel.note)
        self._note.setVisible(bool(panel.note))
        self._give_room()

    def resizeEvent(self, event: QtGui.QResizeEvent) -> None:
        """Give the words the lines they need at this width."""
        super().resizeEvent(event)
        self._give_room()

    def _give_room(self) -> None:
        for label in (self._title, self._note, *(() if self._is_key_beside else (self._key,))):
            label.setMinimumHeight(0)  # or it would never ask for less than before
            label.setMinimumHeight(max(label.heightForWidth(max(self.width() - 2 * MARGIN_PX, 100)), 0))


class _ChartView(_Panel):
    def __init__(self) -> None:
        self._plot = pg.PlotWidget()
        super().__init__(self._plot)
        self._plot.setToolTip("Drag to move, wheel to zoom, right click for more: export, axes, all in view.")
        self._plot.showGrid(x=True, y=True, alpha=0.15)
        for side in ("bottom", "left"):
            self._plot.getAxis(side).enableAutoSIPrefix(False)  # units stand in the labels, and are not scaled
        self._curves: list[pg.PlotDataItem] = []
        self._looks: list[tuple[str, Style, int]] = []
        self._is_level = False

    def draw(self, panel: Panel) -> None:
        assert isinstance(panel, Chart)
        super().draw(panel)
        names = [list(enumerate(panel.x_names))] if panel.x_names else None
        is_lying = len(panel.x_names) * max(map(len, panel.x_names), default=0) > MOST_LETTERS
        along, across = ("left", "bottom") if is_lying else ("bottom", "left")
        self._plot.setLabel(along, panel.x_label)
        self._plot.setLabel(across, panel.y_label)
        self._plot.getAxis(along).setTicks(names)
        self._plot.getAxis(across).setTicks(None)
        self._plot.invertY(is_lying)  # the first name on top
        looks = [(line.name, line.style, line.series) for line in panel.lines]
        if looks != self._looks:
            self._looks = looks
            self._rebuild(panel.lines)
            if names:  # with room for the first name and the last
                span = {"yRange" if is_lying else "xRange": (-0.5, len(panel.x_names) - 0.5)}
                self._plot.getViewBox().setRange(**span, padding=0)
        for curve, line in zip(self._curves, panel.lines, strict=True):
            x, y = _points(line)
            curve.setData(*((y, x) if is_lying else (x, y)))
        if not is_lying:
            self._give_height(panel.lines)

    def _give_height(self, lines: Sequence[Line]) -> None:
        """Let lines that all lie at one height lie in the middle, with a scale that they can be read by."""
        heights = np.concatenate([line.y[np.isfinite(line.y)] for line in lines] or [np.zeros(0)])
        is_level = heights.size > 0 and bool(np.ptp(heights) <= LEVEL_SHARE * np.abs(heights).max())
        if is_level:
            middle = float(heights.mean())
            half = LEVEL_ROOM * abs(middle) or 1.0
            self._plot.getViewBox().setRange(yRange=(middle - half, middle + half), padding=0)
        elif self._is_level:
            self._plot.enableAutoRange(axis="y")
        self._is_level = is_level

    def _rebuild(self, lines: Sequence[Line]) -> None:
        self._plot.clear()
        self._curves = [_curve(line) for line in lines]
        for curve in self._curves:
            self._plot.addItem(curve)
        named = {line.name: line for line in reversed(lines) if line.name}
        shown = [line for line in lines if named.get(line.name) is line]
        self._tell_key([(_colour(line), SIGNS[line.style], line.name) for line in shown])
        self._plot.enableAutoRange()


def _points(line: Line) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners of a line; of a histogram, the outline of its columns."""
    if line.style is not Style.STEPS:
        return line.x, line.y
    return np.repeat(line.x, 2), np.concatenate([[0.0], np.repeat(line.y, 2), [0.0]])


def _colour(line: Line) -> str:
    return GREY_COLOUR if line.series == GREY else SERIES[line.series % len(SERIES)]


def _curve(line: Line) -> pg.PlotDataItem:
    colour = _colour(line)
    if line.style is Style.DOTS:
        return pg.PlotDataItem(pen=None, symbol="o", symbolSize=6, symbolBrush=colour, symbolPen=None, connect="finite")
    dash = QtCore.Qt.PenStyle.DashLine if line.style is Style.DASHED else QtCore.Qt.PenStyle.SolidLine
    pen = pg.mkPen(colour, width=1.5 if line.style is not Style.DASHED else 1, style=dash)
    if line.style is Style.STEPS and line.series == GREY:
        return pg.PlotDataItem(pen=pen, fillLevel=0, brush=QtGui.QColor(138, 143, 152, 90))
    return pg.PlotDataItem(pen=pen, connect="finite")


class _PictureView(_Panel):
    def __init__(self) -> None:
        self._graphics = pg.GraphicsLayoutWidget()
        super().__init__(self._graphics, is_key_beside=True)
        self._graphics.setToolTip(
            "Every pixel of the chip, row 0 at the bottom; the one under the mouse is told below."
        )
        self._view = self._graphics.ci.addViewBox(row=0, col=0, lockAspect=True)
        self._item = pg.ImageItem(axisOrder="row-major")
        self._view.addItem(self._item)
        self._kinds = pg.ImageItem(axisOrder="row-major")  # the scale would take its levels
        self._view.addItem(self._kinds)
        self._scale = pg.ColorBarItem(width=12, interactive=False, colorMap=pg.colormap.get("viridis"))
        self._scale.setImageItem(self._item)
        self._graphics.ci.addItem(self._scale, row=0, col=1)
        self._scale.getAxis("right").setWidth(SCALE_WIDTH_PX)
        self._scale.getAxis("right").enableAutoSIPrefix(False)
        self._under = hint("Move the mouse over the picture to read a pixel.")
        self._rows.addWidget(self._under)
        self._panel: Picture | None = None
        scene = self._graphics.scene()
        assert isinstance(scene, pg.GraphicsScene)
        scene.sigMouseMoved.connect(self._point_at)

    def draw(self, panel: Panel) -> None:
        assert isinstance(panel, Picture)
        super().draw(panel)
        is_first = self._panel is None or self._panel.image.shape != panel.image.shape
        self._panel = panel
        if panel.words:
            colours = [QtGui.QColor(KIND_COLOURS[n % len(KIND_COLOURS)]) for n in range(len(panel.words))]
            lut = np.array([colour.getRgb() for colour in colours], np.uint8)
            image = panel.image.astype(np.uint8)
            self._kinds.setImage(lut[image], autoLevels=False, levels=(0, 255))
            there = {int(kind) for kind in np.unique(image)}
            key = [
                (colour.name(), "\N{BLACK SQUARE}", words) for colour, words in zip(colours, panel.words, strict=True)
            ]
            self._tell_key([each for kind, each in enumerate(key) if kind in there])
        else:
            self._item.setImage(np.asarray(panel.image, dtype=np.float32), autoLevels=False, levels=tuple(panel.levels))
            self._scale.setLevels(tuple(panel.levels))
            self._scale.getAxis("right").setLabel(panel.unit)
            self._tell_key([])
        for part in (self._scale, self._item):
            part.setVisible(not panel.words)
        self._kinds.setVisible(bool(panel.words))
        if is_first:
            self._view.autoRange(padding=0.02)

    def _point_at(self, place: QtCore.QPointF) -> None:
        panel = self._panel
        if panel is None or not self._view.sceneBoundingRect().contains(place):
            return
        at = self._view.mapSceneToView(place)
        row, col = int(np.floor(at.y())), int(np.floor(at.x()))
        rows, cols = panel.image.shape
        if not (0 <= row < rows and 0 <= col < cols):
            return
        value = panel.image[row, col]
        words = panel.words[int(value)].split(" (")[0] if panel.words else f"{float(value):.4g} {panel.unit}"
        self._under.setText(f"row {row}, column {col}: {words}")
