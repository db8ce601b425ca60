"""One tree of errors, which says whose fault it is.

Library code raises these; only the ``cli`` modules and the windows catch them. Every message names what was wrong,
the value, and what is allowed; ``hint`` says what to do next.
"""

from __future__ import annotations


class MpxctError(Exception):
    """Anything that mpxct itself refuses or reports; shown as one sentence and a hint."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class WrongUsage(MpxctError):
    """The request itself is wrong: an unknown device URL, a plan with a wrong key or value."""

    exit_code = 2


class BadFile(MpxctError):
    """The user's file is foreign, truncated, empty or inconsistent."""


class CalibrationMissing(MpxctError):
    """A step needs a calibration that does not exist yet; the hint says how to make it."""


class DataLost(MpxctError):
    """The work ended, but something was lost on the way; the file says what."""

    exit_code = 3


class DetectorError(MpxctError):
    """Something between the host and the pixels."""


class OurMistake(DetectorError):
    """The host asked for what the device cannot do now."""


class TheirMistake(DetectorError):
    """The device broke the protocol or refused a legal command."""


class TransportError(DetectorError):
    """The bytes did not get through."""


class Disconnected(TransportError):
    """The device is gone from the bus."""


class TransportTimeout(TransportError):
    """The device did not answer in time."""


class Stalled(TransportError):
    """The endpoint answered STALL."""


class Stopped(MpxctError):
    """Somebody wanted it to stop."""

    exit_code = 130


class GantryError(MpxctError):
    """Something that moves or shines around the detector."""


class StageStuck(GantryError):
    """The stage did not come where it was sent, not in time, or says itself that it cannot."""


class BeamRefused(GantryError):
    """The source does not do as it was told, and says why: an open interlock, a cold tube, a dark lamp."""


class TubeTripped(GantryError):
    """The source switched itself off while it was to shine."""
