"""The simulated readout board on a USB bus: descriptors, endpoints, and a backend that pyusb takes for libusb.

Everything the host sees is what a USB device shows: descriptors as bytes, control requests, three bulk endpoints, and
libusb's errors. `open_simulated` builds the whole instrument behind it from an address such as ``demo?seed=2``.

# Ref: descriptors and standard requests: USB 2.0 specification, chapter 9.
# Ref: error codes: libusb 1.0 `libusb.h` (enum libusb_error), and the errno that pyusb 1.3 `backend/libusb1.py` gives.
"""
# The methods' signatures are pyusb's, used or not; its abstract class gives them no return types.
# ruff: noqa: ARG002
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import errno
import struct
import threading
from array import array
from collections.abc import Iterator
from types import SimpleNamespace
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import usb.backend
import usb.core
from numpy.typing import NDArray

from firmware_iface import wire
from firmware_iface.errors import WrongUsage
from sim.board import Board
from sim.chip import SimulatedChip
from sim.faults import FAULT_KEYS, faults_of_query
from sim.sensor import Settings

MANUFACTURER, PRODUCT = "mpxct", "Simulated Medipix3RX readout board"
INSTRUMENTS = ("demo",)
DEFAULT_SEED = 1

_VENDOR_SPECIFIC, _BULK, _HIGH_SPEED = 0xFF, 2, 3
_GET_DESCRIPTOR, _STRING_DESCRIPTOR, _ENGLISH_US = 6, 3, 0x0409
_CONTROL_IN = 0x80

_DEVICE_DESCRIPTOR = struct.Struct("<BBHBBBBHHHBBBB")
_CONFIGURATION_DESCRIPTOR = struct.Struct("<BBHBBBBB")
_INTERFACE_DESCRIPTOR = struct.Struct("<BBBBBBBBB")
_ENDPOINT_DESCRIPTOR = struct.Struct("<BBBBHB")
_FIELD_NAMES = {
    _DEVICE_DESCRIPTOR: "bLength bDescriptorType bcdUSB bDeviceClass bDeviceSubClass bDeviceProtocol bMaxPacketSize0 "
    "idVendor idProduct bcdDevice iManufacturer iProduct iSerialNumber bNumConfigurations",
    _CONFIGURATION_DESCRIPTOR: "bLength bDescriptorType wTotalLength bNumInterfaces bConfigurationValue iConfiguration "
    "bmAttributes bMaxPower",
    _INTERFACE_DESCRIPTOR: "bLength bDescriptorType bInterfaceNumber bAlternateSetting bNumEndpoints bInterfaceClass "
    "bInterfaceSubClass bInterfaceProtocol iInterface",
    _ENDPOINT_DESCRIPTOR: "bLength bDescriptorType bEndpointAddress bmAttributes wMaxPacketSize bInterval",
}

DEVICE_BYTES = _DEVICE_DESCRIPTOR.pack(
    _DEVICE_DESCRIPTOR.size, 1, 0x0200, _VENDOR_SPECIFIC, 0, 0, 64, wire.VENDOR_ID, wire.PRODUCT_ID, 0x0100, 1, 2, 3, 1
)
ENDPOINTS = (wire.EP_COMMAND, wire.EP_REPLY, wire.EP_FRAMES)
CONFIGURATION_BYTES = (
    _CONFIGURATION_DESCRIPTOR.pack(9, 2, 9 + 9 + 7 * len(ENDPOINTS), 1, 1, 0, 0x80, 250)
    + _INTERFACE_DESCRIPTOR.pack(9, 4, 0, 0, len(ENDPOINTS), _VENDOR_SPECIFIC, 0, 0, 0)
    + b"".join(_ENDPOINT_DESCRIPTOR.pack(7, 5, address, _BULK, wire.MAX_PACKET_BYTES, 0) for address in ENDPOINTS)
)


