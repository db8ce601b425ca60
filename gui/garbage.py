"""Cycles of garbage are collected in Qt's thread alone.

Python collects in whatever thread happens to allocate, and a widget that is freed in another than Qt's takes the
program with it. So the collector is off while a window is there, and the window's beat does its work.
"""

from __future__ import annotations

import gc


class Collector:
    """Collects when Python would have, one generation at a time, in the thread that asks."""

    def begin(self) -> None:
        """Take over; what is there already, modules above all, is never looked through again."""
        gc.disable()
        gc.freeze()

    def settle(self) -> None:
        """Take what has been built since for lasting too: to look through all of it takes a tenth of a second."""
        gc.collect()
        gc.freeze()

    def end(self) -> None:
        """Give the work back."""
        gc.unfreeze()
        gc.enable()

    def collect(self) -> int | None:
        """Collect the oldest generation that is due; return which it was, None where none is."""
        due = [
            n for n, (count, most) in enumerate(zip(gc.get_count(), gc.get_threshold(), strict=True)) if count > most
        ]
        if not due:
            return None
        gc.collect(due[-1])
        return due[-1]
