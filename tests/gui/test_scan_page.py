"""The page Scan on an instrument in memory: checks first, a run watched, held, stopped, aborted, and gone on with."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pyqtgraph.Qt import QtCore, QtWidgets

from acquisition.instrument import Instrument
from acquisition.plan import plan_from_toml
from acquisition.scan_file import read_scan
from calibration.progress import finished
from calibration.store import Calibration
from firmware_iface.frame import Frame
from gui.opening import open_into, opened_file
from gui.rig import Rig
from gui.scan.page import PLAN, RUN, ScanPage
from gui.session import Session
from gui.state import Link
from tests.rough_calibration import rough_calibration
from tests.scan_bench import PLAN as BENCH_PLAN
from tests.scan_bench import Bench

SMALL = "[scan]\nn_views = 12\nframes_per_view = 1\nflats_every_n_views = 6\nn_flats = 2\n"
N_FRAMES = 12 + 3 * 2
CALIBRATION: Calibration = rough_calibration(BENCH_PLAN, chip_id="W1")
LEFT = QtCore.Qt.MouseButton.LeftButton


class Slow(Bench):
    """A board in memory whose frames wait, from one on, until the test lets them come."""

    def __init__(self, wait_at: int = -1, **faults: Any) -> None:
        super().__init__(**faults)
        self.wait_at, self.go, self.waits = wait_at, threading.Event(), threading.Event()

    def frame(self, sequence: int, exposure_s: float) -> Frame:
        if self.n_done >= self.wait_at >= 0:
            self.waits.set()
            while not (self.go.wait(0.005) or self.stopping.is_set() or self.aborting.is_set()):
                pass
        return super().frame(sequence, exposure_s)


@contextmanager
def opened(bench: Bench) -> Iterator[Instrument]:
    yield bench.instrument


@pytest.fixture
def page_on(qtbot, tmp_path: Path) -> Iterator[Callable[[Bench], ScanPage]]:
    sessions: list[Session] = []

    def make(bench: Bench) -> ScanPage:
        session = Session(tmp_path, Rig(lambda *_: opened(bench)))
        sessions.append(session)
        session.rig.connect("bench:")
        qtbot.waitUntil(lambda: session.rig.snapshot().link is Link.READY)
        session.change(calibration=CALIBRATION)
        page = ScanPage(session)
        qtbot.addWidget(page)
        page.resize(1200, 700)
        page.show()
        page.plan.begin_with(SMALL)
        return page

    yield make
    for session in sessions:
        session.close()


def wait(qtbot, page: ScanPage, until: Callable[[], bool], timeout_ms: int = 20_000) -> None:
    """Let the window's clock beat until something is so."""

    def beat() -> bool:
        page.session.beat()
        page.refresh()
        return until()

    qtbot.waitUntil(beat, timeout=timeout_ms)


def scan_path(page: ScanPage) -> Path:
    """Return the scan that the session has."""
    path = page.session.state.scan_path
    assert path is not None
    return path


def is_idle(page: ScanPage) -> bool:
    return page.session.job("instrument") is None


def press(qtbot, page: ScanPage, button: QtWidgets.QPushButton) -> None:
    page.refresh()
    assert button.isEnabled(), button.toolTip()
    qtbot.mouseClick(button, LEFT)


def start(qtbot, page: ScanPage) -> None:
    wait(qtbot, page, page.start.start.isEnabled)
    press(qtbot, page, page.start.start)
    wait(qtbot, page, lambda: page.tabs.currentIndex() == RUN)


def test_a_scan_from_the_page_is_whole_and_told_and_given_to_the_session(qtbot, page_on) -> None:
    page = page_on(Bench())
    page.start.operator.setText("Ada")
    start(qtbot, page)
    wait(qtbot, page, lambda: is_idle(page))
    assert page.session.failures == []
    path = page.session.state.scan_path
    assert path == page.session.state.folder / "vials.h5"
    assert path is not None
    scan = read_scan(path)
    assert scan.shape[0] == N_FRAMES
    assert scan.header["operator"] == "Ada"
    assert "is complete: 18 frames" in page.run.told.text()
    assert "none lost" in page.run.told.text()
    assert page.run.reconstruct.isVisible()
    assert all("fail" not in check.level.value for check in page.start.preflight.checks)
    page.tabs.setCurrentIndex(PLAN)
    wait(qtbot, page, lambda: page.start.name.text() == "vials-2")


def test_lost_frames_make_the_scan_degraded_and_are_told(qtbot, page_on) -> None:
    page = page_on(Slow(wait_at=12, lose=frozenset({5, 6})))
    start(qtbot, page)
    wait(qtbot, page, lambda: "LOST" in page.run.told.text())
    assert page.run.lost.text().startswith("Degraded: frame 5: 1 lost")
    assert page.run.lost.isVisible()
    page.session.job("instrument").stop()
    wait(qtbot, page, lambda: is_idle(page))


