"""Rays in a view of pyqtgraph: a picture that is rough while something moves and fine when it rests.

A fine picture is made in bands of rows, each in an event of its own, so that the window answers meanwhile even where
the card is a processor (llvmpipe), and shown when it is whole. While something moves, the picture has as many pixels as
are drawn within `MOVING_S`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from OpenGL import GL
from pyqtgraph.opengl.GLGraphicsItem import GLGraphicsItem
from pyqtgraph.Qt import QtCore

from gui.volume.camera import Camera
from gui.volume.canvas import Canvas, copied_depth
from gui.volume.optics import Cut, Grains, Optics
from gui.volume.quality import Quality
from gui.volume.raycast import BAND_S, RayCaster
from gui.volume.warming import Warming

WARMING_MS = 30
"""So often it is asked whether the card is ready for rays."""
MOVING_S = 0.04
"""A picture while something moves should take no longer."""
DIVISORS = (1, 2, 3, 4, 6, 8, 12)
"""A rough picture has one pixel for so many of the screen, along each edge."""
FIRST_DIVISOR = 8
"""Before any picture has told how quick the card is."""
ROUGH_OPAQUE = 0.95
"""Where rays end while something moves."""


@dataclass(slots=True, eq=False)
class Shot:
    """A picture that is not for the screen, with a camera of its own."""

    canvas: Canvas
    camera: Camera
    quality: Quality
    depth: int = 0

    def delete(self) -> None:
        """Free what it holds on the card."""
        self.canvas.delete()
        if self.depth:
            GL.glDeleteTextures([self.depth])


class _Seen(NamedTuple):
    """All that a picture depends on."""

    width: int
    height: int
    camera: Camera
    quality: Quality
    optics: Optics | None
    cut: Cut
    grains: Grains | None


class RayCastItem(GLGraphicsItem):
    """Shows a `RayCaster` in a view of pyqtgraph that has a `camera` record; drawn after all that is opaque.

    Parameters
    ----------
    camera : callable
        Returns where the view is looked at from.
    """

    def __init__(self, camera: Callable[[], Camera]) -> None:
        super().__init__()
        self.caster = RayCaster()
        self.quality = Quality()
        self.is_moving = False
        self.divisor = FIRST_DIVISOR
        self.moving_s = 0.0
        self.shot: Shot | None = None
        self._camera = camera
        self._is_begun = self.is_warming = False
        self._warming = Warming()
        self._rough: Canvas | None = None
        self._fine: Canvas | None = None
        self._depth = 0
        self._seen: _Seen | None = None
        self._refining: QtCore.QTimer | None = None
        self.setDepthValue(100)

    @property
    def is_complete(self) -> bool:
        """Whether the fine picture of what is wanted now is shown."""
        return self._fine is not None and self._fine.is_done and self._seen is not None and self.caster.is_ready

    @property
    def resting_s(self) -> float:
        """How long the last fine picture took."""
        return self._fine.spent_s if self._fine is not None else 0.0

    def changed(self) -> None:
        """Draw anew: the optics, the cut or what is opaque is another."""
        self._seen = None
        self.update()

    def initializeGL(self) -> None:
        """Begin in the context of the view."""
        self._rough = self._fine = self._seen = None
        self._depth = 0
        self._is_begun = False
        self._refining = QtCore.QTimer(self.view())  # with which it ends
        self._refining.setSingleShot(True)
        self._refining.timeout.connect(self._refine)
        self.caster.start()

    def paint(self) -> None:
        """Draw what fits into a beat, and ask for the next one while something is missing."""
        caster = self.caster
        if caster.fault or caster.grains is None or caster.optics is None:
            return
        _, _, width, height = (int(n) for n in GL.glGetIntegerv(GL.GL_VIEWPORT))
        if not self._is_begun and self.shot is None:
            self._is_begun = True  # the first beat has enough to do without
            self.update()
        elif not caster.is_ready:
            caster.upload()
            self.update()
        elif (shot := self.shot) is None:
            self.is_warming = not self._warming.is_over(caster, self.quality, (width, height))
            if not self.is_warming:
                self._show(width, height)
            else:
                QtCore.QTimer.singleShot(WARMING_MS, self.update)
        elif shot.canvas.is_done:
            caster.place(shot.canvas)
        else:
            shot.depth = copied_depth(shot.depth, width, height)

    def _show(self, width: int, height: int) -> None:
        caster = self.caster
        now = _Seen(width, height, self._camera(), self.quality, caster.optics, caster.cut, caster.grains)
        if now != self._seen or self._fine is None or self._rough is None:
            self._seen = now
            self._depth = copied_depth(self._depth, width, height)
            self._fine = self._canvas(self._fine, width, height)
            self._rough = self._draw_rough(width, height)
        caster.place(self._fine if self._fine.is_done else self._rough)
        if not self.is_moving and not self._fine.is_done and self._refining is not None:
            self._refining.start()

    def _refine(self) -> None:
        """Draw some rows of the fine picture where nobody sees it; show it when it is whole."""
        view, fine, seen = self.view(), self._fine, self._seen
        if view is None or fine is None or seen is None or self.is_moving or not self.caster.is_ready:
            return  # what changes is painted anew, and begins anew from there
        view.makeCurrent()
        self.caster.draw(fine, seen.camera, seen.quality, self._depth, BAND_S)
        view.doneCurrent()
        if fine.is_done:
            self.update()
        else:
            assert self._refining is not None
            self._refining.start()

    def _draw_rough(self, width: int, height: int) -> Canvas:
        divisor = self.quality.divisor or self.divisor
        rough = self._canvas(self._rough, max(width // divisor, 1), max(height // divisor, 1))
        caster, quality = self.caster, replace(self.quality, opaque_share=ROUGH_OPAQUE)
        if (coarse := self._coarse(caster)) is not None:
            caster = coarse
        else:
            quality = replace(quality, step_voxels=2 * quality.step_voxels)
        caster.draw(rough, self._camera(), quality, self._depth, None)
        self.moving_s = rough.spent_s
        place = DIVISORS.index(divisor) if divisor in DIVISORS else 0
        if rough.spent_s > MOVING_S:
            self.divisor = DIVISORS[min(place + 1, len(DIVISORS) - 1)]
        elif place and rough.spent_s * (divisor / DIVISORS[place - 1]) ** 2 < 0.7 * MOVING_S:
            self.divisor = DIVISORS[place - 1]
        return rough

    def _coarse(self, caster: RayCaster) -> RayCaster | None:
        """Return what draws the volume at half the resolution, once all of that is on the card."""
        coarse = caster.coarse
        if coarse is not None and not coarse.is_ready:
            coarse.upload(BAND_S / 2)
        return coarse if coarse is not None and coarse.is_ready else None

    def _canvas(self, old: Canvas | None, width: int, height: int) -> Canvas:
        if old is not None and (old.width, old.height) == (width, height):
            old.restart()
            return old
        if old is not None:
            old.delete()
        return Canvas.of(width, height)
