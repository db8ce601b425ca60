"""Ring suppression in projections by published methods, and a choice among them by measurement.

`suppress` applies one method of `reconstruction.artefacts.stripes` to the sinogram of every row and bin. `choose` tries
all on a few rows and keeps the one that leaves the least error, or none.

How an error is measured without knowing the truth: two rays that run against each other see the same object through
different pixels. What they differ by is stripes and noise, whatever the object is; so it tells the stripes that a
method has left. What a method takes off from both alike is not stripes, which know nothing of each other, but object;
so the product of what it takes off on opposing rays tells its damage. The sum of both is the expected squared error.
Where the scan has no opposing rays, rows beside each other stand for them.

# Ref: the methods: `reconstruction.artefacts.stripes`. The estimate of the error is our own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
import scipy.fft
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from calibration.geometry import Geometry
from firmware_iface.errors import WrongUsage
from reconstruction.artefacts import stripes
from reconstruction.artefacts.opposing_rays import OpposingRays

METHODS: Mapping[str, Callable[..., stripes.Sinogram]] = MappingProxyType(
    {
        "mean-profile": stripes.mean_profile,
        "regularised": stripes.regularised,
        "wavelet-fourier": stripes.wavelet_fourier,
        "sorting": stripes.sorting,
        "filtering": stripes.filtering,
        "large": stripes.large,
        "dead": stripes.dead,
        "combined": stripes.combined,
    }
)
NONE = "none"
_fft: Any = scipy.fft


class Candidate(NamedTuple):
    """A method, with the options that differ from its defaults."""

    method: str
    options: Mapping[str, float] = MappingProxyType({})

    def __str__(self) -> str:
        told = ", ".join(f"{name} {value:g}" for name, value in self.options.items())
        return f"{self.method} ({told})" if told else self.method


CANDIDATES = (
    Candidate("mean-profile"),
    Candidate("mean-profile", {"width_px": 31}),
    Candidate("regularised"),
    Candidate("regularised", {"n_blocks": 12}),
    Candidate("wavelet-fourier"),
    Candidate("wavelet-fourier", {"n_levels": 2, "n_moments": 3, "damping_orders": 6.0}),
    Candidate("sorting"),
    Candidate("sorting", {"width_px": 31}),
    Candidate("filtering"),
    Candidate("filtering", {"width_px": 5}),
    Candidate("large"),
    Candidate("dead"),
    Candidate("combined"),
    Candidate("combined", {"width_px": 31, "wide_px": 45}),
)
"""What `choose` tries: each method by its defaults, and some for wide stripes or for those along part of the views."""

N_ROWS = 6
"""Rows that are judged, around the source's plane, where opposing rays meet exactly."""
N_BINS = 4
"""Bins that are judged, or a few more: evenly spread."""
SMOOTHING_SHARE = 1 / 64
"""Of the views: standard deviation of the window over which errors are averaged, for a ring is seen as an arc. Along
the rows they are filtered as for back-projection: what is smooth there hardly shows in a slice."""
LEAST_GAIN = 0.25
"""What a method must gain beyond what it gains on noise, in units of the noise's energy in the same eyes."""
LEAST_SIGMAS = 3.0
"""And how far that must stand out of its scatter over patches of the rows."""
MAD_TO_SIGMA = 1.4826
"""Of a normal distribution, its standard deviation in units of the median absolute deviation."""
N_PATCHES = 8
"""Stretches of columns that a row is cut into, to see how far they agree."""


def suppress(
    values: NDArray[np.float32],
    *,
    method: str,
    options: Mapping[str, float] = MappingProxyType({}),
    n_threads: int | None = None,
) -> tuple[NDArray[np.float32], str]:
    """Take the stripes off line integrals, in place.

    Parameters
    ----------
    values : (n_bins, n_views, rows, cols) float32, dimensionless
        Overwritten.
    method : str
        One of `METHODS`, or "none".
    options : mapping
        Arguments of the method's function in `reconstruction.artefacts.stripes` that differ from its defaults.
    n_threads : int, optional
        As many as the machine has cores unless told.

    Returns
    -------
    values : the same array
    words : str
        What was done, for the provenance.
    """
    candidate = Candidate(method, options)
    if method == NONE:
        return values, "rings not suppressed"
    if method not in METHODS:
        raise WrongUsage(f"the ring method is {method!r}; allowed: {', '.join((NONE, *METHODS))}")
    n_bins, _, rows, _ = values.shape

    def one(place: tuple[int, int]) -> None:
        index, row = place
        sinogram = values[index, :, row]
        sinogram[...] = METHODS[method](np.ascontiguousarray(sinogram), **options)

    places = [(index, row) for index in range(n_bins) for row in range(rows)]
    with ThreadPoolExecutor(n_threads or os.cpu_count() or 1) as pool:
        for _ in pool.map(one, places):
            pass
    return values, f"rings suppressed by {candidate}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What one candidate would do, in units of the energy of the noise.

    Attributes
    ----------
    candidate : Candidate
    residual_ratio : float
        Energy of what opposing rays still differ by, the noise included.
    damage_ratio : float
        Energy of the object it takes.
    gain_ratio : float
        How much less error than with none, beyond what the candidate gains on noise alone.
    error_ratio : float
        Standard error of the gain.
    significance_ratio : float
        Mean over its standard error of the gains of all patches, each compressed by the inverse hyperbolic sine so
        that a few dead columns count as few and not as chance.
    """

    candidate: Candidate
    residual_ratio: float
    damage_ratio: float
    gain_ratio: float
    error_ratio: float
    significance_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The candidate to suppress rings with, why, and what all would do, best first."""

    candidate: Candidate
    words: str
    judgements: tuple[Judgement, ...] = ()


