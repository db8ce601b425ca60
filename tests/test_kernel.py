"""Our device behind a real kernel: Linux in QEMU enumerates it, and our own driver in the guest takes frames from it.

Each law holds twice: plugged into the guest's xHCI controller by usbredir, and imported into its `vhci_hcd` by USB/IP.
"""

from __future__ import annotations

import errno
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from firmware_iface import wire
from sim.board import Board
from sim.chip import SimulatedChip
from sim.sensor import Settings
from sim.usb_model import (
    MANUFACTURER,
    MS_OS_20_SET,
    PRODUCT,
    SlowLine,
    Speed,
    UsbDevice,
    bos_descriptor,
    configuration_descriptor,
    device_descriptor,
)
from sim.usbip import serve_usbip
from sim.usbredir import serve_usbredir
from tests.kernel.image import NoQemu, prepare
from tests.kernel.machine import GuestError, Machine

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(180)]
IMPORTS_TIMEOUT_S = 150.0
"""Numba's import takes a processor that is emulated half a minute, and more where others work too."""
N_SCENES = 7
N_FRAMES = 500
LINE_S = 6.0
"""From a line to the gantry to its answer."""


class Scene:
    """A front end that gives a few ready-made pictures in turn, and knows what the detector must make of each."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._events = [rng.integers(0, 4096, (8, 128, 128), dtype=np.uint32) for _ in range(N_SCENES)]
        self._checks = [zlib.crc32(events[1::2].astype(np.uint16).tobytes()) for events in self._events]
        self.n_exposures = 0

    def __call__(self, duration_s: float, settings: Settings) -> NDArray[np.uint32]:
        self.n_exposures += 1
        return self._events[(self.n_exposures - 1) % N_SCENES]

    def expected(self, first: int, n_frames: int) -> list[list[int]]:
        """Return [sequence, CRC32 of the counts] of each frame of a run that began with this exposure."""
        return [[n, self._checks[(first + n) % N_SCENES]] for n in range(n_frames)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bus:
    """One way from our device to the guest's kernel."""

    machine: Machine
    device: UsbDevice
    scene: Scene
    serial: str
    usbip_port: int | None

    def plug(self) -> None:
        """Let the guest have the device."""
        self.device.plug()
        self.attach()

    def attach(self) -> None:
        """Import it, where a host has to ask for it."""
        if self.usbip_port is not None:
            self.machine.do("attach", port=self.usbip_port)

    def do(self, name: str, **arguments: object):
        """Ask the guest to do something with this device."""
        return self.machine.do(name, serial=self.serial, **arguments)


def a_device(scene: Scene, serial: str, speed: Speed) -> UsbDevice:
    line = SlowLine(lambda text: f"OK {text}", LINE_S)
    line.device = UsbDevice(Board(SimulatedChip(scene), line, serial), serial, speed=speed)
    return line.device


@pytest.fixture(scope="module")
def buses() -> Iterator[dict[str, Bus]]:
    try:
        image = prepare()
    except NoQemu as reason:
        pytest.skip(str(reason))
    scenes = {"usbredir": Scene(1), "usbip": Scene(2)}
    speeds = {"usbredir": Speed.SUPER, "usbip": Speed.HIGH}
    devices = {way: a_device(scenes[way], f"KERNEL-{way}", speeds[way]) for way in scenes}
    with (
        serve_usbredir(devices["usbredir"], 0) as redirected,
        serve_usbip(devices["usbip"], 0) as imported,
        Machine(image, (redirected.port,)) as machine,
    ):
        machine.do("load", timeout_s=IMPORTS_TIMEOUT_S)
        ports = {"usbredir": None, "usbip": imported.port}
        found = {
            way: Bus(
                machine=machine,
                device=devices[way],
                scene=scenes[way],
                serial=f"KERNEL-{way}",
                usbip_port=ports[way],
            )
            for way in scenes
        }
        for bus in found.values():
            bus.attach()
        yield found
        assert "GUEST" not in machine.console(), machine.console()


@pytest.fixture(params=["usbredir", "usbip"])
def bus(request: pytest.FixtureRequest, buses: dict[str, Bus]) -> Bus:
    return buses[request.param]


@pytest.fixture
def opened(bus: Bus) -> Iterator[Bus]:
    bus.do("seen")
    bus.do("open_detector")
    yield bus
    bus.do("close_detector")


def test_the_kernel_enumerates_it(bus: Bus) -> None:
    seen, speed = bus.do("seen"), bus.device.speed
    assert bytes.fromhex(seen["descriptors"]) == device_descriptor(speed) + configuration_descriptor(speed)
    assert (seen["idVendor"], seen["idProduct"]) == (f"{wire.VENDOR_ID:04x}", f"{wire.PRODUCT_ID:04x}")
    assert (seen["manufacturer"], seen["product"]) == (MANUFACTURER, PRODUCT)
    assert (seen["speed"], seen["version"]) == {Speed.HIGH: ("480", "2.10"), Speed.SUPER: ("5000", "3.00")}[speed]
    assert seen["bConfigurationValue"] == "1"


