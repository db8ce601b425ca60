"""Attenuation of materials from a scan of vials: how much each bin rises with concentration, over a common solvent.

A vial of c g/cm3 solute reads (1 - c / rho) w + c m: the solvent w that the solute of density rho leaves room for, and
the solute m. All vials of a scan are fitted at once, bin by bin, so that the solvent is one number for all solutes;
what no solvent is in (a rod of plastic, a fat) reads c m. The vials hang in the same sample, behind the same
matter, as what is to be measured with them: that is what a cell on a bench cannot offer.

A vial description is a TOML file:

    solvent = "water"                # the default
    z_range_mm = [-4.0, 4.0]         # optional: the slices that count
    [densities_g_cm3]                # optional: of solutes that the shelf does not know, or others than its
    iodine = 4.93
    [[vial]]                         # one of solvent, and any number of others
    material = "water"
    x_mm = 3.0
    y_mm = 0.0
    radius_mm = 1.0
    [[vial]]
    material = "iodine"
    concentration_mg_ml = 9.0
    x_mm = 0.0
    y_mm = 3.0
    radius_mm = 1.0
    [[vial]]
    material = "adipose"
    is_pure = true                   # no solvent in it; its concentration is then the density, if not stated
    x_mm = -3.0
    y_mm = 0.0
    radius_mm = 1.0
    [body]                           # optional: uniform matter round the vials, from which cupping is learnt
    material = "pmma"
    x_mm = 0.0
    y_mm = 0.0
    radius_mm = 5.0

# Ref: slope of attenuation over concentration with the solvent as intercept: reference on spectral CT, section 3.1;
#      volumes add up: `calibration.material_basis`.
# Ref: error of a mean of values that share noise with their neighbours: H. Flyvbjerg, H. G. Petersen 1989, J. Chem.
#      Phys. 91, 461, section II.
# Ref: where cupping comes from: P. M. Joseph, R. D. Spital 1978, J. Comput. Assist. Tomogr. 2, 100; it is taken out as
#      a polynomial of the distance from the axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibration.attenuation import MG_ML_PER_G_CM3
from calibration.material_basis import SOLVENT, MaterialBasis
from firmware_iface.errors import BadFile, CalibrationMissing, WrongUsage
from reconstruction.decomposition import Matrix
from reconstruction.materials import densities_of
from reconstruction.quality import Vial, cylinder_mask
from reconstruction.volume import LINEAR_ATTENUATION, Volume

SHARED_VOXELS = (1, 3, 3)
"""How far along z, y and x voxels share noise."""
LEAST_SHARED = 0.05
"""Where filters make neighbours' noise cancel, a mean is still not better known than this says."""
BODY_RADIUS = 0.9
"""Share of the body's radius that cupping is learnt from: its rim is blurred."""
VIAL_CLEARANCE = 1.3
"""Share of a vial's radius that does not count as body."""
HIGHEST_POWER = 2
"""Cupping goes with powers of the squared distance up to this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VialPlan:
    """Which vials a sample holds.

    Attributes
    ----------
    vials : tuple of Vial
        With their concentrations.
    is_pure : tuple of bool
        Which of them hold no solvent.
    densities_g_cm3 : mapping of str to float
        Of solutes; those that are missing are taken from the shelf of materials.
    body : Vial, optional
        A cylinder of uniform matter round them.
    """

    vials: tuple[Vial, ...]
    is_pure: tuple[bool, ...]
    solvent: str = SOLVENT
    densities_g_cm3: Mapping[str, float] = field(default_factory=dict)
    z_range_mm: tuple[float, float] | None = None
    body: Vial | None = None

    def __post_init__(self) -> None:
        if len(self.vials) != len(self.is_pure):
            raise ValueError(f"{len(self.vials)} vials and {len(self.is_pure)} times is_pure; allowed: one each")
        if self.solvent not in self.materials:
            raise ValueError(
                f"no vial holds pure {self.solvent}; allowed: at least one, the solutes are measured by it"
            )
        for vial in self.vials:
            if vial.material != self.solvent and not (vial.concentration_mg_ml or 0) > 0:
                raise ValueError(
                    f"the {vial.material} vial has {vial.concentration_mg_ml} mg/mL; allowed: a concentration above 0"
                )

    @property
    def materials(self) -> tuple[str, ...]:
        """The solvent, then all others in the order of their vials."""
        names = dict.fromkeys(vial.material for vial in self.vials)
        return tuple(sorted(names, key=lambda name: name != self.solvent))


class _VialTable(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    material: str
    x_mm: float
    y_mm: float
    radius_mm: float
    concentration_mg_ml: float | None = None
    is_pure: bool = False


class _BodyTable(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    x_mm: float
    y_mm: float
    radius_mm: float
    material: str = "body"


class _File(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    vial: list[_VialTable]
    solvent: str = SOLVENT
    densities_g_cm3: dict[str, float] = {}
    z_range_mm: tuple[float, float] | None = None
    body: _BodyTable | None = None


def read_vials(path: str | Path) -> VialPlan:
    """Read a vial description."""
    path = Path(path)
    try:
        file = msgspec.toml.decode(path.read_bytes(), type=_File)
        vials = []
        for table in file.vial:
            stated = table.concentration_mg_ml
            if stated is None and table.is_pure:
                stated = MG_ML_PER_G_CM3 * float(densities_of([table.material], file.densities_g_cm3)[0])
            vials.append(
                Vial(
                    material=table.material,
                    x_mm=table.x_mm,
                    y_mm=table.y_mm,
                    radius_mm=table.radius_mm,
                    concentration_mg_ml=stated,
                )
            )
        return VialPlan(
            vials=tuple(vials),
            is_pure=tuple(table.is_pure for table in file.vial),
            solvent=file.solvent,
            densities_g_cm3=file.densities_g_cm3,
            z_range_mm=file.z_range_mm,
            body=Vial(**msgspec.structs.asdict(file.body)) if file.body else None,
        )
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise BadFile(f"{path} is no vial description: {error}", hint="reconstruction/vials.py shows one") from error


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VialFit:
    """Attenuation of solvent and solutes, as vials show it.

    Attributes
    ----------
    materials : tuple of str
        The solvent first.
    bins : tuple of str
    thresholds_kev : tuple of float
        Empty where they are not known.
    attenuation_per_mm_per_g_cm3 : (n_bins, n_materials) float64
    sigma_per_mm_per_g_cm3 : (n_bins, n_materials) float64
        Standard errors; where the vials miss the lines by more than their own errors, they are enlarged accordingly.
    slope_per_mm_per_g_cm3 : (n_bins, n_materials - 1) float64
        How much a bin rises with each solute's concentration, the displaced solvent included.
    slope_sigma_per_mm_per_g_cm3 : (n_bins, n_materials - 1) float64
    chi_square : (n_bins,) float64
        Over `n_degrees` degrees of freedom.
    r2 : (n_bins, n_materials - 1) float64
        Of each solute's line, through its vials and those of solvent; NaN for one that is pure only.
    """

    materials: tuple[str, ...]
    bins: tuple[str, ...]
    thresholds_kev: tuple[float, ...]
    attenuation_per_mm_per_g_cm3: NDArray[np.float64]
    sigma_per_mm_per_g_cm3: NDArray[np.float64]
    slope_per_mm_per_g_cm3: NDArray[np.float64]
    slope_sigma_per_mm_per_g_cm3: NDArray[np.float64]
    chi_square: NDArray[np.float64]
    n_degrees: int
    r2: NDArray[np.float64]

    @property
    def basis(self) -> MaterialBasis | Matrix:
        """What a decomposition takes."""
        attenuation = self.attenuation_per_mm_per_g_cm3
        if len(self.thresholds_kev) == len(self.bins):
            return MaterialBasis(
                materials=self.materials,
                attenuation_per_mm_per_g_cm3=attenuation,
                thresholds_kev=self.thresholds_kev,
            )
        return Matrix(materials=self.materials, bins=self.bins, attenuation_per_mm_per_g_cm3=attenuation)


def fit_vials(volume: Volume, plan: VialPlan) -> VialFit:
    """Fit solvent and solutes to what every bin of a volume reads in the vials."""
    _refuse_materials(volume)
    means, sigmas = _read(volume, plan)
    design, densities = _design(plan)
    n_vials, n_materials = design.shape
    if np.linalg.matrix_rank(design) < n_materials:
        raise CalibrationMissing(
            f"{n_vials} vials do not tell {', '.join(plan.materials)} apart", hint="add a vial of each material"
        )
    attenuation, sigma = np.empty((2, len(means), n_materials))
    slope, slope_sigma = np.empty((2, len(means), n_materials - 1))
    chi_square = np.empty(len(means))
    n_degrees = n_vials - n_materials
    # A solute's line rises by m - w / rho.
    to_slope = np.hstack([-(densities[0] / densities[1:])[:, None], np.eye(n_materials - 1)])
    for b, (mean, error) in enumerate(zip(means, sigmas, strict=True)):
        weighted = design / error[:, None]
        covariance = np.linalg.inv(weighted.T @ weighted)
        found = covariance @ weighted.T @ (mean / error)
        chi_square[b] = np.sum(((mean - design @ found) / error) ** 2)
        enlarged = covariance * max(chi_square[b] / n_degrees, 1.0) if n_degrees else covariance
        attenuation[b], sigma[b] = found, np.sqrt(np.diag(enlarged))
        slope[b], slope_sigma[b] = to_slope @ found, np.sqrt(np.diag(to_slope @ enlarged @ to_slope.T))
    return VialFit(
        materials=plan.materials,
        bins=volume.channels,
        thresholds_kev=volume.thresholds_kev,
        attenuation_per_mm_per_g_cm3=attenuation,
        sigma_per_mm_per_g_cm3=sigma,
        slope_per_mm_per_g_cm3=slope,
        slope_sigma_per_mm_per_g_cm3=slope_sigma,
        chi_square=chi_square,
        n_degrees=n_degrees,
        r2=_r2(plan, means, design @ attenuation.T),
    )


def _refuse_materials(volume: Volume) -> None:
    if volume.unit != LINEAR_ATTENUATION:
        raise WrongUsage(f"the volume holds {', '.join(volume.channels)} in {volume.unit}; allowed: bins in 1/mm")


def _read(volume: Volume, plan: VialPlan) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and its standard error in each bin and vial: (n_bins, n_vials) float64 both.

    Neighbouring voxels share noise, by the same law in all vials: the variance of a mean is that of a voxel over the
    number of voxels, times how much more the sum over all pairs of near voxels is than that of each with itself.
    """
    means, variances, numbers = [], [], []
    shared, own = np.zeros((2, len(volume.channels)))
    for vial in plan.vials:
        mask = cylinder_mask(volume.grid, vial, z_range_mm=plan.z_range_mm)
        box = tuple(slice(at.min(), at.max() + 1) for at in np.nonzero(mask))
        inside = mask[box]
        values = volume.values[:, *box].astype(np.float64)
        mean = values[:, inside].mean(axis=1)
        off = (values - mean[:, None, None, None]) * inside
        pairs, n_pairs = _near_pairs(off, inside)
        n = np.count_nonzero(inside)
        squares = (off**2).sum(axis=(1, 2, 3))
        # Off the vial's own mean all pairs sum to nothing: the near ones miss their share of it.
        shared += pairs / max(1 - n_pairs / n**2, 0.1)
        own += squares
        means.append(mean)
        variances.append(squares / max(n - 1, 1))
        numbers.append(n)
    if not (own > 0).all():
        raise WrongUsage(
            "the vials read the same in all voxels; allowed: measured values, whose noise tells the errors"
        )
    more = np.maximum(shared / own, LEAST_SHARED)
    sigmas = np.sqrt(more[:, None] * np.stack(variances, axis=1) / np.array(numbers))
    return np.stack(means, axis=1), np.maximum(sigmas, np.finfo(float).tiny)


