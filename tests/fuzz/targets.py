"""What is fuzzed: each target takes any bytes, feeds a parser with what they spell, and checks what must hold.

A frame of the wire has thousands of payload bytes behind two checksums, which no mutation of bytes hits. The targets of
the wire therefore read their input as a small program that puts whole, cut, flipped and forged packets into a stream,
and garbage between them.
"""

from __future__ import annotations

import os
import random
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from firmware_iface import wire
from firmware_iface.bitplanes import DEPTHS
from firmware_iface.codec import FrameDecoder, Readout, Reply, ReplyDecoder
from firmware_iface.errors import BadFile
from firmware_iface.frame import Frame, Lost
from firmware_iface.merlin import decode_pixels, parse_acquisition_header, parse_frame_header, read_mib
from firmware_iface.merlin_stream import Expectation, FrameCollector, MessageDecoder, decode_image, parse_answer

RUN_ID, OTHER_RUN_ID = 7, 8
OMR_1_BIT = 0x000800300064  # read counter 1: 8 lines, 1 bit, colour, CSM, HGM, no info header
MAX_PACKETS = 8
MAX_CHUNKS = 8
"""A stream is cut into no more: single bytes where it is short. More would take most of the time and find the same."""
MAX_PIXEL_BYTES = 1 << 16
_BEFORE_CRC = struct.Struct("<4sHHIIQQQQBBBBII")
_Item = tuple[Readout, ...] | Lost


