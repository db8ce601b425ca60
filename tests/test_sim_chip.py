"""The simulated chip: registers, configuration, counting, and the order of its serial bits, by hand-written bits."""

from __future__ import annotations

import hashlib

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from numpy.typing import NDArray

from firmware_iface import chip
from firmware_iface.chip import Gain, Mode
from sim.chip import ChipRefused, SimulatedChip
from sim.sensor import Settings

HEADER_BYTES = chip.EFUSE_HEADER_BYTES
EXCALIBUR_OMR = 0x001800000470
"""Power-on OMR of EXCALIBUR: sequential, holes, 8 lines, 12 bits, SLGM (reference section 3)."""


def omr_of(mode: Mode, *, depth: int = 12, lines: int = 8, **fields: int) -> int:
    fields = {"ColourMode": 1, "GainMode": Gain.HGM, **fields}
    codes = {"M": mode, "CountL": chip.DEPTH_CODES[depth], "PS": chip.LINES_CODES[lines]}
    return chip.pack_register(chip.OMR_FIELDS, codes | fields)


class FrontEnd:
    """Events that a test sets, and the settings that the chip asked for."""

    def __init__(self) -> None:
        self.events = np.zeros((8, 128, 128), dtype=np.uint32)
        self.settings: list[Settings] = []

    def __call__(self, duration_s: float, settings: Settings) -> NDArray[np.uint32]:
        self.settings.append(settings)
        return self.events


def a_chip(**options: bool) -> tuple[SimulatedChip, FrontEnd]:
    front_end = FrontEnd()
    return SimulatedChip(front_end, chip_id=0x00021165, **options), front_end


