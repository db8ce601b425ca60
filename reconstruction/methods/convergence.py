"""How an iterative reconstruction went: a line per iteration, and a plot of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from calibration.progress import Progress
from reconstruction.methods.iterates import Iterate


class Step(NamedTuple):
    """What is kept of an iteration.

    Attributes
    ----------
    residual, objective, channel_residuals
        As in `Iterate`.
    seconds : float
        Since the method was started.
    """

    number: int
    residual: float
    objective: float
    channel_residuals: tuple[float, ...]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvergenceLog:
    """All iterations of a run, and what ended it."""

    method: str
    steps: tuple[Step, ...]
    ended_by: str

    def table(self) -> dict[str, object]:
        """Return the log as files and JSON take it, step by step in columns; what is unknown is None."""
        columns = ("number", "residual", "objective", "seconds")
        return {
            "method": self.method,
            "ended_by": self.ended_by,
            **{name: [_known(getattr(step, name)) for step in self.steps] for name in columns},
            "channel_residuals": [list(step.channel_residuals) for step in self.steps],
        }

    @classmethod
    def of_table(cls, table: Mapping[str, Any]) -> ConvergenceLog:
        """Return the log that `table` made."""
        columns = [table[name] for name in ("number", "residual", "objective", "channel_residuals", "seconds")]
        steps = (
            Step(number, _float(residual), _float(objective), tuple(channels), seconds)
            for number, residual, objective, channels, seconds in zip(*columns, strict=True)
        )
        return cls(method=table["method"], steps=tuple(steps), ended_by=table["ended_by"])

    def plot(self, path: str | Path) -> Path:
        """Draw residual and objective against the iterations; the ending of the name says which kind of picture."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4), layout="constrained")
        residual_axes = figure.subplots()
        numbers = [step.number for step in self.steps]
        channels = list(zip(*(step.channel_residuals for step in self.steps), strict=True))
        for index, residuals in enumerate(channels, 1):
            residual_axes.plot(numbers, residuals, lw=0.8, alpha=0.6, label=f"channel {index}")
        residual_axes.plot(numbers, [step.residual for step in self.steps], "k.-", label="residual")
        objective_axes = residual_axes.twinx()
        objective_axes.plot(numbers, [step.objective for step in self.steps], "C1.--", label="objective")
        for axes, name in ((residual_axes, "residual"), (objective_axes, "objective")):
            values = [getattr(step, name) for step in self.steps]
            if all(value > 0 for value in values):
                axes.set_yscale("log")
            axes.set_ylabel(name)
        residual_axes.set_xlabel("iteration")
        residual_axes.set_title(f"{self.method}, ended by {self.ended_by}")
        lines = [*residual_axes.get_lines(), *objective_axes.get_lines()]
        residual_axes.legend(lines, [str(line.get_label()) for line in lines], fontsize=8)
        figure.savefig(path, dpi=120)
        return Path(path)


class Iteration(Progress):
    """Progress that tells how an iteration went, for whoever looks on while a method works."""

    step: Step

    @classmethod
    def of(cls, method: str, step: Step, n_iterations: int) -> Iteration:
        """Return how far a method is after this step."""
        made = cls(method, min(step.number, n_iterations), n_iterations)
        made.step = step
        return made


def _float(value: float | None) -> float:
    return math.nan if value is None else value


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def timed(iterates: Iterable[Iterate], clock_s: Callable[[], float]) -> Generator[tuple[Iterate, Step], None, None]:
    """Yield every iterate with its line for the log."""
    began_s = clock_s()
    for iterate in iterates:
        yield (
            iterate,
            Step(iterate.number, iterate.residual, iterate.objective, iterate.channel_residuals, clock_s() - began_s),
        )


def logged(
    iterates: Iterable[Iterate], method: str, n_iterations: int
) -> Generator[Progress, None, tuple[Any, ConvergenceLog]]:
    """Go through all iterates; return the volume of the last one, and how they went."""
    yield Progress(method, 0, n_iterations)
    volume, steps = None, []
    for iterate, step in timed(iterates, time.monotonic):
        volume = iterate.volume
        steps.append(step)
        yield Iteration.of(method, step, n_iterations)
    return volume, ConvergenceLog(method=method, steps=tuple(steps), ended_by=f"{n_iterations} iterations")
