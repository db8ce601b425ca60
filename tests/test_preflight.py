"""What is looked at before a scan: whether the bus carries what comes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from acquisition.doctor import Level
from acquisition.plan import DetectorPlan, Plan
from acquisition.preflight import usb_checks
from acquisition.scan_plan import AnyScan, ContinuousPlan, ScanPlan
from firmware_iface.errors import TransportError
from firmware_iface.usb_transport import UsbBoard

DETECTOR: Any = SimpleNamespace(info=SimpleNamespace(serial="B1", n_chips=1))


def looked(speed_mbit_s: int, exposure_s: float, scan: AnyScan, memory_mb: int | None = 16, serial: str = "B1") -> Any:
    plan = Plan(detector=DetectorPlan(exposure_s=exposure_s), scan=scan)
    board = UsbBoard(serial=serial, bus=1, address=2, speed_mbit_s=speed_mbit_s, problem="")
    return [(check.level, check.topic) for check in usb_checks(DETECTOR, plan, lambda: (board,), lambda: memory_mb)]


def test_a_fast_bus_or_slow_frames_are_well() -> None:
    # A counter of 12 bits is 98,304 bytes and takes 0.82 ms to read: 98 MB/s of frames of 0.18 ms.
    assert looked(5000, 0.18e-3, ScanPlan()) == [(Level.OK, "USB")]
    assert looked(480, 0.1, ScanPlan()) == [(Level.OK, "USB")]


def test_a_slow_bus_makes_steps_wait_and_stops_a_sweep() -> None:
    assert looked(480, 0.18e-3, ScanPlan()) == [(Level.WARN, "USB")]
    assert looked(480, 0.18e-3, ContinuousPlan()) == [(Level.FAIL, "USB")]


def test_little_memory_for_transfers_is_told() -> None:
    assert looked(5000, 0.1, ScanPlan(), memory_mb=2) == [(Level.OK, "USB"), (Level.WARN, "usbfs memory")]
    assert looked(5000, 0.1, ScanPlan(), memory_mb=0) == [(Level.OK, "USB")], "0 is no limit"


def test_what_is_not_on_the_bus_is_not_judged() -> None:
    assert looked(480, 0.18e-3, ScanPlan(), serial="another") == []

    def fails() -> tuple[UsbBoard, ...]:
        raise TransportError("no libusb")

    assert list(usb_checks(DETECTOR, Plan(), fails)) == []
    merlin: Any = SimpleNamespace()
    assert list(usb_checks(merlin, Plan(), lambda: pytest.fail("nobody asked for boards"))) == []
