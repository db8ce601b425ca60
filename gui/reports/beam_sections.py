"""What the report of a calibration tells of the light and its way: count rates, matter, the response.

Every section is a function of the calibration that returns HTML, or nothing where its step was not done.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from calibration.count_rate import CountRate
from calibration.equalisation import mean_and_sigma
from calibration.material_basis import MaterialBasis
from calibration.response import Response
from calibration.store import Calibration
from calibration.thickness import EquivalentThickness, StepWedge
from gui.picture import maps_figure, median, png_bytes
from gui.reports.page import SERIES, figure_of, histogram, label, legend, picture, plots, soft, svg, table

MAP_DPI = 100
LOWEST_KEV = 5.0
STEP_KEV = 0.5


def count_rate(calibration: Calibration) -> str:
    """Tell what the counters lose and gain at high rates, and each pixel's dead time."""
    record = calibration.count_rate
    if record is None:
        return ""
    at_ten = record.rate_at_loss_per_s(0.1)
    reached = f"{at_ten:,.0f} /s" if np.isfinite(at_ten) else "not reached in the sweep"
    ratio = record.dead_time_ratio
    spread = _sigma(ratio[~calibration.is_bad])
    laws = (
        (law + (", taken" if law == record.law else ""), figure_of(bic, ".0f"))
        for law, bic in zip(record.laws, record.bic, strict=True)
    )
    counters = (
        (
            f"above {energy:.1f} keV", figure_of(slope / 1000, ".1f"), figure_of(rates[-1] / 1000, ".2f"),
            figure_of(100 * (1 - rates[-1] / (slope * record.currents_ma[-1])), ".1f"),
            figure_of(100 * residual, ".3f"),
        )
        for energy, slope, rates, residual in zip(
            record.thresholds_kev, record.true_rates_per_s_ma, record.rates_per_s.T, record.residual_relative,
            strict=True,
        )
    )  # fmt: skip
    head = ("counter", "true rate, 1000/s/mA", "counted at the end, 1000/s", "lost there, %", "residual, %")
    return (
        soft(
            f"The mean good pixel in {len(record.currents_ma)} currents of the tube; losses below 0 are gains. "
            f"10 % of the lowest counter are lost at a true rate of {reached}; the sweep ends at "
            f"{record.highest_rate_per_s:,.0f} /s. Dead times differ by {figure_of(100 * spread, '.1f')} % "
            f"between pixels (sigma); one pixel's was measured to "
            f"{figure_of(100 * record.dead_time_sigma_relative, '.1f')} %, before it was drawn to the mean."
        )
        + svg(count_rate_figure(record, calibration.is_bad), "Counts and losses in the sweep of the current")
        + table(head, counters)
        + table(("law of the losses", "BIC"), laws)
        + picture(
            png_bytes(maps_figure({"dead time of each pixel": ratio}, "of the mean pixel's"), dpi=MAP_DPI),
            "Dead time of every pixel",
        )
    )


def count_rate_figure(record: CountRate, is_bad: NDArray[np.bool_]) -> Figure:
    """Draw what was counted and lost against the law, and the histogram of the pixels' dead times."""
    figure, (counted, lost, dead_times) = plots(3, n_cols=3, height_in=3.0)
    currents = np.linspace(0, float(record.currents_ma[-1]), 200)[1:]
    law = record.counted_per_s(currents)
    for k, energy in enumerate(record.thresholds_kev):
        colour, name = SERIES[k % len(SERIES)], f"above {energy:.0f} keV"
        counted.plot(record.currents_ma, record.rates_per_s[:, k] / 1000, "o", color=colour, markersize=3.5, label=name)
        counted.plot(currents, law[:, k] / 1000, color=colour, linewidth=1)
        slope = record.true_rates_per_s_ma[k]
        counted.plot(currents, slope * currents / 1000, color=colour, linewidth=0.7, linestyle=(0, (4, 3)))
        true_first = record.true_rates_per_s_ma[0] * currents / 1000
        lost.plot(true_first, 100 * (1 - law[:, k] / (slope * currents)), color=colour, linewidth=1, label=name)
        at = record.true_rates_per_s_ma[0] * record.currents_ma / 1000
        share = record.rates_per_s[:, k] / (slope * record.currents_ma)
        lost.plot(at, 100 * (1 - share), "o", color=colour, markersize=3.5)
    lost.axhline(0, color="#b0b0b0", linewidth=0.8, zorder=0)
    histogram(dead_times, record.dead_time_ratio[~is_bad])
    legend(counted)
    label(counted, "counted (dashed: without losses)", "current, mA", "1000/s")
    label(lost, f"lost, {record.law} law", "true rate of the lowest counter, 1000/s", "%")
    label(dead_times, "dead time of the pixels", "of the mean pixel's", "pixels")
    return figure


