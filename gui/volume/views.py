"""What the panes can show of a volume: materials in colour, or one quantity in grey, and why something cannot be shown.

Each quantity is a function of a cut's values alone, so that a picture at another energy needs no other volume.

# Ref: Hounsfield units of a bin: 1000 (mu / mu_water - 1) with the water of the calibrated basis in that bin.
#      K-edge pictures as the difference of the bins above and below the edge: Roessl and Proksa 2007, Phys. Med. Biol.
#      52, 4679 (its idea; here without the decomposition). Where the basis tells water's attenuation in both bins, the
#      lower one is scaled so that water is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from calibration.attenuation import Material, k_shell, material, symbol
from calibration.material_basis import SOLVENT, MaterialBasis
from firmware_iface.errors import WrongUsage
from gui.volume.looks import Levels
from reconstruction.volume import HOUNSFIELD, LINEAR_ATTENUATION, MASS_CONCENTRATION, PURE_NUMBER, Volume

if TYPE_CHECKING:
    from reconstruction.quantities import Quantity

NEAR_EDGE_KEV = 6.0
"""A threshold further from a K edge does not stand for it."""
AGENT_KEV = 20.0
"""K edges below it no scan sees (as in `reconstruction.spectral.stoichiometry`)."""
Z_KEV = (50.0, 80.0)
"""The effective Z is told by the attenuation at these two energies."""


class Shown(Enum):
    """What is shown; the value says it in words."""

    MATERIALS = "Materials in colour"
    BIN = "One energy bin"
    MONO = "One energy (virtual)"
    K_EDGE = "K edge (bin above - bin below)"
    ELECTRONS = "Electron density"
    Z = "Effective atomic number"


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A choice of what is shown.

    Attributes
    ----------
    channel : str
        Of `Shown.BIN`.
    energy_kev : float
        Of `Shown.MONO`.
    is_hu : bool
        Hounsfield units instead of 1/mm, for bins and energies.
    element : str
        Of `Shown.K_EDGE`, its symbol.
    """

    shown: Shown
    channel: str = ""
    energy_kev: float = 60.0
    is_hu: bool = False
    element: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recipe:
    """How a view is made.

    Attributes
    ----------
    volume : Volume
        That is cut.
    channels : tuple of int
        Which of its channels are needed.
    make : callable
        From their values, (n_channels, ...), to the quantity, (...); None for materials in colour.
    unit, title : str
    """

    volume: Volume
    channels: tuple[int, ...]
    make: Callable[[NDArray[np.floating]], NDArray[np.floating]] | None
    unit: str
    title: str


def why_not(view: View, bins: Volume | None, materials: Volume | None) -> str:
    """Return why something cannot be shown, in a sentence; empty where it can."""
    needs_bins = view.shown in (Shown.BIN, Shown.K_EDGE)
    if needs_bins and bins is None:
        return "There is no volume of energy bins: reconstruct a scan, or open one."
    if not needs_bins and materials is None:
        return "There is no volume of materials: decompose the bins, or open one."
    if bins is not None and view.shown is Shown.BIN and view.is_hu and hu_of(bins, view.channel) is None:
        return "Hounsfield units of a bin need a calibrated material basis with water in the volume."
    if bins is not None and view.shown is Shown.K_EDGE and not k_edges(bins, materials):
        return f"No threshold of the volume lies within {NEAR_EDGE_KEV:g} keV of the K edge of one of its materials."
    if materials is not None and view.shown in (Shown.MONO, Shown.ELECTRONS, Shown.Z):
        try:
            matter_of(materials)
        except WrongUsage as error:
            return f"{error}."
    return ""


def recipe(view: View, bins: Volume | None, materials: Volume | None) -> Recipe:
    """Return how a view is made; raises WrongUsage where it cannot be."""
    if why := why_not(view, bins, materials):
        raise WrongUsage(why)
    if view.shown in (Shown.BIN, Shown.K_EDGE):
        assert bins is not None
        return _of_bin(view, bins) if view.shown is Shown.BIN else _of_edge(view, bins, materials)
    assert materials is not None
    channels = tuple(range(len(materials.channels)))
    if view.shown is Shown.MATERIALS:
        return Recipe(volume=materials, channels=channels, make=None, unit="mg/mL", title="Materials")
    quantity = quantity_of(view, matter_of(materials))
    return Recipe(volume=materials, channels=channels, make=quantity.value, unit=quantity.unit, title=quantity.name)


def _of_bin(view: View, bins: Volume) -> Recipe:
    name = view.channel if view.channel in bins.channels else bins.channels[0]
    unit, per_hu = bins.unit_of(name), hu_of(bins, name) if view.is_hu else None
    make = (lambda values: values[0]) if per_hu is None else (lambda values: 1000 * (values[0] / per_hu - 1))
    return Recipe(
        volume=bins,
        channels=(bins.channels.index(name),),
        make=make,
        unit=unit if per_hu is None else HOUNSFIELD,
        title=bin_name(bins, name),
    )


def _of_edge(view: View, bins: Volume, materials: Volume | None) -> Recipe:
    edges = {edge.element: edge for edge in k_edges(bins, materials)}
    edge = edges.get(view.element) or next(iter(edges.values()))
    per_water = [hu_of(bins, bins.channels[n]) for n in (edge.below, edge.below + 1)]
    share = per_water[1] / per_water[0] if per_water[0] and per_water[1] else 1.0
    return Recipe(
        volume=bins,
        channels=(edge.below, edge.below + 1),
        make=lambda values: values[1] - share * values[0],
        unit=bins.unit,
        title=f"K edge of {edge.element}, {edge.energy_kev:.1f} keV{', water = 0' if share != 1 else ''}",
    )


