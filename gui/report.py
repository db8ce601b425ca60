"""The report of a scan as one HTML file that needs nothing else: no other file, no network, no script.

Whoever has the numbers fills a `ReportData`; what was not measured stays None or empty, and the report says so.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from acquisition.scan_file import Event
from calibration.pixels import PixelClass
from calibration.store import Calibration
from calibration.equalisation import mean_and_sigma
from firmware_iface.errors import WrongUsage
from gui.colour import GREY, colours_of
from gui.picture import INK, SMALL_PT, SOFT_INK, calibration_figure, name_of, png_bytes, write_whole
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
    sections = [
        ("Concentrations", _concentrations(data)),
        ("Cross-talk", _cross_talk(data)),
        ("Equalisation", _equalisation(data.calibration)),
        ("Energy scale", _energy_scale(data.calibration)),
        ("Bad pixels", _bad_pixels(data.calibration)),
        ("Losses and events", _events(data)),
        ("Time", _timings(data.timings_s)),
        ("Provenance", _provenance(data)),
    ]
    body = "\n".join(f"<section><h2>{escape(name)}</h2>\n{text}\n</section>" for name, text in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(data.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"{_summary(data)}\n{body}\n</main>\n</body>\n</html>\n"
    )


_STYLE = """
body { margin: 0; background: #f4f4f2; color: #1a1a1a; font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif }
main { max-width: 1080px; margin: 0 auto; padding: 24px }
header, section { background: #fff; border: 1px solid #e3e3e0; border-radius: 8px;
  padding: 20px 24px; margin: 0 0 18px }
h1 { margin: 0; font-size: 28px } h2 { margin: 0 0 12px; font-size: 20px } h3 { margin: 18px 0 6px; font-size: 16px }
.soft { color: #5a5a5a } .none { color: #5a5a5a; font-style: italic } .bad { color: #b03a00; font-weight: 600 }
figure { margin: 12px 0 } img { max-width: 100%; height: auto; display: block }
.cards { display: flex; flex-wrap: wrap; gap: 12px; margin: 16px 0 }
.card { background: #f4f4f2; border-radius: 6px; padding: 8px 16px }
.card b { display: block; font-size: 22px; font-weight: 600 } .card span { font-size: 13px; color: #5a5a5a }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 8px 0 }
th, td { padding: 4px 14px 4px 0; text-align: left; border-bottom: 1px solid #e8e8e5; vertical-align: top }
td.n, th.n { text-align: right } th { font-weight: 600; color: #5a5a5a; font-size: 14px }
td.own { background: #fff3d6 }
pre { background: #f4f4f2; border-radius: 6px; padding: 12px; overflow-x: auto; font-size: 13px; line-height: 1.4 }
@media print { body { background: #fff } header, section { border: none; break-inside: avoid } }
"""


def _summary(data: ReportData) -> str:
    cards = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
        for name, value in data.key_figures.items()
    )
    picture = _picture(data.picture_png, "Colour picture of the materials") if data.picture_png else ""
    lost = f'<p class="bad">{data.n_lost} of {data.n_frames} frames were lost.</p>' if data.n_lost else ""
    return (
        f'<header><h1>{escape(data.title)}</h1>\n<div class="soft">{escape(data.created)}</div>\n'
        f'{lost}<div class="cards">{cards}</div>\n{picture}</header>'
    )


def _concentrations(data: ReportData) -> str:
    known = [s for s in data.vials if _true_mg_ml(s) is not None]
    if not known:
        return _none("No vials of known concentration were measured.")
    vials = _table(
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
    fits = _table(
        ("material", "slope", "offset, mg/mL", "R²", "worst error, mg/mL"),
        (
            (name, f"{fit.slope:.3f}", f"{fit.offset_mg_ml:+.2f}", f"{fit.r2:.4f}", f"{fit.worst_mg_ml:.2f}")
            for name, fit in fits_of(data.vials).items()
        ),
    )
    return f"{_svg(concentration_figure(data.vials), 'Measured against true concentrations')}\n{fits}\n{vials}"


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
        return _none("Not measured.")
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
    wrong = _table(
        ("material", "rms in the vials without it, mg/mL"),
        ((name, f"{value:.2f}") for name, value in cross_talk_mg_ml(data.vials).items()),
    )
    return (
        '<p class="soft">Mean of every material in every vial, in mg/mL; the vial\'s own material is marked.</p>'
        f'<div class="wide"><table><tr><th>vial</th>{head}</tr>{rows}</table></div>\n{wrong}'
    )


def _equalisation(calibration: Calibration | None) -> str:
    if calibration is None:
        return _none("No calibration was given.")
    rows = []
    for number in _equalised(calibration):
        gain = float(calibration.gain_dac_per_kev[number])
        cells = [str(number)]
        for edges in (calibration.edges_before_dac[number], calibration.edges_after_dac[number]):
            _, sigma = mean_and_sigma(edges) if np.isfinite(edges).any() else (np.nan, np.nan)
            cells += [f"{sigma:.2f}", f"{sigma / gain:.2f}"]
        rows.append(cells)
    if not rows:
        return _none("No threshold was equalised.")
    table = _table(("threshold", "before, DAC", "before, keV", "after, DAC", "after, keV"), rows)
    return (
        '<p class="soft">Spread (sigma) of the noise edges over the pixels, before and after the trims were chosen.</p>'
        f"{_svg(equalisation_figure(calibration), 'Noise edges before and after equalisation')}\n{table}"
    )


def _energy_scale(calibration: Calibration | None) -> str:
    if calibration is None or not calibration.lines:
        return _none("No sources were measured.")
    rows = (
        (
            line.source, str(line.threshold), f"{line.energy_kev:.2f}", f"{line.position_dac:.1f}",
            f"{line.residual_kev:+.2f}",
        )
        for line in calibration.lines
    )  # fmt: skip
    lines = _table(("source", "threshold", "energy, keV", "edge, DAC", "residual, keV"), rows)
    scale = _table(
        ("threshold", "offset, DAC", "gain, DAC/keV"),
        (
            (str(n), f"{calibration.offset_dac[n]:.1f}", f"{calibration.gain_dac_per_kev[n]:.3f}")
            for n in sorted({line.threshold for line in calibration.lines})
        ),
    )
    return (
        f'<p class="soft">Residuals of all sources: {calibration.residual_rms_kev:.2f} keV rms. They tell how well the '
        "sources agree with one another; what moves all edges alike does not show in them.</p>"
        f"{_svg(energy_figure(calibration), 'Energy scale and its residuals')}\n{scale}\n{lines}"
    )


def _bad_pixels(calibration: Calibration | None) -> str:
    if calibration is None:
        return _none("No calibration was given.")
    classes = calibration.pixel_class
    n_bad = int(np.count_nonzero(classes))
    rows = (
        (name_of(bit), str(int(np.count_nonzero(classes & bit))), f"{100 * np.mean((classes & bit) != 0):.3f}")
        for bit in PixelClass
    )
    return (
        f"<p>{n_bad} of {classes.size} pixels ({100 * n_bad / classes.size:.2f} %) are not used; a pixel can be of "
        "several classes.</p>"
        + _table(("class", "pixels", "%"), rows)
        + _picture(png_bytes(calibration_figure(calibration), dpi=110), "Trim codes and classes of pixels")
    )


def _events(data: ReportData) -> str:
    if not data.n_frames and not data.events:
        return _none("No scan was given.")
    share = 100 * data.n_lost / data.n_frames if data.n_frames else 0.0
    lost = f"<p>{data.n_lost} of {data.n_frames} frames were lost ({share:.2f} %).</p>"
    start_s = data.events[0].time_s if data.events else 0.0
    rows = ((f"{e.time_s - start_s:.1f}", str(e.sequence), e.kind, e.text) for e in data.events[:SHOWN_EVENTS])
    table = _table(("time, s", "frame", "kind", "what"), rows, n_text=4) if data.events else ""
    n_more = len(data.events) - SHOWN_EVENTS
    return lost + table + (f'<p class="soft">{n_more} more events are in the scan file.</p>' if n_more > 0 else "")


def _timings(timings_s: Mapping[str, float]) -> str:
    if not timings_s:
        return _none("Not recorded.")
    rows = [*timings_s.items(), ("in all", sum(timings_s.values()))]
    return _table(("stage", "time, s"), ((name, f"{duration_s:.1f}") for name, duration_s in rows))


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
    table = _table(("what", "which"), rows.items(), n_text=2) if rows else _none("Not recorded.")
    plan = f"<h3>Plan</h3><pre>{escape(data.plan_text)}</pre>" if data.plan_text else ""
    return table + plan


def _none(text: str) -> str:
    return f'<p class="none">{escape(text)}</p>'


def _table(head: Sequence[str], rows: Iterable[Iterable[str]], *, n_text: int = 1) -> str:
    """Make a table whose first `n_text` columns are text, the others numbers."""

    def row(tag: str, cells: Iterable[str]) -> str:
        return "".join(
            f"<{tag}{'' if n < n_text else ' class=n'}>{escape(cell)}</{tag}>" for n, cell in enumerate(cells)
        )

    body = "".join(f"<tr>{row('td', cells)}</tr>" for cells in rows)
    return f'<div class="wide"><table><tr>{row("th", head)}</tr>{body}</table></div>'


def _picture(content: bytes, alt: str, kind: str = "image/png") -> str:
    data = base64.b64encode(content).decode()
    return f'<figure><img alt="{escape(alt)}" src="data:{kind};base64,{data}"></figure>'


def _svg(figure: Figure, alt: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _picture(buffer.getvalue(), alt, "image/svg+xml")


def concentration_figure(vials: Sequence[VialStatistics]) -> Figure:
    """Draw measured against true concentrations, one panel per material, with the identity line (grey)."""
    materials = list(dict.fromkeys(s.vial.material for s in vials if _true_mg_ml(s) is not None))
    colours, fits = colours_of(materials), fits_of(vials)
    figure, panels = _plots(len(materials))
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
        _label(axes, material, "true, mg/mL", "measured, mg/mL")
    return figure


def equalisation_figure(calibration: Calibration) -> Figure:
    """Draw the histogram of the noise edges of every equalised threshold, before and after."""
    numbers = _equalised(calibration)
    figure, panels = _plots(len(numbers))
    for axes, number in zip(panels, numbers, strict=True):
        before, after = (
            edges[number][np.isfinite(edges[number])]
            for edges in (calibration.edges_before_dac, calibration.edges_after_dac)
        )
        both = np.concatenate([before, after])
        low, high = np.floor(np.percentile(both, 0.1)) - 2, np.ceil(np.percentile(both, 99.9)) + 2
        ends = np.linspace(low, high, 61)
        axes.hist(before, ends, color="#c4c4c4", label="before")
        axes.hist(after, ends, color="#0072b2", alpha=0.8, label="after")
        axes.axvline(calibration.target_dac, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), label="target")
        axes.legend(fontsize=SMALL_PT, frameon=False)
        _label(axes, f"threshold {number}", "noise edge, DAC", "pixels")
    return figure


def energy_figure(calibration: Calibration) -> Figure:
    """Draw the sources on the energy scale of every threshold, and their residuals below."""
    numbers = sorted({line.threshold for line in calibration.lines})
    figure = Figure(figsize=(9.0, 5.2), facecolor="white", layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    for n, number in enumerate(numbers):
        lines = [line for line in calibration.lines if line.threshold == number]
        energies = np.array([line.energy_kev for line in lines])
        colour = _SERIES[n % len(_SERIES)]
        ends = np.array([0.0, 1.1 * max(line.energy_kev for line in calibration.lines)])
        scale = calibration.offset_dac[number] + calibration.gain_dac_per_kev[number] * ends
        upper.plot(ends, scale, color=colour, linewidth=1, label=f"threshold {number}")
        upper.plot(energies, [line.position_dac for line in lines], "o", color=colour, markersize=5)
        lower.plot(energies, [line.residual_kev for line in lines], "o", color=colour, markersize=5)
    for source, energy in {line.source: line.energy_kev for line in calibration.lines}.items():
        upper.annotate(
            source, (energy, 0), xycoords=("data", "axes fraction"), xytext=(0, 4), textcoords="offset points",
            fontsize=SMALL_PT, color=SOFT_INK, ha="center",
        )  # fmt: skip
    upper.legend(fontsize=SMALL_PT, frameon=False, loc="upper left")
    lower.axhline(0, color="#b0b0b0", linewidth=0.8, zorder=0)
    worst = max(abs(line.residual_kev) for line in calibration.lines)
    lower.set_ylim(-1.4 * max(worst, 0.1), 1.4 * max(worst, 0.1))
    _label(upper, "", "", "edge, DAC")
    _label(lower, "", "energy, keV", "residual, keV")
    return figure


_SERIES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#7f7f7f", "#1a1a1a")


def _equalised(calibration: Calibration) -> list[int]:
    return [n for n, edges in enumerate(calibration.edges_after_dac) if np.isfinite(edges).any()]


def _plots(n: int) -> tuple[Figure, list[Axes]]:
    n_cols = min(n, 4)
    n_rows = -(-n // n_cols)
    figure = Figure(figsize=(max(2.9 * n_cols, 4.2), 2.7 * n_rows), facecolor="white", layout="constrained")
    return figure, [figure.add_subplot(n_rows, n_cols, i + 1) for i in range(n)]


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10, color=INK)
    axes.set_xlabel(x, fontsize=SMALL_PT + 1, color=SOFT_INK)
    axes.set_ylabel(y, fontsize=SMALL_PT + 1, color=SOFT_INK)
    axes.tick_params(labelsize=SMALL_PT, colors=SOFT_INK, width=0.6, length=2.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b0b0b0")
