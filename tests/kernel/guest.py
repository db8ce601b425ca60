"""The program that runs in the guest: it does with the device what the host asks of it, and answers what came out.

It runs on the host's own Python and packages, seen through the guest's kernel; the device is seen through that
kernel's USB stack. Requests and answers are lines of JSON over TCP. Nothing is judged here: the tests on the host do.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
HOST = "10.0.2.2"
"""This computer, as QEMU's own network shows it to the guest."""
DECODER_CACHE = CHECKOUT / "build" / "kernel" / "numba"
SYS_DEVICES = Path("/sys/bus/usb/devices")
VHCI = Path("/sys/devices/platform/vhci_hcd.0")
SEEN_TIMEOUT_S = 20.0

# The host compiles for any processor and the guest finds it compiled: an emulated compiler takes a minute.
os.environ |= {"NUMBA_CPU_NAME": "generic", "NUMBA_CACHE_DIR": str(DECODER_CACHE)}
sys.path.insert(0, str(CHECKOUT))

OPEN: dict[str, Any] = {}
TRANSPORTS: dict[str, Any] = {}


def warm() -> None:
    """Compile the decoder, if it is not."""
    from firmware_iface.bitplanes import decode_matrix, matrix_bytes
    from firmware_iface.configuration import N_LINES

    decode_matrix(bytes(matrix_bytes(12)), 12, N_LINES)


def load() -> dict[str, object]:
    """Import what the other requests need: on the host first, which leaves it compiled, for in here that takes long."""
    import usb.core

    import firmware_iface.device
    import firmware_iface.usb_transport

    warm()
    return {"pyusb": usb.__version__, "kernel": os.uname().release, "device": firmware_iface.device.__file__}


