"""The view of a volume where there is no OpenGL: the processor draws it in a thread, roughly while it moves."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from pyqtgraph.Qt import QtCore, QtGui, QtWidgets

from calibration.progress import Progress
from gui import theme
from gui.volume.camera import Camera
from gui.volume.hand import Hand
from gui.volume.optics import Cut, Grains, Optics
from gui.volume.overlay import Labels, paint_box, paint_labels
from gui.volume.quality import Quality
from gui.volume.surfaces import Mesh
from gui.workers import Job

LOOK_MS = 30
"""So often it is asked whether a picture is done."""
FINE_PIXELS, ROUGH_PIXELS = 480, 150
"""Edge of a picture at rest and while something moves; the screen shows it larger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    """A picture that is wanted."""

    grains: Grains
    optics: Optics
    cut: Cut
    camera: Camera
    size: tuple[int, int]
    step_voxels: float
    is_maximum: bool


class CpuView(QtWidgets.QWidget):
    """Draws a volume on the processor.

    Attributes
    ----------
    hand : Hand
        Holds the camera.
    fault : str
        Empty: there is nothing that it needs.
    is_maximum : bool
        Whether each material's highest value along a ray is shown, rather than bodies that hide each other.
    """

    fault = ""

    def __init__(self) -> None:
        super().__init__()
        self.setMinimumSize(160, 120)
        self.hand = Hand(self, Camera(distance_mm=10.0), self.stir)
        self.is_maximum = False
        self._grains: Grains | None = None
        self._optics: Optics | None = None
        self._cut, self._quality = Cut(), Quality()
        self._labels: Labels | None = None
        self._wish: _Wish | None = None
        self._drawn: _Wish | None = None
        self._image: QtGui.QImage | None = None
        self._job: tuple[_Wish, Job[NDArray[np.float32]]] | None = None
        self._looking = QtCore.QTimer(self)
        self._looking.setInterval(LOOK_MS)
        self._looking.timeout.connect(self.refresh)

    @property
    def words(self) -> str:
        """What draws, and how the picture stands."""
        return "drawing" if self._looking.isActive() else ""

    @property
    def is_complete(self) -> bool:
        """Whether the picture that is wanted is shown."""
        return self._wish is not None and self._drawn is self._wish

    def show_grains(self, grains: Grains, optics: Optics) -> None:
        """Show a volume."""
        self._grains = grains
        self.show_optics(optics)

    def clear(self) -> None:
        """Show nothing."""
        self._grains = self._wish = self._drawn = self._image = self._labels = None
        self.update()

    def show_optics(self, optics: Optics) -> None:
        """Show the same volume in other colours and opacities."""
        self._optics = optics
        self.stir()

    def show_cut(self, cut: Cut) -> None:
        """Cut away."""
        self._cut = cut
        self.stir()

    def show_quality(self, quality: Quality) -> None:
        """Draw finer or coarser."""
        self._quality = quality
        self.stir()

    def show_meshes(self, meshes: Sequence[Mesh]) -> None:
        """Surfaces need OpenGL to be seen; nothing happens."""

    def show_labels(self, labels: Labels) -> None:
        """Write this over the picture, on its background."""
        self._labels = labels
        self.update()

    def stir(self) -> None:
        """Something is another now: draw anew."""
        if self._grains is None or self._optics is None or not self.isVisible():
            return
        edge = ROUGH_PIXELS if self.hand.is_moving else FINE_PIXELS
        scale = min(1.0, edge / max(min(self.width(), self.height()), 1))
        self._wish = _Wish(
            grains=self._grains,
            optics=self._optics,
            cut=self._cut,
            camera=self.hand.camera,
            size=(max(round(scale * self.height()), 1), max(round(scale * self.width()), 1)),
            step_voxels=(2 if self.hand.is_moving else 1) * self._quality.step_voxels,
            is_maximum=self.is_maximum,
        )
        self._begin()
        self._looking.start()

    def refresh(self) -> None:
        """Take a picture that is done, and begin the next where another is wanted."""
        if self._job is not None:
            wish, job = self._job
            if not job.is_over:
                return
            self._job, self._drawn = None, wish
            self._image = _image(_result(job))
            self.update()
        if self.is_complete:
            self._looking.stop()
            self.update()
        else:
            self._begin()

    def picture(self, width: int, height: int, camera: Camera | None = None) -> Generator[float, None, QtGui.QImage]:
        """Draw a picture of any size in a thread; yields the share that is done."""
        image = QtGui.QImage(width, height, QtGui.QImage.Format.Format_RGB32)
        camera = camera or self.hand.camera
        light: QtGui.QImage | None = None
        if self._grains is not None and self._optics is not None:
            wish = _Wish(
                grains=self._grains, optics=self._optics, cut=self._cut, camera=camera, size=(height, width),
                step_voxels=self._quality.step_voxels, is_maximum=self.is_maximum,
            )  # fmt: skip
            job = Job("Drawing the volume", _drawing(wish)).start()
            while not job.is_over:
                yield 0.0
            light = _image(_result(job))
        painter = QtGui.QPainter(image)
        self._paint(painter, width, height, camera, light)
        painter.end()
        return image

    def paintEvent(self, _event: QtGui.QPaintEvent) -> None:
        """Show the newest picture, however large it was drawn, and write over it."""
        painter = QtGui.QPainter(self)
        self._paint(painter, self.width(), self.height(), self.hand.camera, self._image)
        painter.end()
        theme.ring(self, self)

    def resizeEvent(self, _event: QtGui.QResizeEvent) -> None:
        """Draw for another size."""
        self.hand.stir()

    def showEvent(self, _event: QtGui.QShowEvent) -> None:
        """Draw what was not wanted while nobody saw it."""
        self.stir()

    def _begin(self) -> None:
        """Have the picture drawn that is wanted, unless another one is being drawn."""
        wish = self._wish
        if wish is None or wish is self._drawn or self._job is not None:
            return
        # A rough picture is drawn to its end; a fine one is given up when another is wanted.
        work = _drawing(wish, lambda: self._wish is wish or wish.step_voxels > self._quality.step_voxels)
        self._job = wish, Job("Drawing the volume", work).start()

    def _paint(
        self, painter: QtGui.QPainter, width: int, height: int, camera: Camera, light: QtGui.QImage | None
    ) -> None:
        is_dark = self._labels is None or self._labels.is_dark
        painter.fillRect(0, 0, width, height, QtGui.QColor("#0f1114" if is_dark else "#f7f8fa"))
        if self._labels is not None:
            paint_box(painter, width, height, camera, self._labels)
        if light is not None:
            painter.setRenderHint(QtGui.QPainter.RenderHint.SmoothPixmapTransform)
            painter.drawImage(QtCore.QRectF(0, 0, width, height), light)
        if self._labels is not None:
            paint_labels(painter, width, height, camera, replace(self._labels, note=self.words))


def _drawing(
    wish: _Wish, is_wanted: Callable[[], bool] = lambda: True
) -> Generator[Progress, None, NDArray[np.float32]]:
    """Draw a picture, in the thread of a job."""
    yield Progress("drawing", 0, 0)
    from gui.volume.projection import cast  # compiles

    return cast(
        wish.grains, wish.optics, wish.camera, wish.size,
        cut=wish.cut, step_voxels=wish.step_voxels, is_maximum=wish.is_maximum, is_wanted=is_wanted,
    )  # fmt: skip


def _result(job: Job[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return what a job has drawn, or raise what went wrong in it."""
    if (error := job.snapshot().error) is not None:
        raise error
    return job.result


def _image(light: NDArray[np.float32]) -> QtGui.QImage:
    """Turn light, which is premultiplied as Qt wants it, into a picture that can be laid over others."""
    bytes_rgba = np.ascontiguousarray(np.rint(255 * np.clip(light, 0, 1)).astype(np.uint8))
    height, width = light.shape[:2]
    form = QtGui.QImage.Format.Format_RGBA8888_Premultiplied
    return QtGui.QImage(bytes_rgba.data, width, height, 4 * width, form).copy()
