"""materials: `(n_materials, z, y, x) float32`, g/cm3, from bin volumes, voxel by voxel.

In each voxel the bins are u = M c, with the attenuation M of one g/cm3 of each material; c is found by least squares,
weighted by the inverse of the bins' noise covariance, which neighbouring bins of one detector share in part.

# Ref: weighted least squares in the image domain: reference on spectral CT, section 3.1; volume fractions that sum to
#      1: P. Mendonca, P. Lamb, D. Sahani 2014, IEEE Trans. Med. Imaging 33, 99.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from firmware_iface.errors import BadFile, WrongUsage
from reconstruction import active_sets, backend
from reconstruction.kernels import noise_cpu
from reconstruction.kernels.threads import in_threads

CM_PER_MM = 0.1
CHUNK_VOXELS = 1 << 15
SINGULAR_BELOW = 1e-6
"""Ratio of the smallest to the largest singular value under which two materials cannot be told apart."""
FLAT_FRACTION = 0.5
EDGE_SCALE_VOXELS = 2.0
SHARED_VOXELS = 4
"""Noise of voxels that stand so far apart counts as independent."""


class Attenuation(Protocol):
    """What a decomposition needs: a `MaterialBasis` has it, and so has a `Matrix`."""

    @property
    def materials(self) -> tuple[str, ...]:
        """Names, in the order of the columns."""
        ...

    @property
    def attenuation_per_mm_per_g_cm3(self) -> NDArray[np.float64]:
        """(n_bins, n_materials)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Matrix:
    """Attenuation of materials in bins whose thresholds are not known, as a publication prints it.

    Attributes
    ----------
    materials, bins : tuple of str
    attenuation_per_mm_per_g_cm3 : (n_bins, n_materials) float64
    """

    materials: tuple[str, ...]
    bins: tuple[str, ...]
    attenuation_per_mm_per_g_cm3: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.attenuation_per_mm_per_g_cm3.shape != (len(self.bins), len(self.materials)):
            raise ValueError(
                f"an attenuation of shape {self.attenuation_per_mm_per_g_cm3.shape} does not match "
                f"{len(self.bins)} bins and {len(self.materials)} materials; allowed: (n_bins, n_materials)"
            )

    def in_order_of(self, names: Sequence[str]) -> Matrix:
        """Return it with its bins in the order of volumes or files whose names hold the bins' names.

        It stays as it is unless each of the names holds exactly one bin: "bin3_slice7" holds "bin3" and "Bin 03".
        """
        bins = [_words(name) for name in self.bins]
        places = [[k for k, words in enumerate(bins) if _holds(_words(name), words)] for name in names]
        order = [found[0] for found in places if len(found) == 1]
        if len(order) != len(names) or sorted(order) != list(range(len(bins))):
            return self
        return Matrix(
            materials=self.materials,
            bins=tuple(self.bins[k] for k in order),
            attenuation_per_mm_per_g_cm3=self.attenuation_per_mm_per_g_cm3[order],
        )


def _words(name: str) -> list[str]:
    """Cut a name into its words and numbers; what is between them, case and leading zeros do not count."""
    return [part.lstrip("0") or "0" if part.isdigit() else part for part in re.findall(r"\d+|[^\W\d_]+", name.lower())]


def _holds(words: Sequence[str], wanted: Sequence[str]) -> bool:
    n = len(wanted)
    return any(words[start : start + n] == wanted for start in range(len(words) - n + 1)) and n > 0


