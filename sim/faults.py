"""Faults of the way between board and host, on demand and the same every time.

A fault names frames by their number over the life of the device, from 0 (in the first run: the frame's sequence), and
acts on the bytes of that frame after the board made them: what a bad cable, a full buffer or a crashed controller does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from firmware_iface import wire
from firmware_iface.errors import WrongUsage

GARBAGE = wire.FRAME_MAGIC + bytes(range(256)) + wire.FRAME_MAGIC[:2]
"""What `garbage` puts before a frame: it looks like a header, is none, and ends in half a magic word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Which frames of the device's life come to harm, and how.

    Attributes
    ----------
    drop : frozenset of int
        The frame never arrives.
    corrupt : frozenset of int
        One bit in the middle of the frame is flipped.
    truncate : frozenset of int
        The last quarter of the frame is missing.
    duplicate : frozenset of int
        The frame arrives twice.
    garbage : frozenset of int
        Bytes that are no frame come before it.
    unplug_after : int or None
        The device leaves the bus when this many frames were made and read.
    """

    drop: frozenset[int] = frozenset()
    corrupt: frozenset[int] = frozenset()
    truncate: frozenset[int] = frozenset()
    duplicate: frozenset[int] = frozenset()
    garbage: frozenset[int] = frozenset()
    unplug_after: int | None = None

    def __post_init__(self) -> None:
        if self.unplug_after is not None and self.unplug_after < 1:
            raise WrongUsage(f"unplug_after is {self.unplug_after}; allowed: 1 frame or more")

    def spoil(self, number: int, frame: bytes) -> bytes:
        """Return what arrives of a frame's bytes."""
        if number in self.drop:
            return b""
        if number in self.truncate:
            frame = frame[: len(frame) * 3 // 4]
        if number in self.corrupt:
            middle = len(frame) // 2
            frame = frame[:middle] + bytes([frame[middle] ^ 0x10]) + frame[middle + 1 :]
        if number in self.duplicate:
            frame = frame + frame
        return GARBAGE + frame if number in self.garbage else frame

    def is_unplugged(self, n_frames_made: int) -> bool:
        """Say whether the device is gone after so many frames."""
        return self.unplug_after is not None and n_frames_made >= self.unplug_after


NO_FAULTS = Faults()
FAULT_KEYS = ("drop", "corrupt", "truncate", "duplicate", "garbage", "unplug_after")


def faults_of_query(query: Mapping[str, str]) -> Faults:
    """Make faults from the parameters of a device address, such as ``{"drop": "17,23", "unplug_after": "100"}``.

    Raises
    ------
    WrongUsage
        A key that is no fault, or a value that is no frame number.
    """
    unknown = sorted(set(query) - set(FAULT_KEYS))
    if unknown:
        raise WrongUsage(f"unknown fault {', '.join(unknown)}; known: {', '.join(FAULT_KEYS)}")
    numbers = {key: frozenset(_frame_numbers(key, value)) for key, value in query.items()}
    unplug_after = numbers.pop("unplug_after", None)
    if unplug_after is not None and len(unplug_after) != 1:
        raise WrongUsage(f"unplug_after is {query['unplug_after']!r}; allowed: one number of frames")
    return Faults(unplug_after=None if unplug_after is None else min(unplug_after), **numbers)


def _frame_numbers(key: str, value: str) -> list[int]:
    words = value.split(",")
    if not all(word.isascii() and word.isdigit() for word in words):
        raise WrongUsage(f"{key} is {value!r}; allowed: frame numbers from 0, separated by commas")
    return [int(word) for word in words]
