"""A movie being made: frame after frame is drawn at the window's beat, and a thread writes them."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pyqtgraph.Qt import QtGui

from gui.controls import clock
from gui.volume.camera import Camera
from gui.volume.movie import Frames, Shot, written
from gui.volume.optics import Cut
from gui.workers import Job

MOST_WAITING = 8
"""Frames that are drawn and not yet written; the drawing waits for the writing then."""


class Stage(Protocol):
    """What is filmed; see `gui.volume.scene.VolumeScene`."""

    def picture(  # noqa: D102
        self, width: int, height: int, then: Callable[[QtGui.QImage], object], *, camera: Camera | None = None
    ) -> None: ...
    def show_cut(self, cut: Cut) -> None: ...  # noqa: D102
    def run(self, name: str, job: Job[Any], then: Callable[[Any], object]) -> None: ...  # noqa: D102


class Filming:
    """Draws the shots of a movie one after the other.

    Parameters
    ----------
    ended : callable
        Told where the movie is; not called where it failed, which the stage tells.
    """

    def __init__(
        self, stage: Stage, shots: Sequence[Shot], size: tuple[int, int], path: Path, ended: Callable[[Path], object]
    ) -> None:
        self._stage, self._shots, self._size = stage, list(shots), size
        self._frames: Frames = queue.Queue(MOST_WAITING)
        self._job: Job[Path] = Job("Movie", written(path, self._frames, len(shots)))
        self._next = 0
        self._is_drawing = False
        stage.run("movie", self._job, ended)

    @property
    def is_over(self) -> bool:
        """Whether nothing is written any more."""
        return self._job.is_over

    @property
    def words(self) -> str:
        """How far it is."""
        now = self._job.snapshot()
        left = f", about {clock(now.left_s)} left" if now.left_s is not None else ""
        return f"{now.stage}: {now.done} of {now.total}{left}" if now.total > 1 else now.stage

    def beat(self) -> None:
        """Begin the next frame if there is one, and room for it."""
        if self._is_drawing or self.is_over or self._next >= len(self._shots) or self._frames.full():
            return
        shot = self._shots[self._next]
        self._next += 1
        self._is_drawing = True
        self._stage.show_cut(shot.cut)
        self._stage.picture(*self._size, self._take, camera=shot.camera)

    def stop(self) -> None:
        """Make a movie of the frames that are there."""
        self._next = len(self._shots)
        if not self._frames.full():
            self._frames.put_nowait(None)

    def _take(self, image: QtGui.QImage) -> None:
        self._is_drawing = False
        self._frames.put_nowait(_pixels(image))


def _pixels(image: QtGui.QImage) -> np.ndarray:
    image = image.convertToFormat(QtGui.QImage.Format.Format_RGB888)
    rows = np.frombuffer(image.constBits(), dtype=np.uint8).reshape(image.height(), image.bytesPerLine())
    return rows[:, : 3 * image.width()].reshape(image.height(), image.width(), 3).copy()
