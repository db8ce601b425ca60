"""What a plan makes the instrument do, step by step, and what that costs; nothing moves yet.

# Ref: time to read one counter: Merlin and Medipix3RX manual v0.7, 820 us for 12 bits over 8 lines.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from acquisition.plan import Plan
from firmware_iface.chip import COLS, ROWS

READOUT_NS_PER_BIT_AND_PIXEL = 820e3 / (12 * ROWS * COLS)


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
    end : Pose or None
        Where a sweep ends; None: the gantry stands. The frames divide the way evenly.
    sample : str or None
        What the sample changer holds in the beam; None: nothing.
    pass_index : int
        Which pass over the same object this belongs to; each has thresholds of its own (`passes_kev`).
    n_accumulated : int
        Exposures that are summed into each frame.
    """

    kind: StepKind
    pose: Pose
    n_frames: int
    exposure_s: float
    sample: str | None
    end: Pose | None = None
    pass_index: int = 0
    n_accumulated: int = 1

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a plan costs, without the moves: how long these take only the gantry knows.

    Attributes
    ----------
    n_frames : int
        Frames in the file, flats included.
    duration_s : float
        Exposures and readouts.
    size_bytes : int
        Of the counts in the scan file before compression, at 2 bytes a count.
    """

    n_frames: int
    duration_s: float
    size_bytes: int


def passes_kev(plan: Plan) -> tuple[tuple[float, ...], ...]:
    """Return the thresholds of each pass over the object, in keV."""
    return (plan.detector.thresholds_kev,)


def cost(plan: Plan) -> Cost:
    """Count the frames, seconds and bytes of a plan."""
    detector = plan.detector
    n_frames = sum(step.n_frames for step in expand(plan))
    bits = ROWS * COLS * detector.depth_bits * len(detector.counters)
    return Cost(
        n_frames=n_frames,
        duration_s=n_frames * (detector.exposure_s + bits * READOUT_NS_PER_BIT_AND_PIXEL * 1e-9),
        size_bytes=2 * n_frames * len(detector.thresholds) * plan.geometry.rows * plan.geometry.cols,
    )


def expand(plan: Plan) -> tuple[Step, ...]:
    """Return every step of the scan in order."""
    return tuple(_steps(plan))


def _steps(plan: Plan) -> Iterator[Step]:
    scan, exposure_s = plan.scan, plan.detector.exposure_s
    step_rad = math.radians(scan.arc_deg) / scan.n_views

    def flats(pose: Pose) -> Iterator[Step]:
        if scan.n_flats:
            yield Step(kind=StepKind.FLAT, pose=pose, n_frames=scan.n_flats, exposure_s=exposure_s, sample=None)

    for view in range(scan.n_views):
        pose = Pose(angle_rad=view * step_rad)
        if view % scan.flats_every_n_views == 0:
            yield from flats(pose)
        yield Step(
            kind=StepKind.PROJECTION,
            pose=pose,
            n_frames=scan.frames_per_view,
            exposure_s=exposure_s,
            sample=scan.sample,
        )
    yield from flats(Pose(angle_rad=(scan.n_views - 1) * step_rad))


def describe(plan: Plan) -> str:
    """Tell in a few lines what the plan will do, how long it takes and how much it writes."""
    detector, scan, geometry, costs = plan.detector, plan.scan, plan.geometry, cost(plan)
    n_flat_frames = sum(step.n_frames for step in expand(plan) if step.kind is StepKind.FLAT)
    thresholds = ", ".join(f"{energy:g}" for energy in detector.thresholds_kev)
    minutes, seconds = divmod(round(costs.duration_s), 60)
    return "\n".join(
        (
            f"sample    {scan.sample}, {plan.source.kvp:g} kVp, {plan.source.current_ma * 1000:g} uA",
            f"detector  {detector.mode}, {detector.gain}, {detector.depth_bits} bits, thresholds {thresholds} keV",
            f"geometry  {geometry.rows} x {geometry.cols} pixels of {geometry.pitch_mm:g} mm, "
            f"magnification {geometry.magnification:.3g}",
            f"scan      {scan.n_views} views over {scan.arc_deg:g} degrees, {scan.frames_per_view} frames a view, "
            f"{n_flat_frames} flats",
            f"total     {costs.n_frames} frames of {detector.exposure_s:g} s, {minutes} min {seconds:02d} s "
            f"without moves, {costs.size_bytes / 1e6:.0f} MB before compression",
        )
    )
