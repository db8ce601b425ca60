"""A USB/IP server for one simulated device: a Linux or Windows host attaches it as if it were on its own bus.

# Ref: Linux Documentation/usb/usbip_protocol.rst (version 1.1.1); the answer to an UNLINK that came in time is
#      -ECONNRESET: drivers/usb/usbip/stub_rx.c and stub_tx.c.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Mapping
from enum import IntEnum

from sim.usb_link import HungUp, Link, Outcome, Server, Transfer, Transfers, control, write
from sim.usb_model import DEVICE_DESCRIPTOR, Speed, UsbDevice, device_descriptor

PORT = 3240
VERSION = 0x0111
BUS_ID = b"1-1"
MAX_TRANSFER_BYTES = 1 << 24
"""What Linux lets all transfers of a bus hold together, by default."""

_OPERATION = struct.Struct(">HHI")
"""version, code, status."""
_DEVICE = struct.Struct(">256s32sIIIHHHBBBBBB")
"""path, bus id, bus and device number, speed, vendor, product, bcdDevice, class, subclass, protocol, configuration in
force, configurations, interfaces."""
_INTERFACE = struct.Struct(">BBBx")
_N_DEVICES = struct.Struct(">I")
_HEADER = struct.Struct(">IIIII")
"""command, sequence number, device id, direction (1: in), endpoint."""
_SUBMIT = struct.Struct(">IIiii8s")
"""flags, bytes, start frame, packets, interval, setup."""
_UNLINK = struct.Struct(">I24x")
"""sequence number of the transfer to unlink."""
_RETURN = struct.Struct(">IIIIIiIiii8x")
"""The header, status, bytes, start frame, packets, errors."""

_SPEEDS: Mapping[Speed, int] = {Speed.HIGH: 3, Speed.SUPER: 5}
"""By enum usb_device_speed of Linux, where 4 is wireless."""
_STATUS: Mapping[Outcome, int] = {
    Outcome.DONE: 0,
    Outcome.STALL: -errno.EPIPE,
    Outcome.OVERFLOW: -errno.EOVERFLOW,
    Outcome.INVALID: -errno.ENOENT,
    Outcome.GONE: -errno.ENODEV,
}


class Operation(IntEnum):
    """What a connection opens with, and the answers."""

    REQUEST_IMPORT = 0x8003
    REPLY_IMPORT = 0x0003
    REQUEST_LIST = 0x8005
    REPLY_LIST = 0x0005


class OperationStatus(IntEnum):
    """Status of an answer to an operation."""

    OK = 0
    BUSY = 2
    NO_DEVICE = 4


class Command(IntEnum):
    """Commands of a host that has imported the device, and the answers."""

    SUBMIT = 1
    UNLINK = 2
    RETURN_SUBMIT = 3
    RETURN_UNLINK = 4


class UsbIp:
    """The server's side of the protocol, for one device that one host at a time may import."""

    def __init__(self, device: UsbDevice) -> None:
        self._device = device
        self._owner: Link | None = None

    def converse(self, link: Link) -> None:
        """Answer the operations of a connection until the host hangs up or the device leaves the bus."""
        version, operation, _ = _OPERATION.unpack(link.receive(_OPERATION.size))
        if version != VERSION:
            return
        if operation == Operation.REQUEST_LIST:
            link.send(self._list())
        elif operation == Operation.REQUEST_IMPORT:
            self._import(link, link.receive(32).rstrip(b"\0"))

    def _list(self) -> bytes:
        answer = _OPERATION.pack(VERSION, Operation.REPLY_LIST, OperationStatus.OK)
        if self._device.is_gone:
            return answer + _N_DEVICES.pack(0)
        return answer + _N_DEVICES.pack(1) + self._description() + _INTERFACE.pack(0xFF, 0, 0)

    def _import(self, link: Link, bus_id: bytes) -> None:
        with self._device.changed:
            status = OperationStatus.OK
            if bus_id != BUS_ID or self._device.is_gone:
                status = OperationStatus.NO_DEVICE
            elif self._owner is not None:
                status = OperationStatus.BUSY
            else:
                self._owner = link
        answer = _OPERATION.pack(VERSION, Operation.REPLY_IMPORT, status)
        if status is not OperationStatus.OK:
            link.send(answer)
            return
        link.send(answer + self._description())
        try:
            _Host(self._device, link, lambda: self._release(link)).serve()
        finally:
            self._release(link)

    def _release(self, link: Link) -> None:
        with self._device.changed:
            if self._owner is link:
                self._owner = None

    def _description(self) -> bytes:
        fields = DEVICE_DESCRIPTOR.unpack(device_descriptor(self._device.speed))
        class_, subclass, protocol, _, vendor, product, version = fields[3:10]
        return _DEVICE.pack(
            b"/sys/devices/simulated/" + BUS_ID, BUS_ID, 1, 2, _SPEEDS[self._device.speed], vendor, product, version,
            class_, subclass, protocol, self._device.configuration, 1, 1,
        )  # fmt: skip


