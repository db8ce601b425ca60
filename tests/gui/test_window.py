"""The window as a whole: it opens, shows every page, keeps what it should, and lets all go when it is closed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pyqtgraph.Qt import QtCore
from pytestqt.qtbot import QtBot

from acquisition.plan import Plan, plan_to_toml
from gui.log_panel import LogLines
from gui.session import Session
from gui.window import PAGES, Window

ROOT = Path(__file__).resolve().parents[2]


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


def test_a_foreign_file_is_told_in_a_sentence(qtbot: QtBot, window: Window, tmp_path: Path) -> None:
    path = tmp_path / "foreign.h5"
    path.write_bytes(b"nothing of ours")
    window.open_file(path)
    qtbot.waitUntil(lambda: window._failures._box is not None)
    box = window._failures._box
    assert box is not None
    assert "foreign.h5" in box.text()
    box.close()


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


def test_nothing_heavy_is_loaded_before_the_window_is_there() -> None:
    heavy = ("numba", "scipy", "skimage", "matplotlib", "OpenGL", "zarr", "pydicom")
    code = f"import sys, gui.window; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
