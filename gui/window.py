"""The window: the pages of a technician's day side by side, the instrument's state under them, what holds for all."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pyqtgraph.Qt import QtCore, QtGui, QtWidgets

from gui import menus, theme
from gui.console_panel import ConsolePanel
from gui.controls import allow
from gui.failure_box import FailureBox
from gui.garbage import Collector
from gui.log_panel import LogLines, LogPanel
from gui.opening import FILTER, Opened, open_into, opened_file
from gui.page import BEAT_MS, Page
from gui.pages import PAGES, Pages
from gui.session import Session
from gui.status_strip import StatusStrip

if TYPE_CHECKING:
    from gui.reconstruct.page import ReconstructPage
    from gui.volume.page import VolumePage

MOST_RECENT = 10
QUIET_BEATS = 6
"""After so many the window is there, and pages that nobody has wanted yet are built, one piece a beat."""
KEEP_EVERY_S = 30.0
"""What was laid out and typed before is there again after a crash."""
TURN_S = 0.0005
"""How long another thread may keep Python's lock while the window's waits for it, which it does dozens of times to draw
one picture; Python's own 5 ms would hold it up for a tenth of a second."""
LEAST_PAGE = (720, 440)
"""Without it the widest page would widen the window."""
ABOUT = "<b>{version}</b><p>Colour X-ray CT with Medipix-family photon-counting detectors.<br>Apache-2.0</p>"
OPEN = "Open a scan, a calibration, a volume, a plan, a Merlin file."
LOG, CONSOLE = "What happened, line by line.", "A Python console that holds the window's objects."
RECONSTRUCT, VOLUME = "Reconstruct", "Volume"
LOOKS = ("system", "light", "dark")


