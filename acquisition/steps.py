"""What a plan makes the instrument do, step by step, what that costs, and whether it can be done; nothing moves yet.

A plan always gives the same steps in the same order: the place of a step in `expand` is what a broken scan resumes by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from itertools import chain, cycle

from acquisition.limits import UNKNOWN, Limits
from acquisition.plan import Plan, passes_kev
from acquisition.scan import readout_of
from acquisition.scan_plan import BurstPlan, FlatsPlan, FramesPlan, ThresholdScanPlan, Turning
from firmware_iface.chip import COLS, ROWS

__all__ = [
    "AT_ZERO", "Cost", "Pose", "Step", "StepKind", "Tally", "check", "cost", "expand", "frame_s", "iterate",
    "passes_kev", "tally", "unchecked",
]  # fmt: skip

# Ref: time to read one counter: Merlin and Medipix3RX manual v0.7, 820 us for 12 bits over 8 lines.
READOUT_NS_PER_BIT_AND_PIXEL = 820e3 / (12 * ROWS * COLS)
SPARE_SHARE = 0.1
"""Of a view of a sweep: what is left after its frame where the plan does not say how long a view lasts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pose:
    """Where the gantry stands.

    Attributes
    ----------
    angle_rad : float
        Of source and detector around the axis.
    lift_mm : float
        How far the sample has been lifted along the axis.
    shift_mm : float
        How far the camera has been moved along its rows (+u), past the sample that it cannot see at once.
    """

    angle_rad: float = 0.0
    lift_mm: float = 0.0
    shift_mm: float = 0.0


AT_ZERO = Pose()


class StepKind(Enum):
    """What the frames of a step are for."""

    FLAT = "flat"
    PROJECTION = "projection"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One pose of the gantry, or one sweep of it, and one run of the detector meanwhile.

    Attributes
    ----------
    pose : Pose
        For flats that of the view that follows, so that the gantry does not turn for them.
    n_frames : int
        0 goes on until someone stops it.
    exposure_s : float
        Of each exposure; a frame is the sum of `n_accumulated`.
    sample : str or None
        What the sample changer holds in the beam; None: nothing.
    end : Pose or None
        Where a sweep ends; None: the gantry stands. The frames divide the way evenly.
    pass_index : int
        Which pass over the same object this belongs to; each has thresholds of its own (`passes_kev`).
    n_accumulated : int
        Exposures that are summed into each frame.
    exposures_per_trigger : int
        Exposures that each edge on the trigger input starts; 0: the board starts them by itself. In a sweep the stage
        gives the edges: it divides the way evenly among all exposures, and gives one at the beginning of each share.
    sweep_s : float
        How long a sweep takes from `pose` to `end`.
    """

    kind: StepKind
    pose: Pose
    n_frames: int
    exposure_s: float
    sample: str | None
    end: Pose | None = None
    pass_index: int = 0
    n_accumulated: int = 1
    exposures_per_trigger: int = 0
    sweep_s: float = 0.0

    def pose_of(self, place: int) -> Pose:
        """Return where the gantry is in the middle of one of the step's frames."""
        if self.end is None:
            return self.pose
        share = (place + 0.5) / self.n_frames
        return Pose(
            angle_rad=self.pose.angle_rad + share * (self.end.angle_rad - self.pose.angle_rad),
            lift_mm=self.pose.lift_mm + share * (self.end.lift_mm - self.pose.lift_mm),
            shift_mm=self.pose.shift_mm + share * (self.end.shift_mm - self.pose.shift_mm),
        )


def frame_s(plan: Plan) -> float:
    """Return how long the detector takes for one frame: its exposures, each with its readout."""
    detector = plan.detector
    bits = ROWS * COLS * detector.depth_bits * len(detector.counters)
    return detector.accumulate * (detector.exposure_s + bits * READOUT_NS_PER_BIT_AND_PIXEL * 1e-9)


def expand(plan: Plan) -> tuple[Step, ...]:
    """Return every step of the scan in order."""
    return tuple(iterate(plan))


