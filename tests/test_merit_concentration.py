"""Agreement of concentrations, against laws of statistics and sums by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from reconstruction.merit.concentration import (
    agreement,
    contrast_to_noise,
    detection_limits,
    mixing,
    regress,
)

TRUE = np.array([0.0, 1.0, 2.0, 4.0, 8.0, 16.0])


def test_the_line_is_that_of_scipy():
    measured = 0.9 * TRUE + 0.3 + np.array([0.1, -0.2, 0.05, 0.1, -0.1, 0.05])
    fit, oracle = regress(TRUE, measured), stats.linregress(TRUE, measured)
    assert fit.slope == pytest.approx(oracle.slope)
    assert fit.offset_mg_ml == pytest.approx(oracle.intercept)
    assert fit.slope_se_ratio == pytest.approx(oracle.stderr)
    assert fit.offset_se_mg_ml == pytest.approx(oracle.intercept_stderr)
    assert fit.r2 == pytest.approx(oracle.rvalue**2)
    assert fit.worst_mg_ml == pytest.approx(np.abs(measured - TRUE).max())


def test_the_standard_errors_and_the_band_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    n, inside_slope, inside_offset, inside_band = 2000, 0, 0, 0
    reach = stats.t.ppf(0.975, len(TRUE) - 2)
    for _ in range(n):
        fit = regress(TRUE, 0.95 * TRUE - 0.2 + rng.normal(0, 0.3, len(TRUE)))
        inside_slope += abs(fit.slope - 0.95) < reach * fit.slope_se_ratio
        inside_offset += abs(fit.offset_mg_ml + 0.2) < reach * fit.offset_se_mg_ml
        inside_band += abs(fit.at(5.0) - (0.95 * 5 - 0.2)) < fit.band(5.0)
    sigma = np.sqrt(0.95 * 0.05 / n)
    for inside in (inside_slope, inside_offset, inside_band):
        assert inside / n == pytest.approx(0.95, abs=4 * sigma)


def test_two_points_leave_no_errors():
    fit = regress([0.0, 9.0], [0.1, 9.4])
    assert np.isnan(fit.slope_se_ratio)
    assert np.isnan(fit.band([1.0, 2.0])).all()
    with pytest.raises(ValueError, match="allowed: at least 2"):
        regress([3.0, 3.0], [1.0, 2.0])


def test_concordance_is_one_only_on_the_line_of_identity():
    assert regress(TRUE, TRUE).concordance_ratio == pytest.approx(1)
    measured = 0.8 * TRUE + 1
    expected = (
        2
        * np.cov(TRUE, measured, bias=True)[0, 1]
        / (TRUE.var() + measured.var() + (TRUE.mean() - measured.mean()) ** 2)
    )
    assert regress(TRUE, measured).concordance_ratio == pytest.approx(expected)
    assert expected < 1


def test_bias_and_limits_of_agreement_by_hand():
    found = agreement([1.0, 2.0, 3.0], [1.2, 1.9, 3.5])  # differences 0.2, -0.1, 0.5
    assert found.bias_mg_ml == pytest.approx(0.2)
    assert found.upper_mg_ml == pytest.approx(0.2 + 1.96 * 0.3)
    assert found.lower_mg_ml == pytest.approx(0.2 - 1.96 * 0.3)
    assert found.rmse_mg_ml == pytest.approx(np.sqrt((0.04 + 0.01 + 0.25) / 3))
    assert found.bias_se_mg_ml == pytest.approx(0.3 / np.sqrt(3))
    assert np.isnan(agreement([1.0], [1.5]).upper_mg_ml)


def test_the_limits_of_agreement_spread_as_their_standard_error_says():
    rng = np.random.default_rng(1)
    true = np.zeros(40)
    found = [agreement(true, rng.normal(0, 1, 40)) for _ in range(1500)]
    spread = np.std([one.upper_mg_ml for one in found])
    assert np.mean([one.limit_se_mg_ml for one in found]) == pytest.approx(spread, rel=0.06)


def test_detection_limits_are_those_of_their_definitions():
    limits = detection_limits(0.8, 0.4)
    assert limits.cnr_mg_ml == pytest.approx(2.5)
    assert limits.iupac_mg_ml == pytest.approx(1.5)
    # A vial at the limit has the contrast that defines it.
    assert contrast_to_noise(0.8 * limits.cnr_mg_ml + 0.1, 0.1, 0.4) == pytest.approx(5)
    assert np.isnan(detection_limits(-0.1, 0.4).cnr_mg_ml)


def test_mixing_tells_slopes_and_cross_talk_apart():
    shown = np.array([[0.97, 0.02], [-0.05, 1.01]])
    true = np.array([[0, 0], [5, 0], [0, 5], [4, 4], [8, 2.0]])
    found = mixing(true, true @ shown.T + [0.1, -0.2])
    np.testing.assert_allclose(found, shown, atol=1e-12)
    assert np.isnan(mixing(true[:2], true[:2])).all()
