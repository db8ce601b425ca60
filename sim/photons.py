"""photons: `(n_energies, rows, cols) float32`, photons per pixel and exposure.

# Ref: Beer-Lambert with inverse square and obliquity of the pixel: spectrum per mm2 and mAs at 1 m, times
#      (1 m / r)^2 cos(theta) and the pixel's area, times exp(-sum mu l) over the exact chords of `sim.phantom`.

Stated simplifications: a point focal spot, no scatter, no air, no heel effect.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from calibration.attenuation import linear_attenuation_per_mm
from calibration.geometry import Geometry, Views
from sim import strips
from sim.phantom import Phantom, Solids, row_lengths, solids_of

_REFERENCE_MM = 1000.0
"""Where tube spectra are stated."""
_DEEPEST = np.float32(87)
"""The greatest optical depth; behind a greater one there is nothing."""
_PER_LN_2, _LN_2_HIGH, _LN_2_LOW = (np.float32(x) for x in (1 / math.log(2), 355 / 512, math.log(2) - 355 / 512))
"""ln 2 stands in two parts, the first so short that its multiples are exact."""
_EXP = tuple(np.float32(1 / math.factorial(n)) for n in (6, 5, 4, 3, 2, 1, 0))


def expected_photons(
    phantom: Phantom | None,
    pose: Views,
    spectrum: ArrayLike,
    energies_kev: ArrayLike,
    mas: float,
    geometry: Geometry,
) -> NDArray[np.float32]:
    """Return the mean photons that reach each pixel during one exposure of a tube.

    Parameters
    ----------
    phantom : Phantom or None
        What stands in the beam.
    pose : Views
        Of one view.
    spectrum : (n_energies,) float
        Photons per mm2 and mAs at 1 m, behind all filters.
    energies_kev : (n_energies,) float
    mas : float
        Tube current times exposure.
    geometry : Geometry
        Of the detector: its pixels.

    Returns
    -------
    (n_energies, rows, cols) float32
    """
    if len(pose.source_mm) != 1:
        raise ValueError(f"{len(pose.source_mm)} views in one exposure; allowed: 1")
    per_pixel = np.asarray(spectrum, dtype=np.float32) * np.float32(mas)
    per_mm = _attenuation_per_mm(phantom, tuple(np.asarray(energies_kev, dtype=float).tolist()))
    solids, pixels_mm = solids_of(phantom), pixel_centres_mm(pose, geometry)
    area_normal_mm2 = np.cross(pose.u_mm[0], pose.v_mm[0])
    photons = np.empty((len(per_pixel), geometry.rows, geometry.cols), dtype=np.float32)

    def expose(start: int, stop: int) -> None:
        _expose(pose.source_mm[0], pixels_mm, area_normal_mm2, solids, per_mm, per_pixel, photons, start, stop)

    strips.in_parallel(expose, geometry.rows)
    return photons


@lru_cache(maxsize=32)
def _attenuation_per_mm(phantom: Phantom | None, energies_kev: tuple[float, ...]) -> NDArray[np.float32]:
    """Return what each material takes from each energy: (n_energies, n_materials) float32 or more, whole tiles."""
    per_mm = [linear_attenuation_per_mm(matter, energies_kev) for matter in phantom.materials] if phantom else []
    tiles = [-(-n // strips.TILE) * strips.TILE for n in (len(energies_kev), len(per_mm))]
    whole = np.zeros(tiles, dtype=np.float32)
    whole[: len(energies_kev), : len(per_mm)] = np.reshape(per_mm, (len(per_mm), len(energies_kev))).T
    return whole


def flood(photons_per_pixel: ArrayLike, geometry: Geometry) -> NDArray[np.float32]:
    """Return the same photons on every pixel: (n_energies, rows, cols) float32, from (n_energies,) float."""
    lines = np.asarray(photons_per_pixel, dtype=np.float32)
    return np.tile(lines[:, None, None], (1, geometry.rows, geometry.cols))


def pixel_centres_mm(pose: Views, geometry: Geometry) -> NDArray[np.float64]:
    """Return where the pixels of one view are: (rows, cols, 3) float64."""
    col = np.arange(geometry.cols) - (geometry.cols - 1) / 2
    row = np.arange(geometry.rows) - (geometry.rows - 1) / 2
    along_u, along_v = col[None, :, None] * pose.u_mm[0], row[:, None, None] * pose.v_mm[0]
    return pose.detector_mm[0] + along_u + along_v


@strips.quick
def _exp_minus(x: np.float32) -> np.float32:
    """Return exp(-x) of a number that is not negative, to float32's rounding."""
    octaves = np.int32(x * _PER_LN_2 + np.float32(0.5))
    rest = (np.float32(octaves) * _LN_2_HIGH - x) + np.float32(octaves) * _LN_2_LOW
    value = np.float32(0)
    for coefficient in _EXP:
        value = value * rest + coefficient
    return value * np.int32(np.int32(127 - octaves) << np.int32(23)).view(np.float32) if x < _DEEPEST else np.float32(0)


@njit(cache=True, nogil=True)
def _expose(
    source: np.ndarray, pixels: np.ndarray, area_normal: np.ndarray, solids: Solids, per_mm: np.ndarray,
    per_pixel: np.ndarray, photons: np.ndarray, start: int, stop: int,
) -> None:  # fmt: skip
    n_energies, _, cols = photons.shape
    n_materials = per_mm.shape[1]
    rays, sums = np.empty((7, cols)), np.empty((n_materials + 1, cols))
    lengths, depths = np.empty((n_materials, cols), np.float32), np.empty((strips.TILE, cols), np.float32)
    share = np.empty(cols, dtype=np.float32)
    for row in range(start, stop):
        row_lengths(solids, source, pixels[row], rays, sums, lengths)
        _share(rays, area_normal, share)
        for first in range(0, n_energies, strips.TILE):
            strips.multiply(per_mm[first : first + strips.TILE], lengths, depths)
            for energy in range(first, min(first + strips.TILE, n_energies)):
                _attenuate(per_pixel[energy], depths[energy - first], share, photons[energy, row])


@strips.quick
def _share(rays: np.ndarray, area_normal: np.ndarray, share: np.ndarray) -> None:
    """Say what share of the photons per mm2 at 1 m each pixel gets, in mm2: (cols,) float32."""
    x, y, z, length = rays[0], rays[1], rays[2], rays[6]
    for col in range(len(share)):
        seen = abs(x[col] * area_normal[0] + y[col] * area_normal[1] + z[col] * area_normal[2]) / length[col]
        share[col] = seen * (_REFERENCE_MM / length[col]) ** 2


@strips.quick
def _attenuate(per_pixel: np.float32, depth: np.ndarray, share: np.ndarray, photons: np.ndarray) -> None:
    for col in range(len(photons)):
        photons[col] = _exp_minus(depth[col]) * per_pixel * share[col]
