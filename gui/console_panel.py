"""A Python console in the window, which holds its objects."""

from __future__ import annotations

from collections.abc import Mapping

from pyqtgraph.Qt import QtGui, QtWidgets

LEAST_WIDTH_PX = 420
WELCOME = "The window's objects are here: {names}. Example: session.state.materials.values.max()\n"


class ConsolePanel(QtWidgets.QWidget):
    """Makes its console when it is first seen, for that takes a while.

    Parameters
    ----------
    names : mapping of str to object
        What can be used in it.
    """

    def __init__(self, names: Mapping[str, object]) -> None:
        super().__init__()
        self._names = dict(names)
        self.setMinimumWidth(LEAST_WIDTH_PX)  # beside the log it would get the rest
        QtWidgets.QVBoxLayout(self).setContentsMargins(0, 0, 0, 0)

    def showEvent(self, event: QtGui.QShowEvent) -> None:
        """Make the console."""
        layout = self.layout()
        if layout is not None and layout.count() == 0:
            import numpy as np
            from pyqtgraph.console import ConsoleWidget

            close = self.window().close  # Python's own would end the program under a running instrument
            names = {**self._names, "np": np, "exit": close, "quit": close}
            layout.addWidget(ConsoleWidget(self, namespace=names, text=WELCOME.format(names=", ".join(names))))
        super().showEvent(event)
