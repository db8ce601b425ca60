"""The window as a whole: it opens, shows every page, and lets all go when it is closed."""

from __future__ import annotations

from pytestqt.qtbot import QtBot

from gui.log_panel import LogLines
from gui.session import Session
from gui.window import PAGES, Window


def test_the_window_shows_every_page(qtbot: QtBot, session: Session) -> None:
    window = Window(session, LogLines())
    qtbot.addWidget(window)
    window.show()
    for number, kind in enumerate(PAGES):
        window.tabs.setCurrentIndex(number)
        window.beat()
        assert isinstance(window.tabs.currentWidget(), kind)
        assert window.tabs.currentWidget().isVisible()
