"""Laws of the step wedge: thicknesses come back, unlike pixels read alike, and what was not taught is marked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from calibration.thickness import EquivalentThickness, fit_thickness
from firmware_iface.errors import CalibrationMissing, WrongUsage
from tests.beam_bench import THRESHOLDS_KEV, SharpPixels

SHAPE = (16, 20)
WEDGE_MM = (2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0)


def _fit(
    pixels: SharpPixels, n: int | None = None, wedge_mm: tuple[float, ...] = WEDGE_MM, **more: Any
) -> EquivalentThickness:
    take = pixels.mean if n is None else lambda t: pixels.frames(t, n)
    options = {
        "material": "pmma",
        "path_factors": np.ones(SHAPE),
        "n_frames": (n or 10**9, n or 10**9),
        "thresholds_kev": THRESHOLDS_KEV,
        "tube_kvp": 118.0,
        "reference_mm": 8.0,
    } | more
    return fit_thickness(take(0.0), np.stack([take(t) for t in wedge_mm]), wedge_mm, **options)


def _signal(pixels: SharpPixels, thickness_mm: float) -> np.ndarray:
    return np.log(pixels.mean(0.0) / pixels.mean(thickness_mm))


@pytest.mark.parametrize("thickness_mm", [1.0, 3.0, 7.5, 12.0, 25.0, 39.0])
def test_thicknesses_between_the_plates_come_back_in_every_pixel_and_bin(thickness_mm: float) -> None:
    pixels = SharpPixels()
    found, is_out = _fit(pixels).equivalent_mm(_signal(pixels, thickness_mm))
    assert is_out.mean() < 0.2
    np.testing.assert_allclose(found, thickness_mm, rtol=4e-3)


def test_the_curve_bends_as_hardening_does_and_its_line_integrals_are_straight() -> None:
    pixels = SharpPixels()
    wedge = _fit(pixels)
    thin, thick = _signal(pixels, 5.0), _signal(pixels, 20.0)
    assert (thick.mean(axis=(1, 2)) / thin.mean(axis=(1, 2)))[0] < 3.97
    straight = [wedge.linearised(signal)[0] for signal in (thin, thick)]
    np.testing.assert_allclose(straight[1] / straight[0], 4.0, rtol=6e-3)
    at_reference = wedge.linearised(_signal(pixels, 8.0))[0].mean(axis=(1, 2))
    all_pixels = np.log(pixels.mean(0.0).sum(axis=(1, 2)) / pixels.mean(8.0).sum(axis=(1, 2)))
    np.testing.assert_allclose(at_reference, all_pixels, rtol=3e-3)


def test_slanted_rays_have_longer_ways() -> None:
    pixels = SharpPixels()
    factors = np.full(SHAPE, 1.25)
    longer = _fit(pixels, path_factors=factors)
    found, _ = longer.equivalent_mm(_signal(pixels, 10.0))
    np.testing.assert_allclose(found, 12.5, rtol=5e-3)


def test_noise_is_not_taken_for_a_difference_between_pixels() -> None:
    alike = SharpPixels(sigma_kev=0.0)
    wedge = _fit(alike, n=100)
    found, _ = wedge.equivalent_mm(_signal(alike, 15.0))
    one_plate_mm = 15.0 * np.sqrt(2 / (100 * alike.mean(15.0))) / _signal(alike, 15.0)
    assert (found.std(axis=(1, 2)) < 0.35 * one_plate_mm.mean(axis=(1, 2))).all()


def test_the_stated_error_is_the_error_made() -> None:
    pixels = SharpPixels(seed=3)
    wedge = _fit(pixels, n=400)
    error = wedge.equivalent_mm(_signal(pixels, 20.0))[0] - 20.0
    # The common curve's own error is no scatter between pixels.
    scatter = error.std(axis=(1, 2))
    np.testing.assert_allclose(scatter, wedge.sigma_mm.mean(axis=(1, 2)), rtol=0.35)


def test_rings_and_cupping_go() -> None:
    pixels = SharpPixels(seed=4)
    wedge = _fit(pixels, n=400)
    raw, straight = [], []
    for thickness_mm in (4.0, 8.0, 16.0):
        signal = _signal(pixels, thickness_mm)
        raw.append(signal / signal.mean(axis=(1, 2), keepdims=True))
        corrected = wedge.linearised(signal)[0]
        straight.append(corrected / corrected.mean(axis=(1, 2), keepdims=True))
    before, after = np.std(raw, axis=(0, 2, 3)), np.std(straight, axis=(0, 2, 3))
    assert (after[:3] < 0.5 * before[:3]).all()
    assert after[3] < before[3], "where pixels hardly differ, nothing is made worse"


def test_beyond_the_thickest_plate_it_goes_on_straight_and_is_marked() -> None:
    pixels = SharpPixels(sigma_kev=0.0)
    wedge = _fit(pixels)
    top = wedge.highest_signal[:, None, None] * np.ones(SHAPE)
    step = 1e-3
    at, inside, outside = (wedge.equivalent_mm(top + d)[0].astype(float) for d in (0.0, -0.1, 0.1))
    assert not wedge.equivalent_mm(top - step)[1].any()
    assert wedge.equivalent_mm(top + step)[1].all()
    np.testing.assert_allclose(outside - at, at - inside, rtol=0.02)
    below, is_out = wedge.equivalent_mm(np.full((4, *SHAPE), -0.05))
    assert (below < 0).all()
    assert not is_out.any()


def test_refusals_say_what_is_allowed() -> None:
    pixels = SharpPixels()
    with pytest.raises(WrongUsage, match="thicknesses of 2, 5, 10 mm; allowed: 4 or more"):
        _fit(pixels, wedge_mm=(2.0, 5.0, 10.0))
    with pytest.raises(CalibrationMissing, match=r"measured in \(4, 16, 20\) bins and pixels; the signals have"):
        _fit(pixels).equivalent_mm(np.zeros((3, *SHAPE)))
    open_beam, behind = pixels.mean(0.0), np.stack([pixels.mean(t) for t in WEDGE_MM])
    options: dict[str, Any] = {
        "material": "pmma", "path_factors": np.ones(SHAPE), "n_frames": (1, 1), "thresholds_kev": THRESHOLDS_KEV,
        "tube_kvp": 118.0, "reference_mm": 8.0,
    }  # fmt: skip
    with pytest.raises(CalibrationMissing, match="signal does not rise with thickness in bin 1 of pmma"):
        fit_thickness(open_beam, behind[::-1], WEDGE_MM, **options)
    behind[-1, 2] = 0
    with pytest.raises(CalibrationMissing, match="nothing comes through 40 mm of pmma in bin 3"):
        fit_thickness(open_beam, behind, WEDGE_MM, **options)
