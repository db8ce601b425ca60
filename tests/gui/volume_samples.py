"""A tiny volume with everything in it: four bins, four materials with a basis, and rods at known places."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from calibration.material_basis import MaterialBasis
from reconstruction.volume import LINEAR_ATTENUATION, MASS_CONCENTRATION, Grid, Volume, save_volume

GRID = Grid(shape=(12, 16, 20), voxel_mm=0.5, centre_mm=(1.0, -2.0, 3.0))
KEV = (20.0, 33.0, 50.0, 65.0)
NAMES = ("water", "hydroxyapatite", "iodine", "gadolinium")
MATRIX = np.array([[0.055, 0.15, 3.0, 1.6], [0.032, 0.06, 2.8, 0.9], [0.022, 0.03, 1.1, 1.5], [0.019, 0.022, 0.6, 0.9]])
BASIS = MaterialBasis(materials=NAMES, attenuation_per_mm_per_g_cm3=MATRIX, thresholds_kev=KEV)
ROD = (slice(None), slice(4, 8), slice(10, 15))
"""Of iodine at 5 mg/mL, in water."""


def materials() -> Volume:
    values = np.zeros((4, *GRID.shape), np.float32)
    values[0, :, 1:-1, 1:-1] = 1.0
    values[2][ROD] = 0.005
    values[1, 3:6, 10:13, 3:6] = 0.4
    return Volume(values=values, channels=NAMES, unit=MASS_CONCENTRATION, grid=GRID, thresholds_kev=KEV, basis=BASIS)


def bins() -> Volume:
    values = np.tensordot(MATRIX, materials().values, 1).astype(np.float32)
    return Volume(
        values=values,
        channels=("bin 1", "bin 2", "bin 3", "bin 4"),
        unit=LINEAR_ATTENUATION,
        grid=GRID,
        thresholds_kev=KEV,
        basis=BASIS,
    )


def saved(folder: Path) -> tuple[Path, Path]:
    """Write both, and the standard errors of the materials beside them."""
    errors = Volume(
        values=np.full((4, *GRID.shape), 0.0004, np.float32), channels=NAMES, unit=MASS_CONCENTRATION, grid=GRID
    )
    save_volume(errors, folder / "m-sigma.h5")
    return save_volume(materials(), folder / "m.h5"), save_volume(bins(), folder / "b.h5")
