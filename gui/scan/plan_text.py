"""A plan as text that somebody edits: judged as it is typed, and changed key by key with its comments left alone."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass
from typing import Any

from acquisition.plan import Plan, plan_from_toml, refuse_foreign_pixels, tree_to_toml
from firmware_iface.chip import COLS, ROWS
from firmware_iface.errors import WrongUsage
from gui.scan.words import WORDS

NAME = "plan"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What is wrong with a text, in a sentence, and where: the key, or the section, and the line from 1 on."""

    sentence: str
    key: str = ""
    line: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judgement:
    """What a text is.

    Attributes
    ----------
    plan : Plan or None
        None where it is none; `fault` says why.
    tree : dict or None
        Its sections and keys, right or wrong; None where it is not even TOML.
    """

    plan: Plan | None = None
    tree: dict[str, Any] | None = None
    fault: Fault | None = None


def judge(text: str) -> Judgement:
    """Read a text as a plan, or tell what keeps it from being one."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"line (\d+)", str(error))
        line = int(place[1]) if place else text.count("\n") + 1
        return Judgement(fault=Fault(sentence=f"This is not valid TOML: {error}", line=line))
    try:
        plan = plan_from_toml(text, NAME)
    except WrongUsage as error:
        said = str(error).removeprefix(f"{NAME}: ")
        key = _key(said, tree)
        sentence = re.sub(r"^in \[[\w.]+\]: ", "", said)
        return Judgement(tree=tree, fault=Fault(sentence=sentence, key=key, line=line_of(text, key)))
    try:
        refuse_foreign_pixels(plan)
    except WrongUsage as error:
        rows = ROWS // 2 if plan.detector.is_colour else ROWS
        cols = COLS // 2 if plan.detector.is_colour else COLS
        wrong = (plan.geometry.rows != rows, plan.geometry.cols != cols)
        key = f"geometry.{'rows' if wrong[0] else 'cols' if wrong[1] else 'pitch_mm'}"
        return Judgement(tree=tree, fault=Fault(sentence=str(error), key=key, line=line_of(text, key)))
    return Judgement(plan=plan, tree=tree)


def line_of(text: str, key: str) -> int | None:
    """Return the line, from 1 on, that a key stands in, or else its section; None where neither is there."""
    if not key:
        return None
    section, _, name = key.rpartition(".")
    found = _value(text, section, name)
    if found is not None:
        return text.count("\n", 0, found[0]) + 1
    header = _header(text, key) or _header(text, section)
    return text.count("\n", 0, header.start(1)) + 1 if header is not None else None


def with_value(text: str, key: str, literal: str) -> str:
    """Write a value to a key of a section; everything else, and its comment, stays as it is.

    Raises
    ------
    tomllib.TOMLDecodeError
        The text is not TOML, so that nobody knows where the key stands.
    """
    wanted = tomllib.loads(text)
    section, _, name = key.rpartition(".")
    part = wanted
    for each in section.split("."):
        if not isinstance(part.get(each), dict):  # not there yet, or typed wrong
            part[each] = {}
        part = part[each]
    part[name] = tomllib.loads(f"x = {literal}")["x"]
    changed = _written(text, section, name, literal)
    return changed if _is_tree(changed, wanted) else tree_to_toml(wanted)


def without(text: str, key: str) -> str:
    """Take a key out of its section, with its line."""
    wanted = tomllib.loads(text)
    section, _, name = key.rpartition(".")
    if name not in _part(wanted, section):
        return text
    del _part(wanted, section)[name]
    found = _value(text, section, name)
    if found is None:
        return tree_to_toml(wanted)
    begin, end = text.rfind("\n", 0, found[0]) + 1, text.find("\n", found[1])
    changed = text[:begin] + (text[end + 1 :] if end >= 0 else "")
    return changed if _is_tree(changed, wanted) else tree_to_toml(wanted)


def _written(text: str, section: str, name: str, literal: str) -> str:
    found = _value(text, section, name)
    if found is not None:
        return text[: found[0]] + literal + text[found[1] :]
    header = _header(text, section)
    if header is None:
        return f"{text.rstrip()}\n\n[{section}]\n{name} = {literal}\n".lstrip()
    end = text.find("\n", header.end())
    if end < 0:
        return f"{text}\n{name} = {literal}\n"
    return f"{text[: end + 1]}{name} = {literal}\n{text[end + 1 :]}"


def _is_tree(text: str, wanted: dict[str, Any]) -> bool:
    """Judge whether a text says what it should; an editor of lines may meet what it does not know."""
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return False
    return json.dumps(found, sort_keys=True, default=str) == json.dumps(wanted, sort_keys=True, default=str)  # nan too


def _header(text: str, section: str) -> re.Match[str] | None:
    return re.search(rf"^[ \t]*(\[[ \t]*{re.escape(section)}[ \t]*\])", text, re.MULTILINE)


_KEY = re.compile(r"[ \t]*([\w-]+)[ \t]*=[ \t]*")


def _value(text: str, section: str, name: str) -> tuple[int, int] | None:
    """Return where the value of a key begins and ends."""
    header = _header(text, section)
    if header is None:
        return None
    at = header.end()
    while (at := text.find("\n", at) + 1) > 0:
        line = _KEY.match(text, at)
        if line is not None:
            begin, end = line.end(), _end(text, line.end())
            if line[1] == name:
                return begin, end
            at = end
        elif text[at:].lstrip(" \t").startswith("["):
            return None
    return None


def _end(text: str, begin: int) -> int:
    """Return where a value ends that begins here: before its comment, or its line's end, outside of brackets."""
    depth, at, last = 0, begin, begin
    while at < len(text):
        letter = text[at]
        if letter == "#":
            if depth == 0:
                break
            at = text.find("\n", at)
            if at < 0:
                break
            continue
        if letter == "\n" and depth == 0:
            break
        if letter in "\"'":
            closing = at + 1
            while closing < len(text) and text[closing] != letter:
                closing += 2 if letter == '"' and text[closing] == "\\" else 1
            at = closing
        depth += (letter in "[{") - (letter in "]}")
        at += 1
        if not letter.isspace():
            last = at
    return min(last, len(text))


def _key(sentence: str, tree: dict[str, Any]) -> str:
    """Find the key that a refusal is about, in its sentence; a section where it names no key of it."""
    inside = re.match(r"in \[([\w.]+)\]: (.*)", sentence)
    section, said = (inside[1], inside[2]) if inside else ("", sentence)
    named = re.match(r"([\w.]+)(?: = | is | has | goes | hold)", said)
    name = named[1] if named else ""
    if section:
        key = f"{section}.{name}"
        return key if key in WORDS or name in _part(tree, section) else section
    if "." in name:
        return ".".join(name.split(".")[:2]) if not name.startswith("calibration.") else name
    for key, phrase in _PHRASES.items():
        if phrase in said:
            return key
    return next((key for key in WORDS if key.rpartition(".")[2] == name), name)


def _part(tree: dict[str, Any], section: str) -> dict[str, Any]:
    part: Any = tree
    for each in section.split("."):
        part = part.get(each, {}) if isinstance(part, dict) else {}
    return part if isinstance(part, dict) else {}


_PHRASES = {
    "scan.n_views": "the number of views in all passes",
    "scan.stop_kev": "the highest threshold at scan.stop_kev",
    "geometry.pitch_mm": "a detector of",
}
