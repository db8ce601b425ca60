"""USB bytes over pyusb: one command endpoint, one for replies, one for frames.

A thread of its own reads the frames, into buffers that are made once: allocating per read costs more than the transfer,
and a device that waits for its reader drops frames. When the ring of buffers is full the thread waits, and the board
does too; an error comes to whoever reads frames, behind the frames that came before it.

# Ref: measured reads and errno of pyusb 1.3.1 with libusb, and what a replugged device needs: daq_gui reference 4.1 to
#      4.3.
"""

from __future__ import annotations

import threading
import weakref
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import ceil
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import usb.core
import usb.util
from usb.backend import IBackend

from firmware_iface.errors import Disconnected, Stalled, TransportError, TransportTimeout, WrongUsage
from firmware_iface.usb_errors import PLUG_HINT, error_of, expect_all_sent, forgetting_the_rest, no_board
from firmware_iface.wire import ABORT_REQUEST, EP_COMMAND, EP_FRAMES, EP_REPLY, PRODUCT_ID, SAFE_REQUEST, VENDOR_ID

if TYPE_CHECKING:
    from firmware_iface.libusb1_transport import Libusb1Transport

FRAME_BUFFER_BYTES = 1 << 20
"""A multiple of every packet size: a longer packet than fits is an overflow on real hosts."""
N_FRAME_BUFFERS = 8
REPLY_BUFFER_BYTES = 1 << 18
WRITE_TIMEOUT_S = 5.0
CONTROL_TIMEOUT_S = 5.0
VENDOR_OUT = 0x40
POLL_S = 0.1
"""How long one read of the reader thread waits, and so how long closing may take."""
INTERFACE = 0
OPTIONS = ("async",)
_SPEEDS_MBIT_S = {
    usb.util.SPEED_LOW: 1,
    usb.util.SPEED_FULL: 12,
    usb.util.SPEED_HIGH: 480,
    usb.util.SPEED_SUPER: 5000,
}


class UsbTransport:
    """A board on USB.

    Parameters
    ----------
    backend : IBackend
        pyusb's view of a USB bus: libusb's, or that of a simulated bus.
    address : str
        What the user called it, for messages.
    serial : str
        Serial number of the wanted board; without it, the first board found.

    Raises
    ------
    Disconnected
        No such device on the bus.
    TransportError
        It is there, and cannot be opened.
    """

    def __init__(self, backend: IBackend, address: str = "usb:", *, serial: str = "") -> None:
        self._device: Any = None  # pyusb makes its attributes at run time, so a type checker sees nothing of them
        self._reply = array("B", bytes(REPLY_BUFFER_BYTES))
        self._opening = threading.Lock()  # no reader may start on a device that is being closed
        with _told_as_ours(f"opening {address}"):
            device = _find(backend, serial)
            if device is None:
                raise no_board(serial, address)
            try:
                _set_up(device)
            except BaseException:
                usb.util.dispose_resources(device)
                raise
        self._device = device
        self._reader = _FrameReader(lambda buffer: _read(device, EP_FRAMES, buffer, POLL_S, "reading frames"))
        # Closing under a transfer of another thread is undefined in libusb, also when all goes away at exit; the reader
        # knows nothing of this object, so that forgetting it ends the reader.
        self._stop_reader = weakref.finalize(self, self._reader.stop)

    def write(self, data: bytes) -> None:
        """Send one command; where the board did not take all of it, let it forget the rest."""
        device = self._open_device
        with forgetting_the_rest(self.forget_command), _told_as_ours("sending a command"):
            n_sent = device.write(EP_COMMAND, data, _milliseconds(WRITE_TIMEOUT_S))
            expect_all_sent(n_sent, len(data))

    def forget_command(self) -> None:
        """Clear the halt of the command endpoint, which lets the board forget a command that broke off."""
        with _told_as_ours("clearing the command endpoint"):
            self._open_device.clear_halt(EP_COMMAND)

    def abort(self) -> None:
        """Make the vendor request that aborts the run beside the commands."""
        self._request(ABORT_REQUEST, "aborting")

    def make_safe(self) -> None:
        """Make the vendor request that switches the beam off and stops the stage, beside the commands."""
        self._request(SAFE_REQUEST, "making the gantry safe")

    def _request(self, number: int, doing: str) -> None:
        with _told_as_ours(doing):
            self._open_device.ctrl_transfer(VENDOR_OUT, number, 0, 0, None, _milliseconds(CONTROL_TIMEOUT_S))

    def read_reply(self, timeout_s: float) -> bytes:
        """Return one transfer of the reply endpoint."""
        doing = f"waiting {timeout_s:.3g} s for a reply"
        n_read = _read(self._open_device, EP_REPLY, self._reply, timeout_s, doing)
        return self._reply[:n_read].tobytes()

    def read_frames(self, n_bytes: int, timeout_s: float) -> memoryview:
        """Return up to ``n_bytes`` of the stream of frames, empty if none came in time.

        What is returned is overwritten by the next call.
        """
        with self._opening:
            _ = self._open_device
            self._reader.start()
        return self._reader.take(n_bytes, timeout_s)

    def close(self) -> None:
        """Release the device; a second call does nothing."""
        with self._opening:
            device, self._device = self._device, None
            if device is not None:
                self._stop_reader()
                usb.util.dispose_resources(device)

    @property
    def _open_device(self) -> Any:
        if self._device is None:
            raise Disconnected("the USB device is closed", hint="open it again")
        return self._device


