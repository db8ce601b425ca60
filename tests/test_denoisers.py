"""Denoisers for plug-and-play: they take noise of the level that they are told away, and keep edges."""

from __future__ import annotations

import numpy as np
import pytest

from firmware_iface.errors import WrongUsage
from reconstruction.methods.denoisers import (
    Bilateral,
    ByPrior,
    NonLocalMeans,
    TotalVariationDenoiser,
    Wavelet,
    noise_level,
)
from reconstruction.priors import TotalVariation

LEVEL_PER_MM = 1.25e-3
DENOISERS = {
    "tv": TotalVariationDenoiser(),
    "nl-means": NonLocalMeans(),
    "bilateral": Bilateral(),
    "by prior": ByPrior(prior=TotalVariation(strength_per_mm=LEVEL_PER_MM)),
}


def blocks(shape=(2, 12, 24, 20)):
    """Clean and noisy volumes: a block of 0.02 / mm on 0.01 / mm, the second channel of half the contrast."""
    clean = np.full(shape, 0.01, np.float32)
    clean[..., shape[-2] // 4 : 3 * shape[-2] // 4, shape[-1] // 4 : 3 * shape[-1] // 4] = 0.02
    clean[1] = 0.01 + (clean[1] - 0.01) / 2
    noise = LEVEL_PER_MM * np.random.default_rng(3).normal(size=shape)
    return clean, (clean + noise).astype(np.float32)


@pytest.mark.parametrize("name", DENOISERS)
@pytest.mark.parametrize("shape", [(2, 12, 24, 20), (2, 1, 48, 40)])
def test_most_of_the_noise_goes_and_edges_stay(name: str, shape) -> None:
    clean, noisy = blocks(shape)
    out = DENOISERS[name](noisy, 1.0)
    assert out.shape == noisy.shape
    assert out.dtype == np.float32
    for channel in range(2):
        before, after = (np.sqrt(np.mean((image[channel] - clean[channel]) ** 2)) for image in (noisy, out))
        # slice by slice, and by values that noise itself moves: the weakest
        assert after < (0.85 if name == "bilateral" else 0.65) * before
        inside = clean[channel] > 0.0101
        step = out[channel][inside].mean() - out[channel][~inside].mean()
        assert step == pytest.approx(clean[channel][inside].mean() - 0.01, rel=0.2)


@pytest.mark.parametrize("name", DENOISERS)
def test_a_smaller_share_takes_less_away(name: str) -> None:
    _, noisy = blocks()
    changes = [np.linalg.norm(DENOISERS[name](noisy, share) - noisy) for share in (1e-3, 0.3, 1.0)]
    assert changes[0] < 0.05 * changes[2]
    assert changes[0] < changes[1] < changes[2]


def test_noise_is_measured_beside_edges_and_ramps() -> None:
    clean, noisy = blocks((2, 20, 40, 40))
    ramp = np.linspace(0, 1, 40, dtype=np.float32)
    for channel in range(2):
        assert noise_level(noisy[channel] + ramp) == pytest.approx(LEVEL_PER_MM, rel=0.05)
    assert noise_level(clean[0]) == 0
    np.testing.assert_array_equal(TotalVariationDenoiser()(clean, 1.0), clean)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(WrongUsage, match="noise_per_mm"):
        NonLocalMeans(noise_per_mm=-1.0)


def test_wavelets_run_or_say_what_is_missing() -> None:
    try:
        import pywt  # noqa: F401
    except ImportError:
        with pytest.raises(WrongUsage, match="PyWavelets"):
            Wavelet()
        return
    clean, noisy = blocks()
    assert np.abs(Wavelet()(noisy, 1.0) - clean).mean() < 0.8 * np.abs(noisy - clean).mean()
