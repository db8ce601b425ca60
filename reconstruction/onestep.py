"""materials: `(n_materials, z, y, x) float32`, g/cm3, from the counts of all bins at once.

The most likely volume of all is sought: minus the log likelihood of Poisson counts behind `SpectralModel(A x)`, plus a
prior. So noise is weighed as it is in every ray and bin, rays of few photons included, and a joint prior sees materials
instead of their anticorrelated mixtures. It starts from a volume that two steps made (paths by `spectral.ray_fit`, then
back-projection), or makes one of weighted least squares by itself.

# Ref: one step by separable surrogates: Weidinger et al. 2016, Int. J. Biomed. Imaging, 5871604; with ordered subsets
#      and momentum: Mechlem et al. 2018, IEEE Trans. Med. Imaging 37, 68; beside others: Mory et al. 2018, Phys. Med.
#      Biol. 63, 235001. Least squares of paths with a K x K weight as the likelihood's quadratic: Roessl and Herrmann
#      2009, Phys. Med. Biol. 54, 1307.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from firmware_iface.errors import WrongUsage
from reconstruction import backend
from reconstruction.backend import Array
from reconstruction.kernels.onestep_plain import Nodes, Rays, packed_size, quadratic_slopes
from reconstruction.methods.iterates import Iterate
from reconstruction.methods.joint_surrogates import JointLoss, Penalty, descend_jointly, kernels
from reconstruction.methods.subsets import Order
from reconstruction.operators import Operator
from reconstruction.priors import DifferencePrior, Prior
from reconstruction.spectral.model import SpectralModel

ROUND_SHARE = 0.2
"""Corner of a prior with a sharp tip, over the noise of the channels."""
SIGNS_SEED = 0

PriorOfNoise = Callable[[NDArray[np.float64]], Prior]
"""Makes a prior for the noise of each material, (n_materials,) g/cm3."""


class SpectralLoss(JointLoss):
    """Minus the log likelihood of the counts of all bins behind the materials, less its least possible value.

    Parameters
    ----------
    counts : (n_bins, n_views, rows, cols) float
        NaN where a pixel tells nothing.
    model : SpectralModel
    open_counts, background : arrays that fit the counts, or one value per bin
        Counts without the object; scatter and dark counts.
    weights : array that fits the counts, or their last axes, optional
        What each ray counts for: 0 leaves it out.
    """

    def __init__(
        self,
        counts: Array,
        model: SpectralModel,
        *,
        open_counts: ArrayLike | Array,
        background: ArrayLike | Array = 0.0,
        weights: ArrayLike | Array | None = None,
        dtype: Any = np.float32,
    ) -> None:
        xp = backend.namespace(counts)
        shape = counts.shape
        if len(shape) < 3 or shape[0] != len(model.bins):
            raise WrongUsage(f"the counts have shape {shape}; allowed: {len(model.bins)} bins, (n_bins, n_views, ...)")
        is_known = xp.isfinite(counts)
        shares = xp.asarray(1.0 if weights is None else weights, dtype)
        if float(is_known.all()) < 1:
            counts, shares = xp.where(is_known, counts, 0), shares * is_known
        self._rays = Rays(
            *(
                _fitted_to(counts, term, name, dtype)
                for term, name in (
                    (counts, "counts"),
                    (open_counts, "open counts"),
                    (background, "background"),
                    (shares, "weights"),
                )
            )
        )
        self.nodes = Nodes(
            xp.ascontiguousarray(xp.asarray(model.weights, dtype)),
            xp.ascontiguousarray(xp.asarray(model.attenuation_per_mm_per_g_cm3, dtype)),
        )
        self._kernels = kernels(self._rays.counts)

    def curvature(self, out: Array, projected: Array) -> None:
        """Fill `out` with Fisher's information of each ray's paths."""
        self._kernels.curvature(out, projected, self._rays, self.nodes)

    def slope(self, projected: Array, views: slice) -> tuple[float, float]:
        """Overwrite paths by slopes; return half the deviance, and Pearson's chi square."""
        return self._kernels.slopes(projected, self._rays, self.nodes, views)


class FittedLoss(JointLoss):
    """Half the squared distance from paths that were fitted ray by ray, in units of their own covariance.

    Parameters
    ----------
    fitted : (n_materials, n_views, n_rays) float
    information : (packed, n_views, n_rays) float
        Inverse of each ray's covariance.
    """

    def __init__(self, fitted: Array, information: Array) -> None:
        self._fitted, self._information = fitted, information

    def curvature(self, out: Array, projected: Array) -> None:  # noqa: ARG002 - it is the same everywhere
        """Fill `out` with the information."""
        out[...] = self._information

    def slope(self, projected: Array, views: slice) -> tuple[float, float]:
        """Overwrite paths by slopes; return half the squared distance, and the whole."""
        squared = quadratic_slopes(projected, self._fitted[:, views], self._information[:, views])
        return squared / 2, squared


