"""serial bits: the chip's own bit stream, LFSR codes and all, out of registers and counters like the silicon's.

The chip knows nothing of packets or of time: it answers one transaction at a time (a 48-bit OMR, then bits in or bits
out), and when its shutter opens it asks its front end for events and counts them. What no source tells about the
silicon is an option with a default (`Silicon`) or refused in words (`ChipRefused`), never guessed in silence.

# Ref: transactions, operation modes and discriminator routing: DiamondLightSource/excalibur-detector @099951f3
#      `ExcaliburFemClientMpx3.cpp` 166-207, 440-461, 503-556, 650-706 and `definitions.py` 84-245 (DISC_SPM_CSM_TABLE).
# Ref: continuous read/write begins by reading counter 1, not with 24 bits: excalibur-detector `ExcaliburFemClient.cpp`
#      524-531, 728-747. Row blocks in loads: the same, `ExcaliburFemClientMpx3.cpp` 556-650.
# Ref: information header: MARS `pyMarsCamera.py` (bytes 20-23 and 26-31); navrit/dexter @c8bc0f46 `FrameAssembler.cpp`.
# Ref: e-fuse format: dexter `mpx3config.cpp` 511-528, which cites page 57 of the Medipix3RX manual v1.4.
# Ref: a test pulse needs Enable_TP, the column's bit and the pixel's bit: excalibur-detector, medipix3rx reference 5.3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from firmware_iface import chip
from firmware_iface.chip import Mode
from firmware_iface.errors import DetectorError
from sim import sense
from sim.pixels import FAST, SERIAL
from sim.sensor import Settings

FrontEnd = Callable[[float, Settings], NDArray[np.uint32]]
"""(shutter time in s, settings) to events above each threshold: (8, 128, 128) in colour, (2, 256, 256) else; uint32."""
Injection = Callable[[int, NDArray[np.float32], Settings], NDArray[np.uint32]]
"""(number of test pulses, electrons of each in every pixel (256, 256) float32, settings) to events, as `FrontEnd`."""

_PLANE_BYTES = chip.COLS // 8
HALF_LOAD_BYTES = chip.MATRIX_HALF_ROWS * chip.PIXEL_BITS * _PLANE_BYTES
WHOLE_LOAD_BYTES = chip.ROWS * chip.PIXEL_BITS * _PLANE_BYTES
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
"""How many bytes each transaction shifts in after the OMR, loads in halves."""

DEPTH_OF_CODE = {code: depth for depth, code in chip.DEPTH_CODES.items()}
LINES_OF_CODE = {code: lines for lines, code in chip.LINES_CODES.items()}
SERIAL_DEPTH = {1: 1, 6: 6, 12: 12, 24: 12}
"""Bit planes in one readout: 24 bits leave the chip as two readouts of 12."""

_LOADS = {Mode.LOAD_COUNTER_0: 0, Mode.LOAD_COUNTER_1: 1}
_READS = {Mode.READ_COUNTER_0: 0, Mode.READ_COUNTER_1: 1}
_LOAD_DEPTH_CODE = chip.DEPTH_CODES[chip.PIXEL_BITS]


class ChipRefused(DetectorError):
    """The chip cannot do this transaction, or what it would do is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Silicon:
    """What no source settles about the silicon, and what is assumed; PROTOCOL.md has the same table.

    Attributes
    ----------
    saturates : bool
        Whether a full counter stays at its last count, or starts again at 0.
    reading_clears : bool
        Whether reading a counter leaves it at 0, or as it was.
    first_counter : {0, 1}
        Which counter counts first, and so is read first, in continuous read/write.
    spoiled_half : {"garbage", "zeros"}
        What rows 128-255 hold after a load of the whole matrix in one go; rows 0-127 are as loaded.
    pulse_groups : {"columns", "rows"}
        What decides between TP_REFA (even) and TP_REFB (odd).
    """

    saturates: bool = True
    reading_clears: bool = True
    first_counter: int = 1
    spoiled_half: str = "garbage"
    pulse_groups: str = "columns"

    def __post_init__(self) -> None:
        allowed: Mapping[str, tuple[object, ...]] = {
            "first_counter": (0, 1), "spoiled_half": ("garbage", "zeros"), "pulse_groups": ("columns", "rows"),
        }  # fmt: skip
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: {', '.join(map(repr, values))}")


