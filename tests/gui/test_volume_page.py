"""The page Volume, offscreen: files, crosshair, tools, undo, pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pyqtgraph.Qt import QtCore, QtWidgets
from pytestqt.qtbot import QtBot

from gui import theme
from gui.session import Session
from gui.volume.annotations import Tool, load, side_file
from gui.volume.desk import PANES
from gui.volume.page import VolumePage
from gui.volume.slice_pane import MARGIN_PX, bar_mm
from gui.volume.slicing import Slab, point_of
from gui.volume.views import Shown, View
from tests.gui.volume_samples import GRID, materials, saved

Opened = Callable[[], VolumePage]


def settled(qtbot: QtBot, page: VolumePage) -> None:
    """Go on until all that was asked is answered and shown."""
    quiet = 0

    def beat() -> bool:
        nonlocal quiet
        page.session.beat()
        page.refresh()
        quiet = quiet + 1 if page.desk.is_idle else 0
        return quiet > 2

    qtbot.waitUntil(beat, timeout=30_000)


@pytest.fixture
def empty(qtbot: QtBot, session: Session) -> VolumePage:
    page = VolumePage(session)
    qtbot.addWidget(page)
    page.resize(1000, 700)
    page.show()
    page.refresh()
    return page


@pytest.fixture
def page(qtbot: QtBot, empty: VolumePage, tmp_path: Path) -> VolumePage:
    for path in saved(tmp_path):
        empty.open_file(path)
    settled(qtbot, empty)
    assert not empty.session.failures
    return empty


def scene_point(page: VolumePage, pane: str, right_mm: float, up_mm: float) -> QtCore.QPoint:
    view = page.panes.panes[pane].view
    return view.mapViewToScene(QtCore.QPointF(right_mm, up_mm)).toPoint()


def drag(qtbot: QtBot, page: VolumePage, pane: str, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Drag in a pane, in mm, with as many moves as a hand makes."""
    viewport = page.panes.panes[pane].viewport()
    a, b = scene_point(page, pane, *start), scene_point(page, pane, *end)
    button = QtCore.Qt.MouseButton.LeftButton
    qtbot.mouseMove(viewport, a)
    qtbot.mousePress(viewport, button, pos=a)
    for n in range(1, 7):
        qtbot.wait(8)
        at = a + (b - a) * n / 6
        event = _moved(at, viewport)
        QtWidgets.QApplication.sendEvent(viewport, event)
    qtbot.mouseRelease(viewport, button, pos=b)


def _moved(at: QtCore.QPoint, viewport: QtWidgets.QWidget):
    from pyqtgraph.Qt import QtGui

    kind, button = QtCore.QEvent.Type.MouseMove, QtCore.Qt.MouseButton
    where = QtCore.QPointF(at)
    everywhere = QtCore.QPointF(viewport.mapToGlobal(at))
    return QtGui.QMouseEvent(
        kind, where, everywhere, button.NoButton, button.LeftButton, QtCore.Qt.KeyboardModifier.NoModifier
    )


def test_an_empty_page_says_why_everything_is_grey(empty: VolumePage) -> None:
    for widget in (
        *(empty.slab, empty.crosshair, empty.reset, empty.picture, empty.export, empty.looks.auto, empty.presets),
        *(empty.undo_button, empty.redo_button, empty.measure.tools[Tool.SPHERE], empty.measure.copy),
    ):
        assert not widget.isEnabled()
        assert "Not now" in widget.toolTip()
    assert "No volume yet" in empty.panes.panes["axial"].overlay.note


def test_every_control_says_what_it_does(page: VolumePage) -> None:
    kinds = (QtWidgets.QAbstractButton, QtWidgets.QComboBox, QtWidgets.QAbstractSpinBox, QtWidgets.QSlider)
    inner = {"ScrollLeftButton", "ScrollRightButton", "qt_spinbox_lineedit"}
    for kind in kinds:
        for widget in page.findChildren(kind):
            if widget.objectName() not in inner and not isinstance(widget.parent(), QtWidgets.QTableWidget):
                assert widget.toolTip(), widget


def test_files_become_the_sessions_volumes(page: VolumePage, tmp_path: Path) -> None:
    state = page.session.state
    assert state.materials is not None
    assert state.bins is not None
    assert (state.materials_path, state.bins_path) == (tmp_path / "m.h5", tmp_path / "b.h5")
    assert page.desk.sigma is not None
    assert set(page.desk.pictures) == {"axial", "coronal", "sagittal", "slanted"}


