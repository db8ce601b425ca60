"""Posted transfers over a scripted libusb: order, back-pressure, errors behind what came before them, a clean end."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from firmware_iface.errors import Disconnected, Stalled, TransportError, TransportTimeout
from firmware_iface.libusb1_transport import N_TRANSFERS, TRANSFER_BYTES, Libusb1Transport
from firmware_iface.transport import Transport

COMPLETED, CANCELLED, STALL, NO_DEVICE = 0, 3, 4, 5


class USBError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"libusb error {value}")
        self.value = value
        self.received = b""


class USBErrorTimeout(USBError):
    pass


class USBErrorNotSupported(USBError):
    pass


class Transfer:
    """A transfer as python-libusb1 has them; its end comes in the thread that handles events."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.is_submitted = False
        self.buffer = bytearray()
        self.status, self.n_bytes = COMPLETED, 0

    def setBulk(self, endpoint: int, n_bytes: int, callback: Callable[[Transfer], object]) -> None:
        assert endpoint == 0x82
        assert n_bytes % 1024 == 0
        self.buffer, self.callback = bytearray(n_bytes), callback

    def submit(self) -> None:
        assert not self.is_submitted
        assert self.board.is_open
        if self.board.is_out_of_memory:
            raise USBError(-11)
        self.is_submitted = True
        self.board.posted.append(self)

    def cancel(self) -> None:
        self.board.cancelled.add(self)

    def isSubmitted(self) -> bool:
        return self.is_submitted

    def getStatus(self) -> int:
        return self.status

    def getActualLength(self) -> int:
        return self.n_bytes

    def getBuffer(self) -> bytearray:
        return self.buffer

    def end(self, status: int, data: bytes = b"") -> None:
        self.status, self.n_bytes = status, len(data)
        self.buffer[: len(data)] = data
        self.is_submitted = False
        self.callback(self)


class Board:
    """A device and its handle: what it sends in the next transfers, and what befalls them then."""

    def __init__(self, serial: str) -> None:
        self.serial = serial
        self.is_open = self.is_claimed = self.is_out_of_memory = False
        self.configuration = 0
        self.received, self.replies = b"", []
        self.to_send: list[bytes] = []
        self.befalls: int | None = None
        self.posted: list[Transfer] = []
        self.cancelled: set[Transfer] = set()
        self.n_transfers = 0
        self.cut: Exception | None = None
        self.cleared: list[int] = []
        self.requests: list[tuple[int, int, int, int, bytes]] = []

    # As a device

    def getVendorID(self) -> int:
        return 0x1209

    def getProductID(self) -> int:
        return 0x0001

    def open(self) -> Board:
        self.is_open = True
        return self

    # As a handle

    def getSerialNumber(self) -> str:
        return self.serial

    def setAutoDetachKernelDriver(self, enable: bool) -> None:
        raise USBErrorNotSupported(-12)

    def getConfiguration(self) -> int:
        return self.configuration

    def setConfiguration(self, configuration: int) -> None:
        self.configuration = configuration

    def claimInterface(self, interface: int) -> None:
        if self.is_claimed:
            raise USBError(-6)
        self.is_claimed = True

    def releaseInterface(self, interface: int) -> None:
        assert not any(transfer.is_submitted for transfer in self.posted), "released under a transfer"
        self.is_claimed = False

    def close(self) -> None:
        self.is_open = False

    def clearHalt(self, endpoint: int) -> None:
        self.befalls = None
        self.cleared.append(endpoint)

    def controlWrite(self, kind: int, request: int, value: int, index: int, data: bytes, timeout: int) -> int:
        self.requests.append((kind, request, value, index, data))
        return len(data)

    def getTransfer(self) -> Transfer:
        self.n_transfers += 1
        return Transfer(self)

    def bulkWrite(self, endpoint: int, data: bytes, timeout: int) -> int:
        if self.cut is not None:
            raise self.cut
        self.received += data
        return len(data)

    def bulkRead(self, endpoint: int, n_bytes: int, timeout: int) -> bytearray:
        if not self.replies:
            raise USBErrorTimeout(-7)
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return bytearray(reply)

    def handle_events(self) -> None:
        for transfer in [each for each in self.posted if each in self.cancelled]:
            self.posted.remove(transfer)
            transfer.end(CANCELLED)
        self.cancelled.clear()
        while self.posted and (self.to_send or self.befalls is not None):
            transfer = self.posted.pop(0)
            if self.to_send:
                transfer.end(COMPLETED, self.to_send.pop(0))
            else:
                transfer.end(self.befalls or COMPLETED)


