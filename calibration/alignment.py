"""Where source and detector are in truth, from the tracks of beads.

Seven numbers make a `Geometry` once the pixels are known. Beads of unknown places tell all of them but two:

- ``source_to_object_mm``: to enlarge the object and its distance to the source together changes no shadow. One known
  length, between the lowest and the highest bead, tells it; without one it stays as it was.
- ``tilt_u_rad``: a detector whose top leans to the source shows what an upright one shows of beads that are moved by
  x -> x (1 + tilt z / source_to_object), by 1.5 um a degree 4 mm from the middle at 200 mm. Only its cosine differs. It
  stays as it was unless asked for, and what it is wrong by harms a volume as little.

What else is weak, the standard errors tell: in a narrow fan ``tilt_v_rad`` changes shadows in the second order only,
and both distances together show by perspective alone, far worse than the magnification, their ratio.

# Ref: Fourier series of each track as the closed start (axis and roll from the means, bead from the first harmonic):
#      von Smekal et al. 2004, Med. Phys. 31, 3242; Yang et al. 2006, Med. Phys. 33, 1695.
# Ref: beads of unknown places, what stays ambiguous, and the weakness of the tilts: Graetz 2018, arXiv 1808.03337;
#      ellipses of tracks, and what they tell: Noo et al. 2000, Phys. Med. Biol. 45, 3489.
# Ref: all places and the pose together, by least squares on the image: Hartley and Zisserman 2004, Multiple View
#      Geometry, chapter 18 (bundle adjustment), appendix 6 (damped normal equations, covariance).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibration.beads import Shadows
from calibration.geometry import Geometry
from firmware_iface.errors import WrongUsage

PARAMETERS = (
    "source_to_detector_mm",
    "source_to_object_mm",
    "offset_u_mm",
    "offset_v_mm",
    "roll_rad",
    "tilt_u_rad",
    "tilt_v_rad",
)
"""What can be found; in this order."""
FOUND_BY_BEADS = tuple(name for name in PARAMETERS if name != "tilt_u_rad")
FEWEST_BEADS = 3
WIDEST_GAP_RAD = np.pi / 2
"""Tracks with a wider hole in the circle of views tell the distances no more."""
OUTLIER_SIGMA = 5.0
ROUGH_PX = 0.5
"""Rests up to here count in full in the first, robust, fit."""
MOST_STEPS = 60
DIFFERENCE = 1e-6
"""Step of numerical derivatives, in mm or rad."""
HELD_BY = 1e4
"""Weight of the known length in the fit, in pixels for its whole relative error: it is met, not fitted."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Alignment:
    """Where source and detector are, and how well that is known.

    Attributes
    ----------
    geometry : Geometry
        What was not found is as it was before.
    parameters : tuple of str
        The fields of the geometry that were found.
    standard_errors : (n_parameters,) float64
        Of each, in its own unit.
    residual_rms_px : float
        Between the shadows seen and those of the geometry found, or what the method compares.
    method : str
        In words, for people.
    n_views : int
    """

    geometry: Geometry
    parameters: tuple[str, ...]
    standard_errors: NDArray[np.float64] = field(metadata={"units": "as its parameter"})
    residual_rms_px: float
    method: str
    n_views: int

    def __post_init__(self) -> None:
        if self.standard_errors.shape != (len(self.parameters),):
            raise ValueError(
                f"{len(self.standard_errors)} standard errors for {len(self.parameters)} parameters; allowed: one each"
            )

    def standard_error(self, parameter: str) -> float:
        """Return the standard error of one parameter, in its own unit."""
        return float(self.standard_errors[self.parameters.index(parameter)])

    @property
    def figures(self) -> dict[str, object]:
        """What was found, for people and scripts: lengths in mm and angles in degrees, each with its standard error."""
        figures: dict[str, object] = {}
        for name, error in zip(self.parameters, self.standard_errors.tolist(), strict=True):
            value, is_angle = float(getattr(self.geometry, name)), name.endswith("_rad")
            figures[name.replace("_rad", "_deg")] = {
                "value": round(float(np.rad2deg(value)) if is_angle else value, 5),
                "standard_error": float(f"{np.rad2deg(error) if is_angle else error:.2g}"),
            }
        return {**figures, "residual_rms_px": round(self.residual_rms_px, 4), "method": self.method}


def refuse_few_views(angles_rad: ArrayLike) -> NDArray[np.float64]:
    """Return the angles as they are, or refuse a scan that leaves too much of the circle empty."""
    angles = np.asarray(angles_rad, dtype=np.float64).ravel()
    places = np.unique(np.mod(angles, 2 * np.pi))
    widest = np.diff(places, append=places[:1] + 2 * np.pi).max() if len(places) else 2 * np.pi
    if widest > WIDEST_GAP_RAD:
        raise WrongUsage(
            f"the views leave {np.rad2deg(widest):.0f} degrees of the circle empty; "
            f"allowed: up to {np.rad2deg(WIDEST_GAP_RAD):.0f}",
            hint="take the views of the bead phantom around the whole circle",
        )
    return angles


