"""The wire as constants: opcodes, struct layouts, descriptors. `PROTOCOL.md` tells what they mean.

All integers are little-endian. Chip bits inside payloads are MSB first, in the order in which the chip shifts them.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag

VERSION = 1

VENDOR_ID, PRODUCT_ID = 0x1209, 0x0001
"""The pid.codes test identity, until a board has its own."""
EP_COMMAND, EP_REPLY, EP_FRAMES = 0x01, 0x81, 0x82
MAX_PACKET_BYTES = 512

COMMAND_MAGIC, REPLY_MAGIC, FRAME_MAGIC = b"mC", b"mR", b"MPXF"
COMMAND_HEADER = struct.Struct("<2sBBHHI")
"""magic, version, opcode, tag, 0, payload bytes; then the payload, then CRC32 of all before it."""
REPLY_HEADER = struct.Struct("<2sBBHHI")
"""magic, version, opcode, tag, status, payload bytes; then the payload, then CRC32 of all before it."""
CRC = struct.Struct("<I")
MAX_COMMAND_PAYLOAD_BYTES = 1 << 17

FRAME_HEADER = struct.Struct("<4sHHIIQQQQBBBBIII")
"""magic, version, header bytes, run id, flags, sequence, timestamp ns, exposure ns, OMR, chip, counter, depth in bits,
data lines, payload bytes, CRC32 of the payload, CRC32 of the 60 bytes before it."""


class FrameFlag(IntFlag):
    """Flags of a frame packet."""

    PAUSED = 1
    """The board waited for the host before this frame; the gap is longer, nothing is lost."""
    OVERFLOW = 2
    """The board had to drop frames just before this one."""
    LAST_READOUT = 4
    """The last counter of its frame."""


class Opcode(IntEnum):
    """Commands; the payloads are told in PROTOCOL.md."""

    GET_INFO = 0x01
    GET_STATUS = 0x02
    RESET = 0x03
    CHIP_TRANSACT = 0x10
    FAST_CLEAR = 0x11
    START = 0x20
    STOP = 0x21
    ABORT = 0x22
    SET_BIAS = 0x30
    AUXILIARY = 0x40


class Status(IntEnum):
    """Status of a reply."""

    OK = 0
    NOT_ALLOWED = 1
    UNKNOWN_OPCODE = 2
    BAD_LENGTH = 3
    OUT_OF_RANGE = 4
    BAD_CRC = 5
    CHIP_REFUSED = 6
    BUSY = 7


class BoardState(IntEnum):
    """State of the board, as GET_STATUS tells it."""

    IDLE = 0
    ACQUIRING = 1
    FAULT = 2


INFO = struct.Struct("<HHBBHI16s")
"""firmware version, protocol version, chips, data lines, 0, capability bits, serial number (ASCII, zero padded)."""
STATUS = struct.Struct("<BBHIQii")
"""board state, 0, 0, run id, frames done, board temperature in mK, bias in mV."""
START = struct.Struct("<IIQQB7x")
"""run id, frames (0: until stopped), exposure ns, period ns (0: without pause), readouts; then one OMR (u64) each."""
CHIP_TRANSACT = struct.Struct("<Q")
"""OMR; then the bits to shift in. The reply's payload is the bits that came out."""
SET_BIAS = struct.Struct("<i")
"""Bias in mV."""


class Capability(IntFlag):
    """What this board can do."""

    AUXILIARY_LINE = 1
    """A serial line to the gantry's controllers: text lines pass through AUXILIARY."""
    BIAS = 2
