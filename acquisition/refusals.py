"""How a plan refuses a value: key, value, and what is allowed, in one sentence."""

from __future__ import annotations

import re


def refuse_outside(name: str, value: float, low: float, high: float, unit: str = "") -> None:
    """Refuse a number that is outside a range, or no number."""
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; allowed: {low:g} to {high:g}{unit and ' ' + unit}")


def refuse_unlisted(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """Refuse what is not one of a few."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(map(str, allowed))}")


def refuse_unspeakable(name: str, value: str) -> None:
    """Refuse a name that cannot be one word of a gantry's line."""
    if not re.fullmatch(r"[\w.+-]{1,64}", value):
        raise ValueError(f"{name} is {value!r}; allowed: 1 to 64 letters, digits, '.', '+', '-' and '_', no spaces")
