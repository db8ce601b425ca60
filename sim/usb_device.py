"""The simulated USB device behind a backend that pyusb takes for libusb, and what the URL scheme `sim` opens.

# Ref: error codes: libusb 1.0 `libusb.h` (enum libusb_error), and the errno that pyusb 1.3 `backend/libusb1.py` gives.
"""
# The methods' signatures are pyusb's, used or not; its abstract class gives them no return types.
# ruff: noqa: ARG002
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import errno
import struct
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import usb.backend
import usb.core

from sim import usb_model
from sim.instrument import INSTRUMENTS, simulated_device
from sim.usb_model import Descriptor, UsbDevice

_LIBUSB_SPEEDS = {usb_model.Speed.HIGH: 3, usb_model.Speed.SUPER: 4}
_FIELD_NAMES = {
    usb_model.DEVICE_DESCRIPTOR: "bLength bDescriptorType bcdUSB bDeviceClass bDeviceSubClass bDeviceProtocol "
    "bMaxPacketSize0 idVendor idProduct bcdDevice iManufacturer iProduct iSerialNumber bNumConfigurations",
    usb_model.CONFIGURATION_DESCRIPTOR: "bLength bDescriptorType wTotalLength bNumInterfaces bConfigurationValue "
    "iConfiguration bmAttributes bMaxPower",
    usb_model.INTERFACE_DESCRIPTOR: "bLength bDescriptorType bInterfaceNumber bAlternateSetting bNumEndpoints "
    "bInterfaceClass bInterfaceSubClass bInterfaceProtocol iInterface",
    usb_model.ENDPOINT_DESCRIPTOR: "bLength bDescriptorType bEndpointAddress bmAttributes wMaxPacketSize bInterval",
}


class SimulatedUsb(usb.backend.IBackend):
    """A USB bus with one simulated board on it, as a pyusb backend.

    One thread may read frames while another sends commands: the device's lock guards the board, and a read with
    nothing to give waits without it.
    """

    def __init__(self, device: UsbDevice) -> None:
        self.device = device
        self._owner: object | None = None

    # What pyusb asks of a backend

    def enumerate_devices(self) -> Iterator[UsbDevice]:
        """Yield the devices on the bus: one, or none once it is unplugged."""
        return iter([] if self.device.is_gone else [self.device])

    def get_parent(self, dev: UsbDevice) -> None:
        """Return the hub: there is none."""

    def get_device_descriptor(self, dev: UsbDevice) -> SimpleNamespace:
        """Return the device descriptor, and where on the bus it is."""
        place = {"bus": 1, "address": 2, "speed": _LIBUSB_SPEEDS[dev.speed], "port_number": 1, "port_numbers": (1,)}
        return _fields(usb_model.DEVICE_DESCRIPTOR, usb_model.device_descriptor(dev.speed), 0, **place)

    def get_configuration_descriptor(self, dev: UsbDevice, config: int) -> SimpleNamespace:
        """Return the only configuration."""
        return _part(dev, usb_model.CONFIGURATION_DESCRIPTOR, Descriptor.CONFIGURATION, config)

    def get_interface_descriptor(self, dev: UsbDevice, intf: int, alt: int, config: int) -> SimpleNamespace:
        """Return the only interface."""
        _refuse_index("alternate setting", alt, 1)
        return _part(dev, usb_model.INTERFACE_DESCRIPTOR, Descriptor.INTERFACE, intf)

    def get_endpoint_descriptor(self, dev: UsbDevice, ep: int, intf: int, alt: int, config: int) -> SimpleNamespace:
        """Return one of the three bulk endpoints."""
        extra = {"bRefresh": 0, "bSynchAddress": 0}
        return _part(dev, usb_model.ENDPOINT_DESCRIPTOR, Descriptor.ENDPOINT, ep, **extra)

    def open_device(self, dev: UsbDevice) -> object:
        """Return a handle; each opening has its own, which can claim the interface."""
        with self._told_as_libusb():
            self.device.expect_present()
            return object()

    def close_device(self, dev_handle: object) -> None:
        """Give back what the handle claimed."""
        self.release_interface(dev_handle, 0)

    def set_configuration(self, dev_handle: object, config_value: int) -> None:
        """Select the configuration; busy while somebody holds the interface."""
        with self._told_as_libusb():
            self.device.expect_present()
            if self._owner is not None:
                raise _busy()
            if config_value not in (0, 1):
                raise _not_found()
            self.device.control(usb_model.SETUP.pack(0, usb_model.Request.SET_CONFIGURATION, config_value, 0, 0))

    def get_configuration(self, dev_handle: object) -> int:
        """Return the configuration in force, 0 for none."""
        with self._told_as_libusb():
            self.device.expect_present()
            return self.device.configuration

    def set_interface_altsetting(self, dev_handle: object, intf: int, altsetting: int) -> None:
        """Select the only alternate setting."""
        with self._told_as_libusb():
            self.device.expect_present()
            _refuse_index("alternate setting", altsetting, 1)

    def claim_interface(self, dev_handle: object, intf: int) -> None:
        """Take the interface for this handle."""
        with self._told_as_libusb():
            self.device.expect_present()
            self._expect_mine(dev_handle)
            self._owner = dev_handle

    def release_interface(self, dev_handle: object, intf: int) -> None:
        """Give the interface back, if this handle holds it."""
        with self.device.changed:
            if self._owner is dev_handle:
                self._owner = None

    def is_kernel_driver_active(self, dev_handle: object, intf: int) -> bool:
        """No kernel driver binds to a vendor-specific interface."""
        return False

    def detach_kernel_driver(self, dev_handle: object, intf: int) -> None:
        """There is no driver to detach."""
        raise _not_found()

    attach_kernel_driver = detach_kernel_driver

    def clear_halt(self, dev_handle: object, ep: int) -> None:
        """End the STALL of an endpoint."""
        with self._told_as_libusb():
            self.device.clear_halt(ep)

    def reset_device(self, dev_handle: object) -> None:
        """Reset the port and, as libusb does, restore the configuration; the board keeps its state."""
        with self._told_as_libusb():
            self.device.expect_present()
            configuration = self.device.configuration
            self.device.reset()
            self.device.configuration = configuration

    def bulk_write(self, dev_handle: object, ep: int, intf: int, data: array[int], timeout: int) -> int:
        """Send bytes of commands."""
        with self._told_as_libusb():
            self._expect_mine(dev_handle)
            return self.device.bulk_out(ep, data.tobytes())

    def bulk_read(self, dev_handle: object, ep: int, intf: int, buff: array[int], timeout: int) -> int:
        """Fill a buffer from one transfer; waits up to `timeout` ms (0: for ever) for something to come."""
        view = memoryview(buff).cast("B")
        with self._told_as_libusb(is_alone=False):
            self._expect_mine(dev_handle)
            data = self.device.bulk_in(ep, len(view), timeout / 1000 if timeout else None)
        view[: len(data)] = data
        return len(data)

    def ctrl_transfer(
        self,
        dev_handle: object,
        bmRequestType: int,
        bRequest: int,
        wValue: int,
        wIndex: int,
        data: array[int],
        timeout: int,
    ) -> int:
        """Make a control request."""
        view = memoryview(data).cast("B")
        setup = usb_model.SETUP.pack(bmRequestType, bRequest, wValue, wIndex, len(view))
        with self._told_as_libusb():
            answer = self.device.control(setup, view.tobytes())
        if not bmRequestType & usb_model.TO_HOST:
            return len(view)
        view[: len(answer)] = answer
        return len(answer)

    @contextmanager
    def _told_as_libusb(self, *, is_alone: bool = True) -> Iterator[None]:
        """Turn what the device does into libusb's errors; a waiting read must not keep others from the device."""
        try:
            if is_alone:
                with self.device.changed:
                    yield
            else:
                yield
        except usb_model.Gone:
            raise usb.core.USBError("No such device (it may have been disconnected)", -4, errno.ENODEV) from None
        except usb_model.Stall:
            raise usb.core.USBError("Pipe error", -9, errno.EPIPE) from None
        except usb_model.NotReady:
            raise usb.core.USBTimeoutError("Operation timed out", -7, errno.ETIMEDOUT) from None
        except usb_model.Overflow:
            raise usb.core.USBError("Overflow", -8, errno.EOVERFLOW) from None
        except usb_model.NoSuchEndpoint:
            raise _not_found() from None

    def _expect_mine(self, dev_handle: object) -> None:
        self.device.expect_present()
        if self._owner not in (None, dev_handle):
            raise _busy()


