"""From the detector to the disk without loss: a reader thread, a bounded queue, and what is known of both.

The reader thread owns the iterator, and with it the device. When the queue is full it waits, and so does the board
(back-pressure). A viewer has a thread of its own and a place for one frame, the newest: however long it looks, it
holds nothing up.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Self, TypeVar

from firmware_iface.errors import DataLost, TransportTimeout
from firmware_iface.frame import Frame, Lost

Tag = TypeVar("Tag")

LOOK_UP_S = 0.05
"""How often a waiting thread looks whether it is to stop."""
LET_GO_S = 10.0
"""How long closing waits for a reader that hangs before it is left behind."""
_RATE_S = 1.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueHealth:
    """How one queue stands.

    Attributes
    ----------
    capacity, depth, high_water : int
        Items that may wait, that wait now, and the most that ever waited.
    oldest_s : float
        For how long the oldest of them has waited; 0 where none does.
    rate_per_s : float
        Items that came in, over the last second or two.
    n_in, n_dropped : int
        Items that came in, and those that nobody took: on the way to the disk always none.
    """

    name: str
    capacity: int
    depth: int
    high_water: int
    oldest_s: float
    rate_per_s: float
    n_in: int
    n_dropped: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamCounters:
    """How a stream stands: frames received and lost, items that wait, and the most that ever waited."""

    n_received: int
    n_lost: int
    depth: int
    high_water: int


@dataclass(frozen=True, slots=True)
class _End:
    """The last item in the queue: the reader has ended, by itself or by an error."""

    error: BaseException | None


class Expectation:
    """What the reader waits for, and until when: the watchdog's view of a thread that may hang."""

    def __init__(self) -> None:
        self._now: tuple[str, float, float] | None = None

    def of(self, what: str, within_s: float) -> None:
        """Say that something must come within a time."""
        self._now = what, within_s, time.monotonic() + within_s

    def none(self) -> None:
        """Say that the reader waits for nothing that could fail to come."""
        self._now = None

    def refuse_overdue(self) -> None:
        """Raise if what was to come did not.

        Raises
        ------
        TransportTimeout
        """
        now = self._now
        if now is not None and time.monotonic() > now[2]:
            raise TransportTimeout(
                f"no data: {now[0]} was to come within {now[1]:.3g} s, and nothing did",
                hint="check cable and power; `mpxct doctor` looks at the machine",
            )


