"""Tiles to one wide view: a small camera that was moved along its rows sees what one wide camera would have seen.

Each tile has flats of its own, so that line integrals are joined, not counts. Where tiles overlap their weights run
linearly to zero at each tile's edge, which leaves no step between them; a value that was only estimated counts where
no tile measured.

# Ref: the camera takes positions beside each other to cover a wide object: MARS scanners, Hindawi et al. 2018,
#      Contrast Media Mol. Imaging 2136840.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from calibration.geometry import Geometry
from firmware_iface.errors import BadFile

WHOLE_PX = 1e-3
"""Tiles that lie this near to whole columns are taken as they are, and not interpolated."""
ESTIMATED_WEIGHT = 1e-6


def wide_geometry(geometry: Geometry, shifts_mm: Sequence[float]) -> Geometry:
    """Return the camera that sees what all tiles see together.

    Parameters
    ----------
    geometry : Geometry
        Of the camera where its shift is 0.
    shifts_mm : sequence of float
        How far it stood along its rows for each tile.
    """
    first_px, n_cols = _span(geometry, shifts_mm)
    centre_px = first_px + (n_cols - 1) / 2 - (geometry.cols - 1) / 2
    return replace(geometry, cols=n_cols, offset_u_mm=geometry.offset_u_mm + geometry.pitch_mm * centre_px)


def stitch(
    tiles: Sequence[NDArray[np.float32]],
    is_estimated: Sequence[NDArray[np.bool_]],
    shifts_mm: Sequence[float],
    geometry: Geometry,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Join the line integrals of tiles that see the same views.

    Parameters
    ----------
    tiles : sequence of (n_bins, n_views, rows, cols) float32
    is_estimated : sequence of (n_bins, n_views, rows, cols) bool
        Values that were not measured.
    shifts_mm : sequence of float
        Of each tile; whole columns or not.
    geometry : Geometry
        Of the camera where its shift is 0.

    Returns
    -------
    line_integrals : (n_bins, n_views, rows, n_cols) float32
    is_estimated : the same shape, bool
        Where no tile measured.

    Raises
    ------
    BadFile
        The tiles leave columns between them that none has seen.
    """
    first_px, n_cols = _span(geometry, shifts_mm)
    shape = (*tiles[0].shape[:-1], n_cols)
    total, weights = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    is_seen, is_measured = np.zeros(n_cols, bool), np.zeros(shape, bool)
    for tile, estimated, shift_mm in zip(tiles, is_estimated, shifts_mm, strict=True):
        column, values, guessed = _on_whole_columns(tile, estimated, shift_mm / geometry.pitch_mm - first_px)
        n = values.shape[-1]
        here = np.s_[..., column : column + n]
        ramp = np.minimum(np.arange(1, n + 1), np.arange(n, 0, -1)).astype(np.float32)
        weight = np.where(guessed, np.float32(ESTIMATED_WEIGHT), np.float32(1)) * ramp
        total[here] += weight * values
        weights[here] += weight
        is_measured[here] |= ~guessed
        is_seen[column : column + n] = True
    if not is_seen.all():
        raise BadFile(
            f"the tiles at {', '.join(f'{shift:g}' for shift in sorted(shifts_mm))} mm leave "
            f"{np.count_nonzero(~is_seen)} columns between them that none has seen",
            hint=f"shift the camera by at most {(geometry.cols - 1) * geometry.pitch_mm:g} mm from tile to tile",
        )
    return total / weights, ~is_measured


def _span(geometry: Geometry, shifts_mm: Sequence[float]) -> tuple[float, int]:
    """Return the first column of all tiles, in columns of the camera at shift 0, and how many whole ones there are."""
    first_px, last_px = min(shifts_mm) / geometry.pitch_mm, max(shifts_mm) / geometry.pitch_mm
    return first_px, int(np.floor(last_px - first_px + WHOLE_PX)) + geometry.cols


def _on_whole_columns(
    tile: NDArray[np.float32], is_estimated: NDArray[np.bool_], first_px: float
) -> tuple[int, NDArray[np.float32], NDArray[np.bool_]]:
    """Return a tile that begins at any place on columns that begin at a whole one, and that column."""
    column = round(first_px)
    if abs(first_px - column) <= WHOLE_PX:
        return column, tile, is_estimated
    column = int(np.ceil(first_px))
    share = float(column - first_px)  # of the right one of each two neighbours
    values = (tile[..., :-1] + share * (tile[..., 1:] - tile[..., :-1])).astype(np.float32, copy=False)
    return column, values, is_estimated[..., :-1] | is_estimated[..., 1:]
