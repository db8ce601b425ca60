"""What is written over a volume: its box in mm, the axes, a scale bar, and which colour is which material."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pyqtgraph.Qt import QtCore, QtGui

from calibration.attenuation import MG_ML_PER_G_CM3
from gui.colour import Colour
from gui.volume.camera import Camera
from gui.volume.looks import rounded

AXES = (("x", "#d55e00"), ("y", "#009e73"), ("z", "#56b4e9"))
CUBE = 2.3
"""Half an edge of the cube of directions, in letters' sizes."""
LEAST_FACE = 0.05
"""A face of it that is seen flatter than this (the cosine) is left out."""
NICE = (1.0, 2.0, 5.0)
BAR_SHARE = 0.2
"""A scale bar is at most so long, in shares of the picture's width."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A line of the legend."""

    name: str
    colour: Colour
    low_g_cm3: float
    high_g_cm3: float

    @property
    def text(self) -> str:
        """Name and window, in mg/mL; nobody reads more than two digits of it from a colour."""
        low, high = (_short(MG_ML_PER_G_CM3 * value) for value in (self.low_g_cm3, self.high_g_cm3))
        return f"{self.name}  {low} to {high} mg/mL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """What is written; the corners are those of the volume in mm.

    Attributes
    ----------
    note : str
        Of how the picture is made, for the lower right corner.
    is_scale_known : bool
        False where a voxel has no size in mm.
    """

    low_mm: tuple[float, float, float]
    high_mm: tuple[float, float, float]
    legend: tuple[Entry, ...] = ()
    note: str = ""
    is_dark: bool = True
    is_scale_known: bool = True

    @property
    def unit(self) -> str:
        """Of lengths."""
        return "mm" if self.is_scale_known else "voxels"

    @property
    def ink(self) -> QtGui.QColor:
        """Colour of lines and letters."""
        return QtGui.QColor("#e6e8eb" if self.is_dark else "#1b1f24")


def bar_mm(mm_per_pixel: float, width: int) -> float:
    """Return the longest length of 1, 2 or 5 times a power of ten that is within its share of a picture."""
    most_mm = BAR_SHARE * width * mm_per_pixel
    power = 10.0 ** np.floor(np.log10(most_mm))
    return max(float(power * step) for step in NICE if power * step <= most_mm)


def box_edges(low_mm: Sequence[float], high_mm: Sequence[float]) -> NDArray[np.float64]:
    """Return the twelve edges of a box: (12, 2, 3), x, y, z in mm."""
    corners = np.array([low_mm, high_mm], dtype=np.float64)
    edges = []
    for axis in range(3):
        others = [other for other in range(3) if other != axis]
        for first in (0, 1):
            for second in (0, 1):
                edge = np.empty((2, 3))
                edge[:, axis] = corners[:, axis]
                edge[:, others[0]], edge[:, others[1]] = corners[first, others[0]], corners[second, others[1]]
                edges.append(edge)
    return np.array(edges)


def near_edges(low_mm: Sequence[float], high_mm: Sequence[float], camera: Camera) -> NDArray[np.bool_]:
    """Return which of `box_edges` lie before the box as it is seen: both their faces are turned to the camera."""
    eye = camera.eye_mm()
    low, high = np.asarray(low_mm), np.asarray(high_mm)
    is_seen = np.stack([eye < low, eye > high])
    found = [
        is_seen[first, others[0]] and is_seen[second, others[1]]
        for others in ([other for other in range(3) if other != axis] for axis in range(3))
        for first in (0, 1)
        for second in (0, 1)
    ]
    return np.array(found)


def letter_size(width: int, height: int) -> float:
    """Return the size of letters in a picture of this size, in its pixels; it grows slower than the picture."""
    return 10 * max(min(width, height) / 600, 0.7) ** 0.7


def face_at(x: float, y: float, width: int, height: int, camera: Camera) -> str:
    """Return the face of the cube of directions at a place in a picture: "+x" and so on; empty beside it."""
    size = letter_size(width, height)
    x0, y0 = cube_middle(height, size)
    right, up = (x - x0) / (CUBE * size), (y0 - y) / (CUBE * size)
    for name, corners in cube_faces(camera):
        ahead = np.roll(corners, -1, axis=0) - corners
        to = np.array([right, up]) - corners
        if (ahead[:, 0] * to[:, 1] - ahead[:, 1] * to[:, 0] > 0).all():
            return name
    return ""


def paint_labels(painter: QtGui.QPainter, width: int, height: int, camera: Camera, labels: Labels) -> None:
    """Write everything over a picture of this size, in the painter's pixels."""
    painter.setRenderHints(QtGui.QPainter.RenderHint.Antialiasing | QtGui.QPainter.RenderHint.TextAntialiasing)
    size = letter_size(width, height)
    font = QtGui.QFont(painter.font())
    font.setPixelSize(round(1.3 * size))
    painter.setFont(font)
    pen = QtGui.QPen(labels.ink)
    pen.setWidthF(size / 7)
    painter.setPen(pen)
    _paint_scale(painter, width, height, camera, labels, size)
    _paint_axes(painter, height, camera, labels, size)
    _paint_legend(painter, labels, size)
    painter.setPen(labels.ink)
    flags = QtCore.Qt.AlignmentFlag.AlignRight | QtCore.Qt.AlignmentFlag.AlignTop
    painter.drawText(QtCore.QRectF(0, 0.8 * size, width - size, 3 * size), flags, _size_text(labels))


