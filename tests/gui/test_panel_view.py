"""Plots of a calibration: each comes in a turn of its own, and those that are there stay."""

from __future__ import annotations

import numpy as np
import pytest
from pytestqt.qtbot import QtBot

from gui.calibrate.panel_view import PanelView
from gui.calibrate.panels import Chart, Panel, line, picture


@pytest.fixture
def view(qtbot: QtBot) -> PanelView:
    view = PanelView("nothing yet")
    qtbot.addWidget(view)
    view.resize(900, 600)
    view.show()
    return view


def chart(name: str) -> Chart:
    return Chart(title=name, x_label="x", y_label="y", lines=(line("a", [0, 1, 2], [0, 1, 0]),))


def panels(*names: str) -> list[Panel]:
    return [picture(name, np.eye(8), "keV") if name.startswith("picture") else chart(name) for name in names]


def shown(view: PanelView, qtbot: QtBot) -> list[object]:
    qtbot.waitUntil(lambda: view.is_drawn)
    return list(view._shown)


def test_one_turn_makes_or_draws_no_more_than_one_plot(view: PanelView, qtbot: QtBot) -> None:
    view.show_panels(panels("a", "b", "c"))
    n_before = 0
    while not view.is_drawn:
        view._take_turn()
        assert len(view.titles) - n_before <= 1
        assert view.titles == ["a", "b", "c"][: len(view.titles)]
        n_before = len(view.titles)
    assert view.titles == ["a", "b", "c"]


def test_plots_stay_where_only_their_values_change_and_are_used_again(view: PanelView, qtbot: QtBot) -> None:
    view.show_panels(panels("a", "picture b"))
    first = shown(view, qtbot)
    view.show_panels(panels("c", "picture d"))
    assert shown(view, qtbot) == first
    assert view.titles == ["c", "picture d"]
    view.show_panels(panels("picture e"))
    assert shown(view, qtbot) == first[1:]
    view.show_panels(panels("f", "picture g"))
    assert shown(view, qtbot) == first


def test_those_that_are_there_keep_their_size_when_others_come(view: PanelView, qtbot: QtBot) -> None:
    view.show_panels(panels("a", "b", "c", "d"))
    qtbot.waitUntil(lambda: len(view.titles) == 1)
    qtbot.wait(1)
    size = view._shown[0].size()
    shown(view, qtbot)
    qtbot.wait(1)
    assert view._shown[0].size() == size


def test_nothing_is_told_where_there_is_nothing(view: PanelView, qtbot: QtBot) -> None:
    view.show_panels(panels("a"))
    shown(view, qtbot)
    view.show_panels([], "nothing any more")
    assert view.is_drawn
    assert view.titles == []
    assert view._nothing.isVisible()
    assert view._nothing.text() == "nothing any more"


@pytest.mark.parametrize("height", [0.201, 63.67, 0.0, -3.0])
def test_values_that_are_all_the_same_can_be_read(view: PanelView, qtbot: QtBot, height: float) -> None:
    def of(*heights: float) -> Chart:
        return Chart(title="a", x_label="x", y_label="y", lines=(line("a", range(len(heights)), heights),))

    view.show_panels([of(height, height * (1 + 1e-15))])
    (plot,) = shown(view, qtbot)
    low, high = plot._plot.getViewBox().viewRange()[1]
    assert low < height < high
    assert high - low <= max(abs(height), 2.0)
    view.show_panels([of(height, height + 50)])
    shown(view, qtbot)
    qtbot.waitUntil(lambda: plot._plot.getViewBox().viewRange()[1][1] >= height + 50)
