"""Least squares: SIRT, OS-SART, CGLS and LSQR over any operator.

All make |b - A x|^2, weighted, small; what they have not yet reached when they are stopped is their regularisation.
Each is a generator of `Iterate`, which its caller stops.

# Ref: SIRT in matrix form: Gregor and Benson 2008, IEEE Trans. Med. Imaging 27, 918. SART: Andersen and Kak 1984,
#      Ultrason. Imaging 6, 81; by subsets: Wang and Jiang 2004, J. X-Ray Sci. Technol. 12, 169. Here a voxel's weight
#      is that of all views over the number of subsets, where the papers take each subset's own.
# Ref: CGLS: Bjorck 1996, Numerical Methods for Least Squares Problems, algorithm 7.4.1, preconditioned as 7.4.4.
# Ref: LSQR: Paige and Saunders 1982, ACM Trans. Math. Softw. 8, 43, with the rotation for damping of section 6.
"""

from __future__ import annotations

import math
from collections.abc import Generator

import numpy as np

from firmware_iface.errors import WrongUsage
from reconstruction import backend
from reconstruction.backend import Array
from reconstruction.kernels import descent_cpu
from reconstruction.methods.iterates import Iterate
from reconstruction.methods.subsets import Order
from reconstruction.methods.surrogates import Loss, descend, of_views
from reconstruction.operators import Operator, inner_products


class SquaredError(Loss):
    """Half the weighted squared error of line integrals.

    Parameters
    ----------
    data : array of the range
    weights : array that fits the range, optional
        1 / variance of each; 0 leaves it out.
    is_by_length : bool
        Divide each ray's weight by its length, as SIRT and SART do: a step then never goes further than a ray's data.
    """

    def __init__(self, data: Array, weights: Array | None = None, *, is_by_length: bool = False) -> None:
        self._data, self._is_by_length = data, is_by_length
        self._weights = None if weights is None else backend.namespace(data).broadcast_to(weights, data.shape)
        self._inverse_lengths: Array | None = None

    def curvature(self, ray_lengths: Array, projected: Array | None = None) -> Array:  # noqa: ARG002
        """Return the weights times the lengths; by length, the weights of rays that meet the volume."""
        if not self._is_by_length:
            return ray_lengths if self._weights is None else ray_lengths * self._weights
        xp = backend.namespace(ray_lengths)
        meets = ray_lengths > xp.finfo(ray_lengths.dtype).eps * ray_lengths.max()
        self._inverse_lengths = xp.where(meets, 1 / xp.where(meets, ray_lengths, 1), 0)
        return meets.astype(ray_lengths.dtype) if self._weights is None else meets * self._weights

    def slope(self, projected: Array, views: slice, n_channels: int) -> tuple[Array, Array, Array]:
        """Return the weighted error, its squared norm, and half that of what is made small."""
        error = np.subtract(projected, of_views(self._data, views), out=projected)
        weighted = error if self._weights is None else error * of_views(self._weights, views)
        squared = inner_products(weighted, error, n_channels)
        if self._inverse_lengths is None:
            return weighted, squared, squared / 2
        by_length = weighted * of_views(self._inverse_lengths, views)
        return by_length, squared, inner_products(by_length, error, n_channels) / 2


def sirt(
    A: Operator,
    b: Array,
    *,
    weights: Array | None = None,
    start: Array | None = None,
    is_non_negative: bool = False,
    n_iterations: int = 100,
    relaxation: float = 1.0,
    has_momentum: bool = False,
    damping: float = 0.0,
    reference: Array | None = None,
) -> Generator[Iterate, None, None]:
    """Simultaneous iterative reconstruction: slow, smooth, and kind to errors of the data.

    Parameters
    ----------
    b : array of the range
        Line integrals.
    weights : array that fits the range, optional
        1 / variance of the line integrals; 0 leaves one out.
    start : array of the domain, optional
        None: 0.
    damping : float
        Pulls towards `reference` (None: 0): damping / 2 |x - reference|^2 is added to half the weighted error, whose
        weights are over the lengths of the rays.
    """
    b = as_data(A, b)
    yield from descend(
        A,
        SquaredError(b, weights, is_by_length=True),
        as_start(A, start, b),
        is_start_zero=start is None,
        n_iterations=n_iterations,
        relaxation=relaxation,
        has_momentum=has_momentum,
        is_non_negative=is_non_negative,
        damping=damping,
        reference=reference,
    )


