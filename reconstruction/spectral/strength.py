"""How strong a prior is to be: so many times the noise, whatever dose, unit, number of channels and basis of materials.

Where the noise is scaled, and the image with it, a penalty strength * R(u / noise) scales with the data term, so that
one number without a dimension means the same for any of them. The noise is that of a voxel were all others known: one
over the root of the data term's mean curvature at the object. It needs no image, only what rays count for.

Channels together have more noise than one: what the norm of the differences' noise grows by with their number is taken
into the strength, so that the same number serves a prior of one channel and one that couples eight.

# Ref: a threshold in proportion to the noise: Donoho and Johnstone 1994, Biometrika 81, 425.
# Ref: discrepancy principle: Morozov 1966, Soviet Math. Dokl. 7, 414. Unbiased estimate of the risk: Stein 1981, Ann.
#      Stat. 9, 1135; its divergence by random probes: Ramani, Blu and Unser 2008, IEEE Trans. Image Process. 17, 1540.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firmware_iface.errors import WrongUsage
from reconstruction.backend import Array, namespace
from reconstruction.kernels import tv_plain
from reconstruction.methods.proximal import data_curvature
from reconstruction.operators import Operator, inner_products
from reconstruction.priors import (
    DirectionalTotalVariation,
    Gibbs,
    Huber,
    Prior,
    TotalVariation,
    VectorialTotalVariation,
)

STRENGTHS: Mapping[str, float] = {"tv": 2.8, "huber": 4.0, "gibbs": 4.0, "vtv": 1.7, "tnv": 1.5, "dtv": 2.8}
"""Priors by name, and how many times the noise they are worth in a reconstruction when nobody says: measured on two
objects at two doses (`tests/benchmarks/strength.py`), but for gibbs and dtv, which take those of their kin. `vtv` is
vectorial total variation by the Frobenius norm, `tnv` by the nuclear one, `dtv` the directional one."""
COUPLED = ("vtv", "tnv")
"""Those that do not care which basis independent channels of equal noise are written in."""
CORNER = 1.0
"""Where smooth priors become sharp, in units of the noise."""
EDGE = 5.0
"""Slope of a reference, over its noise, that counts as half an edge: three times that of noise alone."""
PROBE = 0.1
"""Size of a random probe of a denoiser's slope, over the noise."""
N_RANDOM = 4000
STEPS = 12
"""Of a search for a strength: it is then known to a per cent or so."""


def prior_in_noise(
    name: str,
    strength: float | None,
    noise: Sequence[float] | NDArray[np.floating],
    *,
    n_directions: int = 3,
    reference: Array | None = None,
    divided_by: float = 1.0,
) -> Prior:
    """Return the prior with divided_by * prior(u) = strength * share * R(u / noise).

    Parameters
    ----------
    name : str
        Of `STRENGTHS`.
    strength : float or None
        In units of the noise; None: that of `STRENGTHS`. The share is `share_of_norm`.
    noise : (n_channels,) float
        Standard deviation of a voxel of each channel, in the unit of u.
    n_directions : int
        Axes along which the volume has more than one voxel.
    reference : (z, y, x) float, optional
        What `dtv` must have, in units of its own noise; see `sum_image`.
    divided_by : float
        What a method multiplies the prior by, so that it comes out as wanted: `data_curvature` of its operator.
    """
    own: dict[str, Any] = options_in_noise(name, strength, noise, n_directions=n_directions, divided_by=divided_by)
    if name == "huber":
        return Huber(**own)
    if name == "gibbs":
        return Gibbs(**own)
    if name == "dtv":
        if reference is None:
            raise WrongUsage("the prior dtv needs a reference image", hint="the sum image of all channels, for one")
        return DirectionalTotalVariation(reference=reference, edge_share=_edge_share(reference), **own)
    if name in COUPLED:
        return VectorialTotalVariation(norm="nuclear" if name == "tnv" else "frobenius", **own)
    return TotalVariation(**own)


def options_in_noise(
    name: str,
    strength: float | None,
    noise: Sequence[float] | NDArray[np.floating],
    *,
    n_directions: int = 3,
    divided_by: float = 1.0,
) -> dict[str, Any]:
    """Return what `prior_in_noise` sets of a prior: strength_per_mm, noise_per_mm, and the corner of a smooth one."""
    levels = np.asarray(noise, np.float64).tolist()
    mean = math.fsum(levels) / len(levels)
    scale = wanted(name, strength) * share_of_norm(name, len(levels), n_directions) / (divided_by * mean)
    corner = {"corner_per_mm": CORNER * mean} if name in ("huber", "gibbs") else {}
    return {"strength_per_mm": scale, "noise_per_mm": tuple(levels), **corner}


def scaled_options(name: str, strength: float | None, A: Operator, data: Array, weights: Array) -> dict[str, Any]:
    """Return them for a reconstruction from weighted line integrals, whose noise the weights tell."""
    return options_in_noise(
        name,
        strength,
        noise_of_weights(A, data, weights),
        n_directions=n_directions(A.domain_shape),
        divided_by=data_curvature(A, weights, data),
    )


def n_directions(shape: Sequence[int]) -> int:
    """Return along how many axes a volume (n_channels, z, y, x) has more than one voxel."""
    return max(sum(length > 1 for length in shape[1:]), 1)


def wanted(name: str, strength: float | None) -> float:
    """Return a strength, or the usual one of a prior where it is None; refuse what cannot be."""
    if name not in STRENGTHS:
        raise WrongUsage(f"no prior is called {name!r}; allowed: {', '.join(STRENGTHS)}")
    strength = STRENGTHS[name] if strength is None else strength
    if not 0 < strength < math.inf:
        raise WrongUsage(f"the strength is {strength}; allowed: more than 0, in units of the noise")
    return strength


