"""A scan that was broken off, and what of it the next run takes over: its whole steps.

What was measured is never in one place only that is being changed: `ScanWriter` copies the whole steps into a new file
and lets that take the old one's name once it holds them on the disk. Killed at any moment of this, the name has one or
the other.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec

from acquisition.plan import Plan
from acquisition.scan_file import Scan, read_scan
from acquisition.scan_layout import partial_path
from acquisition.steps import Step
from calibration.conditions import differences
from calibration.store import Calibration
from firmware_iface.errors import BadFile, WrongUsage

RESUME_HINT = "go on with the same command and --resume, or with “Go on with it” on the window's page Scan"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """What is there of a scan, and what remains to be done.

    Attributes
    ----------
    source : Path or None
        File to take frames from; None: begin from nothing.
    n_frames : int
        Frames of whole steps, the first in it, which are taken over.
    n_repeated : int
        Frames behind them, of a broken step, which is repeated.
    first_step : int
        The first step that is missing.
    told : tuple of str
        What a person should hear.
    """

    source: Path | None = None
    n_frames: int = 0
    n_repeated: int = 0
    first_step: int = 0
    told: tuple[str, ...] = ()


def first_frames(steps: Sequence[Step]) -> list[int]:
    """Return the number of the first frame of each step, and behind them that of all frames."""
    return [0, *accumulate(step.n_frames for step in steps)]


def step_of(first: Sequence[int], n_frames: int) -> int:
    """Return how many steps are whole when so many frames are there."""
    return bisect_right(first, n_frames) - 1


def find_rest(path: Path, plan: Plan, calibration: Calibration, first: Sequence[int]) -> Rest:
    """Find what earlier runs left of a scan; what cannot be read is moved aside and kept.

    Parameters
    ----------
    first : sequence of int
        As `first_frames` returns it.

    Raises
    ------
    WrongUsage
        What is there was begun with another plan or calibration; the message says in what they differ.
    """
    partial = partial_path(path)
    if not partial.exists():
        return Rest()
    try:
        scan = read_scan(partial, allow_partial=True)
    except BadFile as error:
        aside = _unused(path.with_name(f"{path.stem}.unreadable{path.suffix}"))
        partial.replace(aside)
        return Rest(told=(f"{error}; it is kept as {aside}, and the scan begins anew",))
    refuse_other(partial, scan, plan, calibration)
    n_there = scan.shape[0]
    first_step = step_of(first, n_there)
    n_frames = first[first_step]
    return Rest(
        source=partial,
        n_frames=n_frames,
        n_repeated=n_there - n_frames,
        first_step=first_step,
        told=(_tell(n_frames, n_there - n_frames, first_step, first),),
    )


def refuse_other(file: Path, scan: Scan, plan: Plan, calibration: Calibration) -> None:
    """Refuse to go on with a scan that was begun otherwise."""
    told: list[str] = []
    if scan.plan is None:
        told.append("it has no plan")
    elif scan.plan != plan:
        told += _plan_differences(scan.plan, plan)
    if scan.calibration_identity != calibration.identity:
        theirs = scan.calibration
        how = "; ".join(differences(theirs.conditions, calibration.conditions)) if theirs else ""
        told.append(
            f"calibration {scan.calibration_identity or 'unknown'}, now {calibration.identity}{how and f' ({how})'}"
        )
    if told:
        raise WrongUsage(
            f"{file} cannot be gone on with: it was begun with {', '.join(told)}",
            hint="take the plan and the calibration that it was begun with, or write a new scan under another name",
        )


def _plan_differences(theirs: Plan, ours: Plan) -> Iterator[str]:
    before, now = dict(_leaves(msgspec.to_builtins(theirs))), dict(_leaves(msgspec.to_builtins(ours)))
    for key in before | now:
        if before.get(key) != now.get(key):
            yield f"{key} {before.get(key, 'unset')}, now {now.get(key, 'unset')}"


def _leaves(tree: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, object]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{name}{key}.")
        else:
            yield f"{name}{key}", value


def _tell(n_frames: int, n_repeated: int, first_step: int, first: Sequence[int]) -> str:
    text = f"{n_frames} of {first[-1]} frames are there ({first_step} of {len(first) - 1} steps)"
    if n_repeated:
        text += f"; {n_repeated} frames of step {first_step}, which was broken off, are taken again"
    return text


def _unused(path: Path) -> Path:
    """Return a name that nothing has: what could not be read may still be worth something to somebody."""
    names = (path.with_name(f"{path.stem}-{n}{path.suffix}") if n else path for n in range(1 << 20))
    return next(name for name in names if not name.exists())
