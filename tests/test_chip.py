"""The chip as both ends know it: the whole routing table of EXCALIBUR, host against chip, and the chip's two speeds."""

from __future__ import annotations

import zlib
from itertools import product

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from numpy.typing import NDArray

from firmware_iface import chip, wire
from firmware_iface.bitplanes import colour_planes, decode_matrix
from firmware_iface.chip import Mode
from firmware_iface.configuration import Configuration
from sim.board import Board
from sim.chip import Silicon, SimulatedChip
from sim.instrument import SILICON_OPTIONS, read_address
from sim.pixels import FAST, SERIAL
from sim.sensor import Settings

# Ref: DISC_SPM_CSM_TABLE of DiamondLightSource/excalibur-detector `definitions.py`, whole: depth, then charge summing,
#      wanted threshold, read/write mode, and counter 0, counter 1, both. 1, 6, 12 and dual 12 bits are the same.
SHALLOW = {
    (False, 0): {"sequential": (0, 1, 0), "continuous": (1, 1, 0)},
    (False, 1): {"sequential": (1, 0, 0), "continuous": (0, 0, 0)},
    (True, 0): {"sequential": (0, 0, 0), "continuous": (0, 0, 0)},
    (True, 1): {"sequential": (1, 0, 0), "continuous": (0, 0, 0)},
}
DEEP = {
    (False, 0): {"sequential": (1, 1, 0)},
    (False, 1): {"sequential": (0, 0, 0)},
    (True, 0): {"sequential": (0, 0, 0)},
    (True, 1): {"sequential": (0, 0, 0)},
}
TABLES = {1: SHALLOW, 6: SHALLOW, 12: SHALLOW, 24: DEEP}
BOTH = 2
ROWS = [
    (depth, is_csm, wanted, mode, counter, value)
    for depth, table in TABLES.items()
    for (is_csm, wanted), modes in table.items()
    for mode, values in modes.items()
    for counter, value in enumerate(values)
    if not (counter == BOTH and (mode == "continuous" or depth == 24))  # refused by EXCALIBUR
]
EVENTS = (1, 2)
"""Events above threshold 0 and above threshold 1."""


def front_end(duration_s: float, settings: Settings) -> NDArray[np.uint32]:
    """Count EVENTS above the even and the odd thresholds of every pixel."""
    counts = np.empty(settings.trim.shape, dtype=np.uint32)
    counts[0::2], counts[1::2] = EVENTS
    return counts


def read_back(device: SimulatedChip, omr: int, depth: int) -> NDArray[np.unsignedinteger]:
    return decode_matrix(device.transact(omr, b""), min(depth, 12), 8)


def omr_of_row(mode: Mode, depth: int, is_csm: bool, rw: str, value: int, **fields: int) -> int:
    fields = {
        "M": mode, "PS": 3, "CountL": chip.DEPTH_CODES[depth], "CSM_SPM": int(is_csm), "Disc_CSM_SPM": value,
        "CRW_SRW": int(rw == "continuous"), "GainMode": 1, **fields,
    }  # fmt: skip
    return chip.pack_register(chip.OMR_FIELDS, fields)


@pytest.mark.parametrize(("depth", "is_csm", "wanted", "rw", "counter", "value"), ROWS)
def test_the_whole_routing_table(depth: int, is_csm: bool, wanted: int, rw: str, counter: int, value: int) -> None:
    """What EXCALIBUR writes gives the threshold it wants; in charge summing only counter 0 can give threshold 0."""
    device = SimulatedChip(front_end)
    reads = (Mode.READ_COUNTER_0, Mode.READ_COUNTER_1)
    wanted_of = {0: wanted, 1: wanted}
    if counter == BOTH:
        wanted_of = {0: 0, 1: 1}
    elif is_csm and wanted == 0 and (counter == 1 or rw == "continuous" or depth == 24):
        wanted_of = {0: 1, 1: 1}  # the table has no way to it, and writes what gives the summed charge
    read_counters = (1, 0) if counter == BOTH or depth == 24 else (counter,)
    silicon_counter = read_counters[0]
    device = SimulatedChip(front_end, silicon=Silicon(first_counter=silicon_counter))
    device.arm(omr_of_row(reads[silicon_counter], depth, is_csm, rw, value))
    device.fast_clear()
    device.expose(1e-3)
    counts = {
        each: read_back(device, omr_of_row(reads[each], depth, is_csm, rw, value), depth) for each in read_counters
    }
    if depth == 24:
        assert not counts[1].any()
        counts = {0: counts[0]}
    for each, matrix in counts.items():
        assert set(matrix.ravel().tolist()) == {min(EVENTS[wanted_of[each]], (1 << depth) - 1)}


def test_equalisation_reads_either_discriminator_through_counter_0() -> None:
    for value in (0, 1):
        device = SimulatedChip(front_end)
        omr = omr_of_row(Mode.READ_COUNTER_0, 12, False, "sequential", value, Equalization=1)
        device.arm(omr)
        device.expose(1e-3)
        assert set(read_back(device, omr, 12).ravel().tolist()) == {EVENTS[value]}


