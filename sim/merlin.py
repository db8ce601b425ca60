"""A Merlin as its clients see it: commands in, answers out, and the messages of its data channel; no sockets here.

A pure state machine like the board: an image is made when it is asked for, time advances by exposures and readouts.

What the specification leaves open, and what is done here: images are numbered one by one (or exposures, by option);
SOFTTRIGGER without a run that waits for it is understood and does nothing; a run that waits for an edge on an input to
which nothing is connected waits until it is stopped; edges that come during an exposure or readout are lost. Settings
without a meaning here (flat-field and dead-time correction, files) take their neutral value only; the commands
NOISEEQUALISATION and FLATFIELDCORRECTION, which the manual's list lacks, are answered as unknown.

# Ref: commands, ranges, answers, error codes: Merlin EPICS interface specification 2.0 sections 3 to 6 and Merlin
#      manual v0.7 p49 to 56 (medipix3rx reference 9.1); settings that exclude each other: manual p16, p32, p35, p51.
# Ref: what edges do, the exposure time as de-bounce of a stop, one frame per trigger with it: manual p36 to 38.
# Ref: acquisition header and frame header: specification 7.2, 7.3; LiberTEM-live @73287359 `test_headers.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum

from firmware_iface import chip
from firmware_iface.chip import Gain
from sim.chip import ChipRefused
from sim.merlin_chip import Counting, Image, MerlinChip
from sim.merlin_text import HeaderFacts, acquisition_header, frame_header, message, pixels
from sim.triggers import Pulser

VERSION = "0.75.4"
BOARD_TEMPERATURE_C = 24.7
CLOCK_HZ = 120e6
OMR_CLOCKS = 304
"""The OMR and the information header, before each readout."""


class Error(IntEnum):
    """How a command is answered."""

    UNDERSTOOD = 0
    BUSY = 1
    UNKNOWN = 2
    OUT_OF_RANGE = 3


class Status(IntEnum):
    """What DETECTORSTATUS tells."""

    IDLE = 0
    BUSY = 1


class Trigger(IntEnum):
    """Values of TRIGGERSTART, and but for the last of TRIGGERSTOP."""

    INTERNAL = 0
    RISING_TTL = 1
    FALLING_TTL = 2
    RISING_LVDS = 3
    FALLING_LVDS = 4
    SOFTWARE = 5


_LINES: Mapping[Trigger, tuple[str, bool]] = {
    Trigger.RISING_TTL: ("TTL", True), Trigger.FALLING_TTL: ("TTL", False),
    Trigger.RISING_LVDS: ("LVDS", True), Trigger.FALLING_LVDS: ("LVDS", False),
}  # fmt: skip
"""Input, and whether the edge rises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One value that clients may read and set: a number in a range, one of some numbers, or a text."""

    initial: str
    lowest_ratio: float | None = None
    highest_ratio: float | None = None
    choices: tuple[int, ...] = ()
    is_whole: bool = True

    def accepts(self, text: str) -> bool:
        """Return whether it can have this value."""
        if not self.choices and self.lowest_ratio is None:
            return len(text) <= 256
        try:
            value = int(text) if self.is_whole else float(text)
        except ValueError:
            return False
        if self.choices:
            return value in self.choices
        return (self.lowest_ratio or 0) <= value <= (self.highest_ratio or 0)


def _switch(initial: int = 0, highest: int = 1) -> Setting:
    return Setting(initial=str(initial), choices=tuple(range(highest + 1)))


def _neutral() -> Setting:
    return Setting(initial="0", choices=(0,))


def _whole(initial: int, lowest: int, highest: int) -> Setting:
    return Setting(initial=str(initial), lowest_ratio=lowest, highest_ratio=highest)


def _number(initial: float, lowest: float, highest: float) -> Setting:
    return Setting(initial=f"{initial:g}", lowest_ratio=lowest, highest_ratio=highest, is_whole=False)


_MOST_KEV, _MOST_MS, _MOST_DELAY_NS, _MOST_FRAMES = 999.99, 1e9, 68_719_476_720, 42_949_672_950
SETTINGS: Mapping[str, Setting] = {
    "COLOURMODE": _switch(),
    "CHARGESUMMING": _switch(),
    "HIGHGAIN": _switch(1),
    "GAIN": _switch(2, 3),
    "CONTINUOUSRW": _switch(),
    "ENABLECOUNTER1": _switch(0, 2),
    "COUNTERDEPTH": Setting(initial="12", choices=(1, 6, 12, 24)),
    **{f"THRESHOLD{n}": _number(0, 0, _MOST_KEV) for n in range(chip.N_THRESHOLDS)},
    "OPERATINGENERGY": _number(0, 0, _MOST_KEV),
    "NUMFRAMESTOACQUIRE": _whole(1, 0, _MOST_FRAMES),
    "ACQUISITIONTIME": _number(1, 0.001, _MOST_MS),
    "ACQUISITIONPERIOD": _number(1, 0, _MOST_MS),
    "TRIGGERSTART": _switch(0, 5),
    "TRIGGERSTOP": _switch(0, 4),
    "NUMFRAMESPERTRIGGER": _whole(1, 1, 100_000),
    **{f"TRIGGEROUT{line}": _switch(4, 7) for line in ("TTL", "LVDS")},
    **{f"TRIGGEROUT{line}INVERT": _switch() for line in ("TTL", "LVDS")},
    **{f"TRIGGEROUT{line}DELAY": _whole(0, 0, _MOST_DELAY_NS) for line in ("TTL", "LVDS")},
    "TRIGGERUSEDELAY": _switch(),
    "THSCAN": _switch(0, 7),
    "THWINDOWMODE": _neutral(),
    "THWINDOWSIZE": _number(0, 0, _MOST_KEV),
    "THSTART": _number(0, 0, _MOST_KEV),
    "THSTOP": _number(0, 0, _MOST_KEV),
    "THSTEP": _number(1, 0, _MOST_KEV),
    "THNUMSTEPS": _whole(0, 0, 511),
    "FILEDIRECTORY": Setting(initial=""),
    "FILENAME": Setting(initial=""),
    "FILEFORMAT": _neutral(),
    "FILECOUNTER": _whole(0, 0, _MOST_FRAMES),
    "FILEENABLE": _neutral(),
    "FLATFIELDCORRECTION": _neutral(),
    "DEADTIMECORRECTION": _neutral(),
    "MASKINDATA": _neutral(),
    "DACFILE": Setting(initial=""),
    "PIXELMATRIXLOADFILE": Setting(initial=""),
    "PIXELMATRIXSAVEFILE": Setting(initial=""),
    "HVBIAS": _number(80, -1000, 1000),
    "RUNHEADLESS": _switch(),
}
"""Every setting, by its name in capitals."""
# The latest request wins: what excludes it changes, without a word.
_EXCLUDES: Mapping[tuple[str, str], Mapping[str, tuple[str, str]]] = {
    ("COUNTERDEPTH", "24"): {"ENABLECOUNTER1": ("12", "0"), "CONTINUOUSRW": ("1", "0")},
    ("CONTINUOUSRW", "1"): {"COUNTERDEPTH": ("24", "12"), "ENABLECOUNTER1": ("2", "0")},
    ("ENABLECOUNTER1", "1"): {"COUNTERDEPTH": ("24", "12")},
    ("ENABLECOUNTER1", "2"): {"COUNTERDEPTH": ("24", "12"), "CONTINUOUSRW": ("1", "0"), "CHARGESUMMING": ("1", "0")},
    ("CHARGESUMMING", "1"): {"ENABLECOUNTER1": ("2", "1")},
}
"""(setting, value) to others: where they have one of the digits, they get the other value."""
_COUNTERS = {"0": (0,), "1": (1,), "2": (1, 0)}
_GAINS = (Gain.SLGM, Gain.LGM, Gain.HGM, Gain.SHGM)


@dataclass(slots=True, kw_only=True)
class _Run:
    """What is left of the present acquisition: all exposures (None: until stopped), and those that may be made now."""

    n_left: int | None
    n_released: int | None
    scan_kev: Iterator[float] | None = None
    n_exposures: int = 0
    n_images: int = 0
    is_aborted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """One exposure that is to be made; thresholds only where they change."""

    run: _Run
    opened_ns: int
    duration_ns: int
    thresholds_kev: tuple[float, ...]


class Merlin:
    """A Merlin readout with one chip.

    Parameters
    ----------
    chip_ : MerlinChip
    now_ns : int
        Nanoseconds since 1970 when it is switched on.
    numbers_exposures : bool
        All images of one exposure bear one sequence number.
    inputs : mapping of str to Pulser
        What is connected to the trigger inputs "TTL" and "LVDS".
    """

    def __init__(
        self,
        chip_: MerlinChip,
        *,
        now_ns: int = 0,
        numbers_exposures: bool = False,
        inputs: Mapping[str, Pulser] | None = None,
    ) -> None:
        self._chip = chip_
        self._inputs = inputs or {}
        self._now_ns = now_ns
        self._numbers_exposures = numbers_exposures
        self._values = {name: setting.initial for name, setting in SETTINGS.items()}
        self._run: _Run | None = None
        self._n_frames = 0
        self._messages: list[bytes] = []
        self._is_exposing = False
        self._actions: Mapping[str, Callable[[], Error]] = {
            "STARTACQUISITION": self._start,
            "STOPACQUISITION": self._stop,
            "SOFTTRIGGER": self._trigger,
            "ABORT": self._abort,
            "THSCAN": self._start_scan,
            "SELFTEST": self._test,
            "RESET": self._reset,
        }

    @property
    def status(self) -> Status:
        """Whether an acquisition is on."""
        is_idle = self._run is None and not self._messages and not self._is_exposing
        return Status.IDLE if is_idle else Status.BUSY

    @property
    def now_ns(self) -> int:
        """The time of its own clock."""
        return self._now_ns

    def answer(self, body: str) -> str:
        """Answer the body of one command, such as ``SET,COUNTERDEPTH,12``."""
        # A text value may hold commas, and what is no command at all has no name.
        verb, name, *values = [field.strip() for field in (*body.split(",", 2), "")]
        key = name.upper()
        if verb == "GET":
            value = self._tell(key)
            return f"GET,{name},{value or ''},{int(Error.UNKNOWN if value is None else Error.UNDERSTOOD)}"
        if verb == "SET":
            return f"SET,{name},{int(self._set(key, values[0] if values else ''))}"
        if verb == "CMD":
            action = self._actions.get(key)
            return f"CMD,{name},{int(Error.UNKNOWN if action is None else action())}"
        return f"{verb},{name},{int(Error.UNKNOWN)}"

    def next_message(self) -> bytes | None:
        """Return the next message of the data channel, made if need be; None when there is nothing to send now."""
        if not self._messages and (exposure := self.next_exposure()) is not None:
            self.deliver(exposure, self.expose(exposure))
        return self.pop_message()

    def pop_message(self) -> bytes | None:
        """Return the next message that is ready."""
        return self._messages.pop(0) if self._messages else None

    def next_exposure(self) -> Exposure | None:
        """Return the exposure that is to be made now; it must be delivered before anything else is asked for."""
        run = self._run
        if run is None or self._is_exposing:
            return None
        opened_ns = self._now_ns
        if run.n_released == 0:
            edge_ns = self._edge_ns("TRIGGERSTART", self._now_ns)
            if edge_ns is None:
                return None
            opened_ns, run.n_released = edge_ns, int(self._values["NUMFRAMESPERTRIGGER"])
        closing_ns = opened_ns + round(float(self._values["ACQUISITIONTIME"]) * 1e6)
        if self._trigger_of("TRIGGERSTOP") is not Trigger.INTERNAL:
            closing_ns = self._edge_ns("TRIGGERSTOP", closing_ns)
            if closing_ns is None:
                return None  # the shutter stays open
        self._now_ns = opened_ns
        self._is_exposing = True
        if run.scan_kev is not None:
            self._values[f"THRESHOLD{self._values['THSCAN']}"] = f"{next(run.scan_kev):g}"
        return Exposure(
            run=run,
            opened_ns=opened_ns,
            duration_ns=closing_ns - opened_ns,
            thresholds_kev=self._thresholds_kev if run.scan_kev is not None else (),
        )

    def expose(self, exposure: Exposure) -> list[Image]:
        """Open the shutter and read the chip; touches nothing else, so that commands may be answered meanwhile."""
        if exposure.thresholds_kev:
            self._chip.set_thresholds(exposure.thresholds_kev)
        return self._chip.expose(exposure.duration_ns * 1e-9)

    def deliver(self, exposure: Exposure, images: list[Image]) -> None:
        """Put the images of an exposure on their way, unless the run was aborted meanwhile."""
        self._is_exposing = False
        run, facts = exposure.run, self._facts()
        period_ns = round(float(self._values["ACQUISITIONPERIOD"]) * 1e6)
        self._now_ns += max(period_ns, exposure.duration_ns + self._readout_ns(facts.counting))
        if run.is_aborted:
            return
        for image in images:
            run.n_images += 1
            header = frame_header(
                facts,
                sequence=run.n_exposures + 1 if self._numbers_exposures else run.n_images,
                layer=image.layer,
                opened_ns=exposure.opened_ns,
                exposure_ns=exposure.duration_ns,
                shape=image.counts.shape,
            )
            self._messages.append(message(header + pixels(image.counts, facts.counting.depth_bits)))
        run.n_exposures += 1
        run.n_released = run.n_released and run.n_released - 1
        run.n_left = run.n_left and run.n_left - 1
        if run.n_left == 0 and run is self._run:
            self._run = None

    # Settings

    def _tell(self, name: str) -> str | None:
        side = str(chip.ROWS // 2 if self._values["COLOURMODE"] == "1" else chip.ROWS)
        told = {
            "SOFTWAREVERSION": VERSION,
            "GETSOFTWAREREVISION": VERSION,
            "DETECTORSTATUS": str(self.status.value),
            "TEMPERATURE": f"{BOARD_TEMPERATURE_C:.6f}",
            "IMAGEX": side,
            "IMAGEY": side,
            "ROIROWS": side,
        }
        return told.get(name, self._values.get(name))

    def _set(self, name: str, text: str) -> Error:
        setting = SETTINGS.get(name)
        if setting is None:
            return Error.UNKNOWN
        if self.status is Status.BUSY:
            return Error.BUSY
        if not setting.accepts(text):
            return Error.OUT_OF_RANGE
        self._values[name] = text
        for other, (ruled_out, instead) in _EXCLUDES.get((name, text), {}).items():
            if self._values[other] in _values_of(other, ruled_out):
                self._values[other] = instead
        if name == "OPERATINGENERGY":
            self._values |= {f"THRESHOLD{n}": f"{float(text) / 2:g}" for n in range(chip.N_THRESHOLDS)}
        return Error.UNDERSTOOD

    def _reset(self) -> Error:
        self._abort()
        if self._is_exposing:
            return Error.BUSY
        self._values = {name: setting.initial for name, setting in SETTINGS.items()}
        return Error.UNDERSTOOD

    @property
    def _thresholds_kev(self) -> tuple[float, ...]:
        return tuple(float(self._values[f"THRESHOLD{n}"]) for n in range(chip.N_THRESHOLDS))

    @property
    def _counting(self) -> Counting:
        values = self._values
        return Counting(
            is_colour=values["COLOURMODE"] == "1",
            is_csm=values["CHARGESUMMING"] == "1",
            gain=_GAINS[int(values["GAIN"])],
            depth_bits=int(values["COUNTERDEPTH"]),
            counters=_COUNTERS[values["ENABLECOUNTER1"]],
            is_continuous=values["CONTINUOUSRW"] == "1",
        )

    # Runs

    def _start(self) -> Error:
        return self._begin(int(self._values["NUMFRAMESTOACQUIRE"]), None)

    def _start_scan(self) -> Error:
        start, stop, step = (float(self._values[name]) for name in ("THSTART", "THSTOP", "THSTEP"))
        n_steps = int(self._values["THNUMSTEPS"])
        if not n_steps and (step <= 0 or stop < start):
            return Error.OUT_OF_RANGE
        n_steps = n_steps or int((stop - start) / step + 1e-9) + 1
        return self._begin(n_steps, iter([start + step * n for n in range(n_steps)]))

    def _begin(self, n_frames: int, scan_kev: Iterator[float] | None) -> Error:
        if self.status is Status.BUSY:
            return Error.BUSY
        is_closed_by_edge = self._trigger_of("TRIGGERSTOP") is not Trigger.INTERNAL
        if is_closed_by_edge and self._values["NUMFRAMESPERTRIGGER"] != "1":
            return Error.OUT_OF_RANGE
        try:
            self._chip.set_up(self._counting, self._thresholds_kev)
        except ChipRefused:
            return Error.OUT_OF_RANGE
        self._n_frames = n_frames
        is_internal = self._trigger_of("TRIGGERSTART") is Trigger.INTERNAL
        self._run = _Run(
            n_left=n_frames or None,
            n_released=None if is_internal else 0,
            scan_kev=scan_kev,
        )
        self._messages.append(message(acquisition_header(self._facts(), "Th_scan" if scan_kev else "Normal")))
        return Error.UNDERSTOOD

    def _test(self) -> Error:
        if self.status is Status.BUSY:
            return Error.BUSY
        return Error.UNDERSTOOD if self._chip.test() else Error.BUSY  # 1 is also the unknown error

    def _stop(self) -> Error:
        self._run = None  # the images of the present exposure will still be sent
        return Error.UNDERSTOOD

    def _abort(self) -> Error:
        if self._run is not None:
            self._run.is_aborted = True
        self._run = None
        self._messages.clear()
        return Error.UNDERSTOOD

    def _trigger(self) -> Error:
        run = self._run
        if run is not None and self._trigger_of("TRIGGERSTART") is Trigger.SOFTWARE:
            run.n_released = (run.n_released or 0) + int(self._values["NUMFRAMESPERTRIGGER"])
        return Error.UNDERSTOOD

    def _trigger_of(self, name: str) -> Trigger:
        return Trigger(int(self._values[name]))

    def _edge_ns(self, name: str, after_ns: int) -> int | None:
        """Return the next edge that a setting waits for; None where nothing gives one."""
        line, is_rising = _LINES.get(self._trigger_of(name), ("", True))
        pulser = self._inputs.get(line)
        return None if pulser is None else pulser.next_edge_ns(after_ns, is_rising=is_rising)

    def _readout_ns(self, counting: Counting) -> int:
        n_readouts = 2 if counting.depth_bits == 24 else len(counting.counters)
        clocks = OMR_CLOCKS + chip.ROWS * chip.COLS * min(counting.depth_bits, chip.PIXEL_BITS) // 8
        return 0 if counting.is_continuous else round(n_readouts * clocks / CLOCK_HZ * 1e9)

    def _facts(self) -> HeaderFacts:
        return HeaderFacts(
            chip_name=self._chip.name,
            counting=self._counting,
            gain_code=int(self._values["GAIN"]),
            thresholds_kev=self._thresholds_kev,
            dacs=tuple(self._chip.dacs[name] for name in chip.DAC_FIELDS),
            n_frames=self._n_frames,
            frames_per_trigger=int(self._values["NUMFRAMESPERTRIGGER"]),
            trigger_start=int(self._values["TRIGGERSTART"]),
            trigger_stop=int(self._values["TRIGGERSTOP"]),
            bias_v=float(self._values["HVBIAS"]),
            now_ns=self._now_ns,
            version=VERSION,
        )


def _values_of(name: str, digits: str) -> tuple[str, ...]:
    """Return the values that a rule of `_EXCLUDES` means: a depth is one value, counters are one digit each."""
    return (digits,) if name == "COUNTERDEPTH" else tuple(digits)
