"""Lines of text over a serial port: the one door to pyserial.

What a port does wrong comes as the errors of `TransportError`; what it says is the driver's to judge.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from urllib.parse import parse_qsl

import serial

from firmware_iface.errors import Disconnected, TransportTimeout, WrongUsage

MOST_BYTES = 4096
"""No answer is as long; what comes without an end is noise."""
_POLL_S = 0.05


def read_address(address: str, known: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Take an address such as ``/dev/ttyUSB0?baud=115200`` apart: the port, and every option, said or by default.

    Parameters
    ----------
    known : mapping of str to str
        What it may say, and what it means if it does not.

    Raises
    ------
    WrongUsage
        No port, or an option that is not known.
    """
    port, _, query = address.partition("?")
    said = dict(parse_qsl(query, keep_blank_values=True))
    if not port:
        raise WrongUsage("no serial port is named", hint="for example gcode:/dev/ttyUSB0, or gcode:COM3 on Windows")
    if unknown := sorted(set(said) - set(known)):
        raise WrongUsage(f"unknown option {', '.join(unknown)} in {address!r}; known: {', '.join(known)}")
    return port, {**known, **said}


def whole_number(key: str, text: str) -> int:
    """Return an option that is a whole number above 0.

    Raises
    ------
    WrongUsage
    """
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 10**8):
        raise WrongUsage(f"{key} is {text!r}; allowed: a whole number above 0")
    return int(text)


class SerialLine:
    """A serial port that carries lines.

    Writing never waits for reading, so that what must be said at once can be.

    Parameters
    ----------
    port : str
    baud : int
    ending : bytes
        Of the lines that are sent; those that come end by a line feed, or a carriage return.
    timeout_s : float
        How long an answer may take.

    Raises
    ------
    Disconnected
        There is no such port, or it is not ours.
    """

    def __init__(self, port: str, baud: int, *, ending: bytes = b"\n", timeout_s: float = 2.0) -> None:
        self.port, self.timeout_s = port, timeout_s
        self.lock = threading.RLock()
        """Held by who waits for an answer."""
        self._writing = threading.Lock()
        self._ending, self._received = ending, b""
        try:
            self._serial = serial.Serial(
                port, baud, timeout=_POLL_S, write_timeout=timeout_s, exclusive=True if _has_exclusive() else None
            )
        except (OSError, ValueError) as error:
            raise Disconnected(
                f"the serial port {port} does not open: {error}",
                hint="check the cable and the name; on Linux you must be in the group dialout",
            ) from error

    def write(self, data: bytes) -> None:
        """Send bytes at once.

        Raises
        ------
        Disconnected, TransportTimeout
        """
        try:
            with self._writing:
                self._serial.write(data)
                self._serial.flush()
        except serial.SerialTimeoutException as error:
            raise TransportTimeout(f"{self.port} takes no bytes", hint="check the cable and the power") from error
        except (OSError, serial.PortNotOpenError) as error:
            raise self._gone(error) from error

    def write_line(self, text: str) -> None:
        """Send a line at once."""
        self.write(text.encode("ascii", errors="replace") + self._ending)

    def read_line(self, timeout_s: float | None = None) -> str:
        """Return the next line that is not empty, without its end; bytes that are no text are marked as such.

        Raises
        ------
        TransportTimeout
            None came in time.
        Disconnected
        """
        within_s = self.timeout_s if timeout_s is None else timeout_s
        deadline_s = time.monotonic() + within_s
        while True:
            head, end, rest = self._received.replace(b"\r", b"\n").partition(b"\n")
            if end:
                self._received = rest
                if text := head.decode("ascii", errors="replace").strip():
                    return text
                continue
            if len(self._received) > MOST_BYTES:
                self._received = b""
            if time.monotonic() > deadline_s:
                raise TransportTimeout(
                    f"{self.port} did not answer in {within_s:g} s", hint="check the cable, the baud rate and the power"
                )
            self._receive()

    def forget(self) -> None:
        """Throw away what has come."""
        self._received = b""
        try:
            self._serial.reset_input_buffer()
        except (OSError, serial.PortNotOpenError) as error:
            raise self._gone(error) from error

    def ask(self, question: str) -> str:
        """Send a line and return the one that answers; what came before it answers something else."""
        with self.lock:
            self.forget()
            self.write_line(question)
            return self.read_line()

    def close(self) -> None:
        """Give the port back; a second call does nothing."""
        self._serial.close()

    def _receive(self) -> None:
        try:
            self._received += self._serial.read(max(self._serial.in_waiting, 1))
        except (OSError, TypeError, serial.PortNotOpenError) as error:  # TypeError: closed under a read
            raise self._gone(error) from error

    def _gone(self, error: Exception) -> Disconnected:
        return Disconnected(f"the serial port {self.port} is gone: {error}", hint="check its cable, then open it again")


def _has_exclusive() -> bool:
    return serial.Serial.__module__.endswith("posix")
