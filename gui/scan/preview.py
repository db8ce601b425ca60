"""A slice while the scan runs, and where the axis seems to be: quick, coarse, and told what is missing.

Views that have not come yet count as empty ones until half a circle and the fan are there, so that something is seen
early: with streaks, and too faint. The axis is found from rays that ran through the sample both ways.
"""

from __future__ import annotations

import logging
import math
import threading
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.geometry import Geometry
from calibration.progress import finished
from firmware_iface.errors import MpxctError
from gui.scan.watch import Rows, Watch

EVERY_S = 2.0
MOST_COLS = 128
"""Of the slice; finer rows are averaged first."""
LEAST_ARC_RAD = math.radians(30)
"""Fewer views make nothing that anybody could look at."""
FEWEST_VIEWS = 8
GOOD_PX = 0.5
"""An axis nearer than this to where it should be needs nothing."""
AXIS_NOT_YET = "Axis: told as soon as half a circle is there."
_log = logging.getLogger(__name__)


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Preview:
    """What there is to look at.

    Attributes
    ----------
    rows : Rows or None
        The sinogram.
    slice_per_mm : (y, x) float32 or None
    told, axis_told : str
        What it is, or why it is not there yet.
    version : int
        Of the watch when it was made.
    """

    rows: Rows | None = None
    slice_per_mm: NDArray[np.float32] | None = None
    voxel_mm: float = 1.0
    told: str = "Not enough views yet."
    is_whole: bool = False
    axis: AxisHint | None = None
    axis_told: str = AXIS_NOT_YET
    version: int = -1


def preview(watch: Watch, threshold: int = 0, geometry: Geometry | None = None, believed: str = "the plan") -> Preview:
    """Make of a watch what can be made of it now.

    Parameters
    ----------
    geometry : Geometry, optional
        As calibrated; otherwise as planned.
    believed : str
        Whose geometry that is.
    """
    version, rows, believed_geometry = watch.version, watch.rows(threshold), geometry or watch.geometry
    if (why := watch.why_no_slice()) or rows is None:
        told = why or "No view yet: flats come first."
        return Preview(rows=rows, told=told, axis_told="" if why else AXIS_NOT_YET, version=version)
    axis, axis_told = _axis(rows, believed_geometry, believed)
    if axis is not None and not axis.is_good:
        believed_geometry = replace(believed_geometry, offset_u_mm=axis.offset_u_mm)
    try:
        picture, voxel_mm, told, is_whole = quick_slice(rows, believed_geometry)
    except MpxctError as error:
        picture, voxel_mm, told, is_whole = None, 1.0, f"No slice yet: {error}", False
    if picture is not None and axis is not None and not axis.is_good:
        told += " Around the axis as it was found."
    return Preview(
        rows=rows, slice_per_mm=picture, voxel_mm=voxel_mm, told=told, is_whole=is_whole, axis=axis,
        axis_told=axis_told, version=version,
    )  # fmt: skip


def _axis(rows: Rows, geometry: Geometry, believed: str) -> tuple[AxisHint | None, str]:
    try:
        axis = find_axis(rows, geometry, believed)
    except MpxctError as error:
        return None, f"Axis: not told yet: {error}"
    return axis, AXIS_NOT_YET if axis is None else axis.told


def quick_slice(rows: Rows, geometry: Geometry) -> tuple[NDArray[np.float32] | None, float, str, bool]:
    """Reconstruct the slice in the source's plane: (picture, voxel_mm, what to say of it, whether it is whole).

    Raises
    ------
    MpxctError
        These views make no slice.
    """
    from reconstruction.fdk import fdk
    from reconstruction.volume import Grid

    values, angles_rad, thin = _usable(rows, geometry)
    arc_rad = _arc_rad(angles_rad)
    need_rad = _short_rad(thin)
    voxel_mm = thin.pitch_mm / thin.magnification
    if not rows.n_flats:
        return None, voxel_mm, "No slice yet: it wants flats.", False
    if len(angles_rad) < FEWEST_VIEWS or arc_rad < LEAST_ARC_RAD:
        return None, voxel_mm, f"Not enough views yet: {_of(arc_rad, need_rad)}.", False
    is_whole = arc_rad >= need_rad
    if not is_whole:
        values, angles_rad = _with_empty_views(values, angles_rad)
    grid = Grid(shape=(1, thin.cols, thin.cols), voxel_mm=voxel_mm)
    work = fdk(values[None, :, None, :], angles_rad, thin, grid, window="hann", shifts_mm=rows.shift_mm)
    picture = finished(work)[0, 0]
    if is_whole:
        return picture, voxel_mm, f"Slice in the source's plane, {len(rows.angles_rad)} views so far.", True
    return picture, voxel_mm, f"NOT ENOUGH VIEWS yet, {_of(arc_rad, need_rad)}: streaks, and too faint.", False


