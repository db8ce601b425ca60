"""Cycles of garbage are collected in Qt's thread alone, and never for long.

Python collects in whatever thread happens to allocate, and a widget that is freed in another than Qt's takes the
program with it. So the collector is off while a window is there, and the window's beat does its work.
"""

from __future__ import annotations

import gc
import sys


class Collector:
    """Collects when Python would have, one generation at a time, in the thread that asks."""

    def __init__(self) -> None:
        self._n_modules = len(sys.modules)

    def begin(self) -> None:
        """Take over; what is there already, modules above all, is never looked through again."""
        gc.disable()
        self.settle()

    def settle(self) -> None:
        """Take what there is for lasting: to look through all of a window and its modules takes a tenth of a second."""
        self._n_modules = len(sys.modules)
        gc.freeze()

    def end(self) -> None:
        """Give the work back."""
        gc.unfreeze()
        gc.enable()

    def collect(self) -> int | None:
        """Collect the oldest generation that is due; return which it was, None where none is.

        Modules that any thread has loaded since are lasting, too.
        """
        if len(sys.modules) != self._n_modules:
            self.settle()
            return None
        due = [
            n for n, (count, most) in enumerate(zip(gc.get_count(), gc.get_threshold(), strict=True)) if count > most
        ]
        if not due:
            return None
        gc.collect(due[-1])
        return due[-1]
