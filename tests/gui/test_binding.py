"""The Qt binding gives back what it takes, and a window that is closed leaves nothing behind."""

from __future__ import annotations

import gc
import sys
import time
from pathlib import Path

import pytest
from pyqtgraph.Qt import QtCore, QtGui, QtWidgets
from pytestqt.qtbot import QtBot

from gui.log_panel import LogLines
from gui.session import Session
from gui.window import PAGES, Window

CALLS = 2000


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="None cannot be lost: it is immortal from Python 3.12 on")
def test_void_methods_cost_no_reference_of_none(qapp: QtWidgets.QApplication) -> None:
    image, path = QtGui.QImage(8, 8, QtGui.QImage.Format.Format_RGB32), QtGui.QPainterPath()
    painter = QtGui.QPainter(image)
    before = sys.getrefcount(None)
    for _ in range(CALLS):
        painter.save()
        painter.drawLine(0, 0, 7, 7)
        path.lineTo(1.0, 1.0)
        painter.restore()
    lost = before - sys.getrefcount(None)
    painter.end()
    assert lost < CALLS // 10, f"{lost} references of None were lost in {4 * CALLS} calls; see the pin of PySide6"


@pytest.mark.parametrize("n_pages", [len(PAGES), 1])
def test_a_closed_window_leaves_no_widget(
    qtbot: QtBot, session: Session, settings: QtCore.QSettings, tmp_path: Path, n_pages: int
) -> None:
    """Also one that is closed while a page is being built."""
    before = set(QtWidgets.QApplication.allWidgets())
    window = Window(Session(tmp_path), LogLines(), settings)
    window.show()
    for place in range(n_pages):
        window.tabs.setCurrentIndex(place)
        assert window.page.isVisible()
        window.beat()
    while n_pages == 1 and not any(type(each).__name__ == "PlanPanel" for each in QtWidgets.QApplication.allWidgets()):
        window.beat()
        time.sleep(0.001)
    assert ("Scan" in window.pages.built) == (n_pages > 1)
    assert len(QtWidgets.QApplication.allWidgets()) > len(before) + 100
    window.close()
    if window.pages._loader is not None:
        window.pages._loader.join()
    window.deleteLater()
    del window
    QtCore.QCoreApplication.sendPostedEvents(None, QtCore.QEvent.Type.DeferredDelete.value)
    gc.collect()
    left = {type(each).__name__ for each in QtWidgets.QApplication.allWidgets() if each not in before}
    assert not left
