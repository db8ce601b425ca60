"""What is held likely of an image before any data: the penalties of regularised reconstruction.

A prior is strength * R(u). Total variation and its kin measure the differences K u between neighbouring voxels; R is a
sum of norms of K u over the voxels, and each norm is given by the ball that its dual variable lies in.

Strengths are in the unit of the volume (1/mm), because methods multiply them by the mean curvature of their data term:
a strength is then about the standard deviation of the noise that it takes away, whatever the number of views, their
weights and the voxels' size. A prox alone takes them as they are.

# Ref: dual forms and fast gradient projection: Chambolle 2004, J. Math. Imaging Vis. 20, 89; Beck and Teboulle 2009,
#      IEEE Trans. Image Process. 18, 2419.
# Ref: vectorial total variation: Bresson and Chan 2008, Inverse Probl. Imaging 2, 455; spectral norm: Goldluecke,
#      Strekalovskiy and Cremers 2012, SIAM J. Imaging Sci. 5, 537; nuclear norm: Rigie and La Riviere 2015, Phys. Med.
#      Biol. 60, 1741; all of them: Duran, Moeller, Sbert and Cremers 2016, SIAM J. Imaging Sci. 9, 116.
# Ref: directional total variation: Ehrhardt and Betcke 2016, SIAM J. Imaging Sci. 9, 1084; with a reference channel for
#      spectral CT: Kazantsev et al. 2018, Inverse Probl. 34, 064001.
# Ref: Huber 1964, Ann. Math. Stat. 35, 73. Gibbs priors: Geman and Geman 1984, IEEE Trans. Pattern Anal. Mach. Intell.
#      6, 721; the hyperbola: Charbonnier et al. 1997, IEEE Trans. Image Process. 6, 298.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from firmware_iface.errors import WrongUsage
from reconstruction.backend import Array, namespace
from reconstruction.kernels import tv_plain

NORMS = {"frobenius": tv_plain.FROBENIUS, "nuclear": tv_plain.SPECTRAL, "spectral": tv_plain.NUCLEAR}
"""Norms of the (channel, direction) matrix of differences, and the balls dual to them."""
PROX_ITERATIONS = 200


def _kernels(like: Array) -> ModuleType:
    """Return the fast steps for where this array is; they load what they need when they are needed."""
    if namespace(like) is not np:
        from reconstruction.kernels import tv_gpu

        return tv_gpu
    from reconstruction.kernels import tv_cpu

    return tv_cpu


class Prior(ABC):
    """A penalty, strength * R(u), of volumes (n_channels, z, y, x)."""

    __slots__ = ()

    @abstractmethod
    def value(self, u: Array) -> float:
        """Return strength * R(u)."""

    @abstractmethod
    def gradient(self, u: Array) -> Array:
        """Return the gradient of strength * R, (n_channels, z, y, x); only where the prior is smooth."""

    @abstractmethod
    def curvature(self, like: Array) -> float:
        """Return a bound of the gradient's slope, for volumes like this one; infinite where the prior is not smooth."""

    @abstractmethod
    def prepare(self, like: Array) -> Prox:
        """Return the prox for volumes like this one, with what it keeps between calls."""

    def prox(
        self, y: Array, step: float = 1.0, *, is_non_negative: bool = False, n_iterations: int = PROX_ITERATIONS
    ) -> Array:
        """Return the u that makes ||u - y||^2 / 2 + step * strength * R(u) least, (n_channels, z, y, x).

        Parameters
        ----------
        y : (n_channels, z, y, x) float
        step : float
        is_non_negative : bool
            Allow no values below 0.
        n_iterations : int
            Inner steps.
        """
        out = namespace(y).empty_like(y)
        self.prepare(y).prox(out, y, step, n_iterations=n_iterations, is_non_negative=is_non_negative)
        return out


class Prox(Protocol):
    """A prior made ready for volumes of one shape."""

    def value(self, u: Array) -> float:
        """Return strength * R(u)."""
        ...

    def prox(self, out: Array, y: Array, step: float, *, n_iterations: int, is_non_negative: bool) -> None:
        """Fill `out` with the prox of `y`, by so many inner steps on from where the last call stopped."""
        ...


