"""The commands ``mpxct align`` and ``mpxct reconstruct``; the others of this package have files of their own."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from calibration.progress import Console
from firmware_iface.errors import CalibrationMissing, WrongUsage
from reconstruction import denoise_cli, design_cli, quantities_cli
from reconstruction.correction_options import ARTEFACTS, MetalPerMm, Rings, ScatterKernels, Truncation
from reconstruction.decompose_cli import decompose
from reconstruction.stated_options import refuse_overwriting

if TYPE_CHECKING:
    from calibration.alignment import Alignment
    from reconstruction.iterative import Option
    from reconstruction.volume import Volume

METHOD, VOLUME, SIZE = "Method", "Volume", "Size"
AS_JSON = Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this package to the command line."""
    app.command("align")(_align)
    app.command("reconstruct")(_reconstruct)
    app.command("decompose")(decompose)
    denoise_cli.register(app)
    quantities_cli.register(app)
    design_cli.register(app)


def _align(
    ctx: typer.Context,
    scan: Annotated[Path, typer.Argument(help="A scan file, as mpxct acquire writes it.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Calibration file to write: the scan's own, with the geometry found."),
    ] = None,
    sharpness: Annotated[
        bool, typer.Option("--sharpness", help="Look for the sharpest slice instead of opposing rays; no roll.")
    ] = False,
    allow_partial: Annotated[bool, typer.Option("--allow-partial", help="Take an interrupted scan too.")] = False,
    as_json: AS_JSON = False,
) -> None:
    """Find the axis of rotation and the detector's roll from the scan itself, by rays that ran both ways.

    Example: mpxct align scan.h5 -o aligned.h5, then mpxct reconstruct scan.h5 --calibration aligned.h5
    """
    from dataclasses import replace

    from acquisition.scan_file import read_scan
    from calibration.store import save
    from reconstruction.pipeline import align_scan_file

    console: Console = ctx.obj
    known = read_scan(scan, allow_partial=allow_partial).calibration
    if output is not None and known is None:
        raise CalibrationMissing(
            f"{scan} carries no calibration that the geometry could be written into", hint="leave -o out"
        )
    alignment = console.track(align_scan_file(scan, by_sharpness=sharpness, allow_partial=allow_partial))
    if output is not None and known is not None:
        save(replace(known, alignment=alignment), output)
    figures = {"file": None if output is None else str(output), **alignment.figures}
    console.emit(figures, "\n".join(_lines(alignment)), as_json=as_json)


def _lines(alignment: Alignment) -> Iterator[str]:
    """Yield a line for each figure of an alignment."""
    for name, value in alignment.figures.items():
        if isinstance(value, dict):
            yield f"{name:<22} {value['value']:.5g} ± {value['standard_error']:.2g}"
        else:
            yield f"{name:<22} {value}"


