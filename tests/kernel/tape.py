"""A board that plays a tape: what is written comes back as the reply, and numbered frames come as long as it runs.

It stands behind the simulated USB device where the way of the bytes is what is looked at, and the pixels are not.
"""

from __future__ import annotations

import struct

FRAME_BYTES = 98_400
"""A frame packet of one counter of 12 bits: header, information header and matrix."""
GO, HALT = b"go", b"halt"
_NUMBER = struct.Struct("<Q")
_FILL = bytes(range(256)) * (FRAME_BYTES // 256 + 1)


def frame(number: int) -> bytes:
    """Return a frame of the tape."""
    return _NUMBER.pack(number) + _FILL[: FRAME_BYTES - _NUMBER.size]


def frames_of(n_bytes: int) -> bytes:
    """Return the first bytes of the tape."""
    n_frames = -(-n_bytes // FRAME_BYTES)
    return b"".join(map(frame, range(n_frames)))[:n_bytes]


class Tape:
    """What `sim.usb_model.UsbDevice` asks of a board."""

    is_unplugged = False
    has_hiccup = False

    def __init__(self) -> None:
        self._is_running = False
        self._n_frames = 0
        self._frame = memoryview(b"")
        self._reply = b""

    def plug(self) -> None:
        """Be put back on the bus."""

    def forget_broken_command(self) -> None:
        """Nothing is kept of a command: each comes whole."""

    def receive(self, data: bytes) -> None:
        """Start, halt, or keep what was written for the reply."""
        if data in (GO, HALT):
            self._is_running = data == GO
        else:
            self._reply += data

    def pending_reply_bytes(self) -> int:
        """Return how many bytes wait on the reply endpoint."""
        return len(self._reply)

    def take_reply_bytes(self, n: int) -> bytes:
        """Take bytes of the reply."""
        taken, self._reply = self._reply[:n], self._reply[n:]
        return taken

    def pending_frame_bytes(self) -> int:
        """Return how many bytes of a frame wait."""
        if not self._frame and self._is_running:
            self._frame = memoryview(frame(self._n_frames))
            self._n_frames += 1
        return len(self._frame)

    def take_frame_bytes(self, n: int) -> memoryview:
        """Take bytes of a frame."""
        taken, self._frame = self._frame[:n], self._frame[n:]
        return taken

    def take_hiccup(self) -> None:
        """It has none."""
