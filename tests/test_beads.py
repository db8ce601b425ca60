"""Beads in images and in the simulated scene: found to a small part of a pixel, and the step finds the hidden truth."""

from __future__ import annotations

import math
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from acquisition.calibrate import geometry as step
from acquisition.plan import Plan
from calibration.beads import find_shadows
from calibration.pixels import PixelClass, fill
from calibration.store import Calibration
from firmware_iface.errors import WrongUsage
from firmware_iface.frame import Frame
from sim.gantry import GEOMETRY, Gantry
from sim.instrument import simulated_device
from sim.phantom import beads_phantom

RADIUS_PX = 3.4


def images(at_px, *, shape=(64, 80), noise=0.0, slope=0.0, seed=0):
    """Half-ellipsoid shadows, each pixel the mean over its area: (n_views, rows, cols)."""
    fine = (np.arange(5) - 2) / 5
    row, col = np.arange(shape[0])[:, None, None, None] + fine[:, None], np.arange(shape[1])[:, None, None] + fine
    rows, cols = np.broadcast_arrays(row, col)
    out = []
    for view in at_px:
        image = slope * np.arange(shape[1]) * np.ones(shape)
        for x, y in view:
            inside = np.clip(1 - ((cols - x) ** 2 + (rows - y) ** 2) / RADIUS_PX**2, 0, None)
            image = image + np.sqrt(inside).mean(axis=(2, 3))
        out.append(image)
    return np.stack(out) + np.random.default_rng(seed).normal(0, noise, (len(at_px), *shape))


def places(n_views=12, seed=3):
    rng = np.random.default_rng(seed)
    raster = np.array([(15, 15), (40, 14), (63, 17), (16, 46), (38, 48), (64, 45)], float)
    return raster + rng.uniform(-2, 2, (n_views, 6, 2))


def errors_px(found, truth):
    apart = found.at_px[:, None] - truth[found.view]
    nearest = np.linalg.norm(apart, axis=2).argmin(axis=1)
    return apart[np.arange(len(apart)), nearest]


@pytest.mark.parametrize(("noise", "worst_px"), [(0.0, 0.02), (0.02, 0.05)])
def test_middles_are_found_to_a_small_part_of_a_pixel(noise, worst_px):
    truth = places()
    found = find_shadows(images(truth, noise=noise, slope=0.01), n_beads=6, radius_px=3.0)
    assert len(found) == truth.shape[0] * truth.shape[1]
    error = errors_px(found, truth)
    assert np.sqrt((error**2).mean()) < worst_px / 2
    assert np.abs(error).max() < 2 * worst_px
    assert np.abs(error.mean(axis=0)).max() < 0.005


def test_bad_pixels_are_not_believed():
    truth = places()
    views = images(truth, noise=0.01)
    is_bad = np.random.default_rng(5).uniform(size=views.shape[1:]) < 0.02
    views[:, is_bad] = 7.0
    filled = fill(views.astype(np.float32), is_bad)
    found = find_shadows(filled, n_beads=6, radius_px=3.4, is_bad=is_bad)
    assert len(found) > 0.9 * truth.shape[0] * truth.shape[1]
    assert np.sqrt((errors_px(found, truth) ** 2).mean()) < 0.04


def test_beads_on_the_edge_are_left_out():
    truth = places()
    truth[:, 0, 0] = 1.5
    found = find_shadows(images(truth), n_beads=6, radius_px=3.4)
    assert len(found) == truth.shape[0] * (truth.shape[1] - 1)


def test_noise_is_not_taken_for_beads():
    noise = np.random.default_rng(1).normal(0, 0.02, (10, 64, 64))
    with pytest.raises(WrongUsage, match="do not stand out"):
        find_shadows(noise, n_beads=6, radius_px=3.4)


class Bench:
    """The simulated scene before a perfect counter of photons above the plan's lowest threshold."""

    def __init__(self, *, seed=0, **misplaced):
        self.scene = Gantry(seed=1, geometry=replace(GEOMETRY, **misplaced))
        self.rng = np.random.default_rng(seed)
        self.detector = self.gantry = self

    def samples(self):
        return ("vials", "beads")

    def tell(self, text):
        assert self.scene.line(text) == "OK", text

    def select_sample(self, name):
        self.tell(f"SAMP {name or 'OUT'}")

    def select_source(self, name):
        self.tell(f"SOUR {name}")

    def set_tube(self, kvp, current_ma):
        self.tell(f"TUBE {kvp} {current_ma}")

    def beam(self, is_on):
        self.tell(f"BEAM {'ON' if is_on else 'OFF'}")

    def rotate_to(self, angle_rad):
        self.tell(f"ROT {math.degrees(angle_rad):.9g}")
        assert self.scene.line("BUSY?") == "0"

    def frames(self, n_frames, exposure_s):
        photons, energies_kev = self.scene.photons(exposure_s)
        mean = photons[energies_kev > 18].sum(axis=0)
        for number in range(n_frames):
            counts = self.rng.poisson(0.9 * mean)[None].astype(np.uint16)
            yield Frame(counts=counts, thresholds=(1,), sequence=number, timestamp_ns=0, exposure_ns=10**9, run_id=1)


