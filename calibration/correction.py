"""corrected counts and line integrals: `(n_bins, n_views, rows, cols) float32` and a mask.

A photon-counting detector has no dark current to subtract. What overlapping pulses lost and added is put right on the
counters (`calibration.count_rate`), before their differences are taken; each pixel's own response by the flats around
it in time; and, where a step wedge was measured, the bend that the beam's hardening makes (`calibration.thickness`).
Nothing here invents data silently: every value that is not the pixel's own measurement is marked.

# Ref: linear interpolation of the flats in time against the drift of CdTe, and flats per bin: reference on spectral CT,
#      section 5 (calibration practice); Jakubek 2007, Nucl. Instrum. Meth. A 576, 223 on correction pixel by pixel.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibration import pixels
from calibration.count_rate import CountRate
from calibration.thickness import EquivalentThickness
from firmware_iface.errors import BadFile, CalibrationMissing

MINIMUM_COUNTS = 1.0
"""Fewer counts than this in a bin of one projection are too few for a logarithm."""
FLOOR_COUNTS = 0.5
"""What a bin with too few counts is taken for, by convention; the value is then a bound, and it is marked."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CorrectedCounts:
    """Counts of each bin, and what the open beam would have given at the same time.

    Attributes
    ----------
    counts : (n_bins, n_views, rows, cols) float32
        Counts of each bin in each projection; differences of independent counters, so noise can take them below 0.
    open_beam : (n_bins, n_views, rows, cols) float32
        Expected counts with nothing in the beam, for the same exposure.
    is_bad : (n_bins, rows, cols) bool
        Pixels that measure nothing: the bad ones, and those whose flat holds no counts in that bin.
    is_out_of_range : (n_views, rows, cols) bool, optional
        Where more photons came than the count-rate calibration can tell: the counts are then too few.
    """

    counts: NDArray[np.float32]
    open_beam: NDArray[np.float32]
    is_bad: NDArray[np.bool_]
    is_out_of_range: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        n_bins, _, *image = self.counts.shape
        if self.open_beam.shape != self.counts.shape or self.is_bad.shape != (n_bins, *image):
            raise ValueError(
                f"counts {self.counts.shape}, open beam {self.open_beam.shape} and bad pixels {self.is_bad.shape} "
                "do not belong together; allowed: (n_bins, n_views, rows, cols) twice and (n_bins, rows, cols)"
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OpenBeam:
    """What the flats of a run say of the open beam at any time in it.

    Attributes
    ----------
    rates_per_s : (n_series, n_bins, rows, cols) float32
        Mean of each series of flats.
    frames : (n_series,) float64
        Mean frame number of each series: the clock.
    is_out_of_range : (rows, cols) bool, optional
        Where a flat has more photons than the count-rate calibration can tell.
    """

    rates_per_s: NDArray[np.float32] = field(metadata={"units": "1/s"})
    frames: NDArray[np.float64]
    is_out_of_range: NDArray[np.bool_] | None = None

    @property
    def is_dark(self) -> NDArray[np.bool_]:
        """Pixels in which a series counts nothing: (n_bins, rows, cols) bool."""
        return np.asarray((self.rates_per_s <= 0).any(axis=0))

    def on_rows(self, rows: slice) -> OpenBeam:
        """Return the same of some rows of the detector."""
        is_out = self.is_out_of_range
        return OpenBeam(
            rates_per_s=self.rates_per_s[..., rows, :],
            frames=self.frames,
            is_out_of_range=None if is_out is None else is_out[rows],
        )

    def counts_at(self, frames: NDArray[np.float64], exposures_s: NDArray[np.float32]) -> NDArray[np.float32]:
        """Interpolate to the time of each view: (n_bins, n_views, rows, cols) float32.

        Before the first series and after the last the nearest one holds.
        """
        rates, times = self.rates_per_s, self.frames
        before = np.clip(np.searchsorted(times, frames, side="right") - 1, 0, max(len(times) - 2, 0))
        after = np.minimum(before + 1, len(times) - 1)
        gap = np.where(after > before, times[after] - times[before], 1.0)
        share = np.clip((frames - times[before]) / gap, 0.0, 1.0).astype(np.float32)[:, None, None, None]
        counts = ((1 - share) * rates[before] + share * rates[after]) * exposures_s[:, None, None, None]
        return np.ascontiguousarray(np.moveaxis(counts, 1, 0), dtype=np.float32)


def bins(counts: NDArray[np.number]) -> NDArray[np.float32]:
    """Turn events above each threshold into events between thresholds; the last bin is open.

    Parameters
    ----------
    counts : (..., n_counters, rows, cols) number
        Events above each threshold, lowest threshold first.

    Returns
    -------
    bins : (..., n_counters, rows, cols) float32
        Their sum over the counters is the lowest threshold's count.
    """
    values = np.asarray(counts, dtype=np.float32)  # unsigned counters would wrap where noise inverts two of them
    exclusive = values.copy()
    exclusive[..., :-1, :, :] -= values[..., 1:, :, :]
    return exclusive


def flat_series(flat_frames: ArrayLike, projection_frames: ArrayLike) -> NDArray[np.intp]:
    """Return the number of the series of each flat: flats with no projection between them are one series.

    Parameters
    ----------
    flat_frames : (n_flats,) int
        Number of each flat in the run, so that a lost flat does not cut a series.
    projection_frames : (n_views,) int
    """
    ahead = np.searchsorted(np.sort(np.asarray(projection_frames)), np.asarray(flat_frames))
    return np.unique(ahead, return_inverse=True)[1].astype(np.intp)


def corrected_counts(
    projections: NDArray[np.number],
    flats: NDArray[np.number],
    *,
    projection_frames: ArrayLike,
    flat_frames: ArrayLike,
    projection_exposures_s: ArrayLike = 1.0,
    flat_exposures_s: ArrayLike = 1.0,
    is_bad: NDArray[np.bool_] | None = None,
    count_rate: CountRate | None = None,
) -> CorrectedCounts:
    """Take exclusive bins, and interpolate the flats to the time of each projection.

    Parameters
    ----------
    projections : (n_views, n_counters, rows, cols) number
    flats : (n_flats, n_counters, rows, cols) number
        Before a series' mean is taken, each is divided by its exposure.
    projection_frames : (n_views,) int
    flat_frames : (n_flats,) int
        Number of each frame in the run: the clock of the interpolation, which holds the nearest series outside it.
    projection_exposures_s, flat_exposures_s : float, or (n_views,) and (n_flats,) float
    is_bad : (rows, cols) bool, optional
    count_rate : CountRate, optional
        Of these counters at these thresholds; without it, counts are taken as they are.

    Raises
    ------
    CalibrationMissing
        There are no flats, or the count rate was measured in other counters or pixels.
    """
    open_beam = measure_open_beam(
        flats,
        flat_frames=flat_frames,
        projection_frames=projection_frames,
        flat_exposures_s=flat_exposures_s,
        count_rate=count_rate,
    )
    return against_open_beam(
        projections,
        open_beam,
        projection_frames=projection_frames,
        projection_exposures_s=projection_exposures_s,
        is_bad=is_bad,
        count_rate=count_rate,
    )


def measure_open_beam(
    flats: NDArray[np.number],
    *,
    flat_frames: ArrayLike,
    projection_frames: ArrayLike,
    flat_exposures_s: ArrayLike = 1.0,
    count_rate: CountRate | None = None,
    rows: slice = np.s_[:],
) -> OpenBeam:
    """Take the mean of each series of flats; parameters and errors are those of `corrected_counts`.

    Parameters
    ----------
    rows : slice
        Of the detector, to which the flats belong.
    """
    if len(flats) == 0:
        raise CalibrationMissing("the scan holds no flats", hint="let the plan take flats before or after the views")
    exposures_s, is_out = np.asarray(flat_exposures_s), None
    if count_rate is not None:
        flats, is_flat_out = count_rate.correct(flats, np.broadcast_to(exposures_s, len(flats)), rows=rows)
        is_out = np.asarray(is_flat_out.any(axis=0))
    of_flats, of_views = (np.asarray(frames, dtype=np.float64) for frames in (flat_frames, projection_frames))
    rates_per_s, times = _flat_rates(flats, of_flats, of_views, exposures_s)
    return OpenBeam(rates_per_s=rates_per_s, frames=times, is_out_of_range=is_out)


def against_open_beam(
    projections: NDArray[np.number],
    open_beam: OpenBeam,
    *,
    projection_frames: ArrayLike,
    projection_exposures_s: ArrayLike = 1.0,
    is_bad: NDArray[np.bool_] | None = None,
    count_rate: CountRate | None = None,
    rows: slice = np.s_[:],
) -> CorrectedCounts:
    """Set some views of a run beside its open beam; the other parameters are those of `corrected_counts`.

    Parameters
    ----------
    projections : (n_views, n_counters, n_rows, cols) number
        Any views, of some rows.
    open_beam : OpenBeam
        Of the whole detector, as is all else.
    rows : slice
        Of the detector, to which the projections belong.
    """
    open_beam = open_beam.on_rows(rows)
    frames = np.asarray(projection_frames, dtype=np.float64)
    exposures_s = np.broadcast_to(np.asarray(projection_exposures_s, dtype=np.float32), len(projections))
    is_out = None
    if count_rate is not None:
        projections, is_out = count_rate.correct(projections, exposures_s, rows=rows)
        if open_beam.is_out_of_range is not None:
            is_out |= open_beam.is_out_of_range
    is_dark = open_beam.is_dark
    return CorrectedCounts(
        counts=np.ascontiguousarray(np.moveaxis(bins(projections), 1, 0)),
        open_beam=open_beam.counts_at(frames, exposures_s),
        is_bad=is_dark if is_bad is None else is_dark | is_bad[rows],
        is_out_of_range=is_out,
    )


def line_integrals(
    projections: NDArray[np.number],
    flats: NDArray[np.number],
    *,
    projection_frames: ArrayLike,
    flat_frames: ArrayLike,
    projection_exposures_s: ArrayLike = 1.0,
    flat_exposures_s: ArrayLike = 1.0,
    is_bad: NDArray[np.bool_] | None = None,
    minimum_counts: float = MINIMUM_COUNTS,
    count_rate: CountRate | None = None,
    thickness: EquivalentThickness | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return -ln(counts / open beam) of each bin, and which of its values were not measured.

    Parameters as of `corrected_counts`. A bin with fewer than `minimum_counts` in a projection is taken for half a
    count, which bounds its attenuation from below; bad pixels are filled from their neighbours (`pixels.fill`).
    With `thickness`, the values are made straight in the thickness of its material. Marked are both of these, counts
    beyond the count-rate calibration, and signals beyond the wedge's thickest plate; nothing else is.

    Returns
    -------
    line_integrals : (n_bins, n_views, rows, cols) float32, dimensionless
    is_estimated : (n_bins, n_views, rows, cols) bool
    """
    corrected = corrected_counts(
        projections,
        flats,
        projection_frames=projection_frames,
        flat_frames=flat_frames,
        projection_exposures_s=projection_exposures_s,
        flat_exposures_s=flat_exposures_s,
        is_bad=is_bad,
        count_rate=count_rate,
    )
    return attenuated(corrected, minimum_counts=minimum_counts, thickness=thickness)


def attenuated(
    corrected: CorrectedCounts,
    *,
    minimum_counts: float = MINIMUM_COUNTS,
    thickness: EquivalentThickness | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Turn corrected counts into line integrals, straight in thickness if asked; returns as of `line_integrals`."""
    values, is_estimated = take_logarithm(corrected, minimum_counts=minimum_counts)
    if thickness is not None:
        values, is_extrapolated = thickness.linearised(values)
        is_estimated |= is_extrapolated
    return values, is_estimated


def take_logarithm(
    corrected: CorrectedCounts, *, minimum_counts: float = MINIMUM_COUNTS
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Turn corrected counts into line integrals; the returns are those of `line_integrals`."""
    values = np.empty(corrected.counts.shape, dtype=np.float32)
    is_estimated = corrected.counts < minimum_counts
    for index, (counts, open_beam, is_bad) in enumerate(
        zip(corrected.counts, corrected.open_beam, corrected.is_bad, strict=True)
    ):
        if is_bad.all():
            raise BadFile(
                f"bin {index + 1} of {len(values)} counts nothing in the open beam, in no pixel that is good",
                hint="the counters were full or the beam was off: change exposure or current, and scan again",
            )
        lit = np.where(is_estimated[index], np.float32(FLOOR_COUNTS), counts)
        values[index] = np.log(np.where(is_bad, np.float32(1), open_beam)) - np.log(lit)
        values[index] = pixels.fill(values[index], is_bad)
        is_estimated[index] |= is_bad
        if corrected.is_out_of_range is not None:
            is_estimated[index] |= corrected.is_out_of_range
    return values, is_estimated


def _flat_rates(
    flats: NDArray[np.number],
    flat_frames: NDArray[np.float64],
    projection_frames: NDArray[np.float64],
    exposures_s: NDArray[np.floating],
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return the mean rate of each series, (n_series, n_bins, rows, cols) float32 1/s, and its mean frame number."""
    series = flat_series(flat_frames, projection_frames)
    exposures_s = np.broadcast_to(exposures_s, len(flats))
    rates, times = [], []
    for number in range(series.max() + 1):
        members = series == number
        # Counts over exposures, not the mean of the ratios: the best estimate where exposures differ.
        counts = np.asarray(flats)[members].sum(axis=0, dtype=np.float64)
        rates.append(bins(counts) / np.float32(exposures_s[members].sum()))
        times.append(flat_frames[members].mean())
    return np.stack(rates), np.asarray(times)
