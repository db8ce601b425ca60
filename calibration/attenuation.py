"""Matter: what a material is made of, how it attenuates X-rays, and what its K shells emit.

Elements 1-92, 1-160 keV. Between the baked nodes the tables are straight lines in log-log, with a node on each side
of every absorption edge, so that no edge is smeared; exactly at an edge the value above it holds.

# Ref: cross sections, edges, fluorescence yields, jump ratios and lines: W. T. Elam, B. D. Ravel, J. R. Sieber 2002,
#      Radiat. Phys. Chem. 63, 121; densities and molar masses of elements: xraydb 4.5.8 (CC0); both baked in `data/`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import fsum, isclose
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibration.shelf import FORMULAS, MIXTURES, tissues
from firmware_iface.errors import WrongUsage

Process = Literal["photo", "coherent", "incoherent", "total"]

LOWEST_KEV, HIGHEST_KEV = 1.0, 160.0
MG_ML_PER_G_CM3 = 1000.0
"""Concentrations are in mg/mL where people read and write them, and in g/cm3 everywhere else."""

BRITISH = {"aluminium": "aluminum", "caesium": "cesium", "sulphur": "sulfur"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """A piece of matter, told by its elements.

    Attributes
    ----------
    mass_fractions : pairs of atomic number and mass fraction, which add up to 1
    """

    name: str
    density_g_cm3: float
    mass_fractions: tuple[tuple[int, float], ...]

    def __post_init__(self) -> None:
        if not self.density_g_cm3 > 0:
            raise ValueError(f"{self.name} of {self.density_g_cm3} g/cm3 cannot be; allowed: more than 0")
        if not all(1 <= z <= 92 and fraction >= 0 for z, fraction in self.mass_fractions):
            raise ValueError(f"{self.name} has {self.mass_fractions}; allowed: Z 1-92, fractions not below 0")
        total = fsum(fraction for _, fraction in self.mass_fractions)
        if not isclose(total, 1.0, abs_tol=1e-6):
            raise ValueError(f"the mass fractions of {self.name} add up to {total}; they must add up to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of emitted photons; whose share `fraction` is, the function that returns it says."""

    energy_kev: float
    fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class KShell:
    """What an element's K shell does.

    Attributes
    ----------
    edge_kev : where the shell begins to absorb
    fluorescence_yield : share of K vacancies that emit a K photon
    fraction : share of photo-absorption that the K shell takes, just above its edge
    lines : K lines upwards in energy; each `fraction` is the line's share of K photons, and they add up to 1
    """

    edge_kev: float
    fluorescence_yield: float
    fraction: float
    lines: tuple[Line, ...]


