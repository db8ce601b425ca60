"""Laws of the pixel classes and of the one filling policy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from calibration.pixels import SUSPECT, PixelClass, at_edge, fill, is_unsteady, is_unusable
from calibration.pixels import classify as judge

SHAPE = (32, 48)


def classify(*args: Any, **options: Any) -> np.ndarray:
    """Classify, and leave out which pixels are at the edge: that is the same in every image."""
    return judge(*args, **options) & ~np.uint16(PixelClass.EDGE)


def _flats(rng: np.random.Generator, n_frames: int = 50, mean: float = 400.0, drift: float = 0.0) -> np.ndarray:
    """Poisson frames of two counters under a field that is not flat."""
    field = mean * (1 + 0.3 * np.linspace(-1, 1, SHAPE[1]))[None, :] * np.ones(SHAPE)
    level = 1 + drift * np.linspace(-1, 1, n_frames)[:, None, None, None]
    return rng.poisson(np.stack([field, 0.4 * field]) * level).astype(np.uint16)


def _dark(n_frames: int = 20) -> np.ndarray:
    return np.zeros((n_frames, 2, *SHAPE), dtype=np.uint16)


def test_a_good_detector_has_no_bad_pixel() -> None:
    rng = np.random.default_rng(1)
    assert not classify(_dark(), _flats(rng)).any()


@pytest.mark.parametrize(("mean", "n_frames"), [(0.5, 200), (3.0, 200), (40.0, 4), (400.0, 5)])
def test_few_photons_and_few_frames_alone_make_no_pixel_bad(mean: float, n_frames: int) -> None:
    rng = np.random.default_rng(2)
    assert not classify(_dark(), _flats(rng, mean=mean, n_frames=n_frames)).any()


@pytest.mark.parametrize("mean", [0.02, 0.5, 3.0])
def test_weak_flats_make_no_pixel_too_bright_or_too_dark_by_chance(mean: float) -> None:
    flats = _flats(np.random.default_rng(8), mean=mean, n_frames=10)
    assert not (classify(_dark(), flats) & (PixelClass.OVER | PixelClass.UNDER)).any()


@pytest.mark.parametrize(("jump", "is_telegraph"), [(0.25, True), (0.08, False)])
def test_telegraph_noise_begins_where_its_variance_is_three_times_that_of_counting(
    jump: float, is_telegraph: bool
) -> None:
    mean = 900.0
    shape = (200, 1, *SHAPE)
    flats = np.random.default_rng(9).normal(mean, np.sqrt(mean), shape)
    flats[::2, 0, 20, 20] *= 1 - jump  # variance over mean: 1 + 900 jump^2 / 4 / (1 - jump / 2)
    assert bool(classify(_dark()[:, :1], flats)[20, 20] & PixelClass.TELEGRAPH) is is_telegraph


def test_each_fault_gets_its_own_reason_and_no_neighbour_is_blamed() -> None:
    rng = np.random.default_rng(3)
    flats, dark = _flats(rng), _dark()
    flats[:, 1, 4, 5] = flats[:, 0, 3, 3] = 0  # the second is switched off, not dead
    flats[:, 0, 8, 8] //= 4
    flats[:, 0, 12, 40] *= 3
    flats[::2, 0, 20, 20] //= 2
    dark[7, 1, 30, 30] = 2
    dark[:, 0, 25, 10] = 3
    result = classify(dark, flats, is_out_of_range=_one(1, 1), has_no_edge=_one(2, 2), is_masked=_one(3, 3))
    expected = {
        (4, 5): PixelClass.DEAD,
        (8, 8): PixelClass.UNDER,
        (12, 40): PixelClass.OVER,
        (20, 20): PixelClass.TELEGRAPH,
        (30, 30): PixelClass.NOISY,
        (25, 10): PixelClass.HOT,
        (1, 1): PixelClass.OUT_OF_TRIM,
        (2, 2): PixelClass.NO_EDGE,
        (3, 3): PixelClass.MASKED,
    }
    for (row, col), reason in expected.items():
        assert PixelClass(int(result[row, col])) & reason, (row, col)
    assert result[3, 3] == PixelClass.MASKED
    assert np.count_nonzero(result) == len(expected)


def test_drift_that_all_pixels_share_is_not_telegraph_noise() -> None:
    rng = np.random.default_rng(4)
    drifting = _flats(rng, drift=0.4)
    assert (drifting[:, 0].var(axis=0) / drifting[:, 0].mean(axis=0)).min() > 3
    assert not classify(_dark(), drifting).any()


def test_two_pixels_gone_mad_do_not_make_the_others_look_unsteady() -> None:
    flats = _flats(np.random.default_rng(10)).astype(np.uint32)
    flats[::2, :, 7, [5, 40]] = 400_000
    assert np.argwhere(classify(_dark(), flats)).tolist() == [[7, 5], [7, 40]]


def test_a_stated_dark_rate_excuses_its_own_counts_only() -> None:
    rng = np.random.default_rng(5)
    dark = rng.poisson(0.5, size=(20, 2, *SHAPE))
    dark[:, 0, 3, 3] += 3
    result = classify(dark, _flats(rng), dark_rate=0.5)
    assert np.argwhere(result).tolist() == [[3, 3]]


def test_fill_leaves_good_pixels_alone_and_is_exact_on_a_slope() -> None:
    y, x = np.indices(SHAPE)
    slope = (2.0 * y - 3.0 * x + 7).astype(np.float32)
    images = np.stack([slope, -slope])[None]
    is_bad = np.zeros(SHAPE, dtype=bool)
    is_bad[5, 5] = is_bad[20, 33] = True
    broken = np.where(is_bad, np.nan, images)
    filled = fill(broken, is_bad)
    np.testing.assert_allclose(filled, images, rtol=1e-6)
    assert np.isnan(broken[0, 0, 5, 5]), "the input must stay as it was"


def test_fill_closes_clusters_and_corners_within_the_range_of_their_surroundings() -> None:
    rng = np.random.default_rng(6)
    image = rng.uniform(3, 4, SHAPE)
    is_bad = np.zeros(SHAPE, dtype=bool)
    is_bad[0:4, 0:4] = is_bad[10:19, 20:29] = is_bad[:, -1] = True
    filled = fill(np.where(is_bad, np.inf, image), is_bad)
    assert np.array_equal(filled[~is_bad], image[~is_bad])
    assert filled.min() >= 3
    assert filled.max() <= 4


def test_fill_treats_each_image_of_a_stack_as_if_it_stood_alone() -> None:
    rng = np.random.default_rng(7)
    images, is_bad = rng.normal(size=(3, 4, *SHAPE)), rng.uniform(size=SHAPE) < 0.2
    filled = fill(images, is_bad)
    for i in range(3):
        for j in range(4):
            np.testing.assert_allclose(filled[i, j], fill(images[i, j], is_bad))


def test_fill_refuses_an_image_without_a_good_pixel() -> None:
    with pytest.raises(ValueError, match="all 1536 pixels are bad"):
        fill(np.zeros(SHAPE), np.ones(SHAPE, dtype=bool))


def _one(row: int, col: int) -> np.ndarray:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[row, col] = True
    return mask


@pytest.mark.parametrize(("jump", "is_found"), [(0.10, True), (0.01, False)])
def test_a_pixel_that_switches_between_series_and_never_within_one_is_found(jump: float, is_found: bool) -> None:
    rng = np.random.default_rng(11)
    series = np.repeat(np.arange(6), 10)
    flats = _flats(rng, n_frames=60, drift=0.1).astype(float)
    flats[np.isin(series, (1, 2, 4)), :, 15, 22] *= 1 - jump
    result = classify(_dark(), flats, flat_series=series)
    assert np.argwhere(result).tolist() == ([[15, 22]] if is_found else [])
    assert not classify(_dark(), flats).any(), "its frames alone scatter as counting does"


def test_series_of_unlike_length_and_a_field_that_drifts_blame_nobody() -> None:
    rng = np.random.default_rng(12)
    n_frames = np.array([5, 20, 10, 40])
    tilt = 1 + 0.05 * np.linspace(-1, 1, 4)[:, None, None] * np.linspace(-1, 1, SHAPE[1])
    series = rng.poisson(500 * n_frames[:, None, None, None] * tilt[:, None] * np.ones((4, 2, *SHAPE)))
    assert not is_unsteady(series).any()


def test_scatter_that_all_pixels_share_blames_nobody() -> None:
    """Photons that count in several pixels scatter more than Poisson's law says: here three times its variance."""
    rng = np.random.default_rng(14)
    series = 3 * rng.poisson(40, (6, 2, *SHAPE))
    assert not is_unsteady(series).any()
    series = series.astype(float)
    series[::2, :, 9, 9] *= 3
    assert np.argwhere(is_unsteady(series)).tolist() == [[9, 9]]


