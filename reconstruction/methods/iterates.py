"""What an iterative method yields after every iteration, so that its caller can watch it and stop it."""

from __future__ import annotations

from typing import NamedTuple

from reconstruction.backend import Array


class Iterate(NamedTuple):
    """One step of an iterative method.

    Attributes
    ----------
    number : int
        From 1; 0 is the start.
    volume : (n_channels, z, y, x) float32
        The method's own array, which the next iteration overwrites: copy it to keep it.
    residual : float
        Norm of what the data and the projected volume differ by, weighted by the data's weights (in standard
        deviations where those are 1 / variance); NaN where the method does not know it without a projection more.
    objective : float
        What the method makes small, at this iterate; NaN where it does not know it.
    channel_residuals : tuple of float
        The residual of each channel; empty where the operator mixes channels or the method does not tell.
    """

    number: int
    volume: Array
    residual: float = float("nan")
    objective: float = float("nan")
    channel_residuals: tuple[float, ...] = ()
