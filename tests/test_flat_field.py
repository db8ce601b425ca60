"""The open beam of a calibration: how even it is, against patterns that are put in."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.flat_field import FlatField

SHAPE = (200, 200)


def _flat(means: np.ndarray, exposure_s: float = 10.0) -> FlatField:
    """Draw counts of these means per second over the whole exposure."""
    counts = np.random.default_rng(4).poisson(means * exposure_s)
    return FlatField(
        rates_per_s=(counts / exposure_s).astype(np.float32), thresholds=(1, 3)[: len(means)],
        thresholds_kev=(18.0, 33.0)[: len(means)], n_frames=10, exposure_s=exposure_s, tube_kvp=118.0, current_ma=0.1,
    )  # fmt: skip


def test_an_even_beam_spreads_as_counting_does() -> None:
    high, low = _flat(np.stack([np.full(SHAPE, 900.0), np.full(SHAPE, 10.0)])).evenness(np.zeros(SHAPE, bool))
    assert high.counting_ratio == pytest.approx(1 / np.sqrt(9000), rel=1e-3)
    assert low.counting_ratio == pytest.approx(0.1, rel=1e-2)
    for each in (high, low):
        assert each.spread_ratio == pytest.approx(each.counting_ratio, rel=0.02)
        assert each.pattern_ratio < 0.2 * each.counting_ratio


def test_what_pixels_differ_by_is_told_apart_from_counting() -> None:
    pattern = 1 + 0.03 * np.random.default_rng(5).standard_normal(SHAPE)
    (found,) = _flat(900.0 * pattern[None]).evenness(np.zeros(SHAPE, bool))
    assert found.pattern_ratio == pytest.approx(0.03, rel=0.03)


def test_pixels_that_are_not_used_do_not_count() -> None:
    means, is_bad = np.full((1, *SHAPE), 900.0), np.zeros(SHAPE, bool)
    means[0, :20], is_bad[:20] = 90_000.0, True
    flat = _flat(means)
    assert flat.evenness(is_bad)[0].mean_per_s == pytest.approx(900, rel=1e-3)
    assert np.isnan(flat.evenness(np.ones(SHAPE, bool))[0].mean_per_s)
    assert np.isnan(_flat(np.zeros((1, *SHAPE))).evenness(is_bad)[0].pattern_ratio)


def test_planes_and_thresholds_must_belong_together() -> None:
    with pytest.raises(ValueError, match="one of each for every counter"):
        FlatField(
            rates_per_s=np.ones((2, 3, 3), np.float32), thresholds=(1,), thresholds_kev=(18.0,), n_frames=1,
            exposure_s=1.0, tube_kvp=118.0, current_ma=0.1,
        )  # fmt: skip