def test_neighbours_of_lost_pixels_are_suspect_in_charge_summing_only_and_stay_usable() -> None:
    rng = np.random.default_rng(13)
    flats = _flats(rng)
    flats[:, :, 10, 10] = 0
    flats[:, :, 20, 20] = 0
    found = {is_csm: classify(_dark(), flats, is_masked=_one(20, 20), is_csm=is_csm) for is_csm in (False, True)}
    assert np.count_nonzero(found[False]) == 2
    assert np.count_nonzero(found[True] == PixelClass.MASKED_NEIGHBOUR) == 16
    assert np.argwhere(is_unusable(found[True])).tolist() == [[10, 10], [20, 20]]


def test_the_sensors_border_and_the_seams_between_chips_are_edges() -> None:
    assert np.count_nonzero(at_edge(SHAPE)) == 2 * (SHAPE[0] + SHAPE[1]) - 4
    quad = at_edge(SHAPE, (16, 24))
    assert quad[15:17].all()
    assert quad[:, 23:25].all()
    np.testing.assert_array_equal(quad[:16, :24], at_edge((16, 24)))
    with pytest.raises(ValueError, match="chips of 10 x 24 pixels do not fill 32 x 48"):
        at_edge(SHAPE, (10, 24))


def test_only_suspects_are_used() -> None:
    every = np.array([int(bit) for bit in PixelClass], dtype=np.uint16)
    assert is_unusable(every).tolist() == [not (bit & SUSPECT) for bit in PixelClass]
    assert not is_unusable(np.array([0, int(SUSPECT)], dtype=np.uint16)).any()
    assert is_unusable(np.array([int(SUSPECT | PixelClass.HOT)], dtype=np.uint16)).all()
