"""The detector as its users see it: configure, load, and iterate over frames.

One thread may iterate over frames while others ask for the status, send lines to the gantry, trigger, stop or abort.
Only the iterator reads the stream of frames and only it ends a run, so no run's frames get into another.

# Ref: half-matrix loads with RowBlock 7 and CSM off, thresholds sent again as 511 and then their value: medipix3rx
#      reference 5.2, from DiamondLightSource/excalibur-detector @099951f3 `ExcaliburFemClientMpx3.cpp` 556-650 and
#      MARS `marscamera.py` (load_config, resend_threshold_dacs).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from firmware_iface import chip, wire
from firmware_iface.assembly import LAYOUTS, frame_of
from firmware_iface.bitplanes import raw_matrix
from firmware_iface.chip import Mode
from firmware_iface.codec import (
    FrameDecoder,
    Readout,
    chip_name,
    decode_dacs,
    efuse_word,
    encode_columns,
    encode_dacs,
    encode_pixels,
)
from firmware_iface.configuration import N_LINES, Configuration, PixelConfiguration
from firmware_iface.errors import DetectorError, OurMistake, TheirMistake, TransportTimeout
from firmware_iface.frame import Frame, Lost
from firmware_iface.link import Link
from firmware_iface.states import TRANSITIONS, Action, State, states_diagram, step
from firmware_iface.transport import Transport, as_transport, open_plugin
from firmware_iface.trigger import Trigger, TriggerOutput
from firmware_iface.wire import BoardState, Capability, FaultCode, Opcode, TriggerStop

__all__ = [
    "TRANSITIONS", "Action", "Configuration", "Detector", "DeviceHealth", "DeviceInfo", "DeviceStatus",
    "PixelConfiguration", "State", "Trigger", "TriggerOutput", "open_detector", "states_diagram",
]  # fmt: skip

SILENCE_S = 5.0
"""How much longer than an exposure a running board may be silent."""
_POLL_S = 0.25  # a blocked read hears no Ctrl-C, so it must be short


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInfo:
    """What the board says of itself.

    Attributes
    ----------
    layout : (rows, columns)
        How its chips stand.
    """

    serial: str
    firmware_version: int
    protocol_version: int
    n_chips: int
    layout: tuple[int, int]
    n_lines: int
    capabilities: Capability


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceStatus:
    """How the board is.

    Attributes
    ----------
    n_power_ups : int
        Counted by the board: another number is another life, with nothing set.
    """

    state: BoardState
    fault: FaultCode
    n_power_ups: int
    run_id: int
    n_frames_done: int
    temperature_k: float
    bias_v: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceHealth:
    """What the board measures of itself; a temperature without a sensor is nan."""

    board_k: float
    fpga_k: float
    sensor_k: float
    bias_v: float
    bias_current_na: int


class Detector:
    """A photon-counting detector with one Medipix3RX, or an assembly of them, behind a transport.

    Attributes
    ----------
    info : DeviceInfo
    configuration : Configuration
        The one in force; the default until `configure` is called.
    """

    def __init__(self, transport: Transport) -> None:
        self._state = State.DISCONNECTED
        self._changing = threading.RLock()  # never waits for the board, as the link may
        self._link = Link(transport, lambda: self._do(Action.LOSE))
        self._has_dacs = self._has_pixels = False
        self._n_power_ups: int | None = None
        self.configuration = Configuration()
        try:
            self._do(Action.CONNECT)
            self.info = self._connect()
        except BaseException:
            transport.close()
            raise
        self._dacs = [dict(chip.DEFAULT_DACS) for _ in range(self.info.n_chips)]

    # What it is, and how it is

    @property
    def state(self) -> State:
        """Where the detector stands in `TRANSITIONS`."""
        return self._state

    @property
    def dacs(self) -> dict[str, int]:
        """All DACs as they will be, or are, in the first chip."""
        return self.dacs_of(0)

    def dacs_of(self, chip_number: int) -> dict[str, int]:
        """Return all DACs as they will be, or are, in one chip."""
        return dict(self._dacs[chip_number])

    def status(self) -> DeviceStatus:
        """Ask the board how it is; allowed during a run.

        Raises
        ------
        TheirMistake
            The board started again by itself: nothing is as it was set. The detector is then disconnected.
        """
        self._do(Action.ASK)
        state, fault, n_power_ups, run_id, n_done, temperature_mk, bias_mv = self._link.ask(
            Opcode.GET_STATUS, wire.STATUS
        )
        if self._n_power_ups not in (None, n_power_ups):
            self._do(Action.LOSE)
            raise TheirMistake(
                "the board started again by itself: it has lost all settings, its bias and its run",
                hint="check the board's power, then open the detector again and set everything",
            )
        return DeviceStatus(
            state=BoardState(state),
            fault=FaultCode(fault),
            n_power_ups=n_power_ups,
            run_id=run_id,
            n_frames_done=n_done,
            temperature_k=_kelvin(temperature_mk),
            bias_v=bias_mv / 1000,
        )

    def health(self) -> DeviceHealth:
        """Return temperatures and bias as they are measured; reading them talks to the board only."""
        return DeviceHealth(
            board_k=_kelvin(self.read_register("TEMPERATURE_BOARD")),
            fpga_k=_kelvin(self.read_register("TEMPERATURE_FPGA")),
            sensor_k=_kelvin(self.read_register("TEMPERATURE_SENSOR")),
            bias_v=self.read_register("BIAS_MEASURED") / 1000,
            bias_current_na=self.read_register("BIAS_CURRENT"),
        )

    def chip_id(self, chip_number: int = 0) -> str:
        """Return the name burnt into a chip, such as W529_F5."""
        self._do(Action.CONFIGURE)
        efuse = efuse_word(self._transact(Mode.READ_EFUSE, chip_number, n_reply_bytes=chip.EFUSE_HEADER_BYTES))
        if efuse == 0:
            raise TheirMistake("the chip's e-fuses read 0", hint="check that the chip is bonded and powered")
        return chip_name(efuse)

    def auxiliary(self, line: str) -> str:
        """Send a line of text to the gantry's controllers and return the line that they answer."""
        self._do(Action.ASK)
        self._expect_capability(Capability.AUXILIARY_LINE, "a line to a gantry")
        return self._link.exchange(Opcode.AUXILIARY, line.encode()).decode(errors="replace")

    def make_safe(self) -> bool:
        """Switch the beam off and stop the stage at once, in every state and beside whatever waits for the board.

        Returns
        -------
        bool
            Whether the board knows how; else the gantry's own line must do it.
        """
        return self._link.make_safe()

    def read_register(self, name: str) -> int:
        """Return what one of the board's registers holds; `PROTOCOL.md` lists them."""
        self._do(Action.ASK)
        (value,) = self._link.ask(
            Opcode.READ_REGISTER, wire.REGISTER_VALUE, wire.READ_REGISTER.pack(_register(name).address)
        )
        return value

    def sense_v(self, name: str, chip_number: int = 0) -> float:
        """Return the voltage of a DAC of a chip, measured at its sense pad, in V.

        Parameters
        ----------
        name : str
            A name of `chip.SENSE_CODES`.
        """
        if name not in chip.SENSE_CODES:
            raise ValueError(f"the chip has no {name!r} to sense; it has {', '.join(chip.SENSE_CODES)}")
        self._do(Action.CONFIGURE)
        self._expect_capability(Capability.SENSE_ADC, "a converter at the sense pads")
        omr = self.configuration.omr(Mode.READ_DACS, SenseDAC=chip.SENSE_CODES[name])
        (microvolts,) = self._link.ask(Opcode.READ_SENSE, wire.SENSE, wire.CHIP_TRANSACT.pack(omr, chip_number))
        return microvolts / 1e6

    # Settings

    def configure(self, configuration: Configuration) -> None:
        """Choose how the chips count, from the next run on."""
        self._do(Action.CONFIGURE)
        self.configuration = configuration

    def write_register(self, name: str, value: int) -> None:
        """Set one of the board's registers; `PROTOCOL.md` lists them."""
        self._do(Action.CONFIGURE)
        register = _register(name)
        if not register.lowest <= value <= register.highest:
            allowed = f"{register.lowest} to {register.highest}" if register.is_writable else "reading it only"
            raise ValueError(f"{name} is to be {value}; allowed: {allowed}")
        self._link.exchange(Opcode.WRITE_REGISTER, wire.WRITE_REGISTER.pack(register.address, value))

    def set_trigger(self, trigger: Trigger) -> None:
        """Choose what opens and closes the shutter, from the next run on."""
        self._write_registers(trigger.registers)

    def set_output(self, line: str, output: TriggerOutput) -> None:
        """Choose what the trigger output "TTL" or "LVDS" shows, from the next run on."""
        self._write_registers(output.registers(line))

    def set_test_pulses(self, n_pulses: int, period_s: float = 1e-4) -> None:
        """Choose how many test pulses come while the shutter is open, and their distance; 0 for none."""
        self._expect_capability(Capability.TEST_PULSES, "a strobe for test pulses")
        self._write_registers({"TEST_PULSES": n_pulses, "TEST_PULSE_PERIOD": round(period_s * 1e9)})

    def set_dacs(self, dacs: Mapping[str, int], chip_number: int | None = None) -> None:
        """Set some DACs of one chip, or of all, by name; the others keep their value.

        Raises
        ------
        ValueError
            The chip has no such DAC, or the value does not fit it.
        """
        self._do(Action.CONFIGURE)
        for n in self._chips(chip_number):
            merged = self._dacs[n] | dict(dacs)
            self._transact(Mode.SET_DACS, n, encode_dacs(merged))
            self._dacs[n] = merged
        self._has_dacs = self._has_dacs or chip_number is None

    def read_dacs(self, chip_number: int = 0) -> dict[str, int]:
        """Read all DAC codes back from a chip."""
        self._do(Action.CONFIGURE)
        return decode_dacs(self._transact(Mode.READ_DACS, chip_number, n_reply_bytes=chip.DAC_REGISTER_BITS // 8))

    def set_test_columns(self, columns: NDArray[np.bool_], chip_number: int | None = None) -> None:
        """Choose in which columns, (256,) bool, pixels may take test pulses."""
        self._do(Action.CONFIGURE)
        for n in self._chips(chip_number):
            self._transact(Mode.SET_CTPR, n, encode_columns(columns))

    def load_pixels(self, pixels: PixelConfiguration, chip_number: int | None = None) -> None:
        """Load masks and trims into the pixels of one chip, or the same into all.

        Charge summing is off meanwhile, and the thresholds are sent again afterwards, first as 511: the chip needs it.
        """
        self._do(Action.CONFIGURE)
        high = {name: (1 << place.width) - 1 for name, place in chip.DAC_FIELDS.items() if name.startswith("Threshold")}
        for n in self._chips(chip_number):
            for half in encode_pixels(pixels.words):
                self._transact(
                    Mode.LOAD_COUNTER_1,
                    n,
                    half,
                    RowBlock=chip.ROW_BLOCK_HALF_LOAD,
                    CSM_SPM=0,
                    CRW_SRW=0,
                    CountL=chip.DEPTH_CODES[chip.PIXEL_BITS],
                )
            self._transact(Mode.SET_DACS, n, encode_dacs(self._dacs[n] | high))
            self.set_dacs({}, n)
        self._has_pixels = self._has_pixels or chip_number is None
        self._has_dacs = self._has_dacs or chip_number is None

    def read_pixels(self, chip_number: int = 0) -> NDArray[np.uint16]:
        """Read counter 1 back as it is: right after `load_pixels`, the words that were loaded; (256, 256) uint16."""
        self._do(Action.CONFIGURE)
        n_bytes = chip.ROWS * chip.COLS * chip.PIXEL_BITS // 8
        depth = chip.DEPTH_CODES[chip.PIXEL_BITS]
        bits = self._transact(
            Mode.READ_COUNTER_1, chip_number, n_reply_bytes=n_bytes, CountL=depth, InfoHeader=0, CRW_SRW=0
        )
        return raw_matrix(bits, chip.PIXEL_BITS, self.configuration.n_lines)

    def set_bias(self, v: float) -> None:
        """Set the sensor's bias voltage, in V; negative for electron collection."""
        self._do(Action.CONFIGURE)
        self._expect_capability(Capability.BIAS, "a bias supply")
        self.write_register("BIAS", round(v * 1000))

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
        step(self._state, Action.ACQUIRE)
        return self._run(n_frames, exposure_ns)

    def trigger(self) -> None:
        """Open the shutter of a run whose trigger is `TriggerStart.SOFTWARE`."""
        self._do(Action.TRIGGER)
        self._link.exchange(Opcode.SOFT_TRIGGER)

    def stop(self) -> None:
        """End the run after the present frame; the iterator gives what was taken, and ends."""
        with self._link.lock:
            with self._changing:
                is_running = self._state not in {State.IDLE, State.DISCONNECTED}
                self._do(Action.STOP)
            if is_running:
                self._link.exchange(Opcode.STOP)

    def abort(self) -> None:
        """End the run now; the iterator ends, and frames under way are thrown away.

        It does not wait for what another thread asks of the board, be it a line to a stage that turns.
        """
        with self._link.aborting:
            with self._changing:
                is_running = self._state not in {State.IDLE, State.DISCONNECTED}
                self._do(Action.ABORT)
            if is_running:
                self._link.abort()

    def close(self) -> None:
        """Abort what runs and give the device back; a second call does nothing."""
        if self._state in {State.ACQUIRING, State.STOPPING}:
            with suppress(DetectorError):  # it is going away anyhow
                self.abort()
        self._do(Action.CLOSE)
        self._link.close()

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
        status = self.status()
        self._expect_no_fault(status)  # an aborted run may have left it unseen
        run_id = (status.run_id + 1) % (1 << 32)
        omrs = configuration.readouts
        start = wire.START.pack(run_id, n_frames, exposure_ns, 0, len(omrs))
        decoder = FrameDecoder(run_id, n_frames, len(configuration.readouts_of(0)), self.info.n_chips)
        is_gated = self.read_register("TRIGGER_STOP") != TriggerStop.INTERNAL
        silence_s = float("inf") if is_gated else exposure_ns * 1e-9 + SILENCE_S
        self._do(Action.ACQUIRE)
        try:
            if not self._start(start + b"".join(map(wire.OMR.pack, omrs))):
                return
            for item in self._items(decoder, n_frames, silence_s):
                if self._state is State.ABORTING:  # what had come before the abort is thrown away like what comes after
                    continue
                yield item if isinstance(item, Lost) else frame_of(item, configuration, self.info.layout)
        except BaseException:  # also a closed iterator and Ctrl-C: the device must stay usable
            self._abandon_run()
            raise
        finally:
            with self._link.aborting, self._changing:  # another thread may close it at the same moment
                if self._state is not State.DISCONNECTED:
                    self._do(Action.END_RUN)

    def _start(self, run: bytes) -> bool:
        """Start the run once no other command waits; False where it was aborted before."""
        while not self._link.lock.acquire(timeout=_POLL_S):
            if self._state is State.ABORTING:
                return False
        try:
            if self._state is State.ABORTING:
                return False
            self._link.exchange(Opcode.START, run)
        finally:
            self._link.lock.release()
        if self._state is State.ABORTING:  # it may have overtaken the start, which then began what was to end
            self._link.abort()
        return True

    def _items(self, decoder: FrameDecoder, n_frames: int, silence_s: float) -> Iterator[tuple[Readout, ...] | Lost]:
        heard_at_s = time.monotonic()
        while not decoder.is_complete:
            data = self._link.read_frames(_POLL_S)
            if data:
                heard_at_s = time.monotonic()
                yield from decoder.receive(data)
                continue
            if not self._link.lock.acquire(timeout=_POLL_S):  # another command waits, and frames may come meanwhile
                if self._state is State.ABORTING:  # nothing more does, and the board has no time to say so
                    return
                continue
            try:
                asked_at_s = time.monotonic()  # a board may take its time to answer
                status = self.status()
            finally:
                self._link.lock.release()
            if status.state is BoardState.FAULT:
                yield from self._rest(decoder)
                self._expect_no_fault(status)
            if status.state is BoardState.ARMED:
                heard_at_s = time.monotonic()  # a trigger may be long in coming
            if status.state is BoardState.IDLE:
                yield from self._rest(decoder)
                if self._state is not State.ABORTING:
                    n_done = status.n_frames_done
                    yield from decoder.finish(n_done if self._state is State.STOPPING or n_frames == 0 else n_frames)
                return
            if asked_at_s - heard_at_s > silence_s:
                raise TransportTimeout(
                    f"no frame came for {silence_s:.3g} s, and the board says that it acquires",
                    hint="check the cable, and that nothing else reads from the device",
                )

    def _rest(self, decoder: FrameDecoder) -> Iterator[tuple[Readout, ...] | Lost]:
        """Yield what came between the last read and the status."""
        while not decoder.is_complete and (data := self._link.read_frames(_POLL_S)):
            yield from decoder.receive(data)

    def _expect_no_fault(self, status: DeviceStatus) -> None:
        if status.state is BoardState.FAULT:
            self._do(Action.LOSE)
            raise TheirMistake(
                f"the board ended the run in a fault: {status.fault.name}",
                hint="open the detector again: that resets the board",
            )

    def _abandon_run(self) -> None:
        """Leave no run on the board and no frames on the way, as far as the transport still can."""
        if self._state is State.DISCONNECTED:
            return
        # What ended the run is what the caller must hear of; frames of this run id will be skipped anyhow.
        with suppress(DetectorError):
            self._link.abort()
            self._link.drain()

    # Below: chips, registers and states

    def _connect(self) -> DeviceInfo:
        fields = self._link.ask(Opcode.GET_INFO, wire.INFO)
        firmware, protocol, n_chips, n_lines, n_rows, n_columns, capabilities, serial = fields
        if protocol != wire.VERSION:
            raise TheirMistake(
                f"the board speaks protocol version {protocol}; allowed: {wire.VERSION}",
                hint="update the board's firmware or this program",
            )
        if (n_rows, n_columns) not in LAYOUTS or n_rows * n_columns != n_chips or n_lines < N_LINES:
            raise TheirMistake(
                f"the board has {n_chips} chips in {n_rows} x {n_columns} on {n_lines} lines; allowed: one row of 1 to "
                f"8 chips, or 2 x 2, on {N_LINES} lines"
            )
        status = self.status()
        self._n_power_ups = status.n_power_ups
        if status.state is not BoardState.IDLE:  # somebody left without a word
            self._link.exchange(Opcode.RESET if status.state is BoardState.FAULT else Opcode.ABORT)
            self._link.drain()  # after a reset run ids begin anew, so here leftovers are not known by theirs
        return DeviceInfo(
            serial=serial.rstrip(b"\0").decode("ascii", errors="replace"),
            firmware_version=firmware,
            protocol_version=protocol,
            n_chips=n_chips,
            layout=(n_rows, n_columns),
            n_lines=n_lines,
            capabilities=Capability(capabilities),
        )

    def _chips(self, chip_number: int | None) -> range:
        n_chips = self.info.n_chips
        if chip_number is None:
            return range(n_chips)
        if not 0 <= chip_number < n_chips:
            raise ValueError(f"chip {chip_number}; allowed: 0 to {n_chips - 1}")
        return range(chip_number, chip_number + 1)

    def _write_registers(self, values: Mapping[str, int]) -> None:
        for name, value in values.items():
            self.write_register(name, value)

    def _transact(
        self, mode: Mode, chip_number: int, bits: bytes = b"", *, n_reply_bytes: int = 0, **changes: int
    ) -> bytes:
        """Make one transaction with a chip: the OMR, bits in, bits out."""
        omr = self.configuration.omr(mode, **changes)
        came_out = self._link.exchange(Opcode.CHIP_TRANSACT, wire.CHIP_TRANSACT.pack(omr, chip_number) + bits)
        if n_reply_bytes and len(came_out) != n_reply_bytes:
            raise TheirMistake(f"{mode.name} gave {len(came_out)} bytes; allowed: {n_reply_bytes}")
        return came_out

    def _expect_capability(self, capability: Capability, what: str) -> None:
        if capability not in self.info.capabilities:
            raise OurMistake(f"board {self.info.serial} has not got {what}")

    def _do(self, action: Action) -> None:
        with self._changing:
            self._state = step(self._state, action)


def _kelvin(millikelvin: int) -> float:
    """Return a temperature in K; nan where the board has no sensor."""
    return math.nan if millikelvin == wire.NO_READING else millikelvin / 1000


def _register(name: str) -> wire.Register:
    if name not in wire.REGISTERS:
        raise ValueError(f"the board has no register {name!r}; it has {', '.join(wire.REGISTERS)}")
    return wire.REGISTERS[name]


def open_detector(url: str) -> Detector:
    """Open the detector that a URL names, such as ``usb:``, ``sim:demo`` or ``merlin://host``.

    A plugin may bring a whole detector, as a Merlin is one. It has the methods of `Detector`, and refuses in words
    (`OurMistake`) what it cannot do.
    """
    opened = open_plugin(url)
    return opened if hasattr(opened, "frames") else Detector(as_transport(opened, url))
