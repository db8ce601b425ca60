"""What a scan has shown so far: rows of the detector over the views, the newest picture, the pace, what was lost.

The run's thread puts frames in, a few microseconds each; the window and the preview look at copies. Of each frame only
a band of rows around the source's plane is kept.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from acquisition.plan import Plan, passes_kev
from acquisition.scan_plan import HelicalPlan, Turning
from acquisition.steps import Step, StepKind, cost
from calibration.geometry import Geometry
from firmware_iface.frame import Frame, Lost

BAND_ROWS = 5
"""Rows that are averaged into one row of the sinogram."""
PACE_FRAMES = 50
"""The pace is that of the newest frames, for exposures and moves may change on the way."""
FEWEST_OPEN_COUNTS = 0.5
MOST_VIEWS = 2000
"""Of the sinogram; views of a finer scan are averaged with their neighbours."""


@dataclass(slots=True, eq=False)
class _View:
    """The frames of a view, or of neighbouring ones, summed: (n_counters, cols)."""

    band: NDArray[np.float32] | float = 0.0
    n_frames: int = 0
    angle_rad: float = 0.0
    """Of the newest."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """The band of rows of the views so far, of one threshold, first pass and first place of the camera.

    Attributes
    ----------
    line_integrals : (n_views, cols) float32
        NaN where a frame was lost, or no flats are there yet.
    angles_rad : (n_views,) float64
        As the frames came; frames of one view are averaged.
    is_lost : (n_views,) bool
        Where no frame of a view arrived.
    n_flats : int
        Frames that they were divided by.
    """

    line_integrals: NDArray[np.float32]
    angles_rad: NDArray[np.float64]
    is_lost: NDArray[np.bool_]
    shift_mm: float
    n_flats: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How far a run is.

    Attributes
    ----------
    left_s : float or None
        By the pace of the newest frames; None where nothing can be told yet.
    """

    n_frames: int
    n_planned: int
    n_lost: int
    left_s: float | None
    rate_per_s: float


