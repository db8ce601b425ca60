"""Slices that were tried, each with the settings that made it, and how two of them compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gui.reconstruct.settings import Settings, changes

if TYPE_CHECKING:
    from reconstruction.volume import Volume

COLOUR = "all in colour"
MASS_CONCENTRATION, MG_PER_ML = "g/cm3", "mg/mL"
MG_ML_PER_G_CM3 = 1000.0
MOST_KEPT = 12
"""Tries whose pictures are kept."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picture:
    """One slice as it is seen from above, y upwards.

    Attributes
    ----------
    values : (h, w) float32 or (h, w, 3) uint8
    legend : tuple of (str, str)
        Of a picture in colours: what each means, and the colour as "#rrggbb".
    """

    name: str
    unit: str
    values: NDArray[np.float32] | NDArray[np.uint8]
    legend: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Try:
    """A slice that was tried.

    Attributes
    ----------
    kind : str
        "bins" or "materials".
    settings : Settings
    z_mm : float
    pixel_mm : float
    corner_mm : (x, y) float
        Where the upper left corner of the pictures lies.
    pictures : tuple of Picture
    seconds_s : float
        What it took.
    seconds_per_iteration_s : float
        0 where nothing was iterated.
    n_slices : int
        That the iterations worked on, the slice's neighbours among them.
    steps : tuple of str
        How it was made, in words.
    """

    number: int
    kind: str
    settings: Settings
    z_mm: float
    pixel_mm: float
    pictures: tuple[Picture, ...]
    seconds_s: float
    seconds_per_iteration_s: float = 0.0
    n_slices: int = 1
    steps: tuple[str, ...] = ()
    corner_mm: tuple[float, float] = (0.0, 0.0)

    def spans_mm(
        self, x_mm: float, y_mm: float, width_mm: float, height_mm: float
    ) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return from where to where along x and y a box of the pictures goes, told from their upper left corner."""
        left_mm, top_mm = self.corner_mm[0] + x_mm, self.corner_mm[1] - y_mm
        spans = (left_mm, left_mm + width_mm), (top_mm - height_mm, top_mm)
        return (round(spans[0][0], 3), round(spans[0][1], 3)), (round(spans[1][0], 3), round(spans[1][1], 3))

    def picture(self, name: str) -> Picture | None:
        """Return one of its pictures; None where it has none of that name."""
        return next((picture for picture in self.pictures if picture.name == name), None)

    def words(self, before: Try | None) -> str:
        """Say what it was, and what was changed since the one before."""
        recipe, asked = self.settings.recipe, self.settings.decomposition
        main = recipe.method if self.kind == "bins" else f"{asked.tier} domain"
        changed = changes(before.settings, self.settings) if before is not None else ()
        told = f": {'; '.join(changed)}" if changed else ""
        return f"{self.number}. {self.kind} by {main}, z {self.z_mm:.2f} mm, {self.seconds_s:.1f} s{told}"


def before_of(tries: Sequence[Try], place: int) -> Try | None:
    """Return the last try of the same kind before one; None where it is the first."""
    return next((other for other in reversed(tries[:place]) if other.kind == tries[place].kind), None)


def pictures_of(volume: Volume) -> tuple[Picture, ...]:
    """Return the channels of a volume of one slice as pictures; materials in mg/mL, and all together in colour."""
    flat = volume.values[:, 0, ::-1]
    is_material = volume.unit == MASS_CONCENTRATION
    pictures = [
        Picture(
            name=name,
            unit=MG_PER_ML if is_material else volume.unit_of(name),
            values=np.ascontiguousarray(values * np.float32(MG_ML_PER_G_CM3 if is_material else 1)),
        )
        for name, values in zip(volume.channels, flat, strict=True)
    ]
    return (*pictures, _in_colour(volume.channels, flat)) if is_material else tuple(pictures)


def _in_colour(materials: Sequence[str], maps_g_cm3: NDArray[np.float32]) -> Picture:
    from gui.colour import blend, looks_for

    looks = looks_for(materials, maps_g_cm3)
    legend = tuple(
        (f"{look.material}, full from {_rounded(look.high_g_cm3 * MG_ML_PER_G_CM3)} mg/mL on", _hex(look.colour))
        for look in looks
    )
    return Picture(name=COLOUR, unit="", values=blend(maps_g_cm3, looks), legend=legend)


def _rounded(value_mg_ml: float) -> str:
    return f"{value_mg_ml:.0f}" if value_mg_ml >= 100 else f"{value_mg_ml:.3g}"


def _hex(colour: Sequence[float]) -> str:
    return "#" + "".join(f"{round(255 * min(max(part, 0.0), 1.0)):02x}" for part in colour)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading:
    """What two boxes of a picture read, in its unit.

    Attributes
    ----------
    region, outside : (n,) float32
        Pixels of the region, and of the background beside it.
    """

    region: NDArray[np.float32]
    outside: NDArray[np.float32]

    @property
    def mean(self) -> float:
        """Mean of the region."""
        return float(self.region.mean(dtype=np.float64))

    @property
    def sd(self) -> float:
        """Standard deviation in the region."""
        return float(self.region.std(dtype=np.float64))

    @property
    def background(self) -> float:
        """Mean of the background."""
        return float(self.outside.mean(dtype=np.float64))

    @property
    def background_sd(self) -> float:
        """Standard deviation in the background."""
        return float(self.outside.std(dtype=np.float64))

    @property
    def contrast(self) -> float:
        """Mean over the background's mean."""
        return self.mean - self.background

    @property
    def contrast_to_noise(self) -> float:
        """Contrast over the background's noise; NaN where there is none."""
        noise = self.background_sd
        return self.contrast / noise if noise > 0 else float("nan")


def reading(
    values: NDArray[np.floating], region: tuple[slice, slice], background: tuple[slice, slice]
) -> Reading | None:
    """Return what two boxes of rows and columns read; None where one of them is empty or lies outside."""
    inner, outer = (values[box].ravel().astype(np.float32, copy=False) for box in (region, background))
    return Reading(region=inner, outside=outer) if inner.size and outer.size else None


def box_of(x_mm: float, y_mm: float, width_mm: float, height_mm: float, pixel_mm: float) -> tuple[slice, slice]:
    """Return the rows and columns of a box that is given by its corner, in mm from the picture's corner."""
    first_col, first_row = (max(round(at / pixel_mm), 0) for at in (x_mm, y_mm))
    stop_col, stop_row = (max(round((at + size) / pixel_mm), 0) for at, size in ((x_mm, width_mm), (y_mm, height_mm)))
    return slice(first_row, stop_row), slice(first_col, stop_col)


def difference(before: Picture, after: Picture) -> Picture | None:
    """Return what one picture has more than the other; None where they cannot be compared."""
    if before.values.shape != after.values.shape or after.values.ndim != 2 or before.unit != after.unit:
        return None
    return Picture(name=f"{after.name}: this less the one before", unit=after.unit, values=after.values - before.values)
