"""The USB transport over a scripted bus: pyusb's own code from find to dispose, and every errno told as ours."""

from __future__ import annotations

import errno
import gc
import random
import struct
import threading
import time
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest
import usb.core

from firmware_iface import usb_transport
from firmware_iface.errors import Disconnected, MpxctError, Stalled, TransportError, TransportTimeout, WrongUsage
from firmware_iface.transport import Transport
from firmware_iface.usb_errors import UDEV_RULE, UDEV_RULE_PATH
from firmware_iface.usb_transport import N_FRAME_BUFFERS, UsbTransport, usb_boards
from tests.plain_bus import PlainBus


class Board:
    """One device on the bus: what it would send, and what befalls its next transfer."""

    def __init__(self, serial: str, *, vendor: int = 0x1209, product: int = 0x0001) -> None:
        self.serial, self.vendor, self.product = serial, vendor, product
        self.configuration = 0
        self.claimed_by: object = None
        self.received = b""
        self.to_send: dict[int, bytes] = {0x81: b"", 0x82: b""}
        self.transfers: list[bytes] = []
        """What the frame endpoint sends, one transfer each, before `to_send`."""
        self.failure: tuple[int, int] | None = None
        self.halted: set[int] = set()
        self.reply_timeouts_ms: list[int] = []
        self.buffers: list[int] = []
        self.is_forbidden = self.has_driver = False
        self.takes: list[int] = []
        """How many bytes it takes of the next writes."""
        self.cleared: list[int] = []
        self.requests: list[tuple[int, int, int, int]] = []


class Bus(PlainBus):
    """A pyusb backend with boards, and errors as libusb's."""

    def __init__(self, *boards: Board) -> None:
        super().__init__(*boards)
        self.n_open = 0

    def open_device(self, dev: Board) -> Board:
        self.n_open += 1
        return dev

    def close_device(self, dev_handle: Board) -> None:
        self.n_open -= 1

    def get_configuration(self, dev_handle: Board) -> int:
        return dev_handle.configuration

    def set_configuration(self, dev_handle: Board, config_value: int) -> None:
        dev_handle.configuration = config_value

    def claim_interface(self, dev_handle: Board, intf: int) -> None:
        self.fail(dev_handle)
        if dev_handle.claimed_by is not None:
            raise usb.core.USBError("Resource busy", -6, errno.EBUSY)
        dev_handle.claimed_by = self

    def release_interface(self, dev_handle: Board, intf: int) -> None:
        dev_handle.claimed_by = None

    def clear_halt(self, dev_handle: Board, ep: int) -> None:
        dev_handle.halted.discard(ep)
        dev_handle.cleared.append(ep)

    def is_kernel_driver_active(self, dev_handle: Board, intf: int) -> bool:
        return dev_handle.has_driver

    def detach_kernel_driver(self, dev_handle: Board, intf: int) -> None:
        dev_handle.has_driver = False

    def ctrl_transfer(
        self, dev_handle: Board, bmRequestType: int, bRequest: int, wValue: int, wIndex: int, data: array, timeout: int
    ) -> int:
        if dev_handle.is_forbidden:
            raise usb.core.USBError("Access denied", -3, errno.EACCES)
        if not bmRequestType & 0x80:
            dev_handle.requests.append((bmRequestType, bRequest, wValue, wIndex))
            return 0
        text = dev_handle.serial.encode("utf-16-le") if wValue & 0xFF else struct.pack("<H", 0x0409)
        answer = (bytes([len(text) + 2, 3]) + text)[: len(data)]
        memoryview(data).cast("B")[: len(answer)] = answer
        return len(answer)

    def bulk_write(self, dev_handle: Board, ep: int, intf: int, data: array, timeout: int) -> int:
        self.fail(dev_handle)
        assert ep == 0x01
        if ep in dev_handle.halted:
            raise usb.core.USBError("Pipe error", -9, errno.EPIPE)
        n_taken = min(dev_handle.takes.pop(0), len(data)) if dev_handle.takes else len(data)
        dev_handle.received += data.tobytes()[:n_taken]
        return n_taken

    def bulk_read(self, dev_handle: Board, ep: int, intf: int, buff: array, timeout: int) -> int:
        if ep == 0x81:
            dev_handle.reply_timeouts_ms.append(timeout)
        else:
            dev_handle.buffers.append(id(buff))
        assert len(buff) % 1024 == 0, "a packet that does not fit is an overflow"
        deadline_s = time.monotonic() + timeout / 1000
        while not (sent := self.next_transfer(dev_handle, ep, len(buff))):
            if time.monotonic() > deadline_s:
                raise usb.core.USBTimeoutError("Operation timed out", -7, errno.ETIMEDOUT)
            time.sleep(0.001)
        assert dev_handle.claimed_by is self, "a read of a device that was given back"
        memoryview(buff)[: len(sent)] = sent
        return len(sent)

    def next_transfer(self, board: Board, ep: int, limit: int) -> bytes:
        if ep == 0x82 and board.transfers:
            return board.transfers.pop(0)
        self.fail(board)
        if ep in board.halted:
            raise usb.core.USBError("Pipe error", -9, errno.EPIPE)
        sent, board.to_send[ep] = board.to_send[ep][:limit], board.to_send[ep][limit:]
        return sent

    def fail(self, board: Board) -> None:
        if board.failure:
            raise usb.core.USBError("failed", *board.failure)


