"""Each ray by itself: from the counts of its bins to its paths through the materials, with their Cramer-Rao bounds.

The paths maximise the likelihood of Poisson counts under the whole response, times a wide normal prior where one is
given. Without a prior the best solution of some noisy rays lies far from the truth (0.3 % of them at 100 counts per bin
with three materials), and these alone spoil an image; a prior some times wider than the noise takes them away.

Where photons count more than once, bins vary together (`SpectralModel.co_weights`). The likelihood of such counts is
not known, but their mean and covariance are: the Poisson fit is then the start of one by `quasi_likelihood`.

# Ref: maximum likelihood of spectral counts per ray: Roessl and Proksa 2007, Phys. Med. Biol. 52, 4679; Schlomka et al.
#      2008, Phys. Med. Biol. 53, 4031; its bound: Roessl and Herrmann 2009, Phys. Med. Biol. 54, 1307.
# Ref: Pearson's chi square: Pearson 1900, Phil. Mag. 50, 157.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.special import gammaincc

from firmware_iface.errors import WrongUsage
from reconstruction.kernels import ray_fit_cpu
from reconstruction.kernels.threads import in_threads
from reconstruction.spectral.model import SpectralModel
from reconstruction.spectral.quasi_likelihood import refine
from reconstruction.symmetric import inverse_packed, packed_size, place, unpacked

N_ITERATIONS = 60
TOLERANCE = 1e-4
"""A ray ends when its next step promises to gain less log-likelihood: then it is within 0.014 standard errors."""
RAYS_PER_TASK = 8192
NEIGHBOURS = 3
"""Rows and columns of pixels around a ray, itself in the middle."""
_N_SAMPLED = 256
_DARKEST = 1e-7


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RayFit:
    """The paths of every ray, and how well its counts tell them.

    Attributes
    ----------
    paths : (n_materials, ...) float32, mm g/cm3
        NaN where no bin was measured.
    information : (n_materials (n_materials + 1) / 2, ...) float32
        Fisher information of the counts alone, without a prior, at the paths: the rows of its upper triangle one after
        another (11, 12, 13, 22, 23, 33).
    chi_square : (...) float32
        Misfit of the counts; its mean is `n_degrees` where the model holds.
    n_degrees : (...) int8
        Bins that were measured, less the materials.
    n_iterations : (...) uint8
        How often the counts were evaluated.
    is_converged : (...) bool
    """

    paths: NDArray[np.float32]
    information: NDArray[np.float32]
    chi_square: NDArray[np.float32]
    n_degrees: NDArray[np.int8]
    n_iterations: NDArray[np.uint8]
    is_converged: NDArray[np.bool_]

    def __post_init__(self) -> None:
        n, shape = len(self.paths), self.paths.shape[1:]
        if self.information.shape != (packed_size(n), *shape) or self.chi_square.shape != shape:
            raise ValueError(
                f"paths {self.paths.shape}, information {self.information.shape}, chi square {self.chi_square.shape}; "
                f"allowed: (n_materials, ...), {(packed_size(n), *shape)} and {shape}"
            )

    @property
    def covariance(self) -> NDArray[np.float32]:
        """The Cramer-Rao bound, packed like `information`; infinite where the counts do not tell all paths."""
        return inverse_packed(self.information)

    @property
    def sigma(self) -> NDArray[np.float32]:
        """Standard error of each path by the Cramer-Rao bound: (n_materials, ...) float32, mm g/cm3."""
        n = len(self.paths)
        return np.sqrt(self.covariance[[place(k, k, n) for k in range(n)]])

    @property
    def chance(self) -> NDArray[np.float64]:
        """How often noise alone makes a misfit this large: (...) float64, NaN without degrees of freedom.

        Even over 0 to 1 where the model holds and counts are some tens; near 0 where it does not.
        """
        degrees = np.where(self.n_degrees > 0, self.n_degrees, np.nan)
        return gammaincc(degrees / 2, np.maximum(self.chi_square, 0) / 2)


def fit_rays(
    counts: NDArray[np.floating] | NDArray[np.integer],
    open_counts: ArrayLike,
    model: SpectralModel,
    *,
    prior_sd: ArrayLike | None = None,
    prior_mean: ArrayLike | None = None,
    start: NDArray[np.floating] | None = None,
    n_iterations: int = N_ITERATIONS,
    background: ArrayLike | None = None,
) -> RayFit:
    """Fit the paths of every ray to its counts.

    Parameters
    ----------
    counts : (n_bins, ...) float or int
        NaN: this bin of this ray was not measured, or is saturated; the ray is fitted to its others.
    open_counts : (n_bins, ...) or (n_bins,) float
        Without an object. 0 or NaN: the bin was not measured there.
    model : SpectralModel
        Best a compressed one (`reconstruction.spectral.compression`): the time goes with its nodes.
    prior_sd : (n_materials,) float, optional, mm g/cm3
        Standard deviation of a normal prior of each path; infinite: none. None: no prior at all. `weak_prior_sd` gives
        a good one.
    prior_mean : (n_materials,) or (n_materials, ...) float, optional, mm g/cm3
        Its middle. None: 0.
    start : (n_materials, ...) float, optional, mm g/cm3
        None: what a single material would be whose counts add up to the same; NaN: likewise for this ray.
    n_iterations : int
        Most evaluations of a ray.
    background : (n_bins, ...) or (n_bins,) float, optional
        Expected counts that no object attenuates: dark counts, scatter.

    Raises
    ------
    WrongUsage
        Shapes do not match the model, or there are more materials than bins without a prior.
    """
    n_bins, n_materials = len(model.bins), len(model.materials)
    if np.ndim(counts) < 1 or len(counts) != n_bins:
        raise WrongUsage(f"counts of shape {np.shape(counts)}; allowed: ({n_bins}, ...), the bins of the model")
    shape = np.shape(counts)[1:]
    if not 1 <= n_iterations <= 255:
        raise WrongUsage(f"n_iterations is {n_iterations}; allowed: 1 to 255")
    information = _prior_information(prior_sd, n_materials)
    if n_materials > n_bins and not (information > 0).all():
        raise WrongUsage(
            f"{n_materials} materials from {n_bins} bins; allowed: no more materials than bins",
            hint="leave materials out, or state prior_sd",
        )
    rays = _Rays(
        measured=np.array(counts, dtype=np.float32, order="C").reshape(n_bins, math.prod(shape)),
        opened=_of_rays(open_counts, n_bins, shape, "open_counts"),
        added=_of_rays(0.0 if background is None else background, n_bins, shape, "background"),
    )
    mean = _of_rays(0.0 if prior_mean is None else prior_mean, n_materials, shape, "prior_mean").astype(np.float64)
    begin = _of_rays(np.nan if start is None else start, n_materials, shape, "start").astype(np.float64)
    n_rays = rays.measured.shape[1]
    paths = np.empty((n_materials, n_rays), np.float32)
    packed = np.empty((packed_size(n_materials), n_rays), np.float32)
    chi_square, n_degrees = np.empty(n_rays, np.float32), np.empty(n_rays, np.int8)
    rounds, is_converged = np.empty(n_rays, np.uint8), np.empty(n_rays, np.bool_)
    measured = rays.measured, rays.opened, rays.added
    given = *measured, begin, _guesses(rays, model), mean, information, *kernel_forms(model), n_iterations, TOLERANCE
    filled = paths, packed, chi_square, n_degrees, rounds, is_converged
    ranges = [(first, min(first + RAYS_PER_TASK, n_rays)) for first in range(0, n_rays, RAYS_PER_TASK)]
    in_threads(ray_fit_cpu.fit, [(*given, *filled, first, end) for first, end in ranges])
    if model.co_weights is not None:
        means = np.broadcast_to(mean, paths.shape)
        each = [(rays.only(np.arange(*r)), means[:, slice(*r)], [f[..., slice(*r)] for f in filled]) for r in ranges]
        in_threads(_refine, [(model, information, *task) for task in each])
    return RayFit(
        paths=paths.reshape(n_materials, *shape),
        information=packed.reshape(len(packed), *shape),
        chi_square=chi_square.reshape(shape),
        n_degrees=n_degrees.reshape(shape),
        n_iterations=rounds.reshape(shape),
        is_converged=is_converged.reshape(shape),
    )


def steady_information(
    fit: RayFit,
    counts: NDArray[np.floating],
    open_counts: ArrayLike,
    model: SpectralModel,
    *,
    background: ArrayLike | None = None,
) -> NDArray[np.float32]:
    """Return what the counts of each ray tell, as if its paths were the mean of its neighbours': weights of rays.

    The information at a ray's own paths goes with its noise: too short a path seems to be known better. Weights by it
    pull a volume to one side, by six per cent in dense bone at few counts (`tests/benchmarks/mars_phantoms.py`).

    Parameters
    ----------
    fit : RayFit
        Of (n_views, rows, cols) rays.
    counts, open_counts, background
        As given to `fit_rays`.

    Returns
    -------
    information : (n_materials (n_materials + 1) / 2, n_views, rows, cols) float32
        Packed like that of the fit, which it is where bins vary together (`SpectralModel.co_weights`).
    """
    if model.co_weights is not None:
        return fit.information
    around = ndimage.uniform_filter(np.nan_to_num(fit.paths), size=NEIGHBOURS, mode="nearest", axes=(-2, -1))
    return fit_rays(counts, open_counts, model, start=around, n_iterations=1, background=background).information


def weak_prior_sd(
    model: SpectralModel, open_counts: ArrayLike, typical_paths: ArrayLike, *, times: float = 5.0
) -> NDArray[np.float64]:
    """Return a prior some times as wide as a typical ray's standard errors: (n_materials,) float64, mm g/cm3.

    The material that most of the ray is made of gets none.

    Parameters
    ----------
    open_counts : (n_bins,) float
        Of a typical pixel.
    typical_paths : (n_materials,) float, mm g/cm3
        Of a ray through the middle of the object.

    Raises
    ------
    WrongUsage
        The bins do not tell the materials apart.
    """
    paths = np.asarray(typical_paths, dtype=np.float64)
    rows, columns = np.triu_indices(len(paths))
    bound = unpacked(inverse_packed(model.fisher(paths, open_counts)[rows, columns]))
    if not np.isfinite(bound).all():
        raise WrongUsage(
            f"{len(model.bins)} bins do not tell {', '.join(model.materials)} apart",
            hint="leave a material out, or set other thresholds",
        )
    sd = times * np.sqrt(np.diag(bound))
    sd[np.argmax(paths * (model.attenuation_per_mm_per_g_cm3.T @ model.weights.mean(axis=0)))] = np.inf
    return sd


def kernel_forms(
    model: SpectralModel,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Return exponents, coefficients, first and last nodes of each bin as `ray_fit_cpu.fit` takes them."""
    width = ray_fit_cpu.NODES_AT_ONCE
    n_nodes = -(-model.weights.shape[1] // width) * width
    attenuation = np.zeros((n_nodes, len(model.materials)))
    attenuation[: model.weights.shape[1]] = model.attenuation_per_mm_per_g_cm3
    weights = np.zeros((len(model.bins), n_nodes))
    weights[:, : model.weights.shape[1]] = model.weights
    channels = np.concatenate([np.ones((n_nodes, 1)), attenuation], axis=1).T
    is_counted = weights > 0
    first = np.argmax(is_counted, axis=1) // width * width
    last = n_nodes - np.argmax(is_counted[:, ::-1], axis=1)
    return (
        -attenuation / math.log(2),
        np.ascontiguousarray(weights[:, None] * channels),
        first.astype(np.int64),
        (-(-last // width) * width).astype(np.int64),
    )


def _prior_information(prior_sd: ArrayLike | None, n_materials: int) -> NDArray[np.float64]:
    if prior_sd is None:
        return np.zeros(n_materials)
    sd = np.broadcast_to(np.asarray(prior_sd, dtype=np.float64), (n_materials,))
    if not (sd > 0).all():
        raise WrongUsage(f"prior_sd is {sd.tolist()} mm g/cm3; allowed: above 0, or infinite for no prior")
    return 1 / sd**2


def _of_rays(values: ArrayLike, n: int, shape: tuple[int, ...], name: str) -> NDArray[np.float32]:
    """Return values as (n, n_rays), or (n, 1) where all rays have the same."""
    given = np.asarray(values, dtype=np.float32)
    if given.ndim == 0:
        given = np.full(n, given)
    if given.shape == (n,):
        return given[:, None].copy()
    try:
        return np.array(np.broadcast_to(given, (n, *shape)), order="C").reshape(n, math.prod(shape))
    except ValueError:
        raise WrongUsage(f"{name} of shape {given.shape}; allowed: ({n},) or {(n, *shape)}") from None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Rays:
    """What was measured of all rays: (n_bins, n_rays), or (n_bins, 1) of what all have in common."""

    measured: NDArray[np.float32]
    opened: NDArray[np.float32]
    added: NDArray[np.float32]

    @property
    def is_used(self) -> NDArray[np.bool_]:
        """Which bins of which rays are fitted, by the kernel's own rule."""
        y, y0, r = self.measured, self.opened, self.added
        return np.asarray((y >= 0) & (y < np.inf) & (y0 > 0) & (y0 < np.inf) & (r >= 0) & (r < np.inf))

    def only(self, rays: NDArray[np.intp]) -> _Rays:
        """Return some of the rays."""
        of_rays = [values[:, rays] if values.shape[1] > 1 else values for values in (self.opened, self.added)]
        return _Rays(measured=self.measured[:, rays], opened=of_rays[0], added=of_rays[1])


def _guesses(rays: _Rays, model: SpectralModel) -> NDArray[np.float64]:
    """Return paths by the signal of all bins' counts: those of the one material that explains most rays best.

    Returns
    -------
    paths : (n_materials, n_signals) float64, mm g/cm3
        For signals of 0, 1 / GUESSES_PER_SIGNAL, ...
    """
    n_materials, n_rays = len(model.materials), rays.measured.shape[1]
    some = rays.only(np.arange(0, n_rays, max(1, n_rays // _N_SAMPLED)))
    is_used = some.is_used
    y = np.where(is_used, some.measured - some.added, 0).sum(axis=0, dtype=np.float64)
    opened = np.where(is_used, some.opened, 0).astype(np.float64)
    places = -np.log(np.maximum(y, 0.5) / np.maximum(opened.sum(axis=0), 0.5)) * ray_fit_cpu.GUESSES_PER_SIGNAL
    singles = [_single_material(model, k, opened.sum(axis=1)) for k in range(n_materials)]
    misfits = [_misfit(some, model, k, np.interp(places, range(len(s)), s)) for k, s in enumerate(singles)]
    best = int(np.argmin(misfits)) if n_rays else 0
    guesses = np.zeros((n_materials, len(singles[best])))
    guesses[best] = singles[best]
    return guesses


def _single_material(model: SpectralModel, k: int, open_counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how much of material k shows signals of 0, 1 / GUESSES_PER_SIGNAL, ... in all bins' counts together."""
    weakest = model.attenuation_per_mm_per_g_cm3[:, k].min()
    grid = np.concatenate([[0], np.geomspace(1e-3, -math.log(_DARKEST), 200)]) / max(weakest, 1e-12)
    paths = np.zeros((len(model.materials), len(grid)))
    paths[k] = grid
    weights = open_counts if open_counts.any() else np.ones_like(open_counts)  # nothing measured: any guess will do
    share = weights @ model.transmission(paths) / weights.sum()
    is_seen = share > _DARKEST
    signals = np.arange(0, -math.log(_DARKEST), 1 / ray_fit_cpu.GUESSES_PER_SIGNAL)
    return np.interp(signals, -np.log(np.maximum(share[is_seen], _DARKEST)), grid[is_seen])


def _misfit(rays: _Rays, model: SpectralModel, k: int, single: NDArray[np.float64]) -> float:
    """Return the median misfit of rays if all of them were material k alone."""
    if len(single) == 0:
        return 0.0
    paths = np.zeros((len(model.materials), len(single)))
    paths[k] = single
    expected = np.where(rays.is_used, rays.opened * model.transmission(paths) + rays.added, 1)
    y = np.where(rays.is_used, rays.measured, 1)
    return float(np.median(((y - expected) ** 2 / np.maximum(expected, 1e-3)).sum(axis=0)))


def _refine(
    model: SpectralModel,
    prior_information: NDArray[np.float64],
    rays: _Rays,
    mean: NDArray[np.float64],
    filled: list[NDArray],
) -> None:
    """Replace what the Poisson fit filled in by the quasi-likelihood fit of the same rays."""
    paths, packed, chi_square, _, _, is_converged = filled
    fitted = np.flatnonzero(is_converged)
    rays = rays.only(fitted)
    opened, added = (np.broadcast_to(values, rays.measured.shape) for values in (rays.opened, rays.added))
    moved, scores, is_done = refine(
        paths[:, fitted],
        rays.measured,
        opened,
        added,
        rays.is_used,
        model,
        mean[:, fitted],
        prior_information,
        TOLERANCE,
    )
    rows, columns = np.triu_indices(len(paths))
    paths[:, fitted], packed[:, fitted] = moved, scores.information[:, rows, columns].T
    chi_square[fitted], is_converged[fitted] = scores.chi_square, is_done
