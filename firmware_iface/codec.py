"""frames: bytes in any chunks to whole frames or `Lost`, commands to bytes, bytes to replies; no I/O.

A frame is whole only with every chip and counter that the run reads out, so the decoder puts readouts together, and one
missing part loses the frame. A damaged packet is stepped over by one byte: whatever is lost, the next good packet is
found.

# Ref: orders of registers and of the pixel configuration: medipix3rx reference 4.1, 5.1 and 5.2, from
#      DiamondLightSource/excalibur-detector @099951f3 `ExcaliburFemClientMpx3.cpp` 166-207, 440-461, 503-545.
# Ref: name of a chip from its e-fuse: navrit/dexter @c8bc0f46 `mpx3config.cpp` 511-528 (Medipix3RX manual v1.4, p. 57).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from firmware_iface import chip, wire
from firmware_iface.bitplanes import DEPTHS, matrix_bytes
from firmware_iface.frame import Lost
from firmware_iface.wire import FrameFlag

MAX_REPLY_PAYLOAD_BYTES = wire.MAX_COMMAND_PAYLOAD_BYTES
MAX_FRAME_PAYLOAD_BYTES = chip.EFUSE_HEADER_BYTES + matrix_bytes(max(DEPTHS))
_HEADER_CRC_OFFSET = wire.FRAME_HEADER.size - wire.CRC.size


class Reply(NamedTuple):
    """The board's answer to one command."""

    opcode: int
    tag: int
    status: int
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Readout:
    """One counter of one chip's whole matrix, as the board sent it.

    Attributes
    ----------
    run_id, sequence, chip, counter, n_lines, omr : int
        Of the packet's header; every readout of one frame has the frame's sequence.
    depth_bits : int
        Bit planes in the payload; each of the two readouts of a 24-bit count has 12.
    flags : FrameFlag
    timestamp_ns, exposure_ns : int
        Board clock at shutter opening, and how long the shutter was open.
    payload : bytearray
        The info header, if the OMR asks for it, and the matrix bits.
    """

    run_id: int
    sequence: int
    chip: int
    counter: int
    depth_bits: int
    n_lines: int
    omr: int
    flags: FrameFlag
    timestamp_ns: int
    exposure_ns: int
    payload: bytearray

    @property
    def info_header(self) -> memoryview:
        """The chip's 256-bit info header, or nothing when the OMR did not ask for one."""
        return memoryview(self.payload)[: _info_header_bytes(self.omr)]

    @property
    def matrix_bits(self) -> memoryview:
        """The matrix, as `bitplanes.decode_matrix` takes it."""
        return memoryview(self.payload)[_info_header_bytes(self.omr) :]


# Commands and replies


def encode_command(opcode: int, tag: int, payload: bytes = b"") -> bytes:
    """Return the packet of one command.

    Raises
    ------
    ValueError
        The payload is longer than the board takes, or the tag does not fit its field.
    """
    if len(payload) > wire.MAX_COMMAND_PAYLOAD_BYTES:
        raise ValueError(f"a payload of {len(payload)} bytes; allowed: {wire.MAX_COMMAND_PAYLOAD_BYTES}")
    if not 0 <= tag < 1 << 16:
        raise ValueError(f"a tag of {tag}; allowed: 0 to 65535")
    packet = wire.COMMAND_HEADER.pack(wire.COMMAND_MAGIC, wire.VERSION, opcode, tag, 0, len(payload)) + payload
    return packet + wire.CRC.pack(zlib.crc32(packet))