def _part(dev: UsbDevice, layout: struct.Struct, kind: Descriptor, n: int, **more: object) -> SimpleNamespace:
    """Return the n-th descriptor of a kind in the configuration, with the descriptors that only belong to it."""
    raw = usb_model.configuration_descriptor(dev.speed)
    starts, start = [], 0
    while start < len(raw):
        starts.append(start)
        start += raw[start]
    found = [start for start in starts if raw[start + 1] == kind]
    _refuse_index(kind.name.lower(), n, len(found))
    after = found[n] + raw[found[n]]
    is_companion = kind is Descriptor.ENDPOINT and raw[after : after + 2][1:] == bytes([Descriptor.COMPANION])
    extra = list(raw[after : after + raw[after]]) if is_companion else []
    return _fields(layout, raw, found[n], extra_descriptors=extra, **more)


def _fields(layout: struct.Struct, raw: bytes, offset: int, **more: object) -> SimpleNamespace:
    names = _FIELD_NAMES[layout].split()
    return SimpleNamespace(**dict(zip(names, layout.unpack_from(raw, offset), strict=True)), **more)


def _refuse_index(what: str, index: int, n: int) -> None:
    if not 0 <= index < n:
        raise IndexError(f"there is no {what} {index}; the device has {n}")


def _busy() -> usb.core.USBError:
    return usb.core.USBError("Resource busy", -6, errno.EBUSY)


def _not_found() -> usb.core.USBError:
    return usb.core.USBError("Entity not found", -5, errno.ENOENT)


def open_simulated(address: str) -> SimulatedUsb:
    """Build a simulated instrument and put it on a bus of its own.

    Parameters
    ----------
    address : str
        What `simulated_device` takes, such as ``demo?seed=2&drop=17&unplug_after=100``.
    """
    return SimulatedUsb(simulated_device(address))


def list_devices() -> dict[str, str]:
    """Return the URL of every simulated instrument."""
    return {f"sim:{name}": "simulated instrument: detector, tube, stage and samples" for name in INSTRUMENTS}