def test_a_stopped_scan_is_offered_and_gone_on_with_to_the_same_file(qtbot, page_on) -> None:
    bench = Slow(wait_at=9)
    page = page_on(bench)
    start(qtbot, page)
    wait(qtbot, page, bench.waits.is_set)
    page.session.job("instrument").stop()
    wait(qtbot, page, lambda: is_idle(page))
    assert "was stopped" in page.run.told.text()
    assert page.session.failures == []
    assert page.session.state.scan_path is None
    wait(qtbot, page, page.offer.isVisible)
    assert "vials.h5" in page.which.currentText()
    assert "of 18 frames" in page.which.currentText()
    bench.wait_at = -1
    press(qtbot, page, page.resume)
    wait(qtbot, page, lambda: page.session.state.scan_path is not None)
    scan = read_scan(scan_path(page))
    assert scan.shape[0] == N_FRAMES
    assert "from before" in page.run.told.text()
    assert not page.offer.isVisible()
    assert page.scan_run.watch.pace().n_frames == N_FRAMES


def test_a_paused_scan_waits_with_the_beam_off_and_goes_on(qtbot, page_on) -> None:
    bench = Slow(wait_at=7)
    page = page_on(bench)
    page.start.beam_off.setValue(0)
    start(qtbot, page)
    wait(qtbot, page, bench.waits.is_set)
    press(qtbot, page, page.run.pause)
    bench.go.set()
    run = page.scan_run
    wait(qtbot, page, lambda: run.pause.is_holding and run.pause.is_beam_off)
    assert [line for line in bench.lines if line.startswith("BEAM ")][-1] == "BEAM OFF"
    n_done = bench.n_done
    wait(qtbot, page, lambda: "PAUSED" in page.run.told.text())
    assert "beam off" in page.run.told.text()
    assert page.run.pause.text() == "Continue"
    assert bench.n_done == n_done
    press(qtbot, page, page.run.pause)
    wait(qtbot, page, lambda: is_idle(page))
    assert read_scan(scan_path(page)).shape[0] == N_FRAMES
    assert [line for line in bench.lines if line.startswith("BEAM ")].count("BEAM ON") == 2
    assert page.session.failures == []


def test_a_paused_scan_can_be_aborted_and_leaves_a_file_that_is_valid(qtbot, page_on) -> None:
    bench = Slow(wait_at=7)
    page = page_on(bench)
    start(qtbot, page)
    wait(qtbot, page, bench.waits.is_set)
    press(qtbot, page, page.run.pause)
    bench.go.set()
    wait(qtbot, page, lambda: page.scan_run.pause.is_holding)
    page.session.job("instrument").abort()
    wait(qtbot, page, lambda: is_idle(page))
    assert "was stopped" in page.run.told.text()
    assert [line for line in bench.lines if line.startswith("BEAM ")][-1] == "BEAM OFF"
    scan = read_scan(page.session.state.folder / "vials.partial.h5", allow_partial=True)
    assert 0 < scan.shape[0] < N_FRAMES


class Darkened(Slow):
    """A board that still gives the frame under way when it is aborted, once the beam has gone off."""

    def frame(self, sequence: int, exposure_s: float) -> Frame:
        taken = super().frame(sequence, exposure_s)
        while self.aborting.is_set() and self.lines.count("BEAM OFF") < 2:
            pass
        if self.aborting.is_set():
            self.source_states = ["LAMP OFF,INTERLOCK CLOSED,FAULT NONE"]
        return taken


@pytest.mark.parametrize(
    "bench", [Slow(wait_at=8), Darkened(wait_at=9)], ids=["between the frames of a step", "in the last frame of a step"]
)
def test_an_aborted_scan_says_so_and_blames_neither_tube_nor_detector(qtbot, page_on, bench: Slow) -> None:
    page = page_on(bench)
    start(qtbot, page)
    wait(qtbot, page, bench.waits.is_set)
    page.session.job("instrument").abort()
    wait(qtbot, page, lambda: is_idle(page))
    scan = read_scan(page.session.state.folder / "vials.partial.h5", allow_partial=True)
    assert scan.n_lost == 0
    assert scan.events[-1].text == "Stopped: ended at once, by hand"
    assert "Tripped" not in (page.session.state.folder / "vials.log").read_text()


