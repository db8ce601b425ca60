"""Where the simulated stage stands at any moment of the board's time, and in which ways it is imperfect.

Three axes: ROT turns source and detector, LIFT raises the sample, SHIFT moves the camera along its rows. Each goes with
an even speed, then settles; axes go together. A move costs the board's time, not real time (`is_real` asks for that
too): whoever asks whether it is over lets the time pass until it is, except while a run is using it.

Of what is between the truth and the encoder: *backlash* is play behind the encoder, half of it on the side that the
axis came from; *drift* lets the zero of the encoder wander; both are invisible in what the stage says. *Noise* is how
far the axis stops from where it was sent, and its encoder tells it. There is no acceleration and no ringing while it
settles.

All figures are choices: no source gives a stage's.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple, Protocol

import numpy as np

from firmware_iface.errors import WrongUsage
from sim.triggers import PositionPulses

AXES: tuple[str, ...] = ("ROT", "LIFT", "SHIFT")
RUN_UP_S = 0.1
"""From the command of a sweep to its first position."""
_HOUR_S = 3600.0


class Clock(Protocol):
    """The time that the scene lives in."""

    now_ns: int

    def pass_until(self, time_ns: int) -> None:
        """Let time pass, if nothing is using it."""
        ...

    def exposure_ns(self, duration_s: float) -> tuple[int, int]:
        """Return from when to when the present exposure lasts."""
        ...


class OwnClock:
    """Time for a scene without a board: it passes by exposing and by moving."""

    def __init__(self) -> None:
        self.now_ns = 0

    def pass_until(self, time_ns: int) -> None:
        """Let time pass."""
        self.now_ns = max(self.now_ns, time_ns)

    def exposure_ns(self, duration_s: float) -> tuple[int, int]:
        """Let an exposure begin now, and time pass until its end."""
        begin_ns = self.now_ns
        self.now_ns += round(duration_s * 1e9)
        return begin_ns, self.now_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Mechanics:
    """What the stage is like.

    Attributes
    ----------
    turn_deg_s, travel_mm_s : float
        Speed of ROT, and of LIFT and SHIFT.
    settle_s : float
    backlash_deg, backlash_mm : float
        Of ROT, and of LIFT and SHIFT.
    drift_per_h_deg : float
        How far the zero of the angle's encoder wanders in an hour.
    noise_deg : float
        Sigma of the angle at which it stops.
    range_deg, lift_range_mm, shift_range_mm : (lowest, highest)
    stage_alarm_after, stage_silent_after, stage_hangs_after, stage_sticks_after : int or None
        After so many moves the next one is refused with an alarm; is not answered, as nothing is any more; never ends;
        ends half way, and the stage thinks that it has arrived.
    is_real : bool
        Moves cost real time as well.
    """

    turn_deg_s: float = 60.0
    travel_mm_s: float = 10.0
    settle_s: float = 0.05
    backlash_deg: float = 0.0
    backlash_mm: float = 0.0
    drift_per_h_deg: float = 0.0
    noise_deg: float = 0.0
    range_deg: tuple[float, float] = (-math.inf, math.inf)
    lift_range_mm: tuple[float, float] = (-50.0, 50.0)
    shift_range_mm: tuple[float, float] = (-50.0, 50.0)
    stage_alarm_after: int | None = None
    stage_silent_after: int | None = None
    stage_hangs_after: int | None = None
    stage_sticks_after: int | None = None
    is_real: bool = False

    def speed_per_s(self, axis: str) -> float:
        """Return degrees or mm per second."""
        return self.turn_deg_s if axis == "ROT" else self.travel_mm_s

    def allowed(self, axis: str) -> tuple[float, float]:
        """Return the lowest and highest place of an axis."""
        return {"ROT": self.range_deg, "LIFT": self.lift_range_mm, "SHIFT": self.shift_range_mm}[axis]


class Silent(Exception):
    """Nobody answers."""


class Place(NamedTuple):
    """Where the stage truly is: degrees, mm, mm."""

    rot: float
    lift: float
    shift: float


class _Way(NamedTuple):
    """From where to where an axis goes, and when."""

    start: float
    end: float
    begin_ns: int
    end_ns: int

    def at(self, time_ns: int) -> float:
        if time_ns >= self.end_ns:
            return self.end
        if time_ns <= self.begin_ns:
            return self.start
        return self.start + (self.end - self.start) * (time_ns - self.begin_ns) / (self.end_ns - self.begin_ns)


class Stage:
    """A stage of three axes with its controller.

    Parameters
    ----------
    mechanics : Mechanics
    seed : int
        Draws where it stops.
    """

    def __init__(self, mechanics: Mechanics | None = None, seed: int = 1) -> None:
        self.mechanics = mechanics or Mechanics()
        self.clock: Clock = OwnClock()
        self.pulses = PositionPulses()
        self.n_moves = 0
        self._seed = seed
        self._ways = {axis: _Way(0.0, 0.0, 0, 0) for axis in AXES}
        self._came_up = dict.fromkeys(AXES, 0)
        """1 where an axis came from below to where it stands, -1 from above, 0 where it never moved."""
        self._off = dict.fromkeys(AXES, 0.0)
        self._still_ns = 0
        self._began_s = self._began_ns = 0.0
        self._is_hanging = False

    def expect_alive(self) -> None:
        """Refuse in the ways in which a broken stage does.

        Raises
        ------
        Silent
            It does not answer any more.
        WrongUsage
            It is in alarm.
        """
        if self._is_past(self.mechanics.stage_silent_after):
            raise Silent
        if self._is_past(self.mechanics.stage_alarm_after):
            raise WrongUsage("stage: ALARM, limit switch; home it")

    def go(self, axis: str, target: float) -> None:
        """Begin to go."""
        self._refuse_beyond(axis, target)
        now_ns, start = self.clock.now_ns, self.encoder(axis)
        is_new = target != self._ways[axis].end
        self.n_moves += is_new
        self.expect_alive()
        if not is_new:
            return
        if self._is_past(self.mechanics.stage_sticks_after):
            target = (start + target) / 2
        self._begin(axis, start, target, now_ns, abs(target - start) / self.mechanics.speed_per_s(axis))
        self._is_hanging = self._is_past(self.mechanics.stage_hangs_after)

    def sweep(self, targets: Place, n_positions: int, duration_s: float) -> None:
        """Begin to go evenly with all axes, and to give pulses."""
        if n_positions < 1 or duration_s <= 0:
            raise WrongUsage(f"a sweep of {n_positions} positions in {duration_s:g} s; allowed: 1 or more, above 0 s")
        for axis, target in zip(AXES, targets, strict=True):
            self._refuse_beyond(axis, target)
            speed_per_s, most_per_s = abs(target - self.encoder(axis)) / duration_s, self.mechanics.speed_per_s(axis)
            if speed_per_s > most_per_s:
                raise WrongUsage(f"{axis} at {speed_per_s:.4g} per s; allowed: up to {most_per_s:g}")
        self.n_moves += 1
        self.expect_alive()
        share = 0.5 if self._is_past(self.mechanics.stage_sticks_after) else 1.0
        first_ns = self.clock.now_ns + round(RUN_UP_S * 1e9)
        for axis, target in zip(AXES, targets, strict=True):
            start = self.encoder(axis)
            self._begin(axis, start, start + share * (target - start), first_ns, share * duration_s)
        self.pulses.begin(first_ns, round(duration_s * 1e9), n_positions)
        if share < 1:
            self.pulses.end(first_ns + round(share * duration_s * 1e9))
        self._is_hanging = self._is_past(self.mechanics.stage_hangs_after)

    def halt(self) -> None:
        """Stand where it is."""
        now_ns = self.clock.now_ns
        for axis in AXES:
            place = self._ways[axis].at(now_ns)
            self._ways[axis] = _Way(place, place, now_ns, now_ns)
        self.pulses.end(now_ns)
        self._still_ns, self._is_hanging = now_ns, False

    def is_moving(self) -> bool:
        """Let time pass until it stands; tell whether it still moves, in real time or while a run uses the time."""
        if self._is_hanging:
            return True
        until_ns = self._still_ns
        if self.mechanics.is_real:
            real_ns = self._began_ns + round((time.monotonic() - self._began_s) * 1e9)
            until_ns = min(until_ns, round(real_ns))
        self.clock.pass_until(until_ns)
        return self.clock.now_ns < self._still_ns

    def encoder(self, axis: str) -> float:
        """Return where an axis stands now, as its encoder says."""
        return self._read(axis, self.clock.now_ns)

    def truth(self, time_ns: int) -> Place:
        """Return where it truly is at a time."""
        play = {
            "ROT": self.mechanics.backlash_deg,
            "LIFT": self.mechanics.backlash_mm,
            "SHIFT": self.mechanics.backlash_mm,
        }
        rot, lift, shift = (self._read(axis, time_ns) - self._came_up[axis] * play[axis] / 2 for axis in AXES)
        return Place(rot + self.mechanics.drift_per_h_deg * time_ns * 1e-9 / _HOUR_S, lift, shift)

    def _read(self, axis: str, time_ns: int) -> float:
        return self._ways[axis].at(time_ns) + self._off[axis]

    def _begin(self, axis: str, start: float, target: float, begin_ns: int, duration_s: float) -> None:
        end_ns = begin_ns + round(duration_s * 1e9)
        if target != start:
            self._came_up[axis] = 1 if target > start else -1
        if axis == "ROT" and self.mechanics.noise_deg:
            self._off[axis] = self._draw_off(target)
        self._ways[axis] = _Way(start - self._off[axis], target, begin_ns, end_ns)
        self._still_ns = max(self._still_ns, end_ns + round(self.mechanics.settle_s * 1e9))
        self._began_s, self._began_ns = time.monotonic(), float(self.clock.now_ns)

    def _draw_off(self, target: float) -> float:
        """Return how far off it stops; the same place is missed in the same way."""
        digest = blake2b(f"{self._seed} {target:.6f}".encode(), digest_size=8).digest()
        return np.random.default_rng(int.from_bytes(digest, "big")).normal(0.0, self.mechanics.noise_deg)

    def _refuse_beyond(self, axis: str, target: float) -> None:
        low, high = self.mechanics.allowed(axis)
        if not low <= target <= high:
            raise WrongUsage(f"{axis} {target:g}; allowed: {low:g} to {high:g}")

    def _is_past(self, n_moves: int | None) -> bool:
        return n_moves is not None and self.n_moves > n_moves
