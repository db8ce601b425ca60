"""Figures over regions: which voxels lie inside, their mean, spread and extremes, histograms, and a table to take away.

A voxel belongs to a region when its middle does.

# Ref: even-odd rule for polygons, any textbook.
# Ref: mean and spread in parts: Chan, Golub and LeVeque 1983, Am. Stat. 37, 242.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibration.attenuation import MG_ML_PER_G_CM3
from gui.volume.annotations import Annotation, Tool, area_mm2, length_mm, measured
from gui.volume.looks import rounded
from gui.volume.slicing import index_of, sampled
from reconstruction.volume import MASS_CONCENTRATION, MG_PER_ML, Grid, Volume

MM3_PER_ML = 1000.0
Value = float
"""In the unit that stands beside it."""
N_BINS = 128
N_BINS_2D = 96


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelFigures:
    """Of one channel over a region: mean, standard deviation (of the voxels), least and most, in `unit`."""

    channel: str
    unit: str
    mean: Value
    sd: Value
    least: Value
    most: Value


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionFigures:
    """Of one drawing.

    Attributes
    ----------
    n_voxels : int
        0 for what is no region.
    size : str
        "12.3 mm3", or the length, angle or area.
    """

    name: str
    tool: str
    n_voxels: int
    volume_mm3: float
    size: str
    channels: tuple[ChannelFigures, ...] = ()


Block = tuple[slice, slice, slice]
Layer = tuple[int, slice, slice]
MOST_VALUES = 4_000_000
"""Of a histogram: of larger regions every so-manieth slice is looked at."""


def layers(region: Annotation, grid: Grid) -> Iterator[tuple[Layer, NDArray[np.bool_]]]:
    """Go through a region slice by slice, however large: which voxels (z, y, x), and which of them lie inside."""
    block = _block_of(region, grid)
    z, y, x = (axis[part] for axis, part in zip(grid.axes_mm(), block, strict=True))
    for n, height_mm in enumerate(z):
        points = np.stack(np.broadcast_arrays(x[None, :], y[:, None], height_mm), axis=-1)
        inside = _is_inside(region, points, grid.voxel_mm)
        if inside.any():
            yield (block[0].start + n, block[1], block[2]), inside


def _is_inside(region: Annotation, points: NDArray[np.float64], voxel_mm: float) -> NDArray[np.bool_]:
    if region.tool is Tool.SPHERE:
        return ((points - region.points_mm[0]) ** 2).sum(axis=-1) <= region.radius_mm**2
    axes = np.array([region.right, region.up, np.cross(region.right, region.up)])
    right, up, height = np.moveaxis(points @ axes.T, -1, 0)
    flat = region.flat_mm()
    half_mm = max(region.thickness_mm, voxel_mm) / 2
    # Half open, so that a region as thick as a voxel holds one layer and not two.
    off = height - flat[:, 2].mean()
    tiny_mm = 1e-9 * voxel_mm
    is_between = (off >= -half_mm - tiny_mm) & (off < half_mm - tiny_mm)
    if region.tool is Tool.CYLINDER:
        return is_between & ((right - flat[0, 0]) ** 2 + (up - flat[0, 1]) ** 2 <= region.radius_mm**2)
    if region.tool is Tool.BOX:
        (left, low), (far, high) = flat[:, :2].min(axis=0), flat[:, :2].max(axis=0)
        return is_between & (right >= left) & (right <= far) & (up >= low) & (up <= high)
    if region.tool is Tool.FREEHAND:
        return is_between & in_polygon(right, up, flat[:, :2])
    raise ValueError(f"{region.tool.label} is no region")


def in_polygon(x: NDArray[np.float64], y: NDArray[np.float64], corners: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which points lie inside a polygon of (n, 2) corners, by the even-odd rule."""
    inside = np.zeros(np.broadcast_shapes(x.shape, y.shape), bool)
    for (x1, y1), (x2, y2) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y1 != y2:
            crosses = (y1 > y) != (y2 > y)
            inside ^= crosses & (x < (x2 - x1) * (y - y1) / (y2 - y1) + x1)
    return inside


