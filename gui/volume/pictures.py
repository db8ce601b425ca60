"""Screenshots: any pane or all of them, up to four times as large, with scale bar and legend; to a file or copied."""

from __future__ import annotations

from pathlib import Path

from pyqtgraph.Qt import QtGui, QtWidgets

from calibration.whole_file import whole_file
from gui.session import Session
from gui.volume.panes import Panes

ALL = "all panes"
FACTORS = (1, 2, 3, 4)


class PictureMenu(QtWidgets.QToolButton):
    """Saves and copies what is seen."""

    def __init__(self, panes: Panes, session: Session) -> None:
        super().__init__()
        self._panes, self._session = panes, session
        self.factor = 2
        self.setText("Picture")
        self.setPopupMode(QtWidgets.QToolButton.ToolButtonPopupMode.InstantPopup)
        menu = QtWidgets.QMenu(self)
        saving, copying, sizing = menu.addMenu("Save as PNG"), menu.addMenu("Copy"), menu.addMenu("Size")
        for name in (ALL, *panes.names):
            saving.addAction(name.capitalize()).triggered.connect(lambda _=False, name=name: self._choose(name))
            copying.addAction(name.capitalize()).triggered.connect(lambda _=False, name=name: self.copy(name))
        group = QtGui.QActionGroup(sizing)
        for factor in FACTORS:
            action = sizing.addAction(f"{factor} ×")
            action.setCheckable(True)
            action.setChecked(factor == self.factor)
            action.triggered.connect(lambda _=False, factor=factor: setattr(self, "factor", factor))
            group.addAction(action)
        self.setMenu(menu)

    def copy_all(self) -> None:
        """Copy all panes."""
        if self.isEnabled():
            self.copy(ALL)

    def copy(self, name: str) -> None:
        """Copy a picture of a pane, or of all."""
        QtWidgets.QApplication.clipboard().setImage(self.image(name))

    def image(self, name: str) -> QtGui.QImage:
        """Return a picture of a pane, or of all."""
        return self._panes.image(None if name == ALL else name, self.factor)

    def save(self, name: str, path: Path) -> None:
        """Write a picture; the file appears when it is whole."""
        image = self.image(name)
        with whole_file(path) as partial:
            if not image.save(str(partial), "PNG"):  # pyright: ignore[reportCallIssue, reportArgumentType]
                raise OSError(f"{path} could not be written")

    def _choose(self, name: str) -> None:
        folder = self._session.state.folder
        chosen, _ = QtWidgets.QFileDialog.getSaveFileName(
            self, "Save a picture", str(folder / f"volume-{name.replace(' ', '-')}.png"), "Pictures (*.png)"
        )
        if not chosen:
            return
        try:
            self.save(name, Path(chosen).with_suffix(".png"))
        except OSError as error:
            self._session.fail("Saving a picture", error)
