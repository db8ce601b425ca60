"""What can be connected to here, which of it to offer first, and what was used before. No Qt here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gui.rig import LINE

if TYPE_CHECKING:
    from acquisition.doctor import Finding

SIMULATED = "sim:demo"
"""The instrument for who has none."""
MOST_RECENT = 6
_TEXTS = {
    "sim:demo": "a whole instrument with tube, stage and samples; colour pixels of 110 µm",
    "sim:fine": "the same with pixels of 55 µm, for fine detail",
    "merlin://HOST": "a Merlin readout; write the name of its computer for HOST",
}
"""What technicians read of what developers list."""


class Kind(Enum):
    """How an instrument is reached; the value says it in words."""

    USB = "board on USB"
    MERLIN = "Merlin on the network"
    SIMULATED = "simulated"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One instrument in the list.

    Attributes
    ----------
    text : str
        What there is to say of it.
    problem : str
        Why it cannot be chosen as it stands; empty if it can.
    """

    url: str
    text: str
    kind: Kind
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where an instrument is: detector, stage and tube."""

    url: str
    stage_url: str = LINE
    tube_url: str = LINE


def look() -> tuple[Found, ...]:
    """List every detector that can be opened here, boards first and the simulated last; nothing is opened."""
    from firmware_iface.transport import list_devices  # it loads what can list, and the window is to be there first

    return sort_out(list_devices())


def sort_out(listed: Mapping[str, str]) -> tuple[Found, ...]:
    """Make entries of URLs and the lines on them, in the order in which to offer them."""
    found = [
        Found(url=url, text=_TEXTS.get(url, text), kind=kind_of(url), problem=_problem(url, text))
        for url, text in listed.items()
    ]
    return tuple(sorted(found, key=lambda each: (list(Kind).index(each.kind), bool(each.problem))))


def _problem(url: str, text: str) -> str:
    """Return what keeps an entry from being chosen as it stands: a bare scheme tells why, a form wants a name."""
    return text if url.endswith((":", "://HOST")) else ""


def kind_of(url: str) -> Kind:
    """Return how a URL reaches its instrument."""
    kinds = {"usb": Kind.USB, "merlin": Kind.MERLIN, "sim": Kind.SIMULATED}
    return kinds.get(url.partition(":")[0], Kind.OTHER)


def has_real(found: Iterable[Found]) -> bool:
    """Return whether there is an instrument that is not simulated and could be opened as it is listed."""
    return any(each.kind is not Kind.SIMULATED and not each.problem for each in found)


def first_choice(found: Sequence[Found], recent: Sequence[Address]) -> str:
    """Return the URL to offer: what was used last if it is there still, else a board, else the simulated one."""
    there = {each.url for each in found if not each.problem}
    if recent and (recent[0].url in there or kind_of(recent[0].url) in (Kind.MERLIN, Kind.SIMULATED)):
        return recent[0].url
    return next((each.url for each in found if each.kind is Kind.USB and not each.problem), SIMULATED)


def offer(url: str) -> str:
    """Return what stands on the button that opens this with one click."""
    return "Use the simulated instrument" if kind_of(url) is Kind.SIMULATED else f"Connect to {url}"


def why_not_address(address: Address) -> str:
    """Return why an address cannot be one, and what would do; empty where it may."""
    for what, url, example in (
        ("instrument", address.url, SIMULATED),
        ("stage", address.stage_url, LINE),
        ("tube", address.tube_url, LINE),
    ):
        if not url.strip():
            return f"No {what} is named; choose one in the list, or write an address such as {example}."
        if ":" not in url:
            return f"{url!r} is no address of a {what}; it begins with a kind and a colon, as {example} does."
    if address.url in ("merlin:", "merlin://") or address.url.endswith("://HOST"):
        return "Write the name or number of the Merlin's computer: merlin://192.168.0.5, for example."
    return ""


def remembered(recent: Sequence[Address], new: Address) -> tuple[Address, ...]:
    """Put what is used now first among what was used before."""
    return (new, *(each for each in recent if each != new))[:MOST_RECENT]


def as_saved(recent: Iterable[Address]) -> list[list[str]]:
    """Return addresses as plain values."""
    return [[each.url, each.stage_url, each.tube_url] for each in recent]


def from_saved(saved: Any) -> tuple[Address, ...]:
    """Read addresses back; what is odd is left out."""
    if not isinstance(saved, list):
        return ()
    return tuple(
        Address(url=each[0], stage_url=each[1], tube_url=each[2])
        for each in saved
        if isinstance(each, list) and len(each) == 3 and all(isinstance(part, str) and ":" in part for part in each)
    )[:MOST_RECENT]


def findings(folder: Path) -> tuple[Finding, ...]:
    """Look at this machine as `mpxct doctor` does; it takes some seconds and starts other programs."""
    from acquisition.doctor import Level, examine
    from acquisition.machine import gather

    worst_first = [Level.FAIL, Level.WARN, Level.OK]
    return tuple(sorted(examine(gather(folder)), key=lambda finding: worst_first.index(finding.level)))
