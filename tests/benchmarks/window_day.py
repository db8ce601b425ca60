"""What takes the window's thread longest over a day: each event of `tests/gui/full_run.py`, in time of the thread.

`python tests/benchmarks/window_day.py` needs a screen, or `xvfb-run`. The graphics driver (Mesa) has nothing in its
cache, as on the first day; with `--later` it has what this user's days left there. Time of the thread is the
processor's, so that what else runs on the machine hardly matters; what the thread waits for is not in it. Each piece is
named by the page that was seen, what Qt delivered, to what, and where of our own code the thread was seen in it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "gui"))

from pyqtgraph.Qt import QtCore, QtWidgets

MOST = 25
"""So many are told."""
AIM_MS = 50.0
PLACED_MS = 25.0
"""It is told where the thread was seen in what takes longer."""
LOOK_S = 0.004
"""Of the processor's time: so often it is looked where the thread is."""
PACKAGES = ("acquisition", "calibration", "firmware_iface", "gui", "reconstruction")
OWN = tuple(f"{Path(__file__).resolve().parents[2] / name}/" for name in PACKAGES)
MOST_PLACES = 3


class Piece(NamedTuple):
    """What the thread of the window did without coming back to its events."""

    thread_ms: float
    wall_ms: float
    stage: str
    what: str
    places: str


class Places:
    """Where the main thread is seen, over and over, by itself: another thread would keep its widgets alive."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()
        signal.signal(signal.SIGPROF, self._look)
        signal.setitimer(signal.ITIMER_PROF, LOOK_S, LOOK_S)

    def begin(self) -> None:
        """Forget what was seen."""
        self._seen = Counter()

    def told(self) -> str:
        """Return the places where it was seen most since `begin`, and how often."""
        seen, self._seen = self._seen, Counter()  # it may be seen here, too
        return ", ".join(f"{place} {n}" for place, n in seen.most_common(MOST_PLACES))

    def end(self) -> None:
        """Look no more."""
        signal.setitimer(signal.ITIMER_PROF, 0)

    def _look(self, _number: int, frame: FrameType | None) -> None:
        if frame is not None:
            self._seen[place_of(frame)] += 1


def place_of(innermost: FrameType) -> str:
    """Return the innermost line of our own that a thread is in, or else the innermost of all."""
    frame: FrameType | None = innermost
    while frame is not None and not frame.f_code.co_filename.startswith(OWN):
        frame = frame.f_back
    frame = innermost if frame is None else frame
    path = Path(frame.f_code.co_filename)
    return f"{'/'.join(path.parts[-2:])}:{frame.f_lineno} {frame.f_code.co_name}"


class TimedApplication(QtWidgets.QApplication):
    """Times each event that is delivered from outside of all others."""

    def __init__(self, arguments: list[str]) -> None:
        super().__init__(arguments)
        self.stage = ""
        self.pieces: list[Piece] = []
        self._depth = 0
        self.places = Places()

    def notify(self, receiver: QtCore.QObject, event: QtCore.QEvent) -> bool:
        """Deliver an event, and keep how long that took."""
        if self._depth or threading.current_thread() is not threading.main_thread():
            return super().notify(receiver, event)
        self._depth += 1
        what = f"{event.type().name} to {type(receiver).__name__} {receiver.objectName()}".strip()
        self.places.begin()
        began_s, wall_s = time.thread_time(), time.perf_counter()
        try:
            return super().notify(receiver, event)
        finally:
            self._depth -= 1
            took_ms = 1e3 * (time.thread_time() - began_s)
            if took_ms > 5:
                took_wall_ms = 1e3 * (time.perf_counter() - wall_s)
                self.pieces.append(Piece(took_ms, took_wall_ms, self.stage, what, self.places.told()))


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
    app.places.end()
    return sorted(app.pieces, reverse=True), made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--later", action="store_true", help="a later day: the driver has compiled before")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mpxct-day-") as folder:
        cache = Path(folder) / "driver"
        cache.mkdir()
        if not options.later:
            os.environ["MESA_SHADER_CACHE_DIR"] = str(cache)
        pieces, made = day(Path(folder))
    if options.json:
        print(json.dumps(figures(pieces)))
        return
    print(f"{'thread ms':>10}{'wall ms':>10}  ")
    for piece in pieces[:MOST]:
        print(f"{piece.thread_ms:10.1f}{piece.wall_ms:10.1f}  {piece.stage}: {piece.what}")
        if piece.thread_ms > PLACED_MS:
            print(f"{'':22}{piece.places}")
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
