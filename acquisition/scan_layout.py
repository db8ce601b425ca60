"""What stands where in a scan file; the writer makes all of it before the first frame, and the reader looks there.

The file keeps its layout from its first moment: afterwards rows are filled, or added where their number is unknown,
and two values of a fixed size change. HDF5 can then write so that a reader beside it, or after a writer that was
killed, finds it valid.

# Ref: NXtomo, NXdetector and NXdetector_channel: nexusformat/definitions, `applications/NXtomo.nxdl.xml`,
#      `base_classes/NXdetector.nxdl.xml`, `base_classes/NXdetector_channel.nxdl.xml`.
# Ref: Data Exchange, its groups and that theta is in degrees: data-exchange/dxfile `doc/source/xraytomo.rst`,
#      data-exchange/dxchange `exchange.py`.
# Ref: no objects, attributes or texts of variable length may be added while readers look (SWMR): HDF5 user guide.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, TypeAlias

import h5py
import hdf5plugin
import numpy as np
from numpy.typing import DTypeLike, NDArray

from acquisition.plan import Plan, passes_kev, plan_to_toml
from acquisition.scan import Crc, ImageKey, Readout, ScanStatus
from acquisition.steps import expand
from calibration.pixels import PixelClass
from calibration.store import Calibration, fixed, software_version, write_group

Attribute: TypeAlias = str | int | float

FORMAT = "mpxct scan"
VERSION = 3
LIBVER = ("v110", "v110")
"""The oldest layout that may be read while it is written: HDF5 1.10 and newer open it."""
DETECTOR = "entry/instrument/detector"
DATA = f"{DETECTOR}/data"
STATUS_TYPE = h5py.string_dtype("utf-8", 16)
TIME_TYPE = h5py.string_dtype("utf-8", 40)
SHARED = (
    *("definition", "title", "start_time", "end_time", "sample", "instrument/source"),
    *(
        f"instrument/detector/{name}"
        for name in ("image_key", "count_time", "distance", "x_pixel_size", "y_pixel_size")
    ),
)
"""What the entry of one threshold has in common with the others."""
USER_MASK_BIT = 8
MASK_BITS: Mapping[int, PixelClass] = {
    1: PixelClass.DEAD,
    2: PixelClass.UNDER,
    3: PixelClass.OVER,
    4: PixelClass.NOISY | PixelClass.HOT | PixelClass.TELEGRAPH,
    USER_MASK_BIT: PixelClass.MASKED | PixelClass.OUT_OF_TRIM | PixelClass.NO_EDGE,
}
"""NeXus's bits of a pixel mask, and what of ours they stand for."""
KIND_BYTES, TEXT_BYTES = 32, 480
"""Room for the kind and the text of an event; a longer text is cut and ends in an ellipsis."""
UNWRITTEN = -1
"""Sequence number of a row that has been made and not been written."""


class Column(NamedTuple):
    """A dataset with one value per frame."""

    path: str
    dtype: DTypeLike
    units: str
    fill: float


class Row(NamedTuple):
    """What is known of one frame beside its counts, in the order of `COLUMNS`."""

    image_key: int
    count_time_s: float
    run: int
    sequence: int
    timestamp_ns: int
    angle_rad: float
    angle_deg: float
    lift_mm: float
    shift_mm: float
    pass_index: int
    temperature_k: float = np.nan
    monitor: float = np.nan
    crc: int = Crc.NOT_CHECKED
    flags: int = 0


COLUMNS: Mapping[str, Column] = {
    "image_key": Column(f"{DETECTOR}/image_key", np.uint8, "1", ImageKey.INVALID),
    "count_time_s": Column(f"{DETECTOR}/count_time", np.float64, "s", np.nan),
    "run": Column(f"{DETECTOR}/run", np.int64, "1", -1),
    "sequence": Column(f"{DETECTOR}/sequence_number", np.int64, "1", UNWRITTEN),
    "timestamp_ns": Column(f"{DETECTOR}/timestamp", np.int64, "ns", -1),
    "angle_rad": Column("entry/sample/rotation_angle", np.float64, "rad", np.nan),
    "angle_deg": Column("entry/sample/rotation_angle_deg", np.float64, "deg", np.nan),
    "lift_mm": Column("entry/sample/z_translation", np.float64, "mm", np.nan),
    "shift_mm": Column(f"{DETECTOR}/x_translation", np.float64, "mm", np.nan),
    "pass_index": Column(f"{DETECTOR}/pass", np.int64, "1", -1),
    "temperature_k": Column(f"{DETECTOR}/sensor_temperature", np.float64, "K", np.nan),
    "monitor": Column("entry/control/data", np.float64, "counts", np.nan),
    "crc": Column(f"{DETECTOR}/crc_result", np.uint8, "1", Crc.NOT_CHECKED),
    "flags": Column(f"{DETECTOR}/flags", np.uint8, "1", 0),
}

