"""The volume on the graphics card: textures, rays, and a picture that is rough while it moves and fine when it rests.

A fine picture is made in bands of rows, so that the window answers meanwhile even where the card is a processor
(llvmpipe). While something moves, the picture has as many pixels as are drawn within `MOVING_S`.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from OpenGL import GL
from pyqtgraph.opengl.GLGraphicsItem import GLGraphicsItem

from gui.volume.camera import Camera
from gui.volume.optics import BLOCK, Cut, Grains, Optics, leaps
from gui.volume.quality import Quality
from gui.volume.shaders import SOLID_FROM, ShaderRefused, Variant, compiled, sources

BAND_S = 0.02
"""A step of a fine picture, or of an upload, ends after about this."""
MOVING_S = 0.04
"""A picture while something moves should take no longer."""
DIVISORS = (1, 2, 3, 4, 6, 8, 12)
"""A rough picture has one pixel for so many of the screen, along each edge."""
LEAST_ROWS = 16
ROUGH_OPAQUE = 0.95
"""Where rays end while something moves."""
LIGHT = (-0.45, 0.65, 0.9)
"""Where the light comes from in the picture: from the upper left, behind the viewer."""
TEXTURE_UNIT = int(GL.GL_TEXTURE0)  # pyright: ignore[reportArgumentType]
UNITS = ("u_volume0", "u_volume1", "u_marks", "u_depth")


@dataclass(slots=True, eq=False)
class Canvas:
    """A picture that rays are drawn into, some rows at a time."""

    width: int
    height: int
    texture: int
    frame: int
    depth: int = 0
    rows_done: int = 0
    rows_per_step: int = LEAST_ROWS
    spent_s: float = 0.0

    @classmethod
    def of(cls, width: int, height: int, *, has_depth: bool = False) -> Canvas:
        """Make one in the current context, with room for depths where things are drawn into it that have some."""
        texture = int(GL.glGenTextures(1))
        GL.glBindTexture(GL.GL_TEXTURE_2D, texture)
        for name, value in (
            (GL.GL_TEXTURE_MIN_FILTER, GL.GL_LINEAR), (GL.GL_TEXTURE_MAG_FILTER, GL.GL_LINEAR),
            (GL.GL_TEXTURE_WRAP_S, GL.GL_CLAMP_TO_EDGE), (GL.GL_TEXTURE_WRAP_T, GL.GL_CLAMP_TO_EDGE),
        ):  # fmt: skip
            GL.glTexParameteri(GL.GL_TEXTURE_2D, name, value)
        GL.glTexImage2D(
            GL.GL_TEXTURE_2D, 0, GL.GL_RGBA8, width, height, 0, GL.GL_RGBA, GL.GL_UNSIGNED_BYTE, ctypes.c_void_p(0)
        )
        before = GL.glGetIntegerv(GL.GL_FRAMEBUFFER_BINDING)
        frame = int(GL.glGenFramebuffers(1))
        GL.glBindFramebuffer(GL.GL_FRAMEBUFFER, frame)
        GL.glFramebufferTexture2D(GL.GL_FRAMEBUFFER, GL.GL_COLOR_ATTACHMENT0, GL.GL_TEXTURE_2D, texture, 0)
        depth = int(GL.glGenRenderbuffers(1)) if has_depth else 0
        if has_depth:
            GL.glBindRenderbuffer(GL.GL_RENDERBUFFER, depth)
            GL.glRenderbufferStorage(GL.GL_RENDERBUFFER, GL.GL_DEPTH_COMPONENT24, width, height)
            GL.glFramebufferRenderbuffer(GL.GL_FRAMEBUFFER, GL.GL_DEPTH_ATTACHMENT, GL.GL_RENDERBUFFER, depth)
            GL.glBindRenderbuffer(GL.GL_RENDERBUFFER, 0)
        GL.glBindFramebuffer(GL.GL_FRAMEBUFFER, before)
        GL.glBindTexture(GL.GL_TEXTURE_2D, 0)
        return cls(width, height, texture, frame, depth)

    @property
    def is_done(self) -> bool:
        """Whether all rows are drawn."""
        return self.rows_done >= self.height

    def restart(self) -> None:
        """Draw it anew from the lowest row on."""
        self.rows_done, self.spent_s = 0, 0.0

    def read(self) -> NDArray[np.uint8]:
        """Return what was drawn: (height, width, 4), the highest row first."""
        before = GL.glGetIntegerv(GL.GL_FRAMEBUFFER_BINDING)
        GL.glBindFramebuffer(GL.GL_FRAMEBUFFER, self.frame)
        GL.glPixelStorei(GL.GL_PACK_ALIGNMENT, 1)
        rows = np.empty((self.height, self.width, 4), dtype=np.uint8)
        GL.glReadPixels(0, 0, self.width, self.height, GL.GL_RGBA, GL.GL_UNSIGNED_BYTE, rows)
        GL.glBindFramebuffer(GL.GL_FRAMEBUFFER, before)
        return np.ascontiguousarray(rows[::-1])

    def delete(self) -> None:
        """Free what it holds on the card."""
        GL.glDeleteFramebuffers(1, [self.frame])
        GL.glDeleteTextures([self.texture])
        if self.depth:
            GL.glDeleteRenderbuffers(1, [self.depth])


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


@dataclass(slots=True, eq=False)
class _Textures:
    """A volume on the card, as far as it has been copied."""

    grains: Grains
    names: list[int]
    marks: int
    peaks: NDArray[np.float64]
    slices_done: int = 0
    uploaded_at_once: int = 4
    optics: Optics | None = field(default=None)

    @property
    def is_whole(self) -> bool:
        return self.slices_done >= self.grains.values.shape[1]


class RayCaster:
    """Draws rays through a volume in the current OpenGL context.

    Attributes
    ----------
    fault : str
        Why nothing can be drawn; empty while all is well.
    renderer : str
        What the driver calls itself.
    """

    def __init__(self) -> None:
        self.fault = self.renderer = ""
        self.optics: Optics | None = None
        self.cut = Cut()
        self._wanted: Grains | None = None
        self._coarse: RayCaster | None = None
        self._textures: _Textures | None = None
        self._programs: dict[Variant, tuple[Any, Any]] = {}
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
            self._coarse = RayCaster()
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
        return self._textures is not None and self._textures.is_whole and self._wanted is self._textures.grains

    @property
    def grains(self) -> Grains | None:
        """What is drawn, or will be."""
        return self._wanted

    def start(self) -> None:
        """Look what the context can do, and try whether it takes the shaders."""
        version = GL.glGetString(GL.GL_VERSION)
        words = _text(version)
        self.renderer = _text(GL.glGetString(GL.GL_RENDERER))
        self.is_modern = tuple(int(part) for part in words.split()[0].split(".")[:2]) >= (3, 1)
        self._programs.clear()
        self._textures = self._corners = self._coarse = None
        try:
            self._program(False)
        except ShaderRefused as error:
            self.fault = f"the graphics driver ({words}) does not take the shader: {error}"

    def upload(self, budget_s: float = BAND_S) -> None:
        """Copy as much of the volume to the card as fits into the time."""
        if self._wanted is None or self.fault:
            return
        if self._textures is None or self._textures.grains is not self._wanted:
            self._free()
            self._textures = self._room_for(self._wanted)
        textures = self._textures
        end_s = time.perf_counter() + budget_s
        while not textures.is_whole:
            began_s = time.perf_counter()
            self._copy(textures)
            if (now_s := time.perf_counter()) > end_s:
                break
            if now_s - began_s < budget_s / 4:
                textures.uploaded_at_once *= 2

    def draw(self, canvas: Canvas, camera: Camera, quality: Quality, depth: int, budget_s: float | None) -> None:
        """Draw more rows of a canvas; all that are left where there is no budget of time.

        Parameters
        ----------
        depth : int
            Texture of the depths of the opaque things before and in the volume, over the same view.
        """
        assert self._textures is not None
        assert self.optics is not None
        before = GL.glGetIntegerv(GL.GL_FRAMEBUFFER_BINDING)
        viewport = GL.glGetIntegerv(GL.GL_VIEWPORT)
        program = self._program(quality.is_shaded)[0]
        GL.glUseProgram(program)
        self._set(program, camera, quality, canvas)
        names = (self._textures.names[0], self._textures.names[-1], self._textures.marks)
        for unit, name in enumerate(names):
            GL.glActiveTexture(TEXTURE_UNIT + unit)
            GL.glBindTexture(GL.GL_TEXTURE_3D, name)
        GL.glActiveTexture(TEXTURE_UNIT + 3)
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
        for unit in range(len(names)):
            GL.glActiveTexture(TEXTURE_UNIT + unit)
            GL.glBindTexture(GL.GL_TEXTURE_3D, 0)
        GL.glActiveTexture(GL.GL_TEXTURE0)
        GL.glUseProgram(0)
        GL.glBindFramebuffer(GL.GL_FRAMEBUFFER, before)
        GL.glViewport(*viewport)

    def place(self, canvas: Canvas, from_share: float = 0.0, to_share: float = 1.0) -> None:
        """Lay a canvas over what is drawn already, between two heights of the picture."""
        assert self._textures is not None
        _, _, width, height = (int(n) for n in GL.glGetIntegerv(GL.GL_VIEWPORT))
        first, last = round(from_share * height), round(to_share * height)
        if last <= first:
            return
        program = self._program(False)[1]
        GL.glEnable(GL.GL_SCISSOR_TEST)
        GL.glScissor(0, first, width, last - first)
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
        GL.glDisable(GL.GL_SCISSOR_TEST)

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

    def _program(self, is_shaded: bool) -> tuple[Any, Any]:
        is_second = self._wanted is not None and len(self._wanted.values) > 4
        variant = Variant(is_second_texture=is_second, is_shaded=is_shaded, is_modern=self.is_modern)
        if variant not in self._programs:
            vertex, ray, place = sources(variant)
            self._programs[variant] = compiled(vertex, ray), compiled(vertex, place)
        return self._programs[variant]

    def _room_for(self, grains: Grains) -> _Textures:
        shape = grains.values.shape[1:]
        most = int(GL.glGetIntegerv(GL.GL_MAX_3D_TEXTURE_SIZE))
        if max(shape) > most:
            self.fault = f"the graphics card takes volumes of up to {most} voxels along an edge, not {max(shape)}"
        count = -(-len(grains.values) // 4)
        names = [int(GL.glGenTextures(1)) for _ in range(count + 1)]
        for name in names:
            filtering = GL.GL_NEAREST if name == names[-1] else GL.GL_LINEAR
            GL.glBindTexture(GL.GL_TEXTURE_3D, name)
            for option in (GL.GL_TEXTURE_MIN_FILTER, GL.GL_TEXTURE_MAG_FILTER):
                GL.glTexParameteri(GL.GL_TEXTURE_3D, option, filtering)
            for option in (GL.GL_TEXTURE_WRAP_S, GL.GL_TEXTURE_WRAP_T, GL.GL_TEXTURE_WRAP_R):
                GL.glTexParameteri(GL.GL_TEXTURE_3D, option, GL.GL_CLAMP_TO_EDGE)
            if name != names[-1] and not self.fault:
                GL.glTexImage3D(
                    GL.GL_TEXTURE_3D, 0, GL.GL_RGBA16F, *shape[::-1], 0, GL.GL_RGBA, GL.GL_HALF_FLOAT,
                    ctypes.c_void_p(0),
                )  # fmt: skip
        GL.glBindTexture(GL.GL_TEXTURE_3D, 0)
        peaks = np.maximum(np.abs(grains.most).max(axis=(1, 2, 3)), np.abs(grains.least).max(axis=(1, 2, 3)))
        return _Textures(grains, names[:-1], names[-1], np.maximum(peaks.astype(np.float64), 1e-12))

    def _copy(self, textures: _Textures) -> None:
        """Copy some slices, each channel in shares of its highest value, which half floats resolve everywhere."""
        values = textures.grains.values
        first = textures.slices_done
        last = min(first + textures.uploaded_at_once, values.shape[1])
        GL.glPixelStorei(GL.GL_UNPACK_ALIGNMENT, 1)
        for number, name in enumerate(textures.names):
            mixed = np.zeros((last - first, *values.shape[2:], 4), dtype=np.float16)
            for channel in range(4 * number, min(4 * number + 4, len(values))):
                mixed[..., channel % 4] = values[channel, first:last] * np.float32(1 / textures.peaks[channel])
            GL.glBindTexture(GL.GL_TEXTURE_3D, name)
            GL.glTexSubImage3D(
                GL.GL_TEXTURE_3D, 0, 0, 0, first, *mixed.shape[2:0:-1], len(mixed), GL.GL_RGBA, GL.GL_HALF_FLOAT,
                ctypes.c_void_p(mixed.ctypes.data),
            )  # fmt: skip
        GL.glBindTexture(GL.GL_TEXTURE_3D, 0)
        GL.glPixelStorei(GL.GL_UNPACK_ALIGNMENT, 4)
        textures.slices_done = last

    def _free(self) -> None:
        if self._textures is not None:
            GL.glDeleteTextures([*self._textures.names, self._textures.marks])
            self._textures = None

    def _mark(self, textures: _Textures, optics: Optics) -> None:
        """Put on the card which blocks a ray may leap over with these optics."""
        marks = np.ascontiguousarray(leaps(textures.grains, optics))
        inside, outside = (GL.GL_R8, GL.GL_RED) if self.is_modern else (GL.GL_LUMINANCE8, GL.GL_LUMINANCE)
        GL.glPixelStorei(GL.GL_UNPACK_ALIGNMENT, 1)
        GL.glBindTexture(GL.GL_TEXTURE_3D, textures.marks)
        GL.glTexImage3D(
            GL.GL_TEXTURE_3D, 0, inside, *marks.shape[::-1], 0, outside, GL.GL_UNSIGNED_BYTE,
            ctypes.c_void_p(marks.ctypes.data),
        )  # fmt: skip
        GL.glBindTexture(GL.GL_TEXTURE_3D, 0)
        GL.glPixelStorei(GL.GL_UNPACK_ALIGNMENT, 4)
        textures.optics = optics

    def _set(self, program: Any, camera: Camera, quality: Quality, canvas: Canvas) -> None:
        """Set all uniforms."""
        textures, optics = self._textures, self.optics
        assert textures is not None
        assert optics is not None
        if textures.optics is not optics:
            self._mark(textures, optics)
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
        put("u_solid_per_mm", -np.log1p(-SOLID_FROM) / min(grains.voxel_mm))
        put("u_light", *(light / np.linalg.norm(light)))
        for number in range(len(textures.names)):
            low, scale, glow = _four(optics, textures.peaks, slice(4 * number, 4 * number + 4))
            put(f"u_low{number}", *low)
            put(f"u_scale{number}", *scale)
            put_matrix(f"u_glow{number}", glow)


def _four(
    optics: Optics, peaks: NDArray[np.float64], part: slice
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return windows and glow (red, green, blue, extinction by material) of the materials of one texture."""
    low, scale, glow = np.zeros(4), np.zeros(4), np.zeros((4, 4))
    n = len(peaks[part])
    low[:n] = optics.low_g_cm3[part] / peaks[part]
    scale[:n] = peaks[part] / (optics.high_g_cm3 - optics.low_g_cm3)[part]
    glow[:3, :n] = (optics.colours[part] * optics.extinction_per_mm[part, None]).T
    glow[3, :n] = optics.extinction_per_mm[part]
    return low, scale, glow


