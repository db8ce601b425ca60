"""Steps: every view once per pass and place of the camera, between flats of its own, on the shortest way."""

from __future__ import annotations

import math
from collections import Counter
from itertools import islice, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acquisition.limits import ENDLESS, Limits
from acquisition.plan import DetectorPlan, Plan, SourcePlan, passes_kev
from acquisition.scan_plan import (
    BurstPlan,
    ContinuousPlan,
    FramesPlan,
    HelicalPlan,
    LivePlan,
    ScanPlan,
    SnapPlan,
    ThresholdScanPlan,
    Turning,
)
from acquisition.steps import Pose, Step, StepKind, check, cost, expand, frame_s, iterate, tally, unchecked
from tests.scan_kinds import all_scans, circular, helical_sweeps, plan_of, still_scans, turning_scans

READOUT_S = 820e-6  # Merlin manual v0.7: one counter of 12 bits
Place = tuple[int, float]


def place_of(step: Step) -> Place:
    return step.pass_index, step.pose.shift_mm


def projections(steps: tuple[Step, ...]) -> list[Step]:
    return [step for step in steps if step.kind is StepKind.PROJECTION]


def places_of(scan: Turning) -> set[Place]:
    return {(number, shift_mm) for number in range(len(scan.passes_kev) or 1) for shift_mm in scan.shifts_mm}


def way(steps: tuple[Step, ...], axis: str) -> float:
    """How far an axis goes from the first step's beginning to the last one's end."""
    poses = [pose for step in steps for pose in (step.pose, step.end) if pose is not None]
    return sum(abs(getattr(new, axis) - getattr(old, axis)) for old, new in pairwise(poses))


@given(turning_scans)
@settings(max_examples=80, deadline=None)
def test_every_view_is_taken_once_per_pass_and_place(scan: Turning) -> None:
    steps = projections(expand(plan_of(scan)))
    half = 0.5 if scan.is_sweep else 0.0  # a sweep's frame is in the middle of its view
    found = Counter(
        (place_of(step), round(step.pose_of(n).angle_rad, 9), round(step.pose_of(n).lift_mm, 9))
        for step in steps
        for n in range(step.n_frames)
    )
    wanted = {
        (place, round(scan.angle_rad(view + half), 9), round(scan.lift_mm(view + half), 9)): scan.frames_of_view
        for place in places_of(scan)
        for view in range(scan.views)
    }
    assert found == wanted
    assert all(step.sample == scan.sample for step in steps)


@given(turning_scans)
@settings(max_examples=80, deadline=None)
def test_flats_of_its_own_stand_around_every_stretch_of_views(scan: Turning) -> None:
    steps = expand(plan_of(scan))
    flats = [step for step in steps if step.kind is StepKind.FLAT]
    assert all(step.sample is None and step.n_frames == scan.n_flats for step in flats)
    for place in places_of(scan):
        own = [step for step in steps if place_of(step) == place]
        if not scan.n_flats:
            assert StepKind.FLAT not in {step.kind for step in own}
            continue
        assert own[0].kind is own[-1].kind is StepKind.FLAT
        n_views = 0
        for step in own:
            n_views = 0 if step.kind is StepKind.FLAT else n_views + (step.n_frames if scan.is_sweep else 1)
            assert n_views <= scan.flats_every_n_views
        assert sum(step.kind is StepKind.FLAT for step in own) == math.ceil(scan.views / scan.flats_every_n_views) + 1


@given(turning_scans)
@settings(max_examples=60, deadline=None)
def test_nothing_turns_or_climbs_for_flats(scan: Turning) -> None:
    steps = expand(plan_of(scan))
    views_only = way(tuple(projections(steps)), "angle_rad"), way(tuple(projections(steps)), "lift_mm")
    assert (way(steps, "angle_rad"), way(steps, "lift_mm")) == pytest.approx(views_only, abs=1e-9)