def _near_pairs(off: NDArray[np.float64], inside: NDArray[np.bool_]) -> tuple[NDArray[np.float64], int]:
    """Return the sum of products of all pairs of near voxels, each with itself too, by bin, and how many there are."""
    reach = [min(r, n - 1) for r, n in zip(SHARED_VOXELS, inside.shape, strict=True)]
    total, n_pairs = np.zeros(len(off)), 0
    for lag in np.ndindex(*[2 * r + 1 for r in reach]):
        shift = [step - r for step, r in zip(lag, reach, strict=True)]
        here = tuple(slice(max(s, 0), n + min(s, 0)) for s, n in zip(shift, inside.shape, strict=True))
        there = tuple(slice(max(-s, 0), n + min(-s, 0)) for s, n in zip(shift, inside.shape, strict=True))
        total += np.einsum("bzyx,bzyx->b", off[:, *here], off[:, *there])
        n_pairs += int(np.count_nonzero(inside[here] & inside[there]))
    return total, n_pairs


def _design(plan: VialPlan) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how much of each material is in each vial, g/cm3, and the materials' densities."""
    materials = plan.materials
    densities = densities_of(materials, plan.densities_g_cm3)
    design = np.zeros((len(plan.vials), len(materials)))
    for row, vial, is_pure in zip(design, plan.vials, plan.is_pure, strict=True):
        if vial.material == plan.solvent:
            row[0] = densities[0]
            continue
        k = materials.index(vial.material)
        row[k] = (vial.concentration_mg_ml or 0.0) / MG_ML_PER_G_CM3
        row[0] = 0.0 if is_pure else densities[0] * (1 - row[k] / densities[k])
    return design, densities


