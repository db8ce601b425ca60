"""Every step under the beam, by the page: what it plots and finds; and a cable that is pulled in a step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pytestqt.qtbot import QtBot

from gui.calibrate.page import NOW, RESULT
from gui.calibrate.sequence import Standing
from gui.rig import Rig
from gui.session import Session
from gui.state import Link
from tests.gui.calibration_stand import LIGHT_PLAN, PLAN, Attended, LightStand, Stand, begun, lit, opener
from tests.gui.test_calibrate_page import Desktop, in_use

COUNTED, PATHS = "Counted over the tube's current (dashed: nothing lost)", "Paths of the beads' shadows"


@pytest.fixture
def desktops(qtbot: QtBot, tmp_path: Path) -> Iterator[list[Desktop]]:
    """Return where desktops are put that are to be cleared away."""
    used: list[Desktop] = []
    yield used
    for desktop in used:
        desktop.stand.is_held.set()
        desktop.session.close()


def seat(qtbot: QtBot, folder: Path, stand: Attended, desktops: list[Desktop]) -> Desktop:
    """Connect a stand, with what it must know already."""
    session = Session(folder, Rig(opener(stand)))  # pyright: ignore[reportArgumentType]
    is_light = isinstance(stand, LightStand)
    steps = ("equalise", "energy", "pixels")
    session.change(plan=LIGHT_PLAN if is_light else PLAN, calibration=lit() if is_light else begun(steps=steps))
    session.rig.connect("stand:")
    desktop = Desktop(qtbot, session, stand)
    desktops.append(desktop)
    desktop.until(lambda: session.rig.snapshot().link is Link.READY)
    return desktop


def test_the_steps_under_the_beam_show_what_they_measure_and_find(
    qtbot: QtBot, tmp_path: Path, desktops: list[Desktop]
) -> None:
    desktop = seat(qtbot, tmp_path, LightStand(), desktops)
    page = desktop.page
    for step, plots, results in (
        ("count-rate", {COUNTED, "Lost so far"}, {"Lost", "Dead time of every pixel"}),
        ("geometry", {"Newest view, threshold 1", PATHS, "Residuals"}, {"The axis of rotation on the detector"}),
        ("wedge", {"Behind pmma, so far", "Behind aluminium, so far"}, {"Behind pmma", "Behind aluminium"}),
    ):
        desktop.run(step)
        n_looks = 0

        def is_over() -> bool:
            nonlocal n_looks
            n_looks += page.tabs.currentIndex() == NOW and len(page.live.titles) > 1
            return desktop.session.job("instrument") is None

        desktop.until(is_over)
        assert not desktop.session.failures
        assert n_looks, "nothing was drawn while it ran"
        assert desktop.standing(step) is Standing.NEW
        assert page.tabs.currentIndex() == RESULT
        desktop.until(lambda results=results: results <= set(page.result.panels.titles))
        page.tabs.setCurrentIndex(NOW)
        desktop.until(lambda plots=plots: plots <= set(page.live.titles))
    # the response ends with a fit of seconds, in which it is broken off
    desktop.run("response")
    job = page.desk.job
    assert job is not None
    desktop.until(lambda: "fit of the response" in job.snapshot().stage)
    desktop.until(lambda: "Behind the plates, so far" in page.live.titles or job.is_over)
    assert "S-curves of the sources, threshold 1" in page.live.titles
    job.abort()
    desktop.until(lambda: desktop.session.job("instrument") is None)
    assert desktop.standing("response") is Standing.STOPPED
    assert desktop.standing("wedge") is Standing.NEW


@pytest.mark.parametrize("step", ["equalise", "energy", "materials", "count-rate", "geometry", "wedge"])
def test_a_cable_that_is_pulled_in_a_step_is_told_and_nothing_is_changed(
    qtbot: QtBot, tmp_path: Path, desktops: list[Desktop], step: str
) -> None:
    stand = Stand() if step in ("equalise", "energy", "materials") else LightStand()
    desktop = seat(qtbot, tmp_path, stand, desktops)
    before = in_use(desktop)
    stand.breaks_at = 6
    desktop.run_to_end(step)
    assert desktop.standing(step) is Standing.FAILED
    assert "the board does not answer" in next(view.words for view in desktop.page.desk.steps if view.name == step)
    assert [failure.hint for failure in desktop.session.failures] == ["check the cable"]
    assert not stand.is_lit
    assert in_use(desktop) is before
    assert desktop.page.desk.candidate is None
    desktop.until(lambda: desktop.session.rig.snapshot().link is Link.READY)
    assert not desktop.page.desk.why_not_run(step)
