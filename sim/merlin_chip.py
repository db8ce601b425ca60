"""A chip behind a Merlin's readout: keV to threshold codes, registers in, images out, all through the serial port.

# Ref: one map of keV to threshold codes for all thresholds, codes rounded to the nearest: Merlin manual v0.7 p29 to 30,
#      p50. Its default of 0.18 keV per code without offset is derived from the manual's examples (p47).
# Ref: order of images: counter 1 before counter 0, colour layers one by one: manual p35, p47. That the four layers of
#      counter 1 come before those of counter 0 is taken from the order of the readouts; no source tells.
# Ref: serial orders and discriminator routing: as in `sim/chip.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from firmware_iface import chip
from firmware_iface.chip import Gain, Mode
from sim.chip import SimulatedChip

N_LINES = 8
TEST_PATTERN = 0x35A
"""What the digital test writes: Merlin manual v0.7 p22 to 23."""
TRIM = 16
"""Trim of every pixel at power-up: the middle of its range."""
DEFAULT_KEV_PER_DAC = 0.18
FIRST_IN_TURN = 1
"""The counter that continuous read/write fills and reads first."""
_READS = {0: Mode.READ_COUNTER_0, 1: Mode.READ_COUNTER_1}
_COUNTS = {depth: np.argsort(states) for depth, states in chip.LFSR_STATES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyScale:
    """The instrument's own threshold files: where 0 keV stands, and steps per keV in each gain."""

    baseline_dac: float = 0.0
    gain_dac_per_kev: Mapping[Gain, float] | None = None

    def code(self, energy_kev: float, gain: Gain) -> int:
        """Return the nearest threshold code that the register can hold."""
        steps_per_kev = self.gain_dac_per_kev[gain] if self.gain_dac_per_kev else 1 / DEFAULT_KEV_PER_DAC
        highest = (1 << chip.DAC_FIELDS["Threshold0"].width) - 1
        return min(max(round(self.baseline_dac + energy_kev * steps_per_kev), 0), highest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counting:
    """How the chip counts: a Merlin's modes, and the counters that it reads, in their order."""

    is_colour: bool
    is_csm: bool
    gain: Gain
    depth_bits: int
    counters: tuple[int, ...]
    is_continuous: bool = False

    def omr(self, mode: Mode, **changes: int) -> int:
        """Return the operation mode register of one transaction."""
        is_low_alone = (self.depth_bits == 24 or self.is_continuous) and not self.is_csm
        fields = {
            "M": mode,
            "CRW_SRW": int(self.is_continuous),
            "PS": chip.LINES_CODES[N_LINES],
            "Disc_CSM_SPM": int(is_low_alone),
            "CountL": chip.DEPTH_CODES[self.depth_bits],
            "ColourMode": int(self.is_colour),
            "CSM_SPM": int(self.is_csm),
            "GainMode": self.gain,
        }
        return chip.pack_register(chip.OMR_FIELDS, fields | changes)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Image:
    """One image of an exposure: its counter or colour layer, and counts of (rows, cols), row 0 at the bottom."""

    layer: int
    counts: NDArray[np.unsignedinteger]


class MerlinChip:
    """The readout's side of one chip.

    Parameters
    ----------
    chip_ : SimulatedChip
    scale : EnergyScale
    """

    def __init__(self, chip_: SimulatedChip, scale: EnergyScale) -> None:
        self._chip = chip_
        self._scale = scale
        self._counting = Counting(is_colour=True, is_csm=False, gain=Gain.SLGM, depth_bits=12, counters=(0,))
        self._turn = FIRST_IN_TURN
        self.dacs = dict(chip.DEFAULT_DACS)
        word = TRIM << chip.PIXEL_TRIM_L.low | TRIM << chip.PIXEL_TRIM_H.low
        self._pixels = np.full((chip.ROWS, chip.COLS), word, dtype=np.uint16)
        self.load_pixels(self._pixels)
        self.name = self._read_name()

    def load_pixels(self, words: NDArray[np.uint16]) -> None:
        """Load masks, trims and test bits, (256, 256) uint16, in two halves."""
        omr = self._counting.omr(
            Mode.LOAD_COUNTER_1,
            CRW_SRW=0,
            RowBlock=chip.ROW_BLOCK_HALF_LOAD,
            CSM_SPM=0,
            CountL=chip.DEPTH_CODES[chip.PIXEL_BITS],
        )
        planes = np.arange(chip.PIXEL_BITS - 1, -1, -1, dtype=np.uint16)
        for half in np.split(words, chip.ROWS // chip.MATRIX_HALF_ROWS):
            bits = half[:, np.newaxis, ::-1] >> planes[:, np.newaxis] & 1
            self._chip.transact(omr, np.packbits(bits.astype(np.uint8)).tobytes())

    def test(self) -> bool:
        """Write a pattern and its inverse into every pixel, read both back, and load the pixels again."""
        omr = self._counting.omr(Mode.READ_COUNTER_1, CRW_SRW=0, CSM_SPM=0, CountL=chip.DEPTH_CODES[chip.PIXEL_BITS])
        is_good = True
        for pattern in (TEST_PATTERN, ~TEST_PATTERN & (1 << chip.PIXEL_BITS) - 1):
            self.load_pixels(np.full_like(self._pixels, pattern))
            words = _words_of(self._chip.transact(omr, b""), chip.PIXEL_BITS)
            is_good &= bool((words == pattern).all())
        self.load_pixels(self._pixels)
        return is_good

    def set_up(self, counting: Counting, thresholds_kev: tuple[float, ...]) -> None:
        """Take a mode, and all eight thresholds."""
        self._counting = counting
        self.set_thresholds(thresholds_kev)
        self._chip.arm(counting.omr(_READS[counting.counters[0]]))
        self._chip.fast_clear()
        self._turn = FIRST_IN_TURN

    def set_thresholds(self, thresholds_kev: tuple[float, ...]) -> None:
        """Send the thresholds' codes to the chip."""
        codes = (self._scale.code(energy_kev, self._counting.gain) for energy_kev in thresholds_kev)
        self.dacs |= {f"Threshold{n}": code for n, code in enumerate(codes)}
        register = chip.pack_register(chip.DAC_FIELDS, self.dacs)
        self._chip.transact(self._counting.omr(Mode.SET_DACS), register.to_bytes(chip.DAC_REGISTER_BITS // 8, "big"))

    def expose(self, duration_s: float) -> list[Image]:
        """Open the shutter and read: every image of one exposure, in the order in which a Merlin sends them."""
        counting = self._counting
        if counting.is_continuous:
            counter, self._turn = self._turn, 1 - self._turn
            self._chip.arm(counting.omr(_READS[counter]))
            self._chip.expose(duration_s)
            return self._layers(counter, self._read(counter))
        self._chip.fast_clear()
        self._chip.arm(counting.omr(_READS[counting.counters[0]]))
        self._chip.expose(duration_s)
        if counting.depth_bits == 24:
            high, low = self._read(1), self._read(0)
            return self._layers(0, high.astype(np.uint32) << np.uint32(chip.PIXEL_BITS) | low)
        return [image for counter in counting.counters for image in self._layers(counter, self._read(counter))]

    def _read(self, counter: int) -> NDArray[np.uint16]:
        depth = min(self._counting.depth_bits, chip.PIXEL_BITS)
        words = _words_of(self._chip.transact(self._counting.omr(_READS[counter]), b""), depth)
        return words if depth == 1 else _COUNTS[depth][words].astype(np.uint16)

    def _layers(self, counter: int, matrix: NDArray[np.unsignedinteger]) -> list[Image]:
        if not self._counting.is_colour:
            return [Image(layer=counter, counts=matrix)]
        return [
            Image(layer=2 * cluster_pixel + counter, counts=matrix[row::2, col::2])
            for cluster_pixel, (row, col) in enumerate(chip.SUBPIXELS)
        ]

    def _read_name(self) -> str:
        """Read the e-fuses: number in bits 0 to 3, letter in 4 to 7, wafer in 8 to 19."""
        header = self._chip.transact(self._counting.omr(Mode.READ_EFUSE), b"")
        word = int.from_bytes(header[4 * chip.EFUSE_ID_WORD : 4 * chip.EFUSE_ID_WORD + 4], "big")
        return f"W{word >> 8 & 0xFFF}_{chr(ord('A') - 1 + (word >> 4 & 0xF))}{word & 0xF}"


def _words_of(stream: bytes, depth_bits: int) -> NDArray[np.uint16]:
    """Undo the order of the serial bits: (256, 256) uint16 as they stand in the counters."""
    bits = np.unpackbits(np.frombuffer(stream, dtype=np.uint8), bitorder="little")
    planes = bits.reshape(chip.ROWS, depth_bits, chip.COLS)
    words = np.zeros((chip.ROWS, chip.COLS), dtype=np.uint16)
    for plane in range(depth_bits):
        words = np.bitwise_or(words << np.uint16(1), planes[:, plane], dtype=np.uint16)
    clock, line = np.divmod(np.arange(chip.COLS), N_LINES)
    image = np.empty_like(words)
    image[:, chip.COLS - 1 - (chip.COLS // N_LINES * line + clock)] = words
    return image
