"""Whether a source may shine, whether it does, and whether it still does.

A source is believed by its lamp, not by what it was told.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from enum import Enum

from calibration.progress import Progress
from firmware_iface.errors import BeamRefused, TubeTripped

LAMP_S = 2.0
"""How long a lamp may take to follow."""
_POLL_S = 0.02
_WARM_UP_TICKS = 100


class WarmUp(Enum):
    """Whether a tube is warm."""

    READY = "ready"
    NEEDED = "needed"
    RUNNING = "running"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceState:
    """How a source is, as it says itself; None where it does not say.

    Attributes
    ----------
    is_beam_on : bool or None
        What the lamp shows, whatever the source was told.
    is_interlock_closed : bool or None
        Whether doors and keys let it shine.
    warm_up : WarmUp or None
    warm_up_share : float
        How much of a warm-up that runs is done, 0 to 1.
    fault : str
        Latched until it is cleared, in the source's own words; empty: none.
    kvp, current_ma : float or None
        As set, or as measured where it measures.
    """

    is_beam_on: bool | None = None
    is_interlock_closed: bool | None = None
    warm_up: WarmUp | None = None
    warm_up_share: float = 0.0
    fault: str = ""
    kvp: float | None = None
    current_ma: float | None = None

    @property
    def refusals(self) -> tuple[str, ...]:
        """Why it will not shine, in words; nothing where it says no such thing."""
        reasons = []
        if self.is_interlock_closed is False:
            reasons.append("its interlock is open")
        if self.warm_up is WarmUp.NEEDED:
            reasons.append("it must be warmed up")
        if self.warm_up is WarmUp.RUNNING:
            reasons.append(f"it is warming up, {self.warm_up_share:.0%} done")
        if self.fault:
            reasons.append(f"its fault is not cleared: {self.fault}")
        return tuple(reasons)


def switch_on(send: Callable[[], None], state: Callable[[], SourceState]) -> None:
    """Switch a source on, and see that it shines.

    Parameters
    ----------
    send : callable
        Tells it to.
    state : callable
        Asks it how it is.

    Raises
    ------
    BeamRefused
        It says why it will not, or its lamp stays dark.
    """
    if refusals := state().refusals:
        raise BeamRefused(f"the source does not shine: {', and '.join(refusals)}", hint=_what_to_do(state()))
    send()
    now = _await_lamp(state, is_lit=True)
    if now.is_beam_on is False:
        why = ", and ".join(now.refusals) or "it does not say why"
        raise BeamRefused(
            f"the source was told to shine and its lamp stays dark: {why}", hint="look at its panel: key, cable, lamp"
        )


def switch_off(send: Callable[[], None], state: Callable[[], SourceState]) -> None:
    """Switch a source off, and see that it is dark.

    Raises
    ------
    BeamRefused
        Its lamp stays lit.
    """
    send()
    if _await_lamp(state, is_lit=False).is_beam_on:
        raise BeamRefused(
            "the source was told to be dark and its lamp is still lit",
            hint="stay out, and switch it off by its key or the emergency stop",
        )


def expect_shining(state: SourceState) -> None:
    """Refuse a source that was to shine and does not.

    Raises
    ------
    TubeTripped
    """
    if state.is_beam_on is False or state.fault or state.is_interlock_closed is False:
        why = ", and ".join(state.refusals) or "its lamp is dark"
        raise TubeTripped(f"the source switched itself off: {why}", hint=_what_to_do(state))


def warm_up(
    start: Callable[[], None], state: Callable[[], SourceState], *, within_s: float, poll_s: float
) -> Generator[Progress, None, None]:
    """Warm a source up, if it must be.

    Raises
    ------
    BeamRefused
        It is not warm after that time, or has a fault, or its interlock opens.
    """
    now, deadline_s = state(), time.monotonic() + within_s
    if now.warm_up is WarmUp.NEEDED:
        start()
        now = state()
    while now.warm_up is WarmUp.RUNNING:
        yield Progress("warm-up", round(_WARM_UP_TICKS * now.warm_up_share), _WARM_UP_TICKS)
        if time.monotonic() > deadline_s:
            raise BeamRefused(f"the source is not warm after {within_s:.0f} s", hint="look at its panel")
        time.sleep(poll_s)
        now = state()
    if now.refusals:
        raise BeamRefused(f"the warm-up ended: {', and '.join(now.refusals)}", hint=_what_to_do(now))
    yield Progress("warm-up", _WARM_UP_TICKS, _WARM_UP_TICKS)


def _await_lamp(state: Callable[[], SourceState], *, is_lit: bool) -> SourceState:
    deadline_s = time.monotonic() + LAMP_S
    while (now := state()).is_beam_on is not None and now.is_beam_on is not is_lit and time.monotonic() < deadline_s:
        if is_lit and now.refusals:
            break
        time.sleep(_POLL_S)
    return now


def _what_to_do(state: SourceState) -> str:
    if state.is_interlock_closed is False:
        return "close the doors and the interlock"
    if state.fault:
        return "find out why it tripped, and clear the fault at its panel"
    return "warm it up as its maker says, and scan again"