def test_a_file_that_is_taken_away_in_a_scan_is_not_said_to_be_kept(qtbot, page_on) -> None:
    bench = Slow(wait_at=6)
    page = page_on(bench)
    start(qtbot, page)
    wait(qtbot, page, lambda: bench.waits.is_set() and page.run._run.watch.pace().n_frames > 0)
    (partial,) = page.session.state.folder.glob("*.partial.h5")
    partial.unlink()
    page.session.job("instrument").abort()
    wait(qtbot, page, lambda: is_idle(page))
    assert "vials.partial.h5 is NOT in" in page.run.told.text()
    assert page.offer.isHidden()


def test_what_a_check_refuses_is_told_with_its_remedy_and_nothing_runs(qtbot, page_on) -> None:
    bench = Bench()
    page = page_on(bench)
    page.session.change(calibration=rough_calibration(BENCH_PLAN, chip_id="W2"))
    wait(qtbot, page, page.start.start.isEnabled)
    press(qtbot, page, page.start.start)
    wait(qtbot, page, lambda: page.start.preflight is not None)
    wait(qtbot, page, lambda: is_idle(page))
    assert page.tabs.currentIndex() == PLAN
    assert bench.n_done == 0
    assert page.start.preflight.failed
    labels = [label.text() for label in page.start.findChildren(QtWidgets.QLabel)]
    assert any("calibrate again" in text for text in labels)
    assert page.start.force.isEnabled()
    page.start.force.setChecked(True)
    start(qtbot, page)
    wait(qtbot, page, lambda: is_idle(page))
    assert page.session.state.scan_path is not None


def test_what_was_checked_is_seen_without_scrolling_the_worst_first(qtbot, page_on) -> None:
    page = page_on(Bench())
    page.session.change(calibration=rough_calibration(BENCH_PLAN, chip_id="W2"))
    wait(qtbot, page, page.start.look.isEnabled)
    press(qtbot, page, page.start.look)
    wait(qtbot, page, lambda: page.start.preflight is not None)
    labels = [label for label in page.start.findChildren(QtWidgets.QLabel) if "<b style" in label.text()]
    refused = next(label for label in labels if "calibrate again" in label.text())
    qtbot.waitUntil(lambda: all(not each.visibleRegion().isEmpty() for each in (refused, page.start.force)))
    assert refused.y() < min(label.y() for label in labels if ">good<" in label.text())


def test_a_name_that_is_taken_is_never_overwritten_in_silence(qtbot, page_on) -> None:
    page = page_on(Bench())
    taken = page.session.state.folder / "mine.h5"
    taken.write_bytes(b"what stood there")
    page.start.name.setText("mine")
    page.start.name.textEdited.emit("mine")
    wait(qtbot, page, lambda: not page.start.start.isEnabled())
    assert "exists already" in page.start.start.toolTip()
    assert "exists already" in page.start.told.text()
    page.start.replace.setChecked(True)
    wait(qtbot, page, page.start.start.isEnabled)
    assert taken.read_bytes() == b"what stood there"


@pytest.mark.parametrize("name", ["sub/mine", "../mine", "a:b"])
def test_a_name_is_that_of_a_file_in_the_folder(qtbot, page_on, name: str) -> None:
    page = page_on(Bench())
    page.start.name.setText(name)
    page.start.name.textEdited.emit(name)
    wait(qtbot, page, lambda: not page.start.start.isEnabled())
    assert "Data folder" in page.start.told.text()


def test_form_and_text_show_each_other_and_the_fault_stands_at_the_field(qtbot, page_on) -> None:
    page = page_on(Bench())
    row = page.plan.form.rows["scan.n_views"]
    row.editor.selectAll()
    qtbot.keyClicks(row.editor, "48")
    assert "n_views = 48" in page.plan.text.editor.toPlainText()
    assert page.session.state.plan.scan.n_views == 48
    qtbot.keyClicks(row.editor, "x")
    assert row.fault.isVisible()
    assert "a whole number" in row.fault.text()
    assert "Line 2" in page.plan.text.told.text()
    assert page.session.state.plan.scan.n_views == 48
    page.refresh()
    assert "fault" in page.start.start.toolTip()
    page.plan.undo()
    assert page.plan.document.text == SMALL
    page.plan.text.editor.setPlainText(SMALL.replace("12", "24"))
    assert page.plan.form.rows["scan.n_views"].editor.text() == "24"
    assert not page.plan.form.rows["scan.n_views"].fault.isVisible()


def test_another_kind_makes_another_form(qtbot, page_on) -> None:
    page = page_on(Bench())
    page.plan.form.rows["scan.kind"].editor.textActivated.emit("helical")
    assert "scan.pitch_mm" in page.plan.form.rows
    assert "scan.arc_deg" not in page.plan.form.rows
    assert page.session.state.plan.scan.kind == "helical"


