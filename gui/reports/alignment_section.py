"""What the report of a calibration tells of the places of source and detector: in mm, degrees and pixels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from calibration.alignment import PARAMETERS, Alignment
from calibration.geometry import TILTS, Geometry
from calibration.store import Calibration
from gui.reports.page import SERIES, figure_of, label, legend, plots, soft, svg, table

_WORDS: Mapping[str, str] = {"roll_rad": "roll", "tilt_u_rad": "tilt about u", "tilt_v_rad": "tilt about v"}


def alignment(calibration: Calibration) -> str:
    """Tell where source and detector are, with standard errors; nothing where they were not looked for."""
    record = calibration.alignment
    if record is None:
        return ""
    geometry = record.geometry
    rows = (
        _row(geometry, name, error)
        for name, error in zip(record.parameters, record.standard_errors.tolist(), strict=True)
    )
    kept = ", ".join(_words(name) for name in PARAMETERS if name not in record.parameters)
    head = ("", "value", "standard error", "unit", "value, pixels", "standard error, pixels")
    return (
        soft(
            f"By {record.method}, {record.n_views} views. Residual: {figure_of(record.residual_rms_px, '.4f')} pixels "
            f"({figure_of(1000 * record.residual_rms_px * geometry.pitch_mm, '.2f')} \N{MICRO SIGN}m on the detector) "
            f"rms. Magnification {geometry.magnification:.5f}."
            + (f" Not looked for, and left as it was: {kept}." if kept else "")
        )
        + svg(alignment_figure(record), "The detector, the shadow of the rotation axis, and the standard errors")
        + table(head, rows)
        + soft(
            "Pixels of an angle: how far the detector's edge moves. Pixels of a distance: how far its error moves a "
            "shadow at the detector's edge."
        )
    )


def alignment_figure(record: Alignment) -> Figure:
    """Draw where on the detector the axis of rotation throws its shadow, and the standard errors in pixels."""
    figure, (seen, errors) = plots(2, n_cols=2, height_in=3.2)
    _draw_axis(seen, record.geometry)
    shifts_px = [
        _pixels(record.geometry, name, error)
        for name, error in zip(record.parameters, record.standard_errors.tolist(), strict=True)
    ]
    errors.barh(np.arange(len(shifts_px)), shifts_px, color=SERIES[0], height=0.6)
    errors.set_yticks(range(len(shifts_px)), [_words(name) for name in record.parameters])
    errors.invert_yaxis()
    label(errors, "standard errors", "pixels", "")
    return figure


def _draw_axis(axes: Axes, geometry: Geometry) -> None:
    half_u, half_v = geometry.cols / 2, geometry.rows / 2
    corners = [(-half_u, -half_v), (half_u, -half_v), (half_u, half_v), (-half_u, half_v)]
    axes.add_patch(Polygon(corners, closed=True, fill=False, edgecolor="#b0b0b0", label="detector"))
    height_mm = half_v * geometry.pitch_mm / geometry.magnification
    foot = geometry.views(0.0).shadows_px([(0, 0, z) for z in (-height_mm, 0, height_mm)])[0]
    axes.plot(foot[:, 0], foot[:, 1], color=SERIES[0], linewidth=1.4, label="axis of rotation")
    axes.plot(*foot[1], "o", color=SERIES[4], markersize=5, label="ray at a right angle to it")
    for line in (axes.axvline, axes.axhline):
        line(0, color="#b0b0b0", linewidth=0.7, linestyle=(0, (4, 3)))
    axes.set_aspect("equal")
    legend(axes, "beside")
    label(axes, "shadows on the detector, from its centre", "columns", "rows")


def _row(geometry: Geometry, name: str, error: float) -> tuple[str, ...]:
    value, is_angle = float(getattr(geometry, name)), name in TILTS
    shown, shown_error = (np.rad2deg(part) if is_angle else part for part in (value, error))
    is_distance = name.startswith("source")
    return (
        _words(name), figure_of(shown, "z.4f"), figure_of(shown_error, ".2g"), "°" if is_angle else "mm",
        "-" if is_distance else figure_of(_pixels(geometry, name, value), "z.3f"),
        figure_of(_pixels(geometry, name, error), ".2g"),
    )  # fmt: skip


def _pixels(geometry: Geometry, name: str, amount: float) -> float:
    """Return what so much of a parameter moves on the detector, at its edge where places differ."""
    half_px = max(geometry.rows, geometry.cols) / 2
    if name in TILTS:
        return half_px * amount
    if name.startswith("offset"):
        return amount / geometry.pitch_mm
    return half_px * amount / float(getattr(geometry, name))


def _words(name: str) -> str:
    return _WORDS.get(name, name.removesuffix("_mm").replace("_", " "))
