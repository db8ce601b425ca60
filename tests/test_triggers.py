"""Triggers, memory, registers and assemblies, from the simulated board's lines to the frames of `Detector`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from numpy.typing import NDArray

from firmware_iface import specification, wire
from firmware_iface.assembly import LAYOUTS
from firmware_iface.configuration import Configuration, PixelConfiguration
from firmware_iface.device import Detector, State, Trigger, TriggerOutput
from firmware_iface.errors import OurMistake, TheirMistake
from firmware_iface.frame import Frame, Lost
from firmware_iface.trigger import TriggerOut, TriggerStart, TriggerStop
from firmware_iface.usb_transport import UsbTransport
from firmware_iface.wire import BoardState, Opcode
from sim import board as sim_board
from sim.board import Board
from sim.chip import SimulatedChip
from sim.faults import NO_FAULTS, Faults
from sim.sensor import Settings
from sim.sequencer import readout_time_ns
from sim.triggers import Pulser
from sim.usb_device import SimulatedUsb
from sim.usb_model import UsbDevice

EXPOSURE_S, EXPOSURE_NS = 1e-4, 100_000
CONFIGURATION = Configuration(depth_bits=6, counters=(1,))
READOUT_NS = readout_time_ns(CONFIGURATION.readouts[0])


class Scene:
    """The front ends of all chips: random events that are remembered."""

    def __init__(self, n_chips: int) -> None:
        self.events: list[list[NDArray[np.uint32]]] = [[] for _ in range(n_chips)]
        self.pulses: list[int] = []

    def chip(self, number: int) -> SimulatedChip:
        rng = np.random.default_rng(number)

        def front_end(duration_s: float, settings: Settings) -> NDArray[np.uint32]:
            planes = len(settings.threshold_dac)
            size = 128 if planes == 8 else 256
            self.events[number].append(rng.integers(0, 50, (planes, size, size), dtype=np.uint32))
            return self.events[number][-1]

        def injection(n: int, charge_e: NDArray[np.float32], settings: Settings) -> NDArray[np.uint32]:
            self.pulses.append(n)
            return np.zeros((8, 128, 128), np.uint32)

        return SimulatedChip(front_end, chip_id=0x00021160 + number, injection=injection)


class Bench:
    """A board with everything around it, and a detector that holds it."""

    def __init__(
        self,
        layout: tuple[int, int] = (1, 1),
        faults: Faults = NO_FAULTS,
        inputs: Mapping[str, Pulser] | None = None,
    ) -> None:
        n_chips = layout[0] * layout[1]
        self.scene = Scene(n_chips)
        chips = [self.scene.chip(n) for n in range(n_chips)]
        self.board = Board(chips, str.upper, "BENCH", faults, layout=layout, inputs=inputs)
        self.device = UsbDevice(self.board, "BENCH")
        self.detector = Detector(UsbTransport(SimulatedUsb(self.device), "bench"))
        self.detector.configure(CONFIGURATION)

    def take(self, n_frames: int) -> list[Frame | Lost]:
        return list(self.detector.frames(n_frames, EXPOSURE_S))

    def times_ns(self, n_frames: int) -> list[int]:
        items = self.take(n_frames)
        return [item.timestamp_ns for item in items if isinstance(item, Frame)]


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


# Triggers


def test_edges_open_the_shutter_and_bursts_follow_them() -> None:
    pulser = Pulser(period_ns=10_000_000, high_ns=1_000_000)
    for start, offset_ns in ((TriggerStart.RISING_TTL, 0), (TriggerStart.FALLING_TTL, 1_000_000)):
        bench = Bench(inputs={"TTL": pulser})
        bench.detector.set_trigger(Trigger(start=start, frames_per_trigger=2, delay_ns=1234))
        times = np.array(bench.times_ns(5))
        assert (times[::2] % 10_000_000 == offset_ns + 1230).all(), "the delay is rounded down to 10 ns"
        assert np.diff(times)[::2].tolist() == [EXPOSURE_NS + READOUT_NS] * 2
        assert len(times) == 5, "the run ends within a burst"


def test_an_lvds_edge_is_not_a_ttl_edge() -> None:
    bench = Bench(inputs={"LVDS": Pulser(period_ns=1_000_000, high_ns=1000)})
    bench.detector.set_trigger(Trigger(start=TriggerStart.RISING_LVDS))
    assert [time_ns % 1_000_000 for time_ns in bench.times_ns(3)] == [0, 0, 0]


def test_gates_last_from_edge_to_edge_and_at_least_the_exposure() -> None:
    gate = Trigger(start=TriggerStart.RISING_TTL, stop=TriggerStop.FALLING_TTL)
    for high_ns, open_ns in ((700_000, 700_000), (30_000, 2_030_000)):  # a short gate waits for the next fall
        bench = Bench(inputs={"TTL": Pulser(period_ns=2_000_000, high_ns=high_ns)})
        bench.detector.set_trigger(gate)
        frames = bench.take(3)
        assert [frame.exposure_ns for frame in frames if isinstance(frame, Frame)] == [open_ns] * 3
    with pytest.raises(ValueError, match="1 for a gate"):
        Trigger(start=TriggerStart.RISING_TTL, stop=TriggerStop.FALLING_TTL, frames_per_trigger=2)


def test_a_trigger_that_comes_too_early_is_told() -> None:
    bench = Bench(inputs={"TTL": Pulser(period_ns=300_000, high_ns=1000)})
    bench.detector.set_trigger(Trigger(start=TriggerStart.RISING_TTL, frames_per_trigger=2))
    frames = [item for item in bench.take(6) if isinstance(item, Frame)]
    assert [frame.is_triggered for frame in frames] == [True, False] * 3
    assert [frame.missed_trigger for frame in frames] == [False, False, True, False, True, False]


def test_software_triggers_one_burst_at_a_time() -> None:
    bench = Bench()
    bench.detector.set_trigger(Trigger(start=TriggerStart.SOFTWARE, frames_per_trigger=3))
    taken: list[Frame | Lost] = []
    taker = threading.Thread(target=lambda: taken.extend(bench.detector.frames(0, EXPOSURE_S)), daemon=True)
    taker.start()
    for n_bursts in (1, 2):
        wait_until(lambda: bench.board.state is BoardState.ARMED)
        assert len(bench.scene.events[0]) == 3 * (n_bursts - 1), "no frame without a trigger"
        bench.detector.trigger()
        wait_until(lambda n=3 * n_bursts: len(taken) >= n)
    bench.detector.stop()
    taker.join(10)
    assert [item.sequence for item in taken if isinstance(item, Frame)] == list(range(6))
    with pytest.raises(OurMistake, match="cannot TRIGGER while IDLE"):
        bench.detector.trigger()


@pytest.mark.parametrize("end", ["stop", "abort"])
def test_a_run_that_waits_for_its_trigger_can_be_ended(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firmware_iface.device.SILENCE_S", 0.05)
    bench = Bench()
    bench.detector.set_trigger(Trigger(start=TriggerStart.RISING_TTL))
    timer = threading.Timer(0.6, getattr(bench.detector, end))  # longer than any silence of a run without triggers
    timer.start()
    assert bench.take(5) == []
    assert (bench.detector.state, bench.board.state) == (State.IDLE, BoardState.IDLE)


def test_outputs_follow_what_they_are_told() -> None:
    for source, width_ns in (
        (TriggerOut.SHUTTER, EXPOSURE_NS),
        (TriggerOut.SHUTTER_AND_READOUT, EXPOSURE_NS + READOUT_NS),
        (TriggerOut.BURST, 2 * (EXPOSURE_NS + READOUT_NS)),
    ):
        bench = Bench(inputs={"TTL": Pulser(period_ns=10_000_000, high_ns=1000)})
        bench.detector.set_trigger(Trigger(start=TriggerStart.RISING_TTL, frames_per_trigger=2))
        bench.detector.set_output("TTL", TriggerOutput(source=source))
        times = bench.times_ns(4)
        intervals = list(bench.board.outputs["TTL"])
        if source is TriggerOut.SHUTTER:
            assert [begin_ns for begin_ns, _ in intervals] == times
        if source is not TriggerOut.SHUTTER_AND_READOUT:  # whose pulses touch within a burst
            assert {end_ns - begin_ns for begin_ns, end_ns in intervals} == {width_ns}


@pytest.mark.parametrize(("source", "delay_ns"), [(TriggerOut.INPUT_TTL, 0), (TriggerOut.INPUT_TTL_DELAYED, 700)])
def test_outputs_copy_an_input(source: TriggerOut, delay_ns: int) -> None:
    bench = Bench(inputs={"TTL": Pulser(period_ns=250_000, high_ns=1000)})
    bench.detector.set_output("LVDS", TriggerOutput(source=source, delay_ns=700))
    end_ns = bench.times_ns(4)[-1] + EXPOSURE_NS + READOUT_NS
    rises = range(0, end_ns, 250_000)
    assert len(rises) > 4
    assert list(bench.board.outputs["LVDS"]) == [(rise + delay_ns, rise + delay_ns + 1000) for rise in rises]
    assert len(list(bench.board.outputs["TTL"])) == 4, "the other output shows the shutter"


# Memory


def test_a_full_memory_pauses_and_nothing_is_lost() -> None:
    bench = Bench(faults=Faults(slow=MappingProxyType({3: 10})))
    bench.detector.write_register("MEMORY_FRAMES", 4)
    frames = bench.take(12)
    assert [frame.sequence for frame in frames if isinstance(frame, Frame)] == list(range(12))
    paused = [frame.sequence for frame in frames if isinstance(frame, Frame) and frame.was_paused]
    assert paused == [7], "the memory held frames 3 to 6"
    gaps = np.diff([frame.timestamp_ns for frame in frames if isinstance(frame, Frame)])
    assert gaps[6] > 5 * gaps[0]


def test_in_continuous_read_write_a_full_memory_makes_a_frame_longer() -> None:
    bench = Bench(faults=Faults(slow=MappingProxyType({3: 10})))
    bench.detector.configure(Configuration(depth_bits=6, counters=(1,), is_continuous=True))
    bench.detector.write_register("MEMORY_FRAMES", 4)
    frames = [frame for frame in bench.detector.frames(12, 1e-3) if isinstance(frame, Frame)]
    assert [frame.sequence for frame in frames] == list(range(12))
    assert [frame.sequence for frame in frames if frame.was_paused] == [7]
    exposures_ns = [frame.exposure_ns for frame in frames]
    openings_ns = [frame.timestamp_ns for frame in frames]
    assert np.diff(openings_ns).tolist() == exposures_ns[:-1], "there is no gap"
    assert exposures_ns[7] > 5 * exposures_ns[6] == 5 * exposures_ns[8]


def test_a_full_memory_drops_and_says_so() -> None:
    bench = Bench(faults=Faults(slow=MappingProxyType({3: 10})))
    bench.detector.write_register("MEMORY_FRAMES", 4)
    bench.detector.write_register("WHEN_FULL", wire.WhenFull.DROP)
    items = bench.take(20)
    (loss,) = [item for item in items if isinstance(item, Lost)]
    assert (loss.first_sequence, loss.n_frames) == (7, 7)
    assert "ran out of memory" in loss.reason
    assert items.index(loss) == 7
    assert len(items) == 14
    assert [item.sequence for item in items if isinstance(item, Frame) and item.follows_overflow] == [14]
    for frame in items:
        if isinstance(frame, Frame):
            np.testing.assert_array_equal(frame.counts, bench.scene.events[0][frame.sequence][1::2])


# Faults of the board


@pytest.mark.parametrize(("fault", "words"), [("hang", "CHIP_SILENT"), ("brown_out", "started again")])
def test_a_board_that_fails_ends_the_run_in_words_and_comes_back(fault: str, words: str) -> None:
    bench = Bench(faults=Faults(**{fault: frozenset({4})}))
    bench.detector.set_bias(-300.0)
    taken = []
    with pytest.raises(TheirMistake, match=words):
        taken.extend(bench.detector.frames(9, EXPOSURE_S))
    assert bench.detector.state is State.DISCONNECTED
    bench.detector.stop()
    bench.detector.abort()
    bench.detector.close()
    again = Detector(UsbTransport(SimulatedUsb(bench.device), "again"))
    assert (again.status().state, again.status().bias_v) == (BoardState.IDLE, 0.0)
    assert len(list(again.frames(3, EXPOSURE_S))) == 3


def test_a_board_that_restarts_between_runs_is_noticed_before_the_next() -> None:
    bench = Bench()
    bench.take(1)
    bench.board._power_up()
    with pytest.raises(TheirMistake, match="lost all settings"):
        bench.take(1)


@pytest.mark.parametrize("fault", ["stall", "zero", "short", "duplicate", "garbage"])
def test_faults_that_take_nothing_away_lose_nothing(fault: str) -> None:
    bench = Bench(faults=Faults(**{fault: frozenset({0, 2, 3, 5})}))
    frames = bench.take(6)
    assert [frame.sequence for frame in frames if isinstance(frame, Frame)] == list(range(6))


def test_a_stall_of_the_reply_is_cleared_and_the_reply_still_read() -> None:
    bench = Bench()
    bench.device.halt(wire.EP_REPLY)
    assert bench.detector.status().state is BoardState.IDLE
    assert len(bench.take(2)) == 2


def test_an_overtaken_frame_is_lost_and_the_one_that_overtook_it_is_not() -> None:
    items = Bench(faults=Faults(reorder=frozenset({2}))).take(5)
    assert [(type(item), getattr(item, "sequence", None)) for item in items] == [
        (Frame, 0), (Frame, 1), (Lost, None), (Frame, 3), (Frame, 4),
    ]  # fmt: skip


@pytest.mark.parametrize("n_bytes", [1, 64, 5000, 49_300, 100_000])
def test_unplugged_at_any_byte_and_plugged_again(n_bytes: int) -> None:
    bench = Bench(faults=Faults(unplug_at=n_bytes))
    taken: list[Frame | Lost] = []
    with pytest.raises(Exception, match="left the bus"):
        taken.extend(bench.detector.frames(9, EXPOSURE_S))
    bench.detector.close()
    bench.device.plug()
    again = Detector(UsbTransport(SimulatedUsb(bench.device), "again"))
    assert len(list(again.frames(3, EXPOSURE_S))) == 3


# Registers


def test_health_and_registers() -> None:
    detector = Bench().detector
    detector.set_bias(-450.0)
    assert detector.health().bias_v == pytest.approx(-438.3)
    assert detector.health().sensor_k == pytest.approx(303.15)
    detector.write_register("CLOCK", 200_000)
    assert detector.read_register("CLOCK") == 200_000
    for name, value in (("CLOCK", 1), ("LINES", 8)):
        with pytest.raises(ValueError, match="allowed"):
            detector.write_register(name, value)
    with pytest.raises(ValueError, match="no register 'CLOK'"):
        detector.read_register("CLOK")


def test_a_faster_clock_reads_faster() -> None:
    bench = Bench()
    bench.detector.write_register("CLOCK", 60_000)
    clocks = 48 + 256 + 65536 * 6 // 8
    assert np.diff(bench.times_ns(3)).tolist() == [EXPOSURE_NS + clocks * 1_000_000 // 60_000] * 2


def test_registers_do_not_overlap_and_start_within_their_range() -> None:
    addresses = [register.address for register in wire.REGISTERS.values()]
    assert len(set(addresses)) == len(addresses)
    assert all(address % 4 == 0 for address in addresses)
    for register in wire.REGISTERS.values():
        assert not register.is_writable or register.lowest <= register.initial <= register.highest


def test_a_board_tells_every_register() -> None:
    detector = Bench().detector
    for name, register in wire.REGISTERS.items():
        value = detector.read_register(name)
        assert not register.is_writable or value == register.initial, name
    assert detector.read_register("CAPABILITIES") == detector.info.capabilities


def test_sense_pads_and_test_pulses() -> None:
    bench = Bench(layout=(1, 2))
    readings = [bench.detector.sense_v("GND", n) for n in (0, 1)]
    bench.detector.set_dacs({"GND": 200}, 1)
    assert bench.detector.sense_v("GND", 0) == readings[0]
    assert bench.detector.sense_v("GND", 1) > readings[1]
    assert bench.detector.dacs_of(0)["GND"] == 144
    bench.detector.configure(Configuration(is_csm=False, is_test_pulsed=True))
    bench.detector.set_test_pulses(10, 1e-6)
    bench.detector.set_test_columns(np.ones(256, dtype=bool))
    bench.take(2)
    assert bench.scene.pulses == [10] * 4
    bench.detector.set_test_pulses(1000, 1e-6)
    with pytest.raises(OurMistake, match="within the exposure"):
        bench.take(1)


# Assemblies


@pytest.mark.parametrize("layout", [(1, 2), (1, 8), (2, 2)])
@pytest.mark.parametrize("is_colour", [True, False])
def test_the_image_of_an_assembly_is_that_of_its_chips(layout: tuple[int, int], is_colour: bool) -> None:
    bench = Bench(layout=layout)
    bench.detector.configure(Configuration(depth_bits=6, counters=(1,), is_colour=is_colour, is_csm=is_colour))
    (frame,) = bench.take(1)
    assert isinstance(frame, Frame)
    parts = [events[0][1::2] for events in bench.scene.events]
    size = 128 if is_colour else 256
    rows, columns = layout
    assert frame.counts.shape == (4 if is_colour else 1, rows * size, columns * size)
    for n, part in enumerate(parts):
        row, column = divmod(n, columns)
        seen = frame.counts[:, row * size : (row + 1) * size, column * size : (column + 1) * size]
        np.testing.assert_array_equal(seen[:, ::-1, ::-1] if row else seen, part)


def test_each_chip_of_an_assembly_has_its_own_name_dacs_and_pixels() -> None:
    detector = Bench(layout=(2, 2)).detector
    assert detector.info.layout == (2, 2)
    assert [detector.chip_id(n) for n in range(4)] == ["W529_F0", "W529_F1", "W529_F2", "W529_F3"]
    detector.set_dacs({"Threshold0": 33})
    detector.set_dacs({"Threshold0": 44}, 2)
    assert [detector.read_dacs(n)["Threshold0"] for n in range(4)] == [33, 33, 44, 33]
    trim_h = np.full((256, 256), 9, dtype=np.uint8)
    detector.load_pixels(PixelConfiguration())
    detector.load_pixels(PixelConfiguration(trim_h=trim_h), 3)
    assert [int(detector.read_pixels(n).max() >> 6) for n in (0, 3)] == [0, 9]
    with pytest.raises(ValueError, match="chip 4; allowed: 0 to 3"):
        detector.set_dacs({}, 4)


def test_continuous_read_write_has_no_gap_and_takes_the_counters_in_turn() -> None:
    bench = Bench()
    bench.detector.configure(Configuration(depth_bits=6, counters=(1,), is_continuous=True))
    items = list(bench.detector.frames(5, 1e-3))
    frames = [item for item in items if isinstance(item, Frame)]
    assert np.diff([frame.timestamp_ns for frame in frames]).tolist() == [1_000_000] * 4
    for frame, events in zip(frames, bench.scene.events[0], strict=True):
        np.testing.assert_array_equal(frame.counts, events[1::2])
    with pytest.raises(OurMistake, match="continuous"):
        list(bench.detector.frames(1, 1e-5))


# The page


def test_the_page_prints_the_tables() -> None:
    text = (Path(specification.__file__).parent / "PROTOCOL.md").read_text()
    for part in specification.printed_parts():
        assert part in text
    assert f"```mermaid\n{sim_board.states_diagram()}\n```" in text
    for opcode in Opcode:
        assert f"| `{opcode:02X}` | `{opcode.name}` |" in text
    for capability in wire.Capability:
        assert f"{capability.bit_length() - 1} `{capability.name}`" in text
    assert sim_board.LAYOUTS == LAYOUTS


def test_stop_and_abort_are_allowed_in_every_state_of_the_board() -> None:
    for state in BoardState:
        for opcode in (Opcode.STOP, Opcode.ABORT, Opcode.GET_STATUS, Opcode.RESET):
            allowed = (state, opcode) in sim_board.TRANSITIONS
            assert allowed, (state, opcode)
