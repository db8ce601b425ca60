"""How long moves may take, when a stage has arrived, and what it means that it has not.

A stage that hangs must not hang a scan, and one that stands elsewhere than asked must not go unseen.

The margins and tolerances are choices: twice the time that a move takes, and a fifth of a fine scan's step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from acquisition.limits import Limits
from acquisition.steps import Pose
from firmware_iface.errors import StageStuck, WrongUsage

TOLERANCE_RAD = math.radians(0.05)
TOLERANCE_MM = 0.05
MARGIN_S = 5.0
TIMEOUT_S = 120.0
"""Of a move whose duration nobody knows, for the speed of an axis is not told."""
FIRST_POLL_S, LAST_POLL_S = 0.005, 0.25
_AXES = (
    ("angle_rad", "speed_rad_s", "rad"),
    ("lift_mm", "lift_speed_mm_s", "mm"),
    ("shift_mm", "shift_speed_mm_s", "mm"),
)


def move_time_s(limits: Limits, start: Pose, end: Pose) -> float | None:
    """Return how long a move takes, settling included: the axes move together; None where a speed is not known."""
    longest_s = 0.0
    for axis, speed, _ in _AXES:
        distance = abs(getattr(end, axis) - getattr(start, axis))
        if distance and not getattr(limits, speed):
            return None
        longest_s = max(longest_s, distance / getattr(limits, speed)) if distance else longest_s
    return longest_s + (limits.settle_s or 0.0) if longest_s else 0.0


def timeout_s(limits: Limits, start: Pose, end: Pose) -> float:
    """Return after how long a move counts as stuck."""
    expected_s = move_time_s(limits, start, end)
    return TIMEOUT_S if expected_s is None else 2 * expected_s + MARGIN_S


def refuse_beyond(limits: Limits, pose: Pose) -> None:
    """Refuse a pose outside the limits that are known.

    Raises
    ------
    WrongUsage
    """
    for axis, _, unit in _AXES:
        value, allowed = getattr(pose, axis), getattr(limits, axis)
        if not math.isfinite(value):
            raise WrongUsage(f"cannot move to {axis} {value}; allowed: finite numbers")
        if allowed is not None and not allowed[0] <= value <= allowed[1]:
            raise WrongUsage(f"{axis} is {value:.6g} {unit}; the stage allows {allowed[0]:.6g} to {allowed[1]:.6g}")


def await_stand(is_moving: Callable[[], bool], within_s: float, place: Callable[[], Pose] | None = None) -> None:
    """Poll until the stage stands.

    Parameters
    ----------
    is_moving : callable
    within_s : float
        When it should have arrived.
    place : callable, optional
        Where it is. A stage that is late but gets on is waited for.

    Raises
    ------
    StageStuck
        It still moves after that time, and gets on no more.
    """
    began_s, pause_s, last = time.monotonic(), FIRST_POLL_S, None
    deadline_s = began_s + within_s
    while is_moving():
        now_s = time.monotonic()
        if now_s > deadline_s:
            here = None if place is None else place()
            if here is None or here == last:
                raise StageStuck(
                    f"the stage says after {now_s - began_s:.0f} s that it still moves, and does not arrive",
                    hint="look whether something is in its way, and home it",
                )
            deadline_s, last = now_s + MARGIN_S, here
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LAST_POLL_S)


def expect_arrival(asked: Pose, stands: Pose) -> None:
    """Refuse a stage whose encoders say that it stands elsewhere than asked.

    Raises
    ------
    StageStuck
    """
    for axis, _, unit in _AXES:
        wanted, found = getattr(asked, axis), getattr(stands, axis)
        tolerance = TOLERANCE_RAD if unit == "rad" else TOLERANCE_MM
        if not abs(wanted - found) <= tolerance:
            raise StageStuck(
                f"the stage was sent to {axis} {wanted:.6g} {unit} and stands at {found:.6g}; "
                f"allowed: {tolerance:.2g} {unit} off",
                hint="look whether something is in its way, and home it",
            )
