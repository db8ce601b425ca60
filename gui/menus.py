"""Menus of plots: pyqtgraph makes one of 60 widgets for every plot, image and histogram; here each is made when wanted.

A right click is rare, and the widgets of its menu take longer to make than the rest of the plot.
"""

from __future__ import annotations

import importlib
import weakref
from typing import Any

import pyqtgraph as pg

_views: Any = importlib.import_module("pyqtgraph.graphicsItems.ViewBox.ViewBox")  # its package has a class of this name
_Menu = _views.ViewBoxMenu


class MenuLater:
    """Stands for the menu of a view until something is asked of it."""

    def __init__(self, view: pg.ViewBox) -> None:
        self._view = weakref.ref(view)
        self.made: Any = None

    def setViewList(self, views: list[pg.ViewBox]) -> None:
        """Let the menu offer links to these views, where it is there already."""
        if self.made is not None:
            self.made.setViewList(views)

    def setParent(self, parent: Any) -> None:
        """Let the menu go, where it is there already; a view without a menu asks for this."""
        if self.made is not None:
            self.made.setParent(parent)

    def __getattr__(self, name: str) -> Any:
        view = self._view()
        if view is None:
            raise RuntimeError("the view of this menu is gone")
        if self.made is None:
            self.made = _Menu(view)
            view.updateViewLists()
        return getattr(self.made, name)


def delay() -> None:
    """From now on make no menu before it is wanted."""
    _views.ViewBoxMenu = MenuLater
