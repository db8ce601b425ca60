"""USB bytes: packets, out of a simulated readout board: commands in, replies and frames out.

A pure state machine: no clock, no thread, no USB. Bytes come in through `receive` in any chunks, replies and frames
wait to be taken. What a run does is the `Sequencer`'s; here are commands, registers and states.

# Ref: 80 V set read as 77.91 V, board 24.7 C, FPGA 39 to 42 C: Merlin manual v0.7, section 12 of its reference.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from firmware_iface import chip, wire
from firmware_iface.chip import Mode
from firmware_iface.wire import (
    BoardState,
    Capability,
    Opcode,
    Status,
    TriggerStart,
    TriggerStop,
)
from sim.chip import ChipRefused, SimulatedChip, bytes_in
from sim.faults import NO_FAULTS, Faults, Hiccup
from sim.sequencer import CONTINUOUS, READ_MODES, Happening, Run, Sequencer, mode_of, readout_time_ns
from sim.triggers import Input, Output

FIRMWARE_VERSION = 2
REFERENCE_C = 35.0
TEMPERATURES_MK: Mapping[str, int] = {
    "TEMPERATURE_BOARD": 308_150,
    "TEMPERATURE_FPGA": 314_150,
    "TEMPERATURE_SENSOR": 303_150,
}
"""What the sensors show when the chips are at REFERENCE_C."""
BIAS_READING_SHARE = 0.974
"""Of the voltage that was set: the supply's series resistor."""
LEAKAGE_NA_PER_V = 1.36
LAYOUTS = frozenset({(1, n) for n in range(1, 9)} | {(2, 2)})
"""(rows, columns) of chips."""

TRANSITIONS: Mapping[tuple[BoardState, Opcode | Happening], BoardState] = {
    **{
        (BoardState.IDLE, opcode): BoardState.IDLE
        for opcode in Opcode
        # the run may have ended while STOP or ABORT was on its way
        if opcode not in {Opcode.START, Opcode.SOFT_TRIGGER}
    },
    (BoardState.IDLE, Opcode.START): BoardState.ACQUIRING,
    (BoardState.IDLE, Happening.ARMED): BoardState.ARMED,  # by a START that waits for a trigger
    **{
        (state, opcode): state
        for state in (BoardState.ACQUIRING, BoardState.ARMED)
        for opcode in (Opcode.GET_INFO, Opcode.GET_STATUS, Opcode.READ_REGISTER, Opcode.AUXILIARY)
    },
    (BoardState.ACQUIRING, Opcode.STOP): BoardState.ACQUIRING,  # until the present frame has ended
    (BoardState.ARMED, Opcode.STOP): BoardState.IDLE,
    **{
        (state, opcode): BoardState.IDLE
        for state in (BoardState.ACQUIRING, BoardState.ARMED)
        for opcode in (Opcode.ABORT, Opcode.RESET)
    },
    (BoardState.ACQUIRING, Happening.BURST_ENDED): BoardState.ARMED,
    (BoardState.ACQUIRING, Happening.RUN_ENDED): BoardState.IDLE,
    (BoardState.ACQUIRING, Happening.CHIP_FAILED): BoardState.FAULT,
    (BoardState.ARMED, Opcode.SOFT_TRIGGER): BoardState.ACQUIRING,
    (BoardState.ARMED, Happening.TRIGGERED): BoardState.ACQUIRING,
    **{
        (BoardState.FAULT, opcode): BoardState.FAULT
        for opcode in (Opcode.GET_INFO, Opcode.GET_STATUS, Opcode.READ_REGISTER, Opcode.STOP, Opcode.ABORT)
    },
    (BoardState.FAULT, Opcode.RESET): BoardState.IDLE,
    **{(state, Happening.BROWNED_OUT): BoardState.IDLE for state in BoardState},
}


def states_diagram() -> str:
    """Return the transitions as a Mermaid diagram; PROTOCOL.md holds the same text."""
    lines = ["stateDiagram-v2", f"    [*] --> {BoardState.IDLE.name}"]
    for state in BoardState:
        targets: dict[BoardState, list[str]] = {}
        for (before, cause), after in TRANSITIONS.items():
            if before is state:
                targets.setdefault(after, []).append(cause.name)
        lines += [f"    {state.name} --> {target.name}: {', '.join(names)}" for target, names in targets.items()]
    return "\n".join(lines)