@pytest.fixture
def board() -> Board:
    return Board("A-1")


@pytest.fixture
def bus(board: Board) -> Bus:
    return Bus(Board("mouse", vendor=0x046D), board, Board("A-2"))


@pytest.fixture
def link(bus: Bus) -> Iterator[UsbTransport]:
    opened = UsbTransport(bus)
    yield opened
    opened.close()


def test_the_first_board_is_found_configured_and_claimed(bus: Bus, board: Board, link: UsbTransport) -> None:
    assert isinstance(link, Transport)
    assert board.configuration == 1
    assert board.claimed_by is bus
    link.write(b"command")
    assert board.received == b"command"
    link.close()
    link.close()
    assert board.claimed_by is None
    assert bus.n_open == 0
    with pytest.raises(Disconnected, match="closed"):
        link.write(b"command")


def test_a_board_is_chosen_by_its_serial_number(bus: Bus) -> None:
    UsbTransport(bus, serial="A-2").write(b"to the second")
    assert bus.devices[2].received == b"to the second"
    with pytest.raises(Disconnected, match="serial number A-3") as caught:
        UsbTransport(bus, serial="A-3")
    assert 'ATTR{idVendor}=="1209"' in caught.value.hint


def test_an_empty_bus_is_told_with_what_to_do() -> None:
    with pytest.raises(Disconnected, match="no detector 1209:0001") as caught:
        UsbTransport(Bus())
    assert "udev" in caught.value.hint


def test_a_board_in_use_is_not_taken(bus: Bus, board: Board) -> None:
    board.claimed_by = "another program"
    with pytest.raises(TransportError, match="another program"):
        UsbTransport(bus)
    assert bus.n_open == 0


def test_replies_and_frames_have_their_own_ways(board: Board, link: UsbTransport) -> None:
    board.to_send = {0x81: b"reply", 0x82: b"frame"}
    assert link.read_frames(1 << 20, 0.5) == b"frame"
    assert link.read_reply(0.25) == b"reply"
    assert board.reply_timeouts_ms == [250]


def test_a_kernel_driver_makes_room(bus: Bus, board: Board) -> None:
    board.has_driver = True
    UsbTransport(bus).close()
    assert not board.has_driver


def test_the_stream_is_the_same_in_pieces_of_any_size(board: Board, link: UsbTransport) -> None:
    dice = random.Random(1)
    board.transfers = [dice.randbytes(dice.choice((1, 511, 512, 5000, 1 << 20))) for _ in range(3 * N_FRAME_BUFFERS)]
    sent, came = b"".join(board.transfers), b""
    while len(came) < len(sent):
        piece = link.read_frames(dice.choice((1000, 70_000, 1 << 20)), 1.0)
        assert piece
        came += piece
    assert came == sent
    assert len(set(board.buffers)) <= N_FRAME_BUFFERS, "buffers are made once"


def test_a_full_ring_lets_the_board_wait(board: Board, link: UsbTransport) -> None:
    board.transfers = [bytes([n]) for n in range(5 * N_FRAME_BUFFERS)]
    assert link.read_frames(1, 1.0) == b"\0"
    wait_until(lambda: len(board.transfers) == 4 * N_FRAME_BUFFERS)
    time.sleep(0.05)
    assert len(board.transfers) == 4 * N_FRAME_BUFFERS, "one buffer is with the caller, the others are full"
    assert [link.read_frames(1, 1.0)[0] for _ in range(5 * N_FRAME_BUFFERS - 1)] == list(range(1, 5 * N_FRAME_BUFFERS))


