"""Rays through a volume, drawn by the graphics card."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from OpenGL import GL

from gui.volume.camera import Camera
from gui.volume.canvas import Canvas
from gui.volume.optics import BLOCK, REACH_SHARE, Cut, Grains, Optics
from gui.volume.quality import Quality
from gui.volume.shaders import SOLID_FROM, SOLID_TO, ShaderRefused, Variant, compiled, place_sources, sources
from gui.volume.textures import CHANNELS, MARKS_UNIT, TEXTURE_UNIT, VolumeTextures

BAND_S = 0.02
"""A step of a fine picture, or of an upload, ends after about this."""
LIGHT = (-0.45, 0.65, 0.9)
"""Where the light comes from in the picture: from the upper left, behind the viewer."""
UNITS = ("u_volume0", "u_volume1", "u_marks", "u_depth")
DEPTH_UNIT = MARKS_UNIT + 1


class RayCaster:
    """Draws rays through a volume in the current OpenGL context.

    Parameters
    ----------
    is_quick : bool
        Look values up in bytes, for pictures that move, rather than in half floats.

    Attributes
    ----------
    fault : str
        Why nothing can be drawn; empty while all is well.
    renderer : str
        What the driver calls itself.
    """

    def __init__(self, *, is_quick: bool = False) -> None:
        self.fault = self.renderer = ""
        self._is_quick = is_quick
        self.optics: Optics | None = None
        self.cut = Cut()
        self._wanted: Grains | None = None
        self._coarse: RayCaster | None = None
        self._textures: VolumeTextures | None = None
        self._programs: dict[Variant | None, Any] = {}
        """None is the one that lays a picture over what is drawn."""
        self._corners: int | None = None
        self.is_modern = True

    def show(self, grains: Grains) -> None:
        """Draw this volume from now on; it is copied to the card by `upload`."""
        self._wanted = grains
        self._coarse = None

    @property
    def coarse(self) -> RayCaster | None:
        """What draws the same volume at half the resolution, for pictures that move; None where it is small."""
        if self._wanted is None or self._wanted.coarse is None:
            return None
        if self._coarse is None:
            self._coarse = RayCaster(is_quick=True)
            self._coarse.show(self._wanted.coarse)
        coarse = self._coarse
        coarse.optics, coarse.cut, coarse.is_modern = self.optics, self.cut, self.is_modern
        coarse._programs, coarse._corners = self._programs, self._corners
        return coarse

    def clear(self) -> None:
        """Draw nothing any more; what is on the card goes when another volume comes."""
        self._wanted = None

    @property
    def is_ready(self) -> bool:
        """Whether the whole volume is on the card."""
        textures, optics = self._textures, self.optics
        if self.fault or textures is None or optics is None or textures.grains is not self._wanted:
            return False
        return textures.is_whole(optics)

    @property
    def grains(self) -> Grains | None:
        """What is drawn, or will be."""
        return self._wanted

    def start(self) -> None:
        """Look what the context can do."""
        words = _text(GL.glGetString(GL.GL_VERSION))
        self.renderer = _text(GL.glGetString(GL.GL_RENDERER))
        self.is_modern = tuple(int(part) for part in words.split()[0].split(".")[:2]) >= (3, 1)
        self._programs.clear()
        self._textures = self._corners = self._coarse = None

    def upload(self, budget_s: float = BAND_S) -> None:
        """Copy as much of the volume to the card as fits into the time."""
        if self._wanted is None or self.optics is None or self.fault:
            return
        if self._textures is None or self._textures.grains is not self._wanted:
            self._free()
            self._textures = VolumeTextures(self._wanted, is_modern=self.is_modern, is_quick=self._is_quick)
            self.fault = self._textures.fault
        self._textures.take(self.optics)
        if not self.fault:
            self._textures.copy(budget_s)

    def draw(self, canvas: Canvas, camera: Camera, quality: Quality, depth: int, budget_s: float | None) -> None:
        """Draw more rows of a canvas; all that are left where there is no budget of time.

        Parameters
        ----------
        depth : int
            Texture of the depths of the opaque things before and in the volume, over the same view.
        """
        assert self._textures is not None
        if (program := self._program(self._variant(quality))) is None:
            return
        before = GL.glGetIntegerv(GL.GL_FRAMEBUFFER_BINDING)
        viewport = GL.glGetIntegerv(GL.GL_VIEWPORT)
        GL.glUseProgram(program)
        self._set(program, camera, quality, canvas)
        self._textures.bind()
        GL.glActiveTexture(TEXTURE_UNIT + DEPTH_UNIT)
        GL.glBindTexture(GL.GL_TEXTURE_2D, depth)
        GL.glBindFramebuffer(GL.GL_FRAMEBUFFER, canvas.frame)
        GL.glViewport(0, 0, canvas.width, canvas.height)
        GL.glDisable(GL.GL_BLEND)
        GL.glDisable(GL.GL_DEPTH_TEST)
        GL.glEnable(GL.GL_SCISSOR_TEST)
        end_s = np.inf if budget_s is None else time.perf_counter() + budget_s
        while not canvas.is_done and time.perf_counter() < end_s:
            rows = canvas.height if budget_s is None else canvas.rows_per_step
            self._band(canvas, min(rows, canvas.height - canvas.rows_done), budget_s)
        GL.glDisable(GL.GL_SCISSOR_TEST)
        GL.glBindTexture(GL.GL_TEXTURE_2D, 0)
        self._textures.unbind()
        GL.glUseProgram(0)
        GL.glBindFramebuffer(GL.GL_FRAMEBUFFER, before)
        GL.glViewport(*viewport)

    def place(self, canvas: Canvas) -> None:
        """Lay a canvas over what is drawn already."""
        if (program := self._program(None)) is None:
            return
        GL.glDisable(GL.GL_DEPTH_TEST)
        GL.glEnable(GL.GL_BLEND)
        GL.glBlendFunc(GL.GL_ONE, GL.GL_ONE_MINUS_SRC_ALPHA)
        GL.glUseProgram(program)
        GL.glUniform1i(GL.glGetUniformLocation(program, "u_picture"), 0)
        GL.glActiveTexture(GL.GL_TEXTURE0)
        GL.glBindTexture(GL.GL_TEXTURE_2D, canvas.texture)
        self._triangle()
        GL.glBindTexture(GL.GL_TEXTURE_2D, 0)
        GL.glUseProgram(0)

    def _band(self, canvas: Canvas, rows: int, budget_s: float | None) -> None:
        began_s = time.perf_counter()
        GL.glScissor(0, canvas.rows_done, canvas.width, rows)
        self._triangle()
        GL.glFinish()
        took_s = time.perf_counter() - began_s
        canvas.rows_done += rows
        canvas.spent_s += took_s
        if budget_s is not None:
            wanted = rows * 0.6 * budget_s / max(took_s, 1e-6)
            canvas.rows_per_step = int(np.clip(wanted, max(rows // 4, 2), 4 * rows))

    def _triangle(self) -> None:
        """Draw one triangle that covers all."""
        if self._corners is None:
            corners = np.array([-1, -1, 3, -1, -1, 3], dtype=np.float32)
            self._corners = int(GL.glGenBuffers(1))
            GL.glBindBuffer(GL.GL_ARRAY_BUFFER, self._corners)
            GL.glBufferData(GL.GL_ARRAY_BUFFER, corners.nbytes, corners, GL.GL_STATIC_DRAW)
        GL.glBindBuffer(GL.GL_ARRAY_BUFFER, self._corners)
        GL.glVertexAttribPointer(0, 2, GL.GL_FLOAT, False, 0, None)
        GL.glBindBuffer(GL.GL_ARRAY_BUFFER, 0)
        GL.glEnableVertexAttribArray(0)
        GL.glDrawArrays(GL.GL_TRIANGLES, 0, 3)
        GL.glDisableVertexAttribArray(0)

    def _variant(self, quality: Quality) -> Variant:
        return Variant(
            is_second_texture=self._wanted is not None and len(self._wanted.values) > CHANNELS,
            is_shaded=quality.is_shaded,
            is_bent=self.optics is not None and bool(self.optics.bend.any()),
            is_modern=self.is_modern,
        )

    def _program(self, variant: Variant | None) -> Any:
        """Return what draws; None where the driver refuses it, which is a fault then."""
        if variant not in self._programs:
            of = place_sources(is_modern=self.is_modern) if variant is None else sources(variant)
            try:
                self._programs[variant] = compiled(*of)
            except ShaderRefused as error:
                words = _text(GL.glGetString(GL.GL_VERSION))
                self.fault = f"the graphics driver ({words}) does not take the shader: {error}"
                return None
        return self._programs[variant]

    def _free(self) -> None:
        if self._textures is not None:
            self._textures.delete()
            self._textures = None

    def _set(self, program: Any, camera: Camera, quality: Quality, canvas: Canvas) -> None:
        """Set all uniforms."""
        textures, optics = self._textures, self.optics
        assert textures is not None
        assert optics is not None
        textures.take(optics)
        grains = textures.grains
        low_mm, high_mm = grains.corners_mm
        clip_low_mm, clip_high_mm = self.cut.box_mm(grains)
        blocks = np.array(grains.least.shape[:0:-1], dtype=np.float64)
        light = np.asarray(LIGHT) @ camera.axes()
        back = camera.projection(canvas.width, canvas.height, view_radius_mm(grains, camera)) @ camera.view()

        def put(name: str, *values: float) -> None:
            place = GL.glGetUniformLocation(program, name)
            (GL.glUniform1f, GL.glUniform2f, GL.glUniform3f, GL.glUniform4f)[len(values) - 1](place, *values)

        def put_matrix(name: str, matrix: NDArray[np.floating]) -> None:
            place = GL.glGetUniformLocation(program, name)
            GL.glUniformMatrix4fv(place, 1, False, np.ascontiguousarray(matrix.T, dtype=np.float32))

        for unit, name in enumerate(UNITS):
            GL.glUniform1i(GL.glGetUniformLocation(program, name), unit)
        put_matrix("u_to_mm", np.linalg.inv(back))
        put("u_corner_mm", *low_mm)
        put("u_size_mm", *(high_mm - low_mm))
        put("u_voxel_mm", *grains.voxel_mm)
        put("u_clip_low_mm", *clip_low_mm)
        put("u_clip_high_mm", *clip_high_mm)
        put("u_plane", *self.cut.plane(grains))
        put("u_blocks_mm", *(BLOCK * np.asarray(grains.voxel_mm)))
        put("u_blocks", *blocks)
        put("u_bend", float(optics.bend[0]) if len(optics.bend) else 0.0)
        put("u_step_mm", quality.step_voxels * min(grains.voxel_mm))
        put("u_opaque", quality.opaque_share)
        reach_mm = REACH_SHARE * max(grains.size_mm)
        put("u_solid_per_mm", *(-np.log1p(-np.array([SOLID_FROM, SOLID_TO])) / reach_mm))
        put("u_light", *(light / np.linalg.norm(light)))
        for number in range(-(-len(grains.values) // CHANNELS)):
            low, high = textures.windows(number)
            put(f"u_low{number}", *low)
            put(f"u_high{number}", *high)
            put_matrix(f"u_glow{number}", _glow(optics, slice(CHANNELS * number, CHANNELS * (number + 1))))


def _glow(optics: Optics, part: slice) -> NDArray[np.float64]:
    """Return red, green, blue and extinction per mm (rows) by material of one texture (columns)."""
    extinction = optics.extinction_per_mm[part]
    glow = np.zeros((4, CHANNELS))
    glow[:3, : len(extinction)] = (optics.colours[part] * extinction[:, None]).T
    glow[3, : len(extinction)] = extinction
    return glow


def _text(words: object) -> str:
    return words.decode(errors="replace") if isinstance(words, bytes) else str(words)


def view_radius_mm(grains: Grains, camera: Camera) -> float:
    """Return how far from what the camera looks at the volume and its axes reach."""
    off_mm = np.linalg.norm(np.subtract(camera.centre_mm, grains.centre_mm))
    return 0.55 * float(np.linalg.norm(grains.size_mm)) + float(off_mm)
