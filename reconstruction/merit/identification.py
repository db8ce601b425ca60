"""How well voxels show which material they hold.

# Ref: sensitivity and specificity of a material over the voxels of vials: Raja et al. 2018, Appl. Sci. 8, 467.
# Ref: receiver operating characteristic, and its area as the probability that a voxel with the material reads more than
#      one without: Fawcett 2006, Pattern Recognit. Lett. 27, 861; Hanley and McNeil 1982, Radiology 143, 29.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Confusion:
    """Which material voxels hold, and which they show.

    Attributes
    ----------
    names : tuple of str
    counts : (n, n) int64
        `counts[held, shown]` voxels.
    """

    names: tuple[str, ...]
    counts: NDArray[np.int64]

    @property
    def shares(self) -> NDArray[np.float64]:
        """Of the voxels that hold a material, the share that shows each: rows sum to 1, or are NaN without voxels."""
        held = self.counts.sum(axis=1, keepdims=True)
        return np.where(held > 0, self.counts / np.maximum(held, 1), np.nan)

    @property
    def sensitivity(self) -> NDArray[np.float64]:
        """TP / (TP + FN) of each material; NaN where no voxel holds it."""
        return np.diagonal(self.shares).copy()

    @property
    def specificity(self) -> NDArray[np.float64]:
        """TN / (TN + FP) of each material; NaN where every voxel holds it."""
        held, shown = self.counts.sum(axis=1), self.counts.sum(axis=0)
        without = self.counts.sum() - held
        false = shown - np.diagonal(self.counts)
        return np.where(without > 0, 1 - false / np.maximum(without, 1), np.nan)


def confusion(held: ArrayLike, shown: ArrayLike, names: Sequence[str]) -> Confusion:
    """Count which voxels show what.

    Parameters
    ----------
    held, shown : (...) int
        Places in `names`; voxels that hold something else (below 0) are left out, such as mixtures.
    """
    held, shown = np.asarray(held).ravel(), np.asarray(shown).ravel()
    n = len(names)
    counted = held >= 0
    held, shown = held[counted], shown[counted]
    if held.size and (held.max() >= n or shown.min() < 0 or shown.max() >= n):
        raise ValueError(f"labels beyond the {n} names; allowed: 0 to {n - 1}")
    counts = np.bincount(held * n + shown, minlength=n * n).reshape(n, n)
    return Confusion(names=tuple(names), counts=counts.astype(np.int64))


def shown_material(concentrations: NDArray[np.floating], thresholds: ArrayLike) -> NDArray[np.int64]:
    """Say what each voxel shows: the material that is furthest above its threshold, by ratio.

    Parameters
    ----------
    concentrations : (n_materials, ...) float
    thresholds : (n_materials,) float
        In the same unit.

    Returns
    -------
    shown : (...) int64
        Place of the material, or `n_materials` where none reaches its threshold.
    """
    limits = np.asarray(thresholds, dtype=np.float64).reshape(-1, *(1,) * (concentrations.ndim - 1))
    ratios = concentrations / limits
    return np.where((ratios >= 1).any(axis=0), np.argmax(ratios, axis=0), len(ratios))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Roc:
    """Receiver operating characteristic of one material's map.

    Attributes
    ----------
    false_positive, true_positive : (n,) float64
        Shares of voxels without and with the material that read at least each threshold; from 0 up to 1.
    thresholds : (n,) float64
        Falling; the first is above all.
    area_fraction : float
        0.5 tells nothing, 1 tells all.
    """

    false_positive: NDArray[np.float64]
    true_positive: NDArray[np.float64]
    thresholds: NDArray[np.float64]
    area_fraction: float

    def at_specificity(self, specificity: float) -> float:
        """Return the highest sensitivity that leaves this specificity."""
        return float(self.true_positive[self.false_positive <= 1 - specificity + 1e-12].max())


def roc(with_it: ArrayLike, without: ArrayLike) -> Roc:
    """Sweep the threshold over what voxels read that hold a material, and that do not: (n,) float each."""
    with_it, without = (np.asarray(v, dtype=np.float64).ravel() for v in (with_it, without))
    if not with_it.size or not without.size:
        raise ValueError(f"{with_it.size} voxels with the material, {without.size} without; allowed: some of each")
    thresholds = np.unique(np.concatenate([with_it, without]))[::-1]
    true = 1 - np.searchsorted(np.sort(with_it), thresholds, side="left") / with_it.size
    false = 1 - np.searchsorted(np.sort(without), thresholds, side="left") / without.size
    ranks = stats.rankdata(np.concatenate([with_it, without]))[: with_it.size]
    above = ranks.sum() - with_it.size * (with_it.size + 1) / 2
    return Roc(
        false_positive=np.concatenate([[0.0], false]),
        true_positive=np.concatenate([[0.0], true]),
        thresholds=np.concatenate([[np.inf], thresholds]),
        area_fraction=float(above / (with_it.size * without.size)),
    )
