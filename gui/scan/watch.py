"""What a scan has shown so far: rows of the detector over the views, the newest picture, the pace, what was lost.

The run's thread puts frames in, a few microseconds each; the window and the preview look at copies. Of each frame only
a band of rows around the source's plane is kept; of a helix, those that see certain slices of the sample at the axis.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from acquisition.open_beam import flat_misfits, takes_flats
from acquisition.plan import Plan, passes_kev
from acquisition.scan_plan import HelicalPlan, Turning
from acquisition.steps import Pose, Step, StepKind, cost
from calibration.geometry import Geometry
from calibration.store import Calibration
from firmware_iface.frame import Frame, Lost

BAND_ROWS = 5
"""Rows that are averaged into one row of the sinogram."""
PACE_FRAMES = 50
"""The pace is that of the newest frames, for exposures and moves may change on the way."""
FEWEST_OPEN_COUNTS = 0.5
MOST_VIEWS = 2000
"""Of a sinogram; views of a finer scan are averaged with their neighbours."""
MOST_VIEWS_IN_ALL = 16_000
"""Of all sinograms of a scan with passes and places."""
HEIGHTS = (-0.4, -0.2, 0.0, 0.2, 0.4)
"""Slices of a helix that are looked at, in lengths of the sample from its middle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a sinogram is of.

    Attributes
    ----------
    shifts_mm : tuple of float
        Places of the camera; several are joined.
    height_mm : float or None
        Of a helix: of the slice, from the middle of the sample.
    """

    pass_index: int = 0
    shifts_mm: tuple[float, ...] = (0.0,)
    height_mm: float | None = None


@dataclass(slots=True, eq=False)
class _View:
    """The frames of a view, or of neighbouring ones, summed: (n_counters, cols); angle and first row of the newest."""

    band: NDArray[np.float32] | float = 0.0
    n_frames: int = 0
    angle_rad: float = 0.0
    row: int = 0


@dataclass(slots=True, eq=False)
class _Flats:
    """Flats, summed: (n_counters, rows, cols)."""

    counts: NDArray[np.float32] | float = 0.0
    n_frames: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """The band of rows of the views so far, of one threshold and one place.

    Attributes
    ----------
    line_integrals : (n_views, cols) float32
        NaN where a frame was lost, or no flats are there yet. Places of the camera that are joined have more columns.
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
    place: Place
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
    calibration : Calibration, optional
        Its flat field stands in where the plan takes no flats and it fits.
    """

    def __init__(self, plan: Plan, n_before: int = 0, calibration: Calibration | None = None) -> None:
        self.plan = plan
        self.geometry: Geometry = plan.geometry
        self._lock = threading.Lock()
        self._n_planned, self._n_frames, self._n_lost = cost(plan).n_frames, n_before, 0
        self._times_s: list[float] = []
        scan = plan.scan
        self._is_turning = isinstance(scan, Turning)
        n_views = scan.views if isinstance(scan, Turning) else 1
        self.shifts_mm = scan.shifts_mm if isinstance(scan, Turning) else (0.0,)
        self.passes_kev = passes_kev(plan)
        self._heights_mm: tuple[float | None, ...] = (None,)
        self._centre_mm = 0.0
        if isinstance(scan, HelicalPlan):
            self._heights_mm, self._centre_mm = tuple(scan.length_mm * share for share in HEIGHTS), scan.centre_mm
        n_sinograms = len(self.shifts_mm) * len(self.passes_kev) if self._is_turning else 1
        self._most_views = max(min(MOST_VIEWS, MOST_VIEWS_IN_ALL // n_sinograms), 1)
        self._turn_rad = abs(scan.angle_rad(n_views)) if isinstance(scan, Turning) else 2 * math.pi
        self._is_coarse = n_views > self._most_views
        self._views: dict[tuple[int, float, float | None], dict[float, _View]] = {}
        self._flats: dict[tuple[int, float], _Flats] = {}
        if calibration is not None and not takes_flats(plan):
            self._stand_in(calibration)
        self._station: tuple[int, float] | None = None
        """Pass and place of the newest projection."""
        self._newest: tuple[Frame, Step, int] | None = None
        self._lost: list[str] = []
        self.version = 0
        """Grows with every frame, so that who looks knows whether anything is new."""

    def _stand_in(self, calibration: Calibration) -> None:
        """Take the calibration's flat field for flats, in the passes that it fits."""
        flat, detector = calibration.flat_field, self.plan.detector
        for number, energies_kev in enumerate(self.passes_kev):
            if flat is not None and not flat_misfits(self.plan, calibration, energies_kev):
                counts = flat.rates_per_s * np.float32(detector.exposure_s * detector.accumulate * flat.n_frames)
                self._flats[number, 0.0] = _Flats(counts, flat.n_frames)

    def put(self, step: Step, place: int, item: Frame | Lost) -> None:
        """Take one frame, or that it was lost."""
        now_s = time.monotonic()
        if isinstance(item, Lost):
            with self._lock:
                self._n_frames += item.n_frames
                self._n_lost += item.n_frames
                self._lost.append(f"frame {self._n_frames - item.n_frames}: {item.n_frames} lost ({item.reason})")
                if step.kind is StepKind.PROJECTION and self._is_turning:
                    for n in range(item.n_frames):
                        self._views_of(step, step.pose_of(place + n))
                self.version += 1
            return
        with self._lock:
            self._n_frames += 1
            self._times_s = [*self._times_s[-PACE_FRAMES:], now_s]
            self._newest = item, step, place
            if step.kind is StepKind.FLAT:
                flats = self._flats.setdefault((step.pass_index, step.pose.shift_mm), _Flats())
                flats.counts = flats.counts + item.counts.astype(np.float32)
                flats.n_frames += 1
            elif self._is_turning:
                for view in self._views_of(step, step.pose_of(place)):
                    rows = item.counts[:, view.row : view.row + BAND_ROWS]
                    view.band = view.band + rows.mean(axis=1, dtype=np.float32)
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
        return "" if self._is_turning else "This scan does not turn around a sample: there is no slice of it."

    @property
    def places(self) -> tuple[Place, ...]:
        """What can be looked at: each pass, of it all places of the camera joined and each alone, each slice."""
        joined = [self.shifts_mm] if len(self.shifts_mm) > 1 else []
        return tuple(
            Place(pass_index=number, shifts_mm=shifts_mm, height_mm=height_mm)
            for number in range(len(self.passes_kev) if self._is_turning else 1)
            for shifts_mm in (*joined, *((shift_mm,) for shift_mm in self.shifts_mm))
            for height_mm in self._heights_mm
        )

    def told_of(self, place: Place) -> str:
        """Return a place in words, as far as there are others; empty where there is but one."""
        parts = []
        if len(self.passes_kev) > 1:
            parts.append(f"pass {place.pass_index + 1} of {len(self.passes_kev)}")
        if len(place.shifts_mm) > 1:
            parts.append("all camera places joined")
        elif len(self.shifts_mm) > 1:
            parts.append(f"camera at {min(place.shifts_mm):+g} mm")
        if place.height_mm is not None:
            parts.append(
                f"{place.height_mm:+.3g} mm from the middle of the sample" if place.height_mm else "the middle"
            )
        return ", ".join(parts)

    def followed(self) -> Place | None:
        """Return what is looked at where nobody chose: the newest of which there is most; None before any view."""
        with self._lock:
            station, counts = self._station, {key: len(views) for key, views in self._views.items()}
        if station is None:
            return None
        number, shift_mm = station
        # The slice that the sample has moved on to counts once it has been seen from as many sides as the one before.
        best_mm = max(self._heights_mm, key=lambda height_mm: counts.get((number, shift_mm, height_mm), 0))
        if len(self.shifts_mm) > 1:
            n_joined = min(counts.get((number, each_mm, best_mm), 0) for each_mm in self.shifts_mm)
            if 2 * n_joined >= counts.get((number, shift_mm, best_mm), 0):
                return Place(pass_index=number, shifts_mm=self.shifts_mm, height_mm=best_mm)
        return Place(pass_index=number, shifts_mm=(shift_mm,), height_mm=best_mm)

    def rows(self, threshold: int = 0, place: Place | None = None) -> Rows | None:
        """Return the rows so far, of a threshold by its place; None where there is no view yet.

        Parameters
        ----------
        place : Place, optional
            Otherwise what `followed` says.
        """
        place = place or self.followed()
        if place is None:
            return None
        parts = [self._part(threshold, place, shift_mm) for shift_mm in place.shifts_mm]
        seen = [part for part in parts if part is not None]
        if len(seen) != len(parts):
            return None
        if len(seen) == 1:
            _, integrals, angles_rad, is_lost, n_flats = seen[0]
            return Rows(line_integrals=integrals, angles_rad=angles_rad, is_lost=is_lost, place=place, n_flats=n_flats)
        return self._joined(place, seen)

    def _part(self, threshold: int, place: Place, shift_mm: float) -> _Part | None:
        """Return the rows of one place of the camera."""
        with self._lock:
            flats = self._flats.get((place.pass_index, shift_mm), _Flats())
            n_flats, open_sum = flats.n_frames, flats.counts
            found = self._views.get((place.pass_index, shift_mm, place.height_mm), {})
            views = [(key, view.angle_rad, view.n_frames, view.band, view.row) for key, view in found.items()]
        if not views:
            return None
        is_lost = np.array([not n_frames for _, _, n_frames, _, _ in views])
        integrals = np.full((len(views), self.geometry.cols), np.nan, np.float32)
        if n_flats and not is_lost.all():
            open_counts = np.asarray(open_sum)[_counter(open_sum, threshold)] / n_flats
            beams = {
                row: np.maximum(open_counts[row : row + BAND_ROWS].mean(axis=0), FEWEST_OPEN_COUNTS)
                for row in {row for *_, row in views}
            }
            for number, (_, _, n_frames, band, row) in enumerate(views):
                if n_frames:
                    counts = np.asarray(band)[_counter(band, threshold)] / n_frames
                    integrals[number] = -np.log(np.maximum(counts, FEWEST_OPEN_COUNTS / 2) / beams[row])
        return [key for key, *_ in views], integrals, np.array([view[1] for view in views]), is_lost, n_flats

    def _joined(self, place: Place, parts: Sequence[_Part]) -> Rows | None:
        """Join what all places of the camera have seen of the same views."""
        from reconstruction.stitch import stitch

        numbers = [
            {key: number for number, (key, is_gone) in enumerate(zip(part[0], part[3], strict=True)) if not is_gone}
            for part in parts
        ]
        shared = [key for key in numbers[0] if all(key in each for each in numbers)]
        if not shared:
            return None
        tiles = [
            part[1][[each[key] for key in shared]][None, :, None] for part, each in zip(parts, numbers, strict=True)
        ]
        is_estimated = [np.zeros(tile.shape, bool) for tile in tiles]
        joined, _ = stitch(tiles, is_estimated, place.shifts_mm, self.geometry)
        return Rows(
            line_integrals=joined[0, :, 0],
            angles_rad=parts[0][2][[numbers[0][key] for key in shared]],
            is_lost=np.zeros(len(shared), bool),
            place=place,
            n_flats=min(part[4] for part in parts),
        )

    def _views_of(self, step: Step, pose: Pose) -> list[_View]:
        """Return the views that a frame belongs to: one, or of a helix one of each slice that it sees."""
        self._station = step.pass_index, step.pose.shift_mm
        angle_rad = pose.angle_rad
        key = math.floor(angle_rad / self._turn_rad * self._most_views) if self._is_coarse else round(angle_rad, 7)
        views = []
        for height_mm in self._heights_mm:
            row = self._row(0.0 if height_mm is None else height_mm + pose.lift_mm - self._centre_mm)
            last = self.geometry.rows - BAND_ROWS
            if height_mm is not None and not 0 <= row <= last:
                continue
            view = self._views.setdefault((*self._station, height_mm), {}).setdefault(key, _View())
            view.angle_rad, view.row = angle_rad, min(max(row, 0), max(last, 0))
            views.append(view)
        return views

    def _row(self, above_mm: float) -> int:
        """Return the first row of the band that sees what is so far above the source's plane, at the axis."""
        geometry = self.geometry
        on_detector_mm = above_mm * geometry.magnification - geometry.offset_v_mm
        return round((geometry.rows - 1) / 2 + on_detector_mm / geometry.pitch_mm) - BAND_ROWS // 2


_Part = tuple[list[float], NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_], int]
"""Of one place of the camera: keys of its views, line integrals, angles, which were lost, and how many flats."""


def _counter(planes: NDArray[np.float32] | float, threshold: int) -> int:
    """Return the place of a threshold; of one that is not there, the highest."""
    return min(threshold, np.shape(planes)[0] - 1) if np.ndim(planes) else 0
