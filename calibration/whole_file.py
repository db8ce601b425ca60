"""A file that appears under its name only when it is whole: the one way in which results are written in one piece.

Scans are not: they grow while they are measured, and a part of one is worth keeping (`acquisition.scan_file`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from firmware_iface.errors import MpxctError


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Give the name to write under; it becomes `path` when the block ends, and is removed if the block fails.

    Raises
    ------
    MpxctError
        The system refuses to write: no room, no permission, no such folder. What stood there before still does.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException as error:
        with suppress(OSError):  # what forbids to write may forbid to remove as well
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            # HDF5 puts a paragraph of its own where the system's few words should be.
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise MpxctError(
                f"{path} cannot be written: {reason}",
                hint="check that the folder is there and may be written to, and that the disk has room",
            ) from error
        raise
