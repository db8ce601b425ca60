"""What a machine has and lacks: what the facts mean that `machine` gathers, and the remedy for each fault.

# Ref: limit of USB memory, order of udev rules, speed: daq_gui reference 4.1 and 4.2; PySide6 6.12 on Python 3.11: its
#      section 0; OpenGL 3.3 is what the volume view's shaders ask for.
# Ref: first drivers of CUDA 12 and 13 on Linux: CUDA Toolkit release notes, table "CUDA Toolkit and minimum required
#      driver version for CUDA minor version compatibility": 525 and 580.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from firmware_iface.usb_errors import UDEV_RULE, UDEV_RULE_PATH

OLDEST_PYTHON = (3, 11)
USB_MEMORY_MB = 16
"""What Linux lends to all USB transfers by default; one board posts 6 to 8 MB."""
WANTED_SPEED_MBIT_S = 5000
USABLE_SPEED_MBIT_S = 480
SCAN_BYTES = 20_000_000_000
"""A scan of some thousand views with its volumes."""
LEAST_BYTES = 1_000_000_000
DRIVER_OF_CUDA: Mapping[int, int] = {13: 580, 12: 525}
OLDEST_OPENGL = (3, 3)
_BROKEN_QT = "6.12.0"
_RELOAD = "sudo udevadm control --reload-rules && sudo udevadm trigger"


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the doctor's report.

    Attributes
    ----------
    level : Level
        FAIL where mpxct cannot do what it is for; WARN where some part of it is slow or missing.
    topic, text, remedy : str
        What it is about, how it is, and what to do; the remedy is empty where all is well.
    """

    level: Level
    topic: str
    text: str
    remedy: str = ""

    def __post_init__(self) -> None:
        if self.level is not Level.OK and not self.remedy:
            raise ValueError(f"{self.topic}: a finding of level {self.level} needs a remedy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """A package that mpxct depends on.

    Attributes
    ----------
    oldest : tuple of int
        The oldest version that will do; empty where any does.
    installed : str
        Empty where it is not.
    """

    name: str
    oldest: tuple[int, ...]
    installed: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardFacts:
    """A board on USB.

    Attributes
    ----------
    node : str
        File of the device; empty where the system has no such.
    is_allowed : bool
        Whether this user may read and write it.
    driver : str
        Kernel driver that holds its interface; "usbfs" is a program.
    holders : tuple of str
        Programs that have it open, as far as this user may see.
    """

    serial: str
    speed_mbit_s: int
    problem: str = ""
    node: str = ""
    is_allowed: bool = True
    driver: str = ""
    holders: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU, as its driver tells of it."""

    name: str
    memory_mb: int
    driver: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was found on a machine.

    Attributes
    ----------
    usb_error : str
        Why no look at the bus was possible; empty if it was.
    udev_rules : mapping of str to str
        Path and text of the rule files that tell of our board.
    usb_memory_mb : int or None
        Limit of Linux; 0 is none, None where the system has no such.
    cupy : str
        Version of CuPy; `cupy_error` tells why it does not work.
    opengl : str
        Version that Qt got, or why it got none.
    """

    system: str
    python: tuple[int, ...]
    requirements: tuple[Requirement, ...]
    usb_error: str = ""
    boards: tuple[BoardFacts, ...] = ()
    udev_rules: Mapping[str, str]
    usb_memory_mb: int | None = None
    gpus: tuple[Gpu, ...] = ()
    cupy: str = ""
    cupy_error: str = ""
    qt: str = ""
    opengl: str = ""
    disk: Path
    free_bytes: int


# What the facts mean


def examine(facts: Facts) -> tuple[Finding, ...]:
    """Judge the facts."""
    return (
        _python(facts),
        *_requirements(facts),
        _usb(facts),
        *(finding for board in facts.boards for finding in _board(board)),
        *_linux(facts),
        _gpu(facts),
        _qt(facts),
        *_opengl(facts),
        _disk(facts),
    )


def _python(facts: Facts) -> Finding:
    text = ".".join(map(str, facts.python))
    if facts.python < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        return _fail("Python", f"{text} is too old", f"install Python {oldest} or newer, and make .venv anew with it")
    return _ok("Python", text)


def _requirements(facts: Facts) -> Iterator[Finding]:
    for each in facts.requirements:
        oldest = ".".join(map(str, each.oldest))
        wanted = f"{each.name}>={oldest}" if oldest else each.name
        if not each.installed:
            yield _fail("package", f"{each.name} is not installed", f"pip install '{wanted}'")
        elif version_of(each.installed) < each.oldest:
            yield _fail("package", f"{each.name} {each.installed} is older than {oldest}", f"pip install '{wanted}'")
    if facts.requirements:
        good = [each for each in facts.requirements if each.installed and version_of(each.installed) >= each.oldest]
        yield _ok("packages", ", ".join(f"{each.name} {each.installed}" for each in good) or "none")


def _usb(facts: Facts) -> Finding:
    if facts.usb_error:
        return _fail("libusb", facts.usb_error, "install the package libusb-package again")
    if not facts.boards:
        return _warn(
            "boards",
            "no board on USB",
            "plug one in and power it; without one, work with the simulated: --device sim:demo",
        )
    return _ok("boards", f"{len(facts.boards)} on USB")


def _board(board: BoardFacts) -> Iterator[Finding]:
    topic = f"board {board.serial or board.node or '?'}"
    if not board.is_allowed or board.problem:
        yield _fail(
            topic,
            board.problem or f"you may not open {board.node}",
            f"write this line into {UDEV_RULE_PATH}: {UDEV_RULE}  Then: {_RELOAD}; and plug the board in again",
        )
    if board.driver and board.driver != "usbfs":
        yield _fail(
            topic,
            f"the kernel driver {board.driver} holds its interface",
            f"unbind it: sudo modprobe -r {board.driver}; on Windows choose WinUSB for it with Zadig",
        )
    if board.driver == "usbfs" or board.holders:
        who = ", ".join(board.holders) or "a program of another user"
        yield _fail(topic, f"in use by {who}", "close that program; one program at a time can hold a board")
    if board.speed_mbit_s >= WANTED_SPEED_MBIT_S:
        yield _ok(topic, f"{board.speed_mbit_s} Mbit/s")
    elif board.speed_mbit_s >= USABLE_SPEED_MBIT_S:
        yield _warn(
            topic,
            f"{board.speed_mbit_s} Mbit/s: about 400 frames/s of 12 bit",
            "for full speed use a USB 3 socket and cable; the board may be of USB 2 itself",
        )
    elif board.speed_mbit_s:
        yield _fail(topic, f"{board.speed_mbit_s} Mbit/s is too slow", "leave out the hub and use another cable")


def _linux(facts: Facts) -> Iterator[Finding]:
    if facts.system != "Linux":
        return
    may_open = all(board.is_allowed for board in facts.boards) and bool(facts.boards)
    late = [path for path in facts.udev_rules if Path(path).name >= "73"]
    if facts.udev_rules and not late:
        yield _ok("udev rule", ", ".join(facts.udev_rules))
    elif late:
        yield _warn(
            "udev rule", f"{late[0]} sorts behind 73-seat-late.rules, which gives the access out",
            f"rename it: sudo mv {late[0]} {UDEV_RULE_PATH}",
        )  # fmt: skip
    elif may_open:
        yield _ok("udev rule", "none, and none needed: the board may be opened")
    else:
        yield _warn(
            "udev rule", "none tells of the board, so only root may open it",
            f"write this line into {UDEV_RULE_PATH}: {UDEV_RULE}  Then: {_RELOAD}",
        )  # fmt: skip
    limit_mb = facts.usb_memory_mb
    if limit_mb is None:
        yield _warn("usbfs memory", "this kernel has no USB", "in a container or virtual machine, pass the board on")
    elif 0 < limit_mb < USB_MEMORY_MB:
        yield _warn(
            "usbfs memory", f"{limit_mb} MB for all transfers; a board needs 8",
            "echo 64 | sudo tee /sys/module/usbcore/parameters/usbfs_memory_mb; for good: kernel parameter "
            "usbcore.usbfs_memory_mb=64",
        )  # fmt: skip
    else:
        yield _ok("usbfs memory", f"{limit_mb} MB" if limit_mb else "no limit")


def _gpu(facts: Facts) -> Finding:
    if not facts.gpus:
        return _warn("GPU", "none found", "reconstruction runs on the CPU; with an NVIDIA card, install its driver")
    names = ", ".join(f"{gpu.name} ({gpu.memory_mb} MB, driver {gpu.driver})" for gpu in facts.gpus)
    if facts.cupy and not facts.cupy_error:
        return _ok("GPU", f"{names}, CuPy {facts.cupy}")
    driver = version_of(facts.gpus[0].driver)[:1]
    cuda = next((cuda for cuda, oldest in DRIVER_OF_CUDA.items() if driver >= (oldest,)), None)
    if cuda is None:
        return _warn(
            "GPU", f"{names}: the driver is too old", f"install driver {min(DRIVER_OF_CUDA.values())} or newer"
        )
    why = f"CuPy {facts.cupy} does not work: {facts.cupy_error}" if facts.cupy else "CuPy is not installed"
    return _warn("GPU", f"{names}; {why}", f"pip install 'mpxct[gpu-cuda{cuda}]'")


def _qt(facts: Facts) -> Finding:
    if not facts.qt:
        return _warn("Qt", "PySide6 is not installed", "for the window: pip install 'mpxct[gui]'")
    if facts.qt == _BROKEN_QT and facts.python[:2] == (3, 11):
        return _fail("Qt", f"PySide6 {facts.qt} crashes Python 3.11", "pip install 'PySide6-Essentials>=6.11,<6.12'")
    return _ok("Qt", f"PySide6 {facts.qt}")


def _opengl(facts: Facts) -> Iterator[Finding]:
    if not facts.qt:
        return
    found = re.match(r"(\d+)\.(\d+)", facts.opengl)
    remedy = "install the graphics driver, or Mesa: sudo apt-get install libgl1 libegl1 libgl1-mesa-dri"
    if not found:
        yield _warn("OpenGL", facts.opengl or "none found", f"the volume view needs it; {remedy}")
    elif (int(found[1]), int(found[2])) < OLDEST_OPENGL:
        yield _warn("OpenGL", f"{facts.opengl} is older than 3.3", f"the volume view needs it; {remedy}")
    else:
        yield _ok("OpenGL", facts.opengl)


def _disk(facts: Facts) -> Finding:
    text = f"{facts.free_bytes / 1e9:.1f} GB free at {facts.disk}"
    if facts.free_bytes < LEAST_BYTES:
        return _fail("disk", text, "make room, or work in another folder")
    if facts.free_bytes < SCAN_BYTES:
        wanted = f"{SCAN_BYTES / 1e9:g} GB"
        return _warn("disk", text, f"a long scan takes up to {wanted}; mpxct acquire --dry-run tells how much")
    return _ok("disk", text)


def _ok(topic: str, text: str) -> Finding:
    return Finding(level=Level.OK, topic=topic, text=text)


def _warn(topic: str, text: str, remedy: str) -> Finding:
    return Finding(level=Level.WARN, topic=topic, text=text, remedy=remedy)


def _fail(topic: str, text: str, remedy: str) -> Finding:
    return Finding(level=Level.FAIL, topic=topic, text=text, remedy=remedy)


def version_of(text: str) -> tuple[int, ...]:
    """Return the numbers that a version begins with, without zeros at their end."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, re.sub(r"(\.0+)+$", "", found[0]).split("."))) if found else ()
