"""Geometry from tracks of beads: hidden truth is found again, and what no shadow tells is left as it was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from calibration.alignment import FOUND_BY_BEADS, PARAMETERS, Alignment, align_beads
from calibration.beads import Shadows, join_tracks
from calibration.geometry import Geometry
from calibration.store import Calibration, load, save
from firmware_iface.errors import WrongUsage

NOMINAL = Geometry(source_to_detector_mm=250.0, source_to_object_mm=200.0, pitch_mm=0.11, rows=128, cols=128)
ANGLES = np.arange(90) * 2 * np.pi / 90
STEPS = np.linspace(0, 1, 12)
BEADS_MM = np.stack([4 * np.cos(6 * np.pi * STEPS), 4 * np.sin(6 * np.pi * STEPS), 8.8 * (STEPS - 0.5)], axis=1)
NOISE_PX = 0.02


def seen(geometry, beads_mm=BEADS_MM, *, angles=ANGLES, noise_px=NOISE_PX, seed=0):
    """Tracks as a perfect finder would give them, with noise."""
    at_px = geometry.views(angles).shadows_px(beads_mm) + (np.array([geometry.cols, geometry.rows]) - 1) / 2
    at_px += np.random.default_rng(seed).normal(0, noise_px, at_px.shape)
    return [Shadows(view=np.arange(len(angles)), at_px=at_px[:, bead]) for bead in range(len(beads_mm))]


def misplaced(seed):
    rng = np.random.default_rng(seed)
    return replace(
        NOMINAL,
        source_to_detector_mm=250 + rng.uniform(-3, 3),
        source_to_object_mm=200 + rng.uniform(-3, 3),
        offset_u_mm=rng.uniform(-0.8, 0.8),
        offset_v_mm=rng.uniform(-0.4, 0.4),
        roll_rad=np.deg2rad(rng.uniform(-1, 1)),
        tilt_v_rad=np.deg2rad(rng.uniform(-2, 2)),
    )


@pytest.mark.parametrize("seed", range(5))
def test_a_hidden_geometry_is_found_to_a_tenth_of_a_pixel_and_a_twentieth_of_a_degree(seed):
    truth = misplaced(seed)
    angles = np.arange(180) * 2 * np.pi / 180
    found = align_beads(seen(truth, angles=angles, seed=seed), angles, NOMINAL, length_mm=8.8)
    assert found.parameters == FOUND_BY_BEADS
    assert found.residual_rms_px == pytest.approx(NOISE_PX, rel=0.05)
    assert abs(found.geometry.offset_u_mm - truth.offset_u_mm) < 0.1 * 0.11
    assert abs(found.geometry.offset_v_mm - truth.offset_v_mm) < 0.1 * 0.11
    assert np.rad2deg(abs(found.geometry.roll_rad - truth.roll_rad)) < 0.05
    assert found.geometry.magnification == pytest.approx(truth.magnification, rel=3e-4)
    for name in found.parameters:  # and what is claimed of the errors holds
        error = getattr(found.geometry, name) - getattr(truth, name)
        assert abs(error) < 4 * found.standard_error(name), name
    assert np.rad2deg(found.standard_error("tilt_v_rad")) < 0.05
    # What the geometry is for: any point of the object throws its shadow where it should.
    points = np.random.default_rng(1).uniform(-4, 4, (50, 3))
    difference = found.geometry.views(ANGLES).shadows_px(points) - truth.views(ANGLES).shadows_px(points)
    assert np.abs(difference).max() < 0.1


def test_the_claimed_errors_are_those_that_are_made():
    truth, pulls, angles = misplaced(9), [], ANGLES[::3]
    for seed in range(20):
        found = align_beads(seen(truth, angles=angles, seed=seed), angles, NOMINAL, length_mm=8.8)
        pulls.append(
            [
                (getattr(found.geometry, name) - getattr(truth, name)) / found.standard_error(name)
                for name in found.parameters
            ]
        )
    spread = np.sqrt(np.mean(np.square(pulls), axis=0))
    np.testing.assert_allclose(spread, 1, atol=0.5)  # 20 draws: sigma 0.16


def test_turning_the_beads_changes_nothing():
    truth = misplaced(3)
    cos, sin = np.cos(0.8), np.sin(0.8)
    turned = BEADS_MM @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    straight, other = (
        align_beads(seen(truth, beads, noise_px=0.0), ANGLES, NOMINAL, length_mm=8.8).geometry
        for beads in (BEADS_MM, turned)
    )
    for name in FOUND_BY_BEADS:
        assert getattr(straight, name) == pytest.approx(getattr(truth, name), abs=2e-5), name
        assert getattr(other, name) == pytest.approx(getattr(straight, name), abs=4e-5), name


def test_a_mirrored_scanner_is_found_mirrored():
    truth = replace(NOMINAL, offset_u_mm=0.4, offset_v_mm=0.1, roll_rad=0.01, tilt_v_rad=0.02)
    mirror = replace(truth, offset_u_mm=-0.4, roll_rad=-0.01, tilt_v_rad=-0.02)
    tracks = seen(truth)
    mirrored = [Shadows(view=t.view, at_px=t.at_px * (-1, 1) + (NOMINAL.cols - 1, 0)) for t in tracks]
    here = align_beads(tracks, ANGLES, NOMINAL, length_mm=8.8).geometry
    there = align_beads(mirrored, -ANGLES, NOMINAL, length_mm=8.8).geometry
    for name in FOUND_BY_BEADS:
        sign = np.sign(getattr(truth, name) * getattr(mirror, name))
        assert getattr(there, name) == pytest.approx(sign * getattr(here, name), rel=1e-5, abs=1e-7), name


def test_the_known_length_sets_the_scale_and_its_error_is_handed_on():
    truth = misplaced(4)
    tracks = seen(truth)
    plain = align_beads(tracks, ANGLES, NOMINAL, length_mm=8.8)
    longer = align_beads(tracks, ANGLES, NOMINAL, length_mm=8.8 * 1.01, length_error_mm=0.088)
    ratio = longer.geometry.source_to_object_mm / plain.geometry.source_to_object_mm
    assert ratio == pytest.approx(1.01, rel=1e-5)
    assert longer.geometry.offset_u_mm == pytest.approx(plain.geometry.offset_u_mm, abs=1e-6)
    assert longer.standard_error("source_to_object_mm") == pytest.approx(0.01 * 200, rel=0.1)


def test_without_a_length_the_distance_to_the_object_stays():
    truth = replace(misplaced(5), source_to_object_mm=200.0)
    found = align_beads(seen(truth), ANGLES, NOMINAL)
    assert "source_to_object_mm" not in found.parameters
    assert found.geometry.source_to_object_mm == 200.0
    assert found.geometry.offset_u_mm == pytest.approx(truth.offset_u_mm, abs=0.002)


def test_a_tilt_towards_the_source_that_is_not_looked_for_does_no_harm():
    truth = replace(misplaced(6), tilt_u_rad=0.02)
    found = align_beads(seen(truth), ANGLES, NOMINAL, length_mm=8.8)
    assert found.geometry.tilt_u_rad == 0
    assert found.residual_rms_px == pytest.approx(NOISE_PX, rel=0.05)
    assert found.geometry.offset_u_mm == pytest.approx(truth.offset_u_mm, abs=0.002)
    assert np.rad2deg(abs(found.geometry.roll_rad - truth.roll_rad)) < 0.05


def test_in_a_wide_cone_all_seven_are_found():
    wide = replace(NOMINAL, source_to_detector_mm=30.0, source_to_object_mm=24.0)
    truth = replace(wide, source_to_detector_mm=30.4, offset_u_mm=0.3, roll_rad=0.01, tilt_u_rad=0.05, tilt_v_rad=-0.03)
    found = align_beads(seen(truth), ANGLES, wide, length_mm=8.8, parameters=PARAMETERS)
    for name in PARAMETERS:
        assert abs(getattr(found.geometry, name) - getattr(truth, name)) < 4 * found.standard_error(name), name
    assert np.rad2deg(found.standard_error("tilt_u_rad")) < 0.2


def test_false_sightings_are_left_out():
    truth = misplaced(7)
    tracks = seen(truth)
    rng = np.random.default_rng(2)
    for track in tracks[::3]:
        track.at_px[rng.integers(0, 90, 6)] += rng.uniform(-8, 8, (6, 2))
    found = align_beads(tracks, ANGLES, NOMINAL, length_mm=8.8)
    assert abs(found.geometry.offset_u_mm - truth.offset_u_mm) < 5 * found.standard_error("offset_u_mm")
    assert found.residual_rms_px == pytest.approx(NOISE_PX, rel=0.1)


def shuffled(tracks, seed=0):
    """All sightings in no order of beads: what a finder hands on."""
    view, at_px = np.concatenate([t.view for t in tracks]), np.concatenate([t.at_px for t in tracks])
    order = np.random.default_rng(seed).permutation(len(view))
    return Shadows(view=view[order], at_px=at_px[order])


def test_tracks_that_cross_or_leave_the_field_are_followed():
    truth = replace(NOMINAL, offset_u_mm=0.9, roll_rad=0.02)
    beads = np.concatenate([BEADS_MM, [(-3.9, 0.5, BEADS_MM[0, 2] + 0.15), (1.0, 2.5, BEADS_MM[6, 2] - 0.1)]])
    tracks = seen(truth, beads)
    kept = [track[(np.abs(track.at_px[:, 0] - 63.5) < 47)] for track in tracks]
    assert min(map(len, kept)) < 75  # some do leave
    found = join_tracks(shuffled(kept), ANGLES, n_beads=len(beads), radius_px=3.4)
    assert len(found) == len(beads)
    assert sum(map(len, found)) > 0.97 * sum(map(len, kept))
    for track in found:  # each track is of one bead
        own = [np.abs(whole.at_px[track.view] - track.at_px).max(axis=1) for whole in tracks]
        assert min(np.quantile(distance, 0.95) for distance in own) < 1e-6
    alignment = align_beads(found, ANGLES, NOMINAL, length_mm=8.8)
    assert alignment.geometry.offset_u_mm == pytest.approx(0.9, abs=0.002)


@pytest.mark.parametrize(
    ("n_beads", "n_views", "arc", "words"),
    [(2, 90, 2 * np.pi, "2 beads"), (12, 40, np.pi, "degrees of the circle empty"), (12, 0, 1, "circle empty")],
)
def test_too_little_is_refused(n_beads, n_views, arc, words):
    angles = np.arange(n_views) * arc / max(n_views, 1)
    with pytest.raises(WrongUsage, match=words):
        align_beads(seen(NOMINAL, BEADS_MM[:n_beads], angles=angles), angles, NOMINAL, length_mm=8.8)


def test_an_alignment_survives_the_calibration_file(tmp_path):
    found = align_beads(seen(misplaced(8)), ANGLES, NOMINAL, length_mm=8.8)
    planes = (8, 4, 4)
    calibration = Calibration(
        created="2026-01-01T00:00:00+00:00", software="0", device="d", chip_id="W1_A1", gain="HGM", is_csm=True,
        is_colour=True, bias_v=500.0, dacs={}, trim=np.zeros(planes, np.uint8), is_masked=np.zeros(planes, bool),
        pixel_class=np.zeros(planes[1:], np.uint8), target_dac=15.0, edges_before_dac=np.zeros(planes, np.float32),
        edges_after_dac=np.zeros(planes, np.float32), offset_dac=np.zeros(8), gain_dac_per_kev=np.ones(8), lines=(),
        thresholds_kev=(18.0,), alignment=found,
    )  # fmt: skip
    save(calibration, tmp_path / "c.h5")
    again = load(tmp_path / "c.h5").alignment
    assert again is not None
    assert again.geometry == found.geometry
    assert again.parameters == found.parameters
    np.testing.assert_array_equal(again.standard_errors, found.standard_errors)
    assert again.method == found.method


def test_errors_belong_to_parameters():
    with pytest.raises(ValueError, match="one each"):
        Alignment(
            geometry=NOMINAL, parameters=("roll_rad",), standard_errors=np.zeros(2), residual_rms_px=0.0, method="",
            n_views=1,
        )  # fmt: skip
