"""The simulated stage and tube: where they are, what they say, how they fail, and what an exposure on the way sees."""

from __future__ import annotations

import math
import struct
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acquisition.beam import expect_shining
from acquisition.gantry import open_gantry
from acquisition.line_gantry import LineGantry
from acquisition.steps import Pose
from firmware_iface.chip import Gain
from firmware_iface.configuration import Configuration
from firmware_iface.device import Detector
from firmware_iface.errors import BeamRefused, StageStuck, TransportTimeout, TubeTripped, WrongUsage
from firmware_iface.frame import Frame
from firmware_iface.trigger import Trigger, TriggerStart
from firmware_iface.usb_transport import UsbTransport
from sim.gantry import Gantry
from sim.instrument import simulated_device
from sim.stage import RUN_UP_S, Mechanics, OwnClock, Place, Stage
from sim.triggers import PositionPulses
from sim.tube import Tube, TubeFaults
from sim.usb_device import SimulatedUsb

S = 1_000_000_000


def tell(gantry: Gantry, *lines: str) -> None:
    for line in lines:
        assert gantry.line(line) == "OK", line
    assert gantry.line("BUSY?") == "0"


def light(gantry: Gantry, duration_s: float = 1.0) -> np.ndarray:
    photons, _ = gantry.photons(duration_s)
    assert photons is not None
    return photons.sum(axis=0, dtype=np.float64)


# Where it is, and when


def test_a_move_takes_its_time_and_then_settles() -> None:
    stage = Stage(Mechanics(turn_deg_s=10, travel_mm_s=2, settle_s=0.5))
    stage.go("ROT", 20.0)  # 2 s
    stage.go("LIFT", -6.0)  # 3 s
    assert stage.truth(1 * S) == Place(10.0, -2.0, 0.0)
    assert stage.truth(5 * S) == Place(20.0, -6.0, 0.0)
    assert not stage.is_moving()
    assert stage.clock.now_ns == 3.5 * S


def test_halt_leaves_it_where_it_is() -> None:
    stage = Stage(Mechanics(turn_deg_s=10))
    stage.sweep(Place(10.0, 0.0, 0.0), 10, 2.0)
    stage.clock.pass_until(round((RUN_UP_S + 1) * S))
    stage.halt()
    assert stage.truth(9 * S).rot == pytest.approx(5.0)
    assert stage.pulses.next_edge_ns(stage.clock.now_ns, is_rising=True) is None
    assert not stage.is_moving()


def test_backlash_hides_from_the_encoder_and_depends_on_the_way_there() -> None:
    stage = Stage(Mechanics(backlash_deg=0.4, backlash_mm=0.1))
    for target, truth in ((10.0, 9.8), (20.0, 19.8), (10.0, 10.2)):
        stage.go("ROT", target)
        stage.go("SHIFT", target)
        assert not stage.is_moving()
        assert stage.encoder("ROT") == target
        assert stage.truth(stage.clock.now_ns).rot == pytest.approx(truth)
    assert stage.truth(stage.clock.now_ns).shift == pytest.approx(10.05)


def test_the_encoders_zero_drifts_with_the_boards_time() -> None:
    stage = Stage(Mechanics(drift_per_h_deg=0.5))
    stage.clock.pass_until(7200 * S)
    assert (stage.encoder("ROT"), stage.truth(7200 * S).rot) == (0.0, pytest.approx(1.0))


def test_noise_is_told_and_the_same_place_is_missed_in_the_same_way() -> None:
    stage, misses = Stage(Mechanics(noise_deg=0.01), seed=4), []
    for target in np.arange(300) / 2:
        stage.go("ROT", float(target))
        assert not stage.is_moving()
        assert stage.encoder("ROT") == stage.truth(stage.clock.now_ns).rot
        misses.append(stage.encoder("ROT") - target)
    assert np.std(misses[1:]) == pytest.approx(0.01, rel=0.15)
    stage.go("ROT", 50.0)
    assert not stage.is_moving()
    assert stage.encoder("ROT") - 50.0 == pytest.approx(misses[100])


