"""What the report of a calibration tells of the chip itself: its DACs, thresholds and pixels.

Every section is a function of the calibration that returns HTML, or nothing where its step was not done.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from calibration.bias_currents import BiasCurrents
from calibration.equalisation import Equalisation, TrimFault, mean_and_sigma
from calibration.pixel_scale import PixelScale
from calibration.pixels import SUSPECT, PixelClass
from calibration.store import Calibration
from firmware_iface.chip import TRIM_CODES
from gui.picture import INK, SMALL_PT, SOFT_INK, classes_figure, maps_figure, median, name_of, png_bytes
from gui.reports.page import SERIES, figure_of, histogram, label, legend, note, picture, plots, soft, svg, table

MAP_DPI = 100


def bias_currents(calibration: Calibration) -> str:
    """Tell the codes of GND, FBK and Cas, and how near each chip's voltages come to what is wanted."""
    tuned = calibration.bias_currents
    if tuned is None:
        return ""
    rows = []
    for chip, (codes, volts) in enumerate(zip(tuned.codes, tuned.voltage_v, strict=True)):
        for name, code, read_v, target_v in zip(tuned.names, codes, volts, tuned.target_v, strict=True):
            is_near = abs(read_v - target_v) <= tuned.tolerance_v
            off_mv = figure_of(1000 * (read_v - target_v), "+.1f") + ("" if is_near else ", outside")
            rows.append((str(chip + 1), name, str(int(code)), f"{target_v:.3f}", figure_of(read_v, ".4f"), off_mv))
    return (
        soft(f"Codes that bring each voltage to its target, give or take {1000 * tuned.tolerance_v:g} mV.")
        + svg(bias_figure(tuned), "Voltages of the tuned DACs over their codes")
        + table(("chip", "DAC", "code", "target, V", "read, V", "off by, mV"), rows, n_text=2)
    )


def bias_figure(tuned: BiasCurrents) -> Figure:
    """Draw the sweep of every tuned DAC, one curve a chip, with its target and the code that was taken."""
    figure, panels = plots(len(tuned.names))
    for n, (axes, name) in enumerate(zip(panels, tuned.names, strict=True)):
        axes.axhline(float(tuned.target_v[n]), color=INK, linewidth=0.8, linestyle=(0, (4, 3)), label="target")
        for chip, (sweep, code, read_v) in enumerate(
            zip(tuned.swept_v[:, n], tuned.codes[:, n], tuned.voltage_v[:, n], strict=True)
        ):
            colour = SERIES[chip % len(SERIES)]
            axes.plot(tuned.swept_codes, sweep, color=colour, linewidth=1.2, label=f"chip {chip + 1}")
            axes.plot(int(code), read_v, "o", color=colour, markersize=5)
        legend(axes)
        label(axes, name, "code", "V")
    return figure


def equalisation(calibration: Calibration) -> str:
    """Tell how far the pixels' thresholds stood apart before and after, and which pixels stayed apart."""
    numbers = _equalised(calibration)
    if not numbers:
        return note("No threshold was equalised.")
    record = calibration.equalisation
    text = "Spread (sigma) of the edges over the pixels, before and after the trims were chosen."
    if record is not None:
        at = f" at {record.energy_kev:.1f} keV" if record.energy_kev else ""
        rounds = "1 round" if record.n_rounds == 1 else f"{record.n_rounds} rounds"
        text += (
            f" Method: {record.method}{at}, {rounds}. The limit is what the trims' own steps leave if every pixel gets "
            "its best code."
        )
    parts = [
        soft(text), svg(equalisation_figure(calibration), "Edges before and after equalisation"),
        _spread_table(calibration, numbers),
    ]  # fmt: skip
    if record is not None:
        parts += ["<h3>Trim codes</h3>", svg(trim_figure(record, numbers), "How many pixels have each trim code")]
    images = {f"threshold {n}": calibration.trim[n] for n in numbers}
    trims = maps_figure(images, "trim code", levels=(0, TRIM_CODES - 1))
    parts.append(picture(png_bytes(trims, dpi=MAP_DPI), "Trim code of every pixel"))
    if record is not None:
        parts += ["<h3>Not equalised</h3>", _fault_table(record, numbers)]
    return "\n".join(parts)


