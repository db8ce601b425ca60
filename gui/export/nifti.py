"""NIfTI-1: one layer, or several as the components of a vector; compressed where the name ends with .gz.

# Ref: nifti1.h, nifti.nimh.nih.gov: intent code 1007 (vector) with its components along the fifth axis; sform in RAS.
"""

from __future__ import annotations

import gzip
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from calibration.progress import Progress
from firmware_iface.errors import WrongUsage
from gui.export.content import Content
from gui.export.formats import Options

MOST_VOXELS = 32767
"""Along an axis: the header counts in 16 bits."""
COMPRESSION = 4
"""Of gzip; the noise in the values leaves little to gain by more."""


def write(content: Content, path: Path, _: Options) -> Generator[Progress, None, None]:
    """Write float32 in the layers' unit, layer after layer."""
    head = header_bytes(content)
    n_z = content.grid.shape[0]
    with ExitStack() as stack:
        file = stack.enter_context(path.open("wb"))
        if path.name.removesuffix(".partial").lower().endswith(".gz"):
            packed = gzip.GzipFile("", "wb", COMPRESSION, file, mtime=0)
            file = cast(BinaryIO, stack.enter_context(packed))
        file.write(head)
        for layer in content.layers:
            for first, stop in content.only(layer).slabs():
                file.write(layer.slab(first, stop).astype("<f4", copy=False).data)
                yield Progress(f"write {layer.name}", stop, n_z)


def header_bytes(content: Content) -> bytes:
    """Return all that stands before the values."""
    import nibabel
    from nibabel.nifti1 import Nifti1Extension, Nifti1Extensions

    shape, layers = content.grid.shape[::-1], content.layers
    if max(shape) > MOST_VOXELS:
        raise WrongUsage(
            f"an axis has {max(shape)} voxels; allowed in NIfTI: {MOST_VOXELS}", hint="choose NRRD or OME-Zarr"
        )
    header = nibabel.Nifti1Header(endianness="<")
    header.set_data_shape(shape if len(layers) == 1 else (*shape, 1, len(layers)))
    header.set_data_dtype(np.float32)
    header.set_xyzt_units("mm", "sec")
    # What we call x and y runs to left and posterior in ITK and DICOM, and against x and y of NIfTI.
    voxel_mm, (x_mm, y_mm, z_mm) = content.grid.voxel_mm, content.origin_mm
    affine = np.diag((-voxel_mm, -voxel_mm, voxel_mm, 1.0))
    affine[:3, 3] = (-x_mm, -y_mm, z_mm)
    header.set_sform(affine, code="scanner")
    header.set_qform(affine, code="scanner")
    named = layers[0].name if len(layers) == 1 else "layers"
    header.set_intent("none" if len(layers) == 1 else "vector", name=_ascii(named, 15), allow_unknown=False)
    units = ", ".join(dict.fromkeys(layer.unit for layer in layers))
    header["descrip"] = _ascii(f"{', '.join(layer.name for layer in layers)} in {units}", 79)
    told = {"layers": ", ".join(f"{layer.name} ({layer.unit})" for layer in layers), **content.notes}
    text = "\n".join(f"{name}: {value}" for name, value in told.items()).encode()
    header.extensions = Nifti1Extensions((Nifti1Extension("comment", text),))
    header.set_data_offset(-(-(352 + header.extensions.get_sizeondisk()) // 16) * 16)
    header["magic"] = b"n+1"
    header["scl_slope"], header["scl_inter"] = 1.0, 0.0
    return _serialised(header)


def _serialised(header: object) -> bytes:
    import io

    buffer = io.BytesIO()
    header.write_to(buffer)  # pyright: ignore[reportAttributeAccessIssue]
    raw = buffer.getvalue()
    offset = int(header["vox_offset"])  # pyright: ignore[reportIndexIssue]
    return raw.ljust(offset, b"\0")


def _ascii(text: str, most: int) -> str:
    return text.encode("ascii", "replace")[:most].decode()
