"""picture: material maps to `(h, w, 3) uint8`, one colour per material, added like lights.

Water is the grey base; every other material adds its own colour in proportion to its concentration inside a window.
The colours stay apart for the common kinds of colour blindness, and a material has the same colour in every picture.

# Ref: the palette: Okabe and Ito 2008, "Color Universal Design"; its names as in Wong 2011, Nature Methods 8, 441.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Colour = tuple[float, float, float]
"""Red, green and blue of sRGB, 0 to 1."""

DIMMING = 0.85
"""The palette is this much darker than printed, so that a colour over the grey base keeps its hue."""


def _dimmed(red: int, green: int, blue: int) -> Colour:
    return DIMMING * red / 255, DIMMING * green / 255, DIMMING * blue / 255


ORANGE = _dimmed(230, 159, 0)
SKY_BLUE = _dimmed(86, 180, 233)
BLUISH_GREEN = _dimmed(0, 158, 115)
YELLOW = _dimmed(240, 228, 66)
BLUE = _dimmed(0, 114, 178)
VERMILION = _dimmed(213, 94, 0)
REDDISH_PURPLE = _dimmed(204, 121, 167)
GREY: Colour = (0.22, 0.22, 0.22)

PALETTE = (VERMILION, SKY_BLUE, YELLOW, REDDISH_PURPLE, BLUISH_GREEN, ORANGE, BLUE)
"""In the order in which unknown materials take them; the first four stay apart for every kind of colour blindness."""
KNOWN: Mapping[str, Colour] = {
    "water": GREY,
    "pmma": GREY,
    "adipose": GREY,
    "iodine": VERMILION,
    "gadolinium": SKY_BLUE,
    "hydroxyapatite": YELLOW,
    "bone": YELLOW,
    "calcium": YELLOW,
    "barium": REDDISH_PURPLE,
    "gold": BLUISH_GREEN,
}
BASE_HIGH_G_CM3 = 1.2
"""Where the grey base is brightest: just above soft tissue."""
LEAST_HIGH_G_CM3 = 0.002
"""A material that is nowhere in the picture must not have its noise blown up to full colour."""
LOW_SHARE = 0.1
"""A colour begins at this share of its window, so that noise about zero does not tint the base."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How one material shows: black up to `low_g_cm3`, its full colour from `high_g_cm3` on, linear between them."""

    material: str
    colour: Colour
    low_g_cm3: float = 0.0
    high_g_cm3: float

    def __post_init__(self) -> None:
        if not 0 <= self.low_g_cm3 < self.high_g_cm3:
            raise ValueError(
                f"the window of {self.material} is {self.low_g_cm3} to {self.high_g_cm3} g/cm3; "
                "allowed: 0 <= low < high"
            )
        if len(self.colour) != 3 or not all(0 <= part <= 1 for part in self.colour):
            raise ValueError(f"the colour of {self.material} is {self.colour}; allowed: three parts of 0 to 1")


def colours_of(materials: Sequence[str]) -> dict[str, Colour]:
    """Give each material its colour; those not known by name take what is left of the palette, in order of name."""
    colours = {name: KNOWN[name] for name in materials if name in KNOWN}
    spare = [colour for colour in PALETTE if colour not in colours.values()] or list(PALETTE)
    unknown = sorted(set(materials) - set(KNOWN))
    return colours | {name: spare[n % len(spare)] for n, name in enumerate(unknown)}


def looks_for(materials: Sequence[str], values_g_cm3: NDArray[np.floating]) -> tuple[Look, ...]:
    """Choose colours and windows for a picture of these values.

    Parameters
    ----------
    materials : (n_materials,) str
    values_g_cm3 : (n_materials, ...) float
        What is to be seen; the window of a material ends at the 99.8th percentile of its values.
    """
    colours = colours_of(materials)
    return tuple(
        Look(material=name, colour=GREY, high_g_cm3=BASE_HIGH_G_CM3)
        if colours[name] == GREY
        else _look(name, colours[name], values)
        for name, values in zip(materials, values_g_cm3, strict=True)
    )


def _look(name: str, colour: Colour, values: NDArray[np.floating]) -> Look:
    finite = values[np.isfinite(values)]
    high = max(float(np.percentile(finite, 99.8)) if finite.size else 0.0, LEAST_HIGH_G_CM3)
    return Look(material=name, colour=colour, low_g_cm3=LOW_SHARE * high, high_g_cm3=high)


def blend(maps_g_cm3: NDArray[np.floating], looks: Sequence[Look]) -> NDArray[np.uint8]:
    """Add the colours of all materials in every pixel.

    Parameters
    ----------
    maps_g_cm3 : (n_materials, h, w) float
        What is not a number shows as nothing.
    looks : (n_materials,) Look
        In the order of the maps.

    Returns
    -------
    picture : (h, w, 3) uint8
        sRGB; each channel stops at 255.
    """
    if maps_g_cm3.ndim != 3 or len(maps_g_cm3) != len(looks):
        raise ValueError(f"maps of shape {maps_g_cm3.shape} do not match {len(looks)} looks; allowed: (n_looks, h, w)")
    total = np.zeros((*maps_g_cm3.shape[1:], 3))
    for values, look in zip(maps_g_cm3, looks, strict=True):
        share = (values - look.low_g_cm3) / (look.high_g_cm3 - look.low_g_cm3)
        total += np.clip(np.nan_to_num(share, nan=0.0), 0, 1)[..., None] * np.asarray(look.colour)
    return np.rint(255 * np.minimum(total, 1)).astype(np.uint8)
