"""Runs a plan on an instrument: prepares the chip, moves, exposes, writes, and leaves everything safe and valid.

While a scan runs, one thread only talks to the device: the stream's reader. The scan file is written by the caller's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from acquisition.calibrate.exposures import (
    operating_dacs,
    refuse_foreign,
    refuse_full,
    set_up_detector,
    wanted_conditions,
)
from acquisition.gantry import LINE, Gantry, open_gantry
from acquisition.plan import Plan, refuse_foreign_pixels
from acquisition.scan import ImageKey, ScanStatus, readout_of
from acquisition.scan_file import ScanWriter
from acquisition.steps import Step, StepKind, cost, expand
from acquisition.stream import FrameStream
from calibration.conditions import differences
from calibration.progress import Progress
from calibration.store import Calibration
from firmware_iface.device import Detector, open_detector
from firmware_iface.errors import DataLost, TransportError, WrongUsage
from firmware_iface.frame import Frame, Lost

TUBE = "TUBE"
IMAGE_KEYS: Mapping[StepKind, ImageKey] = {StepKind.FLAT: ImageKey.FLAT, StepKind.PROJECTION: ImageKey.PROJECTION}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Instrument:
    """A detector and the gantry around it."""

    detector: Detector
    gantry: Gantry

    def close(self) -> None:
        """Leave the gantry safe and let the device go."""
        self.gantry.shut_down()
        self.gantry.close()
        self.detector.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanSummary:
    """How a scan ended; `n_frames` counts the lost ones too."""

    path: Path
    n_frames: int
    n_lost: int
    status: ScanStatus
    duration_s: float


@contextmanager
def open_instrument(url: str, stage_url: str = LINE, tube_url: str = LINE) -> Iterator[Instrument]:
    """Open the detector at a URL, and the gantry around it, which hangs on its auxiliary line unless told otherwise."""
    detector = open_detector(url)
    try:
        gantry = open_gantry(detector, stage_url, tube_url)
    except BaseException:
        detector.close()
        raise
    instrument = Instrument(detector=detector, gantry=gantry)
    try:
        yield instrument
    finally:
        instrument.close()


def prepare(
    instrument: Instrument, plan: Plan, calibration: Calibration, *, is_forced: bool = False
) -> tuple[str, ...]:
    """Bring chip, gantry and tube into the state of the scan, the beam still off.

    Parameters
    ----------
    is_forced : bool
        Take a calibration that was made under other conditions all the same.

    Returns
    -------
    tuple of str
        In what the conditions differ from those of the calibration; nothing unless it is forced.

    Raises
    ------
    WrongUsage
        The plan's pixels are not the chip's in this mode, or there is no such sample.
    CalibrationMissing
        The calibration is of another chip, mode, gain, bias or temperature, and it is not forced.
    """
    refuse_foreign_pixels(plan)
    detector, gantry = instrument.detector, instrument.gantry
    samples = gantry.samples()
    if samples is not None and plan.scan.sample not in samples:
        raise WrongUsage(f"the sample changer has no {plan.scan.sample!r}; it has {', '.join(samples)}")
    wanted = wanted_conditions(detector, plan)
    if not is_forced:
        refuse_foreign(calibration, wanted)
    gantry.beam(False)
    set_up_detector(detector, plan, calibration, operating_dacs(calibration, plan))
    gantry.select_source(TUBE)
    gantry.set_tube(plan.source.kvp, plan.source.current_ma)
    return differences(calibration.conditions, wanted)


def run_scan(
    instrument: Instrument,
    plan: Plan,
    calibration: Calibration,
    path: str | Path,
    *,
    overwrite: bool = False,
    is_forced: bool = False,
    on_newest: Callable[[Frame], None] | None = None,
) -> Generator[Progress, None, ScanSummary]:
    """Run a whole scan into a file; a step of progress for each frame.

    Closed early (or by Ctrl-C) it stops the detector, switches the beam off, and leaves what it has as a valid file
    under the partial name, with the status "interrupted".

    Parameters
    ----------
    is_forced : bool
        Scan even with a calibration made under other conditions; the file's events say in what they differ.
    on_newest : callable, optional
        Gets the newest frame now and then, for a live view; frames may be skipped.

    Raises
    ------
    WrongUsage
        The exposure fills the counters, or as `prepare`.
    DataLost
        The device went away in the middle, or the disk is full; the message tells how many frames are in which file.
    """
    began_s, n_planned = time.monotonic(), cost(plan).n_frames
    with ScanWriter(
        path,
        readout_of(plan),
        n_frames=n_planned,
        plan=plan,
        calibration=calibration,
        sample=plan.scan.sample,
        source=TUBE,
        overwrite=overwrite,
    ) as writer:
        try:
            for difference in prepare(instrument, plan, calibration, is_forced=is_forced):
                writer.event("forced", f"the calibration was made under other conditions: {difference}")
            yield from _expose(instrument, plan, n_planned, writer, on_newest)
        except BaseException as error:
            n_whole = writer.n_frames - writer.n_lost
            if not n_whole:
                writer.discard()  # nothing in it is worth a name that would be in the next scan's way
                raise
            writer.interrupt(f"{type(error).__name__}: {error}")
            if isinstance(error, TransportError):
                raise DataLost(
                    f"the device was lost ({error}); {n_whole} of {n_planned} frames are in {writer.partial}",
                    hint="reconnect it and scan again; the partial file opens where partial scans are allowed",
                ) from error
            raise
        finally:
            instrument.gantry.shut_down()
        status = writer.finish()
    return ScanSummary(
        path=writer.path,
        n_frames=writer.n_frames,
        n_lost=writer.n_lost,
        status=status,
        duration_s=time.monotonic() - began_s,
    )


def _expose(
    instrument: Instrument,
    plan: Plan,
    n_planned: int,
    writer: ScanWriter,
    on_newest: Callable[[Frame], None] | None,
) -> Generator[Progress, None, None]:
    """Take every frame of the plan into the writer."""
    instrument.gantry.beam(True)
    with FrameStream(_take(instrument, expand(plan))) as stream:
        shown = None
        for (step, place), item in stream:
            if isinstance(item, Frame):
                if not writer.n_frames:
                    refuse_full(item.counts, plan, "the first frame")  # before the others are taken in vain
                writer.write(item, IMAGE_KEYS[step.kind], step.pose_of(place), step.pass_index)
            else:
                writer.lost(item, [step.pose_of(place + n) for n in range(item.n_frames)], step.pass_index)
            newest = stream.newest()
            if on_newest is not None and newest is not None and newest is not shown:
                on_newest(newest)
                shown = newest
            yield Progress("scan", writer.n_frames, n_planned)


def _take(instrument: Instrument, steps: Iterable[Step]) -> Iterator[tuple[tuple[Step, int], Frame | Lost]]:
    """Move to each step and take its frames; every frame of a step is accounted for, as itself or as lost."""
    for step in steps:
        instrument.gantry.select_sample(step.sample)
        instrument.gantry.move_to(step.pose)
        n_seen = run_id = 0
        for item in instrument.detector.frames(step.n_frames, step.exposure_s):
            run_id = item.run_id
            yield (step, n_seen), item
            n_seen += 1 if isinstance(item, Frame) else item.n_frames
        if n_seen < step.n_frames:
            rest = step.n_frames - n_seen
            reason = "the run ended before they came"
            yield (step, n_seen), Lost(run_id=run_id, first_sequence=n_seen, n_frames=rest, reason=reason)
