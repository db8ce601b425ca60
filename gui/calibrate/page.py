"""The page Calibrate: what each step does, how it goes, and whether to keep it."""

from __future__ import annotations

from pyqtgraph.Qt import QtWidgets

from gui.controls import hint
from gui.page import Page
from gui.session import Session


class CalibratePage(Page):
    """Calibrate the detector step by step."""

    title = "Calibrate"
    tip = "Calibrate the detector step by step."

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        QtWidgets.QVBoxLayout(self).addWidget(hint(self.tip))
