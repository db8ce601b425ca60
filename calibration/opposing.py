"""Where the axis of rotation is, from the scan itself: rays that ran through the object twice, once from either end.

In the plane of the source the ray of a view at angle beta, at gamma from the axis, is the ray of the view at
beta + pi - 2 gamma at -gamma (the gantry turns counter-clockwise, gamma grows with the columns). Both give one line
integral, wherever the object stands, if gamma is counted from the axis's true shadow. In bands of rows above each
other the axis is found anew: that its places lie on a slanted line tells the roll. The views are then levelled with
that roll, and compared again, until nothing turns any more. Rays out of the source's plane meet only
nearly; what they see of an object that changes along the axis is noise to the method, and is counted as such.

# Ref: opposed rays of a fan: Kak and Slaney 1988, Principles of Computerized Tomographic Imaging, chapter 3.5; the
#      shift and the roll from them: Yang et al. 2013, Nucl. Instrum. Meth. A 731, cited with a comparison of methods by
#      Guerrero et al. 2023, arXiv 2310.09567.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from calibration.alignment import Alignment
from calibration.geometry import Geometry
from calibration.levelling import level
from calibration.progress import Progress
from firmware_iface.errors import WrongUsage

N_BANDS = 16
FEWEST_BANDS = 4
"""Fewer do not tell a roll."""
N_TURNS = 5
SMALL_TURN_RAD = 1e-5
FURTHEST_SHARE = 0.15
"""How far from the middle of the detector the axis is looked for, as a share of the columns, on either side."""
COARSE_PX = 1.0
N_STEPS = 12
BLUR_PX = 1.2
"""Of every row before rays are compared: interpolation of unblurred noise would favour some shifts over others."""
LEAST_PAIRS = 60
WORST_ERROR_PX = 0.25
"""A band whose axis is less certain does not count; an axis less certain than this is none."""
LEAST_CONTRAST = 1.5
"""The rest at the best place is to be smaller than the usual rest by this factor, or the object does not tell."""


def align_scan(
    line_integrals: NDArray[np.floating], angles_rad: ArrayLike, nominal: Geometry
) -> Generator[Progress, None, Alignment]:
    """Find ``offset_u_mm`` and ``roll_rad``; all else is believed.

    Parameters
    ----------
    line_integrals : (n_views, rows, cols) float
    angles_rad : (n_views,) float
        Of a circle, or of half a circle and more.
    nominal : Geometry

    Raises
    ------
    WrongUsage
        No rays run both ways, or what they see is too round or too faint to tell.
    """
    angles = np.mod(np.asarray(angles_rad, dtype=np.float64).ravel(), 2 * np.pi)
    values = np.asarray(line_integrals, dtype=np.float32)
    if values.shape != (len(angles), nominal.rows, nominal.cols):
        raise WrongUsage(
            f"the line integrals have shape {values.shape}; "
            f"allowed: ({len(angles)}, {nominal.rows}, {nominal.cols}) for these angles and this detector"
        )
    order = np.argsort(angles)
    values, angles = values[order], angles[order]
    yield Progress("opposing rays", 0, N_TURNS)
    pairs = _Pairs(level(values, nominal), angles, nominal)
    alignment = _line_through(pairs, nominal, pairs.search())
    for turn in range(1, N_TURNS):
        yield Progress("opposing rays", turn, N_TURNS)
        found = alignment.geometry
        axis_px = -found.offset_u_mm / found.pitch_mm
        alignment = _line_through(_Pairs(level(values, found), angles, found), found, axis_px)
        if abs(alignment.geometry.roll_rad - found.roll_rad) < SMALL_TURN_RAD:
            break
    yield Progress("opposing rays", N_TURNS, N_TURNS)
    return alignment


def _line_through(pairs: _Pairs, levelled: Geometry, start_px: float) -> Alignment:
    """Find the axis in each band of rows, and turn the line through its places into offset and roll."""
    bands = [(height, *pairs.refine(band, start_px)) for band, height in enumerate(pairs.heights_px)]
    bands = [each for each in bands if each[2] < WORST_ERROR_PX and abs(each[1] - start_px) < 0.1 * levelled.cols]
    if not bands:
        raise WrongUsage(
            f"in no band of rows do opposing rays tell the axis to {WORST_ERROR_PX:g} pixels",
            hint="align by the bead phantom (mpxct calibrate geometry), or scan longer",
        )
    heights_px, places_px, errors_px, rests = np.array(bands).T
    is_line = len(bands) >= FEWEST_BANDS
    terms = np.stack([np.ones_like(heights_px), heights_px], axis=1)[:, : 2 if is_line else 1]
    weighted = terms / errors_px[:, None]
    solution = np.linalg.lstsq(weighted, places_px / errors_px, rcond=None)[0]
    covariance = np.linalg.inv(weighted.T @ weighted)
    n_freedom = len(bands) - terms.shape[1]
    misfit_px = places_px - terms @ solution
    if n_freedom > 0:  # bands that differ by more than their errors widen them
        covariance *= max(1.0, float(((misfit_px / errors_px) ** 2).sum()) / n_freedom)
    errors = np.sqrt(np.diag(covariance)) * ([levelled.pitch_mm, 1.0] if is_line else [levelled.pitch_mm])
    # A detector that is rolled by so much more about its middle sees the axis as u = -offset / cos + v tan.
    roll_rad = float(np.arctan(solution[1])) if is_line else 0.0
    return Alignment(
        geometry=replace(
            levelled,
            offset_u_mm=float(-solution[0] * np.cos(roll_rad)) * levelled.pitch_mm,
            roll_rad=levelled.roll_rad + roll_rad,
        ),
        parameters=("offset_u_mm", "roll_rad") if is_line else ("offset_u_mm",),
        standard_errors=errors,
        residual_rms_px=float(np.sqrt(np.mean(misfit_px**2))),
        method=f"opposing rays in {len(bands)} bands of rows, rms {np.mean(rests):.3g} between them",
        n_views=len(pairs.angles),
    )


class _Pairs:
    """A scan whose rays can be compared with those that run the other way.

    Rows are averaged in bands, against the noise.
    """

    def __init__(self, values: NDArray[np.floating], angles: NDArray[np.float64], geometry: Geometry) -> None:
        edges = np.linspace(0, geometry.rows, min(N_BANDS, geometry.rows) + 1).astype(int)
        means = np.add.reduceat(values.astype(np.float64), edges[:-1], axis=1) / np.diff(edges)[:, None]
        self.values = ndimage.gaussian_filter1d(means, BLUR_PX, axis=2)
        self.heights_px = (edges[:-1] + edges[1:] - 1) / 2 - (geometry.rows - 1) / 2
        self.angles, self.geometry = angles, geometry
        self.step_rad = float(np.median(np.diff(angles)))
        self.col = np.arange(geometry.cols) - (geometry.cols - 1) / 2

    def search(self) -> float:
        """Return the best place of the axis on a coarse raster, over all rows; refuse when it is not clearly best."""
        reach_px = FURTHEST_SHARE * len(self.col)
        places = np.arange(-reach_px, reach_px + COARSE_PX, COARSE_PX)
        rests = np.array([self.rest(slice(None), place) for place in places])
        if np.isfinite(rests).sum() < len(rests) / 2:
            raise WrongUsage(
                "too few rays of this scan run through the object both ways",
                hint="scan a whole circle, or half of one and twice the fan's half angle more",
            )
        best, usual = int(np.nanargmin(rests)), float(np.nanmedian(rests))
        if best in (0, len(rests) - 1) or usual < LEAST_CONTRAST * rests[best]:
            raise WrongUsage(
                f"opposing rays agree no better with the axis at one place than at another ({rests[best]:.3g} apart at "
                f"best, {usual:.3g} usually); allowed: {LEAST_CONTRAST:g} times better",
                hint="align by the bead phantom (mpxct calibrate geometry), or scan an object with more structure",
            )
        return float(places[best])

    def rest(self, bands: slice | int, place_px: float) -> float:
        """Return the rms between rays and their opposites with the axis at this place; NaN if there are too few."""
        difference, _ = self._compare(bands, place_px)
        return float(np.sqrt(np.mean(difference**2))) if difference.size >= LEAST_PAIRS else np.nan

    def refine(self, bands: slice | int, place_px: float) -> tuple[float, float, float]:
        """Return the place where opposite rays agree best, its standard error, and the rms of the rest."""
        error_px, rest = np.inf, np.nan
        for _ in range(N_STEPS):
            difference, slope = self._compare(bands, place_px)
            steepness = float((slope**2).sum())
            if difference.size < LEAST_PAIRS or steepness <= 0:
                return place_px, np.inf, np.nan
            step = float(np.clip(-(difference * slope).sum() / steepness, -2, 2))
            place_px += step
            rest = float(np.sqrt(np.mean(difference**2)))
            # Every pair stands twice in a circle, and blurred neighbours are not independent.
            n_alike = 2 * (2 * np.sqrt(np.pi) * BLUR_PX)
            error_px = rest * np.sqrt(n_alike / steepness)
            if abs(step) < 1e-4:
                break
        return place_px, error_px, rest

    def _compare(self, bands: slice | int, place_px: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the differences of all pairs in some rows, and how they grow with the place: both (n,) float64."""
        band = self.values[:, [bands] if isinstance(bands, int) else bands]
        f_px = self.geometry.source_to_detector_mm / self.geometry.pitch_mm
        gamma = np.arctan((self.col - place_px) / f_px)
        opposite_col = place_px + (place_px - self.col) + (self.geometry.cols - 1) / 2
        opposite_angle = np.mod(self.angles[:, None] + np.pi - 2 * gamma, 2 * np.pi)
        after = np.searchsorted(self.angles, opposite_angle)
        n = len(self.angles)
        low, high = (after - 1) % n, after % n
        gap = np.mod(self.angles[high] - self.angles[low], 2 * np.pi)
        gap = np.where(gap == 0, 2 * np.pi, gap)
        share = np.mod(opposite_angle - self.angles[low], 2 * np.pi) / gap
        left = np.floor(opposite_col).astype(int)
        is_seen = (left >= 1) & (left < len(self.col) - 2)
        is_pair = (gap < 1.5 * self.step_rad) & is_seen
        view, col = np.nonzero(is_pair)
        part = (opposite_col - left)[col][:, None]
        share = share[view, col][:, None]

        def opposite(shift: int) -> NDArray[np.float64]:
            columns = left[col] + shift
            return (1 - share) * band[low[view, col], :, columns] + share * band[high[view, col], :, columns]

        around = [opposite(shift) for shift in (-1, 0, 1, 2)]
        there = _cubic(around, part)
        along = _cubic_slope(around, part)
        difference = there - band[view, :, col]
        return difference.ravel(), (2 * along).ravel()


def _cubic(nodes: list[NDArray[np.float64]], t: NDArray[np.floating]) -> NDArray[np.float64]:
    """Interpolate between the second and the third of four nodes (Catmull and Rom)."""
    a, b, c, d = nodes
    return b + t / 2 * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))


def _cubic_slope(nodes: list[NDArray[np.float64]], t: NDArray[np.floating]) -> NDArray[np.float64]:
    a, b, c, d = nodes
    return (c - a + t * (2 * (2 * a - 5 * b + 4 * c - d) + 3 * t * (3 * (b - c) + d - a))) / 2
