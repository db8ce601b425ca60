"""The report on a material volume's quality: every figure of merit of its phantom as pictures and tables."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

import numpy as np

from gui.picture import png_bytes, write_whole
from gui.reports import material_plots
from gui.reports.material_figures import figures_to_quote, pose_in_words, sets_of_figures
from gui.reports.page import cards, figure_of, note, page, picture, soft, svg, table
from reconstruction.assessment import Assessment
from reconstruction.volume import Volume

OVERLAY_DPI = 130


def save_material_report(
    assessment: Assessment,
    volume: Volume,
    path: str | Path,
    *,
    title: str = "",
    beside: Mapping[str, Assessment] | None = None,
) -> Path:
    """Write the report as one HTML file, whole or not at all."""
    return write_whole(path, material_html(assessment, volume, title=title, beside=beside).encode())


def material_html(
    assessment: Assessment, volume: Volume, *, title: str = "", beside: Mapping[str, Assessment] | None = None
) -> str:
    """Return the report as one HTML text.

    Parameters
    ----------
    beside : mapping of name to Assessment, optional
        Of other volumes of the same phantom, brought to the same sharpness.
    """
    a = assessment
    name = title or f"Quality of {', '.join(a.materials)}"
    told = (
        f"{a.phantom.name}: {len(a.phantom.vials)} vials, {a.n_slices} slices, voxels of {1000 * a.voxel_mm:.0f} µm; "
        f"{pose_in_words(a)}"
    )
    overlay = png_bytes(material_plots.overlay_figure(a, volume), dpi=OVERLAY_DPI)
    head = (
        f'<header><h1>{escape(name)}</h1>\n<div class="soft">{escape(told)}</div>\n'
        f"{cards(_key_figures(a))}\n{_remarks(a)}\n"
        f"{picture(overlay, 'Vials over the colour picture')}</header>"
    )
    return page(
        name,
        head,
        [
            *([("Beside others", _beside({"this volume": a, **beside}))] if beside else []),
            ("Concentrations", _concentrations(a)),
            ("Agreement", _agreement(a)),
            ("Cross-talk", _cross_talk(a)),
            ("Detection limits", _limits(a)),
            ("Identification", _identification(a)),
            ("Sharpness", _sharpness(a)),
            ("Noise", _noise(a)),
            ("Provenance", _provenance(a, volume)),
        ],
    )


def _key_figures(a: Assessment) -> dict[str, str]:
    f, figures = figures_to_quote(a), {}
    if f.regressions:
        slopes = [r.slope for r in f.regressions.values()]
        figures["slopes"] = f"{min(slopes):.3f} to {max(slopes):.3f}"
        figures["least R²"] = f"{min(r.r2 for r in f.regressions.values()):.4f}"
    figures["cross-talk, rms"] = f"{figure_of(f.total_cross_talk_mg_ml, '.2f')} mg/mL"
    if f.limits:
        figures["detection limits, CNR 5"] = (
            f"{_two_digits(min(x.cnr_mg_ml for x in f.limits.values()))} to "
            f"{_two_digits(max(x.cnr_mg_ml for x in f.limits.values()))} mg/mL"
        )
    if np.isfinite(a.mtf50_per_mm):
        figures["all at an MTF50 of"] = f"{a.mtf50_per_mm:.2f} 1/mm"
    return figures


def _remarks(a: Assessment) -> str:
    unequal = "" if a.matched else '<p class="bad">Not at one sharpness: these figures do not compare.</p>'
    listed = "".join(f"<li>{escape(text)}</li>" for text in a.remarks)
    return unequal + (f'<ul class="soft">{listed}</ul>' if listed else "")


# Concentrations.


def _beside(volumes: Mapping[str, Assessment]) -> str:
    """Compare volumes line by line: what they read, and how noisy they are at the same sharpness."""
    rows = []
    for material in next(iter(volumes.values())).agents:
        for name, a in volumes.items():
            f = figures_to_quote(a)
            r, limits, sharp = f.regressions.get(material), f.limits.get(material), a.as_it_is.sharpness.get(material)
            rows.append((
                material, name, figure_of(r.slope if r else np.nan, ".4f"),
                figure_of(r.offset_mg_ml if r else np.nan, "+.3f"),
                figure_of(f.agreements[material].rmse_mg_ml if material in f.agreements else np.nan, ".3f"),
                figure_of(f.cross_talk_mg_ml.get(material, np.nan), ".3f"),
                figure_of(f.blank_sd_mg_ml.get(material, np.nan), ".3f"),
                figure_of(limits.cnr_mg_ml if limits else np.nan, ".3f"),
                figure_of(sharp.mtf.mtf50_per_mm if sharp else np.nan, ".3f"), figure_of(a.mtf50_per_mm, ".3f"),
            ))  # fmt: skip
    head = (
        "material", "volume", "slope", "offset, mg/mL", "RMSE", "cross-talk", "noise", "CNR 5", "own MTF50, 1/mm",
        "compared at, 1/mm",
    )  # fmt: skip
    return soft("All at one sharpness; noise: spread of the blank's voxels, mg/mL.") + table(head, rows, n_text=2)


def _concentrations(a: Assessment) -> str:
    f = figures_to_quote(a)
    if not f.regressions:
        return note("No material has two vials of different known concentrations.") + _vial_table(a)
    rows = [
        (
            name, which, f"{r.slope:.4f} ± {figure_of(r.slope_se_ratio, '.4f')}",
            f"{r.offset_mg_ml:+.3f} ± {figure_of(r.offset_se_mg_ml, '.3f')}",
            figure_of(r.r2, ".5f"), f"{r.concordance_ratio:.4f}", f"{figures.agreements[name].rmse_mg_ml:.3f}",
            f"{r.worst_mg_ml:.3f}", str(len(r.true_mg_ml)),
        )
        for name in f.regressions
        for which, figures in sets_of_figures(a)
        if (r := figures.regressions.get(name)) is not None
    ]  # fmt: skip
    head = ("material", "maps", "slope", "offset, mg/mL", "R²", "concordance", "RMSE, mg/mL", "worst, mg/mL", "vials")
    return (
        soft(
            "Mean of each vial against what its label states; bars: spread of its voxels. Dashed: fitted line, with "
            "the 95 % band of the line; grey: measured equals true. Errors are standard errors of the fit."
        )
        + svg(material_plots.regression_figure(f, a.phantom.solvent), "Measured against true concentrations")
        + table(head, rows, n_text=2)
        + _vial_table(a)
    )


def _vial_table(a: Assessment) -> str:
    f = figures_to_quote(a)
    rows = (
        (
            str(number), s.vial.label, *(f"{s.mean_mg_ml(m):.2f} ± {s.sd_mg_ml(m):.2f}" for m in s.materials),
            figure_of(100 * share, ".1f"), str(s.n_voxels),
        )
        for number, (s, share) in enumerate(zip(f.vials, f.identified_share, strict=True), start=1)
    )  # fmt: skip
    head = ("", "vial", *(f"{m}, mg/mL" for m in a.materials), "identified, %", "voxels")
    return "<h3>Vials</h3>" + soft("Mean and spread of the voxels of every map.") + table(head, rows, n_text=2)


# Agreement.


def _agreement(a: Assessment) -> str:
    f = figures_to_quote(a)
    if not f.agreements:
        return note("No vial has a known concentration.")
    rows = (
        (
            name, f"{g.bias_mg_ml:+.3f} ± {figure_of(g.bias_se_mg_ml, '.3f')}", figure_of(g.lower_mg_ml, "+.3f"),
            figure_of(g.upper_mg_ml, "+.3f"), figure_of(g.limit_se_mg_ml, ".3f"), str(g.n),
        )
        for name, g in f.agreements.items()
    )  # fmt: skip
    head = ("material", "bias, mg/mL", "lower limit", "upper limit", "error of a limit", "vials")
    return (
        soft(
            "Measured less true over the mean of both (Bland and Altman): bias, and limits that hold 95 %; grey: the "
            "error of a limit."
        )
        + svg(material_plots.agreement_figure(f), "Differences between measured and true concentrations")
        + table(head, rows)
    )


# Cross-talk and limits.


def _cross_talk(a: Assessment) -> str:
    f = figures_to_quote(a)
    rows = (
        (name, *(figure_of(figures.cross_talk_mg_ml.get(name, np.nan), ".3f") for _, figures in sets_of_figures(a)))
        for name in f.confusion.names[:-1]
    )
    told = table(("material", *(f"{which}, mg/mL" for which, _ in sets_of_figures(a))), rows)
    agents = f.confusion.names[:-1]
    matrix = ""
    if np.isfinite(f.mixing).all() and len(agents) > 1:
        matrix = (
            "<h3>What one mg/mL shows</h3>"
            + soft("Row: map; column: what is there. Slopes on the diagonal, cross-talk beside it.")
            + table(
                ("map of", *agents),
                ((name, *(f"{value:+.4f}" for value in row)) for name, row in zip(agents, f.mixing, strict=True)),
            )
        )
    return soft("Root mean square of each material's means in the vials that hold none of it.") + told + matrix


def _limits(a: Assessment) -> str:
    if not a.as_it_is.limits:
        return note("No blank was described and no material has a line: detection limits need both.")
    rows = (
        (
            name, which, f"{figures.blank_mean_mg_ml[name]:+.3f} ± {figures.blank_sd_mg_ml[name]:.3f}",
            figure_of(figures.limits[name].cnr_mg_ml, ".3f"), figure_of(figures.limits[name].iupac_mg_ml, ".3f"),
        )
        for name in a.as_it_is.limits
        for which, figures in sets_of_figures(a)
        if name in figures.limits
    )  # fmt: skip
    head = ("material", "maps", "blank, mg/mL", "contrast 5 times the noise, mg/mL", "3 sigma of the blank, mg/mL")
    return soft(f"For one voxel of {1000 * a.voxel_mm:.0f} µm.") + table(head, rows, n_text=2)


# Identification.


def _identification(a: Assessment) -> str:
    f = figures_to_quote(a)
    c = f.confusion
    rows = (
        (
            name, figure_of(f.thresholds_mg_ml.get(name, np.nan), ".3g"), figure_of(100 * c.sensitivity[k], ".2f"),
            figure_of(100 * c.specificity[k], ".2f"),
            figure_of(f.rocs[name].area_fraction, ".4f") if name in f.rocs else "-",
            figure_of(100 * f.rocs[name].at_specificity(0.95), ".1f") if name in f.rocs else "-",
        )
        for k, name in enumerate(c.names)
    )  # fmt: skip
    head = ("material", "from, mg/mL", "sensitivity, %", "specificity, %", "AUC", "sensitivity at 95 % specificity")
    return (
        soft(
            "A voxel shows the material that is furthest above its threshold. Left: share of the voxels of each "
            "content (row) that shows each (column), in per cent. Right: each map's threshold swept."
        )
        + svg(material_plots.identification_figure(f), "Confusion matrix and receiver operating characteristics")
        + table(head, rows)
    )


# Sharpness and noise.


def _sharpness(a: Assessment) -> str:
    if not a.as_it_is.sharpness:
        return note("No map's MTF could be measured; the remarks on top tell why.")
    rows = (
        (
            name, which, f"{s.mtf.mtf50_per_mm:.3f} ± {figure_of(s.mtf50_se_per_mm, '.3f')}",
            figure_of(s.mtf.mtf10_per_mm, ".3f"), s.where,
        )
        for name in a.as_it_is.sharpness
        for which, figures in sets_of_figures(a)
        if (s := figures.sharpness.get(name)) is not None
    )  # fmt: skip
    head = ("map", "", "MTF50, 1/mm", "MTF10, 1/mm", "measured at")
    return (
        soft("In the plane of the slices. Thin: as the maps are; thick: brought to one MTF50.")
        + svg(material_plots.sharpness_figure(a), "Edge profiles and modulation transfer functions")
        + table(head, rows, n_text=2)
    )


def _noise(a: Assessment) -> str:
    f = figures_to_quote(a)
    told = _efficiency_table(a)
    if f.noise is None:
        return note("No uniform square is large enough (8 voxels) to measure noise power in.") + told
    n, names = len(a.materials), a.materials
    covariance = f.noise.covariance
    sd = np.sqrt(np.diagonal(covariance))
    gravity = f.noise.radial().mean_frequency_per_mm()
    rows = ((names[k], f"{sd[k]:.3f}", f"{gravity[k]:.3f}") for k in range(n))
    against = ((names[k], *(f"{covariance[k, m] / (sd[k] * sd[m]):+.3f}" for m in range(n))) for k in range(n))
    return (
        soft(
            f"From {f.noise.n_squares} squares of {len(f.noise.frequency_per_mm)} voxels a side, a plane taken off "
            "each. A negative cross-power: what one map has too much of, the other has too little. NEQ: quanta per mm² "
            f"of a slice that tell {material_plots.NEQ_MG_ML:g} mg/mL as well."
        )
        + svg(material_plots.noise_figure(a, f), "Noise power, cross-power and noise-equivalent quanta")
        + table(("map", "noise, mg/mL", "centre of gravity, 1/mm"), rows)
        + "<h3>Correlation of the noise</h3>"
        + table(("", *names), against)
        + told
    )


def _efficiency_table(a: Assessment) -> str:
    if not a.efficiencies:
        return ""
    rows = (
        (name, f"{e.sd_ratio:.3f}", f"{e.robust_ratio:.3f}", f"{100 * e.false_share:.3f}")
        for name, e in a.efficiencies.items()
    )
    head = ("map", "spread over the bound", "the same, robust", "further off than 6 sigma, %")
    return "<h3>Spread over the Cramer-Rao bound</h3>" + table(head, rows)


def _provenance(a: Assessment, volume: Volume) -> str:
    p = volume.provenance
    rows: Mapping[str, str] = {
        "volume of": p.source_file or "-",
        "calibration": p.calibration_identity or "-",
        "software": p.software or "-",
        "phantom": a.phantom.name,
        "steps": "; ".join(p.steps) or "-",
    }
    return table(("what", "which"), rows.items(), n_text=2)


def _two_digits(value: float) -> str:
    return f"{float(f'{value:.2g}'):g}"