class Watch:
    """Collects what a run shows; `put` is called by the run, all else by whoever looks.

    Parameters
    ----------
    n_before : int
        Frames that were there already, of a scan that is gone on with.
    """

    def __init__(self, plan: Plan, n_before: int = 0) -> None:
        self.plan = plan
        self.geometry: Geometry = plan.geometry
        self.first_kev = passes_kev(plan)[0]
        self._lock = threading.Lock()
        self._n_planned, self._n_frames, self._n_lost = cost(plan).n_frames, n_before, 0
        self._times_s: list[float] = []
        scan = plan.scan
        n_views = scan.views if isinstance(scan, Turning) else 1
        self._turn_rad = abs(scan.angle_rad(n_views)) if isinstance(scan, Turning) else 2 * math.pi
        self._is_coarse = n_views > MOST_VIEWS
        self._views: dict[float, _View] = {}
        self._flats = _View()
        self._station: tuple[int, float] | None = None
        self._newest: tuple[Frame, Step, int] | None = None
        self._lost: list[str] = []
        self.version = 0
        """Grows with every frame, so that who looks knows whether anything is new."""

    def put(self, step: Step, place: int, item: Frame | Lost) -> None:
        """Take one frame, or that it was lost."""
        now_s = time.monotonic()
        if isinstance(item, Lost):
            with self._lock:
                self._n_frames += item.n_frames
                self._n_lost += item.n_frames
                self._lost.append(f"frame {self._n_frames - item.n_frames}: {item.n_frames} lost ({item.reason})")
                if step.kind is StepKind.PROJECTION and self._is_shown(step):
                    for n in range(item.n_frames):
                        self._view(step, place + n)
                self.version += 1
            return
        band = self._band(item)
        with self._lock:
            self._n_frames += 1
            self._times_s = [*self._times_s[-PACE_FRAMES:], now_s]
            self._newest = item, step, place
            if self._is_shown(step):
                view = self._flats if step.kind is StepKind.FLAT else self._view(step, place)
                view.band = view.band + band
                view.n_frames += 1
            self.version += 1

    def pace(self) -> Pace:
        """Return how far it is."""
        with self._lock:
            times_s = self._times_s
            n_frames, n_lost = self._n_frames, self._n_lost
        each_s = (times_s[-1] - times_s[0]) / (len(times_s) - 1) if len(times_s) > 1 else math.nan
        n_left = max(self._n_planned - n_frames, 0)
        is_known = math.isfinite(each_s)
        return Pace(
            n_frames=n_frames,
            n_planned=self._n_planned,
            n_lost=n_lost,
            left_s=n_left * each_s if is_known else None,
            rate_per_s=1 / each_s if is_known and each_s > 0 else 0.0,
        )

    def forget_pace(self) -> None:
        """Begin the pace anew: the run stood still, which says nothing of the frames to come."""
        with self._lock:
            self._times_s = []

    def newest(self) -> tuple[Frame, Step, int] | None:
        """Return the newest frame, its step, and its place in it."""
        return self._newest

    def lost(self) -> tuple[str, ...]:
        """Return what was lost, in words, in order."""
        with self._lock:
            return tuple(self._lost)

    def why_no_slice(self) -> str:
        """Return why no slice can be shown of such a scan; empty where one can."""
        scan = self.plan.scan
        if not isinstance(scan, Turning):
            return "This scan does not turn around a sample: there is no slice of it."
        if isinstance(scan, HelicalPlan):
            return "A helix has no slice before it is over: the sample climbs. Reconstruct the scan at its end."
        return ""

    def rows(self, threshold: int = 0) -> Rows | None:
        """Return the rows so far, of a threshold by its place; None before the first view."""
        with self._lock:
            views = [(view.angle_rad, view.n_frames, view.band) for view in self._views.values()]
            n_flats, flats, station = self._flats.n_frames, self._flats.band, self._station
        if not views or station is None:
            return None
        is_lost = np.array([not n_frames for _, n_frames, _ in views])
        integrals = np.full((len(views), self.geometry.cols), np.nan, np.float32)
        if n_flats and not is_lost.all():
            open_counts = np.maximum(_plane(flats, threshold) / n_flats, FEWEST_OPEN_COUNTS)
            counts = np.stack([_plane(band, threshold) / n_frames for _, n_frames, band in views if n_frames])
            integrals[~is_lost] = -np.log(np.maximum(counts, FEWEST_OPEN_COUNTS / 2) / open_counts)
        return Rows(
            line_integrals=integrals,
            angles_rad=np.array([angle_rad for angle_rad, _, _ in views]),
            is_lost=is_lost,
            shift_mm=station[1],
            n_flats=n_flats,
        )

    def _view(self, step: Step, place: int) -> _View:
        angle_rad = step.pose_of(place).angle_rad
        key = math.floor(angle_rad / self._turn_rad * MOST_VIEWS) if self._is_coarse else round(angle_rad, 7)
        view = self._views.setdefault(key, _View())
        view.angle_rad = angle_rad
        return view

    def _is_shown(self, step: Step) -> bool:
        """Judge whether a step is of the pass and place that are looked at: those of the first frame."""
        station = step.pass_index, step.pose.shift_mm
        if self._station is None:
            self._station = station
        return station == self._station

    def _band(self, frame: Frame) -> NDArray[np.float32]:
        """Average the rows around the source's plane: (n_counters, cols)."""
        n_rows = frame.counts.shape[1]
        middle = (n_rows - 1) / 2 - self.geometry.offset_v_mm / self.geometry.pitch_mm
        first = min(max(round(middle) - BAND_ROWS // 2, 0), max(n_rows - BAND_ROWS, 0))
        return frame.counts[:, first : first + BAND_ROWS].mean(axis=1, dtype=np.float32)


def _plane(band: NDArray[np.float32] | float, threshold: int) -> NDArray[np.float32]:
    """Return the row of one threshold; of one that is not there, the highest."""
    planes = np.atleast_2d(band)
    return planes[min(threshold, len(planes) - 1)]
