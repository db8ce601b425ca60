"""What stage and tube can do, as they say themselves; a plan is checked against it before anything moves.

None is "it does not say", never "anything": what is not known is not checked, and whoever checks tells so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

Range = tuple[float, float]
"""From the lowest to the highest value that is allowed."""
ENDLESS: Range = (-math.inf, math.inf)
"""Of an axis that turns round and round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a gantry can do; None where it does not say.

    Attributes
    ----------
    angle_rad, lift_mm, shift_mm : (lowest, highest) or None
        Where each axis may stand; `ENDLESS` for one that turns round and round.
    speed_rad_s, lift_speed_mm_s, shift_speed_mm_s : float or None
        The highest speed of each axis.
    settle_s : float or None
        From the end of a move until the stage stands still.
    sample_change_s : float or None
        To put a sample into the beam, or out of it.
    kvp, current_ma : (lowest, highest) or None
        Of the tube.
    power_w : float or None
        The highest product of voltage and current.
    """

    angle_rad: Range | None = None
    lift_mm: Range | None = None
    shift_mm: Range | None = None
    speed_rad_s: float | None = None
    lift_speed_mm_s: float | None = None
    shift_speed_mm_s: float | None = None
    settle_s: float | None = None
    sample_change_s: float | None = None
    kvp: Range | None = None
    current_ma: Range | None = None
    power_w: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple) and not value[0] <= value[1]:
                raise ValueError(f"{field.name} is {value}; allowed: the lowest value, then the highest")
            if isinstance(value, float) and not value >= 0:
                raise ValueError(f"{field.name} is {value}; allowed: 0 or more")

    def or_else(self, other: Limits) -> Limits:
        """Return these limits, and those of another part of the gantry where these say nothing."""
        unsaid = {field.name for field in fields(self) if getattr(self, field.name) is None}
        return replace(self, **{name: getattr(other, name) for name in unsaid})


UNKNOWN = Limits()
"""Of a gantry that says nothing."""
