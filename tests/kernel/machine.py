"""A virtual machine with a real kernel, and a program in it that does what it is asked.

QEMU emulates the processor, so that this runs where nothing may be virtualised; one, for two that share their memory
take twice the time for the same. The guest sees the host's files, read only under a layer of memory, and this
computer's ports; the device comes by usbredir into its xHCI controller, or by USB/IP into its `vhci_hcd`.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.kernel.image import BUILD, QEMU, Image

PROGRAM = Path(__file__).resolve().with_name("guest.py")
START_TIMEOUT_S = 120.0
CONSOLE = BUILD / "console.txt"


class GuestError(Exception):
    """What a request raised in the guest."""

    def __init__(self, name: str, number: int | None, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name, self.number = name, number


class Machine:
    """A running guest.

    Parameters
    ----------
    image : Image
    redirected : sequence of int
        Ports of usbredir servers, whose devices are plugged in from the start.
    """

    def __init__(self, image: Image, redirected: tuple[int, ...] = ()) -> None:
        subprocess.run([sys.executable, PROGRAM, "warm"], check=True)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(START_TIMEOUT_S)
            with CONSOLE.open("wb") as console:
                self._process = subprocess.Popen(
                    _command(image, redirected, listener.getsockname()[1]),
                    stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT,
                )  # fmt: skip
            try:
                self._connection = self._await_guest(listener)
            except BaseException:
                self._end()
                raise
        self._lines = self._connection.makefile("rw", encoding="utf-8")

    def do(self, name: str, *, timeout_s: float = 60.0, **arguments: object) -> Any:
        """Ask the guest to do something and return its answer.

        Raises
        ------
        GuestError
        """
        return self.begin(name, timeout_s=timeout_s, **arguments)()

    def begin(self, name: str, *, timeout_s: float = 60.0, **arguments: object) -> Callable[[], Any]:
        """Ask the guest to do something; return the function that waits for the answer."""
        self._connection.settimeout(timeout_s)
        self._lines.write(json.dumps({"do": name, "with": arguments}) + "\n")
        self._lines.flush()

        def answer() -> Any:
            line = self._lines.readline()
            if not line:
                raise AssertionError(f"the guest is gone; its console: {self.console()[-2000:]}")
            told = json.loads(line)
            if "error" in told:
                raise GuestError(told["error"], told["errno"], told["message"])
            return told["result"]

        return answer

    def console(self) -> str:
        """Return what the guest's console has shown."""
        return CONSOLE.read_text(errors="replace")

    def close(self) -> None:
        """Let the guest end, and QEMU with it."""
        self._lines.close()
        self._connection.close()
        self._end()

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _await_guest(self, listener: socket.socket) -> socket.socket:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            raise AssertionError(f"the guest did not start; its console: {self.console()[-2000:]}") from None
        return connection

    def _end(self) -> None:
        try:
            self._process.wait(10.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _command(image: Image, redirected: tuple[int, ...], talk_port: int) -> list[str]:
    words = [
        "console=ttyS0", "quiet", "panic=-1", "mitigations=off", "no_timer_check",
        f"GUEST_PYTHON={sys.executable}", f"GUEST_PROGRAM={PROGRAM}", f"GUEST_TALK={talk_port}",
    ]  # fmt: skip
    command = [
        QEMU, "-accel", "tcg", "-cpu", "Nehalem", "-smp", "1", "-m", "1024",
        "-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-serial", "stdio",
        "-kernel", str(image.kernel), "-initrd", str(image.initramfs), "-append", " ".join(words),
        "-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap",
        "-device", "virtio-9p-pci,fsdev=root,mount_tag=hostroot",
        "-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile=",
        "-device", "qemu-xhci,id=usb",
    ]  # fmt: skip
    for number, port in enumerate(redirected):
        command += ["-chardev", f"socket,id=redir{number},host=127.0.0.1,port={port}"]
        command += ["-device", f"usb-redir,chardev=redir{number},bus=usb.0"]
    return command
