"""Pages come to be piece by piece, and nothing of the window waits for one of them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from types import ModuleType

import pytest
from pytestqt.qtbot import QtBot

from gui.page import Page
from gui.pages import PAGES, PageKind, Pages
from gui.session import Session

N_PIECES = 3


class Slow(Page):
    title = "Slow"
    made: list[int] = []  # noqa: RUF012 - each test begins with its own

    def build(self) -> Iterator[None]:
        for piece in range(N_PIECES):
            self.made.append(piece)
            yield


class Broken(Page):
    title = "Broken"

    def build(self) -> Iterator[None]:
        yield
        raise ValueError("this page cannot be built")


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Return what lets the module of these pages be loaded."""
    may_load = threading.Event()
    monkeypatch.setattr(Slow, "made", [])
    monkeypatch.setattr(Slow, "prepare", staticmethod(lambda: may_load.wait(10.0)))
    module = ModuleType("pages_of_this_test")
    module.Slow, module.Broken = Slow, Broken  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return may_load


def kinds(*names: str) -> list[PageKind]:
    return [PageKind(title=name, tip="", module="pages_of_this_test", name=name) for name in names]


def build_all(qtbot: QtBot, pages: Pages, title: str) -> int:
    """Build until nothing is missing, and return how many pieces that took."""
    n_pieces = 0

    def step() -> bool:
        nonlocal n_pieces
        n_pieces += pages.build_on(title)
        return title in pages.built

    qtbot.waitUntil(step)
    return n_pieces


def test_one_piece_is_built_at_a_time_and_none_before_it_is_loaded(
    qtbot: QtBot, session: Session, loads: threading.Event
) -> None:
    housed: list[Page] = []
    pages = Pages(session, housed.append, kinds("Slow"))
    assert [pages.build_on("Slow") for _ in range(5)] == [False] * 5
    assert Slow.made == []
    loads.set()
    n_pieces = build_all(qtbot, pages, "Slow")
    assert Slow.made == list(range(N_PIECES))
    assert n_pieces >= N_PIECES + 1
    assert housed == [pages["Slow"]]
    assert not pages.build_on("Slow")


def test_whoever_asks_for_a_page_gets_it_at_once_also_one_that_was_begun(
    qtbot: QtBot, session: Session, loads: threading.Event
) -> None:
    loads.set()
    pages = Pages(session, lambda _: None, kinds("Slow"))
    qtbot.waitUntil(lambda: pages.build_on("Slow"))
    assert "Slow" not in pages.built
    assert isinstance(pages["Slow"], Slow)
    assert Slow.made == list(range(N_PIECES))


def test_the_page_that_is_seen_is_built_first(qtbot: QtBot, session: Session, loads: threading.Event) -> None:
    loads.set()
    pages = Pages(session, lambda _: None, kinds("Broken", "Slow"))
    build_all(qtbot, pages, "Slow")
    assert list(pages.built) == ["Slow"]


def test_others_are_neither_loaded_nor_built_before_there_is_time(
    qtbot: QtBot, session: Session, loads: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(Broken, "prepare", staticmethod(lambda: asked.append("Broken")))
    loads.set()
    pages = Pages(session, lambda _: None, kinds("Slow", "Broken"))

    def step() -> bool:
        pages.build_on("Slow", others=False)
        return "Slow" in pages.built

    qtbot.waitUntil(step)
    assert [pages.build_on("Slow", others=False) for _ in range(20)] == [False] * 20
    assert asked == []
    qtbot.waitUntil(lambda: pages.build_on("Slow"))
    assert asked == ["Broken"]


def test_a_page_that_cannot_be_built_is_told_once(qtbot: QtBot, session: Session, loads: threading.Event) -> None:
    loads.set()
    pages = Pages(session, lambda _: None, kinds("Broken", "Slow"))
    told = []

    def step() -> bool:
        try:
            pages.build_on("Broken")
        except ValueError as error:
            told.append(str(error))
        return "Slow" in pages.built

    qtbot.waitUntil(step)
    assert told == ["this page cannot be built"]
    with pytest.raises(ValueError, match="cannot be built"):
        pages["Broken"]


def test_the_tabs_are_called_as_their_pages() -> None:
    assert [kind.load().title for kind in PAGES] == [kind.title for kind in PAGES]
