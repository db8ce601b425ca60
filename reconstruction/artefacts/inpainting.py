"""Values that were not measured, filled in the projections: single pixels, lost views, dead areas and gaps.

Filled values are guesses; the mask that says so stays with them, and iterative methods give them no weight. What is
missing in some views only is taken from the pixel's own views before and after. What is missing in all views is
continued from around it in the image by the smoothest surface; where the scan is a full circle, what the opposing rays
saw is put in first, and only the difference to it is continued.

# Ref: the smoothest surface: thin plate, Duchon 1977, Lecture Notes in Mathematics 571, 85; its equation is the
#      biharmonic one, so polynomials of third degree are continued exactly.
# Ref: opposing rays: `reconstruction.artefacts.opposing_rays`. Neighbours: `calibration.pixels`.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike, NDArray
from scipy.sparse.linalg import splu

from calibration import pixels
from calibration.geometry import Geometry
from firmware_iface.errors import WrongUsage
from reconstruction.artefacts.opposing_rays import OpposingRays

METHODS = ("auto", "neighbours", "smooth", "opposing")
MEMBRANE = 1e-9
"""Weight of the slope beside that of the curvature: it settles only what the curvature leaves open."""


def fill(
    values: NDArray[np.float32],
    is_bad: NDArray[np.bool_],
    *,
    method: str = "auto",
    angles_rad: ArrayLike | None = None,
    geometry: Geometry | None = None,
) -> tuple[NDArray[np.float32], str]:
    """Fill values that were not measured, in place.

    Parameters
    ----------
    values : (n_bins, n_views, rows, cols) float32
        Overwritten where bad; what stands there, NaN too, is not looked at.
    is_bad : (rows, cols), (n_bins, rows, cols) or (n_bins, n_views, rows, cols) bool
        Bad in all views, or view by view.
    method : str
        For what is bad in all views: "neighbours" (the mean of the good ones among the eight), "smooth" (the smoothest
        surface), "opposing" (the same on top of what opposing rays saw), or "auto": opposing where there are any, else
        smooth.
    angles_rad : (n_views,) float, optional
    geometry : Geometry, optional
        Both are needed for opposing rays.

    Returns
    -------
    values : the same array
    words : str
        What was done, for the provenance.

    Raises
    ------
    WrongUsage
        The method is unknown, or the scan has no opposing rays.
    """
    if method not in METHODS:
        raise WrongUsage(f"the in-painting method is {method!r}; allowed: {', '.join(METHODS)}")
    n_bins, _, rows, cols = values.shape
    mask: NDArray[np.bool_] = np.asarray(is_bad)
    if mask.shape not in ((rows, cols), (n_bins, rows, cols), values.shape):
        raise ValueError(
            f"the mask has shape {mask.shape}; allowed: {values.shape[2:]}, {(n_bins, *values.shape[2:])} "
            f"or {values.shape}"
        )
    if mask.ndim == 4:
        always: NDArray[np.bool_] = np.all(mask, axis=1)
        n_passing = fill_views(values, mask & ~always[:, None])
    else:
        always, n_passing = np.broadcast_to(mask, (n_bins, rows, cols)), 0
    told = [f"{n_passing} values filled from the views beside them"] if n_passing else []
    if always.any():
        if any(np.all(of_bin) for of_bin in always):
            raise ValueError("all pixels of a bin are bad; allowed: at least one good pixel to fill from")
        rays = None
        if method in ("auto", "opposing") and angles_rad is not None and geometry is not None:
            rays = OpposingRays.of(angles_rad, geometry)
        if method == "opposing" and rays is None:
            raise WrongUsage(
                "the scan has no opposing rays to fill bad pixels from",
                hint='give the angles and the geometry of a full circle, or take "smooth"',
            )
        for index in range(n_bins):
            if always[index].any():
                _fill_pixels(values[index], always[index], method, rays)
        how = method if method == "neighbours" else "opposing rays" if rays else "the smoothest surface"
        told.append(f"{np.count_nonzero(always.any(axis=0))} bad pixels filled by {how}")
    return values, "; ".join(told) or "nothing to fill"


def fill_views(values: NDArray[np.float32], is_bad: NDArray[np.bool_]) -> int:
    """Interpolate values linearly between the nearest good views of their own pixel, in place; return how many.

    Parameters
    ----------
    values : (n_bins, n_views, rows, cols) float32
    is_bad : the same shape, bool
        No pixel is bad in all views.
    """
    n_views = values.shape[1]
    for index, row, col in np.argwhere(is_bad.any(axis=1)):
        bad = is_bad[index, :, row, col]
        of_pixel = values[index, :, row, col]
        good = np.flatnonzero(~bad)
        of_pixel[bad] = np.interp(np.flatnonzero(bad), good, of_pixel[good], period=n_views)
    return int(np.count_nonzero(is_bad))


def _fill_pixels(views: NDArray[np.float32], is_bad: NDArray[np.bool_], method: str, rays: OpposingRays | None) -> None:
    """Fill pixels that are bad in all views of one bin, in place: (n_views, rows, cols)."""
    views[:, is_bad] = 0  # NaN would spread through the interpolation
    if method == "neighbours":
        views[:, is_bad] = pixels.fill(views, is_bad)[:, is_bad]
        return
    is_left = is_bad
    if rays is not None:
        seen, is_seen = _seen_from_behind(views, is_bad, rays)
        # The cone and what drifts make the two sides differ a little: the difference goes over smoothly.
        difference = views - seen
        is_filled = is_bad & is_seen
        continue_smoothly(difference, is_filled, is_known=is_seen & ~is_bad, is_plate=False)
        views[:, is_filled] = seen[:, is_filled] + difference[:, is_filled]
        is_left = is_bad & ~is_seen
    continue_smoothly(views, is_left)


def _seen_from_behind(
    views: NDArray[np.float32], is_bad: NDArray[np.bool_], rays: OpposingRays
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return what the opposing rays read, (n_views, rows, cols), and which pixels have a good one, (rows, cols)."""
    seen = np.zeros_like(views)
    seen[..., rays.is_seen] = rays.take(views)
    is_seen = np.zeros(is_bad.shape, dtype=np.bool_)
    is_seen[:, rays.is_seen] = rays.share_of(is_bad) == 0
    return seen, is_seen


