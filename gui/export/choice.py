"""What a person has chosen to export, as one record: what is wrong with it, what it makes, and the work itself."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from calibration.attenuation import MG_ML_PER_G_CM3
from calibration.progress import Progress
from firmware_iface.errors import MpxctError
from gui.colour import GREY, KNOWN
from gui.export.content import Content, content_of, units_for
from gui.export.formats import SURFACES, Format, Holds, Options, default_unit, export, parts_of
from gui.volume.looks import MaterialLook
from reconstruction.volume import HOUNSFIELD, MASS_CONCENTRATION, MG_PER_ML, Volume

AGENT_MG_ML, TISSUE_MG_ML = 5.0, 500.0
"""Where a surface is suggested: of what is seen in a colour, and of the grey base."""
SKIN_HU, SKIN_PER_MM = -500.0, 0.01


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Choice:
    """What to export, how and where to.

    Attributes
    ----------
    channels : tuple of str
        In the order of the volume.
    unit : str or None
        None: the default of the format.
    target : Path
        File, or folder, to write.
    """

    volume: Volume
    channels: tuple[str, ...]
    kind: Format
    target: Path
    unit: str | None = None
    specimen: str = ""
    options: Options = field(default_factory=Options)
    looks: tuple[MaterialLook, ...] = ()

    def content(self) -> Content:
        """Return what is exported; nothing is read for it."""
        return content_of(
            self.volume,
            channels=self.channels,
            unit=self.unit or default_unit(self.kind, self.volume),
            specimen=self.specimen,
            looks=self.looks,
        )

    def why_not(self) -> str:
        """Return what keeps it from being exported; empty if nothing does."""
        if not self.channels:
            return "No channel is chosen; tick at least one."
        if why := self.kind.why_not():
            return f"{why}; get it by: pip install 'mpxct[export]'"
        if self.kind.name == "dicom" and not self.volume.grid.is_scale_known:
            return "The volume does not know the size of its voxels, which DICOM must tell."
        if not self.target.name:
            return "The name is empty; give one."
        if not self.target.absolute().parent.is_dir():
            return f"The folder {self.target.parent} is not there."
        try:
            content = self.content()
            if self.kind.name == "rgba":
                self._refuse_colourless(content)
            parts = parts_of(content, self.target, self.kind, self.options)
        except MpxctError as error:
            return _sentence(error)
        if taken := [part.path for part in parts if part.path.exists()]:
            if not self.options.is_overwriting:
                return f"{taken[0].name} exists already: choose another name, or tick to replace it."
            if taken[0].is_dir() is not self.kind.is_folder:
                return f"{taken[0].name} is {'a folder' if taken[0].is_dir() else 'a file'}; choose another name."
        needed, free = self.kind.n_bytes(content), self._free_bytes()
        return f"It takes {_size(needed)}, and the disk has {_size(free)} free." if needed > free else ""

    def summary(self) -> str:
        """Return what it will make, for people."""
        if not self.channels:
            return ""
        try:
            content = self.content()
            parts = parts_of(content, self.target, self.kind, self.options)
        except MpxctError:
            return ""
        n_folders = len(content.layers)
        if self.kind.name == "dicom":
            what = f"{n_folders} series of {content.grid.shape[0]} images"
        elif self.kind.is_folder:
            what = "One folder"
        else:
            what = "One file" if len(parts) == 1 else f"{len(parts)} files, one for each channel"
        if self.kind.name in SURFACES:
            return f"{what}; the size depends on the surface. {_size(self._free_bytes())} free."
        return f"{what}, about {_size(self.kind.n_bytes(content))}. {_size(self._free_bytes())} free."

    def work(self) -> Generator[Progress, None, list[Path]]:
        """Return the work, not begun yet."""
        return export(self.content(), self.target, self.kind, self.options)

    def _refuse_colourless(self, content: Content) -> None:
        if any(layer.unit not in (MG_PER_ML, MASS_CONCENTRATION) for layer in content.layers):
            raise MpxctError("Only concentrations of materials have colours; choose materials, or another format")

    def _free_bytes(self) -> int:
        parent = self.target.absolute().parent
        return shutil.disk_usage(parent).free if parent.is_dir() else 0


def suggested(folder: Path, path: Path | None, name: str, kind: Format) -> Path:
    """Return a name for an export that is free: that of the volume, with a number if need be."""
    stem = path.stem if path is not None else name
    ending = "" if kind.name == "dicom" else kind.endings[0]
    for number in range(1, 1000):
        target = folder / f"{stem}{'' if number == 1 else f'-{number}'}{ending}"
        if not target.exists() and not any(folder.glob(f"{target.name.removesuffix(ending)}-*{ending}")):
            return target
    return folder / f"{stem}{ending}"


def level_for(name: str, unit: str) -> float:
    """Return where the surface of a channel is suggested, in its unit."""
    mg_ml = TISSUE_MG_ML if KNOWN.get(name) == GREY else AGENT_MG_ML
    levels = {MG_PER_ML: mg_ml, MASS_CONCENTRATION: mg_ml / MG_ML_PER_G_CM3, HOUNSFIELD: SKIN_HU}
    return levels.get(unit, SKIN_PER_MM)


def shared_units(volume: Volume, channels: Sequence[str]) -> tuple[str, ...]:
    """Return the units that one may choose for channels, the default first."""
    return tuple(dict.fromkeys(unit for name in channels for unit in units_for(volume.unit_of(name))))


def can_be_together(kind: Format, channels: Sequence[str]) -> bool:
    """Whether there is a choice between one file and several."""
    return kind.holds is Holds.EITHER and len(channels) > 1


def _sentence(error: MpxctError) -> str:
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}{f'; {error.hint}' if error.hint else ''}."


def _size(n_bytes: int) -> str:
    for unit, one in (("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= one:
            return f"{n_bytes / one:.3g} {unit}"
    return f"{max(n_bytes / 1e3, 0):.3g} kB"