def test_a_file_that_is_no_volume_is_told(qtbot: QtBot, empty: VolumePage, tmp_path: Path) -> None:
    (tmp_path / "x.h5").write_text("no")
    empty.open_file(tmp_path / "x.h5")
    settled(qtbot, empty)
    (failure,) = empty.session.failures
    assert "no readable volume file" in failure.sentence
    assert failure.hint


def test_a_drag_takes_the_crosshair_along(qtbot: QtBot, page: VolumePage) -> None:
    z_mm = page.desk.point_mm[2]
    drag(qtbot, page, "axial", (0.0, -2.0), (2.5, -4.0))
    assert page.desk.point_mm == pytest.approx((2.5, -4.0, z_mm), abs=0.1)
    settled(qtbot, page)
    assert page.panes.panes["sagittal"].painted is page.desk.pictures["sagittal"]
    assert page.desk.pictures["sagittal"].cut.centre_mm[0] == pytest.approx(2.5, abs=0.3)


def test_keys_and_wheel_go_through_the_slices(qtbot: QtBot, page: VolumePage) -> None:
    key, pane = QtCore.Qt.Key, page.panes.panes["coronal"]
    page.desk.go_to(point_of(GRID, (6, 5, 7)))
    qtbot.keyClick(pane, key.Key_Up)
    assert page.desk.point_mm == pytest.approx(point_of(GRID, (6, 6, 7)))
    qtbot.keyClick(pane, key.Key_PageUp)
    assert page.desk.point_mm == pytest.approx(point_of(GRID, (6, 15, 7)))
    pane.turn_wheel(-60)
    pane.turn_wheel(-60)
    assert page.desk.point_mm == pytest.approx(point_of(GRID, (6, 14, 7)))
    page._reset()
    assert page.desk.point_mm == pytest.approx(point_of(GRID, (5, 7, 9)))


def test_zoom_and_place_are_one_for_all(page: VolumePage) -> None:
    axial = page.panes.panes["axial"]
    axial.look_at((2.0, -3.0), 0.5 * axial.mm_per_px())
    axial.moved.emit()
    coronal, sagittal = page.panes.panes["coronal"], page.panes.panes["sagittal"]
    for pane in (coronal, sagittal):
        assert pane.mm_per_px() == pytest.approx(axial.mm_per_px(), rel=1e-3)
    assert coronal.centre_mm()[0] == pytest.approx(2.0, abs=1e-6)
    assert sagittal.centre_mm()[0] == pytest.approx(-3.0, abs=1e-6)


def test_a_sphere_is_drawn_measured_kept_and_undone(qtbot: QtBot, page: VolumePage, tmp_path: Path) -> None:
    page.side.setCurrentIndex(2)
    qtbot.mouseClick(page.measure.tools[Tool.SPHERE], QtCore.Qt.MouseButton.LeftButton)
    rod = point_of(GRID, (6, 5.5, 12))
    page.desk.go_to(rod)
    settled(qtbot, page)
    drag(qtbot, page, "axial", rod[:2], (rod[0] + 0.9, rod[1]))
    settled(qtbot, page)
    (drawing,) = page.desk.drawings
    assert drawing.tool is Tool.SPHERE
    assert drawing.radius_mm == pytest.approx(0.9, abs=0.1)
    figures = {one.channel: one for one in page.desk.figures[drawing.name].channels}
    assert figures["iodine"].mean == pytest.approx(5.0, rel=0.01)
    assert load(side_file(tmp_path / "m.h5")) == (drawing,)
    assert page.measure.table.item(0, 0).text() == "sphere 1"
    page.measure.copy.click()
    assert "sphere 1,sphere," in QtWidgets.QApplication.clipboard().text()
    page.undo_button.click()
    settled(qtbot, page)
    assert page.desk.drawings == ()
    assert load(side_file(tmp_path / "m.h5")) == ()
    page.redo_button.click()
    assert page.desk.drawings == (drawing,)


