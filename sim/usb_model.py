"""The simulated readout board as a USB device: descriptors, control requests and three bulk endpoints, as bytes.

Whatever stands in front of it, a pyusb backend, a USB/IP or a usbredir server, sees what a host controller would: setup
packets in, descriptors out, NAK (`NotReady`), STALL (`Stall`), and a device that is gone (`Gone`). One lock guards the
board; a read with nothing to give waits, without the lock, for what a command may bring.

# Ref: descriptors and standard requests: USB 2.0 specification, chapter 9; BOS, companions: USB 3.2 specification 9.6.
# Ref: Microsoft OS 2.0 descriptors: "Microsoft OS 2.0 Descriptors Specification", tables 1 to 13.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Set
from enum import IntEnum
from functools import partial

from firmware_iface import wire
from sim.board import Board
from sim.faults import Hiccup

MANUFACTURER, PRODUCT = "mpxct", "Simulated Medipix3RX readout board"


class Speed(IntEnum):
    """Speed of the bus, by the numbers of Linux and libusb."""

    HIGH = 3
    SUPER = 4


class Stall(Exception):
    """The endpoint, or the request, is answered by STALL."""


class NotReady(Exception):
    """NAK until the time was over."""


class Gone(Exception):
    """The device is not on the bus."""


class Overflow(Exception):
    """The device had more for a packet than the buffer could take."""


class NoSuchEndpoint(Exception):
    """The device has no endpoint of this address and direction."""


class Request(IntEnum):
    """Standard requests."""

    GET_STATUS = 0
    CLEAR_FEATURE = 1
    SET_FEATURE = 3
    SET_ADDRESS = 5
    GET_DESCRIPTOR = 6
    GET_CONFIGURATION = 8
    SET_CONFIGURATION = 9
    GET_INTERFACE = 10
    SET_INTERFACE = 11
    SET_SEL = 48
    SET_ISOCHRONOUS_DELAY = 49


class Descriptor(IntEnum):
    """Types of descriptors."""

    DEVICE = 1
    CONFIGURATION = 2
    STRING = 3
    INTERFACE = 4
    ENDPOINT = 5
    DEVICE_QUALIFIER = 6
    BOS = 15
    DEVICE_CAPABILITY = 16
    COMPANION = 48


SETUP = struct.Struct("<BBHHH")
"""bmRequestType, bRequest, wValue, wIndex, wLength."""
DEVICE_DESCRIPTOR = struct.Struct("<BBHBBBBHHHBBBB")
CONFIGURATION_DESCRIPTOR = struct.Struct("<BBHBBBBB")
INTERFACE_DESCRIPTOR = struct.Struct("<BBBBBBBBB")
ENDPOINT_DESCRIPTOR = struct.Struct("<BBBBHB")
ENDPOINTS = (wire.EP_COMMAND, wire.EP_REPLY, wire.EP_FRAMES)

_VENDOR_SPECIFIC, _BULK, _ENGLISH_US = 0xFF, 2, 0x0409
TO_HOST = 0x80
_VENDOR_IN, _VENDOR_OUT, _TO_ENDPOINT, _ENDPOINT_HALT = 0xC0, 0x40, 0x02, 0
_KIND_BITS, _STANDARD = 0x60, 0


def device_descriptor(speed: Speed) -> bytes:
    """Return the device descriptor; 2.10 says that there is a BOS to read."""
    version, max_packet = (0x0300, 9) if speed is Speed.SUPER else (0x0210, 64)
    return DEVICE_DESCRIPTOR.pack(
        DEVICE_DESCRIPTOR.size, Descriptor.DEVICE, version, _VENDOR_SPECIFIC, 0, 0, max_packet,
        wire.VENDOR_ID, wire.PRODUCT_ID, 0x0200, 1, 2, 3, 1,
    )  # fmt: skip


def configuration_descriptor(speed: Speed) -> bytes:
    """Return the only configuration: one vendor-specific interface with three bulk endpoints."""
    parts = [INTERFACE_DESCRIPTOR.pack(9, Descriptor.INTERFACE, 0, 0, len(ENDPOINTS), _VENDOR_SPECIFIC, 0, 0, 0)]
    for address in ENDPOINTS:
        parts.append(ENDPOINT_DESCRIPTOR.pack(7, Descriptor.ENDPOINT, address, _BULK, max_packet_bytes(speed), 0))
        if speed is Speed.SUPER:
            parts.append(struct.pack("<BBBBH", 6, Descriptor.COMPANION, 15, 0, 0))
    after = b"".join(parts)
    draws = 500 // (8 if speed is Speed.SUPER else 2)  # 500 mA, in the speed's unit
    return CONFIGURATION_DESCRIPTOR.pack(9, Descriptor.CONFIGURATION, 9 + len(after), 1, 1, 0, 0x80, draws) + after


def bos_descriptor(speed: Speed) -> bytes:
    """Return what the device can do besides: link power management, Microsoft OS 2.0, and SuperSpeed."""
    platform = struct.pack("<IHBB", wire.MS_OS_20_WINDOWS, len(MS_OS_20_SET), wire.MS_OS_20_REQUEST, 0)
    capabilities = [
        struct.pack("<BBBI", 7, Descriptor.DEVICE_CAPABILITY, 2, 2),
        struct.pack("<BBBB", 28, Descriptor.DEVICE_CAPABILITY, 5, 0) + wire.MS_OS_20_UUID + platform,
    ]
    if speed is Speed.SUPER:
        capabilities.append(struct.pack("<BBBBHBBH", 10, Descriptor.DEVICE_CAPABILITY, 3, 0, 0x0E, 3, 10, 0x7FF))
    after = b"".join(capabilities)
    return struct.pack("<BBHB", 5, Descriptor.BOS, 5 + len(after), len(capabilities)) + after


def _ms_os_20_set() -> bytes:
    """Return the set by which Windows binds WinUSB to the device without a driver file."""
    name = "DeviceInterfaceGUIDs".encode("utf-16-le") + bytes(2)
    value = wire.DEVICE_INTERFACE_GUID.encode("utf-16-le") + bytes(4)  # a list, ended by an empty string
    compatible_id = struct.pack("<HH8s8s", 20, 3, b"WINUSB", b"")
    property_ = struct.pack("<HHHH", 10 + len(name) + len(value), 4, 7, len(name)) + name
    property_ += struct.pack("<H", len(value)) + value
    n_bytes = 10 + len(compatible_id) + len(property_)
    return struct.pack("<HHIH", 10, 0, wire.MS_OS_20_WINDOWS, n_bytes) + compatible_id + property_


MS_OS_20_SET = _ms_os_20_set()


def max_packet_bytes(speed: Speed) -> int:
    """Return the packet size of the bulk endpoints."""
    return 1024 if speed is Speed.SUPER else wire.MAX_PACKET_BYTES


class UsbDevice:
    """One simulated board on a USB bus.

    Parameters
    ----------
    board : Board
    serial : str
        Serial number string; the same as the board's.
    speed : Speed
    broken_writes : set of int
        Transfers of the command endpoint, by their number from 0, in whose middle it stalls.
    """

    def __init__(
        self, board: Board, serial: str, *, speed: Speed = Speed.HIGH, broken_writes: Set[int] = frozenset()
    ) -> None:
        self.speed = speed
        self.changed = threading.Condition()
        """Notified whenever there may be something new to read; holding it keeps everything else away."""
        self.configuration = 0
        self._board = board
        self._is_pulled = False
        self._halted: set[int] = set()
        self.broken_writes = set(broken_writes)
        """Transfers of the command endpoint, by their number, in whose middle it stalls."""
        self.n_writes = 0
        self._strings = {1: MANUFACTURER, 2: PRODUCT, 3: serial}
        self._sources: dict[int, tuple[Callable[[], int], Callable[[int], bytes | memoryview]]] = {
            wire.EP_REPLY: (board.pending_reply_bytes, board.take_reply_bytes),
            wire.EP_FRAMES: (board.pending_frame_bytes, board.take_frame_bytes),
        }
        self._descriptors = {
            Descriptor.DEVICE: device_descriptor(speed),
            Descriptor.CONFIGURATION: configuration_descriptor(speed),
            Descriptor.BOS: bos_descriptor(speed),
        }
        if speed is Speed.HIGH:
            qualifier = struct.pack(
                "<BBHBBBBBB", 10, Descriptor.DEVICE_QUALIFIER, 0x0210, _VENDOR_SPECIFIC, 0, 0, 64, 1, 0
            )
            self._descriptors[Descriptor.DEVICE_QUALIFIER] = qualifier

    # What happens to it from outside

    @property
    def is_gone(self) -> bool:
        """Whether the device is not on the bus."""
        return self._is_pulled or self._board.is_unplugged

    def answer_line(self, text: str) -> None:
        """Take the answer of the gantry's controllers to the line that waits for it."""
        with self.changed:
            self._board.answer_line(text)
            self.changed.notify_all()

    def unplug(self) -> None:
        """Pull the plug; the board keeps its state, for its power comes from elsewhere."""
        with self.changed:
            self._is_pulled = True
            self.changed.notify_all()

    def plug(self) -> None:
        """Put the plug back: the bus gives the device a new address and no configuration."""
        with self.changed:
            self._is_pulled = False
            self._board.plug()
            self.reset()

    def reset(self) -> None:
        """Reset the port: address, configuration, halts and a broken-off command are gone, the board's state stays."""
        with self.changed:
            self._board.forget_broken_command()
            self.configuration = 0
            self._halted.clear()
            self.changed.notify_all()

    def halt(self, endpoint: int) -> None:
        """Let an endpoint answer STALL until the host clears it."""
        with self.changed:
            self._halted.add(endpoint)
            self.changed.notify_all()

    def clear_halt(self, endpoint: int) -> None:
        """End the STALL of an endpoint; on the command endpoint, forget a command that broke off."""
        with self.changed:
            self.expect_present()
            if endpoint == wire.EP_COMMAND:
                self._board.forget_broken_command()
            self._halted.discard(endpoint)
            self.changed.notify_all()

    def expect_present(self) -> None:
        """Refuse to work without the device.

        Raises
        ------
        Gone
        """
        if self.is_gone:
            raise Gone

    # What the bus asks of it

    def control(self, setup: bytes, data: bytes = b"") -> bytes:
        """Answer a control request.

        Parameters
        ----------
        setup : bytes
            The 8 bytes of the setup packet.
        data : bytes
            The data stage of a request to the device.

        Returns
        -------
        bytes
            The data stage of a request to the host, at most as long as it asked for.

        Raises
        ------
        Stall
            The device does not know the request.
        Gone
        """
        kind, request, value, index, n_bytes = SETUP.unpack(setup)
        with self.changed:
            self.expect_present()
            if kind == _VENDOR_IN and request == wire.MS_OS_20_REQUEST and index == wire.MS_OS_20_INDEX:
                return MS_OS_20_SET[:n_bytes]
            if (kind, request, value, index, n_bytes) == (_VENDOR_OUT, wire.ABORT_REQUEST, 0, 0, 0):
                self._board.abort()
                self.changed.notify_all()
                return b""
            if (kind, request, value, index, n_bytes) == (_VENDOR_OUT, wire.SAFE_REQUEST, 0, 0, 0):
                self._board.make_safe()
                return b""
            is_short = not kind & TO_HOST and len(data) != n_bytes
            if kind & _KIND_BITS != _STANDARD or request not in set(Request) or is_short:
                raise Stall
            return self._standard(kind, Request(request), value, index)[:n_bytes]

    def bulk_out(self, endpoint: int, data: bytes) -> int:
        """Take bytes of commands, and return how many.

        Raises
        ------
        Stall, Gone, NoSuchEndpoint
        """
        with self.changed:
            self._expect_usable(endpoint, (wire.EP_COMMAND,))
            number, self.n_writes = self.n_writes, self.n_writes + 1
            if number in self.broken_writes:
                self._board.receive(bytes(data[: len(data) // 2]))
                self.halt(endpoint)
                raise Stall
            self._board.receive(bytes(data))
            self.changed.notify_all()
        return len(data)

    def bulk_in(self, endpoint: int, n_bytes: int, timeout_s: float | None = None) -> bytes | memoryview:
        """Return one transfer of at most so many bytes: one reply, or one frame, or as much of it as fits.

        Parameters
        ----------
        timeout_s : float or None
            How long to wait for something to give; None is for ever, 0 is not at all.

        Raises
        ------
        NotReady
            There was nothing in this time.
        Overflow
            More would come, and the length is not that of whole packets.
        Stall, Gone, NoSuchEndpoint
        """
        with self.changed:
            self.changed.wait_for(partial(self._is_ready, endpoint), timeout_s)
            hiccup = self._board.take_hiccup() if endpoint == wire.EP_FRAMES else None
            if hiccup is Hiccup.STALL:
                self._halted.add(endpoint)
                raise Stall
            if hiccup is Hiccup.ZERO_LENGTH:
                return b""
            pending_bytes, take_bytes = self._sources[endpoint]
            n_pending = pending_bytes()
            if n_pending == 0:
                self.expect_present()  # the last frame before an unplugging may have been lost on the way
                raise NotReady
            if n_pending > n_bytes and n_bytes % max_packet_bytes(self.speed):
                raise Overflow
            return take_bytes(n_bytes)

    # The lock is held in all of these

    def _standard(self, kind: int, request: Request, value: int, index: int) -> bytes:
        if request is Request.GET_DESCRIPTOR:
            return self._descriptor(*divmod(value, 256))
        if request is Request.GET_STATUS:
            is_halted = kind == TO_HOST | _TO_ENDPOINT and index in self._halted
            return struct.pack("<H", is_halted)
        if request is Request.GET_CONFIGURATION:
            return bytes([self.configuration])
        if request is Request.GET_INTERFACE:
            return b"\0"
        if request is Request.SET_CONFIGURATION:
            if value not in (0, 1):
                raise Stall
            self.configuration = value
            self._board.forget_broken_command()
            self._halted.clear()
        elif request in (Request.CLEAR_FEATURE, Request.SET_FEATURE) and (kind, value) == (
            _TO_ENDPOINT,
            _ENDPOINT_HALT,
        ):
            (self.clear_halt if request is Request.CLEAR_FEATURE else self.halt)(index)
        elif request is Request.SET_INTERFACE and value != 0:
            raise Stall
        return b""

    def _descriptor(self, kind: int, index: int) -> bytes:
        if kind == Descriptor.STRING and index in (0, *self._strings):
            text = self._strings[index].encode("utf-16-le") if index else struct.pack("<H", _ENGLISH_US)
            return bytes([len(text) + 2, Descriptor.STRING]) + text
        found = self._descriptors.get(Descriptor(kind)) if kind in set(Descriptor) and index == 0 else None
        if found is None:
            raise Stall
        return found

    def _is_ready(self, endpoint: int) -> bool:
        self._expect_usable(endpoint, tuple(self._sources))
        pending_bytes, _ = self._sources[endpoint]
        return pending_bytes() > 0 or (endpoint == wire.EP_FRAMES and self._board.has_hiccup)

    def _expect_usable(self, endpoint: int, allowed: tuple[int, ...]) -> None:
        self.expect_present()
        if endpoint not in allowed:
            raise NoSuchEndpoint
        if endpoint in self._halted:
            raise Stall


class SlowLine:
    """Controllers of a gantry that take real time for each line.

    Parameters
    ----------
    line : callable of str to str or None
        What they do and answer (None: nothing) once the time is over.
    delay_s : float
        From a line to its answer.
    """

    def __init__(self, line: Callable[[str], str | None], delay_s: float) -> None:
        self._line, self._delay_s = line, delay_s
        self.device: UsbDevice | None = None
        """Whose board waits for the answers."""

    def __call__(self, text: str) -> None:
        """Take a line; its answer comes to the device by itself."""
        timer = threading.Timer(self._delay_s, self._arrive, (text,))
        timer.daemon = True
        timer.start()

    def _arrive(self, text: str) -> None:
        assert self.device is not None
        with self.device.changed:  # the scene must not move under an exposure
            answer = self._line(text)
            if answer is not None:
                self.device.answer_line(answer)
