"""What a sensor lives in: bias, temperature, polarisation, telegraph pixels, and the sensor's own time."""

from dataclasses import replace

import numpy as np
import pytest

from firmware_iface import chip
from firmware_iface.errors import WrongUsage
from sim.environment import CLIMATE_KEYS, Climate, Environment, climate_of_query
from sim.instrument import simulated_device
from sim.sensor import FrontEnd, Sensor, Settings

SHAPE = (16, 16)
AM_KEV = np.array([59.54])
QUIET = FrontEnd(baseline_sigma_dac=0, gain_sigma_relative=0, trim_sigma_relative=0, dead_share=0, noisy_share=0)


def around(climate=None, is_telegraph=None, **changes):
    telegraph = np.zeros(SHAPE, dtype=bool) if is_telegraph is None else is_telegraph
    given = {"telegraph_dwell_s": 30.0, "bias_v": 500.0, "seed": 1} | changes
    return Environment(climate or Climate(), telegraph, **given)


def settings(threshold_dac):
    planes = (chip.N_THRESHOLDS, *SHAPE)
    return Settings(
        threshold_dac=np.broadcast_to(threshold_dac, planes[0]).astype(int), trim=np.full(planes, 16, dtype=np.uint8),
        is_masked=np.zeros(planes, dtype=bool), disc_l=90, disc_h=90, gain=chip.Gain.HGM, is_csm=False,
        is_equalization=False,
    )  # fmt: skip


def sensor(climate=None, **front):
    return Sensor(rows=16, cols=16, front_end=replace(QUIET, telegraph_share=0, **front), climate=climate)


def test_polarisation_follows_its_law_and_a_pause_ends_it():
    there = around(Climate(polarised_share=0.2, polarisation_time_s=100.0, refresh_s=1.0))
    assert there.collection == 1
    there.pass_time(100)
    assert there.collection == pytest.approx(1 - 0.2 * (1 - np.exp(-1)))
    there.pass_time(1e4)
    assert there.collection == pytest.approx(0.8)
    there.bias_v = 0
    assert there.collection == 0
    there.pass_time(0.5)
    there.bias_v = -500  # which sign depletes is the board's affair; half a second is no refresh
    assert there.collection == pytest.approx(0.8)
    there.bias_v = 0
    there.pass_time(1.0)
    there.bias_v = 500
    assert there.collection == 1


def test_thresholds_drift_with_temperature_as_the_chip_does():
    for kelvin in (-10, 15):
        warm = sensor(Climate(temperature_c=35 + kelvin, drift_dac_per_k=0.3, drift_sigma_dac_per_k=0))
        shift_dac = warm.baselines_dac(settings(100)) - sensor().baselines_dac(settings(100))
        np.testing.assert_allclose(shift_dac, 0.3 * kelvin, atol=1e-4)
    drifts = [around(Climate(temperature_c=36), seed=seed).drift_dac for seed in range(200)]
    assert np.mean(drifts) == pytest.approx(0.15, abs=0.02)
    assert np.std(drifts) == pytest.approx(0.05, rel=0.2)


def test_telegraph_pixels_jump_between_two_levels_in_time():
    is_telegraph = np.zeros(SHAPE, dtype=bool)
    is_telegraph[3, :] = True
    there = around(is_telegraph=is_telegraph, telegraph_dwell_s=10.0)
    levels = []
    for _ in range(2000):
        there.pass_time(1.0)
        levels.append(there.is_up)
    levels = np.stack(levels)
    assert not levels[:, ~is_telegraph].any()
    assert levels[:, 3].mean() == pytest.approx(0.5, abs=0.1)
    jumps_per_s = np.mean(levels[1:, 3] != levels[:-1, 3])
    assert jumps_per_s == pytest.approx(0.5 * (1 - np.exp(-0.2)), rel=0.1)  # every 10 s, less those that come back


def test_a_telegraph_pixel_counts_at_two_rates_and_no_other_pixel_does():
    of = Sensor(rows=16, cols=16, front_end=replace(QUIET, telegraph_share=0.1, telegraph_dwell_s=3.0))
    chosen = settings(round(64 + 40 * of.gain_dac_per_kev(chip.Gain.HGM)))
    light = np.full((1, *SHAPE), 1e5, dtype=np.float32)
    means = []
    for _ in range(20):
        means.append(of.expected(light, AM_KEV, 1.0, chosen)[0])
        of.environment.pass_time(1.0)
    is_moving = np.ptp(means, axis=0) > 0.02 * np.mean(means)
    np.testing.assert_array_equal(is_moving, of.truth.is_telegraph)
    fresh = Sensor(rows=16, cols=16, front_end=of.front_end)
    fresh.environment = of.environment
    np.testing.assert_allclose(of.expected(light, AM_KEV, 1.0, chosen), fresh.expected(light, AM_KEV, 1.0, chosen))


def test_without_bias_there_is_only_noise_and_less_field_spreads_charge():
    of, light = sensor(), np.full((1, *SHAPE), 1000, dtype=np.float32)
    chosen = settings(round(64 + 7 * of.gain_dac_per_kev(chip.Gain.HGM)))
    whole = of.expected(light, AM_KEV, 1.0, chosen)[0].mean()
    of.environment.bias_v = 100
    assert of.expected(light, AM_KEV, 1.0, chosen)[0].mean() > 1.02 * whole  # more pixels see a part of each photon
    of.environment.bias_v = 0
    assert not of.expected(light, AM_KEV, 1.0, chosen).any()


def test_lost_charge_moves_a_line_below_its_threshold():
    of = sensor(Climate(polarised_share=0.2, polarisation_time_s=1.0))
    chosen = settings(round(64 + 55 * of.gain_dac_per_kev(chip.Gain.HGM)))
    light = np.full((1, *SHAPE), 1000, dtype=np.float32)
    before = of.expected(light, AM_KEV, 1.0, chosen)[0].mean()
    of.environment.pass_time(60)
    assert of.expected(light, AM_KEV, 1.0, chosen)[0].mean() < 0.05 * before


def test_leakage_is_noise():
    assert around(Climate(leakage_na=1.0)).noise_e(120e-9) == pytest.approx(np.sqrt(749), rel=1e-3)
    assert around(Climate(leakage_na=0.0)).noise_e(120e-9) == 0


def test_an_address_states_the_climate_and_unknown_words_are_refused():
    query = {"temperature_c": "45", "polarisation": "0.1:300", "leakage_na": "2", "drift_dac_per_k": "0", "drop": "17"}
    climate = climate_of_query(query)
    assert query == {"drop": "17"}
    assert (climate.temperature_c, climate.polarised_share, climate.polarisation_time_s) == (45, 0.1, 300)
    assert set(CLIMATE_KEYS) == {"temperature_c", "drift_dac_per_k", "polarisation", "leakage_na"}
    for bad in ({"polarisation": "0.1"}, {"temperature_c": "hot"}, {"temperature_c": "300"}, {"leakage_na": "nan"}):
        with pytest.raises(WrongUsage, match=next(iter(bad))):
            climate_of_query(dict(bad))
    with pytest.raises(WrongUsage, match="unknown option humidity"):
        simulated_device("demo?humidity=3")
