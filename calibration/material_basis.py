"""Effective attenuation of each material in each energy bin, measured through cells of known thickness.

What a bin sees of a material depends on the tube, the sensor and its thresholds together, and no table holds all
three; so it is measured where it is used: the flat field, a cell of water, and cells of each solute in water.

The beam hardens on its way, so that the figures hold for what is alike: about as much water in the beam, and about as
much solute per area (concentration times thickness) as in the sample. Far from there they do not: at 118 kVp the bin
at 18-33 keV loses 0.2 % of its attenuation per further mm of water, and a cell with three times the solute makes
hydroxyapatite read some per cent too much.

# Ref: a solution is solvent and solute by volume, rho = rho_solvent (1 - c / rho_solute) + c, so that a solute cell
#      shows c mu_solute + (1 - c / rho_solute) rho_water mu_water; Alvarez and Macovski 1976, Phys. Med. Biol. 21, 733
#      for the linear basis.
# Ref: clipping at 3 sigma of the median absolute deviation (1.4826 for a normal law): Rousseeuw and Croux 1993,
#      J. Am. Stat. Assoc. 88, 1273.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from calibration.attenuation import MG_ML_PER_G_CM3
from calibration.geometry import Geometry
from firmware_iface.errors import CalibrationMissing

SOLVENT = "water"
SAME_KEV = 0.5
"""Thresholds that differ by no more are the same."""
_MAD_TO_SIGMA = 1.4826
_CLIP_SIGMA = 3.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MaterialBasis:
    """How strongly one g/cm3 of each material attenuates each bin.

    Attributes
    ----------
    materials : tuple of str
    attenuation_per_mm_per_g_cm3 : (n_bins, n_materials) float64
    thresholds_kev : tuple of float
        Lower edge of each bin, rising within a pass; the last bin of each pass is open.
    tube_kvp : float, optional
        Of the beam it was measured in; None: it is not known.
    """

    materials: tuple[str, ...]
    attenuation_per_mm_per_g_cm3: NDArray[np.float64]
    thresholds_kev: tuple[float, ...]
    tube_kvp: float | None = None

    def __post_init__(self) -> None:
        shape = (len(self.thresholds_kev), len(self.materials))
        if self.attenuation_per_mm_per_g_cm3.shape != shape:
            raise ValueError(
                f"the attenuation of shape {self.attenuation_per_mm_per_g_cm3.shape} does not match "
                f"{shape[0]} thresholds and {shape[1]} materials; allowed: {shape}"
            )
        if not np.isfinite(self.attenuation_per_mm_per_g_cm3).all():
            raise ValueError("the attenuation of a basis holds values that are not finite; allowed: numbers")
        if len(set(self.materials)) != len(self.materials):
            raise ValueError(f"a material stands twice in {', '.join(self.materials)}; allowed: each once")
        starts = 1 + np.flatnonzero(np.diff(self.thresholds_kev) <= 0)
        lengths = np.diff(np.concatenate([[0], starts, [len(self.thresholds_kev)]]))
        if (lengths != lengths[0]).any() or (lengths[0] < 2 and len(starts)):
            raise ValueError(
                f"the thresholds are {self.thresholds_kev} keV; allowed: rising, or as many that rise in every pass"
            )

    def is_for(self, thresholds_kev: Sequence[float]) -> bool:
        """Whether it was measured at these thresholds."""
        own_kev = self.thresholds_kev
        return len(own_kev) == len(thresholds_kev) and bool(np.allclose(own_kev, list(thresholds_kev), atol=SAME_KEV))

    def of_pass(self, thresholds_kev: Sequence[float]) -> MaterialBasis:
        """Return what belongs to the bins of one pass; all of it where no pass has these thresholds."""
        n_bins = len(thresholds_kev)
        for first in range(0, len(self.thresholds_kev), n_bins):
            rows = slice(first, first + n_bins)
            own_kev, own = self.thresholds_kev[rows], self.attenuation_per_mm_per_g_cm3[rows]
            part = replace(self, attenuation_per_mm_per_g_cm3=own, thresholds_kev=own_kev)
            if part.is_for(thresholds_kev):
                return part
        return self


def joined(bases: Sequence[MaterialBasis]) -> MaterialBasis:
    """Return one basis for the bins of several passes, one after the other."""
    first = bases[0]
    if any(other.materials != first.materials or other.tube_kvp != first.tube_kvp for other in bases):
        raise ValueError("the bases are of other materials or voltages; allowed: passes of one beam, the same cells")
    return replace(
        first,
        attenuation_per_mm_per_g_cm3=np.concatenate([each.attenuation_per_mm_per_g_cm3 for each in bases]),
        thresholds_kev=tuple(kev for each in bases for kev in each.thresholds_kev),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CellMeasurement:
    """The mean of the frames behind one cell.

    Attributes
    ----------
    material : str
        The solute, or water for the cell of pure water (`concentration_mg_ml` is then not used).
    counts : (n_bins, rows, cols) float
        Mean counts per frame in each bin, with the exposure of the flats.
    """

    material: str
    concentration_mg_ml: float
    thickness_mm: float
    counts: NDArray[np.floating]

    def __post_init__(self) -> None:
        if self.thickness_mm <= 0:
            raise ValueError(f"the {self.material} cell is {self.thickness_mm} mm thick; allowed: above 0")
        if self.material != SOLVENT and self.concentration_mg_ml <= 0:
            raise ValueError(
                f"the {self.material} cell has a concentration of {self.concentration_mg_ml} mg/mL; allowed: above 0"
            )


def path_factors(geometry: Geometry) -> NDArray[np.float64]:
    """How much longer than its thickness is each ray's path through a slab normal to the beam at angle 0.

    Returns
    -------
    factors : (rows, cols) float64, dimensionless
        1 / cos of the angle between the ray to each pixel and the slab's normal.
    """
    view = geometry.views([0.0])
    columns = np.arange(geometry.cols) - (geometry.cols - 1) / 2
    rows = np.arange(geometry.rows) - (geometry.rows - 1) / 2
    rays = (
        (view.detector_mm[0] - view.source_mm[0])
        + rows[:, None, None] * view.v_mm[0]
        + columns[None, :, None] * view.u_mm[0]
    )
    normal = np.cross(view.u_mm[0], view.v_mm[0])
    return np.linalg.norm(rays, axis=2) * np.linalg.norm(normal) / np.abs(rays @ normal)


def robust_mean(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the mean of each row without its outliers: (n_rows, n_values) to (n_rows,).

    Values further than 3 sigma of the median (sigma from the median absolute deviation) do not count, nor do columns
    with a value that is not finite.
    """
    values = values[:, np.isfinite(values).all(axis=0)]
    centre = np.median(values, axis=1, keepdims=True)
    spread = _MAD_TO_SIGMA * np.median(np.abs(values - centre), axis=1, keepdims=True)
    is_inside = np.abs(values - centre) <= _CLIP_SIGMA * spread
    return np.asarray(np.mean(values, axis=1, where=is_inside), dtype=np.float64)