def test_the_settings_of_a_scan_come_back(qtbot, page_on) -> None:
    page = page_on(Bench())
    start(qtbot, page)
    wait(qtbot, page, lambda: is_idle(page))
    before = page.session.state.plan
    page.plan.begin_with("")
    assert page.session.state.plan != before
    page.plan.open_scan(scan_path(page))
    wait(qtbot, page, lambda: page.session.state.plan == before)


def test_another_page_s_plan_is_shown_and_ours_can_be_had_back(qtbot, page_on) -> None:
    page = page_on(Bench())
    page.session.change(plan=BENCH_PLAN)
    page.refresh()
    assert page.plan.document.plan == BENCH_PLAN
    page.plan.undo()
    assert page.plan.document.text == SMALL


def test_what_is_saved_is_restored(qtbot, page_on, tmp_path: Path) -> None:
    page = page_on(Bench())
    page.start.operator.setText("Ada")
    saved = page.save()
    other = ScanPage(Session(tmp_path))
    qtbot.addWidget(other)
    other.restore(saved)
    assert other.start.operator.text() == "Ada"
    assert other.plan.document.text == SMALL
    other.restore({"text": 7, "operator": None})
    other.session.close()


def test_a_plan_is_saved_with_its_comments_and_opened_again(qtbot, page_on, tmp_path: Path) -> None:
    page = page_on(Bench())
    page.plan.begin_with("# mine\n" + SMALL)
    page.plan.save_file(tmp_path / "mine.toml")
    page.plan.begin_with("")
    page.plan.open_file(tmp_path / "mine.toml")
    assert page.plan.document.text == "# mine\n" + SMALL
    assert page.plan.name.text() == "mine.toml"
    page.plan.open_file(tmp_path / "absent.toml")
    assert "cannot read" in page.session.failures[-1].sentence


def test_every_widget_that_takes_something_has_a_tip(qtbot, page_on) -> None:
    page = page_on(Bench())
    page.refresh()
    kinds = (QtWidgets.QAbstractButton, QtWidgets.QLineEdit, QtWidgets.QComboBox, QtWidgets.QAbstractSpinBox)
    mute = [
        widget
        for part in (page.plan, page.start, page.run.threshold, page.run.pause, page.offer)
        for kind in kinds
        for widget in part.findChildren(kind)
        if not widget.toolTip()
        and not isinstance(widget.parent(), QtWidgets.QAbstractSpinBox | QtWidgets.QComboBox)
        and widget.objectName() != "qt_spinbox_lineedit"
    ]
    assert mute == []


def test_a_plan_file_that_another_page_opened_keeps_its_comments(qtbot, page_on, tmp_path: Path) -> None:
    page = page_on(Bench())
    file = tmp_path / "mine.toml"
    file.write_text("# mine\n" + SMALL.replace("12", "9"))
    page.session.change(plan=plan_from_toml(file.read_text()), plan_path=file)
    page.refresh()
    assert page.plan.document.text == file.read_text()
    assert page.plan.document.path == file


@pytest.mark.parametrize(
    ("text", "line"), [("# mine\n[scan]\nframes_per_view = 0\n", 3), ("[scan]\n\nn_views = \n", 3)]
)
def test_a_plan_file_with_a_fault_is_opened_to_be_mended_and_its_line_told(
    qtbot, page_on, tmp_path: Path, text: str, line: int
) -> None:
    page = page_on(Bench())
    page.tabs.setCurrentIndex(RUN)
    before, file = page.session.state.plan, tmp_path / "mine.toml"
    file.write_text(text)
    assert open_into(page.session, finished(opened_file(file))) == "Scan"
    page.refresh()
    assert (page.tabs.currentIndex(), page.plan.document.text) == (PLAN, text)
    assert f"Line {line}" in page.plan.text.told.text()
    assert page.session.state.plan is before
    assert "fault" in page.start.start.toolTip()
    page.plan.document.edit(text.replace("= 0", "= 2").replace("n_views = ", "n_views = 7"))
    page.plan.changed()
    assert page.session.state.plan != before
    assert page.session.state.plan_path == file


def test_interrupted_scans_can_be_asked_for_again(qtbot, page_on) -> None:
    page = page_on(Bench())
    page.refresh()
    assert not page.again.isEnabled()
    assert "no scan in this folder" in page.again.toolTip()
    (page.session.state.folder / "torn.partial.h5").write_bytes(b"not HDF5")
    page.look_for_interrupted()
    wait(qtbot, page, page.offer.isVisible)
    page.offer.hide()
    press(qtbot, page, page.again)
    assert page.offer.isVisible()
    page.refresh()
    assert not page.resume.isEnabled()
    assert "cannot be read" in page.resume.toolTip()
