"""Where the noise of each pixel stands, the trims that bring all pixels together, and how well they then stand.

# Ref: noise peak against the threshold code, DAC_Disc from two settings so that the trim-0 mean stands 3.2 to 3.7 sigma
#      above the target, one more code lowers the peak: EXCALIBUR calibration and dexter, reference on the Medipix3RX,
#      sections 5.1 and 8; Merlin manual v0.7 p43-45. That the highest trim must reach as far below is our addition.
# Ref: test pulses equalise too: dexter, the same section 8.2. The area under a falling S-curve over its height is where
#      it falls, whatever its shape: integration by parts.
# Ref: the best code is at most half a step away, a uniform law of sigma = step / sqrt(12): the quantisation limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from firmware_iface.chip import TRIM_CODES
from firmware_iface.errors import CalibrationMissing

MINIMUM_COUNTS = 100
"""A noise peak with fewer counts in the whole scan is none (Merlin calls 100 counts in one step an edge)."""
PEAK_FLOOR = 0.05
"""Counts below this share of a pixel's maximum are left out: photons and stray counts stand there."""
DISC_SIGMA = 3.5
"""How many sigma above the target the mean edge at trim 0 shall stand; the sources use 3.2 to 3.7."""
DISC_CODES = 256


class TrimFault(IntEnum):
    """Why a discriminator could not be equalised; 0: it could."""

    NONE = 0
    NO_EDGE = 1
    TOO_HIGH = 2
    """Its edge stays above the target at every trim code."""
    TOO_LOW = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Equalisation:
    """How an equalisation went; one value per threshold.

    Attributes
    ----------
    method : str
        "noise", "pulses" or "source".
    energy_kev : float
        Charge at whose edge the pixels were brought together, as the energy of a photon; 0 for noise.
    pair_kev : float
        Energy per electron in the sensor, for figures in electrons.
    mean_before_dac, mean_after_dac, sigma_before_dac, sigma_after_dac : (n_thresholds,) float64
        Edges at the middle trim and at the chosen ones: mean and spread over the pixels, without outliers.
    step_dac : (n_thresholds,) float64
        Root mean square of the pixels' measured trim steps.
    n_rounds : int
        Rounds in which pixels were moved, until none came closer.
    trim_histogram : (n_thresholds, 32) int64
        How many pixels have each trim code.
    fault : (n_thresholds, rows, cols) uint8
        Values of `TrimFault`.
    """

    method: str
    energy_kev: float
    pair_kev: float
    mean_before_dac: NDArray[np.float64]
    mean_after_dac: NDArray[np.float64]
    sigma_before_dac: NDArray[np.float64]
    sigma_after_dac: NDArray[np.float64]
    step_dac: NDArray[np.float64]
    n_rounds: int
    trim_histogram: NDArray[np.int64] = field(metadata={"units": "pixels"})
    fault: NDArray[np.uint8] = field(metadata={"units": "reason"})

    @property
    def limit_dac(self) -> NDArray[np.float64]:
        """Spread that the trims' own steps leave, if every pixel gets its best code: (n_thresholds,) float64."""
        return self.step_dac / np.sqrt(12)

    def in_kev(self, dac: NDArray[np.float64], gain_dac_per_kev: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return a spread of each threshold in keV."""
        return dac / gain_dac_per_kev

    def in_electrons(self, dac: NDArray[np.float64], gain_dac_per_kev: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return a spread of each threshold in electrons."""
        return dac / gain_dac_per_kev / self.pair_kev


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


def refine_trims(
    trims: NDArray[np.uint8], edges_dac: NDArray[np.floating], target_dac: float, step_dac: NDArray[np.floating]
) -> NDArray[np.uint8]:
    """Move each code by as many steps as its edge stands off: up where the edge is above the target, down where below.

    What is nearer than half a step stays, and so does what has no edge. The move is a trial: measure again, and keep
    per pixel what is closer (`is_closer`).

    Parameters
    ----------
    trims, edges_dac : (n_thresholds, rows, cols)
    step_dac : (n_thresholds,) float64
        Rms step of each threshold's trims.
    """
    steps = np.nan_to_num(np.rint((edges_dac - target_dac) / step_dac[:, None, None]))
    return np.clip(trims + steps, 0, TRIM_CODES - 1).astype(np.uint8)


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


def falling_edges_dac(
    counts: NDArray[np.number], dacs: ArrayLike, n_pulses: int, *, window_dac: float
) -> NDArray[np.float32]:
    """Return where the counts of test pulses fall from all to none: the area under the curve, seen from above.

    From the highest code down, the first step that half of the pulses pass marks the edge; only what lies within the
    window around it is looked at, so that the noise further below does not matter.

    Parameters
    ----------
    counts : (n_steps, ...) number
    dacs : (n_steps,) number
        Codes of the scan, rising and evenly spaced.
    n_pulses : int
        How many pulses came at each step.
    window_dac : float
        Half the width of what is looked at: several times the noise.

    Returns
    -------
    edges : (...) float32
        NaN where the pulses are not seen, or where the window does not lie inside the scan.
    """
    codes = np.asarray(dacs, dtype=np.float64)
    step = float(codes[1] - codes[0])
    share = np.minimum(np.asarray(counts, dtype=np.float32) / np.float32(n_pulses), 1)
    reach = max(int(np.ceil(window_dac / step)), 1)
    is_passed = share >= 0.5
    last = len(codes) - 1 - np.argmax(is_passed[::-1], axis=0)
    is_inside = is_passed.any(axis=0) & (last >= reach) & (last + reach < len(codes))
    first = np.clip(last - reach, 0, len(codes) - 1)
    area_from = np.cumsum(share[::-1], axis=0)[::-1]
    inside = np.take_along_axis(area_from, first[None], axis=0)[0] - np.where(
        last + reach + 1 < len(codes),
        np.take_along_axis(area_from, np.minimum(last + reach + 1, len(codes) - 1)[None], axis=0)[0],
        0,
    )
    edges = codes[first] - 0.5 * step + step * inside
    return np.where(is_inside, edges, np.nan).astype(np.float32)


def trim_steps_dac(edges_dac: NDArray[np.floating], codes: Sequence[int]) -> NDArray[np.float64]:
    """Return the rms step of the trims of each threshold, (n_thresholds,) float64.

    Parameters
    ----------
    edges_dac : (n_measured, n_thresholds, rows, cols) float
        Edge at each measured code; where one was not seen, the codes beside it tell.
    """
    gaps = np.diff(np.asarray(codes, dtype=np.float64))[:, None, None, None]
    rise = np.diff(edges_dac.astype(np.float64), axis=0)
    is_seen = np.isfinite(rise)
    span = np.sum(np.where(is_seen, gaps, 0), axis=0)
    step = np.divide(np.sum(rise, axis=0, where=is_seen), span, out=np.zeros(span.shape), where=span > 0)
    n_pixels = np.maximum(np.count_nonzero(span, axis=(1, 2)), 1)
    return np.sqrt(np.sum(step**2, axis=(1, 2)) / n_pixels)


def trim_faults(
    choice: TrimChoice, edges_dac: NDArray[np.floating], target_dac: float, step_dac: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """Return why a discriminator could not be equalised, from its choice and its edge afterwards.

    Parameters
    ----------
    edges_dac : (n_thresholds, rows, cols) float
    step_dac : (n_thresholds,) float64

    Returns
    -------
    fault : (n_thresholds, rows, cols) uint8
        Values of `TrimFault`.
    """
    fault = np.zeros(edges_dac.shape, dtype=np.uint8)
    is_seen = np.isfinite(edges_dac)
    # a scan around the target does not tell where an edge stands that no trim brings there
    is_predicted = ~is_seen | (choice.is_out_of_range & np.isfinite(choice.predicted_edges_dac))
    off = np.where(is_predicted, choice.predicted_edges_dac, edges_dac) - target_dac
    is_off = np.abs(off) > 1.5 * step_dac[:, None, None]
    is_far = choice.is_out_of_range | is_off
    fault[is_far & (off > 0)] = TrimFault.TOO_HIGH
    fault[is_far & (off <= 0)] = TrimFault.TOO_LOW
    # far from the target an edge may have been seen before, and not where all others stand now
    fault[~is_seen & ~(choice.is_out_of_range & np.isfinite(off))] = TrimFault.NO_EDGE
    return fault
