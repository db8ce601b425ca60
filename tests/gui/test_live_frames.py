"""The store of the live view: no frame is counted twice or never, sums are numpy's, and nothing goes backwards."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_iface.frame import Frame, Lost
from gui.live.frames import BLOCK, RATE_S, FrameStore, Rate

SHAPE = (2, 3, 4)


def a_frame(sequence: int, *, run_id: int = 1, kind: type = np.uint16, shape: tuple[int, ...] = SHAPE) -> Frame:
    rng = np.random.default_rng(sequence)
    counts = rng.integers(0, 4096, shape).astype(kind)
    return Frame(counts=counts, thresholds=(0, 1), sequence=sequence, timestamp_ns=0, exposure_ns=10_000, run_id=run_id)


def lost(sequence: int, n: int = 1) -> Lost:
    return Lost(run_id=1, first_sequence=sequence, n_frames=n, reason="dropped on purpose")


def summed(frames: Sequence[Frame]) -> np.ndarray:
    return np.sum([frame.counts for frame in frames], axis=0, dtype=np.uint64)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 40)), max_size=25),
    st.integers(1, 120),
    st.integers(1, 100),
    st.sampled_from([np.uint16, np.uint32]),
)
def test_sums_are_numpys_over_any_interleaving(
    parts: list[tuple[int, int]], most_frames: int, n_last: int, kind: type
) -> None:
    store, came, n_lost, n_late, sequence = FrameStore(most_frames=most_frames), [], 0, 0, 0
    items = 0
    for what, n in parts:
        if what == 0:
            store.push(lost(sequence, n))
            n_lost, sequence, items = n_lost + n, sequence + n, items + 1
        elif what == 1 and came:
            store.push(came[-1])  # a second time, or late
            n_late += 1
        else:
            for _ in range(n):
                frame = a_frame(sequence, kind=kind)
                store.push(frame)
                came.append(frame)
                sequence, items = sequence + 1, items + 1
    status = store.status()
    assert (status.n_received, status.n_lost, status.n_late) == (len(came), n_lost, n_late)
    assert status.end == items
    assert status.end - status.first == min(items, most_frames)
    total, last = store.running(), store.last(n_last)
    if not came:
        assert total is None
        assert last is None
        return
    assert total is not None
    assert last is not None
    np.testing.assert_array_equal(total.counts, summed(came))
    assert total.exposure_s == pytest.approx(1e-5 * len(came))
    np.testing.assert_array_equal(last.counts, summed(came[len(came) - last.n_frames :]))
    assert last.n_frames <= n_last
    if n_lost == 0:
        assert last.n_frames == min(n_last, len(came), most_frames)
    newest = store.newest()
    assert newest is not None
    assert newest.counts is came[-1].counts


def test_what_is_asked_while_frames_come_is_whole() -> None:
    store = FrameStore(most_frames=200)
    frames = [a_frame(0), a_frame(1)]
    step = [frame.counts.astype(np.uint64) for frame in frames]
    is_over = threading.Event()
    wrong = []

    def push() -> None:
        for n in range(10_000):
            one = frames[n % 2]
            store.push(
                Frame(counts=one.counts, thresholds=(0, 1), sequence=n, timestamp_ns=0, exposure_ns=10_000, run_id=1)
            )
        is_over.set()

    thread = threading.Thread(target=push)
    thread.start()
    n_before = 0
    while not is_over.is_set():
        for picture in (store.running(), store.last(70)):
            if picture is None:
                continue
            even = picture.n_frames - picture.n_frames // 2, picture.n_frames // 2
            either = [even[0] * step[0] + even[1] * step[1], even[1] * step[0] + even[0] * step[1]]
            if not any(np.array_equal(picture.counts, each) for each in either):
                wrong.append(picture.n_frames)
        now = store.status().n_received
        assert now >= n_before
        n_before = now
    thread.join()
    assert not wrong
    assert store.status().n_received == 10_000
    assert store.status().n_lost == 0


def test_the_newest_never_goes_backwards() -> None:
    store = FrameStore()
    for frame in (a_frame(5), a_frame(3), a_frame(5), a_frame(6), a_frame(0, run_id=2), a_frame(7)):
        store.push(frame)
    newest = store.newest()
    assert newest is not None
    np.testing.assert_array_equal(newest.counts, a_frame(0).counts)
    assert store.status().n_received == 3
    assert store.status().n_late == 3


def test_memory_is_bounded_and_one_frame_always_stays() -> None:
    frame_bytes = a_frame(0).counts.nbytes
    store = FrameStore(most_bytes=3 * frame_bytes)
    for n in range(100):
        store.push(a_frame(n))
    assert store.status().n_bytes == 3 * frame_bytes
    last = store.last(1000)
    assert last is not None
    assert last.n_frames == 3
    small = FrameStore(most_bytes=1)
    small.push(a_frame(0))
    small.push(a_frame(1))
    assert small.status().end - small.status().first == 1
    assert len(store._blocks) <= 100 // BLOCK


def test_losses_are_gaps_that_can_be_scrolled_to() -> None:
    store = FrameStore()
    for item in (a_frame(0), lost(1, 4), a_frame(5)):
        store.push(item)
    memory = store.memory()
    gap = memory.item(1)
    assert isinstance(gap, Lost)
    assert gap.n_frames == 4
    first, newest = memory.item(-7), memory.item(99)
    assert isinstance(first, Frame)
    assert isinstance(newest, Frame)
    assert (first.sequence, newest.sequence) == (0, 5)


def test_only_losses_leave_the_newest_frame_and_no_sum_of_nothing() -> None:
    store = FrameStore(most_frames=2)
    store.push(a_frame(0))
    for n in range(1, 5):
        store.push(lost(n))
    last = store.last(3)
    assert last is not None
    assert last.n_frames == 1
    np.testing.assert_array_equal(last.counts, a_frame(0).counts)


def test_another_shape_and_begin_forget_what_was() -> None:
    store = FrameStore()
    store.push(a_frame(0))
    store.push(a_frame(1, shape=(2, 5, 5)))
    total = store.running()
    assert total is not None
    assert total.counts.shape == (2, 5, 5)
    assert store.status().n_received == 1
    store.begin()
    assert store.running() is None
    assert store.memory().item(0) is None
    assert store.status().end == 0


def test_nobody_who_asks_for_the_newest_or_how_it_stands_waits_for_a_frame_that_is_added() -> None:
    store = FrameStore()
    store.push(a_frame(0))
    told: list[object] = []
    with store._lock:  # as while a frame is added
        asking = threading.Thread(target=lambda: told.extend((store.newest(), store.status())), daemon=True)
        asking.start()
        asking.join(10.0)
        assert len(told) == 2
    assert store.status().n_received == 1


def test_a_rate_is_nothing_soon_after_the_last_came(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [100.0]
    monkeypatch.setattr("gui.live.frames.time.monotonic", lambda: now_s[0])
    rate = Rate()
    for _ in range(300):
        now_s[0] += 0.01
        rate.count()
    assert rate.per_s() == pytest.approx(100.0, rel=0.02)
    now_s[0] += 2.5 * RATE_S
    assert rate.per_s() == 0.0
    for _ in range(50):
        now_s[0] += 0.01
        rate.count()
    assert rate.per_s() == pytest.approx(100.0, rel=0.05), "what came before the pause does not count"
