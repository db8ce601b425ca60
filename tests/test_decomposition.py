"""From bins to materials: exact where it must be, SciPy as the oracle of the rest, and a real measured slice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.optimize import nnls

from firmware_iface.errors import BadFile, WrongUsage
from reconstruction import decomposition
from reconstruction.decomposition import bin_covariance, decompose, read_matrix_csv
from reconstruction.materials import decompose_volume, read_image_folder
from reconstruction.quality import find_vials, k_edge_materials, total_cross_talk_mg_ml, vial_statistics

MATRIX = np.array([[0.035, 3.2, 1.5], [0.026, 2.6, 1.0], [0.022, 1.4, 1.9], [0.019, 0.7, 1.1]])


@pytest.mark.parametrize("is_non_negative", [False, True])
@pytest.mark.parametrize("covariance", [None, np.diag([1.0, 2.0, 3.0, 9.0]) + 0.3])
def test_without_noise_the_concentrations_come_back(is_non_negative, covariance):
    truth = np.random.default_rng(1).uniform(0, 1, (3, 4, 5, 6))
    bins = np.tensordot(MATRIX, truth, 1).astype(np.float32)
    found = decompose(bins, MATRIX, covariance=covariance, is_non_negative=is_non_negative)
    assert found.shape == truth.shape
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, truth, atol=2e-4)


def test_plain_least_squares_is_that_of_numpy():
    bins = np.random.default_rng(2).normal(size=(4, 100))
    expected = np.linalg.lstsq(MATRIX, bins, rcond=None)[0]
    np.testing.assert_allclose(decompose(bins, MATRIX), expected, rtol=1e-4, atol=1e-4)


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(0, 3), st.booleans())
@settings(max_examples=40, deadline=None)
def test_non_negative_least_squares_is_that_of_scipy(seed, n_materials, n_spare, is_weighted):
    rng = np.random.default_rng(seed)
    n_bins = n_materials + n_spare
    matrix = rng.uniform(0.1, 1, (n_bins, n_materials)) + np.eye(n_bins, n_materials)
    bins = rng.normal(0.3, 1, (n_bins, 20))
    root = rng.normal(size=(n_bins, n_bins)) / 4 + np.eye(n_bins)
    covariance = root @ root.T if is_weighted else np.eye(n_bins)
    found = decompose(bins, matrix, covariance=covariance, is_non_negative=True)
    whitener = np.linalg.inv(np.linalg.cholesky(covariance))
    expected = np.stack([nnls(whitener @ matrix, whitener @ u)[0] for u in bins.T], axis=1)
    assert (found >= 0).all()
    np.testing.assert_allclose(found, expected, atol=1e-4 * (1 + np.abs(expected).max()))


def test_weights_give_the_smallest_variance():
    rng = np.random.default_rng(3)
    root = np.diag([1.0, 1.0, 1.0, 4.0]) @ (np.eye(4) + 0.3)
    noise = 1e-3 * root @ rng.normal(size=(4, 20000))
    truth = np.array([[1.0], [0.01], [0.005]])
    bins = MATRIX @ truth + noise
    plain, weighted = decompose(bins, MATRIX), decompose(bins, MATRIX, covariance=root @ root.T)
    np.testing.assert_allclose(weighted.mean(axis=1), truth[:, 0], rtol=0.02)
    expected = 1e-3 * np.sqrt(np.diag(np.linalg.inv(MATRIX.T @ np.linalg.inv(root @ root.T) @ MATRIX)))
    np.testing.assert_allclose(weighted.std(axis=1), expected, rtol=0.03)
    assert (weighted.std(axis=1) < 0.99 * plain.std(axis=1)).all()


def test_the_noise_is_estimated_from_the_data_in_spite_of_edges():
    rng = np.random.default_rng(4)
    root = np.array([[1.0, 0, 0], [0.5, 1, 0], [0.2, 0.3, 2]]) * 1e-3
    y, x = np.mgrid[:120, :120]
    disc = np.hypot(y - 60, x - 60) < 40
    values = 0.02 * disc + np.tensordot(root, rng.normal(size=(3, 4, 120, 120)), 1)
    values = values.astype(np.float32)
    np.testing.assert_allclose(bin_covariance(values), root @ root.T, rtol=0.08, atol=3e-8)
    values[:, :, :, :20] = 0  # outside the field of view nothing was measured
    np.testing.assert_allclose(bin_covariance(values), root @ root.T, rtol=0.08, atol=3e-8)


@pytest.mark.parametrize("blur", [0.6, 1.0])
def test_the_noise_is_that_of_a_voxel_where_neighbours_share_it(blur):
    root = np.array([[1.0, 0, 0], [0.5, 1, 0], [0.2, 0.3, 2]]) * 1e-3
    noise = ndimage.gaussian_filter(np.random.default_rng(6).normal(size=(3, 10, 160, 160)), (0, 0, blur, blur))
    noise /= noise.std(axis=(1, 2, 3), keepdims=True)
    y, x = np.mgrid[:160, :160]
    values = 0.02 * (np.hypot(y - 80, x - 80) < 50) + np.tensordot(root, noise, 1)
    found, truth = bin_covariance(values.astype(np.float32)), root @ root.T
    # Half of the voxels, one in 4 pi blur^2 of its own; 4 sigma, and what is shared at four voxels' distance.
    n = values[0].size / 2 / (4 * np.pi * blur**2)
    error = np.sqrt((np.outer(np.diag(truth), np.diag(truth)) + truth**2) / n)
    assert (np.abs(found - truth) < 4 * error + 0.03 * truth).all()


@pytest.mark.parametrize("is_non_negative", [False, True])
def test_voxels_do_not_depend_on_how_they_are_cut_into_chunks(monkeypatch, is_non_negative):
    bins = np.random.default_rng(5).normal(0.03, 0.02, size=(4, 5, 4)).astype(np.float32)
    whole = decompose(bins, MATRIX, is_non_negative=is_non_negative)
    monkeypatch.setattr(decomposition, "CHUNK_VOXELS", 7)
    np.testing.assert_array_equal(decompose(bins, MATRIX, is_non_negative=is_non_negative), whole)


def test_what_cannot_be_told_apart_is_refused():
    with pytest.raises(WrongUsage, match="4 materials cannot be told apart with 3 bins"):
        decompose(np.ones((3, 5)), np.ones((3, 4)))
    with pytest.raises(WrongUsage, match="depend on each other"):
        decompose(np.ones((4, 5)), MATRIX[:, [0, 1, 1]])
    with pytest.raises(WrongUsage, match="3 bins came for a matrix of 4"):
        decompose(np.ones((3, 5)), MATRIX)
    with pytest.raises(WrongUsage, match="positive definite"):
        decompose(np.ones((4, 5)), MATRIX, covariance=np.ones((4, 4)))


def test_a_matrix_is_read_in_its_own_unit(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("# cm2/g\n\nmaterial, bin1, bin2\nwater, 0.3, 0.2\n# the agent\niodine, 15, 20\n")
    matrix = read_matrix_csv(path)
    assert matrix.materials == ("water", "iodine")
    assert matrix.bins == ("bin1", "bin2")
    np.testing.assert_allclose(matrix.attenuation_per_mm_per_g_cm3, [[0.03, 1.5], [0.02, 2.0]])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "holds no matrix"),
        ("material,bin1\n", "holds no matrix"),
        ("a,b\nc,d\n", "holds no matrix"),
        ("material,bin1,bin2\nwater,1\n", "line 2: 1 values for 'water'; the header names 2 bins"),
        ("material,bin1\nwater,1\nwater,2\n", "line 3: the material is 'water'"),
        ("material,bin1\nwater,one\n", "line 2, water in bin1: the value is 'one'"),
        ("material,bin1\nwater,nan\n", "line 2, water in bin1"),
        ("material,bin1\nwater,-1\n", "allowed: a number above 0"),
    ],
)
def test_a_wrong_matrix_names_its_line(tmp_path, text, match):
    path = tmp_path / "m.csv"
    path.write_text(text)
    with pytest.raises(BadFile, match=match):
        read_matrix_csv(path)


@pytest.mark.parametrize(
    "names",
    [
        ("bin1_slice2", "bin2_slice2", "bin10_slice2"),
        ("Slice 2, Bin 01", "Slice 2, Bin 02", "Slice 2, Bin 10"),
        ("2-bin1", "2-bin2", "2-bin10"),
    ],
)
def test_a_matrix_takes_the_order_of_the_images(tmp_path, names):
    path = tmp_path / "matrix.csv"
    path.write_text("material,bin10,bin1,bin2\nwater,10,1,2\niodine,20,11,12\n")
    matrix = read_matrix_csv(path)
    ordered = matrix.in_order_of(names)
    assert ordered.bins == ("bin1", "bin2", "bin10")
    np.testing.assert_allclose(ordered.attenuation_per_mm_per_g_cm3, 0.1 * np.array([[1, 11], [2, 12], [10, 20]]))
    assert ordered.in_order_of(names) is not matrix
    assert matrix.in_order_of(("low", "middle", "high")) is matrix
    assert matrix.in_order_of(("bin1_bin2", "bin2", "bin10")) is matrix
    assert matrix.in_order_of(("bin1", "bin1", "bin10")) is matrix


def test_a_matrix_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "m.csv").write_bytes(b"\x89HDF\r\n\xff\xfe")
    for path in (tmp_path / "m.csv", tmp_path / "none.csv"):
        with pytest.raises(BadFile, match="cannot be read as text"):
            read_matrix_csv(path)


def test_the_cuvettes_of_a_real_scan_hold_what_they_should(test_data):
    matrix = read_matrix_csv(test_data / "mr-bmd" / "decomposition_matrix.csv")
    bins = read_image_folder(test_data / "mr-bmd", scale=0.0453, voxel_mm=0.045)
    agents = k_edge_materials(matrix)
    assert agents == ("iodine", "barium", "gadolinium")
    materials = decompose_volume(bins, matrix)
    vials = find_vials(materials, agents)
    assert [vial.material for vial in vials] == list(agents)
    assert [vial.radius_mm for vial in vials] == pytest.approx([2.6, 2.6, 2.6], abs=0.1)
    statistics = vial_statistics(materials, vials)
    found = {s.vial.material: s.mean_mg_ml(s.vial.material) for s in statistics}
    # In the units of that matrix; another region of interest gave 35.0 +- 5.9, 30.4 +- 3.4 and 37.5 +- 3.6.
    assert found["iodine"] == pytest.approx(35.0, abs=2.5)
    assert found["barium"] == pytest.approx(30.4, abs=2.5)
    assert found["gadolinium"] == pytest.approx(37.5, abs=2.5)
    assert total_cross_talk_mg_ml(statistics) <= 3.4