def os_sart(
    A: Operator,
    b: Array,
    *,
    weights: Array | None = None,
    start: Array | None = None,
    is_non_negative: bool = False,
    n_iterations: int = 4,
    n_subsets: int = 10,
    order: Order = "bit-reversal",
    relaxation: float = 1.0,
    has_momentum: bool = True,
    damping: float = 0.0,
    reference: Array | None = None,
) -> Generator[Iterate, None, None]:
    """SIRT by ordered subsets, with momentum: the fast one. As many subsets as views, without momentum, is SART.

    Parameters are those of `sirt`; an iteration is a pass over all subsets.
    """
    b = as_data(A, b)
    yield from descend(
        A,
        SquaredError(b, weights, is_by_length=True),
        as_start(A, start, b),
        is_start_zero=start is None,
        n_iterations=n_iterations,
        n_subsets=min(n_subsets, A.range_shape[1]) if len(A.range_shape) > 1 else n_subsets,
        order=order,
        relaxation=relaxation,
        has_momentum=has_momentum,
        is_non_negative=is_non_negative,
        damping=damping,
        reference=reference,
    )


def cgls(
    A: Operator,
    b: Array,
    *,
    weights: Array | None = None,
    start: Array | None = None,
    n_iterations: int = 20,
    damping: float = 0.0,
    reference: Array | None = None,
    is_preconditioned: bool = False,
) -> Generator[Iterate, None, None]:
    """Conjugate gradients on the normal equations: the fewest iterations of all without constraint.

    Channels that the operator keeps apart go each at its own pace.

    Parameters
    ----------
    damping : float
        Of damping |x - reference|^2, beside the weighted |b - A x|^2.
    is_preconditioned : bool
        By the diagonal of the separable surrogate, A^T W A 1: helps where weights or coverage are uneven.
    """
    b = as_data(A, b)
    xp, n = backend.namespace(b), A.n_channels
    x = as_start(A, start, b)
    residual = b.copy() if start is None else b - A.forward(x)
    weighted = b if weights is None else xp.empty_like(b)
    scaling = _preconditioner(A, b, weights, damping) if is_preconditioned else None

    def gradient(out: Array) -> Array:
        """Return A^T W residual - damping (x - reference), and leave W residual behind."""
        A.adjoint(_weigh(residual, weights, weighted), out=out)
        if damping:
            out -= damping * (x if reference is None else x - reference)
        return out

    downhill = gradient(xp.empty_like(x))
    direction = downhill.copy() if scaling is None else downhill * scaling
    steepness = inner_products(downhill, direction, n)
    # Below this the gradient is rounding, and steps along it lead anywhere.
    flat = float(xp.finfo(x.dtype).eps) ** 2 * steepness
    one = xp.ones(n)
    projected = xp.empty_like(b)
    for number in range(1, n_iterations + 1):
        A.forward(direction, out=projected)
        bend = inner_products(_weigh(projected, weights, weighted), projected, n) + damping * inner_products(
            direction, direction, n
        )
        length = xp.where(steepness > flat, _quotient(steepness, bend), 0)
        _scale_and_add(x, one, length, direction)
        _scale_and_add(residual, one, -length, projected)
        gradient(downhill)
        scaled = downhill if scaling is None else downhill * scaling
        following = inner_products(downhill, scaled, n)
        _scale_and_add(direction, _quotient(following, steepness), one, scaled)
        steepness = following
        squared = inner_products(residual if weights is None else weighted, residual, n)
        objective = squared
        if damping:
            away = x if reference is None else x - reference
            objective = squared + damping * inner_products(away, away, n)
        residuals = np.sqrt(backend.to_host(squared))
        yield Iterate(
            number,
            x,
            float(np.sqrt((residuals**2).sum())),
            float(objective.sum()) / 2,
            tuple(residuals.tolist()) if n > 1 else (),
        )


def _weigh(array: Array, weights: Array | None, out: Array) -> Array:
    """Return the weighted array, in `out` where there are weights."""
    return array if weights is None else np.multiply(array, weights, out=out)


def _preconditioner(A: Operator, b: Array, weights: Array | None, damping: float) -> Array:
    xp = backend.namespace(b)
    lengths = A.forward(xp.ones(A.domain_shape, b.dtype))
    diagonal = A.adjoint(lengths if weights is None else lengths * weights) + damping
    seen = diagonal > xp.finfo(b.dtype).eps * diagonal.max()
    return xp.where(seen, 1 / xp.where(seen, diagonal, 1), 0)