class _FrameReader:
    """A thread that reads into a ring of buffers, and what one other thread takes out of it.

    The thread ends at an error, which stands in the queue behind what was read before; `start` begins anew.
    """

    def __init__(self, read: Callable[[array[int]], int]) -> None:
        self._read = read
        self._free: SimpleQueue[array[int]] = SimpleQueue()
        self._filled: SimpleQueue[tuple[array[int], int] | BaseException] = SimpleQueue()
        self._taken: array[int] | None = None
        self._rest = memoryview(b"")
        self._is_stopping = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to read, unless it does already or what came of it is not taken yet."""
        if self._thread is not None or self._is_stopping:
            return
        if self._free.empty() and self._taken is None:  # the first time
            for _ in range(N_FRAME_BUFFERS):
                self._free.put(array("B", bytes(FRAME_BUFFER_BYTES)))
        self._thread = threading.Thread(target=self._fill, name="usb frame reader", daemon=True)
        self._thread.start()

    def take(self, n_bytes: int, timeout_s: float) -> memoryview:
        """Return what came, at most `n_bytes`; it is valid until the next call."""
        if not self._rest:
            self._give_back()
            try:
                item = self._filled.get(timeout=max(timeout_s, 0.001))
            except Empty:
                return self._rest
            if isinstance(item, BaseException):
                self._thread = None
                raise item
            self._taken, n_filled = item
            self._rest = memoryview(self._taken)[:n_filled]
        taken, self._rest = self._rest[:n_bytes], self._rest[n_bytes:]
        return taken

    def stop(self) -> None:
        """End the thread and wait for it; nothing starts it again."""
        self._is_stopping = True
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self._filled.put(Disconnected("the USB device was closed", hint="open it again"))

    def _give_back(self) -> None:
        if self._taken is not None:
            self._free.put(self._taken)
            self._taken = None

    def _fill(self) -> None:
        while not self._is_stopping:
            with suppress(Empty):
                buffer = self._free.get(timeout=POLL_S)
                try:
                    n_filled = self._read(buffer)
                except TransportTimeout:
                    n_filled = 0
                except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to who waits for frames
                    self._free.put(buffer)
                    self._filled.put(error)
                    return
                if n_filled:
                    self._filled.put((buffer, n_filled))
                else:
                    self._free.put(buffer)


@dataclass(frozen=True, slots=True, kw_only=True)
class UsbBoard:
    """A board that is on the bus.

    Attributes
    ----------
    serial : str
        Empty where it may not be read.
    bus, address : int
        Where it is; on Linux also the name of its file.
    speed_mbit_s : int
        On the cable; 0 where it is not known.
    problem : str
        Why it cannot be opened; empty if it can.
    """

    serial: str
    bus: int
    address: int
    speed_mbit_s: int
    problem: str


def usb_boards(backend: IBackend | None = None) -> tuple[UsbBoard, ...]:
    """Look which boards are on the bus; none is claimed.

    Raises
    ------
    TransportError
        libusb cannot be loaded, or does not start.
    """
    with _told_as_ours("looking for boards"):
        found = usb.core.find(find_all=True, backend=backend or _libusb(), idVendor=VENDOR_ID, idProduct=PRODUCT_ID)
        return tuple(map(_board_of, found or ()))


def list_devices() -> dict[str, str]:
    """Return the URL of every board on USB, and what there is to say of it."""
    listed: dict[str, list[str]] = {}
    for board in usb_boards():  # those that may not be read share a name
        text = f"bus {board.bus}, address {board.address}, {board.speed_mbit_s} Mbit/s"
        listed.setdefault(f"usb:{board.serial}", []).append(f"{text}: {board.problem}" if board.problem else text)
    return {url: "; ".join(texts) for url, texts in listed.items()}


def open_libusb(address: str) -> UsbTransport | Libusb1Transport:
    """Open a board on this computer's USB.

    libusb comes from a wheel: it watches the bus itself, so a board that was pulled and plugged in again is found even
    where no udev runs. Where its list of devices is stale all the same, a new context has a fresh one.

    Parameters
    ----------
    address : str
        Serial number of the board, or nothing for the first board; ``?async=1`` behind it posts several transfers at
        once, through the package libusb1 (the extra ``usb1``).
    """
    serial, _, query = address.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := sorted(set(options) - set(OPTIONS)):
        raise WrongUsage(f"unknown option {', '.join(unknown)} in usb:{address}; known: {', '.join(OPTIONS)}")
    if options.get("async", "0") not in ("0", "1"):
        raise WrongUsage(f"async is {options['async']!r} in usb:{address}; allowed: 0 or 1")
    if options.get("async") == "1":
        from firmware_iface.libusb1_transport import Libusb1Transport

        return Libusb1Transport(f"usb:{address}", serial=serial)
    backend = _libusb()
    try:
        return UsbTransport(backend, f"usb:{address}", serial=serial)
    except Disconnected:
        return UsbTransport(_fresh_context(backend), f"usb:{address}", serial=serial)


def _libusb() -> IBackend:
    import libusb_package

    backend = libusb_package.get_libusb1_backend()
    if backend is None:
        raise TransportError("libusb cannot be loaded", hint="install the package libusb-package again")
    return backend


def _fresh_context(backend: Any) -> IBackend:
    """Return a backend that looks at the bus anew; pyusb itself keeps one for ever."""
    return type(backend)(backend.lib)


def _find(backend: IBackend, serial: str) -> Any:
    """Return the first board, or the one with that serial number; None when it is not there."""

    def is_wanted(device: Any) -> bool:
        return not serial or _serial_of(device) == serial

    return usb.core.find(backend=backend, idVendor=VENDOR_ID, idProduct=PRODUCT_ID, custom_match=is_wanted)


def _serial_of(device: Any) -> str:
    try:
        return device.serial_number or ""
    except ValueError as error:  # pyusb's word for a device that it may not open
        raise TransportError("not allowed to read the serial number of a detector", hint=PLUG_HINT) from error


def _board_of(device: Any) -> UsbBoard:
    serial = problem = ""
    try:
        with _told_as_ours("reading its serial number"):
            serial = _serial_of(device)
    except TransportError as error:
        problem = str(error)
    finally:
        usb.util.dispose_resources(device)
    speed_mbit_s = _SPEEDS_MBIT_S.get(device.speed, 0)
    return UsbBoard(serial=serial, bus=device.bus, address=device.address, speed_mbit_s=speed_mbit_s, problem=problem)


def _set_up(device: Any) -> None:
    # Selecting a configuration again is a light reset of the device on Linux: only if none is in force.
    try:
        device.get_active_configuration()
    except usb.core.USBError:
        device.set_configuration()
    with suppress(NotImplementedError):  # only Linux has such drivers
        if device.is_kernel_driver_active(INTERFACE):
            device.detach_kernel_driver(INTERFACE)
    usb.util.claim_interface(device, INTERFACE)
    device.clear_halt(EP_COMMAND)  # a program that was killed may have left half a command


def _read(device: Any, endpoint: int, buffer: array[int], timeout_s: float, doing: str) -> int:
    with _told_as_ours(doing, device, endpoint):
        return device.read(endpoint, buffer, _milliseconds(timeout_s))


@contextmanager
def _told_as_ours(doing: str, device: Any = None, endpoint: int = 0) -> Iterator[None]:
    """Turn pyusb's errors into those of the house, by errno, which all backends set alike."""
    try:
        yield
    except usb.core.USBError as error:
        ours = error_of(error.errno, doing, error)
        if isinstance(ours, Stalled) and device is not None:
            with suppress(usb.core.USBError):
                device.clear_halt(endpoint)  # or every later transfer stalls too
        raise ours from error


def _milliseconds(timeout_s: float) -> int:
    return max(ceil(timeout_s * 1000), 1)  # to libusb, 0 is for ever