def continue_smoothly(
    images: NDArray[np.float32],
    is_bad: NDArray[np.bool_],
    *,
    is_known: NDArray[np.bool_] | None = None,
    is_plate: bool = True,
) -> None:
    """Fill pixels of all images by the surface of least energy through those around, in place.

    Parameters
    ----------
    images : (n_images, rows, cols) float32
    is_bad : (rows, cols) bool
    is_known : (rows, cols) bool, optional
        Pixels to go by; all that are not bad unless told.
    is_plate : bool
        The energy is that of bending, which continues slopes; else that of a membrane, which noise cannot tilt.
    """
    n_bad = np.count_nonzero(is_bad)
    if not n_bad:
        return
    is_known = ~is_bad if is_known is None else is_known & ~is_bad
    energy = _energy(is_bad, is_bad | is_known, is_plate)
    bad, around = np.flatnonzero(is_bad), np.flatnonzero(is_known)
    of_bad = energy[:, bad]
    # What nothing around settles stays near 0 by this, instead of making the equations singular.
    stiffness = (of_bad.T @ of_bad + MEMBRANE**2 * scipy.sparse.eye_array(n_bad)).tocsc()
    load = of_bad.T @ energy[:, around]
    touched = np.unique(load.nonzero()[1])
    flat = images.reshape(len(images), -1)
    known = flat[:, around[touched]].T.astype(np.float64)
    flat[:, bad] = splu(stiffness).solve(-(load[:, touched] @ known)).T


def _energy(is_bad: NDArray[np.bool_], is_usable: NDArray[np.bool_], is_plate: bool) -> scipy.sparse.csc_array:
    """Return the differences whose squares make up the energy, one a row, of all that touch a bad pixel."""
    cols = is_bad.shape[1]
    slopes = [([(0, 0), (0, 1)], [-1.0, 1.0]), ([(0, 0), (1, 0)], [-1.0, 1.0])]
    bends = [
        ([(0, 0), (0, 1), (0, 2)], [1.0, -2.0, 1.0]),
        ([(0, 0), (1, 0), (2, 0)], [1.0, -2.0, 1.0]),
        ([(0, 0), (0, 1), (1, 0), (1, 1)], [2**0.5, -(2**0.5), -(2**0.5), 2**0.5]),
    ]
    stencils = [*bends, *((at, [MEMBRANE**0.5 * w for w in weights]) for at, weights in slopes)] if is_plate else slopes
    data, columns, n_rows = [], [], 0
    rows = []
    for at, weights in stencils:
        height, width = is_bad.shape[0] - max(y for y, _ in at), cols - max(x for _, x in at)
        if height < 1 or width < 1:
            continue
        views = [(is_bad[y : y + height, x : x + width], is_usable[y : y + height, x : x + width]) for y, x in at]
        is_wanted = np.any([bad for bad, _ in views], axis=0) & np.all([usable for _, usable in views], axis=0)
        y0, x0 = np.nonzero(is_wanted)
        for (y, x), weight in zip(at, weights, strict=True):
            rows.append(n_rows + np.arange(len(y0)))
            columns.append((y0 + y) * cols + x0 + x)
            data.append(np.full(len(y0), weight))
        n_rows += len(y0)
    places = np.concatenate(rows), np.concatenate(columns)
    return scipy.sparse.coo_array((np.concatenate(data), places), shape=(n_rows, is_bad.size)).tocsc()
