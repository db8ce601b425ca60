"""The detector over a scripted board: what is sent, what comes of it, and that it stays usable whatever happens."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from firmware_iface import device, transport
from firmware_iface.chip import DAC_FIELDS, DEFAULT_DACS, LFSR_STATES, OMR_FIELDS, unpack_register
from firmware_iface.codec import decode_dacs
from firmware_iface.configuration import Configuration, PixelConfiguration
from firmware_iface.device import Detector, State, open_detector, states_diagram
from firmware_iface.errors import (
    Disconnected,
    OurMistake,
    Stalled,
    TheirMistake,
    TransportError,
    TransportTimeout,
    WrongUsage,
)
from firmware_iface.frame import Frame, Lost

IDLE, ACQUIRING, FAULT = 0, 1, 2
EFUSE = bytes(20) + bytes.fromhex("00021165") + bytes(8)


class ScriptedBoard:
    """A transport with a board that answers by a script and remembers what it was sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, bytes]] = []
        self.answers: dict[int, tuple[int, bytes]] = {
            0x01: (0, struct.pack("<HHBBBBI16s", 3, 2, 1, 8, 1, 1, 63, b"B-17"))
        }
        self.state, self.run_id, self.n_frames, self.n_done = IDLE, 41, 0, 0
        self.readouts: list[int] = []
        self.exposure_ns = 0
        self.transact: Callable[[int, bytes], bytes] = lambda omr, bits: EFUSE if omr & 7 == 7 else b""
        self.spoil: Callable[[int, bytes], bytes] = lambda sequence, packets: packets
        self.count: Callable[[int, int], int] = lambda sequence, counter: 10 * sequence + counter
        self.fault, self.n_power_ups = 0, 9
        self.registers: dict[int, int] = {}
        self.is_closed = self.is_mute = False
        self.knows_abort_request = True
        self.n_forgotten = 0
        self.breaks: list[Exception] = []
        self._replies: list[bytes] = []

    # The transport

    def write(self, data: bytes) -> None:
        if self.is_closed:
            raise Disconnected("closed")
        if self.breaks:
            raise self.breaks.pop(0)
        magic, version, opcode, tag, zero, n_payload = struct.unpack_from("<2sBBHHI", data)
        assert (magic, version, zero, n_payload) == (b"mC", 2, 0, len(data) - 16)
        assert struct.unpack("<I", data[-4:]) == (zlib.crc32(data[:-4]),)
        payload = data[12:-4]
        self.sent.append((opcode, payload))
        status, answer = self.answers.get(opcode) or (0, self.obey(opcode, payload))
        packet = struct.pack("<2sBBHHI", b"mR", 2, opcode, tag, status, len(answer)) + answer
        if not self.is_mute:
            self._replies.append(packet + struct.pack("<I", zlib.crc32(packet)))

    def read_reply(self, timeout_s: float) -> bytes:
        if not self._replies:
            raise TransportTimeout("no reply")
        return self._replies.pop(0)

    def read_frames(self, n_bytes: int, timeout_s: float) -> memoryview:
        if self.state != ACQUIRING:
            return memoryview(b"")
        packets = self.spoil(self.n_done, b"".join(self.packet(omr) for omr in self.readouts))
        self.n_done += 1
        if self.n_done == self.n_frames:
            self.state = IDLE
        return memoryview(packets)

    def forget_command(self) -> None:
        self.n_forgotten += 1

    def make_safe(self) -> None: ...

    def abort(self) -> None:
        if not self.knows_abort_request:
            raise Stalled("no such request")
        self.sent.append((0x22, b""))
        self.state = IDLE

    def close(self) -> None:
        self.is_closed = True

    # The board

    def obey(self, opcode: int, payload: bytes) -> bytes:
        if opcode == 0x02:
            return struct.pack(
                "<BBHIQii", self.state, self.fault, self.n_power_ups, self.run_id, self.n_done, 300_150, -450_000
            )
        if opcode == 0x04:
            return struct.pack("<i", self.registers.get(*struct.unpack("<H", payload), 0))
        if opcode == 0x05:
            self.registers.update([struct.unpack("<Hi", payload)])
            return b""
        if opcode == 0x10:
            return self.transact(int.from_bytes(payload[:8], "little"), payload[16:])
        if opcode == 0x20:
            self.run_id, self.n_frames, self.exposure_ns, period_ns, n = struct.unpack_from("<IIQQB7x", payload)
            self.readouts = list(struct.unpack_from(f"<{n}Q", payload, 32))
            assert period_ns == 0
            assert len(payload) == 32 + 8 * n
            self.state, self.n_done = ACQUIRING, 0
        if opcode in (0x03, 0x21, 0x22):
            self.state = IDLE
        return b"OK " + payload if opcode == 0x40 else b""

    def packet(self, omr: int) -> bytes:
        counter = 1 if omr & 7 == 4 else 0
        code = omr >> 9 & 3
        depth = (1, 6, 12, 12)[code]
        state = int(LFSR_STATES[12][self.count(self.n_done, counter)]) if depth == 12 else 1
        planes = b"".join((b"\xff" if state >> plane & 1 else b"\0") * 32 for plane in reversed(range(depth)))
        payload = bytes(32) + planes * 256
        head = struct.pack(
            "<4sHHIIQQQQBBBBII", b"MPXF", 2, 64, self.run_id, 0, self.n_done, 5000 + self.n_done, self.exposure_ns,
            omr, 0, counter, depth, 8, len(payload), zlib.crc32(payload),
        )  # fmt: skip
        return head + struct.pack("<I", zlib.crc32(head)) + payload

    def opcodes(self) -> list[int]:
        return [opcode for opcode, _ in self.sent]