def wedge(calibration: Calibration) -> str:
    """Tell how much of the open beam each bin keeps behind each plate."""
    record = calibration.wedge
    if record is None:
        return ""
    kept = record.counts / record.open_beam
    rows = (
        (
            plate,
            *(figure_of(100 * share, ".2f") for share in shares),
            figure_of(100 * float(np.max(sigmas)), ".3f"),
        )
        for plate, shares, sigmas in zip(record.plates, kept, record.sigma_relative, strict=True)
    )  # fmt: skip
    return (
        soft("What is left of the open beam behind each plate, in the mean good pixel. A bent curve: the beam hardens.")
        + svg(wedge_figure(record), "Attenuation over thickness")
        + table(("plate", *(f"{name}, %" for name in _bins(record.thresholds_kev)), "largest relative error, %"), rows)
    )


def wedge_figure(record: StepWedge) -> Figure:
    """Draw the signal of each bin behind the plates of each material alone."""
    figure, panels = plots(len(record.materials), n_cols=3, height_in=3.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        signal = -np.log(record.counts / record.open_beam)
    for m, (axes, material) in enumerate(zip(panels, record.materials, strict=True)):
        is_alone = (record.layers_mm > 0).sum(axis=1) == (record.layers_mm[:, m] > 0)
        layers_mm = record.layers_mm[is_alone, m]
        order = np.argsort(layers_mm)
        for k, name in enumerate(_bins(record.thresholds_kev)):
            axes.plot(
                np.append(0, layers_mm[order]), np.append(0, signal[is_alone, k][order]), "o-", markersize=3.5,
                color=SERIES[k % len(SERIES)], linewidth=1, label=name,
            )  # fmt: skip
        if m == 0:
            legend(axes)
        label(axes, material, "mm", "-ln(counts / open beam)")
    return figure


def thickness(calibration: Calibration) -> str:
    """Tell the way from signal to thickness of one material, common and of each pixel."""
    record = calibration.thickness
    if record is None:
        return ""
    names, is_good = _bins(record.thresholds_kev), ~calibration.is_bad
    rows = (
        (
            name, figure_of(record.residual_mm[k], ".4f"),
            figure_of(median(record.sigma_mm[k][is_good]), ".3f"),
            figure_of(100 * _sigma(record.scale[k][is_good]), ".2f"),
            figure_of(100 * _sigma(record.bend[k][is_good]), ".2f"),
            figure_of(record.highest_signal[k], ".3f"), str(int(np.count_nonzero(record.common_mm[k]))),
        )
        for k, name in enumerate(names)
    )  # fmt: skip
    head = (
        "bin", "plates off by, mm", "pixel's error, mm", "scale, sigma %", "bend, sigma %", "highest signal", "degree",
    )  # fmt: skip
    scales = {name: 100 * record.scale[k] for k, name in enumerate(names)}
    return (
        soft(
            f"Thickness of {record.material} at {record.tube_kvp:g} kV that shows the same as what is in the beam, up "
            f"to {record.thickness_mm[-1]:.3g} mm. Linearised line integrals are those of {record.reference_mm:g} mm. "
            "A pixel's own curve differs from the common one by a scale, and a bend towards the thickest plate."
        )
        + svg(thickness_figure(record, calibration.is_bad), "Thickness over signal, and the plates off the curve")
        + table(head, rows)
        + "<h3>Each pixel's scale against the common curve</h3>"
        + picture(png_bytes(maps_figure(scales, "%"), dpi=MAP_DPI), "Scale of every pixel's curve")
    )


def thickness_figure(record: EquivalentThickness, is_bad: NDArray[np.bool_]) -> Figure:
    """Draw the common curve of each bin with its plates, how far these lie off it, and the pixels' standard errors."""
    figure, (curves, off, errors) = plots(3, n_cols=3, height_in=3.0)
    powers = np.arange(1, record.common_mm.shape[1] + 1)
    ways_mm = np.einsum("pkn,kn->pk", record.signals[..., None] ** powers, record.common_mm)
    # The curves are of the mean ray's way, which slants; the plates tell by how much that is longer.
    slant = float((record.thickness_mm @ ways_mm).mean() / (record.thickness_mm @ record.thickness_mm))
    for k, name in enumerate(_bins(record.thresholds_kev)):
        colour = SERIES[k % len(SERIES)]
        signal = np.linspace(0, float(record.highest_signal[k]), 100)
        curves.plot(signal, (signal[:, None] ** powers) @ record.common_mm[k], color=colour, linewidth=1)
        curves.plot(record.signals[:, k], record.thickness_mm, "o", color=colour, markersize=3.5, label=name)
        missed_mm = ways_mm[:, k] - slant * record.thickness_mm
        off.plot(record.thickness_mm, missed_mm, "o-", color=colour, markersize=3.5, linewidth=1)
        histogram(errors, record.sigma_mm[k][~is_bad], colour=colour, name=name)
    off.axhline(0, color="#b0b0b0", linewidth=0.8, zorder=0)
    legend(curves)
    label(curves, "common curve", "signal, -ln(counts / open beam)", "mm")
    label(off, "curve minus plate", f"{record.material}, mm", "mm")
    label(errors, "standard error of a pixel, mid range", "mm", "pixels")
    return figure


def response(calibration: Calibration) -> str:
    """Tell what each bin counts of each energy, and how well that foretells plates that were held back."""
    record = calibration.response
    if record is None:
        return ""
    n_fitted = len(record.plates) - record.n_checks
    errors = 100 * (record.predicted / record.measured - 1)
    plates = (
        (plate + (", held back" if n >= n_fitted else ""), *(figure_of(error, "+z.2f") for error in errors[n]))
        for n, plate in enumerate(record.plates)
    )
    sigmas = np.sqrt(np.maximum(np.diag(record.covariance), 0))
    parameters = (
        (_parameter_name(name, record.thresholds_kev), figure_of(value, ".4g"), figure_of(sigma, ".2g"))
        for name, value, sigma in zip(record.parameter_names, record.parameters, sigmas, strict=True)
    )
    held_back = np.abs(errors[n_fitted:])
    told = "No plate was held back."
    if held_back.size:
        told = f"Worst error of a plate that was held back: {figure_of(float(held_back.max()), '.2f')} %."
    sensor = record.sensor
    return (
        soft(
            f"Of {sensor.thickness_mm:g} mm of {sensor.material}, {sensor.pitch_mm:g} mm pitch, at "
            f"{record.tube_kvp:g} kV. {told} Chi squared over {record.n_degrees} degrees of freedom: "
            f"{figure_of(record.chi_square_ratio, '.2f')}; above 1, the form is not exact, and the errors are enlarged."
        )
        + svg(response_figure(record), "Response, spectrum, and errors of the plates")
        + "<h3>Foretold against measured transmission, %</h3>"
        + table(("plate", *_bins(record.thresholds_kev)), plates)
        + "<h3>Parameters</h3>"
        + table(("parameter", "value", "standard error"), parameters)
    )


def response_figure(record: Response) -> Figure:
    """Draw R[bin, energy], the tube's spectrum as it is and as each bin sees it, and the errors of the plates."""
    figure = Figure(figsize=(10.4, 6.6), facecolor="white", layout="constrained")
    grid = figure.add_gridspec(2, 2)
    counts, spectrum, errors = (figure.add_subplot(place) for place in (grid[0, 0], grid[0, 1], grid[1, :]))
    energies = np.arange(LOWEST_KEV, record.tube_kvp + STEP_KEV, STEP_KEV)
    if np.isfinite(record.parameters).all():
        seen, tube = record.matrix(record.thresholds_kev, energies), record.spectrum(energies)
    else:
        seen, tube = np.full((len(record.thresholds_kev), len(energies)), np.nan), np.full(len(energies), np.nan)
    spectrum.fill_between(energies, tube / STEP_KEV, color="#d8d8d8", linewidth=0, label="tube")
    n_fitted = len(record.plates) - record.n_checks
    off = 100 * (record.predicted / record.measured - 1)
    for k, name in enumerate(_bins(record.thresholds_kev)):
        colour = SERIES[k % len(SERIES)]
        counts.plot(energies, seen[k], color=colour, linewidth=1.2, label=name)
        spectrum.plot(energies, seen[k] * tube / STEP_KEV, color=colour, linewidth=1.2, label=name)
        errors.plot(np.arange(n_fitted), off[:n_fitted, k], "o", color=colour, markersize=3.5)
        errors.plot(np.arange(n_fitted, len(off)), off[n_fitted:, k], "D", color=colour, markersize=5)
    errors.axhline(0, color="#b0b0b0", linewidth=0.8, zorder=0)
    legend(spectrum)
    label(counts, "response", "photon energy, keV", "counts per photon")
    label(spectrum, "spectrum, and what each bin counts of it", "photon energy, keV", "per photon and keV")
    label(errors, "foretold minus measured (diamonds: held back)", "", "% of the transmission")
    errors.set_xticks(range(len(record.plates)), record.plates, rotation=30, ha="right")
    return figure


def _parameter_name(name: str, thresholds_kev: Sequence[float]) -> str:
    if name.startswith("threshold_"):
        return f"threshold at {thresholds_kev[int(name.split('_')[1])]:.3g} keV stands off by, keV"
    for suffix, unit in (("_kev", "keV"), ("_mm", "mm"), ("_relative", "relative")):
        if name.endswith(suffix):
            return name.removesuffix(suffix).replace("_", " ") + f", {unit}"
    return name.replace("_", " ")


def basis(calibration: Calibration) -> str:
    """Tell how strongly each material attenuates each bin."""
    record = calibration.basis
    if record is None:
        return ""
    kvp = "" if record.tube_kvp is None else f" at {record.tube_kvp:g} kV"
    rows = (
        (material, *(figure_of(value, ".5f") for value in values))
        for material, values in zip(record.materials, record.attenuation_per_mm_per_g_cm3.T, strict=True)
    )
    condition = float(np.linalg.cond(record.attenuation_per_mm_per_g_cm3))
    return (
        soft(
            f"Effective attenuation of each material in each bin{kvp}, in 1/mm per g/cm³. Condition number "
            f"{condition:.3g}: the more alike the curves are in form, the higher it is, and the more noise there is in "
            "the materials."
        )
        + svg(basis_figure(record), "Attenuation of each material in each bin")
        + table(("material", *_bins(record.thresholds_kev)), rows)
    )


def basis_figure(record: MaterialBasis) -> Figure:
    """Draw the attenuation of each material over the bins, as it is and relative to its mean."""
    figure, (absolute, form) = plots(2, n_cols=2, height_in=3.0)
    places, names = np.arange(len(record.thresholds_kev)), _bins(record.thresholds_kev)
    for m, material in enumerate(record.materials):
        values = record.attenuation_per_mm_per_g_cm3[:, m]
        colour = SERIES[m % len(SERIES)]
        absolute.plot(places, values, "o-", color=colour, markersize=4, linewidth=1.2, label=material)
        form.plot(places, values / values.mean(), "o-", color=colour, markersize=4, linewidth=1.2)
    if (record.attenuation_per_mm_per_g_cm3 > 0).all():
        absolute.set_yscale("log")
    form.axhline(1, color="#b0b0b0", linewidth=0.8, zorder=0)
    legend(absolute)
    label(absolute, "attenuation", "", "1/mm per g/cm³")
    label(form, "form: over its mean", "", "")
    for axes in (absolute, form):
        axes.set_xticks(places, names)
    return figure


def _bins(thresholds_kev: Sequence[float] | NDArray[np.float64]) -> list[str]:
    ends = [f"{threshold:.3g}" for threshold in thresholds_kev]
    return [f"{low}-{high} keV" for low, high in pairwise(ends)] + [f"above {ends[-1]} keV"]


def _sigma(values: NDArray[np.floating]) -> float:
    return mean_and_sigma(values)[1] if np.isfinite(values).sum() > 1 else float("nan")
