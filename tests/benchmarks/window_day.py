"""What takes the window's thread longest over a day: each event of `tests/gui/full_run.py`, in time of the thread.

`python tests/benchmarks/window_day.py` needs a screen, or `xvfb-run`. Time of the thread is the processor's, so that
what else runs on the machine hardly matters; what the thread waits for is not in it. Each piece is named by the page
that was seen, what Qt delivered, and to what.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "gui"))

from pyqtgraph.Qt import QtCore, QtWidgets

MOST = 25
"""So many are told."""
AIM_MS = 50.0


class Piece(NamedTuple):
    """What the thread of the window did without coming back to its events."""

    thread_ms: float
    wall_ms: float
    stage: str
    what: str


class TimedApplication(QtWidgets.QApplication):
    """Times each event that is delivered from outside of all others."""

    def __init__(self, arguments: list[str]) -> None:
        super().__init__(arguments)
        self.stage = ""
        self.pieces: list[Piece] = []
        self._depth = 0

    def notify(self, receiver: QtCore.QObject, event: QtCore.QEvent) -> bool:
        """Deliver an event, and keep how long that took."""
        if self._depth:
            return super().notify(receiver, event)
        self._depth += 1
        what = f"{event.type().name} to {type(receiver).__name__} {receiver.objectName()}".strip()
        began_s, wall_s = time.thread_time(), time.perf_counter()
        try:
            return super().notify(receiver, event)
        finally:
            self._depth -= 1
            took_ms = 1e3 * (time.thread_time() - began_s)
            if took_ms > 5:
                self.pieces.append(Piece(took_ms, 1e3 * (time.perf_counter() - wall_s), self.stage, what))


def day(folder: Path) -> tuple[list[Piece], dict[str, object]]:
    """Live through a day, and return its pieces, the longest first, and what the day made."""
    import full_run

    app = TimedApplication(sys.argv[:1])

    class Watched(full_run.Day):
        """Tells the application where the day is."""

        def pause(self, seconds: float) -> None:
            app.stage = f"{self.window.page.title}, after {self.shots[-1] if self.shots else 'the start'}"
            super().pause(seconds)

    full_run.Day = Watched
    window = full_run.open_window(app, folder)
    made = full_run.run(window, folder)
    app.stage = "the end"
    window.close()
    return sorted(app.pieces, reverse=True), made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mpxct-day-") as folder:
        pieces, made = day(Path(folder))
    if options.json:
        print(json.dumps(figures(pieces)))
        return
    print(f"{'thread ms':>10}{'wall ms':>10}  ")
    for piece in pieces[:MOST]:
        print(f"{piece.thread_ms:10.1f}{piece.wall_ms:10.1f}  {piece.stage}: {piece.what}")
    print(figures(pieces), made)


def figures(pieces: list[Piece]) -> dict[str, Any]:
    """Return the longest piece of the day and of each page, and how many are beyond the aim."""
    by_page: dict[str, float] = {}
    for piece in pieces:
        page = piece.stage.split(",")[0]
        by_page[page] = max(by_page.get(page, 0.0), round(piece.thread_ms, 1))
    return {
        "longest_thread_ms": round(pieces[0].thread_ms, 1) if pieces else 0.0,
        "longest_by_page_ms": by_page,
        "over_50_ms": sum(piece.thread_ms > AIM_MS for piece in pieces),
    }


if __name__ == "__main__":
    main()