def _reconstruct(
    ctx: typer.Context,
    scan: Annotated[Path, typer.Argument(help="A scan file, as mpxct acquire writes it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The volume file to write.")] = Path("volume.h5"),
    preview: Annotated[
        bool, typer.Option("--preview", help="A quick look: every fourth view, pixels and voxels four times the size.")
    ] = False,
    method: Annotated[
        str, typer.Option(help="fdk, or an iterative method; --methods tells them.", rich_help_panel=METHOD)
    ] = "fdk",
    window: Annotated[
        str,
        typer.Option(
            help="Filter of fdk: ram-lak, shepp-logan, cosine, hamming or hann, from sharp to soft.",
            rich_help_panel=METHOD,
        ),
    ] = "hann",
    iterations: Annotated[
        int | None, typer.Option(help="Of an iterative method. Default: the method's own.", rich_help_panel=METHOD)
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="An option of the method, e.g. n_subsets=18.", rich_help_panel=METHOD
        ),
    ] = None,
    until_noise: Annotated[
        bool,
        typer.Option(
            "--until-noise", help="Stop when the volume fits the data as well as noise allows.", rich_help_panel=METHOD
        ),
    ] = False,
    prior: Annotated[
        str | None, typer.Option(help="What fista, pdhg and plug-and-play hold for likely.", rich_help_panel=METHOD)
    ] = None,
    weights: Annotated[
        str,
        typer.Option(help="What data count for: noise, none, or auto, by the method.", rich_help_panel=METHOD),
    ] = "auto",
    start: Annotated[
        str | None,
        typer.Option(help="Volume file to start the iterations from, or fdk.", rich_help_panel=METHOD),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="Volume file that damping or the prior pulls towards, or fdk.", rich_help_panel=METHOD),
    ] = None,
    bins: Annotated[str, typer.Option(help="Which bins, from 1: 1,3-4. Default: all.", rich_help_panel=VOLUME)] = "",
    voxel_mm: Annotated[
        float | None,
        typer.Option(
            "--voxel-mm",
            "--voxel",
            help="Edge of a voxel in mm. Default: a pixel's size on the axis.",
            rich_help_panel=VOLUME,
        ),
    ] = None,
    shape: Annotated[
        tuple[int, int, int] | None,
        typer.Option(metavar="Z Y X", help="Number of voxels. Default: what every view sees.", rich_help_panel=VOLUME),
    ] = None,
    roi: Annotated[
        str, typer.Option(help="Keep a region only, in mm: x=-2:2,y=:1,z=0:1.5.", rich_help_panel=VOLUME)
    ] = "",
    pass_number: Annotated[
        int | None,
        typer.Option(
            "--pass",
            help="Which pass, from 1, of a scan with several sets of thresholds; all unless told.",
            rich_help_panel=VOLUME,
        ),
    ] = None,
    scatter: ScatterKernels = None,
    rings: Rings = "none",
    metal_per_mm: MetalPerMm = None,
    truncation: Truncation = "auto",
    linearise: Annotated[
        bool,
        typer.Option(
            "--linearise", help="Take out beam hardening by the calibration's step wedge.", rich_help_panel=ARTEFACTS
        ),
    ] = False,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="Calibration file whose geometry to take. Default: the scan's own.", rich_help_panel=ARTEFACTS
        ),
    ] = None,
    memory: Annotated[
        str,
        typer.Option(
            help="Stay below this, slab by slab, as 8GB; a broken-off work goes on. Default: what is free, where the "
            "scan needs more.",
            rich_help_panel=SIZE,
        ),
    ] = "",
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Work on a Dask cluster: the scheduler's address, or local:N for N processes here.",
            rich_help_panel=SIZE,
        ),
    ] = None,
    allow_partial: Annotated[bool, typer.Option("--allow-partial", help="Take an interrupted scan too.")] = False,
    gpu: Annotated[bool | None, typer.Option("--gpu/--cpu", help="Default: the GPU when there is one.")] = None,
    as_json: AS_JSON = False,
    _: Annotated[
        bool,
        typer.Option(
            "--methods",
            is_eager=True,
            callback=lambda asked: _tell_methods() if asked else None,
            help="Tell all methods with their options, and end.",
        ),
    ] = False,
) -> None:
    """Reconstruct a volume of every energy bin from a scan.

    Example: mpxct reconstruct scan.h5 -o volume.h5 --window hann

    Iteratively: mpxct reconstruct scan.h5 --method fista --prior tv --set strength_per_mm=0.02 --iterations 50
    """
    from calibration.store import load
    from reconstruction import backend
    from reconstruction.pipeline import reconstruct_scan
    from reconstruction.recipe import Recipe, bins_of, region_of
    from reconstruction.scan_slabs import memory_limit, reconstruct_to_file
    from reconstruction.volume import load_volume, save_volume

    console: Console = ctx.obj
    refuse_overwriting(scan, output)
    if gpu:
        backend.require_gpu()
    recipe = Recipe(
        method=method,
        window=window,
        options=_options(option or []),
        n_iterations=iterations,
        weights=weights,
        stops_at_noise=until_noise,
        prior=prior,
        start=start,
        reference=reference,
        bins=bins_of(bins),
        voxel_mm=voxel_mm,
        shape=shape,
        region_mm=region_of(roi),
        is_preview=preview,
        scatter=scatter,
        rings=rings,
        metal_per_mm=metal_per_mm,
        truncation=truncation,
        linearise=linearise,
        pass_number=pass_number,
        use_gpu=backend.has_gpu() if gpu is None else gpu,
    )
    began_s = time.monotonic()
    known = load(calibration) if calibration else None
    limit_bytes = memory_limit(
        scan, recipe, memory, calibration=known, allow_partial=allow_partial, is_on_cluster=cluster is not None
    )
    if limit_bytes is None:
        volume = console.track(reconstruct_scan(scan, recipe, calibration=known, allow_partial=allow_partial))
        save_volume(volume, output)
    else:
        work = reconstruct_to_file(
            scan,
            output,
            recipe,
            calibration=known,
            allow_partial=allow_partial,
            memory_bytes=limit_bytes,
            address=cluster,
            tell=console.say,
        )
        volume = load_volume(console.track(work))
    plot = _plot_convergence(volume, output)
    seconds = time.monotonic() - began_s
    means = np.array([channel.mean(dtype=float) for channel in volume.values])
    figures = {
        "file": str(output),
        "shape": list(volume.grid.shape),
        "voxel_mm": volume.grid.voxel_mm,
        "mean_per_mm": dict(zip(volume.channels, means.tolist(), strict=True)),
        "steps": list(volume.provenance.steps),
        "convergence": json.loads(volume.provenance.convergence_json or "null"),
        "plot": None if plot is None else str(plot),
        "seconds": seconds,
    }
    size = f"{' x '.join(map(str, volume.grid.shape))} voxels of {volume.grid.voxel_mm:.4g} mm"
    steps = "".join(f"\n  {step}" for step in volume.provenance.steps)
    drawn = "" if plot is None else f", {plot}"
    text = f"{output}{drawn}: {len(volume.channels)} bins of {size}, {seconds:.1f} s{steps}"
    console.emit(figures, text, as_json=as_json)


