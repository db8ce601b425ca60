"""The simulated device as pyusb sees it: descriptors, transfers, and libusb's errors."""

from __future__ import annotations

import contextlib
import errno
import re
import struct
import sys
import threading
import time
import types
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import usb.core
import usb.util
from numpy.typing import NDArray

from calibration.geometry import Geometry
from firmware_iface import chip, wire
from firmware_iface.chip import Mode
from firmware_iface.errors import WrongUsage
from firmware_iface.wire import BoardState, Opcode
from sim.board import Board
from sim.chip import SimulatedChip
from sim.faults import NO_FAULTS, Faults
from sim.sensor import Settings
from sim.usb_device import SimulatedUsb, open_simulated
from sim.usb_model import SlowLine, Speed, Stall, UsbDevice, bos_descriptor, configuration_descriptor, device_descriptor

READ_1 = chip.pack_register(
    chip.OMR_FIELDS, {"M": Mode.READ_COUNTER_1, "CountL": 2, "PS": 3, "ColourMode": 1, "GainMode": 1}
)
FRAME_BYTES = 64 + 98304


def front_end(duration_s: float, settings: Settings) -> NDArray[np.uint32]:
    return np.ones((8, 128, 128), dtype=np.uint32)


def a_bus(faults: Faults = NO_FAULTS) -> SimulatedUsb:
    return SimulatedUsb(UsbDevice(Board(SimulatedChip(front_end), str.upper, "TEST-1", faults), "TEST-1"))


def device_on(bus: SimulatedUsb) -> usb.core.Device:
    device = usb.core.find(backend=bus, idVendor=0x1209, idProduct=0x0001)
    assert isinstance(device, usb.core.Device)
    device.set_configuration()
    return device


@pytest.fixture
def bus() -> SimulatedUsb:
    return a_bus()


@pytest.fixture
def device(bus: SimulatedUsb) -> Iterator[usb.core.Device]:
    found = device_on(bus)
    yield found
    usb.util.dispose_resources(found)


def command(opcode: int, payload: bytes = b"", tag: int = 1) -> bytes:
    packet = struct.pack("<2sBBHHI", b"mC", 2, opcode, tag, 0, len(payload)) + payload
    return packet + struct.pack("<I", zlib.crc32(packet))


def start(n_frames: int) -> bytes:
    return command(Opcode.START, struct.pack("<IIQQB7xQ", 1, n_frames, 1000, 0, 1, READ_1))


def test_descriptor_bytes() -> None:
    assert bytes.fromhex("12 01 1002 ff 00 00 40 0912 0100 0002 01 02 03 01") == device_descriptor(Speed.HIGH)
    assert bytes.fromhex(
        "09 02 2700 01 01 00 80 fa  09 04 00 00 03 ff 00 00 00"
        "07 05 01 02 0002 00  07 05 81 02 0002 00  07 05 82 02 0002 00"
    ) == configuration_descriptor(Speed.HIGH)


def control(device: UsbDevice, kind: int, request: int, value: int = 0, index: int = 0, n_bytes: int = 255) -> bytes:
    return device.control(struct.pack("<BBHHH", kind, request, value, index, n_bytes if kind & 0x80 else 0))


def page_bytes(name: str, speed: Speed = Speed.HIGH) -> bytes:
    """Return the bytes of a line of the specification's descriptors: those of the speed, if it has its own."""
    text = (Path(wire.__file__).parent / "PROTOCOL.md").read_text()
    lines = re.findall(rf"^ *{re.escape(name)}  +((?:[0-9a-f]{{2}} +)*[0-9a-f]{{2}})$", text, flags=re.MULTILINE)
    return bytes.fromhex(lines[-1 if speed is Speed.SUPER else 0])