class _Refused(Exception):
    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Board:
    """The readout board of one chip, or of an assembly of them.

    Parameters
    ----------
    chips : SimulatedChip or sequence of SimulatedChip
        At most 8, by their number.
    auxiliary : callable of str to str or None
        The serial line to the gantry's controllers: one line in, one line out; None where the answer comes later, by
        `answer_line`.
    serial : str
        Serial number, 16 ASCII characters at most.
    faults : Faults
        What happens to the board, and to frames on their way to the host.
    layout : (rows, columns)
        How the chips stand: (1, n) or (2, 2); without it, in one row.
    inputs : mapping of str to Input
        What is connected to the trigger inputs "TTL" and "LVDS".
    on_bias : callable of float
        What the bias supply, in V, is connected to.
    temperature_c : float
        Of the chips; the other sensors follow.
    make_safe : callable
        What the board's line to the interlock does: the beam off, the stage stopped, whatever its controller does.
    """

    def __init__(
        self,
        chips: SimulatedChip | Sequence[SimulatedChip],
        auxiliary: Callable[[str], str | None],
        serial: str,
        faults: Faults = NO_FAULTS,
        *,
        layout: tuple[int, int] | None = None,
        inputs: Mapping[str, Input] | None = None,
        on_bias: Callable[[float], None] = lambda _: None,
        temperature_c: float = REFERENCE_C,
        make_safe: Callable[[], None] = lambda: None,
    ) -> None:
        if not serial.isascii() or len(serial) > 16:
            raise ValueError(f"the serial number is {serial!r}; allowed: 16 ASCII characters at most")
        self._chips = (chips,) if isinstance(chips, SimulatedChip) else tuple(chips)
        self._layout = layout or (1, len(self._chips))
        if self._layout not in LAYOUTS:
            raise ValueError(f"chips stand in {self._layout}; allowed: one row of 1 to 8, or 2 x 2")
        if self._layout[0] * self._layout[1] != len(self._chips):
            raise ValueError(f"{len(self._chips)} chips do not stand in {self._layout}")
        self._auxiliary = auxiliary
        self._serial = serial
        self._on_bias = on_bias
        self.make_safe = make_safe
        warmer_mk = round(1000 * (temperature_c - REFERENCE_C))
        self._temperatures_mk = {name: usual_mk + warmer_mk for name, usual_mk in TEMPERATURES_MK.items()}
        self._commands = bytearray()
        self._replies: deque[bytes] = deque()
        self._line_tag: int | None = None
        """Of the AUXILIARY whose answer is still to come; meanwhile other commands wait."""
        self._n_power_ups = 0
        self._sequencer = Sequencer(self._chips, faults, inputs or {}, self._happened)
        self._power_up()
        self._handlers: Mapping[Opcode, Callable[[bytes], bytes | None]] = {
            Opcode.GET_INFO: self._get_info,
            Opcode.GET_STATUS: self._get_status,
            Opcode.RESET: self._reset,
            Opcode.READ_REGISTER: self._read_register,
            Opcode.WRITE_REGISTER: self._write_register,
            Opcode.CHIP_TRANSACT: self._chip_transact,
            Opcode.FAST_CLEAR: self._fast_clear,
            Opcode.READ_SENSE: self._read_sense,
            Opcode.START: self._start,
            Opcode.STOP: self._stop,
            Opcode.ABORT: self._abort,
            Opcode.SOFT_TRIGGER: self._soft_trigger,
            Opcode.AUXILIARY: self._pass_on,
        }

    @property
    def state(self) -> BoardState:
        """Where the board stands in `TRANSITIONS`."""
        return self._state

    @property
    def now_s(self) -> float:
        """The board's own time."""
        return self._sequencer.now_ns * 1e-9

    @property
    def sequencer(self) -> Sequencer:
        """What takes frames, and keeps the time."""
        return self._sequencer

    @property
    def is_unplugged(self) -> bool:
        """Whether the device has left the bus: it gave all that it may."""
        return self._sequencer.is_unplugged

    @property
    def outputs(self) -> Mapping[str, Output]:
        """What the trigger outputs "TTL" and "LVDS" showed."""
        return self._sequencer.outputs

    @property
    def n_harmed(self) -> int:
        """How many frames over the life of the device a full memory dropped, or the storm hit."""
        return self._sequencer.n_harmed

    def plug(self) -> None:
        """Be put back on the bus for good."""
        self._sequencer.plug()

    def receive(self, data: bytes) -> None:
        """Take bytes of the command endpoint, in any chunks, and answer every command that is complete."""
        self._commands += data
        self._answer_all()

    def answer_line(self, text: str) -> None:
        """Take what the gantry's controllers answer to the line that waits; nothing where none does any more."""
        tag, self._line_tag = self._line_tag, None
        if tag is not None:
            self._reply(Opcode.AUXILIARY, tag, Status.OK, text.encode())
            self._answer_all()

    def abort(self) -> None:
        """End the run at once, beside the commands: those that wait go on waiting."""
        self._state = TRANSITIONS[self._state, Opcode.ABORT]
        self._abort(b"")

    def forget_broken_command(self) -> None:
        """Throw away what came of commands that are not begun: the end of the last may never come.

        A line that nobody has answered is given up, too.
        """
        self._commands.clear()
        self._line_tag = None

    def pending_reply_bytes(self) -> int:
        """Return how many bytes of the oldest reply wait."""
        return len(self._replies[0]) if self._replies else 0

    def take_reply_bytes(self, n: int) -> bytes:
        """Take up to `n` bytes of the oldest reply; a reply is one transfer."""
        if not self._replies:
            return b""
        reply = self._replies.popleft()
        if len(reply) > n:
            self._replies.appendleft(reply[n:])
        return reply[:n]

    @property
    def has_hiccup(self) -> bool:
        """Whether the frame endpoint has something else to do before it gives bytes."""
        return isinstance(self._sequencer.front, Hiccup)

    def take_hiccup(self) -> Hiccup | None:
        """Take what the frame endpoint does before it gives bytes; None most of the time."""
        return self._sequencer.take_hiccup()

    def pending_frame_bytes(self) -> int:
        """Return how many bytes of one frame wait; makes the frame if a run is on and none waits."""
        front = self._sequencer.front
        return len(front) if isinstance(front, memoryview) else 0

    def take_frame_bytes(self, n: int) -> memoryview:
        """Take up to `n` bytes of one frame; a frame is one transfer."""
        return self._sequencer.take(n)

    # Commands

    def _answer_all(self) -> None:
        while self._line_tag is None and self._answer_next():
            pass

    def _answer_next(self) -> bool:
        """Answer the oldest command in the buffer; False when it is not complete yet."""
        start = self._commands.find(wire.COMMAND_MAGIC)
        if start < 0:  # the last byte may be half a magic word
            start = max(len(self._commands) - len(wire.COMMAND_MAGIC) + 1, 0)
        del self._commands[:start]
        if len(self._commands) < wire.COMMAND_HEADER.size:
            return False
        _, version, opcode, tag, _, n_payload = wire.COMMAND_HEADER.unpack_from(self._commands)
        if n_payload > wire.MAX_COMMAND_PAYLOAD_BYTES:
            del self._commands[: len(wire.COMMAND_MAGIC)]  # this length is not to be trusted: look for the next magic
            reason = f"a payload of {n_payload} bytes; allowed: {wire.MAX_COMMAND_PAYLOAD_BYTES}"
            self._reply(opcode, tag, Status.BAD_LENGTH, reason.encode())
            return True
        end = wire.COMMAND_HEADER.size + n_payload
        if len(self._commands) < end + wire.CRC.size:
            return False
        packet = bytes(self._commands[:end])
        (crc,) = wire.CRC.unpack_from(self._commands, end)
        del self._commands[: end + wire.CRC.size]
        try:
            if crc != zlib.crc32(packet):
                raise _Refused(Status.BAD_CRC, "the command was damaged on its way")
            payload = self._obey(version, opcode, packet[wire.COMMAND_HEADER.size :])
        except _Refused as refusal:
            self._reply(opcode, tag, refusal.status, str(refusal).encode())
        except ChipRefused as refusal:
            self._reply(opcode, tag, Status.CHIP_REFUSED, str(refusal).encode())
        else:
            if payload is None:
                self._line_tag = tag
            else:
                self._reply(opcode, tag, Status.OK, payload)
        return True

    def _obey(self, version: int, opcode: int, payload: bytes) -> bytes | None:
        if version != wire.VERSION or opcode not in self._handlers:
            known = ", ".join(f"{code:#04x}" for code in Opcode)
            raise _Refused(
                Status.UNKNOWN_OPCODE,
                f"opcode {opcode:#04x} of version {version}; allowed: {known} of version {wire.VERSION}",
            )
        after = TRANSITIONS.get((self._state, Opcode(opcode)))
        if after is None:
            raise _Refused(Status.NOT_ALLOWED, f"{Opcode(opcode).name} is not allowed while {self._state.name}")
        before = self._state
        answer = self._handlers[Opcode(opcode)](payload)
        if self._state is before:  # else the handler knew better
            self._state = after
        return answer

    def _reply(self, opcode: int, tag: int, status: Status, payload: bytes) -> None:
        header = wire.REPLY_HEADER.pack(wire.REPLY_MAGIC, wire.VERSION, opcode, tag, status, len(payload))
        self._replies.append(header + payload + wire.CRC.pack(zlib.crc32(header + payload)))

    def _power_up(self) -> None:
        self._n_power_ups = (self._n_power_ups + 1) % (1 << 16)
        self._state = BoardState.IDLE
        self._line_tag = None
        self._registers = {name: each.initial for name, each in wire.REGISTERS.items() if each.is_writable}
        self._on_bias(self._registers["BIAS"] / 1000)
        self._sequencer.forget()

    def _happened(self, happening: Happening) -> None:
        self._state = TRANSITIONS[self._state, happening]
        if happening is Happening.BROWNED_OUT:
            for each in self._chips:
                each.reset()
            self._power_up()

    def _get_info(self, payload: bytes) -> bytes:
        _expect_length(payload, 0)
        most_lines, serial = max(chip.LINES_CODES), self._serial.encode()
        return wire.INFO.pack(
            FIRMWARE_VERSION, wire.VERSION, len(self._chips), most_lines, *self._layout, self._capabilities, serial
        )

    @property
    def _capabilities(self) -> Capability:
        return Capability(sum(Capability))

    def _get_status(self, payload: bytes) -> bytes:
        _expect_length(payload, 0)
        sequencer = self._sequencer
        return wire.STATUS.pack(
            self._state,
            sequencer.fault,
            self._n_power_ups,
            sequencer.run_id,
            sequencer.n_done,
            self._temperatures_mk["TEMPERATURE_BOARD"],
            self._registers["BIAS"],
        )

    def _reset(self, payload: bytes) -> bytes:
        """Start again, as after power-up, but for the count of power-ups: the host asked for it."""
        _expect_length(payload, 0)
        for each in self._chips:
            each.reset()
        self._n_power_ups -= 1
        self._power_up()
        return b""

    def _read_register(self, payload: bytes) -> bytes:
        _expect_length(payload, wire.READ_REGISTER.size)
        (address,) = wire.READ_REGISTER.unpack(payload)
        return wire.REGISTER_VALUE.pack(self._register(_register_at(address)))

    def _register(self, name: str) -> int:
        if name in self._registers:
            return self._registers[name]
        bias_mv = self._registers["BIAS"]
        told = {
            "FIRMWARE_VERSION": FIRMWARE_VERSION,
            "PROTOCOL_VERSION": wire.VERSION,
            "CAPABILITIES": int(self._capabilities),
            "CHIPS": len(self._chips),
            "POWER_UPS": self._n_power_ups,
            "FAULT_CODE": int(self._sequencer.fault),
            "BIAS_MEASURED": round(bias_mv * BIAS_READING_SHARE),
            "BIAS_CURRENT": round(bias_mv / 1000 * LEAKAGE_NA_PER_V),
            "LINES": max(chip.LINES_CODES),
            **self._temperatures_mk,
        }
        return told[name]

    def _write_register(self, payload: bytes) -> bytes:
        _expect_length(payload, wire.WRITE_REGISTER.size)
        address, value = wire.WRITE_REGISTER.unpack(payload)
        name = _register_at(address)
        register = wire.REGISTERS[name]
        if not register.is_writable:
            raise _Refused(Status.OUT_OF_RANGE, f"{name} cannot be written")
        if not register.lowest <= value <= register.highest:
            raise _Refused(Status.OUT_OF_RANGE, f"{name} of {value}; allowed: {register.lowest} to {register.highest}")
        self._registers[name] = value
        if name == "BIAS":
            self._on_bias(value / 1000)
        return b""

    def _chip_transact(self, payload: bytes) -> bytes:
        omr, chips = self._omr_and_chips(payload)
        _expect_length(payload, wire.CHIP_TRANSACT.size + bytes_in(omr))
        bits = payload[wire.CHIP_TRANSACT.size :]
        answers = [each.transact(omr, bits) for each in chips]
        return answers[0] if len(answers) == 1 else b""

    def _read_sense(self, payload: bytes) -> bytes:
        omr, chips = self._omr_and_chips(payload)
        _expect_length(payload, wire.CHIP_TRANSACT.size)
        if len(chips) != 1:
            raise _Refused(Status.OUT_OF_RANGE, "all chips; allowed: one, for each has its own pad")
        if mode_of(omr) is not Mode.READ_DACS:
            raise _Refused(Status.OUT_OF_RANGE, f"mode {mode_of(omr).name}; allowed: READ_DACS, which changes nothing")
        chips[0].transact(omr, b"")
        return wire.SENSE.pack(round(chips[0].sense_voltage_v() * 1e6))

    def _omr_and_chips(self, payload: bytes) -> tuple[int, Sequence[SimulatedChip]]:
        if len(payload) < wire.CHIP_TRANSACT.size:
            raise _Refused(Status.BAD_LENGTH, f"{len(payload)} bytes; allowed: OMR and chip, {wire.CHIP_TRANSACT.size}")
        omr, number = wire.CHIP_TRANSACT.unpack_from(payload)
        _expect_omr(omr)
        if number != wire.ALL_CHIPS and number >= len(self._chips):
            raise _Refused(Status.OUT_OF_RANGE, f"chip {number}; allowed: 0 to {len(self._chips) - 1}, or 255 for all")
        return omr, self._chips if number == wire.ALL_CHIPS else self._chips[number : number + 1]

    def _fast_clear(self, payload: bytes) -> bytes:
        _expect_length(payload, 0)
        for each in self._chips:
            each.fast_clear()
        return b""

    def _start(self, payload: bytes) -> bytes:
        if len(payload) < wire.START.size:
            raise _Refused(Status.BAD_LENGTH, f"{len(payload)} bytes; allowed: {wire.START.size} and the OMRs")
        run_id, n_frames, exposure_ns, period_ns, n_readouts = wire.START.unpack_from(payload)
        _expect_length(payload, wire.START.size + n_readouts * wire.OMR.size)
        readouts = tuple(omr for (omr,) in wire.OMR.iter_unpack(payload[wire.START.size :]))
        _expect_readouts(readouts)
        run = Run(
            run_id=run_id,
            n_frames=n_frames,
            exposure_ns=exposure_ns,
            period_ns=period_ns,
            readouts=readouts,
            start_ns=self._sequencer.now_ns,
            settings=dict(self._registers),
        )
        _expect_timing(run)
        self._sequencer.start(run)
        return b""

    def _stop(self, payload: bytes) -> bytes:
        """End the run; a frame is made at once, so that none is under way, and those that were made stay to be read."""
        _expect_length(payload, 0)
        self._sequencer.stop()
        if self._state is BoardState.ACQUIRING:
            self._happened(Happening.RUN_ENDED)
        return b""

    def _abort(self, payload: bytes) -> bytes:
        _expect_length(payload, 0)
        self._sequencer.stop()
        self._sequencer.empty()
        return b""

    def _soft_trigger(self, payload: bytes) -> bytes:
        _expect_length(payload, 0)
        if self._registers["TRIGGER_START"] != TriggerStart.SOFTWARE:
            raise _Refused(Status.NOT_ALLOWED, "this run waits for an edge, not for SOFT_TRIGGER")
        self._sequencer.fire()
        return b""

    def _pass_on(self, payload: bytes) -> bytes | None:
        try:
            line = payload.decode()
        except UnicodeDecodeError:
            raise _Refused(Status.OUT_OF_RANGE, "the line is not UTF-8 text") from None
        answer = self._auxiliary(line)
        return None if answer is None else answer.encode()


