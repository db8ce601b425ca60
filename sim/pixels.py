"""What the pixels do with events and with clocks: the shift registers with feedback that count, and that are read.

Everything exists twice. `FAST` looks a counter's state up in tables and puts eight columns of all bit planes into
bytes at once. `SERIAL` does what the silicon does: every event shifts the register once, every clock gives one bit per
data line. They share no table and no step, and a test demands that they agree bit for bit in every depth and on any
number of lines.

# Ref: rule of the counters: navrit/dexter @c8bc0f46 `FrameAssembler.cpp` 292-326, agreeing with LNLS and DESY.
# Ref: order of the serial bits: DiamondLightSource/excalibur-detector @099951f3 `ExcaliburProcessPlugin.cpp` 569-613
#      (8 lines; fewer by analogy).
# Ref: 24 bits: counter 1 counts the turns of counter 0, whose 12-bit code goes through all its states (reference 2.2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from firmware_iface import chip

States = NDArray[np.uint16]
Events = NDArray[np.uint32]


class PixelLogic(NamedTuple):
    """How counters count and how they leave the chip.

    ``count_one(states, events, depth, saturates)`` advances (rows, cols) uint16 counters in place;
    ``count_both(low, high, events, saturates)`` two of them as one of 24 bits; ``shift_out(words, depth, n_lines)``
    returns the serial bytes of a (256, 256) uint16 counter.
    """

    count_one: Callable[[States, Events, int, bool], None]
    count_both: Callable[[States, States, Events, bool], None]
    shift_out: Callable[[States, int, int], bytes]


# Fast: by tables

_STATES = {1: np.arange(2, dtype=np.uint16), **chip.LFSR_STATES}
_COUNTS = {depth: np.argsort(states).astype(np.uint16) for depth, states in _STATES.items()}
_ROW_BYTES = chip.COLS // 8


def _spread(first_plane: int) -> NDArray[np.uint64]:
    """Return, for every word, its bits from one plane on, one in each byte of 64 bits: (4096,) uint64."""
    words = np.arange(1 << chip.PIXEL_BITS, dtype=np.uint64)
    spread = np.zeros_like(words)
    for byte in range(8):
        spread |= (words >> np.uint64(first_plane + byte) & np.uint64(1)) << np.uint64(8 * byte)
    return spread


_LOW_PLANES, _HIGH_PLANES = _spread(0), _spread(8)


def _columns_in_stream(n_lines: int) -> NDArray[np.int64]:
    """Return the column of each bit of one plane of one row in the order of the stream: (256,) int64."""
    clock, line = np.divmod(np.arange(chip.COLS), n_lines)
    return chip.COLS - 1 - (chip.COLS // n_lines * line + clock)


_COLUMNS = {n_lines: _columns_in_stream(n_lines) for n_lines in chip.LINES_CODES}


def _count_one(states: States, events: Events, depth: int, saturates: bool) -> None:
    _look_up_one(states, events, _STATES[depth], _COUNTS[depth], saturates)


def _count_both(low: States, high: States, events: Events, saturates: bool) -> None:
    _look_up_both(low, high, events, _STATES[12], _COUNTS[12], saturates)


def _shift_out(words: States, depth: int, n_lines: int) -> bytes:
    stream = np.empty((chip.ROWS, depth, _ROW_BYTES), dtype=np.uint8)
    _pack(words, _COLUMNS[n_lines], _LOW_PLANES, _HIGH_PLANES, stream)
    return stream.tobytes()


@njit(cache=True, nogil=True)
def _look_up_one(
    states: NDArray[np.uint16],
    events: NDArray[np.uint32],
    state_of: NDArray[np.uint16],
    count_of: NDArray[np.uint16],
    saturates: bool,
) -> None:
    last = len(state_of) - 1
    for row in range(states.shape[0]):
        for col in range(states.shape[1]):
            total = np.int64(count_of[states[row, col] & last]) + np.int64(events[row, col])
            if total > last:
                total = last if saturates else total & last
            states[row, col] = state_of[total]


@njit(cache=True, nogil=True)
def _look_up_both(
    low: NDArray[np.uint16],
    high: NDArray[np.uint16],
    events: NDArray[np.uint32],
    state_of: NDArray[np.uint16],
    count_of: NDArray[np.uint16],
    saturates: bool,
) -> None:
    turn = len(state_of)
    last = turn**2 - 1
    for row in range(low.shape[0]):
        for col in range(low.shape[1]):
            before = np.int64(count_of[high[row, col]]) * turn + np.int64(count_of[low[row, col]])
            total = before + np.int64(events[row, col])
            if total > last:
                total = last if saturates else total & last
            high[row, col] = state_of[total // turn]
            low[row, col] = state_of[total % turn]


@njit(cache=True, nogil=True)
def _pack(
    words: NDArray[np.uint16],
    columns: NDArray[np.int64],
    low_planes: NDArray[np.uint64],
    high_planes: NDArray[np.uint64],
    stream: NDArray[np.uint8],
) -> None:
    """Fill (rows, depth, 32) uint8: eight columns are spread to one bit per byte and put over each other."""
    depth = stream.shape[1]
    for row in range(words.shape[0]):
        for byte in range(stream.shape[2]):
            low = high = np.uint64(0)
            for position in range(8):
                word = words[row, columns[8 * byte + position]]
                low |= low_planes[word] << np.uint64(position)
                high |= high_planes[word] << np.uint64(position)
            for plane in range(depth):
                planes = low if plane < 8 else high
                stream[row, depth - 1 - plane, byte] = planes >> np.uint64(8 * (plane & 7)) & np.uint64(0xFF)


FAST = PixelLogic(_count_one, _count_both, _shift_out)


# Serial: event by event and clock by clock


def _step_one(states: States, events: Events, depth: int, saturates: bool) -> None:
    _shift_one(states, events, depth, saturates)


def _step_both(low: States, high: States, events: Events, saturates: bool) -> None:
    _shift_both(low, high, events, saturates)


def _clock_out(words: States, depth: int, n_lines: int) -> bytes:
    return _clock(words, depth, n_lines).tobytes()


@njit(cache=True, nogil=True)
def _next_state(state: int, depth: int) -> int:
    """Shift the counter once."""
    if depth == 1:
        return state ^ 1
    new = state & 1 ^ state >> 5 & 1
    if depth == 12:
        new ^= state >> 3 & 1 ^ state >> 11 & 1
    mask = (1 << depth) - 1
    if state & mask >> 1 == 0:
        new ^= 1
    return (state << 1 | new) & mask


@njit(cache=True, nogil=True)
def _shift_one(states: NDArray[np.uint16], events: NDArray[np.uint32], depth: int, saturates: bool) -> None:
    """Advance each counter once per event; the last state is the one after which comes 0."""
    mask = (1 << depth) - 1
    for row in range(states.shape[0]):
        for col in range(states.shape[1]):
            state = int(states[row, col]) & mask
            for _ in range(events[row, col]):
                following = _next_state(state, depth)
                if saturates and following == 0:
                    break
                state = following
            states[row, col] = state


@njit(cache=True, nogil=True)
def _shift_both(low: NDArray[np.uint16], high: NDArray[np.uint16], events: NDArray[np.uint32], saturates: bool) -> None:
    """Advance two counters as one: when the low one comes round to 0 the high one takes a step."""
    for row in range(low.shape[0]):
        for col in range(low.shape[1]):
            below, above = int(low[row, col]), int(high[row, col])
            for _ in range(events[row, col]):
                following, carried = _next_state(below, 12), above
                if following == 0:
                    carried = _next_state(above, 12)
                    if saturates and carried == 0:
                        break
                below, above = following, carried
            low[row, col], high[row, col] = below, above


@njit(cache=True, nogil=True)
def _clock(words: NDArray[np.uint16], depth: int, n_lines: int) -> NDArray[np.uint8]:
    """Clock the matrix out: at every clock each line gives the bit of the next of its columns."""
    rows, cols = words.shape
    stream = np.zeros(rows * cols * depth // 8, dtype=np.uint8)
    per_line = cols // n_lines
    number = 0
    for row in range(rows):
        for plane in range(depth - 1, -1, -1):
            for clock in range(per_line):
                for line in range(n_lines):
                    bit = words[row, cols - 1 - per_line * line - clock] >> plane & 1
                    stream[number >> 3] |= bit << (number & 7)
                    number += 1
    return stream


SERIAL = PixelLogic(_step_one, _step_both, _clock_out)