def bin_name(bins: Volume, name: str) -> str:
    """Return a channel's name with its edges, where they are known: "bin1, 33-50 keV"."""
    edges_kev = bins.thresholds_kev
    if len(edges_kev) != len(bins.channels):
        return name
    n = bins.channels.index(name)
    is_last = n + 1 == len(edges_kev) or edges_kev[n + 1] <= edges_kev[n]
    span = f"from {edges_kev[n]:g} keV" if is_last else f"{edges_kev[n]:g}-{edges_kev[n + 1]:g} keV"
    return name if span.replace(" keV", "") in name else f"{name}, {span}"


def hu_of(bins: Volume, name: str) -> float | None:
    """Return the attenuation of water in a bin, 1/mm; None where it is not known."""
    basis = bins.basis
    if basis is None or SOLVENT not in basis.materials or bins.unit != LINEAR_ATTENUATION or name not in bins.channels:
        return None
    if len(basis.thresholds_kev) != len(bins.channels):
        return None
    row = bins.channels.index(name)
    return float(basis.attenuation_per_mm_per_g_cm3[row, basis.materials.index(SOLVENT)])


@dataclass(frozen=True, slots=True, kw_only=True)
class KEdge:
    """An element's K edge between two bins of a volume.

    Attributes
    ----------
    below : int
        The bin below the edge; the next one lies above.
    """

    element: str
    energy_kev: float
    below: int


def k_edges(bins: Volume, materials: Volume | None) -> tuple[KEdge, ...]:
    """Return the K edges that a threshold of the volume stands at, of the materials that are known of."""
    names = [*(materials.channels if materials is not None else ()), *(bins.basis.materials if bins.basis else ())]
    edges_kev = np.array(bins.thresholds_kev)
    if bins.unit != LINEAR_ATTENUATION or len(edges_kev) != len(bins.channels) or len(edges_kev) < 2:
        return ()
    found = []
    for element in dict.fromkeys(z for name in names for z in _heavy(name)):
        edge_kev = k_shell(element).edge_kev
        nearest = 1 + int(np.argmin(np.abs(edges_kev[1:] - edge_kev)))
        is_of_one_pass = edges_kev[nearest] > edges_kev[nearest - 1]
        if abs(edges_kev[nearest] - edge_kev) <= NEAR_EDGE_KEV and is_of_one_pass:
            found.append(KEdge(element=symbol(element), energy_kev=edge_kev, below=nearest - 1))
    return tuple(found)


def _heavy(name: str) -> list[int]:
    try:
        known = material(name, 1.0)
    except WrongUsage:
        return []
    return [z for z, share in known.mass_fractions if share > 0 and k_shell(z).edge_kev > AGENT_KEV]


def matter_of(materials: Volume) -> tuple[Material, ...]:
    """Return what the channels are made of; raises WrongUsage for a name that says nothing."""
    if materials.unit != MASS_CONCENTRATION:
        raise WrongUsage(f"The volume is in {materials.unit}, and not of materials in {MASS_CONCENTRATION}")
    return _matter(materials.channels)


@lru_cache(maxsize=8)
def _matter(names: tuple[str, ...]) -> tuple[Material, ...]:
    found = []
    for name in names:
        try:
            found.append(material(name, 1.0))  # concentrations need no density
        except WrongUsage as error:
            raise WrongUsage(f"What {name!r} is made of is not known") from error
    return tuple(found)


def quantity_of(view: View, matter: tuple[Material, ...]) -> Quantity:
    """Return the quantity of the concentrations that a view shows."""
    from reconstruction.quantities import effective_z_of_ratio, electron_density, monoenergetic

    if view.shown is Shown.MONO:
        return monoenergetic(matter, view.energy_kev, is_hu=view.is_hu)
    if view.shown is Shown.Z:
        return effective_z_of_ratio(matter, *Z_KEV)
    return electron_density(_stoichiometry(matter))


@lru_cache(maxsize=4)
def _stoichiometry(matter: tuple[Material, ...]):  # noqa: ANN202 - its type is not loaded at start
    from reconstruction.spectral.stoichiometry import calibrate

    return calibrate(matter)


def auto_levels(values: NDArray[np.floating], unit: str, *, is_difference: bool = False) -> Levels:
    """Return where black ends and white begins for values like these, whatever they are.

    Parameters
    ----------
    is_difference : bool
        Levels then lie alike to both sides of 0.
    """
    finite = values[np.isfinite(values)]
    low, high = (float(level) for level in np.quantile(finite, (0.005, 0.998))) if finite.size else (0.0, 1.0)
    if is_difference:
        far = max(abs(low), abs(high)) or 1.0
        return -far, far
    if unit == PURE_NUMBER:
        low = 0.0
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def fitted_per_mm(basis: MaterialBasis, materials: Volume, concentrations: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return what the bins would show of these concentrations, g/cm3: (n_bins,) float64.

    Materials that the basis does not know are left out; a volume that has none of it gives NaN.
    """
    columns = [basis.materials.index(name) for name in materials.channels if name in basis.materials]
    rows = [n for n, name in enumerate(materials.channels) if name in basis.materials]
    if not rows:
        return np.full(len(basis.thresholds_kev), np.nan)
    return basis.attenuation_per_mm_per_g_cm3[:, columns] @ np.asarray(concentrations, np.float64)[rows]
