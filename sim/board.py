"""USB bytes: packets, out of a simulated readout board: commands in, replies and frames out.

A pure state machine: no clock, no thread, no USB. Bytes come in through `receive` in any chunks, replies and frames
wait to be taken. A running acquisition makes its next frame when the host asks for frame bytes and none wait, so that
the host's pace never changes the data; time is the board's own count of nanoseconds.

# Ref: readout time: 48 OMR clocks, 256 header clocks and 65536 * depth / lines matrix clocks at 120 MHz, which fit the
#      published 70.8, 412, 822 and 1640 us of 1, 6, 12 and 24 bits on 8 lines (Nord 2020).
# Ref: counter 1 is read before counter 0, and the matrix is cleared before a run: excalibur-detector @099951f3
#      `ExcaliburFemClient.cpp` 505-522, `ExcaliburFemClientAsicControl.cpp` 104-130.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from firmware_iface import chip, wire
from firmware_iface.chip import Mode
from firmware_iface.wire import BoardState, Capability, FrameFlag, Opcode, Status
from sim.chip import BYTES_IN, DEPTH_OF_CODE, LINES_OF_CODE, SERIAL_DEPTH, ChipRefused, SimulatedChip
from sim.faults import NO_FAULTS, Faults

FIRMWARE_VERSION = 1
CLOCK_MHZ = 120
OMR_AND_HEADER_CLOCKS = 48 + 256
BIAS_LIMIT_MV = 1_000_000
TEMPERATURE_MK = 308_150
READ_MODES = (Mode.READ_COUNTER_0, Mode.READ_COUNTER_1)


class Event(Enum):
    """What happens to the board besides commands."""

    RUN_ENDED = auto()
    CHIP_FAILED = auto()


TRANSITIONS: Mapping[tuple[BoardState, Opcode | Event], BoardState] = {
    (BoardState.IDLE, Opcode.GET_INFO): BoardState.IDLE,
    (BoardState.IDLE, Opcode.GET_STATUS): BoardState.IDLE,
    (BoardState.IDLE, Opcode.RESET): BoardState.IDLE,
    (BoardState.IDLE, Opcode.CHIP_TRANSACT): BoardState.IDLE,
    (BoardState.IDLE, Opcode.FAST_CLEAR): BoardState.IDLE,
    (BoardState.IDLE, Opcode.START): BoardState.ACQUIRING,
    (BoardState.IDLE, Opcode.STOP): BoardState.IDLE,  # the run may have ended while the command was on its way
    (BoardState.IDLE, Opcode.ABORT): BoardState.IDLE,
    (BoardState.IDLE, Opcode.SET_BIAS): BoardState.IDLE,
    (BoardState.IDLE, Opcode.AUXILIARY): BoardState.IDLE,
    (BoardState.ACQUIRING, Opcode.GET_INFO): BoardState.ACQUIRING,
    (BoardState.ACQUIRING, Opcode.GET_STATUS): BoardState.ACQUIRING,
    (BoardState.ACQUIRING, Opcode.AUXILIARY): BoardState.ACQUIRING,
    (BoardState.ACQUIRING, Opcode.STOP): BoardState.IDLE,
    (BoardState.ACQUIRING, Opcode.ABORT): BoardState.IDLE,
    (BoardState.ACQUIRING, Opcode.RESET): BoardState.IDLE,
    (BoardState.ACQUIRING, Event.RUN_ENDED): BoardState.IDLE,
    (BoardState.ACQUIRING, Event.CHIP_FAILED): BoardState.FAULT,
    (BoardState.FAULT, Opcode.GET_INFO): BoardState.FAULT,
    (BoardState.FAULT, Opcode.GET_STATUS): BoardState.FAULT,
    (BoardState.FAULT, Opcode.RESET): BoardState.IDLE,
}


class _Refused(Exception):
    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    run_id: int
    n_frames: int
    exposure_ns: int
    period_ns: int
    readouts: tuple[int, ...]
    start_ns: int


class Board:
    """The readout board of one chip.

    Parameters
    ----------
    chip_ : SimulatedChip
    auxiliary : callable of str to str
        The serial line to the gantry's controllers: one line in, one line out.
    serial : str
        Serial number, 16 ASCII characters at most.
    faults : Faults
        What happens to frames on their way to the host.
    """

    def __init__(
        self,
        chip_: SimulatedChip,
        auxiliary: Callable[[str], str],
        serial: str,
        faults: Faults = NO_FAULTS,
    ) -> None:
        if not serial.isascii() or len(serial) > 16:
            raise ValueError(f"the serial number is {serial!r}; allowed: 16 ASCII characters at most")
        self._chip = chip_
        self._auxiliary = auxiliary
        self._serial = serial
        self._faults = faults
        self._commands = bytearray()
        self._replies: deque[bytes] = deque()
        self._frame = memoryview(b"")
        self._n_frames_made = 0
        self._now_ns = 0
        self._power_up()
        self._handlers: Mapping[Opcode, Callable[[bytes], bytes]] = {
            Opcode.GET_INFO: self._get_info,
            Opcode.GET_STATUS: self._get_status,
            Opcode.RESET: self._reset,
            Opcode.CHIP_TRANSACT: self._chip_transact,
            Opcode.FAST_CLEAR: self._fast_clear,
            Opcode.START: self._start,
            Opcode.STOP: self._stop,
            Opcode.ABORT: self._abort,
            Opcode.SET_BIAS: self._set_bias,
            Opcode.AUXILIARY: self._pass_on,
        }

    @property
    def state(self) -> BoardState:
        """Where the board stands in `TRANSITIONS`."""
        return self._state

    @property
    def is_unplugged(self) -> bool:
        """Whether the device has left the bus: it made all the frames it may, and they were read."""
        return not self._frame and self._faults.is_unplugged(self._n_frames_made)

    def receive(self, data: bytes) -> None:
        """Take bytes of the command endpoint, in any chunks, and answer every command that is complete."""
        self._commands += data
        while self._answer_next():
            pass

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

    def pending_frame_bytes(self) -> int:
        """Return how many bytes of one frame wait; makes the frame if a run is on and none waits."""
        while not self._frame and self._state is BoardState.ACQUIRING and not self.is_unplugged:
            self._make_frame()
        return len(self._frame)

    def take_frame_bytes(self, n: int) -> memoryview:
        """Take up to `n` bytes of one frame; a frame is one transfer."""
        self.pending_frame_bytes()
        taken, self._frame = self._frame[:n], self._frame[n:]
        return taken

    # Commands

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
            self._reply(opcode, tag, Status.OK, payload)
        return True

    def _obey(self, version: int, opcode: int, payload: bytes) -> bytes:
        if version != wire.VERSION or opcode not in self._handlers:
            known = ", ".join(f"{code:#04x}" for code in Opcode)
            raise _Refused(
                Status.UNKNOWN_OPCODE,
                f"opcode {opcode:#04x} of version {version}; allowed: {known} of version {wire.VERSION}",
            )
        after = TRANSITIONS.get((self._state, Opcode(opcode)))
        if after is None:
            raise _Refused(Status.NOT_ALLOWED, f"{Opcode(opcode).name} is not allowed while {self._state.name}")
        answer = self._handlers[Opcode(opcode)](payload)
        self._state = after
        return answer

    def _reply(self, opcode: int, tag: int, status: Status, payload: bytes) -> None:
        header = wire.REPLY_HEADER.pack(wire.REPLY_MAGIC, wire.VERSION, opcode, tag, status, len(payload))
        self._replies.append(header + payload + wire.CRC.pack(zlib.crc32(header + payload)))

    def _power_up(self) -> None:
        self._state = BoardState.IDLE
        self._run = _Run(run_id=0, n_frames=0, exposure_ns=0, period_ns=0, readouts=(), start_ns=0)
        self._n_frames_done = 0
        self._bias_mv = 0

    def _get_info(self, payload: bytes) -> bytes:
        _expect_length(payload, 0)
        capabilities = Capability.AUXILIARY_LINE | Capability.BIAS
        most_lines = max(chip.LINES_CODES)
        return wire.INFO.pack(FIRMWARE_VERSION, wire.VERSION, 1, most_lines, 0, capabilities, self._serial.encode())

    def _get_status(self, payload: bytes) -> bytes:
        _expect_length(payload, 0)
        return wire.STATUS.pack(self._state, 0, 0, self._run.run_id, self._n_frames_done, TEMPERATURE_MK, self._bias_mv)

    def _reset(self, payload: bytes) -> bytes:
        _expect_length(payload, 0)
        self._chip.reset()
        self._frame = memoryview(b"")
        self._power_up()
        return b""

    def _chip_transact(self, payload: bytes) -> bytes:
        if len(payload) < wire.CHIP_TRANSACT.size:
            raise _Refused(Status.BAD_LENGTH, f"{len(payload)} bytes; allowed: an OMR of {wire.CHIP_TRANSACT.size}")
        (omr,) = wire.CHIP_TRANSACT.unpack_from(payload)
        _expect_omr(omr)
        _expect_length(payload, wire.CHIP_TRANSACT.size + BYTES_IN[_mode_of(omr)])
        return self._chip.transact(omr, payload[wire.CHIP_TRANSACT.size :])

    def _fast_clear(self, payload: bytes) -> bytes:
        _expect_length(payload, 0)
        self._chip.fast_clear()
        return b""

    def _start(self, payload: bytes) -> bytes:
        if len(payload) < wire.START.size:
            raise _Refused(Status.BAD_LENGTH, f"{len(payload)} bytes; allowed: {wire.START.size} and the OMRs")
        run_id, n_frames, exposure_ns, period_ns, n_readouts = wire.START.unpack_from(payload)
        _expect_length(payload, wire.START.size + n_readouts * wire.CHIP_TRANSACT.size)
        readouts = tuple(omr for (omr,) in wire.CHIP_TRANSACT.iter_unpack(payload[wire.START.size :]))
        _expect_readouts(readouts)
        if exposure_ns == 0:
            raise _Refused(Status.OUT_OF_RANGE, "an exposure of 0 ns; allowed: 1 ns or more")
        shortest_ns = exposure_ns + sum(map(readout_time_ns, readouts))
        if 0 < period_ns < shortest_ns:
            raise _Refused(Status.OUT_OF_RANGE, f"a period of {period_ns} ns; allowed: 0, or {shortest_ns} and more")
        self._chip.arm(readouts[0])
        self._chip.fast_clear()
        self._run = _Run(
            run_id=run_id,
            n_frames=n_frames,
            exposure_ns=exposure_ns,
            period_ns=period_ns,
            readouts=readouts,
            start_ns=self._now_ns,
        )
        self._n_frames_done = 0
        return b""

    def _stop(self, payload: bytes) -> bytes:
        """End the run; a frame of which the host has read a part is already whole, and stays to be read."""
        _expect_length(payload, 0)
        return b""

    def _abort(self, payload: bytes) -> bytes:
        _expect_length(payload, 0)
        self._frame = memoryview(b"")
        return b""

    def _set_bias(self, payload: bytes) -> bytes:
        _expect_length(payload, wire.SET_BIAS.size)
        (bias_mv,) = wire.SET_BIAS.unpack(payload)
        if abs(bias_mv) > BIAS_LIMIT_MV:
            raise _Refused(Status.OUT_OF_RANGE, f"a bias of {bias_mv} mV; allowed: {BIAS_LIMIT_MV} mV either way")
        self._bias_mv = bias_mv
        return b""

    def _pass_on(self, payload: bytes) -> bytes:
        try:
            line = payload.decode()
        except UnicodeDecodeError:
            raise _Refused(Status.OUT_OF_RANGE, "the line is not UTF-8 text") from None
        return self._auxiliary(line).encode()

    # Frames

    def _make_frame(self) -> None:
        run = self._run
        opening_ns = max(self._now_ns, run.start_ns + self._n_frames_done * run.period_ns)
        self._now_ns = opening_ns + run.exposure_ns
        try:
            self._chip.arm(run.readouts[0])
            self._chip.expose(run.exposure_ns * 1e-9)
            frame = b"".join(self._readout_packet(omr, opening_ns) for omr in run.readouts)
        except ChipRefused:
            self._state = TRANSITIONS[self._state, Event.CHIP_FAILED]
            return
        self._frame = memoryview(self._faults.spoil(self._n_frames_made, frame))
        self._n_frames_made += 1
        self._n_frames_done += 1
        if self._n_frames_done == run.n_frames:
            self._state = TRANSITIONS[self._state, Event.RUN_ENDED]

    def _readout_packet(self, omr: int, opening_ns: int) -> bytes:
        payload = self._chip.transact(omr, b"")
        self._now_ns += readout_time_ns(omr)
        is_last = omr == self._run.readouts[-1]
        depth, n_lines = _depth_and_lines(omr)
        before_crc = wire.FRAME_HEADER.pack(
            wire.FRAME_MAGIC,
            wire.VERSION,
            wire.FRAME_HEADER.size,
            self._run.run_id,
            FrameFlag.LAST_READOUT if is_last else 0,
            self._n_frames_done,
            opening_ns,
            self._run.exposure_ns,
            omr,
            0,  # the one chip
            READ_MODES.index(_mode_of(omr)),
            depth,
            n_lines,
            len(payload),
            zlib.crc32(payload),
            0,
        )[: -wire.CRC.size]
        return before_crc + wire.CRC.pack(zlib.crc32(before_crc)) + payload


def readout_time_ns(omr: int) -> int:
    """Return how long the chip takes to shift out one counter."""
    depth, n_lines = _depth_and_lines(omr)
    clocks = OMR_AND_HEADER_CLOCKS + chip.ROWS * chip.COLS * depth // n_lines
    return clocks * 1000 // CLOCK_MHZ


def _mode_of(omr: int) -> Mode:
    return Mode(chip.unpack_register(chip.OMR_FIELDS, omr)["M"])


def _depth_and_lines(omr: int) -> tuple[int, int]:
    """Return bit planes and data lines of one readout; the two readouts of a 24-bit counter have 12 planes each."""
    fields = chip.unpack_register(chip.OMR_FIELDS, omr)
    return SERIAL_DEPTH[DEPTH_OF_CODE[fields["CountL"]]], LINES_OF_CODE[fields["PS"]]


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
        if _mode_of(omr) not in READ_MODES:
            raise _Refused(Status.OUT_OF_RANGE, f"a readout has mode {_mode_of(omr).name}; allowed: reading a counter")
    if not readouts or len(set(readouts)) < len(readouts) or len({omr >> 3 for omr in readouts}) > 1:
        raise _Refused(Status.OUT_OF_RANGE, "the readouts; allowed: one or both counters, once each, in the same mode")
