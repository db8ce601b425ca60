"""Photons that neighbours count too: by clouds thrown at random, on the simulated sensor, and in what errors say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtr

from calibration.charge_sharing import CORNERS, EDGES, counts_together
from calibration.response import PARAMETERS, Response, SensorModel
from calibration.spectrum import tube_spectrum
from firmware_iface.chip import Gain
from reconstruction.spectral.error_maps import drawn_counts
from reconstruction.spectral.model import SpectralModel
from reconstruction.spectral.ray_fit import fit_rays
from sim.events import EventSensor
from sim.sensor import Settings
from tests.test_events import PERFECT

THRESHOLDS_KEV = (12.0, 20.0, 35.0, 55.0)
BY_FIT = {
    "noise_kev": 1.69, "width_relative": 0.008, "capture_mm": 0.0416, "veto_mm": 0.0224, "cloud_mm": 0.0122,
    "cloud_growth_relative": 0.16, "thickness_relative": 1.092, "filter_mm": 3.49, "kvp_relative": 1.011,
}  # fmt: skip
"""What a fit of the response to plates and sources before the simulated sensor gives for single pixels."""


def response(sensor: SensorModel, thresholds_kev=THRESHOLDS_KEV, **values: float) -> Response:
    names = (*PARAMETERS, *(f"threshold_{k}_kev" for k in range(len(thresholds_kev))))
    known = {name: start for name, (start, *_) in PARAMETERS.items()} | BY_FIT | values
    return Response(
        sensor=sensor,
        tube_kvp=118.0,
        parameter_names=names,
        parameters=np.array([known.get(name, 0.0) for name in names]),
        covariance=np.zeros((len(names), len(names))),
        chi_square_ratio=1.0,
        n_degrees=1,
        thresholds_kev=tuple(thresholds_kev),
        plates=(),
        n_checks=0,
        measured=np.zeros((0, 4)),
        predicted=np.zeros((0, 4)),
    )


def test_neighbours_count_what_clouds_thrown_at_random_leave_them() -> None:
    sensor = SensorModel(material="silicon", thickness_mm=0.3, pitch_mm=0.055, is_csm=False)
    thresholds, energy_kev, cloud, noise_kev, n = [4.0, 8.0, 14.0], 20.0, 0.012 / 0.055, 0.5, 80_000
    known = response(sensor, thresholds, cloud_mm=0.012, cloud_growth_relative=0, noise_kev=noise_kev, width_relative=0)
    found = counts_together(known, thresholds, [energy_kev])[..., 0] / known.matrix([10.0], [energy_kev])[0, 0]
    rng = np.random.default_rng(1)
    places = rng.uniform(0, 1, (n, 2))
    along = np.diff(ndtr((np.arange(-2, 4)[:, None] - places[:, None, :]) / cloud), axis=1)
    charges = energy_kev * along[:, :, None, 0] * along[:, None, :, 1] + noise_kev * rng.normal(size=(n, 5, 5))
    in_bins = np.stack([np.digitize(charges, thresholds) == k + 1 for k in range(3)])
    once = (charges > 10).sum() / n
    for kind, offsets in enumerate((EDGES, CORNERS)):
        seen = np.zeros((3, 3))
        for dy, dx in offsets:
            one = in_bins[:, :, : 5 - dy, max(-dx, 0) : 5 - max(dx, 0)].reshape(3, -1).astype(np.float32)
            other = in_bins[:, :, dy:, max(dx, 0) : 5 + min(dx, 0)].reshape(3, -1).astype(np.float32)
            seen += (one @ other.T + other @ one.T) / (4 * n)
        np.testing.assert_allclose(found[kind], seen / once, rtol=0.06, atol=5e-4)


def test_summed_charge_is_shared_by_k_photons_only() -> None:
    energies = np.array([25.0, 60.0])
    summed, single = (
        counts_together(response(SensorModel(is_csm=is_csm), veto_mm=0.02), THRESHOLDS_KEV, energies)
        for is_csm in (True, False)
    )
    assert (summed[..., 0] == 0).all(), "below the K edges"
    assert (summed[..., 1].sum(axis=(1, 2)) > 0.01).all()
    assert (single.sum(axis=(1, 2)) > summed.sum(axis=(1, 2))).all()
    np.testing.assert_allclose(summed, np.swapaxes(summed, 1, 2))


def test_knowing_what_is_shared_tells_the_errors_of_summed_pixels_on_the_simulated_sensor() -> None:
    """Photon by photon; 4 x 4 pixels are added up, as a preview does. Who thinks bins independent claims too little."""
    side, border, n_summed, n_exposures = 48, 4, 4, 6
    of = EventSensor(rows=side, cols=side, front_end=PERFECT)
    above = of.front_end.baseline_dac + of.gain_dac_per_kev(Gain.HGM) * np.repeat(THRESHOLDS_KEV, 2)
    settings = Settings(
        threshold_dac=above.round().astype(int), trim=np.full((8, side, side), 16, np.uint8),
        is_masked=np.zeros((8, side, side), bool), disc_l=90, disc_h=90, gain=Gain.HGM, is_csm=False,
        is_equalization=False,
    )  # fmt: skip
    energies = np.arange(10.0, 120.0)
    flux = tube_spectrum(118.0, energies, {"aluminium": 3.8})
    light = np.ones((1, side, side), np.float32) * (80 * flux / flux.sum())[:, None, None].astype(np.float32)
    rng = np.random.default_rng(1)
    counts = np.stack([of.expose(light, energies, 1.0, settings, rng)[::2] for _ in range(n_exposures)]).astype(float)
    bins = (counts - np.concatenate([counts[:, 1:], 0 * counts[:, :1]], axis=1))[..., border:-border, border:-border]
    n = bins.shape[-1] // n_summed
    sums = bins.reshape(n_exposures, 4, n, n_summed, n, n_summed).sum(axis=(3, 5)).swapaxes(0, 1).reshape(4, -1)
    opened = sums.mean(axis=1)
    full = SpectralModel.of_response(response(SensorModel(is_csm=False)), ["water"], knows_sharing=True)
    ratios = {}
    for size in (1, n_summed):
        model = full.of_summed_pixels(size)
        fit = fit_rays(sums, opened, model)
        ratios[size] = float(fit.paths.std() * np.sqrt(model.fisher(np.zeros(1), opened)[0, 0]))
    assert ratios[n_summed] == pytest.approx(1, abs=0.08), ratios  # 600 sums tell it to 3 %
    assert ratios[1] > 1.14, ratios


def test_drawn_counts_have_the_mean_and_what_neighbours_share() -> None:
    known = response(SensorModel(is_csm=False))
    model = SpectralModel.of_response(known, ["water"], knows_sharing=True)
    opened, path = np.array([400.0, 300.0, 250.0, 90.0]), np.full((1, 30, 40, 40), 15.0)
    counts = drawn_counts(model, path, opened, np.random.default_rng(3)).astype(np.float64)
    expected = opened * model.transmission(path[:, 0, 0, :1])[:, 0]
    n = counts[0].size
    np.testing.assert_allclose(counts.mean(axis=(1, 2, 3)), expected, rtol=5 * 1.5 / np.sqrt(expected.min() * n))
    away = counts - expected[:, None, None, None]
    root = np.sqrt(expected)
    size = root[:, None] * root
    np.testing.assert_allclose(np.einsum("avij,bvij->ab", away, away) / n / size, np.eye(4), atol=0.02)
    together = np.sqrt(opened[:, None] * opened) * model.together(np.array([15.0]))
    across = np.einsum("avij,bvij->ab", away[..., 1:], away[..., :-1]) / n * 40 / 39
    np.testing.assert_allclose(across / size, together[0] / size, atol=0.02)
    corner = np.einsum("avij,bvij->ab", away[..., 1:, :-1], away[..., :-1, 1:]) / n * (40 / 39) ** 2
    np.testing.assert_allclose(corner / size, together[1] / size, atol=0.02)
    assert together[0].sum() > 0.05 * expected.sum()
