"""The report of a calibration: what each step measured, as pictures and tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from calibration.pixels import PixelClass
from calibration.store import Calibration
from calibration.thresholds import mean_and_sigma
from gui.page import SERIES, cards, label, note, page, picture, plots, svg, table
from gui.picture import INK, SMALL_PT, SOFT_INK, calibration_figure, name_of, png_bytes, write_whole

_ZERO_C_K = 273.15


def save_calibration_report(calibration: Calibration, path: str | Path) -> Path:
    """Write the report of a calibration as one HTML file, whole or not at all."""
    return write_whole(path, calibration_html(calibration).encode())


def calibration_html(calibration: Calibration) -> str:
    """Return the report as one HTML text."""
    c = calibration
    told = (
        f"{c.created}, {c.conditions.mode}, {c.gain}, {c.bias_v:g} V{_warmth(c.temperature_k)}; "
        f"{c.device}, mpxct {c.software}, identity {c.identity}"
    )
    head = (
        f"<header><h1>Calibration of {escape(c.chip_id)}</h1>\n"
        f'<div class="soft">{escape(told)}</div>\n{cards(_key_figures(c))}</header>'
    )
    return page(f"calibration {c.identity}", head, [("Steps", _history(c)), *sections(c)])


def sections(calibration: Calibration) -> Sequence[tuple[str, str]]:
    """Return a heading and HTML for everything that was calibrated."""
    return [(title, show(calibration)) for title, show in _SECTIONS]


def _key_figures(calibration: Calibration) -> dict[str, str]:
    figures = {}
    if calibration.lines:
        before_kev, after_kev = calibration.sigmas_kev
        figures["thresholds, sigma before and after"] = f"{before_kev:.2f} to {after_kev:.2f} keV"
        figures["energy residual, rms"] = f"{calibration.residual_rms_kev:.3f} keV"
    figures["bad pixels"] = f"{np.count_nonzero(calibration.is_bad)} of {calibration.is_bad.size}"
    return figures


def _warmth(temperature_k: float | None) -> str:
    return "" if temperature_k is None or math.isnan(temperature_k) else f", {temperature_k - _ZERO_C_K:.1f} °C"


def _history(calibration: Calibration) -> str:
    if not calibration.history:
        return note("No step was done.")
    rows = (
        (
            record.step,
            record.created,
            f"{record.mode}, {record.gain}, {record.bias_v:g} V{_warmth(record.temperature_k)}",
            "forced, under other conditions" if record.is_forced else "",
        )
        for record in calibration.history
    )
    return table(("step", "when", "how the detector stood", ""), rows, n_text=4)


def _equalisation(calibration: Calibration) -> str:
    rows = []
    for number in _equalised(calibration):
        gain = float(calibration.gain_dac_per_kev[number])
        cells = [str(number)]
        for edges in (calibration.edges_before_dac[number], calibration.edges_after_dac[number]):
            _, sigma = mean_and_sigma(edges) if np.isfinite(edges).any() else (np.nan, np.nan)
            cells += [f"{sigma:.2f}", f"{sigma / gain:.2f}"]
        rows.append(cells)
    if not rows:
        return note("No threshold was equalised.")
    sigmas = table(("threshold", "before, DAC", "before, keV", "after, DAC", "after, keV"), rows)
    return (
        '<p class="soft">Spread (sigma) of the noise edges over the pixels, before and after the trims were chosen.</p>'
        f"{svg(equalisation_figure(calibration), 'Noise edges before and after equalisation')}\n{sigmas}"
    )


def equalisation_figure(calibration: Calibration) -> Figure:
    """Draw the histogram of the noise edges of every equalised threshold, before and after."""
    numbers = _equalised(calibration)
    figure, panels = plots(len(numbers))
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
        label(axes, f"threshold {number}", "noise edge, DAC", "pixels")
    return figure


def _energy_scale(calibration: Calibration) -> str:
    if not calibration.lines:
        return note("No sources were measured.")
    rows = (
        (
            line.source, str(line.threshold), f"{line.energy_kev:.2f}", f"{line.position_dac:.1f}",
            f"{line.residual_kev:+.2f}",
        )
        for line in calibration.lines
    )  # fmt: skip
    lines = table(("source", "threshold", "energy, keV", "edge, DAC", "residual, keV"), rows)
    scale = table(
        ("threshold", "offset, DAC", "gain, DAC/keV"),
        (
            (str(n), f"{calibration.offset_dac[n]:.1f}", f"{calibration.gain_dac_per_kev[n]:.3f}")
            for n in sorted({line.threshold for line in calibration.lines})
        ),
    )
    return (
        f'<p class="soft">Residuals of all sources: {calibration.residual_rms_kev:.2f} keV rms. They tell how well the '
        "sources agree with one another; what moves all edges alike does not show in them.</p>"
        f"{svg(energy_figure(calibration), 'Energy scale and its residuals')}\n{scale}\n{lines}"
    )


def energy_figure(calibration: Calibration) -> Figure:
    """Draw the sources on the energy scale of every threshold, and their residuals below."""
    numbers = sorted({line.threshold for line in calibration.lines})
    figure = Figure(figsize=(9.0, 5.2), facecolor="white", layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    for n, number in enumerate(numbers):
        lines = [line for line in calibration.lines if line.threshold == number]
        energies = np.array([line.energy_kev for line in lines])
        colour = SERIES[n % len(SERIES)]
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
    label(upper, "", "", "edge, DAC")
    label(lower, "", "energy, keV", "residual, keV")
    return figure


def _bad_pixels(calibration: Calibration) -> str:
    classes = calibration.pixel_class
    n_bad = int(np.count_nonzero(classes))
    rows = (
        (name_of(bit), str(int(np.count_nonzero(classes & bit))), f"{100 * np.mean((classes & bit) != 0):.3f}")
        for bit in PixelClass
    )
    return (
        f"<p>{n_bad} of {classes.size} pixels ({100 * n_bad / classes.size:.2f} %) are not used; a pixel can be of "
        "several classes.</p>"
        + table(("class", "pixels", "%"), rows)
        + picture(png_bytes(calibration_figure(calibration), dpi=110), "Trim codes and classes of pixels")
    )


def _equalised(calibration: Calibration) -> list[int]:
    return [n for n, edges in enumerate(calibration.edges_after_dac) if np.isfinite(edges).any()]


_SECTIONS: Sequence[tuple[str, Callable[[Calibration], str]]] = (
    ("Equalisation", _equalisation),
    ("Energy scale", _energy_scale),
    ("Bad pixels", _bad_pixels),
)