def test_what_was_handed_out_stays_until_the_next_call(board: Board, link: UsbTransport) -> None:
    board.transfers = [bytes([n]) * 100 for n in range(4 * N_FRAME_BUFFERS)]
    for n in range(3 * N_FRAME_BUFFERS):
        piece = link.read_frames(1 << 20, 1.0)
        time.sleep(0.001)
        assert piece == bytes([n]) * 100


def test_an_error_stands_behind_the_frames_before_it(board: Board, link: UsbTransport) -> None:
    board.transfers = [b"one", b"two", b"three"]
    board.failure = (-4, errno.ENODEV)
    assert [bytes(link.read_frames(1 << 20, 1.0)) for _ in range(3)] == [b"one", b"two", b"three"]
    for _ in range(2):
        with pytest.raises(Disconnected):
            link.read_frames(1 << 20, 1.0)


def test_closing_ends_the_reader_before_the_device_is_given_back(bus: Bus, board: Board, link: UsbTransport) -> None:
    board.transfers = [bytes(1000)] * 1000
    link.read_frames(1000, 1.0)
    assert reader_threads()
    link.close()
    assert not reader_threads()
    assert bus.n_open == 0
    with pytest.raises(Disconnected, match="closed"):
        link.read_frames(1000, 1.0)


def test_closing_wakes_who_waits_for_frames(link: UsbTransport) -> None:
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            link.read_frames(1000, 30.0)
        except Disconnected as error:
            caught.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    wait_until(lambda: bool(reader_threads()))
    link.close()
    waiting.join(5.0)
    assert "closed" in str(caught[0])


def test_a_forgotten_transport_ends_its_reader(bus: Bus) -> None:
    forgotten = UsbTransport(bus)
    forgotten.read_frames(1000, 0.01)
    assert reader_threads()
    del forgotten
    gc.collect()
    assert not reader_threads()


EARLIER: set[threading.Thread] = set()


@pytest.fixture(autouse=True)
def _earlier_threads() -> None:
    """Other tests' detectors may not have been collected yet; only the threads of this test are looked at."""
    EARLIER.clear()
    EARLIER.update(threading.enumerate())


def reader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "usb frame reader" and thread not in EARLIER]


def wait_until(is_so: object) -> None:
    deadline_s = time.monotonic() + 5.0
    while not is_so():  # pyright: ignore[reportCallIssue]
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def test_no_frame_in_time_is_nothing_and_no_reply_is_an_error(board: Board, link: UsbTransport) -> None:
    assert len(link.read_frames(1024, 0.0)) == 0
    with pytest.raises(TransportTimeout):
        link.read_reply(0.0)
    assert board.reply_timeouts_ms == [1], "0 would be for ever"


@pytest.mark.parametrize(
    ("code", "number", "kind"),
    [
        (-4, errno.ENODEV, Disconnected),
        (-7, errno.ETIMEDOUT, TransportTimeout),
        (-9, errno.EPIPE, Stalled),
        (-8, errno.EOVERFLOW, TransportError),
        (-3, errno.EACCES, TransportError),
        (-6, errno.EBUSY, TransportError),
        (-1, errno.EIO, TransportError),
    ],
)
def test_each_errno_is_told_as_ours(
    board: Board, link: UsbTransport, code: int, number: int, kind: type[MpxctError]
) -> None:
    board.failure = (code, number)
    with pytest.raises(kind) as caught:
        link.write(b"command")
    assert type(caught.value) is kind
    if number != errno.ETIMEDOUT:
        with pytest.raises(kind):
            link.read_frames(1024, 1.0)


def test_opening_lets_the_board_forget_half_a_command_of_a_program_that_was_killed(
    board: Board, link: UsbTransport
) -> None:
    assert board.cleared == [0x01]


def test_a_cut_command_is_forgotten_by_the_board(board: Board, link: UsbTransport) -> None:
    board.cleared.clear()
    board.takes = [3]
    with pytest.raises(TransportTimeout, match="3 of 7 bytes"):
        link.write(b"command")
    board.halted.add(0x01)
    with pytest.raises(Stalled):
        link.write(b"command")
    assert board.cleared == [0x01, 0x01]
    link.write(b"again")
    assert board.received == b"comagain"


