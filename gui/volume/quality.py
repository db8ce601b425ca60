"""How finely a volume is drawn in three dimensions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """How finely rays are sampled.

    Attributes
    ----------
    step_voxels : float
        Between two samples; twice as much while something moves.
    is_shaded : bool
        Whether surfaces are lit.
    opaque_share : float
        A ray ends where it sees less than the rest of what is behind.
    divisor : int or None
        Of the resolution while something moves; None chooses by the time that the last picture took.
    """

    step_voxels: float = 1.0
    is_shaded: bool = True
    opaque_share: float = 0.995
    divisor: int | None = None
