"""A volume on the graphics card: what its voxels hold, copied a few slices at a time, and which blocks rays leap over.

It is held in half floats, in shares of each channel's highest value, which are right for any window. For pictures that
move it is held in bytes, in shares of each window: these take half the time to look up, and are copied anew when a
window changes.
"""

from __future__ import annotations

import ctypes
import time

import numpy as np
from numpy.typing import NDArray
from OpenGL import GL

from gui.volume.optics import Grains, Optics, leaps

CHANNELS = 4
"""In one texture: red, green, blue, alpha."""
TEXTURE_UNIT = int(GL.GL_TEXTURE0)  # pyright: ignore[reportArgumentType]
MARKS_UNIT = 2
"""Marks follow the two textures of values."""


class VolumeTextures:
    """A volume on the card, as far as it has been copied; made and used in one OpenGL context.

    Parameters
    ----------
    is_quick : bool
        Bytes of the shares of each window, instead of half floats.

    Attributes
    ----------
    fault : str
        Why the card does not take it; empty where it does.
    """

    def __init__(self, grains: Grains, *, is_modern: bool, is_quick: bool) -> None:
        self.grains = grains
        self.fault = ""
        self._is_modern, self._is_quick = is_modern, is_quick
        self._slices_done, self._slices_at_once = 0, 4
        self._optics: Optics | None = None
        peaks = np.maximum(np.abs(grains.most).max(axis=(1, 2, 3)), np.abs(grains.least).max(axis=(1, 2, 3)))
        self._peaks = np.maximum(peaks.astype(np.float64), 1e-12)
        shape = grains.values.shape[1:]
        most = int(GL.glGetIntegerv(GL.GL_MAX_3D_TEXTURE_SIZE))
        if max(shape) > most:
            self.fault = f"the graphics card takes volumes of up to {most} voxels along an edge, not {max(shape)}"
        self._names = [_texture(GL.GL_LINEAR) for _ in range(0, len(grains.values), CHANNELS)]
        self._marks = _texture(GL.GL_NEAREST)
        inside, kind = (GL.GL_RGBA8, GL.GL_UNSIGNED_BYTE) if is_quick else (GL.GL_RGBA16F, GL.GL_HALF_FLOAT)
        for name in self._names if not self.fault else ():
            GL.glBindTexture(GL.GL_TEXTURE_3D, name)
            GL.glTexImage3D(GL.GL_TEXTURE_3D, 0, inside, *shape[::-1], 0, GL.GL_RGBA, kind, ctypes.c_void_p(0))
        GL.glBindTexture(GL.GL_TEXTURE_3D, 0)

    def is_whole(self, optics: Optics) -> bool:
        """Say whether all slices are on the card, in the form that these optics need."""
        is_copied = self._slices_done >= self.grains.values.shape[1]
        return is_copied and (not self._is_quick or self._has_windows(optics))

    def take(self, optics: Optics) -> None:
        """Mark the blocks for other optics; bytes are to be copied anew where a window is another."""
        if optics is self._optics:
            return
        if self._is_quick and not self._has_windows(optics):
            self._slices_done = 0
        self._optics = optics
        self._mark(optics)

    def copy(self, budget_s: float) -> None:
        """Copy as many slices as fit into the time."""
        end_s = time.perf_counter() + budget_s
        while self._slices_done < self.grains.values.shape[1]:
            began_s = time.perf_counter()
            self._copy_slab()
            if (now_s := time.perf_counter()) > end_s:
                break
            if now_s - began_s < budget_s / 4:
                self._slices_at_once *= 2

    def windows(self, number: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return where the windows of one texture begin and end, in what it holds: two of (4,) float64."""
        assert self._optics is not None
        part = slice(CHANNELS * number, CHANNELS * (number + 1))
        low, high = np.zeros(CHANNELS), np.ones(CHANNELS)
        if not self._is_quick:
            peaks = self._peaks[part]
            low[: len(peaks)] = self._optics.low_g_cm3[part] / peaks
            high[: len(peaks)] = self._optics.high_g_cm3[part] / peaks
        return low, high

    def bind(self) -> None:
        """Hand them to the shader: values to the first units, marks to `MARKS_UNIT`."""
        self._bind(self._names[0], self._names[-1], self._marks)

    def unbind(self) -> None:
        """Take them back."""
        self._bind(0, 0, 0)

    def delete(self) -> None:
        """Free what it holds on the card."""
        GL.glDeleteTextures([*self._names, self._marks])

    def _bind(self, *names: int) -> None:
        for unit, name in enumerate(names):
            GL.glActiveTexture(TEXTURE_UNIT + unit)
            GL.glBindTexture(GL.GL_TEXTURE_3D, name)
        GL.glActiveTexture(GL.GL_TEXTURE0)

    def _has_windows(self, optics: Optics) -> bool:
        now = self._optics
        return now is not None and all(
            np.array_equal(before, after)
            for before, after in ((now.low_g_cm3, optics.low_g_cm3), (now.high_g_cm3, optics.high_g_cm3))
        )

    def _copy_slab(self) -> None:
        first = self._slices_done
        last = min(first + self._slices_at_once, self.grains.values.shape[1])
        kind = GL.GL_UNSIGNED_BYTE if self._is_quick else GL.GL_HALF_FLOAT
        GL.glPixelStorei(GL.GL_UNPACK_ALIGNMENT, 1)
        for number, name in enumerate(self._names):
            mixed = self._mixed(number, slice(first, last))
            GL.glBindTexture(GL.GL_TEXTURE_3D, name)
            GL.glTexSubImage3D(
                GL.GL_TEXTURE_3D, 0, 0, 0, first, *mixed.shape[2:0:-1], len(mixed), GL.GL_RGBA, kind,
                ctypes.c_void_p(mixed.ctypes.data),
            )  # fmt: skip
        GL.glBindTexture(GL.GL_TEXTURE_3D, 0)
        GL.glPixelStorei(GL.GL_UNPACK_ALIGNMENT, 4)
        self._slices_done = last

    def _mixed(self, number: int, slices: slice) -> NDArray[np.generic]:
        """Return some slices as one texture holds them: (z, y, x, 4)."""
        values = self.grains.values
        mixed = np.zeros(
            (slices.stop - slices.start, *values.shape[2:], CHANNELS), np.uint8 if self._is_quick else "f2"
        )
        for channel in range(CHANNELS * number, min(CHANNELS * (number + 1), len(values))):
            part = values[channel, slices]
            if self._is_quick:
                mixed[..., channel % CHANNELS] = self._bytes(part, channel)
            else:
                mixed[..., channel % CHANNELS] = part * np.float32(1 / self._peaks[channel])
        return mixed

    def _bytes(self, values: NDArray[np.float32], channel: int) -> NDArray[np.float32]:
        """Return the share of a channel's window, 0 to 255, half a step up so that a cut rounds."""
        assert self._optics is not None
        low, high = self._optics.low_g_cm3[channel], self._optics.high_g_cm3[channel]
        share = (values - np.float32(low)) * np.float32(255 / (high - low))
        np.clip(share, 0, 255, out=share)
        share += np.float32(0.5)
        return share

    def _mark(self, optics: Optics) -> None:
        """Put on the card which blocks a ray may leap over with these optics."""
        marks = np.ascontiguousarray(leaps(self.grains, optics))
        inside, outside = (GL.GL_R8, GL.GL_RED) if self._is_modern else (GL.GL_LUMINANCE8, GL.GL_LUMINANCE)
        GL.glPixelStorei(GL.GL_UNPACK_ALIGNMENT, 1)
        GL.glBindTexture(GL.GL_TEXTURE_3D, self._marks)
        GL.glTexImage3D(
            GL.GL_TEXTURE_3D, 0, inside, *marks.shape[::-1], 0, outside, GL.GL_UNSIGNED_BYTE,
            ctypes.c_void_p(marks.ctypes.data),
        )  # fmt: skip
        GL.glBindTexture(GL.GL_TEXTURE_3D, 0)
        GL.glPixelStorei(GL.GL_UNPACK_ALIGNMENT, 4)


def _texture(filtering: int) -> int:
    name = int(GL.glGenTextures(1))
    GL.glBindTexture(GL.GL_TEXTURE_3D, name)
    for option in (GL.GL_TEXTURE_MIN_FILTER, GL.GL_TEXTURE_MAG_FILTER):
        GL.glTexParameteri(GL.GL_TEXTURE_3D, option, filtering)
    for option in (GL.GL_TEXTURE_WRAP_S, GL.GL_TEXTURE_WRAP_T, GL.GL_TEXTURE_WRAP_R):
        GL.glTexParameteri(GL.GL_TEXTURE_3D, option, GL.GL_CLAMP_TO_EDGE)
    return name
