"""Fitted paths brought to those of cells of known content: what a response misses is taken out where it will be used.

A fitted response is good to some tenths of a per cent behind thick matter. In the bin above gold's edge that is half a
milligram per millilitre, and a slope of 1.05. The cells that a material basis is measured behind tell the error: their
transmissions are fitted as rays are, and the linear map that brings the paths so found to the true ones brings all
others nearer too. It is exact behind the cells and behind nothing; between, what is left is of second order. As it is
linear, it may be applied to paths, or to the volumes that were reconstructed of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibration.attenuation import MG_ML_PER_G_CM3
from calibration.material_basis import SOLVENT, MaterialBasis
from firmware_iface.errors import WrongUsage
from reconstruction.spectral.model import SpectralModel
from reconstruction.spectral.ray_fit import fit_rays

COUNTS = 1e8
"""Open beam that cells are fitted with: noise is not looked for here."""
LARGEST_CHANGE = 0.5
"""A map that changes a path by more, as a share of a cell's path, tells of a mistake and not of a small error."""


def cells_of_basis(
    basis: MaterialBasis,
    materials: Sequence[str],
    *,
    thickness_mm: Mapping[str, float],
    concentrations_mg_ml: Mapping[str, float],
    densities_g_cm3: Mapping[str, float],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the cells that a material basis was measured behind.

    Parameters
    ----------
    basis : MaterialBasis
    materials : sequence of str
        The basis must have them all, the solvent among them.
    thickness_mm, concentrations_mg_ml, densities_g_cm3 : mapping of material
        Of each cell, and of each material as it displaces the solvent.

    Returns
    -------
    paths : (n_materials, n_materials) float64, mm g/cm3
        Of each material, behind the cell of each material.
    transmissions : (n_bins, n_materials) float64
    """
    if missing := [name for name in (SOLVENT, *materials) if name not in basis.materials or name not in materials]:
        raise WrongUsage(
            f"cells of {', '.join(basis.materials)} tell nothing of {', '.join(missing)}; "
            f"allowed: materials of cells, {SOLVENT} among them"
        )
    paths = np.zeros((len(materials), len(materials)))
    for place, name in enumerate(materials):
        solute_g_cm3 = 0.0 if name == SOLVENT else concentrations_mg_ml[name] / MG_ML_PER_G_CM3
        share = 1.0 if name == SOLVENT else 1 - solute_g_cm3 / densities_g_cm3[name]
        paths[materials.index(SOLVENT), place] = thickness_mm[name] * share * densities_g_cm3[SOLVENT]
        if name != SOLVENT:
            paths[place, place] = thickness_mm[name] * solute_g_cm3
    columns = [basis.materials.index(name) for name in materials]
    return paths, np.exp(-basis.attenuation_per_mm_per_g_cm3[:, columns] @ paths)


def path_map(
    model: SpectralModel, paths: NDArray[np.float64], transmissions: NDArray[np.float64], open_counts: ArrayLike
) -> NDArray[np.float64]:
    """Return the linear map that brings the paths that a model reads behind cells to the true ones.

    Parameters
    ----------
    model : SpectralModel
    paths, transmissions
        As `cells_of_basis` returns them.
    open_counts : (n_bins,) float
        Of a typical pixel: how much each bin counts in the fit.

    Returns
    -------
    matrix : (n_materials, n_materials) float64
        To be multiplied with paths (n_materials, ...) or volumes (n_materials, z, y, x).

    Raises
    ------
    WrongUsage
        What the model reads is far from the cells: it is of another detector or beam.
    """
    counts = np.asarray(open_counts, dtype=np.float64)
    counts = counts * (COUNTS / counts.mean())
    read = fit_rays(counts[:, None] * transmissions, counts, model).paths.astype(np.float64)
    off = np.abs(read - paths).max(axis=1) / np.abs(paths).max(axis=1)
    if not (np.isfinite(off).all() and off.max() <= LARGEST_CHANGE):
        worst = model.materials[int(np.argmax(np.nan_to_num(off, nan=np.inf)))]
        raise WrongUsage(
            f"behind the cells the model reads {worst} wrong by {off.max():.0%}; allowed: up to {LARGEST_CHANGE:.0%}",
            hint="fit the response and measure the cells with the same detector, beam and thresholds",
        )
    return paths @ np.linalg.inv(read)
