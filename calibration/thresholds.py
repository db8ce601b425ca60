"""Where thresholds stand: noise peaks per pixel, the trims that bring them together, and codes to keV by S-curves.

# Ref: noise peak against the threshold code, DAC_Disc from two settings so that the trim-0 mean stands 3.2 to 3.7 sigma
#      above the target, one more code lowers the peak: EXCALIBUR calibration and dexter, reference on the Medipix3RX,
#      sections 5.1 and 8; Merlin manual v0.7 p43-45. That the highest trim must reach as far below is our addition.
# Ref: S-curve of lines as error functions with a slope below the edge for shared charge: reference on spectral CT,
#      section 5; goal of 0.15 keV: KTH 2015, IEEE Trans. Med. Imaging 34, 788, as quoted there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares
from scipy.special import erfc

from calibration.attenuation import Line
from firmware_iface.chip import TRIM_CODES
from firmware_iface.errors import CalibrationMissing

MINIMUM_COUNTS = 100
"""A noise peak with fewer counts in the whole scan is none (Merlin calls 100 counts in one step an edge)."""
PEAK_FLOOR = 0.05
"""Counts below this share of a pixel's maximum are left out: photons and stray counts stand there."""
DISC_SIGMA = 3.5
"""How many sigma above the target the mean edge at trim 0 shall stand; the sources use 3.2 to 3.7."""
DISC_CODES = 256
RELATIVE_ERROR = 0.003
"""Uncertainty of the S-curve model itself, as a share of the curve's height: the law of shared charge is not linear."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrimChoice:
    """The best trim code of each discriminator.

    Attributes
    ----------
    trims : (...) uint8
    predicted_edges_dac : (...) float32
        Where the edge should stand with it; NaN where no edge was ever seen.
    is_out_of_range : (...) bool
        No code brings the edge within half a step of the target, or no edge was seen.
    """

    trims: NDArray[np.uint8]
    predicted_edges_dac: NDArray[np.float32]
    is_out_of_range: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SCurve:
    """Counts of one threshold against its code, under one source.

    Attributes
    ----------
    source : str
    lines : tuple of Line
        The source's lines that lie inside the scan; their fractions count relative to each other.
    dacs : (n_steps,) float64
    counts : (n_steps,) float64
        Sum over the pixels, as counted.
    """

    source: str
    lines: tuple[Line, ...]
    dacs: NDArray[np.float64]
    counts: NDArray[np.float64]

    def __post_init__(self) -> None:
        if not self.lines or min(line.fraction for line in self.lines) < 0:
            raise ValueError(
                f"{self.source} has the lines {self.lines}; allowed: one or more, none of negative fraction"
            )
        if self.dacs.shape != self.counts.shape or self.dacs.ndim != 1 or len(self.dacs) < 6:
            raise ValueError(
                f"the scan of {self.source} has {self.dacs.shape} codes and {self.counts.shape} counts; "
                "allowed: as many of both, 6 or more"
            )

    @property
    def energies_kev(self) -> NDArray[np.float64]:
        """Energy of each line: (n_lines,) float64."""
        return np.asarray([line.energy_kev for line in self.lines])

    @property
    def shares(self) -> NDArray[np.float64]:
        """Intensity of each line as a share of the source: (n_lines,) float64."""
        fractions = np.asarray([line.fraction for line in self.lines])
        return fractions / fractions.sum()

    @property
    def energy_kev(self) -> float:
        """Mean energy of the lines, by their intensity."""
        return float(self.shares @ self.energies_kev)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EnergyScale:
    """Code = offset + gain * energy, for one threshold.

    The residuals tell how well the sources agree with one another. What moves all edges alike, by a constant or by a
    share of the energy, they cannot show: it becomes a part of offset and gain.

    Attributes
    ----------
    sources : tuple of str
    energies_kev, positions_dac, residuals_kev, widths_dac : (n_sources,) float64
        Mean energy of each source, where a fit of this source alone finds it, that position on the joint scale minus
        the energy, and the width of the edge.
    """

    offset_dac: float
    gain_dac_per_kev: float
    sources: tuple[str, ...]
    energies_kev: NDArray[np.float64]
    positions_dac: NDArray[np.float64]
    residuals_kev: NDArray[np.float64]
    widths_dac: NDArray[np.float64]

    @property
    def residual_rms_kev(self) -> float:
        """Root mean square of the residuals."""
        return float(np.sqrt(np.mean(self.residuals_kev**2)))


def noise_edges_dac(
    counts: NDArray[np.number], dacs: ArrayLike, *, minimum_counts: int = MINIMUM_COUNTS
) -> NDArray[np.float32]:
    """Return the code at which each pixel counts the most noise: the centroid of its peak.

    A saturated peak is cut symmetrically, and photons stay below `PEAK_FLOOR` of the peak, so neither moves it.

    Parameters
    ----------
    counts : (n_steps, ...) number
    dacs : (n_steps,) number
        Codes of the scan, evenly spaced.

    Returns
    -------
    edges : (...) float32
        NaN where fewer than `minimum_counts` were counted in the whole scan, or where the peak is not inside it.
    """
    codes = np.asarray(dacs, dtype=np.float32)
    peak = counts.max(axis=0).astype(np.float32)
    weight = np.zeros(peak.shape, dtype=np.float32)
    moment = np.zeros(peak.shape, dtype=np.float32)
    total = np.zeros(peak.shape, dtype=np.float64)
    floor = PEAK_FLOOR * peak
    for code, step in zip(codes, counts, strict=True):  # step by step: a scan of 512 codes would fill the memory
        above = np.maximum(step - floor, 0)
        weight += above
        moment += above * (code - codes[0])
        total += step
    is_cut = np.maximum(counts[0], counts[-1]) > 0.5 * peak
    is_seen = (total >= minimum_counts) & ~is_cut
    return np.divide(moment, weight, out=np.full(peak.shape, np.nan, np.float32), where=is_seen) + codes[0]


def mean_and_sigma(edges_dac: NDArray[np.floating]) -> tuple[float, float]:
    """Return mean and standard deviation of the edges that are not NaN, without those beyond 5 robust sigma."""
    seen = edges_dac[np.isfinite(edges_dac)]
    if seen.size < 2:
        raise CalibrationMissing(
            "no pixel showed its noise peak in the threshold scan",
            hint="scan a wider range of codes, expose longer, and check that the bias and the DACs are set",
        )
    centre = np.median(seen)
    spread = 1.4826 * np.median(np.abs(seen - centre))  # of a normal law, without its outliers
    inside = seen[np.abs(seen - centre) <= 5 * spread].astype(np.float64)
    return float(inside.mean()), float(inside.std())


def choose_disc(
    discs: Sequence[int],
    lowest_trim_dac: Sequence[float],
    highest_trim_dac: Sequence[float],
    *,
    sigma_dac: float,
    target_dac: float,
    n_sigma: float = DISC_SIGMA,
) -> int:
    """Return the smallest DAC_Disc whose trims reach the target from both sides.

    The mean edge at the lowest trim then stands `n_sigma` above the target, and at the highest as far below it; a
    greater DAC_Disc would only make the steps coarser.

    Parameters
    ----------
    discs : two codes of DAC_Disc
    lowest_trim_dac, highest_trim_dac : mean edge with each of them, at the lowest and at the highest trim code
    """
    reach = n_sigma * sigma_dac
    wanted = []
    for means, goal, sign in ((lowest_trim_dac, target_dac + reach, 1), (highest_trim_dac, target_dac - reach, -1)):
        slope = (means[1] - means[0]) / (discs[1] - discs[0])
        if sign * slope <= 0:
            raise CalibrationMissing(
                f"DAC_Disc moves the mean edge at an end of the trims by {slope:.3f} codes per unit; "
                f"allowed: {'above' if sign > 0 else 'below'} 0",
                hint="check that the trims were loaded, and that both scans show whole noise peaks",
            )
        wanted.append(discs[0] + (goal - means[0]) / slope)
    return int(np.clip(np.ceil(max(wanted)), 1, DISC_CODES - 1))


def choose_trims(
    edges_dac: NDArray[np.floating], codes: Sequence[int], target_dac: float, *, n_codes: int = TRIM_CODES
) -> TrimChoice:
    """Choose the trim code that brings each edge nearest to the target.

    Between the measured codes an edge is interpolated, outside them extrapolated; the sign of the slope is the data's.
    An edge that was seen at one code only takes the median slope of the others.

    Parameters
    ----------
    edges_dac : (n_measured, ...) float
        Edge at each measured code; NaN where none was seen.
    codes : two measured trim codes or more, rising
    """
    edges = np.asarray(edges_dac, dtype=np.float32).reshape(len(codes), -1)
    if len(codes) < 2 or list(codes) != sorted(set(codes)):
        raise ValueError(f"the measured trim codes are {tuple(codes)}; allowed: two or more, rising")
    is_seen = np.isfinite(edges)
    line = _complete(edges, is_seen, np.asarray(codes, dtype=np.float32))
    best = np.zeros(edges.shape[1], dtype=np.uint8)
    best_edge = np.full(edges.shape[1], np.nan, dtype=np.float32)
    least = np.full(edges.shape[1], np.inf, dtype=np.float32)
    for code in range(n_codes):
        low = int(np.clip(np.searchsorted(codes, code, side="right") - 1, 0, len(codes) - 2))
        share = np.float32((code - codes[low]) / (codes[low + 1] - codes[low]))
        edge = line[low] + share * (line[low + 1] - line[low])
        distance = np.abs(edge - np.float32(target_dac))
        is_better = distance < least
        best[is_better], best_edge[is_better], least[is_better] = code, edge[is_better], distance[is_better]
    step = np.abs(line[-1] - line[0]) / (codes[-1] - codes[0])
    shape = np.shape(edges_dac)[1:]
    return TrimChoice(
        trims=best.reshape(shape),
        predicted_edges_dac=best_edge.reshape(shape),
        # a share more than half a step: with noise, the best of two neighbouring codes may predict just above it
        is_out_of_range=~(least <= 0.75 * step).reshape(shape),
    )


def refine_trims(trims: NDArray[np.uint8], edges_dac: NDArray[np.floating], target_dac: float) -> NDArray[np.uint8]:
    """Move each code one step against its error: an edge above the target gets code + 1, below it code - 1.

    The step is a trial: measure again, and keep per pixel what is closer (`keep_closer`).
    """
    error = np.nan_to_num(edges_dac - target_dac)
    return np.clip(trims.astype(np.int16) + np.sign(error).astype(np.int16), 0, TRIM_CODES - 1).astype(np.uint8)


def is_closer(trial_dac: NDArray[np.floating], edges_dac: NDArray[np.floating], target_dac: float) -> NDArray[np.bool_]:
    """Whether a trial brought an edge nearer to the target; an edge that was lost is not nearer."""
    return np.abs(trial_dac - target_dac) < np.nan_to_num(np.abs(edges_dac - target_dac), nan=np.inf)


def _complete(
    edges: NDArray[np.float32], is_seen: NDArray[np.bool_], codes: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Put each pixel's own straight line where an edge was not seen: (n_measured, n_pixels); all NaN where none was."""
    n_seen = is_seen.sum(axis=0)
    of = np.maximum(n_seen, 1)
    code_mean = np.where(is_seen, codes[:, None], 0).sum(axis=0) / of
    edge_mean = np.where(is_seen, edges, 0).sum(axis=0) / of
    from_mean = np.where(is_seen, codes[:, None] - code_mean, 0)
    spread = (from_mean**2).sum(axis=0)
    is_line = n_seen >= 2
    slope = np.full(edges.shape[1], np.nan, dtype=np.float32)
    rise = np.where(is_seen, from_mean * (edges - edge_mean), 0).sum(axis=0)
    np.divide(rise, spread, out=slope, where=is_line)
    if not is_line.any():
        raise CalibrationMissing(
            "no pixel showed its noise peak at two trim codes",
            hint="scan a wider range of codes, or measure trim codes that lie closer together",
        )
    slope[~is_line] = np.median(slope[is_line])
    line = np.where(n_seen > 0, edge_mean, np.nan) + slope * (codes[:, None] - code_mean)
    return np.where(is_seen, edges, line).astype(np.float32)


