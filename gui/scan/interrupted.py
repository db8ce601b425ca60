"""Scans that were broken off and can be gone on with: found in a folder, each with its own plan and calibration."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from acquisition.plan import Plan
from calibration.progress import Progress
from firmware_iface.errors import MpxctError

if TYPE_CHECKING:  # it loads much, and the window is to be there first
    from calibration.store import Calibration

PARTIAL = ".partial.h5"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Interrupted:
    """A scan that was broken off.

    Attributes
    ----------
    path : Path
        The name that it gets once it is whole.
    plan, calibration : optional
        Those it was begun with; without them it cannot be gone on with.
    n_frames, n_planned : int
        Frames that are there, and that make it whole; 0: not known.
    started : str
        ISO 8601 in UTC.
    notes : dict of str to str
        What people said of it.
    damage : str
        What keeps it from being read; empty: nothing.
    """

    path: Path
    plan: Plan | None = None
    calibration: Calibration | None = None
    n_frames: int = 0
    n_planned: int = 0
    sample: str = ""
    started: str = ""
    notes: dict[str, str]
    damage: str = ""

    @property
    def why_not(self) -> str:
        """Return why it cannot be gone on with; empty where it can."""
        if self.damage:
            return f"It cannot be read: {self.damage}. `mpxct recover` copies what is whole of it."
        if self.plan is None or self.calibration is None:
            return "It keeps no plan or no calibration, so nobody knows how it was to go on."
        return ""

    @property
    def told(self) -> str:
        """Return it in a line."""
        if self.damage:
            return f"{self.path.name}: cannot be read"
        many = f"{self.n_frames} of {self.n_planned or '?'} frames"
        return (
            f"{self.path.name}: {many} of {self.sample or 'the open beam'}, begun {self.started[:16].replace('T', ' ')}"
        )


def find_interrupted(folder: Path) -> Generator[Progress, None, tuple[Interrupted, ...]]:
    """Look through a folder, the newest first; files that are being written now look the same."""
    files = sorted(folder.glob(f"*{PARTIAL}"), key=_changed_s, reverse=True)
    found = []
    for number, file in enumerate(files):
        yield Progress("interrupted scans", number, len(files))
        found.append(look_at(file))
    return tuple(found)


def look_at(file: Path) -> Interrupted:
    """Read what is known of one of them."""
    from acquisition.scan_file import read_scan

    path = whole_name(file)
    try:
        scan = read_scan(file, allow_partial=True)
    except MpxctError as error:
        return Interrupted(path=path, damage=str(error), notes={})
    return Interrupted(
        path=path,
        plan=scan.plan,
        calibration=scan.calibration,
        n_frames=scan.shape[0],
        n_planned=scan.n_planned or 0,
        sample=scan.sample,
        started=scan.start_time,
        notes={name: str(value) for name, value in scan.header.items()},
    )


def whole_name(file: Path) -> Path:
    """Return the name that a partial file gets once it is whole."""
    return file.with_name(file.name.removesuffix(PARTIAL) + ".h5")


def free_name(folder: Path, stem: str) -> Path:
    """Return a name in a folder that no scan has, whole or broken off: STEM.h5, STEM-2.h5, and so on."""
    number = 1
    while True:
        name = folder / (f"{stem}.h5" if number == 1 else f"{stem}-{number}.h5")
        if not name.exists() and not name.with_name(name.stem + PARTIAL).exists():
            return name
        number += 1


def _changed_s(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0
