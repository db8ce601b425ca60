"""Strengths in units of the noise: scale laws, what noise weights tell, and the ways to choose one."""

from __future__ import annotations

import json
import math
from collections import deque
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from firmware_iface.errors import WrongUsage
from mpxct import Terminal, app
from reconstruction.decomposition import bin_covariance
from reconstruction.iterative import reconstruct
from reconstruction.methods.proximal import data_curvature, fista
from reconstruction.priors import TotalVariation
from reconstruction.projector import Projector
from reconstruction.scan_geometry import ScanGeometry
from reconstruction.spectral.denoise import denoise, noise_covariance
from reconstruction.spectral.strength import (
    STRENGTHS,
    by_discrepancy,
    by_sure,
    noise_of_weights,
    prior_in_noise,
    scaled_options,
    share_of_norm,
    sum_image,
)
from reconstruction.volume import LINEAR_ATTENUATION, Grid, Volume, load_volume, save_volume

NOISE = np.array([0.02, 0.005, 0.05])


def last(iterates):
    return deque(iterates, maxlen=1).pop()


def blocks(seed=0, noise=NOISE, shape=(1, 40, 48)):
    rng = np.random.default_rng(seed)
    clean = np.zeros((3, *shape), np.float32)
    clean[..., 10:30, 10:30] = np.array([0.1, 0.03, -0.1], np.float32)[:, None, None, None]
    return clean, (clean + noise[:, None, None, None] * rng.normal(size=clean.shape)).astype(np.float32)


@pytest.fixture(scope="module")
def scan():
    """Two bins of a disc in a parallel beam, with weights that differ."""
    n, n_views = 32, 40
    geometry = ScanGeometry.parallel(np.arange(n_views) * np.pi / n_views, rows=1, cols=36, pitch_mm=0.5)
    A = Projector(geometry, Grid(shape=(1, n, n), voxel_mm=0.5), n_channels=2)
    _, y, x = A.grid.axes_mm()
    truth = np.zeros(A.domain_shape, np.float32)
    truth[:, 0, np.hypot(y[:, None], x) < 6] = np.array([[0.02], [0.05]])
    exact = A.forward(truth)
    weights = (np.array([1e4, 900.0])[:, None, None, None] * np.exp(-exact)).astype(np.float32)
    noisy = exact + np.random.default_rng(1).normal(size=exact.shape) / np.sqrt(weights)
    return A, noisy.astype(np.float32), weights, truth


@pytest.mark.parametrize("name", [name for name in STRENGTHS if name != "dtv"])
def test_a_prior_in_noise_scales_with_noise_and_image(name) -> None:
    """Twice the noise and twice the image is the same penalty, and so is one channel alone in another unit."""
    _, u = blocks()
    plain = prior_in_noise(name, 0.7, NOISE)
    value = plain.value(u)
    assert value > 0
    assert prior_in_noise(name, 0.7, 2 * NOISE).value(2 * u) == pytest.approx(value, rel=1e-5)
    units = np.array([1.0, 40.0, 0.1])
    other = prior_in_noise(name, 0.7, units * NOISE).value((u * units[:, None, None, None]).astype(np.float32))
    assert other == pytest.approx(value, rel=1e-5)
    assert prior_in_noise(name, 1.4, NOISE).value(u) == pytest.approx(2 * value, rel=1e-5)
    assert prior_in_noise(name, 0.7, NOISE, divided_by=5.0).value(u) == pytest.approx(value / 5, rel=1e-5)


def test_a_prior_of_total_variation_counts_differences_in_noise() -> None:
    step = np.zeros((2, 1, 1, 4), np.float32)
    step[0, ..., 2:], step[1, ..., 1:] = 3.0, 0.5
    assert prior_in_noise("tv", 2.0, [1.5, 0.1]).value(step) == pytest.approx(2 * (3 / 1.5 + 0.5 / 0.1))
    assert share_of_norm("tv", 5, 2) == 1
    for name in STRENGTHS:
        assert share_of_norm(name, 1, 3) == pytest.approx(1)  # of one channel all are total variation


def test_shares_grow_as_random_matrices_do() -> None:
    for n in (3, 8):
        # of the Frobenius norm: the mean of a chi variable over that of one channel
        chi = math.exp(math.lgamma(n + 0.5) - math.lgamma(n)) / math.exp(math.lgamma(1.5) - math.lgamma(1))
        assert share_of_norm("vtv", n, 2) == pytest.approx(chi, rel=0.02)
        # the largest singular value is no less than the mean one, and no more than all of them together
        assert chi / math.sqrt(2) < share_of_norm("tnv", n, 2) < chi


