"""The command ``mpxct design``: which thresholds, voltage, filter and charge serve a task best, and at what dose."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calibration.progress import Console
from firmware_iface.errors import CalibrationMissing, WrongUsage
from reconstruction.stated_options import option_of, stated

if TYPE_CHECKING:
    from acquisition.plan import Plan
    from calibration.store import Calibration
    from reconstruction.spectral.design import Design, Designer
    from reconstruction.spectral.prediction import Counter
    from reconstruction.spectral.sample import Sample

TASK, DETECTOR, CHOICES, LIMITS = "Task", "Detector", "Choices", "Limits"
INHERENT_MM = "aluminium=1.8"
ADDED_MM = 2.0
"""Of MARS scanners, and what they add: the reference on spectral CT, section 8."""
DIAMETER_MM = 10.0
"""Of a sample that nobody measured: the demo's phantom, which the demo's camera sees whole."""
TUBES_KVP = (20.0, 150.0)
"""Voltages that `calibration.spectrum.tube_spectrum` knows."""
OF_SEARCH = ("kvp", "filters", "passes", "highest_ma", "highest_w", "longest_s", "lowest_kev", "gap_kev")
KVPS = (60.0, 70.0, 80.0, 90.0, 100.0, 110.0, 120.0)
FILTERS = ("aluminium=0,1,2,4", "copper=0.1,0.25,0.5")
ROSE, SIGMAS = 5.0, 3.0
"""Detection limits: the contrast to noise that Rose asks for, and IUPAC's three standard deviations."""


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("design")(_design)


