"""One image with its levels, its histogram and a scale bar: what live view, projections and slices are shown in.

Row 0 is drawn lowest, as everywhere. Levels stay as they are unless asked otherwise, and so does what is zoomed to.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import numpy as np
import pyqtgraph as pg
from numpy.typing import NDArray
from pyqtgraph.Qt import QtCore, QtGui, QtWidgets
from pyqtgraph.widgets import ColorMapMenu

from gui import levels as scales
from gui.colour_strip import ColourStrip
from gui.levels import percentile_levels
from gui.scale_bar import ScaleBar

__all__ = ["ImagePanel", "LevelMode", "percentile_levels"]

ColorMapMenu.find_mpl_leftovers = list
"""Every histogram has a menu of colour maps, and to ask matplotlib for the names of its own loads it: for seconds."""
_AROUND_SHARE = 0.3
"""Of the levels' distance, that the histogram shows below and above them."""
_GREY_NAMES = {"grey"}
COUNT_EVERY_S = 0.2
"""How often a histogram is counted."""
_STOPS, _TABLE = 17, 512
"""Of a colour map, which is linear between its stops, and of the table that an image is coloured by."""


class LevelMode(Enum):
    """What sets the levels."""

    KEPT = "as they are"
    AUTO = "percentiles of each image"