def choose(
    values: NDArray[np.float32],
    angles_rad: ArrayLike,
    geometry: Geometry,
    *,
    lifts_mm: ArrayLike = 0.0,
    candidates: Sequence[Candidate] = CANDIDATES,
) -> Choice:
    """Choose how to suppress the rings of a scan, by what each candidate does to a few of its rows.

    Parameters
    ----------
    values : (n_bins, n_views, rows, cols) float32, dimensionless
        Line integrals; not changed.
    angles_rad : (n_views,) float
        Of several turns, the first is judged.
    geometry : Geometry
    lifts_mm : float or (n_views,) float
        How high the stage lifts the object: opposing rays of a helix do not meet.
    candidates : sequence of Candidate

    Returns
    -------
    choice : Choice
        Of "none" where no candidate gains more than noise and chance make.
    """
    angles = np.asarray(angles_rad, dtype=np.float64).ravel()
    turn = np.flatnonzero(angles - angles.min() < 2 * np.pi)
    order = turn[np.argsort(angles[turn], kind="stable")]
    rows = _rows_to_judge(geometry, values.shape[2])
    bins = range(0, len(values), max(1, len(values) // N_BINS))
    data = np.stack([[values[index, order, row] for row in rows] for index in bins]).swapaxes(1, 2).copy()
    is_level = not np.ptp(np.broadcast_to(np.asarray(lifts_mm, dtype=np.float64), angles.shape))
    partner: _Partner | None = OpposingRays.of(angles[order], geometry) if is_level else None
    if partner is None and data.shape[2] > 1:
        partner = _RowsBeside(*data.shape[2:])
    if partner is None:
        return Choice(candidate=Candidate(NONE), words="rings not suppressed: one row of part of a circle cannot tell")
    noise = _noise_sigma(data)
    before = _as_seen(data)
    plain = _Error.of(before, np.zeros_like(before), partner, noise)
    judgements = []
    for candidate in candidates:
        after = _as_seen(suppress(data.copy(), method=candidate.method, options=candidate.options)[0])
        error = _Error.of(after, before - after, partner, noise)
        gains = (plain.residual - error.residual) - error.damage
        judgements.append(
            Judgement(
                candidate=candidate,
                residual_ratio=float(error.residual.mean()),
                damage_ratio=float(error.damage.mean()),
                gain_ratio=float(gains.mean()) - _gain_on_noise(candidate, data.shape[1], data.shape[3]),
                error_ratio=_standard_error(gains),
                significance_ratio=float(np.arcsinh(gains).mean()) / max(_standard_error(np.arcsinh(gains)), 1e-12),
            )
        )
    judgements.sort(key=lambda judged: -judged.gain_ratio)
    best = judgements[0]
    is_worth_it = best.gain_ratio > LEAST_GAIN and best.significance_ratio > LEAST_SIGMAS
    words = (
        f"{best.candidate} is the best of {len(candidates)} by {partner.name}: it gains {best.gain_ratio:.2g} "
        f"+- {best.error_ratio:.1g} of the noise's energy and takes {max(best.damage_ratio, 0):.1g} of the object's"
    )
    if not is_worth_it:
        return Choice(
            candidate=Candidate(NONE), words=f"no rings worth suppressing: {words}", judgements=tuple(judgements)
        )
    return Choice(candidate=best.candidate, words=words, judgements=tuple(judgements))


def _standard_error(gains: NDArray[np.float64]) -> float:
    return float(gains.std(ddof=1) / np.sqrt(gains.size))


def _rows_to_judge(geometry: Geometry, rows: int) -> range:
    """Return the rows around the source's plane."""
    n = min(N_ROWS, rows)
    first = round((rows - 1) / 2 - geometry.offset_v_mm / geometry.pitch_mm - (n - 1) / 2)
    first = min(max(first, 0), rows - n)
    return range(first, first + n)


class _Partner(Protocol):
    """Where the rays are that see the same object through other pixels."""

    name: str
    is_seen: NDArray[np.bool_]

    def take(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what the partners read: (n_bins, n_views, rows, n_seen)."""
        ...

    def noise_gain(self, spectrum: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return what is left there of the energy of independent pixels, filtered by this gain: (n_seen,)."""
        ...


class _RowsBeside:
    """Rows beside each other, in pairs."""

    name = "rows beside each other"

    def __init__(self, rows: int, cols: int) -> None:
        self.is_seen = np.ones(cols, dtype=np.bool_)
        self._partners = np.arange(rows) ^ 1
        self._partners[self._partners == rows] = rows - 2  # an odd last row

    def take(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return values[:, :, self._partners]

    def noise_gain(self, spectrum: NDArray[np.floating]) -> NDArray[np.float64]:
        return np.ones(len(spectrum))


class _Error(NamedTuple):
    """Squared error of a correction, in units of the noise's energy: each (n_bins, rows, N_PATCHES)."""

    residual: NDArray[np.float64]
    damage: NDArray[np.float64]

    @classmethod
    def of(
        cls, after: NDArray[np.float32], taken: NDArray[np.float32], partner: _Partner, noise: NDArray[np.float64]
    ) -> _Error:
        differ = after[..., partner.is_seen] - partner.take(after)
        both = taken[..., partner.is_seen] * partner.take(taken)
        scale = noise[:, None, None] ** 2
        gain = partner.noise_gain(_ramp(after.shape[-1]))
        return cls(
            residual=_by_patch((differ**2).mean(axis=1, dtype=np.float64) / (1 + gain)) / scale,
            damage=_by_patch(both.mean(axis=1, dtype=np.float64)) / scale,
        )


def _by_patch(energy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over stretches of columns: (..., n_patches)."""
    return np.stack([part.mean(axis=-1) for part in np.array_split(energy, N_PATCHES, axis=-1)], axis=-1)


def _smoothing_views(n_views: int) -> float:
    return max(n_views * SMOOTHING_SHARE, 0.5)


def _ramp(cols: int) -> NDArray[np.float32]:
    """Return the gain of a filtered back-projection at each of a row's cosines: ramp and Hann's window, 1 at most."""
    frequency = np.arange(cols) / cols
    gain = frequency * (0.5 + 0.5 * np.cos(np.pi * frequency))
    return (gain / max(float(gain.max()), 1e-9)).astype(np.float32)


def _as_seen(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return values as a slice shows them: averaged along arcs, and filtered along the rows."""
    smooth = ndimage.gaussian_filter1d(values, _smoothing_views(values.shape[1]), axis=1, mode="wrap")
    return _fft.idct(_fft.dct(smooth, axis=-1) * _ramp(values.shape[-1]), axis=-1)


def _noise_sigma(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the standard deviation of each bin's noise, as a slice shows it: (n_bins,) float64.

    By the median difference of three views in a row, in the median column: neither the object's edges nor stripes nor
    restless columns count.
    """
    curvature = np.abs(values[:, :-2] - 2 * values[:, 1:-1] + values[:, 2:])
    variance = np.median(np.median(curvature, axis=1), axis=(1, 2)).astype(np.float64) ** 2 * (MAD_TO_SIGMA**2 / 6)
    impulse = np.zeros(values.shape[1])
    impulse[len(impulse) // 2] = 1.0
    window = ndimage.gaussian_filter1d(impulse, _smoothing_views(len(impulse)), mode="wrap")
    gain = (window**2).sum() * (_ramp(values.shape[-1]).astype(np.float64) ** 2).mean()
    return np.sqrt(np.maximum(variance * gain, 1e-20))


def _gain_on_noise(candidate: Candidate, n_views: int, cols: int) -> float:
    """Return how much of the energy of mere noise, as a slice shows it, a candidate takes."""
    noise = np.random.default_rng(0).standard_normal((1, n_views, 1, cols), dtype=np.float32)
    before = (_as_seen(noise) ** 2).mean(dtype=np.float64)
    after = (_as_seen(suppress(noise, method=candidate.method, options=candidate.options)[0]) ** 2).mean(
        dtype=np.float64
    )
    return float(1 - after / before)
