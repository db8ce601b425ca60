"""How the chip counts and what each pixel is told, as records that become registers.

# Ref: Disc_CSM_SPM routing: medipix3rx reference 2.4, from DiamondLightSource/excalibur-detector @099951f3
#      `definitions.py` 84-245 (DISC_SPM_CSM_TABLE); Equalization from navrit/dexter `qcstmequalization.cpp` 984-987.
# Ref: what does not go together: EXCALIBUR `ExcaliburFemClient.cpp` 524-531 (continuous read/write with both counters
#      or 24 bits); Merlin manual v0.7 p12, p16, p51. Continuous read/write begins with counter 1: EXCALIBUR 728-747.
# Ref: loads in two halves, charge summing off: EXCALIBUR `ExcaliburFemClientMpx3.cpp` 556-650, MARS `marscamera.py`.
# Ref: counter 1 before counter 0, and 24 bits as two readouts of 12: reference 2.1 and 2.3.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from firmware_iface import chip
from firmware_iface.chip import Gain, Mode

N_LINES = 8
"""Data lines that the host asks for by default: all of them."""
LOADS = (Mode.LOAD_COUNTER_0, Mode.LOAD_COUNTER_1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """How the chip counts.

    Attributes
    ----------
    is_colour : bool
        110 um pixels with up to 8 thresholds, or 55 um pixels with up to 2.
    is_csm : bool
        Charge summing over neighbours.
    gain : Gain
    depth_bits : {1, 6, 12, 24}
    counters : tuple of int
        Which counters are read: (0,) the even thresholds, (1,) the odd ones, (0, 1) all. A 24-bit count takes both
        counters for one discriminator: (0,) DiscL, (1,) DiscH.
    is_equalization : bool
        The chip's Equalization routing, in which DiscH is read through counter 0.
    is_hole_collecting : bool
        The sensor collects holes (silicon p-on-n); CdTe, CZT and GaAs collect electrons.
    is_continuous : bool
        One counter counts while the other is read, in turn and without dead time. `counters` then says which of the
        discriminators feeds both: (0,) DiscL, (1,) DiscH.
    is_test_pulsed : bool
        Test pulses reach the pixels whose test bit and whose column's bit are set.
    n_lines : {1, 2, 4, 8}
        Data lines on which the chip is read.
    """

    is_colour: bool = True
    is_csm: bool = True
    gain: Gain = Gain.HGM
    depth_bits: int = 12
    counters: tuple[int, ...] = (1,)
    is_equalization: bool = False
    is_hole_collecting: bool = False
    is_continuous: bool = False
    is_test_pulsed: bool = False
    n_lines: int = N_LINES

    def __post_init__(self) -> None:
        if self.depth_bits not in chip.DEPTH_CODES:
            raise ValueError(f"depth_bits is {self.depth_bits}; allowed: {', '.join(map(str, chip.DEPTH_CODES))}")
        if self.counters not in {(0,), (1,), (0, 1)}:
            raise ValueError(f"counters is {self.counters}; allowed: (0,), (1,) or (0, 1)")
        if self.n_lines not in chip.LINES_CODES:
            raise ValueError(f"n_lines is {self.n_lines}; allowed: {', '.join(map(str, chip.LINES_CODES))}")
        if self.depth_bits == 24 and self.counters == (0, 1):
            raise ValueError("counters is (0, 1) at 24 bits; allowed: (0,) or (1,), for one count fills both counters")
        if self.depth_bits == 24 and self.is_csm and self.counters == (0,):
            raise ValueError("counters is (0,) at 24 bits with charge summing; allowed: (1,), the summed counter")
        if self.is_continuous:
            self._refuse_in_continuous()

    def _refuse_in_continuous(self) -> None:
        if self.depth_bits == 24:
            raise ValueError("continuous read/write at 24 bits; allowed: 1, 6, 12, for 24 bits take both counters")
        if self.counters == (0, 1):
            raise ValueError("continuous read/write of both counters; allowed: (0,) or (1,), for one of them is read")
        if self.is_csm and self.counters == (0,):
            raise ValueError("continuous read/write of counter 0 with charge summing; allowed: (1,), the summed charge")
        if self.is_equalization:
            raise ValueError("continuous read/write with is_equalization; allowed: False, for its routing is not known")

    @property
    def thresholds(self) -> tuple[int, ...]:
        """Numbers of the thresholds that a frame's planes count above, in their order."""
        n_clusters = len(chip.SUBPIXELS) if self.is_colour else 1
        return tuple(2 * cluster + counter for cluster in range(n_clusters) for counter in self.counters)

    def omr(self, mode: Mode, **changes: int) -> int:
        """Return the operation mode register of a transaction, with some fields changed by name.

        Raises
        ------
        ValueError
            A field that the register has not, a value that does not fit it, or a load that the chip would spoil.
        """
        fields = {
            "M": mode,
            "Polarity": int(self.is_hole_collecting),
            "CRW_SRW": int(self.is_continuous),
            "PS": chip.LINES_CODES[self.n_lines],
            "Disc_CSM_SPM": int(self._is_swapped),
            "Enable_TP": int(self.is_test_pulsed),
            "CountL": chip.DEPTH_CODES[self.depth_bits],
            "Equalization": int(self.is_equalization),
            "ColourMode": int(self.is_colour),
            "CSM_SPM": int(self.is_csm),
            "InfoHeader": 1,
            "GainMode": self.gain,
        }
        fields |= changes
        if mode in LOADS and fields.get("RowBlock") != chip.ROW_BLOCK_HALF_LOAD:
            raise ValueError(
                f"a load with RowBlock {fields.get('RowBlock', 0)}; allowed: {chip.ROW_BLOCK_HALF_LOAD}, two halves, "
                "for the chip spoils a load of the whole matrix"
            )
        if mode in LOADS and fields["CSM_SPM"]:
            raise ValueError("a load with CSM_SPM 1; allowed: 0, for charge summing disturbs it")
        return chip.pack_register(chip.OMR_FIELDS, fields)

    def readouts_of(self, sequence: int) -> tuple[int, ...]:
        """Return the OMR of each readout of one frame, by the frame's number: in continuous read/write one, in turn."""
        return (self.readouts[sequence % 2],) if self.is_continuous else self.readouts

    @property
    def readouts(self) -> tuple[int, ...]:
        """The OMR of each readout of a frame, in their order; in continuous read/write of two frames, one each."""
        if self.depth_bits == 24 or self.counters == (0, 1) or self.is_continuous:
            modes: tuple[Mode, ...] = (Mode.READ_COUNTER_1, Mode.READ_COUNTER_0)
        elif self.counters == (0,) or self.is_equalization:
            modes = (Mode.READ_COUNTER_0,)
        else:
            modes = (Mode.READ_COUNTER_1,)
        return tuple(self.omr(mode) for mode in modes)

    @property
    def _is_swapped(self) -> bool:
        """Whether Disc_CSM_SPM is 1, the other routing of the discriminators."""
        if self.depth_bits == 24 or self.is_continuous:
            return self.counters == (0,)
        return self.is_equalization and self.counters == (1,)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PixelConfiguration:
    """What each pixel is told.

    Attributes
    ----------
    is_masked : (256, 256) bool
        The pixel does not count.
    trim_l, trim_h : (256, 256) uint8
        Adjustment of DiscL (even thresholds) and DiscH (odd thresholds), 0 to 31; more lowers the noise edge.
    is_test : (256, 256) bool
        The pixel takes test pulses.
    """

    is_masked: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((chip.ROWS, chip.COLS), dtype=bool))
    trim_l: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((chip.ROWS, chip.COLS), dtype=np.uint8))
    trim_h: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((chip.ROWS, chip.COLS), dtype=np.uint8))
    is_test: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((chip.ROWS, chip.COLS), dtype=bool))

    def __post_init__(self) -> None:
        for name in ("is_masked", "trim_l", "trim_h", "is_test"):
            shape = getattr(self, name).shape
            if shape != (chip.ROWS, chip.COLS):
                raise ValueError(f"{name} has shape {shape}; allowed: {(chip.ROWS, chip.COLS)}")
        for name in ("trim_l", "trim_h"):
            trim = getattr(self, name)
            if trim.min() < 0 or trim.max() >= chip.TRIM_CODES:
                raise ValueError(f"{name} goes from {trim.min()} to {trim.max()}; allowed: 0 to {chip.TRIM_CODES - 1}")

    @property
    def words(self) -> NDArray[np.uint16]:
        """What the pixels latch: (256, 256) uint16, 12 bits each."""
        parts = (
            (self.is_masked, chip.PIXEL_MASK),
            (self.trim_l, chip.PIXEL_TRIM_L),
            (self.trim_h, chip.PIXEL_TRIM_H),
            (self.is_test, chip.PIXEL_TEST),
        )
        words = np.zeros((chip.ROWS, chip.COLS), dtype=np.uint16)
        for values, place in parts:
            words |= values.astype(np.uint16) << place.low
        return words
