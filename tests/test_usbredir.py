"""The usbredir server, against bytes of the specification and against a guest that submits and cancels at random."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Iterator

import pytest

from sim.usb_link import Server
from sim.usb_model import Speed, UsbDevice, device_descriptor
from sim.usbredir import serve_usbredir
from tests.kernel.tape import FRAME_BYTES, GO, HALT, Tape, frames_of

CAPABILITIES = 0b1111010
CONNECT, DISCONNECT, RESET, INTERFACES, ENDPOINTS = 1, 2, 3, 4, 5
SET_CONFIGURATION, GET_CONFIGURATION, CONFIGURATION_STATUS = 6, 7, 8
SET_ALTERNATE, ALTERNATE_STATUS = 9, 11
CANCEL, DISCONNECT_ACK, CONTROL, BULK = 21, 24, 100, 101
SUCCESS, CANCELLED, STALL = 0, 1, 4
REPLIES, FRAMES, COMMANDS = 0x81, 0x82, 0x01


class Guest:
    """QEMU's side by the specification, byte for byte."""

    def __init__(self, port: int, capabilities: int = CAPABILITIES) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.settimeout(10)
        self.number = 0
        self.socket.sendall(struct.pack("<III64sI", 0, 68, 0, b"a test", capabilities))

    def take(self, n_bytes: int) -> bytes:
        data = b""
        while len(data) < n_bytes:
            piece = self.socket.recv(n_bytes - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def hello(self) -> int:
        kind, n_bytes, number, version, capabilities = struct.unpack("<III64sI", self.take(80))
        assert (kind, n_bytes, number) == (0, 68, 0)
        assert version.rstrip(b"\0") == b"mpxct"
        return capabilities

    def hear(self) -> tuple[int, int, bytes]:
        kind, n_bytes, number = struct.unpack("<IIQ", self.take(16))
        return kind, number, self.take(n_bytes)

    def send(self, kind: int, body: bytes = b"", number: int | None = None) -> int:
        self.number += 1
        number = self.number if number is None else number
        self.socket.sendall(struct.pack("<IIQ", kind, len(body), number) + body)
        return number

    def read(self, endpoint: int, n_bytes: int) -> int:
        return self.send(BULK, struct.pack("<BBHIH", endpoint, 0, n_bytes & 0xFFFF, 0, n_bytes >> 16))

    def write(self, data: bytes) -> None:
        number = self.send(BULK, struct.pack("<BBHIH", COMMANDS, 0, len(data), 0, 0) + data)
        kind, answered, body = self.hear()
        assert (kind, answered, body) == (BULK, number, struct.pack("<BBHIH", COMMANDS, 0, len(data), 0, 0))

    def bulk(self) -> tuple[int, int, bytes]:
        """Return number, status and data of a bulk packet."""
        kind, number, body = self.hear()
        assert kind == BULK
        endpoint, status, low, _, high = struct.unpack_from("<BBHIH", body)
        if endpoint & 0x80:
            assert len(body) - 10 == low | high << 16
        return number, status, body[10:]

    def control(self, kind: int, request: int, value: int, index: int, n_bytes: int) -> tuple[int, bytes]:
        number = self.send(CONTROL, struct.pack("<BBBBHHH", 0, request, kind, 0, value, index, n_bytes))
        packet, answered, body = self.hear()
        assert (packet, answered) == (CONTROL, number)
        _, same_request, same_kind, status, same_value, same_index, n_done = struct.unpack_from("<BBBBHHH", body)
        assert (same_request, same_kind, same_value, same_index) == (request, kind, value, index)
        assert len(body) - 10 == (n_done if kind & 0x80 else 0)
        return status, body[10:]

    def expect_plugging(self, speed: int = 2, packet_bytes: int = 512) -> None:
        kind, _, body = self.hear()
        assert kind == INTERFACES
        assert body == struct.pack("<I32s32s32s32s", 1, b"\0", b"\xff", b"\0", b"\0")
        kind, _, body = self.hear()
        assert kind == ENDPOINTS
        types, packets = body[:32], struct.unpack("<32H", body[96:])
        assert [place for place, each in enumerate(types) if each == 2] == [1, 17, 18]
        assert [packets[place] for place in (1, 17, 18)] == [packet_bytes] * 3
        assert (types[0], types[16], set(types) - {0, 2}) == (0, 0, {255})
        kind, _, body = self.hear()
        assert (kind, body) == (CONNECT, struct.pack("<BBBBHHH", speed, 0xFF, 0, 0, 0x1209, 0x0001, 0x0200))


@pytest.fixture
def device() -> UsbDevice:
    return UsbDevice(Tape(), "TAPE-1")  # pyright: ignore[reportArgumentType]


@pytest.fixture
def server(device: UsbDevice) -> Iterator[Server]:
    with serve_usbredir(device, 0) as server:
        yield server


@pytest.fixture
def guest(server: Server) -> Iterator[Guest]:
    guest = Guest(server.port)
    assert guest.hello() & CAPABILITIES == CAPABILITIES
    guest.expect_plugging()
    yield guest
    guest.socket.close()


def test_a_superspeed_device_says_so() -> None:
    device = UsbDevice(Tape(), "TAPE-1", speed=Speed.SUPER)  # pyright: ignore[reportArgumentType]
    with serve_usbredir(device, 0) as server:
        guest = Guest(server.port)
        guest.hello()
        guest.expect_plugging(speed=3, packet_bytes=1024)
        guest.socket.close()


def test_control_requests_and_stall(guest: Guest, device: UsbDevice) -> None:
    assert guest.control(0x80, 6, 0x0100, 0, 64) == (SUCCESS, device_descriptor(device.speed))
    assert guest.control(0xC0, 0x77, 0, 0, 4) == (STALL, b"")
    assert guest.control(0x02, 3, 0, REPLIES, 0) == (SUCCESS, b"")  # SET_FEATURE: halt
    number = guest.read(REPLIES, 512)
    assert guest.bulk() == (number, STALL, b"")
    assert guest.control(0x02, 1, 0, REPLIES, 0) == (SUCCESS, b"")
    guest.write(b"data")
    number = guest.read(REPLIES, 512)
    assert guest.bulk() == (number, SUCCESS, b"data")


def test_configuration_and_alternate_setting(guest: Guest, device: UsbDevice) -> None:
    number = guest.send(SET_CONFIGURATION, b"\1")
    assert [guest.hear()[0] for _ in range(2)] == [INTERFACES, ENDPOINTS]
    assert guest.hear() == (CONFIGURATION_STATUS, number, bytes([SUCCESS, 1]))
    assert device.configuration == 1
    number = guest.send(GET_CONFIGURATION)
    assert guest.hear() == (CONFIGURATION_STATUS, number, bytes([SUCCESS, 1]))
    number = guest.send(SET_ALTERNATE, bytes([0, 3]))
    assert guest.hear() == (ALTERNATE_STATUS, number, bytes([STALL, 0, 0]))
    guest.send(RESET)
    number = guest.send(GET_CONFIGURATION)
    assert guest.hear() == (CONFIGURATION_STATUS, number, bytes([SUCCESS, 0]))


def test_a_cancelled_read_takes_no_data_with_it(guest: Guest) -> None:
    reading = guest.read(REPLIES, 512)
    guest.send(CANCEL, number=reading)
    assert guest.bulk() == (reading, CANCELLED, b"")
    guest.write(b"data")
    again = guest.read(REPLIES, 512)
    assert guest.bulk() == (again, SUCCESS, b"data")


def test_an_answer_that_crosses_its_cancelling_is_not_lost(guest: Guest) -> None:
    guest.write(b"data" * 200)
    reading = guest.read(REPLIES, 1024)
    guest.send(CANCEL, number=reading)
    number, status, data = guest.bulk()
    assert number == reading
    if status == SUCCESS:  # QEMU, which has cancelled it, drops this
        assert data == b"data" * 200
    first, second = guest.read(REPLIES, 512), guest.read(REPLIES, 512)
    assert guest.bulk() == (first, SUCCESS, b"data" * 128)
    assert guest.bulk() == (second, SUCCESS, b"data" * 72)


@pytest.mark.parametrize("seed", range(5))
def test_every_read_is_answered_once_and_no_byte_is_lost(guest: Guest, seed: int) -> None:
    rng = random.Random(seed)
    reads: list[int] = []
    cancelled: set[int] = set()
    n_cancelled = 0
    stream = b""

    def hear() -> None:
        nonlocal stream, n_cancelled
        number, status, data = guest.bulk()
        if number not in reads:
            return  # a write
        reads.remove(number)
        stream += b"" if number in cancelled else data  # QEMU drops what crosses its cancelling
        if status == CANCELLED:
            assert number in cancelled
            assert not data
            n_cancelled += 1
        else:
            assert status == SUCCESS

    def write(word: bytes) -> None:
        guest.send(BULK, struct.pack("<BBHIH", COMMANDS, 0, len(word), 0, 0) + word)

    for _ in range(400):
        if rng.random() < 0.5:
            reads.append(guest.read(FRAMES, 512 * rng.randint(1, 300)))
        elif rng.random() < 0.3:
            write(rng.choice((GO, HALT)))
        elif reads:
            victim = reads[-1]  # the newest first, as hosts do: what others brought already stays in its place
            if victim in cancelled:
                continue
            cancelled.add(victim)
            guest.send(CANCEL, number=victim)
        if len(reads) > 8:
            write(GO)  # so that what is read comes
            while len(reads) > 8:
                hear()
    write(GO)
    while reads:
        hear()
    assert n_cancelled > 0
    assert len(stream) > 10 * FRAME_BYTES
    assert stream == frames_of(len(stream))


def test_a_pulled_device_leaves_the_guest_and_comes_back(guest: Guest, device: UsbDevice) -> None:
    guest.read(FRAMES, 512)
    device.unplug()
    assert guest.hear()[0] == DISCONNECT
    device.plug()  # before the guest has said that it saw it go
    guest.send(DISCONNECT_ACK)
    guest.expect_plugging()
    device.unplug()
    assert guest.hear()[0] == DISCONNECT
    guest.send(DISCONNECT_ACK)
    number = guest.send(GET_CONFIGURATION)
    assert guest.hear() == (CONFIGURATION_STATUS, number, bytes([SUCCESS, 0]))  # and nothing else came before
    device.plug()
    guest.expect_plugging()


def test_a_device_that_is_not_there_yet_is_plugged_in_later(server: Server, device: UsbDevice) -> None:
    device.unplug()
    guest = Guest(server.port)
    guest.hello()
    guest.socket.settimeout(0.2)
    with pytest.raises(TimeoutError):
        guest.hear()
    guest.socket.settimeout(10)
    device.plug()
    guest.expect_plugging()
    guest.socket.close()


def test_one_guest_at_a_time_has_the_device(server: Server, guest: Guest) -> None:
    second = Guest(server.port)
    with pytest.raises((EOFError, ConnectionResetError)):
        second.hello()
    second.socket.close()


def test_a_guest_that_cannot_do_what_is_needed_is_hung_up_on(server: Server) -> None:
    old = Guest(server.port, capabilities=0)
    old.hello()
    with pytest.raises((EOFError, ConnectionResetError)):
        old.take(1)
    old.socket.close()
