"""The detector as its users see it: configure, load, and iterate over frames.

One thread may iterate over frames while others ask for the status, send lines to the gantry, stop or abort. Only the
iterator reads the stream of frames and only it ends a run, so no run's frames get into another.

# Ref: half-matrix loads with RowBlock 7 and CSM off, thresholds sent again as 511 and then their value: medipix3rx
#      reference 5.2, from DiamondLightSource/excalibur-detector @099951f3 `ExcaliburFemClientMpx3.cpp` 556-650 and
#      MARS `marscamera.py` (load_config, resend_threshold_dacs).
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firmware_iface import chip, wire
from firmware_iface.bitplanes import colour_planes, decode_matrix, raw_matrix
from firmware_iface.chip import Mode
from firmware_iface.codec import (
    FrameDecoder,
    Readout,
    Reply,
    ReplyDecoder,
    chip_name,
    decode_dacs,
    efuse_word,
    encode_command,
    encode_dacs,
    encode_pixels,
)
from firmware_iface.configuration import N_LINES, Configuration, PixelConfiguration
from firmware_iface.errors import (
    DetectorError,
    Disconnected,
    OurMistake,
    TheirMistake,
    TransportError,
    TransportTimeout,
)
from firmware_iface.frame import Frame, Lost
from firmware_iface.transport import Transport, open_transport
from firmware_iface.wire import BoardState, Capability, FrameFlag, Opcode, Status

READ_BYTES = 1 << 20
REPLY_TIMEOUT_S = 5.0
LINE_TIMEOUT_S = 120.0
"""A line to the gantry is answered when the stage has arrived."""
SILENCE_S = 5.0
"""How much longer than an exposure a running board may be silent."""
_POLL_S = 0.25  # a blocked read hears no Ctrl-C, so it must be short
_DRAIN_S = 0.05
_MAX_DRAIN_READS = 64
_STATUS_NAMES: Mapping[int, str] = {status.value: status.name for status in Status}
_OUR_MISTAKES = {Status.NOT_ALLOWED, Status.BUSY, Status.OUT_OF_RANGE}


class State(Enum):
    """Where the detector stands, as the host knows it."""

    DISCONNECTED = auto()
    IDLE = auto()
    ACQUIRING = auto()
    STOPPING = auto()
    ABORTING = auto()


class Action(Enum):
    """What may be asked of it, or happen to it."""

    CONNECT = auto()
    ASK = auto()
    CONFIGURE = auto()
    ACQUIRE = auto()
    STOP = auto()
    ABORT = auto()
    END_RUN = auto()
    CLOSE = auto()
    LOSE = auto()


_ALWAYS = (Action.CLOSE, Action.LOSE)
_RUNNING: Mapping[Action, State] = {
    Action.STOP: State.STOPPING,
    Action.ABORT: State.ABORTING,
    Action.END_RUN: State.IDLE,
    **dict.fromkeys(_ALWAYS, State.DISCONNECTED),
}
TRANSITIONS: Mapping[State, Mapping[Action, State]] = {
    State.DISCONNECTED: {Action.CONNECT: State.IDLE, **dict.fromkeys(_ALWAYS, State.DISCONNECTED)},
    State.IDLE: {
        Action.ASK: State.IDLE,
        Action.CONFIGURE: State.IDLE,
        Action.ACQUIRE: State.ACQUIRING,
        Action.STOP: State.IDLE,  # the run may have ended while the stop was on its way
        Action.ABORT: State.IDLE,
        **dict.fromkeys(_ALWAYS, State.DISCONNECTED),
    },
    State.ACQUIRING: {Action.ASK: State.ACQUIRING, **_RUNNING},
    State.STOPPING: {Action.ASK: State.STOPPING, **_RUNNING},
    State.ABORTING: {Action.ASK: State.ABORTING, **_RUNNING, Action.STOP: State.ABORTING},
}


def states_diagram() -> str:
    """Return the transitions as a Mermaid diagram; PROTOCOL.md holds the same text."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.DISCONNECTED.name}"]
    for state, actions in TRANSITIONS.items():
        for target in dict.fromkeys(actions.values()):
            names = ", ".join(action.name for action, to in actions.items() if to is target)
            lines.append(f"    {state.name} --> {target.name}: {names}")
    return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInfo:
    """What the board says of itself."""

    serial: str
    firmware_version: int
    protocol_version: int
    n_chips: int
    n_lines: int
    capabilities: Capability


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceStatus:
    """How the board is."""

    state: BoardState
    run_id: int
    n_frames_done: int
    temperature_k: float
    bias_v: float


