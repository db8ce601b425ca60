"""Two G-code controllers over a serial line, Grbl and Marlin: move, ask, stop, home, and what their alarms mean.

Neither was tried on hardware here; they follow the makers' public documents, and the tests their simulated peers.

# Ref: Grbl 1.1: gnea/grbl `doc/markdown/interface.md` (ok and error, status reports, alarms), `commands.md` (`$H`,
#      `$$`, `?`, `!`, Ctrl-X), `settings.md` ($110 to $112, units per minute), `doc/csv/alarm_codes_en_US.csv`.
# Ref: Marlin: marlinfw.org/docs/gcode, pages G000-G001, G028, G090, M114, M400, M410; host keep-alive lines "busy:".
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Protocol

from acquisition.serial_line import SerialLine
from firmware_iface.errors import StageStuck, TheirMistake, TransportTimeout

LETTERS = "XYZABC"
GREETING_S = 5.0
"""How long a controller may take to start: opening the port resets many."""
HOMING_S = 180.0
HOLD_S = 5.0
_MAX_GARBLED = 5
_N_IDLE = 3
"""How often running a controller must say that it is idle, elsewhere than it was sent."""
ALARMS: Mapping[str, str] = {
    "1": "a limit switch was hit, and the position is lost",
    "2": "the target is beyond the soft limits",
    "3": "it was reset while it moved, and the position is lost",
    "4": "the probe was not as expected", "5": "the probe touched nothing",
    "6": "homing was reset", "7": "the door opened during homing",
    "8": "homing did not come off the limit switch", "9": "homing found no limit switch",
}  # fmt: skip
_HOME_IT = "look why, and home it (home=1 in the URL does so)"


class Controller(Protocol):
    """What a stage asks of its controller; places are in the controller's units, by the letter of the axis."""

    def greet(self) -> None:
        """Find it, and bring it into the state in which places are absolute."""
        ...

    def speeds_per_min(self) -> dict[str, float]:
        """Return the highest speed of each axis, as far as it tells."""
        ...

    def go(self, places: Mapping[str, float], feed_per_min: float | None = None) -> None:
        """Begin to go, as fast as it can or with a feed along the way."""
        ...

    def is_moving(self) -> bool:
        """Tell whether it still goes."""
        ...

    def places(self) -> dict[str, float]:
        """Return where it is."""
        ...

    def halt(self) -> None:
        """Stand at once."""
        ...

    def home(self) -> None:
        """Find its switches again; ends an alarm."""
        ...