def test_an_abort_is_a_request_beside_the_commands(board: Board, link: UsbTransport) -> None:
    link.abort()
    assert board.requests == [(0x40, 0x22, 0, 0)]
    assert board.received == b""


@pytest.mark.parametrize("endpoint", [0x81, 0x82])
def test_a_stalled_endpoint_works_again_after_the_error(board: Board, link: UsbTransport, endpoint: int) -> None:
    board.halted.add(endpoint)
    board.to_send[endpoint] = b"at last"
    read = link.read_reply if endpoint == 0x81 else lambda timeout_s: link.read_frames(1000, timeout_s)
    with pytest.raises(Stalled):
        read(1.0)
    assert read(1.0) == b"at last"


def test_boards_are_listed_and_not_taken(bus: Bus, board: Board) -> None:
    board.claimed_by = "another program"
    bus.devices[2].is_forbidden = True
    first, second = usb_boards(bus)
    assert (first.serial, first.problem, first.speed_mbit_s) == ("A-1", "", 480)
    assert second.serial == ""
    assert "not allowed" in second.problem
    assert bus.n_open == 0


def test_a_board_that_may_not_be_read_is_told_from_one_that_is_not_there(bus: Bus) -> None:
    for board in bus.devices:
        board.is_forbidden = True
    with pytest.raises(TransportError, match="not allowed") as caught:
        UsbTransport(bus, serial="A-2")
    assert UDEV_RULE in caught.value.hint


def test_the_rule_file_says_what_the_hint_says() -> None:
    file = Path(usb_transport.__file__).parent / Path(UDEV_RULE_PATH).name
    assert [line for line in file.read_text().splitlines() if not line.startswith("#")] == [UDEV_RULE]
    assert Path(UDEV_RULE_PATH).name < "73-seat-late.rules"


class Libusb(Bus):
    """A backend whose list of devices is made with its context, as that of libusb where it hears of no change."""

    lib: list[Board] = []  # noqa: RUF012 - the system's bus, which all contexts look at

    def __init__(self, lib: list[Board]) -> None:
        super().__init__(*lib)
        self.lib = lib


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch, board: Board) -> list[Board]:
    """Put a bus with two boards into the place of this computer's."""
    import libusb_package

    boards = [board, Board("A-2")]
    backend = Libusb(boards)
    monkeypatch.setattr(libusb_package, "get_libusb1_backend", lambda: backend)
    return boards


def test_the_usb_scheme_is_libusb_of_the_wheel(monkeypatch: pytest.MonkeyPatch, system: list[Board]) -> None:
    import libusb_package

    usb_transport.open_libusb("A-2").write(b"hello")
    assert system[1].received == b"hello"
    assert usb_transport.list_devices() == {f"usb:A-{n}": f"bus 1, address {n}, 480 Mbit/s" for n in (1, 2)}
    monkeypatch.setattr(libusb_package, "get_libusb1_backend", lambda: None)
    with pytest.raises(TransportError, match="libusb"):
        usb_transport.open_libusb("")


def test_a_board_that_was_pulled_and_plugged_in_again_is_found(system: list[Board], board: Board) -> None:
    link = usb_transport.open_libusb("A-1")
    board.transfers = [b"before"]
    board.failure = (-4, errno.ENODEV)
    assert link.read_frames(1000, 1.0) == b"before"
    with pytest.raises(Disconnected, match="left the bus"):
        link.read_frames(1000, 1.0)
    link.close()
    system[:] = []
    again = Board("A-3")
    with pytest.raises(Disconnected, match="A-3"):
        usb_transport.open_libusb("A-3")
    system.append(again)
    link = usb_transport.open_libusb("A-3")  # the old context still lists what was there when it began
    again.transfers = [b"after"]
    assert link.read_frames(1000, 1.0) == b"after"
    link.close()


@pytest.mark.parametrize(("address", "wrong"), [("?speed=1", "speed"), ("A-1?async=2", "async"), ("?async=", "async")])
def test_options_of_the_url_are_checked(system: list[Board], address: str, wrong: str) -> None:
    with pytest.raises(WrongUsage, match=wrong):
        usb_transport.open_libusb(address)
