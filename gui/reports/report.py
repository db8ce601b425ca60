"""The report of a scan as one HTML file that needs nothing else: no other file, no network, no script.

Whoever has the numbers fills a `ReportData`; what was not measured stays None or empty, and the report says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from acquisition.scan import Event
from calibration.store import Calibration
from firmware_iface.errors import WrongUsage
from gui.colour import GREY, colours_of
from gui.picture import INK, write_whole
from gui.reports import calibration_report
from gui.reports.page import cards, label, note, page, picture, plots, svg, table
from reconstruction.quality import SOLVENT, Regression, VialStatistics, cross_talk_mg_ml, regression

SHOWN_EVENTS = 200


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReportData:
    """Everything a report can show.

    Attributes
    ----------
    title, created : str
        Heading, and date and time as they are to be read.
    picture_png : bytes
        The picture on top, as a PNG file; empty for none.
    key_figures : mapping of str to str
        A few results with their units, shown large beside the picture.
    vials : tuple of VialStatistics
        What the volume reads in every vial; slopes, errors and cross-talk come from these.
    calibration : Calibration or None
        For equalisation, energy scale, bad pixels and identity.
    n_frames, n_lost : int
        Frames of the scan, lost ones included, and how many of them were lost.
    events : tuple of Event
        What happened during the scan.
    timings_s : mapping of str to float
        How long each stage took, in order.
    plan_text : str
        The plan as TOML.
    provenance : mapping of str to str
        Files, versions, identities.
    """

    title: str
    created: str
    picture_png: bytes = b""
    key_figures: Mapping[str, str] = field(default_factory=dict)
    vials: tuple[VialStatistics, ...] = ()
    calibration: Calibration | None = None
    n_frames: int = 0
    n_lost: int = 0
    events: tuple[Event, ...] = ()
    timings_s: Mapping[str, float] = field(default_factory=dict)
    plan_text: str = ""
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.n_lost <= self.n_frames:
            raise ValueError(f"{self.n_lost} of {self.n_frames} frames lost cannot be")


def save_report(data: ReportData, path: str | Path) -> Path:
    """Write the report, whole or not at all."""
    return write_whole(path, report_html(data).encode())


def report_html(data: ReportData) -> str:
    """Return the report as one HTML text."""
    calibrated = (
        [("Calibration", note("No calibration was given."))]
        if data.calibration is None
        else calibration_report.sections(data.calibration)
    )
    return page(
        data.title,
        _summary(data),
        [
            ("Concentrations", _concentrations(data)),
            ("Cross-talk", _cross_talk(data)),
            *calibrated,
            ("Losses and events", _events(data)),
            ("Time", _timings(data.timings_s)),
            ("Provenance", _provenance(data)),
        ],
    )


def _summary(data: ReportData) -> str:
    shown = picture(data.picture_png, "Colour picture of the materials") if data.picture_png else ""
    lost = f'<p class="bad">{data.n_lost} of {data.n_frames} frames were lost.</p>' if data.n_lost else ""
    return (
        f'<header><h1>{escape(data.title)}</h1>\n<div class="soft">{escape(data.created)}</div>\n'
        f"{lost}{cards(data.key_figures)}\n{shown}</header>"
    )


def _concentrations(data: ReportData) -> str:
    known = [s for s in data.vials if _true_mg_ml(s) is not None]
    if not known:
        return note("No vials of known concentration were measured.")
    vials = table(
        ("vial", "true, mg/mL", "measured, mg/mL", "spread, mg/mL", "error, mg/mL", "voxels"),
        (
            (
                _name(s), f"{true:.2f}", f"{s.mean_mg_ml(s.vial.material):.2f}", f"{s.sd_mg_ml(s.vial.material):.2f}",
                f"{s.mean_mg_ml(s.vial.material) - true:+.2f}", str(s.n_voxels),
            )
            for s in known
            if (true := _true_mg_ml(s)) is not None
        ),
    )  # fmt: skip
    fits = table(
        ("material", "slope", "offset, mg/mL", "R²", "worst error, mg/mL"),
        (
            (name, f"{fit.slope:.3f}", f"{fit.offset_mg_ml:+.2f}", f"{fit.r2:.4f}", f"{fit.worst_mg_ml:.2f}")
            for name, fit in fits_of(data.vials).items()
        ),
    )
    return f"{svg(concentration_figure(data.vials), 'Measured against true concentrations')}\n{fits}\n{vials}"


def _true_mg_ml(statistics: VialStatistics) -> float | None:
    return None if statistics.vial.material == SOLVENT else statistics.vial.concentration_mg_ml


def _name(statistics: VialStatistics) -> str:
    true = _true_mg_ml(statistics)
    return statistics.vial.material if true is None else f"{statistics.vial.material} {true:g}"


def fits_of(vials: Sequence[VialStatistics]) -> dict[str, Regression]:
    """Fit measured on true concentration of every material that has two different concentrations."""
    fits = {}
    for material in dict.fromkeys(s.vial.material for s in vials if _true_mg_ml(s) is not None):
        with suppress(WrongUsage):  # too few vials for a line; the table of vials still shows them
            fits[material] = regression(vials, material)
    return fits


def _cross_talk(data: ReportData) -> str:
    if not data.vials:
        return note("Not measured.")
    materials = data.vials[0].materials
    head = "".join(f'<th class="n">{escape(name)}</th>' for name in materials)
    rows = "".join(
        f"<tr><td>{escape(_name(s))}</td>"
        + "".join(
            f'<td class="n{" own" if name == s.vial.material else ""}">{s.mean_mg_ml(name):.2f}</td>'
            for name in materials
        )
        + "</tr>"
        for s in data.vials
    )
    wrong = table(
        ("material", "rms in the vials without it, mg/mL"),
        ((name, f"{value:.2f}") for name, value in cross_talk_mg_ml(data.vials).items()),
    )
    return (
        '<p class="soft">Mean of every material in every vial, in mg/mL; the vial\'s own material is marked.</p>'
        f'<div class="wide"><table><tr><th>vial</th>{head}</tr>{rows}</table></div>\n{wrong}'
    )


def _events(data: ReportData) -> str:
    if not data.n_frames and not data.events:
        return note("No scan was given.")
    share = 100 * data.n_lost / data.n_frames if data.n_frames else 0.0
    lost = f"<p>{data.n_lost} of {data.n_frames} frames were lost ({share:.2f} %).</p>"
    start_s = data.events[0].time_s if data.events else 0.0
    rows = ((f"{e.time_s - start_s:.1f}", str(e.sequence), e.kind, e.text) for e in data.events[:SHOWN_EVENTS])
    listed = table(("time, s", "frame", "kind", "what"), rows, n_text=4) if data.events else ""
    n_more = len(data.events) - SHOWN_EVENTS
    return lost + listed + (f'<p class="soft">{n_more} more events are in the scan file.</p>' if n_more > 0 else "")


def _timings(timings_s: Mapping[str, float]) -> str:
    if not timings_s:
        return note("Not recorded.")
    rows = [*timings_s.items(), ("in all", sum(timings_s.values()))]
    return table(("stage", "time, s"), ((name, f"{duration_s:.1f}") for name, duration_s in rows))


def _provenance(data: ReportData) -> str:
    rows = dict(data.provenance)
    if data.calibration is not None:
        c = data.calibration
        rows |= {
            "calibration": c.identity,
            "calibrated": c.created,
            "device": c.device,
            "chip": c.chip_id,
            "mode": f"{'colour' if c.is_colour else 'fine pitch'}, {'charge summing' if c.is_csm else 'single pixel'}, "
            f"{c.gain}, {c.bias_v:g} V",
        }
    known = table(("what", "which"), rows.items(), n_text=2) if rows else note("Not recorded.")
    plan = f"<h3>Plan</h3><pre>{escape(data.plan_text)}</pre>" if data.plan_text else ""
    return known + plan


def concentration_figure(vials: Sequence[VialStatistics]) -> Figure:
    """Draw measured against true concentrations, one panel per material, with the identity line (grey)."""
    materials = list(dict.fromkeys(s.vial.material for s in vials if _true_mg_ml(s) is not None))
    colours, fits = colours_of(materials), fits_of(vials)
    figure, panels = plots(len(materials))
    for axes, material in zip(panels, materials, strict=True):
        points = [s for s in vials if s.vial.material in (material, SOLVENT)]
        true = np.array([_true_mg_ml(s) or 0.0 for s in points])
        measured = np.array([s.mean_mg_ml(material) for s in points])
        spread = np.array([s.sd_mg_ml(material) for s in points])
        ends = np.array([min(0.0, 1.1 * float((measured - spread).min())), 1.12 * float((measured + spread).max())])
        ends[1] = max(ends[1], 1.12 * true.max())
        axes.plot(ends, ends, color="#b0b0b0", linewidth=1, zorder=1)
        if material in fits:
            line = fits[material].slope * ends + fits[material].offset_mg_ml
            axes.plot(ends, line, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=2)
        colour = "#808080" if colours[material] == GREY else colours[material]
        axes.errorbar(
            true, measured, yerr=spread, fmt="o", color=colour, ecolor=colour, capsize=3, markersize=7,
            markeredgecolor=INK, markeredgewidth=0.6, zorder=3,
        )  # fmt: skip
        axes.set_xlim(*ends)
        axes.set_ylim(*ends)
        axes.set_aspect("equal")
        label(axes, material, "true, mg/mL", "measured, mg/mL")
    return figure
