"""The scene on a screen without OpenGL: it says so, draws on the processor, and answers mouse, keys and controls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pyqtgraph.Qt import QtCore, QtGui
from pytestqt.qtbot import QtBot

from gui.colour import GREY, Look
from gui.volume.camera import STANDARD_VIEWS, Camera
from gui.volume.overlay import Entry, box_edges, cube_faces, cube_middle, face_at, letter_size, near_edges
from gui.volume.scene import VolumeScene

LOOKS = (
    Look(material="water", colour=GREY, low_g_cm3=0.1, high_g_cm3=1.2),
    Look(material="iodine", colour=(0.7, 0.3, 0.0), low_g_cm3=0.001, high_g_cm3=0.01),
)


def rods(n: int = 24) -> NDArray[np.float32]:
    """Return a body of water with a rod of iodine at its +x side."""
    z, y, x = np.meshgrid(*[np.arange(n) - (n - 1) / 2] * 3, indexing="ij")
    values = np.zeros((2, n, n, n), dtype=np.float32)
    values[0][np.hypot(x, y) < 0.45 * n] = 1.0
    values[1][(np.hypot(x - 0.25 * n, y) < 0.12 * n) & (abs(z) < 0.3 * n)] = 0.01
    return values


@pytest.fixture
def scene(qtbot: QtBot) -> VolumeScene:
    told: list[str] = []
    scene = VolumeScene(lambda title, error: told.append(f"{title}: {error}"))
    qtbot.addWidget(scene)
    scene.resize(700, 500)
    scene.show()
    scene.told = told
    return scene


def until(qtbot: QtBot, scene: VolumeScene, holds: Callable[[], bool]) -> None:
    """Beat until something holds."""

    def look() -> bool:
        scene.refresh()
        return holds()

    qtbot.waitUntil(look, timeout=60_000)


@pytest.mark.parametrize(
    ("low_g_cm3", "high_g_cm3", "text"),
    [
        (0.00012345, 0.016, "0.12 to 16"),
        (0.0, 1.2, "0 to 1200"),
        (0.0008, 0.008, "0.8 to 8"),
        (0.0832, 1.2345, "83 to 1234"),
    ],
)
def test_legend_tells_what_a_colour_can(low_g_cm3: float, high_g_cm3: float, text: str) -> None:
    entry = Entry(name="gold", colour=GREY, low_g_cm3=low_g_cm3, high_g_cm3=high_g_cm3)
    assert entry.text == f"gold  {text} mg/mL"


def drawn(scene: VolumeScene) -> bool:
    return scene.grains is not None and not scene.view.hand.is_moving and scene.view.is_complete


def pixels(image: QtGui.QImage) -> NDArray[np.int_]:
    image = image.convertToFormat(QtGui.QImage.Format.Format_RGB888)
    rows = np.frombuffer(image.constBits(), dtype=np.uint8).reshape(image.height(), image.bytesPerLine())
    return rows[:, : 3 * image.width()].reshape(image.height(), image.width(), 3).astype(int)


def test_nothing_is_shown_before_a_volume_comes(scene: VolumeScene) -> None:
    assert not scene.has_gl, "the offscreen platform has no OpenGL"
    assert "Open a volume" in scene._words.text()
    assert "no volume" in scene.panel._picture.toolTip()


def test_volume_is_drawn_and_says_by_what(scene: VolumeScene, qtbot: QtBot) -> None:
    scene.show_volume(rods(), 0.1, LOOKS)
    until(qtbot, scene, lambda: drawn(scene))
    assert "processor: this screen has no OpenGL" in scene._words.text()
    picture = pixels(scene.view.grab().toImage())
    redness = picture[..., 0] - picture[..., 2]
    assert (redness > 60).sum() > 200, "iodine is seen"


def test_mouse_turns_moves_and_zooms(scene: VolumeScene, qtbot: QtBot) -> None:
    scene.show_volume(rods(), 0.1, LOOKS)
    until(qtbot, scene, lambda: scene.grains is not None)
    view, hand = scene.view, scene.view.hand
    first = hand.camera
    _drag(view, QtCore.Qt.MouseButton.LeftButton, (100, 100), (140, 110))
    assert hand.camera.azimuth_rad != first.azimuth_rad
    assert hand.camera.distance_mm == first.distance_mm
    assert hand.is_moving
    _drag(view, QtCore.Qt.MouseButton.MiddleButton, (100, 100), (140, 110))
    assert hand.camera.centre_mm != first.centre_mm
    view.setFocus()
    qtbot.keyClick(view, "+")
    assert hand.camera.distance_mm < first.distance_mm
    qtbot.keyClick(view, "5")
    assert hand.camera.elevation_rad == pytest.approx(np.pi / 2)
    qtbot.mouseDClick(view, QtCore.Qt.MouseButton.LeftButton)
    assert hand.camera == first
    until(qtbot, scene, lambda: drawn(scene))


def _drag(widget, button: QtCore.Qt.MouseButton, start: tuple[int, int], end: tuple[int, int]) -> None:
    """Send press, move and release with the button held, which qtbot's move does not hold."""
    kinds = QtCore.QEvent.Type
    for kind, at in ((kinds.MouseButtonPress, start), (kinds.MouseMove, end), (kinds.MouseButtonRelease, end)):
        point = QtCore.QPointF(*at)
        held = QtCore.Qt.MouseButton.NoButton if kind == kinds.MouseButtonRelease else button
        event = QtGui.QMouseEvent(kind, point, point, button, held, QtCore.Qt.KeyboardModifier.NoModifier)
        QtCore.QCoreApplication.sendEvent(widget, event)


