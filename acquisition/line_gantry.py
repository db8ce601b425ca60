"""The gantry behind a controller that answers text lines: one out, one in, through whatever carries them.

Usually the auxiliary line of the readout board. What takes long is started, then asked about, so that the line is free
for BEAM OFF within one answer; the board itself makes the gantry safe beside that line where it knows how. Degrees
exist on that line only. The lines are told in section 10 of `firmware_iface/PROTOCOL.md`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any

from acquisition.beam import SourceState, WarmUp, switch_off, switch_on, warm_up
from acquisition.gantry import halted, switched_off
from acquisition.limits import UNKNOWN, Limits, Range
from acquisition.motion import MARGIN_S, TIMEOUT_S, await_stand, expect_arrival, refuse_beyond, timeout_s
from acquisition.steps import Pose
from calibration.progress import Progress
from firmware_iface.errors import (
    DetectorError,
    MpxctError,
    OurMistake,
    StageStuck,
    TheirMistake,
    TransportError,
    WrongUsage,
)

FORMS = {"line:": "stage, tube and sample changer behind the detector's auxiliary line (default)"}
WARM_UP_S = 3600.0
"""How long a warm-up may take."""
_CLEAR_IT = "clear its alarm, and home it"
_AXES = (("ROT", "angle_rad"), ("LIFT", "lift_mm"), ("SHIFT", "shift_mm"))


def open_line(address: str, detector: Any) -> LineGantry:
    """Open the gantry behind a detector's auxiliary line.

    Raises
    ------
    WrongUsage
        There is an address, or no detector.
    """
    if address or detector is None:
        raise WrongUsage(f"line:{address} with {detector or 'no detector'}; allowed: line:, and a detector")
    return LineGantry(detector.auxiliary, make_safe=getattr(detector, "make_safe", None))


class LineGantry:
    """A gantry behind a controller that answers text lines.

    Parameters
    ----------
    line : callable
        Sends one line and returns the one that came back.
    make_safe : callable, optional
        Switches the beam off and stops the stage beside the line, at once; returns whether it knows how.
    poll_s : float
        Between two questions whether a warm-up is over.

    Raises
    ------
    OurMistake
        The controller refused (``ERR ...``); its own words are in the message.
    TheirMistake
        It answered something that is no answer to the question.
    """

    def __init__(
        self, line: Callable[[str], str], *, make_safe: Callable[[], bool] | None = None, poll_s: float = 0.2
    ) -> None:
        self._line = line
        self._make_safe = make_safe
        self._poll_s = poll_s
        self._axes: dict[str, str] | None = None
        self._limits: Limits | None = None
        self._tube: tuple[float, float] | None = None
        """Voltage and current as they were last set from here."""
        self._target: Pose | None = None
        """Where the last move ends, as far as nothing broke it off."""
        self._is_under_way = False
        self._allowed_s = 0.0

    @property
    def identity(self) -> str:
        """What the controller calls itself."""
        return self._ask("*IDN?")

    # The stage

    def move_to(self, pose: Pose) -> None:
        """Go to a pose; return when it stands there. The axes go together; each is told only what is new."""
        refuse_beyond(self.limits(), pose)
        stands = self.pose if self._target is None else self._target
        self._begin(pose, timeout_s(self.limits(), stands, pose))
        for command, axis in _AXES:
            value = getattr(pose, axis)
            if axis == "angle_rad" or value != getattr(stands, axis):
                if axis not in self._known_axes:
                    raise WrongUsage(f"{axis} {value:g}: this gantry has no {command}; allowed: 0")
                self._start(f"{command} {_told(axis, value):.9g}")
        self.wait()

    def sweep(self, start: Pose, end: Pose, n_positions: int, duration_s: float) -> None:
        """Go to the start, then begin to go evenly to the end, with a pulse where each of n equal parts begins."""
        refuse_beyond(self.limits(), end)
        if n_positions < 1 or not 0 < duration_s < math.inf:
            raise WrongUsage(f"a sweep of {n_positions} positions in {duration_s} s; allowed: 1 or more, above 0 s")
        self.move_to(start)
        self._begin(end, 2 * duration_s + timeout_s(self.limits(), end, end))
        places = " ".join(f"{_told(axis, getattr(end, axis)):.9g}" for _, axis in _AXES)
        self._start(f"ROT:SWEEP {places} {n_positions} {duration_s:.9g}")

    def wait(self) -> None:
        """Return when it stands where the last move or sweep ends; see `Stage`."""
        target = self._target
        try:
            await_stand(self._is_moving, self._allowed_s, lambda: self.pose)
            if target is not None:
                expect_arrival(target, self.pose)
            self._is_under_way = False
        except MpxctError as error:
            self._target = None
            if not isinstance(error, TransportError):  # nobody hears on a dead line
                halted(self)
            if isinstance(error, OurMistake):  # the stage's own words why it does not go on
                raise StageStuck(str(error), hint=_CLEAR_IT) from error
            raise

    def halt(self) -> None:
        """Stand at once, wherever it is."""
        self._target = None
        self._tell("STOP")
        self._is_under_way = False

    @property
    def pose(self) -> Pose:
        """Where it stands, as its own encoders say; 0 for an axis that it does not have."""
        stands = {axis: self._number(f"{command}?") for command, axis in _AXES if axis in self._known_axes}
        return Pose(**(stands | {"angle_rad": math.radians(stands["angle_rad"])}))

    def limits(self) -> Limits:
        """Return what it allows, as far as it says so."""
        if self._limits is None:
            try:
                self._limits = _limits_of(self._items("LIMITS?"))
            except OurMistake:
                self._limits = UNKNOWN
        return self._limits

    # The sample changer

    def samples(self) -> tuple[str, ...]:
        """Return what the sample changer holds."""
        return self._names("SAMP:LIST?")

    def select_sample(self, name: str | None) -> None:
        """Put a sample into the beam; None takes it out. Returns when it stands there."""
        self._tell(f"SAMP {'OUT' if name is None else _word(name)}")
        change_s = self.limits().sample_change_s
        await_stand(self._is_moving, (TIMEOUT_S if change_s is None else 2 * change_s + MARGIN_S))

    @property
    def sample(self) -> str | None:
        """What is in the beam."""
        name = self._ask("SAMP?")
        return None if name == "OUT" else name

    # The source

    def sources(self) -> tuple[str, ...]:
        """Return the sources that can be selected."""
        return self._names("SOUR:LIST?")

    def select_source(self, name: str) -> None:
        """Let this source shine on the detector; "TUBE" is the tube."""
        self._tell(f"SOUR {_word(name)}")

    @property
    def source(self) -> str:
        """Which source is selected."""
        return self._ask("SOUR?")

    def set_tube(self, kvp: float, current_ma: float) -> None:
        """Set voltage and current of the tube."""
        self._tell(f"TUBE {kvp:.9g} {current_ma:.9g}")
        self._tube = kvp, current_ma

    def beam(self, is_on: bool) -> None:
        """Switch the radiation on or off, and see by the lamp that it is."""
        if is_on:
            switch_on(lambda: self._tell("BEAM ON"), self.source_state)
        else:
            switch_off(lambda: self._tell("BEAM OFF"), self.source_state)

    def source_state(self) -> SourceState:
        """Ask how the source is; nothing is known of one whose controller knows no such question."""
        try:
            items = dict(self._items("TUBE:STATE?"))
        except OurMistake:
            return SourceState()
        try:
            state = _state_of(items)
            return state if self._tube is None else replace(state, kvp=self._tube[0], current_ma=self._tube[1])
        except (KeyError, ValueError):
            raise TheirMistake(
                f"the gantry answered 'TUBE:STATE?' with {items}; allowed: as PROTOCOL.md says"
            ) from None

    def warm_up(self) -> Generator[Progress, None, None]:
        """Warm the tube up, if it must be."""
        return warm_up(lambda: self._tell("TUBE:WARM"), self.source_state, within_s=WARM_UP_S, poll_s=self._poll_s)

    def clear_fault(self) -> None:
        """Acknowledge a fault of the tube."""
        self._tell("TUBE:CLEAR")

    def shut_down(self) -> str:
        """Switch the beam off and stop the stage, beside the line where the board knows how; see `Gantry`."""
        self._target = None
        try:
            if self._make_safe is not None and self._make_safe():
                return ""
        except DetectorError as error:
            return f"the beam may still be on: {error}"
        unsafe = switched_off(self), halted(self) if self._is_under_way else ""
        return "; ".join(filter(None, unsafe))

    def close(self) -> None:
        """Do nothing: the line is the detector's."""

    # The line

    def _start(self, command: str) -> None:
        try:
            self._tell(command)
        except OurMistake as error:
            self._target = None
            raise StageStuck(str(error), hint=_CLEAR_IT) from error
        self._is_under_way = True

    def _begin(self, target: Pose, allowed_s: float) -> None:
        self._target, self._allowed_s = target, allowed_s

    def _is_moving(self) -> bool:
        answer = self._ask("BUSY?")
        if answer not in ("0", "1"):
            raise TheirMistake(f"the gantry answered 'BUSY?' with {answer!r}; allowed: 0, 1, or ERR and why")
        return answer == "1"

    @property
    def _known_axes(self) -> dict[str, str]:
        """The axes that the controller has, by the field of a pose."""
        if self._axes is None:
            self._axes = {axis: command for command, axis in _AXES if axis == "angle_rad" or self._has(command)}
        return self._axes

    def _has(self, command: str) -> bool:
        try:
            self._ask(f"{command}?")
        except OurMistake:
            return False
        return True

    def _ask(self, question: str) -> str:
        answer = self._line(question).strip()
        if answer == "ERR" or answer.startswith("ERR "):
            raise OurMistake(
                f"the gantry refused {question!r}: {answer.removeprefix('ERR').strip() or 'it does not say why'}",
                hint=self._alternatives(question),
            )
        if not answer:
            raise TheirMistake(f"the gantry answered {question!r} with nothing; allowed: OK, a value, or ERR and why")
        return answer

    def _alternatives(self, question: str) -> str:
        """Name what could have been selected instead."""
        command = question.split(" ")[0]
        if command not in ("SAMP", "SOUR"):
            return ""
        names = self._line(f"{command}:LIST?").strip()
        return "" if not names or names.startswith("ERR") else f"there are: {names.replace(',', ', ')}"

    def _tell(self, command: str) -> None:
        answer = self._ask(command)
        if answer != "OK":
            raise TheirMistake(f"the gantry answered {command!r} with {answer!r}; allowed: OK, or ERR and why")

    def _number(self, question: str) -> float:
        answer = self._ask(question)
        try:
            value = float(answer)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise TheirMistake(f"the gantry answered {question!r} with {answer!r}; allowed: a number")
        return value

    def _names(self, question: str) -> tuple[str, ...]:
        return tuple(name.strip() for name in self._ask(question).split(",") if name.strip())

    def _items(self, question: str) -> list[tuple[str, str]]:
        """Ask for items, each a key and what stands behind it."""
        pairs = (name.partition(" ") for name in self._names(question))
        return [(key, value.strip()) for key, _, value in pairs]


