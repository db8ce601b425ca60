"""scan file: `(n_frames, n_counters, rows, cols)`, angles_rad, plan, calibration identity, losses.

HDF5 in the shape of NeXus NXtomo; `FILE_FORMAT.md` lists every dataset. A scan is written under NAME.partial.h5 and
gets its own name only when it is whole, so that a file under its own name can be trusted.

# Ref: NXtomo and its image keys: nexusformat/definitions `applications/NXtomo.nxdl.xml`.
# Ref: the oldest file layout with regular flushes opens after a killed writer, the newest does not: measured with
#      HDF5 2.0 and h5py 3.16; flush rate and filter (bitshuffle and LZ4, id 32008) are of the same measurement.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import h5py
import hdf5plugin
import numpy as np
from numpy.typing import DTypeLike, NDArray

from acquisition.disk import Room, sync
from acquisition.plan import Plan, plan_from_toml, plan_to_toml
from acquisition.scan import Event, ImageKey, Readout, ScanStatus
from acquisition.steps import AT_ZERO, Pose
from calibration.geometry import Geometry
from calibration.store import Calibration, read_group, software_version, write_group
from firmware_iface.errors import BadFile, DataLost, MpxctError, WrongUsage
from firmware_iface.frame import Frame, Lost

Attribute: TypeAlias = str | int | float

FORMAT = "mpxct scan"
VERSION = 2
BLOCK_BYTES = 1 << 23
BLOCK_S = 1.0
"""Frames are on the disk after this many bytes or seconds, whichever is first."""
_DETECTOR = "entry/instrument/detector"
_EVENT_COLUMNS: Mapping[str, tuple[DTypeLike, str]] = {
    "time": (np.float64, "s"),
    "sequence": (np.int64, "1"),
    "kind": (h5py.string_dtype(), "text"),
    "text": (h5py.string_dtype(), "text"),
}
_FRAME_COLUMNS: Mapping[str, tuple[str, DTypeLike, str]] = {
    "image_key": (f"{_DETECTOR}/image_key", np.uint8, "1"),
    "count_time": (f"{_DETECTOR}/count_time", np.float64, "s"),
    "run": (f"{_DETECTOR}/run", np.int64, "1"),
    "sequence": (f"{_DETECTOR}/sequence_number", np.int64, "1"),
    "timestamp": (f"{_DETECTOR}/timestamp", np.int64, "ns"),
    "rotation_angle": ("entry/sample/rotation_angle", np.float64, "rad"),
    "z_translation": ("entry/sample/z_translation", np.float64, "mm"),
    "x_translation": (f"{_DETECTOR}/x_translation", np.float64, "mm"),
    "pass": (f"{_DETECTOR}/pass", np.int64, "1"),
}


def partial_path(path: str | Path) -> Path:
    """Return the name under which a scan is written until it is whole."""
    path = Path(path)
    return path.with_name(f"{path.stem}.partial{path.suffix}")


class ScanWriter:
    """Writes one scan frame by frame, under its partial name until `finish`.

    Leaving the ``with`` block without `finish` closes the file validly, as interrupted, under the partial name.

    Parameters
    ----------
    n_frames : int, optional
        How many frames make the scan whole, lost ones included; `finish` refuses another number.
    attributes : mapping of str to str or number
        Anything else that is known of the run, kept as it is.
    clock : callable
        Seconds since 1970; an argument so that tests own the time.

    Raises
    ------
    WrongUsage
        A scan, or the rest of an interrupted one, has this name and `overwrite` is not set.
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
        overwrite: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path, self.partial = Path(path), partial_path(path)
        self.n_lost = 0
        self._readout, self._n_expected, self._clock = readout, n_frames, clock
        frame_bytes = math.prod(readout.shape) * readout.dtype.itemsize
        self._block_frames = max(1, BLOCK_BYTES // frame_bytes)
        block_bytes = self._block_frames * frame_bytes
        self._rows: list[tuple[float, ...]] = []
        self._events: list[Event] = []
        self._n_rows_written = self._n_events_written = 0
        self._flushed_at_s = clock()
        self._is_failed = False
        self._claim_names(overwrite)
        try:
            Room(self.partial, block_bytes)  # proves that there is some; HDF5 empties the file
            self._file = h5py.File(self.partial, "w", libver=("earliest", "v110"))
            self._room = Room(self.partial, block_bytes)
        except OSError as error:
            self.partial.unlink(missing_ok=True)
            raise MpxctError(f"cannot write {self.partial}: {error.strerror or error}") from error
        try:
            self._lay_out(plan, calibration, sample, source, attributes or {})
            self.event("start", f"scan of {n_frames or 'an unknown number of'} frames")
            self.flush()
        except BaseException:
            self.discard()
            raise

    @property
    def n_frames(self) -> int:
        """Frames so far, lost ones included."""
        return self._n_rows_written + len(self._rows)

    def write(self, frame: Frame, key: ImageKey, pose: Pose = AT_ZERO, pass_index: int = 0) -> None:
        """Add a frame; counts that the file cannot hold are refused, never wrapped."""
        if frame.counts.shape != self._readout.shape or frame.thresholds != self._readout.thresholds:
            raise ValueError(
                f"a frame of shape {frame.counts.shape} with thresholds {frame.thresholds} came for a scan of "
                f"{self._readout.shape} with thresholds {self._readout.thresholds}"
            )
        if int(frame.counts.max()) >= self._readout.fill:
            raise ValueError(f"a count of {frame.counts.max()} does not fit {self._readout.depth_bits} bits")
        if frame.was_paused:
            self.event("paused", "the board waited for the host before this frame; nothing was lost")
        with self._closing_on_failure():
            if len(self._data) <= self.n_frames:
                self._data.resize(self.n_frames + self._block_frames, axis=0)
            self._data[self.n_frames] = frame.counts
        # The row comes last: a frame that was interrupted on its way has none, and `flush` cuts it off.
        taken = (frame.exposure_ns * 1e-9, frame.run_id, frame.sequence, frame.timestamp_ns)
        self._rows.append((key, *taken, pose.angle_rad, pose.lift_mm, pose.shift_mm, pass_index))
        self._flush_when_due()

    def lost(self, lost: Lost, poses: Sequence[Pose] = (), pass_index: int = 0) -> None:
        """Mark frames that never arrived: fill, key INVALID, an event; each where the gantry was for it."""
        last = lost.first_sequence + lost.n_frames - 1
        self.event("lost", f"frames {lost.first_sequence} to {last} of run {lost.run_id}: {lost.reason}")
        for place, sequence in enumerate(range(lost.first_sequence, last + 1)):
            pose = poses[place] if poses else AT_ZERO
            taken = (np.nan, lost.run_id, sequence, -1)
            self._rows.append((ImageKey.INVALID, *taken, pose.angle_rad, pose.lift_mm, pose.shift_mm, pass_index))
            self.n_lost += 1
        self._flush_when_due()

    def event(self, kind: str, text: str) -> None:
        """Add a row to the events table."""
        self._events.append(Event(time_s=self._clock(), sequence=self.n_frames, kind=kind, text=text))

    def flush(self) -> None:
        """Bring everything so far to the disk; after this a killed process loses nothing of it."""
        with self._closing_on_failure():
            self._write_tables()
            self._file.flush()
            sync(self.partial)
            self._room.keep_ahead(self._file.id.get_filesize())
        self._flushed_at_s = self._clock()

    def finish(self) -> ScanStatus:
        """Close a whole scan and give it its own name.

        Raises
        ------
        DataLost
            The scan is not whole; it stays under its partial name.
        """
        if self._n_expected is not None and self.n_frames != self._n_expected:
            raise DataLost(
                f"the scan has {self.n_frames} frames; whole are {self._n_expected}; what came is in {self.partial}"
            )
        status = ScanStatus.DEGRADED if self.n_lost else ScanStatus.COMPLETE
        self._close(status, f"{self.n_frames} frames, {self.n_lost} of them lost")
        self.partial.replace(self.path)
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

    def _claim_names(self, overwrite: bool) -> None:
        if self.path.suffix not in (".h5", ".hdf5", ".nxs"):
            raise WrongUsage(f"a scan file is named {self.path.name!r}; allowed endings: .h5, .hdf5, .nxs")
        for path in (self.path, self.partial):
            if path.exists() and not overwrite:
                raise WrongUsage(
                    f"{path} exists already", hint="choose another name, or allow overwriting (--overwrite)"
                )
        self.partial.unlink(missing_ok=True)

    def _lay_out(
        self,
        plan: Plan | None,
        calibration: Calibration | None,
        sample: str,
        source: str,
        attributes: Mapping[str, Attribute],
    ) -> None:
        """Make every group and dataset, so that a killed writer leaves a file of the full shape."""
        file, readout = self._file, self._readout
        file.attrs.update(
            NX_class="NXroot",
            format=FORMAT,
            version=VERSION,
            software=software_version(),
            status=ScanStatus.RUNNING.value,
            calibration=calibration.identity if calibration else "",
            n_frames_planned=-1 if self._n_expected is None else self._n_expected,
        )
        for path, nexus in {
            "entry": "NXentry",
            "entry/instrument": "NXinstrument",
            "entry/instrument/source": "NXsource",
            _DETECTOR: "NXdetector",
            "entry/sample": "NXsample",
            "entry/data": "NXdata",
            "entry/events": "NXcollection",
            "entry/header": "NXcollection",
        }.items():
            file.create_group(path).attrs["NX_class"] = nexus
        self._data = file.create_dataset(
            f"{_DETECTOR}/data",
            shape=(0, *readout.shape),
            maxshape=(None, *readout.shape),
            chunks=(1, *readout.shape),
            dtype=readout.dtype,
            fillvalue=readout.fill,
            **hdf5plugin.Bitshuffle(cname="lz4"),
        )
        self._data.attrs.update(units="counts", axes="frame, counter, row, col")
        for path, dtype, units in _FRAME_COLUMNS.values():
            _table(file, path, dtype, units)
        for name, (dtype, units) in _EVENT_COLUMNS.items():
            _table(file, f"entry/events/{name}", dtype, units)
        values: dict[str, tuple[object, str]] = {
            "entry/definition": ("NXtomo", "text"),
            "entry/title": (sample or self.path.stem, "text"),
            "entry/start_time": (_date(self._clock()), "text"),
            "entry/sample/name": (sample, "text"),
            "entry/instrument/source/name": (source, "text"),
            "entry/instrument/source/probe": ("x-ray", "text"),
            f"{_DETECTOR}/thresholds": (np.asarray(readout.thresholds, np.int64), "1"),
            f"{_DETECTOR}/threshold_energy": (np.asarray(readout.thresholds_kev, np.float64), "keV"),
            f"{_DETECTOR}/bit_depth_readout": (readout.depth_bits, "bit"),
            f"{_DETECTOR}/saturation_value": ((1 << readout.depth_bits) - 1, "counts"),
            f"{_DETECTOR}/x_pixel_size": (readout.pitch_mm, "mm"),
            f"{_DETECTOR}/y_pixel_size": (readout.pitch_mm, "mm"),
        }
        if plan is not None:
            geometry = calibration.alignment.geometry if calibration and calibration.alignment else plan.geometry
            behind_mm = geometry.source_to_detector_mm - geometry.source_to_object_mm
            values["entry/plan"] = (plan_to_toml(plan), "text")
            values[f"{_DETECTOR}/distance"] = (behind_mm, "mm")
            values["entry/instrument/source/distance"] = (-geometry.source_to_object_mm, "mm")
        for path, (value, units) in values.items():
            _value(file, path, value, units)
        file["entry/header"].attrs.update(attributes)
        file["entry/data"].attrs["signal"] = "data"
        for target in (f"{_DETECTOR}/data", f"{_DETECTOR}/image_key", "entry/sample/rotation_angle"):
            file[f"entry/data/{target.rpartition('/')[2]}"] = h5py.SoftLink(f"/{target}")
        if calibration is not None:
            write_group(file.create_group("entry/calibration"), calibration)

    def _flush_when_due(self) -> None:
        if len(self._rows) >= self._block_frames or self._clock() - self._flushed_at_s >= BLOCK_S:
            self.flush()

    def _write_tables(self) -> None:
        """Write the rows that are not in the file yet, at their places: to do it twice changes nothing."""
        if len(self._data) < self.n_frames:
            self._data.resize(self.n_frames, axis=0)
        for column, (path, _, _) in enumerate(_FRAME_COLUMNS.values()):
            _put(_dataset(self._file, path), self._n_rows_written, [row[column] for row in self._rows])
        columns = zip(*((event.time_s, event.sequence, event.kind, event.text) for event in self._events), strict=True)
        for name, values in zip(_EVENT_COLUMNS, columns, strict=False):
            _put(_dataset(self._file, f"entry/events/{name}"), self._n_events_written, values)
        self._n_rows_written, self._rows = self.n_frames, []
        self._n_events_written, self._events = self._n_events_written + len(self._events), []

    def _close(self, status: ScanStatus, reason: str) -> None:
        """Write what is left, set the status, and cut off the reserved room."""
        self.event(status.value, reason)
        with self._closing_on_failure():
            self._write_tables()
            self._data.resize(self.n_frames, axis=0)
            _value(self._file, "entry/end_time", _date(self._clock()), "text")
            self._add_views()
            self._file.attrs["status"] = status.value
            self._file.flush()
            size = self._file.id.get_filesize()
            self._file.close()
            self._room.give_back(size)

    def _add_views(self) -> None:
        """Add one NXtomo entry for each threshold, without a copy, for readers that expect three axes."""
        if not self.n_frames or len(self._readout.thresholds) == 1:
            return
        for plane, number in enumerate(self._readout.thresholds):
            layout = h5py.VirtualLayout((self.n_frames, *self._readout.shape[1:]), self._readout.dtype)
            layout[:] = h5py.VirtualSource(".", self._data.name, self._data.shape, self._data.dtype)[:, plane]
            entry = self._file.create_group(f"entry_threshold_{number}")
            entry.attrs["NX_class"] = "NXentry"
            _value(self._file, f"{entry.name}/definition", "NXtomo", "text")
            detector = entry.create_group("instrument/detector")
            entry["instrument"].attrs["NX_class"], detector.attrs["NX_class"] = "NXinstrument", "NXdetector"
            data = detector.create_virtual_dataset("data", layout, fillvalue=self._readout.fill)
            data.attrs["units"] = "counts"
            for name in ("image_key", "count_time", "x_pixel_size", "y_pixel_size"):
                detector[name] = h5py.SoftLink(f"/{_DETECTOR}/{name}")
            entry["sample"] = h5py.SoftLink("/entry/sample")

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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scan:
    """A scan as it was read; the counts stay in the file until they are asked for.

    Attributes
    ----------
    shape : tuple of int
        (n_frames, n_counters, rows, cols) of the counts.
    image_key : (n_frames,) uint8
        `ImageKey` of each frame; INVALID where it was lost.
    angles_rad, lifts_mm, shifts_mm : (n_frames,) float64
        Where the gantry was, as `acquisition.steps.Pose` says.
    passes : (n_frames,) int64
        The pass over the object that each frame belongs to.
    exposures_s : (n_frames,) float64
        How long the shutter was open; NaN where the frame was lost.
    run, sequence : (n_frames,) int64
        Run of the detector, and number of the frame in it.
    timestamps_ns : (n_frames,) int64
        Board clock at shutter opening; -1 where the frame was lost.
    header : mapping
        Whatever else the maker of the frames told.
    """

    path: Path
    shape: tuple[int, int, int, int]
    readout: Readout
    status: ScanStatus
    image_key: NDArray[np.uint8]
    angles_rad: NDArray[np.float64]
    lifts_mm: NDArray[np.float64]
    shifts_mm: NDArray[np.float64]
    passes: NDArray[np.int64]
    exposures_s: NDArray[np.float64]
    run: NDArray[np.int64]
    sequence: NDArray[np.int64]
    timestamps_ns: NDArray[np.int64]
    events: tuple[Event, ...]
    plan: Plan | None
    calibration: Calibration | None
    calibration_identity: str
    sample: str
    software: str
    header: Mapping[str, Attribute]

    @property
    def n_lost(self) -> int:
        """Frames that never arrived."""
        return int(np.count_nonzero(self.image_key == ImageKey.INVALID))

    @property
    def geometry(self) -> Geometry | None:
        """Where source and detector were: as calibrated, else as planned; None where neither is known."""
        if self.calibration is not None and self.calibration.alignment is not None:
            return self.calibration.alignment.geometry
        return self.plan.geometry if self.plan else None

    def indices(self, key: ImageKey) -> NDArray[np.intp]:
        """Return the places of the frames of one kind, in order."""
        return np.flatnonzero(self.image_key == key)

    def counts(self, indices: slice | NDArray[np.integer] | None = None) -> NDArray[np.unsignedinteger]:
        """Read the counts of some frames, or of all: (n, n_counters, rows, cols).

        Frames that were lost hold `Readout.fill`, a count that no counter can have.

        Parameters
        ----------
        indices : slice or (n,) int, optional
        """
        places = np.arange(self.shape[0])[slice(None) if indices is None else indices]
        counts = np.empty((len(places), *self.shape[1:]), self.readout.dtype)
        with _opened(self.path) as file:
            data = _dataset(file, f"{_DETECTOR}/data")
            for first, stop in _stretches(places):
                data.read_direct(counts, np.s_[places[first] : places[stop - 1] + 1], np.s_[first:stop])
        return counts


def read_scan(path: str | Path, *, allow_partial: bool = False) -> Scan:
    """Read a scan file, all but its counts.

    Parameters
    ----------
    allow_partial : bool
        Take also what an interrupted or killed scan left; only the frames that are whole are shown.

    Raises
    ------
    BadFile
        The file is missing, empty, foreign, truncated, inconsistent or only a part of a scan.
    """
    path = Path(path)
    with _opened(path) as file:
        kind, version = file.attrs.get("format"), file.attrs.get("version")
        if kind != FORMAT:
            raise BadFile(f"{path} is not a scan: its format is {kind!r}; allowed: {FORMAT!r}")
        if version != VERSION:
            raise BadFile(f"{path} is a scan of version {version}; allowed: {VERSION}")
        try:
            scan = _from_file(path, file)
            n_planned = int(str(file.attrs["n_frames_planned"]))
        except BadFile as error:
            raise BadFile(f"{path}: {error}", hint=error.hint) from error
        except (KeyError, ValueError, TypeError, AttributeError, OSError, RuntimeError, MpxctError) as error:
            raise BadFile(f"{path} is a damaged scan: {error}") from error
    is_whole = scan.status in (ScanStatus.COMPLETE, ScanStatus.DEGRADED)
    if is_whole and n_planned not in (-1, scan.shape[0]):
        raise BadFile(f"{path} is a damaged scan: it holds {scan.shape[0]} of {n_planned} frames and says it is whole")
    if not is_whole and not allow_partial:
        planned = f" of {n_planned}" if n_planned >= 0 else ""
        raise BadFile(
            f"{path} is only a part of a scan ({scan.status.value}, {scan.shape[0]}{planned} frames)",
            hint="scan again, or ask for partial scans to be taken",
        )
    return scan


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """Open a file for reading, or say in one sentence why not."""
    if not path.is_file():
        raise BadFile(f"there is no file {path}")
    if not path.stat().st_size:
        raise BadFile(f"{path} is empty")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        text = str(error)
        reason = (
            "is truncated" if "truncated" in text else "is not an HDF5 file" if "signature" in text else f": {text}"
        )
        raise BadFile(f"{path} {reason}") from error
    with file:
        yield file


def _from_file(path: Path, file: h5py.File) -> Scan:
    status = ScanStatus(file.attrs["status"])
    columns = {name: _array(file, place) for name, (place, _, _) in _FRAME_COLUMNS.items()}
    data = _dataset(file, f"{_DETECTOR}/data")
    lengths = {name: len(column) for name, column in columns.items()} | {"data": len(data)}
    if len(set(lengths.values())) > 1 and status in (ScanStatus.COMPLETE, ScanStatus.DEGRADED):
        raise ValueError(f"its tables have different lengths, {lengths}")
    n_frames = min(lengths.values())
    columns = {name: column[:n_frames] for name, column in columns.items()}
    if not np.isin(columns["image_key"], list(ImageKey)).all():
        raise ValueError(f"image_key holds {columns['image_key'].max()}; allowed: 0 to 3")
    readout = Readout(
        shape=data.shape[1:],
        depth_bits=_array(file, f"{_DETECTOR}/bit_depth_readout").item(),
        thresholds=tuple(_array(file, f"{_DETECTOR}/thresholds").tolist()),
        thresholds_kev=tuple(_array(file, f"{_DETECTOR}/threshold_energy").tolist()),
        pitch_mm=_array(file, f"{_DETECTOR}/x_pixel_size").item(),
    )
    if data.dtype != readout.dtype:
        raise ValueError(f"it has counts of {data.dtype} for {readout.depth_bits} bits")
    calibration = file.get("entry/calibration")
    events = zip(
        _array(file, "entry/events/time").tolist(),
        _array(file, "entry/events/sequence").tolist(),
        *(_dataset(file, f"entry/events/{name}").asstr()[()] for name in ("kind", "text")),
        strict=False,
    )
    return Scan(
        path=path,
        shape=(n_frames, *readout.shape),
        readout=readout,
        status=status,
        image_key=columns["image_key"],
        angles_rad=columns["rotation_angle"],
        lifts_mm=columns["z_translation"],
        shifts_mm=columns["x_translation"],
        passes=columns["pass"],
        exposures_s=columns["count_time"],
        run=columns["run"],
        sequence=columns["sequence"],
        timestamps_ns=columns["timestamp"],
        events=tuple(
            Event(time_s=time_s, sequence=place, kind=kind, text=text) for time_s, place, kind, text in events
        ),
        plan=plan_from_toml(_text(file, "entry/plan"), f"the plan in {path}") if "entry/plan" in file else None,
        calibration=read_group(calibration) if isinstance(calibration, h5py.Group) else None,
        calibration_identity=str(file.attrs["calibration"]),
        sample=_text(file, "entry/sample/name"),
        software=str(file.attrs["software"]),
        header={name: _plain(value) for name, value in file["entry/header"].attrs.items() if name != "NX_class"},
    )


def _dataset(file: h5py.File, path: str) -> h5py.Dataset:
    dataset = file.get(path)
    if not isinstance(dataset, h5py.Dataset):
        raise KeyError(f"it has no dataset {path}")
    return dataset


def _array(file: h5py.File, path: str) -> NDArray[Any]:
    return np.asarray(_dataset(file, path)[()])


def _text(file: h5py.File, path: str) -> str:
    return str(_dataset(file, path).asstr()[()])


def _plain(value: Any) -> Attribute:
    return value.item() if isinstance(value, np.generic) else value


def _stretches(places: NDArray[np.integer]) -> Iterator[tuple[int, int]]:
    """Cut ascending places into stretches of neighbours, which HDF5 reads at once."""
    if len(places):
        breaks = np.flatnonzero(np.diff(places) != 1) + 1
        yield from pairwise([0, *breaks.tolist(), len(places)])


def _table(file: h5py.File, path: str, dtype: DTypeLike, units: str) -> None:
    dataset = file.create_dataset(path, shape=(0,), maxshape=(None,), chunks=(1024,), dtype=dtype)
    dataset.attrs["units"] = units


def _value(file: h5py.File, path: str, value: object, units: str) -> None:
    file.create_dataset(path, data=value).attrs["units"] = units


def _put(dataset: h5py.Dataset, first: int, values: Sequence[object]) -> None:
    dataset.resize(first + len(values), axis=0)
    if values:
        dataset[first:] = values


def _date(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).isoformat()
