"""A door through which others can look on while a step measures: its frames as they come, and what it finds.

A step knows nothing of who looks. Its instrument may be a `Watched` one, whose detector lets every frame be seen; what
a step finds on its way it hands to `show`, which does nothing where nobody looks. Who looks reads one frozen record,
`Watch.newest`, from any thread and as often as he likes.

# Ref: variance over mean of repeated counts (Fano factor; 1 for Poisson): U. Fano 1947, Phys. Rev. 72, 26.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acquisition.calibrate.exposures import Instrument, Work
from calibration.progress import Progress, retold
from calibration.store import Calibration
from firmware_iface.device import Configuration
from firmware_iface.frame import Frame, Lost

LOOK_EVERY_S = 0.15
"""A series that grows is told of so often; faster nobody could see it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Series:
    """Frames that were taken for one purpose, so far.

    Attributes
    ----------
    stage : str
        What for, as in `Progress`.
    thresholds : tuple of int
        Number (0 to 7) of each counter that was read.
    codes_dac : (n_points,) float64
        Where the first threshold that was read stood, at each of its places; a single one where it did not move.
    stand_dac : (n_thresholds,) float64
        Where all that were read stand now: passes may share some of them.
    means : (n_points, n_thresholds) float64
        Mean counts of a pixel there.
    counts : (n_thresholds, rows, cols) uint16 or uint32
        The newest frame.
    peaks_dac : (n_thresholds, rows, cols) float32, optional
        The code at which each pixel has counted most so far; NaN where it has not. None while no threshold moves.
    mean, fano : (n_thresholds, rows, cols) float64, optional
        Of repeated frames: mean counts, and variance over mean. None where there are not two frames at one code.
    n_frames : int
    """

    stage: str
    thresholds: tuple[int, ...]
    codes_dac: NDArray[np.float64]
    stand_dac: NDArray[np.float64]
    means: NDArray[np.float64]
    counts: NDArray[np.unsignedinteger]
    peaks_dac: NDArray[np.float32] | None
    mean: NDArray[np.float64] | None
    fano: NDArray[np.float64] | None
    n_frames: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EdgesFound:
    """The edges of all pixels: (n_thresholds, rows, cols), with the trims they were found at."""

    stage: str
    edges_dac: NDArray[np.float32]
    trim: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CurveFitted:
    """The S-curve of a source on one threshold, and what was fitted to it; all (n_codes,) float64."""

    source: str
    threshold: int
    codes_dac: NDArray[np.float64]
    counts: NDArray[np.float64]
    fitted: NDArray[np.float64]
    position_dac: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RatesFound:
    """What the mean good pixel counted over the tube's current: (n_currents,) and (n_currents, n_counters)."""

    currents_ma: NDArray[np.float64]
    rates_per_s: NDArray[np.float64]
    thresholds_kev: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TracksFound:
    """The shadows of the beads: where they were seen, and how far from where the geometry found puts them.

    Attributes
    ----------
    at_px, rests_px : (n_beads, n_views, 2) float64
        Column and row from the detector's centre; NaN where a bead was not seen.
    """

    at_px: NDArray[np.float64]
    rests_px: NDArray[np.float64]


Found = EdgesFound | CurveFitted | RatesFound | TracksFound


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Seen:
    """All that a calibration has shown so far.

    Attributes
    ----------
    step : str
        That runs now; empty before the first.
    calibration : Calibration, optional
        As it was before this step: what all steps up to here have found.
    done : tuple of str
        Steps that have ended well.
    took_s : mapping of str to float
        How long each of them took.
    series, found : tuple
        Of this step, in their order; the last series may still grow.
    """

    step: str = ""
    calibration: Calibration | None = None
    done: tuple[str, ...] = ()
    took_s: Mapping[str, float] = field(default_factory=dict)
    series: tuple[Series, ...] = ()
    found: tuple[Found, ...] = ()


