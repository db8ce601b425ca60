"""What stands over the picture of a cut, in words and mm: title, directions, crosshair, legend, outlines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibration.attenuation import MG_ML_PER_G_CM3
from gui.volume.annotations import Annotation, measured
from gui.volume.looks import GreyLook, MaterialLook, dimmed, map_table, rounded
from gui.volume.regions import in_polygon, seen_on
from gui.volume.reshaping import handles_mm
from gui.volume.slicing import Cut, Point, axis_of, crossing_mm, index_of, reach_of
from reconstruction.volume import Grid

NEAR_SLICES = 0.5
"""A drawing shows on the slices it was drawn on, and as far as it reaches; this far at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LegendRow:
    """One bar of a legend: its name, the ends of its scale for people, and colours from one end to the other."""

    name: str
    low: str
    high: str
    colours: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outline:
    """A drawing as this pane shows it: (n, 2) float64, mm in its picture, and where it can be taken hold of."""

    points_mm: NDArray[np.float64]
    text: str
    is_chosen: bool = False
    name: str = ""
    handles_mm: NDArray[np.float64] | None = None

    def nearest_handle(self, at_mm: tuple[float, float], within_mm: float) -> int | None:
        """Return the number of the handle at a place, None where there is none."""
        if self.handles_mm is None or not len(self.handles_mm):
            return None
        away_mm = np.hypot(*(self.handles_mm - at_mm).T)
        return int(np.argmin(away_mm)) if away_mm.min() <= within_mm else None

    def is_on_line(self, at_mm: tuple[float, float], within_mm: float) -> bool:
        """Whether a place lies on its line, or as near as that."""
        start, way = self.points_mm[:-1], np.diff(self.points_mm, axis=0)
        squared = np.maximum((way**2).sum(axis=1), 1e-30)
        share = np.clip(((at_mm - start) * way).sum(axis=1) / squared, 0, 1)
        return bool(np.hypot(*(start + share[:, None] * way - at_mm).T).min() <= within_mm)

    def holds(self, at_mm: tuple[float, float]) -> bool:
        """Whether a place lies inside, where it is closed."""
        is_closed = np.allclose(self.points_mm[0], self.points_mm[-1])
        x, y = (np.array([part]) for part in at_mm)
        return is_closed and bool(in_polygon(x, y, self.points_mm)[0])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Overlay:
    """What stands over the picture.

    Attributes
    ----------
    title : str
        Which cut, and where it stands.
    directions : (left, right, below, above)
        What lies that way: "−x".
    cross_mm : (right, up) or None
    slant_mm : (point, direction) or None
        Where a slanted cut crosses this one.
    """

    title: str = ""
    directions: tuple[str, str, str, str] = ("", "", "", "")
    cross_mm: tuple[float, float] | None = None
    slant_mm: tuple[tuple[float, float], tuple[float, float]] | None = None
    legend: tuple[LegendRow, ...] = ()
    outlines: tuple[Outline, ...] = ()
    is_scale_known: bool = True
    colour: str = "#ffffff"
    note: str = ""


def rgb(colour: Sequence[float]) -> tuple[int, int, int]:
    """Return a colour of 0 to 1 in steps of 1/255."""
    red, green, blue = (round(255 * part) for part in colour)
    return red, green, blue


def title_of(cut: Cut, grid: Grid) -> str:
    """Return which cut it is, and where it stands: "axial   z = 1.25 mm   slice 12 of 200", from 1."""
    orientation, unit = axis_of(cut), "mm" if grid.is_scale_known else "voxels"
    n_slices = 2 * reach_of(cut.thickness_mm, grid.voxel_mm) + 1
    slab = f"   {cut.slab.value} of {rounded(n_slices * grid.voxel_mm, 2)} {unit}" if n_slices > 1 else ""
    if orientation is None:
        x, y, z = cut.normal
        return f"slanted   normal ({x:.2f}, {y:.2f}, {z:.2f}){slab}"
    axis = orientation.axis
    number = int(np.floor(index_of(grid, cut.centre_mm)[axis] + 0.5)) + 1
    at_mm = cut.centre_mm[2 - axis]
    return (
        f"{orientation.label}   {orientation.letter} = {at_mm:.2f} {unit}   slice {number} of {grid.shape[axis]}{slab}"
    )


def directions_of(cut: Cut) -> tuple[str, str, str, str]:
    """Return what lies to the left and right, below and above: "−x", "+x"; of a slanted side, its largest part."""
    right, up = _named(cut.right), _named(cut.up)
    return _opposite(right), right, _opposite(up), up


