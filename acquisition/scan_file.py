"""scan file: `(n_frames, n_counters, rows, cols)`, angles_rad, plan, calibration identity, losses.

HDF5 in the shape of NeXus NXtomo; `FILE_FORMAT.md` lists every dataset. A scan is written under NAME.partial.h5 by
`acquisition.scan_writer` and gets its own name only when it is whole, so that a file under its own name can be trusted.

# Ref: a file that a killed writer left open, or that is being written, opens for reading beside a writer (SWMR), and
#      not otherwise; `h5clear` destroyed such files: measured with HDF5 2.0 and h5clear 1.10.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401 - the filter of the counts
import numpy as np
from numpy.typing import NDArray

from acquisition.plan import Plan, plan_from_toml
from acquisition.scan import Event, ImageKey, Readout, ScanStatus
from acquisition.scan_layout import COLUMNS, DATA, DETECTOR, FORMAT, UNWRITTEN, VERSION, Attribute, stretches
from calibration.geometry import Geometry
from calibration.store import Calibration, read_group
from firmware_iface.errors import BadFile, MpxctError


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
        with opened(self.path) as file:
            data = dataset(file, DATA)
            for first, stop in stretches(places):
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
    with opened(path) as file:
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
def opened(path: Path) -> Iterator[h5py.File]:
    """Open a file for reading, also one that is being written or was left so, or say in one sentence why not."""
    if not path.is_file():
        raise BadFile(f"there is no file {path}")
    if not path.stat().st_size:
        raise BadFile(f"{path} is empty")
    try:
        file = _open_to_read(path)
    except OSError as error:
        text = str(error)
        known = {"truncated": "is truncated", "signature": "is not an HDF5 file"}
        reason = next((known[word] for word in known if word in text), f"cannot be read: {text}")
        raise BadFile(f"{path} {reason}") from error
    with file:
        yield file


def _open_to_read(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        if "already open for" not in str(error):
            raise
        return h5py.File(path, "r", swmr=True, locking=False)


def _from_file(path: Path, file: h5py.File) -> Scan:
    status = ScanStatus(_word(file.attrs["status"]))
    columns = {name: _array(file, place) for name, (place, *_) in COLUMNS.items()}
    data = dataset(file, DATA)
    lengths = {name: len(column) for name, column in columns.items()} | {"data": len(data)}
    if len(set(lengths.values())) > 1 and status in (ScanStatus.COMPLETE, ScanStatus.DEGRADED):
        raise ValueError(f"its tables have different lengths, {lengths}")
    n_frames = min(*lengths.values(), *np.flatnonzero(columns["sequence"] == UNWRITTEN)[:1].tolist())
    columns = {name: column[:n_frames] for name, column in columns.items()}
    if not np.isin(columns["image_key"], list(ImageKey)).all():
        raise ValueError(f"image_key holds {columns['image_key'].max()}; allowed: 0 to 3")
    depth_bits = _array(file, f"{DETECTOR}/bit_depth_readout").item()
    readout = Readout(
        shape=data.shape[1:],
        depth_bits=depth_bits,
        n_accumulated=_array(file, f"{DETECTOR}/saturation_value").item() // ((1 << depth_bits) - 1 or 1),
        thresholds=tuple(_array(file, f"{DETECTOR}/thresholds").tolist()),
        thresholds_kev=tuple(_array(file, f"{DETECTOR}/threshold_energy").tolist()),
        pitch_mm=_array(file, f"{DETECTOR}/x_pixel_size").item(),
    )
    if data.dtype != readout.dtype:
        raise ValueError(f"it has counts of {data.dtype} for {readout.depth_bits} bits")
    calibration = file.get("entry/calibration")
    events = zip(
        _array(file, "entry/events/time").tolist(),
        _array(file, "entry/events/sequence").tolist(),
        *(dataset(file, f"entry/events/{name}").asstr()[()] for name in ("kind", "text")),
        strict=False,
    )
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
        passes_kev=tuple(map(tuple, _array(file, f"{DETECTOR}/pass_threshold_energy").tolist())),
        events=tuple(
            Event(time_s=time_s, sequence=place, kind=kind, text=text) for time_s, place, kind, text in events
        ),
        plan=plan_from_toml(_text(file, "entry/plan"), f"the plan in {path}") if "entry/plan" in file else None,
        calibration=read_group(calibration) if isinstance(calibration, h5py.Group) else None,
        calibration_identity=str(file.attrs["calibration"]),
        sample=_text(file, "entry/sample/name"),
        software=str(file.attrs["software"]),
        settings={
            name: _attributes(file, f"entry/settings/{name}") for name in map(str, _group(file, "entry/settings"))
        },
        header=_attributes(file, "entry/header"),
    )


def dataset(file: h5py.File, path: str) -> h5py.Dataset:
    """Return the dataset at a path of a scan file; raises KeyError where there is none."""
    found = file.get(path)
    if not isinstance(found, h5py.Dataset):
        raise KeyError(f"it has no dataset {path}")
    return found


def _word(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


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
    return value.item() if isinstance(value, np.generic) else value