def _register_at(address: int) -> str:
    name = next((name for name, each in wire.REGISTERS.items() if each.address == address), None)
    if name is None:
        raise _Refused(Status.OUT_OF_RANGE, f"there is no register at {address:#06x}")
    return name


def _expect_timing(run: Run) -> None:
    """Refuse a run whose times do not go together."""
    settings = run.settings
    if run.exposure_ns == 0:
        raise _Refused(Status.OUT_OF_RANGE, "an exposure of 0 ns; allowed: 1 ns or more")
    readout_ns = sum(readout_time_ns(omr, settings["CLOCK"]) for omr in run.readouts_of(0))
    shortest_ns = max(run.exposure_ns, readout_ns) if run.is_continuous else run.exposure_ns + readout_ns
    if run.is_continuous and run.exposure_ns < readout_ns:
        raise _Refused(
            Status.OUT_OF_RANGE, f"{run.exposure_ns} ns; allowed: {readout_ns} and more in continuous read/write"
        )
    if 0 < run.period_ns < shortest_ns:
        raise _Refused(Status.OUT_OF_RANGE, f"a period of {run.period_ns} ns; allowed: 0, or {shortest_ns} and more")
    is_gated = run.stop is not TriggerStop.INTERNAL
    if is_gated and run.start is not TriggerStart.INTERNAL and settings["FRAMES_PER_TRIGGER"] != 1:
        raise _Refused(Status.OUT_OF_RANGE, "a burst of gates; allowed: FRAMES_PER_TRIGGER 1 with a TRIGGER_STOP")
    pulses_ns = settings["TEST_PULSES"] * settings["TEST_PULSE_PERIOD"]
    if pulses_ns > run.exposure_ns:
        raise _Refused(
            Status.OUT_OF_RANGE, f"test pulses of {pulses_ns} ns in {run.exposure_ns} ns; allowed: within the exposure"
        )