class SimulatedUsb(usb.backend.IBackend):
    """A USB bus with one simulated board on it, as a pyusb backend.

    One thread may read frames while another sends commands: every access to the board takes one lock, and a read with
    nothing to give waits, without the lock, for what a command may bring.
    """

    def __init__(self, board: Board, serial: str) -> None:
        self._board = board
        self._strings = {1: MANUFACTURER, 2: PRODUCT, 3: serial}
        self._changed = threading.Condition()
        self._is_pulled = False
        self._configuration = 0
        self._owner: object | None = None
        self._halted: set[int] = set()
        self._sources = {
            wire.EP_REPLY: (board.pending_reply_bytes, board.take_reply_bytes),
            wire.EP_FRAMES: (board.pending_frame_bytes, board.take_frame_bytes),
        }

    def unplug(self) -> None:
        """Pull the plug."""
        with self._changed:
            self._is_pulled = True
            self._changed.notify_all()

    def halt(self, endpoint: int) -> None:
        """Let an endpoint answer STALL until the host clears it."""
        with self._changed:
            self._halted.add(endpoint)
            self._changed.notify_all()

    # What pyusb asks of a backend

    def enumerate_devices(self) -> Iterator[Board]:
        """Yield the devices on the bus: one, or none once it is unplugged."""
        with self._changed:
            return iter([] if self._is_gone else [self._board])

    def get_parent(self, dev: Board) -> None:
        """Return the hub: there is none."""

    def get_device_descriptor(self, dev: Board) -> SimpleNamespace:
        """Return the device descriptor, and where on the bus it is."""
        place = {"bus": 1, "address": 2, "speed": _HIGH_SPEED, "port_number": 1, "port_numbers": (1,)}
        return _fields(_DEVICE_DESCRIPTOR, DEVICE_BYTES, 0, **place)

    def get_configuration_descriptor(self, dev: Board, config: int) -> SimpleNamespace:
        """Return the only configuration."""
        _refuse_index("configuration", config, 1)
        return _fields(_CONFIGURATION_DESCRIPTOR, CONFIGURATION_BYTES, 0, extra_descriptors=[])

    def get_interface_descriptor(self, dev: Board, intf: int, alt: int, config: int) -> SimpleNamespace:
        """Return the only interface."""
        _refuse_index("interface", intf, 1)
        _refuse_index("alternate setting", alt, 1)
        return _fields(_INTERFACE_DESCRIPTOR, CONFIGURATION_BYTES, 9, extra_descriptors=[])

    def get_endpoint_descriptor(self, dev: Board, ep: int, intf: int, alt: int, config: int) -> SimpleNamespace:
        """Return one of the three bulk endpoints."""
        _refuse_index("endpoint", ep, len(ENDPOINTS))
        extra = {"bRefresh": 0, "bSynchAddress": 0, "extra_descriptors": []}
        return _fields(_ENDPOINT_DESCRIPTOR, CONFIGURATION_BYTES, 18 + 7 * ep, **extra)

    def open_device(self, dev: Board) -> object:
        """Return a handle; each opening has its own, which can claim the interface."""
        with self._changed:
            self._expect_present()
            return object()

    def close_device(self, dev_handle: object) -> None:
        """Give back what the handle claimed."""
        self.release_interface(dev_handle, 0)

    def set_configuration(self, dev_handle: object, config_value: int) -> None:
        """Select the configuration; busy while somebody holds the interface."""
        with self._changed:
            self._expect_present()
            if self._owner is not None:
                raise _busy()
            if config_value not in (0, 1):
                raise usb.core.USBError("Entity not found", -5, errno.ENOENT)
            self._configuration = config_value

    def get_configuration(self, dev_handle: object) -> int:
        """Return the configuration in force, 0 for none."""
        with self._changed:
            self._expect_present()
            return self._configuration

    def set_interface_altsetting(self, dev_handle: object, intf: int, altsetting: int) -> None:
        """Select the only alternate setting."""
        with self._changed:
            self._expect_present()
            _refuse_index("alternate setting", altsetting, 1)

    def claim_interface(self, dev_handle: object, intf: int) -> None:
        """Take the interface for this handle."""
        with self._changed:
            self._expect_present()
            if self._owner not in (None, dev_handle):
                raise _busy()
            self._owner = dev_handle

    def release_interface(self, dev_handle: object, intf: int) -> None:
        """Give the interface back, if this handle holds it."""
        with self._changed:
            if self._owner is dev_handle:
                self._owner = None

    def is_kernel_driver_active(self, dev_handle: object, intf: int) -> bool:
        """No kernel driver binds to a vendor-specific interface."""
        return False

    def detach_kernel_driver(self, dev_handle: object, intf: int) -> None:
        """There is no driver to detach."""
        raise usb.core.USBError("Entity not found", -5, errno.ENOENT)

    attach_kernel_driver = detach_kernel_driver

    def clear_halt(self, dev_handle: object, ep: int) -> None:
        """End the STALL of an endpoint."""
        with self._changed:
            self._expect_present()
            self._halted.discard(ep)

    def reset_device(self, dev_handle: object) -> None:
        """Reset the port; the board keeps its state."""
        with self._changed:
            self._expect_present()
            self._halted.clear()

    def bulk_write(self, dev_handle: object, ep: int, intf: int, data: array[int], timeout: int) -> int:
        """Send bytes of commands."""
        with self._changed:
            self._expect_usable(dev_handle, ep, {wire.EP_COMMAND})
            self._board.receive(data.tobytes())
            self._changed.notify_all()
        return len(data) * data.itemsize

    def bulk_read(self, dev_handle: object, ep: int, intf: int, buff: array[int], timeout: int) -> int:
        """Fill a buffer from one transfer: one reply, or one frame, or as much of it as fits.

        Waits up to `timeout` ms (0: for ever) for a command of another thread to bring something.
        """
        view = memoryview(buff).cast("B")
        with self._changed:
            self._changed.wait_for(
                lambda: self._expect_usable(dev_handle, ep, set(self._sources)) or self._sources[ep][0](),
                timeout / 1000 if timeout else None,
            )
            pending_bytes, take_bytes = self._sources[ep]
            n_bytes = min(len(view), pending_bytes())
            if n_bytes == 0:
                self._expect_present()  # the last frame before an unplugging may have been lost on the way
                raise usb.core.USBTimeoutError("Operation timed out", -7, errno.ETIMEDOUT)
            if pending_bytes() > len(view) and len(view) % wire.MAX_PACKET_BYTES:
                raise usb.core.USBError("Overflow", -8, errno.EOVERFLOW)
            view[:n_bytes] = take_bytes(n_bytes)
        return n_bytes

    def ctrl_transfer(
        self,
        dev_handle: object,
        bmRequestType: int,
        bRequest: int,
        wValue: int,
        wIndex: int,
        data: array[int],
        timeout: int,
    ) -> int:
        """Answer the requests for string descriptors, and stall every other."""
        with self._changed:
            self._expect_present()
        kind, index = divmod(wValue, 256)
        is_string = (bmRequestType, bRequest, kind) == (_CONTROL_IN, _GET_DESCRIPTOR, _STRING_DESCRIPTOR)
        if not is_string or index not in (0, *self._strings):
            raise _stall()
        text = self._strings[index].encode("utf-16-le") if index else struct.pack("<H", _ENGLISH_US)
        answer = bytes([len(text) + 2, _STRING_DESCRIPTOR]) + text
        view = memoryview(data).cast("B")
        n_bytes = min(len(view), len(answer))
        view[:n_bytes] = answer[:n_bytes]
        return n_bytes

    # The lock is held in all of these

    @property
    def _is_gone(self) -> bool:
        return self._is_pulled or self._board.is_unplugged

    def _expect_present(self) -> None:
        if self._is_gone:
            raise usb.core.USBError("No such device (it may have been disconnected)", -4, errno.ENODEV)

    def _expect_usable(self, dev_handle: object, ep: int, endpoints: set[int]) -> None:
        self._expect_present()
        if self._owner not in (None, dev_handle):
            raise _busy()
        if ep not in endpoints:
            raise usb.core.USBError("Entity not found", -5, errno.ENOENT)
        if ep in self._halted:
            raise _stall()