class ImagePanel(QtWidgets.QWidget):
    """Shows an image; levels stay as they are unless asked otherwise.

    Parameters
    ----------
    is_whole : bool
        Without, it is to be used when somebody has walked through `pieces`: a histogram takes long to make.

    Attributes
    ----------
    view : pg.ViewBox
        For overlays, regions and links between panels.
    item : pg.ImageItem
    histogram : pg.HistogramLUTItem or None
        None where the panel has none, but a strip of its colours: it takes longer to make than all the rest.
    clicked : list of callable
        Each is called with (row, col) when a pixel is clicked.
    level_mode : LevelMode
        With KEPT the first image sets the levels.
    pieces : iterator
        Of its making.
    """

    def __init__(self, unit: str = "counts", *, has_histogram: bool = True, is_whole: bool = True) -> None:
        super().__init__()
        self.pieces = self._build(unit, has_histogram=has_histogram)
        if is_whole:
            for _ in self.pieces:
                pass

    def _build(self, unit: str, *, has_histogram: bool) -> Iterator[None]:
        self.graphics = pg.GraphicsLayoutWidget()
        self.view = self.graphics.ci.addViewBox(lockAspect=True)
        self.view.setBackgroundColor("k")  # as of all pictures, in either look
        if not has_histogram:
            grid: Any = self.graphics.ci.layout  # pyqtgraph puts a layout where Qt has a method
            grid.setContentsMargins(0, 0, 0, 0)
        self.item = _Image()
        self.view.addItem(self.item)
        yield
        self.histogram = pg.HistogramLUTItem(self.item) if has_histogram else None
        if self.histogram is not None:
            self.histogram.axis.enableAutoSIPrefix(False)
            self.graphics.ci.addItem(self.histogram)
            self.histogram.setVisible(False)  # until there is an image
        yield
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        layout.addWidget(self.graphics)
        self._strip = None if has_histogram else ColourStrip()
        if self._strip is not None:
            layout.addWidget(self._strip)
        self.level_mode = LevelMode.KEPT
        self.clicked: list[Callable[[int, int], object]] = []
        self._has_levels = self._is_log = False
        self._drawn_levels: tuple[float, float] | None = None
        self._table: Any = None
        self._image: NDArray[np.number] | None = None
        self._pixel_mm: float | None = None
        self._overlays: dict[str, pg.ImageItem] = {}
        self._mouse: QtCore.QPointF | None = None
        self._bar = ScaleBar(self.view)
        self.set_unit(unit)
        self.set_colour_map(scales.COLOUR_MAPS[0])
        self.view.sigRangeChanged.connect(lambda *_: self._set_bar())
        scene: Any = self.graphics.scene()  # pyqtgraph's own, with signals that Qt's has not
        scene.sigMouseMoved.connect(self._note_mouse)
        scene.sigMouseClicked.connect(self._click)
        yield

    # What is shown

    def show_image(
        self,
        image: NDArray[np.number],
        *,
        levels: tuple[float, float] | None = None,
        pixel_mm: float | None = None,
        is_left_out: NDArray[np.bool_] | None = None,
    ) -> None:
        """Show an image; the first one sets the levels, at percentiles, where none are given.

        Parameters
        ----------
        image : (h, w) number or (h, w, 3) uint8
        pixel_mm : float, optional
            Edge of a pixel; without it the image is measured in pixels.
        is_left_out : (h, w) bool, optional
            Pixels that have no say when the image sets the levels.
        """
        is_new_shape = self._image is None or self._image.shape[:2] != image.shape[:2] or pixel_mm != self._pixel_mm
        self._image, self._pixel_mm = image, pixel_mm
        if levels is None and image.ndim == 2 and (self.level_mode is LevelMode.AUTO or not self._has_levels):
            levels = percentile_levels(image if is_left_out is None else image[~is_left_out])
        if image.ndim == 2 and levels is not None:
            self._has_levels = True
        self.item.setScale(pixel_mm or 1.0)
        self._draw(None if levels is None else self._shown_levels(levels))
        if is_new_shape:
            self.fit()

    def clear(self) -> None:
        """Show nothing."""
        self.item.clear()
        if self._strip is not None:
            self._strip.show_levels(None)

    @property
    def image(self) -> NDArray[np.number] | None:
        """What is shown, as it was given."""
        return self._image

    @property
    def levels(self) -> tuple[float, float]:
        """What shows as darkest and brightest, in the image's unit."""
        drawn: Any = self._get_drawn_levels()
        low, high = float(drawn[0]), float(drawn[1])
        return (10.0**low, 10.0**high) if self._is_log else (low, high)

    def set_levels(self, low: float, high: float) -> None:
        """Let these be darkest and brightest."""
        self._has_levels = True
        self._set_drawn_levels(*self._shown_levels((low, high)))

    def forget_levels(self) -> None:
        """Let the next image set the levels, at percentiles."""
        self._has_levels = False

    @property
    def is_log(self) -> bool:
        """Whether brightness goes with the logarithm."""
        return self._is_log

    def set_log(self, is_log: bool) -> None:
        """Let brightness go with the logarithm of the values, or with the values; the levels stay the same values."""
        if is_log == self._is_log:
            return
        levels = self.levels
        self._is_log = is_log
        if self.histogram is not None:
            self.histogram.axis.setLogMode(y=is_log)  # pyright: ignore[reportArgumentType]
        self._set_drawn_levels(*self._shown_levels(levels))
        self._draw(self._shown_levels(levels))

    def set_colour_map(self, name: str) -> None:
        """Choose one of `gui.levels.COLOUR_MAPS`."""
        self.colour_map_name = name
        if name in _GREY_NAMES:
            colours = pg.ColorMap([0.0, 1.0], [(0, 0, 0), (255, 255, 255)])
        else:
            places = np.linspace(0, 1, _STOPS)  # each stop is a handle of the gradient, and 256 of them take long
            colours = pg.ColorMap(places, pg.colormap.get(name).map(places))  # pyright: ignore[reportOptionalMemberAccess]
        if self.histogram is not None:
            self.histogram.gradient.setColorMap(colours)
            self.histogram.gradient.showTicks(False)
        else:
            self._table = colours.getLookupTable(nPts=_TABLE)
            if self._strip is not None:
                self._strip.show_colours(self._table)
            self._draw(None)

    def set_unit(self, unit: str) -> None:
        """Name what is shown, at the histogram or the strip."""
        if self._strip is not None:
            self._strip.show_unit(unit)
        if self.histogram is not None and self.histogram.axis.labelText != unit:
            self.histogram.axis.setLabel(unit)

    def fit(self) -> None:
        """Show the whole image; until then, what is zoomed to stays."""
        if self._image is None:
            return
        height, width = (n * (self._pixel_mm or 1.0) for n in self._image.shape[:2])
        self.view.disableAutoRange()
        self.view.setRange(QtCore.QRectF(0, 0, width, height), padding=0.02)
        self._set_bar()

    def restyle(self) -> None:
        """Take the colours of another theme."""
        self.graphics.setBackground("default")
        if self.histogram is not None:
            self.histogram.axis.setPen()
            self.histogram.axis.setTextPen()

    def set_overlay(self, name: str, mask: NDArray[np.bool_] | None, colour: str = "#d55e00") -> None:
        """Colour some pixels over the image; None takes the overlay away."""
        overlay = self._overlays.get(name)
        if mask is None:
            if overlay is not None:
                overlay.setVisible(False)
            return
        if overlay is None:
            overlay = self._overlays[name] = pg.ImageItem(axisOrder="row-major")
            overlay.setZValue(5 + len(self._overlays))
            self.view.addItem(overlay)
        picture = np.zeros((*mask.shape, 4), dtype=np.uint8)
        picture[mask] = np.array(QtGui.QColor(colour).getRgb(), dtype=np.uint8)
        overlay.setImage(picture, autoLevels=False, levels=(0, 255))
        overlay.setScale(self._pixel_mm or 1.0)
        overlay.setVisible(True)

    def picture(self) -> QtGui.QImage:
        """Return the image alone, with its levels and colours, one pixel for each of its own."""
        self.item.render()
        drawn = self.item.qimage
        if drawn is None:
            return QtGui.QImage()
        return drawn.flipped(QtCore.Qt.Orientation.Vertical)

    # Where the mouse is

    def pixel_under_mouse(self) -> tuple[int, int] | None:
        """Return the (row, col) that the mouse points at; None outside the image."""
        return None if self._mouse is None else self.pixel_at(self._mouse)

    def pixel_at(self, place: QtCore.QPointF) -> tuple[int, int] | None:
        """Return the (row, col) at a place of the scene; None outside the image."""
        if self._image is None or not self.view.sceneBoundingRect().contains(place):
            return None
        at = self.item.mapFromScene(place)
        row, col = int(np.floor(at.y())), int(np.floor(at.x()))
        return (row, col) if 0 <= row < self._image.shape[0] and 0 <= col < self._image.shape[1] else None

    def place_of(self, row: int, col: int) -> QtCore.QPointF:
        """Return the middle of a pixel, as a place of the scene."""
        return self.item.mapToScene(QtCore.QPointF(col + 0.5, row + 0.5))

    def leaveEvent(self, event: QtCore.QEvent) -> None:
        """Forget where the mouse was."""
        self._mouse = None
        super().leaveEvent(event)

    def _note_mouse(self, place: QtCore.QPointF) -> None:
        self._mouse = place

    def _click(self, event: Any) -> None:
        if event.isAccepted() or event.button() != QtCore.Qt.MouseButton.LeftButton:
            return
        pixel = self.pixel_at(event.scenePos())
        if pixel is not None:
            for told in list(self.clicked):
                told(*pixel)

    def _draw(self, levels: tuple[float, float] | None) -> None:
        if self._image is None:
            return
        is_colour = self._image.ndim == 3
        if self.histogram is not None:
            self.histogram.setVisible(not is_colour)
        if is_colour:
            self.item.setLookupTable(None)  # pyright: ignore[reportArgumentType]
            self.item.setImage(self._image, autoLevels=False, levels=(0, 255))
            return
        table: Any = self._table if self.histogram is None else self.histogram.getLookupTable
        self.item.setLookupTable(table)
        shown = scales.logarithm(self._image) if self._is_log else self._image
        kept = self._get_drawn_levels() if levels is None else levels
        self.item.setImage(shown, autoLevels=False, levels=kept)
        if levels is not None:
            self._set_drawn_levels(*levels)

    def _get_drawn_levels(self) -> tuple[float, float]:
        if self.histogram is None:
            return self._drawn_levels or (0.0, 1.0)
        return self.histogram.getLevels()  # pyright: ignore[reportReturnType]

    def _set_drawn_levels(self, low: float, high: float) -> None:
        """Set levels as they are drawn, and let the histogram show what lies around them: no outlier squeezes it."""
        if self.histogram is None:
            self.item.setLevels((low, high))
            self._drawn_levels = low, high
            if self._strip is not None:
                self._strip.show_levels(self.levels)
            return
        self.histogram.setLevels(low, high)
        if (low, high) != self._drawn_levels:
            self._drawn_levels = low, high
            self.histogram.setHistogramRange(low, high, padding=_AROUND_SHARE)

    def _shown_levels(self, levels: tuple[float, float]) -> tuple[float, float]:
        return scales.log_levels(*levels) if self._is_log else scales.apart(*levels)

    def _set_bar(self) -> None:
        seen = self.view.viewRect().intersected(self.item.mapRectToParent(self.item.boundingRect()))
        self._bar.show_within(seen.width() if self._pixel_mm is not None else 0.0)


class _Image(pg.ImageItem):
    """An image whose histogram is right whatever is in it: constant, empty, or no number at all.

    It is counted a few times a second, however fast the images come: to draw it takes longer than to draw the image.
    """

    def __init__(self) -> None:
        super().__init__(axisOrder="row-major")
        self._counted_s = -math.inf
        self._later = QtCore.QTimer(self)
        self._later.setSingleShot(True)
        self._later.timeout.connect(lambda: self.sigImageChanged.emit())

    def getHistogram(self, *_: object, **__: object) -> Any:
        if self.image is None or self.image.ndim != 2:
            return None, None
        now_s = time.monotonic()
        if now_s - self._counted_s < COUNT_EVERY_S:
            if not self._later.isActive():
                self._later.start(round(1e3 * COUNT_EVERY_S))
            return None, None
        self._counted_s = now_s
        return scales.histogram(self.image)
