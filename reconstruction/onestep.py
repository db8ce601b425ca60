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

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from firmware_iface.errors import WrongUsage
from reconstruction import backend
from reconstruction.backend import Array
from reconstruction.kernels.onestep_plain import Nodes, Rays, quadratic_slopes
from reconstruction.methods.iterates import Iterate
from reconstruction.methods.joint_surrogates import JointLoss, Penalty, descend_jointly, kernels
from reconstruction.methods.subsets import Order
from reconstruction.operators import Operator
from reconstruction.priors import DifferencePrior, Prior, VectorialTotalVariation
from reconstruction.spectral.model import SpectralModel
from reconstruction.spectral.ray_fit import fit_rays
from reconstruction.spectral.strength import COUPLED, n_directions, prior_in_noise
from reconstruction.spectral.weighted import Basis, channels_mixed, noise_basis
from reconstruction.symmetric import packed_size, place

ROUND_CORNER = 0.2
"""Of a prior with a sharp tip, in units of the noise."""
SAMPLED_VIEWS = 16
WIDTHS = 3.0
"""How many times the spread of all paths the prior of a ray's is wide, where rays are fitted by themselves for a start:
hardly felt, and far-away solutions are kept out."""


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

    def mix(self, T: NDArray[np.floating]) -> None:
        """Take paths of channels from now on, of which T, (n_materials, n_channels), makes the materials."""
        attenuation = self.nodes.attenuation
        xp = backend.namespace(attenuation)
        self.nodes = self.nodes._replace(
            attenuation=xp.ascontiguousarray(attenuation @ xp.asarray(T, attenuation.dtype))
        )

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
    prior: str | Prior | None = None,
    strength: float | None = None,
    basis: Basis | None = None,
    reference: Array | None = None,
    is_non_negative: bool = False,
    n_iterations: int = 20,
    n_subsets: int = 8,
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
        Best a compressed one (`reconstruction.spectral.compression`): the time of rays goes with its nodes.
    open_counts, background : arrays that fit the counts, or one value per bin
        Counts without the object; scatter and dark counts.
    weights : array that fits the counts, or their last axes, optional
        What each ray counts for: 0 leaves it out.
    start : (n_materials, z, y, x) float, optional
        g/cm3, as two steps make it; None: some iterations of least squares from paths that are fitted ray by ray, which
        are yielded too.
    prior : str or Prior, optional
        A name of `strength.STRENGTHS`; or a prior, taken as it is, of channels in units of their noise. Sharp tips are
        rounded.
    strength : float, optional
        Of a prior by name, in units of the noise; None: the default of this prior.
    basis : str, optional
        Which channels the prior sees, see `weighted.noise_basis`. None: whitened where it couples channels, otherwise
        materials; always materials where they are to be non-negative.
    reference : (z, y, x) float, optional
        Image of the directional prior.
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
    if A.domain_shape[0] != len(model.materials):
        raise WrongUsage(f"{A} has {A.domain_shape[0]} channels; allowed: one for each of {', '.join(model.materials)}")
    if counts.shape[1:] != A.range_shape[1:]:
        raise WrongUsage(f"the counts have shape {counts.shape}; allowed: (n_bins, {str(A.range_shape[1:])[1:]}")
    if start is not None and start.shape != A.domain_shape:
        raise WrongUsage(f"the start has shape {start.shape}; allowed: {A.domain_shape}")
    loss = SpectralLoss(counts, model, open_counts=open_counts, background=background, weights=weights, dtype=dtype)
    if start is None or not float((start != 0).any()):  # nothing is no object to tell the noise by
        paths = _fitted_paths(counts, model, open_counts, background, dtype)
    else:
        paths = A.forward(xp.asarray(start, dtype))
    flat = paths.reshape(*paths.shape[:2], -1)
    information = xp.empty((packed_size(len(flat)), *flat.shape[1:]), dtype)
    loss.curvature(information, flat)
    T = _channels(A, paths, information, prior, basis, is_non_negative)
    inverse = np.linalg.inv(T)
    loss.mix(T)
    z = xp.zeros(A.domain_shape, dtype) if start is None else channels_mixed(xp.asarray(start, dtype), inverse)
    options: dict[str, Any] = {
        "penalty": None if prior is None else _Rounded(prior, strength, reference, z),
        "n_subsets": n_subsets,
        "order": order,
        "has_momentum": has_momentum,
        "is_non_negative": is_non_negative,
    }
    losses: list[tuple[JointLoss, int]] = [(loss, n_iterations)]
    if start is None:
        loss.curvature(information, flat := channels_mixed(flat, inverse))
        n_weighted = min(n_weighted, n_iterations)
        losses = [(FittedLoss(flat, information), n_weighted), (loss, n_iterations - n_weighted)]
    done = 0
    for part, n in losses:
        for iterate in descend_jointly(A, part, z, n_iterations=n, **options):
            yield iterate._replace(number=done + iterate.number, volume=channels_mixed(z, T))
        done += n


