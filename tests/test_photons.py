"""Photons on the detector: solid angles, Beer-Lambert with another library's cross sections, and directions."""

import math

import numpy as np
import pytest
import xraydb

from calibration.attenuation import linear_attenuation_per_mm, material
from calibration.geometry import Geometry
from sim.phantom import Phantom, Sphere, cell, path_lengths_mm
from sim.photons import expected_photons, flood, pixel_centres_mm

ENERGIES_KEV = np.array([20.0, 40.0, 80.0])
SPECTRUM = np.array([1e6, 3e6, 2e6])


def geometry(distance_mm=250.0, **changes):
    return Geometry(
        **{
            "source_to_detector_mm": distance_mm, "source_to_object_mm": 0.8 * distance_mm, "pitch_mm": 0.5,
            "rows": 20, "cols": 28, **changes,
        }
    )  # fmt: skip


def photons(phantom=None, at=None, angle_rad=0.0, mas=0.01):
    at = at or geometry()
    return expected_photons(phantom, at.views(angle_rad), SPECTRUM, ENERGIES_KEV, mas, at)


def test_the_detector_gets_its_solid_angle():
    a, b, d = 14 / 2, 10 / 2, 250.0
    solid_angle = 4 * math.atan(a * b / (d * math.sqrt(a * a + b * b + d * d)))
    expected = SPECTRUM * 0.01 * 1e6 * solid_angle  # 1 mm2 at 1 m is 1e-6 sr
    counted = photons()
    assert counted.dtype == np.float32
    np.testing.assert_allclose(counted.sum(axis=(1, 2), dtype=float), expected, rtol=1e-5)


def test_inverse_square_and_linear_in_mas():
    near, far = photons(), photons(at=geometry(500.0, pitch_mm=1.0))
    np.testing.assert_allclose(far, near, rtol=1e-5)  # twice as far, twice as large
    centre = np.s_[:, 9:11, 13:15]
    np.testing.assert_allclose(photons(at=geometry(500.0))[centre], near[centre] / 4, rtol=1e-4)
    np.testing.assert_allclose(photons(mas=0.03), 3 * near, rtol=1e-5)


def test_beer_lambert_behind_a_cell():
    at = geometry()
    u, v = 0.5 * (np.arange(28) - 13.5), 0.5 * (np.arange(20) - 9.5)
    length_mm = 10 * np.sqrt(1 + (u[None, :] ** 2 + v[:, None] ** 2) / 250**2)
    per_mm = 0.1 * np.array([xraydb.material_mu("H2O", energy * 1e3, density=1.0) for energy in ENERGIES_KEV])
    transmitted = photons(cell("water", 10.0), at) / photons(None, at)
    np.testing.assert_allclose(transmitted, np.exp(-per_mm[:, None, None] * length_mm), rtol=2e-3)


@pytest.mark.parametrize(
    ("centre_mm", "angle_rad", "is_high_row", "is_high_col"),
    [
        ((2.0, 0.0, 2.0), 0.0, True, True),  # columns run along +x at angle 0, rows along +z
        ((2.0, 0.0, -2.0), math.pi, False, False),
        ((0.0, 2.0, 2.0), math.pi / 2, True, True),  # a positive turn brings +y to the right
    ],
)
def test_shadows_fall_where_the_geometry_says(centre_mm, angle_rad, is_high_row, is_high_col):
    ball = Phantom(solids=(Sphere(centre_mm=centre_mm, material=material("aluminium"), radius_mm=1.0),))
    shadow = 1 - photons(ball, angle_rad=angle_rad)[0] / photons()[0]
    row, col = np.unravel_index(shadow.argmax(), shadow.shape)
    assert shadow.max() > 0.3
    assert (row > 9.5) == is_high_row
    assert (col > 13.5) == is_high_col


def test_one_view_at_a_time():
    at = geometry()
    with pytest.raises(ValueError, match="2 views"):
        expected_photons(None, at.views([0.0, 1.0]), SPECTRUM, ENERGIES_KEV, 1.0, at)


def test_flood_is_even():
    even = flood([3.0, 5.0], geometry())
    assert even.shape == (2, 20, 28)
    assert np.all(even[0] == 3)
    assert np.all(even[1] == 5)


def test_any_depth_is_beer_lamberts():
    """From nothing to blackness: exp(-mu l) in double precision, over the same chords."""
    at = geometry(rows=4, cols=400)
    ball = Phantom(solids=(Sphere(material=material("iron"), radius_mm=20.0),))
    pose = at.views(0.3)
    lengths_mm = path_lengths_mm(ball, pose.source_mm[0], pixel_centres_mm(pose, at))[0].astype(float)
    per_mm = linear_attenuation_per_mm("iron", ENERGIES_KEV).astype(np.float32)
    depth = per_mm.astype(float)[:, None, None] * lengths_mm
    open_beam, seen = photons(at=at, angle_rad=0.3), photons(ball, at, 0.3)
    is_deep = depth > 86
    assert is_deep.any()
    assert (lengths_mm == 0).any()
    np.testing.assert_allclose((seen / open_beam)[~is_deep], np.exp(-depth[~is_deep]), rtol=1e-5)
    assert (seen / open_beam)[is_deep].max() < 1e-36
