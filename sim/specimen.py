"""What each pixel of one sensor on one chip really is, drawn once; no estimator may see it.

The chip's discriminators are the same in both its modes: threshold 2k + c of a 110 um cluster is discriminator c of the
55 um pixel P(k+1). So one specimen is looked at either way, by rearranging its planes.

# Ref: noise 80 e- alone, 175 e- summed: CERN Knowledge Transfer, Medipix3.
# Ref: peaking time 120 ns: CERN Knowledge Transfer, Medipix3. Ikrum: "1 nA = DAC 5 for MPX3RX", geant4medipix
#      `DetectorConfig.ini`.
# Ref: which sub-pixel holds which threshold: `firmware_iface.chip.SUBPIXELS`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from firmware_iface import chip

FINE_THRESHOLDS = 2
"""Thresholds of a 55 um pixel."""
Place = tuple[slice, slice]
SUBPIXEL_PLACES: tuple[Place, ...] = tuple((slice(row, None, 2), slice(col, None, 2)) for row, col in chip.SUBPIXELS)
"""Where P1 to P4 of all clusters stand in the matrix of 55 um pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontEnd:
    """How good the pixels' electronics are, as chosen defaults; see `# Ref:` for those with a source.

    The unequalised dispersion, the baseline, the shares of bad pixels and what telegraph pixels do are choices: no
    source states them.
    """

    noise_e: float = 80.0
    summed_noise_e: float = 175.0
    gain_noise_relative: tuple[float, float, float, float] = (0.9, 1.0, 1.15, 1.3)
    """Noise in SHGM, HGM, LGM and SLGM as a share of that in HGM: a guess, growing with the feedback capacitor."""
    noise_rate_per_s: float = 1e6
    baseline_dac: float = 64.0
    baseline_sigma_dac: float = 10.0
    gain_sigma_relative: float = 0.02
    trim_sigma_relative: float = 0.03
    dead_share: float = 0.002
    noisy_share: float = 0.001
    noisy_ratio: float = 8.0
    """How many times noisier a noisy pixel is."""
    peaking_time_s: float = 120e-9
    """For so long a pulse holds before it falls."""
    ikrum_na_per_code: float = 0.2
    """The current that discharges the amplifier."""
    telegraph_share: float = 0.0005
    telegraph_dac: float = 15.0
    """By how much the baseline of a telegraph pixel jumps."""
    telegraph_dwell_s: float = 30.0
    """How long it stays on average before it jumps."""

    def __post_init__(self) -> None:
        if not (self.noise_e > 0 and self.summed_noise_e > 0 and self.noisy_ratio > 0):
            raise ValueError("noise_e, summed_noise_e and noisy_ratio; allowed: above 0")
        bad_share = self.dead_share + self.noisy_share + self.telegraph_share
        if min(self.dead_share, self.noisy_share, self.telegraph_share) < 0 or bad_share > 1:
            raise ValueError(f"dead, noisy and telegraph shares add up to {bad_share:g}; allowed: each above 0, all 1")
        if not (self.peaking_time_s >= 0 and self.ikrum_na_per_code > 0 and self.telegraph_dwell_s > 0):
            raise ValueError("peaking_time_s, ikrum_na_per_code and telegraph_dwell_s; allowed: above 0")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PixelTruth:
    """What each pixel really is; no estimator may see it.

    Attributes
    ----------
    offset_dac : (n_thresholds, rows, cols) float32
        Where the baseline of each discriminator stands on its threshold DAC, at the centre of the trim.
    trim_strength : (n_thresholds, rows, cols) float32
        Threshold steps per DAC_Disc code over half the trim's range.
    relative_gain, relative_noise : (rows, cols) float32
    is_dead : (rows, cols) bool
    is_telegraph : (rows, cols) bool
        Whose baseline jumps between two levels.
    """

    offset_dac: NDArray[np.float32]
    trim_strength: NDArray[np.float32]
    relative_gain: NDArray[np.float32]
    relative_noise: NDArray[np.float32]
    is_dead: NDArray[np.bool_]
    is_telegraph: NDArray[np.bool_]

    @property
    def n_thresholds(self) -> int:
        """8 as clusters of 110 um, 2 as pixels of 55 um."""
        return len(self.offset_dac)

    def as_fine(self) -> PixelTruth:
        """Return clusters as the pixels that they are made of."""
        return PixelTruth(
            offset_dac=_unclustered(self.offset_dac),
            trim_strength=_unclustered(self.trim_strength),
            relative_gain=doubled(self.relative_gain),
            relative_noise=doubled(self.relative_noise),
            is_dead=doubled(self.is_dead),
            is_telegraph=doubled(self.is_telegraph),
        )

    def as_clusters(self, counting: Place) -> PixelTruth:
        """Return pixels as clusters, of each of which one pixel's amplifier counts."""
        return PixelTruth(
            offset_dac=clustered(self.offset_dac),
            trim_strength=clustered(self.trim_strength),
            relative_gain=self.relative_gain[counting],
            relative_noise=self.relative_noise[counting],
            is_dead=self.is_dead[counting],
            is_telegraph=self.is_telegraph[counting],
        )


def draw_truth(front: FrontEnd, planes: tuple[int, int, int], rng: np.random.Generator) -> PixelTruth:
    """Draw a specimen of (n_thresholds, rows, cols)."""
    pixels = planes[1:]
    fate = rng.random(pixels)
    return PixelTruth(
        offset_dac=rng.normal(front.baseline_dac, front.baseline_sigma_dac, planes).astype(np.float32),
        trim_strength=rng.normal(1.0, front.trim_sigma_relative, planes).astype(np.float32),
        relative_gain=rng.normal(1.0, front.gain_sigma_relative, pixels).astype(np.float32),
        relative_noise=np.where(fate > 1 - front.noisy_share, front.noisy_ratio, 1.0).astype(np.float32),
        is_dead=fate < front.dead_share,
        is_telegraph=(fate >= front.dead_share) & (fate < front.dead_share + front.telegraph_share),
    )


def clustered(planes: NDArray) -> NDArray:
    """Turn (2, rows, cols) planes of the pixels' discriminators into (8, rows / 2, cols / 2) of the clusters'."""
    return np.stack([disc[place] for place in SUBPIXEL_PLACES for disc in planes])


def _unclustered(planes: NDArray) -> NDArray:
    n, rows, cols = planes.shape
    discs = np.empty((FINE_THRESHOLDS, 2 * rows, 2 * cols), dtype=planes.dtype)
    for threshold in range(n):
        cluster_pixel, disc = divmod(threshold, FINE_THRESHOLDS)
        discs[disc][SUBPIXEL_PLACES[cluster_pixel]] = planes[threshold]
    return discs


def doubled(values: NDArray) -> NDArray:
    """Give the four pixels of each cluster its value."""
    return values.repeat(2, axis=0).repeat(2, axis=1)
