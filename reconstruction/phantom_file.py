"""What a phantom holds and where, as a TOML file states it: vials, and regions to measure noise and sharpness in.

    name = "ring of vials"
    solvent = "water"                # what the vials are filled up with; a vial of it alone is a blank
    z_range_mm = [-4.0, 4.0]         # only these slices count; default: all
    kept_radius_share = 0.8          # of a vial's radius: its rim holds the wall and the blur

    [[vial]]
    material = "iodine"              # a channel of the volume
    concentration_mg_ml = 9.0        # default: nobody stated it
    x_mm = 3.1
    y_mm = 0.0
    radius_mm = 0.9
    mixture_mg_ml = { gadolinium = 4.0 }    # what else is dissolved in it
    is_pure = false                  # true: no solvent in it, a rod of plastic or a fat
    z_range_mm = [-2.0, 2.0]         # where the vial is shorter than the phantom

    [blank]                          # where no agent is; default: the vials of solvent
    x_mm = 0.0
    y_mm = 0.0
    radius_mm = 1.5

    [uniform]                        # a square for the noise power; default: the largest inside the blank
    x_mm = 0.0
    y_mm = 0.0
    side_mm = 2.0

    [[edge]]                         # for the MTF of a material's map; default: the rims of its vials
    material = "gold"
    kind = "line"                    # "disc" (radius_mm), "line" (reach_mm, angle_deg: along the edge, from x to y), "wire" (reach_mm)
    x_mm = 0.0
    y_mm = 4.0
    angle_deg = 3.0
    reach_mm = 0.5                   # how far from the edge voxels count; a disc's default: its radius

    [body]                           # uniform matter round the vials, from which cupping is learnt
    material = "pmma"
    x_mm = 0.0
    y_mm = 0.0
    radius_mm = 5.0

    [densities_g_cm3]                # of materials that the shelf does not know, or others than its
    iodine = 4.93

    [threshold_mg_ml]                # from where on a voxel shows a material; default: half the weakest vial
    iodine = 2.0

Only `[[vial]]` is needed. Positions are those of the volume, or differ from them by a shift and a turn about the origin that
`reconstruction.merit.registration` finds.
"""  # noqa: E501

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from calibration.attenuation import MG_ML_PER_G_CM3, material
from calibration.material_basis import SOLVENT
from firmware_iface.errors import BadFile, WrongUsage

KEPT_RADIUS = 0.8
"""Share of a vial's radius that counts: its rim holds the wall and the blur."""
_HINT = "every key is told at the top of reconstruction/phantom_file.py; only [[vial]] is needed"


def _refuse_not_positive(name: str, value: float, what: str) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} of {what} is {value}; allowed: more than 0")


def _refuse_empty(z_range_mm: tuple[float, float] | None, what: str) -> None:
    if z_range_mm is not None and not z_range_mm[0] < z_range_mm[1]:
        raise ValueError(f"z_range_mm of {what} is {list(z_range_mm)}; allowed: lowest before highest")


