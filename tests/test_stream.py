"""The stream: everything in order, nothing lost, and everyone lets go at the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from acquisition.stream import FrameStream
from firmware_iface.errors import Disconnected
from firmware_iface.frame import Frame, Lost


def frame(sequence: int) -> Frame:
    return Frame(
        counts=np.full((1, 2, 2), sequence, np.uint16),
        thresholds=(0,),
        sequence=sequence,
        timestamp_ns=sequence,
        exposure_ns=1,
        run_id=1,
    )


def lost(sequence: int, n_frames: int) -> Lost:
    return Lost(run_id=1, first_sequence=sequence, n_frames=n_frames, reason="test")


def test_items_come_in_order_and_are_counted() -> None:
    items = [("a", frame(0)), ("a", lost(1, 3)), ("b", frame(4))]
    with FrameStream(items) as stream:
        assert list(stream) == items
        assert (stream.counters.n_received, stream.counters.n_lost, stream.counters.depth) == (2, 3, 0)
        assert 1 <= stream.counters.high_water <= 4


def test_slow_consumer_holds_the_reader_back_and_loses_nothing() -> None:
    taken = 0

    def reader() -> Iterator[tuple[None, Frame]]:
        nonlocal taken
        for sequence in range(50):
            taken = sequence + 1
            yield None, frame(sequence)

    with FrameStream(reader(), capacity=4) as stream:
        time.sleep(0.2)
        assert taken <= 4 + 1, "the reader went on although nobody took its frames"
        assert [item.sequence for _, item in stream if isinstance(item, Frame)] == list(range(50))
        assert stream.counters.high_water <= 4


def test_newest_never_waits_for_the_consumer() -> None:
    with FrameStream([(None, frame(n)) for n in range(3)], capacity=8) as stream:
        deadline = time.monotonic() + 5
        while stream.counters.n_received < 3 and time.monotonic() < deadline:
            time.sleep(0.005)
        newest = stream.newest()
        assert newest is not None
        assert newest.sequence == 2
        assert stream.counters.depth >= 3


def test_newest_is_none_before_the_first_frame() -> None:
    with FrameStream([]) as stream:
        assert list(stream) == []
        assert stream.newest() is None


def test_error_of_the_reader_comes_after_every_frame_before_it() -> None:
    def reader() -> Iterator[tuple[None, Frame]]:
        yield None, frame(0)
        yield None, frame(1)
        raise Disconnected("pulled out")

    seen = []
    with FrameStream(reader()) as stream, pytest.raises(Disconnected, match="pulled out"):
        seen.extend(stream)
    assert len(seen) == 2


def test_early_close_closes_the_generator_in_its_own_thread() -> None:
    closed_in: list[threading.Thread] = []

    def reader() -> Iterator[tuple[None, Frame]]:
        try:
            sequence = 0
            while True:
                yield None, frame(sequence)
                sequence += 1
        finally:
            closed_in.append(threading.current_thread())

    with FrameStream(reader(), capacity=2) as stream:
        next(iter(stream))
    assert len(closed_in) == 1
    assert closed_in[0] is not threading.main_thread()
    assert not closed_in[0].is_alive()
    stream.close()


def test_error_in_the_consumer_stops_the_reader() -> None:
    def consume() -> None:
        with FrameStream([(None, frame(n)) for n in range(100)], capacity=1) as stream:
            for _ in stream:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()
    assert "frame reader" not in [thread.name for thread in threading.enumerate()]


def test_error_while_the_reader_is_closed_is_not_swallowed() -> None:
    class Stubborn:
        def __iter__(self) -> Iterator[tuple[None, Frame]]:
            raise OSError("cannot begin")

    with FrameStream(Stubborn()) as stream, pytest.raises(OSError, match="cannot begin"):
        list(stream)


def test_capacity_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="1 or more"):
        FrameStream([], capacity=0)
