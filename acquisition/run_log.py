"""What happened in a run, beside its scan file: NAME.log for people, NAME.jsonl for programs.

A log is never in the way of the scan: what cannot be written is left out. A resumed scan goes on in the same files.
While a run lasts, its log is locked, so that no second one writes the same scan.
"""

from __future__ import annotations

import json
import logging
import platform
import socket
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from calibration.store import software_version
from firmware_iface.errors import WrongUsage

try:
    import fcntl
except ImportError:  # Windows keeps two programs from one file by itself
    fcntl = None  # pyright: ignore[reportAssignmentType]

_log = logging.getLogger("mpxct.run")
_LEVELS = {
    "lost": logging.WARNING, "no-data": logging.ERROR, "slow-disk": logging.WARNING, "low-disk": logging.WARNING,
    "broken": logging.ERROR, "interrupted": logging.WARNING, "forced": logging.WARNING, "health": logging.DEBUG,
    "flushed": logging.DEBUG, "repeated": logging.WARNING, "warning": logging.WARNING, "unsafe": logging.CRITICAL,
}  # fmt: skip


class RunLog:
    """The two logs of one run; records go to Python's own logging besides, where `mpxct.run` is listened to.

    Parameters
    ----------
    path : Path or None
        Of the scan file; None for a run that writes none, and then no log either.
    is_continued : bool
        Go on behind what is there; else it is emptied.
    is_verbose : bool
        Write queue health and flushes into the text too.

    Raises
    ------
    WrongUsage
        Another run writes this scan now.
    """

    def __init__(self, path: Path | None, *, is_continued: bool = False, is_verbose: bool = False) -> None:
        self._is_verbose = is_verbose
        self._files: dict[Path, IO[str]] = {}
        self._made: list[Path] = []
        for file in () if path is None else (path.with_suffix(".jsonl"), path.with_suffix(".log")):
            is_new = not file.exists()
            with suppress(OSError):
                self._files[file] = file.open("a", encoding="utf-8")
                self._made += [file] if is_new else []
        self._lock()
        for stream in () if is_continued else self._files.values():
            with suppress(OSError):
                stream.truncate(0)

    def write(self, kind: str, text: str, **figures: Any) -> None:
        """Write one record into both logs."""
        level = _LEVELS.get(kind, logging.INFO)
        now = datetime.now(UTC)
        _log.log(level, "%s: %s", kind, text)
        record = {"time": now.isoformat(), "level": logging.getLevelName(level), "kind": kind, "text": text, **figures}
        for file, stream in self._files.items():
            with suppress(OSError, ValueError):  # ValueError: closed meanwhile
                if file.suffix == ".jsonl":
                    stream.write(json.dumps(record, default=str) + "\n")
                elif level > logging.DEBUG or self._is_verbose:
                    stream.write(f"{now:%Y-%m-%d %H:%M:%S} {logging.getLevelName(level):<8} {kind:<12} {text}\n")
                stream.flush()

    def start(self, text: str, **figures: Any) -> None:
        """Write with what, and on which machine, the run begins."""
        host = {"host": socket.gethostname(), "system": platform.platform(), "python": sys.version.split()[0]}
        self.write("start", text, software=software_version(), **host, **figures)

    def close(self) -> None:
        """Close both files; twice does nothing."""
        for stream in self._files.values():
            with suppress(OSError):
                stream.close()
        self._files = {}

    def discard(self) -> None:
        """Close both and remove those that this run made: there is no scan that they would tell of."""
        self.close()
        for file in self._made:
            file.unlink(missing_ok=True)

    def _lock(self) -> None:
        for file, stream in self._files.items():
            if fcntl is None or file.suffix != ".jsonl":
                continue
            try:
                fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                self.close()
                raise WrongUsage(
                    f"another run writes this scan now: {file} is locked",
                    hint="wait until it is done, or choose another name",
                ) from error
            except OSError:
                return  # a file system without locks