class FrameStream(Generic[Tag]):
    """Iterates over what a reader thread takes from `items`, in order; an error of the reader is raised at its place.

    Parameters
    ----------
    items : iterable of (tag, Frame or Lost)
        Runs in the reader thread; a generator is closed there when the stream is closed early.
    capacity : int
        Items that may wait before the reader does.
    on_newest : callable, optional
        Gets the newest frame, in a thread of its own; frames that come while it looks at one are skipped.
    let_go : callable, optional
        Called when the stream is closed early; makes what the reader waits for end.
    expectation : Expectation, optional
        Kept by `items`; what is overdue is raised by `poll` and by iterating.
    """

    def __init__(
        self,
        items: Iterable[tuple[Tag, Frame | Lost]],
        *,
        capacity: int = 64,
        on_newest: Callable[[Frame], None] | None = None,
        let_go: Callable[[], object] | None = None,
        expectation: Expectation | None = None,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}; allowed: 1 or more")
        self._items = items
        self._queue: queue.Queue[tuple[float, tuple[Tag, Frame | Lost] | _End]] = queue.Queue(capacity)
        self._capacity = capacity
        self._let_go = let_go
        self._expectation = expectation or Expectation()
        self._is_stopping = threading.Event()
        self._is_over = False
        self._newest: Frame | None = None
        self._n_received = self._n_lost = self._high_water = 0
        self._rate = _Rate()
        self._thread = threading.Thread(target=self._read, name="frame reader", daemon=True)
        self._viewer = _Viewer(on_newest) if on_newest is not None else None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[tuple[Tag, Frame | Lost]]:
        while not self._is_over:
            item = self.poll()
            if item is not None:
                yield item

    @property
    def is_over(self) -> bool:
        """Whether everything was taken, and the reader has ended."""
        return self._is_over

    def poll(self, timeout_s: float = LOOK_UP_S) -> tuple[Tag, Frame | Lost] | None:
        """Return the next item, or None where none came in time; short, for a long wait lets no Ctrl-C through.

        Raises
        ------
        TransportTimeout
            What the reader waits for is overdue.
        DataLost
            The reader thread died without a word.
        """
        try:
            _, item = self._queue.get(timeout=timeout_s)
        except queue.Empty:
            self._expectation.refuse_overdue()
            if self._is_over or self._thread.is_alive() or not self._queue.empty():
                return None
            item = _End(DataLost("the thread that reads frames died without a word", hint="open the detector again"))
        if not isinstance(item, _End):
            return item
        self._is_over = True
        if item.error is not None:
            raise item.error
        return None

    def newest(self) -> Frame | None:
        """Return the frame that came last, or None before the first; frames in between are nobody's loss."""
        return self._newest

    @property
    def counters(self) -> StreamCounters:
        """How the stream stands now."""
        return StreamCounters(
            n_received=self._n_received,
            n_lost=self._n_lost,
            depth=self._queue.qsize(),
            high_water=self._high_water,
        )

    def health(self) -> tuple[QueueHealth, ...]:
        """Return how each queue stands: that to the disk, and that to the viewer where there is one."""
        with self._queue.mutex:
            waiting = self._queue.queue
            depth, oldest_s = len(waiting), time.monotonic() - waiting[0][0] if waiting else 0.0
        to_disk = QueueHealth(
            name="disk",
            capacity=self._capacity,
            depth=depth,
            high_water=self._high_water,
            oldest_s=oldest_s,
            rate_per_s=self._rate.per_s(),
            n_in=self._rate.n,
        )
        return (to_disk,) if self._viewer is None else (to_disk, self._viewer.health())

    def close(self) -> None:
        """Stop the reader and wait until it has let go of the device; twice does nothing.

        A reader that hangs is left behind after `LET_GO_S`; it can do nothing more than end.
        """
        is_early = not self._is_stopping.is_set() and not self._is_over and self._thread.is_alive()
        self._is_stopping.set()
        if is_early and self._let_go is not None:
            with suppress(Exception):  # what fails there fails for the reader too, which tells of it
                self._let_go()
        deadline_s = time.monotonic() + LET_GO_S
        while self._thread.is_alive() and time.monotonic() < deadline_s:
            self._thread.join(LOOK_UP_S)
        if self._viewer is not None:
            self._viewer.close()

    def _read(self) -> None:
        error: BaseException | None = None
        try:
            for tag, item in self._items:
                self._expectation.none()
                if isinstance(item, Frame):
                    self._newest = item
                    self._n_received += 1
                    if self._viewer is not None:
                        self._viewer.show(item)
                else:
                    self._n_lost += item.n_frames
                self._put((tag, item))
                if self._is_stopping.is_set():
                    break
        except BaseException as caught:  # noqa: BLE001 - whatever it is, it belongs to the one who waits for frames
            error = caught
        try:
            if isinstance(self._items, Generator):
                self._items.close()
        except BaseException as caught:  # noqa: BLE001 - likewise
            error = error or caught
        self._expectation.none()
        self._put(_End(error))

    def _put(self, item: tuple[Tag, Frame | Lost] | _End) -> None:
        came_s = time.monotonic()
        while not self._is_stopping.is_set():
            with suppress(queue.Full):
                self._queue.put((came_s, item), timeout=LOOK_UP_S)
                self._high_water = max(self._high_water, self._queue.qsize())
                if not isinstance(item, _End):
                    self._rate.count()
                return


class _Rate:
    """Counts, and knows how many came in the last second or two."""

    def __init__(self) -> None:
        self.n = 0
        self._marks = [(time.monotonic(), 0)] * 2

    def count(self) -> None:
        self.n += 1
        self._turn()

    def per_s(self) -> float:
        self._turn()
        began_s, n_before = self._marks[0]
        return (self.n - n_before) / max(time.monotonic() - began_s, 1e-3)

    def _turn(self) -> None:
        now_s = time.monotonic()
        if now_s - self._marks[1][0] >= _RATE_S:
            self._marks = [self._marks[1], (now_s, self.n)]


class _Viewer:
    """Shows the newest frame from a thread of its own, whatever time that takes."""

    def __init__(self, show: Callable[[Frame], None]) -> None:
        self._show = show
        self._place: tuple[float, Frame] | None = None
        self._changed = threading.Condition()
        self._is_closing = False
        self._n_shown = 0
        self._rate = _Rate()
        self._thread = threading.Thread(target=self._look, name="viewer", daemon=True)
        self._thread.start()

    def show(self, frame: Frame) -> None:
        with self._changed:
            self._place = time.monotonic(), frame
            self._rate.count()
            self._changed.notify()

    def health(self) -> QueueHealth:
        with self._changed:
            waits, n_shown = self._place, self._n_shown
        return QueueHealth(
            name="viewer",
            capacity=1,
            depth=int(waits is not None),
            high_water=min(self._rate.n, 1),
            oldest_s=time.monotonic() - waits[0] if waits else 0.0,
            rate_per_s=self._rate.per_s(),
            n_in=self._rate.n,
            n_dropped=max(self._rate.n - n_shown - int(waits is not None), 0),
        )

    def close(self) -> None:
        """Let it show the last frame, but do not wait long for one that is stalled."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(10 * LOOK_UP_S)

    def _look(self) -> None:
        while True:
            with self._changed:
                while self._place is None:
                    if self._is_closing:
                        return
                    self._changed.wait()
                _, frame = self._place
                self._place = None
                self._n_shown += 1
            try:
                self._show(frame)
            except Exception:  # noqa: BLE001 - a viewer's failure must not end the scan
                _log.exception("the viewer failed")
