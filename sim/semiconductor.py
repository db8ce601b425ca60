"""What sensors are made of, how the field in them moves charge to the pixels, and what share of it the pixels see.

# Ref: pair energies, Fano factors, mobility-lifetime products, permittivities: common values, from memory (CdTe pair
#      energy 4.43 eV, Fano 0.1 and permittivity 10.4 as in geant4medipix `DetectorConfig.ini`). GaAs:Cr electrons
#      1e-4 cm2/V (XST-16136: 20 ns at 3000 cm2/Vs is 6e-5). Published values scatter by factors; each is an option.
# Ref: induced charge: Hecht 1932, Z. Phys. 77, 235, with the pixel's weighting potential instead of a plane's:
#      Barrett, Eskin, Barber 1995, Phys. Rev. Lett. 75, 156. On the pixel's axis the potential of a square on a
#      grounded plane is its solid angle over 2 pi; image charges ground the other electrode.
# Ref: field of a depleted junction, linear in depth: Sze and Ng 2007, Physics of Semiconductor Devices, chapter 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibration.attenuation import Material

N_DEPTHS = 129
"""Nodes of tables over the depth, from the entrance to the pixels."""
_STEPS = 2048
_IMAGES = 200
_LEAST_FIELD = 0.02
"""Where a depleted junction's field goes to nothing, carriers diffuse: it is taken as this share of the mean field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Semiconductor:
    """A sensor material; electrons ``e`` and holes ``h``."""

    pair_ev: float
    fano: float
    permittivity_relative: float
    mu_tau_e_cm2_v: float
    mu_tau_h_cm2_v: float


