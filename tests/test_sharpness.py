"""The sharpest slice stands around the true axis, or the search says that it cannot tell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.alignment import Alignment
from calibration.attenuation import material
from calibration.geometry import Geometry
from firmware_iface.errors import WrongUsage
from reconstruction.sharpness import sharpest_axis
from sim.phantom import Cylinder, Phantom, path_lengths_mm
from sim.photons import pixel_centres_mm

NOMINAL = Geometry(source_to_detector_mm=250.0, source_to_object_mm=200.0, pitch_mm=0.22, rows=17, cols=64)
ANGLES = np.linspace(0, 2 * np.pi, 120, endpoint=False)


def rods() -> Phantom:
    """Rods of other sizes at other places: nothing is alike after half a turn."""
    matter = material("pmma")
    places = ((2.1, 0.7, 0.9), (-1.6, 1.9, 0.5), (0.3, -2.4, 0.7), (-2.0, -1.0, 0.3))
    return Phantom(
        solids=tuple(
            Cylinder(centre_mm=(x, y, 0.0), material=matter, radius_mm=radius, height_mm=20.0)
            for x, y, radius in places
        )
    )


def seen(truth: Geometry, noise: float = 0.0) -> NDArray[np.float32]:
    views = []
    for angle in ANGLES:
        pose = truth.views([angle])
        lengths = path_lengths_mm(rods(), pose.source_mm[0], pixel_centres_mm(pose, truth))
        views.append(0.1 * lengths.sum(axis=0))
    exact = np.stack(views)
    return (exact + np.random.default_rng(1).normal(0, noise, exact.shape)).astype(np.float32)


def found(integrals: NDArray[np.float32], nominal: Geometry = NOMINAL) -> Alignment:
    work = sharpest_axis(integrals, ANGLES, nominal)
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


@pytest.mark.parametrize("offset_u_mm", [-0.7, 0.0, 0.51])
def test_a_hidden_offset_is_found_to_a_tenth_of_a_pixel(offset_u_mm: float) -> None:
    alignment = found(seen(replace(NOMINAL, offset_u_mm=offset_u_mm), noise=0.01))
    assert alignment.geometry.offset_u_mm == pytest.approx(offset_u_mm, abs=0.1 * NOMINAL.pitch_mm)
    assert alignment.standard_error("offset_u_mm") < 0.1 * NOMINAL.pitch_mm
    assert alignment.parameters == ("offset_u_mm",)


def test_rows_are_taken_from_the_source_s_plane() -> None:
    shifted = replace(NOMINAL, offset_v_mm=1.0)
    alignment = found(seen(replace(shifted, offset_u_mm=0.3)), shifted)
    assert alignment.geometry.offset_u_mm == pytest.approx(0.3, abs=0.1 * NOMINAL.pitch_mm)


def test_what_cannot_be_told_is_refused() -> None:
    with pytest.raises(WrongUsage, match="where the search ends"):
        found(seen(replace(NOMINAL, offset_u_mm=2.95)))
    with pytest.raises(WrongUsage):
        found(np.random.default_rng(3).normal(0, 1, (120, 17, 64)).astype(np.float32))
