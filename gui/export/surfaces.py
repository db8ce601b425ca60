"""Surfaces of equal value as triangles: binary STL for printers, binary PLY with the material's colour; in mm.

# Ref: binary STL: 80 bytes of any text, a count, then for each triangle its normal, its corners and two spare bytes;
#      "SPACE=LPS" in the text is how 3D Slicer tells the frame. PLY: G. Turk 1994, The PLY polygon file format.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.attenuation import MG_ML_PER_G_CM3
from calibration.progress import Progress
from firmware_iface.errors import WrongUsage
from gui.export.content import Content, Layer
from gui.export.formats import Options
from gui.volume.surfaces import Mesh, isosurface
from reconstruction.volume import MG_PER_ML

BLOCK_FACES = 1 << 18
"""So many triangles are written at a time."""


def write(content: Content, path: Path, options: Options) -> Generator[Progress, None, None]:
    """Find the surface of the one layer and write it: as PLY where the name says so, otherwise as STL."""
    (layer,), (colour,) = content.layers, content.colours()
    level = options.levels[layer.name]
    yield from _refuse_none(content, layer, level)
    ratio = MG_ML_PER_G_CM3 if layer.unit == MG_PER_ML else 1.0
    values = layer.values if layer.unit == MG_PER_ML else layer.slab(0, content.grid.shape[0])
    mesh = yield from isosurface(
        values,
        level / ratio,
        voxel_mm=content.grid.voxel_mm,
        centre_mm=content.grid.centre_mm,
        colour=colour,
        name=f"{layer.name} at {level:g} {layer.unit}",
        smoothing_steps=options.smoothing_steps,
    )
    is_ply = path.name.removesuffix(".partial").lower().endswith(".ply")
    yield from write_ply(mesh, path, content.notes) if is_ply else write_stl(mesh, path)


def write_stl(mesh: Mesh, path: Path) -> Generator[Progress, None, None]:
    """Write binary STL; the corners in mm, x, y, z of the geometry."""
    kind = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("spare", "<u2")])
    with path.open("wb") as file:
        file.write(f"mpxct SPACE=LPS UNIT=mm {mesh.name}".encode("ascii", "replace")[:80].ljust(80))
        file.write(np.uint32(len(mesh.faces)).astype("<u4").tobytes())
        for first in range(0, len(mesh.faces), BLOCK_FACES):
            faces = mesh.faces[first : first + BLOCK_FACES]
            triangles = np.zeros(len(faces), kind)
            triangles["corners"] = mesh.vertices_mm[faces]
            triangles["normal"] = _normals(triangles["corners"])
            file.write(triangles.tobytes())
            yield Progress(f"write {mesh.name}", first + len(faces), len(mesh.faces))


def write_ply(mesh: Mesh, path: Path, notes: Mapping[str, str]) -> Generator[Progress, None, None]:
    """Write binary PLY; the same corners, each with the surface's colour."""
    told = {"surface": mesh.name, "unit": "mm", "space": "LPS", **notes}
    head = [
        "ply",
        "format binary_little_endian 1.0",
        *(f"comment {name}: {' '.join(text.split())}" for name, text in told.items()),
        f"element vertex {len(mesh.vertices_mm)}",
        *(f"property float {axis}" for axis in "xyz"),
        *(f"property uchar {part}" for part in ("red", "green", "blue")),
        f"element face {len(mesh.faces)}",
        "property list uchar int vertex_indices",
        "end_header",
    ]
    vertices = np.zeros(len(mesh.vertices_mm), [("place", "<f4", 3), ("colour", "u1", 3)])
    vertices["place"], vertices["colour"] = mesh.vertices_mm, np.rint(255 * np.asarray(mesh.colour))
    faces = np.zeros(len(mesh.faces), [("n", "u1"), ("corners", "<i4", 3)])
    faces["n"], faces["corners"] = 3, mesh.faces
    with path.open("wb") as file:
        file.write(("\n".join(head) + "\n").encode("ascii", "xmlcharrefreplace"))
        file.write(vertices.tobytes())
        file.write(faces.tobytes())
    yield Progress(f"write {mesh.name}", len(mesh.faces), len(mesh.faces))


def _normals(corners: NDArray[np.float32]) -> NDArray[np.float32]:
    a, b, c = np.moveaxis(corners.astype(np.float64), 1, 0)
    normals = np.cross(b - a, c - a)
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    return np.divide(normals, lengths, out=np.zeros_like(normals), where=lengths > 0).astype(np.float32)


def _refuse_none(content: Content, layer: Layer, level: float) -> Generator[Progress, None, None]:
    """Refuse a level that is never passed, in the unit in which it was given."""
    highest = -np.inf
    for first, stop in content.only(layer).slabs():
        highest = max(highest, float(np.nanmax(layer.slab(first, stop), initial=-np.inf)))
        yield Progress(f"range of {layer.name}", stop, content.grid.shape[0])
    if not highest > level:
        raise WrongUsage(
            f"no voxel of {layer.name} is above {level:g} {layer.unit}",
            hint=f"its highest value is {highest:.4g} {layer.unit}; choose a level below that",
        )
