"""Electrons of matter: how many there are, how firmly they are bound, and how they slow ions down.

All three add up over the atoms of a mixture, weighed by their electrons: the count itself, the power of Z that makes an
effective atomic number, and (Bragg's rule) the logarithm of the mean excitation energy.

# Ref: mean excitation energies of the elements: ICRU Report 37 (1984) and 49 (1993), as NIST's ESTAR/PSTAR and Geant4's
#      `G4NistMaterialBuilder` have them; of atoms in liquid and solid compounds (H, C, N, O, F, Cl, and 1.13 times the
#      element's for all others): S. M. Seltzer, M. J. Berger 1982, Int. J. Appl. Radiat. Isot. 33, 1189, table 6.
#      ICRU Report 90 (2014) takes 78 eV for water where the rule gives 75.3 eV: `water_ev` is an option.
# Ref: effective atomic number as a power mean over electrons: W. V. Mayneord 1937, Acta Unio Int. Contra Cancrum 2,
#      271, with a power of 2.94; publications differ, so it is an option, and the default of 3.1 is a choice.
# Ref: Bethe's formula with the largest energy loss: S. Navas et al. (Particle Data Group) 2024, Phys. Rev. D 110,
#      030001, section 34. Terms for shells, density and higher charges are left out; in a ratio to water they nearly
#      cancel. Masses of bare nuclei: CODATA's proton; atomic masses less those of the electrons.
"""

from __future__ import annotations

from functools import cache
from math import exp, fsum, log

from calibration.attenuation import Material, material, molar_mass_g
from firmware_iface.errors import WrongUsage

# fmt: off
ELEMENTS_EV = (
    19.2, 41.8, 40.0, 63.7, 76.0, 81.0, 82.0, 95.0, 115.0, 137.0, 149.0, 156.0, 166.0, 173.0, 173.0, 180.0, 174.0,
    188.0, 190.0, 191.0, 216.0, 233.0, 245.0, 257.0, 272.0, 286.0, 297.0, 311.0, 322.0, 330.0, 334.0, 350.0, 347.0,
    348.0, 343.0, 352.0, 363.0, 366.0, 379.0, 393.0, 417.0, 424.0, 428.0, 441.0, 449.0, 470.0, 470.0, 469.0, 488.0,
    488.0, 487.0, 485.0, 491.0, 482.0, 488.0, 491.0, 501.0, 523.0, 535.0, 546.0, 560.0, 574.0, 580.0, 591.0, 614.0,
    628.0, 650.0, 658.0, 674.0, 684.0, 694.0, 705.0, 718.0, 727.0, 736.0, 746.0, 757.0, 790.0, 790.0, 800.0, 810.0,
    823.0, 823.0, 830.0, 825.0, 794.0, 827.0, 826.0, 841.0, 847.0, 878.0, 890.0,
)
"""Mean excitation energy of the elements by themselves, from Z = 1."""
# fmt: on
IN_COMPOUNDS_EV = {1: 19.2, 6: 81.0, 7: 82.0, 8: 106.0, 9: 112.0, 17: 180.0}
OTHERS_IN_COMPOUNDS = 1.13
EXPONENT = 3.1
ELECTRON_MEV, NUCLEON_MEV = 0.51099895, 931.49410
BETHE_MEV_CM2_MOL = 0.307075
IONS = {"proton": (1, 1, 1.007276), "helium": (2, 4, 4.001506), "carbon": (6, 12, 11.996709)}
"""Charge, number of nucleons, and mass in units of a twelfth of a carbon atom, of bare nuclei."""


@cache
def electrons_mol_g(matter: Material) -> float:
    """Return how many moles of electrons are in a gram."""
    return fsum(fraction * z / molar_mass_g(z) for z, fraction in matter.mass_fractions)


def relative_electrons(matter: Material) -> float:
    """Return the electrons in a gram of matter relative to those in a gram of water."""
    return electrons_mol_g(matter) / electrons_mol_g(material("water"))


