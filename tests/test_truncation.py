"""Rows that end inside the object: seen as such, and continued so that the middle comes out level."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.geometry import Geometry
from firmware_iface.errors import WrongUsage
from reconstruction.artefacts import truncation
from reconstruction.fdk import fdk
from reconstruction.volume import Grid
from tests import striped_scans as scans

CUT = 48
WIDE = scans.geometry(rows=1, cols=192)
NARROW = replace(WIDE, cols=192 - 2 * CUT)
ANGLES = scans.angles_rad(120)
GRID = Grid(shape=(1, 90, 90), voxel_mm=0.1)


@cache
def whole() -> NDArray[np.float32]:
    return scans.views_of(scans.the_object("rods"), WIDE, ANGLES)


def cut() -> NDArray[np.float32]:
    return np.ascontiguousarray(whole()[..., CUT:-CUT])


def slice_of(values: NDArray[np.float32], scan: Geometry) -> NDArray[np.float32]:
    work = fdk(values, ANGLES, scan, GRID, is_continued=False)
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value[0, 0]


@cache
def truth() -> NDArray[np.float32]:
    return slice_of(whole(), WIDE)


def errors(method: str | None, attenuation_per_px: float | None = None) -> NDArray[np.float32]:
    """Of the voxels that all cut views see."""
    values, scan = cut(), NARROW
    if method is not None:
        values = truncation.extend(values, 96, method=method, attenuation_per_px=attenuation_per_px)
        scan = replace(NARROW, cols=NARROW.cols + 2 * 96)
    across = np.arange(90) - 44.5
    return (slice_of(values, scan) - truth())[np.hypot(across[:, None], across) < 44]


def rms(values: NDArray[np.floating]) -> float:
    return float(np.sqrt(np.mean(values**2)))


def cupping(values: NDArray[np.floating]) -> float:
    return float(values.max() - values.min())


FACTORS = {"cylinder": (6.0, 3.0), "mirror": (4.0, 3.0), "square-root": (1.6, 3.0), "cosine": (1.6, 3.0)}


@pytest.mark.parametrize("method", FACTORS)
def test_the_error_and_the_bright_rim_shrink_by_a_factor(method: str) -> None:
    of_error, of_cupping = FACTORS[method]
    assert rms(errors(None)) > of_error * rms(errors(method))
    assert cupping(errors(None)) > of_cupping * cupping(errors(method))


def test_a_cylinder_of_known_matter_does_as_well() -> None:
    per_px = 0.02 * WIDE.pitch_mm / WIDE.magnification
    assert rms(errors(None)) > 6 * rms(errors("cylinder", per_px))


def test_the_chords_of_a_cylinder_are_continued_exactly() -> None:
    u = np.arange(-150, 151.0)
    chords = (0.3 * np.sqrt(np.maximum(120.0**2 - u**2, 0))).astype(np.float32)
    seen = chords[60:-60]  # u from -90 to 90
    extended = truncation.extend(seen, 60)
    assert extended.shape == chords.shape
    np.testing.assert_array_equal(extended[60:-60], seen)
    # Single precision, seen through a root.
    np.testing.assert_allclose(extended, chords, atol=0.01 * chords.max())


@pytest.mark.parametrize("shift_px", [0, 25])
def test_those_of_a_cylinder_to_one_side_too_where_its_matter_is_known(shift_px: int) -> None:
    u = np.arange(-150, 151.0)
    chords = (0.3 * np.sqrt(np.maximum(120.0**2 - (u - shift_px) ** 2, 0))).astype(np.float32)
    extended = truncation.extend(chords[60:-60], 60, attenuation_per_px=0.15)
    np.testing.assert_allclose(extended, chords, atol=0.01 * chords.max())


@pytest.mark.parametrize("method", truncation.METHODS)
def test_rows_that_end_in_nothing_stay_so(method: str) -> None:
    extended = truncation.extend(whole(), 20, method=method)
    assert np.abs(extended[..., :20]).max() == 0
    assert np.abs(extended[..., -20:]).max() == 0
    np.testing.assert_array_equal(extended[..., 20:-20], whole())


@pytest.mark.parametrize("method", truncation.METHODS)
def test_both_ends_are_treated_alike(method: str) -> None:
    extended = truncation.extend(cut(), 30, method=method)
    turned = truncation.extend(np.ascontiguousarray(cut()[..., ::-1]), 30, method=method)
    np.testing.assert_allclose(turned[..., ::-1], extended, atol=1e-6)
    assert np.isfinite(extended).all()
    assert extended.min() >= 0


def test_continued_views_come_with_their_detector() -> None:
    values, scan, words = truncation.continued(cut(), NARROW)
    assert scan == replace(NARROW, cols=2 * NARROW.cols)
    assert values.shape[-1] == scan.cols
    assert "48 columns" in words
    np.testing.assert_array_equal(values[..., 48:-48], cut())


def test_cut_views_are_seen_as_cut_and_whole_ones_are_not() -> None:
    noise = 0.02 * np.random.default_rng(1).standard_normal(whole().shape, dtype=np.float32)
    assert not truncation.is_truncated(whole() + noise)
    assert truncation.is_truncated((whole() + noise)[..., CUT:-CUT])
    one_side = truncation.touches(whole()[..., CUT:])
    assert one_side[..., 0].mean() > 0.95
    assert one_side[..., 1].mean() < 0.05


def test_nothing_is_not_cut() -> None:
    assert not truncation.is_truncated(np.zeros((1, 5, 2, 30), np.float32))


def test_a_wider_grid_keeps_its_middle() -> None:
    wide = truncation.wider(GRID, 7)
    assert wide.shape == (1, 104, 104)
    assert truncation.inner(np.zeros((2, *wide.shape)), 7).shape == (2, *GRID.shape)
    np.testing.assert_allclose(wide.axes_mm()[1][7:-7], GRID.axes_mm()[1])


def test_unknown_methods_are_refused() -> None:
    with pytest.raises(WrongUsage, match="allowed: cylinder"):
        truncation.extend(cut(), 3, method="magic")
