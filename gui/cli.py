"""Commands that show: the window, a picture of a file, what is inside it, how good a volume is, files for others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import gui.export.cli
from firmware_iface.errors import WrongUsage
from gui.any_file import open_any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from calibration.progress import Console

File = Annotated[Path, typer.Argument(help="A Merlin .mib file, or a scan, calibration or volume of mpxct.")]


class Registration(Enum):
    """How the place of a phantom is found."""

    FULL = "full"
    SHIFT = "shift"
    NONE = "none"


def register(app: typer.Typer) -> None:
    """Add the commands of this package."""
    app.command("gui")(_window)
    app.command()(view)
    app.command()(info)
    app.command("quality")(_quality)
    gui.export.cli.register(app)


def _window(
    folder: Annotated[
        Path, typer.Argument(help="Where new files go, and where the window looks for those there; made if need be.")
    ] = Path(),
    device: Annotated[str, typer.Option(help="Instrument to open at once, as usb: or sim:demo.")] = "",
) -> None:
    """Open the desktop window.

    Example: mpxct gui data --device sim:demo
    """
    if folder.exists() and not folder.is_dir():
        raise WrongUsage(
            f"{folder} is a file; allowed: a folder", hint="open the window without it, and drop the file on it"
        )
    try:
        from gui.app import run
    except ImportError as error:
        raise WrongUsage(
            f"the window cannot be opened: {error}", hint="install what it is made of: pip install 'mpxct[gui]'"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    raise typer.Exit(run(folder.absolute(), device))


def view(
    ctx: typer.Context,
    file: File,
    png: Annotated[Path | None, typer.Option("--png", help="Picture to write.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Report of a calibration to write.")] = None,
    frame: Annotated[int | None, typer.Option(help="Frame of a scan or of a Merlin file, from 0.")] = None,
    slice_index: Annotated[int | None, typer.Option("--slice", help="Slice of a volume, from 0 at the bottom.")] = None,
    slab_mm: Annotated[
        float, typer.Option(min=0, help="A picture of a volume is the mean over this thickness; 0: one slice.")
    ] = 1.0,
    json: Annotated[bool, typer.Option("--json", help="Print what was drawn as one JSON object.")] = False,
) -> None:
    """Draw a file as a labelled picture, or a calibration as a report; what kind of file it is, its content tells.

    Example: mpxct view materials.h5 --png materials.png --slice 40
    """
    console: Console = ctx.obj
    if png is None and html is None:
        raise WrongUsage("nothing to write", hint="name a picture, --png FILE, or a calibration's report, --html FILE")
    made = {}
    if png is not None:
        made["picture"] = str(draw(file, png, frame=frame, slice_index=slice_index, slab_mm=slab_mm))
    if html is not None:
        made["report"] = str(write_report(file, html))
    console.emit({"file": str(file), **made}, "\n".join(made.values()), as_json=json)


def info(
    ctx: typer.Context,
    file: File,
    json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
) -> None:
    """Tell what is inside a file: settings, identity, losses, provenance.

    Example: mpxct info scan.h5 --json
    """
    from gui.descriptions import describe

    console: Console = ctx.obj
    kind, content = open_any(file)
    figures = {"file": str(file), "kind": kind, **describe(kind, content)}
    console.emit(figures, "\n".join(_lines(figures)), as_json=json)


def _quality(
    ctx: typer.Context,
    materials: Annotated[Path, typer.Argument(help="A material volume, as mpxct decompose writes it.")],
    phantom: Annotated[
        Path, typer.Argument(help="What the phantom holds and where: a TOML file with a table vial for each.")
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Report to write, .html.")] = None,
    register_: Annotated[
        Registration, typer.Option("--register", help="Find how the phantom lies: by shift and turn, by shift, or not.")
    ] = Registration.FULL,
    most_shift_mm: Annotated[
        float | None, typer.Option(min=0, help="How far it may be off along x and y. Default: anywhere.")
    ] = None,
    mtf50: Annotated[
        float | None,
        typer.Option("--mtf50", help="Compare at this sharpness, in 1/mm. Default: that of the least sharp map."),
    ] = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option(
            help="Another volume of the same phantom and place to compare with at one sharpness; may be repeated."
        ),
    ] = None,
    predicted: Annotated[
        Path | None, typer.Option(help="Volume of the least possible standard deviations, to hold the noise against.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Measure how good a material volume is against its phantom, and write a report: concentrations, noise, sharpness.

    Example: mpxct quality materials.h5 phantom.toml -o quality.html
    """
    from math import pi

    from gui.reports.material_figures import material_text, quality_figures
    from gui.reports.material_report import save_material_report
    from reconstruction.assessment import assess, common_mtf50_per_mm
    from reconstruction.merit.registration import find_pose
    from reconstruction.phantom_file import load_phantom
    from reconstruction.volume import load_volume

    console: Console = ctx.obj
    if mtf50 is not None and not 0 < mtf50 < float("inf"):
        raise WrongUsage(f"--mtf50 is {mtf50}; allowed: more than 0")
    volume, described = load_volume(materials), load_phantom(phantom)
    pose = None
    if register_ is not Registration.NONE:
        turn_rad = pi if register_ is Registration.FULL else 0.0
        pose = find_pose(volume, described, most_shift_mm=most_shift_mm, most_turn_rad=turn_rad)
    others = {path.name: load_volume(path) for path in beside or ()}
    if others and mtf50 is None:
        mtf50 = common_mtf50_per_mm([volume, *others.values()], described, pose=pose)
    bound = None if predicted is None else load_volume(predicted)
    assessment = console.track(assess(volume, described, pose=pose, mtf50_per_mm=mtf50, predicted_sd=bound))
    compared = {
        name: console.track(assess(other, described, pose=pose, mtf50_per_mm=mtf50)) for name, other in others.items()
    }
    figures = quality_figures(assessment)
    text = material_text(assessment)
    if compared:
        figures["beside"] = {name: quality_figures(other) for name, other in compared.items()}
        text += "".join(f"\n\n{name}\n{material_text(other)}" for name, other in compared.items())
    if output is not None:
        title = f"Quality of {materials.name}"
        written = save_material_report(assessment, volume, output, title=title, beside=compared)
        figures["report"] = str(written)
        text += f"\n{written}"
    console.emit(figures, text, as_json=json)


