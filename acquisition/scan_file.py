"""scan file: `(n_frames, n_counters, rows, cols)`, angles_rad, plan, calibration identity, losses.

HDF5 in the shape of NeXus NXtomo; `FILE_FORMAT.md` lists every dataset. A scan is written under NAME.partial.h5 by
`acquisition.scan_writer` and gets its own name only when it is whole, so that a file under its own name can be trusted.

# Ref: a file that a killed writer left open, or that is being written, opens for reading beside a writer (SWMR), and
#      not otherwise; `h5clear` destroyed such files: measured with HDF5 2.0 and h5clear 1.10.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import h5py
import hdf5plugin  # noqa: F401 - the filter of the counts
import numpy as np
from numpy.typing import NDArray

from acquisition.plan import Plan, plan_from_toml
from acquisition.scan import Event, ImageKey, Readout, ScanStatus
from acquisition.scan_layout import COLUMNS, DATA, DETECTOR, FORMAT, UNWRITTEN, VERSION, Attribute, Row, stretches
from calibration.geometry import Geometry
from calibration.store import Calibration, read_group
from firmware_iface.errors import BadFile, MpxctError

T = TypeVar("T")


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
    temperatures_k, monitor : (n_frames,) float64
        Of the sensor, and what a beam monitor counted; NaN where it is not known.
    crc, flags : (n_frames,) uint8
        `Crc` and bits of `FrameFlag`.
    passes_kev : tuple of tuple of float
        Thresholds of each pass; nothing where they are not known.
    settings : mapping of str to mapping
        How everything stood, by what it belongs to.
    header : mapping
        Whatever else the maker of the frames told.
    n_planned : int or None
        Frames that make the scan whole; None: not known.
    start_time : str
        ISO 8601 in UTC.
    damages : tuple of str
        What could not be read, where damaged files are taken.
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
    temperatures_k: NDArray[np.float64]
    monitor: NDArray[np.float64]
    crc: NDArray[np.uint8]
    flags: NDArray[np.uint8]
    passes_kev: tuple[tuple[float, ...], ...]
    events: tuple[Event, ...]
    plan: Plan | None
    calibration: Calibration | None
    calibration_identity: str
    sample: str
    software: str
    settings: Mapping[str, Mapping[str, Attribute]]
    header: Mapping[str, Attribute]
    n_planned: int | None
    start_time: str
    source: str
    damages: tuple[str, ...]

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

    def rows(self) -> Iterator[Row]:
        """Yield what is known of each frame beside its counts."""
        columns = {
            "image_key": self.image_key,
            "count_time_s": self.exposures_s,
            "run": self.run,
            "sequence": self.sequence,
            "timestamp_ns": self.timestamps_ns,
            "angle_rad": self.angles_rad,
            "angle_deg": np.degrees(self.angles_rad),
            "lift_mm": self.lifts_mm,
            "shift_mm": self.shifts_mm,
            "pass_index": self.passes,
            "temperature_k": self.temperatures_k,
            "monitor": self.monitor,
            "crc": self.crc,
            "flags": self.flags,
        }
        return map(Row, *(columns[name].tolist() for name in COLUMNS))

    def indices(self, key: ImageKey) -> NDArray[np.intp]:
        """Return the places of the frames of one kind, in order."""
        return np.flatnonzero(self.image_key == key)

    def counts(
        self, indices: slice | NDArray[np.integer] | None = None, *, rows: slice = np.s_[:]
    ) -> NDArray[np.unsignedinteger]:
        """Read the counts of some frames, or of all: (n, n_counters, rows, cols).

        Frames that were lost hold `Readout.fill`, a count that no counter can have.

        Parameters
        ----------
        indices : slice or (n,) int, optional
        rows : slice
            Of the detector. The file unpacks whole frames whatever is asked for, but one at a time.
        """
        places = np.arange(self.shape[0])[slice(None) if indices is None else indices]
        n_counters, n_rows, n_cols = self.shape[1:]
        first_row, stop_row, _ = rows.indices(n_rows)
        counts = np.empty((len(places), n_counters, stop_row - first_row, n_cols), self.readout.dtype)
        with opened(self.path) as file:
            data = dataset(file, DATA)
            for first, stop in stretches(places):
                try:
                    wanted = np.s_[places[first] : places[stop - 1] + 1, :, first_row:stop_row]
                    data.read_direct(counts, wanted, np.s_[first:stop])
                except (OSError, RuntimeError) as error:
                    raise BadFile(
                        f"{self.path}: of frames {places[first]} to {places[stop - 1]} at least one is damaged: "
                        f"{_sentence(error)}",
                        hint="mpxct recover copies what is whole of it",
                    ) from error
        return counts


def read_scan(path: str | Path, *, allow_partial: bool = False, allow_damaged: bool = False) -> Scan:
    """Read a scan file, all but its counts.

    Parameters
    ----------
    allow_partial : bool
        Take also what an interrupted or killed scan left; only the frames that are whole are shown.
    allow_damaged : bool
        Take also a file that was cut off, or of which little but the frames can be read; `Scan.damages` tells.

    Raises
    ------
    BadFile
        The file is missing, empty, foreign, truncated, inconsistent or only a part of a scan.
    """
    path = Path(path)
    try:
        with opened(path, allow_damaged=allow_damaged) as file:
            kind, version = _plain(file.attrs.get("format")), file.attrs.get("version")
            if kind != FORMAT:
                raise BadFile(f"its format is {kind!r}; allowed: {FORMAT!r}: it is not a scan")
            if version != VERSION:
                raise BadFile(f"it is a scan of version {version}; allowed: {VERSION}")
            scan = _from_file(path, file, allow_damaged=allow_damaged)
    except BadFile as error:
        text = str(error)
        raise BadFile(text if str(path) in text else f"{path}: {text}", hint=error.hint) from error
    except (KeyError, ValueError, TypeError, AttributeError, OSError, RuntimeError, MpxctError) as error:
        raise BadFile(
            f"{path} is a damaged scan: {_sentence(error)}", hint="mpxct recover copies what is whole of it"
        ) from error
    is_whole, n_frames = scan.status in (ScanStatus.COMPLETE, ScanStatus.DEGRADED), scan.shape[0]
    planned = "" if scan.n_planned is None else f" of {scan.n_planned}"
    if is_whole and scan.n_planned not in (None, n_frames) and not allow_damaged:
        raise BadFile(f"{path} is a damaged scan: it holds {n_frames}{planned} frames and says it is whole")
    if not is_whole and not allow_partial:
        raise BadFile(
            f"{path} is only a part of a scan ({scan.status.value}, {n_frames}{planned} frames)",
            hint="go on with it (mpxct acquire --resume), or ask for partial scans to be taken",
        )
    return scan


@contextmanager
def opened(path: Path, *, allow_damaged: bool = False) -> Iterator[h5py.File]:
    """Open a file for reading, also one that is being written or was left so, or say in one sentence why not."""
    if not path.is_file():
        raise BadFile(f"there is no file {path}")
    if not path.stat().st_size:
        raise BadFile(f"{path} is empty")
    try:
        file = _open_to_read(path, allow_damaged)
    except (OSError, RuntimeError) as error:
        text = _sentence(error)
        known = {"truncated": "is truncated", "signature": "is not an HDF5 file"}
        reason = next((known[word] for word in known if word in text), f"cannot be read: {text}")
        raise BadFile(f"{path} {reason}", hint="mpxct recover copies what is whole of a damaged scan") from error
    with file:
        yield file


def _open_to_read(path: Path, allow_damaged: bool) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        if "already open for" in str(error):
            return h5py.File(path, "r", swmr=True)
        cut = re.search(r"truncated.*stored_eof = (\d+)", str(error))
        if cut and allow_damaged:
            return h5py.File(_Lengthened(path, int(cut[1])), "r")
        raise


class _Lengthened(io.RawIOBase):
    """A file that was cut off, with zeros where it once went on: what stood there reads as damaged, no more."""

    def __init__(self, path: Path, size: int) -> None:
        self._file, self._size, self._place = path.open("rb", buffering=0), size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = base + offset
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any, /) -> int:
        self._file.seek(self._place)
        view = memoryview(buffer).cast("B")
        n_read = self._file.readinto(view) or 0
        view[n_read:] = bytes(len(view) - n_read)
        self._place += len(view)
        return len(view)

    def close(self) -> None:
        self._file.close()
        super().close()


def _sentence(error: Exception) -> str:
    """Return what HDF5 or Python says, on one line."""
    return " ".join(str(error).split())


def _from_file(path: Path, file: h5py.File, *, allow_damaged: bool) -> Scan:
    status = ScanStatus(_plain(file.attrs["status"]))
    damages: list[str] = []

    def part(what: str, read: Callable[[], T], otherwise: T) -> T:
        """Read what a scan can do without, if need be."""
        try:
            return read()
        except (KeyError, ValueError, TypeError, AttributeError, OSError, RuntimeError, MpxctError) as error:
            if not allow_damaged:
                raise
            damages.append(f"{what}: {_sentence(error)}")
            return otherwise

    marks = _array(file, COLUMNS["sequence"].path)  # before the others: written last, a row that has it has all
    n_frames = int(np.flatnonzero(np.append(marks, UNWRITTEN) == UNWRITTEN)[0])
    columns = {
        name: part(name, partial(_column, file, name, n_frames), np.full(n_frames, column.fill, column.dtype))
        for name, column in COLUMNS.items()
        if name != "image_key"
    } | {"image_key": _column(file, "image_key", n_frames)}
    if not np.isin(columns["image_key"], list(ImageKey)).all():
        raise ValueError(f"image_key holds {columns['image_key'].max()}; allowed: 0 to 3")
    readout, n_planned = _readout(file), int(str(file.attrs["n_frames_planned"]))
    data = dataset(file, DATA)
    if data.dtype != readout.dtype:
        raise ValueError(f"it has counts of {data.dtype} for {readout.depth_bits} bits")
    if len(data) < n_frames:
        raise ValueError(f"it has counts of {len(data)} of {n_frames} frames: they have different lengths")
    text = partial(_text, file)
    return Scan(
        path=path,
        shape=(n_frames, *readout.shape),
        readout=readout,
        status=status,
        image_key=columns["image_key"],
        angles_rad=columns["angle_rad"],
        lifts_mm=columns["lift_mm"],
        shifts_mm=columns["shift_mm"],
        passes=columns["pass_index"],
        exposures_s=columns["count_time_s"],
        run=columns["run"],
        sequence=columns["sequence"],
        timestamps_ns=columns["timestamp_ns"],
        temperatures_k=columns["temperature_k"],
        monitor=columns["monitor"],
        crc=columns["crc"],
        flags=columns["flags"],
        passes_kev=part("passes", lambda: _passes_kev(file), ()),
        events=part("events", lambda: _events(file), ()),
        plan=part("plan", lambda: _plan(path, file), None),
        calibration=part("calibration", lambda: _calibration(file), None),
        calibration_identity=str(_plain(file.attrs["calibration"])),
        sample=part("sample", lambda: text("entry/sample/name"), ""),
        software=str(_plain(file.attrs["software"])),
        settings=part("settings", lambda: _settings(file), {}),
        header=part("header", lambda: _attributes(file, "entry/header"), {}),
        n_planned=None if n_planned < 0 else n_planned,
        start_time=part("start time", lambda: text("entry/start_time"), ""),
        source=part("source", lambda: text("entry/instrument/source/name"), ""),
        damages=tuple(damages),
    )


def _column(file: h5py.File, name: str, n_frames: int) -> NDArray[Any]:
    column = dataset(file, COLUMNS[name].path)
    if len(column) < n_frames:
        raise ValueError(f"{name} has {len(column)} of {n_frames} rows: the tables have different lengths")
    return np.asarray(column[:n_frames]).astype(COLUMNS[name].dtype, casting="same_kind")


def _readout(file: h5py.File) -> Readout:
    depth_bits = _array(file, f"{DETECTOR}/bit_depth_readout").item()
    return Readout(
        shape=dataset(file, DATA).shape[1:],
        depth_bits=depth_bits,
        n_accumulated=_array(file, f"{DETECTOR}/saturation_value").item() // ((1 << depth_bits) - 1 or 1),
        thresholds=tuple(_array(file, f"{DETECTOR}/thresholds").tolist()),
        thresholds_kev=tuple(_array(file, f"{DETECTOR}/threshold_energy").tolist()),
        pitch_mm=_array(file, f"{DETECTOR}/x_pixel_size").item(),
    )


def _passes_kev(file: h5py.File) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, _array(file, f"{DETECTOR}/pass_threshold_energy").tolist()))


def _events(file: h5py.File) -> tuple[Event, ...]:
    times_s, places = (_array(file, f"entry/events/{name}").tolist() for name in ("time", "sequence"))
    kinds, texts = (dataset(file, f"entry/events/{name}").asstr()[()] for name in ("kind", "text"))
    rows = zip(times_s, places, kinds, texts, strict=False)
    return tuple(Event(time_s=time_s, sequence=place, kind=kind, text=text) for time_s, place, kind, text in rows)


def _plan(path: Path, file: h5py.File) -> Plan | None:
    return plan_from_toml(_text(file, "entry/plan"), f"the plan in {path}") if "entry/plan" in file else None


def _calibration(file: h5py.File) -> Calibration | None:
    return read_group(_group(file, "entry/calibration")) if "entry/calibration" in file else None


def _settings(file: h5py.File) -> dict[str, dict[str, Attribute]]:
    return {str(name): _attributes(file, f"entry/settings/{name}") for name in _group(file, "entry/settings")}


def dataset(file: h5py.File, path: str) -> h5py.Dataset:
    """Return the dataset at a path of a scan file; raises KeyError where there is none."""
    found = file.get(path)
    if not isinstance(found, h5py.Dataset):
        raise KeyError(f"it has no dataset {path}")
    return found


def _array(file: h5py.File, path: str) -> NDArray[Any]:
    return np.asarray(dataset(file, path)[()])


def _text(file: h5py.File, path: str) -> str:
    return str(dataset(file, path).asstr()[()])


def _group(file: h5py.File, path: str) -> h5py.Group:
    found = file.get(path)
    if not isinstance(found, h5py.Group):
        raise KeyError(f"it has no group {path}")
    return found


def _attributes(file: h5py.File, path: str) -> dict[str, Attribute]:
    return {name: _plain(value) for name, value in _group(file, path).attrs.items() if name != "NX_class"}


def _plain(value: Any) -> Attribute:
    if isinstance(value, bytes):
        return value.decode()
    return value.item() if isinstance(value, np.generic) else value
