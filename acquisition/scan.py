"""What a scan is, apart from the file that keeps it: the kinds of frames, their common readout, events, states.

# Ref: image keys: nexusformat/definitions `applications/NXtomo.nxdl.xml`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum, IntFlag
from functools import reduce
from operator import or_

import numpy as np

from acquisition.plan import Plan, passes_kev
from firmware_iface.frame import Frame


class ImageKey(IntEnum):
    """What a frame is, in NXtomo's numbers; INVALID is a lost frame."""

    PROJECTION = 0
    FLAT = 1
    DARK = 2
    INVALID = 3


class ScanStatus(Enum):
    """How far a scan file got; DEGRADED is whole, with lost frames marked in their places."""

    RUNNING = "running"
    COMPLETE = "complete"
    DEGRADED = "degraded"
    INTERRUPTED = "interrupted"


class Crc(IntEnum):
    """What the checksum of a frame on the wire told; WRONG stands for all that did not arrive whole."""

    NOT_CHECKED = 0
    CHECKED = 1
    WRONG = 2


class FrameFlag(IntFlag):
    """What the board told of a frame."""

    PAUSED = 1
    FOLLOWS_OVERFLOW = 2
    TRIGGERED = 4
    MISSED_TRIGGER = 8


def flags_of(frame: Frame) -> FrameFlag:
    """Return what the board told of a frame beside its counts."""
    told = {
        FrameFlag.PAUSED: frame.was_paused,
        FrameFlag.FOLLOWS_OVERFLOW: frame.follows_overflow,
        FrameFlag.TRIGGERED: frame.is_triggered,
        FrameFlag.MISSED_TRIGGER: frame.missed_trigger,
    }
    return reduce(or_, (flag for flag, is_set in told.items() if is_set), FrameFlag(0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened during a scan; `time_s` counts from 1970, `sequence` is the frame's place in the file."""

    time_s: float
    sequence: int
    kind: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Readout:
    """What every frame of a file has in common.

    Attributes
    ----------
    shape : tuple of int
        (n_counters, rows, cols) of one frame.
    thresholds : tuple of int
        Number of the threshold of each counter plane.
    thresholds_kev : tuple of float
        Their energies, ascending; empty where they are not known.
    pitch_mm : float
        Pixel to pixel.
    depth_bits : int
        Of one exposure, as the chip counts it.
    n_accumulated : int
        Exposures that each frame is the sum of.
    """

    shape: tuple[int, int, int]
    depth_bits: int
    thresholds: tuple[int, ...]
    thresholds_kev: tuple[float, ...] = ()
    pitch_mm: float
    n_accumulated: int = 1

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1 or self.shape[0] != len(self.thresholds):
            raise ValueError(
                f"a frame of shape {self.shape} does not match {len(self.thresholds)} thresholds; "
                "allowed: (n_thresholds, rows, cols)"
            )
        if len(self.thresholds_kev) not in (0, len(self.thresholds)):
            raise ValueError(f"{len(self.thresholds_kev)} energies for {len(self.thresholds)} thresholds")
        if not 1 <= self.depth_bits <= 24:
            raise ValueError(f"depth_bits is {self.depth_bits}; allowed: 1 to 24")
        if self.n_accumulated < 1 or self.saturation >= np.iinfo(np.uint32).max:
            raise ValueError(
                f"{self.n_accumulated} exposures of {self.depth_bits} bits in a frame; allowed: 1 or more, in 32 bits"
            )

    @property
    def saturation(self) -> int:
        """The highest count that a frame can have: every exposure with full counters."""
        return self.n_accumulated * ((1 << self.depth_bits) - 1)

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """The smallest unsigned type that holds every count, and a value beside them that no counter can have."""
        return np.dtype(next(kind for kind in (np.uint8, np.uint16, np.uint32) if np.iinfo(kind).max > self.saturation))

    @property
    def fill(self) -> int:
        """Value of the pixels of a lost frame, which no counter can have."""
        return int(np.iinfo(self.dtype).max)


def readout_of(plan: Plan) -> Readout:
    """Return what the frames of a planned scan have in common; of several passes, the thresholds of the first."""
    detector, geometry = plan.detector, plan.geometry
    return Readout(
        shape=(len(detector.thresholds), geometry.rows, geometry.cols),
        depth_bits=detector.depth_bits,
        thresholds=detector.thresholds,
        thresholds_kev=passes_kev(plan)[0],
        pitch_mm=geometry.pitch_mm,
        n_accumulated=detector.accumulate,
    )
