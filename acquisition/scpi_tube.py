"""An X-ray tube on a serial port that takes SCPI-like lines: ``scpi:/dev/ttyUSB1?baud=9600&dialect=FILE.toml``.

Every word that is sent or understood stands in a file, the dialect, so that another tube is another file. The only one
here, `tubes/generic.toml`, is of no maker: the command sets of real tubes are in their manuals. Not tried on hardware.

# Ref: SCPI 1999.0, volume 2: OUTPut, SOURce:VOLTage and CURRent, SYSTem:ERRor; IEEE 488.2: *IDN?.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec

from acquisition.beam import SourceState, WarmUp, switch_off, switch_on, warm_up
from acquisition.limits import Limits, Range
from acquisition.serial_line import SerialLine, read_address, whole_number
from calibration.progress import Progress
from firmware_iface.errors import OurMistake, TheirMistake, WrongUsage

FORMS = {"scpi:PORT": "an X-ray tube with SCPI-like commands (?baud=9600&dialect=FILE.toml); not tried on hardware"}
OPTIONS: Mapping[str, str] = {"baud": "9600", "dialect": "generic", "warm_up_s": "3600"}
TUBE = "TUBE"
_POLL_S = 0.5


class Dialect(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a tube is told and asked, and what its answers mean; `tubes/generic.toml` tells each."""

    identity: str
    error: str
    is_acknowledged: bool
    ending: str
    set_kvp: str
    set_ma: str
    kvp: str
    ma: str
    voltage_unit_v: float
    current_unit_ma: float
    beam_on: str
    beam_off: str
    lamp: str
    lamp_on: tuple[str, ...]
    lamp_off: tuple[str, ...]
    interlock: str
    interlock_closed: tuple[str, ...]
    interlock_open: tuple[str, ...]
    warm: str
    warm_ready: tuple[str, ...]
    warm_needed: tuple[str, ...]
    start_warm_up: str
    fault: str
    no_fault: tuple[str, ...]
    clear_fault: str
    lowest_kvp: float
    highest_kvp: float
    lowest_ma: float
    highest_ma: float
    power_w: float

    @property
    def limits(self) -> Limits:
        """What the tube allows, as far as the file says."""
        return Limits(
            kvp=_range(self.lowest_kvp, self.highest_kvp),
            current_ma=_range(self.lowest_ma, self.highest_ma),
            power_w=self.power_w or None,
        )


def load_dialect(name: str) -> Dialect:
    """Return the dialect of a file, or one of those that come with the software.

    Raises
    ------
    WrongUsage
        There is no such file, or it says what it cannot.
    """
    known = files("acquisition").joinpath("tubes", f"{name}.toml")
    try:
        text = known.read_text() if known.is_file() else Path(name).read_text()
    except OSError as error:
        raise WrongUsage(
            f"there is no dialect {name!r}: {error.strerror}", hint="copy acquisition/tubes/generic.toml and change it"
        ) from error
    try:
        dialect = msgspec.toml.decode(text, type=Dialect)
        for command in (dialect.set_kvp, dialect.set_ma):
            command.format(1.0)
    except (msgspec.MsgspecError, ValueError, LookupError) as error:
        raise WrongUsage(f"the dialect {name} cannot be: {error}", hint="compare it with generic.toml") from error
    return dialect


def open_scpi(address: str, _: Any = None) -> ScpiTube:
    """Open the tube at an address.

    Raises
    ------
    WrongUsage
        The address or the dialect is wrong.
    TransportError
        There is no port, or no answer.
    """
    port, options = read_address(address, OPTIONS)
    dialect = load_dialect(options["dialect"])
    within_s = whole_number("warm_up_s", options["warm_up_s"])
    line = SerialLine(port, whole_number("baud", options["baud"]), ending=dialect.ending.encode())
    try:
        return ScpiTube(line, dialect, warm_up_s=within_s)
    except BaseException:
        line.close()
        raise