def align_beads(
    tracks: Sequence[Shadows],
    angles_rad: ArrayLike,
    nominal: Geometry,
    *,
    length_mm: float | None = None,
    length_error_mm: float = 0.0,
    parameters: Sequence[str] = FOUND_BY_BEADS,
) -> Alignment:
    """Find the geometry, and with it the place of every bead, that put the shadows where they were seen.

    Parameters
    ----------
    tracks : sequence of Shadows
        One for each bead, positions in columns and rows.
    angles_rad : (n_views,) float
    nominal : Geometry
        Its pixels are believed, and what `parameters` does not name.
    length_mm, length_error_mm : float, optional
        Between the centres of the lowest and the highest bead, and the standard error of that.
    parameters : sequence of str
        Of `PARAMETERS`: what to find. ``source_to_object_mm`` is left out if no length is known.

    Raises
    ------
    WrongUsage
        Too few beads or views, or the fit does not hold.
    """
    angles = refuse_few_views(angles_rad)
    if len(tracks) < FEWEST_BEADS:
        raise WrongUsage(
            f"{len(tracks)} beads were followed; allowed: {FEWEST_BEADS} or more",
            hint="put the bead phantom into the beam, or expose longer",
        )
    found = [name for name in PARAMETERS if name in parameters]
    if length_mm is None and "source_to_object_mm" in found:
        found.remove("source_to_object_mm")
    fit = _Fit(tracks, angles, nominal, found, length_mm)
    rough = fit.solve(fit.start(), is_robust=True)
    fit.drop_outliers(rough)
    final = fit.solve(rough)
    n_freedom = 2 * int(fit.is_used.sum()) - len(final)
    if n_freedom < 1:
        raise WrongUsage(
            f"{int(fit.is_used.sum())} shadows do not tell {len(final)} unknowns",
            hint="take more views of the bead phantom",
        )
    variance_px2 = float((fit.rests_px(final, is_held=False) ** 2).sum()) / n_freedom
    errors = fit.errors_per_px(final)[: len(found)] * np.sqrt(variance_px2)
    geometry = fit.geometry(final)
    if length_mm is not None and "source_to_object_mm" in found:
        place = found.index("source_to_object_mm")
        errors[place] = np.hypot(errors[place], geometry.source_to_object_mm * length_error_mm / length_mm)
    return Alignment(
        geometry=geometry,
        parameters=tuple(found),
        standard_errors=errors,
        residual_rms_px=float(np.sqrt(variance_px2)),
        method=f"{len(tracks)} beads, {int(fit.is_used.sum())} shadows, {int((~fit.is_used).sum())} left out",
        n_views=len(angles),
    )