def iterate(plan: Plan) -> Iterator[Step]:
    """Yield every step of the scan in order."""
    scan, detector = plan.scan, plan.detector
    take = partial(Step, exposure_s=detector.exposure_s, n_accumulated=detector.accumulate)
    flat, view = (
        partial(take, kind=StepKind.FLAT, sample=None),
        partial(take, kind=StepKind.PROJECTION, sample=scan.held),
    )
    if isinstance(scan, Turning):
        yield from _around(scan, flat, view, scan.period_of_view_s or frame_s(plan) * (1 + SPARE_SHARE))
    elif isinstance(scan, ThresholdScanPlan):
        for pass_index in range(scan.n_positions):
            if scan.n_flats:
                yield flat(pose=AT_ZERO, n_frames=scan.n_flats, pass_index=pass_index)
            yield view(pose=AT_ZERO, n_frames=scan.frames_per_view, pass_index=pass_index)
    elif isinstance(scan, BurstPlan):
        n_exposures = scan.frames_per_view * detector.accumulate
        yield view(pose=AT_ZERO, n_frames=scan.n_bursts * scan.frames_per_view, exposures_per_trigger=n_exposures)
    elif isinstance(scan, FlatsPlan):
        yield flat(pose=AT_ZERO, n_frames=scan.n_flats)
    elif isinstance(scan, FramesPlan):
        yield view(pose=AT_ZERO, n_frames=scan.n_frames)
    else:
        yield view(pose=AT_ZERO, n_frames=0 if scan.is_endless else 1)


Make = Callable[..., Step]
Station = tuple[int, float]
"""A pass, and where the camera stands, in mm."""


def _runs(scan: Turning) -> Iterator[list[Station]]:
    """Yield the stations of each run over all views: those at which every view is taken before the next."""
    passes, shifts_mm = range(len(scan.passes_kev) or 1), list(scan.shifts_mm)
    is_both = scan.direction == "both"
    if scan.is_pass_in_view:
        of_shift = [
            [(number, shift_mm) for number in (reversed(passes) if is_both and n % 2 else passes)]
            for n, shift_mm in enumerate(shifts_mm)
        ]
        yield from [list(chain.from_iterable(of_shift))] if scan.is_tile_in_view else of_shift
        return
    for number in passes:
        there_mm = shifts_mm[::-1] if is_both and number % 2 else shifts_mm
        if scan.is_tile_in_view:
            yield [(number, shift_mm) for shift_mm in there_mm]
        else:
            yield from ([(number, shift_mm)] for shift_mm in there_mm)


def _around(scan: Turning, flat: Make, view: Make, period_s: float) -> Iterator[Step]:
    """Yield all runs over the views, each beginning where the last one ended unless all go the same way."""
    is_both, step = scan.direction == "both", None
    for n_run, stations in enumerate(_runs(scan)):
        if is_both and step and _is_nearer(step.pose.shift_mm, stations[-1], stations[0]):
            stations.reverse()
        for step in _run(scan, stations, flat, view, period_s, is_backwards=is_both and n_run % 2 == 1):
            yield step


def _is_nearer(shift_mm: float, one: Station, other: Station) -> bool:
    return abs(one[1] - shift_mm) < abs(other[1] - shift_mm)


def _run(
    scan: Turning, stations: Sequence[Station], flat: Make, view: Make, period_s: float, *, is_backwards: bool
) -> Iterator[Step]:
    """Yield one run over all views, or back over them, with flats at all its stations around each block of views."""
    visits = cycle([stations, stations[::-1]] if scan.direction == "both" else [stations])
    # The frames of a step are where its view is; a sweep begins and ends at the edges of its first and last view.
    before, after = (int(is_backwards), int(not is_backwards)) if scan.is_sweep else (0, 0)

    def flats(place: int) -> Iterator[Step]:
        for number, shift_mm in next(visits) if scan.n_flats else ():
            yield flat(pose=_pose(scan, place, shift_mm), n_frames=scan.n_flats, pass_index=number)

    places = range(scan.views)[::-1] if is_backwards else range(scan.views)
    for first in range(0, len(places), scan.flats_every_n_views):
        block = places[first : first + scan.flats_every_n_views]
        yield from flats(block[0] + before)
        if scan.is_sweep:
            ((number, shift_mm),) = stations
            yield view(
                pose=_pose(scan, block[0] + before, shift_mm),
                end=_pose(scan, block[-1] + after, shift_mm),
                n_frames=len(block),
                pass_index=number,
                exposures_per_trigger=1,
                sweep_s=len(block) * period_s,
            )
            continue
        for place in block:
            for number, shift_mm in next(visits):
                yield view(pose=_pose(scan, place, shift_mm), n_frames=scan.frames_of_view, pass_index=number)
    yield from flats(places[-1] + after)


