"""The command ``mpxct decompose``: what to decompose by, and by which rule."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from calibration.progress import Console
from firmware_iface.errors import CalibrationMissing, WrongUsage
from reconstruction import decompose_options
from reconstruction.correction_options import MetalPerMm, Rings, ScatterKernels, Truncation
from reconstruction.decompose_options import refuse_what_is_unused
from reconstruction.recipe import RULES, TIERS, Recipe, bins_of, region_of
from reconstruction.stated_options import refuse_overwriting

if TYPE_CHECKING:
    from reconstruction.decomposition import Attenuation
    from reconstruction.quality import VialStatistics
    from reconstruction.vials import VialFit
    from reconstruction.volume import Volume

BY, RULE, IMAGES, SCANS = "Attenuation of the materials", "Rule", "Images", "Scans"


def decompose(
    ctx: typer.Context,
    source: Annotated[
        Path, typer.Argument(metavar="SCAN|VOLUME|FOLDER", help="A scan or volume file, or one TIFF per energy bin.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path("materials.h5"),
    matrix: Annotated[
        Path | None,
        typer.Option(
            help="CSV of mass attenuation, cm2/g: material,bin1,bin2,… Default: the volume's own basis.",
            rich_help_panel=BY,
        ),
    ] = None,
    vials: Annotated[
        Path | None,
        typer.Option(
            help="Phantom file (TOML) of the vials in this very volume: attenuation is fitted to them.",
            rich_help_panel=BY,
        ),
    ] = None,
    response: Annotated[
        Path | None,
        typer.Option(help="Calibration file with a fitted response: attenuation is computed.", rich_help_panel=BY),
    ] = None,
    water_mm: Annotated[
        float,
        typer.Option(help="With --response: the rays' mean way through the sample, as water.", rich_help_panel=BY),
    ] = 0.0,
    materials: Annotated[
        str,
        typer.Option(
            help="With --response: which materials, a,b,… Default: those of the volume's basis.", rich_help_panel=BY
        ),
    ] = "",
    flatten: Annotated[
        bool,
        typer.Option("--flatten", help="With --vials: take out cupping, as its body shows it.", rich_help_panel=BY),
    ] = False,
    rule: Annotated[str, typer.Option(help=f"{', '.join(RULES)}.", rich_help_panel=RULE)] = RULES[0],
    non_negative: Annotated[
        bool, typer.Option("--non-negative", help="The same as --rule non-negative.", rich_help_panel=RULE)
    ] = False,
    weighted: Annotated[
        bool | None,
        typer.Option(
            "--weighted/--unweighted",
            help="Let quiet bins count more. Default: unweighted with --matrix, whose errors are not those of noise, "
            "and weighted otherwise. The exclusive rule always weighs, min-residual only when told.",
            rich_help_panel=RULE,
        ),
    ] = None,
    densities: Annotated[
        str,
        typer.Option(
            help="Of fractions: density of pure materials, g/cm3, a=1.2,b=… Default: by name.", rich_help_panel=RULE
        ),
    ] = "",
    full: Annotated[
        bool,
        typer.Option("--full", help="Of fractions: they sum to 1 exactly, there is no air.", rich_help_panel=RULE),
    ] = False,
    subsets: Annotated[
        str,
        typer.Option(
            help="Of exclusive and min-residual: what a voxel may hold, 'air; water<2.1; water+iodine'. Default: air, "
            "water, others alone and in water.",
            rich_help_panel=RULE,
        ),
    ] = "",
    significance: Annotated[
        float, typer.Option(help="Of exclusive: how often the truth may be rejected.", rich_help_panel=RULE)
    ] = 0.01,
    false_alarm: Annotated[
        float,
        typer.Option(
            help="Of exclusive: how often noise may add a material; 0: by Schwarz's criterion (BIC).",
            rich_help_panel=RULE,
        ),
    ] = 0.05,
    angle_deg: Annotated[
        float | None,
        typer.Option(
            help="Of exclusive: reject fits at a larger angle to the data. Default: as noise has it.",
            rich_help_panel=RULE,
        ),
    ] = None,
    air_per_mm: Annotated[
        float | None,
        typer.Option(
            help="Of exclusive: what attenuates less on the mean is air. Default: none.", rich_help_panel=RULE
        ),
    ] = None,
    field: Annotated[
        float,
        typer.Option(help="Of exclusive: settle labels among neighbours; 0.5 to 1 is usual.", rich_help_panel=RULE),
    ] = 0.0,
    scale: Annotated[
        float, typer.Option(help="For images: the grey value that means 1 per cm.", rich_help_panel=IMAGES)
    ] = 1.0,
    voxel_mm: Annotated[
        float | None,
        typer.Option(
            help="For images: the edge of a pixel in mm. Default: unknown; lengths count pixels.",
            rich_help_panel=IMAGES,
        ),
    ] = None,
    agents: Annotated[
        str, typer.Option(help="Contrast agents whose cuvettes to look for, a,b,… Default: those with a K edge.")
    ] = "",
    tier: Annotated[
        str,
        typer.Option(
            help="image: reconstruct the bins first; projection: fit every ray; onestep: fit the volume to all counts.",
            rich_help_panel=SCANS,
        ),
    ] = TIERS[0],
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="File with the response, or the plates, for projection and onestep. Default: the scan's own.",
            rich_help_panel=SCANS,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="What tells what bins count: response, or plates (of the step wedge, for the materials that these are "
            "of). Default: the response, or plates where none was fitted.",
            rich_help_panel=SCANS,
        ),
    ] = None,
    fit: Annotated[
        str,
        typer.Option(
            help="How rays are fitted: likelihood; or a-table, polynomial (of the bins' signals).",
            rich_help_panel=SCANS,
        ),
    ] = "likelihood",
    prior: Annotated[
        str | None,
        typer.Option(
            help="What is likely, in units of noise: none, tv, huber, vtv, tnv. Default: huber for onestep, none else.",
            rich_help_panel=SCANS,
        ),
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="Of the prior. Default: its own.", rich_help_panel=SCANS)
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(help="Of onestep, and of a prior. Default: the tier's own.", rich_help_panel=SCANS)
    ] = None,
    draws: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Of the noise, for the error maps of iterated volumes; each takes as long as the volume. "
            "2 or more; 0: no error maps. Default: 2.",
            rich_help_panel=SCANS,
        ),
    ] = None,
    sharing: Annotated[
        bool,
        typer.Option(
            "--sharing",
            help="Take from the response which counts of neighbours are of one photon: errors are then larger.",
            rich_help_panel=SCANS,
        ),
    ] = False,
    bins: Annotated[
        str, typer.Option(help="Which bins of every pass, from 1: 1,3-4. Default: all.", rich_help_panel=SCANS)
    ] = "",
    scatter: ScatterKernels = None,
    rings: Rings = "none",
    metal_per_mm: MetalPerMm = None,
    truncation: Truncation = "auto",
    window: Annotated[
        str, typer.Option(help="Filter of back-projection, from ram-lak to hann.", rich_help_panel=SCANS)
    ] = "hann",
    roi: Annotated[
        str, typer.Option(help="Keep a region only, in mm: x=-2:2,y=:1,z=0:1.5.", rich_help_panel=SCANS)
    ] = "",
    preview: Annotated[
        bool, typer.Option("--preview", help="A quick look: every fourth view, pixels and voxels four times the size.")
    ] = False,
    pass_number: Annotated[
        int | None, typer.Option("--pass", help="Which pass of several. Default: all.", rich_help_panel=SCANS)
    ] = None,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Take an interrupted scan too.", rich_help_panel=SCANS)
    ] = False,
    gpu: Annotated[
        bool | None, typer.Option("--gpu/--cpu", help="Default: the GPU when there is one.", rich_help_panel=SCANS)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Separate the bins of a scan, a volume, or a folder of images, into materials, and draw them in colour.

    By every ray: mpxct decompose scan.h5 --tier projection --calibration calibration.h5 -o materials.h5

    Example: mpxct decompose slices/ --matrix matrix.csv --scale 0.0453 --voxel-mm 0.045 -o materials.h5

    Labels: mpxct decompose volume.h5 --rule exclusive --field 0.5 writes materials.h5 and materials-labels.h5
    """
    from calibration.store import load
    from reconstruction import backend
    from reconstruction.decomposition import read_matrix_csv
    from reconstruction.materials import basis_of_response, read_image_folder
    from reconstruction.phantom_file import load_phantom
    from reconstruction.pipeline import reconstruct_scan
    from reconstruction.quality import find_vials, k_edge_materials, vial_statistics
    from reconstruction.scan_materials_cli import decompose_counts
    from reconstruction.spectral.exclusive import rule_named
    from reconstruction.vials import fit_vials, flattened
    from reconstruction.volume import is_volume, load_volume, save_volume

    console: Console = ctx.obj
    if tier not in TIERS:
        raise WrongUsage(f"--tier is {tier!r}; allowed: {', '.join(TIERS)}")
    is_scan = not source.is_dir() and not is_volume(source)
    if tier != TIERS[0] and not is_scan:
        raise WrongUsage(f"--tier {tier} is of scans: {source} has no counts of rays", hint="give the scan file")
    of_files = decompose_options.IMAGES if source.is_dir() else decompose_options.VOLUMES
    of_scans = decompose_options.BINS_OF_SCANS if tier == TIERS[0] else decompose_options.COUNTS
    refuse_what_is_unused(ctx, of_scans if is_scan else of_files, rule)
    refuse_overwriting(source, output)
    if gpu:
        backend.require_gpu()
    _refuse_no_size(voxel_mm)
    recipe = Recipe(
        window=window,
        bins=bins_of(bins),
        scatter=scatter,
        rings=rings,
        metal_per_mm=metal_per_mm,
        truncation=truncation,
        voxel_mm=voxel_mm,
        region_mm=region_of(roi),
        is_preview=preview,
        pass_number=pass_number,
        use_gpu=backend.has_gpu() if gpu is None else gpu,
    )
    if tier != TIERS[0]:
        decompose_counts(
            console,
            source,
            output,
            recipe,
            _names(materials),
            tier=tier,
            fit=fit,
            model=model,
            calibration=calibration or response,
            prior={None: "huber" if tier == "onestep" else None, "none": None}.get(prior, prior),
            strength=strength,
            n_iterations=iterations,
            n_draws=draws,
            knows_sharing=sharing,
            allow_partial=allow_partial,
            as_json=as_json,
        )
        return
    _refuse_two_sources(matrix, vials, response)
    if flatten and vials is None:
        raise WrongUsage("--flatten was given without --vials; allowed: with them, whose body shows the cupping")
    began_s = time.monotonic()
    if source.is_dir():
        volume = read_image_folder(source, scale=scale, voxel_mm=voxel_mm)
    elif is_scan:
        known = load(calibration) if calibration else None
        volume = console.track(reconstruct_scan(source, recipe, calibration=known, allow_partial=allow_partial))
    else:
        volume = load_volume(source)
    attenuation: Attenuation | None = volume.basis
    vial_fit = None
    if matrix is not None:
        attenuation = read_matrix_csv(matrix).in_order_of(volume.channels)
    elif vials is not None:
        phantom = load_phantom(vials)
        volume = flattened(volume, phantom) if flatten else volume
        vial_fit = fit_vials(volume, phantom)
        attenuation = vial_fit.basis
    elif response is not None:
        attenuation = basis_of_response(volume, response, water_mm=water_mm, materials=_names(materials))
    if attenuation is None:
        raise CalibrationMissing(
            "the volume carries no material basis",
            hint="run mpxct calibrate materials and scan again, or give --matrix, --vials or --response",
        )
    looked_for = _names(agents) or k_edge_materials(attenuation)
    if unknown := [name for name in looked_for if name not in attenuation.materials]:
        raise WrongUsage(f"--agents names {', '.join(unknown)}; allowed: {', '.join(attenuation.materials)}")
    chosen = "non-negative" if non_negative and rule == RULES[0] else rule
    is_weighted = matrix is None if weighted is None else weighted
    if chosen in RULES[3:]:
        from reconstruction.materials import separate_volume

        found, labels = separate_volume(
            volume,
            rule_named(
                chosen,
                attenuation.materials,
                looked_for,
                subsets=subsets,
                rejected_fraction=significance,
                false_fraction=false_alarm,
                most_angle_deg=angle_deg,
                air_below_per_mm=air_per_mm,
                field_weight=field,
            ),
            attenuation,
            is_weighted=bool(weighted),
        )
    else:
        found, labels = _least_squares(volume, attenuation, chosen, is_weighted, densities, full), None
    save_volume(found, output)
    label_file = None if labels is None else save_volume(labels, output.with_name(f"{output.stem}-labels.h5"))
    picture = console.picture(output)
    statistics = vial_statistics(found, find_vials(found, looked_for))
    seconds = time.monotonic() - began_s
    table = vial_table(statistics, looked_for)
    files = ", ".join(str(file) for file in (output, label_file, picture) if file is not None)
    fitted = f"{_fit_table(vial_fit)}\n" if vial_fit else ""
    text = f"{files}: {', '.join(found.channels)}, {seconds:.1f} s\n{fitted}{table}"
    figures = {
        "file": str(output),
        "picture": str(picture),
        "labels": _label_figures(labels, label_file),
        "vials": _fit_figures(vial_fit),
        "seconds": seconds,
        **vial_figures(statistics),
    }
    console.emit(figures, text, as_json=as_json)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _numbers(text: str, option: str) -> dict[str, float]:
    """Read a=1.2,b=3."""
    found = {}
    for pair in _names(text):
        name, _, value = pair.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError as error:
            raise WrongUsage(f"{option} has {pair!r}; allowed: NAME=NUMBER, by commas") from error
    return found


