"""Files of frames in the window: every exposure to be looked at on the page Live, as it stands in the file."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from pytestqt.qtbot import QtBot

from acquisition.scan import ImageKey
from acquisition.scan_writer import ScanWriter
from calibration.progress import finished
from firmware_iface.frame import Lost
from firmware_iface.merlin import read_mib
from gui.live.page import LivePage
from gui.opening import open_into, opened_file
from gui.session import Session
from gui.window import Window
from tests.gui.live_fakes import a_calibration
from tests.scan_records import READOUT, frame
from tests.test_merlin import header_text, write

FILE = "001_4x2_6bit.mib"


@pytest.fixture
def page(qtbot: QtBot, session: Session) -> LivePage:
    session.change(calibration=a_calibration((256, 256)))
    page = LivePage(session)
    qtbot.addWidget(page)
    page.resize(1280, 800)
    page.show()
    return page


def image_of(page: LivePage) -> np.ndarray:
    page._measured_s = 0.0
    page.refresh()
    assert page.panel.image is not None
    return page.panel.image


def test_real_frames_of_a_merlin_are_opened_and_looked_at(
    qtbot: QtBot, window: Window, test_data: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(test_data / "merlin" / "Merlin_navigation4x2_ROI.zip") as archive:
        archive.extractall(tmp_path)
    path = next(tmp_path.rglob(FILE))
    before = sorted(tmp_path.rglob("*"))
    window.open_file(path.with_suffix(".hdr"))
    qtbot.waitUntil(lambda: window.page.title == "Live", timeout=40_000)
    page = window.page
    assert isinstance(page, LivePage)
    every = read_mib(path).stack()
    np.testing.assert_array_equal(image_of(page), every[-1, 0])
    page.playback.slider.setValue(2)
    np.testing.assert_array_equal(image_of(page), every[2, 0])
    page.playback.let_go()
    page.display.source.setCurrentIndex(2)
    np.testing.assert_array_equal(image_of(page), every[:, 0].sum(axis=0))
    assert page.caption.text().startswith("above 40 keV: sum of all, 8 frames")
    assert FILE in page.note.text()
    assert [each for each in sorted(tmp_path.rglob("*")) if each.suffix not in (".ini", ".log")] == before


def test_a_calibration_in_use_says_nothing_of_the_pixels_of_a_file(
    qtbot: QtBot, page: LivePage, tmp_path: Path
) -> None:
    counts = np.arange(256 * 256, dtype=">u2").reshape(256, 256) % 4096
    path = write(tmp_path, header_text(has_thresholds=False) + counts.tobytes())
    assert open_into(page.session, finished(opened_file(path))) == "Live"
    image_of(page)
    assert page.pixels.left_out((256, 256)) is None
    assert "without the calibration in use" in page.pixels.editing.toolTip()
    assert page._shown is not None
    page.pixels.tell(page._shown.picture, 3, 4, page.thresholds_kev)
    table = page.pixels.table
    rows = {table.item(n, 0).text(): table.item(n, 1).text() for n in range(table.rowCount())}  # pyright: ignore
    assert rows["trim"] == "not known"
    assert rows["counter 1"].replace(" ", "") == f"{page._shown.picture.counts[0, 3, 4]}"
    assert page.caption.text().startswith("counter 1:"), "nobody knows its energy"
    page.pictures.write(tmp_path / "x.tiff")
    qtbot.waitUntil(lambda: page.session.beat() or not page.pictures.is_writing, timeout=20_000)
    with tifffile.TiffFile(tmp_path / "x.tiff") as file:
        told = json.loads(file.pages[0].description)  # pyright: ignore
    assert told["plan"] is None
    assert told["thresholds_kev"] == []


def test_a_scan_without_a_plan_shows_its_frames_and_its_gaps(page: LivePage, tmp_path: Path) -> None:
    with ScanWriter(tmp_path / "x.h5", READOUT, n_frames=3) as writer:
        writer.write(frame(0), ImageKey.PROJECTION)
        writer.lost(Lost(run_id=9, first_sequence=1, n_frames=1, reason="gone"))
        writer.write(frame(2), ImageKey.PROJECTION)
        writer.finish()
    assert open_into(page.session, finished(opened_file(tmp_path / "x.h5"))) == "Live"
    np.testing.assert_array_equal(image_of(page), frame(2).counts[0])
    page.playback.slider.setValue(1)
    assert np.isnan(image_of(page)).all()
    assert "1 frames were lost here" in page.caption.text()
    assert page.thresholds_kev == READOUT.thresholds_kev
