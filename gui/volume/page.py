"""The page Volume: slices and colour rendering of what was reconstructed."""

from __future__ import annotations

from pyqtgraph.Qt import QtWidgets

from gui.controls import hint
from gui.page import Page
from gui.session import Session


class VolumePage(Page):
    """Look at volumes: slices, colours, measurements, three dimensions."""

    title = "Volume"
    tip = "Look at volumes: slices, colours, measurements, three dimensions."

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        QtWidgets.QVBoxLayout(self).addWidget(hint(self.tip))
