"""Laws of the counters at high rates: known laws are recovered and undone, the law of real pulses well enough."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import lambertw

from calibration.count_rate import CountRate, fit_count_rate
from firmware_iface.errors import CalibrationMissing, WrongUsage
from tests.beam_bench import THRESHOLDS_KEV, seen_per_s

SHAPE = (6, 8)
CURRENTS_MA = np.concatenate([[0.01, 0.03, 0.06], np.linspace(0.1, 1.0, 10)])


def _known(law: str, coefficient: float, highest_per_s: float = 1e5, ratio: float = 1.0) -> CountRate:
    """One counter that follows a classical law with `coefficient` = highest rate times dead time."""
    return CountRate(
        law=law,
        thresholds_kev=np.array([20.0]),
        loss=np.array([coefficient, 0.0, 0.0]),
        gains=np.zeros((1, 3)),
        highest_rate_per_s=highest_per_s,
        dead_time_ratio=np.full(SHAPE, ratio, dtype=np.float32),
        dead_time_sigma_relative=0.0,
        currents_ma=np.array([1.0]),
        rates_per_s=np.ones((1, 1)),
        true_rates_per_s_ma=np.ones(1),
        laws=(law,),
        bic=np.zeros(1),
        residual_relative=np.zeros(1),
    )


@given(st.floats(0.01, 0.65), st.floats(0.8, 1.25))
def test_the_paralysable_law_is_inverted_as_lambert_did(n_tau: float, ratio: float) -> None:
    tau_s = ratio * 0.7 / 1e5
    counted = n_tau / tau_s * np.exp(-n_tau)
    true, is_out = _known("paralysable", 0.7, ratio=ratio).correct(np.full((1, *SHAPE), counted), 1.0)
    by_lambert = -lambertw(-counted * tau_s).real / tau_s
    assert not is_out.any() or n_tau / ratio > 0.7
    if not is_out.any():
        np.testing.assert_allclose(true, by_lambert, rtol=1e-4)


@given(st.floats(1.0, 4e4), st.floats(1e-3, 10.0))
def test_the_non_paralysable_law_is_inverted_in_closed_form_at_any_exposure(
    counted_per_s: float, exposure_s: float
) -> None:
    tau_s = 1.2 / 1e5
    true, is_out = _known("non-paralysable", 1.2).correct(np.full((1, *SHAPE), counted_per_s * exposure_s), exposure_s)
    expected = counted_per_s / (1 - counted_per_s * tau_s)
    assert is_out.all() == (expected > 1.02e5)
    if expected < 1e5:
        np.testing.assert_allclose(true, expected * exposure_s, rtol=1e-4)


def test_what_lies_beyond_the_bend_or_the_sweep_is_marked_and_bounded() -> None:
    curve = _known("paralysable", 1.5)  # bends down at 2/3 of the sweep
    highest = 1e5 / 1.5 * np.exp(-1)
    counts = np.full((2, 1, *SHAPE), 0.5 * highest)
    counts[1] = 1.01 * highest
    true, is_out = curve.correct(counts, 1.0)
    assert [is_out[0].any(), is_out[1].all()] == [False, True]
    assert np.isfinite(true).all()
    assert curve.rate_at_loss_per_s(0.1) == pytest.approx(-np.log(0.9) / 1.5 * 1e5, rel=1e-3)
    assert np.isnan(curve.rate_at_loss_per_s(0.9))


@pytest.mark.parametrize(("law", "coefficient"), [("paralysable", 0.5), ("non-paralysable", 0.8), ("hybrid", 0.3)])
def test_the_law_that_made_the_counts_is_the_one_that_is_chosen(law: str, coefficient: float) -> None:
    rng = np.random.default_rng(1)
    z = CURRENTS_MA[:, None, None, None] * np.ones((1, 1, *SHAPE))
    share = {
        "paralysable": np.exp(-coefficient * z),
        "non-paralysable": 1 / (1 + coefficient * z),
        "hybrid": np.exp(-coefficient * z) / (1 + 3 * coefficient * z),
    }[law]
    counts = rng.poisson(2e6 * z * share)
    found = fit_count_rate(CURRENTS_MA, counts, exposures_s=10.0, n_frames=1, thresholds_kev=[20.0])
    assert found.law == law
    assert found.highest_rate_per_s == pytest.approx(2e5, rel=2e-3)
    assert found.loss[0] == pytest.approx(coefficient, rel=0.05)


def test_each_pixel_gets_its_own_dead_time() -> None:
    rng = np.random.default_rng(2)
    shape = (24, 24)
    ratio, slope = rng.normal(1, 0.1, shape), rng.normal(1, 0.1, shape)
    z = CURRENTS_MA[:, None, None, None] * slope
    counts = rng.poisson(1e6 * z * np.exp(-0.5 * z * ratio))
    found = fit_count_rate(CURRENTS_MA, counts, exposures_s=10.0, n_frames=1, thresholds_kev=[20.0])
    error = found.dead_time_ratio / found.dead_time_ratio.mean() - ratio / ratio.mean()
    assert error.std() == pytest.approx(found.dead_time_sigma_relative, rel=0.25)
    assert error.std() < 0.02
    true, _ = found.correct(counts[-1], 10.0)
    assert np.std(true[0] / (1e6 * slope)) < 0.008


def test_noise_alone_makes_no_pixel_different() -> None:
    rng = np.random.default_rng(3)
    z = CURRENTS_MA[:, None, None, None] * np.ones((1, 1, 24, 24))
    counts = rng.poisson(3e4 * z * np.exp(-0.5 * z))
    found = fit_count_rate(CURRENTS_MA, counts, exposures_s=1.0, n_frames=1, thresholds_kev=[20.0])
    assert found.dead_time_ratio.std() < 0.4 * found.dead_time_sigma_relative


def test_variance_is_that_of_simulated_dead_time() -> None:
    """Arrivals one by one through a paralysable and a non-paralysable detector, corrected by the closed forms."""
    rng = np.random.default_rng(4)
    n_tau, n_events, n_runs = 0.4, 1500, 1500
    for law in ("paralysable", "non-paralysable"):
        corrected, counts = [], []
        for _ in range(n_runs):
            times = np.sort(rng.random(rng.poisson(n_events)))
            tau = n_tau / n_events
            if law == "paralysable":
                counted = 1 + np.count_nonzero(np.diff(times) > tau)
            else:
                counted, free = 0, -1.0
                for time in times:
                    if time > free:
                        counted, free = counted + 1, time + tau
            counts.append(counted)
        curve = _known(law, n_tau, highest_per_s=n_events)
        frames = np.asarray(counts, dtype=float)[:, None, None, None] * np.ones((1, *SHAPE))
        corrected = curve.correct(frames, 1.0)[0][:, 0, 0, 0]
        expected = curve.variance_of_bins(frames, 1.0)[:, 0, 0, 0].mean()
        assert corrected.mean() == pytest.approx(n_events, rel=5e-3)
        # The standard error of a variance of 1500 runs is 3.7 %.
        assert corrected.var() == pytest.approx(expected, rel=0.13)


@pytest.mark.parametrize(("shared", "full_per_s"), [(0.5, 6.3e5), (0.12, 4.9e5)])
def test_constant_current_pulses_are_corrected_at_every_threshold(shared: float, full_per_s: float) -> None:
    counted, true = (
        np.array(x) for x in zip(*(seen_per_s(i, 0.0, shared, full_per_s) for i in CURRENTS_MA), strict=True)
    )
    loss = 1 - counted / true
    assert 0.35 < loss[-1, 0] < 0.45
    assert loss[-1, 3] < -0.5, "pulses that fall together add counts above the highest threshold"
    frames = (counted[..., None, None] * np.ones(SHAPE)).astype(np.float64)
    found = fit_count_rate(CURRENTS_MA, frames, exposures_s=1.0, n_frames=100, thresholds_kev=THRESHOLDS_KEV)
    assert found.law == "polynomial"
    corrected, is_out = found.correct(frames, 1.0)
    assert not is_out.any()
    error = np.abs(corrected[..., 0, 0] / true - 1)
    assert error[loss[:, 0] < 0.1].max() < 0.01
    assert error.max() < 0.02


@pytest.mark.parametrize("pmma_mm", [5.0, 10.0, 30.0])
def test_what_the_open_beam_taught_holds_behind_an_object(pmma_mm: float) -> None:
    """A harder beam overlaps by other charges, which the sweep of the open beam cannot teach."""
    shared, full_per_s = 0.12, 4.9e5
    sweep = np.array([seen_per_s(i, 0.0, shared, full_per_s)[0] for i in CURRENTS_MA])[..., None, None] * np.ones(SHAPE)
    curve = fit_count_rate(CURRENTS_MA, sweep, exposures_s=1.0, n_frames=100, thresholds_kev=THRESHOLDS_KEV)
    for current in (0.3, 0.6, 1.0):
        counted, true = seen_per_s(current, pmma_mm, shared, full_per_s)
        corrected, _ = curve.correct(counted[:, None, None] * np.ones(SHAPE), 1.0)
        np.testing.assert_allclose(corrected[:, 0, 0] / true, 1, atol=0.02)


def test_refusals_say_what_is_allowed() -> None:
    counts = np.ones((3, 1, *SHAPE))
    with pytest.raises(WrongUsage, match="3 tube currents from 1 mA; allowed: 5 or more"):
        fit_count_rate([1, 2, 3], counts, exposures_s=1, n_frames=1, thresholds_kev=[20])
    counts = np.ones((6, 1, *SHAPE))
    with pytest.raises(WrongUsage, match="no law 'exact'; allowed: paralysable, non-paralysable, hybrid, polynomial"):
        fit_count_rate(range(1, 7), counts, exposures_s=1, n_frames=1, thresholds_kev=[20], law="exact")
    counts[2] = 0
    with pytest.raises(CalibrationMissing, match="no good pixel"):
        fit_count_rate(range(1, 7), counts, exposures_s=1, n_frames=1, thresholds_kev=[20])
    with pytest.raises(CalibrationMissing, match=r"these counts have \(2, 6, 8\)"):
        _known("paralysable", 0.5).correct(np.ones((2, *SHAPE)), 1.0)
