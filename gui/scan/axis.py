"""Where the axis of rotation seems to be, from the rows of a scan that still runs.

Rays that ran through the sample both ways tell it well, and are there after half a circle. Before that the middle of
what each view sees tells it roughly: it goes to and fro as a sinusoid around the shadow of the axis.

# Ref: first moment of a sinogram: Helgason 1980, The Radon Transform; Ludwig 1966, Commun. Pure Appl. Math. 19, 49.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from calibration.geometry import Geometry
from calibration.progress import Progress
from gui.scan.watch import Rows

T = TypeVar("T")

MOST_COLS = 128
"""Of the slice; finer rows are averaged first."""
FEWEST_VIEWS = 8
GOOD_PX = 0.5
"""An axis nearer than this to where it should be needs nothing."""
LEAST_ROUGH_RAD = math.radians(60)
"""Of an arc from which the axis is told roughly."""
WORST_ROUGH_PX = 5.0
"""Less certain than this nothing is said."""
CERTAIN = 3.0
"""Standard errors from which on a rough axis is believed to be off."""
EDGE_SHARE = 0.05
"""Of the highest line integral; samples that reach beyond the rows have more at their ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisHint:
    """Where the axis was found, against where it was believed to be.

    Attributes
    ----------
    off_px, error_px : float
        How far it is off, in detector pixels, and the standard error.
    offset_u_mm : float
        What the geometry's offset along rows would be.
    """

    off_px: float
    error_px: float
    off_mm: float
    offset_u_mm: float
    believed: str

    @property
    def is_good(self) -> bool:
        """Whether there is nothing to do."""
        return abs(self.off_px) <= max(GOOD_PX, 2 * self.error_px)

    @property
    def told(self) -> str:
        """Say it, and what to do."""
        where = f"{self.off_px:+.2f} ± {self.error_px:.2f} pixels ({self.off_mm:+.3f} mm)"
        if self.is_good:
            return f"Axis: {where} from where {self.believed} puts it: good."
        return (
            f"Axis: {where} from where {self.believed} puts it: TOO FAR. The scan can go on; let the reconstruction "
            f"find the axis, or write geometry.offset_u_mm = {self.offset_u_mm:.3f} into the next plan, or calibrate "
            "the geometry."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RoughAxis:
    """Where the axis seems to be, early: off by so many pixels, with the standard error."""

    off_px: float
    error_px: float
    arc_deg: float

    @property
    def is_suspect(self) -> bool:
        """Whether it is off by more than can be an error."""
        return abs(self.off_px) > max(CERTAIN * self.error_px, 1.0)

    @property
    def told(self) -> str:
        """Say it, and what it is worth."""
        where = f"{self.off_px:+.1f} ± {self.error_px:.1f} pixels, roughly, from the first {self.arc_deg:.0f}°"
        if self.is_suspect:
            return f"Axis: it seems to be OFF by {where}; told better as soon as half a circle is there."
        return f"Axis: nothing speaks against it so far ({where}); told well as soon as half a circle is there."


def find_axis(rows: Rows, geometry: Geometry, believed: str) -> AxisHint | None:
    """Find the axis from opposed rays; None before half a circle is there.

    Raises
    ------
    MpxctError
        They do not tell it.
    """
    from calibration.opposing import align_scan

    values, angles_rad, thin = usable(rows, geometry)
    if not rows.n_flats or len(angles_rad) < FEWEST_VIEWS or arc_of(angles_rad) < math.pi:
        return None
    alignment = result_of(align_scan(values[:, None, :], angles_rad, thin))
    off_mm = alignment.geometry.offset_u_mm - thin.offset_u_mm
    return AxisHint(
        off_px=off_mm / geometry.pitch_mm,
        error_px=float(alignment.standard_errors[0]) / geometry.pitch_mm,
        off_mm=off_mm,
        offset_u_mm=geometry.offset_u_mm + off_mm,
        believed=believed,
    )


def rough_axis(rows: Rows, geometry: Geometry) -> RoughAxis | None:
    """Find the axis from the middles of what the views see; None where they do not tell it."""
    values, angles_rad, thin = usable(rows, geometry)
    arc_rad = arc_of(angles_rad)
    if not rows.n_flats or len(angles_rad) < FEWEST_VIEWS or not LEAST_ROUGH_RAD <= arc_rad < 2 * math.pi:
        return None
    highest = float(np.quantile(values, 0.99))
    ends = np.abs(np.stack([values[:, :3].mean(axis=1), values[:, -3:].mean(axis=1)])).max()
    if highest <= 0 or ends > EDGE_SHARE * highest:
        return None  # what is beyond the rows would be missing from the middle
    cols = np.arange(thin.cols) - (thin.cols - 1) / 2
    middles_px = values @ cols / values.sum(axis=1)
    terms = np.stack([np.ones_like(angles_rad), np.cos(angles_rad), np.sin(angles_rad)], axis=1)
    inverse = np.linalg.pinv(terms)
    found = inverse @ middles_px
    rest_px = middles_px - terms @ found
    chance_px = float(np.linalg.norm(inverse[0])) * float(np.sqrt((rest_px**2).sum() / (len(rest_px) - 3)))
    # Rays of a fan see what is nearer to the source larger, which adds a second harmonic that grows with the sample.
    radius_mm = (values > EDGE_SHARE * highest).any(axis=0).sum() * thin.pitch_mm / thin.magnification / 2
    second_px = radius_mm**2 / (4 * thin.source_to_object_mm) * thin.magnification / thin.pitch_mm
    leak = np.hypot(inverse[0] @ np.cos(2 * angles_rad), inverse[0] @ np.sin(2 * angles_rad))
    error_px = math.hypot(chance_px, second_px * float(leak))
    # The axis throws its shadow where the ray through it meets the row.
    binned = thin.pitch_mm / geometry.pitch_mm
    off_px = (float(found[0]) * thin.pitch_mm + thin.offset_u_mm) / thin.pitch_mm
    if error_px * binned > WORST_ROUGH_PX:
        return None
    return RoughAxis(off_px=-off_px * binned, error_px=error_px * binned, arc_deg=math.degrees(arc_rad))


def usable(rows: Rows, geometry: Geometry) -> tuple[NDArray[np.float32], NDArray[np.float64], Geometry]:
    """Return the views that arrived, in the order of their angles, in rows of few pixels of a detector of one row.

    Its offset is that of the camera where it stood; of several places that are joined, of the camera that sees as much.
    """
    from reconstruction.stitch import wide_geometry

    geometry = wide_geometry(geometry, rows.place.shifts_mm)
    keep = np.isfinite(rows.line_integrals).all(axis=1)
    values, angles_rad = rows.line_integrals[keep], rows.angles_rad[keep]
    order = np.argsort(angles_rad)
    if rows.place.height_mm is not None:  # more than a turn of a helix sees the slice: those that see it best
        middle_rad = (angles_rad.max() + angles_rad.min()) / 2 if len(angles_rad) else 0.0
        order = order[np.abs(angles_rad[order] - middle_rad) < math.pi - 1e-6]
    values, angles_rad = values[order], angles_rad[order]
    n_cols = values.shape[1]
    binned = max(n_cols // MOST_COLS, 1)
    n_left = n_cols // binned
    values = values[:, : n_left * binned].reshape(len(values), n_left, binned).mean(axis=2)
    thin = replace(
        geometry, rows=1, cols=n_left, pitch_mm=geometry.pitch_mm * binned, offset_v_mm=0.0, roll_rad=0.0,
        tilt_u_rad=0.0, tilt_v_rad=0.0,
    )  # fmt: skip
    return np.ascontiguousarray(values, np.float32), angles_rad, thin


def arc_of(angles_rad: NDArray[np.float64]) -> float:
    """Return how far the views reach, each standing for half a step on either side."""
    if len(angles_rad) < 2:
        return 0.0
    return float(angles_rad[-1] - angles_rad[0]) + step_of(angles_rad)


def step_of(angles_rad: NDArray[np.float64]) -> float:
    """Return the usual step from one view to the next."""
    steps = np.diff(angles_rad)
    return float(np.median(steps[steps > 0])) if (steps > 0).any() else math.pi


def result_of(work: Generator[Progress, None, T]) -> T:
    """Do work to its end."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value
