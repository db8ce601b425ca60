"""Steps of total variation as their formulas have them, in expressions that NumPy and CuPy both compute.

The fast kernels of `tv_cpu` take the same arguments and are held against these. Differences run forward, from each
voxel to the next along z, y and x, and are zero at the last one.

A *ball* is where a prior's dual variable must lie: it is told by a number, because kernels take it so.

# Ref: Chambolle 2004, J. Math. Imaging Vis. 20, 89: discrete gradient, divergence and the dual of total variation.
# Ref: Duran, Moeller, Sbert and Cremers 2016, SIAM J. Imaging Sci. 9, 116: norms of the channels' Jacobian.
# Ref: projection onto the l1 ball: Duchi et al. 2008, ICML, fig. 1.
"""

from __future__ import annotations

from reconstruction.backend import Array, namespace

ANYWHERE, PER_COMPONENT, PER_CHANNEL, FROBENIUS, SPECTRAL, NUCLEAR = range(6)
"""Balls: the whole space; |p_d| <= r of each component; Euclidean norm of each channel, and over all channels; largest
singular value, and sum of the singular values, of the (channel, direction) matrix."""


def gradient(u: Array, weights: Array, tangent: Array | None = None) -> Array:
    """Return K u: (n_channels, 3, z, y, x), in the unit of `u` per voxel.

    Parameters
    ----------
    u : (n_channels, z, y, x) float
    weights : (n_channels,) float
        What each channel counts.
    tangent : (3, z, y, x) float, optional
        Vectors no longer than 1, along which differences count less: by 1 less the square of their length.
    """
    xp = namespace(u)
    g = xp.zeros((u.shape[0], 3, *u.shape[1:]), u.dtype)
    g[:, 0, :-1] = u[:, 1:] - u[:, :-1]
    g[:, 1, :, :-1] = u[:, :, 1:] - u[:, :, :-1]
    g[:, 2, :, :, :-1] = u[..., 1:] - u[..., :-1]
    g *= weights[:, None, None, None, None]
    return g if tangent is None else _across(g, tangent)


def gradient_transposed(p: Array, weights: Array, tangent: Array | None = None) -> Array:
    """Return K^T p: (n_channels, z, y, x)."""
    xp = namespace(p)
    p = (p if tangent is None else _across(p, tangent)) * weights[:, None, None, None, None]
    u = xp.zeros((p.shape[0], *p.shape[2:]), p.dtype)
    for direction in range(3):
        steps = xp.moveaxis(p[:, direction], direction + 1, 0)[:-1]
        along = xp.moveaxis(u, direction + 1, 0)
        along[:-1] -= steps
        along[1:] += steps
    return u


def _across(g: Array, tangent: Array) -> Array:
    """Return (I - t t^T) g for every channel and voxel."""
    return g - tangent * (g * tangent).sum(1, keepdims=True)


def project(p: Array, ball: int, radius: float) -> Array:
    """Return the point of a ball that is nearest to p: (n_channels, 3, z, y, x)."""
    xp = namespace(p)
    if ball == ANYWHERE:
        return p
    if ball == PER_COMPONENT:
        return xp.clip(p, -radius, radius)
    if ball in (PER_CHANNEL, FROBENIUS):
        norm = xp.sqrt((p * p).sum(1 if ball == PER_CHANNEL else (0, 1), keepdims=True))
        return p * (radius / xp.maximum(norm, radius))
    jacobian = xp.moveaxis(p, (0, 1), (-2, -1)).astype(xp.float64)
    eigenvalues, vectors = xp.linalg.eigh(xp.swapaxes(jacobian, -1, -2) @ jacobian)
    singular = xp.sqrt(xp.maximum(eigenvalues, 0))[..., ::-1]  # from the largest
    if ball == SPECTRAL:
        kept = xp.minimum(singular, radius)
    else:
        excess = (xp.cumsum(singular, -1) - radius) / xp.arange(1, 4)
        kept = xp.maximum(singular - xp.maximum(excess.max(-1, keepdims=True), 0), 0)
    share = (kept / xp.maximum(singular, 1e-300))[..., ::-1]
    projected = jacobian @ ((vectors * share[..., None, :]) @ xp.swapaxes(vectors, -1, -2))
    return xp.moveaxis(projected, (-2, -1), (0, 1)).astype(p.dtype)


def primal(
    out: Array, base: Array, dual: Array, step: float, is_non_negative: bool, weights: Array, tangent: Array | None
) -> None:
    """Fill `out` with base - step K^T dual, or with 0 where that is negative and must not be."""
    out[...] = base - step * gradient_transposed(dual, weights, tangent)
    if is_non_negative:
        namespace(out).maximum(out, 0, out=out)


def dual(
    p: Array,
    q: Array,
    u: Array,
    step: float,
    shrink: float,
    momentum: float,
    ball: int,
    radius: float,
    weights: Array,
    tangent: Array | None,
) -> None:
    """Step from `q` along K u, shrink, project: the new `p`. Then `q` goes past it by `momentum` times its change."""
    new = project(shrink * (q + step * gradient(u, weights, tangent)), ball, radius)
    q[...] = new + momentum * (new - p)
    p[...] = new


def value(u: Array, ball: int, corner: float, weights: Array, tangent: Array | None) -> float:
    """Return the sum over the voxels of the norm of K u whose dual ball is given.

    Norms n below `corner` count as n^2 / (2 corner), others as n - corner / 2; of ANYWHERE, all count as
    n^2 / (2 corner).
    """
    xp = namespace(u)
    g = gradient(u, weights, tangent).astype(xp.float64)
    if ball == ANYWHERE:
        return float((g * g).sum()) / (2 * corner)
    if ball == PER_COMPONENT:
        norm = xp.abs(g)
    elif ball in (PER_CHANNEL, FROBENIUS):
        norm = xp.sqrt((g * g).sum(1 if ball == PER_CHANNEL else (0, 1)))
    else:
        singular = xp.linalg.svd(xp.moveaxis(g, (0, 1), (-2, -1)), compute_uv=False)
        norm = singular.sum(-1) if ball == SPECTRAL else singular.max(-1)
    if corner > 0:
        norm = xp.where(norm < corner, norm * norm / (2 * corner), norm - corner / 2)
    return float(norm.sum())