class Window(QtWidgets.QMainWindow):
    """Shows a session.

    Parameters
    ----------
    settings : QSettings
        Where layout, theme and what pages wish to keep is written at the end, and read at the next start.

    Attributes
    ----------
    pages : mapping of str to Page
        By title; a page is built when it is first asked for, or piece by piece soon after the window is there.
    """

    def __init__(self, session: Session, lines: LogLines, settings: QtCore.QSettings) -> None:
        super().__init__()
        menus.delay()
        self.session = session
        self._settings = settings
        self.setWindowTitle("mpxct")
        self.setAcceptDrops(True)
        self.tabs = QtWidgets.QTabWidget(documentMode=True)
        self.tabs.setObjectName("pages")
        self.pages = Pages(session, self._house)
        for place, kind in enumerate(PAGES):
            self.tabs.addTab(_room(), kind.title)
            self.tabs.setTabToolTip(place, f"{kind.tip} (Ctrl+{place + 1})")
        self.strip = StatusStrip(session)
        middle = QtWidgets.QWidget()
        under = QtWidgets.QVBoxLayout(middle)
        under.setContentsMargins(0, 0, 0, 0)
        under.setSpacing(0)
        under.addWidget(self.tabs, 1)
        under.addWidget(self.strip)
        self.setCentralWidget(middle)
        self._log = LogPanel(lines)
        self._console = ConsolePanel({"window": self, "session": session, "pages": self.pages})
        self._docks = [self._dock("Log", self._log), self._dock("Console", self._console)]
        self._failures = FailureBox(self, lines)
        self._to_open: list[Path] = []
        self._had: set[Path] = set()
        self._kept_s = time.monotonic()
        self._last_kept: dict[str, object] = {}
        self._n_beats = 0
        self._recent = [str(path) for path in _list(settings.value("recent"))]
        self._look = str(settings.value("look", LOOKS[0]))
        self._make_menus()
        self._restore()
        self._turn_s = sys.getswitchinterval()
        sys.setswitchinterval(TURN_S)
        self._garbage = Collector()
        self._garbage.begin()
        self._beat = QtCore.QTimer(self)
        self._beat.timeout.connect(self.beat)
        self._beat.start(BEAT_MS)

    @property
    def page(self) -> Page:
        """The page that is seen."""
        return self.pages[PAGES[self.tabs.currentIndex()].title]

    def go_to(self, title: str) -> None:
        """Show a page."""
        self.tabs.setCurrentIndex(list(self.pages).index(title))

    def beat(self) -> None:
        """Hand over what has ended, and show what is new on the page that is seen."""
        self._garbage.collect()
        self.session.beat()
        if self._to_open and not self.session.why_busy("files"):
            self.open_file(self._to_open.pop(0))
        if self.session.page_wanted:
            self.go_to(self.session.page_wanted)
            self.session.page_wanted = ""
        for path in self._paths() - self._had:  # whichever page opened or wrote them
            self._remember(path)
        self._had = self._paths()
        if time.monotonic() - self._kept_s > KEEP_EVERY_S:
            self._keep()
        self._n_beats += 1
        seen = PAGES[self.tabs.currentIndex()].title
        if self.pages.build_on(seen, others=self._has_time()):
            self._garbage.settle()
        if seen in self.pages.built:
            self.pages.built[seen].refresh()
            if self._beat.interval() != (beat_ms := self.pages.built[seen].beat_ms):
                self._beat.setInterval(beat_ms)
        self.strip.refresh()
        self._log.refresh()
        while self.session.failures:
            self._failures.show_failure(self.session.failures.pop(0))

    def open_file(self, path: Path) -> None:
        """Open a file of any kind, or a folder of images, after those before it, and show the page it belongs to."""

        def then(opened: Opened) -> None:
            self.go_to(open_into(self.session, opened))
            self._remember(path)

        if path.is_dir():
            self.go_to(RECONSTRUCT)
            cast("ReconstructPage", self.page).open(path)
            return
        if self.session.why_busy("files"):
            self._to_open.append(path)
            return
        self.session.compute(f"Opening {path.name}", opened_file(path), then, lane="files")

    def _paths(self) -> set[Path]:
        """Return the files that the session has."""
        state = self.session.state
        paths = (state.plan_path, state.calibration_path, state.scan_path, state.bins_path, state.materials_path)
        return {path for path in paths if path is not None}

    def _remember(self, path: Path) -> None:
        """Put a file first in the list of recent ones."""
        name = str(path.absolute())
        self._recent = [name, *(each for each in self._recent if each != name)][:MOST_RECENT]

    def set_look(self, name: str) -> None:
        """Make everything light or dark, or as the desktop is."""
        app = QtWidgets.QApplication.instance()
        assert isinstance(app, QtWidgets.QApplication)
        self._look = name
        theme.apply(app, {"light": theme.LIGHT, "dark": theme.DARK}.get(name) or theme.system_theme())
        for page in self.pages.built.values():
            page.restyle()

    def save_picture(self, path: Path) -> None:
        """Save what the window shows as a picture."""
        if not self.grab().save(str(path)):
            self.session.fail("Save a picture", OSError(f"{path} could not be written; allowed: .png or .jpg"))

    def dragEnterEvent(self, event: QtGui.QDragEnterEvent) -> None:
        """Take files."""
        if any(url.isLocalFile() for url in event.mimeData().urls()):
            event.acceptProposedAction()

    def dropEvent(self, event: QtGui.QDropEvent) -> None:
        """Open what was dropped, one after the other."""
        for url in event.mimeData().urls():
            if url.isLocalFile():
                self.open_file(Path(url.toLocalFile()))

    def closeEvent(self, event: QtGui.QCloseEvent) -> None:
        """Ask about what runs, keep the layout, and let the instrument go before the window does."""
        job = self.session.job("instrument")
        if job is not None and not job.is_over and not self._may_end(job.title):
            event.ignore()
            return
        self._beat.stop()
        self.pages.close()
        _write(self._settings, self._kept())
        for page in self.pages.built.values():
            page.end()
        self.session.close()
        self._garbage.end()
        sys.setswitchinterval(self._turn_s)
        event.accept()

    def _has_time(self) -> bool:
        """Whether pages that nobody has wanted yet may be built: not while one shows what comes live."""
        return self._n_beats > QUIET_BEATS and self._beat.interval() >= BEAT_MS

    def _house(self, page: Page) -> None:
        """Give a page its room, as an earlier window left it."""
        page.setMinimumSize(*LEAST_PAGE)
        page.restore(_table(self._settings.value(f"page/{page.title}")))
        if page.title == VOLUME:
            cast("VolumePage", page).export_asked.connect(self._export)
        room = self.tabs.widget(list(self.pages).index(page.title))
        assert room is not None
        room.layout().addWidget(page)  # pyright: ignore[reportOptionalMemberAccess]
        page.show()

    def _may_end(self, title: str) -> bool:
        """Ask whether what runs on the instrument may be broken off."""
        button = QtWidgets.QMessageBox.StandardButton
        answer = QtWidgets.QMessageBox.question(
            self,
            "Close mpxct?",
            f"{title} is running. Closing breaks it off: the beam goes off, and what was measured is kept as a partial "
            "file that can be resumed.",
            button.Close | button.Cancel,
            button.Cancel,
        )
        return answer == button.Close

    def _dock(self, name: str, widget: QtWidgets.QWidget) -> QtWidgets.QDockWidget:
        dock = QtWidgets.QDockWidget(name, self)
        dock.setObjectName(name)
        dock.setWidget(widget)
        self.addDockWidget(QtCore.Qt.DockWidgetArea.BottomDockWidgetArea, dock)
        dock.hide()
        return dock

    def _make_menus(self) -> None:
        file, edit, view, instrument, help_ = (
            self.menuBar().addMenu(name) for name in ("&File", "&Edit", "&View", "&Instrument", "&Help")
        )
        _add(file, "&Open...", self._choose_file, "Ctrl+O", OPEN)
        self._recent_menu = file.addMenu("Open &recent")
        self._recent_menu.setToolTipsVisible(True)
        self._recent_menu.aboutToShow.connect(self._fill_recent)
        _add(file, "Data &folder...", self._choose_folder, tip="Where new files go.")
        file.addSeparator()
        _add(file, "&Export...", self._export, "Ctrl+E", "Write volumes for other programs.")
        _add(file, "Save &picture of the window...", self._choose_picture, "Ctrl+Shift+P", "As it is seen now.")
        file.addSeparator()
        _add(file, "&Quit", self.close, "Ctrl+Q", "Let the instrument go, and keep the layout.")
        no_edit = lambda: "" if self.page.can_undo else "nothing was edited on this page."  # noqa: E731
        none_back = lambda: "" if self.page.can_redo else "nothing was taken back on this page."  # noqa: E731
        _add(edit, "&Undo", lambda: self.page.undo(), "Ctrl+Z", "Take back the last edit on this page.", no_edit)
        _add(edit, "&Redo", lambda: self.page.redo(), "Ctrl+Shift+Z", "Make it again.", none_back)
        for number, kind in enumerate(PAGES, start=1):
            _add(view, kind.title, lambda name=kind.title: self.go_to(name), f"Ctrl+{number}", kind.tip)
        view.addSeparator()
        for dock, keys, tip in zip(self._docks, ("Ctrl+L", "Ctrl+J"), (LOG, CONSOLE), strict=True):
            action = dock.toggleViewAction()
            action.setShortcut(QtGui.QKeySequence(keys))
            action.setToolTip(tip)
            view.addAction(action)
        looks = QtGui.QActionGroup(self)
        for name in LOOKS:
            action = _add(view, f"{name.capitalize()} colours", lambda name=name: self.set_look(name))
            action.setCheckable(True)
            action.setChecked(name == self._look)
            looks.addAction(action)
        view.addSeparator()
        _add(view, "F&ull screen", self._toggle_full_screen, "F11")
        idle = lambda: "" if self.session.job("instrument") is not None else "nothing runs on the instrument."  # noqa: E731
        _add(instrument, "&Stop what runs", self._stop, "Ctrl+.", "Let it end well, after the present frame.", idle)
        _add(instrument, "&Abort what runs", self._abort, "Ctrl+Shift+.", "End it at once, beam off.", idle)
        _add(help_, "&Keys", self._show_keys, "F1")
        _add(help_, "&About mpxct", self._show_about)

    def _fill_recent(self) -> None:
        self._recent_menu.clear()
        for name in self._recent:
            _add(self._recent_menu, name.replace("&", "&&"), lambda name=name: self.open_file(Path(name)))
        if not self._recent:
            allow(self._recent_menu.addAction("none"), "Files that were opened lately.", "nothing was opened yet.")

    def _choose_file(self) -> None:
        folder = str(self.session.state.folder)
        name, _ = QtWidgets.QFileDialog.getOpenFileName(self, "Open", folder, FILTER)
        if name:
            self.open_file(Path(name))

    def _choose_folder(self) -> None:
        folder = QtWidgets.QFileDialog.getExistingDirectory(self, "Data folder", str(self.session.state.folder))
        if folder:
            self.session.change(folder=Path(folder))

    def _choose_picture(self) -> None:
        name, _ = QtWidgets.QFileDialog.getSaveFileName(self, "Save picture", str(self.session.state.folder), "*.png")
        if name:
            self.save_picture(Path(name).with_suffix(".png") if not Path(name).suffix else Path(name))

    def _export(self) -> None:
        from gui.export.dialog import ExportDialog

        volumes = cast("VolumePage", self.pages[VOLUME])
        ExportDialog(self.session, self, looks=lambda: volumes.desk.material_looks).open()

    def _toggle_full_screen(self) -> None:
        self.setWindowState(self.windowState() ^ QtCore.Qt.WindowState.WindowFullScreen)

    def _stop(self) -> None:
        job = self.session.job("instrument")
        if job is not None:
            job.stop()

    def _abort(self) -> None:
        job = self.session.job("instrument")
        if job is not None:
            job.abort()

    def _show_keys(self) -> None:
        rows = [
            f"<tr><td><b>{action.shortcut().toString()}</b></td><td>{action.text().replace('&', '')}</td></tr>"
            for menu in self.menuBar().findChildren(QtWidgets.QMenu)
            for action in menu.actions()
            if not action.shortcut().isEmpty()
        ]
        rows += [f"<tr><td><b>{keys}</b></td><td>{text}</td></tr>" for keys, text in self.page.keys().items()]
        box = QtWidgets.QMessageBox(self)
        box.setWindowTitle("Keys")
        box.setText(f"<table cellspacing='6'>{''.join(rows)}</table>")
        box.open()

    def _show_about(self) -> None:
        from calibration.store import software_version

        QtWidgets.QMessageBox.about(self, "About mpxct", ABOUT.format(version=software_version()))

    def _kept(self) -> dict[str, object]:
        """Return layout and settings for the next start."""
        pages = {f"page/{name}": json.dumps(page.save()) for name, page in self.pages.built.items()}
        return {
            "geometry": self.saveGeometry(),
            "docks": self.saveState(),
            "look": self._look,
            "recent": list(self._recent),
            "folder": str(self.session.state.folder),
            "page": PAGES[self.tabs.currentIndex()].title,
            **pages,
        }

    def _keep(self) -> None:
        """Write what has changed, beside the window: it may be broken off, and a disk takes its time."""
        before, self._last_kept, self._kept_s = self._last_kept, self._kept(), time.monotonic()
        if self._last_kept != before:
            threading.Thread(target=_write, args=(self._settings, self._last_kept), name="settings").start()

    def _restore(self) -> None:
        """Take up what an earlier window left; whatever is odd in it is left alone."""
        keep = self._settings
        if not self.restoreGeometry(_bytes(keep.value("geometry"))):
            self.resize(1280, 800)
        self.restoreState(_bytes(keep.value("docks")))
        if keep.value("page") in self.pages:
            self.go_to(str(keep.value("page")))


