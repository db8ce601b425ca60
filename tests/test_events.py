"""The sensor photon by photon: each photon counted once, pulses that pile up, and agreement with the expectation."""

import numpy as np
import pytest

from firmware_iface import chip
from firmware_iface.chip import Gain
from firmware_iface.errors import WrongUsage
from sim import chance, charge, events
from sim.events import EventSensor
from sim.instrument import chips_of, scene_of, simulated_device
from sim.sensor import FrontEnd, Sensor, Settings

ROWS, COLS = 16, 16
KEV = np.array([60.0])
PERFECT = FrontEnd(
    baseline_sigma_dac=0, gain_sigma_relative=0, trim_sigma_relative=0, dead_share=0, noisy_share=0, telegraph_share=0,
    noise_rate_per_s=0,
)  # fmt: skip
NEVER_DAC = 511


def sensor(kind: type[Sensor] = EventSensor, front_end=PERFECT, rows=ROWS, cols=COLS, **changes):
    return kind(rows=rows, cols=cols, front_end=front_end, **changes)


def at_kev(of, thresholds_kev, is_csm=False, ikrum=10, n=chip.N_THRESHOLDS, shape=(ROWS, COLS), **changes):
    """Thresholds as near to these energies as codes allow."""
    dac = of.front_end.baseline_dac + of.gain_dac_per_kev(Gain.HGM) * np.broadcast_to(thresholds_kev, n)
    return Settings(
        threshold_dac=np.minimum(NEVER_DAC, np.round(dac)).astype(int), trim=np.full((n, *shape), 16, dtype=np.uint8),
        is_masked=np.zeros((n, *shape), dtype=bool), disc_l=90, disc_h=90, gain=Gain.HGM, is_csm=is_csm,
        is_equalization=False, ikrum=ikrum, **changes,
    )  # fmt: skip


def exposed(of, photons, settings, duration_s=1.0, seed=4, energies_kev=KEV):
    return of.expose(photons, energies_kev, duration_s, settings, np.random.default_rng(seed))


