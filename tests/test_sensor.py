"""From photons to counters: thresholds and trims, noise, charge summing, dead time, and the statistics of counts."""

from dataclasses import replace

import numpy as np
import pytest

from firmware_iface import chip
from firmware_iface.chip import Gain
from firmware_iface.errors import WrongUsage
from sim import pulses
from sim.sensor import FrontEnd, Sensor, Settings

ROWS, COLS = 24, 32
AM_KEV = np.array([59.54])
PERFECT = FrontEnd(
    baseline_sigma_dac=0, gain_sigma_relative=0, trim_sigma_relative=0, dead_share=0, noisy_share=0,
    telegraph_share=0, peaking_time_s=0, ikrum_na_per_code=1e6,
)  # fmt: skip


def sensor(front_end=PERFECT, seed=1, **changes):
    return Sensor(rows=ROWS, cols=COLS, front_end=front_end, seed=seed, **changes)


def settings(
    threshold_dac, *, code=16, is_csm=False, is_equalization=False, disc=90, gain=Gain.HGM, shape=(ROWS, COLS),
    n=chip.N_THRESHOLDS, is_hole_collecting=False,
):  # fmt: skip
    planes = (n, *shape)
    return Settings(
        threshold_dac=np.broadcast_to(threshold_dac, n).astype(int),
        trim=np.full(planes, code, dtype=np.uint8),
        is_masked=np.zeros(planes, dtype=bool),
        disc_l=disc,
        disc_h=disc,
        gain=gain,
        is_csm=is_csm,
        is_equalization=is_equalization,
        is_hole_collecting=is_hole_collecting,
    )


def at_kev(of, energies_kev, **changes):
    """Thresholds at these energies, as near as codes allow, and the energies that they really are at."""
    front = of.front_end
    n = changes.get("n", chip.N_THRESHOLDS)
    dac = np.round(front.baseline_dac + of.gain_dac_per_kev(Gain.HGM) * np.broadcast_to(energies_kev, n))
    return settings(dac, **changes), (dac - front.baseline_dac) / of.gain_dac_per_kev(Gain.HGM)


def light(per_pixel, n_energies=1):
    return np.full((n_energies, ROWS, COLS), per_pixel, dtype=np.float32)


def noise_centroids(of, is_csm, codes=range(0, 200, 2), **changes):
    """Centroid of each discriminator's noise peak in a dark threshold scan."""
    peaks = np.stack(
        [
            of.expected(None, AM_KEV, 1e-3, settings(code, is_csm=is_csm, is_equalization=True, **changes))
            for code in codes
        ]
    )
    return np.tensordot(np.array(codes, dtype=float), peaks, axes=1) / peaks.sum(axis=0)


@pytest.mark.parametrize("is_csm", [False, True])
def test_the_noise_peak_stands_at_the_baseline(is_csm):
    real = sensor(FrontEnd(dead_share=0, noisy_share=0))
    centroid = noise_centroids(real, is_csm)
    np.testing.assert_allclose(centroid, real.baselines_dac(settings(0)), atol=0.2)
    assert centroid.std() == pytest.approx(10, rel=0.1)
    assert centroid.mean() == pytest.approx(64, abs=1)


def test_a_higher_trim_code_lowers_the_noise_peak():
    perfect = sensor()
    for code in (0, 7, 16, 24):
        centroid = noise_centroids(perfect, False, code=code, disc=80)
        np.testing.assert_allclose(centroid, 64 + 80 * (1 - code / 16), atol=0.2)
    uneven = replace(settings(0), disc_l=40, trim=np.zeros((8, ROWS, COLS), dtype=np.uint8))
    assert np.all(perfect.baselines_dac(uneven)[0::2] == 64 + 40)  # DiscL serves the even thresholds
    assert np.all(perfect.baselines_dac(uneven)[1::2] == 64 + 90)


def test_the_energy_scale_goes_as_pair_energy_and_feedback():
    assert sensor().gain_dac_per_kev(Gain.HGM) == pytest.approx(3.60, abs=0.005)
    silicon = sensor(material="silicon", thickness_mm=0.3, bias_v=100.0)
    assert silicon.gain_dac_per_kev(Gain.SHGM) == pytest.approx(8.81)
    assert silicon.gain_dac_per_kev(Gain.SLGM) == pytest.approx(8.81 / 4)
    with pytest.raises(WrongUsage, match="cdte"):
        sensor(material="germanium")


