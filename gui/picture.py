"""Labelled figures of scans, volumes, calibrations and Merlin frames, drawn by matplotlib without a window.

All pictures have row 0 at the bottom, and their grey levels end at percentiles, so that one hot pixel does not hide
the rest. Nothing here touches matplotlib's global state.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, Colormap, LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from acquisition.scan import ImageKey
from acquisition.scan_file import Scan
from calibration.attenuation import MG_ML_PER_G_CM3
from calibration.pixels import PixelClass, is_unusable
from calibration.store import Calibration
from calibration.whole_file import whole_file
from firmware_iface.chip import TRIM_CODES
from firmware_iface.errors import BadFile, WrongUsage
from firmware_iface.merlin import MerlinFile
from gui.colour import GREY, Colour, blend, looks_for
from gui.scale import bar_mm
from reconstruction.volume import LINEAR_ATTENUATION, MASS_CONCENTRATION, Volume

INK, SOFT_INK = "#1a1a1a", "#5a5a5a"
TITLE_PT, PANEL_PT, SMALL_PT = 13, 10, 8
DPI = 150
SLAB_MM = 1.0
"""A picture of a volume shows the mean over this thickness, as radiologists look at noisy stacks."""
CLASS_COLOURS = (
    "#d55e00",
    "#e69f00",
    "#56b4e9",
    "#f0e442",
    "#cc79a7",
    "#009e73",
    "#0072b2",
    "#7f7f7f",
    "#ff0000",
    "#5b6b9c",
    "#7d5a3c",
)
"""One per bit of PixelClass; where a pixel has several, the lowest bit shows."""


def robust_levels(values: NDArray[np.number], low: float = 0.5, high: float = 99.5) -> tuple[float, float]:
    """Return two percentiles of the finite values as (low, high); always low < high, whatever the values."""
    finite = np.asarray(values)[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    bottom, top = (float(level) for level in np.percentile(finite, [low, high]))
    if bottom == top:
        bottom, top = float(finite.min()), float(finite.max())
    if bottom == top:
        # A constant image shows in the middle of the scale.
        margin = max(abs(bottom) * 0.1, 1.0 if bottom == int(bottom) else 1e-6)
        bottom, top = bottom - margin, top + margin
    return bottom, top


def median(values: NDArray[np.number]) -> float:
    """Return the median of the finite values; NaN where there is none."""
    finite = np.asarray(values)[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else float("nan")


def slab(volume: Volume, slice_index: int | None, thickness_mm: float) -> tuple[NDArray[np.float32], str]:
    """Return the mean of the slices around one, (n_channels, y, x), and words for what it shows."""
    n_slices = volume.grid.shape[0]
    index = middle(n_slices, slice_index, "slice")
    reach = int(thickness_mm / volume.grid.voxel_mm / 2)
    low, high = max(index - reach, 0), min(index + reach + 1, n_slices)
    mean = volume.values[:, low:high].mean(axis=1)
    thickness = f", {(high - low) * volume.grid.voxel_mm:.2g} mm thick" if high - low > 1 else ""
    return mean, f"slice {index} of {n_slices}{thickness}"


def materials_figure(
    volume: Volume, *, slice_index: int | None = None, slab_mm: float = SLAB_MM, title: str = ""
) -> Figure:
    """Draw a slab of a material volume: in colour, and each material alone in mg/mL."""
    if volume.unit != MASS_CONCENTRATION:
        raise WrongUsage(f"the volume is in {volume.unit}, not of materials; allowed: {MASS_CONCENTRATION}")
    maps, where = slab(volume, slice_index, slab_mm)
    looks = looks_for(volume.channels, maps)
    n_cols = -(-len(maps) // 2)
    figure = _figure(2 * 3.1 + n_cols * 3.3, 6.6)
    grid = figure.add_gridspec(2, 1 + n_cols, width_ratios=[2.0, *[1.0] * n_cols])
    colour = figure.add_subplot(grid[:, 0])
    colour.imshow(blend(maps, looks), origin="lower", interpolation="nearest")
    _finish(colour, f"{title or 'Materials'}, {where}", size=TITLE_PT)
    scale_bar(colour, volume.grid.voxel_mm if volume.grid.is_scale_known else None)
    colour.legend(
        handles=[Patch(facecolor=swatch(look.colour), label=look.material) for look in looks],
        loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=min(len(looks), 4), frameon=False,
        fontsize=PANEL_PT, handlelength=1.1, handleheight=1.1, columnspacing=1.4,
    )  # fmt: skip
    for n, (values, look) in enumerate(zip(maps, looks, strict=True)):
        axes = figure.add_subplot(grid[n // n_cols, 1 + n % n_cols])
        top_mg_ml = look.high_g_cm3 * MG_ML_PER_G_CM3
        _image(axes, values * MG_ML_PER_G_CM3, (0.0, top_mg_ml), _map_of(look.colour), "mg/mL")
        _finish(axes, look.material)
    return figure


def bins_figure(volume: Volume, *, slice_index: int | None = None, slab_mm: float = SLAB_MM, title: str = "") -> Figure:
    """Draw a slab of each channel on one grey scale, or each on its own where their units differ."""
    maps, where = slab(volume, slice_index, slab_mm)
    what = "energy bins" if volume.unit == LINEAR_ATTENUATION else "quantities"
    figure, panels = _panels(len(maps), title or f"{len(maps)} {what}, {where}")
    levels = robust_levels(maps)
    for axes, values, name in zip(panels, maps, volume.channels, strict=True):
        own = robust_levels(values) if volume.channel_units else levels
        _image(axes, values, own, "gray", volume.unit_of(name))
        _finish(axes, name)
    scale_bar(panels[0], volume.grid.voxel_mm if volume.grid.is_scale_known else None)
    return figure


def scan_figure(scan: Scan, *, frame: int | None = None, title: str = "") -> Figure:
    """Draw the open beam, and a projection, of every counter; in counts.

    Parameters
    ----------
    frame : int, optional
        Place of the projection in the file; by default the first projection.
    """
    flats, projections = scan.indices(ImageKey.FLAT), scan.indices(ImageKey.PROJECTION)
    rows: list[tuple[str, NDArray[np.floating]]] = []
    if frame is None and len(flats):
        flat = np.mean(scan.counts(flats[:16]), axis=0)
        rows.append((f"open beam, mean of {min(len(flats), 16)}", flat))
    if frame is not None or len(projections):
        place = int(projections[0]) if frame is None else middle(scan.shape[0], frame, "frame")
        kind = ImageKey(int(scan.image_key[place]))
        if kind is ImageKey.INVALID:
            raise WrongUsage(f"frame {place} of {scan.path} was lost", hint="choose another --frame")
        angle_deg = np.degrees(scan.angles_rad[place])
        rows.append((f"{kind.name.lower()}, frame {place}, {angle_deg:.1f}°", scan.counts(np.array([place]))[0]))
    if not rows:
        raise BadFile(f"{scan.path} holds neither flats nor projections to show")
    n_counters = scan.shape[1]
    figure = _figure(0.9 + 2.9 * n_counters, 0.6 + 2.9 * len(rows))
    figure.suptitle(title or scan.path.name, fontsize=TITLE_PT, color=INK)
    for row, (name, images) in enumerate(rows):
        for counter, image in enumerate(images):
            axes = figure.add_subplot(len(rows), n_counters, row * n_counters + counter + 1)
            _image(axes, image, robust_levels(image), "gray", "counts")
            _finish(axes, _threshold_name(scan, counter) if row == 0 else "")
            if counter == 0:
                axes.set_ylabel(name, fontsize=PANEL_PT, color=INK)
    return figure


def _threshold_name(scan: Scan, counter: int) -> str:
    number = scan.readout.thresholds[counter]
    if not scan.readout.thresholds_kev:
        return f"threshold {number}"
    return f"above {scan.readout.thresholds_kev[counter]:g} keV"


def merlin_figure(file: MerlinFile, *, frame: int | None = None, title: str = "") -> Figure:
    """Draw one exposure of a Merlin file, with all its counters or colour layers; in counts."""
    layers, indices = file.groups()
    place = middle(len(indices), frame, "frame") if frame is not None else 0
    frames = [file.frames[int(index)] for index in indices[place]]
    header = frames[0].header
    figure, panels = _panels(
        len(frames),
        title or f"{file.path.name}, frame {place + 1} of {len(indices)}, {header.exposure_s:g} s",
        size=4.4 if len(frames) == 1 else 3.2,
    )
    for axes, member, layer in zip(panels, frames, layers, strict=True):
        _image(axes, member.counts, robust_levels(member.counts, 1, 99), "viridis", "counts")
        name = f"layer {layer}" if header.colour_mode else f"counter {layer}"
        if layer < len(header.thresholds_kev):
            name += f", above {header.thresholds_kev[layer]:g} keV"
        _finish(axes, name, has_ticks=True)
        axes.set_xlabel("column", fontsize=SMALL_PT, color=SOFT_INK)
        axes.set_ylabel("row", fontsize=SMALL_PT, color=SOFT_INK)
    return figure


def calibration_figure(calibration: Calibration, *, title: str = "") -> Figure:
    """Draw the trim codes of every threshold that was equalised, and the classes of the bad pixels."""
    used = [n for n, edges in enumerate(calibration.edges_after_dac) if np.isfinite(edges).any()] or [0]
    figure, panels = _panels(len(used) + 1, title or f"calibration {calibration.identity} of {calibration.chip_id}")
    for axes, number in zip(panels, used, strict=False):
        _image(axes, calibration.trim[number], (0, TRIM_CODES - 1), "viridis", "trim code")
        _finish(axes, f"trims of threshold {number}")
    _draw_classes(panels[-1], calibration.pixel_class)
    return figure


def maps_figure(
    images: Mapping[str, NDArray[np.number]],
    unit: str,
    *,
    levels: tuple[float, float] | None = None,
    cmap: str = "viridis",
) -> Figure:
    """Draw maps of the pixels, each under its name, on one scale if `levels` states it and on its own otherwise."""
    figure, panels = _panels(len(images), "")
    for axes, (name, values) in zip(panels, images.items(), strict=True):
        _image(axes, values, levels or robust_levels(values), cmap, unit)
        _finish(axes, name)
    return figure


def classes_figure(pixel_class: NDArray[np.integer]) -> Figure:
    """Draw why which pixel is not good."""
    figure, panels = _panels(1, "", size=5.0)
    _draw_classes(panels[0], pixel_class)
    return figure


def _draw_classes(axes: Axes, pixel_class: NDArray[np.integer]) -> None:
    classes = list(PixelClass)
    lowest = np.zeros(pixel_class.shape, dtype=int)
    for number, bit in reversed(list(enumerate(classes, start=1))):
        lowest[(pixel_class & bit) != 0] = number
    palette = ListedColormap(["#202020", *CLASS_COLOURS[: len(classes)]])
    norm = BoundaryNorm(np.arange(len(classes) + 2) - 0.5, len(classes) + 1)
    axes.imshow(lowest, origin="lower", interpolation="nearest", cmap=palette, norm=norm)
    n_bad = int(np.count_nonzero(is_unusable(pixel_class)))
    _finish(axes, f"{n_bad} bad pixels of {pixel_class.size} ({100 * n_bad / pixel_class.size:.2f} %)")
    present = [
        Patch(facecolor=CLASS_COLOURS[n], label=f"{name_of(bit)} {np.count_nonzero(pixel_class & bit)}")
        for n, bit in enumerate(classes)
        if (pixel_class & bit).any()
    ]
    if present:
        axes.legend(
            handles=present, loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=2, frameon=False, fontsize=SMALL_PT
        )


def name_of(bit: PixelClass) -> str:
    """Return the name of a class of pixels as people say it."""
    return (bit.name or "").lower().replace("_", " ")


def middle(n: int, index: int | None, what: str) -> int:
    """Return the index asked for, or the middle one; refuse one that is not there."""
    if index is None:
        return n // 2
    if not 0 <= index < n:
        raise WrongUsage(f"{what} {index} is not there; allowed: 0 to {n - 1}")
    return index


def scale_bar(axes: Axes, pixel_mm: float | None) -> None:
    """Draw a bar of a round length, about a quarter of the picture, into its lower left corner."""
    n_cols, n_rows = abs(np.diff(axes.get_xlim()).item()), abs(np.diff(axes.get_ylim()).item())
    length = bar_mm(pixel_mm or 1.0, n_cols)
    width, left, bottom = length / (pixel_mm or 1.0), 0.04 * n_cols, 0.045 * n_rows
    axes.add_patch(
        Rectangle((left, bottom), width, 0.012 * n_rows, facecolor="white", edgecolor="black", linewidth=0.6)
    )
    text = axes.text(
        left + width / 2, bottom + 0.025 * n_rows, f"{length:g} {'mm' if pixel_mm else 'pixels'}",
        color="white", fontsize=PANEL_PT, ha="center", va="bottom",
    )  # fmt: skip
    _outline(text)


def _outline(text: object) -> None:
    from matplotlib import patheffects

    text.set_path_effects([patheffects.withStroke(linewidth=1.6, foreground="black")])  # type: ignore[attr-defined]


def _figure(width_in: float, height_in: float) -> Figure:
    figure = Figure(figsize=(width_in, height_in), dpi=DPI, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08, wspace=0.02, hspace=0.02)
    return figure


def _panels(n: int, title: str, size: float = 3.2) -> tuple[Figure, Sequence[Axes]]:
    """Make n image panels in at most four columns under one title."""
    n_cols = min(n, 4) if n != 5 and n != 6 else 3
    n_rows = -(-n // n_cols)
    figure = _figure(max((size + 0.55) * n_cols, 5.0), size * n_rows + (0.6 if title else 0.0))
    if title:
        figure.suptitle(title, fontsize=TITLE_PT, color=INK)
    return figure, [figure.add_subplot(n_rows, n_cols, i + 1) for i in range(n)]


def _image(
    axes: Axes, values: NDArray[np.number], levels: tuple[float, float], cmap: str | Colormap, unit: str
) -> None:
    drawn = axes.imshow(values, origin="lower", interpolation="nearest", cmap=cmap, vmin=levels[0], vmax=levels[1])
    # An inset is exactly as high as the picture, whatever the layout makes of the axes.
    place = axes.inset_axes((1.025, 0.0, 0.045, 1.0))
    bar = drawn.get_figure().colorbar(drawn, cax=place)  # type: ignore[union-attr]
    bar.set_label(unit, fontsize=SMALL_PT, color=SOFT_INK)
    bar.ax.tick_params(labelsize=SMALL_PT, colors=SOFT_INK, width=0.6, length=2.5)
    bar.outline.set_visible(False)  # type: ignore[operator]


def _finish(axes: Axes, title: str, *, size: float = PANEL_PT, has_ticks: bool = False) -> None:
    axes.set_title(title, fontsize=size, color=INK, pad=5)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if has_ticks:
        axes.tick_params(labelsize=SMALL_PT, colors=SOFT_INK, width=0.6, length=2.5)
    else:
        axes.set_xticks([])
        axes.set_yticks([])


def swatch(colour: Colour) -> Colour:
    """Return a material's colour as it is seen over the grey base."""
    if colour == GREY:
        return colour
    red, green, blue = (min(1.0, part + base) for part, base in zip(colour, GREY, strict=True))
    return red, green, blue


def _map_of(colour: Colour) -> Colormap:
    if colour == GREY:
        return LinearSegmentedColormap.from_list("base", ["black", "white"])
    light = tuple(0.6 + 0.4 * part for part in colour)
    return LinearSegmentedColormap.from_list("material", [(0.0, "black"), (0.8, colour), (1.0, light)])


def png_bytes(figure: Figure, *, dpi: int = DPI) -> bytes:
    """Return a figure as the bytes of a PNG image."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def save_png(figure: Figure, path: str | Path, *, dpi: int = DPI) -> Path:
    """Write a figure as a PNG file, whole or not at all."""
    return write_whole(path, png_bytes(figure, dpi=dpi))


def write_whole(path: str | Path, content: bytes) -> Path:
    """Write a file whole or not at all."""
    with whole_file(path) as partial:
        partial.write_bytes(content)
    return Path(path)
