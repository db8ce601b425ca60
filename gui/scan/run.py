"""One run of a scan as the window has it: what it is told to do, the ways to hold and to end it, what it shows.

No Qt here. The instrument's thread walks through `work`; everything else may be asked from any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from acquisition.pause import BEAM_OFF_AFTER_S, Pause
from acquisition.plan import Plan
from calibration.progress import Progress
from gui.scan.estimate import duration, size
from gui.scan.interrupted import PARTIAL
from gui.scan.preview import Previewer
from gui.scan.watch import Watch

if TYPE_CHECKING:
    from acquisition.instrument import Instrument
    from acquisition.preflight import Check
    from acquisition.runner import RunHealth, ScanSummary
    from calibration.store import Calibration


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A scan that somebody wants.

    Attributes
    ----------
    is_resumed : bool
        Go on with what an earlier run left under this name.
    is_forced : bool
        Scan although a check failed that a person may overrule.
    reconnect_s, retries : float, int
        See `acquisition.runner.Endurance`.
    beam_off_after_s : float
        How long the beam stays on while the scan is paused.
    notes : mapping of str to str
        Kept in the file's header.
    """

    path: Path
    plan: Plan
    calibration: Calibration
    is_resumed: bool = False
    is_forced: bool = False
    is_overwriting: bool = False
    reconnect_s: float = 30.0
    retries: int = 0
    beam_off_after_s: float = BEAM_OFF_AFTER_S
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """What the instrument said before the scan."""

    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        """What keeps the scan from beginning."""
        return tuple(check for check in self.checks if check.level.value == "fail")

    @property
    def is_forcible(self) -> bool:
        """Whether a person may overrule all of it."""
        return all(check.is_forcible for check in self.failed)


def look_first(order: Order) -> Callable[[Instrument], Generator[Progress, None, Preflight]]:
    """Return the work of looking at everything that a scan needs, for the instrument's thread."""

    def work(instrument: Instrument) -> Generator[Progress, None, Preflight]:
        from acquisition.preflight import examine

        yield Progress("checks", 0, 1)
        checks = examine(instrument, order.plan, order.calibration, order.path)
        return Preflight(checks=checks)

    return work


class ScanRun:
    """A scan that runs, or ran."""

    def __init__(
        self, order: Order, *, on_health: Callable[[RunHealth], None] | None = None, every_s: float = 2.0
    ) -> None:
        self.order = order
        self.pause = Pause(order.beam_off_after_s)
        self._stop = threading.Event()
        self._on_health = on_health
        self.watch = Watch(order.plan, calibration=order.calibration)
        alignment = order.calibration.alignment
        self.previewer = Previewer(
            self.watch,
            every_s=every_s,
            geometry=alignment.geometry if alignment is not None else order.plan.geometry,
            believed="the calibration" if alignment is not None else "the plan",
        )

    def work(self, instrument: Instrument) -> Generator[Progress, None, ScanSummary]:
        """Run it; for the instrument's thread."""
        from acquisition.runner import Endurance, run_scan

        order = self.order
        if order.is_resumed:
            yield from self._look_back()
        return (
            yield from run_scan(
                instrument,
                order.plan,
                order.calibration,
                order.path,
                overwrite=order.is_overwriting,
                is_forced=order.is_forced,
                resume=order.is_resumed,
                endurance=Endurance(reconnect_s=order.reconnect_s, retries=order.retries),
                stop=self._stop,
                on_health=self._on_health,
                on_item=self.watch.put,
                pause=self.pause,
                notes=order.notes,
            )
        )

    def stop(self) -> None:
        """End after the present frame; a paused run ends at once."""
        self._stop.set()

    def toggle_pause(self) -> None:
        """Hold it before its next step, or let it go on."""
        if self.pause.is_closed:
            self.watch.forget_pace()
            self.pause.open()
        else:
            self.pause.close()

    def _look_back(self) -> Generator[Progress, None, None]:
        """Show what earlier runs took, but for the step that is taken again."""
        from acquisition.resume import find_rest, first_frames
        from acquisition.scan import ImageKey
        from acquisition.scan_file import read_scan
        from acquisition.steps import expand
        from firmware_iface.frame import Frame, Lost

        order = self.order
        partial = order.path.with_name(order.path.stem + PARTIAL)
        steps = expand(order.plan)
        rest = find_rest(order.path, order.plan, order.calibration, first_frames(steps))
        if rest.source is None:
            return
        scan = read_scan(partial, allow_partial=True)
        number = 0
        for step in steps[: rest.first_step]:
            yield Progress("what is there", number, rest.n_frames)
            counts = scan.counts(slice(number, number + step.n_frames))
            for place in range(step.n_frames):
                run_id = int(scan.run[number])
                if scan.image_key[number] == ImageKey.INVALID:
                    reason = "in the earlier run"
                    item = Lost(run_id=run_id, first_sequence=number, n_frames=1, reason=reason)
                else:
                    item = Frame(
                        counts=counts[place], thresholds=scan.readout.thresholds, sequence=number,
                        timestamp_ns=int(scan.timestamps_ns[number]), exposure_ns=0, run_id=run_id,
                    )  # fmt: skip
                self.watch.put(step, place, item)
                number += 1
        self.watch.forget_pace()


def told_at_end(summary: ScanSummary) -> str:
    """Return in words how a scan ended, and what to do now."""
    name = summary.path.name
    whole = f"{summary.n_frames} frames in {duration(summary.duration_s)}"
    before = f", {summary.n_resumed} of them from before" if summary.n_resumed else ""
    if summary.n_lost:
        lost = (
            f"{name} is DEGRADED: {summary.n_lost} of {whole}{before} were lost. They are marked in their places and "
            "the scan can be reconstructed without them; check cable and power before the next one."
        )
    else:
        lost = f"{name} is complete: {whole}{before}, none lost."
    notes = [note for note in summary.notes if not note.startswith("lost:")]
    return " ".join([lost, *(f"Note: {note}." for note in notes)])


def told_of_health(health: RunHealth | None) -> str:
    """Return how queues and disk stand, in a line."""
    if health is None:
        return "Queues and disk: told every ten seconds."
    disk = health.queues[0]
    queue = f"to the disk {disk.depth} of {disk.capacity} wait (most {disk.high_water}), {disk.rate_per_s:.1f} frames/s"
    skipped = f"; the view skipped {health.queues[1].n_dropped}" if len(health.queues) > 1 else ""
    alarms = f"; ALARM {' | '.join(health.alarms)}" if health.alarms else ""
    return f"{queue}{skipped}; slowest write {health.write_s:.2f} s; {size(health.free_bytes)} free{alarms}"
