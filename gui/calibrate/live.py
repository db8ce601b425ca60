"""What is plotted while a step runs, from what a watch has seen of it: pure, and quick enough to be asked often."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from acquisition.calibrate.watch import CurveFitted, EdgesFound, Seen, Series
from firmware_iface.chip import TRIM_CODES
from gui.calibrate import live_beam
from gui.calibrate.panels import (
    Chart,
    Line,
    Panel,
    Style,
    code_ends,
    ends_for,
    histogram,
    line,
    numbers_seen,
    picture,
)

MOST_LINES = 8
TRIM_ENDS = np.arange(TRIM_CODES + 1) - 0.5


def live_panels(seen: Seen, thresholds_kev: Sequence[float] = ()) -> list[Panel]:
    """Return the plots of the step that runs, best first; none before it has shown anything.

    Parameters
    ----------
    thresholds_kev : sequence of float, optional
        Of the scan, where it has one set: bins are then told in keV.
    """
    if not seen.series and not seen.found:
        return []
    if seen.step == "equalise":
        return _equalise(seen)
    if seen.step == "energy":
        return _energy(seen)
    if seen.step == "response":
        scans = [each for each in seen.series if len(each.codes_dac) > 1]
        return [*_scans(seen, scans, "S-curves of the sources"), *live_beam.plates(seen, thresholds_kev)]
    if seen.step == "count-rate":
        return [*live_beam.count_rate(seen), *_frames(seen, has_scatter=False)]
    if seen.step == "geometry":
        return live_beam.geometry(seen) or _frames(seen)
    if seen.step == "wedge":
        return [*live_beam.plates(seen, thresholds_kev), *_frames(seen, has_scatter=False)]
    if seen.step == "materials":
        return [*live_beam.cells(seen, thresholds_kev), *_frames(seen, has_scatter=False)]
    return _frames(seen)


def _equalise(seen: Seen) -> list[Panel]:
    edges = [each for each in seen.found if isinstance(each, EdgesFound)]
    panels: list[Panel] = []
    now = seen.series[-1] if seen.series else None
    moving = now.peaks_dac if now is not None else None
    if now is not None and moving is not None:
        panels.append(_curves(f"{now.stage}: mean counts of a pixel", now))
        maps = {f"threshold {number}": moving[place] for place, number in enumerate(now.thresholds)}
        panels.append(_histograms("Edges moving: where pixels have counted most", maps, "edge, DAC code"))
        panels.append(picture(f"Edges so far, threshold {now.thresholds[0]}", moving[0], "DAC code"))
    if edges:
        first, last = edges[0], edges[-1]
        numbers = numbers_seen(last.edges_dac)
        maps = {f"threshold {number}": last.edges_dac[number] for number in numbers}
        panels.append(_histograms(f"Edges found, {last.stage}", maps, "edge, DAC code"))
        if first is not last:
            panels.append(_spreads(edges))
        panels.append(_trims(last))
    return panels


def _curves(title: str, now: Series) -> Chart:
    return Chart(
        title=title,
        x_label="threshold, DAC code",
        y_label="counts a frame",
        lines=tuple(
            line(f"threshold {number}", now.codes_dac, now.means[:, place], series=place)
            for place, number in list(enumerate(now.thresholds))[:MOST_LINES]
        ),
    )


def _histograms(title: str, maps: dict[str, NDArray[np.number]], x_label: str) -> Chart:
    shown = dict(list(maps.items())[:MOST_LINES])
    ends = code_ends(shown.values())
    lines = tuple(histogram(name, values, ends, series=place) for place, (name, values) in enumerate(shown.items()))
    return Chart(title=title, x_label=x_label, y_label="pixels", lines=lines)


def _spreads(edges: Sequence[EdgesFound]) -> Chart:
    """Show how the spread of the edges shrinks from scan to scan."""
    wanted = [each for each in edges if np.isfinite(each.edges_dac).any()]
    sigma = np.array([[_spread(plane) for plane in each.edges_dac] for each in wanted])
    lines = tuple(
        line(f"threshold {number}", np.arange(1, len(wanted) + 1), sigma[:, number], style=Style.LINE, series=number)
        for number in range(min(sigma.shape[1], MOST_LINES))
    )
    return Chart(
        title="Spread of the edges, scan by scan", x_label="scan", y_label="sigma, DAC code", lines=lines,
        note=", ".join(f"{place} {each.stage}" for place, each in enumerate(wanted, start=1)),
    )  # fmt: skip


def _spread(plane: NDArray[np.number]) -> float:
    """Return a spread that outliers do not move: half of the middle 68 %."""
    finite = plane[np.isfinite(plane)]
    return float(np.diff(np.quantile(finite, (0.16, 0.84)))[0] / 2) if finite.size else float("nan")


def _trims(last: EdgesFound) -> Chart:
    numbers = numbers_seen(last.edges_dac)[:MOST_LINES]
    after = [histogram(f"threshold {n}", last.trim[n], TRIM_ENDS, series=n) for n in numbers]
    return Chart(title=f"Trims, {last.stage}", x_label="trim code", y_label="pixels", lines=tuple(after))


def _energy(seen: Seen) -> list[Panel]:
    fitted = [each for each in seen.found if isinstance(each, CurveFitted)]
    scans = [each for each in seen.series if each.stage.startswith(("find", "scan"))]
    panels: list[Panel] = []
    if fitted:
        number = fitted[0].threshold
        panels.append(_fits([each for each in fitted if each.threshold == number], number))
        panels.append(_positions(fitted))
    panels += _scans(seen, scans, "S-curves of the sources")
    ends = [each for each in seen.series if each.stage.startswith("end of")]
    if ends:
        panels.append(_curves(f"{ends[-1].stage}: mean counts of a pixel", ends[-1]))
    return panels


def _fits(curves: Sequence[CurveFitted], number: int) -> Chart:
    lines: list[Line] = []
    for place, curve in enumerate(curves):
        top = max(float(curve.counts.max()), 1.0)
        lines.append(line(curve.source, curve.codes_dac, curve.counts / top, style=Style.DOTS, series=place))
        lines.append(line("", curve.codes_dac, curve.fitted / top, series=place))
        lines.append(line("", [curve.position_dac] * 2, [0, 1], style=Style.DASHED, series=place))
    return Chart(
        title=f"Threshold {number}: S-curves (dots), fits (lines), edges (dashed)", x_label="threshold, DAC code",
        y_label="share of the highest count", lines=tuple(lines),
    )  # fmt: skip


def _positions(curves: Sequence[CurveFitted]) -> Chart:
    from calibration.energy_scale import line_group, mean_kev

    numbers = sorted({curve.threshold for curve in curves})
    lines = []
    for place, number in enumerate(numbers[:MOST_LINES]):
        mine = [curve for curve in curves if curve.threshold == number]
        energies = [mean_kev(line_group(curve.source)) for curve in mine]
        order = np.argsort(energies)
        codes = np.asarray([curve.position_dac for curve in mine])
        lines.append(line(f"threshold {number}", np.asarray(energies)[order], codes[order], series=place))
    return Chart(title="Where the lines stand", x_label="energy, keV", y_label="edge, DAC code", lines=tuple(lines))


def _scans(seen: Seen, scans: Sequence[Series], title: str) -> list[Panel]:
    """Show the counts of every source's scan, on the first threshold that is read, and how steeply they fall."""
    moved = [each for each in scans if len(each.codes_dac) > 1]
    if not moved:
        return _frames(seen)
    lines, slopes = [], []
    for place, each in enumerate(moved[-MOST_LINES:]):
        order = np.argsort(each.codes_dac)
        codes, means = each.codes_dac[order], each.means[order, 0]
        lines.append(line(each.stage, codes, means, series=place))
        middles = (codes[1:] + codes[:-1]) / 2
        slopes.append(line(each.stage, middles, -np.diff(means) / np.maximum(np.diff(codes), 1), series=place))
    number = moved[-1].thresholds[0]
    return [
        Chart(
            title=f"{title}, threshold {number}", x_label="threshold, DAC code", y_label="counts a pixel and frame",
            lines=tuple(lines),
        ),
        Chart(
            title=f"How steeply they fall, threshold {number}", x_label="threshold, DAC code",
            y_label="counts a DAC code", lines=tuple(slopes),
        ),
        picture(f"{seen.series[-1].stage}, newest frame", seen.series[-1].counts[0], "counts"),
    ]  # fmt: skip


