"""Draw pictures by OpenGL, for `test_scene_gl`: run under an X server, it writes them all to one file.

xvfb-run -a python tests/gui/gl_pictures.py OUT.npz
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyqtgraph as pg
from pyqtgraph.Qt import QtCore, QtGui

from gui.colour import GREY, Look
from gui.volume.camera import Camera
from gui.volume.optics import Cut, Grains, optics_of
from gui.volume.quality import Quality
from gui.volume.surfaces import Mesh
from tests.gui.volume_phantom import LOOKS, phantom, ready

SIZE = (60, 70)
SIDES_RAD = {"corner": (-1.05, 0.44), "below": (2.0, -0.7)}
WITHOUT_WATER = (0.0, 0.9, 0.9, 0.9)
"""Opacities of the phantom's materials that leave many blocks empty."""
FAINT = Look(material="iodine", colour=(0.7, 0.3, 0.0), low_g_cm3=0.0, high_g_cm3=0.016)
STRONG = Look(material="gold", colour=(0.0, 0.5, 0.4), low_g_cm3=0.0, high_g_cm3=19.3)


def pixels(image: QtGui.QImage) -> np.ndarray:
    """Return (height, width, 3) uint8."""
    image = image.convertToFormat(QtGui.QImage.Format.Format_RGB888)
    rows = np.frombuffer(image.constBits(), dtype=np.uint8).reshape(image.height(), image.bytesPerLine())
    return rows[:, : 3 * image.width()].reshape(image.height(), image.width(), 3).copy()


def square(y_mm: float) -> Mesh:
    """Return a green wall across y that faces the front."""
    corners = np.array([[-20, y_mm, -20], [20, y_mm, -20], [20, y_mm, 20], [-20, y_mm, 20]], dtype=np.float32)
    return Mesh(vertices_mm=corners, faces=np.array([[0, 1, 2], [0, 2, 3]], dtype=np.int32), colour=(0.0, 0.6, 0.0))


