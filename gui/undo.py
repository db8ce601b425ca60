"""Undo and redo of what is edited: a plan, a mask, the looks of materials."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")

MOST_KEPT = 200
"""Edits that can be taken back."""


class History(Generic[T]):
    """The states that something had; each is immutable, or treated so.

    Parameters
    ----------
    first : T
        Where it begins; this is never forgotten by undoing.
    """

    def __init__(self, first: T) -> None:
        self._states: list[T] = [first]
        self._at = 0

    @property
    def now(self) -> T:
        """The present state."""
        return self._states[self._at]

    @property
    def can_undo(self) -> bool:
        """Whether there is an edit to take back."""
        return self._at > 0

    @property
    def can_redo(self) -> bool:
        """Whether there is an edit that was taken back."""
        return self._at < len(self._states) - 1

    def edit(self, state: T) -> None:
        """Go on from here with another state; what was taken back before is forgotten."""
        del self._states[self._at + 1 :]
        self._states.append(state)
        del self._states[: max(len(self._states) - 1 - MOST_KEPT, 0)]
        self._at = len(self._states) - 1

    def undo(self) -> T:
        """Take the last edit back, where there is one, and return the state."""
        self._at = max(self._at - 1, 0)
        return self.now

    def redo(self) -> T:
        """Make the edit again that was taken back, where there is one, and return the state."""
        self._at = min(self._at + 1, len(self._states) - 1)
        return self.now
