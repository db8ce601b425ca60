"""Rank-sparse kernel regression: means over near voxels that look alike in all channels together.

Channels (energy bins, or materials) are few images of few things: after their noise has been made white, the singular
value decomposition over the channels puts nearly all signal into the first images and leaves noise to the others. How
alike two voxels are is asked of these images, each for as much signal as it has; all of them are then averaged by the
same weights and put together again. Edges that any channel shows are kept in all.

# Ref: Clark and Badea 2014, Phys. Med. Biol. 59, 6445 (joint bilateral filtering of spectral CT); Clark and Badea 2017,
#      Phys. Med. Biol. 62, 7172 (rank-sparse kernel regression). Here the width in values is one number times the noise
#      of the whitened images, which is that of each image over its singular value; the share that an image has in the
#      distance, 1 - noise variance / variance, is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from firmware_iface.errors import WrongUsage
from reconstruction.backend import Array, namespace, to_host
from reconstruction.decomposition import bin_covariance
from reconstruction.kernels import bilateral_plain

RADII_PX = {1: 9, 2: 6, 3: 3}
"""How far voxels are looked for, by the number of axes: a choice of ours."""
GUIDE_WIDTH_PX = 1.0
"""Of the Gaussian by which values are smoothed before they are compared, so that noise moves weights less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSparse:
    """The filter, as plug-and-play and `mpxct denoise` take it.

    Attributes
    ----------
    range_relative : float
        How much voxels may differ, over the noise of what is compared.
    radius_px : int
        How far away they are looked for; the weight falls to exp(-2) there. 0: by the number of axes.
    noise_per_mm : tuple of float
        Of each channel, independent; empty: noise and its correlations are measured in every volume.
    """

    range_relative: float = 2.5
    radius_px: int = 0
    noise_per_mm: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not (self.range_relative > 0 and math.isfinite(self.range_relative)):
            raise WrongUsage(f"range_relative is {self.range_relative}; allowed: more than 0")
        if self.radius_px < 0:
            raise WrongUsage(f"radius_px is {self.radius_px}; allowed: 1 or more, or 0 for the default")
        if not all(0 < noise < math.inf for noise in self.noise_per_mm):
            raise WrongUsage(f"noise_per_mm is {self.noise_per_mm}; allowed: more than 0 for every channel")

    def __call__(self, noisy: Array, share: float) -> Array:
        """Return the volume with that share of the noise level's noise taken away."""
        n = len(noisy)
        if not self.noise_per_mm:
            covariance = bin_covariance(to_host(noisy))
        elif len(self.noise_per_mm) != n:
            raise WrongUsage(f"noise_per_mm has {len(self.noise_per_mm)} values for a volume of {n} channels")
        else:
            covariance = np.diag(np.square(self.noise_per_mm))
        return self.filtered(noisy, share**2 * covariance)[0]

    def filtered(self, noisy: Array, covariance: NDArray[np.floating]) -> tuple[Array, Array]:
        """Return the filtered volume, and how many independent voxels each voxel is worth.

        Parameters
        ----------
        noisy : (n_channels, z, y, x) float
        covariance : (n_channels, n_channels) float
            Of the noise, in the square of the volume's unit.
        """
        if not np.any(covariance):
            return noisy.copy(), namespace(noisy).ones_like(noisy[0])
        images, shares, back = singular_images(noisy, covariance)
        radius = self.radius_px or RADII_PX[max(sum(length > 1 for length in noisy.shape[1:]), 1)]
        offsets, near = _surroundings(noisy.shape[1:], radius)
        guide, noise = _smoothed(images[shares > 0])
        # exp(-d^2 / 2 h^2) is (1 - d^2 / 16 h^2)^8, where d^2 is over twice the variance of one voxel of the guide
        reach = math.sqrt(2 * bilateral_plain.POWER) * self.range_relative * noise * math.sqrt(2)
        xp = namespace(noisy)
        scale = xp.asarray((np.sqrt(shares[shares > 0]) / reach).astype(noisy.dtype))
        means, worth = _kernels(noisy).joint_mean(images, guide * scale[:, None, None, None], offsets, near)
        return xp.tensordot(xp.asarray(back.astype(noisy.dtype)), means, axes=1), worth


def singular_images(
    noisy: Array, covariance: NDArray[np.floating]
) -> tuple[Array, NDArray[np.floating], NDArray[np.floating]]:
    """Return the volume in channels of unit noise that are uncorrelated, those of most signal first.

    Returns
    -------
    images : (n_channels, z, y, x)
    shares : (n_channels,) float64
        Of each image's variance, what is not noise.
    back : (n_channels, n_channels) float64
        That times the images is the volume.
    """
    xp, n = namespace(noisy), len(noisy)
    lower = np.linalg.cholesky(np.asarray(covariance, np.float64))
    flat = noisy.reshape(n, -1)
    mean = flat.mean(1, dtype=xp.float64)
    centred = flat - mean.astype(noisy.dtype)[:, None]
    spread = np.asarray(to_host((centred @ centred.T).astype(xp.float64))) / flat.shape[1]
    whitener = np.linalg.inv(lower)
    variances, vectors = np.linalg.eigh((whitener @ spread @ whitener.T).astype(np.float64))
    variances, vectors = variances[::-1], vectors[:, ::-1]
    forth = (vectors.T @ whitener).astype(noisy.dtype)
    images = (xp.asarray(forth) @ flat).reshape(noisy.shape)
    shares = np.maximum(1 - 1 / np.maximum(variances, 1.0), 0.0)
    return images, shares, lower @ vectors


def _smoothed(images: Array) -> tuple[Array, float]:
    """Return images smoothed a little, and the noise that is left of white noise of 1."""
    line = np.zeros(9)
    line[4] = 1
    line = ndimage.gaussian_filter1d(line, GUIDE_WIDTH_PX, truncate=4)
    axes = [axis for axis, length in enumerate(images.shape) if axis > 0 and length > 1]
    xp, out = namespace(images), images
    for axis in axes:
        far = len(line) // 2
        wide = [(far, far) if a == axis else (0, 0) for a in range(images.ndim)]
        padded = xp.moveaxis(xp.pad(out, wide, mode="edge"), axis, 0)
        n = out.shape[axis]
        out = xp.moveaxis(sum(weight * padded[k : k + n] for k, weight in enumerate(line.tolist())), 0, axis)
    return out, float((line**2).sum()) ** (len(axes) / 2)


def _surroundings(shape: tuple[int, ...], radius: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the offsets inside a ball, and the weight of each for its distance."""
    steps = [np.arange(-radius, radius + 1) if length > 1 else np.zeros(1, int) for length in shape]
    offsets = np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1).reshape(-1, 3)
    distance2 = (offsets**2).sum(1)
    inside = distance2 <= radius**2
    return offsets[inside], np.exp(-2 * distance2[inside] / radius**2)


def _kernels(like: Array) -> ModuleType:
    if namespace(like) is not np:
        return bilateral_plain
    from reconstruction.kernels import bilateral_cpu

    return bilateral_cpu