def test_a_region_is_dragged_and_resized_and_figures_follow(qtbot: QtBot, page: VolumePage, tmp_path: Path) -> None:
    x_mm, y_mm, _ = rod = point_of(GRID, (6, 5.5, 12))
    page.desk.go_to(point_of(GRID, (6, 12, 17)))
    cut = page.desk.cut_of("axial")
    first = page.desk.draw(Tool.SPHERE, [(x_mm - 3.0, y_mm), (x_mm - 2.2, y_mm)], cut, 0.0)
    page.side.setCurrentIndex(2)
    settled(qtbot, page)

    def iodine() -> float:
        return {one.channel: one for one in page.desk.figures[first.name].channels}["iodine"].mean

    assert iodine() == pytest.approx(0.0)
    drag(qtbot, page, "axial", (x_mm - 3.0, y_mm + 0.8), (x_mm, y_mm + 0.8))
    settled(qtbot, page)
    assert page.desk.drawings[0].points_mm[0] == pytest.approx((*rod[:2], cut.centre_mm[2]), abs=0.05)
    assert page.desk.drawings[0].radius_mm == pytest.approx(first.radius_mm)
    assert iodine() == pytest.approx(5.0, rel=0.01)
    assert page.measure.detail.item(2, 1).text() == "5.00"
    measured = page.measure.spectrum._measured.getData()[1]
    page.desk.undo()
    settled(qtbot, page)
    assert page.desk.drawings == (first,), "a whole drag is one edit"
    assert (page.measure.spectrum._measured.getData()[1] < measured).all()
    drag(qtbot, page, "axial", (x_mm - 2.2, y_mm), (x_mm - 1.0, y_mm))
    settled(qtbot, page)
    assert page.desk.drawings[0].radius_mm == pytest.approx(2.0, abs=0.06)
    assert load(side_file(tmp_path / "m.h5")) == page.desk.drawings


def test_an_angle_takes_three_clicks(page: VolumePage) -> None:
    page.panes.choose_tool(Tool.ANGLE)
    pane = page.panes.panes["axial"]
    for at in ((2.0, -2.0), (1.0, -2.0), (1.0, -1.0)):
        pane.click(at)
    (drawing,) = page.desk.drawings
    assert drawing.tool is Tool.ANGLE
    page._put_away()
    assert pane.tool is None


def test_drawings_come_back_with_the_volume(qtbot: QtBot, page: VolumePage, session: Session) -> None:
    page.desk.draw(Tool.RULER, [(0.0, 0.0), (1.0, 0.0)], page.desk.cut_of("axial"), 0.0)
    settled(qtbot, page)
    again = VolumePage(session)
    qtbot.addWidget(again)
    settled(qtbot, again)
    assert again.desk.drawings == page.desk.drawings


