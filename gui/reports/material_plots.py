"""The quality of a material volume as plots."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Patch, Rectangle
from numpy.typing import NDArray

from gui.colour import GREY, blend, colours_of, looks_for
from gui.picture import INK, PANEL_PT, SMALL_PT, slab, swatch
from gui.reports.material_figures import sets_of_figures
from gui.reports.page import SERIES, label, legend, plots
from reconstruction.assessment import Assessment, Figures, uniform_square
from reconstruction.merit.noise import noise_equivalent_quanta
from reconstruction.quality import series_of
from reconstruction.volume import Volume

NEQ_MG_ML = 1.0
"""The concentration that noise-equivalent quanta are counted for."""
DASHED = (0, (4, 3))
SOFT_LINE = "#b0b0b0"
MOST_POINTS = 400
"""Of a curve that has as many points as a vial has voxels, so many are drawn."""


def line_colours(materials: Sequence[str]) -> dict[str, str | tuple[float, float, float]]:
    """Give each material the colour of its picture, dark enough for a line on white."""
    grey = [name for name in materials if colours_of(materials)[name] == GREY]
    greys = dict(zip(grey, ("#808080", "#404040", "#a0a0a0", "#606060"), strict=False))
    return {
        name: greys.get(name, "#808080") if colour == GREY else tuple(0.85 * part for part in colour)  # type: ignore[misc]
        for name, colour in colours_of(materials).items()
    }


# The vials over the picture.


def overlay_figure(a: Assessment, volume: Volume) -> Figure:
    """Draw the colour picture with every vial, the blank, the uniform square and the edges where they were taken."""
    z = volume.grid.axes_mm()[0]
    low, high = a.phantom.z_range_mm or (z[0], z[-1])
    middle = int(np.argmin(np.abs(z - (low + high) / 2)))
    maps, where = slab(volume, middle, 1.0)
    looks = looks_for(volume.channels, maps)
    _, y, x = volume.grid.axes_mm()
    half = volume.grid.voxel_mm / 2
    figure = Figure(figsize=(7.4, 6.9), facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(
        blend(maps, looks), origin="lower", interpolation="nearest",
        extent=(x[0] - half, x[-1] + half, y[0] - half, y[-1] + half),
    )  # fmt: skip
    kept = a.phantom.kept_radius_share
    for number, vial in enumerate(a.phantom.vials, start=1):
        place = (vial.x_mm, vial.y_mm)
        axes.add_patch(Circle(place, vial.radius_mm, fill=False, edgecolor="white", linewidth=1.1))
        axes.add_patch(Circle(place, kept * vial.radius_mm, fill=False, edgecolor="white", linewidth=0.6, ls=":"))
        axes.annotate(
            str(number), place, color="white", fontsize=PANEL_PT, ha="center", va="center", fontweight="bold",
            bbox={"boxstyle": "circle,pad=0.15", "facecolor": "#000000a0", "edgecolor": "none"},
        )  # fmt: skip
    _draw_regions(axes, a)
    axes.set_title(f"{a.phantom.name}, {where}", fontsize=PANEL_PT + 1, color=INK)
    axes.tick_params(labelsize=SMALL_PT)
    axes.set_xlabel("x, mm", fontsize=SMALL_PT + 1)
    axes.set_ylabel("y, mm", fontsize=SMALL_PT + 1)
    axes.legend(
        handles=[Patch(facecolor=swatch(look.colour), label=look.material) for look in looks],
        loc="upper center", bbox_to_anchor=(0.5, -0.09), ncols=min(len(looks), 5), frameon=False, fontsize=SMALL_PT + 1,
    )  # fmt: skip
    return figure


def _draw_regions(axes: Axes, a: Assessment) -> None:
    if a.phantom.blank is not None:
        disc = a.phantom.blank
        axes.add_patch(Circle((disc.x_mm, disc.y_mm), disc.radius_mm, fill=False, edgecolor="#7fd4ff", ls="--"))
    square = uniform_square(a.phantom)
    if square is not None:
        corner = (square.x_mm - square.side_mm / 2, square.y_mm - square.side_mm / 2)
        axes.add_patch(Rectangle(corner, square.side_mm, square.side_mm, fill=False, edgecolor="#7fd4ff", lw=0.9))
    for edge in a.phantom.edges:
        axes.plot(edge.x_mm, edge.y_mm, "+", color="white", markersize=9)


def regression_figure(f: Figures, solvent: str) -> Figure:
    """Draw measured against true concentrations, with the line and its 95 % band, one panel per material."""
    colours = line_colours(f.confusion.names[:-1])
    figure, panels = plots(len(f.regressions), n_cols=3, height_in=3.1)
    for axes, (name, r) in zip(panels, f.regressions.items(), strict=True):
        top = 1.1 * max(float(r.true_mg_ml.max()), float(r.measured_mg_ml.max()))
        bottom = min(0.0, 1.1 * float(r.measured_mg_ml.min())) - 0.03 * top
        along = np.linspace(bottom, top, 100)
        axes.plot(along, along, color=SOFT_LINE, linewidth=1, zorder=1)
        axes.plot(along, r.at(along), color=INK, linewidth=1, linestyle=DASHED, zorder=2)
        band = r.band(along)
        if np.isfinite(band).all():
            axes.fill_between(along, r.at(along) - band, r.at(along) + band, color=colours[name], alpha=0.18, lw=0)
        spread = [s.sd_mg_ml(name) for s in series_of(f.vials, name, solvent=solvent)]
        axes.errorbar(
            r.true_mg_ml, r.measured_mg_ml, yerr=spread, fmt="o", color=colours[name], capsize=3, markersize=6,
            markeredgecolor=INK, markeredgewidth=0.6, zorder=3,
        )  # fmt: skip
        label(axes, f"{name}: {r.slope:.3f} c {r.offset_mg_ml:+.2f}", "true, mg/mL", "measured, mg/mL")
    return figure


def agreement_figure(f: Figures) -> Figure:
    """Draw differences over means with bias and limits of agreement, one panel per material."""
    colours = line_colours(f.confusion.names[:-1])
    shown = {name: r for name, r in f.regressions.items() if name in f.agreements}
    figure, panels = plots(max(len(shown), 1), n_cols=3, height_in=2.7)
    for axes, (name, r) in zip(panels, shown.items(), strict=False):
        g = f.agreements[name]
        middle, wrong = (r.measured_mg_ml + r.true_mg_ml) / 2, r.measured_mg_ml - r.true_mg_ml
        axes.axhline(0, color=SOFT_LINE, linewidth=1, zorder=1)
        axes.axhline(g.bias_mg_ml, color=INK, linewidth=1, zorder=2)
        for limit in (g.lower_mg_ml, g.upper_mg_ml):
            if np.isfinite(limit):
                axes.axhline(limit, color=INK, linewidth=0.9, linestyle=DASHED, zorder=2)
                if np.isfinite(g.limit_se_mg_ml):
                    axes.axhspan(limit - g.limit_se_mg_ml, limit + g.limit_se_mg_ml, color=INK, alpha=0.07, lw=0)
        axes.plot(
            middle, wrong, "o", color=colours[name], markersize=6, markeredgecolor=INK, markeredgewidth=0.6, zorder=3
        )
        label(axes, name, "mean of both, mg/mL", "measured - true, mg/mL")
    return figure


def identification_figure(f: Figures) -> Figure:
    """Draw the confusion matrix as a heat map, and the ROC of each material."""
    figure = Figure(figsize=(9.6, 4.1), facecolor="white", layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.15, 1.0])
    c, n = f.confusion, len(f.confusion.names)
    left.imshow(c.shares, cmap="Blues", vmin=0, vmax=1)
    for row, col in np.ndindex(n, n):
        share = c.shares[row, col]
        if np.isfinite(share):
            left.text(
                col, row, f"{100 * share:.1f}", ha="center", va="center", fontsize=SMALL_PT + 1,
                color="white" if share > 0.6 else INK,
            )  # fmt: skip
    left.set_xticks(range(n), c.names, rotation=30, ha="right")
    left.set_yticks(range(n), c.names)
    label(left, "% of voxels", "shown", "held")
    left.spines[:].set_visible(False)
    colours = line_colours(c.names[:-1])
    right.plot([0, 1], [0, 1], color=SOFT_LINE, linewidth=1)
    for name, curve in f.rocs.items():
        step = max(len(curve.thresholds) // MOST_POINTS, 1)
        kept = np.unique(np.append(np.arange(0, len(curve.thresholds), step), len(curve.thresholds) - 1))
        right.plot(
            curve.false_positive[kept], curve.true_positive[kept], color=colours[name], linewidth=1.6,
            label=f"{name}, AUC {curve.area_fraction:.3f}",
        )  # fmt: skip
    right.set_xlim(-0.02, 1.02)
    right.set_ylim(-0.02, 1.02)
    label(right, "threshold swept", "1 - specificity", "sensitivity")
    legend(right)
    return figure


def sharpness_figure(a: Assessment) -> Figure:
    """Draw the edge profiles, each from 0 to 1, and the MTFs before and after they were made alike."""
    colours = line_colours(a.materials)
    figure, (profiles, curves) = plots(2, n_cols=2, height_in=3.1)
    for which, (_, figures) in enumerate(sets_of_figures(a)):
        for name, s in figures.sharpness.items():
            width, alpha = (1.8, 1.0) if which or a.matched is None else (0.9, 0.6)
            label_ = name if which or a.matched is None else ""
            profiles.plot(
                s.mtf.distance_mm,
                _from_0_to_1(s.mtf.response),
                color=colours[name],
                lw=width,
                alpha=alpha,
                label=label_,
            )
            curves.plot(
                s.mtf.frequency_per_mm, s.mtf.modulation, color=colours[name], lw=width, alpha=alpha, label=label_
            )
    curves.axhline(0.5, color=SOFT_LINE, linewidth=0.8, zorder=0)
    if np.isfinite(a.mtf50_per_mm):
        curves.axvline(a.mtf50_per_mm, color=SOFT_LINE, linewidth=0.8, zorder=0)
    curves.set_ylim(0, 1.15)
    label(profiles, "edge profiles", "distance outwards, mm", "from one level to the other")
    label(curves, "MTF", "1/mm", "modulation")
    legend(curves)
    return figure


def _from_0_to_1(response: NDArray[np.float64]) -> NDArray[np.float64]:
    n = max(len(response) // 8, 1)
    first, last = float(np.median(response[:n])), float(np.median(response[-n:]))
    return (response - last) / (first - last) if first != last else response


def noise_figure(a: Assessment, f: Figures) -> Figure:
    """Draw the radial noise power of each map, the coherence of each pair, and the NEQ of each map with an MTF."""
    if f.noise is None:
        raise ValueError("no noise power was measured")
    radial, colours = f.noise.radial(), line_colours(a.materials)
    figure, (own, cross, quanta) = plots(3, n_cols=3, height_in=3.6)
    pair = 0
    for k, name in enumerate(a.materials):
        own.plot(radial.frequency_per_mm, radial.power[k, k], color=colours[name], label=name)
        if name in f.sharpness and name != a.phantom.solvent:
            neq = noise_equivalent_quanta(
                f.sharpness[name].mtf, radial.frequency_per_mm, radial.power[k, k], signal=NEQ_MG_ML
            )
            quanta.plot(radial.frequency_per_mm, neq, color=colours[name], label=name)
        for m in range(k):
            cross.plot(
                radial.frequency_per_mm, radial.coherence[k, m], color=SERIES[pair % len(SERIES)], lw=1.2,
                label=f"{a.materials[m]}, {name}",
            )  # fmt: skip
            pair += 1
    own.set_yscale("log")
    quanta.set_yscale("log")
    cross.set_ylim(-1.05, 1.05)
    cross.axhline(0, color=SOFT_LINE, linewidth=0.8, zorder=0)
    label(own, "noise power", "1/mm", "(mg/mL)² mm²")
    label(cross, "cross-power, normalised", "1/mm", "coherence in phase")
    label(quanta, f"NEQ of {NEQ_MG_ML:g} mg/mL", "1/mm", "1/mm²")
    for axes in (own, cross):
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2, fontsize=SMALL_PT, frameon=False)
    return figure