def main(out: str) -> None:
    """Draw everything."""
    app = pg.mkQApp()
    from gui.volume.gl_view import GlView, why_not
    from gui.volume.page import VolumePage

    VolumePage.prepare()
    facts: dict[str, object] = {"why_not": why_not()}
    pictures: dict[str, np.ndarray] = {}
    view = GlView()
    view.resize(160, 120)
    view.show()
    app.processEvents()

    def draw(name: str, camera: Camera, *, size: tuple[int, int] = SIZE) -> None:
        steps = view.picture(size[1], size[0], camera)
        try:
            while True:
                next(steps)
        except StopIteration as end:
            pictures[name] = pixels(end.value)

    grains = phantom(28)
    around = replace(Camera.around(grains.size_mm, grains.centre_mm), is_orthographic=True)
    facts["first"] = first_picture(app, view, grains, around)
    drawn_s: dict[str, float] = {}
    for side, (azimuth_rad, elevation_rad) in SIDES_RAD.items():
        camera = replace(around, azimuth_rad=azimuth_rad, elevation_rad=elevation_rad)
        for is_shaded in (False, True):
            view.show_quality(Quality(step_voxels=0.5, is_shaded=is_shaded))
            began_s = time.thread_time()
            draw(name := f"{side}_{'lit' if is_shaded else 'plain'}", camera)
            drawn_s[name] = time.thread_time() - began_s
    facts["compiling_s"] = drawn_s["corner_plain"] - drawn_s["below_plain"]
    view.show_quality(Quality(step_voxels=0.5, is_shaded=False))
    draw("perspective", Camera.around(grains.size_mm, grains.centre_mm))
    leap_pictures(view, draw, grains, around)
    byte_pictures(view, pictures, grains, around)
    view.show_grains(grains, optics_of(LOOKS, 20.0))
    view.show_cut(Cut(low_shares=(0.0, 0.4, 0.0), normal=(0.0, 0.0, 1.0), plane_mm=2.0))
    draw("cut", around)
    view.show_cut(Cut())

    # Half floats: a faint material in a channel that also holds a thousand times more.
    values = np.zeros((2, 16, 16, 16), dtype=np.float32)
    values[0], values[0, 0, 0, 0], values[1, 8:, 0, 0] = 0.0002, 5.0, 1.0
    view.show_grains(ready(values, 1.0), optics_of([FAINT, STRONG], 16.0))
    draw("faint", replace(Camera.around((16, 16, 16), (0, 0, 0)), is_orthographic=True))

    # The eighth channel of two textures.
    values = np.zeros((8, 16, 16, 16), dtype=np.float32)
    values[7] = 1.0
    looks = [replace(FAINT, material=str(n), colour=(1.0, 0.0, 0.0)) for n in range(7)] + [STRONG]
    view.show_grains(ready(values, 1.0), optics_of(looks, 16.0))
    draw("eighth", replace(Camera.around((16, 16, 16), (0, 0, 0)), is_orthographic=True))

    # A wall in the middle of a haze, seen from the front: the haze before it stays, what is behind goes.
    haze = Look(material="water", colour=GREY, low_g_cm3=0.0, high_g_cm3=1.0)
    view.show_grains(ready(np.ones((1, 16, 16, 16), dtype=np.float32), 1.0), optics_of([haze], 16.0, opacities=[0.05]))
    front = replace(around, azimuth_rad=-np.pi / 2, elevation_rad=0.0, distance_mm=30.0)
    draw("haze", front)
    for name, y_mm in (("wall_before", -7.99), ("wall_middle", 0.0), ("wall_behind", 7.99)):
        view.show_meshes([square(y_mm)])
        draw(name, front)
    view.show_meshes([])

    # On the screen: rough while it moves, fine a moment later, without ever stopping the window for long.
    view.resize(400, 300)
    view.show_grains(grains, optics_of(LOOKS, 20.0))
    view.show_quality(Quality())
    view.hand.camera = view.hand.home = around
    view.hand.stir()
    app.processEvents()
    facts["is_rough_while_moving"] = not view.item.is_complete
    end_s = time.monotonic() + 30
    while not (view.item.is_complete and not view.hand.is_moving) and time.monotonic() < end_s:
        app.processEvents(QtCore.QEventLoop.ProcessEventsFlag.AllEvents, 10)
    facts["is_fine_at_rest"] = view.item.is_complete
    pictures["screen"] = pixels(view.grab().toImage())
    facts["fault"] = view.fault

    # Half the resolution while it moves: the same bodies in the same places.
    view.show_grains(phantom(64), optics_of(LOOKS, 20.0))
    while not view.item.is_complete and time.monotonic() < end_s + 30:
        app.processEvents(QtCore.QEventLoop.ProcessEventsFlag.AllEvents, 10)
    pictures["before_it_moves"] = pixels(view.grab().toImage())
    view.item.quality = Quality(divisor=1)
    for _ in range(3):  # the first ones copy the half resolution to the card
        view.hand.stir()
        app.processEvents()
    coarse = view.item.caster.coarse
    facts["is_coarse_ready"] = coarse is not None and coarse.is_ready
    pictures["while_it_moves"] = pixels(view.grab().toImage())
    facts["is_still_moving"] = view.hand.is_moving

    # The older language, and a driver that refuses.
    from gui.volume.shaders import ShaderRefused, Variant, compiled, mesh_sources, place_sources, sources

    view.makeCurrent()
    for is_modern in (False, True):
        for is_second in (False, True):
            variant = Variant(is_second_texture=is_second, is_shaded=True, is_bent=is_second, is_modern=is_modern)
            compiled(*sources(variant))
        compiled(*place_sources(is_modern=is_modern))
        compiled(*mesh_sources(is_modern=is_modern))
    try:
        compiled(mesh_sources(is_modern=True)[0], "#version 120\nvoid main() { nonsense }")
    except ShaderRefused as error:
        facts["refusal"] = str(error)
    view.doneCurrent()
    facts["scene"] = fall_back(app)
    np.savez(out, facts=json.dumps(facts), **pictures)


