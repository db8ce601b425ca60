"""Plans to begin with, one file each beside `acquisition.plan`; what it says of itself are its first lines."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import acquisition

FOLDER = Path(acquisition.__file__).parent / "plans"
DEMO = "demo"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A plan to begin with: its name, and the comment above it."""

    name: str
    told: str
    path: Path


def presets() -> tuple[Preset, ...]:
    """Return all of them, the demonstration first."""
    found = [
        Preset(name=path.stem, told=told(path.read_text(encoding="utf-8")), path=path) for path in FOLDER.glob("*.toml")
    ]
    return tuple(sorted(found, key=lambda each: (each.name != DEMO, each.name)))


def read_preset(name: str) -> str:
    """Return the text of one."""
    return (FOLDER / f"{name}.toml").read_text(encoding="utf-8")


def told(text: str) -> str:
    """Return the comment that a file begins with, as one paragraph."""
    head = re.match(r"(?:#.*\n)*", text)
    lines = head[0].splitlines() if head else []
    return " ".join(line.lstrip("# ").strip() for line in lines).strip()