def _fields(layout: struct.Struct, raw: bytes, offset: int, **more: object) -> SimpleNamespace:
    names = _FIELD_NAMES[layout].split()
    return SimpleNamespace(**dict(zip(names, layout.unpack_from(raw, offset), strict=True)), **more)


def _refuse_index(what: str, index: int, n: int) -> None:
    if not 0 <= index < n:
        raise IndexError(f"there is no {what} {index}; the device has {n}")


def _busy() -> usb.core.USBError:
    return usb.core.USBError("Resource busy", -6, errno.EBUSY)


def _stall() -> usb.core.USBError:
    return usb.core.USBError("Pipe error", -9, errno.EPIPE)


def open_simulated(address: str) -> SimulatedUsb:
    """Build a simulated instrument and put it on a bus of its own.

    Parameters
    ----------
    address : str
        Name of the instrument and its options, such as ``demo?seed=2&drop=17&unplug_after=100``. The same address
        gives the same instrument, and the same data for the same commands.

    Raises
    ------
    WrongUsage
        A name or an option that is not known, or a value that cannot be.
    """
    parts = urlsplit(address)
    if parts.path not in INSTRUMENTS:
        raise WrongUsage(
            f"there is no simulated instrument {parts.path!r}; known: {', '.join(INSTRUMENTS)}",
            hint="for example sim:demo or sim:demo?seed=2",
        )
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = sorted(set(query) - {"seed", *FAULT_KEYS})
    if unknown:
        raise WrongUsage(f"unknown option {', '.join(unknown)} in {address!r}; known: seed, {', '.join(FAULT_KEYS)}")
    seed = _seed_of(query.pop("seed", str(DEFAULT_SEED)))
    faults = faults_of_query(query)

    from sim.gantry import Gantry  # the scene costs tables and kernels: only for who opens it
    from sim.sensor import Sensor

    gantry, sensor = Gantry(seed=seed), Sensor(seed=seed)
    rng = np.random.default_rng((seed, 1))  # not the sequence that drew the pixels' truth

    def front_end(duration_s: float, settings: Settings) -> NDArray[np.uint32]:
        photons, energies_kev = gantry.photons(duration_s)
        return sensor.expose(photons, energies_kev, duration_s, settings, rng)

    serial = f"DEMO-{seed}"
    board = Board(SimulatedChip(front_end, chip_id=_chip_id_of(seed)), gantry.line, serial, faults)
    return SimulatedUsb(board, serial)


def _seed_of(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise WrongUsage(f"seed is {text!r}; allowed: a whole number from 0 to 999999999")
    return int(text)


def _chip_id_of(seed: int) -> int:
    """Give every seed its own chip: another wafer of the same letter and number; seed 1 is W529_F5."""
    wafer, letter, number = (528 + seed) % 4096, 6, 5
    return wafer << 8 | letter << 4 | number