def test_the_page_has_the_descriptors_of_high_speed(bus: SimulatedUsb) -> None:
    device = bus.device
    assert control(device, 0x80, 6, 0x0100) == page_bytes("device")
    whole = control(device, 0x80, 6, 0x0200)
    assert whole == page_bytes("configuration") + page_bytes("interface") + page_bytes("endpoints")
    assert control(device, 0x80, 6, 0x0200, n_bytes=9) == whole[:9]
    assert control(device, 0x80, 6, 0x0600) == page_bytes("qualifier")
    assert control(device, 0x80, 6, 0x0F00) == page_bytes("BOS") + page_bytes("LPM") + page_bytes("MS OS 2.0")


def test_the_page_has_the_descriptors_of_superspeed() -> None:
    page = partial(page_bytes, speed=Speed.SUPER)
    assert device_descriptor(Speed.SUPER) == page("device")
    parts = ("configuration", "interface", "endpoint 01", "endpoint 81", "endpoint 82")
    assert configuration_descriptor(Speed.SUPER) == b"".join(map(page, parts))
    assert bos_descriptor(Speed.SUPER) == b"".join(map(page, ("BOS", "LPM", "MS OS 2.0", "SuperSpeed")))


@pytest.mark.parametrize("speed", list(Speed))
def test_windows_finds_its_descriptors(speed: Speed) -> None:
    device = UsbDevice(Board(SimulatedChip(front_end), str.upper, "TEST-1"), "TEST-1", speed=speed)
    bos = control(device, 0x80, 6, 0x0F00)
    assert struct.unpack_from("<BBHB", bos)[:3] == (5, 15, len(bos))
    start = bos.index(bytes.fromhex("df60ddd88945c74c9cd2659d9e648a9f"))
    windows, n_bytes, request, alternate = struct.unpack_from("<IHBB", bos, start + 16)
    assert (windows, alternate) == (0x06030000, 0)
    found = control(device, 0xC0, request, 0, 7)
    assert len(found) == n_bytes == 162
    assert struct.unpack_from("<HHIH", found) == (10, 0, windows, 162)
    assert found[10:30] == struct.pack("<HH", 20, 3) + b"WINUSB" + bytes(10)
    length, kind, data_type, n_name = struct.unpack_from("<HHHH", found, 30)
    assert (length, kind, data_type) == (132, 4, 7)
    assert found[38 : 38 + n_name].decode("utf-16-le") == "DeviceInterfaceGUIDs\0"
    value = found[38 + n_name + 2 :].decode("utf-16-le")
    assert value == wire.DEVICE_INTERFACE_GUID + "\0\0"
    with pytest.raises(Stall):
        control(device, 0xC0, request, 0, 8)


def test_a_kernel_gets_what_it_asks_for(bus: SimulatedUsb) -> None:
    device = bus.device
    assert control(device, 0x80, 8) == b"\0"
    control(device, 0, 9, 1)
    assert control(device, 0x80, 8) == b"\1"
    control(device, 2, 3, 0, 0x81)
    assert control(device, 0x82, 0, 0, 0x81, 2) == b"\1\0"
    with pytest.raises(Stall):
        device.bulk_in(0x81, 512, 0)
    control(device, 2, 1, 0, 0x81)
    assert control(device, 0x82, 0, 0, 0x81, 2) == b"\0\0"
    assert control(device, 0x80, 6, 0x0600)[:4] == bytes.fromhex("0a 06 10 02")
    for kind, request, value in ((0x80, 6, 0x0700), (0x80, 6, 0x0309), (0x40, 1, 0), (0, 9, 2), (0x80, 77, 0)):
        with pytest.raises(Stall):
            control(device, kind, request, value)


def test_a_data_stage_shorter_than_told_stalls(bus: SimulatedUsb) -> None:
    set_sel = struct.pack("<BBHHH", 0, 48, 0, 0, 6)
    assert bus.device.control(set_sel, bytes(6)) == b""
    with pytest.raises(Stall):
        bus.device.control(set_sel, bytes(5))