class Dual:
    """The dual variable p of a prior that is a sum of norms of differences, |p| <= 1, and the steps that move it.

    Attributes
    ----------
    p : (n_channels, 3, z, y, x) float
        Kept between calls: a prox that is asked for again and again goes on from where it stopped.
    """

    def __init__(self, prior: DifferencePrior, like: Array) -> None:
        xp = namespace(like)
        n_channels = like.shape[0]
        self._kernels, self._prior = _kernels(like), prior
        self._weights = xp.asarray(prior.channel_weights(n_channels), dtype=like.dtype)
        tangent = prior.tangent(like.shape[1:])
        self._tangent = None if tangent is None else xp.ascontiguousarray(xp.asarray(tangent, dtype=like.dtype))
        self._radius = math.inf if prior.ball == tv_plain.ANYWHERE else 1.0
        self.p = xp.zeros((n_channels, 3, *like.shape[1:]), like.dtype)
        self._extrapolated: Array | None = None
        n_directions = sum(length > 1 for length in like.shape[1:])
        self.norm2 = 4 * max(n_directions, 1) * float((self._weights**2).max())
        """A bound of ||K||^2."""

    def value(self, u: Array) -> float:
        """Return strength * R(u)."""
        prior = self._prior
        norms = self._kernels.value(u, prior.ball, prior.corner_of_norm, self._weights, self._tangent)
        return prior.strength_of_norm * norms

    def gradient(self, u: Array) -> Array:
        """Return the gradient of strength * R(u) for a norm with a round tip; p is overwritten."""
        prior = self._prior
        self.p[...] = 0
        arguments = prior.ball, self._radius, self._weights, self._tangent
        self._kernels.dual(self.p, self.p, u, 1 / prior.corner_of_norm, 1.0, 0.0, *arguments)
        out = namespace(u).zeros_like(u)
        self._kernels.primal(out, out, self.p, -prior.strength_of_norm, False, self._weights, self._tangent)
        return out

    def prox(self, out: Array, y: Array, step: float, *, n_iterations: int, is_non_negative: bool) -> None:
        """Fill `out` with the prox of `y`, by fast gradient projection on from the present p."""
        scale = step * self._prior.strength_of_norm
        q = self.begin()
        t = 1.0
        for _ in range(n_iterations):
            self._kernels.primal(out, y, q, scale, is_non_negative, self._weights, self._tangent)
            before, t = t, (1 + math.sqrt(1 + 4 * t * t)) / 2
            self.move(out, 1 / (scale * self.norm2), (before - 1) / t)
        self._kernels.primal(out, y, self.p, scale, is_non_negative, self._weights, self._tangent)

    def begin(self) -> Array:
        """Return the extrapolated dual variable q, at the present p."""
        q = self._extrapolated = (
            namespace(self.p).empty_like(self.p) if self._extrapolated is None else self._extrapolated
        )
        q[...] = self.p
        return q

    def pull(self, dual: Array, step: float) -> Array:
        """Return what a dual variable, p or q, takes off an image: -step * strength * K^T dual."""
        xp = namespace(dual)
        nothing = xp.zeros((dual.shape[0], *dual.shape[2:]), dual.dtype)
        scale = step * self._prior.strength_of_norm
        self._kernels.primal(nothing, nothing, dual, scale, False, self._weights, self._tangent)
        return nothing

    def move(self, u: Array, ratio: float, momentum: float) -> None:
        """Step along K u from q to the new p, and past it by the momentum times the change."""
        prior = self._prior
        shrink = 1 / (1 + ratio * prior.corner_of_norm)
        arguments = ratio, shrink, momentum, prior.ball, self._radius, self._weights, self._tangent
        self._kernels.dual(self.p, self._extrapolated, u, *arguments)