def spot(n_photons, row=ROWS // 2, col=COLS // 2):
    photons = np.zeros((1, ROWS, COLS), dtype=np.float32)
    photons[0, row, col] = n_photons
    return photons


def everywhere(per_pixel, n_energies=1):
    return np.full((n_energies, ROWS, COLS), per_pixel, dtype=np.float32)


def absorbed(of, energy_kev):
    return charge.physics_of(of.layer, energy_kev).interacting


def test_each_photon_below_the_k_edges_is_one_count_however_low_the_arbiter():
    """No losses and no double counting with TH0 just above the noise: Pennicard et al. 2011 (abstract)."""
    of, n = sensor(), 40_000
    settings = at_kev(of, [2.2, 12.5, 99, 99, 99, 99, 99, 99], is_csm=True)
    counts = exposed(of, spot(n), settings, 10.0, energies_kev=np.array([25.0]))  # so slowly that pulses hardly meet
    expected = n * absorbed(of, 25.0)
    assert counts[0].sum() == pytest.approx(expected, abs=4 * expected**0.5)
    assert counts[1].sum() == pytest.approx(expected, abs=4 * expected**0.5)


def test_without_summing_charge_at_pixel_borders_counts_twice():
    of, n = sensor(), 20_000
    low, half = (
        exposed(of, everywhere(n / 256), at_kev(of, kev), energies_kev=np.array([25.0])) for kev in (4.0, 12.5)
    )
    assert low[0].sum() > 1.15 * half[0].sum()
    assert half[0].sum() <= 1.01 * n * absorbed(of, 25.0)


def test_counters_of_one_family_are_nested():
    """So long an exposure that no photon meets the pulse of another, on which a high threshold may count alone."""
    of, duration_s = sensor(), 1000.0
    for is_csm, families in ((False, [range(8)]), (True, [range(2, 8, 2), range(1, 8, 2)])):
        settings = at_kev(of, [5, 6, 12, 20, 25, 30, 40, 50], is_csm=is_csm)
        counts = exposed(of, everywhere(30), settings, duration_s).astype(int)
        for family in families:
            assert np.all(np.diff(counts[list(family)], axis=0) <= 0)


def test_counts_are_poisson_across_exposures():
    of = sensor()
    settings = at_kev(of, [5, 30, 99, 99, 99, 99, 99, 99], is_csm=True)
    sums = np.array([exposed(of, everywhere(2), settings, seed=seed)[1].sum() for seed in range(300)])
    assert sums.var(ddof=1) / sums.mean() == pytest.approx(1.0, abs=4 * (2 / 300) ** 0.5)


def test_a_seed_is_an_exposure():
    of = sensor()
    settings = at_kev(of, 6.0, is_csm=True)
    first, again, other = (exposed(of, everywhere(5), settings, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


def crossings(times_s, charges_kev, threshold_kev, fall_kev_per_s, peaking_time_s):
    """Count upward crossings of one amplifier's output, written from the words of the pulse model."""
    height, since, counted = 0.0, -np.inf, 0
    for time_s, charge_kev in zip(times_s, charges_kev, strict=True):
        falling_s = max(0.0, time_s - since - peaking_time_s)
        before = max(0.0, height - falling_s * fall_kev_per_s)
        height, since = before + charge_kev, time_s
        counted += before <= threshold_kev < height
    return counted


@pytest.mark.parametrize("rate_per_s", [1e5, 4e5])
def test_pile_up_of_one_charge_follows_the_level_crossing_law(rate_per_s):
    """Equal charges in one pixel: the Volterra equation for the falling output, solved here on a fine grid."""
    of = sensor(pitch_mm=0.11)
    energy_kev, pulse = 25.0, of.pulse(at_kev(of, 10.0))
    fall, hold = pulse.fall_kev_per_s, pulse.peaking_time_s
    rng = np.random.default_rng(5)
    n = 40_000
    times = np.cumsum(rng.exponential(1 / rate_per_s, n))
    alone = crossings(times, np.full(n, energy_kev), 10.0, fall, hold) / n
    step = 0.05
    grid = np.arange(0, 10.0 + step / 2, step)
    joins = 1 - np.exp(-rate_per_s * hold)
    batch_above = lambda kev: joins ** np.floor(kev / energy_kev)  # noqa: E731  a geometric number of charges
    idle = 1 - rate_per_s * energy_kev * np.exp(rate_per_s * hold) / fall
    crossing = np.zeros(len(grid))
    for i, level in enumerate(grid):
        earlier = crossing[:i] @ batch_above(level - grid[:i]) * step if i else 0.0
        crossing[i] = rate_per_s * (idle * batch_above(level) + earlier / fall) / (1 - rate_per_s * step / fall / 2)
    law = crossing[-1] * np.exp(-rate_per_s * hold) / rate_per_s
    assert alone == pytest.approx(law, rel=0.02)


@pytest.mark.parametrize("rate_per_s", [2e5, 8e5])
def test_the_sensor_piles_up_as_its_pulses_do(rate_per_s):
    """Photons of 25 keV in the middle of single pixels: charges from `charge.deposit`, times drawn here."""
    of = sensor()
    settings = at_kev(of, 12.0, ikrum=10)
    pulse, duration_s = of.pulse(settings), 0.02
    of_kev = (settings.threshold_dac[0] - of.front_end.baseline_dac) / of.gain_dac_per_kev(Gain.HGM)
    photons = np.zeros((1, ROWS, COLS), dtype=np.float32)
    photons[0, ::4, ::4] = rate_per_s * duration_s
    counts = exposed(of, photons, settings, duration_s, energies_kev=np.array([25.0]))[0][::4, ::4]
    physics, rng, workspace = charge.physics_of(of.layer, 25.0), np.random.default_rng(8), charge.workspace()
    n = 30_000
    charges = np.zeros(n)
    dice = chance.dice(rng)
    for i, (x, y, depth) in enumerate(rng.random((n, 3))):
        hits = charge.deposit(physics, x * 0.11, y * 0.11, charge.first_depth_mm(physics, depth), dice, workspace)
        for hit in range(hits):
            if tuple(workspace.pixels[hit]) == (0, 0):
                charges[i] = workspace.charges_kev[hit]
    times = np.cumsum(rng.exponential(1 / (rate_per_s * physics.interacting), n))
    share = crossings(times, charges, of_kev, pulse.fall_kev_per_s, pulse.peaking_time_s) / n
    expected = rate_per_s * physics.interacting * duration_s * share
    assert counts.mean() == pytest.approx(expected, rel=0.02)
    assert counts.mean() < 0.97 * expected / share * (charges > of_kev).mean()  # there is something to lose


def test_a_longer_discharge_loses_more():
    of = sensor()
    photons, duration_s = everywhere(400), 1e-3
    fast, slow = (exposed(of, photons, at_kev(of, 12.0, ikrum=code), duration_s)[0].sum() for code in (40, 5))
    assert slow < 0.9 * fast


@pytest.mark.parametrize("is_csm", [False, True])
def test_both_fidelities_see_the_same_at_low_rates(is_csm):
    kev = [6, 7, 15, 25, 30, 35, 45, 55]
    energies = np.array([30.0, 60.0, 100.0])
    found, expected = (
        exposed(of, everywhere(300, 3), at_kev(of, kev, is_csm=is_csm), 100.0, energies_kev=energies)[:, 3:-3, 3:-3]
        for of in (sensor(), sensor(Sensor))
    )
    totals = found.sum(axis=(1, 2)), expected.sum(axis=(1, 2))
    np.testing.assert_allclose(*totals, atol=6 * totals[1].max() ** 0.5, rtol=0.02)


def test_dead_and_masked_are_silent_and_a_noisy_pixel_is_not():
    front = FrontEnd(dead_share=0.1, noisy_share=0.1, baseline_sigma_dac=0, telegraph_share=0)
    of = sensor(front_end=front)
    settings = at_kev(of, 9.0)
    settings.is_masked[:, 3] = True
    counts = exposed(of, everywhere(20), settings, 0.1)
    assert not counts[:, of.truth.is_dead].any()
    assert not counts[:, 3].any()
    is_noisy = (of.truth.relative_noise > 1) & ~settings.is_masked[0]
    assert np.median(counts[0][is_noisy]) > 10 * np.median(counts[0][~is_noisy & ~of.truth.is_dead])


def test_gain_moves_the_threshold_of_each_pixel():
    front = FrontEnd(
        baseline_sigma_dac=0, trim_sigma_relative=0, dead_share=0, noisy_share=0, telegraph_share=0,
        gain_sigma_relative=0.1,
    )  # fmt: skip
    of = sensor(front_end=front)
    counts = exposed(of, everywhere(300), at_kev(of, [4, 24, *[99] * 6], is_csm=True), energies_kev=np.array([25.0]))
    gain = of.truth.relative_gain
    assert np.median(counts[1][gain < 0.9]) < 0.5 * np.median(counts[1][gain > 1.1])


def test_the_first_chips_rule_pulls_hits_to_low_thresholds():
    """Pennicard et al. 2011 (abstract): dispersion of thresholds moves hits between nodes, the RX's rule cures it."""
    spread = []
    for arbitration in ("rx", "first"):
        of = sensor(arbitration=arbitration)
        settings = at_kev(of, [4, 12, *[99] * 6], is_csm=True)
        settings.trim[1, ::2, ::2] = 15  # a lower threshold for one pixel of four
        counts = exposed(of, everywhere(400), settings, 100.0, energies_kev=np.array([25.0]))[1]
        spread.append(counts[2:-2:2, 2:-2:2].mean() / counts[2:-2, 2:-2].mean())
    assert spread[0] == pytest.approx(1.0, abs=0.02)
    assert spread[1] > 1.1


def test_both_modes_of_the_chip_see_a_110_um_sensor():
    of = sensor()
    fine = at_kev(of, 12.0, n=2, shape=(2 * ROWS, 2 * COLS))
    counts = exposed(of, everywhere(50), fine)
    colour = exposed(of, everywhere(50), at_kev(of, 12.0))
    assert counts.shape == (2, 2 * ROWS, 2 * COLS)
    row, col = chip.SUBPIXELS[0]
    lit = counts[0, row::2, col::2]
    assert lit.sum() == counts[0].sum()
    assert lit.sum() == pytest.approx(colour[0].sum(), abs=5 * (2 * lit.sum()) ** 0.5)


def test_colour_mode_drops_three_of_four_pixels_of_a_55_um_sensor():
    fine = sensor(rows=2 * ROWS, cols=2 * COLS, pitch_mm=0.055)
    photons = np.full((1, 2 * ROWS, 2 * COLS), 30, dtype=np.float32)
    all_of_them = exposed(fine, photons, at_kev(fine, 12.0, n=2, shape=(2 * ROWS, 2 * COLS)))
    clusters = exposed(fine, photons, at_kev(fine, 12.0))
    assert clusters[0].sum() == pytest.approx(all_of_them[0].sum() / 4, rel=0.03)


def test_no_light_and_the_wrong_polarity_leave_noise_alone():
    of = sensor()
    for photons, polarity in ((None, False), (everywhere(0), False), (everywhere(100), True)):
        assert not exposed(of, photons, at_kev(of, 8.0, is_hole_collecting=polarity)).any()


def test_a_part_of_an_exposure_begins_with_the_beam_on():
    """Pieces of an exposure count as much as the whole: no pulse is missing where they meet."""
    of, rate_per_s = sensor(), 3e5
    settings = at_kev(of, 12.0)
    # One counter: the others count the same photons, and would make the sum more uncertain than Poisson says.
    whole = int(exposed(of, everywhere(rate_per_s * 2e-3), settings, 2e-3)[1].sum())
    light = everywhere(rate_per_s * 2e-5)
    pieces = sum(int(exposed(of, light, settings, 2e-5, seed=seed)[1].sum()) for seed in range(100))
    assert pieces == pytest.approx(whole, abs=5 * (2 * whole) ** 0.5)


def test_what_cannot_be_is_refused():
    with pytest.raises(WrongUsage, match="arbitration is 'none'"):
        EventSensor(arbitration="none")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="photons of shape"):
        exposed(sensor(), everywhere(1, 2), at_kev(sensor(), 8.0))


def test_the_alias_table_holds_every_share():
    rng = np.random.default_rng(2)
    weight = rng.random(50) ** 3
    alias = np.empty((50, 2), dtype=np.int32)
    events._fill_alias(weight / weight.mean(), alias)
    held = alias[:, 0] / 2.0**31
    np.add.at(held, alias[:, 1], 1 - held)
    np.testing.assert_allclose(held / 50, weight / weight.sum(), atol=1e-6)


def test_an_address_chooses_the_fidelity():
    for fidelity, kind in (("events", EventSensor), ("expectation", Sensor)):
        ((_, of),) = chips_of("demo", {"fidelity": fidelity}, scene_of("demo", 1))
        assert type(of) is kind
    assert simulated_device("demo?fidelity=events")
    with pytest.raises(WrongUsage, match="fidelity is 'best'"):
        simulated_device("demo?fidelity=best")