def test_super_speed_has_companions_and_longer_packets() -> None:
    bus = SimulatedUsb(UsbDevice(Board(SimulatedChip(front_end), str.upper, "TEST-1"), "TEST-1", speed=Speed.SUPER))
    device = device_on(bus)
    interface = device.get_active_configuration()[(0, 0)]
    assert {endpoint.wMaxPacketSize for endpoint in interface} == {1024}
    assert all(bytes(endpoint.extra_descriptors) == bytes.fromhex("06 30 0f 00 00 00") for endpoint in interface)
    assert (device.bcdUSB, device.bMaxPacketSize0) == (0x0300, 9)
    usb.util.dispose_resources(device)


def test_a_replugged_device_is_found_again_and_keeps_its_board(bus: SimulatedUsb, device: usb.core.Device) -> None:
    bus.device.unplug()
    assert usb.core.find(backend=bus) is None
    bus.device.plug()
    again = device_on(bus)
    again.write(0x01, command(Opcode.GET_STATUS))
    assert struct.unpack_from("<BBHIQ", again.read(0x81, 512), 12)[2] == 1, "no second power-up"


def test_pyusb_finds_the_device_its_strings_and_endpoints(device: usb.core.Device) -> None:
    assert (device.manufacturer, device.product, device.serial_number) == (
        "mpxct", "Simulated Medipix3RX readout board", "TEST-1",
    )  # fmt: skip
    interface = device.get_active_configuration()[(0, 0)]
    assert [endpoint.bEndpointAddress for endpoint in interface] == [0x01, 0x81, 0x82]
    assert {endpoint.wMaxPacketSize for endpoint in interface} == {512}
    assert "Bulk" in str(device)


def test_commands_and_frames_go_through_pyusb(device: usb.core.Device) -> None:
    both = command(Opcode.AUXILIARY, b"rot?", tag=3) + command(Opcode.GET_STATUS, tag=4)
    assert device.write(0x01, both[:5]) == 5
    device.write(0x01, both[5:])
    assert bytes(device.read(0x81, 4096))[12:-4] == b"ROT?", "one reply is one transfer"
    assert struct.unpack_from("<H", device.read(0x81, 4096), 4) == (4,)
    device.write(0x01, start(2))
    stream = b"".join(bytes(device.read(0x82, 1 << 16)) for _ in range(4))
    assert len(stream) == 2 * FRAME_BYTES
    assert stream[:4] == stream[FRAME_BYTES : FRAME_BYTES + 4] == b"MPXF"


@pytest.mark.parametrize("endpoint", [0x81, 0x82])
def test_nothing_to_read_is_a_timeout(device: usb.core.Device, endpoint: int) -> None:
    with pytest.raises(usb.core.USBTimeoutError) as refusal:
        device.read(endpoint, 512, timeout=5)
    assert (refusal.value.errno, refusal.value.backend_error_code) == (errno.ETIMEDOUT, -7)


def test_a_read_waits_for_the_command_of_another_thread(device: usb.core.Device) -> None:
    threading.Timer(0.05, lambda: device.write(0x01, start(1))).start()
    assert len(device.read(0x82, 1 << 20, timeout=5000)) == FRAME_BYTES


def test_commands_get_through_while_another_thread_reads_frames(device: usb.core.Device) -> None:
    device.write(0x01, start(0))
    device.read(0x81, 512)
    n_frames = 0

    def read_until_stopped() -> None:
        nonlocal n_frames
        with contextlib.suppress(usb.core.USBTimeoutError):
            while device.read(0x82, 1 << 20, timeout=50):
                n_frames += 1

    reader = threading.Thread(target=read_until_stopped)
    reader.start()
    for tag in range(20):
        device.write(0x01, command(Opcode.GET_STATUS, tag=tag))
        assert struct.unpack_from("<H", device.read(0x81, 512, timeout=2000), 4) == (tag,)
    device.write(0x01, command(Opcode.STOP))
    reader.join(10)
    assert not reader.is_alive()
    device.read(0x81, 512)
    device.write(0x01, command(Opcode.GET_STATUS))
    assert struct.unpack_from("<BBHIQ", device.read(0x81, 512), 12)[4] == n_frames > 0


