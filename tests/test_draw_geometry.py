"""The figure of conventions shows what it says."""

from __future__ import annotations

import numpy as np
import pytest

from reconstruction import draw_geometry
from reconstruction.draw_geometry import GEOMETRY, GRID, POINT_MM, draw
from reconstruction.scan_geometry import ScanGeometry


def test_the_drawn_point_is_the_voxel_that_is_named():
    z, y, x = GRID.axes_mm()
    np.testing.assert_array_equal(POINT_MM, [x[3], y[0], z[2]])


def test_the_shadow_is_where_hand_and_magnification_put_it():
    """15 mm to the right and 10 mm up, 85 mm from the source, on a detector 150 mm away with pixels of 10 mm."""
    magnification = 150 / (100 - 15)
    col, row = draw_geometry._shadow(ScanGeometry.circular(GEOMETRY, 0.0), POINT_MM)
    assert col == pytest.approx(3.5 + 15 * magnification / 10)
    assert row == pytest.approx(2.0 + 10 * magnification / 10)


def test_the_figure_is_drawn(tmp_path):
    assert draw(tmp_path / "figure.png").stat().st_size > 50_000