SILICON_KEYS: Mapping[str, Mapping[str, object]] = {
    "saturates": {"0": False, "1": True},
    "reading_clears": {"0": False, "1": True},
    "first_counter": {"0": 0, "1": 1},
    "spoiled_half": {"garbage": "garbage", "zeros": "zeros"},
    "pulse_groups": {"columns": "columns", "rows": "rows"},
}
"""What an address may say about the silicon, such as ``saturates=0``."""


def bytes_in(omr: int) -> int:
    """Return how many bytes follow an OMR into the chip."""
    fields = chip.unpack_register(chip.OMR_FIELDS, omr)
    mode = Mode(fields["M"])
    return WHOLE_LOAD_BYTES if mode in _LOADS and not fields["RowBlock"] else BYTES_IN[mode]


class SimulatedChip:
    """One Medipix3RX: registers, pixel configuration, two counters per pixel, and the serial port.

    Parameters
    ----------
    front_end : FrontEnd
        What the pixels' amplifiers and discriminators make of the light that falls while the shutter is open.
    chip_id : int
        32-bit e-fuse word: bits 0-3 number, 4-7 letter, 8-19 wafer; 0x00021165 is W529_F5.
    silicon : Silicon
        What no source settles.
    injection : Injection, optional
        What amplifiers and discriminators make of test pulses; without it they are refused.
    temperature_c : float
        What the chip's temperature sensor shows.
    is_bit_serial : bool
        Count event by event and read clock by clock, instead of by tables: the same bits, slowly.
    """

    def __init__(
        self,
        front_end: FrontEnd,
        *,
        chip_id: int = 0x00021165,
        silicon: Silicon | None = None,
        injection: Injection | None = None,
        temperature_c: float = 35.0,
        is_bit_serial: bool = False,
    ) -> None:
        self._front_end = front_end
        self._chip_id = chip_id
        self._silicon = silicon or Silicon()
        self._injection = injection
        self._pad = sense.SensePad(chip_id, temperature_c)
        self._logic = SERIAL if is_bit_serial else FAST
        self._external_dac_v: float | None = None
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
        self._counting = self._silicon.first_counter

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
        if len(bits) != bytes_in(omr):
            raise ChipRefused(f"{mode.name} got {len(bits)} bytes; allowed: {bytes_in(omr)}")
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
        """Put all counters to 0; continuous read/write begins anew."""
        self._counters[:] = 0
        self._counting = self._silicon.first_counter

    def arm(self, omr: int) -> None:
        """Take the mode in which the next shutter counts.

        Raises
        ------
        ChipRefused
            What the chip counts in this mode is not known, or nothing is wired to it that could.
        """
        self._refuse_uncountable(self._take_mode(omr))

    def expose(self, duration_s: float) -> None:
        """Open the shutter and count, in the mode of the last OMR.

        Raises
        ------
        ChipRefused
            As `arm`.
        """
        fields = self._fields
        self._refuse_uncountable(fields)
        settings = self._settings_in_force(fields)
        self._count(fields, settings, self._front_end(duration_s, settings))

    def pulse(self, n: int) -> None:
        """Give `n` test pulses while the shutter is open, in the mode of the last OMR.

        Only pixels whose own test bit and whose column's bit are set take them, and only if Enable_TP is 1.

        Raises
        ------
        ChipRefused
            As `arm`.
        """
        fields = self._fields
        self._refuse_uncountable(fields)
        if fields["Enable_TP"] and self._injection is not None and n > 0:
            settings = self._settings_in_force(fields)
            self._count(fields, settings, self._injection(n, self._pulse_charge_e(fields), settings))

    def sense_voltage_v(self) -> float:
        """Return the voltage of the DAC that SenseDAC of the last OMR names, as the board's 12-bit converter reads it.

        It comes in steps of the converter, with the offset of the pad; 0 in SenseDAC gives that offset.
        """
        return sense.adc_voltage_v(self.sense_code())

    def sense_code(self) -> int:
        """Return the same as the converter's code, 0 to 4095."""
        fields = self._fields
        dacs = chip.unpack_register(chip.DAC_FIELDS, self._dacs)
        return sense.adc_code(self._pad.voltage_v(fields["SenseDAC"], dacs, self._overridden(fields)))

    def wire_external_dac(self, voltage_v: float | None) -> None:
        """Put a voltage on the external DAC input, or leave it open; ExtDAC names the DAC that it stands in for."""
        self._external_dac_v, self._settings = voltage_v, None

    @property
    def _fields(self) -> dict[str, int]:
        return chip.unpack_register(chip.OMR_FIELDS, self._omr)

    def _take_mode(self, omr: int) -> dict[str, int]:
        if not 0 <= omr < 1 << chip.OMR_BITS:
            raise ChipRefused(f"the OMR is {omr:#x}; allowed: {chip.OMR_BITS} bits")
        fields = chip.unpack_register(chip.OMR_FIELDS, omr)
        _refuse_unknown(fields)
        if fields["ExtDAC"] and self._external_dac_v is None:
            raise ChipRefused(f"ExtDAC is {fields['ExtDAC']}, and nothing is wired to the external DAC; allowed: 0")
        if fields["CRW_SRW"] and not self._fields["CRW_SRW"]:
            self._counting = self._silicon.first_counter
        if omr >> 3 != self._omr >> 3:  # the mode bits M do not concern the front end
            self._settings = None
        self._omr = omr
        return fields

    def _load(self, fields: Mapping[str, int], counter: int, bits: bytes) -> None:
        """Shift words into a counter: half a matrix with RowBlock 7, else the whole.

        Halves fill rows 0-127 first, and 128-255 if the same load follows at once. The pixels latch their configuration
        when counter 1 is full.
        """
        if fields["CSM_SPM"]:
            raise ChipRefused("CSM_SPM is 1 in a load; allowed: 0, charge summing disturbs the shift")
        if fields["CountL"] != _LOAD_DEPTH_CODE:
            raise ChipRefused(f"CountL is {fields['CountL']} in a load; allowed: {_LOAD_DEPTH_CODE}, 12 bits per pixel")
        words = _words_of_load(bits)
        if not fields["RowBlock"]:
            self._half_loaded = None
            self._counters[counter] = self._spoil(words)
        else:
            is_second = self._half_loaded == counter
            first_row = chip.MATRIX_HALF_ROWS if is_second else 0
            self._counters[counter, first_row : first_row + chip.MATRIX_HALF_ROWS] = words
            self._half_loaded = None if is_second else counter
            if not is_second:
                return
        if counter == 1:
            self._pixels, self._settings = self._counters[1].copy(), None

    def _spoil(self, words: NDArray[np.uint16]) -> NDArray[np.uint16]:
        """Do what the RX does to a load of the whole matrix, as far as it is known: it does not work."""
        upper = words[chip.MATRIX_HALF_ROWS :]
        if self._silicon.spoiled_half == "zeros":
            upper[:] = 0
        else:  # the same garbage each time, and never what was sent
            garbage = np.random.default_rng((self._chip_id, 1)).integers(1, 1 << chip.PIXEL_BITS, upper.shape)
            upper ^= garbage.astype(np.uint16)
        return words

    def _read(self, fields: Mapping[str, int], counter: int) -> bytes:
        header = self._information_header() if fields["InfoHeader"] else b""
        depth = SERIAL_DEPTH[DEPTH_OF_CODE[fields["CountL"]]]
        stream = self._logic.shift_out(self._counters[counter], depth, LINES_OF_CODE[fields["PS"]])
        if self._silicon.reading_clears:
            self._counters[counter] = 0  # reading shifts zeros in behind
        if fields["CRW_SRW"]:
            self._counting = 1 - counter  # while one is read, the other counts
        return header + stream

    def _information_header(self) -> bytes:
        """Return 8 words of 32 bits: 5 zero (not decoded by any source), the e-fuse, and the OMR in the last 48."""
        before = bytes(4 * chip.EFUSE_ID_WORD)
        return before + self._chip_id.to_bytes(4, "big") + self._omr.to_bytes(8, "big")

    def _refuse_uncountable(self, fields: Mapping[str, int]) -> None:
        if fields["Enable_TP"] and self._injection is None:
            raise ChipRefused("Enable_TP is 1, and this front end takes no test pulses; allowed: 0")
        if fields["CRW_SRW"] and fields["Equalization"]:
            raise ChipRefused("Equalization is 1 in continuous read/write, whose routing no source tells; allowed: 0")

    def _overridden(self, fields: Mapping[str, int]) -> dict[str, float]:
        """Return the voltage of the DAC that the external input stands in for."""
        if not fields["ExtDAC"] or self._external_dac_v is None:
            return {}
        return {chip.SENSE_NAMES[fields["ExtDAC"]]: self._external_dac_v}

    def _dacs_in_force(self, fields: Mapping[str, int]) -> dict[str, int]:
        """Return the codes of all DACs, of an overridden one the code nearest to its voltage."""
        dacs = chip.unpack_register(chip.DAC_FIELDS, self._dacs)
        return dacs | {name: self._pad.laws[name].code_at(v) for name, v in self._overridden(fields).items()}

    def _settings_in_force(self, fields: Mapping[str, int]) -> Settings:
        if self._settings is None:
            self._settings = self._front_end_settings(fields)
        return self._settings

    def _front_end_settings(self, fields: Mapping[str, int]) -> Settings:
        dacs = self._dacs_in_force(fields)
        words = [self._pixels[place] for place in _places(fields)]
        trims = [_field_of(word, trim) for word in words for trim in (chip.PIXEL_TRIM_L, chip.PIXEL_TRIM_H)]
        masks = [_field_of(word, chip.PIXEL_MASK) for word in words for _ in range(2)]
        return Settings(
            threshold_dac=np.array([dacs[f"Threshold{n}"] for n in range(len(trims))]),
            trim=np.stack(trims),
            is_masked=np.stack(masks).astype(bool),
            disc_l=dacs["DAC_DiscL"],
            disc_h=dacs["DAC_DiscH"],
            gain=chip.Gain(fields["GainMode"]),
            is_csm=bool(fields["CSM_SPM"]),
            is_equalization=bool(fields["Equalization"]),
            is_hole_collecting=bool(fields["Polarity"]),
            ikrum=dacs["Ikrum"],
        )

    def _pulse_charge_e(self, fields: Mapping[str, int]) -> NDArray[np.float32]:
        """Return what one test pulse injects: (256, 256) float32, 0 in the pixels that take none."""
        dacs = self._dacs_in_force(fields)
        rows, cols = np.indices((chip.ROWS, chip.COLS), sparse=True)
        is_group_b = (cols if self._silicon.pulse_groups == "columns" else rows) % 2 == 1
        charge_e = np.where(is_group_b, self._pad.charge_e("TP_REFB", dacs), self._pad.charge_e("TP_REFA", dacs))
        is_column_pulsed = np.array([self._column_test_pulse >> col & 1 for col in range(chip.COLS)], dtype=bool)
        is_pulsed = _field_of(self._pixels, chip.PIXEL_TEST).astype(bool) & is_column_pulsed
        return np.where(is_pulsed, charge_e, 0).astype(np.float32)

    def _count(self, fields: Mapping[str, int], settings: Settings, events: NDArray[np.uint32]) -> None:
        """Route the two discriminators of each pixel into its two counters.

        Sequentially, Disc_CSM_SPM 0 sends DiscL to counter 0 and DiscH to counter 1, and 1 swaps them. Where one
        discriminator feeds all there is, the two counters in one of 24 bits or the active one of continuous
        read/write, 1 takes DiscL and 0 DiscH.
        """
        if events.shape != settings.trim.shape:
            raise ChipRefused(f"the front end gave events of shape {events.shape}; allowed here: {settings.trim.shape}")
        depth = DEPTH_OF_CODE[fields["CountL"]]
        is_swapped = bool(fields["Disc_CSM_SPM"])
        saturates = self._silicon.saturates
        for place, disc_l, disc_h in zip(_places(fields), events[0::2], events[1::2], strict=True):
            low, high = self._counters[0][place], self._counters[1][place]
            chosen, other = (disc_l, disc_h) if is_swapped else (disc_h, disc_l)
            if depth == 24:
                self._logic.count_both(low, high, chosen, saturates)
            elif fields["CRW_SRW"]:
                self._logic.count_one((low, high)[self._counting], chosen, depth, saturates)
            else:
                self._logic.count_one(low, other, depth, saturates)
                self._logic.count_one(high, chosen, depth, saturates)


