"""Room on the disk, taken before it is needed.

HDF5 does not survive a failed write: closing the file fails too, or kills the process, and the file stays unreadable.
So the room of the next block is taken beyond the file's end first; where that fails, the file is still whole, and the
spare room of the time before is there to close it in.
"""

from __future__ import annotations

import os
from pathlib import Path

SPARE_BYTES = 1 << 20
"""For what a block adds beside its data, and once more for the end of the file."""


class Room:
    """Keeps room for the next block of one growing file.

    Parameters
    ----------
    path : Path
        The file; it is made if it is not there. Whoever renames it says so here.
    block_bytes : int
        The most data that is written between two calls of `keep_ahead`.

    Raises
    ------
    OSError
        Here and in `keep_ahead`: the disk, a quota or a limit does not allow it.
    """

    def __init__(self, path: Path, block_bytes: int) -> None:
        self.path, self._block_bytes = path, block_bytes
        path.touch()
        self._end_bytes = path.stat().st_size
        self.keep_ahead(self._end_bytes)

    def keep_ahead(self, end_bytes: int) -> None:
        """Take room behind the file's data, which end at `end_bytes`; mostly there is enough, and nothing is done."""
        if self._end_bytes - end_bytes >= self._block_bytes + 2 * SPARE_BYTES:
            return
        start, stop = max(end_bytes, self._end_bytes), end_bytes + 2 * self._block_bytes + 2 * SPARE_BYTES
        with self.path.open("r+b", buffering=0) as raw:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(raw.fileno(), start, stop - start)
            else:
                raw.seek(start)
                raw.write(bytes(stop - start))
        self._end_bytes = stop

    def give_back(self, end_bytes: int) -> None:
        """Cut the closed file off where its data end."""
        os.truncate(self.path, min(end_bytes, self.path.stat().st_size))
        sync(self.path)


def sync(path: Path) -> None:
    """Have the disk itself hold what the file holds."""
    with path.open("r+b", buffering=0) as raw:
        getattr(os, "fdatasync", os.fsync)(raw.fileno())


def rename(path: Path, target: Path) -> None:
    """Give a file another name, which replaces what stood there, and have the disk hold the new name."""
    path.replace(target)
    if os.name != "nt":
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
