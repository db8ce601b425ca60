"""A USB bus over a TCP connection: the transfers a remote host has under way, and a socket whose sends never wait.

USB/IP and usbredir differ in their packets; what happens between the host's requests and the device is here. A transfer
takes its data from the device, stops being under way and puts its answer on the way to the host in one step, under the
device's lock: a host that cancels it gets either the data, before the answer to the cancelling, or none of it.

# Ref: a kernel drops a device that answers a URB after the answer to its UNLINK: daq_gui reference 4.4; Linux
#      drivers/usb/usbip/vhci_rx.c ("cannot find a urb of seqnum").
"""

from __future__ import annotations

import socket
import threading
from bisect import insort
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto
from queue import SimpleQueue
from typing import NamedTuple

from sim.usb_model import Gone, NoSuchEndpoint, NotReady, Overflow, Stall, UsbDevice

LOOPBACK = "127.0.0.1"
"""Neither protocol asks who is there, so nobody else may come."""


MAX_CROSSING = 16
"""How many answers may be on their way when the host drops them: as many reads as it has under way."""


class Outcome(Enum):
    """How a transfer ended."""

    DONE = auto()
    STALL = auto()
    OVERFLOW = auto()
    INVALID = auto()
    GONE = auto()


class Transfer(NamedTuple):
    """A read that the host has under way; its number is the host's."""

    number: int
    endpoint: int
    n_bytes: int


class Transfers:
    """The reads that a host has under way at a device, and a thread that answers them.

    Parameters
    ----------
    device : UsbDevice
    answer : callable
        Called with a transfer, its outcome and its data, under the device's lock; it must not wait.
    watch : callable
        Called with whether the device is on the bus, under the device's lock, whenever that changes; it must not wait.
    """

    def __init__(
        self,
        device: UsbDevice,
        answer: Callable[[Transfer, Outcome, bytes | memoryview], None],
        watch: Callable[[bool], None],
    ) -> None:
        self._device, self._answer, self._watch = device, answer, watch
        self._waiting: dict[int, deque[Transfer]] = {}
        self._n_given: dict[int, int] = {}
        self._answered: deque[tuple[int, Transfer, bytes]] = deque(maxlen=MAX_CROSSING)
        self._returned: dict[int, list[tuple[int, bytes]]] = {}
        self._is_closed = False
        self._was_present = not device.is_gone
        self._thread = threading.Thread(target=self._serve, name="usb-transfers", daemon=True)
        self._thread.start()

    def submit(self, transfer: Transfer) -> None:
        """Put a read under way, behind the others of its endpoint."""
        with self._device.changed:
            self._waiting.setdefault(transfer.endpoint, deque()).append(transfer)
            self._device.changed.notify_all()

    def cancel(self, number: int) -> Transfer | None:
        """Take a transfer back; None when it is not under way any more."""
        with self._device.changed:
            for queue in self._waiting.values():
                for transfer in queue:
                    if transfer.number == number:
                        queue.remove(transfer)
                        return transfer
        return None

    def take_back(self, number: int) -> None:
        """Take back the data of an answer that the host dropped, for the next reads, as if never acknowledged."""
        with self._device.changed:
            for answered in tuple(self._answered):
                position, transfer, data = answered
                if transfer.number == number:
                    self._answered.remove(answered)
                    insort(self._returned.setdefault(transfer.endpoint, []), (position, data))
                    self._device.changed.notify_all()

    def look(self) -> None:
        """Tell now, if it is not told yet, whether the device is on the bus."""
        with self._device.changed:
            self._tell_presence()

    def close(self) -> None:
        """Drop what is under way and end the thread."""
        with self._device.changed:
            self._is_closed = True
            self._waiting.clear()
            self._device.changed.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _serve(self) -> None:
        with self._device.changed:
            while not self._is_closed:
                self.look()
                # Every endpoint gets its turn: replies must not wait for the end of a stream of frames.
                answered = [self._answer_oldest(queue) for queue in self._waiting.values()]
                if not any(answered):
                    self._device.changed.wait()

    def _tell_presence(self) -> None:
        is_present = not self._device.is_gone
        if is_present != self._was_present:
            self._was_present = is_present
            self._waiting.clear()  # a bus without a device has no transfers
            self._returned.clear()
            self._answered.clear()
            self._watch(is_present)

    def _answer_oldest(self, queue: deque[Transfer]) -> bool:
        """Answer the oldest transfer of an endpoint, if there is an answer."""
        if not queue:
            return False
        transfer = queue[0]
        outcome = Outcome.DONE
        if self._returned.get(transfer.endpoint):
            position, data = self._take_returned(transfer)
        else:
            try:
                outcome, data = _outcome_of(lambda: self._device.bulk_in(transfer.endpoint, transfer.n_bytes, 0.0))
            except NotReady:
                return False
            position = self._n_given.get(transfer.endpoint, 0)
            self._n_given[transfer.endpoint] = position + len(data)
        queue.popleft()
        self._answered.append((position, transfer, bytes(data)))
        self._answer(transfer, outcome, data)
        return True

    def _take_returned(self, transfer: Transfer) -> tuple[int, bytes]:
        """Return data that an earlier transfer of the endpoint had, and where in its stream they stand."""
        returned = self._returned[transfer.endpoint]
        position, data = returned.pop(0)
        if len(data) > transfer.n_bytes:
            returned.insert(0, (position + transfer.n_bytes, data[transfer.n_bytes :]))
        return position, data[: transfer.n_bytes]