@given(turning_scans.filter(lambda scan: scan.direction == "both"))
@settings(max_examples=80, deadline=None)
def test_no_order_of_the_steps_is_shorter(scan: Turning) -> None:
    steps = expand(plan_of(scan))
    n_places, n_passes = len(scan.shifts_mm), len(scan.passes_kev) or 1
    n_runs = (1 if scan.is_tile_in_view else n_places) * (1 if scan.is_pass_in_view else n_passes)
    last = scan.views if scan.is_sweep else scan.views - 1
    turned_rad = abs(scan.angle_rad(last) - scan.angle_rad(0))
    assert way(steps, "angle_rad") == pytest.approx(n_runs * turned_rad, abs=1e-9)
    # The camera crosses all its places once for each thing that is done at all of them, and never otherwise.
    n_series = (math.ceil(scan.views / scan.flats_every_n_views) + 1) if scan.n_flats else 0
    n_crossings = n_runs * (scan.views + n_series) if scan.is_tile_in_view else 1 if scan.is_pass_in_view else n_passes
    assert way(steps, "shift_mm") == pytest.approx(n_crossings * (scan.shifts_mm[-1] - scan.shifts_mm[0]), abs=1e-9)


@given(turning_scans.filter(lambda scan: scan.direction == "forward"))
@settings(max_examples=60, deadline=None)
def test_forward_comes_to_each_view_from_the_same_side(scan: Turning) -> None:
    steps = projections(expand(plan_of(scan)))
    for place in places_of(scan):
        angles_rad = [step.pose.angle_rad for step in steps if place_of(step) == place]
        assert angles_rad == sorted(angles_rad)
    assert all(step.end.angle_rad > step.pose.angle_rad for step in steps if step.end)


@given(all_scans, st.integers(1, 3), st.integers(0, 50))
@settings(max_examples=80, deadline=None)
def test_frames_add_up_and_a_steps_place_is_stable(scan: object, accumulate: int, n_steps: int) -> None:
    plan = plan_of(scan, accumulate=accumulate)
    steps = expand(plan)
    assert sum(step.n_frames for step in steps) == cost(plan).n_frames
    assert all(step.n_accumulated == accumulate for step in steps)
    assert tuple(islice(iterate(plan), n_steps)) == steps[:n_steps] == expand(plan)[:n_steps]
    standing_s = sum(step.n_frames * accumulate * (1.0 + READOUT_S) for step in steps if step.end is None)
    assert cost(plan).duration_s == pytest.approx(standing_s + sum(step.sweep_s for step in steps))
    assert cost(plan).open_s == pytest.approx(cost(plan).n_frames * accumulate)


@given(all_scans)
@settings(max_examples=60, deadline=None)
def test_passes_have_thresholds_and_steps(scan: object) -> None:
    plan = plan_of(scan)
    passes = passes_kev(plan)
    assert all(len(energies_kev) == 4 for energies_kev in passes)
    assert {step.pass_index for step in expand(plan)} == set(range(len(passes)))


@given(helical_sweeps)
@settings(max_examples=60, deadline=None)
def test_sweeps_of_a_helix_go_on_where_the_last_one_stood(scan: HelicalPlan) -> None:
    for place in places_of(scan):
        sweeps = [step for step in projections(expand(plan_of(scan))) if place_of(step) == place]
        assert all(before.end == after.pose for before, after in pairwise(sweeps))
        ends = [sweeps[0].pose.lift_mm, sweeps[-1].end.lift_mm]  # type: ignore[union-attr]
        assert sum(ends) / 2 == pytest.approx(scan.centre_mm, abs=1e-9)
        # Whatever is within the sample's length is climbed past, with half a turn to spare at either end.
        climbed_mm = abs(ends[1] - ends[0])
        assert scan.length_mm + scan.pitch_mm <= climbed_mm + 1e-6
        assert climbed_mm < scan.length_mm + scan.pitch_mm * (1 + 1 / scan.views_per_turn) + 1e-6