EVENT_COLUMNS: Mapping[str, tuple[DTypeLike, str]] = {
    "time": (np.float64, "s"),
    "sequence": (np.int64, "1"),
    "kind": (h5py.string_dtype("utf-8", KIND_BYTES), "text"),
    "text": (h5py.string_dtype("utf-8", TEXT_BYTES), "text"),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Head:
    """What is known of a scan before its first frame.

    Attributes
    ----------
    n_frames : int or None
        How many frames make the scan whole, lost ones included; None: not known.
    settings : mapping of str to mapping
        How everything stood, by what it belongs to: the device, its chips, the host.
    header : mapping
        Anything else that is known of the run.
    """

    title: str
    start_s: float
    readout: Readout
    n_frames: int | None = None
    plan: Plan | None = None
    calibration: Calibration | None = None
    sample: str = ""
    source: str = ""
    settings: Mapping[str, Mapping[str, Attribute]]
    header: Mapping[str, Attribute]

    @property
    def n_rows(self) -> int:
        """Rows that the file has from its first moment: those of all planned frames."""
        return self.n_frames or 0

    @property
    def passes_kev(self) -> tuple[tuple[float, ...], ...]:
        """Thresholds of each pass over the object; nothing where they are not known."""
        known = self.readout.thresholds_kev
        return passes_kev(self.plan) if self.plan else (known,) if known else ()

    def keys(self) -> tuple[ImageKey, ...]:
        """Return what each planned frame of the first pass is for, INVALID for others; nothing if it is not known."""
        steps = expand(self.plan) if self.plan else ()
        keys = tuple(
            ImageKey.INVALID if step.pass_index else ImageKey[step.kind.name]
            for step in steps
            for _ in range(step.n_frames)
        )
        return keys if len(keys) == self.n_frames else ()


def partial_path(path: str | Path) -> Path:
    """Return the name under which a scan is written until it is whole."""
    path = Path(path)
    return path.with_name(f"{path.stem}.partial{path.suffix}")


def lay_out(file: h5py.File, head: Head) -> None:
    """Make every group and dataset of a scan in an empty file; no row is in it."""
    readout, calibration = head.readout, head.calibration
    file.attrs.update(NX_class="NXroot", version=VERSION)
    file.attrs["n_frames_planned"] = -1 if head.n_frames is None else head.n_frames
    identity = calibration.identity if calibration else ""
    _attribute(file, {"format": FORMAT, "software": software_version(), "calibration": identity})
    file.attrs.create("status", ScanStatus.RUNNING.value, dtype=STATUS_TYPE)
    for path, nexus in {
        "entry": "NXentry",
        "entry/instrument": "NXinstrument",
        "entry/instrument/source": "NXsource",
        DETECTOR: "NXdetector",
        "entry/sample": "NXsample",
        "entry/data": "NXdata",
        "entry/events": "NXcollection",
        "entry/control": "NXmonitor",
        "entry/header": "NXcollection",
        "entry/settings": "NXcollection",
    }.items():
        file.create_group(path).attrs["NX_class"] = nexus
    _lay_out_rows(file, readout, head.n_rows)
    for path, (value, units) in _values(head).items():
        _value(file, path, value, units)
    file.create_dataset("entry/end_time", shape=(), dtype=TIME_TYPE).attrs["units"] = "text"
    _attribute(file["entry/header"], head.header)
    for name, values in head.settings.items():
        _attribute(file.create_group(f"entry/settings/{name}"), values)
    file["entry/data"].attrs["signal"] = "data"
    for target in (DATA, COLUMNS["image_key"].path, COLUMNS["angle_rad"].path):
        file[f"entry/data/{target.rpartition('/')[2]}"] = h5py.SoftLink(f"/{target}")
    if calibration is not None:
        write_group(file.create_group("entry/calibration"), calibration)
    keys = np.asarray(head.keys())
    for plane, number in enumerate(readout.thresholds):
        _lay_out_view(file, head, plane, number)
        _lay_out_channel(file, head, plane, number)
        if len(keys):
            _lay_out_exchange(file, readout, keys, plane)


def _lay_out_rows(file: h5py.File, readout: Readout, n_rows: int) -> None:
    """Make what is filled or grows; the counts have a sum over each chunk, so that a damaged one is refused."""
    data = file.create_dataset(
        DATA,
        shape=(n_rows, *readout.shape),
        maxshape=(None, *readout.shape),
        chunks=(1, *readout.shape),
        dtype=readout.dtype,
        fillvalue=readout.fill,
        fletcher32=True,
        **hdf5plugin.Bitshuffle(cname="lz4"),
    )
    data.attrs.update(units="counts", dimensions="frame, counter, row, col")
    for path, dtype, units, fill in COLUMNS.values():
        column = file.create_dataset(path, (n_rows,), dtype, maxshape=(None,), chunks=(1024,), fillvalue=fill)
        column.attrs["units"] = units
    for name, (dtype, units) in EVENT_COLUMNS.items():
        table = file.create_dataset(f"entry/events/{name}", (0,), dtype, maxshape=(None,), chunks=(64,))
        table.attrs["units"] = units


def _values(head: Head) -> dict[str, tuple[object, str]]:
    """Return the single values by their path, with units."""
    readout = head.readout
    values: dict[str, tuple[object, str]] = {
        "entry/definition": ("NXtomo", "text"),
        "entry/title": (head.title, "text"),
        "entry/start_time": (date(head.start_s), "text"),
        "entry/sample/name": (head.sample, "text"),
        "entry/instrument/source/name": (head.source, "text"),
        "entry/instrument/source/probe": ("x-ray", "text"),
        f"{DETECTOR}/thresholds": (np.asarray(readout.thresholds, np.int64), "1"),
        f"{DETECTOR}/threshold_energy": (np.asarray(readout.thresholds_kev, np.float64), "keV"),
        f"{DETECTOR}/pass_threshold_energy": (
            np.asarray(head.passes_kev or np.empty((0, len(readout.thresholds))), np.float64),
            "keV",
        ),
        f"{DETECTOR}/bit_depth_readout": (readout.depth_bits, "bit"),
        f"{DETECTOR}/saturation_value": (readout.saturation, "counts"),
        f"{DETECTOR}/x_pixel_size": (readout.pitch_mm, "mm"),
        f"{DETECTOR}/y_pixel_size": (readout.pitch_mm, "mm"),
    }
    if head.plan is not None:
        known = head.calibration.alignment if head.calibration else None
        geometry = known.geometry if known else head.plan.geometry
        behind_mm = geometry.source_to_detector_mm - geometry.source_to_object_mm
        values["entry/plan"] = (plan_to_toml(head.plan), "text")
        values[f"{DETECTOR}/distance"] = (behind_mm, "mm")
        values["entry/instrument/source/distance"] = (-geometry.source_to_object_mm, "mm")
    return values


def _lay_out_view(file: h5py.File, head: Head, plane: int, number: int) -> None:
    """Make one NXtomo entry of three axes for a threshold, without a copy.

    Where the number of frames is not known, it grows with the counts; nxtomo does not read such a one.
    """
    n_rows, frames = head.n_rows or 1, np.s_[0 : head.n_rows or h5py.h5s.UNLIMITED]
    readout, longest = head.readout, None if head.n_frames is None else head.n_rows
    layout = h5py.VirtualLayout((n_rows, *readout.shape[1:]), readout.dtype, maxshape=(longest, *readout.shape[1:]))
    source = h5py.VirtualSource(".", f"/{DATA}", (n_rows, *readout.shape), readout.dtype, (None, *readout.shape))
    layout[frames, :, :] = source[frames, plane, :, :]
    name = f"entry_threshold_{number}"
    for path, nexus in {"": "NXentry", "/instrument": "NXinstrument", "/instrument/detector": "NXdetector"}.items():
        file.create_group(name + path).attrs["NX_class"] = nexus
    file.create_group(f"{name}/data").attrs.update(NX_class="NXdata", signal="data")
    images = file.create_virtual_dataset(f"{name}/instrument/detector/data", layout, fillvalue=readout.fill)
    images.attrs["units"] = "counts"
    for path in SHARED:
        if f"entry/{path}" in file:
            file[f"{name}/{path}"] = h5py.SoftLink(f"/entry/{path}")
    for path in ("instrument/detector/data", "instrument/detector/image_key", "sample/rotation_angle"):
        file[f"{name}/data/{path.rpartition('/')[2]}"] = h5py.SoftLink(f"/{name}/{path}")


def _lay_out_channel(file: h5py.File, head: Head, plane: int, number: int) -> None:
    """Tell what belongs to one threshold of the detector."""
    readout, calibration = head.readout, head.calibration
    channel = f"{DETECTOR}/threshold_{number}_channel"
    file.create_group(channel).attrs["NX_class"] = "NXdetector_channel"
    _value(file, f"{channel}/saturation_value", readout.saturation, "counts")
    if readout.thresholds_kev:
        _value(file, f"{channel}/threshold_energy", readout.thresholds_kev[plane], "keV")
    if calibration is not None and calibration.pixel_class.shape == readout.shape[1:]:
        _value(file, f"{channel}/pixel_mask", pixel_mask(calibration, number), "bits")


def pixel_mask(calibration: Calibration, number: int) -> NDArray[np.uint32]:
    """Return NeXus's mask of the pixels of one threshold, of those that are not to be used: (rows, cols)."""
    mask = np.zeros(calibration.pixel_class.shape, np.uint32)
    for bit, reasons in MASK_BITS.items():
        mask |= np.where(calibration.pixel_class & reasons, 1 << bit, 0).astype(np.uint32)
    return mask | np.where(calibration.is_masked[number], 1 << USER_MASK_BIT, 0).astype(np.uint32)


def _lay_out_exchange(file: h5py.File, readout: Readout, keys: NDArray[np.integer], plane: int) -> None:
    """Make a Data Exchange group of a threshold, without a copy: views, flats, darks and angles by themselves."""
    group = f"exchange_{plane}" if plane else "exchange"
    names = {ImageKey.PROJECTION: "data", ImageKey.FLAT: "data_white", ImageKey.DARK: "data_dark"}
    counts = h5py.VirtualSource(".", f"/{DATA}", (len(keys), *readout.shape), readout.dtype, (None, *readout.shape))
    angles = h5py.VirtualSource(".", f"/{COLUMNS['angle_deg'].path}", (len(keys),), np.float64, (None,))
    for key, name in names.items():
        places = np.flatnonzero(keys == key)
        if not len(places):
            continue
        images = h5py.VirtualLayout((len(places), *readout.shape[1:]), readout.dtype)
        theta = h5py.VirtualLayout((len(places),), np.float64)
        for first, stop in stretches(places):
            taken = slice(int(places[first]), int(places[stop - 1]) + 1)
            images[first:stop] = counts[taken, plane]
            theta[first:stop] = angles[taken]
        file.create_virtual_dataset(f"{group}/{name}", images, fillvalue=readout.fill).attrs["units"] = "counts"
        if key is ImageKey.PROJECTION:
            file.create_virtual_dataset(f"{group}/theta", theta, fillvalue=np.nan).attrs["units"] = "deg"


def stretches(places: NDArray[np.integer]) -> Iterator[tuple[int, int]]:
    """Cut ascending places into stretches of neighbours, which HDF5 reads at once."""
    if len(places):
        breaks = np.flatnonzero(np.diff(places) != 1) + 1
        yield from pairwise([0, *breaks.tolist(), len(places)])


def _value(file: h5py.File, path: str, value: object, units: str) -> None:
    kind = fixed(value) if isinstance(value, str) else None
    file.create_dataset(path, data=value, dtype=kind).attrs["units"] = units


def _attribute(node: h5py.Group | h5py.HLObject, values: Mapping[str, Attribute]) -> None:
    for name, value in values.items():
        node.attrs.create(name, value, dtype=fixed(value) if isinstance(value, str) else None)


def date(time_s: float) -> str:
    """Return a time since 1970 as ISO 8601 in UTC."""
    return datetime.fromtimestamp(time_s, UTC).isoformat()