def _design(
    ctx: typer.Context,
    phantom: Annotated[
        Path | None,
        typer.Argument(metavar="PHANTOM.toml", help="A phantom's description, as for mpxct quality. Or give --agent."),
    ] = None,
    agent: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=MG_ML", help="Agent to be seen, and how much of it.", rich_help_panel=TASK),
    ] = None,
    diameter_mm: Annotated[
        float | None,
        typer.Option(
            help="Of the sample around the agents. Default: 10, or what just holds the phantom's vials.",
            rich_help_panel=TASK,
        ),
    ] = None,
    body: Annotated[str, typer.Option(help="What the sample is made of.", rich_help_panel=TASK)] = "water",
    dose_mgy: Annotated[
        float | None,
        typer.Option(help="Mean dose of the sample, whole scan. Default: that of the plan.", rich_help_panel=TASK),
    ] = None,
    least_dose: Annotated[
        bool,
        typer.Option(
            "--least-dose", help="Look for the least dose at which each agent has a CNR of 5.", rich_help_panel=TASK
        ),
    ] = False,
    voxel_mm: Annotated[
        float | None,
        typer.Option(help="Average over cubes of this edge. Default: voxels as reconstructed.", rich_help_panel=TASK),
    ] = None,
    window: Annotated[
        str, typer.Option(help="Filter of the reconstruction, as of mpxct reconstruct.", rich_help_panel=TASK)
    ] = "hann",
    plan: Annotated[
        Path | None,
        typer.Option(help="Plan to start from: mode, geometry, views. Default: the demo.", rich_help_panel=DETECTOR),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="Calibration with a fitted response, and a count rate.", rich_help_panel=DETECTOR),
    ] = None,
    ideal: Annotated[
        bool,
        typer.Option("--ideal", help="A counter that errs in nothing, in the plan's sensor.", rich_help_panel=DETECTOR),
    ] = False,
    inherent: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=MM",
            help=f"What is always in the beam. Default: the calibration's, or {INHERENT_MM}.",
            rich_help_panel=DETECTOR,
        ),
    ] = None,
    dead_time_us: Annotated[
        float | None,
        typer.Option(
            help="Of a pixel. Default: the calibration's count rate; or 1, and 4 in charge summing, which are guesses.",
            rich_help_panel=DETECTOR,
        ),
    ] = None,
    mode: Annotated[
        str, typer.Option(help="Of the chip, instead of the plan's: colour-csm or colour-spm.", rich_help_panel=CHOICES)
    ] = "",
    passes: Annotated[
        int,
        typer.Option(
            min=0,
            help="Scans of the same views, each with thresholds of its own. Default: the plan's.",
            rich_help_panel=CHOICES,
        ),
    ] = 0,
    keep: Annotated[
        bool, typer.Option("--keep", help="Judge the plan as it is; look for nothing better.", rich_help_panel=CHOICES)
    ] = False,
    kvp: Annotated[
        str, typer.Option(help="Voltages to try, a,b,… Default: 60 to 120 by 10.", rich_help_panel=CHOICES)
    ] = "",
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="NAME=MM,MM,…",
            help="Filters to try, one at a time. Default: aluminium=0,1,2,4 copper=0.1,0.25,0.5",
            rich_help_panel=CHOICES,
        ),
    ] = None,
    loss: Annotated[
        float, typer.Option(help="Share of the open beam's counts that may be lost.", rich_help_panel=LIMITS)
    ] = 0.1,
    highest_ma: Annotated[float | None, typer.Option(help="Of the tube.", rich_help_panel=LIMITS)] = None,
    highest_w: Annotated[float | None, typer.Option(help="Of the tube.", rich_help_panel=LIMITS)] = None,
    longest_s: Annotated[
        float | None, typer.Option(help="Beam on the sample, whole scan.", rich_help_panel=LIMITS)
    ] = None,
    lowest_kev: Annotated[float, typer.Option(help="Of the lowest threshold.", rich_help_panel=LIMITS)] = 10.0,
    gap_kev: Annotated[float, typer.Option(help="Between two thresholds.", rich_help_panel=LIMITS)] = 2.0,
    write: Annotated[Path | None, typer.Option(help="Plan to write, for mpxct acquire.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Picture to draw: contrast against each threshold.")] = None,
    photons: Annotated[int, typer.Option(help="Thrown at the sample to check the dose at the end.")] = 400_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Foretell noise, contrast, detection limits and dose of a scan, and find its best settings.

    Example: mpxct design --agent iodine=2 --agent gadolinium=2 --dose-mgy 50 --write plan.toml --picture design.png

    Of a phantom, with a measured detector: mpxct design phantom.toml --body pmma --calibration calibration.h5
    """
    from acquisition.plan import load_plan, passes_kev
    from calibration.store import load
    from reconstruction.spectral.design import Designer, Limits, beams_of
    from reconstruction.spectral.design_picture import draw_design
    from reconstruction.spectral.design_plan import charge_mas, design_to_toml, n_views
    from reconstruction.spectral.dose import dose_by_photons, dose_mgy_per_fluence
    from reconstruction.spectral.prediction import ENERGIES_KEV, Forecaster, voxel_gain_per_mm2

    console: Console = ctx.obj
    began_s = time.monotonic()
    positive = {"dose_mgy": dose_mgy, "voxel_mm": voxel_mm, "highest_ma": highest_ma, "highest_w": highest_w}
    _refuse_not_positive({**positive, "longest_s": longest_s, "diameter_mm": diameter_mm, "photons": photons})
    if keep and (idle := stated(ctx, OF_SEARCH)):
        raise WrongUsage(
            f"{option_of(idle[0]).replace('filters', 'filter')} is of the search, which --keep leaves out; "
            "allowed: one of both"
        )
    if least_dose and dose_mgy is not None:
        raise WrongUsage("--least-dose looks for a dose, and --dose-mgy states one; allowed: one of both")
    base = _base(load_plan(plan) if plan else None, mode)
    seen = _sample(phantom, agent or [], diameter_mm, body)
    detector = _detector(base, load(calibration) if calibration else None, ideal, dead_time_us, loss)
    inherent_mm = _thicknesses(inherent) if inherent else detector.inherent_mm
    per_fluence = console.track(dose_mgy_per_fluence(seen, base.geometry, ENERGIES_KEV))
    own_mm = {"aluminium": [detector.added_mm]}
    own_beam = beams_of([base.source.kvp], inherent_mm, own_mm, kvp_ratio=detector.kvp_ratio)[0]
    own_kev = passes_kev(base)

    def designer_of(dose_mgy: float | None) -> Designer:
        return Designer(
            forecaster,
            Limits(
                n_views=n_views(base),
                dose_mgy=dose_mgy,
                rate_per_s=detector.rate_per_s,
                highest_ma=highest_ma or math.inf,
                highest_w=highest_w or math.inf,
                longest_s=longest_s or math.inf,
                lowest_kev=lowest_kev,
                gap_kev=gap_kev,
            ),
            gain_per_mm2=voxel_gain_per_mm2(base.geometry, n_views(base), window=window, voxel_mm=voxel_mm),
            dose_mgy_per_fluence=per_fluence,
        )

    forecaster = Forecaster(seen, base.geometry, detector.counter)
    planned = designer_of(dose_mgy).judge(own_beam, own_kev, charge_mas(base), base.source.current_ma)
    designer = designer_of(None if least_dose else dose_mgy or planned.dose_mgy)
    best = planned
    if not keep:
        kvps = [_number("--kvp", text) for text in kvp.split(",")] if kvp else KVPS
        if outside := [each for each in kvps if not TUBES_KVP[0] <= each <= TUBES_KVP[1]]:
            raise WrongUsage(f"--kvp has {outside[0]:g}; allowed: {TUBES_KVP[0]:g} to {TUBES_KVP[1]:g}")
        beams = beams_of(kvps, inherent_mm, _choices(filters or list(FILTERS)), kvp_ratio=detector.kvp_ratio)
        best = console.track(
            designer.search(beams, len(own_kev[0]), n_passes=passes or len(own_kev), starts=[own_kev[0]])
        )
    on_axis = best.beam.photons(base.geometry.source_to_object_mm)
    thrown = dose_by_photons(seen, base.geometry, on_axis, ENERGIES_KEV, n_photons=photons)
    fluence_per_mm2 = float(on_axis.sum()) * best.forecast.mas * n_views(base)
    if write:
        write.write_text(design_to_toml(best, base), encoding="utf-8")
    if picture:
        draw_design(designer, best, picture)
    figures = {
        "materials": list(seen.basis),
        "detector": detector.told,
        "planned": _figures(planned, seen),
        "best": _figures(best, seen),
        "dose_by_photons_mgy": thrown.dose_mgy * fluence_per_mm2,
        "dose_by_photons_error_mgy": thrown.error_mgy * fluence_per_mm2,
        "dose_of_primaries_mgy": thrown.primary_mgy * fluence_per_mm2,
        "files": [str(file) for file in (write, picture) if file],
        "seconds": time.monotonic() - began_s,
    }
    notes = [
        f"one voxel; a limit is a CNR of {ROSE:g}; detector {detector.told}",
        f"dose by {photons} photons thrown: {thrown.dose_mgy * fluence_per_mm2:.3g} mGy, "
        f"± {100 * thrown.error_mgy / thrown.dose_mgy:.1g} %",
        *_warnings(best, designer, detector.rate_per_s),
    ]
    designs = {"as planned": planned} if keep else {"as planned": planned, "best": best}
    console.emit({**figures, "notes": notes}, "\n".join([_text(designs, seen), *notes]), as_json=as_json)


def _warnings(design: Design, designer: Designer, rate_per_s: float) -> Iterator[str]:
    """Yield what a design does not keep to."""
    from acquisition.coverage import coverage

    seen_mm, wide_mm = 2 * coverage(designer.geometry, (0.0,)).radius_mm, designer.sample.diameter_mm
    limits = designer.limits
    if wide_mm > seen_mm:
        yield f"the camera sees {seen_mm:.3g} mm of the sample's {wide_mm:.3g} mm; the beam is as wide as the camera"
    if design.open_rate_per_s > 1.001 * rate_per_s:
        yield f"the open beam is above {rate_per_s:.3g} counts/s: more than the allowed share is lost"
    if design.view_s * limits.n_views > 1.001 * limits.longest_s:
        yield f"the beam is on for {design.view_s * limits.n_views:.3g} s; {limits.longest_s:.3g} s are allowed"
    if limits.dose_mgy is not None and design.dose_mgy < 0.999 * limits.dose_mgy:
        yield f"the time allows {design.dose_mgy:.3g} of {limits.dose_mgy:.3g} mGy"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Detector:
    """What counts, how it is told, what it can bear, and what stands before it."""

    counter: Counter
    told: str
    rate_per_s: float
    inherent_mm: Mapping[str, float]
    added_mm: float
    kvp_ratio: float = 1.0


def _detector(
    base: Plan, known: Calibration | None, is_ideal: bool, dead_time_us: float | None, loss_share: float
) -> _Detector:
    """Take what a calibration has measured, or else what is stated for such a detector."""
    from calibration.response import SensorModel
    from reconstruction.spectral.design import CSM_DEAD_TIME_S, SPM_DEAD_TIME_S, rate_at_loss_per_s
    from reconstruction.spectral.prediction import fitted_counter, ideal_counter, stated_counter

    wanted, is_csm = base.calibration.response, base.detector.is_csm
    dead_time_s = (CSM_DEAD_TIME_S if is_csm else SPM_DEAD_TIME_S) if dead_time_us is None else dead_time_us * 1e-6
    rate_per_s = rate_at_loss_per_s(loss_share, dead_time_s)
    if known is not None and known.is_csm != is_csm:
        raise CalibrationMissing("the calibration and the plan are of different modes", hint="give a plan of its mode")
    if known is not None and known.count_rate is not None and dead_time_us is None:
        measured_per_s = known.count_rate.rate_at_loss_per_s(loss_share)
        rate_per_s = measured_per_s if math.isfinite(measured_per_s) else known.count_rate.highest_rate_per_s
    inherent_mm, added_mm = _thicknesses([INHERENT_MM]), ADDED_MM
    sensor = SensorModel(
        material=wanted.sensor_material,
        thickness_mm=wanted.sensor_thickness_mm,
        pitch_mm=base.geometry.pitch_mm,
        is_csm=is_csm,
    )
    if known is not None and not is_ideal:
        if known.response is None:
            raise CalibrationMissing("the calibration has no response", hint="mpxct calibrate response")
        filter_mm = known.response.values["filter_mm"]
        return _Detector(
            counter=fitted_counter(known.response),
            told=f"the calibration {known.identity}",
            rate_per_s=rate_per_s,
            inherent_mm={"aluminium": filter_mm},
            added_mm=0.0,
            kvp_ratio=known.response.values["kvp_relative"],
        )
    told = f"{sensor.thickness_mm:g} mm {sensor.material}, {base.detector.mode}"
    return _Detector(
        counter=ideal_counter(sensor) if is_ideal else stated_counter(sensor),
        told=f"{'ideal' if is_ideal else 'not measured'}: {told}",
        rate_per_s=rate_per_s,
        inherent_mm=inherent_mm,
        added_mm=added_mm,
    )


def _base(plan: Plan | None, mode: str) -> Plan:
    """Return the plan to start from; in another mode its thresholds are spread out evenly."""
    import msgspec

    from acquisition.plan import MODES, Plan
    from acquisition.refusals import refuse_unlisted

    plan = plan or Plan()
    if not mode or mode == plan.detector.mode:
        return plan
    try:
        refuse_unlisted("--mode", mode, tuple(name for name in MODES if name.startswith("colour")))
    except ValueError as error:
        raise WrongUsage(str(error)) from error
    n = len(MODES[mode].thresholds)
    low_kev, high_kev = plan.detector.thresholds_kev[0], plan.detector.thresholds_kev[-1]
    thresholds_kev = tuple(round(low_kev + i * (high_kev - low_kev) / (n - 1), 1) for i in range(n))
    detector = msgspec.structs.replace(plan.detector, mode=mode, thresholds_kev=thresholds_kev)
    return msgspec.structs.replace(plan, detector=detector)


def _sample(path: Path | None, agents: Sequence[str], diameter_mm: float | None, body: str) -> Sample:
    from reconstruction.phantom_file import load_phantom
    from reconstruction.spectral.sample import ring_of, sample_of

    if (path is None) == (not agents):
        raise WrongUsage("give a phantom's file, or one --agent or more", hint="mpxct design --agent iodine=2")
    if path is not None:
        return sample_of(load_phantom(path), diameter_mm, body)
    pairs = [_pair("--agent", text) for text in agents]
    if nothing := [name for name, mg_ml in pairs if not mg_ml > 0]:
        raise WrongUsage(f"--agent {nothing[0]} is 0 mg/mL, of which nothing can be seen; allowed: above 0")
    return ring_of(pairs, diameter_mm or DIAMETER_MM, body)


def _refuse_not_positive(values: Mapping[str, float | None]) -> None:
    for name, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise WrongUsage(f"{option_of(name)} is {value:g}; allowed: above 0")


def _thicknesses(pairs: Sequence[str]) -> dict[str, float]:
    return dict(_pair("--inherent", text) for text in pairs)


def _choices(texts: Sequence[str]) -> dict[str, list[float]]:
    """Read NAME=MM,MM,… of each filter that may be added."""
    choices = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals:
            raise WrongUsage(f"--filter is {text!r}; allowed: NAME=MM,MM,… as in copper=0.1,0.25")
        choices[name.strip()] = [_number("--filter", value) for value in values.split(",")]
    return choices


def _pair(option: str, text: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise WrongUsage(f"{option} is {text!r}; allowed: NAME=NUMBER")
    return name.strip(), _number(option, value)


def _number(option: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise WrongUsage(f"{option} has {text!r}; allowed: a number, 0 or more")
    return value


def _figures(design: Design, sample: Sample) -> dict[str, object]:
    """Return what a design tells, for a script."""
    told = design.forecast
    return {
        "kvp": design.beam.kvp,
        "filters_mm": dict(design.beam.filters_mm),
        "passes_kev": [list(one) for one in design.passes_kev],
        "mas_per_view": told.mas,
        "current_ma": design.current_ma,
        "s_per_view": design.view_s,
        "dose_mgy": design.dose_mgy,
        "air_kerma_mgy": design.kerma_mgy,
        "half_value_layer_mm": design.half_value_mm,
        "open_rate_per_s": design.open_rate_per_s,
        "bin_counts": told.bin_counts.tolist(),
        "open_bin_counts": told.open_bin_counts.tolist(),
        "rods": [
            {
                "agent": rod.agent,
                "concentration_mg_ml": rod.concentration_mg_ml,
                "cnr": float(told.cnr[i]),
                "limit_cnr_5_mg_ml": ROSE * rod.concentration_mg_ml / float(told.cnr[i]),
                "limit_3_sigma_mg_ml": SIGMAS * rod.concentration_mg_ml / float(told.cnr[i]),
                "voxel_sd_mg_ml": dict(zip(told.materials, told.voxel_sd_mg_ml[i].tolist(), strict=True)),
                "ray_sd_mm_g_cm3": dict(zip(told.materials, told.ray_sd[i].tolist(), strict=True)),
            }
            for i, rod in enumerate(sample.targets)
        ],
    }


def _text(designs: Mapping[str, Design], sample: Sample) -> str:
    """Return designs side by side, for a person."""
    names = [*designs]
    told = [designs[name] for name in names]

    def of_filters(design: Design) -> str:
        return " ".join(f"{name} {mm:g} mm" for name, mm in design.beam.filters_mm.items() if mm) or "none"

    rows = [
        ("", names),
        ("voltage, kVp", [f"{d.beam.kvp:g}" for d in told]),
        ("filters", [of_filters(d) for d in told]),
        ("thresholds, keV", [" | ".join(" ".join(f"{kev:g}" for kev in one) for one in d.passes_kev) for d in told]),
        ("charge of a view, mAs", [f"{d.forecast.mas:.4g}" for d in told]),
        ("current, mA; beam of a view, s", [f"{d.current_ma:.3g}; {d.view_s:.3g}" for d in told]),
        ("open beam, counts/s in a pixel", [f"{d.open_rate_per_s:.3g}" for d in told]),
        ("dose in the sample, mGy", [f"{d.dose_mgy:.3g}" for d in told]),
        ("air kerma on the axis, mGy", [f"{d.kerma_mgy:.3g}" for d in told]),
        ("half-value layer, mm aluminium", [f"{d.half_value_mm:.3g}" for d in told]),
    ]
    for i, rod in enumerate(sample.targets):
        cells = [
            f"{d.forecast.cnr[i]:.3g}; {ROSE * rod.concentration_mg_ml / d.forecast.cnr[i]:.3g} mg/mL" for d in told
        ]
        rows.append((f"{rod.agent} {rod.concentration_mg_ml:g} mg/mL: CNR; limit", cells))
    widths = [max(len(cells[k]) for _, cells in rows) for k in range(len(names))]
    first = max(len(title) for title, _ in rows)
    lines = [
        f"{title:<{first}}  " + "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        for title, cells in rows
    ]
    return "\n".join(lines)
