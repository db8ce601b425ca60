"""Files into the session: what is in a file decides which part of the state it becomes, and which page shows it."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acquisition.plan import Plan, load_plan
from calibration.progress import Progress
from firmware_iface.errors import WrongUsage
from gui.session import Session

FILTER = "Files of mpxct, plans, Merlin files (*.h5 *.hdf5 *.nxs *.toml *.mib *.hdr);;All files (*)"
PLAN, FRAMES = "plan", "frames"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Opened:
    """A file and what is in it; `kind` is plan (None with a fault), scan, frames, calibration or volume."""

    path: Path
    kind: str
    content: Any


def opened_file(path: Path) -> Generator[Progress, None, Opened]:
    """Read a file of any kind; of a Merlin file, and of a scan without a plan, the frames.

    Raises
    ------
    BadFile, WrongUsage
        It is none of ours, or damaged.
    """
    from gui.any_file import open_any
    from gui.live.recording import merlin_recording, scan_recording

    yield Progress(f"reading {path.name}", 0, 0)
    if path.suffix.lower() == ".toml":
        return Opened(path=path, kind=PLAN, content=_plan_in(path))
    kind, content = open_any(path)
    if kind == "merlin":
        kind, content = FRAMES, (yield from merlin_recording(content))
    elif kind == "scan" and content.plan is None:
        kind, content = FRAMES, (yield from scan_recording(content))
    return Opened(path=path, kind=kind, content=content)


def open_into(session: Session, opened: Opened) -> str:
    """Make a file part of the session, and return the title of the page that shows it."""
    from reconstruction.volume import MASS_CONCENTRATION

    path, content = opened.path, opened.content
    if opened.kind == PLAN:
        session.change(plan=content or session.state.plan, plan_path=path)
        return "Scan"
    if opened.kind == FRAMES:
        session.change(recording=content)
        return "Live"
    if opened.kind == "calibration":
        session.change(calibration=content, calibration_path=path)
        return "Calibrate"
    if opened.kind == "scan":
        session.change(scan_path=path)
        return "Reconstruct"
    if content.unit == MASS_CONCENTRATION:
        session.change(materials=content, materials_path=path)
    else:
        session.change(bins=content, bins_path=path)
    return "Volume"


def _plan_in(path: Path) -> Plan | None:
    """Read a plan; None where it is text with a fault, which the page of plans tells at its line."""
    try:
        return load_plan(path)
    except WrongUsage as error:
        if isinstance(error.__cause__, OSError | UnicodeDecodeError):
            raise
        return None