@pytest.fixture
def board() -> ScriptedBoard:
    return ScriptedBoard()


@pytest.fixture
def detector(board: ScriptedBoard) -> Iterator[Detector]:
    with Detector(board) as opened:
        yield opened
    assert board.is_closed


def omrs_and_bits(board: ScriptedBoard) -> list[tuple[dict[str, int], bytes]]:
    transactions = [payload for opcode, payload in board.sent if opcode == 0x10]
    return [(unpack_register(OMR_FIELDS, int.from_bytes(each[:8], "little")), each[16:]) for each in transactions]


# What it is


def test_it_says_what_it_is(detector: Detector) -> None:
    assert (detector.info.serial, detector.info.firmware_version) == ("B-17", 3)
    assert detector.chip_id() == "W529_F5"
    status = detector.status()
    assert (status.temperature_k, status.bias_v, status.run_id) == (300.15, -450.0, 41)
    assert detector.auxiliary("ROT 12.5") == "OK ROT 12.5"


def test_a_temperature_without_a_sensor_is_no_number(detector: Detector, board: ScriptedBoard) -> None:
    board.registers = {0x20: 300_150, 0x24: -(1 << 31)}
    health = detector.health()
    assert health.board_k == 300.15
    assert math.isnan(health.fpga_k)


def test_no_chip_is_told(detector: Detector, board: ScriptedBoard) -> None:
    board.transact = lambda omr, bits: bytes(32)
    with pytest.raises(TheirMistake, match="e-fuses read 0"):
        detector.chip_id()


def test_a_board_of_another_protocol_is_refused_and_given_back(board: ScriptedBoard) -> None:
    board.answers[0x01] = (0, struct.pack("<HHBBBBI16s", 3, 1, 1, 8, 1, 1, 63, b""))
    with pytest.raises(TheirMistake, match="version 1; allowed: 2"):
        Detector(board)
    assert board.is_closed


@pytest.mark.parametrize(("state", "opcode"), [(ACQUIRING, 0x22), (FAULT, 0x03)])
def test_what_a_crashed_program_left_is_ended(board: ScriptedBoard, state: int, opcode: int) -> None:
    board.state = state
    Detector(board)
    assert opcode in board.opcodes()
    assert board.state == IDLE


def test_what_the_board_has_not_got_is_not_asked_for(board: ScriptedBoard) -> None:
    board.answers[0x01] = (0, struct.pack("<HHBBBBI16s", 3, 2, 1, 8, 1, 1, 0, b"B-18"))
    detector = Detector(board)
    with pytest.raises(OurMistake, match="B-18 has not got"):
        detector.set_bias(-100.0)
    with pytest.raises(OurMistake, match="B-18 has not got"):
        detector.auxiliary("ROT?")


# Settings


