"""What is grey says why, on every page, in menus and dialogs, whatever the instrument and the session are doing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pyqtgraph.Qt import QtCore, QtGui, QtWidgets
from pytestqt.qtbot import QtBot

from acquisition.instrument import Instrument
from calibration import store
from calibration.progress import Progress
from gui.export.dialog import ExportDialog
from gui.export.formats import FORMATS
from gui.log_panel import LogLines
from gui.rig import Rig
from gui.session import Session
from gui.state import Link
from gui.window import Window
from tests.gui.calibration_stand import PLAN, Stand, begun, opener
from tests.gui.simulated_cable import Cable
from tests.gui.test_scan_page import CALIBRATION, SMALL, Slow, opened
from tests.gui.volume_samples import bins, materials

ROOT = Path(__file__).resolve().parents[2]
CONTROLS = (
    QtWidgets.QAbstractButton, QtWidgets.QComboBox, QtWidgets.QLineEdit, QtWidgets.QAbstractSpinBox,
    QtWidgets.QAbstractSlider, QtWidgets.QPlainTextEdit, QtWidgets.QTextEdit, QtWidgets.QAbstractItemView,
    QtWidgets.QGroupBox,
)  # fmt: skip
N_BEATS = 12
SEE_THROUGH = QtCore.Qt.WidgetAttribute.WA_TransparentForMouseEvents


class Person:
    """Somebody at a window, who waits, turns to every page, and reads what is grey."""

    def __init__(self, qtbot: QtBot, window: Window) -> None:
        self.qtbot, self.window, self.session = qtbot, window, window.session
        for title in window.pages:
            assert window.pages[title] is not None
        self.look_around()

    def wait(self, until: Callable[[], object]) -> None:
        def beat() -> bool:
            self.window.beat()
            for page in self.window.pages.built.values():
                page.refresh()
            return bool(until())

        self.qtbot.waitUntil(beat, timeout=20_000)

    def look_around(self) -> None:
        """Let every page show what is new."""
        beats = iter(range(N_BEATS))
        self.wait(lambda: next(beats, None) is None)

    def unexplained(self, root: QtWidgets.QWidget | None = None) -> list[str]:
        self.look_around()
        return unexplained(root or self.window)


def unexplained(root: QtWidgets.QWidget) -> list[str]:
    """Return what is grey in a window, seen or only a tab away, and does not say why."""
    found = []
    for widget in root.findChildren(QtWidgets.QWidget):
        if isinstance(widget, CONTROLS) and not widget.isEnabled() and can_be_seen(widget, root):
            found.append((_said(widget), tip_over(widget)))
        if isinstance(widget, QtWidgets.QTabWidget):
            tabs = [n for n in range(widget.count()) if widget.isTabVisible(n) and not widget.isTabEnabled(n)]
            found += [(f"the tab {widget.tabText(n)}", widget.tabToolTip(n)) for n in tabs]
        if isinstance(widget, QtWidgets.QMenu) and _can_be_opened(widget):
            widget.aboutToShow.emit()
            actions = [each for each in widget.actions() if each.isVisible() and not each.isEnabled()]
            found += [(_said(action), action.toolTip() if widget.toolTipsVisible() else "") for action in actions]
            widget.aboutToHide.emit()
    return [f"{what}: {tip!r}" for what, tip in found if "Not now: " not in tip]


def can_be_seen(widget: QtWidgets.QWidget, root: QtWidgets.QWidget) -> bool:
    """Tell whether it is seen, or is where one can turn to by a tab, and is no part that Qt makes of itself."""
    if widget.objectName().startswith(("qt_", "Scroll")) or isinstance(widget, QtWidgets.QScrollBar):
        return False
    at: QtWidgets.QWidget | None = widget
    while at is not None and at is not root:
        tabs = at.parentWidget() and at.parentWidget().parentWidget()
        if at.isHidden() and not (isinstance(tabs, QtWidgets.QTabWidget) and tabs.isTabVisible(tabs.indexOf(at))):
            return False
        at = at.parentWidget()
    return True


def tip_over(widget: QtWidgets.QWidget) -> str:
    """Return what a mouse over a widget is told: by it or, where it has no words, by what it stands in."""
    chain = [widget]
    while (above := chain[-1].parentWidget()) is not None:
        chain.append(above)
    see_through = [n for n, each in enumerate(chain) if each.testAttribute(SEE_THROUGH)]
    met = chain[see_through[-1] + 1 :] if see_through else chain
    return next((each.toolTip() for each in met if each.toolTip()), "")


def _can_be_opened(menu: QtWidgets.QMenu) -> bool:
    holder = menu.parentWidget()
    return holder is None or holder.isEnabled()


def _said(control: QtWidgets.QWidget | QtGui.QAction) -> str:
    texts = (getattr(control, name)() for name in ("text", "title", "toolTip") if hasattr(control, name))
    return f"{type(control).__name__} {next(filter(None, texts), '')!r}"


@pytest.fixture
def person(qtbot: QtBot, window: Window) -> Person:
    return Person(qtbot, window)


@pytest.fixture
def at_instrument(qtbot: QtBot, settings: QtCore.QSettings, tmp_path: Path) -> Iterator[Callable[[Rig], Person]]:
    people: list[Person] = []

    def sit_down(rig: Rig) -> Person:
        window = Window(Session(tmp_path, rig), LogLines(), settings)
        qtbot.addWidget(window)
        window.show()
        person = Person(qtbot, window)
        people.append(person)
        person.session.rig.connect("usb:")
        person.wait(lambda: person.session.rig.snapshot().link is Link.READY)
        return person

    yield sit_down
    for person in people:
        person.session.close()


def test_with_nothing_at_all(person: Person) -> None:
    assert person.unexplained() == []
    dialog = ExportDialog(person.session, person.window)
    dialog.show()
    dialog.refresh()
    assert person.unexplained(dialog) == []


@pytest.mark.parametrize("has_scene", [False, True], ids=["slices", "three dimensions"])
@pytest.mark.parametrize("kind", ["one bin", "bins", "materials", "both"])
def test_with_volumes(person: Person, kind: str, *, has_scene: bool) -> None:
    known = bins()
    one = replace(known, values=known.values[:1], channels=known.channels[:1], thresholds_kev=(20.0,), basis=None)
    parts = {"one bin": {"bins": one}, "bins": {"bins": known}, "materials": {"materials": materials()}}
    person.session.change(**(parts["bins"] | parts["materials"] if kind == "both" else parts[kind]))
    person.window.go_to("Volume")
    page = person.window.pages["Volume"]
    page.places.setCurrentIndex(int(has_scene))  # pyright: ignore[reportAttributeAccessIssue]
    person.wait(lambda: page.desk.is_idle)  # pyright: ignore[reportAttributeAccessIssue]
    assert person.unexplained() == []


def test_in_every_format_of_the_export(qtbot: QtBot, session: Session) -> None:
    known = materials()
    one = replace(known, values=known.values[:1], channels=known.channels[:1], basis=None)
    for volume in (known, one):
        session.change(materials=volume)
        dialog = ExportDialog(session)
        qtbot.addWidget(dialog)
        dialog.show()
        for kind in FORMATS:
            dialog.format.setCurrentIndex(dialog.format.findData(kind))
            dialog.refresh()
            assert unexplained(dialog) == [], kind.name


def test_while_the_instrument_is_measuring_and_told_to_end(at_instrument: Callable[[Rig], Person]) -> None:
    person = at_instrument(Rig(Cable().opener))
    assert person.unexplained() == []
    go_on = threading.Event()

    def work(_: Instrument) -> Iterator[Progress]:
        yield Progress("views", 1, 3)
        go_on.wait(20)

    job = person.session.measure("A scan", work, stop=lambda: None)  # pyright: ignore[reportArgumentType]
    assert person.unexplained() == []
    job.stop()
    assert person.unexplained() == []
    go_on.set()
    person.wait(lambda: person.session.job("instrument") is None)


def test_while_it_is_calibrated(at_instrument: Callable[[Rig], Person], tmp_path: Path) -> None:
    stand = Stand()
    person = at_instrument(Rig(opener(stand)))  # pyright: ignore[reportArgumentType]
    path = tmp_path / "mine.h5"
    store.save(begun(), path)
    person.session.change(plan=PLAN, calibration=store.load(path), calibration_path=path)
    assert person.unexplained() == []
    page = person.window.pages["Calibrate"]
    stand.is_held.clear()
    page.steps.choose("pixels")  # pyright: ignore[reportAttributeAccessIssue]
    person.wait(page.run_one.isEnabled)  # pyright: ignore[reportAttributeAccessIssue]
    page.run_one.click()  # pyright: ignore[reportAttributeAccessIssue]
    assert person.unexplained() == []
    stand.is_held.set()
    person.wait(lambda: page.desk.candidate is not None)  # pyright: ignore[reportAttributeAccessIssue]
    assert person.unexplained() == []


def test_while_it_scans(at_instrument: Callable[[Rig], Person]) -> None:
    bench = Slow(wait_at=9)
    person = at_instrument(Rig(lambda *_: opened(bench)))
    person.session.change(calibration=CALIBRATION)
    person.window.go_to("Scan")
    page = person.window.pages["Scan"]
    page.plan.begin_with(SMALL)  # pyright: ignore[reportAttributeAccessIssue]
    assert person.unexplained() == []
    person.wait(page.start.start.isEnabled)  # pyright: ignore[reportAttributeAccessIssue]
    page.start.start.click()  # pyright: ignore[reportAttributeAccessIssue]
    person.wait(bench.waits.is_set)
    assert page.scan_run is not None  # pyright: ignore[reportAttributeAccessIssue]
    assert person.unexplained() == []
    person.session.job("instrument").stop()  # pyright: ignore[reportOptionalMemberAccess]
    person.wait(lambda: person.session.job("instrument") is None)
    assert person.unexplained() == []


def test_of_methods_that_take_no_prior(person: Person) -> None:
    form = person.window.pages["Reconstruct"].recipe_form  # pyright: ignore[reportAttributeAccessIssue]
    person.wait(lambda: form.method.count() > 3)
    for n in range(form.method.count()):
        form.method.setCurrentIndex(n)
        form.method.chosen.emit()
        assert unexplained(form) == [], form.method.currentText()


def test_a_mouse_over_a_plan_that_cannot_be_read_is_told_why(person: Person) -> None:
    """The rows tell what they are for; where all are grey, the mouse meets the form, which says why."""
    person.window.go_to("Scan")
    page = person.window.pages["Scan"]
    page.plan.begin_with("[scan\n")  # pyright: ignore[reportAttributeAccessIssue]
    assert person.unexplained() == []
    form = page.plan.form  # pyright: ignore[reportAttributeAccessIssue]
    row = next(iter(form.rows.values())).editor
    at = row.mapTo(person.window, row.rect().center())
    met = person.window.childAt(at)
    event = QtGui.QHelpEvent(QtCore.QEvent.Type.ToolTip, met.mapFrom(person.window, at), row.mapToGlobal(at))
    QtWidgets.QApplication.sendEvent(met, event)
    assert "the text beside has an error" in QtWidgets.QToolTip.text()
    page.plan.undo()  # pyright: ignore[reportAttributeAccessIssue]
    person.look_around()
    assert person.window.childAt(at) is not met
    assert row.isEnabled()


def test_one_place_greys_what_is_grey() -> None:
    """Whoever greys by `allow` must say why; an item of a list, which is no widget, has a tip of its own."""
    others = {
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in (ROOT / "gui").rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if (".setEnabled(" in line or ".setDisabled(" in line) and path.name != "controls.py"
    }
    assert others == {"gui/volume/looks_panel.py: model.item(n).setEnabled(not why)"}


def test_ctrl_z_takes_an_edit_back_wherever_one_is_on_the_page(qtbot: QtBot, person: Person) -> None:
    person.window.go_to("Scan")
    person.window.activateWindow()
    plan = person.window.pages["Scan"].plan  # pyright: ignore[reportAttributeAccessIssue]
    before = plan.document.text
    undo = next(each for each in person.window.findChildren(QtGui.QAction) if each.text() == "&Undo")
    edit = undo.parent()
    assert isinstance(edit, QtWidgets.QMenu)
    edit.aboutToShow.emit()
    assert not undo.isEnabled()
    edit.aboutToHide.emit()
    plan.begin_with("[scan]\nn_views = 12\n")
    edit.aboutToShow.emit()
    assert undo.isEnabled()
    edit.aboutToHide.emit()
    plan.presets.setFocus()
    qtbot.keyClick(plan.presets, QtCore.Qt.Key.Key_Z, QtCore.Qt.KeyboardModifier.ControlModifier)
    assert plan.document.text == before
