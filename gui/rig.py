"""The instrument behind the window: one thread owns it, runs one piece of work at a time, and looks after it between.

Whatever happens to the cable, the thread lives: a lost instrument is opened again as soon as it is back. While work
runs, a second thread asks how the instrument is, and whoever must end something at once goes beside both.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from calibration.progress import Progress
from firmware_iface.errors import DetectorError, MpxctError, TransportError, WrongUsage
from gui.state import Link
from gui.workers import Job

if TYPE_CHECKING:
    from acquisition.beam import SourceState
    from acquisition.instrument import Instrument
    from acquisition.limits import Limits
    from acquisition.runner import RunHealth
    from acquisition.steps import Pose
    from firmware_iface.device import DeviceHealth, DeviceInfo, DeviceStatus
    from firmware_iface.merlin_device import MerlinInfo, MerlinStatus

T = TypeVar("T")
Opener = Callable[[str, str, str], "AbstractContextManager[Instrument]"]

LINE = "line:"
LOOK_EVERY_S = 0.5
REOPEN_EVERY_S = 1.0
WATCH_EVERY_S = 1.0
"""How often the instrument is asked how it is while work runs on it."""
BRAKE_EVERY_S = 0.2
"""Work that is aborted may be between two exposures; it is told again until it has ended."""
CLOSE_S = 10.0
UNSAFE = "the beam may have been on when the instrument was lost: stay out, and switch the tube off by its key"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RigSnapshot:
    """What is known of the instrument now; what is not, or not yet, is None.

    Attributes
    ----------
    was_open : bool
        Whether it was there since somebody asked for it.
    job : str
        Title of what runs on it; empty: nothing.
    chip_ids : tuple of str
        As burnt into the chips, or why that is not known.
    asked_s : float or None
        When status, health, source and pose were asked for, by `time.monotonic`.
    gantry_error : str
        Why nothing is known of source and stage.
    run : RunHealth or None
        Of what runs, or ran last; `run_s` is when that was told.
    error, hint : str
        Why it is not there, and what to do.
    unsafe : str
        Why the beam may still be on, or the stage still move, though neither should; empty: nothing speaks for it.
    """

    link: Link = Link.NONE
    url: str = ""
    stage_url: str = LINE
    tube_url: str = LINE
    was_open: bool = False
    job: str = ""
    info: DeviceInfo | MerlinInfo | None = None
    chip_ids: tuple[str, ...] = ()
    limits: Limits | None = None
    status: DeviceStatus | MerlinStatus | None = None
    health: DeviceHealth | None = None
    source: SourceState | None = None
    pose: Pose | None = None
    asked_s: float | None = None
    gantry_error: str = ""
    run: RunHealth | None = None
    run_s: float | None = None
    error: str = ""
    hint: str = ""
    unsafe: str = ""

    @property
    def is_board(self) -> bool:
        """Whether it is a board that is driven from here, and no Merlin, which has a program of its own."""
        return not hasattr(self.info, "software_version")


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
        self._known: object = None
        """The detector whose facts the snapshot holds."""
        self._snapshot = RigSnapshot()
        self._changing = threading.Lock()
        self._job: Job | None = None
        self._braking = threading.Lock()
        """Held while a job is broken off, so that the next one is not hit."""
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="instrument", daemon=True)
        self._thread.start()
        threading.Thread(target=self._watch, name="instrument's watch", daemon=True).start()

    def snapshot(self) -> RigSnapshot:
        """Return what is known now; any thread may ask."""
        return self._snapshot

    def connect(self, url: str, stage_url: str = LINE, tube_url: str = LINE) -> None:
        """Open the instrument at these URLs, and again whenever it was lost, until `disconnect`."""
        urls = url, stage_url, tube_url

        def order() -> None:
            self._let_go()
            self._urls = urls
            self._replace(_begun(urls))
            self._try_to_open()

        self._replace(_begun(urls))
        self._orders.put(order)

    def disconnect(self) -> None:
        """Leave the gantry safe and let the device go."""

        def order() -> None:
            self._urls = None
            self._let_go()
            self._replace(RigSnapshot())

        self._orders.put(order)

    def run(
        self,
        title: str,
        work: Callable[[Instrument], Generator[Progress, None, T]],
        *,
        stop: Callable[[], object] | None = None,
    ) -> Job[T]:
        """Run work on the instrument, after what runs already; aborted, it leaves beam and stage safe at once.

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

        def abort() -> None:
            threading.Thread(target=self._brake, args=(job,), name=f"end of {title}", daemon=True).start()

        job = Job(title, walk(), stop=stop, abort=abort)
        self._orders.put(lambda: self._run(job))
        return job

    def note_run(self, health: RunHealth) -> None:
        """Keep how a run stands, for the snapshot; give this to `run_scan` and `look` as `on_health`."""
        self._note(run=health, run_s=time.monotonic())

    def make_safe(self) -> None:
        """Break off what runs, switch the beam off and stop the stage, beside all else; what fails is in `unsafe`."""
        job = self._job
        if job is not None:
            job.abort()
        threading.Thread(target=self._shut_down, name="beam off", daemon=True).start()

    def close(self) -> None:
        """Break off what runs, let the instrument go, and end the threads."""
        self._is_closing.set()
        job = self._job
        if job is not None:
            job.abort()
        self._orders.put(lambda: None)
        self._thread.join(timeout=CLOSE_S)

    # The instrument's thread

    def _serve(self) -> None:
        next_s = 0.0
        while not self._is_closing.is_set():
            try:
                with suppress(queue.Empty):
                    self._orders.get(timeout=LOOK_EVERY_S)()
                if self._is_closing.is_set() or self._urls is None or time.monotonic() < next_s:
                    continue
                if self._instrument is None:
                    self._try_to_open()
                    next_s = time.monotonic() + REOPEN_EVERY_S
                else:
                    self._look()
            except Exception as error:  # noqa: BLE001 - the thread must outlive a driver's mistake, which is told
                _log.exception("the instrument's driver failed")
                self._give_up(error)
        self._let_go()

    def _run(self, job: Job) -> None:
        if self._instrument is not None:
            self._instrument.broken_off.clear()
        self._job = job
        self._note(link=Link.BUSY, job=job.title)
        job.run()
        with self._braking:
            self._job = None
        if self._instrument is None:
            self._note(link=Link.NONE if self._urls is None else Link.LOST, job="")
        else:
            self._look(job.snapshot().error)

    def _look(self, met: BaseException | None = None) -> None:
        """Ask the idle instrument what it is, where that is not known, and how it is.

        `met` is what work has just failed by; a cable that was pulled then is told better by it than by who asks next.
        """
        instrument = self._instrument
        assert instrument is not None
        try:
            told = _how(instrument)
            if instrument.detector is not self._known:
                told |= _what(instrument)
                self._known = instrument.detector
        except (MpxctError, OSError) as error:
            self._lose(met if isinstance(met, TransportError) else error)
            return
        self._note(link=Link.READY, job="", was_open=True, error="", hint="", **told)

    def _try_to_open(self) -> None:
        assert self._urls is not None
        is_back = self._snapshot.was_open
        try:
            self._open = self._opener(*self._urls)
            self._instrument = self._open.__enter__()
        except WrongUsage as error:  # it will be as wrong the next time
            self._open = None
            self._give_up(error)
            return
        except (MpxctError, OSError) as error:
            self._open = None
            self._lose(error)
            return
        if is_back:
            _log.info("the instrument is back")
            self._shut_down()
        self._look()

    def _lose(self, error: BaseException) -> None:
        """Let an instrument go that does not answer; it is opened again as soon as it does."""
        before = self._snapshot
        if str(error) != before.error:
            _log.warning("the instrument does not answer: %s", error)
        self._let_go()
        # What works may have lit it since it was asked last.
        may_be_lit = before.source is not None and (before.source.is_beam_on is not False or bool(before.job))
        self._replace(
            replace(
                before, link=Link.LOST, job="", status=None, health=None, source=None, pose=None, asked_s=None,
                error=str(error), hint=getattr(error, "hint", ""), unsafe=UNSAFE if may_be_lit else before.unsafe,
            )
        )  # fmt: skip

    def _give_up(self, error: BaseException) -> None:
        """Let an instrument go that cannot be used, and do not try again."""
        self._urls = None
        self._let_go()
        before = self._snapshot
        self._replace(
            RigSnapshot(
                url=before.url, stage_url=before.stage_url, tube_url=before.tube_url,
                error=str(error) or type(error).__name__, hint=getattr(error, "hint", ""), unsafe=before.unsafe,
            )
        )  # fmt: skip

    def _let_go(self) -> None:
        opened, self._open, self._instrument, self._known = self._open, None, None, None
        if opened is not None:
            with suppress(MpxctError, OSError):
                opened.__exit__(None, None, None)

    # Beside it

    def _watch(self) -> None:
        """Keep fresh how the instrument is while work runs on it."""
        while not self._is_closing.wait(WATCH_EVERY_S):
            instrument, job = self._instrument, self._job
            if instrument is None or job is None:
                continue
            try:
                told = _how(instrument)
            except (MpxctError, OSError):  # the work meets it too, and tells
                continue
            except Exception:  # noqa: BLE001 - the watch must outlive a driver's mistake, which is told
                _log.exception("the instrument could not be asked how it is")
                continue
            with self._changing:
                if self._job is job:
                    self._snapshot = replace(self._snapshot, **told)

    def _brake(self, job: Job) -> None:
        """Break off what a job waits for, until it has ended; the first time leave the gantry safe, too."""
        is_first = True
        while not job.is_over and (is_first or self._job is job):
            with self._braking:
                instrument = self._instrument
                if instrument is not None and self._job is job:
                    instrument.broken_off.set()
                    with suppress(DetectorError, OSError):  # what is wrong there is wrong for the job too, which tells
                        instrument.detector.abort()
                    if is_first:
                        self._shut_down()
            is_first = False
            job.wait(BRAKE_EVERY_S)

    def _shut_down(self) -> None:
        instrument = self._instrument
        if instrument is None:
            self._note(unsafe="the instrument does not answer; switch the tube off by its key")
            return
        try:
            unsafe = instrument.gantry.shut_down()
        except Exception as error:  # noqa: BLE001 - whatever it is, somebody must hear that the beam may be on
            _log.exception("the gantry could not be left safe")
            unsafe = f"the beam may still be on: {error}"
        self._note(unsafe=unsafe)

    def _note(self, **parts: Any) -> None:
        with self._changing:
            self._snapshot = replace(self._snapshot, **parts)

    def _replace(self, snapshot: RigSnapshot) -> None:
        with self._changing:
            self._snapshot = snapshot