class Grbl:
    """A controller that speaks as Grbl 1.1 and its heirs (grblHAL, FluidNC).

    Parameters
    ----------
    line : SerialLine
    """

    def __init__(self, line: SerialLine) -> None:
        self._line = line
        self._offset: list[float] = []
        self._target: dict[str, float] = {}
        self._n_idle = 0

    def greet(self) -> None:
        """Wait until it answers, and set absolute places in mm (and degrees)."""
        if self._find().startswith("Alarm"):
            raise StageStuck("the stage is in alarm since it was switched on, or since a limit", hint=_HOME_IT)
        self._command("G21 G90 G94")

    def speeds_per_min(self) -> dict[str, float]:
        """Return settings $110 and following: the highest speed of each axis."""
        speeds = {}
        for text in self._command("$$"):
            if found := re.fullmatch(r"\$11([0-5])=([0-9.]+).*", text):
                speeds[LETTERS[int(found[1])]] = float(found[2])
        return speeds

    def go(self, places: Mapping[str, float], feed_per_min: float | None = None) -> None:
        """Begin to go; it answers when the move is planned."""
        self._target, self._n_idle = dict(places), 0
        self._command(_move(places, feed_per_min))

    def is_moving(self) -> bool:
        """Ask for its state; a state in which it waits for a person is an error."""
        state, places = self._status()
        if state in ("Run", "Jog", "Home"):
            self._n_idle = 0
            return True
        if state != "Idle":
            raise StageStuck(f"the stage stands in the state {state}", hint=_HOME_IT)
        self._n_idle += 1  # it may say so before a move that it has planned has begun
        is_there = all(abs(places[axis] - value) < 0.01 for axis, value in self._target.items())
        return not is_there and self._n_idle < _N_IDLE

    def places(self) -> dict[str, float]:
        """Return its work position."""
        return self._status()[1]

    def halt(self) -> None:
        """Hold, and when it stands forget the move; neither waits for what another thread has asked."""
        self._line.write(b"!")
        deadline_s = time.monotonic() + HOLD_S
        while time.monotonic() < deadline_s:
            state, _ = self._status()
            if state in ("Hold:0", "Idle", "Alarm"):
                break
        self._line.write(b"\x18")
        self._await_start()

    def home(self) -> None:
        """Wait until it answers, and run the homing cycle."""
        self._find()
        self._command("$H", HOMING_S)
        self._command("G21 G90 G94")

    def _find(self) -> str:
        """Wait until it answers, and return its state."""
        deadline_s = time.monotonic() + GREETING_S
        while True:
            try:
                return self._status(is_starting=True)[0]
            except TransportTimeout:
                if time.monotonic() > deadline_s:
                    raise

    def _status(self, *, is_starting: bool = False) -> tuple[str, dict[str, float]]:
        """Return its state, and its work position by axis."""
        with self._line.lock:
            for _ in range(_MAX_GARBLED):
                self._line.write(b"?")
                try:
                    text = self._read_until("<", is_starting=is_starting)
                    return self._parsed(text)
                except TheirMistake:
                    continue
        raise TheirMistake(
            f"{self._line.port} answered '?' by nothing that is a status report, {_MAX_GARBLED} times",
            hint="check the baud rate and the cable",
        )

    def _read_until(self, beginning: str, *, is_starting: bool = False) -> str:
        while True:
            text = self._line.read_line()
            if text.startswith(beginning):
                return text
            if text.startswith("ALARM:"):
                code = text.removeprefix("ALARM:")
                raise StageStuck(f"the stage is in alarm: {ALARMS.get(code, f'code {code}')}", hint=_HOME_IT)
            if text.startswith("Grbl ") and not is_starting:
                raise StageStuck("the stage's controller started again by itself: its position is lost", hint=_HOME_IT)
            if beginning == "<" and "<" in text:
                raise TheirMistake(f"half a status report: {text!r}")

    def _parsed(self, text: str) -> tuple[str, dict[str, float]]:
        fields = text.removeprefix("<").removesuffix(">").split("|")
        values = {key: value for key, _, value in (field.partition(":") for field in fields[1:])}
        try:
            if "WCO" in values:
                self._offset = [float(number) for number in values["WCO"].split(",")]
            key = "WPos" if "WPos" in values else "MPos"
            numbers = [float(number) for number in values[key].split(",")]
        except (KeyError, ValueError):
            raise TheirMistake(f"a garbled status report: {text!r}") from None
        offset = self._offset or [0.0] * len(numbers)
        if not text.endswith(">") or len(offset) != len(numbers):
            raise TheirMistake(f"a garbled status report: {text!r}")
        if key == "MPos":
            numbers = [number - off for number, off in zip(numbers, offset, strict=True)]
        return fields[0], dict(zip(LETTERS, numbers, strict=False))

    def _command(self, text: str, timeout_s: float | None = None) -> list[str]:
        """Send a line, and return what came before its ok."""
        answers = []
        with self._line.lock:
            self._line.write_line(text)
            while (answer := self._line.read_line(timeout_s)) != "ok":
                if answer.startswith("error:"):
                    raise StageStuck(f"the stage refused {text!r}: {answer}", hint=_HOME_IT)
                if answer.startswith("ALARM:"):
                    code = answer.removeprefix("ALARM:")
                    raise StageStuck(f"the stage is in alarm: {ALARMS.get(code, f'code {code}')}", hint=_HOME_IT)
                if answer.startswith("Grbl "):
                    raise StageStuck(
                        "the stage's controller started again by itself: its position is lost", hint=_HOME_IT
                    )
                answers.append(answer)
        return answers

    def _await_start(self) -> None:
        with self._line.lock:
            while not self._line.read_line().startswith("Grbl "):
                pass
            self._command("G21 G90 G94")


