"""Views that end inside the object: whether they do, and what stands beyond their ends.

The ramp filter needs whole rows. Where the object reaches past the detector, a row that drops to 0 at its end makes a
bright rim; so the row is continued to 0 over some columns more, by what a round object would have cast there. Nothing
can bring back what was not measured: the middle gets right but for a slow slope, the outside is a guess.

# Ref: mirrored at the end and faded by a cosine: Ohnesorge, Flohr, Schwarz, Heiken and Bae 2000, Med. Phys. 27, 39.
# Ref: a cylinder of water that fits value and slope: Hsieh, Chao, Thibault, Grekowicz, Horst, McOlash and Myers 2004,
#      Med. Phys. 31, 2385.
# Ref: the square root of a falling line, an ellipse's end: Sourbelle, Kachelriess and Kalender 2005, Eur. Radiol. 15,
#      1008.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from calibration.geometry import Geometry
from firmware_iface.errors import WrongUsage
from reconstruction.volume import Grid

METHODS = ("cylinder", "square-root", "mirror", "cosine", "edge")
EDGE_COLS = 8
"""Columns at either end whose mean and slope are what is continued."""
TOUCHING_SHARE = 0.02
"""Of the highest values: a row whose end is above this has the object at its end."""
HIGH_QUANTILE = 0.99


def touches(values: NDArray[np.floating], *, share: float = TOUCHING_SHARE) -> NDArray[np.bool_]:
    """Return at which ends of which rows the object reaches past the detector.

    Parameters
    ----------
    values : (..., rows, cols) float
        Line integrals.
    share : float
        Of the high values of all rows, what an end must exceed; and it must exceed the scatter of its own columns.

    Returns
    -------
    touches : (..., rows, 2) bool
        At the first column, at the last one.
    """
    high = np.quantile(values, HIGH_QUANTILE)
    n = min(EDGE_COLS, values.shape[-1])
    ends = np.stack([values[..., :n], values[..., -n:]], axis=-2)
    scatter = np.abs(np.diff(ends, axis=-1)).mean(axis=-1) / n**0.5
    level = ends.mean(axis=-1)
    return np.asarray((level > share * high) & (level > 3 * scatter) & (high > 0))


def is_truncated(values: NDArray[np.floating], *, share: float = TOUCHING_SHARE) -> bool:
    """Return whether the object reaches past the sides of the detector in more views than chance would say.

    Parameters
    ----------
    values : (n_bins, n_views, rows, cols) float
    """
    return bool(touches(values, share=share).any(axis=-1).mean() > 0.01)


def continued(
    values: NDArray[np.float32], geometry: Geometry, *, method: str = "cylinder", share: float = 0.5
) -> tuple[NDArray[np.float32], Geometry, str]:
    """Return views with continued rows, the detector that is wide enough for them, and what was done in words.

    Parameters
    ----------
    values : (n_bins, n_views, rows, cols) float32
    geometry : Geometry
    method : str
        Of `extend`.
    share : float
        Of the columns, how many are added on either side.

    Returns
    -------
    values : (n_bins, n_views, rows, cols + 2 n) float32
    geometry : Geometry
    words : str
    """
    n_pad = round(share * geometry.cols)
    words = f"the object reaches past the detector: rows continued by {n_pad} columns on either side ({method})"
    return extend(values, n_pad, method=method), replace(geometry, cols=geometry.cols + 2 * n_pad), words


def extend(
    rows: NDArray[np.float32], n_pad: int, *, method: str = "cylinder", attenuation_per_px: float | None = None
) -> NDArray[np.float32]:
    """Continue rows to 0 on both sides, where they do not end in 0 anyway.

    Parameters
    ----------
    rows : (..., cols) float32
        Line integrals.
    n_pad : int
        Columns to add on either side.
    method : str
        "cylinder": a round object that fits value and slope of the end; "square-root": an ellipse that ends where the
        padding ends; "mirror": the row turned about its end and faded; "cosine": the end's value faded; "edge": the
        end's value, all the way.
    attenuation_per_px : float, optional
        Of the cylinder, per column's width on the axis (water's, say). Without it the cylinder is centred on the
        detector, and value and slope tell how dense it is.

    Returns
    -------
    extended : (..., n_pad + cols + n_pad) float32
    """
    if method not in METHODS:
        raise WrongUsage(f"the method of extension is {method!r}; allowed: {', '.join(METHODS)}")
    if n_pad < 1:
        return rows.copy()
    left = _beyond(rows[..., ::-1], n_pad, method, attenuation_per_px)[..., ::-1]
    return np.concatenate([left, rows, _beyond(rows, n_pad, method, attenuation_per_px)], axis=-1)


def _beyond(
    rows: NDArray[np.float32], n_pad: int, method: str, attenuation_per_px: float | None
) -> NDArray[np.float32]:
    """Return what follows the last column: (..., n_pad) float32."""
    cols = rows.shape[-1]
    n = min(EDGE_COLS, cols)
    place = np.arange(n) - (n - 1)  # 0 is the last column
    end = rows[..., -n:].astype(np.float64)
    mean, centre = end.mean(axis=-1, keepdims=True), place.mean()
    spread = max(((place - centre) ** 2).sum(), 1.0)
    slope = (end * (place - centre)).sum(axis=-1, keepdims=True) / spread
    value = np.maximum(mean - slope * centre, 0.0)
    step = np.arange(1, n_pad + 1)
    fade = np.cos(np.pi / 2 * step / (n_pad + 1))
    if method == "edge":
        beyond = np.broadcast_to(value, (*value.shape[:-1], n_pad))
    elif method == "square-root":
        beyond = value * np.sqrt(1 - step / (n_pad + 1))
    elif method == "mirror":
        mirrored = rows[..., np.maximum(cols - 1 - step, 0)]
        beyond = np.maximum(2 * value - mirrored, 0) * fade**2
    elif method == "cylinder":
        beyond = _cylinder(end, value, step, cols, attenuation_per_px, value * fade)
    else:
        beyond = value * fade
    return np.asarray(beyond, dtype=np.float32)


def _cylinder(
    end: NDArray[np.float64],
    value: NDArray[np.float64],
    step: NDArray[np.int_],
    cols: int,
    attenuation_per_px: float | None,
    otherwise: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the chords p of a cylinder, p^2 = k (r^2 - (u - u0)^2), that fits the last columns; u = 0 is the last."""
    place = np.arange(1 - end.shape[-1], 1)
    squared = np.square(end)
    if attenuation_per_px is None:
        # p^2 = k r^2 - k w^2, w from the middle of the detector: a line in w^2.
        to_middle = (place + (cols - 1) / 2) ** 2
        mean, around = squared.mean(axis=-1, keepdims=True), to_middle - to_middle.mean()
        k = -(squared * around).sum(axis=-1, keepdims=True) / max((around**2).sum(), 1.0)
        chords = mean + k * (to_middle.mean() - (step + (cols - 1) / 2) ** 2)
    else:
        # p^2 + k u^2 = k (r^2 - u0^2) + 2 k u0 u: a line in u.
        k = np.full_like(value, (2 * attenuation_per_px) ** 2)
        line = squared + k * place**2
        mean, around = line.mean(axis=-1, keepdims=True), place - place.mean()
        slope = (line * around).sum(axis=-1, keepdims=True) / max((around**2).sum(), 1.0)
        chords = mean + slope * (step - place.mean()) - k * step**2
    # What rises outwards is no end of a round object.
    return np.where((k > 0) & (value > 0), np.sqrt(np.maximum(chords, 0)), otherwise)


def wider(grid: Grid, n_voxels: int) -> Grid:
    """Return the grid with `n_voxels` more on each of its four sides.

    An iterative method can then put there what the views hold from outside; `inner` takes the result back to `grid`.
    """
    z, y, x = grid.shape
    return replace(grid, shape=(z, y + 2 * n_voxels, x + 2 * n_voxels))


def inner(volume: NDArray[np.floating], n_voxels: int) -> NDArray[np.floating]:
    """Return a volume without the voxels that `wider` added: (..., z, y, x)."""
    return volume[..., n_voxels : volume.shape[-2] - n_voxels, n_voxels : volume.shape[-1] - n_voxels]
