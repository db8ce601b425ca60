"""The program: Qt started, the window opened, and nothing heavy loaded before it is seen."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from pyqtgraph.Qt import QtWidgets

from gui import theme
from gui.log_panel import LogLines
from gui.session import Session
from gui.window import Window


def run(folder: Path) -> int:
    """Open the window and return when it is closed."""
    app = QtWidgets.QApplication.instance() or QtWidgets.QApplication(sys.argv[:1])
    assert isinstance(app, QtWidgets.QApplication)
    theme.apply(app, theme.system_theme())
    lines = LogLines()
    logging.getLogger().addHandler(lines)
    window = Window(Session(folder), lines)
    window.resize(1280, 800)
    window.show()
    return app.exec()
