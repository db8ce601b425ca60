"""What the strip under all pages says of the instrument: a few readings in words, each with its mood. No Qt here.

# Ref: losses are alarms that somebody acknowledges: daq_gui reference 1.5, row 8; when a disk is short:
#      `acquisition.doctor`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from gui.rig import RigSnapshot
from gui.state import Link

if TYPE_CHECKING:
    from acquisition.beam import SourceState
    from acquisition.runner import RunHealth
    from gui.workers import JobSnapshot

UNKNOWN = "\N{EN DASH}"
KELVIN_OF_0_C = 273.15
STALE_S = 4.0
"""What was asked longer ago is shown with its age."""
RATE_OVER_S = 2.0
LEAST_BYTES, SCAN_BYTES = 1_000_000_000, 20_000_000_000
"""Less room on the disk than the first is an alarm, less than the second a warning; `tests/gui` holds them to
`acquisition.doctor`, which is not loaded for two numbers while the window opens."""
FULL_SHARE = 0.8
"""A queue that is fuller than this is about to hold the detector up."""


class Mood(Enum):
    """How much a reading matters; the value is the word for it."""

    CALM = ""
    GOOD = "good"
    WARN = "attention"
    BAD = "alarm"
    BEAM = "radiation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One thing that the strip shows: its name, its value in words, what it means, and its mood."""

    name: str
    text: str
    tip: str
    mood: Mood = Mood.CALM


class Losses:
    """Counts lost frames that nobody has acknowledged yet, over the ends of runs."""

    def __init__(self) -> None:
        self.n_new = 0
        self._n_seen = 0

    def see(self, run: RunHealth | None) -> None:
        """Take what is known of the run; fewer losses than before are those of another run."""
        n_lost = 0 if run is None else run.n_lost
        self.n_new += n_lost - (self._n_seen if n_lost >= self._n_seen else 0)
        self._n_seen = n_lost

    def acknowledge(self) -> None:
        """Say that somebody knows."""
        self.n_new = 0


class Pace:
    """How many frames come in a second, by how far a job is; for work that does not tell it itself."""

    def __init__(self) -> None:
        self._marks: list[tuple[float, int]] = []
        self._of: tuple[str, str] = "", ""

    def see(self, job: JobSnapshot | None, now_s: float) -> float | None:
        """Take how far a job is and return its pace, 1/s; None where it cannot be told yet."""
        of = (job.title, job.stage) if job is not None else ("", "")
        if job is None or of != self._of or (self._marks and job.done < self._marks[-1][1]):
            self._marks, self._of = [], of
        if job is None:
            return None
        self._marks.append((now_s, job.done))
        while len(self._marks) > 2 and now_s - self._marks[1][0] >= RATE_OVER_S:
            del self._marks[0]
        (first_s, first), (last_s, last) = self._marks[0], self._marks[-1]
        return (last - first) / (last_s - first_s) if last_s - first_s > RATE_OVER_S / 2 else None


def device(now: RigSnapshot) -> str:
    """Return what to call an instrument: what it is, and its serial number where it told it."""
    scheme, _, name = now.url.partition(":")
    kinds = {"sim": "Simulated", "usb": "USB board", "merlin": "Merlin"}
    plain = name.partition("?")[0].strip("/")
    words = kinds.get(scheme, now.url)
    serial = getattr(now.info, "serial", "") or plain
    return f"{words} {serial}".strip()


def link_words(now: RigSnapshot) -> tuple[str, Mood]:
    """Return how the window stands with the instrument, in words."""
    if now.link is Link.LOST and not now.was_open:
        return "not there yet, trying again", Mood.WARN
    if now.link is Link.NONE and now.error:
        return "could not be opened", Mood.BAD
    mood = {Link.NONE: Mood.CALM, Link.CONNECTING: Mood.WARN, Link.LOST: Mood.BAD}.get(now.link, Mood.GOOD)
    return now.link.value, mood


