"""A fitted response brought to what plates and cells let through, before any ray is fitted by it.

The form of a response is physics made simple, and a fit of it misses transmissions by some tenths of a per cent: where
single pixels share charge and K photons of the sensor, by half a per cent between 26 and 60 keV. Behind dense bone that
is milligrams of iodine, and no linear map of the paths takes it out, for what is missed does not go with the path.

The plates tell it. Each bin's weights are multiplied by the exponential of a smooth function of the logarithm of
energy, the likeliest one that explains what was let through: a Gaussian process, of which transmissions are nearly
linear functionals. Where nothing was measured the response stays as it was fitted.

# Ref: Gaussian processes seen through linear functionals: Rasmussen and Williams 2006, Gaussian Processes for Machine
#      Learning, sections 2.2 and 9.4; spectra from transmissions, and that few of their features can be told: Sidky,
#      Yu, Pan, Zou, Vannier 2005, J. Appl. Phys. 97, 124701.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from acquisition.plan import Cell
from calibration.attenuation import mass_attenuation_cm2_g, material
from calibration.material_basis import SAME_KEV, SOLVENT, MaterialBasis
from calibration.response import TRANSMISSION_FLOOR
from calibration.thickness import StepWedge
from firmware_iface.errors import WrongUsage
from reconstruction.spectral.cells import cells_of_basis
from reconstruction.spectral.model import PER_MM_OF_CM2_G, SpectralModel

AMPLITUDE = 0.2
"""By how much a fitted response may be wrong at one energy, relative: a standard deviation beforehand."""
LENGTH = 0.1
"""Over which part of an energy it is wrong alike: a keV or two of a line's width, ten at the tube's end."""
LARGEST_MISS = 0.2
"""A response that is further from a transmission is of another detector or beam."""
_N_ROUNDS = 3

Paths = Mapping[str, float]
"""How much of each material stands in the beam, by name: mm g/cm3."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KnownLayers:
    """What the bins of one pass keep of the open beam behind matter of known content.

    Attributes
    ----------
    paths : tuple of mapping of material name to path, mm g/cm3
        One for each plate or cell.
    transmissions : (n_bins, n_layers) float64
    sigma_relative : (n_bins, n_layers) float64
        Their relative standard errors.
    """

    paths: tuple[Paths, ...]
    transmissions: NDArray[np.float64]
    sigma_relative: NDArray[np.float64]

    def __post_init__(self) -> None:
        n_layers = len(self.paths)
        if self.transmissions.shape[1:] != (n_layers,) or self.sigma_relative.shape != self.transmissions.shape:
            raise ValueError(
                f"transmissions {self.transmissions.shape} and errors {self.sigma_relative.shape} of {n_layers} "
                "layers; allowed: (n_bins, n_layers) both"
            )

    @classmethod
    def of_plates(cls, wedge: StepWedge) -> KnownLayers:
        """Take the plates of a step wedge."""
        densities = [material(name).density_g_cm3 for name in wedge.materials]
        return cls(
            paths=tuple(
                {name: mm * density for name, mm, density in zip(wedge.materials, layers, densities, strict=True)}
                for layers in wedge.layers_mm
            ),
            transmissions=(wedge.counts / wedge.open_beam).T,
            sigma_relative=np.hypot(wedge.sigma_relative, wedge.open_beam_sigma_relative).T,
        )

    @classmethod
    def of_cells(
        cls, basis: MaterialBasis, thickness_mm: Mapping[str, float], concentrations_mg_ml: Mapping[str, float]
    ) -> KnownLayers:
        """Take the cells that a material basis was measured behind; how noisy they are is not told."""
        paths, transmissions = cells_of_basis(
            basis,
            basis.materials,
            thickness_mm=thickness_mm,
            concentrations_mg_ml=concentrations_mg_ml,
            densities_g_cm3={name: material(name).density_g_cm3 for name in basis.materials},
        )
        return cls(
            paths=tuple(dict(zip(basis.materials, map(float, cell), strict=True)) for cell in paths.T),
            transmissions=transmissions,
            sigma_relative=np.zeros_like(transmissions),
        )


