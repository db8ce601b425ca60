"""What every page of the window is: a widget over the session, refreshed only while somebody sees it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from pyqtgraph.Qt import QtWidgets

from gui.session import Session

BEAT_MS = 33


class Page(QtWidgets.QWidget):
    """One page; a subclass makes its widgets in `build` and shows what is new in `refresh`.

    Parameters
    ----------
    is_whole : bool
        Without, nothing is there before somebody has walked through `pieces`.

    Attributes
    ----------
    title : str
        On the tab.
    pieces : iterator
        Of `build`.
    """

    title: ClassVar[str] = ""

    def __init__(self, session: Session, *, is_whole: bool = True) -> None:
        super().__init__()
        self.session = session
        self.pieces = self.build()
        if is_whole:
            for _ in self.pieces:
                pass

    @staticmethod
    def prepare() -> None:
        """Do what `build` needs that is long and has nothing to do with widgets; called in a thread."""

    def build(self) -> Iterator[None]:
        """Make the widgets in pieces: the window lives between two of them, and none may take 50 ms."""
        yield from ()

    def refresh(self) -> None:
        """Show what is new; called every `beat_ms` while the page is seen, and must return within 10 ms."""

    @property
    def beat_ms(self) -> int:
        """How soon it wants to be refreshed again."""
        return BEAT_MS

    def restyle(self) -> None:
        """Take the colours of another theme, which is applied already."""

    def save(self) -> dict[str, object]:
        """Return what of the page's own settings shall be there again at the next start; plain values only."""
        return {}

    def restore(self, saved: dict[str, object]) -> None:
        """Take settings of an earlier start; what is missing or odd in them is left alone."""

    @property
    def can_undo(self) -> bool:
        """Whether there is an edit on this page to take back."""
        return False

    @property
    def can_redo(self) -> bool:
        """Whether there is an edit on this page to make again."""
        return False

    def undo(self) -> None:
        """Take back the last edit on this page; nothing where there is none."""

    def redo(self) -> None:
        """Make the edit again that was taken back; nothing where there is none."""

    def keys(self) -> dict[str, str]:
        """Return the keys that this page knows beside the window's, and what each does."""
        return {}

    def end(self) -> None:
        """Stop what this page runs by itself: the window closes."""
