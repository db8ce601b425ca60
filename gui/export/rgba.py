"""Colours of materials as an RGBA NRRD: what the window shows, with an opacity in each voxel.

A voxel is as opaque as it is bright: air is clear, the dark grey of water veils, contrast agents shine through it.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import numpy as np

from calibration.progress import Progress
from gui.colour import Colour
from gui.export.content import Content, in_colour_units
from gui.export.formats import Options
from gui.export.nrrd import header
from gui.volume.looks import composed


def write(content: Content, path: Path, _: Options) -> Generator[Progress, None, None]:
    """Write (z, y, x, 4) uint8."""
    looks = content.material_looks()
    notes = {
        "layers": ", ".join(
            f"{look.material} from {look.low_g_cm3:g} to {look.high_g_cm3:g} g/cm3 in {_hex(look.colour)}"
            for look in looks
        ),
        **content.notes,
    }
    n_z, n_y, n_x = content.grid.shape
    with path.open("wb") as file:
        file.write(header(content, "RGBA-color", 4, "uint8", "", notes))
        for first, stop in content.slabs():
            g_cm3 = np.stack([in_colour_units(layer, layer.slab(first, stop)) for layer in content.layers])
            picture = np.empty((stop - first, n_y, n_x, 4), np.uint8)
            for place in range(stop - first):
                picture[place, ..., :3] = composed(g_cm3[:, place], looks)
            picture[..., 3] = picture[..., :3].max(axis=-1)
            file.write(picture.data)
            yield Progress("write colours", stop, n_z)


def _hex(colour: Colour) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour)
