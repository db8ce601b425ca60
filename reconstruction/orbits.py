"""What each measured ray counts: the arc that its view stands for, and its share among the rays that repeat it.

A full circle sees every ray twice, from both ends; a short scan sees some twice, a shifted camera sees some once, and a
helix sees every point for as long as it stays before the camera. In each case the shares of the rays that run along one
line are to add up to one, and to change smoothly from ray to ray, because the ramp behind them is a derivative.

At angle b, a ray that leaves the source g beside the central ray runs along the same line as the ray at -g from angle
b + pi - 2 g (with the signs of `calibration.geometry`).

# Ref: short scans: Parker 1982, Med. Phys. 9, 254; with more than the least arc: Silver 2000, Med. Phys. 27, 773.
# Ref: a camera that sees one side: Wang 2002, Med. Phys. 29, 1634; Cho, Rudd and Johnson 1996, Comput. Med. Imaging
#      Graph. 20, 49.
# Ref: parallel beams: Kak and Slaney 1988, chapter 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibration.geometry import Geometry
from firmware_iface.errors import WrongUsage
from reconstruction.scan_geometry import ScanGeometry
from reconstruction.volume import Grid

WIDEST_GAP_RAD = np.deg2rad(20.0)
"""Widest hole between neighbouring views; an arc that is broken by a wider one ends there."""
SAME_ANGLE_DECIMALS = 7
"""Views whose angles agree to these decimals, in rad, stand at one place of the circle."""
ONE_SIDED_SHARE = 0.5
"""A camera that sees less than this share of its longer side on the shorter one stands to one side on purpose."""
BROKEN_STEPS = 5.0
"""A gap of more than so many usual steps is where an arc begins and ends, if the arc is long enough without it."""
HELIX_SHARE = 0.25
"""Lifts that span more than this share of what the camera sees on the axis are those of a helix."""
UNEVEN_SHARE = 0.1
"""How far lifts may lie off an even helix, as the same share."""
SPARSE_HINT = "scan a full circle, or ask for an iterative method, as sirt"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Orbit:
    """A planned scan, as filtered back-projection needs it.

    Attributes
    ----------
    scan : ScanGeometry
        Of upright detectors.
    view_weights : (n_views,) float64
        The arc that each view stands for in rad, over the square of the magnification on the axis.
    ray_shares : (n_views, cols) float32
        Of each ray among those along its line.
    sampling_mm : float
        From one column to the next, on the axis.
    beyond : int, int
        Columns before the first and after the last, where a camera to one side counts for nothing: what is filtered
        reaches into them all the same.
    helix : Helix or None
        What shares the rays out along a helix: not known before it is known which point is asked for.
    """

    scan: ScanGeometry
    view_weights: NDArray[np.float64]
    ray_shares: NDArray[np.float32]
    sampling_mm: float
    beyond: tuple[int, int] = (0, 0)
    helix: Helix | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Helix:
    """A source that sinks evenly as it turns, or rather a stage that lifts.

    Attributes
    ----------
    angles_rad : (n_views,) float64
        Of all turns, not taken back to one circle.
    lift_mm_per_rad : float
        What the lift gains.
    is_one_sided : bool
        The rays' shares are those of a camera to one side, and turns are shared out only among themselves.
    """

    angles_rad: NDArray[np.float64]
    lift_mm_per_rad: float
    is_one_sided: bool


def angular_weights_rad(angles_rad: ArrayLike, period_rad: float = 2 * np.pi) -> NDArray[np.float64]:
    """Return how much of the circle each view stands for: half the way to its neighbours on both sides.

    The sum is a whole period whatever the spacing: a lost view is made up for by its neighbours, and where a scan
    overlaps itself the views share their stretch.
    """
    angles = np.mod(np.asarray(angles_rad, dtype=np.float64).ravel(), period_rad)
    places, place, n_sharing = _places(angles)
    if len(places) < 2:
        raise WrongUsage(
            f"there are {len(angles)} views at {len(places)} angles; allowed: a full circle of them",
            hint=SPARSE_HINT,
        )
    gaps = np.diff(places, append=places[0] + period_rad)
    if gaps.max() > WIDEST_GAP_RAD:
        raise WrongUsage(
            f"the views leave {np.rad2deg(gaps.max()):.1f} degrees of the circle empty; "
            f"allowed: at most {np.rad2deg(WIDEST_GAP_RAD):.0f}",
            hint=SPARSE_HINT,
        )
    return ((gaps + np.roll(gaps, 1)) / 2)[place] / n_sharing


def arc_weights_rad(angles_rad: ArrayLike) -> NDArray[np.float64]:
    """Return how much of an open arc each view stands for; the first and last go as far out as in."""
    places, place, n_sharing = _places(np.asarray(angles_rad, dtype=np.float64).ravel())
    gaps = np.diff(places)
    return ((np.append(gaps[:1], gaps) + np.append(gaps, gaps[-1:])) / 2)[place] / n_sharing


def _places(angles: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.intp], NDArray[np.intp]]:
    """Return the different angles, which of them each view has, and how many views share it."""
    places, place, n_sharing = np.unique(angles.round(SAME_ANGLE_DECIMALS), return_inverse=True, return_counts=True)
    return places, place, n_sharing[place]


def short_scan_shares(
    along_rad: NDArray[np.float64], fans_rad: NDArray[np.float64], arc_rad: float
) -> NDArray[np.float64]:
    """Return the shares of rays in an arc of less than a circle: (n_views, n_rays).

    Parameters
    ----------
    along_rad : (n_views,) float
        From the beginning of the arc to each view.
    fans_rad : (n_views, n_rays) float
        Angles of the rays beside the central one.
    arc_rad : float
        From pi and the fan to 2 pi.

    A ray that lies outside the fan for which the arc is long enough is taken as the last one inside.
    """
    half_fan = (arc_rad - np.pi) / 2
    fan = np.clip(-fans_rad, -half_fan * (1 - 1e-9), half_fan * (1 - 1e-9))  # Parker counts fans the other way
    b = along_rad[:, None]
    rising = np.sin(np.pi / 4 * np.clip(b / (half_fan - fan), 0, 2)) ** 2
    falling = np.sin(np.pi / 4 * np.clip((np.pi + 2 * half_fan - b) / (half_fan + fan), 0, 2)) ** 2
    return np.where(b < 2 * (half_fan - fan), rising, np.where(b > np.pi - 2 * fan, falling, 1.0))


def one_sided_shares(fans_rad: NDArray[np.float64], overlap_rad: float) -> NDArray[np.float64]:
    """Return the shares of rays in a circle of a camera that sees more on one side.

    Parameters
    ----------
    fans_rad : (...) float
        Positive towards the side that the camera sees more of.
    overlap_rad : float
        Up to which fan angle it sees on the other.
    """
    return 0.5 + 0.5 * np.sin(np.pi / 2 * np.clip(fans_rad / overlap_rad, -1, 1))


def plan_orbit(
    angles_rad: ArrayLike,
    geometry: Geometry,
    grid: Grid,
    *,
    lifts_mm: ArrayLike = 0.0,
    shifts_mm: ArrayLike = 0.0,
    is_one_sided: bool | None = None,
) -> Orbit:
    """Tell what kind of cone-beam scan the views make, and what its rays count.

    - Lifts that climb by more than a quarter of what the camera sees: a helix.
    - Views all around: a circle. If the camera stands to one side, by so much that one side sees less than half of what
      the other does, or that the grid reaches further than the short side sees, its rays are shared out for it.
    - An arc of at least half a circle and the fan (of the detector, or of what the grid needs): a short scan.

    Parameters
    ----------
    geometry : Geometry
        Without tilts.
    is_one_sided : bool, optional
        Whether the camera stands to one side; None: as above.

    Raises
    ------
    WrongUsage
        The views do not see every ray.
    """
    angles = np.asarray(angles_rad, dtype=np.float64).ravel()
    scan = ScanGeometry.circular(geometry, angles, lifts_mm=lifts_mm, shifts_mm=shifts_mm)
    lifts, shifts = (np.broadcast_to(np.asarray(mm, dtype=np.float64), angles.shape) for mm in (lifts_mm, shifts_mm))
    middle_mm, half_mm = geometry.offset_u_mm + float(shifts.mean()), geometry.cols * geometry.pitch_mm / 2
    low_mm, high_mm = middle_mm - half_mm, middle_mm + half_mm
    if not low_mm < 0 < high_mm:
        raise WrongUsage(
            f"the camera sees {low_mm:.4g} to {high_mm:.4g} mm beside the axis; allowed: cameras that see the axis",
            hint="take the other tiles too, or move the camera",
        )
    u_mm = (np.arange(geometry.cols) - (geometry.cols - 1) / 2) * geometry.pitch_mm + geometry.offset_u_mm
    fans_rad = np.arctan((u_mm + shifts[:, None]) / geometry.source_to_detector_mm)
    short_mm, long_mm = sorted((-low_mm, high_mm))
    short_rad, long_rad = (np.arctan(side_mm / geometry.source_to_detector_mm) for side_mm in (short_mm, long_mm))
    _, y, x = grid.axes_mm()
    reach_rad = np.arcsin(min(max(np.abs(x).max(), np.abs(y).max()) / geometry.source_to_object_mm, 1.0))
    if is_one_sided is None:
        is_one_sided = bool(short_mm < ONE_SIDED_SHARE * long_mm or short_rad < min(reach_rad, long_rad - 1e-9))
    to_long = np.copysign(1.0, high_mm + low_mm)
    helix, arc = _helix(angles, lifts, geometry, is_one_sided=is_one_sided), None
    if helix is not None:
        weights = arc_weights_rad(helix.angles_rad)
        shares = one_sided_shares(to_long * fans_rad, short_rad) if is_one_sided else np.ones_like(fans_rad)
    else:
        arc = _open_arc(angles, np.pi + 2 * min(long_rad, reach_rad))
        if arc is None:
            weights = angular_weights_rad(angles)
            shares = one_sided_shares(to_long * fans_rad, short_rad) if is_one_sided else np.full_like(fans_rad, 0.5)
        else:
            if short_mm < ONE_SIDED_SHARE * long_mm:
                raise WrongUsage(
                    f"the camera sees {short_mm:.4g} mm on one side of the axis and {long_mm:.4g} mm on the other, in "
                    f"an arc of {np.rad2deg(arc[1]):.1f} degrees; allowed: a full circle for it",
                    hint="scan a full circle",
                )
            along_rad, arc_rad = arc
            weights = arc_weights_rad(along_rad)
            shares = short_scan_shares(along_rad, fans_rad, arc_rad)
    return Orbit(
        scan=scan,
        view_weights=weights / geometry.magnification**2,
        ray_shares=shares.astype(np.float32),
        sampling_mm=geometry.pitch_mm / geometry.magnification,
        beyond=_beyond(low_mm, high_mm, geometry.pitch_mm) if is_one_sided and arc is None else (0, 0),
        helix=helix,
    )


def plan_parallel(angles_rad: ArrayLike, scan: ScanGeometry, grid: Grid) -> Orbit:
    """Return what the rays of parallel beams square to the axis count, around a circle or half of one.

    On a circle, a camera that stands to one side is allowed, by the rule of `plan_orbit`.
    """
    angles = np.asarray(angles_rad, dtype=np.float64).ravel()
    pitch_mm = float(np.linalg.norm(scan.u_mm[0]))
    middle_mm = (scan.detector_mm * scan.u_mm).sum(-1) / pitch_mm
    u_mm = middle_mm[:, None] + (np.arange(scan.cols) - (scan.cols - 1) / 2) * pitch_mm
    low_mm, high_mm = middle_mm.mean() - scan.cols * pitch_mm / 2, middle_mm.mean() + scan.cols * pitch_mm / 2
    if not low_mm < 0 < high_mm:
        raise WrongUsage(f"the camera sees {low_mm:.4g} to {high_mm:.4g} mm beside the axis; allowed: the axis in view")
    short_mm, long_mm = sorted((-low_mm, high_mm))
    _, y, x = grid.axes_mm()
    reach_mm = max(np.abs(x).max(), np.abs(y).max())
    is_one_sided = bool(short_mm < ONE_SIDED_SHARE * long_mm or short_mm < min(reach_mm, long_mm - 1e-9))
    if is_one_sided and _widest_gap_rad(angles) <= WIDEST_GAP_RAD:
        weights = angular_weights_rad(angles)
        shares = one_sided_shares(np.copysign(1.0, high_mm + low_mm) * u_mm, short_mm)
    else:
        if short_mm < ONE_SIDED_SHARE * long_mm:
            raise WrongUsage(
                f"the camera sees {short_mm:.4g} mm on one side of the axis and {long_mm:.4g} mm on the other; "
                "allowed: a full circle for it",
                hint="scan a full circle",
            )
        is_one_sided = False
        weights, shares = angular_weights_rad(angles, np.pi), np.ones_like(u_mm)
    return Orbit(
        scan=scan,
        view_weights=weights,
        ray_shares=shares.astype(np.float32),
        sampling_mm=pitch_mm,
        beyond=_beyond(low_mm, high_mm, pitch_mm) if is_one_sided else (0, 0),
    )


def _beyond(low_mm: float, high_mm: float, pitch_mm: float) -> tuple[int, int]:
    """Return how many columns a camera lacks before its first and after its last to be as wide on both sides."""
    n_lacking = int(np.ceil(abs(high_mm + low_mm) / pitch_mm - 1e-6))
    return (n_lacking, 0) if high_mm > -low_mm else (0, n_lacking)


def _widest_gap_rad(angles: NDArray[np.float64]) -> float:
    places = np.unique(np.mod(angles, 2 * np.pi).round(SAME_ANGLE_DECIMALS))
    return float(np.diff(places, append=places[0] + 2 * np.pi).max())


def _open_arc(angles: NDArray[np.float64], least_rad: float) -> tuple[NDArray[np.float64], float] | None:
    """Return how far along an arc each view stands, and the arc; None for a circle.

    The first and the last view stand for half a step beyond them too.
    """
    folded = np.mod(angles, 2 * np.pi)
    places = np.unique(folded.round(SAME_ANGLE_DECIMALS))
    gaps = np.diff(places, append=places[0] + 2 * np.pi)
    widest = int(np.argmax(gaps))
    if len(places) < 3 or gaps[widest] <= BROKEN_STEPS * np.median(gaps):
        return None
    inner = np.roll(gaps, -widest - 1)[:-1]  # from the first view of the arc to its last
    before, after = inner[0] / 2, inner[-1] / 2
    arc_rad = float(inner.sum() + before + after)
    if arc_rad < least_rad - 10.0 ** (1 - SAME_ANGLE_DECIMALS):
        if gaps[widest] <= WIDEST_GAP_RAD:
            return None
        raise WrongUsage(
            f"the views leave {np.rad2deg(gaps[widest]):.1f} degrees of the circle empty; allowed: an arc of at least "
            f"{np.rad2deg(least_rad):.1f} degrees, half a circle and the fan",
            hint=f"{SPARSE_HINT}, or for a smaller volume",
        )
    if inner.max() > WIDEST_GAP_RAD:
        raise WrongUsage(
            f"the views leave {np.rad2deg(inner.max()):.1f} degrees of the arc empty; "
            f"allowed: at most {np.rad2deg(WIDEST_GAP_RAD):.0f}",
            hint="scan the missing views",
        )
    start = places[(widest + 1) % len(places)]
    along = np.mod(folded - start + np.pi / 4 * 10**-SAME_ANGLE_DECIMALS, 2 * np.pi)
    return along + before, arc_rad


def _helix(
    angles: NDArray[np.float64], lifts_mm: NDArray[np.float64], geometry: Geometry, *, is_one_sided: bool
) -> Helix | None:
    """Return the even helix that the lifts are, if they are one."""
    height_mm = geometry.rows * geometry.pitch_mm / geometry.magnification
    if np.ptp(lifts_mm) <= HELIX_SHARE * height_mm:
        return None
    order = np.argsort(lifts_mm, kind="stable")
    unwound = np.empty_like(angles)
    unwound[order] = np.unwrap(angles[order])
    if np.abs(np.diff(unwound[order])).max() > WIDEST_GAP_RAD:
        raise WrongUsage(
            f"neighbouring views of the helix are {np.rad2deg(np.abs(np.diff(unwound[order])).max()):.1f} degrees "
            f"apart; allowed: at most {np.rad2deg(WIDEST_GAP_RAD):.0f}",
            hint="scan the missing views",
        )
    per_rad, lift_mm = np.polyfit(unwound, lifts_mm, 1) if np.ptp(unwound) > 0 else (np.inf, 0.0)
    if not np.abs(lifts_mm - lift_mm - per_rad * unwound).max() <= UNEVEN_SHARE * height_mm:
        raise WrongUsage(
            f"the object was lifted over {np.ptp(lifts_mm):.4g} mm, and not evenly with the angle; "
            "allowed: a circle, or an even helix",
            hint="reconstruct each circle for itself",
        )
    return Helix(angles_rad=unwound, lift_mm_per_rad=float(per_rad), is_one_sided=is_one_sided)
