"""Save and copy what the live view shows: the two buttons, with the settings in every file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from pyqtgraph.Qt import QtGui, QtWidgets

from gui.controls import ActionButton
from gui.image_panel import ImagePanel
from gui.live.run import Underway
from gui.live.save import save_tiff, settings_of
from gui.live.shown import Shown
from gui.session import Session

TITLE = "Save the picture"


class PictureActions(QtWidgets.QWidget):
    """Saves and copies.

    Parameters
    ----------
    shown : callable
        Returns what is shown, its name, and how it was taken; None before there is a picture.
    """

    def __init__(
        self, session: Session, panel: ImagePanel, shown: Callable[[], tuple[Shown, str, Underway] | None]
    ) -> None:
        super().__init__()
        self._session, self._panel, self._shown = session, panel, shown
        self._questions = session.questions("pictures")
        self.save = ActionButton("Save...", "Save the picture, with how it was taken.", self._why_not, self._ask)
        self.copy = ActionButton("Copy", "Put the picture on the clipboard.", self._why_not, self._copy)
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self.save)
        row.addWidget(self.copy)

    def refresh(self) -> None:
        """Look again whether there is a picture."""
        self.save.refresh()
        self.copy.refresh()

    def write(self, path: Path) -> None:
        """Write the picture that is shown, in the background: as TIFF its values, as PNG what is seen."""
        found = self._shown()
        assert found is not None, "nobody saves what is not there"
        looks: dict[str, object] = {"levels": list(self._panel.levels), "colours": self._panel.colour_map_name}
        is_tiff = path.suffix.lower() in (".tif", ".tiff")
        seen = None if is_tiff else self._panel.picture()
        self._questions.ask(TITLE, lambda: _write(path, *found, looks, seen), is_kept=True)

    @property
    def is_writing(self) -> bool:
        """Whether a picture is being written."""
        return self._questions.is_asked(TITLE)

    def _why_not(self) -> str:
        if self._shown() is None:
            return "There is no picture yet."
        return "A picture is being saved." if self.is_writing else ""

    def _ask(self) -> None:
        proposed = str(self._session.state.folder / time.strftime("live-%Y%m%d-%H%M%S.tiff"))
        name, _ = QtWidgets.QFileDialog.getSaveFileName(
            self, TITLE, proposed, "TIFF: the values (*.tiff *.tif);;PNG: what is seen (*.png)"
        )
        if name:
            self.write(Path(name))

    def _copy(self) -> None:
        clipboard = QtGui.QGuiApplication.clipboard()
        assert clipboard is not None
        clipboard.setImage(self._panel.picture())


def _write(
    path: Path, shown: Shown, name: str, underway: Underway, looks: dict[str, object], seen: QtGui.QImage | None
) -> None:
    """Write what is seen as PNG, or without it the values as TIFF."""
    settings = settings_of(shown, name, underway) | looks
    if seen is None:
        save_tiff(path, shown, settings)
        return
    seen.setText("Description", json.dumps(settings, ensure_ascii=True))
    if not seen.save(str(path)):
        raise OSError(f"{path} cannot be written")
