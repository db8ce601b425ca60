"""The instrument behind the window: one thread owns it, runs one piece of work at a time, and looks after it between.

Whatever happens to the cable, the thread lives: a lost instrument is opened again as soon as it is back.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from calibration.progress import Progress
from firmware_iface.errors import DetectorError, MpxctError, WrongUsage
from gui.state import Link
from gui.workers import Job

if TYPE_CHECKING:
    from acquisition.beam import SourceState
    from acquisition.instrument import Instrument
    from acquisition.runner import RunHealth
    from acquisition.steps import Pose
    from firmware_iface.device import DeviceHealth, DeviceInfo, DeviceStatus

T = TypeVar("T")
Opener = Callable[[str, str, str], "AbstractContextManager[Instrument]"]

LOOK_EVERY_S = 0.5
REOPEN_EVERY_S = 1.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RigSnapshot:
    """What is known of the instrument now; what is not, or not yet, is None.

    Attributes
    ----------
    job : str
        Title of what runs on it; empty: nothing.
    run : RunHealth or None
        Of the scan that runs, or ran last.
    error, hint : str
        Why it is not there, and what to do.
    """

    link: Link = Link.NONE
    url: str = ""
    job: str = ""
    info: DeviceInfo | None = None
    status: DeviceStatus | None = None
    health: DeviceHealth | None = None
    source: SourceState | None = None
    pose: Pose | None = None
    run: RunHealth | None = None
    error: str = ""
    hint: str = ""


class Rig:
    """Owns the instrument in a thread of its own.

    Parameters
    ----------
    opener : callable, optional
        (detector URL, stage URL, tube URL) to a context manager of the instrument.
    """

    def __init__(self, opener: Opener | None = None) -> None:
        self._opener = opener or _open
        self._orders: queue.Queue[Callable[[], None]] = queue.Queue()
        self._urls: tuple[str, str, str] | None = None
        self._instrument: Instrument | None = None
        self._open: AbstractContextManager[Instrument] | None = None
        self._snapshot = RigSnapshot()
        self._job: Job | None = None
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="instrument", daemon=True)
        self._thread.start()

    def snapshot(self) -> RigSnapshot:
        """Return what is known now; any thread may ask."""
        return self._snapshot

    def connect(self, url: str, stage_url: str = "line:", tube_url: str = "line:") -> None:
        """Open the instrument at these URLs, and again whenever it was lost, until `disconnect`."""

        def order() -> None:
            self._let_go()
            self._urls = url, stage_url, tube_url
            self._try_to_open()

        self._snapshot = RigSnapshot(link=Link.CONNECTING, url=url)
        self._orders.put(order)

    def disconnect(self) -> None:
        """Leave the gantry safe and let the device go."""

        def order() -> None:
            self._urls = None
            self._let_go()
            self._snapshot = RigSnapshot()

        self._orders.put(order)

    def run(
        self,
        title: str,
        work: Callable[[Instrument], Generator[Progress, None, T]],
        *,
        stop: Callable[[], object] | None = None,
    ) -> Job[T]:
        """Run work on the instrument, after what runs already.

        Parameters
        ----------
        work : callable
            From the instrument to a generator of progress; both are used by the instrument's thread only.
        stop : callable, optional
            Asks the work to end well by itself; see `gui.workers.Job`.
        """

        def walk() -> Generator[Progress, None, T]:
            if self._instrument is None:
                raise WrongUsage("no instrument is connected", hint="choose one on the page Instrument")
            return (yield from work(self._instrument))

        job = Job(title, walk(), stop=stop, abort=self._abort_exposure)
        self._orders.put(lambda: self._run(job))
        return job

    def note_run(self, health: RunHealth) -> None:
        """Keep how a scan stands, for the snapshot; give this to `run_scan` as `on_health`."""
        self._snapshot = replace(self._snapshot, run=health)

    def close(self) -> None:
        """Break off what runs, let the instrument go, and end the thread."""
        self._is_closing.set()
        job = self._job
        if job is not None:
            job.abort()
        self._orders.put(lambda: None)
        self._thread.join(timeout=10.0)

    def _serve(self) -> None:
        next_s = 0.0
        while not self._is_closing.is_set():
            with suppress(queue.Empty):
                self._orders.get(timeout=LOOK_EVERY_S)()
            if time.monotonic() < next_s or self._urls is None:
                continue
            if self._instrument is None:
                self._try_to_open()
                next_s = time.monotonic() + REOPEN_EVERY_S
            else:
                self._look()
        self._let_go()

    def _run(self, job: Job) -> None:
        self._job = job
        self._snapshot = replace(self._snapshot, link=Link.BUSY, job=job.title)
        job.run()
        self._job = None
        self._snapshot = replace(self._snapshot, link=Link.READY if self._instrument else Link.NONE, job="")
        if self._instrument is not None:
            self._look()

    def _look(self) -> None:
        """Ask the idle instrument how it is."""
        instrument = self._instrument
        assert instrument is not None
        try:
            detector, gantry = instrument.detector, instrument.gantry
            self._snapshot = replace(
                self._snapshot,
                link=Link.READY,
                info=getattr(detector, "info", None),
                status=detector.status(),
                source=gantry.source_state(),
                pose=gantry.pose,
            )
        except (MpxctError, OSError) as error:
            self._lose(error)

    def _try_to_open(self) -> None:
        assert self._urls is not None
        try:
            self._open = self._opener(*self._urls)
            self._instrument = self._open.__enter__()
        except (MpxctError, OSError) as error:
            self._open = None
            self._lose(error)
            return
        self._snapshot = RigSnapshot(link=Link.READY, url=self._urls[0])
        self._look()

    def _lose(self, error: BaseException) -> None:
        _log.warning("instrument: %s", error)
        self._let_go()
        url = self._urls[0] if self._urls else ""
        self._snapshot = RigSnapshot(
            link=Link.LOST, url=url, run=self._snapshot.run, error=str(error), hint=getattr(error, "hint", "")
        )

    def _let_go(self) -> None:
        opened, self._open, self._instrument = self._open, None, None
        if opened is not None:
            with suppress(MpxctError, OSError):
                opened.__exit__(None, None, None)

    def _abort_exposure(self) -> None:
        instrument = self._instrument
        if instrument is not None:
            with suppress(DetectorError):
                instrument.detector.abort()


def _open(url: str, stage_url: str, tube_url: str) -> AbstractContextManager[Instrument]:
    from acquisition.instrument import open_instrument  # heavy, and the window is to be there first

    return open_instrument(url, stage_url, tube_url)


def detectors() -> Iterator[tuple[str, str]]:
    """Yield URL and description of every detector that can be opened here; nothing is opened."""
    from firmware_iface.transport import list_devices

    yield from list_devices().items()
