"""A model of bins brought to what was measured behind cells or plates of known content, near where it will be used.

A fitted response is good to some tenths of a per cent behind thick matter, and in the bin above gold's edge that is
half a milligram per millilitre. What it misses is smooth in energy; so each bin's weights are multiplied by the
exponential of a polynomial of the logarithm of energy, as small as explains the transmissions.

The form is a choice.

# Ref: corrections of the spectral response found from measured data: Schmidt et al. 2017, IEEE Trans. Med. Imaging,
#      PMC5604434 (there as unknowns of the reconstruction).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares

from calibration.attenuation import MG_ML_PER_G_CM3
from calibration.material_basis import SOLVENT, MaterialBasis
from firmware_iface.errors import WrongUsage
from reconstruction.spectral.model import SpectralModel

ORDER = 3
SIGMA = 0.3
"""How large the polynomial's terms may be, as a standard deviation: weights change by some tens of per cent at most."""
FLOOR = 1e-4
"""Relative error of a transmission that is never believed."""


def tuned(
    model: SpectralModel,
    paths: ArrayLike,
    transmissions: ArrayLike,
    sigma_relative: ArrayLike = 0.0,
    *,
    order: int = ORDER,
    sigma: float = SIGMA,
) -> SpectralModel:
    """Return the model nearest to this one that lets through what was measured.

    Parameters
    ----------
    paths : (n_materials, n_cells) float, mm g/cm3
    transmissions : (n_bins, n_cells) float
        NaN: this bin was not measured behind this cell.
    sigma_relative : (n_bins, n_cells) float
    order : int
        Of the polynomial.
    sigma : float
        Standard deviation of its terms beforehand.

    Raises
    ------
    WrongUsage
        Shapes do not match the model, or its nodes stand for no energies.
    """
    through = np.asarray(transmissions, dtype=np.float64)
    layers = np.asarray(paths, dtype=np.float64)
    if layers.shape[:1] != (len(model.materials),) or through.shape != (len(model.bins), layers.shape[-1]):
        raise WrongUsage(
            f"paths of shape {layers.shape} and transmissions of shape {through.shape}; allowed: "
            f"({len(model.materials)}, n_cells) and ({len(model.bins)}, n_cells)"
        )
    if not np.isfinite(model.energies_kev).all():
        raise WrongUsage("the model's nodes stand for no energies; allowed: a model of a response")
    error = np.hypot(np.broadcast_to(sigma_relative, through.shape), FLOOR)
    kept = np.exp(-model.attenuation_per_mm_per_g_cm3 @ layers)
    log_energies = np.log(model.energies_kev)
    scaled = 2 * (log_energies - log_energies.min()) / np.ptp(log_energies) - 1
    terms = np.polynomial.legendre.legvander(scaled, order)[:, 1:]  # a constant would change no share
    weights = model.weights.copy()
    for bin_, own in enumerate(model.weights):
        is_known = np.isfinite(through[bin_])
        if not is_known.any():
            continue
        weights[bin_] = _tuned_bin(own, terms, kept[:, is_known], through[bin_, is_known], error[bin_, is_known], sigma)
    return replace(model, weights=weights)


def _tuned_bin(
    own: NDArray[np.float64],
    terms: NDArray[np.float64],
    kept: NDArray[np.float64],
    through: NDArray[np.float64],
    error: NDArray[np.float64],
    sigma: float,
) -> NDArray[np.float64]:
    """Return the weights of one bin, as the best coefficients of the terms make them."""

    def weights_of(coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
        changed = own * np.exp(terms @ coefficients)
        return changed / changed.sum()

    def misfit(coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
        off = (np.log(weights_of(coefficients) @ kept) - np.log(through)) / error
        return np.concatenate([off, coefficients / sigma])

    return weights_of(least_squares(misfit, np.zeros(terms.shape[1])).x)


def cells_of_basis(
    basis: MaterialBasis,
    materials: Sequence[str],
    *,
    thickness_mm: Mapping[str, float],
    concentrations_mg_ml: Mapping[str, float],
    densities_g_cm3: Mapping[str, float],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the cells that a material basis was measured behind, as `tuned` takes them.

    Parameters
    ----------
    basis : MaterialBasis
        Of the same bins as the model.
    materials : sequence of str
        Of the model.
    thickness_mm, concentrations_mg_ml, densities_g_cm3 : mapping of material
        Of each cell, and of each material as it displaces the solvent.

    Returns
    -------
    paths : (n_materials, n_cells) float64, mm g/cm3
    transmissions : (n_bins, n_cells) float64
    """
    used = [name for name in basis.materials if name in materials]
    paths = np.zeros((len(materials), len(used)))
    for place, name in enumerate(used):
        solute_g_cm3 = 0.0 if name == SOLVENT else concentrations_mg_ml[name] / MG_ML_PER_G_CM3
        share = 1.0 if name == SOLVENT else 1 - solute_g_cm3 / densities_g_cm3[name]
        paths[materials.index(SOLVENT), place] = thickness_mm[name] * share * densities_g_cm3[SOLVENT]
        if name != SOLVENT:
            paths[materials.index(name), place] = thickness_mm[name] * solute_g_cm3
    columns = [basis.materials.index(name) for name in materials]
    return paths, np.exp(-basis.attenuation_per_mm_per_g_cm3[:, columns] @ paths)
