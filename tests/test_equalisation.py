"""Laws of the equalisation: edges and trims converge to the truth put in, however they are measured."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from calibration.equalisation import (
    TrimFault,
    choose_disc,
    choose_trims,
    falling_edges_dac,
    is_closer,
    mean_and_sigma,
    noise_edges_dac,
    refine_trims,
    trim_faults,
    trim_steps_dac,
)
from firmware_iface.errors import CalibrationMissing

SHAPE = (2, 24, 24)
DACS = np.arange(0, 80, 2)


def _noise_scan(
    rng: np.random.Generator, edges: np.ndarray, *, width: float = 2.0, peak: float = 1500.0, photons: float = 0.0
) -> np.ndarray:
    """Zero crossings of Gaussian noise (Rice), with photons below a far S-curve, in a 12-bit counter."""
    rate = peak * np.exp(-0.5 * ((DACS[:, None, None, None] - edges) / width) ** 2) + photons
    return np.minimum(rng.poisson(rate), 4095).astype(np.uint16)


@pytest.mark.parametrize(("peak", "photons"), [(1500.0, 0.0), (20_000.0, 0.0), (1500.0, 15.0)])
def test_noise_peaks_are_found_where_they_were_put(peak: float, photons: float) -> None:
    rng = np.random.default_rng(1)
    truth = rng.uniform(10, 65, SHAPE)
    error = noise_edges_dac(_noise_scan(rng, truth, peak=peak, photons=photons), DACS) - truth
    assert error.dtype == np.float64
    assert abs(error.mean()) < 0.02
    assert error.std() < 0.15
    assert np.abs(error).max() < 0.7


def test_a_pixel_without_a_whole_peak_has_no_edge() -> None:
    rng = np.random.default_rng(2)
    truth = np.full(SHAPE, 30.0)
    truth[0, 0, 0], truth[0, 0, 1] = -5.0, 200.0  # below the scan, and above it
    truth[0, 5, 5], truth[0, 5, 6] = 1.0, 77.0  # cut by its first code, and by its last
    counts = _noise_scan(rng, truth)
    counts[:, 1, 3, 3] = 0
    counts[10, 1, 3, 3] = 99
    edges = noise_edges_dac(counts, DACS)
    assert np.argwhere(np.isnan(edges)).tolist() == [[0, 0, 0], [0, 0, 1], [0, 5, 5], [0, 5, 6], [1, 3, 3]]


def test_mean_and_sigma_are_those_of_the_good_pixels() -> None:
    edges = np.random.default_rng(3).normal(20, 3, 10_000)
    edges[:50], edges[50:100] = 500, 60
    edges[100:200] = np.nan
    mean, sigma = mean_and_sigma(edges)
    assert mean == pytest.approx(20, abs=0.15)
    assert sigma == pytest.approx(3, rel=0.03)
    with pytest.raises(CalibrationMissing, match="no pixel showed its noise peak"):
        mean_and_sigma(np.full(9, np.nan))


@pytest.mark.parametrize("baseline", [4.0, 15.0, 64.0])
def test_disc_is_the_smallest_that_reaches_the_target_from_both_sides(baseline: float) -> None:
    def mean_at(disc: float, trim: int) -> float:
        return baseline + 0.9 * disc * (1 - trim / 16)

    def reaches(disc: int) -> bool:
        return mean_at(disc, 0) >= 15 + 3.5 * 6 and mean_at(disc, 31) <= 15 - 3.5 * 6

    ends = [[mean_at(disc, trim) for disc in (80, 120)] for trim in (0, 31)]
    disc = choose_disc((80, 120), *ends, sigma_dac=6.0, target_dac=15.0, n_sigma=3.5)
    assert reaches(disc)
    assert not reaches(disc - 1)


def test_disc_stays_on_its_dac_where_nothing_reaches_far_enough() -> None:
    ends = (16.0, 17.0), (14.0, 13.0)  # a trim step so weak that 255 is not enough
    assert choose_disc((80, 120), *ends, sigma_dac=6.0, target_dac=15.0) == 255


def test_trims_that_do_not_move_the_edges_are_refused() -> None:
    with pytest.raises(CalibrationMissing, match="DAC_Disc moves the mean edge"):
        choose_disc((80, 120), (70.0, 60.0), (20.0, 10.0), sigma_dac=6.0, target_dac=15.0)


@settings(max_examples=30, deadline=None)
@given(
    n_codes=st.sampled_from([16, 32]),
    sign=st.sampled_from([-1, 1]),
    step=st.floats(1.0, 6.0),
    extra=st.lists(st.integers(1, 14), max_size=3, unique=True),
)
def test_trims_of_a_linear_detector_bring_every_edge_within_half_a_step(
    n_codes: int, sign: int, step: float, extra: list[int]
) -> None:
    rng = np.random.default_rng(4)
    steps = step * rng.uniform(0.9, 1.1, 500)
    ideal = rng.uniform(0.6, n_codes - 1.6, 500)  # the real-valued code that would hit the target
    codes = sorted({0, n_codes - 1, *extra})
    edges = np.stack([100 + sign * steps * (code - ideal) for code in codes])
    choice = choose_trims(edges, codes, 100.0, n_codes=n_codes)
    assert not choice.is_out_of_range.any()
    reached = 100 + sign * steps * (choice.trims - ideal)
    np.testing.assert_allclose(choice.predicted_edges_dac, reached, atol=1e-3)
    assert (np.abs(reached - 100) <= 0.5 * steps + 1e-3).all()


def test_pixels_beyond_the_trim_range_and_without_any_edge_are_named() -> None:
    edges = np.array([[200.0, 80.0, 300.0, np.nan], [100.0, 50.0, 201.0, np.nan]])
    choice = choose_trims(edges, (0, 31), 90.0)
    assert choice.is_out_of_range.tolist() == [True, True, True, True]
    assert choice.trims[:3].tolist() == [31, 0, 31]
    assert np.isnan(choice.predicted_edges_dac[3])


def test_out_of_range_begins_beyond_half_a_step_and_its_noise() -> None:
    lowest = np.array([100.0, 100.0, 100.0, 100.0])
    highest = 100.0 - 31 * 4.0  # four codes a step, so the edges end at 100 and -24
    targets = {-24.0: False, -24.0 - 0.7 * 4: False, -24.0 - 0.8 * 4: True, 100.0 + 0.8 * 4: True}
    for target, is_out in targets.items():
        choice = choose_trims(np.stack([lowest, np.full(4, highest)]), (0, 31), target)
        assert (choice.is_out_of_range == is_out).all(), target


def test_an_edge_seen_once_takes_the_median_slope_of_the_others() -> None:
    edges = np.array(
        [[90.0, 62.0, 60.0, 70.0], [30.0, 32.0, 28.0, np.nan], [-30.0, 2.0, -4.0, np.nan]]
    )  # slopes of -6, -3 and -3.2
    choice = choose_trims(edges, (0, 10, 20), 31.0)
    assert choice.trims.tolist() == [10, 10, 9, 12]
    assert choice.predicted_edges_dac[3] == pytest.approx(70 - 3.2 * 12)


def test_edges_that_were_seen_at_one_code_only_give_no_slope() -> None:
    edges = np.array([[60.0, np.nan], [np.nan, 30.0]])
    with pytest.raises(CalibrationMissing, match="two trim codes"):
        choose_trims(edges, (0, 31), 40.0)


def test_several_codes_follow_a_curved_trim_dac() -> None:
    code = np.arange(32)
    curve = 60 - 0.05 * (code + 5.0) ** 2
    choice = choose_trims(curve[[0, 8, 16, 24, 31], None], (0, 8, 16, 24, 31), 30.0)
    assert abs(curve[choice.trims[0]] - 30) <= abs(curve[[18, 19, 20]] - 30).min() + 0.5
    straight = choose_trims(curve[[0, 31], None], (0, 31), 30.0)
    assert abs(curve[straight.trims[0]] - 30) > 2


def test_a_move_that_helps_is_kept_and_any_other_is_not() -> None:
    trims = np.array([10, 10, 0, 31, 10, 10, 10], dtype=np.uint8)
    edges = np.array([17.0, 13.0, 12.0, 20.0, np.nan, 20.0, 15.9])
    trial = refine_trims(trims[None, None], edges[None, None], 15.0, np.array([2.0]))
    assert trial[0, 0].tolist() == [11, 9, 0, 31, 10, 12, 10]
    found = np.array([14.5, 18.0, 12.0, np.nan, 16.0, 15.1, 15.9])
    assert is_closer(found, edges, 15.0).tolist() == [True, False, False, False, True, True, False]


@settings(max_examples=20, deadline=None)
@given(width=st.floats(0.3, 3.0), noise=st.floats(0, 60), step=st.sampled_from([1, 2]))
def test_test_pulses_fall_where_their_charge_stands(width: float, noise: float, step: int) -> None:
    rng = np.random.default_rng(6)
    dacs = np.arange(0, 160, step)
    truth = rng.uniform(90, 130, (3, 15, 15))
    passes = norm.sf(dacs[:, None, None, None], truth, width)
    counts = rng.binomial(400, passes) + rng.poisson(noise * norm.pdf(dacs / 8)[:, None, None, None], passes.shape)
    edges = falling_edges_dac(counts, dacs, 400, window_dac=15.0)
    error = edges - truth
    assert abs(error.mean()) < 0.06
    assert error.std() < 0.15 * step + 0.1 * width


def test_pulses_that_are_not_seen_have_no_edge() -> None:
    counts = np.zeros((50, 1, 1, 3))
    counts[:40, 0, 0, 1] = 100
    counts[:48, 0, 0, 2] = 100  # falls where the scan ends
    edges = falling_edges_dac(counts, np.arange(50), 100, window_dac=5.0)
    assert np.isnan(edges[0, 0, [0, 2]]).all()
    assert edges[0, 0, 1] == 39.5


def test_what_could_not_be_equalised_is_told_with_its_reason() -> None:
    measured = np.array([[100.0, 30.0, 60.0, np.nan], [60.0, 0.0, 20.0, np.nan]]).reshape(2, 1, 1, 4)
    choice = choose_trims(measured, (0, 31), 40.0)
    after = np.array([60.0, 30.0, 40.2, np.nan]).reshape(1, 1, 4)
    step_dac = trim_steps_dac(measured, (0, 31))
    assert step_dac == pytest.approx([np.sqrt((40**2 + 30**2 + 40**2) / 3) / 31])
    fault = trim_faults(choice, after, 40.0, step_dac)
    assert fault.ravel().tolist() == [TrimFault.TOO_HIGH, TrimFault.TOO_LOW, TrimFault.NONE, TrimFault.NO_EDGE]
