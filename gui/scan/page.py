"""The page Scan: the plan and its cost, the run and what it has seen so far."""

from __future__ import annotations

from pyqtgraph.Qt import QtWidgets

from gui.controls import hint
from gui.page import Page
from gui.session import Session


class ScanPage(Page):
    """Plan a scan, and run it."""

    title = "Scan"
    tip = "Plan a scan, and run it."

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        QtWidgets.QVBoxLayout(self).addWidget(hint(self.tip))
