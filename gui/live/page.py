"""The page Live: the newest frame, and all that can be asked of it."""

from __future__ import annotations

from pyqtgraph.Qt import QtWidgets

from gui.controls import hint
from gui.page import Page
from gui.session import Session


class LivePage(Page):
    """Look at frames as they come."""

    title = "Live"
    tip = "Look at frames as they come."

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        QtWidgets.QVBoxLayout(self).addWidget(hint(self.tip))