def _refuse_two_sources(*sources: Path | None) -> None:
    if sum(source is not None for source in sources) > 1:
        raise WrongUsage("more than one of --matrix, --vials and --response was given; allowed: one")


def _least_squares(
    volume: Volume, attenuation: Attenuation, rule: str, is_weighted: bool, densities: str, is_full: bool
) -> Volume:
    from reconstruction.materials import decompose_volume

    if rule not in RULES:
        raise WrongUsage(f"--rule is {rule!r}; allowed: {', '.join(RULES)}")
    return decompose_volume(
        volume,
        attenuation,
        is_weighted=is_weighted,
        is_non_negative=rule == "non-negative",
        densities_g_cm3=_numbers(densities, "--densities") if rule == "fractions" else None,
        is_full=is_full,
    )


def _label_figures(labels: Volume | None, file: Path | None) -> dict[str, object] | None:
    """Return which share of the voxels has each label."""
    if labels is None:
        return None
    legend = [word.split(" ", 1)[1] for word in labels.provenance.steps[-1].removeprefix("labels: ").split(", ")]
    counts = np.bincount(labels.channel("label").astype(np.int64).ravel(), minlength=len(legend))
    return {"file": str(file), "share": dict(zip(legend, (counts / counts.sum()).tolist(), strict=True))}


