"""What a plan says of the calibration steps that look at the beam: the wedge, the count rate, the response.

Sections ``[calibration.wedge]``, ``[calibration.count_rate]`` and ``[calibration.response]`` of a plan file.
"""

from __future__ import annotations

import re

import msgspec

from acquisition.refusals import refuse_outside

_NUMBER = re.compile(r"\d{1,4}(\.\d{1,4})?")


def layers_mm(plate: str) -> dict[str, float]:
    """Return the thickness of each material that the name of a plate tells: ``pmma-10``, ``pmma-10+aluminium-0.5``."""
    layers = {}
    for layer in plate.split("+"):
        name, _, digits = layer.rpartition("-")
        if not name or not _NUMBER.fullmatch(digits) or not float(digits) or name in layers:
            raise ValueError(f"{plate!r} names no plate; allowed: material-millimetres, several joined by '+'")
        layers[name] = float(digits)
    return layers


class WedgePlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Plates of known thickness. Those of `material` alone teach each pixel its thickness, all of them the response.

    Thicknesses are given out as line integrals as if all were attenuated like `reference_mm` of the material.
    """

    material: str = "pmma"
    reference_mm: float = 8.0
    plates: tuple[str, ...] = (
        *("pmma-2", "pmma-5", "pmma-10", "pmma-15", "pmma-20", "pmma-30", "pmma-40"),
        *("aluminium-0.5", "aluminium-1", "aluminium-2", "aluminium-4"),
    )
    n_frames: int = 100
    n_flat_frames: int = 100

    def __post_init__(self) -> None:
        for plate in self.plates:
            layers_mm(plate)
        if len(set(self.plates)) != len(self.plates):
            raise ValueError("plates holds a name twice; allowed: each once")
        refuse_outside("reference_mm", self.reference_mm, 0.001, 1000, "mm")
        refuse_outside("n_frames", self.n_frames, 1, 100_000)
        refuse_outside("n_flat_frames", self.n_flat_frames, 1, 100_000)


class CountRatePlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A sweep of the tube's current, each `growth_ratio` times the last, until the counters lose `highest_loss_share`.

    It begins at `lowest_ratio` of the scan's current, and never goes above `highest_ma`. Exposures shrink as the
    current grows, so that no counter fills.
    """

    lowest_ratio: float = 0.25
    growth_ratio: float = 1.6
    highest_loss_share: float = 0.45
    highest_ma: float = 1.0
    n_frames: int = 40

    def __post_init__(self) -> None:
        refuse_outside("lowest_ratio", self.lowest_ratio, 0.001, 1)
        refuse_outside("growth_ratio", self.growth_ratio, 1.05, 4)
        refuse_outside("highest_loss_share", self.highest_loss_share, 0.02, 0.8)
        refuse_outside("highest_ma", self.highest_ma, 1e-6, 1e4, "mA")
        refuse_outside("n_frames", self.n_frames, 1, 100_000)


class ResponsePlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the sensor is, whose lines are scanned over the whole range of thresholds, what is held back to check."""

    sensor_material: str = "cdte"
    sensor_thickness_mm: float = 1.0
    sources: tuple[str, ...] = ("In", "Gd", "Am-241", "Pb")
    lowest_kev: float = 14.0
    n_points: int = 40
    n_frames_per_point: int = 2
    checks: tuple[str, ...] = ("pmma-10+aluminium-1", "pmma-20+aluminium-2", "water-8")

    def __post_init__(self) -> None:
        for plate in self.checks:
            layers_mm(plate)
        refuse_outside("sensor_thickness_mm", self.sensor_thickness_mm, 0.01, 20, "mm")
        refuse_outside("lowest_kev", self.lowest_kev, 2, 100, "keV")
        refuse_outside("n_points", self.n_points, 8, 512)
        refuse_outside("n_frames_per_point", self.n_frames_per_point, 1, 100_000)
