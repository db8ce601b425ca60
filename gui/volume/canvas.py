"""Pictures on the graphics card that rays are drawn into, some rows at a time, and the depths where rays end."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from OpenGL import GL

LEAST_ROWS = 16


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
        _bind(texture, GL.GL_LINEAR)
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


def copied_depth(texture: int, width: int, height: int) -> int:
    """Copy the depths of what is drawn so far, where the rays shall end, to a texture; 0 makes one."""
    texture = texture or int(GL.glGenTextures(1))
    _bind(texture, GL.GL_NEAREST)
    GL.glCopyTexImage2D(GL.GL_TEXTURE_2D, 0, GL.GL_DEPTH_COMPONENT24, 0, 0, width, height, 0)
    GL.glBindTexture(GL.GL_TEXTURE_2D, 0)
    return texture


def _bind(texture: int, between: int) -> None:
    """Take a texture in hand, with what it gives between its points, and nothing beyond its edges."""
    GL.glBindTexture(GL.GL_TEXTURE_2D, texture)
    for name in (GL.GL_TEXTURE_MIN_FILTER, GL.GL_TEXTURE_MAG_FILTER):
        GL.glTexParameteri(GL.GL_TEXTURE_2D, name, between)
    for name in (GL.GL_TEXTURE_WRAP_S, GL.GL_TEXTURE_WRAP_T):
        GL.glTexParameteri(GL.GL_TEXTURE_2D, name, GL.GL_CLAMP_TO_EDGE)