class Detector:
    """A photon-counting detector with one Medipix3RX behind a transport.

    Attributes
    ----------
    info : DeviceInfo
    configuration : Configuration
        The one in force; the default until `configure` is called.
    dacs : dict of str to int
        All DACs as they will be, or are, in the chip.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._lock = threading.RLock()  # one command and its reply at a time
        self._replies = ReplyDecoder()
        self._tag = 0
        self._state = State.DISCONNECTED
        self._dacs = dict(chip.DEFAULT_DACS)
        self._has_dacs = self._has_pixels = False
        self.configuration = Configuration()
        try:
            self._do(Action.CONNECT)
            self.info = self._connect()
        except BaseException:
            transport.close()
            raise

    # What it is, and how it is

    @property
    def state(self) -> State:
        """Where the detector stands in `TRANSITIONS`."""
        return self._state

    @property
    def dacs(self) -> dict[str, int]:
        """All DACs as they will be, or are, in the chip."""
        return dict(self._dacs)

    def status(self) -> DeviceStatus:
        """Ask the board how it is; allowed during a run."""
        self._do(Action.ASK)
        state, _, _, run_id, n_done, temperature_mk, bias_mv = self._ask(Opcode.GET_STATUS, wire.STATUS)
        return DeviceStatus(
            state=BoardState(state),
            run_id=run_id,
            n_frames_done=n_done,
            temperature_k=temperature_mk / 1000,
            bias_v=bias_mv / 1000,
        )

    def chip_id(self) -> str:
        """Return the name burnt into the chip, such as W529_F5."""
        self._do(Action.CONFIGURE)
        efuse = efuse_word(self._transact(Mode.READ_EFUSE, n_reply_bytes=chip.EFUSE_HEADER_BYTES))
        if efuse == 0:
            raise TheirMistake("the chip's e-fuses read 0", hint="check that the chip is bonded and powered")
        return chip_name(efuse)

    def auxiliary(self, line: str) -> str:
        """Send a line of text to the gantry's controllers and return the line that they answer."""
        self._do(Action.ASK)
        self._expect_capability(Capability.AUXILIARY_LINE, "a line to a gantry")
        return self._exchange(Opcode.AUXILIARY, line.encode()).decode(errors="replace")

    # Settings

    def configure(self, configuration: Configuration) -> None:
        """Choose how the chip counts, from the next run on."""
        self._do(Action.CONFIGURE)
        self.configuration = configuration

    def set_dacs(self, dacs: Mapping[str, int]) -> None:
        """Set some DACs by name; the others keep their value.

        Raises
        ------
        ValueError
            The chip has no such DAC, or the value does not fit it.
        """
        self._do(Action.CONFIGURE)
        merged = self._dacs | dict(dacs)
        self._transact(Mode.SET_DACS, encode_dacs(merged))
        self._dacs = merged
        self._has_dacs = True

    def read_dacs(self) -> dict[str, int]:
        """Read all DAC codes back from the chip."""
        self._do(Action.CONFIGURE)
        return decode_dacs(self._transact(Mode.READ_DACS, n_reply_bytes=chip.DAC_REGISTER_BITS // 8))

    def load_pixels(self, pixels: PixelConfiguration) -> None:
        """Load masks and trims into the pixels.

        Charge summing is off meanwhile, and the thresholds are sent again afterwards, first as 511: the chip needs it.
        """
        self._do(Action.CONFIGURE)
        for half in encode_pixels(pixels.words):
            self._transact(
                Mode.LOAD_COUNTER_1,
                half,
                RowBlock=chip.ROW_BLOCK_HALF_LOAD,
                CSM_SPM=0,
                CountL=chip.DEPTH_CODES[chip.PIXEL_BITS],
            )
        self._has_pixels = True
        high = {name: (1 << place.width) - 1 for name, place in chip.DAC_FIELDS.items() if name.startswith("Threshold")}
        self._transact(Mode.SET_DACS, encode_dacs(self._dacs | high))
        self.set_dacs({})

    def read_pixels(self) -> NDArray[np.uint16]:
        """Read counter 1 back as it is: right after `load_pixels`, the words that were loaded; (256, 256) uint16."""
        self._do(Action.CONFIGURE)
        n_bytes = chip.ROWS * chip.COLS * chip.PIXEL_BITS // 8
        bits = self._transact(
            Mode.READ_COUNTER_1, n_reply_bytes=n_bytes, CountL=chip.DEPTH_CODES[chip.PIXEL_BITS], InfoHeader=0
        )
        return raw_matrix(bits, chip.PIXEL_BITS, N_LINES)

    def set_bias(self, v: float) -> None:
        """Set the sensor's bias voltage, in V; negative for electron collection."""
        self._do(Action.CONFIGURE)
        self._expect_capability(Capability.BIAS, "a bias supply")
        self._exchange(Opcode.SET_BIAS, wire.SET_BIAS.pack(round(v * 1000)))

    # Runs

    def frames(self, n_frames: int, exposure_s: float) -> Iterator[Frame | Lost]:
        """Take frames.

        Parameters
        ----------
        n_frames : int
            How many; 0 to go on until `stop`.
        exposure_s : float
            How long the shutter is open for each, in s.

        Yields
        ------
        Frame or Lost
            In the order of the run, every frame once, whole or lost. The run starts at the first; closing the iterator
            early aborts it.

        Raises
        ------
        TransportTimeout
            The board says that it runs, and nothing comes.
        """
        exposure_ns = round(exposure_s * 1e9)
        if n_frames < 0 or exposure_ns < 1:
            raise ValueError(f"{n_frames} frames of {exposure_s} s; allowed: 0 or more, of at least 1 ns")
        self._expect(Action.ACQUIRE)
        return self._run(n_frames, exposure_ns)

    def stop(self) -> None:
        """End the run after the present frame; the iterator gives what was taken, and ends."""
        self._end_early(Action.STOP, Opcode.STOP)

    def abort(self) -> None:
        """End the run now; the iterator ends, and frames under way are thrown away."""
        self._end_early(Action.ABORT, Opcode.ABORT)

    def close(self) -> None:
        """Abort what runs and give the device back; a second call does nothing."""
        if self._state in {State.ACQUIRING, State.STOPPING}:
            with suppress(TransportError, TheirMistake):  # it is going away anyhow
                self.abort()
        with self._lock:
            self._do(Action.CLOSE)
            self._transport.close()

    def __enter__(self) -> Detector:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, n_frames: int, exposure_ns: int) -> Iterator[Frame | Lost]:
        # What an earlier session left in the chip is not known, so nothing is taken for granted.
        if not self._has_pixels:
            self.load_pixels(PixelConfiguration())
        elif not self._has_dacs:
            self.set_dacs({})
        configuration = self.configuration
        run_id = (self.status().run_id + 1) % (1 << 32)
        omrs = configuration.readouts
        start = wire.START.pack(run_id, n_frames, exposure_ns, 0, len(omrs))
        decoder = FrameDecoder(run_id, n_frames, len(omrs))
        self._do(Action.ACQUIRE)
        try:
            self._exchange(Opcode.START, start + b"".join(map(wire.CHIP_TRANSACT.pack, omrs)))
            for item in self._items(decoder, n_frames, exposure_ns):
                yield item if isinstance(item, Lost) else _frame_of(item, omrs, configuration)
        except BaseException:  # also a closed iterator and Ctrl-C: the device must stay usable
            self._abandon_run()
            raise
        finally:
            if self._state is not State.DISCONNECTED:
                self._do(Action.END_RUN)

    def _items(self, decoder: FrameDecoder, n_frames: int, exposure_ns: int) -> Iterator[tuple[Readout, ...] | Lost]:
        silence_s = exposure_ns * 1e-9 + SILENCE_S
        heard_at_s = time.monotonic()
        while not decoder.is_complete:
            data = self._read_frames(_POLL_S)
            if data:
                heard_at_s = time.monotonic()
                yield from decoder.receive(data)
                continue
            status = self.status()
            if status.state is BoardState.FAULT:
                raise TheirMistake(
                    "the board ended the run in a fault", hint="open the detector again: that resets the board"
                )
            if status.state is BoardState.IDLE:
                while data := self._read_frames(_DRAIN_S):  # what came between the read and the status
                    yield from decoder.receive(data)
                if self._state is not State.ABORTING:
                    n_done = status.n_frames_done
                    yield from decoder.finish(n_done if self._state is State.STOPPING or n_frames == 0 else n_frames)
                return
            if time.monotonic() - heard_at_s > silence_s:
                raise TransportTimeout(
                    f"no frame came for {silence_s:.3g} s, and the board says that it acquires",
                    hint="check the cable, and that nothing else reads from the device",
                )

    def _abandon_run(self) -> None:
        """Leave no run on the board and no frames on the way, as far as the transport still can."""
        if self._state is State.DISCONNECTED:
            return
        # What ended the run is what the caller must hear of; frames of this run id will be skipped anyhow.
        with suppress(DetectorError):
            self._exchange(Opcode.ABORT)
            self._drain()

    def _drain(self) -> None:
        for _ in range(_MAX_DRAIN_READS):
            if not self._read_frames(_DRAIN_S):
                return

    def _end_early(self, action: Action, opcode: Opcode) -> None:
        with self._lock:
            is_running = self._state is not State.IDLE
            self._do(action)
            if is_running:
                self._exchange(opcode)

    # Below: commands, replies and states

    def _connect(self) -> DeviceInfo:
        fields = self._ask(Opcode.GET_INFO, wire.INFO)
        firmware, protocol, n_chips, n_lines, _, capabilities, serial = fields
        if protocol != wire.VERSION:
            raise TheirMistake(
                f"the board speaks protocol version {protocol}; allowed: {wire.VERSION}",
                hint="update the board's firmware or this program",
            )
        if n_chips != 1 or n_lines < N_LINES:
            raise TheirMistake(f"the board has {n_chips} chips on {n_lines} lines; allowed: 1 chip on {N_LINES} lines")
        state = self.status().state
        if state is BoardState.FAULT:
            self._exchange(Opcode.RESET)
        elif state is BoardState.ACQUIRING:  # somebody left without a word
            self._exchange(Opcode.ABORT)
            self._drain()
        return DeviceInfo(
            serial=serial.rstrip(b"\0").decode("ascii", errors="replace"),
            firmware_version=firmware,
            protocol_version=protocol,
            n_chips=n_chips,
            n_lines=n_lines,
            capabilities=Capability(capabilities),
        )

    def _transact(self, mode: Mode, bits: bytes = b"", *, n_reply_bytes: int = 0, **changes: int) -> bytes:
        """Make one transaction with the chip: the OMR, bits in, bits out."""
        omr = self.configuration.omr(mode, **changes)
        came_out = self._exchange(Opcode.CHIP_TRANSACT, wire.CHIP_TRANSACT.pack(omr) + bits)
        if n_reply_bytes and len(came_out) != n_reply_bytes:
            raise TheirMistake(f"{mode.name} gave {len(came_out)} bytes; allowed: {n_reply_bytes}")
        return came_out

    def _ask(self, opcode: Opcode, layout: struct.Struct) -> tuple[Any, ...]:
        payload = self._exchange(opcode)
        if len(payload) != layout.size:
            raise TheirMistake(f"{opcode.name} was answered by {len(payload)} bytes; allowed: {layout.size}")
        return layout.unpack(payload)

    def _exchange(self, opcode: Opcode, payload: bytes = b"") -> bytes:
        """Send a command and return the payload of its reply."""
        with self._lock:
            self._tag = (self._tag + 1) % (1 << 16)
            try:
                self._transport.write(encode_command(opcode, self._tag, payload))
                reply = self._await_reply(opcode)
            except Disconnected:
                self._do(Action.LOSE)
                raise
        text = reply.payload.decode(errors="replace")
        if reply.status == Status.OK:
            return reply.payload
        name = _STATUS_NAMES.get(reply.status, f"status {reply.status}")
        message = f"the board answered {opcode.name} by {name}{': ' if text else ''}{text}"
        if reply.status == Status.BAD_CRC:
            raise TransportError(message, hint="check the cable")
        raise (OurMistake if reply.status in _OUR_MISTAKES else TheirMistake)(message)

    def _await_reply(self, opcode: Opcode) -> Reply:
        timeout_s = LINE_TIMEOUT_S if opcode is Opcode.AUXILIARY else REPLY_TIMEOUT_S
        deadline_s = time.monotonic() + timeout_s
        with suppress(TransportTimeout):
            while (left_s := deadline_s - time.monotonic()) > 0:
                for reply in self._replies.receive(self._transport.read_reply(left_s)):
                    if (reply.opcode, reply.tag) == (opcode, self._tag):  # others answer commands given up before
                        return reply
        self._replies = ReplyDecoder()  # half a reply must not stand before the next one
        raise TransportTimeout(
            f"the board did not answer {opcode.name} in {timeout_s:g} s", hint="check the cable and the board's power"
        )

    def _read_frames(self, timeout_s: float) -> memoryview:
        try:
            return self._transport.read_frames(READ_BYTES, timeout_s)
        except Disconnected:
            self._do(Action.LOSE)
            raise

    def _expect_capability(self, capability: Capability, what: str) -> None:
        if capability not in self.info.capabilities:
            raise OurMistake(f"board {self.info.serial} has not got {what}")

    def _expect(self, action: Action) -> State:
        """Return where an action leads; refuse it if it leads nowhere."""
        allowed = TRANSITIONS[self._state]
        if action not in allowed:
            names = ", ".join(known.name for known in allowed)
            hint = "open the detector again" if self._state is State.DISCONNECTED else "wait for the run, or stop it"
            raise OurMistake(f"cannot {action.name} while {self._state.name}; allowed: {names}", hint=hint)
        return allowed[action]

    def _do(self, action: Action) -> None:
        with self._lock:
            self._state = self._expect(action)


def _frame_of(readouts: tuple[Readout, ...], omrs: tuple[int, ...], configuration: Configuration) -> Frame:
    """Decode the readouts of one frame: counter 1 first, then counter 0, or only one of them."""
    first = readouts[0]
    for readout, omr in zip(readouts, omrs, strict=True):
        if readout.omr != omr:
            raise TheirMistake(f"a frame was taken with the OMR {readout.omr:#014x}; asked for: {omr:#014x}")
    matrices: list[NDArray[np.unsignedinteger]] = [
        decode_matrix(each.matrix_bits, each.depth_bits, each.n_lines) for each in readouts
    ]
    if configuration.depth_bits == 24:
        high, low = matrices
        matrices = [high.astype(np.uint32) << np.uint32(chip.PIXEL_BITS) | low]
    matrices.reverse()  # counter 0 holds the lower threshold of each pair
    planes = [colour_planes(matrix) if configuration.is_colour else matrix[np.newaxis] for matrix in matrices]
    counts = planes[0] if len(planes) == 1 else np.stack(planes, axis=1).reshape(-1, *planes[0].shape[1:])
    return Frame(
        counts=counts,
        thresholds=configuration.thresholds,
        sequence=first.sequence,
        timestamp_ns=first.timestamp_ns,
        exposure_ns=first.exposure_ns,
        run_id=first.run_id,
        was_paused=any(FrameFlag.PAUSED in readout.flags for readout in readouts),
    )


def open_detector(url: str) -> Detector:
    """Open the detector that a URL names, such as ``usb:`` or ``sim:demo``."""
    return Detector(open_transport(url))
