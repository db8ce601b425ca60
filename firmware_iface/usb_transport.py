"""USB bytes over pyusb: one command endpoint, one for replies, one for frames.

Frames are read into one preallocated buffer, for allocating per read costs more than the transfer; its length is a
multiple of the packet size, because a longer packet than fits is an overflow on real hosts.

# Ref: measured reads and errno of pyusb 1.3.1 with libusb: daq_gui reference 4.1 to 4.3.
"""

from __future__ import annotations

import errno
import threading
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from typing import Any

import usb.core
import usb.util
from usb.backend import IBackend

from firmware_iface.errors import Disconnected, Stalled, TransportError, TransportTimeout
from firmware_iface.wire import EP_COMMAND, EP_FRAMES, EP_REPLY, MAX_PACKET_BYTES, PRODUCT_ID, VENDOR_ID

FRAME_BUFFER_BYTES = 1 << 20
REPLY_BUFFER_BYTES = 1 << 18
WRITE_TIMEOUT_S = 5.0
INTERFACE = 0
UDEV_RULE = (
    f'SUBSYSTEM=="usb", ATTR{{idVendor}}=="{VENDOR_ID:04x}", ATTR{{idProduct}}=="{PRODUCT_ID:04x}", '
    'MODE="0660", TAG+="uaccess"'
)
"""What lets a Linux user open the device without being root; it belongs in a file that sorts before 73."""
_GONE = {errno.ENODEV, errno.ENXIO, errno.ESHUTDOWN}
_PLUG_HINT = (
    "check the cable and the board's power; on Linux, allow yourself the device by a file "
    f"/etc/udev/rules.d/60-mpxct.rules that says {UDEV_RULE}, then plug it in again"
)


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
        self._frames, self._reply = array("B", bytes(FRAME_BUFFER_BYTES)), array("B", bytes(REPLY_BUFFER_BYTES))
        self._reading = threading.Lock()  # closing under a transfer of another thread is undefined in libusb
        with _told_as_ours(f"opening {address}"):
            device = _find(backend, serial)
            if device is None:
                wanted = f" with serial number {serial}" if serial else ""
                raise Disconnected(
                    f"no detector {VENDOR_ID:04x}:{PRODUCT_ID:04x}{wanted} on the bus of {address}", hint=_PLUG_HINT
                )
            try:
                _set_up(device)
            except BaseException:
                usb.util.dispose_resources(device)
                raise
        self._device = device

    def write(self, data: bytes) -> None:
        """Send one command."""
        with self._told_as_ours(EP_COMMAND, "sending a command"):
            n_sent = self._open_device.write(EP_COMMAND, data, _milliseconds(WRITE_TIMEOUT_S))
        if n_sent != len(data):
            raise TransportError(f"the device took {n_sent} of {len(data)} bytes of a command")

    def read_reply(self, timeout_s: float) -> bytes:
        """Return one transfer of the reply endpoint."""
        with self._told_as_ours(EP_REPLY, f"waiting {timeout_s} s for a reply"):
            n_read = self._open_device.read(EP_REPLY, self._reply, _milliseconds(timeout_s))
        return self._reply[:n_read].tobytes()

    def read_frames(self, n_bytes: int, timeout_s: float) -> memoryview:
        """Return up to ``n_bytes`` of the stream of frames, empty if none came in time.

        The number is taken up to whole USB packets. What is returned is overwritten by the next call.
        """
        n_buffer = ceil(n_bytes / MAX_PACKET_BYTES) * MAX_PACKET_BYTES
        if len(self._frames) != n_buffer:
            self._frames = array("B", bytes(n_buffer))
        try:
            with self._reading, self._told_as_ours(EP_FRAMES, "reading frames"):
                n_read = self._open_device.read(EP_FRAMES, self._frames, _milliseconds(timeout_s))
        except TransportTimeout:
            n_read = 0
        return memoryview(self._frames)[:n_read]

    def close(self) -> None:
        """Release the device; a second call does nothing."""
        with self._reading:
            device, self._device = self._device, None
            if device is not None:
                usb.util.dispose_resources(device)

    @property
    def _open_device(self) -> Any:
        if self._device is None:
            raise Disconnected("the USB device is closed", hint="open it again")
        return self._device

    @contextmanager
    def _told_as_ours(self, endpoint: int, doing: str) -> Iterator[None]:
        try:
            with _told_as_ours(doing):
                yield
        except Stalled:
            self._device.clear_halt(endpoint)  # or every later transfer stalls too
            raise


def open_libusb(address: str) -> UsbTransport:
    """Open a board on this computer's USB; the address is its serial number, or nothing for the first board.

    libusb comes from a wheel: it watches the bus itself, so a board that was pulled and plugged in again is found even
    where no udev runs.
    """
    import libusb_package

    backend = libusb_package.get_libusb1_backend()
    if backend is None:
        raise TransportError("libusb cannot be loaded", hint="install the package libusb-package again")
    return UsbTransport(backend, f"usb:{address}", serial=address)


def _find(backend: IBackend, serial: str) -> Any:
    """Return the first board, or the one with that serial number; None when it is not there."""

    def is_wanted(device: Any) -> bool:
        return not serial or device.serial_number == serial

    return usb.core.find(backend=backend, idVendor=VENDOR_ID, idProduct=PRODUCT_ID, custom_match=is_wanted)


def _set_up(device: Any) -> None:
    # Selecting a configuration again is a light reset of the device on Linux: only if none is in force.
    try:
        device.get_active_configuration()
    except usb.core.USBError:
        device.set_configuration()
    usb.util.claim_interface(device, INTERFACE)


@contextmanager
def _told_as_ours(doing: str) -> Iterator[None]:
    """Turn pyusb's errors into those of the house, by errno, which all backends set alike."""
    try:
        yield
    except usb.core.USBError as error:
        if error.errno in _GONE:
            raise Disconnected(f"the detector left the bus while {doing}", hint=_PLUG_HINT) from error
        if error.errno == errno.ETIMEDOUT:
            raise TransportTimeout(f"the detector did not answer: {doing}") from error
        if error.errno == errno.EPIPE:
            raise Stalled(f"the detector stalled while {doing}") from error
        if error.errno == errno.EACCES:
            raise TransportError(f"not allowed to use the detector: {doing}", hint=_PLUG_HINT) from error
        if error.errno == errno.EBUSY:
            raise TransportError(
                f"another program holds the detector: {doing}", hint="close the other program"
            ) from error
        raise TransportError(f"USB failed while {doing}: {error}") from error


def _milliseconds(timeout_s: float) -> int:
    return max(ceil(timeout_s * 1000), 1)  # to libusb, 0 is for ever
