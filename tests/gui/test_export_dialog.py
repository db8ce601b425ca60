"""The dialog Export: what it refuses, what it suggests, and that what it writes is what was chosen."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from pyqtgraph.Qt import QtCore, QtWidgets
from pytestqt.qtbot import QtBot

from gui.export import choice as choice_module
from gui.export.choice import Choice, level_for, suggested
from gui.export.dialog import CHECKED, LEVEL, NAME, UNCHECKED, UNIT, ExportDialog
from gui.export.formats import FORMATS, Options, format_for
from gui.session import Session
from gui.volume.looks import MaterialLook
from tests.gui.export_volumes import bins, materials

itk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
LEFT = QtCore.Qt.MouseButton.LeftButton


@pytest.fixture
def dialog(qtbot: QtBot, session: Session) -> ExportDialog:
    session.change(materials=materials(), materials_path=session.state.folder / "mouse.h5", bins=bins())
    dialog = ExportDialog(session)
    qtbot.addWidget(dialog)
    dialog.show()
    return dialog


def choose(dialog: ExportDialog, name: str) -> None:
    dialog.format.setCurrentIndex([kind.name for kind in FORMATS].index(name))


def tick(dialog: ExportDialog, *names: str) -> None:
    for row in range(dialog.table.rowCount()):
        item = dialog.table.item(row, NAME)
        item.setCheckState(CHECKED if item.text() in names else UNCHECKED)


def finish(qtbot: QtBot, dialog: ExportDialog) -> None:
    qtbot.mouseClick(dialog.export_button, LEFT)

    def is_over() -> bool:
        dialog.session.beat()
        dialog.refresh()
        return dialog.session.job("compute") is None

    qtbot.waitUntil(is_over, timeout=10_000)


def test_it_writes_what_is_ticked_in_the_unit_chosen(qtbot: QtBot, dialog: ExportDialog, tmp_path: Path) -> None:
    assert dialog.name.text() == str(tmp_path / "mouse.nrrd")
    tick(dialog, "iodine")
    dialog.unit.setCurrentText("g/cm3")
    assert "One file, about" in dialog.estimate.text()
    finish(qtbot, dialog)
    assert not dialog.session.failures
    read = itk.GetArrayFromImage(itk.ReadImage(str(tmp_path / "mouse.nrrd")))
    np.testing.assert_array_equal(read, materials().values[1])
    assert "Written: mouse.nrrd" in dialog.outcome.text()
    assert dialog.name.text() == str(tmp_path / "mouse-2.nrrd")  # the next one has a name that is free
    assert dialog.export_button.isEnabled()


@pytest.mark.parametrize("name", [kind.name for kind in FORMATS])
def test_every_format_can_be_written_from_it(qtbot: QtBot, dialog: ExportDialog, name: str, tmp_path: Path) -> None:
    choose(dialog, name)
    if name in ("stl", "ply"):
        tick(dialog, "iodine")
        assert dialog.table.cellWidget(1, LEVEL).text() == "5.00 mg/mL"
    finish(qtbot, dialog)
    assert not dialog.session.failures, dialog.session.failures
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    assert not list(tmp_path.rglob("*.partial"))


def test_a_name_that_is_taken_wants_a_tick(qtbot: QtBot, dialog: ExportDialog, tmp_path: Path) -> None:
    tick(dialog, "iodine")
    (tmp_path / "there.nrrd").write_text("old")
    dialog.name.setText(str(tmp_path / "there.nrrd"))
    assert not dialog.export_button.isEnabled()
    assert "exists already" in dialog.estimate.text()
    assert "exists already" in dialog.export_button.toolTip()
    dialog.replacing.setChecked(True)
    assert dialog.export_button.isEnabled()
    finish(qtbot, dialog)
    assert (tmp_path / "there.nrrd").read_bytes().startswith(b"NRRD")


def test_bins_are_told_in_hounsfield_units_in_dicom(dialog: ExportDialog) -> None:
    dialog.source.setCurrentIndex(1)
    assert dialog.unit.currentText() == "1/mm"
    choose(dialog, "dicom")
    assert dialog.unit.currentText() == "HU"
    assert dialog.table.item(0, UNIT).text() == "HU"
    choose(dialog, "rgba")
    assert "Only concentrations" in dialog.estimate.text()
    assert not dialog.export_button.isEnabled()


def test_nothing_ticked_and_nothing_named_are_told(dialog: ExportDialog) -> None:
    tick(dialog)
    assert "No channel is chosen" in dialog.estimate.text()
    tick(dialog, "water")
    dialog.name.setText("")
    assert "name is empty" in dialog.estimate.text()
    dialog.name.setText("/nowhere/at/all/a.nrrd")
    assert "is not there" in dialog.estimate.text()
    dialog.name.setText("a.dat")
    assert "allowed ending: .nrrd" in dialog.estimate.text()


def test_it_waits_for_what_runs_in_the_background(qtbot: QtBot, dialog: ExportDialog) -> None:
    goes_on = threading.Event()

    def waiting():
        goes_on.wait(10)
        yield

    dialog.session.compute("Reconstruction", waiting())
    dialog.refresh()
    assert not dialog.export_button.isEnabled()
    assert "Reconstruction is running" in dialog.export_button.toolTip()
    dialog.session.job("compute").abort()
    goes_on.set()
    qtbot.waitUntil(lambda: dialog.session.beat() or dialog.session.job("compute") is None)
    dialog.refresh()
    assert dialog.export_button.isEnabled()


def test_it_may_be_closed_while_it_writes(qtbot: QtBot, session: Session, tmp_path: Path) -> None:
    session.change(materials=materials(), materials_path=tmp_path / "mouse.h5")
    dialog = ExportDialog(session)  # which nobody but itself deletes
    dialog.show()
    tick(dialog, "iodine")
    gone = []
    dialog.destroyed.connect(lambda: gone.append(True))
    qtbot.mouseClick(dialog.export_button, LEFT)
    dialog.reject()
    qtbot.waitUntil(lambda: bool(gone))
    qtbot.waitUntil(lambda: session.beat() or session.job("compute") is None)
    assert (tmp_path / "mouse.nrrd").exists()
    assert not session.failures


def test_colours_are_those_of_the_window(qtbot: QtBot, session: Session, tmp_path: Path) -> None:
    volume = materials()
    session.change(materials=volume)
    looks = [MaterialLook(material=name, colour=(0, 0, 1), high_g_cm3=0.001) for name in volume.channels]
    dialog = ExportDialog(session, looks=lambda: looks)
    qtbot.addWidget(dialog)
    dialog.show()
    choose(dialog, "rgba")
    finish(qtbot, dialog)
    read = itk.GetArrayFromImage(itk.ReadImage(str(tmp_path / "materials.rgba.nrrd")))
    assert (read == [0, 0, 255, 255]).all()


def test_without_a_volume_it_says_so(qtbot: QtBot, session: Session) -> None:
    dialog = ExportDialog(session)
    qtbot.addWidget(dialog)
    assert dialog.choice() is None
    assert not dialog.export_button.isEnabled()
    assert "no volume yet" in dialog.export_button.toolTip()


def test_every_control_says_what_it_is(dialog: ExportDialog) -> None:
    kinds = (QtWidgets.QAbstractButton, QtWidgets.QComboBox, QtWidgets.QLineEdit, QtWidgets.QSpinBox)
    for kind in kinds:
        for widget in dialog.findChildren(kind):
            parent = widget.parent()
            inner = isinstance(parent, QtWidgets.QAbstractSpinBox | QtWidgets.QTableWidget | QtWidgets.QHeaderView)
            assert widget.toolTip() or inner, f"{widget} has no tooltip"


def test_a_choice_knows_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = materials()
    chosen = Choice(
        volume=volume, channels=volume.channels, kind=format_for(Path("a.mha")), target=tmp_path / "a.mha",
        options=Options(is_together=True),
    )  # fmt: skip
    assert chosen.why_not() == ""
    monkeypatch.setattr(choice_module.shutil, "disk_usage", lambda _: choice_module.shutil._ntuple_diskusage(9, 8, 1))
    assert "the disk has" in chosen.why_not()


def test_suggestions_do_not_collide(tmp_path: Path) -> None:
    kind = format_for(Path("a.nrrd"))
    assert suggested(tmp_path, None, "bins", kind) == tmp_path / "bins.nrrd"
    (tmp_path / "bins-iodine.nrrd").touch()
    assert suggested(tmp_path, None, "bins", kind) == tmp_path / "bins-2.nrrd"
    assert level_for("water", "mg/mL") == 500
    assert level_for("gold", "g/cm3") == pytest.approx(0.005)