class Bus:
    """The module ``usb1``."""

    USBError, USBErrorTimeout, USBErrorNotSupported = USBError, USBErrorTimeout, USBErrorNotSupported

    def __init__(self, *boards: Board) -> None:
        self.boards = boards
        self.n_contexts = 0

    def USBContext(self) -> Bus:
        return self

    def open(self) -> None:
        self.n_contexts += 1

    def close(self) -> None:
        self.n_contexts -= 1

    def getDeviceIterator(self, skip_on_error: bool) -> Iterator[Board]:
        return iter(self.boards)

    def handleEventsTimeout(self, seconds: float) -> None:
        for board in self.boards:
            board.handle_events()
        time.sleep(0.001)


@pytest.fixture
def board() -> Board:
    return Board("A-1")


@pytest.fixture
def bus(board: Board) -> Bus:
    return Bus(board, Board("A-2"))


@pytest.fixture
def link(bus: Bus) -> Iterator[Libusb1Transport]:
    opened = Libusb1Transport(binding=bus)
    yield opened
    opened.close()
    assert not event_threads()


def event_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "usb events"]


def test_a_board_is_chosen_claimed_and_given_back(bus: Bus, board: Board) -> None:
    link = Libusb1Transport(binding=bus, serial="A-2")
    assert isinstance(link, Transport)
    assert (bus.boards[1].is_claimed, bus.boards[1].configuration, board.is_open) == (True, 1, False)
    link.write(b"command")
    assert bus.boards[1].received == b"command"
    link.close()
    link.close()
    assert (bus.boards[1].is_claimed, bus.boards[1].is_open, bus.n_contexts) == (False, False, 0)
    for use in (lambda: link.write(b"x"), lambda: link.read_frames(10, 0.1), lambda: link.read_reply(0.1)):
        with pytest.raises(Disconnected, match="closed"):
            use()


def test_a_missing_and_a_taken_board_are_told_apart(bus: Bus, board: Board) -> None:
    with pytest.raises(Disconnected, match="A-9"):
        Libusb1Transport(binding=bus, serial="A-9")
    board.is_claimed = True
    with pytest.raises(TransportError, match="another program"):
        Libusb1Transport(binding=bus, serial="A-1")
    assert (board.is_open, bus.n_contexts) == (False, 0)


def test_replies(board: Board, link: Libusb1Transport) -> None:
    half = USBErrorTimeout(-7)
    half.received = b"half"
    board.replies = [b"reply", half]
    assert link.read_reply(0.1) == b"reply"
    assert link.read_reply(0.1) == b"half"
    with pytest.raises(TransportTimeout):
        link.read_reply(0.1)


@pytest.mark.parametrize(("error", "kind"), [(USBErrorTimeout(-7), TransportTimeout), (USBError(-9), Stalled)])
def test_a_cut_command_is_forgotten_by_the_board(
    board: Board, link: Libusb1Transport, error: Exception, kind: type[TransportError]
) -> None:
    assert board.cleared == [0x01], "a program that was killed may have left half a command"
    board.cut = error
    with pytest.raises(kind):
        link.write(b"command")
    assert board.cleared == [0x01, 0x01]
    board.cut = None
    link.write(b"again")
    assert board.received == b"again"