def readings(
    now: RigSnapshot,
    *,
    job: JobSnapshot | None = None,
    pace_per_s: float | None = None,
    losses: Losses | None = None,
    free_bytes: int | None = None,
    now_s: float = 0.0,
) -> tuple[Reading, ...]:
    """Return all readings, always the same ones in the same order.

    Parameters
    ----------
    job : JobSnapshot, optional
        What runs on the instrument.
    pace_per_s : float, optional
        Of the job, where it does not tell its rate itself.
    free_bytes : int, optional
        On the disk where files go.
    now_s : float
        By `time.monotonic`.
    """
    run = now.run if job is not None and now.run_s is not None and now_s - job.elapsed_s <= now.run_s else None
    return (
        _link(now),
        _temperature(now, now_s),
        _bias(now, now_s),
        beam(now.source, now.unsafe, is_there=now.link in (Link.READY, Link.BUSY)),
        _rate(run, pace_per_s),
        _frames(run, job),
        _lost(now.run, losses or Losses()),
        _waiting(run),
        _disk(free_bytes, run),
    )


def celsius(kelvin: float | None) -> str:
    """Return a temperature as people say it; a dash where it is not known."""
    if kelvin is None or not math.isfinite(kelvin):
        return UNKNOWN
    return f"{kelvin - KELVIN_OF_0_C:.1f} °C"


def gigabytes(n_bytes: int) -> str:
    """Return a size as people say it."""
    return f"{n_bytes / 1e12:.2f} TB" if n_bytes >= 1e12 else f"{n_bytes / 1e9:.{int(n_bytes < 1e11)}f} GB"


def beam(source: SourceState | None, unsafe: str, *, is_there: bool) -> Reading:
    """Return whether the source shines, and what keeps it from it."""
    tip = "Whether X-rays are on, by the lamp of the source, whatever it was told."
    if unsafe:
        return Reading(name="Beam", text="may be ON", tip=f"{tip}\n\nBeware: {unsafe}", mood=Mood.BAD)
    if not is_there or source is None or source.is_beam_on is None:
        return Reading(name="Beam", text=UNKNOWN, tip=f"{tip}\n\nNothing tells it now: rely on the lamp.")
    if source.is_beam_on:
        return Reading(name="Beam", text="ON", tip=f"{tip}\n\nX-rays are on.", mood=Mood.BEAM)
    if source.fault:
        return Reading(name="Beam", text="off, fault", tip=f"{tip}\n\nThe source says: {source.fault}", mood=Mood.BAD)
    if source.is_interlock_closed is False:
        what = "The interlock is open: close doors and keys before you scan."
        return Reading(name="Beam", text="off, open", tip=f"{tip}\n\n{what}", mood=Mood.WARN)
    return Reading(name="Beam", text="off", tip=f"{tip}\n\nX-rays are off.")


def _link(now: RigSnapshot) -> Reading:
    text, mood = link_words(now)
    if now.link is Link.NONE and not now.error:
        tip = "No instrument is connected: choose one on the page Instrument."
        return Reading(name="Instrument", text=text, tip=tip, mood=mood)
    tip = f"{device(now)}: {text}." + "".join(f"\n\n{more}" for more in (now.error, now.hint) if more)
    return Reading(name=device(now), text=text, tip=tip, mood=mood)


def _age(now: RigSnapshot, now_s: float) -> tuple[str, Mood]:
    """Return how old readings are, where they are old."""
    if now.asked_s is None or now_s - now.asked_s <= STALE_S:
        return "", Mood.CALM
    return f", {now_s - now.asked_s:.0f} s ago", Mood.WARN


def _temperature(now: RigSnapshot, now_s: float) -> Reading:
    age, mood = _age(now, now_s)
    places = {
        "sensor": _number(now.health, "sensor_k"),
        "board": _number(now.health, "board_k") or _number(now.status, "temperature_k"),
        "FPGA": _number(now.health, "fpga_k"),
    }
    known = {name: kelvin for name, kelvin in places.items() if kelvin is not None}
    tip = "Temperature of the chip and its sensor; thresholds drift with it."
    if not known:
        return Reading(name="Sensor", text=UNKNOWN, tip=f"{tip}\n\nThe instrument does not tell it now.")
    name, kelvin = next(iter(known.items()))
    all_of_them = ", ".join(f"{each} {celsius(value)}" for each, value in known.items())
    return Reading(
        name=f"{name[:1].upper()}{name[1:]}{age}",
        text=celsius(kelvin),
        tip=f"{tip}\n\nMeasured: {all_of_them}{age}.",
        mood=mood,
    )


