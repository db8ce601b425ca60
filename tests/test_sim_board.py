"""The simulated board: commands in any chunks, statuses, runs, time, and faults on the way to the host."""

from __future__ import annotations

import itertools
import struct
import zlib
from typing import NamedTuple

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from numpy.typing import NDArray

from firmware_iface import chip, wire
from firmware_iface.chip import Mode
from firmware_iface.errors import WrongUsage
from firmware_iface.wire import BoardState, FrameFlag, Opcode, Status
from sim.board import TRANSITIONS, Board, readout_time_ns
from sim.chip import ChipRefused, SimulatedChip
from sim.faults import GARBAGE, NO_FAULTS, Faults, faults_of_query
from sim.sensor import Settings

READ_1 = chip.pack_register(
    chip.OMR_FIELDS, {"M": Mode.READ_COUNTER_1, "CountL": 0, "PS": 3, "ColourMode": 1, "GainMode": 1}
)
READ_0 = READ_1 & ~7
FRAME_BYTES = 64 + 8192


def front_end(duration_s: float, settings: Settings) -> NDArray[np.uint32]:
    return np.ones((8, 128, 128), dtype=np.uint32)


def a_board(faults: Faults = NO_FAULTS) -> Board:
    return Board(SimulatedChip(front_end), lambda line: f"heard {line}", "TEST-1", faults)


def command(opcode: int, payload: bytes = b"", tag: int = 1, version: int = wire.VERSION) -> bytes:
    packet = struct.pack("<2sBBHHI", b"mC", version, opcode, tag, 0, len(payload)) + payload
    return packet + struct.pack("<I", zlib.crc32(packet))


def start(
    run_id: int = 1,
    n_frames: int = 1,
    exposure_ns: int = 1000,
    period_ns: int = 0,
    readouts: tuple[int, ...] = (READ_1,),
) -> bytes:
    head = struct.pack("<IIQQB7x", run_id, n_frames, exposure_ns, period_ns, len(readouts))
    return command(Opcode.START, head + struct.pack(f"<{len(readouts)}Q", *readouts))


class Reply(NamedTuple):
    opcode: int
    tag: int
    status: Status
    payload: bytes


def replies_of(board: Board) -> list[Reply]:
    found = []
    while raw := board.take_reply_bytes(1 << 20):
        magic, version, opcode, tag, status, n_payload = struct.unpack_from("<2sBBHHI", raw)
        assert (magic, version) == (b"mR", wire.VERSION)
        assert len(raw) == 12 + n_payload + 4
        assert struct.unpack_from("<I", raw, len(raw) - 4)[0] == zlib.crc32(raw[:-4])
        found.append(Reply(opcode, tag, Status(status), raw[12:-4]))
    return found


def ask(board: Board, data: bytes) -> Reply:
    board.receive(data)
    (reply,) = replies_of(board)
    return reply


class Packet(NamedTuple):
    run_id: int
    flags: int
    sequence: int
    timestamp_ns: int
    exposure_ns: int
    omr: int
    counter: int
    depth: int
    lines: int
    payload: bytes


def packets_of(stream: bytes) -> list[Packet]:
    """Take a clean stream apart, insisting on every magic, length and CRC."""
    found = []
    while stream:
        assert struct.unpack_from("<I", stream, 60)[0] == zlib.crc32(stream[:60])
        (
            magic,
            version,
            n_header,
            run,
            flags,
            sequence,
            timestamp,
            exposure,
            omr,
            _,
            counter,
            depth,
            lines,
            n,
            crc,
            _,
        ) = struct.unpack_from("<4sHHIIQQQQBBBBIII", stream)
        assert (magic, version, n_header) == (b"MPXF", wire.VERSION, 64)
        payload, stream = stream[64 : 64 + n], stream[64 + n :]
        assert crc == zlib.crc32(payload)
        found.append(Packet(run, flags, sequence, timestamp, exposure, omr, counter, depth, lines, payload))
    return found


def frames_of(board: Board, chunk: int = 1 << 20) -> bytes:
    return b"".join(iter(lambda: bytes(board.take_frame_bytes(chunk)), b""))


# Commands and replies


def test_a_command_and_its_reply_by_hand() -> None:
    board = a_board()
    board.receive(bytes.fromhex("6d43 02 02 3412 0000 00000000"))
    board.receive(struct.pack("<I", zlib.crc32(bytes.fromhex("6d43020234120000 00000000"))))
    raw = board.take_reply_bytes(999)
    assert raw[:12] == bytes.fromhex("6d52 02 02 3412 0000 18000000")
    assert raw[12:-4] == struct.pack("<BBHIQii", 0, 0, 1, 0, 0, 308150, 0)