def load_bits(words: NDArray[np.integer]) -> list[bytes]:
    """Write down the two half loads bit by bit, as the load order says."""
    halves = []
    for first_row in (0, 128):
        text = "".join(
            str(int(words[row, col]) >> plane & 1)
            for row in range(first_row, first_row + 128)
            for plane in range(11, -1, -1)
            for col in range(255, -1, -1)
        )
        halves.append(int(text, 2).to_bytes(len(text) // 8, "big"))
    return halves


def load(device: SimulatedChip, mode: Mode, words: NDArray[np.integer]) -> None:
    omr = omr_of(mode, RowBlock=chip.ROW_BLOCK_HALF_LOAD)
    for half in load_bits(words):
        assert device.transact(omr, half) == b""


def bit_at(stream: bytes, number: int) -> int:
    return stream[number // 8] >> number % 8 & 1


def ones(stream: bytes) -> set[int]:
    return set(np.flatnonzero(np.unpackbits(np.frombuffer(stream, np.uint8), bitorder="little")).tolist())


def counts_in(stream: bytes, depth: int, lines: int) -> NDArray[np.int64]:
    """Read a stream as the specification words it, one bit at a time in NumPy, without any of our decoders."""
    bits = np.unpackbits(np.frombuffer(stream, np.uint8), bitorder="little").reshape(256, depth, 256 // lines, lines)
    words = np.zeros((256, 256), dtype=np.int64)
    for line in range(lines):
        for clock in range(256 // lines):
            planes = bits[:, :, clock, line].astype(np.int64)
            words[:, 255 - (256 // lines * line + clock)] = planes @ (1 << np.arange(depth - 1, -1, -1))
    if depth == 1:
        return words
    decode = np.argsort(chip.LFSR_STATES[depth])
    return decode[words]


# Facts of the reference


def test_lfsr_vectors() -> None:
    states = chip.LFSR_STATES[12]
    assert hashlib.sha256(states.astype("<u2").tobytes()).hexdigest() == (
        "b808d44311a6bdbee03fca31483001b34582b361e59ec59a056412443b5da978"
    )
    assert [f"{states[n]:03X}" for n in (0, 1, 10, 255, 1000, 2048, 4095)] == (
        ["000", "001", "3DC", "4E6", "35B", "641", "800"]
    )
    assert hashlib.sha256(chip.LFSR_STATES[6].astype(np.uint8).tobytes()).hexdigest() == (
        "0f1e911ae3f1bb2f730958da7cabc2de50b9ab484fc7c7b87fa5b3f3fe463f8b"
    )


def test_excalibur_omr_words() -> None:
    fields = {"Polarity": 1, "PS": 3, "CountL": 2, "GainMode": Gain.SLGM}
    assert chip.pack_register(chip.OMR_FIELDS, fields) == EXCALIBUR_OMR
    assert chip.pack_register(chip.OMR_FIELDS, fields | {"M": 6, "RowBlock": 7}) == 0x001800038476


def test_dac_register_of_excalibur_reads_back() -> None:
    device, _ = a_chip()
    words = bytes.fromhex("FA7D2D2F200CBFC1200C96991119191F5F4299190C86432190C8281E40000000")
    assert device.transact(omr_of(Mode.SET_DACS), words) == b""
    assert device.transact(omr_of(Mode.READ_DACS), b"") == words
    values = chip.unpack_register(chip.DAC_FIELDS, int.from_bytes(words, "big"))
    assert (values["Threshold0"], values["Threshold1"], values["Cas"], values["TP_REFB"]) == (121, 80, 180, 500)


def test_information_header_holds_efuse_and_omr() -> None:
    device, _ = a_chip()
    omr = omr_of(Mode.READ_EFUSE)
    header = device.transact(omr, b"")
    assert header == bytes(20) + bytes.fromhex("00021165") + bytes(2) + omr.to_bytes(6, "big")


@hypothesis.settings(deadline=None, max_examples=30)  # the first call compiles
@hypothesis.given(
    mode=st.sampled_from([Mode.READ_COUNTER_0, Mode.READ_COUNTER_1]),
    lines=st.sampled_from([1, 2, 4, 8]),
    sense=st.integers(0, 31),
    gain=st.sampled_from(Gain),
)
def test_omr_echo_of_every_read(mode: Mode, lines: int, sense: int, gain: Gain) -> None:
    omr = omr_of(mode, depth=1, lines=lines, InfoHeader=1, SenseDAC=sense, GainMode=gain)
    device, _ = a_chip()
    assert int.from_bytes(device.transact(omr, b"")[HEADER_BYTES - 6 : HEADER_BYTES], "big") == omr


# Order of the serial bits


@pytest.mark.parametrize(
    ("row", "col", "plane", "lines", "number"),
    [
        (0, 255, 11, 8, 0),  # first bit of all: bottom row, right column, highest plane, line 0
        (0, 254, 11, 8, 8),  # next clock of line 0
        (0, 223, 11, 8, 1),  # line 1 begins 32 columns further left
        (0, 0, 11, 8, 255),  # last clock of line 7
        (0, 255, 10, 8, 256),  # next plane of the same row
        (1, 255, 11, 8, 12 * 256),  # next row
        (255, 0, 0, 8, 256 * 256 * 12 - 1),  # last bit of all
        (0, 255, 11, 1, 0),
        (0, 250, 11, 1, 5),
        (0, 127, 11, 2, 1),
        (0, 128, 11, 2, 254),
        (0, 191, 11, 4, 1),
        (0, 62, 11, 4, 7),
    ],
)
def test_golden_bit_positions(row: int, col: int, plane: int, lines: int, number: int) -> None:
    device, _ = a_chip()
    words = np.zeros((256, 256), dtype=np.uint16)
    words[row, col] = 1 << plane
    load(device, Mode.LOAD_COUNTER_0, words)
    stream = device.transact(omr_of(Mode.READ_COUNTER_0, lines=lines), b"")
    assert len(stream) == 98304
    assert ones(stream) == {number}


def test_a_row_of_8_lines_by_hand() -> None:
    """With 8 lines a byte is a clock: bit L is line L, which starts at column 255 - 32 L."""
    device, _ = a_chip()
    words = np.zeros((256, 256), dtype=np.uint16)
    words[0, [255, 255 - 32, 255 - 96 - 2]] = 0x800
    load(device, Mode.LOAD_COUNTER_0, words)
    stream = device.transact(omr_of(Mode.READ_COUNTER_0), b"")
    assert stream[:4] == bytes([0b00000011, 0, 0b00001000, 0])


@pytest.mark.parametrize(("depth", "n_bytes"), [(1, 8192), (6, 49152), (12, 98304), (24, 98304)])
def test_length_of_a_readout(depth: int, n_bytes: int) -> None:
    device, _ = a_chip()
    assert len(device.transact(omr_of(Mode.READ_COUNTER_1, depth=depth), b"")) == n_bytes
    with_header = omr_of(Mode.READ_COUNTER_1, depth=depth, InfoHeader=1)
    assert len(device.transact(with_header, b"")) == n_bytes + HEADER_BYTES


@pytest.mark.parametrize("lines", [1, 2, 4, 8])
@pytest.mark.parametrize("depth", [1, 6, 12])
def test_counts_come_back_in_any_depth_and_lines(depth: int, lines: int) -> None:
    device, front_end = a_chip()
    front_end.events[:] = np.random.default_rng(depth).integers(0, 1 << depth, front_end.events.shape)
    read = omr_of(Mode.READ_COUNTER_0, depth=depth, lines=lines)
    device.arm(read)
    device.expose(1e-3)
    counts = counts_in(device.transact(read, b""), depth, lines)
    for k, (row, col) in enumerate(chip.SUBPIXELS):
        np.testing.assert_array_equal(counts[row::2, col::2], front_end.events[2 * k])


def test_one_count_is_lfsr_state_one_and_two_are_three() -> None:
    device, front_end = a_chip()
    front_end.events[6, 0, 0] = 2  # TH6: P4, bottom left, chip pixel row 0, column 0
    read = omr_of(Mode.READ_COUNTER_0)
    device.arm(read)
    device.expose(1e-3)
    assert ones(device.transact(read, b"")) == {10 * 256 + 255, 11 * 256 + 255}  # state 3: the two lowest planes


# Which threshold is where


@pytest.mark.parametrize("threshold", range(8))
@pytest.mark.parametrize("is_swapped", [False, True])
def test_sub_pixel_and_counter_of_each_threshold(threshold: int, is_swapped: bool) -> None:
    """P1..P4 = top right, bottom right, top left, bottom left; DiscL in counter 0 unless Disc_CSM_SPM swaps them."""
    pixel = {0: (21, 31), 1: (20, 31), 2: (21, 30), 3: (20, 30)}[threshold // 2]
    device, front_end = a_chip()
    front_end.events[threshold, 10, 15] = 77
    device.arm(omr_of(Mode.READ_COUNTER_0, Disc_CSM_SPM=int(is_swapped)))
    device.expose(1e-3)
    for counter, mode in enumerate((Mode.READ_COUNTER_0, Mode.READ_COUNTER_1)):
        counts = counts_in(device.transact(omr_of(mode, Disc_CSM_SPM=int(is_swapped)), b""), 12, 8)
        is_here = counter == (threshold % 2) ^ is_swapped
        assert counts.sum() == (77 if is_here else 0)
        assert counts[pixel] == (77 if is_here else 0)


def test_registers_become_settings() -> None:
    device, front_end = a_chip()
    dacs = {f"Threshold{n}": 40 + n for n in range(8)} | {"DAC_DiscL": 68, "DAC_DiscH": 91}
    register = chip.pack_register(chip.DAC_FIELDS, dacs)
    device.transact(omr_of(Mode.SET_DACS), register.to_bytes(32, "big"))
    rng = np.random.default_rng(3)
    words = rng.integers(0, 1 << 12, (256, 256))
    load(device, Mode.LOAD_COUNTER_1, words)
    device.arm(omr_of(Mode.READ_COUNTER_1, CSM_SPM=1, GainMode=Gain.LGM, Equalization=1))
    device.expose(1e-3)
    settings = front_end.settings[-1]
    assert settings.threshold_dac.tolist() == [40, 41, 42, 43, 44, 45, 46, 47]
    assert (settings.disc_l, settings.disc_h, settings.gain) == (68, 91, Gain.LGM)
    assert settings.is_csm
    assert settings.is_equalization
    for n, (row, col) in enumerate(((1, 1), (0, 1), (1, 0), (0, 0))):
        word = words[row::2, col::2]
        np.testing.assert_array_equal(settings.trim[2 * n], word >> 1 & 31)
        np.testing.assert_array_equal(settings.trim[2 * n + 1], word >> 6 & 31)
        np.testing.assert_array_equal(settings.is_masked[2 * n], word & 1)
        np.testing.assert_array_equal(settings.is_masked[2 * n + 1], word & 1)


def test_pixel_word_of_the_reference() -> None:
    """DiscL 21, DiscH 3, test bit: 0x8EA."""
    device, front_end = a_chip()
    load(device, Mode.LOAD_COUNTER_1, np.full((256, 256), 0x8EA))
    device.arm(omr_of(Mode.READ_COUNTER_1))
    device.expose(1e-3)
    assert np.unique(front_end.settings[0].trim[0::2]) == 21
    assert np.unique(front_end.settings[0].trim[1::2]) == 3
    assert not front_end.settings[0].is_masked.any()


def test_settings_are_made_once_and_again_after_a_change() -> None:
    device, front_end = a_chip()
    device.arm(omr_of(Mode.READ_COUNTER_1))
    device.expose(1e-3)
    device.transact(omr_of(Mode.READ_COUNTER_1), b"")
    device.expose(1e-3)
    assert front_end.settings[0] is front_end.settings[1]
    device.arm(omr_of(Mode.READ_COUNTER_1, CSM_SPM=1))
    device.expose(1e-3)
    assert [settings.is_csm for settings in front_end.settings] == [False, False, True]


# Loading


def test_a_load_reads_back_raw_and_once() -> None:
    device, _ = a_chip()
    words = np.random.default_rng(1).integers(0, 1 << 12, (256, 256))
    load(device, Mode.LOAD_COUNTER_1, words)
    encoded = chip.LFSR_STATES[12][counts_in(device.transact(omr_of(Mode.READ_COUNTER_1), b""), 12, 8)]
    np.testing.assert_array_equal(encoded, words)
    assert not any(device.transact(omr_of(Mode.READ_COUNTER_1), b"")), "reading is destructive"


def test_configuration_is_latched_when_the_second_half_is_in_and_survives_a_clear() -> None:
    device, front_end = a_chip()
    device.arm(omr_of(Mode.READ_COUNTER_1))
    first, second = load_bits(np.ones((256, 256), dtype=int))
    omr = omr_of(Mode.LOAD_COUNTER_1, RowBlock=7)
    device.transact(omr, first)
    device.arm(omr_of(Mode.READ_COUNTER_1))
    device.expose(1e-3)
    assert not front_end.settings[-1].is_masked.any()
    device.transact(omr, second)
    device.fast_clear()
    device.arm(omr_of(Mode.READ_COUNTER_1))
    device.expose(1e-3)
    assert front_end.settings[-1].is_masked.all()


def test_a_transaction_between_the_halves_starts_the_load_again() -> None:
    device, _ = a_chip()
    half = bytes([0xFF]) * 49152
    omr = omr_of(Mode.LOAD_COUNTER_0, RowBlock=7)
    device.transact(omr, half)
    device.transact(omr_of(Mode.READ_EFUSE), b"")
    device.transact(omr, half)
    counts = counts_in(device.transact(omr_of(Mode.READ_COUNTER_0), b""), 12, 8)
    assert (counts[:128] == 2159).all()  # decode[FFF] of the reference
    assert (counts[128:] == 0).all()


# Counting to the end


@pytest.mark.parametrize(("depth", "last"), [(1, 1), (6, 63), (12, 4095)])
def test_counters_stay_at_the_last_count(depth: int, last: int) -> None:
    read = omr_of(Mode.READ_COUNTER_1, depth=depth)
    for saturates, expected in ((True, last), (False, (last + 5) % (last + 1))):
        device, front_end = a_chip(saturates=saturates)
        front_end.events[1] = last
        device.arm(read)
        device.expose(1e-3)
        front_end.events[1] = 5
        device.expose(1e-3)
        assert (counts_in(device.transact(read, b""), depth, 8)[1::2, 1::2] == expected).all()


@pytest.mark.parametrize("is_low", [False, True])
def test_24_bits_are_two_readouts(is_low: bool) -> None:
    device, front_end = a_chip()
    fields = {"Disc_CSM_SPM": int(is_low)}
    wanted = 0 if is_low else 1
    front_end.events[wanted] = 1_000_000
    front_end.events[1 - wanted] = 3
    front_end.events[wanted, 0, 0] = 2**24 + 7
    device.arm(omr_of(Mode.READ_COUNTER_1, depth=24, **fields))
    for _ in range(3):
        device.expose(1e-3)
    high = counts_in(device.transact(omr_of(Mode.READ_COUNTER_1, depth=24, **fields), b""), 12, 8)
    low = counts_in(device.transact(omr_of(Mode.READ_COUNTER_0, depth=24, **fields), b""), 12, 8)
    counts = (high << 12 | low)[1::2, 1::2]
    assert counts[0, 0] == 2**24 - 1
    assert (counts.ravel()[1:] == 3_000_000).all()


def test_reading_clears_the_counter_that_was_read_only() -> None:
    device, front_end = a_chip()
    front_end.events[:] = 9
    device.arm(omr_of(Mode.READ_COUNTER_1))
    device.expose(1e-3)
    for mode, total in (
        (Mode.READ_COUNTER_1, 9 * 65536),
        (Mode.READ_COUNTER_1, 0),
        (Mode.READ_COUNTER_0, 9 * 65536),
        (Mode.READ_COUNTER_0, 0),
    ):
        assert counts_in(device.transact(omr_of(mode), b""), 12, 8).sum() == total


# What is refused


@pytest.mark.parametrize(
    ("omr", "n_bytes", "word"),
    [
        (1 << 48, 0, "48 bits"),
        (omr_of(Mode.READ_COUNTER_1, CRW_SRW=1), 0, "CRW_SRW"),
        (omr_of(Mode.READ_COUNTER_1, RowBlockSel=1), 0, "region of interest"),
        (omr_of(Mode.READ_COUNTER_1, RowBlock=7), 0, "RowBlock"),
        (omr_of(Mode.SET_DACS), 31, "32"),
        (omr_of(Mode.LOAD_COUNTER_1, RowBlock=7), 98304, "49152"),
        (omr_of(Mode.LOAD_COUNTER_1), 49152, "two halves"),
        (omr_of(Mode.LOAD_COUNTER_1, RowBlock=7, CSM_SPM=1), 49152, "CSM_SPM"),
    ],
)
def test_transactions_that_are_refused(omr: int, n_bytes: int, word: str) -> None:
    device, _ = a_chip()
    with pytest.raises(ChipRefused, match=word):
        device.transact(omr, bytes(n_bytes))


@pytest.mark.parametrize(("field", "value"), [("ColourMode", 0), ("Polarity", 1), ("Enable_TP", 1)])
def test_exposures_that_are_refused(field: str, value: int) -> None:
    device, _ = a_chip()
    with pytest.raises(ChipRefused, match=field):
        device.arm(omr_of(Mode.READ_COUNTER_0, **{field: value}))
    with pytest.raises(ChipRefused, match=field):
        device.expose(1e-3)


def test_counters_load_and_read_in_fine_pitch_too() -> None:
    device, _ = a_chip()
    words = chip.LFSR_STATES[12][np.arange(65536).reshape(256, 256) % 4096]
    load(device, Mode.LOAD_COUNTER_0, words)
    counts = counts_in(device.transact(omr_of(Mode.READ_COUNTER_0, ColourMode=0), b""), 12, 8)
    np.testing.assert_array_equal(counts, np.arange(65536).reshape(256, 256) % 4096)
