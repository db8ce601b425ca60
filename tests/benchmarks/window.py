"""How the window feels: how soon it is there, how fast it paints while frames come, and whether it ever stands still.

The live view gets 256 x 256 frames of 12 bits at a Medipix3's full rate through the stream of acquisition, counted on
both ends, while a job computes in the background; and once more, without that job, from the window's first moment on.
Run it under a screen, or `xvfb-run`; offscreen there is no OpenGL and `volume_fps` is null. `--hour` watches the memory
for an hour of live view.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

FULL_RATE_PER_S = 1219
"""12 bits over 8 lines in 820 us."""
PUSHED_PER_S = 10_000
SIZE = (1280, 800)
TICK_MS = 2
SETTLES_MS = 4000
"""Looks whether all pages are built are so far apart, and what the last one began is over by then."""


def main() -> None:
    options = read_options()
    if options.child == "start":
        start(options.began_s)
    elif options.child == "live":
        print(json.dumps(live(options.seconds, options.rate, is_busy=True)))
    elif options.child == "early":
        print(json.dumps(live(options.seconds, options.rate, is_busy=False, is_early=True)))
    elif options.child == "memory":
        print(json.dumps(memory(options.seconds, options.rate)))
    else:
        show(measure(options), as_json=options.json)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="ends within 45 s on 2 cores")
    parser.add_argument("--hour", action="store_true", help="an hour of live view, for its memory, and nothing else")
    parser.add_argument("--child", choices=("start", "live", "early", "memory"), help=argparse.SUPPRESS)
    parser.add_argument("--began-s", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=10.0, help="of live view")
    parser.add_argument("--rate", type=int, default=FULL_RATE_PER_S, help="frames per second")
    return parser.parse_args()


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Make every figure, each in a process of its own."""
    if options.hour:
        return child("memory", "--seconds", "3600", "--rate", str(options.rate))
    starts = [
        float(child("start", "--began-s", repr(time.time()))["startup_s"]) for _ in range(3 if options.quick else 7)
    ]
    seconds = "4" if options.quick else str(options.seconds)
    at_rate = child("live", "--seconds", seconds)
    pushed = child("live", "--seconds", seconds, "--rate", str(PUSHED_PER_S))
    early = child("early", "--seconds", seconds)
    return {
        "startup_s": round(statistics.median(starts), 2),
        "live_fps": at_rate["live_fps"],
        "lost": sum(each["lost"] for each in (at_rate, pushed, early)),
        "longest_block_ms": max(each["longest_block_ms"] for each in (at_rate, pushed, early)),
        "volume_fps": volume_fps(is_quick=options.quick),
        "at_full_rate": at_rate,
        "pushed": pushed,
        "from_the_start": early,
    }


