"""serial bits to counts: bit planes of the matrix, clocked out over 1 to 8 data lines, into (256, 256) arrays.

The payload holds the matrix only, as PROTOCOL.md tells it (without the 32-byte info header): rows 0 to 255; per row
the planes from the highest bit down; per plane the clocks; per clock one bit of each data line. Stream bit ``b`` stands
in byte ``b // 8`` at bit ``b % 8``, so that with 8 lines one byte is one clock.

# Ref: row, plane and column order: medipix3rx reference 6.2, from DiamondLightSource/excalibur-detector @099951f3
#      `ExcaliburProcessPlugin.cpp` 569-613 (8 lines); fewer lines are the same rule with wider line blocks, which no
#      source confirms (PROTOCOL.md, "What silicon does not tell").
# Ref: planes of a 1-bit counter need no transposing: a mask spreads one line's bits over the bytes of a word.
# Ref: transposing 8 x 8 bit blocks inside 64-bit words: H. S. Warren, Hacker's Delight, 2nd ed. 2013, section 7-3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

from firmware_iface.chip import COLS, LFSR_STATES, LINES_CODES, ROWS, SUBPIXELS

DEPTHS = (1, 6, 12)
"""Bits per pixel of one readout; a 24-bit count is two readouts of 12."""
_CLOCKS = COLS // 8
_WORDS = _CLOCKS // 8
"""64-bit words per bit plane of one row; one word is 8 clocks of 8 lines."""
# Typed, for Numba turns a mixture of uint64 and plain int into float64.
_ONE, _TWO, _FOUR, _BYTE = np.uint64(1), np.uint64(2), np.uint64(4), np.uint64(8)
_MASK_1, _MASK_2, _MASK_4 = np.uint64(0x5555555555555555), np.uint64(0x3333333333333333), np.uint64(0x0F0F0F0F0F0F0F0F)
_EVEN_BYTES, _PIXEL = np.uint64(0x00FF00FF00FF00FF), np.uint64(0xFFFF)
_EVEN_PAIRS, _LOWEST_BITS, _LOW_BYTE = np.uint64(0x0000FFFF0000FFFF), np.uint64(0x0101010101010101), np.uint64(0xFF)
_PIXEL_1, _PIXEL_2, _PIXEL_3 = np.uint64(16), np.uint64(32), np.uint64(48)

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _compiled(function: _Function) -> _Function:
    """Compile on first use, keep the machine code on disk, and let other threads run meanwhile."""
    return numba.njit(cache=True, nogil=True, boundscheck=False)(function)  # pyright: ignore[reportReturnType]


def _decode_table(depth_bits: int) -> NDArray[np.uint16]:
    """Return the count that belongs to each state of the counter: (2**depth_bits,) uint16."""
    states = LFSR_STATES[depth_bits]
    counts = np.empty_like(states)
    counts[states] = np.arange(len(states), dtype=np.uint16)
    return counts


_RAW: Mapping[int, NDArray[np.uint16]] = {depth: np.arange(1 << depth, dtype=np.uint16) for depth in DEPTHS}
_COUNTS: Mapping[int, NDArray[np.uint16]] = {1: _RAW[1], 6: _decode_table(6), 12: _decode_table(12)}
"""The value of each pattern of bits: as it is, and as the count of the in-pixel LFSR (a 1-bit counter has none)."""


_FITTING: Mapping[int, tuple[type, ...]] = {1: (np.uint8, np.uint16), 6: (np.uint8, np.uint16), 12: (np.uint16,)}
"""What counts of each depth fit into."""


def matrix_bytes(depth_bits: int) -> int:
    """Return how many payload bytes one readout of the matrix has; the number of data lines does not matter."""
    return ROWS * COLS * depth_bits // 8


def decode_matrix(
    payload: bytes | bytearray | memoryview,
    depth_bits: int,
    n_lines: int,
    *,
    out: NDArray[np.uint8] | NDArray[np.uint16] | None = None,
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Turn one readout's bits into counts.

    Parameters
    ----------
    payload : bytes-like
        The matrix, without the info header.
    depth_bits : {1, 6, 12}
        Depth of the counter; 24-bit counts come as two readouts of 12.
    n_lines : {1, 2, 4, 8}
        Number of data lines.
    out : (256, 256) uint16, or uint8 for counts of 1 or 6 bits, optional
        Where to put the counts, to spare an allocation and, with uint8, half the memory.

    Returns
    -------
    counts : (256, 256) uint16, or `out`
        Row 0 is the bottom row of the chip, column 0 its left column.

    Raises
    ------
    ValueError
        The payload does not have the bytes of such a matrix, `out` cannot hold it, or there is no such depth or
        number of lines.
    """
    return _unpack(payload, depth_bits, n_lines, _COUNTS, out)


