"""Stripes go, the object stays: each method against a plain form of its own mathematics, and on exact views."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from firmware_iface.errors import WrongUsage
from reconstruction.artefacts import rings, stripes
from reconstruction.kernels import stripes_cpu
from tests import striped_scans as scans

DICE = np.random.default_rng(11)
NOISE = 0.01


@cache
def exact(name: str = "rods") -> NDArray[np.float32]:
    return scans.views_of(scans.the_object(name), scans.geometry(rows=3, cols=160), scans.angles_rad(240))


def noisy(name: str = "rods") -> NDArray[np.float32]:
    values = exact(name)
    return values + NOISE * np.random.default_rng(2).standard_normal(values.shape, dtype=np.float32)


@pytest.mark.parametrize("width", [3, 9, 21])
def test_the_running_median_is_scipys(width: int) -> None:
    rows = DICE.standard_normal((7, 40)).astype(np.float32)
    rows[2] = rows[2].round()  # many equal values
    expected = ndimage.median_filter(rows, size=(1, width), mode="reflect")
    np.testing.assert_array_equal(stripes.running_median(rows, width), expected)


def test_a_running_median_wider_than_the_row_is_as_wide_as_the_row() -> None:
    rows = DICE.standard_normal((2, 8)).astype(np.float32)
    np.testing.assert_array_equal(stripes.running_median(rows, 99), stripes.running_median(rows, 7))


def test_the_wavelet_of_two_moments_is_daubechies_own() -> None:
    root = np.sqrt(3)
    expected = np.array([1 + root, 3 + root, 3 - root, 1 - root]) / (4 * np.sqrt(2))
    np.testing.assert_allclose(stripes.daubechies(2), expected, atol=1e-12)


@pytest.mark.parametrize("n_moments", [1, 3, 5, 9])
def test_wavelets_are_orthonormal_and_blind_to_polynomials(n_moments: int) -> None:
    low = stripes.daubechies(n_moments)
    high = low[::-1] * (-1.0) ** np.arange(len(low))
    for shift in range(0, len(low), 2):
        assert low[shift:] @ low[: len(low) - shift] == pytest.approx(float(shift == 0), abs=1e-8)
    for degree in range(n_moments):
        powers = (np.arange(len(low)) / len(low)) ** degree
        assert high @ powers == pytest.approx(0, abs=1e-7)


def test_both_bands_together_give_the_signal_back() -> None:
    signal = DICE.standard_normal((32, 5))
    low = stripes.daubechies(4)
    high = low[::-1] * (-1.0) ** np.arange(len(low))
    back = np.zeros_like(signal)
    for taps in (low, high):
        half = np.empty((16, 5))
        stripes_cpu.analyse(signal, taps, half)
        stripes_cpu.synthesise(half, taps, back)
    np.testing.assert_allclose(back, signal, atol=1e-9)


@pytest.mark.parametrize("order", [1, 2])
def test_the_regularised_profile_solves_its_equations(order: int) -> None:
    sinogram = DICE.standard_normal((10, 30)).astype(np.float32)
    difference = np.diff(np.eye(30), axis=0)
    stiffness = np.linalg.matrix_power(difference.T @ difference, order)
    profile = np.linalg.solve(stiffness + 0.3 * np.eye(30), stiffness @ sinogram.mean(axis=0))
    np.testing.assert_allclose(stripes.regularised(sinogram, strength=0.3, order=order), sinogram - profile, atol=1e-5)


def test_sorting_keeps_the_order_along_the_views_and_takes_medians_of_ranks() -> None:
    sinogram = DICE.standard_normal((25, 30)).astype(np.float32)
    result = stripes.sorting(sinogram, width_px=5)
    ranked = ndimage.median_filter(np.sort(sinogram, axis=0), size=(1, 5), mode="reflect")
    np.testing.assert_array_equal(np.sort(result, axis=0), ranked)
    np.testing.assert_array_equal(np.argsort(result, axis=0), np.argsort(sinogram, axis=0))


def test_columns_that_stand_out_are_found_and_no_others() -> None:
    profile = DICE.standard_normal(100)
    assert not stripes.find_stripes(profile, ratio=3.0).any()
    profile[[7, 60]] += [20.0, -20.0]
    np.testing.assert_array_equal(np.flatnonzero(stripes.find_stripes(profile, ratio=3.0)), [7, 60])


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 2, 1, 3), (2, 7, 2, 17), (1, 30, 1, 9)])
@pytest.mark.parametrize("method", rings.METHODS)
def test_small_views_and_empty_ones_come_back_whole(method: str, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).random(shape, dtype=np.float32)
    assert np.isfinite(rings.suppress(values, method=method)[0]).all()
    np.testing.assert_array_equal(rings.suppress(np.zeros_like(values), method=method)[0], 0)


def test_filled_columns_lie_on_the_line_between_good_ones() -> None:
    sinogram = np.outer(np.arange(4.0), np.ones(9)) + np.arange(9.0)
    bad = np.isin(np.arange(9), [3, 4, 5])
    broken = np.where(bad, 99.0, sinogram).astype(np.float32)
    np.testing.assert_allclose(stripes.fill_columns(broken, bad), sinogram)
    np.testing.assert_allclose(stripes.fill_columns(broken, np.arange(9) < 6)[:, :6], broken[:, 6:7].repeat(6, axis=1))


@pytest.mark.parametrize("method", rings.METHODS)
def test_a_constant_added_stays(method: str) -> None:
    values = noisy()
    shifted, _ = rings.suppress(values + np.float32(0.25), method=method)
    difference = shifted - rings.suppress(values.copy(), method=method)[0] - 0.25
    # Where two values of a column are equal but for rounding, their ranks may change places.
    assert np.mean(np.abs(difference) < 2e-5) > 0.999


@pytest.mark.parametrize("method", rings.METHODS)
def test_rows_and_bins_are_their_own_and_threads_change_nothing(method: str) -> None:
    values = np.concatenate([noisy(), noisy("texture")])
    whole, words = rings.suppress(values.copy(), method=method)
    assert method in words
    one = np.ascontiguousarray(values[1:, :, 2:])
    np.testing.assert_array_equal(whole[1:, :, 2:], rings.suppress(one, method=method, n_threads=1)[0])


def test_it_works_in_place_and_none_does_nothing() -> None:
    values = noisy()
    result, _ = rings.suppress(values, method="sorting")
    assert result is values
    before = values.copy()
    np.testing.assert_array_equal(rings.suppress(values, method="none")[0], before)
    with pytest.raises(WrongUsage, match="allowed: none, mean-profile"):
        rings.suppress(values, method="magic")


FACTORS = {
    ("mean-profile", "thin"): 5.0,
    ("regularised", "thin"): 3.5,
    ("wavelet-fourier", "thin"): 8.0,
    ("sorting", "thin"): 5.0,
    ("filtering", "thin"): 5.0,
    ("filtering", "partial"): 1.7,
    ("combined", "thin"): 5.0,
    ("dead", "fluctuating"): 7.0,
    ("dead", "dead"): 50.0,
    ("combined", "dead"): 30.0,
    ("large", "wide"): 2.0,
}


@pytest.mark.parametrize(("method", "kind"), FACTORS)
def test_the_energy_of_rings_falls_by_a_factor(method: str, kind: str) -> None:
    values = scans.striped(noisy(), kind, 0.02, np.random.default_rng(5))
    before = scans.ring_energy(values - exact())
    after = scans.ring_energy(rings.suppress(values, method=method)[0] - exact())
    assert before > FACTORS[method, kind] * after


@pytest.mark.parametrize("name", ["rods", "texture"])
@pytest.mark.parametrize("method", rings.METHODS)
def test_views_without_stripes_hardly_change(method: str, name: str) -> None:
    values = noisy(name)
    changed, _ = rings.suppress(values.copy(), method=method)
    assert scans.ring_energy(changed - values) < 0.015**2 * np.mean(values**2)


@pytest.mark.slow
def test_published_code_does_the_same() -> None:
    """Against Algotom, by the author of sorting: the same bits where the algorithm is one, else near what it takes."""
    removal = pytest.importorskip("algotom.prep.removal")
    sinogram = noisy()[0, :, 1]
    sinogram[:, 40] += 0.05
    sinogram[:, 100:106] -= 0.04
    sinogram[:, 70] = 0.3
    np.testing.assert_array_equal(
        stripes.sorting(sinogram, width_px=21), removal.remove_stripe_based_sorting(sinogram, 21, 1)
    )
    ours = stripes.dead(sinogram, width_px=51, ratio=3.0)
    theirs = removal.remove_dead_stripe(sinogram, 3.0, 51, residual=False)
    np.testing.assert_allclose(ours[:, 60:80], theirs[:, 60:80], atol=1e-5)
    ours = stripes.wavelet_fourier(sinogram, n_levels=3, n_moments=9, damping_orders=1.0)
    theirs = removal.remove_stripe_based_wavelet_fft(sinogram, 3, 1, "db9", "gaussian")
    middle = np.s_[:, 20:-20]  # the two pad differently
    taken_by_both = np.corrcoef((sinogram - ours)[middle].ravel(), (sinogram - theirs)[middle].ravel())[0, 1]
    assert taken_by_both > 0.9