def _edge_share(reference: Array) -> float:
    """Return which share of the steepest slope counts as half an edge: the slope that noise never has."""
    xp = namespace(reference)
    slope = tv_plain.gradient(reference[None], xp.ones(1, reference.dtype))[0]
    return min(EDGE / max(math.sqrt(float((slope * slope).sum(0).max())), EDGE), 1.0)


@functools.cache
def share_of_norm(name: str, n_channels: int, n_directions: int) -> float:
    """Return how the norm of noise, which a prior's dual ball is to hold, grows with the number of channels.

    It is the mean over random matrices (channel, direction), the same ones every time.
    """
    noise = np.random.default_rng(0).normal(size=(N_RANDOM, n_channels, n_directions))
    if name == "vtv":
        norm = np.linalg.norm(noise, axis=(1, 2))
    elif name == "tnv":
        norm = np.linalg.svd(noise, compute_uv=False)[:, 0]
    else:
        return 1.0
    return float(norm.mean() / np.linalg.norm(noise[:, 0], axis=1).mean())


def noise_of_weights(A: Operator, data: Array, weights: Array) -> NDArray[np.float64]:
    """Return the noise of a voxel of each channel, were all others known: (n_channels,), in the unit of the volume.

    Parameters
    ----------
    data : (n_channels, n_views, rows, cols) float
        Line integrals: rays count by the matter that they pass, since it is there that the noise matters.
    weights : array that broadcasts with `data`
        1 / variance of each.
    """
    xp = namespace(data)
    matter = xp.abs(data)
    spread = xp.broadcast_to(weights, data.shape)
    sums = [
        [float(channel.sum(dtype=xp.float64)) for channel in array]
        for array in (xp.where(spread > 0, matter, 0), matter * spread)
    ]
    total, weighed = np.array(sums)
    if not ((total > 0) & (weighed > 0)).all():
        raise WrongUsage("a channel has no ray with a weight that passes matter; its noise cannot be told")
    return np.sqrt(total / (weighed * data_curvature(A, None, data)))


def sum_image(values: Array, covariance: NDArray[np.floating]) -> Array:
    """Return the linear combination of all channels that has most signal for its noise: (z, y, x), noise 1.

    The reference of a directional prior: of bins it is about their weighted mean.

    Parameters
    ----------
    values : (n_channels, z, y, x) float
    covariance : (n_channels, n_channels) float
        Noise of the channels, `decomposition.bin_covariance` for one.
    """
    xp, n = namespace(values), len(values)
    whitener = np.linalg.inv(np.linalg.cholesky(np.asarray(covariance, np.float64)))
    second = np.array([[float(inner_products(one, other)[0]) for other in values] for one in values]) / math.prod(
        values.shape[1:]
    )
    vector = np.linalg.eigh(whitener @ second @ whitener.T)[1][:, -1] @ whitener
    image = xp.tensordot(xp.asarray(vector.astype(values.dtype)), values, axes=1)
    is_positive = float(inner_products(image, values.sum(0))[0]) >= 0 if n > 1 else vector[0] > 0
    return image if is_positive else -image


def by_discrepancy(
    denoised: Callable[[float], Array], noisy: Array, *, lowest: float = 0.05, highest: float = 20.0
) -> float:
    """Return the strength at which what is taken away is as large as the noise, by bisection of its logarithm.

    Parameters
    ----------
    denoised : function of a strength
    noisy : (n_channels, z, y, x) float
        Of unit noise: whitened.
    lowest, highest : float
        Where to look; the nearer one is returned where neither meets it.
    """
    low, high = math.log(lowest), math.log(highest)
    for _ in range(STEPS):
        middle = (low + high) / 2
        taken = noisy - denoised(math.exp(middle))
        if float(inner_products(taken, taken)[0]) < noisy.size:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def by_sure(
    denoised: Callable[[Array, float], Array], noisy: Array, *, lowest: float = 0.05, highest: float = 20.0
) -> float:
    """Return the strength whose expected squared error, by Stein's estimate, is least; for white noise.

    Parameters
    ----------
    denoised : function of a volume and a strength
    noisy : (n_channels, z, y, x) float
        Of unit, white noise. Of a filtered back-projection, whose noise is not white, it is a guess.
    """
    xp = namespace(noisy)
    signs = np.random.default_rng(0).integers(0, 2, noisy.shape, dtype=np.int8) * 2 - 1
    probe = xp.asarray((PROBE * signs).astype(noisy.dtype))

    def risk(log_strength: float) -> float:
        out = denoised(noisy, math.exp(log_strength))
        slope = float(inner_products(probe, denoised(noisy + probe, math.exp(log_strength)) - out)[0]) / PROBE**2
        taken = noisy - out
        return float(inner_products(taken, taken)[0]) + 2 * slope

    golden = (math.sqrt(5) - 1) / 2
    low, high = math.log(lowest), math.log(highest)
    left, right = high - golden * (high - low), low + golden * (high - low)
    risk_left, risk_right = risk(left), risk(right)
    for _ in range(STEPS):
        if risk_left < risk_right:
            high, right, risk_right = right, left, risk_left
            left = high - golden * (high - low)
            risk_left = risk(left)
        else:
            low, left, risk_left = left, right, risk_right
            right = low + golden * (high - low)
            risk_right = risk(right)
    return math.exp((low + high) / 2)
