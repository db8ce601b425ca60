"""Medipix3RX as facts: operation mode register, DACs, pixel configuration, counters and orders of bits.

Both ends of the wire share these facts, and nothing else. Names are the datasheet's, in capitals.

# Ref: OMR layout, DAC register, pixel word, load order: DiamondLightSource/excalibur-detector @099951f3
#      `ExcaliburFemClientMpx3.cpp` 166-207, 440-461, 503-556, 897-925; navrit/dexter @c8bc0f46 `SpidrMpx3Lib/OMR.h`.
# Ref: LFSR rules: navrit/dexter `FrameAssembler.cpp` 292-326, agreeing with LNLS and DESY receivers.
# Ref: which sub-pixel holds which threshold: navrit/dexter `dataconsumerthread.cpp` 168-253, agreeing with MARS.
# Ref: gain codes, feedback capacitances: dexter `qcstmconfigmonitoring.cpp` 33-36; PIXet `pxcapi.h`.
# Ref: sense codes: dexter `mpx3defs.h`, agreeing with EXCALIBUR and MARS; 26-29 MARS and the Merlin manual v0.7 p42.
# Ref: voltages of the operating point: EXCALIBUR `definitions.py` 20-24; Merlin manual p42.
# Ref: test capacitor: dexter `testpulseequalisation.cpp` 197-222 (3.204e-5 V per electron, 5 fF, +-20 % typical).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ROWS = COLS = 256
PITCH_MM = 0.055
COLOUR_PITCH_MM = 0.110
N_THRESHOLDS = 8
FINE_THRESHOLDS = 2
"""Thresholds of a 55 um pixel in fine pitch; in colour mode a cluster has them all."""
TRIM_CODES = 32
MATRIX_HALF_ROWS = 128
"""The configuration is loaded in two halves: a whole-matrix load does not work on the RX."""


class Mode(IntEnum):
    """OMR field M: what a transaction does."""

    READ_COUNTER_0 = 0
    SET_DACS = 1
    LOAD_COUNTER_0 = 2
    READ_DACS = 3
    READ_COUNTER_1 = 4
    SET_CTPR = 5
    LOAD_COUNTER_1 = 6
    READ_EFUSE = 7


class Gain(IntEnum):
    """OMR field GainMode."""

    SHGM = 0
    HGM = 1
    LGM = 2
    SLGM = 3


FEEDBACK_FF: Mapping[Gain, float] = {Gain.SHGM: 7.0, Gain.HGM: 14.0, Gain.LGM: 21.0, Gain.SLGM: 28.0}
"""Feedback capacitance per gain mode, in fF; the charge gain goes as its inverse."""


class Field(NamedTuple):
    """Where a field stands in a register: its lowest bit, and its width."""

    low: int
    width: int


OMR_BITS = 48
OMR_FIELDS: Mapping[str, Field] = {
    "M": Field(0, 3),
    "CRW_SRW": Field(3, 1),
    "Polarity": Field(4, 1),
    "PS": Field(5, 2),
    "Disc_CSM_SPM": Field(7, 1),
    "Enable_TP": Field(8, 1),
    "CountL": Field(9, 2),
    "ColumnBlock": Field(11, 3),
    "ColumnBlockSel": Field(14, 1),
    "RowBlock": Field(15, 3),
    "RowBlockSel": Field(18, 1),
    "Equalization": Field(19, 1),
    "ColourMode": Field(20, 1),
    "CSM_SPM": Field(21, 1),
    "InfoHeader": Field(22, 1),
    "FuseSel": Field(23, 5),
    "FusePulseWidth": Field(28, 7),
    "GainMode": Field(35, 2),
    "SenseDAC": Field(37, 5),
    "ExtDAC": Field(42, 5),
    "ExtBGSel": Field(47, 1),
}
DEPTH_CODES: Mapping[int, int] = {1: 0, 6: 1, 12: 2, 24: 3}
"""Counter depth in bits to OMR field CountL."""
LINES_CODES: Mapping[int, int] = {1: 0, 2: 1, 4: 2, 8: 3}
"""Number of data lines to OMR field PS."""
ROW_BLOCK_HALF_LOAD = 7
"""RowBlock while a half matrix is loaded (the work-around of the RX load bug)."""

DAC_REGISTER_BITS = 256
DAC_FIELDS: Mapping[str, Field] = {
    **{f"Threshold{n}": Field(30 + 9 * n, 9) for n in range(N_THRESHOLDS)},
    **{
        name: Field(102 + 8 * n, 8)
        for n, name in enumerate(
            (
                "Preamp", "Ikrum", "Shaper", "Disc", "Disc_LS", "Shaper_test", "DAC_DiscL", "DAC_test", "DAC_DiscH",
                "Delay", "TP_BufferIn", "TP_BufferOut", "RPZ", "GND", "TP_REF", "FBK", "Cas",
            )
        )
    },
    "TP_REFA": Field(238, 9),
    "TP_REFB": Field(247, 9),
}  # fmt: skip
"""The 27 DACs in the order of .dacs files and Merlin headers; bit 255 is shifted first."""

# Ref: Merlin manual v0.7 p18 and EXCALIBUR RX3M configuration, reference table 4.3; a start, not an operating point.
DEFAULT_DACS: Mapping[str, int] = {
    **{f"Threshold{n}": 511 for n in range(N_THRESHOLDS)},
    "Preamp": 100, "Ikrum": 10, "Shaper": 125, "Disc": 125, "Disc_LS": 100, "Shaper_test": 100, "DAC_DiscL": 90,
    "DAC_test": 100, "DAC_DiscH": 90, "Delay": 50, "TP_BufferIn": 128, "TP_BufferOut": 4, "RPZ": 255, "GND": 144,
    "TP_REF": 128, "FBK": 197, "Cas": 188, "TP_REFA": 320, "TP_REFB": 320,
}  # fmt: skip

SENSE_CODES: Mapping[str, int] = {
    name: code
    for code, name in enumerate(
        (
            *(f"Threshold{n}" for n in range(N_THRESHOLDS)),
            "Preamp", "Ikrum", "Shaper", "Disc", "Disc_LS", "Shaper_test", "DAC_DiscL", "Delay", "TP_BufferIn",
            "TP_BufferOut", "RPZ", "GND", "TP_REF", "FBK", "Cas", "TP_REFA", "TP_REFB", "band_gap",
            "band_gap_temperature", "DAC_bias", "DAC_cascode_bias", "DAC_test", "DAC_DiscH",
        ),
        start=1,
    )
}  # fmt: skip
"""What OMR fields SenseDAC and ExtDAC name by their code, 0 being none; four of them are no DACs and only sensed."""
SENSE_NAMES: Mapping[int, str] = {code: name for name, code in SENSE_CODES.items()}
OPERATING_POINT_V: Mapping[str, float] = {"GND": 0.65, "FBK": 0.90, "Cas": 0.85}
"""Voltages to which these DACs are tuned on every chip, in this order."""
TEST_PULSE_V_PER_E = 3.204e-5
"""Step of a test pulse per injected electron: the elementary charge over 5 fF."""

PIXEL_BITS = 12
PIXEL_MASK = Field(0, 1)
PIXEL_TRIM_L = Field(1, 5)
PIXEL_TRIM_H = Field(6, 5)
PIXEL_TEST = Field(11, 1)

EFUSE_HEADER_BYTES = 32
EFUSE_ID_WORD = 5
"""Word (32 bit, first bit is the MSB) of the 256-bit header that holds the e-fuse identity; OMR is in words 6 and 7."""

SUBPIXELS: tuple[tuple[int, int], ...] = ((1, 1), (0, 1), (1, 0), (0, 0))
"""(row, column) parity, row 0 at the bottom, of the pixels P1..P4 of a colour cluster; P(k+1) holds thresholds 2k in
counter 0 and 2k+1 in counter 1."""


def pack_register(fields: Mapping[str, Field], values: Mapping[str, int]) -> int:
    """Put named values into one register word; fields that are not named are 0.

    Raises
    ------
    ValueError
        A name the register does not have, or a value that its field cannot hold.
    """
    word = 0
    for name, value in values.items():
        field = fields.get(name)
        if field is None:
            raise ValueError(f"the register has no field {name!r}; it has {', '.join(fields)}")
        if not 0 <= value < 1 << field.width:
            raise ValueError(f"{name} is {value}; allowed: 0 to {(1 << field.width) - 1}")
        word |= int(value) << field.low
    return word


def unpack_register(fields: Mapping[str, Field], word: int) -> dict[str, int]:
    """Take a register word apart into its named fields."""
    return {name: word >> field.low & (1 << field.width) - 1 for name, field in fields.items()}


def _lfsr_states(n_bits: int, taps: tuple[int, ...]) -> NDArray[np.uint16]:
    """Return the state of an n-bit counter after each count: (2**n_bits,) uint16, count 0 is state 0."""
    full, state = (1 << n_bits) - 1, 0
    states = np.zeros(full + 1, dtype=np.uint16)
    for count in range(full + 1):
        states[count] = state
        new = (state & full >> 1) == 0  # the NOR term that takes the counter through the all-zero state
        for tap in taps:
            new ^= state >> tap & 1
        state = (state << 1 | new) & full
    return states


LFSR_STATES: Mapping[int, NDArray[np.uint16]] = {
    6: _lfsr_states(6, (0, 5)),
    12: _lfsr_states(12, (0, 3, 5, 11)),
}
"""Counter depth in bits to the state of the in-pixel counter after each count."""
