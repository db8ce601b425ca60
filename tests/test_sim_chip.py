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
from sim.chip import ChipRefused, Silicon, SimulatedChip, bytes_in
from sim.sensor import Settings

HEADER_BYTES = chip.EFUSE_HEADER_BYTES
EXCALIBUR_OMR = 0x001800000470
"""Power-on OMR of EXCALIBUR: sequential, holes, 8 lines, 12 bits, SLGM (reference section 3)."""


def omr_of(mode: Mode, *, depth: int = 12, lines: int = 8, **fields: int) -> int:
    fields = {"ColourMode": 1, "GainMode": Gain.HGM, **fields}
    codes = {"M": mode, "CountL": chip.DEPTH_CODES[depth], "PS": chip.LINES_CODES[lines]}
    return chip.pack_register(chip.OMR_FIELDS, codes | fields)


class FrontEnd:
    """Events that a test sets, the settings that the chip asked for, and the charges that it injected."""

    def __init__(self, *, is_fine: bool = False) -> None:
        self.events = np.zeros((2, 256, 256) if is_fine else (8, 128, 128), dtype=np.uint32)
        self.settings: list[Settings] = []
        self.charge_e = np.zeros((0, 0), dtype=np.float32)

    def __call__(self, duration_s: float, settings: Settings) -> NDArray[np.uint32]:
        self.settings.append(settings)
        return self.events

    def inject(self, n: int, charge_e: NDArray[np.float32], settings: Settings) -> NDArray[np.uint32]:
        self.settings.append(settings)
        self.charge_e = charge_e
        counts = np.zeros_like(self.events)
        counts[:] = n * (charge_e > 0) if len(counts) == 2 else n * (charge_e[1::2, 1::2] > 0)
        return counts


def a_chip(*, is_fine: bool = False, is_bit_serial: bool = False, **options: object) -> tuple[SimulatedChip, FrontEnd]:
    front_end = FrontEnd(is_fine=is_fine)
    silicon = Silicon(**options)  # pyright: ignore[reportArgumentType]
    device = SimulatedChip(
        front_end, chip_id=0x00021165, silicon=silicon, injection=front_end.inject, is_bit_serial=is_bit_serial
    )
    return device, front_end


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


def test_a_chip_whose_readout_does_not_clear_gives_its_counts_again() -> None:
    device, front_end = a_chip(reading_clears=False)
    front_end.events[:] = 9
    device.arm(omr_of(Mode.READ_COUNTER_1))
    device.expose(1e-3)
    first, second = (device.transact(omr_of(Mode.READ_COUNTER_1), b"") for _ in range(2))
    assert first == second
    assert any(first)
    device.fast_clear()
    assert not any(device.transact(omr_of(Mode.READ_COUNTER_1), b""))


def test_depth_at_readout_gives_the_low_planes() -> None:
    device, _ = a_chip()
    load(device, Mode.LOAD_COUNTER_0, np.full((256, 256), 0b101010_110011))
    stream = device.transact(omr_of(Mode.READ_COUNTER_0, depth=6), b"")
    assert set(stream[:32]) == set(stream[32:64]) == {255}
    assert set(stream[64:96]) == {0}


# What is refused


@pytest.mark.parametrize(
    ("omr", "n_bytes", "word"),
    [
        (1 << 48, 0, "48 bits"),
        (omr_of(Mode.READ_COUNTER_1, CRW_SRW=1, depth=24), 0, "CRW_SRW"),
        (omr_of(Mode.READ_COUNTER_1, ColumnBlock=1), 0, "region of interest"),
        (omr_of(Mode.READ_COUNTER_1, ColumnBlockSel=1), 0, "region of interest"),
        (omr_of(Mode.READ_COUNTER_1, FuseSel=1), 0, "FuseSel"),
        (omr_of(Mode.READ_EFUSE, FusePulseWidth=1), 0, "FusePulseWidth"),
        (omr_of(Mode.READ_COUNTER_1, ExtBGSel=1), 0, "band gap"),
        (omr_of(Mode.READ_COUNTER_1, ExtDAC=20), 0, "nothing is wired"),
        (omr_of(Mode.READ_COUNTER_1, ExtDAC=26), 0, "no DAC"),
        (omr_of(Mode.READ_COUNTER_1, RowBlockSel=1), 0, "region of interest"),
        (omr_of(Mode.READ_COUNTER_1, RowBlock=7), 0, "RowBlock"),
        (omr_of(Mode.SET_DACS), 31, "32"),
        (omr_of(Mode.LOAD_COUNTER_1, RowBlock=7), 98304, "49152"),
        (omr_of(Mode.LOAD_COUNTER_1), 49152, "98304"),
        (omr_of(Mode.LOAD_COUNTER_1, RowBlock=3), 49152, "half loads"),
        (omr_of(Mode.LOAD_COUNTER_1, RowBlock=7, depth=6), 49152, "12 bits"),
        (omr_of(Mode.LOAD_COUNTER_1, RowBlock=7, CSM_SPM=1), 49152, "CSM_SPM"),
    ],
)
def test_transactions_that_are_refused(omr: int, n_bytes: int, word: str) -> None:
    device, _ = a_chip()
    with pytest.raises(ChipRefused, match=word):
        device.transact(omr, bytes(n_bytes))