class Vial(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An upright cylinder of one solution; `concentration_mg_ml` is None where nobody stated it."""

    material: str
    x_mm: float
    y_mm: float
    radius_mm: float
    concentration_mg_ml: float | None = None
    mixture_mg_ml: dict[str, float] = {}
    is_pure: bool = False
    z_range_mm: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        what = f"the {self.material} vial"
        _refuse_not_positive("radius_mm", self.radius_mm, what)
        _refuse_empty(self.z_range_mm, what)
        stated = [c for c in (self.concentration_mg_ml, *self.mixture_mg_ml.values()) if c is not None]
        if not all(c >= 0 and math.isfinite(c) for c in stated):
            raise ValueError(f"{what} holds {stated} mg/mL; allowed: 0 or more")
        for name in self.materials:
            held, most = self.true_mg_ml(name) or 0.0, _pure_mg_ml(name)
            if most is not None and held > most:
                raise ValueError(f"{what} holds {held:g} mg/mL of {name}; allowed: up to pure, {most:g}")
        if self.material in self.mixture_mg_ml:
            raise ValueError(f"mixture_mg_ml of {what} names {self.material} again; allowed: what else is in it")

    @property
    def materials(self) -> tuple[str, ...]:
        """What it is called after, and what else is dissolved in it."""
        return (self.material, *self.mixture_mg_ml)

    def true_mg_ml(self, material: str) -> float | None:
        """Return how much of a material it holds: 0 of what is not stated to be in it, None where nobody knows."""
        return self.concentration_mg_ml if material == self.material else self.mixture_mg_ml.get(material, 0.0)

    @property
    def label(self) -> str:
        """Its content in words."""
        parts = [self.material if not self.concentration_mg_ml else f"{self.material} {self.concentration_mg_ml:g}"]
        return " + ".join(parts + [f"{name} {value:g}" for name, value in self.mixture_mg_ml.items()])


class Disc(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A round region through all slices that count."""

    x_mm: float
    y_mm: float
    radius_mm: float

    def __post_init__(self) -> None:
        _refuse_not_positive("radius_mm", self.radius_mm, "the blank")


class Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An upright cylinder of uniform matter, in which the vials stand."""

    material: str = "body"
    x_mm: float
    y_mm: float
    radius_mm: float

    def __post_init__(self) -> None:
        _refuse_not_positive("radius_mm", self.radius_mm, "the body")


class Square(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A square region, its sides along the volume's, around a point."""

    x_mm: float
    y_mm: float
    side_mm: float

    def __post_init__(self) -> None:
        _refuse_not_positive("side_mm", self.side_mm, "the uniform square")


class Edge(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something sharp in the map of a material: the rim of a rod, a straight edge, or a thin wire along z."""

    material: str
    kind: Literal["disc", "line", "wire"] = "disc"
    x_mm: float
    y_mm: float
    radius_mm: float | None = None
    reach_mm: float | None = None
    angle_deg: float = 0.0

    def __post_init__(self) -> None:
        needed = "radius_mm" if self.kind == "disc" else "reach_mm"
        value = self.radius_mm if self.kind == "disc" else self.reach_mm
        if value is None:
            raise ValueError(f"a {self.kind} of {self.material} needs {needed}")
        for name, value in (("radius_mm", self.radius_mm), ("reach_mm", self.reach_mm)):
            if value is not None:
                _refuse_not_positive(name, value, f"a {self.kind} of {self.material}")


Region = TypeVar("Region", Vial, Disc, Body, Square, Edge)


class Phantom(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a phantom holds and where."""

    name: str = "phantom"
    solvent: str = SOLVENT
    z_range_mm: tuple[float, float] | None = None
    kept_radius_share: float = KEPT_RADIUS
    vials: tuple[Vial, ...] = msgspec.field(name="vial")
    blank: Disc | None = None
    uniform: Square | None = None
    edges: tuple[Edge, ...] = msgspec.field(default=(), name="edge")
    body: Body | None = None
    densities_g_cm3: dict[str, float] = {}
    threshold_mg_ml: dict[str, float] = {}

    def __post_init__(self) -> None:
        if not self.vials:
            raise ValueError("the phantom has no vial; allowed: at least one [[vial]]")
        if not 0 < self.kept_radius_share <= 1:
            raise ValueError(f"kept_radius_share is {self.kept_radius_share}; allowed: above 0, up to 1")
        _refuse_empty(self.z_range_mm, "the phantom")
        for key, table in (("threshold_mg_ml", self.threshold_mg_ml), ("densities_g_cm3", self.densities_g_cm3)):
            for name, value in table.items():
                _refuse_not_positive(key, value, name)

    @property
    def agents(self) -> tuple[str, ...]:
        """Every material that is in some vial, but for the solvent."""
        names = dict.fromkeys(name for vial in self.vials for name in vial.materials)
        return tuple(name for name in names if name != self.solvent)

    def moved(self, x_mm: float, y_mm: float, rotation_rad: float = 0.0) -> Phantom:
        """Return it turned about the origin, from x to y, and then shifted.

        The sides of the uniform square stay along the volume's.
        """
        cos, sin = math.cos(rotation_rad), math.sin(rotation_rad)

        def place(region: Region) -> Region:
            x, y = region.x_mm, region.y_mm
            return msgspec.structs.replace(region, x_mm=cos * x - sin * y + x_mm, y_mm=sin * x + cos * y + y_mm)

        turn_deg = math.degrees(rotation_rad)
        edges = (msgspec.structs.replace(place(edge), angle_deg=edge.angle_deg + turn_deg) for edge in self.edges)
        return msgspec.structs.replace(
            self,
            vials=tuple(place(vial) for vial in self.vials),
            blank=None if self.blank is None else place(self.blank),
            body=None if self.body is None else place(self.body),
            uniform=None if self.uniform is None else place(self.uniform),
            edges=tuple(edges),
        )


def _pure_mg_ml(name: str) -> float | None:
    """Return what a material weighs by itself; None where the shelf does not know it."""
    try:
        return MG_ML_PER_G_CM3 * material(name).density_g_cm3
    except WrongUsage:
        return None


def phantom_to_toml(phantom: Phantom) -> str:
    """Write a description as the TOML file that `load_phantom` reads; what is as by default is left out."""
    plain = msgspec.to_builtins(phantom)
    lines = [
        f"{key} = {_toml(value)}"
        for key, value in plain.items()
        if isinstance(value, str | float | list | tuple) and key not in ("vial", "edge")
    ]
    for key in ("blank", "uniform", "body", "threshold_mg_ml", "densities_g_cm3"):
        if plain[key]:
            lines += ["", f"[{key}]", *_table(plain[key])]
    for key in ("vial", "edge"):
        for table in plain[key]:
            lines += ["", f"[[{key}]]", *_table(table)]
    return "\n".join(lines) + "\n"


def _table(table: Mapping[str, object]) -> list[str]:
    return [
        f"{key} = {_toml(value)}"
        for key, value in table.items()
        if not (value is None or value is False or value == {})
    ]


def _toml(value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(part)}" for key, part in value.items()) + " }"
    return json.dumps(value)


def load_phantom(path: str | Path) -> Phantom:
    """Read the description of a phantom.

    Raises
    ------
    BadFile
        It cannot be read, or a key of it is wrong or missing.
    """
    path = Path(path)
    try:
        return msgspec.toml.decode(path.read_bytes(), type=Phantom)
    except OSError as error:
        raise BadFile(f"{path} cannot be read: {error.strerror or error}", hint=_HINT) from error
    except (ValueError, msgspec.MsgspecError) as error:
        raise BadFile(f"{path} describes no phantom: {error}", hint=_HINT) from error
