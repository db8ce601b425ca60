"""The figure of signs and conventions, drawn from `ScanGeometry` itself.

To draw it anew: python -m reconstruction.draw_geometry reconstruction/geometry.png
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibration.geometry import Geometry
from reconstruction.scan_geometry import ScanGeometry
from reconstruction.volume import Grid

GEOMETRY = Geometry(source_to_detector_mm=150.0, source_to_object_mm=100.0, pitch_mm=10.0, rows=5, cols=8)
GRID = Grid(shape=(3, 4, 4), voxel_mm=10.0)
POINT_MM = np.array([15.0, -15.0, 10.0])
"""The centre of the voxel (2, 0, 3), which throws the shadow."""
TURN_DEG = 35.0
SOURCE, DETECTOR, OBJECT, RAY = "C3", "C0", "C2", "0.45"


def draw(path: str | Path) -> Path:
    """Write the figure; the ending of the name says which kind of picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 8.6), layout="constrained")
    places = figure.add_gridspec(2, 2, width_ratios=[1.15, 1])
    _draw_frame(figure.add_subplot(places[:, 0], projection="3d"))
    _draw_from_above(figure.add_subplot(places[0, 1]))
    _draw_detector(figure.add_subplot(places[1, 1]))
    figure.savefig(path, dpi=110)
    return Path(path)


def _pixel_mm(scan: ScanGeometry, row: float, col: float) -> NDArray[np.float64]:
    """Return where a pixel's centre is at the first view; half numbers are its edges."""
    return scan.detector_mm[0] + (col - (scan.cols - 1) / 2) * scan.u_mm[0] + (row - (scan.rows - 1) / 2) * scan.v_mm[0]


def _outline_mm(scan: ScanGeometry) -> NDArray[np.float64]:
    """Return the corners of the detector, once round: (5, 3)."""
    low, top, last = -0.5, scan.rows - 0.5, scan.cols - 0.5
    return np.stack([_pixel_mm(scan, r, c) for r, c in ((low, low), (low, last), (top, last), (top, low), (low, low))])


def _shadow(scan: ScanGeometry, point_mm: ArrayLike) -> tuple[float, float]:
    """Return the column and the row on which the shadow of a point falls at the first view."""
    a, b, c = scan.matrices()[0] @ np.append(point_mm, 1.0)
    return a / c, b / c


def _draw_frame(axes: Any) -> None:
    """Draw the whole scanner at angle 0, from the front, the right and above."""
    scan = ScanGeometry.circular(GEOMETRY, 0.0)
    source, pitch = scan.source_mm[0], GEOMETRY.pitch_mm
    for axis, name in zip(np.eye(3) * 48, "xyz", strict=True):
        axes.quiver(0, 0, 0, *axis, color="k", lw=1, arrow_length_ratio=0.12)
        axes.text(*(1.12 * axis), name, fontsize=13, weight="bold")
    _draw_box(axes)
    axes.scatter(*source, color=SOURCE, s=60)
    axes.text(*(source + np.array([6, 0, -13])), "source at -y", color=SOURCE, ha="center")
    for row in range(GEOMETRY.rows + 1):
        ends = np.stack([_pixel_mm(scan, row - 0.5, -0.5), _pixel_mm(scan, row - 0.5, GEOMETRY.cols - 0.5)])
        axes.plot(*ends.T, color=DETECTOR, lw=0.6)
    for col in range(GEOMETRY.cols + 1):
        ends = np.stack([_pixel_mm(scan, -0.5, col - 0.5), _pixel_mm(scan, GEOMETRY.rows - 0.5, col - 0.5)])
        axes.plot(*ends.T, color=DETECTOR, lw=0.6)
    first = _pixel_mm(scan, 0, 0)
    axes.scatter(*first, color=DETECTOR, marker="s", s=40)
    axes.text(*(first - np.array([2, 0, 3.1 * pitch])), "row 0, column 0", color=DETECTOR, ha="center")
    for step, name in ((scan.u_mm[0], "u"), (scan.v_mm[0], "v")):
        axes.quiver(*first, *(2.6 * step), color=DETECTOR, lw=2.5, arrow_length_ratio=0.3)
        axes.text(*(first + 3.2 * step), name, color=DETECTOR, fontsize=13, weight="bold")
    col, row = _shadow(scan, POINT_MM)
    met = _pixel_mm(scan, row, col)
    axes.plot(*np.stack([source, POINT_MM, met]).T, color=RAY, lw=1)
    axes.scatter(*np.stack([POINT_MM, met]).T, color=[OBJECT, "k"], s=[50, 30], depthshade=False)
    turn = np.deg2rad(np.linspace(0, 55, 30))
    around = np.stack([80 * np.sin(turn), -80 * np.cos(turn), np.zeros_like(turn)])
    axes.plot(*around, color=SOURCE, lw=1.2, ls="--")
    axes.quiver(*around[:, -2], *(4 * (around[:, -1] - around[:, -2])), color=SOURCE, arrow_length_ratio=0.6)
    axes.text(*(around[:, 16] + np.array([12, -6, -4])), "angle > 0", color=SOURCE)
    axes.set_box_aspect((1, 1.7, 0.9), zoom=1.2)
    axes.set(xlim=(-50, 50), ylim=(-100, 75), zlim=(-40, 50))
    axes.view_init(elev=24, azim=-38)
    axes.set_axis_off()
    axes.set_title("the frame is fixed to the object; angle 0", y=0.92)