def _frames(seen: Seen, *, has_scatter: bool = True) -> list[Panel]:
    """Show repeated frames: the newest, the mean of each pixel, and whether they scatter as photons do."""
    if not seen.series:
        return []
    now = seen.series[-1]
    panels: list[Panel] = []
    if now.mean is not None and now.fano is not None and now.mean.max() > 0:
        maps = {f"threshold {number}": now.mean[place] for place, number in enumerate(now.thresholds)}
        ends = ends_for(maps.values())
        lines = tuple(
            histogram(name, values, ends, series=place) for place, (name, values) in enumerate(list(maps.items()))
        )
        told = ", ".join(f"{name}: mean {values.mean():.4g}, sd {values.std():.3g}" for name, values in maps.items())
        panels.append(
            Chart(title=f"{now.stage}: {now.n_frames} frames", x_label="mean counts of a pixel", y_label="pixels",
                  lines=lines, note=told)
        )  # fmt: skip
        factors = now.fano[np.isfinite(now.fano)]
        if factors.size and has_scatter:
            panels.append(
                Chart(
                    title="Scatter of repeated frames (1: as photons do)", x_label="variance over mean",
                    y_label="pixels",
                    lines=tuple(
                        histogram(f"threshold {number}", now.fano[place], ends_for([factors]), series=place)
                        for place, number in enumerate(now.thresholds)
                    ),
                )
            )  # fmt: skip
    image = now.counts[0] if now.mean is None else now.mean[0]
    words = "newest frame" if now.mean is None else "mean"
    return [picture(f"{now.stage}, {words}, threshold {now.thresholds[0]}", image, "counts"), *panels]
