"""Laws of the way from counters to line integrals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from calibration.correction import bins, corrected_counts, flat_series, line_integrals
from calibration.count_rate import CountRate
from firmware_iface.errors import BadFile, CalibrationMissing

N_COUNTERS, SHAPE = 3, (6, 8)


def _cumulative(of_bins: np.ndarray) -> np.ndarray:
    """What counters show when bins hold these events: the inverse of `bins`, written independently."""
    return np.flip(np.cumsum(np.flip(of_bins, axis=-3), axis=-3), axis=-3)


@given(npst.arrays(np.uint16, (2, 4, 3, 3), elements=st.integers(0, 4095)))
def test_bins_give_back_their_counters_even_where_noise_inverts_them(counts: np.ndarray) -> None:
    np.testing.assert_array_equal(_cumulative(bins(counts)), counts)


def test_series_are_told_by_the_projections_between_them_and_not_by_gaps() -> None:
    projections = np.array([5, 6, 7, 8, 12, 13])
    flats = np.array([0, 1, 4, 9, 11, 14, 15])  # 2, 3 and 10 were lost
    assert flat_series(flats, projections).tolist() == [0, 0, 0, 1, 1, 2, 2]


def test_noise_free_scan_gives_the_line_integrals_put_in_under_linear_drift() -> None:
    rng = np.random.default_rng(1)
    response = rng.uniform(500, 1500, (N_COUNTERS, *SHAPE))
    truth = rng.uniform(0, 3, (N_COUNTERS, 5, *SHAPE))
    flat_frames, frames = np.array([0, 1, 7, 8]), np.arange(2, 7)

    def drift(frame: np.ndarray) -> np.ndarray:
        return (1 + 0.05 * frame)[:, None, None, None]

    flats = _cumulative(response * drift(flat_frames))
    projections = _cumulative(response * np.exp(-np.moveaxis(truth, 0, 1)) * drift(frames))
    values, is_estimated = line_integrals(projections, flats, projection_frames=frames, flat_frames=flat_frames)
    assert not is_estimated.any()
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, truth, atol=2e-5)


def test_exposures_are_divided_out() -> None:
    flats = _cumulative(np.full((2, N_COUNTERS, *SHAPE), 1000.0) * np.array([1.0, 3.0])[:, None, None, None])
    projections = _cumulative(np.full((1, N_COUNTERS, *SHAPE), 250.0))
    values, _ = line_integrals(
        projections,
        flats,
        projection_frames=[2],
        flat_frames=[0, 1],
        projection_exposures_s=0.5,
        flat_exposures_s=[1.0, 3.0],
    )
    np.testing.assert_allclose(values, np.log(2), atol=1e-6)
    values, _ = line_integrals(
        _cumulative(np.full((2, N_COUNTERS, *SHAPE), 250.0)),
        flats,
        projection_frames=[2, 3],
        flat_frames=[0, 1],
        projection_exposures_s=[0.5, 2.0],
        flat_exposures_s=[1.0, 3.0],
    )
    np.testing.assert_allclose(values[:, 0], np.log(2), atol=1e-6)
    np.testing.assert_allclose(values[:, 1], np.log(8), atol=1e-6)


def test_outside_the_flats_the_nearest_series_holds() -> None:
    flats = _cumulative(np.stack([np.full((N_COUNTERS, *SHAPE), value) for value in (100.0, 200.0)]))
    views = np.zeros((3, N_COUNTERS, *SHAPE))
    open_beam = corrected_counts(views, flats, projection_frames=[0, 5, 9], flat_frames=[3, 7]).open_beam
    assert open_beam[:, :, 0, 0].tolist() == [[100.0, 150.0, 200.0]] * N_COUNTERS


def test_poisson_counts_give_unbiased_line_integrals() -> None:
    rng = np.random.default_rng(2)
    shape = (40, 40)
    flats = _cumulative(rng.poisson(2000, (40, N_COUNTERS, *shape)))
    projections = _cumulative(rng.poisson(2000 * np.exp(-1.0), (20, N_COUNTERS, *shape)))
    values, _ = line_integrals(projections, flats, projection_frames=np.arange(20), flat_frames=20 + np.arange(40))
    n, mean = values[0].size, 2000 * np.exp(-1.0)
    sigma = np.sqrt(1 / mean + 1 / (40 * 2000))
    bias = 0.5 / mean - 0.5 / (40 * 2000)  # second order of the logarithm
    assert abs(values[0].mean() - 1.0 - bias) < 5 * sigma / np.sqrt(n) + 5 / np.sqrt(1600 * 40 * 2000)
    assert values.std(axis=(1, 2, 3)) == pytest.approx(sigma, rel=0.03)


def test_too_few_counts_become_a_marked_bound() -> None:
    flats = _cumulative(np.full((1, N_COUNTERS, *SHAPE), 800.0))
    projections = np.full((1, N_COUNTERS, *SHAPE), 400.0)
    projections[:, 1:] = 300.0
    projections[:, 2] = 200.0
    projections[0, :, 2, 3] = (100, 0, 0)
    projections[0, :, 4, 4] = (100, 150, 50)  # noise inverted two counters: the first bin holds -50
    values, is_estimated = line_integrals(projections, flats, projection_frames=[1], flat_frames=[0])
    assert np.argwhere(is_estimated).tolist() == [[0, 0, 4, 4], [1, 0, 2, 3], [2, 0, 2, 3]]
    assert values[1, 0, 2, 3] == pytest.approx(np.log(800 / 0.5))
    assert np.isfinite(values).all()


def test_what_is_too_few_can_be_stated() -> None:
    flats = _cumulative(np.full((1, N_COUNTERS, *SHAPE), 800.0))
    projections = _cumulative(np.full((1, N_COUNTERS, *SHAPE), 400.0))
    projections[0, :, 2, 3] = (24, 14, 5)  # 10, 9 and 5 in the bins
    values, is_estimated = line_integrals(projections, flats, projection_frames=[1], flat_frames=[0], minimum_counts=10)
    assert np.argwhere(is_estimated).tolist() == [[1, 0, 2, 3], [2, 0, 2, 3]]
    assert values[0, 0, 2, 3] == pytest.approx(np.log(80))


def test_a_pixel_that_one_series_of_flats_did_not_see_is_not_measured() -> None:
    flat_bins = np.full((2, N_COUNTERS, *SHAPE), 600.0)
    flat_bins[0, 1, 3, 3] = 0
    projections = _cumulative(np.full((1, N_COUNTERS, *SHAPE), 300.0))
    values, is_estimated = line_integrals(
        projections, _cumulative(flat_bins), projection_frames=[4], flat_frames=[0, 5]
    )
    assert np.argwhere(is_estimated).tolist() == [[1, 0, 3, 3]]
    np.testing.assert_allclose(values, np.log(2), atol=1e-6)


def test_bad_and_dark_pixels_are_filled_and_marked_in_every_view() -> None:
    is_bad = np.zeros(SHAPE, dtype=bool)
    is_bad[1, 1] = True
    flat_bins = np.full((2, N_COUNTERS, *SHAPE), 600.0)
    flat_bins[:, 2, 4, 6] = 0  # this pixel's open beam holds nothing in the last bin
    projections = _cumulative(np.full((3, N_COUNTERS, *SHAPE), 300.0))
    projections[:, :, 1, 1] = 4095
    values, is_estimated = line_integrals(
        projections, _cumulative(flat_bins), projection_frames=[2, 3, 4], flat_frames=[0, 1], is_bad=is_bad
    )
    np.testing.assert_allclose(values, np.log(2), atol=1e-6)
    assert is_estimated[:, :, 1, 1].all()
    assert is_estimated[2, :, 4, 6].all()
    assert is_estimated.sum() == 3 * N_COUNTERS + 3


def test_full_counters_leave_nothing_to_divide_by() -> None:
    full = np.full((2, N_COUNTERS, *SHAPE), 4095)  # all counters at their end: the bins between them are empty
    with pytest.raises(BadFile, match=f"bin 1 of {N_COUNTERS} counts nothing in the open beam"):
        line_integrals(full, full, projection_frames=[2, 3], flat_frames=[0, 1])


def test_a_scan_without_flats_is_refused() -> None:
    empty = np.empty((0, N_COUNTERS, *SHAPE))
    with pytest.raises(CalibrationMissing, match="no flats"):
        line_integrals(np.ones((1, N_COUNTERS, *SHAPE)), empty, projection_frames=[0], flat_frames=[])


def test_lost_counts_are_put_back_before_bins_are_taken() -> None:
    """Counters of one traffic that lose by 1 / (1 + n tau), in flats and views of unlike exposure."""
    highest, n_tau = 2000.0, 0.5
    curve = CountRate(
        law="non-paralysable",
        thresholds_kev=np.array([18.0, 33.0, 50.0]),
        loss=np.array([n_tau, 0.0, 0.0]),
        gains=np.zeros((3, 3)),
        highest_rate_per_s=highest,
        dead_time_ratio=np.ones(SHAPE, dtype=np.float32),
        dead_time_sigma_relative=0.0,
        currents_ma=np.ones(1),
        rates_per_s=np.ones((1, 3)),
        true_rates_per_s_ma=np.ones(3),
        laws=("non-paralysable",),
        bic=np.zeros(1),
        residual_relative=np.zeros(3),
    )

    def counted(rates: np.ndarray, exposure_s: float) -> np.ndarray:
        return exposure_s * rates / (1 + n_tau * rates[:, :1] / highest)

    flat = _cumulative(np.full((2, 3, *SHAPE), 600.0))
    view = flat[:1] * np.exp(-1.0)
    raw = {"projection_frames": [2], "flat_frames": [0, 1], "projection_exposures_s": 3.0}
    known, is_estimated = line_integrals(counted(view, 3.0), counted(flat, 1.0), count_rate=curve, **raw)
    unknown, _ = line_integrals(counted(view, 3.0), counted(flat, 1.0), **raw)
    np.testing.assert_allclose(known, 1.0, atol=2e-4)
    assert not is_estimated.any()
    assert (unknown < 0.85).all()
    too_many = counted(flat[:1] * 2, 1.0)
    too_many[..., 2, 5] *= 0.1
    _, is_estimated = line_integrals(
        too_many, counted(flat, 1.0), count_rate=curve, projection_frames=[2], flat_frames=[0, 1]
    )
    assert is_estimated.sum() == 3 * (SHAPE[0] * SHAPE[1] - 1), "what is beyond the sweep is marked in every bin"


def test_drift_that_settles_is_followed_to_the_second_order_of_the_gap_between_flats() -> None:
    """CdTe polarises with its own time constant; unequal gaps. A straight line strays by gap^2 / 8 of its curvature."""
    time_constant = 40.0

    def gain(frame: np.ndarray) -> np.ndarray:
        return (0.7 + 0.3 * np.exp(-frame / time_constant))[:, None, None, None]

    flat_frames, frames = np.array([0.0, 6.0, 16.0, 36.0]), np.array([3.0, 11.0, 26.0])
    flats = _cumulative(np.full((4, N_COUNTERS, *SHAPE), 1000.0)) * gain(flat_frames)
    projections = _cumulative(np.full((3, N_COUNTERS, *SHAPE), 500.0)) * gain(frames)
    values, _ = line_integrals(projections, flats, projection_frames=frames, flat_frames=flat_frames)
    gaps = np.diff(flat_frames)
    bound = gaps**2 / 8 * 0.3 / time_constant**2 * np.exp(-flat_frames[:-1] / time_constant) / gain(frames)[:, 0, 0, 0]
    error = np.abs(values - np.log(2)).max(axis=(0, 2, 3))
    assert (error <= bound).all()
    assert error.max() < 0.01