class Watch:
    """Gathers what a running calibration shows; the instrument's thread writes, any thread reads `newest`."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._newest = Seen()
        self._stage = ""
        self._codes_dac: dict[str, float] = {}
        self._growing: _Growing | None = None
        self._stages: dict[str, _Growing] = {}
        self._told_s = self._began_s = clock_s()

    @property
    def newest(self) -> Seen:
        """What has been seen so far; another record whenever there is more."""
        return self._newest

    def begins(self, step: str, calibration: Calibration) -> None:
        """Note that a step begins, on what is known by then."""
        self._tell_growing()
        self._began_s = self._clock_s()
        self._growing, self._stage, self._stages = None, "", {}
        now = self._newest
        self._newest = Seen(step=step, calibration=calibration, done=now.done, took_s=now.took_s)

    def ends(self, step: str, calibration: Calibration) -> None:
        """Note that a step has ended well, and what is known now."""
        self._tell_growing()
        now = self._newest
        took_s = {**now.took_s, step: self._clock_s() - self._began_s}
        self._newest = replace(now, calibration=calibration, done=(*now.done, step), took_s=took_s)

    def at_stage(self, stage: str) -> None:
        """Take what comes from now on as being for this."""
        if stage != self._stage:
            self._tell_growing()
            self._stage, self._growing = stage, None

    def sets_up(self) -> None:
        """Take what comes from now on as another series: passes of one stage follow each other, each set up anew."""
        self._tell_growing()
        self._growing = None

    def moves(self, codes: Mapping[str, int]) -> None:
        """Note how DACs were set."""
        self._codes_dac |= codes

    def takes(self, frame: Frame) -> None:
        """Add a frame to those of its stage."""
        stand_dac = tuple(self._codes_dac.get(f"Threshold{number}", 0) for number in frame.thresholds)
        if self._growing is None:
            # Some stages come again and again, such as flats between others; a scan that begins anew is another one.
            earlier = self._stages.get(self._stage)
            self._growing = earlier if earlier is not None and earlier.stand_dac == stand_dac else None
        if self._growing is None or not self._growing.fits(frame):
            self._growing = self._stages[self._stage] = _Growing(self._stage, frame)
        self._growing.add(frame, stand_dac)
        if self._clock_s() - self._told_s >= LOOK_EVERY_S:
            self._tell_growing()

    def finds(self, found: Found) -> None:
        """Add what a step has found on its way."""
        self._newest = replace(self._newest, found=(*self._newest.found, found))

    def _tell_growing(self) -> None:
        if self._growing is None:
            return
        now = self._growing.series()
        others = [each for each in self._newest.series if each.stage != now.stage]
        self._newest = replace(self._newest, series=(*others, now))
        self._told_s = self._clock_s()


class _Growing:
    """A series that frames are added to."""

    def __init__(self, stage: str, first: Frame) -> None:
        self._stage, self._thresholds = stage, first.thresholds
        self._codes_dac: list[float] = []
        self.stand_dac: tuple[float, ...] = ()
        self._means: list[NDArray[np.float64]] = []
        self._newest = first.counts
        self._highest = np.zeros(first.counts.shape, first.counts.dtype)
        self._peaks_dac = np.full(first.counts.shape, np.nan, np.float32)
        self._sum = np.zeros(first.counts.shape)
        self._squares = np.zeros(first.counts.shape)
        self._n_here = self._n_frames = 0

    def fits(self, frame: Frame) -> bool:
        return frame.counts.shape == self._newest.shape and frame.thresholds == self._thresholds

    def add(self, frame: Frame, stand_dac: tuple[float, ...]) -> None:
        counts = self._newest = frame.counts
        self._n_frames += 1
        mean = counts.mean(axis=(1, 2))
        if self.stand_dac == stand_dac:
            self._n_here += 1
            self._means[-1] = self._means[-1] + (mean - self._means[-1]) / self._n_here
        else:
            self._n_here = 1
            self._sum[:], self._squares[:] = 0, 0
            self._codes_dac.append(stand_dac[0])
            self._means.append(mean)
        self.stand_dac = stand_dac
        self._sum += counts
        self._squares += np.square(counts, dtype=np.float64)
        is_higher = counts > self._highest
        self._highest[is_higher] = counts[is_higher]
        self._peaks_dac[is_higher] = stand_dac[0]

    def series(self) -> Series:
        mean = fano = None
        if self._n_here > 1 and len(self._codes_dac) == 1:
            mean = self._sum / self._n_here
            variance = (self._squares / self._n_here - mean**2) * self._n_here / (self._n_here - 1)
            fano = np.divide(variance, mean, out=np.full(mean.shape, np.nan), where=mean > 0)
        return Series(
            stage=self._stage,
            thresholds=self._thresholds,
            codes_dac=np.asarray(self._codes_dac, dtype=np.float64),
            stand_dac=np.asarray(self.stand_dac, dtype=np.float64),
            means=np.stack(self._means),
            counts=self._newest,
            peaks_dac=self._peaks_dac.copy() if len(self._codes_dac) > 1 else None,
            mean=mean,
            fano=fano,
            n_frames=self._n_frames,
        )


class _SeenDetector:
    """A detector whose frames are seen by a watch, and that is the detector itself in all else."""

    def __init__(self, detector: Any, watch: Watch) -> None:
        self._detector, self._watch = detector, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._detector, name)

    def configure(self, configuration: Configuration) -> None:
        self._detector.configure(configuration)
        self._watch.sets_up()

    def set_dacs(self, codes: Mapping[str, int], chip_number: int | None = None) -> None:
        self._detector.set_dacs(codes, chip_number)
        self._watch.moves(codes)

    def frames(self, n_frames: int, exposure_s: float) -> Iterator[Frame | Lost]:
        for item in self._detector.frames(n_frames, exposure_s):
            if isinstance(item, Frame):
                self._watch.takes(item)
            yield item


class Watched:
    """An instrument that a watch looks at."""

    def __init__(self, instrument: Instrument, watch: Watch) -> None:
        self.detector: Any = _SeenDetector(instrument.detector, watch)
        self.gantry = instrument.gantry
        self.watch = watch


def show(instrument: Instrument, found: Found) -> None:
    """Let whoever looks on see what a step has found; nothing where nobody does."""
    if isinstance(instrument, Watched):
        instrument.watch.finds(found)


def is_watched(instrument: Instrument) -> bool:
    """Whether anybody looks on: for what takes time to make ready for `show`."""
    return isinstance(instrument, Watched)


def watched(
    work: Callable[[Instrument], Work], instrument: Instrument, watch: Watch
) -> Generator[Progress, None, Calibration]:
    """Run work on an instrument while a watch looks on; returns what the work returns."""

    def look(progress: Progress) -> Progress:
        watch.at_stage(progress.stage)
        return progress

    return (yield from retold(work(Watched(instrument, watch)), look))