def _bias(now: RigSnapshot, now_s: float) -> Reading:
    age, mood = _age(now, now_s)
    tip = "Voltage across the sensor, which draws the charge to the pixels."
    bias_v = _number(now.health, "bias_v")
    bias_v = _number(now.status, "bias_v") if bias_v is None else bias_v
    if bias_v is None:
        return Reading(name="Bias", text=UNKNOWN, tip=f"{tip}\n\nThe instrument does not tell it now.")
    leak_na = _number(now.health, "bias_current_na")
    leak = "" if leak_na is None else f", and {leak_na:.0f} nA flow"
    text = f"{bias_v:.0f} V".replace("-", "\N{MINUS SIGN}")
    return Reading(name=f"Bias{age}", text=text, tip=f"{tip}\n\nMeasured: {text}{leak}{age}.", mood=mood)


def _rate(run: RunHealth | None, pace_per_s: float | None) -> Reading:
    rate_per_s = run.queues[0].rate_per_s if run is not None and run.queues else pace_per_s
    text = UNKNOWN if rate_per_s is None else f"{rate_per_s:,.0f} /s" if rate_per_s >= 10 else f"{rate_per_s:.1f} /s"
    return Reading(name="Rate", text=text, tip="Frames or steps that come in a second, over the last two.")


def _frames(run: RunHealth | None, job: JobSnapshot | None) -> Reading:
    tip = "Frames or steps of what runs now: so far, and of how many where that is known."
    if job is None:
        return Reading(name="Frames", text=UNKNOWN, tip=tip)
    done = max(job.done, run.n_frames if run is not None else 0)
    return Reading(name="Frames", text=f"{done:,}" + (f" / {job.total:,}" if job.total else ""), tip=tip)


def _lost(run: RunHealth | None, losses: Losses) -> Reading:
    tip = "Frames that the detector took and that did not arrive whole; each is marked in its place in the file."
    n_lost = 0 if run is None else run.n_lost
    if losses.n_new:
        what = f"{losses.n_new:,} were lost since somebody last acknowledged it; click to acknowledge."
        return Reading(name="Lost", text=f"{losses.n_new:,} new", tip=f"{tip}\n\n{what}", mood=Mood.BAD)
    if n_lost:
        return Reading(name="Lost", text=f"{n_lost:,} (known)", tip=f"{tip}\n\nThe last run lost {n_lost:,}.")
    return Reading(name="Lost", text="0" if run is not None else UNKNOWN, tip=tip)


def _waiting(run: RunHealth | None) -> Reading:
    tip = "Frames that wait to be written; when the queue is full the detector waits, and nothing is lost."
    if run is None or not run.queues:
        return Reading(name="Waiting", text=UNKNOWN, tip=tip)
    first = run.queues[0]
    mood = Mood.WARN if first.depth > FULL_SHARE * first.capacity else Mood.CALM
    each = "\n".join(
        f"To {queue.name}: {queue.depth} of {queue.capacity} wait, at most {queue.high_water}, the oldest for "
        f"{queue.oldest_s:.2f} s; {queue.n_dropped:,} left out"
        for queue in run.queues
    )
    return Reading(name="Waiting", text=f"{first.depth} / {first.capacity}", tip=f"{tip}\n\n{each}", mood=mood)


def _disk(free_bytes: int | None, run: RunHealth | None) -> Reading:
    tip = "Room on the disk where new files go."
    alarms = [alarm for alarm in (run.alarms if run is not None else ()) if "disk" in alarm.partition(":")[0]]
    if free_bytes is None:
        return Reading(name="Disk free", text=UNKNOWN, tip=f"{tip}\n\nIt is being looked at.")
    mood = Mood.CALM
    if alarms or free_bytes < LEAST_BYTES:
        mood, tip = Mood.BAD, f"{tip}\n\n" + ("\n".join(alarms) or "Make room before you scan.")
    elif free_bytes < SCAN_BYTES:
        mood, tip = (
            Mood.WARN,
            f"{tip}\n\nA long scan takes up to {gigabytes(SCAN_BYTES)}; the page Scan tells.",
        )
    return Reading(name="Disk free", text=gigabytes(free_bytes), tip=tip, mood=mood)


def _number(record: Any, name: str) -> float | None:
    """Return what an instrument measured; None where it has no such thing, or no sensor for it."""
    value = getattr(record, name, None)
    return value if value is not None and math.isfinite(value) else None