def test_exposures_that_are_refused() -> None:
    for front_end, fields, word in (
        (FrontEnd(), {"Enable_TP": 1}, "Enable_TP"),
        (FrontEnd(), {"CRW_SRW": 1, "Equalization": 1}, "Equalization"),
    ):
        device = SimulatedChip(front_end)
        with pytest.raises(ChipRefused, match=word):
            device.arm(omr_of(Mode.READ_COUNTER_0, **fields))
        with pytest.raises(ChipRefused, match=word):
            device.expose(1e-3)
    colour_only, _ = a_chip()
    colour_only.arm(omr_of(Mode.READ_COUNTER_0, ColourMode=0))
    with pytest.raises(ChipRefused, match=r"\(8, 128, 128\)"):
        colour_only.expose(1e-3)


@pytest.mark.parametrize("options", [{"first_counter": 2}, {"spoiled_half": "ones"}, {"pulse_groups": "rings"}])
def test_silicon_that_cannot_be_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="allowed"):
        Silicon(**options)  # pyright: ignore[reportArgumentType]


def test_counters_load_and_read_in_fine_pitch_too() -> None:
    device, _ = a_chip()
    words = chip.LFSR_STATES[12][np.arange(65536).reshape(256, 256) % 4096]
    load(device, Mode.LOAD_COUNTER_0, words)
    counts = counts_in(device.transact(omr_of(Mode.READ_COUNTER_0, ColourMode=0), b""), 12, 8)
    np.testing.assert_array_equal(counts, np.arange(65536).reshape(256, 256) % 4096)


# The rest of the operation mode register


def continuous_of(counter: int, **fields: int) -> int:
    mode = Mode.READ_COUNTER_1 if counter else Mode.READ_COUNTER_0
    return omr_of(mode, CRW_SRW=1, **fields)


@pytest.mark.parametrize("depth", [1, 6, 12])
@pytest.mark.parametrize("is_low", [False, True])
def test_continuous_counts_in_one_counter_while_the_other_is_read(depth: int, is_low: bool) -> None:
    """Frame n is in counter 1 if n is even; what is read holds that frame alone, whatever was exposed since."""
    device, front_end = a_chip()
    fields = {"Disc_CSM_SPM": int(is_low), "depth": depth}
    device.arm(continuous_of(1, **fields))
    device.fast_clear()
    totals = []
    for frame in range(5):
        front_end.events[:] = 0
        front_end.events[0 if is_low else 1, 3, 4] = 1  # the threshold that Disc_CSM_SPM selects
        front_end.events[1 if is_low else 0] = 1
        if depth > 1:
            front_end.events[0 if is_low else 1, 3, 4] = frame + 1
        device.arm(continuous_of(1 - frame % 2, **fields))
        device.expose(1e-3)
        counts = counts_in(device.transact(continuous_of(1 - frame % 2, **fields), b""), depth, 8)
        assert np.count_nonzero(counts) == 1
        totals.append(int(counts[7, 9]))
    assert totals == ([1] * 5 if depth == 1 else [1, 2, 3, 4, 5])


def test_continuous_may_begin_with_counter_0_and_begins_anew_after_a_clear() -> None:
    for first in (0, 1):
        device, front_end = a_chip(first_counter=first)
        front_end.events[1] = 1
        for _ in range(2):
            device.arm(continuous_of(1))
            device.fast_clear()
            device.expose(1e-3)
            totals = [counts_in(device.transact(continuous_of(n), b""), 12, 8).sum() for n in (first, 1 - first)]
            assert totals == [128 * 128, 0]


def test_fine_pitch_has_two_thresholds_in_every_pixel() -> None:
    device, front_end = a_chip(is_fine=True)
    rng = np.random.default_rng(5)
    front_end.events[:] = rng.integers(0, 4096, front_end.events.shape)
    words = rng.integers(0, 1 << 12, (256, 256))
    load(device, Mode.LOAD_COUNTER_1, words)
    device.fast_clear()
    device.arm(omr_of(Mode.READ_COUNTER_0, ColourMode=0))
    device.expose(1e-3)
    settings = front_end.settings[-1]
    assert settings.threshold_dac.shape == (2,)
    np.testing.assert_array_equal(settings.trim, [words >> 1 & 31, words >> 6 & 31])
    np.testing.assert_array_equal(settings.is_masked, [words & 1, words & 1])
    for counter, mode in enumerate((Mode.READ_COUNTER_0, Mode.READ_COUNTER_1)):
        counts = counts_in(device.transact(omr_of(mode, ColourMode=0), b""), 12, 8)
        np.testing.assert_array_equal(counts, front_end.events[counter])


