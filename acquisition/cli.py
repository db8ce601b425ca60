"""Commands that hold a detector, or look for one and what it needs; and that from foreign files."""

from __future__ import annotations

import logging
import os
import sys
import threading
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from firmware_iface.errors import CalibrationMissing, DataLost, WrongUsage

if TYPE_CHECKING:
    from acquisition.plan import Plan
    from calibration.progress import Console
    from calibration.store import Calibration

Device = Annotated[str, typer.Option("--device", envvar="MPXCT_DEVICE", help="URL of the detector: usb: or sim:demo.")]
Stage = Annotated[str, typer.Option("--stage", help="URL of the stage: line: is behind the detector; see devices.")]
Tube = Annotated[str, typer.Option("--tube", help="URL of the tube: line: is behind the detector; see devices.")]
Json = Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")]
Force = Annotated[
    bool,
    typer.Option("--force", help="Use a calibration of another chip, mode, gain, bias or temperature."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists already.")]


class CalibrationStep(StrEnum):
    """What `mpxct calibrate` can do; each step builds on those before it."""

    BIAS = "bias"
    EQUALISE = "equalise"
    ENERGY = "energy"
    PIXELS = "pixels"
    COUNT_RATE = "count-rate"
    MATERIALS = "materials"
    GEOMETRY = "geometry"
    WEDGE = "wedge"
    RESPONSE = "response"
    ALL = "all"


def register(app: typer.Typer) -> None:
    """Add the commands of this package."""
    app.command()(devices)
    app.command()(doctor)
    app.command()(acquire)
    app.command()(recover)
    app.command()(calibrate)
    app.command()(convert)


def devices(ctx: typer.Context, json: Json = False) -> None:
    """List the detectors that --device can name, and the forms of the URLs of stages and tubes.

    Example: mpxct devices
    """
    from acquisition.gantry import list_gantries
    from firmware_iface.transport import list_devices

    console: Console = ctx.obj
    listed, gantries = list_devices(), list_gantries()
    both = {**listed, **gantries}
    width = max(map(len, both))
    figures = {
        name: [{"url": url, "text": text} for url, text in of.items()]
        for name, of in (("devices", listed), ("gantries", gantries))
    }
    console.emit(figures, "\n".join(f"{url:<{width}}  {text}" for url, text in both.items()), as_json=json)


def doctor(ctx: typer.Context, json: Json = False) -> None:
    """Check this machine: packages, USB and its permissions, GPU, graphics and disk; say what to do about each fault.

    Example: mpxct doctor
    """
    from acquisition.doctor import Level, examine
    from acquisition.machine import gather

    console: Console = ctx.obj
    findings = examine(gather(Path()))
    worst = max(findings, key=lambda finding: list(Level).index(finding.level)).level
    figures = {
        "worst": worst.value,
        "findings": [
            {"level": each.level.value, "topic": each.topic, "text": each.text, "remedy": each.remedy}
            for each in findings
        ],
    }
    lines = [
        f"{each.level:<5} {each.topic:<13} {each.text}" + (f"\n{'':<20}{each.remedy}" if each.remedy else "")
        for each in findings
    ]
    console.emit(figures, "\n".join(lines), as_json=json)
    if worst is Level.FAIL:
        raise typer.Exit(1)


def acquire(
    ctx: typer.Context,
    plan: Annotated[Path, typer.Argument(help="Plan of the scan, a TOML file.")],
    device: Device = "usb:",
    calibration: Annotated[Path | None, typer.Option(help="Calibration file of this detector and mode.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Scan file to write; scan.h5, but for a snapshot, which is only shown."),
    ] = None,
    stage: Stage = "line:",
    tube: Tube = "line:",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and time the plan; touch nothing.")] = False,
    overwrite: Overwrite = False,
    force: Force = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a scan that was broken off.")] = False,
    reconnect_s: Annotated[
        float, typer.Option("--reconnect-s", min=0, help="How long to wait for a device that was unplugged.")
    ] = 30.0,
    retries: Annotated[
        int, typer.Option("--retries", min=0, help="How often to repeat a step that tube or stage broke.")
    ] = 0,
    verbose: Annotated[bool, typer.Option("--verbose", help="Tell everything, in the log and here.")] = False,
    json: Json = False,
) -> None:
    """Run a scan as planned, into one file.

    What happens is written beside it, into NAME.log and NAME.jsonl. Ctrl-C once stops after the present frame, twice at
    once; either way the same command with --resume goes on where it was broken off.

    Example: mpxct acquire plan.toml --device sim:demo --calibration calibration.h5 -o scan.h5
    """
    from acquisition.plan import load_plan, refuse_foreign_pixels

    console: Console = ctx.obj
    planned = load_plan(plan)
    refuse_foreign_pixels(planned)
    if dry_run:
        _emit_plan(console, planned, as_json=json)
        return
    measured = _load_calibration(calibration)
    if verbose:
        logging.basicConfig(format="%(message)s", stream=sys.stderr)
        logging.getLogger("mpxct").setLevel(logging.DEBUG)
    if planned.scan.kind == "live" or (planned.scan.kind == "snap" and output is None):
        if output is not None:
            raise WrongUsage(f"a live picture is shown, never written; --output is {output}")
        _look(console, (device, stage, tube), planned, measured, is_forced=force, as_json=json)
        return
    from acquisition.instrument import open_instrument
    from acquisition.runner import Endurance, run_scan

    stop = threading.Event()
    with open_instrument(device, stage, tube) as instrument:
        work = run_scan(
            instrument,
            planned,
            measured,
            output or Path("scan.h5"),
            overwrite=overwrite,
            is_forced=force,
            resume=resume,
            endurance=Endurance(reconnect_s=reconnect_s, retries=retries),
            stop=stop,
            is_verbose=verbose,
        )
        summary = console.track(work, stop.set)
    for note in summary.notes:
        console.say(note)
    figures = {
        "path": str(summary.path),
        "status": summary.status.value,
        "n_frames": summary.n_frames,
        "n_lost": summary.n_lost,
        "n_resumed": summary.n_resumed,
        "n_repeated": summary.n_repeated,
        "duration_s": round(summary.duration_s, 3),
        "calibration": measured.identity,
    }
    text = f"{summary.path}: {summary.n_frames} frames, {summary.n_lost} lost, {summary.duration_s:.1f} s"
    console.emit(figures, text, as_json=json)
    if summary.n_lost:
        raise DataLost(
            f"{summary.n_lost} of {summary.n_frames} frames were lost; {summary.path} marks them in their places",
            hint="check the cable; the scan can be reconstructed without them",
        )


def _look(
    console: Console,
    urls: tuple[str, str, str],
    plan: Plan,
    calibration: Calibration,
    *,
    is_forced: bool,
    as_json: bool,
) -> None:
    """Show what frames count that nobody keeps; Ctrl-C is how a live picture ends."""
    from acquisition.instrument import open_instrument
    from acquisition.live import look

    stop = threading.Event()
    with open_instrument(*urls) as instrument:
        seen = console.track(look(instrument, plan, calibration, is_forced=is_forced, stop=stop), stop.set)
    if seen.newest is None:
        raise DataLost(f"no frame came whole; {seen.n_lost} were lost", hint="check the cable and `mpxct doctor`")
    counts = seen.newest.counts
    figures = {
        "n_frames": seen.n_frames,
        "n_lost": seen.n_lost,
        "rate_per_s": round(seen.queues[0].rate_per_s, 2),
        "thresholds": list(seen.newest.thresholds),
        "mean_counts": [round(float(plane.mean()), 3) for plane in counts],
        "highest_counts": [int(plane.max()) for plane in counts],
    }
    lines = [f"{seen.n_frames} frames, {seen.n_lost} lost; the newest:"]
    lines += [
        f"threshold {number}: {mean:.1f} counts a pixel, {highest} at most"
        for number, mean, highest in zip(
            seen.newest.thresholds, figures["mean_counts"], figures["highest_counts"], strict=True
        )
    ]
    console.emit(figures, "\n".join(lines), as_json=as_json)


def recover(
    ctx: typer.Context,
    source: Annotated[Path, typer.Argument(help="Scan file that a crash or a bad disk left.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Scan file to write.")],
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Copy what is whole of a broken scan into a new file; the broken one stays as it is.

    A scan that was only broken off needs no recovery: acquire --resume goes on with it.

    Example: mpxct recover scan.partial.h5 -o rescued.h5
    """
    from acquisition.recover import recover as copied

    console: Console = ctx.obj
    found = console.track(copied(source, output, overwrite=overwrite))
    figures = {
        "path": str(found.path),
        "status": found.status.value,
        "n_planned": found.n_planned,
        "n_frames": found.n_frames,
        "n_lost": found.n_lost,
        "n_damaged": found.n_damaged,
        "damages": list(found.damages),
    }
    planned = "" if found.n_planned is None else f" of {found.n_planned}"
    text = f"{found.path}: {found.status.value}, {found.n_frames}{planned} frames, {found.n_lost} lost"
    console.emit(figures, "\n".join((text, *found.damages)), as_json=json)
    if found.n_damaged:
        raise DataLost(
            f"{found.n_damaged} of {found.n_frames} frames cannot be read any more; {found.path} marks them as lost"
        )


def _emit_plan(console: Console, plan: Plan, *, as_json: bool) -> None:
    from acquisition.dry_run import describe, figures
    from acquisition.steps import check

    console.emit(figures(plan), describe(plan), as_json=as_json)
    if wrong := check(plan):
        raise WrongUsage(f"the plan cannot be done: {'; '.join(wrong)}")


def _load_calibration(path: Path | None) -> Calibration:
    from calibration.store import load

    if path is None or not path.exists():
        raise CalibrationMissing(
            "a scan needs a calibration, and none was given" if path is None else f"there is no calibration {path}",
            hint="make one: mpxct calibrate all --device URL -o calibration.h5; then give it with --calibration",
        )
    return load(path)


def calibrate(
    ctx: typer.Context,
    step: Annotated[CalibrationStep, typer.Argument(help="One step, or all in their order.")],
    device: Device = "usb:",
    plan: Annotated[Path | None, typer.Option(help="Plan with the mode, thresholds, sources and cells.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Calibration file.")] = Path("calibration.h5"),
    tables: Annotated[
        Path | None, typer.Option(help="equalise: predict trims from tables thresholdMeansN.txt; no detector.")
    ] = None,
    highest_trim: Annotated[int, typer.Option(help="equalise --tables: the trim of the tables' fourth column.")] = 15,
    overwrite: Overwrite = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Calibrate the detector, step by step or in one go, into one file.

    `all` runs the steps that the plan names and makes a new file; one step updates the file that is there.
    `equalise --tables` only says what spread the trims that follow from measured tables leave.

    Example: mpxct calibrate all --device sim:demo -o calibration.h5
    """
    from acquisition.calibrate import steps
    from acquisition.instrument import open_instrument
    from acquisition.plan import Plan, load_plan, refuse_foreign_pixels
    from calibration.store import load, save

    console: Console = ctx.obj
    if tables is not None:
        _equalise_tables(console, step, tables, highest_trim, as_json=json)
        return
    planned = load_plan(plan) if plan is not None else Plan()
    refuse_foreign_pixels(planned)
    is_all = step is CalibrationStep.ALL
    if is_all and output.exists() and not overwrite:
        raise WrongUsage(f"{output} exists already", hint="choose another name, or allow overwriting (--overwrite)")
    if not os.access(output.parent, os.W_OK):
        raise WrongUsage(f"{output} cannot be written: no folder {output.parent} may be written to")
    before = load(output) if output.exists() and not is_all else None
    if before is None and not is_all and steps.STEPS[step].needs:
        before = _load_calibration(output)
    with open_instrument(device) as instrument:
        if is_all:
            work = steps.calibrate_all(instrument, planned)
        else:
            known = before or steps.begin(instrument, planned)
            work = steps.run_step(steps.STEPS[step], instrument, planned, known, is_forced=force)
        result = console.track(work)
    save(result, output)
    figures = {"path": str(output), "report": str(console.report(output)), **_figures(result)}
    console.emit(figures, "\n".join(f"{name:<22} {value}" for name, value in figures.items()), as_json=json)


def _equalise_tables(
    console: Console, step: CalibrationStep, tables: Path, highest_trim: int, *, as_json: bool
) -> None:
    from calibration import trim_tables

    if step is not CalibrationStep.EQUALISE:
        raise WrongUsage(f"--tables with step {step.value}; allowed: equalise")
    if not 1 <= highest_trim <= 255:
        raise WrongUsage(f"--highest-trim is {highest_trim}; allowed: 1 to 255, such as 15 or 31")
    found = trim_tables.figures(tables, highest_trim=highest_trim)
    console.emit({"chips": found}, trim_tables.text(found), as_json=as_json)


def _figures(calibration: Calibration) -> dict[str, object]:
    """Return what tells whether a calibration is good; None where a step has not been done yet."""
    import numpy as np

    before_kev, after_kev = calibration.sigmas_kev
    equalised, end_point = calibration.equalisation, calibration.end_point
    limit_kev = None if equalised is None else equalised.limit_dac / calibration.gain_dac_per_kev
    used = sorted({line.threshold for line in calibration.lines})
    return {
        "identity": calibration.identity,
        "steps": [record.step for record in calibration.history],
        "sigma_before_kev": round(before_kev, 3) if calibration.lines else None,
        "sigma_after_kev": round(after_kev, 3) if calibration.lines else None,
        "sigma_limit_kev": round(float(np.sqrt(np.mean(limit_kev[used] ** 2))), 3)
        if limit_kev is not None and used
        else None,
        "residual_rms_kev": round(calibration.residual_rms_kev, 3) if calibration.lines else None,
        "end_point_error_kev": round(end_point.error_kev, 3) if end_point else None,
        "n_bad_pixels": int(np.count_nonzero(calibration.is_bad)),
        "materials": list(calibration.basis.materials) if calibration.basis else None,
        "alignment": calibration.alignment.figures if calibration.alignment else None,
        "count_rate": calibration.count_rate.figures if calibration.count_rate else None,
        "wedge": calibration.thickness.figures if calibration.thickness else None,
        "response": calibration.response.figures if calibration.response else None,
    }


def convert(
    ctx: typer.Context,
    source: Annotated[Path, typer.Argument(help="Merlin file (.mib); the .hdr file beside it is read too.")],
    target: Annotated[Path, typer.Argument(help="Scan file to write (.h5).")],
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Convert a Merlin file into a scan file.

    Example: mpxct convert run1.mib run1.h5
    """
    from acquisition.convert import convert_merlin
    from acquisition.scan_file import read_scan

    console: Console = ctx.obj
    scan = read_scan(console.track(convert_merlin(source, target, overwrite=overwrite)))
    figures = {"path": str(target), "shape": list(scan.shape), "dtype": str(scan.readout.dtype)}
    console.emit(figures, f"{target}: {' x '.join(map(str, scan.shape))} {scan.readout.dtype}", as_json=json)
