"""The door through which `doctor` sees this machine: files of the system, programs, packages and the USB bus.

What may crash or hang, such as a broken graphics driver, is asked in a process of its own.

# Ref: names of files below /sys/bus/usb and /proc: Linux kernel documentation, `ABI/stable/sysfs-bus-usb` and proc(5).
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from acquisition.doctor import BoardFacts, Facts, Gpu, Requirement, version_of
from firmware_iface.errors import TransportError
from firmware_iface.usb_errors import UDEV_VENDOR
from firmware_iface.usb_transport import UsbBoard, usb_boards

DISTRIBUTION = "mpxct"
ASK_TIMEOUT_S = 30.0
ROOT = Path("/")
RULE_FOLDERS = ("etc/udev/rules.d", "run/udev/rules.d", "usr/lib/udev/rules.d", "lib/udev/rules.d")
_ASK_GPU = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits")
_ASK_CUPY = "import cupy; cupy.zeros(1).sum().item()"
_ASK_OPENGL = """
from PySide6.QtGui import QGuiApplication, QOffscreenSurface, QOpenGLContext
application, surface, context = QGuiApplication([]), QOffscreenSurface(), QOpenGLContext()
surface.create()
if not (context.create() and context.makeCurrent(surface)):
    raise SystemExit("Qt gets no OpenGL context")
print(context.functions().glGetString(0x1F02), context.functions().glGetString(0x1F01))
"""


def gather(folder: Path) -> Facts:
    """Look at everything that `examine` judges; `folder` is where scans would be written."""
    boards, usb_error = _boards()
    qt = installed_version("PySide6-Essentials") or installed_version("PySide6")
    cupy = next(filter(None, map(installed_version, ("cupy-cuda13x", "cupy-cuda12x", "cupy"))), "")
    return Facts(
        system=platform.system(),
        python=tuple(sys.version_info[:3]),
        requirements=requirements(),
        usb_error=usb_error,
        boards=boards,
        udev_rules=udev_rules(),
        usb_memory_mb=usb_memory_mb(),
        gpus=gpus(_ask(_ASK_GPU)[0]),
        cupy=cupy,
        cupy_error=_ask((sys.executable, "-c", _ASK_CUPY))[1] if cupy else "",
        qt=qt,
        opengl=" ".join(filter(None, _ask((sys.executable, "-c", _ASK_OPENGL)))) if qt else "",
        disk=folder.resolve(),
        free_bytes=shutil.disk_usage(folder).free,
    )


def requirements() -> tuple[Requirement, ...]:
    """Return what this package says that it needs, extras apart."""
    try:
        stated = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:  # run from a folder without being installed
        return ()
    found = (re.match(r"([\w.-]+)(?:\[[^]]*\])?\s*(?:>=([\d.]+))?", text) for text in stated if "extra ==" not in text)
    return tuple(
        Requirement(name=each[1], oldest=version_of(each[2] or ""), installed=installed_version(each[1]))
        for each in found
        if each
    )


def installed_version(name: str) -> str:
    """Return the version of an installed distribution, or nothing."""
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return ""


def _boards() -> tuple[tuple[BoardFacts, ...], str]:
    try:
        return tuple(map(board_facts, usb_boards())), ""
    except TransportError as error:
        return (), str(error)


def board_facts(board: UsbBoard, root: Path = ROOT) -> BoardFacts:
    """Add what Linux knows of a board; other systems tell nothing more."""
    node = root / f"dev/bus/usb/{board.bus:03}/{board.address:03}"
    is_there = node.exists()
    return BoardFacts(
        serial=board.serial,
        speed_mbit_s=board.speed_mbit_s,
        problem=board.problem,
        node=str(node) if is_there else "",
        is_allowed=not is_there or os.access(node, os.R_OK | os.W_OK),
        driver=next(_drivers(board, root), ""),
        holders=tuple(_holders(node, root)) if is_there else (),
    )


def _drivers(board: UsbBoard, root: Path) -> Iterator[str]:
    for device in (root / "sys/bus/usb/devices").glob("*"):
        place = tuple(_text(device / name) for name in ("busnum", "devnum"))
        if place == (str(board.bus), str(board.address)):
            for driver in sorted(device.glob("*:*/driver")):
                yield driver.resolve().name


def _holders(node: Path, root: Path) -> Iterator[str]:
    """Yield the programs that have the device open, other than this one; those of other users cannot be seen."""
    for process in sorted((root / "proc").glob("[0-9]*")):
        if process.name == str(os.getpid()):
            continue
        with suppress(OSError):
            if any(link.resolve() == node for link in (process / "fd").iterdir()):
                yield f"{_text(process / 'comm') or 'a program'} (process {process.name})"


def udev_rules(root: Path = ROOT) -> dict[str, str]:
    """Return the rule files that tell of our board, by their path."""
    found: dict[str, str] = {}
    for folder in RULE_FOLDERS:
        for path in sorted((root / folder).glob("*.rules")):
            lines = [line for line in _text(path).splitlines() if not line.lstrip().startswith("#")]
            if any(UDEV_VENDOR in line for line in lines):
                found[str(path)] = "\n".join(lines)
    return found


def usb_memory_mb(root: Path = ROOT) -> int | None:
    """Return the limit of memory for USB transfers; None where the kernel has none."""
    text = _text(root / "sys/module/usbcore/parameters/usbfs_memory_mb")
    return int(text) if text.isdigit() else None


def gpus(table: str) -> tuple[Gpu, ...]:
    """Read the table of ``nvidia-smi``: name, memory in MiB, driver."""
    rows = (line.split(", ") for line in table.splitlines())
    return tuple(
        Gpu(name=row[0], memory_mb=int(row[1]), driver=row[2]) for row in rows if len(row) == 3 and row[1].isdigit()
    )


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(errors="replace").strip()
    return ""


def _ask(command: tuple[str, ...]) -> tuple[str, str]:
    """Run a program; return what it says, and, if it failed, the last line of its complaint."""
    has_screen = any(name in os.environ for name in ("DISPLAY", "WAYLAND_DISPLAY")) or platform.system() != "Linux"
    environment = os.environ if has_screen else {**os.environ, "QT_QPA_PLATFORM": "offscreen"}
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=ASK_TIMEOUT_S, check=False, env=environment
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", f"{command[0]}: {error}"
    if answer.returncode:
        lines = answer.stderr.strip().splitlines()
        return "", lines[-1] if lines else f"it ended with code {answer.returncode}"
    return answer.stdout.strip(), ""
