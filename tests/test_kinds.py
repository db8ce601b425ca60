"""Kinds of scan on a bench: all that a plan expands to is in the file, each frame with its pose, pass, thresholds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from acquisition.scan import ImageKey
from acquisition.scan_file import read_scan
from acquisition.scan_plan import (
    BurstPlan,
    FlatsPlan,
    FramesPlan,
    HelicalPlan,
    ScanPlan,
    SnapPlan,
    ThresholdScanPlan,
)
from acquisition.steps import StepKind, expand, passes_kev
from calibration.store import Calibration
from firmware_iface.errors import WrongUsage
from tests.scan_bench import Bench, run
from tests.scan_kinds import PASSES_KEV, plan_of

PLANES = (8, 128, 128)
GAIN_DAC_PER_KEV, OFFSET_DAC = 4.0, 10.0
KINDS = [
    SnapPlan(sample="vials"),
    FramesPlan(n_frames=4),
    FlatsPlan(n_flats=3),
    BurstPlan(n_bursts=2, frames_per_view=3, trigger="falling-lvds"),
    ThresholdScanPlan(threshold=3, start_kev=40, stop_kev=60, step_kev=5, n_flats=1, sample="vials"),
    ThresholdScanPlan(start_kev=18, stop_kev=20, frames_per_view=2),
    ScanPlan(n_views=3, frames_per_view=1, n_flats=1, shifts_mm=(-6.0, 6.0), passes_kev=PASSES_KEV[:2]),
    ScanPlan(n_views=3, frames_per_view=2, n_flats=1, shifts_mm=(0.0, 5.0), tile_order="view", flats_every_n_views=2),
    ScanPlan(n_views=2, frames_per_view=1, n_flats=0, passes_kev=PASSES_KEV, pass_order="view"),
    HelicalPlan(length_mm=4, pitch_mm=4, views_per_turn=3, n_flats=1),
]


class Lifting(Bench):
    """A bench whose gantry lifts the sample and shifts the camera too, and tells where they stand."""

    def __init__(self) -> None:
        super().__init__()
        self.stands = {"LIFT": "0", "SHIFT": "0"}

    def auxiliary(self, line: str) -> str:
        command, _, value = line.partition(" ")
        if line.rstrip("?") in self.stands:
            return self.stands[line.rstrip("?")]
        if command in self.stands:
            self.stands[command] = value
        return super().auxiliary(line)


@pytest.fixture
def calibration() -> Calibration:
    return Calibration(
        created="2026-01-01T00:00:00Z",
        software="1",
        device="bench",
        chip_id="W1",
        gain="HGM",
        is_csm=True,
        is_colour=True,
        bias_v=500.0,
        dacs={},
        trim=np.zeros(PLANES, np.uint8),
        is_masked=np.zeros(PLANES, bool),
        pixel_class=np.zeros(PLANES[1:], np.uint16),
        target_dac=15.0,
        edges_before_dac=np.ones(PLANES, np.float32),
        edges_after_dac=np.ones(PLANES, np.float32),
        offset_dac=np.full(8, OFFSET_DAC),
        gain_dac_per_kev=np.full(8, GAIN_DAC_PER_KEV),
        lines=(),
        thresholds_kev=(18.0, 33.0, 50.0, 75.0),
    )


@pytest.mark.parametrize("number", range(len(KINDS)), ids=[f"{scan.kind}-{n}" for n, scan in enumerate(KINDS)])
def test_every_frame_has_its_pose_its_pass_and_its_thresholds(
    tmp_path: Path, calibration: Calibration, number: int
) -> None:
    accumulate = 1 + number % 2
    bench, plan = Lifting(), plan_of(KINDS[number], accumulate=accumulate)
    run(bench, calibration, tmp_path / "scan.h5", plan)
    read = read_scan(tmp_path / "scan.h5")
    planned = [(step, n) for step in expand(plan) for n in range(step.n_frames)]
    poses = [step.pose_of(n) for step, n in planned]
    assert read.plan == plan
    assert read.readout.n_accumulated == accumulate
    assert read.angles_rad.tolist() == [pose.angle_rad for pose in poses]
    assert read.lifts_mm.tolist() == [pose.lift_mm for pose in poses]
    assert read.shifts_mm.tolist() == [pose.shift_mm for pose in poses]
    assert read.passes_kev == pytest.approx(np.array(passes_kev(plan)))
    assert read.passes.tolist() == [step.pass_index for step, _ in planned]
    is_flat = [step.kind is StepKind.FLAT for step, _ in planned]
    assert (read.image_key == ImageKey.FLAT).tolist() == is_flat
    # The bench counts its exposures, so a frame is the sum of those that belong to it.
    exposures = np.arange(len(planned) * accumulate).reshape(-1, accumulate)
    assert read.counts()[:, 0, 0, 0].tolist() == exposures.sum(axis=1).tolist()
    in_beam = [line for _, line in bench.poses]
    assert in_beam == [step.sample or "OUT" for step, _ in planned for _ in range(accumulate)]
    wanted_kev = np.repeat([passes_kev(plan)[step.pass_index] for step, _ in planned], accumulate, axis=0)
    dacs = [[codes[f"Threshold{number}"] for number in (1, 3, 5, 7)] for codes in bench.dacs_of_frames]
    np.testing.assert_allclose(dacs, OFFSET_DAC + GAIN_DAC_PER_KEV * wanted_kev, atol=0.5)


def test_thresholds_that_no_dac_reaches_are_refused_before_anything_moves(
    tmp_path: Path, calibration: Calibration
) -> None:
    bench, plan = Lifting(), plan_of(ThresholdScanPlan(threshold=7, start_kev=100, stop_kev=160, step_kev=10))
    with pytest.raises(WrongUsage, match="pass 4: threshold 7 at 130 keV would be code 530"):
        run(bench, calibration, tmp_path / "scan.h5", plan)
    assert not list(tmp_path.iterdir())
    assert not bench.dacs
    assert not any(line.startswith(("ROT", "LIFT", "SHIFT", "BEAM ON")) for line in bench.lines)
