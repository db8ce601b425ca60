"""Scatter in projections, estimated by superposition of kernels, and subtracted from the counts.

Each pixel's primary counts stand for a pencil of rays; how much of it scatters follows from how much the object takes
of it, and where it lands from a broad kernel around the pixel. The primary is not known, but the counts minus the
estimate are a better guess of it: a few rounds settle. Every energy bin has a kernel of its own.

A kernel is a calibration of one scanner and one kind of object: it is fitted to scatter that was measured, behind lead
beads or strips (`fit`). No default is given, because no source settles one for a table-top scanner; the
simulated instrument has no scatter, so that there is none to fit there.

# Ref: kernels, their amplitude I0 A (P/I0)^alpha (ln I0/P)^beta, the asymmetric form, and the iteration: Sun and
#      Star-Lack 2010, Phys. Med. Biol. 55, 6695. Symmetric kernels: Ohnesorge, Flohr and Klingenbeck-Regn 1999,
#      Eur. Radiol. 9, 563.
# Ref: scatter behind a blocker: Ning, Tang and Conover 2004, Med. Phys. 31, 1195.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.optimize import least_squares

from firmware_iface.errors import WrongUsage

_fft: Any = scipy.fft

MOST_ROUNDS = 40
"""Of the iteration, which ends where the estimate settles: about ten rounds where scatter equals the primary."""
SETTLED_SHARE = 1e-3
"""Of the strongest scatter: a round that changes less is the last."""
LEAST_PRIMARY_SHARE = 0.05
"""Of the counts: no estimate of scatter takes more than the rest, so that counts stay positive (a choice)."""
VIEWS_PER_BLOCK = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """How one bin's primary scatters.

    Attributes
    ----------
    amplitude_per_mm2 : float
        A: scattered counts per mm2 in the middle of the narrow part, per primary count of a pixel in the open beam.
    transmission_slope : float
        alpha, the power of the transmission.
    attenuation_slope : float
        beta, the power of the line integral.
    narrow_mm, wide_mm : float
        Standard deviations of the two Gaussians, on the detector.
    wide_share : float
        Height of the wide one beside the narrow one.
    asymmetry_ratio : float
        How much less lands, per unit of line integral, where the object is thicker than where it came from; 0 for a
        symmetric kernel.
    relative : float
        Standard error of the whole estimate, as a share of it.
    """

    amplitude_per_mm2: float
    transmission_slope: float
    attenuation_slope: float
    narrow_mm: float
    wide_mm: float
    wide_share: float
    asymmetry_ratio: float = 0.0
    relative: float = 0.1

    def __post_init__(self) -> None:
        if self.amplitude_per_mm2 < 0 or self.wide_share < 0 or self.relative < 0:
            raise ValueError(f"{self} cannot be; allowed: no amplitude, share or error below 0")
        if not 0 < self.narrow_mm <= self.wide_mm:
            raise ValueError(f"widths of {self.narrow_mm} and {self.wide_mm} mm; allowed: 0 < narrow <= wide")

    def spread(self, shape: tuple[int, int], pitch_mm: float) -> NDArray[np.float32]:
        """Return the spectrum of the kernel on a padded image: rfft2 of (rows, cols) pixels, dimensionless."""
        y, x = (np.minimum(np.arange(n), n - np.arange(n)) * pitch_mm for n in shape)
        squared = y[:, None] ** 2 + x**2
        form = np.exp(-squared / (2 * self.narrow_mm**2))
        form += self.wide_share * np.exp(-squared / (2 * self.wide_mm**2))
        return _fft.rfft2(self.amplitude_per_mm2 * pitch_mm**2 * form).real.astype(np.float32)


class Primary(NamedTuple):
    """Counts without their scatter.

    Attributes
    ----------
    counts : (n_bins, n_views, rows, cols) float32
    words : str
        What was done, for the provenance.
    variance : (n_bins, n_views, rows, cols) float32
        Of the counts: the photons', scattered ones too, and the estimate's own error.
    """

    counts: NDArray[np.float32]
    words: str
    variance: NDArray[np.float32]


def estimate(
    primary: NDArray[np.floating], open_beam: NDArray[np.floating], kernel: Kernel, *, pitch_mm: float
) -> NDArray[np.float32]:
    """Return what scatters, given what comes straight through.

    Parameters
    ----------
    primary : (..., rows, cols) float
        Counts of one bin.
    open_beam : the same shape, float
        Counts with nothing in the beam.

    Returns
    -------
    scatter : (..., rows, cols) float32, counts
    """
    *_, rows, cols = primary.shape
    # Beyond the detector nothing is known: the padding keeps one side's scatter from landing on the other.
    shape = tuple(
        _fft.next_fast_len(n + min(n, int(3 * kernel.wide_mm / pitch_mm) + 1), real=True) for n in (rows, cols)
    )
    beam = np.maximum(np.asarray(open_beam, dtype=np.float32), np.float32(1e-6))
    transmission = np.clip(np.asarray(primary, dtype=np.float32) / beam, np.float32(1e-6), np.float32(1.0))
    way = -np.log(transmission)
    source = beam * transmission ** np.float32(kernel.transmission_slope) * way ** np.float32(kernel.attenuation_slope)
    spread = kernel.spread((shape[0], shape[1]), pitch_mm)

    def landed(image: NDArray[np.floating]) -> NDArray[np.float32]:
        spectrum = _fft.rfft2(image, shape, axes=(-2, -1))
        return _fft.irfft2(spectrum * spread, shape, axes=(-2, -1))[..., :rows, :cols]

    scatter = landed(source)
    if kernel.asymmetry_ratio:
        ratio = np.float32(kernel.asymmetry_ratio)
        scatter = (1 - ratio * way) * scatter + ratio * landed(source * way)
    return np.maximum(scatter, 0).astype(np.float32, copy=False)


def subtract(
    counts: NDArray[np.float32],
    open_beam: NDArray[np.float32],
    kernels: Sequence[Kernel],
    *,
    pitch_mm: float,
    most_rounds: int = MOST_ROUNDS,
    least_primary_share: float = LEAST_PRIMARY_SHARE,
) -> Primary:
    """Estimate the scatter of each bin and take it off, in place.

    Parameters
    ----------
    counts : (n_bins, n_views, rows, cols) float32
        Overwritten.
    open_beam : the same shape, float32
        Counts with nothing in the beam, which hold no scatter of the object.
    kernels : sequence of Kernel
        One per bin.
    pitch_mm : float
        Of the detector.
    most_rounds : int
    least_primary_share : float
        Of the counts, what is left at least.
    """
    if len(kernels) != len(counts):
        raise WrongUsage(f"there are {len(kernels)} kernels for {len(counts)} bins; allowed: one per bin")
    variance = np.maximum(counts, 1)
    shares = []
    for of_bin, beam, kernel, spread in zip(counts, open_beam, kernels, variance, strict=True):
        scattered = 0.0
        for first in range(0, len(of_bin), VIEWS_PER_BLOCK):
            block = slice(first, first + VIEWS_PER_BLOCK)
            measured = of_bin[block].copy()
            primary, scatter = measured, np.zeros_like(measured)
            for _ in range(most_rounds):
                before, scatter = scatter, estimate(primary, beam[block], kernel, pitch_mm=pitch_mm)
                np.minimum(scatter, (1 - least_primary_share) * np.maximum(measured, 0), out=scatter)
                primary = measured - scatter
                if np.abs(scatter - before).max() <= SETTLED_SHARE * scatter.max():
                    break
            of_bin[block] = primary
            spread[block] += (kernel.relative * scatter) ** 2
            scattered += float(scatter.sum(dtype=np.float64))
        shares.append(scattered / max(scattered + float(of_bin.sum(dtype=np.float64)), 1.0))
    told = ", ".join(f"{share:.1%}" for share in shares)
    return Primary(counts, f"scatter of {told} of the counts subtracted, by kernels", variance)


def fit(
    primary: NDArray[np.floating],
    open_beam: NDArray[np.floating],
    scatter: NDArray[np.floating],
    *,
    pitch_mm: float,
    is_measured: NDArray[np.bool_] | None = None,
    is_symmetric: bool = True,
) -> Kernel:
    """Fit a kernel to scatter that was measured, of one bin.

    Parameters
    ----------
    primary : (n_views, rows, cols) float
        Counts without scatter: of views through a narrow slit, or the counts minus `scatter` interpolated.
    open_beam : the same shape, float
    scatter : the same shape, float
        Counts behind blockers, where `is_measured`.
    is_measured : (n_views, rows, cols) bool, optional
        Everywhere unless told.

    Returns
    -------
    kernel : Kernel
        Its `relative` is what the fit leaves, as a share of the scatter's root mean square.
    """
    where = np.ones(scatter.shape, dtype=np.bool_) if is_measured is None else is_measured
    wanted = np.asarray(scatter, dtype=np.float64)[where]
    level = float(np.sqrt(np.mean(wanted**2)))
    if not level > 0:
        raise WrongUsage("the scatter to fit is 0 everywhere; allowed: counts behind blockers in the object's shadow")
    rows, cols = scatter.shape[-2:]
    size_mm = pitch_mm * max(rows, cols)

    def kernel_of(p: NDArray[np.float64], relative: float = 0.0) -> Kernel:
        narrow_mm = float(np.exp(p[3]))
        return Kernel(
            amplitude_per_mm2=float(np.exp(p[0])),
            transmission_slope=float(p[1]),
            attenuation_slope=float(p[2]),
            narrow_mm=narrow_mm,
            wide_mm=narrow_mm * (1 + float(np.exp(p[4]))),
            wide_share=float(np.exp(p[5])),
            asymmetry_ratio=0.0 if is_symmetric else float(p[6]),
            relative=relative,
        )

    def residual(p: NDArray[np.float64]) -> NDArray[np.float64]:
        found = estimate(primary, open_beam, kernel_of(p), pitch_mm=pitch_mm)[where]
        return (found - wanted) / level

    start = np.array([0.0, 0.5, 1.0, np.log(size_mm / 8), np.log(2.0), np.log(0.3), 0.1])
    start[0] -= np.log(np.sqrt(np.mean((residual(start) + wanted / level) ** 2)))
    lowest = np.array([-30.0, -2.0, 0.05, np.log(pitch_mm), -3.0, -7.0, -1.0])
    highest = np.array([30.0, 3.0, 4.0, np.log(4 * size_mm), 3.0, 3.0, 1.0])
    n_free = 6 if is_symmetric else 7
    found = least_squares(
        lambda p: residual(np.append(p, start[n_free:])),
        start[:n_free],
        bounds=(lowest[:n_free], highest[:n_free]),
        diff_step=1e-3,  # the estimate is in single precision
        max_nfev=60,
    )
    return kernel_of(np.append(found.x, start[n_free:]), relative=float(np.sqrt(np.mean(found.fun**2))))