class _Host:
    """One host that has imported the device."""

    def __init__(self, device: UsbDevice, link: Link, release: Callable[[], None]) -> None:
        self._device, self._link, self._release = device, link, release
        self._is_lost = False

    def serve(self) -> None:
        self._device.reset()  # a host that attaches a device finds it fresh, as after a port reset
        self._transfers = Transfers(self._device, self._answer, self._watch)
        try:
            while True:
                self._obey(*_HEADER.unpack(self._link.receive(_HEADER.size)))
        finally:
            self._transfers.close()

    def _obey(self, command: int, sequence: int, _device: int, is_in: int, endpoint: int) -> None:
        body = self._link.receive(_SUBMIT.size)
        if command == Command.SUBMIT:
            _, n_bytes, _, _, _, setup = _SUBMIT.unpack(body)
            if n_bytes > MAX_TRANSFER_BYTES:
                raise HungUp(f"the host asks for {n_bytes} bytes")
            data = b"" if is_in else self._link.receive(n_bytes)
            with self._device.changed:
                self._expect_device()
                self._submit(sequence, endpoint, setup, n_bytes, data, is_in=bool(is_in))
        elif command == Command.UNLINK:
            (victim,) = _UNLINK.unpack(body)
            with self._device.changed:  # or an answer to the victim could come between
                was_under_way = self._transfers.cancel(victim) is not None
                self._send(Command.RETURN_UNLINK, sequence, -errno.ECONNRESET if was_under_way else 0, 0)
        else:
            raise HungUp(f"the host sends command {command}")

    def _expect_device(self) -> None:
        if self._is_lost:  # it may be back on the bus, but it is another host's to import
            raise HungUp

    def _submit(self, sequence: int, endpoint: int, setup: bytes, n_bytes: int, data: bytes, *, is_in: bool) -> None:
        came = b""
        if endpoint == 0:
            outcome, came = control(self._device, setup, data)
        elif is_in:
            self._transfers.submit(Transfer(sequence, endpoint | 0x80, n_bytes))
            return
        else:
            outcome = write(self._device, endpoint, data)
        n_done = n_bytes if outcome is Outcome.DONE and not is_in else len(came)
        self._send(Command.RETURN_SUBMIT, sequence, _STATUS[outcome], n_done, came)

    def _answer(self, transfer: Transfer, outcome: Outcome, data: bytes | memoryview) -> None:
        self._send(Command.RETURN_SUBMIT, transfer.number, _STATUS[outcome], len(data), data)

    def _watch(self, is_present: bool) -> None:  # noqa: ARG002
        self._is_lost = True
        self._release()
        self._link.hang_up()  # which is how a host hears that its device is gone

    def _send(self, command: Command, sequence: int, status: int, n_bytes: int, data: bytes | memoryview = b"") -> None:
        self._link.send(b"".join((_RETURN.pack(command, sequence, 0, 0, 0, status, n_bytes, 0, 0, 0), data)))


def serve_usbip(device: UsbDevice, port: int = PORT) -> Server:
    """Offer a device to USB/IP hosts on this computer, until the server is closed."""
    return Server(UsbIp(device).converse, port)
