"""Every frame of the live view: the newest, sums of any kind, and a memory of the last ones to scroll back through.

One thread pushes, any thread asks. Who asks for the newest, or how the store stands, never waits; who asks for a sum
waits for one addition of a frame at most.
A frame costs one addition: into the sum of its block. Whole blocks make the sums, single frames their ends.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from firmware_iface.frame import Frame, Lost

MOST_FRAMES = 1000
MOST_BYTES = 512 << 20
BLOCK = 32
"""Frames that are summed together; the sum of so many 16-bit counts fits into 32 bits many times over."""
RATE_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picture:
    """A frame, or a sum of frames.

    Attributes
    ----------
    counts : (n_counters, rows, cols) unsigned integer
    thresholds : tuple of int
        Number of the threshold of each plane of `counts`.
    n_frames : int
        How many were summed.
    exposure_s : float
        Of all of them together.
    """

    counts: NDArray[np.unsignedinteger]
    thresholds: tuple[int, ...]
    n_frames: int
    exposure_s: float

    @property
    def is_frame(self) -> bool:
        """Whether it is one frame as it was read, and no sum or average."""
        return self.n_frames == 1 and np.issubdtype(self.counts.dtype, np.integer)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStatus:
    """How the store stands.

    Attributes
    ----------
    n_received, n_lost : int
        Frames since it began, each counted once.
    n_late : int
        Frames that came after a later one, and are neither shown nor summed.
    first, end : int
        Numbers of the items in memory: from the oldest to one after the newest. A loss is one item.
    rate_per_s : float
        Frames that came, over the last second or two.
    """

    n_received: int
    n_lost: int
    n_late: int
    first: int
    end: int
    n_bytes: int
    rate_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Memory:
    """The last frames and losses, as they were when somebody asked for them; `first` is the number of the oldest."""

    first: int
    items: tuple[Frame | Lost, ...]

    @property
    def last(self) -> int:
        """Number of the newest; that of the oldest where there is none."""
        return self.first + max(len(self.items) - 1, 0)

    def item(self, number: int) -> Frame | Lost | None:
        """Return an item by its number, the oldest or newest where it is beyond them; None where there is none."""
        return self.items[min(max(number, self.first), self.last) - self.first] if self.items else None


class Rate:
    """Counts, and knows how many came in the last second or two."""

    def __init__(self) -> None:
        self._n = 0
        self._counted_s = time.monotonic()
        self._marks = ((self._counted_s, 0), (self._counted_s, 0))

    def count(self) -> None:
        """Count one; after a pause it begins anew."""
        now_s = time.monotonic()
        if now_s - self._counted_s > 2 * RATE_S:
            self._marks = ((now_s, self._n), (now_s, self._n))
        self._n += 1
        self._counted_s = now_s
        if now_s - self._marks[1][0] >= RATE_S:
            self._marks = self._marks[1], (now_s, self._n)

    def per_s(self) -> float:
        """Return how many came per second; any thread may ask."""
        now_s = time.monotonic()
        if now_s - self._counted_s > 2 * RATE_S:
            return 0.0
        began_s, n_before = self._marks[0]
        return (self._n - n_before) / max(now_s - began_s, 1e-3)


class FrameStore:
    """Keeps what a live view shows.

    Parameters
    ----------
    most_frames, most_bytes : int
        What the memory of the last frames may hold.
    """

    def __init__(self, most_frames: int = MOST_FRAMES, most_bytes: int = MOST_BYTES) -> None:
        if most_frames < 1:
            raise ValueError(f"most_frames is {most_frames}; allowed: 1 or more")
        self._most_frames, self._most_bytes = most_frames, most_bytes
        self._lock = threading.Lock()
        self._forget()

    def begin(self) -> None:
        """Forget everything: what comes now was taken in another way."""
        with self._lock:
            self._forget()

    def push(self, item: Frame | Lost) -> None:
        """Take in what came next. The counts of a frame are kept, not copied, and must not change any more."""
        with self._lock:
            if isinstance(item, Lost):
                self._n_lost += item.n_frames
                self._items.append(item)
            elif self._newest is not None and not _is_after(item, self._newest):
                self._n_late += 1
                self._publish()
                return
            else:
                if self._newest is not None and item.counts.shape != self._newest.counts.shape:
                    self._forget()
                self._add(item)
            self._end += 1
            self._shrink()
            self._publish()

    def status(self) -> StoreStatus:
        """Return how it stands, without waiting."""
        n_received, n_lost, n_late, first, end, n_bytes, rate = self._stands
        return StoreStatus(
            n_received=n_received,
            n_lost=n_lost,
            n_late=n_late,
            first=first,
            end=end,
            n_bytes=n_bytes,
            rate_per_s=rate.per_s(),
        )

    def newest(self) -> Picture | None:
        """Return the newest frame, without waiting; None before the first."""
        frame = self._newest
        return None if frame is None else picture_of(frame)

    def memory(self) -> Memory:
        """Return what is in memory now; it stays as it is, whatever comes and is forgotten here."""
        with self._lock:
            return Memory(first=self._end - len(self._items), items=tuple(self._items))

    def running(self) -> Picture | None:
        """Return the sum of all frames since it began; None before the first."""
        with self._lock:
            if self._newest is None:
                return None
            counts = self._total + self._block
            newest, n_frames, exposure_ns = self._newest, self._n_received, self._exposure_ns
        return Picture(
            counts=counts, thresholds=newest.thresholds, n_frames=n_frames, exposure_s=exposure_ns * 1e-9
        )  # fmt: skip

    def last(self, n_frames: int) -> Picture | None:
        """Return the sum of the last frames that came, as many of them as there are in memory."""
        with self._lock:
            if self._newest is None:
                return None
            newest, n_received = self._newest, self._n_received
            if not self._frames:  # nothing but losses since
                return picture_of(newest)
            begin = n_received - min(max(n_frames, 1), len(self._frames))
            end_of_blocks = n_received - n_received % BLOCK
            start_of_blocks = min(-(-begin // BLOCK) * BLOCK, end_of_blocks)
            n_blocks = (end_of_blocks - start_of_blocks) // BLOCK
            blocks = list(islice(reversed(self._blocks), n_blocks))
            rest = self._block.copy() if begin <= end_of_blocks else None
            offset = n_received - len(self._frames)
            edge = range(begin, start_of_blocks if rest is not None else n_received)
            singles = [self._frames[number - offset] for number in edge]
            exposure_ns = sum(frame.exposure_ns for frame in islice(self._frames, begin - offset, None))
        counts = np.zeros(newest.counts.shape, dtype=np.uint64)
        for part in (*blocks, *(frame.counts for frame in singles), *(() if rest is None else (rest,))):
            counts += part
        return Picture(
            counts=counts, thresholds=newest.thresholds, n_frames=n_received - begin, exposure_s=exposure_ns * 1e-9
        )  # fmt: skip

    def _forget(self) -> None:
        self._items: deque[Frame | Lost] = deque()
        self._frames: deque[Frame] = deque()
        self._blocks: deque[NDArray[np.unsignedinteger]] = deque()
        self._newest: Frame | None = None
        self._total: NDArray[np.uint64] = np.zeros((0, 0, 0), dtype=np.uint64)
        self._block: NDArray[np.unsignedinteger] = np.zeros((0, 0, 0), dtype=np.uint32)
        self._n_received = self._n_lost = self._n_late = self._n_bytes = self._end = self._exposure_ns = 0
        self._rate = Rate()
        self._publish()

    def _publish(self) -> None:
        """Let all that belongs together be seen at once."""
        first = self._end - len(self._items)
        self._stands = self._n_received, self._n_lost, self._n_late, first, self._end, self._n_bytes, self._rate

    def _add(self, frame: Frame) -> None:
        if self._newest is None:
            self._total = np.zeros(frame.counts.shape, dtype=np.uint64)
            self._block = self._new_block(frame)
        self._newest = frame
        self._items.append(frame)
        self._frames.append(frame)
        self._n_bytes += frame.counts.nbytes
        self._n_received += 1
        self._exposure_ns += frame.exposure_ns
        self._block += frame.counts
        if self._n_received % BLOCK == 0:
            self._total += self._block
            self._blocks.append(self._block)
            self._block = self._new_block(frame)
        self._rate.count()

    @staticmethod
    def _new_block(frame: Frame) -> NDArray[np.unsignedinteger]:
        return np.zeros(frame.counts.shape, dtype=np.uint32 if frame.counts.itemsize <= 2 else np.uint64)

    def _shrink(self) -> None:
        """Let the oldest go where there is more than may be; one frame always stays."""
        while len(self._items) > self._most_frames or (self._n_bytes > self._most_bytes and len(self._frames) > 1):
            oldest = self._items.popleft()
            if isinstance(oldest, Frame):
                self._frames.popleft()
                self._n_bytes -= oldest.counts.nbytes
        while len(self._blocks) > len(self._frames) // BLOCK:
            self._blocks.popleft()


def picture_of(frame: Frame) -> Picture:
    """Return one frame as a picture."""
    return Picture(
        counts=frame.counts, thresholds=frame.thresholds, n_frames=1, exposure_s=frame.exposure_ns * 1e-9
    )  # fmt: skip


def _is_after(frame: Frame, other: Frame) -> bool:
    return (frame.run_id, frame.sequence) > (other.run_id, other.sequence)
