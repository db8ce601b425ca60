"""A scan that is held between two of its steps, and its beam, which does not shine on for nobody knows how long."""

from __future__ import annotations

import threading
import time

from acquisition.gantry import Gantry

BEAM_OFF_AFTER_S = 60.0
"""A default: long enough to think about a picture, and short against what a tube and a sample can bear for nothing."""
LOOK_UP_S = 0.05


class Pause:
    """Somebody closes it, and the run waits before its next step until it is opened again, or told to stop.

    Parameters
    ----------
    beam_off_after_s : float
        How long the beam stays on meanwhile; then it is off until the scan goes on, and the tube is warmed up first
        where it wants that.
    """

    def __init__(self, beam_off_after_s: float = BEAM_OFF_AFTER_S) -> None:
        self.beam_off_after_s = beam_off_after_s
        self._is_open = threading.Event()
        self._is_open.set()
        self._held_since_s: float | None = None
        self._held_before_s = 0.0
        self._is_beam_off = False

    def close(self) -> None:
        """Hold the run before its next step."""
        self._is_open.clear()

    def open(self) -> None:
        """Let it go on."""
        self._is_open.set()

    @property
    def is_closed(self) -> bool:
        """Whether it was asked to hold."""
        return not self._is_open.is_set()

    @property
    def is_holding(self) -> bool:
        """Whether the run stands there; before, it ends the step that it is in."""
        return self._held_since_s is not None

    @property
    def is_beam_off(self) -> bool:
        """Whether the beam was switched off meanwhile."""
        return self._is_beam_off

    @property
    def held_s(self) -> float:
        """How long the run has been held in all, until now."""
        since_s = self._held_since_s
        return self._held_before_s + (time.monotonic() - since_s if since_s is not None else 0.0)

    def hold(self, gantry: Gantry, is_stopping: threading.Event) -> None:
        """Wait while it is closed; called by the run, in the thread that moves the gantry."""
        if self._is_open.is_set():
            return
        began_s = self._held_since_s = time.monotonic()
        try:
            while not self._is_open.wait(LOOK_UP_S) and not is_stopping.is_set():
                if not self._is_beam_off and time.monotonic() - began_s >= self.beam_off_after_s:
                    gantry.beam(False)
                    self._is_beam_off = True
            if self._is_beam_off and not is_stopping.is_set():
                for _ in gantry.warm_up():
                    pass
                gantry.beam(True)
            self._is_beam_off = False
        finally:
            self._held_before_s += time.monotonic() - began_s
            self._held_since_s = None
