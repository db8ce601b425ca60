"""The plan that is being edited: one text, which the form and the editor both show, with what it was before.

The text is the truth. Whoever changes a field changes the text, and a text that is no plan is kept and told so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from math import isfinite
from pathlib import Path
from typing import Any, TypeGuard

from acquisition.plan import MODES, Plan, plan_to_toml
from firmware_iface.chip import COLOUR_PITCH_MM, COLS, PITCH_MM, ROWS
from gui.scan.fields import Field, literal, scan_keys, value_of
from gui.scan.plan_text import Fault, Judgement, judge, with_value, without
from gui.scan.presets import DEMO, read_preset
from gui.undo import History


class Document:
    """A text of a plan and its past.

    Attributes
    ----------
    judgement : Judgement
        Of the present text.
    path : Path or None
        Where it was read from, or saved to.
    """

    def __init__(self, text: str, path: Path | None = None) -> None:
        self._history = History(text)
        self._saved = text
        self._hand = ""
        self.path = path
        self.judgement: Judgement = judge(text)

    @property
    def text(self) -> str:
        """The present text."""
        return self._history.now

    @property
    def plan(self) -> Plan | None:
        """The plan that the text is; None where it is none."""
        return self.judgement.plan

    @property
    def fault(self) -> Fault | None:
        """What keeps it from being one."""
        return self.judgement.fault

    @property
    def kind(self) -> str:
        """The kind of scan, as it is written or else as it would be."""
        return str(self.value("scan.kind"))

    @property
    def is_saved(self) -> bool:
        """Whether the text is as it was read, or saved last."""
        return self.text == self._saved

    @property
    def can_undo(self) -> bool:
        """Whether there is an edit to take back."""
        return self._history.can_undo

    @property
    def can_redo(self) -> bool:
        """Whether there is an edit that was taken back."""
        return self._history.can_redo

    def value(self, key: str) -> object:
        """Return what a field shows: what is written, right or wrong, or else the default."""
        written = value_of(self.judgement.tree or {}, key)
        return written if written is not None else default(key, self.judgement.tree or {})

    def edit(self, text: str, hand: str = "") -> None:
        """Go on with another text.

        Parameters
        ----------
        hand : str
            Who edits; letters that the same hand types one after the other are one edit, until `lift_hand`.
        """
        if text == self.text:
            return
        if hand and hand == self._hand:
            self._history.undo()
        self._hand = hand
        self._history.edit(text)
        self.judgement = judge(text)

    def lift_hand(self) -> None:
        """Make what comes next an edit of its own."""
        self._hand = ""

    def set(self, field: Field, typed: str) -> None:
        """Write what was typed into a field; nothing while the text is not even TOML."""
        if self.judgement.tree is None:
            return
        if field.key == "scan.kind":
            self.edit(of_kind(self.text, typed))
        elif field.key == "detector.mode":
            self.edit(in_mode(self.text, typed))
        elif field.key.startswith("geometry.") and "geometry" not in self.judgement.tree:
            self.edit(with_value(with_geometry(self.text), field.key, literal(field, typed)), field.key)
        else:
            self.edit(with_value(self.text, field.key, literal(field, typed)), field.key)

    def undo(self) -> None:
        """Take the last edit back."""
        self.lift_hand()
        self.judgement = judge(self._history.undo())

    def redo(self) -> None:
        """Make it again."""
        self.lift_hand()
        self.judgement = judge(self._history.redo())

    def saved(self, path: Path) -> None:
        """Note where the present text was saved."""
        self.path, self._saved = path, self.text


def text_of(plan: Plan) -> str:
    """Return a plan as text: that of the demo, with its comments, where it is the demo."""
    return read_preset(DEMO) if plan == Plan() else plan_to_toml(plan)


def default(key: str, tree: dict[str, Any]) -> object:
    """Return what a key has that is not written."""
    section, _, name = key.partition(".")
    if section == "scan" and name != "kind":
        kind = str(value_of(tree, "scan.kind") or Plan().scan.kind)
        return getattr(_plain_scan(kind), name, "")
    return getattr(getattr(Plan(), section), name, "")


@lru_cache(maxsize=32)
def _plain_scan(kind: str) -> object:
    """Return a scan of a kind with all its defaults; of one that is none, the demo's."""
    plan = judge(f"[scan]\nkind = {json.dumps(kind)}\n").plan
    return plan.scan if plan is not None else Plan().scan


def of_kind(text: str, kind: str) -> str:
    """Return the text of a plan as one of another kind of scan; what this kind has not, or refuses, is gone."""
    tree, keeps = judge(text).tree or {}, scan_keys(kind)
    text = with_value(text, "scan.kind", json.dumps(kind))
    for name in tree.get("scan", {}):
        if name not in keeps and name != "kind":
            text = without(text, f"scan.{name}")
    for _ in keeps:
        fault = judge(text).fault
        if fault is None or not fault.key.startswith("scan.") or fault.key == "scan.kind":
            break
        text = without(text, fault.key)
    return text


def in_mode(text: str, mode: str) -> str:
    """Return the text of a plan in another mode of the chip: with its pixels, and as many thresholds as it takes."""
    tree = judge(text).tree or {}
    text = with_value(text, "detector.mode", json.dumps(mode))
    if mode not in MODES:
        return text
    text = with_thresholds(text, tree, len(MODES[mode].thresholds))
    is_colour = MODES[mode].is_colour
    rows, cols, pitch_mm = (ROWS // 2, COLS // 2, COLOUR_PITCH_MM) if is_colour else (ROWS, COLS, PITCH_MM)
    if str(value_of(tree, "scan.threshold")) not in ("None", "all", *map(str, MODES[mode].thresholds)):
        text = with_value(text, "scan.threshold", '"all"')
    was_colour = MODES.get(str(value_of(tree, "detector.mode")), MODES[Plan().detector.mode]).is_colour
    if was_colour != is_colour:
        text = with_geometry(text)
        for name, value in (("rows", rows), ("cols", cols), ("pitch_mm", pitch_mm)):
            text = with_value(text, f"geometry.{name}", repr(value))
    return text


def with_thresholds(text: str, tree: dict[str, Any], n: int) -> str:
    """Return the text with so many thresholds, spread between the lowest and the highest that there were."""
    known = Plan().detector.thresholds_kev
    energies_kev = value_of(tree, "detector.thresholds_kev") or known
    if not _are_numbers(energies_kev):  # typed wrong
        energies_kev = known
    elif len(energies_kev) == n:
        return text
    low_kev, high_kev = energies_kev[0], energies_kev[-1]
    step_kev = (high_kev - low_kev) / max(n - 1, 1)
    spread = [round(low_kev + place * step_kev, 1) for place in range(n)]
    if value_of(tree, "scan.passes_kev"):
        text = with_value(text, "scan.passes_kev", "[]")
    return with_value(text, "detector.thresholds_kev", json.dumps(spread))


def _are_numbers(value: object) -> TypeGuard[Sequence[float]]:
    return isinstance(value, list | tuple) and all(isinstance(each, int | float) and isfinite(each) for each in value)


def with_geometry(text: str) -> str:
    """Return the text with its section of the geometry whole, which a plan has whole or not at all."""
    for name in ("source_to_detector_mm", "source_to_object_mm", "pitch_mm", "rows", "cols"):
        if value_of(judge(text).tree or {}, f"geometry.{name}") is None:
            text = with_value(text, f"geometry.{name}", repr(getattr(Plan().geometry, name)))
    return text