def lsqr(
    A: Operator,
    b: Array,
    *,
    weights: Array | None = None,
    start: Array | None = None,
    n_iterations: int = 20,
    damping: float = 0.0,
    reference: Array | None = None,
) -> Generator[Iterate, None, None]:
    """Least squares by bidiagonalisation: the iterates of `cgls`, steadier where the problem is ill-conditioned.

    Damping pulls towards where it starts, so `start` and `reference` are the same thing here: give one of them.
    """
    if start is not None and reference is not None:
        raise WrongUsage("lsqr was given a start and a reference; allowed: one, it is both", hint="cgls takes two")
    b = as_data(A, b)
    xp, n = backend.namespace(b), A.n_channels
    x = as_start(A, reference if start is None else start, b)
    root = None if weights is None else xp.sqrt(xp.broadcast_to(weights, b.shape)).astype(b.dtype)
    u = b.copy() if start is None and reference is None else b - A.forward(x)
    if root is not None:
        u *= root
    beta = _normalise(u, n)
    v = A.adjoint(u if root is None else u * root)
    alpha = _normalise(v, n)
    direction, projected, back = v.copy(), xp.empty_like(b), xp.empty_like(v)
    phi_bar, rho_bar, damped_away = beta, alpha, xp.zeros_like(beta)
    root_damping, one = math.sqrt(damping), xp.ones(n)
    for number in range(1, n_iterations + 1):
        A.forward(v, out=projected)
        if root is not None:
            projected *= root
        _scale_and_add(u, -alpha, one, projected)
        beta = _normalise(u, n)
        A.adjoint(u if root is None else np.multiply(u, root, out=projected), out=back)
        _scale_and_add(v, -beta, one, back)
        alpha = _normalise(v, n)
        rho_damped = xp.hypot(rho_bar, root_damping)
        damped_away = xp.hypot(damped_away, _quotient(root_damping * phi_bar, rho_damped))
        phi_bar = _quotient(rho_bar * phi_bar, rho_damped)
        rho = xp.hypot(rho_damped, beta)
        cosine, sine = _quotient(rho_damped, rho), _quotient(beta, rho)
        theta, rho_bar = sine * alpha, -cosine * alpha
        phi, phi_bar = cosine * phi_bar, sine * phi_bar
        _scale_and_add(x, one, _quotient(phi, rho), direction)
        _scale_and_add(direction, -_quotient(theta, rho), one, v)
        objectives = phi_bar**2 + damped_away**2
        if damping:  # phi_bar then holds the damping's share too, which it cannot tell apart
            yield Iterate(number, x, objective=float(objectives.sum()) / 2)
            continue
        residuals = np.abs(backend.to_host(phi_bar))
        yield Iterate(
            number,
            x,
            float(np.sqrt((residuals**2).sum())),
            float(objectives.sum()) / 2,
            tuple(residuals.tolist()) if n > 1 else (),
        )


def as_data(A: Operator, b: Array) -> Array:
    """Return the data as floats, or refuse what does not fit the operator."""
    if b.shape != A.range_shape:
        raise WrongUsage(f"the data have shape {b.shape}; allowed: {A.range_shape}, what {A} makes")
    return b if b.dtype.kind == "f" else b.astype(np.float32)


def as_start(A: Operator, start: Array | None, like: Array, filled: float = 0.0) -> Array:
    """Return a copy of the start that the method may overwrite, in the data's dtype and place."""
    xp = backend.namespace(like)
    if start is None:
        return xp.full(A.domain_shape, filled, like.dtype)
    if start.shape != A.domain_shape:
        raise WrongUsage(f"the start has shape {start.shape}; allowed: {A.domain_shape}")
    return xp.array(start, like.dtype, order="C", copy=True)


def _quotient(numerator: Array, denominator: Array) -> Array:
    """Return the quotient of each channel, 0 where it has come to its end."""
    xp = backend.namespace(denominator)
    return xp.where(denominator > 0, numerator / xp.where(denominator > 0, denominator, 1), 0)


def _normalise(array: Array, n_channels: int) -> Array:
    """Divide each channel by its norm, in place, and return the norms."""
    size = backend.namespace(array).sqrt(inner_products(array, array, n_channels))
    array *= _by_channel(_quotient(size**0, size), array)
    return size


def _by_channel(factor: Array, array: Array) -> Array:
    """Shape one factor per channel so that it multiplies an array."""
    return factor.reshape(-1, *(1,) * (array.ndim - 1)).astype(array.dtype)


def _scale_and_add(target: Array, scale: Array, factor: Array, more: Array) -> None:
    """Set each channel of the target to scale * target + factor * more, in place."""
    if backend.namespace(target) is np:
        descent_cpu.scale_and_add(target, scale, factor, more)
        return
    target *= _by_channel(scale, target)
    target += _by_channel(factor, target) * more