def _r2(plan: VialPlan, means: NDArray[np.float64], fitted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how much of each solute's rise the line explains: (n_bins, n_solutes); `fitted` is (n_vials, n_bins)."""
    found = np.full((len(means), len(plan.materials) - 1), np.nan)
    for k, name in enumerate(plan.materials[1:]):
        rows = [
            n
            for n, (vial, is_pure) in enumerate(zip(plan.vials, plan.is_pure, strict=True))
            if vial.material in (name, plan.solvent) and not is_pure
        ]
        if any(plan.vials[n].material == name for n in rows):
            line = means[:, rows]
            spread = ((line - line.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
            found[:, k] = 1 - ((line - fitted.T[:, rows]) ** 2).sum(axis=1) / spread
    return found


def flattened(volume: Volume, plan: VialPlan) -> Volume:
    """Take cupping out, as the body round the vials shows it: each bin is divided by the body's course over the radius.

    The mean over the body stays as it is.
    """
    _refuse_materials(volume)
    body = plan.body
    if body is None:
        raise WrongUsage("the vial description names no body; allowed: with one, to learn cupping from")
    mask = cylinder_mask(volume.grid, body, z_range_mm=plan.z_range_mm, kept_radius=BODY_RADIUS)
    for vial in plan.vials:
        mask &= ~cylinder_mask(volume.grid, vial, kept_radius=VIAL_CLEARANCE)
    if np.count_nonzero(mask) < 100:
        raise WrongUsage("fewer than 100 voxels are body and no vial; allowed: a body that is wider than its vials")
    _, y, x = volume.grid.axes_mm()
    reach = ((y[:, None] - body.y_mm) ** 2 + (x - body.x_mm) ** 2) / body.radius_mm**2
    powers = np.stack([np.minimum(reach, 1.0) ** k for k in range(HIGHEST_POWER + 1)])
    rows = np.broadcast_to(powers[:, None], (len(powers), *mask.shape))[:, mask]
    courses = np.linalg.lstsq(rows.T, volume.values[:, mask].T.astype(np.float64), rcond=None)[0]
    means = volume.values[:, mask].mean(axis=1, dtype=np.float64)
    course = np.tensordot(courses.T, powers, 1)
    cup = [100 * (profile.max() - profile.min()) / mean for profile, mean in zip(course, means, strict=True)]
    words = f"cupping of the {body.material} taken out: {', '.join(f'{c:.2g}' for c in cup)} % of its mean"
    return replace(
        volume,
        values=(volume.values * (means[:, None, None] / course)[:, None]).astype(np.float32),
        provenance=replace(volume.provenance, steps=(*volume.provenance.steps, words)),
    )