@pytest.mark.parametrize("is_hole", [0, 1])
@pytest.mark.parametrize("gain", Gain)
def test_polarity_and_gain_reach_the_front_end(is_hole: int, gain: Gain) -> None:
    device, front_end = a_chip()
    device.arm(omr_of(Mode.READ_COUNTER_0, Polarity=is_hole, GainMode=gain))
    device.expose(1e-3)
    assert (front_end.settings[0].is_hole_collecting, front_end.settings[0].gain) == (bool(is_hole), gain)


@pytest.mark.parametrize("spoiled_half", ["garbage", "zeros"])
def test_a_load_of_the_whole_matrix_spoils_the_upper_half(spoiled_half: str) -> None:
    device, front_end = a_chip(is_fine=True, spoiled_half=spoiled_half)
    words = np.random.default_rng(2).integers(0, 1 << 12, (256, 256))
    omr = omr_of(Mode.LOAD_COUNTER_1, ColourMode=0)
    assert bytes_in(omr) == 98304
    device.transact(omr, b"".join(load_bits(words)))
    device.arm(omr_of(Mode.READ_COUNTER_1, ColourMode=0))
    device.expose(1e-3)
    trim = front_end.settings[0].trim[0]
    np.testing.assert_array_equal(trim[:128], words[:128] >> 1 & 31)
    loaded = device.transact(omr_of(Mode.READ_COUNTER_0, ColourMode=0), b"")
    assert not any(loaded), "counter 0 was not loaded"
    if spoiled_half == "zeros":
        assert not trim[128:].any()
    else:
        assert np.mean(trim[128:] == words[128:] >> 1 & 31) < 0.05


# Test pulses


def pulsing(device: SimulatedChip, words: NDArray[np.integer], columns: set[int], **dacs: int) -> None:
    register = chip.pack_register(chip.DAC_FIELDS, {"TP_REF": 128, **dacs})
    device.transact(omr_of(Mode.SET_DACS), register.to_bytes(32, "big"))
    device.transact(omr_of(Mode.SET_CTPR), sum(1 << col for col in columns).to_bytes(32, "big"))
    load(device, Mode.LOAD_COUNTER_1, words)
    device.fast_clear()


def test_a_pulse_needs_the_register_bit_the_columns_bit_and_the_pixels_bit() -> None:
    rng = np.random.default_rng(9)
    is_test = rng.random((256, 256)) < 0.5
    columns = {col for col in range(256) if rng.random() < 0.5}
    device, _ = a_chip(is_fine=True)
    pulsing(device, is_test << 11, columns, TP_REFA=300, TP_REFB=300)
    for is_enabled in (0, 1):
        read = omr_of(Mode.READ_COUNTER_0, ColourMode=0, Enable_TP=is_enabled)
        device.arm(read)
        device.pulse(100)
        counts = counts_in(device.transact(read, b""), 12, 8)
        expected = is_test & np.isin(np.arange(256), list(columns)) & bool(is_enabled)
        np.testing.assert_array_equal(counts, 100 * expected)


def test_the_columns_bits_are_shifted_in_from_column_255() -> None:
    device, front_end = a_chip(is_fine=True)
    pulsing(device, np.full((256, 256), 0x800), set(), TP_REFA=300, TP_REFB=300)
    device.transact(omr_of(Mode.SET_CTPR), bytes([0b01000000]) + bytes(31))
    device.arm(omr_of(Mode.READ_COUNTER_0, ColourMode=0, Enable_TP=1))
    device.pulse(1)
    assert set(np.flatnonzero(front_end.charge_e.any(axis=0))) == {254}


@pytest.mark.parametrize("groups", ["columns", "rows"])
def test_the_charge_is_the_step_over_the_capacitor(groups: str) -> None:
    """3.204e-5 V per electron: TP_REF 128 is 0.300 V, TP_REFA 300 is 0.750 V, TP_REFB 100 is 0.250 V, below TP_REF."""
    device, front_end = a_chip(is_fine=True, pulse_groups=groups)
    pulsing(device, np.full((256, 256), 0x800), set(range(256)), TP_REFA=300, TP_REFB=100)
    device.arm(omr_of(Mode.READ_COUNTER_0, ColourMode=0, Enable_TP=1))
    device.pulse(1)
    charge_e = front_end.charge_e if groups == "columns" else front_end.charge_e.T
    np.testing.assert_allclose(charge_e[:, 0::2], 0.45 / 3.204e-5, rtol=0.01)
    np.testing.assert_allclose(charge_e[:, 1::2], -0.05 / 3.204e-5, rtol=0.02)
