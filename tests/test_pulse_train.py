"""Pulses that come close together: the exact law of the output against amplifiers followed in time."""

import numpy as np
import pytest
from numba import njit

from sim import pulse_train

STEP_KEV, N = 0.5, 321
FALL_KEV_PER_S, PEAKING_S = 55.3e6, 120e-9
KEV = np.arange(N) * STEP_KEV


def charges():
    """A spectrum like that of a pixel: shared charge, fluorescence, and a line."""
    law = np.exp(-(((KEV - 25) / 1.5) ** 2)) + 0.5 * np.exp(-KEV / 8) * (KEV > 0) + np.exp(-(((KEV - 60) / 1.5) ** 2))
    law[KEV > 70] = 0
    return law / law.sum()


@njit
def follow(times_s, charge_kev, thresholds_kev, fall_kev_per_s, peaking_s, ends_s):
    """Count upward crossings in consecutive exposures, arrival by arrival; nothing here is taken from the product."""
    counts = np.zeros((len(ends_s), len(thresholds_kev)))
    output_kev, since_s, exposure = 0.0, -1.0, 0
    for i in range(len(times_s)):
        while times_s[i] >= ends_s[exposure]:
            exposure += 1
        falling_s = times_s[i] - since_s - peaking_s
        before_kev = output_kev if falling_s < 0 else max(output_kev - fall_kev_per_s * falling_s, 0.0)
        output_kev, since_s = before_kev + charge_kev[i], times_s[i]
        for k in range(len(thresholds_kev)):
            counts[exposure, k] += before_kev <= thresholds_kev[k] < output_kev
    return counts


def measured(rate_per_s, thresholds_kev, n_arrivals=1_500_000, n_exposures=3000, seed=1):
    """Counts of (n_exposures, n_thresholds) and the time of one exposure."""
    rng = np.random.default_rng(seed)
    duration_s = n_arrivals / rate_per_s
    times_s = np.sort(rng.random(rng.poisson(n_arrivals))) * duration_s
    charge_kev = rng.choice(KEV, len(times_s), p=charges())
    ends_s = np.linspace(0, duration_s, n_exposures + 1)[1:]
    ends_s[-1] = np.inf
    between_kev = np.asarray(thresholds_kev) + 1e-6  # a charge at the threshold is not above it
    return follow(times_s, charge_kev, between_kev, FALL_KEV_PER_S, PEAKING_S, ends_s), duration_s / n_exposures


def expected(rate_per_s):
    output = pulse_train.levels(rate_per_s * charges(), STEP_KEV, FALL_KEV_PER_S, PEAKING_S)
    above = (1 - np.cumsum(charges())).clip(0)
    return output, above, rate_per_s * (output.atoms[0] * above + pulse_train.lifted_counts(above, output))


@pytest.mark.parametrize("rate_per_s", [3e4, 3e5, 1e6])
def test_counts_above_every_threshold_are_those_of_amplifiers_followed_in_time(rate_per_s):
    thresholds_kev = np.array([4, 10, 20, 35, 50, 65, 90])
    counts, exposure_s = measured(rate_per_s, thresholds_kev)
    *_, per_s = expected(rate_per_s)
    found, error = counts.mean(axis=0), counts.std(axis=0) / np.sqrt(len(counts))
    wanted = per_s[(thresholds_kev / STEP_KEV).astype(int)] * exposure_s
    np.testing.assert_allclose(wanted, found, atol=0, rtol=0.02)  # the highest, far above the line, to 1 % by the grid
    np.testing.assert_array_less(np.abs(wanted - found)[:4], 4 * error[:4] + 0.003 * found[:4])


def test_the_output_is_somewhere_all_the_time_and_at_rest_without_arrivals():
    for rate_per_s in (1e3, 1e5, 3e5):  # at more, some of it is beyond the grid
        output, *_ = expected(rate_per_s)
        assert output.atoms.sum() + output.cells.sum() == pytest.approx(1, abs=2e-4)
    rest = pulse_train.levels(np.zeros(N), STEP_KEV, FALL_KEV_PER_S, PEAKING_S)
    assert rest.atoms[0] == 1
    assert not rest.cells.any()


def test_a_pixel_with_more_charge_than_its_current_removes_is_paralysed():
    output, _, per_s = expected(1.2 * FALL_KEV_PER_S / (KEV @ charges()))
    assert output.atoms.sum() == 0
    assert not per_s.any()


def test_few_arrivals_are_all_counted():
    _, above, per_s = expected(100.0)
    np.testing.assert_allclose(per_s, 100 * above, atol=0.01)


def test_without_fall_time_it_is_the_paralysable_law():
    """A hold that every arrival starts again, and nothing else: m = n exp(-n t), variance m (1 - 2 m t) per second."""
    law = np.zeros(N)
    law[120] = 1.0
    above = (1 - np.cumsum(law)).clip(0)
    for rate_per_s in (1e5, 1e6, 5e6):
        output = pulse_train.levels(rate_per_s * law, STEP_KEV, 1e15, PEAKING_S)
        counts_per_s = rate_per_s * output.atoms[0] * above[60]
        assert counts_per_s == pytest.approx(rate_per_s * np.exp(-rate_per_s * PEAKING_S), rel=1e-4)
        both, hidden = pulse_train.covariance_per_s(
            rate_per_s, above, output, np.array([60]), STEP_KEV, 1e15, PEAKING_S
        )
        assert both[0, 0] == pytest.approx(counts_per_s, rel=1e-4)
        assert hidden[0, 0] == pytest.approx(2 * counts_per_s**2 * PEAKING_S, rel=1e-3)


@pytest.mark.parametrize(("rate_per_s", "error"), [(1e5, 0.02), (3e5, 0.06)])
def test_variance_and_covariance_under_pile_up(rate_per_s, error):
    """To first order in the rate: 4 % of loss are told to 2 % of the mean, 14 % of loss to 6 %."""
    thresholds_kev = np.array([4, 10, 18, 30])
    counts, exposure_s = measured(rate_per_s, thresholds_kev, n_arrivals=3_000_000, n_exposures=20_000)
    output, above, _ = expected(rate_per_s)
    both, hidden = pulse_train.covariance_per_s(
        rate_per_s, above, output, (thresholds_kev / STEP_KEV).astype(np.int64), STEP_KEV, FALL_KEV_PER_S, PEAKING_S
    )
    mean = counts.mean(axis=0)
    scale = np.sqrt(mean[:, None] * mean[None, :])
    found, wanted = np.cov(counts.T) / scale, (both - hidden) * exposure_s / scale
    np.testing.assert_allclose(wanted, found, atol=error + 0.01)  # 0.01: one sigma of a variance of 20,000 exposures
    assert found[0, 0] < 0.95  # less scattered than Poisson's
