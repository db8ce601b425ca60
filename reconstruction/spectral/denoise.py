"""Bins or materials of a volume with less noise, by a prior whose strength is told in units of the volume's own noise.

The noise and its correlations between channels are measured in the volume. Channels are made white by them first, so
that priors which couple channels see equal, independent noise in all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from calibration.store import software_version
from firmware_iface.errors import WrongUsage
from reconstruction.backend import Array, to_host
from reconstruction.decomposition import bin_covariance
from reconstruction.spectral.mixed_prior import channels_mixed
from reconstruction.spectral.rank_sparse import RankSparse
from reconstruction.spectral.strength import (
    COUPLED,
    STRENGTHS,
    by_discrepancy,
    by_sure,
    n_directions,
    prior_in_noise,
    sum_image,
    wanted,
)
from reconstruction.volume import Volume

Choice = Literal["auto", "discrepancy", "sure"]
CHOICES: tuple[Choice, ...] = ("auto", "discrepancy", "sure")
RANK_SPARSE = "rskr"
PRIORS = (*STRENGTHS, RANK_SPARSE)
N_ITERATIONS = 100
USUAL: Mapping[str, float] = {
    "tv": 1.0,
    "huber": 4.0,
    "gibbs": 4.0,
    "vtv": 0.7,
    "tnv": 0.7,
    "dtv": 1.0,
    RANK_SPARSE: 1.5,
}
"""Strengths when nobody says, in units of what `noise_covariance` finds: measured on filtered back-projections of two
objects at two doses (`tests/benchmarks/strength.py`), but for gibbs and dtv, which take those of their kin. That of
rskr is its width in values."""
BLOCKS, SMALLEST_ROW = (1, 2, 4), 16


def denoise(
    values: Array,
    *,
    prior: str = "tnv",
    strength: float | Choice = "auto",
    covariance: NDArray[np.floating] | None = None,
    n_iterations: int = N_ITERATIONS,
) -> tuple[Array, float]:
    """Return channels with less noise, and the strength that was taken, in units of the noise.

    Parameters
    ----------
    values : (n_channels, z, y, x) float
        Of any unit, here or on a GPU.
    prior : str
        One of `PRIORS`.
    strength : float or str
        In units of the noise. "auto": the usual one; "discrepancy": so that what is taken away is as large as the
        noise; "sure": of the least expected error, where noise is white.
    covariance : (n_channels, n_channels) float, optional
        Of the noise; None: measured.
    n_iterations : int
        Of the prox.
    """
    if covariance is None:
        covariance = noise_covariance(to_host(values))
    if not np.any(covariance):
        raise WrongUsage("the volume has no noise that could be taken away")
    if prior == RANK_SPARSE:
        if isinstance(strength, str) and strength != "auto":
            raise WrongUsage(f"the strength of rskr is {strength!r}; allowed: a number, or auto")
        width = USUAL[RANK_SPARSE] if isinstance(strength, str) else strength
        return RankSparse(range_relative=width).filtered(values, covariance)[0], width
    wanted(prior, None)
    is_coupled = prior in COUPLED
    lower = np.linalg.cholesky(covariance) if is_coupled else np.diag(np.sqrt(np.diag(covariance)))
    whitened = channels_mixed(values, np.linalg.inv(lower))
    reference = sum_image(values, covariance) if prior == "dtv" else None

    def denoised(noisy: Array, strength: float) -> Array:
        made = prior_in_noise(
            prior, strength, np.ones(len(noisy)), n_directions=n_directions(noisy.shape), reference=reference
        )
        return made.prox(noisy, n_iterations=n_iterations)

    chosen = _strength(prior, strength, whitened, denoised)
    return channels_mixed(denoised(whitened, chosen), lower), chosen


def noise_covariance(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the noise of all channels as white noise would have it, (n_channels, n_channels), from the volume itself.

    Filters leave less noise between neighbours than over a few voxels, and it is the latter that stays visible. So the
    noise is measured in voxels, and in means of two and four along each axis, times what averaging takes from white
    noise; the largest counts.

    Parameters
    ----------
    values : (n_channels, z, y, x) float
    """
    largest, best = -np.inf, bin_covariance(values)
    for size in BLOCKS:
        blocks, n_voxels = _block_means(values, size)
        if blocks.shape[-1] < SMALLEST_ROW:
            break
        covariance = n_voxels * bin_covariance(blocks)
        sign, log_size = np.linalg.slogdet(covariance)
        if sign > 0 and log_size > largest:
            largest, best = log_size, covariance
    return best


def _block_means(values: NDArray[np.floating], size: int) -> tuple[NDArray[np.floating], int]:
    """Return means over blocks of so many voxels along each axis that has them, and how many voxels a block has."""
    n_voxels = 1
    for axis in range(1, values.ndim):
        n = values.shape[axis] // size
        if n > 0 and size > 1:
            kept = np.moveaxis(values, axis, -1)[..., : n * size]
            values = np.moveaxis(kept.reshape(*kept.shape[:-1], n, size).mean(-1), -1, axis)
            n_voxels *= size
    return values, n_voxels


def _strength(
    prior: str, strength: float | Choice, whitened: Array, denoised: Callable[[Array, float], Array]
) -> float:
    """Return a strength as a number."""
    if not isinstance(strength, str):
        return wanted(prior, float(strength))
    if strength == "discrepancy":
        return by_discrepancy(lambda s: denoised(whitened, s), whitened)
    if strength == "sure":
        return by_sure(denoised, whitened)
    if strength != "auto":
        raise WrongUsage(f"the strength is {strength!r}; allowed: a number, {', '.join(CHOICES)}")
    return USUAL[prior]


def denoise_volume(volume: Volume, *, prior: str = "tnv", strength: float | Choice = "auto") -> Volume:
    """Return the volume with less noise in all its channels; see `denoise`."""
    values, chosen = denoise(volume.values, prior=prior, strength=strength)
    step = f"denoised by {prior}, strength {chosen:.3g} of the noise"
    provenance = replace(volume.provenance, software=software_version(), steps=(*volume.provenance.steps, step))
    return replace(volume, values=np.ascontiguousarray(values, np.float32), provenance=provenance)
