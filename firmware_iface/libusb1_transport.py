"""USB bytes over python-libusb1: as `usb_transport`, with several transfers posted at once.

A frame ends its transfer, so one read at a time leaves the bus idle between two frames while Python turns round; a
posted transfer is taken up by the host controller at once. The transfers' buffers are the ring: those that are full
wait until somebody takes them, and so does the board.

# Ref: 4 transfers of 1 MB gave 258 MB/s where reads one by one gave 160 to 176, and the 16th is more than Linux allows
#      by default: daq_gui reference 4.1.
# Ref: codes of errors and of transfers' ends: libusb 1.0 `libusb.h`, enum libusb_error and libusb_transfer_status.
"""

from __future__ import annotations

import errno
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from math import ceil
from queue import Empty, SimpleQueue
from typing import Any

from firmware_iface.errors import Disconnected, Stalled, TransportError
from firmware_iface.usb_errors import error_of, expect_all_sent, forgetting_the_rest, no_board
from firmware_iface.wire import ABORT_REQUEST, EP_COMMAND, EP_FRAMES, EP_REPLY, PRODUCT_ID, SAFE_REQUEST, VENDOR_ID

TRANSFER_BYTES = 1 << 20
N_TRANSFERS = 6
"""Two boards then stay under the 16 MB that Linux lends to all USB transfers together."""
REPLY_BUFFER_BYTES = 1 << 18
WRITE_TIMEOUT_S = 5.0
CONTROL_TIMEOUT_S = 5.0
VENDOR_OUT = 0x40
POLL_S = 0.1
INTERFACE = 0
_SETTLE_S = 2.0
_ERRNO_OF_CODE: Mapping[int, int] = {
    -1: errno.EIO, -2: errno.EINVAL, -3: errno.EACCES, -4: errno.ENODEV, -5: errno.ENOENT, -6: errno.EBUSY,
    -7: errno.ETIMEDOUT, -8: errno.EOVERFLOW, -9: errno.EPIPE, -10: errno.EINTR, -11: errno.ENOMEM, -12: errno.ENOSYS,
}  # fmt: skip
_COMPLETED = 0
_ERRNO_OF_STATUS: Mapping[int, int] = {
    1: errno.EIO, 2: errno.ETIMEDOUT, 3: errno.ECANCELED, 4: errno.EPIPE, 5: errno.ENODEV, 6: errno.EOVERFLOW,
}  # fmt: skip