def test_picture_has_the_size_that_is_asked_for(scene: VolumeScene, qtbot: QtBot, tmp_path: Path) -> None:
    scene.show_volume(rods(), 0.1, LOOKS)
    until(qtbot, scene, lambda: scene.grains is not None)
    scene.panel._scale.setCurrentText("1×")
    scene.panel.save_picture(tmp_path / "seen.png")
    until(qtbot, scene, lambda: not scene.is_picturing)
    image = QtGui.QImage(str(tmp_path / "seen.png"))
    assert (image.width(), image.height()) == (scene.view.width(), scene.view.height())
    assert "written" in scene.panel._told.text()


def test_opacity_cut_and_looks_reach_the_picture(scene: VolumeScene, qtbot: QtBot) -> None:
    scene.show_volume(rods(), 0.1, LOOKS)
    until(qtbot, scene, lambda: drawn(scene))

    def redness() -> int:
        until(qtbot, scene, lambda: drawn(scene))
        picture = pixels(scene.view.grab().toImage())[100:, :]
        return int((picture[..., 0] - picture[..., 2] > 60).sum())

    whole = redness()
    scene.panel._spans[0].high.value = 0.5
    scene.panel._cut()
    assert redness() < 0.2 * whole, "the rod at +x is cut away"
    scene.panel._uncut()
    assert redness() == pytest.approx(whole, rel=0.05)
    scene.panel._solidities._sliders["iodine"].value = 0.0
    scene.show_optics()
    assert redness() < 0.2 * whole, "what hides nothing is not seen"


def test_large_volume_is_thinned_out_and_says_so(scene: VolumeScene, qtbot: QtBot) -> None:
    scene.panel._budget.setCurrentText("128³")
    values = np.zeros((1, 130, 130, 130), dtype=np.float16)
    scene.show_volume(values, 0.1, LOOKS[:1])
    until(qtbot, scene, lambda: scene.grains is not None)
    assert scene.grains.values.shape == (1, 65, 65, 65)
    assert "means of 2³" in scene._words.text()


