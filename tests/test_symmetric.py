"""Symmetric matrices packed: whole again they are the same, and so are their inverses."""

from __future__ import annotations

import numpy as np
import pytest

from reconstruction.symmetric import inverse_packed, packed, packed_size, pairs, place, unpacked


def test_packing_round_trips_and_inverts() -> None:
    roots = np.random.default_rng(7).normal(size=(3, 3, 4, 5)) + 3 * np.eye(3)[..., None, None]
    full = np.einsum("ik...,jk...->ij...", roots, roots)
    rows = packed(full)
    assert rows.shape == (packed_size(3), 4, 5)
    assert [place(i, j, 3) for i, j in pairs(3)] == list(range(6))
    assert place(2, 1, 3) == place(1, 2, 3)
    np.testing.assert_array_equal(unpacked(rows), full)
    whole = np.moveaxis(full, (0, 1), (-2, -1))
    inverse = np.moveaxis(unpacked(inverse_packed(rows)), (0, 1), (-2, -1))
    assert inverse == pytest.approx(np.linalg.inv(whole), rel=1e-4, abs=1e-6)


def test_what_has_no_inverse_has_an_infinite_one() -> None:
    alike = packed(np.outer([1.0, 2, 3], [1.0, 2, 3])[..., None])
    assert np.isinf(inverse_packed(alike)).all()
