"""What a scan does, kind by kind: section ``[scan]`` of a plan. Each kind has the keys that it needs, and no others.

The kinds that turn (circular, continuous, helical) can see an object wider than the camera from several of its
positions (`shifts_mm`), and scan it several times with other thresholds (`passes_kev`).

# Ref: the defaults of the circular scan: `acquisition.plan`. Bursts: Merlin manual v0.7, pp. 21-22.

A helix is one turn longer than the sample asks for, half a turn at each end, so that its ends are seen from all sides.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TypeAlias

import msgspec

from acquisition.refusals import refuse_outside, refuse_unlisted, refuse_unspeakable
from firmware_iface.trigger import TriggerStart

TRIGGERS = {
    name.name.lower().replace("_", "-"): name
    for name in (TriggerStart.RISING_TTL, TriggerStart.FALLING_TTL, TriggerStart.RISING_LVDS, TriggerStart.FALLING_LVDS)
}
"""The edges that may start frames, by their names in a plan."""
MOST_FRAMES = 10_000_000
MOST_VIEWS = 100_000
MOST_PASSES = 1000
MOST_STEPS = 1_000_000
"""Of one scan: the views at all positions of the camera and in all passes."""


class Kind(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    """What all kinds of scan have in common."""

    @property
    def kind(self) -> str:
        """The name of the kind in a plan."""
        return str(self.__struct_config__.tag)

    @property
    def held(self) -> str | None:
        """What the sample changer is to hold; None: nothing."""
        return getattr(self, "sample", "") or None

    @property
    def is_endless(self) -> bool:
        """Whether it goes on until someone stops it."""
        return False

    @property
    def is_sweep(self) -> bool:
        """Whether the stage turns while the detector counts."""
        return False


class SnapPlan(Kind, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="snap"):
    """One frame; of the open beam where `sample` is empty."""

    sample: str = ""

    def __post_init__(self) -> None:
        _refuse_sample(self.sample)


class FramesPlan(Kind, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="frames"):
    """Frames of one run, one after the other as fast as they come."""

    sample: str = ""
    n_frames: int = 100

    def __post_init__(self) -> None:
        _refuse_sample(self.sample)
        refuse_outside("n_frames", self.n_frames, 1, MOST_FRAMES)


class LivePlan(Kind, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="live"):
    """Frames without end until someone stops them; they are shown, never written."""

    sample: str = ""

    def __post_init__(self) -> None:
        _refuse_sample(self.sample)

    @property
    def is_endless(self) -> bool:
        """Whether it goes on until someone stops it."""
        return True


class BurstPlan(Kind, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="burst"):
    """Each edge on the trigger input starts a burst of `frames_per_view` frames."""

    sample: str = ""
    n_bursts: int = 10
    frames_per_view: int = 10
    trigger: str = "rising-ttl"

    def __post_init__(self) -> None:
        _refuse_sample(self.sample)
        refuse_outside("n_bursts", self.n_bursts, 1, MOST_VIEWS)
        refuse_outside("frames_per_view", self.frames_per_view, 1, MOST_VIEWS)
        refuse_unlisted("trigger", self.trigger, tuple(TRIGGERS))


class FlatsPlan(Kind, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="flats"):
    """One series of flats."""

    n_flats: int = 56

    def __post_init__(self) -> None:
        refuse_outside("n_flats", self.n_flats, 1, MOST_VIEWS)


class ThresholdScanPlan(Kind, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="threshold-scan"):
    """One threshold, by its number, goes from `start_kev` to `stop_kev`; each position is a pass.

    With "all" the lowest goes, and the others keep their distances from it.
    """

    sample: str = ""
    threshold: int | str = "all"
    start_kev: float = 10.0
    stop_kev: float = 60.0
    step_kev: float = 1.0
    frames_per_view: int = 1
    n_flats: int = 0

    def __post_init__(self) -> None:
        _refuse_sample(self.sample)
        refuse_outside("start_kev", self.start_kev, 1, 200, "keV")
        refuse_outside("stop_kev", self.stop_kev, self.start_kev, 200, "keV, from start_kev on")
        refuse_outside("step_kev", self.step_kev, 0.01, 200, "keV")
        refuse_outside("frames_per_view", self.frames_per_view, 1, MOST_VIEWS)
        refuse_outside("n_flats", self.n_flats, 0, MOST_VIEWS)
        if self.n_positions > MOST_PASSES:
            raise ValueError(
                f"step_kev is {self.step_kev}, which makes {self.n_positions} positions; allowed: up to {MOST_PASSES}"
            )

    @property
    def n_positions(self) -> int:
        """How often the threshold stands still."""
        return math.floor((self.stop_kev - self.start_kev) / self.step_kev + 1e-6) + 1

    @property
    def positions_kev(self) -> tuple[float, ...]:
        """Where it stands, in keV."""
        return tuple(round(self.start_kev + n * self.step_kev, 6) for n in range(self.n_positions))


class Turning(Kind, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all scans around the sample have in common: flats, positions of the camera, passes with other thresholds.

    There is a series of flats before every `flats_every_n_views` views and one at the end, for each position and pass.
    Without `passes_kev` there is one pass, with the thresholds of the detector; with them these are not used.
    Between passes and positions the stage turns back by scanning backwards; with direction "forward" it goes back to
    the beginning first, so that a stage with backlash comes to each view from the same side.
    """

    sample: str = "vials"
    flats_every_n_views: int = 30
    n_flats: int = 56
    shifts_mm: tuple[float, ...] = (0.0,)
    passes_kev: tuple[tuple[float, ...], ...] = ()
    direction: str = "both"

    def __post_init__(self) -> None:
        refuse_unspeakable("sample", self.sample)
        refuse_outside("flats_every_n_views", self.flats_every_n_views, 1, MOST_VIEWS)
        refuse_outside("n_flats", self.n_flats, 0, MOST_VIEWS)
        for shift_mm in self.shifts_mm:
            refuse_outside("shifts_mm", shift_mm, -10_000, 10_000, "mm")
        if not self.shifts_mm or any(left >= right for left, right in pairwise(self.shifts_mm)):
            raise ValueError(f"shifts_mm is {list(self.shifts_mm)}; allowed: one position or more, ascending")
        if len(self.passes_kev) > MOST_PASSES:
            raise ValueError(f"passes_kev has {len(self.passes_kev)} passes; allowed: up to {MOST_PASSES}")
        refuse_unlisted("direction", self.direction, ("both", "forward"))

    @property
    def frames_of_view(self) -> int:
        """How many frames are taken of each view."""
        return getattr(self, "frames_per_view", 1)

    @property
    def period_of_view_s(self) -> float:
        """How long a view of a sweep lasts; 0: as short as may be."""
        return getattr(self, "period_s", 0.0)

    @property
    def is_tile_in_view(self) -> bool:
        """Whether each view is taken from all positions of the camera before the next view."""
        return getattr(self, "tile_order", "tile") == "view"

    @property
    def is_pass_in_view(self) -> bool:
        """Whether each view is taken with the thresholds of all passes before the next view."""
        return getattr(self, "pass_order", "scan") == "view"

    @property
    def views(self) -> int:
        """How many views one pass has at one position of the camera."""
        raise NotImplementedError

    def angle_rad(self, view: float) -> float:
        """Return where a view stands; views between two views are places on the way."""
        raise NotImplementedError

    def lift_mm(self, view: float) -> float:
        """Return how high the sample is lifted for a view."""
        return 0.0 * view


