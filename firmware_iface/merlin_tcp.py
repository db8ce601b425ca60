"""The two TCP connections to a Merlin: a command and its answer, and the bytes of the data channel.

The only module of the product with sockets. One thread may read data while others send commands.

# Ref: ports, two connections to the command port: Merlin manual v0.7 p52 (medipix3rx reference 9.1).
"""

from __future__ import annotations

import socket
import threading
import time

from firmware_iface.errors import Disconnected, OurMistake, TheirMistake, TransportError, TransportTimeout
from firmware_iface.merlin_stream import Answer, ErrorCode, MessageDecoder, encode_command, parse_answer

COMMAND_PORT = 6341
REPLY_TIMEOUT_S = 5.0
_READ_BYTES = 1 << 20


class MerlinLink:
    """Both connections.

    Attributes
    ----------
    name : str
        How messages call the Merlin.
    is_open : bool
        Whether both stand.
    """

    def __init__(
        self, host: str, command_port: int = COMMAND_PORT, data_port: int | None = None, *, timeout_s: float
    ) -> None:
        self.name = f"{host}:{command_port}"
        self._timeout_s = timeout_s
        self._lock = threading.RLock()  # one command and its answer at a time
        self._answers = MessageDecoder(completes_answers=True)
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self.is_open = True
        self._commands = _connect(host, command_port, timeout_s)
        try:
            self._data = _connect(host, command_port + 1 if data_port is None else data_port, timeout_s)
        except BaseException:
            self._commands.close()
            raise

    def set(self, name: str, value: str) -> None:
        """Give a setting a value; errors as `command`."""
        self.command("SET", name, value)

    def get(self, name: str) -> str:
        """Return the value of a setting as the Merlin writes it; errors as `command`."""
        return self.command("GET", name).value.strip()

    def get_number(self, name: str) -> float:
        """Return the value of a setting that is a number."""
        text = self.get(name)
        try:
            return float(text)
        except ValueError as error:
            raise TheirMistake(f"the Merlin answered GET {name} by {text!r}; allowed: a number") from error

    def command(self, verb: str, name: str, value: str | None = None) -> Answer:
        """Send a command that must be understood.

        Raises
        ------
        OurMistake
            The Merlin is busy, or does not know the command, or its value is out of range.
        """
        answer = self.exchange(verb, name, value)
        asked = f"{verb} {name}" + ("" if value is None else f" {value}")
        if answer.error == ErrorCode.UNDERSTOOD:
            return answer
        if answer.error == ErrorCode.BUSY:
            raise OurMistake(f"the Merlin is busy and does not take {asked}", hint="wait for its run, or abort it")
        if answer.error == ErrorCode.UNKNOWN_COMMAND:
            raise OurMistake(f"this Merlin does not know {asked}", hint="its software may be older or newer")
        if answer.error == ErrorCode.OUT_OF_RANGE:
            raise OurMistake(f"the Merlin says that {asked} is out of range")
        raise TheirMistake(f"the Merlin answered {asked} by error {answer.error}; allowed: 0 to 3")

    def exchange(self, verb: str, name: str, value: str | None = None) -> Answer:
        """Send a command and return its answer, whatever it is."""
        with self._lock:
            self._expect_open()
            try:
                self._commands.sendall(encode_command(verb, name, value))
                return self._await_answer(verb, name)
            except TimeoutError as error:
                self._answers = MessageDecoder(completes_answers=True)
                raise TransportTimeout(
                    f"the Merlin {self.name} did not answer {verb} {name} in {self._timeout_s:g} s",
                    hint="check that it runs, and that no more than two clients use its command port",
                ) from error
            except OSError as error:
                raise self._lost(error) from error

    def read(self, timeout_s: float) -> memoryview:
        """Return what comes on the data channel in time, empty if nothing does; the next call overwrites it."""
        self._expect_open()
        try:
            self._data.settimeout(timeout_s)
            n_bytes = self._data.recv_into(self._buffer)
        except (TimeoutError, BlockingIOError):
            return self._buffer[:0]
        except OSError as error:
            raise self._lost(error) from error
        if not n_bytes:
            raise self._lost(ConnectionResetError("it hung up"))
        return self._buffer[:n_bytes]

    def close(self) -> None:
        """Hang up; a second call does nothing."""
        self.is_open = False
        self._commands.close()
        self._data.close()

    def _await_answer(self, verb: str, name: str) -> Answer:
        deadline_s = time.monotonic() + self._timeout_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            self._commands.settimeout(left_s)
            data = self._commands.recv(4096)
            if not data:
                raise ConnectionResetError("it hung up")
            for message in list(self._answers.receive(data)):
                try:
                    answer = parse_answer(message.body)
                except ValueError as error:
                    raise TheirMistake(f"to {verb} {name} {error}") from error
                if (answer.verb.upper(), answer.name.upper()) == (verb, name):  # others answer commands given up before
                    return answer
        raise TimeoutError

    def _expect_open(self) -> None:
        if not self.is_open:
            raise Disconnected(f"the connection to the Merlin {self.name} is closed", hint="open it again")

    def _lost(self, error: OSError) -> Disconnected:
        self.close()
        reason = error.strerror or str(error) or type(error).__name__
        return Disconnected(f"the Merlin {self.name} is gone: {reason}", hint="check the network, and open it again")


def _connect(host: str, port: int, timeout_s: float) -> socket.socket:
    try:
        connection = socket.create_connection((host, port), timeout=timeout_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except TimeoutError as error:
        raise TransportTimeout(f"no Merlin answered at {host}:{port} in {timeout_s:g} s") from error
    except OSError as error:
        raise TransportError(
            f"no Merlin at {host}:{port}: {error.strerror or error}",
            hint="check the name and the port, and that the Merlin's program runs",
        ) from error
    return connection
