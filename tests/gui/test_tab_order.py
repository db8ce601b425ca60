"""Tab walks through every page as one reads it, reaches all that can be used, and comes round."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from pyqtgraph.Qt import QtCore, QtWidgets
from pytestqt.qtbot import QtBot

from gui.controls import put_in_turn
from gui.pages import PAGES
from gui.window import Window
from tests.gui.volume_samples import bins, materials

TAB = QtCore.Qt.Key.Key_Tab
MOST_STOPS = 200
N_BEATS = 25


def look_on(qtbot: QtBot, window: Window, until: Callable[[], bool] | None = None) -> None:
    beats = iter(range(N_BEATS))

    def beat() -> bool:
        window.beat()
        return until() if until is not None else next(beats, None) is None

    qtbot.waitUntil(beat, timeout=20_000)


def walked(qtbot: QtBot, window: Window) -> list[QtWidgets.QWidget]:
    """Return all that Tab comes to, from the tabs of the pages until these are reached again."""
    first = window.tabs.tabBar()
    window.activateWindow()
    first.setFocus()
    stops: list[QtWidgets.QWidget] = [first]
    while True:
        qtbot.keyClick(stops[-1], TAB)
        now = window.focusWidget()
        assert now is not None
        if now is first:
            return stops
        assert now not in stops, f"{said(now)} is come to twice, or does not let go"
        stops.append(now)


def above(widget: QtWidgets.QWidget, window: Window) -> list[QtWidgets.QWidget]:
    """Return what a widget stands in, from the window down to itself."""
    chain = [widget]
    while chain[-1] is not window and (parent := chain[-1].parentWidget()) is not None:
        chain.append(parent)
    return chain[::-1]


def said(widget: QtWidgets.QWidget) -> str:
    return f"{type(widget).__name__} {widget.toolTip()[:50]!r}"


def out_of_turn(stops: list[QtWidgets.QWidget], window: Window) -> list[str]:
    """Return where the walk goes back up or to the left, or comes again into a panel that it had left."""
    wrong, left = [], set()
    for before, after in pairwise(stops):
        ways = above(before, window), above(after, window)
        if before in ways[1]:
            continue  # from an area to what it holds
        n = next(n for n, (a, b) in enumerate(zip(*ways, strict=False)) if a is not b)
        (a, b), parent = (way[n] for way in ways), ways[0][n - 1]
        one, other = (QtCore.QRect(each.mapTo(parent, QtCore.QPoint()), each.size()) for each in (a, b))
        is_beside = one.top() < other.center().y() < one.bottom() or other.top() < one.center().y() < other.bottom()
        if other.center().x() < one.center().x() if is_beside else other.center().y() < one.center().y():
            wrong.append(f"from {said(before)} back to {said(after)}")
        left |= set(ways[0][n:])
        wrong += [f"again into {said(each)}" for each in ways[1] if each in left]
    return wrong


def forgotten(stops: list[QtWidgets.QWidget], window: Window) -> list[str]:
    return [
        said(each)
        for each in window.findChildren(QtWidgets.QWidget)
        if each.isVisible() and each.isEnabled() and each.focusPolicy() & QtCore.Qt.FocusPolicy.TabFocus
        and each.focusProxy() is None and not each.objectName().startswith("qt_") and each not in stops
    ]  # fmt: skip


@pytest.mark.parametrize("title", [kind.title for kind in PAGES])
def test_tab_walks_as_one_reads(qtbot: QtBot, window: Window, title: str) -> None:
    window.session.change(bins=bins(), materials=materials())
    window.resize(1280, 800)
    window.go_to(title)
    assert window.page.title == title
    look_on(qtbot, window)
    for tabs in [each for each in window.page.findChildren(QtWidgets.QTabWidget) if each.isVisible()]:
        for n in [n for n in range(tabs.count()) if tabs.isTabVisible(n)]:
            tabs.setCurrentIndex(n)
            look_on(qtbot, window)
            stops = walked(qtbot, window)
            assert 2 <= len(stops) < MOST_STOPS  # on Run, before a scan, there is nothing but the tabs
            assert (tabs.tabText(n), out_of_turn(stops, window), forgotten(stops, window)) == (tabs.tabText(n), [], [])
        tabs.setCurrentIndex(0)


def test_what_is_made_late_has_its_turn_where_it_stands(qtbot: QtBot) -> None:
    outer = QtWidgets.QWidget()
    layout = QtWidgets.QVBoxLayout(outer)
    first, place, last = QtWidgets.QLineEdit(), QtWidgets.QWidget(), QtWidgets.QLineEdit()
    for each in (first, place, last):
        layout.addWidget(each)
    inner = QtWidgets.QVBoxLayout(place)
    late = [QtWidgets.QSpinBox(), QtWidgets.QComboBox(), QtWidgets.QLineEdit()]
    for each in late:
        inner.addWidget(each)
    put_in_turn(place, place)
    qtbot.addWidget(outer)
    outer.show()
    for before, after in pairwise((first, *late, last)):
        before.setFocus()
        qtbot.keyClick(before, TAB)
        assert outer.focusWidget() is after