def paint_box(painter: QtGui.QPainter, width: int, height: int, camera: Camera, labels: Labels) -> None:
    """Draw the edges of the volume, where nothing else does."""
    edges = box_edges(labels.low_mm, labels.high_mm)
    radius_mm = float(np.linalg.norm(np.subtract(labels.high_mm, labels.low_mm)))
    points = camera.pixels_of(edges.reshape(-1, 3), width, height, radius_mm).reshape(-1, 2, 2)
    colour = QtGui.QColor(labels.ink)
    colour.setAlphaF(0.35)
    painter.setRenderHint(QtGui.QPainter.RenderHint.Antialiasing)
    painter.setPen(QtGui.QPen(colour, 1.0))
    for (x0, y0), (x1, y1) in points:
        painter.drawLine(QtCore.QPointF(x0, y0), QtCore.QPointF(x1, y1))


def _size_text(labels: Labels) -> str:
    x, y, z = np.subtract(labels.high_mm, labels.low_mm)
    return f"{x:.4g} × {y:.4g} × {z:.4g} {labels.unit}"


def _paint_scale(painter: QtGui.QPainter, width: int, height: int, camera: Camera, labels: Labels, size: float) -> None:
    mm_per_pixel = camera.mm_per_pixel(width, height)
    length_mm = bar_mm(mm_per_pixel, width)
    length, x, y = length_mm / mm_per_pixel, width - 1.2 * size, height - 1.4 * size
    painter.drawLine(QtCore.QPointF(x - length, y), QtCore.QPointF(x, y))
    for end in (x - length, x):
        painter.drawLine(QtCore.QPointF(end, y - size / 3), QtCore.QPointF(end, y + size / 3))
    where = QtCore.QRectF(x - max(length, 20 * size), y - 2.4 * size, max(length, 20 * size), 2 * size)
    at_middle = "" if camera.is_orthographic else " (at the middle)"
    flags = QtCore.Qt.AlignmentFlag.AlignRight | QtCore.Qt.AlignmentFlag.AlignVCenter
    painter.drawText(where, flags, f"{length_mm:g} {labels.unit}{at_middle}")
    if labels.note:
        painter.drawText(
            QtCore.QRectF(11 * size, height - 2.4 * size, 30 * size, 2 * size),
            QtCore.Qt.AlignmentFlag.AlignLeft | QtCore.Qt.AlignmentFlag.AlignVCenter, labels.note,
        )  # fmt: skip


