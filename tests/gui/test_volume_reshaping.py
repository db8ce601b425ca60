"""Drawings taken hold of: they go where they are taken, keep their shape, and come back when they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gui.volume.annotations import Annotation, Tool, area_mm2
from gui.volume.marks import outlines_of
from gui.volume.reshaping import ALL, dragged, handles_mm, moved, reshaped
from gui.volume.slicing import Cut, Orientation, along, tilted
from reconstruction.volume import Grid

GRID = Grid(shape=(40, 40, 40), voxel_mm=0.5)
CUTS = {
    "axial": along(Orientation.AXIAL, (0.0, 0.0, 1.0)),
    "sagittal": along(Orientation.SAGITTAL, (0.5, 0.0, 0.0)),
    "slanted": tilted((1.0, 0.0, 0.0), 0.4, 0.7),
}
FLAT = {
    Tool.SPHERE: ((0.0, 0.0), (2.0, 0.0)), Tool.CYLINDER: ((0.0, 0.0), (0.0, 2.0)),
    Tool.BOX: ((-1.0, -2.0), (2.0, 1.0)),
    Tool.FREEHAND: ((0.0, 0.0), (3.0, 0.0), (1.0, 2.0)), Tool.AREA: ((0.0, 0.0), (3.0, 0.0), (1.0, 2.0)),
    Tool.RULER: ((0.0, 0.0), (3.0, 1.0)), Tool.ANGLE: ((2.0, 0.0), (0.0, 0.0), (0.0, 2.0)),
}  # fmt: skip


def drawn(tool: Tool, cut: Cut) -> Annotation:
    points = tuple(cut.point_mm(*at) for at in FLAT[tool])
    return Annotation(tool=tool, name="it", points_mm=points, right=cut.right, up=cut.up, thickness_mm=1.0)


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("tool", Tool)
def test_each_handle_goes_where_it_is_taken_and_comes_back(tool: Tool, cut: Cut) -> None:
    drawing = drawn(tool, cut)
    for handle, at in enumerate(handles_mm(drawing, cut)):
        to = (float(at[0]) + 0.7, float(at[1]) + 0.4)
        other = dragged(drawing, cut, handle, tuple(at), to)
        assert other != drawing
        if tool not in (Tool.SPHERE, Tool.CYLINDER):
            where = handles_mm(other, cut)[handle]
            assert min(np.hypot(*(handles_mm(other, cut) - to).T)) < 1e-9, "a handle stands where it was taken"
            back = dragged(other, cut, handle, tuple(where), tuple(at))
            np.testing.assert_allclose(back.outline_mm(), drawing.outline_mm(), atol=1e-9)
        else:
            assert other.radius_mm == pytest.approx(np.hypot(*np.subtract(to, FLAT[tool][0])))
        np.testing.assert_allclose(other.flat_mm()[:, 2], drawing.flat_mm()[:, 2], atol=1e-9)


@pytest.mark.parametrize("tool", Tool)
def test_a_drawing_that_is_moved_keeps_its_shape(tool: Tool) -> None:
    cut = CUTS["slanted"]
    drawing = drawn(tool, cut)
    other = dragged(drawing, cut, ALL, (0.0, 0.0), (1.5, -0.5))
    np.testing.assert_allclose(other.outline_mm() - drawing.outline_mm(), [[1.5, -0.5]] * len(other.outline_mm()))
    back = moved(other, tuple(np.subtract(drawing.points_mm[0], other.points_mm[0])))
    np.testing.assert_allclose(back.points_mm, drawing.points_mm, atol=1e-12)


def test_a_box_keeps_its_opposite_corner_and_an_area_grows_with_its_frame() -> None:
    cut = CUTS["axial"]
    box = reshaped(drawn(Tool.BOX, cut), 2, cut.point_mm(5.0, 4.0))
    assert np.array(box.points_mm)[:, :2].min(axis=0) == pytest.approx((-1.0, -2.0))
    assert np.array(box.points_mm)[:, :2].max(axis=0) == pytest.approx((5.0, 4.0))
    area = drawn(Tool.AREA, cut)
    assert area_mm2(reshaped(area, 2, cut.point_mm(6.0, 4.0))) == pytest.approx(4 * area_mm2(area))


def test_a_sphere_is_resized_on_any_slice_through_it() -> None:
    cut = CUTS["axial"]
    sphere = drawn(Tool.SPHERE, cut)
    above = replace(cut, centre_mm=(0.0, 0.0, 2.2))
    (handle,) = handles_mm(sphere, above)
    assert handle[0] == pytest.approx(np.sqrt(2.0**2 - 1.2**2))
    assert reshaped(sphere, 0, above.point_mm(1.6, 0.0)).radius_mm == pytest.approx(2.0)


def test_nothing_shrinks_to_nothing() -> None:
    cut = CUTS["axial"]
    for tool in Tool:
        drawing = drawn(tool, cut)
        fixed = {Tool.BOX: (2.0, 1.0), Tool.FREEHAND: (3.0, 2.0), Tool.AREA: (3.0, 2.0), Tool.RULER: (3.0, 1.0)}
        to = fixed.get(tool, (0.0, 0.0))
        if tool is not Tool.ANGLE:
            assert reshaped(drawing, 0, cut.point_mm(*to)) == drawing


def test_only_the_chosen_one_shows_handles_and_lines_are_found() -> None:
    cut = CUTS["axial"]
    box, ruler = drawn(Tool.BOX, cut), replace(drawn(Tool.RULER, cut), name="other")
    first, second = outlines_of(cut, (box, ruler), GRID, "it")
    assert first.handles_mm is not None
    assert second.handles_mm is None
    assert first.nearest_handle((2.05, 1.0), 0.1) == 2
    assert first.nearest_handle((1.0, 1.0), 0.1) is None
    assert first.is_on_line((1.0, 1.05), 0.1)
    assert not first.is_on_line((1.0, 0.5), 0.1)
    assert first.holds((0.0, 0.0))
    assert not first.holds((3.0, 0.0))
    assert not second.holds((1.5, 0.5)), "a line has no inside"
