"""materials: `(n_materials, z, y, x) float32`, g/cm3, from the paths that every ray was taken apart into.

    x = argmin  1/2 sum over rays i of (A x - p)_i' F_i (A x - p)_i  +  prior(x)

F_i is what the counts of ray i tell of its paths p_i: the inverse of the Cramer-Rao bound, K x K for K materials. Noise
of materials is strongly anti-correlated, and F knows the combination of them that a ray does know well, which a channel
by itself cannot.

The concentrations are written as x = T z, so that a unit of z is the noise of a voxel. With F_i = G_i' G_i, the same is
1/2 |B z - b|^2 of the operator B z = G_i T (A z)_i: every method of `reconstruction.methods` solves it as it stands.
Units and the choice of basis materials drop out of z: a joint prior of z gives the same picture whatever they are.

# Ref: reconstruction of decomposed paths weighted by the inverse of their covariance: Schirra et al. 2013, IEEE Trans.
#      Med. Imaging 32, 1249; Sawatzky, Xu, Schirra and Anastasio 2014, IEEE Trans. Med. Imaging 33, 1510.
# Ref: Fisher information of Poisson counts: Roessl and Herrmann 2009, Phys. Med. Biol. 54, 1307.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from firmware_iface.errors import WrongUsage
from reconstruction.backend import Array, namespace
from reconstruction.methods.iterates import Iterate
from reconstruction.methods.least_squares import as_data, cgls
from reconstruction.methods.proximal import data_curvature, fista, pdhg
from reconstruction.operators import Operator
from reconstruction.priors import DifferencePrior
from reconstruction.spectral.mixed_prior import MixedPrior, channels_mixed
from reconstruction.spectral.strength import COUPLED, n_directions, prior_in_noise
from reconstruction.symmetric import packed_size, pairs, unpacked

Method = Literal["fista", "pdhg"]
Basis = Literal["whitened", "materials"]
VIEWS_AT_A_TIME = 64
ROUNDING = 10
"""Times rounding of what a ray tells of a material: less left of it by the other materials counts as nothing."""


class RayMixing(Operator):
    """Line integrals of all channels, mixed in every ray by a triangular matrix of its own.

    Parameters
    ----------
    A : Operator
    roots : (n_pairs, n_views, ...) float
        Upper triangles G, packed as `reconstruction.symmetric` has it.
    """

    def __init__(self, A: Operator, roots: Array) -> None:
        self._A, self._roots = A, roots
        self.domain_shape, self.range_shape = A.domain_shape, A.range_shape
        self._pairs = pairs(A.range_shape[0])

    def forward(self, x: Array, out: Array | None = None) -> Array:
        """Return G A x."""
        y = self._A.forward(x, out)
        mix(y, self._roots)
        return y

    def adjoint(self, y: Array, out: Array | None = None) -> Array:
        """Return A^T G^T y."""
        mixed = namespace(y).zeros_like(y)
        for root, (k, other) in zip(self._roots, self._pairs, strict=True):
            mixed[other] += root * y[k]
        return self._A.adjoint(mixed, out)

    def subset(self, views: Array | slice) -> RayMixing:
        """Return the operator to some views only."""
        return RayMixing(self._A.subset(views), self._roots[:, views])


def mix(paths: Array, roots: Array) -> None:
    """Multiply the paths of each ray, (n_materials, ...), by its upper triangle, in place."""
    for root, (k, other) in zip(roots, pairs(len(paths)), strict=True):
        if k == other:  # comes first of its row, and none of the rows before is read again
            paths[k] *= root
        else:
            paths[k] += root * paths[other]


def ray_roots(information: Array, T: NDArray[np.floating], dtype: DTypeLike = np.float32) -> Array:
    """Return the upper triangles G with G'G = T' F T, packed as F is: (n_pairs, n_views, ...).

    A ray whose information is no number, or negative, has none; a combination of materials that a ray tells nothing of
    does not count.
    """
    xp, n = namespace(information), len(T)
    roots = xp.zeros(information.shape, dtype)
    change = xp.asarray(T)
    for first in range(0, information.shape[1], VIEWS_AT_A_TIME):
        views = slice(first, first + VIEWS_AT_A_TIME)
        whole = unpacked(information[:, views].astype(xp.float64))
        is_known = xp.isfinite(whole).all((0, 1)) & (xp.stack([whole[k, k] for k in range(n)]) >= 0).all(0)
        whole = xp.where(is_known, whole, 0)
        roots[:, views] = _cholesky(
            xp.einsum("ak,ab...,bl->kl...", change, whole, change), ROUNDING * float(xp.finfo(dtype).eps)
        )
    return roots


def _cholesky(matrices: Array, singular_below: float) -> Array:
    """Return the upper triangles of (n, n, ...) positive semi-definite matrices, packed."""
    xp, n = namespace(matrices), len(matrices)
    upper: dict[tuple[int, int], Array] = {}
    for k in range(n):
        left = matrices[k, k] - sum(upper[m, k] ** 2 for m in range(k))
        is_told = left > singular_below * matrices[k, k]
        upper[k, k] = xp.sqrt(xp.where(is_told, left, 0))
        inverse = xp.where(is_told, 1 / xp.where(is_told, upper[k, k], 1), 0)
        for other in range(k + 1, n):
            upper[k, other] = inverse * (matrices[k, other] - sum(upper[m, k] * upper[m, other] for m in range(k)))
    return xp.stack([upper[pair] for pair in pairs(n)])


def noise_basis(A: Operator, paths: Array, information: Array, basis: Basis = "whitened") -> NDArray[np.float64]:
    """Return T, (n_materials, n_materials): what concentrations, g/cm3, one noise of each channel of z is.

    Channels of z are independent and have unit noise, so that T T' is the covariance of a voxel's concentrations, were
    all other voxels known: the inverse of the information that all rays have of it. Rays count by how much matter they
    pass, in units of its noise, since it is there that the noise matters.

    Parameters
    ----------
    A : Operator
        From (n_materials, z, y, x) to (n_materials, n_views, rows, cols).
    paths : (n_materials, n_views, rows, cols) float, mm g/cm3
    information : (n_pairs, n_views, rows, cols) float
        F, packed as `reconstruction.symmetric` has it; 0 where a ray is not to count.
    basis : str
        "materials": T is diagonal instead, the noise of each material.
    """
    xp = namespace(paths)
    is_known = xp.isfinite(information).all(0) & (information != 0).any(0) & xp.isfinite(paths).all(0)
    known, there = xp.where(is_known, information, 0), xp.where(is_known, paths, 0)
    plain = unpacked(np.array([float(f.mean(dtype=xp.float64)) for f in known]))
    matter = xp.sqrt(xp.maximum((there * channels_mixed(there, plain)).sum(0), 0))
    total = float(matter.sum(dtype=xp.float64))
    if not total > 0:
        raise WrongUsage("no ray that counts passes any matter; allowed: paths of an object, and information above 0")
    weighed = np.array([float((f * matter).sum(dtype=xp.float64)) for f in known])
    mean = data_curvature(A, None, paths) / total * unpacked(weighed)
    values, vectors = np.linalg.eigh(mean)
    if not values[0] > 0:
        raise WrongUsage(
            "the rays cannot tell the materials apart: their information has no inverse", hint="name fewer materials"
        )
    T = vectors[:, ::-1] / np.sqrt(values[::-1])
    return T if basis == "whitened" else np.diag(np.sqrt((T * T).sum(axis=1)))


def weighted(
    A: Operator,
    paths: Array,
    information: Array,
    *,
    prior: str | None = "tnv",
    strength: float | None = None,
    basis: Basis | None = None,
    method: Method = "fista",
    start: Array | None = None,
    reference: Array | None = None,
    is_non_negative: bool | Sequence[bool] = False,
    n_iterations: int = 30,
    n_subsets: int = 8,
    n_prox_iterations: int = 5,
) -> Generator[Iterate, None, None]:
    """Yield concentrations, from iteration to iteration nearer to the paths and likelier.

    Parameters
    ----------
    A : Operator
        From (n_materials, z, y, x) to (n_materials, n_views, rows, cols): a `Projector` of any scan, here or on a GPU.
    paths : (n_materials, n_views, rows, cols) float, mm g/cm3
    information : (n_pairs, n_views, rows, cols) float, per (mm g/cm3)^2
        Of each ray, packed as `reconstruction.symmetric` has it; 0, or no number, where a ray is not to count.
    prior : str or None
        A name of `strength.STRENGTHS`. None: conjugate gradients, which are stopped before they fit the noise.
    strength : float, optional
        In units of the noise; None: the default of this prior.
    basis : str, optional
        Which channels the prior sees: those of z ("whitened"), or the materials, over the noise of each. None:
        whitened where it couples channels, otherwise materials.
    start : (n_materials, z, y, x) float, g/cm3, optional
        Filtered back-projection of the paths, for one; None: 0.
    reference : (z, y, x) float, optional
        Image of the directional prior.
    is_non_negative : bool or one for each material
        Allow no concentration below 0; takes a prior.
    n_subsets : int
        To begin with; an iteration goes through all views.

    Yields
    ------
    Iterate
        Its volume is in g/cm3 and the caller's; residual and objective are in units of the noise.
    """
    paths = as_data(A, paths)
    n, xp = len(paths), namespace(paths)
    if information.shape != (packed_size(n), *paths.shape[1:]):
        raise WrongUsage(
            f"the information has shape {information.shape}; allowed: {(packed_size(n), *paths.shape[1:])}"
        )
    floors = [is_non_negative] * n if isinstance(is_non_negative, bool) else list(is_non_negative)
    if len(floors) != n or (any(floors) and prior is None):
        raise WrongUsage(f"is_non_negative is {is_non_negative} for {n} materials; allowed: one each, and with a prior")
    if basis is None:
        basis = "whitened" if prior in COUPLED or prior is None else "materials"
    T = noise_basis(A, paths, information)
    inverse = np.linalg.inv(T)
    roots = ray_roots(information, T, paths.dtype)
    roots = xp.where(xp.isfinite(paths).all(0), roots, 0)
    data = channels_mixed(xp.where(xp.isfinite(paths), paths, 0), inverse)
    mix(data, roots)
    B = RayMixing(A, roots)
    options = {"start": None if start is None else channels_mixed(start, inverse), "n_iterations": n_iterations}
    if prior is None:
        iterates = cgls(B, data, **options)
    else:
        unit = data_curvature(B, None, data)  # by which the methods multiply a prior
        penalty = prior_in_noise(
            prior,
            strength,
            np.ones(n),
            n_directions=n_directions(A.domain_shape),
            reference=reference,
            divided_by=unit,
        )
        if isinstance(penalty, DifferencePrior) and (basis == "materials" or any(floors)):
            mixing = T / np.sqrt((T * T).sum(1, keepdims=True)) if basis == "materials" else np.eye(n)
            penalty = MixedPrior(prior=penalty, mixing=mixing, rows=T[floors] if any(floors) else None)
        run = {"fista": fista, "pdhg": pdhg}[method]
        iterates = run(
            B,
            data,
            penalty,
            n_subsets=n_subsets,
            n_prox_iterations=n_prox_iterations,
            is_non_negative=False,
            **options,
        )
    is_floored = np.flatnonzero(floors)
    for iterate in iterates:
        volume = channels_mixed(iterate.volume, T)
        for material in is_floored:  # what inner steps have left below
            xp.maximum(volume[material], 0, out=volume[material])
        yield iterate._replace(volume=volume, channel_residuals=())