def read_matrix_csv(path: str | Path) -> Matrix:
    """Read mass attenuations in cm2/g: a header ``material,bin1,bin2,…``, then one line per material.

    Lines that begin with # are comments.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise BadFile(f"{path} cannot be read as text: {reason}") from error
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    rows = [(number, *_cells(line)) for number, line in lines if not line.lstrip().startswith("#")]
    if len(rows) < 2 or len(rows[0]) < 3 or rows[0][1].lower() != "material":
        raise BadFile(
            f"{path} holds no matrix; allowed: a header 'material,bin1,bin2,…' and one line per material",
            hint="values are mass attenuation coefficients in cm2/g",
        )
    bins = rows[0][2:]
    materials: list[str] = []
    values = []
    for number, name, *cells in rows[1:]:
        if len(cells) != len(bins):
            raise BadFile(f"{path}, line {number}: {len(cells)} values for {name!r}; the header names {len(bins)} bins")
        if not name or name in materials:
            raise BadFile(f"{path}, line {number}: the material is {name!r}; allowed: a name of its own")
        materials.append(name)
        where = f"{path}, line {number}, {name}"
        values.append([_positive(cell, f"{where} in {bins[k]}") for k, cell in enumerate(cells)])
    return Matrix(
        materials=tuple(materials), bins=tuple(bins), attenuation_per_mm_per_g_cm3=CM_PER_MM * np.array(values).T
    )


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line]))]


def _positive(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not 0 < value < np.inf:
        raise BadFile(f"{where}: the value is {text!r}; allowed: a number above 0")
    return value


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """Least squares of one matrix: bins weighted by their noise, and columns brought to norm 1.

    Attributes
    ----------
    whitener : (n_bins, n_bins) float64
        Bins times this have noise of one size each, independent of the others.
    columns : (n_bins, n_materials) float64
        Attenuation of the materials in these, of norm 1.
    scale : (n_materials,) float64
        Norm that they had.
    """

    whitener: NDArray[np.float64]
    columns: NDArray[np.float64]
    scale: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        values: backend.Array,
        attenuation: NDArray[np.floating],
        covariance: NDArray[np.floating] | None,
        *,
        is_any_number: bool = False,
    ) -> Problem:
        """Check that the values can be decomposed by the matrix.

        Parameters
        ----------
        values : (n_bins, ...) float
        attenuation : (n_bins, n_materials) float
        covariance : (n_bins, n_bins) float, optional
            None: all bins count the same.
        is_any_number : bool
            More materials than bins are allowed, for they will not all be asked for at once.
        """
        matrix = np.asarray(attenuation, dtype=np.float64)
        _check(values, matrix, is_any_number)
        whitener = np.eye(len(matrix)) if covariance is None else _whitener(covariance, len(matrix))
        whitened = whitener @ matrix
        scale = np.linalg.norm(whitened, axis=0)
        problem = cls(whitener=whitener, columns=whitened / np.where(scale > 0, scale, 1), scale=scale)
        if (scale == 0).any() or not is_any_number:
            problem.refuse_alike(range(matrix.shape[1]))
        return problem

    def refuse_alike(self, members: Sequence[int]) -> None:
        """Refuse materials that depend on each other."""
        columns = self.columns[:, list(members)]
        if not columns.any(axis=0).all() or np.linalg.cond(columns) > 1 / SINGULAR_BELOW:
            raise WrongUsage(
                "the matrix cannot tell its materials apart in these bins: its columns depend on each other",
                hint="name fewer materials, or scan with thresholds at their K edges",
            )

    @property
    def projector(self) -> NDArray[np.float64]:
        """(n_materials, n_bins): the scaled columns' products with the bins."""
        return self.columns.T @ self.whitener


def decompose(
    values: backend.Array,
    attenuation: NDArray[np.floating],
    *,
    covariance: NDArray[np.floating] | None = None,
    is_non_negative: bool = False,
    densities_g_cm3: NDArray[np.floating] | None = None,
    is_full: bool = False,
) -> backend.Array:
    """Find the concentrations whose attenuation comes nearest to the bins.

    Parameters
    ----------
    values : (n_bins, ...) float
        Linear attenuation, 1/mm; on the host or on the device.
    attenuation : (n_bins, n_materials) float
        1/mm per g/cm3.
    covariance : (n_bins, n_bins) float, optional
        Noise of the bins; only its shape matters, not its scale. None: all bins count the same.
    is_non_negative : bool
        Allow no concentration below 0.
    densities_g_cm3 : (n_materials,) float, optional
        Of the pure materials: volume fractions, concentration over density, are not below 0 and sum to 1 at most.
    is_full : bool
        Volume fractions sum to 1 exactly: there is no air.

    Returns
    -------
    concentrations : (n_materials, ...) float32, g/cm3
    """
    problem = Problem.of(values, attenuation, covariance)
    solve = _solver(problem, is_non_negative, densities_g_cm3, is_full)
    xp = backend.namespace(values)
    projector, scale = problem.projector, xp.asarray(problem.scale)[:, None]
    flat = values.reshape(len(values), -1)
    result = xp.empty((len(problem.scale), flat.shape[1]), np.float32)

    def work(part: slice) -> None:
        result[:, part] = solve(active_sets.multiplied(projector, flat[:, part].astype(np.float64))) / scale

    parts = [(slice(first, first + CHUNK_VOXELS),) for first in range(0, flat.shape[1], CHUNK_VOXELS)]
    if xp is np:
        in_threads(work, parts)
    else:
        for (part,) in parts:
            work(part)
    return result.reshape(len(result), *values.shape[1:])


def _solver(
    problem: Problem, is_non_negative: bool, densities_g_cm3: NDArray[np.floating] | None, is_full: bool
) -> Callable[[backend.Array], backend.Array]:
    """Return what makes scaled concentrations of projected bins."""
    if densities_g_cm3 is None:
        if is_full:
            raise WrongUsage("volume fractions that sum to 1 were asked for; allowed: with the materials' densities")
        if is_non_negative:
            supports = active_sets.Supports.non_negative(problem.columns)
            return lambda projected: active_sets.solve(projected, supports)
        inverse = np.asarray(np.linalg.inv(problem.columns.T @ problem.columns), dtype=np.float64)
        return lambda projected: active_sets.multiplied(inverse, projected)
    densities = np.asarray(densities_g_cm3, dtype=np.float64)
    if densities.shape != problem.scale.shape or not ((densities > 0) & np.isfinite(densities)).all():
        raise WrongUsage(f"the densities are {densities.tolist()} g/cm3; allowed: one above 0 for each material")
    shares = 1 / (problem.scale * densities)
    whole = active_sets.Supports.full(problem.columns, shares)
    if is_full:
        return lambda projected: active_sets.solve(projected, whole)
    supports = active_sets.Supports.non_negative(problem.columns)
    return lambda projected: active_sets.solve(projected, supports, shares=shares, full=whole)


