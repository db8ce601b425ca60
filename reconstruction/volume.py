"""Volumes on disk and in memory: bin volumes in 1/mm and material volumes in g/cm3, with all they came from.

One record serves both, because both are channels on one grid; it carries the material basis, so that a bin volume
can be decomposed from its file alone.

The values stand in the file in one piece, uncompressed, so that a file of any size is read by mapping it into memory,
and written slab by slab, by several processes if need be, without HDF5 (`reconstruction.size.volume_writer`).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from calibration.material_basis import MaterialBasis
from calibration.whole_file import whole_file
from firmware_iface.errors import BadFile

FORMAT = "mpxct volume"
FORMAT_VERSION = 1
LINEAR_ATTENUATION = "1/mm"
MASS_CONCENTRATION = "g/cm3"
HOUNSFIELD = "HU"
MG_PER_ML = "mg/mL"
PURE_NUMBER = "1"
MIXED = "mixed"
"""Each channel has a unit of its own."""
H5 = Any
"""A file, group or dataset of h5py, whose types cannot be told before they are read."""
UNITS = (LINEAR_ATTENUATION, MASS_CONCENTRATION, HOUNSFIELD, MG_PER_ML, PURE_NUMBER, MIXED)
PROVENANCE = ("source_file", "source_begun", "plan_json", "calibration_identity", "software", "convergence_json")
PAGE_BYTES = 4096
"""Large datasets begin at multiples of it, so that they can be mapped into memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Cubic voxels, aligned with the axes of `calibration.geometry`.

    Attributes
    ----------
    shape : (z, y, x) int
        Number of voxels.
    voxel_mm : float
        Edge of a voxel.
    centre_mm : (x, y, z) float
        Position of the middle of the volume; a position, hence in the order of the geometry.
    is_scale_known : bool
        False for images that came without the size of their pixels: `voxel_mm` then only counts them.
    """

    shape: tuple[int, int, int]
    voxel_mm: float
    centre_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    is_scale_known: bool = True

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"a grid of shape {self.shape} cannot be; allowed: three counts of at least 1")
        if not (self.voxel_mm > 0 and np.isfinite(self.voxel_mm)):
            raise ValueError(f"voxel_mm is {self.voxel_mm}; allowed: more than 0")

    def axes_mm(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Return the positions of the voxel centres along z, y and x."""
        along = [
            centre + (np.arange(n, dtype=np.float64) - (n - 1) / 2) * self.voxel_mm
            for n, centre in zip(self.shape, self.centre_mm[::-1], strict=True)
        ]
        return along[0], along[1], along[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where a volume came from, in words that survive the files it was made of.

    `source_begun` is when a scan was begun, as its file says: names of files may be the same in other folders.
    `convergence_json` holds the columns of `reconstruction.methods.convergence.ConvergenceLog` where it was iterated.
    """

    source_file: str = ""
    source_begun: str = ""
    plan_json: str = ""
    calibration_identity: str = ""
    software: str = ""
    convergence_json: str = ""
    steps: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Volume:
    """Channels (energy bins, or materials) on one grid.

    Attributes
    ----------
    values : (n_channels, z, y, x) float32
        In `unit`.
    channels : tuple of str
        What each channel is: the name of a bin or of a material.
    unit : str
        "1/mm" for linear attenuation, "g/cm3" for materials; "mixed" where `channel_units` has one for each channel.
    thresholds_kev : tuple of float
        Lower edges of the bins the volume came from; empty when unknown.
    basis : MaterialBasis or None
        How each bin attenuates per material, for the decomposition; None when it was not calibrated.
    """

    values: NDArray[np.float32]
    channels: tuple[str, ...]
    unit: str
    grid: Grid
    thresholds_kev: tuple[float, ...] = ()
    basis: MaterialBasis | None = None
    provenance: Provenance = field(default_factory=Provenance)
    channel_units: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.values.shape != (len(self.channels), *self.grid.shape):
            raise ValueError(
                f"values of shape {self.values.shape} do not match {len(self.channels)} channels on a grid of "
                f"{self.grid.shape}; allowed: (n_channels, z, y, x)"
            )
        if self.unit not in UNITS:
            raise ValueError(f"unit is {self.unit!r}; allowed: {', '.join(UNITS)}")
        if len(self.channel_units) != (len(self.channels) if self.unit == MIXED else 0):
            raise ValueError(f"{len(self.channel_units)} units of channels in {self.unit}; allowed: one each if mixed")

    def unit_of(self, name: str) -> str:
        """Return the unit of one channel."""
        return self.channel_units[self.channels.index(name)] if self.channel_units else self.unit

    @classmethod
    def planned(cls, n_channels: int, grid: Grid, **others: Any) -> Volume:
        """Return the record of a volume that is still to be made: its values are zeros that take no memory."""
        zeros = np.broadcast_to(np.float32(0), (n_channels, *grid.shape))
        return cls(values=zeros, grid=grid, **others)

    def channel(self, name: str) -> NDArray[np.float32]:
        """Return the (z, y, x) values of one channel."""
        if name not in self.channels:
            raise ValueError(f"no channel is called {name!r}; there are: {', '.join(self.channels)}")
        return self.values[self.channels.index(name)]


def save_volume(volume: Volume, path: str | Path) -> Path:
    """Write a volume; the file appears under its name only when it is whole."""
    with whole_file(path) as partial, created(partial) as file:
        write_head(file, volume)
        write_values_attributes(
            file.create_dataset("values", data=volume.values.astype(np.float32, copy=False)), volume
        )
        write_steps(file, volume.provenance.steps)
    return Path(path)


def created(path: Path) -> H5:
    """Open a new file in which large datasets can be mapped."""
    return h5py.File(path, "w", alignment_threshold=16 * PAGE_BYTES, alignment_interval=PAGE_BYTES)


def write_head(file: H5, volume: Volume) -> None:
    """Write all but the values and the steps, which are known last."""
    file.attrs["format"] = FORMAT
    file.attrs["format_version"] = FORMAT_VERSION
    file.create_dataset("channels", data=list(volume.channels), dtype=h5py.string_dtype()).attrs["units"] = "1"
    _write_mm(file, "voxel_mm", volume.grid.voxel_mm)
    _write_mm(file, "centre_mm", volume.grid.centre_mm)
    file.attrs["is_scale_known"] = volume.grid.is_scale_known
    file.create_dataset("thresholds_kev", data=np.asarray(volume.thresholds_kev, float)).attrs["units"] = "keV"
    if volume.basis is not None:
        _write_basis(file.create_group("basis"), volume.basis)
    provenance = file.create_group("provenance")
    for name in PROVENANCE:
        provenance.attrs[name] = getattr(volume.provenance, name)


def write_values_attributes(values: H5, volume: Volume) -> None:
    """Say what the values are."""
    values.attrs["units"] = volume.unit
    if volume.channel_units:
        values.attrs["channel_units"] = list(volume.channel_units)
    values.attrs["axes"] = "channel, z, y, x"


def write_steps(file: H5, steps: Sequence[str]) -> None:
    """Write in words how the volume was made."""
    texts = file.create_dataset("provenance/steps", data=list(steps), dtype=h5py.string_dtype(), shape=(len(steps),))
    texts.attrs["units"] = "1"


def _write_mm(file: H5, name: str, value: Any) -> None:
    file.create_dataset(name, data=np.asarray(value, float)).attrs["units"] = "mm"


def _write_basis(group: H5, basis: MaterialBasis) -> None:
    group.create_dataset("materials", data=list(basis.materials), dtype=h5py.string_dtype()).attrs["units"] = "1"
    attenuation = group.create_dataset("attenuation_per_mm_per_g_cm3", data=basis.attenuation_per_mm_per_g_cm3)
    attenuation.attrs["units"] = "1/mm per g/cm3"
    group.create_dataset("thresholds_kev", data=np.asarray(basis.thresholds_kev, float)).attrs["units"] = "keV"
    if basis.tube_kvp is not None:
        group.create_dataset("tube_kvp", data=basis.tube_kvp).attrs["units"] = "kV"


def load_volume(path: str | Path) -> Volume:
    """Read a volume; whatever is not a whole volume file is refused.

    Its values are mapped and cannot be written to: they are read from the file when they are looked at, so that a slice
    of a volume larger than memory costs no more than the slice.
    """
    path = Path(path)
    if not path.is_file():
        raise BadFile(f"{path} is not there", hint="give the path of a file written by mpxct reconstruct or decompose")
    try:
        with h5py.File(path, "r") as file:
            check_format(path, file)
            return _read(path, file)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise BadFile(f"{path} is no readable volume file: {error}", hint=_HOW_TO_MAKE) from error


_HOW_TO_MAKE = "a volume file is made by mpxct reconstruct or mpxct decompose"


def is_volume(path: str | Path) -> bool:
    """Whether a file calls itself a volume, whole or damaged."""
    try:
        with h5py.File(path) as file:
            return file.attrs.get("format") == FORMAT
    except OSError:
        return False


def check_format(path: Path, file: H5) -> None:
    """Refuse what is no volume of ours."""
    if file.attrs.get("format") != FORMAT:
        raise BadFile(f"{path} is an HDF5 file, but not a volume of mpxct", hint=_HOW_TO_MAKE)
    if (version := int(file.attrs["format_version"])) > FORMAT_VERSION:
        raise BadFile(f"{path} has format version {version}; allowed: up to {FORMAT_VERSION}", hint="update mpxct")


def _read(path: Path, file: H5) -> Volume:
    values = file["values"]
    shape = values.shape[1:]
    return Volume(
        values=_mapped(path, values),
        channels=_texts(file["channels"]),
        unit=str(values.attrs["units"]),
        channel_units=tuple(map(str, values.attrs.get("channel_units", ()))),
        grid=Grid(
            shape=shape,
            voxel_mm=float(file["voxel_mm"][()]),
            centre_mm=tuple(file["centre_mm"][()].tolist()),
            is_scale_known=bool(file.attrs["is_scale_known"]),
        ),
        thresholds_kev=tuple(file["thresholds_kev"][()].tolist()),
        basis=_read_basis(file["basis"]) if "basis" in file else None,
        provenance=Provenance(
            **{name: str(file["provenance"].attrs.get(name, "")) for name in PROVENANCE},
            steps=_texts(file["provenance/steps"]),
        ),
    )


def _mapped(path: Path, values: H5) -> NDArray[np.float32]:
    offset = values.id.get_offset()  # None where the values stand in chunks, or nowhere
    if offset is None or offset % 4 or values.dtype != np.dtype("<f4"):
        return values[()].astype(np.float32, copy=False)
    return np.asarray(np.memmap(path, np.dtype("<f4"), "r", offset, values.shape))


def _texts(dataset: H5) -> tuple[str, ...]:
    return tuple(str(text) for text in dataset.asstr()[()])


def _read_basis(group: H5) -> MaterialBasis:
    return MaterialBasis(
        materials=_texts(group["materials"]),
        attenuation_per_mm_per_g_cm3=group["attenuation_per_mm_per_g_cm3"][()],
        thresholds_kev=tuple(group["thresholds_kev"][()].tolist()),
        tube_kvp=float(group["tube_kvp"][()]) if "tube_kvp" in group else None,
    )


def read_bin_images(folder: str | Path) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """Read a folder that holds one TIFF per energy bin; bin2 sorts before bin10.

    Returns
    -------
    names : tuple of str
        File names without their ending, in the order of the bins.
    values : (n_bins, z, y, x) float32
        One slice per page. A picture's first row is its top, so rows are turned round: y points up.
    """
    import tifffile

    folder = Path(folder)
    paths = sorted((p for p in folder.iterdir() if p.suffix.lower() in (".tif", ".tiff")), key=_natural)
    if not paths:
        raise BadFile(f"{folder} holds no TIFF image", hint="put one .tif per energy bin into the folder")
    images = []
    for path in paths:
        try:
            with tifffile.TiffFile(path) as file:
                image, page = file.asarray(), file.pages.first
                is_grey = page.samplesperpixel == 1 or page.planarconfig != tifffile.PLANARCONFIG.CONTIG
        except (OSError, ValueError, LookupError, TypeError, struct.error) as error:  # its readers raise what they meet
            raise BadFile(f"{path} is no readable TIFF image: {error}") from error
        if not is_grey or image.ndim not in (2, 3) or image.dtype.kind not in "fiu":
            kind = image.dtype if is_grey else "colours"
            raise BadFile(f"{path} has shape {image.shape} of {kind}; allowed: grey images, one page per slice")
        if images and image.shape != images[0].shape:
            raise BadFile(
                f"{path} has shape {image.shape}, but {paths[0].name} has {images[0].shape}; all bins must be alike"
            )
        images.append(image)
    values = np.stack(images).astype(np.float32)
    if not np.isfinite(values).all():
        raise BadFile(f"{folder} holds values that are no numbers", hint="fill or crop them before decomposing")
    values = values[:, None] if values.ndim == 3 else values
    return tuple(p.stem for p in paths), np.ascontiguousarray(values[:, :, ::-1])


def _natural(path: Path) -> list[tuple[int, int | str]]:
    """Sort digits as numbers, and numbers before words."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", path.name.lower()) if part]
