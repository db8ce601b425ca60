"""From the detector to the disk without loss: a reader thread, a bounded queue, counters, the newest frame.

The reader thread owns the iterator, and with it the device. When the queue is full it waits, and so does the board
(back-pressure); a viewer looks at `newest` and never holds anything up.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Self, TypeVar

from firmware_iface.frame import Frame, Lost

Tag = TypeVar("Tag")

LOOK_UP_S = 0.05
"""How often a waiting thread looks whether it is to stop."""


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


class FrameStream(Generic[Tag]):
    """Iterates over what a reader thread takes from `items`, in order; an error of the reader is raised at its place.

    Parameters
    ----------
    items : iterable of (tag, Frame or Lost)
        Runs in the reader thread; a generator is closed there when the stream is closed early.
    capacity : int
        Items that may wait before the reader does.
    """

    def __init__(self, items: Iterable[tuple[Tag, Frame | Lost]], *, capacity: int = 64) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}; allowed: 1 or more")
        self._items = items
        self._queue: queue.Queue[tuple[Tag, Frame | Lost] | _End] = queue.Queue(capacity)
        self._is_stopping = threading.Event()
        self._newest: Frame | None = None
        self._n_received = self._n_lost = self._high_water = 0
        self._thread = threading.Thread(target=self._read, name="frame reader", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[tuple[Tag, Frame | Lost]]:
        while True:
            item = self._get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item

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

    def close(self) -> None:
        """Stop the reader and wait until it has let go of the device; twice does nothing."""
        self._is_stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _get(self) -> tuple[Tag, Frame | Lost] | _End:
        """Wait in short turns: a wait without an end would not let Ctrl-C through everywhere."""
        while True:
            with suppress(queue.Empty):
                return self._queue.get(timeout=LOOK_UP_S)
            if not self._thread.is_alive() and self._queue.empty():
                return _End(None)

    def _read(self) -> None:
        error: BaseException | None = None
        try:
            for tag, item in self._items:
                if isinstance(item, Frame):
                    self._newest = item
                    self._n_received += 1
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
        self._put(_End(error))

    def _put(self, item: tuple[Tag, Frame | Lost] | _End) -> None:
        while not self._is_stopping.is_set():
            with suppress(queue.Full):
                self._queue.put(item, timeout=LOOK_UP_S)
                self._high_water = max(self._high_water, self._queue.qsize())
                return
