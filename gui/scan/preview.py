"""A slice while the scan runs, and where the axis seems to be: quick, coarse, and told what is missing.

Views that have not come yet count as empty ones until half a circle and the fan are there, so that something is seen
early: with streaks, and too faint. A slice of a helix is made of the rows that see it at the axis, as if the rays lay
in its plane: good enough to see what is there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acquisition.open_beam import takes_flats
from calibration.geometry import Geometry
from calibration.progress import finished
from firmware_iface.errors import MpxctError
from gui.questions import Lookout
from gui.scan.axis import FEWEST_VIEWS, AxisHint, arc_of, find_axis, rough_axis, step_of, usable
from gui.scan.watch import Place, Rows, Watch

EVERY_S = 2.0
LEAST_ARC_RAD = math.radians(30)
"""Fewer views make nothing that anybody could look at."""
NO_FLATS = "No slice: this scan takes no flats, and the calibration's flat field does not fit it; the checks say why."
AXIS_NOT_YET = "Axis: told as soon as half a circle is there."


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


def preview(
    watch: Watch,
    threshold: int = 0,
    geometry: Geometry | None = None,
    believed: str = "the plan",
    place: Place | None = None,
) -> Preview:
    """Make of a watch what can be made of it now.

    Parameters
    ----------
    place : Place, optional
        Pass, camera and slice that are looked at; otherwise the newest.
    geometry : Geometry, optional
        As calibrated; otherwise as planned.
    believed : str
        Whose geometry that is.
    """
    version, rows, believed_geometry = watch.version, watch.rows(threshold, place), geometry or watch.geometry
    if (why := watch.why_no_slice()) or rows is None:
        first = "No view yet: flats come first." if takes_flats(watch.plan) else "No view yet."
        nothing = first if place is None else f"No view yet of {watch.told_of(place)}."
        told = why or nothing
        return Preview(rows=rows, told=told, axis_told="" if why else AXIS_NOT_YET, version=version)
    axis, axis_told = _axis(rows, believed_geometry, believed)
    if axis is not None and not axis.is_good:
        believed_geometry = replace(believed_geometry, offset_u_mm=axis.offset_u_mm)
    try:
        picture, voxel_mm, told, is_whole = quick_slice(rows, believed_geometry)
    except MpxctError as error:
        picture, voxel_mm, told, is_whole = None, 1.0, f"No slice yet: {error}", False
    if not rows.n_flats and not takes_flats(watch.plan):
        told = NO_FLATS
    if picture is not None and axis is not None and not axis.is_good:
        told += " Around the axis as it was found."
    where = watch.told_of(rows.place)
    if where:
        told = f"{where[0].upper()}{where[1:]}. {told}"
    return Preview(
        rows=rows, slice_per_mm=picture, voxel_mm=voxel_mm, told=told, is_whole=is_whole, axis=axis,
        axis_told=axis_told, version=version,
    )  # fmt: skip


def _axis(rows: Rows, geometry: Geometry, believed: str) -> tuple[AxisHint | None, str]:
    try:
        axis = find_axis(rows, geometry, believed)
        rough = rough_axis(rows, geometry) if axis is None else None
    except MpxctError as error:
        return None, f"Axis: not told yet: {error}"
    if axis is not None:
        return axis, axis.told
    return None, AXIS_NOT_YET if rough is None else rough.told


def quick_slice(rows: Rows, geometry: Geometry) -> tuple[NDArray[np.float32] | None, float, str, bool]:
    """Reconstruct the slice in the source's plane: (picture, voxel_mm, what to say of it, whether it is whole).

    Raises
    ------
    MpxctError
        These views make no slice.
    """
    from reconstruction.fdk import fdk
    from reconstruction.volume import Grid

    values, angles_rad, thin = usable(rows, geometry)
    arc_rad = arc_of(angles_rad)
    need_rad = _short_rad(thin)
    voxel_mm = thin.pitch_mm / thin.magnification
    if not rows.n_flats:
        return None, voxel_mm, "No slice yet: it wants flats.", False
    if len(angles_rad) < FEWEST_VIEWS or arc_rad < LEAST_ARC_RAD:
        return None, voxel_mm, f"Not enough views yet: {_of(arc_rad, need_rad)}.", False
    is_whole = arc_rad >= need_rad
    n_views = len(angles_rad)
    if not is_whole:
        values, angles_rad = _with_empty_views(values, angles_rad)
    grid = Grid(shape=(1, thin.cols, thin.cols), voxel_mm=voxel_mm)
    work = fdk(values[None, :, None, :], angles_rad, thin, grid, window="hann")
    picture = finished(work)[0, 0]
    if is_whole:
        where = "Slice in the source's plane" if rows.place.height_mm is None else "Slice"
        return picture, voxel_mm, f"{where}, {n_views} views so far.", True
    return picture, voxel_mm, f"NOT ENOUGH VIEWS yet, {_of(arc_rad, need_rad)}: streaks, and too faint.", False


def _short_rad(geometry: Geometry) -> float:
    """Return the arc that a short scan takes: half a circle and the fan."""
    half_mm = geometry.cols * geometry.pitch_mm / 2 + abs(geometry.offset_u_mm)
    return math.pi + 2 * math.atan(half_mm / geometry.source_to_detector_mm)


def _with_empty_views(
    values: NDArray[np.float32], angles_rad: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Put empty views into the rest of the circle."""
    step_rad = step_of(angles_rad)
    rest_rad = 2 * math.pi - (angles_rad[-1] - angles_rad[0])
    n = max(round(rest_rad / step_rad) - 1, 1)
    empty_rad = angles_rad[-1] + rest_rad * np.arange(1, n + 1) / (n + 1)
    return np.concatenate([values, np.zeros((n, values.shape[1]), np.float32)]), np.concatenate([angles_rad, empty_rad])


def _of(arc_rad: float, need_rad: float) -> str:
    return f"{math.degrees(arc_rad):.0f}° of the {math.degrees(need_rad):.0f}° that a slice takes"


class Previewer:
    """Makes a new preview every few seconds beside the window, as long as somebody asks and there is anything new.

    Attributes
    ----------
    threshold, place : int, Place or None
        Which threshold is looked at, by its place, and what of the scan; anybody may change them.
    """

    def __init__(self, watch: Watch, *, every_s: float = EVERY_S, threshold: int = 0, **options: Any) -> None:
        self.watch, self.threshold = watch, threshold
        self.place: Place | None = None
        self._options = options
        self._made = Preview()
        self._of: tuple[object, ...] = ()
        self._lookout = Lookout("preview", self._look, every_s)

    @property
    def newest(self) -> Preview:
        """What was made last, or why nothing more could be made; asking keeps it going."""
        newest = self._lookout.newest() or Preview()
        return replace(newest, told=f"The preview failed: {error}") if (error := self._lookout.error) else newest

    def _look(self) -> Preview:
        of = self.watch.version, self.threshold, self.place
        if of != self._of:
            self._made = preview(self.watch, self.threshold, place=self.place, **self._options)
            self._of = of
        return self._made
