"""Faults of the board and of the way to the host, on demand and the same every time.

A fault names frames by their number over the life of the device, from 0 (in the first run: the frame's sequence).
Those of the way act on the bytes of that frame after the board made them: what a bad cable, a full buffer or a crashed
controller does. A storm harms frames at random, by its own seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from types import MappingProxyType

from firmware_iface import wire
from firmware_iface.errors import WrongUsage

GARBAGE = wire.FRAME_MAGIC + bytes(range(256)) + wire.FRAME_MAGIC[:2]
"""What `garbage` puts before a frame: it looks like a header, is none, and ends in half a magic word."""
PIECES = (512, 3072, 1, 65, 4096)
"""Lengths of the transfers in which a frame with `short` comes; the rest is one more."""


class Hiccup(Enum):
    """What the frame endpoint does instead of giving a transfer."""

    STALL = auto()
    ZERO_LENGTH = auto()


Delivery = bytes | Hiccup
"""One transfer of the frame endpoint, or what happens instead."""


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
    reorder : frozenset of int
        The frame arrives behind the one that follows it.
    garbage : frozenset of int
        Bytes that are no frame come before it.
    stall : frozenset of int
        The frame endpoint stalls before it.
    zero : frozenset of int
        A transfer without bytes comes before it.
    short : frozenset of int
        It comes in many short transfers.
    hang : frozenset of int
        The chip does not answer the readout.
    brown_out : frozenset of int
        The board's supply fails for a moment instead of this frame: it starts again with nothing set.
    break_command : frozenset of int
        Transfers of the command endpoint, by their number over the life of the device: it stalls in the middle.
    slow : mapping of int to int
        Before this frame is read, the host is away for the time of so many frames.
    unplug_after : int or None
        The device leaves the bus when this many frames were made and read.
    unplug_at : int or None
        The device leaves the bus when this many bytes of frames were read.
    storm_fraction : float
        Share of the frames that a random fault of the way hits.
    storm_seed : int
    """

    drop: frozenset[int] = frozenset()
    corrupt: frozenset[int] = frozenset()
    truncate: frozenset[int] = frozenset()
    duplicate: frozenset[int] = frozenset()
    reorder: frozenset[int] = frozenset()
    garbage: frozenset[int] = frozenset()
    stall: frozenset[int] = frozenset()
    zero: frozenset[int] = frozenset()
    short: frozenset[int] = frozenset()
    hang: frozenset[int] = frozenset()
    brown_out: frozenset[int] = frozenset()
    break_command: frozenset[int] = frozenset()
    slow: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))
    unplug_after: int | None = None
    unplug_at: int | None = None
    storm_fraction: float = 0.0
    storm_seed: int = 1

    def __post_init__(self) -> None:
        for name in ("unplug_after", "unplug_at"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise WrongUsage(f"{name} is {value}; allowed: 1 or more")
        if not 0 <= self.storm_fraction <= 1:
            raise WrongUsage(f"storm is {self.storm_fraction}; allowed: 0 to 1, the share of the frames that it hits")


NO_FAULTS = Faults()


class Way:
    """The way from the board's memory to the host, with its faults.

    Parameters
    ----------
    faults : Faults
    """

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._random = random.Random(faults.storm_seed)
        self._held: list[Delivery] = []
        self.n_hit = 0
        """Frames that the storm hit so far."""

    def send(self, number: int, packets: Sequence[bytes]) -> list[Delivery]:
        """Return what arrives of a frame's packets, in order; `number` counts frames over the life of the device."""
        faults = self._faults
        if faults.storm_fraction and self._random.random() < faults.storm_fraction:
            self.n_hit += 1
            return self._hit(list(packets))
        if number in faults.drop:
            return self._release([])
        frame = b"".join(packets)
        if number in faults.truncate:
            frame = frame[: len(frame) * 3 // 4]
        if number in faults.corrupt:
            frame = flipped(frame, len(frame) // 2, 0x10)
        if number in faults.duplicate:
            frame += frame
        if number in faults.garbage:
            frame = GARBAGE + frame
        delivered: list[Delivery] = list(_pieces(frame, PIECES)) if number in faults.short else [frame]
        if number in faults.zero:
            delivered.insert(0, Hiccup.ZERO_LENGTH)
        if number in faults.stall:
            delivered.insert(0, Hiccup.STALL)
        if number in faults.reorder:
            self._held += delivered
            return []
        return self._release(delivered)

    def flush(self) -> list[Delivery]:
        """Return what was held back to be overtaken; nothing follows that could."""
        return self._release([])

    def clear(self) -> None:
        """Forget what was held back."""
        self._held = []

    def _release(self, delivered: list[Delivery]) -> list[Delivery]:
        held, self._held = self._held, []
        return delivered + held

    def _hit(self, packets: list[bytes]) -> list[Delivery]:
        """Let one random fault come over one packet of a frame, or over its transfers."""
        draw = self._random
        n, kind = draw.randrange(len(packets)), draw.choice(STORM_KINDS)
        packet = packets[n]
        if kind == "reorder":
            self._held += packets
            return []
        if kind in ("stall", "zero"):
            return self._release([Hiccup.STALL if kind == "stall" else Hiccup.ZERO_LENGTH, b"".join(packets)])
        if kind == "short":
            lengths = [draw.randrange(1, 4096) for _ in range(draw.randrange(1, 6))]
            return self._release(list(_pieces(b"".join(packets), lengths)))
        if kind == "drop":
            packets[n] = b""
        elif kind == "duplicate":
            packets.insert(draw.randrange(n, len(packets)) + 1, packet)
        elif kind == "truncate":
            packets[n] = packet[: draw.randrange(len(packet))]
        elif kind == "cut":  # from the front: what is left begins in the middle of nowhere
            packets[n] = packet[draw.randrange(1, len(packet)) :]
        elif kind == "flip":
            packets[n] = flipped(packet, draw.randrange(len(packet)), 1 << draw.randrange(8))
        elif kind == "flip_header":
            packets[n] = flipped(packet, draw.randrange(wire.FRAME_HEADER.size), 1 << draw.randrange(8))
        elif kind == "burst":
            start = draw.randrange(len(packet))
            noise = draw.randbytes(draw.randrange(1, 600))
            packets[n] = packet[:start] + noise + packet[start + len(noise) :]
        elif kind == "insert":
            start = draw.randrange(len(packet) + 1)
            packets[n] = packet[:start] + wire.FRAME_MAGIC + draw.randbytes(draw.randrange(100)) + packet[start:]
        else:  # header: a true header without its payload stands before the packet
            packets[n] = packet[: wire.FRAME_HEADER.size] + packet
        return self._release([b"".join(packets)])


STORM_KINDS = (
    "drop", "duplicate", "reorder", "truncate", "cut", "flip", "flip_header", "burst", "insert", "header", "stall",
    "zero", "short",
)  # fmt: skip
_FRAME_SETS = (
    "drop", "corrupt", "truncate", "duplicate", "reorder", "garbage", "stall", "zero", "short", "hang", "brown_out",
    "break_command",
)  # fmt: skip
FAULT_KEYS = (*_FRAME_SETS, "slow", "unplug_after", "unplug_at", "storm", "storm_seed")


def flipped(data: bytes, place: int, bits: int) -> bytes:
    """Return bytes with some bits of one of them flipped."""
    return data[:place] + bytes([data[place] ^ bits]) + data[place + 1 :]


def _pieces(data: bytes, lengths: Sequence[int]) -> Iterator[bytes]:
    for length in lengths:
        if data[:length]:
            yield data[:length]
        data = data[length:]
    if data:
        yield data


def faults_of_query(query: Mapping[str, str]) -> Faults:
    """Make faults from the parameters of a device address.

    For example ``{"drop": "17,23", "slow": "5:4000", "unplug_after": "100", "storm": "0.01"}``.

    Raises
    ------
    WrongUsage
        A key that is no fault, or a value that it cannot have.
    """
    unknown = sorted(set(query) - set(FAULT_KEYS))
    if unknown:
        raise WrongUsage(f"unknown fault {', '.join(unknown)}; known: {', '.join(FAULT_KEYS)}")
    sets = {key: frozenset(_numbers(key, query[key])) for key in _FRAME_SETS if key in query}
    return Faults(
        slow=MappingProxyType(_pairs("slow", query["slow"]) if "slow" in query else {}),
        storm_fraction=_fraction("storm", query.get("storm", "0")),
        storm_seed=_number("storm_seed", query.get("storm_seed", "1")),
        unplug_after=_number("unplug_after", query["unplug_after"]) if "unplug_after" in query else None,
        unplug_at=_number("unplug_at", query["unplug_at"]) if "unplug_at" in query else None,
        **sets,
    )


def _numbers(key: str, value: str) -> list[int]:
    words = value.split(",")
    if not all(word.isascii() and word.isdigit() for word in words):
        raise WrongUsage(f"{key} is {value!r}; allowed: numbers from 0, separated by commas")
    return [int(word) for word in words]


def _number(key: str, value: str) -> int:
    if not (value.isascii() and value.isdigit()):
        raise WrongUsage(f"{key} is {value!r}; allowed: one whole number")
    return int(value)


def _pairs(key: str, value: str) -> dict[int, int]:
    pairs = [word.split(":") for word in value.split(",")]
    if not all(len(pair) == 2 and all(word.isascii() and word.isdigit() for word in pair) for pair in pairs):
        raise WrongUsage(f"{key} is {value!r}; allowed: FRAME:FRAMES, such as 5:4000, separated by commas")
    return {int(number): int(n_frames) for number, n_frames in pairs}


def _fraction(key: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise WrongUsage(f"{key} is {value!r}; allowed: 0 to 1, the share of the frames that it hits") from None
