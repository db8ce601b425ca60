"""The driver of a Merlin: against our simulated Merlin bit by bit, and against a scripted one that misbehaves."""

from __future__ import annotations

import re
import socket
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import numpy as np
import pytest

from firmware_iface import merlin_device, transport
from firmware_iface.chip import Gain
from firmware_iface.configuration import Configuration, PixelConfiguration
from firmware_iface.device import open_detector
from firmware_iface.errors import (
    Disconnected,
    OurMistake,
    TheirMistake,
    TransportError,
    TransportTimeout,
    WrongUsage,
)
from firmware_iface.frame import Frame, Lost
from firmware_iface.merlin_device import MerlinDetector, MerlinState, open_merlin
from firmware_iface.states import State
from firmware_iface.trigger import Trigger, TriggerOut, TriggerOutput, TriggerStart
from sim.merlin_chip import Image
from sim.merlin_server import MerlinServer, simulated_merlin

ROOT = Path(__file__).resolve().parent.parent
FINE = Configuration(is_colour=False, is_csm=False, counters=(0,))

# ---- against the simulated Merlin ------------------------------------------------------------------------------------


class Bench:
    """A simulated Merlin, the driver on it, and every image that left the chip."""

    def __init__(self, detector: MerlinDetector, images: list[Image]) -> None:
        self.detector, self.images = detector, images


