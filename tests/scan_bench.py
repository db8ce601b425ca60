"""A board of one chip with a gantry on its auxiliary line, all in memory: what a run does to both can be looked at."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from acquisition.instrument import Instrument
from acquisition.line_gantry import LineGantry
from acquisition.plan import Plan, ScanPlan
from acquisition.runner import run_scan
from acquisition.steps import cost
from calibration.progress import Progress
from calibration.store import Calibration
from firmware_iface.errors import Disconnected
from firmware_iface.frame import Frame, Lost

PLAN = Plan(scan=ScanPlan(n_views=6, frames_per_view=1, flats_every_n_views=3, n_flats=2))
N_FRAMES = 6 + 3 * 2


class Bench:
    """What a run holds; counts tell which frame of the session it is, or, by pose, where and which of its step.

    Parameters
    ----------
    unplug_at : set of int
        Before these frames of the session the device leaves; it comes back when it is opened again.
    is_loose : bool
        It leaves there every time, when the frame is to be taken.
    absent : int
        How often opening it again fails first.
    """

    def __init__(
        self,
        *,
        unplug_at: frozenset[int] = frozenset(),
        absent: int = 0,
        lose: frozenset[int] = frozenset(),
        short: bool = False,
        by_pose: bool = False,
        is_loose: bool = False,
    ) -> None:
        self.unplug_at, self.absent, self.lose = set(unplug_at), absent, lose
        self.is_short, self.by_pose, self.is_loose = short, by_pose, is_loose
        self.lines: list[str] = []
        self.calls: list[str] = []
        self.dacs: dict[str, int] = {}
        self.dacs_of_frames: list[dict[str, int]] = []
        self.configuration: Any = None
        self.pixels: Any = None
        self.trigger: Any = None
        self.n_done = self.n_runs = self.n_opens = 0
        self.poses: list[tuple[str, str]] = []
        self.pose = {"ROT": "0", "SAMP": "?"}
        self.source_states: list[str] = []
        """What TUBE:STATE? answers next; the last goes on. Nothing: it does not know the question."""
        self.refuse: dict[str, str] = {}
        self.refuse_once = False
        self.is_open = True
        self.is_gone = False
        self.sensor_k = 305.0
        self.board_state = "IDLE"
        self.waits_at = -1
        """Before this frame of the session the board waits until it is told to stop."""
        self.hangs_at = -1
        """Before this frame of the session nothing comes any more, until the run is aborted."""
        self.stopping, self.aborting = threading.Event(), threading.Event()

    # The detector

    def chip_id(self) -> str:
        return "W1"

    def health(self) -> Any:
        return SimpleNamespace(sensor_k=self.sensor_k)

    def status(self) -> Any:
        return SimpleNamespace(state=SimpleNamespace(name=self.board_state))

    def configure(self, configuration: object) -> None:
        self.configuration = configuration

    def set_dacs(self, dacs: Mapping[str, int]) -> None:
        self.dacs |= dacs

    def load_pixels(self, pixels: object) -> None:
        self.pixels = pixels

    def set_bias(self, bias_v: float) -> None:
        self.calls.append(f"bias {bias_v}")

    def set_trigger(self, trigger: object) -> None:
        self.trigger = trigger

    def stop(self) -> None:
        self.stopping.set()

    def abort(self) -> None:
        self.aborting.set()

    def close(self) -> None:
        self.is_open = False

    def frames(self, n_frames: int, exposure_s: float) -> Iterator[Frame | Lost]:
        self.n_runs += 1
        self.stopping.clear()
        self.aborting.clear()
        for sequence in range(n_frames - self.is_short):
            self._be_there()
            if self.n_done == self.waits_at:
                self.stopping.wait()
            if self.n_done == self.hangs_at:
                self.aborting.wait()
            if self.stopping.is_set() or self.aborting.is_set():
                return
            self.poses.append((self.pose["ROT"], self.pose["SAMP"]))
            self.dacs_of_frames.append(dict(self.dacs))
            if self.n_done in self.lose:
                yield Lost(run_id=self.n_runs, first_sequence=sequence, n_frames=1, reason="CRC of the payload")
            else:
                yield self.frame(sequence, exposure_s)
            self.n_done += 1

    def frame(self, sequence: int, exposure_s: float) -> Frame:
        count = self.n_done
        if self.by_pose:
            angle = float(self.pose["ROT"]) if self.pose["SAMP"] != "OUT" else 500
            count = round(angle) + sequence
        return Frame(
            counts=np.full((4, 128, 128), count, np.uint16),
            thresholds=(1, 3, 5, 7),
            sequence=sequence,
            timestamp_ns=self.n_done,
            exposure_ns=round(exposure_s * 1e9),
            run_id=self.n_runs,
        )

    # The gantry

    def auxiliary(self, line: str) -> str:
        if self.is_gone or not self.is_loose:
            self._be_there()
        if not line.endswith("?"):
            self.lines.append(line)
        command, _, value = line.partition(" ")
        if line in self.refuse:
            return self.refuse.pop(line) if self.refuse_once else self.refuse[line]
        if command in self.pose:
            self.pose[command] = value
        if line == "TUBE:STATE?" and self.source_states:
            return self.source_states.pop(0) if len(self.source_states) > 1 else self.source_states[0]
        if line in ("LIFT?", "SHIFT?", "LIMITS?", "TUBE:STATE?"):
            return "ERR no command"
        return {"SAMP:LIST?": "vials,cell-water", "BUSY?": "0", "ROT?": self.pose["ROT"]}.get(line, "OK")

    def _be_there(self) -> None:
        if self.n_done in self.unplug_at:
            if not self.is_loose:
                self.unplug_at.discard(self.n_done)
            self.is_gone = True
        if self.is_gone:
            raise Disconnected("the device is gone from the bus")

    # Both

    def open_again(self) -> tuple[Any, Any]:
        self.n_opens += 1
        if self.n_opens <= self.absent:
            raise Disconnected("no board on USB")
        self.is_gone = False
        return self, LineGantry(self.auxiliary)

    @property
    def instrument(self) -> Instrument:
        return Instrument(detector=self, gantry=LineGantry(self.auxiliary))  # type: ignore[arg-type]

    @property
    def replugged(self) -> Instrument:
        """The instrument of a bench that can be opened again."""
        instrument = self.instrument
        instrument.opener = self.open_again
        return instrument


def run(bench: Bench, calibration: Calibration, path: Path, plan: Plan = PLAN, **options: Any) -> Any:
    """Run a scan to its end and return its summary; every frame must have its step of progress."""
    work = run_scan(options.pop("instrument", bench.instrument), plan, calibration, path, **options)
    steps: list[Progress] = []
    while True:
        try:
            steps.append(next(work))
        except StopIteration as end:
            assert not steps or steps[-1].done == steps[-1].total == cost(plan).n_frames
            return end.value