def draw(
    file: Path, png: Path, *, frame: int | None = None, slice_index: int | None = None, slab_mm: float = 1.0
) -> Path:
    """Draw a file of any kind into a PNG file."""
    from gui.picture import save_png

    kind, content = open_any(file)
    return save_png(_figure_of(kind, content, frame, slice_index, slab_mm), png)


def write_report(file: Path, html: Path) -> Path:
    """Write the report of a calibration file."""
    from gui.reports.calibration_report import save_calibration_report

    kind, content = open_any(file)
    if kind != "calibration":
        raise WrongUsage(f"{file} is a {kind}; a report can be made of a calibration", hint="draw it: --png FILE")
    return save_calibration_report(content, html)


def _figure_of(kind: str, content: Any, frame: int | None, slice_index: int | None, slab_mm: float) -> Figure:
    from gui import picture
    from reconstruction.volume import MASS_CONCENTRATION

    if kind == "merlin":
        return picture.merlin_figure(content, frame=frame)
    if kind == "scan":
        return picture.scan_figure(content, frame=frame)
    if kind == "calibration":
        return picture.calibration_figure(content)
    if content.unit == MASS_CONCENTRATION:
        return picture.materials_figure(content, slice_index=slice_index, slab_mm=slab_mm)
    return picture.bins_figure(content, slice_index=slice_index, slab_mm=slab_mm)


def _lines(figures: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Write nested figures for people: one name and value a line, tables of alike rows one row a line."""
    width = max((len(str(name)) for name in figures), default=0)
    for name, value in figures.items():
        if isinstance(value, Mapping) and value:
            yield f"{indent}{name}"
            yield from _lines(value, indent + "  ")
        elif isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
            yield f"{indent}{name}"
            for row in value:
                cells = (f"{key} {_word(cell)}" for key, cell in row.items() if not isinstance(cell, Mapping))
                yield f"{indent}  {', '.join(cells)}"
                for key, cell in row.items():
                    if isinstance(cell, Mapping):
                        yield from _lines({key: cell}, indent + "    ")
        else:
            yield f"{indent}{name!s:<{width}}  {_word(value)}"


def _word(value: Any) -> str:
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(_word(part) for part in value) or "-"
    return "-" if value is None or value == "" or value == {} else str(value)