@pytest.fixture(params=[False, True], ids=["numbers images", "numbers exposures"])
def bench(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(merlin_device, "SILENCE_S", 60.0)  # new sensor tables take seconds on a busy machine
    merlin = simulated_merlin("demo?seed=2", numbers_exposures=request.param)
    images: list[Image] = []
    expose = merlin.expose
    monkeypatch.setattr(merlin, "expose", lambda exposure: images.extend(taken := expose(exposure)) or taken)
    with (
        MerlinServer(merlin, command_port=0, data_port=0) as server,
        MerlinDetector("127.0.0.1", server.command_port, server.data_port) as detector,
    ):
        yield Bench(detector, images)


CONFIGURATIONS = {
    "colour, charge summing": Configuration(),
    "colour, both counters": Configuration(is_csm=False, counters=(0, 1)),
    "colour, 6 bits, other gain": Configuration(is_csm=False, counters=(0,), depth_bits=6, gain=Gain.SHGM),
    "fine pitch": FINE,
    "fine pitch, both counters, 1 bit": Configuration(is_colour=False, is_csm=False, counters=(0, 1), depth_bits=1),
    "24 bits": Configuration(is_csm=False, counters=(0,), depth_bits=24),
    "24 bits, charge summing": Configuration(depth_bits=24),
    "continuous": Configuration(is_colour=False, is_csm=False, counters=(0,), is_continuous=True),
    "continuous, charge summing, colour": Configuration(is_continuous=True),
}


def test_every_configuration_brings_what_the_chip_counted(bench: Bench) -> None:
    detector = bench.detector
    detector.set_thresholds_kev({n: 15.0 + 6 * n for n in range(8)})
    for name, configuration in CONFIGURATIONS.items():
        detector.configure(configuration)
        bench.images.clear()
        frames = list(detector.frames(3, 0.002))
        n_layers = len(configuration.thresholds)
        assert len(bench.images) == 3 * n_layers, name
        for place, frame in enumerate(frames):
            assert isinstance(frame, Frame), name
            assert (frame.sequence, frame.thresholds, frame.exposure_ns) == (place, configuration.thresholds, 2_000_000)
            taken = sorted(bench.images[place * n_layers : (place + 1) * n_layers], key=lambda image: image.layer)
            assert np.array_equal(frame.counts, np.stack([image.counts for image in taken])), name
        assert sum(int(image.counts.sum(dtype=np.uint64)) for image in bench.images) > 0, name
        assert frames[0].timestamp_ns < frames[1].timestamp_ns < frames[2].timestamp_ns
    assert len({frame.run_id for frame in frames}) == 1
    assert detector.chip_id() == "W530_F5"


def test_settings_and_status(bench: Bench) -> None:
    detector = bench.detector
    assert detector.info.software_version
    status = detector.status()
    assert status.state is MerlinState.IDLE
    assert status.temperature_k is not None
    assert 250 < status.temperature_k < 350
    assert detector.set_thresholds_kev({0: 12.5, 7: 80}) == {0: 12.5, 7: 80.0}
    detector.set_bias(-120)
    detector.set_output("LVDS", TriggerOutput(source=TriggerOut.BUSY, is_inverted=True))
    with pytest.raises(ValueError, match="TTL, LVDS"):
        detector.set_output("USB", TriggerOutput())
    with pytest.raises(ValueError, match="threshold 8"):
        detector.set_thresholds_kev({8: 10})
    with pytest.raises(OurMistake, match="none was made yet"):
        detector.chip_id()
    with pytest.raises(OurMistake, match=r"HVBIAS.* out of range"):
        detector.set_bias(5000)


def test_soft_triggers_stop_and_abort(bench: Bench) -> None:
    detector = bench.detector
    detector.configure(FINE)
    detector.set_trigger(Trigger(start=TriggerStart.SOFTWARE, frames_per_trigger=2))
    frames = detector.frames(0, 0.001, on_armed=detector.trigger)
    assert [next(frames).sequence for _ in range(2)] == [0, 1]
    with pytest.raises(OurMistake, match="cannot CONFIGURE while ACQUIRING"):
        detector.configure(FINE)
    detector.trigger()
    assert [next(frames).sequence for _ in range(2)] == [2, 3]
    detector.stop()
    assert list(frames) == []
    assert detector.state is State.IDLE
    detector.set_trigger(Trigger())
    frames = detector.frames(0, 0.001)
    first = next(frames)
    detector.abort()
    assert list(frames) == []
    frames = detector.frames(0, 0.001)
    assert next(frames).run_id == first.run_id + 1
    frames.close()  # an iterator that is left aborts its run
    assert [frame.sequence for frame in detector.frames(2, 0.001)] == [0, 1]


def test_a_run_that_a_client_left_behind_can_be_aborted_by_the_next() -> None:
    merlin = simulated_merlin("demo?seed=2")
    with MerlinServer(merlin, command_port=0, data_port=0) as server:
        gone = MerlinDetector("127.0.0.1", server.command_port, server.data_port)
        next(frames := gone.frames(0, 0.001))
        gone._link.close()  # it crashed, so it aborted nothing
        with pytest.raises(Disconnected):
            list(frames)
        with MerlinDetector("127.0.0.1", server.command_port, server.data_port) as detector:
            with pytest.raises(OurMistake, match="busy"):
                detector.configure(FINE)
            detector.abort()
            detector.configure(FINE)
            assert [type(item) for item in detector.frames(2, 0.001)] == [Frame, Frame]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda d: d.configure(Configuration(is_csm=True, counters=(0, 1))), "charge summing"),
        (lambda d: d.configure(Configuration(is_csm=False, counters=(1,), depth_bits=24)), "24 bits"),
        (lambda d: d.configure(Configuration(is_equalization=True)), "equalisation"),
        (lambda d: d.configure(Configuration(is_hole_collecting=True)), "polarity"),
        (lambda d: d.configure(Configuration(is_test_pulsed=True)), "test pulses"),
        (lambda d: d.set_dacs({"Ikrum": 10}), "Ikrum"),
        (lambda d: d.read_dacs(), "read its DACs"),
        (lambda d: d.load_pixels(PixelConfiguration()), "masks and trims"),
        (lambda d: d.auxiliary("ROT 3"), "no line to a gantry"),
        (lambda d: d.set_trigger(Trigger(start=TriggerStart.SOFTWARE, delay_ns=10)), "10 ns"),
        (lambda d: d.trigger(), "cannot TRIGGER while IDLE"),
    ],
)
def test_what_a_merlin_cannot_do_is_refused_in_words(ask: Callable[[MerlinDetector], object], message: str) -> None:
    with scripted() as (script, detector):
        script.heard.clear()
        with pytest.raises(OurMistake, match=message):
            ask(detector)
        assert not [line for line in script.heard if line.startswith(("SET", "CMD"))]


