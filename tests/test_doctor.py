"""The doctor over facts that are fed to it, and the door to the machine over a made-up tree of system files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from acquisition import cli, machine
from acquisition.doctor import BoardFacts, Facts, Finding, Gpu, Level, Requirement, examine, version_of
from firmware_iface.usb_errors import UDEV_RULE, UDEV_RULE_PATH
from firmware_iface.usb_transport import UsbBoard

BOARD = BoardFacts(serial="B-17", speed_mbit_s=5000, node="/dev/bus/usb/002/003")
HEALTHY = Facts(
    system="Linux",
    python=(3, 11, 7),
    requirements=(Requirement(name="numpy", oldest=(2,), installed="2.4.6"),),
    boards=(BOARD,),
    udev_rules={UDEV_RULE_PATH: UDEV_RULE},
    usb_memory_mb=16,
    gpus=(Gpu(name="RTX", memory_mb=24_000, driver="580.65.06"),),
    cupy="14.0.1",
    qt="6.11.3",
    opengl="4.6 (Core Profile) Mesa",
    disk=Path("scans"),
    free_bytes=400000000000,
)


MISSING = Requirement(name="numba", oldest=(0, 61), installed="")
NOT_READ = replace(BOARD, serial="", problem="not allowed")
V100, K80 = (Gpu(name=name, memory_mb=1, driver=driver) for name, driver in (("V100", "550.1"), ("K80", "470.1")))


def troubles(facts: Facts) -> list[tuple[Level, str]]:
    return [(each.level, each.topic) for each in examine(facts) if each.level is not Level.OK]


def test_a_healthy_machine_has_no_trouble() -> None:
    assert not troubles(HEALTHY)
    topics = [finding.topic for finding in examine(HEALTHY)]
    assert topics == [
        "Python", "packages", "boards", "board B-17", "udev rule", "usbfs memory", "GPU", "Qt", "OpenGL", "disk"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "level", "topic", "words"),
    [
        ({"python": (3, 10, 4)}, Level.FAIL, "Python", "3.11"),
        ({"requirements": (MISSING,)}, Level.FAIL, "package", "numba>=0.61"),
        ({"requirements": (replace(MISSING, installed="0.9.0"),)}, Level.FAIL, "package", "numba>=0.61"),
        ({"usb_error": "libusb cannot be loaded", "boards": ()}, Level.FAIL, "libusb", "libusb-package"),
        ({"boards": ()}, Level.WARN, "boards", "sim:demo"),
        ({"boards": (replace(BOARD, is_allowed=False),)}, Level.FAIL, "board B-17", UDEV_RULE),
        ({"boards": (NOT_READ,)}, Level.FAIL, f"board {BOARD.node}", UDEV_RULE_PATH),
        ({"boards": (replace(BOARD, speed_mbit_s=480),)}, Level.WARN, "board B-17", "USB 3"),
        ({"boards": (replace(BOARD, speed_mbit_s=12),)}, Level.FAIL, "board B-17", "hub"),
        ({"boards": (replace(BOARD, driver="usbtest"),)}, Level.FAIL, "board B-17", "modprobe -r usbtest"),
        ({"boards": (replace(BOARD, driver="usbfs"),)}, Level.FAIL, "board B-17", "one program at a time"),
        ({"boards": (replace(BOARD, holders=("mpxct (process 7)",)),)}, Level.FAIL, "board B-17", "close that program"),
        ({"boards": (), "udev_rules": {}}, Level.WARN, "udev rule", UDEV_RULE),
        ({"udev_rules": {"/etc/udev/rules.d/99-x.rules": UDEV_RULE}}, Level.WARN, "udev rule", UDEV_RULE_PATH),
        ({"usb_memory_mb": 8}, Level.WARN, "usbfs memory", "usbfs_memory_mb=64"),
        ({"usb_memory_mb": None}, Level.WARN, "usbfs memory", "container"),
        ({"gpus": ()}, Level.WARN, "GPU", "CPU"),
        ({"cupy": ""}, Level.WARN, "GPU", "mpxct[gpu-cuda13]"),
        ({"cupy": "", "gpus": (V100,)}, Level.WARN, "GPU", "mpxct[gpu-cuda12]"),
        ({"cupy": "", "gpus": (K80,)}, Level.WARN, "GPU", "525"),
        ({"cupy_error": "no libnvrtc"}, Level.WARN, "GPU", "gpu-cuda13"),
        ({"qt": ""}, Level.WARN, "Qt", "mpxct[gui]"),
        ({"qt": "6.12.0"}, Level.FAIL, "Qt", "<6.12"),
        ({"opengl": "ImportError: libGL.so.1"}, Level.WARN, "OpenGL", "libgl1"),
        ({"opengl": "2.1 Mesa"}, Level.WARN, "OpenGL", "driver"),
        ({"free_bytes": 5000000000}, Level.WARN, "disk", "20 GB"),
        ({"free_bytes": 200000000}, Level.FAIL, "disk", "room"),
    ],
)  # fmt: skip
def test_each_trouble_is_told_with_its_remedy(
    changes: Mapping[str, object], level: Level, topic: str, words: str
) -> None:
    facts = replace(HEALTHY, **changes)
    assert (level, topic) in troubles(facts)
    assert any(words in each.remedy for each in examine(facts) if each.topic == topic)


def test_only_that_trouble_is_told() -> None:
    assert troubles(replace(HEALTHY, free_bytes=200000000)) == [(Level.FAIL, "disk")]
    assert troubles(replace(HEALTHY, usb_memory_mb=0)) == [], "0 is no limit"
    assert troubles(replace(HEALTHY, udev_rules={})) == [], "a board that may be opened needs no rule"


def test_other_systems_are_not_asked_for_linux_things() -> None:
    windows = replace(HEALTHY, system="Windows", udev_rules={}, usb_memory_mb=None, boards=())
    assert [topic for _, topic in troubles(windows)] == ["boards"]


def test_a_broken_qt_is_none_on_a_newer_python() -> None:
    assert troubles(replace(HEALTHY, qt="6.12.0", python=(3, 12, 1))) == []


def test_a_trouble_without_a_remedy_cannot_be() -> None:
    with pytest.raises(ValueError, match="remedy"):
        Finding(level=Level.WARN, topic="disk", text="full")


@pytest.mark.parametrize(
    ("older", "newer"), [("0.9.1", "0.61"), ("2", "2.0.1"), ("1.0.30.0", "1.1"), ("3.11.0rc1", "3.11.2"), ("", "0.1")]
)
def test_versions_are_compared_by_number(older: str, newer: str) -> None:
    assert version_of(older) < version_of(newer)
    assert version_of("2.0") == version_of("2") == version_of("2.0.0")


# The door


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Make a system with one board at bus 2, device 3, held by process 41 through usbfs."""
    node = tmp_path / "dev/bus/usb/002/003"
    node.parent.mkdir(parents=True)
    node.touch(mode=0o600)
    device = tmp_path / "sys/bus/usb/devices/2-1"
    interface = tmp_path / "sys/bus/usb/devices/2-1/2-1:1.0"
    interface.mkdir(parents=True)
    (device / "busnum").write_text("2\n")
    (device / "devnum").write_text("3\n")
    driver = tmp_path / "sys/bus/usb/drivers/usbfs"
    driver.mkdir(parents=True)
    (interface / "driver").symlink_to(driver)
    for process, name, target in ((41, "other", node), (42, "editor", tmp_path / "file"), (os.getpid(), "me", node)):
        files = tmp_path / f"proc/{process}/fd"
        files.mkdir(parents=True)
        (files / "3").symlink_to(target)
        (files.parent / "comm").write_text(f"{name}\n")
    parameters = tmp_path / "sys/module/usbcore/parameters"
    parameters.mkdir(parents=True)
    (parameters / "usbfs_memory_mb").write_text("16\n")
    rules = tmp_path / "etc/udev/rules.d"
    rules.mkdir(parents=True)
    (rules / "60-mpxct.rules").write_text(f"# for the board\n{UDEV_RULE}\n")
    (rules / "61-other.rules").write_text('SUBSYSTEM=="usb", ATTR{idVendor}=="046d"\n# ' + UDEV_RULE + "\n")
    return tmp_path