class ScanPlan(Turning, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="circular"):
    """Step and shoot: views at equal angles over an arc, the instrument standing still for each.

    `tile_order` and `pass_order` say whether the whole scan is done at one position ("tile") and in one pass ("scan")
    before the next, or each view at all of them ("view").
    """

    n_views: int = 360
    arc_deg: float = 360.0
    frames_per_view: int = 3
    tile_order: str = "tile"
    pass_order: str = "scan"

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_arc(self.n_views, self.arc_deg)
        refuse_outside("frames_per_view", self.frames_per_view, 1, MOST_VIEWS)
        refuse_unlisted("tile_order", self.tile_order, ("tile", "view"))
        refuse_unlisted("pass_order", self.pass_order, ("scan", "view"))

    @property
    def views(self) -> int:
        """How many views one pass has at one position of the camera."""
        return self.n_views

    def angle_rad(self, view: float) -> float:
        """Return where a view stands."""
        return view * (math.radians(self.arc_deg) / self.n_views)


class ContinuousPlan(Turning, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="continuous"):
    """The stage turns without a stop between two series of flats, and starts a frame at the beginning of each view.

    A view lasts `period_s`; 0 is as fast as exposure and readout allow, with a tenth to spare. `trigger` is the input
    that the stage's pulses come in on.
    """

    n_views: int = 360
    arc_deg: float = 360.0
    flats_every_n_views: int = 360
    period_s: float = 0.0
    trigger: str = "rising-ttl"

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_arc(self.n_views, self.arc_deg)
        _refuse_sweep(self.period_s, self.trigger)

    @property
    def is_sweep(self) -> bool:
        """Whether the stage turns while the detector counts."""
        return True

    @property
    def views(self) -> int:
        """How many views one pass has at one position of the camera."""
        return self.n_views

    def angle_rad(self, view: float) -> float:
        """Return where a view begins."""
        return view * (math.radians(self.arc_deg) / self.n_views)


