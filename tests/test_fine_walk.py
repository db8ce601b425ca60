"""The simulated chip through the driver and USB: voltages of DACs, test pulses, fine pitch, options of the silicon."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from firmware_iface import chip
from firmware_iface.configuration import Configuration, PixelConfiguration
from firmware_iface.device import Detector, open_detector
from firmware_iface.errors import WrongUsage
from firmware_iface.frame import Frame

MIDDLE = np.full((256, 256), 16, dtype=np.uint8)
FINE = {"is_colour": False, "is_csm": False}
PATTERN = np.random.default_rng(17).random((256, 256)) < 0.1
COLUMNS = np.arange(256) % 3 != 0
HIGH_DACS = {"Threshold0": 150, "Threshold1": 200, "TP_REF": 128, "TP_REFA": 320, "TP_REFB": 320}
"""Thresholds over 20 and 35 keV in CdTe, far over the noise; pulses of 15,600 electrons, as from 69 keV."""


def opened(address: str) -> Detector:
    """Open an instrument in the dark with test bits set in PATTERN."""
    detector = open_detector(address)
    detector.set_dacs(HIGH_DACS)
    detector.load_pixels(PixelConfiguration(trim_l=MIDDLE, trim_h=MIDDLE, is_test=PATTERN))
    detector.set_test_columns(COLUMNS)
    return detector


@pytest.fixture(scope="module")
def detector() -> Iterator[Detector]:
    with opened("sim:fine?seed=3") as device:
        yield device


def pulsed_pixels(counts: NDArray[np.integer], n: int) -> float:
    """Return the share of the pulsed pixels that counted every pulse; insist that hardly any other counted."""
    is_pulsed = PATTERN & COLUMNS
    assert np.mean(counts[~is_pulsed] > 0) < 0.003  # noisy pixels
    return float(np.mean(counts[is_pulsed] == n))


def test_the_operating_point_can_be_tuned(detector: Detector) -> None:
    for name, target_v in chip.OPERATING_POINT_V.items():
        code = chip.DEFAULT_DACS[name]
        for _ in range(5):  # by the slope of the mean chip
            code += round((target_v - detector.sense_v(name)) / 0.0045)
            detector.set_dacs({name: code})
        assert detector.sense_v(name) == pytest.approx(target_v, abs=0.004)


@pytest.mark.parametrize("depth_bits", [6, 12, 24])
def test_pulses_come_back_from_the_pixels_that_take_them(detector: Detector, depth_bits: int) -> None:
    detector.set_test_pulses(50)
    detector.configure(Configuration(**FINE, counters=(0,), depth_bits=depth_bits, is_test_pulsed=True))
    for frame in detector.frames(2, 1e-2):
        assert isinstance(frame, Frame)
        assert frame.counts.shape == (1, 256, 256)
        assert pulsed_pixels(frame.counts[0], 50) > 0.99
    detector.configure(Configuration(**FINE, counters=(0,), depth_bits=depth_bits))
    (frame,) = detector.frames(1, 1e-2)
    assert isinstance(frame, Frame)
    assert frame.counts[0][PATTERN].mean() < 1


@pytest.mark.parametrize("counters", [(0,), (1,)])
def test_continuous_frames_hold_one_frame_each(detector: Detector, counters: tuple[int, ...]) -> None:
    detector.set_test_pulses(50)
    detector.configure(Configuration(**FINE, counters=counters, is_continuous=True, is_test_pulsed=True))
    frames = list(detector.frames(5, 1e-2))
    assert len(frames) == 5
    for frame in frames:
        assert isinstance(frame, Frame)
        assert frame.thresholds == counters
        assert pulsed_pixels(frame.counts[0], 50) > 0.99


def test_a_gamma_source_is_counted_by_one_pixel_each_in_charge_summing(detector: Detector) -> None:
    detector.set_test_pulses(0)
    for line in ("SAMP OUT", "SOUR Am-241", "BEAM ON"):
        assert detector.auxiliary(line) == "OK"
    means = {}
    for is_csm in (False, True):
        detector.configure(Configuration(is_colour=False, is_csm=is_csm, counters=(1,)))
        detector.set_dacs({"Threshold0": 95, "Threshold1": 100})  # 9 and 10 keV
        (frame,) = detector.frames(1, 0.1)
        assert isinstance(frame, Frame)
        means[is_csm] = frame.counts.mean()
    detector.auxiliary("BEAM OFF")
    detector.set_dacs(HIGH_DACS)
    assert means[False] > 1.3 * means[True] > 0  # alone, small pixels count shared photons twice and more


@pytest.mark.parametrize(("option", "expected"), [("", 63), ("&saturates=1", 63), ("&saturates=0", 70 - 64)])
def test_a_full_counter_does_what_the_address_says(option: str, expected: int) -> None:
    with opened(f"sim:fine?seed=3{option}") as device:
        device.set_test_pulses(70)
        device.configure(Configuration(**FINE, counters=(0,), depth_bits=6, is_test_pulsed=True))
        (frame,) = device.frames(1, 1e-2)
    assert isinstance(frame, Frame)
    assert np.mean(frame.counts[0][PATTERN & COLUMNS] == expected) > 0.99


@pytest.mark.parametrize("option", ["saturates=maybe", "first_counter=2", "spoiled_half=0", "pulse_groups=rings"])
def test_silicon_of_no_kind_is_refused(option: str) -> None:
    with pytest.raises(WrongUsage, match=option.partition("=")[0]):
        open_detector(f"sim:fine?{option}")