def _check(values: backend.Array, matrix: NDArray[np.float64], is_any_number: bool) -> None:
    if matrix.ndim != 2 or values.ndim < 1 or len(values) != len(matrix):
        raise WrongUsage(f"{len(values)} bins came for a matrix of {len(matrix)}; allowed: one row per bin")
    n_bins, n_materials = matrix.shape
    if n_bins < n_materials and not is_any_number:
        raise WrongUsage(
            f"{n_materials} materials cannot be told apart with {n_bins} bins; allowed: at most {n_bins} materials",
            hint="name fewer materials, or scan with more thresholds",
        )
    if not np.isfinite(matrix).all():
        raise WrongUsage("the matrix holds values that are no numbers; allowed: finite ones")


def _whitener(covariance: NDArray[np.floating], n_bins: int) -> NDArray[np.float64]:
    """Return W with W' W the inverse of the covariance."""
    covariance = np.asarray(covariance, dtype=np.float64)
    if covariance.shape != (n_bins, n_bins) or not np.isfinite(covariance).all():
        raise WrongUsage(f"the covariance has shape {covariance.shape}; allowed: finite, ({n_bins}, {n_bins})")
    try:
        lower = np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError as error:
        raise WrongUsage(
            "the covariance of the bins is not positive definite; allowed: every bin has noise of its own",
            hint="without noise in all bins, decompose --unweighted",
        ) from error
    return np.asarray(np.linalg.inv(lower), dtype=np.float64)


EDGE_SIGMAS, CLIPPING_ROUNDS = 5.0, 3
"""What lies further off than noise does is an edge; one in a million voxels of noise does (a choice)."""
MAD_TO_SIGMA = 1.4826
"""Of a normal distribution, its standard deviation in units of the median absolute deviation."""


def bin_covariance(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Estimate the noise covariance of the bins from the volume itself.

    What differs between voxels along x is noise where the object is flat. They stand some voxels apart, because
    neighbours share noise: a filter that smooths leaves only a part of it between them. Flat is the half of the volume
    with the smallest slopes of the mean of all bins, smoothed over about as far, so that no edge comes between.

    Parameters
    ----------
    values : (n_bins, ..., y, x) float

    Returns
    -------
    covariance : (n_bins, n_bins) float64
        In the square of the unit of `values`.
    """
    if values.ndim < 3 or values.shape[-1] < 3:
        raise WrongUsage(f"the noise of values of shape {values.shape} cannot be told; allowed: images of 3 columns up")
    apart = min(SHARED_VOXELS, (values.shape[-1] - 1) // 2)
    lines = values.reshape(len(values), -1, values.shape[-1])
    mean = np.empty(lines.shape[1:])
    is_measured = np.empty((len(mean), values.shape[-1] - 2 * apart), bool)
    n_silent = noise_cpu.survey(lines, apart, mean, is_measured)
    slope = ndimage.gaussian_gradient_magnitude(
        mean.reshape([length for length in values.shape[1:] if length > 1]), EDGE_SCALE_VOXELS, mode="nearest"
    ).reshape(mean.shape)[:, apart:-apart]
    is_flat = is_measured & (slope <= np.quantile(slope[is_measured], FLAT_FRACTION) if is_measured.any() else False)
    line, column = np.nonzero(is_flat)
    if len(line) < 2 * len(values) or n_silent > np.count_nonzero(is_measured):
        raise WrongUsage(
            f"only {len(line)} voxels show noise; allowed: at least {2 * len(values)}, and more than do not",
            hint="what is without noise is not to be weighed by it, nor rid of it: decompose it --unweighted",
        )
    differences = np.empty((len(values), len(line)))
    noise_cpu.differences(lines, apart, line, column, differences)
    differences = _without_edges(differences)
    return differences @ differences.T / differences.shape[1]


def _without_edges(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """Leave out what is no noise, (n_bins, n): a few edges among flat voxels would outweigh all of it."""
    middle = differences.shape[1] // 2
    sigma = MAD_TO_SIGMA * np.partition(np.abs(differences), middle, axis=1)[:, middle]
    is_kept, squares = np.empty(differences.shape[1], bool), np.empty(len(differences))
    for _ in range(CLIPPING_ROUNDS):  # noise is not the same everywhere: what is kept tells how far it goes
        noise_cpu.clip(differences, np.where(sigma > 0, EDGE_SIGMAS * sigma, np.inf), is_kept, squares)
        sigma = np.sqrt(squares / np.count_nonzero(is_kept))
    return differences[:, is_kept]
