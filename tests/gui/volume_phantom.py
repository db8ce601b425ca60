"""Bodies without a symmetry, of water, iodine, bone and gold, with edges that sampling resolves."""

from __future__ import annotations

import numpy as np

from gui.colour import Look, colours_of
from gui.volume.optics import Grains, grains_of
from gui.workers import Job

EDGE_MM = 20.0
NAMES = ("water", "iodine", "hydroxyapatite", "gold")
LOOKS = tuple(
    Look(material=name, colour=colours_of(NAMES)[name], low_g_cm3=low, high_g_cm3=high)
    for name, low, high in zip(NAMES, (0.2, 0.0005, 0.1, 0.0012), (1.2, 0.016, 0.8, 0.008), strict=True)
)


def phantom(n: int) -> Grains:
    """Return a cylinder of water along z with rods of 16 and 1 mg/mL iodine, an eccentric bone and a ball of gold."""
    voxel_mm = EDGE_MM / n
    along = (np.arange(n) - (n - 1) / 2) * voxel_mm
    z, y, x = np.meshgrid(along, along, along, indexing="ij")

    def soft(outside_mm):
        return np.clip(0.5 - outside_mm / (2.5 * voxel_mm), 0, 1)

    def rod(x_mm: float, y_mm: float, radius_mm: float, low_mm: float, high_mm: float):
        return soft(np.maximum(np.hypot(x - x_mm, y - y_mm) - radius_mm, np.maximum(z - high_mm, low_mm - z)))

    values = np.zeros((4, n, n, n), dtype=np.float32)
    values[0] = rod(0, 0, 8.5, -9, 9)
    values[1] = 0.016 * rod(5, 1, 1.6, -7, 7) + 0.001 * rod(-5, -2, 2.2, -7, 5)
    values[2] = 0.8 * soft(np.abs(np.sqrt(x**2 + (y + 1) ** 2 + (z - 2) ** 2) - 3.5) - 0.8)
    values[3] = 0.008 * soft(np.sqrt((x - 1) ** 2 + (y + 5.5) ** 2 + (z + 5) ** 2) - 1.8)
    return ready(values, voxel_mm)


def ready(values: np.ndarray, voxel_mm: float, **parts: object) -> Grains:
    """Make a volume ready for rays at once."""
    job = Job("volume", grains_of(values, voxel_mm, **parts))
    job.run()
    return job.result