def _pose(scan: Turning, view: int, shift_mm: float) -> Pose:
    return Pose(angle_rad=scan.angle_rad(view), lift_mm=scan.lift_mm(view), shift_mm=shift_mm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What all steps of a scan add up to.

    Attributes
    ----------
    n_frames, n_flat_frames : int
        Flats are among the frames.
    sweep_s : float
        Time spent in sweeps, in which `n_swept_frames` are taken.
    n_moves, n_sample_changes : int
        Moves that end with the instrument at rest, and exchanges of sample and open beam.
    moves_s : float
        What these take, as far as the speeds are known; the axes move together.
    travel, lowest, highest, fastest : Pose
        The way of all moves but sweeps, and how far they and the sweeps reach; the highest speeds of a sweep, per s.
    """

    n_steps: int
    n_frames: int
    n_flat_frames: int
    n_swept_frames: int
    sweep_s: float
    n_moves: int
    n_sample_changes: int
    moves_s: float
    travel: Pose
    lowest: Pose
    highest: Pose
    fastest: Pose


def tally(plan: Plan, limits: Limits = UNKNOWN) -> Tally:
    """Add up all steps of a plan; the instrument begins at zero, with nothing in the beam."""
    each_s = [1 / per_s if per_s else 0.0 for per_s in (getattr(limits, speed) for _, speed, *_ in _AXES)]
    n_steps = n_frames = n_flat_frames = n_swept_frames = n_moves = n_sample_changes = 0
    sweep_s, moves_s, at, sample = 0.0, 0.0, (0.0, 0.0, 0.0), None
    travel, lowest, highest, fastest = ([0.0, 0.0, 0.0] for _ in range(4))
    for step in iterate(plan):
        n_steps += 1
        n_frames += step.n_frames
        n_flat_frames += step.n_frames if step.kind is StepKind.FLAT else 0
        n_sample_changes += step.sample != sample
        sample, there = step.sample, _axes(step.pose)
        if there != at:
            n_moves += 1
            ways = [abs(new - old) for old, new in zip(at, there, strict=True)]
            moves_s += max(way * one_s for way, one_s in zip(ways, each_s, strict=True))
            for axis, new in enumerate(there):
                travel[axis] += ways[axis]
                lowest[axis], highest[axis] = min(lowest[axis], new), max(highest[axis], new)
        at = there
        if step.end is not None:
            n_swept_frames += step.n_frames
            sweep_s += step.sweep_s
            at = _axes(step.end)
            for axis, (old, new) in enumerate(zip(there, at, strict=True)):
                fastest[axis] = max(fastest[axis], abs(new - old) / step.sweep_s)
                lowest[axis], highest[axis] = min(lowest[axis], new), max(highest[axis], new)
    return Tally(
        n_steps=n_steps,
        n_frames=n_frames,
        n_flat_frames=n_flat_frames,
        n_swept_frames=n_swept_frames,
        sweep_s=sweep_s,
        n_moves=n_moves,
        n_sample_changes=n_sample_changes,
        moves_s=moves_s + n_moves * (limits.settle_s or 0.0) + n_sample_changes * (limits.sample_change_s or 0.0),
        travel=_of_axes(travel),
        lowest=_of_axes(lowest),
        highest=_of_axes(highest),
        fastest=_of_axes(fastest),
    )


def _axes(pose: Pose) -> tuple[float, float, float]:
    return pose.angle_rad, pose.lift_mm, pose.shift_mm


def _of_axes(values: Sequence[float]) -> Pose:
    return Pose(angle_rad=values[0], lift_mm=values[1], shift_mm=values[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a plan costs.

    Attributes
    ----------
    n_frames : int
        Frames in the file, flats included; 0 for a scan without end.
    duration_s : float
        Exposures and readouts, sweeps, and those moves whose speed is known.
    moves_s : float
        The part of it for moves, settling and changes of the sample.
    open_s : float
        How long the shutter is open in all.
    size_bytes : int
        Of the counts in the scan file before compression.
    untimed : tuple of str
        What takes a time that nobody knows, and is left out.
    """

    n_frames: int
    duration_s: float
    moves_s: float
    open_s: float
    size_bytes: int
    untimed: tuple[str, ...]


def cost(plan: Plan, limits: Limits = UNKNOWN, total: Tally | None = None) -> Cost:
    """Count the frames, seconds and bytes of a plan, with the moves of an instrument whose speeds are known.

    `total` is the plan's tally under these limits, where it has been made already; so in `check` and `unchecked`.
    """
    total, detector, readout = total or tally(plan, limits), plan.detector, readout_of(plan)
    asked = [(f"the {name}", getattr(total.travel, axis), getattr(limits, speed)) for axis, speed, name, *_ in _AXES]
    asked += [
        ("waiting for triggers", int(isinstance(plan.scan, BurstPlan)), None),
        ("settling", total.n_moves, limits.settle_s),
        ("changing the sample", total.n_sample_changes, limits.sample_change_s),
    ]
    return Cost(
        n_frames=total.n_frames,
        duration_s=(total.n_frames - total.n_swept_frames) * frame_s(plan) + total.sweep_s + total.moves_s,
        moves_s=total.moves_s,
        open_s=total.n_frames * detector.accumulate * detector.exposure_s,
        size_bytes=total.n_frames * math.prod(readout.shape) * readout.dtype.itemsize,
        untimed=tuple(name for name, amount, known in asked if amount and known is None),
    )


def check(plan: Plan, limits: Limits = UNKNOWN, total: Tally | None = None) -> list[str]:
    """Return in words all that the instrument cannot do of a plan; nothing where it can do all, or nobody knows."""
    total = total or tally(plan)
    return [*_check_stage(total, limits), *_check_tube(plan, limits), *_check_rate(plan, total)]


def unchecked(plan: Plan, limits: Limits = UNKNOWN, total: Tally | None = None) -> tuple[str, ...]:
    """Return what of a plan `check` cannot judge, because nobody knows the instrument's limit."""
    total = total or tally(plan)
    asked: list[tuple[str, object]] = []
    for axis, speed, name, *_ in _AXES:
        if getattr(total.highest, axis) > getattr(total.lowest, axis):
            asked.append((f"the range of the {name}", getattr(limits, axis)))
        if getattr(total.fastest, axis):
            asked.append((f"the speed of the {name}", getattr(limits, speed)))
    asked += [
        ("the tube's voltage", limits.kvp),
        ("the tube's current", limits.current_ma),
        ("the tube's power", limits.power_w),
    ]
    return tuple(name for name, limit in asked if limit is None)


_AXES = (
    ("angle_rad", "speed_rad_s", "turn", "degrees", math.degrees(1)),
    ("lift_mm", "lift_speed_mm_s", "lift", "mm", 1.0),
    ("shift_mm", "shift_speed_mm_s", "camera's shift", "mm", 1.0),
)
"""Field of a pose and of its limits, field of the limits' speed, name, unit for people, how many of these in ours."""
_CLOSE = 1e-9


def _check_stage(total: Tally, limits: Limits) -> Iterator[str]:
    for axis, speed, name, unit, each in _AXES:
        allowed, top_per_s = getattr(limits, axis), getattr(limits, speed)
        lowest, highest = getattr(total.lowest, axis), getattr(total.highest, axis)
        if allowed and (lowest < allowed[0] - _CLOSE or highest > allowed[1] + _CLOSE):
            yield (
                f"the {name} goes from {lowest * each:.6g} to {highest * each:.6g} {unit}; "
                f"allowed by the stage: {allowed[0] * each:.6g} to {allowed[1] * each:.6g}"
            )
        fastest_per_s = getattr(total.fastest, axis)
        if top_per_s is not None and fastest_per_s > top_per_s * (1 + _CLOSE):
            yield (
                f"the {name} sweeps at {fastest_per_s * each:.4g} {unit}/s; allowed by the stage: up to "
                f"{top_per_s * each:.4g}, which more views or a longer scan.period_s would keep"
            )


def _check_tube(plan: Plan, limits: Limits) -> Iterator[str]:
    kvp, current_ma = plan.source.kvp, plan.source.current_ma
    for name, value, allowed, unit in (
        ("source.kvp", kvp, limits.kvp, "kVp"),
        ("source.current_ma", current_ma, limits.current_ma, "mA"),
        ("the tube's power", kvp * current_ma, None if limits.power_w is None else (0.0, limits.power_w), "W"),
    ):
        if allowed and not allowed[0] <= value <= allowed[1]:
            yield f"{name} is {value:g}; allowed by the tube: {allowed[0]:g} to {allowed[1]:g} {unit}"


def _check_rate(plan: Plan, total: Tally) -> Iterator[str]:
    period_s = total.sweep_s / total.n_swept_frames if total.n_swept_frames else math.inf
    if period_s < frame_s(plan):
        yield (
            f"scan.period_s is {period_s:g}; allowed: {frame_s(plan):.6g} or more, for {plan.detector.accumulate} x "
            f"{plan.detector.exposure_s:g} s and the readout"
        )
