"""The phantoms of the MARS studies: vials of contrast agents, bone mineral and fat in a plastic cylinder.

# Ref: `mars-raja`: gadolinium 1, 2, 4, 8 mg/mL, hydroxyapatite 54.3, 211.7, 808.5 mg/mL, water, vegetable oil: Raja et
#      al. 2018, Appl. Sci. 8, 467.
# Ref: `mars-multi`: gold and gadolinium 2, 4, 8 mg/mL, iodine 18 mg/mL, hydroxyapatite 0 to 808.5 mg/mL, lipid, water:
#      after Panta et al. 2018 and Moghiseh et al. 2016, from memory.

No source at hand settles where the vials stand. Choices: a cylinder of PMMA, 38 mm (`mars-multi`) or 33 mm
(`mars-raja`) wide, vials of 6 mm in one or two rings; iodine of 2, 4 and 9 mg/mL beside the published 18, so that four
points make a line; hydroxyapatite and agents in water, for the resin of commercial rods is not told; no walls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sim.phantom import Insert, Phantom, vials_in_pmma

VIAL_RADIUS_MM = 3.0
HEIGHT_MM = 20.0
"""More than the camera sees at any magnification of the demo's instrument."""
LIPID_MG_ML = 915.0
"""Undiluted."""

Content = tuple[str, float]
"""What a vial holds, and how much of it in mg/mL of water."""

MULTI_RADIUS_MM = 19.0
MULTI_OUTER: tuple[float, tuple[Content, ...]] = (
    15.2,
    (
        ("gold", 2.0),
        ("gadolinium", 2.0),
        ("iodine", 2.0),
        ("hydroxyapatite", 808.5),
        ("gold", 4.0),
        ("gadolinium", 4.0),
        ("iodine", 4.0),
        ("iodine", 18.0),
        ("gold", 8.0),
        ("hydroxyapatite", 402.3),
        ("gadolinium", 8.0),
        ("iodine", 9.0),
    ),
)
MULTI_INNER: tuple[float, tuple[Content, ...]] = (
    7.2,
    (
        ("water", 0.0),
        ("hydroxyapatite", 54.3),
        ("lipid", LIPID_MG_ML),
        ("hydroxyapatite", 104.3),
        ("hydroxyapatite", 211.7),
    ),
)
"""Radius of each ring, and its vials in turn: none of the densest beside each other."""
RAJA_RADIUS_MM = 16.5
RAJA: tuple[float, tuple[Content, ...]] = (
    12.0,
    (
        ("gadolinium", 1.0),
        ("gadolinium", 2.0),
        ("hydroxyapatite", 54.3),
        ("gadolinium", 4.0),
        ("water", 0.0),
        ("hydroxyapatite", 808.5),
        ("gadolinium", 8.0),
        ("lipid", LIPID_MG_ML),
        ("hydroxyapatite", 211.7),
    ),
)


def multi_contrast_phantom() -> Phantom:
    """Return gold, gadolinium and iodine in several concentrations, hydroxyapatite, lipid and water."""
    inserts = [insert for ring in (MULTI_OUTER, MULTI_INNER) for insert in _ring(*ring)]
    return vials_in_pmma(inserts, radius_mm=MULTI_RADIUS_MM, height_mm=HEIGHT_MM)


def raja_phantom() -> Phantom:
    """Return gadolinium in several concentrations, hydroxyapatite, oil and water."""
    return vials_in_pmma(_ring(*RAJA), radius_mm=RAJA_RADIUS_MM, height_mm=HEIGHT_MM)


def _ring(ring_radius_mm: float, contents: Sequence[Content]) -> list[Insert]:
    azimuths_rad = [2 * math.pi * number / len(contents) for number in range(len(contents))]
    return [
        Insert(
            material=name,
            concentration_mg_ml=concentration_mg_ml,
            x_mm=ring_radius_mm * math.cos(azimuth_rad),
            y_mm=ring_radius_mm * math.sin(azimuth_rad),
            radius_mm=VIAL_RADIUS_MM,
        )
        for azimuth_rad, (name, concentration_mg_ml) in zip(azimuths_rad, contents, strict=True)
    ]
