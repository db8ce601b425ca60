"""An aim beside what was reached, as the studies of the calibration tell it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """One aim; met if what was reached is at most as large, or with ``is_least`` at least."""

    name: str
    aim: float
    reached: float
    unit: str
    is_least: bool = False

    @property
    def is_met(self) -> bool:
        """Whether it was reached; a figure that is not a number was not."""
        return bool(self.reached >= self.aim if self.is_least else self.reached <= self.aim)

    @property
    def figures(self) -> dict[str, Any]:
        """As the JSON object holds it."""
        return {
            "name": self.name,
            "aim": self.aim,
            "reached": round(float(self.reached), 4),
            "unit": self.unit,
            "met": self.is_met,
        }

    def __str__(self) -> str:
        bound = "at least" if self.is_least else "at most"
        mark = "met" if self.is_met else "MISSED"
        return f"{self.name:<70} {self.reached:>9.3f}  {bound} {self.aim:<6g} {self.unit:<7} {mark}"
