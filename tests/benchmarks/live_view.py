"""The live view at full rate: frames painted per second, frames lost, and for how long Qt's thread was ever held up.

Frames come paced through the stream that an instrument's come through, into the store that the page paints from; only
the detector is left out. The chip's highest rate at 12 bits is 1,219 frames per second, at 1 bit 14,600.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a script finds the packages of its own checkout

from pyqtgraph.Qt import QtCore, QtWidgets

from acquisition.plan import Plan
from acquisition.stream import FrameStream
from firmware_iface.frame import Frame
from gui import theme
from gui.live.measures import Shape
from gui.live.page import LivePage
from gui.live.run import Underway
from gui.live.shown import Source
from gui.session import Session

N_DIFFERENT = 16
BEAT_MS = 33


class LiveFigures(NamedTuple):
    """What a live view did.

    Attributes
    ----------
    pushed_per_s, live_fps : float
        Frames that came into the store and images that were painted, per second.
    lost : int
        Frames that were made and are not in the store's count, and those that the store calls lost or late.
    longest_block_ms : float
        The longest time in which Qt's thread did not come back to its events.
    longest_refresh_ms : float
        Of the page's own `refresh`, without the painting.
    """

    pushed_per_s: float
    live_fps: float
    lost: int
    longest_block_ms: float
    longest_refresh_ms: float


def run_live_view(
    rate_per_s: float = 1250.0,
    seconds: float = 5.0,
    shape: tuple[int, int, int] = (2, 256, 256),
    source: Source = Source.NEWEST,
) -> LiveFigures:
    """Show frames that come at a rate, with two regions on them, and tell how that went."""
    app = QtWidgets.QApplication.instance() or QtWidgets.QApplication([])
    assert isinstance(app, QtWidgets.QApplication)
    theme.apply(app, theme.LIGHT)
    with tempfile.TemporaryDirectory() as folder:
        session = Session(Path(folder))
        try:
            return _run(app, session, rate_per_s, seconds, shape, source)
        finally:
            session.close()


def _run(
    app: QtWidgets.QApplication,
    session: Session,
    rate_per_s: float,
    seconds: float,
    shape: tuple[int, int, int],
    source: Source,
) -> LiveFigures:
    page = LivePage(session)
    page.begin(Underway.of(Plan()))
    page.resize(1280, 800)
    page.show()
    page.display.source.setCurrentIndex(list(Source).index(source))
    page.tabs.setCurrentWidget(page.regions)
    page.store.push(next(_frames(1.0, 1.0, shape))[1])
    page.refresh()
    page.regions.add(Shape.RECTANGLE)
    page.regions.add(Shape.ELLIPSE)
    app.processEvents()
    page.store.begin()
    n_painted, made = page.n_painted, [0]
    thread = threading.Thread(target=_consume, args=(page, rate_per_s, seconds, shape, made))
    came_s, refreshes_s = [time.perf_counter()], [0.0]

    def beat() -> None:
        began_s = time.perf_counter()
        page.refresh()
        refreshes_s.append(time.perf_counter() - began_s)
        if not thread.is_alive():
            loop.quit()

    loop, beats, pulse = QtCore.QEventLoop(), QtCore.QTimer(), QtCore.QTimer()
    beats.timeout.connect(beat)
    pulse.timeout.connect(lambda: came_s.append(time.perf_counter()))
    beats.start(BEAT_MS)
    pulse.start(1)
    began_s = time.perf_counter()
    thread.start()
    loop.exec()
    took_s = time.perf_counter() - began_s
    beats.stop()
    pulse.stop()
    status = page.store.status()
    page.close()
    return LiveFigures(
        pushed_per_s=status.n_received / took_s,
        live_fps=(page.n_painted - n_painted) / took_s,
        lost=made[0] - status.n_received + status.n_lost + status.n_late,
        longest_block_ms=1e3 * float(np.diff(came_s).max()),
        longest_refresh_ms=1e3 * max(refreshes_s),
    )


def _consume(page: LivePage, rate_per_s: float, seconds: float, shape: tuple[int, int, int], made: list[int]) -> None:
    """Do what the instrument's thread does in a live view: take what the reader's thread brings, and push it."""
    with FrameStream(_frames(rate_per_s, seconds, shape)) as stream:
        for number, item in stream:
            page.store.push(item)
            made[0] = number + 1


def _frames(rate_per_s: float, seconds: float, shape: tuple[int, int, int]) -> Iterator[tuple[int, Frame]]:
    """Yield frames when their time has come, or at once where they are late."""
    rng = np.random.default_rng(0)
    counts = [rng.poisson(300, shape).astype(np.uint16) for _ in range(N_DIFFERENT)]
    began_s = time.perf_counter()
    for number in range(round(rate_per_s * seconds)):
        wait_s = number / rate_per_s - (time.perf_counter() - began_s)
        if wait_s > 0.001:
            time.sleep(wait_s)
        frame = Frame(
            counts=counts[number % N_DIFFERENT], thresholds=tuple(range(shape[0])), sequence=number,
            timestamp_ns=0, exposure_ns=100_000, run_id=1,
        )  # fmt: skip
        yield number, frame


def main() -> None:
    """Print the figures, for the chip's full rate and for ten thousand small frames per second."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--quick", action="store_true", help="two seconds of each")
    arguments = parser.parse_args()
    seconds = 2.0 if arguments.quick else 10.0
    rows = {
        "1250/s of 2 x 256 x 256": run_live_view(1250, seconds),
        "the same, sum of all": run_live_view(1250, seconds, source=Source.RUNNING),
        "10000/s of 4 x 128 x 128": run_live_view(10_000, seconds, (4, 128, 128)),
    }
    if arguments.json:
        print(json.dumps({name: row._asdict() for name, row in rows.items()}))
        return
    print(f"{'':26}" + "".join(f"{name:>20}" for name in LiveFigures._fields))
    for name, row in rows.items():
        print(f"{name:26}" + "".join(f"{value:20.1f}" for value in row))


if __name__ == "__main__":
    main()