def _expect_length(payload: bytes, n_bytes: int) -> None:
    if len(payload) != n_bytes:
        raise _Refused(Status.BAD_LENGTH, f"a payload of {len(payload)} bytes; allowed: {n_bytes}")


def _expect_omr(omr: int) -> None:
    if omr >> chip.OMR_BITS:
        raise _Refused(Status.OUT_OF_RANGE, f"the OMR is {omr:#x}; allowed: {chip.OMR_BITS} bits")


def _expect_readouts(readouts: tuple[int, ...]) -> None:
    """Refuse a list of readouts that is no frame: one or both counters, once each, in one mode of the chip."""
    for omr in readouts:
        _expect_omr(omr)
        if mode_of(omr) not in READ_MODES:
            raise _Refused(Status.OUT_OF_RANGE, f"a readout has mode {mode_of(omr).name}; allowed: reading a counter")
    if not readouts or len(set(readouts)) < len(readouts) or len({omr >> 3 for omr in readouts}) > 1:
        raise _Refused(Status.OUT_OF_RANGE, "the readouts; allowed: one or both counters, once each, in the same mode")
    if readouts[0] & CONTINUOUS and [mode_of(omr) for omr in readouts] != [Mode.READ_COUNTER_1, Mode.READ_COUNTER_0]:
        raise _Refused(Status.OUT_OF_RANGE, "the readouts; allowed in continuous read/write: counter 1, then counter 0")