class Cursor:
    """Reads an input front to back; behind its end stand zeros."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def is_at_end(self) -> bool:
        return self._at >= len(self._data)

    def take(self, n: int) -> bytes:
        taken = self._data[self._at : self._at + n]
        self._at += n
        return taken

    def number(self, n_bytes: int = 1) -> int:
        return int.from_bytes(self.take(n_bytes), "little")


def chunks_of(stream: bytes, n_bytes: int) -> Iterator[bytes]:
    """Cut a stream into chunks of so many bytes; from the front, for what is behind the last is one more."""
    for n in range(MAX_CHUNKS):
        if chunk := stream[n * n_bytes : (n + 1) * n_bytes]:
            yield chunk
    if rest := stream[MAX_CHUNKS * n_bytes :]:
        yield rest


# Frame packets


@cache
def payload_of(sequence: int, counter: int) -> tuple[bytes, int]:
    """Return one of 32 payloads of 1 bit per pixel, and its CRC32."""
    payload = random.Random(2 * (sequence % 16) + counter % 2).randbytes(8192)
    return payload, zlib.crc32(payload)


@cache
def frame_packet(sequence: int, counter: int, flags: int, run_id: int = RUN_ID, chip: int = 0) -> bytes:
    """Return a packet as PROTOCOL.md tells it, packed by hand."""
    payload, crc = payload_of(sequence, counter)
    before = _BEFORE_CRC.pack(
        b"MPXF", wire.VERSION, 64, run_id, flags, sequence, 1000 * sequence, 500, OMR_1_BIT, chip, counter, 1, 8,
        len(payload), crc,
    )  # fmt: skip
    return before + struct.pack("<I", zlib.crc32(before)) + payload


def spell_frames(program: Cursor) -> tuple[bytes, list[int] | None]:
    """Return the stream of bytes that a program spells.

    Returns
    -------
    stream : bytes
    whole : list of int, or None
        The frames that must come whole, where the program is simple enough to tell: rising, and no forged beginning.
    """
    parts: list[bytes] = []
    whole: list[int] | None = []
    following, last = 0, b""
    while not program.is_at_end and len(parts) < MAX_PACKETS:
        kind = program.number() % 8
        if kind == 0:
            last = frame_packet(following, 1, 4)
            if whole is not None:
                whole.append(following)
            following += 1
        elif kind == 1:
            sequence, options = program.number(), program.number()
            last = frame_packet(sequence, options & 1, options >> 1 & 7, chip=options >> 4 & 1)
            whole = None
        elif kind == 2:
            last = program.take(program.number())
            whole = None if b"M" in last else whole
        elif kind == 3:
            last = frame_packet(following, 1, 4)[: program.number(2) % 8256]
            following += 1
            whole = None  # the cut one waits for the bytes of those behind it
        elif kind == 4:
            flipped = bytearray(frame_packet(following, 1, 4))
            flipped[program.number(2) % len(flipped)] ^= 1 << program.number() % 8
            last = bytes(flipped)
            following += 1
        elif kind == 5:
            pass  # the last part once more
        elif kind == 6:
            last = frame_packet(program.number(), 1, 4, OTHER_RUN_ID)
        else:
            forged = (b"MPXF" + program.take(56)).ljust(60, b"\0")
            last = forged + struct.pack("<I", zlib.crc32(forged))
            whole = None
        parts.append(last)
    return b"".join(parts), whole


def fuzz_frames(data: bytes) -> None:
    """Every frame of the run is told once and in order, whole or lost, and what is whole stands in the stream."""
    program = Cursor(data)
    n_frames, options, chunk = program.number() % 32, program.number(), program.number(2)
    n_readouts, n_chips = 1 + (options & 1), 1 + (options >> 2 & 1)
    stream, whole = spell_frames(program)

    def decoded(chunks: Iterable[bytes]) -> list[_Item]:
        decoder = FrameDecoder(RUN_ID, n_frames, n_readouts, n_chips)
        items = [item for each in chunks for item in decoder.receive(each)]
        return [*items, *decoder.finish(n_frames or max(32, decoder.n_accounted))]

    items = decoded([stream])
    check_told_once(items, n_frames or 32)
    for item in items:
        if not isinstance(item, Lost):
            check_frame(item, n_readouts * n_chips, stream)
    if whole is not None and n_readouts == n_chips == 1:
        told = [item[0].sequence for item in items if not isinstance(item, Lost)]
        assert told == [sequence for sequence in whole if not n_frames or sequence < n_frames], (told, whole)
    if options & 10 == 10:  # one in four: it takes as long as all the rest
        assert outline(decoded(chunks_of(stream, chunk))) == outline(items), "chunks matter"


def check_told_once(items: Sequence[_Item | Frame], n_frames: int) -> None:
    following = 0
    for item in items:
        first = (
            item.first_sequence if isinstance(item, Lost) else (item[0] if isinstance(item, tuple) else item).sequence
        )
        assert first == following, f"after frame {following} comes {first}"
        following += item.n_frames if isinstance(item, Lost) else 1
    assert following >= n_frames, f"only {following} of {n_frames} frames are told"


def check_frame(readouts: tuple[Readout, ...], n_parts: int, stream: bytes) -> None:
    assert len({(readout.chip, readout.counter) for readout in readouts}) == len(readouts) == n_parts
    assert len({readout.sequence for readout in readouts}) == 1
    for readout in readouts:
        assert readout.run_id == RUN_ID
        assert readout.depth_bits in DEPTHS, readout.depth_bits
        assert readout.n_lines in (1, 2, 4, 8), readout.n_lines
        assert len(readout.matrix_bits) == 8192 * readout.depth_bits
        assert stands_in(stream, readout), "a frame that nobody sent"


def stands_in(stream: bytes, readout: Readout) -> bool:
    """Look for the packet of a readout, with both checksums right."""
    before = _BEFORE_CRC.pack(
        b"MPXF", wire.VERSION, 64, readout.run_id, readout.flags, readout.sequence, readout.timestamp_ns,
        readout.exposure_ns, readout.omr, readout.chip, readout.counter, readout.depth_bits, readout.n_lines,
        len(readout.payload), zlib.crc32(readout.payload),
    )  # fmt: skip
    return before + struct.pack("<I", zlib.crc32(before)) + readout.payload in stream


def outline(items: list[_Item]) -> list[object]:
    return [
        (item.first_sequence, item.n_frames) if isinstance(item, Lost) else [(r.sequence, r.counter) for r in item]
        for item in items
    ]


# Replies


def reply_packet(reply: Reply) -> bytes:
    packet = struct.pack("<2sBBHHI", b"mR", wire.VERSION, reply.opcode, reply.tag, reply.status, len(reply.payload))
    return packet + reply.payload + struct.pack("<I", zlib.crc32(packet + reply.payload))


def fuzz_replies(data: bytes) -> None:
    """Every reply that is told stands in the stream, and all whole ones come where no forged beginning hides them."""
    program = Cursor(data)
    chunk = program.number()
    parts: list[bytes] = []
    whole: list[Reply] = []
    is_simple = True
    while not program.is_at_end and len(parts) < MAX_PACKETS:
        kind = program.number() % 4
        if kind == 0:
            whole.append(Reply(program.number(), program.number(2), program.number(2), program.take(program.number())))
            parts.append(reply_packet(whole[-1]))
        elif kind == 1:
            parts.append(program.take(program.number()))
            is_simple = is_simple and b"m" not in parts[-1]
        elif kind == 2:
            reply = Reply(program.number(), program.number(2), 0, program.take(program.number() % 32))
            flipped = bytearray(reply_packet(reply))
            flipped[program.number() % len(flipped)] ^= 1 << program.number() % 8
            parts.append(bytes(flipped))
            is_simple = False
        else:
            forged = (
                struct.pack("<2sB", b"mR", wire.VERSION)
                + program.take(9).ljust(9, b"\0")
                + program.take(program.number())
            )
            parts.append(forged + struct.pack("<I", zlib.crc32(forged)))
            is_simple = False
    stream = b"".join(parts)
    replies = list(ReplyDecoder().receive(stream))
    for reply in replies:
        assert len(reply.payload) <= wire.MAX_COMMAND_PAYLOAD_BYTES
        assert reply_packet(reply) in stream, "a reply that nobody sent"
    if is_simple:
        assert replies == whole
    decoder = ReplyDecoder()
    chunked = [reply for each in chunks_of(stream, chunk) for reply in decoder.receive(each)]
    assert chunked == replies, "chunks matter"


# Merlin


def fuzz_merlin_header(data: bytes) -> None:
    """A header is refused by ValueError alone, and one that is taken describes pixels that can be."""
    try:
        header = parse_frame_header(data)
    except ValueError:
        return
    assert header.header_bytes <= len(data)
    assert min(header.shape) >= 1
    assert header.pixel_bytes >= 1
    assert len(header.thresholds_kev) <= 8
    if header.pixel_bytes <= MAX_PIXEL_BYTES:
        counts = decode_pixels(header, data[header.header_bytes :][: header.pixel_bytes].ljust(header.pixel_bytes))
        assert counts.shape == header.shape
        assert counts.dtype.kind == "u"


@cache
def image(sequence: int, layer: int) -> bytes:
    """Return the body of an image of 4 x 2 pixels."""
    fields = f"MQ1,{sequence:06},00384,01,0004,0002,U08,   1x1,01,2015-09-14 17:38:29.198696,0.1,{layer},0,2"
    return fields.encode().ljust(384, b"\0") + bytes(range(sequence % 200, sequence % 200 + 8))


def spell_messages(program: Cursor) -> tuple[bytes, list[bytes] | None]:
    """Return a stream of the data channel, and the bodies that must come of it, where the program is simple."""
    parts: list[bytes] = []
    bodies: list[bytes] | None = []
    while not program.is_at_end and len(parts) < MAX_PACKETS:
        kind = program.number() % 5
        body = image(program.number(), program.number() % 8) if kind in (0, 2, 3) else program.take(program.number())
        message = f"MPX,{len(body) + 1:010},".encode() + body
        if kind in (1, 4) and b"M" in body:  # it may be a beginning
            bodies = None
        if kind == 1:  # garbage
            message = body
        elif kind == 2:
            message = message[: program.number(2) % len(message)]
            bodies = None
        elif kind == 3:
            flipped = bytearray(message)
            flipped[program.number(2) % len(flipped)] ^= 1 << program.number() % 8
            message, bodies = bytes(flipped), None
        elif bodies is not None and body:
            bodies.append(body)
        parts.append(message)
    return b"".join(parts), bodies


def fuzz_merlin_stream(data: bytes) -> None:
    """Every message stands in the stream, and every exposure is told once and in order, whatever the images tell."""
    program = Cursor(data)
    options, n_frames, chunk = program.number(), program.number() % 32, program.number()
    stream, bodies = spell_messages(program)

    def decoded(chunks: Iterable[bytes]) -> list[bytes]:
        decoder = MessageDecoder(completes_answers=bool(options & 1))
        came = [message for each in chunks for message in decoder.receive(each)]
        came += decoder.flush()
        assert sum(message.n_skipped + len(message.body) for message in came) <= len(stream)
        return [message.body for message in came]

    messages = decoded([stream])
    for body in messages:
        assert b"," + body in stream, "a message that nobody sent"
    if bodies is not None and not options & 1:
        assert messages == bodies
    if options & 24 == 24:  # as with frames
        assert decoded(chunks_of(stream, chunk)) == messages, "chunks matter"

    thresholds = (0, 1) if options & 2 else (0,)
    expected = Expectation(run_id=RUN_ID, n_frames=n_frames, thresholds=thresholds, has_one_threshold=bool(options & 4))
    collector = FrameCollector(expected)
    items: list[Frame | Lost] = []
    for body in messages:
        with suppress(ValueError):
            parse_answer(body)
        try:
            items += collector.receive(decode_image(body))
        except ValueError as error:
            collector.damaged(str(error))
    items += collector.finish(n_frames)
    check_told_once(items, n_frames)
    for item in items:
        assert isinstance(item, Lost) or len(item.counts) == len(thresholds)


def fuzz_acquisition_header(data: bytes) -> None:
    """The text of a .hdr file is refused by ValueError alone."""
    try:
        values = parse_acquisition_header(data)
    except ValueError:
        return
    assert all(key and key == key.strip() for key in values)


@cache
def _scratch() -> Path:
    """Return a file in memory where the system has such, for a disk would be the slowest part of the test."""
    folder = Path("/dev/shm")
    handle, name = tempfile.mkstemp(suffix=".mib", dir=folder if os.access(folder, os.W_OK) else None)
    os.close(handle)
    return Path(name)


def fuzz_mib(data: bytes) -> None:
    """A .mib file is refused by BadFile alone; the frames of one that is taken are all there, or refused one by one."""
    path = _scratch()
    path.write_bytes(data)
    try:
        opened = read_mib(path)
        for index in range(len(opened.frames)):
            frame = opened.frames[index]
            assert frame.counts.shape == frame.header.shape
        layers, indices = opened.groups()
        assert indices.size == len(opened.frames)
        assert opened.stack().shape[1] == len(layers)
    except BadFile:
        return


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "frames": fuzz_frames,
    "replies": fuzz_replies,
    "merlin_header": fuzz_merlin_header,
    "merlin_stream": fuzz_merlin_stream,
    "acquisition_header": fuzz_acquisition_header,
    "mib": fuzz_mib,
}
