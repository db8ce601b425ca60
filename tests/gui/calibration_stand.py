"""Stands for the page Calibrate: instruments without a chip, quick or slow, and calibrations to begin from."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np

from acquisition.beam import SourceState
from acquisition.limits import UNKNOWN, Limits
from acquisition.plan import BeadsPlan, Plan
from acquisition.steps import Pose
from calibration.conditions import StepRecord
from calibration.store import Calibration
from firmware_iface.errors import TransportError
from firmware_iface.frame import Frame, Lost
from tests.rough_calibration import rough_calibration
from tests.test_beam_steps import GAIN_DAC_PER_KEV, OFFSET_DAC, Beam
from tests.test_beam_steps import PLAN as LIGHT_PLAN
from tests.test_calibrate import PLAN, Bench

PLAN = msgspec.structs.replace(
    PLAN, calibration=msgspec.structs.replace(PLAN.calibration, n_dark_frames=3, n_flat_frames=4, n_cell_frames=4)
)

BEADS = BeadsPlan(n_beads=6, n_views=40)
LIGHT_PLAN = msgspec.structs.replace(
    LIGHT_PLAN, calibration=msgspec.structs.replace(LIGHT_PLAN.calibration, beads=BEADS, n_flat_frames=4)
)


class Attended:
    """What a window asks of an instrument besides what a calibration does, for a detector and gantry made here.

    Attributes
    ----------
    is_held : threading.Event
        While it is not set, no frame comes: a test that wants to look in the middle clears it.
    is_held_when_lit : bool
        Frames under the beam do not come, until somebody aborts.
    breaks_at : int
        The frame, counted from now on, at which the cable is pulled; 0: never.
    n_aborts : int
    """

    is_lit: bool
    sample: str | None

    def __init__(self) -> None:
        super().__init__()
        self.is_held, self.broken_off = threading.Event(), threading.Event()
        self.is_held.set()
        self.is_held_when_lit = False
        self.breaks_at = 0
        self.n_aborts = 0
        self.pose = Pose()

    @property
    def detector(self) -> Any:
        return self

    @property
    def gantry(self) -> Any:
        return self

    def health(self) -> SimpleNamespace:
        return SimpleNamespace(sensor_k=getattr(self, "sensor_k", 305.0))

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
        for item in super().frames(n_frames, exposure_s):  # pyright: ignore[reportAttributeAccessIssue]
            if self.is_held_when_lit and self.is_lit:
                self.is_held.clear()
            self.is_held.wait(20)
            if self.breaks_at:
                self.breaks_at -= 1
                if not self.breaks_at:
                    raise TransportError("the board does not answer", hint="check the cable")
            yield item


class Stand(Attended, Bench):
    """The bench of the calibration's own tests: noise, sources, bad pixels, cells."""


class LightStand(Attended, Beam):
    """The beam of the tests of currents, plates and response, with steel beads in its sample changer."""

    def __init__(self) -> None:
        super().__init__()
        height_mm = np.linspace(-BEADS.length_mm / 2, BEADS.length_mm / 2, BEADS.n_beads)
        around_rad = 2.4 * np.arange(BEADS.n_beads)
        self.beads_mm = np.stack([3.6 * np.cos(around_rad), 3.6 * np.sin(around_rad), height_mm], axis=1)

    def samples(self) -> tuple[str, ...]:
        return (*super().samples(), BEADS.sample)

    def set_dacs(self, codes: Mapping[str, int], chip_number: int | None = None) -> None:
        super().set_dacs(codes)

    def move_to(self, pose: Pose) -> None:
        self.pose = pose

    def _rates(self) -> np.ndarray:
        if self.sample != BEADS.sample:
            return super()._rates()
        self.sample = None
        rates = super()._rates()
        self.sample = BEADS.sample
        rows, cols = np.mgrid[: rates.shape[1], : rates.shape[2]]
        at_px = LIGHT_PLAN.geometry.views(self.pose.angle_rad).shadows_px(self.beads_mm)[0] + np.array(
            [(rates.shape[2] - 1) / 2, (rates.shape[1] - 1) / 2]
        )
        radius_px = BEADS.diameter_mm / 2 * LIGHT_PLAN.geometry.magnification / LIGHT_PLAN.geometry.pitch_mm
        depth = np.zeros(rates.shape[1:])
        for col, row in at_px:
            depth += 1.5 * np.sqrt(np.clip(1 - ((cols - col) ** 2 + (rows - row) ** 2) / radius_px**2, 0, None))
        return rates * np.exp(-depth)


def opener(stand: Attended):
    """Return what opens the stand, whatever the URL."""

    @contextmanager
    def opened(*_: str) -> Iterator[Attended]:
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


def lit(*, steps: tuple[str, ...] = ("equalise", "energy", "pixels")) -> Calibration:
    """Return a calibration of the light stand's detector, thresholds where they truly are."""
    known = begun(LIGHT_PLAN, steps=steps)
    return replace(
        known, offset_dac=np.full(8, OFFSET_DAC), gain_dac_per_kev=np.full(8, GAIN_DAC_PER_KEV),
        pixel_class=np.zeros_like(known.pixel_class), is_masked=np.zeros_like(known.is_masked),
    )  # fmt: skip
