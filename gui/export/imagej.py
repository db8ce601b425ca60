"""A hyperstack of ImageJ: channels with colours and windows, mm along all axes, the history as its "Info".

# Ref: tifffile writes the format; of ImageJ's own keys: ij.io.FileInfo and ij.io.TiffEncoder (spacing, xorigin in
#      pixels); a composite shows at most 7 channels (ij.CompositeImage.MAX_CHANNELS).
"""

from __future__ import annotations

import warnings
from collections.abc import Generator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.progress import Progress
from gui.colour import Colour
from gui.export.content import Content
from gui.export.formats import Options

MOST_IN_COLOUR = 7


def write(content: Content, path: Path, _: Options) -> Generator[Progress, None, None]:
    """Write (z, channel, y, x) float32."""
    import tifffile

    n_z, n_y, n_x = content.grid.shape
    layers, voxel_mm = content.layers, content.grid.voxel_mm
    windows = [limit for window in content.windows() for limit in window]
    told = {"layers": ", ".join(f"{layer.name} ({layer.unit})" for layer in layers), **content.notes}
    units = dict.fromkeys(layer.unit for layer in layers)
    metadata = {
        "axes": "ZCYX",
        "unit": "mm",
        "spacing": voxel_mm,
        **{f"{axis}origin": -start / voxel_mm for axis, start in zip("xyz", content.origin_mm, strict=True)},
        "mode": "composite" if 1 < len(layers) <= MOST_IN_COLOUR else "grayscale",
        "min": windows[0],
        "max": windows[1],
        "Ranges": tuple(windows),
        "Labels": [f"{layer.name} ({layer.unit})" for _ in range(n_z) for layer in layers],
        "LUTs": [_table(colour) for colour in content.colours()],
        "Info": "\n".join(f"{name}: {text}" for name, text in told.items()),
    }
    if len(units) == 1:
        metadata["value_unit"] = next(iter(units))
    with warnings.catch_warnings(), tifffile.TiffWriter(path, imagej=True, byteorder=">") as file:
        warnings.filterwarnings("ignore", ".*truncating ImageJ file")  # beyond 4 GB it has one IFD, as ImageJ's own
        place = file.write(
            None,
            shape=(n_z, len(layers), n_y, n_x),
            dtype=np.float32,
            resolution=(1 / voxel_mm, 1 / voxel_mm),
            metadata=metadata,
            returnoffset=True,
        )
    assert place is not None
    with path.open("r+b") as file:
        file.seek(place[0])
        for first, stop in content.slabs():
            slabs = np.stack([layer.slab(first, stop) for layer in layers], axis=1)
            file.write(slabs.astype(">f4").data)
            yield Progress("write all", stop, n_z)


def _table(colour: Colour) -> NDArray[np.uint8]:
    """Return a look-up table from black to the colour: (3, 256)."""
    return np.rint(np.outer(np.asarray(colour), np.arange(256))).astype(np.uint8)
