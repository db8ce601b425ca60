"""The view of a volume on the graphics card: surfaces, rays that end at them, and what is written over both."""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyqtgraph.opengl as gl
from numpy.typing import NDArray
from OpenGL import GL
from pyqtgraph.opengl.GLGraphicsItem import GLGraphicsItem
from pyqtgraph.Qt import QtCore, QtGui, QtWidgets

from gui.volume.camera import Camera
from gui.volume.canvas import Canvas
from gui.volume.hand import Hand
from gui.volume.optics import Cut, Grains, Optics
from gui.volume.overlay import Labels, box_edges, near_edges, paint_labels
from gui.volume.quality import Quality
from gui.volume.ray_item import RayCastItem, Shot
from gui.volume.raycast import BAND_S, LIGHT, view_radius_mm
from gui.volume.shaders import ShaderRefused, compiled, mesh_sources
from gui.volume.surfaces import Mesh

LINES = {
    GL.GL_DEPTH_TEST: False,  # nor are depths written, at which rays would end
    GL.GL_BLEND: True,
    "glBlendFuncSeparate": (GL.GL_SRC_ALPHA, GL.GL_ONE_MINUS_SRC_ALPHA, GL.GL_ONE, GL.GL_ONE_MINUS_SRC_ALPHA),
}
DARK, BRIGHT = (15, 17, 20), (247, 248, 250)
"""Backgrounds."""


