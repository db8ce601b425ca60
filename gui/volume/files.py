"""Opens volume files for the page: which of the two kinds it is, and the errors that belong to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firmware_iface.errors import BadFile
from gui.volume.cursor import is_error_of
from reconstruction.volume import MASS_CONCENTRATION, Volume, load_volume


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Opened:
    """A volume that was opened, and from where."""

    path: Path
    volume: Volume

    def parts(self) -> dict[str, Any]:
        """Return what of the session's state it is: materials, or else bins."""
        kind = "materials" if self.volume.unit == MASS_CONCENTRATION else "bins"
        return {kind: self.volume, f"{kind}_path": self.path}


def opened(path: Path) -> Opened:
    """Open a volume file; its values stay in it until they are looked at."""
    return Opened(path=path, volume=load_volume(path))


def sigma_file(materials: Path) -> Path:
    """Return where the standard errors of a volume of materials would lie."""
    return materials.with_name(f"{materials.stem}-sigma.h5")


def sigma_of(materials: Volume, path: Path | None) -> Volume | None:
    """Return the standard errors of a volume of materials where its own file has some beside it."""
    if path is None or not sigma_file(path).is_file():
        return None
    sigma = load_volume(sigma_file(path))
    if not is_error_of(sigma, materials):
        raise BadFile(
            f"{sigma_file(path).name} holds no standard errors of {path.name}",
            hint="it is left alone; move it away to be rid of this message",
        )
    return sigma


def named(paths: Mapping[str, Path | None]) -> str:
    """Return the names of open volumes, each by its kind, where it is saved; short."""
    names = (path.name if path is not None else f"{kind}, not saved yet" for kind, path in paths.items())
    return "   +   ".join(names) or "no volume"


def described(volume: Volume) -> str:
    """Return what a volume holds and where it came from, line by line."""
    grid = volume.grid
    z, y, x = grid.shape
    size = f"{grid.voxel_mm:g} mm" if grid.is_scale_known else "unknown size"
    lines = [f"{', '.join(volume.channels)} in {volume.unit}", f"{z} × {y} × {x} voxels (z, y, x) of {size}"]
    lines += [f"from {volume.provenance.source_file}"] if volume.provenance.source_file else []
    return "\n".join([*lines, *volume.provenance.steps])
