"""A simulated instrument served as a Merlin over TCP: the one place in the simulator with sockets for it.

One thread answers each client of the command port (two at most, like a Merlin), one feeds the client of the data port.
Images are made as fast as the client takes them; with nobody at the data port they are made and thrown away.

# Ref: ports, two command connections: Merlin manual v0.7 p52.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from firmware_iface.chip import Gain
from firmware_iface.errors import OurMistake, WrongUsage
from sim.instrument import (
    DEFAULT_SEED,
    INSTRUMENT_OPTIONS,
    Option,
    chips_of,
    inputs_of,
    misplaced_of,
    read_address,
    scene_of,
)
from sim.merlin import Merlin
from sim.merlin_chip import EnergyScale, MerlinChip

COMMAND_PORT, DATA_PORT = 6341, 6342
MOST_COMMAND_CLIENTS = 2
SCENE = ("BEAM ON",)
"""Lines to the gantry before serving: a Merlin has none, so the scene is set once."""
WARM_UP_S = 1e-6
_PREFIX = re.compile(rb"MPX,(\d{10}),")
_PREFIX_BYTES = 15
_MOST_COMMAND_BYTES = 4096
_POLL_S = 0.1
_SEND_TIMEOUT_S = 30.0


class MerlinServer:
    """Serves one Merlin until it is closed; a context manager.

    Parameters
    ----------
    merlin : Merlin
    host : str
    command_port, data_port : int
        0 takes a free one; the attributes of the same name tell which.
    """

    def __init__(
        self, merlin: Merlin, host: str = "127.0.0.1", command_port: int = COMMAND_PORT, data_port: int = DATA_PORT
    ) -> None:
        self._merlin = merlin
        self._changed = threading.Condition()
        self._is_closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._n_command_clients = 0
        self._command_socket = _listen(host, command_port)
        try:
            self._data_socket = _listen(host, data_port)
        except BaseException:
            self._command_socket.close()
            raise
        self.command_port: int = self._command_socket.getsockname()[1]
        self.data_port: int = self._data_socket.getsockname()[1]
        for work in (self._accept_commands, self._feed):
            self._spawn(work)

    def close(self) -> None:
        """Hang up on everybody and free the ports; a second call does nothing."""
        self._is_closing.set()
        with self._changed:
            self._changed.notify_all()
        for thread in list(self._threads):
            thread.join()
        self._command_socket.close()
        self._data_socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _spawn(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)  # pyright: ignore[reportArgumentType]
        self._threads = [known for known in self._threads if known.is_alive()] + [thread]
        thread.start()

    # Commands

    def _accept_commands(self) -> None:
        for client in self._clients(self._command_socket):
            with self._changed:
                is_welcome = self._n_command_clients < MOST_COMMAND_CLIENTS
                self._n_command_clients += is_welcome
            if is_welcome:
                self._spawn(self._converse, client)
            else:
                client.close()

    def _converse(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            for body in self._bodies(client):
                with self._changed:
                    answer = self._merlin.answer(body)
                    self._changed.notify_all()
                client.sendall(f"MPX,{len(answer) + 1:010d},{answer}".encode("latin-1"))
        with self._changed:
            self._n_command_clients -= 1

    def _bodies(self, client: socket.socket) -> Iterator[str]:
        """Yield the bodies of a client's commands until it hangs up, or speaks something else."""
        buffer = b""
        while not self._is_closing.is_set():
            match = _PREFIX.match(buffer)
            end = _PREFIX_BYTES + int(match[1]) - 1 if match else _PREFIX_BYTES
            if len(buffer) >= end:
                if match is None or not 0 < int(match[1]) < _MOST_COMMAND_BYTES:
                    return
                body, buffer = buffer[_PREFIX_BYTES:end].decode("latin-1"), buffer[end:].lstrip(b"\r\n")
                yield body
                continue
            with suppress(TimeoutError):
                client.settimeout(_POLL_S)
                data = client.recv(4096)
                if not data:
                    return
                buffer += data
                client.settimeout(_SEND_TIMEOUT_S)

    # Data

    def _feed(self) -> None:
        """Send what the Merlin has to say to the one client of the data port; to nobody, if there is none."""
        client: socket.socket | None = None
        self._data_socket.setblocking(False)
        while not self._is_closing.is_set():
            with self._changed:
                if client is not None and _has_hung_up(client):
                    client = _closed(client)
                client = client or self._new_data_client()
                message = self._merlin.pop_message()
                exposure = self._merlin.next_exposure() if message is None else None
                if message is None and exposure is None:
                    self._changed.wait(_POLL_S)
            if exposure is not None:
                images = self._merlin.expose(exposure)  # it takes time, and commands must be answered meanwhile
                with self._changed:
                    self._merlin.deliver(exposure, images)
            if message is not None and client is not None:
                try:
                    client.sendall(message)
                except OSError:
                    client = _closed(client)
        if client is not None:
            client.close()

    def _new_data_client(self) -> socket.socket | None:
        with suppress(BlockingIOError):
            client, _ = self._data_socket.accept()
            client.settimeout(_SEND_TIMEOUT_S)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return client
        return None

    def _clients(self, listener: socket.socket) -> Iterator[socket.socket]:
        listener.settimeout(_POLL_S)
        while not self._is_closing.is_set():
            with suppress(TimeoutError):
                client, _ = listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                yield client


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise OurMistake(
            f"cannot listen on {host}:{port}: {error.strerror or error}", hint="choose other ports, or end who has them"
        ) from error