def test_an_odd_length_overflows_when_more_would_come(device: usb.core.Device) -> None:
    device.write(0x01, start(1))
    with pytest.raises(usb.core.USBError) as refusal:
        device.read(0x82, 1000)
    assert (refusal.value.errno, refusal.value.backend_error_code) == (errno.EOVERFLOW, -8)
    assert len(device.read(0x82, 1024)) == 1024
    assert len(device.read(0x82, FRAME_BYTES - 1024 + 1)) == FRAME_BYTES - 1024


def test_a_halted_endpoint_stalls_until_cleared(bus: SimulatedUsb, device: usb.core.Device) -> None:
    device.write(0x01, command(Opcode.GET_INFO))
    bus.device.halt(0x81)
    with pytest.raises(usb.core.USBError) as refusal:
        device.read(0x81, 512)
    assert (refusal.value.errno, refusal.value.backend_error_code) == (errno.EPIPE, -9)
    device.clear_halt(0x81)
    assert len(device.read(0x81, 512)) == 12 + wire.INFO.size + 4


@pytest.mark.parametrize("mend", [lambda d: d.clear_halt(wire.EP_COMMAND), lambda d: d.reset()], ids=["halt", "port"])
def test_a_broken_off_command_is_forgotten(device: usb.core.Device, mend: Callable[[usb.core.Device], None]) -> None:
    question = command(Opcode.GET_INFO)
    device.write(wire.EP_COMMAND, command(Opcode.CHIP_TRANSACT, bytes(49_000))[:1000])
    device.write(wire.EP_COMMAND, question)
    with pytest.raises(usb.core.USBTimeoutError):
        device.read(wire.EP_REPLY, 512, timeout=20)
    mend(device)
    device.write(wire.EP_COMMAND, question)
    assert bytes(device.read(wire.EP_REPLY, 512, timeout=500)[:2]) == wire.REPLY_MAGIC


def test_the_page_has_the_request_that_aborts(bus: SimulatedUsb, device: usb.core.Device) -> None:
    page = (Path(wire.__file__).parent / "PROTOCOL.md").read_text()
    (setup,) = re.findall(r"^(40 22(?: 00){6})$", page, flags=re.MULTILINE)
    device.write(0x01, start(0))
    device.read(0x82, 512)
    assert bus.device.control(bytes.fromhex(setup)) == b""
    with pytest.raises(usb.core.USBTimeoutError):
        device.read(0x82, 512, timeout=5)
    assert (wire.ABORT_REQUEST, Opcode.ABORT) == (0x22, 0x22)


def test_a_kernel_clears_the_command_endpoint_by_a_request(bus: SimulatedUsb, device: usb.core.Device) -> None:
    question = command(Opcode.GET_INFO)
    device.write(wire.EP_COMMAND, command(Opcode.CHIP_TRANSACT, bytes(49_000))[:1000])
    control(bus.device, 2, 1, 0, wire.EP_COMMAND)
    device.write(wire.EP_COMMAND, question)
    assert bytes(device.read(wire.EP_REPLY, 512, timeout=500)[:2]) == wire.REPLY_MAGIC


def test_an_abort_goes_beside_a_line_that_waits(bus: SimulatedUsb) -> None:
    line = SlowLine(str.upper, 1.0)
    bus = SimulatedUsb(UsbDevice(Board(SimulatedChip(front_end), line, "TEST-1"), "TEST-1"))
    line.device = bus.device
    device = device_on(bus)
    device.write(0x01, start(0) + command(Opcode.AUXILIARY, b"rot 90", tag=5) + command(Opcode.GET_STATUS, tag=6))
    device.read(0x81, 512)
    began_s = time.monotonic()
    device.ctrl_transfer(0x40, wire.ABORT_REQUEST, 0, 0, None)
    assert time.monotonic() - began_s < 0.5
    with pytest.raises(usb.core.USBTimeoutError):
        device.read(0x82, 512, timeout=5)
    assert bytes(device.read(0x81, 512))[4:-4] == b"\5\0\0\0\6\0\0\0ROT 90", "the line is answered in its turn"
    status = bytes(device.read(0x81, 512))
    assert (status[4], status[12]) == (6, BoardState.IDLE), "and what came behind it after that"
    with pytest.raises(usb.core.USBError):
        device.ctrl_transfer(0x40, wire.ABORT_REQUEST, 1, 0, None)