def test_linux_tells_who_holds_a_board(root: Path) -> None:
    seen = UsbBoard(serial="B-17", bus=2, address=3, speed_mbit_s=480, problem="")
    board = machine.board_facts(seen, root)
    assert board.driver == "usbfs"
    assert board.holders == ("other (process 41)",)
    assert board.node == str(root / "dev/bus/usb/002/003")
    assert board.is_allowed
    other = machine.board_facts(replace(seen, address=4), root)
    assert (other.driver, other.holders, other.node) == ("", (), "")


def test_linux_tells_rules_and_memory(root: Path) -> None:
    assert machine.udev_rules(root) == {str(root / "etc/udev/rules.d/60-mpxct.rules"): UDEV_RULE}
    assert machine.usb_memory_mb(root) == 16
    assert machine.usb_memory_mb(root / "elsewhere") is None


def test_the_table_of_gpus_is_read() -> None:
    table = "NVIDIA H200, 143771, 580.65.06\nNVIDIA A2, 15356, 580.65.06\n"
    assert [gpu.memory_mb for gpu in machine.gpus(table)] == [143_771, 15_356]
    assert machine.gpus("") == ()
    assert machine.gpus("NVIDIA-SMI has failed, because, of the driver") == ()


def test_requirements_are_those_of_the_package_without_its_extras() -> None:
    found = {each.name: each for each in machine.requirements()}
    assert found["numpy"].oldest == (2,)
    assert found["numpy"].installed
    assert "PySide6-Essentials" not in found


