"""The axis of rotation from the scan itself: opposing rays through solids whose projections are known exactly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from calibration.geometry import Geometry
from calibration.opposing import align_scan
from firmware_iface.errors import WrongUsage

NOMINAL = Geometry(source_to_detector_mm=250.0, source_to_object_mm=200.0, pitch_mm=0.22, rows=32, cols=64)
FULL = np.arange(120) * 2 * np.pi / 120
SHORT = np.arange(125) * np.deg2rad(187.5) / 125
"""Half a circle, the fan's 3.2 degrees, and a little more."""
SPHERES = (((2.6, 0.4, 0.0), 1.3), ((-1.0, 1.8, 1.2), 0.9), ((0.2, -2.6, -1.4), 1.1), ((-2.9, -1.2, 0.3), 0.8))


def line_integrals(geometry, angles, *, noise=0.0, solids=SPHERES, per_mm=0.1, seed=0):
    """Chords through a cylinder and spheres in it, that know nothing of opposing rays: (n_views, rows, cols)."""
    views = geometry.views(angles)
    col, row = np.arange(geometry.cols) - (geometry.cols - 1) / 2, np.arange(geometry.rows) - (geometry.rows - 1) / 2
    pixels = (
        views.detector_mm[:, None, None]
        + row[:, None, None] * views.v_mm[:, None, None]
        + col[:, None] * views.u_mm[:, None, None]
    )
    source = views.source_mm[:, None, None]
    along = pixels - source
    along /= np.linalg.norm(along, axis=-1, keepdims=True)
    total = np.zeros(along.shape[:3])
    for centre_mm, radius_mm in solids:
        away = source - np.asarray(centre_mm)
        b = (away * along).sum(-1)
        total += 2 * per_mm * np.sqrt(np.maximum(b**2 - (away**2).sum(-1) + radius_mm**2, 0))
    return total + np.random.default_rng(seed).normal(0, noise, total.shape)


def run(work):
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


@pytest.mark.parametrize("angles", [FULL, SHORT, np.sort(np.random.default_rng(1).uniform(0, 2 * np.pi, 300))])
@pytest.mark.parametrize(("offset_u_mm", "roll_deg"), [(0.37, 0.8), (-1.1, -0.5), (0.0, 0.0)])
def test_axis_and_roll_are_found(angles, offset_u_mm, roll_deg):
    truth = replace(NOMINAL, offset_u_mm=offset_u_mm, roll_rad=np.deg2rad(roll_deg))
    found = run(align_scan(line_integrals(truth, angles, noise=0.02), angles, NOMINAL))
    assert found.parameters == ("offset_u_mm", "roll_rad")
    error_px = abs(found.geometry.offset_u_mm - offset_u_mm) / NOMINAL.pitch_mm
    error_deg = abs(np.rad2deg(found.geometry.roll_rad) - roll_deg)
    n_opposite = 1 if len(angles) != len(SHORT) else 3  # few rays of a short scan have an opposite
    claimed_px, claimed_deg = found.standard_errors / (NOMINAL.pitch_mm, np.deg2rad(1))
    assert error_px < 0.05 * n_opposite
    assert error_px < 4 * claimed_px + 0.01
    assert error_deg < 4 * claimed_deg + 0.02
    assert claimed_deg < 0.12 * n_opposite  # over 32 rows only, and noisy
    assert found.geometry.source_to_detector_mm == NOMINAL.source_to_detector_mm


def test_a_mirrored_scan_is_found_mirrored():
    truth = replace(NOMINAL, offset_u_mm=0.5, roll_rad=0.01)
    values = line_integrals(truth, FULL)
    here = run(align_scan(values, FULL, NOMINAL)).geometry
    there = run(align_scan(values[:, :, ::-1], -FULL, NOMINAL)).geometry
    assert there.offset_u_mm == pytest.approx(-here.offset_u_mm, abs=1e-3)
    assert there.roll_rad == pytest.approx(-here.roll_rad, abs=1e-4)


def test_the_order_of_views_and_a_turn_of_the_object_change_nothing():
    truth = replace(NOMINAL, offset_u_mm=-0.4)
    values = line_integrals(truth, FULL)
    straight = run(align_scan(values, FULL, NOMINAL)).geometry
    order = np.random.default_rng(3).permutation(len(FULL))
    assert run(align_scan(values[order], FULL[order], NOMINAL)).geometry == straight
    turned = run(align_scan(values, FULL + 1.0, NOMINAL)).geometry
    assert turned.offset_u_mm == pytest.approx(straight.offset_u_mm, abs=1e-4)


@pytest.mark.parametrize(
    ("values", "angles", "words"),
    [
        (np.random.default_rng(0).normal(0, 0.02, (120, 32, 64)), FULL, "no better"),
        (line_integrals(NOMINAL, FULL[:50]), FULL[:50], "too few rays"),
        (np.zeros((120, 3, 64)), FULL, "have shape"),
    ],
    ids=["noise", "less than half a circle", "shape"],
)
def test_a_scan_that_cannot_tell_is_refused(values, angles, words):
    with pytest.raises(WrongUsage, match=words):
        run(align_scan(values, angles, NOMINAL))