SEMICONDUCTORS: Mapping[str, Semiconductor] = {
    "silicon": Semiconductor(
        pair_ev=3.62, fano=0.115, permittivity_relative=11.7, mu_tau_e_cm2_v=1.0, mu_tau_h_cm2_v=1.0
    ),
    "gaas": Semiconductor(pair_ev=4.2, fano=0.12, permittivity_relative=12.9, mu_tau_e_cm2_v=1e-4, mu_tau_h_cm2_v=4e-7),
    "cdte": Semiconductor(
        pair_ev=4.43, fano=0.1, permittivity_relative=10.4, mu_tau_e_cm2_v=2.5e-3, mu_tau_h_cm2_v=1e-4
    ),
    "czt": Semiconductor(pair_ev=4.64, fano=0.1, permittivity_relative=10.9, mu_tau_e_cm2_v=5e-3, mu_tau_h_cm2_v=5e-5),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorLayer:
    """The semiconductor: what it is made of, how thick, how pixelated, how biased.

    Attributes
    ----------
    generations : how often a fluorescence photon may come from another one's absorption; 1 leaves out, as simpler
        models do, that tellurium's lines excite cadmium
    has_repulsion : whether the carriers of a cloud drive each other apart
    is_trapping : whether carriers are lost on their way
    depletion_v : the bias that just depletes the layer, from the pixels on, for a field that is linear in depth; None
        for a uniform field. Below it nothing is collected from the part that is not depleted.
    collects_holes : which carriers drift to the pixels; None for holes in silicon and electrons in all else
    semiconductor : its constants; None for those of SEMICONDUCTORS by the material's name
    """

    material: Material
    thickness_mm: float
    pitch_mm: float
    bias_v: float
    generations: int = 3
    has_repulsion: bool = True
    is_trapping: bool = True
    depletion_v: float | None = None
    collects_holes: bool | None = None
    semiconductor: Semiconductor | None = None

    def __post_init__(self) -> None:
        for name in ("thickness_mm", "pitch_mm", "bias_v"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: above 0")
        if self.depletion_v is not None and not self.depletion_v > 0:
            raise ValueError(f"depletion_v is {self.depletion_v}; allowed: above 0, or None for a uniform field")
        if self.semiconductor is None and self.material.name not in SEMICONDUCTORS:
            raise ValueError(
                f"no constants of {self.material.name!r} as a sensor; allowed: {', '.join(SEMICONDUCTORS)}, "
                "or any material with its semiconductor stated"
            )

    @property
    def constants(self) -> Semiconductor:
        """The semiconductor's constants."""
        return self.semiconductor or SEMICONDUCTORS[self.material.name]

    @property
    def mean_field_v_mm(self) -> float:
        """Bias over thickness."""
        return self.bias_v / self.thickness_mm


def field_v_mm(layer: SensorLayer, depths_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the field at each depth from the entrance; 0 where the layer is not depleted."""
    if layer.depletion_v is None:
        return np.full(depths_mm.shape, layer.mean_field_v_mm)
    from_pixels_mm = layer.thickness_mm - depths_mm
    slope_v_mm2 = 2 * layer.depletion_v / layer.thickness_mm**2
    if layer.bias_v >= layer.depletion_v:
        return (layer.bias_v + layer.depletion_v) / layer.thickness_mm - slope_v_mm2 * from_pixels_mm
    depleted_mm = layer.thickness_mm * math.sqrt(layer.bias_v / layer.depletion_v)
    return slope_v_mm2 * np.maximum(0.0, depleted_mm - from_pixels_mm)


def drift_lengths_mm(layer: SensorLayer) -> NDArray[np.float64]:
    """Return how far carriers from each of N_DEPTHS depths would drift in the mean field while they reach the pixels.

    Time in units of its own: diffusion and repulsion grow with time, and both speeds go with the mobility.
    """
    depths_mm = np.linspace(0, layer.thickness_mm, _STEPS + 1)
    field = np.maximum(field_v_mm(layer, depths_mm), _LEAST_FIELD * layer.mean_field_v_mm)
    slowness = layer.mean_field_v_mm / field
    to_pixels_mm = _integral_to_end(slowness, layer.thickness_mm / _STEPS)
    return np.interp(_nodes_mm(layer), depths_mm, to_pixels_mm)


def collected(layer: SensorLayer) -> NDArray[np.float64]:
    """Return the share of a charge from each of N_DEPTHS depths that its pixel sees."""
    depths_mm = np.linspace(0, layer.thickness_mm, _STEPS + 1)
    field = field_v_mm(layer, depths_mm)
    is_field = field > 0
    share = np.ones(_STEPS + 1)
    if layer.is_trapping:
        constants, holes = layer.constants, _collects_holes(layer)
        to_pixels_cm2_v, to_entrance_cm2_v = (
            (constants.mu_tau_h_cm2_v, constants.mu_tau_e_cm2_v)
            if holes
            else (constants.mu_tau_e_cm2_v, constants.mu_tau_h_cm2_v)
        )
        step_mm = layer.thickness_mm / _STEPS
        potential = weighting_potential(layer)
        safe_field = np.maximum(field, _LEAST_FIELD * layer.mean_field_v_mm)
        share = _induced(potential, safe_field, to_pixels_cm2_v * 100, step_mm)
        share += _induced(1 - potential[::-1], safe_field[::-1], to_entrance_cm2_v * 100, step_mm)[::-1]
    return np.interp(_nodes_mm(layer), depths_mm, np.where(is_field, share, 0.0))


def weighting_potential(layer: SensorLayer) -> NDArray[np.float64]:
    """Return the pixel's weighting potential on its axis, from the entrance to the pixel: (_STEPS + 1,) float64."""
    half_mm = layer.pitch_mm / 2

    def of_a_square(height_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        slant = height_mm * np.sqrt(height_mm**2 + 2 * half_mm**2)
        return np.arctan2(half_mm**2, slant) * 2 / math.pi

    height_mm = np.linspace(layer.thickness_mm, 0, _STEPS + 1)
    images = range(_IMAGES)
    twice_mm = 2 * layer.thickness_mm
    return np.sum(
        [of_a_square(k * twice_mm + height_mm) - of_a_square((k + 1) * twice_mm - height_mm) for k in images], axis=0
    )


def _collects_holes(layer: SensorLayer) -> bool:
    return layer.material.name == "silicon" if layer.collects_holes is None else layer.collects_holes


def _nodes_mm(layer: SensorLayer) -> NDArray[np.float64]:
    return np.linspace(0, layer.thickness_mm, N_DEPTHS)


def _integral_to_end(values: NDArray[np.float64], step: float) -> NDArray[np.float64]:
    """Integrate from each node to the last by trapezoids."""
    pieces = 0.5 * step * (values[1:] + values[:-1])
    return np.append(np.cumsum(pieces[::-1])[::-1], 0.0)


def _induced(
    potential: NDArray[np.float64], field_v_mm: NDArray[np.float64], mu_tau_mm2_v: float, step_mm: float
) -> NDArray[np.float64]:
    """Return what carriers that drift to the last node induce from each node on, a share of them lost on the way."""
    lost = _integral_to_end(1 / (mu_tau_mm2_v * field_v_mm), step_mm)  # e-folds left from each node to the end
    kept = np.exp(-(lost[:-1] - lost[1:]))  # within one step
    share = np.zeros(len(potential))
    for node in range(len(potential) - 2, -1, -1):
        # What crosses the step induces its rise, the mean of before and after; the rest goes on.
        share[node] = 0.5 * (1 + kept[node]) * (potential[node + 1] - potential[node]) + kept[node] * share[node + 1]
    return share
