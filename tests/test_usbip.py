"""The USB/IP server, against bytes of the specification and against a host that submits and unlinks at random."""

from __future__ import annotations

import errno
import random
import socket
import struct
from collections.abc import Iterator

import pytest

from sim.usb_link import Server
from sim.usb_model import MANUFACTURER, UsbDevice, configuration_descriptor, device_descriptor
from sim.usbip import serve_usbip
from tests.kernel.tape import FRAME_BYTES, GO, HALT, Tape, frames_of

VERSION = b"\x01\x11"
GET_DEVICE_DESCRIPTOR = bytes.fromhex("8006000100001200")
CLEAR_HALT_OF_REPLIES = bytes.fromhex("0201000081000000")
NO_SETUP = bytes(8)
OUT, IN = 0, 1


class Host:
    """A host by the specification, byte for byte, that sends and receives by hand."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.settimeout(10)
        self.number = 0

    def take(self, n_bytes: int) -> bytes:
        data = b""
        while len(data) < n_bytes:
            piece = self.socket.recv(n_bytes - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def import_device(self, bus_id: bytes = b"1-1") -> int:
        self.socket.sendall(VERSION + b"\x80\x03" + bytes(4) + bus_id.ljust(32, b"\0"))
        version, code, status = struct.unpack(">HHI", self.take(8))
        assert (version, code) == (0x0111, 0x0003)
        if status == 0:
            self.description = self.take(312)
        return status

    def submit(self, direction: int, endpoint: int, n_bytes: int, data: bytes = b"", setup: bytes = NO_SETUP) -> int:
        self.number += 1
        self.socket.sendall(
            struct.pack(">IIIII", 1, self.number, 0x00010002, direction, endpoint)
            + struct.pack(">IIIII", 0, n_bytes, 0, 0, 0) + setup + data
        )  # fmt: skip
        return self.number

    def unlink(self, victim: int) -> int:
        self.number += 1
        self.socket.sendall(struct.pack(">IIIII", 2, self.number, 0x00010002, 0, 0) + struct.pack(">I24x", victim))
        return self.number

    def answer(self, ins: set[int]) -> tuple[int, int, int, bytes]:
        """Return command, sequence number, status and data; only the transfers in `ins` bring data."""
        command, number, _, _, _, status, n_bytes = struct.unpack(">IIIIIiI", self.take(28))
        self.take(20)
        return command, number, status, self.take(n_bytes) if command == 3 and number in ins else b""

    def control(self, setup: bytes) -> tuple[int, bytes]:
        number = self.submit(IN if setup[0] & 0x80 else OUT, 0, int.from_bytes(setup[6:], "little"), setup=setup)
        command, answered, status, data = self.answer({number})
        assert (command, answered) == (3, number)
        return status, data


@pytest.fixture
def device() -> UsbDevice:
    return UsbDevice(Tape(), "TAPE-1")  # pyright: ignore[reportArgumentType]


@pytest.fixture
def server(device: UsbDevice) -> Iterator[Server]:
    with serve_usbip(device, 0) as server:
        yield server


@pytest.fixture
def host(server: Server) -> Iterator[Host]:
    host = Host(server.port)
    assert host.import_device() == 0
    yield host
    host.socket.close()


def test_the_list_is_that_of_the_specification(server: Server) -> None:
    host = Host(server.port)
    host.socket.sendall(bytes.fromhex("0111 8005 00000000"))
    assert host.take(12) == bytes.fromhex("0111 0005 00000000 00000001")
    description = host.take(312)
    assert description[256:288] == b"1-1".ljust(32, b"\0")
    assert description[288:] == bytes.fromhex("00000001 00000002 00000003 1209 0001 0200 ff 00 00 00 01 01")
    assert host.take(4) == bytes.fromhex("ff 00 00 00")
    with pytest.raises(EOFError):
        host.take(1)
    host.socket.close()


def test_one_host_at_a_time_has_the_device(server: Server, host: Host) -> None:
    assert host.description[288:300] == bytes.fromhex("00000001 00000002 00000003")
    second = Host(server.port)
    assert second.import_device() == 2
    third = Host(server.port)
    assert third.import_device(b"2-7") == 4
    for each in (second, third):
        each.socket.close()


def test_control_requests_and_stall(host: Host, device: UsbDevice) -> None:
    assert host.control(GET_DEVICE_DESCRIPTOR) == (0, device_descriptor(device.speed))
    everything = host.control(bytes.fromhex("800600020000ff00"))
    assert everything == (0, configuration_descriptor(device.speed))
    status, text = host.control(bytes.fromhex("800601030904ff00"))
    assert (status, text[2:].decode("utf-16-le")) == (0, MANUFACTURER)
    assert host.control(bytes.fromhex("0009010000000000")) == (0, b"")
    assert device.configuration == 1
    assert host.control(bytes.fromhex("c077000000000400")) == (-errno.EPIPE, b"")


def test_a_read_waits_for_what_a_write_brings(host: Host) -> None:
    reading = host.submit(IN, 1, 512)
    writing = host.submit(OUT, 1, 5, b"hello")
    answers = {number: (command, status, data) for command, number, status, data in
               (host.answer({reading}) for _ in range(2))}  # fmt: skip
    assert answers == {reading: (3, 0, b"hello"), writing: (3, 0, b"")}


def test_an_unlinked_read_takes_no_data_with_it(host: Host) -> None:
    reading = host.submit(IN, 1, 512)
    unlinking = host.unlink(reading)
    assert host.answer(set()) == (4, unlinking, -errno.ECONNRESET, b"")
    again = host.submit(IN, 1, 512)
    writing = host.submit(OUT, 1, 4, b"data")
    assert {host.answer({again}) for _ in range(2)} == {(3, again, 0, b"data"), (3, writing, 0, b"")}


def test_an_unlink_that_comes_late_says_so(host: Host) -> None:
    writing = host.submit(OUT, 1, 4, b"data")
    assert host.answer(set()) == (3, writing, 0, b"")
    unlinking = host.unlink(writing)
    assert host.answer(set()) == (4, unlinking, 0, b"")


def test_a_halt_reaches_a_read_that_waits_and_ends_when_cleared(host: Host, device: UsbDevice) -> None:
    reading = host.submit(IN, 1, 512)
    device.halt(0x81)
    assert host.answer({reading}) == (3, reading, -errno.EPIPE, b"")
    assert host.control(CLEAR_HALT_OF_REPLIES) == (0, b"")
    host.submit(OUT, 1, 4, b"data")
    host.answer(set())
    again = host.submit(IN, 1, 512)
    assert host.answer({again}) == (3, again, 0, b"data")


def test_what_the_device_cannot_do_is_an_error_and_no_more(host: Host) -> None:
    unknown = host.submit(IN, 5, 512)
    assert host.answer({unknown}) == (3, unknown, -errno.ENOENT, b"")
    host.submit(OUT, 1, 4, b"data")
    host.answer(set())
    too_small = host.submit(IN, 1, 3)
    assert host.answer({too_small}) == (3, too_small, -errno.EOVERFLOW, b"")


@pytest.mark.parametrize("seed", range(5))
def test_every_transfer_is_answered_once_and_no_byte_is_lost(host: Host, seed: int) -> None:
    rng = random.Random(seed)
    ins: set[int] = set()
    under_way: set[int] = set()
    unlinks: dict[int, int] = {}
    n_unlinked = 0
    stream = b""

    def hear() -> None:
        nonlocal stream, n_unlinked
        command, number, status, data = host.answer(ins)
        if command == 3:
            assert number in under_way, "answered twice, or after its unlink"
            assert status == 0
            under_way.remove(number)
            stream += data
            return
        victim = unlinks.pop(number)
        if status == -errno.ECONNRESET:
            under_way.remove(victim)
            n_unlinked += 1
        else:
            assert status == 0
            assert victim not in under_way, "the answer to the transfer must come before the answer to its unlink"

    def write(word: bytes) -> None:
        under_way.add(host.submit(OUT, 1, len(word), word))

    write(GO)
    for _ in range(400):
        if rng.random() < 0.5:
            number = host.submit(IN, 2, 512 * rng.randint(1, 300))
            ins.add(number)
            under_way.add(number)
        elif rng.random() < 0.3:
            write(rng.choice((GO, HALT)))
        elif ins:
            victim = rng.choice(sorted(ins)[-5:])
            if victim not in unlinks.values():
                unlinks[host.unlink(victim)] = victim
        if len(under_way) + len(unlinks) > 8:
            write(GO)  # so that what is read comes
            while len(under_way) + len(unlinks) > 8:
                hear()
    write(GO)
    while under_way or unlinks:
        hear()
    assert n_unlinked > 0
    assert len(stream) > 10 * FRAME_BYTES
    assert stream == frames_of(len(stream))


def test_a_pulled_device_hangs_up_and_comes_back(server: Server, host: Host, device: UsbDevice) -> None:
    host.submit(OUT, 1, len(GO), GO)
    host.answer(set())
    host.submit(OUT, 1, len(HALT), HALT)
    host.answer(set())
    host.submit(IN, 2, 1 << 20)
    device.unplug()
    with pytest.raises(EOFError):
        host.take(1)
    gone = Host(server.port)
    assert gone.import_device() == 4
    device.plug()
    back = Host(server.port)
    assert back.import_device() == 0
    assert back.control(GET_DEVICE_DESCRIPTOR)[0] == 0
    for each in (gone, back):
        each.socket.close()


@pytest.mark.parametrize(
    "nonsense",
    [
        bytes.fromhex("0100 8003 00000000"),  # another version
        bytes.fromhex("0111 9999 00000000"),  # another operation
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_a_stranger_is_hung_up_on(server: Server, nonsense: bytes) -> None:
    stranger = Host(server.port)
    stranger.socket.sendall(nonsense)
    with pytest.raises((EOFError, ConnectionResetError)):
        stranger.take(1)
    stranger.socket.close()
    friend = Host(server.port)
    assert friend.import_device() == 0
    friend.socket.close()


@pytest.mark.parametrize(
    "packet", [struct.pack(">IIIII28x", 9, 1, 0, 0, 0), struct.pack(">IIIIIIi20x", 1, 1, 0, 0, 1, 0, -1)]
)
def test_a_host_that_loses_its_way_is_hung_up_on(server: Server, host: Host, packet: bytes) -> None:
    host.socket.sendall(packet)
    with pytest.raises((EOFError, ConnectionResetError)):
        host.take(1)


def test_a_host_that_does_not_listen_harms_nobody(server: Server, host: Host, device: UsbDevice) -> None:
    host.submit(OUT, 1, len(GO), GO)
    for _ in range(64):
        host.submit(IN, 2, 1 << 20)  # more than the sockets hold, and none of it is read
    device.halt(0x81)  # the device's lock is free
    server.close()
