"""Merlin's TCP grammar: commands to bytes, answers to values, the data channel's bytes to frames. No sockets here.

Every message is ``MPX,``, ten digits, and what the digits count: the comma after them and the body. The data channel
brings one acquisition header (HDR), then an image (MQ1) for each counter or colour layer of each exposure.

What the sources do not settle, and what is done here: images of one exposure are taken to be numbered one by one; if
two images in a row bear one number, exposures are numbered. An answer whose length leaves its error code out, as
LiberTEM-live's simulator counts, is completed.

# Ref: length field, grammar, error codes: Merlin EPICS interface specification 2.0 sections 3 to 6; the length of
#      answers and the order of two counters (counter 1 first): Merlin manual v0.7, p35, p49, p52 to 56.
# Ref: streams with ``MPX,0000002049,HDR``: LiberTEM-live @73287359 `tests/detectors/merlin/test_headers.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from firmware_iface.frame import Frame, Lost
from firmware_iface.merlin import FrameHeader, MerlinFrame, decode_pixels, parse_frame_header

PREFIX = re.compile(rb"MPX,(\d{10}),")
PREFIX_BYTES = 15
BEGINNING = re.compile(rb"MPX,\d{10},(?:MQ1|PR1|HDR),")
BEGINNING_BYTES = 19
PART_OF_BEGINNING = re.compile(rb"(?:M|MP|MPX|MPX,\d{0,10}|MPX,\d{10},(?:|M|MQ|MQ1|P|PR|PR1|H|HD|HDR))\Z")
MAX_MESSAGE_BYTES = 1 << 25
"""Longer than an image of any assembly: a length above it is no length, and is skipped."""
UNKNOWN_TIME_NS = -1


class ErrorCode(IntEnum):
    """How a Merlin answers a command; UNDERSTOOD is what one hopes for."""

    UNDERSTOOD = 0
    BUSY = 1
    UNKNOWN_COMMAND = 2
    OUT_OF_RANGE = 3


class Answer(NamedTuple):
    """One answer of the command channel; only GET has a value."""

    verb: str
    name: str
    value: str
    error: int


class Message(NamedTuple):
    """One message: its body, and how many bytes before it made no sense."""

    body: bytes
    n_skipped: int


def encode_command(verb: str, name: str, value: str | None = None) -> bytes:
    """Return the bytes of one command: ``SET`` takes a value, ``GET`` and ``CMD`` take none."""
    body = ",".join((verb, name) if value is None else (verb, name, value))
    return f"MPX,{len(body) + 1:010d},{body}".encode("ascii")


class MessageDecoder:
    """Takes bytes in any chunks and gives the bodies of whole messages; finds the next one after whatever is none.

    A body in which another message begins was cut, and is skipped up to there: nothing checks the pixels themselves.

    Parameters
    ----------
    completes_answers : bool
        For the command channel: take one byte more where a body ends in a comma, for its length is one too short.
    """

    def __init__(self, *, completes_answers: bool = False) -> None:
        self._buffer = bytearray()
        self._completes_answers = completes_answers
        self._n_skipped = 0

    def receive(self, data: bytes | memoryview) -> Iterator[Message]:
        """Take bytes, and yield every message that is whole now."""
        self._buffer += data
        return self._messages(is_last=False)

    def flush(self) -> Iterator[Message]:
        """Yield what was held back because its last bytes may be the beginning of another message."""
        return self._messages(is_last=True)

    def _messages(self, *, is_last: bool) -> Iterator[Message]:
        done = 0
        try:
            while (found := self._next(done, is_last)) is not None:
                start, done = found
                message = Message(bytes(memoryview(self._buffer)[start:done]), self._n_skipped)
                self._n_skipped = 0
                yield message
        finally:
            del self._buffer[:done]

    def _next(self, done: int, is_last: bool) -> tuple[int, int] | None:
        """Find the next whole body from `done` on: its start and its end."""
        place = done
        while (place := self._buffer.find(b"MPX,", place)) >= 0 and place + PREFIX_BYTES <= len(self._buffer):
            match = PREFIX.match(self._buffer, place)
            if match is None or not 1 < (length := int(match[1])) <= MAX_MESSAGE_BYTES:
                place += 1
                continue
            start, end = place + PREFIX_BYTES, place + PREFIX_BYTES + length - 1
            if self._completes_answers and self._buffer[end - 1 : end] == b",":
                end += 1
            if end > len(self._buffer):
                break
            if not self._completes_answers:
                if (inside := self._beginning_inside(start, end)) >= 0:
                    place = inside
                    continue
                is_undecided = len(self._buffer) < end + BEGINNING_BYTES - 1 and not is_last
                if is_undecided and PART_OF_BEGINNING.search(self._buffer, end - BEGINNING_BYTES + 1, end):
                    break
            self._n_skipped += place - done
            return start, end
        if place < 0:  # nothing begins here, but the last bytes may be the start of a beginning
            place = max(done, len(self._buffer) - 3)
        if place > done:
            self._n_skipped += place - done
            del self._buffer[done:place]
        return None

    def _beginning_inside(self, start: int, end: int) -> int:
        """Return where another message begins before the end of a body, or -1."""
        place = start
        while 0 <= (place := self._buffer.find(b"MPX,00", place)) < end:
            if BEGINNING.match(self._buffer, place):
                return place
            place += 1
        return -1


def parse_answer(body: bytes) -> Answer:
    """Read one answer.

    Raises
    ------
    ValueError
        In one clause: what is wrong, the value, what is allowed.
    """
    fields = body.decode("latin-1").split(",")
    if len(fields) < 3 or not re.fullmatch(r"\s*\d+\s*", fields[-1]):
        raise ValueError(f"the answer is {body[:80]!r}; allowed: verb, name, and at the end an error code")
    return Answer(fields[0].strip(), fields[1].strip(), ",".join(fields[2:-1]), int(fields[-1]))


def decode_image(body: bytes, depth_bits: int | None = None) -> MerlinFrame:
    """Read the body of an MQ1 message.

    Raises
    ------
    ValueError
        In one clause: what is wrong, the value, what is allowed.
    """
    header = parse_frame_header(body, depth_bits=depth_bits)
    return MerlinFrame(header=header, counts=decode_pixels(header, body[header.header_bytes :]))


def time_ns(header: FrameHeader) -> int:
    """Return when the shutter opened, in ns since 1970, or UNKNOWN_TIME_NS.

    The older header tells a local time without its zone, which is taken as it is: differences are right.
    """
    text = header.timestamp_utc.removesuffix("Z") or header.timestamp.replace(" ", "T")
    whole, _, fraction = text.partition(".")
    try:
        moment = datetime.fromisoformat(whole).replace(tzinfo=UTC)
        fraction_ns = int(f"{fraction:0<9.9}") if fraction else 0
    except ValueError:
        return UNKNOWN_TIME_NS
    return round(moment.timestamp()) * 1_000_000_000 + fraction_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What the images of a run are to be.

    Attributes
    ----------
    run_id : int
    n_frames : int
        0 for no end.
    thresholds : tuple of int
        Layer of each image of an exposure, rising.
    has_one_threshold : bool
        Both counters serve one threshold of each pair, in turn or as one: headers tell the counter, not the threshold.
    """

    run_id: int
    n_frames: int
    thresholds: tuple[int, ...]
    has_one_threshold: bool = False


