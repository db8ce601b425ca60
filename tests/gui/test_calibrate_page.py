"""The page Calibrate with an instrument: run, look on, stop, abort, accept, discard, undo, history."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from pyqtgraph.Qt import QtCore
from pytestqt.qtbot import QtBot

from acquisition.plan import SourcePlan
from calibration import store
from calibration.store import Calibration
from gui.calibrate.page import HISTORY, NOW, RESULT, CalibratePage
from gui.calibrate.sequence import Standing
from gui.rig import Rig
from gui.session import Session
from gui.state import Link
from tests.gui.calibration_stand import PLAN, Attended, Stand, begun, opener, record

LEFT = QtCore.Qt.MouseButton.LeftButton


class Desktop:
    """A page that beats as the window lets it."""

    def __init__(self, qtbot: QtBot, session: Session, stand: Attended) -> None:
        self.qtbot, self.session, self.stand = qtbot, session, stand
        self.page = CalibratePage(session)
        qtbot.addWidget(self.page)
        self.page.resize(1200, 760)
        self.page.show()
        self.beat()

    def beat(self) -> None:
        self.session.beat()
        self.page.refresh()

    def until(self, condition, timeout_ms: int = 20_000) -> None:
        def look() -> bool:
            self.beat()
            return bool(condition())

        self.qtbot.waitUntil(look, timeout=timeout_ms)

    def click(self, button) -> None:
        self.beat()
        assert button.isEnabled(), button.toolTip()
        self.qtbot.mouseClick(button, LEFT)

    def run(self, step: str) -> None:
        self.page.steps.choose(step)
        self.click(self.page.run_one)

    def run_to_end(self, step: str) -> None:
        self.run(step)
        self.until(lambda: self.page.desk.job is None and self.session.job("instrument") is None)

    def standing(self, step: str) -> Standing:
        return next(view.standing for view in self.page.desk.steps if view.name == step)


@pytest.fixture
def stand() -> Stand:
    return Stand()


@pytest.fixture
def connected(qtbot: QtBot, tmp_path: Path, stand: Stand) -> Iterator[Desktop]:
    """Return a bench with the stand connected and a calibration in use, in which equalise and energy are done."""
    session = Session(tmp_path, Rig(opener(stand)))  # pyright: ignore[reportArgumentType]
    path = tmp_path / "mine.h5"
    store.save(begun(), path)
    session.change(plan=PLAN, calibration=store.load(path), calibration_path=path)
    session.rig.connect("stand:")
    desktop = Desktop(qtbot, session, stand)
    desktop.until(lambda: session.rig.snapshot().link is Link.READY)
    yield desktop
    stand.is_held.set()
    session.close()


def in_use(desktop: Desktop) -> Calibration:
    found = desktop.session.state.calibration
    assert found is not None
    return found


def test_without_an_instrument_every_button_says_why(qtbot: QtBot, session: Session) -> None:
    desktop = Desktop(qtbot, session, Stand())
    for button in (desktop.page.run_one, desktop.page.run_all, *desktop.page.result.buttons):
        assert not button.isEnabled()
        assert "Not now: " in button.toolTip()
    assert "No instrument is connected" in desktop.page.run_one.toolTip()
    assert "No calibration in use" in desktop.page.in_use.text()


def test_the_page_remembers(qtbot: QtBot, session: Session) -> None:
    page = CalibratePage(session)
    qtbot.addWidget(page)
    page.restore({"step": "materials", "took_s": {"energy": 90.0, "nonsense": 1.0}, "tab": HISTORY, "sizes": "odd"})
    saved = page.save()
    assert saved["step"] == "materials"
    assert saved["tab"] == HISTORY
    assert saved["took_s"] == {"energy": 90.0}


def test_a_step_runs_is_shown_and_accepted_into_a_file_of_its_own(connected: Desktop) -> None:
    desktop, before = connected, in_use(connected)
    desktop.stand.is_held.clear()
    desktop.run("pixels")
    desktop.until(lambda: desktop.standing("pixels") is Standing.RUNNING)
    assert desktop.page.tabs.currentIndex() == NOW
    assert "is running" in desktop.page.run_one.toolTip()
    desktop.stand.is_held.set()
    desktop.until(lambda: desktop.page.desk.candidate is not None)
    assert desktop.page.tabs.currentIndex() == RESULT
    assert in_use(desktop) is before
    assert desktop.standing("pixels") is Standing.NEW
    desktop.until(lambda: "Pixels that are not good, and why" in desktop.page.result.panels.titles)
    assert desktop.page.live.titles, "something was drawn while it ran"
    desktop.click(desktop.page.result.accept)
    desktop.until(lambda: in_use(desktop) is not before)
    path = desktop.session.state.calibration_path
    assert path is not None
    assert path.name.startswith("calibration-")
    assert store.load(path).identity == in_use(desktop).identity
    assert [each.step for each in in_use(desktop).history] == ["equalise", "energy", "pixels"]
    assert store.load(path.parent / "mine.h5").identity == before.identity
    assert desktop.standing("pixels") is Standing.DONE


def test_a_named_file_is_backed_up_before_it_is_overwritten(connected: Desktop) -> None:
    desktop, before = connected, in_use(connected)
    desktop.run_to_end("pixels")
    path = desktop.session.state.folder / "mine.h5"
    desktop.page.result.save(path)
    desktop.until(lambda: in_use(desktop) is not before)
    assert desktop.session.state.calibration_path == path
    (copy,) = desktop.session.state.folder.glob("mine.h5.bak-*")
    assert store.load(copy).identity == before.identity
    assert store.load(path).identity == in_use(desktop).identity != before.identity
    desktop.page.tabs.setCurrentIndex(HISTORY)
    desktop.until(lambda: set(desktop.page.history.names()) == {"mine.h5", copy.name})


def test_what_cannot_be_saved_goes_on_waiting_and_can_be_accepted_elsewhere(connected: Desktop) -> None:
    desktop, before = connected, in_use(connected)
    desktop.run_to_end("pixels")
    found = desktop.page.desk.candidate
    folder = desktop.session.state.folder
    desktop.page.result.save(folder / "is" / "not" / "there.h5")
    assert not desktop.page.result.accept.isEnabled() or "being saved" in desktop.page.result._why_no_candidate()
    desktop.until(lambda: desktop.session.failures)
    assert desktop.session.failures.pop().title == "Saving there.h5"
    assert in_use(desktop) is before
    assert desktop.page.desk.candidate is found
    desktop.click(desktop.page.result.accept)
    desktop.until(lambda: desktop.session.state.calibration is found)
    assert desktop.page.desk.candidate is None


def test_what_waits_when_the_window_closes_is_kept_under_a_name_that_says_so(connected: Desktop) -> None:
    desktop = connected
    desktop.run_to_end("pixels")
    desktop.page.end()
    (kept,) = desktop.session.state.folder.glob("calibration-*-not-accepted.h5")
    assert desktop.page.desk.candidate is not None
    assert store.load(kept).identity == desktop.page.desk.candidate.identity


def test_plates_that_cannot_teach_are_refused_before_they_are_measured(connected: Desktop) -> None:
    desk = connected.page.desk
    desk.edit("calibration.wedge.material", "aluminium")
    assert not [why for why in (desk.why_not_run("wedge"),) if "plates" in why], "four plates are enough"
    desk.edit("calibration.wedge.plates", "pmma-5, pmma-10, aluminium-1")
    connected.session.change(calibration=begun(steps=("equalise", "energy", "pixels")))
    assert "1 of the plates are of aluminium alone" in desk.why_not_run("wedge")


def test_what_is_discarded_changes_nothing_and_can_be_brought_back(connected: Desktop) -> None:
    desktop, before = connected, in_use(connected)
    desktop.run_to_end("pixels")
    found = desktop.page.desk.candidate
    desktop.click(desktop.page.result.discard)
    assert in_use(desktop) is before
    assert desktop.page.desk.candidate is None
    assert desktop.standing("pixels") is Standing.NOT_DONE
    desktop.click(desktop.page.result.bring_back)
    assert desktop.page.desk.candidate is found


def test_abort_leaves_the_beam_off_the_calibration_as_it_was_and_the_chip_usable(connected: Desktop) -> None:
    desktop, before = connected, in_use(connected)
    desktop.stand.is_held_when_lit = True
    desktop.run("pixels")
    desktop.until(lambda: desktop.stand.is_lit and not desktop.stand.is_held.is_set())
    job = desktop.page.desk.job
    assert job is not None
    job.abort()
    desktop.until(lambda: desktop.page.desk.job is None and desktop.session.job("instrument") is None)
    assert desktop.stand.n_aborts >= 1
    assert not desktop.stand.is_lit
    assert in_use(desktop) is before
    assert desktop.page.desk.candidate is None
    assert not desktop.session.failures
    assert desktop.standing("pixels") is Standing.STOPPED
    desktop.run_to_end("pixels")
    assert desktop.page.desk.candidate is not None
    assert desktop.standing("pixels") is Standing.NEW


def test_a_step_that_fails_says_why_and_keeps_what_was_done_before(connected: Desktop) -> None:
    desktop = connected
    desktop.run_to_end("pixels")
    found = desktop.page.desk.candidate
    desktop.stand.lose_every = 1
    desktop.run_to_end("materials")
    assert desktop.standing("materials") is Standing.FAILED
    assert "stayed lost" in next(view.words for view in desktop.page.desk.steps if view.name == "materials")
    assert desktop.page.desk.candidate is found
    assert desktop.session.failures[0].title == "Materials"
    assert not desktop.stand.is_lit


def test_stop_ends_after_the_step_that_runs(connected: Desktop) -> None:
    desktop = connected
    desktop.stand.is_held.clear()
    desktop.page.desk.run(["pixels", "materials"])
    desktop.until(lambda: desktop.page.desk.running == "pixels")
    job = desktop.page.desk.job
    assert job is not None
    job.stop()
    desktop.stand.is_held.set()
    desktop.until(lambda: desktop.page.desk.candidate is not None)
    assert desktop.standing("pixels") is Standing.NEW
    assert desktop.standing("materials") is Standing.NOT_DONE
    assert desktop.page.desk.took_s.keys() == {"pixels"}


def test_all_that_a_step_of_four_plots_found_is_seen_in_a_window_of_1280_by_800(connected: Desktop) -> None:
    desktop = connected
    panels = desktop.page.result.panels
    desktop.page.resize(1280, 700)
    desktop.run_to_end("pixels")
    desktop.until(lambda: "How even the open beam is" in panels.titles and panels.is_drawn)
    assert len(panels.titles) == 4
    desktop.until(lambda: panels.verticalScrollBar().maximum() < 0.1 * panels.viewport().height())


def test_options_are_checked_as_typed_and_can_be_undone(connected: Desktop) -> None:
    desktop = connected
    desktop.page.steps.choose("pixels")
    field = desktop.page.details.fields["calibration.n_dark_frames"]
    field.line.selectAll()
    desktop.qtbot.keyClicks(field.line, "0")
    assert "n_dark_frames is 0" in field.wrong
    assert desktop.session.state.plan is PLAN
    desktop.beat()
    assert "an option is not right" in desktop.page.run_one.toolTip()
    field.line.selectAll()
    desktop.qtbot.keyClicks(field.line, "7")
    assert not field.wrong
    assert desktop.session.state.plan.calibration.n_dark_frames == 7
    desktop.page.details.refresh()
    desktop.click(desktop.page.details.undo)
    assert desktop.session.state.plan == PLAN
    assert field.line.text() == "3"
    desktop.click(desktop.page.details.redo)
    assert desktop.session.state.plan.calibration.n_dark_frames == 7


def test_what_was_changed_on_another_page_is_not_taken_back_here(connected: Desktop) -> None:
    desktop = connected
    details = desktop.page.details
    desktop.page.steps.choose("pixels")
    field = details.fields["calibration.n_dark_frames"]
    field.line.selectAll()
    desktop.qtbot.keyClicks(field.line, "7")
    opened = msgspec.structs.replace(PLAN, source=SourcePlan(kvp=80.0))
    desktop.session.change(plan=opened)
    details.refresh()
    assert field.line.text() == "3"
    for button in (details.undo, details.redo):
        assert not button.isEnabled()
    assert "nothing was changed here" in details.undo.toolTip()
    desktop.page.undo()
    assert desktop.session.state.plan is opened
    field.line.selectAll()
    desktop.qtbot.keyClicks(field.line, "9")
    details.refresh()
    desktop.click(details.undo)
    assert desktop.session.state.plan == opened


def test_a_calibration_of_other_conditions_is_refused_unless_forced(connected: Desktop) -> None:
    desktop = connected
    desktop.stand.sensor_k = 310.0
    desktop.session.change(calibration=replace(in_use(desktop), temperature_k=300.0))
    desktop.run_to_end("pixels")
    assert desktop.standing("pixels") is Standing.FAILED
    desktop.session.failures.clear()
    desktop.qtbot.mouseClick(desktop.page.forced, LEFT, pos=QtCore.QPoint(8, desktop.page.forced.height() // 2))
    assert desktop.page.desk.is_forced
    desktop.run_to_end("pixels")
    found = desktop.page.desk.candidate
    assert found is not None
    assert found.history[-1].is_forced


def test_the_history_lists_compares_notes_and_uses(connected: Desktop) -> None:
    desktop, page, folder = connected, connected.page, connected.session.state.folder
    other = replace(begun(seed=3), history=(record("equalise", "2026-05-01T00:00:00+00:00"),))
    foreign = replace(begun(seed=4), gain="LGM", history=(record("equalise", "2025-05-01T00:00:00+00:00"),))
    store.save(other, folder / "other.h5")
    store.save(foreign, folder / "foreign.h5")
    page.tabs.setCurrentIndex(HISTORY)
    desktop.until(lambda: page.history.names() == ["other.h5", "mine.h5", "foreign.h5"])
    items = [page.history.list.topLevelItem(n) for n in range(3)]
    assert "in use" in items[1].text(1)  # pyright: ignore[reportOptionalMemberAccess]
    desktop.until(lambda: page.history.rows.rowCount() > 5)
    desktop.until(lambda: "Pixels not used" in page.history.panels.titles)
    page.history.note.setText("cold")
    desktop.qtbot.keyClick(page.history.note, QtCore.Qt.Key.Key_Return)
    desktop.until(lambda: page.history.entries[0].note == "cold")
    desktop.click(page.history.use)
    assert in_use(desktop).identity == other.identity
    assert desktop.session.state.calibration_path == folder / "other.h5"
    page.history.open_file(folder / "mine.h5")
    desktop.until(lambda: desktop.session.state.calibration_path == folder / "mine.h5")


def test_a_calibration_of_another_gain_is_marked_in_the_history(connected: Desktop) -> None:
    desktop, page = connected, connected.page
    store.save(replace(begun(seed=4), gain="LGM"), desktop.session.state.folder / "foreign.h5")
    page.tabs.setCurrentIndex(HISTORY)
    desktop.until(lambda: "foreign.h5" in page.history.names())
    marked = {}
    for n in range(2):
        item = page.history.list.topLevelItem(n)
        assert item is not None
        marked[page.history.entries[n].path.name] = (item.text(2), item.toolTip(2))
    assert "other conditions" not in marked["mine.h5"][0]
    assert "other conditions" in marked["foreign.h5"][0]
    assert "gain LGM, now HGM" in marked["foreign.h5"][1]
