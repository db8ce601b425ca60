"""A whole day in the window, by its buttons: connect, calibrate, look, scan, reconstruct, decompose, show, close.

`python tests/gui/full_run.py FOLDER` needs a screen, or `xvfb-run`; it leaves a picture of every stage in the folder,
and says at the end what it made as one JSON object. With `--pictures docs/window` it makes the pictures of the docs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pyqtgraph.Qt import QtCore, QtGui, QtTest, QtWidgets

from gui import theme
from gui.app import catch_faults, keep_log
from gui.session import Session
from gui.state import Link
from gui.window import Window

PLAN = """
[scan]
n_views = 240
frames_per_view = 2
flats_every_n_views = 120
n_flats = 30

[calibration]
sources = ["Am-241", "Pb"]
n_dark_frames = 5
n_flat_frames = 10
n_cell_frames = 10

[calibration.equalisation]
max_rounds = 1

[calibration.energy]
end_point_kvp = 0.0
"""
"""Each stage of a day, and each but a little."""
SOURCE = "Am-241"
SLAB_MM = 1.0
SECONDS_AT_MOST = 600.0


class Day:
    """A person at the window, who presses buttons by what stands on them and waits for what they do."""

    def __init__(self, window: Window, pictures: Path) -> None:
        self.window, self.pictures = window, pictures
        self.place: QtWidgets.QWidget | None = None  # a dialog, where one is open
        self.shots: list[str] = []

    def wait(self, until: Callable[[], object], seconds: float = SECONDS_AT_MOST) -> None:
        """Let the window live until something holds."""
        end_s = time.monotonic() + seconds
        while not until():
            self.pause(0.02)
            box = QtWidgets.QApplication.activeModalWidget()
            if isinstance(box, QtWidgets.QMessageBox):
                raise SystemExit(f"{box.windowTitle()}: {box.text()} {box.informativeText()}")
            if time.monotonic() > end_s:
                self.shoot("stuck")
                raise SystemExit(f"{self.window.page.title}: {until.__doc__ or 'what was waited for'} did not happen")

    def button(self, text: str) -> QtWidgets.QAbstractButton | None:
        """Return the button of the page, or of the dialog, that has this on it and is seen."""
        for each in (self.place or self.window.page).findChildren(QtWidgets.QAbstractButton):
            if each.text().replace("&", "") == text and each.isVisible():
                return each
        return None

    def press(self, text: str) -> None:
        """Press a button, once it is there and can be pressed."""

        def can_be_pressed() -> bool:
            button = self.button(text)
            return button is not None and button.isEnabled()

        can_be_pressed.__doc__ = f"a button {text!r} that can be pressed"
        self.wait(can_be_pressed, 60.0)
        button = self.button(text)
        assert button is not None
        QtTest.QTest.mouseClick(button, QtCore.Qt.MouseButton.LeftButton)

    def show(self, page: str) -> None:
        """Go to a page by its tab."""
        bar = self.window.tabs.tabBar()
        place = list(self.window.pages).index(page)
        QtTest.QTest.mouseClick(bar, QtCore.Qt.MouseButton.LeftButton, pos=bar.tabRect(place).center())
        self.pause(0.5)

    def turn_to(self, tab: str) -> None:
        """Turn to a tab within the page."""
        for tabs in self.window.page.findChildren(QtWidgets.QTabWidget):
            for place in range(tabs.count()):
                if tab in tabs.tabText(place):
                    tabs.setCurrentIndex(place)
        self.pause(0.5)

    def pause(self, seconds: float) -> None:
        """Look for a while; QTest's own wait would keep Python's lock, and with it the instrument."""
        loop = QtCore.QEventLoop()
        QtCore.QTimer.singleShot(round(1000 * seconds), loop.quit)
        loop.exec()

    def shoot(self, name: str) -> None:
        """Keep a picture of the window."""
        self.window.save_picture(self.pictures / f"{name}.png")
        self.shots.append(name)

    def is_idle(self, lane: str = "instrument") -> bool:
        """Tell whether nothing runs."""
        return self.window.session.job(lane) is None


def run(window: Window, pictures: Path) -> dict[str, object]:
    """Go through the day and return what there is at its end."""
    day, session = Day(window, pictures), window.session
    day.wait(lambda: window.page.machine.text.toPlainText())
    day.shoot("1-start")
    day.press("Use the simulated instrument")
    day.wait(lambda: session.rig.snapshot().link is Link.READY)
    day.pause(2.0)
    day.shoot("2-instrument")
    plan = session.state.folder / "short.toml"
    plan.write_text(PLAN)
    window.open_file(plan)
    day.wait(lambda: session.state.plan_path == plan)

    day.show("Calibrate")
    day.press("Run all")
    day.wait(lambda: not day.is_idle())
    day.wait(lambda: (job := session.job("instrument")) is None or SOURCE in job.snapshot().stage)
    day.pause(4.0)
    day.shoot("3-calibrating")
    day.wait(day.is_idle)
    day.pause(2.0)
    day.shoot("4-calibrated")
    day.press("Accept")
    day.wait(lambda: session.state.calibration_path is not None)

    day.show("Live")
    live = window.pages["Live"]
    live.settings.sample.setCurrentText("vials")
    day.press("Start")
    day.wait(lambda: live.n_painted > 3)
    day.pause(2.5)
    day.shoot("5-live")
    day.press("Stop")
    day.wait(day.is_idle)

    day.show("Scan")
    day.pause(2.0)
    day.shoot("6-plan")
    day.press("Start scan")
    day.wait(lambda: not day.is_idle())
    day.wait(lambda: (job := session.job("instrument")) is None or job.snapshot().done > 400)
    day.shoot("7-scanning")
    day.wait(lambda: session.state.scan_path is not None)
    day.pause(1.0)
    day.shoot("8-scanned")

    day.show("Reconstruct")
    day.press("Try on one slice")
    day.pause(0.5)
    day.wait(lambda: day.is_idle("compute"))
    day.pause(2.0)
    day.shoot("9-tried")
    day.press("Reconstruct")
    day.wait(lambda: session.state.bins is not None)
    day.turn_to("Materials")
    day.press("Decompose")
    day.wait(lambda: session.state.materials is not None)
    day.press("Try on one slice")
    day.pause(0.5)
    day.wait(lambda: day.is_idle("compute"))
    shown = window.page.compare.channel
    shown.setCurrentIndex(shown.count() - 1)  # all materials in colour
    shown.chosen.emit()
    day.pause(2.0)
    day.shoot("10-decomposed")

    day.show("Volume")
    window.pages["Volume"].slab.setValue(SLAB_MM)
    day.pause(4.0)
    day.shoot("11-volume")
    day.turn_to("Three dimensions")
    day.pause(2.0)
    scene = window.pages["Volume"].solid.scene
    day.wait(lambda: scene.grains is not None and scene.view.words == "", 120.0)
    day.shoot("13-three-dimensions")
    return {
        "pictures": day.shots,
        "exported": export(day),
        "failures": len(session.failures),
        "has_gl": scene.has_gl,
        "renderer": scene.view.item.caster.renderer if scene.has_gl else scene.view.words,
        "is_complete": bool(scene.view.is_complete if not scene.has_gl else scene.view.item.is_complete),
    }


def export(day: Day) -> list[str]:
    """Export what is shown by the menu's dialog, as it offers to, and return the names of the files."""
    folder = day.window.session.state.folder
    before = set(folder.iterdir())
    # by the menu's entry: without a window manager no window is active, and keys go nowhere
    next(each for each in day.window.findChildren(QtGui.QAction) if each.text() == "&Export...").trigger()
    day.wait(lambda: day.window.findChild(QtWidgets.QDialog) is not None, 30.0)
    dialog = day.place = day.window.findChild(QtWidgets.QDialog)
    assert dialog is not None
    day.pause(1.0)
    dialog.grab().save(str(day.pictures / "12-export.png"))
    day.shots.append("12-export")
    day.press("Export")
    day.wait(lambda: set(folder.iterdir()) > before and day.is_idle("compute"))
    day.pause(0.5)
    dialog.close()
    return sorted(path.name for path in set(folder.iterdir()) - before if path.suffix != ".png")


def open_window(
    app: QtWidgets.QApplication, folder: Path, look: str = "light", size: tuple[int, int] = (1280, 800)
) -> Window:
    """Open the window on a folder, which its settings and its log go into, too."""
    theme.apply(app, theme.DARK if look == "dark" else theme.LIGHT)
    session = Session(folder)
    settings = QtCore.QSettings(str(folder / "window.ini"), QtCore.QSettings.Format.IniFormat)
    window = Window(session, keep_log(folder / "window.log"), settings)
    window.resize(*size)
    catch_faults(session)
    window.show()
    return window


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="for the files; a temporary one by default")
    parser.add_argument("--pictures", type=Path, help="folder for the pictures; that of the files by default")
    parser.add_argument("--size", default="1280x800", help="of the window")
    parser.add_argument("--look", choices=("light", "dark"), default="light")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="mpxct-day-"))
    pictures = options.pictures or folder
    for each in (folder, pictures):
        each.mkdir(parents=True, exist_ok=True)
    width, height = map(int, options.size.split("x"))
    window = open_window(QtWidgets.QApplication(sys.argv[:1]), folder, options.look, (width, height))
    made = run(window, pictures)
    window.close()
    sys.stdout.write(json.dumps(made))


if __name__ == "__main__":
    main()
