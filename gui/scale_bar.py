"""The scale bar of pictures that pyqtgraph shows."""

from __future__ import annotations

import pyqtgraph as pg

from gui.scale import length_text, round_below

SHARE = 0.25


class ScaleBar(pg.ScaleBar):
    """A bar of a round length in the lower right corner, at most a quarter of what is seen; hidden at first."""

    def __init__(self, view: pg.ViewBox) -> None:
        super().__init__(1.0, width=4, suffix="mm", brush="#ffffff", pen=pg.mkPen("#000000"), offset=(-14, -14))
        self.text.setColor("#ffffff")
        self.text.fill = pg.mkBrush(0, 0, 0, 110)
        self.setParentItem(view)
        self.setVisible(False)

    def show_within(self, width_mm: float) -> None:
        """Show a length that fits into what is seen of a picture; where that is nothing, there is no bar."""
        self.setVisible(width_mm > 0)
        if width_mm > 0:
            self.size = round_below(SHARE * width_mm)
            self.text.setText(length_text(self.size))
            self.updateBar()
