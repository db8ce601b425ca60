"""What a person draws into a volume: regions, rulers, angles, areas; and the file beside the volume that keeps them.

Every drawing is a few points in mm and the plane it was drawn on, so that it stays where it is whatever is shown.

# Ref: area of a polygon: the shoelace formula.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.whole_file import whole_file
from firmware_iface.errors import BadFile
from gui.volume.looks import rounded
from gui.volume.slicing import Direction, Point

FORMAT = "mpxct annotations"
FORMAT_VERSION = 1


class Tool(Enum):
    """What can be drawn: its name, how many points it takes (None: as many as one likes), and how to draw it."""

    SPHERE = ("sphere", 2, "Press at the middle and drag to the surface.")
    CYLINDER = ("cylinder", 2, "Press at the middle and drag to the wall; it stands upright on the plane.")
    BOX = ("box", 2, "Press at one corner and drag to the opposite one.")
    FREEHAND = ("freehand", None, "Draw along the edge; it closes by itself.")
    RULER = ("ruler", 2, "Press at one end and drag to the other.")
    ANGLE = ("angle", 3, "Click at a point on one leg, at the apex, and at a point on the other leg.")
    AREA = ("area", None, "Draw along the edge; it closes by itself.")

    def __init__(self, label: str, n_points: int | None, how: str) -> None:
        self.label, self.n_points, self.how = label, n_points, how

    @property
    def is_region(self) -> bool:
        """Whether it holds voxels, over which there is a mean."""
        return self in (Tool.SPHERE, Tool.CYLINDER, Tool.BOX, Tool.FREEHAND)


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """One drawing.

    Attributes
    ----------
    points_mm : tuple of Point
        Sphere and cylinder: the middle, and a point of the surface; box: two corners; angle: its apex is the second.
    right, up : Direction
        Of the plane on which it was drawn.
    thickness_mm : float
        How far cylinder, box and freehand region reach along the plane's normal, half of it to either side.
    """

    tool: Tool
    name: str
    points_mm: tuple[Point, ...]
    right: Direction
    up: Direction
    thickness_mm: float = 0.0

    def __post_init__(self) -> None:
        least = self.tool.n_points or 3
        if len(self.points_mm) < least or (self.tool.n_points and len(self.points_mm) > least):
            raise ValueError(f"{self.tool.label} of {len(self.points_mm)} points; allowed: {least}")
        if not np.isfinite([*self.points_mm, self.right, self.up]).all():
            raise ValueError(f"{self.tool.label} {self.name!r} holds what is no number")
        if not (self.thickness_mm >= 0 and math.isfinite(self.thickness_mm)):
            raise ValueError(f"thickness_mm is {self.thickness_mm}; allowed: 0 or more")

    @property
    def radius_mm(self) -> float:
        """From the first point to the second."""
        return math.dist(self.points_mm[0], self.points_mm[1])

    def flat_mm(self) -> NDArray[np.float64]:
        """Return the points in the picture of its plane, and their height over it: (n, 3) float64."""
        axes = np.array([self.right, self.up, np.cross(self.right, self.up)])
        return np.array(self.points_mm) @ axes.T

    def outline_mm(self, n_points: int = 64) -> NDArray[np.float64]:
        """Return the line that is drawn in the picture of its plane: (n, 2) float64; regions and areas close."""
        flat = self.flat_mm()[:, :2]
        if self.tool in (Tool.SPHERE, Tool.CYLINDER):
            around = np.linspace(0, 2 * np.pi, n_points + 1)
            return flat[0] + self.radius_mm * np.stack([np.cos(around), np.sin(around)], axis=1)
        if self.tool is Tool.BOX:
            (a, b), (c, d) = flat
            return np.array([(a, b), (c, b), (c, d), (a, d), (a, b)])
        return flat if self.tool in (Tool.RULER, Tool.ANGLE) else np.concatenate([flat, flat[:1]])


def measured(drawing: Annotation) -> str:
    """Return what a drawing measures by itself: "12.3 mm", "45.0°", "3.1 mm2"; empty for regions."""
    if drawing.tool is Tool.RULER:
        return f"{rounded(length_mm(drawing))} mm"
    if drawing.tool is Tool.ANGLE:
        return f"{angle_deg(drawing):.1f}°"
    if drawing.tool is Tool.AREA:
        return f"{rounded(area_mm2(drawing))} mm²"
    return ""


def length_mm(drawing: Annotation) -> float:
    """Return the way along its points."""
    return sum(math.dist(a, b) for a, b in zip(drawing.points_mm, drawing.points_mm[1:], strict=False))


def angle_deg(drawing: Annotation) -> float:
    """Return the angle at its second point, 0 to 180; 0 where two points fall together."""
    first, apex, last = (np.array(point) for point in drawing.points_mm)
    across = float(np.linalg.norm(np.cross(first - apex, last - apex)))
    return math.degrees(math.atan2(across, float((first - apex) @ (last - apex))))


def area_mm2(drawing: Annotation) -> float:
    """Return the area that its points enclose."""
    x, y, _ = drawing.flat_mm().T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def next_name(tool: Tool, drawings: Sequence[Annotation]) -> str:
    """Return a name that none has yet: "sphere 3"."""
    taken = {drawing.name for drawing in drawings}
    return next(name for n in range(1, len(taken) + 2) if (name := f"{tool.label} {n}") not in taken)


def side_file(volume: Path) -> Path:
    """Return where the drawings of a volume are kept."""
    return volume.with_name(f"{volume.stem}.annotations.json")


def save(drawings: Sequence[Annotation], path: Path) -> Path:
    """Write drawings as JSON; the file appears when it is whole."""
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, "units": "mm", "drawings": [*map(_plain, drawings)]}
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    return path


def load(path: Path) -> tuple[Annotation, ...]:
    """Read drawings; none where there is no file. What is no such file is refused."""
    if not path.is_file():
        return ()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT or content["format_version"] > FORMAT_VERSION:
            raise ValueError(f"it is {content['format']} {content['format_version']}")
        return tuple(_drawing(entry) for entry in content["drawings"])
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise BadFile(
            f"{path} holds no annotations that can be read: {error}", hint="move it away; a new one is begun then"
        ) from error


def _plain(drawing: Annotation) -> dict[str, Any]:
    return {
        "tool": drawing.tool.label,
        "name": drawing.name,
        "points_mm": [list(point) for point in drawing.points_mm],
        "right": list(drawing.right),
        "up": list(drawing.up),
        "thickness_mm": drawing.thickness_mm,
        "measured": measured(drawing),
    }


def _drawing(entry: dict[str, Any]) -> Annotation:
    tools = {tool.label: tool for tool in Tool}
    return Annotation(
        tool=tools[entry["tool"]],
        name=str(entry["name"]),
        points_mm=tuple(_triple(point) for point in entry["points_mm"]),
        right=_triple(entry["right"]),
        up=_triple(entry["up"]),
        thickness_mm=float(entry["thickness_mm"]),
    )


def _triple(parts: Sequence[float]) -> Point:
    x, y, z = map(float, parts)
    return x, y, z
