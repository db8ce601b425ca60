"""Whether the disk keeps up, and whether there is room for the rest: looked at while a scan is written."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from acquisition.disk import SPARE_BYTES

SLOW_WRITE_S = 2.0
"""A write that takes longer is told of."""
LOOK_EVERY_S = 2.0
FEWEST_FRAMES = 32
"""What a frame takes is told by the growth over so many: plan and calibration stand in the file before them."""
RESERVE_BYTES = 48 * SPARE_BYTES
"""Below this the run stops: the room of two blocks, and of what closing the file takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LowDisk:
    """What to say of a disk that fills up, and whether the run must stop while the file can still be closed."""

    text: str
    is_stop: bool


class DiskWatch:
    """Watches the disk that one growing file is on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._looked_s = -LOOK_EVERY_S
        self._is_warned = False
        self._began: tuple[int, int] | None = None
        """Frames and bytes of the file when frames were first seen in it."""
        self.worst_s = 0.0
        self.free_bytes = shutil.disk_usage(path.parent).free

    def wrote(self, took_s: float) -> str | None:
        """Take how long a write took; return what to say if that was the slowest so far, and too slow."""
        is_worst, self.worst_s = took_s > self.worst_s, max(took_s, self.worst_s)
        if took_s < SLOW_WRITE_S or not is_worst:
            return None
        return f"the disk took {took_s:.1f} s for one write; frames wait meanwhile, and then the board"

    def look(self, n_written: int, n_left: int) -> LowDisk | None:
        """Compare the room with what the rest will take, by what the frames so far took; None where all is well.

        Too little for the rest is told once; the run goes on, for somebody may make room.
        """
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_EVERY_S:
            return None
        self._looked_s = now_s
        self.free_bytes = shutil.disk_usage(self._path.parent).free
        if self.free_bytes < RESERVE_BYTES and n_left:
            return LowDisk(text=f"the disk is full but for {self.free_bytes / 1e6:.0f} MB", is_stop=True)
        if not n_written or self._is_warned:
            return None
        n_bytes = self._path.stat().st_size
        n_began, began_bytes = self._began = self._began or (n_written, n_bytes)
        if n_written - n_began < FEWEST_FRAMES:
            return None
        wanted_bytes = (n_bytes - began_bytes) / (n_written - n_began) * n_left
        if self.free_bytes - RESERVE_BYTES >= wanted_bytes:
            return None
        self._is_warned = True
        text = f"{self.free_bytes / 1e6:.0f} MB are free, and the rest of the scan takes {wanted_bytes / 1e6:.0f} MB"
        return LowDisk(text=text, is_stop=False)
