"""What is plotted of a finished step: what a calibration holds of it, beside the one before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from calibration.equalisation import mean_and_sigma
from calibration.pixels import PixelClass
from calibration.store import Calibration
from firmware_iface.chip import TRIM_CODES
from gui.calibrate.panels import (
    CLASS_WORDS,
    GREY,
    Chart,
    Line,
    Panel,
    Style,
    bin_names,
    classes_picture,
    code_ends,
    ends_for,
    histogram,
    line,
    numbers_seen,
    picture,
)

TRIM_ENDS = np.arange(TRIM_CODES + 1) - 0.5
MOST_SHOWN = 4
"""Thresholds that have a plot of their own."""


def result_panels(step: str, after: Calibration, before: Calibration | None = None) -> list[Panel]:
    """Return the plots of a step; what the calibration before holds of it stands behind, in grey.

    Returns
    -------
    Nothing where the step has not been done.
    """
    return _RESULTS[step](after, before)


def used_thresholds(calibration: Calibration) -> list[int]:
    """Return the thresholds that have an energy scale of their own, or all that were equalised."""
    return sorted({each.threshold for each in calibration.lines}) or numbers_seen(calibration.edges_after_dac)


def _bias(after: Calibration, before: Calibration | None) -> list[Panel]:
    tuned = after.bias_currents
    if tuned is None:
        return []
    panels: list[Panel] = []
    for place, name in enumerate(tuned.names):
        target_v = float(tuned.target_v[place])
        lines: list[Line] = [
            line("target", tuned.swept_codes[[0, -1]], [target_v] * 2, style=Style.DASHED, series=GREY)
        ]
        told = []
        for chip, (sweep, code, read_v) in enumerate(
            zip(tuned.swept_v[:, place], tuned.codes[:, place], tuned.voltage_v[:, place], strict=True)
        ):
            lines.append(line(f"chip {chip + 1}", tuned.swept_codes, sweep, series=chip))
            lines.append(line("", [code], [read_v], style=Style.DOTS, series=chip))
            told.append(f"chip {chip + 1}: code {int(code)}, {read_v:.4f} V ({1000 * (read_v - target_v):+.1f} mV)")
            if before is not None and before.dacs.get(name) is not None:
                told[-1] += f", before: code {before.dacs[name]}"
        panels.append(Chart(title=name, x_label="DAC code", y_label="V", lines=tuple(lines), note="; ".join(told)))
    return panels


def _equalise(after: Calibration, before: Calibration | None) -> list[Panel]:
    numbers = used_thresholds(after)[:MOST_SHOWN]
    if not numbers:
        return []
    panels: list[Panel] = []
    for number in numbers:
        edges = {"middle trim": after.edges_before_dac[number], "chosen trims": after.edges_after_dac[number]}
        ends = code_ends(edges.values())
        lines = [
            histogram(name, values, ends, series=GREY if name == "middle trim" else 0) for name, values in edges.items()
        ]
        top = max(float(each.y.max()) for each in lines)
        lines.append(line("target", [after.target_dac] * 2, [0, top], style=Style.DASHED, series=1))
        sigmas = [mean_and_sigma(values)[1] for values in edges.values()]
        gain = float(after.gain_dac_per_kev[number])
        panels.append(
            Chart(
                title=f"Edges of threshold {number}", x_label="edge, DAC code", y_label="pixels", lines=tuple(lines),
                note=" to ".join(f"{sigma:.2f} codes ({sigma / gain:.2f} keV)" for sigma in sigmas) + " sigma",
            )
        )  # fmt: skip
    panels.append(trims_chart(after, before, numbers))
    first = numbers[0]
    panels.append(picture(f"Trim of every pixel, threshold {first}", after.trim[first], "trim code"))
    return panels


def trims_chart(after: Calibration, before: Calibration | None, numbers: Sequence[int]) -> Chart:
    """Draw how many pixels have each trim code, with those of the calibration before in grey."""
    lines = []
    for place, number in enumerate(numbers):
        if before is not None and before.trim.shape == after.trim.shape:
            lines.append(histogram("before" if not place else "", before.trim[number], TRIM_ENDS, series=GREY))
        lines.append(histogram(f"threshold {number}", after.trim[number], TRIM_ENDS, series=place))
    return Chart(
        title="Trims" + (", before in grey" if before is not None else ""), x_label="trim code", y_label="pixels",
        lines=tuple(lines), note="Many pixels at 0 or 31 mean that the trims reach too little.",
    )  # fmt: skip


def _energy(after: Calibration, before: Calibration | None) -> list[Panel]:
    if not after.lines:
        return []
    numbers = used_thresholds(after)
    ends = np.array([0.0, 1.1 * max(each.energy_kev for each in after.lines)])
    scale, rests = [], []
    for place, number in enumerate(numbers):
        mine = [each for each in after.lines if each.threshold == number]
        energies = [each.energy_kev for each in mine]
        if before is not None and before.lines and number < len(before.offset_dac):
            behind = before.offset_dac[number] + before.gain_dac_per_kev[number] * ends
            scale.append(line("before" if not place else "", ends, behind, style=Style.DASHED, series=GREY))
        fitted = after.offset_dac[number] + after.gain_dac_per_kev[number] * ends
        scale.append(line(f"threshold {number}", ends, fitted, series=place))
        scale.append(line("", energies, [each.position_dac for each in mine], style=Style.DOTS, series=place))
        residuals = [each.residual_kev for each in mine]
        rests.append(line(f"threshold {number}", energies, residuals, style=Style.DOTS, series=place))
    told = f"rms of the residuals {after.residual_rms_kev:.3f} keV"
    end = after.end_point
    if end is not None:
        rests.append(line("end of the tube's spectrum", [end.kvp], [end.error_kev], style=Style.DOTS, series=5))
        told += f"; the end of {end.kvp:g} kV was found at {end.found_kev:.2f} +- {end.sigma_kev:.2f} keV"
    rests.append(line("", ends, [0.0, 0.0], style=Style.DASHED, series=GREY))
    panels: list[Panel] = [
        Chart(title="Energy scale", x_label="energy, keV", y_label="edge, DAC code", lines=tuple(scale)),
        Chart(title="Residuals", x_label="energy, keV", y_label="residual, keV", lines=tuple(rests), note=told),
    ]
    pixel = after.pixel_scale
    if pixel is not None:
        maps = {n: pixel.gain_dac_per_kev[n] for n in numbers_seen(pixel.gain_dac_per_kev)}
        if maps:
            bins = ends_for(maps.values())
            panels.append(
                Chart(
                    title="Gains of the pixels", x_label="gain, DAC code/keV", y_label="pixels",
                    lines=tuple(histogram(f"threshold {n}", values, bins, series=place)
                                for place, (n, values) in enumerate(maps.items())),
                )
            )  # fmt: skip
            first = next(iter(maps))
            panels.append(picture(f"Gain of every pixel, threshold {first}", maps[first], "DAC code/keV"))
    return panels


def _pixels(after: Calibration, before: Calibration | None) -> list[Panel]:
    if not any(record.step == "pixels" for record in after.history):
        return []
    places = np.arange(len(CLASS_WORDS))

    def counts(calibration: Calibration) -> list[int]:
        return [int(np.count_nonzero(calibration.pixel_class & np.uint16(reason))) for reason in CLASS_WORDS]

    lines = []
    told = f"{np.count_nonzero(after.is_bad)} of {after.is_bad.size} pixels are not used"
    if before is not None:
        lines.append(line("before", places, counts(before), style=Style.DOTS, series=GREY))
        told += f"; before: {np.count_nonzero(before.is_bad)}"
    lines.append(line("now", places, counts(after), style=Style.DOTS, series=0))
    return [
        classes_picture("Pixels that are not good, and why", after.pixel_class),
        Chart(
            title="How many of each reason", x_label="", y_label="pixels", lines=tuple(lines), note=told,
            x_names=tuple(text.split(" (")[0] for text in CLASS_WORDS.values()),
        ),
        *_flats(after),
    ]  # fmt: skip


def _flats(calibration: Calibration) -> list[Panel]:
    """Show how even the open beam is: the lowest threshold as a map, and all as histograms, in % of their means."""
    flat = calibration.flat_field
    if flat is None:
        return []
    is_bad, found = calibration.is_bad, flat.evenness(calibration.is_bad)
    shares = [
        np.where(is_bad, np.nan, 100 * plane / each.mean_per_s)
        for plane, each in zip(flat.rates_per_s, found, strict=True)
        if each.mean_per_s > 0
    ]
    if not shares:
        return []
    ends = ends_for(shares)
    names = [f"above {energy_kev:g} keV" for energy_kev in flat.thresholds_kev]
    told = "; ".join(
        f"{name}: {each.mean_per_s:.4g} counts/s, spread {100 * each.spread_ratio:.2f} % (counting "
        f"{100 * each.counting_ratio:.2f} %)"
        for name, each in zip(names, found, strict=True)
    )
    return [
        picture(
            f"Open beam {names[0]}", shares[0], "% of the mean",
            note=f"{flat.n_frames} frames, {flat.exposure_s:.4g} s, {flat.tube_kvp:g} kV, {flat.current_ma:g} mA",
        ),
        Chart(
            title="How even the open beam is", x_label="% of the mean", y_label="pixels",
            lines=tuple(
                histogram(name, values, ends, series=place)
                for place, (name, values) in enumerate(zip(names[:MOST_SHOWN], shares, strict=False))
            ),
            note=told,
        ),
    ]  # fmt: skip


def _count_rate(after: Calibration, before: Calibration | None) -> list[Panel]:
    record = after.count_rate
    if record is None:
        return []
    currents = np.linspace(0, float(record.currents_ma[-1]), 120)[1:]
    law = record.counted_per_s(currents)
    counted, lost = [], []
    for place, energy in enumerate(record.thresholds_kev):
        slope = record.true_rates_per_s_ma[place]
        name = f"above {energy:.0f} keV"
        counted.append(line(name, record.currents_ma, record.rates_per_s[:, place], style=Style.DOTS, series=place))
        counted.append(line("", currents, law[:, place], series=place))
        counted.append(line("", currents, slope * currents, style=Style.DASHED, series=GREY))
        share = 100 * (1 - record.rates_per_s[:, place] / (slope * record.currents_ma))
        lost.append(line(name, record.currents_ma, share, style=Style.DOTS, series=place))
        lost.append(line("", currents, 100 * (1 - law[:, place] / (slope * currents)), series=place))
    at_ten = record.rate_at_loss_per_s(0.1)
    reached = f"10 % lost at {at_ten:,.0f} a pixel and s" if np.isfinite(at_ten) else "10 % lost is not reached"
    told = f"{record.law} law; {reached}"
    if before is not None and before.count_rate is not None:
        told += f"; before: {before.count_rate.rate_at_loss_per_s(0.1):,.0f}"
    return [
        Chart(
            title="Counted (dots), law (lines), nothing lost (dashed)", x_label="current, mA",
            y_label="counts a pixel and s", lines=tuple(counted), note=told,
        ),
        Chart(title="Lost", x_label="current, mA", y_label="%", lines=tuple(lost)),
        picture("Dead time of every pixel", record.dead_time_ratio, "of the mean pixel's"),
    ]  # fmt: skip


def _materials(after: Calibration, before: Calibration | None) -> list[Panel]:
    basis = after.basis
    if basis is None:
        return []
    names = bin_names(basis.thresholds_kev)
    absolute, form = [], []
    for place, material in enumerate(basis.materials):
        values = basis.attenuation_per_mm_per_g_cm3[:, place]
        if before is not None and before.basis is not None and material in before.basis.materials:
            behind = before.basis.attenuation_per_mm_per_g_cm3[:, before.basis.materials.index(material)]
            if behind.shape == values.shape:
                name = "before" if not place else ""
                absolute.append(line(name, np.arange(len(values)), behind, style=Style.DASHED, series=GREY))
        absolute.append(line(material, np.arange(len(values)), values, series=place))
        absolute.append(line("", np.arange(len(values)), values, style=Style.DOTS, series=place))
        form.append(line(material, np.arange(len(values)), values / values.mean(), series=place))
        form.append(line("", np.arange(len(values)), values / values.mean(), style=Style.DOTS, series=place))
    condition = float(np.linalg.cond(basis.attenuation_per_mm_per_g_cm3))
    return [
        Chart(
            title="Attenuation of each material", x_label="energy bin", y_label="1/mm per g/cm³",
            lines=tuple(absolute), x_names=names,
        ),
        Chart(
            title="How alike the materials are", x_label="energy bin", y_label="attenuation over its mean",
            lines=tuple(form), x_names=names,
            note=f"condition number {condition:.3g}: the more alike the forms, the higher it is, and the noisier "
            "the materials",
        ),
    ]  # fmt: skip


def _geometry(after: Calibration, before: Calibration | None) -> list[Panel]:
    found = after.alignment
    if found is None:
        return []
    height_mm = found.geometry.rows / 2 * found.geometry.pitch_mm / found.geometry.magnification
    half_u, half_v = found.geometry.cols / 2, found.geometry.rows / 2
    lines = [
        line("detector", [-half_u, half_u, half_u, -half_u, -half_u], [-half_v, -half_v, half_v, half_v, -half_v],
             series=GREY)
    ]  # fmt: skip
    for name, calibration, series in (("axis before", before, GREY), ("axis of rotation", after, 0)):
        if calibration is not None and calibration.alignment is not None:
            views = calibration.alignment.geometry.views(0.0)
            foot = views.shadows_px([(0, 0, -height_mm), (0, 0, height_mm)])[0]
            style = Style.DASHED if series == GREY else Style.LINE
            lines.append(line(name, foot[:, 0], foot[:, 1], style=style, series=series))
    values, errors = geometry_rows(after)
    told = "; ".join(f"{name} {value} +- {error}" for (name, value), error in zip(values.items(), errors, strict=True))
    return [
        Chart(
            title="The axis of rotation on the detector", x_label="column from the centre, pixels",
            y_label="row, pixels", lines=tuple(lines),
            note=f"residual {found.residual_rms_px:.3f} pixels rms, {found.n_views} views; {told}",
        )
    ]  # fmt: skip


def geometry_rows(calibration: Calibration) -> tuple[Mapping[str, str], list[str]]:
    """Return what was found of the geometry, in mm and degrees, and the standard errors."""
    found = calibration.alignment
    if found is None:
        return {}, []
    values, errors = {}, []
    for name, error in zip(found.parameters, found.standard_errors.tolist(), strict=True):
        value, is_angle = float(getattr(found.geometry, name)), name.endswith("_rad")
        unit = "\N{DEGREE SIGN}" if is_angle else " mm"
        words = name.removesuffix("_rad").removesuffix("_mm").replace("_", " ")
        values[words] = f"{np.rad2deg(value) if is_angle else value:.4f}{unit}"
        errors.append(f"{np.rad2deg(error) if is_angle else error:.2g}")
    return values, errors


def _wedge(after: Calibration, _: Calibration | None) -> list[Panel]:
    record = after.wedge
    if record is None:
        return []
    with np.errstate(divide="ignore", invalid="ignore"):
        signal = -np.log(record.counts / record.open_beam)
    panels: list[Panel] = []
    for place, material in enumerate(record.materials):
        is_alone = (record.layers_mm > 0).sum(axis=1) == (record.layers_mm[:, place] > 0)
        order = np.argsort(record.layers_mm[is_alone, place])
        lines = []
        for number, name in enumerate(bin_names(record.thresholds_kev.tolist())):
            thickness_mm = np.append(0, record.layers_mm[is_alone, place][order])
            values = np.append(0, signal[is_alone, number][order])
            lines += [line(name, thickness_mm, values, series=number)]
            lines += [line("", thickness_mm, values, style=Style.DOTS, series=number)]
        panels.append(
            Chart(
                title=f"Behind {material}", x_label="thickness, mm", y_label="-ln of what is left", lines=tuple(lines)
            )
        )
    flickers = int(np.count_nonzero(after.pixel_class & np.uint16(PixelClass.TELEGRAPH)))
    if panels and isinstance(panels[0], Chart):
        panels[0] = Chart(
            title=panels[0].title, x_label=panels[0].x_label, y_label=panels[0].y_label, lines=panels[0].lines,
            note=f"A bent curve: the beam hardens. {flickers} pixels flicker.",
        )  # fmt: skip
    return panels


def _response(after: Calibration, _: Calibration | None) -> list[Panel]:
    record = after.response
    if record is None:
        return []
    names = bin_names(record.thresholds_kev)
    energies = np.arange(5.0, record.tube_kvp, 0.5)
    panels: list[Panel] = []
    if np.isfinite(record.parameters).all():
        seen, tube = record.matrix(record.thresholds_kev, energies), record.spectrum(energies)
        top = max(float(tube.max()), 1e-12)
        counts = [line(name, energies, seen[k], series=k) for k, name in enumerate(names)]
        of_tube = [line("tube", energies, tube / top, series=GREY)]
        of_tube += [line(name, energies, seen[k] * tube / top, series=k) for k, name in enumerate(names)]
        panels += [
            Chart(title="Response", x_label="photon energy, keV", y_label="counts a photon", lines=tuple(counts)),
            Chart(
                title="The tube's spectrum, and what each bin counts of it", x_label="photon energy, keV",
                y_label="share of its highest", lines=tuple(of_tube),
            ),
        ]  # fmt: skip
    off = 100 * (record.predicted / record.measured - 1)
    rests = [line(name, np.arange(len(off)), off[:, k], style=Style.DOTS, series=k) for k, name in enumerate(names)]
    worst = record.figures["worst_check_percent"]
    told = "" if worst is None else f"; the worst is off by {worst} %"
    return [
        *panels,
        Chart(
            title="Foretold minus measured", x_label="", y_label="% of the transmission", lines=tuple(rests),
            x_names=tuple(record.plates),
            note=f"the last {record.n_checks} plates were held back{told}",
        ),
    ]  # fmt: skip


_RESULTS: Mapping[str, Callable[[Calibration, Calibration | None], list[Panel]]] = {
    "bias": _bias,
    "equalise": _equalise,
    "energy": _energy,
    "pixels": _pixels,
    "count-rate": _count_rate,
    "materials": _materials,
    "geometry": _geometry,
    "wedge": _wedge,
    "response": _response,
}
