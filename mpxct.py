"""The front door: one command line, put together from the packages' own ``cli.py`` files.

This is the only module, besides tests, that knows both the product and the simulator.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

import acquisition.cli
import gui.cli
import reconstruction.cli
import sim.cli
from calibration.progress import Console, Progress
from firmware_iface.errors import DataLost, MpxctError

if TYPE_CHECKING:
    from acquisition.plan import Plan
    from acquisition.runner import ScanSummary
    from calibration.store import Calibration
    from reconstruction.phantom_file import Phantom
    from reconstruction.quality import VialStatistics

T = TypeVar("T")
INTERRUPTED = 130
PLAIN_LINE_EVERY_S = 5.0
DEMO = "sim:demo"
DEMO_SLICES_MM = (-4.0, 4.0)
"""The vials are read where the cone is narrow and every slice is inside the field."""


class Terminal:
    """Bars for a person, plain lines for a log; figures alone go to standard output."""

    def track(self, work: Generator[Progress, None, T], stop: Callable[[], object] | None = None) -> T:
        """Run a long work to its end under a progress bar and return its result.

        The first Ctrl-C, or a SIGTERM, calls `stop` where there is one; the second breaks the work off at once.
        """
        with self._signals(stop):
            try:
                return self._bar(work) if sys.stderr.isatty() else self._lines(work)
            except KeyboardInterrupt:
                work.close()
                raise

    @contextmanager
    def _signals(self, stop: Callable[[], object] | None) -> Iterator[None]:
        """Take Ctrl-C and SIGTERM in hand, each only where somebody has not done so already."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        n_came = 0

        def on_signal(number: int, _: object) -> None:
            nonlocal n_came
            n_came += 1
            if stop is not None and n_came == 1:
                self.say(f"{signal.Signals(number).name}: stopping after the present frame; once more aborts it")
                stop()
            elif n_came <= (1 if stop is None else 2):  # a third must not break off what leaves the beam off
                raise KeyboardInterrupt

        before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _bar(self, work: Generator[Progress, None, T]) -> T:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description:<32}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with RichProgress(*columns, console=RichConsole(stderr=True)) as bars:
            tasks = {}
            while True:
                try:
                    step = next(work)
                except StopIteration as end:
                    return end.value
                if step.stage not in tasks:
                    tasks[step.stage] = bars.add_task(step.stage, total=step.total or None)
                bars.update(tasks[step.stage], completed=step.done, total=step.total or None)

    def _lines(self, work: Generator[Progress, None, T]) -> T:
        stage, began_s, next_line_s, last = "", 0.0, 0.0, None
        while True:
            try:
                step = next(work)
            except StopIteration as end:
                return end.value
            if step == last:  # it waits, and lets itself be stopped meanwhile
                continue
            last = step
            now_s = time.monotonic()
            if step.stage != stage:
                stage, began_s, next_line_s = step.stage, now_s, now_s + PLAIN_LINE_EVERY_S
                self.say(f"{stage} ...")
            elif now_s >= next_line_s or step.done == step.total:
                next_line_s = now_s + PLAIN_LINE_EVERY_S
                left_s = (now_s - began_s) * (step.total - step.done) / max(step.done, 1)
                of = f"/{step.total}, about {left_s:.0f} s left" if step.total else ""
                self.say(f"{stage} {step.done}{of}")

    def say(self, text: str) -> None:
        """Tell the person something on standard error."""
        print(text, file=sys.stderr, flush=True)

    def emit(self, figures: Mapping[str, object], text: str, *, as_json: bool) -> None:
        """Print the result on standard output: as one JSON object, or as text for people."""
        print(json.dumps(figures) if as_json else text, flush=True)

    def picture(self, file: Path) -> Path:
        """Draw a file of ours beside it, under its own name."""
        from gui.cli import draw

        return draw(file, file.with_suffix(".png"))

    def report(self, file: Path) -> Path:
        """Write the report of a calibration file beside it, under its own name."""
        from gui.cli import write_report

        return write_report(file, file.with_suffix(".html"))


