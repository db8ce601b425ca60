"""A Merlin as a detector: the settings it knows, runs, and frames or losses in the order of the run.

The interface is that of `Detector` as far as a Merlin can: it keeps masks, trims, DACs and the keV scale to itself and
has no line to a gantry, so what would need those raises `OurMistake`. One thread may iterate over frames while others
ask, trigger, stop or abort.

# Ref: ports, commands, ranges: Merlin EPICS interface specification 2.0 and Merlin manual v0.7 p49 to 56 (medipix3rx
#      reference 9.1); images of one exposure: manual p35, p47; modes that exclude each other: p16, p35, p51.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import NoReturn
from urllib.parse import parse_qsl, urlsplit

from firmware_iface import chip
from firmware_iface.configuration import N_LINES, Configuration, PixelConfiguration
from firmware_iface.errors import DetectorError, OurMistake, TheirMistake, TransportTimeout, WrongUsage
from firmware_iface.frame import Frame, Lost
from firmware_iface.merlin import GAINS, parse_acquisition_header
from firmware_iface.merlin_stream import ErrorCode, Expectation, FrameCollector, MessageDecoder, decode_image
from firmware_iface.merlin_tcp import COMMAND_PORT, REPLY_TIMEOUT_S, MerlinLink
from firmware_iface.states import Action, State, step
from firmware_iface.trigger import Trigger, TriggerOutput, TriggerStart, TriggerStop

SILENCE_S = 5.0
"""How much longer than an exposure an acquiring Merlin may be silent."""
GRACE_S = 1.0
"""How long an idle Merlin may still send what it took."""
MOST_FRAMES = 42_949_672_950
MOST_KEV = 999.99
MOST_FRAMES_PER_TRIGGER = 100_000
OUTPUTS = ("TTL", "LVDS")
_POLL_S = 0.1
_UNKNOWN_STATUS = -1
_RUNNING = {State.ACQUIRING, State.STOPPING, State.ABORTING}


class MerlinState(IntEnum):
    """What DETECTORSTATUS tells."""

    IDLE = 0
    BUSY = 1
    STANDBY = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class MerlinInfo:
    """What a Merlin says of itself."""

    serial: str
    software_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MerlinStatus:
    """How a Merlin is; `state` is None where it does not tell."""

    state: MerlinState | None
    temperature_k: float | None


class MerlinDetector:
    """A Merlin readout with its Medipix3RX.

    Attributes
    ----------
    info : MerlinInfo
    configuration : Configuration
        The one in force, once `configure` was called.
    acquisition_header : dict of str to str
        What the Merlin told of the last acquisition; empty before one, and until a new one is armed.
    """

    def __init__(
        self,
        host: str,
        command_port: int = COMMAND_PORT,
        data_port: int | None = None,
        *,
        timeout_s: float = REPLY_TIMEOUT_S,
    ) -> None:
        self._lock = threading.RLock()
        self._state = State.DISCONNECTED
        self._trigger = Trigger()
        self._run_id = 0
        self._is_configured = False
        self.configuration = Configuration()
        self.acquisition_header: dict[str, str] = {}
        self._link = MerlinLink(host, command_port, data_port, timeout_s=timeout_s)
        try:
            self._do(Action.CONNECT)
            self.info = MerlinInfo(serial=self._link.name, software_version=self._link.get("SOFTWAREVERSION"))
        except BaseException:
            self._link.close()
            raise

    # What it is, and how it is

    @property
    def state(self) -> State:
        """Where the detector stands, as the host knows it."""
        if not self._link.is_open:
            self._state = State.DISCONNECTED
        return self._state

    def status(self) -> MerlinStatus:
        """Ask how the Merlin is; temperatures only between runs, for asking disturbs the chips."""
        self._do(Action.ASK)
        code = self._status_code()
        try:
            temperature_k = float(self._link.get("TEMPERATURE")) + 273.15 if self._state is State.IDLE else None
        except (ValueError, DetectorError):
            temperature_k = None
        return MerlinStatus(state=None if code == _UNKNOWN_STATUS else MerlinState(code), temperature_k=temperature_k)

    def chip_id(self) -> str:
        """Return the name of the chip, such as W529_F5; of several chips, their names with commas between."""
        names = [name.strip() for name in self.acquisition_header.get("Chip ID", "").split(",")]
        text = ",".join(name for name in names if name.strip("-"))
        if not text:
            raise OurMistake(
                "a Merlin tells its chip only in the header of an acquisition, and none was made yet",
                hint="take a frame first",
            )
        return text

    def auxiliary(self, line: str) -> str:
        """Refuse: a Merlin has no line to a gantry."""
        _refuse(f"to pass on {line!r}: it has no line to a gantry", "drive the stage by its own controller")

    # Settings

    def configure(self, configuration: Configuration) -> None:
        """Choose how the chip counts, from the next run on.

        Raises
        ------
        OurMistake
            No Merlin can do this.
        TheirMistake
            The Merlin took something else instead.
        """
        self._do(Action.CONFIGURE)
        wanted = _settings_of(configuration)
        for name, value in wanted.items():
            self._link.set(name, str(value))
        for name, value in wanted.items():  # a Merlin changes what excludes the latest request, without a word
            got = self._link.get(name)
            if got.strip() != str(value):
                raise TheirMistake(f"the Merlin was asked for {name} {value} and has {got!r}")
        self.configuration = configuration
        self._is_configured = True

    def set_thresholds_kev(self, thresholds_kev: Mapping[int, float]) -> dict[int, float]:
        """Set some thresholds, and return what the Merlin made of them; both by number, in keV."""
        self._do(Action.CONFIGURE)
        for number, energy_kev in thresholds_kev.items():
            if number not in range(chip.N_THRESHOLDS) or not 0 <= energy_kev <= MOST_KEV:
                raise ValueError(f"threshold {number} at {energy_kev} keV; allowed: 0 to 7, at 0 to {MOST_KEV} keV")
        for number, energy_kev in thresholds_kev.items():
            self._link.set(f"THRESHOLD{number}", f"{energy_kev:.6g}")
        return {number: self._link.get_number(f"THRESHOLD{number}") for number in thresholds_kev}

    def set_trigger(self, trigger: Trigger) -> None:
        """Choose what opens and closes the shutter, from the next run on; a Merlin has one delay per output only."""
        self._do(Action.CONFIGURE)
        if trigger.frames_per_trigger > MOST_FRAMES_PER_TRIGGER or trigger.delay_ns:
            _refuse(
                f"for {trigger.frames_per_trigger} frames per trigger after {trigger.delay_ns} ns",
                f"allowed: 1 to {MOST_FRAMES_PER_TRIGGER} frames, and delay_ns 0",
            )
        self._trigger = trigger

    def set_output(self, line: str, output: TriggerOutput) -> None:
        """Choose what the output "TTL" or "LVDS" shows."""
        self._do(Action.CONFIGURE)
        if line not in OUTPUTS:
            raise ValueError(f"there is no output {line!r}; allowed: {', '.join(OUTPUTS)}")
        self._link.set(f"TRIGGEROUT{line}", str(output.source.value))
        self._link.set(f"TRIGGEROUT{line}INVERT", str(int(output.is_inverted)))
        self._link.set(f"TRIGGEROUT{line}DELAY", str(output.delay_ns))

    def trigger(self) -> None:
        """Open the shutter of a run whose trigger is `TriggerStart.SOFTWARE`."""
        self._do(Action.TRIGGER)
        self._link.command("CMD", "SOFTTRIGGER")

    def set_bias(self, v: float) -> None:
        """Set the sensor's bias voltage, in V."""
        self._do(Action.CONFIGURE)
        self._link.set("HVBIAS", f"{v:.6g}")

    def set_dacs(self, dacs: Mapping[str, int]) -> None:
        """Refuse: a Merlin takes energies."""
        _refuse(f"to set the DACs {', '.join(dacs)}: it loads them from its own files", "use set_thresholds_kev")

    def read_dacs(self) -> dict[str, int]:
        """Refuse: a Merlin tells its DACs in the headers of files only."""
        _refuse("to read its DACs back", "the header of a .mib file tells them")

    def load_pixels(self, pixels: PixelConfiguration) -> None:
        """Refuse: a Merlin loads masks and trims from its own files."""
        _refuse(f"to load masks and trims, here of {pixels.is_masked.size} pixels", "load them in its own program")

    # Runs

    def frames(
        self, n_frames: int, exposure_s: float, *, on_armed: Callable[[], None] | None = None
    ) -> Iterator[Frame | Lost]:
        """Take frames.

        Parameters
        ----------
        n_frames : int
            How many exposures; 0 to go on until `stop`.
        exposure_s : float
            How long the shutter is open for each, in s.
        on_armed : callable, optional
            Called when the Merlin has sent the acquisition's header, and triggers count: `trigger`, for example.

        Yields
        ------
        Frame or Lost
            In the order of the run, every frame once, whole or lost. The run starts at the first; closing the iterator
            early aborts it.

        Raises
        ------
        TransportTimeout
            The Merlin does not say that it is idle, and nothing comes.
        """
        if not 0 <= n_frames <= MOST_FRAMES or exposure_s < 1e-6:
            raise ValueError(f"{n_frames} frames of {exposure_s} s; allowed: 0 to {MOST_FRAMES}, of at least 1e-6 s")
        step(self.state, Action.ACQUIRE)
        return self._run(n_frames, exposure_s, on_armed)

    def stop(self) -> None:
        """End the run after the present frame; the iterator gives what was taken, and ends."""
        self._end_early(Action.STOP)

    def abort(self) -> None:
        """End the run now, also one of an earlier client; the iterator ends, and frames under way are thrown away."""
        self._end_early(Action.ABORT)

    def close(self) -> None:
        """Abort what runs and hang up; a second call does nothing."""
        if self._state in _RUNNING:
            with suppress(DetectorError):  # it is going away anyhow
                self.abort()
        with self._lock:
            self._do(Action.CLOSE)
            self._link.close()

    def __enter__(self) -> MerlinDetector:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, n_frames: int, exposure_s: float, on_armed: Callable[[], None] | None) -> Iterator[Frame | Lost]:
        if not self._is_configured:  # what an earlier client left in the Merlin is not known
            self.configure(self.configuration)
        self._do(Action.ACQUIRE)
        try:
            self._prepare(n_frames, exposure_s)
            self._run_id += 1
            self.acquisition_header = {}
            expected = Expectation(
                run_id=self._run_id,
                n_frames=n_frames,
                thresholds=self.configuration.thresholds,
                has_one_threshold=self.configuration.is_continuous or self.configuration.depth_bits == 24,
            )
            self._link.command("CMD", "STARTACQUISITION")
            yield from self._items(FrameCollector(expected), expected, exposure_s, on_armed)
        except BaseException:  # also a closed iterator and Ctrl-C: the Merlin must stay usable
            self._abandon_run()
            raise
        finally:
            if self.state is not State.DISCONNECTED:
                self._do(Action.END_RUN)

    def _prepare(self, n_frames: int, exposure_s: float) -> None:
        for name, value in {
            "NUMFRAMESTOACQUIRE": str(n_frames),
            "ACQUISITIONTIME": f"{exposure_s * 1e3:.6f}",
            # Shorter than the readout allows: the Merlin then takes the shortest it can.
            "ACQUISITIONPERIOD": f"{exposure_s * 1e3:.6f}",
            "TRIGGERSTART": str(self._trigger.start.value),
            "TRIGGERSTOP": str(self._trigger.stop.value),
            "NUMFRAMESPERTRIGGER": str(self._trigger.frames_per_trigger),
            "FILEENABLE": "0",
        }.items():
            self._link.set(name, value)
        self._drain(0.0)  # nothing of an earlier acquisition may stand before this one's header

    def _items(
        self,
        collector: FrameCollector,
        expected: Expectation,
        exposure_s: float,
        on_armed: Callable[[], None] | None,
    ) -> Iterator[Frame | Lost]:
        messages = MessageDecoder()
        heard_at_s = time.monotonic()
        idle_since_s: float | None = None
        while not collector.is_complete:
            data = self._link.read(_POLL_S)
            if self._state is State.ABORTING:
                self._await_idle()
                return
            if data:
                heard_at_s, idle_since_s = time.monotonic(), None
            for message in messages.receive(data) if data else messages.flush():
                if self._state is State.ABORTING:  # since the last frame was given
                    break
                if message.n_skipped:
                    collector.damaged(f"{message.n_skipped} bytes before an image were no message")
                was_armed = bool(self.acquisition_header)
                yield from self._take(message.body, collector)
                if on_armed is not None and self.acquisition_header and not was_armed:
                    on_armed()
            if data:
                continue
            now_s = time.monotonic()
            code = self._status_code()
            if code == MerlinState.IDLE:
                idle_since_s = now_s if idle_since_s is None else idle_since_s
                if now_s - idle_since_s >= GRACE_S:
                    yield from collector.finish(0 if self._state is State.STOPPING else expected.n_frames)
                    return
            elif code == MerlinState.STANDBY:
                raise TheirMistake("the Merlin went to standby in a run")
            elif self._is_overdue(now_s - heard_at_s, exposure_s):
                raise TransportTimeout(
                    f"no image came for {now_s - heard_at_s:.3g} s, and the Merlin does not say that it is idle",
                    hint=f"check that nothing else reads the data port of {self._link.name}",
                )

    def _take(self, body: bytes, collector: FrameCollector) -> Iterator[Frame | Lost]:
        kind = bytes(body[:3])
        try:
            if kind == b"HDR":
                if self.acquisition_header:
                    raise ValueError("a second acquisition begins; allowed: one in a run")
                self.acquisition_header = parse_acquisition_header(body)
                return
            if kind != b"MQ1" or not self.acquisition_header:  # a profile, or what an earlier acquisition left
                return
            try:
                depth = self.acquisition_header.get("Counter Depth (number)", "")
                image = decode_image(body, int(depth) if depth.isdecimal() else None)
            except ValueError as error:
                collector.damaged(f"an image could not be read: {error}")
                return
            yield from collector.receive(image)
        except ValueError as error:
            kind_text = kind.decode("latin-1")
            raise TheirMistake(
                f"the Merlin {self._link.name} sent a message {kind_text!r} that cannot be: {error}"
            ) from error

    def _is_overdue(self, silent_s: float, exposure_s: float) -> bool:
        has_edge = self._trigger.start is not TriggerStart.INTERNAL or self._trigger.stop is not TriggerStop.INTERNAL
        waits_for_trigger = has_edge and self._state is State.ACQUIRING
        return not waits_for_trigger and silent_s > exposure_s + SILENCE_S

    def _end_early(self, action: Action) -> None:
        with self._lock:
            is_running = self._state in _RUNNING
            self._do(action)
            if is_running:
                self._send_end(action)
            elif action is Action.ABORT and self._state is State.IDLE and self._status_code() == MerlinState.BUSY:
                self._send_end(action)  # a run that an earlier client left behind
                self._await_idle()

    def _send_end(self, action: Action) -> None:
        if action is Action.ABORT and self._link.exchange("CMD", "ABORT").error == ErrorCode.UNDERSTOOD:
            return
        self._link.command("CMD", "STOPACQUISITION")  # older software knows no ABORT

    def _abandon_run(self) -> None:
        """Leave no run on the Merlin and no images on the way, as far as the connection still can."""
        if self.state is State.DISCONNECTED:
            return
        # What ended the run is what the caller must hear of.
        with suppress(DetectorError):
            self._do(Action.ABORT)
        with suppress(DetectorError):
            if self._link.exchange("CMD", "ABORT").error:
                self._link.exchange("CMD", "STOPACQUISITION")
            self._await_idle()

    def _await_idle(self) -> None:
        """Throw away what still comes, until the Merlin is idle and silent."""
        deadline_s = time.monotonic() + SILENCE_S
        while time.monotonic() < deadline_s:
            self._drain(_POLL_S)
            if self._status_code() in {MerlinState.IDLE, _UNKNOWN_STATUS}:
                self._drain(_POLL_S)
                return

    def _drain(self, silence_s: float) -> None:
        deadline_s = time.monotonic() + SILENCE_S
        while self._link.read(silence_s) and time.monotonic() < deadline_s:
            pass

    # Below: the state of both ends

    def _status_code(self) -> int:
        answer = self._link.exchange("GET", "DETECTORSTATUS")
        is_known = not answer.error and answer.value.strip() in {str(state.value) for state in MerlinState}
        return int(answer.value) if is_known else _UNKNOWN_STATUS

    def _do(self, action: Action) -> None:
        with self._lock:
            self._state = step(self.state, action)


