"""What carries the bytes between host and board, found by the scheme of its URL."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Protocol, runtime_checkable

from firmware_iface.errors import WrongUsage

ENTRY_POINTS = "mpxct.transports"
"""The one registry of plugins: scheme to a function of the address that returns a pyusb backend, or a `Transport`."""


@runtime_checkable
class Transport(Protocol):
    """Bytes out, and bytes in on two ways that do not block each other; errors are those of `TransportError`."""

    def write(self, data: bytes) -> None:
        """Send one command."""
        ...

    def read_reply(self, timeout_s: float) -> bytes:
        """Return what has come on the way of replies.

        Raises
        ------
        TransportTimeout
            Nothing came in time.
        """
        ...

    def read_frames(self, n_bytes: int, timeout_s: float) -> memoryview:
        """Return up to ``n_bytes`` of the stream of frames, empty if none came in time.

        What is returned is overwritten by the next call.
        """
        ...

    def close(self) -> None:
        """Give everything back; a second call does nothing."""
        ...


def open_transport(url: str) -> Transport:
    """Open what a URL names, such as ``usb:``, ``usb:SERIAL`` or ``sim:demo?seed=2``.

    Raises
    ------
    WrongUsage
        Nothing is registered for the URL's scheme.
    """
    scheme, _, address = url.partition(":")
    known = entry_points(group=ENTRY_POINTS)
    if scheme not in known.names:
        raise WrongUsage(
            f"no detector can be reached by {url!r}; known schemes: {', '.join(sorted(known.names)) or 'none'}",
            hint="write usb: for a detector on USB, or sim:demo for the simulated one",
        )
    opened = known[scheme].load()(address)
    if isinstance(opened, Transport):
        return opened
    from firmware_iface.usb_transport import UsbTransport  # pyusb is only for those who use it

    return UsbTransport(opened, url)