def _has_hung_up(client: socket.socket) -> bool:
    try:
        client.setblocking(False)
        return client.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        client.settimeout(_SEND_TIMEOUT_S)


def _closed(client: socket.socket) -> None:
    client.close()


MERLIN_OPTIONS: Mapping[str, Option] = {
    **INSTRUMENT_OPTIONS, "numbers_exposures": Option("0|1", {"0": False, "1": True}.__getitem__),
}  # fmt: skip
"""What an address may say of an instrument that a Merlin reads out: it has one chip."""


def simulated_merlin(address: str, *, scene: Sequence[str] = SCENE, numbers_exposures: bool = False) -> Merlin:
    """Build the instrument of an address such as ``demo?seed=2&pulser_us=1000:100``, with a Merlin as its readout.

    Parameters
    ----------
    scene : sequence of str
        Lines to the gantry: what shines, and on what.

    Raises
    ------
    WrongUsage
        An instrument, an option or a line to the gantry that is not known.
    """
    name, chosen, _ = read_address(address, MERLIN_OPTIONS)
    gantry = scene_of(name, chosen.get("seed", DEFAULT_SEED), misplaced=misplaced_of(chosen), chosen=chosen)
    ((chip_, sensor),) = chips_of(name, chosen, gantry)
    for line in scene:
        if (reply := gantry.line(line) or "ERR no answer").startswith("ERR"):
            raise WrongUsage(f"the scene's line {line!r} was answered by {reply!r}")
    scale = EnergyScale(
        baseline_dac=sensor.front_end.baseline_dac,
        gain_dac_per_kev={gain: sensor.gain_dac_per_kev(gain) for gain in Gain},
    )
    readout = MerlinChip(chip_, scale)
    readout.expose(WARM_UP_S)  # the sensor's tables are made now, and not while a client waits for its first image
    return Merlin(
        readout,
        now_ns=time.time_ns(),
        numbers_exposures=chosen.get("numbers_exposures", numbers_exposures),
        inputs=inputs_of(chosen),
    )


def serve(
    address: str,
    host: str = "127.0.0.1",
    command_port: int = COMMAND_PORT,
    data_port: int = DATA_PORT,
    *,
    scene: Sequence[str] = SCENE,
    stop: threading.Event | None = None,
    on_ready: Callable[[int, int], None] | None = None,
) -> None:
    """Serve a simulated instrument as a Merlin until `stop` is set or Ctrl-C comes.

    Parameters
    ----------
    scene : sequence of str
        Lines to the gantry: what shines, and on what.
    on_ready : callable, optional
        Called with the command and the data port when clients may connect.
    """
    stop = stop or threading.Event()
    merlin = simulated_merlin(address, scene=scene)
    with MerlinServer(merlin, host, command_port, data_port) as server, suppress(KeyboardInterrupt):
        if on_ready is not None:
            on_ready(server.command_port, server.data_port)
        while not stop.wait(1.0):  # a wait without an end would not hear Ctrl-C everywhere
            pass
