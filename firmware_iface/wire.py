"""The wire as constants: opcodes, struct layouts, registers, descriptors. `PROTOCOL.md` tells what they mean.

All integers are little-endian. Chip bits inside payloads are MSB first, in the order in which the chip shifts them.

# Ref: codes of trigger sources and outputs, and what a full memory does: Merlin manual v0.7 pp. 21-22 and 35-39, and
#      Merlin's commands TRIGGERSTART, TRIGGERSTOP and TriggerOut*: medipix3rx reference 9.1.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from enum import IntEnum, IntFlag
from typing import NamedTuple

VERSION = 2

VENDOR_ID, PRODUCT_ID = 0x1209, 0x0001
"""The pid.codes test identity, until a board has its own."""
EP_COMMAND, EP_REPLY, EP_FRAMES = 0x01, 0x81, 0x82
MAX_PACKET_BYTES = 512
"""Of the bulk endpoints at high speed; 1024 at SuperSpeed."""

# Descriptors by which Windows binds WinUSB by itself
MS_OS_20_UUID = bytes.fromhex("df60ddd88945c74c9cd2659d9e648a9f")
"""{D8DD60DF-4589-4CC7-9CD2-659D9E648A9F} as it stands in the BOS."""
MS_OS_20_WINDOWS = 0x06030000
"""Windows 8.1, the first that knows it."""
MS_OS_20_REQUEST, MS_OS_20_INDEX = 0x20, 7
"""bRequest that the board chose, and wIndex that asks for the descriptor set."""
DEVICE_INTERFACE_GUID = "{12CA0DA6-43C9-4AC9-BEF8-EAF89C3A4B9A}"

ABORT_REQUEST = 0x22
"""bRequest of the vendor request (to the device, no data) that aborts beside the commands; the number of `ABORT`."""
SAFE_REQUEST = 0x41
"""bRequest of the vendor request (to the device, no data) that makes the gantry safe beside the commands."""

# Packets
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
    """The last packet of its frame."""
    TRIGGERED = 8
    """The first frame after a trigger."""
    TRIGGER_MISSED = 16
    """A trigger came while the board could not take it, since the frame before."""


class Opcode(IntEnum):
    """Commands; the payloads are told in PROTOCOL.md."""

    GET_INFO = 0x01
    GET_STATUS = 0x02
    RESET = 0x03
    READ_REGISTER = 0x04
    WRITE_REGISTER = 0x05
    CHIP_TRANSACT = 0x10
    FAST_CLEAR = 0x11
    READ_SENSE = 0x12
    START = 0x20
    STOP = 0x21
    ABORT = 0x22
    SOFT_TRIGGER = 0x23
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
    ARMED = 3
    """A run is on and waits for its trigger."""


class FaultCode(IntEnum):
    """Why the board is in FAULT."""

    NONE = 0
    CHIP_REFUSED = 1
    """A chip did not take a transaction of the run."""
    CHIP_SILENT = 2
    """A chip did not answer a readout in time."""


INFO = struct.Struct("<HHBBBBI16s")
"""firmware version, protocol version, chips, data lines, rows and columns of chips, capability bits, serial number
(ASCII, zero padded)."""
STATUS = struct.Struct("<BBHIQii")
"""board state, fault code, power-ups (modulo 65536), run id, frames done, board temperature in mK, bias in mV."""
START = struct.Struct("<IIQQB7x")
"""run id, frames (0: until stopped), exposure ns, period ns (0: without pause), readouts; then one OMR (u64) each."""
OMR = struct.Struct("<Q")
CHIP_TRANSACT = struct.Struct("<QB7x")
"""OMR, chip; then the bits to shift in. The reply's payload is the bits that came out."""
ALL_CHIPS = 0xFF
"""As the chip of a transaction: all chips get the same bits, and none answers any."""
SENSE = struct.Struct("<i")
"""Reply to READ_SENSE: the voltage at the sense pad in uV."""
NO_READING = -(1 << 31)
"""What a temperature reads where its sensor is missing."""
READ_REGISTER = struct.Struct("<H")
REGISTER_VALUE = struct.Struct("<i")
WRITE_REGISTER = struct.Struct("<Hi")


class Capability(IntFlag):
    """What this board can do."""

    AUXILIARY_LINE = 1
    """A serial line to the gantry's controllers: text lines pass through AUXILIARY."""
    BIAS = 2
    """A bias supply, set by the register BIAS."""
    TRIGGER_IN = 4
    """Two trigger inputs, TTL and LVDS."""
    TRIGGER_OUT = 8
    """Two trigger outputs, TTL and LVDS."""
    SENSE_ADC = 16
    """An ADC at the chips' sense pads."""
    TEST_PULSES = 32
    """A strobe for the chips' test pulses."""