def _spread_table(calibration: Calibration, numbers: Sequence[int]) -> str:
    record = calibration.equalisation
    head = ["threshold", "before, DAC", "before, keV", "after, DAC", "after, keV"]
    if record is not None:
        head += ["before, e⁻", "after, e⁻", "limit, DAC", "limit, keV", "limit, e⁻"]
    rows = []
    for number in numbers:
        gain = float(calibration.gain_dac_per_kev[number])
        before, after = (_sigma(edges[number]) for edges in (calibration.edges_before_dac, calibration.edges_after_dac))
        cells = [str(number)]
        for sigma in (before, after):
            cells += [figure_of(sigma, ".2f"), figure_of(sigma / gain, ".2f")]
        if record is not None:
            limit = float(record.limit_dac[number])
            electrons = [sigma / gain / record.pair_kev for sigma in (before, after, limit)]
            cells += [figure_of(electrons[0], ".0f"), figure_of(electrons[1], ".0f")]
            cells += [figure_of(limit, ".2f"), figure_of(limit / gain, ".2f"), figure_of(electrons[2], ".0f")]
        rows.append(cells)
    return table(head, rows)


def _fault_table(record: Equalisation, numbers: Sequence[int]) -> str:
    faults = [fault for fault in TrimFault if fault is not TrimFault.NONE]
    counted = {n: [int(np.count_nonzero(record.fault[n] == fault)) for fault in faults] for n in numbers}
    if not any(map(sum, counted.values())):
        return soft("Every pixel of every threshold was brought to the target.")
    rows = ((str(n), *map(str, pixels), str(sum(pixels))) for n, pixels in counted.items())
    return table(("threshold", *(fault.name.lower().replace("_", " ") for fault in faults), "pixels"), rows)


def equalisation_figure(calibration: Calibration) -> Figure:
    """Draw the histogram of the edges of every equalised threshold, before and after."""
    numbers = _equalised(calibration)
    figure, panels = plots(len(numbers))
    for n, (axes, number) in enumerate(zip(panels, numbers, strict=True)):
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
        if n == 0:
            legend(axes)
        label(axes, f"threshold {number}", "edge, DAC", "pixels")
    return figure


def trim_figure(record: Equalisation, numbers: Sequence[int]) -> Figure:
    """Draw how many pixels have each trim code; many at an end tell that the trims reach too little."""
    figure, panels = plots(len(numbers), height_in=2.1)
    for axes, number in zip(panels, numbers, strict=True):
        pixels = record.trim_histogram[number]
        axes.bar(np.arange(len(pixels)), pixels, width=0.9, color=SERIES[0])
        label(axes, f"threshold {number}", "trim code", "pixels")
    return figure


def energy_scale(calibration: Calibration) -> str:
    """Tell where the sources' lines stand on each threshold, and the line through them with its standard errors."""
    if not calibration.lines:
        return note("No sources were measured.")
    rows = (
        (
            line.source, str(line.threshold), f"{line.energy_kev:.2f}", figure_of(line.position_dac, ".1f"),
            figure_of(line.residual_kev, "+z.3f"),
        )
        for line in calibration.lines
    )  # fmt: skip
    lines = table(("source", "threshold", "energy, keV", "edge, DAC", "residual, keV"), rows)
    left_out = ", ".join(calibration.sources_without_edge)
    return (
        soft(
            f"Residuals of all sources: {calibration.residual_rms_kev:.3f} keV rms. They tell how well the sources "
            "agree with one another; what moves all edges alike does not show in them."
        )
        + svg(energy_figure(calibration), "Energy scale and its residuals")
        + f"{_scale_table(calibration)}<h3>Sources</h3>\n{lines}"
        + (soft(f"Left out, for their counts show no edge in this mode: {escape(left_out)}.") if left_out else "")
    )


def _scale_table(calibration: Calibration) -> str:
    numbers, covariance = _measured(calibration), calibration.scale_covariance
    if covariance is None:
        return table(
            ("threshold", "offset, DAC", "gain, DAC/keV"),
            (
                (str(n), f"{calibration.offset_dac[n]:.1f}", f"{calibration.gain_dac_per_kev[n]:.3f}")
                for n in numbers
            ),
        )  # fmt: skip
    energies = _ends_kev(calibration)
    rows = []
    for n in numbers:
        offset_error, gain_error = np.sqrt(np.diag(covariance[n]))
        errors_kev = _scale_sigma_kev(calibration, n, energies)
        rows.append(
            (
                str(n), f"{calibration.offset_dac[n]:.2f}", figure_of(offset_error, ".2f"),
                f"{calibration.gain_dac_per_kev[n]:.4f}", figure_of(gain_error, ".4f"),
                *(figure_of(error, ".3f") for error in errors_kev),
            )
        )  # fmt: skip
    at = (f"error at {energy:.0f} keV, keV" for energy in energies)
    return table(("threshold", "offset, DAC", "error", "gain, DAC/keV", "error", *at), rows)


