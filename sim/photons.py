"""photons: `(n_energies, rows, cols) float32`, photons per pixel and exposure.

# Ref: Beer-Lambert with inverse square and obliquity of the pixel: spectrum per mm2 and mAs at 1 m, times
#      (1 m / r)^2 cos(theta) and the pixel's area, times exp(-sum mu l) over the exact chords of `sim.phantom`.

Stated simplifications: a point focal spot, no scatter, no air, no heel effect.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibration.attenuation import linear_attenuation_per_mm
from calibration.geometry import Geometry, Views
from sim.phantom import Phantom, path_lengths_mm

_REFERENCE_MM = 1000.0
"""Where tube spectra are stated."""


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
    pixels_mm = pixel_centres_mm(pose, geometry)
    per_pixel = np.asarray(spectrum, dtype=np.float32) * np.float32(mas)
    fluence = _pixel_share(pose, pixels_mm).astype(np.float32)
    photons = np.ones((len(per_pixel), geometry.rows, geometry.cols), dtype=np.float32)
    if phantom is not None:
        lengths_mm = path_lengths_mm(phantom, pose.source_mm[0], pixels_mm)
        per_mm = np.stack([linear_attenuation_per_mm(matter, energies_kev) for matter in phantom.materials], axis=1)
        np.exp(np.tensordot(-per_mm.astype(np.float32), lengths_mm, axes=1), out=photons)
    photons *= per_pixel[:, None, None]
    photons *= fluence
    return photons


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


def _pixel_share(pose: Views, pixels_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what share of the photons per mm2 at 1 m each pixel gets, in mm2: (rows, cols) float64."""
    area_normal_mm2 = np.cross(pose.u_mm[0], pose.v_mm[0])
    ray_mm = pixels_mm - pose.source_mm[0]
    distance_mm = np.linalg.norm(ray_mm, axis=-1)
    return np.abs(ray_mm @ area_normal_mm2) / distance_mm * (_REFERENCE_MM / distance_mm) ** 2