def one_step(
    A: Operator,
    counts: Array,
    model: SpectralModel,
    *,
    open_counts: ArrayLike | Array,
    background: ArrayLike | Array = 0.0,
    weights: ArrayLike | Array | None = None,
    start: Array | None = None,
    prior: Prior | PriorOfNoise | None = None,
    is_non_negative: bool = False,
    n_iterations: int = 20,
    n_subsets: int = 4,
    order: Order = "bit-reversal",
    has_momentum: bool = True,
    n_weighted: int = 3,
) -> Generator[Iterate, None, None]:
    """Reconstruct the concentrations of all materials from the counts of all bins.

    Parameters
    ----------
    A : Operator
        One channel per material, all along the same rays: a `Projector` of this many channels.
    counts : (n_bins, n_views, rows, cols) float
        On the host or on the device, where `A` is. NaN where a pixel tells nothing.
    model : SpectralModel
    open_counts, background : arrays that fit the counts, or one value per bin
        Counts without the object; scatter and dark counts.
    weights : array that fits the counts, or their last axes, optional
        What each ray counts for: 0 leaves it out.
    start : (n_materials, z, y, x) float, optional
        g/cm3; None: some iterations of least squares from paths that are fitted ray by ray, which are yielded too.
    prior : Prior, or function of the noise that returns one, optional
        Of the volume in g/cm3. The noise is that of each material in one voxel, as the curvature of the likelihood has
        it; a prior that is told of no noise takes this one. Sharp tips are rounded.
    is_non_negative : bool
        Allow no concentration below 0. It biases means where there is little of a material.
    n_subsets : int
        To begin with; see `joint_surrogates` for when they are halved.
    n_weighted : int
        How many of the iterations are least squares, where there is no start.

    Yields
    ------
    Iterate
        The residual is the root of Pearson's chi square; the objective, half the deviance and the prior.
    """
    xp = backend.namespace(counts)
    dtype: Any = getattr(A, "dtype", counts.dtype)
    if A.n_channels != len(model.materials):
        raise WrongUsage(f"{A} has {A.n_channels} channels; allowed: one for each of {', '.join(model.materials)}")
    if counts.shape[1:] != A.range_shape[1:]:
        raise WrongUsage(f"the counts have shape {counts.shape}; allowed: (n_bins, {str(A.range_shape[1:])[1:]}")
    loss = SpectralLoss(counts, model, open_counts=open_counts, background=background, weights=weights, dtype=dtype)
    is_fitted = start is None
    x = xp.zeros(A.domain_shape, dtype) if start is None else xp.array(start, dtype)
    if x.shape != A.domain_shape:
        raise WrongUsage(f"the start has shape {x.shape}; allowed: {A.domain_shape}")
    if is_fitted:
        paths = _fit(counts, model, open_counts, background, dtype)
    else:
        projected = A.forward(x)
        paths = projected.reshape(*projected.shape[:2], -1)
    information = xp.empty((packed_size(len(x)), *paths.shape[1:]), dtype)
    loss.curvature(information, paths)
    penalty = None if prior is None else _ScaledPrior(prior, _voxel_noise(A, information), x)
    options: dict[str, Any] = {
        "penalty": penalty,
        "n_subsets": n_subsets,
        "order": order,
        "has_momentum": has_momentum,
        "is_non_negative": is_non_negative,
    }
    done = 0
    if is_fitted:
        for iterate in descend_jointly(
            A, FittedLoss(paths, information), x, n_iterations=min(n_weighted, n_iterations), **options
        ):
            done = iterate.number
            yield iterate
    for iterate in descend_jointly(A, loss, x, n_iterations=n_iterations - done, **options):
        yield iterate._replace(number=done + iterate.number)


def _fitted_to(counts: Array, term: ArrayLike | Array, name: str, dtype: Any) -> Array:
    """Return a term as (n_bins or 1, n_views or 1, n_rays), contiguous, where the counts are."""
    xp, shape = backend.namespace(counts), counts.shape
    array = xp.asarray(term, dtype)
    n_rays = int(np.prod(shape[2:]))
    if array.ndim == 1 and array.shape[0] == shape[0]:
        array = array.reshape(-1, *(1,) * (len(shape) - 1))
    array = array.reshape((1,) * (len(shape) - array.ndim) + array.shape)
    n_bins, n_views = array.shape[:2]
    if name != "weights":
        n_bins = shape[0]
    if name == "counts":
        n_views = shape[1]
    try:
        array = xp.broadcast_to(array, (n_bins, n_views, *shape[2:]))
        np.broadcast_shapes(array.shape, shape)
    except ValueError as error:
        raise WrongUsage(f"the {name} have shape {array.shape}; allowed: what fits counts of {shape}") from error
    array = xp.ascontiguousarray(array.reshape(n_bins, n_views, n_rays))
    lowest = float(array.min())
    if not lowest >= 0:
        raise WrongUsage(f"the lowest of the {name} is {lowest}; allowed: 0 and more")
    return array


