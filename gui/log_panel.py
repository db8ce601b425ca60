"""The log, in the window: what happened, when, and how bad it was."""

from __future__ import annotations

import logging
from collections import deque

from pyqtgraph.Qt import QtGui, QtWidgets

MOST_LINES = 5000


class LogLines(logging.Handler):
    """Keeps the newest lines of the log for whoever shows them; any thread may log."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(logging.Formatter("%(asctime)s  %(levelname)-7s %(message)s", "%H:%M:%S"))
        self._new: deque[str] = deque(maxlen=MOST_LINES)
        self.text: deque[str] = deque(maxlen=MOST_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one record."""
        line = self.format(record)
        self._new.append(line)
        self.text.append(line)

    def take(self) -> list[str]:
        """Return the lines that came since the last time."""
        lines = []
        while self._new:
            lines.append(self._new.popleft())
        return lines


class LogPanel(QtWidgets.QPlainTextEdit):
    """Shows the lines of the log."""

    def __init__(self, lines: LogLines) -> None:
        super().__init__()
        self._lines = lines
        self.setReadOnly(True)
        self.setMaximumBlockCount(MOST_LINES)
        self.setLineWrapMode(QtWidgets.QPlainTextEdit.LineWrapMode.NoWrap)
        self.setFont(QtGui.QFontDatabase.systemFont(QtGui.QFontDatabase.SystemFont.FixedFont))

    def refresh(self) -> None:
        """Show what is new."""
        new = self._lines.take()
        if new:
            self.appendPlainText("\n".join(new))