def _tell_methods() -> None:
    """Print every method and prior with what can be set of it, and end."""
    from reconstruction.iterative import METHODS, PRIORS, prior_options

    def told(options: Iterable[Option]) -> str:
        return " ".join(o.name if o.must_be_set else f"{o.name}={o.default}" for o in options)

    typer.echo(f"{'fdk':<15} filtered back-projection, of any orbit: the default\n{'':<15} --window")
    for name, method in METHODS.items():
        prior = " --prior NAME" if method.has_prior else ""
        typer.echo(f"{name:<15} {method.summary}\n{'':<15}{prior} --set {told(method.options().values())}")
    for name in PRIORS:
        typer.echo(f"--prior {name:<7} --set {told(prior_options(name).values())}")
    raise typer.Exit


def _plot_convergence(volume: Volume, output: Path) -> Path | None:
    """Draw how the iterations went, beside the volume."""
    from reconstruction.methods.convergence import ConvergenceLog

    if not volume.provenance.convergence_json:
        return None
    log = ConvergenceLog.of_table(json.loads(volume.provenance.convergence_json))
    return log.plot(output.with_name(f"{output.stem}-convergence.png"))


def _options(pairs: Sequence[str]) -> dict[str, float | str]:
    """Read NAME=VALUE pairs; what is a number becomes one."""
    options: dict[str, float | str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise WrongUsage(f"--set is {pair!r}; allowed: NAME=VALUE, as in --set n_subsets=18")
        try:
            options[name.strip()] = float(value)
        except ValueError:
            options[name.strip()] = value.strip()
    return options
