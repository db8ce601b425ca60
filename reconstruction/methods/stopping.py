"""When an iterative method has done enough: rules that look at the log, channel by channel, and combine by | and &.

# Ref: discrepancy principle: Morozov 1966, Soviet Math. Dokl. 7, 414; for Poisson data by the weighted squared error:
#      Bardsley and Goldes 2009, Inverse Probl. 25, 095005.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reconstruction.methods.convergence import Step


class Rule(ABC):
    """Says of each channel whether it has done enough."""

    @abstractmethod
    def met(self, steps: Sequence[Step]) -> NDArray[np.bool_]:
        """Return, for each channel, whether it ends with the last step: (n_channels,), or (1,) for all together."""

    @abstractmethod
    def __str__(self) -> str:
        """Say what ended it."""

    def __or__(self, other: Rule) -> Rule:
        """End when one of both is met."""
        return _Either(first=self, second=other)

    def __and__(self, other: Rule) -> Rule:
        """End when both are met."""
        return _Both(first=self, second=other)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Either(Rule):
    first: Rule
    second: Rule

    def met(self, steps: Sequence[Step]) -> NDArray[np.bool_]:
        return self.first.met(steps) | self.second.met(steps)

    def __str__(self) -> str:
        return f"{self.first} or {self.second}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Both(Rule):
    first: Rule
    second: Rule

    def met(self, steps: Sequence[Step]) -> NDArray[np.bool_]:
        return self.first.met(steps) & self.second.met(steps)

    def __str__(self) -> str:
        return f"{self.first} and {self.second}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Iterations(Rule):
    """So many iterations, and no more."""

    count: int

    def met(self, steps: Sequence[Step]) -> NDArray[np.bool_]:
        """Return whether the last step is that one."""
        return np.array([steps[-1].number >= self.count])

    def __str__(self) -> str:
        return f"{self.count} iterations"


@dataclass(frozen=True, slots=True, kw_only=True)
class Discrepancy(Rule):
    """The residual is no larger than the noise: what is left to fit is noise.

    Parameters
    ----------
    n_data : int
        How many line integrals or counts with a weight above 0 each channel has.
    sigma : (n_channels,) float64, optional
        Standard deviation of a datum, for methods without weights. None: the residual counts in standard deviations
        already, as with weights of 1 / variance and with the methods for counts.
    slack_ratio : float
        How many times the noise is allowed: a little above 1 where the noise is not known well.
    """

    n_data: int
    sigma: NDArray[np.float64] | None = None
    slack_ratio: float = 1.0

    def __post_init__(self) -> None:
        if self.n_data < 1 or not self.slack_ratio > 0:
            raise ValueError(f"{self.n_data} data and a slack of {self.slack_ratio} cannot be; allowed: above 0")

    def met(self, steps: Sequence[Step]) -> NDArray[np.bool_]:
        """Return whether each channel's residual is down to its noise."""
        last = steps[-1]
        sigma = np.atleast_1d(1.0 if self.sigma is None else np.asarray(self.sigma, float))
        each = np.asarray(last.channel_residuals)
        if each.size:
            return each <= self.slack_ratio * sigma * math.sqrt(self.n_data)
        return np.array([last.residual <= self.slack_ratio * math.sqrt(self.n_data * float((sigma**2).sum()))])

    def __str__(self) -> str:
        return "the residual being down to the noise"


@dataclass(frozen=True, slots=True, kw_only=True)
class RelativeChange(Rule):
    """The residual falls by less than a fraction of itself from one iteration to the next, or rises."""

    fraction: float = 1e-3

    def met(self, steps: Sequence[Step]) -> NDArray[np.bool_]:
        """Return whether each channel's residual has come to rest."""
        if len(steps) < 2:
            return np.array([False])
        before, now = (np.asarray(step.channel_residuals or (step.residual,)) for step in steps[-2:])
        return before - now < self.fraction * before

    def __str__(self) -> str:
        return f"the residual changing by less than {self.fraction:g}"
