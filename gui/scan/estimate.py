"""What a plan costs before anything moves: frames, time, bytes, charge and dose, and what these figures assume."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from acquisition.dry_run import describe, figures
from acquisition.limits import UNKNOWN, Limits
from acquisition.plan import Plan
from acquisition.scan_plan import Turning
from calibration.geometry import Geometry
from firmware_iface.errors import MpxctError

SAMPLE_MM = 10.0
"""Diameter of the water that the dose is told of, where nobody says another: as in `mpxct design`."""
TUBE_MM = {"aluminium": 3.8}
"""What is presumed to filter the beam: 1.8 mm that tubes have and 2 mm that is added, as in `mpxct design`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Estimate:
    """What a plan costs.

    Attributes
    ----------
    figures : dict
        As `acquisition.dry_run.figures` gives them.
    described : str
        The same in a few lines.
    free_bytes : int or None
        On the disk of the folder.
    dose_mgy : float or None
        Mean dose of a cylinder of water of `sample_mm`; None where it cannot be told.
    """

    figures: dict[str, Any]
    described: str
    free_bytes: int | None
    sample_mm: float
    dose_mgy: float | None

    @property
    def wrong(self) -> tuple[str, ...]:
        """What the instrument cannot do of it."""
        return tuple(self.figures["wrong"])

    @property
    def size_bytes(self) -> int:
        """Of the counts in the file, before compression."""
        return int(self.figures["size_bytes"])

    @property
    def has_room(self) -> bool:
        """Whether the disk has room for all of it, as far as is known."""
        return self.free_bytes is None or self.free_bytes > self.size_bytes


def estimate(
    plan: Plan,
    limits: Limits = UNKNOWN,
    folder: Path | None = None,
    sample_mm: float = SAMPLE_MM,
    *,
    has_dose: bool = True,
) -> Estimate:
    """Work out what a plan costs; takes longer than a window may wait for a plan of many steps, and for the dose."""
    return Estimate(
        figures=figures(plan, limits),
        described=describe(plan, limits),
        free_bytes=_free_bytes(folder),
        sample_mm=sample_mm,
        dose_mgy=dose_mgy(plan, sample_mm) if has_dose else None,
    )


def rows(found: Estimate) -> Iterator[tuple[str, str]]:
    """Yield what is always in view, each with its name."""
    told = found.figures
    if told["is_endless"]:
        yield "Frames", "without end, nothing is written"
    else:
        views = f", at {told['n_views']} angles" if "n_views" in told else ""
        flats = f", {told['n_flat_frames']} of them flats" if told["n_flat_frames"] else ""
        yield "Frames", f"{told['n_frames']}{flats}{views}"
    untimed = f", without {', '.join(told['not_timed'])}" if told["not_timed"] else ""
    yield "Time", f"{duration(told['duration_s'])}{untimed}"
    packed = told["compressed_bytes"]
    yield "File", f"up to {size(found.size_bytes)}{f', about {size(packed)} as a rule' if packed is not None else ''}"
    if found.free_bytes is not None:
        room = "" if found.has_room else ": NOT ENOUGH for this scan"
        yield "Free disk", f"{size(found.free_bytes)}{room}"
    if "field_of_view_mm" in told:
        across_mm, high_mm = told["field_of_view_mm"]
        yield "Sees", f"{across_mm:.3g} mm across, {high_mm:.3g} mm high, voxels of {told['voxel_mm']:.3g} mm"
        if not told["is_arc_enough"]:
            yield "Arc", f"TOO SHORT: {told['arc_deg']:.4g}°, and {told['short_scan_deg']:.1f}° are needed"
    yield "Charge", f"{told['charge_mas']:.3g} mAs while the detector counts"
    if found.dose_mgy is not None:
        yield "Dose", f"about {found.dose_mgy:.3g} mGy in {found.sample_mm:g} mm of water"


DOSE_TOLD = (
    "Mean dose of the slices in the beam, in a cylinder of water of this diameter around the axis, from the primary "
    "photons' first collisions; scattered photons add to it, 8 % in 10 mm of water and more in more. Presumed, "
    "not measured: a tungsten tube behind "
    f"{TUBE_MM['aluminium']:g} mm of aluminium in all, with the output of the model in calibration.spectrum, and a "
    "beam as wide as the camera sees that is on only while the detector counts. `mpxct design` tells more."
)
"""What the dose is, and what it takes for granted."""


def dose_mgy(plan: Plan, sample_mm: float = SAMPLE_MM) -> float | None:
    """Return the mean dose of a cylinder of water; see `DOSE_TOLD`. None where nothing turns around a sample.

    A camera at several places gives each of them its share of the beam, so that the doses of all places add.
    """
    scan = plan.scan
    if not isinstance(scan, Turning):
        return None
    from reconstruction.spectral.design_plan import charge_mas

    try:
        return _mgy_per_mas(plan.geometry, plan.source.kvp, sample_mm) * charge_mas(plan) * len(scan.shifts_mm)
    except (MpxctError, ValueError):
        return None  # a sample that reaches the source, a voltage that the tube's model does not know


@lru_cache(maxsize=64)
def _mgy_per_mas(geometry: Geometry, kvp: float, sample_mm: float) -> float:
    from reconstruction.spectral.design import beams_of
    from reconstruction.spectral.dose import dose_by_chords_mgy
    from reconstruction.spectral.prediction import ENERGIES_KEV
    from reconstruction.spectral.sample import Sample

    (beam,) = beams_of([kvp], TUBE_MM, {})
    per_fluence = dose_by_chords_mgy(Sample(diameter_mm=sample_mm), geometry, ENERGIES_KEV)
    return float(beam.photons(geometry.source_to_object_mm) @ per_fluence)


def duration(seconds: float) -> str:
    """Return a time for people."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours} h {rest // 60:02d} min" if hours else f"{rest // 60} min {rest % 60:02d} s"


def size(n_bytes: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"


def _free_bytes(folder: Path | None) -> int | None:
    try:
        return None if folder is None else shutil.disk_usage(folder).free
    except OSError:
        return None
