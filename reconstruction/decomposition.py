"""materials: `(n_materials, z, y, x) float32`, g/cm3, from bin volumes, voxel by voxel.

In each voxel the bins are u = M c, with the attenuation M of one g/cm3 of each material; c is found by least squares,
weighted by the inverse of the bins' noise covariance, which neighbouring bins of one detector share in part.

# Ref: weighted least squares in the image domain, and non-negative least squares by going through the supports:
#      Bateman et al. 2018, JINST 13, P05020 (MARS-MD solves subset by subset); Lawson and Hanson 1974, Solving Least
#      Squares Problems, chapter 23: the non-negative solution is the plain one on the materials it keeps.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from firmware_iface.errors import BadFile, WrongUsage
from reconstruction import backend

CM_PER_MM = 0.1
CHUNK_VOXELS = 1 << 17
MOST_MATERIALS = 10
"""With non-negative concentrations every subset of the materials is tried: 1023 of them here."""
SINGULAR_BELOW = 1e-10
"""Ratio of the smallest to the largest singular value under which two materials cannot be told apart."""
FLAT_FRACTION = 0.5
EDGE_SCALE_VOXELS = 2.0


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


def decompose(
    values: backend.Array,
    attenuation: NDArray[np.floating],
    *,
    covariance: NDArray[np.floating] | None = None,
    is_non_negative: bool = False,
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
        Refuse concentrations below 0: of all subsets of the materials with none, the best-fitting one.

    Returns
    -------
    concentrations : (n_materials, ...) float32, g/cm3
    """
    matrix = np.asarray(attenuation, dtype=np.float64)
    _check(values, matrix)
    whitener = np.eye(len(matrix)) if covariance is None else _whitener(covariance, len(matrix))
    whitened = whitener @ matrix
    scale = np.linalg.norm(whitened, axis=0)
    if (scale == 0).any() or np.linalg.cond(whitened / scale) > 1 / SINGULAR_BELOW:
        raise WrongUsage(
            "the matrix cannot tell its materials apart in these bins: its columns depend on each other",
            hint="name fewer materials, or scan with thresholds at their K edges",
        )
    solve = _non_negative_solver if is_non_negative else _plain_solver
    operators = solve(whitened / scale)
    xp = backend.namespace(values)
    flat = values.reshape(len(matrix), -1)
    result = xp.empty((matrix.shape[1], flat.shape[1]), np.float32)
    for first in range(0, flat.shape[1], CHUNK_VOXELS):
        part = slice(first, first + CHUNK_VOXELS)
        bins = xp.asarray(whitener) @ flat[:, part].astype(np.float64)
        result[:, part] = operators(bins) / xp.asarray(scale)[:, None]
    return result.reshape(matrix.shape[1], *values.shape[1:])


def _check(values: backend.Array, matrix: NDArray[np.float64]) -> None:
    if matrix.ndim != 2 or values.ndim < 1 or len(values) != len(matrix):
        raise WrongUsage(f"{len(values)} bins came for a matrix of {len(matrix)}; allowed: one row per bin")
    n_bins, n_materials = matrix.shape
    if n_bins < n_materials:
        raise WrongUsage(
            f"{n_materials} materials cannot be told apart with {n_bins} bins; allowed: at most {n_bins} materials",
            hint="name fewer materials, or scan with more thresholds",
        )
    if not np.isfinite(matrix).all():
        raise WrongUsage("the matrix holds values that are no numbers; allowed: finite ones")


def _whitener(covariance: NDArray[np.floating], n_bins: int) -> NDArray[np.float64]:
    """Return W with W' W the inverse of the covariance, scaled to leave the magnitude of the bins as it is."""
    covariance = np.asarray(covariance, dtype=np.float64)
    if covariance.shape != (n_bins, n_bins) or not np.isfinite(covariance).all():
        raise WrongUsage(f"the covariance has shape {covariance.shape}; allowed: finite, ({n_bins}, {n_bins})")
    try:
        lower = np.linalg.cholesky(covariance / np.trace(covariance) * n_bins)
    except np.linalg.LinAlgError as error:
        raise WrongUsage(
            "the covariance of the bins is not positive definite; allowed: every bin has noise of its own"
        ) from error
    return np.linalg.inv(lower)


def _plain_solver(matrix: NDArray[np.float64]) -> Any:
    inverse = np.linalg.pinv(matrix)
    return lambda bins: backend.namespace(bins).asarray(inverse) @ bins


def _non_negative_solver(matrix: NDArray[np.float64]) -> Any:
    """All voxels at once, subset by subset: a subset explains c . M'u of u . u; the feasible one with most wins."""
    n_materials = matrix.shape[1]
    if n_materials > MOST_MATERIALS:
        raise WrongUsage(
            f"{n_materials} materials with none below 0; allowed: up to {MOST_MATERIALS}", hint="name fewer materials"
        )
    supports = [list(s) for size in range(1, n_materials + 1) for s in combinations(range(n_materials), size)]
    inverses = [np.linalg.pinv(matrix[:, support]) for support in supports]

    def solve(bins: backend.Array) -> backend.Array:
        xp = backend.namespace(bins)
        best = xp.zeros((n_materials, bins.shape[1]))
        best_explained = xp.zeros(bins.shape[1])
        projected = xp.asarray(matrix.T) @ bins
        for support, inverse in zip(supports, inverses, strict=True):
            concentrations = xp.asarray(inverse) @ bins
            explained = (concentrations * projected[support]).sum(axis=0)
            is_better = (concentrations >= 0).all(axis=0) & (explained > best_explained)
            best_explained = xp.where(is_better, explained, best_explained)
            candidate = xp.zeros_like(best)
            candidate[support] = concentrations
            best = xp.where(is_better, candidate, best)
        return best

    return solve


def bin_covariance(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Estimate the noise covariance of the bins from the volume itself.

    What differs between neighbours along x is noise where the object is flat. Flat is the half of the volume
    with the smallest slopes along y (and z) of the mean of all bins, smoothed: other directions and another scale than
    those of the differences, so that the choice does not favour small noise.

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
    second = values[..., :-2] - 2.0 * values[..., 1:-1] + values[..., 2:]
    second /= np.sqrt(6.0)  # the variance of a - 2 b + c is six times that of one voxel
    slope = ndimage.gaussian_gradient_magnitude(
        values.mean(axis=0, dtype=np.float64), EDGE_SCALE_VOXELS, mode="nearest"
    )[..., 1:-1]
    is_measured = np.any(second != 0, axis=0)  # outside the field of view all bins are 0
    is_flat = is_measured & (slope <= np.quantile(slope[is_measured], FLAT_FRACTION) if is_measured.any() else False)
    if is_flat.sum() < 2 * len(values):
        raise WrongUsage(f"only {int(is_flat.sum())} voxels show noise; allowed: at least {2 * len(values)}")
    differences = second[:, is_flat].astype(np.float64)
    return differences @ differences.T / differences.shape[1]
