"""Rings in a slice go, whole ones and arcs; what is no ring stays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reconstruction.artefacts import polar
from reconstruction.volume import Grid

N = 121
GRID = Grid(shape=(2, N, N), voxel_mm=0.1, centre_mm=(0.5, -0.3, 0.0))


def places() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    _, y, x = GRID.axes_mm()
    return np.hypot(y[:, None], x), np.arctan2(y[:, None], x + 0 * y[:, None])


def body() -> NDArray[np.float32]:
    """A disc with three smaller ones, none on the axis, and noise."""
    _, y, x = GRID.axes_mm()
    slice_ = np.zeros((N, N))
    for x0, y0, radius, value in ((0.3, 0.2, 5.0, 1.0), (2, 1, 1.0, 0.5), (-2, 1.5, 0.7, -0.4), (1, -2.5, 1.2, 0.3)):
        slice_ += value * (np.hypot(y[:, None] - y0, x - x0) < radius)
    noise = 0.02 * np.random.default_rng(1).standard_normal((1, 2, N, N))
    return (slice_ + noise).astype(np.float32)


def rings() -> NDArray[np.float32]:
    """As blurred as a filtered back-projection makes them: up and down again in two voxels each."""
    radius, _ = places()
    at = np.arange(0, 80, 2.0)
    heights = 0.08 * np.random.default_rng(2).standard_normal(len(at)) * (np.arange(len(at)) % 2 == 0)
    return np.interp(radius / GRID.voxel_mm, at, heights).astype(np.float32)


def inside() -> NDArray[np.bool_]:
    radius, _ = places()
    return (radius > 0.8) & (radius < 4.2)


def energy(values: NDArray[np.floating]) -> float:
    return float(np.mean(values[0, :, inside()] ** 2))


def test_rings_lose_most_of_their_energy() -> None:
    striped = body() + rings()
    taken = striped.copy()
    result, words = polar.suppress(taken, GRID)
    assert result is taken
    assert "polar" in words
    added = energy(striped - body())
    assert energy(taken - body()) < 0.35 * added


def test_an_arc_of_a_third_of_the_circle_goes_too() -> None:
    _, angle = places()
    arcs = rings() * (np.abs(angle) < np.pi / 3)
    striped = body() + arcs
    taken = polar.suppress(striped.copy(), GRID, arc_rad=np.deg2rad(30))[0]
    assert energy(taken - body()) < 0.6 * energy(striped - body())


def test_a_slice_without_rings_changes_less_than_its_noise() -> None:
    changed = polar.suppress(body(), GRID)[0] - body()
    assert energy(changed) < 0.25 * 0.02**2


def test_slices_and_channels_are_their_own() -> None:
    both = np.concatenate([body(), body()[:, ::-1] + rings()])
    whole = polar.suppress(both.copy(), GRID, n_threads=2)[0]
    one = polar.suppress(both[1:].copy(), GRID, n_threads=1)[0]
    np.testing.assert_array_equal(whole[1:], one)
