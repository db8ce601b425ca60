"""The instrument under Bluesky's real RunEngine: documents, the files they point to, errors, what is left behind."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import h5py
import hdf5plugin  # noqa: F401 - the filter of the counts
import numpy as np
import pytest
from bluesky import RunEngine
from bluesky import plans as bp
from bluesky.protocols import Locatable, Readable, Stageable, Stoppable, Triggerable, WritesStreamAssets
from bluesky.utils import FailedStatus
from event_model import DocumentNames, schema_validators

from acquisition.bluesky_devices import OUT, Rig, tomography
from acquisition.instrument import Instrument, open_instrument
from acquisition.plan import DetectorPlan, Plan, ScanPlan
from acquisition.scan import ImageKey, ScanStatus
from acquisition.scan_file import read_scan
from acquisition.steps import StepKind, expand
from calibration.store import Calibration
from firmware_iface.errors import WrongUsage
from tests.rough_calibration import rough_calibration

PLAN = Plan(
    detector=DetectorPlan(exposure_s=0.5),
    scan=ScanPlan(n_views=3, frames_per_view=2, flats_every_n_views=2, n_flats=4),
)


@pytest.fixture
def instrument() -> Iterator[Instrument]:
    with open_instrument("sim:demo") as opened:
        yield opened


@pytest.fixture
def calibration() -> Calibration:
    return rough_calibration(PLAN)


class Documents:
    """Everything that the engine emits, each checked against its schema."""

    def __init__(self) -> None:
        self.engine = RunEngine(context_managers=[])
        self.by_name: dict[str, list[dict[str, Any]]] = {}
        self.engine.subscribe(self._take)

    def _take(self, name: str, document: dict[str, Any]) -> None:
        schema_validators[DocumentNames[name]].validate(document)
        self.by_name.setdefault(name, []).append(document)

    @property
    def path(self) -> Path:
        (resource,) = self.by_name["stream_resource"]
        return Path(urlsplit(resource["uri"]).path)


def test_devices_are_what_bluesky_asks_for(instrument: Instrument, calibration: Calibration, tmp_path: Path) -> None:
    rig = Rig(instrument, PLAN, calibration, tmp_path)
    for protocol in (Readable, Triggerable, Stageable, Stoppable, WritesStreamAssets):
        assert isinstance(rig.camera, protocol)
    for axis in (rig.angle, rig.lift, rig.shift, rig.sample):
        assert isinstance(axis, Readable)
        assert isinstance(axis, Locatable)


def test_count_points_to_every_frame_in_the_file(
    instrument: Instrument, calibration: Calibration, tmp_path: Path
) -> None:
    rig, documents = Rig(instrument, PLAN, calibration, tmp_path, frames_per_event=2), Documents()
    documents.engine(bp.count([rig.camera], num=3))
    (resource,) = documents.by_name["stream_resource"]
    told = [range(d["indices"]["start"], d["indices"]["stop"]) for d in documents.by_name["stream_datum"]]
    assert [event for indices in told for event in indices] == [0, 1, 2]
    assert len(documents.by_name["event"]) == 3
    (descriptor,) = documents.by_name["descriptor"]
    key = descriptor["data_keys"]["mpxct_counts"]
    with h5py.File(documents.path) as file:
        data = file[resource["parameters"]["dataset"]]
        assert data.chunks == tuple(resource["parameters"]["chunk_shape"])
        assert data.dtype.str == key["dtype_numpy"]
        assert [len(data) // 3, *data.shape[1:]] == key["shape"]
        assert data[:].max() > 0
    settings = descriptor["configuration"]["mpxct"]
    assert settings["data"]["mpxct_calibration"] == calibration.identity
    assert settings["data"]["mpxct_threshold_energy"] == list(PLAN.detector.thresholds_kev)
    assert settings["data_keys"]["mpxct_bias"]["units"] == "V"
    scan = read_scan(documents.path)
    assert scan.status is ScanStatus.COMPLETE
    assert documents.by_name["stop"][0]["exit_status"] == "success"
    assert instrument.detector.auxiliary("BEAM?") == "OFF"


def test_rotation_scan_writes_angles_that_the_documents_tell(
    instrument: Instrument, calibration: Calibration, tmp_path: Path
) -> None:
    rig, documents = Rig(instrument, PLAN, calibration, tmp_path), Documents()
    documents.engine(bp.scan([rig.camera], rig.angle, 0, 90, 4))
    told = [event["data"]["mpxct_angle"] for event in documents.by_name["event"]]
    assert told == pytest.approx([0, 30, 60, 90])
    scan = read_scan(documents.path)
    assert np.degrees(scan.angles_rad).tolist() == pytest.approx(told)
    assert (scan.image_key == ImageKey.PROJECTION).all()


def test_tomography_takes_every_step_of_the_plan(
    instrument: Instrument, calibration: Calibration, tmp_path: Path
) -> None:
    rig, documents = Rig(instrument, PLAN, calibration, tmp_path, frames_per_event=2), Documents()
    documents.engine(tomography(rig))
    scan = read_scan(documents.path)
    planned = [step for step in expand(PLAN) for _ in range(step.n_frames)]
    assert scan.angles_rad.tolist() == pytest.approx([step.pose.angle_rad for step in planned])
    assert [key == ImageKey.FLAT for key in scan.image_key] == [step.kind is StepKind.FLAT for step in planned]
    mean = scan.counts()[:, 0].mean(axis=(1, 2))
    is_flat = scan.image_key == ImageKey.FLAT
    assert mean[is_flat].min() > mean[~is_flat].max(), "a sample takes light away"
    assert len(documents.by_name["event"]) == len(planned) // 2


def test_each_run_has_a_file_of_its_own(instrument: Instrument, calibration: Calibration, tmp_path: Path) -> None:
    rig, first, second = Rig(instrument, PLAN, calibration, tmp_path), Documents(), Documents()
    first.engine(bp.count([rig.camera]))
    second.engine(bp.count([rig.camera]))
    assert first.path.name == "vials_0001.h5"
    assert second.path.name == "vials_0002.h5"


def test_what_fails_fails_the_run_and_leaves_the_beam_off(
    instrument: Instrument, calibration: Calibration, tmp_path: Path
) -> None:
    rig, documents = Rig(instrument, PLAN, calibration, tmp_path), Documents()
    with pytest.raises(FailedStatus):
        documents.engine(bp.list_scan([rig.camera], rig.sample, [OUT, "nothing-of-that-name"]))
    assert documents.by_name["stop"][0]["exit_status"] == "fail"
    assert instrument.detector.auxiliary("BEAM?") == "OFF"
    assert not list(tmp_path.glob("*.partial.h5")), "what was taken is whole, or gone"


def test_nothing_is_taken_without_a_stage(instrument: Instrument, calibration: Calibration, tmp_path: Path) -> None:
    rig = Rig(instrument, PLAN, calibration, tmp_path)
    status = rig.camera.trigger()
    error = status.exception(timeout=10)
    assert isinstance(error, WrongUsage)
    assert status.done
    assert not status.success
    with pytest.raises(WrongUsage, match="a whole number of events"):
        list(tomography(Rig(instrument, PLAN, calibration, tmp_path, frames_per_event=3)))


def test_axes_go_to_the_gantry_in_its_own_units(
    instrument: Instrument, calibration: Calibration, tmp_path: Path
) -> None:
    rig = Rig(instrument, PLAN, calibration, tmp_path)
    assert rig.angle.set(30).exception(timeout=10) is None
    assert instrument.gantry.pose.angle_rad == pytest.approx(math.radians(30))
    assert rig.angle.locate() == {"setpoint": 30.0, "readback": 30.0}
    assert rig.sample.set("nothing-of-that-name").exception(timeout=10) is not None
    assert rig.sample.position == PLAN.scan.sample, "it is where it was"