def test_this_machine_can_be_examined(tmp_path: Path) -> None:
    facts = machine.gather(tmp_path)
    assert facts.disk == tmp_path
    assert facts.free_bytes > 0
    assert examine(facts)[0].level is Level.OK


# The commands


class Paper:
    """A console that prints as the front door does."""

    def emit(self, figures: Mapping[str, object], text: str, *, as_json: bool) -> None:
        typer.echo(json.dumps(figures) if as_json else text)


def run(*arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    cli.register(app)
    result = CliRunner().invoke(app, arguments, obj=Paper())
    return result.exit_code, result.output


@pytest.mark.parametrize(("free_gb", "code", "worst"), [(400, 0, "ok"), (5, 0, "warn"), (0, 1, "fail")])
def test_the_exit_code_tells_whether_it_is_bad(
    monkeypatch: pytest.MonkeyPatch, free_gb: int, code: int, worst: str
) -> None:
    monkeypatch.setattr(machine, "gather", lambda folder: replace(HEALTHY, free_bytes=free_gb * 10**9))
    exit_code, output = run("doctor", "--json")
    assert exit_code == code
    assert json.loads(output)["worst"] == worst
    exit_code, output = run("doctor")
    assert exit_code == code
    assert [line.split()[0] for line in output.splitlines() if not line.startswith(" ")][-1] == worst


def test_devices_lists_what_can_be_opened() -> None:
    exit_code, output = run("devices", "--json")
    assert exit_code == 0
    urls = [device["url"] for device in json.loads(output)["devices"]]
    assert "sim:demo" in urls
    assert "merlin://HOST" in urls


def test_a_scheme_that_cannot_look_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    import libusb_package

    monkeypatch.setattr(libusb_package, "get_libusb1_backend", lambda: None)
    exit_code, output = run("devices")
    assert exit_code == 0
    assert "libusb cannot be loaded" in output
    assert "sim:demo" in output
