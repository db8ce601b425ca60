"""Three dimensions, made when somebody looks for the first time, so that the window opens without OpenGL."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyqtgraph as pg
from pyqtgraph.Qt import QtCore, QtGui, QtWidgets

from gui.controls import hint
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
        scene = self.scene or (self._make() if volume is not None and looks else None)
        if scene is None:
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

    def _make(self) -> VolumeScene:
        from gui.volume.scene import VolumeScene

        self.scene = VolumeScene(self._desk.session.fail)
        self.scene.restyle(_is_dark())
        self.scene.panel.restore(self._saved)
        self.controls.setWidget(self.scene.panel)
        layout = self.layout()
        assert layout is not None
        layout.addWidget(self.scene)
        return self.scene


def _is_dark() -> bool:
    return QtGui.QColor(pg.getConfigOption("background")).lightness() < 128
