"""What is told of a run wherever it is told: one list of names, values and units, from the plan and the calibration."""

from __future__ import annotations

from dataclasses import dataclass

from acquisition.plan import Plan
from calibration.store import Calibration, software_version


@dataclass(frozen=True, slots=True, kw_only=True)
class Datum:
    """One value that is told, with its unit as HDF5 datasets have it: "1" without a dimension, "text" for words."""

    value: str | int | float | bool | list[float]
    units: str


def metadata(plan: Plan, calibration: Calibration) -> dict[str, Datum]:
    """Return what a run was made with, by names that end in no unit: the unit stands beside."""
    detector, geometry = plan.detector, plan.geometry
    return {
        "sample": Datum(value=plan.scan.held or "", units="text"),
        "mode": Datum(value=detector.mode, units="text"),
        "gain": Datum(value=detector.gain, units="text"),
        "depth": Datum(value=detector.depth_bits, units="bit"),
        "threshold_energy": Datum(value=list(detector.thresholds_kev), units="keV"),
        "arbitration_energy": Datum(value=detector.arbitration_kev, units="keV"),
        "bias": Datum(value=detector.bias_v, units="V"),
        "count_time": Datum(value=detector.exposure_s, units="s"),
        "tube_voltage": Datum(value=plan.source.kvp, units="kV"),
        "tube_current": Datum(value=plan.source.current_ma, units="mA"),
        "source_to_detector": Datum(value=geometry.source_to_detector_mm, units="mm"),
        "source_to_object": Datum(value=geometry.source_to_object_mm, units="mm"),
        "pixel_size": Datum(value=geometry.pitch_mm, units="mm"),
        "chip": Datum(value=calibration.conditions.chip_id, units="text"),
        "calibration": Datum(value=calibration.identity, units="text"),
        "software": Datum(value=software_version(), units="text"),
    }
