"""Scatter that a hidden kernel made is found again and taken off, and counts stay counts."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from firmware_iface.errors import WrongUsage
from reconstruction.artefacts import scatter
from reconstruction.artefacts.scatter import Kernel

PITCH_MM = 0.3
HIDDEN = Kernel(
    amplitude_per_mm2=0.018,
    transmission_slope=0.4,
    attenuation_slope=1.1,
    narrow_mm=1.5,
    wide_mm=5.0,
    wide_share=0.4,
    relative=0.0,
)
ASYMMETRIC = replace(HIDDEN, asymmetry_ratio=0.3)
SHAPE = (3, 40, 56)
OPEN_BEAM = np.full(SHAPE, 1e4, np.float32)


def primary() -> NDArray[np.float32]:
    """Counts behind three balls of water, 3 to 5 mm in radius, at three places."""
    y, x = np.mgrid[:40, :56] * PITCH_MM
    chords = [
        2 * np.sqrt(np.maximum(r**2 - (y - y0) ** 2 - (x - x0) ** 2, 0))
        for y0, x0, r in ((6, 8, 5), (5, 10, 4), (7, 6, 3))
    ]
    return (OPEN_BEAM * np.exp(-0.1 * np.stack(chords))).astype(np.float32)


@cache
def made_by(kernel: Kernel) -> NDArray[np.float64]:
    """The superposition as its formula has it: every pixel's amplitude times the kernel's height at every other."""
    way = -np.log(primary() / OPEN_BEAM.astype(np.float64))
    source = OPEN_BEAM * np.exp(-kernel.transmission_slope * way) * way**kernel.attenuation_slope
    y, x = (axis.ravel() * PITCH_MM for axis in np.mgrid[:40, :56])
    squared = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2
    form = np.exp(-squared / 2 / kernel.narrow_mm**2) + kernel.wide_share * np.exp(-squared / 2 / kernel.wide_mm**2)
    form *= kernel.amplitude_per_mm2 * PITCH_MM**2
    thicker = 1 - kernel.asymmetry_ratio * (way.reshape(3, -1, 1) - way.reshape(3, 1, -1))
    return np.einsum("ij,vij,vj->vi", form, thicker, source.reshape(3, -1)).reshape(SHAPE)


@pytest.mark.parametrize("kernel", [HIDDEN, ASYMMETRIC], ids=["symmetric", "asymmetric"])
def test_the_estimate_is_the_superposition_of_kernels(kernel: Kernel) -> None:
    expected = made_by(kernel)
    assert 0.1 < expected.sum() / primary().sum() < 0.5
    found = scatter.estimate(primary(), OPEN_BEAM, kernel, pitch_mm=PITCH_MM)
    # The padding is cut at three of the wide kernel's sigmas.
    np.testing.assert_allclose(found, expected, atol=0.01 * expected.max())


@pytest.mark.parametrize("kernel", [HIDDEN, ASYMMETRIC], ids=["symmetric", "asymmetric"])
def test_scatter_comes_off_and_the_primary_stays(kernel: Kernel) -> None:
    added = made_by(kernel)
    counts = (primary() + added).astype(np.float32)[None]
    total = counts.copy()
    result = scatter.subtract(counts, OPEN_BEAM[None], [kernel], pitch_mm=PITCH_MM)
    assert result.counts is counts
    np.testing.assert_allclose(total - result.counts, added[None], atol=0.01 * added.max())
    assert "scatter of" in result.words


def test_a_hidden_kernels_scatter_is_found_behind_noisy_blockers() -> None:
    """From a tenth of the pixels, each known to its counting noise, the scatter of all is known to two per cent."""
    dice = np.random.default_rng(4)
    true = made_by(HIDDEN)
    is_blocked = dice.random(SHAPE) < 0.1
    seen = np.where(is_blocked, dice.poisson(true), 0)
    found = scatter.fit(primary(), OPEN_BEAM, seen, pitch_mm=PITCH_MM, is_measured=is_blocked)
    again = scatter.estimate(primary(), OPEN_BEAM, found, pitch_mm=PITCH_MM)
    assert np.sqrt(np.mean((again - true) ** 2)) < 0.02 * np.sqrt(np.mean(true**2))
    # What the fit leaves is the counting noise, and it says so.
    assert found.relative == pytest.approx(np.sqrt(true.mean() / np.mean(true**2 + true)), rel=0.15)


def test_an_asymmetric_kernel_is_found_as_such() -> None:
    true = made_by(ASYMMETRIC)
    found = scatter.fit(primary(), OPEN_BEAM, true, pitch_mm=PITCH_MM, is_symmetric=False)
    symmetric = scatter.fit(primary(), OPEN_BEAM, true, pitch_mm=PITCH_MM)
    assert found.asymmetry_ratio == pytest.approx(0.3, abs=0.05)
    assert found.relative < 0.5 * symmetric.relative


def test_counts_stay_above_0_however_wrong_the_kernel_is() -> None:
    counts = np.random.default_rng(5).poisson(primary() / 1000).astype(np.float32)[None]
    wrong = replace(HIDDEN, amplitude_per_mm2=1.0)
    before = counts.copy()
    after = scatter.subtract(counts, OPEN_BEAM[None] / 1000, [wrong], pitch_mm=PITCH_MM).counts
    assert (after >= 0.049 * before).all()


def test_the_variance_holds_the_photons_and_the_estimates_error() -> None:
    counts = (primary() + made_by(HIDDEN)).astype(np.float32)[None]
    photons = counts.copy()
    result = scatter.subtract(counts, OPEN_BEAM[None], [replace(HIDDEN, relative=0.1)], pitch_mm=PITCH_MM)
    expected = photons + (0.1 * (photons - result.counts)) ** 2
    np.testing.assert_allclose(result.variance, expected, rtol=1e-3)


def test_bins_have_kernels_of_their_own() -> None:
    counts = np.stack([primary(), primary()])
    kernels = [replace(HIDDEN, amplitude_per_mm2=0.0), HIDDEN]
    result = scatter.subtract(counts, np.stack([OPEN_BEAM, OPEN_BEAM]), kernels, pitch_mm=PITCH_MM)
    np.testing.assert_array_equal(result.counts[0], primary())
    assert result.counts[1].sum() < 0.95 * primary().sum()
    assert "0.0%" in result.words


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(WrongUsage, match="1 kernels for 2 bins"):
        scatter.subtract(np.stack([primary()] * 2), np.stack([OPEN_BEAM] * 2), [HIDDEN], pitch_mm=PITCH_MM)
    with pytest.raises(ValueError, match="narrow <= wide"):
        replace(HIDDEN, wide_mm=1.0)
    with pytest.raises(ValueError, match="no amplitude"):
        replace(HIDDEN, wide_share=-0.1)
    with pytest.raises(WrongUsage, match="0 everywhere"):
        scatter.fit(primary(), OPEN_BEAM, np.zeros(SHAPE), pitch_mm=PITCH_MM)
