"""Fewer nodes for the same counts: a spectrum of 150 energies acts like some twenty, chosen and weighted for it.

Over the paths that an object can have, the exponentials of all energies span a space of few dimensions. The energies
that span it are picked one by one, each as unlike those before it as possible; each bin's weights on them come from
non-negative least squares on its relative transmission and slopes. Nodes are added until the errors, measured at other
paths than those of the fit, are below what was asked for, and then left out one by one while they stay so.

# Ref: columns that span a matrix: Businger and Golub 1965, Numer. Math. 7, 269 (QR with pivots).
# Ref: non-negative least squares: Lawson and Hanson 1974, Solving Least Squares Problems, chapter 23.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import qr
from scipy.optimize import nnls

from firmware_iface.errors import WrongUsage
from reconstruction.spectral.model import SpectralModel

TOLERANCE = 1e-4
SLOPES_PER_TRANSMISSION = 10.0
"""How many times larger the relative error of a slope may be than that of a transmission."""
DARKEST = 1e-5
"""Paths that let less through in the mean of all bins are not looked at."""
FEWEST_NODES = 4
N_SAMPLES = 400
NNLS_ITERATIONS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Compression:
    """A model of fewer nodes, and its largest relative errors at paths that its fit did not see."""

    model: SpectralModel
    transmission_error_relative: float
    slope_error_relative: float


def compress(
    model: SpectralModel,
    highest_paths: ArrayLike,
    lowest_paths: ArrayLike | None = None,
    *,
    tolerance: float = TOLERANCE,
) -> Compression:
    """Return a model of as few nodes as the tolerance allows over a box of paths.

    Parameters
    ----------
    highest_paths, lowest_paths : (n_materials,) float, mm g/cm3
        The corners of the box. lowest None: a twentieth of the highest below 0, for noise.
    tolerance : float
        Largest relative error of a transmission; that of a slope may be ten times as large.
    """
    highest = np.asarray(highest_paths, dtype=np.float64)
    lowest = -0.05 * highest if lowest_paths is None else np.asarray(lowest_paths, dtype=np.float64)
    n_materials = len(model.materials)
    if highest.shape != (n_materials,) or lowest.shape != (n_materials,) or not (highest > lowest).all():
        raise WrongUsage(f"paths from {lowest.tolist()} to {highest.tolist()}; allowed: {n_materials} each, rising")
    fitted, held_back = (_sampled(model, lowest, highest, seed) for seed in (1, 2))

    def tried(nodes: NDArray[np.intp]) -> Compression | None:
        few = _on_nodes(model, nodes, fitted)
        transmission, slope = _errors(model, few, held_back)
        is_good = transmission <= tolerance and slope <= SLOPES_PER_TRANSMISSION * tolerance
        found = Compression(model=few, transmission_error_relative=transmission, slope_error_relative=slope)
        return found if is_good else None

    order = _by_novelty(model, fitted)
    for n in range(FEWEST_NODES, len(order) + 1):
        best = tried(np.sort(order[:n]))
        if best is not None:
            return _pruned(best, np.sort(order[:n]), tried)
    return Compression(model=model, transmission_error_relative=0.0, slope_error_relative=0.0)


def _pruned(
    best: Compression, nodes: NDArray[np.intp], tried: Callable[[NDArray[np.intp]], Compression | None]
) -> Compression:
    """Leave out, from the least weight on, each node without which the others still do."""
    for node in nodes[np.argsort(best.model.weights.max(axis=0))]:
        fewer = tried(nodes[nodes != node])
        if fewer is not None:
            best, nodes = fewer, nodes[nodes != node]
    return best


def _sampled(
    model: SpectralModel, lowest: NDArray[np.float64], highest: NDArray[np.float64], seed: int
) -> NDArray[np.float64]:
    """Return paths (n_materials, n) from the box, its corners among them, through which something comes."""
    n_materials = len(lowest)
    shares = np.random.default_rng(seed).uniform(size=(N_SAMPLES, n_materials))
    corners = np.stack(np.meshgrid(*[[0.0, 1.0]] * n_materials, indexing="ij"), axis=-1).reshape(-1, n_materials)
    paths = (lowest + np.concatenate([corners, shares]) * (highest - lowest)).T
    is_lit = model.transmission(paths).mean(axis=0) >= DARKEST
    if not is_lit.any():
        raise WrongUsage(f"nothing comes through paths from {lowest.tolist()} to {highest.tolist()} mm g/cm3")
    return paths[:, is_lit]


def _kept(model: SpectralModel, paths: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp(-paths.T @ model.attenuation_per_mm_per_g_cm3.T)


def _by_novelty(model: SpectralModel, paths: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the nodes, those first that the ones before them tell least about."""
    importance = (model.weights / model.weights.max(axis=1, keepdims=True)).max(axis=0)
    kept = _kept(model, paths)
    relative = kept / kept.mean(axis=1, keepdims=True) * np.sqrt(importance)
    order = qr(relative, mode="r", pivoting=True)[-1]
    return np.asarray(order[: min(relative.shape)], dtype=np.intp)


def _on_nodes(model: SpectralModel, chosen: NDArray[np.intp], paths: NDArray[np.float64]) -> SpectralModel:
    """Return the model on some of its nodes, weighted to count the same."""
    attenuation = model.attenuation_per_mm_per_g_cm3[chosen]
    kept = _kept(model, paths)[:, chosen]
    transmission, slopes = model.transmission(paths), -model.slopes(paths)
    weights = np.empty((len(model.bins), len(chosen)))
    for b in range(len(model.bins)):
        rows = [kept / transmission[b][:, None]]
        rows += [
            kept * attenuation[:, k] / (SLOPES_PER_TRANSMISSION * slopes[b, k][:, None])
            for k in range(len(model.materials))
        ]
        targets = [np.full(len(kept), 1.0)]
        targets += [np.full(len(kept), 1 / SLOPES_PER_TRANSMISSION)] * len(model.materials)
        whole = len(kept) * np.ones((1, len(chosen)))  # nothing in the beam: all counts, far more than any other row
        matrix, target = np.concatenate([*rows, whole]), np.concatenate([*targets, [float(len(kept))]])
        weights[b], _ = nnls(matrix, target, maxiter=NNLS_ITERATIONS)
    co_weights = None if model.co_weights is None else _shared_on_nodes(model.co_weights, kept, _kept(model, paths))
    return replace(
        model,
        co_weights=co_weights,
        neighbour_weights=None,
        weights=weights / weights.sum(axis=1, keepdims=True),
        attenuation_per_mm_per_g_cm3=attenuation,
        energies_kev=model.energies_kev[chosen],
    )


def _shared_on_nodes(
    co_weights: NDArray[np.float64], kept: NDArray[np.float64], kept_by_all: NDArray[np.float64]
) -> NDArray[np.float64]:
    few = np.zeros((*co_weights.shape[:2], kept.shape[1]))
    for a, b in np.argwhere(np.triu(co_weights.any(axis=-1))):
        whole = kept_by_all @ co_weights[a, b]
        few[a, b], _ = nnls(kept / whole[:, None], np.ones(len(kept)), maxiter=NNLS_ITERATIONS)
        few[b, a] = few[a, b]
    return few


def _errors(model: SpectralModel, few: SpectralModel, paths: NDArray[np.float64]) -> tuple[float, float]:
    transmission = np.abs(few.transmission(paths) / model.transmission(paths) - 1).max()
    return float(transmission), float(np.abs(few.slopes(paths) / model.slopes(paths) - 1).max())
