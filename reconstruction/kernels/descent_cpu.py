"""The step of a descent in one walk through memory: what NumPy would do in six."""

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