def test_weights_tell_the_noise_that_a_voxel_has(scan) -> None:
    """Against the diagonal of the data term's curvature, voxel by voxel, where the object is."""
    A, noisy, weights, truth = scan
    told = noise_of_weights(A, noisy, weights)
    voxels = np.argwhere(truth[0, 0] > 0)[::29]
    for channel in range(2):
        curvatures = []
        for row, col in voxels:
            unit = np.zeros(A.domain_shape, np.float32)
            unit[channel, 0, row, col] = 1
            curvatures.append(float((weights * A.forward(unit) ** 2).sum()))
        assert told[channel] == pytest.approx(np.mean(np.array(curvatures) ** -0.5), rel=0.1)
    np.testing.assert_allclose(noise_of_weights(A, noisy, 9 * weights), told / 3, rtol=1e-5)
    with pytest.raises(WrongUsage, match="no ray"):
        noise_of_weights(A, noisy, 0 * weights)


def test_dose_and_unit_of_a_scan_do_not_change_the_picture(scan) -> None:
    A, noisy, weights, _ = scan

    def picture(data, weights):
        options = scaled_options("tv", None, A, data, weights)
        prior = TotalVariation(**options)
        return last(fista(A, data, prior, weights=weights, n_subsets=1, n_iterations=40, is_non_negative=False)).volume

    plain = picture(noisy, weights)
    np.testing.assert_allclose(picture(10 * noisy, weights / 100) / 10, plain, atol=2e-4 * np.abs(plain).max())


def test_units_of_channels_do_not_change_what_a_scan_is_penalised_by(scan) -> None:
    A, noisy, weights, truth = scan
    units = np.array([1.0, 20.0], np.float32)[:, None, None, None]

    def penalty(data, weights, image):
        prior = TotalVariation(**scaled_options("tv", None, A, data, weights))
        return data_curvature(A, weights, data) * prior.value(image)

    plain = penalty(noisy, weights, truth)
    assert penalty(units * noisy, weights / units**2, units * truth) == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize("prior", ["tv", "huber", "gibbs", "vectorial-tv", "directional-tv"])
def test_strengths_in_noise_are_options_of_a_reconstruction(scan, prior) -> None:
    A, noisy, weights, truth = scan

    def run(**options):
        reference = truth if prior == "directional-tv" else None
        work = reconstruct(
            A, noisy, method="fista", prior=prior, weights=weights, reference=reference, iterations=12, options=options
        )
        while True:
            try:
                next(work)
            except StopIteration as end:
                return end.value.values

    automatic = run(strength="auto")
    plain = last(fista(A, noisy, TotalVariation(strength_per_mm=1e-9), weights=weights, n_iterations=12)).volume
    flat = np.hypot(*np.meshgrid(*A.grid.axes_mm()[1:])) < 4
    assert (
        automatic[:, 0, flat].std(1).max() < 0.6 * plain[:, 0, flat].std(1).min()
        or (automatic[:, 0, flat].std(1) < 0.6 * plain[:, 0, flat].std(1)).all()
    )
    key = {"vectorial-tv": "tnv", "directional-tv": "dtv"}.get(str(prior), str(prior))
    np.testing.assert_allclose(run(strength=str(STRENGTHS[key])), automatic, rtol=1e-5, atol=1e-7)


def test_strengths_that_cannot_be_are_refused(scan) -> None:
    A, noisy, weights, _ = scan
    for message, options, given, prior in (
        ("needs weights", {"strength": "auto"}, None, "tv"),
        ("number above 0", {"strength": "much"}, weights, "tv"),
        ("more than 0", {"strength": "-1"}, weights, "tv"),
        ("cannot be told in noise", {"strength": "auto"}, weights, "quadratic"),
    ):
        with pytest.raises(WrongUsage, match=message):
            next(reconstruct(A, noisy, method="fista", prior=prior, weights=given, options=options))
    with pytest.raises(WrongUsage, match="no prior is called"):
        prior_in_noise("magic", None, NOISE)
    with pytest.raises(WrongUsage, match="reference"):
        prior_in_noise("dtv", None, NOISE)


def test_the_sum_image_has_the_most_signal_for_its_noise() -> None:
    clean, noisy = blocks(shape=(1, 80, 96))
    image = sum_image(noisy, np.diag(NOISE**2))
    inside = clean[0, 0] > 0
    outside_noise = image[0][~inside].std()
    assert outside_noise == pytest.approx(1, rel=0.05)
    best = np.sqrt(((clean[:, 0, 20, 20] / NOISE) ** 2).sum())
    assert (image[0][inside].mean() - image[0][~inside].mean()) / outside_noise == pytest.approx(best, rel=0.05)
    channels = [np.abs(c[0][inside].mean() - c[0][~inside].mean()) / c[0][~inside].std() for c in noisy]
    assert best > max(channels)


@pytest.mark.parametrize("prior", ["tv", "huber", "vtv", "tnv", "dtv", "rskr"])
def test_denoising_measures_the_noise_and_keeps_the_picture_in_any_unit(prior) -> None:
    clean, noisy = blocks(shape=(1, 80, 96))
    covariance = noise_covariance(noisy)
    out, strength = denoise(noisy, prior=prior, n_iterations=60)
    error, before = (np.sqrt(((v - clean) ** 2).mean((1, 2, 3))) for v in (out, noisy))
    assert (error < 0.5 * before).all()
    units = np.array([3.0, 200.0, 0.1], np.float32)[:, None, None, None]
    in_units = covariance * np.outer(units, units)
    other, same = denoise(units * noisy, prior=prior, covariance=in_units, n_iterations=60)
    assert same == strength
    np.testing.assert_allclose(other / units, out, atol=2e-3)