class ReplyDecoder:
    """Replies out of the reply endpoint's bytes, in any chunks."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def receive(self, data: bytes | bytearray | memoryview) -> Iterator[Reply]:
        """Take bytes, and yield the replies that are complete and undamaged."""
        self._pending += data
        return self._replies()

    def _replies(self) -> Iterator[Reply]:
        pending = self._pending
        while _seek(pending, wire.REPLY_MAGIC) and len(pending) >= wire.REPLY_HEADER.size:
            _, version, opcode, tag, status, n_payload = wire.REPLY_HEADER.unpack_from(pending)
            end = wire.REPLY_HEADER.size + n_payload
            if version != wire.VERSION or n_payload > MAX_REPLY_PAYLOAD_BYTES:
                del pending[:1]
                continue
            if len(pending) < end + wire.CRC.size:
                return
            packet = bytes(pending[:end])
            if wire.CRC.unpack_from(pending, end) != (zlib.crc32(packet),):
                del pending[:1]
                continue
            del pending[: end + wire.CRC.size]
            yield Reply(opcode, tag, status, packet[wire.REPLY_HEADER.size :])


# Frames


class FrameDecoder:
    """Whole frames and losses, in order, out of the frame endpoint's bytes, in any chunks.

    A packet of another run is skipped, as is a repeated one. A loss is reported where it is noticed, before the frame
    that follows it; what is missing at the end is told by `finish`.

    Parameters
    ----------
    run_id : int
        The run to listen to.
    n_frames : int
        How many frames the run has; 0 when it runs until it is stopped.
    n_readouts : int
        How many counters of each chip make a frame.
    n_chips : int
        How many chips make a frame.
    """

    def __init__(self, run_id: int, n_frames: int, n_readouts: int = 1, n_chips: int = 1) -> None:
        self._run_id = run_id
        self._n_frames = n_frames
        self._n_parts = n_readouts * n_chips
        self._n_chips = n_chips
        self._pending = bytearray()
        self._n_wanted = 0
        """Bytes that must be pending before the packet at their front can be judged."""
        self._next = 0
        self._parts: list[Readout] = []
        self._is_at_end = False

    @property
    def n_accounted(self) -> int:
        """How many frames of the run came whole or were reported as lost."""
        return self._next

    @property
    def is_complete(self) -> bool:
        """Whether every frame of a run of known length is accounted for."""
        return 0 < self._n_frames <= self._next

    def receive(self, data: bytes | bytearray | memoryview) -> Iterator[tuple[Readout, ...] | Lost]:
        """Take bytes, and yield the frames (their readouts in the order they came) and losses that these complete."""
        self._pending += data
        return self._frames()

    def finish(self, n_frames: int | None = None) -> Iterator[tuple[Readout, ...] | Lost]:
        """End the run: yield what still waits behind a truncated packet, and then what never came.

        Parameters
        ----------
        n_frames : int, optional
            How many frames the board took, for a run that was stopped.
        """
        if n_frames is not None:
            self._n_frames = n_frames
        self._is_at_end = True
        yield from self._frames()
        yield from self._lose_until(self._n_frames, "the run ended without them")

    def _frames(self) -> Iterator[tuple[Readout, ...] | Lost]:
        pending = self._pending
        if len(pending) < self._n_wanted and not self._is_at_end:
            return
        self._n_wanted = 0
        while _seek(pending, wire.FRAME_MAGIC) and len(pending) >= wire.FRAME_HEADER.size:
            header = _FrameHeader.read(pending)
            # Leftovers of another run are searched too, byte by byte: an abort may have cut one short.
            if header is None or header.run_id != self._run_id or not self._is_wanted(header):
                del pending[:1]
                continue
            end = wire.FRAME_HEADER.size + header.n_payload
            if len(pending) < end and not self._is_at_end:
                self._n_wanted = end
                return
            payload = pending[wire.FRAME_HEADER.size : end]
            damage = _damage(header, payload, self._n_chips)
            del pending[: 1 if damage else end]
            if damage:
                yield from self._lose_until(header.sequence, _reason_of_gap(header))
                yield from self._lose_until(header.sequence + 1, damage)
            else:
                yield from self._put_together(header, payload)

    def _is_wanted(self, header: _FrameHeader) -> bool:
        is_in_run = self._n_frames == 0 or header.sequence < self._n_frames
        return is_in_run and header.sequence >= self._next

    def _put_together(self, header: _FrameHeader, payload: bytearray) -> Iterator[tuple[Readout, ...] | Lost]:
        yield from self._lose_until(header.sequence, _reason_of_gap(header))
        if all((part.chip, part.counter) != (header.chip, header.counter) for part in self._parts):
            self._parts.append(header.readout(payload))
        if len(self._parts) == self._n_parts:
            frame, self._parts = tuple(self._parts), []
            self._next += 1
            yield frame

    def _lose_until(self, sequence: int, reason: str) -> Iterator[Lost]:
        """Report every frame before ``sequence`` that is not accounted for."""
        if self._parts and self._next < sequence:
            n_missing = self._n_parts - len(self._parts)
            self._parts = []
            self._next += 1
            part = f"{n_missing} of its {self._n_parts} readouts did not arrive"
            yield Lost(run_id=self._run_id, first_sequence=self._next - 1, n_frames=1, reason=part)
        if self._next < sequence:
            first, self._next = self._next, sequence
            yield Lost(run_id=self._run_id, first_sequence=first, n_frames=sequence - first, reason=reason)


class _FrameHeader(NamedTuple):
    magic: bytes
    version: int
    n_header: int
    run_id: int
    flags: int
    sequence: int
    timestamp_ns: int
    exposure_ns: int
    omr: int
    chip: int
    counter: int
    depth_bits: int
    n_lines: int
    n_payload: int
    payload_crc: int
    header_crc: int

    @classmethod
    def read(cls, data: bytearray) -> _FrameHeader | None:
        """Read the header at the start of ``data``; None when it is damaged, or of a version that we do not know."""
        header = cls._make(wire.FRAME_HEADER.unpack_from(data))
        if header.header_crc != zlib.crc32(data[:_HEADER_CRC_OFFSET]):
            return None
        is_known = header.version == wire.VERSION and header.n_header == wire.FRAME_HEADER.size
        return header if is_known and header.n_payload <= MAX_FRAME_PAYLOAD_BYTES else None

    def readout(self, payload: bytearray) -> Readout:
        return Readout(
            run_id=self.run_id,
            sequence=self.sequence,
            chip=self.chip,
            counter=self.counter,
            depth_bits=self.depth_bits,
            n_lines=self.n_lines,
            omr=self.omr,
            flags=FrameFlag(self.flags),
            timestamp_ns=self.timestamp_ns,
            exposure_ns=self.exposure_ns,
            payload=payload,
        )


def _damage(header: _FrameHeader, payload: bytearray, n_chips: int) -> str:
    """Say what is wrong with a packet whose header is good; nothing if nothing is."""
    if len(payload) < header.n_payload:
        return f"its packet ends after {len(payload)} of {header.n_payload} payload bytes"
    if zlib.crc32(payload) != header.payload_crc:
        return "the checksum of its payload is wrong"
    if header.depth_bits not in DEPTHS or header.n_lines not in chip.LINES_CODES:
        return f"its header tells of {header.depth_bits} bits per pixel over {header.n_lines} lines"
    if header.chip >= n_chips or header.counter > 1:
        return f"its header tells of chip {header.chip}, counter {header.counter}"
    expected = _info_header_bytes(header.omr) + matrix_bytes(header.depth_bits)
    if header.n_payload != expected:
        return f"its payload has {header.n_payload} bytes; {header.depth_bits} bits per pixel are {expected}"
    return ""


def _reason_of_gap(header: _FrameHeader) -> str:
    return "the board ran out of memory" if header.flags & FrameFlag.OVERFLOW else "no packet of them arrived"


def _info_header_bytes(omr: int) -> int:
    return chip.EFUSE_HEADER_BYTES if omr >> chip.OMR_FIELDS["InfoHeader"].low & 1 else 0


def _seek(pending: bytearray, magic: bytes) -> bool:
    """Drop what stands before the next magic word; False when there is none yet."""
    start = pending.find(magic)
    is_found = start >= 0
    if not is_found:  # the end may be the beginning of one
        start = max(len(pending) - len(magic) + 1, 0)
    del pending[:start]
    return is_found


# Bits into and out of the chip's registers


def encode_dacs(dacs: Mapping[str, int]) -> bytes:
    """Return the 32 bytes of the DAC register, bit 255 first."""
    return chip.pack_register(chip.DAC_FIELDS, dacs).to_bytes(chip.DAC_REGISTER_BITS // 8, "big")


def decode_dacs(register: bytes) -> dict[str, int]:
    """Return the value of each DAC in a register that was read back."""
    return chip.unpack_register(chip.DAC_FIELDS, int.from_bytes(register, "big"))


def encode_columns(columns: NDArray[np.bool_]) -> bytes:
    """Return the 32 bytes of the column test pulse register, (256,) bool, column 255 first."""
    if columns.shape != (chip.COLS,):
        raise ValueError(f"columns have shape {columns.shape}; allowed: {(chip.COLS,)}")
    return np.packbits(columns.astype(bool)[::-1]).tobytes()


def encode_pixels(words: NDArray[np.uint16]) -> tuple[bytes, bytes]:
    """Return the bits of the two half loads of the pixel configuration.

    Parameters
    ----------
    words : (256, 256) uint16
        12 bits per pixel, row 0 at the bottom.

    Returns
    -------
    lower, upper : bytes
        49,152 bytes each: rows upward, planes 11 to 0, columns 255 to 0, first bit in the MSB of the first byte.
    """
    planes = words[:, np.newaxis, ::-1] >> np.arange(chip.PIXEL_BITS - 1, -1, -1, dtype=np.uint16)[:, np.newaxis] & 1
    stream = np.packbits(planes.astype(np.uint8), axis=-1)
    return stream[: chip.MATRIX_HALF_ROWS].tobytes(), stream[chip.MATRIX_HALF_ROWS :].tobytes()


def efuse_word(info_header: bytes | memoryview) -> int:
    """Return the 32-bit e-fuse word of a 256-bit info header; 0 where no chip answered."""
    start = 4 * chip.EFUSE_ID_WORD
    return int.from_bytes(info_header[start : start + 4], "big")


def chip_name(efuse: int) -> str:
    """Return the name of a chip as its makers write it: 0x00021165 is W529_F5."""
    number, letter, wafer = efuse & 0xF, efuse >> 4 & 0xF, efuse >> 8 & 0xFFF
    return f"W{wafer}_{chr(ord('A') + letter - 1) if letter else '?'}{number}"
