"""What moves and shines around the detector: stage, source and sample changer, and the gantry that they make.

Drivers are found by the scheme of a URL, through the entry points `mpxct.gantries`: ``line:`` is the controller behind
the detector's auxiliary line, ``gcode:/dev/ttyUSB0`` a stage and ``scpi:/dev/ttyUSB1`` a tube on a serial port.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Protocol

from acquisition.beam import SourceState
from acquisition.limits import Limits
from acquisition.steps import Pose
from calibration.progress import Progress
from firmware_iface.errors import MpxctError, WrongUsage

ENTRY_POINTS = "mpxct.gantries"
"""Scheme to a function of the address and the detector (or None) that returns a stage, a source, or a whole gantry.

A module may have `FORMS`, what a URL of its scheme looks like and a line on it, which `list_gantries` tells.
"""
LINE = "line:"
_LOG = logging.getLogger("mpxct.gantry")


class Stage(Protocol):
    """Turns source and detector around the sample, or the sample between them, lifts it, and shifts the camera."""

    def move_to(self, pose: Pose) -> None:
        """Go to a pose; return when it stands there.

        Raises
        ------
        WrongUsage
            The pose is beyond the limits.
        StageStuck
            It did not arrive, in time or in place; it was told to halt.
        """
        ...

    def sweep(self, start: Pose, end: Pose, n_positions: int, duration_s: float) -> None:
        """Go to the start, then begin to go evenly from there to the end, and return.

        Where each of n equal parts of the way begins, the detector's trigger input gets a pulse: arm it first, and
        be at the start before that.

        Raises
        ------
        WrongUsage
            Beyond the limits, or too fast, or this stage gives no pulses.
        """
        ...

    def wait(self) -> None:
        """Return when it stands where the last move or sweep ends.

        Raises
        ------
        StageStuck
            As `move_to`.
        """
        ...

    def halt(self) -> None:
        """Stand at once, wherever it is."""
        ...

    @property
    def pose(self) -> Pose:
        """Where it stands, as its own encoders say."""
        ...

    def limits(self) -> Limits:
        """Return where it may stand and how fast it goes."""
        ...

    def close(self) -> None:
        """Give back the port that it holds."""
        ...


class SampleChanger(Protocol):
    """Puts one sample, or none, into the beam."""

    def samples(self) -> tuple[str, ...] | None:
        """Return what it holds; None: a person puts in whatever is named."""
        ...

    def select_sample(self, name: str | None) -> None:
        """Put a sample into the beam; None takes it out."""
        ...


class Source(Protocol):
    """An X-ray tube, and other sources that can take its place."""

    def sources(self) -> tuple[str, ...]:
        """Return what there is."""
        ...

    def select_source(self, name: str) -> None:
        """Let this source shine on the detector; "TUBE" is the tube."""
        ...

    def set_tube(self, kvp: float, current_ma: float) -> None:
        """Set voltage and current of the tube."""
        ...

    def beam(self, is_on: bool) -> None:
        """Switch the radiation on or off, and see by the lamp that it is.

        Raises
        ------
        BeamRefused
            It does not, and says why.
        """
        ...

    def source_state(self) -> SourceState:
        """Ask how it is; `beam.expect_shining` judges whether it tripped."""
        ...

    def warm_up(self) -> Generator[Progress, None, None]:
        """Warm it up, if it must be.

        Raises
        ------
        BeamRefused
            It does not get warm.
        """
        ...

    def clear_fault(self) -> None:
        """Acknowledge a fault, so that it may shine again."""
        ...

    def limits(self) -> Limits:
        """Return what voltage, current and power it allows."""
        ...

    def close(self) -> None:
        """Give back the port that it holds."""
        ...


class Gantry(Stage, SampleChanger, Source, Protocol):
    """All that a scan needs to move and switch."""

    def shut_down(self) -> str:
        """Leave it safe: the beam off, the stage standing.

        Waits for no move, and never raises, for it runs when something else has failed.

        Returns
        -------
        str
            What may not be safe, and why; empty where all is.
        """
        ...

    def close(self) -> None:
        """Give back the ports that it holds."""
        ...


class ManualChanger:
    """A person who puts samples into the beam: nobody is asked, what is named is taken as said.

    Flats need an empty beam, which no one makes in the middle of a scan: plan a scan without them.
    """

    def samples(self) -> None:
        """Return None: whatever is named."""

    def select_sample(self, name: str | None) -> None:
        """Take it as said."""


class PartsGantry:
    """A gantry of parts, each with a driver of its own."""

    def __init__(self, stage: Stage, source: Source, changer: SampleChanger) -> None:
        self.stage, self.source, self.changer = stage, source, changer
        self.move_to, self.sweep, self.wait, self.halt = stage.move_to, stage.sweep, stage.wait, stage.halt
        self.samples, self.select_sample = changer.samples, changer.select_sample
        self.sources, self.select_source, self.set_tube = source.sources, source.select_source, source.set_tube
        self.beam, self.source_state = source.beam, source.source_state
        self.warm_up, self.clear_fault = source.warm_up, source.clear_fault

    @property
    def pose(self) -> Pose:
        """Where the stage stands, as its own encoders say."""
        return self.stage.pose

    def limits(self) -> Limits:
        """Return what stage and source allow."""
        return self.stage.limits().or_else(self.source.limits())

    def shut_down(self) -> str:
        """Switch the beam off, then stop the stage; see `Gantry`."""
        return "; ".join(filter(None, (switched_off(self.source), halted(self.stage))))

    def close(self) -> None:
        """Give the ports back."""
        self.source.close()
        self.stage.close()


def switched_off(source: Source) -> str:
    """Switch a source off and return why it may still shine; empty where it does not."""
    try:
        source.beam(False)
    except MpxctError as error:
        _LOG.error("the beam may still be on: %s", error)
        return f"the beam may still be on: {error}"
    return ""


def halted(stage: Stage) -> str:
    """Stop a stage and return why it may still move; empty where it does not."""
    try:
        stage.halt()
    except MpxctError as error:
        _LOG.error("the stage may still move: %s", error)
        return f"the stage may still move: {error}"
    return ""


def open_gantry(detector: Any, stage_url: str = LINE, tube_url: str = LINE) -> Gantry:
    """Open stage and tube, and make one gantry of them.

    Parameters
    ----------
    detector : Detector
        Whose auxiliary line carries what is not elsewhere.
    stage_url, tube_url : str
        ``line:``, ``gcode:/dev/ttyUSB0?baud=115200``, ``scpi:/dev/ttyUSB1`` and whatever is registered.

    Raises
    ------
    WrongUsage
        Nothing is registered for a scheme, or it has no such part.
    """
    if stage_url == tube_url == LINE:
        return _open(LINE, detector, "select_sample", "a whole gantry")
    stage = _open(stage_url, detector, "move_to", "a stage")
    try:
        source = _open(tube_url, detector, "beam", "a tube")
    except BaseException:
        stage.close()
        raise
    changer = next((part for part in (stage, source) if hasattr(part, "select_sample")), ManualChanger())
    return PartsGantry(stage, source, changer)


def _open(url: str, detector: Any, method: str, what: str) -> Any:
    scheme, _, address = url.partition(":")
    known = entry_points(group=ENTRY_POINTS)
    if scheme not in known.names:
        raise WrongUsage(
            f"no gantry can be reached by {url!r}; known schemes: {', '.join(sorted(known.names)) or 'none'}",
            hint="for example --stage gcode:/dev/ttyUSB0 and --tube scpi:/dev/ttyUSB1; `mpxct devices` lists them",
        )
    part = known[scheme].load()(address, detector)
    if not hasattr(part, method):
        part.close()
        raise WrongUsage(f"{url!r} is not {what}", hint="`mpxct devices` tells what each scheme is for")
    return part


def list_gantries() -> dict[str, str]:
    """Return the form of every URL that `open_gantry` knows, and a line on each; nothing is opened."""
    listed: dict[str, str] = {}
    for entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name):
        listed |= getattr(import_module(entry.module), "FORMS", {f"{entry.name}:": "a gantry"})
    return listed
