"""A simulated instrument on a cable that tests pull and plug in again; what is behind it stays the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from acquisition.gantry import Gantry, open_gantry
from acquisition.instrument import Instrument
from firmware_iface.device import Detector
from firmware_iface.usb_transport import UsbTransport
from sim.board import Board
from sim.chip import SimulatedChip
from sim.faults import Faults
from sim.instrument import scene_of
from sim.usb_device import SimulatedUsb
from sim.usb_model import UsbDevice

SERIAL = "CABLE-1"
COUNT = 100
PATIENCE_S = 40.0
"""A busy machine is given this long before a test fails."""


class Cable:
    """Leads to a simulated board with a chip that counts the same everywhere; `opener` is for `gui.rig.Rig`."""

    def __init__(self, **faults: Any) -> None:
        gantry = scene_of("demo", seed=1)
        chip = SimulatedChip(lambda duration_s, settings: np.full((8, 128, 128), COUNT, np.uint32))
        board = Board([chip], gantry.line, SERIAL, Faults(**faults), temperature_c=31.0, make_safe=gantry.make_safe)
        gantry.stage.clock = board.sequencer
        self.device = UsbDevice(board, SERIAL)
        self.n_openings = 0
        self.urls: list[tuple[str, str, str]] = []

    @contextmanager
    def opener(self, url: str, stage_url: str, tube_url: str) -> Iterator[Instrument]:
        """Open what is at the end of the cable."""
        self.urls.append((url, stage_url, tube_url))
        detector, gantry = self._both()
        instrument = Instrument(detector=detector, gantry=gantry, opener=self._both)
        try:
            yield instrument
        finally:
            instrument.close()

    def _both(self) -> tuple[Detector, Gantry]:
        self.n_openings += 1
        detector = Detector(UsbTransport(SimulatedUsb(self.device), "cable"))
        return detector, open_gantry(detector)


def wait_for(is_so: Callable[[], object], what: str = "") -> None:
    """Wait until something is so."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline_s, f"{what or is_so} did not come"
        time.sleep(0.01)
