"""Scale bars and the ticks of legends: round numbers that fit."""

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


def ticks(low: float, high: float, most: int = 5) -> tuple[float, ...]:
    """Return round numbers from low to high, evenly apart, at most so many."""
    if not low < high:
        return ()
    step = round_below((high - low) / max(most - 1, 1))
    while (math.floor(high / step + 1e-9) - math.ceil(low / step - 1e-9) + 1) > most:
        step = next(bigger for bigger in (2 * step, 2.5 * step) if _is_round(bigger))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return tuple(round(n * step, 12) for n in range(first, last + 1))


def _is_round(value: float) -> bool:
    lead = value / 10.0 ** math.floor(math.log10(value) + 1e-9)
    return any(math.isclose(lead, step, rel_tol=1e-6) for step in ROUND)