def steepest_dac(curve_dacs: ArrayLike, counts: ArrayLike) -> float:
    """Return the code where an S-curve falls fastest, from a smoothed difference: a first guess of the edge."""
    dacs, values = np.asarray(curve_dacs, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    fall = -np.convolve(np.diff(values), (0.25, 0.5, 0.25), mode="valid")
    if len(fall) == 0 or fall.max() <= 0:
        raise CalibrationMissing(
            "the counts do not fall anywhere in the scan", hint="check that the source is in the beam, and the range"
        )
    middles = (dacs[1:] + dacs[:-1]) / 2
    return float(middles[1 + int(np.argmax(fall))])


def fit_energy_scale(curves: Sequence[SCurve], *, guess: tuple[float, float] | None = None) -> EnergyScale:
    """Fit one straight energy scale to the S-curves of several sources together.

    Each source has its own intensity, slope below the edge, constant and width; offset and gain are common.

    Parameters
    ----------
    curves : two or more of different energies
    guess : (offset in DAC, gain in DAC per keV), optional
        Where to start; without it, the steepest point of each curve tells.
    """
    energies = np.asarray([curve.energy_kev for curve in curves])
    if len(curves) < 2 or np.ptp(energies) == 0:
        raise ValueError(f"{len(curves)} curves cannot give a scale; allowed: two or more of different energies")
    if guess is None:
        gain, offset = np.polyfit(energies, [steepest_dac(curve.dacs, curve.counts) for curve in curves], 1)
    else:
        offset, gain = guess
    start = [_start_of_shape(curve, offset, gain) for curve in curves]

    def joint(parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        shapes = parameters[2:].reshape(len(curves), 4)
        return np.concatenate(
            [
                _misfit(curve, parameters[0] + parameters[1] * curve.energies_kev, shape)
                for curve, shape in zip(curves, shapes, strict=True)
            ]
        )

    found = least_squares(joint, np.concatenate([[offset, gain], *start]), x_scale="jac", method="trf", max_nfev=400)
    offset, gain = float(found.x[0]), float(found.x[1])
    shapes = found.x[2:].reshape(len(curves), 4)
    positions = np.asarray(
        [_position_alone(curve, offset, gain, shape) for curve, shape in zip(curves, shapes, strict=True)]
    )
    return EnergyScale(
        offset_dac=offset,
        gain_dac_per_kev=gain,
        sources=tuple(curve.source for curve in curves),
        energies_kev=energies,
        positions_dac=positions,
        residuals_kev=(positions - offset) / gain - energies,
        widths_dac=np.abs(shapes[:, 3]),
    )


def _position_alone(curve: SCurve, offset: float, gain: float, shape: NDArray[np.float64]) -> float:
    """Fit one source by itself; the common gain only spaces the lines inside it."""
    spacing = gain * (curve.energies_kev - curve.energy_kev)

    def alone(parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        return _misfit(curve, parameters[0] + spacing, parameters[1:])

    start = np.concatenate([[offset + gain * curve.energy_kev], shape])
    return float(least_squares(alone, start, x_scale="jac", max_nfev=200).x[0])


def _start_of_shape(curve: SCurve, offset: float, gain: float) -> NDArray[np.float64]:
    """Guess height, relative slope per code, constant and width of one source."""
    constant = float(curve.counts.min())
    inside = curve.dacs < offset + gain * curve.energies_kev.min()
    height = float(np.median(curve.counts[inside]) if inside.any() else curve.counts.max()) - constant
    return np.asarray([max(height, 1.0), 0.0, constant, max(gain, 1.0)])


def _misfit(curve: SCurve, edges_dac: NDArray[np.float64], shape: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (model - counts) / sigma at each code; shape is (height, slope per code, constant, width)."""
    height, slope, constant, width = shape
    below = edges_dac - curve.dacs[:, None]
    steps = 0.5 * erfc(-below / (np.sqrt(2) * max(abs(width), 1e-3)))
    model = height * ((1 + slope * np.maximum(below, 0)) * steps) @ curve.shares + constant
    sigma = np.sqrt(np.maximum(curve.counts, 1) + (RELATIVE_ERROR * np.ptp(curve.counts)) ** 2)
    return (model - curve.counts) / sigma
