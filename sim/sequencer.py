"""packets of a run, as the board's logic makes them: triggers, shutters, readouts of all chips, and the frame memory.

No clock and no thread: the next frame is made when the host asks for frame bytes and none wait, so that the host's pace
never changes the data; time is the board's own count of nanoseconds. A host that is away for a while is a fault.

# Ref: readout time: 48 OMR clocks, 256 header clocks and 65536 * depth / lines matrix clocks at 120 MHz, which fit the
#      published 70.8, 412, 822 and 1640 us of 1, 6, 12 and 24 bits on 8 lines (Nord 2020).
# Ref: counter 1 is read before counter 0, and the matrix is cleared before a run: excalibur-detector @099951f3
#      `ExcaliburFemClient.cpp` 505-522, `ExcaliburFemClientAsicControl.cpp` 104-130.
# Ref: bursts, gates, de-bounce, and the pause when the memory is full: Merlin manual v0.7 pp. 35-39.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from firmware_iface import chip, wire
from firmware_iface.chip import Mode
from firmware_iface.wire import FaultCode, FrameFlag, TriggerOut, TriggerStart, TriggerStop, WhenFull
from sim.chip import DEPTH_OF_CODE, LINES_OF_CODE, SERIAL_DEPTH, ChipRefused, SimulatedChip
from sim.faults import Delivery, Faults, Hiccup, Way
from sim.triggers import Input, Output

OMR_AND_HEADER_CLOCKS = 48 + 256
READ_MODES = (Mode.READ_COUNTER_0, Mode.READ_COUNTER_1)
_IS_RISING = {1: True, 2: False, 3: True, 4: False}
CONTINUOUS = 1 << chip.OMR_FIELDS["CRW_SRW"].low
_TTL, _LVDS = "TTL", "LVDS"
_LINE_OF_CODE = {1: _TTL, 2: _TTL, 3: _LVDS, 4: _LVDS}
_DELAYED = (TriggerOut.INPUT_TTL_DELAYED, TriggerOut.INPUT_LVDS_DELAYED)
_LINE_OF_SOURCE = {
    TriggerOut.INPUT_TTL: _TTL, TriggerOut.INPUT_TTL_DELAYED: _TTL,
    TriggerOut.INPUT_LVDS: _LVDS, TriggerOut.INPUT_LVDS_DELAYED: _LVDS,
}  # fmt: skip
_DELAY_STEP_NS = 10


class Happening(Enum):
    """What the sequencer does to the board's state."""

    ARMED = auto()
    TRIGGERED = auto()
    BURST_ENDED = auto()
    RUN_ENDED = auto()
    CHIP_FAILED = auto()
    BROWNED_OUT = auto()


class BrownOut(Exception):
    """The supply failed for a moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What START asked for, with the registers as they were then."""

    run_id: int = 0
    n_frames: int = 0
    exposure_ns: int = 0
    period_ns: int = 0
    readouts: tuple[int, ...] = ()
    start_ns: int = 0
    settings: Mapping[str, int]

    @property
    def is_continuous(self) -> bool:
        """Whether one counter counts while the other is read."""
        return bool(self.readouts[0] & CONTINUOUS)

    def readouts_of(self, sequence: int) -> tuple[int, ...]:
        """Return the readouts of one frame: all, or the two counters in turn."""
        return (self.readouts[sequence % 2],) if self.is_continuous else self.readouts

    @property
    def start(self) -> TriggerStart:
        """What opens the shutter."""
        return TriggerStart(self.settings["TRIGGER_START"])

    @property
    def stop(self) -> TriggerStop:
        """What closes the shutter."""
        return TriggerStop(self.settings["TRIGGER_STOP"])