def child(what: str, *arguments: str) -> dict:
    command = [sys.executable, str(Path(__file__)), "--child", what, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{what} failed:\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def show(figures: dict[str, object], *, as_json: bool) -> None:
    print(json.dumps(figures) if as_json else "\n".join(f"{name:<18} {value}" for name, value in figures.items()))


def start(began_s: float) -> None:
    """Open the window as the command does, and tell when it was painted first."""
    from pyqtgraph.Qt import QtCore, QtWidgets

    app, window = open_window()

    class FirstPaint(QtCore.QObject):
        def eventFilter(self, seen: QtCore.QObject, event: QtCore.QEvent) -> bool:
            if event.type() == QtCore.QEvent.Type.Paint:
                print(json.dumps({"startup_s": time.time() - began_s}), flush=True)
                window.centralWidget().removeEventFilter(self)
                QtCore.QTimer.singleShot(0, window.close)
            return super().eventFilter(seen, event)

    watcher = FirstPaint()
    window.centralWidget().installEventFilter(watcher)
    window.show()
    app.exec()
    assert QtWidgets.QApplication.instance() is app


def open_window():
    from pyqtgraph.Qt import QtCore, QtWidgets

    app = QtWidgets.QApplication(sys.argv[:1])
    from gui import theme
    from gui.log_panel import LogLines
    from gui.session import Session
    from gui.window import Window

    theme.apply(app, theme.LIGHT)
    folder = Path(tempfile.mkdtemp(prefix="mpxct-window-"))
    settings = QtCore.QSettings(str(folder / "window.ini"), QtCore.QSettings.Format.IniFormat)
    window = Window(Session(folder), LogLines(), settings)
    window.resize(*SIZE)
    return app, window


def live(seconds: float, rate_per_s: int, *, is_busy: bool, is_early: bool = False) -> dict[str, object]:
    """Look at frames that come at a rate; tell what was painted and lost, and the longest block of Qt's thread.

    Parameters
    ----------
    is_early : bool
        Begin at once, rather than when all pages are built.
    """
    from pyqtgraph.Qt import QtCore

    from acquisition.stream import FrameStream
    from firmware_iface.frame import Frame

    app, window = open_window()
    page = window.pages["Live"]
    window.go_to("Live")
    window.show()
    painted = count_paints(page)
    block = LongestBlock()
    is_over = threading.Event()
    n_sent, n_taken = 0, 0

    def source() -> Iterator[tuple[int, Frame]]:
        nonlocal n_sent
        for frame in frames(rate_per_s, seconds):
            n_sent += 1
            yield n_sent, frame

    def take() -> None:
        nonlocal n_taken
        with FrameStream(source()) as stream:
            for _, item in stream:
                page.store.push(item)
                n_taken += 1
        is_over.set()

    until_quiet = QtCore.QEventLoop()
    while not is_early and len(window.pages.built) < len(window.pages):
        QtCore.QTimer.singleShot(SETTLES_MS, until_quiet.quit)
        until_quiet.exec()
    if is_busy:
        window.session.compute("Something heavy", heavy(seconds))
    painted[0], began_s = 0, time.monotonic()
    block.begin()
    threading.Thread(target=take).start()
    watch = QtCore.QTimer()
    watch.timeout.connect(lambda: is_over.is_set() and app.quit())
    watch.start(50)
    app.exec()
    took_s = time.monotonic() - began_s
    status = page.store.status()
    window.close()
    return {
        "live_fps": round(painted[0] / took_s, 1),
        "frames_per_s": round(n_taken / took_s),
        "sent": n_sent,
        "lost": n_sent - status.n_received + status.n_lost,
        "longest_block_ms": round(1e3 * block.longest_s, 1),
        "of_which_queued_ms": round(1e3 * block.queued_s, 1),
        "longest_thread_ms": round(1e3 * block.longest_thread_s, 1),
    }


def memory(seconds: float, rate_per_s: int) -> dict[str, object]:
    """Watch the memory of a live view: after its ring is full, and at the end."""
    import resource

    from gui.live.frames import MOST_FRAMES

    rss: list[tuple[float, float]] = []
    began_s = time.monotonic()
    settle_s = max(MOST_FRAMES / rate_per_s, 20.0)

    def watch() -> None:
        while time.monotonic() - began_s < seconds:
            rss.append((time.monotonic() - began_s, resident_mb()))
            time.sleep(5.0)

    threading.Thread(target=watch, daemon=True).start()
    found = live(seconds, rate_per_s, is_busy=False)
    settled = [mb for at_s, mb in rss if at_s > settle_s]
    return found | {
        "seconds": round(seconds),
        "settled_mb": round(settled[0]),
        "end_mb": round(settled[-1]),
        "highest_mb": round(max(settled)),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
    }


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def frames(rate_per_s: int, seconds: float) -> Iterator:
    """Yield frames as they come from a chip: at a rate, each with counts of its own."""
    from firmware_iface.frame import Frame

    kinds = np.random.default_rng(1).poisson(800, (16, 1, 256, 256)).astype(np.uint16)
    began_s = time.monotonic()
    for n in range(round(rate_per_s * seconds)):
        early_s = began_s + n / rate_per_s - time.monotonic()
        if early_s > 1e-3:
            time.sleep(early_s)
        yield Frame(
            counts=kinds[n % 16].copy(), thresholds=(0,), sequence=n, timestamp_ns=n * 820_000,
            exposure_ns=800_000, run_id=1,
        )  # fmt: skip


def heavy(seconds: float) -> Generator:
    """Compute for a while as a reconstruction does: mostly without the interpreter's lock."""
    from calibration.progress import Progress

    numbers = np.random.default_rng(0).random((600, 600))
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        numbers @ numbers
        yield Progress("multiplying", 0, 0)


def count_paints(page) -> list[int]:
    """Count how often the image is painted anew."""
    from pyqtgraph.Qt import QtCore

    painted = [0]

    class Counter(QtCore.QObject):
        def eventFilter(self, seen: QtCore.QObject, event: QtCore.QEvent) -> bool:
            painted[0] += event.type() == QtCore.QEvent.Type.Paint
            return super().eventFilter(seen, event)

    viewport = page.panel.graphics.viewport()
    counter = Counter(viewport)
    viewport.installEventFilter(counter)
    return painted


class LongestBlock:
    """The longest time for which Qt's thread did not come back to its events, and the most it ever worked meanwhile.

    Attributes
    ----------
    queued_s : float
        For how long of the longest time the thread waited for a processor; Linux tells.
    """

    def __init__(self) -> None:
        from pyqtgraph.Qt import QtCore

        self.longest_s = self.longest_thread_s = self.queued_s = 0.0
        self._last_s = self._last_thread_s = self._last_queued_s = 0.0
        self._timer = QtCore.QTimer()
        self._timer.setTimerType(QtCore.Qt.TimerType.PreciseTimer)
        self._timer.timeout.connect(self._tick)

    def begin(self) -> None:
        self._last_s, self._last_thread_s, self._last_queued_s = time.monotonic(), time.thread_time(), queued_s()
        self._timer.start(TICK_MS)

    def _tick(self) -> None:
        now_s, thread_s, waited_s = time.monotonic(), time.thread_time(), queued_s()
        if (took_s := now_s - self._last_s - TICK_MS / 1e3) > self.longest_s:
            self.longest_s, self.queued_s = took_s, waited_s - self._last_queued_s
        self.longest_thread_s = max(self.longest_thread_s, thread_s - self._last_thread_s)
        self._last_s, self._last_thread_s, self._last_queued_s = now_s, thread_s, waited_s


def queued_s() -> float:
    """Return for how long the main thread has waited for a processor so far; 0 where nobody tells."""
    told = Path("/proc/self/schedstat")  # of the main thread, though it says "self"
    return int(told.read_text().split()[1]) / 1e9 if told.exists() else 0.0


def volume_fps(*, is_quick: bool) -> float | None:
    """Return how often a volume of 256^3 is drawn a second, by what `volume_view.py` measures; None without OpenGL."""
    script = Path(__file__).with_name("volume_view.py")
    command = [sys.executable, str(script), "--json", *(["--quick"] if is_quick else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return None
    return json.loads(done.stdout.splitlines()[-1])["volume_fps"]


if __name__ == "__main__":
    main()
