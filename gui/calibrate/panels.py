"""What a calibration shows, as plain records that any plotting can draw: charts of lines, and pictures of pixels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibration.pixels import PixelClass

N_BINS = 60
GREY = -1
"""Series of what stands behind: before, a target, a limit."""


class Style(Enum):
    """How a line is drawn."""

    LINE = "line"
    DOTS = "dots"
    DASHED = "dashed"
    STEPS = "steps"
    """A histogram: one more x than y."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Line:
    """One line of a chart.

    Attributes
    ----------
    series : int
        Which of the plots' colours it has; GREY for what stands behind.
    """

    name: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    style: Style = Style.LINE
    series: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chart:
    """Lines over a common axis; labels hold the units.

    Attributes
    ----------
    x_names : tuple of str
        What stands at 0, 1, 2, ... of the axis, where it has no numbers.
    note : str
        A line of figures under it.
    """

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    x_names: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picture:
    """A value of every pixel.

    Attributes
    ----------
    image : (rows, cols) number
        Row 0 is the lowest row of the chip.
    levels : (2,) float64
        Black and white of the scale.
    words : tuple of str
        Names of the values 0, 1, 2, ... where they are kinds, not amounts.
    """

    title: str
    image: NDArray[np.number]
    unit: str
    levels: NDArray[np.float64]
    words: tuple[str, ...] = ()
    note: str = ""


Panel = Chart | Picture

CLASS_WORDS: Mapping[PixelClass, str] = {
    PixelClass.DEAD: "counts nothing",
    PixelClass.NOISY: "counts in the dark",
    PixelClass.UNDER: "counts too little",
    PixelClass.OVER: "counts too much",
    PixelClass.TELEGRAPH: "flickers",
    PixelClass.OUT_OF_TRIM: "beyond its trims",
    PixelClass.NO_EDGE: "no noise edge seen",
    PixelClass.MASKED: "switched off in the chip",
    PixelClass.HOT: "fires in the dark",
    PixelClass.EDGE: "edge of the sensor (used)",
    PixelClass.MASKED_NEIGHBOUR: "beside one switched off (used)",
}
"""What each reason means, in the order of its bit."""


def line(name: str, x: ArrayLike, y: ArrayLike, *, style: Style = Style.LINE, series: int = 0) -> Line:
    """Make a line of whatever numbers there are."""
    return Line(name=name, x=np.asarray(x, np.float64), y=np.asarray(y, np.float64), style=style, series=series)


def histogram(
    name: str, values: NDArray[np.number], ends: NDArray[np.floating], *, series: int = 0, style: Style = Style.STEPS
) -> Line:
    """Count how many values lie in each bin; what is not finite is left out."""
    counts, _ = np.histogram(values[np.isfinite(values)], ends)
    return line(name, ends, counts, style=style, series=series)


def ends_for(values: Iterable[NDArray[np.number]], *, share: float = 0.002) -> NDArray[np.floating]:
    """Return the ends of bins that hold all of some sets of values but a share of outliers on either side."""
    finite = [each[np.isfinite(each)] for each in values]
    joined = np.concatenate([each.ravel() for each in finite]) if finite else np.zeros(0)
    low, high = levels_of(joined, share=share)
    margin = 0.05 * (high - low)
    return np.linspace(low - margin, high + margin, N_BINS + 1)


def code_ends(values: Iterable[NDArray[np.number]]) -> NDArray[np.floating]:
    """Return the ends of bins one code wide, or wider where there would be too many."""
    ends = ends_for(values)
    first, last = np.floor(ends[0]) - 0.5, np.ceil(ends[-1]) + 0.5
    step = max(1, int((last - first) // (2 * N_BINS)))
    return np.arange(first, last + step, step)


def levels_of(values: NDArray[np.number], *, share: float = 0.005) -> tuple[float, float]:
    """Return levels that leave a share of the finite values beyond either end; never the same number twice."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = (float(level) for level in np.quantile(finite, (share, 1 - share)))
    return (low, high) if high > low else (low, low + 1.0)


def picture(title: str, image: NDArray[np.number], unit: str, note: str = "") -> Picture:
    """Show a map with levels that leave out outliers."""
    return Picture(title=title, image=image, unit=unit, levels=np.array(levels_of(image)), note=note)


def classes_picture(title: str, pixel_class: NDArray[np.unsignedinteger]) -> Picture:
    """Show why pixels are not good, in words with how many there are of each; the lowest bit of a pixel shows."""
    kinds = np.zeros(pixel_class.shape, np.uint8)
    for number, reason in reversed(list(enumerate(CLASS_WORDS, start=1))):
        kinds[(pixel_class & np.uint16(reason)) > 0] = number
    n_good = int(np.count_nonzero(kinds == 0))
    words = (
        f"good ({n_good})",
        *(f"{text} ({np.count_nonzero(pixel_class & np.uint16(reason))})" for reason, text in CLASS_WORDS.items()),
    )
    return Picture(title=title, image=kinds, unit="", levels=np.array([0.0, len(words) - 1.0]), words=words)


def numbers_seen(planes: NDArray[np.number], wanted: Sequence[int] = ()) -> list[int]:
    """Return which of the planes (n, rows, cols) hold anything, of those wanted or of all."""
    every = wanted or range(len(planes))
    return [number for number in every if number < len(planes) and np.isfinite(planes[number]).any()]


def bin_names(thresholds_kev: Sequence[float]) -> tuple[str, ...]:
    """Return the bins between thresholds in words; of several passes, each bin by its own lower edge."""
    ends = [f"{energy:.3g}" for energy in thresholds_kev]
    between = [f"{low}-{high} keV" if float(high) > float(low) else f"> {low} keV" for low, high in pairwise(ends)]
    return (*between, f"> {ends[-1]} keV")
