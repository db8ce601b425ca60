"""One step from counts to materials, ray by ray and voxel by voxel, in expressions that both NumPy and CuPy compute.

The fast kernels of `onestep_cpu` take the same arguments and are held against these. Symmetric K x K matrices are
packed as `reconstruction.symmetric` has it.

# Ref: gradient and Fisher information of Poisson counts behind materials: Roessl and Herrmann 2009, Phys. Med. Biol.
#      54, 1307. One K x K system per voxel: Weidinger et al. 2016, Int. J. Biomed. Imaging, 5871604.
"""

from __future__ import annotations

from typing import NamedTuple

from reconstruction.backend import Array, namespace
from reconstruction.symmetric import place

DARK_COUNTS = 1e-6
"""Expected in every bin besides all else, so that nothing has an infinite logarithm."""
MOST_AT_ONCE = 1 << 26
"""Nodes times rays that are held at a time."""
CLIPPING_SWEEPS = 6
"""Of coordinate descent, in voxels where a concentration would fall below 0."""


class Rays(NamedTuple):
    """What is known of the rays, in floats of one dtype; an axis of length 1 stands for all views, or all bins.

    Attributes
    ----------
    counts : (n_bins, n_views, n_rays)
    open_counts, background : (n_bins, n_views or 1, n_rays)
    weights : (n_bins or 1, n_views or 1, n_rays)
        What a ray counts for; 0 leaves it out.
    """

    counts: Array
    open_counts: Array
    background: Array
    weights: Array

    def of_views(self, views: slice) -> Rays:
        """Return those of some views, without a copy."""
        return Rays(*(term[:, views] if term.shape[1] > 1 else term for term in self))


class Nodes(NamedTuple):
    """The spectral model as kernels take it: `weights` (n_bins, n_nodes), `attenuation` (n_nodes, n_materials)."""

    weights: Array
    attenuation: Array


def slopes(paths: Array, rays: Rays, nodes: Nodes, views: slice) -> tuple[float, float]:
    """Overwrite paths by the slopes of minus the log likelihood; return that, less its least, and Pearson's chi square.

    Parameters
    ----------
    paths : (n_materials, n_views, n_rays) float, mm g/cm3
        Of `views`.
    """
    rays = rays.of_views(views)
    sums = [_slopes(paths[:, some], rays.of_views(some), nodes) for some in _parts(paths, nodes)]
    objective, squared = (sum(part) for part in zip(*sums, strict=True))
    return float(objective), float(squared)


def _slopes(paths: Array, rays: Rays, nodes: Nodes) -> tuple[Array, Array]:
    xp = namespace(paths)
    y, opened, dark, weights = rays
    kept = _kept(paths, nodes)
    expected = opened * xp.tensordot(nodes.weights, kept, axes=1) + (dark + DARK_COUNTS)
    excess = expected - y
    pull = excess / expected
    squared = (weights * pull * excess).sum(dtype=xp.float64)
    is_seen = y > 0
    logs = y * xp.log(xp.where(is_seen, y, 1) / xp.where(is_seen, expected, 1)) + excess
    objective = (weights * logs).sum(dtype=xp.float64)
    pull *= opened * weights
    by_node = xp.tensordot(nodes.weights.T, pull, axes=1)
    by_node *= kept
    paths[...] = -xp.tensordot(nodes.attenuation.T, by_node, axes=1)
    return objective, squared


def curvature(out: Array, paths: Array, rays: Rays, nodes: Nodes) -> None:
    """Fill `out`, (packed, n_views, n_rays), with the curvature of minus the log likelihood at `paths`.

    It is Fisher's information, raised where more was counted than expected, as the likelihood's own curvature is.
    """
    xp = namespace(paths)
    for some in _parts(paths, nodes):
        y, opened, dark, weights = rays.of_views(some)
        kept = _kept(paths[:, some], nodes)
        expected = opened * xp.tensordot(nodes.weights, kept, axes=1) + (dark + DARK_COUNTS)
        scale = weights * opened**2 * xp.maximum(y / expected, 1) / expected
        columns = [xp.tensordot(nodes.weights * mu, kept, axes=1) for mu in nodes.attenuation.T]
        for i, column in enumerate(columns):
            for j in range(i, len(columns)):
                out[place(i, j, len(columns)), some] = (scale * column * columns[j]).sum(axis=0)