class Libusb1Transport:
    """A board on USB, its frames by transfers that are posted ahead.

    Parameters
    ----------
    address : str
        What the user called it, for messages.
    serial : str
        Serial number of the wanted board; without it, the first board found.
    binding : module, optional
        What to use in place of the module ``usb1``.

    Raises
    ------
    Disconnected
        No such device on the bus.
    TransportError
        It is there, and cannot be opened; or the package is not installed.
    """

    def __init__(self, address: str = "usb:?async=1", *, serial: str = "", binding: Any = None) -> None:
        self._binding = binding or _load()
        self._opening = threading.Lock()
        self._handle: Any = None
        self._context = self._binding.USBContext()
        try:
            with _told_as_ours(self._binding, f"opening {address}"):
                self._context.open()
                self._handle = _open(self._binding, self._context, serial)
        except BaseException:
            self._context.close()
            raise
        if self._handle is None:
            self._context.close()
            raise no_board(serial, address)
        self._posted = _PostedTransfers(self._binding, self._context, self._handle)
        self._stop_posted = weakref.finalize(self, self._posted.stop)

    def write(self, data: bytes) -> None:
        """Send one command; where the board did not take all of it, let it forget the rest."""
        handle = self._open_handle
        with forgetting_the_rest(self.forget_command), _told_as_ours(self._binding, "sending a command"):
            n_sent = handle.bulkWrite(EP_COMMAND, data, _milliseconds(WRITE_TIMEOUT_S))
            expect_all_sent(n_sent, len(data))

    def forget_command(self) -> None:
        """Clear the halt of the command endpoint, which lets the board forget a command that broke off."""
        with _told_as_ours(self._binding, "clearing the command endpoint"):
            self._open_handle.clearHalt(EP_COMMAND)

    def abort(self) -> None:
        """Make the vendor request that aborts the run beside the commands."""
        self._request(ABORT_REQUEST, "aborting")

    def make_safe(self) -> None:
        """Make the vendor request that switches the beam off and stops the stage, beside the commands."""
        self._request(SAFE_REQUEST, "making the gantry safe")

    def _request(self, number: int, doing: str) -> None:
        with _told_as_ours(self._binding, doing):
            self._open_handle.controlWrite(VENDOR_OUT, number, 0, 0, b"", _milliseconds(CONTROL_TIMEOUT_S))

    def read_reply(self, timeout_s: float) -> bytes:
        """Return one transfer of the reply endpoint."""
        handle = self._open_handle
        with _told_as_ours(self._binding, f"waiting {timeout_s:.3g} s for a reply", handle, EP_REPLY):
            try:
                return bytes(handle.bulkRead(EP_REPLY, REPLY_BUFFER_BYTES, _milliseconds(timeout_s)))
            except self._binding.USBErrorTimeout as error:
                if error.received:  # the time may run out in the middle of a reply
                    return bytes(error.received)
                raise

    def read_frames(self, n_bytes: int, timeout_s: float) -> memoryview:
        """Return up to ``n_bytes`` of the stream of frames, empty if none came in time.

        What is returned is overwritten by the next call.
        """
        with self._opening:
            _ = self._open_handle
            self._posted.start()
        return self._posted.take(n_bytes, timeout_s)

    def close(self) -> None:
        """Release the device; a second call does nothing."""
        with self._opening:
            handle, self._handle = self._handle, None
            if handle is None:
                return
            self._stop_posted()
            with suppress(self._binding.USBError):  # it may be gone already
                handle.releaseInterface(INTERFACE)
            handle.close()
            self._context.close()

    @property
    def _open_handle(self) -> Any:
        if self._handle is None:
            raise Disconnected("the USB device is closed", hint="open it again")
        return self._handle


class _PostedTransfers:
    """Transfers of the frame endpoint, and the thread that libusb handles their ends in.

    After an error none is posted; what came whole is given out, and the next `start` posts them again.
    """

    def __init__(self, binding: Any, context: Any, handle: Any) -> None:
        self._binding, self._context, self._handle = binding, context, handle
        self._done: SimpleQueue[Any] = SimpleQueue()
        self._kept: deque[Any] = deque()
        self._transfers: list[Any] = []
        self._parked: list[Any] = []
        self._taken: Any = None
        self._rest = memoryview(b"")
        self._is_halted = self._is_stopping = False
        self._posting = threading.Lock()  # nothing is posted once stopping has begun
        self._thread = threading.Thread(target=self._handle_events, name="usb events", daemon=True)

    def start(self) -> None:
        """Post what is not posted."""
        if not self._transfers:
            self._transfers = [self._handle.getTransfer() for _ in range(N_TRANSFERS)]
            for transfer in self._transfers:
                transfer.setBulk(EP_FRAMES, TRANSFER_BYTES, callback=self._done.put)
            self._parked = list(self._transfers)
            self._thread.start()
        if self._parked:
            with _told_as_ours(self._binding, "posting transfers"):
                if self._is_halted:
                    self._handle.clearHalt(EP_FRAMES)
                    self._is_halted = False
                while self._parked:
                    self._post(self._parked[0])
                    del self._parked[0]

    def take(self, n_bytes: int, timeout_s: float) -> memoryview:
        """Return what came, at most `n_bytes`; it is valid until the next call."""
        deadline_s = time.monotonic() + max(timeout_s, 0.001)
        while not self._rest:
            self._give_back()
            transfer = self._next(deadline_s - time.monotonic())
            if transfer is None:
                return self._rest
            self._taken = transfer
            self._rest = memoryview(transfer.getBuffer())[: transfer.getActualLength()]
        taken, self._rest = self._rest[:n_bytes], self._rest[n_bytes:]
        return taken

    def stop(self) -> None:
        """Cancel what is posted and wait until libusb has let go of it; nothing is posted again."""
        with self._posting:
            self._is_stopping = True
        self._cancel()
        if self._thread.is_alive():
            self._thread.join()
        self._done.put(None)

    def _next(self, timeout_s: float) -> Any:
        if self._kept:
            return self._kept.popleft()
        try:
            transfer = self._done.get(timeout=max(timeout_s, 0.0))
        except Empty:
            return None
        if transfer is None or self._is_stopping:
            raise Disconnected("the USB device was closed", hint="open it again")
        if transfer.getStatus() == _COMPLETED:
            return transfer
        error = error_of(_ERRNO_OF_STATUS.get(transfer.getStatus()), "reading frames", "a transfer failed")
        self._is_halted = isinstance(error, Stalled)
        self._parked.append(transfer)
        self._settle()
        raise error

    def _settle(self) -> None:
        """End all transfers after an error; those with data wait in their order."""
        self._cancel()
        deadline_s = time.monotonic() + _SETTLE_S
        while any(transfer.isSubmitted() for transfer in self._transfers) and time.monotonic() < deadline_s:
            time.sleep(0.001)
        with suppress(Empty):
            while (transfer := self._done.get_nowait()) is not None:
                (self._kept if transfer.getActualLength() else self._parked).append(transfer)

    def _cancel(self) -> None:
        for transfer in self._transfers:
            with suppress(self._binding.USBError):  # it may end just now
                if transfer.isSubmitted():
                    transfer.cancel()

    def _give_back(self) -> None:
        transfer, self._taken = self._taken, None
        if transfer is None:
            return
        if self._parked:  # after an error they are posted together
            self._parked.append(transfer)
            return
        with _told_as_ours(self._binding, "posting a transfer"):
            self._post(transfer)

    def _post(self, transfer: Any) -> None:
        with self._posting:
            if not self._is_stopping:
                transfer.submit()

    def _handle_events(self) -> None:
        while not self._is_stopping or any(transfer.isSubmitted() for transfer in self._transfers):
            with suppress(self._binding.USBError):  # what befell a transfer, the transfer tells
                self._context.handleEventsTimeout(POLL_S)