# The host's configuration against the chip


CONFIGURATIONS = [
    {"is_colour": is_colour, "is_csm": is_csm, "depth_bits": depth, "counters": counters, "is_continuous": continuous}
    for is_colour, is_csm, depth, counters, continuous in product(
        (True, False), (True, False), (1, 6, 12, 24), ((0,), (1,), (0, 1)), (False, True)
    )
]


def is_possible(options: dict[str, object]) -> bool:
    is_both, depth = options["counters"] == (0, 1), options["depth_bits"]
    is_arbiter_alone = options["is_csm"] and options["counters"] == (0,)
    if options["is_continuous"]:
        return not (is_both or depth == 24 or is_arbiter_alone)
    return not (depth == 24 and (is_both or is_arbiter_alone))


@pytest.mark.parametrize("options", [each for each in CONFIGURATIONS if is_possible(each)], ids=str)
def test_the_host_gets_the_thresholds_that_it_names(options: dict) -> None:
    configuration = Configuration(**options)

    def scene(duration_s: float, settings: Settings) -> NDArray[np.uint32]:
        numbers = np.arange(len(settings.trim), dtype=np.uint32)
        highest = (1 << configuration.depth_bits) - 1
        return np.broadcast_to((numbers + 1).clip(0, highest)[:, None, None], settings.trim.shape).astype(np.uint32)

    device = SimulatedChip(scene)
    device.arm(configuration.readouts[0])
    device.fast_clear()
    for sequence in range(3):
        omrs = configuration.readouts_of(sequence)
        device.arm(omrs[0])
        device.expose(1e-3)
        matrices = [
            decode_matrix(device.transact(omr, b"")[chip.EFUSE_HEADER_BYTES :], min(configuration.depth_bits, 12), 8)
            for omr in omrs
        ]
        if configuration.depth_bits == 24:
            matrices = [matrices[0].astype(np.uint32) << 12 | matrices[1]]
        matrices.reverse()
        planes = [colour_planes(matrix) if configuration.is_colour else matrix[None] for matrix in matrices]
        counts = np.stack(planes, axis=1).reshape(-1, *planes[0].shape[1:])
        highest = (1 << configuration.depth_bits) - 1
        assert [set(plane.ravel().tolist()) for plane in counts] == (
            [{min(threshold + 1, highest)} for threshold in configuration.thresholds]
        )


@pytest.mark.parametrize("options", [each for each in CONFIGURATIONS if not is_possible(each)], ids=str)
def test_the_host_refuses_what_excalibur_and_merlin_refuse(options: dict) -> None:
    with pytest.raises(ValueError, match="allowed"):
        Configuration(**options)


def test_more_refusals_of_the_host() -> None:
    with pytest.raises(ValueError, match="routing"):
        Configuration(is_csm=False, is_continuous=True, is_equalization=True)
    with pytest.raises(ValueError, match="n_lines is 3"):
        Configuration(n_lines=3)
    for fields in ({}, {"RowBlock": 0}, {"RowBlock": 3}):
        with pytest.raises(ValueError, match="two halves"):
            Configuration(is_csm=False).omr(Mode.LOAD_COUNTER_1, **fields)
    with pytest.raises(ValueError, match="CSM_SPM"):
        Configuration(is_csm=True).omr(Mode.LOAD_COUNTER_1, RowBlock=7)


def test_every_setting_of_the_host_is_its_field() -> None:
    plain = Configuration(is_csm=False, counters=(0,))
    for options, field, value in (
        ({"is_continuous": True}, "CRW_SRW", 1),
        ({"is_test_pulsed": True}, "Enable_TP", 1),
        ({"is_hole_collecting": True}, "Polarity", 1),
        ({"n_lines": 2}, "PS", 1),
        ({"is_colour": False}, "ColourMode", 0),
        ({"gain": chip.Gain.SLGM}, "GainMode", 3),
    ):
        changed = Configuration(is_csm=False, counters=(0,), **options)
        fields = chip.unpack_register(chip.OMR_FIELDS, changed.omr(Mode.READ_COUNTER_0))
        assert fields.pop(field) == value
        others = chip.unpack_register(chip.OMR_FIELDS, plain.omr(Mode.READ_COUNTER_0))
        del others[field]
        if field == "CRW_SRW":  # DiscL then feeds both counters
            assert (fields.pop("Disc_CSM_SPM"), others.pop("Disc_CSM_SPM")) == (1, 0)
        assert fields == others


