"""labels: `(z, y, x)` whole numbers, from materials: which tissue each voxel is, and how sure that is.

Each tissue is a cloud in the space of concentrations: where its composition puts it, spread by the noise of the
scan and by how much tissues of one name differ; contrast agents may be in any. Bayes' rule gives the probability of
each; what none explains has the label 0. With the compositions beside them, labels are a voxel phantom for simulations.

# Ref: Gaussian classes with priors (quadratic discriminant): R. A. Fisher's idea as in T. Hastie, R. Tibshirani,
#      J. Friedman 2009, The Elements of Statistical Learning, section 4.3; rejection by the chi-square law of the
#      squared Mahalanobis distance. Mean of a Potts field given its neighbours' means: G. Celeux, F. Forbes, N. Peyrard
#      2003, Pattern Recognition 36, 131.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.stats import chi2

from calibration.attenuation import Material, material, symbol
from calibration.progress import Progress
from calibration.store import software_version
from calibration.whole_file import whole_file
from firmware_iface.errors import WrongUsage
from reconstruction.spectral.stoichiometry import as_seen, is_agent
from reconstruction.volume import MASS_CONCENTRATION, PURE_NUMBER, Provenance, Volume

UNKNOWN = "unknown"
AIR = "air"
SPREAD = 0.03
"""How much tissues of one name differ, relative to their concentrations; a choice."""
AIR_SPREAD_G_CM3 = 0.02
AGENT_SPREAD_G_CM3 = 0.05
"""How much contrast agent any tissue may have taken up: it does not tell tissues apart."""
N_SWEEPS = 10
REJECTED_BELOW = 1e-4
"""Chance of being so far from a tissue and yet of it, below which a voxel is none."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tissue:
    """A class of voxels.

    Attributes
    ----------
    matter : Material
    mean_g_cm3 : (n_materials,) float64
        The concentrations as which it is seen.
    covariance : (n_materials, n_materials) float64
        Of its own, without noise, in (g/cm3)^2.
    prior_weight : float
        How common it is relative to the others.
    """

    matter: Material
    mean_g_cm3: NDArray[np.float64]
    covariance: NDArray[np.float64]
    prior_weight: float = 1.0

    def __post_init__(self) -> None:
        n = len(self.mean_g_cm3)
        if self.covariance.shape != (n, n) or not self.prior_weight > 0:
            raise ValueError(
                f"covariance {self.covariance.shape}, prior {self.prior_weight}; allowed: {(n, n)}, above 0"
            )


def tissue_classes(
    names: Sequence[str], basis: Sequence[Material], *, spread: float = SPREAD, priors: Sequence[float] | None = None
) -> tuple[Tissue, ...]:
    """Return the classes of named tissues or other matter, as they are seen in a basis.

    Parameters
    ----------
    names : sequence of str
        Names that `calibration.attenuation.material` knows.
    spread : float
        Standard deviation of each tissue's density and composition, relative.
    priors : sequence of float, optional
        None: all alike.
    """
    if not names or len(set(names)) != len(names):
        raise WrongUsage(f"the tissues are {', '.join(names) or 'none'}; allowed: one or more, each once")
    if priors is not None and len(priors) != len(names):
        raise WrongUsage(f"{len(priors)} priors for {len(names)} tissues; allowed: one each")
    if priors is not None and not all(0 < prior < math.inf for prior in priors):
        raise WrongUsage(f"the priors are {', '.join(f'{prior:g}' for prior in priors)}; allowed: above 0")
    known = [material(name) for name in names]
    found = []
    for matter, mean, prior in zip(known, as_seen(known, basis), priors or [1.0] * len(names), strict=True):
        along = np.outer(mean, mean) + np.diag(mean**2)  # density moves all alike, composition each
        floor = AIR_SPREAD_G_CM3 if matter.name == AIR else 0.0
        uptake = [AGENT_SPREAD_G_CM3 if is_agent(m) else floor for m in basis]
        covariance = spread**2 / 2 * along + np.diag(np.square(uptake))
        found.append(Tissue(matter=matter, mean_g_cm3=mean, covariance=covariance, prior_weight=prior))
    return tuple(found)


