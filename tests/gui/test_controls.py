"""What all pages use: the bar of a job."""

from __future__ import annotations

import threading
from collections.abc import Generator

import pytest
from pyqtgraph.Qt import QtCore
from pytestqt.qtbot import QtBot

from calibration.progress import Progress
from gui.controls import JobBar
from gui.workers import Job, JobStatus

LEFT = QtCore.Qt.MouseButton.LeftButton


@pytest.fixture
def bar(qtbot: QtBot) -> JobBar:
    bar = JobBar(has_title=True)
    qtbot.addWidget(bar)
    return bar


def work(go_on: threading.Event, total: int) -> Generator[Progress, None, None]:
    yield Progress("views", 1, total)
    go_on.wait(20)
    yield Progress("views", 2, total)


@pytest.mark.parametrize("total", [3, 0])
def test_a_job_without_a_good_end_has_one_button_and_says_how_far_it_is(qtbot: QtBot, bar: JobBar, total: int) -> None:
    go_on = threading.Event()
    job = Job("a scan", work(go_on, total)).start()
    qtbot.waitUntil(lambda: job.snapshot().done == 1)
    bar.watch(job)
    assert not bar.isHidden()
    assert bar._bar.text().startswith("views 1/3" if total else "views 1")
    assert bar._bar.toolTip().startswith("a scan: views 1")
    assert bar.abort.isHidden()
    qtbot.mouseClick(bar.stop, LEFT)
    bar.refresh()
    assert not bar.stop.isEnabled()
    assert bar._bar.text() == "views, stopping"
    go_on.set()
    assert job.wait(20)
    bar.refresh()
    assert bar.isHidden()


def test_a_job_with_a_good_end_has_two_and_its_end_is_told_until_the_next(qtbot: QtBot, bar: JobBar) -> None:
    go_on = threading.Event()
    job = Job("a scan", work(go_on, 3), stop=go_on.set).start()
    bar.watch(job)
    assert not bar.abort.isHidden()
    qtbot.mouseClick(bar.stop, LEFT)
    assert job.wait(20)
    bar.watch(None)
    assert bar.isHidden()
    bar.show_end("written")
    bar.watch(None)
    assert not bar.isHidden()
    assert bar.end.text() == "written"
    bar.watch(Job("the next", work(go_on, 3)))
    assert bar.end.isHidden()


def test_what_came_to_its_end_is_done_though_it_was_cancelled_too_late() -> None:
    def writing() -> Generator[Progress, None, str]:
        yield Progress("writing", 0, 1)
        begun.set()
        go_on.wait(20)  # the last file is on its way
        return "written"

    begun, go_on = threading.Event(), threading.Event()
    job = Job("a reconstruction", writing()).start()
    assert begun.wait(20)
    job.stop()
    go_on.set()
    assert job.wait(20)
    assert (job.snapshot().status, job.result) == (JobStatus.DONE, "written")


def test_what_is_left_is_told_of_what_moves_and_not_of_a_pause() -> None:
    def walk() -> Generator[Progress, None, None]:
        for stage, done in (("paused", 22), ("paused", 22), ("scan", 22), ("scan", 23)):
            yield Progress(stage, done, 69)
            left_s.append((stage, job.snapshot().left_s is not None))

    left_s: list[tuple[str, bool]] = []
    job = Job("a scan", walk())
    job.run()
    assert left_s == [("paused", False), ("paused", False), ("scan", False), ("scan", True)]


def test_the_bar_is_painted_with_the_window_and_not_by_itself(qtbot: QtBot, bar: JobBar) -> None:
    """By itself it would be painted at once, and all else that waits for it, in the middle of whatever goes on."""
    go_on = threading.Event()
    job = Job("a scan", work(go_on, 3)).start()
    qtbot.waitUntil(lambda: job.snapshot().done == 1)
    bar.show()
    bar.watch(job)
    qtbot.wait(1)
    painted = Painted()
    bar._bar.installEventFilter(painted)
    go_on.set()
    assert job.wait(20)
    bar._show_far(2, 3, "views 2/3")
    assert painted.n == 0
    assert bar._bar.text() == "views 2/3"
    qtbot.waitUntil(lambda: painted.n > 0)


class Painted(QtCore.QObject):
    """Counts how often a widget is painted."""

    n = 0

    def eventFilter(self, watched: QtCore.QObject, event: QtCore.QEvent) -> bool:
        self.n += event.type() is QtCore.QEvent.Type.Paint
        return super().eventFilter(watched, event)
