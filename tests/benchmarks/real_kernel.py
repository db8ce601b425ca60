"""How fast our driver reads frames through a real kernel's USB stack, the device plugged in by usbredir or by USB/IP.

The kernel runs in QEMU, which emulates every instruction: the figures compare the two ways, and our driver with its
asynchronous transfers; they say nothing of a kernel on bare metal. A tape of ready-made frames stands for the board.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a script finds the packages of its own checkout

from sim.usb_model import Speed, UsbDevice
from sim.usbip import serve_usbip
from sim.usbredir import serve_usbredir
from tests.kernel.image import NoQemu, prepare
from tests.kernel.machine import GuestError, Machine
from tests.kernel.tape import Tape

DRIVERS = {"": "", "async_": "?async=1"}
WAYS = ("usbredir", "usbip")


def a_device(way: str) -> UsbDevice:
    """Return a SuperSpeed device with a tape in it."""
    return UsbDevice(Tape(), f"TAPE-{way}", speed=Speed.SUPER)  # pyright: ignore[reportArgumentType]


def measure(seconds: float) -> dict[str, float | None]:
    """Return the MB/s of each way and driver, and how long it took until the guest answered."""
    image = prepare()
    devices = {way: a_device(way) for way in WAYS}
    figures: dict[str, float | None] = {}
    with serve_usbredir(devices["usbredir"], 0) as redirected, serve_usbip(devices["usbip"], 0) as imported:
        begin_s = time.perf_counter()
        with Machine(image, (redirected.port,)) as machine:
            machine.do("attach", port=imported.port)
            for way in WAYS:
                machine.do("seen", serial=f"TAPE-{way}")
            figures["guest_ready_s"] = round(time.perf_counter() - begin_s, 1)
            for way in WAYS:
                for name, query in DRIVERS.items():
                    figures[f"{name}{way}_mb_s"] = mb_per_s(machine, f"TAPE-{way}", query, seconds)
    return figures


def mb_per_s(machine: Machine, serial: str, query: str, seconds: float) -> float | None:
    """Return the MB/s of one way and driver; None if the asynchronous driver's package is not installed."""
    try:
        machine.do("stream", serial=serial, query=query, seconds=1.0)  # imports, and the first of everything
        streamed = machine.do("stream", serial=serial, query=query, seconds=seconds)
    except GuestError as error:
        if query and "usb1" in str(error):
            return None
        raise
    return round(streamed["n_bytes"] / streamed["seconds"] / 1e6, 1)


def main() -> None:
    """Measure, and print the table or the JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="shorter streams")
    arguments = parser.parse_args()
    try:
        figures = measure(2.0 if arguments.quick else 6.0)
    except NoQemu as reason:
        sys.exit(str(reason))
    lines = [f"{name:<20} {value}" for name, value in figures.items()]
    print(json.dumps(figures) if arguments.json else "\n".join(lines))


if __name__ == "__main__":
    main()
