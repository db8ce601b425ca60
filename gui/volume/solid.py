"""Three dimensions, made when somebody looks for the first time, so that the window opens without OpenGL."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyqtgraph as pg
from pyqtgraph.Qt import QtCore, QtGui, QtWidgets

from gui.controls import hint, put_in_turn
from gui.volume.desk import Desk
from gui.volume.painting import Looks
from reconstruction.volume import Volume

if TYPE_CHECKING:
    from gui.volume.scene import VolumeScene

MOST_MATERIALS = 8


class Solid(QtWidgets.QWidget):
    """Shows the materials of a desk in three dimensions.

    Attributes
    ----------
    scene : VolumeScene or None
        None until it was seen.
    controls : QScrollArea
        Holds the scene's panel once there is one; the page has a place for it.
    """

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        self._desk = desk
        self.scene: VolumeScene | None = None
        self._volume: Volume | None = None
        self._looks: Looks = ()
        self._saved: dict[str, object] = {}
        self._making: Iterator[str] | None = None
        self.controls = QtWidgets.QScrollArea()
        self.controls.setWidgetResizable(True)
        self.controls.setFrameShape(QtWidgets.QFrame.Shape.NoFrame)
        self.controls.setHorizontalScrollBarPolicy(QtCore.Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self._words = hint("Three dimensions need a volume of materials: decompose the bins, or open one.")
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 4, 0, 0)
        layout.addWidget(self._words)

    def refresh(self) -> None:
        """Show what the desk holds, while somebody looks."""
        if not self.isVisible():
            return
        volume, looks = self._desk.materials, self._desk.material_looks
        if self._making is None and volume is not None and looks:
            self._making = self._make()
        if self._making is None or next(self._making, None) is not None or (scene := self.scene) is None:
            return
        scene.setVisible(volume is not None)
        self._words.setVisible(volume is None)
        if volume is None:
            if self._volume is not None:
                scene.clear()
            self._volume = None
        elif volume is not self._volume and looks:
            self._volume, self._looks = volume, looks
            grid = volume.grid
            scene.show_volume(
                volume.values[:MOST_MATERIALS],
                grid.voxel_mm,
                looks[:MOST_MATERIALS],
                centre_mm=grid.centre_mm,
                is_scale_known=grid.is_scale_known,
            )
            left_out = ", ".join(look.material for look in looks[MOST_MATERIALS:])
            scene.note = f"Without {left_out}: {MOST_MATERIALS} materials are drawn at most." if left_out else ""
        elif looks is not self._looks and looks:
            self._looks = looks
            scene.show_looks(looks[:MOST_MATERIALS])
        scene.refresh()

    def restyle(self) -> None:
        """Take the colours of another theme."""
        if self.scene is not None:
            self.scene.restyle(_is_dark())

    def reset(self) -> None:
        """Look at the whole again."""
        if self.scene is not None:
            self.scene.view.hand.move(self.scene.view.hand.home)

    def save(self) -> dict[str, object]:
        """Return what is set, for the next start."""
        return self.scene.panel.save() if self.scene is not None else self._saved

    def restore(self, saved: dict[str, object]) -> None:
        """Take what was set at an earlier start, as soon as somebody looks."""
        self._saved = saved
        if self.scene is not None:
            self.scene.panel.restore(saved)

    def _make(self) -> Iterator[str]:
        """Make the scene in pieces, one at each beat; yields what the next one is."""
        from gui.volume.scene import VolumeScene

        scene = VolumeScene(self._desk.session.fail)
        yield "settings"
        scene.restyle(_is_dark())
        scene.panel.restore(self._saved)
        yield "places"
        self.controls.setWidget(scene.panel)
        layout = self.layout()
        assert layout is not None
        layout.addWidget(scene)
        put_in_turn(self, self)
        put_in_turn(scene.panel, self.controls)
        self.scene = scene


def _is_dark() -> bool:
    return QtGui.QColor(pg.getConfigOption("background")).lightness() < 128