def _load() -> Any:
    """Return the module ``usb1`` on top of the libusb that pyusb uses too."""
    try:
        import usb1
    except ImportError as error:
        raise TransportError(
            "asynchronous transfers need the package libusb1, which is not installed",
            hint="install the extra: pip install 'mpxct[usb1]'; or leave ?async=1 out of the URL",
        ) from error
    import ctypes

    import libusb_package

    if path := libusb_package.get_library_path():
        usb1.loadLibrary(ctypes.CDLL(str(path)))
    return usb1


def _open(binding: Any, context: Any, serial: str) -> Any:
    """Return a handle of the first board, or of the one with that serial number, its interface claimed; or None."""
    for device in context.getDeviceIterator(skip_on_error=True):
        if (device.getVendorID(), device.getProductID()) != (VENDOR_ID, PRODUCT_ID):
            continue
        handle = device.open()
        try:
            if serial and handle.getSerialNumber() != serial:
                handle.close()
                continue
            with suppress(binding.USBErrorNotSupported):  # only Linux has such drivers
                handle.setAutoDetachKernelDriver(True)
            if handle.getConfiguration() == 0:  # selecting it again is a light reset of the device
                handle.setConfiguration(1)
            handle.claimInterface(INTERFACE)
            handle.clearHalt(EP_COMMAND)  # a program that was killed may have left half a command
        except BaseException:
            handle.close()
            raise
        return handle
    return None


@contextmanager
def _told_as_ours(binding: Any, doing: str, handle: Any = None, endpoint: int = 0) -> Iterator[None]:
    try:
        yield
    except binding.USBError as error:
        ours = error_of(_ERRNO_OF_CODE.get(error.value), doing, error)
        if isinstance(ours, Stalled) and handle is not None:
            with suppress(binding.USBError):
                handle.clearHalt(endpoint)  # or every later transfer stalls too
        raise ours from error


def _milliseconds(timeout_s: float) -> int:
    return max(ceil(timeout_s * 1000), 1)  # to libusb, 0 is for ever
