"""MetaImage (.mha): a text header and the values as they are; one layer, or several as a vector in each voxel.

# Ref: MetaIO documentation, itk.org/Wiki/ITK/MetaIO/Documentation: tags and their order (ElementDataFile last).
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

from calibration.progress import Progress
from gui.export.content import Content
from gui.export.formats import Options


def write(content: Content, path: Path, _: Options) -> Generator[Progress, None, None]:
    """Write float32 in the layers' unit."""
    with path.open("wb") as file:
        file.write(_header(content))
        for first, stop in content.slabs():
            file.write(content.interleaved(first, stop).astype("<f4", copy=False).data)
            yield Progress(
                f"write {content.layers[0].name if len(content.layers) == 1 else 'all'}", stop, content.grid.shape[0]
            )


def _header(content: Content) -> bytes:
    notes = {"layers": ", ".join(f"{layer.name} ({layer.unit})" for layer in content.layers), **content.notes}
    voxel = repr(float(content.grid.voxel_mm))
    tags = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": " ".join(repr(x) for x in content.origin_mm),
        "CenterOfRotation": "0 0 0",
        "AnatomicalOrientation": "RAI",  # how ITK spells axes that run to left, posterior, superior
        "ElementSpacing": f"{voxel} {voxel} {voxel}",
        "DimSize": " ".join(str(n) for n in content.grid.shape[::-1]),
        **{_tag(name): " ".join(text.split()) for name, text in notes.items()},
        "ElementNumberOfChannels": str(len(content.layers)),
        "ElementType": "MET_FLOAT",
        "ElementDataFile": "LOCAL",
    }
    return "".join(f"{tag} = {text}\n" for tag, text in tags.items()).encode()


def _tag(name: str) -> str:
    return "".join(word[:1].upper() + word[1:] for word in name.split())