def _refuse_unknown(fields: Mapping[str, int]) -> None:
    """Refuse every setting whose effect no source tells."""
    mode = Mode(fields["M"])
    if fields["ColumnBlockSel"] or fields["RowBlockSel"] or fields["ColumnBlock"]:
        raise ChipRefused("a region of interest, whose codes no source tells; allowed: all block fields 0")
    if fields["RowBlock"] not in ((0, chip.ROW_BLOCK_HALF_LOAD) if mode in _LOADS else (0,)):
        raise ChipRefused(
            f"RowBlock is {fields['RowBlock']}; allowed: 0, and {chip.ROW_BLOCK_HALF_LOAD} in half loads of the matrix"
        )
    if fields["FuseSel"] or fields["FusePulseWidth"]:
        fuses = f"FuseSel is {fields['FuseSel']} and FusePulseWidth {fields['FusePulseWidth']}"
        raise ChipRefused(f"{fuses}; allowed: 0, for fuses are not burnt")
    if fields["ExtBGSel"]:
        raise ChipRefused("ExtBGSel is 1, and no external band gap is wired; allowed: 0")
    if fields["ExtDAC"] and chip.SENSE_NAMES[fields["ExtDAC"]] not in chip.DAC_FIELDS:
        raise ChipRefused(f"ExtDAC is {fields['ExtDAC']}, which is no DAC; allowed: 0 to 25, 30 and 31")
    if fields["CRW_SRW"] and DEPTH_OF_CODE[fields["CountL"]] == 24:
        raise ChipRefused("CRW_SRW is 1 with 24 bits, which take both counters; allowed: 1, 6 or 12 bits")


def _places(fields: Mapping[str, int]) -> list[tuple[slice, slice]]:
    """Return where the pixels of each pair of thresholds stand in the matrix: P1 to P4, or everywhere."""
    if fields["ColourMode"]:
        return [(slice(row, None, 2), slice(col, None, 2)) for row, col in chip.SUBPIXELS]
    return [(slice(None), slice(None))]


def _field_of(words: NDArray[np.uint16], field: chip.Field) -> NDArray[np.uint8]:
    return (words >> field.low & (1 << field.width) - 1).astype(np.uint8)


def _words_of_load(bits: bytes) -> NDArray[np.uint16]:
    """Take a load apart: rows upward, planes 11 to 0, columns 255 to 0; (128 or 256, 256) uint16."""
    planes = np.unpackbits(np.frombuffer(bits, dtype=np.uint8)).reshape(-1, chip.PIXEL_BITS, chip.COLS)
    weights = 1 << np.arange(chip.PIXEL_BITS - 1, -1, -1, dtype=np.uint16)
    return (planes[:, :, ::-1] * weights[:, np.newaxis]).sum(axis=1, dtype=np.uint16)
