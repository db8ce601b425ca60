"""The page Instrument: detectors that are there, one of them opened, and how it is."""

from __future__ import annotations

from pyqtgraph.Qt import QtWidgets

from gui.controls import hint
from gui.page import Page
from gui.session import Session


class ConnectPage(Page):
    """Choose an instrument, and see how it is."""

    title = "Instrument"
    tip = "Choose an instrument, and see how it is."

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        QtWidgets.QVBoxLayout(self).addWidget(hint(self.tip))
