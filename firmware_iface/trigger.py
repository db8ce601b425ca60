"""When shutters open and close, and what the trigger outputs show: records that become registers.

# Ref: bursts, gates, de-bounce and output sources: Merlin manual v0.7 pp. 21-22 and 35-38.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from firmware_iface.wire import TriggerOut, TriggerStart, TriggerStop

__all__ = ["Trigger", "TriggerOut", "TriggerOutput", "TriggerStart", "TriggerStop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """What opens and closes the shutter.

    Attributes
    ----------
    start : TriggerStart
        The board itself, an edge on one of its inputs, or `Detector.trigger`.
    stop : TriggerStop
        The exposure time, or an edge: together with a start edge a gate. The exposure time is then the shortest one.
    frames_per_trigger : int
        How many frames each trigger starts; 1 for a gate.
    delay_ns : int
        From the edge to the opening; the board rounds it down to 10 ns.
    """

    start: TriggerStart = TriggerStart.INTERNAL
    stop: TriggerStop = TriggerStop.INTERNAL
    frames_per_trigger: int = 1
    delay_ns: int = 0

    def __post_init__(self) -> None:
        is_gate = self.start is not TriggerStart.INTERNAL and self.stop is not TriggerStop.INTERNAL
        if self.frames_per_trigger < 1 or (is_gate and self.frames_per_trigger != 1):
            raise ValueError(f"{self.frames_per_trigger} frames per trigger; allowed: 1 or more, and 1 for a gate")
        if self.delay_ns < 0:
            raise ValueError(f"a delay of {self.delay_ns} ns; allowed: 0 or more")

    @property
    def registers(self) -> Mapping[str, int]:
        """The registers that say so, and their values."""
        return {
            "TRIGGER_START": self.start,
            "TRIGGER_STOP": self.stop,
            "FRAMES_PER_TRIGGER": self.frames_per_trigger,
            "TRIGGER_DELAY": self.delay_ns,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerOutput:
    """What one trigger output shows.

    Attributes
    ----------
    source : TriggerOut
    is_inverted : bool
        Low while active.
    delay_ns : int
        Of the delayed copies of the inputs.
    """

    source: TriggerOut = TriggerOut.SHUTTER
    is_inverted: bool = False
    delay_ns: int = 0

    def registers(self, line: str) -> Mapping[str, int]:
        """Return the registers of the output "TTL" or "LVDS" that say so, and their values."""
        return {
            f"OUT_{line}": self.source,
            f"OUT_{line}_INVERT": int(self.is_inverted),
            f"OUT_{line}_DELAY": self.delay_ns,
        }
