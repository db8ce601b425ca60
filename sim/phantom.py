"""Solids of materials with exact chords, and the field's phantoms by name.

A solid fills its shape with one material, but for its inserts, which replace what they stand in: along a ray an
insert's chord counts for its own material and is taken off its surrounding's.

# Ref: chord of a box by slabs: Kay and Kajiya 1986, SIGGRAPH Comput. Graph. 20 (4), 269; cylinder and sphere: roots of
#      their quadratic equations.
# Ref: vials after the MARS phantoms: Raja et al. 2018, Appl. Sci. 8, 467 (hydroxyapatite 54.3 and 211.7 mg/mL, Gd 4
#      and 8 mg/mL); iodine 9 and 18 mg/mL after Panta and Moghiseh, from memory; the ring itself is a choice.
# Ref: metal balls in a plastic cylinder to calibrate the geometry: Yang et al. 2006, Med. Phys. 33, 1695; the helix, on
#      which no two balls stand at one height, and the sizes are choices; steel is taken for iron.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from calibration.attenuation import Material, material, solution
from firmware_iface.errors import WrongUsage
from sim import strips

_ASKEW = 1e-200
"""A ray along a plane or an axis is taken as this much askew, so that nothing is divided by 0."""

Point = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Solid:
    """What all solids have: where their centre is, what fills them, and what stands in them."""

    centre_mm: Point = (0.0, 0.0, 0.0)
    material: Material
    inserts: tuple[Solid, ...] = ()

    n_round: ClassVar[int]
    """About how many axes, x first, it is round; flat ends bound the others."""

    def __post_init__(self) -> None:
        if min(self.half_mm) <= 0:
            raise ValueError(f"a solid of half sizes {self.half_mm} mm cannot be; allowed: above 0")
        for insert in self.inserts:
            for axis in range(3):
                reach_mm = abs(insert.centre_mm[axis] - self.centre_mm[axis]) + insert.half_mm[axis]
                if reach_mm > self.half_mm[axis] * (1 + 1e-9):
                    raise ValueError(
                        f"an insert of {insert.material.name} reaches {reach_mm:g} mm along {'xyz'[axis]} from the "
                        f"middle of its {self.material.name}; allowed: up to {self.half_mm[axis]:g} mm"
                    )

    @property
    def half_mm(self) -> Point:
        """Half the size along x, y and z."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Cylinder(Solid):
    """A cylinder whose axis is parallel to z."""

    radius_mm: float
    height_mm: float

    n_round: ClassVar[int] = 2

    @property
    def half_mm(self) -> Point:
        """Half the size along x, y and z."""
        return (self.radius_mm, self.radius_mm, self.height_mm / 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Box(Solid):
    """A box along the axes."""

    size_mm: Point

    n_round: ClassVar[int] = 0

    @property
    def half_mm(self) -> Point:
        """Half the size along x, y and z."""
        x, y, z = self.size_mm
        return (x / 2, y / 2, z / 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sphere(Solid):
    """A ball."""

    radius_mm: float

    n_round: ClassVar[int] = 3

    @property
    def half_mm(self) -> Point:
        """Half the size along x, y and z."""
        return (self.radius_mm, self.radius_mm, self.radius_mm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Insert:
    """A vial as its label states it: what is dissolved in water, how much of it, and where.

    ``material`` is ``water`` with a concentration of 0 for the blank.
    """

    material: str
    concentration_mg_ml: float
    x_mm: float
    y_mm: float
    radius_mm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Phantom:
    """Solids that do not overlap; `inserts` states what the labels say, for the report."""

    solids: tuple[Solid, ...]
    inserts: tuple[Insert, ...] = ()

    @property
    def materials(self) -> tuple[Material, ...]:
        """Every material once, in the order of the solids."""
        return tuple(dict.fromkeys(solid.material for solid, _ in _with_surroundings(self.solids, None)))


def _with_surroundings(solids: tuple[Solid, ...], surrounding: Material | None) -> list[tuple[Solid, Material | None]]:
    """List all solids, each with the material that it replaces."""
    listed: list[tuple[Solid, Material | None]] = []
    for solid in solids:
        listed.append((solid, surrounding))
        listed += _with_surroundings(solid.inserts, solid.material)
    return listed


def path_lengths_mm(phantom: Phantom, source_mm: NDArray, pixels_mm: NDArray) -> NDArray[np.float32]:
    """Return how far each ray runs in each material.

    Parameters
    ----------
    phantom : Phantom
    source_mm : (3,) float
    pixels_mm : (rows, cols, 3) float
        Where the rays end.

    Returns
    -------
    (n_materials, rows, cols) float32
        In the order of `phantom.materials`.
    """
    solids = solids_of(phantom)
    pixels = np.ascontiguousarray(pixels_mm, dtype=np.float64)
    lengths_mm = np.empty((len(phantom.materials), *pixels.shape[:2]), dtype=np.float32)
    _path_lengths(solids, np.asarray(source_mm, dtype=np.float64), pixels, lengths_mm)
    return lengths_mm


class Solids(NamedTuple):
    """A phantom as kernels take it.

    Attributes
    ----------
    shapes : (n, 7) float64
        Of each solid its centre, half its sizes, and `Solid.n_round`.
    own, replaced : (n,) int64
        Which material fills it, and which it stands in: -1 for none.
    """

    shapes: NDArray[np.float64]
    own: NDArray[np.int64]
    replaced: NDArray[np.int64]


@lru_cache(maxsize=16)
def solids_of(phantom: Phantom | None) -> Solids:
    """Return a phantom, or nothing, as kernels take it."""
    materials = phantom.materials if phantom else ()
    listed = _with_surroundings(phantom.solids, None) if phantom else []
    shapes = [(*solid.centre_mm, *solid.half_mm, solid.n_round) for solid, _ in listed]
    return Solids(
        shapes=np.array(shapes, dtype=np.float64).reshape(-1, 7),
        own=np.array([materials.index(solid.material) for solid, _ in listed], dtype=np.int64),
        replaced=np.array([-1 if m is None else materials.index(m) for _, m in listed], dtype=np.int64),
    )


@strips.quick
def _add_chords(shape: np.ndarray, source: np.ndarray, rays: np.ndarray, own: np.ndarray, replaced: np.ndarray) -> None:
    """Add what some rays have in a solid to its own material, and take it from the other.

    ``rays`` (7, cols) float64 holds how far they run along x, y and z, these numbers' inverse, and the length.
    """
    n_round = shape[6]
    x, y, z = source[0] - shape[0], source[1] - shape[1], source[2] - shape[2]
    is_round = np.float64(n_round > 0), np.float64(n_round > 2)
    rest = is_round[0] * (x * x + y * y) + is_round[1] * z * z - shape[3] * shape[3]
    half_x, half_y = (np.inf, np.inf) if n_round > 0 else (shape[3], shape[4])
    half_z = np.inf if n_round > 2 else shape[5]
    along_x, along_y, along_z = rays[0], rays[1], rays[2]
    per_x, per_y, per_z, length = rays[3], rays[4], rays[5], rays[6]
    for col in range(len(length)):
        square = is_round[0] * (along_x[col] ** 2 + along_y[col] ** 2) + is_round[1] * along_z[col] ** 2 + _ASKEW
        middle = is_round[0] * (along_x[col] * x + along_y[col] * y) + is_round[1] * along_z[col] * z
        root = math.sqrt(max(middle * middle - square * rest, 0.0))
        enter, leave = max((-middle - root) / square, 0.0), min((root - middle) / square, 1.0)
        first, second = (-half_x - x) * per_x[col], (half_x - x) * per_x[col]
        enter, leave = max(enter, min(first, second)), min(leave, max(first, second))
        first, second = (-half_y - y) * per_y[col], (half_y - y) * per_y[col]
        enter, leave = max(enter, min(first, second)), min(leave, max(first, second))
        first, second = (-half_z - z) * per_z[col], (half_z - z) * per_z[col]
        enter, leave = max(enter, min(first, second)), min(leave, max(first, second))
        chord = length[col] * max(leave - enter, 0.0)
        own[col] += chord
        replaced[col] -= chord


@strips.quick
def row_lengths(
    solids: Solids, source: np.ndarray, pixels: np.ndarray, rays: np.ndarray, sums: np.ndarray, lengths: np.ndarray
) -> None:
    """Give one row its path lengths.

    Parameters
    ----------
    solids : Solids
    source : (3,) float64
    pixels : (cols, 3) float64
        Where rays end.
    rays : (7, cols) float64
        Becomes how far each ray runs along x, y and z, the inverse of these numbers, and its length.
    sums : (n_materials + 1, cols) float64
        Memory.
    lengths : (n_materials or more, cols) float32
        Becomes the path in each material.
    """
    for col in range(len(pixels)):
        x, y, z = pixels[col, 0] - source[0], pixels[col, 1] - source[1], pixels[col, 2] - source[2]
        rays[0, col], rays[1, col], rays[2, col] = x, y, z
        rays[6, col] = math.sqrt(x * x + y * y + z * z)
    for axis in range(3):
        along, inverse = rays[axis], rays[3 + axis]
        for col in range(len(along)):
            inverse[col] = 1 / (along[col] if along[col] != 0 else _ASKEW)
    sums[:] = 0
    for i in range(len(solids.shapes)):
        _add_chords(solids.shapes[i], source, rays, sums[solids.own[i]], sums[solids.replaced[i]])
    for which in range(len(sums) - 1):
        total, found = sums[which], lengths[which]
        for col in range(len(found)):
            found[col] = max(total[col], 0.0)  # differences of equal chords may fall below 0 by rounding


@njit(cache=True, nogil=True)
def _path_lengths(solids: Solids, source: np.ndarray, pixels: np.ndarray, lengths: np.ndarray) -> None:
    n_materials, rows, cols = lengths.shape
    rays, sums = np.empty((7, cols)), np.empty((n_materials + 1, cols))
    for row in range(rows):
        row_lengths(solids, source, pixels[row], rays, sums, lengths[:, row])


VIALS: tuple[tuple[str, float], ...] = (
    ("water", 0.0),
    ("iodine", 9.0),
    ("iodine", 18.0),
    ("gadolinium", 8.0),
    ("gadolinium", 16.0),
    ("hydroxyapatite", 54.3),
    ("hydroxyapatite", 211.7),
)
"""The demo phantom's vials: what is dissolved in water, and how much of it in mg/mL."""
CELLS_MG_ML = {"water": 0.0, "iodine": 4.0, "gadolinium": 4.0, "gold": 4.0, "hydroxyapatite": 40.0}
"""The calibration cells: concentration of each in water, so weak that a cell hardens the beam no more than a vial."""
CELL_THICKNESS_MM = 8.0
THICK_CELLS_MG_ML = {"water": 0.0, "iodine": 2.0, "gadolinium": 2.0, "gold": 2.0, "hydroxyapatite": 40.0}
THICK_CELL_MM = 30.0
"""The same for samples of the width of a mouse: the mean chord of a cylinder of 38 mm."""
RING_RADIUS_MM, VIAL_RADIUS_MM, BODY_RADIUS_MM, HEIGHT_MM = 3.1, 0.9, 5.0, 16.0
N_BEADS, BEAD_RADIUS_MM, HELIX_RADIUS_MM, HELIX_TURNS, BEAD_LENGTH_MM = 12, 0.3, 4.0, 3, 8.8
"""The bead phantom; its length is from the lowest bead's centre to the highest's, which stand above each other."""
WIDE_MM = 80.0
"""Cells and plates: wider than the field wherever the camera stands."""
BEAD_BODY_RADIUS_MM = 6.5
"""Wider than the field: no wall stands behind a bead's edge."""


def vials_phantom() -> Phantom:
    """Return the demo's phantom: a PMMA cylinder with a ring of vials."""
    inserts = tuple(
        Insert(
            material=name,
            concentration_mg_ml=concentration_mg_ml,
            x_mm=RING_RADIUS_MM * math.cos(2 * math.pi * i / len(VIALS)),
            y_mm=RING_RADIUS_MM * math.sin(2 * math.pi * i / len(VIALS)),
            radius_mm=VIAL_RADIUS_MM,
        )
        for i, (name, concentration_mg_ml) in enumerate(VIALS)
    )
    return vials_in_pmma(inserts, radius_mm=BODY_RADIUS_MM, height_mm=HEIGHT_MM)


def vials_in_pmma(inserts: Sequence[Insert], *, radius_mm: float, height_mm: float) -> Phantom:
    """Return a PMMA cylinder with upright vials that run through all of it."""
    vials = tuple(
        Cylinder(
            centre_mm=(insert.x_mm, insert.y_mm, 0.0),
            material=_in_water(insert.material, insert.concentration_mg_ml),
            radius_mm=insert.radius_mm,
            height_mm=height_mm,
        )
        for insert in inserts
    )
    body = Cylinder(material=material("pmma"), inserts=vials, radius_mm=radius_mm, height_mm=height_mm)
    return Phantom(solids=(body,), inserts=tuple(inserts))


def described(name: str, inserts: Sequence[Insert]) -> str:
    """Write what labels state as TOML: a table [[vial]] each."""
    lines = [f'name = "{name}"', 'solvent = "water"']
    for insert in inserts:
        lines += [
            "",
            "[[vial]]",
            f'material = "{insert.material}"',
            f"concentration_mg_ml = {insert.concentration_mg_ml}",
            f"x_mm = {insert.x_mm:.4f}",
            f"y_mm = {insert.y_mm:.4f}",
            f"radius_mm = {insert.radius_mm}",
        ]
    return "\n".join(lines) + "\n"


def beads_phantom() -> Phantom:
    """Return steel beads on a helix in a PMMA cylinder, by which the scanner's geometry is found."""
    steps = np.linspace(0, 1, N_BEADS)
    azimuth_rad, z_mm = 2 * math.pi * HELIX_TURNS * steps, BEAD_LENGTH_MM * (steps - 0.5)
    beads = tuple(
        Sphere(
            centre_mm=(HELIX_RADIUS_MM * math.cos(azimuth), HELIX_RADIUS_MM * math.sin(azimuth), float(height)),
            material=material("iron"),
            radius_mm=BEAD_RADIUS_MM,
        )
        for azimuth, height in zip(azimuth_rad, z_mm, strict=True)
    )
    body = Cylinder(material=material("pmma"), inserts=beads, radius_mm=BEAD_BODY_RADIUS_MM, height_mm=HEIGHT_MM)
    return Phantom(solids=(body,))


def cell(
    name: str, thickness_mm: float = CELL_THICKNESS_MM, concentrations_mg_ml: Mapping[str, float] = CELLS_MG_ML
) -> Phantom:
    """Return a flat calibration cell, normal to the beam at angle 0 and wider than the field; walls are left out."""
    if name not in concentrations_mg_ml:
        raise WrongUsage(f"no calibration cell {name!r}; known: {', '.join(concentrations_mg_ml)}")
    matter = _in_water(name, concentrations_mg_ml[name])
    return Phantom(solids=(Box(material=matter, size_mm=(WIDE_MM, thickness_mm, WIDE_MM)),))


def stack(layers_mm: Mapping[str, float]) -> Phantom:
    """Return flat plates one behind the other, normal to the beam at angle 0 and wider than the field."""
    solids, behind_mm = [], -sum(layers_mm.values()) / 2
    for name, thickness_mm in layers_mm.items():
        centre_mm = (0.0, behind_mm + thickness_mm / 2, 0.0)
        solids.append(Box(material=material(name), centre_mm=centre_mm, size_mm=(WIDE_MM, thickness_mm, WIDE_MM)))
        behind_mm += thickness_mm
    return Phantom(solids=tuple(solids))


def _in_water(name: str, concentration_mg_ml: float) -> Material:
    return material("water") if name == "water" else solution("water", name, concentration_mg_ml)
