"""The window as a whole: it opens, shows every page, keeps what it should, and lets all go when it is closed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyqtgraph as pg
import pytest
import tifffile
from pyqtgraph.console.repl_widget import ReplWidget
from pyqtgraph.Qt import QtCore, QtGui, QtWidgets
from pytestqt.qtbot import QtBot

from acquisition.doctor import Finding, Level
from acquisition.plan import Plan, plan_to_toml
from gui import menus, status_strip, theme
from gui.controls import hint
from gui.log_panel import LogLines
from gui.scan.page import ScanPage
from gui.session import Session
from gui.window import PAGES, TURN_S, Window

ROOT = Path(__file__).resolve().parents[2]
PYTHON_S = sys.getswitchinterval()
LEAST_CONTRAST = 4.5
"""Of words: WCAG 2.2, success criterion 1.4.3."""
LEAST_CONTRAST_OF_MARKS = 3.0
"""As 1.4.11 asks."""


def test_the_window_shows_every_page(window: Window) -> None:
    for number, kind in enumerate(PAGES):
        window.tabs.setCurrentIndex(number)
        window.beat()
        assert (window.page.title, type(window.page)) == (kind.title, kind.load())
        assert window.page.isVisible()


def test_layout_and_page_are_there_again_at_the_next_start(
    qtbot: QtBot, window: Window, session: Session, settings: QtCore.QSettings, tmp_path: Path
) -> None:
    window.resize(750, 740)
    window.go_to("Volume")
    window._docks[0].show()
    window.close()
    again = Window(Session(tmp_path), LogLines(), settings)
    qtbot.addWidget(again)
    assert (again.width(), again.height()) == (750, 740)
    assert again.page.title == "Volume"
    assert again._docks[0].isVisibleTo(again)
    again.session.close()


def test_layout_and_plan_survive_a_crash(
    qtbot: QtBot, window: Window, settings: QtCore.QSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gui.window.KEEP_EVERY_S", 0.0)
    window.go_to("Scan")
    window.page.plan.begin_with("[scan]\nn_views = 17\n")  # pyright: ignore[reportAttributeAccessIssue]
    window.resize(760, 730)
    window.beat()
    written = Path(settings.fileName())
    qtbot.waitUntil(lambda: written.exists() and "n_views = 17" in written.read_text())  # and nothing was closed
    left = QtCore.QSettings(str(shutil.copy(written, tmp_path / "left.ini")), QtCore.QSettings.Format.IniFormat)
    again = Window(Session(tmp_path), LogLines(), left)
    assert (again.width(), again.height()) == (760, 730)
    assert again.page.title == "Scan"
    assert again.page.plan.document.text == "[scan]\nn_views = 17\n"  # pyright: ignore[reportAttributeAccessIssue]
    again.close()  # before the first one: each gives back what it has found
    again.deleteLater()


def test_files_that_pages_open_and_write_are_recent(window: Window, tmp_path: Path) -> None:
    window.session.change(scan_path=tmp_path / "a & b.h5")
    window.beat()
    window.session.change(materials_path=tmp_path / "m.h5")
    window.beat()
    window._fill_recent()
    names = [action.text() for action in window._recent_menu.actions()]
    assert names == [str(tmp_path / "m.h5"), str(tmp_path / "a && b.h5")]


def test_odd_settings_do_not_keep_the_window_from_opening(
    qtbot: QtBot, session: Session, settings: QtCore.QSettings
) -> None:
    for name in ("geometry", "docks", "look", "recent", "page", "page/Live", "page/Volume"):
        settings.setValue(name, "{nonsense")
    settings.setValue("page/Scan", "[1, 2]")
    window = Window(session, LogLines(), settings)
    qtbot.addWidget(window)
    window.show()
    assert window.page.title == "Instrument"


def test_a_plan_that_is_opened_becomes_the_session_s(qtbot: QtBot, window: Window, tmp_path: Path) -> None:
    path = tmp_path / "short.toml"
    path.write_text(plan_to_toml(Plan()).replace("n_views = ", "n_views = 1"))
    window.open_file(path)
    qtbot.waitUntil(lambda: window.session.state.plan_path == path)
    assert window.page.title == "Scan"
    assert window.session.state.plan != Plan()


def test_undo_of_the_menu_belongs_to_the_page_that_is_seen(qtbot: QtBot, window: Window) -> None:
    undo = next(each for each in window.findChildren(QtGui.QAction) if each.text() == "&Undo")
    window.go_to("Scan")
    scan = window.page
    assert isinstance(scan, ScanPage)
    before = scan.plan.document.text
    scan.plan.form.rows["scan.n_views"].editor.selectAll()
    qtbot.keyClicks(scan.plan.form.rows["scan.n_views"].editor, "48")
    window.go_to("Calibrate")
    undo.trigger()
    assert scan.plan.document.text != before
    window.go_to("Scan")
    undo.trigger()
    assert scan.plan.document.text == before


def test_a_foreign_file_is_told_in_a_sentence(qtbot: QtBot, window: Window, tmp_path: Path) -> None:
    path = tmp_path / "foreign.h5"
    path.write_bytes(b"nothing of ours")
    window.open_file(path)
    qtbot.waitUntil(lambda: window._failures._box is not None)
    box = window._failures._box
    assert box is not None
    assert "foreign.h5" in box.text()
    box.close()


def drop(window: Window, *urls: QtCore.QUrl) -> None:
    data = QtCore.QMimeData()
    data.setUrls(list(urls))
    at, copy = QtCore.QPointF(5, 5), QtCore.Qt.DropAction.CopyAction
    button, key = QtCore.Qt.MouseButton.LeftButton, QtCore.Qt.KeyboardModifier.NoModifier
    enter = QtGui.QDragEnterEvent(at.toPoint(), copy, data, button, key)
    window.dragEnterEvent(enter)
    assert enter.isAccepted()
    window.dropEvent(QtGui.QDropEvent(at, copy, data, button, key))


def test_files_that_are_dropped_together_are_opened_one_after_the_other(
    qtbot: QtBot, window: Window, tmp_path: Path
) -> None:
    paths = [tmp_path / "first.toml", tmp_path / "second.toml"]
    for path in paths:
        path.write_text("[scan]\n")
    drop(window, QtCore.QUrl("https://example.org/x.h5"), *(QtCore.QUrl.fromLocalFile(str(path)) for path in paths))
    qtbot.waitUntil(lambda: window._recent[:2] == [str(path) for path in reversed(paths)], timeout=20_000)
    assert not window.session.failures


def test_a_folder_of_images_that_is_dropped_is_taken_for_bins(qtbot: QtBot, window: Window, tmp_path: Path) -> None:
    folder = tmp_path / "bins"
    folder.mkdir()
    for number in (1, 2):
        tifffile.imwrite(folder / f"bin{number}.tif", np.full((6, 4, 5), number, np.float32), photometric="minisblack")
    drop(window, QtCore.QUrl.fromLocalFile(str(folder)))
    assert window.page.title == "Reconstruct"
    qtbot.waitUntil(lambda: window.session.state.bins is not None, timeout=20_000)
    bins = window.session.state.bins
    assert bins is not None
    assert bins.channels == ("bin1", "bin2")
    assert not window.session.failures


def test_leaving_the_console_closes_the_window(window: Window) -> None:
    window._docks[1].show()
    console = window._console.findChild(ReplWidget)
    assert console is not None
    console._thread.runCmd("exit()")
    assert not window.isVisible()


def test_light_and_dark_reach_every_page(window: Window) -> None:
    for look in ("dark", "light", "system"):
        window.set_look(look)
        for page in window.pages:
            window.go_to(page)
            assert window.page.isVisible()
            window.beat()
        assert not window.session.failures


def test_a_fault_is_shown_and_counted_once(window: Window) -> None:
    for _ in range(3):
        window.session.fail("Trial", ValueError("something odd"))
    window.beat()
    box = window._failures._box
    assert box is not None
    assert box.text() == "something odd"
    assert "2 more" in box.informativeText()
    box.close()


def test_a_look_leaves_no_style_sheet_for_all_and_reaches_what_has_one_of_its_own(
    qtbot: QtBot, window: Window, qapp: QtWidgets.QApplication
) -> None:
    role = QtGui.QPalette.ColorRole
    for look, colours in (("dark", theme.DARK), ("light", theme.LIGHT)):
        window.set_look(look)
        assert qapp.styleSheet() == ""
        sheeted = window.strip.safe
        assert sheeted.styleSheet()
        for widget, which, colour in ((sheeted, role.Button, colours.window), (window, role.Text, colours.text)):
            qtbot.waitUntil(lambda w=widget, r=which, c=colour: w.palette().color(r) == QtGui.QColor(c))


def test_the_window_is_not_kept_waiting_for_python_s_lock(window: Window) -> None:
    assert sys.getswitchinterval() == pytest.approx(TURN_S)
    window.close()
    assert sys.getswitchinterval() == pytest.approx(PYTHON_S)


def test_nothing_goes_on_when_the_window_is_closed(qtbot: QtBot, settings: QtCore.QSettings, tmp_path: Path) -> None:
    before = set(threading.enumerate())
    window = Window(Session(tmp_path), LogLines(), settings)
    qtbot.addWidget(window)
    window.show()
    for kind in PAGES:
        window.go_to(kind.title)
        assert window.page.isVisible()
        window.beat()
    window.close()
    qtbot.waitUntil(lambda: not [each for each in threading.enumerate() if each not in before], timeout=20_000)
    timers = [each for each in window.findChildren(QtCore.QTimer) if each.isActive() and not each.isSingleShot()]
    assert [f"{each.parent()!r} every {each.interval()} ms" for each in timers] == []


def test_menus_of_plots_are_made_when_they_are_wanted(window: Window) -> None:
    view = window.pages["Live"].panel.view  # pyright: ignore[reportAttributeAccessIssue]
    assert view.menu.made is None
    assert view.menuEnabled()
    texts = [action.text() for action in view.getMenu(None).actions()]
    assert "View All" in texts
    assert view.menu.made is not None


def test_a_view_that_shall_have_no_menu_makes_none(window: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    monkeypatch.setattr(menus, "_Menu", lambda view: made.append(view))
    pg.ViewBox().setMenuEnabled(False)
    assert not made


def test_nothing_heavy_is_loaded_before_the_window_is_there() -> None:
    heavy = (
        "numba",
        "scipy",
        "skimage",
        "matplotlib",
        "OpenGL",
        "zarr",
        "pydicom",
        "h5py",
        "gui.live.page",
        "gui.volume",
    )
    code = f"import sys, gui.window; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


CONTROLS = (
    QtWidgets.QAbstractButton, QtWidgets.QComboBox, QtWidgets.QLineEdit, QtWidgets.QAbstractSpinBox,
    QtWidgets.QAbstractSlider, QtWidgets.QPlainTextEdit, QtWidgets.QTableWidget, QtWidgets.QListWidget,
)  # fmt: skip


def _controls(window: Window) -> list[QtWidgets.QWidget]:
    """Return what can be used on all pages; parts that Qt makes of itself have names, or stand in another control."""
    found = [
        each
        for page in window.pages.values()
        for each in page.findChildren(QtWidgets.QWidget)
        if isinstance(each, CONTROLS)
        and not isinstance(each, QtWidgets.QScrollBar)
        and not each.objectName().startswith(("qt_", "Scroll"))
        and not isinstance(each.parentWidget(), QtWidgets.QAbstractSpinBox | QtWidgets.QComboBox)
    ]
    assert len(found) > 200
    return found


def test_every_control_of_every_page_says_what_it_does(window: Window) -> None:
    silent = [
        f"{type(each).__name__} in {type(each.parentWidget()).__name__}"
        for each in _controls(window)
        if not each.toolTip()
    ]
    assert silent == []


def _is_for_the_eye(widget: QtWidgets.QWidget) -> bool:
    """Tell whether it is a table of which nothing can be chosen."""
    is_table = isinstance(widget, QtWidgets.QTableWidget)
    return is_table and widget.selectionMode() is QtWidgets.QTableWidget.SelectionMode.NoSelection


def test_every_control_of_every_page_is_reached_by_the_keyboard(window: Window) -> None:
    deaf = [
        f"{type(each).__name__} in {type(each.parentWidget()).__name__}"
        for each in _controls(window)
        if not each.focusPolicy() & QtCore.Qt.FocusPolicy.TabFocus and not _is_for_the_eye(each)
    ]
    assert deaf == []


@pytest.mark.parametrize("look", [theme.LIGHT, theme.DARK], ids=["light", "dark"])
def test_words_stand_off_their_ground_as_wcag_asks(look: theme.Theme) -> None:
    for words in (look.text, look.faint, look.good, look.warn, look.bad, look.accent):
        for ground in (look.window, look.base if words == look.accent else look.field, look.base):
            assert contrast(words, ground) >= LEAST_CONTRAST, (words, ground)


@pytest.mark.parametrize("ground", ["#000000", "#ffffff"])
def test_the_ring_round_a_picture_is_seen_on_any_ground(ground: str) -> None:
    assert contrast(theme.RING, ground) >= LEAST_CONTRAST_OF_MARKS


@pytest.mark.parametrize("sheet", [sheet for sheet in status_strip.MOODS.values() if sheet])
def test_words_of_the_strip_stand_off_their_own_ground(sheet: str) -> None:
    words, ground = re.findall(r"#[0-9a-f]{6}", sheet)[:2]
    assert contrast(words, ground) >= LEAST_CONTRAST


def test_colours_of_marks_are_never_those_of_words() -> None:
    """They may frame and mark; on one ground or the other they are too pale to be read."""
    lines = [
        line
        for path in (ROOT / "gui").rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"theme\.(WARN|BAD)\b|import .*\b(WARN|BAD)\b", line)
    ]
    marks = ("border", "background: {theme", "pixels in", "colour = QtGui.QColor(theme.BAD)")
    assert [line for line in lines if not any(mark in line.lower() or mark in line for mark in marks)] == []


def test_findings_checks_and_steps_follow_the_look(window: Window) -> None:
    """What was written in colours is written anew."""
    connect, steps = window.pages["Instrument"], window.pages["Calibrate"].steps  # pyright: ignore[reportAttributeAccessIssue]
    connect.machine._findings = (Finding(level=Level.OK, topic="packages", text="all there"),)  # pyright: ignore[reportAttributeAccessIssue]
    for name, look in (("dark", theme.DARK), ("light", theme.LIGHT)):
        window.set_look(name)
        assert look.good in connect.machine.text.toHtml()  # pyright: ignore[reportAttributeAccessIssue]
        steps.refresh()
        assert steps._shown[-1] is look


def contrast(one: str, other: str) -> float:
    """Return the ratio of WCAG 2.2, success criterion 1.4.3, with relative luminance by its definition."""
    low, high = sorted(map(_luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(name: str) -> float:
    colour = QtGui.QColor(name)
    parts = [
        each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4
        for each in (colour.redF(), colour.greenF(), colour.blueF())
    ]
    return sum(share * part for share, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True))


def test_judged_words_follow_the_look(window: Window) -> None:
    label = QtWidgets.QLabel("good", window)
    theme.judge(label, is_good=True)
    colours = []
    for name in ("dark", "light"):
        window.set_look(name)
        colours.append(label.styleSheet())
    assert theme.DARK.good in colours[0]
    assert theme.LIGHT.good in colours[1]
    faint = hint("good")
    theme.judge(faint, is_good=True)
    faint.ensurePolished()
    assert faint.palette().color(faint.foregroundRole()).name(QtGui.QColor.NameFormat.HexArgb) == "#ff00694d"
    theme.say(label, "color: #123456")
    window.set_look("dark")
    assert label.styleSheet() == "color: #123456"
    window.set_look("light")