def test_info_tells_what_the_board_is() -> None:
    reply = ask(a_board(), command(Opcode.GET_INFO))
    assert struct.unpack("<HHBBBBI16s", reply.payload) == (2, 2, 1, 8, 1, 1, 63, b"TEST-1".ljust(16, b"\0"))


GOOD_AND_BAD = (
    command(Opcode.GET_INFO, tag=7)
    + b"noise m"
    + command(Opcode.AUXILIARY, "SAMP? µ".encode(), tag=8)
    + command(0x77, b"abc", tag=9)
    + command(Opcode.WRITE_REGISTER, struct.pack("<Hi", 0x30, -450_000), tag=10)
    + command(Opcode.GET_STATUS, tag=11)[:-1]
    + b"\0"  # a broken CRC
    + command(Opcode.GET_STATUS, tag=12)
    + command(Opcode.CHIP_TRANSACT, struct.pack("<QB7x", READ_1, 0), tag=13)
)


@hypothesis.settings(deadline=None, max_examples=40)  # the first call compiles
@hypothesis.given(st.lists(st.integers(0, len(GOOD_AND_BAD)), max_size=12))
def test_chunks_do_not_matter(cuts: list[int]) -> None:
    board = a_board()
    edges = [0, *sorted(cuts), len(GOOD_AND_BAD)]
    for begin, end in itertools.pairwise(edges):
        board.receive(GOOD_AND_BAD[begin:end])
    replies = replies_of(board)
    assert [(reply.tag, reply.status) for reply in replies] == [
        (7, Status.OK),
        (8, Status.OK),
        (9, Status.UNKNOWN_OPCODE),
        (10, Status.OK),
        (11, Status.BAD_CRC),
        (12, Status.OK),
        (13, Status.OK),
    ]
    assert replies[1].payload.decode() == "heard SAMP? µ"
    assert struct.unpack("<BBHIQii", replies[5].payload)[-1] == -450_000
    assert replies[6].payload == bytes(8192)


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
    st.binary(max_size=200).filter(lambda noise: b"mC" not in noise), st.sampled_from(Opcode), st.binary(max_size=60)
)
def test_no_bytes_bring_the_board_down(noise: bytes, opcode: Opcode, payload: bytes) -> None:
    board = a_board()
    board.receive(noise + command(opcode, payload))
    replies_of(board)
    assert ask(board, command(Opcode.GET_STATUS, tag=77)).tag == 77


def test_a_length_beyond_reason_is_refused_at_once() -> None:
    board = a_board()
    reply = ask(board, struct.pack("<2sBBHHI", b"mC", 2, Opcode.CHIP_TRANSACT, 5, 0, (1 << 17) + 1))
    assert (reply.tag, reply.status) == (5, Status.BAD_LENGTH)
    assert ask(board, command(Opcode.GET_INFO)).status is Status.OK


LOAD = chip.pack_register(chip.OMR_FIELDS, {"M": Mode.LOAD_COUNTER_1, "CountL": 2})


@pytest.mark.parametrize(
    ("packet", "status"),
    [
        (command(Opcode.GET_INFO, version=1), Status.UNKNOWN_OPCODE),
        (command(Opcode.GET_INFO, b"x"), Status.BAD_LENGTH),
        (command(Opcode.CHIP_TRANSACT, b"1234567"), Status.BAD_LENGTH),
        (command(Opcode.CHIP_TRANSACT, struct.pack("<QB7x", Mode.SET_DACS, 0) + bytes(31)), Status.BAD_LENGTH),
        (command(Opcode.CHIP_TRANSACT, struct.pack("<QB7x", 1 << 48, 0)), Status.OUT_OF_RANGE),
        (command(Opcode.CHIP_TRANSACT, struct.pack("<QB7x", 1 << 11, 0)), Status.CHIP_REFUSED),
        (command(Opcode.CHIP_TRANSACT, struct.pack("<QB7x", LOAD | 1 << 21, 0) + bytes(98304)), Status.CHIP_REFUSED),
        (command(Opcode.WRITE_REGISTER, b""), Status.BAD_LENGTH),
        (command(Opcode.WRITE_REGISTER, struct.pack("<Hi", 0x30, 1_000_001)), Status.OUT_OF_RANGE),
        (command(Opcode.AUXILIARY, b"\xff\xfe"), Status.OUT_OF_RANGE),
        (command(Opcode.START, bytes(10)), Status.BAD_LENGTH),
        (command(Opcode.START, struct.pack("<IIQQB7x", 1, 1, 1, 0, 2) + bytes(8)), Status.BAD_LENGTH),
        (start(exposure_ns=0), Status.OUT_OF_RANGE),
        (start(readouts=()), Status.OUT_OF_RANGE),
        (start(readouts=(READ_1, READ_1)), Status.OUT_OF_RANGE),
        (start(readouts=(READ_1, READ_0 | 1 << 21)), Status.OUT_OF_RANGE),
        (start(readouts=(READ_1 | 3,)), Status.OUT_OF_RANGE),
        (start(readouts=(READ_1 | 1 << 50,)), Status.OUT_OF_RANGE),
        (start(exposure_ns=1000, period_ns=1000), Status.OUT_OF_RANGE),
        (start(readouts=(READ_1 | 1 << 8,)), Status.CHIP_REFUSED),
    ],
)
def test_bad_commands_get_their_status_and_change_nothing(packet: bytes, status: Status) -> None:
    board = a_board()
    reply = ask(board, packet)
    assert reply.status is status
    assert reply.payload.decode(), "a refusal says why"
    assert board.state is BoardState.IDLE
    assert frames_of(board) == b""


