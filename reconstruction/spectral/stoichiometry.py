"""What the concentrations of a few materials mean for tissues that are no mixtures of them.

A tissue is seen as those amounts of the materials (the basis) that attenuate like it. What counts electrons adds up
over the atoms of a real mixture of the basis; a tissue is none, and what its carbon, oxygen and hydrogen do to its
electrons differs from what the basis foretells. So the coefficients of such sums are fitted over reference tissues of
known composition, as a stoichiometric calibration is. What two materials cannot tell (fat has less oxygen than water,
bone more calcium) follows a curve of the effective Z: straight from fat to water, and with another slope to bone.

Contrast agents, which tissues do not hold, keep what they have themselves, and do not move the rest along the curve.
All is in proportion to the concentrations: a voxel that is half air has half of everything.

# Ref: stoichiometric calibration: U. Schneider, E. Pedroni, A. Lomax 1996, Phys. Med. Biol. 41, 111; electron density
#      as a calibrated sum of two attenuations, and why 0.15 % is its limit for tissues: C. Möhler et al. 2017, Med.
#      Phys. 44, 2429; mean excitation energy as a curve of effective Z with a kink between soft tissue and bone:
#      M. Yang et al. 2010, Phys. Med. Biol. 55, 1343.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibration.attenuation import Material, k_shell, mass_attenuation_cm2_g, material
from calibration.electrons import EXPONENT, effective_z, mean_excitation_ev, relative_electrons
from calibration.shelf import tissues
from firmware_iface.errors import WrongUsage
from reconstruction.spectral.model import PER_MM_OF_CM2_G, SpectralModel

AGENT_KEV = 20.0
"""Materials with a K edge above it stand for contrast agents; calcium's is at 4 keV."""
RANGE_KEV = (30.0, 100.0)
"""Where a basis is to attenuate like a tissue, if no spectrum tells."""
LEAST_DENSITY_G_CM3 = 0.5
"""Lung counts by its deflated kind only: of the same composition, a lighter one tells nothing more."""
LEAST_ELECTRONS = 0.05
"""Electron density relative to water's below which there is no telling which tissue it is."""
WATER_COUNTS = 10.0
"""All is relative to water, and it is what users look at first: so many times smaller shall its errors be."""
N_STEPS = 8
N_KNOTS = 4
"""The lightest tissue, water, the densest bone, and half-way from water to it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TissueZ:
    """Where a voxel stands between fat and bone: its effective Z without contrast agents.

    Attributes
    ----------
    electrons, powers : (n_materials,) float64
        Electron density, and its product with Z to the power of `exponent`, per g/cm3; 0 for agents.
    knots : (n_knots,) float64
        Values of Z, rising, between which curves are straight; beyond the outer ones they go on level.
    """

    electrons: NDArray[np.float64]
    powers: NDArray[np.float64]
    exponent: float
    knots: NDArray[np.float64]

    def curve(
        self, heights: NDArray[np.float64], concentrations: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return a curve's height times the electron density, and how that changes with each concentration."""
        tail = (1,) * (concentrations.ndim - 1)
        per_electron, per_power = (a.reshape(-1, *tail) for a in (self.electrons, self.powers))
        electrons = np.tensordot(self.electrons, concentrations, 1)
        powers = np.tensordot(self.powers, concentrations, 1)
        is_tissue = (electrons > LEAST_ELECTRONS) & (powers > 0)
        electrons, powers = np.where(is_tissue, electrons, 1.0), np.where(is_tissue, powers, 1.0)
        z = (powers / electrons) ** (1 / self.exponent)
        height = np.where(is_tissue, np.interp(z, self.knots, heights), 0.0)
        piece = np.searchsorted(self.knots, z)
        slope = np.concatenate([[0.0], np.diff(heights) / np.diff(self.knots), [0.0]])[piece] * is_tissue
        z_slopes = z / self.exponent * (per_power / powers - per_electron / electrons)
        return electrons * height, per_electron * height + electrons * slope * z_slopes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Amount:
    """A quantity per volume: a sum over the concentrations, and a curve of the tissue's Z.

    Attributes
    ----------
    coefficients : (n_materials,) float64
        Per g/cm3.
    heights : (n_knots,) float64
        Of the curve, per electron density.
    """

    coefficients: NDArray[np.float64]
    heights: NDArray[np.float64]
    place: TissueZ

    def value(self, concentrations: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return it for (n_materials, ...) float, g/cm3: (...) float64."""
        known = np.asarray(concentrations, np.float64)
        plain = np.tensordot(self.coefficients, known, 1)
        return plain + self.place.curve(self.heights, known)[0] if self.heights.any() else plain

    def slopes(self, concentrations: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return how it changes with each concentration: (n_materials, ...) float64."""
        known = np.asarray(concentrations, np.float64)
        plain = np.broadcast_to(self.coefficients.reshape(-1, *(1,) * (known.ndim - 1)), known.shape)
        return plain + self.place.curve(self.heights, known)[1] if self.heights.any() else plain

    def plus(self, other: Amount, factor: float, *, over: float = 1.0) -> Amount:
        """Return (this + factor * other) / over."""
        return Amount(
            coefficients=(self.coefficients + factor * other.coefficients) / over,
            heights=(self.heights + factor * other.heights) / over,
            place=self.place,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stoichiometry:
    """What concentrations of a basis tell of electrons.

    Attributes
    ----------
    basis : tuple of Material
    electrons, powers, bindings : Amount
        Electron density relative to water's; its product with the effective Z to the power of `exponent`; its product
        with the logarithm of the mean excitation energy over water's.
    """

    basis: tuple[Material, ...]
    electrons: Amount
    powers: Amount
    bindings: Amount
    exponent: float


def as_seen(
    matter: Sequence[Material],
    basis: Sequence[Material],
    energies_kev: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> NDArray[np.float64]:
    """Return the concentrations of the basis that attenuate like each matter: (n_matter, n_materials) float64, g/cm3.

    Parameters
    ----------
    energies_kev, weights : (n_energies,) float, optional
        Where they are to, and how much each energy counts; None: all of RANGE_KEV alike.
    """
    energies = np.arange(RANGE_KEV[0], RANGE_KEV[1] + 1) if energies_kev is None else np.asarray(energies_kev, float)
    root = np.sqrt(np.ones_like(energies) if weights is None else np.asarray(weights, float))
    of_basis = PER_MM_OF_CM2_G * np.stack([mass_attenuation_cm2_g(m, energies) for m in basis], axis=1)
    wanted = np.stack([PER_MM_OF_CM2_G * m.density_g_cm3 * mass_attenuation_cm2_g(m, energies) for m in matter], axis=1)
    mean = of_basis.mean(axis=1, keepdims=True)  # errors count in proportion to what attenuates there
    scaled = of_basis / mean * root[:, None]
    size = np.linalg.norm(scaled, axis=0)
    found, *_ = np.linalg.lstsq(scaled / size, wanted / mean * root[:, None], rcond=None)
    return (found / size[:, None]).T


def as_decomposed(
    matter: Sequence[Material], basis: Sequence[Material], model: SpectralModel, thickness_mm: float
) -> NDArray[np.float64]:
    """Return as what the bins of a detector see each matter: (n_matter, n_materials) float64, g/cm3.

    Parameters
    ----------
    model : SpectralModel
        Of the bins and the basis, by energies.
    thickness_mm : float
        Of what the rays run through, about as in the object: it says which photons arrive.
    """
    if model.materials != tuple(m.name for m in basis) or not np.isfinite(model.energies_kev).all():
        raise WrongUsage(
            f"a model of {', '.join(model.materials)}; allowed: of {', '.join(m.name for m in basis)}, by energies"
        )
    found = as_seen(matter, basis)
    for k, tissue in enumerate(matter):
        per_mm = PER_MM_OF_CM2_G * tissue.density_g_cm3 * mass_attenuation_cm2_g(tissue, model.energies_kev)
        wanted = model.weights @ np.exp(-per_mm * thickness_mm)
        paths = found[k] * thickness_mm
        for _ in range(N_STEPS):  # Fisher scoring, from so near that it needs no damping
            share, slopes = model.transmission(paths), model.slopes(paths)
            root = np.sqrt(1 / share)
            paths = paths + np.linalg.lstsq(slopes * root[:, None], (wanted - share) * root, rcond=None)[0]
        found[k] = paths / thickness_mm
    return found


def is_agent(matter: Material) -> bool:
    """Tell whether a material stands for a contrast agent: one of its elements has a K edge that a scan sees."""
    return any(k_shell(z).edge_kev > AGENT_KEV for z, fraction in matter.mass_fractions if fraction > 0)


def reference_tissues() -> tuple[Material, ...]:
    """Return water and the tissues on the shelf, over which coefficients are fitted."""
    names = [name for name, tissue in tissues().items() if tissue.density_g_cm3 >= LEAST_DENSITY_G_CM3]
    return tuple(material(name) for name in ("water", *names))


def calibrate(
    basis: Sequence[Material | str],
    reference: Sequence[Material] | None = None,
    seen_g_cm3: NDArray[np.floating] | None = None,
    *,
    exponent: float = EXPONENT,
    is_fitted: bool = True,
) -> Stoichiometry:
    """Find what the concentrations of a basis mean.

    Parameters
    ----------
    basis : sequence of Material or name
    reference : sequence of Material, optional
        Tissues of known composition; None: `reference_tissues`.
    seen_g_cm3 : (n_tissues, n_materials) float, optional
        As what they were decomposed; None: as `as_seen` tells.
    exponent : float
        Of the effective atomic number.
    is_fitted : bool
        False: every material keeps what it has itself, which is right for its own mixtures only.
    """
    basis = tuple(material(m) if isinstance(m, str) else m for m in basis)
    known = reference_tissues() if reference is None else tuple(reference)
    seen = as_seen(known, basis) if seen_g_cm3 is None else np.asarray(seen_g_cm3, dtype=np.float64)
    if seen.shape != (len(known), len(basis)) or len(known) < len(basis) + N_KNOTS:
        raise WrongUsage(
            f"{seen.shape} concentrations of {len(known)} tissues in {len(basis)} materials; allowed: "
            f"({len(known)}, {len(basis)}), and at least {N_KNOTS} more tissues than materials"
        )
    if not exponent > 0:
        raise WrongUsage(f"the exponent is {exponent}; allowed: above 0")
    is_tissue = np.array([0.0 if is_agent(m) else 1.0 for m in basis])
    if is_fitted and is_tissue.sum() < 2:
        raise WrongUsage(
            f"besides contrast agents there is {int(is_tissue.sum())} material; allowed: at least 2",
            hint="decompose into water and hydroxyapatite as well, or take matter for a mixture (--additive)",
        )
    is_fixed = (is_tissue == 0) | (not is_fitted)
    density = np.array([m.density_g_cm3 * relative_electrons(m) for m in known])
    per_gram = np.array([relative_electrons(m) for m in basis])
    of_known, of_basis = _per_electron(known, exponent), _per_electron(basis, exponent)
    # Errors of electron density and binding count relative to the density, those of Z relative to Z, and water's more.
    worth = np.array([WATER_COUNTS if m == material("water") else 1.0 for m in known])
    scales = tuple(density * factor / worth for factor in (1.0, of_known[1], 1.0))
    sums = [
        _fit_sum(seen, density * wanted, per_gram * own, is_fixed, scale)
        for wanted, own, scale in zip(of_known, of_basis, scales, strict=True)
    ]
    z = ((seen @ (is_tissue * sums[1])) / (seen @ (is_tissue * sums[0]))) ** (1 / exponent)
    water = effective_z(material("water"), exponent)
    knots = np.array([z.min(), water, (water + z.max()) / 2, z.max()])
    if is_fitted and (np.diff(knots) <= 0).any():
        raise WrongUsage(f"the tissues have Z from {z.min():.2f} to {z.max():.2f}; allowed: fat, water and bone")
    place = TissueZ(electrons=is_tissue * sums[0], powers=is_tissue * sums[1], exponent=exponent, knots=knots)
    curves = [np.zeros(N_KNOTS)] * 3
    if is_fitted:
        shares = np.stack([np.interp(z, knots, row) for row in np.eye(N_KNOTS)], axis=1)
        curves[1:] = [
            _fit_sum(
                shares * (seen @ place.electrons)[:, None],
                density * of_known[k] - seen @ sums[k],
                np.zeros(N_KNOTS),
                np.zeros(N_KNOTS, dtype=bool),
                scales[k],
            )
            for k in (1, 2)
        ]
    electrons, powers, bindings = (
        Amount(coefficients=c, heights=h, place=place) for c, h in zip(sums, curves, strict=True)
    )
    return Stoichiometry(basis=basis, electrons=electrons, powers=powers, bindings=bindings, exponent=exponent)


def _per_electron(matter: Sequence[Material], exponent: float) -> NDArray[np.float64]:
    """Return 1, the power of the effective Z, and the logarithm of I over water's: (3, n_matter) float64."""
    water_ev = mean_excitation_ev(material("water"))
    bound = [np.log(mean_excitation_ev(m, is_mixed=True) / water_ev) for m in matter]
    return np.array([np.ones(len(matter)), [effective_z(m, exponent) ** exponent for m in matter], bound])


def _fit_sum(
    seen: NDArray[np.float64],
    values: NDArray[np.float64],
    own: NDArray[np.float64],
    is_fixed: NDArray[np.bool_],
    scale: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return coefficients, fitted where they are not fixed, by least squares of errors relative to `scale`."""
    coefficients = own.copy()
    rest = (values - seen[:, is_fixed] @ own[is_fixed]) / scale
    if not is_fixed.all():
        coefficients[~is_fixed] = np.linalg.lstsq(seen[:, ~is_fixed] / scale[:, None], rest, rcond=None)[0]
    return coefficients


def left_out_errors(
    basis: Sequence[Material | str],
    reference: Sequence[Material] | None = None,
    seen_g_cm3: NDArray[np.floating] | None = None,
    *,
    exponent: float = EXPONENT,
    is_fitted: bool = True,
) -> NDArray[np.float64]:
    """Return by how much each tissue is wrong when all the others calibrate, in per cent: (3, n_tissues) float64.

    Of the electron density, of the effective Z, and of the mean excitation energy. Arguments as those of `calibrate`.
    """
    known = reference_tissues() if reference is None else tuple(reference)
    matter = tuple(material(m) if isinstance(m, str) else m for m in basis)
    seen = as_seen(known, matter) if seen_g_cm3 is None else np.asarray(seen_g_cm3, dtype=np.float64)
    factors, errors = _per_electron(known, exponent), np.empty((3, len(known)))
    for k, tissue in enumerate(known):
        others = np.arange(len(known)) != k
        rest = calibrate(
            matter, [m for m in known if m is not tissue], seen[others], exponent=exponent, is_fitted=is_fitted
        )
        electrons, powers, bindings = (float(a.value(seen[k])) for a in (rest.electrons, rest.powers, rest.bindings))
        errors[0, k] = electrons / (tissue.density_g_cm3 * relative_electrons(tissue)) - 1
        # A tissue that the basis sees with less than no electrons has no Z: all of it is error.
        errors[1, k] = max(powers / electrons / factors[1, k], 0.0) ** (1 / exponent) - 1
        errors[2, k] = np.exp(bindings / electrons - factors[2, k]) - 1
    return 100 * errors