@pytest.mark.parametrize("gain", Gain)
def test_the_noise_peak_is_as_wide_as_noise_and_gain_say(gain):
    perfect, codes = sensor(), np.arange(0, 130)
    chosen = [settings(code, gain=gain) for code in codes]
    peak = np.array([perfect.expected(None, AM_KEV, 1e-3, one)[0].mean() for one in chosen])
    sigma_dac = np.sqrt(np.average((codes - 64.0) ** 2, weights=peak))
    noise_e = {"SHGM": 72, "HGM": 80, "LGM": 92, "SLGM": 104}[gain.name]
    assert sigma_dac == pytest.approx(noise_e * 4.43e-3 * perfect.gain_dac_per_kev(gain), rel=0.02)


def test_an_s_curve_falls_at_its_line_with_the_width_of_noise_and_fano():
    perfect = sensor()
    kev, curve = [], []
    for energy in np.arange(52, 66, 0.5):
        chosen, real = at_kev(perfect, [7, *[energy] * 7], is_csm=True)
        curve.append(perfect.expected(light(1000), AM_KEV, 1.0, chosen)[1].mean())
        kev.append(real[1])
    peak = -np.diff(curve) / np.diff(kev)
    middle = (np.array(kev)[1:] + np.array(kev)[:-1]) / 2
    top = peak.argmax()
    left = np.interp(peak[top] / 2, peak[: top + 1], middle[: top + 1])
    right = np.interp(peak[top] / 2, peak[top:][::-1], middle[top:][::-1])
    assert (left + right) / 2 == pytest.approx(59.54, abs=0.2)
    assert right - left == pytest.approx(2.0, abs=0.25)  # the reference Monte Carlo's figure


def test_a_threshold_at_half_the_energy_counts_each_photon_about_once():
    perfect = sensor()
    energy = np.array([25.0])
    chosen, _ = at_kev(perfect, 12.5)
    per_photon = perfect.expected(light(1000), energy, 1.0, chosen).mean() / 1000
    assert 0.94 < per_photon < 1.0  # what falls on a corner is lost


def test_counters_of_a_pixel_are_nested():
    real, rng = sensor(FrontEnd()), np.random.default_rng(2)
    photons = light(30, 3)
    energies = np.array([30.0, 60.0, 90.0])
    together = settings([100, 130, 160, 190, 220, 250, 280, 310])
    order = np.argsort(real.thresholds_kev(together), axis=0)
    counts = np.take_along_axis(real.expose(photons, energies, 1.0, together, rng).astype(int), order, axis=0)
    assert np.all(np.diff(counts, axis=0) <= 0)
    assert np.all(counts[0, ~real.truth.is_dead] > 0)

    summing = settings([90, 130, 160, 190, 220, 250, 280, 310], is_csm=True)
    order = np.argsort(real.thresholds_kev(summing)[1::2], axis=0)
    counts = real.expose(photons, energies, 1.0, summing, rng)[1::2].astype(int)
    assert np.all(np.diff(np.take_along_axis(counts, order, axis=0), axis=0) <= 0)


def test_counts_and_their_differences_are_poisson():
    quiet = FrontEnd(dead_share=0, noisy_share=0, telegraph_share=0)
    real, rng = sensor(quiet), np.random.default_rng(4)
    chosen, _ = at_kev(real, [7, 18, 20, 33, 40, 50, 60, 55], is_csm=True)
    counts = np.stack([real.expose(light(40), AM_KEV, 1.0, chosen, rng) for _ in range(150)]).astype(float)
    mean = real.expected(light(40), AM_KEV, 1.0, chosen)
    for bins, expected in ((counts[:, 1], mean[1]), (counts[:, 1] - counts[:, 5], mean[1] - mean[5])):
        assert bins.mean() == pytest.approx(expected.mean(), rel=0.01)
        lit = expected > 1
        fano = (bins.var(axis=0, ddof=1) / bins.mean(axis=0).clip(0.1))[lit].mean()
        assert fano == pytest.approx(1.0, abs=0.03)  # sigma of the mean Fano factor is 0.004
    first, last = counts[:, 1] - counts[:, 5], counts[:, 5]
    covariance = ((first - first.mean(axis=0)) * (last - last.mean(axis=0))).mean()
    assert abs(covariance) < 0.05 * mean[5].mean()  # exclusive bins are independent


