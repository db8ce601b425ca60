"""`mpxct sim`: what it lists, what it refuses, and a served device that a program finds, loses and finds again."""

from __future__ import annotations

import json
import re
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import typer

import sim.cli
from firmware_iface.configuration import Configuration
from firmware_iface.device import open_detector
from firmware_iface.errors import WrongUsage
from firmware_iface.frame import Frame

ROOT = Path(__file__).resolve().parent.parent
SERVE = """
import sys, typer, sim.cli
from tests.test_sim_cli import front_door
front_door(sys.argv[1:])
"""


class Lines:
    """A console that prints."""

    def say(self, text: str) -> None:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def emit(self, figures: Mapping[str, object], text: str, *, as_json: bool) -> None:
        sys.stdout.write(json.dumps(figures) if as_json else text)


def front_door(arguments: list[str]) -> None:
    app = typer.Typer()

    @app.callback()
    def prepare(ctx: typer.Context) -> None:
        ctx.obj = Lines()

    sim.cli.register(app)
    app(arguments, standalone_mode=False)


def test_the_list_names_instruments_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    front_door(["sim", "list"])
    text = capsys.readouterr().out
    assert "sim:demo" in text
    for option in ("unplug_after", "chips=", "pulser_us=", "first_counter=0|1", "cluster_pulse=bonded|sum", "line_s="):
        assert option in text
    front_door(["sim", "list", "--json"])
    assert "demo" in json.loads(capsys.readouterr().out)["instruments"]


@pytest.mark.parametrize("ways", [[], ["--usbip", "--merlin"]])
def test_one_way_to_serve_is_to_be_chosen(ways: list[str]) -> None:
    with pytest.raises(WrongUsage, match="one of --usbip, --usbredir, --merlin"):
        front_door(["sim", "serve", *ways])


def test_an_unknown_instrument_is_refused() -> None:
    with pytest.raises(WrongUsage, match="demo"):
        front_door(["sim", "serve", "--usbip", "nothing"])


def test_a_port_that_is_taken_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(WrongUsage, match="usbredir"):
            front_door(["sim", "serve", "--usbredir", "--port", str(port)])


def test_a_merlin_client_reaches_what_is_served_as_a_merlin() -> None:
    command = [sys.executable, "-m", "mpxct", "sim", "serve", "--merlin", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"on ports (\d+) and (\d+)", process.stdout.readline())
            assert found
            with open_detector(f"merlin://127.0.0.1:{found[1]}?data_port={found[2]}") as detector:
                detector.configure(Configuration(is_csm=False, counters=(0,)))
                frames = list(detector.frames(3, 1e-3))
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    assert [frame.sequence for frame in frames if isinstance(frame, Frame)] == [0, 1, 2]


@pytest.fixture
def served() -> Iterator[tuple[subprocess.Popen[str], int]]:
    command = [sys.executable, "-c", SERVE, "sim", "serve", "--usbip", "--port", "0"]
    process = subprocess.Popen(
        command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env={"PYTHONPATH": str(ROOT)}
    )
    assert process.stderr is not None
    found = re.search(r"on port (\d+)", process.stderr.readline())
    assert found
    assert "usbip" in process.stderr.readline()
    yield process, int(found[1])
    process.kill()
    process.communicate()


def n_listed(port: int) -> int:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(bytes.fromhex("0111 8005 00000000"))
        data = b""
        while piece := connection.recv(4096):
            data += piece
    (n_devices,) = struct.unpack_from(">I", data, 8)
    return n_devices


def test_a_served_device_is_pulled_and_put_back_by_word(served: tuple[subprocess.Popen[str], int]) -> None:
    process, port = served
    assert process.stdin is not None
    assert process.stderr is not None
    assert n_listed(port) == 1
    for word, told, n_expected in (("unplug", "off the bus", 0), ("plug", "on the bus", 1)):
        process.stdin.write(word + "\n")
        process.stdin.flush()
        assert told in process.stderr.readline()
        assert n_listed(port) == n_expected
    process.stdin.write("shake\n")
    process.stdin.flush()
    assert "allowed: unplug, plug" in process.stderr.readline()


def test_ctrl_c_ends_it_well(served: tuple[subprocess.Popen[str], int]) -> None:
    process, _ = served
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0