class Sequencer:
    """What takes frames.

    Parameters
    ----------
    chips : sequence of SimulatedChip
    faults : Faults
    inputs : mapping of str to Input
        What is connected to the trigger inputs "TTL" and "LVDS".
    happen : callable of Happening
        Told to the board when it happens.
    """

    def __init__(
        self,
        chips: Sequence[SimulatedChip],
        faults: Faults,
        inputs: Mapping[str, Input],
        happen: Callable[[Happening], None],
    ) -> None:
        self._chips = chips
        self._faults = faults
        self._inputs = inputs
        self._happen = happen
        self._way = Way(faults)
        self.outputs = {_TTL: Output(), _LVDS: Output()}
        self.now_ns = 0
        self.fault = FaultCode.NONE
        self._outbox: deque[memoryview | Hiccup] = deque()
        self._n_made = self._n_dropped = 0  # over the life of the device
        self._n_taken_bytes = 0
        self._is_replugged = False
        self._away: dict[int, int] = dict(faults.slow)
        self.forget()

    # Runs

    def forget(self) -> None:
        """Be as after power-up, but for the time and the faults, which count over the life of the device."""
        self._is_on = self._is_waiting = self._is_stuck = False
        self.run_id = 0
        self.n_done = 0
        self.fault = FaultCode.NONE
        self.empty()

    def start(self, run: Run) -> None:
        """Begin a run, or wait for its trigger.

        Raises
        ------
        ChipRefused
            A chip cannot count in this mode.
        """
        for each in self._chips:
            each.arm(run.readouts[0])
            each.fast_clear()  # continuous read/write begins anew, with counter 1
        self._run = run
        self.run_id, self.n_done = run.run_id, 0
        self._n_in_burst = self._held_ns = 0
        self._burst_ns = self._heard_ns = self._shown_ns = run.start_ns
        self._flags = FrameFlag(0)
        self._is_on = True
        self._is_waiting = run.start is not TriggerStart.INTERNAL
        if self._is_waiting:
            self._happen(Happening.ARMED)

    def stop(self) -> None:
        """End the run; what is in the memory stays to be read."""
        self._is_on = self._is_waiting = self._is_stuck = False
        self._keep(self._way.flush())

    def empty(self) -> None:
        """Throw away what is in the memory and on the way."""
        self._outbox.clear()
        self._way.clear()

    def fire(self) -> None:
        """Trigger by software."""
        self._is_waiting = False
        self._happen(Happening.TRIGGERED)

    def pass_until(self, time_ns: int) -> None:
        """Let time pass outside of runs: not while frames are taken, nor over an edge that a run waits for."""
        if self._is_on and not self._is_stuck:
            line = self._inputs.get(_LINE_OF_CODE.get(self._run.start, ""))
            edge_ns = line.next_edge_ns(self.now_ns, is_rising=_IS_RISING[self._run.start]) if line else None
            if not self._is_waiting or (edge_ns is not None and edge_ns <= time_ns):
                return
        self.now_ns = max(self.now_ns, time_ns)

    def exposure_ns(self, duration_s: float) -> tuple[int, int]:
        """Return from when to when the exposure lasts that the chips are making."""
        return self.now_ns - round(duration_s * 1e9), self.now_ns

    @property
    def n_harmed(self) -> int:
        """How many frames over the life of the device a full memory dropped, or the storm hit."""
        return self._n_dropped + self._way.n_hit

    # The frame endpoint

    @property
    def is_unplugged(self) -> bool:
        """Whether the device has left the bus: it gave all that it may."""
        if self._is_replugged:
            return False
        after, at = self._faults.unplug_after, self._faults.unplug_at
        is_after = after is not None and self._n_made >= after and not self._outbox
        return is_after or (at is not None and self._n_taken_bytes >= at)

    def plug(self) -> None:
        """Come back to the bus for good."""
        self._is_replugged = True

    @property
    def front(self) -> memoryview | Hiccup | None:
        """The transfer that waits, made if a run is on and none waits."""
        while not self._outbox and self._is_on and not self._is_stuck and not self.is_unplugged:
            if self._is_waiting and not self._hear_trigger():
                return None
            self._fill(1 + self._away.pop(self._n_made, 0))
        return self._outbox[0] if self._outbox and not self.is_unplugged else None

    def take(self, n_bytes: int) -> memoryview:
        """Take up to `n_bytes` of the transfer that waits."""
        front = self.front
        if not isinstance(front, memoryview):
            return memoryview(b"")
        if self._faults.unplug_at is not None and not self._is_replugged:
            n_bytes = min(n_bytes, self._faults.unplug_at - self._n_taken_bytes)
        taken, rest = front[:n_bytes], front[n_bytes:]
        self._n_taken_bytes += len(taken)
        if rest:
            self._outbox[0] = rest
        else:
            self._outbox.popleft()
        return taken

    def take_hiccup(self) -> Hiccup | None:
        """Take what comes instead of a transfer, if that is next."""
        front = self.front
        if not isinstance(front, Hiccup):
            return None
        self._outbox.popleft()
        return front

    # Triggers

    def _hear_trigger(self) -> bool:
        """Go on to the next edge on the input that starts, if anything is connected to it."""
        run = self._run
        pulser = self._inputs.get(_LINE_OF_CODE.get(run.start, ""))
        if pulser is None:
            return False
        edge_ns = pulser.next_edge_ns(self.now_ns, is_rising=_IS_RISING[run.start])
        if edge_ns is None:
            return False
        if pulser.n_edges(self._heard_ns, self.now_ns, is_rising=_IS_RISING[run.start]):
            self._flags |= FrameFlag.TRIGGER_MISSED
        self._heard_ns = edge_ns + 1
        delay_ns = run.settings["TRIGGER_DELAY"]
        self.now_ns = edge_ns + delay_ns - delay_ns % _DELAY_STEP_NS
        self._is_waiting = False
        self._happen(Happening.TRIGGERED)
        return True

    def _closing_ns(self, opening_ns: int) -> int | None:
        """Return when the shutter closes; None when it would stay open, for nothing is connected that closes it."""
        run = self._run
        earliest_ns = opening_ns + run.exposure_ns  # with an edge, the exposure time is its de-bounce
        if run.stop is TriggerStop.INTERNAL:
            return earliest_ns
        pulser = self._inputs.get(_LINE_OF_CODE[run.stop])
        return None if pulser is None else pulser.next_edge_ns(earliest_ns, is_rising=_IS_RISING[run.stop])

    # Frames

    def _fill(self, n_frames: int) -> None:
        """Take frames while nobody reads them, as many as there is time for."""
        memory, when_full = self._run.settings["MEMORY_FRAMES"], WhenFull(self._run.settings["WHEN_FULL"])
        began_ns = self.now_ns
        for n in range(n_frames):
            if not self._is_on or self._is_waiting or self._is_stuck or self.is_unplugged:
                return
            if n >= memory:
                if when_full is WhenFull.PAUSE:
                    pause_ns = (self.now_ns - began_ns) * (n_frames - n) // n
                    if self._run.is_continuous:  # a counter always counts, so the frame that is open gets longer
                        self._held_ns = pause_ns
                    else:
                        self.now_ns += pause_ns
                    self._flags |= FrameFlag.PAUSED
                    return
                self._make_frame(is_kept=False)
                self._n_dropped += 1
                self._flags |= FrameFlag.OVERFLOW
            else:
                self._make_frame(is_kept=True)

    def _make_frame(self, *, is_kept: bool) -> None:
        run, number = self._run, self._n_made
        if run.start is TriggerStart.INTERNAL:
            opening_ns = max(self.now_ns, run.start_ns + self.n_done * run.period_ns)
        else:
            if self._n_in_burst == 0:
                self._burst_ns = self.now_ns
                self._flags |= FrameFlag.TRIGGERED
            opening_ns = max(self.now_ns, self._burst_ns + self._n_in_burst * run.period_ns)
        closing_ns = self._closing_ns(opening_ns)
        if closing_ns is None:
            self._is_stuck = True  # the shutter stays open, for an edge that nobody gives
            return
        closing_ns, self._held_ns = closing_ns + self._held_ns, 0
        try:
            packets = self._expose(number, opening_ns, closing_ns - opening_ns)
        except ChipRefused:
            self._fail(FaultCode.CHIP_REFUSED)
            return
        except TimeoutError:
            self._fail(FaultCode.CHIP_SILENT)
            return
        except BrownOut:
            self._n_made += 1
            self.now_ns = 0
            self._happen(Happening.BROWNED_OUT)
            return
        self._n_made += 1
        self.n_done += 1
        self._n_in_burst += 1
        if is_kept:
            self._flags = FrameFlag(0)
            self._keep(self._way.send(number, packets))
        self._show(opening_ns, closing_ns)
        self._end_of_frame()

    def _fail(self, fault: FaultCode) -> None:
        self._n_made += 1  # or it would fail for ever
        self._is_on = False
        self.fault = fault
        self._happen(Happening.CHIP_FAILED)

    def _end_of_frame(self) -> None:
        run = self._run
        if self.n_done == run.n_frames:
            self._is_on = False
            self._keep(self._way.flush())
            self._happen(Happening.RUN_ENDED)
        elif run.start is not TriggerStart.INTERNAL and self._n_in_burst == run.settings["FRAMES_PER_TRIGGER"]:
            self._n_in_burst = 0
            self._is_waiting = True
            self._happen(Happening.BURST_ENDED)

    def _expose(self, number: int, opening_ns: int, exposure_ns: int) -> list[bytes]:
        """Open the shutter of all chips, close it, and return their readouts as packets."""
        run, readouts = self._run, self._run.readouts_of(self.n_done)
        if number in self._faults.brown_out:
            raise BrownOut
        self.now_ns = opening_ns + exposure_ns
        for each in self._chips:
            each.arm(readouts[0])
            if n_pulses := run.settings["TEST_PULSES"]:
                each.pulse(n_pulses)
            each.expose(exposure_ns * 1e-9)
        if number in self._faults.hang:
            raise TimeoutError
        payloads = [(omr, [each.transact(omr, b"") for each in self._chips]) for omr in readouts]
        if not run.is_continuous:
            self.now_ns += sum(readout_time_ns(omr, run.settings["CLOCK"]) for omr in readouts)  # all chips at once
        last = len(readouts) - 1, len(self._chips) - 1
        return [
            self._packet(omr, n_chip, payload, opening_ns, exposure_ns, is_last=(n_readout, n_chip) == last)
            for n_readout, (omr, of_chips) in enumerate(payloads)
            for n_chip, payload in enumerate(of_chips)
        ]

    def _packet(
        self, omr: int, n_chip: int, payload: bytes, opening_ns: int, exposure_ns: int, *, is_last: bool
    ) -> bytes:
        depth, n_lines = depth_and_lines(omr)
        before_crc = wire.FRAME_HEADER.pack(
            wire.FRAME_MAGIC,
            wire.VERSION,
            wire.FRAME_HEADER.size,
            self.run_id,
            self._flags | (FrameFlag.LAST_READOUT if is_last else 0),
            self.n_done,
            opening_ns,
            exposure_ns,
            omr,
            n_chip,
            READ_MODES.index(mode_of(omr)),
            depth,
            n_lines,
            len(payload),
            zlib.crc32(payload),
            0,
        )[: -wire.CRC.size]
        return before_crc + wire.CRC.pack(zlib.crc32(before_crc)) + payload

    def _keep(self, deliveries: list[Delivery]) -> None:
        for each in deliveries:
            if isinstance(each, Hiccup):
                self._outbox.append(each)
            elif each:
                self._outbox.append(memoryview(each))

    def _show(self, opening_ns: int, closing_ns: int) -> None:
        """Let the trigger outputs follow one frame, and the pulses that the inputs had since the one before."""
        run = self._run
        intervals = {
            TriggerOut.SHUTTER: (opening_ns, closing_ns),
            TriggerOut.SHUTTER_AND_READOUT: (opening_ns, self.now_ns),
            TriggerOut.BURST: (self._burst_ns, self.now_ns),
            TriggerOut.BUSY: (run.start_ns, self.now_ns),
        }
        for line, output in self.outputs.items():
            source = TriggerOut(run.settings[f"OUT_{line}"])
            output.show(source, intervals)
            pulser = self._inputs.get(_LINE_OF_SOURCE.get(source, ""))
            if pulser is not None:
                delay_ns = run.settings[f"OUT_{line}_DELAY"] if source in _DELAYED else 0
                for begin_ns, end_ns in pulser.pulses(self._shown_ns, self.now_ns):
                    output.add(begin_ns + delay_ns, end_ns + delay_ns)
        self._shown_ns = self.now_ns


def readout_time_ns(omr: int, clock_khz: int = wire.REGISTERS["CLOCK"].initial) -> int:
    """Return how long the chip takes to shift out one counter."""
    depth, n_lines = depth_and_lines(omr)
    clocks = OMR_AND_HEADER_CLOCKS + chip.ROWS * chip.COLS * depth // n_lines
    return clocks * 1_000_000 // clock_khz


def mode_of(omr: int) -> Mode:
    """Return what a transaction does."""
    return Mode(chip.unpack_register(chip.OMR_FIELDS, omr)["M"])


def depth_and_lines(omr: int) -> tuple[int, int]:
    """Return bit planes and data lines of one readout; the two readouts of a 24-bit counter have 12 planes each."""
    fields = chip.unpack_register(chip.OMR_FIELDS, omr)
    return SERIAL_DEPTH[DEPTH_OF_CODE[fields["CountL"]]], LINES_OF_CODE[fields["PS"]]
