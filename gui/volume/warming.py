"""The shaders of rays, compiled in a thread before they are needed, since a driver takes half a second for one.

A thread has a context of its own and draws a picture of a few pixels in it, with all that a driver compiles for as it
will be on the screen. What it compiled lies in the driver's cache then, where the context of the screen finds it.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import replace

import numpy as np
from OpenGL import GL
from pyqtgraph.Qt import QtGui

from calibration.progress import Progress
from gui.volume.camera import Camera
from gui.volume.canvas import Canvas, copied_depth
from gui.volume.optics import Grains, Optics
from gui.volume.quality import Quality
from gui.volume.raycast import RayCaster
from gui.workers import Job, JobStatus

Needs = tuple[object, ...]
"""All that a driver may compile anew for; the software driver does for edges that are powers of two."""
QUICK_S = 0.08
"""Of the processor's time: what takes longer was compiled, and not found in the driver's cache."""
WAITS_S = (0.0, 0.1, 0.2, 0.4, 0.8)
"""Before each try; where a driver keeps no cache, no more would help."""


class Warming:
    """Compiles for each kind of picture once; lives in the thread of the window."""

    def __init__(self) -> None:
        self._done: set[Needs] = set()
        self._job: tuple[Needs, Job[str], QtGui.QOffscreenSurface] | None = None

    def is_over(self, caster: RayCaster, quality: Quality, size: tuple[int, int]) -> bool:
        """Say whether a picture (width, height) can be drawn without waiting for a compiler; begin where it cannot.

        Where a thread cannot have a context this holds too: the screen compiles for itself then.
        """
        if (grains := caster.grains) is None or (optics := caster.optics) is None:
            return True
        small_size = _small(size)
        needs = (*_shapes(grains), quality.is_shaded, bool(optics.bend.any()), small_size)
        if self._job is not None and (job := self._job[1]).is_over:
            self._done.add(self._job[0])
            self._job = None
            if job.snapshot().status is JobStatus.DONE:
                caster.fault = job.result
        if needs in self._done:
            return True
        if self._job is None:
            surface = QtGui.QOffscreenSurface()
            surface.create()
            work = _remembered(surface, _tiny(grains), optics, quality, small_size)
            self._job = needs, Job("Compiling for the graphics card", work).start(), surface
        return False


def _remembered(
    surface: QtGui.QOffscreenSurface, grains: Grains, optics: Optics, quality: Quality, size: tuple[int, ...]
) -> Generator[Progress, None, str]:
    """Draw a tiny picture at rest and one while it moves until the driver has them in its cache; runs in a thread.

    A driver writes its cache when nothing else is to do, so it is drawn anew from the sources, later and later, until
    that is quick.

    Returns
    -------
    fault : str
        Why the driver does not take the shaders; empty where it does.
    """
    context = QtGui.QOpenGLContext()
    if not context.create() or not context.makeCurrent(surface):
        return ""
    try:
        for wait_s in WAITS_S:
            time.sleep(wait_s)
            caster = RayCaster()
            began_s = time.thread_time()
            yield from _draw(caster, grains, optics, quality, size)
            if caster.fault or time.thread_time() - began_s < QUICK_S:
                return caster.fault
        return ""
    finally:
        context.doneCurrent()


def _draw(
    caster: RayCaster, grains: Grains, optics: Optics, quality: Quality, size: tuple[int, ...]
) -> Generator[Progress, None, None]:
    """Draw both pictures, and lay them over what is drawn, in the context of this thread."""
    screen = Canvas.of(size[0], size[1], has_depth=True)
    GL.glBindFramebuffer(GL.GL_FRAMEBUFFER, screen.frame)
    depth = copied_depth(0, *size)
    caster.start()
    caster.show(grains)
    caster.optics = optics
    camera = Camera.around(grains.size_mm, grains.centre_mm)
    for one in (caster, caster.coarse):
        yield Progress("compiling for the graphics card", 0, 0)
        while one is not None and not one.is_ready and not one.fault:
            one.upload()
        if one is not None and one.is_ready:
            picture = Canvas.of(size[0], size[1])
            one.draw(picture, camera, quality, depth, None)
            one.place(picture)


def _shapes(grains: Grains) -> Needs:
    """Return what matters of the shapes of all textures."""
    of_coarse = () if grains.coarse is None else _shapes(grains.coarse)
    return len(grains.values), _small(grains.values.shape[1:]), _small(grains.least.shape[1:]), *of_coarse


def _tiny(grains: Grains) -> Grains:
    """Return a volume that needs the same of a compiler, of zeros."""
    n = len(grains.values)
    blocks = np.zeros((n, *_small(grains.least.shape[1:])), np.float32)
    return replace(
        grains,
        values=np.zeros((n, *_small(grains.values.shape[1:])), np.float32),
        least=blocks,
        most=blocks,
        coarse=None if grains.coarse is None else _tiny(grains.coarse),
    )


def _small(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the smallest edges that are powers of two where these are: 2, else 3."""
    return tuple(2 if edge & (edge - 1) == 0 else 3 for edge in shape)
