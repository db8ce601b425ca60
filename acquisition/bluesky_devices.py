"""The instrument as Bluesky's devices: a camera that writes our scan file, and the axes of the gantry.

`Rig` holds an open instrument; its camera, angle, lift, shift and sample are devices for any plan of Bluesky's, and
`tomography` is one that does what a plan of ours says. The counts stay in the scan file; Bluesky's documents point to
them (stream resources). Frames with nothing in the beam are flats, all others projections.

# Ref: what a device must have, and stream assets: bluesky `protocols.py`; the shape of a data key for several frames
#      an event: ophyd-async `_detector.py`, which gives (frames per event, ...).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from bluesky import plan_stubs
from bluesky.preprocessors import run_decorator, stage_decorator
from bluesky.protocols import Location, Reading, StreamAsset
from bluesky.utils import Msg
from event_model import ComposeStreamResource, ComposeStreamResourceBundle, DataKey

from acquisition.calibrate.exposures import TUBE, refuse_foreign, wanted_conditions
from acquisition.instrument import Instrument, begin, is_checked, settings
from acquisition.metadata import Datum, metadata
from acquisition.plan import Plan
from acquisition.scan import ImageKey, Readout, readout_of
from acquisition.scan_writer import ScanWriter
from acquisition.steps import AT_ZERO, Pose, expand
from calibration.store import Calibration
from firmware_iface.errors import DataLost, WrongUsage
from firmware_iface.frame import Frame

Value = TypeVar("Value", float, str)

COUNTS = "/entry/instrument/detector/data"
OUT = "OUT"
"""Nothing is in the beam."""
MIMETYPE = "application/x-hdf5"


class Done:
    """How a work in a thread of its own stands, as Bluesky asks for it.

    Parameters
    ----------
    work : callable
        Runs at once, in a thread of its own.
    """

    def __init__(self, work: Callable[[], None], name: str) -> None:
        self._error: BaseException | None = None
        self._is_done = threading.Event()
        self._changing = threading.Lock()
        self._waiting: list[Callable[[Any], None]] = []
        threading.Thread(target=self._run, args=(work,), name=name, daemon=True).start()

    def add_callback(self, callback: Callable[[Any], None]) -> None:
        """Call this with the status once the work has ended; at once, if it has."""
        with self._changing:
            if not self.done:
                self._waiting.append(callback)
                return
        callback(self)

    def exception(self, timeout: float | None = 0.0) -> BaseException | None:
        """Return what went wrong, waiting `timeout` seconds for the end; None: nothing."""
        if not self._is_done.wait(timeout):
            raise TimeoutError(f"not done within {timeout} s")
        return self._error

    @property
    def done(self) -> bool:
        """Whether the work has ended, well or not."""
        return self._is_done.is_set()

    @property
    def success(self) -> bool:
        """Whether it has ended well."""
        return self.done and self._error is None

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to the one who waits
            self._error = error
        with self._changing:
            self._is_done.set()
            waiting = list(self._waiting)
        for callback in waiting:
            callback(self)


class Axis(Generic[Value]):
    """Something of the gantry that can be set: an angle in degrees, a length in mm, the name of a sample.

    Parameters
    ----------
    put : callable
        Brings it to a value, and returns when it is there.
    """

    parent = None

    def __init__(self, name: str, first: Value, units: str, put: Callable[[Value], None]) -> None:
        self.name = name
        self._value = self._wanted = first
        self._units, self._put = units, put
        self._changed_s = time.time()

    def set(self, value: Value) -> Done:
        """Bring it there; the status is done when it is there."""
        wanted = value if isinstance(self._value, str) else float(value)

        def move() -> None:
            self._wanted = wanted  # type: ignore[assignment]
            self._put(wanted)  # type: ignore[arg-type]
            self._value, self._changed_s = wanted, time.time()  # type: ignore[assignment]

        return Done(move, f"move {self.name}")

    @property
    def position(self) -> Value:
        """Where it is."""
        return self._value

    def locate(self) -> Location[Value]:
        """Return where it is, and where it is to be."""
        return Location(setpoint=self._wanted, readback=self._value)

    def read(self) -> dict[str, Reading[Value]]:
        """Return where it is."""
        return {self.name: {"value": self._value, "timestamp": self._changed_s}}  # type: ignore[dict-item]

    def describe(self) -> dict[str, DataKey]:
        """Say what `read` gives."""
        return {self.name: _key(self._value, self._units)}

    def read_configuration(self) -> dict[str, Reading[Value]]:
        """Return nothing: an axis has no settings."""
        return {}

    def describe_configuration(self) -> dict[str, DataKey]:
        """Say what `read_configuration` gives."""
        return {}


class Camera:
    """The detector; each trigger takes `frames_per_event` frames into the scan file of the present stage.

    The file is named when the camera is staged, and gets its own name when it is unstaged.
    """

    parent = None

    def __init__(
        self,
        name: str,
        instrument: Instrument,
        plan: Plan,
        calibration: Calibration,
        folder: Path,
        where: Callable[[], tuple[Pose, str]],
        frames_per_event: int,
    ) -> None:
        self.name = name
        self.frames_per_event = frames_per_event
        self._instrument, self._plan, self._calibration, self._folder = instrument, plan, calibration, folder
        self._where = where
        self._writer: ScanWriter | None = None
        self._bundle: ComposeStreamResourceBundle | None = None
        self._n_events = self._n_told = self._n_lost = 0
        self._taken_s = time.time()

    # What plans do with it

    def stage(self) -> list[Any]:
        """Prepare the detector, open a scan file and switch the beam on."""
        if self._writer is not None:
            raise WrongUsage(f"{self.name} is staged already", hint="unstage it first")
        self._n_events = self._n_told = self._n_lost = 0
        self._bundle = None
        refuse_foreign(self._calibration, wanted_conditions(self._instrument.detector, self._plan))
        sample = self._where()[1]
        self._instrument.gantry.select_sample(None if sample == OUT else sample)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._writer = ScanWriter(
            self._new_path(),
            self._readout,
            plan=self._plan,
            calibration=self._calibration,
            sample=self._plan.scan.held or "",
            source=TUBE,
            settings=settings(self._instrument.detector, self._plan, self._calibration),
            is_checked=is_checked(self._instrument.detector),
        )
        for _ in begin(self._instrument, self._plan, self._calibration):
            pass
        return [self]

    def trigger(self) -> Done:
        """Take the frames of one event."""
        return Done(self._take, f"trigger {self.name}")

    def stop(self, *, success: bool = True) -> None:
        """End a run of the detector after the present frame."""
        del success
        self._instrument.detector.stop()

    def unstage(self) -> list[Any]:
        """Switch the beam off and give the file its own name; without a frame there is none."""
        self._instrument.gantry.shut_down()
        writer, self._writer = self._writer, None
        if writer is not None:
            if writer.n_frames:
                writer.finish()
            else:
                writer.discard()
        return [self]

    # What it tells

    @property
    def path(self) -> Path:
        """The scan file of the present stage, under the name that it gets when it is whole."""
        return self._open_writer.path

    def read(self) -> dict[str, Reading[int]]:
        """Return how many frames of the last event were lost; the counts are in the file."""
        return {f"{self.name}_lost": {"value": self._n_lost, "timestamp": self._taken_s}}  # type: ignore[dict-item]

    def describe(self) -> dict[str, DataKey]:
        """Say what `read` gives, and what the file holds of an event: (frames, counters, rows, cols)."""
        counts = DataKey(
            source=f"mpxct:{self._instrument.detector.info.serial}",
            shape=[self.frames_per_event, *self._readout.shape],
            dtype="array",
            dtype_numpy=self._readout.dtype.str,
            units="counts",
            external="STREAM:",
        )
        return {self._counts: counts, f"{self.name}_lost": _key(0, "1")}

    def read_configuration(self) -> dict[str, Reading[Any]]:
        """Return what the run is made with, as `acquisition.metadata` lists it."""
        return {
            f"{self.name}_{name}": {"value": value, "timestamp": self._taken_s}  # type: ignore[dict-item]
            for name, (value, _) in self._metadata.items()
        }

    def describe_configuration(self) -> dict[str, DataKey]:
        """Say what `read_configuration` gives."""
        return {f"{self.name}_{name}": _key(value, units) for name, (value, units) in self._metadata.items()}

    def get_index(self) -> int:
        """Return how many events are in the file."""
        return self._n_events

    def collect_asset_docs(self, index: int | None = None) -> Iterator[StreamAsset]:
        """Yield where the events that were not told of yet are: first the file, then which of them."""
        stop = self._n_events if index is None else min(index, self._n_events)
        if stop <= self._n_told:
            return
        if self._bundle is None:
            self._bundle = ComposeStreamResource()(
                mimetype=MIMETYPE,
                uri=f"file://localhost{self.path.resolve().as_posix()}",
                data_key=self._counts,
                parameters={"dataset": COUNTS, "chunk_shape": (1, *self._readout.shape), "swmr": False},
            )
            yield "stream_resource", self._bundle.stream_resource_doc
        yield "stream_datum", self._bundle.compose_stream_datum({"start": self._n_told, "stop": stop})
        self._n_told = stop

    @property
    def _counts(self) -> str:
        return f"{self.name}_counts"

    @property
    def _readout(self) -> Readout:
        return readout_of(self._plan)

    @property
    def _metadata(self) -> dict[str, Datum]:
        return metadata(self._plan, self._calibration)

    @property
    def _open_writer(self) -> ScanWriter:
        if self._writer is None:
            raise WrongUsage(f"{self.name} is not staged", hint="use it in a plan that stages it, such as count")
        return self._writer

    def _new_path(self) -> Path:
        stem, number = self._plan.scan.held or "scan", 1
        while True:
            path = self._folder / f"{stem}_{number:04d}.h5"
            if not any(self._folder.glob(f"{path.stem}.*")):
                return path
            number += 1

    def _take(self) -> None:
        writer = self._open_writer
        pose, sample = self._where()
        key = ImageKey.FLAT if sample == OUT else ImageKey.PROJECTION
        n_wanted, n_lost_before, n_before = self.frames_per_event, writer.n_lost, writer.n_frames
        for item in self._instrument.detector.frames(n_wanted, self._plan.detector.exposure_s):
            if isinstance(item, Frame):
                writer.write(item, key, pose)
            else:
                writer.lost(item, [pose] * item.n_frames)
        n_came = writer.n_frames - n_before
        if n_came != n_wanted:
            raise DataLost(f"{n_came} of {n_wanted} frames came before the run ended")
        writer.flush()  # an event that is told of is on the disk
        self._n_lost, self._taken_s = writer.n_lost - n_lost_before, time.time()
        self._n_events += 1


class Rig:
    """An instrument, its camera and its axes, all as devices of Bluesky's.

    Parameters
    ----------
    instrument : Instrument
        An open one, such as `acquisition.instrument.open_instrument` gives; whoever opened it closes it.
    plan : Plan
        How the detector and the tube are set; its steps matter to `tomography` only.
    folder : Path
        Where scan files go, named SAMPLE_0001.h5 and on.
    frames_per_event : int
        Frames for each trigger.
    """

    def __init__(
        self,
        instrument: Instrument,
        plan: Plan,
        calibration: Calibration,
        folder: str | Path,
        *,
        frames_per_event: int = 1,
        name: str = "mpxct",
    ) -> None:
        if frames_per_event < 1:
            raise WrongUsage(f"frames_per_event is {frames_per_event}; allowed: 1 or more")
        self.plan = plan
        self._instrument, self._pose = instrument, AT_ZERO
        self.angle = Axis(f"{name}_angle", 0.0, "deg", lambda deg: self._move(angle_rad=math.radians(deg)))
        self.lift = Axis(f"{name}_lift", 0.0, "mm", lambda mm: self._move(lift_mm=mm))
        self.shift = Axis(f"{name}_shift", 0.0, "mm", lambda mm: self._move(shift_mm=mm))
        self.sample = Axis(f"{name}_sample", plan.scan.held or OUT, "text", self._select)
        self.camera = Camera(
            name,
            instrument,
            plan,
            calibration,
            Path(folder),
            lambda: (self._pose, self.sample.position),
            frames_per_event,
        )

    def _move(self, **axes: float) -> None:
        pose = replace(self._pose, **axes)
        self._instrument.gantry.move_to(pose)
        self._pose = pose

    def _select(self, name: str) -> None:
        self._instrument.gantry.select_sample(None if name == OUT else name)


def tomography(rig: Rig) -> Generator[Msg, Any, str | None]:
    """Take every step of the rig's plan, flats included, as one run of Bluesky's; one event for each trigger.

    Raises
    ------
    WrongUsage
        A step has frames that no whole number of triggers gives, or it is not a step of a standing gantry at the
        plan's own thresholds.
    """
    steps, n = expand(rig.plan), rig.camera.frames_per_event
    for step in steps:
        if step.n_frames % n:
            raise WrongUsage(f"a step has {step.n_frames} frames and each event {n}; allowed: a whole number of events")
        if step.end is not None or step.pass_index or step.n_accumulated > 1:
            raise WrongUsage(
                "the plan sweeps, accumulates or has several passes; allowed: steps of a standing gantry",
                hint="scan it with `mpxct acquire`",
            )
    axes = (rig.angle, rig.lift, rig.shift, rig.sample)

    @stage_decorator([rig.camera])
    @run_decorator(md={"plan_name": "tomography", "sample": rig.plan.scan.held, "num_points": len(steps)})
    def run() -> Generator[Msg, Any, None]:
        for step in steps:
            pose = step.pose
            wanted = (math.degrees(pose.angle_rad), pose.lift_mm, pose.shift_mm, step.sample or OUT)
            for axis, value in zip(axes, wanted, strict=True):  # one after the other: they share one controller
                if axis.position != value:
                    yield from plan_stubs.mv(axis, value)
            for _ in range(step.n_frames // n):
                yield from plan_stubs.trigger_and_read([rig.camera, *axes])

    return (yield from run())


def _key(value: object, units: str) -> DataKey:
    """Describe a plain value, or a list of numbers."""
    described = DataKey(source="mpxct", shape=[], dtype="number", units=units)
    if isinstance(value, str):
        described["dtype"] = "string"
    elif isinstance(value, bool):
        described["dtype"] = "boolean"
    elif isinstance(value, int):
        described["dtype"] = "integer"
    elif isinstance(value, list):
        described["dtype"], described["shape"] = "array", [len(value)]
    return described
