"""A detector and the gantry around it: opened, closed safely, opened again, and brought into the state of a scan."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from acquisition.calibrate.exposures import TUBE, operating_dacs, set_up_detector
from acquisition.gantry import LINE, Gantry, open_gantry
from acquisition.plan import Plan, refuse_foreign_pixels
from calibration.progress import Progress
from calibration.store import Calibration
from firmware_iface.device import Detector, open_detector
from firmware_iface.errors import MpxctError


@dataclass(slots=True, kw_only=True, eq=False)
class Instrument:
    """A detector and the gantry around it.

    Attributes
    ----------
    opener : callable, optional
        Opens both anew; without it a device that has left stays lost.
    broken_off : threading.Event
        Set by whoever ends from beside what runs here, before the detector is aborted and the beam goes off: what runs
        takes neither for a fault.
    """

    detector: Detector
    gantry: Gantry
    opener: Callable[[], tuple[Detector, Gantry]] | None = None
    broken_off: threading.Event = field(default_factory=threading.Event)

    def close(self) -> None:
        """Leave the gantry safe and let the device go."""
        self.gantry.shut_down()
        self.gantry.close()
        self.detector.close()

    def reopen(self) -> None:
        """Open the device again after it was lost.

        Raises
        ------
        MpxctError
            It is not there, or not yet.
        """
        assert self.opener is not None
        with suppress(MpxctError, OSError):  # nothing is left to close, mostly
            self.detector.close()
        with suppress(MpxctError, OSError):
            self.gantry.close()
        self.detector, self.gantry = self.opener()


@contextmanager
def open_instrument(url: str, stage_url: str = LINE, tube_url: str = LINE) -> Iterator[Instrument]:
    """Open the detector at a URL, and the gantry around it, which hangs on its auxiliary line unless told otherwise."""

    def opener() -> tuple[Detector, Gantry]:
        detector = open_detector(url)
        try:
            return detector, open_gantry(detector, stage_url, tube_url)
        except BaseException:
            detector.close()
            raise

    detector, gantry = opener()
    instrument = Instrument(detector=detector, gantry=gantry, opener=opener)
    try:
        yield instrument
    finally:
        instrument.close()


def prepare(instrument: Instrument, plan: Plan, calibration: Calibration) -> None:
    """Bring chip, gantry and tube into the state of the scan, the beam still off.

    Raises
    ------
    WrongUsage
        The plan's pixels are not the chip's in this mode.
    """
    refuse_foreign_pixels(plan)
    detector, gantry = instrument.detector, instrument.gantry
    gantry.beam(False)
    set_up_detector(detector, plan, calibration, operating_dacs(calibration, plan))
    gantry.select_source(TUBE)
    gantry.set_tube(plan.source.kvp, plan.source.current_ma)


def begin(instrument: Instrument, plan: Plan, calibration: Calibration) -> Generator[Progress, None, None]:
    """Prepare the instrument and switch the beam on, step by step so that somebody can stop it in between."""
    yield Progress("prepare", 0, 2)
    prepare(instrument, plan, calibration)
    yield Progress("prepare", 1, 2)
    yield from instrument.gantry.warm_up()
    instrument.gantry.beam(True)
    yield Progress("prepare", 2, 2)


def settings(detector: Detector, plan: Plan, calibration: Calibration) -> dict[str, dict[str, str | int | float]]:
    """Return what a scan file keeps of a board and its chips: the codes of all DACs as `prepare` sets them."""
    info = getattr(detector, "info", None)
    if info is None:  # a detector that is not a board of ours tells in its own way
        return {}
    board: dict[str, str | int | float] = {
        "serial": info.serial,
        "firmware": info.firmware_version,
        "protocol": info.protocol_version,
        "n_chips": info.n_chips,
    }
    wanted, tuned = operating_dacs(calibration, plan), calibration.bias_currents
    own = tuned.dacs if tuned is not None and len(tuned.codes) > 1 else lambda _: {}
    chips: dict[str, dict[str, str | int | float]] = {
        f"dacs_{n}": {**detector.dacs_of(n), **wanted, **own(n)} for n in range(info.n_chips)
    }
    return {"board": board, **chips}


def is_checked(detector: Detector) -> bool:
    """Whether frames come with a checksum, as those of a board of ours do."""
    return hasattr(detector, "info")
