"""What carries the bytes between host and board, found by the scheme of its URL."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Protocol, runtime_checkable

from firmware_iface.errors import TransportError, WrongUsage

ENTRY_POINTS = "mpxct.transports"
"""The one registry of plugins: scheme to a function of the address that returns a pyusb backend, a `Transport`, or a
whole detector.

A module that can tell what is there has a function ``list_devices`` besides, which returns URLs and a line on each.
"""
BY_NAME = {"merlin://HOST": "a Merlin readout on the network (TCP 6341 and 6342); write its name for HOST"}
"""What is reached by its name only."""


@runtime_checkable
class Transport(Protocol):
    """Bytes out, and bytes in on two ways that do not block each other; errors are those of `TransportError`."""

    def write(self, data: bytes) -> None:
        """Send one command.

        Raises
        ------
        Stalled, TransportTimeout
            The board did not take all of it, and has forgotten what it took: it may be sent again.
        """
        ...

    def forget_command(self) -> None:
        """Let the board throw away what it has of commands that it has not begun to execute."""
        ...

    def abort(self) -> None:
        """Let the board abort its run at once, beside the commands; it has done so when this returns.

        Raises
        ------
        Stalled
            The board does not know such a request.
        """
        ...

    def make_safe(self) -> None:
        """Let the board switch the beam off and stop the stage at once, beside the commands.

        Raises
        ------
        Stalled
            The board does not know such a request.
        """
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


def open_plugin(url: str) -> Any:
    """Open what a URL names, such as ``usb:``, ``sim:demo?seed=2`` or ``merlin://host``, as its plugin returns it.

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
    return known[scheme].load()(address)


def as_transport(opened: Any, url: str) -> Transport:
    """Return what a plugin opened as a transport; a pyusb backend is wrapped."""
    if isinstance(opened, Transport):
        return opened
    from firmware_iface.usb_transport import UsbTransport  # pyusb is only for those who use it

    return UsbTransport(opened, url)


def list_devices() -> dict[str, str]:
    """Return the URL of every detector that can be opened here, and a line on each; nothing is opened.

    What keeps a scheme from looking stands in the line of its bare URL.
    """
    listed: dict[str, str] = {}
    for entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name):
        look = getattr(import_module(entry.module), "list_devices", None)
        if look is None:
            continue
        try:
            listed |= look()
        except TransportError as error:
            listed[f"{entry.name}:"] = str(error)
    return {**listed, **BY_NAME}