def _parts(paths: Array, nodes: Nodes) -> list[slice]:
    """Cut the views so that what all nodes let through along the rays of a part is not too large."""
    n_views, n_rays = paths.shape[1:]
    n = max(MOST_AT_ONCE // (n_rays * nodes.weights.shape[1]), 1)
    return [slice(first, min(first + n, n_views)) for first in range(0, n_views, n)]


def _kept(paths: Array, nodes: Nodes) -> Array:
    xp = namespace(paths)
    return xp.exp(-xp.tensordot(nodes.attenuation, paths, axes=1))


def quadratic_slopes(paths: Array, fitted: Array, information: Array) -> float:
    """Overwrite paths p by F (p - fitted); return (p - fitted)' F (p - fitted).

    Parameters
    ----------
    paths, fitted : (n_materials, n_views, n_rays) float
    information : (packed, n_views, n_rays) float
        F, positive semidefinite.
    """
    xp = namespace(paths)
    n = len(paths)
    away = paths - fitted
    for i in range(n):
        paths[i] = 0
        for j in range(n):
            paths[i] += information[place(i, j, n)] * away[j]
    return float((paths * away).sum(dtype=xp.float64))


def step(
    x: Array,
    extrapolated: Array,
    gradient: Array,
    hessian: Array,
    floor: Array,
    stiffness: float,
    momentum: float,
    is_non_negative: bool,
) -> None:
    """Go from `extrapolated` to the least of each voxel's paraboloid, and extrapolate from there; all in place.

    Parameters
    ----------
    x, extrapolated, gradient : (n_materials, ...) float
        `extrapolated` may be `x`; `gradient` is overwritten.
    hessian : (packed, ...) float
    floor : (n_materials,) float
        Added to the diagonal.
    stiffness : float
        What the Hessian is multiplied by.
    """
    xp = namespace(x)
    n = len(x)
    matrix = [[stiffness * hessian[place(i, j, n)].astype(xp.float64) for j in range(i + 1)] for i in range(n)]
    for i in range(n):
        matrix[i][i] += floor[i]
    away = _solve(matrix, gradient.astype(xp.float64))
    new = [extrapolated[k] - away[k] for k in range(n)]
    if is_non_negative:
        new = _non_negative(matrix, gradient, extrapolated, new)
    for k in range(n):
        moved = new[k].astype(x.dtype)
        if extrapolated is not x:
            ahead = moved + momentum * (moved - x[k])
            extrapolated[k] = xp.maximum(ahead, 0) if is_non_negative else ahead
        x[k] = moved


def _solve(matrix: list[list[Array]], right: Array) -> list[Array]:
    """Solve L D L' v = right in every voxel at once."""
    n = len(matrix)
    lower: list[list[Array]] = [[None] * n for _ in range(n)]
    diagonal: list[Array] = []
    for i in range(n):
        for j in range(i):
            rest = sum(lower[i][m] * lower[j][m] * diagonal[m] for m in range(j))
            lower[i][j] = (matrix[i][j] - rest) / diagonal[j]
        diagonal.append(matrix[i][i] - sum(lower[i][m] ** 2 * diagonal[m] for m in range(i)))
    v = [right[i] for i in range(n)]
    for i in range(n):
        for m in range(i):
            v[i] = v[i] - lower[i][m] * v[m]
    v = [v[i] / diagonal[i] for i in range(n)]
    for i in reversed(range(n)):
        for m in range(i + 1, n):
            v[i] = v[i] - lower[m][i] * v[m]
    return v


def _non_negative(matrix: list[list[Array]], gradient: Array, start: Array, unbounded: list[Array]) -> list[Array]:
    """Return the least of the paraboloid with nothing below 0, by coordinate descent from where it has none cut off."""
    xp = namespace(start)
    n = len(matrix)
    new = [xp.maximum(value, 0) for value in unbounded]
    for _ in range(CLIPPING_SWEEPS):
        for i in range(n):
            pull = gradient[i] + sum(matrix[max(i, j)][min(i, j)] * (new[j] - start[j]) for j in range(n))
            new[i] = xp.maximum(new[i] - pull / matrix[i][i], 0)
    return new
