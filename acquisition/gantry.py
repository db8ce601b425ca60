"""What moves and shines around the detector: stage, source and sample changer, and one driver for all three.

`LineGantry` speaks to a controller in text lines, one out and one in, through whatever carries them (the auxiliary
line of the readout board, a serial port). Degrees exist on that line only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from acquisition.steps import AT_ZERO, Pose
from firmware_iface.errors import MpxctError, OurMistake, TheirMistake, WrongUsage


class Stage(Protocol):
    """Turns source and detector around the sample, or the sample between them, lifts it, and shifts the camera."""

    def move_to(self, pose: Pose) -> None:
        """Go to a pose; return when in position."""
        ...

    @property
    def angle_rad(self) -> float:
        """Where it stands, as its own encoder says."""
        ...


class SampleChanger(Protocol):
    """Puts one sample, or none, into the beam."""

    def samples(self) -> tuple[str, ...]:
        """Return what it holds."""
        ...

    def select_sample(self, name: str | None) -> None:
        """Put a sample into the beam; None takes it out."""
        ...


class Source(Protocol):
    """An X-ray tube, and other sources that can take its place."""

    def sources(self) -> tuple[str, ...]:
        """Return what there is."""
        ...

    def select_source(self, name: str) -> None:
        """Let this source shine on the detector; "TUBE" is the tube."""
        ...

    def set_tube(self, kvp: float, current_ma: float) -> None:
        """Set voltage and current of the tube."""
        ...

    def beam(self, is_on: bool) -> None:
        """Switch the radiation on or off."""
        ...


class Gantry(Stage, SampleChanger, Source, Protocol):
    """All that a scan needs to move and switch."""

    def shut_down(self) -> None:
        """Leave it safe: the beam off; never raises, for it runs when something else has failed."""
        ...


class LineGantry:
    """A gantry behind a controller that answers text lines.

    Parameters
    ----------
    line : callable
        Sends one line and returns the one that came back.

    Raises
    ------
    OurMistake
        The controller refused (``ERR ...``); its own words are in the message.
    TheirMistake
        It answered something that is no answer to the question.
    """

    def __init__(self, line: Callable[[str], str]) -> None:
        self._line = line
        self._pose = AT_ZERO

    @property
    def identity(self) -> str:
        """What the controller calls itself."""
        return self._ask("*IDN?")

    def move_to(self, pose: Pose) -> None:
        """Go to a pose; return when in position. Lift and camera are told only what is new."""
        if not all(map(math.isfinite, (pose.angle_rad, pose.lift_mm, pose.shift_mm))):
            raise WrongUsage(f"cannot move to {pose}; allowed: finite numbers")
        self._tell(f"ROT {math.degrees(pose.angle_rad):.9g}")
        for command, axis in (("LIFT", "lift_mm"), ("SHIFT", "shift_mm")):
            if getattr(pose, axis) != getattr(self._pose, axis):
                self._tell(f"{command} {getattr(pose, axis):.9g}")
        self._pose = pose

    @property
    def angle_rad(self) -> float:
        """Where it stands, as its own encoder says."""
        return math.radians(self._number("ROT?"))

    def samples(self) -> tuple[str, ...]:
        """Return what the sample changer holds."""
        return self._names("SAMP:LIST?")

    def select_sample(self, name: str | None) -> None:
        """Put a sample into the beam; None takes it out."""
        self._tell(f"SAMP {'OUT' if name is None else _word(name)}")

    @property
    def sample(self) -> str | None:
        """What is in the beam."""
        name = self._ask("SAMP?")
        return None if name == "OUT" else name

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

    def beam(self, is_on: bool) -> None:
        """Switch the radiation on or off."""
        self._tell(f"BEAM {'ON' if is_on else 'OFF'}")

    def shut_down(self) -> None:
        """Switch the beam off; never raises, for it runs when something else has failed."""
        try:
            self.beam(False)
        except MpxctError:
            return  # The line is gone, and with it every way to reach the tube; what broke it is being reported.

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


def _word(name: str) -> str:
    """Return a name that is safe in a line, or refuse it."""
    if not name or not name.isprintable() or any(character in name for character in " ,?"):
        raise WrongUsage(f"{name!r} cannot be a name on the gantry's line; allowed: one word without ',' and '?'")
    return name