def _told(axis: str, value: float) -> float:
    """Return what stands on the line for the value of an axis."""
    return math.degrees(value) if axis == "angle_rad" else value


def _limits_of(items: list[tuple[str, str]]) -> Limits:
    fields: dict[str, Any] = {}
    try:
        for key, text in items:
            values = [float(word) for word in text.split()]
            if key in ("ROT", "LIFT", "SHIFT"):
                low, high, speed = map(math.radians, values) if key == "ROT" else values
                axis, speed_name = {
                    "ROT": ("angle_rad", "speed_rad_s"),
                    "LIFT": ("lift_mm", "lift_speed_mm_s"),
                    "SHIFT": ("shift_mm", "shift_speed_mm_s"),
                }[key]
                fields |= {axis: (low, high), speed_name: speed}
            elif key in ("KVP", "MA"):
                allowed: Range = (values[0], values[1])
                fields["kvp" if key == "KVP" else "current_ma"] = allowed
            elif key in ("SETTLE", "SAMPLE", "POWER"):
                fields[{"SETTLE": "settle_s", "SAMPLE": "sample_change_s", "POWER": "power_w"}[key]] = values[0]
        return Limits(**fields)
    except (ValueError, IndexError):
        raise TheirMistake(f"the gantry answered 'LIMITS?' with {items}; allowed: as PROTOCOL.md says") from None


def _state_of(items: dict[str, str]) -> SourceState:
    warm, fault = items.get("WARM"), items.get("FAULT", "NONE")
    is_running = warm not in (None, "READY", "NEEDED")
    return SourceState(
        is_beam_on={"ON": True, "OFF": False}[items["LAMP"]] if "LAMP" in items else None,
        is_interlock_closed={"CLOSED": True, "OPEN": False}[items["INTERLOCK"]] if "INTERLOCK" in items else None,
        warm_up=WarmUp.RUNNING if is_running else None if warm is None else WarmUp(warm.lower()),
        warm_up_share=float(warm) if is_running and warm is not None else 0.0,
        fault="" if fault == "NONE" else fault,
    )


def _word(name: str) -> str:
    """Return a name that is safe in a line, or refuse it."""
    if not name or not name.isprintable() or any(character in name for character in " ,?"):
        raise WrongUsage(f"{name!r} cannot be a name on the gantry's line; allowed: one word without ',' and '?'")
    return name
