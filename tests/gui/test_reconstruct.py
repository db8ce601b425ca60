"""The page Reconstruct by mouse and key: open, try, compare, go back, run, cancel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from pyqtgraph.Qt import QtCore, QtWidgets
from pytestqt.qtbot import QtBot

from firmware_iface.errors import WrongUsage
from gui.reconstruct.compare_panel import ComparePanel
from gui.reconstruct.convergence_panel import ConvergencePanel
from gui.reconstruct.form import OptionForm
from gui.reconstruct.options import Row
from gui.reconstruct.page import MATERIALS, ReconstructPage
from gui.reconstruct.settings import IMAGE, PROJECTION, Decomposition, Quantities, Settings
from gui.reconstruct.sources import SourceKind
from gui.reconstruct.tries import Picture, Try
from gui.session import Session
from reconstruction.methods.convergence import Step
from reconstruction.recipe import Recipe
from reconstruction.volume import load_volume
from tests.test_pipeline import BASIS, write_scan

LEFT = QtCore.Qt.MouseButton.LeftButton
QUICK = Recipe(method="sirt", n_iterations=3, bins=(1,))


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scan(tmp_path_factory.mktemp("window") / "mouse.h5")


@pytest.fixture
def page(qtbot: QtBot, session: Session) -> ReconstructPage:
    page = ReconstructPage(session)
    qtbot.addWidget(page)
    page.resize(1280, 760)
    page.show()
    return page


def wait(qtbot: QtBot, page: ReconstructPage, until: Callable[[], bool] | None = None) -> None:
    """Go on as the window does until something holds, or until nothing is being worked on."""

    def is_reached() -> bool:
        page.session.beat()
        page.refresh()
        assert not page.session.failures, page.session.failures[0]
        return until() if until else page.side.is_idle and page.session.job("compute") is None

    qtbot.waitUntil(is_reached, timeout=60_000)


def set_up(qtbot: QtBot, page: ReconstructPage, path: Path, settings: Settings | None = None) -> None:
    page.open(path)
    wait(qtbot, page)
    if settings is not None:
        page.history.edit(settings)
        page._show_settings(settings)
        wait(qtbot, page)


def press(qtbot: QtBot, page: ReconstructPage, button: QtWidgets.QPushButton) -> None:
    page.refresh()
    assert button.isEnabled(), button.toolTip()
    qtbot.mouseClick(button, LEFT)


def test_an_empty_page_says_what_to_do(qtbot: QtBot, page: ReconstructPage) -> None:
    wait(qtbot, page)
    for button in (page.try_button, page.run_button, page.decompose_button, page.undo_button):
        assert not button.isEnabled()
        assert "Not now:" in button.toolTip()
    assert page.pictures.currentWidget() is page.empty
    assert page.empty.text()


def test_every_control_is_explained(page: ReconstructPage) -> None:
    kinds = (
        QtWidgets.QPushButton, QtWidgets.QComboBox, QtWidgets.QLineEdit, QtWidgets.QCheckBox, QtWidgets.QSlider,
        QtWidgets.QDoubleSpinBox,
    )  # fmt: skip
    for kind in kinds:
        for widget in page.findChildren(kind):
            if not widget.objectName().startswith("qt_"):
                assert widget.toolTip(), widget


def test_a_scan_is_tried_twice_and_gone_back_to(qtbot: QtBot, page: ReconstructPage, scan: Path) -> None:
    set_up(qtbot, page, scan)
    assert page.session.state.scan_path == scan
    assert "90" in page.source.lines.text()
    press(qtbot, page, page.try_button)
    wait(qtbot, page)
    assert page.pictures.currentWidget() is page.compare
    page.recipe_form.method.put("sirt")
    page.recipe_form.method.chosen.emit()
    page.recipe_form.iterations.put("3")
    page.recipe_form.iterations.entered.emit()
    assert page.settings.recipe == replace(Recipe(method="sirt", n_iterations=3), use_gpu=page.settings.recipe.use_gpu)
    press(qtbot, page, page.try_button)
    wait(qtbot, page)
    first, second = page.tries
    assert "method fdk → sirt" in page.outcome.list.item(1).text()
    before, this = page.compare.readings()
    assert before is not None
    assert this is not None
    assert before.mean != this.mean
    assert len(page.outcome.convergence._steps) == 3
    assert first.pictures[0].values.shape == second.pictures[0].values.shape
    page.compare.is_less.setChecked(True)
    less = page.compare.items[2].image
    assert less is not None
    np.testing.assert_allclose(less, second.pictures[0].values - first.pictures[0].values)
    qtbot.mouseClick(page.compare.take_region, LEFT)
    region = page.settings.recipe.region_mm
    assert region is not None
    (left, right), (low, high), along_z = region
    assert left < 0 < right
    assert low < 0 < high  # the box begins in the middle
    assert along_z == (float("-inf"), float("inf"))
    assert f"x={left:g}:{right:g}" in page.recipe_form.region.text()
    press(qtbot, page, page.undo_button)
    assert page.settings == second.settings
    rect = page.outcome.list.visualItemRect(page.outcome.list.item(0))
    page.outcome.setCurrentIndex(0)
    qtbot.mouseClick(page.outcome.list.viewport(), LEFT, pos=rect.center())
    assert page.settings == first.settings
    assert page.recipe_form.method.value() == "fdk"
    press(qtbot, page, page.undo_button)
    assert page.settings == second.settings
    assert page.recipe_form.iterations.text() == "3"


def test_bins_then_materials_are_written_beside_what_is_there(qtbot: QtBot, page: ReconstructPage, scan: Path) -> None:
    folder = page.session.state.folder
    (folder / "mouse-volume.h5").write_text("precious")
    asked = Decomposition(quantities=Quantities(mono_kev=(70.0,)))
    set_up(qtbot, page, scan, Settings(recipe=Recipe(window="ram-lak"), decomposition=asked))
    press(qtbot, page, page.run_button)
    wait(qtbot, page)
    state = page.session.state
    assert state.bins_path == folder / "mouse-volume-2.h5"
    assert (folder / "mouse-volume.h5").read_text() == "precious"
    assert "ram-lak" in page.outcome.made.toPlainText()
    page.steps.setCurrentIndex(MATERIALS)
    assert "there already" in page._words.text()
    press(qtbot, page, page.decompose_button)
    wait(qtbot, page)
    state = page.session.state
    assert state.materials is not None
    assert state.materials.channels == BASIS.materials
    assert state.materials_path == folder / "mouse-materials.h5"
    assert load_volume(folder / "mouse-materials-quantities.h5").channels == ("70 keV",)
    press(qtbot, page, page.try_button)
    wait(qtbot, page)
    assert [picture.name for picture in page.tries[-1].pictures] == [*BASIS.materials, "all in colour", "70 keV"]


def test_cancel_changes_nothing(qtbot: QtBot, page: ReconstructPage, scan: Path) -> None:
    settings = Settings(recipe=Recipe(method="sirt", n_iterations=5000))
    set_up(qtbot, page, scan, settings)
    state = page.session.state
    press(qtbot, page, page.run_button)
    wait(qtbot, page, lambda: len(page._log) > 2)
    assert "of 5000" in page.outcome.convergence.words.text()
    assert "left" in page.outcome.convergence.words.text()
    assert not page.run_button.isEnabled()
    qtbot.mouseClick(page.run_bar.stop, LEFT)
    wait(qtbot, page)
    assert page.session.state is state
    assert page.settings == settings
    assert not list(state.folder.iterdir())
    assert "nothing was written" in page.run_bar.end.text()


def test_what_is_typed_is_checked_at_once(qtbot: QtBot, page: ReconstructPage, scan: Path) -> None:
    set_up(qtbot, page, scan)
    settings = page.settings
    for line, text, says in (
        (page.recipe_form.bins, "one", "numbers from 1"),
        (page.recipe_form.voxel, "-1", "more than 0"),
        (page.recipe_form.region, "x=3:1", "from the lower"),
        (page.recipe_form.memory, "much", "number with a unit"),
        (page.recipe_form.calibration.line, "/no/such.h5", "no file /no/such.h5"),
    ):
        line.setText(text)
        line.editingFinished.emit()
        page.refresh()
        assert says in page._words.text()
        assert not page.run_button.isEnabled()
        assert says in page.run_button.toolTip()
        line.setText("")
        line.editingFinished.emit()
    assert page.settings == settings
    page.materials_form.tier.put(PROJECTION)
    page.materials_form.tier.chosen.emit()
    page.steps.setCurrentIndex(MATERIALS)
    page.refresh()
    assert "response" in page.decompose_button.toolTip()


def test_images_of_another_program_are_decomposed(qtbot: QtBot, page: ReconstructPage, tmp_path: Path) -> None:
    folder, table = tmp_path / "foreign", tmp_path / "matrix.csv"
    folder.mkdir()
    concentrations = np.zeros((3, 1, 8, 8), np.float32)
    concentrations[0] = 1.0
    concentrations[1, :, 2:4, 5:7] = 0.01
    matrix = BASIS.attenuation_per_mm_per_g_cm3
    bins = np.tensordot(matrix, concentrations, axes=1) * 10  # grey values of 1 per cm
    for number, values in enumerate(bins, 1):
        tifffile.imwrite(folder / f"bin{number}.tif", values.astype(np.float32)[:, ::-1])
    rows = [
        f"{name},{','.join(f'{10 * value:.6g}' for value in row)}"
        for name, row in zip(BASIS.materials, matrix.T, strict=True)
    ]
    table.write_text("\n".join(["material,bin1,bin2,bin3,bin4", *rows]))
    page.open(folder)
    wait(qtbot, page)
    assert page.facts is not None
    assert page.facts.kind is SourceKind.IMAGES
    assert page.steps.currentIndex() == MATERIALS
    page.refresh()
    assert "material basis" in page.decompose_button.toolTip()
    page.materials_form.by.put("matrix")
    page.materials_form.file.put(str(table))
    page.materials_form.by.chosen.emit()
    press(qtbot, page, page.decompose_button)
    wait(qtbot, page)
    found = page.session.state.materials
    assert found is not None
    np.testing.assert_allclose(found.values, concentrations, atol=1e-4)


def test_a_broken_file_is_told_and_leaves_the_page(qtbot: QtBot, page: ReconstructPage, tmp_path: Path) -> None:
    broken = tmp_path / "broken.h5"
    broken.write_text("no scan")
    page.open(broken)
    qtbot.waitUntil(lambda: (page.session.beat(), page.refresh(), bool(page.session.failures))[2], timeout=30_000)
    assert "broken.h5" in page.session.failures[0].sentence
    page.session.failures.clear()
    wait(qtbot, page)
    assert not page.try_button.isEnabled()
    assert page.source.name.text() == "No scan yet"
    page.refresh()
    assert "being read" not in page.try_button.toolTip()


def test_after_a_broken_file_the_scan_is_there_as_before(
    qtbot: QtBot, page: ReconstructPage, scan: Path, tmp_path: Path
) -> None:
    set_up(qtbot, page, scan)
    page.open(tmp_path / "nowhere.h5")
    qtbot.waitUntil(lambda: (page.session.beat(), page.refresh(), bool(page.session.failures))[2], timeout=30_000)
    page.session.failures.clear()
    wait(qtbot, page)
    assert scan.name in page.source.name.text()
    assert page.try_button.isEnabled()


def test_what_the_scan_cannot_give_is_told_where_it_is_typed(qtbot: QtBot, page: ReconstructPage, scan: Path) -> None:
    set_up(qtbot, page, scan)
    form = page.recipe_form
    for line, text, why in (
        (form.region, "x=100:101", "allowed: some of"),
        (form.region, "z=:-100", "allowed: some of"),
        (form.voxel, "1e-5", "can be taken"),
        (form.voxel, "nan", "allowed: a number"),
        (form.pass_number, "0", "the scan has 1"),
        (form.metal, "-1", "above 0"),
    ):
        line.setText(text)
        line.editingFinished.emit()
        wait(qtbot, page)
        page.refresh()
        assert why in page._words.text()
        assert why in page.try_button.toolTip()
        assert not page.try_button.isEnabled()
        line.setText("")
        line.editingFinished.emit()
        wait(qtbot, page)
        page.refresh()
        assert page.try_button.isEnabled()


def test_a_material_is_named_once() -> None:
    with pytest.raises(WrongUsage, match="water is named twice"):
        Decomposition(tier=PROJECTION, materials=("water", "I", "water"))


def test_the_recipe_form_gives_back_what_it_shows(qtbot: QtBot, page: ReconstructPage) -> None:
    wait(qtbot, page)
    for recipe in (
        Recipe(),
        Recipe(window="cosine", bins=(1, 3), voxel_mm=0.2, rings="auto", truncation="none", metal_per_mm=0.5),
        Recipe(
            method="os-sart", n_iterations=7, options={"n_subsets": 6, "has_momentum": False}, start="fdk",
            weights="none", region_mm=((-2.0, 1.5), (float("-inf"), 3.0), (float("-inf"), float("inf"))),
        ),
        Recipe(method="fista", prior="huber", options={"strength": "3", "n_subsets": 5}, stops_at_noise=True),
        Recipe(method="plug-and-play", prior="nl-means", options={"patch_size": 5}),
        Recipe(method="pdhg", prior="directional-tv", options={"strength": "auto"}, reference="fdk"),
    ):  # fmt: skip
        settings = Settings(recipe=recipe, memory="8GB")
        page.recipe_form.fill(settings)
        assert page.recipe_form.settings(Settings()) == settings
    page.recipe_form.take_bins(Path("mouse-volume.h5"))
    page.recipe_form.fill(started := Settings(recipe=Recipe(method="cgls", start=Path("mouse-volume.h5"))))
    assert page.recipe_form.settings(Settings()) == started
    asked = Decomposition(
        tier=IMAGE, rule="exclusive", field_weight=0.5, is_weighted=True, subsets="air; water",
        air_below_per_mm=0.01,
        quantities=Quantities(mono_kev=(40.0, 70.0), electron_density=True, vnc_kev=60.0, elements=("I",),
        beams=("proton@150",)),
    )  # fmt: skip
    for decomposition in (asked, Decomposition(tier="onestep", materials=("water", "I"), prior="tnv", n_iterations=5)):
        page.materials_form.fill(Settings(decomposition=decomposition))
        assert page.materials_form.settings(Settings()).decomposition == decomposition


def test_a_form_tells_only_what_differs(qtbot: QtBot) -> None:
    form = OptionForm()
    qtbot.addWidget(form)
    form.show_rows(
        [
            Row(name="on", label="on", kind="yes or no", default=True),
            Row(name="n", label="n", kind="whole number", default=3),
            Row(name="order", label="order", kind="choice", default="a", choices=("a", "b")),
        ]
    )
    assert form.values() == {}
    form.fill({"n": 5, "order": "b"})
    assert form.values() == {"n": 5, "order": "b"}


def test_boxes_move_together_and_levels_stay(qtbot: QtBot) -> None:
    panel = ComparePanel()
    qtbot.addWidget(panel)
    panel.resize(900, 500)
    panel.show()
    values = np.random.default_rng(0).normal(5, 1, (40, 40)).astype(np.float32)

    def made(number: int, offset: float) -> Try:
        picture = Picture(name="bin 1", unit="1/mm", values=values + offset)
        return Try(
            number=number, kind="bins", settings=Settings(), z_mm=0.0, pixel_mm=0.5, pictures=(picture,), seconds_s=1.0
        )

    panel.show_tries(None, made(1, 0.0))
    levels = panel.histogram.getLevels()
    panel.show_tries(made(1, 0.0), made(2, 100.0))
    assert panel.histogram.getLevels() == levels
    assert tuple(panel.items[0].getLevels()) == levels
    region = panel.boxes[0][0]
    region.setPos([2.0, 3.0])
    region.setSize([4.0, 5.0])
    assert panel.region_mm() == (2.0, 3.0, 4.0, 5.0)
    before, this = panel.readings()
    assert before is not None
    assert this is not None
    assert before.region.size == 8 * 10
    assert this.mean - before.mean == pytest.approx(100, abs=1e-3)
    assert before.mean == pytest.approx(values[6:16, 4:12].mean(), rel=1e-5)
    panel.views[0].setRange(QtCore.QRectF(2, 2, 6, 6), padding=0)
    panel.views[0].sigRangeChangedManually.emit(panel.views[0].state["mouseEnabled"])
    centres = [view.viewRect().center() for view in panel.views[:2]]
    assert centres[0].x() == pytest.approx(centres[1].x(), abs=0.1)
    assert centres[0].y() == pytest.approx(centres[1].y(), abs=0.1)


def test_tries_of_other_sizes_have_bars_of_their_own_and_fit_the_view(qtbot: QtBot) -> None:
    panel = ComparePanel()
    qtbot.addWidget(panel)
    panel.resize(900, 500)
    panel.show()
    picture = Picture(name="bin 1", values=np.zeros((24, 20), np.float32), unit="1/mm")
    tries = [
        Try(
            number=number, kind="bins", settings=Settings(), z_mm=0.0, pixel_mm=pixel_mm, corner_mm=(0.0, 0.0),
            pictures=(picture,), seconds_s=1.0,
        )
        for number, pixel_mm in enumerate((0.5, 5.0, 0.01, 0.5))
    ]  # fmt: skip
    for before, this in zip([None, *tries], tries, strict=False):
        panel.show_tries(before, this)
        width_mm = 20 * this.pixel_mm
        assert panel._bars[1].isVisible()
        assert width_mm / 10.1 <= panel._bars[1].size <= width_mm / 4
        assert panel.views[1].viewRect().width() >= width_mm


def test_iterations_are_drawn_as_they_come(qtbot: QtBot) -> None:
    panel = ConvergencePanel()
    qtbot.addWidget(panel)
    steps = [Step(n, 100.0 / n, float("nan"), (60.0 / n, 40.0 / n), 2.0 * n) for n in range(1, 5)]
    panel.show_steps(steps, 10, is_running=True)
    assert panel.words.text() == "Iteration 4 of 10, 2 s each, residual 25, about 12 s left"
    curves = panel.plot.getPlotItem().listDataItems()
    assert [curve.name() for curve in curves] == ["bin 1", "bin 2", "all together"]
    np.testing.assert_allclose(curves[-1].getOriginalDataset()[1], [100, 50, 100 / 3, 25])
    blind = [
        step._replace(residual=float("nan"), objective=float(9 - n), channel_residuals=())
        for n, step in enumerate(steps)
    ]
    panel.show_steps(blind, 10)
    np.testing.assert_allclose(panel.plot.getPlotItem().listDataItems()[0].getOriginalDataset()[1], [9, 8, 7, 6])


def test_bins_of_another_scan_of_this_name_are_not_decomposed(
    qtbot: QtBot, page: ReconstructPage, scan: Path, tmp_path: Path
) -> None:
    page.session.change(folder=tmp_path)
    set_up(qtbot, page, scan, Settings(recipe=replace(QUICK, bins=())))
    press(qtbot, page, page.run_button)
    wait(qtbot, page)
    bins = page.session.state.bins
    assert bins is not None
    assert page._to_decompose() is bins
    (tmp_path / "later").mkdir()
    other = write_scan(tmp_path / "later" / scan.name)
    set_up(qtbot, page, other)
    assert page.session.state.bins is bins
    assert page._to_decompose() == other
    assert load_volume(tmp_path / "mouse-volume.h5").provenance.source_begun == bins.provenance.source_begun != ""