# ---- against a scripted Merlin ---------------------------------------------------------------------------------------


def packed(body: bytes) -> bytes:
    return f"MPX,{len(body) + 1:010d},".encode() + body


HDR = packed(b"HDR,\nChip ID:\tW7_B3,-,-,-\nEnd\t".ljust(2048))


def image(sequence: int, *, counter: int = 0, value: int | None = None, cut: int = 0) -> bytes:
    """One MQ1 message of 256 x 256 12-bit counts, all the same."""
    text = (
        f"MQ1,{sequence:06d},00384,01,0256,0256,U16,   1x1,01,2020-01-02 03:04:05.678901,0.001000,{counter},0,2,"
        + "1.0E1," * 8 + "MQ1A,2020-01-02T03:04:05.678901234Z,1000000ns,12,"
    )  # fmt: skip
    pixels = np.full((256, 256), sequence if value is None else value, ">u2").tobytes()
    return packed(text.encode().ljust(384, b"\0") + pixels[: len(pixels) - cut])


class Script:
    """A Merlin that says what the test wants; it remembers settings and is busy between start and `idle`."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.values = {"SOFTWAREVERSION": "0.1", "DETECTORSTATUS": "0"}
        self.errors: dict[str, int] = {}
        self.pins: dict[str, str] = {}
        self.on_start: Callable[[Script], None] = lambda _: None
        self.listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        self.ports = tuple(each.getsockname()[1] for each in self.listeners)
        self.data: socket.socket | None = None
        self.commands: socket.socket | None = None
        self.is_deaf = False
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def send(self, *messages: bytes) -> None:
        assert self.data is not None
        self.data.sendall(b"".join(messages))

    def hang_up(self) -> None:
        for each in (self.data, self.commands):
            if each is not None:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()

    def close(self) -> None:
        for each in self.listeners:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self.hang_up()
        self.thread.join(10)
        assert not self.thread.is_alive()

    def _run(self) -> None:
        with suppress(OSError):
            self.commands, _ = self.listeners[0].accept()
            self.data, _ = self.listeners[1].accept()
            while head := self.commands.recv(15, socket.MSG_WAITALL):
                body = self.commands.recv(int(head[4:14]) - 1, socket.MSG_WAITALL).decode()
                self.heard.append(body)
                if not self.is_deaf:
                    self.commands.sendall(packed(self._answer(body).encode()))

    def _answer(self, body: str) -> str:
        verb, name, *rest = body.split(",")
        error = self.errors.get(name, 0)
        if verb == "GET":
            return f"GET,{name},{self.values.get(name, '')},{error}"
        if verb == "SET" and not error:
            self.values[name] = self.pins.get(name, rest[0])
        if name == "STARTACQUISITION":
            self.values["DETECTORSTATUS"] = "1"
            self.on_start(self)
        if name in ("ABORT", "STOPACQUISITION") and not error:
            self.values["DETECTORSTATUS"] = "0"
        return f"{verb},{name},{error}"


@contextmanager
def scripted(**changes: object) -> Iterator[tuple[Script, MerlinDetector]]:
    script = Script()
    try:
        detector = MerlinDetector("127.0.0.1", *script.ports, timeout_s=2)
        with detector:
            for name, value in changes.items():
                setattr(script, name, value)
            yield script, detector
    finally:
        script.close()


def sends(*messages: bytes, then: str = "0") -> Callable[[Script], None]:
    def start(script: Script) -> None:
        script.send(*messages)
        script.values["DETECTORSTATUS"] = then

    return start


def described(items: list[Frame | Lost]) -> list[object]:
    return [
        (item.first_sequence, item.n_frames) if isinstance(item, Lost) else int(item.counts[0, 5, 5]) for item in items
    ]


def run(detector: MerlinDetector, n_frames: int) -> list[Frame | Lost]:
    detector.configure(FINE)
    return list(detector.frames(n_frames, 0.001))


def test_what_is_said_on_the_command_port() -> None:
    with scripted(on_start=sends(HDR, image(1))) as (script, detector):
        assert described(run(detector, 1)) == [1]
        assert detector.chip_id() == "W7_B3"
    sent = [line for line in script.heard if not line.startswith("GET")]
    assert sent == [
        "SET,COLOURMODE,0", "SET,ENABLECOUNTER1,0", "SET,CHARGESUMMING,0", "SET,GAIN,2", "SET,CONTINUOUSRW,0",
        "SET,COUNTERDEPTH,12", "SET,NUMFRAMESTOACQUIRE,1", "SET,ACQUISITIONTIME,1.000000",
        "SET,ACQUISITIONPERIOD,1.000000", "SET,TRIGGERSTART,0", "SET,TRIGGERSTOP,0", "SET,NUMFRAMESPERTRIGGER,1",
        "SET,FILEENABLE,0", "CMD,STARTACQUISITION",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("messages", "came"),
    [
        ([image(n) for n in (1, 2, 4, 5)], [1, 2, (2, 1), 4, 5]),
        ([image(n) for n in (2, 3, 4, 5)], [(0, 1), 2, 3, 4, 5]),
        ([image(n) for n in (1, 2, 3)], [1, 2, 3, (3, 2)]),
        ([], [(0, 5)]),
        ([image(1), image(2, cut=8), image(3), image(4), image(5)], [1, (1, 1), 3, 4, 5]),
        ([image(1), b"what?", image(2), image(3)[:-100000], image(4), image(5)], [1, 2, (2, 1), 4, 5]),
    ],
)
def test_gaps_are_losses_in_their_places(messages: list[bytes], came: list[object]) -> None:
    with scripted(on_start=sends(HDR, *messages)) as (_, detector):
        items = run(detector, 5)
        assert described(items) == came
        assert all(item.reason for item in items if isinstance(item, Lost))


def test_leftovers_of_an_earlier_acquisition_never_get_in() -> None:
    late = sends(image(7, value=99), b"rest of something", HDR, image(1), image(2))
    with scripted(on_start=late) as (script, detector):
        script.send(HDR, image(8, value=98))
        time.sleep(0.1)
        assert described(run(detector, 2)) == [1, 2]


def test_a_connection_that_drops_in_a_run_or_between() -> None:
    def drop(script: Script) -> None:
        script.send(HDR, image(1))
        script.hang_up()

    with scripted(on_start=drop) as (_, detector):
        detector.configure(FINE)
        frames = detector.frames(5, 0.001)
        with pytest.raises(Disconnected, match=r"gone|closed"):
            list(frames)
        assert detector.state is State.DISCONNECTED
        with pytest.raises(OurMistake, match="while DISCONNECTED"):
            detector.configure(FINE)
    with scripted() as (script, detector):
        script.hang_up()
        with pytest.raises(Disconnected):
            detector.configure(FINE)
        with pytest.raises(OurMistake, match="while DISCONNECTED"):
            detector.frames(1, 0.1)


def test_silence_of_either_port_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merlin_device, "SILENCE_S", 0.3)
    with scripted(on_start=sends(HDR, image(1), then="1")) as (script, detector):
        detector.configure(FINE)
        with pytest.raises(TransportTimeout, match="no image came"):
            list(detector.frames(2, 0.001))
        assert "CMD,ABORT" in script.heard
        assert detector.state is State.IDLE
        script.is_deaf = True
        with pytest.raises(TransportTimeout, match="did not answer GET DETECTORSTATUS"):
            detector.status()


def test_a_merlin_that_does_not_tell_its_status_is_believed_its_frames() -> None:
    with scripted(on_start=sends(HDR, image(1), image(2), then="undef")) as (_, detector):
        assert described(run(detector, 2)) == [1, 2]
        assert detector.status().state is None


def test_an_abort_throws_away_what_came_already() -> None:
    with scripted(on_start=sends(HDR, *(image(n) for n in range(1, 6)), then="1")) as (_, detector):
        detector.configure(FINE)
        frames = detector.frames(0, 0.001)
        assert next(frames).sequence == 0
        time.sleep(0.2)
        next(frames)  # now the rest was read in one piece
        detector.abort()
        assert list(frames) == []
        assert detector.state is State.IDLE


def test_old_software_without_abort_is_stopped() -> None:
    with scripted(on_start=sends(HDR, image(1), then="1"), errors={"ABORT": 2}) as (script, detector):
        detector.configure(FINE)
        frames = detector.frames(0, 0.001)
        next(frames)
        detector.abort()
        assert list(frames) == []
        assert [line for line in script.heard if line.startswith("CMD")][-2:] == ["CMD,ABORT", "CMD,STOPACQUISITION"]


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"pins": {"GAIN": "0"}}, TheirMistake, "asked for GAIN 2 and has '0'"),
        ({"errors": {"COUNTERDEPTH": 1}}, OurMistake, "busy and does not take SET COUNTERDEPTH 12"),
        ({"errors": {"CONTINUOUSRW": 2}}, OurMistake, "does not know SET CONTINUOUSRW"),
        ({"errors": {"NUMFRAMESTOACQUIRE": 3}}, OurMistake, "SET NUMFRAMESTOACQUIRE 2 is out of range"),
        ({"errors": {"COLOURMODE": 7}}, TheirMistake, "error 7"),
        ({"on_start": sends(HDR, image(1), image(1), then="1")}, TheirMistake, "came after"),
        ({"on_start": sends(HDR, image(1, counter=1), then="1")}, TheirMistake, "counter or layer 1"),
        ({"on_start": sends(packed(b"HDR,no end"), then="1")}, TheirMistake, "no line 'End'"),
        ({"on_start": sends(HDR, then="2")}, TheirMistake, "standby"),
        ({"on_start": sends(HDR, image(1), HDR, image(1), then="1")}, TheirMistake, "a second acquisition begins"),
    ],
)
def test_errors_tell_whose_fault_it_is(changes: dict, kind: type[Exception], message: str) -> None:
    with scripted(**changes) as (_, detector), pytest.raises(kind, match=re.escape(message)):
        run(detector, 2)


# ---- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "opened"),
    [
        ("//lab", ("lab", 6341, 6342)),
        ("//lab:7000", ("lab", 7000, 7001)),
        ("//10.0.0.3:7000/?data_port=9", ("10.0.0.3", 7000, 9)),
        ("lab", ("lab", 6341, 6342)),
    ],
)
def test_addresses(address: str, opened: tuple[object, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merlin_device, "MerlinDetector", lambda *arguments: arguments)
    assert open_merlin(address) == opened


@pytest.mark.parametrize(
    "address", ["", "//", "//lab:x", "//lab:99999", "//lab?speed=1", "//lab/b", "//lab?data_port=x"]
)
def test_addresses_that_name_nothing(address: str) -> None:
    with pytest.raises(WrongUsage, match="merlin:"):
        open_merlin(address)


def test_nobody_at_home() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(TransportError, match=f"no Merlin at 127.0.0.1:{port}"):
        MerlinDetector("127.0.0.1", port)


def test_the_scheme_leads_to_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["mpxct.transports"]
    entries = EntryPoints(EntryPoint(name, value, "mpxct.transports") for name, value in declared.items())
    monkeypatch.setattr(transport, "entry_points", lambda group: entries.select(group=group))
    script = Script()
    try:
        url = f"merlin://127.0.0.1:{script.ports[0]}?data_port={script.ports[1]}"
        with open_detector(url) as detector:
            assert isinstance(detector, MerlinDetector)
            assert detector.info.software_version == "0.1"
    finally:
        script.close()