def find_axis(rows: Rows, geometry: Geometry, believed: str) -> AxisHint | None:
    """Find the axis from opposed rays; None before half a circle is there.

    Raises
    ------
    MpxctError
        They do not tell it.
    """
    from calibration.opposing import align_scan

    values, angles_rad, thin = _usable(rows, geometry)
    if not rows.n_flats or len(angles_rad) < FEWEST_VIEWS or _arc_rad(angles_rad) < math.pi:
        return None
    nominal = replace(thin, offset_u_mm=thin.offset_u_mm + rows.shift_mm)
    alignment = finished(align_scan(values[:, None, :], angles_rad, nominal))
    off_mm = alignment.geometry.offset_u_mm - nominal.offset_u_mm
    return AxisHint(
        off_px=off_mm / geometry.pitch_mm,
        error_px=float(alignment.standard_errors[0]) / geometry.pitch_mm,
        off_mm=off_mm,
        offset_u_mm=geometry.offset_u_mm + off_mm,
        believed=believed,
    )


def _usable(rows: Rows, geometry: Geometry) -> tuple[NDArray[np.float32], NDArray[np.float64], Geometry]:
    """Return the views that arrived, in the order of their angles, in rows of few pixels of a detector of one row."""
    keep = np.isfinite(rows.line_integrals).all(axis=1)
    values, angles_rad = rows.line_integrals[keep], rows.angles_rad[keep]
    order = np.argsort(angles_rad)
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


def _arc_rad(angles_rad: NDArray[np.float64]) -> float:
    """Return how far the views reach, each standing for half a step on either side."""
    if len(angles_rad) < 2:
        return 0.0
    return float(angles_rad[-1] - angles_rad[0]) + _step_rad(angles_rad)


def _step_rad(angles_rad: NDArray[np.float64]) -> float:
    steps = np.diff(angles_rad)
    return float(np.median(steps[steps > 0])) if (steps > 0).any() else math.pi


def _short_rad(geometry: Geometry) -> float:
    """Return the arc that a short scan takes: half a circle and the fan."""
    half_mm = geometry.cols * geometry.pitch_mm / 2 + abs(geometry.offset_u_mm)
    return math.pi + 2 * math.atan(half_mm / geometry.source_to_detector_mm)


def _with_empty_views(
    values: NDArray[np.float32], angles_rad: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Put empty views into the rest of the circle."""
    step_rad = _step_rad(angles_rad)
    rest_rad = 2 * math.pi - (angles_rad[-1] - angles_rad[0])
    n = max(round(rest_rad / step_rad) - 1, 1)
    empty_rad = angles_rad[-1] + rest_rad * np.arange(1, n + 1) / (n + 1)
    return np.concatenate([values, np.zeros((n, values.shape[1]), np.float32)]), np.concatenate([angles_rad, empty_rad])


def _of(arc_rad: float, need_rad: float) -> str:
    return f"{math.degrees(arc_rad):.0f}° of the {math.degrees(need_rad):.0f}° that a slice takes"


class Previewer:
    """Makes a new preview every few seconds in a thread of its own, as long as there is anything new.

    Attributes
    ----------
    threshold : int
        Which threshold is looked at, by its place; anybody may change it.
    newest : Preview
        What was made last.
    """

    def __init__(self, watch: Watch, *, every_s: float = EVERY_S, threshold: int = 0, **options: Any) -> None:
        self.watch, self.threshold, self.newest = watch, threshold, Preview()
        self._options, self._every_s = options, every_s
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="preview", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End after the last frames were looked at; does not wait for that."""
        self._is_closing.set()

    def wait(self, timeout_s: float = 10.0) -> None:
        """Wait until it has ended."""
        self._thread.join(timeout_s)

    def _serve(self) -> None:
        seen = (-1, self.threshold)
        is_last = False
        while not is_last:
            is_last = self._is_closing.wait(self._every_s)
            now = self.watch.version, self.threshold
            if now == seen:
                continue
            seen = now
            try:
                self.newest = preview(self.watch, self.threshold, **self._options)
            except Exception as error:  # noqa: BLE001 - a picture that fails must not end the scan
                _log.exception("the preview failed")
                self.newest = replace(self.newest, told=f"The preview failed: {error}", version=now[0])
