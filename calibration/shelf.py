"""The shelf of named materials: tissues, plastics, contrast agents, filters and sensors.

# Ref: tissues (after ICRU Report 44), tissue-equivalent plastics, glasses and their densities: NIST, X-Ray Mass
#      Attenuation Coefficients (NISTIR 5632), table 2. Compounds' densities: the same, table 2 and xraydb 4.5.8
#      `materials.dat` (CC0); hydroxyapatite: the mineral; barium sulfate, calcium carbonate: NIST's list of compounds.
#      More tissues: `data/tissues.csv`, with their sources in `data/README.md`.
# Lipid is triolein, the chief of vegetable oils, by its formula; its density of 0.915 g/cm3 is an assumption.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

FORMULAS: Mapping[str, tuple[str, float]] = {
    "water": ("H2O", 1.0),
    "ethanol": ("C2H6O", 0.789),
    "glycerin": ("C3H8O3", 1.261),
    "lipid": ("C57H104O6", 0.915),
    # plastics
    "pmma": ("C5H8O2", 1.19),
    "polyethylene": ("CH2", 0.93),
    "polypropylene": ("C3H6", 0.9),
    "polystyrene": ("C8H8", 1.06),
    "polycarbonate": ("C16H14O3", 1.20),
    "peek": ("C19H14O3", 1.32),
    "nylon": ("C6H11NO", 1.14),
    "mylar": ("C10H8O4", 1.38),
    "kapton": ("C22H10N2O5", 1.42),
    "teflon": ("C2F4", 2.2),
    "pvc": ("C2H3Cl", 1.406),
    # minerals and contrast agents; the elements (iodine, gadolinium, gold, ...) are known by their names
    "hydroxyapatite": ("Ca10(PO4)6(OH)2", 3.16),
    "calcium carbonate": ("CaCO3", 2.8),
    "calcium sulfate": ("CaSO4", 2.96),
    "barium sulfate": ("BaSO4", 4.5),
    "gadolinium oxide": ("Gd2O3", 7.41),
    "caesium iodide": ("CsI", 4.51),
    "quartz": ("SiO2", 2.65),
    "alumina": ("Al2O3", 3.97),
    "tungsten carbide": ("WC", 15.6),
    # sensors; silicon is an element
    "gaas": ("GaAs", 5.32),
    "cdte": ("CdTe", 5.85),
    "czt": ("Cd0.9Zn0.1Te", 5.78),
}
"""Compounds by name: formula, density in g/cm3."""

# fmt: off
MIXTURES: Mapping[str, tuple[Mapping[int, float], float]] = {
    "air": ({6: 0.000124, 7: 0.755268, 8: 0.231781, 18: 0.012827}, 0.00120479),
    # tissues
    "adipose": ({1: 0.114, 6: 0.598, 7: 0.007, 8: 0.278, 11: 0.001, 16: 0.001, 17: 0.001}, 0.95),
    "blood": (
        {1: 0.102, 6: 0.110, 7: 0.033, 8: 0.745, 11: 0.001, 15: 0.001, 16: 0.002, 17: 0.003, 19: 0.002, 26: 0.001},
        1.06,
    ),
    "bone": (
        {1: 0.034, 6: 0.155, 7: 0.042, 8: 0.435, 11: 0.001, 12: 0.002, 15: 0.103, 16: 0.003, 20: 0.225}, 1.92,
    ),
    "brain": (
        {1: 0.107, 6: 0.145, 7: 0.022, 8: 0.712, 11: 0.002, 15: 0.004, 16: 0.002, 17: 0.003, 19: 0.003}, 1.04,
    ),
    "breast": ({1: 0.106, 6: 0.332, 7: 0.030, 8: 0.527, 11: 0.001, 15: 0.001, 16: 0.002, 17: 0.001}, 1.02),
    "eye lens": ({1: 0.096, 6: 0.195, 7: 0.057, 8: 0.646, 11: 0.001, 15: 0.001, 16: 0.003, 17: 0.001}, 1.07),
    "lung": (
        {1: 0.103, 6: 0.105, 7: 0.031, 8: 0.749, 11: 0.002, 15: 0.002, 16: 0.003, 17: 0.003, 19: 0.002}, 1.05,
    ),
    "muscle": (
        {1: 0.102, 6: 0.143, 7: 0.034, 8: 0.71, 11: 0.001, 15: 0.002, 16: 0.003, 17: 0.001, 19: 0.004}, 1.05,
    ),
    "soft tissue": (
        {1: 0.102, 6: 0.143, 7: 0.034, 8: 0.708, 11: 0.002, 15: 0.003, 16: 0.003, 17: 0.002, 19: 0.003}, 1.06,
    ),
    # tissue-equivalent plastics and glasses
    "a-150": (
        {1: 0.101330, 6: 0.775498, 7: 0.035057, 8: 0.052315, 9: 0.017423, 20: 0.018377}, 1.127,
    ),
    "b-100": (
        {1: 0.065473, 6: 0.536942, 7: 0.021500, 8: 0.032084, 9: 0.167415, 20: 0.176586}, 1.45,
    ),
    "pyrex": (
        {5: 0.040066, 8: 0.539559, 11: 0.028191, 13: 0.011644, 14: 0.377220, 19: 0.003320}, 2.23,
    ),
    "lead glass": ({8: 0.156453, 14: 0.080866, 22: 0.008092, 33: 0.002651, 82: 0.751938}, 6.22),
    # metals of filters and beads
    "brass": ({29: 0.63, 30: 0.37}, 8.4),
    "steel": ({26: 1.0}, 7.87),
}
# fmt: on
"""Mixtures by name: mass fraction of each Z, density in g/cm3; steel stands for iron, brass is the CZ108 alloy."""

TISSUES_HERE = ("adipose", "blood", "bone", "brain", "breast", "eye lens", "lung", "muscle", "soft tissue")
"""Those of the mixtures that are tissues of a body."""
_Z = {"H": 1, "C": 6, "N": 7, "O": 8, "Na": 11, "Mg": 12, "P": 15, "S": 16, "Cl": 17, "K": 19, "Ca": 20, "Fe": 26}


class Tissue(NamedTuple):
    """A tissue: mass of each Z, in any unit; its density; whether it holds mineral."""

    masses: Mapping[int, float]
    density_g_cm3: float
    is_bone: bool


@cache
def tissues() -> Mapping[str, Tissue]:
    """Return all tissues of a body by name, from the lightest soft one to the densest bone."""
    here = [(name, Tissue(*MIXTURES[name], is_bone=name == "bone")) for name in TISSUES_HERE]
    lines = (Path(__file__).parent / "data" / "tissues.csv").read_text(encoding="utf-8").splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    read = [
        (
            row["tissue"],
            Tissue(
                masses={z: float(row[symbol]) for symbol, z in _Z.items() if float(row[symbol])},
                density_g_cm3=float(row["density_g_cm3"]),
                is_bone=row["kind"] == "bone",
            ),
        )
        for row in rows
    ]
    return dict(sorted([*here, *read], key=lambda pair: (pair[1].is_bone, pair[1].density_g_cm3, pair[0])))