def _fit_figures(fit: VialFit | None) -> dict[str, object] | None:
    """Return what the vials told, for a script."""
    if fit is None:
        return None
    return {
        "bins": list(fit.bins),
        "attenuation_per_mm_per_g_cm3": _by_name(fit.materials, fit.attenuation_per_mm_per_g_cm3),
        "sigma_per_mm_per_g_cm3": _by_name(fit.materials, fit.sigma_per_mm_per_g_cm3),
        "r2": _by_name(fit.materials[1:], fit.r2),
        "chi_square": fit.chi_square.tolist(),
        "n_degrees": fit.n_degrees,
    }


def _by_name(names: Sequence[str], columns: np.ndarray) -> dict[str, list[float]]:
    return dict(zip(names, columns.T.tolist(), strict=True))


def _fit_table(fit: VialFit) -> str:
    """Return what the vials told, for a person: one line a material."""
    lines = [f"attenuation from vials, 1/mm per g/cm3, in {', '.join(fit.bins)}"]
    for k, name in enumerate(fit.materials):
        cells = [
            f"{value:.4g} ± {error:.1g}"
            for value, error in zip(
                fit.attenuation_per_mm_per_g_cm3[:, k], fit.sigma_per_mm_per_g_cm3[:, k], strict=True
            )
        ]
        r2 = f"  R2 {fit.r2[:, k - 1].min():.4f} at least" if k and np.isfinite(fit.r2[:, k - 1]).all() else ""
        lines.append(f"{name:<14} {'  '.join(cells)}{r2}")
    chi = ", ".join(f"{value:.1f}" for value in fit.chi_square)
    lines.append(f"chi square {chi} over {fit.n_degrees} degrees of freedom")
    return "\n".join(lines)


