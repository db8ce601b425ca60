"""How a volume shows: colour, opacity and window of each material, and the grey window of everything else.

Materials add up like lights over the grey base of water, as in `gui.colour`, each dimmed by its opacity. All records
are frozen, so that an edit is a new record and can be undone; sets of looks are kept as plain values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.attenuation import MG_ML_PER_G_CM3
from gui.colour import KNOWN, PALETTE, Colour, Look, looks_for

Levels = tuple[float, float]
"""Where black ends and where white begins, in the unit of what is shown."""

MAPS: Mapping[str, tuple[Colour, ...]] = {
    "grey": ((0, 0, 0), (1, 1, 1)),
    "grey, inverted": ((1, 1, 1), (0, 0, 0)),
    "fire": ((0, 0, 0), (0.34, 0.06, 0.43), (0.78, 0.24, 0.30), (0.98, 0.65, 0.04), (0.99, 1.0, 0.64)),
    "blue to yellow": ((0, 0.13, 0.3), (0.49, 0.49, 0.49), (1.0, 0.92, 0.27)),
    "below and above": ((0.0, 0.45, 0.70), (0.06, 0.06, 0.06), (0.84, 0.37, 0.0)),
}
"""Maps of one quantity to colours, by name, even steps apart; all but the last rise in lightness, or fall."""
N_STEPS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class MaterialLook(Look):
    """How one material shows.

    Attributes
    ----------
    opacity : float
        0 to 1: how much of its colour it adds, and in three dimensions how dense it is at the top of its window.
    is_visible : bool
    """

    opacity: float = 1.0
    is_visible: bool = True

    def __post_init__(self) -> None:
        Look.__post_init__(self)
        if not 0 <= self.opacity <= 1:
            raise ValueError(f"the opacity of {self.material} is {self.opacity}; allowed: 0 to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class GreyLook:
    """How a quantity shows that is no material: a bin, an energy, a difference.

    Attributes
    ----------
    map_name : str
        One of `MAPS`.
    levels : Levels
        In its unit.
    """

    map_name: str = "grey"
    levels: Levels

    def __post_init__(self) -> None:
        low, high = self.levels
        if not (low < high and math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"levels are {low:g} to {high:g}; allowed: two numbers, the lower one first")
        if self.map_name not in MAPS:
            raise ValueError(f"no colour map is called {self.map_name!r}; allowed: {', '.join(MAPS)}")


def auto_looks(materials: Sequence[str], values_g_cm3: NDArray[np.floating]) -> tuple[MaterialLook, ...]:
    """Choose colours and windows by values, (n_materials, ...) g/cm3, as all pictures of mpxct do."""
    return tuple(
        MaterialLook(material=look.material, colour=look.colour, low_g_cm3=look.low_g_cm3, high_g_cm3=look.high_g_cm3)
        for look in looks_for(materials, values_g_cm3)
    )


def composed(maps_g_cm3: NDArray[np.floating], looks: Sequence[MaterialLook]) -> NDArray[np.uint8]:
    """Return the picture of (n_materials, h, w) concentrations: (h, w, 3) uint8, the visible ones added like lights.

    At full opacity that is `gui.colour.blend`, to a rounding of single precision; it is several times as fast.
    """
    if maps_g_cm3.ndim != 3 or len(maps_g_cm3) != len(looks):
        raise ValueError(f"maps of shape {maps_g_cm3.shape} do not match {len(looks)} looks; allowed: (n_looks, h, w)")
    total = np.zeros((3, *maps_g_cm3.shape[1:]), np.float32)
    for values, look in zip(maps_g_cm3, looks, strict=True):
        if not look.is_visible or not look.opacity:
            continue
        scale = 1 / (look.high_g_cm3 - look.low_g_cm3)
        share: NDArray[np.float32] = np.array(values, np.float32)
        share *= scale
        share -= look.low_g_cm3 * scale
        np.fmin(np.fmax(share, 0, out=share), 1, out=share)  # they take a number before what is none
        for part, sums in zip(dimmed(look), total, strict=True):
            if part:
                sums += (255 * part) * share
    np.minimum(total, 255, out=total)
    picture = np.empty((*total.shape[1:], 3), np.uint8)
    picture[...] = np.moveaxis(np.rint(total, out=total), 0, 2)
    return picture


def dimmed(look: MaterialLook) -> Colour:
    """Return the colour that a material adds at the top of its window."""
    red, green, blue = (look.opacity * part for part in look.colour)
    return red, green, blue


def shaded(values: NDArray[np.floating], look: GreyLook) -> NDArray[np.uint8]:
    """Return the picture of (h, w) values: (h, w, 3) uint8; what is not a number is black."""
    low, high = look.levels
    share = np.nan_to_num((np.asarray(values, np.float32) - low) / (high - low), nan=-1.0)
    steps = np.clip(share * (N_STEPS - 1) + 0.5, 0, N_STEPS - 1).astype(np.uint8)
    picture = map_table(look.map_name)[steps]
    picture[np.isnan(values)] = 0
    return picture


def map_table(name: str) -> NDArray[np.uint8]:
    """Return the colours of a map: (N_STEPS, 3) uint8."""
    stops = np.array(MAPS[name], float)
    at, where = np.linspace(0, 1, len(stops)), np.linspace(0, 1, N_STEPS)
    return np.rint(255 * np.stack([np.interp(where, at, part) for part in stops.T], axis=1)).astype(np.uint8)


def colour_choices() -> dict[str, Colour]:
    """Return the colours to choose from: they stay apart for the colour-blind, and each has a name."""
    names = ("vermilion", "sky blue", "yellow", "reddish purple", "bluish green", "orange", "blue")
    return {"grey": KNOWN["water"], **dict(zip(names, PALETTE, strict=True))}


def in_mg_ml(value_g_cm3: float) -> str:
    """Return a concentration for people, three digits and its unit: "5.2 mg/mL"."""
    return f"{rounded(value_g_cm3 * MG_ML_PER_G_CM3)} mg/mL"


def rounded(value: float, digits: int = 3) -> str:
    """Return a number for people: so many digits that count, never as a power of ten unless it is very large or small.

    A number is not cut in front of the point: 1234.5 is "1234", not "1230".
    """
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    power = math.floor(math.log10(abs(value)))
    if not -5 <= power <= 6:
        return f"{value:.{digits - 1}e}"
    text = f"{value:.{max(digits - 1 - power, 0)}f}"
    return "0" if float(text) == 0 else text


def as_plain(looks: Sequence[MaterialLook]) -> list[dict[str, Any]]:
    """Return looks as plain values, for settings files."""
    return [
        {
            "material": look.material,
            "colour": list(look.colour),
            "low_g_cm3": look.low_g_cm3,
            "high_g_cm3": look.high_g_cm3,
            "opacity": look.opacity,
            "is_visible": look.is_visible,
        }
        for look in looks
    ]


def from_plain(saved: object) -> tuple[MaterialLook, ...]:
    """Return looks that were kept as plain values; what cannot be read is left out."""
    looks = []
    for entry in saved if isinstance(saved, list) else []:
        try:
            red, green, blue = map(float, entry["colour"])
            looks.append(
                MaterialLook(
                    material=str(entry["material"]),
                    colour=(red, green, blue),
                    low_g_cm3=float(entry["low_g_cm3"]),
                    high_g_cm3=float(entry["high_g_cm3"]),
                    opacity=float(entry["opacity"]),
                    is_visible=bool(entry["is_visible"]),
                )
            )
        except (KeyError, TypeError, ValueError):
            continue
    return tuple(looks)


def presets_from_plain(saved: object) -> dict[str, tuple[MaterialLook, ...]]:
    """Return presets by name that were kept as plain values; those that hold nothing to be read are left out."""
    found = {str(name): from_plain(looks) for name, looks in saved.items()} if isinstance(saved, Mapping) else {}
    return {name: looks for name, looks in found.items() if looks}


def applied(preset: Sequence[MaterialLook], looks: Sequence[MaterialLook]) -> tuple[MaterialLook, ...]:
    """Return the looks of a volume with those of a preset taken over where a material has the same name."""
    known = {look.material: look for look in preset}
    return tuple(known.get(look.material, look) for look in looks)
