"""Beads in projections: where their shadows stand, to a hundredth of a pixel, and which of them are one bead's.

All beads are alike, so the mean shadow of all, as a function of the distance from its middle, is the template that each
is then fitted with: neither the matter of the beads nor the blur of the detector need be known.

# Ref: a template measured from the data, and positions by fitting it: Anderson and King 2000, Publ. Astron. Soc. Pac.
#      112, 1360, there for stars.
# Ref: grey opening as the background under small bright things: Serra 1982, Image Analysis and Mathematical Morphology.
# Ref: tracks of beads as Fourier series of the gantry's angle: von Smekal et al. 2004, Med. Phys. 31, 3242.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage, optimize

from firmware_iface.errors import WrongUsage

MARGIN_PX = 3.0
"""What is looked at around a shadow, beyond its edge, for the background."""
PROFILE_STEP_PX = 0.125
N_ROUNDS = 4
STEPS_PER_ROUND = 3
WORST_FIT = 4.0
"""A shadow whose fit leaves more than this many times the usual rest is of two beads, or of something else."""
LEAST_HEIGHT = 2.0
"""Height of a bead's smoothed shadow, in units of one pixel's noise; noise itself reaches about 1."""
FEWEST_SIGHTINGS = 8
MOST_MISSED = 4
"""Views in a row in which a bead may be hidden before its track is given up; it may be found again later."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shadows:
    """Shadows of beads, one row each.

    Attributes
    ----------
    view : (n,) intp
        In which view.
    at_px : (n, 2) float64
        Column and row of the middle.
    """

    view: NDArray[np.intp]
    at_px: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, which: NDArray) -> Shadows:
        return Shadows(view=self.view[which], at_px=self.at_px[which])


def find_shadows(
    line_integrals: NDArray[np.floating],
    *,
    n_beads: int,
    radius_px: float,
    is_bad: NDArray[np.bool_] | None = None,
) -> Shadows:
    """Find the beads in every view; those that the detector's edge cuts, and those that overlap, are left out.

    Parameters
    ----------
    line_integrals : (n_views, rows, cols) float
        Bad pixels hold any finite value.
    n_beads : int
        How many there are; half of them at least must be in the field in most views.
    radius_px : float
        Of a shadow, about.
    is_bad : (rows, cols) bool, optional
        Pixels that are not to be believed.

    Raises
    ------
    WrongUsage
        No beads stand out.
    """
    images = np.asarray(line_integrals, dtype=np.float64)
    if images.ndim != 3 or not np.isfinite(images).all():
        raise WrongUsage(f"the views have shape {images.shape}; allowed: (n_views, rows, cols), finite")
    view, at_px = _find_peaks(images, n_beads, radius_px)
    is_good = np.ones(images.shape[1:], bool) if is_bad is None else ~is_bad
    start_px = at_px.copy()
    at_px, rest = _fit_template(images, view, at_px, radius_px, is_good)
    low, high = radius_px, np.array(images.shape[:0:-1]) - 1 - radius_px
    is_kept = (
        (np.abs(at_px - start_px).max(axis=1) < radius_px / 2)
        & (rest < WORST_FIT * np.median(rest))
        & ((at_px > low) & (at_px < high)).all(axis=1)
    )
    return Shadows(view=view, at_px=at_px)[is_kept]


