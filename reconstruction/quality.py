"""Figures of merit of material volumes: what vials read, and what they should.

# Ref: regression of measured on true concentration; cross-talk as the root mean square of a material in the vials
#      that hold none of it: Si-Mohamed et al. 2018, Eur. Radiol. Exp. 2, 34.
# Ref: threshold between two classes of grey values: Otsu 1979, IEEE Trans. Syst. Man Cybern. 9, 62.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.measure import label, regionprops

from calibration.attenuation import MG_ML_PER_G_CM3
from calibration.material_basis import SOLVENT
from firmware_iface.errors import WrongUsage
from reconstruction.decomposition import Attenuation
from reconstruction.merit.concentration import Regression, regress
from reconstruction.phantom_file import KEPT_RADIUS, Vial
from reconstruction.volume import MASS_CONCENTRATION, Grid, Volume

K_EDGE_RISE = 1.1
"""Attenuation falls with energy, but for K edges: a rise by more than this from bin to bin is one, not noise."""
LEAST_ROUNDNESS = 0.8
SMOOTHING_VOXELS = 3.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VialStatistics:
    """What a volume reads inside a vial.

    Attributes
    ----------
    mean_g_cm3, sd_g_cm3 : (n_materials,) float64
        Over the voxels of the eroded cylinder, in the order of `materials`.
    """

    vial: Vial
    materials: tuple[str, ...]
    mean_g_cm3: NDArray[np.float64]
    sd_g_cm3: NDArray[np.float64]
    n_voxels: int

    def mean_mg_ml(self, material: str) -> float:
        """Return the mean of one material."""
        return float(self.mean_g_cm3[self.materials.index(material)]) * MG_ML_PER_G_CM3

    def sd_mg_ml(self, material: str) -> float:
        """Return the standard deviation of one material from voxel to voxel."""
        return float(self.sd_g_cm3[self.materials.index(material)]) * MG_ML_PER_G_CM3


def cylinder_mask(
    grid: Grid, vial: Vial, *, z_range_mm: tuple[float, float] | None = None, kept_radius: float = KEPT_RADIUS
) -> NDArray[np.bool_]:
    """Return which voxels have their centre inside the eroded vial: (z, y, x) bool.

    Parameters
    ----------
    z_range_mm : (float, float), optional
        Lowest and highest position along the axis; None: those of the vial, or else all slices.
    kept_radius : float
        Share of the vial's radius.
    """
    z, y, x = grid.axes_mm()
    disc = np.hypot(y[:, None] - vial.y_mm, x - vial.x_mm) <= kept_radius * vial.radius_mm
    lowest, highest = z_range_mm or vial.z_range_mm or (-np.inf, np.inf)
    mask = ((z >= lowest) & (z <= highest))[:, None, None] & disc
    if not mask.any():
        raise WrongUsage(
            f"no voxel lies inside the {vial.material} vial at x {vial.x_mm:.3g} mm, y {vial.y_mm:.3g} mm; "
            f"allowed: inside the volume, {kept_radius:g} of the radius wider than a voxel of {grid.voxel_mm:.3g} mm"
        )
    return mask


def vial_statistics(
    volume: Volume,
    vials: Sequence[Vial],
    *,
    z_range_mm: tuple[float, float] | None = None,
    kept_radius: float = KEPT_RADIUS,
) -> tuple[VialStatistics, ...]:
    """Return mean and spread of every material in every vial."""
    if volume.unit != MASS_CONCENTRATION:
        raise WrongUsage(f"the volume is in {volume.unit}; allowed: materials in {MASS_CONCENTRATION}")
    found = []
    for vial in vials:
        inside = volume.values[:, cylinder_mask(volume.grid, vial, z_range_mm=z_range_mm, kept_radius=kept_radius)]
        found.append(
            VialStatistics(
                vial=vial,
                materials=volume.channels,
                mean_g_cm3=inside.mean(axis=1, dtype=np.float64),
                sd_g_cm3=inside.std(axis=1, dtype=np.float64),
                n_voxels=inside.shape[1],
            )
        )
    return tuple(found)


def stated_mg_ml(vial: Vial, material: str, *, solvent: str = SOLVENT) -> float | None:
    """Return how much of an agent a vial is stated to hold: none of it in pure solvent; None where nobody knows."""
    return 0.0 if vial.materials == (solvent,) else vial.true_mg_ml(material)


def series_of(
    statistics: Sequence[VialStatistics], material: str, *, solvent: str = SOLVENT
) -> tuple[VialStatistics, ...]:
    """Return the vials that a material's line is fitted to: all stated to hold it, mixed or not, and pure solvent."""
    return tuple(
        s
        for s in statistics
        if (material in s.vial.materials or s.vial.materials == (solvent,))
        and stated_mg_ml(s.vial, material, solvent=solvent) is not None
    )


