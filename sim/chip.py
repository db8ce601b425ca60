"""serial bits: the chip's own bit stream, LFSR codes and all, out of registers and counters like the silicon's.

The chip knows nothing of packets or of time: it answers one transaction at a time (a 48-bit OMR, then bits in or bits
out), and when its shutter opens it asks its front end for events and counts them. What the silicon would do in an
undocumented way, or what is not simulated, it refuses (`ChipRefused`) instead of guessing.

# Ref: transactions, operation modes and discriminator routing: DiamondLightSource/excalibur-detector @099951f3
#      `ExcaliburFemClientMpx3.cpp` 166-207, 440-461, 503-556, 650-706 and `definitions.py` 84-245 (DISC_SPM_CSM_TABLE).
# Ref: order of the serial bits: excalibur-detector `ExcaliburProcessPlugin.cpp` 569-613 (8 lines; fewer by analogy).
# Ref: information header: MARS `pyMarsCamera.py` (bytes 20-23 and 26-31); navrit/dexter @c8bc0f46 `FrameAssembler.cpp`.
# Ref: e-fuse format: dexter `mpx3config.cpp` 511-528, which cites page 57 of the Medipix3RX manual v1.4.
# Ref: saturation at the last count is inferred (dexter masks pixels "in overflow" at 2**depth - 1), so it is an option.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numba import njit
from numpy.typing import NDArray

from firmware_iface import chip
from firmware_iface.chip import Mode
from firmware_iface.errors import DetectorError
from sim.sensor import Settings

FrontEnd = Callable[[float, Settings], NDArray[np.uint32]]
"""(shutter time in s, settings) to events above each threshold, (8, rows, cols) uint32."""

_PLANE_BYTES = chip.COLS // 8
HALF_LOAD_BYTES = chip.MATRIX_HALF_ROWS * chip.PIXEL_BITS * _PLANE_BYTES
REGISTER_BYTES = chip.DAC_REGISTER_BITS // 8
BYTES_IN: Mapping[Mode, int] = {
    Mode.READ_COUNTER_0: 0,
    Mode.SET_DACS: REGISTER_BYTES,
    Mode.LOAD_COUNTER_0: HALF_LOAD_BYTES,
    Mode.READ_DACS: 0,
    Mode.READ_COUNTER_1: 0,
    Mode.SET_CTPR: REGISTER_BYTES,
    Mode.LOAD_COUNTER_1: HALF_LOAD_BYTES,
    Mode.READ_EFUSE: 0,
}
"""How many bytes each transaction shifts in after the OMR."""

DEPTH_OF_CODE = {code: depth for depth, code in chip.DEPTH_CODES.items()}
LINES_OF_CODE = {code: lines for lines, code in chip.LINES_CODES.items()}
SERIAL_DEPTH = {1: 1, 6: 6, 12: 12, 24: 12}
"""Bit planes in one readout: 24 bits leave the chip as two readouts of 12."""

_STATES = {1: np.arange(2, dtype=np.uint16), **chip.LFSR_STATES, 24: chip.LFSR_STATES[12]}
_COUNTS = {depth: np.argsort(states) for depth, states in _STATES.items()}
_LOADS = {Mode.LOAD_COUNTER_0: 0, Mode.LOAD_COUNTER_1: 1}
_READS = {Mode.READ_COUNTER_0: 0, Mode.READ_COUNTER_1: 1}


class ChipRefused(DetectorError):
    """The chip cannot do this transaction, or what it would do is not known."""


class SimulatedChip:
    """One Medipix3RX: registers, pixel configuration, two counters per pixel, and the serial port.

    Parameters
    ----------
    front_end : FrontEnd
        What the pixels' amplifiers and discriminators make of the light that falls while the shutter is open.
    chip_id : int
        32-bit e-fuse word: bits 0-3 number, 4-7 letter, 8-19 wafer; 0x00021165 is W529_F5.
    saturates : bool
        Whether a full counter stays at its last count, or starts again at 0.
    """

    def __init__(self, front_end: FrontEnd, *, chip_id: int = 0x00021165, saturates: bool = True) -> None:
        self._front_end = front_end
        self._chip_id = chip_id
        self._saturates = saturates
        self.reset()

    def reset(self) -> None:
        """Put every register, the pixel configuration and the counters to 0."""
        self._omr = 0
        self._dacs = 0
        self._column_test_pulse = 0
        self._pixels = np.zeros((chip.ROWS, chip.COLS), dtype=np.uint16)
        self._counters = np.zeros((2, chip.ROWS, chip.COLS), dtype=np.uint16)
        self._half_loaded: int | None = None
        self._settings: Settings | None = None

    def transact(self, omr: int, bits: bytes) -> bytes:
        """Shift in an OMR and what follows it, and return the bits that come out.

        Parameters
        ----------
        omr : int
            48-bit operation mode register.
        bits : bytes
            What is shifted in after the OMR, first bit in the MSB of the first byte.

        Returns
        -------
        bytes
            DACs and information header: first bit in the MSB of the first byte. Matrix: bit k*N + L of the stream is
            clock k of line L of N, and bit b stands in byte b // 8 at position b % 8.

        Raises
        ------
        ChipRefused
        """
        fields = self._take_mode(omr)
        mode = Mode(fields["M"])
        if len(bits) != BYTES_IN[mode]:
            raise ChipRefused(f"{mode.name} got {len(bits)} bytes; allowed: {BYTES_IN[mode]}")
        if mode in _LOADS:
            self._load(fields, _LOADS[mode], bits)
            return b""
        self._half_loaded = None  # anything in between spoils a pair of half loads
        if mode in _READS:
            return self._read(fields, _READS[mode])
        if mode is Mode.SET_DACS:
            self._dacs, self._settings = int.from_bytes(bits, "big"), None
        elif mode is Mode.SET_CTPR:
            self._column_test_pulse = int.from_bytes(bits, "big")
        elif mode is Mode.READ_DACS:
            return self._dacs.to_bytes(REGISTER_BYTES, "big")
        else:
            return self._information_header()
        return b""

    def fast_clear(self) -> None:
        """Put all counters to 0."""
        self._counters[:] = 0

    def arm(self, omr: int) -> None:
        """Take the mode in which the next shutter counts.

        Raises
        ------
        ChipRefused
            The simulated front end cannot count in this mode.
        """
        _refuse_uncountable(self._take_mode(omr))

    def expose(self, duration_s: float) -> None:
        """Open the shutter and count, in the mode of the last OMR.

        Raises
        ------
        ChipRefused
            The simulated front end cannot count in this mode.
        """
        fields = chip.unpack_register(chip.OMR_FIELDS, self._omr)
        _refuse_uncountable(fields)
        if self._settings is None:
            self._settings = self._front_end_settings(fields)
        events = self._front_end(duration_s, self._settings)
        for cluster_pixel, (row, col) in enumerate(chip.SUBPIXELS):
            low, high = self._counters[:, row::2, col::2]
            disc_l, disc_h = events[2 * cluster_pixel], events[2 * cluster_pixel + 1]
            self._count(fields, low, high, disc_l, disc_h)

    def _take_mode(self, omr: int) -> dict[str, int]:
        if not 0 <= omr < 1 << chip.OMR_BITS:
            raise ChipRefused(f"the OMR is {omr:#x}; allowed: {chip.OMR_BITS} bits")
        fields = chip.unpack_register(chip.OMR_FIELDS, omr)
        if fields["CRW_SRW"]:
            raise ChipRefused("CRW_SRW is 1; continuous read/write is not simulated, allowed: 0 (sequential)")
        if fields["ColumnBlockSel"] or fields["RowBlockSel"] or fields["ColumnBlock"]:
            raise ChipRefused("a region of interest is not simulated; allowed: the whole matrix, block fields 0")
        if fields["RowBlock"] and fields["M"] not in _LOADS:
            raise ChipRefused(f"RowBlock is {fields['RowBlock']}; allowed: 0, except in half loads of the matrix")
        if omr >> 3 != self._omr >> 3:  # the mode bits M do not concern the front end
            self._settings = None
        self._omr = omr
        return fields

    def _load(self, fields: Mapping[str, int], counter: int, bits: bytes) -> None:
        """Shift half a matrix into a counter: rows 0-127 first, 128-255 if the same load follows at once.

        The silicon spoils a load of the whole matrix in one go (in a way that no source tells), and a load with
        charge summing on; both are refused here. The pixels latch their configuration when counter 1 is full.
        """
        if fields["RowBlock"] != chip.ROW_BLOCK_HALF_LOAD:
            raise ChipRefused(
                f"RowBlock is {fields['RowBlock']} in a load; allowed: {chip.ROW_BLOCK_HALF_LOAD}, in two halves"
            )
        if fields["CSM_SPM"]:
            raise ChipRefused("CSM_SPM is 1 in a load; allowed: 0, charge summing disturbs the shift")
        is_second = self._half_loaded == counter
        first_row = chip.MATRIX_HALF_ROWS if is_second else 0
        self._counters[counter, first_row : first_row + chip.MATRIX_HALF_ROWS] = _words_of_load(bits)
        self._half_loaded = None if is_second else counter
        if is_second and counter == 1:
            self._pixels, self._settings = self._counters[1].copy(), None

    def _read(self, fields: Mapping[str, int], counter: int) -> bytes:
        header = self._information_header() if fields["InfoHeader"] else b""
        depth = SERIAL_DEPTH[DEPTH_OF_CODE[fields["CountL"]]]
        columns = _columns_in_stream(LINES_OF_CODE[fields["PS"]])
        stream = _serialise(self._counters[counter], columns, depth)
        self._counters[counter] = 0  # reading shifts zeros in behind
        return header + stream.tobytes()

    def _information_header(self) -> bytes:
        """Return 8 words of 32 bits: 5 zero (not decoded by any source), the e-fuse, and the OMR in the last 48."""
        before = bytes(4 * chip.EFUSE_ID_WORD)
        return before + self._chip_id.to_bytes(4, "big") + self._omr.to_bytes(8, "big")

    def _front_end_settings(self, fields: Mapping[str, int]) -> Settings:
        dacs = chip.unpack_register(chip.DAC_FIELDS, self._dacs)
        words = [self._pixels[row::2, col::2] for row, col in chip.SUBPIXELS]
        trims = [_field_of(word, trim) for word in words for trim in (chip.PIXEL_TRIM_L, chip.PIXEL_TRIM_H)]
        masks = [_field_of(word, chip.PIXEL_MASK) for word in words for _ in range(2)]
        return Settings(
            threshold_dac=np.array([dacs[f"Threshold{n}"] for n in range(chip.N_THRESHOLDS)]),
            trim=np.stack(trims),
            is_masked=np.stack(masks).astype(bool),
            disc_l=dacs["DAC_DiscL"],
            disc_h=dacs["DAC_DiscH"],
            gain=chip.Gain(fields["GainMode"]),
            is_csm=bool(fields["CSM_SPM"]),
            is_equalization=bool(fields["Equalization"]),
        )

    def _count(
        self,
        fields: Mapping[str, int],
        low: NDArray[np.uint16],
        high: NDArray[np.uint16],
        disc_l: NDArray[np.uint32],
        disc_h: NDArray[np.uint32],
    ) -> None:
        """Route the two discriminators of one pixel of the clusters into its two counters.

        Disc_CSM_SPM 0 sends DiscL to counter 0 and DiscH to counter 1, 1 swaps them. The two counters in one are fed
        by DiscL at 1 and by DiscH at 0.
        """
        depth = DEPTH_OF_CODE[fields["CountL"]]
        tables = _STATES[depth], _COUNTS[depth]
        is_swapped = bool(fields["Disc_CSM_SPM"])
        if depth == 24:
            _count_in_both(low, high, disc_l if is_swapped else disc_h, *tables, self._saturates)
            return
        into_low, into_high = (disc_h, disc_l) if is_swapped else (disc_l, disc_h)
        _count_in_one(low, into_low, *tables, self._saturates)
        _count_in_one(high, into_high, *tables, self._saturates)


def _refuse_uncountable(fields: Mapping[str, int]) -> None:
    if not fields["ColourMode"]:
        raise ChipRefused("ColourMode is 0; the simulated sensor has 110 um pixels, allowed: 1 for an exposure")
    if fields["Polarity"]:
        raise ChipRefused("Polarity is 1 (holes); the simulated sensor collects electrons, allowed: 0")
    if fields["Enable_TP"]:
        raise ChipRefused("Enable_TP is 1; test pulses are not simulated, allowed: 0")


def _field_of(words: NDArray[np.uint16], field: chip.Field) -> NDArray[np.uint8]:
    return (words >> field.low & (1 << field.width) - 1).astype(np.uint8)


def _words_of_load(bits: bytes) -> NDArray[np.uint16]:
    """Take a half load apart: rows upward, planes 11 to 0, columns 255 to 0; (128, 256) uint16."""
    planes = np.unpackbits(np.frombuffer(bits, dtype=np.uint8)).reshape(-1, chip.PIXEL_BITS, chip.COLS)
    weights = 1 << np.arange(chip.PIXEL_BITS - 1, -1, -1, dtype=np.uint16)
    return (planes[:, :, ::-1] * weights[:, np.newaxis]).sum(axis=1, dtype=np.uint16)


def _columns_in_stream(n_lines: int) -> NDArray[np.int64]:
    """Return the column of each bit of one plane of one row in the order of the stream: (256,) int64."""
    clock, line = np.divmod(np.arange(chip.COLS), n_lines)
    return chip.COLS - 1 - (chip.COLS // n_lines * line + clock)


@njit(cache=True, nogil=True)
def _serialise(words: NDArray[np.uint16], columns: NDArray[np.int64], depth: int) -> NDArray[np.uint8]:
    """Return the serial bytes of a (256, 256) uint16 counter: rows upward, highest plane first, columns in order."""
    rows, n_bytes = words.shape[0], len(columns) // 8
    stream = np.zeros((rows, depth, n_bytes), dtype=np.uint8)
    for row in range(rows):
        for bit in range(len(columns)):
            word, byte, position = words[row, columns[bit]], bit >> 3, bit & 7
            for plane in range(depth):
                stream[row, depth - 1 - plane, byte] |= (word >> plane & 1) << position
    return stream


@njit(cache=True, nogil=True)
def _count_in_one(
    states: NDArray[np.uint16],
    events: NDArray[np.uint32],
    state_of: NDArray[np.uint16],
    count_of: NDArray[np.int64],
    saturates: bool,
) -> None:
    """Advance the counters of one sub-pixel plane, (rows, cols) each, in place."""
    last = len(state_of) - 1
    for row in range(states.shape[0]):
        for col in range(states.shape[1]):
            total = count_of[states[row, col] & last] + np.int64(events[row, col])
            if total > last:
                total = last if saturates else total & last
            states[row, col] = state_of[total]


@njit(cache=True, nogil=True)
def _count_in_both(
    low: NDArray[np.uint16],
    high: NDArray[np.uint16],
    events: NDArray[np.uint32],
    state_of: NDArray[np.uint16],
    count_of: NDArray[np.int64],
    saturates: bool,
) -> None:
    """Advance the two counters of one sub-pixel plane as one of 24 bits: counter 1 counts the turns of counter 0."""
    last = len(state_of) ** 2 - 1
    for row in range(low.shape[0]):
        for col in range(low.shape[1]):
            total = count_of[high[row, col]] * len(state_of) + count_of[low[row, col]] + np.int64(events[row, col])
            if total > last:
                total = last if saturates else total & last
            high[row, col] = state_of[total // len(state_of)]
            low[row, col] = state_of[total % len(state_of)]