def _text(words: object) -> str:
    return words.decode(errors="replace") if isinstance(words, bytes) else str(words)


def view_radius_mm(grains: Grains, camera: Camera) -> float:
    """Return how far from what the camera looks at the volume and its axes reach."""
    off_mm = np.linalg.norm(np.subtract(camera.centre_mm, grains.centre_mm))
    return 0.55 * float(np.linalg.norm(grains.size_mm)) + float(off_mm)


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
        self.divisor = 4
        self.moving_s = 0.0
        self.shot: Shot | None = None
        self._camera = camera
        self._rough: Canvas | None = None
        self._fine: Canvas | None = None
        self._depth = 0
        self._seen: object = None
        self.setDepthValue(100)

    @property
    def is_complete(self) -> bool:
        """Whether the fine picture is shown."""
        return self._fine is not None and self._fine.is_done

    @property
    def resting_s(self) -> float:
        """How long the last fine picture took."""
        return self._fine.spent_s if self._fine is not None else 0.0

    def changed(self) -> None:
        """Draw anew: the optics, the cut or what is opaque is another."""
        self._seen = None
        self.update()

    def initializeGL(self) -> None:
        """Compile the shaders, in the context of the view."""
        self._rough = self._fine = self._seen = None
        self._depth = 0
        self.caster.start()

    def paint(self) -> None:
        """Draw what fits into a beat, and ask for the next one while something is missing."""
        caster = self.caster
        if caster.fault or caster.grains is None or caster.optics is None:
            return
        if not caster.is_ready:
            caster.upload()
            self.update()
            if not caster.is_ready:
                return
        _, _, width, height = (int(n) for n in GL.glGetIntegerv(GL.GL_VIEWPORT))
        if (shot := self.shot) is None:
            self._show(width, height)
        elif shot.canvas.is_done:
            caster.place(shot.canvas)
        else:
            shot.depth = copied_depth(shot.depth, width, height)

    def _show(self, width: int, height: int) -> None:
        caster, camera = self.caster, self._camera()
        now = (width, height, camera, self.quality, caster.optics, caster.cut, caster.grains)
        if now != self._seen:
            self._seen = now
            self._depth = copied_depth(self._depth, width, height)
            self._draw_rough(width, height)
            self._fine = self._canvas(self._fine, width, height)
        assert self._fine is not None
        assert self._rough is not None
        if not self.is_moving and not self._fine.is_done:
            caster.draw(self._fine, camera, self.quality, self._depth, BAND_S)
        share = self._fine.rows_done / height
        caster.place(self._fine, 0.0, share)
        caster.place(self._rough, share, 1.0)
        if not self.is_moving and not self._fine.is_done:
            self.update()

    def _draw_rough(self, width: int, height: int) -> None:
        divisor = self.quality.divisor or self.divisor
        rough = self._rough = self._canvas(self._rough, max(width // divisor, 1), max(height // divisor, 1))
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

    def _coarse(self, caster: RayCaster) -> RayCaster | None:
        """Return what draws the volume at half the resolution, once all of that is on the card."""
        coarse = caster.coarse
        if coarse is not None and not coarse.is_ready:
            coarse.upload()
        return coarse if coarse is not None and coarse.is_ready else None

    def _canvas(self, old: Canvas | None, width: int, height: int) -> Canvas:
        if old is not None and (old.width, old.height) == (width, height):
            old.restart()
            return old
        if old is not None:
            old.delete()
        return Canvas.of(width, height)


def copied_depth(texture: int, width: int, height: int) -> int:
    """Copy the depths of what is drawn so far, where the rays shall end, to a texture; 0 makes one."""
    texture = texture or int(GL.glGenTextures(1))
    GL.glBindTexture(GL.GL_TEXTURE_2D, texture)
    for name, value in (
        (GL.GL_TEXTURE_MIN_FILTER, GL.GL_NEAREST), (GL.GL_TEXTURE_MAG_FILTER, GL.GL_NEAREST),
        (GL.GL_TEXTURE_WRAP_S, GL.GL_CLAMP_TO_EDGE), (GL.GL_TEXTURE_WRAP_T, GL.GL_CLAMP_TO_EDGE),
    ):  # fmt: skip
        GL.glTexParameteri(GL.GL_TEXTURE_2D, name, value)
    GL.glCopyTexImage2D(GL.GL_TEXTURE_2D, 0, GL.GL_DEPTH_COMPONENT24, 0, 0, width, height, 0)
    GL.glBindTexture(GL.GL_TEXTURE_2D, 0)
    return texture