class DifferencePrior(Prior):
    """A sum over the voxels of a norm of the differences K u, round below a corner.

    What the subclasses say of it: `ball`, `strength_of_norm`, and `corner_of_norm` where it is not 0.
    """

    __slots__ = ()
    noise_per_mm: tuple[float, ...]

    @property
    @abstractmethod
    def ball(self) -> int:
        """Where the dual variable lies, by the numbers of `tv_plain`."""

    @property
    @abstractmethod
    def strength_of_norm(self) -> float:
        """What the norm is multiplied by."""

    @property
    def corner_of_norm(self) -> float:
        """Below this the norm is quadratic."""
        return 0.0

    def tangent(self, shape: tuple[int, ...]) -> NDArray[np.floating] | None:  # noqa: ARG002
        """Return the vectors along which differences are free, (3, z, y, x), if there are some."""
        return None

    def channel_weights(self, n_channels: int) -> NDArray[np.float64]:
        """Return what each channel's differences are multiplied by: the mean noise over its own."""
        return _channel_weights(self.noise_per_mm, n_channels)

    def value(self, u: Array) -> float:
        """Return strength * R(u)."""
        return Dual(self, u).value(u)

    def gradient(self, u: Array) -> Array:
        """Return the gradient of strength * R, (n_channels, z, y, x); only where the norm's tip is round."""
        if self.corner_of_norm == 0:
            raise WrongUsage(f"{type(self).__name__} has no gradient", hint="take its prox, or a Huber prior")
        return Dual(self, u).gradient(u)

    def curvature(self, like: Array) -> float:
        """Return a bound of the gradient's slope; infinite where the norm has a sharp tip."""
        if self.corner_of_norm == 0:
            return math.inf
        return self.strength_of_norm * Dual(self, like).norm2 / self.corner_of_norm

    def prepare(self, like: Array) -> Dual:
        """Return the dual variable for volumes like this one, at zero."""
        return Dual(self, like)


def _channel_weights(noise_per_mm: tuple[float, ...], n_channels: int) -> NDArray[np.float64]:
    """Return the mean noise over that of each channel."""
    if not noise_per_mm:
        return np.ones(n_channels)
    noise = np.asarray(noise_per_mm, np.float64)
    if noise.shape != (n_channels,):
        raise WrongUsage(f"noise_per_mm has {noise.size} values for a volume of {n_channels} channels")
    return noise.mean() / noise


def _check_positive(prior: Any, *names: str) -> None:
    """Refuse what is not above 0: the attributes of these names, and the noise of any channel."""
    for name in names:
        number = getattr(prior, name)
        if not (number > 0 and math.isfinite(number)):
            raise ValueError(f"{name} of {type(prior).__name__} is {number}; allowed: more than 0")
    if any(not (noise > 0 and math.isfinite(noise)) for noise in prior.noise_per_mm):
        raise ValueError(f"noise_per_mm is {prior.noise_per_mm}; allowed: more than 0 for every channel")


@dataclass(frozen=True, slots=True, kw_only=True)
class TotalVariation(DifferencePrior):
    """Each channel's total variation: flat regions with sharp edges.

    Attributes
    ----------
    strength_per_mm : float
    is_isotropic : bool
        Take the length of the three differences together, not the sum of their magnitudes.
    noise_per_mm : tuple of float
        Of each channel, where they differ: channels are then smoothed in proportion to it.
    """

    strength_per_mm: float
    is_isotropic: bool = True
    noise_per_mm: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _check_positive(self, "strength_per_mm")

    @property
    def ball(self) -> int:
        """Of the dual variable."""
        return tv_plain.PER_CHANNEL if self.is_isotropic else tv_plain.PER_COMPONENT

    @property
    def strength_of_norm(self) -> float:
        """What the norm is multiplied by."""
        return self.strength_per_mm


@dataclass(frozen=True, slots=True, kw_only=True)
class Huber(DifferencePrior):
    """Each channel's total variation, with a round tip: gradients below the corner are smoothed and not flattened.

    Attributes
    ----------
    strength_per_mm : float
    corner_per_mm : float
        Difference between neighbours from which on they count as an edge; one to two times the noise is usual.
    noise_per_mm : tuple of float
        Of each channel, where they differ.
    """

    strength_per_mm: float
    corner_per_mm: float
    noise_per_mm: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _check_positive(self, "strength_per_mm", "corner_per_mm")

    @property
    def ball(self) -> int:
        """Of the dual variable."""
        return tv_plain.PER_CHANNEL

    @property
    def strength_of_norm(self) -> float:
        """What the norm is multiplied by."""
        return self.strength_per_mm

    @property
    def corner_of_norm(self) -> float:
        """Below this the norm is quadratic."""
        return self.corner_per_mm