def _room() -> QtWidgets.QWidget:
    """Return an empty place for a page."""
    room = QtWidgets.QWidget()
    QtWidgets.QVBoxLayout(room).setContentsMargins(0, 0, 0, 0)
    return room


def _add(
    menu: QtWidgets.QMenu,
    text: str,
    does: Callable[[], object],
    keys: str = "",
    tip: str = "",
    why_not: Callable[[], str] | None = None,
) -> QtGui.QAction:
    """Add an entry; what cannot be done now is grey while the menu is seen: its keys are heard at any time."""
    action = menu.addAction(text)
    action.triggered.connect(lambda: does())
    action.setShortcut(QtGui.QKeySequence(keys))
    action.setToolTip(tip)
    menu.setToolTipsVisible(True)
    if why_not is not None:
        menu.aboutToShow.connect(lambda: allow(action, tip, why_not()))
        menu.aboutToHide.connect(lambda: allow(action, tip))
    return action


def _write(settings: QtCore.QSettings, kept: dict[str, object]) -> None:
    """Write settings, from any thread: an object of its own for the same file."""
    own = QtCore.QSettings(settings.fileName(), settings.format())
    for name, value in kept.items():
        own.setValue(name, value)
    own.sync()


def _list(value: Any) -> list[Any]:
    """Return a list of settings, of which one is read back as itself and none as nothing."""
    return value if isinstance(value, list) else [value] if isinstance(value, str) else []


def _bytes(value: Any) -> QtCore.QByteArray:
    return value if isinstance(value, QtCore.QByteArray) else QtCore.QByteArray()


def _table(value: Any) -> dict[str, object]:
    try:
        table = json.loads(value) if isinstance(value, str) else {}
    except ValueError:
        return {}
    return table if isinstance(table, dict) else {}
