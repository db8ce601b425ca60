"""What is plotted while a step looks at the beam: currents, beads, plates and cells as they come, pure as `live`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from acquisition.calibrate.watch import RatesFound, Seen, Series, TracksFound
from gui.calibrate.panels import GREY, Chart, Line, Panel, Style, bin_names, ends_for, histogram, line, picture

FLATS = "flats"
FEWEST_COUNTS = 0.5
"""Of the open beam; less is nothing to divide by."""
LEAST_SHARE = 1e-4


def count_rate(seen: Seen) -> list[Panel]:
    """Show what was counted at each current, and how much of it was lost."""
    rates = [each for each in seen.found if isinstance(each, RatesFound)]
    if not rates:
        return []
    newest = rates[-1]
    currents_ma = newest.currents_ma
    counted: list[Line] = []
    lost: list[Line] = []
    for place, energy_kev in enumerate(newest.thresholds_kev):
        rates_per_s = newest.rates_per_s[:, place]
        slope = _slope(currents_ma, rates_per_s)
        name = f"above {energy_kev:g} keV"
        counted.append(line(name, currents_ma, rates_per_s, style=Style.DOTS, series=place))
        counted.append(line("", [0, currents_ma[-1]], [0, slope * currents_ma[-1]], style=Style.DASHED, series=GREY))
        if slope > 0:
            share = 100 * (1 - rates_per_s / (slope * currents_ma))
            lost.append(line(name, currents_ma, share, style=Style.DOTS, series=place))
            lost.append(line("", currents_ma, share, series=place))
    return [
        Chart(
            title="Counted over the tube's current (dashed: nothing lost)", x_label="current, mA",
            y_label="counts a pixel and s", lines=tuple(counted),
        ),
        Chart(
            title="Lost so far", x_label="current, mA", y_label="%", lines=tuple(lost),
            note="Against the lowest currents. Below 0: overlapping pulses are counted as one of more energy.",
        ),
    ]  # fmt: skip


def _slope(currents_ma: NDArray[np.float64], rates_per_s: NDArray[np.float64]) -> float:
    """Return counts per current where hardly anything overlaps: of the lowest three currents, weighted as photons."""
    few = slice(0, 3) if len(currents_ma) > 4 else slice(0, 1)
    return float(rates_per_s[few].sum() / currents_ma[few].sum())


def geometry(seen: Seen) -> list[Panel]:
    """Show the newest view and the paths of the shadows, and at the end what is left of each."""
    tracks = [each for each in seen.found if isinstance(each, TracksFound)]
    beads = _stage(seen, "beads")
    if beads is None and not tracks:
        return []
    panels: list[Panel] = []
    if beads is not None:
        flats = _stage(seen, FLATS)
        through = _share(beads.counts[0], None if flats is None else _mean(flats)[0])
        panels.append(picture(f"Newest view, threshold {beads.thresholds[0]}", 100 * through, "% of the open beam"))
        if beads.mean is not None:
            blurred = _share(beads.mean[0], None if flats is None else _mean(flats)[0])
            panels.append(picture(f"All {beads.n_frames} views so far: the paths", 100 * blurred, "% of the open beam"))
    if not tracks:
        return panels
    at_px, rests_px = tracks[-1].at_px, tracks[-1].rests_px
    paths = tuple(line("", path[:, 0], path[:, 1], style=Style.DOTS, series=place) for place, path in enumerate(at_px))
    views = np.arange(rests_px.shape[1])
    names = ("along the columns", "along the rows")
    rests = tuple(
        line(name, np.tile(views, len(rests_px)), rests_px[..., axis].ravel(), style=Style.DOTS, series=axis)
        for axis, name in enumerate(names)
    )
    ends = ends_for([rests_px])
    spread = tuple(histogram(name, rests_px[..., axis], ends, series=axis) for axis, name in enumerate(names))
    rms_px = float(np.sqrt(np.nanmean(rests_px**2)))
    n_seen = int(np.isfinite(at_px[..., 0]).sum())
    return [
        Chart(
            title="Paths of the beads' shadows", x_label="column from the centre, pixels",
            y_label="row from the centre, pixels", lines=paths,
            note=f"{len(at_px)} beads, {n_seen} shadows in {len(views)} views",
        ),
        Chart(
            title="What is left of each shadow", x_label="view", y_label="residual, pixels", lines=rests,
            note=f"{rms_px:.3f} pixels rms",
        ),
        Chart(title="Residuals", x_label="residual, pixels", y_label="shadows", lines=spread),
        *panels[:1],
    ]  # fmt: skip


def plates(seen: Seen, thresholds_kev: Sequence[float] = ()) -> list[Panel]:
    """Show what each bin loses behind plates of one material, over their thickness, as they come."""
    from acquisition.beam_plan import layers_mm

    flats = _stage(seen, FLATS)
    if flats is None:
        return []
    behind: dict[str, list[tuple[float, Series]]] = {}
    joined: list[tuple[str, Series]] = []
    for each in _beside(seen, flats):
        layers = layers_mm(each.stage)
        if len(layers) > 1:
            joined.append((each.stage, each))
            continue
        ((name, thickness_mm),) = layers.items()
        behind.setdefault(name, []).append((thickness_mm, each))
    panels: list[Panel] = []
    names = _bins(flats, thresholds_kev)
    for name, measured in behind.items():
        if len(measured) > 1:
            panels.append(_over_thickness(name, sorted(measured, key=lambda one: one[0]), flats, names))
        else:
            joined += [(each.stage, each) for _, each in measured]
    return [*panels, *_side_by_side("Behind other plates" if panels else "Behind the plates", joined, flats, names)]


def cells(seen: Seen, thresholds_kev: Sequence[float] = ()) -> list[Panel]:
    """Show what each bin loses behind each cell, as they come."""
    flats = _stage(seen, FLATS)
    if flats is None:
        return []
    behind = [(each.stage, each) for each in _beside(seen, flats)]
    return _side_by_side("Behind the cells", behind, flats, _bins(flats, thresholds_kev))


def _beside(seen: Seen, flats: Series) -> list[Series]:
    """Return what was measured at the thresholds of these flats: scans, and other passes, are not."""
    return [
        each
        for each in seen.series
        if each is not flats and len(each.codes_dac) == 1 and np.array_equal(each.stand_dac, flats.stand_dac)
    ]


def _over_thickness(
    material: str, measured: Sequence[tuple[float, Series]], flats: Series, names: Sequence[str]
) -> Chart:
    thickness_mm = [0.0, *(each for each, _ in measured)]
    signals = np.vstack([np.zeros(len(flats.thresholds)), *(_signal(each, flats) for _, each in measured)])
    lines = []
    for place, name in enumerate(names):
        lines.append(line(name, thickness_mm, signals[:, place], series=place))
        lines.append(line("", thickness_mm, signals[:, place], style=Style.DOTS, series=place))
    return Chart(
        title=f"Behind {material}, so far", x_label="thickness, mm", y_label="-ln of what is left", lines=tuple(lines),
    )  # fmt: skip


def _side_by_side(
    title: str, measured: Sequence[tuple[str, Series]], flats: Series, bins: Sequence[str]
) -> list[Panel]:
    if not measured:
        return []
    signals = np.stack([_signal(each, flats) for _, each in measured])
    places = np.arange(len(measured))
    lines = tuple(
        line(name, places, signals[:, place], style=Style.DOTS, series=place) for place, name in enumerate(bins)
    )
    names = tuple(name for name, _ in measured)
    return [Chart(title=f"{title}, so far", x_label="", y_label="-ln of what is left", lines=lines, x_names=names)]


def _signal(behind: Series, flats: Series) -> NDArray[np.float64]:
    """Return what the mean pixel of each bin loses, as a line integral: (n_bins,)."""
    shares = _in_bins(behind.means[-1]) / np.maximum(_in_bins(flats.means[-1]), FEWEST_COUNTS)
    return -np.log(np.maximum(shares, LEAST_SHARE))


def _in_bins(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """Part counts above thresholds into counts between them; thresholds ascend with their numbers."""
    return means - np.append(means[1:], 0)


def _bins(flats: Series, thresholds_kev: Sequence[float]) -> Sequence[str]:
    if len(thresholds_kev) == len(flats.thresholds):
        return bin_names(thresholds_kev)
    numbers = flats.thresholds
    between = [f"thresholds {low} to {high}" for low, high in pairwise(numbers)]
    return [*between, f"above threshold {numbers[-1]}"]


def _share(counts: NDArray[np.number], flat: NDArray[np.number] | None) -> NDArray[np.float64]:
    """Divide by the open beam; of pixels that saw nothing of it, and without one, nothing can be said."""
    if flat is None:
        return np.full(counts.shape, np.nan)
    return np.divide(counts, flat, out=np.full(counts.shape, np.nan), where=flat > FEWEST_COUNTS)


def _mean(series: Series) -> NDArray[np.number]:
    return series.counts if series.mean is None else series.mean


def _stage(seen: Seen, stage: str) -> Series | None:
    return next((each for each in reversed(seen.series) if each.stage == stage), None)
