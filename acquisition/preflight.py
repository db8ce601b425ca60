"""Whether a scan can be done, looked at before anything moves or shines, and before a file is made.

# Ref: what is looked at: daq_gui reference 3.4 (disk space for the whole scan, usbfs memory, speed of the file system);
#      what USB carries of its bits, 40 MB/s of 480 Mbit/s and 350 of 5000: the table of rates in 3.1.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from acquisition.calibrate.exposures import Instrument, operating_dacs, wanted_conditions
from acquisition.disk import SPARE_BYTES
from acquisition.doctor import USB_MEMORY_MB, Level
from acquisition.machine import usb_memory_mb
from acquisition.open_beam import flat_misfits, takes_flats, told_of_flat
from acquisition.plan import Plan, passes_kev
from acquisition.steps import Step, check, cost, expand, frame_s, tally, unchecked
from calibration.conditions import differences
from calibration.store import Calibration
from firmware_iface.chip import COLS, ROWS
from firmware_iface.device import Detector
from firmware_iface.errors import CalibrationMissing, MpxctError, TransportError, WrongUsage
from firmware_iface.usb_transport import UsbBoard, usb_boards

TRIAL_BYTES = 8_000_000
"""Written to learn how fast a folder is."""
CARRIED_BYTES_PER_S = ((5000, 350e6), (480, 40e6), (12, 1e6))
"""What a bus of at least so many Mbit/s carries."""
LEAST_SPEED_SHARE = 2.0
"""A disk this many times faster than the frames come is fast enough without a word: others use it too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes
    ----------
    text, remedy : str
        How it is, and what to do; the remedy is empty where all is well.
    refusal : type of MpxctError
        How a FAIL is raised.
    is_forcible : bool
        Whether a person may want to go on all the same.
    """

    level: Level
    topic: str
    text: str
    remedy: str = ""
    refusal: type[MpxctError] = MpxctError
    is_forcible: bool = False


def examine(instrument: Instrument, plan: Plan, calibration: Calibration, path: Path | None) -> tuple[Check, ...]:
    """Look at everything that a scan needs.

    Parameters
    ----------
    path : Path or None
        Of the scan file; None where none is written.
    """
    return (
        *_sample(instrument, plan),
        *_calibration(instrument, plan, calibration),
        *_thresholds(plan, calibration),
        *_flats(plan, calibration),
        *_source(instrument),
        *_limits(instrument, plan),
        *usb_checks(instrument.detector, plan),
        *(() if path is None else _disk(path, plan, expand(plan))),
    )


def refuse(checks: Iterable[Check], *, is_forced: bool) -> None:
    """Raise the first FAIL that is not, or cannot be, forced; the message names all of its kind."""
    failed = [each for each in checks if each.level is Level.FAIL and not (is_forced and each.is_forcible)]
    if not failed:
        return
    alike = [each for each in failed if each.refusal is failed[0].refusal]
    hint = failed[0].remedy + ("; or go on all the same with --force" if failed[0].is_forcible else "")
    raise failed[0].refusal("; ".join(each.text for each in alike), hint=hint)


def _sample(instrument: Instrument, plan: Plan) -> Iterator[Check]:
    samples = instrument.gantry.samples()
    if samples is None:
        text = f"a person puts {plan.scan.held or 'nothing'} into the beam"
        yield Check(level=Level.OK, topic="sample", text=text)
    elif plan.scan.held not in (None, *samples):
        text = f"the sample changer has no {plan.scan.held!r}; it has {', '.join(samples)}"
        yield Check(
            level=Level.FAIL, topic="sample", text=text, remedy="name one of these in the plan", refusal=WrongUsage
        )
    else:
        yield Check(level=Level.OK, topic="sample", text=plan.scan.held or "the open beam")


def _calibration(instrument: Instrument, plan: Plan, calibration: Calibration) -> Iterator[Check]:
    wanted = wanted_conditions(instrument.detector, plan)
    told = differences(calibration.conditions, wanted)
    if told:
        yield Check(
            level=Level.FAIL,
            topic="calibration",
            text=f"the calibration {calibration.identity} does not hold here: {'; '.join(told)}",
            remedy="calibrate again: on the page Calibrate, or with mpxct calibrate all --plan PLAN.toml",
            refusal=CalibrationMissing,
            is_forcible=True,
        )
    else:
        yield Check(level=Level.OK, topic="calibration", text=calibration.identity)
    if wanted.temperature_k is None:
        yield Check(
            level=Level.WARN,
            topic="temperature",
            text="the detector does not tell how warm its sensor is, so nobody knows whether the calibration holds",
            remedy="connect the temperature sensor",
        )
    else:
        yield Check(level=Level.OK, topic="temperature", text=f"sensor at {wanted.temperature_k - 273.15:.1f} C")


def _thresholds(plan: Plan, calibration: Calibration) -> Iterator[Check]:
    """Judge whether the DACs reach the thresholds of every pass, and not only of the first."""
    for number, energies_kev in enumerate(passes_kev(plan)):
        try:
            operating_dacs(calibration, plan, energies_kev)
        except WrongUsage as error:
            text = f"pass {number + 1}: {error}"
            yield Check(level=Level.FAIL, topic="thresholds", text=text, remedy=error.hint, refusal=WrongUsage)
            return


def _flats(plan: Plan, calibration: Calibration) -> Iterator[Check]:
    """Tell by what a scan without flats of its own will be divided, while there is still time to take some."""
    if takes_flats(plan):
        return
    misfits = dict.fromkeys(text for kev in passes_kev(plan) for text in flat_misfits(plan, calibration, kev))
    if misfits:
        yield Check(
            level=Level.WARN,
            topic="flats",
            text="the plan takes none, and the calibration's flat field cannot stand in, so that nothing can be "
            f"reconstructed: {'; '.join(misfits)}",
            remedy="let the plan take flats (n_flats), or measure the flat field with it: mpxct calibrate pixels",
        )
    else:
        text = f"the plan takes none; views will be divided by {told_of_flat(calibration)}"
        yield Check(level=Level.OK, topic="flats", text=text)


def _source(instrument: Instrument) -> Iterator[Check]:
    """Judge interlock, fault and lamp; a cold tube is warmed up later, and is no reason not to begin."""
    state = instrument.gantry.source_state()
    refusals = replace(state, warm_up=None).refusals
    if refusals:
        text = f"the source will not shine: {', and '.join(refusals)}"
        yield Check(level=Level.FAIL, topic="source", text=text, remedy="put that right at its panel, and scan again")
    elif state.is_interlock_closed is None:
        yield Check(level=Level.OK, topic="source", text="not checked: it does not tell how its interlock is")
    else:
        warmth = f", {state.warm_up.value}" if state.warm_up else ""
        yield Check(level=Level.OK, topic="source", text=f"its interlock is closed{warmth}")


def _limits(instrument: Instrument, plan: Plan) -> Iterator[Check]:
    limits = instrument.gantry.limits()
    total = tally(plan, limits)
    for text in check(plan, limits, total):
        yield Check(level=Level.FAIL, topic="limits", text=text, remedy="change the plan", refusal=WrongUsage)
    if unknown := unchecked(plan, limits, total):
        yield Check(level=Level.OK, topic="limits", text=f"not checked, for nobody knows: {', '.join(unknown)}")


def usb_checks(
    detector: Detector,
    plan: Plan,
    boards: Callable[[], tuple[UsbBoard, ...]] = usb_boards,
    memory_mb: Callable[[], int | None] = usb_memory_mb,
) -> Iterator[Check]:
    """Judge whether the bus carries what comes, and whether the system lends memory to its transfers.

    A detector that does not stand on USB, or is a simulated one, is none of the boards, and is not judged.
    """
    info = getattr(detector, "info", None)
    try:
        board = None if info is None else next((each for each in boards() if each.serial == info.serial), None)
    except TransportError:
        return
    if info is None or board is None:
        return
    bits = ROWS * COLS * info.n_chips * plan.detector.depth_bits * len(plan.detector.counters)
    come_bytes_per_s = bits / 8 * plan.detector.accumulate / frame_s(plan)
    carried_bytes_per_s = next((each for least, each in CARRIED_BYTES_PER_S if board.speed_mbit_s >= least), 0.0)
    text = f"{board.speed_mbit_s} Mbit/s carry {carried_bytes_per_s / 1e6:.0f} MB/s, {come_bytes_per_s / 1e6:.1f} come"
    if come_bytes_per_s <= carried_bytes_per_s:
        yield Check(level=Level.OK, topic="USB", text=text)
    elif plan.scan.is_sweep:
        yield Check(
            level=Level.FAIL,
            topic="USB",
            text=f"{text}: a stage that sweeps waits for no bus",
            remedy="use a faster socket and cable, or sweep slower",
            is_forcible=True,
        )
    else:
        remedy = "the board will wait for the bus, and the scan take longer; a faster socket and cable help"
        yield Check(level=Level.WARN, topic="USB", text=text, remedy=remedy)
    limit_mb = memory_mb()
    if limit_mb is not None and 0 < limit_mb < USB_MEMORY_MB:
        text = f"{limit_mb} MB for all transfers; a board needs {USB_MEMORY_MB}"
        yield Check(level=Level.WARN, topic="usbfs memory", text=text, remedy="`mpxct doctor` tells how to raise it")


def _disk(path: Path, plan: Plan, steps: Iterable[Step]) -> Iterator[Check]:
    """Judge the room, for counts that do not compress, and the speed, by a trial.

    A scan that is gone on with takes as much: what is there is copied before it is removed.
    """
    costs, folder = cost(plan), path.absolute().parent
    try:
        free_bytes = shutil.disk_usage(folder).free
        speed_bytes_per_s = write_speed_bytes_per_s(folder)
    except OSError as error:
        text = f"{folder} cannot be written to: {error.strerror or error}"
        yield Check(level=Level.FAIL, topic="disk", text=text, remedy="choose another folder", refusal=WrongUsage)
        return
    wanted_bytes = costs.size_bytes + 4 * SPARE_BYTES
    text = f"{_size_words(free_bytes)} free in {folder}, and the scan takes up to {_size_words(wanted_bytes)}"
    if free_bytes < wanted_bytes:
        yield Check(
            level=Level.FAIL,
            topic="disk",
            text=text,
            remedy="make room, or write to another disk; the scan can be gone on with if the disk fills up",
            is_forcible=True,
        )
    else:
        yield Check(level=Level.OK, topic="disk", text=text)
    rate_bytes_per_s = costs.size_bytes / max(costs.duration_s, 1e-9)
    text = f"{folder} takes {speed_bytes_per_s / 1e6:.0f} MB/s, and up to {rate_bytes_per_s / 1e6:.1f} MB/s come"
    if speed_bytes_per_s >= LEAST_SPEED_SHARE * rate_bytes_per_s:
        yield Check(level=Level.OK, topic="disk speed", text=text)
    elif speed_bytes_per_s < rate_bytes_per_s and any(step.end is not None for step in steps):
        yield Check(
            level=Level.FAIL,
            topic="disk speed",
            text=f"{text}: a stage that sweeps waits for no disk",
            remedy="write to a faster disk, or sweep slower",
            is_forcible=True,
        )
    else:
        yield Check(
            level=Level.WARN,
            topic="disk speed",
            text=text,
            remedy="the board will wait for the disk, and the scan take longer; a faster disk helps",
        )


def _size_words(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.3g} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"


def write_speed_bytes_per_s(folder: Path) -> float:
    """Return how fast a folder takes data onto the disk itself."""
    block = os.urandom(1 << 20)
    with tempfile.TemporaryFile(dir=folder) as file:
        begin_s = time.perf_counter()
        for _ in range(0, TRIAL_BYTES, len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return TRIAL_BYTES / max(time.perf_counter() - begin_s, 1e-6)