def _find_peaks(images: NDArray, n_beads: int, radius_px: float) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return the view and, to about half a pixel, the middle of everything as high as a bead: (n,) and (n, 2)."""
    opened, apart = 2 * int(np.ceil(2 * radius_px)) + 1, 2 * int(radius_px) + 1
    found = []
    for image in images:
        smooth = ndimage.gaussian_filter(ndimage.median_filter(image, 3), radius_px / 3)
        height = smooth - ndimage.grey_opening(smooth, opened)
        is_peak = height == ndimage.maximum_filter(height, apart)
        row, col = np.nonzero(is_peak & (height > 0))
        order = np.argsort(height[row, col])[::-1][: 3 * n_beads]
        found.append((height[row, col][order], col[order], row[order]))
    heights = [values[(n_beads - 1) // 2] if len(values) > n_beads // 2 else 0.0 for values, _, _ in found]
    usual = float(np.median(heights))
    noise = np.median(np.abs(np.diff(images, axis=2))) / 0.954  # of differences of two, for a normal distribution
    if not usual > LEAST_HEIGHT * noise:
        raise WrongUsage(
            f"{n_beads} beads of {radius_px:.3g} pixels radius do not stand out of the noise in most views",
            hint="put the bead phantom into the beam, expose longer, or mend calibration.beads in the plan",
        )
    view = np.repeat(np.arange(len(images)), [np.count_nonzero(values > usual / 2) for values, _, _ in found])
    at = [np.stack([col, row], axis=1)[values > usual / 2] for values, col, row in found]
    return view, np.concatenate(at).astype(np.float64)


def _fit_template(
    images: NDArray, view: NDArray[np.intp], at_px: NDArray, radius_px: float, is_good: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Move each shadow to where the mean shadow, on a plane of background, fits best: positions, rms of the rest."""
    half = int(np.ceil(radius_px + MARGIN_PX))
    row, col = (axis.ravel() for axis in np.mgrid[-half : half + 1, -half : half + 1])
    base = np.rint(at_px).astype(np.intp)
    rows, cols = base[:, 1:] + row, base[:, :1] + col
    is_inside = (rows >= 0) & (rows < images.shape[1]) & (cols >= 0) & (cols < images.shape[2])
    rows, cols = np.clip(rows, 0, images.shape[1] - 1), np.clip(cols, 0, images.shape[2] - 1)
    values = images[view[:, None], rows, cols]
    weights = (is_inside & is_good[rows, cols] & ~_is_near_another(view, at_px, base, col, row, radius_px)) * 1.0
    shift, scale = at_px - base, np.ones(len(view))
    linear = np.zeros((len(view), 4))  # height, and background at the middle with its slopes
    linear[:, 0] = 1
    profile = np.sqrt(np.clip(1 - (_rings(radius_px) / radius_px) ** 2, 0, None))
    for _ in range(N_ROUNDS):
        for _ in range(STEPS_PER_ROUND):
            x, y = col - shift[:, :1], row - shift[:, 1:]
            distance = np.hypot(x, y) / scale[:, None]
            shape, slope = _at(profile, distance), _at(np.gradient(profile, PROFILE_STEP_PX), distance)
            downhill = -linear[:, :1] * slope / np.maximum(distance, 1e-9) / scale[:, None] ** 2
            ones = np.ones_like(x)
            wider = -linear[:, :1] * slope * distance / scale[:, None]
            jacobian = np.stack([downhill * x, downhill * y, wider, shape, ones, x, y], axis=2)
            fitted = (jacobian[..., 3:] * linear[:, None, :]).sum(axis=2)
            weighted = jacobian * weights[..., None]
            normal = np.einsum("nki,nkj->nij", weighted, jacobian) + 1e-9 * np.eye(7)
            step = np.linalg.solve(normal, np.einsum("nki,nk->ni", weighted, values - fitted)[..., None])[..., 0]
            shift += np.clip(step[:, :2], -0.5, 0.5)
            scale = np.clip(scale + np.clip(step[:, 2], -0.05, 0.05), 0.7, 1.4)
            linear += step[:, 3:]
        scale /= np.median(scale)
        x, y = col - shift[:, :1], row - shift[:, 1:]
        distance = np.hypot(x, y) / scale[:, None]
        above = (values - linear[:, 1:2] - linear[:, 2:3] * x - linear[:, 3:] * y) / np.maximum(linear[:, :1], 1e-3)
        profile = _mean_profile(distance, above, weights * linear[:, :1].clip(0) ** 2, radius_px)
    x, y = col - shift[:, :1], row - shift[:, 1:]
    shadow = linear[:, :1] * _at(profile, np.hypot(x, y) / scale[:, None])
    rest = weights * (values - shadow - linear[:, 1:2] - linear[:, 2:3] * x - linear[:, 3:] * y)
    middle = np.asarray(base + shift, dtype=np.float64)
    return middle, np.sqrt((rest**2).sum(axis=1) / np.maximum(weights.sum(axis=1), 1))


def _rings(radius_px: float) -> NDArray[np.float64]:
    return np.arange(0, 2 * (radius_px + MARGIN_PX), PROFILE_STEP_PX)


def _at(profile: NDArray, distance_px: NDArray) -> NDArray[np.float64]:
    return np.interp(distance_px, np.arange(len(profile)) * PROFILE_STEP_PX, profile)


def _mean_profile(distance_px: NDArray, heights: NDArray, weights: NDArray, radius_px: float) -> NDArray[np.float64]:
    """Average the shadows over rings, each as broad as its neighbours' distance, and let the outermost be 0."""
    rings = _rings(radius_px)
    place = np.minimum(distance_px / PROFILE_STEP_PX, len(rings) - 1.001)
    low = place.astype(int)
    total, mean = np.full(len(rings), 1e-9), np.zeros(len(rings))
    for ring, share in ((low, 1 - (place - low)), (low + 1, place - low)):
        shares = (share**2 * weights).ravel()
        total += np.bincount(ring.ravel(), shares, len(rings))
        mean += np.bincount(ring.ravel(), shares * heights.ravel(), len(rings))
    mean /= total
    is_outside = rings > radius_px + MARGIN_PX - 1
    mean -= mean[is_outside & (total > 1e-6)].mean()
    return np.where(is_outside, 0.0, mean)