class GlView(gl.GLViewWidget):
    """Draws a volume on the graphics card.

    Attributes
    ----------
    hand : Hand
        Holds the camera.
    """

    def __init__(self) -> None:
        super().__init__()
        surface = QtGui.QSurfaceFormat.defaultFormat()
        surface.setDepthBufferSize(24)
        surface.setSamples(0)  # depths of several samples cannot be copied
        if sys.platform == "darwin":
            surface.setVersion(4, 1)
            surface.setProfile(QtGui.QSurfaceFormat.OpenGLContextProfile.CoreProfile)
        self.setFormat(surface)
        self.hand = Hand(self, Camera(distance_mm=10.0), self._moved)
        self._camera_now: Camera | None = None
        self._rays = RayCastItem(self._camera)
        self._box = [gl.GLLinePlotItem(mode="lines", glOptions=LINES) for _ in range(2)]
        for item, depth in zip(self._box, (-100, 200), strict=True):
            item.setDepthValue(depth)  # behind all else, and before it
        self._meshes: list[MeshItem] = []
        self._labels: Labels | None = None
        for item in (self._rays, *self._box):
            self.addItem(item)
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._writing = _Writing(self)
        self._writing.hide()
        layout.addWidget(self._writing)

    @property
    def fault(self) -> str:
        """Why it cannot draw; empty while it can."""
        return self._rays.caster.fault

    @property
    def words(self) -> str:
        """What draws, and how the picture stands."""
        caster = self._rays.caster
        if caster.grains is not None and not caster.is_ready:
            return "copying the volume to the graphics card"
        if self._rays.is_warming:
            return "compiling for the graphics card"
        return "" if self._rays.is_complete or self._rays.is_moving else "refining"

    @property
    def item(self) -> RayCastItem:
        """The rays, for measurements of their speed."""
        return self._rays

    def show_grains(self, grains: Grains, optics: Optics) -> None:
        """Show a volume."""
        self._rays.caster.show(grains)
        self.show_optics(optics)

    def clear(self) -> None:
        """Show nothing."""
        self._rays.caster.clear()
        self._labels = None
        for item in self._box:
            item.setData(pos=np.zeros((0, 3)))
        self._rays.changed()

    def show_optics(self, optics: Optics) -> None:
        """Show the same volume in other colours and opacities."""
        self._rays.caster.optics = optics
        self._rays.changed()

    def show_cut(self, cut: Cut) -> None:
        """Cut away."""
        self._rays.caster.cut = cut
        self._rays.changed()

    def show_quality(self, quality: Quality) -> None:
        """Draw finer or coarser."""
        self._rays.quality = quality
        self._rays.changed()

    def show_meshes(self, meshes: Sequence[Mesh]) -> None:
        """Show these surfaces, and no other, in the volume."""
        self.makeCurrent()  # pyqtgraph lets new items begin in whatever context there is
        for item in self._meshes:
            self.removeItem(item)
        self._meshes = [MeshItem(mesh, self._rays) for mesh in meshes]
        for item in self._meshes:
            self.addItem(item)
        self.doneCurrent()
        self._rays.changed()

    def show_labels(self, labels: Labels) -> None:
        """Write this over the picture, on its background."""
        self._labels = labels
        self.setBackgroundColor(DARK if labels.is_dark else BRIGHT)
        self._rays.changed()

    def picture(self, width: int, height: int, camera: Camera | None = None) -> Generator[float, None, QtGui.QImage]:
        """Draw a picture of any size, in steps that leave the window time; yields the share that is done."""
        self.makeCurrent()
        frame = Canvas.of(width, height, has_depth=True)
        shot = Shot(Canvas.of(width, height), camera or self.hand.camera, self._rays.quality)
        try:
            while self._rays.caster.grains is not None and not self._rays.caster.is_ready and not self.fault:
                self._rays.caster.upload()
                yield 0.0
                self.makeCurrent()
            self._paint_shot(frame, shot)
            while shot.depth and not shot.canvas.is_done and not self.fault:
                self.makeCurrent()
                self._rays.caster.draw(shot.canvas, shot.camera, shot.quality, shot.depth, BAND_S)
                yield shot.canvas.rows_done / height
            self.makeCurrent()
            self._paint_shot(frame, shot)
            image = _image(frame.read())
        finally:
            self.makeCurrent()
            shot.delete()
            frame.delete()
            self.doneCurrent()
        if self._labels is not None:
            painter = QtGui.QPainter(image)
            paint_labels(painter, width, height, shot.camera, self._labels)
            painter.end()
        return image

    def paintGL(self) -> None:
        """Draw what is there."""
        self._rays.is_moving = self.hand.is_moving
        self._draw_box()
        super().paintGL()
        if self._labels is not None and self._writing.isHidden():
            # Qt compiles for what is over a picture, too, which shall be another beat's.
            QtCore.QTimer.singleShot(0, self._writing.show)

    def write(self, painter: QtGui.QPainter) -> None:
        """Write over what is drawn."""
        if self._labels is not None:
            note = replace(self._labels, note=self.words)
            paint_labels(painter, self.width(), self.height(), self.hand.camera, note)

    def viewMatrix(self) -> QtGui.QMatrix4x4:
        """Return the camera's matrix instead of pyqtgraph's own."""
        return _matrix(self._camera().view())

    def projectionMatrix(self, region: object, viewport: tuple[int, int, int, int]) -> QtGui.QMatrix4x4:  # noqa: ARG002
        """Return the camera's projection instead of pyqtgraph's own; the region is always all."""
        _, _, width, height = viewport
        grains = self._rays.caster.grains
        radius_mm = view_radius_mm(grains, self._camera()) if grains is not None else self._camera().distance_mm / 2
        return _matrix(self._camera().projection(width, height, radius_mm))

    def _paint_shot(self, frame: Canvas, shot: Shot) -> None:
        width, height = shot.canvas.width, shot.canvas.height
        self._rays.shot, self._camera_now = shot, shot.camera
        self._draw_box()
        GL.glBindFramebuffer(GL.GL_FRAMEBUFFER, frame.frame)
        try:
            GL.glViewport(0, 0, width, height)
            self.paint(region=(0, 0, width, height), viewport=(0, 0, width, height))
        finally:
            GL.glBindFramebuffer(GL.GL_FRAMEBUFFER, self.defaultFramebufferObject())
            self._rays.shot = self._camera_now = None

    def _draw_box(self) -> None:
        """Put the edges that the volume hides behind it, and those before it on top."""
        if (labels := self._labels) is None:
            return
        edges = box_edges(labels.low_mm, labels.high_mm)
        is_near = near_edges(labels.low_mm, labels.high_mm, self._camera())
        ink, alpha = labels.ink, 0.35 if labels.is_dark else 0.6
        for item, part in zip(self._box, (edges[~is_near], edges[is_near]), strict=True):
            item.setData(pos=part.reshape(-1, 3), color=(ink.redF(), ink.greenF(), ink.blueF(), alpha), width=1.0)

    def _camera(self) -> Camera:
        return self._camera_now or self.hand.camera

    def _moved(self) -> None:
        self._rays.is_moving = self.hand.is_moving
        self.update()


class _Writing(QtWidgets.QWidget):
    """What is written over a view; by the processor, since Qt compiles a dozen shaders to write on a card."""

    def __init__(self, view: GlView) -> None:
        super().__init__(view)
        self._view = view
        self.setAttribute(QtCore.Qt.WidgetAttribute.WA_TransparentForMouseEvents)

    def paintEvent(self, event: QtGui.QPaintEvent) -> None:  # noqa: ARG002
        """Write."""
        painter = QtGui.QPainter(self)
        self._view.write(painter)
        painter.end()


