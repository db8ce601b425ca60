"""Serial bits to counts, against the order and the counter's rule as the reference tells them, stepped one by one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from firmware_iface.bitplanes import colour_planes, decode_matrix, matrix_bytes, raw_matrix
from firmware_iface.chip import LFSR_STATES


def step(state: int, n_bits: int) -> int:
    """Advance the in-pixel counter by one, as the reference writes the rule."""
    taps = {12: (0, 3, 5, 11), 6: (0, 5)}[n_bits]
    nor_term = all(state >> bit & 1 == 0 for bit in range(n_bits - 1))
    new = sum(state >> tap & 1 for tap in taps) + nor_term & 1
    return (state << 1 | new) % 2**n_bits


def serialise(words: NDArray[np.uint16], depth_bits: int, n_lines: int) -> bytes:
    """Clock a matrix out as the chip does: rows upward, planes downward, clock by clock, line by line."""
    per_line = 256 // n_lines
    stream: list[int] = []
    for row in words.tolist():
        for plane in reversed(range(depth_bits)):
            for clock in range(per_line):
                columns = [255 - (per_line * line + clock) for line in range(n_lines)]
                stream += [row[column] >> plane & 1 for column in columns]
    packed = bytearray(len(stream) // 8)
    for number, bit in enumerate(stream):
        packed[number // 8] |= bit << number % 8
    return bytes(packed)


def patterns(depth_bits: int) -> NDArray[np.uint16]:
    return np.random.default_rng(depth_bits).integers(0, 1 << depth_bits, (256, 256), dtype=np.uint16)


@pytest.mark.parametrize("n_lines", [1, 2, 4, 8])
@pytest.mark.parametrize("depth_bits", [1, 6, 12])
def test_bits_come_out_as_the_chip_shifted_them(depth_bits: int, n_lines: int) -> None:
    words = patterns(depth_bits)
    np.testing.assert_array_equal(raw_matrix(serialise(words, depth_bits, n_lines), depth_bits, n_lines), words)


@pytest.mark.parametrize("n_lines", [1, 8])
@pytest.mark.parametrize("depth_bits", [6, 12])
def test_counts_are_steps_of_the_counter(depth_bits: int, n_lines: int) -> None:
    counts = patterns(depth_bits)
    counts.flat[: 1 << depth_bits] = np.arange(1 << depth_bits)
    state_of, state = [], 0
    for _ in range(1 << depth_bits):
        state_of.append(state)
        state = step(state, depth_bits)
    assert state == 0, "the counter comes round after all its states"
    payload = serialise(np.array(state_of, dtype=np.uint16)[counts], depth_bits, n_lines)
    np.testing.assert_array_equal(decode_matrix(payload, depth_bits, n_lines), counts)


def test_one_bit_counts_are_not_decoded() -> None:
    words = patterns(1)
    np.testing.assert_array_equal(decode_matrix(serialise(words, 1, 8), 1, 8), words)


def test_counter_states_are_those_of_the_published_receivers() -> None:
    assert [int(LFSR_STATES[12][n]) for n in (10, 100, 1000, 4095)] == [0x3DC, 0x417, 0x35B, 0x800]
    digest = hashlib.sha256(LFSR_STATES[12].astype("<u2").tobytes()).hexdigest()
    assert digest == "b808d44311a6bdbee03fca31483001b34582b361e59ec59a056412443b5da978"
    digest = hashlib.sha256(LFSR_STATES[6].astype("u1").tobytes()).hexdigest()
    assert digest == "0f1e911ae3f1bb2f730958da7cabc2de50b9ab484fc7c7b87fa5b3f3fe463f8b"


def test_worked_bytes() -> None:
    payload = bytearray(98304)
    payload[352] = 0x01  # row 0, plane 0, clock 0, line 0: state 001 in column 255
    payload[351] = payload[383] = 0x80  # row 0, planes 1 and 0, clock 31, line 7: state 003 in column 0
    payload[384 * 255 + 352] = 0x02  # row 255, plane 0, clock 0, line 1: column 223
    counts = decode_matrix(payload, 12, 8)
    assert (counts[0, 255], counts[0, 0], counts[255, 223]) == (1, 2, 1)
    assert np.count_nonzero(counts) == 3


def test_any_bytes_like_and_any_alignment_will_do() -> None:
    payload = serialise(patterns(12), 12, 8)
    shifted = memoryview(b"xyz" + payload)[3:]
    out = np.empty((256, 256), dtype=np.uint16)
    assert decode_matrix(shifted, 12, 8, out=out) is out
    np.testing.assert_array_equal(out, decode_matrix(bytearray(payload), 12, 8))


@pytest.mark.parametrize("n_lines", [1, 2, 4, 8])
@pytest.mark.parametrize("depth_bits", [1, 6])
def test_shallow_counts_fit_into_bytes(depth_bits: int, n_lines: int) -> None:
    payload = serialise(patterns(depth_bits), depth_bits, n_lines)
    out = np.empty((256, 256), dtype=np.uint8)
    assert decode_matrix(payload, depth_bits, n_lines, out=out) is out
    np.testing.assert_array_equal(out, decode_matrix(payload, depth_bits, n_lines))


@pytest.mark.parametrize(
    ("depth_bits", "out"),
    [
        (12, np.empty((256, 256), dtype=np.uint8)),
        (1, np.empty((256, 256), dtype=np.int64)),
        (1, np.empty((128, 256), dtype=np.uint8)),
        (6, np.empty((256, 512), dtype=np.uint8)[:, ::2]),
    ],
)
def test_arrays_that_cannot_hold_the_counts_are_refused(depth_bits: int, out: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="out is"):
        decode_matrix(bytes(matrix_bytes(depth_bits)), depth_bits, 8, out=out)


@pytest.mark.parametrize("decode", [decode_matrix, raw_matrix])
@pytest.mark.parametrize(
    ("n_bytes", "depth_bits", "n_lines"),
    [(98303, 12, 8), (98336, 12, 8), (98304, 24, 8), (98304, 12, 3), (98304, 6, 1)],
)
def test_what_cannot_be_a_matrix_is_refused(
    decode: Callable[..., object], n_bytes: int, depth_bits: int, n_lines: int
) -> None:
    with pytest.raises(ValueError, match="allowed"):
        decode(bytes(n_bytes), depth_bits, n_lines)


def test_bytes_of_a_matrix() -> None:
    assert [matrix_bytes(depth) for depth in (1, 6, 12)] == [8192, 49152, 98304]


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_each_pixel_of_a_cluster_goes_to_its_plane(dtype: type) -> None:
    matrix = np.zeros((256, 256), dtype=dtype)
    # As seen with the top row first, a cluster is P3 P1 over P4 P2; here row 0 is at the bottom.
    matrix[::-1][0::2, 1::2] = 1
    matrix[::-1][1::2, 1::2] = 2
    matrix[::-1][0::2, 0::2] = 3
    matrix[::-1][1::2, 0::2] = 4
    planes = colour_planes(matrix)
    assert planes.shape == (4, 128, 128)
    assert planes.dtype == dtype
    assert [set(plane.ravel().tolist()) for plane in planes] == [{1}, {2}, {3}, {4}]


def test_colour_keeps_rows_and_columns_in_order() -> None:
    matrix = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    planes = colour_planes(matrix)
    assert planes[3, 5, 7] == matrix[10, 14]
    assert planes[0, 127, 127] == matrix[255, 255]
    with pytest.raises(ValueError, match="clusters"):
        colour_planes(matrix[:128])
