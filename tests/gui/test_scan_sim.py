"""The page Scan on the simulated instrument: begun, aborted, offered again, gone on with, and whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from acquisition.plan import plan_from_toml
from acquisition.scan_file import read_scan
from gui.scan.page import RUN, ScanPage
from gui.session import Session
from gui.state import Link
from tests.gui.test_scan_page import is_idle, press, scan_path, wait
from tests.rough_calibration import rough_calibration

PLAN = (
    "[scan]\nn_views = 8\nframes_per_view = 1\nflats_every_n_views = 4\nn_flats = 1\n\n[detector]\nexposure_s = 0.05\n"
)
N_FRAMES = 8 + 3


def test_the_estimate_knows_what_the_instrument_told_of_its_speed_when_it_was_connected(
    qtbot, session: Session
) -> None:
    page = ScanPage(session)
    qtbot.addWidget(page)
    page.show()
    page.plan.begin_with(PLAN)
    wait(qtbot, page, lambda: "without the turn" in page.start.rows.text())
    session.rig.connect("sim:demo")
    qtbot.waitUntil(lambda: session.rig.snapshot().link is Link.READY, timeout=60_000)
    wait(qtbot, page, lambda: "without" not in page.start.rows.text())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_scan_is_aborted_and_gone_on_with(qtbot, session: Session, tmp_path: Path) -> None:
    session.rig.connect("sim:demo")
    qtbot.waitUntil(lambda: session.rig.snapshot().link is Link.READY, timeout=60_000)
    session.change(calibration=rough_calibration(plan_from_toml(PLAN)))
    page = ScanPage(session)
    qtbot.addWidget(page)
    page.show()
    page.plan.begin_with(PLAN)
    wait(qtbot, page, page.start.start.isEnabled)
    press(qtbot, page, page.start.start)
    wait(qtbot, page, lambda: page.tabs.currentIndex() == RUN)
    run = page.scan_run
    assert run is not None
    wait(qtbot, page, lambda: run.watch.pace().n_frames >= 2, timeout_ms=120_000)
    job = session.job("instrument")
    if job is not None:
        job.abort()
    wait(qtbot, page, lambda: is_idle(page), timeout_ms=60_000)
    wait(qtbot, page, page.offer.isVisible)
    press(qtbot, page, page.resume)
    wait(qtbot, page, lambda: session.state.scan_path is not None, timeout_ms=120_000)
    assert session.failures == []
    scan = read_scan(scan_path(page))
    assert scan.shape[0] == N_FRAMES
    assert scan.n_lost == 0
    assert np.unique(scan.angles_rad).size == 8
