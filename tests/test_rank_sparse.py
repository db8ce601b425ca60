"""Joint bilateral means over whitened channels: the formula, what noise is left, and that edges stay."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from firmware_iface.errors import WrongUsage
from reconstruction.kernels import bilateral_cpu, bilateral_plain
from reconstruction.spectral.rank_sparse import RankSparse, singular_images
from tests import stand_in_cupy

COVARIANCE = 1e-6 * np.array([[4.0, 1.0, 0.0], [1.0, 2.0, -0.5], [0.0, -0.5, 6.0]])


def bins(shape=(1, 64, 72), contrast=0.02, seed=0):
    """Three bins of a slab in water, whose noise is correlated; and where edges are far."""
    rng = np.random.default_rng(seed)
    clean = np.full((3, *shape), 0.02)
    clean[..., shape[2] // 2 :] += contrast * np.array([1.0, 0.3, -0.5])[:, None, None, None]
    noise = np.einsum("kl,l...->k...", np.linalg.cholesky(COVARIANCE), rng.normal(size=clean.shape))
    return clean.astype(np.float32), (clean + noise).astype(np.float32)


@pytest.mark.parametrize("shape", [(2, 4, 9, 11), (1, 1, 7, 20), (3, 5, 1, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_fast_mean_is_the_formula(shape, dtype) -> None:
    rng = np.random.default_rng(1)
    images, guide = rng.normal(size=shape).astype(dtype), 0.3 * rng.normal(size=(2, *shape[1:])).astype(dtype)
    offsets = rng.integers(-3, 4, (30, 3))
    offsets[0] = 0
    near = rng.uniform(0.1, 1, 30)
    for fast, plain in zip(
        bilateral_cpu.joint_mean(images, guide, offsets, near),
        bilateral_plain.joint_mean(images, guide, offsets, near),
        strict=True,
    ):
        assert fast.dtype == dtype
        np.testing.assert_allclose(fast, plain, rtol=50 * np.finfo(dtype).eps, atol=50 * np.finfo(dtype).eps)


def test_one_offset_and_a_flat_guide_are_a_plain_mean() -> None:
    images = np.arange(12.0).reshape(1, 1, 3, 4)
    means, worth = bilateral_cpu.joint_mean(
        images, np.zeros((1, 1, 3, 4)), np.array([[0, 0, 0], [0, 0, 1]]), np.ones(2)
    )
    np.testing.assert_allclose(means[0, 0, 0], [0.5, 1.5, 2.5, 3.0])
    np.testing.assert_allclose(worth[0, 0], [2, 2, 2, 1])


def test_singular_images_are_white_and_give_the_volume_back() -> None:
    clean, noisy = bins()
    images, shares, back = singular_images(noisy, COVARIANCE)
    np.testing.assert_allclose(np.einsum("kl,l...->k...", back, images), noisy, atol=1e-7)
    np.testing.assert_allclose(back @ back.T, COVARIANCE, atol=1e-12)
    noise = np.einsum("kl,l...->k...", np.linalg.inv(back), noisy - clean)
    np.testing.assert_allclose(np.cov(noise.reshape(3, -1)), np.eye(3), atol=0.05)
    assert shares[0] > 0.9  # the slab is one pattern over the bins: one image has all of it
    assert shares[1:].max() < 0.05


def test_noise_of_flat_regions_falls_by_what_the_weights_say() -> None:
    clean, noisy = bins(shape=(1, 200, 320))
    out, worth = RankSparse().filtered(noisy, COVARIANCE)
    flat = np.s_[:, 10:-10, 10:140]
    left = (out - clean)[:, *flat].reshape(3, -1).var(1) / np.diag(COVARIANCE)
    expected = 1 / worth[flat].mean()
    # weights prefer voxels whose noise is alike, hence a little more is left; of some 270 independent patches
    assert expected < left.mean() < 1.4 * expected
    assert 1 / expected > 50


def test_edges_of_any_channel_stay_in_all() -> None:
    clean, noisy = bins()
    out, _ = RankSparse().filtered(noisy, COVARIANCE)
    middle = noisy.shape[-1] // 2
    across = out.mean((1, 2))  # over the rows along the edge
    jump = across[:, middle] - across[:, middle - 1]
    np.testing.assert_allclose(jump, clean[:, 0, 0, middle] - clean[:, 0, 0, middle - 1], rtol=0.06, atol=3e-4)
    before, after = (np.sqrt(((v - clean) ** 2).mean((1, 2, 3))) for v in (noisy, out))
    assert (after < 0.35 * before).all()


def test_units_and_dose_do_not_change_the_picture() -> None:
    _, noisy = bins()
    plain, _ = RankSparse().filtered(noisy, COVARIANCE)
    units = np.array([1.0, 50.0, 0.1])
    other, _ = RankSparse().filtered(
        (noisy * units[:, None, None, None]).astype(np.float32), COVARIANCE * np.outer(units, units)
    )
    np.testing.assert_allclose(other / units[:, None, None, None], plain, rtol=1e-3)
    louder, _ = RankSparse().filtered(3 * noisy, 9 * COVARIANCE)
    np.testing.assert_allclose(louder / 3, plain, rtol=1e-3)


@pytest.mark.parametrize("shape", [(1, 64, 72), (12, 30, 36)])
def test_as_a_denoiser_it_measures_the_noise_and_takes_its_share(shape) -> None:
    clean, noisy = bins(shape)
    changes = [np.linalg.norm(RankSparse()(noisy, share) - noisy) for share in (1e-3, 0.3, 1.0)]
    assert changes[0] < 0.05 * changes[2]
    assert changes[0] < changes[1] < changes[2]
    measured = RankSparse()(noisy, 1.0)
    told = RankSparse(noise_per_mm=tuple(np.sqrt(np.diag(COVARIANCE)).tolist()))(noisy, 1.0)
    for out in (measured, told):
        assert np.linalg.norm(out - clean) < 0.4 * np.linalg.norm(noisy - clean)
    assert measured.dtype == noisy.dtype


def test_arrays_of_a_device_give_the_same(monkeypatch) -> None:
    _, noisy = bins((1, 20, 24))
    here, _ = RankSparse().filtered(noisy, COVARIANCE)
    monkeypatch.setitem(sys.modules, "cupy", stand_in_cupy.cupy)
    there, _ = RankSparse().filtered(stand_in_cupy.cupy.asarray(noisy), COVARIANCE)
    np.testing.assert_allclose(stand_in_cupy.cupy.asnumpy(there), here, rtol=1e-4)


def test_what_cannot_be_is_refused() -> None:
    for name, wrong in (("range_relative", 0.0), ("radius_px", -1), ("noise_per_mm", (0.0,))):
        with pytest.raises(WrongUsage, match=name):
            RankSparse(**{name: wrong})  # type: ignore[arg-type]
    with pytest.raises(WrongUsage, match="2 values for a volume of 3"):
        RankSparse(noise_per_mm=(1.0, 1.0))(bins()[1], 1.0)