def true_and_measured_mg_ml(
    statistics: Sequence[VialStatistics], material: str, *, solvent: str = SOLVENT
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a material's stated and measured concentrations over its series of vials: (n,) each."""
    series = series_of(statistics, material, solvent=solvent)
    true = [stated_mg_ml(s.vial, material, solvent=solvent) for s in series]
    return np.array(true, dtype=np.float64), np.array([s.mean_mg_ml(material) for s in series], dtype=np.float64)


def regression(statistics: Sequence[VialStatistics], material: str, *, solvent: str = SOLVENT) -> Regression:
    """Fit measured on true concentration over the vials of a material and those of pure solvent, which hold none."""
    true, measured = true_and_measured_mg_ml(statistics, material, solvent=solvent)
    if len(np.unique(true)) < 2:
        raise WrongUsage(
            f"{len(true)} vials have a known concentration of {material}, and no two differ; allowed: at least 2",
            hint="a vial of pure solvent counts as 0",
        )
    return regress(true, measured)


def agents_of(statistics: Sequence[VialStatistics], *, solvent: str = SOLVENT) -> tuple[str, ...]:
    """Return every material that is in some vial, but for the solvent, which is in all of them."""
    names = dict.fromkeys(name for s in statistics for name in s.vial.materials)
    return tuple(name for name in names if name != solvent)


def cross_talk_mg_ml(statistics: Sequence[VialStatistics], *, solvent: str = SOLVENT) -> dict[str, float]:
    """Return, for each agent, the root mean square of its means in the vials without it."""
    return {
        material: float(np.sqrt(np.mean(np.square(without))))
        for material in agents_of(statistics, solvent=solvent)
        if (without := [s.mean_mg_ml(material) for s in statistics if material not in s.vial.materials])
    }


def total_cross_talk_mg_ml(statistics: Sequence[VialStatistics], *, solvent: str = SOLVENT) -> float:
    """Return the root mean square over all pairs of a vial and a material that is in another vial only."""
    agents = agents_of(statistics, solvent=solvent)
    wrong = [s.mean_mg_ml(material) for s in statistics for material in agents if material not in s.vial.materials]
    return float(np.sqrt(np.mean(np.square(wrong)))) if wrong else float("nan")


def k_edge_materials(attenuation: Attenuation) -> tuple[str, ...]:
    """Return the materials that attenuate more from one bin to the next somewhere: a K edge lies there."""
    matrix = attenuation.attenuation_per_mm_per_g_cm3
    rises: NDArray[np.bool_] = np.any(matrix[1:] > K_EDGE_RISE * matrix[:-1], axis=0)
    return tuple(name for name, is_rising in zip(attenuation.materials, rises, strict=True) if is_rising)


def find_vials(volume: Volume, agents: Sequence[str], *, n_per_agent: int = 1) -> tuple[Vial, ...]:
    """Find the cuvettes of contrast agents without being told where they stand.

    In the mean slice of each agent, smoothed: what stands out (Otsu), is in one piece and round; the largest count.

    Parameters
    ----------
    agents : sequence of str
        Channels of the volume.
    n_per_agent : int
        How many cuvettes of each agent to look for.

    Returns
    -------
    vials : tuple of Vial
        By agent, largest first; an agent with no round piece has none.
    """
    _, y, x = volume.grid.axes_mm()
    voxel_mm = volume.grid.voxel_mm
    vials = []
    for agent in agents:
        slice_ = np.nan_to_num(volume.channel(agent)).mean(axis=0, dtype=np.float64)
        map_ = ndimage.gaussian_filter(slice_, SMOOTHING_VOXELS)
        if map_.max() <= 0:
            continue
        pieces = regionprops(label(map_ > threshold_otsu(np.maximum(map_, 0))))
        round_ones = [piece for piece in pieces if _roundness(piece) >= LEAST_ROUNDNESS]
        for piece in sorted(round_ones, key=lambda p: -p.area)[:n_per_agent]:
            row, col = piece.centroid
            vials.append(
                Vial(
                    material=agent,
                    x_mm=float(x[0] + col * voxel_mm),
                    y_mm=float(y[0] + row * voxel_mm),
                    radius_mm=_radius_voxels(slice_, piece) * voxel_mm,
                )
            )
    return tuple(vials)


def _radius_voxels(slice_: NDArray[np.float64], piece: Any) -> float:
    """Radius at half height: the smoothing that found the piece has moved its rim outwards."""
    row, col = piece.centroid
    distance = np.hypot(np.arange(slice_.shape[0])[:, None] - row, np.arange(slice_.shape[1]) - col)
    found = float(piece.equivalent_diameter_area) / 2
    slightly_smoothed = ndimage.gaussian_filter(slice_, 1.0)
    half = np.median(slice_[distance <= max(found / 2, 1.0)]) / 2
    area = np.count_nonzero((slightly_smoothed > half) & (distance <= 1.2 * found))
    return float(np.sqrt(area / np.pi)) if area else found


def _roundness(piece: Any) -> float:
    """Area over that of the circle round the longest axis of the fitted ellipse: 1 for a disc, less for all others."""
    axis = piece.axis_major_length
    return float(4 * piece.area / (np.pi * axis**2)) if axis > 0 else 0.0
