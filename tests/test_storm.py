"""Driver, board and faults together, in any order: every frame once, in its place, right or told as lost."""

from __future__ import annotations

import importlib.util
import threading
from contextlib import suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from firmware_iface import assembly, codec
from firmware_iface.device import Detector, State, Trigger
from firmware_iface.errors import DetectorError, OurMistake
from firmware_iface.frame import Frame, Lost
from firmware_iface.trigger import TriggerStart
from firmware_iface.usb_transport import UsbTransport
from firmware_iface.wire import BoardState
from sim.board import Board
from sim.faults import Faults
from sim.usb_device import SimulatedUsb
from sim.usb_model import UsbDevice


def benchmark() -> ModuleType:
    path = Path(__file__).parent / "benchmarks" / "fault_storm.py"
    spec = importlib.util.spec_from_file_location("fault_storm", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fault_storm = benchmark()
assembly_of = assembly._together


def storm_of(n_frames: int, layout: tuple[int, int] = (1, 1)) -> SimpleNamespace:
    storm = fault_storm.Storm(seed=11, layout=layout)
    while storm.n_taken < n_frames:
        storm.session()
    return storm


def test_a_storm_makes_no_wrong_frame_and_no_silent_loss() -> None:
    storm = storm_of(3000)
    assert (storm.n_wrong, storm.n_silent, storm.n_hangs, storm.n_baseless) == (0, 0, 0, 0)
    assert storm.n_right > 0
    assert storm.n_lost > 0


@pytest.mark.parametrize("layout", [(2, 2), (1, 3)])
def test_a_storm_over_an_assembly_makes_no_wrong_frame_and_no_silent_loss(layout: tuple[int, int]) -> None:
    storm = storm_of(600, layout)
    assert (storm.n_wrong, storm.n_silent, storm.n_hangs, storm.n_baseless) == (0, 0, 0, 0)
    assert storm.n_right > 0
    assert storm.n_lost > 0


def test_the_storm_finds_an_assembly_put_together_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "_together", lambda parts, layout: assembly_of(parts[::-1], layout))
    assert storm_of(100, (2, 2)).n_wrong > 0


def test_the_storm_finds_a_decoder_that_trusts_every_payload(monkeypatch: pytest.MonkeyPatch) -> None:
    def length_only(header: codec._FrameHeader, payload: bytearray, n_chips: int) -> str:
        return "" if len(payload) == header.n_payload else "cut"

    monkeypatch.setattr(codec, "_damage", length_only)
    assert storm_of(2000).n_wrong > 0


def test_the_storm_finds_a_decoder_that_tells_no_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(self: codec.FrameDecoder, sequence: int, reason: str) -> tuple[()]:
        self._next, self._parts = max(self._next, sequence), [] if self._next < sequence else self._parts
        return ()

    monkeypatch.setattr(codec.FrameDecoder, "_lose_until", silent)
    assert storm_of(1500).n_silent > 0


def test_the_storm_finds_a_decoder_that_loses_what_came_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    damage = codec._damage

    def too_strict(header: codec._FrameHeader, payload: bytearray, n_chips: int) -> str:
        return "odd" if header.sequence % 7 == 3 else damage(header, payload, n_chips)

    monkeypatch.setattr(codec, "_damage", too_strict)
    assert storm_of(3000).n_baseless > 0


