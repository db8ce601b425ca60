"""From what a pixel sees behind an object to the thickness of one material that shows the same: the step wedge.

A polychromatic beam hardens on its way, so -ln(counts / open beam) bends with thickness, in each pixel and bin by its
own threshold. Plates of known thickness teach every pixel its curve; read backwards it gives a thickness that is
straight in the object, with neither cupping nor rings.

The common curve of a bin is a polynomial of the signal without a constant, t = g(s); a pixel's own one is
t = g(s) (1 + a + b s / s_max), with `a` and `b` drawn towards 0 as far as their noise demands.

# Ref: signal to equivalent thickness, pixel by pixel: J. Jakubek 2007, Nucl. Instrum. Meth. A 576, 223; number of
#      thicknesses and form: reference on spectral CT, section 5.
# Ref: choice of the degree: G. Schwarz 1978, Ann. Stat. 6, 461 (BIC).
# Ref: drawing what each pixel shows towards the mean: B. Efron, C. Morris 1975, J. Am. Stat. Assoc. 70, 311.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from firmware_iface.errors import CalibrationMissing, WrongUsage

FEWEST_THICKNESSES = 4
HIGHEST_DEGREE = 4
FEWEST_COUNTS = 20.0
"""A pixel that counts less behind a plate, in all frames together, gets no curve of its own."""
FLOOR = 3e-4
"""Error of a signal that is no counting statistics: ripple of the tube, tolerance of the plates."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepWedge:
    """What the mean good pixel counts behind plates of known thickness.

    Attributes
    ----------
    plates : tuple of str
    materials : tuple of str
    layers_mm : (n_plates, n_materials) float64
        Along the mean ray.
    thresholds_kev : (n_bins,) float64
        Where the thresholds stood.
    open_beam : (n_bins,) float64
        Mean counts of a frame in each bin.
    counts : (n_plates, n_bins) float64
        The same behind each plate, the drift taken out.
    open_beam_sigma_relative : (n_bins,) float64
    sigma_relative : (n_plates, n_bins) float64
        Relative standard errors.
    """

    plates: tuple[str, ...]
    materials: tuple[str, ...]
    layers_mm: NDArray[np.float64]
    thresholds_kev: NDArray[np.float64]
    open_beam: NDArray[np.float64]
    counts: NDArray[np.float64]
    open_beam_sigma_relative: NDArray[np.float64]
    sigma_relative: NDArray[np.float64]

    def __post_init__(self) -> None:
        n_plates, n_bins = len(self.plates), len(self.thresholds_kev)
        if self.layers_mm.shape != (n_plates, len(self.materials)) or self.counts.shape != (n_plates, n_bins):
            raise ValueError(
                f"layers {self.layers_mm.shape} and counts {self.counts.shape} of {n_plates} plates, "
                f"{len(self.materials)} materials and {n_bins} bins; allowed: (plates, materials) and (plates, bins)"
            )

    def of_materials(self, names: Sequence[str]) -> StepWedge:
        """Return what plates of these materials alone show, the materials in this order."""
        if unknown := [name for name in names if name not in self.materials]:
            raise CalibrationMissing(
                f"no plate of the step wedge is of {', '.join(unknown)}; plates are of {', '.join(self.materials)}",
                hint="measure such plates: [calibration.wedge] of the plan; or fit the detector's response",
            )
        columns = np.array([self.materials.index(name) for name in names])
        others = np.delete(self.layers_mm, columns, axis=1)
        rows = np.flatnonzero(~others.any(axis=1))
        return replace(
            self,
            plates=tuple(self.plates[row] for row in rows),
            materials=tuple(names),
            layers_mm=self.layers_mm[np.ix_(rows, columns)],
            counts=self.counts[rows],
            sigma_relative=self.sigma_relative[rows],
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EquivalentThickness:
    """Each pixel's and bin's way from signal to thickness.

    Attributes
    ----------
    material : str
    thresholds_kev : tuple of float
        Lower edges of the bins, rising; the last bin is open.
    tube_kvp : float
    thickness_mm : (n_plates,) float64
        Of the plates, rising.
    signals : (n_plates, n_bins) float64
        -ln(counts / open beam) of the mean good pixel behind each.
    common_mm : (n_bins, HIGHEST_DEGREE) float64
        Thickness of the mean pixel by powers 1, 2, ... of the signal; powers that are not used have 0.
    scale : (n_bins, rows, cols) float32
        `a` of each pixel.
    bend : (n_bins, rows, cols) float32
        `b` of each pixel.
    highest_signal : (n_bins,) float64
        Signal of the mean pixel behind the thickest plate.
    sigma_mm : (n_bins, rows, cols) float32
        Standard error of one pixel's curve in the middle of its range, from the counts of the wedge.
    residual_mm : (n_bins,) float64
        Rms deviation of the plates from the common curve.
    reference_mm : float
        Thickness whose mean attenuation `linearised` gives to all others.
    """

    material: str
    thresholds_kev: tuple[float, ...]
    tube_kvp: float
    thickness_mm: NDArray[np.float64]
    signals: NDArray[np.float64]
    common_mm: NDArray[np.float64]
    scale: NDArray[np.float32]
    bend: NDArray[np.float32]
    highest_signal: NDArray[np.float64]
    sigma_mm: NDArray[np.float32]
    residual_mm: NDArray[np.float64]
    reference_mm: float

    def __post_init__(self) -> None:
        n_bins = len(self.thresholds_kev)
        if self.common_mm.shape != (n_bins, HIGHEST_DEGREE) or self.scale.shape != self.bend.shape:
            raise ValueError(
                f"curves {self.common_mm.shape} and pixels {self.scale.shape}, {self.bend.shape} of {n_bins} bins; "
                f"allowed: (n_bins, {HIGHEST_DEGREE}) and (n_bins, rows, cols) twice"
            )
        if not 0 < self.reference_mm <= self.thickness_mm[-1]:
            raise ValueError(f"reference_mm is {self.reference_mm}; allowed: up to {self.thickness_mm[-1]:g}")

    @property
    def figures(self) -> dict[str, object]:
        """What tells whether it is good."""
        return {
            "material": self.material,
            "thickest_mm": float(self.thickness_mm[-1]),
            "common_residual_mm": [round(float(r), 4) for r in self.residual_mm],
            "pixel_sigma_mm": [round(float(np.median(plane)), 3) for plane in self.sigma_mm],
        }

    def on_rows(self, rows: slice) -> EquivalentThickness:
        """Return the same of some rows of the detector."""
        of_pixels = {name: getattr(self, name)[:, rows] for name in ("scale", "bend", "sigma_mm")}
        return replace(self, **of_pixels)

    @property
    def reference_per_mm(self) -> NDArray[np.float64]:
        """Mean attenuation of the reference thickness in each bin: (n_bins,) float64."""
        grid = np.linspace(0, 1, 2001)[:, None] * self.highest_signal
        at = [
            np.interp(self.reference_mm, _polynomial(grid[:, k], self.common_mm[k])[0], grid[:, k])
            for k in range(len(self.highest_signal))
        ]
        return np.asarray(at) / self.reference_mm

    def equivalent_mm(self, signals: NDArray[np.floating]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return the thickness behind each signal, and which lie outside of what the wedge taught.

        Above the thickest plate the curve goes on straight, and is marked; below 0, where only noise is, likewise but
        unmarked.

        Parameters
        ----------
        signals : (n_bins, ..., rows, cols) float
            -ln(counts / open beam).

        Returns
        -------
        thickness_mm : (n_bins, ..., rows, cols) float32
        is_extrapolated : (n_bins, ..., rows, cols) bool

        Raises
        ------
        CalibrationMissing
            The wedge was measured with other bins or pixels.
        """
        if (signals.shape[0], *signals.shape[-2:]) != self.scale.shape:
            raise CalibrationMissing(
                f"the wedge was measured in {self.scale.shape} bins and pixels; the signals have {signals.shape}",
                hint="measure it in this mode: mpxct calibrate wedge",
            )
        thickness = np.empty(signals.shape, dtype=np.float32)
        is_extrapolated = np.empty(signals.shape, dtype=np.bool_)
        for k, values in enumerate(signals):
            highest = self.highest_signal[k]
            inside = np.clip(values, 0, highest)
            mean_mm, per_signal = _polynomial(inside, self.common_mm[k])
            x, beyond = inside / highest, values - inside
            own = 1 + self.scale[k] + self.bend[k] * x
            slope = per_signal * own + mean_mm * self.bend[k] / highest
            thickness[k] = mean_mm * own + beyond * slope
            is_extrapolated[k] = values > highest
        return thickness, is_extrapolated

    def linearised(self, signals: NDArray[np.floating]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return line integrals that are straight in thickness, as if all were attenuated like `reference_mm`.

        Shapes and marks are those of `equivalent_mm`; dimensionless.
        """
        thickness, is_extrapolated = self.equivalent_mm(signals)
        per_mm = self.reference_per_mm.astype(np.float32)
        return thickness * per_mm.reshape(-1, *[1] * (thickness.ndim - 1)), is_extrapolated


def fit_thickness(
    open_beam: NDArray[np.floating],
    behind: NDArray[np.floating],
    thickness_mm: Sequence[float],
    *,
    material: str,
    path_factors: NDArray[np.floating],
    n_frames: tuple[float, float],
    thresholds_kev: Sequence[float],
    tube_kvp: float,
    reference_mm: float,
    is_bad: NDArray[np.bool_] | None = None,
) -> EquivalentThickness:
    """Teach every pixel its curve.

    Parameters
    ----------
    open_beam : (n_bins, rows, cols) float
        Mean counts of a frame.
    behind : (n_plates, n_bins, rows, cols) float
        Mean counts of a frame behind each plate, the drift taken out.
    thickness_mm : sequence of float
        Of the plates, 6 to 12 of them in any order.
    path_factors : (rows, cols) float
        Length of each ray in a plate of 1 mm.
    n_frames : (float, float)
        How many frames the open beam is the mean of, and each plate.
    is_bad : (rows, cols) bool, optional
        Pixels that do not count; they get the common curve.

    Raises
    ------
    WrongUsage
        There are too few different thicknesses.
    CalibrationMissing
        Nothing came through in some bin, or a bin's curve does not rise.
    """
    order = np.argsort(thickness_mm)
    plates_mm = np.asarray(thickness_mm, dtype=np.float64)[order]
    if len(np.unique(plates_mm)) < FEWEST_THICKNESSES or plates_mm[0] <= 0:
        raise WrongUsage(
            f"the wedge has thicknesses of {', '.join(f'{t:g}' for t in plates_mm)} mm; "
            f"allowed: {FEWEST_THICKNESSES} or more different ones above 0"
        )
    counts = np.asarray(behind, dtype=np.float64)[order]
    is_good = np.asarray((open_beam > 0).all(axis=0))
    if is_bad is not None:
        is_good &= ~is_bad
    passed = counts[..., is_good].sum(axis=-1) if is_good.any() else np.zeros(counts.shape[:2])
    if not (passed > 0).all():
        empty = 1 + int(np.argmin((passed > 0).all(axis=0)))
        raise CalibrationMissing(
            f"nothing comes through {plates_mm[-1]:g} mm of {material} in bin {empty}",
            hint="use thinner plates, more frames or more current",
        )
    n_plates, n_bins = counts.shape[:2]
    signals, common = np.empty((n_plates, n_bins)), np.zeros((n_bins, HIGHEST_DEGREE))
    scale, bend, sigma = (np.zeros(counts.shape[1:], dtype=np.float32) for _ in range(3))
    residual = np.empty(n_bins)
    for k in range(n_bins):
        # The mean pixel is the mean of all counts: that of logarithms would favour pixels that saw something by chance.
        signals[:, k] = np.log(open_beam[k][is_good].sum() / passed[:, k])
        mean_mm = plates_mm * path_factors[is_good].mean()
        error = np.sqrt(1 / (n_frames[1] * passed[:, k]) + 1 / (n_frames[0] * open_beam[k][is_good].sum()) + FLOOR**2)
        common[k] = _fit_common(signals[:, k], mean_mm, error, f"bin {k + 1} of {material}")
        residual[k] = np.sqrt(np.mean((_polynomial(signals[:, k], common[k])[0] - mean_mm) ** 2))
        good = is_good & (n_frames[1] * counts[:, k] >= FEWEST_COUNTS).all(axis=0)
        if not good.any():
            continue
        seen = np.log(open_beam[k][good] / counts[:, k, good])
        # A count's logarithm is too low by half its relative variance; behind a thick plate that is not nothing.
        variance, flat_variance = 1 / (n_frames[1] * counts[:, k, good]), 1 / (n_frames[0] * open_beam[k][good])
        seen -= (variance - flat_variance) / 2
        paths_mm = plates_mm[:, None] * path_factors[good]
        mean_mm, per_signal = _polynomial(seen, common[k])
        per_signal /= mean_mm  # relative thickness by signal
        weight = 1 / (per_signal**2 * (variance + FLOOR**2))
        own, own_sigma = _fit_own(seen / signals[-1, k], paths_mm / mean_mm - 1, weight, per_signal, flat_variance)
        scale[k][good], bend[k][good] = own
        sigma[k][good] = own_sigma * plates_mm[-1] / 2
    return EquivalentThickness(
        material=material,
        thresholds_kev=tuple(thresholds_kev),
        tube_kvp=tube_kvp,
        thickness_mm=plates_mm,
        signals=signals,
        common_mm=common,
        scale=scale,
        bend=bend,
        highest_signal=signals[-1],
        sigma_mm=sigma,
        residual_mm=residual,
        reference_mm=reference_mm,
    )


def _polynomial(signal: NDArray, coefficients: NDArray[np.float64]) -> tuple[NDArray, NDArray]:
    """Return a polynomial without a constant, and its slope."""
    value, slope = np.zeros_like(signal), np.zeros_like(signal)
    for power in range(len(coefficients), 0, -1):
        value = value * signal + coefficients[power - 1]
        slope = slope * signal + power * coefficients[power - 1]
    return value * signal, slope


def _fit_common(
    signal: NDArray[np.float64], path_mm: NDArray[np.float64], error: NDArray[np.float64], what: str
) -> NDArray[np.float64]:
    """Fit the mean pixel's curve with the degree that the plates can bear: (HIGHEST_DEGREE,) float64 mm."""
    best, best_bic = np.zeros(HIGHEST_DEGREE), np.inf
    is_rising = signal[0] > 0 and (np.diff(signal) > 0).all()
    for degree in range(1, min(HIGHEST_DEGREE, len(signal) - 2) + 1 if is_rising else 1):
        coefficients = np.zeros(HIGHEST_DEGREE)
        per_signal = path_mm / signal
        for _ in range(3):  # the error of a signal is one of thickness by the curve's own slope
            rows = signal[:, None] ** np.arange(1, degree + 1) / (per_signal * error)[:, None]
            coefficients[:degree] = np.linalg.lstsq(rows, path_mm / (per_signal * error), rcond=None)[0]
            per_signal = np.maximum(_polynomial(signal, coefficients)[1], 1e-3 * path_mm / signal)
        deviation = (_polynomial(signal, coefficients)[0] - path_mm) / (per_signal * error)
        bic = float(deviation @ deviation) + degree * np.log(len(signal))
        if bic < best_bic and _polynomial(np.linspace(0, signal[-1], 200), coefficients)[1].min() > 0:
            best, best_bic = coefficients, bic
    if not np.isfinite(best_bic):
        raise CalibrationMissing(
            f"the signal does not rise with thickness in {what}: {np.array2string(signal, precision=3)}",
            hint="check which plate is which, and that the tube ran steadily",
        )
    return best


def _fit_own(
    x: NDArray[np.float64],
    ratio: NDArray[np.float64],
    weight: NDArray[np.float64],
    by_flat: NDArray[np.float64],
    flat_variance: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fit each pixel's `a` and `b`, drawn towards 0: (2, n_pixels), and its error at x = 1/2 (n_pixels,).

    All of (n_plates, n_pixels): where on its range, thickness over the common curve's minus 1, weight, and what an
    error of the flat, of variance (n_pixels,), does to the ratio: it is the same flat for all plates.
    """
    flat = (weight * by_flat**2).sum(axis=0) + 1 / flat_variance

    def product(u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
        shared = (weight * u * by_flat).sum(axis=0) * (weight * v * by_flat).sum(axis=0)
        return (weight * u * v).sum(axis=0) - shared / flat

    one = np.ones_like(x)
    w, wx, wxx, y, yx = product(one, one), product(one, x), product(x, x), product(one, ratio), product(x, ratio)
    det = w * wxx - wx**2
    a, b = (wxx * y - wx * yx) / det, (w * yx - wx * y) / det
    covariance = np.stack([np.stack([wxx, -wx]), np.stack([-wx, w])]) / det
    # Prior covariance of what pixels really are: what they show, less what counting alone would show.
    seen = np.cov(np.stack([a, b])) if a.size > 1 else np.zeros((2, 2))
    values, vectors = np.linalg.eigh(seen - covariance.mean(axis=2))
    prior = vectors @ np.diag(np.maximum(values, 0)) @ vectors.T
    total = prior[:, :, None] + covariance
    total_det = total[0, 0] * total[1, 1] - total[0, 1] ** 2
    inverse = np.stack([np.stack([total[1, 1], -total[0, 1]]), np.stack([-total[0, 1], total[0, 0]])]) / total_det
    gain = np.einsum("ij,jkn->ikn", prior, inverse)
    centre = np.array([[a.mean()], [b.mean()]])
    own = centre + np.einsum("ijn,jn->in", gain, np.stack([a, b]) - centre)
    left = prior[:, :, None] - np.einsum("ijn,jk->ikn", gain, prior)
    half = np.array([1.0, 0.5])
    return own, np.sqrt(np.maximum(np.einsum("i,ijn,j->n", half, left, half), 0))