def test_operation_mode_register_is_the_datasheets() -> None:
    # By hand: M 4, PS 3 << 5, CountL 2 << 9, ColourMode 1 << 20, CSM_SPM 1 << 21, InfoHeader 1 << 22, HGM 1 << 35.
    assert Configuration().readouts == (4 | 3 << 5 | 2 << 9 | 1 << 20 | 1 << 21 | 1 << 22 | 1 << 35,)
    assert Configuration(is_hole_collecting=True).readouts[0] ^ Configuration().readouts[0] == 1 << 4


@pytest.mark.parametrize(
    ("options", "modes", "is_swapped"),
    [
        ({"counters": (0,)}, [0], 0),
        ({"counters": (1,)}, [4], 0),
        ({"counters": (0, 1)}, [4, 0], 0),
        ({"counters": (1,), "depth_bits": 24}, [4, 0], 0),
        ({"counters": (0,), "depth_bits": 24, "is_csm": False}, [4, 0], 1),
        ({"counters": (0,), "is_equalization": True}, [0], 0),
        ({"counters": (1,), "is_equalization": True}, [0], 1),
    ],
)
def test_discriminators_go_where_they_are_read(options: dict, modes: list[int], is_swapped: int) -> None:
    fields = [unpack_register(OMR_FIELDS, omr) for omr in Configuration(**options).readouts]
    assert [each["M"] for each in fields] == modes
    assert {each["Disc_CSM_SPM"] for each in fields} == {is_swapped}


@pytest.mark.parametrize(
    "options",
    [{"depth_bits": 4}, {"counters": ()}, {"counters": (1, 0)}, {"depth_bits": 24, "counters": (0, 1)},
     {"depth_bits": 24, "counters": (0,), "is_csm": True}],
)  # fmt: skip
def test_configurations_that_cannot_be_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="allowed"):
        Configuration(**options)


def test_dacs_are_merged_over_the_defaults_and_kept(detector: Detector, board: ScriptedBoard) -> None:
    detector.set_dacs({"Threshold0": 50})
    detector.set_dacs({"GND": 130})
    fields, bits = omrs_and_bits(board)[-1]
    assert fields["M"] == 1
    assert decode_dacs(bits) == {**DEFAULT_DACS, "Threshold0": 50, "GND": 130} == detector.dacs
    with pytest.raises(ValueError, match="ThresholdN"):
        detector.set_dacs({"ThresholdN": 1})
    assert detector.dacs["Threshold0"] == 50


def test_refused_dacs_are_not_believed(detector: Detector, board: ScriptedBoard) -> None:
    board.answers[0x10] = (6, b"no power")
    with pytest.raises(TheirMistake, match="CHIP_REFUSED: no power"):
        detector.set_dacs({"Threshold0": 50})
    assert detector.dacs["Threshold0"] == 511