def _named(side: Sequence[float]) -> str:
    n = int(np.argmax(np.abs(side)))
    about = "" if abs(side[n]) > 1 - 1e-6 else "≈"
    return f"{about}{'+' if side[n] > 0 else '−'}{'xyz'[n]}"


def _opposite(name: str) -> str:
    return name.translate(str.maketrans("+−", "−+"))


def legend_of(looks: Sequence[MaterialLook] | GreyLook, unit: str, title: str) -> tuple[LegendRow, ...]:
    """Return a bar per visible material in mg/mL, or one for a grey view in its unit."""
    if isinstance(looks, GreyLook):
        low, high = (rounded(level) for level in looks.levels)
        colours = tuple((int(r), int(g), int(b)) for r, g, b in map_table(looks.map_name)[::17])
        suffix = "" if unit in ("", "1") else f" {unit}"
        return (LegendRow(name=title, low=low, high=high + suffix, colours=colours),)
    return tuple(
        LegendRow(
            name=look.material,
            low=rounded(look.low_g_cm3 * MG_ML_PER_G_CM3),
            high=f"{rounded(look.high_g_cm3 * MG_ML_PER_G_CM3)} mg/mL",
            colours=((0, 0, 0), rgb(dimmed(look))),
        )
        for look in looks
        if look.is_visible and look.opacity > 0
    )


def outlines_of(cut: Cut, drawings: Sequence[Annotation], grid: Grid, chosen: str = "") -> tuple[Outline, ...]:
    """Return the drawings that a cut shows: made on a plane like it, and no further off than they reach.

    A sphere shows as the circle that the cut makes of it, on cuts of every kind.
    """
    normal = cut.normal
    height_mm = float(np.dot(cut.centre_mm, normal))
    near_mm = NEAR_SLICES * grid.voxel_mm + cut.thickness_mm / 2
    found = []
    for drawing in drawings:
        if drawing.tool.label == "sphere":
            flat = _circle(drawing, cut)
        elif drawing in tuple(seen_on([drawing], cut.right, cut.up)):
            off_mm = abs(float(np.mean([np.dot(point, normal) for point in drawing.points_mm])) - height_mm)
            flat = _flat(drawing, cut) if off_mm <= near_mm + drawing.thickness_mm / 2 + 1e-9 else None
        else:
            flat = None
        if flat is not None:
            text = measured(drawing) or drawing.name
            found.append(
                Outline(
                    points_mm=flat,
                    text=text,
                    is_chosen=drawing.name == chosen,
                    name=drawing.name,
                    handles_mm=handles_mm(drawing, cut) if drawing.name == chosen else None,
                )
            )
    return tuple(found)


def _circle(sphere: Annotation, cut: Cut) -> NDArray[np.float64] | None:
    centre = sphere.points_mm[0]
    off_mm = float(np.dot(np.array(centre) - cut.centre_mm, cut.normal))
    if abs(off_mm) >= sphere.radius_mm:
        return None
    radius_mm = np.sqrt(sphere.radius_mm**2 - off_mm**2)
    around = np.linspace(0, 2 * np.pi, 65)
    return np.array(cut.plane_mm(centre)) + radius_mm * np.stack([np.cos(around), np.sin(around)], axis=1)


def _flat(drawing: Annotation, cut: Cut) -> NDArray[np.float64]:
    """Return an outline in the picture of a cut that lies like the drawing's plane, but may be turned in it."""
    own = drawing.outline_mm()
    points = own[:, :1] * np.array(drawing.right) + own[:, 1:] * np.array(drawing.up)
    return np.stack([points @ np.array(cut.right), points @ np.array(cut.up)], axis=1)


def overlay_of(
    cut: Cut,
    grid: Grid,
    *,
    cross: Point | None = None,
    slant: Cut | None = None,
    legend: tuple[LegendRow, ...] = (),
    drawings: Sequence[Annotation] = (),
    chosen: str = "",
) -> Overlay:
    """Return what stands over the picture of a cut."""
    return Overlay(
        title=title_of(cut, grid),
        directions=directions_of(cut),
        cross_mm=None if cross is None else cut.plane_mm(cross),
        slant_mm=None if slant is None else crossing_mm(cut, slant),
        legend=legend,
        outlines=outlines_of(cut, drawings, grid, chosen),
        is_scale_known=grid.is_scale_known,
    )
