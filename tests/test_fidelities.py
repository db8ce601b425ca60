"""The two fidelities of the sensor agree: photon by photon, and by expectation with drawn statistics.

The sensor followed photon by photon is the oracle: its charges are the same, and it knows nothing of tables, of pile-up
laws, of covariances or of quantiles.
"""

from functools import cache

import numpy as np
import pytest

from firmware_iface.chip import Gain
from sim.events import EventSensor
from sim.sensor import FrontEnd, Sensor, Settings

SIZE, BORDER = 44, 3
INNER = (..., slice(BORDER, -BORDER), slice(BORDER, -BORDER))
ENERGIES_KEV = np.array([30.0, 45.0, 60.0, 80.0])
SHARES = np.array([0.3, 0.3, 0.25, 0.15])
THRESHOLDS_KEV = (8, 10, 18, 20, 30, 32, 50, 50)
FRONT = FrontEnd(
    baseline_sigma_dac=0, gain_sigma_relative=0, trim_sigma_relative=0, dead_share=0, noisy_share=0, telegraph_share=0
)
PHOTONS = 70.0
CASES = {
    # mode and photons per pixel and second; losses at the lowest summed or single threshold: 0.3, 12, 0.4 and 10 %
    "single": (False, 1e3),
    "single, busy": (False, 1.5e5),
    "summing": (True, 1e3),
    "summing, busy": (True, 4e4),
}


def settings(of, is_csm):
    planes = (len(THRESHOLDS_KEV), SIZE, SIZE)
    dac = np.round(FRONT.baseline_dac + of.gain_dac_per_kev(Gain.HGM) * np.array(THRESHOLDS_KEV)).astype(int)
    return Settings(
        threshold_dac=dac, trim=np.full(planes, 16, dtype=np.uint8), is_masked=np.zeros(planes, dtype=bool), disc_l=90,
        disc_h=90, gain=Gain.HGM, is_csm=is_csm, is_equalization=False,
    )  # fmt: skip


def photons(per_pixel):
    lit = np.broadcast_to((SHARES * per_pixel)[:, None, None], (len(SHARES), SIZE, SIZE))
    return np.ascontiguousarray(lit, dtype=np.float32)


@cache
def exposed(kind, case, n):
    """Counts of the inner pixels in n exposures: (n, n_thresholds, rows, cols)."""
    is_csm, rate_per_s = CASES[case]
    of = kind(rows=SIZE, cols=SIZE, front_end=FRONT)
    chosen, rng = settings(of, is_csm), np.random.default_rng(5)
    light = photons(PHOTONS)
    return np.stack(
        [of.expose(light, ENERGIES_KEV, PHOTONS / rate_per_s, chosen, rng)[INNER] for _ in range(n)]
    ).astype(float)


def covariance(counts, down, right):
    """Of what one pixel counts with what one so far down and right does: (n_thresholds, n_thresholds)."""
    off = counts - counts.mean(axis=(0, 2, 3), keepdims=True)
    rows, cols = off.shape[2] - down, off.shape[3] - right
    here, there = off[:, :, :rows, :cols], off[:, :, down:, right:]
    return np.einsum("fihw,fjhw->ij", here, there) / (len(off) * rows * cols)


@pytest.mark.parametrize("case", CASES)
def test_means_agree_at_every_threshold(case):
    by_photon, drawn = exposed(EventSensor, case, 4), exposed(Sensor, case, 40)
    found, wanted = by_photon.mean(axis=(0, 2, 3)), drawn.mean(axis=(0, 2, 3))
    error = 2 * np.sqrt(found / by_photon[:, 0].size)  # twice Poisson's, for shared charge is counted twice
    np.testing.assert_array_less(np.abs(found - wanted), 4 * error + 0.01 * found)


@pytest.mark.parametrize("case", CASES)
def test_covariances_agree_between_thresholds_and_neighbours(case):
    """Per root of the means; one sigma is 0.013 of the oracle's 4 exposures."""
    by_photon, drawn = exposed(EventSensor, case, 4), exposed(Sensor, case, 40)
    mean = by_photon.mean(axis=(0, 2, 3))
    scale = np.sqrt(mean[:, None] * mean[None, :])
    is_busy = case.endswith("busy")
    for down, right in ((0, 0), (0, 1), (1, 1)):
        found, wanted = (covariance(counts, down, right) / scale for counts in (by_photon, drawn))
        np.testing.assert_allclose(wanted, found, atol=0.12 if is_busy and (down, right) == (0, 0) else 0.05)
        assert np.abs(wanted - found).mean() < (0.04 if is_busy and (down, right) == (0, 0) else 0.013)


@pytest.mark.parametrize("case", ["single", "summing"])
def test_sums_of_many_pixels_scatter_by_the_squares_of_what_one_photon_counts(case):
    """The Fano factor of a sum is E[n^2] / E[n]: above 1 where photons count twice."""
    squares = 6

    def fano(counts, k):
        inner = counts[:, k, : squares * 6, : squares * 6].reshape(len(counts), squares, 6, squares, 6)
        sums = inner.sum(axis=(2, 4))
        return sums.var() / sums.mean()

    drawn = exposed(Sensor, case, 40)
    k = 1 if case == "summing" else 0
    found = np.mean([covariance(drawn, *lag)[k, k] for lag in ((0, 1), (1, 1))]) / drawn[:, k].mean()
    if case == "summing":
        assert fano(drawn, k) == pytest.approx(1.15, abs=0.12)  # fluorescence further away is counted for itself
        assert abs(found) < 0.01
    else:
        assert fano(drawn, k) == pytest.approx(1.6, abs=0.15)
        assert found > 0.05


def test_a_slit_is_blurred_alike():
    """Charge that crosses to neighbours: a lit column is seen by the next ones as much in both."""
    line = np.zeros_like(photons(1.0))
    line[:, :, SIZE // 2] = photons(2500.0)[:, :, 0]
    profiles = []
    for kind in (EventSensor, Sensor):
        of = kind(rows=SIZE, cols=SIZE, front_end=FRONT)
        counts = of.expose(line + np.float32(1.0), ENERGIES_KEV, 2.5, settings(of, False), np.random.default_rng(1))
        profiles.append(counts[0, BORDER:-BORDER, SIZE // 2 - 3 : SIZE // 2 + 4].mean(axis=0))
    assert profiles[0][4] > 200  # of 3400 in the middle
    np.testing.assert_allclose(profiles[1], profiles[0], rtol=0.06, atol=25)
