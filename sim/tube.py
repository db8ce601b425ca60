"""The simulated X-ray tube's power supply: voltage, current, beam, lamp, interlock, warm-up and trips.

A trip, or an interlock that opens, takes the beam away between two exposures; a fault stays until it is cleared. A
warm-up costs the board's time: each question lets a part of it pass. All figures are choices.
"""

from __future__ import annotations

from dataclasses import dataclass

from firmware_iface.errors import WrongUsage
from sim.stage import Clock

LOWEST_KVP, HIGHEST_KVP, HIGHEST_MA, HIGHEST_W = 20.0, 120.0, 1.0, 120.0
DEFAULT_KVP, DEFAULT_MA = 118.0, 0.0057
TRIP = "overcurrent trip"
_WARM_UP_PARTS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class TubeFaults:
    """How the tube misbehaves.

    Attributes
    ----------
    tube_trips_after : int or None
        It trips after so many exposures with the beam on, once.
    tube_trips_after_s : float or None
        It trips after so many seconds of exposures with the beam on, once.
    interlock_opens_after : int or None
        After so many exposures with the beam on somebody opens the door, and leaves it open.
    warm_up_s : float
        It is cold, and must be warmed up for so long; 0: it is warm.
    lamp : str or None
        The lamp is "dark" or "lit" whatever the beam does.
    """

    tube_trips_after: int | None = None
    tube_trips_after_s: float | None = None
    interlock_opens_after: int | None = None
    warm_up_s: float = 0.0
    lamp: str | None = None


class Tube:
    """A tube with its power supply.

    Parameters
    ----------
    faults : TubeFaults
    """

    def __init__(self, faults: TubeFaults | None = None) -> None:
        self._faults = faults or TubeFaults()
        self.kvp, self.ma = DEFAULT_KVP, DEFAULT_MA
        self.is_on = False
        self.n_exposures, self.on_s = 0, 0.0
        self.fault = ""
        self.is_interlock_open = self._has_tripped = False
        self._warm_from_ns: int | None = None if self._faults.warm_up_s else 0
        self._warm_at_ns = 0

    def set(self, kvp: float, ma: float) -> None:
        """Set voltage and current."""
        if not (LOWEST_KVP <= kvp <= HIGHEST_KVP and 0 <= ma <= HIGHEST_MA and kvp * ma <= HIGHEST_W):
            raise WrongUsage(
                f"{kvp:g} kVp and {ma:g} mA; allowed: {LOWEST_KVP:g} to {HIGHEST_KVP:g} kVp, 0 to {HIGHEST_MA:g} mA, "
                f"up to {HIGHEST_W:g} W"
            )
        self.kvp, self.ma = kvp, ma

    def switch(self, *, is_on: bool, clock: Clock) -> None:
        """Switch the beam on or off.

        Raises
        ------
        WrongUsage
            It may not shine.
        """
        if is_on:
            if self.is_interlock_open:
                raise WrongUsage("the interlock is open")
            if self.fault:
                raise WrongUsage(f"fault: {self.fault}")
            if self._warmth(clock) != "READY":
                raise WrongUsage("the tube is cold")
        self.is_on = is_on

    def warm(self, clock: Clock) -> None:
        """Begin to warm up."""
        if self._warm_from_ns is None:
            self._warm_from_ns = clock.now_ns
            self._warm_at_ns = clock.now_ns + round(self._faults.warm_up_s * 1e9)

    def clear(self) -> None:
        """Acknowledge the fault."""
        self.fault = ""

    def expose(self, duration_s: float) -> bool:
        """Tell whether the beam is on for an exposure: what trips does so before it."""
        if not self.is_on:
            return False
        faults, n, on_s = self._faults, self.n_exposures, self.on_s
        is_worn = faults.tube_trips_after is not None and n >= faults.tube_trips_after
        is_hot = faults.tube_trips_after_s is not None and on_s >= faults.tube_trips_after_s
        if (is_worn or is_hot) and not self._has_tripped:
            self._has_tripped, self.fault, self.is_on = True, TRIP, False
        if faults.interlock_opens_after is not None and n >= faults.interlock_opens_after:
            self.is_interlock_open, self.is_on = True, False
        if self.is_on:
            self.n_exposures += 1
            self.on_s += duration_s
        return self.is_on

    def state(self, clock: Clock) -> str:
        """Return how it is, as on the line."""
        if self._warm_from_ns is not None and clock.now_ns < self._warm_at_ns:
            clock.pass_until(clock.now_ns + round(self._faults.warm_up_s * 1e9) // _WARM_UP_PARTS)
        is_lit = self.is_on if self._faults.lamp is None else self._faults.lamp == "lit"
        return (
            f"LAMP {'ON' if is_lit else 'OFF'},INTERLOCK {'OPEN' if self.is_interlock_open else 'CLOSED'},"
            f"WARM {self._warmth(clock)},FAULT {self.fault or 'NONE'}"
        )

    def _warmth(self, clock: Clock) -> str:
        if self._warm_from_ns is None:
            return "NEEDED"
        if clock.now_ns >= self._warm_at_ns:
            return "READY"
        return f"{(clock.now_ns - self._warm_from_ns) / (self._warm_at_ns - self._warm_from_ns):.3f}"
