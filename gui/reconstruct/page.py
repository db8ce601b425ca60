"""The page Reconstruct: method and materials, tried on a slice, then on all."""

from __future__ import annotations

from pyqtgraph.Qt import QtWidgets

from gui.controls import hint
from gui.page import Page
from gui.session import Session


class ReconstructPage(Page):
    """Turn a scan into volumes of energy bins, and of materials."""

    title = "Reconstruct"
    tip = "Turn a scan into volumes of energy bins, and of materials."

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        QtWidgets.QVBoxLayout(self).addWidget(hint(self.tip))