def test_states_allow_what_the_table_says() -> None:
    for state in (BoardState.IDLE, BoardState.ACQUIRING):
        for opcode in Opcode:
            board = a_board()
            if state is BoardState.ACQUIRING:
                ask(board, start(n_frames=0))
            reply = ask(board, command(opcode, b"x" * 5))
            assert (reply.status is Status.NOT_ALLOWED) == ((state, opcode) not in TRANSITIONS)


def test_a_chip_that_fails_in_a_run_puts_the_board_in_fault_until_reset() -> None:
    def broken(duration_s: float, settings: Settings) -> NDArray[np.uint32]:
        raise ChipRefused("no light today")

    board = Board(SimulatedChip(broken), str.upper, "TEST-1")
    ask(board, start(n_frames=3))
    assert frames_of(board) == b""
    assert board.state is BoardState.FAULT
    assert ask(board, start()).status is Status.NOT_ALLOWED
    assert ask(board, command(Opcode.RESET)).status is Status.OK
    assert board.state is BoardState.IDLE


# Runs


@pytest.mark.parametrize("chunk", [1 << 20, 512, 7])
def test_a_run_gives_its_frames(chunk: int) -> None:
    board = a_board()
    assert (
        ask(board, start(run_id=42, n_frames=3, exposure_ns=5_000_000, readouts=(READ_1, READ_0))).status is Status.OK
    )
    packets = packets_of(frames_of(board, chunk))
    assert [(packet.sequence, packet.counter) for packet in packets] == [(0, 1), (0, 0), (1, 1), (1, 0), (2, 1), (2, 0)]
    assert [packet.flags for packet in packets] == [0, FrameFlag.LAST_READOUT] * 3
    assert {(packet.run_id, packet.exposure_ns, packet.depth, packet.lines) for packet in packets} == {
        (42, 5_000_000, 1, 8)
    }
    assert [packet.omr for packet in packets[:2]] == [READ_1, READ_0]
    assert all(packet.payload == b"\xff" * 8192 for packet in packets)
    assert board.state is BoardState.IDLE
    state = struct.unpack("<BBHIQii", ask(board, command(Opcode.GET_STATUS)).payload)
    assert state[:5] == (BoardState.IDLE, 0, 1, 42, 3)


