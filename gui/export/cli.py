"""The command ``mpxct export``: volumes, and scans, in the formats of other programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from firmware_iface.errors import WrongUsage

if TYPE_CHECKING:
    from calibration.progress import Console

MERLIN = ".mib"
SURFACES = "Surfaces"


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(export)


def export(
    ctx: typer.Context,
    source: Annotated[Path | None, typer.Argument(help="A volume (.h5), or a scan (.h5) for a Merlin file.")] = None,
    target: Annotated[
        Path | None, typer.Argument(help="File or folder to write; its ending tells the format, .mib for a scan.")
    ] = None,
    format_name: Annotated[
        str | None, typer.Option("--format", help="Where the name does not tell it: see --list-formats.")
    ] = None,
    channels: Annotated[str, typer.Option(help="Which, in this order: iodine,gold. Default: all.")] = "",
    unit: Annotated[
        str | None,
        typer.Option(help="mg/mL (default) or g/cm3 for materials, 1/mm (default; DICOM: HU) or HU for bins."),
    ] = None,
    together: Annotated[
        bool, typer.Option("--together", help="All channels as one vector volume (NRRD, NIfTI, MetaImage).")
    ] = False,
    specimen: Annotated[str, typer.Option(help="Its name, in DICOM the patient's. Default: the plan's sample.")] = "",
    voxel_mm: Annotated[
        float | None, typer.Option("--voxel-mm", help="Size of a voxel, for a volume that does not know it.")
    ] = None,
    zarr_version: Annotated[str, typer.Option("--zarr-version", help="Of OME-Zarr: 0.4 or 0.5.")] = "0.4",
    surface: Annotated[
        list[str] | None,
        typer.Option(
            help="Where the surface of a channel lies, in its unit: iodine=5; may be repeated.",
            rich_help_panel=SURFACES,
        ),
    ] = None,
    smooth: Annotated[
        int,
        typer.Option(
            min=0, max=100, help="Steps that smooth a surface, without shrinking it.", rich_help_panel=SURFACES
        ),
    ] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what exists already.")] = False,
    list_formats: Annotated[bool, typer.Option("--list-formats", help="Tell the formats, and who opens them.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Export a volume for other programs, or a scan as a Merlin file (lost frames are left out).

    Example: mpxct export materials.h5 materials.nrrd
    """  # fmt: skip
    console: Console = ctx.obj
    if list_formats:
        _list(console, as_json=json)
        return
    if source is None or target is None:
        raise WrongUsage("export takes a file and a name to write", hint="mpxct export materials.h5 materials.nrrd")
    if target.suffix.lower() == MERLIN and format_name in (None, "merlin"):
        _export_scan(console, source, target, overwrite=overwrite, as_json=json)
        return

    from gui.export.content import content_of
    from gui.export.formats import Options, default_unit, format_for
    from gui.export.formats import export as exported
    from reconstruction.volume import load_volume

    kind = format_for(target, format_name)
    volume = load_volume(source)
    levels = levels_of(surface or ())
    names = [name for name in (part.strip() for part in channels.split(",")) if name]
    content = content_of(
        volume,
        channels=names or list(levels),
        unit=unit or default_unit(kind, volume),
        specimen=specimen,
        voxel_mm=voxel_mm,
    )
    options = Options(
        is_together=together,
        is_overwriting=overwrite,
        zarr_version=zarr_version,
        levels=levels,
        smoothing_steps=smooth,
    )
    written = console.track(exported(content, target, kind, options))
    figures = {
        "format": kind.name,
        "paths": [str(path) for path in written],
        "bytes": sum(_size(path) for path in written),
        "channels": [{"name": layer.name, "unit": layer.unit} for layer in content.layers],
        "shape": list(content.grid.shape),
        "voxel_mm": content.grid.voxel_mm if content.grid.is_scale_known else None,
    }
    lines = [f"{path}: {kind.title}, {_size(path) / 1e6:.3g} MB" for path in written]
    if not content.grid.is_scale_known:
        lines.append("the volume does not know its scale: 1 mm stands for the edge of a voxel (--voxel-mm tells it)")
    console.emit(figures, "\n".join(lines), as_json=json)


def levels_of(surfaces: Sequence[str]) -> dict[str, float]:
    """Read iodine=5 and the like."""
    levels = {}
    for text in surfaces:
        name, sign, value = text.rpartition("=")
        try:
            levels[name] = float(value)
        except ValueError:
            sign = ""
        if not sign or not name or not abs(levels[name]) < float("inf"):
            raise WrongUsage(f"--surface is {text!r}; allowed: a channel and a value, such as iodine=5")
    return levels


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())


def _list(console: Console, *, as_json: bool) -> None:
    from gui.export.formats import FORMATS

    rows = [
        {
            "name": one.name, "title": one.title, "endings": list(one.endings), "holds": one.holds.value,
            "opens": one.opens, "missing": one.why_not(),
        }
        for one in FORMATS
    ]  # fmt: skip
    rows.append(
        {
            "name": "merlin", "title": "Merlin (of a scan)", "endings": [MERLIN],
            "holds": "every counter of every frame", "opens": "LiberTEM, HyperSpy, whatever reads .mib", "missing": "",
        }
    )  # fmt: skip
    lines = []
    for row in rows:
        lines.append(f"{row['name']:<10} {' '.join(row['endings']):<18} {row['title']}; {row['holds']}")
        lines.append(f"{'':<29} {row['opens']}")
        if row["missing"]:
            lines.append(f"{'':<29} {row['missing']}: pip install 'mpxct[export]'")
    console.emit({"formats": rows}, "\n".join(lines), as_json=as_json)


def _export_scan(console: Console, source: Path, target: Path, *, overwrite: bool, as_json: bool) -> None:
    from acquisition.merlin_writer import export_merlin
    from firmware_iface.merlin import read_mib

    written = read_mib(console.track(export_merlin(source, target, overwrite=overwrite)))
    first = written.frames[0].header
    figures = {
        "path": str(target),
        "n_images": len(written.frames),
        "shape": list(first.shape),
        "dtype": first.pixel_type,
    }
    text = f"{target}: {len(written.frames)} images of {' x '.join(map(str, first.shape))}, {first.pixel_type}"
    console.emit(figures, text, as_json=as_json)
