"""The formats that volumes are exported in: which there are, who opens them, and the way that all exports take.

A format's own module writes one file or folder under the name that it is given. That names are free, the disk has room
and nothing unfinished is left behind is seen to here, for all of them.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Generator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from calibration.progress import Progress
from calibration.whole_file import whole_file
from firmware_iface.errors import MpxctError, WrongUsage
from gui.export.content import Content, water_of
from gui.export.target import beside, refuse_existing, refuse_without_room, whole_folder
from reconstruction.volume import HOUNSFIELD, LINEAR_ATTENUATION, Volume

HEAD_BYTES = 4096
"""More than any header or directory of one file takes, but for a long history of the volume."""
ZARR_VERSIONS = ("0.4", "0.5")


Level = float
"""A value of a layer, in the layer's unit."""


class Holds(Enum):
    """How many layers a file of a format holds."""

    ONE = "one layer; each has a file of its own"
    EITHER = "one layer, or all together"
    ALL = "all layers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to write what can be written in several ways.

    Attributes
    ----------
    is_together : bool
        All layers in one file, where a format can do either.
    is_overwriting : bool
    zarr_version : str
        Of OME-Zarr.
    levels : dict of str to Level
        Where surfaces are, by layer, in the layer's unit.
    smoothing_steps : int
        Of surfaces.
    """

    is_together: bool = False
    is_overwriting: bool = False
    zarr_version: str = ZARR_VERSIONS[0]
    levels: Mapping[str, Level] = field(default_factory=dict)
    smoothing_steps: int = 0

    def __post_init__(self) -> None:
        if self.zarr_version not in ZARR_VERSIONS:
            raise WrongUsage(f"OME-Zarr {self.zarr_version} is not known; allowed: {', '.join(ZARR_VERSIONS)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One format.

    Attributes
    ----------
    name, title, opens, units : str
        As `--format` wants it; for people; who reads it; which units it carries by itself.
    endings : tuple of str
        Of names, the first is given to new ones; empty: told by `--format` alone.
    module : str
        In `gui.export`; its `write` writes it.
    needs : str
        The package that must be installed for it; empty: none but our own.
    bytes_per_value : int
        On the disk, before any compression; of one layer's voxel.
    """

    name: str
    title: str
    opens: str
    holds: Holds
    module: str
    endings: tuple[str, ...] = ()
    is_folder: bool = False
    needs: str = ""
    bytes_per_value: int = 4

    def n_bytes(self, content: Content) -> int:
        """Estimate what an export takes on the disk, before any compression; surfaces cannot be told before."""
        if self.name in SURFACES:
            return 0
        n_layers = 1 if self.name == "rgba" else len(content.layers)
        n_files = n_layers * (content.grid.shape[0] if self.name == "dicom" else 1)
        values = n_layers * math.prod(content.grid.shape) * self.bytes_per_value
        pyramid = values // 7 if self.name == "ome-zarr" else 0  # 1/8 + 1/64 + ...
        return values + pyramid + n_files * HEAD_BYTES

    def why_not(self) -> str:
        """Return what must be installed before it can be written; empty if nothing."""
        if not self.needs or importlib.util.find_spec(self.needs) is not None:
            return ""
        return f"{self.title} needs the package {self.needs}"


FORMATS: tuple[Format, ...] = (
    Format(
        name="nrrd", title="NRRD", endings=(".nrrd",), holds=Holds.EITHER, module="nrrd",
        opens="3D Slicer, ITK-SNAP, Fiji, ParaView, SimpleITK: drag and drop",
    ),
    Format(
        name="nifti", title="NIfTI", endings=(".nii.gz", ".nii"), holds=Holds.EITHER, module="nifti", needs="nibabel",
        opens="3D Slicer, ITK-SNAP, FSL, FreeSurfer, Fiji, nibabel",
    ),
    Format(
        name="metaimage", title="MetaImage", endings=(".mha",), holds=Holds.EITHER, module="metaimage",
        opens="3D Slicer, ITK-SNAP, ParaView, elastix, SimpleITK",
    ),
    Format(
        name="rgba", title="Colours (RGBA NRRD)", endings=(".rgba.nrrd",), holds=Holds.ALL, module="rgba",
        opens="3D Slicer (as a vector volume: volume rendering in colours), SimpleITK",
    ),
    Format(
        name="tiff", title="ImageJ hyperstack", endings=(".tif", ".tiff"), holds=Holds.ALL, module="imagej",
        opens="Fiji and ImageJ (channels, colours, mm); napari, tifffile. Not for ITK: it takes channels for slices",
    ),
    Format(
        name="ome-zarr", title="OME-Zarr", endings=(".ome.zarr", ".zarr"), holds=Holds.ALL, module="ome_zarr",
        is_folder=True, needs="zarr", opens="napari (napari-ome-zarr), Fiji (BigDataViewer), Neuroglancer, any cloud",
    ),
    Format(
        name="nexus", title="NXtomoproc (NeXus, HDF5)", endings=(".nxs",), holds=Holds.ALL, module="nexus",
        opens="DAWN, silx view, PyMca, any reader of HDF5",
    ),
    Format(
        name="dicom", title="DICOM CT series", endings=(".dcm",), holds=Holds.ALL, module="dicom", is_folder=True,
        needs="pydicom", bytes_per_value=2, opens="PACS and clinical viewers, 3D Slicer, Horos, RadiAnt, ITK-SNAP",
    ),
    Format(
        name="stl", title="Surfaces (STL)", endings=(".stl",), holds=Holds.ONE, module="surfaces",
        opens="3-D printers' programs, MeshLab, Blender, ParaView, 3D Slicer",
    ),
    Format(
        name="ply", title="Coloured surfaces (PLY)", endings=(".ply",), holds=Holds.ONE, module="surfaces",
        opens="MeshLab, Blender, ParaView, CloudCompare, 3D Slicer",
    ),
)  # fmt: skip
SURFACES = ("stl", "ply")


