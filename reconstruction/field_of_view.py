"""Which voxels a scan can tell: what its views see, or a region of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from calibration.geometry import Geometry
from firmware_iface.errors import WrongUsage
from reconstruction.volume import Grid

Span = tuple[float, float]

MANY_SLICES = 8
"""From which number on a slice is given up so that slices and rows stand alike."""


def field_of_view(
    geometry: Geometry,
    voxel_mm: float | None = None,
    *,
    lifts_mm: ArrayLike = 0.0,
    climb_mm: float = 0.0,
    is_wide: bool = False,
) -> Grid:
    """Return the grid that all views see, with voxels of one pixel's size on the axis unless told otherwise.

    Parameters
    ----------
    geometry : Geometry
    voxel_mm : float, optional
    lifts_mm : float or (n_views,) float
        How high the object stood at each view.
    climb_mm : float
        How much higher it stood after each turn of a helix: the half turn at each end sees its slices from some sides
        only, and they are left out.
    is_wide : bool
        Take in what half of the views see, as a full circle with a detector on one side of the axis allows.
    """
    voxel_mm = voxel_mm or geometry.pitch_mm / geometry.magnification
    offset_mm = abs(geometry.offset_u_mm)
    half_mm = geometry.cols * geometry.pitch_mm / 2 + (offset_mm if is_wide else -offset_mm)
    if half_mm <= 0:
        raise WrongUsage(
            f"the detector's shift of {geometry.offset_u_mm} mm leaves the axis out of its view",
            hint="scan a full circle, or give --shape and --voxel-mm",
        )
    radius_mm = geometry.source_to_object_mm * np.sin(np.arctan2(half_mm, geometry.source_to_detector_mm))
    lifts = np.asarray(lifts_mm, dtype=np.float64)
    if climb_mm:
        lowest_mm, highest_mm = abs(climb_mm) / 2 - lifts.max(), -abs(climb_mm) / 2 - lifts.min()
        if lowest_mm >= highest_mm:
            raise WrongUsage(
                f"the helix of {np.ptp(lifts) / abs(climb_mm):.2g} turns sees no slice from all sides; "
                "allowed: more than 1",
                hint="scan more turns",
            )
    else:
        half_height_mm = geometry.rows * geometry.pitch_mm / 2
        lowest_mm = -_seen_height_mm(geometry, radius_mm, half_height_mm - geometry.offset_v_mm) - lifts.mean()
        highest_mm = _seen_height_mm(geometry, radius_mm, half_height_mm + geometry.offset_v_mm) - lifts.mean()
    across = max(int(2 * radius_mm / voxel_mm), 1)
    along = max(int((highest_mm - lowest_mm) / voxel_mm), 1)
    # A slice for each row: of slices that stand between rows, what alternates from one to the next shows in no ray.
    if along >= MANY_SLICES and (geometry.rows - along) % 2:
        along -= 1
    return Grid(shape=(along, across, across), voxel_mm=voxel_mm, centre_mm=(0.0, 0.0, (lowest_mm + highest_mm) / 2))


def _seen_height_mm(geometry: Geometry, radius_mm: float, edge_mm: float) -> float:
    """Return how high an edge of the detector lets every view see at this radius: least where the source is near."""
    distance_mm = geometry.source_to_object_mm - np.copysign(radius_mm, edge_mm)
    return float(edge_mm * distance_mm / geometry.source_to_detector_mm)


def region(grid: Grid, spans_mm: Sequence[Span]) -> Grid:
    """Return the voxels of a grid whose centres lie in a region.

    They are voxels of the grid itself, so that a region reads what the whole reads there.

    Parameters
    ----------
    spans_mm : three of (from, to)
        Along x, y and z.
    """
    places = [
        np.flatnonzero((axis >= low) & (axis <= high))
        for axis, (low, high) in zip(grid.axes_mm()[::-1], spans_mm, strict=True)
    ]
    for name, axis, place, span in zip("xyz", grid.axes_mm()[::-1], places, spans_mm, strict=True):
        if not len(place):
            raise WrongUsage(
                f"the region's {name} runs from {span[0]:g} to {span[1]:g} mm, and no voxel has its middle there; "
                f"allowed: some of {axis[0]:.4g} to {axis[-1]:.4g} mm"
            )
    centre = tuple(float(axis[place].mean()) for axis, place in zip(grid.axes_mm()[::-1], places, strict=True))
    return replace(
        grid, shape=(len(places[2]), len(places[1]), len(places[0])), centre_mm=(centre[0], centre[1], centre[2])
    )


def cut_out(grid: Grid, part: Grid) -> tuple[slice, slice, slice]:
    """Return where the voxels of a region stand in the grid it was cut from, along z, y and x."""
    slices = []
    for whole, some in zip(grid.axes_mm(), part.axes_mm(), strict=True):
        first = round((some[0] - whole[0]) / grid.voxel_mm)
        slices.append(slice(first, first + len(some)))
    return slices[0], slices[1], slices[2]


def coarser(geometry: Geometry, factor: int) -> Geometry:
    """Return the camera whose pixels are `factor` by `factor` of this one's; what does not fill a pixel is left off."""
    rows, cols = geometry.rows // factor, geometry.cols // factor
    if min(rows, cols) < 1:
        raise WrongUsage(f"{geometry.rows} x {geometry.cols} pixels cannot be joined {factor} by {factor}")
    return replace(
        geometry,
        pitch_mm=geometry.pitch_mm * factor,
        rows=rows,
        cols=cols,
        offset_u_mm=geometry.offset_u_mm - (geometry.cols - cols * factor) / 2 * geometry.pitch_mm,
        offset_v_mm=geometry.offset_v_mm - (geometry.rows - rows * factor) / 2 * geometry.pitch_mm,
    )


def reached(grid: Grid, geometry: Geometry, lifts_mm: ArrayLike = 0.0) -> Grid:
    """Return a grid widened by whole voxels until no ray meets matter outside it that all views see.

    Data that an iterative method is to explain run through all of the object: a part of it is not enough.
    """
    lifts = np.asarray(lifts_mm, dtype=np.float64)
    half_mm = geometry.cols * geometry.pitch_mm / 2 + abs(geometry.offset_u_mm)
    radius_mm = geometry.source_to_object_mm * np.sin(np.arctan2(half_mm, geometry.source_to_detector_mm))
    steepness = (geometry.source_to_object_mm + radius_mm) / geometry.source_to_detector_mm
    half_height_mm = geometry.rows * geometry.pitch_mm / 2
    lowest_mm = (geometry.offset_v_mm - half_height_mm) * steepness - lifts.max()
    highest_mm = (geometry.offset_v_mm + half_height_mm) * steepness - lifts.min()
    spans_mm = ((lowest_mm, highest_mm), (-radius_mm, radius_mm), (-radius_mm, radius_mm))
    shape, centre_mm = [], []
    for n, middle_mm, (low_mm, high_mm) in zip(grid.shape, grid.centre_mm[::-1], spans_mm, strict=True):
        first_mm, last_mm = (middle_mm + side * (n - 1) / 2 * grid.voxel_mm for side in (-1, 1))
        before = max(int(np.ceil((first_mm - low_mm) / grid.voxel_mm - 0.5)), 0)
        after = max(int(np.ceil((high_mm - last_mm) / grid.voxel_mm - 0.5)), 0)
        shape.append(n + before + after)
        centre_mm.append(middle_mm + (after - before) / 2 * grid.voxel_mm)
    return replace(grid, shape=(shape[0], shape[1], shape[2]), centre_mm=(centre_mm[2], centre_mm[1], centre_mm[0]))
