"""The instrument that an address names: what its options reach, and one picture over all chips of an assembly."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.geometry import Geometry
from calibration.spectrum import tube_spectrum
from firmware_iface import chip, wire
from firmware_iface.assembly import _together
from firmware_iface.chip import Gain
from firmware_iface.configuration import Configuration
from firmware_iface.device import Detector, open_detector
from firmware_iface.errors import WrongUsage
from firmware_iface.frame import Frame
from sim.chip import Silicon
from sim.environment import Climate
from sim.gantry import TUBE_ENERGIES_KEV, TUBE_FILTERS_MM
from sim.instrument import (
    CLIMATE_OPTIONS,
    FIDELITY_OPTIONS,
    INSTRUMENT_OPTIONS,
    SENSOR_OPTIONS,
    SILICON_OPTIONS,
    Light,
    chips_of,
    climate_of,
    read_address,
    scene_of,
)
from sim.phantom import vials_phantom
from sim.photons import expected_photons
from sim.specimen import FrontEnd
from sim.tube import DEFAULT_KVP

THRESHOLD_DAC = 350
BLOCK = 8


def counts_of(detector: Detector, *lines: str) -> NDArray[np.float64]:
    """Return the counts of the lowest summed threshold behind what the lines put into the beam."""
    for line in lines:
        assert detector.auxiliary(line) == "OK"
    assert detector.auxiliary("BUSY?") == "0"
    (frame,) = detector.frames(1, 1.5)
    assert isinstance(frame, Frame)
    return frame.counts[0].astype(float)


def blocks(image: NDArray[np.float64]) -> NDArray[np.float64]:
    rows, cols = image.shape
    return image.reshape(rows // BLOCK, BLOCK, cols // BLOCK, BLOCK).mean(axis=(1, 3))


@pytest.mark.parametrize(("chips", "layout"), [("2x1", (1, 2)), ("2x2", (2, 2))])
def test_an_assembly_sees_one_picture(chips: str, layout: tuple[int, int]) -> None:
    with open_detector(f"sim:demo?chips={chips}") as detector:
        detector.set_bias(500)
        detector.configure(Configuration(is_csm=False, gain=Gain.SHGM))
        detector.set_dacs({f"Threshold{n}": THRESHOLD_DAC for n in range(8)})
        flat = counts_of(detector, "BEAM ON")
        seen = -np.log(blocks(counts_of(detector, "SAMP vials", "ROT 30")) / blocks(flat))
    whole = Geometry(
        source_to_detector_mm=250, source_to_object_mm=200, pitch_mm=0.11, rows=128 * layout[0], cols=128 * layout[1]
    )

    def light(phantom: object) -> NDArray[np.float64]:
        spectrum = tube_spectrum(DEFAULT_KVP, TUBE_ENERGIES_KEV, TUBE_FILTERS_MM)
        pose = whole.views(math.radians(30))
        photons = expected_photons(phantom, pose, spectrum, TUBE_ENERGIES_KEV, 1.0, whole)  # pyright: ignore[reportArgumentType]
        return photons.sum(axis=0, dtype=float)

    expected = -np.log(blocks(light(vials_phantom())) / blocks(light(None)))
    assert seen.shape == expected.shape
    assert np.corrcoef(seen.ravel(), expected.ravel())[0, 1] > 0.99
    n = chip.ROWS // 2 // BLOCK
    top, left = ((size - n) // 2 for size in expected.shape)
    as_if_alone = np.tile(expected[top : top + n, left : left + n], layout)
    assert np.corrcoef(as_if_alone.ravel(), expected.ravel())[0, 1] < 0.7, (
        "this scene cannot tell chips from each other"
    )


class Ramp:
    """A scene whose every pixel is another, and whose every exposure is another."""

    def __init__(self, rows: int, cols: int) -> None:
        self.picture = np.arange(rows * cols, dtype=np.float32).reshape(1, rows, cols)
        self.n_exposures = 0

    def photons(self, duration_s: float) -> tuple[NDArray[np.float32] | None, NDArray[np.float64]]:
        self.n_exposures += 1
        return None if duration_s == 0 else self.picture + self.n_exposures, np.ones(1)


@pytest.mark.parametrize("layout", [(1, 1), (1, 8), (2, 2)])
def test_chips_are_exposed_together_and_their_parts_make_the_picture(layout: tuple[int, int]) -> None:
    scene = Ramp(4 * layout[0], 6 * layout[1])
    light = Light(scene, layout)  # pyright: ignore[reportArgumentType]
    for n_exposure in (1, 2, 3):
        parts = [light.on(number, 0.1)[0] for number in range(layout[0] * layout[1])]
        assert scene.n_exposures == n_exposure
        np.testing.assert_array_equal(_together(parts, layout), scene.picture + n_exposure)  # pyright: ignore[reportArgumentType]
    assert light.on(0, 0.0)[0] is None


def test_the_options_of_an_address_reach_chip_and_sensor() -> None:
    text = "demo?gain_noise_relative=1,2,3,4&bonded_subpixel=2&cluster_pulse=sum&collects_holes=1"
    text += "&temperature_c=-5&bit_serial=1"
    name, chosen, _ = read_address(text, INSTRUMENT_OPTIONS)
    ((chip_, sensor),) = chips_of(name, chosen, scene_of(name, 1))
    assert sensor.front_end == FrontEnd(gain_noise_relative=(1, 2, 3, 4))
    assert sensor.collects_holes
    ((plain_chip, plain),) = chips_of("demo", {}, scene_of("demo", 1))
    assert not plain.collects_holes
    assert plain.front_end == FrontEnd()
    sense = chip.pack_register(
        chip.OMR_FIELDS, {"M": chip.Mode.READ_DACS, "SenseDAC": chip.SENSE_CODES["band_gap_temperature"]}
    )
    volts = []
    for each in (chip_, plain_chip):
        each.transact(sense, b"")
        volts.append(each.sense_voltage_v())
    assert volts[0] != volts[1], "the chip is colder"


def test_a_wrong_value_says_what_is_allowed() -> None:
    with pytest.raises(WrongUsage, match=r"bonded_subpixel is '9'; allowed: 0\|1\|2\|3"):
        read_address("demo?bonded_subpixel=9", INSTRUMENT_OPTIONS)


def test_the_page_lists_every_option_of_the_silicon_with_its_default() -> None:
    page = (Path(wire.__file__).parent / "PROTOCOL.md").read_text()
    listed = dict(
        re.findall(r"^\| `(\w+)` \| `([^`]+)` \| .* \| (?:chip|sensor|readout|surroundings) \|$", page, re.MULTILINE)
    )
    options: Mapping[str, object] = {**SILICON_OPTIONS, **SENSOR_OPTIONS, **CLIMATE_OPTIONS, **FIDELITY_OPTIONS}
    assert listed.keys() == options.keys()
    told = {key: INSTRUMENT_OPTIONS[key].read(text) for key, text in listed.items()}
    assert Silicon(**{key: told[key] for key in SILICON_OPTIONS}) == Silicon()
    ((_, said),) = chips_of("demo", told, scene_of("demo", 1))
    ((_, unsaid),) = chips_of("demo", {}, scene_of("demo", 1))
    assert (said.front_end, said.collects_holes) == (unsaid.front_end, unsaid.collects_holes)
    assert (told["bonded_subpixel"], told["cluster_pulse"]) == (0, "bonded")
    assert climate_of(told) == Climate()
    assert (told["fidelity"], told["bit_serial"]) == ("expectation", False)
