"""What stands at a point: position, voxel, every material with its error, every bin, and the spectrum with its fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibration.attenuation import MG_ML_PER_G_CM3
from gui.volume.looks import rounded
from gui.volume.regions import RegionFigures
from gui.volume.slicing import Point, voxel_of
from gui.volume.views import fitted_per_mm
from reconstruction.volume import LINEAR_ATTENUATION, MASS_CONCENTRATION, MG_PER_ML, Volume


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spectrum:
    """Attenuation over the bins at one voxel.

    Attributes
    ----------
    edges_kev : (n_bins + 1,) float64
        The last bin is open; here it ends as wide as the one before it.
    measured_per_mm : (n_bins,) float64
    fitted_per_mm : (n_bins,) float64 or None
        What the materials found there would show.
    """

    edges_kev: NDArray[np.float64]
    measured_per_mm: NDArray[np.float64]
    fitted_per_mm: NDArray[np.float64] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading:
    """What stands at a point.

    Attributes
    ----------
    voxel : (z, y, x) int or None
        Of the first volume there is; None outside.
    rows : tuple of (name, value, unit)
        For people; the value with its error where one is known.
    """

    point_mm: Point
    voxel: tuple[int, int, int] | None
    rows: tuple[tuple[str, str, str], ...]
    spectrum: Spectrum | None = None


def reading(point_mm: Point, bins: Volume | None, materials: Volume | None, sigma: Volume | None = None) -> Reading:
    """Read all volumes at a point, whatever their grids.

    Parameters
    ----------
    sigma : Volume, optional
        Standard errors of `materials`, with its channels.
    """
    found = [voxel_of(volume.grid, point_mm) for volume in (materials, bins) if volume is not None]
    rows: list[tuple[str, str, str]] = []
    if materials is not None:
        rows += _rows(materials, point_mm, sigma)
    if bins is not None:
        rows += _rows(bins, point_mm, None)
    return Reading(
        point_mm=point_mm,
        voxel=next((voxel for voxel in found if voxel is not None), None),
        rows=tuple(rows),
        spectrum=spectrum(point_mm, bins, materials),
    )


def _rows(volume: Volume, point_mm: Point, sigma: Volume | None) -> list[tuple[str, str, str]]:
    values, errors = _values(volume, point_mm), None if sigma is None else _values(sigma, point_mm)
    rows = []
    for n, name in enumerate(volume.channels):
        unit, scale = volume.unit_of(name), 1.0
        if unit == MASS_CONCENTRATION:
            unit, scale = "mg/mL", MG_ML_PER_G_CM3
        value = "outside" if values is None else rounded(scale * float(values[n]), 4)
        if values is not None and errors is not None:
            value += f" ± {rounded(scale * float(errors[n]), 2)}"
        rows.append((name, value, "" if values is None else unit))
    return rows


def _values(volume: Volume, point_mm: Point) -> NDArray[np.float64] | None:
    voxel = voxel_of(volume.grid, point_mm)
    return None if voxel is None else np.asarray(volume.values[(slice(None), *voxel)], np.float64)


def spectrum(point_mm: Point, bins: Volume | None, materials: Volume | None) -> Spectrum | None:
    """Return the attenuation over the bins at a point; None outside, and where the edges of the bins are not known."""
    measured = None if bins is None else _values(bins, point_mm)
    concentrations = None if materials is None else _values(materials, point_mm)
    return _spectrum(bins, measured, materials, concentrations)


def mean_spectrum(figures: RegionFigures, bins: Volume | None, materials: Volume | None) -> Spectrum | None:
    """Return the mean attenuation over the bins in a region, and what its mean concentrations would show."""
    return _spectrum(bins, _means(figures, bins), materials, _means(figures, materials))


def _means(figures: RegionFigures, volume: Volume | None) -> NDArray[np.float64] | None:
    """Return the means of a volume's channels, in the volume's own unit."""
    if volume is None:
        return None
    scale, unit = (MG_ML_PER_G_CM3, MG_PER_ML) if volume.unit == MASS_CONCENTRATION else (1.0, volume.unit)
    known = {one.channel: one.mean / scale for one in figures.channels if one.unit == unit}
    means = np.array([known.get(name, np.nan) for name in volume.channels])
    return None if np.isnan(means).any() else means


def _spectrum(
    bins: Volume | None,
    measured: NDArray[np.float64] | None,
    materials: Volume | None,
    concentrations: NDArray[np.float64] | None,
) -> Spectrum | None:
    if bins is None or bins.unit != LINEAR_ATTENUATION or len(bins.thresholds_kev) != len(bins.channels):
        return None
    if measured is None or (np.diff(bins.thresholds_kev) <= 0).any():
        return None
    edges = np.array(bins.thresholds_kev, float)
    last = edges[-1] - edges[-2] if len(edges) > 1 else 10.0
    fitted = None
    basis = bins.basis
    if basis is not None and concentrations is not None and len(basis.thresholds_kev) == len(edges):
        assert materials is not None
        fitted = fitted_per_mm(basis, materials, concentrations)
    return Spectrum(
        edges_kev=np.append(edges, edges[-1] + last),
        measured_per_mm=measured,
        fitted_per_mm=None if fitted is None or np.isnan(fitted).any() else fitted,
    )


def is_error_of(sigma: Volume, materials: Volume) -> bool:
    """Whether a volume can hold the standard errors of another."""
    return (sigma.channels, sigma.unit, sigma.grid.shape) == (materials.channels, materials.unit, materials.grid.shape)
