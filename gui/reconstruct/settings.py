"""What is asked for on the page Reconstruct, as frozen records: how bins are made, and how materials are told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from firmware_iface.errors import WrongUsage
from reconstruction.recipe import RULES, TIERS, Recipe

IMAGE, PROJECTION, ONE_STEP = TIERS
EXCLUSIVE = RULES[3:]
"""Rules that choose one sub-problem for each voxel, and write labels too."""
BY_CALIBRATION, BY_RESPONSE, BY_MATRIX, BY_VIALS = "calibration", "response", "matrix", "vials"
BY: Mapping[str, str] = MappingProxyType(
    {
        BY_CALIBRATION: "the scan's calibration",
        BY_RESPONSE: "a detector's response",
        BY_MATRIX: "a table of attenuation (CSV)",
        BY_VIALS: "vials in this volume",
    }
)
"""Where the attenuation of the materials in the bins is taken from."""
USUAL = "usual"
"""The tier's own prior."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantities:
    """What is to be told of the materials beside their concentrations.

    Attributes
    ----------
    mono_kev : tuple of float
        Pictures as of photons of one energy, in HU.
    electron_density, effective_z : bool
    vnc_kev : float, optional
        Picture without contrast agents, in HU, at this energy.
    elements : tuple of str
        Amounts in mg/mL, as "I".
    beams : tuple of str
        Stopping powers relative to water's, as "proton@150".
    """

    mono_kev: tuple[float, ...] = ()
    electron_density: bool = False
    effective_z: bool = False
    vnc_kev: float | None = None
    elements: tuple[str, ...] = ()
    beams: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for energy_kev in (*self.mono_kev, *(() if self.vnc_kev is None else (self.vnc_kev,))):
            if not 5 <= energy_kev <= 200:
                raise WrongUsage(f"the energy is {energy_kev:g} keV; allowed: 5 to 200")

    @property
    def is_any(self) -> bool:
        """Whether anything is asked for."""
        return self != Quantities()