def test_sense_codes_are_the_manuals() -> None:
    expected = {"Threshold0": 1, "Threshold7": 8, "DAC_DiscL": 15, "Delay": 16, "GND": 20, "FBK": 22, "Cas": 23,
                "TP_REFB": 25, "band_gap": 26, "band_gap_temperature": 27, "DAC_test": 30, "DAC_DiscH": 31}  # fmt: skip
    assert {name: chip.SENSE_CODES[name] for name in expected} == expected
    assert len(chip.SENSE_NAMES) == 31
    assert set(chip.DAC_FIELDS) < set(chip.SENSE_CODES)


def test_an_address_chooses_the_silicon() -> None:
    name, chosen, rest = read_address("demo?saturates=0&spoiled_half=zeros&drop=3", SILICON_OPTIONS, ("drop",))
    assert Silicon(**chosen) == Silicon(saturates=False, spoiled_half="zeros")
    assert (name, rest) == ("demo", {"drop": "3"})


# The fast path and the serial one


@pytest.mark.parametrize("saturates", [True, False])
@pytest.mark.parametrize("depth", [1, 6, 12])
@hypothesis.settings(deadline=None, max_examples=10)
@hypothesis.given(seed=st.integers(0, 2**32 - 1))
def test_tables_and_single_steps_count_alike(depth: int, saturates: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    start = rng.integers(0, 1 << depth, (16, 16)).astype(np.uint16)
    events = rng.integers(0, 2 << depth, (16, 16)).astype(np.uint32)
    states = [start.copy(), start.copy()]
    for logic, counters in zip((FAST, SERIAL), states, strict=True):
        for _ in range(2):
            logic.count_one(counters, events, depth, saturates)
    np.testing.assert_array_equal(*states)


@pytest.mark.parametrize("saturates", [True, False])
@hypothesis.settings(deadline=None, max_examples=10)
@hypothesis.given(seed=st.integers(0, 2**32 - 1))
def test_tables_and_single_steps_count_alike_in_24_bits(saturates: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    low, high = rng.integers(0, 4096, (2, 8, 8)).astype(np.uint16)
    high[0] = chip.LFSR_STATES[12][4095]  # about to be full
    events = rng.integers(0, 20_000, (8, 8)).astype(np.uint32)
    states = [np.stack([low, high]), np.stack([low, high])]
    for logic, (below, above) in zip((FAST, SERIAL), states, strict=True):
        logic.count_both(below, above, events, saturates)
    np.testing.assert_array_equal(*states)


@pytest.mark.parametrize("n_lines", [1, 2, 4, 8])
@pytest.mark.parametrize("depth", [1, 6, 12])
def test_bytes_packed_at_once_are_those_of_the_clocks(depth: int, n_lines: int) -> None:
    words = np.random.default_rng(depth).integers(0, 1 << 12, (256, 256)).astype(np.uint16)
    assert FAST.shift_out(words, depth, n_lines) == SERIAL.shift_out(words, depth, n_lines)


def frames_of(device: SimulatedChip, readouts: tuple[int, ...], n_frames: int) -> bytes:
    """Return everything that a board with this chip gives on its frame endpoint in one run."""
    board = Board(device, str.upper, "TEST-1")
    run = wire.START.pack(1, n_frames, 10_000_000, 0, len(readouts)) + b"".join(map(wire.OMR.pack, readouts))
    header = wire.COMMAND_HEADER.pack(wire.COMMAND_MAGIC, wire.VERSION, wire.Opcode.START, 1, 0, len(run))
    board.receive(header + run + wire.CRC.pack(zlib.crc32(header + run)))
    stream = bytearray()
    while taken := board.take_frame_bytes(1 << 20):
        stream += taken
    return bytes(stream)


@pytest.mark.parametrize("n_lines", [1, 8])
@pytest.mark.parametrize("is_colour", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"depth_bits": 1, "counters": (0,)},
        {"depth_bits": 6, "counters": (1,)},
        {"depth_bits": 12, "counters": (0, 1)},
        {"depth_bits": 24, "counters": (1,)},
        {"depth_bits": 12, "counters": (1,), "is_continuous": True},
    ],
    ids=str,
)
def test_the_fast_chip_and_the_bit_serial_one_fill_the_wire_alike(options: dict, is_colour: bool, n_lines: int) -> None:
    """The statement behind the speed: with the same events, a board gives the same bytes, packets and all."""
    configuration = Configuration(is_colour=is_colour, is_csm=False, n_lines=n_lines, **options)
    streams = []
    for is_bit_serial in (False, True):
        rng = np.random.default_rng(11)

        def scene(duration_s: float, settings: Settings, rng: np.random.Generator = rng) -> NDArray[np.uint32]:
            events = rng.integers(0, 40, settings.trim.shape, dtype=np.uint32)
            events[:, :4] = 5000  # over the end of 12 bits, and over the carry of 24
            return events

        device = SimulatedChip(scene, is_bit_serial=is_bit_serial)
        streams.append(frames_of(device, configuration.readouts, 3))
    assert len(streams[0]) >= 3 * (64 + 32 + 8192)
    assert streams[0] == streams[1]