class FrameCollector:
    """Puts the images of one run together: one frame per exposure, and what is missing in its place."""

    def __init__(self, expected: Expectation) -> None:
        self._expected = expected
        self._layers: dict[int, MerlinFrame] = {}
        self._held: MerlinFrame | None = None
        self._per_number = 1 if len(expected.thresholds) == 1 else 0  # images that share a number; 0 while not known
        self._place = 0  # of the exposure that is being put together
        self._trouble = ""

    @property
    def is_complete(self) -> bool:
        """Whether every frame of the run came, or is known to be lost."""
        return 0 < self._expected.n_frames <= self._place

    def damaged(self, reason: str) -> None:
        """Take note of an image that could not be read: its place tells when the next one comes."""
        self._trouble = self._trouble or reason

    def receive(self, image: MerlinFrame) -> Iterator[Frame | Lost]:
        """Take one image.

        Raises
        ------
        ValueError
            The image cannot be of this run.
        """
        if self._per_number:
            yield from self._take(image)
        elif self._held is None:
            self._held = image
        else:
            first, self._held = self._held, None
            is_shared = first.header.sequence == image.header.sequence
            self._per_number = len(self._expected.thresholds) if is_shared else 1
            yield from self._take(first)
            yield from self._take(image)

    def finish(self, n_frames: int) -> Iterator[Frame | Lost]:
        """Close a run of so many frames: what has not come is lost; 0 if only what came began."""
        if self._held is not None:
            self._per_number, first, self._held = 1, self._held, None
            try:
                yield from self._take(first)
            except ValueError as error:
                self.damaged(str(error))
        last = max(n_frames, self._place + bool(self._layers))
        yield from self._lose_until(last)

    def _take(self, image: MerlinFrame) -> Iterator[Frame | Lost]:
        header, n_layers = image.header, len(self._expected.thresholds)
        layer = header.counter
        if self._expected.has_one_threshold:
            layer = layer // 2 * 2 + self._expected.thresholds[0] % 2
        if layer not in self._expected.thresholds:
            raise ValueError(
                f"image {header.sequence} is of the counter or layer {header.counter}; "
                f"allowed in this mode: {', '.join(map(str, self._expected.thresholds))}"
            )
        images_per_place = n_layers if self._per_number == 1 else 1
        place = (header.sequence - 1) // images_per_place
        if place < self._place or (place == self._place and layer in self._layers):
            raise ValueError(f"image {header.sequence} of layer {layer} came after exposure {self._place + 1} had it")
        if 0 < self._expected.n_frames <= place:
            raise ValueError(f"image {header.sequence} came in a run of {self._expected.n_frames} exposures")
        yield from self._lose_until(place)
        if self._layers and image.counts.shape != next(iter(self._layers.values())).counts.shape:
            raise ValueError(f"image {header.sequence} is of another size than those before it")
        self._layers[layer] = image
        if len(self._layers) == n_layers:
            yield self._frame()
            self._next_place()

    def _lose_until(self, place: int) -> Iterator[Lost]:
        if place <= self._place:
            return
        reason = self._trouble or (
            f"only the layers {sorted(self._layers)} of it came" if self._layers else "the Merlin's numbers skip it"
        )
        yield Lost(
            run_id=self._expected.run_id,
            first_sequence=self._place,
            n_frames=place - self._place,
            reason=reason,
        )
        self._place = place - 1
        self._next_place()

    def _next_place(self) -> None:
        self._place += 1
        self._layers, self._trouble = {}, ""

    def _frame(self) -> Frame:
        thresholds = self._expected.thresholds
        first = min((image.header for image in self._layers.values()), key=lambda header: header.sequence)
        exposure_ns = first.exposure_ns if first.exposure_ns is not None else round(first.exposure_s * 1e9)
        return Frame(
            counts=np.stack([self._layers[layer].counts for layer in thresholds]),
            thresholds=thresholds,
            sequence=self._place,
            timestamp_ns=time_ns(first),
            exposure_ns=exposure_ns,
            run_id=self._expected.run_id,
        )
