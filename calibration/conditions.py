"""Under what conditions something was measured, and whether that still holds for what is wanted now.

# Ref: a calibration holds within 2 K: reference on spectral CT, section 5 (temperature); bias within the supply's own
#      precision, a choice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

BIAS_TOLERANCE_V = 0.5
TEMPERATURE_TOLERANCE_K = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """How the detector stood: which chip, how it counted, its bias, and how warm it was.

    Attributes
    ----------
    temperature_k : float, optional
        Of the sensor; None: it cannot be measured, or does not matter.
    """

    chip_id: str
    gain: str
    is_csm: bool
    is_colour: bool
    bias_v: float
    temperature_k: float | None = None

    @property
    def mode(self) -> str:
        """The name of the mode, as plans have it."""
        return f"{'colour' if self.is_colour else 'fine'}-{'csm' if self.is_csm else 'spm'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One step of a calibration: which, when, by what version, and how the detector stood.

    Attributes
    ----------
    created : str
        Date and time, ISO 8601 in UTC.
    is_forced : bool
        The step was continued though its conditions differed from those of the steps before.
    temperature_k : float
        NaN where it cannot be measured.
    """

    step: str
    created: str
    software: str
    mode: str
    gain: str
    bias_v: float
    temperature_k: float
    is_forced: bool = False


def differences(measured: Conditions, wanted: Conditions) -> tuple[str, ...]:
    """Tell in words where conditions differ so far that what was measured does not hold; nothing where it holds."""
    told = [
        f"{what} {was}, now {now}"
        for what, was, now in (
            ("chip", measured.chip_id, wanted.chip_id),
            ("mode", measured.mode, wanted.mode),
            ("gain", measured.gain, wanted.gain),
        )
        if was != now
    ]
    if not math.isclose(measured.bias_v, wanted.bias_v, abs_tol=BIAS_TOLERANCE_V):
        told.append(f"bias {measured.bias_v:g} V, now {wanted.bias_v:g} V")
    if measured.temperature_k is not None and wanted.temperature_k is not None:
        drift_k = wanted.temperature_k - measured.temperature_k
        if abs(drift_k) > TEMPERATURE_TOLERANCE_K:
            told.append(
                f"sensor at {measured.temperature_k - 273.15:.1f} C, now {drift_k:+.1f} K "
                f"(allowed: {TEMPERATURE_TOLERANCE_K:g} K)"
            )
    return tuple(told)
