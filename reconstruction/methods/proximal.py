"""Regularised reconstruction: least squares plus a prior, by proximal methods.

`fista` and `pdhg` make ||A x - b||_W^2 / 2 + h * prior(x) least, over x >= 0 if that is wanted. W are statistical
weights, and h is the mean curvature of the data term (`data_curvature`), so that a prior's strength keeps its meaning
whatever the scan. `plug_and_play` puts a denoiser where the prior's prox stood.

All go through the views in ordered subsets, and through fewer of them once the objective no longer falls, so that they
are fast at first and end where one subset ends.

# Ref: FISTA: Beck and Teboulle 2009, SIAM J. Imaging Sci. 2, 183; its restart: O'Donoghue and Candes 2015, Found.
#      Comput. Math. 15, 715; by ordered subsets: Kim, Ramani and Fessler 2015, IEEE Trans. Med. Imaging 34, 167.
# Ref: PDHG: Chambolle and Pock 2011, J. Math. Imaging Vis. 40, 120; for CT: Sidky, Jorgensen and Pan 2012, Phys. Med.
#      Biol. 57, 3065; by subsets: Chambolle, Ehrhardt, Richtarik and Schonlieb 2018, SIAM J. Optim. 28, 2783.
# Ref: plug and play: Venkatakrishnan, Bouman and Wohlberg 2013, IEEE GlobalSIP, 945; in place of FISTA's prox: Kamilov,
#      Mansour and Wohlberg 2017, IEEE Signal Process. Lett. 24, 1872.
# Ref: mean of a matrix's diagonal from random signs: Hutchinson 1990, Commun. Stat. Simul. Comput. 19, 433.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from typing import NamedTuple

import numpy as np

from firmware_iface.errors import WrongUsage
from reconstruction.backend import Array, namespace
from reconstruction.methods.denoisers import Denoiser
from reconstruction.methods.iterates import Iterate
from reconstruction.methods.least_squares import as_data, as_start
from reconstruction.methods.subsets import ordered_subsets, size_of
from reconstruction.operators import Operator, inner_products
from reconstruction.priors import Prior

POWER_ITERATIONS = 3
MARGIN = 1.05
"""What power iteration may lack of the largest curvature."""
BACKTRACKING = 1.5
RISEN = 1 + 1e-5
"""An objective that rises by less has done so by rounding."""
MOST_PRECISION = 16
"""Times the inner steps that a prox begins with."""


def data_curvature(A: Operator, weights: Array | None, like: Array) -> float:
    """Return the mean of the diagonal of A^T W A, estimated by one projection of random signs; the same every time."""
    signs = np.random.default_rng(0).integers(0, 2, A.domain_shape, dtype=np.int8) * 2 - 1
    projected = A.forward(namespace(like).asarray(signs.astype(like.dtype)))
    return _norm2(projected, weights) / math.prod(A.domain_shape)


def largest_curvature(A: Operator, weights: Array | None, like: Array, n_iterations: int = POWER_ITERATIONS) -> float:
    """Return the largest eigenvalue of A^T W A, from below, by power iteration from a flat image."""
    x = namespace(like).ones(A.domain_shape, like.dtype)
    curvature = 0.0
    for _ in range(n_iterations):
        x /= math.sqrt(_norm2(x))
        x = A.adjoint(_weighted(A.forward(x), weights))
        curvature = math.sqrt(_norm2(x))
        if not curvature > 0:
            raise WrongUsage("there is nothing to reconstruct from: no ray with a weight meets the volume")
    return curvature


def fista(
    A: Operator,
    b: Array,
    prior: Prior,
    *,
    weights: Array | None = None,
    start: Array | None = None,
    is_non_negative: bool = True,
    n_iterations: int = 20,
    n_subsets: int = 10,
    n_prox_iterations: int = 5,
    has_momentum: bool = True,
    has_restart: bool = True,
) -> Generator[Iterate, None, None]:
    """Yield what accelerated proximal gradient steps make of data.

    Parameters
    ----------
    A : Operator
    b : (n_channels, n_views, rows, cols) float
        Line integrals.
    prior : Prior
    weights : array that broadcasts with `b`, optional
        Statistical weights: the reciprocal of each value's variance, or in proportion to it.
    start : (n_channels, z, y, x) float, optional
        Zero otherwise.
    n_subsets : int
        Parts of the views to begin with, each of which gives a step; an iteration goes through all.
    n_prox_iterations : int
        Inner steps of every prox to begin with; its dual variable is kept from one to the next. Where the objective
        rises with one subset they were too few, since nothing else makes it: there will be twice as many.
    has_momentum : bool
        Without it, and with one subset, the objective never rises.
    has_restart : bool
        Begin the momentum anew where it points uphill.

    Yields
    ------
    Iterate
        With one subset the residual and the objective are those of the volume, otherwise as each subset was met.
    """
    b = as_data(A, b)
    x = as_start(A, start, b)
    scale = data_curvature(A, weights, x)
    prox = prior.prepare(x)

    def denoise(out: Array, noisy: Array, curvature: float, precision: int) -> None:
        n_inner = n_prox_iterations * precision
        prox.prox(out, noisy, scale / curvature, n_iterations=n_inner, is_non_negative=is_non_negative)

    yield from _descend(
        _Data(A, b, weights),
        x,
        denoise,
        lambda volume: scale * prox.value(volume),
        n_iterations=n_iterations,
        n_subsets=n_subsets,
        momentum=_Momentum(has_momentum, has_restart),
        is_start_zero=start is None,
    )


def plug_and_play(
    A: Operator,
    b: Array,
    denoiser: Denoiser,
    *,
    weights: Array | None = None,
    start: Array | None = None,
    is_non_negative: bool = True,
    n_iterations: int = 20,
    n_subsets: int = 1,
    has_momentum: bool = True,
) -> Generator[Iterate, None, None]:
    """Yield what gradient steps and a denoiser in turns make of data; there is no objective.

    Parameters
    ----------
    A, b, weights, start, is_non_negative, n_subsets, has_momentum
        As `fista` has them.
    denoiser : Denoiser
        Of `reconstruction.methods.denoisers`. It is told the noise that it is to take away from each step: its own
        level, over the root of how much steeper the data term's steepest slope is than its mean one.
    """
    if isinstance(denoiser, Prior) or not callable(denoiser):
        raise WrongUsage(f"plug-and-play takes a denoiser, not {denoiser}", hint="fista and pdhg take priors")
    b = as_data(A, b)
    x = as_start(A, start, b)
    scale = data_curvature(A, weights, x)

    def denoise(out: Array, noisy: Array, curvature: float, _precision: int) -> None:
        out[...] = denoiser(noisy, math.sqrt(scale / curvature))
        if is_non_negative:
            np.maximum(out, 0, out=out)

    yield from _descend(
        _Data(A, b, weights),
        x,
        denoise,
        None,
        n_iterations=n_iterations,
        n_subsets=n_subsets,
        momentum=_Momentum(has_momentum, True),
        is_start_zero=start is None,
    )


def pdhg(
    A: Operator,
    b: Array,
    prior: Prior,
    *,
    weights: Array | None = None,
    start: Array | None = None,
    is_non_negative: bool = True,
    n_iterations: int = 20,
    n_subsets: int = 10,
    n_prox_iterations: int = 2,
    balance: float = 0.3,
) -> Generator[Iterate, None, None]:
    """Yield what primal-dual steps make of data: each subset of the views has a dual variable, updated in its turn.

    The number of subsets stays; the minimum is the same for every one. Where only few views are at hand, or the prior
    is strong, this comes closer to it than `fista`.

    Parameters
    ----------
    A, b, prior, weights, start, is_non_negative
        As `fista` has them.
    n_subsets : int
        Parts of the views; an iteration goes through all.
    n_prox_iterations : int
        Steps of the prior's dual variable to each step of the data's.
    balance : float
        Dual over primal steps. At 1 the data's dual variable follows the residual at once; less makes longer steps.

    Yields
    ------
    Iterate
        Residual and objective as each subset was met: with one subset those of the volume.
    """
    if not balance > 0:
        raise WrongUsage(f"balance is {balance}; allowed: more than 0")
    b = as_data(A, b)
    x = as_start(A, start, b)
    data = _Data(A, b, weights)
    scale = data_curvature(A, weights, x)
    prox = prior.prepare(x)
    parts = data.parts(n_subsets)
    # equal parts of an orbit have much the same curvature; the first stands for all
    bound = MARGIN * largest_curvature(parts[0].A, parts[0].weights, x)
    step = 1 / (balance * len(parts) * bound)
    xp = namespace(x)
    duals = [xp.zeros_like(part.b) for part in parts]
    gathered, extrapolated, base = xp.zeros_like(x), xp.zeros_like(x), xp.empty_like(x)
    if start is not None:  # duals that agree with it: the start is then where the method would be had it come there
        for dual, part in zip(duals, parts, strict=True):
            dual[...] = _weighted(part.A.forward(x) - part.b, part.weights)
            gathered += part.A.adjoint(dual)
        extrapolated[...] = gathered
    for number in range(1, n_iterations + 1):
        residuals2 = 0.0
        for part, dual in zip(parts, duals, strict=True):
            xp.multiply(extrapolated, -step, out=base)
            base += x
            prox.prox(x, base, step * scale, n_iterations=n_prox_iterations, is_non_negative=is_non_negative)
            difference, squares = part.residual(x)
            residuals2 = residuals2 + squares
            change = (balance * _weighted(difference, part.weights) - balance * dual) / (1 + balance)
            dual += change
            change = part.A.adjoint(change)
            gathered += change
            xp.multiply(change, len(parts), out=extrapolated)
            extrapolated += gathered
        yield _iterate(number, x, residuals2, scale * prox.value(x))


def _descend(
    data: _Data,
    x: Array,
    denoise: Callable[[Array, Array, float, int], None],
    penalty: Callable[[Array], float] | None,
    *,
    n_iterations: int,
    n_subsets: int,
    momentum: _Momentum,
    is_start_zero: bool,
) -> Generator[Iterate, None, None]:
    """Go down the data's gradient and denoise, in turns; through halved subsets where the objective has risen.

    Where it rises with one subset, the momentum begins anew and denoising is done more precisely.
    """
    bound = MARGIN * largest_curvature(data.A, data.weights, x)
    xp = namespace(x)
    y, new, noisy = x.copy(), xp.empty_like(x), xp.empty_like(x)

    def step(gradient: Array, share: float) -> float:
        """Fill `new`; return how far to extrapolate from there."""
        xp.multiply(gradient, -share / bound, out=noisy)
        np.add(noisy, y, out=noisy)
        denoise(new, noisy, bound, precision)
        return momentum.after(y, new, x)

    number, lowest, precision = 0, math.inf, 1
    while n_subsets > 1 and number < n_iterations:
        number += 1
        residuals2 = 0.0
        for part in data.parts(n_subsets):
            difference, squares = part.residual(y)
            residuals2 = residuals2 + squares
            ahead = step(part.A.adjoint(_weighted(difference, part.weights)), part.share)
            _extrapolate(y, new, x, ahead)
            x[...] = new
        iterate = _iterate(number, x, residuals2, math.nan if penalty is None else penalty(x))
        yield iterate
        goal = iterate.residual if penalty is None else iterate.objective
        if goal > lowest:
            n_subsets = -(-n_subsets // 2)
            momentum.restart()
            y[...] = x
        lowest = min(goal, lowest)

    whole = data.parts(1)[0]
    seen = xp.zeros_like(data.b) if number == 0 and is_start_zero else whole.A.forward(x)
    y[...], y_seen = x, seen
    momentum.restart()
    lowest = math.inf
    while number < n_iterations:
        number += 1
        gradient = whole.A.adjoint(_weighted(y_seen - data.b, data.weights))
        ahead = step(gradient, 1.0)
        new_seen = whole.A.forward(new)
        rounding = (10 * xp.finfo(x.dtype).eps) ** 2 * _norm2(new_seen, data.weights)
        while _norm2(new_seen - y_seen, data.weights) > max(bound * _norm2(new - y), rounding):
            bound *= BACKTRACKING
            ahead = step(gradient, 1.0)
            new_seen = whole.A.forward(new)
        _extrapolate(y, new, x, ahead)
        y_seen = new_seen + ahead * (new_seen - seen)
        x[...], seen = new, new_seen
        iterate = _iterate(number, x, whole.squares(seen - data.b), math.nan if penalty is None else penalty(x))
        yield iterate
        if iterate.objective > lowest * RISEN:
            momentum.restart()
            y[...], y_seen = x, seen
            precision = min(2 * precision, MOST_PRECISION)
        lowest = min(iterate.objective, lowest)


class _Momentum:
    """How far to go on in the direction of the last step."""

    def __init__(self, is_on: bool, has_restart: bool) -> None:
        self._is_on, self._has_restart = is_on, has_restart
        self._t = 1.0

    def restart(self) -> None:
        """Begin anew."""
        self._t = 1.0

    def after(self, y: Array, new: Array, old: Array) -> float:
        """Return the factor after a step from `y` to `new`, where the step before ended in `old`."""
        if not self._is_on:
            return 0.0
        if self._has_restart and _dot(y - new, new - old) > 0:
            self._t = 1.0
        before, self._t = self._t, (1 + math.sqrt(1 + 4 * self._t * self._t)) / 2
        return (before - 1) / self._t


class _Part(NamedTuple):
    """One subset of the views: its operator, data and weights, and how many times it counts to stand for all."""

    A: Operator
    b: Array
    weights: Array | None
    share: float

    def residual(self, x: Array) -> tuple[Array, Array]:
        """Return A x - b, and its weighted square for each channel."""
        difference = self.A.forward(x)
        difference -= self.b
        return difference, self.squares(difference)

    def squares(self, difference: Array) -> Array:
        """Return the weighted square of a residual for each channel."""
        return inner_products(difference, _weighted(difference, self.weights), self.A.n_channels)


class _Data:
    """Operator, data and weights, whole or by ordered subsets."""

    def __init__(self, A: Operator, b: Array, weights: Array | None) -> None:
        self.A, self.b, self.weights = A, b, weights
        self._parts: dict[int, list[_Part]] = {}

    def parts(self, n_subsets: int) -> list[_Part]:
        """Return the subsets in the order of their visits."""
        if n_subsets == 1:
            return [_Part(self.A, self.b, self.weights, 1.0)]
        if n_subsets not in self._parts:
            n_views = self.b.shape[1]
            spread = None if self.weights is None else namespace(self.b).broadcast_to(self.weights, self.b.shape)
            self._parts = {
                n_subsets: [
                    _Part(
                        self.A.subset(views),
                        self.b[:, views],
                        None if spread is None else spread[:, views],
                        n_views / size_of(views, n_views),
                    )
                    for views in ordered_subsets(n_views, n_subsets)
                ]
            }
        return self._parts[n_subsets]


def _iterate(number: int, x: Array, residuals2: Array, penalty: float) -> Iterate:
    squares = [float(square) for square in residuals2]
    total = math.fsum(squares)
    by_channel = tuple(math.sqrt(square) for square in squares) if len(squares) > 1 else ()
    return Iterate(number, x, math.sqrt(total), total / 2 + penalty, by_channel)


def _extrapolate(y: Array, new: Array, old: Array, ahead: float) -> None:
    """Fill `y` with the point on the line from `old` to `new` that lies past `new` by so many of their distances."""
    namespace(y).subtract(new, old, out=y)
    y *= ahead
    y += new


def _weighted(y: Array, weights: Array | None) -> Array:
    return y if weights is None else weights * y


def _dot(a: Array, b: Array) -> float:
    return float(inner_products(a, b)[0])


def _norm2(a: Array, weights: Array | None = None) -> float:
    return _dot(a, _weighted(a, weights))