def test_nuclear_variation_beats_channels_by_themselves_where_noise_hides_their_edges() -> None:
    """Each at its best strength; where every channel shows its edges clearly it gains nothing."""
    errors = {"tv": 0.0, "tnv": 0.0}
    for seed in (0, 1):
        clean, noisy = blocks(seed, noise=3 * NOISE, shape=(1, 80, 96))
        for prior in errors:
            tried = [denoise(noisy, prior=prior, strength=s, n_iterations=60)[0] for s in (0.6, 0.7, 0.85, 1.0, 1.2)]
            errors[prior] += min(float((((v - clean) ** 2).mean((1, 2, 3)) / NOISE**2).mean()) for v in tried)
    assert errors["tnv"] < 0.92 * errors["tv"]


def test_discrepancy_and_stein_find_near_the_least_error() -> None:
    clean, noisy = blocks(shape=(1, 64, 64), noise=np.ones(3))
    noisy = (noisy + 30 * clean).astype(np.float32)
    clean = 31 * clean

    def denoised(volume, strength):
        return prior_in_noise("vtv", strength, np.ones(3), n_directions=2).prox(volume, n_iterations=60)

    def risk(strength):
        return float(((denoised(noisy, strength) - clean) ** 2).mean())

    strengths = np.geomspace(0.2, 4, 14)
    least = min(map(risk, strengths))
    by_risk = by_sure(denoised, noisy)
    assert risk(by_risk) < 1.1 * least
    taken = by_discrepancy(lambda s: denoised(noisy, s), noisy)
    assert ((noisy - denoised(noisy, taken)) ** 2).mean() == pytest.approx(1, rel=0.02)
    assert taken > by_risk  # what is as large as the noise is more than the noise
    assert denoise(noisy, prior="vtv", strength="discrepancy", covariance=np.eye(3))[1] == pytest.approx(
        taken, rel=0.05
    )


def test_noise_that_a_filter_made_smooth_is_measured_as_it_stays_visible() -> None:
    """White noise is what it is; smoothed over two voxels along x and y, it is still that of a mean over many."""
    white = np.random.default_rng(0).normal(size=(2, 1, 160, 160)) * np.array([1.0, 3.0])[:, None, None, None]
    white = (white + 5).astype(np.float32)
    np.testing.assert_allclose(np.sqrt(np.diag(noise_covariance(white))), [1, 3], rtol=0.12)
    smooth = (white[..., :-1] + white[..., 1:]) / 2
    smooth = (smooth[..., :-1, :] + smooth[..., 1:, :]) / 2
    assert np.sqrt(bin_covariance(smooth)[0, 0]) < 0.5
    assert 0.7 < np.sqrt(noise_covariance(smooth)[0, 0]) < 1.1


def test_the_command_denoises_a_volume_and_says_so(tmp_path) -> None:
    clean, noisy = blocks(shape=(4, 40, 48))
    volume = Volume(
        values=noisy, channels=("a", "b", "c"), unit=LINEAR_ATTENUATION, grid=Grid(shape=(4, 40, 48), voxel_mm=0.1)
    )
    path = save_volume(volume, tmp_path / "volume.h5")
    for prior, strength in (("tnv", "auto"), ("rskr", "2"), ("dtv", "auto")):
        done = CliRunner().invoke(
            app,
            ["denoise", str(path), "-o", str(tmp_path / "out.h5"), "--prior", prior, "--strength", strength, "--json"],
        )
        assert done.exit_code == 0, done.output
        figures = json.loads(done.stdout)
        out = load_volume(tmp_path / "out.h5")
        assert out.channels == volume.channels
        assert prior in out.provenance.steps[-1]
        assert np.linalg.norm(out.values - clean) < 0.6 * np.linalg.norm(noisy - clean)
        assert all(figures["noise_after"][name] < 0.6 * figures["noise_before"][name] for name in out.channels)
    wrong = CliRunner().invoke(app, ["denoise", str(path), "--prior", "magic"], obj=Terminal())
    assert isinstance(wrong.exception, WrongUsage)


def test_what_denoising_cannot_do_is_refused() -> None:
    _, noisy = blocks()
    cases: list[tuple[str, dict[str, Any]]] = [
        ("no prior is called", {"prior": "magic"}),
        ("more than 0", {"strength": -1.0}),
        ("allowed: a number", {"strength": "much"}),
        ("rskr", {"prior": "rskr", "strength": "sure"}),
        ("no noise", {"covariance": np.zeros((3, 3))}),
    ]
    for message, options in cases:
        with pytest.raises(WrongUsage, match=message):
            denoise(noisy, **options)
