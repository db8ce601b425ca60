"""NRRD: a text header and the values as they are; one layer, or several as a vector in each voxel.

# Ref: NRRD format definition, teem.sourceforge.net/nrrd/format.html: fields "space", "space directions",
#      "space origin", "kinds", "sample units", key/value pairs. Text is ASCII there; what is not is written as in XML.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from pathlib import Path

from calibration.progress import Progress
from gui.export.content import Content
from gui.export.formats import Options


def write(content: Content, path: Path, _: Options) -> Generator[Progress, None, None]:
    """Write float32 in the layers' unit."""
    layers = content.layers
    kind = "" if len(layers) == 1 else "vector"
    units = dict.fromkeys(layer.unit for layer in layers)
    notes = {"layers": ", ".join(f"{layer.name} ({layer.unit})" for layer in layers), **content.notes}
    head = header(content, kind, len(layers), "float", ", ".join(units), notes)
    with path.open("wb") as file:
        file.write(head)
        for first, stop in content.slabs():
            file.write(content.interleaved(first, stop).astype("<f4", copy=False).data)
            yield Progress(f"write {layers[0].name if not kind else 'all'}", stop, content.grid.shape[0])


def header(content: Content, kind: str, n_components: int, dtype: str, unit: str, notes: Mapping[str, str]) -> bytes:
    """Return the header of a volume with a scalar in each voxel, or `kind` ("vector", "RGBA-color") of components."""
    n_z, n_y, n_x = content.grid.shape
    voxel = repr(float(content.grid.voxel_mm))
    steps = f"({voxel},0,0) (0,{voxel},0) (0,0,{voxel})"
    is_scalar = not kind
    lines = [
        "NRRD0004",
        "# Complete NRRD file format specification at: http://teem.sourceforge.net/nrrd/format.html",
        f"type: {dtype}",
        f"dimension: {3 if is_scalar else 4}",
        "space: left-posterior-superior",
        f"sizes: {n_x} {n_y} {n_z}" if is_scalar else f"sizes: {n_components} {n_x} {n_y} {n_z}",
        f"space directions: {steps}" if is_scalar else f"space directions: none {steps}",
        "kinds: domain domain domain" if is_scalar else f"kinds: {kind} domain domain domain",
        "endian: little",
        "encoding: raw",
        'space units: "mm" "mm" "mm"',
        f"space origin: ({','.join(repr(x) for x in content.origin_mm)})",
        *([f'sample units: "{unit}"'] if unit else []),
        *(f"{name.replace(' ', '_')}:={_escaped(text)}" for name, text in notes.items()),
    ]
    return ("\n".join(lines) + "\n\n").encode("ascii", "xmlcharrefreplace")


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "")
