"""Laws of the pixels' own scales: few counts give shifts with honest errors, and lines lean on the others'."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from calibration.pixel_scale import PixelScale, edge_shifts, fit_lines, shift_grid

DACS = np.arange(60.0, 140.0, 2.0)


def _mean(dacs: np.ndarray) -> np.ndarray:
    return norm.sf(dacs, 100, 3) + 0.01


@pytest.mark.parametrize(("photons", "lean"), [(4.0, 0.2), (40.0, 0.1), (400.0, 0.1)])
def test_shifts_come_out_whatever_the_pixels_intensity(photons: float, lean: float) -> None:
    """A likelihood of a handful of counts is skewed: its maximum leans by a part of the error."""
    rng = np.random.default_rng(1)
    truth = rng.normal(0, 6, 3000)
    intensity = photons * rng.uniform(0.5, 2, 3000)
    counts = rng.poisson(intensity * _mean(DACS[:, None] - truth))
    shift, sigma = edge_shifts(counts, DACS, _mean, shift_grid(25))
    pull = (shift - truth) / sigma
    assert np.isfinite(shift).mean() > 0.95
    assert abs(np.nanmean(pull)) < lean
    assert 0.85 < np.nanstd(pull) < 1.25


def test_pixels_that_count_nothing_or_far_elsewhere_have_no_shift() -> None:
    counts = np.zeros((len(DACS), 3))
    counts[:, 1] = 100 * _mean(DACS - 60)  # its edge beyond the grid
    counts[:, 2] = 100 * _mean(DACS)
    shift, sigma = edge_shifts(counts, DACS, _mean, shift_grid(10))
    assert np.isnan(shift[:2]).all()
    assert np.isnan(sigma[:2]).all()
    assert abs(shift[2]) < 0.02


def _pixels(
    rng: np.random.Generator, sigma_dac: float, n: int = 5000
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    energies = np.array([24.0, 43.0, 60.0, 75.0])
    truth = np.stack([rng.normal(64, 0.7, n), rng.normal(3.6, 0.07, n)], axis=1)
    sigmas = sigma_dac * rng.uniform(0.7, 1.5, (4, n))
    positions = truth[:, 0] + energies[:, None] * truth[:, 1] + sigmas * rng.normal(size=(4, n))
    return energies, truth, positions, sigmas


@pytest.mark.parametrize("sigma_dac", [0.2, 2.0, 20.0])
def test_lines_are_nearer_to_the_truth_than_either_alone_or_the_mean(sigma_dac: float) -> None:
    energies, truth, positions, sigmas = _pixels(np.random.default_rng(3), sigma_dac)
    lines = fit_lines(energies, positions, sigmas)
    error = lines.parameters - truth
    at_kev = 50.0
    squares = np.mean((error[:, 0] + at_kev * error[:, 1]) ** 2)
    alone = np.stack([np.polyfit(energies, positions[:, p], 1, w=1 / sigmas[:, p])[::-1] for p in range(500)])
    of_alone = alone - truth[:500]
    assert squares < 1.02 * np.mean((of_alone[:, 0] + at_kev * of_alone[:, 1]) ** 2)
    assert squares < 1.02 * np.var(truth[:, 0] + at_kev * truth[:, 1])
    assert lines.chi2_ratio == pytest.approx(1, abs=0.1)
    c = lines.covariance
    stated = c[:, 0, 0] + 2 * at_kev * c[:, 0, 1] + at_kev**2 * c[:, 1, 1]
    assert np.mean(stated) == pytest.approx(squares, rel=0.15)


def test_a_pixel_that_jumped_between_scans_says_that_it_is_not_known() -> None:
    """The others do not: their errors stay what they were."""
    energies, truth, positions, sigmas = _pixels(np.random.default_rng(6), 0.3)
    whole = fit_lines(energies, positions, sigmas)
    jumped = positions.copy()
    jumped[2:, :20] += 15.0
    lines = fit_lines(energies, jumped, sigmas)
    assert (lines.covariance[:20, 0, 0] > 2 * whole.covariance[:20, 0, 0]).mean() > 0.9
    np.testing.assert_allclose(lines.covariance[20:], whole.covariance[20:], rtol=0.05, atol=1e-4)
    error = np.einsum("pi,i->p", lines.parameters - truth, [1, 50.0])[:20]
    stated, was = (np.einsum("pij,i,j->p", c[:20], [1, 50.0], [1, 50.0]) for c in (lines.covariance, whole.covariance))
    assert np.sqrt(np.mean(error**2 / stated)) < 5 < np.sqrt(np.mean(error**2 / was)) / 4


def test_a_pixel_without_edges_has_no_line_and_one_with_one_edge_leans_on_the_others() -> None:
    energies, _, positions, sigmas = _pixels(np.random.default_rng(4), 0.5)
    positions[:, 0] = np.nan
    positions[1:, 1] = np.nan
    lines = fit_lines(energies, positions, sigmas)
    assert np.isnan(lines.parameters[0]).all()
    assert lines.parameters[1, 1] == pytest.approx(3.6, abs=0.3)
    assert lines.covariance[1, 1, 1] > lines.covariance[2, 1, 1]
    with pytest.raises(ValueError, match="no pixel has edges"):
        fit_lines(energies, np.full((4, 3), np.nan), np.ones((4, 3)))


def test_errors_at_an_energy_follow_from_the_covariance() -> None:
    one = np.ones((2, 3, 3), np.float32)
    scale = PixelScale(
        offset_dac=64 * one,
        gain_dac_per_kev=4 * one,
        offset_variance=0.25 * one,
        gain_variance=1e-4 * one,
        covariance=-4e-3 * one,
        chi2_ratio=np.ones(2),
    )
    assert scale.threshold_kev(1, 164)[0, 0] == 25
    # the variance of offset + 50 gain, drawn from the same normal law
    rng = np.random.default_rng(5)
    drawn = rng.multivariate_normal([64, 4], [[0.25, -4e-3], [-4e-3, 1e-4]], 200_000) @ [1, 50]
    assert scale.sigma_kev(0, 50)[0, 0] == pytest.approx(drawn.std() / 4, rel=0.02)
