"""What an error of the USB stack means to a user, and what there is to do about it.

# Ref: errno of each libusb error: pyusb 1.3.1 `backend/libusb1.py` (`_libusb_errno`); what a pulled device gives, and
#      the rule for udev: daq_gui reference 4.1 and 4.2.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from firmware_iface.errors import Disconnected, Stalled, TransportError, TransportTimeout
from firmware_iface.wire import PRODUCT_ID, VENDOR_ID

UDEV_VENDOR = f'{{idVendor}}=="{VENDOR_ID:04x}"'
"""By which a rule that tells of our boards is known."""
UDEV_RULE = (
    f'SUBSYSTEM=="usb", ATTR{UDEV_VENDOR}, ATTR{{idProduct}}=="{PRODUCT_ID:04x}", '
    'MODE="0660", GROUP="plugdev", TAG+="uaccess"'
)
"""What lets a Linux user open the device without being root: who sits at the machine, and who is in the group."""
UDEV_RULE_PATH = "/etc/udev/rules.d/60-mpxct.rules"
"""uaccess is given out by a rule numbered 73, so this one must sort before it."""
PLUG_HINT = (
    "check the cable and the board's power; on Linux, allow yourself the device by a file "
    f"{UDEV_RULE_PATH} that says {UDEV_RULE}, then plug it in again; mpxct doctor tells what is missing"
)
_GONE = {errno.ENODEV, errno.ENXIO, errno.ESHUTDOWN}


def error_of(number: int | None, doing: str, cause: object) -> TransportError:
    """Return the error that a transfer's errno stands for.

    Parameters
    ----------
    number : int or None
        errno, as both bindings give it.
    doing : str
        What was going on, for the message.
    cause : object
        What the binding says, for those errors that have no better words.
    """
    if number in _GONE:
        return Disconnected(f"the detector left the bus while {doing}", hint=PLUG_HINT)
    if number == errno.ETIMEDOUT:
        return TransportTimeout(f"the detector did not answer: {doing}")
    if number == errno.EPIPE:
        return Stalled(f"the detector stalled while {doing}")
    if number == errno.EACCES:
        return TransportError(f"not allowed to use the detector: {doing}", hint=PLUG_HINT)
    if number == errno.EBUSY:
        return TransportError(
            f"another program holds the detector: {doing}", hint="close it; mpxct doctor tells which it is"
        )
    if number == errno.ENOMEM:
        return TransportError(
            f"no memory for USB transfers while {doing}",
            hint="raise the limit: echo 64 | sudo tee /sys/module/usbcore/parameters/usbfs_memory_mb",
        )
    return TransportError(f"USB failed while {doing}: {cause}")


def expect_all_sent(n_sent: int, n_bytes: int) -> None:
    """Refuse a write of which the board took a part only: its time ran out in the middle.

    Raises
    ------
    TransportTimeout
    """
    if n_sent != n_bytes:
        raise TransportTimeout(f"the device took {n_sent} of {n_bytes} bytes of a command")


@contextmanager
def forgetting_the_rest(forget_command: Callable[[], object]) -> Iterator[None]:
    """Let the board forget what it took of a command, where sending it fails; or it takes the next one for its rest."""
    try:
        yield
    except Disconnected:
        raise
    except BaseException:  # also Ctrl-C in the middle of it
        with suppress(TransportError):  # the failure itself is what the caller must hear of
            forget_command()
        raise


def no_board(serial: str, address: str) -> Disconnected:
    """Return the error of a bus without the wanted board."""
    wanted = f" with serial number {serial}" if serial else ""
    return Disconnected(f"no detector {VENDOR_ID:04x}:{PRODUCT_ID:04x}{wanted} on the bus of {address}", hint=PLUG_HINT)