def _fit(
    counts: Array, model: SpectralModel, open_counts: ArrayLike | Array, background: ArrayLike | Array, dtype: Any
) -> Array:
    """Return the paths of each ray by itself, (n_materials, n_views, n_rays), where the counts are."""
    from reconstruction.spectral.ray_fit import fit_rays

    fit = fit_rays(backend.to_host(counts), backend.to_host(open_counts), model, background=backend.to_host(background))
    paths = backend.namespace(counts).asarray(np.nan_to_num(fit.paths), dtype)
    return paths.reshape(*paths.shape[:2], -1)


def _voxel_noise(A: Operator, information: Array) -> NDArray[np.float64]:
    """Return the standard deviation of each channel in one voxel that the curvature of the data allows, (n_channels,).

    The mean block on the diagonal of A^T F A, by projections of random signs, inverted.
    """
    xp = backend.namespace(information)
    n = A.n_channels
    signs = np.random.default_rng(SIGNS_SEED).integers(0, 2, A.domain_shape, dtype=np.int8) * 2 - 1
    projected = A.forward(xp.asarray(signs.astype(np.dtype(str(information.dtype)))))
    squares = (projected * projected).mean(axis=0).reshape(information.shape[1:])
    sums = backend.to_host((information * squares).reshape(len(information), -1).sum(axis=1, dtype=xp.float64))
    mean = np.empty((n, n))
    for i in range(n):
        for j in range(i + 1):
            mean[i, j] = mean[j, i] = sums[i * (i + 1) // 2 + j] / np.prod(A.domain_shape[1:])
    scale = np.sqrt(mean.diagonal())
    inverse = np.linalg.pinv(mean / np.outer(scale, scale), hermitian=True)
    return np.sqrt(inverse.diagonal()) / scale


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rounded(DifferencePrior):
    """A prior with a sharp tip, made round below a corner: its Moreau envelope, which has a gradient.

    Attributes
    ----------
    sharp : DifferencePrior
    corner : float
        Norm of the differences up to which it is quadratic.
    noise_per_mm : tuple of float
    """

    sharp: DifferencePrior
    corner: float
    noise_per_mm: tuple[float, ...] = ()

    @property
    def ball(self) -> int:
        """Of the dual variable."""
        return self.sharp.ball

    @property
    def strength_of_norm(self) -> float:
        """What the norm is multiplied by."""
        return self.sharp.strength_of_norm

    @property
    def corner_of_norm(self) -> float:
        """Below this the norm is quadratic."""
        return self.corner

    def tangent(self, shape: tuple[int, ...]) -> NDArray[np.floating] | None:
        """Return those of the sharp prior."""
        return self.sharp.tangent(shape)


class _ScaledPrior(Penalty):
    """A prior times the curvature of the data where each material's noise is 1."""

    def __init__(self, prior: Prior | PriorOfNoise, noise: NDArray[np.float64], like: Array) -> None:
        made: Any = prior if isinstance(prior, Prior) else prior(noise)
        if not made.noise_per_mm:
            made = replace(made, noise_per_mm=tuple(noise.tolist()))
        if isinstance(made, DifferencePrior) and made.corner_of_norm == 0:
            made = Rounded(sharp=made, corner=ROUND_SHARE * float(noise.mean()), noise_per_mm=made.noise_per_mm)
        told = np.asarray(made.noise_per_mm)
        weights = told.mean() / told
        self._scale = float(np.mean(1 / (weights * noise) ** 2))
        self._prepared = made.prepare(like)
        self._gradient = getattr(self._prepared, "gradient", made.gradient)
        self._curvature = self._scale * made.curvature(like) * weights**2 / (weights**2).max()

    def value(self, x: Array) -> float:
        """Return its value."""
        return self._scale * self._prepared.value(x)

    def gradient(self, x: Array) -> Array:
        """Return its gradient."""
        gradient = self._gradient(x)
        gradient *= self._scale
        return gradient

    @property
    def curvature(self) -> NDArray[np.float64]:
        """A bound of its curvature in each channel."""
        return self._curvature