class ScpiTube:
    """A tube that is told by SCPI-like lines; see `acquisition.gantry.Source`.

    Parameters
    ----------
    line : SerialLine
        The port, which `close` gives back.
    dialect : Dialect
    warm_up_s : float
        How long a warm-up may take.
    poll_s : float
        Between two questions whether it is over.

    Attributes
    ----------
    identity : str
        What it calls itself.
    """

    def __init__(self, line: SerialLine, dialect: Dialect, *, warm_up_s: float = 3600, poll_s: float = _POLL_S) -> None:
        self._line, self._dialect = line, dialect
        self._warm_up_s, self._poll_s = warm_up_s, poll_s
        self.identity = line.ask(dialect.identity) if dialect.identity else ""

    def sources(self) -> tuple[str, ...]:
        """Return the tube alone."""
        return (TUBE,)

    def select_source(self, name: str) -> None:
        """Take the tube, and refuse others."""
        if name != TUBE:
            raise WrongUsage(f"there is no source {name!r} on {self._line.port}; there is {TUBE}")

    def set_tube(self, kvp: float, current_ma: float) -> None:
        """Set voltage and current.

        Raises
        ------
        WrongUsage
            Beyond what the dialect allows.
        OurMistake
            The tube refused it.
        """
        limits = self.limits()
        for name, value, allowed in (("kvp", kvp, limits.kvp), ("current_ma", current_ma, limits.current_ma)):
            if allowed is not None and not allowed[0] <= value <= allowed[1]:
                raise WrongUsage(f"{name} is {value:g}; the tube allows {allowed[0]:g} to {allowed[1]:g}")
        if limits.power_w is not None and kvp * current_ma > limits.power_w:
            raise WrongUsage(f"{kvp:g} kVp and {current_ma:g} mA; the tube allows {limits.power_w:g} W")
        self._tell(self._dialect.set_kvp.format(1000 * kvp / self._dialect.voltage_unit_v))
        self._tell(self._dialect.set_ma.format(current_ma / self._dialect.current_unit_ma))

    def beam(self, is_on: bool) -> None:
        """Switch the radiation on or off, and see by the lamp that it is."""
        if is_on:
            switch_on(lambda: self._tell(self._dialect.beam_on), self.source_state)
            return
        self._line.write_line(self._dialect.beam_off)  # at once, whatever answer another thread waits for
        switch_off(lambda: self._tell(self._dialect.beam_off), self.source_state)

    def source_state(self) -> SourceState:
        """Ask how it is."""
        dialect = self._dialect
        fault = self._ask(dialect.fault)
        warm, share = self._warmth()
        return SourceState(
            is_beam_on=self._meaning(dialect.lamp, {True: dialect.lamp_on, False: dialect.lamp_off}),
            is_interlock_closed=self._meaning(
                dialect.interlock, {True: dialect.interlock_closed, False: dialect.interlock_open}
            ),
            warm_up=warm,
            warm_up_share=share,
            fault="" if fault is None or _is_one_of(fault, dialect.no_fault) else fault,
            kvp=self._number(dialect.kvp, dialect.voltage_unit_v / 1000),
            current_ma=self._number(dialect.ma, dialect.current_unit_ma),
        )

    def warm_up(self) -> Generator[Progress, None, None]:
        """Warm it up, if it must be."""
        return warm_up(
            lambda: self._tell(self._dialect.start_warm_up), self.source_state,
            within_s=self._warm_up_s, poll_s=self._poll_s,
        )  # fmt: skip

    def clear_fault(self) -> None:
        """Acknowledge a fault."""
        if self._dialect.clear_fault:
            self._tell(self._dialect.clear_fault)

    def limits(self) -> Limits:
        """Return what the dialect allows."""
        return self._dialect.limits

    def close(self) -> None:
        """Give the port back."""
        self._line.close()

    def _tell(self, command: str) -> None:
        with self._line.lock:
            if self._dialect.is_acknowledged:
                self._line.ask(command)
            else:
                self._line.write_line(command)
            answer = self._ask(self._dialect.error)
        if answer is None:
            return
        code, _, why = answer.partition(",")
        try:
            is_taken = int(code) == 0
        except ValueError:
            raise self._senseless(self._dialect.error, answer, "a number and a text") from None
        if not is_taken:
            raise OurMistake(f"the tube refused {command!r}: {why.strip() or code}", hint="compare its manual")

    def _ask(self, question: str) -> str | None:
        return self._line.ask(question) if question else None

    def _meaning(self, question: str, words: Mapping[bool, tuple[str, ...]]) -> bool | None:
        answer = self._ask(question)
        if answer is None:
            return None
        for meaning, allowed in words.items():
            if _is_one_of(answer, allowed):
                return meaning
        raise self._senseless(question, answer, ", ".join(word for allowed in words.values() for word in allowed))

    def _warmth(self) -> tuple[WarmUp | None, float]:
        answer = self._ask(self._dialect.warm)
        if answer is None:
            return None, 0.0
        if _is_one_of(answer, self._dialect.warm_ready):
            return WarmUp.READY, 1.0
        if _is_one_of(answer, self._dialect.warm_needed):
            return WarmUp.NEEDED, 0.0
        try:
            share = float(answer)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            allowed = ", ".join((*self._dialect.warm_ready, *self._dialect.warm_needed, "a number from 0 to 1"))
            raise self._senseless(self._dialect.warm, answer, allowed)
        return WarmUp.RUNNING, share

    def _number(self, question: str, unit: float) -> float | None:
        answer = self._ask(question)
        if answer is None:
            return None
        try:
            return float(answer) * unit
        except ValueError:
            raise self._senseless(question, answer, "a number") from None

    def _senseless(self, question: str, answer: str, allowed: str) -> TheirMistake:
        return TheirMistake(
            f"the tube on {self._line.port} answered {question!r} with {answer!r}; allowed: {allowed}",
            hint="check the baud rate, and the dialect against its manual",
        )


def _is_one_of(answer: str, words: tuple[str, ...]) -> bool:
    return answer.upper() in (word.upper() for word in words)


def _range(low: float, high: float) -> Range | None:
    return (low, high) if high else None
