"""What an interrupted or damaged scan still holds, copied into a new file; the old one is only read.

# Ref: repairing in place (`h5clear`) destroyed a file that was whole but for a mark: measured with h5clear 1.10.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from acquisition.disk import rename
from acquisition.scan import ScanStatus
from acquisition.scan_file import read_scan
from acquisition.scan_writer import ScanWriter
from calibration.progress import Progress
from firmware_iface.errors import WrongUsage

WHOLE = (ScanStatus.COMPLETE, ScanStatus.DEGRADED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What was found, and what became of it.

    Attributes
    ----------
    n_planned : int or None
        Frames that would make the scan whole; None: not known.
    n_frames : int
        Rows that were found, those of lost and damaged frames included.
    n_lost, n_damaged : int
        Frames that never came, and frames that came, but cannot be read any more; both are marked as lost.
    damages : tuple of str
        What else cannot be read.
    """

    path: Path
    status: ScanStatus
    n_planned: int | None
    n_frames: int
    n_lost: int
    n_damaged: int
    damages: tuple[str, ...]


def recover(path: str | Path, target: str | Path, *, overwrite: bool = False) -> Generator[Progress, None, Recovery]:
    """Copy every whole frame of a scan, and all that is known of it, into a new file.

    The new file is complete (or degraded) if all planned frames have a row, and interrupted otherwise; then it opens
    where partial scans are allowed, and a scan can be resumed from it.

    Raises
    ------
    WrongUsage
        The target is the scan itself, or exists.
    BadFile
        Not even the layout of the file can be read: it is foreign, or damaged at its beginning.
    """
    path, target = Path(path), Path(target)
    if target.resolve() == path.resolve():
        raise WrongUsage(f"{path} cannot be recovered onto itself", hint="name another file to write: -o GOOD.h5")
    old = read_scan(path, allow_partial=True, allow_damaged=True)
    with ScanWriter(
        target,
        old.readout,
        n_frames=old.n_planned,
        plan=old.plan,
        calibration=old.calibration,
        sample=old.sample,
        source=old.source,
        attributes=old.header,
        settings=old.settings,
        start_s=datetime.fromisoformat(old.start_time).timestamp() if old.start_time else None,
        overwrite=overwrite,
    ) as writer:
        n_damaged = yield from writer.copy(old, old.shape[0], allow_damaged=True)
        for damage in old.damages:
            writer.event("damaged", f"not recovered: {damage}")
        n_frames, n_lost = writer.n_frames, writer.n_lost - n_damaged
        writer.event("recovered", f"{n_frames} frames from {path.name}, of which {n_damaged} are damaged")
        if n_frames == old.n_planned or (old.n_planned is None and old.status in WHOLE):
            status = writer.finish()
        else:
            status = ScanStatus.INTERRUPTED
            planned = "" if old.n_planned is None else f" of {old.n_planned}"
            writer.interrupt(f"{n_frames}{planned} frames were found in {path.name}")
            rename(writer.partial, target)
    return Recovery(
        path=target,
        status=status,
        n_planned=old.n_planned,
        n_frames=n_frames,
        n_lost=n_lost,
        n_damaged=n_damaged,
        damages=old.damages,
    )
