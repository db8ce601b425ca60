"""Lines in and out of the simulated board: pulse generators on its trigger inputs, and what its outputs showed.

Lines are functions of the board's own time, so the same run sees the same edges, however slowly the host reads.

# Ref: what the outputs follow: Merlin manual v0.7 pp. 21-22 and 38.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from firmware_iface.wire import TriggerOut

_MAX_INTERVALS = 4096
_POSITION_HIGH_NS = 10_000


class Input(Protocol):
    """What is connected to a trigger input."""

    def next_edge_ns(self, after_ns: int, *, is_rising: bool) -> int | None:
        """Return the first edge at or after a time; None: there is none to come, as far as it is known."""
        ...

    def n_edges(self, begin_ns: int, end_ns: int, *, is_rising: bool) -> int:
        """Return how many edges there are from a time until before another."""
        ...

    def pulses(self, begin_ns: int, end_ns: int) -> Iterator[tuple[int, int]]:
        """Yield from when to when it is high, for the last pulses that rise from a time until before another."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulser:
    """A generator of pulses: high from each multiple of its period.

    Attributes
    ----------
    period_ns, high_ns : int
        From rise to rise, and from rise to fall.
    first_ns : int
        The first rise.
    """

    period_ns: int
    high_ns: int
    first_ns: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.high_ns < self.period_ns:
            raise ValueError(f"pulses of {self.high_ns} ns every {self.period_ns} ns; allowed: shorter than the period")

    def next_edge_ns(self, after_ns: int, *, is_rising: bool) -> int:
        """Return the first edge at or after a time."""
        first_ns = self.first_ns + (0 if is_rising else self.high_ns)
        n_periods = max(-(-(after_ns - first_ns) // self.period_ns), 0)
        return first_ns + n_periods * self.period_ns

    def n_edges(self, begin_ns: int, end_ns: int, *, is_rising: bool) -> int:
        """Return how many edges there are from a time until before another."""
        first_ns = self.next_edge_ns(begin_ns, is_rising=is_rising)
        return max(-(-(end_ns - first_ns) // self.period_ns), 0)

    def pulses(self, begin_ns: int, end_ns: int) -> Iterator[tuple[int, int]]:
        """Yield from when to when it is high, for the last pulses that rise from a time until before another."""
        first_ns = self.next_edge_ns(begin_ns, is_rising=True)
        n_pulses = self.n_edges(begin_ns, end_ns, is_rising=True)
        for n in range(max(n_pulses - _MAX_INTERVALS, 0), n_pulses):
            yield first_ns + n * self.period_ns, first_ns + n * self.period_ns + self.high_ns


class PositionPulses:
    """The position output of a stage: a pulse where each of the equal parts of a sweep begins, and none else."""

    def __init__(self) -> None:
        self._first_ns = self._duration_ns = self._n = self._n_given = self._high_ns = 0

    def begin(self, first_ns: int, duration_ns: int, n: int) -> None:
        """Give n pulses, evenly over a time."""
        self._first_ns, self._duration_ns, self._n, self._n_given = first_ns, duration_ns, n, n
        self._high_ns = max(min(_POSITION_HIGH_NS, duration_ns // n // 2), 1)

    def end(self, now_ns: int) -> None:
        """Give no pulse from now on: the stage was stopped."""
        self._n_given = self._n_before(now_ns)

    def next_edge_ns(self, after_ns: int, *, is_rising: bool) -> int | None:
        """Return the first edge at or after a time; None when the sweep is over, or none has begun."""
        high_ns = 0 if is_rising else self._high_ns
        n = self._n_before(after_ns - high_ns)
        return self._rise_ns(n) + high_ns if n < self._n_given else None

    def n_edges(self, begin_ns: int, end_ns: int, *, is_rising: bool) -> int:
        """Return how many edges there are from a time until before another."""
        high_ns = 0 if is_rising else self._high_ns
        return max(self._n_before(end_ns - high_ns) - self._n_before(begin_ns - high_ns), 0)

    def pulses(self, begin_ns: int, end_ns: int) -> Iterator[tuple[int, int]]:
        """Yield from when to when it is high, for the pulses that rise from a time until before another."""
        for n in range(self._n_before(begin_ns), self._n_before(end_ns)):
            yield self._rise_ns(n), self._rise_ns(n) + self._high_ns

    def _rise_ns(self, n: int) -> int:
        return self._first_ns + n * self._duration_ns // self._n if self._n else 0

    def _n_before(self, time_ns: int) -> int:
        """Return how many pulses rise before a time."""
        if time_ns <= self._first_ns or not self._n:
            return 0
        return min(-(-(time_ns - self._first_ns) * self._n // self._duration_ns), self._n_given)


class Output:
    """One trigger output: the times during which it was active, the last of them."""

    def __init__(self) -> None:
        self._intervals: deque[tuple[int, int]] = deque(maxlen=_MAX_INTERVALS)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield from when to when, in ns, it was active."""
        return iter(self._intervals)

    def clear(self) -> None:
        """Forget what was."""
        self._intervals.clear()

    def show(self, source: TriggerOut, intervals: dict[TriggerOut, tuple[int, int]]) -> None:
        """Take that interval of one frame, if any, which is its source's."""
        if source in intervals:
            self.add(*intervals[source])

    def add(self, begin_ns: int, end_ns: int) -> None:
        """Take one interval, joined to the last where they touch."""
        if self._intervals and self._intervals[-1][1] >= begin_ns:
            begin_ns, _ = self._intervals.pop()
        self._intervals.append((begin_ns, end_ns))