class Marlin:
    """A controller that speaks as Marlin 2.

    It tells its place only while nothing moves, and whether it moves by the answer to M400, which comes when it stands.

    Parameters
    ----------
    line : SerialLine
    """

    def __init__(self, line: SerialLine) -> None:
        self._line = line
        self._is_asked = False

    def greet(self) -> None:
        """Wait until it answers, and set absolute places in mm (and degrees)."""
        deadline_s = time.monotonic() + GREETING_S
        while True:
            try:
                self._line.forget()
                self._command("G90", is_starting=True)
                break
            except TransportTimeout:
                if time.monotonic() > deadline_s:
                    raise
        self._command("G21")

    def speeds_per_min(self) -> dict[str, float]:
        """Return the highest speeds of M203, told by M503, which are per second."""
        found = (re.search(r"M203 (.*)", text) for text in self._command("M503"))
        words = [word for each in found if each for word in each[1].split()]
        return {word[0]: 60 * float(word[1:]) for word in words if re.fullmatch(r"[A-Z][0-9.]+", word)}

    def go(self, places: Mapping[str, float], feed_per_min: float | None = None) -> None:
        """Begin to go, and ask to be told when it stands."""
        with self._line.lock:
            self._command(_move(places, feed_per_min))
            self._line.write_line("M400")
            self._is_asked = True

    def is_moving(self) -> bool:
        """Look whether the answer to M400 has come."""
        with self._line.lock:
            if not self._is_asked:
                return False
            try:
                while not _is_ok(text := self._line.read_line(0.0)):
                    self._refuse(text)
            except TransportTimeout:
                return True
            self._is_asked = False
            return False

    def places(self) -> dict[str, float]:
        """Return its place."""
        for text in self._command("M114"):
            if found := re.findall(r"([XYZABC]):\s*(-?[0-9.]+)", text.partition("Count")[0]):
                return {axis: float(number) for axis, number in found}
        raise TheirMistake(f"{self._line.port} did not answer M114 by its place", hint="check that it is a Marlin")

    def halt(self) -> None:
        """Stop the steppers; needs EMERGENCY_PARSER in its firmware to be heard during a move."""
        self._line.write_line("M410")
        time.sleep(self._line.timeout_s / 10)
        with self._line.lock:
            self._line.forget()
            self._is_asked = False
            self._command("M400")

    def home(self) -> None:
        """Run the homing cycle."""
        self._command("G28", HOMING_S)

    def _command(self, text: str, timeout_s: float | None = None, *, is_starting: bool = False) -> list[str]:
        answers = []
        with self._line.lock:
            self._line.write_line(text)
            while not _is_ok(answer := self._line.read_line(timeout_s)):
                if not is_starting:
                    self._refuse(answer)
                answers.append(answer)
            answers.append(answer)
        return answers

    def _refuse(self, answer: str) -> None:
        if answer.startswith(("Error:", "!!")):
            raise StageStuck(f"the stage stopped: {answer}", hint=_HOME_IT)
        if answer == "start":
            raise StageStuck("the stage's controller started again by itself: its position is lost", hint=_HOME_IT)


CONTROLLERS: Mapping[str, type[Grbl | Marlin]] = {"grbl": Grbl, "marlin": Marlin}


def _move(places: Mapping[str, float], feed_per_min: float | None) -> str:
    where = " ".join(f"{axis}{value:.5f}" for axis, value in places.items())
    return f"G0 {where}" if feed_per_min is None else f"G1 {where} F{feed_per_min:.5f}"


def _is_ok(text: str) -> bool:
    return text == "ok" or text.startswith("ok ")
