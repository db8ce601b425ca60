"""Two windows in processes of their own: one is killed in the middle of a scan, the next goes on with it.

`python tests/gui/killed_run.py begin FOLDER` starts a scan with what is in the folder, says how many frames it has,
and never ends by itself; `... go-on FOLDER` opens what the first left, and says what it made of it as one JSON object.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pyqtgraph.Qt import QtWidgets

from gui.state import Link
from tests.gui.full_run import Day, open_window

CALIBRATION, PLAN = "calibration.h5", "plan.toml"


def connect(day: Day) -> None:
    """Take the simulated instrument, which is in this process."""
    day.press("Use the simulated instrument")
    day.wait(lambda: day.window.session.rig.snapshot().link is Link.READY)


def begin(day: Day, folder: Path) -> None:
    """Scan, until somebody kills it."""
    session = day.window.session
    connect(day)
    for name in (CALIBRATION, PLAN):
        day.window.open_file(folder / name)
    day.wait(lambda: session.state.calibration_path is not None and session.state.plan_path is not None)
    day.show("Scan")
    day.press("Start scan")
    n_told = 0
    while True:
        day.pause(0.02)
        job = session.job("instrument")
        done = job.snapshot().done if job is not None and job.snapshot().stage == "scan" else 0
        if done > n_told:
            n_told = done
            sys.stdout.write(f"{n_told}\n")
            sys.stdout.flush()


def go_on(day: Day) -> dict[str, object]:
    """Go on with what is offered, and try a slice of it."""
    session = day.window.session
    connect(day)
    day.show("Scan")
    page = day.window.pages["Scan"]
    day.wait(page.offer.isVisible, 60.0)
    offered = page.which.currentText()
    day.press("Go on with it")
    day.wait(lambda: session.state.scan_path is not None)
    told = page.run.told.text()
    day.press("Reconstruct")
    reconstruct = day.window.page
    day.press("Try on one slice")
    day.wait(lambda: not day.is_idle("compute"))
    day.wait(lambda: day.is_idle("compute"))
    return {
        "offered": offered,
        "told": told,
        "is_offered_still": page.offer.isVisible(),
        "page": reconstruct.title,
        "n_tries": len(reconstruct.tries),
        "failures": [failure.sentence for failure in session.failures],
    }


def main() -> None:
    what, folder = sys.argv[1], Path(sys.argv[2])
    window = open_window(QtWidgets.QApplication(sys.argv[:1]), folder)
    day = Day(window, folder)
    if what == "begin":
        begin(day, folder)
    made = go_on(day)
    window.close()
    sys.stdout.write(json.dumps(made))


if __name__ == "__main__":
    main()
