"""The whole wire at once: events in the simulated chip come out of `Detector` over pyusb, whole or as losses."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator, Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from firmware_iface.chip import Gain
from firmware_iface.codec import encode_command
from firmware_iface.device import Configuration, Detector, PixelConfiguration, State
from firmware_iface.errors import Disconnected
from firmware_iface.frame import Frame, Lost
from firmware_iface.usb_transport import UsbTransport
from firmware_iface.wire import Opcode
from sim.board import Board
from sim.chip import SimulatedChip
from sim.faults import NO_FAULTS, Faults
from sim.sensor import Settings
from sim.usb_device import SimulatedUsb
from sim.usb_model import SlowLine, UsbDevice

EXPOSURE_S = 2e-3
PLANES = {(0,): (0, 2, 4, 6), (1,): (1, 3, 5, 7), (0, 1): tuple(range(8))}


class Scene:
    """A front end that remembers what it gave and what it was asked with."""

    def __init__(self, most: int) -> None:
        self.rng = np.random.default_rng(5)
        self.most = most
        self.events: list[NDArray[np.uint32]] = []
        self.settings: list[Settings] = []
        self.durations_s: list[float] = []

    def __call__(self, duration_s: float, settings: Settings) -> NDArray[np.uint32]:
        self.events.append(self.rng.integers(0, self.most + 1, (8, 128, 128), dtype=np.uint32))
        self.settings.append(settings)
        self.durations_s.append(duration_s)
        return self.events[-1]


def a_detector(scene: Scene, faults: Faults = NO_FAULTS) -> Detector:
    board = Board(SimulatedChip(scene, chip_id=0x00021165), lambda line: f"OK {line}", "WALK-1", faults)
    return Detector(UsbTransport(SimulatedUsb(UsbDevice(board, "WALK-1")), "walk"))


@pytest.fixture
def scene() -> Scene:
    return Scene(most=4095)


@pytest.fixture
def detector(scene: Scene) -> Iterator[Detector]:
    with a_detector(scene) as found:
        yield found


@pytest.mark.parametrize(
    ("depth_bits", "counters", "is_csm"),
    [(depth_bits, counters, True) for depth_bits in (1, 6, 12) for counters in PLANES]
    + [(24, (1,), True), (24, (1,), False), (24, (0,), False)],
)
def test_counts_out_are_events_in(depth_bits: int, counters: tuple[int, ...], is_csm: bool) -> None:
    scene = Scene(most=(1 << depth_bits) - 1)
    with a_detector(scene) as detector:
        detector.configure(Configuration(depth_bits=depth_bits, counters=counters, is_csm=is_csm))
        frames = list(detector.frames(3, EXPOSURE_S))
    for sequence, (frame, events) in enumerate(zip(frames, scene.events, strict=True)):
        assert isinstance(frame, Frame)
        assert frame.sequence == sequence
        assert frame.exposure_ns == 2_000_000
        np.testing.assert_array_equal(frame.counts, events[list(PLANES[counters])])
    assert scene.durations_s == pytest.approx([EXPOSURE_S] * 3)


def test_what_is_set_reaches_the_pixels(detector: Detector, scene: Scene) -> None:
    rng = np.random.default_rng(8)
    shape = (256, 256)
    pixels = PixelConfiguration(
        is_masked=rng.random(shape) < 0.1,
        trim_l=rng.integers(0, 32, shape, dtype=np.uint8),
        trim_h=rng.integers(0, 32, shape, dtype=np.uint8),
        is_test=np.zeros(shape, dtype=bool),
    )
    detector.configure(Configuration(is_csm=True, gain=Gain.LGM))
    detector.set_dacs({f"Threshold{n}": 60 + n for n in range(8)} | {"DAC_DiscL": 77, "DAC_DiscH": 88})
    detector.load_pixels(pixels)
    list(detector.frames(1, EXPOSURE_S))
    (settings,) = scene.settings
    assert settings.threshold_dac.tolist() == list(range(60, 68))
    assert (settings.disc_l, settings.disc_h, settings.gain, settings.is_csm) == (77, 88, Gain.LGM, True)
    for k, (row, col) in enumerate(((1, 1), (0, 1), (1, 0), (0, 0))):
        np.testing.assert_array_equal(settings.trim[2 * k], pixels.trim_l[row::2, col::2])
        np.testing.assert_array_equal(settings.trim[2 * k + 1], pixels.trim_h[row::2, col::2])
        for n in (2 * k, 2 * k + 1):
            np.testing.assert_array_equal(settings.is_masked[n], pixels.is_masked[row::2, col::2])


def test_identity_and_the_line_to_the_gantry(detector: Detector) -> None:
    assert detector.auxiliary("ROT 12.5 µ") == "OK ROT 12.5 µ"
    assert detector.chip_id() == "W529_F5"
    assert detector.info.serial == "WALK-1"
    detector.set_bias(-450.0)
    assert detector.status().bias_v == -450.0


FAULTS: Mapping[str, list[int]] = {
    "drop": [2],
    "corrupt": [2],
    "truncate": [2],
    "duplicate": [],
    "garbage": [],
}


@pytest.mark.parametrize("fault", list(FAULTS))
@pytest.mark.parametrize("counters", [(1,), (0, 1)])
def test_loss_is_data_and_nothing_else_is_harmed(fault: str, counters: tuple[int, ...], scene: Scene) -> None:
    with a_detector(scene, Faults(**{fault: frozenset({2})})) as detector:
        detector.configure(Configuration(counters=counters))
        items = list(detector.frames(5, EXPOSURE_S))
    lost = [item for item in items if isinstance(item, Lost)]
    assert [n for item in lost for n in range(item.first_sequence, item.first_sequence + item.n_frames)] == FAULTS[
        fault
    ]
    frames = [item for item in items if isinstance(item, Frame)]
    assert [frame.sequence for frame in frames] == [n for n in range(5) if n not in FAULTS[fault]]
    for frame in frames:
        np.testing.assert_array_equal(frame.counts, scene.events[frame.sequence][list(PLANES[counters])])
    sequences = [item.sequence if isinstance(item, Frame) else item.first_sequence for item in items]
    assert sequences == sorted(sequences), "a loss is reported before the frame that follows it"


def test_an_unplugged_detector_says_so(scene: Scene) -> None:
    detector = a_detector(scene, Faults(unplug_after=3))
    detector.configure(Configuration())
    frames = []
    with pytest.raises(Disconnected):
        frames.extend(detector.frames(10, EXPOSURE_S))
    assert len(scene.events) == 3
    detector.close()


def test_runs_follow_each_other_after_an_early_end(detector: Detector, scene: Scene) -> None:
    detector.configure(Configuration())
    frames = detector.frames(1000, EXPOSURE_S)
    next(frames)
    frames.close()  # pyright: ignore[reportAttributeAccessIssue]
    n_before = len(scene.events)
    assert n_before < 50
    after = list(detector.frames(3, EXPOSURE_S))
    for frame, events in zip(after, scene.events[n_before:], strict=True):
        assert isinstance(frame, Frame)
        np.testing.assert_array_equal(frame.counts, events[1::2])


def test_an_abort_does_not_wait_for_a_turning_stage() -> None:
    line, scene = SlowLine(str.lower, 2.5), Scene(most=4095)
    line.device = UsbDevice(Board(SimulatedChip(scene), line, "WALK-1"), "WALK-1")
    with Detector(UsbTransport(SimulatedUsb(line.device), "walk")) as detector:
        answers: list[tuple[str, float]] = []

        def turn() -> None:
            answers.append((detector.auxiliary("ROT 90"), time.monotonic()))

        frames = detector.frames(0, EXPOSURE_S)
        next(frames)
        stage = threading.Thread(target=turn)
        stage.start()
        next(frames)
        began_s = time.monotonic()
        detector.abort()
        aborted_s = time.monotonic()
        assert list(frames) == []
        ended_s = time.monotonic()
        assert stage.is_alive(), "the stage turns still, so nothing waited for it"
        assert aborted_s - began_s < 1.0  # a lock and a transfer: a few ms where nobody else wants the processor
        assert ended_s - began_s < 2.0
        assert detector.state is State.IDLE
        assert line.device.control(struct.pack("<BBHHH", 0x80, 8, 0, 0, 1)) == b"\1"
        n_before = len(scene.events)
        after = list(detector.frames(2, EXPOSURE_S))  # which waits for the line, as commands go one at a time
        stage.join()
        assert answers[0][0] == "rot 90"
        assert [frame.sequence for frame in after if isinstance(frame, Frame)] == [0, 1]
        assert len(scene.events) == n_before + 2


def test_closing_does_not_wait_for_a_turning_stage() -> None:
    line = SlowLine(str.lower, 20.0)
    line.device = UsbDevice(Board(SimulatedChip(Scene(most=1)), line, "WALK-1"), "WALK-1")
    detector, told = Detector(UsbTransport(SimulatedUsb(line.device), "walk")), []

    def turn() -> None:
        try:
            detector.auxiliary("ROT 90")
        except Disconnected as error:
            told.append(str(error))

    stage = threading.Thread(target=turn)
    stage.start()
    while line.device.n_writes < 3:
        time.sleep(0.001)
    began_s = time.monotonic()
    detector.close()
    stage.join()
    assert time.monotonic() - began_s < 5
    assert told == ["the detector is being closed"]


@pytest.mark.parametrize("first", range(2, 8))
def test_a_load_that_broke_off_is_done_again(scene: Scene, first: int) -> None:
    board = Board(SimulatedChip(scene), lambda line: line, "WALK-1")
    device = UsbDevice(board, "WALK-1", broken_writes=frozenset({first, first + 1}))
    rng = np.random.default_rng(first)
    pixels = PixelConfiguration(trim_h=rng.integers(0, 32, (256, 256), dtype=np.uint8))
    with Detector(UsbTransport(SimulatedUsb(device), "walk")) as detector:
        detector.load_pixels(pixels)
        np.testing.assert_array_equal(detector.read_pixels(), pixels.words)
        list(detector.frames(1, EXPOSURE_S))
        assert device.n_writes > first + 1
        np.testing.assert_array_equal(scene.settings[0].trim[1], pixels.trim_h[1::2, 1::2])


def test_half_a_command_of_a_program_that_was_killed_does_not_deafen_the_next(scene: Scene) -> None:
    bus = SimulatedUsb(UsbDevice(Board(SimulatedChip(scene), str.upper, "WALK-1"), "WALK-1"))
    killed = UsbTransport(bus)
    killed.write(encode_command(Opcode.CHIP_TRANSACT, 1, bytes(49_168))[:20_000])
    killed.close()
    with Detector(UsbTransport(bus)) as detector:
        assert detector.chip_id() == "W529_F5"


def test_words_loaded_into_the_pixels_read_back(detector: Detector) -> None:
    rng = np.random.default_rng(8)
    pixels = PixelConfiguration(trim_h=rng.integers(0, 32, (256, 256), dtype=np.uint8))
    detector.load_pixels(pixels)
    np.testing.assert_array_equal(detector.read_pixels(), pixels.words)
