"""The button that keeps looks under names, and takes them back."""

from __future__ import annotations

from pyqtgraph.Qt import QtWidgets

from gui.controls import allow
from gui.volume.desk import Desk

TIP = "Keep colours, opacities and windows under a name, or take kept ones for the materials of this volume."


class PresetButton(QtWidgets.QToolButton):
    """A menu of presets."""

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        self._desk = desk
        self.setText("Presets")
        self.setPopupMode(QtWidgets.QToolButton.ToolButtonPopupMode.InstantPopup)
        self._menu = QtWidgets.QMenu(self)
        self._menu.aboutToShow.connect(self._fill)
        self.setMenu(self._menu)
        self.refresh()

    def refresh(self) -> None:
        """Say why it is grey where it is."""
        allow(self, TIP, "" if self._desk.material_looks else "no volume of materials is open.")

    def _fill(self) -> None:
        self._menu.clear()
        for name in sorted(self._desk.presets):
            self._menu.addAction(name).triggered.connect(lambda _=False, name=name: self._desk.use_preset(name))
        if self._desk.presets:
            self._menu.addSeparator()
            deleting = self._menu.addMenu("Delete")
            for name in sorted(self._desk.presets):
                deleting.addAction(name).triggered.connect(lambda _=False, name=name: self._desk.forget_preset(name))
        self._menu.addAction("Keep the present looks…").triggered.connect(self._keep)

    def _keep(self) -> None:
        name, is_given = QtWidgets.QInputDialog.getText(self, "Keep looks", "Name of the preset")
        if is_given and name.strip():
            self._desk.keep_preset(name.strip())
