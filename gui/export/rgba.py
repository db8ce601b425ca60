"""Colours of materials as an RGBA NRRD: what the window shows, with an opacity in each voxel.

A voxel is as opaque as the share of its window that its strongest visible material fills, times the opacity of that
one: air is clear, and what is shown in full colour hides what lies behind it.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.progress import Progress
from gui.colour import Colour
from gui.export.content import Content, in_colour_units
from gui.export.formats import Options
from gui.export.nrrd import header
from gui.volume.looks import MaterialLook, composed


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
                picture[place, ..., 3] = opacity(g_cm3[:, place], looks)
            file.write(picture.data)
            yield Progress("write colours", stop, n_z)


def opacity(maps_g_cm3: NDArray[np.float32], looks: Sequence[MaterialLook]) -> NDArray[np.uint8]:
    """Return (h, w) uint8: how much of its window the strongest material fills; nothing where it is no number."""
    opacity = np.zeros(maps_g_cm3.shape[1:])
    for values, look in zip(maps_g_cm3, looks, strict=True):
        share = (values - look.low_g_cm3) / (look.high_g_cm3 - look.low_g_cm3)
        dense = look.opacity if look.is_visible else 0.0
        np.maximum(opacity, dense * np.nan_to_num(share, nan=0.0).clip(0, 1), out=opacity)
    return np.rint(255 * opacity).astype(np.uint8)


def _hex(colour: Colour) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour)
