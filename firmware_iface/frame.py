"""frames: `Frame(counts (n_counters, rows, cols), sequence, ...)` or `Lost`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frame:
    """One readout of the whole matrix: every counter that was read, each with its threshold.

    Attributes
    ----------
    counts : (n_counters, rows, cols) uint16 or uint32
        Events above each threshold. Row 0 is the bottom row of the chip, column 0 its left column.
    thresholds : tuple of int
        Number (0 to 7) of the threshold of each counter plane, in the order of `counts`.
    sequence : int
        Number of the frame in its run, from 0.
    timestamp_ns, exposure_ns : int
        Board clock at shutter opening, and how long the shutter was open.
    run_id : int
        Identity of the run, so that leftovers of a stopped run never enter the next.
    was_paused : bool
        The board waited for the host before this frame (the gap was longer, nothing was lost).
    follows_overflow : bool
        The board's memory was full, and it dropped frames just before this one.
    is_triggered : bool
        It is the first after a trigger.
    missed_trigger : bool
        A trigger came since the frame before while the board could not take it.
    """

    counts: NDArray[np.unsignedinteger]
    thresholds: tuple[int, ...]
    sequence: int
    timestamp_ns: int
    exposure_ns: int
    run_id: int
    was_paused: bool = False
    follows_overflow: bool = False
    is_triggered: bool = False
    missed_trigger: bool = False

    def __post_init__(self) -> None:
        if self.counts.ndim != 3 or len(self.counts) != len(self.thresholds):
            raise ValueError(
                f"counts of shape {self.counts.shape} do not match {len(self.thresholds)} thresholds; "
                "allowed: (n_thresholds, rows, cols)"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """Frames that were taken or expected, and never arrived whole: loss is data.

    Attributes
    ----------
    first_sequence, n_frames : int
        Which frames of the run are missing.
    reason : str
        What the decoder saw, in words for the events table.
    """

    run_id: int
    first_sequence: int
    n_frames: int
    reason: str