def test_pixels_are_loaded_in_two_halves_and_thresholds_sent_again(detector: Detector, board: ScriptedBoard) -> None:
    detector.set_dacs({"Threshold3": 77})
    board.sent.clear()
    trim_h = np.zeros((256, 256), dtype=np.uint8)
    trim_h[128, 255] = 31
    detector.load_pixels(PixelConfiguration(trim_h=trim_h))
    (lower, upper, high, back) = omrs_and_bits(board)
    for fields, bits in (lower, upper):
        assert (fields["M"], fields["RowBlock"], fields["CSM_SPM"], fields["CountL"]) == (6, 7, 0, 2)
        assert len(bits) == 49152
    assert not any(lower[1])
    assert [n // 32 for n, byte in enumerate(upper[1]) if byte] == [11 - bit for bit in (10, 9, 8, 7, 6)]
    thresholds = [
        {name: dacs[name] for name in DAC_FIELDS if "Threshold" in name}
        for dacs in map(decode_dacs, (high[1], back[1]))
    ]
    assert set(thresholds[0].values()) == {511}
    assert thresholds[1]["Threshold3"] == 77


def test_pixel_words() -> None:
    arrays = {name: np.zeros((256, 256), dtype=np.uint8) for name in ("trim_l", "trim_h")}
    arrays["trim_l"][3, 4], arrays["trim_h"][3, 4] = 21, 3
    flags = {name: np.zeros((256, 256), dtype=bool) for name in ("is_masked", "is_test")}
    flags["is_test"][3, 4] = flags["is_masked"][0, 0] = True
    words = PixelConfiguration(**arrays, **flags).words
    assert (words[3, 4], words[0, 0], np.count_nonzero(words)) == (0x8EA, 1, 2)
    arrays["trim_l"][0, 0] = 32
    with pytest.raises(ValueError, match="trim_l goes from 0 to 32; allowed: 0 to 31"):
        PixelConfiguration(**arrays, **flags)


def test_bias_is_sent_in_millivolts(detector: Detector, board: ScriptedBoard) -> None:
    detector.set_bias(-450.0)
    assert board.sent[-1] == (0x05, struct.pack("<Hi", 0x30, -450_000))


# Runs


def test_frames_come_in_order_with_their_thresholds(detector: Detector, board: ScriptedBoard) -> None:
    detector.configure(Configuration(counters=(0, 1)))
    frames = list(detector.frames(3, 0.002))
    assert [frame.sequence for frame in frames if isinstance(frame, Frame)] == [0, 1, 2]
    for n, frame in enumerate(frames):
        assert isinstance(frame, Frame)
        assert frame.thresholds == tuple(range(8))
        assert frame.counts.shape == (8, 128, 128)
        assert frame.counts.dtype == np.uint16
        assert [set(plane.ravel().tolist()) for plane in frame.counts] == [{10 * n}, {10 * n + 1}] * 4
        assert (frame.run_id, frame.timestamp_ns, frame.exposure_ns) == (42, 5000 + n, 2_000_000)
    assert detector.state is State.IDLE
    assert 0x22 not in board.opcodes(), "a run that ended by itself is not aborted"


@pytest.mark.parametrize(
    ("options", "thresholds", "values"),
    [
        ({"counters": (1,)}, (1, 3, 5, 7), [3, 3, 3, 3]),
        ({"counters": (0,)}, (0, 2, 4, 6), [2, 2, 2, 2]),
        ({"counters": (0, 1), "is_colour": False}, (0, 1), [2, 3]),
        ({"counters": (1,), "is_colour": False}, (1,), [3]),
        ({"counters": (1,), "is_colour": False, "depth_bits": 24}, (1,), [3 << 12 | 2]),
        ({"counters": (1,), "is_colour": False, "depth_bits": 6}, (1,), [1]),
        ({"counters": (1,), "is_colour": False, "depth_bits": 1}, (1,), [1]),
    ],
)
def test_planes_of_each_mode(
    detector: Detector, board: ScriptedBoard, options: dict, thresholds: tuple, values: list
) -> None:
    board.count = lambda sequence, counter: 2 + counter
    detector.configure(Configuration(**options))
    (frame,) = detector.frames(1, 0.001)
    assert isinstance(frame, Frame)
    assert frame.thresholds == thresholds
    assert [set(plane.ravel().tolist()) for plane in frame.counts] == [{value} for value in values]
    assert frame.counts.dtype == (np.uint32 if options.get("depth_bits") == 24 else np.uint16)


def test_the_first_run_leaves_nothing_of_an_earlier_session_in_the_chip(
    detector: Detector, board: ScriptedBoard
) -> None:
    list(detector.frames(1, 0.001))
    modes = [fields["M"] for fields, _ in omrs_and_bits(board)]
    assert modes == [6, 6, 1, 1]
    board.sent.clear()
    list(detector.frames(1, 0.001))
    assert omrs_and_bits(board) == []


def test_losses_are_told_in_their_place(detector: Detector, board: ScriptedBoard) -> None:
    board.spoil = lambda sequence, packets: b"" if sequence in (1, 4) else packets
    items = list(detector.frames(5, 0.001))
    assert [item.sequence if isinstance(item, Frame) else -item.first_sequence for item in items] == [0, -1, 2, 3, -4]
    assert isinstance(items[-1], Lost)


def test_leftovers_of_the_last_run_do_not_reach_the_next(detector: Detector, board: ScriptedBoard) -> None:
    leftovers = []
    board.spoil = lambda sequence, packets: leftovers.append(packets) or packets
    list(detector.frames(2, 0.001))
    board.spoil = lambda sequence, packets: b"".join(leftovers) + packets if sequence == 0 else packets
    assert [frame.run_id for frame in detector.frames(2, 0.001)] == [43, 43]


def test_an_iterator_closed_early_aborts_the_run(detector: Detector, board: ScriptedBoard) -> None:
    for frame in detector.frames(100, 0.001):
        assert isinstance(frame, Frame)
        if frame.sequence == 2:
            break
    assert detector.state is State.IDLE
    assert board.state == IDLE
    assert 0x22 in board.opcodes()
    assert len(list(detector.frames(2, 0.001))) == 2


def test_an_interrupted_read_leaves_the_device_usable(detector: Detector, board: ScriptedBoard) -> None:
    def interrupt(sequence: int, packets: bytes) -> bytes:
        raise KeyboardInterrupt

    board.spoil = interrupt
    with pytest.raises(KeyboardInterrupt):
        list(detector.frames(5, 0.001))
    board.spoil = lambda sequence, packets: packets
    assert board.state == IDLE
    assert len(list(detector.frames(2, 0.001))) == 2


def test_a_stop_ends_an_endless_run_after_what_was_taken(detector: Detector, board: ScriptedBoard) -> None:
    board.spoil = lambda sequence, packets: b"" if sequence == 3 else packets
    items = []
    for item in detector.frames(0, 0.001):
        items.append(item)
        if len(items) == 3:
            board.n_done += 1  # one more is on its way, and never arrives
            detector.stop()
    assert [item.sequence for item in items[:3]] == [0, 1, 2]
    assert [item.first_sequence for item in items[3:]] == [3]
    assert detector.state is State.IDLE


@pytest.mark.parametrize("knows_request", [True, False])
def test_an_abort_ends_the_run_without_complaint(detector: Detector, board: ScriptedBoard, knows_request: bool) -> None:
    board.knows_abort_request = knows_request
    frames = detector.frames(100, 0.001)
    next(frames)
    detector.abort()
    assert list(frames) == []
    assert (board.opcodes().count(0x22), board.state) == (1, IDLE)
    detector.stop()  # too late, and no mistake


def test_an_abort_that_overtakes_the_start_ends_the_run_all_the_same(detector: Detector, board: ScriptedBoard) -> None:
    list(detector.frames(1, 0.001))
    obey = board.obey

    def abort_first(opcode: int, payload: bytes) -> bytes:
        if opcode == 0x20:
            detector.abort()
        return obey(opcode, payload)

    board.obey = abort_first
    assert list(detector.frames(0, 0.001)) == []
    assert (board.state, detector.state) == (IDLE, State.IDLE)
    board.obey = obey
    assert len(list(detector.frames(2, 0.001))) == 2


def test_an_abort_throws_away_what_had_come_before_it(detector: Detector) -> None:
    read = detector._link.read_frames

    def several_at_once(timeout_s: float) -> memoryview:
        return memoryview(b"".join(bytes(read(timeout_s)) for _ in range(4)))

    detector._link.read_frames = several_at_once  # pyright: ignore[reportAttributeAccessIssue]
    frames = detector.frames(100, 0.001)
    next(frames)
    detector.abort()
    assert list(frames) == []
    assert detector.state is State.IDLE


def test_a_silent_board_is_a_timeout(detector: Detector, board: ScriptedBoard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "SILENCE_S", 0.05)
    board.count = lambda sequence, counter: 0
    board.spoil = lambda sequence, packets: b""
    with pytest.raises(TransportTimeout, match="says that it acquires"):
        list(detector.frames(0, 0.001))
    assert (detector.state, board.state) == (State.IDLE, IDLE)


def test_a_fault_of_the_board_is_told(detector: Detector, board: ScriptedBoard) -> None:
    def fail(sequence: int, packets: bytes) -> bytes:
        board.state = FAULT
        return b""

    board.spoil = fail
    with pytest.raises(TheirMistake, match="fault"):
        list(detector.frames(3, 0.001))


def test_frames_in_another_mode_than_asked_are_refused(detector: Detector, board: ScriptedBoard) -> None:
    def other_mode(sequence: int, packets: bytes) -> bytes:
        board.readouts = [omr ^ 1 << 21 for omr in board.readouts]
        return board.packet(board.readouts[0])

    board.spoil = other_mode
    with pytest.raises(TheirMistake, match="OMR"):
        list(detector.frames(2, 0.001))


@pytest.mark.parametrize(("n_frames", "exposure_s"), [(-1, 0.1), (1, 0.0), (1, -1.0)])
def test_runs_that_cannot_be_are_refused_at_once(detector: Detector, n_frames: int, exposure_s: float) -> None:
    with pytest.raises(ValueError, match="allowed"):
        detector.frames(n_frames, exposure_s)


# States and failures


def test_what_is_not_allowed_now_is_refused_in_words(detector: Detector, board: ScriptedBoard) -> None:
    frames = detector.frames(3, 0.001)
    next(frames)
    with pytest.raises(OurMistake, match="cannot CONFIGURE while ACQUIRING; allowed: ASK, TRIGGER, STOP, ABORT"):
        detector.set_dacs({})
    with pytest.raises(OurMistake, match="cannot ACQUIRE while ACQUIRING"):
        detector.frames(1, 0.001)
    assert detector.auxiliary("ROT?") == "OK ROT?"
    detector.close()
    with pytest.raises(OurMistake, match="cannot ACQUIRE while DISCONNECTED; allowed: CONNECT"):
        detector.frames(1, 0.001)
    assert 0x22 in board.opcodes()


def test_a_detector_that_is_gone_is_disconnected(detector: Detector, board: ScriptedBoard) -> None:
    def vanish(sequence: int, packets: bytes) -> bytes:
        raise Disconnected("gone")

    board.spoil = vanish
    with pytest.raises(Disconnected):
        list(detector.frames(3, 0.001))
    assert detector.state is State.DISCONNECTED


@pytest.mark.parametrize(
    ("status", "kind"), [(1, OurMistake), (2, TheirMistake), (3, TheirMistake), (4, OurMistake), (5, TransportError),
                         (6, TheirMistake), (7, OurMistake), (99, TheirMistake)],
)  # fmt: skip
def test_each_refusal_says_whose_mistake_it_is(
    detector: Detector, board: ScriptedBoard, status: int, kind: type[Exception]
) -> None:
    board.answers[0x05] = (status, b"because")
    with pytest.raises(kind, match=r"WRITE_REGISTER by .*: because"):
        detector.set_bias(1.0)


def test_a_board_that_does_not_answer_is_a_timeout(detector: Detector, board: ScriptedBoard) -> None:
    board.is_mute = True
    with pytest.raises(TransportTimeout, match="GET_STATUS"):
        detector.status()
    assert board.n_forgotten == 1, "it may wait for the rest of a command"
    board.is_mute = False
    assert detector.status().run_id == 41


@pytest.mark.parametrize("breaks", [[Stalled("stalled")], [TransportTimeout("took 5 of 9"), Stalled("stalled")]])
def test_a_command_that_broke_off_is_sent_again(
    detector: Detector, board: ScriptedBoard, breaks: list[Exception]
) -> None:
    board.sent.clear()
    board.breaks = list(breaks)
    assert detector.status().run_id == 41
    assert board.opcodes() == [0x02]


def test_a_command_that_breaks_off_every_time_is_an_error_in_words(detector: Detector, board: ScriptedBoard) -> None:
    board.breaks = [TransportTimeout("the device took 1000 of 49184 bytes of a command")] * 3
    with pytest.raises(TransportError, match=r"broke off 3 times: .* 1000 of 49184") as caught:
        detector.load_pixels(PixelConfiguration())
    assert "forgotten" in caught.value.hint
    assert detector.state is State.IDLE
    detector.load_pixels(PixelConfiguration())


def test_diagram_in_the_specification_is_the_one_of_the_table() -> None:
    text = (Path(device.__file__).parent / "PROTOCOL.md").read_text()
    assert f"```mermaid\n{states_diagram()}\n```" in text


# Transports


class Entries(dict):
    names = property(lambda self: set(self))


class Entry:
    def __init__(self, function: Callable[[str], object]) -> None:
        self.function = function

    def load(self) -> Callable[[str], object]:
        return self.function


def test_detectors_are_found_by_scheme(monkeypatch: pytest.MonkeyPatch, board: ScriptedBoard) -> None:
    addresses = []
    entries = Entries(test=Entry(lambda address: addresses.append(address) or board))
    monkeypatch.setattr(transport, "entry_points", lambda group: entries if group == "mpxct.transports" else None)
    assert open_detector("test:some?place").info.serial == "B-17"
    assert addresses == ["some?place"]
    with pytest.raises(WrongUsage, match="known schemes: test"):
        open_detector("foo:bar")