@dataclass(frozen=True, slots=True, kw_only=True)
class Decomposition:
    """How materials are told.

    Attributes
    ----------
    tier : str
        "image": from the volumes of the bins; "projection": from every ray; "onestep": from all counts at once.
    by : str
        Of the tier "image": one of `BY`; `file` is what it names.
    rule : str
        Of the tier "image": one of `RULES`.
    materials : tuple of str
        With a response, and for the other tiers; nothing: those of the calibration's basis.
    is_weighted : bool, optional
        Whether quiet bins count more; None: as is usual, not with a table and else yes.
    water_mm : float
        With a response: the rays' mean way through the sample, as water.
    is_flattened : bool
        With vials: take out cupping.
    field_weight : float
        Of the exclusive rule: how much neighbours agree.
    subsets : str
        Of the exclusive rules: what a voxel may hold, as "air; water<2.1; water+iodine"; nothing: the rule's own.
    air_below_per_mm : float, optional
        Of the exclusive rules: what attenuates less on the mean is air.
    is_full : bool
        Of volume fractions: they sum to 1 exactly, there is no air.
    prior : str
        "usual", "none", "tv", "huber", "vtv" or "tnv", in units of the noise; of the tiers beside "image".
    strength_relative : float, optional
        Of the prior, over the noise; None: its own.
    n_iterations : int, optional
        None: the tier's own.
    quantities : Quantities
    """

    tier: str = IMAGE
    by: str = BY_CALIBRATION
    file: Path | None = None
    rule: str = RULES[0]
    materials: tuple[str, ...] = ()
    is_weighted: bool | None = None
    water_mm: float = 0.0
    is_flattened: bool = False
    field_weight: float = 0.0
    subsets: str = ""
    air_below_per_mm: float | None = None
    is_full: bool = False
    prior: str = USUAL
    strength_relative: float | None = None
    n_iterations: int | None = None
    quantities: Quantities = field(default_factory=Quantities)

    def __post_init__(self) -> None:
        if self.tier not in TIERS:
            raise WrongUsage(f"the tier is {self.tier!r}; allowed: {', '.join(TIERS)}")
        if self.rule not in RULES:
            raise WrongUsage(f"the rule is {self.rule!r}; allowed: {', '.join(RULES)}")
        if self.by not in BY:
            raise WrongUsage(f"the attenuation is by {self.by!r}; allowed: {', '.join(BY)}")
        if self.tier == IMAGE and self.by != BY_CALIBRATION and self.file is None:
            raise WrongUsage(f"attenuation is to be taken from {BY[self.by]}, and no file is named")
        twice = [name for number, name in enumerate(self.materials) if name in self.materials[:number]]
        if twice:
            raise WrongUsage(f"{twice[0]} is named twice; allowed: each material once")
        if self.field_weight < 0:
            raise WrongUsage(f"the weight of neighbours is {self.field_weight:g}; allowed: 0 and more")
        if not 0 <= self.water_mm < 1000:
            raise WrongUsage(f"the way through water is {self.water_mm:g} mm; allowed: 0 to 1000")
        if self.strength_relative is not None and not self.strength_relative > 0:
            raise WrongUsage(f"the strength is {self.strength_relative:g}; allowed: more than 0 times the noise")
        if self.n_iterations is not None and self.n_iterations < 1:
            raise WrongUsage(f"{self.n_iterations} iterations were asked for; allowed: at least 1")

    @property
    def prior_name(self) -> str | None:
        """The prior as `reconstruction.scan_materials.decompose_scan` takes it."""
        if self.prior == USUAL:
            return "huber" if self.tier == ONE_STEP else None
        return None if self.prior == "none" else self.prior

    @property
    def weighs(self) -> bool:
        """Whether the rules of least squares weigh the bins."""
        return self.by != BY_MATRIX if self.is_weighted is None else self.is_weighted


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All that the page asks for.

    Attributes
    ----------
    recipe : Recipe
        How bins are made.
    memory : str
        Stay below this, as "8GB"; nothing: what is free.
    calibration : path, optional
        Whose geometry and response to take; None: the scan's own.
    allow_partial : bool
        Take an interrupted scan too.
    decomposition : Decomposition
    """

    recipe: Recipe = field(default_factory=Recipe)
    memory: str = ""
    calibration: Path | None = None
    allow_partial: bool = False
    decomposition: Decomposition = field(default_factory=Decomposition)

    def __post_init__(self) -> None:
        if self.memory:
            from reconstruction.size.budget import parse_bytes

            parse_bytes(self.memory)


def numbers_of(text: str, what: str) -> tuple[float, ...]:
    """Read "40, 70"."""
    try:
        return tuple(float(part) for part in text.replace(";", ",").split(",") if part.strip())
    except ValueError:
        raise WrongUsage(f"{what} is {text!r}; allowed: numbers by commas, as 40, 70") from None


def names_of(text: str) -> tuple[str, ...]:
    """Read "water, iodine"."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def told(value: object) -> str:
    """Say a setting for people."""
    if value is None or value in ("", (), {}):
        return "auto"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Path):
        return value.name
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {told(part)}" for name, part in value.items())
    if isinstance(value, tuple):
        return " ".join(map(told, value))
    return str(value)


def changes(before: Settings, after: Settings) -> tuple[str, ...]:
    """Return in words what one asks for and the other does not: "method fdk → fista"."""
    old, new = _flat(before), _flat(after)
    found = []
    for name in {**new, **old}:
        was, is_now = told(old.get(name)), told(new.get(name))
        if was != is_now:
            words = name.replace("_", " ").removeprefix("is ").removeprefix("n ")
            found.append(f"{words} {was} → {is_now}")
    return tuple(found)


def _flat(record: Any) -> dict[str, object]:
    parts: dict[str, object] = {}
    for part in fields(record):
        value = getattr(record, part.name)
        if isinstance(value, Recipe | Decomposition | Quantities):
            parts |= {f"{_PREFIX.get(type(value), '')}{name}": inner for name, inner in _flat(value).items()}
        elif isinstance(value, Mapping):
            parts |= value
        else:
            parts[part.name] = value
    return parts


_PREFIX = {Decomposition: "materials: ", Quantities: ""}
