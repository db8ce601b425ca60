"""The figures of the benchmark after Mory 2018: exact rays, and measures that find what was put in."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from reconstruction.projector import Projector
from tests.benchmarks.mory2018 import first_within
from tests.benchmarks.mory_problem import SQUARES, MoryProblem, blurred, chords, read_scanner


@pytest.fixture(scope="module")
def problem(test_data):
    return MoryProblem.simulate(test_data / "mory2018_scanner_model", n=64)


def test_another_scanner_may_come_in_one_file(problem, tmp_path):
    np.savez(tmp_path / "scanner.npz", **problem.arrays)
    model, open_counts, _ = read_scanner(tmp_path / "scanner.npz")
    np.testing.assert_array_equal(model.weights, problem.model.weights)
    np.testing.assert_array_equal(open_counts, problem.open_counts)


@pytest.mark.parametrize("square", [square for _, square in SQUARES])
def test_rays_side_by_side_make_the_area_of_a_square(square):
    angles = np.linspace(0.01, 3.1, 7)
    places = np.linspace(-200, 200, 40001)
    area = (square[1] - square[0]) * (square[3] - square[2])
    sums = chords(angles, places, square).sum(axis=1) * (places[1] - places[0])
    np.testing.assert_allclose(sums, area, rtol=1e-4)


def test_our_rays_run_where_the_exact_ones_do(problem):
    """But for what pixels cannot say: rays along the edges, and edges between lines of pixels."""
    projected = Projector(problem.scan, problem.grid, n_channels=3).forward(problem.truth)
    away = np.abs(projected - problem.paths).reshape(3, -1)
    assert (np.median(away, axis=1) < 0.02 * problem.paths.max(axis=(1, 2, 3))).all()
    np.testing.assert_allclose(projected.sum((1, 2, 3)), problem.paths.sum((1, 2, 3)), rtol=2e-3)


def test_counts_are_those_of_the_paper(problem):
    """The centre counts about 235, 148, 104, 71 and 110 photons, as the reference notes say."""
    middle = problem.counts[:, :, 0, problem.counts.shape[-1] // 2]
    np.testing.assert_allclose(np.median(middle, axis=1), (235, 148, 104, 71, 110), rtol=0.05)
    assert problem.arrays["incidentSpectrum"].sum() == pytest.approx(87429, rel=1e-3)


def test_the_truth_has_no_error_and_a_blur_is_found(problem):
    means, spreads = problem.statistics(problem.truth)
    np.testing.assert_allclose(means, (0.01, 0.01, 1.0))
    np.testing.assert_allclose(spreads, 0, atol=1e-12)
    assert problem.worst_share(problem.truth) == pytest.approx(0)
    for sd_pixels in (0.8, 1.2):
        soft = ndimage.gaussian_filter(problem.truth, (0, 0, sd_pixels, sd_pixels))
        for material in range(3):
            found = problem.edge_sd_mm(soft, material) / problem.voxel_mm
            assert found == pytest.approx(sd_pixels, abs=0.15)
    np.testing.assert_allclose(blurred(problem.truth, np.full(3, 1.0)).sum(), problem.truth.sum(), rtol=1e-3)


def test_rays_at_their_bound_have_a_spread_of_one(problem):
    rng = np.random.default_rng(2)
    bound = np.linalg.inv(problem.model.fisher(problem.paths, problem.open_counts).transpose(2, 3, 4, 0, 1))
    root = np.linalg.cholesky(bound)
    noise = np.einsum("vrckl,vrcl->kvrc", root, rng.normal(size=(*root.shape[:3], 3)))
    found = problem.ray_figures(problem.paths + noise)
    assert found["false_minima"] == 0
    np.testing.assert_allclose(list(found["sd_over_crlb"].values()), 1, atol=0.05)
    assert problem.ray_figures(problem.paths + 7 * noise)["false_minima"] > 0.3


def test_a_tolerance_counts_from_where_it_is_kept():
    assert first_within([0.5, 0.05, 0.3, 0.05, 0.02], 0.1) == 3
    assert first_within([0.05, 0.02], 0.1) == 0
    assert first_within([0.5, 0.3], 0.1) is None
