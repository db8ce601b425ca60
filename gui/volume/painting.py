"""Makes the pictures of the panes, in the background: cuts a volume, computes what is shown, and colours it.

What was cut last stays, for each pane, so that another colour, window or energy costs no reading.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from calibration.attenuation import MG_ML_PER_G_CM3
from gui.volume.looks import GreyLook, Levels, MaterialLook, auto_looks, composed, shaded
from gui.volume.slicing import Cut, CutPicture, Slicer, sampled
from gui.volume.views import Recipe, Shown, auto_levels

Looks = tuple[MaterialLook, ...]
MOST_SLICERS = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Painted:
    """A picture of a pane.

    Attributes
    ----------
    picture : (h, w, 3) uint8
        sRGB; row 0 is the lowest.
    left_mm, bottom_mm, step_mm : float
        As in `CutPicture`.
    """

    cut: Cut
    picture: NDArray[np.uint8]
    left_mm: float
    bottom_mm: float
    step_mm: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Suggestion:
    """What a look at part of a volume suggests.

    Attributes
    ----------
    looks : tuple of MaterialLook
        Of materials; empty for a grey view.
    grey : GreyLook or None
        Of anything else.
    spans : tuple of Levels
        From where to where the sliders of windows reach: of each material in g/cm3, or of the grey view.
    """

    looks: Looks = ()
    grey: GreyLook | None = None
    spans: tuple[Levels, ...] = ()


@dataclass(slots=True)
class Painter:
    """Belongs to one thread."""

    _slicers: dict[tuple[int, int, int], Slicer] = field(default_factory=dict)
    _cuts: dict[str, tuple[Slicer, Cut, CutPicture]] = field(default_factory=dict)
    _samples: dict[int, NDArray[np.float32]] = field(default_factory=dict)

    def paint(self, pane: str, recipe: Recipe, cut: Cut, look: Looks | GreyLook) -> Painted:
        """Return what a pane shows."""
        found = self._cut(pane, recipe, cut)
        values = _quantity(recipe, found.values)
        if isinstance(look, GreyLook):
            picture = shaded(np.where(np.isnan(found.values[0]), np.nan, values), look)
        else:
            picture = composed(values, look)
        return Painted(
            cut=cut, picture=picture, left_mm=found.left_mm, bottom_mm=found.bottom_mm, step_mm=found.step_mm
        )

    def suggest(self, recipe: Recipe, shown: Shown) -> Suggestion:
        """Return colours and windows for a view, told by part of the volume."""
        values = self._sample(recipe)
        if recipe.make is None:
            looks = auto_looks(recipe.volume.channels, values)
            return Suggestion(looks=looks, spans=tuple(map(_span_g_cm3, values, looks)))
        quantity = recipe.make(values)
        levels = auto_levels(quantity, recipe.unit, is_difference=shown is Shown.K_EDGE)
        finite = quantity[np.isfinite(quantity)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else levels
        name = "below and above" if shown is Shown.K_EDGE else "grey"
        return Suggestion(
            grey=GreyLook(map_name=name, levels=levels), spans=((min(low, levels[0]), max(high, levels[1])),)
        )

    def _sample(self, recipe: Recipe) -> NDArray[np.float32]:
        whole, first, last = recipe.volume.values, recipe.channels[0], recipe.channels[-1] + 1
        if id(whole) not in self._samples:
            self._samples.clear()
            self._samples[id(whole)] = sampled(whole)
        return self._samples[id(whole)][first:last]

    def _cut(self, pane: str, recipe: Recipe, cut: Cut) -> CutPicture:
        slicer = self._slicer(recipe)
        if pane in self._cuts:
            last, its_cut, found = self._cuts[pane]
            if last is slicer and its_cut == cut:
                return found
        found = slicer.picture(cut)
        self._cuts[pane] = slicer, cut, found
        return found

    def _slicer(self, recipe: Recipe) -> Slicer:
        first, last = recipe.channels[0], recipe.channels[-1] + 1  # they stand side by side
        key = id(recipe.volume.values), first, last
        if key not in self._slicers:
            while len(self._slicers) >= MOST_SLICERS:
                self._slicers.pop(next(iter(self._slicers)))
            self._slicers[key] = Slicer(recipe.volume.values[first:last], recipe.volume.grid)
        return self._slicers[key]

    def forget(self) -> None:
        """Let go of all volumes."""
        self._slicers.clear()
        self._cuts.clear()
        self._samples.clear()


def _quantity(recipe: Recipe, values: NDArray[np.float32]) -> NDArray[np.floating]:
    return values if recipe.make is None else recipe.make(values)


def _span_g_cm3(values: NDArray[np.float32], look: MaterialLook) -> Levels:
    finite = values[np.isfinite(values)]
    most = float(finite.max()) if finite.size else 0.0
    return 0.0, max(most, 1.5 * look.high_g_cm3)


def with_window(look: MaterialLook, low_mg_ml: float, high_mg_ml: float) -> MaterialLook:
    """Return a look with another window; an upper end that is not above the lower one is put just above it."""
    low = max(low_mg_ml, 0.0) / MG_ML_PER_G_CM3
    high = max(high_mg_ml / MG_ML_PER_G_CM3, low + 1e-6)
    return replace(look, low_g_cm3=low, high_g_cm3=high)
