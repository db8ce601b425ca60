"""Denoisers for plug-and-play reconstruction: scikit-image's, and the prox of any prior of ours.

A denoiser is a function of a noisy volume and of the share of its own noise level that it is to take away in this call.
The level is its option, in the unit of the volume (1/mm); where it is 0, it is measured in each channel.

# Ref: noise from the median of the finest wavelet details: Donoho and Johnstone 1994, Biometrika 81, 425.
# Ref: non-local means, fast: Darbon et al. 2008, IEEE ISBI, 1331; its h of 0.8 noise levels: scikit-image's
#      example "Non-local means denoising for preserving textures". Bilateral: Tomasi and Manduchi 1998, ICCV, 839.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from firmware_iface.errors import WrongUsage
from reconstruction.backend import Array, namespace, to_host
from reconstruction.priors import Prior

NORMAL_QUARTILE = 0.6744897501960817
"""Median magnitude of a standard normal variable."""

Channel = NDArray[np.floating]


class Denoiser(Protocol):
    """What plug-and-play plugs in."""

    def __call__(self, noisy: Array, share: float, /) -> Array:
        """Return `noisy`, (n_channels, z, y, x), with that share of the noise level's noise taken away."""
        ...


def noise_level(channel: NDArray[np.floating]) -> float:
    """Return the standard deviation of white noise on a (z, y, x) image, from its finest diagonal details."""
    details = np.asarray(channel, np.float64)
    for axis, length in enumerate(details.shape):
        if length > 1:
            details = np.diff(details, axis=axis) / math.sqrt(2)
    return float(np.median(np.abs(details))) / NORMAL_QUARTILE


def _by_channel(noisy: Array, level_per_mm: float, share: float, denoise: Callable[[Channel, float], Channel]) -> Array:
    """Denoise every channel on the host by its own level, without the axes that have one voxel only."""
    out = []
    for channel in to_host(noisy):
        level = (level_per_mm or noise_level(channel)) * share
        plain = channel.reshape([n for n in channel.shape if n > 1] or [1])
        out.append(plain if level == 0 else denoise(plain, level))
    return namespace(noisy).asarray(np.stack(out).reshape(noisy.shape).astype(noisy.dtype, copy=False))


def _check_level(denoiser: TotalVariationDenoiser | NonLocalMeans | Bilateral | Wavelet) -> None:
    if not (denoiser.noise_per_mm >= 0 and math.isfinite(denoiser.noise_per_mm)):
        raise WrongUsage(f"noise_per_mm is {denoiser.noise_per_mm}; allowed: above 0, or 0 to measure it")


@dataclass(frozen=True, slots=True, kw_only=True)
class ByPrior:
    """The prox of a prior, which makes plug-and-play the same as FISTA with that prior.

    Attributes
    ----------
    prior : Prior
    n_iterations : int
        Of the prox, begun anew in every call.
    """

    prior: Prior
    n_iterations: int = 50

    def __call__(self, noisy: Array, share: float) -> Array:
        """Return the prox of `noisy`; steps go with the variance, hence with the square of the share."""
        return self.prior.prox(noisy, share * share, n_iterations=self.n_iterations)


@dataclass(frozen=True, slots=True, kw_only=True)
class TotalVariationDenoiser:
    """scikit-image's total variation (Chambolle's), each channel for itself.

    Attributes
    ----------
    noise_per_mm : float
        0 measures it.
    """

    noise_per_mm: float = 0.0

    def __post_init__(self) -> None:
        _check_level(self)

    def __call__(self, noisy: Array, share: float) -> Array:
        """Return the volume with a share of its noise taken away."""
        from skimage.restoration import denoise_tv_chambolle

        return _by_channel(
            noisy, self.noise_per_mm, share, lambda image, level: denoise_tv_chambolle(image, weight=level)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NonLocalMeans:
    """Means over voxels whose surroundings look alike, each channel for itself.

    Attributes
    ----------
    noise_per_mm : float
        0 measures it.
    patch_size, patch_distance : int
        Voxels along the edge of a surrounding; how far away others are looked for.
    h_relative : float
        How much surroundings may differ, over the noise.
    """

    noise_per_mm: float = 0.0
    patch_size: int = 3
    patch_distance: int = 4
    h_relative: float = 0.8

    def __post_init__(self) -> None:
        _check_level(self)

    def __call__(self, noisy: Array, share: float) -> Array:
        """Return the volume with a share of its noise taken away."""
        from skimage.restoration import denoise_nl_means

        def denoise(image: Channel, level: float) -> Channel:
            return denoise_nl_means(
                image,
                patch_size=self.patch_size,
                patch_distance=self.patch_distance,
                h=self.h_relative * level,
                sigma=level,
                preserve_range=True,
            )

        return _by_channel(noisy, self.noise_per_mm, share, denoise)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bilateral:
    """Means over near voxels of like value, slice by slice, each channel for itself.

    Attributes
    ----------
    noise_per_mm : float
        0 measures it.
    width_px : float
        Standard deviation of the distance.
    range_relative : float
        Standard deviation of the difference in value, over the noise.
    """

    noise_per_mm: float = 0.0
    width_px: float = 1.0
    range_relative: float = 2.0

    def __post_init__(self) -> None:
        _check_level(self)

    def __call__(self, noisy: Array, share: float) -> Array:
        """Return the volume with a share of its noise taken away."""
        from skimage.restoration import denoise_bilateral

        def denoise(image: Channel, level: float) -> Channel:
            slices = image.reshape(-1, *np.atleast_2d(image).shape[-2:])
            lowest = slices.min()  # it takes no values below 0
            smooth = [
                denoise_bilateral(
                    plane - lowest,
                    sigma_color=self.range_relative * level,
                    sigma_spatial=self.width_px,
                    mode="edge",
                )
                for plane in slices
            ]
            return np.stack(smooth).reshape(image.shape) + lowest

        return _by_channel(noisy, self.noise_per_mm, share, denoise)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wavelet:
    """Soft thresholds of wavelet coefficients (BayesShrink), each channel for itself; needs PyWavelets.

    Attributes
    ----------
    noise_per_mm : float
        0 measures it.
    """

    noise_per_mm: float = 0.0

    def __post_init__(self) -> None:
        _check_level(self)
        if find_spec("pywt") is None:
            raise WrongUsage("wavelets need PyWavelets, which is not installed", hint="pip install PyWavelets")

    def __call__(self, noisy: Array, share: float) -> Array:
        """Return the volume with a share of its noise taken away."""
        from skimage.restoration import denoise_wavelet

        return _by_channel(
            noisy,
            self.noise_per_mm,
            share,
            lambda image, level: denoise_wavelet(image, sigma=level, wavelet="db2", rescale_sigma=False),
        )