def _refuse_no_size(voxel_mm: float | None) -> None:
    if voxel_mm is not None and not 0 < voxel_mm < float("inf"):
        raise WrongUsage(f"--voxel-mm is {voxel_mm}; allowed: more than 0")


def vial_figures(statistics: Sequence[VialStatistics]) -> dict[str, object]:
    """Return what was found in each cuvette, for a script."""
    from reconstruction.quality import MG_ML_PER_G_CM3, cross_talk_mg_ml, total_cross_talk_mg_ml

    return {
        "cuvettes": {
            s.vial.material: {
                "x_mm": s.vial.x_mm,
                "y_mm": s.vial.y_mm,
                "radius_mm": s.vial.radius_mm,
                "mean_g_cm3": dict(zip(s.materials, s.mean_g_cm3.tolist(), strict=True)),
                "sd_g_cm3": dict(zip(s.materials, s.sd_g_cm3.tolist(), strict=True)),
            }
            for s in statistics
        },
        "cross_talk_g_cm3": {name: value / MG_ML_PER_G_CM3 for name, value in cross_talk_mg_ml(statistics).items()},
        "cross_talk_rmse_g_cm3": total_cross_talk_mg_ml(statistics) / MG_ML_PER_G_CM3 if len(statistics) > 1 else None,
    }