def format_for(target: Path, name: str | None = None) -> Format:
    """Return the format that a target's name tells, or that is asked for by name.

    Raises
    ------
    WrongUsage
        There is no such format, or the name does not tell.
    """
    if name is not None:
        found = [one for one in FORMATS if one.name == name]
        if not found:
            raise WrongUsage(
                f"there is no format {name!r}; allowed: {', '.join(one.name for one in FORMATS)}",
                hint="mpxct export --list-formats tells who opens which",
            )
        return found[0]
    endings = sorted(((ending, one) for one in FORMATS for ending in one.endings), key=lambda pair: -len(pair[0]))
    for ending, one in endings:
        if target.name.lower().endswith(ending):
            return one
    raise WrongUsage(
        f"the name {target.name!r} does not tell the format",
        hint=f"choose it by --format, or name it {', '.join(one.endings[0] for one in FORMATS)}",
    )


def default_unit(kind: Format, volume: Volume) -> str | None:
    """Return the unit that a format expects where it is not the default of the volume: HU for bins in DICOM.

    Where nothing tells how water attenuates in each bin, they stay in 1/mm.
    """
    if kind.name != "dicom" or volume.unit != LINEAR_ATTENUATION:
        return None
    return HOUNSFIELD if all(water_of(volume, name) for name in volume.channels) else None


class Part(NamedTuple):
    """One file, or folder, of an export."""

    path: Path
    content: Content


def parts_of(content: Content, target: Path, kind: Format, options: Options) -> list[Part]:
    """Return which files an export makes."""
    if kind.name in SURFACES:
        content = _with_surfaces(content, options)
    is_one = kind.holds is Holds.ALL or len(content.layers) == 1 or (kind.holds is Holds.EITHER and options.is_together)
    ending = next((end for end in sorted(kind.endings, key=len)[::-1] if target.name.lower().endswith(end)), "")
    if not kind.is_folder and not ending:
        raise WrongUsage(
            f"a file of {kind.title} is named {target.name!r}; allowed ending: {' or '.join(kind.endings)}"
        )
    if is_one:
        return [Part(target, content)]
    ending = target.name[len(target.name) - len(ending) :]  # as it was spelled
    return [Part(beside(target, layer.name, ending), content.only(layer)) for layer in content.layers]


def _with_surfaces(content: Content, options: Options) -> Content:
    names = [layer.name for layer in content.layers]
    if not options.levels:
        raise WrongUsage(
            "where the surfaces are is not told", hint=f"say from which value on: --surface {names[0]}=VALUE"
        )
    if missing := [name for name in options.levels if name not in names]:
        raise WrongUsage(f"a surface of {', '.join(missing)} is asked for; there are: {', '.join(names)}")
    return replace(content, layers=tuple(layer for layer in content.layers if layer.name in options.levels))


def export(
    content: Content, target: str | Path, kind: Format, options: Options | None = None
) -> Generator[Progress, None, list[Path]]:
    """Write a volume in a format of others; returns the files, or folders, that it wrote.

    Closed before its end, or failed, it has written nothing.

    Raises
    ------
    WrongUsage
        A name is taken, or the format cannot hold the content.
    MpxctError
        A package is not installed, or the disk has no room.
    """
    target, options = Path(target), options or Options()
    if why := kind.why_not():
        raise MpxctError(why, hint="pip install 'mpxct[export]'")
    parts = parts_of(content, target, kind, options)
    refuse_without_room(target, kind.n_bytes(content))
    writer: Any = importlib.import_module(f"gui.export.{kind.module}")  # its `write(content, path, options)`
    if kind.is_folder:
        with whole_folder(target, is_overwriting=options.is_overwriting, ours=writer.OURS) as folder:
            yield from writer.write(content, folder, options)
        return [target]
    refuse_existing([part.path for part in parts], is_overwriting=options.is_overwriting)
    with ExitStack() as together:  # all, or none
        for part in parts:
            yield from writer.write(part.content, together.enter_context(whole_file(part.path)), options)
    return [part.path for part in parts]