def test_limits_and_speeds_are_kept() -> None:
    gantry = LineGantry(Gantry(stage=Stage(Mechanics(range_deg=(-90, 90), turn_deg_s=30))).line)  # type: ignore[arg-type]
    assert gantry.limits().angle_rad == pytest.approx((-math.pi / 2, math.pi / 2))
    with pytest.raises(WrongUsage):
        gantry.move_to(Pose(angle_rad=2.0))


# Pulses


@given(st.integers(1, 400), st.integers(1, 10**10), st.integers(0, 10**9))
def test_each_part_of_a_sweep_begins_with_one_pulse(n: int, duration_ns: int, first_ns: int) -> None:
    duration_ns = max(duration_ns, 2 * n)
    pulses = PositionPulses()
    pulses.begin(first_ns, duration_ns, n)
    edges, now_ns = [], 0
    while (edge_ns := pulses.next_edge_ns(now_ns, is_rising=True)) is not None:
        edges.append(edge_ns)
        now_ns = edge_ns + 1
    assert edges == [first_ns + k * duration_ns // n for k in range(n)]
    assert pulses.n_edges(0, first_ns + duration_ns, is_rising=True) == n
    falls = [fall for _, fall in pulses.pulses(0, first_ns + duration_ns)]
    assert all(rise < fall for rise, fall in zip(edges, falls, strict=True))
    assert pulses.next_edge_ns(edges[0] + 1, is_rising=False) == falls[0]
    pulses.end(edges[n // 2])
    assert pulses.next_edge_ns(edges[n // 2], is_rising=True) is None


# What an exposure sees


@pytest.fixture(scope="module")
def vials() -> Gantry:
    gantry = Gantry(seed=2, is_repeatable=True)
    tell(gantry, "SAMP vials", "BEAM ON")
    return gantry


def test_a_shifted_camera_sees_what_lay_beside(vials: Gantry) -> None:
    tell(vials, "ROT 0", "SHIFT 0")
    here = light(vials)
    tell(vials, "SHIFT 2.2")  # 20 pixels of 0.11 mm
    there = light(vials)
    tell(vials, "SHIFT 0")
    np.testing.assert_allclose(there[:, :-20] / there[64, 0], here[:, 20:] / here[64, 20], rtol=0.02)
    assert abs(there / here - 1).max() > 0.1


def test_a_lifted_sample_is_seen_higher() -> None:
    gantry = Gantry(seed=2, is_repeatable=True)
    tell(gantry, "BEAM ON", "SAMP beads")
    here = np.log(light(gantry))
    tell(gantry, "LIFT 0.88")  # times the magnification of 1.25: 10 rows
    lifted = np.log(light(gantry))
    middle = here[20:100, 40:88], lifted[30:110, 40:88], lifted[10:90, 40:88]
    up, down = (np.corrcoef(middle[0].ravel(), other.ravel())[0, 1] for other in middle[1:])
    assert up > 0.95 > down


def test_an_exposure_on_the_way_is_the_mean_of_the_places(vials: Gantry) -> None:
    def without_ripple(image: np.ndarray) -> np.ndarray:
        return image / image[:, :4].mean()  # beside the phantom

    vials.stage.clock = clock = OwnClock()
    tell(vials, "ROT 0")
    begin_ns = clock.now_ns
    assert vials.line("ROT:SWEEP 18 0 0 3 3") == "OK"
    clock.now_ns = begin_ns + round(RUN_UP_S * S) + 1 * S  # the second third, from 6 to 12 degrees
    blurred = without_ripple(light(vials))
    sharp = []
    for angle in np.linspace(6, 12, 25)[:-1] + 0.125:
        tell(vials, f"ROT {angle}")
        sharp.append(without_ripple(light(vials)))
    mean = np.mean(sharp, axis=0)
    blur_rms, sharp_rms = (float(np.sqrt(np.mean((image / mean - 1) ** 2))) for image in (blurred, sharp[12]))
    assert blur_rms < 0.02 * sharp_rms


# Repeatable exposures


def opened(address: str) -> tuple[Detector, LineGantry]:
    detector = Detector(UsbTransport(SimulatedUsb(simulated_device(address)), address))
    gantry = open_gantry(detector)
    assert isinstance(gantry, LineGantry)
    detector.set_bias(500)
    detector.configure(Configuration(is_csm=False, gain=Gain.SHGM))
    detector.set_dacs({f"Threshold{n}": 350 for n in range(8)})
    return detector, gantry


def counts(detector: Detector, n: int) -> list[np.ndarray]:
    frames = list(detector.frames(n, 0.05))
    assert all(isinstance(frame, Frame) for frame in frames)
    return [frame.counts.copy() for frame in frames if isinstance(frame, Frame)]


def test_repeatable_exposures_do_not_know_what_was_before() -> None:
    address = "demo?repeatable=1&seed=5"
    detector, gantry = opened(address)
    with detector:
        gantry.select_sample("vials")
        gantry.beam(True)
        first: dict[float, list[np.ndarray]] = {}
        for angle in (0.1, 0.2, 0.3):
            gantry.move_to(Pose(angle_rad=angle))
            first[angle] = counts(detector, 2)
        assert (first[0.1][0] != first[0.1][1]).mean() > 0.1
    detector, gantry = opened(address)
    with detector:
        gantry.beam(True)
        counts(detector, 3)
        gantry.select_sample("vials")
        gantry.move_to(Pose(angle_rad=0.3, lift_mm=3.0))
        counts(detector, 1)
        for angle in (0.3, 0.1):
            gantry.move_to(Pose(angle_rad=angle))
            for again, before in zip(counts(detector, 2), first[angle], strict=True):
                np.testing.assert_array_equal(again, before)


# A sweep with the detector


def test_a_sweep_triggers_a_frame_at_each_position() -> None:
    detector, gantry = opened("demo?repeatable=1")
    with detector:
        gantry.select_sample("vials")
        gantry.beam(True)
        detector.set_trigger(Trigger(start=TriggerStart.RISING_TTL))
        gantry.sweep(Pose(), Pose(angle_rad=math.radians(8)), 8, 2.0)
        frames = [frame for frame in detector.frames(8, 0.1) if isinstance(frame, Frame)]
        gantry.wait()
        assert gantry.pose.angle_rad == pytest.approx(math.radians(8))
    opened_ns = np.array([frame.timestamp_ns for frame in frames])
    np.testing.assert_array_equal(np.diff(opened_ns), S // 4)
    assert np.ptp([frame.counts[0].sum() for frame in frames]) > 0


# Failures


@pytest.mark.parametrize(
    ("fault", "words"),
    [("stage_alarm_after=2", "ALARM"), ("stage_sticks_after=2", "stands at"), ("stage_hangs_after=2", "still moves")],
)
def test_a_stage_that_fails_is_told(fault: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acquisition.motion.MARGIN_S", 0.1)
    detector, gantry = opened(f"demo?turn_deg_s=100000&{fault}")
    with detector:
        gantry.move_to(Pose(angle_rad=0.1))
        gantry.move_to(Pose(angle_rad=0.2))
        with pytest.raises(StageStuck, match=words):
            gantry.move_to(Pose(angle_rad=0.4))
        assert gantry.shut_down() == ""


def test_a_silent_stage_is_given_up_and_the_beam_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firmware_iface.link.LINE_TIMEOUT_S", 0.5)
    device = simulated_device("demo?stage_silent_after=1")
    with Detector(UsbTransport(SimulatedUsb(device), "silent")) as detector:
        gantry = open_gantry(detector)
        gantry.beam(True)
        gantry.move_to(Pose(angle_rad=0.1))
        with pytest.raises(TransportTimeout):
            gantry.move_to(Pose(angle_rad=0.2))
        assert gantry.shut_down() == ""
        assert detector.auxiliary("BEAM?") == "OFF", "the line is free again"
        detector.status()


def test_a_tube_that_trips_leaves_frames_dark_and_says_so() -> None:
    detector, gantry = opened("demo?tube_trips_after=3")
    with detector:
        gantry.beam(True)
        seen = [image.sum() for image in counts(detector, 5)]
        assert min(seen[:3]) > 20 * max(seen[3:])
        with pytest.raises(TubeTripped, match="overcurrent"):
            expect_shining(gantry.source_state())
        with pytest.raises(BeamRefused, match="not cleared"):
            gantry.beam(True)
        gantry.clear_fault()
        gantry.beam(True)
        assert counts(detector, 1)[0].sum() > 20 * max(seen[3:])


def test_an_interlock_takes_the_beam_away() -> None:
    detector, gantry = opened("demo?interlock_opens_after=1")
    with detector:
        gantry.beam(True)
        counts(detector, 2)
        with pytest.raises(TubeTripped, match="interlock"):
            expect_shining(gantry.source_state())


def test_a_tube_trips_after_its_seconds() -> None:
    tube, clock = Tube(TubeFaults(tube_trips_after_s=2.5)), OwnClock()
    tube.switch(is_on=True, clock=clock)
    assert [tube.expose(1.0) for _ in range(5)] == [True, True, True, False, False]


def test_a_cold_tube_is_warmed_up_first() -> None:
    gantry = LineGantry(Gantry(tube=Tube(TubeFaults(warm_up_s=600))).line, poll_s=0.0)  # type: ignore[arg-type]
    with pytest.raises(BeamRefused, match="warmed up"):
        gantry.beam(True)
    done = [progress.done for progress in gantry.warm_up()]
    assert done == sorted(done)
    assert done[-1] == 100
    assert len(done) > 5
    gantry.beam(True)
    assert [progress.done for progress in gantry.warm_up()] == [100]


@pytest.mark.parametrize(("lamp", "is_on", "words"), [("dark", True, "stays dark"), ("lit", False, "still lit")])
def test_a_lamp_that_lies_stops_the_work(lamp: str, is_on: bool, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acquisition.beam.LAMP_S", 0.05)
    gantry = LineGantry(Gantry(tube=Tube(TubeFaults(lamp=lamp))).line)  # type: ignore[arg-type]
    with pytest.raises(BeamRefused, match=words):
        gantry.beam(is_on)


# Safe, whatever waits


def test_shutting_down_waits_for_no_line_and_no_move() -> None:
    device = simulated_device("demo?line_s=2&is_real=1&turn_deg_s=1")
    with Detector(UsbTransport(SimulatedUsb(device), "slow")) as detector:
        gantry = open_gantry(detector)
        assert isinstance(gantry, LineGantry)
        assert detector.auxiliary("BEAM ON") == "OK"
        told: list[str] = []

        def turn() -> None:
            detector.auxiliary("ROT 90")  # 90 s of real time
            told.append(detector.auxiliary("BUSY?"))
            detector.auxiliary("BUSY?")

        moving = threading.Thread(target=turn)
        moving.start()
        while not told:
            time.sleep(0.01)
        assert told == ["1"]
        began_s = time.monotonic()
        assert gantry.shut_down() == ""
        assert time.monotonic() - began_s < 1.0
        assert moving.is_alive(), "a line still waits"
        moving.join()
        assert detector.auxiliary("TUBE:STATE?").startswith("LAMP OFF")
        assert detector.auxiliary("BUSY?") == "0"
        assert float(detector.auxiliary("ROT?")) < 89


def test_a_board_that_does_not_know_how_is_told_by_its_line() -> None:
    device = simulated_device("demo")
    with Detector(UsbTransport(SimulatedUsb(device), "old")) as detector:
        gantry = open_gantry(detector)
        gantry.beam(True)
        known = device.control

        def control(setup: bytes, data: bytes = b"") -> bytes:
            from sim.usb_model import Stall

            if struct.unpack_from("<BB", setup) == (0x40, 0x41):
                raise Stall
            return known(setup, data)

        device.control = control  # type: ignore[method-assign]
        assert gantry.shut_down() == ""
        assert detector.auxiliary("BEAM?") == "OFF"
