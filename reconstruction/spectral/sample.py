"""What is to be seen: an upright cylinder with rods of contrast agents, and the exact segments of rays through it.

A sample is what `mpxct design` plans for. It comes from a TOML file, or from a diameter and a list of agents; the rods
then stand in a ring, which is a choice. Rays lie in the plane z = 0, where cylinders are circles.

# Ref: chord of a circle: the roots of its quadratic equation.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibration.attenuation import Material, linear_attenuation_per_mm, material, solution
from calibration.material_basis import SOLVENT
from firmware_iface.errors import WrongUsage

RING_SHARE, ROD_SHARE, GAP_SHARE = 0.5, 0.12, 0.8
"""Where rods stand that nobody placed, and how thick they are: of the body's radius; of their distance at most."""


class Rod(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An upright vial of one agent in the solvent; `agent` is the solvent's name, with 0 mg/mL, for a blank."""

    agent: str
    concentration_mg_ml: float
    x_mm: float
    y_mm: float
    diameter_mm: float

    def __post_init__(self) -> None:
        if not self.diameter_mm > 0 or not self.concentration_mg_ml >= 0:
            raise ValueError(
                f"a rod of {self.agent} has {self.concentration_mg_ml} mg/mL and a diameter of {self.diameter_mm} mm; "
                "allowed: 0 or more, and more than 0"
            )


class Sample(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """A cylinder around the axis of rotation, of `material`, with rods in it."""

    diameter_mm: float
    material: str = SOLVENT
    height_mm: float = 30.0
    solvent: str = SOLVENT
    rods: tuple[Rod, ...] = ()

    def __post_init__(self) -> None:
        if not self.diameter_mm > 0 or not self.height_mm > 0:
            raise ValueError(f"a sample of {self.diameter_mm} x {self.height_mm} mm; allowed: above 0")
        for rod in self.rods:
            if math.hypot(rod.x_mm, rod.y_mm) + rod.diameter_mm / 2 > self.diameter_mm / 2 * (1 + 1e-9):
                raise ValueError(f"the rod of {rod.agent} leaves the sample; allowed: inside {self.diameter_mm} mm")
        for one, other in combinations(self.rods, 2):
            apart_mm = math.hypot(one.x_mm - other.x_mm, one.y_mm - other.y_mm)
            if apart_mm < (one.diameter_mm + other.diameter_mm) / 2 * (1 - 1e-9):
                raise ValueError(f"the rods of {one.agent} and {other.agent} overlap; allowed: side by side")

    @property
    def targets(self) -> tuple[Rod, ...]:
        """The rods that hold an agent."""
        return tuple(rod for rod in self.rods if rod.agent != self.solvent and rod.concentration_mg_ml > 0)

    @property
    def basis(self) -> tuple[str, ...]:
        """The materials that are told apart: the solvent, and every agent once."""
        return (self.solvent, *dict.fromkeys(rod.agent for rod in self.targets))

    @cached_property
    def matter(self) -> tuple[Material, ...]:
        """What fills the body, and then each rod."""
        rods = (
            material(self.solvent)
            if rod.agent == self.solvent
            else solution(self.solvent, rod.agent, rod.concentration_mg_ml)
            for rod in self.rods
        )
        return (material(self.material), *rods)

    @cached_property
    def circles_mm(self) -> NDArray[np.float64]:
        """Centre and radius of the body, and of each rod: (1 + n_rods, 3)."""
        rods = [(rod.x_mm, rod.y_mm, rod.diameter_mm / 2) for rod in self.rods]
        return np.array([(0.0, 0.0, self.diameter_mm / 2), *rods])

    @property
    def mass_g_per_mm(self) -> float:
        """Mass of a slice, by its height."""
        area_mm2 = math.pi * self.circles_mm[:, 2] ** 2
        density_g_mm3 = np.array([matter.density_g_cm3 for matter in self.matter]) / 1000
        body_mm2 = area_mm2[0] - area_mm2[1:].sum()
        return float(body_mm2 * density_g_mm3[0] + area_mm2[1:] @ density_g_mm3[1:])

    def attenuation_per_mm(self, energies_kev: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the attenuation of the body and of each rod: (1 + n_rods, n_energies) float64."""
        return np.stack([linear_attenuation_per_mm(matter, energies_kev) for matter in self.matter])


class Segments(NamedTuple):
    """Rays cut where they pass from one matter into the next, in their order.

    Attributes
    ----------
    lengths_mm : (n_rays, n_segments) float64
    filled_by : (n_rays, n_segments) int64
        Index into `Sample.matter`; -1 is nothing.
    """

    lengths_mm: NDArray[np.float64]
    filled_by: NDArray[np.int64]

    def depths(self, attenuation_per_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the optical depth of whole rays: (n_rays, n_energies) float64."""
        n_matter = len(attenuation_per_mm)
        paths = np.stack(
            [np.where(self.filled_by == i, self.lengths_mm, 0).sum(axis=1) for i in range(n_matter)], axis=1
        )
        return paths @ attenuation_per_mm


def segments(sample: Sample, points_mm: NDArray[np.float64], directions: NDArray[np.float64]) -> Segments:
    """Cut whole lines through points, (n_rays, 2) mm, along directions, (n_rays, 2) of length 1."""
    circles = sample.circles_mm
    away = points_mm[:, None, :] - circles[None, :, :2]
    middle = -np.einsum("rcx,rx->rc", away, directions)
    square = middle**2 - np.einsum("rcx,rcx->rc", away, away) + circles[:, 2] ** 2
    half = np.sqrt(np.maximum(square, 0))
    places = np.sort(np.concatenate([middle - half, middle + half], axis=1), axis=1)
    between = (places[:, 1:] + places[:, :-1]) / 2
    at = points_mm[:, None, :] + between[..., None] * directions[:, None, :]
    inside = ((at[:, :, None, :] - circles[:, :2]) ** 2).sum(axis=-1) < circles[:, 2] ** 2
    # The last circle that holds a point is its rod, or else the body.
    last = len(circles) - 1 - np.argmax(inside[..., ::-1], axis=-1)
    return Segments(np.diff(places, axis=1), np.where(inside.any(axis=-1), last, -1))


def read_sample(path: str | Path) -> Sample:
    """Read a sample from a TOML file.

    Raises
    ------
    WrongUsage
        It cannot be read, or a key or a value of it is wrong.
    """
    try:
        tree = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise WrongUsage(f"{path} cannot be read as TOML: {error}") from error
    try:
        sample = msgspec.convert(tree, Sample)
        _ = sample.matter
    except (msgspec.ValidationError, ValueError) as error:
        raise WrongUsage(
            f"{path}: {error}", hint="keys: diameter_mm, material, height_mm, solvent, and [[rods]]; see MATERIALS.md"
        ) from error
    return sample


def ring_of(agents: Sequence[tuple[str, float]], diameter_mm: float, body: str, height_mm: float = 30.0) -> Sample:
    """Return a cylinder with a rod of each agent, of so many mg/mL, in a ring."""
    radius_mm = RING_SHARE * diameter_mm / 2
    step_rad = 2 * math.pi / max(len(agents), 1)
    apart_mm = 2 * radius_mm * math.sin(step_rad / 2) if len(agents) > 1 else diameter_mm
    rods = tuple(
        Rod(
            agent=agent,
            concentration_mg_ml=concentration_mg_ml,
            x_mm=radius_mm * math.cos(i * step_rad),
            y_mm=radius_mm * math.sin(i * step_rad),
            diameter_mm=min(ROD_SHARE * diameter_mm, GAP_SHARE * apart_mm),
        )
        for i, (agent, concentration_mg_ml) in enumerate(agents)
    )
    return Sample(diameter_mm=diameter_mm, material=body, height_mm=height_mm, rods=rods)
