"""How iterations go while they do: the residual of all bins and of each, the objective, pace and time left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyqtgraph as pg
from pyqtgraph.Qt import QtWidgets

from gui import theme
from gui.controls import clock, hint
from gui.reconstruct.form import Choice

if TYPE_CHECKING:
    from reconstruction.methods.convergence import Step

RESIDUAL, OBJECTIVE = "residual", "objective"


class ConvergencePanel(QtWidgets.QWidget):
    """Shows a log of iterations; `show_steps` is cheap while nothing is new."""

    def __init__(self) -> None:
        super().__init__()
        self._steps: tuple[Step, ...] = ()
        self._shown: tuple[object, ...] = ()
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
        self.plot.setToolTip("A method has converged where the curve is flat.")
        self.plot.setLabel("bottom", "iteration")
        self.plot.showGrid(x=True, y=True, alpha=0.2)
        self.plot.setMouseEnabled(x=False, y=False)
        self.plot.hideButtons()
        top = QtWidgets.QHBoxLayout()
        top.addWidget(self.words, 1)
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
        self._shown, self._steps = seen, tuple(steps)
        self.words.setText(progress_words(self._steps, n_iterations, is_running=is_running))
        self._draw()

    def restyle(self) -> None:
        """Take the colours of another theme."""
        self.plot.setBackground("default")
        self._draw()

    def _draw(self) -> None:
        self.plot.clear()
        name = str(self.what.value())
        if name == RESIDUAL and not any(np.isfinite(step.residual) for step in self._steps):
            name = OBJECTIVE  # some methods would need a projection more to tell it
        numbers = np.array([step.number for step in self._steps], dtype=float)
        values = np.array([getattr(step, name) for step in self._steps], dtype=float)
        is_log = bool(len(values)) and bool((values > 0).all())
        self.plot.setLogMode(x=False, y=is_log)
        self.plot.setLabel("left", f"{name}, in the noise of the data" if name == RESIDUAL else f"{name}, no unit")
        if name == RESIDUAL:
            channels = zip(*(step.channel_residuals for step in self._steps), strict=False)
            for number, channel in enumerate(channels):
                own = np.array(channel, dtype=float)
                if not is_log or (own > 0).all():
                    self.plot.plot(numbers, own, pen=pg.mkPen(theme.SERIES[number % len(theme.SERIES)], width=1))
        if np.isfinite(values).any():
            colour = theme.SERIES[0]
            self.plot.plot(
                numbers, values, pen=pg.mkPen(colour, width=3), symbol="o", symbolSize=6, symbolBrush=colour,
                symbolPen=None,
            )  # fmt: skip


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
