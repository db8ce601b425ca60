"""Drawings that are moved and resized afterwards: where they can be taken hold of, and what comes of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gui.volume.annotations import Annotation, Tool
from gui.volume.slicing import Cut, Point

ALL = -1
"""Taken hold of as a whole, to move it."""
_CORNERS = ((0, 0), (1, 0), (1, 1), (0, 1))
"""Of a frame: which of its two ends across, and upwards."""


def moved(drawing: Annotation, by_mm: Point) -> Annotation:
    """Return a drawing somewhere else."""
    return replace(drawing, points_mm=tuple(map(_triple, np.array(drawing.points_mm) + by_mm)))


def dragged(
    drawing: Annotation, cut: Cut, handle: int, start_mm: tuple[float, float], at_mm: tuple[float, float]
) -> Annotation:
    """Return a drawing that was dragged in the picture of a cut, by a handle or as a whole (`ALL`)."""
    to = cut.point_mm(*at_mm)
    if handle != ALL:
        return reshaped(drawing, handle, to)
    return moved(drawing, _triple(np.subtract(to, cut.point_mm(*start_mm))))


def handles_mm(drawing: Annotation, cut: Cut) -> NDArray[np.float64]:
    """Return where a drawing can be taken hold of, in the picture of a cut that shows it: (n, 2) float64.

    A round one has one at its right, ruler and angle one at each point, the others the corners of their frame.
    """
    if drawing.tool is Tool.SPHERE:
        off_mm = float(np.dot(np.subtract(drawing.points_mm[0], cut.centre_mm), cut.normal))
        radius_mm = np.sqrt(max(drawing.radius_mm**2 - off_mm**2, 0.0))
        return np.array([cut.plane_mm(drawing.points_mm[0])]) + np.array([radius_mm, 0.0])
    if drawing.tool is Tool.CYLINDER:
        return np.array([cut.plane_mm(drawing.points_mm[0])]) + np.array([drawing.radius_mm, 0.0])
    if drawing.tool in (Tool.RULER, Tool.ANGLE):
        return np.array([cut.plane_mm(point) for point in drawing.points_mm])
    flat = drawing.flat_mm()
    ends = np.stack([flat.min(axis=0), flat.max(axis=0)])
    return np.array([cut.plane_mm(_from_flat(drawing, (ends[a, 0], ends[b, 1], ends[0, 2]))) for a, b in _CORNERS])


def reshaped(drawing: Annotation, handle: int, to: Point) -> Annotation:
    """Return a drawing whose handle was taken to a point; one that would shrink to nothing stays as it is.

    Parameters
    ----------
    handle : int
        As numbered by `handles_mm`.
    """
    points = list(drawing.points_mm)
    flat = drawing.flat_mm()
    to_flat = _flat(drawing, to)
    if drawing.tool is Tool.SPHERE:
        points[1] = to
    elif drawing.tool is Tool.CYLINDER:
        points[1] = _from_flat(drawing, (to_flat[0], to_flat[1], flat[0, 2]))
    elif drawing.tool in (Tool.RULER, Tool.ANGLE):
        points[handle] = _from_flat(drawing, (to_flat[0], to_flat[1], flat[handle, 2]))
    else:
        points = _scaled(drawing, flat, handle, to_flat)
    return replace(drawing, points_mm=tuple(points)) if _has_size(drawing.tool, points) else drawing


def _scaled(drawing: Annotation, flat: NDArray[np.float64], handle: int, to_flat: NDArray[np.float64]) -> list[Point]:
    """Stretch a frame from the opposite corner, which stays."""
    ends = np.stack([flat.min(axis=0), flat.max(axis=0)])
    sides = _CORNERS[handle]
    held = np.array([ends[side, axis] for axis, side in enumerate(sides)])
    fixed = np.array([ends[1 - side, axis] for axis, side in enumerate(sides)])
    wide = np.where(held == fixed, 1.0, held - fixed)
    stretched = flat.copy()
    stretched[:, :2] = fixed + (flat[:, :2] - fixed) * ((to_flat[:2] - fixed) / wide)
    return [_from_flat(drawing, (x, y, z)) for x, y, z in stretched]


def _has_size(tool: Tool, points: list[Point]) -> bool:
    spread = np.ptp(np.array(points), axis=0)
    return bool((spread > 1e-9).sum() >= (2 if tool in (Tool.FREEHAND, Tool.AREA, Tool.BOX) else 1))


def _flat(drawing: Annotation, point: Point) -> NDArray[np.float64]:
    return np.array([drawing.right, drawing.up, np.cross(drawing.right, drawing.up)]) @ np.array(point)


def _from_flat(drawing: Annotation, flat: tuple[float, float, float]) -> Point:
    axes = np.array([drawing.right, drawing.up, np.cross(drawing.right, drawing.up)])
    return _triple(np.array(flat) @ axes)


def _triple(parts: NDArray[np.float64]) -> Point:
    x, y, z = (float(part) for part in parts)
    return x, y, z
