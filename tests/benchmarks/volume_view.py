"""How fast a volume of four materials is drawn in three dimensions, 900 x 900, beside pyqtgraph's own item.

    xvfb-run -a -s "-screen 0 1600x1200x24 +extension GLX" python tests/benchmarks/volume_view.py

`rest` is the fine picture; `moving` has half the resolution of the screen and of the volume, as while something
moves, and `moving_before` twice the step through the whole volume. `automatic` is what the view itself chooses while
something moves. Processor seconds stand beside, since a machine may be shared. `volume_fps` is that of `moving`,
shaded; null where there is no OpenGL. pyqtgraph's own `GLVolumeItem` shows the same bodies in a window of the same
size; `times_pyqtgraph` is how many times as many pictures a second ours draws while it moves,
`cpu_share_of_pyqtgraph` how much processor time each takes beside theirs. `--quick` takes 128^3 instead of 256^3.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pyqtgraph as pg

EDGE = 900
LEAST_S = 1.5
"""A picture is drawn again until so much time has passed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    figures = measured(128 if options.quick else 256)
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:<28} {value}")


def measured(n: int) -> dict[str, Any]:
    """Return all figures for a volume of n voxels along each edge."""
    app = pg.mkQApp()
    from gui.volume.gl_view import why_not

    if why := why_not():
        return {"volume_fps": None, "why_not": why}
    from gui.volume.camera import Camera
    from gui.volume.canvas import Canvas, copied_depth
    from gui.volume.gl_view import GlView
    from gui.volume.optics import optics_of
    from gui.volume.page import VolumePage
    from gui.volume.quality import Quality
    from gui.volume.ray_item import DIVISORS, MOVING_S, ROUGH_OPAQUE
    from gui.volume.raycast import RayCaster
    from tests.gui.volume_phantom import LOOKS, phantom

    VolumePage.prepare()
    view = GlView()
    view.resize(EDGE, EDGE)
    view.show()
    app.processEvents()
    began_s = time.perf_counter()
    grains = phantom(n)
    view.show_grains(grains, optics_of(LOOKS, max(grains.size_mm)))
    view.hand.camera = camera = Camera.around(grains.size_mm, grains.centre_mm)
    caster = view.item.caster
    view.makeCurrent()
    depth = copied_depth(0, EDGE, EDGE)
    began_s = time.perf_counter()
    while not caster.is_ready:
        caster.upload()
    figures: dict[str, Any] = {
        "volume_fps": None, "n": n, "renderer": caster.renderer, "upload_s": round(time.perf_counter() - began_s, 2),
    }  # fmt: skip

    coarse = caster.coarse
    assert coarse is not None
    while not coarse.is_ready:
        coarse.upload()

    def draw(of: RayCaster, divisor: int, quality: Quality) -> Callable[[], None]:
        canvas = Canvas.of(EDGE // divisor, EDGE // divisor)

        def once() -> None:
            canvas.restart()
            of.draw(canvas, camera, quality, depth, None)

        return once

    for name, is_shaded in (("shaded", True), ("plain", False)):
        rough = Quality(is_shaded=is_shaded, opaque_share=ROUGH_OPAQUE)
        figures[f"rest_{name}"] = paced(draw(caster, 1, Quality(is_shaded=is_shaded)))
        figures[f"moving_before_{name}"] = paced(draw(caster, 2, Quality(step_voxels=2.0, is_shaded=is_shaded)))
        figures[f"moving_{name}"] = paced(draw(coarse, 2, rough))
    for divisor in DIVISORS:
        automatic = paced(draw(coarse, divisor, Quality(opaque_share=ROUGH_OPAQUE)))
        if automatic["fps"] >= 1 / MOVING_S or divisor == DIVISORS[-1]:
            figures["automatic"] = automatic | {"divisor": divisor}
            break
    view.doneCurrent()
    ours = figures["moving_shaded"]
    figures["volume_fps"] = ours["fps"]
    theirs = figures["pyqtgraph_item"] = other(app, grains.values)
    figures["times_pyqtgraph"] = round(ours["fps"] / theirs["fps"], 2)
    figures["cpu_share_of_pyqtgraph"] = round(ours["cpu_s"] / theirs["cpu_s"], 3)
    return figures


def paced(draw: Callable[[], None]) -> dict[str, float]:
    """Return pictures a second by the clock, and processor seconds for one; the first compiles and does not count."""
    draw()
    began_s, used_s, count = time.perf_counter(), time.process_time(), 0
    while (took_s := time.perf_counter() - began_s) < LEAST_S or count < 2:
        draw()
        count += 1
    took_s = time.perf_counter() - began_s
    return {"fps": round(count / took_s, 2), "cpu_s": round((time.process_time() - used_s) / count, 3)}


def other(app: object, values: np.ndarray) -> dict[str, float]:
    """Return the pace of pyqtgraph's GLVolumeItem with the same bodies in its eight bits."""
    import pyqtgraph.opengl as gl
    from OpenGL import GL

    from gui.volume.optics import optics_of
    from tests.gui.volume_phantom import LOOKS

    optics = optics_of(LOOKS, 20.0)
    colours = np.zeros((*values.shape[1:], 4), dtype=np.float32)
    for n, channel in enumerate(values):
        share = np.clip((channel - optics.low_g_cm3[n]) / (optics.high_g_cm3[n] - optics.low_g_cm3[n]), 0, 1)
        colours[..., :3] += share[..., None] * optics.colours[n].astype(np.float32)
        colours[..., 3] += share * (0.01 if n == 0 else 0.5)
    view = gl.GLViewWidget()
    view.resize(EDGE, EDGE)
    view.setCameraPosition(distance=2.2 * len(values[0]))
    item = gl.GLVolumeItem(np.rint(255 * np.clip(colours, 0, 1)).astype(np.uint8).transpose(2, 1, 0, 3))
    item.translate(*(-edge / 2 for edge in values.shape[:0:-1]))
    view.addItem(item)
    view.show()
    app.processEvents()

    def draw() -> None:
        view.makeCurrent()
        view.paintGL()
        GL.glFinish()

    return paced(draw)


if __name__ == "__main__":
    main()