def energy_figure(calibration: Calibration) -> Figure:
    """Draw the sources on the energy scale of every threshold, and their residuals below, within the standard error."""
    figure = Figure(figsize=(9.0, 5.2), facecolor="white", layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    ends = np.linspace(0.0, 1.1 * max(line.energy_kev for line in calibration.lines), 45)
    for n, number in enumerate(_measured(calibration)):
        lines = [line for line in calibration.lines if line.threshold == number]
        energies = np.array([line.energy_kev for line in lines])
        colour = SERIES[n % len(SERIES)]
        scale = calibration.offset_dac[number] + calibration.gain_dac_per_kev[number] * ends
        upper.plot(ends, scale, color=colour, linewidth=1, label=f"threshold {number}")
        upper.plot(energies, [line.position_dac for line in lines], "o", color=colour, markersize=5)
        lower.plot(energies, [line.residual_kev for line in lines], "o", color=colour, markersize=5)
        sigma_kev = _scale_sigma_kev(calibration, number, ends)
        for sign in (-1, 1):
            lower.plot(ends, sign * sigma_kev, color=colour, linewidth=0.7, alpha=0.7)
    for source, energy in {line.source: line.energy_kev for line in calibration.lines}.items():
        upper.annotate(
            source, (energy, 0), xycoords=("data", "axes fraction"), xytext=(0, 4), textcoords="offset points",
            fontsize=SMALL_PT, color=SOFT_INK, ha="center",
        )  # fmt: skip
    legend(upper, "upper left")
    lower.axhline(0, color="#b0b0b0", linewidth=0.8, zorder=0)
    residuals = np.array([line.residual_kev for line in calibration.lines])
    worst = float(np.abs(residuals[np.isfinite(residuals)]).max(initial=0.1))
    lower.set_ylim(-1.4 * worst, 1.4 * worst)
    label(upper, "", "", "edge, DAC")
    label(lower, "", "energy, keV", "residual, keV\n(curves: standard error)")
    return figure


def end_point(calibration: Calibration) -> str:
    """Tell where the tube's spectrum ends on the energy scale, and where its voltage says it should."""
    end = calibration.end_point
    if end is None:
        return ""
    row = (
        f"{end.kvp:g}", figure_of(end.found_kev, ".2f"), figure_of(end.error_kev, "+.2f"),
        figure_of(end.sigma_kev, ".2f"),
    )  # fmt: skip
    return (
        soft(
            "A check that no source takes part in: the spectrum of the tube ends at its voltage. The error on the "
            "energy scale beside the residuals of the sources; the bar is one standard error, of counting alone. "
            "Pulses that overlap count beyond the end and move it up: if it moves with the tube's current, it is they."
        )
        + svg(end_point_figure(calibration), "Error of the energy scale at the end of the spectrum")
        + table(("voltage, kV", "end found, keV", "error, keV", "standard error, keV"), [row])
    )


def end_point_figure(calibration: Calibration) -> Figure:
    """Draw what the energy scale is wrong by at each source and at the end of the spectrum."""
    figure, (axes,) = plots(1)
    figure.set_size_inches(7.0, 2.7)
    axes.axhline(0, color="#b0b0b0", linewidth=0.8, zorder=0)
    lines = calibration.lines
    axes.plot(
        [line.energy_kev for line in lines], [line.residual_kev for line in lines], "o", color=SERIES[0], markersize=4,
        label="sources",
    )  # fmt: skip
    end = calibration.end_point
    if end is not None and np.isfinite([end.error_kev, end.sigma_kev]).all():
        axes.errorbar(
            end.kvp, end.error_kev, end.sigma_kev, fmt="D", color=SERIES[4], markersize=6, capsize=4, label="end point"
        )
    legend(axes)
    label(axes, "", "energy, keV", "error, keV")
    return figure


def pixel_scale(calibration: Calibration) -> str:
    """Tell each pixel's own offset and gain, how they spread, and how well they are known."""
    scale = calibration.pixel_scale
    if scale is None:
        return ""
    numbers = [n for n, plane in enumerate(scale.gain_dac_per_kev) if np.isfinite(plane).any()]
    if not numbers:
        return note("No pixel has an energy scale of its own.")
    energies = _ends_kev(calibration)
    rows = []
    for n in numbers:
        cells = [str(n)]
        for values, variance, digits in (
            (scale.offset_dac[n], scale.offset_variance[n], 2),
            (scale.gain_dac_per_kev[n], scale.gain_variance[n], 4),
        ):
            told = (median(values), _sigma(values), np.sqrt(np.maximum(median(variance), 0)))
            cells += [figure_of(float(value), f".{digits}f") for value in told]
        cells += [figure_of(median(scale.sigma_kev(n, energy)), ".2f") for energy in energies]
        rows.append((*cells, figure_of(float(scale.chi2_ratio[n]), ".2f")))
    head = ("threshold", "offset, DAC", "spread", "error", "gain, DAC/keV", "spread", "error")
    at = (f"at {energy:.0f} keV, keV" for energy in energies)
    maps = {f"offset, threshold {n}": scale.offset_dac[n] for n in numbers}
    gains = {f"gain, threshold {n}": scale.gain_dac_per_kev[n] for n in numbers}
    return (
        soft(
            "Medians over the pixels, the spread (sigma) between them, and the standard error of one pixel. "
            "Chi squared is that of the edges about each pixel's line, over its degrees of freedom; the errors hold it."
        )
        + table((*head, *at, "chi squared"), rows)
        + svg(
            pixel_scale_figure(scale, numbers, float(energies.mean())),
            "Offset and gain of the pixels, and the error of their scales",
        )
        + picture(png_bytes(maps_figure(maps, "DAC"), dpi=MAP_DPI), "Offset of every pixel")
        + picture(png_bytes(maps_figure(gains, "DAC/keV"), dpi=MAP_DPI), "Gain of every pixel")
    )


def pixel_scale_figure(scale: PixelScale, numbers: Sequence[int], energy_kev: float) -> Figure:
    """Draw the histograms of offset, gain and standard error of the pixels, each threshold in its colour."""
    figure, (offsets, gains, errors) = plots(3, n_cols=3)
    for n, number in enumerate(numbers):
        for axes, values in (
            (offsets, scale.offset_dac[number]),
            (gains, scale.gain_dac_per_kev[number]),
            (errors, scale.sigma_kev(number, energy_kev)),
        ):
            histogram(axes, values, colour=SERIES[n % len(SERIES)], name=f"threshold {number}")
    legend(offsets)
    label(offsets, "offset", "DAC", "pixels")
    label(gains, "gain", "DAC/keV", "pixels")
    label(errors, f"standard error at {energy_kev:.0f} keV", "keV", "pixels")
    return figure


def pixels(calibration: Calibration) -> str:
    """Tell which pixels are not good, and why."""
    classes, is_bad = calibration.pixel_class, calibration.is_bad
    n_bad, n_suspect = int(np.count_nonzero(is_bad)), int(np.count_nonzero((classes != 0) & ~is_bad))
    rows = (
        (
            name_of(bit), "suspect" if bit in SUSPECT else "not used", str(int(np.count_nonzero(classes & bit))),
            f"{100 * np.mean((classes & bit) != 0):.3f}",
        )
        for bit in PixelClass
    )  # fmt: skip
    suspect = f" Another {n_suspect} are suspect: used, but listed." if n_suspect else ""
    return (
        f"<p>{n_bad} of {classes.size} pixels ({100 * n_bad / classes.size:.2f} %) are not used; a pixel can be of "
        f"several classes, of which the map shows the first.{escape(suspect)}</p>"
        + table(("class", "policy", "pixels", "%"), rows, n_text=2)
        + picture(png_bytes(classes_figure(classes), dpi=MAP_DPI), "Classes of pixels")
    )


def _equalised(calibration: Calibration) -> list[int]:
    return [n for n, edges in enumerate(calibration.edges_after_dac) if np.isfinite(edges).any()]


def _measured(calibration: Calibration) -> list[int]:
    return sorted({line.threshold for line in calibration.lines})


def _ends_kev(calibration: Calibration) -> NDArray[np.float64]:
    """Return the lowest and the highest energy that was measured; without any, two common ones."""
    energies = [line.energy_kev for line in calibration.lines] or [20.0, 80.0]
    return np.array([min(energies), max(energies)])


def _scale_sigma_kev(calibration: Calibration, number: int, energies_kev: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the standard error of a threshold's energy scale; NaN where it is not known."""
    if calibration.scale_covariance is None:
        return np.full(energies_kev.shape, np.nan)
    design = np.stack([np.ones_like(energies_kev), energies_kev], axis=1)
    variance = np.einsum("ei,ij,ej->e", design, calibration.scale_covariance[number], design)
    return np.sqrt(np.maximum(variance, 0)) / calibration.gain_dac_per_kev[number]


def _sigma(values: NDArray[np.floating]) -> float:
    return mean_and_sigma(values)[1] if np.isfinite(values).sum() > 1 else float("nan")