def vial_table(statistics: Sequence[VialStatistics], looked_for: Sequence[str]) -> str:
    """Return what was found in each cuvette, for a person: one line a cuvette, and one of cross-talk."""
    from reconstruction.quality import cross_talk_mg_ml, total_cross_talk_mg_ml

    if not statistics:
        return f"no round cuvette of {', '.join(looked_for) or 'a contrast agent'} stands out"
    materials = statistics[0].materials
    widths = [max(len(name), 14) for name in materials]
    header = ["cuvette".ljust(14), *(name.rjust(width) for name, width in zip(materials, widths, strict=True))]
    lines = ["mean and spread, mg/mL", "  ".join(header)]
    for s in statistics:
        cells = [f"{s.mean_mg_ml(name):.1f} ± {s.sd_mg_ml(name):.1f}" for name in materials]
        padded = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        lines.append("  ".join([s.vial.material.ljust(14), *padded]))
    if cross_talk := cross_talk_mg_ml(statistics):
        cells = [f"{cross_talk[name]:.1f}" if name in cross_talk else "" for name in materials]
        padded = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        lines.append("  ".join(["cross-talk".ljust(14), *padded]).rstrip())
        lines.append(f"cross-talk of all agents together: {total_cross_talk_mg_ml(statistics):.1f} mg/mL")
    if missing := [name for name in looked_for if name not in {s.vial.material for s in statistics}]:
        lines.append(f"no round cuvette of {', '.join(missing)} stands out")
    return "\n".join(lines)