app = typer.Typer(
    name="mpxct",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def prepare(ctx: typer.Context) -> None:
    """Spectral X-ray CT with Medipix-family detectors: from USB to materials.

    Start with: mpxct demo. With --debug anywhere, errors show where they came from.
    """
    console: Console = Terminal()
    ctx.obj = console


@app.command()
def demo(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the files, the picture and the report.")] = Path(
        "demo"
    ),
    device: Annotated[str, typer.Option(help="The simulated instrument; its faults are options of the URL.")] = DEMO,
    plan_file: Annotated[Path | None, typer.Option("--plan", help="Another plan than the demo's own.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Walk the whole way on the simulated instrument: calibrate, scan, reconstruct, decompose, picture, report.

    Example: mpxct demo --out demo
    """
    from acquisition.calibrate.steps import calibrate_all
    from acquisition.instrument import open_instrument
    from acquisition.plan import Plan, load_plan
    from acquisition.runner import run_scan
    from calibration import store
    from reconstruction import backend
    from reconstruction.materials import decompose_volume
    from reconstruction.phantom_file import phantom_to_toml
    from reconstruction.pipeline import reconstruct_scan
    from reconstruction.quality import vial_statistics
    from reconstruction.recipe import Recipe
    from reconstruction.volume import save_volume

    console: Console = ctx.obj
    plan = load_plan(plan_file) if plan_file is not None else Plan()
    seconds: dict[str, float] = {}
    out.mkdir(parents=True, exist_ok=True)
    # Each stage opens the device afresh and reads what the one before it wrote, as the separate commands do.
    with _timed(seconds, "calibrate"), open_instrument(device) as instrument:
        calibration = console.track(calibrate_all(instrument, plan))
        store.save(calibration, out / "calibration.h5")
    with _timed(seconds, "acquire"), open_instrument(device) as instrument:
        summary = console.track(run_scan(instrument, plan, calibration, out / "scan.h5", overwrite=True))
    with _timed(seconds, "reconstruct"):
        volume = console.track(reconstruct_scan(summary.path, Recipe(use_gpu=backend.has_gpu())))
        save_volume(volume, out / "volume.h5")
    with _timed(seconds, "decompose"):
        materials = decompose_volume(volume, is_weighted=True)
        save_volume(materials, out / "materials.h5")
    with _timed(seconds, "picture"):
        picture = console.picture(out / "materials.h5").replace(out / "picture.png")
    phantom = _demo_phantom()
    (out / "phantom.toml").write_text(phantom_to_toml(phantom), encoding="utf-8")
    vials = vial_statistics(materials, phantom.vials, z_range_mm=DEMO_SLICES_MM)
    figures = _demo_figures(vials, calibration, summary, seconds)
    _write_demo_report(out / "report.html", plan, picture, figures, vials, calibration, summary)
    console.emit(figures, _demo_text(figures, out), as_json=as_json)
    if summary.n_lost:
        raise DataLost(
            f"{summary.n_lost} of {summary.n_frames} frames were lost; the figures stand without them",
            hint=f"{summary.path} marks them in their places, and the report lists them",
        )


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    began_s = time.monotonic()
    yield
    seconds[stage] = round(time.monotonic() - began_s, 2)


def _demo_phantom() -> Phantom:
    """Return what the phantom's maker states of it."""
    from reconstruction.phantom_file import Phantom, Vial
    from sim.phantom import vials_phantom

    vials = tuple(
        Vial(
            material=insert.material,
            concentration_mg_ml=insert.concentration_mg_ml,
            x_mm=insert.x_mm,
            y_mm=insert.y_mm,
            radius_mm=insert.radius_mm,
        )
        for insert in vials_phantom().inserts
    )
    return Phantom(name="vials of the demo", z_range_mm=DEMO_SLICES_MM, vials=vials)


def _demo_figures(
    vials: Sequence[VialStatistics], calibration: Calibration, summary: ScanSummary, seconds: Mapping[str, float]
) -> dict[str, object]:
    from reconstruction.quality import SOLVENT, regression, total_cross_talk_mg_ml

    agents = dict.fromkeys(vial.vial.material for vial in vials if vial.vial.material != SOLVENT)
    regressions = {agent: regression(vials, agent) for agent in agents}
    return {
        "seconds": dict(seconds),
        "materials": {
            agent: {
                "r2": round(fit.r2, 5),
                "slope": round(fit.slope, 4),
                "offset_mg_ml": round(fit.offset_mg_ml, 3),
                "worst_mg_ml": round(fit.worst_mg_ml, 3),
            }
            for agent, fit in regressions.items()
        },
        "crosstalk_rmse_mg_ml": round(total_cross_talk_mg_ml(vials), 3),
        "threshold_sigma_kev": {
            name: round(sigma, 3) for name, sigma in zip(("before", "after"), calibration.sigmas_kev, strict=True)
        },
        "lost_frames": summary.n_lost,
    }


def _write_demo_report(
    path: Path,
    plan: Plan,
    picture: Path,
    figures: Mapping[str, object],
    vials: tuple[VialStatistics, ...],
    calibration: Calibration,
    summary: ScanSummary,
) -> None:
    from datetime import UTC, datetime

    from acquisition.plan import plan_to_toml
    from acquisition.scan_file import read_scan
    from gui.reports.report import ReportData, save_report

    scan = read_scan(summary.path)
    sigmas: Mapping[str, float] = figures["threshold_sigma_kev"]  # pyright: ignore[reportAssignmentType]
    save_report(
        ReportData(
            title="mpxct demo: materials by colour CT",
            created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            picture_png=picture.read_bytes(),
            key_figures={
                "cross-talk": f"{figures['crosstalk_rmse_mg_ml']} mg/mL",
                "thresholds, sigma before and after": f"{sigmas['before']} to {sigmas['after']} keV",
                "energy residual, rms": f"{calibration.residual_rms_kev:.3f} keV",
                "lost frames": f"{summary.n_lost} of {summary.n_frames}",
            },
            vials=vials,
            calibration=calibration,
            n_frames=summary.n_frames,
            n_lost=summary.n_lost,
            events=scan.events,
            timings_s=figures["seconds"],  # pyright: ignore[reportArgumentType]
            plan_text=plan_to_toml(plan),
            provenance={
                "software": calibration.software,
                "calibration": calibration.identity,
                "device": calibration.device,
                "chip": calibration.chip_id,
                "scan": str(summary.path),
            },
        ),
        path,
    )


def _demo_text(figures: Mapping[str, object], out: Path) -> str:
    materials: Mapping[str, Mapping[str, float]] = figures["materials"]  # pyright: ignore[reportAssignmentType]
    lines = [f"{'material':<16}{'R2':>9}{'slope':>9}{'offset':>9}{'worst':>9}  mg/mL"]
    lines += [
        f"{name:<16}{m['r2']:>9.4f}{m['slope']:>9.3f}{m['offset_mg_ml']:>9.2f}{m['worst_mg_ml']:>9.2f}"
        for name, m in materials.items()
    ]
    lines.append(f"cross-talk {figures['crosstalk_rmse_mg_ml']} mg/mL; seconds {figures['seconds']}")
    lines.append(f"open {out / 'report.html'}")
    return "\n".join(lines)


acquisition.cli.register(app)
reconstruction.cli.register(app)
gui.cli.register(app)
sim.cli.register(app)


def main() -> None:
    """Run the command line; errors become one sentence, a hint and an exit code."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    is_debug = len(arguments) < len(sys.argv) - 1
    try:
        app(arguments)
    except MpxctError as error:
        if is_debug:
            raise
        sys.exit(_fail(str(error), error.hint, error.exit_code))
    except OSError as error:
        if is_debug:
            raise
        sys.exit(_fail(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), "", 1))
    except SystemExit as end:  # typer's own: wrong usage is 2, Ctrl-C is 130
        if end.code == INTERRUPTED:
            _fail("interrupted; a scan that had begun is kept as a valid file that says it is partial", "", INTERRUPTED)
        raise


def _fail(message: str, hint: str, code: int) -> int:
    print(f"mpxct: {message}", file=sys.stderr)
    if hint:
        print(f"       {hint}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
