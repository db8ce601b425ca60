"""The window: the pages of a technician's day side by side, the instrument's state under them, what holds for all."""

from __future__ import annotations

from pyqtgraph.Qt import QtCore, QtGui, QtWidgets

from gui.calibrate.page import CalibratePage
from gui.connect.page import ConnectPage
from gui.live.page import LivePage
from gui.log_panel import LogLines, LogPanel
from gui.page import Page
from gui.reconstruct.page import ReconstructPage
from gui.scan.page import ScanPage
from gui.session import Failure, Session
from gui.volume.page import VolumePage

BEAT_MS = 33
PAGES: tuple[type[Page], ...] = (ConnectPage, LivePage, CalibratePage, ScanPage, ReconstructPage, VolumePage)


class Window(QtWidgets.QMainWindow):
    """Shows a session.

    Attributes
    ----------
    pages : dict of str to Page
        By title.
    """

    def __init__(self, session: Session, lines: LogLines) -> None:
        super().__init__()
        self.session = session
        self.setWindowTitle("mpxct")
        self.tabs = QtWidgets.QTabWidget()
        self.pages: dict[str, Page] = {}
        for number, kind in enumerate(PAGES, start=1):
            page = kind(session)
            self.pages[page.title] = page
            self.tabs.addTab(page, page.title)
            self.tabs.setTabToolTip(number - 1, f"{page.tip} (Ctrl+{number})")
            QtGui.QShortcut(
                QtGui.QKeySequence(f"Ctrl+{number}"), self, lambda n=number - 1: self.tabs.setCurrentIndex(n)
            )
        self.setCentralWidget(self.tabs)
        self._log = LogPanel(lines)
        self._dock("Log", self._log)
        self._beat = QtCore.QTimer(self)
        self._beat.timeout.connect(self.beat)
        self._beat.start(BEAT_MS)

    def beat(self) -> None:
        """Hand over what has ended, and show what is new on the page that is seen."""
        self.session.beat()
        page = self.tabs.currentWidget()
        if isinstance(page, Page):
            page.refresh()
        self._log.refresh()
        while self.session.failures:
            self._show(self.session.failures.pop(0))

    def closeEvent(self, event: QtGui.QCloseEvent) -> None:
        """Let the instrument go before the window does."""
        self._beat.stop()
        self.session.close()
        event.accept()

    def _dock(self, name: str, widget: QtWidgets.QWidget) -> None:
        dock = QtWidgets.QDockWidget(name, self)
        dock.setObjectName(name)
        dock.setWidget(widget)
        self.addDockWidget(QtCore.Qt.DockWidgetArea.BottomDockWidgetArea, dock)
        dock.hide()

    def _show(self, failure: Failure) -> None:
        box = QtWidgets.QMessageBox(QtWidgets.QMessageBox.Icon.Warning, failure.title, failure.sentence, parent=self)
        box.setInformativeText(failure.hint)
        box.open()