def test_an_abort_is_a_request_beside_the_commands(board: Board, link: Libusb1Transport) -> None:
    link.abort()
    assert board.requests == [(0x40, 0x22, 0, 0, b"")]


def test_frames_come_in_order_and_in_pieces_of_any_size(board: Board, link: Libusb1Transport) -> None:
    board.to_send = [bytes([n]) * (1 + 1000 * n) for n in range(10 * N_TRANSFERS)]
    sent, came = b"".join(board.to_send), b""
    while len(came) < len(sent):
        piece = link.read_frames(777, 1.0)
        assert 0 < len(piece) <= 777
        came += piece
    assert came == sent
    assert board.n_transfers == N_TRANSFERS


def test_packets_of_no_length_are_passed_over(board: Board, link: Libusb1Transport) -> None:
    board.to_send = [b"", b"", b"frame"]
    assert link.read_frames(TRANSFER_BYTES, 1.0) == b"frame"
    assert len(link.read_frames(TRANSFER_BYTES, 0.01)) == 0


def test_full_transfers_let_the_board_wait(board: Board, link: Libusb1Transport) -> None:
    board.to_send = [bytes([n]) for n in range(3 * N_TRANSFERS)]
    assert link.read_frames(1, 1.0) == b"\0"
    time.sleep(0.05)
    assert len(board.to_send) == 2 * N_TRANSFERS
    assert [link.read_frames(1, 1.0)[0] for _ in range(3 * N_TRANSFERS - 1)] == list(range(1, 3 * N_TRANSFERS))


def test_a_stall_is_told_once_behind_the_frames_before_it(board: Board, link: Libusb1Transport) -> None:
    board.to_send, board.befalls = [b"one", b"two"], STALL
    assert link.read_frames(10, 1.0) == b"one"
    assert link.read_frames(10, 1.0) == b"two"
    with pytest.raises(Stalled):
        link.read_frames(10, 1.0)
    board.to_send = [bytes([n]) for n in range(20)]
    assert [link.read_frames(10, 1.0)[0] for _ in range(20)] == list(range(20))


def test_a_pulled_board_says_so_again_and_again(board: Board, link: Libusb1Transport) -> None:
    board.to_send, board.befalls = [b"one"], NO_DEVICE
    assert link.read_frames(10, 1.0) == b"one"
    for _ in range(3):
        with pytest.raises(Disconnected, match="left the bus"):
            link.read_frames(10, 1.0)


def test_too_little_usb_memory_is_told_with_the_remedy(board: Board, link: Libusb1Transport) -> None:
    board.is_out_of_memory = True
    with pytest.raises(TransportError, match="no memory") as caught:
        link.read_frames(10, 1.0)
    assert "usbfs_memory_mb" in caught.value.hint
    board.is_out_of_memory = False
    board.to_send = [b"frame"]
    assert link.read_frames(10, 1.0) == b"frame"


def test_closing_wakes_who_waits(link: Libusb1Transport) -> None:
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            link.read_frames(10, 30.0)
        except Disconnected as error:
            caught.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    while not event_threads():
        time.sleep(0.001)
    time.sleep(0.02)
    link.close()
    waiting.join(5.0)
    assert "closed" in str(caught[0])


def test_a_forgotten_transport_ends_its_thread(bus: Bus, board: Board) -> None:
    forgotten: Any = Libusb1Transport(binding=bus)
    forgotten.read_frames(10, 0.01)
    assert event_threads()
    del forgotten
    gc.collect()
    assert not event_threads()
    assert not board.posted


def test_the_real_binding_opens_the_libusb_of_the_wheel() -> None:
    pytest.importorskip("usb1", reason="the extra usb1 is not installed")
    with suppress(TransportError):  # no board, or no USB at all: both are told, and nothing crashes
        Libusb1Transport(serial="none has this serial number").close()
