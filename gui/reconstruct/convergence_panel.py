"""How iterations go while they do: the residual of all bins and of each, the objective, pace and time left."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyqtgraph as pg
from numpy.typing import NDArray
from pyqtgraph.Qt import QtWidgets

from gui import theme
from gui.controls import clock, hint
from gui.reconstruct.form import Choice

if TYPE_CHECKING:
    from reconstruction.methods.convergence import Step

RESIDUAL, OBJECTIVE = "residual", "objective"
TOGETHER = "all together"
LOG_FROM = 3.0
"""Curves that fall by more than this are drawn on a logarithmic axis."""
MOST_TICKS = 10
LEAST_S = 0.2
"""From one drawing to the next, while iterations come quickly."""


class ConvergencePanel(QtWidgets.QWidget):
    """Shows a log of iterations; `show_steps` is cheap while nothing is new."""

    def __init__(self) -> None:
        super().__init__()
        self._steps: tuple[Step, ...] = ()
        self._shown: tuple[object, ...] = ()
        self._drawn_s = 0.0
        self._curves: dict[str, pg.PlotDataItem] = {}
        self.what = Choice(
            "Which figure to plot.",
            [
                ("residual", RESIDUAL, "How far the volume's views are from those measured; thin lines: each bin."),
                ("objective", OBJECTIVE, "What the method makes small: misfit and prior together."),
            ],
        )
        self.what.chosen.connect(self._draw)
        self.words = hint("Nothing has been iterated yet; a back-projection has no iterations.")
        self.plot = pg.PlotWidget()
        self.plot.setToolTip(
            "Residual: the norm of what measured and computed views differ by, in standard deviations where data count "
            "by their noise; thin lines: each bin. A method has converged where the curve is flat."
        )
        self.plot.getAxis("left").enableAutoSIPrefix(False)
        self.plot.setLabel("bottom", "iteration")
        self.plot.showGrid(x=True, y=True, alpha=0.2)
        self.plot.setMouseEnabled(x=False, y=False)
        self.plot.hideButtons()
        self.key = QtWidgets.QLabel()
        top = QtWidgets.QHBoxLayout()
        top.addWidget(self.words, 1)
        top.addWidget(self.key)
        top.addWidget(self.what)
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(top)
        layout.addWidget(self.plot, 1)

    def show_steps(self, steps: Sequence[Step], n_iterations: int = 0, *, is_running: bool = False) -> None:
        """Show iterations so far.

        Parameters
        ----------
        n_iterations : int
            That are to be made; 0: not known.
        """
        seen = (len(steps), steps[-1] if steps else None, n_iterations, is_running)
        if seen == self._shown:
            return
        now_s = time.monotonic()
        if is_running and steps and now_s - self._drawn_s < LEAST_S:
            return
        self._shown, self._steps, self._drawn_s = seen, tuple(steps), now_s
        self.words.setText(progress_words(self._steps, n_iterations, is_running=is_running))
        self._draw()

    def restyle(self) -> None:
        """Take the colours of another theme."""
        theme.restyle_plot(self.plot)
        self._draw()

    def _draw(self) -> None:
        name = str(self.what.value())
        if name == RESIDUAL and not any(np.isfinite(step.residual) for step in self._steps):
            name = OBJECTIVE  # some methods would need a projection more to tell it
        numbers = np.array([step.number for step in self._steps], dtype=float)
        values = np.array([getattr(step, name) for step in self._steps], dtype=float)
        is_log = bool(len(values) and (values > 0).all() and values.max() > LOG_FROM * values.min())
        self.plot.setLogMode(x=False, y=is_log)
        self.plot.setLabel("left", name)
        last = int(numbers[-1]) if len(numbers) else 1
        every = max(-(-last // MOST_TICKS), 1)
        self.plot.getAxis("bottom").setTicks([[(n, str(n)) for n in range(every, last + 1, every)]])
        self.plot.getAxis("left").setTicks(_log_ticks(values) if is_log else None)
        curves: dict[str, NDArray[np.float64]] = {}
        if name == RESIDUAL:
            channels = zip(*(step.channel_residuals for step in self._steps), strict=False)
            own = {f"bin {number}": np.array(channel, dtype=float) for number, channel in enumerate(channels, 1)}
            curves |= {each: curve for each, curve in own.items() if not is_log or (curve > 0).all()}
        if np.isfinite(values).any():
            curves[TOGETHER] = values
        if curves.keys() != self._curves.keys():
            self.plot.clear()
            pens = {each: _pen(number) for number, each in enumerate(curves)}
            if TOGETHER in pens:
                pens[TOGETHER] = pg.mkPen(theme.SERIES[0], width=3)
            self._curves = {each: self.plot.plot(name=each, pen=pen) for each, pen in pens.items()}
            key = (f'<span style="color:{pen.color().name()}">\N{EM DASH}</span> {each}' for each, pen in pens.items())
            self.key.setText(" &nbsp; ".join(key))
        for each, curve in curves.items():
            self._curves[each].setData(numbers, curve)


def _pen(number: int) -> Any:
    return pg.mkPen(theme.SERIES[(number + 1) % len(theme.SERIES)], width=1)


def _log_ticks(values: NDArray[np.float64]) -> list[list[tuple[float, str]]]:
    """Return ticks at 1, 2 and 5 times powers of ten, as a logarithmic axis places them."""
    powers = range(int(np.floor(np.log10(values.min()))) - 1, int(np.ceil(np.log10(values.max()))) + 1)
    at = [step * 10.0**power for power in powers for step in (1, 2, 5)]
    if len(powers) > 5:
        at = at[::3]
    return [[(float(np.log10(value)), f"{value:g}") for value in at]]


def progress_words(steps: Sequence[Step], n_iterations: int, *, is_running: bool) -> str:
    """Say how far iterations are, how long each takes, and how long the rest will."""
    if not steps:
        return "The first iteration is being made." if is_running else "Nothing has been iterated yet."
    last = steps[-1]
    each_s = last.seconds / max(last.number, 1)
    of = f" of {n_iterations}" if n_iterations else ""
    words = f"Iteration {last.number}{of}, {each_s:.2g} s each"
    words += f", residual {last.residual:.3g}" if math.isfinite(last.residual) else ""
    if is_running and n_iterations > last.number:
        words += f", about {clock(each_s * (n_iterations - last.number))} left"
    return words
