"""The page Live, by mouse and key: levels stay, masks are edited, frames are looked at again, the instrument starts."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import tifffile
from pyqtgraph.Qt import QtCore, QtGui
from pytestqt.qtbot import QtBot

from acquisition.plan import Plan
from calibration.flat_field import FlatField
from calibration.pixels import PixelClass
from calibration.store import Calibration, load
from firmware_iface.frame import Frame, Lost
from gui import image_panel, levels
from gui.image_panel import ImagePanel, LevelMode
from gui.live.frames import FrameStore
from gui.live.measures import Flat, Kind, Region, Selection, Shape
from gui.live.page import SCREEN_MS, LivePage
from gui.live.pixel import masked
from gui.live.region_panel import COLUMNS
from gui.live.run import Underway
from gui.page import BEAT_MS
from gui.session import Session
from gui.state import Link
from tests.gui.live_fakes import a_calibration, a_frame
from tests.rough_calibration import rough_calibration

SHAPE = (4, 32, 24)
LEFT = QtCore.Qt.MouseButton.LeftButton


@pytest.fixture
def page(qtbot: QtBot, session: Session) -> Iterator[LivePage]:
    plan = Plan()
    session.change(plan=plan, calibration=a_calibration(SHAPE[1:]))
    page = LivePage(session)
    qtbot.addWidget(page)
    page.resize(1280, 800)
    page.show()
    page.begin(Underway.of(plan, session.state.calibration))
    yield page
    page.close()


def fill(page: LivePage, n: int, first: int = 0) -> list[Frame]:
    frames = [a_frame(first + k, SHAPE) for k in range(n)]
    for frame in frames:
        page.store.push(frame)
    page._measured_s = 0.0
    page.refresh()
    return frames


def image_of(page: LivePage) -> np.ndarray:
    assert page.panel.image is not None
    return page.panel.image


def click(qtbot: QtBot, panel: ImagePanel, row: int, col: int) -> None:
    view = panel.graphics
    at = view.mapFromScene(panel.place_of(row, col))
    qtbot.mouseMove(view.viewport(), at)
    qtbot.mouseClick(view.viewport(), LEFT, pos=at)


# The panel


@pytest.fixture
def panel(qtbot: QtBot) -> ImagePanel:
    panel = ImagePanel()
    qtbot.addWidget(panel)
    panel.resize(600, 400)
    panel.show()
    return panel


def test_levels_stay_whatever_comes(panel: ImagePanel, qtbot: QtBot) -> None:
    rng = np.random.default_rng(1)
    panel.show_image(rng.poisson(100, (20, 30)).astype(np.uint16), pixel_mm=0.11)
    levels = panel.levels
    assert 60 < levels[0] < 90 < 110 < levels[1] < 150
    odd = (
        np.full((20, 30), np.nan),
        np.zeros((20, 30), np.uint16),
        np.full((20, 30), 5.0),
        rng.normal(0, 1e6, (20, 30)),
    )
    for image in odd:
        panel.show_image(image, pixel_mm=0.11)
        panel.repaint()
        assert panel.levels == levels
    panel.set_log(True)
    assert panel.levels == pytest.approx(levels)
    panel.show_image(rng.integers(0, 255, (20, 30, 3)).astype(np.uint8))
    panel.set_log(False)
    assert panel.levels == pytest.approx(levels)
    panel.level_mode = LevelMode.AUTO
    panel.show_image(np.linspace(0, 1000, 600).reshape(20, 30))
    assert panel.levels == pytest.approx((0, 1000), abs=5)


def test_a_zoom_stays_until_it_is_asked_away(panel: ImagePanel) -> None:
    panel.show_image(np.zeros((20, 30)), pixel_mm=0.1)
    panel.view.setRange(QtCore.QRectF(1, 1, 0.5, 0.5), padding=0)
    zoomed = panel.view.viewRect()
    panel.show_image(np.ones((20, 30)), pixel_mm=0.1)
    assert panel.view.viewRect() == zoomed
    panel.fit()
    assert panel.view.viewRect().contains(QtCore.QRectF(0, 0, 3, 2))


def test_row_0_is_drawn_lowest_and_pixels_are_found(panel: ImagePanel) -> None:
    panel.show_image(np.arange(600.0).reshape(20, 30), pixel_mm=0.1)
    assert panel.place_of(0, 0).y() > panel.place_of(19, 0).y()
    assert panel.pixel_at(panel.place_of(7, 9)) == (7, 9)
    assert panel.pixel_at(panel.place_of(7, 40)) is None
    picture = panel.picture()
    assert (picture.width(), picture.height()) == (30, 20)
    assert QtGui.qGray(picture.pixel(0, 0)) > QtGui.qGray(picture.pixel(0, 19))  # the last row is on top, and brighter


# What is shown


def test_a_view_is_flattened_by_the_calibration_until_a_flat_is_taken(page: LivePage) -> None:
    plan, bare = page.session.state.plan, a_calibration(SHAPE[1:])
    frame = a_frame(0, SHAPE)
    kept = FlatField(
        rates_per_s=(frame.counts / 1e-3).astype(np.float32), thresholds=frame.thresholds,
        thresholds_kev=plan.detector.thresholds_kev, n_frames=9, exposure_s=9.0, tube_kvp=plan.source.kvp,
        current_ma=plan.source.current_ma,
    )  # fmt: skip
    calibration = replace(bare, flat_field=kept)
    page.session.change(calibration=calibration)
    page.begin(Underway.of(plan, calibration))
    page.display.flat.setChecked(True)
    fill(page, 1)
    np.testing.assert_allclose(image_of(page), 1.0)
    assert "the calibration's flat" in page.caption.text()
    page.tabs_of_image.setCurrentIndex(1)
    for of in range(page.grid_of.count()):
        page.grid_of.setCurrentIndex(of)
        page.refresh()
        for item, label in zip(page.grid._items, page.grid._labels, strict=True):
            assert item.image is not None
            has_beam = np.isfinite(item.image)
            assert has_beam.mean() > 0.9
            np.testing.assert_allclose(item.image[has_beam], 1.0, rtol=1e-6)
            assert label.text.endswith("share of open beam")
    page.display.flat.setChecked(False)
    page.refresh()
    assert page.grid._labels[0].text.endswith("counts")
    assert page.grid._levels[0][1] > 1.1, "levels of shares are none of counts"
    page.display.flat.setChecked(True)
    page.tabs_of_image.setCurrentIndex(0)
    page.refresh()
    page.flat = Flat(
        rates_per_s=frame.counts / 5e-4, thresholds=frame.thresholds, thresholds_kev=plan.detector.thresholds_kev,
        n_frames=1, calibration=calibration, origin="the flat of 12:00",
    )  # fmt: skip
    page.refresh()
    np.testing.assert_allclose(image_of(page), 0.5)
    assert "the flat of 12:00" in page.caption.text()
    page.begin(Underway.of(plan, replace(calibration, offset_dac=calibration.offset_dac + 3)))
    page.refresh()
    assert "No flat" in page.caption.text()
    np.testing.assert_array_equal(image_of(page), frame.counts[0])


def test_what_is_shown_follows_the_controls(page: LivePage) -> None:
    frames = fill(page, 12)
    counts = np.stack([frame.counts for frame in frames]).astype(np.int64)
    np.testing.assert_array_equal(image_of(page), counts[-1, 0])
    page.display.select(Selection(kind=Kind.BIN, first=2))
    page.display.source.setCurrentIndex(1)
    page.display.n_last.setValue(5)
    page.refresh()
    np.testing.assert_array_equal(image_of(page), (counts[-5:, 2] - counts[-5:, 3]).sum(axis=0))
    page.display.select(Selection(kind=Kind.COMPOSITE))
    page.refresh()
    assert image_of(page).dtype == np.uint8
    assert "above 75 keV" in page.caption.text()
    page.flat = Flat(
        rates_per_s=counts[-1] / 1e-3,
        thresholds=(0, 1, 2, 3),
        thresholds_kev=page.thresholds_kev,
        n_frames=1,
        calibration=page.session.state.calibration,
    )
    page.display.select(Selection())
    page.display.source.setCurrentIndex(0)
    page.display.flat.setChecked(True)
    page.refresh()
    np.testing.assert_allclose(image_of(page), 1.0)
    page.tabs_of_image.setCurrentIndex(1)
    page.refresh()
    assert len(page.grid.views) == 4
    page.display.flat.setChecked(False)
    page.refresh()
    before = page.grid._items[0].levels
    page.display.source.setCurrentIndex(2)
    page.refresh()
    grown = page.grid._items[0].levels
    assert before is not None
    assert grown is not None
    np.testing.assert_allclose(np.divide(grown, before), page.store.status().n_received, err_msg="they stay, a frame")
    page.display.source.setCurrentIndex(0)
    page.display.log.setChecked(True)
    page.refresh()
    seen = page.grid._items[3].image
    assert seen is not None
    np.testing.assert_allclose(seen, np.log10(np.maximum(counts[-1, 3], 0.5)), rtol=1e-6)
    page.grid.views[2].setRange(QtCore.QRectF(0.5, 0.5, 1, 1), padding=0)
    assert page.grid.views[0].viewRect().center() == page.grid.views[2].viewRect().center()


def test_levels_belong_to_what_is_shown_and_grow_with_a_sum(page: LivePage) -> None:
    fill(page, 4)
    first = page.panel.levels
    page.display.select(Selection(first=3))
    page.refresh()
    assert page.panel.levels[1] < first[1]
    page.display.select(Selection())
    page.refresh()
    assert page.panel.levels == pytest.approx(first)
    page.display.source.setCurrentIndex(2)
    page.refresh()
    low, high = page.panel.levels
    fill(page, 4, first=4)
    assert page.panel.levels == pytest.approx((2 * low, 2 * high))


def test_held_frames_stay_and_gaps_are_shown(page: LivePage, qtbot: QtBot) -> None:
    frames = fill(page, 3)
    page.store.push(Lost(run_id=1, first_sequence=3, n_frames=2, reason="dropped on purpose"))
    fill(page, 1, first=5)
    qtbot.mouseClick(page.playback.hold, LEFT)
    held = image_of(page)
    fill(page, 2, first=6)
    np.testing.assert_array_equal(image_of(page), held)
    assert "2 lost" in page.rates.text()
    page.playback.slider.setValue(1)
    page.refresh()
    np.testing.assert_array_equal(image_of(page), frames[1].counts[0])
    page.playback.slider.setValue(3)
    page.refresh()
    assert np.isnan(image_of(page)).all()
    assert "2 frames were lost here" in page.caption.text()
    page.repaint()
    qtbot.mouseClick(page.playback.newest, LEFT)
    page.refresh()
    np.testing.assert_array_equal(image_of(page), a_frame(7, SHAPE).counts[0])
    assert not page.playback.hold.isChecked()


def test_what_was_in_memory_when_it_was_held_stays_however_fast_frames_come(page: LivePage, qtbot: QtBot) -> None:
    page.store = FrameStore(most_frames=5)
    frames = fill(page, 5)
    page.playback.slider.setValue(2)
    fill(page, 20, first=5)
    np.testing.assert_array_equal(image_of(page), frames[2].counts[0])
    for number in (0, 4):
        page.playback.slider.setValue(number)
        page.refresh()
        np.testing.assert_array_equal(image_of(page), frames[number].counts[0])
    qtbot.mouseClick(page.playback.newest, LEFT)
    fill(page, 0)
    np.testing.assert_array_equal(image_of(page), a_frame(24, SHAPE).counts[0])
    assert (page.playback.slider.minimum(), page.playback.slider.maximum()) == (20, 24)


def test_colours_of_bins_stay_as_levels_do_and_grow_with_a_sum(page: LivePage) -> None:
    page.display.select(Selection(kind=Kind.COMPOSITE))
    counts = fill(page, 1)[0].counts
    before = image_of(page).astype(int)
    half = Frame(counts=counts // 2, thresholds=(0, 1, 2, 3), sequence=1, timestamp_ns=0, exposure_ns=1, run_id=1)
    page.store.push(half)
    page.refresh()
    darker = image_of(page)
    assert darker.mean() < 0.6 * before.mean()
    page.display.source.setCurrentIndex(2)
    page.refresh()
    assert image_of(page).mean() == pytest.approx(0.75 * before.mean(), rel=0.01)
    page.display.source.setCurrentIndex(0)
    page.display.auto.click()
    page.refresh()
    assert image_of(page).mean() > 1.5 * darker.mean()


def test_full_pixels_are_those_of_the_frame_that_is_looked_at(page: LivePage) -> None:
    counts = np.ones(SHAPE, dtype=np.uint16)
    counts[0, 5, 6] = 4095
    page.store.push(Frame(counts=counts, thresholds=(0, 1, 2, 3), sequence=0, timestamp_ns=0, exposure_ns=1, run_id=1))
    fill(page, 1, first=1)
    assert page.pixels.marks["full"].text() == "full (0)"
    page.playback.slider.setValue(0)
    fill(page, 0)
    assert page.pixels.marks["full"].text() == "full (1)"


def test_a_histogram_is_counted_far_more_rarely_than_images_come_and_ends_with_the_last(
    page: LivePage, qtbot: QtBot, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[np.ndarray] = []
    count = levels.histogram
    monkeypatch.setattr(levels, "histogram", lambda image: counted.append(image) or count(image))
    monkeypatch.setattr(image_panel, "COUNT_EVERY_S", 3600.0)
    n_before = page.n_painted
    for n in range(30):
        fill(page, 1, first=n)
    assert page.n_painted == n_before + 30
    assert len(counted) == 1
    monkeypatch.setattr(image_panel, "COUNT_EVERY_S", 0.01)
    page.panel.item._later.stop()  # of the hour
    fill(page, 1, first=30)
    fill(page, 1, first=31)
    qtbot.waitUntil(lambda: len(counted) > 1 and bool((counted[-1] == image_of(page)).all()))


def test_10000_frames_are_counted_while_the_page_paints(page: LivePage) -> None:
    store, counts = FrameStore(), a_frame(0, SHAPE).counts
    page.store = store
    is_over = threading.Event()

    def push() -> None:
        for n in range(10_000):
            store.push(
                Frame(counts=counts, thresholds=(0, 1, 2, 3), sequence=n, timestamp_ns=0, exposure_ns=1, run_id=1)
            )
        is_over.set()

    thread = threading.Thread(target=push)
    thread.start()
    page.display.source.setCurrentIndex(2)
    while not is_over.is_set():
        page.refresh()
        page.repaint()
    thread.join()
    page._measured_s = 0.0
    page.refresh()
    np.testing.assert_array_equal(image_of(page), 10_000 * counts[0].astype(np.int64))
    status = store.status()
    assert (status.n_received, status.n_lost, status.n_late) == (10_000, 0, 0)
    assert "10000 frames, 0 lost" in page.rates.text()


# Regions, profile, pixel, mask


def test_the_window_beats_as_the_screen_does_only_where_frames_come_so_fast(page: LivePage) -> None:
    assert page.beat_ms == BEAT_MS
    fill(page, 60)
    assert page.beat_ms == SCREEN_MS


def test_regions_and_profile_measure_what_is_shown(page: LivePage, qtbot: QtBot) -> None:
    counts = fill(page, 1)[0].counts
    page.tabs.setCurrentWidget(page.regions)
    qtbot.mouseClick(page.regions.add_rectangle, LEFT)
    page.regions.add(Shape.ELLIPSE)
    page.regions.take_away()
    page.regions.add(Shape.RECTANGLE, Region(Shape.RECTANGLE, 2, 3, 5, 4))
    calibration = page.session.state.calibration
    assert calibration is not None
    pixel_class = calibration.pixel_class.copy()
    pixel_class[20, 20] = PixelClass.DEAD
    page.session.change(calibration=replace(calibration, pixel_class=pixel_class))
    page.regions.add(Shape.RECTANGLE, Region(Shape.RECTANGLE, 18, 20, 3, 1))
    found = page.regions.regions()[1]
    assert found == pytest.approx((Shape.RECTANGLE, 2, 3, 5, 4)) or found[1:] == pytest.approx((2, 3, 5, 4))
    page._measured_s = 0.0
    page.refresh()
    item = page.regions.table.item(1, 2)
    assert item is not None
    assert float(item.text()) == pytest.approx(counts[0, 3:7, 2:7].mean(), rel=1e-3)
    kept, out = page.regions.table.item(2, 1), page.regions.table.item(2, COLUMNS.index("out"))
    assert kept is not None
    assert out is not None
    assert (kept.text(), out.text()) == ("2", "1"), "the dead pixel has no say"
    curve = page.regions._curves[1][0].getData()
    np.testing.assert_allclose(curve[0], page.thresholds_kev)
    np.testing.assert_allclose(curve[1], counts[:, 3:7, 2:7].mean(axis=(1, 2)))
    page.tabs.setCurrentWidget(page.profile)
    qtbot.mouseClick(page.profile.show_line, LEFT, pos=QtCore.QPoint(8, page.profile.show_line.height() // 2))
    page._measured_s = 0.0
    page.refresh()
    ends = page.profile.ends()
    assert ends is not None
    _, values = page.profile._curve.getData()
    assert len(values) > 10
    assert np.isin(values, counts[0, int(ends[0][1])]).all()


def test_the_inspector_tells_of_the_pixel_under_the_mouse(page: LivePage, qtbot: QtBot) -> None:
    counts = fill(page, 1)[0].counts
    qtbot.waitExposed(page)
    click(qtbot, page.panel, 5, 7)
    page.panel._note_mouse(page.panel.place_of(5, 7))
    page._measured_s = 0.0
    page.refresh()
    table = page.pixels.table
    rows = {table.item(n, 0).text(): table.item(n, 1).text() for n in range(table.rowCount())}  # pyright: ignore
    assert rows["pixel"] == "column 7, row 5"
    assert rows["above 18 keV"] == str(counts[0, 5, 7])
    calibration = page.session.state.calibration
    assert calibration is not None
    assert rows["trim"] == ", ".join(str(trim) for trim in calibration.trim[:4, 5, 7])


def test_a_mask_is_edited_by_clicks_taken_back_and_used(page: LivePage, qtbot: QtBot) -> None:
    fill(page, 1)
    pixels, session = page.pixels, page.session
    assert not pixels.keep.isEnabled()
    assert "that of the calibration" in pixels.keep.toolTip()
    pixels.editing.setCurrentIndex(1)
    page.panel.clicked[0](4, 4)
    pixels.editing.setCurrentIndex(2)
    page.panel.clicked[0](10, 3)
    page.panel.clicked[0](8, 5)
    expected = np.zeros(SHAPE[1:], dtype=bool)
    expected[4, 4] = True
    expected[8:11, 3:6] = True
    np.testing.assert_array_equal(pixels.current_mask(SHAPE[1:]), expected)
    qtbot.mouseClick(pixels.undo, LEFT)
    qtbot.mouseClick(pixels.redo, LEFT)
    old = session.state.calibration
    qtbot.mouseClick(pixels.keep, LEFT)
    better = session.state.calibration
    assert isinstance(better, Calibration)
    assert better is not old
    np.testing.assert_array_equal(masked(better), expected)
    page.refresh()
    qtbot.waitUntil(lambda: session.beat() or session.state.calibration_path is not None, timeout=20_000)
    assert session.state.calibration_path is not None
    assert load(session.state.calibration_path).identity == better.identity
    assert session.state.calibration_path.name in pixels.told.text()
    qtbot.mouseClick(pixels.undo, LEFT)  # still possible, against the new version
    np.testing.assert_array_equal(pixels.current_mask(SHAPE[1:])[8:11, 3:6], False)  # pyright: ignore
    assert pixels.keep.isEnabled()


# Files


def test_saved_pictures_tell_how_they_were_taken(page: LivePage, tmp_path: Path, qtbot: QtBot) -> None:
    counts = fill(page, 1)[0].counts
    page.pictures.write(tmp_path / "x.tiff")
    qtbot.waitUntil(lambda: page.session.beat() or not page.pictures.is_writing)
    with tifffile.TiffFile(tmp_path / "x.tiff") as file:
        assert len(file.pages) == 1 + SHAPE[0]
        np.testing.assert_array_equal(file.pages[0].asarray()[::-1], counts[0])
        np.testing.assert_array_equal(file.pages[3].asarray()[::-1], counts[2])
        told = json.loads(file.pages[0].description)  # pyright: ignore[reportAttributeAccessIssue]
    assert told["thresholds_kev"] == [18.0, 33.0, 50.0, 75.0]
    assert told["plan"]["detector"]["exposure_s"] == 1.0
    page.pictures.write(tmp_path / "x.png")
    qtbot.waitUntil(lambda: page.session.beat() or not page.pictures.is_writing)
    picture = QtGui.QImage(str(tmp_path / "x.png"))
    assert (picture.width(), picture.height()) == (SHAPE[2], SHAPE[1])
    assert json.loads(picture.text("Description"))["what"] == "above 18 keV"


def test_settings_come_back(page: LivePage, session: Session, qtbot: QtBot) -> None:
    page.display.colours.setCurrentText("cividis")
    page.display.log.setChecked(True)
    page.pixels.marks["noisy"].setChecked(True)
    saved = json.loads(json.dumps(page.save()))
    other = LivePage(session)
    qtbot.addWidget(other)
    other.restore(saved)
    assert other.save() == saved
    other.restore({"tab": "odd", "marks": 5, "colours": None})


# The instrument


def test_settings_that_cannot_be_are_told(page: LivePage, qtbot: QtBot) -> None:
    page.settings.thresholds[0].setValue(60.0)
    assert "allowed: above threshold" in page.settings.problem.text()
    page.settings.thresholds[0].setValue(18.0)
    assert page.settings.why_not() == ""
    page.settings.mode.setCurrentText("fine-spm")
    assert page.settings.plan().geometry.cols == 256
    assert len(page.settings.plan().detector.thresholds_kev) == 2
    page._measured_s = 0.0
    page.refresh()
    qtbot.mouseClick(page.plan_button, LEFT)
    page._measured_s = 0.0
    page.refresh()
    assert page.session.state.plan.detector.mode == "fine-spm"
    assert "has these settings already" in page.plan_button.toolTip()
    assert "No instrument is connected" in page.start_button.toolTip()


@pytest.mark.timeout(300)
def until(is_so: Callable[[], object], most_s: float) -> None:
    """Wait without keeping Python's lock, as pytest-qt's wait does: the instrument of this process needs it."""
    loop, looking, ending = QtCore.QEventLoop(), QtCore.QTimer(), QtCore.QTimer()
    looking.timeout.connect(lambda: is_so() and loop.quit())
    ending.timeout.connect(loop.quit)
    looking.start(10)
    ending.start(round(1e3 * most_s))
    loop.exec()
    looking.stop()
    ending.stop()
    assert is_so()


def test_the_simulated_instrument_is_looked_at_and_changed(session: Session, qtbot: QtBot) -> None:
    plan = Plan()
    session.change(
        plan=msgspec.structs.replace(plan, detector=msgspec.structs.replace(plan.detector, exposure_s=0.002))
    )
    session.rig.connect("sim:demo")
    page = LivePage(session)
    page.n_flats = 3
    qtbot.addWidget(page)
    until(lambda: session.rig.snapshot().link is Link.READY, 30.0)

    def seen() -> bool:
        session.beat()
        page.refresh()
        return page.run is not None and page.run.n_begun > n_begun and page.store.status().n_received > 3

    page.refresh()
    n_begun = 0
    qtbot.mouseClick(page.start_button, LEFT)
    until(seen, 100.0)
    assert page.is_running
    assert "The noise was looked for first" in page.note.text()
    newest = page.store.newest()
    assert newest is not None
    means = newest.counts.mean(axis=(1, 2))
    assert (np.diff(means) < 0).all(), "a beam, not noise"
    assert (newest.counts[0] > 0).mean() > 0.9, "and it is seen, without a calibration"
    assert session.state.calibration is None
    page.note.linkActivated.emit("Calibrate")
    assert session.page_wanted == "Calibrate"
    n_begun = 1
    page.settings.thresholds[3].setValue(80.0)
    until(seen, 30.0)
    assert page.thresholds_kev == (18.0, 33.0, 50.0, 80.0)
    qtbot.mouseClick(page.flat_button, LEFT)
    until(lambda: seen() and page.flat is not None, 30.0)
    qtbot.mouseClick(page.start_button, LEFT)
    until(lambda: (session.beat(), not page.is_running)[1], 30.0)
    assert session.failures == []
    assert page.store.status().n_lost == 0


def test_a_tube_that_trips_is_told_while_dark_frames_come(session: Session, qtbot: QtBot) -> None:
    plan = Plan()
    fast = msgspec.structs.replace(plan, detector=msgspec.structs.replace(plan.detector, exposure_s=0.01))
    session.change(plan=fast, calibration=rough_calibration(fast))
    session.rig.connect("sim:demo?tube_trips_after=20")
    page = LivePage(session)
    qtbot.addWidget(page)
    until(lambda: session.rig.snapshot().link is Link.READY, 30.0)
    page.refresh()
    qtbot.mouseClick(page.start_button, LEFT)

    def is_told() -> bool:
        session.beat()
        page.refresh()
        return "The beam is off: the tube tripped" in page.note.text()

    until(is_told, 60.0)
    assert page.is_running
    assert 'href="Instrument"' in page.note.text()