def raw_matrix(payload: bytes | bytearray | memoryview, depth_bits: int, n_lines: int) -> NDArray[np.uint16]:
    """Turn one readout's bits into words as they are, without the LFSR: a configuration that is read back.

    Parameters and result are those of `decode_matrix`.
    """
    return _unpack(payload, depth_bits, n_lines, _RAW, None)


def colour_planes(matrix: NDArray[np.unsignedinteger]) -> NDArray[np.unsignedinteger]:
    """Take the 2 x 2 clusters of colour mode apart.

    Parameters
    ----------
    matrix : (256, 256) uint16 or uint32
        One counter of every 55 um pixel.

    Returns
    -------
    planes : (4, 128, 128) uint16 or uint32
        Sub-pixels P1 to P4 of each 110 um pixel; P(k+1) holds threshold 2k (counter 0) or 2k + 1 (counter 1).
    """
    if matrix.shape != (ROWS, COLS):
        raise ValueError(f"a matrix of shape {matrix.shape} has no colour clusters; allowed: {(ROWS, COLS)}")
    planes = np.empty((len(SUBPIXELS), ROWS // 2, COLS // 2), dtype=matrix.dtype)
    for plane, (row, column) in zip(planes, SUBPIXELS, strict=True):
        plane[...] = matrix[row::2, column::2]
    return planes


def _unpack(
    payload: bytes | bytearray | memoryview,
    depth_bits: int,
    n_lines: int,
    tables: Mapping[int, NDArray[np.uint16]],
    out: NDArray[Any] | None,
) -> NDArray[Any]:
    if depth_bits not in DEPTHS or n_lines not in LINES_CODES:
        raise ValueError(
            f"no readout has {depth_bits} bits over {n_lines} lines; allowed: {DEPTHS} bits, {tuple(LINES_CODES)} lines"
        )
    if len(payload) != matrix_bytes(depth_bits):
        raise ValueError(
            f"a matrix of {depth_bits} bits came as {len(payload)} bytes; allowed: {matrix_bytes(depth_bits)}"
        )
    counts = np.empty((ROWS, COLS), dtype=np.uint16) if out is None else out
    if counts.shape != (ROWS, COLS) or counts.dtype not in (_FITTING[depth_bits]) or not counts.flags.c_contiguous:
        fitting = " or ".join(np.dtype(kind).name for kind in _FITTING[depth_bits])
        raise ValueError(f"out is {counts.shape} {counts.dtype}; allowed: {(ROWS, COLS)} {fitting}, C-contiguous")
    if n_lines < 8:
        stream = np.frombuffer(payload, dtype=np.uint8)
        _unpack_few_lines(stream, depth_bits, n_lines, tables[depth_bits], counts)
    else:
        words = np.require(np.frombuffer(payload, dtype="<u8").reshape(ROWS, depth_bits, _WORDS), requirements="A")
        if depth_bits == 1:
            _unpack_single_bits(words[:, 0], counts)
        elif depth_bits == 6:
            _unpack_6_planes(words, tables[depth_bits], counts)
        else:
            _unpack_12_planes(words, tables[depth_bits], counts)
    return counts


@_compiled
def _swap(a: np.uint64, b: np.uint64, shift: np.uint64, mask: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Exchange the masked bits of b with those of a that stand ``shift`` higher."""
    swapped = (a >> shift ^ b) & mask
    return a ^ swapped << shift, b ^ swapped


@_compiled
def _transpose_bits(
    a: np.uint64, b: np.uint64, c: np.uint64, d: np.uint64, e: np.uint64, f: np.uint64, g: np.uint64, h: np.uint64
) -> tuple[np.uint64, ...]:
    """Turn the words of 8 bit planes, lowest first, into one word per line.

    In each of the 8 bytes at once, bit L of plane p becomes bit p of line L. Names, not loops, keep all in registers.
    """
    a, e = _swap(a, e, _FOUR, _MASK_4)
    b, f = _swap(b, f, _FOUR, _MASK_4)
    c, g = _swap(c, g, _FOUR, _MASK_4)
    d, h = _swap(d, h, _FOUR, _MASK_4)
    a, c = _swap(a, c, _TWO, _MASK_2)
    b, d = _swap(b, d, _TWO, _MASK_2)
    e, g = _swap(e, g, _TWO, _MASK_2)
    f, h = _swap(f, h, _TWO, _MASK_2)
    a, b = _swap(a, b, _ONE, _MASK_1)
    c, d = _swap(c, d, _ONE, _MASK_1)
    e, f = _swap(e, f, _ONE, _MASK_1)
    g, h = _swap(g, h, _ONE, _MASK_1)
    return a, b, c, d, e, f, g, h


@_compiled
def _reverse_bytes(word: np.uint64) -> np.uint64:
    """Turn the first byte into the last."""
    word = (word & _EVEN_BYTES) << _BYTE | word >> _BYTE & _EVEN_BYTES
    word = (word & _EVEN_PAIRS) << _PIXEL_1 | word >> _PIXEL_1 & _EVEN_PAIRS
    return word << _PIXEL_2 | word >> _PIXEL_2


@_compiled
def _unpack_single_bits(words: NDArray[np.uint64], out: NDArray[Any]) -> None:
    """Unpack (256, 4) uint64 of 1-bit counters: one mask takes 8 pixels of one line out of 8 clocks."""
    line_of_row = np.empty(COLS, dtype=np.uint8)
    eights = line_of_row.view(np.uint64)  # columns go down as clocks go up, so the bytes are reversed first
    for row in range(ROWS):
        for word in range(_WORDS):
            clocks = _reverse_bytes(words[row, word])
            for line in range(8):
                eights[_WORDS * (8 - line) - 1 - word] = clocks >> np.uint64(line) & _LOWEST_BITS
        pixels = out[row]
        for column in range(COLS):
            pixels[column] = line_of_row[column]


@_compiled
def _unpack_6_planes(words: NDArray[np.uint64], table: NDArray[np.uint16], out: NDArray[Any]) -> None:
    """Unpack (256, 6, 4) uint64: one byte per pixel holds all planes."""
    none = np.uint64(0)
    for row in range(ROWS):
        pixels = out[row]
        for word in range(_WORDS):
            p = words[row, :, word]
            lines = _transpose_bits(p[5], p[4], p[3], p[2], p[1], p[0], none, none)
            for line in range(8):
                states = lines[line]
                column = COLS - 1 - _CLOCKS * line - 8 * word
                for clock in range(8):
                    pixels[column - clock] = table[states >> np.uint64(8 * clock) & _LOW_BYTE]


@_compiled
def _unpack_12_planes(words: NDArray[np.uint64], table: NDArray[np.uint16], out: NDArray[np.uint16]) -> None:
    """Unpack (256, 12, 4) uint64, 64 pixels at a time: 8 clocks of 8 lines."""
    none = np.uint64(0)
    for row in range(ROWS):
        pixels = out[row]
        for word in range(_WORDS):
            p = words[row, :, word]
            low_bytes = _transpose_bits(p[11], p[10], p[9], p[8], p[7], p[6], p[5], p[4])
            high_bytes = _transpose_bits(p[3], p[2], p[1], p[0], none, none, none, none)
            for line in range(8):
                low, high = low_bytes[line], high_bytes[line]
                even = low & _EVEN_BYTES | (high & _EVEN_BYTES) << _BYTE
                odd = low >> _BYTE & _EVEN_BYTES | high & ~_EVEN_BYTES
                column = COLS - 1 - _CLOCKS * line - 8 * word
                pixels[column] = table[even & _PIXEL]
                pixels[column - 1] = table[odd & _PIXEL]
                pixels[column - 2] = table[even >> _PIXEL_1 & _PIXEL]
                pixels[column - 3] = table[odd >> _PIXEL_1 & _PIXEL]
                pixels[column - 4] = table[even >> _PIXEL_2 & _PIXEL]
                pixels[column - 5] = table[odd >> _PIXEL_2 & _PIXEL]
                pixels[column - 6] = table[even >> _PIXEL_3]
                pixels[column - 7] = table[odd >> _PIXEL_3]


def _unpack_few_lines(
    stream: NDArray[np.uint8], depth_bits: int, n_lines: int, table: NDArray[np.uint16], out: NDArray[Any]
) -> None:
    """Unpack (n_bytes,) uint8 by NumPy: right for any number of lines, and slower."""
    bits = np.unpackbits(stream, bitorder="little").reshape(ROWS, depth_bits, COLS)
    words = bits[:, 0].astype(np.uint16)
    for plane in range(1, depth_bits):
        words <<= 1
        words |= bits[:, plane]
    by_clock = table[words].reshape(ROWS, COLS // n_lines, n_lines)
    out[:, ::-1] = by_clock.transpose(0, 2, 1).reshape(ROWS, COLS)