def _draw_box(axes: Any) -> None:
    """Draw the volume, and name its first and one other voxel."""
    z, y, x = GRID.axes_mm()
    half = GRID.voxel_mm / 2
    low = np.array([x[0], y[0], z[0]]) - half
    high = np.array([x[-1], y[-1], z[-1]]) + half
    corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    for start in corners:
        for end in corners:
            if (end - start).sum() == 1 and np.abs(end - start).sum() == 1:
                axes.plot(*np.where([start, end], high, low).T, color=OBJECT, lw=1)
    axes.scatter(x[0], y[0], z[0], color=OBJECT, marker="x")
    axes.text(x[0] - 4, y[0] - 4, z[0] - 21, "voxel [0, 0, 0]\n(z, y, x)", color=OBJECT, ha="center")
    axes.text(*(POINT_MM + np.array([-16, -16, 9])), "voxel [2, 0, 3]", color=OBJECT, ha="center")


def _draw_from_above(axes: Any) -> None:
    """Draw two angles as seen from +z, and what a shift of the camera does."""
    for degrees, alpha in ((0.0, 1.0), (TURN_DEG, 0.55)):
        scan = ScanGeometry.circular(GEOMETRY, np.deg2rad(degrees))
        source, outline = scan.source_mm[0], _outline_mm(scan)
        axes.plot(*source[:2], "o", color=SOURCE, alpha=alpha)
        axes.plot(*outline[:2, :2].T, color=DETECTOR, lw=3, alpha=alpha)
        for corner in outline[:2]:
            axes.plot(*np.stack([source, corner])[:, :2].T, color=RAY, lw=0.7, alpha=alpha)
        first, last = _pixel_mm(scan, 0, 0), _pixel_mm(scan, 0, scan.cols - 1)
        axes.annotate("", last[:2], first[:2], arrowprops={"arrowstyle": "->", "color": DETECTOR, "alpha": alpha})
        axes.text(*(1.1 * last[:2] + np.array([3, -2])), "u", color=DETECTOR, weight="bold", alpha=alpha)
        axes.text(*(source[:2] + np.array([5, -4])), f"source, {degrees:g}°", color=SOURCE, alpha=alpha)
    shifted = ScanGeometry.circular(GEOMETRY, 0.0, shifts_mm=20.0)
    outline = _outline_mm(shifted) + np.array([0, 6, 0])
    axes.plot(*outline[:2, :2].T, color=DETECTOR, lw=1.5, ls=":")
    axes.text(*(outline[1, :2] + np.array([4, -1])), "shift > 0", color=DETECTOR)
    radius, turn = GEOMETRY.source_to_object_mm, np.deg2rad(np.linspace(4, TURN_DEG - 4, 20))
    axes.plot(radius * np.sin(turn), -radius * np.cos(turn), "--", color=SOURCE, lw=1)
    _, y, x = GRID.axes_mm()
    half = GRID.voxel_mm / 2
    low, high = x[0] - half, x[-1] + half
    axes.plot([low, high, high, low, low], [y[0] - half] * 2 + [y[-1] + half] * 2 + [y[0] - half], color=OBJECT)
    for end, name in (((34, 0), "x"), ((0, 34), "y")):
        axes.annotate("", end, (0, 0), arrowprops={"arrowstyle": "->"})
        axes.text(*(np.array(end) + 2), name, weight="bold")
    axes.plot(*POINT_MM[:2], "o", color=OBJECT)
    axes.set(aspect="equal", title="from above (from +z): positive angles run counter-clockwise", xlim=(-115, 115))
    axes.set_axis_off()


def _draw_detector(axes: Any) -> None:
    """Draw the detector as the source sees it, with the shadow where the projection matrix puts it."""
    scan = ScanGeometry.circular(GEOMETRY, 0.0)
    axes.set_xticks(np.arange(-0.5, scan.cols), minor=True)
    axes.set_yticks(np.arange(-0.5, scan.rows), minor=True)
    axes.grid(which="minor", color=DETECTOR, lw=0.6)
    axes.tick_params(which="minor", length=0)
    axes.set(xlim=(-0.5, scan.cols - 0.5), ylim=(-0.5, scan.rows - 0.5), aspect="equal")
    axes.set(xlabel="column, along u", ylabel="row, along v", xticks=range(scan.cols), yticks=range(scan.rows))
    axes.plot(0, 0, "s", color=DETECTOR)
    axes.plot((scan.cols - 1) / 2, (scan.rows - 1) / 2, "+", color="k", ms=12)
    axes.text((scan.cols - 1) / 2 + 0.12, (scan.rows - 1) / 2 - 0.38, "detector_mm", fontsize=9)
    col, row = _shadow(scan, POINT_MM)
    axes.plot(col, row, "o", color="k")
    axes.annotate(
        f"shadow of voxel [2, 0, 3]\n(a / c, b / c) = ({col:.2f}, {row:.2f})",
        (col, row),
        (1.2, 3.6),
        arrowprops={"arrowstyle": "->"},
        va="center",
        ha="center",
    )
    _outline_rolled(axes, scan)
    axes.set_title("as the source sees it: row 0 is the lowest; roll > 0 dotted")


def _outline_rolled(axes: Any, scan: ScanGeometry) -> None:
    """Draw the outline of a detector that is rolled by 5 degrees, in pixels of the straight one."""
    from dataclasses import replace

    rolled = ScanGeometry.circular(replace(GEOMETRY, roll_rad=np.deg2rad(5.0)), 0.0)
    away = _outline_mm(rolled) - scan.detector_mm[0]
    pixels = away @ np.stack([scan.u_mm[0], scan.v_mm[0]], axis=1) / GEOMETRY.pitch_mm**2
    centre = (scan.cols - 1) / 2, (scan.rows - 1) / 2
    axes.plot(*(pixels + centre).T, ":", color="C4", clip_on=False)


if __name__ == "__main__":
    draw(sys.argv[1])
