"""What is told of a run wherever it is told: one list of names, values and units, from the plan and the calibration."""

from __future__ import annotations

from typing import TypeAlias

from acquisition.plan import Plan
from calibration.store import Calibration, software_version

Datum: TypeAlias = tuple[str | int | float | list[float], str]
"""A value and its unit, as HDF5 datasets have it: "1" without a dimension, "text" for words."""


def metadata(plan: Plan, calibration: Calibration) -> dict[str, Datum]:
    """Return what a run was made with, by names that end in no unit: the unit stands beside."""
    detector, geometry = plan.detector, plan.geometry
    return {
        "sample": (plan.scan.held or "", "text"),
        "mode": (detector.mode, "text"),
        "gain": (detector.gain, "text"),
        "depth": (detector.depth_bits, "bit"),
        "threshold_energy": (list(detector.thresholds_kev), "keV"),
        "arbitration_energy": (detector.arbitration_kev, "keV"),
        "bias": (detector.bias_v, "V"),
        "count_time": (detector.exposure_s, "s"),
        "tube_voltage": (plan.source.kvp, "kV"),
        "tube_current": (plan.source.current_ma, "mA"),
        "source_to_detector": (geometry.source_to_detector_mm, "mm"),
        "source_to_object": (geometry.source_to_object_mm, "mm"),
        "pixel_size": (geometry.pitch_mm, "mm"),
        "chip": (calibration.conditions.chip_id, "text"),
        "calibration": (calibration.identity, "text"),
        "software": (software_version(), "text"),
    }
