"""Where the axis of rotation is, from the scan itself: where a slice is sharpest.

A slice that is reconstructed around a wrong axis smears every edge into arcs, and what is smeared has less contrast; so
the sum of its squares is greatest around the right one. Noise has the same share in all of them. Slower than opposing
rays, and less exact, but what it looks at is the picture itself. Even and odd views are judged apart: how far they
differ is the error.

# Ref: variance of the picture as a measure of its focus: F. C. A. Groen, I. T. Young, G. Ligthart 1985, Cytometry 6,
#      81.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibration.alignment import Alignment
from calibration.geometry import Geometry
from calibration.progress import Progress, finished
from firmware_iface.errors import WrongUsage
from reconstruction.fdk import fdk
from reconstruction.volume import Grid

N_ROWS = 9
"""Rows around the source's plane that are looked at."""
FURTHEST_SHARE = 0.2
"""How far from where it should be the axis is looked for, as a share of the columns, on either side. An axis
further out is not found, and nothing tells that for sure."""
STEPS_PX = (2.0, 0.5, 0.125)
"""Coarse to fine; each search goes over two steps of the one before, on either side."""
WORST_ERROR_PX = 0.25
"""Halves of the views that differ by more cannot tell."""
WINDOW = "hann"
SEEN_SHARE = 0.9
"""Of the radius that the detector covers; beyond, a slice is made of parts of views."""


def sharpest_axis(
    line_integrals: NDArray[np.floating], angles_rad: ArrayLike, nominal: Geometry
) -> Generator[Progress, None, Alignment]:
    """Find ``offset_u_mm``; all else is believed.

    Parameters
    ----------
    line_integrals : (n_views, rows, cols) float
    angles_rad : (n_views,) float
        Of a whole circle.
    nominal : Geometry

    Raises
    ------
    WrongUsage
        The two halves of the views do not agree, or the best place is at the end of the search.
    """
    angles = np.asarray(angles_rad, dtype=np.float64).ravel()
    values, thin = _middle_rows(np.asarray(line_integrals, dtype=np.float32), nominal)
    halves = [(values[None, part::2].copy(), angles[part::2]) for part in (0, 1)]
    found_px = []
    for number, (integrals, of_views) in enumerate(halves):
        yield Progress("sharpness", number, len(halves))
        found_px.append(_search(lambda px: _contrast(integrals, of_views, thin, px), nominal))  # noqa: B023
    yield Progress("sharpness", len(halves), len(halves))
    error_px = abs(found_px[1] - found_px[0]) / 2
    if error_px > WORST_ERROR_PX:
        raise WrongUsage(
            f"half of the views put the axis {found_px[0]:.2f} pixels off, the other half {found_px[1]:.2f}; "
            f"allowed: {2 * WORST_ERROR_PX:g} pixels apart",
            hint="take more views, or more counts; or align by opposing rays",
        )
    pitch_mm = nominal.pitch_mm
    return Alignment(
        geometry=replace(nominal, offset_u_mm=nominal.offset_u_mm + pitch_mm * float(np.mean(found_px))),
        parameters=("offset_u_mm",),
        standard_errors=np.array([pitch_mm * max(error_px, STEPS_PX[-1] / 10)]),
        residual_rms_px=error_px,
        method="sharpness of a slice",
        n_views=len(angles),
    )


def _middle_rows(values: NDArray[np.float32], geometry: Geometry) -> tuple[NDArray[np.float32], Geometry]:
    """Return the rows around the source's plane, and the detector that has only these."""
    middle = (geometry.rows - 1) / 2
    first = round(middle - geometry.offset_v_mm / geometry.pitch_mm) - N_ROWS // 2
    first = min(max(first, 0), max(geometry.rows - N_ROWS, 0))
    rows = values[:, first : first + N_ROWS]
    moved_mm = (first + (rows.shape[1] - 1) / 2 - middle) * geometry.pitch_mm
    return rows, replace(geometry, rows=rows.shape[1], offset_v_mm=geometry.offset_v_mm + moved_mm)


def _contrast(
    integrals: NDArray[np.float32], angles: NDArray[np.float64], geometry: Geometry, shift_px: float
) -> float:
    """Return the sum of squares of the slice in the source's plane, with the detector moved."""
    moved = replace(geometry, offset_u_mm=geometry.offset_u_mm + shift_px * geometry.pitch_mm)
    n = geometry.cols
    grid = Grid(shape=(1, n, n), voxel_mm=geometry.pitch_mm / geometry.magnification)
    across = np.arange(n) - (n - 1) / 2
    is_seen = np.hypot(*np.meshgrid(across, across)) < SEEN_SHARE * n / 2
    # The same sum for every shift: no rule that a shift could trip may change what is compared.
    work = fdk(integrals, angles, moved, grid, window=WINDOW, is_continued=False, is_one_sided=False)
    return float(np.sum(finished(work)[0, 0][is_seen] ** 2, dtype=np.float64))


def _search(contrast: Callable[[float], float], geometry: Geometry) -> float:
    """Return the shift of most contrast, in pixels: finer and finer grids, and a parabola at the end."""
    centre, reach, step = 0.0, FURTHEST_SHARE * geometry.cols, STEPS_PX[0]
    around = np.zeros(3)
    for step in STEPS_PX:
        n = max(round(reach / step), 2)
        shifts = centre + step * np.arange(-n, n + 1)
        contrasts = np.array([contrast(float(shift)) for shift in shifts])
        best = int(np.argmax(contrasts))
        if not 0 < best < len(shifts) - 1:
            raise WrongUsage(
                f"the slice gets sharper up to {shifts[best]:+.1f} pixels, where the search ends",
                hint="check the plan's offset_u_mm, or align by opposing rays",
            )
        around, centre, reach = contrasts[best - 1 : best + 2], float(shifts[best]), 2 * step
    before, at, after = around
    return centre + step * 0.5 * (before - after) / (before - 2 * at + after)