def test_what_cannot_be_drawn_is_told(scene: VolumeScene, qtbot: QtBot) -> None:
    scene.show_volume(np.zeros((9, 4, 4, 4), dtype=np.float32), 0.1, LOOKS[:1] * 9)
    until(qtbot, scene, lambda: bool(scene.told))
    assert "1 to 8" in scene.told[0]


def test_settings_come_back(scene: VolumeScene) -> None:
    scene.panel._shading.setChecked(False)
    scene.panel._fineness.setCurrentText("Fine")
    saved = scene.panel.save()
    scene.panel._shading.setChecked(True)
    scene.panel._fineness.setCurrentText("Normal")
    scene.panel.restore(saved | {"budget": "no such", "odd": object()})
    assert scene.panel.save() == saved


def test_controls_have_room_beside_the_picture(scene: VolumeScene) -> None:
    scene.panel.show_looks(LOOKS)
    for fold in scene.panel._folds:
        fold.is_open = True
    assert scene.panel.minimumSizeHint().width() <= 320
    view = scene.panel._folds[0]
    view._head.click()
    assert not view.is_open
    assert "View" not in scene.panel.save()["open"]


@pytest.mark.parametrize("is_orthographic", [False, True])
def test_the_cube_of_directions_turns_with_the_camera_and_is_clicked(is_orthographic: bool) -> None:
    for name, (azimuth_rad, elevation_rad) in STANDARD_VIEWS.items():
        camera = Camera(
            azimuth_rad=azimuth_rad, elevation_rad=elevation_rad, distance_mm=9.0, is_orthographic=is_orthographic
        )
        faces = dict(cube_faces(camera))
        assert len(faces) == (3 if name == "Corner" else 1)
        if name != "Corner":
            (corners,) = faces.values()
            np.testing.assert_allclose(corners, [(-1, -1), (1, -1), (1, 1), (-1, 1)], atol=1e-9)
            x, y = cube_middle(480, letter_size(640, 480))
            assert face_at(x, y, 640, 480, camera) == next(iter(faces))
            assert face_at(x + 80, y, 640, 480, camera) == ""
    for name, face in (("Front", "−y"), ("Right", "+x"), ("Top", "+z")):
        azimuth_rad, elevation_rad = STANDARD_VIEWS[name]
        camera = Camera(azimuth_rad=azimuth_rad, elevation_rad=elevation_rad, distance_mm=1.0)
        assert list(dict(cube_faces(camera))) == [face]


def test_edges_before_the_volume_are_those_between_faces_that_are_seen() -> None:
    low, high = (-1.0, -2.0, -3.0), (1.0, 2.0, 3.0)
    edges = box_edges(low, high)
    for azimuth_rad, elevation_rad, count in ((-1.05, 0.44, 3), (-np.pi / 2, 0.0, 0), (-np.pi / 2, 0.6, 1)):
        camera = Camera(azimuth_rad=azimuth_rad, elevation_rad=elevation_rad, distance_mm=90.0)
        is_near = near_edges(low, high, camera)
        assert is_near.sum() == count
        away_mm = np.linalg.norm(edges.mean(axis=1) - camera.eye_mm(), axis=1)
        assert not count or away_mm[is_near].max() < np.median(away_mm)


def test_a_click_at_the_cube_looks_at_that_side(scene: VolumeScene, qtbot: QtBot) -> None:
    scene.show_volume(rods(8), 0.1, LOOKS)
    until(qtbot, scene, lambda: scene.grains is not None)
    view = scene.view
    view.hand.camera = replace(view.hand.camera, azimuth_rad=-1.4, elevation_rad=0.2)
    size = view.width(), view.height()
    x, y = cube_middle(size[1], letter_size(*size))
    qtbot.mouseClick(view, QtCore.Qt.MouseButton.LeftButton, pos=QtCore.QPoint(round(x), round(y)))
    assert (view.hand.camera.azimuth_rad, view.hand.camera.elevation_rad) == STANDARD_VIEWS["Front"]
