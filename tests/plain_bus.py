"""A USB bus as pyusb sees one, with devices that only a test knows: descriptors and handles, and no endpoint works."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import usb.backend

ENDPOINTS = (0x01, 0x81, 0x82)


class PlainBus(usb.backend.IBackend):
    """A pyusb backend whose devices have the descriptors of a board.

    A device may have a `serial`, and a `vendor` and `product` of its own.
    """

    version, speed, max_packet_bytes = 0x0210, 3, 512

    def __init__(self, *devices: object) -> None:
        self.devices = list(devices)

    def enumerate_devices(self) -> Iterator[object]:
        return iter(self.devices)

    def get_parent(self, dev: object) -> None:
        return None

    def get_device_descriptor(self, dev: Any) -> SimpleNamespace:
        return SimpleNamespace(
            bLength=18, bDescriptorType=1, bcdUSB=self.version, bDeviceClass=255, bDeviceSubClass=0, bDeviceProtocol=0,
            bMaxPacketSize0=64, idVendor=getattr(dev, "vendor", 0x1209), idProduct=getattr(dev, "product", 0x0001),
            bcdDevice=0x0100, iManufacturer=0, iProduct=0, iSerialNumber=3 if hasattr(dev, "serial") else 0,
            bNumConfigurations=1, bus=1, address=self.devices.index(dev) + 1, speed=self.speed, port_number=1,
            port_numbers=(1,),
        )  # fmt: skip

    def get_configuration_descriptor(self, dev: object, config: int) -> SimpleNamespace:
        if config:
            raise IndexError(config)
        return SimpleNamespace(
            bLength=9, bDescriptorType=2, wTotalLength=39, bNumInterfaces=1, bConfigurationValue=1, iConfiguration=0,
            bmAttributes=0x80, bMaxPower=250, extra_descriptors=[],
        )  # fmt: skip

    def get_interface_descriptor(self, dev: object, intf: int, alt: int, config: int) -> SimpleNamespace:
        if intf or alt:
            raise IndexError(intf)
        return SimpleNamespace(
            bLength=9, bDescriptorType=4, bInterfaceNumber=0, bAlternateSetting=0, bNumEndpoints=3,
            bInterfaceClass=255, bInterfaceSubClass=0, bInterfaceProtocol=0, iInterface=0, extra_descriptors=[],
        )  # fmt: skip

    def get_endpoint_descriptor(self, dev: object, ep: int, intf: int, alt: int, config: int) -> SimpleNamespace:
        return SimpleNamespace(
            bLength=7, bDescriptorType=5, bEndpointAddress=ENDPOINTS[ep], bmAttributes=2,
            wMaxPacketSize=self.max_packet_bytes, bInterval=0, bRefresh=0, bSynchAddress=0, extra_descriptors=[],
        )  # fmt: skip

    def open_device(self, dev: object) -> object:
        return dev

    def close_device(self, dev_handle: object) -> None:
        return None

    def get_configuration(self, dev_handle: object) -> int:
        return 1

    def claim_interface(self, dev_handle: object, intf: int) -> None:
        return None

    def release_interface(self, dev_handle: object, intf: int) -> None:
        return None

    def clear_halt(self, dev_handle: object, ep: int) -> None:
        return None