def test_a_sweep_takes_as_long_as_its_frames() -> None:
    (_, sweep, _) = expand(Plan(scan=ContinuousPlan(n_views=90, period_s=2.0)))
    assert (sweep.n_frames, sweep.sweep_s, sweep.exposures_per_trigger) == (90, 180.0, 1)
    (_, sweep, _) = expand(plan_of(ContinuousPlan(n_views=90), accumulate=3))
    assert sweep.sweep_s == pytest.approx(90 * 3 * (1.0 + READOUT_S) * 1.1)


def test_a_flat_series_breaks_a_sweep() -> None:
    steps = expand(Plan(scan=ContinuousPlan(n_views=100, flats_every_n_views=40, n_flats=1)))
    assert [step.n_frames for step in steps] == [1, 40, 1, 40, 1, 20, 1]
    assert steps[-1].pose.angle_rad == pytest.approx(2 * math.pi)


@pytest.mark.parametrize(
    ("scan", "n_frames", "per_trigger"),
    [(SnapPlan(), 1, 0), (FramesPlan(n_frames=7), 7, 0), (LivePlan(), 0, 0), (BurstPlan(n_bursts=3), 30, 20)],
)
def test_scans_that_do_not_move_are_one_run(scan: object, n_frames: int, per_trigger: int) -> None:
    (step,) = expand(plan_of(scan, accumulate=2))
    assert (step.n_frames, step.exposures_per_trigger, step.pose) == (n_frames, per_trigger, Pose())


@given(still_scans)
@settings(max_examples=50, deadline=None)
def test_scans_that_do_not_turn_do_not_move(scan: object) -> None:
    total = tally(plan_of(scan))
    assert total.travel == total.lowest == total.highest == Pose()


def test_threshold_scan_moves_one_threshold_or_all() -> None:
    one = plan_of(ThresholdScanPlan(threshold=3, start_kev=20, stop_kev=22, step_kev=0.5))
    assert passes_kev(one) == tuple((18.0, energy_kev, 50.0, 75.0) for energy_kev in (20.0, 20.5, 21.0, 21.5, 22.0))
    both = plan_of(ThresholdScanPlan(start_kev=20, stop_kev=21.9, step_kev=1, n_flats=2))
    assert passes_kev(both) == ((20.0, 35.0, 52.0, 77.0), (21.0, 36.0, 53.0, 78.0))
    kinds = [(step.kind.value, step.pass_index) for step in expand(both)]
    assert kinds == [("flat", 0), ("projection", 0), ("flat", 1), ("projection", 1)]


def test_many_views_expand_and_the_first_steps_come_at_once() -> None:
    plan = Plan(scan=ScanPlan(n_views=100_000, n_flats=0))
    assert len(expand(plan)) == 100_000
    longest = plan_of(HelicalPlan(length_mm=999, pitch_mm=1, views_per_turn=1000))
    assert next(iterate(longest)).kind is StepKind.FLAT  # of a million


KNOWN = Limits(
    angle_rad=ENDLESS,
    lift_mm=(-20.0, 20.0),
    shift_mm=(-60.0, 60.0),
    speed_rad_s=0.1,
    lift_speed_mm_s=1.0,
    shift_speed_mm_s=2.0,
    settle_s=0.5,
    sample_change_s=3.0,
    kvp=(20.0, 120.0),
    current_ma=(0.0, 1.0),
    power_w=10.0,
)


def test_moves_take_their_time_as_worked_out_by_hand() -> None:
    scan = ScanPlan(n_views=2, frames_per_view=1, n_flats=1, flats_every_n_views=2, shifts_mm=(-6.0, 6.0))
    costs = cost(plan_of(scan), KNOWN)
    # To -6 (3 s), half a turn, across to +6 (6 s), half a turn back: 4 moves. The sample comes and goes, twice.
    assert costs.moves_s == pytest.approx(3 + 6 + 2 * math.pi / 0.1 + 4 * 0.5 + 4 * 3.0)
    assert costs.untimed == ()
    assert costs.duration_s == pytest.approx(costs.moves_s + 8 * (1 + READOUT_S))