def cube_faces(camera: Camera) -> list[tuple[str, NDArray[np.float64]]]:
    """Return the faces of a cube that a camera far away sees: name, and corners (4, 2) right and up.

    Corners are in half edges of the cube, from the lower left one of its name's letters, counter-clockwise.
    """
    right, up, back = camera.axes()
    found = []
    for axis, (letter, _) in enumerate(AXES):
        for sign in (-1, 1):
            if sign * back[axis] < LEAST_FACE:
                continue
            normal = sign * np.eye(3)[axis]
            above = sign * np.eye(3)[1] if axis == 2 else np.eye(3)[2]
            aside = np.cross(above, normal)
            corners = [normal + u * aside + v * above for u, v in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
            found.append((f"{'+' if sign > 0 else '−'}{letter}", np.array(corners) @ np.stack([right, up], axis=1)))
    return found


def cube_middle(height: float, size: float) -> tuple[float, float]:
    """Return where the cube stands in a picture, in pixels from the upper left corner."""
    return 5.0 * size, height - 5.0 * size


def _paint_axes(painter: QtGui.QPainter, height: int, camera: Camera, labels: Labels, size: float) -> None:
    """Draw a cube that turns with the volume, each face with the direction that it looks along."""
    x, y = cube_middle(height, size)
    colours = dict(AXES)
    square = QtGui.QPolygonF([QtCore.QPointF(*at) for at in ((0, 100), (100, 100), (100, 0), (0, 0))])
    font = QtGui.QFont(painter.font())
    font.setPixelSize(56)
    font.setBold(True)
    for name, corners in cube_faces(camera):
        face = QtGui.QPolygonF([QtCore.QPointF(x + CUBE * size * u, y - CUBE * size * v) for u, v in corners])
        colour = QtGui.QColor(colours[name[-1]])
        painter.setPen(QtGui.QPen(colour, size / 6))
        fill = QtGui.QColor("#14171b" if labels.is_dark else "#ffffff")
        fill.setAlphaF(0.75)
        painter.setBrush(fill)
        painter.drawPolygon(face)
        painter.setBrush(QtCore.Qt.BrushStyle.NoBrush)
        onto = QtGui.QTransform()
        if not QtGui.QTransform.quadToQuad(square, face, onto):  # pyright: ignore[reportCallIssue, reportArgumentType]
            continue
        painter.save()
        painter.setTransform(onto, True)
        letters = QtGui.QPainterPath()
        letters.addText(0, 0, font, name)
        middle = letters.boundingRect().center()
        letters.translate(50 - middle.x(), 50 - middle.y())
        painter.fillPath(letters, colour if labels.is_dark else colour.darker(125))
        painter.restore()


def _paint_legend(painter: QtGui.QPainter, labels: Labels, size: float) -> None:
    """Write each material after a strip from nothing to its full colour."""
    for number, entry in enumerate(labels.legend):
        y = 1.0 * size + 1.9 * size * number
        strip = QtCore.QRectF(1.2 * size, y + 0.3 * size, 5 * size, 1.0 * size)
        fade = QtGui.QLinearGradient(strip.topLeft(), strip.topRight())
        full = QtGui.QColor.fromRgbF(*entry.colour)
        clear = QtGui.QColor(full)
        clear.setAlphaF(0.0)
        fade.setColorAt(0.0, clear)
        fade.setColorAt(1.0, full)
        painter.fillRect(strip, fade)
        painter.setPen(labels.ink)
        where = QtCore.QRectF(7 * size, y, 40 * size, 1.6 * size)
        painter.drawText(where, QtCore.Qt.AlignmentFlag.AlignLeft | QtCore.Qt.AlignmentFlag.AlignVCenter, entry.text)


def _short(value: float) -> str:
    text = rounded(value, 2)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text