def _block_of(region: Annotation, grid: Grid) -> Block:
    """Return the block of voxels around a region, cut off at the volume."""
    axes = np.array([region.right, region.up, np.cross(region.right, region.up)])
    points = np.array(region.points_mm)
    middle = points[0]
    if region.tool is Tool.SPHERE:
        low, high = middle - region.radius_mm, middle + region.radius_mm
    else:
        flat = region.flat_mm()
        half = max(region.thickness_mm, grid.voxel_mm) / 2
        heights = flat[:, 2].mean() + np.array([-half, half])
        if region.tool is Tool.CYLINDER:
            spans = [flat[0, n] + np.array([-1, 1]) * region.radius_mm for n in range(2)]
        else:
            spans = [np.array([flat[:, n].min(), flat[:, n].max()]) for n in range(2)]
        corners = np.array([(u, v, w) for u in spans[0] for v in spans[1] for w in heights]) @ axes
        low, high = corners.min(axis=0), corners.max(axis=0)
    first = np.floor(index_of(grid, (low[0], low[1], low[2])) - 1e-6)
    last = np.ceil(index_of(grid, (high[0], high[1], high[2])) + 1e-6)
    z, y, x = (
        slice(int(np.clip(a, 0, n)), int(np.clip(b + 1, 0, n))) for a, b, n in zip(first, last, grid.shape, strict=True)
    )
    return z, y, x


def figures_of(region: Annotation, volumes: Sequence[Volume]) -> RegionFigures:
    """Return the figures of a drawing over all channels of all volumes, each on its own grid."""
    if not region.tool.is_region:
        return RegionFigures(
            name=region.name, tool=region.tool.label, n_voxels=0, volume_mm3=0.0, size=measured(region)
        )
    n_voxels, volume_mm3, channels = 0, 0.0, []
    for volume in volumes:
        sums, n_inside = _sums(region, volume)
        if not n_voxels:
            n_voxels, volume_mm3 = n_inside, n_inside * volume.grid.voxel_mm**3
        channels += [one.figures(volume, name) for one, name in zip(sums, volume.channels, strict=True)]
    return RegionFigures(
        name=region.name,
        tool=region.tool.label,
        n_voxels=n_voxels,
        volume_mm3=volume_mm3,
        size=volume_text(volume_mm3),
        channels=tuple(channels),
    )


class _Sums:
    """Mean, spread and extremes of values that come in parts."""

    def __init__(self) -> None:
        self._n, self._mean, self._squares = 0, 0.0, 0.0
        self._least, self._most = np.inf, -np.inf

    def add(self, values: NDArray[np.floating]) -> None:
        """Take more values; what is not a number is left out."""
        known = values[np.isfinite(values)].astype(np.float64)
        if not known.size:
            return
        mean, n = float(known.mean()), self._n + known.size
        off = mean - self._mean
        self._squares += float(((known - mean) ** 2).sum()) + off**2 * self._n * known.size / n
        self._mean += off * known.size / n
        self._n = n
        self._least, self._most = min(self._least, float(known.min())), max(self._most, float(known.max()))

    def figures(self, volume: Volume, name: str) -> ChannelFigures:
        """Return what they come to, in the unit for people."""
        scale, unit = _people(volume, name)
        sd = np.sqrt(self._squares / (self._n - 1)) if self._n > 1 else np.nan
        known = (self._mean, sd, self._least, self._most) if self._n else (np.nan,) * 4
        mean, sd, least, most = (scale * float(value) for value in known)
        return ChannelFigures(channel=name, unit=unit, mean=mean, sd=sd, least=least, most=most)


def _sums(region: Annotation, volume: Volume) -> tuple[list[_Sums], int]:
    sums, n_inside = [_Sums() for _ in volume.channels], 0
    for layer, inside in layers(region, volume.grid):
        n_inside += int(inside.sum())
        for one, channel in zip(sums, volume.values, strict=True):
            one.add(channel[layer][inside])
    return sums, n_inside


def _people(volume: Volume, name: str) -> tuple[float, str]:
    unit = volume.unit_of(name)
    return (MG_ML_PER_G_CM3, MG_PER_ML) if unit == MASS_CONCENTRATION else (1.0, unit)


def volume_text(volume_mm3: float) -> str:
    """Return a volume for people: mm3 below 1 mL, mL from there on."""
    return f"{rounded(volume_mm3)} mm³" if volume_mm3 < MM3_PER_ML else f"{rounded(volume_mm3 / MM3_PER_ML)} mL"


