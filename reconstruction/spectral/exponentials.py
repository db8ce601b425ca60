"""Transmissions of a step wedge as sums of a few exponentials per bin: a forward model that needs no response.

    transmission[bin](paths) = sum over m of weights[bin, m] * exp(-sum over k of attenuation[bin, m, k] * paths[k])

Two or three exponentials follow what a bin of any width does, so that a wedge of some ten plates tells them. The
exponentials stand for no energies; beyond the wedge's plates they are a guess.

# Ref: semi-empirical polychromatic model: Ehn, Sellerer, Mechlem et al. 2017, Phys. Med. Biol. 62, N1 (polychromatic
#      Beer-Lambert law of few terms, calibrated by a wedge); Mechlem et al. 2018, IEEE Trans. Med. Imaging 37, 68.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares, nnls

SPREADS = (1.5, 3.0)
"""Ratios of the strongest to the weakest exponential that a fit starts from; the best end is taken."""
LOGIT_SIGMA = 3.0
LOG_SIGMA = 1.0
"""How far weights are from even, and attenuations from the mean one, beforehand: what no plate tells stays sensible."""


def fit_exponentials(
    paths: NDArray[np.floating],
    transmissions: NDArray[np.floating],
    sigma_relative: NDArray[np.floating],
    n_exponentials: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fit each bin by itself.

    Parameters
    ----------
    paths : (n_materials, n_plates) float, mm g/cm3
    transmissions, sigma_relative : (n_bins, n_plates) float

    Returns
    -------
    weights : (n_bins, n_exponentials) float64
        A bin's sum is 1.
    attenuation : (n_bins, n_exponentials, n_materials) float64, per mm g/cm3
    """
    fits = [
        _fit_bin(np.asarray(paths, np.float64), -np.log(share), np.asarray(sigma, np.float64), n_exponentials)
        for share, sigma in zip(np.asarray(transmissions, np.float64), sigma_relative, strict=True)
    ]
    return np.stack([weights for weights, _ in fits]), np.stack([attenuation for _, attenuation in fits])


def _fit_bin(
    paths: NDArray[np.float64], signals: NDArray[np.float64], sigma: NDArray[np.float64], n: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    n_materials = len(paths)
    mean, _ = nnls((paths / np.maximum(signals, 1e-3)).T, signals / np.maximum(signals, 1e-3))
    mean = np.maximum(mean, 1e-3 * mean.max() if mean.max() > 0 else 1e-6)

    def opened(p: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        logits = np.concatenate([[0.0], p[: n - 1]])
        weights = np.exp(logits - logits.max())
        return weights / weights.sum(), np.exp(p[n - 1 :].reshape(n, n_materials))

    def deviation(p: NDArray[np.float64]) -> NDArray[np.float64]:
        weights, attenuation = opened(p)
        share = weights @ np.exp(-attenuation @ paths)
        beforehand = (p[n - 1 :].reshape(n, n_materials) - np.log(mean)) / LOG_SIGMA
        return np.concatenate([(-np.log(share) - signals) / sigma, beforehand.ravel(), p[: n - 1] / LOGIT_SIGMA])

    def slopes(p: NDArray[np.float64]) -> NDArray[np.float64]:
        weights, attenuation = opened(p)
        parts = weights[:, None] * np.exp(-attenuation @ paths)
        share = parts.sum(axis=0)
        by_logit = -(parts - weights[:, None] * share)[1:] / (share * sigma)
        by_log = (parts[:, None] * attenuation[..., None] * paths / (share * sigma)).reshape(-1, len(signals))
        beforehand = np.diag(np.concatenate([np.full(n - 1, 1 / LOGIT_SIGMA), np.full(len(by_log), 1 / LOG_SIGMA)]))
        return np.concatenate([np.concatenate([by_logit, by_log]).T, np.roll(beforehand, -(n - 1), axis=0)])

    best = None
    for spread in SPREADS if n > 1 else (1.0,):
        factors = np.geomspace(np.sqrt(spread), 1 / np.sqrt(spread), n)
        start = np.concatenate([np.zeros(n - 1), np.log(factors[:, None] * mean).ravel()])
        fit = least_squares(deviation, start, jac=slopes, method="lm", xtol=1e-6, max_nfev=60)  # type: ignore[arg-type]
        if best is None or fit.cost < best.cost:
            best = fit
    assert best is not None
    return opened(best.x)
