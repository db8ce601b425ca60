"""What can be taken back on the page Volume: looks and drawings; and which of their changes make one edit."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from gui.undo import History
from gui.volume.annotations import Annotation
from gui.volume.looks import GreyLook
from gui.volume.painting import Looks

SETTLED_S = 0.6
"""What stays for so long is one edit, however many steps a slider took to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edits:
    """How all looks, and what is drawn.

    Attributes
    ----------
    greys : tuple of (key, GreyLook)
        Of every grey view that was looked at.
    """

    looks: Looks = ()
    greys: tuple[tuple[str, GreyLook], ...] = ()
    drawings: tuple[Annotation, ...] = ()


class Edited:
    """Edits as they are, and as they were.

    Attributes
    ----------
    now : Edits
    """

    def __init__(self) -> None:
        self.now = Edits()
        self._history: History[Edits] = History(self.now)
        self._changed_s = 0.0

    @property
    def can_undo(self) -> bool:
        """Whether there is an edit to take back."""
        return self._history.can_undo or not self._is_settled

    @property
    def can_redo(self) -> bool:
        """Whether there is an edit to make again."""
        return self._history.can_redo and self._is_settled

    @property
    def is_still(self) -> bool:
        """Whether something was changed, and then left as it is."""
        return not self._is_settled and time.monotonic() - self._changed_s > SETTLED_S

    @property
    def _is_settled(self) -> bool:
        return self.now == self._history.now

    def change(self, **parts: Any) -> None:
        """Change parts, perhaps as one step of many."""
        self.now, self._changed_s = replace(self.now, **parts), time.monotonic()

    def edit(self, **parts: Any) -> None:
        """Change parts, as an edit of its own."""
        self.settle()
        self.change(**parts)
        self.settle()

    def settle(self) -> bool:
        """Make what was changed an edit; return whether anything was."""
        if is_new := not self._is_settled:
            self._history.edit(self.now)
        return is_new

    def begin_anew(self, **parts: Any) -> None:
        """Change parts, and forget how all was before."""
        self.now = replace(self.now, **parts)
        self._history = History(self.now)

    def undo(self) -> None:
        """Take the last edit back."""
        self.settle()
        self.now = self._history.undo()

    def redo(self) -> None:
        """Make it again."""
        self.settle()
        self.now = self._history.redo()