class HelicalPlan(Turning, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="helical"):
    """The sample climbs by `pitch_mm` in each turn, until `length_mm` of it have been seen from all sides.

    `centre_mm` is the lift at which the middle of the sample is in the beam. `motion` is "step" or "continuous"; only
    the latter has a period and a trigger (see `ContinuousPlan`), and it takes one frame of each view.
    """

    length_mm: float = 30.0
    pitch_mm: float = 8.0
    centre_mm: float = 0.0
    views_per_turn: int = 360
    flats_every_n_views: int = 360
    motion: str = "step"
    frames_per_view: int = 1
    period_s: float = 0.0
    trigger: str = "rising-ttl"

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_outside("length_mm", self.length_mm, 0.001, 10_000, "mm")
        refuse_outside("pitch_mm", self.pitch_mm, 0.001, 1000, "mm a turn")
        refuse_outside("centre_mm", self.centre_mm, -10_000, 10_000, "mm")
        refuse_outside("views_per_turn", self.views_per_turn, 1, MOST_VIEWS)
        refuse_unlisted("motion", self.motion, ("step", "continuous"))
        refuse_outside("frames_per_view", self.frames_per_view, 1, MOST_VIEWS)
        _refuse_sweep(self.period_s, self.trigger)
        if self.is_sweep and self.frames_per_view != 1:
            raise ValueError(f'frames_per_view is {self.frames_per_view}; allowed with motion = "continuous": 1')
        if not self.is_sweep and (self.period_s or self.trigger != "rising-ttl"):
            key = "period_s" if self.period_s else "trigger"
            raise ValueError(f'{key} is {getattr(self, key)!r}; allowed with motion = "continuous" only')

    @property
    def is_sweep(self) -> bool:
        """Whether the stage turns while the detector counts."""
        return self.motion == "continuous"

    @property
    def n_turns(self) -> float:
        """Turns of the helix: those that the sample's length takes, and half a turn before and after."""
        return self.views / self.views_per_turn

    @property
    def views(self) -> int:
        """How many views one pass has at one position of the camera."""
        return math.ceil((self.length_mm / self.pitch_mm + 1) * self.views_per_turn - 1e-6)

    def angle_rad(self, view: float) -> float:
        """Return where a view stands, or begins."""
        return view * (2 * math.pi / self.views_per_turn)

    def lift_mm(self, view: float) -> float:
        """Return how high the sample is lifted for a view; its middle is in the beam halfway."""
        return self.centre_mm + (view - self.views / 2) * self.pitch_mm / self.views_per_turn


AnyScan: TypeAlias = (
    ScanPlan
    | ContinuousPlan
    | HelicalPlan
    | SnapPlan
    | FramesPlan
    | LivePlan
    | BurstPlan
    | FlatsPlan
    | ThresholdScanPlan
)


def beyond_one_circle(scan: AnyScan) -> tuple[str, ...]:
    """Return in words what makes a scan more than a circle around the sample with the axis inside what cameras see."""
    if not isinstance(scan, Turning):
        return (f"a scan of kind {scan.kind!r} has no views around a sample",)
    found = []
    if isinstance(scan, HelicalPlan):
        found.append("the scan is a helix")
    if min(scan.shifts_mm) > 0 or max(scan.shifts_mm) < 0:
        places = ", ".join(f"{shift_mm:g}" for shift_mm in scan.shifts_mm)
        found.append(f"the camera stood on one side of the axis only, at {places} mm")
    return tuple(found)


def _refuse_sample(name: str) -> None:
    if name:
        refuse_unspeakable("sample", name)


def _refuse_arc(n_views: int, arc_deg: float) -> None:
    refuse_outside("n_views", n_views, 1, MOST_VIEWS)
    refuse_outside("arc_deg", arc_deg, 1, 3600, "degrees")


def _refuse_sweep(period_s: float, trigger: str) -> None:
    refuse_outside("period_s", period_s, 0, 3600, "s")
    refuse_unlisted("trigger", trigger, tuple(TRIGGERS))