def known_layers(
    thresholds_kev: Sequence[float], wedge: StepWedge | None, basis: MaterialBasis | None, cells: Sequence[Cell]
) -> list[KnownLayers]:
    """Return what of plates and cells was measured at the thresholds of a pass.

    Parameters
    ----------
    cells : sequence of Cell
        Those that the basis was measured behind.
    """
    known = []
    if wedge is not None and _is_at(wedge.thresholds_kev, thresholds_kev):
        known.append(KnownLayers.of_plates(wedge))
    filled = {cell.material: cell for cell in cells}
    if basis is not None and basis.is_for(thresholds_kev) and {SOLVENT, *basis.materials} <= set(filled):
        known.append(
            KnownLayers.of_cells(
                basis,
                {name: cell.thickness_mm for name, cell in filled.items()},
                {name: cell.concentration_mg_ml for name, cell in filled.items()},
            )
        )
    return known


def _is_at(stood_kev: NDArray[np.float64], thresholds_kev: Sequence[float]) -> bool:
    return len(stood_kev) == len(thresholds_kev) and bool(np.allclose(stood_kev, thresholds_kev, rtol=0, atol=SAME_KEV))


def adjusted(model: SpectralModel, known: Sequence[KnownLayers]) -> SpectralModel:
    """Return the likeliest model near this one that lets through what was measured.

    Parameters
    ----------
    model : SpectralModel
        Of a response: its nodes are energies. How counts vary together is left as it is.
    known : sequence of KnownLayers
        Of the same bins.

    Raises
    ------
    WrongUsage
        The model is of other bins, or far from what was measured.
    """
    energies_kev = model.energies_kev
    if not np.isfinite(energies_kev).all():
        raise WrongUsage("the model's nodes stand for no energies; allowed: a model of a response")
    if not known:
        return model
    if any(len(each.transmissions) != len(model.bins) for each in known):
        told = ", ".join(str(len(each.transmissions)) for each in known)
        raise WrongUsage(f"layers were measured in {told} bins, the model has {len(model.bins)}; allowed: the same")
    kept = np.stack([_kept(paths, energies_kev) for each in known for paths in each.paths], axis=1)
    through = np.concatenate([each.transmissions for each in known], axis=1)
    sigma = np.hypot(np.concatenate([each.sigma_relative for each in known], axis=1), TRANSMISSION_FLOOR)
    miss = np.abs(model.weights @ kept / through - 1)
    if not miss.max() <= LARGEST_MISS:
        raise WrongUsage(
            f"behind known layers the response foretells counts wrong by {miss.max():.0%}; allowed: up to "
            f"{LARGEST_MISS:.0%}",
            hint="fit the response with the same detector, beam and thresholds as plates and cells",
        )
    apart = np.subtract.outer(np.log(energies_kev), np.log(energies_kev)) / LENGTH
    prior = AMPLITUDE**2 * np.exp(-(apart**2) / 2)
    weights = [_brought(*bin_, kept, prior) for bin_ in zip(model.weights, through, sigma, strict=True)]
    return replace(model, weights=np.stack(weights))


def _kept(paths: Mapping[str, float], energies_kev: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of photons of each energy that layers let through."""
    depth = np.zeros_like(energies_kev)
    for name, path in paths.items():
        depth += PER_MM_OF_CM2_G * mass_attenuation_cm2_g(name, energies_kev) * path
    return np.exp(-depth)


def _brought(
    own: NDArray[np.float64],
    through: NDArray[np.float64],
    sigma: NDArray[np.float64],
    kept: NDArray[np.float64],
    prior: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return one bin's weights, (n_nodes,), changed by the mean of the process given the transmissions.

    The logarithm of a transmission is linearised in the logarithm of the weights anew in each round.
    """
    weights, change = own, np.zeros_like(own)
    for _ in range(_N_ROUNDS):
        foretold = weights @ kept
        slopes = weights[:, None] * (kept / foretold - 1)
        off = np.log(through / foretold) + change @ slopes
        seen = prior @ slopes
        change = seen @ np.linalg.solve(slopes.T @ seen + np.diag(sigma**2), off)
        weights = own * np.exp(change)
        weights = weights / weights.sum()
    return weights