def _is_near_another(
    view: NDArray[np.intp], at_px: NDArray, base: NDArray, col: NDArray, row: NDArray, radius_px: float
) -> NDArray[np.bool_]:
    """Tell which pixels of each shadow's window another shadow of the same view may darken: (n, n_pixels) bool."""
    is_near = np.zeros((len(view), len(col)), bool)
    reach_px = 2 * radius_px + 2 * MARGIN_PX
    for first, second in zip(*np.nonzero(view[:, None] == view[None, :]), strict=True):
        apart = at_px[second] - base[first]
        if first != second and np.abs(apart).max() < reach_px:
            is_near[first] |= np.hypot(col - apart[0], row - apart[1]) < radius_px + 1
    return is_near


def join_tracks(shadows: Shadows, angles_rad: ArrayLike, *, n_beads: int, radius_px: float) -> list[Shadows]:
    """Sort shadows into the tracks of single beads, longest first.

    Shadows of neighbouring views are joined by their motion; each piece is then continued around the whole circle by a
    Fourier series of the angle, so that tracks may cross, and beads may leave the field and come back.

    Parameters
    ----------
    angles_rad : (n_views,) float
        Of each view, ascending.
    """
    angles = np.asarray(angles_rad, dtype=np.float64).ravel()
    is_free = np.ones(len(shadows), bool)
    tracks: list[Shadows] = []
    for piece in sorted(_pieces(shadows, angles, radius_px), key=len, reverse=True):
        members = piece[is_free[piece]]
        if len(members) < FEWEST_SIGHTINGS or len(tracks) == n_beads:
            continue
        free = np.flatnonzero(is_free)
        for _ in range(6):
            seen = shadows[members]
            predicted = (
                _fourier(angles, seen.view, len(angles))
                @ np.linalg.lstsq(_fourier(angles, seen.view, len(angles))[seen.view], seen.at_px, rcond=None)[0]
            )
            members = free[_nearest(shadows[free], predicted, radius_px)]
            if len(members) < FEWEST_SIGHTINGS:
                break
        if len(members) >= FEWEST_SIGHTINGS:
            is_free[members] = False
            tracks.append(shadows[members])
    return sorted(tracks, key=len, reverse=True)


def _fourier(angles: NDArray, seen: NDArray[np.intp], n_views: int) -> NDArray[np.float64]:
    """Return the terms of the series in every view; few sightings bear the first harmonic only: (n_views, n_terms)."""
    orders = (1, 2) if len(seen) > n_views / 2 else (1,)
    terms = [np.ones_like(angles)]
    for order in orders:
        terms += [np.cos(order * angles), np.sin(order * angles)]
    return np.stack(terms, axis=1)


def _nearest(shadows: Shadows, predicted_px: NDArray, gate_px: float) -> NDArray[np.intp]:
    """Return the places of the shadows that are nearest to the prediction for their view, at most one for each."""
    distance = np.linalg.norm(shadows.at_px - predicted_px[shadows.view], axis=1)
    order = np.lexsort((distance, shadows.view))
    is_first = np.diff(shadows.view[order], prepend=-1) != 0
    return np.sort(order[is_first & (distance[order] < gate_px)])


def _pieces(shadows: Shadows, angles: NDArray, radius_px: float) -> Iterator[NDArray[np.intp]]:
    """Yield pieces of tracks, as places in `shadows`: each next shadow is where the last two point to."""
    widest_px = float(np.ptp(shadows.at_px[:, 0])) / 2 if len(shadows) else 0.0
    running: list[list[int]] = []
    for view in range(len(angles)):
        here = np.flatnonzero(shadows.view == view)
        step_px = widest_px * (angles[view] - angles[max(view - 1, 0)]) + radius_px / 2
        taken: set[int] = set()
        if running and len(here):
            apart = np.stack([_misses(shadows, piece, view, here, step_px, radius_px) for piece in running])
            for which, place in zip(*optimize.linear_sum_assignment(np.minimum(apart, 1e3)), strict=True):
                if apart[which, place] <= 1:
                    running[which].append(int(here[place]))
                    taken.add(int(here[place]))
        going = [piece for piece in running if view - shadows.view[piece[-1]] <= MOST_MISSED]
        yield from (np.array(piece) for piece in running if view - shadows.view[piece[-1]] > MOST_MISSED)
        running = [*going, *([int(place)] for place in here if int(place) not in taken)]
    yield from (np.array(piece) for piece in running)


def _misses(
    shadows: Shadows, piece: list[int], view: int, here: NDArray[np.intp], step_px: float, radius_px: float
) -> NDArray[np.float64]:
    """Return how far each shadow is from where a piece of track points to, in units of what is allowed."""
    last, n_steps = shadows.at_px[piece[-1]], view - int(shadows.view[piece[-1]])
    if len(piece) == 1:  # may move along the row only, and how far is not known
        allowed = np.array([n_steps * step_px, radius_px / 2])
        return np.abs((shadows.at_px[here] - last) / allowed).max(axis=1)
    before = piece[max(-4, -len(piece))]
    speed = (last - shadows.at_px[before]) / (shadows.view[piece[-1]] - shadows.view[before])
    return np.linalg.norm(shadows.at_px[here] - last - n_steps * speed, axis=1) / (radius_px / 2 * (1 + n_steps))