def test_windows_would_find_its_descriptors(bus: Bus) -> None:
    bos = bytes.fromhex(bus.do("control", kind=0x80, request=6, value=0x0F00, index=0, n_bytes=255))
    assert bos == bos_descriptor(bus.device.speed)
    place = bos.index(wire.MS_OS_20_UUID) + len(wire.MS_OS_20_UUID)
    n_bytes, request = int.from_bytes(bos[place + 4 : place + 6], "little"), bos[place + 6]
    answer = bus.do("control", kind=0xC0, request=request, value=0, index=wire.MS_OS_20_INDEX, n_bytes=n_bytes)
    assert bytes.fromhex(answer) == MS_OS_20_SET


def test_registers_are_read_and_written(opened: Bus) -> None:
    assert opened.do("status") == {
        "state": "IDLE",
        "n_frames_done": opened.do("status")["n_frames_done"],
        "bias_v": 0.0,
    }
    opened.do("set_bias", v=-450.0)
    assert opened.do("status")["bias_v"] == -450.0
    opened.do("set_bias", v=0.0)
    assert opened.do("chip_id") == "W529_F5"


def test_an_unknown_request_stalls(opened: Bus) -> None:
    with pytest.raises(GuestError) as error:
        opened.do("control", kind=0xC0, request=0x77, value=0, index=0, n_bytes=4)
    assert error.value.number == errno.EPIPE
    assert opened.do("status")["state"] == "IDLE"


def test_a_halted_endpoint_stalls_until_it_is_cleared(opened: Bus) -> None:
    opened.device.halt(wire.EP_REPLY)
    with pytest.raises(GuestError) as error:
        opened.do("read_reply")
    assert error.value.name == "Stalled"
    with pytest.raises(GuestError) as error:  # clear again, and empty
        opened.do("read_reply")
    assert error.value.name == "TransportTimeout"
    assert opened.do("status")["state"] == "IDLE"


def test_a_read_of_nothing_times_out(opened: Bus) -> None:
    nothing = opened.do("read_nothing", wait_s=0.4)
    assert nothing["n_bytes"] == 0
    assert 0.4 <= nothing["seconds"] < 5
    assert opened.do("status")["state"] == "IDLE"


def test_every_frame_arrives_to_the_bit(opened: Bus) -> None:
    first = opened.scene.n_exposures
    run = opened.do("frames", n_frames=N_FRAMES)
    assert (run["error"], run["lost"]) == ("", 0)
    assert run["frames"] == opened.scene.expected(first, N_FRAMES)


def test_a_run_left_early_leaves_nothing_to_the_next(opened: Bus) -> None:
    first = opened.scene.n_exposures
    run = opened.do("frames", n_frames=0, n_wanted=5)
    assert run["frames"] == opened.scene.expected(first, 5)
    assert opened.do("status")["state"] == "IDLE"
    first = opened.scene.n_exposures
    assert opened.do("frames", n_frames=5)["frames"] == opened.scene.expected(first, 5)


def test_an_abort_from_another_thread_ends_the_run(opened: Bus) -> None:
    first = opened.scene.n_exposures
    run = opened.do("abort_soon", after_s=0.5)
    assert (run["error"], run["lost"]) == ("", 0)
    assert run["frames"]
    assert run["frames"] == opened.scene.expected(first, len(run["frames"]))
    first = opened.scene.n_exposures
    assert opened.do("frames", n_frames=5)["frames"] == opened.scene.expected(first, 5)


def test_an_abort_does_not_wait_for_a_turning_stage(opened: Bus) -> None:
    told = opened.do("abort_during_line", after_s=0.5)
    assert told["answer"] == "OK ROT 90"
    assert told["abort_s"] < LINE_S / 2
    assert told["frames_s"] < told["line_s"]
    assert opened.do("status")["state"] == "IDLE"


def test_a_command_that_broke_off_is_sent_again(opened: Bus) -> None:
    opened.device.broken_writes.add(opened.device.n_writes)
    n_before = opened.device.n_writes
    assert opened.do("chip_id") == "W529_F5"
    assert opened.device.n_writes == n_before + 2


def test_the_asynchronous_driver_recovers_and_aborts_likewise(bus: Bus) -> None:
    bus.do("seen")
    bus.do("open_detector", query="?async=1")
    try:
        bus.device.broken_writes.add(bus.device.n_writes)
        assert bus.do("chip_id") == "W529_F5"
        told = bus.do("abort_during_line", after_s=0.5)
        assert told["abort_s"] < LINE_S / 2
        assert told["frames_s"] < told["line_s"]
        first = bus.scene.n_exposures
        assert bus.do("frames", n_frames=5)["frames"] == bus.scene.expected(first, 5)
    finally:
        bus.do("close_detector")


def test_a_pulled_plug_is_told_and_a_replugged_device_found_again(opened: Bus) -> None:
    first = opened.scene.n_exposures
    pending = opened.machine.begin("frames", serial=opened.serial, n_frames=0)
    while opened.scene.n_exposures < first + 20:
        time.sleep(0.02)
    opened.device.unplug()
    run = pending()
    assert run["error"] == "Disconnected"
    assert run["frames"] == opened.scene.expected(first, len(run["frames"]))
    opened.do("close_detector")
    opened.do("seen", is_wanted=False)
    opened.plug()
    opened.do("seen")
    opened.do("open_detector")
    first = opened.scene.n_exposures
    assert opened.do("frames", n_frames=5)["frames"] == opened.scene.expected(first, 5)
