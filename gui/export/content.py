"""What is exported: layers (bins, materials, quantities) in the units of the target, taken slab by slab.

Nothing of a volume is copied as a whole, so that one beyond memory is exported as well as a small one.

# Ref: Hounsfield units: 1000 (mu / mu_water - 1); here with the attenuation of water that was measured in the same bin,
#      so that water is 0 HU in every bin.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from calibration.attenuation import MG_ML_PER_G_CM3
from calibration.material_basis import SOLVENT
from calibration.store import software_version
from firmware_iface.errors import CalibrationMissing, WrongUsage
from gui.colour import Colour, colours_of
from gui.volume.looks import MaterialLook, auto_looks
from reconstruction.volume import HOUNSFIELD, LINEAR_ATTENUATION, MASS_CONCENTRATION, MG_PER_ML, Grid, Volume

SLAB_BYTES = 32 << 20
SAMPLED_SLICES = 24
"""Windows of a picture are chosen on so many slices."""
Slab = NDArray[np.float32]
UNIT_CHOICES: Mapping[str, tuple[str, ...]] = {
    MASS_CONCENTRATION: (MG_PER_ML, MASS_CONCENTRATION),
    LINEAR_ATTENUATION: (LINEAR_ATTENUATION, HOUNSFIELD),
}
"""In which units what stands in a volume can be written, the default first; others stay as they are."""


def _same(values: Slab) -> Slab:
    return values


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layer:
    """One scalar volume.

    Attributes
    ----------
    values : (z, y, x) float32
        As they stand in the volume, perhaps in a file that is larger than memory.
    converted : callable
        Makes values of `unit` out of them.
    """

    name: str
    unit: str
    values: Slab
    converted: Callable[[Slab], Slab] = _same

    def slab(self, first: int, stop: int) -> Slab:
        """Return slices of it in its unit, (n, y, x) float32, native byte order, in one piece."""
        return np.ascontiguousarray(self.converted(np.asarray(self.values[first:stop], np.float32)), np.float32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Content:
    """Layers on one grid, and what is told of them.

    Attributes
    ----------
    notes : dict of str to str
        Where it all came from, for headers.
    specimen : str
        What was scanned; empty: not known.
    tube_kvp : float or None
        None: not known.
    looks : tuple of MaterialLook
        Colours and windows of the layers that are materials, in g/cm3; chosen by `material_looks` where there are none.
    """

    layers: tuple[Layer, ...]
    grid: Grid
    notes: Mapping[str, str] = field(default_factory=dict)
    specimen: str = ""
    tube_kvp: float | None = None
    looks: tuple[MaterialLook, ...] = ()

    @property
    def n_bytes(self) -> int:
        """What the values take as float32."""
        return 4 * len(self.layers) * math.prod(self.grid.shape)

    @property
    def origin_mm(self) -> tuple[float, float, float]:
        """The (x, y, z) position of the centre of the first voxel."""
        z, y, x = (float(axis[0]) for axis in self.grid.axes_mm())
        return x, y, z

    def only(self, layer: Layer) -> Content:
        """Return the same with one layer."""
        return replace(self, layers=(layer,))

    def slabs(self) -> Iterator[tuple[int, int]]:
        """Walk along z in pieces that all layers together fit into memory with."""
        n_z, n_y, n_x = self.grid.shape
        step = max(1, SLAB_BYTES // (4 * n_y * n_x * len(self.layers)))
        return ((first, min(first + step, n_z)) for first in range(0, n_z, step))

    def interleaved(self, first: int, stop: int) -> Slab:
        """Return slices with the layers of a voxel beside each other, (n, y, x, n_layers); (n, y, x) if it is one."""
        slabs = [layer.slab(first, stop) for layer in self.layers]
        return slabs[0] if len(slabs) == 1 else np.stack(slabs, axis=-1)

    def material_looks(self) -> tuple[MaterialLook, ...]:
        """Return how its materials look, in the order of the layers.

        Raises
        ------
        WrongUsage
            A layer is no concentration.
        """
        if foreign := [layer.name for layer in self.layers if layer.unit not in (MG_PER_ML, MASS_CONCENTRATION)]:
            raise WrongUsage(
                f"{', '.join(foreign)} cannot be shown in colours: only concentrations of materials can",
                hint="export a volume of materials, as mpxct decompose writes it, or name materials by --channels",
            )
        known = {look.material: look for look in self.looks}
        if all(layer.name in known for layer in self.layers):
            return tuple(known[layer.name] for layer in self.layers)
        g_cm3 = np.stack([_sampled(layer) / _per_g_cm3(layer.unit) for layer in self.layers])
        return auto_looks([layer.name for layer in self.layers], g_cm3)

    def windows(self) -> list[tuple[float, float]]:
        """Return from where to where each layer is worth looking at, in its unit."""
        looks = {look.material: look for look in self.looks}
        windows = []
        for layer in self.layers:
            if layer.name in looks and layer.unit in (MG_PER_ML, MASS_CONCENTRATION):
                ratio, look = _per_g_cm3(layer.unit), looks[layer.name]
                windows.append((look.low_g_cm3 * ratio, look.high_g_cm3 * ratio))
                continue
            values = _sampled(layer)
            values = values[np.isfinite(values)]
            low, high = np.percentile(values, (0.5, 99.8)).tolist() if values.size else (0.0, 1.0)
            if layer.unit in (MG_PER_ML, MASS_CONCENTRATION):
                low = 0.0
            windows.append((low, high if high > low else low + 1.0))
        return windows

    def colours(self) -> list[Colour]:
        """Return a colour for each layer: that of its material where it is one."""
        looks = {look.material: look.colour for look in self.looks}
        colours = colours_of([layer.name for layer in self.layers])
        return [looks.get(layer.name, colours[layer.name]) for layer in self.layers]


def in_colour_units(layer: Layer, slab: Slab) -> Slab:
    """Return values of a layer in g/cm3, as looks want them."""
    ratio = _per_g_cm3(layer.unit)
    return slab if ratio == 1 else slab / np.float32(ratio)


def _per_g_cm3(unit: str) -> float:
    return MG_ML_PER_G_CM3 if unit == MG_PER_ML else 1.0


def _sampled(layer: Layer) -> Slab:
    n_z = layer.values.shape[0]
    places = range(0, n_z, max(1, -(-n_z // SAMPLED_SLICES)))
    return np.concatenate([layer.slab(place, place + 1) for place in places])


def content_of(
    volume: Volume,
    *,
    channels: Sequence[str] = (),
    unit: str | None = None,
    specimen: str = "",
    voxel_mm: float | None = None,
    looks: Sequence[MaterialLook] = (),
) -> Content:
    """Choose what of a volume is exported, and in which unit.

    Parameters
    ----------
    channels : sequence of str
        In this order; empty: all.
    unit : str, optional
        For all channels that can have it; default: the first of `UNIT_CHOICES`.
    specimen : str
        Default: the sample of the volume's plan.
    voxel_mm : float, optional
        For a volume that does not know its scale.

    Raises
    ------
    WrongUsage
        A channel that is not there, a unit that no channel can have.
    CalibrationMissing
        Hounsfield units are wanted, and nothing tells how water attenuates.
    """
    if missing := [name for name in channels if name not in volume.channels]:
        raise WrongUsage(f"no channel is called {', '.join(missing)}; there are: {', '.join(volume.channels)}")
    if doubled := [name for name in channels if list(channels).count(name) > 1]:
        raise WrongUsage(f"the channel {doubled[0]} is named twice; allowed: once")
    names = tuple(channels) or volume.channels
    if unit is not None and not any(unit in units_for(volume.unit_of(name)) for name in names):
        there = dict.fromkeys(choice for name in names for choice in units_for(volume.unit_of(name)))
        raise WrongUsage(f"the unit {unit!r} fits none of {', '.join(names)}; allowed: {', '.join(there)}")
    if voxel_mm is not None and not (voxel_mm > 0 and math.isfinite(voxel_mm)):
        raise WrongUsage(f"the voxel is {voxel_mm} mm; allowed: more than 0")
    grid = volume.grid if voxel_mm is None else replace(volume.grid, voxel_mm=voxel_mm, is_scale_known=True)
    return Content(
        layers=tuple(_layer(volume, name, unit) for name in names),
        grid=grid,
        notes=_notes(volume, grid),
        specimen=specimen or _sample_of(volume),
        tube_kvp=volume.basis.tube_kvp if volume.basis is not None else None,
        looks=tuple(looks),
    )


def units_for(unit: str) -> tuple[str, ...]:
    """Return in which units a channel can be written, the default first."""
    return UNIT_CHOICES.get(unit, (unit,))


def _layer(volume: Volume, name: str, unit: str | None) -> Layer:
    own = volume.unit_of(name)
    target = unit if unit in units_for(own) else units_for(own)[0]
    values = volume.channel(name)
    if own == MASS_CONCENTRATION and target == MG_PER_ML:
        return Layer(name=name, unit=target, values=values, converted=lambda slab: slab * np.float32(MG_ML_PER_G_CM3))
    if own == LINEAR_ATTENUATION and target == HOUNSFIELD:
        water_per_mm = water_of(volume, name)
        if water_per_mm is None:
            raise CalibrationMissing(
                f"{name} cannot be told in Hounsfield units: the volume does not know how water attenuates in it",
                hint="measure it (mpxct calibrate materials) and reconstruct again, or export in 1/mm",
            )
        return Layer(name=name, unit=target, values=values, converted=lambda slab: _hounsfield(slab, water_per_mm))
    return Layer(name=name, unit=target, values=values)


def water_of(volume: Volume, name: str) -> float | None:
    """Return the attenuation of water in a bin, in 1/mm; None where the volume's basis does not tell it."""
    basis = volume.basis
    if basis is None or SOLVENT not in basis.materials or len(basis.thresholds_kev) != len(volume.channels):
        return None
    row = basis.attenuation_per_mm_per_g_cm3[volume.channels.index(name)]
    water_per_mm = float(row[basis.materials.index(SOLVENT)])  # at 1 g/cm3
    return water_per_mm if water_per_mm > 0 else None


def _hounsfield(slab: Slab, water_per_mm: float) -> Slab:
    return (1000 * (slab.astype(np.float64) / water_per_mm - 1)).astype(np.float32)


def _notes(volume: Volume, grid: Grid) -> dict[str, str]:
    origin = volume.provenance
    told = {
        "exported by": f"mpxct {software_version()}",
        "made by": f"mpxct {origin.software}" if origin.software else "",
        "source file": origin.source_file,
        "calibration": origin.calibration_identity,
        "thresholds keV": ", ".join(f"{threshold:g}" for threshold in volume.thresholds_kev),
        "steps": "; ".join(origin.steps),
        "axes": "x, y, z of the instrument (z: axis of rotation, up); nothing is known of anatomy",
        "scale": "" if grid.is_scale_known else "not known: 1 mm stands for the edge of a voxel",
    }
    return {name: text for name, text in told.items() if text}


def _sample_of(volume: Volume) -> str:
    try:
        plan = json.loads(volume.provenance.plan_json or "{}")
    except ValueError:
        return ""
    scan = plan.get("scan", {}) if isinstance(plan, dict) else {}
    sample = scan.get("sample") if isinstance(scan, dict) else None
    return sample if isinstance(sample, str) else ""