def test_masked_and_dead_are_silent_and_noisy_is_not():
    real, rng = sensor(FrontEnd(baseline_sigma_dac=2, dead_share=0.1, noisy_share=0.1)), np.random.default_rng(6)
    chosen, _ = at_kev(real, 10)
    masked = chosen.is_masked.copy()
    masked[2] = True
    counts = real.expose(light(1000), AM_KEV, 1.0, replace(chosen, is_masked=masked), rng)
    assert not counts[2].any()
    assert not counts[:, real.truth.is_dead].any()
    assert np.all(counts[[0, 1, 3], :][:, ~real.truth.is_dead] > 0)
    dark = real.expose(None, AM_KEV, 1.0, chosen, rng)
    is_noisy = real.truth.relative_noise > 1
    assert np.all(dark[0, is_noisy & ~real.truth.is_dead] > 0)
    assert not dark[0, ~is_noisy].any()


def test_charge_summing_loses_about_a_tenth_at_30_kcps():
    """Published, as quoted from memory: 10 % at 30 kcps per 110 um pixel. The model says 10.6 % of 60 keV photons."""
    losing, perfect = sensor(replace(PERFECT, peaking_time_s=120e-9, ikrum_na_per_code=0.2)), sensor()
    chosen, _ = at_kev(perfect, [7, 10, 10, 10, 10, 10, 10, 10], is_csm=True)
    unit = perfect.expected(light(1000), AM_KEV, 1.0, chosen)[1].mean() / 1000
    for rate, kept, error in ((30e3, 0.9, 0.02), (300.0, 0.999, 0.0005)):
        counted = losing.expected(light(rate / unit), AM_KEV, 1.0, chosen)[1].mean()
        assert counted / rate == pytest.approx(kept, abs=error)
    faster = replace(chosen, ikrum=100)
    assert losing.expected(light(30e3 / unit), AM_KEV, 1.0, faster)[1].mean() > 0.96 * 30e3
    whole = losing.expected(light(30e3 / unit), AM_KEV, 1.0, chosen)[1].mean()
    short = losing.expected(light(30e3 / unit / 100), AM_KEV, 0.01, chosen)[1].mean()
    assert short == pytest.approx(whole / 100, rel=1e-4)  # a matter of rate, not of counts


def test_the_arbiter_gates_the_summed_counters():
    perfect = sensor()
    for arbiter_kev, is_counted in ((7, True), (20, True), (64, False)):
        chosen, _ = at_kev(perfect, [arbiter_kev, 18, 18, 18, 18, 18, 18, 18], is_csm=True)
        counts = perfect.expected(light(100), AM_KEV, 1.0, chosen)
        assert (counts[1].mean() > 50) == is_counted
        assert counts[2].mean() > 100  # single pixels do not ask the arbiter, and share charge
        assert counts[2].mean() > counts[1].mean()
    low, _ = at_kev(perfect, [7, 40, 40, 40, 40, 40, 40, 40], is_csm=True)
    high, _ = at_kev(perfect, [25, 40, 40, 40, 40, 40, 40, 40], is_csm=True)
    counts = [perfect.expected(light(100), AM_KEV, 1.0, one)[1].mean() for one in (low, high)]
    assert counts[1] < counts[0]  # an event shared by four may have no pixel above the arbiter


def test_in_equalization_each_discriminator_counts_its_own_noise():
    perfect = sensor()
    high_arbiter = [511, 64, 511, 64, 511, 64, 511, 64]
    alone = perfect.expected(None, AM_KEV, 1e-3, settings(high_arbiter, is_csm=True, is_equalization=True))
    gated = perfect.expected(None, AM_KEV, 1e-3, settings(high_arbiter, is_csm=True))
    assert alone[1].mean() == pytest.approx(1000, rel=0.01)
    assert not gated[1].any()


def test_a_threshold_below_the_baseline_counts_nothing():
    counts = sensor().expected(light(1000), AM_KEV, 1.0, settings(40))
    assert counts.max() < 1


