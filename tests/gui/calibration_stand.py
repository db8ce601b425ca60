"""A stand for the page Calibrate: an instrument without a chip, quick or slow, and calibrations to begin from."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import msgspec
import numpy as np

from acquisition.beam import SourceState
from acquisition.limits import UNKNOWN, Limits
from acquisition.plan import Plan
from acquisition.steps import Pose
from calibration.conditions import StepRecord
from calibration.store import Calibration
from firmware_iface.frame import Frame, Lost
from tests.rough_calibration import rough_calibration
from tests.test_calibrate import PLAN, Bench

PLAN = msgspec.structs.replace(
    PLAN, calibration=msgspec.structs.replace(PLAN.calibration, n_dark_frames=3, n_flat_frames=4, n_cell_frames=4)
)


class Stand(Bench):
    """The bench of the calibration's own tests, with what a window asks of an instrument besides.

    Attributes
    ----------
    is_held : threading.Event
        While it is not set, no frame comes: a test that wants to look in the middle clears it.
    is_held_when_lit : bool
        Frames under the beam do not come, until somebody aborts.
    n_aborts : int
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_held = threading.Event()
        self.is_held.set()
        self.is_held_when_lit = False
        self.n_aborts = 0
        self.pose = Pose()

    def status(self) -> SimpleNamespace:
        return SimpleNamespace(temperature_k=300.0)

    def source_state(self) -> SourceState:
        return SourceState(is_beam_on=self.is_lit)

    def limits(self) -> Limits:
        return UNKNOWN

    def chip_id(self, number: int = 0) -> str:
        assert number == 0
        return "W1_A1"

    def shut_down(self) -> str:
        self.is_lit = False
        return ""

    def abort(self) -> None:
        self.n_aborts += 1
        self.is_held_when_lit = False
        self.is_held.set()

    def frames(self, n_frames: int, exposure_s: float) -> Iterator[Frame | Lost]:
        for item in super().frames(n_frames, exposure_s):
            if self.is_held_when_lit and self.is_lit:
                self.is_held.clear()
            self.is_held.wait(20)
            yield item


def opener(stand: Stand):
    """Return what opens the stand, whatever the URL."""

    @contextmanager
    def opened(*_: str) -> Iterator[Stand]:
        yield stand

    return opened


def record(step: str, created: str = "2026-01-01T00:00:00+00:00") -> StepRecord:
    """Return that a step was done."""
    return StepRecord(
        step=step, created=created, software="1", mode="colour-csm", gain="HGM", bias_v=500.0, temperature_k=math.nan
    )  # fmt: skip


def begun(plan: Plan = PLAN, *, steps: tuple[str, ...] = ("equalise", "energy"), seed: int = 0) -> Calibration:
    """Return a calibration of the stand's chip in which some steps are taken for done."""
    rng = np.random.default_rng(seed)
    rough = rough_calibration(plan, chip_id="W1_A1")
    shape = rough.trim.shape
    return replace(
        rough,
        trim=rng.integers(15, 18, shape).astype(np.uint8),
        offset_dac=np.full(8, 40.0),
        gain_dac_per_kev=np.full(8, 3.9),
        edges_before_dac=rng.normal(40, 9, shape).astype(np.float32),
        edges_after_dac=rng.normal(40, 1, shape).astype(np.float32),
        history=tuple(record(step) for step in steps),
    )
