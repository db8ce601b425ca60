"""Fixtures of the window: an offscreen Qt, a session, and a window whose threads end with the test."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from collections.abc import Iterator
from pathlib import Path

import pytest
from pyqtgraph.Qt import QtCore, QtWidgets
from pytestqt.qtbot import QtBot

from gui.log_panel import LogLines
from gui.session import Session
from gui.window import Window

MOST_GARBAGE = 200_000
"""Objects that may wait to be collected."""


@pytest.fixture(autouse=True)
def garbage_in_this_thread() -> Iterator[None]:
    """Let no other thread free a widget (see `gui.garbage`); to collect after each test would take most of the time."""
    gc.disable()
    yield
    if gc.get_count()[0] > MOST_GARBAGE:
        gc.collect()
    gc.enable()


@pytest.fixture(autouse=True)
def no_question_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test fail that leaves a question to nobody, as when its window closes while work goes on."""

    def ask(_: QtWidgets.QWidget, title: str, text: str, *buttons: object) -> None:
        raise AssertionError(f"nobody answers: {title} {text}")

    monkeypatch.setattr(QtWidgets.QMessageBox, "question", ask)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    """Return a session with nothing attached that writes into a folder of its own."""
    session = Session(tmp_path)
    yield session
    session.close()


@pytest.fixture
def settings(tmp_path: Path) -> QtCore.QSettings:
    """Return settings of nobody."""
    return QtCore.QSettings(str(tmp_path / "window.ini"), QtCore.QSettings.Format.IniFormat)


@pytest.fixture
def window(qtbot: QtBot, session: Session, settings: QtCore.QSettings) -> Window:
    """Return a window that is shown."""
    window = Window(session, LogLines(), settings)
    qtbot.addWidget(window)
    window.show()
    return window
