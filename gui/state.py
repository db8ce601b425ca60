"""What the window knows, as one frozen record, and what may be done with it: every refusal is a sentence.

No Qt here: all that a page shows or greys out can be asked, and tested, without a window.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from acquisition.plan import Plan

if TYPE_CHECKING:  # they load much, and the window is to be there first
    from calibration.store import Calibration
    from reconstruction.volume import Volume


class Link(Enum):
    """How the window stands with the instrument; lost is also one that was asked for and is not there yet."""

    NONE = "not connected"
    CONNECTING = "connecting"
    READY = "ready"
    BUSY = "busy"
    LOST = "lost, trying again"


class Action(Enum):
    """What a person may ask for; the value says it in words."""

    CONNECT = "connect"
    DISCONNECT = "disconnect"
    MOVE = "move the stage"
    MAKE_SAFE = "switch the beam off and stop the stage"
    LIVE = "look live"
    CALIBRATE = "calibrate"
    SCAN = "scan"
    RECONSTRUCT = "reconstruct"
    DECOMPOSE = "decompose"
    SHOW = "show volumes"
    EXPORT = "export"


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What a session holds.

    Attributes
    ----------
    folder : Path
        Where new files go.
    plan : Plan
        Of the next scan, and of calibrations.
    calibration, bins, materials : optional
        In memory; the paths say where each stands, None where it was not saved yet.
    recording : object, optional
        Frames of a file, `gui.live.recording.Recording`, for the page Live.
    """

    folder: Path
    plan: Plan = field(default_factory=Plan)
    plan_path: Path | None = None
    calibration: Calibration | None = None
    calibration_path: Path | None = None
    scan_path: Path | None = None
    bins: Volume | None = None
    bins_path: Path | None = None
    materials: Volume | None = None
    materials_path: Path | None = None
    recording: object | None = None


def why_not(
    action: Action,
    state: State,
    link: Link,
    *,
    is_board: bool = True,
    instrument_job: str = "",
    compute_job: str = "",
) -> str:
    """Return why something cannot be done now, and what to do about it; empty where it can.

    Parameters
    ----------
    is_board : bool
        Whether the detector is a board that is driven from here, and no Merlin with a program of its own.
    instrument_job, compute_job : str
        Titles of what runs on the instrument and in the background; empty: nothing.
    """
    if action is Action.CONNECT:
        return _why_not_connected(link)
    if action is Action.DISCONNECT:
        if link is Link.NONE:
            return "No instrument is connected, so there is none to let go."
        return _busy(link, instrument_job)
    if action is Action.MAKE_SAFE:
        return _ABSENT.get(link, "")
    if action in (Action.MOVE, Action.LIVE, Action.CALIBRATE, Action.SCAN):
        if action in (Action.CALIBRATE, Action.SCAN) and link not in _ABSENT and not is_board:
            return _OF_ITS_OWN
        return _why_not_measured(action, state, link, instrument_job)
    if action is Action.RECONSTRUCT and state.scan_path is None:
        return "There is no scan yet: make one on the page Scan, or open a scan file."
    if action is Action.DECOMPOSE and state.scan_path is None and state.bins is None:
        return "There is nothing to decompose yet: reconstruct a scan, or open a volume."
    if action in (Action.RECONSTRUCT, Action.DECOMPOSE) and compute_job:
        return f"{compute_job} is running; wait until it ends, or cancel it."
    if action in (Action.SHOW, Action.EXPORT) and state.bins is None and state.materials is None:
        return "There is no volume yet: reconstruct a scan, or open a volume file."
    return ""


_ABSENT = {
    Link.NONE: "No instrument is connected: choose one on the page Instrument.",
    Link.CONNECTING: "The instrument is being opened; wait a moment.",
    Link.LOST: "The instrument does not answer; it is opened as soon as it does. Check cable and power.",
}

_OF_ITS_OWN = (
    "A Merlin is calibrated and drives scans by its own program: look at it on the page Live, or disconnect it and "
    "choose a board."
)


def _why_not_connected(link: Link) -> str:
    if link is Link.CONNECTING:
        return _ABSENT[link]
    return "An instrument is connected; disconnect it first." if link in (Link.READY, Link.BUSY) else ""


def _why_not_measured(action: Action, state: State, link: Link, instrument_job: str) -> str:
    if link in _ABSENT:
        return _ABSENT[link]
    if action is Action.SCAN and state.calibration is None:
        return "A scan needs a calibration: make one on the page Calibrate, or open a calibration file."
    return _busy(link, instrument_job)


def _busy(link: Link, instrument_job: str) -> str:
    if instrument_job:
        return f"{instrument_job} is running on the instrument; stop it first."
    return "The instrument is busy; wait a moment." if link is Link.BUSY else ""