def as_csv(table: Sequence[RegionFigures], drawings: Sequence[Annotation] = ()) -> str:
    """Return a table for a spreadsheet: one line per channel of each region, one per other drawing."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["name", "kind", "size", "unit of size", "voxels", "channel", "unit", "mean", "sd", "min", "max"])
    by_name = {drawing.name: drawing for drawing in drawings}
    for row in table:
        size, unit = _plain_size(row, by_name.get(row.name))
        head = [row.name, row.tool, size, unit, row.n_voxels]
        for one in row.channels:
            lines.writerow(
                [*head, one.channel, one.unit, *(f"{v:.6g}" for v in (one.mean, one.sd, one.least, one.most))]
            )
        if not row.channels:
            lines.writerow([*head, *[""] * 6])
    return text.getvalue()


def _plain_size(row: RegionFigures, drawing: Annotation | None) -> tuple[str, str]:
    if row.n_voxels or drawing is None:
        return f"{row.volume_mm3:.6g}", "mm3"
    if drawing.tool is Tool.RULER:
        return f"{length_mm(drawing):.6g}", "mm"
    if drawing.tool is Tool.AREA:
        return f"{area_mm2(drawing):.6g}", "mm2"
    return (row.size.rstrip("°"), "degrees") if drawing.tool is Tool.ANGLE else (f"{row.volume_mm3:.6g}", "mm3")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Histogram:
    """How often which value stands in a region or a volume.

    Attributes
    ----------
    edges : (n + 1,) float64
        In `unit`.
    counts : (n,) int
        Voxels.
    """

    channel: str
    unit: str
    edges: NDArray[np.float64]
    counts: NDArray[np.integer]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Joint:
    """How often which two values stand together: `counts` is (n_y, n_x) int, its first row the lowest."""

    across: tuple[str, str]
    upwards: tuple[str, str]
    edges_across: NDArray[np.float64]
    edges_upwards: NDArray[np.float64]
    counts: NDArray[np.float64]


def histogram(values: NDArray[np.floating], volume: Volume, name: str, n_bins: int = N_BINS) -> Histogram:
    """Return how values of a channel are spread, in the unit for people."""
    scale, unit = _people(volume, name)
    finite = values[np.isfinite(values)].astype(np.float64) * scale
    counts, edges = np.histogram(finite, bins=n_bins, range=_range(finite))
    return Histogram(channel=name, unit=unit, edges=edges, counts=counts)


def joint(values: NDArray[np.floating], volume: Volume, across: int, upwards: int, n_bins: int = N_BINS_2D) -> Joint:
    """Return how two channels stand together in (n_channels, ...) values of a volume."""
    pair = []
    names = []
    both = np.isfinite(values[across]) & np.isfinite(values[upwards])
    for n in (across, upwards):
        scale, unit = _people(volume, volume.channels[n])
        pair.append(values[n][both].astype(np.float64) * scale)
        names.append((volume.channels[n], unit))
    counts, x, y = np.histogram2d(pair[0], pair[1], bins=n_bins, range=[_range(part) for part in pair])
    return Joint(across=names[0], upwards=names[1], edges_across=x, edges_upwards=y, counts=counts.T)


def _range(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return from where to where, without the outermost 0.05 % on either side, which one hot voxel would fill."""
    if not values.size:
        return 0.0, 1.0
    low, high = (float(level) for level in np.quantile(values, (0.0005, 0.9995)))
    margin = 0.05 * (high - low)
    return (low - margin, high + margin) if high > low else (low - 0.5, low + 0.5)


def region_values(region: Annotation, volume: Volume) -> NDArray[np.float32]:
    """Return the values inside a region: (n_channels, n_voxels) float32; of a very large one, of every few slices."""
    z, y, x = (part.stop - part.start for part in _block_of(region, volume.grid))
    every = max(z * y * x // MOST_VALUES, 1)
    parts = [
        np.stack([channel[layer][inside] for channel in volume.values])
        for n, (layer, inside) in enumerate(layers(region, volume.grid))
        if n % every == 0
    ]
    return np.concatenate(parts, axis=1) if parts else np.zeros((len(volume.channels), 0), np.float32)


def histogram_of(volume: Volume, across: str, upwards: str, region: Annotation | None) -> tuple[Histogram | Joint, str]:
    """Return the histogram of one channel, or of two together, over a region or part of the volume; and over what."""
    where = "whole volume" if region is None else region.name
    values = sampled(volume.values) if region is None else region_values(region, volume)
    n = volume.channels.index(across)
    if upwards in volume.channels and upwards != across:
        return joint(values, volume, n, volume.channels.index(upwards)), where
    return histogram(values[n], volume, across), where


def table_of(drawings: Sequence[Annotation], volumes: Sequence[Volume]) -> dict[Annotation, RegionFigures]:
    """Return the figures of several drawings."""
    return {drawing: figures_of(drawing, volumes) for drawing in drawings}


def seen_on(drawings: Sequence[Annotation], right: Sequence[float], up: Sequence[float]) -> Iterator[Annotation]:
    """Return the drawings that were made on planes alike, whose outlines can be shown on this one."""
    normal = np.cross(right, up)
    return (d for d in drawings if abs(np.dot(np.cross(d.right, d.up), normal)) > 1 - 1e-6)