def measure_basis(
    open_beam: NDArray[np.floating],
    cells: Sequence[CellMeasurement],
    *,
    geometry: Geometry,
    thresholds_kev: Sequence[float],
    densities_g_cm3: Mapping[str, float],
    is_bad: NDArray[np.bool_] | None = None,
) -> MaterialBasis:
    """Measure the basis from the flat field and one cell per material.

    Parameters
    ----------
    open_beam : (n_bins, rows, cols) float
        Mean counts per frame with nothing in the beam.
    cells : sequence of CellMeasurement
        One of water, and one for each solute; the order is the order of the basis.
    geometry : Geometry
        Of source and detector, for the slanted paths through the cells.
    densities_g_cm3 : mapping of str to float
        Of water and of each solute as it displaces water.
    is_bad : (rows, cols) bool, optional
        Pixels that do not count.

    Raises
    ------
    CalibrationMissing
        There is no cell of water, or too little light came through a cell.
    """
    water = next((cell for cell in cells if cell.material == SOLVENT), None)
    if water is None:
        raise CalibrationMissing(
            f"the cells are {', '.join(cell.material for cell in cells) or 'none'}, and none is of water",
            hint="add a water cell to the plan's calibration cells: the solutes are measured against it",
        )
    is_good = np.ones(open_beam.shape[1:], dtype=bool) if is_bad is None else ~is_bad
    factors = path_factors(geometry)
    water_g_cm3 = densities_g_cm3[SOLVENT]
    water_per_mm = _attenuation_per_mm(open_beam, water, factors, is_good)
    columns = []
    for cell in cells:
        if cell is water:
            columns.append(water_per_mm / water_g_cm3)
            continue
        solute_g_cm3 = cell.concentration_mg_ml / MG_ML_PER_G_CM3
        water_share = 1 - solute_g_cm3 / densities_g_cm3[cell.material]
        cell_per_mm = _attenuation_per_mm(open_beam, cell, factors, is_good)
        columns.append((cell_per_mm - water_share * water_per_mm) / solute_g_cm3)
    return MaterialBasis(
        materials=tuple(cell.material for cell in cells),
        attenuation_per_mm_per_g_cm3=np.stack([robust_mean(column) for column in columns], axis=1),
        thresholds_kev=tuple(thresholds_kev),
    )


def _attenuation_per_mm(
    open_beam: NDArray[np.floating],
    cell: CellMeasurement,
    factors: NDArray[np.float64],
    is_good: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Return what each good pixel sees of one cell: (n_bins, n_good) float64, 1/mm."""
    flat, behind = (np.asarray(counts, dtype=np.float64)[:, is_good] for counts in (open_beam, cell.counts))
    is_lit = (flat > 0) & (behind > 0)
    if not is_lit.any(axis=1).all():
        raise CalibrationMissing(
            f"no photon came through the {cell.material} cell in bin {int(np.argmin(is_lit.any(axis=1)))}",
            hint="use more frames, more current or a thinner cell, and check that the tube was on",
        )
    # A pixel that saw nothing in one bin would be an infinite attenuation there; it counts in no bin.
    is_kept = is_lit.all(axis=0)
    values = np.full(flat.shape, np.nan)
    values[:, is_kept] = -np.log(behind[:, is_kept] / flat[:, is_kept]) / (
        cell.thickness_mm * factors[is_good][is_kept]
    )
    return values
