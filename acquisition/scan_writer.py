"""Writes a scan while it is measured, so that what was flushed outlives the process, and others can read along.

A scan stands under NAME.partial.h5 until it is whole. That name appears with the complete layout behind it, at once;
from then on HDF5 writes as for readers beside it (SWMR), each block before what points to it, so a process killed at
any moment leaves a file that opens with all that was flushed. The writer gives up HDF5's lock as it begins: no reader
can hinder it, and a second writer is refused by the names and by HDF5's own mark in the file.

# Ref: single writer, multiple readers, and its order of writes: HDF5 user guide, "SWMR".
# Ref: chunks are copied as they are, filters and all: H5Dread_chunk and H5Dwrite_chunk, HDF5 reference manual.
"""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self, TypedDict

import h5py
import numpy as np
from numpy.typing import NDArray

from acquisition.disk import Room, rename, sync
from acquisition.plan import Plan, plan_to_toml
from acquisition.scan import Crc, Event, ImageKey, Readout, ScanStatus, flags_of
from acquisition.scan_file import Scan, dataset, opened, read_scan
from acquisition.scan_layout import (
    COLUMNS,
    DATA,
    EVENT_COLUMNS,
    KIND_BYTES,
    LIBVER,
    TEXT_BYTES,
    UNWRITTEN,
    Attribute,
    Head,
    Row,
    date,
    lay_out,
    partial_path,
)
from acquisition.steps import AT_ZERO, Pose
from calibration.progress import Progress
from calibration.store import Calibration, software_version
from firmware_iface.errors import BadFile, DataLost, MpxctError, WrongUsage
from firmware_iface.frame import Frame, Lost

SUFFIXES = (".h5", ".hdf5", ".nxs")