@cache
def _table() -> Mapping[str, NDArray]:
    with np.load(Path(__file__).parent / "data" / "attenuation.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


@cache
def _atomic_numbers() -> Mapping[str, int]:
    names = [*_table()["symbol"].tolist(), *_table()["name"].tolist()]
    return {name: 1 + index % 92 for index, name in enumerate(names)}


def atomic_number(element: str) -> int:
    """Return Z of an element's symbol (Gd) or name (gadolinium)."""
    name = element if element in _atomic_numbers() else element.lower()
    z = _atomic_numbers().get(BRITISH.get(name, name))
    if z is None:
        raise WrongUsage(f"{element!r} is no element", hint="write a symbol such as Gd, or a name such as gadolinium")
    return z


def molar_mass_g(z: int) -> float:
    """Return the mass of a mole of atoms of element `z` (1-92)."""
    return float(_table()["molar_mass_g"][z - 1])


def symbol(z: int) -> str:
    """Return the symbol of element `z` (1-92)."""
    return str(_table()["symbol"][z - 1])


def material(name: str, density_g_cm3: float | None = None) -> Material:
    """Return a material from the shelf, an element, or a chemical formula of stated density.

    ``material("water")``, ``material("iodine")``, ``material("Pb")``, ``material("Gd2O3", 7.41)``. A stated density
    goes before the shelf's.
    """
    if name.lower() in MIXTURES:
        masses, shelf_g_cm3 = MIXTURES[name.lower()]
    elif name.lower() in (body := {tissue.lower(): known for tissue, known in tissues().items()}):
        masses, shelf_g_cm3, _ = body[name.lower()]
    else:
        formula, shelf_g_cm3 = FORMULAS.get(name.lower()) or _element(name) or (name, None)
        masses = {z: count * _table()["molar_mass_g"][z - 1] for z, count in _atoms(formula).items()}
    chosen_g_cm3 = density_g_cm3 if density_g_cm3 is not None else shelf_g_cm3
    if chosen_g_cm3 is None:
        raise WrongUsage(f"the density of {name} is not known", hint=f'state it: material("{name}", density_g_cm3=…)')
    total = fsum(masses.values())
    return Material(
        name=name,
        density_g_cm3=chosen_g_cm3,
        mass_fractions=tuple((z, float(mass / total)) for z, mass in sorted(masses.items())),
    )


def _element(name: str) -> tuple[str, float] | None:
    try:
        index = atomic_number(name) - 1
    except WrongUsage:
        return None
    return str(_table()["symbol"][index]), float(_table()["density_g_cm3"][index])


def _atoms(formula: str) -> Mapping[int, float]:
    """Count the atoms of a formula such as Ca10(PO4)6(OH)2; counts may be fractions."""
    unknown = WrongUsage(
        f"{formula!r} is neither a known material, an element nor a chemical formula",
        hint=f"known materials: {', '.join(sorted([*FORMULAS, *MIXTURES]))}; elements by symbol or name",
    )
    tokens = re.findall(r"([A-Z][a-z]?|[()])(\d+\.?\d*)?", formula)
    if not tokens or "".join(map("".join, tokens)) != formula:
        raise unknown
    groups: list[dict[int, float]] = [{}]
    for symbol, digits in tokens:
        if symbol == "(":
            groups.append({})
            continue
        if symbol == ")" and len(groups) > 1:
            counts = groups.pop()
        elif symbol in _atomic_numbers():
            counts = {_atomic_numbers()[symbol]: 1.0}
        else:
            raise unknown
        for z, count in counts.items():
            groups[-1][z] = groups[-1].get(z, 0.0) + count * float(digits or 1)
    if len(groups) != 1 or not fsum(groups[0].values()):
        raise unknown
    return groups[0]


def solution(solvent: Material | str, solute: Material | str, concentration_mg_ml: float) -> Material:
    """Return a solution that holds so much solute in each millilitre; the solute displaces solvent by its volume."""
    solvent, solute = _as_material(solvent), _as_material(solute)
    solute_g_cm3 = concentration_mg_ml / MG_ML_PER_G_CM3
    if not 0 <= solute_g_cm3 <= solute.density_g_cm3:
        highest_mg_ml = solute.density_g_cm3 * MG_ML_PER_G_CM3
        raise WrongUsage(f"{concentration_mg_ml} mg/mL of {solute.name} cannot be; allowed: 0 to {highest_mg_ml:g}")
    density = solvent.density_g_cm3 * (1 - solute_g_cm3 / solute.density_g_cm3) + solute_g_cm3
    share = solute_g_cm3 / density
    fractions: dict[int, float] = {}
    for part, weight in ((solvent, 1 - share), (solute, share)):
        for z, fraction in part.mass_fractions:
            fractions[z] = fractions.get(z, 0.0) + weight * fraction
    return Material(
        name=f"{solute.name} {concentration_mg_ml:g} mg/mL in {solvent.name}",
        density_g_cm3=density,
        mass_fractions=tuple(sorted(fractions.items())),
    )


def _as_material(matter: Material | str) -> Material:
    return material(matter) if isinstance(matter, str) else matter


def mass_attenuation_cm2_g(
    material: Material | str, energies_kev: ArrayLike, process: Process = "total"
) -> NDArray[np.float64]:
    """Return the mass attenuation coefficient at each energy.

    Parameters
    ----------
    material : a material, or its name on the shelf
    energies_kev : (n,) float
        Within 1-160 keV.
    process : photo, coherent, incoherent, or total, which is their sum

    Returns
    -------
    (n,) float64, cm2/g
    """
    if process not in get_args(Process):
        raise WrongUsage(f"no process {process!r}; allowed: {', '.join(get_args(Process))}")
    energies = np.atleast_1d(np.asarray(energies_kev, dtype=np.float64))
    if not np.all((energies >= LOWEST_KEV) & (energies <= HIGHEST_KEV)):
        raise WrongUsage(
            f"energies from {energies.min():g} to {energies.max():g} keV; attenuation is tabulated from "
            f"{LOWEST_KEV:g} to {HIGHEST_KEV:g} keV"
        )
    log_energies = np.log(energies)
    rows = range(3) if process == "total" else (get_args(Process).index(process),)
    summed = np.zeros_like(energies)
    for z, fraction in _as_material(material).mass_fractions:
        nodes = slice(*_table()["node_offset"][z - 1 : z + 1])
        log_nodes = _table()["log_energy_kev"][nodes]
        for row in rows:
            summed += fraction * np.exp(np.interp(log_energies, log_nodes, _table()["log_cm2_g"][row, nodes]))
    return summed


def linear_attenuation_per_mm(material: Material | str, energies_kev: ArrayLike) -> NDArray[np.float64]:
    """Return the total linear attenuation coefficient at each energy: (n,) float64, 1/mm."""
    known = _as_material(material)
    return mass_attenuation_cm2_g(known, energies_kev) * known.density_g_cm3 / 10


@cache
def k_shell(z: int) -> KShell:
    """Return what the K shell of element `z` (1-92) does; the lightest elements emit no lines."""
    if not 1 <= z <= 92:
        raise WrongUsage(f"no K shell tabulated for Z = {z}; allowed: 1 to 92")
    table, index = _table(), z - 1
    rows = slice(*table["line_offset"][index : z + 1])
    intensities = table["line_intensity"][rows]
    shares = intensities / intensities.sum() if len(intensities) else intensities
    return KShell(
        edge_kev=float(table["k_edge_kev"][index]),
        fluorescence_yield=float(table["k_yield"][index]),
        fraction=float(1 - 1 / table["k_jump"][index]),
        lines=tuple(
            Line(energy_kev=float(energy), fraction=float(share))
            for energy, share in zip(table["line_energy_kev"][rows], shares, strict=True)
        ),
    )