def test_unknown_requests_stall_and_unknown_endpoints_do_not_exist(device: usb.core.Device) -> None:
    with pytest.raises(usb.core.USBError) as refusal:
        device.ctrl_transfer(0xC0, 0x42, 0, 0, 8)
    assert (refusal.value.errno, refusal.value.backend_error_code) == (errno.EPIPE, -9)
    with pytest.raises(ValueError, match="0x3"):
        device.write(0x03, b"x")


def test_one_handle_at_a_time_holds_the_interface(bus: SimulatedUsb, device: usb.core.Device) -> None:
    usb.util.claim_interface(device, 0)
    other = usb.core.find(backend=bus)
    assert isinstance(other, usb.core.Device)
    for action in (
        lambda: usb.util.claim_interface(other, 0),
        lambda: other.set_configuration(),
        lambda: other.write(0x01, command(Opcode.GET_INFO)),
    ):
        with pytest.raises(usb.core.USBError) as refusal:
            action()
        assert (refusal.value.errno, refusal.value.backend_error_code) == (errno.EBUSY, -6)
    usb.util.dispose_resources(device)
    usb.util.claim_interface(other, 0)
    usb.util.dispose_resources(other)


def test_unplugging_gives_the_frames_made_and_then_no_device() -> None:
    bus = a_bus(Faults(unplug_after=2))
    device = device_on(bus)
    device.write(0x01, start(5))
    for _ in range(2):
        assert len(device.read(0x82, 1 << 20)) == FRAME_BYTES
    for action in (
        lambda: device.read(0x82, 512),
        lambda: device.write(0x01, b"x"),
        lambda: device.ctrl_transfer(0x80, 0, 0, 0, 2),
    ):
        with pytest.raises(usb.core.USBError) as refusal:
            action()
        assert (refusal.value.errno, refusal.value.backend_error_code) == (errno.ENODEV, -4)
    assert usb.core.find(backend=bus) is None


def test_pulling_the_plug_ends_a_waiting_read(bus: SimulatedUsb, device: usb.core.Device) -> None:
    threading.Timer(0.05, bus.device.unplug).start()
    with pytest.raises(usb.core.USBError) as refusal:
        device.read(0x82, 512, timeout=5000)
    assert refusal.value.errno == errno.ENODEV


# Addresses


class FakeGantry:
    exposure_name = b""

    def __init__(self, *, seed: int, geometry: object = None, **scene: Any) -> None:
        self.seed, self.stage = seed, scene.get("stage")

    def make_safe(self) -> None: ...

    def line(self, text: str) -> str:
        return f"{text} of {self.seed}"

    def photons(self, duration_s: float) -> tuple[None, NDArray[np.float64]]:
        return None, np.arange(3.0)


class FakeSensor(FakeGantry):
    def __init__(self, *, seed: int, climate: object = None) -> None:
        super().__init__(seed=seed)
        self.environment = types.SimpleNamespace(climate=climate)

    def expose(
        self,
        photons: None,
        energies_kev: NDArray[np.float64],
        duration_s: float,
        settings: Settings,
        rng: np.random.Generator,
    ) -> NDArray[np.uint32]:
        return rng.poisson(duration_s * 1e6, (8, 128, 128)).astype(np.uint32)


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> None:
    gantry = types.ModuleType("sim.gantry")
    geometry = Geometry(source_to_detector_mm=250, source_to_object_mm=200, pitch_mm=0.11, rows=128, cols=128)
    gantry.__dict__.update(Gantry=FakeGantry, GEOMETRY=geometry)
    monkeypatch.setitem(sys.modules, "sim.gantry", gantry)
    monkeypatch.setattr("sim.sensor.Sensor", FakeSensor, raising=False)


