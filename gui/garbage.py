"""Cycles of garbage are collected in Qt's thread alone, and never for long.

Python collects in whatever thread happens to allocate, and a widget that is freed in another than Qt's takes the
program with it. So the collector is off while a window is there, and the window's beat does its work.
"""

from __future__ import annotations

import gc
import sys

MOST = 20_000
"""So many objects are new, or were kept, at most when all are looked through: a thousand take up to a millisecond."""
OLDEST = 2


class Collector:
    """Collects when Python would have, or before too much has come together, in the thread that asks."""

    def __init__(self) -> None:
        self._n_modules = len(sys.modules)
        self._n_new = self._n_kept = 0

    def begin(self) -> None:
        """Take over; what is there already, modules above all, is never looked through again."""
        gc.disable()
        self.settle()

    def settle(self) -> None:
        """Take what there is for lasting: to look through all of a window and its modules takes a tenth of a second."""
        self._n_modules, self._n_new, self._n_kept = len(sys.modules), 0, 0
        gc.freeze()

    def end(self) -> None:
        """Give the work back."""
        gc.unfreeze()
        gc.enable()

    def collect(self) -> int | None:
        """Collect the oldest generation that is due; return which it was, None where none is.

        Modules that any thread has loaded since are lasting, too, and so is what was kept where it is much: a kernel
        that is compiled leaves a hundred thousand objects.
        """
        if len(sys.modules) != self._n_modules:
            self.settle()
            return None
        counts = gc.get_count()
        due = [n for n, (count, most) in enumerate(zip(counts, gc.get_threshold(), strict=True)) if count > most]
        if not due:
            return None
        self._n_new += counts[0]
        generation = OLDEST if self._n_new > MOST else due[-1]
        n_freed = gc.collect(generation)
        if generation == OLDEST:
            # reckoned, for to list them would break tuples that other threads are making (python/cpython#59313)
            self._n_kept += self._n_new - n_freed
            self._n_new = 0
            if self._n_kept > MOST:
                gc.freeze()
                self._n_kept = 0
        return generation
