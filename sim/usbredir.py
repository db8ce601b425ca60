"""A usbredir server for one simulated device: QEMU plugs it into the bus of a virtual machine.

QEMU connects as ``-chardev socket,id=c,host=127.0.0.1,port=4000 -device qemu-xhci -device usb-redir,chardev=c``.

# Ref: usbredir protocol 0.7, https://gitlab.freedesktop.org/spice/usbredir `docs/usb-redirection-protocol.md` and
#      `usbredirparser/usbredirproto.h`.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Mapping
from enum import IntEnum, IntFlag

from sim.usb_link import HungUp, Link, Outcome, Server, Transfer, Transfers, control, write
from sim.usb_model import (
    DEVICE_DESCRIPTOR,
    ENDPOINTS,
    SETUP,
    Request,
    Speed,
    UsbDevice,
    device_descriptor,
    max_packet_bytes,
)

PORT = 4000
MAX_PACKET_BYTES = 1 << 24

_SHORT_HEADER = struct.Struct("<III")
"""type, bytes after the header, id: of the hello, before the capabilities are known."""
_HEADER = struct.Struct("<IIQ")
"""type, bytes after the header, id."""
_HELLO = struct.Struct("<64sI")
"""version, capabilities."""
_CONNECT = struct.Struct("<BBBBHHH")
"""speed, class, subclass, protocol, vendor, product, bcdDevice."""
_INTERFACES = struct.Struct("<I32s32s32s32s")
"""number, then for each of 32: number, class, subclass, protocol."""
_ENDPOINTS = struct.Struct("<32s32s32s32H")
"""For each of 16 endpoints out and 16 in: type, interval, interface, packet bytes."""
_CONTROL = struct.Struct("<BBBBHHH")
"""endpoint, request, request type, status, value, index, bytes."""
_BULK = struct.Struct("<BBHIH")
"""endpoint, status, low 16 bits of the bytes, stream, high 16 bits."""

_TYPE_CONTROL, _TYPE_BULK, _TYPE_INVALID = 0, 2, 255
_VENDOR_SPECIFIC = 0xFF
_TO_HOST = 0x80
_TO_INTERFACE = 0x01
_SPEEDS: Mapping[Speed, int] = {Speed.HIGH: 2, Speed.SUPER: 3}


class Packet(IntEnum):
    """Types of packets."""

    HELLO = 0
    DEVICE_CONNECT = 1
    DEVICE_DISCONNECT = 2
    RESET = 3
    INTERFACE_INFO = 4
    EP_INFO = 5
    SET_CONFIGURATION = 6
    GET_CONFIGURATION = 7
    CONFIGURATION_STATUS = 8
    SET_ALT_SETTING = 9
    GET_ALT_SETTING = 10
    ALT_SETTING_STATUS = 11
    CANCEL_DATA_PACKET = 21
    DEVICE_DISCONNECT_ACK = 24
    CONTROL_PACKET = 100
    BULK_PACKET = 101


class Capability(IntFlag):
    """What a side can do beyond the first version of the protocol."""

    CONNECT_DEVICE_VERSION = 1 << 1
    DEVICE_DISCONNECT_ACK = 1 << 3
    EP_INFO_MAX_PACKET_SIZE = 1 << 4
    IDS_64_BITS = 1 << 5
    BULK_LENGTH_32_BITS = 1 << 6


CAPABILITIES = (
    Capability.CONNECT_DEVICE_VERSION
    | Capability.DEVICE_DISCONNECT_ACK
    | Capability.EP_INFO_MAX_PACKET_SIZE
    | Capability.IDS_64_BITS
    | Capability.BULK_LENGTH_32_BITS
)
"""Ours, and what we ask of the host: every QEMU since 1.4 has them."""


class PacketStatus(IntEnum):
    """Status of an answered packet."""

    SUCCESS = 0
    CANCELLED = 1
    INVALID = 2
    IO_ERROR = 3
    STALL = 4
    BABBLE = 6


_STATUS: Mapping[Outcome, PacketStatus] = {
    Outcome.DONE: PacketStatus.SUCCESS,
    Outcome.STALL: PacketStatus.STALL,
    Outcome.OVERFLOW: PacketStatus.BABBLE,
    Outcome.INVALID: PacketStatus.INVALID,
    Outcome.GONE: PacketStatus.IO_ERROR,
}


class UsbRedir:
    """The server's side of the protocol, for one device that one virtual machine at a time may have."""

    def __init__(self, device: UsbDevice) -> None:
        self._device = device
        self._is_taken = threading.Lock()

    def converse(self, link: Link) -> None:
        """Serve a virtual machine until it hangs up; hang up on a second one."""
        if self._is_taken.acquire(blocking=False):
            try:
                _Guest(self._device, link).serve()
            finally:
                self._is_taken.release()