def control(device: UsbDevice, setup: bytes, data: bytes = b"") -> tuple[Outcome, bytes]:
    """Make a control request; return how it ended, and its data for the host."""
    outcome, answer = _outcome_of(lambda: device.control(setup, data))
    return outcome, bytes(answer)


def write(device: UsbDevice, endpoint: int, data: bytes) -> Outcome:
    """Write to an endpoint; return how it ended."""

    def work() -> bytes:
        device.bulk_out(endpoint, data)
        return b""

    return _outcome_of(work)[0]


def _outcome_of(work: Callable[[], bytes | memoryview]) -> tuple[Outcome, bytes | memoryview]:
    try:
        return Outcome.DONE, work()
    except Stall:
        return Outcome.STALL, b""
    except Overflow:
        return Outcome.OVERFLOW, b""
    except NoSuchEndpoint:
        return Outcome.INVALID, b""
    except Gone:
        return Outcome.GONE, b""


class HungUp(Exception):
    """The host is gone, or speaks another protocol, which comes to the same."""


class Link:
    """A TCP connection to a host: reads wait, sends do not.

    One thread sends, in the order in which the others hand it the bytes.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._outbox: SimpleQueue[bytes | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._send_all, name="usb-link", daemon=True)
        self._thread.start()

    def receive(self, n_bytes: int) -> bytes:
        """Return exactly so many bytes.

        Raises
        ------
        HungUp
        """
        data = bytearray(n_bytes)
        view = memoryview(data)
        while view:
            n_got = self._connection.recv_into(view)
            if n_got == 0:
                raise HungUp
            view = view[n_got:]
        return bytes(data)

    def send(self, data: bytes) -> None:
        """Put bytes on their way."""
        self._outbox.put(data)

    def hang_up(self) -> None:
        """End the connection once everything handed over is sent; a `receive` under way ends."""
        self._outbox.put(None)

    def cut(self) -> None:
        """End the connection at once, whatever is still to be sent."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._outbox.put(None)

    def close(self) -> None:
        """Hang up, and wait until it is done."""
        self.hang_up()
        if self._thread is not threading.current_thread():
            self._thread.join()
        self._connection.close()

    def _send_all(self) -> None:
        with suppress(OSError):  # the reader of this connection hears of it too, and ends it
            while (data := self._outbox.get()) is not None:
                self._connection.sendall(data)
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)


class Server:
    """Listens on this computer and serves each connection in a thread of its own.

    Parameters
    ----------
    serve : callable
        Called with the link of each connection; when it returns, the connection is closed.
    port : int
        0 for any that is free.
    """

    def __init__(self, serve: Callable[[Link], None], port: int) -> None:
        self._serve = serve
        self._listener = socket.create_server((LOOPBACK, port))
        self._links: set[Link] = set()
        self._threads: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._accept_all, name="usb-server", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The TCP port it listens on."""
        return self._listener.getsockname()[1]

    def wait(self) -> None:
        """Wait until somebody closes the server."""
        self._thread.join()

    def close(self) -> None:
        """Hang up on everybody and stop listening."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # closing alone does not wake the thread that accepts
        self._listener.close()
        self._thread.join()
        for link in tuple(self._links):
            link.cut()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept_all(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            link = Link(connection)
            self._links.add(link)
            thread = threading.Thread(target=self._converse, args=(link,), name="usb-host", daemon=True)
            self._threads = [each for each in self._threads if each.is_alive()] + [thread]
            thread.start()

    def _converse(self, link: Link) -> None:
        try:
            with suppress(HungUp, OSError):  # a host may go at any moment, as a cable may be pulled
                self._serve(link)
        finally:
            link.close()
            self._links.discard(link)
