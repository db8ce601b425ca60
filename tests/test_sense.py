"""The chip's DACs as voltages at the sense pad, through the board's converter, and from the external input."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from firmware_iface import chip
from firmware_iface.chip import Gain, Mode
from sim import sense
from sim.chip import SimulatedChip
from sim.sensor import Settings


def omr_of(**fields: int) -> int:
    return chip.pack_register(chip.OMR_FIELDS, {"ColourMode": 1, "GainMode": Gain.HGM, "PS": 3, "CountL": 2} | fields)


class FrontEnd:
    """Counts nothing, and keeps the settings that the chip asked for."""

    def __init__(self) -> None:
        self.settings: list[Settings] = []

    def __call__(self, duration_s: float, settings: Settings) -> NDArray[np.uint32]:
        self.settings.append(settings)
        return np.zeros(settings.trim.shape, dtype=np.uint32)


def sensed(device: SimulatedChip, name: str, **dacs: int) -> float:
    register = chip.pack_register(chip.DAC_FIELDS, dict(chip.DEFAULT_DACS) | dacs)
    device.transact(omr_of(M=Mode.SET_DACS), register.to_bytes(32, "big"))
    device.transact(omr_of(M=Mode.READ_EFUSE, SenseDAC=chip.SENSE_CODES.get(name, 0)), b"")
    return device.sense_voltage_v()


def test_the_operating_point_is_near_the_tabulated_codes_and_differs_from_chip_to_chip() -> None:
    codes = {"GND": (144, 10), "FBK": (197, 11), "Cas": (188, 9)}
    tuned: dict[str, list[int]] = {name: [] for name in codes}
    for number in range(60):
        device = SimulatedChip(FrontEnd(), chip_id=number << 8 | 0x11)
        for name in codes:
            target_v = chip.OPERATING_POINT_V[name]
            tuned[name].append(
                min(range(90, 256), key=lambda code, n=name: abs(sensed(device, n, **{n: code}) - target_v))
            )
    for name, (mean, spread) in codes.items():
        assert np.mean(tuned[name]) == pytest.approx(mean, abs=spread / 2)
        assert spread / 2 < np.std(tuned[name]) < 2 * spread
    assert np.corrcoef(list(tuned.values())).min() > 0.8


@pytest.mark.parametrize("name", [*chip.DAC_FIELDS])
def test_every_dac_is_a_line_seen_through_a_12_bit_converter(name: str) -> None:
    device = SimulatedChip(FrontEnd())
    last = (1 << chip.DAC_FIELDS[name].width) - 1
    low_v, middle_v, high_v = (sensed(device, name, **{name: code}) for code in (0, last // 2, last))
    step_v = 2.0 / 4096
    assert low_v == pytest.approx(0.032, abs=step_v)
    assert middle_v == pytest.approx(low_v + (high_v - low_v) * (last // 2) / last, abs=2 * step_v)
    assert 0.5 < high_v < 1.7
    assert (high_v / step_v).is_integer()
    assert device.sense_code() == high_v / step_v


def test_band_gap_and_temperature() -> None:
    """T = 88.75 - 0.6073 (V_temp - V_bg), in mV."""
    for temperature_c in (10.0, 35.0, 60.0):
        device = SimulatedChip(FrontEnd(), temperature_c=temperature_c)
        v = sensed(device, "band_gap_temperature") - sensed(device, "band_gap")
        assert 88.75 - 0.6073 * 1000 * v == pytest.approx(temperature_c, abs=0.6073 * 2 * 2000 / 4096)
        assert sensed(device, "none") == pytest.approx(sense.PAD_OFFSET_V, abs=1e-3)
        for name in ("DAC_bias", "DAC_cascode_bias"):
            assert 0.2 < sensed(device, name) < 1.2


def test_the_converter_stops_at_its_ends() -> None:
    assert [sense.adc_code(v) for v in (-0.1, 0.0, 1.0, 2.0, 3.0)] == [0, 0, 2048, 4095, 4095]


def test_the_external_input_stands_in_for_the_dac_that_is_named() -> None:
    front_end = FrontEnd()
    device = SimulatedChip(front_end)
    device.wire_external_dac(0.7)
    fields = {"ExtDAC": chip.SENSE_CODES["Threshold3"], "SenseDAC": chip.SENSE_CODES["Threshold3"]}
    device.arm(omr_of(**fields))
    device.expose(1e-3)
    assert device.sense_voltage_v() == pytest.approx(0.7 + sense.PAD_OFFSET_V, abs=1e-3)
    assert front_end.settings[-1].threshold_dac.tolist() == [0, 0, 0, 256, 0, 0, 0, 0]  # the middle of 1.4 V
    device.arm(omr_of())
    device.expose(1e-3)
    assert not front_end.settings[-1].threshold_dac.any()