BATCH_BYTES = 1 << 21
"""Counts are written together up to so many bytes: HDF5 takes as long to be called as to compress a frame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlushPolicy:
    """Frames are on the disk after this many bytes of counts or seconds, whichever is first.

    A frame is looked at when it comes, and whenever `ScanWriter.flush_when_due` is called in between. After
    `reopen_frames` the file is closed and opened again: HDF5 keeps 0.1 kB for each, which a weekend would feel.
    """

    block_bytes: int = 1 << 24
    block_s: float = 1.0
    reopen_frames: int = 1 << 15

    def __post_init__(self) -> None:
        if self.block_bytes < 1 or self.block_s < 0 or self.reopen_frames < 1:
            raise ValueError(f"{self}; allowed: 1 byte, 0 s, 1 frame, and more of each")


class ScanWriter:
    """Writes one scan frame by frame, under its partial name until `finish`.

    Leaving the ``with`` block without `finish` closes the file validly, as interrupted, under the partial name.

    Parameters
    ----------
    n_frames : int, optional
        How many frames make the scan whole, lost ones included; `finish` refuses another number.
    attributes : mapping of str to str or number
        Anything else that is known of the run, kept as it is.
    settings : mapping of str to mapping, optional
        How everything stood: of the device its serial number and firmware, of each chip its DACs, and so on.
    is_checked : bool
        Frames come over a wire with a checksum, and those that come have passed it.
    start_s : float, optional
        When the scan began, in seconds since 1970; otherwise now.
    adopt : (path, int), optional
        Begin with the first frames of an interrupted scan, as `ScanWriter.adopt` does. It may be the partial file of
        this very name: the new one, with these frames, takes its place in one step.
    clock : callable
        Seconds since 1970; an argument so that tests own the time.

    Attributes
    ----------
    n_lost : int
        Frames so far that never arrived.
    flush_s, worst_flush_s : float
        How long the last flush took until the disk had everything, and the longest so far.

    Raises
    ------
    WrongUsage
        A scan, or the rest of an interrupted one, has this name and `overwrite` is not set; or the frames to adopt are
        of another scan.
    """

    def __init__(
        self,
        path: str | Path,
        readout: Readout,
        *,
        n_frames: int | None = None,
        plan: Plan | None = None,
        calibration: Calibration | None = None,
        sample: str = "",
        source: str = "",
        attributes: Mapping[str, Attribute] | None = None,
        settings: Mapping[str, Mapping[str, Attribute]] | None = None,
        is_checked: bool = False,
        start_s: float | None = None,
        adopt: tuple[str | Path, int] | None = None,
        overwrite: bool = False,
        policy: FlushPolicy | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path, self.partial = Path(path), partial_path(path)
        self.n_lost, self.flush_s, self.worst_flush_s = 0, 0.0, 0.0
        self._head = Head(
            title=sample or self.path.stem,
            start_s=clock() if start_s is None else start_s,
            readout=readout,
            n_frames=n_frames,
            plan=plan,
            calibration=calibration,
            sample=sample,
            source=source,
            settings={**_this_machine(), **(settings or {})},
            header=attributes or {},
        )
        self._readout, self._clock, self._policy = readout, clock, policy or FlushPolicy()
        self._fill, frame_bytes = readout.fill, math.prod(readout.shape) * readout.dtype.itemsize
        self._block_frames = max(1, self._policy.block_bytes // frame_bytes)
        self._crc = Crc.CHECKED if is_checked else Crc.NOT_CHECKED
        self._batch_frames = max(1, min(BATCH_BYTES // frame_bytes, self._block_frames))
        self._counts: list[NDArray[np.unsignedinteger]] = []
        self._first_counts = 0
        self._rows: list[Row] = []
        self._events: list[Event] = []
        self._n_rows_written = self._n_events_written = 0
        self._flushed_at_s = clock()
        self._is_failed = False
        self._claim_names(overwrite, is_adopted=adopt is not None and Path(adopt[0]) == self.partial)
        self._begin(self._block_frames * frame_bytes, adopt)

    @property
    def n_frames(self) -> int:
        """Frames so far, lost ones included."""
        return self._n_rows_written + len(self._rows)

    @property
    def n_waiting(self) -> int:
        """Frames that have not been flushed: a killed process would lose them."""
        return len(self._rows)

    def write(
        self,
        frame: Frame,
        key: ImageKey,
        pose: Pose = AT_ZERO,
        pass_index: int = 0,
        *,
        temperature_k: float = math.nan,
        monitor: float = math.nan,
    ) -> None:
        """Add a frame; counts that the file cannot hold are refused, never wrapped.

        Parameters
        ----------
        temperature_k : float
            Of the sensor when it was last looked at; NaN where it is not known.
        monitor : float
            What a beam monitor counted meanwhile; NaN where there is none.
        """
        if frame.counts.shape != self._readout.shape or frame.thresholds != self._readout.thresholds:
            raise ValueError(
                f"a frame of shape {frame.counts.shape} with thresholds {frame.thresholds} came for a scan of "
                f"{self._readout.shape} with thresholds {self._readout.thresholds}"
            )
        if int(frame.counts.max()) >= self._fill:
            raise ValueError(f"a count of {frame.counts.max()} does not fit {self._readout.depth_bits} bits")
        if frame.was_paused:
            self.event("paused", "the board waited for the host before this frame; nothing was lost")
        if not self._counts:
            self._first_counts = self.n_frames
        # The row comes last: a frame that was interrupted on its way has none.
        self._counts.append(frame.counts)
        self._rows.append(
            Row(
                image_key=key,
                count_time_s=frame.exposure_ns * 1e-9,
                run=frame.run_id,
                sequence=frame.sequence,
                timestamp_ns=frame.timestamp_ns,
                **_of(pose),
                pass_index=pass_index,
                temperature_k=temperature_k,
                monitor=monitor,
                crc=self._crc,
                flags=flags_of(frame),
            )
        )
        if len(self._counts) == self._batch_frames:
            self._write_counts()
        self.flush_when_due()

    def lost(self, lost: Lost, poses: Sequence[Pose] = (), pass_index: int = 0) -> None:
        """Mark frames that never arrived: fill, key INVALID, an event; each where the gantry was for it."""
        self._write_counts()
        last = lost.first_sequence + lost.n_frames - 1
        self.event("lost", f"frames {lost.first_sequence} to {last} of run {lost.run_id}: {lost.reason}")
        for place, sequence in enumerate(range(lost.first_sequence, last + 1)):
            self._rows.append(
                Row(
                    image_key=ImageKey.INVALID,
                    count_time_s=math.nan,
                    run=lost.run_id,
                    sequence=sequence,
                    timestamp_ns=-1,
                    **_of(poses[place] if poses else AT_ZERO),
                    pass_index=pass_index,
                    crc=Crc.WRONG,
                )
            )
            self.n_lost += 1
        self.flush_when_due()

    def event(self, kind: str, text: str) -> None:
        """Add a row to the events table."""
        self._events.append(Event(time_s=self._clock(), sequence=self.n_frames, kind=kind, text=text))

    def adopt(self, path: str | Path, n_frames: int) -> None:
        """Take over the first frames of an interrupted scan of the same plan, chunk by chunk as they are.

        Its events come along, and one more tells of it.

        Raises
        ------
        WrongUsage
            It is another scan: another plan, calibration or readout; or it has fewer frames than that.
        BadFile
            It cannot be read, or one of these frames is damaged.
        """
        old = read_scan(path, allow_partial=True)
        self._refuse_other(old, n_frames)
        for _ in self.copy(old, n_frames):
            pass
        planned = "" if self._head.n_frames is None else f" of {self._head.n_frames}"
        self.event("resumed", f"{n_frames}{planned} frames were taken over from {old.path.name}")
        self.flush()

    def copy(self, old: Scan, n_frames: int, *, allow_damaged: bool = False) -> Generator[Progress, None, int]:
        """Add the first frames of another scan of this readout, chunk by chunk as they are, and its events.

        Parameters
        ----------
        allow_damaged : bool
            Mark frames that cannot be read as lost, and return how many; otherwise they are refused.
        """
        self._events += old.events
        n_damaged = 0
        with opened(old.path, allow_damaged=allow_damaged) as file:
            source = dataset(file, DATA)
            for place, row in enumerate(islice(old.rows(), n_frames)):
                is_there = row.image_key != ImageKey.INVALID
                try:
                    if is_there:
                        self._copy_chunk(source, place, old.path)
                    self._rows.append(row)
                except BadFile as error:
                    if not allow_damaged:
                        raise
                    self.event("lost", str(error))
                    self._rows.append(row._replace(image_key=ImageKey.INVALID, crc=Crc.WRONG))
                    n_damaged += 1
                self.n_lost += self._rows[-1].image_key == ImageKey.INVALID
                self.flush_when_due()
                yield Progress("copy", place + 1, n_frames)
        return n_damaged

    def rewind(self, n_frames: int, reason: str) -> None:
        """Forget all frames but the first so many: a broken step is measured again. Events stay, and one tells of it.

        Raises
        ------
        ValueError
            There are fewer frames than that.
        """
        if not 0 <= n_frames <= self.n_frames:
            raise ValueError(f"cannot go back to {n_frames} frames; there are {self.n_frames}")
        self.flush()
        if n_frames == self.n_frames:
            return
        last, forgotten = self.n_frames - 1, np.s_[n_frames : self.n_frames]
        with self._closing_on_failure():
            keys, marks = self._columns["image_key"], self._columns["sequence"]
            self.n_lost -= int(np.count_nonzero(keys[forgotten] == ImageKey.INVALID))
            marks[forgotten] = UNWRITTEN  # what is written last goes first: a row that has it is whole
            marks.flush()
            keys[forgotten] = ImageKey.INVALID
            for place in range(n_frames, self.n_frames):
                self._data[place] = self._readout.fill  # one of them may be lost this time
        self._n_rows_written = n_frames
        self.event("repeated", f"frames {n_frames} to {last} were taken again: {reason}")
        self.flush()

    def flush(self) -> None:
        """Bring everything so far to the disk; after this a killed process loses nothing of it."""
        began_s = time.perf_counter()
        with self._closing_on_failure():
            self._write_tables()
            sync(self.partial)
            self._room.keep_ahead(self._file.id.get_filesize())
            if self._n_rows_written - self._n_rows_attached >= self._policy.reopen_frames:
                self._file.close()
                self._attach(is_again=True)
        self._flushed_at_s = self._clock()
        self.flush_s = time.perf_counter() - began_s
        self.worst_flush_s = max(self.worst_flush_s, self.flush_s)

    def flush_when_due(self) -> None:
        """Flush if the policy says so: to be called now and then where no frames come."""
        n_waiting, age_s = len(self._rows) + len(self._events), self._clock() - self._flushed_at_s
        if len(self._rows) >= self._block_frames or (n_waiting and age_s >= self._policy.block_s):
            self.flush()

    def finish(self) -> ScanStatus:
        """Close a whole scan and give it its own name.

        Raises
        ------
        DataLost
            The scan is not whole; it stays under its partial name.
        """
        n_expected = self._head.n_frames
        if n_expected is not None and self.n_frames != n_expected:
            raise DataLost(
                f"the scan has {self.n_frames} frames; whole are {n_expected}; what came is in {self.partial}"
            )
        status = ScanStatus.DEGRADED if self.n_lost else ScanStatus.COMPLETE
        self._close(status, f"{self.n_frames} frames, {self.n_lost} of them lost")
        rename(self.partial, self.path)
        return status

    def interrupt(self, reason: str) -> None:
        """Close the file validly under its partial name; to call it twice does nothing."""
        if self._file:
            self._close(ScanStatus.INTERRUPTED, reason)

    def discard(self) -> None:
        """Close the file and remove it."""
        with suppress(OSError, RuntimeError):
            self._file.close()
        self.partial.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.interrupt(f"{kind.__name__}: {error}" if kind else "closed before the end")

    def _claim_names(self, overwrite: bool, *, is_adopted: bool) -> None:
        if self.path.suffix not in SUFFIXES:
            raise WrongUsage(f"a scan file is named {self.path.name!r}; allowed endings: {', '.join(SUFFIXES)}")
        for path in (self.path, self.partial):
            if path.exists() and not overwrite and not (is_adopted and path == self.partial):
                raise WrongUsage(
                    f"{path} exists already", hint="choose another name, or allow overwriting (--overwrite)"
                )

    def _begin(self, block_bytes: int, adopt: tuple[str | Path, int] | None) -> None:
        """Make the file under a name of its own; with its layout, and what it adopts, it gets the partial name."""
        final, self.partial = self.partial, self.partial.with_name(f"{self.partial.name}.new")
        try:
            self.partial.unlink(missing_ok=True)
            Room(self.partial, block_bytes)  # proves that there is some; HDF5 empties the file
            with h5py.File(self.partial, "w", libver=LIBVER) as file:
                lay_out(file, self._head)
            self._attach()
            self._room = Room(self.partial, block_bytes)
        except OSError as error:
            self.partial.unlink(missing_ok=True)
            raise MpxctError(f"cannot write {final}: {error.strerror or error}") from error
        try:
            if adopt is not None:
                self.adopt(*adopt)
            self.event("start", f"scan of {self._head.n_frames or 'an unknown number of'} frames")
            self.flush()
            self._take_name(final, block_bytes)
        except BaseException:
            self.discard()
            raise

    def _attach(self, *, is_again: bool = False) -> None:
        """Open the file and what grows in it."""
        self._file = _open_to_write(self.partial, is_again=is_again)
        self._data = dataset(self._file, DATA)
        self._columns = {name: dataset(self._file, column.path) for name, column in COLUMNS.items()}
        self._event_columns = [dataset(self._file, f"entry/events/{name}") for name in EVENT_COLUMNS]
        self._n_rows_attached = self._n_rows_written

    def _take_name(self, final: Path, block_bytes: int) -> None:
        """Go on under another name; not every system renames an open file."""
        if os.name == "nt":
            self._file.close()
        rename(self.partial, final)
        self.partial = self._room.path = final
        if os.name == "nt":
            self._attach()
            self._room = Room(final, block_bytes)

    def _write_counts(self) -> None:
        """Write the counts that wait, together; a call costs as much as a frame."""
        if not self._counts:
            return
        first, stop = self._first_counts, self._first_counts + len(self._counts)
        with self._closing_on_failure():
            try:
                self._reserve(stop)
                self._data[first:stop] = np.stack(self._counts)
            except (OSError, RuntimeError):
                del self._rows[first - self._n_rows_written :]  # no row without its counts
                raise
            finally:
                self._counts = []

    def _reserve(self, n_frames: int) -> None:
        """Have places for so many frames and some more, so that it is not done for each."""
        if len(self._data) < n_frames:
            self._data.resize(n_frames + self._block_frames, axis=0)

    def _copy_chunk(self, source: h5py.Dataset, place: int, path: Path) -> None:
        """Take over one frame as it is compressed, if it can be read."""
        try:
            source[place]
            mask, chunk = source.id.read_direct_chunk((place, 0, 0, 0))
        except (OSError, RuntimeError) as error:
            raise BadFile(
                f"frame {place} of {path} is damaged: {' '.join(str(error).split())}",
                hint="mpxct recover copies what is whole of it",
            ) from error
        with self._closing_on_failure():
            self._reserve(self.n_frames + 1)
            self._data.id.write_direct_chunk((self.n_frames, 0, 0, 0), chunk, mask)

    def _refuse_other(self, old: Scan, n_frames: int) -> None:
        """Refuse to go on with a scan that is not the same."""
        head = self._head
        identity = head.calibration.identity if head.calibration else ""
        same = {
            "plan": (plan_to_toml(old.plan) if old.plan else "") == (plan_to_toml(head.plan) if head.plan else ""),
            "calibration": old.calibration_identity == identity,
            "readout": old.readout == head.readout,
        }
        for what, is_same in same.items():
            if not is_same:
                raise WrongUsage(f"{old.path} was made with another {what}", hint="scan anew, under another name")
        if not 0 <= n_frames <= old.shape[0]:
            raise WrongUsage(f"{n_frames} frames are to be taken over from {old.path}, which has {old.shape[0]}")

    def _write_tables(self) -> None:
        """Write the rows that are not in the file yet, at their places: to do it twice changes nothing.

        The counts go first and the sequence numbers last, so that a row with one is whole whenever the writer dies.
        """
        self._write_counts()
        if len(self._data) < self.n_frames:
            self._data.resize(self.n_frames, axis=0)
        self._data.flush()
        rows = dict(zip(COLUMNS, zip(*self._rows, strict=True), strict=False))
        for name in (name for name in rows if name != "sequence"):
            _put(self._columns[name], self._n_rows_written, rows[name])
        events = [(each.time_s, each.sequence, *_fitting(each)) for each in self._events]
        for column, values in zip(self._event_columns, zip(*events, strict=True), strict=False):
            _put(column, self._n_events_written, values)
        self._file.flush()
        if rows:
            _put(self._columns["sequence"], self._n_rows_written, rows["sequence"])
        self._file.flush()
        self._n_rows_written, self._rows = self.n_frames, []
        self._n_events_written, self._events = self._n_events_written + len(self._events), []

    def _close(self, status: ScanStatus, reason: str) -> None:
        """Write what is left, set the status, and cut off the reserved room."""
        self.event(status.value, reason)
        with self._closing_on_failure():
            self._write_tables()
            if self._head.n_frames is None:
                self._data.resize(self.n_frames, axis=0)  # what was reserved for more
            dataset(self._file, "entry/end_time")[()] = date(self._clock())
            attribute = h5py.h5a.open(self._file.id, b"status")
            attribute.write(np.array(status.value.encode(), attribute.dtype))  # in its place: none may be added
            self._file.flush()
            size = self._file.id.get_filesize()
            self._file.close()
            self._room.give_back(size)

    @contextmanager
    def _closing_on_failure(self) -> Iterator[None]:
        """Turn what the disk says of a failed write into one sentence, and save what was written."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            if self._is_failed:
                raise
            self._is_failed = True
            with suppress(OSError, RuntimeError):
                self.interrupt(f"writing failed: {reason}")
            raise DataLost(
                f"cannot write on: {reason}; {self.n_frames} frames are in {self.partial}",
                hint="make room on the disk, or write to another one",
            ) from error


