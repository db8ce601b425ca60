"""What an instrument says of itself, in words, line by line; and where its stage may go. No Qt here."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Flag
from typing import Any

from acquisition.beam import SourceState, WarmUp
from acquisition.limits import Limits, Range
from acquisition.steps import Pose
from gui.rig import RigSnapshot
from gui.vitals import UNKNOWN, celsius

CAPABILITIES = {
    "AUXILIARY_LINE": "line to stage and tube",
    "BIAS": "bias supply",
    "TRIGGER_IN": "trigger inputs",
    "TRIGGER_OUT": "trigger outputs",
    "SENSE_ADC": "DAC sensing",
    "TEST_PULSES": "test pulses",
}
FARTHEST_DEG = 36_000.0
"""Of an axis that turns round and round: a hundred turns, so that nobody winds up a cable by a slip of the finger."""
FARTHEST_MM = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis of the stage, in the unit that people use.

    Attributes
    ----------
    field : str
        Of a `Pose`.
    allowed : (lowest, highest)
        Where it may go, in `unit`; `is_known` says whether the stage told that itself.
    """

    name: str
    field: str
    unit: str
    allowed: Range
    is_known: bool

    def of(self, pose: Pose) -> float:
        """Return where this axis is in a pose, in `unit`."""
        return getattr(pose, self.field) * self.per_internal

    @property
    def per_internal(self) -> float:
        """How many of `unit` are one of what a `Pose` holds."""
        return math.degrees(1.0) if self.unit == "°" else 1.0


def board_facts(now: RigSnapshot) -> list[tuple[str, str]]:
    """Return name and value of what is known of detector and chips, nothing where nothing is."""
    info: Any = now.info
    if info is None:
        return []
    facts = [("Address", now.url), ("Serial number", str(getattr(info, "serial", "")) or UNKNOWN)]
    if hasattr(info, "software_version"):
        facts.append(("Software", str(info.software_version)))
    if hasattr(info, "firmware_version"):
        version = f"{info.firmware_version}, protocol {info.protocol_version}"
        facts.append(("Firmware", version))
    n_chips = getattr(info, "n_chips", None)
    if n_chips is not None:
        rows, columns = getattr(info, "layout", (1, n_chips))
        chips = "1 chip" if n_chips == 1 else f"{n_chips} chips, {rows} x {columns}"
        facts.append(("Chips", f"{chips}; {getattr(info, 'n_lines', UNKNOWN)} data lines each"))
    facts.append(("Chip ID", ", ".join(now.chip_ids) or UNKNOWN))
    capabilities = getattr(info, "capabilities", None)
    if isinstance(capabilities, Flag):
        words = [CAPABILITIES.get(each.name or "", (each.name or "").lower()) for each in capabilities]
        facts.append(("It has", ", ".join(words) or "nothing beside chips"))
    facts += _how(now)
    return facts


def _how(now: RigSnapshot) -> list[tuple[str, str]]:
    if now.status is None:
        return []
    facts: list[tuple[str, str]] = []
    state = getattr(now.status, "state", None)
    if state is not None:
        fault = getattr(getattr(now.status, "fault", None), "name", "NONE")
        facts.append(("State", state.name.lower() + ("" if fault == "NONE" else f", fault {fault.lower()}")))
    health: Any = now.health
    names = (("sensor", "sensor_k"), ("board", "board_k"), ("FPGA", "fpga_k"))
    told = [f"{name} {celsius(getattr(health, key))}" for name, key in names if hasattr(health, key)]
    warm = ", ".join(each for each in told if UNKNOWN not in each)
    if not warm:
        warm = celsius(getattr(now.status, "temperature_k", None))
    facts.append(("Temperatures", warm))
    if hasattr(health, "bias_v"):
        leak = f", {health.bias_current_na} nA" if hasattr(health, "bias_current_na") else ""
        facts.append(("Bias", f"{health.bias_v:.1f} V{leak}".replace("-", "\N{MINUS SIGN}")))
    return facts


def source_facts(source: SourceState | None, why: str) -> list[tuple[str, str]]:
    """Return name and value of what is known of the source; `why` says why nothing is."""
    if source is None:
        return [("Source", why or UNKNOWN)]
    lamp = {True: "ON", False: "off", None: "it does not tell: rely on the lamp"}[source.is_beam_on]
    door = {True: "closed", False: "OPEN: close doors and keys", None: "it does not tell"}[source.is_interlock_closed]
    warm = {
        WarmUp.READY: "warm",
        WarmUp.NEEDED: "cold: it is warmed up when a scan or live view begins",
        WarmUp.RUNNING: f"warming up, {source.warm_up_share:.0%}",
        None: "it does not tell",
    }[source.warm_up]
    kvp = UNKNOWN if source.kvp is None else f"{source.kvp:g} kVp"
    current = UNKNOWN if source.current_ma is None else f"{source.current_ma:g} mA"
    return [
        ("Beam", lamp),
        ("Voltage, current", f"{kvp}, {current}" if (source.kvp, source.current_ma) != (None, None) else "not told"),
        ("Interlock", door),
        ("Tube", warm),
        ("Fault", source.fault or "none"),
    ]


def axes(limits: Limits | None) -> tuple[Axis, ...]:
    """Return the axes of a stage and where each may go."""
    return (
        _axis("Angle", "angle_rad", "°", limits, FARTHEST_DEG),
        _axis("Lift", "lift_mm", "mm", limits, FARTHEST_MM),
        _axis("Shift", "shift_mm", "mm", limits, FARTHEST_MM),
    )


def _axis(name: str, field: str, unit: str, limits: Limits | None, farthest: float) -> Axis:
    told = None if limits is None else getattr(limits, field)
    free = Axis(name=name, field=field, unit=unit, allowed=(-farthest, farthest), is_known=told is not None)
    if told is None:
        return free
    low, high = (value * free.per_internal for value in told)
    return replace(free, allowed=(max(low, -farthest), min(high, farthest)))


def pose_of(angle_deg: float, lift_mm: float, shift_mm: float) -> Pose:
    """Return a pose from what people write."""
    return Pose(angle_rad=math.radians(angle_deg), lift_mm=lift_mm, shift_mm=shift_mm)


def where(pose: Pose | None) -> str:
    """Return where a stage stands, in words."""
    if pose is None:
        return UNKNOWN
    text = f"{math.degrees(pose.angle_rad):.2f}°, lift {pose.lift_mm:.2f} mm, shift {pose.shift_mm:.2f} mm"
    return text.replace("-", "\N{MINUS SIGN}")