def test_axes_move_together() -> None:
    scan = HelicalPlan(length_mm=8, pitch_mm=8, views_per_turn=4, n_flats=0)
    total = tally(plan_of(scan), KNOWN)
    # 7 moves of a quarter turn, for 2 mm of lift each takes less time; and one of 8 mm down to the beginning.
    assert total.moves_s == pytest.approx(7 * math.pi / 2 / 0.1 + 8 + 8 * 0.5 + 3.0)


@pytest.mark.parametrize(
    ("limits", "missing"),
    [
        (Limits(), ["turn", "settling", "changing the sample"]),
        (Limits(speed_rad_s=1.0), ["settling", "changing the sample"]),
        (Limits(speed_rad_s=1.0, settle_s=0.0, sample_change_s=0.0), []),
    ],
)
def test_what_nobody_can_time_is_named(limits: Limits, missing: list[str]) -> None:
    untimed = cost(Plan(), limits).untimed
    assert len(untimed) == len(missing)
    assert all(name in told for name, told in zip(missing, untimed, strict=True))


@given(circular)
@settings(max_examples=40, deadline=None)
def test_a_plan_within_all_limits_is_checked_and_found_right(scan: ScanPlan) -> None:
    assert check(plan_of(scan), KNOWN) == []
    assert unchecked(plan_of(scan), KNOWN) == ()
    assert check(plan_of(scan)) == []


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({"angle_rad": (-0.1, 6.0)}, ("turn", "0 to 1710 degrees", "-5.72958 to 343.775")),
        ({"lift_mm": (-18.0, 20.0)}, ("lift", "-19", "-18 to 20")),
        ({"shift_mm": (-5.0, 15.0)}, ("shift", "-6 to 6", "-5 to 15")),
        ({"speed_rad_s": 0.01}, ("turn", "0.9083 degrees/s", "0.573")),
        ({"lift_speed_mm_s": 0.01}, ("lift", "0.02019 mm/s", "0.01")),
        ({"kvp": (20.0, 100.0)}, ("source.kvp", "118", "20 to 100 kVp")),
        ({"current_ma": (0.01, 1.0)}, ("source.current_ma", "0.006", "0.01 to 1 mA")),
        ({"power_w": 0.5}, ("power", "0.708", "0 to 0.5 W")),
    ],
)
def test_each_limit_that_is_passed_is_told_with_what_is_allowed(limits: dict, told: tuple[str, ...]) -> None:
    plan = plan_of(HelicalPlan(motion="continuous", shifts_mm=(-6.0, 6.0)))
    assert check(plan, KNOWN) == []
    (text,) = check(plan, Limits(**limits).or_else(KNOWN))
    for part in told:
        assert part in text


def test_pulses_closer_than_exposure_and_readout_are_told_whatever_the_instrument() -> None:
    plan = Plan(detector=DetectorPlan(exposure_s=0.5, accumulate=2), scan=ContinuousPlan(period_s=1.0))
    (text,) = check(plan)
    for part in ("scan.period_s is 1", f"{frame_s(plan):.6g}", "2 x 0.5 s"):
        assert part in text
    assert check(Plan(detector=DetectorPlan(exposure_s=0.5), scan=ContinuousPlan(period_s=0.51))) == []


def test_only_what_a_plan_asks_for_is_told_as_unchecked() -> None:
    tube = {"the tube's voltage", "the tube's current", "the tube's power"}
    assert set(unchecked(Plan(scan=SnapPlan()))) == tube
    assert set(unchecked(Plan())) == tube | {"the range of the turn"}
    sweep = Plan(scan=HelicalPlan(motion="continuous", shifts_mm=(-6.0, 6.0)), source=SourcePlan(kvp=100))
    assert {"the range of the lift", "the speed of the lift", "the range of the camera's shift"} < set(unchecked(sweep))
    assert "the speed of the camera's shift" not in unchecked(sweep)