def test_specimens_and_exposures_follow_their_seeds():
    first, same, other = sensor(FrontEnd(), 7), sensor(FrontEnd(), 7), sensor(FrontEnd(), 8)
    np.testing.assert_array_equal(first.truth.offset_dac, same.truth.offset_dac)
    assert not np.array_equal(first.truth.offset_dac, other.truth.offset_dac)
    chosen, _ = at_kev(first, 20)
    drawn = [one.expose(light(50), AM_KEV, 1.0, chosen, np.random.default_rng(seed))
             for one, seed in ((first, 1), (same, 1), (first, 2))]  # fmt: skip
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    assert drawn[0].dtype == np.uint32


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="trim code is 32"):
        settings(0, code=32)
    with pytest.raises(ValueError, match="threshold_dac"):
        replace(settings(0), threshold_dac=np.zeros(4, dtype=int))
    with pytest.raises(ValueError, match="the sensor has"):
        sensor().expected(None, AM_KEV, 1.0, settings(0, shape=(4, 4)))
    with pytest.raises(ValueError, match="photons of shape"):
        sensor().expected(light(1, 2), AM_KEV, 1.0, settings(0))
    with pytest.raises(ValueError, match="add up to"):
        FrontEnd(dead_share=0.7, noisy_share=0.7)


# Fine pitch, and pitches that do not fit the mode


def fine(rows=ROWS, cols=COLS):
    """The mode of settings for 55 um pixels."""
    return {"n": 2, "shape": (rows, cols)}


def test_a_fine_sensor_has_two_thresholds_and_shares_more_charge():
    energy = np.array([25.0])  # below the K edges: no fluorescence, and all absorbed
    small, large = sensor(pitch_mm=0.055), sensor()
    low_fine, _ = at_kev(small, [5, 12.5], **fine())
    counts = small.expected(light(1000), energy, 1.0, low_fine)
    assert counts.shape == (2, ROWS, COLS)
    low, _ = at_kev(large, 5)
    per_photon = [counts[0].mean() / 1000, large.expected(light(1000), energy, 1.0, low)[0].mean() / 1000]
    assert per_photon[0] > per_photon[1] > 1.05  # shared charge is counted more than once, by small pixels more often
    summing, _ = at_kev(small, [5, 12.5], is_csm=True, **fine())
    summed = small.expected(light(1000), energy, 1.0, summing)[1].mean() / 1000
    assert summed == pytest.approx(1.0, abs=0.03)  # once, in one pixel


def test_counts_of_a_fine_pixel_are_nested():
    small, rng = sensor(FrontEnd(), pitch_mm=0.055), np.random.default_rng(3)
    chosen, _ = at_kev(small, [10, 40], **fine())
    low, high = small.expose(light(40), AM_KEV, 1.0, chosen, rng).astype(int)
    is_alive = ~small.truth.is_dead & (small.truth.relative_noise == 1)
    assert np.all(low[is_alive] >= high[is_alive])
    assert high.sum() > 0
    with pytest.raises(ValueError, match="in this mode"):
        small.expected(None, AM_KEV, 1.0, settings(100, n=2, shape=(ROWS, COLS + 1)))


