"""A ring of vials whose maps have a known blur, noise and cross-talk, to measure quality on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import special

from reconstruction.phantom_file import Phantom, Vial
from reconstruction.volume import Grid, Volume

MATERIALS = ("water", "iodine", "gadolinium")
CONTENTS = (
    ("water", 0.0),
    ("iodine", 3.0),
    ("iodine", 9.0),
    ("iodine", 18.0),
    ("gadolinium", 4.0),
    ("gadolinium", 8.0),
    ("gadolinium", 16.0),
)
RING_MM, RADIUS_MM = 4.2, 1.2


def ring(**others) -> Phantom:
    """Return the phantom's description, its first vial on the x axis."""
    turns = 2 * np.pi * np.arange(len(CONTENTS)) / len(CONTENTS)
    vials = tuple(
        Vial(
            material=name,
            concentration_mg_ml=true,
            x_mm=float(RING_MM * np.cos(turn)),
            y_mm=float(RING_MM * np.sin(turn)),
            radius_mm=RADIUS_MM,
        )
        for (name, true), turn in zip(CONTENTS, turns, strict=True)
    )
    return Phantom(name="ring", vials=vials, **others)


def blurred_disc(distance_mm: NDArray[np.float64], radius_mm: float, blur_mm: float) -> NDArray[np.float64]:
    """Return a disc of 1 behind a Gaussian blur, at some distances from its centre, by integrating over its lines.

    A line at height t across the disc is a step up and a step down; along it the blur makes error functions, across
    it a Gaussian of t.
    """
    t, weight = np.polynomial.legendre.leggauss(160)
    t, weight = radius_mm * t, radius_mm * weight
    half = np.sqrt(radius_mm**2 - t**2)
    table_mm = np.linspace(0, radius_mm + 6 * blur_mm, 300)
    along = 0.5 * (
        special.erf((half - table_mm[:, None]) / (np.sqrt(2) * blur_mm))
        + special.erf((half + table_mm[:, None]) / (np.sqrt(2) * blur_mm))
    )
    across = np.exp(-(t**2) / (2 * blur_mm**2)) / (np.sqrt(2 * np.pi) * blur_mm)
    return np.interp(distance_mm, table_mm, (along * across * weight).sum(axis=1), right=0.0)


def maps_of(
    phantom: Phantom,
    *,
    blur_mm: float | tuple[float, ...] = 0.2,
    noise_mg_ml: float = 0.0,
    slope: float = 1.0,
    offset_mg_ml: float = 0.0,
    shown_of_iodine: float = 0.0,
    correlation: float = 0.0,
    n_slices: int = 6,
    n: int = 120,
    voxel_mm: float = 0.1,
    seed: int = 0,
) -> Volume:
    """Return maps of water, iodine and gadolinium; `shown_of_iodine` of the iodine appears as gadolinium.

    The noise of iodine and gadolinium is white, with this correlation.
    """
    grid = Grid(shape=(n_slices, n, n), voxel_mm=voxel_mm)
    _, y, x = grid.axes_mm()
    blurs = (blur_mm,) * 3 if isinstance(blur_mm, float) else blur_mm
    values = np.zeros((3, n, n))
    for vial in phantom.vials:
        away = np.hypot(y[:, None] - vial.y_mm, x - vial.x_mm)
        iodine, gadolinium = vial.true_mg_ml("iodine") or 0.0, vial.true_mg_ml("gadolinium") or 0.0
        for k, shown in enumerate((1000.0, slope * iodine, slope * gadolinium + shown_of_iodine * iodine)):
            values[k] += shown * blurred_disc(away, vial.radius_mm, blurs[k])
    values[1:] += offset_mg_ml
    noise = np.random.default_rng(seed).normal(size=(3, *grid.shape))
    noise[2] = correlation * noise[1] + np.sqrt(1 - correlation**2) * noise[2]
    whole = (values[:, None] + noise_mg_ml * noise) / 1000
    return Volume(values=whole.astype(np.float32), channels=MATERIALS, unit="g/cm3", grid=grid)