def test_time_advances_by_exposure_and_readout() -> None:
    board = a_board()
    readout_ns = (48 + 256 + 65536 // 8) * 1000 // 120
    assert readout_time_ns(READ_1) == readout_ns
    assert readout_time_ns(READ_1 | 2 << 9) == 821733  # the published 822 us of 12 bits on 8 lines
    ask(board, start(n_frames=3, exposure_ns=10_000))
    ask_times = [packet.timestamp_ns for packet in packets_of(frames_of(board))]
    assert ask_times == [0, 10_000 + readout_ns, 2 * (10_000 + readout_ns)]
    ask(board, start(n_frames=3, exposure_ns=10_000, period_ns=1_000_000))
    times = [packet.timestamp_ns for packet in packets_of(frames_of(board))]
    assert np.diff(times).tolist() == [1_000_000, 1_000_000]
    assert times[0] == 3 * (10_000 + readout_ns)


def test_a_run_begins_with_clear_counters() -> None:
    board = a_board()
    load = command(Opcode.CHIP_TRANSACT, struct.pack("<QB7x", LOAD | 7 << 15, 0) + b"\xff" * 49152)
    board.receive(load + load)
    assert {reply.status for reply in replies_of(board)} == {Status.OK}
    six_bits = READ_1 | 1 << 9
    ask(board, start(readouts=(six_bits,)))
    (packet,) = packets_of(frames_of(board))
    planes = np.unpackbits(np.frombuffer(packet.payload, np.uint8)).reshape(256, 6, 256)
    assert planes[:, :5].sum() == 0  # one event is state 1: the lowest plane only
    assert planes[:, 5].all()


def test_stop_ends_after_the_frame_in_progress() -> None:
    board = a_board()
    ask(board, start(n_frames=0))
    received = [bytes(board.take_frame_bytes(1 << 20)), bytes(board.take_frame_bytes(100))]
    assert ask(board, command(Opcode.STOP)).status is Status.OK
    assert [packet.sequence for packet in packets_of(b"".join([*received, frames_of(board)]))] == [0, 1]
    assert struct.unpack("<BBHIQii", ask(board, command(Opcode.GET_STATUS)).payload)[4] == 2


def test_abort_ends_at_once_and_cuts_the_frame() -> None:
    board = a_board()
    ask(board, start(n_frames=0))
    assert len(board.take_frame_bytes(100)) == 100
    ask(board, command(Opcode.ABORT))
    assert frames_of(board) == b""
    ask(board, start(run_id=2))
    assert [packet.run_id for packet in packets_of(frames_of(board))] == [2]


def test_reset_forgets_registers_and_bias() -> None:
    board = a_board()
    ask(board, command(Opcode.WRITE_REGISTER, struct.pack("<Hi", 0x30, 1234)))
    ask(board, command(Opcode.CHIP_TRANSACT, struct.pack("<QB7x", Mode.SET_DACS, 0) + b"\x55" * 32))
    ask(board, command(Opcode.RESET))
    assert ask(board, command(Opcode.CHIP_TRANSACT, struct.pack("<QB7x", Mode.READ_DACS, 0))).payload == bytes(32)
    assert struct.unpack("<BBHIQii", ask(board, command(Opcode.GET_STATUS)).payload)[-1] == 0


# Faults


def stream_with(n_frames: int = 4, **faults: frozenset[int]) -> bytes:
    board = a_board(Faults(**faults))
    ask(board, start(n_frames=n_frames))
    return frames_of(board)


def test_each_fault_harms_its_frame_only() -> None:
    clean, two = stream_with(), frozenset({2})
    frames = [clean[first : first + FRAME_BYTES] for first in range(0, len(clean), FRAME_BYTES)]
    assert stream_with(drop=two) == b"".join([*frames[:2], frames[3]])
    assert stream_with(duplicate=two) == b"".join([*frames[:3], frames[2], frames[3]])
    assert stream_with(garbage=two) == b"".join([*frames[:2], GARBAGE, *frames[2:]])
    assert stream_with(truncate=two) == b"".join([*frames[:2], frames[2][: FRAME_BYTES * 3 // 4], frames[3]])
    corrupted = stream_with(corrupt=two)
    (changed,) = np.flatnonzero(np.frombuffer(corrupted, np.uint8) != np.frombuffer(clean, np.uint8))
    assert 2 * FRAME_BYTES + 64 <= changed < 3 * FRAME_BYTES


def test_frames_are_counted_over_the_life_of_the_device() -> None:
    board = a_board(Faults(drop=frozenset({3}), unplug_after=5))
    ask(board, start(n_frames=2))
    assert [packet.sequence for packet in packets_of(frames_of(board))] == [0, 1]
    ask(board, start(n_frames=9))
    assert not board.is_unplugged
    assert [packet.sequence for packet in packets_of(frames_of(board))] == [0, 2]
    assert board.is_unplugged


def test_faults_of_an_address() -> None:
    assert faults_of_query({"drop": "17,23", "unplug_after": "100"}) == Faults(
        drop=frozenset({17, 23}), unplug_after=100
    )
    assert faults_of_query({}) == NO_FAULTS
    storm = faults_of_query({"storm": "0.25", "storm_seed": "7", "slow": "5:40,9:1", "unplug_at": "70000"})
    assert (storm.storm_fraction, storm.storm_seed, dict(storm.slow)) == (0.25, 7, {5: 40, 9: 1})
    assert storm.unplug_at == 70000


def test_a_storm_is_the_same_every_time_and_another_with_another_seed() -> None:
    def stream(seed: int) -> bytes:
        board = a_board(Faults(storm_fraction=0.5, storm_seed=seed))
        ask(board, start(n_frames=20))
        taken = []
        while board.has_hiccup or board.pending_frame_bytes():
            taken.append(
                str(board.take_hiccup()).encode() if board.has_hiccup else bytes(board.take_frame_bytes(1 << 20))
            )
        return b"".join(taken)

    assert stream(1) == stream(1) != stream(2)


@pytest.mark.parametrize(
    "query",
    [
        {"drip": "1"},
        {"drop": "x"},
        {"drop": ""},
        {"drop": "-1"},
        {"unplug_after": "0"},
        {"unplug_after": "1,2"},
        {"storm": "2"},
        {"storm": "x"},
        {"slow": "5"},
        {"slow": "a:b"},
        {"unplug_at": "0"},
    ],
)
def test_wrong_faults_say_what_is_known(query: dict[str, str]) -> None:
    with pytest.raises(WrongUsage, match=r"known|allowed"):
        faults_of_query(query)