def test_a_side_file_that_cannot_be_read_is_not_written_over(qtbot: QtBot, empty: VolumePage, tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    side_file(path).write_text("precious")
    empty.open_file(path)
    settled(qtbot, empty)
    assert "annotations" in empty.session.failures[0].sentence
    empty.desk.draw(Tool.RULER, [(0.0, 0.0), (1.0, 0.0)], empty.desk.cut_of("axial"), 0.0)
    settled(qtbot, empty)
    assert side_file(path).read_text() == "precious"


def test_looks_are_changed_undone_and_kept(qtbot: QtBot, page: VolumePage) -> None:
    before, row = page.desk.material_looks, page.looks.rows.rows[2]
    row.opacity.setValue(40)
    row.high.setValue(20.0)
    row.visible.setChecked(False)
    look = page.desk.material_looks[2]
    assert (look.opacity, look.is_visible) == (0.4, False)
    assert look.high_g_cm3 == pytest.approx(0.02)
    page.desk.keep_preset("faint")
    page.desk.undo()  # what was done within a moment is one edit
    assert page.desk.material_looks == before
    page.desk.use_preset("faint")
    assert page.desk.material_looks[2] == look
    saved_settings = page.save()
    page.desk.forget_preset("faint")
    page.restore(saved_settings)
    assert page.desk.presets["faint"][2] == look


def test_odd_settings_are_left_alone(page: VolumePage) -> None:
    page.restore({"presets": 3, "splitter": ["x"], "tab": 99, "crosshair": "yes"})
    assert page.side.currentIndex() == 0


def test_hiding_a_material_takes_its_colour_away(qtbot: QtBot, page: VolumePage) -> None:
    page.desk.go_to(point_of(GRID, (6, 5, 12)))
    settled(qtbot, page)
    coloured = page.desk.pictures["axial"].picture[5, 12]
    page.looks.rows.rows[2].visible.setChecked(False)
    settled(qtbot, page)
    plain = page.desk.pictures["axial"].picture[5, 12]
    assert np.ptp(coloured) > 50
    assert np.ptp(plain) == 0


@pytest.mark.parametrize("shown", [Shown.BIN, Shown.MONO, Shown.K_EDGE])
def test_views_are_shown_in_their_unit(qtbot: QtBot, page: VolumePage, shown: Shown) -> None:
    page.looks.shown.setCurrentIndex(list(Shown).index(shown))
    page.looks.hu.setChecked(shown is not Shown.K_EDGE)
    settled(qtbot, page)
    assert not page.session.failures
    assert page.desk.unit == ("1/mm" if shown is Shown.K_EDGE else "HU")
    (row,) = page.desk.overlay_of("axial", has_legend=True).legend
    assert row.high.endswith(page.desk.unit)
    assert page.looks.stack.currentWidget() is page.looks.grey


def test_without_materials_the_bins_are_shown(qtbot: QtBot, empty: VolumePage, tmp_path: Path) -> None:
    empty.open_file(saved(tmp_path)[1])
    settled(qtbot, empty)
    assert empty.desk.view == View(shown=Shown.BIN)
    assert empty.desk.pictures
    model = empty.looks.shown.model()
    item = model.item(list(Shown).index(Shown.MONO))  # pyright: ignore[reportAttributeAccessIssue]
    assert not item.isEnabled()
    assert "no volume of materials" in item.toolTip()


def test_slabs(qtbot: QtBot, page: VolumePage) -> None:
    page.slab.setValue(1.6)
    page.slab_kind.setCurrentIndex(1)
    settled(qtbot, page)
    cut = page.desk.pictures["axial"].cut
    assert (cut.thickness_mm, cut.slab) == (1.6, Slab.MAXIMUM)
    assert "maximum of 1.5 mm" in page.panes.panes["axial"].overlay.title


def test_the_slanted_cut_turns_by_angles_and_handles(qtbot: QtBot, page: VolumePage) -> None:
    page.panes.azimuth.setValue(0.0)
    page.panes.tilt.setValue(30.0)
    assert np.degrees(page.desk.slant_rad) == pytest.approx((0.0, 30.0))
    settled(qtbot, page)
    pane = page.panes.panes["sagittal"]
    handle = pane._handles_mm()[1]
    x, y = pane.overlay.slant_mm[0]  # pyright: ignore[reportOptionalSubscript]
    turn = np.radians(15)
    off = np.array(handle) - (x, y)
    end = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ off + (x, y)
    drag(qtbot, page, "sagittal", handle, (float(end[0]), float(end[1])))
    assert np.degrees(page.desk.slant_rad[1]) == pytest.approx(45.0, abs=3.0)


def test_the_cursor_tells_what_is_under_the_mouse(qtbot: QtBot, page: VolumePage) -> None:
    page.side.setCurrentIndex(1)
    rod = point_of(GRID, (6, 5, 12))
    page.desk.go_to(rod)
    settled(qtbot, page)
    page.panes.panes["axial"].hovered.emit(*rod[:2])
    settled(qtbot, page)
    table = page.readout.table
    texts = {table.item(n, 0).text(): table.item(n, 1).text() for n in range(table.rowCount())}
    assert texts["iodine"] == "5.000 ± 0.40"
    assert "voxel z 6, y 5, x 12" in page.readout.where.text()
    assert page.readout.plot.isVisible()


def test_histograms_are_shown(qtbot: QtBot, page: VolumePage) -> None:
    page.measure.across.setCurrentText("iodine")
    settled(qtbot, page)
    assert page.desk.histogram[0] is not None
    page.measure.upwards.setCurrentText("water")
    settled(qtbot, page)
    assert page.measure._map.isVisible()


def test_pictures_are_as_large_as_asked(page: VolumePage, tmp_path: Path) -> None:
    page.picture.factor = 3
    image = page.picture.image("coronal")
    pane = page.panes.panes["coronal"]
    assert (image.width(), image.height()) == (3 * pane.width(), 3 * pane.height())
    page.picture.save("all panes", tmp_path / "all.png")
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")
    page.picture.copy_all()
    assert QtWidgets.QApplication.clipboard().image().width() == 3 * page.panes.width()


def test_a_picture_shows_the_volume_its_scale_and_its_legend(page: VolumePage) -> None:
    from PIL import Image

    page.picture.factor = 1
    image = page.picture.image("axial")
    image.save(str(page.session.state.folder / "a.png"))
    pixels = np.asarray(Image.open(page.session.state.folder / "a.png").convert("RGB")).astype(int)
    orange = (pixels[..., 0] > 120) & (pixels[..., 2] < 90) & (pixels[..., 0] - pixels[..., 2] > 60)
    assert orange.sum() > 200  # the rod of iodine
    bar = pixels[-16:-9, 12:60]
    assert (bar.min(axis=-1) > 240).any()  # the scale bar
    assert orange[-80:, -250:].any()  # the legend


@pytest.mark.parametrize("factor", [1, 3])
def test_a_scale_bar_is_as_long_as_it_says_beside_a_body_of_known_size(
    qtbot: QtBot, page: VolumePage, factor: int
) -> None:
    """The rod of iodine is 2.5 mm wide, whatever the zoom and the size of the picture."""
    page.desk.show_crosshair(False)
    page.panes.lines.setChecked(False)
    page.desk.go_to(point_of(GRID, (5, 5, 12)))
    settled(qtbot, page)
    axial = page.panes.panes["axial"]
    image = page.panes.image("axial", factor)
    pixels = [[image.pixelColor(x, y) for x in range(image.width())] for y in range(image.height())]
    is_rod = [each.red() - each.blue() > 100 for each in pixels[scene_point(page, "axial", 3.25, -3.0).y() * factor]]
    first, end = is_rod.index(True), len(is_rod) - is_rod[::-1].index(True)
    mm_per_px = 2.5 / (end - first)
    foot = pixels[image.height() - (MARGIN_PX + 2) * factor]
    is_white = [min(each.red(), each.green(), each.blue()) > 200 for each in foot]
    bar = is_white[is_white.index(True) :]  # from the left; a direction and the legend stand in the same row
    length_px = bar.index(False)
    told_mm = bar_mm(axial.mm_per_px(), axial.width())
    edge_mm = factor * mm_per_px  # its dark edge is as wide as a pixel of the screen
    read_mm = told_mm / (end - first)  # and the rod's width is read to a pixel
    assert length_px * mm_per_px == pytest.approx(told_mm, abs=2 * edge_mm + read_mm)


@pytest.mark.parametrize("name", PANES)
def test_one_pane_can_be_large(qtbot: QtBot, page: VolumePage, name: str) -> None:
    page.panes.enlarge(name)
    assert [each for each in PANES if page.panes.panes[each].isVisible()] == [name]
    settled(qtbot, page)
    assert page.desk.seen == {name}
    page._reset()
    settled(qtbot, page)
    assert page.panes.panes[name].painted is not None
    page.panes.enlarge(name)
    assert page.panes.panes["axial"].isVisible()
    qtbot.wait(20)


def test_a_volume_in_memory_is_shown_and_others_replace_it(qtbot: QtBot, empty: VolumePage) -> None:
    empty.session.change(materials=materials())
    settled(qtbot, empty)
    assert "not saved yet" in empty.desk.name
    empty.session.change(materials=None)
    empty.refresh()
    assert empty.desk.grid is None
    assert not empty.picture.isEnabled()
    settled(qtbot, empty)
    assert empty.panes.panes["axial"].painted is None


def test_restyle(page: VolumePage) -> None:
    page.restyle()


def test_three_dimensions_are_made_when_somebody_looks(qtbot: QtBot, page: VolumePage) -> None:
    assert page.solid.scene is None
    page.places.setCurrentWidget(page.solid)
    qtbot.waitUntil(lambda: page.refresh() or page.solid.scene is not None, timeout=20_000)
    scene = page.solid.scene
    assert scene is not None
    qtbot.waitUntil(lambda: page.refresh() or scene.grains is not None, timeout=20_000)
    page.session.change(materials=None)
    page.refresh()
    assert not scene.isVisible()


def test_without_materials_there_are_words_instead_of_three_dimensions(empty: VolumePage) -> None:
    empty.places.setCurrentWidget(empty.solid)
    empty.refresh()
    assert empty.solid.scene is None
    assert "need a volume of materials" in empty.solid._words.text()


def test_the_pane_that_the_keys_go_to_is_framed_and_pictures_are_not(qtbot: QtBot, page: VolumePage) -> None:
    page.activateWindow()
    axial, coronal = (page.panes.panes[name] for name in ("axial", "coronal"))
    framed = []
    for each in (axial, coronal):
        each.setFocus()
        qtbot.waitUntil(each.hasFocus)
        framed.append([pane.grab().toImage().pixelColor(1, 40).name() == theme.RING for pane in (axial, coronal)])
    assert framed == [[True, False], [False, True]]
    assert page.panes.image("coronal", 1).pixelColor(1, 40).name() != theme.RING
