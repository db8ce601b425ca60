"""Steps of iterative methods in one walk through memory each, where NumPy would go several times and need room."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray


def step(
    x: NDArray[np.floating],
    extrapolated: NDArray[np.floating],
    gradient: NDArray[np.floating],
    inverse_hessian: NDArray[np.floating],
    relaxation: float,
    momentum: float,
    is_non_negative: bool,
) -> None:
    """Set x to extrapolated - relaxation * gradient * inverse_hessian, and extrapolate from its old place.

    All arrays are contiguous and of one shape and dtype; `extrapolated` may be `x`.
    """
    share, further, lowest = (x.dtype.type(c) for c in (relaxation, momentum, 0.0 if is_non_negative else -np.inf))
    new, downhill, scale = x.reshape(-1), gradient.reshape(-1), inverse_hessian.reshape(-1)
    if extrapolated is x:
        _step(new, downhill, scale, share, lowest)
    else:
        _step_with_momentum(new, extrapolated.reshape(-1), downhill, scale, share, further, lowest)


@njit(cache=True, nogil=True)
def _step(x, gradient, inverse_hessian, relaxation, lowest):  # noqa: ANN001, ANN202
    for i in range(len(x)):
        x[i] = max(x[i] - relaxation * gradient[i] * inverse_hessian[i], lowest)


@njit(cache=True, nogil=True)
def _step_with_momentum(x, extrapolated, gradient, inverse_hessian, relaxation, momentum, lowest):  # noqa: ANN001, ANN202
    for i in range(len(x)):
        new = max(extrapolated[i] - relaxation * gradient[i] * inverse_hessian[i], lowest)
        extrapolated[i] = new + momentum * (new - x[i])
        x[i] = new


def scale_and_add(
    target: NDArray[np.floating], scales: NDArray[np.float64], factors: NDArray[np.float64], more: NDArray[np.floating]
) -> None:
    """Set each channel of the target to scale * target + factor * more, in place; both arrays are contiguous."""
    shape, dtype = (len(scales), -1), target.dtype
    _scale_and_add(target.reshape(shape), scales.astype(dtype), factors.astype(dtype), more.reshape(shape))


@njit(cache=True, nogil=True)
def _scale_and_add(target, scales, factors, more):  # noqa: ANN001, ANN202
    for channel in range(len(target)):
        scale, factor = scales[channel], factors[channel]
        row, other = target[channel], more[channel]
        for i in range(len(row)):
            row[i] = scale * row[i] + factor * other[i]