def leap_pictures(view: Any, draw: Callable[[str, Camera], None], grains: Grains, camera: Camera) -> None:
    """Draw with all leaps, with leaps over what is empty, and without any; a haze that is lit, and one that is not."""
    from gui.volume import textures
    from gui.volume.optics import BUSY, CALM, leaps

    ways = {
        "every_block": lambda *of: np.full_like(leaps(*of), BUSY),
        "empty_leapt": lambda *of: np.where(leaps(*of) == CALM, BUSY, leaps(*of)).astype(np.uint8),
        "all_leapt": leaps,
    }
    for name, way in ways.items():
        textures.leaps = way
        view.show_optics(optics_of(LOOKS, 20.0, opacities=WITHOUT_WATER))  # another record is marked anew
        draw(name, camera)
    textures.leaps = leaps
    water = replace(grains, values=grains.values[:1], least=grains.least[:1], most=grains.most[:1])
    view.show_grains(water, optics_of(LOOKS[:1], 20.0))
    for name, is_shaded in (("haze_lit", True), ("haze_plain", False)):
        view.show_quality(Quality(step_voxels=0.5, is_shaded=is_shaded))
        draw(name, camera)


def byte_pictures(view: Any, pictures: dict[str, np.ndarray], grains: Grains, camera: Camera) -> None:
    """Draw from half floats and from bytes, from bytes after a window has changed, and from bytes made for it."""
    from gui.volume.canvas import Canvas, copied_depth
    from gui.volume.raycast import RayCaster

    peaks = grains.values.max(axis=(1, 2, 3))
    wide = [replace(look, low_g_cm3=0.0, high_g_cm3=float(peak)) for look, peak in zip(LOOKS, peaks, strict=True)]
    first, second = optics_of(wide, 20.0), optics_of(LOOKS, 20.0)
    view.makeCurrent()
    depth = copied_depth(0, *SIZE[::-1])
    for name, is_quick, windows in (
        ("halves", False, [first]), ("bytes", True, [first]), ("bytes_changed", True, [first, second]),
        ("bytes_anew", True, [second]),
    ):  # fmt: skip
        caster = RayCaster(is_quick=is_quick)
        caster.start()
        caster.show(grains)
        canvas = Canvas.of(*SIZE[::-1])
        for optics in windows:
            caster.optics = optics
            while not caster.is_ready:
                caster.upload()
            canvas.restart()
            caster.draw(canvas, camera, Quality(), depth, None)
        pictures[name] = canvas.read()[..., :3]
    view.doneCurrent()


def first_picture(app: Any, view: Any, grains: Grains, camera: Camera) -> dict[str, object]:
    """Show the first volume of all, and tell what took the window's thread longest, in the processor's time."""
    view.show_grains(grains, optics_of(LOOKS, 20.0))
    view.hand.camera = view.hand.home = camera
    longest_s, has_warmed, end_s = 0.0, False, time.monotonic() + 90
    while not view.item.is_complete and time.monotonic() < end_s:
        began_s = time.thread_time()
        app.processEvents(QtCore.QEventLoop.ProcessEventsFlag.AllEvents, 5)
        longest_s = max(longest_s, time.thread_time() - began_s)
        has_warmed |= view.item.is_warming
        time.sleep(0.002)
    return {"is_complete": view.item.is_complete, "has_warmed": has_warmed, "longest_s": longest_s}


def fall_back(app: object) -> dict[str, object]:
    """Let the driver refuse the shader in a whole scene, and tell what the scene does."""
    from gui.volume import raycast
    from gui.volume.scene import VolumeScene

    source = raycast.sources
    raycast.sources = lambda variant: (source(variant)[0], "nonsense")
    scene = VolumeScene()
    scene.resize(500, 400)
    scene.show()
    began_with_gl = scene.has_gl
    scene.show_volume(phantom(16).values, 1.25, LOOKS)
    end_s = time.monotonic() + 60
    while (scene.has_gl or scene.grains is None or not scene.view.is_complete) and time.monotonic() < end_s:
        scene.refresh()
        app.processEvents()
        time.sleep(0.005)
    raycast.sources = source
    return {"began_with_gl": began_with_gl, "has_gl": scene.has_gl, "words": scene._words.text()}


if __name__ == "__main__":
    main(sys.argv[1])
