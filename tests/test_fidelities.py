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
    by_photon, drawn = exposed(EventSensor, case, 6), exposed(Sensor, case, 40)
    found, wanted = by_photon.mean(axis=(0, 2, 3)), drawn.mean(axis=(0, 2, 3))
    error = 2 * np.sqrt(found / by_photon[:, 0].size)  # twice Poisson's, for shared charge is counted twice
    np.testing.assert_array_less(np.abs(found - wanted), 4 * error + 0.01 * found)


@pytest.mark.parametrize("case", CASES)
def test_covariances_agree_between_thresholds_and_neighbours(case):
    """Per root of the means; one sigma of the oracle's 6 exposures is 0.015, and its errors hang together.

    Under 12 % of loss the expectation is good to 0.1 between the thresholds of one pixel.
    """
    by_photon, drawn = exposed(EventSensor, case, 6), exposed(Sensor, case, 40)
    mean = by_photon.mean(axis=(0, 2, 3))
    scale = np.sqrt(mean[:, None] * mean[None, :])
    is_busy = case.endswith("busy")
    for down, right in ((0, 0), (0, 1), (1, 1)):
        found, wanted = (covariance(counts, down, right) / scale for counts in (by_photon, drawn))
        is_first_order = is_busy and (down, right) == (0, 0)
        np.testing.assert_allclose(wanted, found, atol=0.16 if is_first_order else 0.07)
        assert np.abs(wanted - found).mean() < (0.05 if is_first_order else 0.03)


def fano_of_sums(counts, k, side=6):
    """Variance over mean of sums over squares of pixels, from the covariances of all pairs within reach."""
    total = 0.0
    for down in range(-2, 3):
        for right in range(-2, 3):
            pairs = (side - abs(down)) * (side - abs(right)) / side**2
            mirrored = counts if down * right >= 0 else counts[..., ::-1]
            total += pairs * covariance(mirrored, abs(down), abs(right))[k, k]
    return total / counts[:, k].mean()


@pytest.mark.parametrize(("case", "k", "least"), [("single", 0, 1.3), ("summing", 1, 0.95)])
def test_sums_of_many_pixels_scatter_by_the_squares_of_what_one_photon_counts(case, k, least):
    """The Fano factor of a sum is E[n^2] / E[n], less what crosses its edges: above 1 where photons count twice."""
    by_photon, drawn = (fano_of_sums(exposed(kind, case, n), k) for kind, n in ((EventSensor, 6), (Sensor, 120)))
    assert drawn == pytest.approx(by_photon, abs=0.15)  # one sigma of the oracle's 6 exposures is 0.05
    assert drawn > least  # dead time makes summed counts a little more regular than chance


def test_a_slit_is_blurred_alike():
    """Charge that crosses to neighbours: a lit column is seen by the next ones as much in both.

    What reaches three pixels and more is given to those two pixels away: fluorescence alone does.
    """
    line = np.zeros_like(photons(1.0))
    line[:, :, SIZE // 2] = photons(2500.0)[:, :, 0]
    profiles = []
    for kind in (EventSensor, Sensor):
        of = kind(rows=SIZE, cols=SIZE, front_end=FRONT)
        counts = of.expose(line + np.float32(1.0), ENERGIES_KEV, 2.5, settings(of, False), np.random.default_rng(1))
        profiles.append(counts[0, BORDER:-BORDER, SIZE // 2 - 4 : SIZE // 2 + 5].mean(axis=0))
    by_photon, drawn = profiles
    assert by_photon[5] > 300  # of 2700 in the middle
    np.testing.assert_allclose(drawn[3:6], by_photon[3:6], rtol=0.05)
    for beyond in (slice(0, 3), slice(6, 9)):
        assert drawn[beyond].sum() == pytest.approx(by_photon[beyond].sum(), rel=0.2)


@pytest.mark.parametrize("rate_per_s", [2e3, 2.7e3, 3.6e3])
@pytest.mark.parametrize("is_csm", [False, True])
def test_a_pixel_piles_up_by_its_own_rate_whatever_its_picture_holds(is_csm, rate_per_s):
    """Far above the lines only sums of photons count, as the square of the rate: in an object's shadow too."""
    of = Sensor(rows=SIZE, cols=SIZE, front_end=FRONT)
    chosen, duration_s = settings(of, is_csm), 1.0
    chosen.threshold_dac[:] = round(FRONT.baseline_dac + of.gain_dac_per_kev(Gain.HGM) * 90)
    far = (slice(BORDER, -BORDER), slice(BORDER, SIZE // 2 - BORDER))
    shadow = np.where(np.arange(SIZE) < SIZE // 2, 0.8, 1.0).astype(np.float32)
    picture = of.expected(photons(rate_per_s) * shadow, ENERGIES_KEV, duration_s, chosen)[:, *far]
    bright = of.expected(photons(rate_per_s), ENERGIES_KEV, duration_s, chosen)[:, *far]
    for k in (1, 3) if is_csm else range(8):
        assert picture[k].mean() == pytest.approx(0.64 * bright[k].mean(), rel=0.03)