class _Guest:
    """One virtual machine that the device is plugged into."""

    def __init__(self, device: UsbDevice, link: Link) -> None:
        self._device, self._link = device, link
        self._is_connected = self._awaits_acknowledgement = False

    def serve(self) -> None:
        self._greet()
        # The lock keeps the thread of the transfers from telling of a change before the first state is told.
        with self._device.changed:
            self._transfers = Transfers(self._device, self._answer, self._watch)
            self._connect()
        try:
            while True:
                kind, n_bytes, number = _HEADER.unpack(self._link.receive(_HEADER.size))
                if n_bytes > MAX_PACKET_BYTES:
                    raise HungUp(f"the host sends a packet of {n_bytes} bytes")
                body = self._link.receive(n_bytes)
                with self._device.changed:  # what is asked of this device must not reach the next
                    self._obey(kind, number, body)
        finally:
            self._transfers.close()

    def _greet(self) -> None:
        hello = _HELLO.pack(b"mpxct", CAPABILITIES)
        self._link.send(_SHORT_HEADER.pack(Packet.HELLO, len(hello), 0) + hello)
        kind, n_bytes, _ = _SHORT_HEADER.unpack(self._link.receive(_SHORT_HEADER.size))
        if kind != Packet.HELLO or not _HELLO.size <= n_bytes <= 1024:
            raise HungUp(f"the host opens with packet {kind} of {n_bytes} bytes")
        _, capabilities = _HELLO.unpack_from(self._link.receive(n_bytes))
        if capabilities & CAPABILITIES != CAPABILITIES:
            raise HungUp(f"the host has not got capabilities {CAPABILITIES & ~capabilities!r}")

    def _watch(self, is_present: bool) -> None:
        """Tell the guest that the device left its bus, or came back."""
        if is_present:
            self._connect()
        elif self._is_connected:
            self._is_connected, self._awaits_acknowledgement = False, True
            self._send(Packet.DEVICE_DISCONNECT)

    def _connect(self) -> None:
        """Tell the guest of the device, if it is there and the guest may hear of it now."""
        if self._device.is_gone or self._is_connected or self._awaits_acknowledgement:
            return
        self._is_connected = True
        self._describe()
        fields = DEVICE_DESCRIPTOR.unpack(device_descriptor(self._device.speed))
        class_, subclass, protocol, _, vendor, product, version = fields[3:10]
        speed = _SPEEDS[self._device.speed]
        self._send(Packet.DEVICE_CONNECT, _CONNECT.pack(speed, class_, subclass, protocol, vendor, product, version))

    def _describe(self) -> None:
        interface = (bytes([number]).ljust(32, b"\0") for number in (0, _VENDOR_SPECIFIC, 0, 0))
        self._send(Packet.INTERFACE_INFO, _INTERFACES.pack(1, *interface))
        types, packets = bytearray([_TYPE_INVALID] * 32), [0] * 32
        types[0] = types[16] = _TYPE_CONTROL
        for address in ENDPOINTS:
            place = (address & 0x0F) + (16 if address & _TO_HOST else 0)
            types[place], packets[place] = _TYPE_BULK, max_packet_bytes(self._device.speed)
        self._send(Packet.EP_INFO, _ENDPOINTS.pack(bytes(types), bytes(32), bytes(32), *packets))

    def _obey(self, kind: int, number: int, body: bytes) -> None:
        if self._awaits_acknowledgement and kind != Packet.DEVICE_DISCONNECT_ACK:
            return  # sent before the guest saw the device go, and forgotten by it since
        if kind == Packet.CONTROL_PACKET:
            self._control(number, body)
        elif kind == Packet.BULK_PACKET:
            self._bulk(number, body)
        elif kind == Packet.CANCEL_DATA_PACKET:
            self._cancel(number)
        elif kind == Packet.RESET:
            self._device.reset()
        elif kind in (Packet.SET_CONFIGURATION, Packet.GET_CONFIGURATION):
            self._configuration(number, body)
        elif kind in (Packet.SET_ALT_SETTING, Packet.GET_ALT_SETTING):
            self._alternate_setting(number, body)
        elif kind == Packet.DEVICE_DISCONNECT_ACK:
            self._awaits_acknowledgement = False
            self._transfers.look()
            self._connect()  # it may have come back before the guest had seen it go
        # Other packets are for kinds of endpoints that the device has not got, or about the guest's filters.

    def _control(self, number: int, body: bytes) -> None:
        endpoint, request, kind, _, value, index, n_bytes = _CONTROL.unpack_from(body)
        setup = SETUP.pack(kind, request, value, index, n_bytes)
        outcome, data = control(self._device, setup, body[_CONTROL.size :])
        is_to_host = bool(kind & _TO_HOST)
        n_done = 0 if outcome is not Outcome.DONE else len(data) if is_to_host else n_bytes
        header = _CONTROL.pack(endpoint, request, kind, _STATUS[outcome], value, index, n_done)
        self._send(Packet.CONTROL_PACKET, header, number, data if is_to_host else b"")

    def _bulk(self, number: int, body: bytes) -> None:
        endpoint, _, low, _, high = _BULK.unpack_from(body)
        n_bytes = low | high << 16
        if endpoint & _TO_HOST:
            self._transfers.submit(Transfer(number, endpoint, n_bytes))
            return
        outcome = write(self._device, endpoint, body[_BULK.size :])
        self._send_bulk(number, endpoint, _STATUS[outcome], n_bytes if outcome is Outcome.DONE else 0)

    def _cancel(self, number: int) -> None:
        transfer = self._transfers.cancel(number)
        if transfer is not None:
            self._send_bulk(number, transfer.endpoint, PacketStatus.CANCELLED, 0)
            return
        # QEMU cancels only what it has no answer to, and drops the answer that crosses the cancelling.
        self._transfers.take_back(number)

    def _configuration(self, number: int, body: bytes) -> None:
        status = PacketStatus.SUCCESS
        if body:
            setup = SETUP.pack(0, Request.SET_CONFIGURATION, body[0], 0, 0)
            status = _STATUS[control(self._device, setup)[0]]
            self._describe()
        self._send(Packet.CONFIGURATION_STATUS, bytes([status, self._device.configuration]), number)

    def _alternate_setting(self, number: int, body: bytes) -> None:
        interface, alternate = body[0], body[1] if len(body) > 1 else 0
        setup = SETUP.pack(_TO_INTERFACE, Request.SET_INTERFACE, alternate, interface, 0)
        status = _STATUS[control(self._device, setup)[0]]
        self._send(Packet.ALT_SETTING_STATUS, bytes([status, interface, 0]), number)

    def _answer(self, transfer: Transfer, outcome: Outcome, data: bytes | memoryview) -> None:
        self._send_bulk(transfer.number, transfer.endpoint, _STATUS[outcome], len(data), data)

    def _send_bulk(
        self, number: int, endpoint: int, status: PacketStatus, n_bytes: int, data: bytes | memoryview = b""
    ) -> None:
        header = _BULK.pack(endpoint, status, n_bytes & 0xFFFF, 0, n_bytes >> 16)
        self._send(Packet.BULK_PACKET, header, number, data)

    def _send(self, kind: Packet, header: bytes = b"", number: int = 0, data: bytes | memoryview = b"") -> None:
        n_bytes = len(header) + len(data)
        self._link.send(b"".join((_HEADER.pack(kind, n_bytes, number), header, data)))


def serve_usbredir(device: UsbDevice, port: int = PORT) -> Server:
    """Offer a device to virtual machines on this computer, until the server is closed."""
    return Server(UsbRedir(device).converse, port)