def _begun(urls: tuple[str, str, str]) -> RigSnapshot:
    return RigSnapshot(link=Link.CONNECTING, url=urls[0], stage_url=urls[1], tube_url=urls[2])


def _how(instrument: Instrument) -> dict[str, Any]:
    """Ask an instrument how it is; any thread may, also while another takes frames.

    Raises
    ------
    MpxctError, OSError
        It does not answer.
    """
    detector, gantry = instrument.detector, instrument.gantry
    health = getattr(detector, "health", None)
    told: dict[str, Any] = {"status": detector.status(), "health": None if health is None else health()}
    try:
        told |= {"source": gantry.source_state(), "pose": gantry.pose, "gantry_error": ""}
    except TransportError:
        raise
    except MpxctError as error:  # there is none, or it refuses to say; the detector is there all the same
        told |= {"source": None, "pose": None, "gantry_error": str(error)}
    source = told["source"]
    if source is not None and source.is_beam_on is False:
        told["unsafe"] = ""
    return {**told, "asked_s": time.monotonic()}


def _what(instrument: Instrument) -> dict[str, Any]:
    """Ask an idle instrument what it is.

    Raises
    ------
    MpxctError, OSError
        It does not answer.
    """
    detector = instrument.detector
    info = getattr(detector, "info", None)
    try:
        limits = instrument.gantry.limits()
    except TransportError:
        raise
    except MpxctError:
        limits = None
    return {"info": info, "chip_ids": _chip_ids(detector, getattr(info, "n_chips", None)), "limits": limits}


def _chip_ids(detector: Any, n_chips: int | None) -> tuple[str, ...]:
    """Read the names of the chips; a detector that is no board of ours tells all in one."""
    names = []
    for number in range(n_chips or 1):
        try:
            names.append(str(detector.chip_id() if n_chips is None else detector.chip_id(number)))
        except TransportError:
            raise
        except MpxctError as error:
            names.append(f"not known: {error}")
    return tuple(names)


def _open(url: str, stage_url: str, tube_url: str) -> AbstractContextManager[Instrument]:
    from acquisition.instrument import open_instrument  # heavy, and the window is to be there first

    return open_instrument(url, stage_url, tube_url)
