"""The form of a plan, made from the plan's own records: its groups and fields, and a field's text as TOML and back."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, get_args

import msgspec

from acquisition.plan import DEPTHS_BITS, MODES, DetectorPlan, SourcePlan
from acquisition.scan_plan import TRIGGERS, AnyScan, ScanPlan, Turning
from calibration.geometry import Geometry
from firmware_iface.chip import Gain
from gui.scan.words import UNITS, WORDS


class FieldKind(Enum):
    """How the text of a field is read."""

    NUMBER = "a number"
    TEXT = "a word"
    CHOICE = "one of a few"
    NUMBERS = "numbers, parted by commas"
    ROWS = "rows of numbers, parted by |"


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field of the form: the key in the plan, and what people see of it."""

    key: str
    kind: FieldKind
    label: str
    tip: str
    unit: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Fields that belong together."""

    title: str
    fields: tuple[Field, ...]


CHOICES: Mapping[str, tuple[str, ...]] = {
    "detector.mode": tuple(MODES),
    "detector.gain": tuple(gain.name for gain in Gain),
    "detector.depth_bits": tuple(map(str, DEPTHS_BITS)),
    "scan.trigger": tuple(TRIGGERS),
    "scan.direction": ("both", "forward"),
    "scan.tile_order": ("tile", "view"),
    "scan.pass_order": ("scan", "view"),
    "scan.motion": ("step", "continuous"),
    "scan.threshold": ("all", *map(str, range(8))),
}
SAMPLE = ("scan.sample", "scan.length_mm", "scan.centre_mm")
FLATS = ("scan.n_flats", "scan.flats_every_n_views")
KINDS: Mapping[str, type[msgspec.Struct]] = {str(kind.__struct_config__.tag): kind for kind in get_args(AnyScan)}
LIVE = "live"
"""The kind that writes nothing, and is none of this page's."""
_NUMBER = re.compile(r"[+-]?(\d[\d_]*)(\.\d+)?([eE][+-]?\d+)?")


def kind_names() -> tuple[str, ...]:
    """Return the kinds of scan that can be written."""
    return tuple(name for name in KINDS if name != LIVE)


def groups(kind: str) -> tuple[Group, ...]:
    """Return the form of a plan whose scan is of a kind; every key once, but those of the calibration."""
    of_scan = {f"scan.{name}": of_type for name, of_type in scan_keys(kind).items()}
    choice = Field(
        key="scan.kind", kind=FieldKind.CHOICE, choices=kind_names(), label=WORDS["scan.kind"].label,
        tip=WORDS["scan.kind"].tip,
    )  # fmt: skip
    apart = (*SAMPLE, *FLATS)
    return tuple(
        Group(title=title, fields=found)
        for title, found in (
            ("Sample", _fields({key: of_scan[key] for key in SAMPLE if key in of_scan})),
            ("Scan", (choice, *_fields({key: of for key, of in of_scan.items() if key not in apart}))),
            ("Flats", _fields({key: of_scan[key] for key in FLATS if key in of_scan})),
            ("Source", _fields(_keys("source", SourcePlan))),
            ("Detector", _fields(_keys("detector", DetectorPlan))),
            ("Geometry", _fields({f"geometry.{field.name}": field.type for field in fields(Geometry)})),
        )
        if found
    )


def scan_keys(kind: str) -> dict[str, object]:
    """Return the keys of a kind of scan, each with its type, its own first; an unknown kind has those of a circle."""
    found = {field.encode_name: field.type for field in msgspec.structs.fields(KINDS.get(kind, ScanPlan))}
    shared = {field.encode_name for field in msgspec.structs.fields(Turning)}
    return {name: found[name] for name in sorted(found, key=shared.__contains__)}


def literal(field: Field, text: str) -> str:
    """Write what somebody typed as a TOML value; what is no number becomes a text, which the plan then refuses."""
    text = text.strip()
    if field.kind is FieldKind.NUMBERS:
        return _list(text)
    if field.kind is FieldKind.ROWS:
        rows = [_list(row) for row in re.split(r"[|;\n]", text) if row.strip()]
        return f"[{', '.join(rows)}]"
    if field.kind is FieldKind.NUMBER or (field.kind is FieldKind.CHOICE and text.isdigit()):
        return _number(text)
    return json.dumps(text, ensure_ascii=False)


def shown(value: object) -> str:
    """Return a value as a field shows it; `literal` gives the same value back."""
    if isinstance(value, list | tuple):
        is_rows = bool(value) and isinstance(value[0], list | tuple)
        return (" | " if is_rows else ", ").join(map(shown, value))
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return str(value)


def value_of(tree: Mapping[str, Any], key: str) -> object:
    """Return what a tree of sections has under a dotted key; None where it has nothing."""
    for name in key.split("."):
        if not isinstance(tree, Mapping):
            return None
        tree = tree.get(name)  # pyright: ignore[reportAssignmentType]
    return tree


def _fields(keys: Mapping[str, object]) -> tuple[Field, ...]:
    return tuple(
        Field(
            key=key,
            kind=_kind(key, of_type),
            label=WORDS[key].label,
            tip=WORDS[key].tip,
            unit=UNITS.get(key.replace(".", "_").rsplit("_", 1)[-1], ""),
            choices=CHOICES.get(key, ()),
        )
        for key, of_type in keys.items()
    )


def _keys(section: str, kind: type[msgspec.Struct]) -> dict[str, object]:
    return {f"{section}.{field.encode_name}": field.type for field in msgspec.structs.fields(kind)}


def _kind(key: str, of_type: object) -> FieldKind:
    if key in CHOICES:
        return FieldKind.CHOICE
    text = str(of_type)
    if "tuple[tuple" in text:
        return FieldKind.ROWS
    if "tuple" in text:
        return FieldKind.NUMBERS
    return FieldKind.TEXT if text in ("str", "<class 'str'>") else FieldKind.NUMBER


def _list(text: str) -> str:
    return f"[{', '.join(_number(item) for item in _items(text))}]"


def _items(text: str) -> Iterator[str]:
    yield from (item for item in re.split(r"[,\s]+", text.strip()) if item)


def _number(text: str) -> str:
    """Return a number as TOML takes it, or the text in quotes where it is none."""
    if _NUMBER.fullmatch(text):
        try:
            tomllib.loads(f"x = {text}")
        except tomllib.TOMLDecodeError:  # as 007, say
            return repr(float(text))
        return text
    return json.dumps(text, ensure_ascii=False)
