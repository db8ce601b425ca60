"""What stands where in a scan file; the writer makes all of it before the first frame, and the reader looks there.

The file keeps its layout from its first moment: afterwards datasets of one row per frame grow, and two values of a
fixed size change. HDF5 can then write so that a reader beside it, or after a writer that was killed, finds it valid.

# Ref: NXtomo, NXdetector and NXdetector_channel: nexusformat/definitions, `applications/NXtomo.nxdl.xml`,
#      `base_classes/NXdetector.nxdl.xml`, `base_classes/NXdetector_channel.nxdl.xml`.
# Ref: no objects, attributes or texts of variable length may be added while readers look (SWMR): HDF5 user guide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, TypeAlias

import h5py
import hdf5plugin
import numpy as np
from numpy.typing import DTypeLike

from acquisition.plan import Plan, plan_to_toml
from acquisition.scan import ImageKey, Readout, ScanStatus
from calibration.store import Calibration, software_version, write_group

Attribute: TypeAlias = str | int | float

FORMAT = "mpxct scan"
VERSION = 3
LIBVER = ("v110", "v110")
"""The oldest layout that may be read while it is written: HDF5 1.10 and newer open it."""
DETECTOR = "entry/instrument/detector"
DATA = f"{DETECTOR}/data"
STATUS_TYPE = h5py.string_dtype("utf-8", 16)
TIME_TYPE = h5py.string_dtype("utf-8", 40)
KIND_BYTES, TEXT_BYTES = 32, 480
"""Room for the kind and the text of an event; a longer text is cut and ends in an ellipsis."""
UNWRITTEN = 255
"""Image key of a row that has been made and not been written: no frame."""


class Column(NamedTuple):
    """A dataset with one value per frame."""

    path: str
    dtype: DTypeLike
    units: str
    fill: float


COLUMNS: Mapping[str, Column] = {
    "image_key": Column(f"{DETECTOR}/image_key", np.uint8, "1", UNWRITTEN),
    "count_time": Column(f"{DETECTOR}/count_time", np.float64, "s", np.nan),
    "run": Column(f"{DETECTOR}/run", np.int64, "1", -1),
    "sequence": Column(f"{DETECTOR}/sequence_number", np.int64, "1", -1),
    "timestamp": Column(f"{DETECTOR}/timestamp", np.int64, "ns", -1),
    "rotation_angle": Column("entry/sample/rotation_angle", np.float64, "rad", np.nan),
    "z_translation": Column("entry/sample/z_translation", np.float64, "mm", np.nan),
    "x_translation": Column(f"{DETECTOR}/x_translation", np.float64, "mm", np.nan),
    "pass": Column(f"{DETECTOR}/pass", np.int64, "1", -1),
}
"""In the order of a row; the image key is written last, so that a frame with one is whole."""

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
    header: Mapping[str, Attribute]


def partial_path(path: str | Path) -> Path:
    """Return the name under which a scan is written until it is whole."""
    path = Path(path)
    return path.with_name(f"{path.stem}.partial{path.suffix}")


def lay_out(file: h5py.File, head: Head) -> None:
    """Make every group and dataset of a scan in an empty file; no row is in it."""
    readout, calibration = head.readout, head.calibration
    file.attrs.update(
        NX_class="NXroot",
        format=FORMAT,
        version=VERSION,
        software=software_version(),
        calibration=calibration.identity if calibration else "",
        n_frames_planned=-1 if head.n_frames is None else head.n_frames,
    )
    file.attrs.create("status", ScanStatus.RUNNING.value, dtype=STATUS_TYPE)
    for path, nexus in {
        "entry": "NXentry",
        "entry/instrument": "NXinstrument",
        "entry/instrument/source": "NXsource",
        DETECTOR: "NXdetector",
        "entry/sample": "NXsample",
        "entry/data": "NXdata",
        "entry/events": "NXcollection",
        "entry/header": "NXcollection",
    }.items():
        file.create_group(path).attrs["NX_class"] = nexus
    _lay_out_rows(file, readout)
    for path, (value, units) in _values(head).items():
        _value(file, path, value, units)
    file.create_dataset("entry/end_time", shape=(), dtype=TIME_TYPE).attrs["units"] = "text"
    file["entry/header"].attrs.update(head.header)
    file["entry/data"].attrs["signal"] = "data"
    for target in (DATA, COLUMNS["image_key"].path, COLUMNS["rotation_angle"].path):
        file[f"entry/data/{target.rpartition('/')[2]}"] = h5py.SoftLink(f"/{target}")
    if calibration is not None:
        write_group(file.create_group("entry/calibration"), calibration)
    for plane, number in enumerate(readout.thresholds):
        _lay_out_view(file, readout, plane, number)


def _lay_out_rows(file: h5py.File, readout: Readout) -> None:
    """Make what grows: the counts with a sum over each chunk, that a damaged one is refused; columns; events."""
    data = file.create_dataset(
        DATA,
        shape=(0, *readout.shape),
        maxshape=(None, *readout.shape),
        chunks=(1, *readout.shape),
        dtype=readout.dtype,
        fillvalue=readout.fill,
        fletcher32=True,
        **hdf5plugin.Bitshuffle(cname="lz4"),
    )
    data.attrs.update(units="counts", axes="frame, counter, row, col")
    for path, dtype, units, fill in COLUMNS.values():
        _table(file, path, dtype, units, fill)
    for name, (dtype, units) in EVENT_COLUMNS.items():
        _table(file, f"entry/events/{name}", dtype, units, None, n_rows=64)


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


def _lay_out_view(file: h5py.File, readout: Readout, plane: int, number: int) -> None:
    """Make one NXtomo entry of three axes for a threshold, without a copy; it grows with the counts."""
    unlimited = h5py.h5s.UNLIMITED
    layout = h5py.VirtualLayout((1, *readout.shape[1:]), readout.dtype, maxshape=(None, *readout.shape[1:]))
    source = h5py.VirtualSource(".", f"/{DATA}", (1, *readout.shape), readout.dtype, maxshape=(None, *readout.shape))
    layout[0:unlimited, :, :] = source[0:unlimited, plane, :, :]
    entry = file.create_group(f"entry_threshold_{number}")
    entry.attrs["NX_class"] = "NXentry"
    _value(file, f"{entry.name}/definition", "NXtomo", "text")
    detector = entry.create_group("instrument/detector")
    entry["instrument"].attrs["NX_class"], detector.attrs["NX_class"] = "NXinstrument", "NXdetector"
    detector.create_virtual_dataset("data", layout, fillvalue=readout.fill).attrs["units"] = "counts"
    for name in ("image_key", "count_time", "x_pixel_size", "y_pixel_size"):
        detector[name] = h5py.SoftLink(f"/{DETECTOR}/{name}")
    entry["sample"] = h5py.SoftLink("/entry/sample")


def _table(file: h5py.File, path: str, dtype: DTypeLike, units: str, fill: float | None, *, n_rows: int = 1024) -> None:
    dataset = file.create_dataset(path, shape=(0,), maxshape=(None,), chunks=(n_rows,), dtype=dtype, fillvalue=fill)
    dataset.attrs["units"] = units


def _value(file: h5py.File, path: str, value: object, units: str) -> None:
    file.create_dataset(path, data=value).attrs["units"] = units


def date(time_s: float) -> str:
    """Return a time since 1970 as ISO 8601 in UTC."""
    return datetime.fromtimestamp(time_s, UTC).isoformat()


def is_frame(keys: np.ndarray) -> np.ndarray:
    """Return which image keys are those of frames."""
    return np.isin(keys, list(ImageKey))
