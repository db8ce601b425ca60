"""The calibrations of a folder: found, read, kept. Nothing is ever overwritten without a copy beside it."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from calibration.conditions import Conditions, differences
from calibration.progress import Progress
from calibration.store import Calibration, is_calibration_file, load, save
from calibration.whole_file import whole_file
from firmware_iface.errors import BadFile, MpxctError
from gui.calibrate.comparison import made, mean_gain, n_bad, sigma_kev

BACKUP = ".bak-"
NOTE = ".note.txt"
WAITING = "-not-accepted"
STAMP = "%Y%m%d-%H%M%S"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Entry:
    """One file of the history.

    Attributes
    ----------
    calibration : Calibration, optional
        None where the file is damaged; `fault` then says how.
    stamp : (int, int)
        Of the file, by which a change is seen.
    """

    path: Path
    stamp: tuple[int, int]
    calibration: Calibration | None = None
    fault: str = ""
    note: str = ""

    @property
    def is_backup(self) -> bool:
        """Whether it is the copy of a file that was overwritten."""
        return BACKUP in self.path.name

    @property
    def made(self) -> str:
        """When its newest step was done, ISO 8601; empty where that is not known."""
        return made(self.calibration) if self.calibration is not None else ""

    @property
    def cells(self) -> tuple[str, ...]:
        """What a list shows of it beside the date: sigma in keV, gain, pixels not used, steps."""
        c = self.calibration
        if c is None:
            return ("", "", "", "")
        spread, gain = sigma_kev(c), mean_gain(c)
        return (
            f"{spread:.2f}" if math.isfinite(spread) else "-",
            f"{gain:.3f}" if math.isfinite(gain) else "-",
            str(n_bad(c)),
            ", ".join(dict.fromkeys(record.step for record in c.history)),
        )

    def foreign(self, now: Conditions | None) -> tuple[str, ...]:
        """Tell in which conditions it differs from those of now; nothing where it holds or nobody knows."""
        return differences(self.calibration.conditions, now) if self.calibration is not None and now is not None else ()


def scan_folder(
    folder: Path, known: Mapping[Path, Entry] | None = None
) -> Generator[Progress, None, tuple[Entry, ...]]:
    """Read every calibration of a folder, the newest first; files that have not changed are not read again."""
    known = known or {}
    paths = [path for path in sorted(folder.iterdir()) if _may_be(path)] if folder.is_dir() else []
    entries = []
    for done, path in enumerate(paths):
        yield Progress("looking for calibrations", done, len(paths))
        entry = _entry(path, known.get(path))
        if entry is not None:
            entries.append(entry)
    return tuple(sorted(entries, key=lambda entry: (entry.made, entry.path.name), reverse=True))


def _may_be(path: Path) -> bool:
    return path.is_file() and (path.suffix == ".h5" or BACKUP in path.name)


def _entry(path: Path, known: Entry | None) -> Entry | None:
    try:
        status = path.stat()
    except OSError:  # gone meanwhile
        return None
    stamp = (status.st_mtime_ns, status.st_size)
    if known is None or known.stamp != stamp:
        if not is_calibration_file(path):
            return None
        try:
            known = Entry(path=path, stamp=stamp, calibration=load(path))
        except BadFile as error:
            known = Entry(path=path, stamp=stamp, fault=str(error))
    return Entry(path=path, stamp=stamp, calibration=known.calibration, fault=known.fault, note=read_note(path))


def new_path(folder: Path, now: datetime | None = None) -> Path:
    """Return a name for a new calibration that no file has."""
    stem = f"calibration-{_stamp(now)}"
    path, number = folder / f"{stem}.h5", 2
    while path.exists():
        path, number = folder / f"{stem}-{number}.h5", number + 1
    return path


def keep_waiting(calibration: Calibration, folder: Path, now: datetime | None = None) -> Path:
    """Write what nobody accepted or discarded before the window closed, under a name that says so.

    Raises
    ------
    MpxctError
        It cannot be written.
    """
    path = new_path(folder, now)
    path = path.with_name(f"{path.stem}{WAITING}.h5")
    save(calibration, path)
    return path


def _stamp(now: datetime | None) -> str:
    """Return a date for the name of a file, in the time of this place."""
    return (now or datetime.now(UTC).astimezone()).strftime(STAMP)


def keep(calibration: Calibration, path: Path, now: datetime | None = None) -> Generator[Progress, None, Path]:
    """Write a calibration under a name; what stood there is copied first, to ``NAME.bak-DATE`` beside it.

    Raises
    ------
    MpxctError
        It cannot be written; what stood there still does.
    """
    yield Progress("saving", 0, 1)
    if path.exists():
        back_up(path, now)
    save(calibration, path)
    return path


def back_up(path: Path, now: datetime | None = None) -> Path:
    """Copy a file to ``NAME.bak-DATE`` beside it, and return that; no copy before it is overwritten."""
    stem = f"{path.name}{BACKUP}{_stamp(now)}"
    copy, number = path.with_name(stem), 2
    while copy.exists():
        copy, number = path.with_name(f"{stem}-{number}"), number + 1
    try:
        shutil.copy2(path, copy)
    except OSError as error:
        raise MpxctError(
            f"{path} cannot be backed up: {os.strerror(error.errno) if error.errno else error}",
            hint="nothing was overwritten; check that the folder may be written to, and that the disk has room",
        ) from error
    return copy


def opened(path: Path) -> Generator[Progress, None, Calibration]:
    """Read a calibration file."""
    yield Progress("reading", 0, 1)
    return load(path)


def reported(calibration: Calibration, path: Path) -> Generator[Progress, None, Path]:
    """Write the report of a calibration as one HTML file."""
    yield Progress("report", 0, 1)
    from gui.reports.calibration_report import save_calibration_report

    return save_calibration_report(calibration, path)


def read_note(path: Path) -> str:
    """Return what somebody noted about a file; empty where nobody did."""
    try:
        return path.with_name(path.name + NOTE).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def write_note(path: Path, text: str) -> None:
    """Note something about a file, in a text file beside it; the calibration itself stays as it was measured."""
    note = path.with_name(path.name + NOTE)
    if not text.strip():
        note.unlink(missing_ok=True)
        return
    with whole_file(note) as partial:
        partial.write_text(text.strip() + "\n", encoding="utf-8")
