"""The program: Qt started, the window opened, and nothing heavy loaded before it is seen."""

from __future__ import annotations

import logging
import logging.handlers
import sys
from pathlib import Path
from types import TracebackType

from pyqtgraph.Qt import QtCore, QtWidgets

from gui import theme
from gui.log_panel import LogLines
from gui.session import Session
from gui.window import LOOKS, Window

LOG_BYTES = 2_000_000


def run(folder: Path, device: str = "") -> int:
    """Open the window and return when it is closed.

    Parameters
    ----------
    device : str
        URL of an instrument to open at once; empty: none.
    """
    app = QtWidgets.QApplication.instance() or QtWidgets.QApplication(sys.argv[:1])
    assert isinstance(app, QtWidgets.QApplication)
    app.setApplicationName("mpxct")
    settings = QtCore.QSettings(QtCore.QSettings.Format.IniFormat, QtCore.QSettings.Scope.UserScope, "mpxct", "window")
    lines = keep_log(Path(settings.fileName()).parent / "window.log")
    session = Session(folder)
    theme.apply(app, theme.system_theme())
    window = Window(session, lines, settings)
    look = str(settings.value("look", LOOKS[0]))
    if look != LOOKS[0]:
        window.set_look(look)
    catch_faults(session)
    window.show()
    if device:
        session.rig.connect(device)
    return app.exec()


def keep_log(path: Path) -> LogLines:
    """Send the log to the window, and to a file that outlives it where one can be written."""
    lines = LogLines()
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.addHandler(lines)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = logging.handlers.RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=3, encoding="utf-8")
    except OSError as error:
        logging.getLogger("mpxct.window").warning("the log is not kept in %s: %s", path, error)
        return lines
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    root.addHandler(file)
    return lines


def catch_faults(session: Session) -> None:
    """Show what no part of the window caught, instead of ending, or worse, going on in silence."""

    def on_fault(kind: type[BaseException], error: BaseException, _: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):  # Ctrl-C in the terminal: as if the window were closed
            QtWidgets.QApplication.quit()
            return
        session.fail("A fault in the window", error)

    sys.excepthook = on_fault