def probabilities(
    concentrations: NDArray[np.floating],
    tissues: Sequence[Tissue],
    noise_covariance: NDArray[np.floating],
    *,
    field_strength: float = 0.0,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return how likely each voxel is of each tissue, and which are of none.

    Parameters
    ----------
    concentrations : (n_materials, ...) float, g/cm3
    noise_covariance : (n_materials, n_materials) float, (g/cm3)^2
    field_strength : float
        What each neighbour of the same tissue, along the last three axes, adds to the logarithm of that tissue's
        probability: a Markov field, solved for its mean. 0: each voxel by itself.

    Returns
    -------
    probabilities : (n_tissues, ...) float32
        They add up to 1.
    is_none : (...) bool
        Further from all tissues than one voxel in 1 / REJECTED_BELOW is from its own.
    """
    if not field_strength >= 0:
        raise WrongUsage(f"the strength of the field is {field_strength}; allowed: 0 or more, 0.3 is much")
    shape = np.shape(concentrations)[1:]
    flat = np.reshape(np.asarray(concentrations, np.float64), (len(concentrations), -1))
    logs, nearest = np.empty((len(tissues), flat.shape[1]), np.float32), np.full(flat.shape[1], np.inf)
    for k, tissue in enumerate(tissues):
        covariance = tissue.covariance + noise_covariance
        try:
            lower = np.linalg.cholesky(covariance)
        except np.linalg.LinAlgError as error:
            raise WrongUsage(
                f"{tissue.matter.name} has no spread in some direction; allowed: noise in every material"
            ) from error
        square = (np.linalg.solve(lower, flat - tissue.mean_g_cm3[:, None]) ** 2).sum(axis=0)
        logs[k] = np.log(tissue.prior_weight) - np.log(np.diag(lower)).sum() - square / 2
        nearest = np.minimum(nearest, square)
    logs = logs.reshape(-1, *shape)
    likely = _shares(logs)
    for _ in range(N_SWEEPS if field_strength else 0):
        likely = _shares(logs + field_strength * _of_neighbours(likely))
    return likely, (nearest > chi2.isf(REJECTED_BELOW, len(flat))).reshape(shape)


def _shares(logs: NDArray[np.floating]) -> NDArray[np.float32]:
    shares = np.exp(logs - logs.max(axis=0))
    return (shares / shares.sum(axis=0)).astype(np.float32)


def _of_neighbours(likely: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the sum over the neighbours of each voxel that touch it with a face, edge or corner."""
    total = likely
    for axis in range(max(1, likely.ndim - 3), likely.ndim):
        total = ndimage.correlate1d(total, [1.0, 1.0, 1.0], axis=axis, mode="constant")
    return total - likely


def label_volume(
    volume: Volume,
    tissues: Sequence[Tissue],
    noise_covariance: NDArray[np.floating],
    *,
    field_strength: float = 0.0,
    is_each_told: bool = False,
) -> Generator[Progress, None, Volume]:
    """Label each voxel of a volume of materials.

    Parameters
    ----------
    noise_covariance : (n_materials, n_materials) float, (g/cm3)^2
    field_strength : float
        As of `probabilities`; with it, all slices are in memory at once.
    is_each_told : bool
        Add the probability of each tissue.

    Returns
    -------
    volume : Volume
        Channel ``label`` counts the tissues from 1, and 0 is none; channel ``probability`` is that of the label.
    """
    if volume.unit != MASS_CONCENTRATION:
        raise WrongUsage(f"the volume is in {volume.unit}; allowed: materials in {MASS_CONCENTRATION}")
    n_slices = volume.grid.shape[0]
    values = np.empty((2 + is_each_told * len(tissues), *volume.grid.shape), np.float32)
    together = n_slices if field_strength else 1
    for first in range(0, n_slices, together):
        part = slice(first, first + together)
        likely, is_none = probabilities(
            volume.values[:, part], tissues, noise_covariance, field_strength=field_strength
        )
        values[0, part] = np.where(is_none, 0, 1 + likely.argmax(axis=0))
        values[1, part] = np.where(is_none, 0, likely.max(axis=0))
        if is_each_told:
            values[2:, part] = likely
        yield Progress("labels", min(part.stop, n_slices), n_slices)
    names = tuple(tissue.matter.name for tissue in tissues)
    numbered = ", ".join(f"{k} {name}" for k, name in enumerate(names, 1))
    source = volume.provenance
    return Volume(
        values=values,
        channels=("label", "probability", *(names if is_each_told else ())),
        unit=PURE_NUMBER,
        grid=volume.grid,
        provenance=Provenance(
            source_file=source.source_file,
            source_begun=source.source_begun,
            plan_json=source.plan_json,
            calibration_identity=source.calibration_identity,
            software=software_version(),
            steps=(*source.steps, f"labels, field {field_strength:g}: 0 {UNKNOWN}, {numbered}"),
        ),
    )


def write_compositions(tissues: Sequence[Tissue], path: str | Path) -> Path:
    """Write what each label is made of, as TOML: a table ``[[material]]`` for each."""
    lines = ["# What the labels of a volume are made of; 0 is unknown. Mass fractions add up to 1.", ""]
    for k, tissue in enumerate(tissues, 1):
        parts = ", ".join(f"{symbol(z)} = {share:.6f}" for z, share in tissue.matter.mass_fractions if share > 0)
        lines += [
            "[[material]]",
            f"label = {k}",
            f'name = "{tissue.matter.name}"',
            f"density_g_cm3 = {tissue.matter.density_g_cm3:g}",
            f"prior = {tissue.prior_weight:g}",
            f"mass_fractions = {{ {parts} }}",
            "",
        ]
    with whole_file(path) as partial:
        partial.write_text("\n".join(lines), encoding="utf-8")
    return Path(path)


def write_metaimage(labels: Volume, path: str | Path) -> Path:
    """Write labels as a MetaImage (``.mhd`` beside ``.raw``), which GATE, Geant4, ITK and 3D Slicer read."""
    path = Path(path)
    numbers = np.ascontiguousarray(labels.channel("label"), dtype="<u2")
    raw = path.with_suffix(".raw")
    size = labels.grid.voxel_mm
    first = [axis[0] for axis in labels.grid.axes_mm()[::-1]]
    head = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "Offset": " ".join(f"{x:.9g}" for x in first),
        "ElementSpacing": f"{size:.9g} {size:.9g} {size:.9g}",
        "DimSize": " ".join(map(str, numbers.shape[::-1])),
        "ElementType": "MET_USHORT",
        "ElementDataFile": raw.name,
    }
    with whole_file(raw) as partial:
        numbers.tofile(partial)
    with whole_file(path) as partial:
        partial.write_text("".join(f"{key} = {value}\n" for key, value in head.items()), encoding="ascii")
    return path
