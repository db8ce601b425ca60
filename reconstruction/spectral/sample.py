"""What is to be seen: an upright cylinder with rods of contrast agents, and the exact segments of rays through it.

A sample is what `mpxct design` plans for: the vials of a phantom's description in a body around the axis of rotation,
or rods of some agents in a ring, which is a choice. Rays lie in the plane z = 0, where cylinders are circles.

# Ref: chord of a circle: the roots of its quadratic equation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibration.attenuation import Material, linear_attenuation_per_mm, material, solution
from calibration.material_basis import SOLVENT
from firmware_iface.errors import WrongUsage
from reconstruction.phantom_file import Phantom

RING_SHARE, ROD_SHARE, GAP_SHARE = 0.5, 0.12, 0.8
"""Where rods stand that nobody placed, and how thick they are: of the body's radius; of their distance at most."""
BODY_SHARE = 1.1
"""A body that nobody measured is so much wider than what stands in it."""


class Target(NamedTuple):
    """An agent where it is to be seen."""

    agent: str
    concentration_mg_ml: float
    x_mm: float
    y_mm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rod:
    """An upright vial; what is dissolved in its solvent, by name. Nothing: a blank."""

    contents_mg_ml: Mapping[str, float]
    x_mm: float
    y_mm: float
    radius_mm: float

    @property
    def name(self) -> str:
        """Its contents in words."""
        return " and ".join(self.contents_mg_ml) or "solvent"

    def filling(self, solvent: str) -> Material:
        """Return what it is filled with."""
        filled = material(solvent)
        for agent, concentration_mg_ml in self.contents_mg_ml.items():
            filled = solution(filled, agent, concentration_mg_ml)
        return filled


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A cylinder around the axis of rotation, of the material `body`, with rods in it."""

    diameter_mm: float
    body: str = SOLVENT
    height_mm: float = 30.0
    solvent: str = SOLVENT
    rods: tuple[Rod, ...] = ()
    matter: tuple[Material, ...] = field(init=False)
    """What fills the body, and then each rod."""

    def __post_init__(self) -> None:
        if not self.diameter_mm > 0 or not self.height_mm > 0:
            raise WrongUsage(f"a sample of {self.diameter_mm:g} mm, {self.height_mm:g} mm high; allowed: above 0")
        for rod in self.rods:
            reach_mm = math.hypot(rod.x_mm, rod.y_mm) + rod.radius_mm
            if reach_mm > self.diameter_mm / 2 * (1 + 1e-9):
                raise WrongUsage(
                    f"the rod of {rod.name} reaches {reach_mm:.4g} mm from the axis; allowed in a sample of "
                    f"{self.diameter_mm:g} mm: up to {self.diameter_mm / 2:g} mm"
                )
        for one, other in combinations(self.rods, 2):
            apart_mm = math.hypot(one.x_mm - other.x_mm, one.y_mm - other.y_mm)
            if apart_mm < (one.radius_mm + other.radius_mm) * (1 - 1e-9):
                raise WrongUsage(f"the rods of {one.name} and {other.name} overlap; allowed: side by side")
        fillings = (rod.filling(self.solvent) for rod in self.rods)
        object.__setattr__(self, "matter", (material(self.body), *fillings))

    @property
    def targets(self) -> tuple[Target, ...]:
        """Every agent in every rod."""
        return tuple(
            Target(agent, concentration_mg_ml, rod.x_mm, rod.y_mm)
            for rod in self.rods
            for agent, concentration_mg_ml in rod.contents_mg_ml.items()
        )

    @property
    def basis(self) -> tuple[str, ...]:
        """The materials that are told apart: the solvent, and every agent once."""
        return (self.solvent, *dict.fromkeys(target.agent for target in self.targets))

    @property
    def circles_mm(self) -> NDArray[np.float64]:
        """Centre and radius of the body, and of each rod: (1 + n_rods, 3)."""
        return np.array([(0.0, 0.0, self.diameter_mm / 2), *((rod.x_mm, rod.y_mm, rod.radius_mm) for rod in self.rods)])

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


def sample_of(phantom: Phantom, diameter_mm: float | None, body: str, height_mm: float = 30.0) -> Sample:
    """Return the vials of a phantom in a body, which holds them just so where no diameter is given.

    Vials whose concentration nobody stated count as solvent.
    """
    rods = []
    for vial in phantom.vials:
        stated = {vial.material: vial.concentration_mg_ml or 0.0, **vial.mixture_mg_ml}
        contents = {name: mg_ml for name, mg_ml in stated.items() if mg_ml > 0 and name != phantom.solvent}
        rods.append(Rod(contents_mg_ml=contents, x_mm=vial.x_mm, y_mm=vial.y_mm, radius_mm=vial.radius_mm))
    reach_mm = max(math.hypot(rod.x_mm, rod.y_mm) + rod.radius_mm for rod in rods)
    return Sample(
        diameter_mm=2 * BODY_SHARE * reach_mm if diameter_mm is None else diameter_mm,
        body=body,
        height_mm=height_mm,
        solvent=phantom.solvent,
        rods=tuple(rods),
    )


def ring_of(agents: Sequence[tuple[str, float]], diameter_mm: float, body: str, height_mm: float = 30.0) -> Sample:
    """Return a cylinder with a rod of each agent, of so many mg/mL, in a ring."""
    ring_mm = RING_SHARE * diameter_mm / 2
    step_rad = 2 * math.pi / max(len(agents), 1)
    apart_mm = 2 * ring_mm * math.sin(step_rad / 2) if len(agents) > 1 else diameter_mm
    rods = tuple(
        Rod(
            contents_mg_ml={agent: concentration_mg_ml},
            x_mm=ring_mm * math.cos(i * step_rad),
            y_mm=ring_mm * math.sin(i * step_rad),
            radius_mm=min(ROD_SHARE * diameter_mm, GAP_SHARE * apart_mm) / 2,
        )
        for i, (agent, concentration_mg_ml) in enumerate(agents)
    )
    return Sample(diameter_mm=diameter_mm, body=body, height_mm=height_mm, rods=rods)
