"""Steps as frames: sweeps by pulses, thresholds of passes, sums of exposures, and a step that is whole or is not."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from acquisition.calibrate.exposures import operating_dacs
from acquisition.plan import DetectorPlan, Plan, passes_kev
from acquisition.scan_file import read_scan
from acquisition.scan_plan import BurstPlan, ContinuousPlan, ScanPlan
from acquisition.stepping import Stepper
from acquisition.steps import Pose, Step, StepKind, expand
from calibration.store import Calibration
from firmware_iface.errors import DetectorError, MpxctError
from firmware_iface.frame import Frame, Lost
from firmware_iface.trigger import TriggerStart
from tests.rough_calibration import rough_calibration
from tests.scan_bench import PLAN, Bench, run

SWEEP = Plan(scan=ContinuousPlan(n_views=8, n_flats=1, flats_every_n_views=8))


@pytest.fixture
def calibration() -> Calibration:
    return rough_calibration(PLAN, chip_id="W1")


class Swept(Bench):
    """A board whose frames wait for the pulses of a stage; some pulses come while it cannot take them."""

    def __init__(self, *, misses: frozenset[int] = frozenset(), stuck: bool = False, n_given: int = 1000) -> None:
        super().__init__()
        self.misses, self.is_stuck, self.n_given = misses, stuck, n_given
        self.pulses = threading.Event()
        self.sweeps: list[tuple[Pose, Pose, int, float]] = []
        self.moves: list[Pose] = []

    def frames(self, n_frames: int, exposure_s: float) -> Iterator[Frame | Lost]:
        if self.trigger is None or self.trigger.start is TriggerStart.INTERNAL:
            yield from super().frames(n_frames, exposure_s)
            return
        self.stopping.clear()
        self.board_state = "ARMED"
        while not self.pulses.wait(0.01):
            if self.stopping.is_set():
                return
        self.board_state = "ACQUIRING"
        sequence, has_missed = 0, False
        for pulse in range(min(n_frames, self.n_given)):
            if pulse in self.misses:
                has_missed = True
                continue
            yield Frame(
                counts=np.full((4, 128, 128), pulse, np.uint16),
                thresholds=(1, 3, 5, 7),
                sequence=sequence,
                timestamp_ns=round(pulse * self.period_ns),
                exposure_ns=round(exposure_s * 1e9),
                run_id=1,
                missed_trigger=has_missed,
            )
            sequence, has_missed = sequence + 1, False
        if sequence < n_frames:
            self.stopping.wait(20)

    # The stage

    def sweep(self, start: Pose, end: Pose, n_positions: int, duration_s: float) -> None:
        if self.is_stuck:
            raise MpxctError("the stage does not turn")
        self.sweeps.append((start, end, n_positions, duration_s))
        self.period_ns = duration_s / n_positions * 1e9
        self.pulses.set()

    def wait(self) -> None:
        pass

    def move_to(self, pose: Pose) -> None:
        self.moves.append(pose)

    def select_sample(self, name: str | None) -> None:
        pass

    @property
    def held(self) -> Any:
        return SimpleNamespace(detector=self, gantry=self)


def taken(bench: Swept, calibration: Calibration, plan: Plan) -> list[tuple[Step, int, Frame | Lost]]:
    stepper = Stepper(bench.held, plan, calibration)
    return [(step, place, item) for (step, place), item in stepper.frames(expand(plan))]


def test_a_sweep_gives_a_frame_for_each_pulse_at_the_middle_of_its_share(calibration: Calibration) -> None:
    bench = Swept()
    items = [each for each in taken(bench, calibration, SWEEP) if each[0].end is not None]
    ((begin, end, n_positions, duration_s),) = bench.sweeps
    assert (begin.angle_rad, end.angle_rad, n_positions) == (0.0, pytest.approx(2 * math.pi), 8)
    assert duration_s == items[0][0].sweep_s
    assert [int(item.counts[0, 0, 0]) for _, _, item in items if isinstance(item, Frame)] == list(range(8))
    angles_deg = [math.degrees(step.pose_of(place).angle_rad) for step, place, _ in items]
    assert angles_deg == pytest.approx([22.5 + 45 * n for n in range(8)])
    assert bench.trigger.start is TriggerStart.INTERNAL, "as it was before"


def test_frames_behind_a_missed_pulse_keep_their_angles(calibration: Calibration) -> None:
    bench = Swept(misses=frozenset({2, 3, 6}))
    items = [each for each in taken(bench, calibration, SWEEP) if each[0].end is not None]
    places: dict[int, int] = {}
    lost: list[int] = []
    for _, place, item in items:
        if isinstance(item, Frame):
            places[int(item.counts[0, 0, 0])] = place
        else:
            lost += range(place, place + item.n_frames)
    assert places == {pulse: pulse for pulse in (0, 1, 4, 5, 7)}
    assert lost == [2, 3, 6]


def test_pulses_that_do_not_come_are_lost_frames_and_no_hang(calibration: Calibration) -> None:
    bench = Swept(n_given=5)
    plan = msgspec.structs.replace(SWEEP, detector=DetectorPlan(exposure_s=0.01))
    items = [each for each in taken(bench, calibration, plan) if each[0].end is not None]
    assert [isinstance(item, Frame) for _, _, item in items] == [True] * 5 + [False]
    last = items[-1][2]
    assert isinstance(last, Lost)
    assert last.n_frames == 3


def test_a_stage_that_does_not_sweep_breaks_the_step(calibration: Calibration) -> None:
    with pytest.raises(MpxctError, match="does not turn"):
        taken(Swept(stuck=True), calibration, SWEEP)


def test_bursts_wait_for_edges_from_outside(calibration: Calibration) -> None:
    bench = Swept()
    bench.period_ns = 1.0
    bench.pulses.set()
    plan = Plan(scan=BurstPlan(n_bursts=3, frames_per_view=2, trigger="falling-lvds"))
    seen: list[Any] = []
    set_trigger = bench.set_trigger
    bench.set_trigger = lambda trigger: (seen.append(trigger), set_trigger(trigger))  # type: ignore[method-assign]
    assert len(taken(bench, calibration, plan)) == 6
    assert (seen[0].start, seen[0].frames_per_trigger) == (TriggerStart.FALLING_LVDS, 2)


def test_each_pass_has_its_thresholds(tmp_path: Path, calibration: Calibration) -> None:
    low, high = (18.0, 33.0, 50.0, 75.0), (20.0, 35.0, 52.0, 77.0)
    scan = ScanPlan(n_views=3, frames_per_view=1, flats_every_n_views=3, n_flats=1, passes_kev=(low, high))
    plan = Plan(scan=scan)
    bench = Bench()
    run(bench, calibration, tmp_path / "scan.h5", plan)
    wanted = [operating_dacs(calibration, plan, passes_kev(plan)[step.pass_index]) for step in expand(plan)]
    assert len({dacs["Threshold1"] for dacs in wanted}) == 2
    for dacs, codes in zip(bench.dacs_of_frames, wanted, strict=True):
        assert {name: dacs[name] for name in codes} == codes


def test_exposures_are_summed_and_one_that_is_lost_loses_its_frame(tmp_path: Path, calibration: Calibration) -> None:
    plan = msgspec.structs.replace(PLAN, detector=DetectorPlan(accumulate=3))
    bench = Bench(lose=frozenset({7}))
    summary = run(bench, calibration, tmp_path / "scan.h5", plan)
    assert (summary.n_frames, summary.n_lost, bench.n_done) == (12, 1, 36)
    scan = read_scan(tmp_path / "scan.h5")
    sums = [sum(range(3 * n, 3 * n + 3)) for n in range(12)]
    counts = scan.counts()[:, 0, 0, 0].tolist()
    assert [count for n, count in enumerate(counts) if n != 2] == [total for n, total in enumerate(sums) if n != 2]
    assert scan.exposures_s[0] == pytest.approx(3.0)
    assert np.isnan(scan.exposures_s[2])


def test_a_step_is_whole_only_if_the_beam_held(calibration: Calibration) -> None:
    bench = Bench()
    n_asked = 0

    def check_beam() -> None:
        nonlocal n_asked
        n_asked += 1
        if n_asked == 2:
            raise DetectorError("the tube tripped")

    stepper = Stepper(bench.instrument, PLAN, calibration, check_beam=check_beam)
    seen: list[tuple[StepKind, int]] = []

    def take() -> None:
        seen.extend((step.kind, place) for (step, place), _ in stepper.frames(expand(PLAN)))

    with pytest.raises(DetectorError, match="tripped"):
        take()
    assert seen == [(StepKind.FLAT, 0), (StepKind.FLAT, 1)], "of the first view nothing came: its beam did not hold"


def test_what_is_there_already_is_left_alone(calibration: Calibration) -> None:
    bench = Bench()
    list(Stepper(bench.instrument, PLAN, calibration).frames(expand(PLAN)))
    moves = [line for line in bench.lines if line.startswith("ROT ")]
    changes = [line for line in bench.lines if line.startswith("SAMP ")]
    assert len(moves) == 6, "flats are taken where the next view will be, or the last was"
    assert changes == ["SAMP OUT", "SAMP vials"] * 2 + ["SAMP OUT"]
