"""The chip's DACs as voltages: what the sense pad shows, what the board's converter makes of it, and test pulses.

No source gives the chip's transfer curves. Every DAC is a straight line between two stated end points, chosen so that
the tabulated codes come out at the tabulated voltages; the rest are choices.

# Ref: sense codes, and GND, FBK, Cas tuned to 0.65, 0.90, 0.85 V: excalibur-detector @099951f3 `definitions.py` 20-24;
#      the same in the Merlin manual v0.7 p42, whose nine chips have codes 144 +- 10, 197 +- 11, 188 +- 9, correlated.
# Ref: converter: AD7994, 12 bits, 2.0 V reference (`ExcaliburFemClientFrontEndDevices.cpp` 89-106).
# Ref: 0.030 to 0.034 V with no DAC selected: Merlin manual v0.7, screenshot p19.
# Ref: T[C] = 88.75 - 0.6073 (V_temp - V_bg) in mV: MARS `DAC_config.py`, which cites the Medipix3.0 manual v19.
# Ref: TP_REF 0.300 V, TP_REFA and B up to 1.275 V; 3.204e-5 V per electron, a capacitor of 5 fF: navrit/dexter
#      @c8bc0f46 `testpulseequalisation.cpp` 197-222.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from firmware_iface import chip

ADC_BITS = 12
ADC_REFERENCE_V = 2.0
PAD_OFFSET_V = 0.032
"""What the pad shows with no DAC selected; it is added to every reading."""
BAND_GAP_V = 0.62
DAC_BIAS_V, CASCODE_BIAS_V = 0.55, 0.80
CHIP_SIGMA_RELATIVE, DAC_SIGMA_RELATIVE = 0.055, 0.015
"""Spread of the DACs' full scale from chip to chip, common to all DACs of a chip, and of each by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VoltageLaw:
    """A DAC: a straight line from code 0 to its last code."""

    low_v: float
    high_v: float
    n_codes: int

    def voltage_v(self, code: int) -> float:
        """Return the voltage of a code."""
        return self.low_v + (self.high_v - self.low_v) * code / (self.n_codes - 1)

    def code_at(self, voltage_v: float) -> int:
        """Return the code that is nearest to a voltage."""
        code = round((voltage_v - self.low_v) / (self.high_v - self.low_v) * (self.n_codes - 1))
        return min(max(code, 0), self.n_codes - 1)


# Full scales that put the mean chip's codes at the targets, as read with the pad's offset.
_FULL_SCALE_V: Mapping[str, float] = {
    "GND": (0.65 - PAD_OFFSET_V) * 255 / 144,
    "FBK": (0.90 - PAD_OFFSET_V) * 255 / 197,
    "Cas": (0.85 - PAD_OFFSET_V) * 255 / 188,
    "TP_REF": 0.598,
    "TP_REFA": 1.2775,
    "TP_REFB": 1.2775,
    **{f"Threshold{n}": 1.4 for n in range(chip.N_THRESHOLDS)},
}
_OTHER_FULL_SCALE_V = 1.15
_TUNED = ("GND", "FBK", "Cas")


class SensePad:
    """The voltages of one chip.

    Parameters
    ----------
    chip_id : int
        Which chip it is: the spread of its GND, FBK and Cas is drawn from it.
    temperature_c : float
        How warm it is.
    """

    def __init__(self, chip_id: int, temperature_c: float = 35.0) -> None:
        rng = np.random.default_rng((chip_id, 2))
        common = rng.normal(0, CHIP_SIGMA_RELATIVE)
        spread = {name: 1 + common + rng.normal(0, DAC_SIGMA_RELATIVE) for name in _TUNED}
        self.laws: Mapping[str, VoltageLaw] = {
            name: VoltageLaw(
                low_v=0.0,
                high_v=_FULL_SCALE_V.get(name, _OTHER_FULL_SCALE_V) * spread.get(name, 1.0),
                n_codes=1 << field.width,
            )
            for name, field in chip.DAC_FIELDS.items()
        }
        self.temperature_c = temperature_c

    def voltage_v(self, sense_code: int, dacs: Mapping[str, int], overridden: Mapping[str, float]) -> float:
        """Return the voltage at the pad.

        Parameters
        ----------
        sense_code : int
            OMR field SenseDAC: 0 for none, or one of `chip.SENSE_CODES`.
        dacs : mapping of str to int
            The codes in the DAC register.
        overridden : mapping of str to float
            Voltage of the DAC that the external input stands in for, if any.
        """
        if sense_code == 0:
            return PAD_OFFSET_V
        name = chip.SENSE_NAMES[sense_code]
        fixed_v = {
            "band_gap": BAND_GAP_V,
            "band_gap_temperature": BAND_GAP_V + (88.75 - self.temperature_c) / 607.3,
            "DAC_bias": DAC_BIAS_V,
            "DAC_cascode_bias": CASCODE_BIAS_V,
        }
        if name in fixed_v:
            return PAD_OFFSET_V + fixed_v[name]
        return PAD_OFFSET_V + overridden.get(name, self.laws[name].voltage_v(dacs[name]))

    def charge_e(self, level: str, dacs: Mapping[str, int]) -> float:
        """Return the charge of a test pulse from TP_REF to TP_REFA or TP_REFB, in electrons.

        A level below TP_REF gives a negative charge: one that the front end does not collect.
        """
        step_v = self.laws[level].voltage_v(dacs[level]) - self.laws["TP_REF"].voltage_v(dacs["TP_REF"])
        return step_v / chip.TEST_PULSE_V_PER_E


def adc_code(voltage_v: float) -> int:
    """Convert a voltage as the board's converter does: 12 bits, 0 to 4095."""
    return min(max(int(voltage_v / ADC_REFERENCE_V * (1 << ADC_BITS)), 0), (1 << ADC_BITS) - 1)


def adc_voltage_v(code: int) -> float:
    """Return the voltage that a code of the converter stands for."""
    return code * ADC_REFERENCE_V / (1 << ADC_BITS)
