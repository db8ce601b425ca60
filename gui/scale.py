"""Scale bars: round lengths that fit."""

from __future__ import annotations

import math

ROUND = (1.0, 2.0, 5.0)


def round_below(value: float) -> float:
    """Return the largest of 1, 2, 5, 10, 20, 50 and so on (or their decimal fractions) that is not above a value."""
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"no round number lies below {value}; allowed: more than 0")
    decade = 10.0 ** math.floor(math.log10(value))
    steps = [step * decade for step in (*ROUND, 10.0) if step * decade <= value * (1 + 1e-9)]
    return max(steps, default=5 * decade / 10)


def bar_mm(mm_per_px: float, width_px: float, share: float = 0.25) -> float:
    """Return the round length that takes about this share of a picture, and never more."""
    return round_below(share * mm_per_px * width_px)


def length_text(length_mm: float) -> str:
    """Return a length for people: "5 mm", "50 µm", "2 cm" stays 20 mm."""
    return f"{length_mm:g} mm" if length_mm >= 0.1 - 1e-12 else f"{1000 * length_mm:g} µm"
