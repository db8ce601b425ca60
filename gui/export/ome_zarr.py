"""OME-Zarr: a folder of chunks, each resolution half the one before, axes in mm, channels with names and colours.

# Ref: ngff.openmicroscopy.org 0.4 (Zarr 2) and 0.5 (Zarr 3): "multiscales" with axes and coordinateTransformations,
#      "omero" for channels. A voxel of a coarser level covers 2 x 2 x 2 finer ones: its value is their mean.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.progress import Progress
from gui.export.content import SLAB_BYTES, Content
from gui.export.formats import Options

OURS = r"zarr\.json|\.zarray|\.zgroup|\.zattrs|\.zmetadata|\d+"
"""Names of the files that such a folder holds."""
CHUNK = 64
COARSEST = 64
"""No level is made below one whose longest side is no longer than this."""


def write(content: Content, path: Path, options: Options) -> Generator[Progress, None, None]:
    """Write (channel, z, y, x) float32 and its coarser levels into a folder."""
    import zarr

    is_new = options.zarr_version == "0.5"
    shapes = _levels(content.grid.shape)
    root = zarr.open_group(str(path), mode="w", zarr_format=3 if is_new else 2)
    metadata = attributes(content, len(shapes), options.zarr_version)
    root.attrs.update({"ome": metadata} if is_new else metadata)
    root.attrs["mpxct"] = dict(content.notes)
    arrays = [_array(root, str(level), (len(content.layers), *shape), is_new) for level, shape in enumerate(shapes)]
    step = _whole_chunks(content.grid.shape)
    n_z = content.grid.shape[0]
    for number, layer in enumerate(content.layers):
        for first in range(0, n_z, step):
            stop = min(first + step, n_z)
            arrays[0][number, first:stop] = layer.slab(first, stop)
            yield Progress(f"write {layer.name}", stop, n_z)
    for level, shape in enumerate(shapes[1:], start=1):
        step = _whole_chunks(shape)
        for number in range(len(content.layers)):
            for first in range(0, shape[0], step):
                stop = min(first + step, shape[0])
                fine = np.asarray(arrays[level - 1][number, 2 * first : 2 * stop])
                arrays[level][number, first:stop] = halved(fine)
        yield Progress("coarser levels", level, len(shapes) - 1)


def halved(fine: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return means over 2 x 2 x 2 voxels; where a side is odd, its last slice counts twice."""
    padded = np.pad(fine, [(0, n % 2) for n in fine.shape], mode="edge")
    z, y, x = (n // 2 for n in padded.shape)
    return padded.reshape(z, 2, y, 2, x, 2).mean(axis=(1, 3, 5), dtype=np.float64).astype(np.float32)


def attributes(content: Content, n_levels: int, version: str) -> dict[str, Any]:
    """Return what OME-Zarr tells of a picture."""
    voxel_mm = content.grid.voxel_mm
    origin_mm = content.origin_mm[::-1]
    datasets = [
        {
            "path": str(level),
            "coordinateTransformations": [
                {"type": "scale", "scale": [1.0, *[voxel_mm * 2**level] * 3]},
                {"type": "translation", "translation": [0.0, *(x + (2**level - 1) / 2 * voxel_mm for x in origin_mm)]},
            ],
        }
        for level in range(n_levels)
    ]
    multiscale: dict[str, Any] = {
        "name": content.specimen or "mpxct",
        "axes": [
            {"name": "c", "type": "channel"},
            *({"name": name, "type": "space", "unit": "millimeter"} for name in "zyx"),
        ],
        "datasets": datasets,
        "type": "mean",
        "metadata": {"description": "mean over 2 x 2 x 2 voxels"},
    }
    channels = [
        {
            "label": f"{layer.name} ({layer.unit})",
            "color": "".join(f"{round(255 * part):02X}" for part in colour),
            "active": True,
            "coefficient": 1,
            "family": "linear",
            "inverted": False,
            "window": {"min": low, "max": high, "start": low, "end": high},
        }
        for layer, colour, (low, high) in zip(content.layers, content.colours(), content.windows(), strict=True)
    ]
    omero = {"channels": channels, "rdefs": {"model": "color", "defaultZ": content.grid.shape[0] // 2, "defaultT": 0}}
    if version == "0.5":
        return {"version": version, "multiscales": [multiscale], "omero": omero}
    return {"multiscales": [multiscale | {"version": version}], "omero": omero | {"version": version}}


def _levels(shape: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    shapes = [shape]
    while max(shapes[-1]) > COARSEST:
        z, y, x = shapes[-1]
        shapes.append((-(-z // 2), -(-y // 2), -(-x // 2)))
    return shapes


def _whole_chunks(shape: tuple[int, int, int]) -> int:
    """Return how many slices are taken at a time, so that no chunk is written twice."""
    return max(1, SLAB_BYTES // (4 * shape[1] * shape[2] * CHUNK)) * CHUNK


def _array(root: Any, name: str, shape: tuple[int, ...], is_new: bool) -> Any:
    return root.create_array(
        name,
        shape=shape,
        chunks=(1, *(min(CHUNK, n) for n in shape[1:])),
        dtype="<f4",
        fill_value=0.0,
        chunk_key_encoding={"name": "default" if is_new else "v2", "separator": "/"},
        **({"dimension_names": ["c", "z", "y", "x"]} if is_new else {}),
    )