class MeshItem(GLGraphicsItem):
    """A surface, lit like what rays see and cut like it."""

    def __init__(self, mesh: Mesh, rays: RayCastItem) -> None:
        super().__init__()
        self._mesh, self._rays = mesh, rays
        self._buffers: list[int] = []
        self._program: Any = None
        self.setGLOptions("opaque")

    def initializeGL(self) -> None:
        """Copy the triangles to the card."""
        try:
            self._program = compiled(*mesh_sources(is_modern=self._rays.caster.is_modern))
        except ShaderRefused as error:
            self._rays.caster.fault = f"the graphics driver does not take the shader of surfaces: {error}"
            return
        parts = (self._mesh.vertices_mm, self._mesh.normals(), self._mesh.faces)
        targets = (GL.GL_ARRAY_BUFFER, GL.GL_ARRAY_BUFFER, GL.GL_ELEMENT_ARRAY_BUFFER)
        self._buffers = [int(GL.glGenBuffers(1)) for _ in parts]
        for name, part, target in zip(self._buffers, parts, targets, strict=True):
            GL.glBindBuffer(target, name)
            GL.glBufferData(target, part.nbytes, np.ascontiguousarray(part), GL.GL_STATIC_DRAW)
            GL.glBindBuffer(target, 0)

    def paint(self) -> None:
        """Draw all triangles."""
        grains = self._rays.caster.grains
        if not self._buffers or grains is None:
            return
        self.setupGLState()
        GL.glDepthMask(True)
        program = self._program
        GL.glUseProgram(program)
        place = GL.glGetUniformLocation(program, "u_to_clip")
        GL.glUniformMatrix4fv(place, 1, False, np.array(self.mvpMatrix().data(), dtype=np.float32))
        axes = np.array(self.modelViewMatrix().data(), dtype=np.float64).reshape(4, 4).T[:3, :3]
        light = np.asarray(LIGHT) @ axes
        cut = self._rays.caster.cut
        low_mm, high_mm = cut.box_mm(grains)
        parts: tuple[tuple[str, Sequence[float] | NDArray[np.float64]], ...] = (
            ("u_colour", self._mesh.colour), ("u_light", light / np.linalg.norm(light)), ("u_back", axes[2]),
            ("u_clip_low_mm", low_mm), ("u_clip_high_mm", high_mm),
        )  # fmt: skip
        for name, values in parts:
            GL.glUniform3f(GL.glGetUniformLocation(program, name), *values)
        GL.glUniform4f(GL.glGetUniformLocation(program, "u_plane"), *cut.plane(grains))
        positions, normals, faces = self._buffers
        for attribute, name in enumerate((positions, normals)):
            GL.glBindBuffer(GL.GL_ARRAY_BUFFER, name)
            GL.glVertexAttribPointer(attribute, 3, GL.GL_FLOAT, False, 0, None)
            GL.glEnableVertexAttribArray(attribute)
        GL.glBindBuffer(GL.GL_ARRAY_BUFFER, 0)
        GL.glBindBuffer(GL.GL_ELEMENT_ARRAY_BUFFER, faces)
        GL.glDrawElements(GL.GL_TRIANGLES, self._mesh.faces.size, GL.GL_UNSIGNED_INT, None)
        GL.glBindBuffer(GL.GL_ELEMENT_ARRAY_BUFFER, 0)
        for attribute in range(2):
            GL.glDisableVertexAttribArray(attribute)
        GL.glUseProgram(0)


def _matrix(values: NDArray[np.float64]) -> QtGui.QMatrix4x4:
    return QtGui.QMatrix4x4(*(float(value) for value in values.ravel()))


def _image(rows: NDArray[np.uint8]) -> QtGui.QImage:
    height, width = rows.shape[:2]
    return QtGui.QImage(rows.data, width, height, 4 * width, QtGui.QImage.Format.Format_RGBX8888).copy()


def load_driver() -> None:
    """Have the graphics driver loaded, in whatever thread this is, so that the window need not wait for its file."""
    if QtGui.QGuiApplication.instance() is not None and QtGui.QOpenGLContext.supportsThreadedOpenGL():
        QtGui.QOpenGLContext().create()


def why_not() -> str:
    """Return why this computer cannot draw with OpenGL here; empty where it can."""
    context = QtGui.QOpenGLContext()
    if not context.create():
        return "this screen has no OpenGL"
    surface = QtGui.QOffscreenSurface()
    surface.setFormat(context.format())
    surface.create()
    if not surface.isValid() or not context.makeCurrent(surface):
        return "OpenGL has no surface to draw on here"
    version = context.format().version()
    context.doneCurrent()
    return "" if tuple(version) >= (2, 1) else f"OpenGL is {version[0]}.{version[1]} here; 2.1 is needed"
