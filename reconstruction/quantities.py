"""What materials mean: attenuation at one energy, electron density, effective Z, stopping power, and contrast agents.

Each is a function of a voxel's concentrations with known slopes, so its error follows from those of the concentrations,
correlations included, and no picture needs to be reconstructed again. What electrons are concerned with is calibrated
over tissues (`reconstruction.spectral.stoichiometry`).

# Ref: virtual mono-energetic images as sums over a basis: Alvarez and Macovski 1976, Phys. Med. Biol. 21, 733.
#      Hounsfield units: 1000 (mu / mu_water - 1) with the water of the shelf at that energy.
#      Stopping-power ratio: Bethe's formula (`calibration.electrons`), whose bracket is that of water less the
#      logarithm of I / I_water.
#      Effective Z of a ratio: the element, between whole numbers too, whose attenuation at two energies has that ratio:
#      R. A. Rutherford, B. R. Pullan, I. Isherwood 1976, Neuroradiology 11, 15.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from calibration.attenuation import (
    MG_ML_PER_G_CM3,
    Material,
    atomic_number,
    linear_attenuation_per_mm,
    mass_attenuation_cm2_g,
    material,
    symbol,
)
from calibration.electrons import mean_excitation_ev, stopping_number
from calibration.progress import Progress
from calibration.store import software_version
from firmware_iface.errors import WrongUsage
from reconstruction.spectral.model import PER_MM_OF_CM2_G
from reconstruction.spectral.stoichiometry import LEAST_ELECTRONS, Amount, Stoichiometry, is_agent
from reconstruction.volume import (
    HOUNSFIELD,
    LINEAR_ATTENUATION,
    MASS_CONCENTRATION,
    MG_PER_ML,
    MIXED,
    PURE_NUMBER,
    Provenance,
    Volume,
)

RATIO_Z = np.arange(1.0, 40.0)
"""Elements that an attenuation ratio is compared with."""


class Quantity(Protocol):
    """What can be told of concentrations."""

    @property
    def name(self) -> str:
        """Name of the channel."""
        ...

    @property
    def unit(self) -> str:
        """Unit of the channel."""
        ...

    def value(self, concentrations: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return it for (n_materials, ...) float, g/cm3: (...) float64."""
        ...

    def slopes(self, concentrations: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return how it changes with each concentration: (n_materials, ...) float64."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sum:
    """A sum over the concentrations.

    Attributes
    ----------
    coefficients : (n_materials,) float64
        Per g/cm3.
    of_nothing : int
        What it is where there is nothing, in its unit.
    """

    name: str
    unit: str
    coefficients: NDArray[np.float64]
    of_nothing: int = 0

    def value(self, concentrations: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return it for (n_materials, ...) float, g/cm3: (...) float64."""
        return np.tensordot(self.coefficients, np.asarray(concentrations, np.float64), 1) + self.of_nothing

    def slopes(self, concentrations: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return how it changes with each concentration: (n_materials, ...) float64."""
        shape = np.shape(concentrations)
        return np.broadcast_to(self.coefficients.reshape(-1, *(1,) * (len(shape) - 1)), shape)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PerWater:
    """An amount per volume, relative to water's."""

    name: str
    amount: Amount
    unit: str = PURE_NUMBER

    def value(self, concentrations: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return it for (n_materials, ...) float, g/cm3: (...) float64."""
        return self.amount.value(concentrations)

    def slopes(self, concentrations: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return how it changes with each concentration: (n_materials, ...) float64."""
        return self.amount.slopes(concentrations)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PowerMeanZ:
    """The effective atomic number as a power mean over electrons; 0 where there is next to nothing."""

    known: Stoichiometry
    name: str = "effective Z"
    unit: str = PURE_NUMBER

    def value(self, concentrations: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return it for (n_materials, ...) float, g/cm3: (...) float64."""
        electrons, powers, is_matter = self._parts(concentrations)
        return np.where(is_matter, (powers / electrons) ** (1 / self.known.exponent), 0.0)

    def slopes(self, concentrations: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return how it changes with each concentration: (n_materials, ...) float64."""
        electrons, powers, is_matter = self._parts(concentrations)
        z = np.where(is_matter, (powers / electrons) ** (1 / self.known.exponent), 0.0) / self.known.exponent
        per_power, per_electron = (a.slopes(concentrations) for a in (self.known.powers, self.known.electrons))
        return z * (per_power / powers - per_electron / electrons)

    def _parts(self, concentrations: NDArray[np.floating]) -> tuple[NDArray, NDArray, NDArray[np.bool_]]:
        electrons, powers = (a.value(concentrations) for a in (self.known.electrons, self.known.powers))
        is_matter = (electrons > LEAST_ELECTRONS) & (powers > 0)
        return np.where(is_matter, electrons, 1.0), np.where(is_matter, powers, 1.0), is_matter


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RatioZ:
    """The effective atomic number as the element with the same ratio of attenuation at two energies.

    Attributes
    ----------
    low, high : (n_materials,) float64
        Attenuation at the two energies, 1/mm per g/cm3.
    water_per_mm : float
        Of water at the higher energy: of much less there is nothing to tell.
    ratios : (n,) float64
        Of the elements RATIO_Z, rising.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    ratios: NDArray[np.float64]
    water_per_mm: float
    name: str
    unit: str = PURE_NUMBER

    def value(self, concentrations: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return it for (n_materials, ...) float, g/cm3: (...) float64."""
        low, high, is_matter = self._parts(concentrations)
        return np.where(is_matter, np.interp(low / high, self.ratios, RATIO_Z[: len(self.ratios)]), 0.0)

    def slopes(self, concentrations: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return how it changes with each concentration: (n_materials, ...) float64."""
        low, high, is_matter = self._parts(concentrations)
        ratio, tail = low / high, (1,) * low.ndim
        place = np.clip(np.searchsorted(self.ratios, ratio) - 1, 0, len(self.ratios) - 2)
        per_ratio = np.where(is_matter, 1 / np.diff(self.ratios)[place], 0.0)
        return per_ratio * (self.low.reshape(-1, *tail) - ratio * self.high.reshape(-1, *tail)) / high

    def _parts(self, concentrations: NDArray[np.floating]) -> tuple[NDArray, NDArray, NDArray[np.bool_]]:
        known = np.asarray(concentrations, np.float64)
        low, high = np.tensordot(self.low, known, 1), np.tensordot(self.high, known, 1)
        is_matter = (high > LEAST_ELECTRONS * self.water_per_mm) & (low > 0)
        return low, np.where(is_matter, high, 1.0), is_matter


def basis_of(volume: Volume, named: Mapping[str, str] | None = None) -> tuple[Material, ...]:
    """Return the matter of each channel of a volume of materials.

    Parameters
    ----------
    named : mapping of channel to material or formula, optional
        For channels whose names the shelf does not know.
    """
    if volume.unit != MASS_CONCENTRATION:
        raise WrongUsage(
            f"the volume holds {', '.join(volume.channels)} in {volume.unit}; allowed: materials in g/cm3",
            hint="mpxct decompose makes them of bins",
        )
    return matter_of(volume.channels, named)


def matter_of(materials: Sequence[str], named: Mapping[str, str] | None = None) -> tuple[Material, ...]:
    """Return the matter of materials by their names; `named` as of `basis_of`."""
    found = []
    for name in materials:
        try:
            found.append(material((named or {}).get(name, name), None))
        except WrongUsage as error:
            if "density" not in str(error):
                raise WrongUsage(
                    f"what {name!r} is made of is not known", hint=f'say it: --material "{name}=FORMULA"'
                ) from error
            found.append(material((named or {}).get(name, name), 1.0))  # concentrations need no density
    return tuple(found)


def monoenergetic(basis: Sequence[Material], energy_kev: float, *, is_hu: bool = True) -> Sum:
    """Return the picture that photons of one energy would give, in HU or in 1/mm."""
    per_mm = np.array([_per_mm(m, energy_kev) for m in basis])
    if not is_hu:
        return Sum(name=f"{energy_kev:g} keV, 1/mm", unit=LINEAR_ATTENUATION, coefficients=per_mm)
    return Sum(name=f"{energy_kev:g} keV", unit=HOUNSFIELD, coefficients=_in_hu(per_mm, energy_kev), of_nothing=-1000)


def non_contrast(basis: Sequence[Material], energy_kev: float, agents: Sequence[str] | None = None) -> Sum:
    """Return the mono-energetic picture in HU without contrast agents.

    Parameters
    ----------
    agents : sequence of str, optional
        Names of the materials to leave out; None: those with a K edge that a scan sees.
    """
    is_left_out = [is_agent(m) if agents is None else m.name in agents for m in basis]
    if agents and not set(agents) <= {m.name for m in basis}:
        raise WrongUsage(f"no {', '.join(agents)} among {', '.join(m.name for m in basis)}")
    if not any(is_left_out) or all(is_left_out):
        raise WrongUsage(
            f"of {', '.join(m.name for m in basis)}, {sum(is_left_out)} are contrast agents; allowed: some, not all"
        )
    kept = np.where(is_left_out, 0.0, [_per_mm(m, energy_kev) for m in basis])
    return Sum(
        name=f"without contrast, {energy_kev:g} keV",
        unit=HOUNSFIELD,
        coefficients=_in_hu(kept, energy_kev),
        of_nothing=-1000,
    )


def element_map(basis: Sequence[Material], element: str) -> Sum:
    """Return how much of an element there is, in mg/mL: the K-edge picture of what only one material holds."""
    z = atomic_number(element)
    shares = np.array([dict(m.mass_fractions).get(z, 0.0) for m in basis])
    if not shares.any():
        raise WrongUsage(f"none of {', '.join(m.name for m in basis)} holds {symbol(z)}", hint="decompose with one")
    return Sum(name=symbol(z), unit=MG_PER_ML, coefficients=MG_ML_PER_G_CM3 * shares)


def electron_density(known: Stoichiometry) -> PerWater:
    """Return the electron density relative to water's."""
    return PerWater(name="electron density", amount=known.electrons)


def effective_z(known: Stoichiometry) -> PowerMeanZ:
    """Return the effective atomic number, a power mean over electrons."""
    return PowerMeanZ(known=known)


def effective_z_of_ratio(basis: Sequence[Material], low_kev: float, high_kev: float) -> RatioZ:
    """Return the effective atomic number as that of the element with the same attenuation ratio."""
    if not low_kev < high_kev:
        raise WrongUsage(f"energies {low_kev:g} and {high_kev:g} keV; allowed: the lower one first")
    pair = np.array([low_kev, high_kev])
    elements = np.array([mass_attenuation_cm2_g(material(symbol(int(z))), pair) for z in RATIO_Z])
    ratios = elements[:, 0] / elements[:, 1]
    rising = int(np.argmax(np.append(np.diff(ratios) <= 0, True))) + 1  # a K edge between the energies ends it
    per_mm = np.array([PER_MM_OF_CM2_G * mass_attenuation_cm2_g(m, pair) for m in basis])
    return RatioZ(
        low=per_mm[:, 0],
        high=per_mm[:, 1],
        ratios=ratios[:rising],
        water_per_mm=_per_mm(material("water"), high_kev),
        name=f"effective Z, {low_kev:g} to {high_kev:g} keV",
    )


def stopping_power_ratio(
    known: Stoichiometry, mev_per_u: float, ion: str = "proton", *, water_ev: float | None = None
) -> PerWater:
    """Return the stopping power relative to water's.

    Parameters
    ----------
    mev_per_u : float
        Kinetic energy per nucleon.
    ion : str
        One of `calibration.electrons.IONS`.
    water_ev : float, optional
        Mean excitation energy of water; None: by Bragg's rule, as for tissues (75.3 eV). Another one changes water's
        stopping power, and not that of tissues.
    """
    if water_ev is not None and not 0 < water_ev < math.inf:
        raise WrongUsage(f"the mean excitation energy of water is {water_ev:g} eV; allowed: above 0, as 75 or 78")
    number = stopping_number(mean_excitation_ev(material("water")), mev_per_u, ion)
    of_water = number if water_ev is None else stopping_number(water_ev, mev_per_u, ion)
    return PerWater(
        name=f"stopping power ratio, {ion} {mev_per_u:g} MeV/u",
        amount=known.electrons.plus(known.electrons, number - 1).plus(known.bindings, -1.0, over=of_water),
    )


def _per_mm(matter: Material, energy_kev: float) -> float:
    return PER_MM_OF_CM2_G * float(mass_attenuation_cm2_g(matter, energy_kev)[0])


def _in_hu(per_mm: NDArray[np.float64], energy_kev: float) -> NDArray[np.float64]:
    return 1000.0 * per_mm / linear_attenuation_per_mm("water", energy_kev)[0]


def error_of(
    quantity: Quantity, concentrations: NDArray[np.floating], covariance: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Return the standard deviation of a quantity.

    Parameters
    ----------
    concentrations : (n_materials, ...) float, g/cm3
    covariance : (n_materials, n_materials) or (n_materials, n_materials, ...) float
        Of the concentrations, the same for all voxels or of each its own.
    """
    slopes = quantity.slopes(concentrations)
    tail = "..." if np.ndim(covariance) > 2 else ""
    variance = np.einsum(f"k...,kl{tail},l...->...", slopes, np.asarray(covariance, np.float64), slopes)
    return np.sqrt(np.maximum(variance, 0.0))


def evaluate(
    volume: Volume,
    quantities: Sequence[Quantity],
    covariance: NDArray[np.floating] | None = None,
    sigma: Volume | None = None,
) -> Generator[Progress, None, Volume]:
    """Make a volume of quantities out of one of materials.

    Parameters
    ----------
    volume : Volume
        Of materials.
    quantities : sequence of Quantity
    covariance : (n_materials, n_materials) or (n_materials, n_materials, z, y, x) float, optional
        Of the noise of the concentrations; with it each quantity is followed by its standard deviation.
    sigma : Volume, optional
        Standard error of the concentrations in each voxel; of `covariance` only the correlations are then taken.

    Returns
    -------
    volume : Volume
        A channel per quantity; its unit is that of the channel.
    """
    if not quantities:
        raise WrongUsage("no quantity is asked for", hint="mpxct quantities --help tells them")
    noise_at = _noise_by_slice(volume, covariance, sigma)
    n_each = 1 if covariance is None else 2
    values = np.empty((n_each * len(quantities), *volume.grid.shape), np.float32)
    for z in range(volume.grid.shape[0]):
        slab, noise = np.asarray(volume.values[:, z], np.float64), noise_at(z)
        for k, quantity in enumerate(quantities):
            values[n_each * k, z] = quantity.value(slab)
            if noise is not None:
                values[n_each * k + 1, z] = error_of(quantity, slab, noise)
        yield Progress("quantities", z + 1, volume.grid.shape[0])
    names = [[q.name] if covariance is None else [q.name, f"{q.name}, error"] for q in quantities]
    units = [q.unit for q in quantities for _ in range(n_each)]
    source = volume.provenance
    is_one = len(set(units)) == 1
    return Volume(
        values=values,
        channels=tuple(name for pair in names for name in pair),
        unit=units[0] if is_one else MIXED,
        channel_units=() if is_one else tuple(units),
        grid=volume.grid,
        provenance=Provenance(
            source_file=source.source_file,
            source_begun=source.source_begun,
            plan_json=source.plan_json,
            calibration_identity=source.calibration_identity,
            software=software_version(),
            steps=(*source.steps, f"of {', '.join(volume.channels)}: {', '.join(q.name for q in quantities)}"),
        ),
    )


def _noise_by_slice(
    volume: Volume, covariance: NDArray[np.floating] | None, sigma: Volume | None
) -> Callable[[int], NDArray[np.floating] | None]:
    """Return the covariance of the concentrations in a slice, by its number."""
    if sigma is None:
        return lambda z: covariance if covariance is None or covariance.ndim == 2 else covariance[:, :, z]
    if (sigma.channels, sigma.unit, sigma.grid.shape) != (volume.channels, volume.unit, volume.grid.shape):
        raise WrongUsage(
            f"standard errors of {', '.join(sigma.channels)} in {sigma.unit} on {sigma.grid.shape} voxels; allowed: of "
            f"{', '.join(volume.channels)} in {volume.unit} on {volume.grid.shape}"
        )
    if covariance is None or covariance.ndim != 2:
        raise WrongUsage("standard errors without correlations; allowed: with one covariance of the noise")
    scale = np.sqrt(np.diag(covariance))
    correlation = covariance / scale / scale[:, None]

    def at(z: int) -> NDArray[np.float64]:
        errors = np.asarray(sigma.values[:, z], np.float64)
        return correlation[..., None, None] * errors[:, None] * errors

    return at