@pytest.fixture
def plan(monkeypatch):
    monkeypatch.setattr(step, "set_up_detector", lambda *_: None)  # this counter has no chip
    return with_beads(Plan(), n_views=60)


def with_beads(plan, **changes):
    beads = msgspec.structs.replace(plan.calibration.beads, **changes)
    return msgspec.structs.replace(plan, calibration=msgspec.structs.replace(plan.calibration, beads=beads))


def known(n_bad=40):
    """A calibration with some bad pixels."""
    planes = (8, 128, 128)
    pixel_class = np.zeros(planes[1:], np.uint8)
    pixel_class.ravel()[np.random.default_rng(4).choice(128 * 128, n_bad, replace=False)] = PixelClass.DEAD
    return Calibration(
        created="2026-01-01T00:00:00+00:00", software="0", device="d", chip_id="W1_A1", gain="HGM", is_csm=True,
        is_colour=True, bias_v=500.0, dacs={}, trim=np.zeros(planes, np.uint8), is_masked=np.zeros(planes, bool),
        pixel_class=pixel_class, target_dac=15.0, edges_before_dac=np.zeros(planes, np.float32),
        edges_after_dac=np.zeros(planes, np.float32), offset_dac=np.zeros(8), gain_dac_per_kev=np.ones(8), lines=(),
        thresholds_kev=(18.0, 33.0, 50.0, 75.0),
    )  # fmt: skip


def run(work):
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def test_the_step_finds_the_hidden_truth(plan):
    truth = replace(
        GEOMETRY, offset_u_mm=0.3, offset_v_mm=-0.2, roll_rad=0.01, tilt_v_rad=-0.015, source_to_detector_mm=251.0
    )
    hidden = {name: getattr(truth, name) for name in ("offset_u_mm", "offset_v_mm", "roll_rad", "tilt_v_rad")}
    bench = Bench(**hidden, source_to_detector_mm=251.0)
    found = run(step.geometry(bench, plan, known())).alignment
    assert bench.scene.line("BEAM?") == "OFF"
    assert bench.scene.line("SAMP?") == "OUT"
    assert found.geometry.offset_u_mm == pytest.approx(0.3, abs=0.1 * 0.11)
    assert found.geometry.offset_v_mm == pytest.approx(-0.2, abs=0.1 * 0.11)
    assert np.rad2deg(found.geometry.roll_rad - 0.01) == pytest.approx(0, abs=0.05)
    assert found.geometry.magnification == pytest.approx(truth.magnification, rel=3e-4)
    for name in found.parameters:
        error = getattr(found.geometry, name) - getattr(truth, name)
        assert abs(error) < 4 * found.standard_error(name), name
    assert found.residual_rms_px < 0.04
    points = np.random.default_rng(1).uniform(-4, 4, (50, 3))
    angles = np.linspace(0, 6, 20)
    difference = found.geometry.views(angles).shadows_px(points) - truth.views(angles).shadows_px(points)
    assert np.abs(difference).max() < 0.1


def test_beads_out_of_the_field_are_told(plan):
    with pytest.raises(WrongUsage, match="the plan's phantom has 12") as refused:
        run(step.geometry(Bench(offset_v_mm=2.0), with_beads(plan, n_views=20), known()))
    assert "field" in refused.value.hint


def test_a_missing_phantom_is_told(plan):
    with pytest.raises(WrongUsage, match="no 'balls'"):
        run(step.geometry(Bench(), with_beads(plan, sample="balls"), known()))


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("demo?roll_deg=x", "DEGREES"),
        ("demo?roll_deg=80", "roll_rad"),
        ("demo?source_to_object_mm=300", "object <= detector"),
        ("demo?tilt=3", "tilt_u_deg"),
    ],
)
def test_a_misplacement_that_cannot_be_is_refused(address, words):
    with pytest.raises(WrongUsage, match=words):
        simulated_device(address)


def test_the_phantom_of_the_scene_is_the_one_of_the_plan():
    beads, plan = beads_phantom().solids[0].inserts, Plan().calibration.beads
    low, high = (np.array(bead.centre_mm) for bead in (beads[0], beads[-1]))
    assert (plan.n_beads, plan.diameter_mm) == (len(beads), 2 * beads[0].half_mm[0])
    assert np.linalg.norm(high - low) == pytest.approx(plan.length_mm)
    heights = sorted(bead.centre_mm[2] for bead in beads)
    assert min(np.diff(heights)) > plan.diameter_mm  # no two tracks meet
