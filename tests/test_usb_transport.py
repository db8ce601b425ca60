"""The USB transport over a scripted bus: pyusb's own code from find to dispose, and every errno told as ours."""

from __future__ import annotations

import errno
import struct
from array import array
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import usb.backend
import usb.core

from firmware_iface import usb_transport
from firmware_iface.errors import Disconnected, MpxctError, Stalled, TransportError, TransportTimeout
from firmware_iface.transport import Transport
from firmware_iface.usb_transport import UsbTransport

ENDPOINTS = (0x01, 0x81, 0x82)


class Board:
    """One device on the bus: what it would send, and what befalls its next transfer."""

    def __init__(self, serial: str, *, vendor: int = 0x1209, product: int = 0x0001) -> None:
        self.serial, self.vendor, self.product = serial, vendor, product
        self.configuration = 0
        self.claimed_by: object = None
        self.received = b""
        self.to_send: dict[int, bytes] = {0x81: b"", 0x82: b""}
        self.failure: tuple[int, int] | None = None
        self.halted: set[int] = set()
        self.timeouts_ms: list[int] = []
        self.buffers: list[int] = []


class Bus(usb.backend.IBackend):
    """A pyusb backend with boards, and errors as libusb's."""

    def __init__(self, *boards: Board) -> None:
        self.boards = list(boards)
        self.n_open = 0

    def enumerate_devices(self) -> Iterator[Board]:
        return iter(self.boards)

    def get_parent(self, dev: Board) -> None:
        return None

    def get_device_descriptor(self, dev: Board) -> SimpleNamespace:
        return SimpleNamespace(
            bLength=18, bDescriptorType=1, bcdUSB=0x0210, bDeviceClass=255, bDeviceSubClass=0, bDeviceProtocol=0,
            bMaxPacketSize0=64, idVendor=dev.vendor, idProduct=dev.product, bcdDevice=0x0100, iManufacturer=0,
            iProduct=0, iSerialNumber=3, bNumConfigurations=1, bus=1, address=self.boards.index(dev) + 1, speed=3,
            port_number=1, port_numbers=(1,),
        )  # fmt: skip

    def get_configuration_descriptor(self, dev: Board, config: int) -> SimpleNamespace:
        if config:
            raise IndexError(config)
        return SimpleNamespace(
            bLength=9, bDescriptorType=2, wTotalLength=39, bNumInterfaces=1, bConfigurationValue=1, iConfiguration=0,
            bmAttributes=0xC0, bMaxPower=0, extra_descriptors=[],
        )  # fmt: skip

    def get_interface_descriptor(self, dev: Board, intf: int, alt: int, config: int) -> SimpleNamespace:
        if intf or alt:
            raise IndexError(intf)
        return SimpleNamespace(
            bLength=9, bDescriptorType=4, bInterfaceNumber=0, bAlternateSetting=0, bNumEndpoints=3,
            bInterfaceClass=255, bInterfaceSubClass=0, bInterfaceProtocol=0, iInterface=0, extra_descriptors=[],
        )  # fmt: skip

    def get_endpoint_descriptor(self, dev: Board, ep: int, intf: int, alt: int, config: int) -> SimpleNamespace:
        return SimpleNamespace(
            bLength=7, bDescriptorType=5, bEndpointAddress=ENDPOINTS[ep], bmAttributes=2, wMaxPacketSize=512,
            bInterval=0, bRefresh=0, bSynchAddress=0, extra_descriptors=[],
        )  # fmt: skip

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

    def ctrl_transfer(
        self, dev_handle: Board, bmRequestType: int, bRequest: int, wValue: int, wIndex: int, data: array, timeout: int
    ) -> int:
        text = dev_handle.serial.encode("utf-16-le") if wValue & 0xFF else struct.pack("<H", 0x0409)
        answer = (bytes([len(text) + 2, 3]) + text)[: len(data)]
        memoryview(data).cast("B")[: len(answer)] = answer
        return len(answer)

    def bulk_write(self, dev_handle: Board, ep: int, intf: int, data: array, timeout: int) -> int:
        self.fail(dev_handle)
        assert ep == 0x01
        dev_handle.received += data.tobytes()
        return len(data)

    def bulk_read(self, dev_handle: Board, ep: int, intf: int, buff: array, timeout: int) -> int:
        dev_handle.timeouts_ms.append(timeout)
        dev_handle.buffers.append(id(buff))
        assert len(buff) % 512 == 0, "a packet that does not fit is an overflow"
        self.fail(dev_handle)
        if ep in dev_handle.halted:
            raise usb.core.USBError("Pipe error", -9, errno.EPIPE)
        n_bytes = min(len(buff), len(dev_handle.to_send[ep]))
        if n_bytes == 0:
            raise usb.core.USBTimeoutError("Operation timed out", -7, errno.ETIMEDOUT)
        memoryview(buff)[:n_bytes] = dev_handle.to_send[ep][:n_bytes]
        dev_handle.to_send[ep] = dev_handle.to_send[ep][n_bytes:]
        return n_bytes

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
    assert bus.boards[2].received == b"to the second"
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
    assert board.timeouts_ms == [500, 250]


def test_frames_are_read_into_one_buffer_of_whole_packets(board: Board, link: UsbTransport) -> None:
    board.to_send[0x82] = bytes(range(256)) * 10
    assert link.read_frames(1000, 0.1) == (bytes(range(256)) * 4)
    assert link.read_frames(1000, 0.1) == (bytes(range(256)) * 4)
    assert link.read_frames(1000, 0.1) == (bytes(range(256)) * 2)
    assert len(set(board.buffers)) == 1


def test_no_frame_in_time_is_nothing_and_no_reply_is_an_error(board: Board, link: UsbTransport) -> None:
    assert len(link.read_frames(1024, 0.0)) == 0
    assert board.timeouts_ms == [1], "0 would be for ever"
    with pytest.raises(TransportTimeout):
        link.read_reply(0.1)


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
            link.read_frames(1024, 0.1)


def test_a_stalled_endpoint_works_again_after_the_error(board: Board, link: UsbTransport) -> None:
    board.halted.add(0x81)
    board.to_send[0x81] = b"reply"
    with pytest.raises(Stalled):
        link.read_reply(0.1)
    assert link.read_reply(0.1) == b"reply"


def test_the_usb_scheme_is_libusb_of_the_wheel(monkeypatch: pytest.MonkeyPatch, bus: Bus) -> None:
    import libusb_package

    monkeypatch.setattr(libusb_package, "get_libusb1_backend", lambda: bus)
    usb_transport.open_libusb("A-2").write(b"hello")
    assert bus.boards[2].received == b"hello"
    monkeypatch.setattr(libusb_package, "get_libusb1_backend", lambda: None)
    with pytest.raises(TransportError, match="libusb"):
        usb_transport.open_libusb("")
