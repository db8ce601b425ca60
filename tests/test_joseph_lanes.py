"""Interpolation at equal steps, eight at a time, against the matrix that it stands for."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from reconstruction.kernels.joseph_lanes import PAD_AFTER, PAD_BEFORE, SHORTEST_STEP, read, share, spread

N_LINES = 2
steps = st.one_of(st.floats(SHORTEST_STEP, 6), st.sampled_from([1.0, 1 + 1 / 7, 1 - 1 / 15, 2.0]))


def padded(values: np.ndarray) -> np.ndarray:
    return np.pad(values, ((0, 0), (PAD_BEFORE, PAD_AFTER)))


@given(step=steps, start=st.floats(-50, 60), n=st.integers(1, 70), rows=st.integers(1, 70), is_double=st.booleans())
@settings(max_examples=200, deadline=None)
def test_reading_and_spreading_are_a_matrix_and_its_transpose(step, start, n, rows, is_double):
    dtype, rounding = (np.float64, 1e-11) if is_double else (np.float32, 1e-4)
    rng = np.random.default_rng(n * 100 + rows)
    values, sums = rng.random((N_LINES, n)).astype(dtype), rng.random((N_LINES, rows)).astype(dtype)
    positions = start + step * np.arange(rows)
    matrix = np.maximum(1 - np.abs(positions[:, None] - np.arange(n)), 0)

    inside = np.flatnonzero((positions > -1) & (positions < n))
    if len(inside):
        line, got = padded(values), padded(sums)
        ends = inside[0], inside[-1] + 1
        read(
            got.ravel(), PAD_BEFORE, got.shape[1], line.ravel(), PAD_BEFORE, line.shape[1], N_LINES, start, step, *ends
        )
        within = slice(PAD_BEFORE + ends[0], PAD_BEFORE + ends[1])
        np.testing.assert_allclose(got[:, within], (sums + values @ matrix.T)[:, slice(*ends)], atol=rounding)
        np.testing.assert_array_equal(got[:, : within.start], padded(sums)[:, : within.start])

    touched = np.flatnonzero(matrix.any(0))
    if len(touched):
        ends = touched[0], touched[-1] + 1
        rows_in, expected = padded(sums), sums @ matrix
        line, pair = padded(values), np.stack([padded(values), padded(-values)])
        at = rows_in.ravel(), PAD_BEFORE, rows_in.shape[1]
        spread(*at, line.ravel(), PAD_BEFORE, line.shape[1], N_LINES, 0.5, start, step, *ends)
        sides = PAD_BEFORE, PAD_BEFORE + N_LINES * line.shape[1]
        share(*at, pair.ravel(), *sides, line.shape[1], N_LINES, 0.25, 0.75, start, step, *ends)
        within = slice(PAD_BEFORE + ends[0], PAD_BEFORE + ends[1])
        for found, before, part in ((line, values, 0.5), (pair[0], values, 0.25), (pair[1], -values, 0.75)):
            np.testing.assert_allclose(found[:, within], (before + part * expected)[:, slice(*ends)], atol=rounding)
            np.testing.assert_array_equal(found[:, : within.start], padded(before)[:, : within.start])
