"""Rings in slices, taken off in polar coordinates around the axis of rotation: for volumes whose views are gone.

Around the axis a ring is a straight line: it differs from the radii beside it, and stays the same along the arc. What
differs by more than rings do is an edge of the object, and does not count.

# Ref: Sijbers and Postnov 2004, Phys. Med. Biol. 49, N247; radial median, threshold and azimuthal mean: Prell, Kyriakou
#      and Kalender 2009, Phys. Med. Biol. 54, 3881.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from reconstruction.artefacts.stripes import running_median
from reconstruction.volume import Grid

WIDTH_PX = 15
ARC_RAD = np.deg2rad(60.0)
EDGE_SIGMAS = 4.0
"""In units of the differences' own spread: what is beyond is an edge of the object."""


def suppress(
    values: NDArray[np.float32],
    grid: Grid,
    *,
    width_px: int = WIDTH_PX,
    arc_rad: float = ARC_RAD,
    edge_sigmas: float = EDGE_SIGMAS,
    n_threads: int | None = None,
) -> tuple[NDArray[np.float32], str]:
    """Take the rings off a volume, in place.

    Parameters
    ----------
    values : (n_channels, z, y, x) float32
        Overwritten.
    grid : Grid
        Whose x = y = 0 is the axis of rotation.
    width_px : int
        Of the running median over the radii: rings narrower than half of it are found.
    arc_rad : float
        Over which a ring is the same; 2 pi for whole rings.
    edge_sigmas : float

    Returns
    -------
    values : the same array
    words : str
        What was done, for the provenance.
    """
    n_channels, n_z, n_y, n_x = values.shape
    _, y_mm, x_mm = grid.axes_mm()
    y, x = -y_mm[0] / grid.voxel_mm, -x_mm[0] / grid.voxel_mm  # of the axis, in voxels from the first
    corners = np.hypot([y, y, n_y - 1 - y, n_y - 1 - y], [x, n_x - 1 - x, x, n_x - 1 - x])
    n_radii = int(corners.max()) + 2
    n_angles = int(2 * np.pi * n_radii / 2)
    angle = np.arange(n_angles) * (2 * np.pi / n_angles)
    radius = np.arange(n_radii)[:, None]
    at = np.stack([y + radius * np.sin(angle), x + radius * np.cos(angle)])
    is_inside = (at[0] >= 0) & (at[0] <= n_y - 1) & (at[1] >= 0) & (at[1] <= n_x - 1)
    from_y, from_x = np.arange(n_y)[:, None] - y, np.arange(n_x) - x
    back = np.stack([np.hypot(from_y, from_x), np.mod(np.arctan2(from_y, from_x), 2 * np.pi) * n_angles / (2 * np.pi)])
    n_arc = max(1, min(round(arc_rad / (2 * np.pi) * n_angles), n_angles))

    def one(place: tuple[int, int]) -> None:
        polar = ndimage.map_coordinates(values[place], at, order=1, mode="nearest", output=np.float32)
        rings = _rings(np.asarray(polar, dtype=np.float32), is_inside, width_px, n_arc, edge_sigmas)
        rings = np.concatenate([rings, rings[:, :1]], axis=1)  # the circle closes
        taken = ndimage.map_coordinates(rings, back, order=1, mode="nearest", output=np.float32)
        values[place] -= taken

    places = [(channel, z) for channel in range(n_channels) for z in range(n_z)]
    with ThreadPoolExecutor(n_threads or os.cpu_count() or 1) as pool:
        for _ in pool.map(one, places):
            pass
    return values, f"rings suppressed in polar coordinates (width {width_px} px, arc {np.rad2deg(arc_rad):.0f} degrees)"


def _rings(
    polar: NDArray[np.float32], is_inside: NDArray[np.bool_], width_px: int, n_arc: int, edge_sigmas: float
) -> NDArray[np.float32]:
    """Return what rings add: (n_radii, n_angles) float32."""
    differs = polar - running_median(np.ascontiguousarray(polar.T), width_px).T
    spread = 1.4826 * np.median(np.abs(differs[is_inside]))
    is_used = is_inside & (np.abs(differs) <= edge_sigmas * spread)
    weight = ndimage.uniform_filter1d(is_used.astype(np.float32), n_arc, axis=1, mode="wrap")
    total = ndimage.uniform_filter1d(np.where(is_used, differs, 0), n_arc, axis=1, mode="wrap")
    # An arc of which little is left tells nothing.
    return np.where(weight > 0.2, total / np.maximum(weight, 0.2), 0).astype(np.float32)
