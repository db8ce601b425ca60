"""Attenuation of materials from a scan of vials: how much each bin rises with concentration, over a common solvent.

A vial of c g/cm3 solute reads (1 - c / rho) w + c m: the solvent w that the solute of density rho leaves room for, and
the solute m. All vials of a scan are fitted at once, bin by bin, so that the solvent is one number for all solutes;
what no solvent is in (a rod of plastic, a fat) reads c m. The vials hang in the same sample, behind the same
matter, as what is to be measured with them: that is what a cell on a bench cannot offer.

What the vials hold and where they stand is told by a TOML file, the same that quality is measured by:
`reconstruction.phantom_file` shows its keys. One vial at least is of pure solvent, or there are so many mixtures that
it follows from them; `is_pure`, `[densities_g_cm3]` and `[body]` count here only. The concentration of a pure material
is its density, if not stated.

# Ref: slope of attenuation over concentration with the solvent as intercept: reference on spectral CT, section 3.1;
#      volumes add up: `calibration.material_basis`.
# Ref: error of a mean of values that share noise with their neighbours: H. Flyvbjerg, H. G. Petersen 1989, J. Chem.
#      Phys. 91, 461, section II.
# Ref: where cupping comes from: P. M. Joseph, R. D. Spital 1978, J. Comput. Assist. Tomogr. 2, 100; it is taken out as
#      a polynomial of the distance from the axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibration.attenuation import MG_ML_PER_G_CM3
from calibration.material_basis import MaterialBasis
from firmware_iface.errors import CalibrationMissing, WrongUsage
from reconstruction.decomposition import Matrix
from reconstruction.materials import densities_of
from reconstruction.phantom_file import Phantom, Vial
from reconstruction.quality import cylinder_mask
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


def fit_vials(volume: Volume, phantom: Phantom) -> VialFit:
    """Fit solvent and solutes to what every bin of a volume reads in the vials."""
    _refuse_materials(volume)
    materials = (phantom.solvent, *phantom.agents)
    means, sigmas = _read(volume, phantom)
    design, densities = _design(phantom, materials)
    n_vials, n_materials = design.shape
    if np.linalg.matrix_rank(design) < n_materials:
        raise CalibrationMissing(
            f"{n_vials} vials do not tell {', '.join(materials)} apart", hint="add one of each, and one of solvent"
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
        materials=materials,
        bins=volume.channels,
        thresholds_kev=volume.thresholds_kev,
        attenuation_per_mm_per_g_cm3=attenuation,
        sigma_per_mm_per_g_cm3=sigma,
        slope_per_mm_per_g_cm3=slope,
        slope_sigma_per_mm_per_g_cm3=slope_sigma,
        chi_square=chi_square,
        n_degrees=n_degrees,
        r2=_r2(design, means, design @ attenuation.T),
    )


def _refuse_materials(volume: Volume) -> None:
    if volume.unit != LINEAR_ATTENUATION:
        raise WrongUsage(f"the volume holds {', '.join(volume.channels)} in {volume.unit}; allowed: bins in 1/mm")


def _read(volume: Volume, phantom: Phantom) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and its standard error in each bin and vial: (n_bins, n_vials) float64 both.

    Neighbouring voxels share noise, by the same law in all vials: the variance of a mean is that of a voxel over the
    number of voxels, times how much more the sum over all pairs of near voxels is than that of each with itself.
    """
    means, variances, numbers = [], [], []
    shared, own = np.zeros((2, len(volume.channels)))
    for vial in phantom.vials:
        z_range_mm = vial.z_range_mm or phantom.z_range_mm
        mask = cylinder_mask(volume.grid, vial, z_range_mm=z_range_mm, kept_radius=phantom.kept_radius_share)
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
    read = np.stack(means, axis=1)
    return read, np.maximum(sigmas, np.finfo(np.float32).eps * np.abs(read))  # values are no finer


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


def _design(phantom: Phantom, materials: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how much of each material is in each vial, g/cm3, and the materials' densities."""
    densities = densities_of(materials, phantom.densities_g_cm3)
    design = np.zeros((len(phantom.vials), len(materials)))
    for row, vial in zip(design, phantom.vials, strict=True):
        for name in vial.materials:
            k = materials.index(name)
            stated_mg_ml = vial.true_mg_ml(name)
            if name == phantom.solvent:
                continue
            if stated_mg_ml is None and vial.is_pure:
                stated_mg_ml = densities[k] * MG_ML_PER_G_CM3
            if not stated_mg_ml:
                raise WrongUsage(f"the {vial.material} vial has {stated_mg_ml} mg/mL of {name}; allowed: above 0")
            row[k] = stated_mg_ml / MG_ML_PER_G_CM3
        row[0] = 0.0 if vial.is_pure and row.any() else densities[0] * (1 - np.sum(row[1:] / densities[1:]))
    return design, densities


def _r2(design: NDArray[np.float64], means: NDArray[np.float64], fitted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how much of each solute's rise the line explains: (n_bins, n_solutes); `fitted` is (n_vials, n_bins).

    The line goes through the vials of solvent and those that hold this solute and no other.
    """
    found = np.full((len(means), design.shape[1] - 1), np.nan)
    for k in range(1, design.shape[1]):
        others = np.delete(design, (0, k), axis=1)
        rows = ~others.any(axis=1) & (design[:, 0] > 0)
        if (design[rows, k] > 0).any() and (design[rows, k] == 0).any():
            line = means[:, rows]
            spread = ((line - line.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
            found[:, k - 1] = 1 - ((line - fitted.T[:, rows]) ** 2).sum(axis=1) / spread
    return found


def flattened(volume: Volume, phantom: Phantom) -> Volume:
    """Take cupping out, as the body round the vials shows it: each bin is divided by the body's course over the radius.

    The mean over the body stays as it is.
    """
    _refuse_materials(volume)
    if phantom.body is None:
        raise WrongUsage("the phantom file names no body; allowed: with one, to learn cupping from")
    body = Vial(**msgspec.structs.asdict(phantom.body))
    mask = cylinder_mask(volume.grid, body, z_range_mm=phantom.z_range_mm, kept_radius=BODY_RADIUS)
    for vial in phantom.vials:
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