def _channels(
    A: Operator, paths: Array, information: Array, prior: str | Prior | None, basis: Basis | None, is_floored: bool
) -> NDArray[np.float64]:
    """Return T, (n_materials, n_materials): the concentrations, g/cm3, that one noise of each channel is."""
    if prior is None:
        means = np.array([float(row.mean()) for row in information])
        diagonal = np.array([means[place(k, k, len(paths))] for k in range(len(paths))])
        if not diagonal.min() > 0:
            raise WrongUsage("there is nothing to reconstruct from: no ray with a weight meets the volume")
        return np.diag(1 / np.sqrt(diagonal))
    if is_floored:
        if basis == "whitened":
            raise WrongUsage("whitened channels cannot be non-negative", hint='say basis="materials"')
        basis = "materials"
    if basis is None:
        basis = "whitened" if prior in COUPLED or isinstance(prior, VectorialTotalVariation) else "materials"
    return noise_basis(A, paths, information.reshape(-1, *paths.shape[1:]), basis)


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
        fitted = (n_bins, n_views, *shape[2:])
        if array.shape != fitted:  # what is broadcast is read-only, and kernels are compiled for that by themselves
            array = xp.broadcast_to(array, fitted)
        np.broadcast_shapes(array.shape, shape)
    except ValueError as error:
        raise WrongUsage(f"the {name} have shape {array.shape}; allowed: what fits counts of {shape}") from error
    array = xp.ascontiguousarray(array.reshape(n_bins, n_views, n_rays))
    lowest = float(array.min())
    if not lowest >= 0:
        raise WrongUsage(f"the lowest of the {name} is {lowest}; allowed: 0 and more")
    return array


def _fitted_paths(
    counts: Array, model: SpectralModel, open_counts: ArrayLike | Array, background: ArrayLike | Array, dtype: Any
) -> Array:
    """Return the paths of each ray by itself, (n_materials, n_views, rows, cols), where the counts are.

    Of some rays first, which tell how wide a prior has to be that keeps the others from far-away solutions.
    """
    measured, opened, added = (backend.to_host(term) for term in (counts, open_counts, background))
    few = (slice(None), slice(None, None, max(measured.shape[1] // SAMPLED_VIEWS, 1)))
    some = [term[few] if np.ndim(term) > 1 and np.shape(term)[1] > 1 else term for term in (measured, opened, added)]
    sample = fit_rays(some[0], some[1], model, background=some[2])
    middle, width = np.zeros(len(sample.paths)), np.zeros(len(sample.paths))
    for k, values in enumerate(sample.paths.reshape(len(sample.paths), -1)):
        low, middle[k], high = np.nanquantile(values, (0.05, 0.5, 0.95))
        width[k] = high - low
    prior_sd = WIDTHS * np.maximum(width, 1e-3 * width.max())
    fit = fit_rays(measured, opened, model, background=added, prior_sd=prior_sd, prior_mean=middle)
    return backend.namespace(counts).asarray(np.nan_to_num(fit.paths), dtype)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoundPrior(DifferencePrior):
    """A prior with a sharp tip, made round below a corner: its Moreau envelope, which has a gradient.

    Attributes
    ----------
    sharp : DifferencePrior
    corner_relative : float
        Norm of the differences, in units of their noise, up to which it is quadratic.
    noise_per_mm : tuple of float
    """

    sharp: DifferencePrior
    corner_relative: float
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
        return self.corner_relative

    def tangent(self, shape: tuple[int, ...]) -> NDArray[np.floating] | None:
        """Return those of the sharp prior."""
        return self.sharp.tangent(shape)


class _Rounded(Penalty):
    """A prior of channels in units of their noise, as a smooth penalty."""

    def __init__(self, prior: str | Prior, strength: float | None, reference: Array | None, like: Array) -> None:
        n = len(like)
        made: Any = prior
        if isinstance(prior, str):
            directions = n_directions(like.shape)
            made = prior_in_noise(prior, strength, np.ones(n), n_directions=directions, reference=reference)
        if isinstance(made, DifferencePrior) and made.corner_of_norm == 0:
            made = RoundPrior(sharp=made, corner_relative=ROUND_CORNER, noise_per_mm=made.noise_per_mm)
        self._prepared = made.prepare(like)
        self._gradient = getattr(self._prepared, "gradient", made.gradient)
        self._curvature = np.full(n, made.curvature(like))

    def value(self, x: Array) -> float:
        """Return its value."""
        return self._prepared.value(x)

    def gradient(self, x: Array) -> Array:
        """Return its gradient."""
        return self._gradient(x)

    @property
    def curvature(self) -> NDArray[np.float64]:
        """A bound of its curvature in each channel."""
        return self._curvature
