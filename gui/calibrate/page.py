"""The page Calibrate: what each step does, how it goes, and whether to keep it.

All of it is in `gui.calibrate.bench`, which needs numerics that take a second to load: they are loaded in a thread when
the page is first seen, and the window is open long before.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pyqtgraph.Qt import QtCore, QtWidgets

from gui.controls import hint
from gui.page import Page

if TYPE_CHECKING:
    from gui.calibrate.bench import Bench

_HEAVY = ("gui.calibrate.sequence", "gui.calibrate.run", "gui.calibrate.comparison", "gui.calibrate.live")
"""Without Qt, so that a thread may load them."""


class CalibratePage(Page):
    """Calibrate the detector step by step."""

    title = "Calibrate"

    def build(self) -> Iterator[None]:
        """Make what is seen before the rest is loaded."""
        self.bench: Bench | None = None
        self._saved: dict[str, object] = {}
        self._loading: threading.Thread | None = None
        self._waiting = hint("A moment: what calibrates is being loaded.")
        self._waiting.setAlignment(QtCore.Qt.AlignmentFlag.AlignCenter)
        layout = QtWidgets.QVBoxLayout(self)
        layout.addWidget(self._waiting)
        yield

    def refresh(self) -> None:
        """Show what is new."""
        if self.bench is not None:
            self.bench.refresh()
        elif self._loading is None:
            self._loading = threading.Thread(target=_load, name="loading", daemon=True)
            self._loading.start()
        elif not self._loading.is_alive():
            self._build()

    def restyle(self) -> None:
        """Take the colours of another theme."""
        if self.bench is not None:
            self.bench.restyle()

    def save(self) -> dict[str, object]:
        """Return what shall be there again at the next start."""
        return self.bench.save() if self.bench is not None else self._saved

    def restore(self, saved: dict[str, object]) -> None:
        """Take settings of an earlier start."""
        self._saved = saved
        if self.bench is not None:
            self.bench.restore(saved)

    def undo(self) -> None:
        """Take the last change of the plan back."""
        if self.bench is not None:
            self.bench.details.take_back()

    def redo(self) -> None:
        """Make the change of the plan again that was taken back."""
        if self.bench is not None:
            self.bench.details.make_again()

    def _build(self) -> None:
        from gui.calibrate.bench import Bench

        self.bench = Bench(self.session)
        self.bench.restore(self._saved)
        layout = self.layout()
        assert layout is not None
        layout.replaceWidget(self._waiting, self.bench)
        self._waiting.hide()


def _load() -> None:
    """Import what is heavy, and make ready what the first look needs: tables of lines and attenuation."""
    for name in _HEAVY:
        importlib.import_module(name)
    from acquisition.plan import Plan
    from gui.calibrate.sequence import TITLES, estimate

    for name in TITLES:
        estimate(name, Plan())