class TriggerStart(IntEnum):
    """What opens the shutter."""

    INTERNAL = 0
    RISING_TTL = 1
    FALLING_TTL = 2
    RISING_LVDS = 3
    FALLING_LVDS = 4
    SOFTWARE = 5


class TriggerStop(IntEnum):
    """What closes the shutter."""

    INTERNAL = 0
    RISING_TTL = 1
    FALLING_TTL = 2
    RISING_LVDS = 3
    FALLING_LVDS = 4


class TriggerOut(IntEnum):
    """What a trigger output follows."""

    INPUT_TTL = 0
    INPUT_LVDS = 1
    INPUT_TTL_DELAYED = 2
    INPUT_LVDS_DELAYED = 3
    SHUTTER = 4
    BURST = 5
    SHUTTER_AND_READOUT = 6
    BUSY = 7


class WhenFull(IntEnum):
    """What the board does when its frame memory is full."""

    PAUSE = 0
    DROP = 1


class Register(NamedTuple):
    """One 32-bit register: its address, what it may hold, its value after power-up, and what it means.

    A register that cannot be written has no range; its value is then the board's to tell.
    """

    address: int
    meaning: str
    lowest: int = 0
    highest: int = -1
    initial: int = 0

    @property
    def is_writable(self) -> bool:
        """Whether WRITE_REGISTER takes it."""
        return self.lowest <= self.highest


def _choices(codes: type[IntEnum]) -> str:
    return ", ".join(f"{code.value} {code.name}" for code in codes)


_FRAME_MEMORY = 4800
_MAX = (1 << 31) - 1
REGISTERS: Mapping[str, Register] = {
    "FIRMWARE_VERSION": Register(0x0000, "as in GET_INFO"),
    "PROTOCOL_VERSION": Register(0x0004, "as in GET_INFO"),
    "CAPABILITIES": Register(0x0008, "as in GET_INFO"),
    "CHIPS": Register(0x000C, "chips, as in GET_INFO"),
    "POWER_UPS": Register(0x0010, "as in GET_STATUS"),
    "FAULT_CODE": Register(0x0014, f"why the board is in FAULT: {_choices(FaultCode)}"),
    "TEMPERATURE_BOARD": Register(0x0020, "mK"),
    "TEMPERATURE_FPGA": Register(0x0024, "mK"),
    "TEMPERATURE_SENSOR": Register(0x0028, "mK"),
    "BIAS": Register(0x0030, "bias to be set, mV; negative for sensors that collect electrons", -1_000_000, 1_000_000),
    "BIAS_MEASURED": Register(0x0034, "mV"),
    "BIAS_CURRENT": Register(0x0038, "nA"),
    "CLOCK": Register(0x0040, "clock of the chips, kHz", 10_000, 200_000, 120_000),
    "LINES": Register(0x0044, "data lines wired per chip"),
    "MEMORY_FRAMES": Register(0x0050, "frames that the memory may hold", 1, _FRAME_MEMORY, _FRAME_MEMORY),
    "WHEN_FULL": Register(0x0054, f"a full memory: {_choices(WhenFull)}", 0, max(WhenFull)),
    "TRIGGER_START": Register(0x0060, f"opens the shutter: {_choices(TriggerStart)}", 0, max(TriggerStart)),
    "TRIGGER_STOP": Register(0x0064, f"closes the shutter: {_choices(TriggerStop)}", 0, max(TriggerStop)),
    "FRAMES_PER_TRIGGER": Register(0x0068, "frames in a burst", 1, 100_000, 1),
    "TRIGGER_DELAY": Register(
        0x006C, "from edge to opening, ns, rounded down to 10; not for software triggers", 0, _MAX
    ),
    "OUT_TTL": Register(0x0070, f"output follows: {_choices(TriggerOut)}", 0, max(TriggerOut), TriggerOut.SHUTTER),
    "OUT_TTL_INVERT": Register(0x0074, "1: low while active", 0, 1),
    "OUT_TTL_DELAY": Register(0x0078, "of the delayed copies, ns", 0, _MAX),
    "OUT_LVDS": Register(0x0080, "as OUT_TTL", 0, max(TriggerOut), TriggerOut.SHUTTER),
    "OUT_LVDS_INVERT": Register(0x0084, "1: low while active", 0, 1),
    "OUT_LVDS_DELAY": Register(0x0088, "of the delayed copies, ns", 0, _MAX),
    "TEST_PULSES": Register(0x0090, "test pulses while the shutter is open", 0, 65_535),
    "TEST_PULSE_PERIOD": Register(0x0094, "from pulse to pulse, ns", 100, 1_000_000_000, 100_000),
}
"""Registers by name: 32 bits, signed, at addresses that are multiples of 4."""