def attach(port: int) -> None:
    """Import a device by USB/IP and hand the connection to the kernel, as `usbip attach` does."""
    connection = socket.create_connection((HOST, port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(struct.pack(">HHI32s", 0x0111, 0x8003, 0, b"1-1"))
    stream = connection.makefile("rb", buffering=0)
    _, _, status = struct.unpack(">HHI", stream.read(8))
    if status:
        raise ConnectionRefusedError(f"the import was answered by {status}")
    description = b""
    while len(description) < 312:
        description += stream.read(312 - len(description))
    bus, device, speed = struct.unpack_from(">III", description, 288)
    ports = [line.split() for line in (VHCI / "status").read_text().splitlines()[1:]]
    free = next(each[1] for each in ports if each[0] == ("ss" if speed >= 5 else "hs") and each[2] == "004")
    (VHCI / "attach").write_text(f"{int(free)} {connection.fileno()} {bus << 16 | device} {speed}")
    stream.close()
    connection.close()  # the kernel holds it now


def seen(serial: str, is_wanted: bool = True) -> dict[str, object]:
    """Wait until the kernel has, or has not, a device of this serial number; return what it says of it."""
    deadline_s = time.monotonic() + SEEN_TIMEOUT_S
    while ((found := _find(serial)) is not None) != is_wanted:
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"device {serial} is {'not ' if is_wanted else 'still '}there")
        time.sleep(0.05)
    if found is None:
        return {}
    texts = ("idVendor", "idProduct", "speed", "version", "manufacturer", "product", "bConfigurationValue")
    words = {name: (found / name).read_text().strip() for name in texts}
    return words | {"descriptors": (found / "descriptors").read_bytes().hex()}


def _find(serial: str) -> Path | None:
    for folder in SYS_DEVICES.iterdir():
        try:
            if (folder / "serial").read_text().strip() == serial:
                return folder
        except OSError:
            continue  # a hub's interface, or a device that is just leaving
    return None


def control(serial: str, kind: int, request: int, value: int, index: int, n_bytes: int) -> str:
    """Make a control request to the host; return the answer in hexadecimal digits."""
    import usb.util

    device = _usb_device(serial)
    try:
        return device.ctrl_transfer(kind, request, value, index, n_bytes, 2000).tobytes().hex()
    finally:
        usb.util.dispose_resources(device)


def _usb_device(serial: str) -> Any:
    import libusb_package
    import usb.core

    backend = libusb_package.get_libusb1_backend()
    return usb.core.find(backend=backend, custom_match=lambda each: _serial_of(each) == serial)


def _serial_of(device: Any) -> str | None:
    return device.serial_number if device.iSerialNumber else None


def open_detector(serial: str, query: str = "") -> dict[str, object]:
    """Open the detector and keep it open; a query such as ?async=1 chooses the driver."""
    from firmware_iface.device import Detector
    from firmware_iface.usb_transport import open_libusb

    transport = open_libusb(serial + query)
    detector = Detector(transport)
    OPEN[serial], TRANSPORTS[serial] = detector, transport
    return {"serial": detector.info.serial, "firmware_version": detector.info.firmware_version}


def close_detector(serial: str) -> None:
    """Close it, if it is open."""
    if serial in OPEN:
        OPEN.pop(serial).close()


def status(serial: str) -> dict[str, object]:
    """Ask the board for its state."""
    found = OPEN[serial].status()
    return {"state": found.state.name, "n_frames_done": found.n_frames_done, "bias_v": found.bias_v}


def chip_id(serial: str) -> str:
    """Read the chip's name."""
    return OPEN[serial].chip_id()


def set_bias(serial: str, v: float) -> None:
    """Write a register."""
    OPEN[serial].set_bias(v)


def read_nothing(serial: str, wait_s: float) -> dict[str, object]:
    """Read frames where none will come."""
    began_s = time.monotonic()
    data = TRANSPORTS[serial].read_frames(1 << 20, wait_s)
    return {"n_bytes": len(data), "seconds": time.monotonic() - began_s}


def read_reply(serial: str) -> int:
    """Read the reply endpoint, below the driver's own patience."""
    return len(TRANSPORTS[serial].read_reply(1.0))


def frames(
    serial: str, n_frames: int, n_wanted: int | None = None, on_first: Callable[[], object] | None = None
) -> dict[str, object]:
    """Take frames; leave the run early after `n_wanted`; return their numbers and the CRC32 of their counts."""
    taken, lost, told = [], 0, ""
    began_s = time.monotonic()
    iterator = OPEN[serial].frames(n_frames, 1e-3)
    try:
        for item in iterator:
            if hasattr(item, "counts"):
                taken.append((item.sequence, zlib.crc32(item.counts.tobytes())))
                if on_first is not None and len(taken) == 1:
                    on_first()
            else:
                lost += item.n_frames
            if len(taken) == n_wanted:
                break
        iterator.close()
    except Exception as error:  # noqa: BLE001
        told = type(error).__name__
    return {"frames": taken, "lost": lost, "error": told, "seconds": time.monotonic() - began_s}


def abort_soon(serial: str, after_s: float) -> dict[str, object]:
    """Take frames without end, and abort from another thread some time after the first."""
    timer = threading.Timer(after_s, OPEN[serial].abort)
    result = frames(serial, 0, on_first=timer.start)
    timer.join()
    return result


def abort_during_line(serial: str, after_s: float) -> dict[str, object]:
    """Take frames while a line to the gantry waits, and abort; return how long each took to end."""
    detector, began_s = OPEN[serial], time.monotonic()
    told: dict[str, object] = {}

    def turn() -> None:
        told["answer"] = detector.auxiliary("ROT 90")
        told["line_s"] = time.monotonic() - began_s

    def abort() -> None:
        called_s = time.monotonic()
        detector.abort()
        told["abort_s"] = time.monotonic() - called_s

    iterator = detector.frames(0, 1e-3)
    next(iterator)
    threads = [threading.Thread(target=turn), threading.Timer(after_s, abort)]
    for thread in threads:
        thread.start()
    began_s = time.monotonic()
    for _ in iterator:
        pass
    told["frames_s"] = time.monotonic() - began_s
    for thread in threads:
        thread.join()
    return told


def stream(serial: str, query: str, seconds: float) -> dict[str, object]:
    """Read the frames of a tape (`tests/kernel/tape.py`) as fast as the USB stack gives them, undecoded."""
    from firmware_iface.usb_transport import open_libusb
    from tests.kernel.tape import GO, HALT

    transport = open_libusb(serial + query)
    try:
        transport.write(GO)
        n_bytes = n_reads = 0
        began_s = time.perf_counter()
        while (now_s := time.perf_counter()) - began_s < seconds:
            n_bytes += len(transport.read_frames(1 << 20, 2.0))
            n_reads += 1
        transport.write(HALT)
        while len(transport.read_frames(1 << 20, 0.5)):
            pass
    finally:
        transport.close()
    return {"n_bytes": n_bytes, "n_reads": n_reads, "seconds": now_s - began_s}


REQUESTS: dict[str, Callable[..., object]] = {
    each.__name__: each
    for each in (
        load, attach, seen, control, open_detector, close_detector, status, chip_id, set_bias, read_nothing,
        read_reply, frames, abort_soon, abort_during_line, stream,
    )
}  # fmt: skip


def main() -> None:
    """Do what the host asks, until it hangs up."""
    with socket.create_connection((HOST, int(os.environ["GUEST_TALK"]))) as connection:
        lines = connection.makefile("rw", encoding="utf-8")
        for line in lines:
            request = json.loads(line)
            try:
                answer = {"result": REQUESTS[request["do"]](**request["with"])}
            except Exception as error:  # noqa: BLE001
                answer = {"error": type(error).__name__, "errno": getattr(error, "errno", None), "message": str(error)}
            lines.write(json.dumps(answer) + "\n")
            lines.flush()


if __name__ == "__main__":
    load() if sys.argv[1:] == ["warm"] else main()