def _mean_per_electron(matter: Material, of_atom: dict[int, float]) -> float:
    total = electrons_mol_g(matter)
    return fsum(of_atom[z] * fraction * z / molar_mass_g(z) for z, fraction in matter.mass_fractions) / total


def effective_z(matter: Material, exponent: float = EXPONENT) -> float:
    """Return the effective atomic number: the power mean of Z over all electrons."""
    return _mean_per_electron(matter, {z: z**exponent for z, _ in matter.mass_fractions}) ** (1 / exponent)


def mean_excitation_ev(matter: Material, *, is_mixed: bool = False) -> float:
    """Return the mean excitation energy by Bragg's rule.

    Parameters
    ----------
    is_mixed : bool
        Take an element as what it is in a compound or solution, not by itself.
    """
    if len(matter.mass_fractions) == 1 and not is_mixed:
        return ELEMENTS_EV[matter.mass_fractions[0][0] - 1]
    of_atom = {
        z: log(IN_COMPOUNDS_EV.get(z, OTHERS_IN_COMPOUNDS * ELEMENTS_EV[z - 1])) for z, _ in matter.mass_fractions
    }
    return exp(_mean_per_electron(matter, of_atom))


def stopping_number(excitation_ev: float, mev_per_u: float, ion: str = "proton") -> float:
    """Return the bracket of Bethe's formula, by which an electron slows an ion; its ratio is that of two matters.

    Parameters
    ----------
    excitation_ev : float
        Mean excitation energy.
    mev_per_u : float
        Kinetic energy per nucleon.
    ion : str
        One of IONS.
    """
    beta2, gamma, mass_mev = _motion(mev_per_u, ion)
    free_mev = 2 * ELECTRON_MEV * beta2 * gamma**2
    ratio = ELECTRON_MEV / mass_mev
    largest_mev = free_mev / (1 + 2 * gamma * ratio + ratio**2)
    return 0.5 * log(free_mev * largest_mev / (1e-6 * excitation_ev) ** 2) - beta2


def _motion(mev_per_u: float, ion: str) -> tuple[float, float, float]:
    if ion not in IONS:
        raise WrongUsage(f"no ion {ion!r}; allowed: {', '.join(IONS)}")
    if not 1 <= mev_per_u <= 1000:
        raise WrongUsage(f"{ion} of {mev_per_u:g} MeV/u; allowed: 1 to 1000, where Bethe's formula holds")
    _, nucleons, mass_u = IONS[ion]
    gamma = 1 + mev_per_u * nucleons / (mass_u * NUCLEON_MEV)
    return 1 - 1 / gamma**2, gamma, mass_u * NUCLEON_MEV


def mass_stopping_mev_cm2_g(
    matter: Material, mev_per_u: float, ion: str = "proton", excitation_ev: float | None = None
) -> float:
    """Return the electronic mass stopping power for a bare ion."""
    excitation_ev = mean_excitation_ev(matter) if excitation_ev is None else excitation_ev
    beta2, _, _ = _motion(mev_per_u, ion)
    number = stopping_number(excitation_ev, mev_per_u, ion)
    return BETHE_MEV_CM2_MOL * IONS[ion][0] ** 2 * electrons_mol_g(matter) / beta2 * number


def stopping_power_ratio(
    matter: Material, mev_per_u: float, ion: str = "proton", water_ev: float | None = None
) -> float:
    """Return the linear stopping power relative to water's.

    Parameters
    ----------
    water_ev : float, optional
        Mean excitation energy of water; None: by the rule that gives the matter's, 75.3 eV.
    """
    water = material("water")
    water_ev = mean_excitation_ev(water) if water_ev is None else water_ev
    numbers = [stopping_number(ev, mev_per_u, ion) for ev in (mean_excitation_ev(matter), water_ev)]
    return matter.density_g_cm3 * relative_electrons(matter) * numbers[0] / numbers[1]
