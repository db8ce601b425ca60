"""The noise of volumes of materials: noise is drawn anew for every ray and goes the way that the counts went.

A way that is linear in the paths of the rays takes errors drawn from their Cramer-Rao bound. One that is not, because a
prior acts on what it sees, takes counts drawn around what the solution lets through: what its results differ by from
draw to draw is the noise of the result, with all that iterations and prior do to it. It is noise alone: what a prior
takes off an edge or a small thing is the same in all draws, and is not told.

# Ref: errors of an estimate by drawing data from its solution: Efron and Tibshirani, An Introduction to the Bootstrap,
#      1993, chapter 6.5 (parametric); in emission tomography: Haynor and Woods 1989, IEEE Trans. Med. Imaging 8, 337.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from calibration.charge_sharing import CORNERS, EDGES
from firmware_iface.errors import WrongUsage
from reconstruction.spectral.model import SpectralModel
from reconstruction.symmetric import unpacked

REACH_VOXELS = 2.5
"""Variances are averaged over a voxel's neighbours: a Gaussian of this standard deviation."""
VIEWS_AT_A_TIME = 16


def drawn_errors(covariance: NDArray[np.floating], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return normal errors of the paths of all rays: (n_materials, ...) float32.

    Parameters
    ----------
    covariance : (n_pairs, ...) float
        Packed; no errors are drawn where it is not finite.
    """
    whole = np.moveaxis(unpacked(np.where(np.isfinite(covariance), covariance, 0)), (0, 1), (-2, -1))
    drawn = rng.standard_normal((*whole.shape[:-1], 1), np.float32)
    return np.ascontiguousarray(np.moveaxis((roots(whole) @ drawn)[..., 0], -1, 0))


def drawn_counts(
    model: SpectralModel,
    paths: NDArray[np.floating],
    open_counts: NDArray[np.floating],
    rng: np.random.Generator,
    background: ArrayLike = 0.0,
) -> NDArray[np.float32]:
    """Return counts as they may be behind some paths.

    They are Poisson's, or of sums of pixels, whose bins vary together, normal. Where a model knows what neighbours
    share, photons that two of them count are drawn once for both.

    Parameters
    ----------
    paths : (n_materials, n_views, rows, cols) float, mm g/cm3
    open_counts, background : (n_bins,) float, or arrays that fit the counts
        Without the object, and what no object attenuates.

    Returns
    -------
    counts : (n_bins, n_views, rows, cols) float32
    """
    opened, added = (
        term.reshape(term.shape + (1,) * (paths.ndim - term.ndim))
        for term in (np.asarray(open_counts, np.float64), np.asarray(background, np.float64))
    )
    counts = np.empty((len(model.bins), *paths.shape[1:]), np.float32)
    for first in range(0, paths.shape[1], VIEWS_AT_A_TIME):
        some = paths[:, first : first + VIEWS_AT_A_TIME]
        views = slice(first, first + VIEWS_AT_A_TIME)
        scattered = added[:, views] if np.size(added, 1) > 1 else added
        expected = opened * model.transmission(some) + scattered
        shared, shared_mean = _shared(model, some, opened, rng)
        if model.co_weights is None:
            drawn = rng.poisson(np.maximum(expected - shared_mean, 0))
        else:
            covariance = np.moveaxis(model.covariance(some, opened), (0, 1), (-2, -1))
            np.einsum("...aa->...a", covariance)[...] -= np.moveaxis(shared_mean, 0, -1)
            np.einsum("...aa->...a", covariance)[...] += np.moveaxis(scattered + 0 * expected, 0, -1)
            noise = roots(covariance) @ rng.standard_normal((*covariance.shape[:-1], 1))
            drawn = np.maximum(expected - shared_mean + np.moveaxis(noise[..., 0], -1, 0), 0)
        counts[:, views] = shared + drawn
    return counts


def _shared(
    model: SpectralModel, paths: NDArray[np.floating], opened: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return counts of photons that two neighbours count, drawn once for both, and their mean: (n_bins, ...) each."""
    n_bins, n_rows, n_cols = len(opened), *paths.shape[-2:]
    counts, means = np.zeros((n_bins, *paths.shape[1:])), np.zeros((n_bins, *paths.shape[1:]))
    if model.neighbour_weights is None:
        return counts, means
    together = np.sqrt(opened[:, None] * opened) * model.together(paths)
    for kind, offsets in enumerate((EDGES, CORNERS)):
        for down, aside in offsets:
            left, right = max(-aside, 0), n_cols - max(aside, 0)
            one = np.s_[..., : n_rows - down, left:right]
            other = np.s_[..., down:, left + aside : right + aside]
            for a, b in np.ndindex(n_bins, n_bins):
                mean = together[kind, a, b][one]
                both = rng.poisson(mean)
                for bin_index, pixels in ((a, one), (b, other)):
                    counts[bin_index][pixels] += both
                    means[bin_index][pixels] += mean
    return counts, means


def roots(matrices: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return R with R R' a covariance, (..., n, n), whether it has an inverse or not."""
    values, vectors = np.linalg.eigh(matrices)
    return (vectors * np.sqrt(np.maximum(values, 0))[..., None, :]).astype(np.float32)


def standard_error(draws: Sequence[NDArray[np.floating]], *, is_centred: bool) -> NDArray[np.float32]:
    """Return the standard error of each voxel, with its neighbours': (n_channels, z, y, x) float32.

    Parameters
    ----------
    draws : sequence of (n_channels, z, y, x) float
    is_centred : bool
        They are known to be 0 in the mean; otherwise they spread about their own mean, and two are the fewest.
    """
    n_degrees = len(draws) - (not is_centred)
    if n_degrees < 1:
        raise WrongUsage(f"{len(draws)} draws of the noise tell no errors; allowed: 2 or more, or 0 for no error maps")
    every = np.stack(draws)
    away = every if is_centred else every - every.mean(axis=0)
    variance = np.einsum("d...,d...->...", away, away) / n_degrees
    return np.sqrt([ndimage.gaussian_filter(channel, REACH_VOXELS, mode="nearest") for channel in variance])
