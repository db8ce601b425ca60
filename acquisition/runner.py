"""Runs a plan on an instrument: prepares the chip, moves, exposes, writes, and leaves everything safe and valid.

While a scan runs, one thread only talks to the device: the stream's reader. The scan file is written by the caller's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from acquisition.calibrate import operating_dacs, refuse_full, set_up_detector
from acquisition.gantry import Gantry, LineGantry
from acquisition.plan import Plan, Step, StepKind, expand, refuse_foreign_pixels
from acquisition.scan import ImageKey, ScanStatus, readout_of
from acquisition.scan_file import ScanWriter
from acquisition.stream import FrameStream
from calibration.progress import Progress
from calibration.store import Calibration
from firmware_iface.device import Detector, open_detector
from firmware_iface.errors import CalibrationMissing, DataLost, TransportError, WrongUsage
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
def open_instrument(url: str) -> Iterator[Instrument]:
    """Open the detector at a URL, and the gantry behind its auxiliary line."""
    detector = open_detector(url)
    instrument = Instrument(detector=detector, gantry=LineGantry(detector.auxiliary))
    try:
        yield instrument
    finally:
        instrument.close()


def refuse_unfit(plan: Plan, calibration: Calibration) -> None:
    """Refuse a plan that the chip cannot run, or that the calibration was not made for; nothing moves here.

    Raises
    ------
    WrongUsage
        The plan's pixels are not the chip's in this mode.
    CalibrationMissing
        The calibration is of another mode, gain or bias.
    """
    refuse_foreign_pixels(plan)
    detector = plan.detector
    planned = (detector.gain, detector.is_csm, detector.is_colour)
    measured = (calibration.gain, calibration.is_csm, calibration.is_colour)
    if planned != measured or not math.isclose(detector.bias_v, calibration.bias_v, abs_tol=0.5):
        raise CalibrationMissing(
            f"the calibration {calibration.identity} is for (gain, charge summing, colour) {measured} at "
            f"{calibration.bias_v:g} V; the plan wants {planned} at {detector.bias_v:g} V",
            hint="calibrate with this plan: mpxct calibrate all --plan PLAN.toml",
        )


def prepare(instrument: Instrument, plan: Plan, calibration: Calibration) -> None:
    """Bring chip, gantry and tube into the state of the scan, the beam still off.

    Raises
    ------
    WrongUsage, CalibrationMissing
        As `refuse_unfit`; also an unknown sample, and a calibration of another chip.
    """
    refuse_unfit(plan, calibration)
    detector, gantry = instrument.detector, instrument.gantry
    samples = gantry.samples()
    if plan.scan.sample not in samples:
        raise WrongUsage(f"the sample changer has no {plan.scan.sample!r}; it has {', '.join(samples)}")
    chip_id = str(detector.chip_id())
    if calibration.chip_id != chip_id:
        raise CalibrationMissing(
            f"the calibration {calibration.identity} is of chip {calibration.chip_id}; this is chip {chip_id}",
            hint="calibrate this chip: mpxct calibrate all",
        )
    gantry.beam(False)
    set_up_detector(detector, plan, calibration, operating_dacs(calibration, plan))
    gantry.select_source(TUBE)
    gantry.set_tube(plan.source.kvp, plan.source.current_ma)


def run_scan(
    instrument: Instrument,
    plan: Plan,
    calibration: Calibration,
    path: str | Path,
    *,
    overwrite: bool = False,
    on_newest: Callable[[Frame], None] | None = None,
) -> Generator[Progress, None, ScanSummary]:
    """Run a whole scan into a file; a step of progress for each frame.

    Closed early (or by Ctrl-C) it stops the detector, switches the beam off, and leaves what it has as a valid file
    under the partial name, with the status "interrupted".

    Parameters
    ----------
    on_newest : callable, optional
        Gets the newest frame now and then, for a live view; frames may be skipped.

    Raises
    ------
    WrongUsage
        The exposure fills the counters, or as `prepare`.
    DataLost
        The device went away in the middle, or the disk is full; the message tells how many frames are in which file.
    """
    refuse_unfit(plan, calibration)
    began_s = time.monotonic()
    with ScanWriter(
        path,
        readout_of(plan),
        n_frames=plan.n_frames,
        plan=plan,
        calibration=calibration,
        sample=plan.scan.sample,
        source=TUBE,
        overwrite=overwrite,
    ) as writer:
        try:
            prepare(instrument, plan, calibration)
            yield from _expose(instrument, plan, writer, on_newest)
        except BaseException as error:
            n_whole = writer.n_frames - writer.n_lost
            if not n_whole:
                writer.discard()  # nothing in it is worth a name that would be in the next scan's way
                raise
            writer.interrupt(f"{type(error).__name__}: {error}")
            if isinstance(error, TransportError):
                raise DataLost(
                    f"the device was lost ({error}); {n_whole} of {plan.n_frames} frames are in {writer.partial}",
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
    instrument: Instrument, plan: Plan, writer: ScanWriter, on_newest: Callable[[Frame], None] | None
) -> Generator[Progress, None, None]:
    """Take every frame of the plan into the writer."""
    instrument.gantry.beam(True)
    with FrameStream(_take(instrument, expand(plan))) as stream:
        shown = None
        for step, item in stream:
            if isinstance(item, Frame):
                if not writer.n_frames:
                    refuse_full(item.counts, plan, "the first frame")  # before the others are taken in vain
                writer.write(item, IMAGE_KEYS[step.kind], step.angle_rad)
            else:
                writer.lost(item, step.angle_rad)
            newest = stream.newest()
            if on_newest is not None and newest is not None and newest is not shown:
                on_newest(newest)
                shown = newest
            yield Progress("scan", writer.n_frames, plan.n_frames)


def _take(instrument: Instrument, steps: Iterable[Step]) -> Iterator[tuple[Step, Frame | Lost]]:
    """Move to each step and take its frames; every frame of a step is accounted for, as itself or as lost."""
    for step in steps:
        instrument.gantry.select_sample(step.sample)
        instrument.gantry.rotate_to(step.angle_rad)
        n_seen = run_id = 0
        for item in instrument.detector.frames(step.n_frames, step.exposure_s):
            run_id = item.run_id
            n_seen += 1 if isinstance(item, Frame) else item.n_frames
            yield step, item
        if n_seen < step.n_frames:
            reason = "the run ended before they came"
            yield step, Lost(run_id=run_id, first_sequence=n_seen, n_frames=step.n_frames - n_seen, reason=reason)
