"""Scoring with the covariance of bins that vary together, for photons that count more than once.

The paths solve J' C^-1 (counts - expected) = prior's pull, with slopes J and covariance C both at the paths. No
likelihood of such counts is needed, and none is minimised: the equation is right in the mean whatever the counts' law,
and of all that are linear in the counts it is the least noisy.

# Ref: quasi-likelihood: R. W. M. Wedderburn 1974, Biometrika 61, 439; McCullagh 1983, Ann. Stat. 11, 59.
# Ref: covariance of counts that photons share: flux times E[n_a n_b], reference on spectral CT, section 3.6.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reconstruction.spectral.model import SpectralModel

N_ROUNDS = 20
_SMALLEST = 1e-9
_SHORTER, _LONGER = 0.25, 2.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scores:
    """What counts say at some paths: (n_rays, ...) float64 each.

    Attributes
    ----------
    gradient : (n_rays, n_materials) float64
    information : (n_rays, n_materials, n_materials) float64
    chi_square : (n_rays,) float64
    """

    gradient: NDArray[np.float64]
    information: NDArray[np.float64]
    chi_square: NDArray[np.float64]


def refine(
    paths: NDArray[np.floating],
    counts: NDArray[np.floating],
    open_counts: NDArray[np.floating],
    background: NDArray[np.floating],
    is_used: NDArray[np.bool_],
    model: SpectralModel,
    prior_mean: NDArray[np.float64],
    prior_information: NDArray[np.float64],
    tolerance: float,
) -> tuple[NDArray[np.float64], Scores, NDArray[np.bool_]]:
    """Move the paths of a Poisson fit to where the scores vanish.

    Parameters
    ----------
    paths : (n_materials, n_rays) float, mm g/cm3
    counts, open_counts, background, is_used : (n_bins, n_rays)
    prior_mean : (n_materials, n_rays) float64
    prior_information : (n_materials,) float64
    tolerance : float
        A ray ends when its step promises to gain less.

    Returns
    -------
    paths : (n_materials, n_rays) float64
    scores : Scores
        There, without the prior.
    is_converged : (n_rays,) bool
    """
    x = np.array(paths, dtype=np.float64)
    y, y0, r = (np.where(is_used, values, 0).astype(np.float64) for values in (counts, open_counts, background))
    n_rays = x.shape[1]
    share, is_open = np.ones(n_rays), np.ones(n_rays, dtype=bool)
    is_converged = np.zeros(n_rays, dtype=bool)
    for _ in range(N_ROUNDS):
        rays = np.flatnonzero(is_open)
        if len(rays) == 0:
            break
        here = x[:, rays]
        given = y[:, rays], y0[:, rays], r[:, rays], is_used[:, rays]
        residual, slopes, inverse = _evaluate(here, *given, model)
        scores = _scores(residual, slopes, inverse)
        pull = prior_information * (here - prior_mean[:, rays]).T
        matrix = scores.information + np.diag(prior_information)
        matrix += _SMALLEST * np.einsum("nkk->nk", matrix)[..., None] * np.eye(len(x)) + 1e-300 * np.eye(len(x))
        step = np.linalg.solve(matrix, (scores.gradient - pull)[..., None])[..., 0]
        gain = 0.5 * np.einsum("nk,nk->n", step, scores.gradient - pull)
        step *= share[rays, None]
        trial = here + step.T
        residual_there = np.where(given[3], given[0] - given[2] - given[1] * model.transmission(trial), 0).T
        there = np.einsum("na,nab,nb->n", residual_there, inverse, residual_there)
        off_here, off_there = here - prior_mean[:, rays], trial - prior_mean[:, rays]
        change = 0.5 * (there - scores.chi_square) + 0.5 * prior_information @ (off_there**2 - off_here**2)
        is_better = change <= 1e-9 * (1 + scores.chi_square)
        x[:, rays] = np.where(is_better, trial, here)
        share[rays] = np.clip(share[rays] * np.where(is_better, _LONGER, _SHORTER), 0, 1)
        is_converged[rays] = gain < tolerance
        is_open[rays] = (gain >= tolerance) & (share[rays] > _SMALLEST)
    return x, _scores(*_evaluate(x, y, y0, r, is_used, model)), is_converged


def _evaluate(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    y0: NDArray[np.float64],
    r: NDArray[np.float64],
    is_used: NDArray[np.bool_],
    model: SpectralModel,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return residuals (n, n_bins), slopes (n, n_bins, n_materials), inverse covariance (n, n_bins, n_bins) of rays."""
    residual = np.where(is_used, y - r - y0 * model.transmission(x), 0).T
    slopes = np.moveaxis(y0[:, None] * model.slopes(x), -1, 0)
    covariance = np.moveaxis(model.covariance(x, y0), -1, 0)
    diagonal = np.einsum("naa->na", covariance)
    diagonal += np.where(is_used, r, 1).T + _SMALLEST * diagonal
    return residual, slopes, np.asarray(np.linalg.inv(covariance), dtype=np.float64)


def _scores(residual: NDArray[np.float64], slopes: NDArray[np.float64], inverse: NDArray[np.float64]) -> Scores:
    weighted = inverse @ slopes
    return Scores(
        gradient=np.einsum("nbk,nb->nk", weighted, residual),
        information=np.einsum("nbk,nbl->nkl", weighted, slopes),
        chi_square=np.einsum("na,nab,nb->n", residual, inverse, residual),
    )