@dataclass(frozen=True, slots=True, kw_only=True)
class Quadratic(DifferencePrior):
    """Half the sum of the squared differences: smooth images without edges.

    Attributes
    ----------
    stiffness_relative : float
        Curvature of each difference over that of the data term.
    noise_per_mm : tuple of float
        Of each channel, where they differ.
    """

    stiffness_relative: float
    noise_per_mm: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _check_positive(self, "stiffness_relative")

    @property
    def ball(self) -> int:
        """Of the dual variable."""
        return tv_plain.ANYWHERE

    @property
    def strength_of_norm(self) -> float:
        """What the norm is multiplied by."""
        return self.stiffness_relative

    @property
    def corner_of_norm(self) -> float:
        """The norm is n^2 / 2 everywhere."""
        return 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorialTotalVariation(DifferencePrior):
    """Total variation of all channels together: edges are cheaper where other channels have them too.

    Attributes
    ----------
    strength_per_mm : float
    norm : str
        Of the (channel, direction) matrix of differences: "frobenius" wants edges at the same places, "nuclear" (TNV)
        and "spectral" also in the same directions, "nuclear" the more so.
    noise_per_mm : tuple of float
        Of each channel. Channels that are coupled should be told of it: it makes their edges comparable.
    """

    strength_per_mm: float
    norm: Literal["frobenius", "nuclear", "spectral"] = "nuclear"
    noise_per_mm: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _check_positive(self, "strength_per_mm")
        if self.norm not in NORMS:
            raise WrongUsage(f"the norm is {self.norm!r}; allowed: {', '.join(NORMS)}")

    @property
    def ball(self) -> int:
        """Of the dual variable."""
        return NORMS[self.norm]

    @property
    def strength_of_norm(self) -> float:
        """What the norm is multiplied by."""
        return self.strength_per_mm


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DirectionalTotalVariation(DifferencePrior):
    """Each channel's total variation, in which steps across the edges of a reference image are free.

    Attributes
    ----------
    strength_per_mm : float
    reference : (z, y, x) float
        The sum of all bins, for one, which has the least noise; in any unit.
    edge_share : float
        Slope of the reference that counts as half an edge, over its steepest one.
    noise_per_mm : tuple of float
        Of each channel, where they differ.
    """

    strength_per_mm: float
    reference: NDArray[np.floating]
    edge_share: float = 0.02
    noise_per_mm: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _check_positive(self, "strength_per_mm", "edge_share")
        if self.reference.ndim != 3:
            raise WrongUsage(f"the reference has shape {self.reference.shape}; allowed: (z, y, x)")

    @property
    def ball(self) -> int:
        """Of the dual variable."""
        return tv_plain.PER_CHANNEL

    @property
    def strength_of_norm(self) -> float:
        """What the norm is multiplied by."""
        return self.strength_per_mm

    def tangent(self, shape: tuple[int, ...]) -> Array | None:
        """Return the vectors along which differences are free: the reference's slope, (3, z, y, x), at most 1 long."""
        if self.reference.shape != tuple(shape):
            raise WrongUsage(
                f"the reference has shape {self.reference.shape}, the volume {tuple(shape)}; make them equal"
            )
        xp = namespace(self.reference)
        slope = tv_plain.gradient(self.reference[None], xp.ones(1, self.reference.dtype))[0]
        length2 = (slope * slope).sum(0)
        edge2 = max(float(self.edge_share**2 * length2.max()), float(xp.finfo(slope.dtype).tiny))
        return slope / xp.sqrt(length2 + edge2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gibbs(Prior):
    """A Markov random field over all 26 neighbours, with a potential that is a hyperbola of each difference.

    Potentials are quadratic below the corner and rise by 1 above it. Neighbours count by the reciprocal of their
    distance, and all of them together as much as the three differences of total variation.

    Attributes
    ----------
    strength_per_mm : float
    corner_per_mm : float
        Difference from which on neighbours count as parted by an edge.
    noise_per_mm : tuple of float
        Of each channel, where they differ.
    """

    strength_per_mm: float
    corner_per_mm: float
    noise_per_mm: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _check_positive(self, "strength_per_mm", "corner_per_mm")

    def value(self, u: Array) -> float:
        """Return strength * R(u)."""
        xp, corner, total = namespace(u), self.corner_per_mm, 0.0
        scaled = self._scaled(u)
        for near, far, weight in _neighbours(scaled):
            difference = far.astype(xp.float64) - near
            total += weight * float((xp.hypot(difference, corner) - corner).sum())
        return self.strength_per_mm * total

    def gradient(self, u: Array) -> Array:
        """Return the gradient of strength * R, (n_channels, z, y, x)."""
        xp = namespace(u)
        scaled = self._scaled(u)
        out = xp.zeros_like(u)
        parts = zip(_neighbours(scaled), _neighbours(out), strict=True)
        for (near, far, weight), (out_near, out_far, _) in parts:
            slope = far - near
            slope *= self.strength_per_mm * weight / xp.sqrt(slope * slope + self.corner_per_mm**2)
            out_far += slope
            out_near -= slope
        return self._scaled(out)

    def curvature(self, like: Array) -> float:
        """Return a bound of the gradient's slope: four times what all neighbours count, at the corner's curvature."""
        weight2 = float((_channel_weights(self.noise_per_mm, like.shape[0]) ** 2).max())
        return 12 * self.strength_per_mm / self.corner_per_mm * weight2

    def prepare(self, like: Array) -> _SmoothProx:
        """Return the prox for volumes like this one."""
        return _SmoothProx(self, like)

    def _scaled(self, u: Array) -> Array:
        """Return the channels over their noise, times its mean."""
        weights = namespace(u).asarray(_channel_weights(self.noise_per_mm, u.shape[0]), dtype=u.dtype)
        return u * weights[:, None, None, None]


def _neighbours(u: Array) -> Iterator[tuple[Array, Array, float]]:
    """Yield, for each of the 13 directions to half of the neighbours, all voxels, their neighbours, and the weight."""
    offsets = [offset for offset in itertools.product((-1, 0, 1), repeat=3) if offset > (0, 0, 0)]
    total = sum(1 / math.hypot(*offset) for offset in offsets)
    for offset in offsets:
        lengths = u.shape[1:]
        near = tuple(slice(max(-o, 0), n - max(o, 0)) for o, n in zip(offset, lengths, strict=True))
        far = tuple(slice(max(o, 0), n - max(-o, 0)) for o, n in zip(offset, lengths, strict=True))
        yield u[:, *near], u[:, *far], 3 / total / math.hypot(*offset)


class _SmoothProx:
    """The prox of a smooth prior, by accelerated gradient steps."""

    def __init__(self, prior: Gibbs, like: Array) -> None:
        self._prior, self._curvature = prior, prior.curvature(like)

    def value(self, u: Array) -> float:
        """Return strength * R(u)."""
        return self._prior.value(u)

    def prox(self, out: Array, y: Array, step: float, *, n_iterations: int, is_non_negative: bool) -> None:
        """Fill `out` with the prox of `y`: its objective curves by 1 at least, and by `steepest` at most."""
        steepest = 1 + step * self._curvature
        momentum = (math.sqrt(steepest) - 1) / (math.sqrt(steepest) + 1)
        out[...] = namespace(y).maximum(y, 0) if is_non_negative else y
        ahead = out.copy()
        for _ in range(n_iterations):
            new = ahead - (ahead - y + step * self._prior.gradient(ahead)) / steepest
            if is_non_negative:
                namespace(y).maximum(new, 0, out=new)
            ahead = new + momentum * (new - out)
            out[...] = new
