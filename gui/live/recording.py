"""Frames of a file, to be looked at as live ones are: of a Merlin file, or of a scan that keeps no plan."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from calibration.progress import Progress
from firmware_iface.errors import BadFile
from firmware_iface.frame import Frame, Lost
from firmware_iface.merlin import MerlinFile
from gui.live.frames import MOST_BYTES, FrameStore
from gui.live.run import Underway

if TYPE_CHECKING:
    from acquisition.scan_file import Scan


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recording:
    """The frames of a file, and how they were taken."""

    store: FrameStore
    underway: Underway


def merlin_recording(merlin: MerlinFile) -> Generator[Progress, None, Recording]:
    """Take in the frames of a Merlin file.

    Raises
    ------
    BadFile
        Its exposures have not the same counters, or a frame is damaged.
    """
    from acquisition.convert import merlin_frame, merlin_readout  # heavy, and the window is to be there first

    layers, groups = merlin.groups()
    try:
        readout = merlin_readout(merlin.frames[int(groups[0, 0])].header, layers)
    except ValueError as error:
        raise BadFile(f"{merlin.path} cannot be shown: {error}") from error
    store = FrameStore(most_frames=len(groups))
    for place, group in enumerate(groups.tolist()):
        store.push(replace(merlin_frame(merlin, group, layers), sequence=place))
        yield Progress(f"reading {merlin.path.name}", place + 1, len(groups))
    return Recording(store=store, underway=Underway(readout=readout, note=_note(merlin.path, store)))


def scan_recording(scan: Scan) -> Generator[Progress, None, Recording]:
    """Take in the frames of a scan file."""
    from acquisition.scan import ImageKey

    n_frames = scan.shape[0]
    store = FrameStore(most_frames=n_frames)
    for place in range(n_frames):
        if scan.image_key[place] == ImageKey.INVALID:
            store.push(Lost(run_id=0, first_sequence=place, n_frames=1, reason="marked as lost in the file"))
        else:
            store.push(
                Frame(
                    counts=scan.counts(slice(place, place + 1))[0], thresholds=scan.readout.thresholds, sequence=place,
                    timestamp_ns=0, exposure_ns=round(1e9 * float(scan.exposures_s[place])), run_id=0,
                )
            )  # fmt: skip
        yield Progress(f"reading {scan.path.name}", place + 1, n_frames)
    return Recording(store=store, underway=Underway(readout=scan.readout, note=_note(scan.path, store)))


def _note(path: Path, store: FrameStore) -> str:
    status = store.status()
    n_kept, n_frames = status.end - status.first, status.n_received + status.n_lost
    kept = f" The slider has the last {n_kept} of {n_frames}, in {MOST_BYTES >> 20} MB." if n_kept < n_frames else ""
    return f"Frames of {path.name}, which names no plan and no calibration.{kept} Start shows the instrument again."