class _Fit:
    """Geometry and beads as one vector of numbers, and what they leave of the shadows."""

    def __init__(
        self,
        tracks: Sequence[Shadows],
        angles: NDArray[np.float64],
        nominal: Geometry,
        found: Sequence[str],
        length_mm: float | None,
    ) -> None:
        self.angles, self.nominal, self.found, self.length_mm = angles, nominal, tuple(found), length_mm
        middle_px = np.array([nominal.cols - 1, nominal.rows - 1]) / 2
        self.tracks = tracks
        self.bead = np.repeat(np.arange(len(tracks)), [len(track) for track in tracks])
        self.view = np.concatenate([track.view for track in tracks])
        self.seen_px = np.concatenate([track.at_px for track in tracks]) - middle_px
        self.is_used = np.ones(len(self.view), bool)
        heights = [float(np.median(track.at_px[:, 1])) for track in tracks]
        self.ends = int(np.argmin(heights)), int(np.argmax(heights))

    def start(self) -> NDArray[np.float64]:
        """Return where to start: axis and roll from the middles of the tracks, beads from their first harmonics."""
        nominal, middles, amplitudes = self.nominal, [], []
        terms = np.stack([np.ones_like(self.angles), np.cos(self.angles), np.sin(self.angles)], axis=1)
        for number in range(len(self.tracks)):
            mine = self.bead == number
            series = np.linalg.lstsq(terms[self.view[mine]], self.seen_px[mine], rcond=None)[0]
            middles.append(series[0])
            amplitudes.append(series[1:, 0])
        u, v = np.array(middles).T
        slope, axis_px = np.polyfit(v, u, 1) if np.ptp(v) > 1 else (0.0, float(u.mean()))
        start = {name: float(getattr(nominal, name)) for name in self.found}
        start |= {name: value for name, value in {"roll_rad": float(np.arctan(slope))}.items() if name in start}
        if "offset_u_mm" in start:
            start["offset_u_mm"] = -float(axis_px) * nominal.pitch_mm
        on_axis_mm = nominal.pitch_mm / nominal.magnification
        x_mm, y_mm = np.array(amplitudes).T * on_axis_mm
        z_mm = v * on_axis_mm + nominal.offset_v_mm / nominal.magnification
        beads_mm = np.stack([x_mm, y_mm, z_mm], axis=1)
        if self.length_mm is not None and "source_to_object_mm" in start:
            scale = self.length_mm / float(np.linalg.norm(np.subtract(*beads_mm[list(self.ends)])))
            beads_mm *= scale
            start["source_to_object_mm"] *= float(scale)
        return np.concatenate([list(start.values()), beads_mm.ravel()])

    def geometry(self, x: NDArray[np.float64]) -> Geometry:
        """Return the geometry that a vector means."""
        return replace(self.nominal, **dict(zip(self.found, map(float, x), strict=False)))

    def rests_px(self, x: NDArray[np.float64], *, is_held: bool = True) -> NDArray[np.float64]:
        """Return what is left of each shadow that is used, and of the known length."""
        beads_mm = x[len(self.found) :].reshape(-1, 3)
        try:
            views = self.geometry(x).views(self.angles)
        except ValueError:  # a step out of what can be: the fit takes a shorter one
            return np.full(2 * int(self.is_used.sum()) + (self._is_scaled and is_held), 1e6)
        shadows = views.shadows_px(beads_mm)[self.view, self.bead]
        rests = np.asarray((shadows - self.seen_px)[self.is_used].ravel(), dtype=np.float64)
        if not (self._is_scaled and is_held) or self.length_mm is None:
            return rests
        low, high = self.ends
        stretch = np.linalg.norm(beads_mm[high] - beads_mm[low]) / self.length_mm
        return np.append(rests, float(HELD_BY * (stretch - 1)))

    def solve(self, x: NDArray[np.float64], *, is_robust: bool = False) -> NDArray[np.float64]:
        """Return the numbers that leave least of the shadows, from a start; robust: large rests count linearly."""
        damping, rests = 1e-3, self.rests_px(x)
        for _ in range(MOST_STEPS):
            shares = 1 / np.sqrt(1 + (rests / ROUGH_PX) ** 2) if is_robust else np.ones_like(rests)
            jacobian = self._jacobian(x, rests) * np.sqrt(shares)[:, None]
            scale = np.maximum(np.linalg.norm(jacobian, axis=0), 1e-12)
            jacobian /= scale
            normal, downhill = jacobian.T @ jacobian, jacobian.T @ (np.sqrt(shares) * rests)
            while damping < 1e9:
                step = -np.linalg.solve(normal + damping * np.eye(len(x)), downhill) / scale
                tried = self.rests_px(x + step)
                gain = _cost(rests, is_robust) - _cost(tried, is_robust)
                if gain >= 0:
                    break
                damping *= 8
            else:
                break
            x, rests, damping = x + step, tried, damping / 8
            if gain <= 1e-9 * _cost(rests, is_robust):
                break
        return x

    def errors_per_px(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the standard error of each number for rests of one pixel."""
        jacobian = self._jacobian(x, self.rests_px(x))
        scale = np.maximum(np.linalg.norm(jacobian, axis=0), 1e-12)
        jacobian /= scale
        return np.sqrt(np.diag(np.linalg.pinv(jacobian.T @ jacobian, hermitian=True))) / scale

    def _jacobian(self, x: NDArray[np.float64], rests: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the derivatives of the rests: one difference for each number of the geometry, three for all beads."""
        n_found, n_beads = len(self.found), len(self.tracks)
        bead = np.repeat(self.bead[self.is_used], 2)
        jacobian = np.zeros((len(rests), len(x)))

        def slope(places: Sequence[int] | NDArray[np.intp]) -> NDArray[np.float64]:
            step = np.zeros_like(x)
            step[places] = DIFFERENCE
            return (self.rests_px(x + step) - rests) / DIFFERENCE

        for column in range(n_found):
            jacobian[:, column] = slope([column])
        for axis in range(3):  # no bead moves another's shadow
            places = n_found + axis + 3 * np.arange(n_beads)
            jacobian[np.arange(len(bead)), places[bead]] = slope(places)[: len(bead)]
        if self._is_scaled and self.length_mm is not None:
            low, high = (x[n_found + 3 * end : n_found + 3 * end + 3] for end in self.ends)
            along = HELD_BY * (high - low) / np.linalg.norm(high - low) / self.length_mm
            for end, sign in zip(self.ends, (-1, 1), strict=True):
                jacobian[-1, n_found + 3 * end : n_found + 3 * end + 3] = sign * along
        return jacobian

    @property
    def _is_scaled(self) -> bool:
        return self.length_mm is not None and "source_to_object_mm" in self.found

    def drop_outliers(self, x: NDArray[np.float64]) -> None:
        """Leave out shadows that lie further off than noise explains."""
        rests = np.abs(self.rests_px(x, is_held=False)).reshape(-1, 2).max(axis=1)
        self.is_used &= rests < OUTLIER_SIGMA * max(1.4826 * float(np.median(rests)), 1e-6)


def _cost(rests: NDArray[np.float64], is_robust: bool) -> float:
    squares = rests**2
    return float((2 * ROUGH_PX**2 * (np.sqrt(1 + squares / ROUGH_PX**2) - 1) if is_robust else squares).sum())
