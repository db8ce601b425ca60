"""Chords through solids: laws of geometry, and a ray march that knows nothing of quadratics."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.attenuation import material
from calibration.geometry import Geometry
from firmware_iface.errors import WrongUsage
from sim.phantom import Box, Cylinder, Phantom, Sphere, cell, path_lengths_mm, vials_phantom

WATER, PMMA, ALUMINIUM = material("water"), material("pmma"), material("aluminium")
GEOMETRY = Geometry(source_to_detector_mm=250, source_to_object_mm=200, pitch_mm=0.44, rows=32, cols=32)
coordinate = st.floats(-8, 8)


def chord(phantom, start, end):
    """Path in each material along one ray."""
    return path_lengths_mm(phantom, np.array(start), np.array([[end]], dtype=float))[:, 0, 0]


def view(phantom, angle_rad):
    pose = GEOMETRY.views(angle_rad)
    col, row = np.arange(32) - 15.5, np.arange(32) - 15.5
    pixels = pose.detector_mm[0] + col[None, :, None] * pose.u_mm[0] + row[:, None, None] * pose.v_mm[0]
    return path_lengths_mm(phantom, pose.source_mm[0], pixels)


@settings(deadline=None)  # the first call compiles
@given(offset=coordinate)
def test_chord_of_a_cylinder(offset):
    phantom = Phantom(solids=(Cylinder(material=WATER, radius_mm=5.0, height_mm=10.0),))
    expected = 2 * math.sqrt(max(0.0, 25 - offset**2))
    assert chord(phantom, (offset, -100, 0), (offset, 100, 0)) == pytest.approx(expected, abs=1e-3)


@settings(deadline=None)  # the first call compiles
@given(direction=st.tuples(coordinate, coordinate, coordinate), middle=st.tuples(coordinate, coordinate, coordinate))
def test_chord_of_a_sphere_from_anywhere(direction, middle):
    direction, middle = np.array(direction), np.array(middle)
    if np.linalg.norm(direction) < 0.1:
        return
    unit = direction / np.linalg.norm(direction)
    centre = np.array([1.0, -2.0, 0.5])
    phantom = Phantom(solids=(Sphere(centre_mm=tuple(centre), material=WATER, radius_mm=4.0),))
    away = np.linalg.norm(np.cross(centre - middle, unit))
    expected = 2 * math.sqrt(max(0.0, 16 - away**2))
    assert chord(phantom, middle - 50 * unit, middle + 50 * unit) == pytest.approx(expected, abs=2e-3)


def test_chord_of_a_slab_is_its_thickness_over_the_cosine():
    phantom = Phantom(solids=(Box(material=WATER, size_mm=(100, 10, 100)),))
    for tilt in (0.0, 0.3, -0.5):
        length = chord(phantom, (-60 * math.tan(tilt), -60, 0), (60 * math.tan(tilt), 60, 0))
        assert length == pytest.approx(10 / math.cos(tilt), rel=1e-5)


def test_rays_along_the_axis_and_past_the_ends():
    phantom = Phantom(solids=(Cylinder(material=WATER, radius_mm=5.0, height_mm=10.0),))
    assert chord(phantom, (1, 1, -50), (1, 1, 50)) == pytest.approx(10)
    assert chord(phantom, (6, 0, -50), (6, 0, 50)) == 0
    assert chord(phantom, (-50, 0, 5.1), (50, 0, 5.1)) == 0
    assert chord(phantom, (0, 0, 0), (50, 0, 0)) == pytest.approx(5)  # a ray that starts inside
    assert chord(phantom, (-50, 0, 0), (-10, 0, 0)) == 0  # and one that ends before


def test_a_centred_cylinder_looks_the_same_from_every_side():
    phantom = Phantom(solids=(Cylinder(material=WATER, radius_mm=5.0, height_mm=16.0),))
    reference = view(phantom, 0.0)
    assert reference.max() > 9.9
    for angle in (0.4, 2.0, -3.0):
        np.testing.assert_allclose(view(phantom, angle), reference, atol=1e-4)


def test_inserts_replace_and_do_not_add():
    """Whatever stands in the body, all materials together take the body's own chord."""
    vials = vials_phantom()
    (body,) = vials.solids
    empty = Phantom(solids=(Cylinder(material=PMMA, radius_mm=body.half_mm[0], height_mm=2 * body.half_mm[2]),))
    for angle in (0.0, 1.1):
        np.testing.assert_allclose(view(vials, angle).sum(axis=0), view(empty, angle)[0], atol=1e-3)


def test_nested_inserts_against_a_ray_march():
    core = Sphere(centre_mm=(0.5, 0, 0.2), material=ALUMINIUM, radius_mm=1.0)
    vial = Cylinder(centre_mm=(0.5, 0.3, 0), material=WATER, radius_mm=2.0, height_mm=5.0, inserts=(core,))
    phantom = Phantom(solids=(Box(material=PMMA, size_mm=(8, 7, 6), inserts=(vial,)),))
    rng = np.random.default_rng(3)
    for _ in range(20):
        start, end = rng.normal(size=(2, 3)) * 3 + np.array([[0, -15, 0], [0, 15, 0]])
        t = (np.arange(40_000) + 0.5) / 40_000
        x, y, z = (start + t[:, None] * (end - start)).T
        in_core = (x - 0.5) ** 2 + y**2 + (z - 0.2) ** 2 < 1
        in_vial = ((x - 0.5) ** 2 + (y - 0.3) ** 2 < 4) & (abs(z) < 2.5) & ~in_core
        in_box = (abs(x) < 4) & (abs(y) < 3.5) & (abs(z) < 3) & ~in_vial & ~in_core
        marched = np.array([in_box.mean(), in_vial.mean(), in_core.mean()]) * np.linalg.norm(end - start)
        np.testing.assert_allclose(chord(phantom, start, end), marched, atol=3e-3)


def test_an_insert_that_sticks_out_is_refused():
    vial = Cylinder(centre_mm=(4.5, 0, 0), material=WATER, radius_mm=1.0, height_mm=5.0)
    with pytest.raises(ValueError, match=r"reaches 5\.5 mm along x"):
        Cylinder(material=PMMA, radius_mm=5.0, height_mm=5.0, inserts=(vial,))
    with pytest.raises(ValueError, match="above 0"):
        Sphere(material=WATER, radius_mm=0.0)


def test_the_demo_phantom_is_what_its_labels_state():
    phantom = vials_phantom()
    stated = [(insert.material, insert.concentration_mg_ml) for insert in phantom.inserts]
    assert len(stated) == len(set(stated)) == 7
    assert phantom.materials[0].name == "pmma"
    for insert, matter in zip(phantom.inserts, phantom.materials[1:], strict=True):
        above = view(phantom, 0.0)[phantom.materials.index(matter)]
        assert above.max() == pytest.approx(2 * insert.radius_mm, rel=0.05)
        assert math.hypot(insert.x_mm, insert.y_mm) + insert.radius_mm < 5.0
    iodine = phantom.materials[1 + stated.index(("iodine", 18.0))]
    assert dict(iodine.mass_fractions)[53] * iodine.density_g_cm3 == pytest.approx(0.018)


def test_a_cell_fills_the_field_and_unknown_ones_are_refused():
    lengths = view(cell("iodine", 10.0), 0.0)
    assert len(lengths) == 1
    assert lengths.min() >= 10 * (1 - 1e-6)
    assert lengths.max() < 10.05
    with pytest.raises(WrongUsage, match="gadolinium"):
        cell("unobtainium")