def _settings_of(configuration: Configuration) -> dict[str, int]:
    """Return the commands that make a configuration, in an order in which a Merlin takes all of them."""
    counters, is_deep = configuration.counters, configuration.depth_bits == 24
    # Where both counters serve one threshold, that is the summed charge's, or the lower of each pair.
    has_one_threshold = is_deep or configuration.is_continuous
    if configuration.is_equalization:
        _refuse("for the equalisation routing", "it is used by the Merlin's own equalisation only")
    if configuration.is_hole_collecting:
        _refuse("for a polarity", "choose it in its own program, and leave is_hole_collecting out")
    if configuration.is_test_pulsed or configuration.n_lines != N_LINES:
        _refuse("for test pulses, or for fewer data lines", f"allowed: is_test_pulsed False, n_lines {N_LINES}")
    if configuration.is_csm and counters == (0, 1):
        _refuse("for both counters with charge summing", "allowed: counters (1,), or no charge summing")
    if has_one_threshold and counters != (int(configuration.is_csm),):
        _refuse(
            f"for the counters {counters} at 24 bits or in continuous read/write",
            "allowed: (0,), and (1,) with charge summing",
        )
    return {
        "COLOURMODE": int(configuration.is_colour),
        "ENABLECOUNTER1": 0 if is_deep else {(0,): 0, (1,): 1, (0, 1): 2}[counters],
        "CHARGESUMMING": int(configuration.is_csm),
        "GAIN": GAINS.index(configuration.gain),
        "CONTINUOUSRW": int(configuration.is_continuous),
        "COUNTERDEPTH": configuration.depth_bits,
    }


def _refuse(what: str, hint: str) -> NoReturn:
    raise OurMistake(f"a Merlin cannot be asked {what}", hint=hint)


def open_merlin(address: str) -> MerlinDetector:
    """Open the Merlin of a URL's address, such as ``//host``, ``//host:6341`` or ``//host:6341?data_port=7000``.

    Raises
    ------
    WrongUsage
        The address names no host, or an option that is not known.
    """
    parts = urlsplit(address if address.startswith("//") else f"//{address}")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = sorted(set(options) - {"data_port"})
    try:
        command_port = parts.port or COMMAND_PORT
        data_port = int(options.get("data_port", command_port + 1))
    except ValueError as error:
        raise WrongUsage(f"merlin:{address} names a wrong port; allowed: 1 to 65535") from error
    if not parts.hostname or parts.path not in ("", "/") or unknown:
        raise WrongUsage(
            f"merlin:{address} names no Merlin; allowed: merlin://HOST, merlin://HOST:PORT, and ?data_port=PORT"
        )
    return MerlinDetector(parts.hostname, command_port, data_port)