def two_frames(address: str) -> bytes:
    device = device_on(open_simulated(address))
    device.write(0x01, start(2))
    return b"".join(bytes(device.read(0x82, 1 << 20)) for _ in range(2))


@pytest.mark.usefixtures("scene")
def test_every_opening_is_a_fresh_instrument_of_its_seed() -> None:
    assert two_frames("demo?seed=2") == two_frames("demo?seed=2")
    assert two_frames("demo?seed=2") != two_frames("demo?seed=3")
    assert two_frames("demo") == two_frames("demo?seed=1")


@pytest.mark.usefixtures("scene")
def test_the_seed_is_told_by_serial_number_and_chip() -> None:
    device = device_on(open_simulated("demo?seed=7"))
    assert device.serial_number == "DEMO-7"
    device.write(0x01, command(Opcode.CHIP_TRANSACT, struct.pack("<QB7x", Mode.READ_EFUSE, 0)))
    header = bytes(device.read(0x81, 512))[12:-4]
    assert int.from_bytes(header[20:24], "big") == (535 << 8 | 0x65)
    device.write(0x01, command(Opcode.AUXILIARY, b"ROT?"))
    assert bytes(device.read(0x81, 512))[12:-4] == b"ROT? of 7"


@pytest.mark.usefixtures("scene")
def test_faults_come_from_the_address() -> None:
    device = device_on(open_simulated("demo?unplug_after=1&drop=0"))
    device.write(0x01, start(5))
    with pytest.raises(usb.core.USBError) as refusal:
        device.read(0x82, 1 << 20)
    assert refusal.value.errno == errno.ENODEV


@pytest.mark.usefixtures("scene")
def test_an_assembly_is_chips_of_one_wafer() -> None:
    device = device_on(open_simulated("demo?chips=2x2&pulser_us=1000:100"))
    names = []
    for number in range(4):
        device.write(0x01, command(Opcode.CHIP_TRANSACT, struct.pack("<QB7x", Mode.READ_EFUSE, number)))
        names.append(int.from_bytes(bytes(device.read(0x81, 512))[12:-4][20:24], "big"))
    assert names == [529 << 8 | 6 << 4 | number for number in (5, 6, 7, 8)]
    device.write(0x01, command(Opcode.GET_INFO))
    assert struct.unpack_from("<HHBBBB", device.read(0x81, 512), 12)[2:] == (4, 8, 2, 2)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "mars",
        "demo/2",
        "demo?sead=2",
        "demo?seed=x",
        "demo?seed=-1",
        "demo?drop=a",
        "demo?seed=",
        "demo?chips=3x3",
        "demo?chips=2",
        "demo?usb_speed=low",
        "demo?pulser_us=5",
        "demo?pulser_us=5:9",
        "demo?line_s=x",
        "demo?line_s=90",
        "demo?chips=1x2",
        "demo?chips=9x1",
        "demo?gain_noise_relative=1,2,3",
        "demo?gain_noise_relative=1,2,3,-4",
        "demo?bonded_subpixel=4",
        "demo?cluster_pulse=all",
        "demo?collects_holes=yes",
        "demo?temperature_c=nan",
        "demo?pulser_lvds_us=9:9",
        "demo?line_s=nan",
        "demo?break_command=x",
    ],
)
def test_wrong_addresses_say_what_is_known(address: str) -> None:
    with pytest.raises(WrongUsage, match=r"known|allowed"):
        open_simulated(address)


def test_wire_and_device_agree_on_endpoints() -> None:
    assert (wire.EP_COMMAND, wire.EP_REPLY, wire.EP_FRAMES) == (0x01, 0x81, 0x82)
