"""What went wrong, in a box: the sentence, what to do, and the end of the log for whoever is asked for help."""

from __future__ import annotations

from pyqtgraph.Qt import QtWidgets

from gui.log_panel import LogLines
from gui.session import Failure

LOG_LINES = 200
OURS = "This is a fault of mpxct, not yours. The log below tells where."


class FailureBox:
    """Shows one failure at a time; what repeats while it is open is counted, not piled up."""

    def __init__(self, parent: QtWidgets.QWidget, lines: LogLines) -> None:
        self._parent, self._lines = parent, lines
        self._box: QtWidgets.QMessageBox | None = None
        self._n_more = 0

    def show_failure(self, failure: Failure) -> None:
        """Show a failure, or count it where another is open."""
        if self._box is not None and self._box.isVisible():
            self._n_more += 1
            self._box.setInformativeText(f"{self._text}\n\n{self._n_more} more since; the log has them all.")
            return
        self._n_more = 0
        self._text = failure.hint or ("" if failure.is_expected else OURS)
        box = QtWidgets.QMessageBox(self._parent)
        box.setIcon(QtWidgets.QMessageBox.Icon.Warning)
        box.setWindowTitle(failure.title)
        box.setText(failure.sentence)
        box.setInformativeText(self._text)
        box.setDetailedText("\n".join(list(self._lines.text)[-LOG_LINES:]))
        self._box = box
        box.open()