def _open_to_write(path: Path, *, is_again: bool = False) -> h5py.File:
    """Open a file that others may read meanwhile; h5py's own way would leave a moment in which nobody could.

    Who opens it again minds no lock: it can only be that of a reader that came in between.
    """
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    if is_again:
        access.set_file_locking(False, True)
    access.set_libver_bounds(h5py.h5f.LIBVER_V110, h5py.h5f.LIBVER_V110)
    flags = h5py.h5f.ACC_RDWR | h5py.h5f.ACC_SWMR_WRITE
    return h5py.File(h5py.h5f.open(os.fsencode(path), flags, access))


class _PoseColumns(TypedDict):
    angle_rad: float
    angle_deg: float
    lift_mm: float
    shift_mm: float


def _put(table: h5py.Dataset, first: int, values: Sequence[object]) -> None:
    if len(table) < first + len(values):
        table.resize(first + len(values), axis=0)
    table[first : first + len(values)] = values


def _of(pose: Pose) -> _PoseColumns:
    return {
        "angle_rad": pose.angle_rad,
        "angle_deg": math.degrees(pose.angle_rad),
        "lift_mm": pose.lift_mm,
        "shift_mm": pose.shift_mm,
    }


def _this_machine() -> dict[str, dict[str, Attribute]]:
    """Return what ran where."""
    return {
        "host": {"name": platform.node(), "system": platform.platform(), "python": platform.python_version()},
        "software": {
            "mpxct": software_version(),
            "numpy": np.__version__,
            "h5py": h5py.__version__,
            "hdf5": h5py.version.hdf5_version,
        },
    }


def _fitting(event: Event) -> tuple[bytes, bytes]:
    """Return kind and text as UTF-8 that fits the table."""
    kind, text = event.kind.encode(), event.text.encode()
    if len(text) > TEXT_BYTES:
        mark = "…".encode()
        text = text[: TEXT_BYTES - len(mark)].decode(errors="ignore").encode() + mark
    return kind[:KIND_BYTES], text
