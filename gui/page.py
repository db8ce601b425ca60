"""What every page of the window is: a widget over the session, refreshed only while somebody sees it."""

from __future__ import annotations

from typing import ClassVar

from pyqtgraph.Qt import QtWidgets

from gui.session import Session


class Page(QtWidgets.QWidget):
    """One page; a subclass builds its widgets in `__init__` and shows what is new in `refresh`.

    Attributes
    ----------
    title, tip : str
        On the tab, and what the page is for in a sentence.
    """

    title: ClassVar[str] = ""
    tip: ClassVar[str] = ""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session

    def refresh(self) -> None:
        """Show what is new; called some thirty times a second while the page is seen, and must return within 10 ms."""

    def restyle(self) -> None:
        """Take the colours of another theme, which is applied already."""

    def save(self) -> dict[str, object]:
        """Return what of the page's own settings shall be there again at the next start; plain values only."""
        return {}

    def restore(self, saved: dict[str, object]) -> None:
        """Take settings of an earlier start; what is missing or odd in them is left alone."""

    def undo(self) -> None:
        """Take back the last edit on this page; nothing where there is none."""

    def redo(self) -> None:
        """Make the edit again that was taken back; nothing where there is none."""

    def keys(self) -> dict[str, str]:
        """Return the keys that this page knows beside the window's, and what each does."""
        return {}

    def end(self) -> None:
        """Stop what this page runs by itself: the window closes."""
