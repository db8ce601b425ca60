"""One image with its levels, its histogram and a scale bar: what live view, projections and slices are shown in."""

from __future__ import annotations

import numpy as np
import pyqtgraph as pg
from numpy.typing import NDArray
from pyqtgraph.Qt import QtWidgets
from pyqtgraph.widgets import ColorMapMenu

ColorMapMenu.find_mpl_leftovers = list
"""Every histogram has a menu of colour maps, and to ask matplotlib for the names of its own loads it: for seconds."""


class ImagePanel(QtWidgets.QWidget):
    """Shows an image; levels stay as they are unless asked otherwise.

    Attributes
    ----------
    view : pg.ViewBox
        For overlays, regions and links between panels.
    item : pg.ImageItem
    histogram : pg.HistogramLUTItem
    """

    def __init__(self, unit: str = "counts", *, has_histogram: bool = True) -> None:
        super().__init__()
        self.graphics = pg.GraphicsLayoutWidget()
        self.view = self.graphics.ci.addViewBox(lockAspect=True, invertY=True)
        self.item = pg.ImageItem(axisOrder="row-major")
        self.view.addItem(self.item)
        self.histogram = pg.HistogramLUTItem(self.item)
        self.histogram.axis.setLabel(unit)
        if has_histogram:
            self.graphics.ci.addItem(self.histogram)
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.graphics)
        self._has_levels = False

    def show_image(
        self, image: NDArray[np.number], *, levels: tuple[float, float] | None = None, pixel_mm: float | None = None
    ) -> None:
        """Show an image; the first one sets the levels, at percentiles, where none are given.

        Parameters
        ----------
        image : (h, w) number or (h, w, 3) uint8
        pixel_mm : float, optional
            Edge of a pixel; without it the image is measured in pixels.
        """
        if levels is None and not self._has_levels and image.ndim == 2:
            levels = percentile_levels(image)
        self.item.setImage(image, autoLevels=False, levels=levels)
        self._has_levels = True
        if pixel_mm is not None:
            self.item.setScale(pixel_mm)


def percentile_levels(image: NDArray[np.number], share: float = 0.002) -> tuple[float, float]:
    """Return levels that leave this share of the pixels beyond either end; never the same number twice."""
    finite = image[np.isfinite(image)]
    if not finite.size:
        return 0.0, 1.0
    low, high = (float(level) for level in np.quantile(finite, (share, 1 - share)))
    return (low, high) if high > low else (low - 0.5, low + 0.5)