def test_both_modes_see_the_same_discriminators():
    """Threshold 2k + c of a cluster is discriminator c of P(k+1): top right, bottom right, top left, bottom left."""
    front = FrontEnd(telegraph_share=0)  # a cluster's pixels jump together or alone: what it is bonded to decides
    for of, clusters in ((sensor(front), (ROWS, COLS)), (sensor(front, pitch_mm=0.055), (ROWS // 2, COLS // 2))):
        colour = of.baselines_dac(settings(0, shape=clusters))
        pixels = of.baselines_dac(settings(0, **fine(2 * clusters[0], 2 * clusters[1])))
        for k, (row, col) in enumerate(((1, 1), (0, 1), (1, 0), (0, 0))):
            np.testing.assert_array_equal(pixels[:, row::2, col::2], colour[2 * k : 2 * k + 2])


@pytest.mark.parametrize("is_csm", [False, True])
def test_a_110_um_sensor_in_fine_pitch_lights_one_pixel_of_four(is_csm):
    large = sensor()
    chosen, _ = at_kev(large, [10, 20], is_csm=is_csm, **fine(2 * ROWS, 2 * COLS))
    counts = large.expected(light(100), AM_KEV, 1.0, chosen)
    assert counts.shape == (2, 2 * ROWS, 2 * COLS)
    lit = counts[1, 1::2, 1::2]
    assert lit.min() > 50
    assert counts.sum(axis=(1, 2)) == pytest.approx(counts[:, 1::2, 1::2].sum(axis=(1, 2)))
    colour, _ = at_kev(large, [10, 20, 20, 20, 20, 20, 20, 20])
    alone = large.expected(light(100), AM_KEV, 1.0, colour)[1]
    np.testing.assert_allclose(lit, alone, rtol=0.02)  # with no neighbour to sum, it sees what it sees alone
    dark = large.expected(None, AM_KEV, 1e-3, settings(64, **fine(2 * ROWS, 2 * COLS)))
    assert dark.min() == pytest.approx(1000, rel=0.01)  # but all four are noisy


@pytest.mark.parametrize("is_csm", [False, True])
def test_a_55_um_sensor_in_colour_mode_drops_three_pixels_of_four(is_csm):
    small = sensor(pitch_mm=0.055)
    chosen, _ = at_kev(small, [10, 20, 20, 20, 20, 20, 20, 20], is_csm=is_csm, shape=(ROWS // 2, COLS // 2))
    everywhere, only_there = light(100), np.zeros((1, ROWS, COLS), dtype=np.float32)
    only_there[:, 1::2, 1::2] = 100
    counts = small.expected(everywhere, AM_KEV, 1.0, chosen)
    np.testing.assert_array_equal(counts, small.expected(only_there, AM_KEV, 1.0, chosen))
    assert not small.expected(everywhere - only_there, AM_KEV, 1.0, chosen).any()
    pixels, _ = at_kev(small, [10, 20], **fine())
    np.testing.assert_allclose(counts[1], small.expected(everywhere, AM_KEV, 1.0, pixels)[1, 1::2, 1::2], rtol=0.02)
    other = sensor(pitch_mm=0.055, bonded_subpixel=3).expected(everywhere - only_there, AM_KEV, 1.0, chosen)
    np.testing.assert_array_equal(other, counts)


def test_the_wrong_polarity_counts_noise_only():
    for of, is_hole_collecting in ((sensor(), False), (sensor(material="silicon", thickness_mm=0.3, bias_v=100), True)):
        chosen, _ = at_kev(of, 5)
        right = replace(chosen, is_hole_collecting=is_hole_collecting)
        wrong = replace(chosen, is_hole_collecting=not is_hole_collecting)
        assert of.expected(light(100), np.array([8.0]), 1.0, right).mean() > 10
        dark = of.expected(None, AM_KEV, 1.0, right)
        np.testing.assert_array_equal(of.expected(light(100), np.array([8.0]), 1.0, wrong), dark)
    holes = sensor(collects_holes=True)
    chosen, _ = at_kev(holes, 20)
    assert not holes.expected(light(100), AM_KEV, 1.0, chosen).any()


def test_sensors_that_cannot_be_are_refused():
    with pytest.raises(WrongUsage, match="pitch"):
        sensor(pitch_mm=0.1)
    with pytest.raises(WrongUsage, match="cluster_pulse"):
        sensor(cluster_pulse="mean")


# Test pulses


def test_the_s_curve_of_test_pulses_is_that_of_charge_and_noise():
    """Half of the pulses are above a threshold at their charge, 84 % above one that is a noise sigma lower."""
    small, rng = sensor(pitch_mm=0.055), np.random.default_rng(1)
    sigma_kev = small.front_end.noise_e * 4.43e-3
    for below_sigma, share in ((0, 0.5), (1, 0.841), (-1, 0.159), (20, 1.0)):
        chosen, real = at_kev(small, [20, 20], **fine())
        charge_e = np.full((ROWS, COLS), (real[0] + below_sigma * sigma_kev) / 4.43e-3, dtype=np.float32)
        counts = small.inject(1000, charge_e, chosen, rng)
        assert counts.mean() / 1000 == pytest.approx(share, abs=0.005)
        if 0 < share < 1:  # independent pulses: binomial
            assert counts[0].astype(float).var() == pytest.approx(1000 * share * (1 - share), rel=0.15)
        np.testing.assert_array_equal(counts[0], counts[1])  # equal thresholds of one pixel are nested


def test_pulses_do_not_care_for_polarity_and_charges_below_0_count_nothing():
    small, rng = sensor(pitch_mm=0.055), np.random.default_rng(1)
    chosen, _ = at_kev(small, [20, 20], is_hole_collecting=True, **fine())
    assert np.all(small.inject(10, np.full((ROWS, COLS), 1e4, dtype=np.float32), chosen, rng) == 10)
    assert not small.inject(10, np.full((ROWS, COLS), -1e4, dtype=np.float32), chosen, rng).any()
    with pytest.raises(ValueError, match="charges"):
        small.inject(10, np.zeros((4, 4), dtype=np.float32), chosen, rng)


def test_masked_and_dead_pixels_take_no_pulses():
    small, rng = sensor(FrontEnd(dead_share=0.2), pitch_mm=0.055), np.random.default_rng(1)
    chosen, _ = at_kev(small, [20, 20], **fine())
    masked = chosen.is_masked.copy()
    masked[:, ::2] = True
    counts = small.inject(10, np.full((ROWS, COLS), 1e4, dtype=np.float32), replace(chosen, is_masked=masked), rng)
    assert not counts[:, ::2].any()
    assert not counts[:, small.truth.is_dead].any()
    assert np.all(counts[:, 1::2][:, ~small.truth.is_dead[1::2]] == 10)


def test_charge_summing_adds_pulses_and_counts_them_once():
    small, rng = sensor(pitch_mm=0.055), np.random.default_rng(1)
    charge_e = np.zeros((ROWS, COLS), dtype=np.float32)
    charge_e[4:6, 8:10] = 3000, 2000  # 13 and 9 keV; all four together 44
    chosen, _ = at_kev(small, [6, 35], is_csm=True, **fine())
    counts = small.inject(100, charge_e, chosen, rng)
    assert counts[1, 4, 8] == 100  # the first of two equal ones
    assert counts[1].sum() == 100
    alone, _ = at_kev(small, [6, 35], **fine())
    counts = small.inject(100, charge_e, alone, rng)
    assert not counts[1].any()
    assert counts[0].sum() == 400


@pytest.mark.parametrize(("cluster_pulse", "charge"), [("bonded", 1), ("sum", 10)])
def test_a_cluster_takes_the_pulse_of_its_bonded_pixel_or_of_all(cluster_pulse, charge):
    large, rng = sensor(cluster_pulse=cluster_pulse), np.random.default_rng(1)
    charge_e = np.zeros((2 * ROWS, 2 * COLS), dtype=np.float32)
    unit_e = 10 / 4.43e-3
    for k, (row, col) in enumerate(((1, 1), (0, 1), (1, 0), (0, 0))):
        charge_e[row::2, col::2] = (k + 1) * unit_e
    chosen, _ = at_kev(large, [10 * n - 5 for n in range(1, 9)])
    counts = large.inject(10, charge_e, chosen, rng)
    assert [plane.mean() for plane in counts] == [10 if n <= charge else 0 for n in range(1, 9)]


def test_winners_and_sums_by_hand():
    charge_kev = np.array([[0, 5, 0], [0, 9, 9], [2, 0, 0]], dtype=float)[None]
    thresholds_kev = np.stack([np.full((3, 3), 1.0), np.full((3, 3), 22.0)])
    chance = pulses.chance(
        charge_kev[0], thresholds_kev, np.full_like(thresholds_kev, 0.1), is_csm=True, has_arbiter=True
    )
    np.testing.assert_allclose(chance[1], [[0, 0, 0], [0, 1, 0], [0, 0, 0]], atol=1e-6)  # 5 + 9 + 9 = 23
    alone = pulses.chance(
        charge_kev[0], thresholds_kev, np.full_like(thresholds_kev, 0.1), is_csm=True, has_arbiter=False
    )
    np.testing.assert_allclose(alone[1], [[0, 1, 1], [0, 1, 1], [0, 0, 0]], atol=1e-6)
