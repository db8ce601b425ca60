"""Under the pictures: the tries with what was changed, how iterations go, and how the shown slice was made."""

from __future__ import annotations

from collections.abc import Sequence

from pyqtgraph.Qt import QtCore, QtWidgets

from gui.reconstruct.convergence_panel import ConvergencePanel
from gui.reconstruct.tries import Try, before_of

TRIES, CONVERGENCE, MADE = 0, 1, 2


class OutcomePanel(QtWidgets.QTabWidget):
    """Shows tries, convergence and provenance.

    Signals
    -------
    chosen : int
        A try was clicked: its place in the list that was shown.
    """

    chosen = QtCore.Signal(int)

    def __init__(self) -> None:
        super().__init__()
        self.list = QtWidgets.QListWidget()
        self.list.setToolTip("Click a try to see it again, beside the one before it, and to go back to its settings.")
        self.list.setWordWrap(True)
        self.list.itemClicked.connect(lambda item: self.chosen.emit(self.list.row(item)))
        self.convergence = ConvergencePanel()
        self.made = QtWidgets.QPlainTextEdit()
        self.made.setReadOnly(True)
        self.made.setPlaceholderText(
            "Try a slice, or reconstruct: what was done to the data stands here, step by step."
        )
        self.made.setToolTip("The provenance: it is written into the volume's file too.")
        self.addTab(self.list, "Tries")
        self.addTab(self.convergence, "Convergence")
        self.addTab(self.made, "How it was made")
        self.setTabToolTip(TRIES, "The slices that were tried, and what was changed from one to the next.")
        self.setTabToolTip(CONVERGENCE, "How the iterations go.")
        self.setTabToolTip(MADE, "What was done to the data, step by step.")

    def show_tries(self, tries: Sequence[Try], current: int) -> None:
        """Show all tries, and which of them is seen."""
        self.list.clear()
        for place, one in enumerate(tries):
            self.list.addItem(one.words(before_of(tries, place)))
        self.list.setCurrentRow(current)

    def show_made(self, title: str, steps: Sequence[str]) -> None:
        """Show how something was made."""
        self.made.setPlainText("\n".join([title, *(f"  {number}. {step}" for number, step in enumerate(steps, 1))]))