class Instrument(RuleBasedStateMachine):
    """One board whose way is bad, through everything that its user may do.

    Which rules may be drawn must not hang on threads and clocks, so those that fit no state do nothing in it.
    """

    @initialize(
        fraction=st.sampled_from([0.0, 0.1, 0.5]), seed=st.integers(0, 1 << 20), hang=st.none() | st.integers(0, 60)
    )
    def open(self, fraction: float, seed: int, hang: int | None) -> None:
        faults = Faults(
            storm_fraction=fraction, storm_seed=seed, hang=frozenset() if hang is None else frozenset({hang})
        )
        self.is_harmless = fraction == 0
        self.chip = fault_storm.PatternChip()
        self.board = Board(self.chip, str.upper, "STATEFUL", faults)
        self.device = UsbDevice(self.board, "STATEFUL")
        self.open_detector()

    def open_detector(self) -> None:
        self.detector = Detector(UsbTransport(SimulatedUsb(self.device), "stateful"))
        self.detector.configure(fault_storm.CONFIGURATION)

    def teardown(self) -> None:
        if hasattr(self, "detector"):
            self.detector.close()

    @rule()
    def open_again(self) -> None:
        if self.detector.state is not State.DISCONNECTED:
            return
        self.detector.close()
        self.device.plug()
        self.open_detector()

    @rule(n_frames=st.integers(1, 25), early=st.none() | st.integers(0, 10), ends_by=st.sampled_from(["stop", "abort"]))
    def take(self, n_frames: int, early: int | None, ends_by: str) -> None:
        if self.detector.state is not State.IDLE:
            return
        self.detector.set_trigger(Trigger())
        n_next = 0
        try:
            for item in self.detector.frames(n_frames, 1e-5):
                n_next = self.accept(item, n_next)
                if early is not None and n_next > early and self.detector.state is State.ACQUIRING:
                    getattr(self.detector, ends_by)()
        except DetectorError:
            assert self.detector.state is State.DISCONNECTED, "only a fault of the board ends a run by an error"
            assert self.board.state is BoardState.FAULT
            return
        if early is None:
            assert n_next == n_frames
        elif ends_by == "stop":
            assert n_next == self.detector.status().n_frames_done

    @rule(n_bursts=st.integers(1, 3), n_in_burst=st.integers(1, 4))
    def take_bursts(self, n_bursts: int, n_in_burst: int) -> None:
        if self.detector.state is not State.IDLE:
            return
        self.detector.set_trigger(Trigger(start=TriggerStart.SOFTWARE, frames_per_trigger=n_in_burst))
        n_next, is_over = 0, threading.Event()

        def trigger_whenever_armed() -> None:
            while not is_over.wait(0.005):
                with suppress(DetectorError):
                    if self.board.state is BoardState.ARMED:
                        self.detector.trigger()

        other = threading.Thread(target=trigger_whenever_armed)
        other.start()
        try:
            for item in self.detector.frames(n_bursts * n_in_burst, 1e-5):
                n_next = self.accept(item, n_next)
            assert n_next == n_bursts * n_in_burst
        except DetectorError:
            assert self.board.state is BoardState.FAULT
        finally:
            is_over.set()
            other.join()

    @rule(n_later=st.integers(0, 3))
    def break_a_command_off(self, n_later: int) -> None:
        if self.detector.state is not State.IDLE:
            return
        self.device.broken_writes = {self.device.n_writes + n_later}
        assert self.detector.status().state is BoardState.IDLE

    @rule(pull=st.booleans())
    def disturb(self, pull: bool) -> None:
        if self.detector.state is not State.IDLE:
            return
        if pull:
            self.device.unplug()
            with pytest.raises(DetectorError):
                self.detector.status()
        else:
            with pytest.raises(OurMistake):
                self.detector.trigger()

    @rule()
    def end_what_does_not_run(self) -> None:
        self.detector.stop()
        self.detector.abort()

    @invariant()
    def nothing_runs_between_the_rules(self) -> None:
        if hasattr(self, "detector") and self.detector.state is State.IDLE:
            assert self.board.state is BoardState.IDLE

    def accept(self, item: Frame | Lost, n_next: int) -> int:
        if isinstance(item, Lost):
            assert item.first_sequence == n_next
            assert not self.is_harmless
            return n_next + item.n_frames
        assert item.sequence == n_next
        assert fault_storm.is_right(item, self.chip.n_runs)
        return n_next + 1


TestInstrument = Instrument.TestCase
TestInstrument.settings = settings(max_examples=20, stateful_step_count=8, deadline=None)
